//! The peers we are connected to: their links, what they said of themselves, and what they may still send.

use std::collections::BTreeMap;

use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, swarm::ConnectionId};
use tokio::time::{Duration, Instant};

use super::{
    PeerKey,
    jobs::is_relayed,
    limits::{Bucket, IDENTIFY_PATIENCE, Limits, Rate},
    names::Agent,
};

/// Provider records one peer may store with us: all models of a large provider at once, then a slow trickle.
const RECORDS: Rate = Rate { per_second: 1, burst: 1024 };
/// A relayed link that a direct one replaced stays this long, for what was just sent over it.
const RELAYED_GRACE: Duration = Duration::from_secs(5);
/// Pings in a row that may fail before a link counts as dead.
const PING_FAILURES_MAX: u32 = 2;

/// What is known of a connected peer.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    pub peer: PeerKey,
    /// Its ends of our connections, the best first.
    pub addresses: Vec<Multiaddr>,
    pub transport: Transport,
    pub direction: Direction,
    /// The last round trip in microseconds, once one was measured.
    pub rtt_micro: Option<u64>,
    /// Its program and version, as it claims.
    pub agent: String,
    pub since: Instant,
}

/// How we reach a peer; the best comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Quic,
    Tcp,
    Relay,
}

/// Who made the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Dialed,
    Accepted,
}

#[derive(Debug)]
pub(super) struct Peers {
    limits: Limits,
    entries: BTreeMap<PeerKey, Peer>,
}

/// Kept for a moment after the last link closes, so that coming back does not refill the buckets.
#[derive(Debug)]
struct Peer {
    links: Vec<Link>,
    /// Said or showed that it is of our network.
    admitted: bool,
    agent: String,
    since: Instant,
    messages: Bucket,
    bytes: Bucket,
    gossip: Bucket,
    records: Bucket,
}

#[derive(Debug)]
struct Link {
    connection: ConnectionId,
    address: Multiaddr,
    transport: Transport,
    direction: Direction,
    rtt: Option<Duration>,
    ping_failures: u32,
    /// Which run of the peer's program it leads to, once that was said.
    run: Option<u64>,
    since: Instant,
}

impl Peers {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, entries: BTreeMap::new() }
    }

    pub(super) fn connected(
        &mut self,
        peer: PeerKey,
        connection: ConnectionId,
        end: &ConnectedPoint,
        now: Instant,
    ) {
        let address = end.get_remote_address().clone();
        let link = Link {
            connection,
            transport: if end.is_relayed() { Transport::Relay } else { transport_of(&address) },
            direction: if end.is_dialer() { Direction::Dialed } else { Direction::Accepted },
            address,
            rtt: None,
            ping_failures: 0,
            run: None,
            since: now,
        };
        let limits = self.limits;
        let entry = self.entries.entry(peer).or_insert_with(|| Peer::new(&limits, now));
        if entry.links.is_empty() {
            entry.since = now;
        }
        entry.links.push(link);
    }

    /// Returns whether this was the last link of an admitted peer.
    pub(super) fn closed(&mut self, peer: PeerKey, connection: ConnectionId) -> bool {
        let Some(entry) = self.entries.get_mut(&peer) else {
            return false;
        };
        entry.links.retain(|link| link.connection != connection);
        entry.links.is_empty() && std::mem::take(&mut entry.admitted)
    }

    /// Returns whether the peer was not admitted before.
    pub(super) fn admit(&mut self, peer: PeerKey) -> bool {
        let Some(entry) = self.entries.get_mut(&peer) else {
            return false;
        };
        !entry.links.is_empty() && !std::mem::replace(&mut entry.admitted, true)
    }

    /// Notes what a peer says of itself over a link, and takes out the links that are dead by it: the earlier ones of a
    /// run that ended. Nobody told us of its end, and QUIC needs seconds to find out. From here on they count as closed;
    /// the caller closes them.
    pub(super) fn identified(
        &mut self,
        peer: PeerKey,
        connection: ConnectionId,
        agent: Agent,
    ) -> Vec<ConnectionId> {
        let Some(entry) = self.entries.get_mut(&peer) else { return Vec::new() };
        entry.agent = agent.program;
        let Some(speaking) = entry.links.iter().position(|link| link.connection == connection) else {
            return Vec::new();
        };
        entry.links[speaking].run = agent.run;
        let is_over = |link: &mut Link| link.run.is_some() && agent.run.is_some() && link.run != agent.run;
        entry.links.extract_if(..speaking, is_over).map(|link| link.connection).collect()
    }

    /// Notes a round trip, or returns whether the link is dead.
    pub(super) fn pinged(&mut self, peer: PeerKey, connection: ConnectionId, rtt: Option<Duration>) -> bool {
        let links = self.entries.get_mut(&peer).into_iter().flat_map(|entry| &mut entry.links);
        let Some(link) = links.into_iter().find(|link| link.connection == connection) else {
            return false;
        };
        match rtt {
            Some(rtt) => {
                link.rtt = Some(rtt);
                link.ping_failures = 0;
            }
            None => link.ping_failures += 1,
        }
        link.ping_failures >= PING_FAILURES_MAX
    }

    /// Whoever is gone and forgotten sends nothing more: what is still on its way is let in.
    pub(super) fn may_send(&mut self, peer: PeerKey, bytes: usize, now: Instant) -> bool {
        self.entries
            .get_mut(&peer)
            .is_none_or(|entry| entry.messages.take(1, now) && entry.bytes.take(bytes as u64, now))
    }

    pub(super) fn may_gossip(&mut self, peer: PeerKey, now: Instant) -> bool {
        self.entries.get_mut(&peer).is_none_or(|entry| entry.gossip.take(1, now))
    }

    pub(super) fn may_store(&mut self, peer: PeerKey, now: Instant) -> bool {
        self.entries.get_mut(&peer).is_none_or(|entry| entry.records.take(1, now))
    }

    pub(super) fn is_connected(&self, peer: PeerKey) -> bool {
        self.entries.get(&peer).is_some_and(|entry| !entry.links.is_empty())
    }

    /// Says whether a link lives, as far as is known.
    pub(super) fn has_link(&self, peer: PeerKey, connection: ConnectionId) -> bool {
        let mut links = self.entries.get(&peer).into_iter().flat_map(|entry| &entry.links);
        links.any(|link| link.connection == connection)
    }

    /// Says whether a link that lives was there at that time.
    pub(super) fn had_link(&self, peer: PeerKey, at: Instant) -> bool {
        self.entries.get(&peer).is_some_and(|entry| entry.links.iter().any(|link| link.since <= at))
    }

    pub(super) fn is_admitted(&self, peer: PeerKey) -> bool {
        self.entries.get(&peer).is_some_and(|entry| entry.admitted)
    }

    /// Returns the address of the peer's best direct link that we dialed: one that others may dial as well.
    pub(super) fn dialed_address(&self, peer: PeerKey) -> Option<&Multiaddr> {
        let links = &self.entries.get(&peer)?.links;
        let dialed =
            links.iter().filter(|l| l.direction == Direction::Dialed && l.transport != Transport::Relay);
        dialed.min_by_key(|link| link.transport).map(|link| &link.address)
    }

    pub(super) fn addresses(&self, peer: PeerKey) -> Vec<&Multiaddr> {
        self.entries
            .get(&peer)
            .map(|entry| entry.links.iter().map(|l| &l.address).collect())
            .unwrap_or_default()
    }

    pub(super) fn infos(&self) -> Vec<PeerInfo> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.admitted)
            .filter_map(|(peer, entry)| entry.info(*peer))
            .collect()
    }

    pub(super) fn admitted_count(&self) -> usize {
        self.entries.values().filter(|entry| entry.admitted).count()
    }

    /// Returns those who never said which network they are of.
    pub(super) fn unidentified(&self, now: Instant) -> Vec<PeerKey> {
        let late = |entry: &Peer| {
            !entry.admitted && !entry.links.is_empty() && now > entry.since + IDENTIFY_PATIENCE
        };
        self.entries.iter().filter(|(_, entry)| late(entry)).map(|(peer, _)| *peer).collect()
    }

    /// Returns relayed links that a direct one has replaced.
    pub(super) fn replaced(&self, now: Instant) -> Vec<(PeerId, ConnectionId)> {
        let mut replaced = Vec::new();
        for (peer, entry) in &self.entries {
            let direct =
                |link: &&Link| link.transport != Transport::Relay && now > link.since + RELAYED_GRACE;
            if entry.links.iter().any(|link| direct(&link)) {
                let relayed = entry.links.iter().filter(|link| link.transport == Transport::Relay);
                replaced.extend(relayed.map(|link| (peer.peer_id(), link.connection)));
            }
        }
        replaced
    }

    /// Forgets who is gone and has nothing left to hold against it.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.entries.retain(|_, entry| !entry.links.is_empty() || !entry.is_rested(now));
    }
}

impl Peer {
    fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            links: Vec::new(),
            admitted: false,
            agent: String::new(),
            since: now,
            messages: Bucket::full(limits.messages, now),
            bytes: Bucket::full(limits.bytes, now),
            gossip: Bucket::full(limits.gossip, now),
            records: Bucket::full(RECORDS, now),
        }
    }

    fn info(&self, peer: PeerKey) -> Option<PeerInfo> {
        let mut links: Vec<&Link> = self.links.iter().collect();
        links.sort_by_key(|link| link.transport);
        let best = links.first()?;
        Some(PeerInfo {
            peer,
            addresses: links.iter().map(|link| link.address.clone()).collect(),
            transport: best.transport,
            direction: best.direction,
            rtt_micro: best.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            agent: self.agent.clone(),
            since: self.since,
        })
    }

    fn is_rested(&mut self, now: Instant) -> bool {
        [&mut self.messages, &mut self.bytes, &mut self.gossip, &mut self.records]
            .into_iter()
            .all(|bucket| bucket.is_full(now))
    }
}

fn transport_of(address: &Multiaddr) -> Transport {
    use libp2p::core::multiaddr::Protocol;

    if is_relayed(address) {
        Transport::Relay
    } else if address.iter().any(|part| part == Protocol::QuicV1) {
        Transport::Quic
    } else {
        Transport::Tcp
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::{Endpoint, transport::PortUse};

    use super::*;

    const PEER: PeerKey = PeerKey([1; 32]);

    fn dialed(address: &str) -> ConnectedPoint {
        let address = address.parse().unwrap();
        ConnectedPoint::Dialer { address, role_override: Endpoint::Dialer, port_use: PortUse::Reuse }
    }

    fn limits() -> Limits {
        Limits { messages: Rate { per_second: 1, burst: 2 }, ..Limits::STANDARD }
    }

    #[test]
    fn coming_back_does_not_refill_what_was_spent() {
        let (mut peers, now) = (Peers::new(limits()), Instant::now());
        let connection = ConnectionId::new_unchecked(1);
        peers.connected(PEER, connection, &dialed("/ip4/127.0.0.1/tcp/1"), now);
        assert!(peers.may_send(PEER, 1, now) && peers.may_send(PEER, 1, now));

        peers.closed(PEER, connection);
        peers.sweep(now);
        peers.connected(PEER, connection, &dialed("/ip4/127.0.0.1/tcp/1"), now);

        assert!(!peers.may_send(PEER, 1, now));
    }

    #[test]
    fn a_peer_at_rest_is_forgotten() {
        let (mut peers, now) = (Peers::new(limits()), Instant::now());
        let connection = ConnectionId::new_unchecked(1);
        peers.connected(PEER, connection, &dialed("/ip4/127.0.0.1/tcp/1"), now);
        peers.may_send(PEER, 1, now);
        peers.closed(PEER, connection);

        peers.sweep(now + Duration::from_secs(60));

        assert!(peers.entries.is_empty());
    }

    #[test]
    fn a_relayed_link_is_replaced_by_a_direct_one_after_a_while() {
        let (mut peers, now) = (Peers::new(limits()), Instant::now());
        let (relayed, direct) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        let relay = PeerKey([2; 32]).peer_id();
        peers.connected(
            PEER,
            relayed,
            &dialed(&format!("/ip4/127.0.0.1/tcp/1/p2p/{relay}/p2p-circuit")),
            now,
        );
        peers.connected(PEER, direct, &dialed("/ip4/127.0.0.1/udp/1/quic-v1"), now);

        assert!(peers.replaced(now).is_empty());
        let later = now + 2 * RELAYED_GRACE;
        assert_eq!(peers.replaced(later), [(PEER.peer_id(), relayed)]);
        peers.admit(PEER);
        assert_eq!(peers.infos()[0].transport, Transport::Quic);
    }

    #[test]
    fn the_links_of_an_earlier_run_are_dead_and_no_others() {
        let (mut peers, now) = (Peers::new(limits()), Instant::now());
        let links = [1, 2, 3, 4].map(ConnectionId::new_unchecked);
        let says = |run| Agent { program: "sharemesh/1".into(), run, network: String::new() };
        for link in links {
            peers.connected(PEER, link, &dialed("/ip4/127.0.0.1/tcp/1"), now);
        }

        assert!(peers.identified(PEER, links[0], says(Some(1))).is_empty());
        assert!(peers.identified(PEER, links[1], says(Some(1))).is_empty());
        assert!(peers.identified(PEER, links[3], says(None)).is_empty());
        assert_eq!(peers.identified(PEER, links[2], says(Some(2))), links[..2]);
        assert!(peers.identified(PEER, links[0], says(Some(1))).is_empty());
    }

    #[test]
    fn the_links_of_an_earlier_run_count_as_closed_before_they_are() {
        let (mut peers, start) = (Peers::new(limits()), Instant::now());
        let [quic, tcp, again] = [1, 2, 3].map(ConnectionId::new_unchecked);
        let says = |run| Agent { program: "sharemesh/1".into(), run: Some(run), network: String::new() };
        for link in [quic, tcp] {
            peers.connected(PEER, link, &dialed("/ip4/127.0.0.1/tcp/1"), start);
            peers.identified(PEER, link, says(1));
        }
        assert!(peers.admit(PEER));
        let later = start + Duration::from_secs(1);
        peers.connected(PEER, again, &dialed("/ip4/127.0.0.1/tcp/1"), later);

        assert_eq!(peers.identified(PEER, again, says(2)), [quic, tcp]);
        assert!(!peers.had_link(PEER, start), "what was sent to the earlier run goes nowhere");
        let live = [quic, tcp, again].map(|link| peers.has_link(PEER, link));
        assert_eq!(live, [false, false, true], "and what it said last is not heard");
        assert!(!peers.closed(PEER, quic));
        assert!(!peers.had_link(PEER, start) && peers.had_link(PEER, later));
        assert!(!peers.admit(PEER), "it was up all the time");
        assert!(peers.closed(PEER, again), "the last that lived");
        assert!(!peers.closed(PEER, tcp), "told before");
    }

    #[test]
    fn a_link_is_dead_after_two_lost_pings_in_a_row() {
        let (mut peers, now) = (Peers::new(limits()), Instant::now());
        let connection = ConnectionId::new_unchecked(1);
        peers.connected(PEER, connection, &dialed("/ip4/127.0.0.1/tcp/1"), now);

        assert!(!peers.pinged(PEER, connection, None));
        assert!(!peers.pinged(PEER, connection, Some(Duration::from_millis(3))));
        assert!(!peers.pinged(PEER, connection, None));
        assert!(peers.pinged(PEER, connection, None));
    }
}
