//! What a peer may cost us: every bound of the network shell, with its reason, and the bucket that enforces rates.

use std::time::Duration;

use tokio::time::Instant;

/// A message is control traffic; longer ones would be refused by the protocol anyway.
pub const MESSAGE_MAX: usize = protocol::message::MESSAGE_BYTES_MAX;
/// A body is a prompt: a million tokens of text, or a few images or minutes of speech.
pub const BODY_MAX: usize = 8 * 1024 * 1024;
/// Flooded things are read by every node, so they stay small: a checkpoint or an enrolment.
pub const GOSSIP_MAX: usize = 64 * 1024;
/// A frame holds a few tokens or a piece of an answer; small frames keep the streams of a connection fair.
pub const FRAME_MAX: usize = 64 * 1024;

/// Bytes of messages that all peers together may have half sent; who comes then is refused, and may come again.
pub(super) const UNREAD_MAX: usize = 256 << 20;
/// Messages to one peer that are not yet acknowledged; a healthy peer acknowledges within a round trip.
pub(super) const QUEUE_MAX: usize = 64;
/// Messages that wait behind those: all jobs that one node may have with a provider begin with a few each, and a burst of
/// them is no fault of the provider's.
pub(super) const WAITING_MAX: usize = 4 * protocol::node::OWN_JOBS_MAX;
/// Bytes to one peer that are not yet acknowledged, waiting or not: four of the largest prompts.
pub(super) const QUEUE_BYTES_MAX: usize = 4 * BODY_MAX;
/// Both directions of one connection: our own queue and as many from the peer.
pub(super) const REQUEST_STREAMS_MAX: usize = 2 * QUEUE_MAX;
/// Streams of all protocols on one connection: all jobs and messages, both ways. QUIC refuses more before they cost us
/// anything.
pub(super) const CONNECTION_STREAMS_MAX: u32 = 384;
/// Streams of one connection that may negotiate their protocol at once.
pub(super) const NEGOTIATING_STREAMS_MAX: usize = 64;
/// Requests for job streams that wait for a connection; more than a node has jobs.
pub(super) const STREAMS_WAITING_MAX: usize = 256;

/// Two direct connections when both sides dial at once, and the relayed one they replace.
pub(super) const CONNECTIONS_PER_PEER_MAX: u32 = 3;
/// Handshakes cost a signature each; this bounds what a flood of them can hold.
pub(super) const PENDING_INCOMING_MAX: u32 = 64;
/// A lookup dials three at a time; the rest is for jobs.
pub(super) const PENDING_OUTGOING_MAX: u32 = 64;
/// Connections from one /24 (IPv4) or /48 (IPv6) of the public internet, so that one network cannot take all places.
pub(super) const CONNECTIONS_PER_SUBNET_MAX: usize = 32;
/// Peers whose ban is remembered; the oldest ban is dropped for a new one.
pub(super) const BANS_MAX: usize = 4096;
/// Nodes of a LAN whose network is remembered.
pub(super) const LAN_NODES_MAX: usize = 256;
/// Topics one peer may subscribe to: a few for the network and one per model.
pub(super) const TOPICS_PER_PEER_MAX: usize = 128;
/// Addresses of one peer that are kept for dialing.
pub(super) const ADDRESSES_PER_PEER_MAX: usize = 8;
/// Providers of one lookup that are dialed at once, while their addresses are at hand.
pub(super) const FOUND_DIALED_MAX: usize = 8;
/// Keys in the directory's store, of others and our own: about 100 bytes for each provider of each.
pub(super) const PROVIDED_KEYS_MAX: usize = 16 * 1024;

/// A message must be whole within this: a slow sender is cut off.
pub(super) const MESSAGE_PATIENCE: Duration = Duration::from_secs(5);
/// Each `BODY_PACE_BYTES` of a body must come within `MESSAGE_PATIENCE`: 105 kbit/s, the slowest uplink that is of use.
pub(super) const BODY_PACE_BYTES: usize = 64 * 1024;
/// From queueing a message to its acknowledgement, with the largest body at 2 Mbit/s.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);
/// Opening a job stream takes at most two round trips, plus a dial where the peer is not connected.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Dial, handshake and upgrade of a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connected peer says which network it is of within this, or is disconnected.
pub(super) const IDENTIFY_PATIENCE: Duration = Duration::from_secs(10);
/// Connections to peers of recent jobs stay warm: a new job then costs one stream and no handshake.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// What an owner may tune; the constants above are fixed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all; each costs about 100 KB.
    pub connections: u32,
    /// Messages one peer may send, per second and at once.
    pub messages: Rate,
    /// Bytes of messages and bodies one peer may send, per second and at once.
    pub bytes: Rate,
    /// Gossip one peer may pass on, per second and at once.
    pub gossip: Rate,
    /// Job streams one peer may hold open to us: as many as it may have jobs of ours.
    pub job_streams_per_peer: usize,
    /// Share of the machine's memory at which new connections are refused.
    pub memory_share: f64,
}

impl Limits {
    /// For a home machine that serves a few models.
    pub const STANDARD: Self = Self {
        connections: 256,
        // A provider sends five messages for each short job that we give it, so this is 400 jobs a second; checking
        // as many signatures takes an eighth of a core.
        messages: Rate { per_second: 2_000, burst: 4_000 },
        bytes: Rate { per_second: 16 << 20, burst: 64 << 20 },
        gossip: Rate { per_second: 100, burst: 1000 },
        // A provider opens one for each job that we gave it, and all our jobs may be with one.
        job_streams_per_peer: protocol::node::OWN_JOBS_MAX,
        memory_share: 0.5,
    };
}

/// How much per second, and how much at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u64,
    pub burst: u64,
}

/// A token bucket: full at the start, refilled by time, never negative.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    level: f64,
    filled_at: Instant,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, level: rate.burst as f64, filled_at: now }
    }

    /// Takes `amount`, or nothing and says so.
    pub(super) fn take(&mut self, amount: u64, now: Instant) -> bool {
        self.fill(now);
        let amount = amount as f64;
        if self.level < amount {
            return false;
        }
        self.level -= amount;
        true
    }

    /// Returns whether a new bucket would be no different.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.level >= self.rate.burst as f64
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.level = (self.level + elapsed * self.rate.per_second as f64).min(self.rate.burst as f64);
        self.filled_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(Rate { per_second: 10, burst: 3 }, start);

        assert_eq!((0..5).filter(|_| bucket.take(1, start)).count(), 3);
        assert!(!bucket.take(1, start + Duration::from_millis(90)));
        assert!(bucket.take(1, start + Duration::from_millis(200)));
        assert!(!bucket.is_full(start + Duration::from_millis(200)));
        assert!(bucket.is_full(start + Duration::from_secs(1)));
    }

    #[test]
    fn a_bucket_refuses_more_than_its_burst_for_ever() {
        let start = Instant::now();
        let mut bucket = Bucket::full(Rate { per_second: 10, burst: 3 }, start);

        assert!(!bucket.take(4, start + Duration::from_secs(1000)));
    }
}
