//! The mesh: the only code that knows libp2p. Its verbs never wait; what comes of them is told by [`Net::next`].
//!
//! It carries opaque bytes between peers named by their keys: messages with an acknowledgement, gossip that is judged
//! before it is passed on, a directory of who provides what, and a stream for each job. It decides nothing about jobs,
//! money or trust; it only bounds what a peer may cost.

mod behaviour;
mod codec;
mod events;
mod gate;
mod jobs;
mod limits;
mod names;
mod outbox;
mod peers;
mod relays;
mod stream;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::StreamExt as _;
pub use libp2p::Multiaddr;
use libp2p::{
    Swarm, gossipsub, kad,
    swarm::{
        DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, Interval, MissedTickBehavior};

use self::{
    behaviour::Behaviour,
    codec::Request,
    limits::{ADDRESSES_PER_PEER_MAX, BANS_MAX, STREAMS_WAITING_MAX},
    names::Names,
    outbox::{Outbox, Sent},
    peers::Peers,
    relays::Relays,
};
pub use self::{
    limits::{BODY_MAX, FRAME_MAX, GOSSIP_MAX, Limits, MESSAGE_MAX, Rate},
    names::PeerKey,
    peers::{Direction, PeerInfo, Transport},
    stream::{JobReceiver, JobSender, JobStream, Oversized, StreamOpener},
    traffic::TrafficOf,
};

/// Lookups under way at once; a node looks up one model at a time for a few jobs.
const LOOKUPS_MAX: usize = 64;
/// How often bans end, relays are sought and silent strangers are let go.
const TICK: Duration = Duration::from_secs(1);
/// Saying goodbye takes a packet to each peer.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// What the owner decides about the mesh.
pub struct NetConfig {
    /// The seed of the node's Ed25519 key.
    pub secret: [u8; 32],
    /// The network. Nodes of another one cannot talk to us.
    pub domain: [u8; 32],
    pub listen: Vec<Multiaddr>,
    /// Addresses at which others reach us for sure, such as a server's public one.
    pub announce: Vec<Multiaddr>,
    pub mdns: Mdns,
    /// Whether to carry connections between others who cannot reach each other.
    pub relay_server: bool,
    /// Whether to ask the router to open a port.
    pub upnp: bool,
    /// Program and version, such as `sharemesh/0.1.0`.
    pub agent: String,
    pub limits: Limits,
}

/// Whether nodes on the LAN may find us. It only proposes: who finds another network is told, and joins nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mdns {
    Off,
    /// With the network's name, for a person to read.
    Announce {
        name: String,
    },
}

/// What happened in the mesh.
#[derive(Debug)]
pub enum NetEvent {
    /// A peer sent a message. It was acknowledged as arrived.
    Received { from: PeerKey, message: Bytes, body: Bytes },
    /// A message was not acknowledged; it may have arrived all the same, unless the reason excludes it.
    SendFailed { to: PeerKey, tag: u64, reason: SendFailure },
    /// Something published, to be judged before it is passed on. `from` passed it to us and need not be its author.
    Gossip { id: GossipId, from: PeerKey, topic: String, data: Vec<u8> },
    /// A peer of our network is connected. Once per peer, whatever its connections.
    PeerUp(PeerKey),
    /// The last connection of a peer that was up is closed.
    PeerDown(PeerKey),
    /// A dial that was asked for failed.
    DialFailed { peer: PeerKey, reason: String },
    /// Providers of a key that were not told before; after `last`, none follow. They are hints.
    Found { key: [u8; 32], peers: Vec<PeerKey>, last: bool },
    /// A peer opened a stream for a job.
    Stream { from: PeerKey, stream: JobStream },
    /// A node of another network is on the LAN. Nothing was joined.
    LanNetwork { peer: PeerKey, name: String, domain: [u8; 32], addresses: Vec<Multiaddr> },
    /// We can be reached at this address, which names our key.
    Listening(Multiaddr),
    /// A peer broke a rule of the transport. Nothing of what it sent was used.
    Offence { peer: PeerKey, kind: OffenceKind },
}

/// Whether a message may go again over another connection when the one that it was on closes. It may have arrived over
/// the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// To have it twice does no harm.
    Yes,
    /// It arrives once at most.
    No,
}

/// Why a message was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendFailure {
    #[error("too many messages to this peer are unacknowledged")]
    QueueFull,
    #[error("the message or its body is too large")]
    TooLarge,
    #[error("the peer cannot be reached")]
    Unreachable,
    #[error("the connection closed")]
    Closed,
    #[error("the peer did not acknowledge in time")]
    Timeout,
    #[error("the peer speaks another protocol")]
    Unsupported,
    #[error("the peer refused, because we send too much or what it cannot read")]
    Refused,
    #[error("the stream broke")]
    Broken,
}

/// How a peer broke a rule of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OffenceKind {
    Malformed,
    Oversized,
    /// It stalled in the middle of a message.
    Slow,
    /// It sends more messages, bytes, gossip or records than it may.
    RateLimited,
    /// It opens more job streams than it may.
    TooManyStreams,
}

/// Names a gossiped thing until it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipId {
    message: gossipsub::MessageId,
    source: libp2p::PeerId,
}

/// What becomes of a gossiped thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Accept,
    /// Do not pass it on; nobody is to blame.
    Ignore,
    /// Do not pass it on, and hold it against who sent it.
    Reject,
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    pub messages_sent: u64,
    pub messages_acknowledged: u64,
    pub messages_failed: u64,
    pub messages_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub gossip_published: u64,
    /// Published while no neighbour listened to the topic, or refused by our own bounds.
    pub gossip_unheard: u64,
    pub gossip_received: u64,
    pub streams_accepted: u64,
    pub connections_made: u64,
    pub connections_denied: u64,
    pub dials_failed: u64,
    pub strangers_disconnected: u64,
    pub offences: u64,
    pub holes_punched: u64,
    pub holes_failed: u64,
}

/// The node's place in the mesh.
pub struct Net {
    swarm: Swarm<Behaviour>,
    names: Names,
    peers: Peers,
    outbox: Outbox,
    queries: HashMap<kad::QueryId, Query>,
    /// Peers that our owner asked to dial and wants to hear of.
    dialing: BTreeSet<PeerKey>,
    provided: BTreeSet<[u8; 32]>,
    /// When our provider records go out again, because new peers may hold them.
    provide_again_at: Option<Instant>,
    bootstrap_at: Instant,
    bans: BTreeMap<PeerKey, Instant>,
    /// Nodes that mDNS showed, until it says they are gone.
    lan: BTreeMap<PeerKey, BTreeSet<Multiaddr>>,
    relays: Relays,
    opener: StreamOpener,
    tick: Interval,
    events: VecDeque<NetEvent>,
    counters: NetCounters,
    traffic: Arc<traffic::Traffic>,
}

/// What a query of the directory is for.
#[derive(Debug)]
enum Query {
    Providers { key: [u8; 32], told: BTreeSet<PeerKey> },
    Address(PeerKey),
}

impl Net {
    /// Opens the ports. Needs a tokio runtime; the errors say what to do.
    pub fn new(config: NetConfig) -> Result<Self> {
        let names = Names::new(config.domain);
        let (requests, job_requests) = mpsc::channel(STREAMS_WAITING_MAX);
        let traffic = Arc::default();
        let mut swarm = behaviour::swarm(&config, &names, job_requests, &traffic)?;
        for address in &config.listen {
            behaviour::listen(&mut swarm, address)?;
        }
        for address in &config.announce {
            let own = address.clone().with_p2p(*swarm.local_peer_id());
            swarm.add_external_address(own.ok().with_context(|| format!("{address} names another node"))?);
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            swarm,
            names,
            peers: Peers::new(config.limits),
            outbox: Outbox::default(),
            queries: HashMap::new(),
            dialing: BTreeSet::new(),
            provided: BTreeSet::new(),
            provide_again_at: None,
            bootstrap_at: Instant::now() + events::BOOTSTRAP_INTERVAL,
            bans: BTreeMap::new(),
            lan: BTreeMap::new(),
            relays: Relays::default(),
            opener: StreamOpener { requests },
            tick,
            events: VecDeque::new(),
            counters: NetCounters::default(),
            traffic,
        })
    }

    /// Returns what happened next. Cancel safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> NetEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                _ = self.tick.tick() => self.on_tick(),
            }
        }
    }

    pub fn me(&self) -> PeerKey {
        PeerKey::of(self.swarm.local_peer_id()).expect("our own key is Ed25519")
    }

    /// Sends a message with its body, dialing the peer if needed; it waits while many others are under way to the peer.
    /// Silence means that it was acknowledged.
    pub fn send(&mut self, to: PeerKey, tag: u64, message: impl Into<Bytes>, body: Bytes, repeat: Repeat) {
        let message = message.into();
        let bytes = message.len() + body.len();
        if message.len() > MESSAGE_MAX || body.len() > BODY_MAX {
            return self.fail_send(to, tag, SendFailure::TooLarge);
        }
        if !self.outbox.has_room(to, bytes) {
            return self.fail_send(to, tag, SendFailure::QueueFull);
        }
        self.counters.messages_sent += 1;
        self.counters.bytes_sent += bytes as u64;
        self.outbox.wait(Sent { to, tag, message, body, repeat, at: Instant::now(), lost: 0 });
        self.send_waiting(to);
    }

    /// Sends what waits for this peer, as far as it may be under way.
    fn send_waiting(&mut self, to: PeerKey) {
        while let Some(sent) = self.outbox.next(to) {
            if sent.at.elapsed() > limits::REQUEST_TIMEOUT {
                self.fail_send(to, sent.tag, SendFailure::Timeout);
            } else {
                self.hand_over(sent);
            }
        }
    }

    fn hand_over(&mut self, sent: Sent) {
        let request = Request::Whole { message: sent.message.clone(), body: sent.body.clone(), room: None };
        let id = self.swarm.behaviour_mut().messages.send_request(&sent.to.peer_id(), request);
        self.outbox.insert(id, sent);
    }

    fn fail_send(&mut self, to: PeerKey, tag: u64, reason: SendFailure) {
        self.counters.messages_failed += 1;
        self.events.push_back(NetEvent::SendFailed { to, tag, reason });
    }

    /// Publishes to all who listen; nobody acknowledges gossip. Publishing the same bytes again changes nothing.
    pub fn publish(&mut self, topic: &str, data: Vec<u8>) {
        let topic = self.topic(topic);
        match self.swarm.behaviour_mut().gossip.publish(topic, data) {
            Ok(_) => self.counters.gossip_published += 1,
            Err(gossipsub::PublishError::Duplicate) => {}
            Err(error) => {
                self.counters.gossip_unheard += 1;
                tracing::debug!(%error, "Published to nobody");
            }
        }
    }

    /// Listens to a topic; repeating it changes nothing.
    pub fn subscribe(&mut self, topic: &str) {
        let topic = self.topic(topic);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        if let Err(error) = gossip.subscribe(&topic) {
            tracing::warn!(%error, %topic, "Cannot subscribe");
        } else if let Err(error) = gossip.set_topic_params(topic.clone(), behaviour::topic_score()) {
            tracing::warn!(error, %topic, "Cannot score a topic");
        }
    }

    pub fn unsubscribe(&mut self, topic: &str) {
        let topic = self.topic(topic);
        self.swarm.behaviour_mut().gossip.unsubscribe(&topic);
    }

    /// Decides about a gossiped thing. Until then nobody gets it from us, and after a few seconds it is forgotten.
    pub fn judge(&mut self, gossip: &GossipId, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => gossipsub::MessageAcceptance::Accept,
            Verdict::Ignore => gossipsub::MessageAcceptance::Ignore,
            Verdict::Reject => gossipsub::MessageAcceptance::Reject,
        };
        let behaviour = &mut self.swarm.behaviour_mut().gossip;
        behaviour.report_message_validation_result(&gossip.message, &gossip.source, acceptance);
    }

    fn topic(&self, topic: &str) -> gossipsub::IdentTopic {
        gossipsub::IdentTopic::new(self.names.topic(topic))
    }

    /// Asks the directory who provides `key`; `Found` tells, and the first few are dialed. A lookup of the same key
    /// that is under way is joined.
    pub fn lookup(&mut self, key: [u8; 32]) {
        let is_same = |query: &Query| matches!(query, Query::Providers { key: other, .. } if *other == key);
        if self.queries.values().any(is_same) {
            return;
        }
        if self.queries.len() >= LOOKUPS_MAX {
            return self.events.push_back(NetEvent::Found { key, peers: Vec::new(), last: true });
        }
        let query = self.swarm.behaviour_mut().directory.get_providers(kad::RecordKey::new(&key));
        self.queries.insert(query, Query::Providers { key, told: BTreeSet::new() });
    }

    /// Says in the directory that we provide `key`, now and until `stop_providing`.
    pub fn provide(&mut self, key: [u8; 32]) {
        match self.swarm.behaviour_mut().directory.start_providing(kad::RecordKey::new(&key)) {
            Ok(_) => _ = self.provided.insert(key),
            Err(error) => tracing::warn!(%error, "Cannot enter what we provide in the directory"),
        }
    }

    /// Stops saying so; what others remember of it ends within two hours.
    pub fn stop_providing(&mut self, key: [u8; 32]) {
        self.provided.remove(&key);
        self.swarm.behaviour_mut().directory.stop_providing(&kad::RecordKey::new(&key));
    }

    /// Connects to a peer at these addresses or those that are known; without any, the directory is asked.
    /// `PeerUp` or `DialFailed` tells; a peer that is connected already is left as it is.
    pub fn dial(&mut self, peer: PeerKey, mut addresses: Vec<Multiaddr>) {
        addresses.truncate(ADDRESSES_PER_PEER_MAX);
        if self.peers.is_admitted(peer) {
            return;
        }
        self.dialing.insert(peer);
        let opts = DialOpts::peer_id(peer.peer_id())
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(opts) {
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(DialError::NoAddresses) if self.queries.len() < LOOKUPS_MAX => {
                let query = self.swarm.behaviour_mut().directory.get_closest_peers(peer.peer_id());
                self.queries.insert(query, Query::Address(peer));
            }
            Err(error) => self.fail_dial(peer, error),
        }
    }

    fn fail_dial(&mut self, peer: PeerKey, error: impl ToString) {
        if self.dialing.remove(&peer) {
            self.events.push_back(NetEvent::DialFailed { peer, reason: error.to_string() });
        }
    }

    pub fn disconnect(&mut self, peer: PeerKey) {
        // An error says that it is not connected, which is what was wanted.
        let _ = self.swarm.disconnect_peer_id(peer.peer_id());
    }

    /// Disconnects a peer and refuses it for `period`.
    pub fn ban(&mut self, peer: PeerKey, period: Duration) {
        self.bans.insert(peer, Instant::now() + period);
        self.swarm.behaviour_mut().blocked.block_peer(peer.peer_id());
        if self.bans.len() > BANS_MAX
            && let Some(soonest) = self.bans.iter().min_by_key(|(_, until)| **until).map(|(peer, _)| *peer)
        {
            self.unban(soonest);
        }
    }

    fn unban(&mut self, peer: PeerKey) {
        self.bans.remove(&peer);
        self.swarm.behaviour_mut().blocked.unblock_peer(peer.peer_id());
    }

    /// Opens job streams from any task.
    pub fn opener(&self) -> StreamOpener {
        self.opener.clone()
    }

    /// Returns the connected peers of our network.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.peers.infos()
    }

    /// Returns where we can be reached, public addresses first, each naming our key so that it can go into a ticket.
    pub fn listening(&self) -> Vec<Multiaddr> {
        let mut addresses = Vec::new();
        for address in self.swarm.external_addresses().chain(self.swarm.listeners()) {
            let own = self.own_address(address.clone());
            if !addresses.contains(&own) {
                addresses.push(own);
            }
        }
        addresses
    }

    fn own_address(&self, address: Multiaddr) -> Multiaddr {
        address.with_p2p(*self.swarm.local_peer_id()).unwrap_or_else(|other| other)
    }

    /// Closes all connections, so that peers know at once and need not find out.
    pub async fn close(mut self) {
        let connected: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            // An error says that it is not connected any more.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        // Whoever does not answer by then finds out by silence.
        let _ = tokio::time::timeout(CLOSE_PATIENCE, closed).await;
    }

    pub fn counters(&self) -> NetCounters {
        self.counters
    }

    /// Returns what all streams have carried since the start, by what they are for.
    pub fn traffic(&self) -> Vec<TrafficOf> {
        self.traffic.all()
    }
}
