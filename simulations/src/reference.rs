//! The ledger told once more, in plain maps and sums: what an issuer wrote down gives these balances, whatever its books do.
//!
//! Nothing here is kept from one moment to the next but what was written; every balance is added up anew from all of it.

use std::collections::{BTreeMap, BTreeSet};

use protocol::forward::{Entry, Gathering};
use protocol::ids::{AccountId, ChannelId, Digest};
use protocol::ledger::issuer::Balance;
use protocol::ledger::records::{AccountOp, Deposit, Epoch, OpBody, SplitLine, Terms};
use protocol::manifest::Manifest;
use protocol::record::Record;
use protocol::signed::Signed;

/// Nano-credits at which shares fall due; written out here, so that the books' own number is checked.
const QUANTUM: u64 = 10_000;

/// What an account can spend, and what its open channels hold, in nano-credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holding {
    /// What can be spent; below nothing if the books let somebody spend what is not there.
    pub available: i128,
    /// What open channels hold.
    pub held: i128,
}

/// What one issuer alone has written about credits.
#[derive(Debug, Clone)]
pub struct Reference {
    manifest: Manifest,
    /// References of deposits that count already.
    deposits: BTreeSet<Digest>,
    /// What accounts were given, less what they gave, without channels.
    own: BTreeMap<AccountId, i128>,
    channels: BTreeMap<ChannelId, Channel>,
    forward: Gathering,
}

#[derive(Debug, Clone)]
struct Channel {
    payer: AccountId,
    payee: AccountId,
    lines: Vec<SplitLine>,
    holds: u64,
    paid: u64,
    expires: Epoch,
    open: bool,
}

impl Reference {
    /// Returns the account of nothing written yet.
    #[must_use]
    pub fn new(manifest: Manifest) -> Self {
        Self {
            manifest,
            deposits: BTreeSet::new(),
            own: BTreeMap::new(),
            channels: BTreeMap::new(),
            forward: Gathering::default(),
        }
    }

    /// Takes a line of the issuer's journal; says whether it is about credits.
    pub fn take(&mut self, line: &Record) -> bool {
        if let Record::Admitted { deposit: Some(deposit), .. } | Record::Deposited(deposit) = line {
            self.deposit(deposit);
        } else if let Record::Stepped { op, terms, epoch } = line {
            self.step(op, terms.as_ref(), *epoch);
        } else if let Record::PaidOut { receipt, amount } = line {
            let receipt = receipt.peek_in(self.manifest.domain());
            if let Some(channel) = receipt.and_then(|(receipt, ..)| self.channels.get_mut(&receipt.channel)) {
                channel.paid = channel.paid.max(*amount);
            }
        } else if let Record::Closed(closing) = line {
            let closing = closing.peek_in(self.manifest.domain());
            if let Some((closing, ..)) = closing
                && let Some(channel) = self.channels.get_mut(&closing.channel)
            {
                (channel.paid, channel.open) = (closing.amount, false);
            }
        } else if let Record::Expired(epoch) = line {
            let grace = self.manifest.grace_epochs;
            for channel in self.channels.values_mut() {
                channel.open &= channel.expires.plus(grace) >= *epoch;
            }
        } else if let Record::Forward(line) = line {
            if let Some(entries) = self.forward.take(line.clone()).expect("in order") {
                self.begin_with(&entries);
            }
        } else {
            return false;
        }
        true
    }

    /// Begins with books that are in the place of the lines that led to them.
    fn begin_with(&mut self, entries: &[Entry]) {
        *self = Self::new(self.manifest.clone());
        let mut has = BTreeMap::new();
        for entry in entries {
            if let Entry::Channel(entry) = entry {
                let channel = Channel {
                    paid: entry.redeemed,
                    open: !entry.closed,
                    ..channel(&entry.terms, entry.payer, entry.cap, entry.expires)
                };
                self.channels.insert(entry.channel, channel);
            } else if let Entry::Booked { reference, .. } = entry {
                self.deposits.insert(*reference);
            } else if let Entry::Account(entry) = entry {
                let Balance { cash, earned, .. } = entry.balance;
                has.insert(entry.account, i128::from(cash) + i128::from(earned));
            }
        }
        let on_channels = self.holdings();
        for (account, has) in has {
            let on_channels = on_channels.get(&account).map_or(0, |holding| holding.available);
            self.own.insert(account, has - on_channels);
        }
    }

    fn deposit(&mut self, deposit: &Signed<Deposit>) {
        let Some((deposit, ..)) = deposit.peek_in(self.manifest.domain()) else { return };
        if self.deposits.insert(deposit.reference) {
            self.gives(deposit.account, i128::from(deposit.amount));
        }
    }

    fn step(&mut self, op: &Signed<AccountOp>, terms: Option<&Signed<Terms>>, epoch: Epoch) {
        let Some((op, id, _)) = op.peek_in(self.manifest.domain()) else { return };
        match op.body {
            OpBody::OpenChannel(open) => {
                let terms = terms.and_then(|terms| terms.peek_in(self.manifest.domain()));
                let Some((terms, ..)) = terms else { return };
                self.channels.insert(id.into(), channel(&terms, op.account, open.cap, open.expires));
                self.fee(op.account, self.manifest.open_fee);
            }
            OpBody::Expire(channel) => {
                if let Some(channel) = self.channels.get_mut(&channel) {
                    channel.expires = channel.expires.min(epoch.plus(1));
                }
            }
            OpBody::Pay { to, amount } => {
                self.gives(op.account, -i128::from(amount));
                self.gives(to, i128::from(amount));
                self.fee(op.account, self.manifest.pay_fee);
            }
            OpBody::Withdraw { amount, .. } => {
                self.gives(op.account, -i128::from(amount));
                self.fee(op.account, self.manifest.withdraw_fee);
            }
            OpBody::Noop => self.fee(op.account, self.manifest.pay_fee),
            OpBody::Inception(_) | OpBody::Rotate(_) => {}
        }
    }

    fn fee(&mut self, from: AccountId, fee: u64) {
        self.gives(from, -i128::from(fee));
        self.gives(self.manifest.network, i128::from(fee));
    }

    fn gives(&mut self, to: AccountId, amount: i128) {
        *self.own.entry(to).or_default() += amount;
    }

    /// Returns what everybody has who was ever given anything.
    #[must_use]
    pub fn holdings(&self) -> BTreeMap<AccountId, Holding> {
        let own = self.own.iter().map(|(account, own)| (*account, Holding { available: *own, held: 0 }));
        let mut holdings: BTreeMap<AccountId, Holding> = own.collect();
        for channel in self.channels.values() {
            let quanta = channel.paid / QUANTUM;
            let mut left = i128::from(channel.holds);
            for line in &channel.lines {
                let share = i128::from(quanta * u64::from(line.bps));
                left -= share;
                holdings.entry(line.account).or_default().available += share;
            }
            let payer = holdings.entry(channel.payer).or_default();
            payer.available -= i128::from(channel.holds);
            if channel.open {
                payer.held += left;
            } else {
                // What fills no quantum is the payee's, the rest returns.
                let rest = i128::from(channel.paid % QUANTUM);
                payer.available += left - rest;
                holdings.entry(channel.payee).or_default().available += rest;
            }
        }
        holdings
    }
}

/// Returns a channel on which nothing was paid.
fn channel(terms: &Terms, payer: AccountId, cap: u64, expires: Epoch) -> Channel {
    let markup = terms.markup.as_ref().map(|markup| markup.line());
    let rate = markup.as_ref().map_or(0, |line| u64::from(line.bps));
    Channel {
        payer,
        payee: terms.payee_account,
        lines: terms.split.iter().copied().chain(markup).collect(),
        holds: cap + cap / QUANTUM * rate,
        paid: 0,
        expires,
        open: true,
    }
}
