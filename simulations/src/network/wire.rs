//! Bytes of libp2p's protocols on their streams, as a node configures them; packets, handshakes and addresses beyond
//! two for each node are left out.
//!
//! Sizes follow the schemas of `libp2p-kad` 0.49, `libp2p-gossipsub` 0.50, `libp2p-identify` and `libp2p-ping` 0.48.

/// Kinds of traffic that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Messages of the protocol, with their acknowledgements.
    Messages,
    /// Gossip: what is published and forwarded, and what keeps the mesh.
    Gossip,
    /// The directory: lookups and records.
    Directory,
    /// Identify and ping.
    Upkeep,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Messages, Self::Gossip, Self::Directory, Self::Upkeep];

    /// Returns its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Gossip => "gossip",
            Self::Directory => "directory",
            Self::Upkeep => "upkeep",
        }
    }
}

/// What a node has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic([(u64, u64); Kind::ALL.len()]);

impl Traffic {
    /// Counts something sent.
    pub const fn add(&mut self, kind: Kind, bytes: usize) {
        self.add_many(kind, 1, bytes);
    }

    /// Counts several things of one size.
    pub const fn add_many(&mut self, kind: Kind, count: usize, bytes: usize) {
        let sent = &mut self.0[kind as usize];
        *sent = (sent.0 + count as u64, sent.1 + (count * bytes) as u64);
    }

    /// Returns how many frames of a kind were sent.
    #[must_use]
    pub const fn count(&self, kind: Kind) -> u64 {
        self.0[kind as usize].0
    }

    /// Returns the bytes of a kind.
    #[must_use]
    pub const fn bytes(&self, kind: Kind) -> u64 {
        self.0[kind as usize].1
    }

    /// Returns the bytes of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// `/multistream/1.0.0`, a line's end and its length.
const MULTISTREAM: usize = 20;

/// `/sharemesh/` and half of a network's name as hexadecimal digits.
const PREFIX: usize = 11 + 32;

/// A peer's id.
const PEER_ID: usize = 38;

/// Two addresses, one for QUIC and one for TCP, each with its tag.
const ADDRESSES: usize = (11 + 2) + (8 + 2);

/// A peer in an answer of the directory: its id, its addresses, whether it is connected, and what frames them.
const PEER: usize = (PEER_ID + 2) + ADDRESSES + 2 + 2;

/// A key of the directory with its tag.
const KEY: usize = 32 + 2;

/// The name of a message of gossip.
const MESSAGE_ID: usize = 20;

/// Returns what either end of a stream says before anything else: which protocol it is for.
const fn negotiation(name: usize) -> usize {
    MULTISTREAM + varint(PREFIX + name + 1) + PREFIX + name + 1
}

const fn varint(number: usize) -> usize {
    if number < 1 << 7 {
        1
    } else if number < 1 << 14 {
        2
    } else {
        3
    }
}

/// Returns the bytes of a field of so many bytes.
const fn field(bytes: usize) -> usize {
    1 + varint(bytes) + bytes
}

/// Returns the bytes of a frame that says its length.
const fn framed(bytes: usize) -> usize {
    varint(bytes) + bytes
}

/// Returns the bytes of a message of the protocol on a stream of its own.
#[must_use]
pub const fn message(bytes: usize) -> usize {
    negotiation("/message/1".len()) + 4 + bytes
}

/// What whoever got a message answers.
pub const ACKNOWLEDGEMENT: usize = negotiation("/message/1".len()) + 1;

/// A question to the directory: who is near a key, or provides it.
pub const QUESTION: usize = negotiation("/kad/1".len()) + framed(2 + KEY);

/// Returns the bytes of an answer of the directory that names so many peers.
#[must_use]
pub const fn answer(peers: usize) -> usize {
    negotiation("/kad/1".len()) + framed(2 + KEY + peers * PEER)
}

/// Says that we provide a key.
pub const RECORD: usize = negotiation("/kad/1".len()) + framed(2 + KEY + PEER);

/// What begins a stream of gossip; each end opens one.
pub const GOSSIP_STREAM: usize = negotiation("/gossip/1.3.0".len());

/// Returns the bytes of the name of a topic of which a node knows `name`.
#[must_use]
pub const fn topic(name: usize) -> usize {
    PREFIX + 1 + name
}

/// Returns the bytes of something published or forwarded: author, data, number, topic and signature.
#[must_use]
pub const fn published(topic: usize, data: usize) -> usize {
    framed(field(field(PEER_ID) + field(data) + field(8) + field(topic) + field(64)))
}

/// Returns the bytes of a word about subscribing to a topic.
#[must_use]
pub const fn subscription(topic: usize) -> usize {
    framed(field(2 + field(topic)))
}

/// Returns the bytes of an offer of so many messages.
#[must_use]
pub const fn offered(topic: usize, messages: usize) -> usize {
    framed(field(field(field(topic) + messages * field(MESSAGE_ID))))
}

/// Returns the bytes of a request for so many messages.
#[must_use]
pub const fn wanted(messages: usize) -> usize {
    framed(field(field(messages * field(MESSAGE_ID))))
}

/// Returns the bytes of a word that asks to be in somebody's mesh.
#[must_use]
pub const fn graft(topic: usize) -> usize {
    framed(field(field(field(topic))))
}

/// Returns the bytes of a word that ends being in somebody's mesh, with how long not to come back.
#[must_use]
pub const fn prune(topic: usize) -> usize {
    framed(field(field(field(topic) + 2)))
}

/// What a node says of itself on a new connection, and of some again every five minutes: key, program, network,
/// addresses and the names of fifteen protocols.
pub const IDENTIFIED: usize = 2 * (MULTISTREAM + 16) + 910;

/// What either end of a connection sends for a ping of its own and one of its peer's.
pub const PINGS: usize = 2 * 32;

#[cfg(test)]
mod tests {
    use super::{ACKNOWLEDGEMENT, Kind, Traffic, answer, message, published, topic};

    #[test]
    fn what_is_sent_costs_more_than_what_it_says() {
        assert_eq!(message(100), 20 + 55 + 4 + 100);
        assert_eq!(ACKNOWLEDGEMENT, 20 + 55 + 1);
        assert_eq!(answer(20) - answer(19), 67);
        assert_eq!(published(topic(70), 500), 2 + 3 + (2 + 38) + 3 + 500 + 10 + (2 + 114) + 66);
    }

    #[test]
    fn kinds_of_traffic_are_counted_apart() {
        let mut traffic = Traffic::default();
        traffic.add(Kind::Gossip, 10);
        traffic.add_many(Kind::Upkeep, 3, 5);

        assert_eq!((traffic.count(Kind::Upkeep), traffic.bytes(Kind::Upkeep)), (3, 15));
        assert_eq!((traffic.bytes(Kind::Messages), traffic.total()), (0, 25));
    }
}
