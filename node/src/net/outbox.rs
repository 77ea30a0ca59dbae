//! Messages that were sent and not yet acknowledged, bounded for each peer.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use libp2p::request_response::OutboundRequestId;
use tokio::time::Instant;

use super::{
    PeerKey, Repeat,
    limits::{QUEUE_BYTES_MAX, QUEUE_MAX},
};

#[derive(Debug, Default)]
pub(super) struct Outbox {
    sent: HashMap<OutboundRequestId, Sent>,
    queues: BTreeMap<PeerKey, Queue>,
}

#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) to: PeerKey,
    pub(super) tag: u64,
    pub(super) message: Bytes,
    pub(super) body: Bytes,
    pub(super) repeat: Repeat,
    /// When it was sent first.
    pub(super) at: Instant,
    /// How many connections closed on it before it was acknowledged.
    pub(super) lost: u32,
}

impl Sent {
    fn bytes(&self) -> usize {
        self.message.len() + self.body.len()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    messages: usize,
    bytes: usize,
}

impl Outbox {
    pub(super) fn has_room(&self, to: PeerKey, bytes: usize) -> bool {
        let queue = self.queues.get(&to).copied().unwrap_or_default();
        queue.messages < QUEUE_MAX && queue.bytes + bytes <= QUEUE_BYTES_MAX
    }

    pub(super) fn insert(&mut self, id: OutboundRequestId, sent: Sent) {
        let queue = self.queues.entry(sent.to).or_default();
        queue.messages += 1;
        queue.bytes += sent.bytes();
        self.sent.insert(id, sent);
    }

    /// Takes out what was answered or failed.
    pub(super) fn remove(&mut self, id: OutboundRequestId) -> Option<Sent> {
        let sent = self.sent.remove(&id)?;
        let queue = self.queues.get_mut(&sent.to).expect("each sent message is in its peer's queue");
        queue.messages -= 1;
        queue.bytes -= sent.bytes();
        if queue.messages == 0 {
            self.queues.remove(&sent.to);
        }
        Some(sent)
    }
}
