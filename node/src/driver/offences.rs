//! Counts what peers do wrong, and shuts out whoever does not stop.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use protocol::ids::NodeId;
use protocol::message::MessageError;
use protocol::node;

use crate::net::{OffenceKind, PeerKey};

use super::Driver;

/// Offences within [`MEMORY_MS`] that end the acquaintance; one or two may be bugs or old versions.
const OFFENCES_MAX: usize = 5;

/// How long an offence is remembered.
const MEMORY_MS: u64 = 10 * 60 * 1000;

/// How long a peer is shut out.
const BAN: Duration = Duration::from_secs(60 * 60);

/// Most peers whose offences are remembered; the one least recently at fault is forgotten.
const PEERS_MAX: usize = 1024;

/// What a peer did wrong, in the core's eyes or in the transport's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Offence {
    Protocol(node::Offence),
    Transport(OffenceKind),
    /// A message that is none.
    Undecodable,
    /// A signature that does not hold.
    BadSignature,
    /// A body that is not the one announced.
    WrongBody,
    /// A form of an answer that cannot be kept to.
    BadForm,
    /// Many messages, and never a greeting.
    NoGreeting,
}

impl From<node::Offence> for Offence {
    fn from(offence: node::Offence) -> Self {
        Self::Protocol(offence)
    }
}

impl From<MessageError> for Offence {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Malformed(_) => Self::Undecodable,
            MessageError::Signed(_) => Self::BadSignature,
        }
    }
}

impl Offence {
    /// Returns the name under which it is counted.
    fn name(self) -> &'static str {
        match self {
            Self::Protocol(node::Offence::WrongSigner) => "wrong_signer",
            Self::Protocol(node::Offence::NotAdmitted) => "not_admitted",
            Self::Protocol(node::Offence::BadLedger) => "bad_ledger",
            Self::Protocol(node::Offence::BadCount) => "bad_count",
            Self::Protocol(node::Offence::BadAdvert) => "bad_advert",
            Self::Protocol(node::Offence::Excess) => "excess",
            Self::Transport(OffenceKind::Malformed) => "malformed_frame",
            Self::Transport(OffenceKind::Oversized) => "oversized_frame",
            Self::Transport(OffenceKind::Slow) => "slow_frame",
            Self::Transport(OffenceKind::RateLimited) => "rate_limited",
            Self::Transport(OffenceKind::TooManyStreams) => "too_many_streams",
            Self::Undecodable => "undecodable_message",
            Self::BadSignature => "bad_signature",
            Self::WrongBody => "wrong_body",
            Self::BadForm => "bad_form",
            Self::NoGreeting => "no_greeting",
        }
    }
}

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Offences {
    by_name: BTreeMap<&'static str, u64>,
    by_peer: BTreeMap<NodeId, VecDeque<u64>>,
}

impl Offences {
    /// Counts an offence; says whether it was one too many.
    fn count(&mut self, peer: NodeId, offence: Offence, now_ms: u64) -> bool {
        *self.by_name.entry(offence.name()).or_default() += 1;
        if self.by_peer.len() >= PEERS_MAX && !self.by_peer.contains_key(&peer) {
            let oldest =
                self.by_peer.iter().min_by_key(|(_, times)| times.back().copied()).map(|(peer, _)| *peer);
            oldest.map(|peer| self.by_peer.remove(&peer));
        }
        let times = self.by_peer.entry(peer).or_default();
        times.push_back(now_ms);
        times.retain(|at| now_ms.saturating_sub(*at) < MEMORY_MS);
        times.len() >= OFFENCES_MAX
    }

    pub(super) fn names(&self) -> Vec<(String, u64)> {
        self.by_name.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    pub(super) fn of(&self, peer: NodeId) -> u32 {
        self.by_peer.get(&peer).map_or(0, |times| u32::try_from(times.len()).unwrap_or(u32::MAX))
    }
}

impl Driver {
    pub(super) fn penalise(&mut self, peer: NodeId, offence: Offence) {
        tracing::warn!(%peer, offence = offence.name(), "A peer broke a rule");
        if self.offences.count(peer, offence, self.clock.now_ms()) {
            tracing::warn!(%peer, "Shut out a peer that does not keep the rules");
            self.net.ban(PeerKey(peer.0), BAN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_shut_out_for_offences_close_together_only() {
        let mut offences = Offences::default();
        let peer = NodeId([1; 32]);

        let spread = (0..20).any(|n| offences.count(peer, Offence::Undecodable, n * MEMORY_MS / 3));
        assert!(!spread);
        let late = 100 * MEMORY_MS;
        assert_eq!(
            (0..5).map(|_| offences.count(peer, Offence::BadSignature, late)).position(|out| out),
            Some(4)
        );
    }
}
