//! News of the issuers for those whom a step of somebody else concerns: what they received, which channel ends early.
//!
//! Balances and acknowledgements are told again and again; news is told until it is known, because the receiver keeps it
//! beside its receipts. Every issuer tells it by itself, and it proves itself: a quorum has signed it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::forward::{Entry, Happened};
use crate::ids::{AccountId, ChannelId, NodeId, RecordId};
use crate::ledger::issuer::Issuer;
use crate::ledger::quorum::Certificate;
use crate::ledger::records::{Deposit, Epoch, OpBody};
use crate::manifest::Manifest;
use crate::message::{Checked, Message, News};
use crate::mutant;
use crate::record::Record;
use crate::signed::Verified;

use super::{Effect, Node, Offence};

/// Most news kept for one receiver that does not come to hear it; the oldest is dropped, the balance is right without.
const NEWS_PER_RECEIVER_MAX: usize = 64;

/// Most news of one sort kept for everybody; the oldest of the same sort is dropped. Whoever pays 40,000 accounts that nobody
/// owns a nano-credit each, which costs 0.4 credits in fees, so has others miss lines of payments before. Whoever opens as
/// many channels to payees that it has made up, and ends them early, which costs as much, has payees that are away miss
/// early ends before: they go on until issuers say that the channel is over, which is the answer when they next redeem,
/// within a minute while they reach them. Whose news is dropped matters little: accounts to spread it over cost as little again.
const NEWS_OF_A_SORT_MAX: usize = 40_000;

/// Most news that a receiver recognises when it is told again: a thousand times what an issuer keeps for it.
const NOTED_MAX: usize = 64 * 1024;

/// Most news that a receiver hands on at once: honest issuers tell within moments, so that hardly any waits.
const RUMOURS_MAX: usize = 64;

/// For whom news is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Receiver {
    Account(AccountId),
    Node(NodeId),
}

/// What news is about. Each sort has room of its own. Payments and early ends anybody can make for a fee, deposits only
/// issuers: the one takes no room from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    Payment,
    Deposit,
    EarlyEnd,
}

/// As issuer: news that its receivers have not confirmed.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    news: BTreeMap<(Receiver, u64), News<Checked>>,
    /// The same by sort, oldest first.
    order: BTreeMap<Sort, BTreeMap<u64, Receiver>>,
    /// Numbers the news in the order in which it came.
    told: u64,
}

impl Inboxes {
    /// Files a deposit for the account that received it.
    pub(super) fn file_deposit(&mut self, deposit: Verified<Deposit>) {
        self.file(Receiver::Account(deposit.account), News::Deposit(deposit));
    }

    /// Files a step for whom it concerns beside its own account.
    pub(super) fn file_step(&mut self, certificate: &Certificate<Checked>, books: &Issuer) -> Option<NodeId> {
        match &certificate.op.body {
            OpBody::Pay { to, .. } => {
                self.file(Receiver::Account(*to), News::Step(certificate.clone()));
                None
            }
            OpBody::Expire(channel) => {
                let (_, payee) = books.parties(*channel)?;
                self.file(Receiver::Node(payee), News::Step(certificate.clone()));
                Some(payee)
            }
            OpBody::OpenChannel(_)
            | OpBody::Withdraw { .. }
            | OpBody::Noop
            | OpBody::Inception(_)
            | OpBody::Rotate(_) => None,
        }
    }

    /// Returns what is not confirmed yet, as an issuer that is alone brings it forward.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let news = self.news.iter().filter_map(|((receiver, number), news)| {
            let node = if let Receiver::Node(node) = receiver { Some(*node) } else { None };
            let what = match news {
                News::Deposit(deposit) => Happened::Deposit(deposit.signed()),
                News::Step(certificate) => {
                    let epoch = certificate.votes.first()?.epoch;
                    Happened::Step { op: certificate.op.signed(), epoch }
                }
            };
            Some(Entry::News { number: *number, node, what })
        });
        news.chain([Entry::Told(self.told)])
    }

    /// Takes back news for a node, or for the account that it concerns.
    pub(super) fn restore(&mut self, number: u64, node: Option<NodeId>, news: News<Checked>) {
        let receiver = match (node, &news) {
            (Some(node), _) => Receiver::Node(node),
            (None, News::Deposit(deposit)) => Receiver::Account(deposit.account),
            (None, News::Step(certificate)) => match certificate.op.body {
                OpBody::Pay { to, .. } => Receiver::Account(to),
                OpBody::OpenChannel(_)
                | OpBody::Withdraw { .. }
                | OpBody::Expire(_)
                | OpBody::Noop
                | OpBody::Inception(_)
                | OpBody::Rotate(_) => return,
            },
        };
        self.put(receiver, number, news);
    }

    pub(super) const fn restore_told(&mut self, told: u64) {
        self.told = told;
    }

    fn file(&mut self, receiver: Receiver, news: News<Checked>) {
        let range = (receiver, 0)..=(receiver, u64::MAX);
        if self.news.range(range.clone()).count() >= NEWS_PER_RECEIVER_MAX {
            let oldest = self.news.range(range).next().map(|(key, _)| *key);
            if let Some(key) = oldest {
                self.remove(key);
            }
        }
        let sort = sort_of(receiver, &news);
        if mutant::is_in("full-news-drops-new") && self.count(sort) >= NEWS_OF_A_SORT_MAX {
            return;
        }
        self.told = self.told.saturating_add(1);
        self.put(receiver, self.told, news);
        while self.count(sort) > NEWS_OF_A_SORT_MAX {
            let oldest = self.order.get(&sort).and_then(|order| order.first_key_value());
            let Some(oldest) = oldest.map(|(number, receiver)| (*receiver, *number)) else { return };
            self.remove(oldest);
        }
    }

    fn count(&self, sort: Sort) -> usize {
        self.order.get(&sort).map_or(0, BTreeMap::len)
    }

    fn put(&mut self, receiver: Receiver, number: u64, news: News<Checked>) {
        self.order.entry(sort_of(receiver, &news)).or_default().insert(number, receiver);
        self.news.insert((receiver, number), news);
    }

    fn remove(&mut self, (receiver, number): (Receiver, u64)) {
        let Some(news) = self.news.remove(&(receiver, number)) else { return };
        if let Some(order) = self.order.get_mut(&sort_of(receiver, &news)) {
            order.remove(&number);
        }
        self.order.retain(|_, order| !order.is_empty());
    }

    /// Returns the oldest news for a node and for the account for which it acts: the next follows when it is confirmed.
    fn next_for(&self, node: NodeId, account: AccountId) -> Vec<News<Checked>> {
        let first = |receiver| self.news.range((receiver, 0)..=(receiver, u64::MAX)).next();
        let both = [first(Receiver::Account(account)), first(Receiver::Node(node))];
        both.into_iter().flatten().map(|(_, news)| news.clone()).collect()
    }

    fn confirm(&mut self, node: NodeId, account: AccountId, record: RecordId) -> bool {
        let before = self.news.len();
        for receiver in [Receiver::Account(account), Receiver::Node(node)] {
            let known = self.news.range((receiver, 0)..=(receiver, u64::MAX));
            let known = known.filter(|(_, news)| news.id() == record).map(|(key, _)| *key);
            for key in known.collect::<Vec<_>>() {
                self.remove(key);
            }
        }
        self.news.len() != before
    }
}

const fn sort_of(receiver: Receiver, news: &News<Checked>) -> Sort {
    match (receiver, news) {
        (Receiver::Node(_), _) => Sort::EarlyEnd,
        (Receiver::Account(_), News::Deposit(_)) => Sort::Deposit,
        (Receiver::Account(_), News::Step(_)) => Sort::Payment,
    }
}

/// As receiver: news that is in the journal.
#[derive(Debug, Default)]
pub(super) struct Noted {
    ids: BTreeSet<RecordId>,
    /// The same, oldest first.
    order: VecDeque<RecordId>,
    /// News that so few issuers have told that none of them may have booked it, with who has.
    rumours: BTreeMap<RecordId, (News<Checked>, BTreeSet<NodeId>)>,
}

impl Noted {
    fn add(&mut self, id: RecordId) {
        if self.order.len() >= NOTED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
    }

    fn begin_rumour(&mut self, news: &News<Checked>) {
        if self.rumours.len() < RUMOURS_MAX {
            self.rumours.insert(news.id(), (news.clone(), BTreeSet::new()));
        }
    }

    /// Takes note that an issuer has told something: when one more has than may lie, an honest one has booked it, and
    /// all will.
    fn told(&mut self, by: NodeId, news: RecordId, manifest: &Manifest) {
        let Some((_, tellers)) = self.rumours.get_mut(&news) else { return };
        tellers.insert(by);
        if tellers.len() > manifest.faults_max() {
            self.rumours.remove(&news);
        }
    }
}

impl Node {
    /// As issuer: tells a peer its oldest news.
    pub(super) fn tell_news(&mut self, to: NodeId, out: &mut Vec<Effect>) {
        let Some(account) = self.account_of(to) else { return };
        let Some(issuing) = &self.issuing else { return };
        for news in issuing.inboxes.next_for(to, account) {
            self.send(to, Message::Notice(news), out);
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

    /// News of an issuer: written down before it is confirmed; heard twice, it changes nothing.
    pub(super) fn on_notice(&mut self, from: NodeId, news: &News<Checked>, out: &mut Vec<Effect>) {
        let is_proved = news.check(&self.config.manifest).is_ok();
        if !is_proved || !self.config.manifest.has_issuer_node(from) || !self.is_ours(news) {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        // What an account receives its wallet node writes down, once.
        if self.is_device() && news.expiring().is_none() {
            return;
        }
        if self.takes_note(news) {
            out.push(Effect::Record(Record::Noticed(news.signed())));
            self.apply_news(news);
            if let Some(channel) = news.expiring() {
                self.redeem_channel(channel, out);
            } else {
                self.noted.begin_rumour(news);
                self.query_account(out);
            }
        }
        self.noted.told(from, news.id(), &self.config.manifest);
        self.send(from, Message::Noticed(news.id()), out);
    }

    /// Hands on what only issuers have told that may all be lying: an issuer that keeps to itself what we received
    /// cannot keep it from us.
    pub(super) fn hand_on_news(&mut self, out: &mut Vec<Effect>) {
        let mut messages = Vec::new();
        for (news, tellers) in self.noted.rumours.values() {
            let others = self.issuers().into_iter().filter(|issuer| !tellers.contains(issuer));
            messages.extend(others.map(|issuer| (issuer, Message::Fact(news.fact()))));
        }
        for (issuer, message) in messages {
            self.send(issuer, message, out);
        }
    }

    fn is_ours(&self, news: &News<Checked>) -> bool {
        match news {
            News::Deposit(deposit) => deposit.account == self.wallet.account(),
            News::Step(certificate) => match &certificate.op.body {
                OpBody::Pay { to, .. } => *to == self.wallet.account(),
                // A channel that has ended here is nothing to argue about.
                OpBody::Expire(channel) => {
                    let payer = certificate.op.account;
                    self.paid.get(channel).is_none_or(|paid| paid.payer_account == payer)
                }
                OpBody::OpenChannel(_)
                | OpBody::Withdraw { .. }
                | OpBody::Noop
                | OpBody::Inception(_)
                | OpBody::Rotate(_) => false,
            },
        }
    }

    /// Says whether news is new.
    fn takes_note(&self, news: &News<Checked>) -> bool {
        match self.ending(news) {
            Some((channel, ends)) => {
                let missing = self.missing.get(&channel).map(|booked| booked.expires);
                let expires = self.paid.get(&channel).map(|paid| paid.expires).max(missing);
                expires.is_some_and(|expires| expires > ends)
            }
            None => !self.noted.ids.contains(&news.id()),
        }
    }

    /// Takes up news that is on disk.
    pub(super) fn apply_news(&mut self, news: &News<Checked>) {
        match self.ending(news) {
            Some((channel, ends)) => {
                if let Some(paid) = self.paid.get_mut(&channel) {
                    paid.expires = paid.expires.min(ends);
                }
                let deaf = mutant::is_in("missing-deaf");
                if let Some(booked) = self.missing.get_mut(&channel).filter(|_| !deaf) {
                    booked.expires = booked.expires.min(ends);
                }
            }
            None => self.noted.add(news.id()),
        }
    }

    /// Returns the channel that its payer has ended alone, if this is about one, with its last epoch.
    fn ending(&self, news: &News<Checked>) -> Option<(ChannelId, Epoch)> {
        let News::Step(certificate) = news else { return None };
        let channel = news.expiring()?;
        // The issuers of a network with several go by the step's epoch, the only one of another by its own.
        let epoch = certificate.op.epoch.min(certificate.epoch(&self.config.manifest));
        Some((channel, epoch.plus(1)))
    }
}

impl News<Checked> {
    /// Returns the channel whose payer has ended it alone, if this is about one.
    fn expiring(&self) -> Option<ChannelId> {
        let Self::Step(certificate) = self else { return None };
        match &certificate.op.body {
            OpBody::Expire(channel) => Some(*channel),
            OpBody::OpenChannel(_)
            | OpBody::Pay { .. }
            | OpBody::Withdraw { .. }
            | OpBody::Noop
            | OpBody::Inception(_)
            | OpBody::Rotate(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;
    use crate::ids::{Digest, DomainId};
    use crate::keys::Signer;
    use crate::ledger::records::{AccountOp, Source};
    use crate::signed::{Role, sign};

    const DOMAIN: DomainId = DomainId([1; 32]);

    fn signer() -> Signer {
        Signer::simulated([1; 32])
    }

    fn account(number: u32) -> AccountId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        AccountId(id)
    }

    fn deposit(number: u32) -> News<Checked> {
        let (reference, source) = (Digest(account(number).0), Source::Budget);
        let deposit = Deposit { reference, account: account(number), amount: 1, epoch: Epoch(0), source };
        News::Deposit(sign(deposit, DOMAIN, Role::Issuer, &signer()))
    }

    fn payment(to: u32) -> News<Checked> {
        let (body, account) = (OpBody::Pay { to: account(to), amount: 1 }, AccountId([9; 32]));
        let op = AccountOp { account, sequence: to.into(), previous: RecordId::NONE, epoch: Epoch(0), body };
        let op = sign(op, DOMAIN, Role::Owner, &signer());
        News::Step(Certificate { op, terms: None, votes: Vec::new() })
    }

    fn told(inboxes: &Inboxes, number: u32) -> usize {
        inboxes.next_for(NodeId([3; 32]), account(number)).len()
    }

    #[test]
    fn payments_to_nobody_take_no_room_from_deposits_and_ends_nor_from_later_payments() {
        let node = NodeId([4; 32]);
        let mut inboxes = Inboxes::default();
        inboxes.file(Receiver::Account(account(1)), deposit(1));
        inboxes.file(Receiver::Node(node), payment(2));
        let many = u32::try_from(NEWS_OF_A_SORT_MAX).expect("few");
        let all = 10..10 + many;
        all.clone().for_each(|to| inboxes.file(Receiver::Account(account(to)), payment(to)));
        let lasts = |inboxes: &Inboxes| {
            (told(inboxes, 1), inboxes.next_for(node, account(0)).len(), told(inboxes, 10))
        };
        assert_eq!(lasts(&inboxes), (1, 1, 1));

        // Whoever is paid after that many hears of it, as long as it waits.
        let later = all.end;
        inboxes.file(Receiver::Account(account(later)), payment(later));
        assert_eq!(told(&inboxes, later), 1);
        assert_eq!(lasts(&inboxes), (1, 1, 0), "the oldest payment makes room");
        assert_eq!(inboxes.news.len(), NEWS_OF_A_SORT_MAX + 2);

        // What is brought forward and what the lines say come to the same, also for what comes then.
        let mut again = Inboxes::default();
        for ((receiver, number), news) in &inboxes.news {
            let node = if let Receiver::Node(node) = receiver { Some(*node) } else { None };
            again.restore(*number, node, news.clone());
        }
        again.restore_told(inboxes.told);
        for inboxes in [&mut inboxes, &mut again] {
            inboxes.file(Receiver::Account(account(2)), payment(2));
        }
        assert_eq!(format!("{again:?}"), format!("{inboxes:?}"));
    }
}
