//! Keeps a node that nobody can dial reachable: reserves a place at a few relays of its own network.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::core::transport::ListenerId;

use super::PeerKey;

/// Relays we hold a place at: one may go away.
const RELAYS_MAX: usize = 2;
/// Peers that offered to relay; more are not needed to find two.
const CANDIDATES_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Relays {
    wanted: bool,
    candidates: BTreeSet<PeerKey>,
    held: BTreeMap<PeerKey, ListenerId>,
}

impl Relays {
    pub(super) fn set_wanted(&mut self, wanted: bool) {
        self.wanted = wanted;
    }

    pub(super) fn offered(&mut self, peer: PeerKey) {
        if self.candidates.len() < CANDIDATES_MAX {
            self.candidates.insert(peer);
        }
    }

    pub(super) fn gone(&mut self, peer: PeerKey) {
        self.candidates.remove(&peer);
    }

    /// Returns the relay to reserve a place at next, if one is needed.
    pub(super) fn next(&self) -> Option<PeerKey> {
        let needed = self.wanted && self.held.len() < RELAYS_MAX;
        self.candidates.iter().find(|peer| needed && !self.held.contains_key(peer)).copied()
    }

    pub(super) fn held(&mut self, peer: PeerKey, listener: ListenerId) {
        self.held.insert(peer, listener);
    }

    /// Forgets a relay whose reservation ended; it is asked again only after it offers again.
    pub(super) fn listener_closed(&mut self, listener: ListenerId) {
        let ended = self.held.extract_if(.., |_, held| *held == listener);
        for (peer, _) in ended {
            self.candidates.remove(&peer);
        }
    }
}
