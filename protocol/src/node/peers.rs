//! Who is connected, for whom they act, and by which right they are here.

use alloc::vec::Vec;

use crate::advert::Advert;
use crate::ids::{AccountId, ModelId, NodeId, RecordId};
use crate::ledger::account::Lineage;
use crate::ledger::issuer::IssuerError;
use crate::ledger::records::{Deposit, Device, Membership};
use crate::manifest::Admission;
use crate::message::{Checked, HEADS_MAX, Heads, JoinError, Message};
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::adverts::Said;
use super::channels::RECONCILE_MS;
use super::{Effect, Node, Offence};

/// Epochs before its end at which a delegation is signed again, so that it outlives every channel opened meanwhile.
pub(super) const RENEW_EPOCHS: u32 = 3;

/// Answers to the receipts that a peer shows in [`RECONCILE_MS`]: each looks at every channel and may send hundreds of
/// receipts; a greeting and a few endings at once need no more.
const HEADS_ANSWERED_MAX: u32 = 4;

/// Messages of a peer in [`RECONCILE_MS`] that concern what is kept for it or by it: a comparison takes a few, and each
/// brings at most some tens of records.
const MIRROR_ANSWERED_MAX: u32 = 64;

/// Most messages kept from a peer whose greeting is still on its way.
const EARLY_MAX: usize = 8;

/// How long a copy of a message may be under way, in milliseconds.
const COPY_MS: u64 = 60_000;

/// A connected peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// Its owner's delegation, once it has greeted.
    device: Option<Verified<Device>>,
    admitted: bool,
    /// Messages that overtook the greeting.
    early: Vec<Message<Checked>>,
    /// As issuer: the last step that was refused it, and when.
    refused: Option<(RecordId, IssuerError, Time)>,
    /// When the peer's present run of receipts shown began, and how many were answered in it.
    shown: (Time, u32),
    /// The same for what it asks of us as a mirror and brings us as an issuer.
    asked: (Time, u32),
    /// The newest advert that it has said of itself since it greeted.
    pub(super) said: Option<Said>,
}

/// Counts one more in a run that began at its first; returns how many there are.
pub(super) fn counted(run: &mut (Time, u32), now: Time) -> u32 {
    let in_run = now.since_ms(run.0) < RECONCILE_MS;
    *run = if in_run { (run.0, run.1.saturating_add(1)) } else { (now, 1) };
    run.1
}

impl Peer {
    pub(super) fn account(&self) -> Option<AccountId> {
        self.device.as_ref().map(|device| device.account)
    }

    pub(super) const fn is_admitted(&self) -> bool {
        self.admitted
    }

    pub(super) const fn device(&self) -> Option<&Verified<Device>> {
        self.device.as_ref()
    }

    /// As issuer: notes that a step was refused the peer.
    pub(super) const fn refuse(&mut self, op: RecordId, error: IssuerError, now: Time) {
        self.refused = Some((op, error, now));
    }

    /// As issuer: returns why a step was refused the peer, if that stands. Its owner has signed another one in that slot by
    /// now, so a copy that comes late must not be taken; copies end with the connection, and so does this. But a step for
    /// which there was no room before a checkpoint, and for which others have voted, is its owner's still after it.
    pub(super) fn refused(&self, op: RecordId, now: Time) -> Option<IssuerError> {
        let (_, error, at) = self.refused.filter(|(refused, ..)| *refused == op)?;
        let may_change = matches!(error, IssuerError::TooManySteps { .. }) && now.since_ms(at) >= COPY_MS;
        (!may_change).then_some(error)
    }

    /// What its owner said has ended: it must greet again with something newer.
    pub(super) fn dismiss(&mut self) {
        self.device = None;
        self.admitted = false;
    }

    pub(super) fn replace_device(&mut self, device: Verified<Device>) {
        self.device = Some(device);
    }
}

impl Node {
    pub(super) fn on_peer_up(&mut self, peer: NodeId, now: Time, out: &mut Vec<Effect>) {
        self.peers.entry(peer).or_default();
        self.greet(peer, now, out);
        if !self.config.manifest.has_issuer_node(peer) {
            return;
        }
        match self.joining {
            Some(secret) => self.send(peer, Message::Join { secret }, out),
            None if self.is_admitted() => self.send(peer, Message::AccountQuery, out),
            None => {}
        }
    }

    pub(super) fn on_peer_down(&mut self, peer: NodeId, now: Time, out: &mut Vec<Effect>) {
        self.peers.remove(&peer);
        self.mirrors.on_peer_down(peer);
        self.fail_asks(peer, now, out);
    }

    /// Signs the delegation again before it ends, and tells whoever is connected; asks those whose own has ended.
    pub(super) fn renew_delegations(&mut self, now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        for peer in self.peers.values_mut() {
            if peer.device.as_ref().is_some_and(|device| device.expires < epoch) {
                peer.dismiss();
            }
        }
        if self.renew_device(now) {
            self.greet_all(now, out);
        }
    }

    pub(super) fn greet_all(&mut self, now: Time, out: &mut Vec<Effect>) {
        let connected: Vec<NodeId> = self.peers.keys().copied().collect();
        for peer in connected {
            self.greet(peer, now, out);
        }
    }

    pub(super) fn greet(&mut self, peer: NodeId, now: Time, out: &mut Vec<Effect>) {
        self.renew_device(now);
        // A delegation that has ended would count as an offence; its owner gives a new one.
        if self.device.expires < self.epoch(now) {
            return;
        }
        let advert = self.advert(now);
        let (device, membership) = (self.device.clone(), self.membership.clone());
        let (lineage, asks) = (self.shown_lineage(), !self.has_greeted(peer));
        self.send(peer, Message::Hello { device, lineage, membership, advert, asks }, out);
    }

    /// Says whether a connected peer has told for whom it acts.
    pub(super) fn has_greeted(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.device.is_some())
    }

    /// Greets again whoever has not greeted us: its greeting was lost, or it believes to have greeted us before our
    /// restart.
    pub(super) fn greet_silent(&mut self, now: Time, out: &mut Vec<Effect>) {
        let silent = self.peers.iter().filter(|(_, peer)| peer.device.is_none());
        let silent: Vec<NodeId> = silent.map(|(node, _)| *node).collect();
        for peer in silent {
            self.greet(peer, now, out);
        }
    }

    /// Asks again to be admitted: the question or the answer may be lost while a connection stands.
    pub(super) fn join_again(&mut self, out: &mut Vec<Effect>) {
        let Some(secret) = self.joining else { return };
        for issuer in self.issuers() {
            if !self.refusing.contains(&issuer) {
                self.send(issuer, Message::Join { secret }, out);
            }
        }
    }

    /// Lets a message through, keeps it until the peer has greeted, or counts an offence.
    pub(super) fn admit(
        &mut self,
        from: NodeId,
        message: Message<Checked>,
        out: &mut Vec<Effect>,
    ) -> Option<Message<Checked>> {
        if from == self.me {
            return None;
        }
        // A message may be handled after its connection has gone, and would bring back a peer that nothing removes.
        let peer = self.peers.get_mut(&from)?;
        let introduces =
            matches!(message, Message::Hello { .. } | Message::Joined { .. } | Message::JoinRefused(_));
        // An issuer tells it whoever greets with less than it knows.
        let introduces = introduces || matches!(message, Message::Lineage(_));
        // Who joins for which account is in the greeting.
        let joins = matches!(message, Message::Join { .. }) && peer.device.is_some();
        if introduces || joins || peer.admitted {
            return Some(message);
        }
        if peer.early.len() < EARLY_MAX {
            peer.early.push(message);
        } else if peer.device.is_some() {
            out.push(Effect::Penalise(from, Offence::NotAdmitted));
        }
        None
    }

    pub(super) fn on_hello(
        &mut self,
        from: NodeId,
        (device, lineage): (Verified<Device>, Option<&Lineage>),
        membership: Option<Verified<Membership>>,
        advert: Option<Verified<Advert>>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !self.is_delegated(from, &device, lineage, now, out) {
            return;
        }
        let admitted = self.is_member(from, membership.as_ref());
        let Some(peer) = self.peers.get_mut(&from) else { return };
        // One connection speaks for one account; a node that was killed and started for another one, before anybody has
        // noticed, is asked to greet again.
        if peer.account().is_some_and(|account| account != device.account) {
            peer.dismiss();
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        peer.device = Some(device);
        // A greeting from before it joined may come after the one from then.
        peer.admitted |= admitted;
        // It may have been started again, with another clock: its words are compared from here on.
        peer.said = None;
        if !peer.admitted {
            let is_join = |message: &mut Message<Checked>| matches!(message, Message::Join { .. });
            let joins: Vec<_> = peer.early.extract_if(.., is_join).collect();
            for message in joins {
                self.on_message(from, message, now, out);
            }
            return;
        }
        let early = core::mem::take(&mut peer.early);
        if let Some(advert) = advert {
            self.on_advert_said(from, advert, now, out);
        }
        // It may have been known, and only not connected.
        let known = self.router.advert(from).map(|advert| advert.models.iter().map(|offer| offer.model));
        let models: Vec<ModelId> = known.into_iter().flatten().collect();
        self.on_candidate(&models, now);
        if self.recovery.is_none() {
            self.send_heads(from, out);
        }
        self.ask_for_missing(from, out);
        if self.config.manifest.has_issuer_node(from) && self.is_admitted() && !self.has_many_issuers() {
            self.send(from, Message::Books(crate::books::BooksMessage::Query(None)), out);
        }
        self.send_devices(from, out);
        for message in early {
            self.on_message(from, message, now, out);
        }
    }

    fn is_member(&self, node: NodeId, membership: Option<&Verified<Membership>>) -> bool {
        let by_ticket = membership.is_some_and(|membership| {
            membership.node == node
                && membership.signer(Role::Issuer).is_some_and(|key| self.config.manifest.has_issuer_key(key))
        });
        by_ticket
            || self.config.manifest.has_issuer_node(node)
            || self.config.manifest.admission == Admission::Open
    }

    /// Says whether this node may take part in the network.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.is_member(self.me, self.membership.as_ref())
    }

    /// Returns the account for which a peer has proved to act.
    pub(super) fn account_of(&self, peer: NodeId) -> Option<AccountId> {
        if peer == self.me {
            return Some(self.wallet.account());
        }
        self.peers.get(&peer).filter(|peer| peer.admitted)?.device.as_ref().map(|device| device.account)
    }

    /// Returns the nodes that act for an account and can be spoken to now.
    pub(super) fn nodes_of(&self, account: AccountId) -> Vec<NodeId> {
        let connected =
            self.peers.iter().filter(|(_, peer)| peer.admitted && peer.account() == Some(account));
        let ours = (account == self.wallet.account()).then_some(self.me);
        ours.into_iter().chain(connected.map(|(node, _)| *node)).collect()
    }

    pub(super) fn is_connected(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.admitted)
    }

    /// Returns the issuers' nodes that can be spoken to now: this node itself, or connected peers.
    pub(super) fn issuers(&self) -> Vec<NodeId> {
        let nodes = self.config.manifest.issuers.iter().map(|issuer| issuer.node);
        nodes.filter(|node| *node == self.me || self.is_connected(*node)).collect()
    }

    /// Returns an issuer that can be spoken to now, if a quorum of them can.
    pub(super) fn issuer(&self) -> Option<NodeId> {
        let reachable = self.issuers();
        let enough = reachable.len() >= self.config.manifest.quorum();
        reachable.first().copied().filter(|_| enough)
    }

    pub(super) fn join(&mut self, secret: [u8; 16], out: &mut Vec<Effect>) {
        if self.membership.is_some() {
            out.push(Effect::Joined(Ok(())));
            return;
        }
        self.joining = Some(secret);
        self.refusing.clear();
        let issuers: Vec<NodeId> = self.config.manifest.issuers.iter().map(|issuer| issuer.node).collect();
        for node in issuers {
            if self.peers.contains_key(&node) {
                self.send(node, Message::Join { secret }, out);
            }
        }
    }

    pub(super) fn on_joined(
        &mut self,
        from: NodeId,
        membership: Verified<Membership>,
        deposit: Option<Verified<Deposit>>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !self.config.manifest.has_issuer_node(from) || !self.is_member(self.me, Some(&membership)) {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        if self.joining.take().is_none() {
            return;
        }
        let deposit = deposit.map(|deposit| deposit.signed());
        out.push(Effect::Record(Record::Joined { membership: membership.signed(), deposit }));
        self.membership = Some(membership);
        out.push(Effect::Joined(Ok(())));
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        for peer in peers {
            let (device, membership) = (self.device.clone(), self.membership.clone());
            let (lineage, asks) = (self.shown_lineage(), !self.has_greeted(peer));
            self.send(peer, Message::Hello { device, lineage, membership, advert: None, asks }, out);
        }
        self.send(from, Message::AccountQuery, out);
        for issuer in self.issuers() {
            if issuer != from {
                self.send(issuer, Message::AccountQuery, out);
            }
        }
        // What this node serves was nobody's business before.
        self.advertise(now, out);
    }

    pub(super) fn on_join_refused(&mut self, from: NodeId, error: JoinError, out: &mut Vec<Effect>) {
        if !self.config.manifest.has_issuer_node(from) || self.joining.is_none() {
            return;
        }
        self.refusing.insert(from);
        // A ticket is known to the issuer that made it, and to no other.
        let is_last = self.refusing.len() >= self.config.manifest.issuers.len();
        if error != JoinError::UnknownTicket || is_last {
            self.refusing.clear();
            self.joining = None;
            out.push(Effect::Joined(Err(error)));
        }
    }

    /// Says whether the receipts that a peer shows are to be looked at now.
    pub(super) fn answers_heads(
        &mut self,
        from: NodeId,
        page: &Heads,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> bool {
        if page.heads.len() > HEADS_MAX {
            out.push(Effect::Penalise(from, Offence::Excess));
            return false;
        }
        let Some(peer) = self.peers.get_mut(&from) else { return false };
        counted(&mut peer.shown, now) <= HEADS_ANSWERED_MAX
    }

    /// Says whether what a peer asks of us as a mirror, or brings us as an issuer, is looked at now.
    pub(super) fn answers_mirror(&mut self, from: NodeId, now: Time) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else { return from == self.me };
        counted(&mut peer.asked, now) <= MIRROR_ANSWERED_MAX
    }
}
