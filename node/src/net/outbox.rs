//! Messages that were sent and not yet acknowledged, and those that wait behind them, bounded for each peer.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use libp2p::request_response::OutboundRequestId;
use tokio::time::Instant;

use super::{
    PeerKey, Repeat,
    limits::{QUEUE_BYTES_MAX, QUEUE_MAX, WAITING_MAX},
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

#[derive(Debug, Default)]
struct Queue {
    /// Messages under way.
    messages: usize,
    /// Of those that are under way and of those that wait.
    bytes: usize,
    waiting: VecDeque<Sent>,
}

impl Outbox {
    /// Says whether a message may be sent or wait.
    pub(super) fn has_room(&self, to: PeerKey, bytes: usize) -> bool {
        let Some(queue) = self.queues.get(&to) else { return bytes <= QUEUE_BYTES_MAX };
        queue.waiting.len() < WAITING_MAX && queue.bytes + bytes <= QUEUE_BYTES_MAX
    }

    /// Has a message wait; [`Outbox::next`] says when it may be sent.
    pub(super) fn wait(&mut self, sent: Sent) {
        let queue = self.queues.entry(sent.to).or_default();
        queue.bytes += sent.bytes();
        queue.waiting.push_back(sent);
    }

    /// Takes the next message to a peer that waits, if it may be sent.
    pub(super) fn next(&mut self, to: PeerKey) -> Option<Sent> {
        let queue = self.queues.get_mut(&to).filter(|queue| queue.messages < QUEUE_MAX)?;
        let sent = queue.waiting.pop_front()?;
        queue.bytes -= sent.bytes();
        Some(sent)
    }

    /// Takes all messages to a peer that wait.
    pub(super) fn give_up(&mut self, to: PeerKey) -> VecDeque<Sent> {
        let Some(queue) = self.queues.get_mut(&to) else { return VecDeque::new() };
        let waiting = std::mem::take(&mut queue.waiting);
        queue.bytes -= waiting.iter().map(Sent::bytes).sum::<usize>();
        if queue.messages == 0 {
            self.queues.remove(&to);
        }
        waiting
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
        if queue.messages == 0 && queue.waiting.is_empty() {
            self.queues.remove(&sent.to);
        }
        Some(sent)
    }
}
