//! The libp2p behaviour of job streams: opens them on the best connection and bounds those that peers open.
//!
//! Not `libp2p-stream`: that drops inbound streams when its queue is full, picks any of a peer's connections, also a
//! relayed one, and keeps a channel for every connection there ever was.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, multiaddr::Protocol, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, DialError, DialFailure,
        FromSwarm, NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
        dial_opts::{DialOpts, PeerCondition},
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{mpsc, oneshot};

use super::{PeerKey, limits::STREAMS_WAITING_MAX, stream::Slot};

/// A request for a stream. Dropping it unanswered means "try again".
#[derive(Debug)]
pub(super) struct Open {
    pub(super) peer: PeerKey,
    pub(super) reply: oneshot::Sender<io::Result<(Stream, Slot)>>,
}

impl Open {
    fn fail(self, kind: io::ErrorKind, reason: impl Into<String>) {
        // Whoever asked may have stopped waiting.
        let _ = self.reply.send(Err(io::Error::new(kind, reason.into())));
    }
}

#[derive(Debug)]
pub(super) enum Event {
    Opened {
        peer: PeerId,
        stream: Stream,
        slot: Slot,
    },
    /// The peer holds as many streams as it may; this one was dropped.
    Excess {
        peer: PeerId,
    },
}

pub(super) struct Behaviour {
    protocol: StreamProtocol,
    streams_per_peer: usize,
    requests: mpsc::Receiver<Open>,
    waiting: VecDeque<Open>,
    peers: BTreeMap<PeerId, Connections>,
    events: VecDeque<ToSwarm<Event, Open>>,
}

#[derive(Default)]
struct Connections {
    open: Vec<(ConnectionId, Path)>,
    streams: Streams,
}

/// How many job streams are open with a peer.
#[derive(Clone, Default)]
struct Streams {
    theirs: Arc<AtomicUsize>,
    ours: Arc<AtomicUsize>,
}

/// Ordered by preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Path {
    Relayed,
    Direct,
}

impl Behaviour {
    pub(super) fn new(
        protocol: StreamProtocol,
        streams_per_peer: usize,
        requests: mpsc::Receiver<Open>,
    ) -> Self {
        Self {
            protocol,
            streams_per_peer,
            requests,
            waiting: VecDeque::new(),
            peers: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Returns how many job streams are open with the peer, whoever opened them.
    pub(super) fn streams_with(&self, peer: &PeerId) -> usize {
        let streams = |peer: &Connections| {
            peer.streams.theirs.load(Ordering::Acquire) + peer.streams.ours.load(Ordering::Acquire)
        };
        self.peers.get(peer).map_or(0, streams)
    }

    fn handler(&mut self, peer: PeerId) -> Handler {
        Handler {
            protocol: self.protocol.clone(),
            streams_max: self.streams_per_peer,
            streams: self.peers.entry(peer).or_default().streams.clone(),
            opening: VecDeque::new(),
            arrived: VecDeque::new(),
            excess: false,
        }
    }

    fn request(&mut self, open: Open) {
        let peer = open.peer.peer_id();
        if let Some(connection) = self.best_connection(&peer) {
            let handler = NotifyHandler::One(connection);
            self.events.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: open });
        } else if self.waiting.len() < STREAMS_WAITING_MAX {
            self.waiting.push_back(open);
            let opts = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
            self.events.push_back(ToSwarm::Dial { opts });
        } else {
            open.fail(io::ErrorKind::ResourceBusy, "too many streams wait for a connection");
        }
    }

    /// The newest direct connection, else the newest relayed one.
    fn best_connection(&self, peer: &PeerId) -> Option<ConnectionId> {
        let open = &self.peers.get(peer)?.open;
        open.iter().max_by_key(|(_, path)| *path).map(|(connection, _)| *connection)
    }

    fn on_established(&mut self, event: ConnectionEstablished) {
        let path = if event.endpoint.is_relayed() { Path::Relayed } else { Path::Direct };
        self.peers.entry(event.peer_id).or_default().open.push((event.connection_id, path));
        for open in self.take_waiting(&event.peer_id) {
            self.request(open);
        }
    }

    fn on_closed(&mut self, event: ConnectionClosed) {
        let Some(peer) = self.peers.get_mut(&event.peer_id) else {
            return;
        };
        peer.open.retain(|(connection, _)| *connection != event.connection_id);
        if peer.open.is_empty() && event.remaining_established == 0 {
            self.peers.remove(&event.peer_id);
        }
    }

    fn on_dial_failure(&mut self, failure: DialFailure) {
        // Another dial to the same peer is under way and will have its own end.
        if matches!(failure.error, DialError::DialPeerConditionFalse(_)) {
            return;
        }
        for open in failure.peer_id.map(|peer| self.take_waiting(&peer)).unwrap_or_default() {
            open.fail(io::ErrorKind::NotConnected, failure.error.to_string());
        }
    }

    /// Drops what `handler` made for a connection that another behaviour then denied.
    fn forget_denied(&mut self, peer: Option<PeerId>) {
        if let Some(peer) = peer
            && self.peers.get(&peer).is_some_and(|peer| peer.open.is_empty())
        {
            self.peers.remove(&peer);
        }
    }

    fn take_waiting(&mut self, peer: &PeerId) -> VecDeque<Open> {
        let (taken, kept) = self.waiting.drain(..).partition(|open| open.peer.peer_id() == *peer);
        self.waiting = kept;
        taken
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is libp2p's and non-exhaustive")]
    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(event),
            FromSwarm::DialFailure(failure) => {
                self.forget_denied(failure.peer_id);
                self.on_dial_failure(failure);
            }
            FromSwarm::ListenFailure(failure) => self.forget_denied(failure.peer_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, event: Arrived) {
        self.events.push_back(ToSwarm::GenerateEvent(match event {
            Arrived::Stream(stream, slot) => Event::Opened { peer, stream, slot },
            Arrived::Excess => Event::Excess { peer },
        }));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, Open>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            match self.requests.poll_recv(cx) {
                Poll::Ready(Some(open)) => self.request(open),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum Arrived {
    Stream(Stream, Slot),
    Excess,
}

/// One connection's part.
pub(super) struct Handler {
    protocol: StreamProtocol,
    streams_max: usize,
    streams: Streams,
    opening: VecDeque<Open>,
    /// No longer than `streams_max`, for each stream has a slot.
    arrived: VecDeque<Arrived>,
    excess: bool,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Arrived;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ())
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Open, Arrived>> {
        if let Some(arrived) = self.arrived.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(arrived));
        }
        if std::mem::take(&mut self.excess) {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Arrived::Excess));
        }
        if let Some(open) = self.opening.pop_front() {
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), open);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        // The connection polls again after each event it hands in, so nothing needs waking.
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, open: Open) {
        self.opening.push_back(open);
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is libp2p's and non-exhaustive")]
    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), Open>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                match Slot::take(&self.streams.theirs, self.streams_max) {
                    Some(slot) => self.arrived.push_back(Arrived::Stream(stream, slot)),
                    None => self.excess = true,
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: open,
            }) => {
                let slot =
                    Slot::take(&self.streams.ours, usize::MAX).expect("ours are bounded by those who ask");
                // Whoever asked may have stopped waiting; then the stream is dropped with the answer.
                let _ = open.reply.send(Ok((stream, slot)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: open, error }) => {
                let kind = match &error {
                    StreamUpgradeError::Timeout => io::ErrorKind::TimedOut,
                    StreamUpgradeError::NegotiationFailed => io::ErrorKind::Unsupported,
                    StreamUpgradeError::Io(error) => error.kind(),
                    StreamUpgradeError::Apply(never) => match *never {},
                };
                open.fail(kind, error.to_string());
            }
            _ => {}
        }
    }
}

/// Says whether an address goes through a relay.
pub(super) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}
