//! News of the issuer for those whom a step of somebody else concerns: what they received, which channel ends early.
//!
//! Balances and acknowledgements are told again and again; news is told until it is known, because the receiver keeps it
//! beside its receipts.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::ids::{AccountId, ChannelId, NodeId, RecordId};
use crate::ledger::issuer::Issuer;
use crate::ledger::records::{AccountOp, Epoch, OpBody, Recorded};
use crate::message::{Checked, Message, News, Notice};
use crate::record::Record;
use crate::signed::{Role, Verified};

use super::{Effect, Node, Offence};

/// Most news kept for one receiver that does not come to hear it; the oldest is dropped, the balance is right without.
const NEWS_PER_RECEIVER_MAX: usize = 64;

/// Most news kept for everybody.
const NEWS_MAX: usize = 100_000;

/// For whom news is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Receiver {
    Account(AccountId),
    Node(NodeId),
}

/// As issuer: news that its receivers have not confirmed.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    news: BTreeMap<(Receiver, u64), Notice<Checked>>,
    /// Numbers the news for nodes; those for accounts carry the number of the balance they led to.
    told: u64,
}

impl Inboxes {
    /// Files a deposit for the account that received it.
    pub(super) fn file_deposit(
        &mut self,
        deposit: Verified<crate::ledger::records::Deposit>,
        books: &Issuer,
    ) {
        let account = deposit.account;
        let number = books.balance(account).as_of;
        self.file(Receiver::Account(account), Notice { number, news: News::Deposit(deposit) });
    }

    /// Files a step for whom it concerns beside its own account.
    pub(super) fn file_step(
        &mut self,
        op: &Verified<AccountOp>,
        recorded: &Verified<Recorded>,
        books: &Issuer,
    ) -> Option<NodeId> {
        let news = News::Step { op: op.clone(), recorded: recorded.clone() };
        match &op.body {
            OpBody::Pay { to, .. } => {
                let number = books.balance(*to).as_of;
                self.file(Receiver::Account(*to), Notice { number, news });
                None
            }
            OpBody::Expire(channel) => {
                let (_, payee) = books.parties(*channel)?;
                self.told = self.told.saturating_add(1);
                self.file(Receiver::Node(payee), Notice { number: self.told, news });
                Some(payee)
            }
            OpBody::OpenChannel(_)
            | OpBody::Withdraw { .. }
            | OpBody::Noop
            | OpBody::Inception(_)
            | OpBody::Rotate(_) => None,
        }
    }

    fn file(&mut self, receiver: Receiver, notice: Notice<Checked>) {
        let range = (receiver, 0)..=(receiver, u64::MAX);
        if self.news.range(range.clone()).count() >= NEWS_PER_RECEIVER_MAX {
            let oldest = self.news.range(range).next().map(|(key, _)| *key);
            oldest.map(|key| self.news.remove(&key));
        }
        if self.news.len() < NEWS_MAX {
            self.news.insert((receiver, notice.number), notice);
        }
    }

    /// Returns the oldest news for a node and for the account for which it acts: the next follows when it is confirmed.
    fn next_for(&self, node: NodeId, account: AccountId) -> Vec<Notice<Checked>> {
        let first = |receiver| self.news.range((receiver, 0)..=(receiver, u64::MAX)).next();
        let both = [first(Receiver::Account(account)), first(Receiver::Node(node))];
        both.into_iter().flatten().map(|(_, notice)| notice.clone()).collect()
    }

    fn confirm(&mut self, node: NodeId, account: AccountId, record: RecordId) -> bool {
        let before = self.news.len();
        for receiver in [Receiver::Account(account), Receiver::Node(node)] {
            let known = self.news.range((receiver, 0)..=(receiver, u64::MAX));
            let known = known.filter(|(_, notice)| notice.news.id() == record).map(|(key, _)| *key);
            for key in known.collect::<Vec<_>>() {
                self.news.remove(&key);
            }
        }
        self.news.len() != before
    }
}

impl Node {
    /// As issuer: tells a peer its oldest news.
    pub(super) fn tell_news(&mut self, to: NodeId, out: &mut Vec<Effect>) {
        let Some(account) = self.account_of(to) else { return };
        let Some(issuing) = &self.issuing else { return };
        for notice in issuing.inboxes.next_for(to, account) {
            self.send(to, Message::Notice(notice), out);
        }
    }

    /// As issuer: the peer has written its news down.
    pub(super) fn on_noticed(&mut self, from: NodeId, record: RecordId, out: &mut Vec<Effect>) {
        let Some(account) = self.account_of(from) else { return };
        let Some(issuing) = &mut self.issuing else { return };
        if issuing.inboxes.confirm(from, account, record) {
            self.tell_news(from, out);
        }
    }

    /// News of the issuer: written down before it is confirmed; heard twice, it changes nothing.
    pub(super) fn on_notice(&mut self, from: NodeId, notice: &Notice<Checked>, out: &mut Vec<Effect>) {
        if !self.config.manifest.has_issuer_node(from) || !self.is_ours(notice) {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        if self.takes_note(notice) {
            out.push(Effect::Record(Record::Noticed(notice.signed())));
            self.apply_notice(notice);
            if let Some(channel) = notice.expiring() {
                self.redeem_channel(channel, out);
            } else {
                self.query_account(out);
            }
        }
        self.send(from, Message::Noticed(notice.news.id()), out);
    }

    fn is_ours(&self, notice: &Notice<Checked>) -> bool {
        let issuers = || self.config.manifest.issuers.iter();
        match &notice.news {
            News::Deposit(deposit) => {
                deposit.account == self.wallet.account()
                    && issuers().any(|issuer| deposit.is_signed_by(Role::Issuer, issuer.key))
            }
            News::Step { op, recorded } => {
                let is_recorded = recorded.op == op.id()
                    && issuers().any(|issuer| recorded.is_signed_by(Role::Issuer, issuer.key));
                let concerns = match &op.body {
                    OpBody::Pay { to, .. } => *to == self.wallet.account(),
                    // A channel that has ended here is nothing to argue about.
                    OpBody::Expire(channel) => {
                        self.paid.get(channel).is_none_or(|paid| paid.payer_account == op.account)
                    }
                    OpBody::OpenChannel(_)
                    | OpBody::Withdraw { .. }
                    | OpBody::Noop
                    | OpBody::Inception(_)
                    | OpBody::Rotate(_) => false,
                };
                is_recorded && concerns
            }
        }
    }

    /// Says whether news is new.
    fn takes_note(&self, notice: &Notice<Checked>) -> bool {
        match notice.expiring().zip(notice.ends()) {
            Some((channel, ends)) => self.paid.get(&channel).is_some_and(|paid| paid.expires > ends),
            None => notice.expiring().is_none() && notice.number > self.noticed,
        }
    }

    /// Takes up news that is on disk.
    pub(super) fn apply_notice(&mut self, notice: &Notice<Checked>) {
        match notice.expiring().zip(notice.ends()) {
            Some((channel, ends)) => {
                if let Some(paid) = self.paid.get_mut(&channel) {
                    paid.expires = paid.expires.min(ends);
                }
            }
            None => self.noticed = self.noticed.max(notice.number),
        }
    }
}

impl Notice<Checked> {
    /// Returns the channel whose payer has ended it alone, if this is about one.
    fn expiring(&self) -> Option<ChannelId> {
        match &self.news {
            News::Step { op, .. } => match &op.body {
                OpBody::Expire(channel) => Some(*channel),
                OpBody::OpenChannel(_)
                | OpBody::Pay { .. }
                | OpBody::Withdraw { .. }
                | OpBody::Noop
                | OpBody::Inception(_)
                | OpBody::Rotate(_) => None,
            },
            News::Deposit(_) => None,
        }
    }

    /// Returns the last epoch of a channel that is ended with this step.
    fn ends(&self) -> Option<Epoch> {
        match &self.news {
            News::Step { recorded, .. } => Some(recorded.epoch.plus(1)),
            News::Deposit(_) => None,
        }
    }
}
