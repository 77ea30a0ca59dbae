//! Copies at other nodes: as a payee, chooses mirrors and compares with them what they keep; as a mirror, keeps, returns
//! and redeems.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::ids::{AccountId, ChannelId, Digest, NodeId, RecordId};
use crate::ledger::mirror::{Mirror, MirrorError, News, PER_PAYEE_MAX};
use crate::ledger::paid::Paid;
use crate::ledger::reconcile::{Differences, ReconcileError, Salt, Session, Set, Step, answer};
use crate::ledger::records::Epoch;
use crate::message::{Checked, KEPT_MAX, KEPT_QUERY_MAX, Kept, Message};
use crate::record::Record;
use crate::time::Time;

use super::channels::is_round;
use super::{Effect, Node, Offence};

/// Peers that keep each channel's newest receipt.
const MIRRORS: usize = 3;

/// Most messages with receipts that go to one mirror at once; what is left follows with the next comparison.
pub(super) const BATCHES_MAX: usize = 16;

/// Most receipts brought to the issuers at once for others.
const REDEEMED_MAX: usize = 32;

/// What a node keeps for others, and what others keep for it.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    /// Kept for others.
    pub(super) kept: Mirror,
    /// In which epoch each of them was last connected.
    seen: BTreeMap<NodeId, Epoch>,
    /// Which of our receipts each mirror was last sent.
    told: BTreeMap<NodeId, BTreeMap<ChannelId, RecordId>>,
    /// Comparisons under way.
    sessions: BTreeMap<NodeId, Session>,
    /// When the present run of questions by nodes that lost their disk began, and how many were answered in it.
    pub(super) recovered: (Time, u32),
}

impl Mirrors {
    pub(super) fn on_peer_down(&mut self, peer: NodeId) {
        self.sessions.remove(&peer);
    }
}

impl Node {
    pub(super) fn on_mirror_message(
        &mut self,
        from: NodeId,
        message: Message<Checked>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !self.answers_mirror(from, now) {
            return;
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "the node dispatches all other messages itself")]
        match message {
            Message::Keep(entries) => self.on_keep(from, &entries, now, out),
            Message::Kept { entries, last } => self.on_kept(from, entries, last, now, out),
            Message::Compare(question) => self.on_compare(from, &question, out),
            Message::Compared(answer) => self.on_compared(from, &answer, out),
            Message::KeptQuery(receipts) => self.on_kept_query(from, &receipts, out),
            Message::Over(channels) => self.on_over(from, &channels, out),
            Message::Recover(after) => self.on_recover(from, after, now, out),
            Message::RedeemKept(receipt) => self.on_redeem_kept(from, &receipt, now, out),
            Message::RedeemedKept(receipt) if self.config.manifest.has_issuer_node(from) => {
                self.mirrors.kept.paid(from, receipt);
            }
            _ => {}
        }
    }

    /// Does what is due with mirrors, as payee and as mirror.
    pub(super) fn mirror(&mut self, now: Time, out: &mut Vec<Effect>) {
        if !is_round(now) {
            return;
        }
        let epoch = self.epoch(now);
        for channel in self.mirrors.kept.expire(self.config.manifest.grace_epochs, epoch) {
            out.push(Effect::Note(Record::Over(channel)));
        }
        self.forget_mirrored();
        self.compare_with_mirrors(now, out);
        self.redeem_for_others(epoch, out);
    }

    /// Forgets what concerns channels that we no longer know.
    fn forget_mirrored(&mut self) {
        let (paid, ended) = (&self.paid, &self.ended);
        for told in self.mirrors.told.values_mut() {
            told.retain(|channel, _| paid.contains_key(channel) || ended.contains_key(channel));
        }
        self.mirrors.told.retain(|_, told| !told.is_empty());
    }

    // As payee.

    /// Begins to compare our receipts with what each mirror keeps of them.
    fn compare_with_mirrors(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut chosen: BTreeMap<NodeId, Vec<(RecordId, ChannelId)>> = BTreeMap::new();
        let ranked = self.ranked_mirrors();
        let paid = self.paid.iter().filter(|(_, paid)| paid.has_head() && !self.is_past(paid, now));
        for (&channel, paid) in paid {
            let head = paid.head_id(channel);
            for mirror in self.mirrors_of(channel, paid, &ranked) {
                let chosen = chosen.entry(mirror).or_default();
                // It keeps no more for one payee, and what it must refuse would differ for ever.
                if chosen.len() < PER_PAYEE_MAX {
                    chosen.push((head, channel));
                }
            }
        }
        let connected: Vec<NodeId> =
            self.mirrors.told.keys().copied().filter(|mirror| self.is_connected(*mirror)).collect();
        for mirror in connected {
            let kept: BTreeSet<ChannelId> =
                chosen.get(&mirror).into_iter().flatten().map(|(_, channel)| *channel).collect();
            self.tell_over(mirror, &kept, out);
        }
        for (mirror, held) in chosen {
            let ours = held.into_iter().map(|(receipt, _)| receipt).collect();
            self.compare_with(mirror, ours, out);
        }
    }

    fn compare_with(&mut self, mirror: NodeId, ours: Set, out: &mut Vec<Effect>) {
        // The mirror sees salts, and must not know the next one from them.
        let draws = [self.prng.next_u64(), self.prng.next_u64()].map(u64::to_be_bytes).concat();
        let mut salt = Salt([0; 16]);
        salt.0.copy_from_slice(&Digest::of(&draws).0[..16]);
        let (session, question) = Session::begin(ours, salt);
        self.mirrors.sessions.insert(mirror, session);
        self.send(mirror, Message::Compare(question), out);
    }

    /// Returns the peers that may be mirrors, best first: issuers last, because what they hold they have on their own
    /// books, and else in an order of our own that stays the same.
    fn ranked_mirrors(&self) -> Vec<(NodeId, AccountId)> {
        let peers = self.peers.iter().filter(|(_, peer)| peer.is_admitted());
        let mut ranked: Vec<_> = peers
            .filter_map(|(node, peer)| {
                let rank = Digest::of(&[self.me.0, node.0].concat());
                Some((self.config.manifest.has_issuer_node(*node), rank, *node, peer.account()?))
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, _, node, account)| (node, account)).collect()
    }

    /// Returns who keeps a channel's receipts: whoever does so already, then the best of the others; never its payer.
    fn mirrors_of(&self, channel: ChannelId, paid: &Paid, ranked: &[(NodeId, AccountId)]) -> Vec<NodeId> {
        let may =
            |(node, account): &&(NodeId, AccountId)| *node != paid.payer && *account != paid.payer_account;
        let keeps =
            |node: &NodeId| self.mirrors.told.get(node).is_some_and(|told| told.contains_key(&channel));
        let candidates = || ranked.iter().filter(may).map(|(node, _)| *node);
        let known = candidates().filter(keeps);
        known.chain(candidates().filter(|node| !keeps(node))).take(MIRRORS).collect()
    }

    /// Lets a mirror forget the channels that are over, and those that enough others keep.
    fn tell_over(&mut self, mirror: NodeId, kept: &BTreeSet<ChannelId>, out: &mut Vec<Effect>) {
        let Some(told) = self.mirrors.told.get_mut(&mirror) else { return };
        let over = told.keys().filter(|channel| !kept.contains(channel)).copied();
        let over: Vec<ChannelId> = over.take(KEPT_QUERY_MAX).collect();
        told.retain(|channel, _| !over.contains(channel));
        if !over.is_empty() {
            self.send(mirror, Message::Over(over), out);
        }
    }

    fn on_compared(&mut self, from: NodeId, answered: &[u8], out: &mut Vec<Effect>) {
        let Some(mut session) = self.mirrors.sessions.remove(&from) else { return };
        match session.on_answer(answered) {
            Ok(Step::Ask(question)) => {
                self.mirrors.sessions.insert(from, session);
                self.send(from, Message::Compare(question), out);
            }
            Ok(Step::Done(differences)) => self.on_differences(from, &differences, out),
            // An answer to an earlier comparison that came late.
            Err(ReconcileError::Mismatch) => {
                self.mirrors.sessions.insert(from, session);
            }
            // What a mirror keeps may have changed between two answers: the next round compares anew.
            Err(ReconcileError::Endless) => {}
            Err(ReconcileError::TooLong { .. } | ReconcileError::Malformed) => {
                out.push(Effect::Penalise(from, Offence::Excess));
            }
        }
    }

    /// Gives a mirror what it lacks, and asks for what we lack. What it holds and we replaced is replaced there too.
    fn on_differences(&mut self, mirror: NodeId, differences: &Differences, out: &mut Vec<Effect>) {
        let told = self.mirrors.told.get(&mirror).cloned().unwrap_or_default();
        let replaced: BTreeSet<RecordId> = told.into_values().collect();
        let lacked = self.paid.iter().filter_map(|(&channel, paid)| {
            let is_lacked = differences.only_here.contains(&paid.head_id(channel));
            is_lacked.then(|| kept_of(channel, paid))?
        });
        let lacked: Vec<Kept<Checked>> = lacked.take(KEPT_MAX * BATCHES_MAX).collect();
        for entry in &lacked {
            if let Some(receipt) = &entry.receipt {
                let told = self.mirrors.told.entry(mirror).or_default();
                told.insert(receipt.channel, receipt.id());
            }
        }
        for batch in lacked.chunks(KEPT_MAX) {
            self.send(mirror, Message::Keep(batch.to_vec()), out);
        }
        let unknown = differences.only_there.difference(&replaced).copied();
        let unknown: Vec<RecordId> = unknown.take(KEPT_QUERY_MAX).collect();
        if !unknown.is_empty() {
            self.send(mirror, Message::KeptQuery(unknown), out);
        }
    }

    /// Takes back what a mirror has kept for us and we have forgotten; lets it forget what is over.
    fn on_kept(
        &mut self,
        from: NodeId,
        entries: Vec<Kept<Checked>>,
        last: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if self.recovery.is_some() {
            return self.on_given_back(from, entries, last, now, out);
        }
        let mut over = Vec::new();
        for entry in entries.into_iter().filter(Kept::is_of_one) {
            let channel = ChannelId::from(entry.opening.op.id());
            if self.missing.contains_key(&channel) {
                self.restore(from, entry, now, out);
                continue;
            }
            let Some(paid) = self.paid.get_mut(&channel) else {
                // Somebody else's, or over.
                if entry.opening.terms.payee == self.me {
                    over.push(channel);
                }
                continue;
            };
            let Some(receipt) = entry.receipt else { continue };
            self.mirrors.told.entry(from).or_default().insert(channel, receipt.id());
            if paid.adopt(&receipt) {
                out.push(Effect::Note(Record::Receipt(receipt.signed())));
            }
        }
        if !over.is_empty() {
            self.send(from, Message::Over(over), out);
        }
    }

    // As mirror.

    fn on_keep(&mut self, from: NodeId, entries: &[Kept<Checked>], now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        for entry in entries {
            let news = self.mirrors.kept.keep(from, entry, &self.config.manifest, epoch);
            let opening = match news {
                Ok(News::Channel) => Some(entry.opening.signed()),
                Ok(News::Receipt) => None,
                Ok(News::None) | Err(MirrorError::Over | MirrorError::Full) => continue,
                Err(MirrorError::Unproven | MirrorError::BadReceipt) => {
                    return out.push(Effect::Penalise(from, Offence::BadLedger));
                }
            };
            if let Some(receipt) = &entry.receipt {
                out.push(Effect::Note(Record::Kept { opening, receipt: receipt.signed() }));
            }
        }
    }

    fn on_compare(&mut self, from: NodeId, question: &[u8], out: &mut Vec<Effect>) {
        match answer(&self.mirrors.kept.set_of(from), question) {
            Ok(answered) => self.send(from, Message::Compared(answered), out),
            Err(_) => out.push(Effect::Penalise(from, Offence::Excess)),
        }
    }

    fn on_kept_query(&mut self, from: NodeId, receipts: &[RecordId], out: &mut Vec<Effect>) {
        if receipts.len() > KEPT_QUERY_MAX {
            return out.push(Effect::Penalise(from, Offence::Excess));
        }
        let wanted: BTreeSet<RecordId> = receipts.iter().copied().collect();
        let is_wanted = |entry: &Kept<Checked>| {
            entry.receipt.as_ref().is_some_and(|receipt| wanted.contains(&receipt.id()))
        };
        let entries = self.mirrors.kept.of(from).filter(is_wanted);
        let entries: Vec<_> = entries.take(KEPT_MAX * BATCHES_MAX).collect();
        self.send_kept(from, &entries, true, out);
    }

    /// Returns entries to whom they belong, in as many messages as they need.
    pub(super) fn send_kept(
        &mut self,
        to: NodeId,
        entries: &[Kept<Checked>],
        all: bool,
        out: &mut Vec<Effect>,
    ) {
        let mut batches = entries.chunks(KEPT_MAX).peekable();
        loop {
            let entries = batches.next().unwrap_or_default().to_vec();
            let ends = batches.peek().is_none();
            self.send(to, Message::Kept { entries, last: all && ends }, out);
            if ends {
                return;
            }
        }
    }

    fn on_over(&mut self, from: NodeId, channels: &[ChannelId], out: &mut Vec<Effect>) {
        if channels.len() > KEPT_QUERY_MAX {
            return out.push(Effect::Penalise(from, Offence::Excess));
        }
        for channel in channels {
            if self.mirrors.kept.keeps(from, *channel) && self.mirrors.kept.forget(*channel) {
                out.push(Effect::Note(Record::Over(*channel)));
            }
        }
    }

    /// Brings to the issuers what nobody else may bring in time: in a channel's last epoch of grace, and when its payee was
    /// away for a whole epoch, because a payer may end a channel early and nobody tells a mirror.
    fn redeem_for_others(&mut self, epoch: Epoch, out: &mut Vec<Effect>) {
        let payees: Vec<NodeId> = self.mirrors.kept.payees().collect();
        self.mirrors.seen.retain(|payee, _| payees.contains(payee));
        for payee in payees {
            let here = self.is_connected(payee);
            let seen = self.mirrors.seen.entry(payee).or_insert(epoch);
            *seen = if here { epoch } else { *seen };
        }
        let (grace, seen) = (self.config.manifest.grace_epochs, &self.mirrors.seen);
        let is_away = |payee| seen.get(&payee).is_some_and(|seen| seen.plus(1) < epoch);
        let issuers = self.config.manifest.issuers.iter().map(|issuer| issuer.node);
        let issuers: Vec<NodeId> =
            issuers.filter(|issuer| *issuer == self.me || self.is_connected(*issuer)).collect();
        let due = self.mirrors.kept.to_redeem(grace, epoch, is_away);
        let messages = due.flat_map(|(receipt, paid_by)| {
            let left = issuers.iter().filter(|issuer| !paid_by.contains(issuer));
            left.map(move |issuer| (*issuer, Message::RedeemKept(receipt.clone())))
        });
        let messages: Vec<_> = messages.take(REDEEMED_MAX).collect();
        for (issuer, message) in messages {
            self.send(issuer, message, out);
        }
    }
}

/// Returns a channel on which we are paid as a mirror keeps it.
pub(super) fn kept_of(channel: ChannelId, paid: &Paid) -> Option<Kept<Checked>> {
    Some(Kept { opening: paid.opening(channel)?, receipt: paid.head(channel) })
}
