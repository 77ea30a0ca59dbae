//! A lost disk: asks issuers, partners and mirrors for what this node has forgotten, and gives others back what they have.
//!
//! Until that is done the node neither signs nor serves. The issuers say which channels there are and which are closed;
//! whoever holds the proof of an open one and its newest receipt gives them back. All of it is checked as if a stranger
//! had said it, so that nobody can give back more than there was.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::ids::{AccountId, ChannelId, NodeId};
use crate::ledger::issuer::Booked;
use crate::ledger::mirror::proven;
use crate::ledger::records::{Epoch, VALIDITY_EPOCHS_MAX};
use crate::message::{BOOKED_MAX, Checked, KEPT_MAX, Kept, Message, Opening};
use crate::mutant;
use crate::record::Record;
use crate::time::Time;

use super::mirrors::{BATCHES_MAX, kept_of};
use super::peers::counted;
use super::{Effect, Node, Offence};

/// How long partners and mirrors are waited for that are not there, since the last of them gave something back.
const WAIT_MS: u64 = 60_000;

/// How long they are waited for in all: nobody can hold a recovery up by giving back a little now and then.
const WAIT_MS_MAX: u64 = 10 * WAIT_MS;

/// Most questions of nodes that lost their disk which are answered in a run of some seconds, all peers together: each
/// looks at every channel.
const ANSWERED_MAX: u32 = 8;

/// Most channels that a node can get back.
const CHANNELS_MAX: usize = 100_000;

/// What is known while a node recovers.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Up to which channel each issuer has answered.
    issuers: BTreeMap<NodeId, ChannelId>,
    /// Issuers that have named all channels.
    answered: BTreeSet<NodeId>,
    /// Channels of this node that are on their books, as each of them says.
    booked: BTreeMap<ChannelId, Vec<(NodeId, Booked)>>,
    /// How many each has named: none can take the others' room.
    named: BTreeMap<NodeId, usize>,
    /// Up to which channel each peer has answered.
    peers: BTreeMap<NodeId, ChannelId>,
    /// Peers that have given back all they hold.
    done: BTreeSet<NodeId>,
    /// Channels given back.
    restored: BTreeSet<ChannelId>,
    /// When a quorum had answered, and when a peer last gave something back.
    asked: Option<Time>,
    helped: Option<Time>,
    /// Epoch in which an issuer first answered: it has named every channel that was opened in an earlier one.
    since: Option<Epoch>,
}

/// How far a recovery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryView {
    /// Issuers that have named this node's channels.
    pub issuers: usize,
    /// Issuers that must.
    pub quorum: usize,
    /// Channels that are open at the issuers.
    pub channels: usize,
    /// Channels of them that were given back.
    pub restored: usize,
}

/// Says whether a node that recovers looks at a message.
pub(super) const fn lets_through(message: &Message<Checked>) -> bool {
    matches!(
        message,
        Message::Hello { .. }
            | Message::Joined { .. }
            | Message::JoinRefused(_)
            | Message::Advert(_)
            | Message::Lineage(_)
            | Message::Devices { .. }
            | Message::AccountState { .. }
            | Message::Stepped { .. }
            | Message::Voted { .. }
            | Message::Recorded { .. }
            | Message::StepRefused { .. }
            | Message::Channels { .. }
            | Message::Kept { .. }
    )
}

impl Node {
    /// Returns how far the recovery is, while there is one.
    #[must_use]
    pub fn recovery(&self) -> Option<RecoveryView> {
        let recovery = self.recovery.as_ref()?;
        Some(RecoveryView {
            issuers: recovery.answered.len(),
            quorum: usize::from(self.config.manifest.quorum),
            channels: recovery.open(self.config.manifest.faults_max()).count() + recovery.restored.len(),
            restored: recovery.restored.len(),
        })
    }

    /// Begins; what the journal has stays, and is asked for anew. An issuer's books are nowhere but on its own disk.
    pub(super) fn recover(&mut self, out: &mut Vec<Effect>) {
        if self.recovery.is_none() && self.issuing.is_none() {
            self.recovery = Some(Recovery::default());
            self.missing.clear();
            out.push(Effect::Record(Record::Recovering));
        }
    }

    pub(super) fn on_recovery_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        if !self.wallet.is_idle() && self.is_admitted() {
            self.query_account(out);
        }
        self.ask_issuers(out);
        self.ask_peers(now, out);
        self.finish_recovery(now, out);
    }

    fn ask_issuers(&mut self, out: &mut Vec<Effect>) {
        let Some(recovery) = &self.recovery else { return };
        let issuers = self.config.manifest.issuers.iter().map(|issuer| issuer.node);
        let silent = issuers.filter(|node| self.is_connected(*node) && !recovery.answered.contains(node));
        let after = |node| recovery.issuers.get(&node).copied().unwrap_or(FIRST);
        let questions: Vec<_> = silent.map(|node| (node, after(node))).collect();
        for (issuer, after) in questions {
            self.send(issuer, Message::ChannelsQuery(after), out);
        }
    }

    /// An issuer names this node's channels.
    pub(super) fn on_channels(
        &mut self,
        from: NodeId,
        channels: &[Booked],
        last: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !self.config.manifest.has_issuer_node(from) || channels.len() > BOOKED_MAX {
            return out.push(Effect::Penalise(from, Offence::WrongSigner));
        }
        let epoch = self.epoch(now);
        let Some(recovery) = &mut self.recovery else { return };
        recovery.since.get_or_insert(epoch);
        for booked in channels {
            recovery.book(from, booked);
        }
        let until = channels.last().map(|booked| booked.channel);
        if last {
            recovery.answered.insert(from);
            self.ask_peers(now, out);
        } else if let Some(until) = until {
            recovery.issuers.insert(from, until);
            self.send(from, Message::ChannelsQuery(until), out);
        }
        self.finish_recovery(now, out);
    }

    /// Asks whoever is there for what it holds, once the issuers have said what there is.
    fn ask_peers(&mut self, now: Time, out: &mut Vec<Effect>) {
        let quorum = usize::from(self.config.manifest.quorum);
        let Some(recovery) = self.recovery.as_mut().filter(|recovery| recovery.answered.len() >= quorum)
        else {
            return;
        };
        recovery.asked.get_or_insert(now);
        recovery.helped.get_or_insert(now);
        let peers = self.peers.iter().filter(|(_, peer)| peer.is_admitted()).map(|(node, _)| *node);
        let silent = peers.filter(|node| !recovery.done.contains(node));
        let after = |node| recovery.peers.get(&node).copied().unwrap_or(FIRST);
        let questions: Vec<_> = silent.map(|node| (node, after(node))).collect();
        for (peer, after) in questions {
            self.send(peer, Message::Recover(after), out);
        }
    }

    /// Returns whom we pay on channels that the issuers have named and nobody has given back yet: a payer finds its
    /// partners by that, who may know of it nothing but its account.
    pub(super) fn payees_forgotten(&self) -> impl Iterator<Item = NodeId> + '_ {
        let faults = self.config.manifest.faults_max();
        let recovering = self.recovery.iter().flat_map(move |recovery| recovery.open(faults));
        let account = self.wallet.account();
        let ours = move |booked: &Booked| booked.payer == account && booked.payee != self.me;
        recovering.chain(self.missing.values().copied()).filter(ours).map(|booked| booked.payee)
    }

    /// Asks a peer that comes later for what is still missing.
    pub(super) fn ask_for_missing(&mut self, peer: NodeId, out: &mut Vec<Effect>) {
        if !self.missing.is_empty() {
            let after = self.missing_after.get(&peer).copied().unwrap_or(FIRST);
            self.send(peer, Message::Recover(after), out);
        }
    }

    /// Asks those for more who had not given back all that they hold of what is missing.
    pub(super) fn ask_on_for_missing(&mut self, out: &mut Vec<Effect>) {
        let mut after = core::mem::take(&mut self.missing_after);
        after.retain(|peer, _| self.is_connected(*peer) && !self.missing.is_empty());
        self.missing_after = after;
        for peer in self.missing_after.keys().copied().collect::<Vec<_>>() {
            self.ask_for_missing(peer, out);
        }
    }

    /// Asks every peer again, who may have been recovering itself, or been asked by too many at once.
    pub(super) fn ask_again_for_missing(&mut self, out: &mut Vec<Effect>) {
        let peers = self.peers.iter().filter(|(_, peer)| peer.is_admitted()).map(|(node, _)| *node);
        for peer in peers.collect::<Vec<_>>() {
            self.ask_for_missing(peer, out);
        }
    }

    pub(super) fn on_given_back(
        &mut self,
        from: NodeId,
        entries: Vec<Kept<Checked>>,
        last: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let until = entries.last().map(|entry| ChannelId::from(entry.opening.op.id()));
        self.came_until(from, until, last);
        for entry in entries {
            self.restore(from, entry, now, out);
        }
        self.finish_recovery(now, out);
    }

    /// Notes up to which channel a peer has given back what it holds, and whether that is all.
    fn came_until(&mut self, from: NodeId, until: Option<ChannelId>, last: bool) {
        if let Some(recovery) = &mut self.recovery {
            recovery.peers.extend(until.map(|until| (from, until)));
            if last {
                recovery.done.insert(from);
            }
        } else if last || self.missing.is_empty() || mutant::is_in("missing-not-paged") {
            self.missing_after.remove(&from);
        } else if let Some(until) = until.filter(|until| Some(until) > self.missing_after.get(&from)) {
            self.missing_after.insert(from, until);
        }
    }

    /// Takes back one channel, if an issuer has it open and the proof holds.
    pub(super) fn restore(&mut self, by: NodeId, entry: Kept<Checked>, now: Time, out: &mut Vec<Effect>) {
        let channel = ChannelId::from(entry.opening.op.id());
        if !entry.is_of_one() {
            return;
        }
        let faults = self.config.manifest.faults_max();
        let Some(open) = proven(&entry.opening, &self.config.manifest).cloned() else { return };
        // Its proof is with it, so that one issuer's word is enough that it is there.
        let (payer, payee) = (entry.opening.op.account, open.payee);
        let named = self.recovery.as_ref().and_then(|recovery| recovery.booked.get(&channel));
        let booked = named.and_then(|named| sum(named, (payer, payee), faults));
        let booked = booked.or_else(|| self.missing.get(&channel).copied()).filter(|booked| !booked.closed);
        let Some(booked) = booked else { return };
        let ours = entry.opening.op.account == self.wallet.account() && open.payer == self.me;
        let taken = if open.payee == self.me {
            self.restore_paid(&entry, &booked, out)
        } else if ours && open.payer_key == self.payer_signer(&entry.opening.terms).public() {
            self.restore_paying(&entry, &booked, now, out)
        } else {
            None
        };
        let Some(paid) = taken else { return };
        self.missing.remove(&channel);
        let is_news = self.recovery.as_mut().is_none_or(|recovery| recovery.restored.insert(channel));
        if paid.is_some() || is_news {
            if let Some(recovery) = &mut self.recovery {
                recovery.helped = Some(now);
            }
            out.push(Effect::Restored { by, channel, paid });
        }
    }

    /// Takes back a channel on which this node is paid, if it is its own; returns what the receipt pays, if that is news.
    fn restore_paid(
        &mut self,
        entry: &Kept<Checked>,
        booked: &Booked,
        out: &mut Vec<Effect>,
    ) -> Option<Option<u64>> {
        if !self.paid.contains_key(&booked.channel) {
            let mut paid = self.paid_side(&entry.opening)?;
            paid.expires = paid.expires.min(booked.expires);
            self.paid.insert(booked.channel, Box::new(paid));
            out.push(Effect::Record(Record::Paid(entry.opening.signed())));
        }
        let paid = self.paid.get_mut(&booked.channel)?;
        paid.redeemed(booked.redeemed);
        let receipt = entry.receipt.as_ref().filter(|receipt| paid.adopt(receipt));
        out.extend(receipt.map(|receipt| Effect::Record(Record::Receipt(receipt.signed()))));
        Some(receipt.map(|receipt| receipt.amount))
    }

    /// Takes back a channel on which this node pays; returns what the receipt pays, if that is news.
    fn restore_paying(
        &mut self,
        entry: &Kept<Checked>,
        booked: &Booked,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Option<Option<u64>> {
        if self.adopt_paying(entry.opening.clone(), now) {
            out.push(Effect::Record(Record::Paying(entry.opening.signed())));
        }
        let paying = self.paying.get_mut(&booked.channel)?;
        paying.side.concede(booked.redeemed);
        let receipt = entry.receipt.as_ref().filter(|receipt| paying.side.adopt(receipt));
        out.extend(receipt.map(|receipt| Effect::Record(Record::Receipt(receipt.signed()))));
        Some(receipt.map(|receipt| receipt.amount))
    }

    /// Ends the recovery when every channel was given back and nobody is still asked, or nobody has helped for long.
    fn finish_recovery(&mut self, now: Time, out: &mut Vec<Effect>) {
        let quorum = usize::from(self.config.manifest.quorum);
        let Some(recovery) = &self.recovery else { return };
        // An opening never lasts longer, whatever an issuer says.
        let expires = self.epoch(now).plus(VALIDITY_EPOCHS_MAX);
        let missing: Vec<Booked> = recovery
            .open(self.config.manifest.faults_max())
            .map(|booked| Booked { expires: booked.expires.min(expires), ..booked })
            .collect();
        let mut asked = self.peers.iter().filter(|(_, peer)| peer.is_admitted());
        let is_asking = asked.any(|(node, _)| !recovery.done.contains(node));
        let since_ms = |at: Option<Time>| at.map_or(0, |at| now.since_ms(at));
        let held_up = since_ms(recovery.asked) >= WAIT_MS_MAX && !mutant::is_in("recovery-held-up");
        let waited = since_ms(recovery.helped) >= WAIT_MS || held_up;
        let complete = missing.is_empty() && !is_asking;
        if recovery.answered.len() < quorum || !self.wallet.is_idle() || !(complete || waited) {
            return;
        }
        let (channels, since) = (recovery.restored.len(), recovery.since.unwrap_or_default());
        let over = self.over_unseen(recovery);

        // An end before its time has another epoch on the books than its opening.
        for (channel, payer) in over {
            self.end_unseen(channel, expires, payer);
            out.push(Effect::Record(Record::Ended { channel, expires, payer }));
        }
        let kept = missing.iter().filter(|_| !mutant::is_in("missing-not-kept"));
        out.extend(kept.map(|booked| Effect::Record(Record::Missing(*booked))));
        out.push(Effect::Record(Record::Recovered(since)));
        out.push(Effect::Recovered { channels, missing: missing.len() });
        self.missing.clear();
        missing.into_iter().for_each(|booked| self.misses(booked));
        self.recovery = None;
        self.recovered = Some(since);
        self.resume_after_recovery(now, out);
    }

    /// Notes a channel that nobody has given back. An old copy of a journal may know it, and not what was paid out since.
    pub(super) fn misses(&mut self, booked: Booked) {
        if let Some(paid) = self.paid.get_mut(&booked.channel) {
            paid.redeemed(booked.redeemed);
        } else if let Some(paying) = self.paying.get_mut(&booked.channel) {
            paying.side.concede(booked.redeemed);
        }
        self.missing.insert(booked.channel, booked);
    }

    /// Returns the channels that ended without our knowledge: those that an issuer says are closed, and those on which our
    /// journal says that we are paid and which the issuers have forgotten.
    fn over_unseen(&self, recovery: &Recovery) -> Vec<(ChannelId, AccountId)> {
        let manifest = &self.config.manifest;
        let closed = recovery.agreed(manifest.faults_max()).filter(|booked| booked.closed);
        let closed = closed.map(|booked| (booked.channel, booked.payer));
        let named_all = |issuer| recovery.named.get(issuer).is_none_or(|named| *named < CHANNELS_MAX);
        let named = recovery.answered.iter().filter(|issuer| named_all(issuer)).count() >= manifest.quorum();
        let unnamed =
            self.paid.iter().filter(|(channel, _)| named && !recovery.booked.contains_key(*channel));
        closed.chain(unnamed.map(|(channel, paid)| (*channel, paid.payer_account))).collect()
    }

    /// Says whether an opening that we do not know is one of a channel that ended before we lost our disk: the issuers
    /// forget such a channel before its opening expires, and did not name it.
    pub(super) fn ended_before_recovery(&self, opening: &Opening<Checked>) -> bool {
        let before = |recovered| opening.recorded.iter().all(|recorded| recorded.epoch < recovered);
        self.recovered.is_some_and(before) && !mutant::is_in("serve-after-recovery")
    }

    /// Forgets a channel that ended without our knowledge, so that its opening cannot be shown to us again.
    pub(super) fn end_unseen(&mut self, channel: ChannelId, expires: Epoch, payer: AccountId) {
        self.paid.remove(&channel);
        self.paying.remove(&channel);
        self.missing.remove(&channel);
        self.ended.insert(channel, (expires, payer));
    }

    /// Goes on as after any restart.
    fn resume_after_recovery(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.paying.values_mut().for_each(|channel| channel.side.restarted());
        self.paid.values_mut().for_each(|paid| paid.restarted());
        let peers: Vec<NodeId> = self.peers.keys().copied().filter(|node| self.is_connected(*node)).collect();
        for peer in peers {
            self.send_heads(peer, out);
        }
        self.advertise(now, out);
        self.redeem_above(0, now, out);
        self.resume_openings(now, out);
    }

    // For others.

    /// As issuer: names the channels of a node that has lost its disk.
    pub(super) fn on_channels_query(
        &mut self,
        from: NodeId,
        after: ChannelId,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(account) = self.account_of(from).filter(|_| self.answers_recovery(now)) else { return };
        let Some(issuing) = &self.issuing else { return };
        let booked = issuing.books.channels_of(account, from, after);
        let mut channels: Vec<Booked> = booked.take(BOOKED_MAX + 1).collect();
        let last = channels.len() <= BOOKED_MAX;
        channels.truncate(BOOKED_MAX);
        self.send(from, Message::Channels { channels, last }, out);
    }

    /// Gives back what this node holds of another's channels.
    pub(super) fn on_recover(&mut self, from: NodeId, after: ChannelId, now: Time, out: &mut Vec<Effect>) {
        if !self.answers_recovery(now) {
            return;
        }
        let paying = self.paying.iter().filter(|(_, channel)| channel.side.terms.payee == from);
        let paying = paying.map(|(_, channel)| {
            Some(Kept { opening: channel.opening.clone(), receipt: channel.side.head().cloned() })
        });
        let paid = self.paid.iter().filter(|(channel, paid)| paid.payer == from && **channel > after);
        let paid = paid.map(|(channel, paid)| kept_of(*channel, paid));
        let all = paying.chain(paid).flatten().chain(self.mirrors.kept.of(from));
        let all = all.map(|entry| (ChannelId::from(entry.opening.op.id()), entry));
        let later: BTreeMap<ChannelId, Kept<Checked>> = all.filter(|(channel, _)| *channel > after).collect();
        let whole = later.len() <= KEPT_MAX * BATCHES_MAX;
        let entries: Vec<_> = later.into_values().take(KEPT_MAX * BATCHES_MAX).collect();
        self.send_kept(from, &entries, whole, out);
    }

    fn answers_recovery(&mut self, now: Time) -> bool {
        counted(&mut self.mirrors.recovered, now) <= ANSWERED_MAX
    }
}

/// Below every channel's name.
const FIRST: ChannelId = ChannelId([0; 32]);

impl Recovery {
    /// Adds what an issuer has on its books.
    fn book(&mut self, by: NodeId, booked: &Booked) {
        let named = self.named.entry(by).or_default();
        if *named >= CHANNELS_MAX {
            return;
        }
        *named += 1;
        let known = self.booked.entry(booked.channel).or_default();
        known.retain(|(issuer, _)| *issuer != by);
        known.push((by, *booked));
    }

    /// Returns the channels that at least one honest issuer has named.
    fn agreed(&self, faults: usize) -> impl Iterator<Item = Booked> + '_ {
        self.booked.values().filter_map(move |named| {
            let parties = |booked: &Booked| (booked.payer, booked.payee);
            let count =
                |one: &Booked| named.iter().filter(|(_, other)| parties(other) == parties(one)).count();
            let (_, one) = named.iter().find(|(_, one)| count(one) > faults)?;
            sum(named, parties(one), faults)
        })
    }

    /// Returns those of them that are open, and that nobody has given back.
    fn open(&self, faults: usize) -> impl Iterator<Item = Booked> + '_ {
        self.agreed(faults).filter(|booked| !booked.closed && !self.restored.contains(&booked.channel))
    }
}

/// Returns what issuers say of a channel between these two: what at least one honest one says was paid out, not before when
/// at least one honest one says that it ends, and that it is closed if at least one honest one says so.
fn sum(named: &[(NodeId, Booked)], (payer, payee): (AccountId, NodeId), faults: usize) -> Option<Booked> {
    let said: Vec<&Booked> = named.iter().map(|(_, booked)| booked).collect();
    let said: Vec<&Booked> =
        said.into_iter().filter(|booked| (booked.payer, booked.payee) == (payer, payee)).collect();
    let one = **said.first()?;
    let mut redeemed: Vec<u64> = said.iter().map(|booked| booked.redeemed).collect();
    redeemed.sort_unstable_by_key(|amount| core::cmp::Reverse(*amount));
    let mut expires: Vec<Epoch> = said.iter().map(|booked| booked.expires).collect();
    expires.sort_unstable();
    let closed = said.iter().filter(|booked| booked.closed).count() > faults;
    Some(Booked {
        redeemed: redeemed.get(faults).copied().unwrap_or_default(),
        expires: expires.get(faults).copied().unwrap_or(Epoch(u32::MAX)),
        closed,
        ..one
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advert::{Incentive, ProviderClass};
    use crate::ids::RecordId;
    use crate::keys::Signer;
    use crate::ledger::issuer::Balance;
    use crate::ledger::quorum::Certificate;
    use crate::ledger::records::{AccountOp, OpBody, RedeemAck, Vote};
    use crate::manifest::Manifest;
    use crate::message::News;
    use crate::node::Config;
    use crate::signed::{Role, sign};

    const NOW: Time = Time(1_800_000_000_000);

    fn signer(seed: u8) -> Signer {
        Signer::from_seed([seed; 32])
    }

    /// Returns a node of a network with one issuer.
    fn node() -> Node {
        let manifest = Manifest::home("home".into(), NOW, &signer(1), issuer());
        let config = Config {
            manifest,
            node: signer(4),
            owner: signer(3).into(),
            issuer: None,
            name: "provider".into(),
            incentive: Incentive::Exchange,
            class: ProviderClass::Community,
            region: alloc::string::String::new(),
            version: alloc::string::String::new(),
            builders: BTreeMap::new(),
        };
        Node::new(config, 1, &[], NOW).expect("an empty journal")
    }

    fn issuer() -> NodeId {
        signer(2).public().into()
    }

    /// Returns a node on which a channel was noted that nobody has given back.
    fn that_misses() -> Node {
        let mut node = node();
        node.misses(booked(0, false));
        node
    }

    #[test]
    fn nobody_holds_up_a_recovery_for_longer_than_ten_minutes_by_giving_back_a_little_now_and_then() {
        let mut node = node();
        node.wallet.learn(0, RecordId::NONE, Balance::default(), Epoch(1));
        let mut recovery = told(&[booked(1, false)]);
        recovery.answered.insert(issuer());
        recovery.asked = Some(NOW);
        node.recovery = Some(recovery);
        for minutes in 1..=10 {
            let now = NOW.plus_ms(minutes * 60_000);
            assert!(node.recovery.is_some(), "after {minutes} minutes");
            node.recovery.as_mut().expect("checked").helped = Some(now);
            node.finish_recovery(now, &mut Vec::new());
        }
        assert!(node.recovery.is_none());
        assert!(node.missing.contains_key(&CHANNEL), "what was not given back is noted");
    }

    #[test]
    fn what_an_issuer_says_of_a_missing_channel_is_kept_and_counts() {
        let mut node = that_misses();
        let said = |amount, closed| {
            let ack = RedeemAck { channel: CHANNEL, amount, closed, epoch: Epoch(1) };
            sign(ack, node_domain(), Role::Issuer, &signer(1))
        };
        let mut out = Vec::new();
        node.on_redeemed(issuer(), &said(30, false), &mut out);
        assert_eq!(node.missing[&CHANNEL].redeemed, 30);
        node.on_redeemed(issuer(), &said(40, true), &mut out);
        assert!(node.missing.is_empty() && node.ended.contains_key(&CHANNEL));
        let lines = out.iter().filter(|effect| matches!(effect, Effect::Note(Record::Redeemed(_))));
        assert_eq!(lines.count(), 2, "its statement counts both");
    }

    fn node_domain() -> crate::ids::DomainId {
        node().domain()
    }

    #[test]
    fn a_missing_channel_that_its_payer_ended_alone_ends_early() {
        let mut node = that_misses();
        let account = booked(0, false).payer;
        let body = OpBody::Expire(CHANNEL);
        let op = AccountOp { account, sequence: 1, previous: RecordId::NONE, epoch: Epoch(2), body };
        let op = sign(op, node_domain(), Role::Owner, &signer(70));
        let vote = Vote { op: op.id(), account, sequence: 1, epoch: Epoch(2), settled: None };
        let votes = alloc::vec![sign(vote, node_domain(), Role::Issuer, &signer(1))];
        node.apply_news(&News::Step(Certificate { op, terms: None, votes }));
        assert_eq!(node.missing[&CHANNEL].expires, Epoch(3));
    }

    #[test]
    fn whoever_holds_more_of_what_is_missing_than_one_answer_takes_is_asked_for_the_rest() {
        let mut node = that_misses();
        node.handle(NOW, crate::node::Input::PeerUp(issuer()), &mut Vec::new());
        let device = crate::ledger::records::Device {
            account: signer(40).public().into(),
            node: issuer(),
            rights: crate::ledger::records::Rights { serve: true, spend: true },
            version: 1,
            expires: Epoch(7),
        };
        let device = sign(device, node_domain(), Role::Owner, &signer(40));
        let hello = Message::Hello { device, lineage: None, membership: None, advert: None, asks: false };
        node.handle(NOW, crate::node::Input::Received(issuer(), hello), &mut Vec::new());
        let asked = |node: &mut Node| {
            let mut out = Vec::new();
            node.ask_on_for_missing(&mut out);
            out.iter().find_map(|effect| {
                let Effect::Send(_, Message::Recover(after)) = effect else { return None };
                Some(*after)
            })
        };
        assert_eq!(asked(&mut node), None);

        let [first, second] = [20, 30].map(|tag| ChannelId([tag; 32]));
        node.came_until(issuer(), Some(second), false);
        assert_eq!(asked(&mut node), Some(second));
        node.came_until(issuer(), Some(first), false);
        assert_eq!(asked(&mut node), Some(second), "nobody is led back");
        node.came_until(issuer(), None, true);
        assert_eq!(asked(&mut node), None, "that was all");
        node.came_until(issuer(), Some(first), false);
        node.missing.clear();
        assert_eq!(asked(&mut node), None, "nothing is missing any more");
    }

    const CHANNEL: ChannelId = ChannelId([7; 32]);
    const OF_FOUR: usize = 1;

    fn booked(redeemed: u64, closed: bool) -> Booked {
        let payer = AccountId([1; 32]);
        Booked { channel: CHANNEL, payer, payee: NodeId([2; 32]), expires: Epoch(7), redeemed, closed }
    }

    fn told(said: &[Booked]) -> Recovery {
        let mut recovery = Recovery::default();
        for (issuer, booked) in (0..).zip(said) {
            recovery.book(NodeId([issuer; 32]), booked);
        }
        recovery
    }

    fn agreed(said: &[Booked]) -> Option<Booked> {
        told(said).agreed(OF_FOUR).next()
    }

    #[test]
    fn one_issuer_alone_neither_invents_a_channel_nor_ends_one_nor_pays_one_out() {
        assert_eq!(agreed(&[booked(9, false)]), None);
        let (honest, liar) = (booked(30, false), booked(u64::MAX, true));
        assert_eq!(agreed(&[honest, liar]), Some(honest));
        assert_eq!(agreed(&[liar, honest, honest]), Some(honest));
        assert_eq!(agreed(&[honest, booked(50, true), liar]), Some(booked(50, true)));
        let elsewhere = Booked { payee: NodeId([3; 32]), ..honest };
        assert_eq!(agreed(&[elsewhere, honest, honest]), Some(honest));
        assert_eq!(agreed(&[elsewhere, honest]), None);
        let over = Booked { expires: Epoch(0), ..honest };
        assert_eq!(agreed(&[over, honest, honest]), Some(honest));
        let parties = (honest.payer, honest.payee);
        let of = |said: &[Booked]| {
            sum(&said.iter().map(|one| (NodeId([0; 32]), *one)).collect::<Vec<_>>(), parties, OF_FOUR)
        };
        assert_eq!(of(&[elsewhere, booked(50, true), booked(50, true)]), Some(booked(50, true)));
        assert_eq!(of(&[over]).map(|one| (one.expires, one.redeemed)), Some((Epoch(u32::MAX), 0)));
        assert_eq!(of(&[elsewhere]), None);
    }

    #[test]
    fn what_one_issuer_names_leaves_the_others_their_room() {
        let mut recovery = Recovery::default();
        recovery.named.insert(NodeId([0; 32]), CHANNELS_MAX);
        for issuer in 0..3 {
            recovery.book(NodeId([issuer; 32]), &booked(1, false));
        }
        assert_eq!(recovery.booked[&CHANNEL].len(), 2);
        // Whoever says it again changes its word, and has no second one.
        recovery.book(NodeId([1; 32]), &booked(5, false));
        assert_eq!(recovery.booked[&CHANNEL].len(), 2);
    }

    #[test]
    fn a_channel_that_was_given_back_is_not_missing() {
        let mut recovery = told(&[booked(1, false); 3]);
        assert_eq!(recovery.open(OF_FOUR).count(), 1);
        recovery.restored.insert(CHANNEL);
        assert_eq!(recovery.open(OF_FOUR).count(), 0);
        assert_eq!(told(&[booked(1, true); 3]).open(OF_FOUR).count(), 0);
    }
}
