//! What providers say of themselves: told, heard, passed on, and held against whoever says what no honest node would.
//!
//! No peer is judged by a clock: a wrong one, ours or its, makes an advert unbelievable and its author no liar. An
//! author's word is measured against its other words.

use alloc::vec::Vec;

use crate::advert::Advert;
use crate::ids::{ModelId, NodeId};
use crate::ledger::records::Device;
use crate::message::Message;
use crate::mutant;
use crate::router::ADVERT_LIFE_MS_MAX;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::{Effect, Node, Offence, Timer, peers};

/// How often a provider renews its adverts and its records in the directory.
pub(super) const ADVERTISE_MS: u64 = 30_000;

/// How long an advert counts: three renewals, so that one lost is not missed.
const ADVERT_LIFE_MS: u64 = 3 * ADVERTISE_MS;

/// Most peers to whom an advert is sent directly; the others hear it by gossip.
const DIRECT_ADVERTS_MAX: usize = 32;

/// By how much an advert may end before one that came earlier: messages overtake each other, and each is given up after
/// 40 s.
const OVERTAKEN_MS_MAX: u64 = 60_000;

/// Most nodes dialled that the directory names for a model: anybody may name any number.
const FOUND_MAX: usize = 8;

/// Most nodes dialled within 5 s because they were heard of while one is sought: anybody may be any number of nodes.
const HEARD_OF_MAX: u32 = 16;

/// Most models in whose adverts a node takes interest.
const SUBSCRIPTIONS_MAX: usize = 64;

/// What is to be done with an advert that came by gossip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Believe it and pass it on.
    News,
    /// Neither: it has ended or been overtaken on its way, or a clock is wrong.
    Ignored,
    /// Neither, and whoever passed it on broke a rule: it could have seen.
    Refused(Offence),
}

/// What an author has said of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    sequence: u64,
    valid_to: Time,
}

impl Said {
    /// Says whether an honest author may say `advert` after this: each is another one, and none is old.
    fn allows(&self, advert: &Advert) -> bool {
        advert.sequence != self.sequence && advert.valid_to.plus_ms(OVERTAKEN_MS_MAX) >= self.valid_to
    }
}

/// Says whether the advert's own node signed it, with an end that its own clock allowed.
fn is_sound(advert: &Verified<Advert>) -> bool {
    advert.is_signed_by(Role::Node, advert.node.into())
        && advert.valid_to <= Time(advert.sequence).plus_ms(ADVERT_LIFE_MS_MAX)
}

impl Node {
    pub(super) fn on_advert_query(&mut self, from: NodeId, now: Time, out: &mut Vec<Effect>) {
        if let Some(advert) = self.advert(now) {
            self.send(from, Message::Advert(advert), out);
        }
    }

    /// Takes an advert that a peer says of itself, unless no honest node would say it.
    pub(super) fn on_advert_said(
        &mut self,
        from: NodeId,
        advert: Verified<Advert>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let is_allowed = peer.said.is_none_or(|said| said.allows(&advert));
        if !is_allowed || advert.node != from || !is_sound(&advert) {
            out.push(Effect::Penalise(from, Offence::BadAdvert));
            return;
        }
        if peer.said.is_none_or(|said| said.sequence < advert.sequence) {
            peer.said = Some(Said { sequence: advert.sequence, valid_to: advert.valid_to });
        }
        self.on_advert(advert, now, out);
    }

    /// Learns from an advert, however it came.
    pub(super) fn on_advert(&mut self, advert: Verified<Advert>, now: Time, out: &mut Vec<Effect>) {
        let node = advert.node;
        let is_own = node == self.me && !mutant::is_in("self-offer");
        if !is_sound(&advert) || is_own {
            return;
        }
        let models: Vec<ModelId> = advert.models.iter().map(|offer| offer.model).collect();
        let connected = |node| self.peers.get(&node).is_some_and(super::peers::Peer::is_admitted);
        // Of a peer it is known for whom it acts, and whether it may serve for that account.
        let contradicts = |peer: &Verified<Device>| peer.account != advert.account || !peer.rights.serve;
        if self.peers.get(&node).and_then(super::peers::Peer::device).is_some_and(contradicts) {
            return;
        }
        if self.router.learn(advert, connected, now) {
            if self.is_connected(node) {
                self.on_candidate(&models, now);
            } else if self.wants_any(&models) && peers::counted(&mut self.heard_of, now) <= HEARD_OF_MAX {
                out.push(Effect::Dial(node));
            }
        }
    }

    /// Says what is to be done with an advert that came by gossip.
    #[must_use]
    pub fn hears(&self, advert: &Verified<Advert>, now: Time) -> Heard {
        if !is_sound(advert) {
            return Heard::Refused(Offence::BadAdvert);
        }
        if self.router.is_current(advert, now) { Heard::News } else { Heard::Ignored }
    }

    pub(super) fn on_found(&mut self, nodes: &[NodeId], out: &mut Vec<Effect>) {
        let others = nodes.iter().copied().filter(|node| *node != self.me);
        let (near, away): (Vec<NodeId>, Vec<NodeId>) = others.partition(|node| self.is_connected(*node));
        for node in near {
            self.send(node, Message::AdvertQuery, out);
        }
        let most = if mutant::is_in("trust-directory") { usize::MAX } else { FOUND_MAX };
        out.extend(away.into_iter().take(most).map(Effect::Dial));
    }

    pub(super) fn discover(&mut self, model: ModelId, out: &mut Vec<Effect>) {
        out.push(Effect::Lookup(model));
        if self.subscribed.len() < SUBSCRIPTIONS_MAX && self.subscribed.insert(model) {
            out.push(Effect::Subscribe(model));
        }
    }

    pub(super) fn on_advertise_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.deadlines.set(Timer::Advertise, now.plus_ms(ADVERTISE_MS + self.prng.below(ADVERTISE_MS / 10)));
        self.advertise(now, out);
    }

    /// Tells the directory, the interested and the connected what this node serves.
    pub(super) fn advertise(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Some(advert) = self.advert(now) else { return };
        for offer in &advert.models {
            out.push(Effect::Provide(offer.model));
            out.push(Effect::Publish(offer.model, advert.signed()));
        }
        let connected = self.peers.iter().filter(|(_, peer)| peer.is_admitted()).map(|(node, _)| *node);
        let connected: Vec<NodeId> = connected.take(DIRECT_ADVERTS_MAX).collect();
        for peer in connected {
            self.send(peer, Message::Advert(advert.clone()), out);
        }
    }

    /// Returns what this node serves now, signed; `None` when it serves nothing.
    pub(super) fn advert(&mut self, now: Time) -> Option<Verified<Advert>> {
        let ready = || self.served.values().filter(|(offer, _)| self.scheduler.is_ready(offer.model));
        let may = self.is_admitted() && self.device.rights.serve && self.recovery.is_none();
        if self.stopping || !may || ready().next().is_none() {
            return None;
        }
        let models = ready().map(|(offer, _)| {
            let (busy, slots) = self.scheduler.load(offer.model);
            crate::advert::ModelOffer { busy, slots, ..offer.clone() }
        });
        let mut devices: Vec<_> = ready().map(|(_, device)| device.clone()).collect();
        devices.dedup();
        let models = models.take(crate::advert::MODELS_MAX).collect();
        devices.truncate(crate::advert::DEVICES_MAX);
        self.advert_sequence = now.0.max(self.advert_sequence.saturating_add(1));
        Some(self.sign(Advert {
            node: self.me,
            name: self.config.name.clone(),
            account: self.wallet.account(),
            sequence: self.advert_sequence,
            class: self.config.class,
            region: self.config.region.clone(),
            devices,
            models,
            incentive: self.config.incentive,
            version: self.config.version.clone(),
            valid_to: now.plus_ms(ADVERT_LIFE_MS),
        }))
    }
}
