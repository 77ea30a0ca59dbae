//! The names by which a network and its nodes are known: protocols and topics that carry the domain, peers by key.

use std::fmt;

use libp2p::{Multiaddr, PeerId, StreamProtocol, multiaddr::Protocol, multihash::Multihash};
use protocol::message::PROTOCOL_VERSION;

/// Who a peer is: its raw Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub [u8; 32]);

/// The multihash code of a value that is its own hash.
const IDENTITY: u64 = 0;
/// The protobuf head of an Ed25519 key in a peer id: key type 1, then 32 bytes of data.
const ED25519_HEAD: [u8; 4] = [8, 1, 18, 32];

impl PeerKey {
    /// Returns an address so that it names this peer; nothing if it names another.
    #[must_use]
    pub fn at(self, address: Multiaddr) -> Option<Multiaddr> {
        address.with_p2p(self.peer_id()).ok()
    }

    /// Returns the peer that an address names.
    #[must_use]
    pub fn named_by(address: &Multiaddr) -> Option<Self> {
        address.iter().find_map(|part| if let Protocol::P2p(peer) = part { Self::of(&peer) } else { None })
    }

    /// Returns the peer's key, or nothing where its identity is of another kind.
    pub(super) fn of(peer: &PeerId) -> Option<Self> {
        let hash: &Multihash<64> = peer.as_ref();
        let key = hash.digest().strip_prefix(&ED25519_HEAD)?;
        (hash.code() == IDENTITY).then(|| key.try_into().ok().map(Self))?
    }

    pub(super) fn peer_id(self) -> PeerId {
        let mut encoded = [0; 36];
        encoded[..4].copy_from_slice(&ED25519_HEAD);
        encoded[4..].copy_from_slice(&self.0);
        let hash = Multihash::wrap(IDENTITY, &encoded).expect("36 bytes fit in 64");
        PeerId::from_multihash(hash).expect("an identity hash of at most 42 bytes is a peer id")
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// The names of one network's protocols. Nodes of other networks share none of them, so they cannot talk.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) domain: [u8; 32],
    prefix: String,
}

impl Names {
    pub(super) fn new(domain: [u8; 32]) -> Self {
        // Half of the domain is enough to tell networks apart, and every stream sends its protocol's name.
        let prefix = format!("/sharemesh/{}", data_encoding::HEXLOWER.encode(&domain[..16]));
        Self { domain, prefix }
    }

    pub(super) fn message_protocol(&self) -> StreamProtocol {
        self.protocol("message")
    }

    pub(super) fn job_protocol(&self) -> StreamProtocol {
        self.protocol("job")
    }

    pub(super) fn directory_protocol(&self) -> StreamProtocol {
        self.protocol("kad")
    }

    pub(super) fn gossip_prefix(&self) -> String {
        format!("{}/gossip", self.prefix)
    }

    /// What identify says of us, the only thing that a node of another network gets to know.
    pub(super) fn identity(&self) -> String {
        format!("sharemesh/{}", data_encoding::HEXLOWER.encode(&self.domain))
    }

    pub(super) fn topic(&self, topic: &str) -> String {
        format!("{}/{topic}", self.prefix)
    }

    /// Returns the caller's name of a topic, or nothing where it is of another network.
    pub(super) fn plain_topic<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.strip_prefix(&self.prefix)?.strip_prefix('/')
    }

    fn protocol(&self, name: &str) -> StreamProtocol {
        let name = format!("{}/{name}/{PROTOCOL_VERSION}", self.prefix);
        StreamProtocol::try_from_owned(name).expect("begins with a slash")
    }
}

/// Reads the domain from what identify said of a peer.
pub(super) fn domain_of(identity: &str) -> Option<[u8; 32]> {
    let encoded = identity.strip_prefix("sharemesh/")?;
    data_encoding::HEXLOWER.decode(encoded.as_bytes()).ok()?.try_into().ok()
}

/// What a node says of itself in identify; all of it is only claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agent {
    /// Program and version, such as `sharemesh/0.1.0`.
    pub(super) program: String,
    /// Drawn anew whenever the program starts.
    pub(super) run: Option<u64>,
    /// Empty where it is not announced.
    pub(super) network: String,
}

/// Between the program's version and its run.
const RUN: &str = "+run.";

impl Agent {
    /// Returns the text for identify.
    pub(super) fn text(program: &str, run: u64, network: Option<&str>) -> String {
        let program = graphic(program);
        let network = network.map(|network| format!(" {}", printable(network)));
        format!("{program}{RUN}{run:016x}{}", network.unwrap_or_default())
    }

    pub(super) fn read(text: &str) -> Self {
        let (program, network) = text.split_once(' ').unwrap_or((text, ""));
        let (program, run) = program.split_once(RUN).unwrap_or((program, ""));
        let run = u64::from_str_radix(run, 16).ok();
        Self { program: graphic(program), run, network: printable(network) }
    }
}

fn graphic(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(AGENT_MAX).collect()
}

/// A peer's text ends up on the owner's terminal, so it is short and has no control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(AGENT_MAX).collect()
}

/// Characters of a program's or network's name that are shown.
const AGENT_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;

    #[test]
    fn a_peer_key_survives_the_way_through_a_peer_id() {
        let keypair = Keypair::ed25519_from_bytes([7; 32]).unwrap();
        let peer = keypair.public().to_peer_id();

        let key = PeerKey::of(&peer).unwrap();

        assert_eq!(key.peer_id(), peer);
        assert_eq!(key.0, keypair.public().try_into_ed25519().unwrap().to_bytes());
    }

    #[test]
    fn an_address_names_one_peer() {
        let (peer, other) = (PeerKey([7; 32]), PeerKey([8; 32]));
        let plain: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();

        let named = peer.at(plain.clone()).unwrap();

        assert_eq!((PeerKey::named_by(&plain), PeerKey::named_by(&named)), (None, Some(peer)));
        assert_eq!((peer.at(named.clone()), other.at(named.clone())), (Some(named), None));
    }

    #[test]
    fn a_hashed_identity_is_not_a_peer_key() {
        let hashed = PeerId::from_multihash(Multihash::wrap(0x12, &[1; 32]).unwrap()).unwrap();

        assert_eq!(PeerKey::of(&hashed), None);
    }

    #[test]
    fn the_domain_and_name_survive_identify() {
        let names = Names::new([9; 32]);

        assert_eq!(domain_of(&names.identity()), Some([9; 32]));
        assert_eq!(domain_of("ipfs/1.0"), None);
        let agent = Agent::read(&Agent::text("sharemesh/0.1.0", 7, Some("Ada\u{1b}'s home")));
        assert_eq!(
            (&agent.program[..], &agent.network[..], agent.run),
            ("sharemesh/0.1.0", "Ada's home", Some(7))
        );
        let other = Agent::read("other/2+run.x");
        assert_eq!((&other.program[..], &other.network[..], other.run), ("other/2", "", None));
        assert_eq!(names.plain_topic(&names.topic("checkpoints")), Some("checkpoints"));
        assert_eq!(Names::new([8; 32]).plain_topic(&names.topic("checkpoints")), None);
    }
}
