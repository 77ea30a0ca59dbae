//! The books as entries from which they are made again, once the lines that led to them are gone.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Account, Channel, Held, Issuer};
use crate::forward::{AccountEntry, ChannelEntry, Entry, HeldEntry, Totals};
use crate::ids::{AccountId, ChannelId};
use crate::mutant;
use crate::signed::SignedError;

impl Issuer {
    /// Returns the books of an issuer that is alone as entries. Those of one of several also know what is locked,
    /// promised and settled, and are not brought forward.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let totals = Totals { deposited: self.deposited, given: self.given, withdrawn: self.withdrawn() };
        let mut entries = Vec::from([Entry::Totals(totals)]);
        entries.extend(self.accounts.iter().map(|(id, account)| account_entry(*id, account)));
        entries.extend(self.channels.iter().map(|(id, channel)| self.channel_entry(*id, channel)));
        entries.extend(self.due.iter().map(|(epoch, channel)| Entry::Due(*epoch, *channel)));
        let booked = self.deposits.iter().filter(|_| !mutant::is_in("forward-without-references"));
        entries.extend(booked.map(|(reference, (account, amount))| Entry::Booked {
            reference: *reference,
            account: *account,
            amount: *amount,
        }));
        entries.extend(self.withdrawals().map(|(step, request)| Entry::Withdrawal(step, *request)));
        entries
    }

    /// Returns empty books of the same network.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self::new(self.manifest.clone())
    }

    /// Takes an entry; those that are not of the books change nothing.
    ///
    /// # Errors
    /// When the keys of an account cannot be read.
    pub fn restore(&mut self, entry: &Entry) -> Result<(), SignedError> {
        match entry {
            Entry::Totals(totals) => {
                (self.deposited, self.given) = (totals.deposited, totals.given);
                self.withdrawals.restore_sum(totals.withdrawn);
            }
            Entry::Account(entry) => {
                let lineage =
                    entry.lineage.clone().map(|lineage| lineage.read_back(self.domain)).transpose()?;
                let account = Account {
                    balance: entry.balance,
                    next: entry.next,
                    head: entry.head,
                    channels: entry.channels,
                    lineage: lineage.map(Box::new),
                    ..Account::default()
                };
                self.put_account(entry.account, account);
            }
            Entry::Channel(entry) => {
                let channel = channel_of(entry);
                self.await_accounts(&channel);
                self.channels.insert(entry.channel, channel);
                if entry.ended {
                    self.ended.insert(entry.channel);
                }
            }
            Entry::Due(epoch, channel) => {
                self.due.insert((*epoch, *channel));
            }
            Entry::Booked { reference, account, amount } => {
                self.deposits.insert(*reference, (*account, *amount));
            }
            Entry::Withdrawal(step, request) => self.withdrawals.restore(*step, *request),
            Entry::Payout(_)
            | Entry::Ticket { .. }
            | Entry::Admitted { .. }
            | Entry::News { .. }
            | Entry::Told(_) => {}
        }
        Ok(())
    }

    fn channel_entry(&self, id: ChannelId, channel: &Channel) -> Entry {
        Entry::Channel(Box::new(ChannelEntry {
            channel: id,
            payer: channel.payer,
            payer_node: channel.payer_node,
            payer_key: channel.payer_key,
            terms: channel.terms.clone(),
            cap: channel.cap,
            held: held_entry(channel.held),
            opened: held_entry(channel.opened),
            redeemed: channel.redeemed,
            expires: channel.expires,
            closed: channel.closed,
            ended: self.ended.contains(&id),
            kept_to: channel.kept_to,
        }))
    }
}

fn account_entry(id: AccountId, account: &Account) -> Entry {
    Entry::Account(Box::new(AccountEntry {
        account: id,
        balance: account.balance,
        next: account.next,
        head: account.head,
        channels: account.channels,
        lineage: account.lineage.as_ref().map(|lineage| lineage.signed()),
    }))
}

fn channel_of(entry: &ChannelEntry) -> Channel {
    Channel {
        payer: entry.payer,
        payer_node: entry.payer_node,
        payer_key: entry.payer_key,
        terms: entry.terms.clone(),
        cap: entry.cap,
        held: held_of(entry.held),
        opened: held_of(entry.opened),
        redeemed: entry.redeemed,
        stated: 0,
        expires: entry.expires,
        ending: None,
        closed: entry.closed,
        kept_to: entry.kept_to,
    }
}

const fn held_entry(held: Held) -> HeldEntry {
    HeldEntry { earned: held.earned, cash: held.cash }
}

const fn held_of(entry: HeldEntry) -> Held {
    Held { earned: entry.earned, cash: entry.cash }
}
