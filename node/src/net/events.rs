//! Turns what the swarm says into `NetEvent`s, at once and without waiting, and does what is due every second.

use std::{collections::BTreeSet, net::IpAddr};

use libp2p::{
    Multiaddr, PeerId, autonat, gossipsub, identify,
    kad::{self, InboundRequest, QueryResult, store::RecordStore as _},
    mdns, ping, relay,
    request_response::{self, OutboundFailure},
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::{Duration, Instant};

use super::{
    GossipId, Net, NetEvent, OffenceKind, PeerKey, Query, Repeat, SendFailure,
    behaviour::BehaviourEvent,
    codec::{Ack, Request},
    gate::{ip_of, is_public},
    jobs,
    limits::{ADDRESSES_PER_PEER_MAX, CONNECTIONS_PER_PEER_MAX, FOUND_DIALED_MAX, LAN_NODES_MAX},
    names::{Agent, domain_of},
    outbox::Sent,
    stream::JobStream,
};

/// How often a node with few peers looks around. libp2p's five minutes, times a million nodes, is mostly noise.
pub(super) const BOOTSTRAP_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// With as many peers, the directory keeps itself fresh by what it is used for.
const BOOTSTRAP_PEERS: usize = 20;
/// New peers come in groups; what we provide is entered once for all of them.
const PROVIDE_AGAIN_DELAY: Duration = Duration::from_secs(10);

type MessageEvent = request_response::Event<Request, Ack>;

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums are libp2p's; what is not named needs no answer"
)]
impl Net {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.counters.connections_made += 1;
                match PeerKey::of(&peer_id) {
                    Some(peer) => self.peers.connected(peer, connection_id, &endpoint, Instant::now()),
                    None => _ = self.swarm.close_connection(connection_id),
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                self.on_closed(&peer_id, connection_id)
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => self.on_dial_error(peer_id, &error),
            SwarmEvent::IncomingConnectionError { error, .. } => {
                self.counters.connections_denied += 1;
                tracing::debug!(%error, "Incoming connection failed");
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                // Who offers to relay says that others can dial it; without an address it could grant no reservation.
                if self.swarm.behaviour().relay_server.is_enabled() {
                    self.swarm.add_external_address(address.clone());
                }
                self.on_listening(address);
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_listening(address),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                self.relays.listener_closed(listener_id);
                if let Err(error) = reason {
                    tracing::warn!(%error, "Listener closed");
                }
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "Listener failed"),
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Messages(event) => self.on_message_event(event),
            BehaviourEvent::Jobs(event) => self.on_job_event(event),
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.on_gossip(propagation_source, message_id, message);
            }
            BehaviourEvent::Directory(event) => self.on_directory_event(event),
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                if let Some(peer) = PeerKey::of(&peer_id) {
                    self.on_identified(peer, connection_id, info);
                }
            }
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Autonat(autonat::Event::StatusChanged { new, .. }) => self.on_nat_status(&new),
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                ..
            }) => {
                tracing::info!(relay = %relay_peer_id, "Reachable through a relay");
            }
            BehaviourEvent::Dcutr(event) => match event.result {
                Ok(_) => self.counters.holes_punched += 1,
                Err(_) => self.counters.holes_failed += 1,
            },
            BehaviourEvent::Mdns(mdns::Event::Discovered(nodes)) => self.on_lan_nodes(nodes),
            BehaviourEvent::Mdns(mdns::Event::Expired(nodes)) => {
                for peer in nodes.iter().filter_map(|(peer, _)| PeerKey::of(peer)) {
                    self.lan.remove(&peer);
                }
            }
            _ => {}
        }
    }

    fn on_listening(&mut self, address: Multiaddr) {
        let own = self.own_address(address);
        self.events.push_back(NetEvent::Listening(own));
    }

    fn on_closed(&mut self, peer_id: &PeerId, connection: ConnectionId) {
        let Some(peer) = PeerKey::of(peer_id) else {
            return;
        };
        if self.peers.closed(peer, connection) {
            self.events.push_back(NetEvent::PeerDown(peer));
        }
        if !self.peers.is_connected(peer) {
            self.relays.gone(peer);
            self.fail_dial(peer, "it closed the connection before it said which network it is of");
        }
    }

    fn on_dial_error(&mut self, peer_id: Option<PeerId>, error: &DialError) {
        // Another dial to the same peer is under way and will have its own end.
        if matches!(error, DialError::DialPeerConditionFalse(_)) {
            return;
        }
        self.counters.dials_failed += 1;
        tracing::debug!(?peer_id, %error, "Dial failed");
        if let Some(peer) = peer_id.as_ref().and_then(PeerKey::of)
            && !self.peers.is_connected(peer)
        {
            self.fail_dial(peer, error);
        }
    }

    /// Tells that a peer is up, the first time it says or shows that it is of our network.
    fn admit(&mut self, peer: PeerKey) {
        if self.peers.admit(peer) {
            self.dialing.remove(&peer);
            self.events.push_back(NetEvent::PeerUp(peer));
        }
    }

    fn offend(&mut self, peer: PeerKey, kind: OffenceKind) {
        self.counters.offences += 1;
        self.events.push_back(NetEvent::Offence { peer, kind });
    }

    fn on_message_event(&mut self, event: MessageEvent) {
        match event {
            request_response::Event::Message {
                peer,
                connection_id,
                message: request_response::Message::Request { request, channel, .. },
            } => {
                let Some(peer) = PeerKey::of(&peer) else {
                    return;
                };
                // The last words of a run that ended, behind the first ones of the next: the two have met again since.
                if !self.peers.has_link(peer, connection_id) {
                    return;
                }
                let ack = self.on_request(peer, request);
                // An error says that the connection is gone.
                let _ = self.swarm.behaviour_mut().messages.send_response(channel, ack);
            }
            request_response::Event::Message {
                message: request_response::Message::Response { request_id, response },
                ..
            } => {
                let Some(sent) = self.outbox.remove(request_id) else { return };
                match response {
                    Ack::Taken => self.counters.messages_acknowledged += 1,
                    Ack::Refused => self.fail_send(sent.to, sent.tag, SendFailure::Refused),
                }
                self.send_waiting(sent.to);
            }
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                if let Some(sent) = self.outbox.remove(request_id) {
                    tracing::debug!(to = ?sent.to, %error, "Message failed");
                    let (to, reason) = (sent.to, failure_of(&error));
                    self.on_unacknowledged(sent, reason);
                    self.after_failure(to, reason);
                }
            }
            request_response::Event::InboundFailure { .. } | request_response::Event::ResponseSent { .. } => {
            }
        }
    }

    /// A message that went down with one connection goes again over another that was there when it was sent: a peer that
    /// crashed and came back has, until it says so, connections that nobody answers beside the one that lives. What was
    /// sent before it came back was for the run that ended, and what must not arrive twice is not risked.
    fn on_unacknowledged(&mut self, sent: Sent, reason: SendFailure) {
        let went_down = matches!(reason, SendFailure::Closed | SendFailure::Broken);
        let may_repeat = sent.repeat == Repeat::Yes && sent.lost < CONNECTIONS_PER_PEER_MAX;
        if went_down && may_repeat && self.peers.had_link(sent.to, sent.at) {
            return self.hand_over(Sent { lost: sent.lost + 1, ..sent });
        }
        self.fail_send(sent.to, sent.tag, reason);
    }

    /// What waits goes on, unless its peer is gone: then it was for the run that ended.
    fn after_failure(&mut self, to: PeerKey, reason: SendFailure) {
        let went_down = matches!(reason, SendFailure::Closed | SendFailure::Broken);
        let is_connected = self.peers.is_connected(to);
        for waiting in self.outbox.give_up(to) {
            if is_connected && (!went_down || self.peers.had_link(to, waiting.at)) {
                self.outbox.wait(waiting);
            } else {
                self.fail_send(waiting.to, waiting.tag, reason);
            }
        }
        self.send_waiting(to);
    }

    fn on_request(&mut self, from: PeerKey, request: Request) -> Ack {
        // Only who speaks our network's protocol gets here, perhaps before identify does.
        self.admit(from);
        let (message, body, room) = match request {
            Request::Whole { message, body, room } => (message, body, room),
            Request::Refused(kind) => {
                self.offend(from, kind);
                return Ack::Refused;
            }
            Request::NoRoom => return Ack::Refused,
        };
        let bytes = message.len() + body.len();
        if !self.peers.may_send(from, bytes, Instant::now()) {
            self.offend(from, OffenceKind::RateLimited);
            return Ack::Refused;
        }
        self.counters.messages_received += 1;
        self.counters.bytes_received += bytes as u64;
        self.events.push_back(NetEvent::Received { from, message, body });
        // From here on it is the driver's to bound.
        drop(room);
        Ack::Taken
    }

    fn on_job_event(&mut self, event: jobs::Event) {
        match event {
            jobs::Event::Opened { peer, stream, slot } => {
                if let Some(from) = PeerKey::of(&peer) {
                    self.admit(from);
                    self.counters.streams_accepted += 1;
                    self.events.push_back(NetEvent::Stream { from, stream: JobStream::new(stream, slot) });
                }
            }
            jobs::Event::Excess { peer } => {
                if let Some(peer) = PeerKey::of(&peer) {
                    self.offend(peer, OffenceKind::TooManyStreams);
                }
            }
        }
    }

    fn on_gossip(&mut self, source: PeerId, message_id: gossipsub::MessageId, message: gossipsub::Message) {
        let id = GossipId { message: message_id, source };
        let (Some(from), Some(topic)) =
            (PeerKey::of(&source), self.names.plain_topic(message.topic.as_str()))
        else {
            return self.judge(&id, super::Verdict::Reject);
        };
        let topic = topic.to_owned();
        if !self.peers.may_gossip(from, Instant::now()) {
            self.judge(&id, super::Verdict::Ignore);
            return self.offend(from, OffenceKind::RateLimited);
        }
        self.counters.gossip_received += 1;
        self.events.push_back(NetEvent::Gossip { id, from, topic, data: message.data });
    }

    fn on_directory_event(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                self.on_provider_record(record);
            }
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                match result {
                    QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders {
                        providers, ..
                    })) => {
                        self.on_found(id, &providers.iter().filter_map(PeerKey::of).collect());
                    }
                    QueryResult::GetClosestPeers(Ok(closest)) => self.on_closest(id, closest.peers),
                    _ => {}
                }
                if step.last {
                    self.on_query_end(id);
                }
            }
            _ => {}
        }
    }

    /// Keeps what a peer provides. libp2p has checked that it speaks for itself only.
    fn on_provider_record(&mut self, record: kad::ProviderRecord) {
        let Some(provider) = PeerKey::of(&record.provider) else {
            return;
        };
        if record.key.as_ref().len() != 32 {
            return self.offend(provider, OffenceKind::Malformed);
        }
        if !self.peers.may_store(provider, Instant::now()) {
            return self.offend(provider, OffenceKind::RateLimited);
        }
        if let Err(error) = self.swarm.behaviour_mut().directory.store_mut().add_provider(record) {
            tracing::debug!(%error, "Provider record not kept");
        }
    }

    /// Tells new providers, and dials the first: their addresses are known only while the query runs.
    fn on_found(&mut self, id: kad::QueryId, providers: &BTreeSet<PeerKey>) {
        let me = self.me();
        let Some(Query::Providers { key, told }) = self.queries.get_mut(&id) else {
            return;
        };
        let room = FOUND_DIALED_MAX.saturating_sub(told.len());
        let new: Vec<PeerKey> =
            providers.iter().copied().filter(|peer| *peer != me && told.insert(*peer)).collect();
        if new.is_empty() {
            return;
        }
        let found = NetEvent::Found { key: *key, peers: new.clone(), last: false };
        for peer in new.into_iter().take(room) {
            if !self.peers.is_connected(peer) {
                self.dial_quietly(peer, Vec::new());
            }
        }
        self.events.push_back(found);
    }

    fn on_closest(&mut self, id: kad::QueryId, closest: Vec<kad::PeerInfo>) {
        let Some(Query::Address(peer)) = self.queries.get(&id) else {
            return;
        };
        let (peer, peer_id) = (*peer, peer.peer_id());
        if let Some(found) = closest.into_iter().find(|info| info.peer_id == peer_id) {
            self.dial_quietly(peer, found.addrs);
        }
    }

    fn on_query_end(&mut self, id: kad::QueryId) {
        match self.queries.remove(&id) {
            Some(Query::Providers { key, .. }) => {
                self.events.push_back(NetEvent::Found { key, peers: Vec::new(), last: true });
            }
            Some(Query::Address(peer)) if !self.peers.is_connected(peer) => {
                self.dial_quietly(peer, Vec::new())
            }
            Some(Query::Address(_)) | None => {}
        }
    }

    /// Dials without a promise to tell how it went, except for a dial that was asked for before.
    fn dial_quietly(&mut self, peer: PeerKey, addresses: Vec<Multiaddr>) {
        let opts = DialOpts::peer_id(peer.peer_id())
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses.into_iter().take(ADDRESSES_PER_PEER_MAX).collect())
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(opts) {
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => self.fail_dial(peer, error),
        }
    }

    fn on_identified(&mut self, peer: PeerKey, connection: ConnectionId, info: identify::Info) {
        let agent = Agent::read(&info.agent_version);
        let domain = domain_of(&info.protocol_version);
        if domain != Some(self.names.domain) {
            return self.on_stranger(peer, agent.network, domain);
        }
        for earlier in self.peers.identified(peer, connection, agent) {
            tracing::debug!(?peer, "It was started anew: its earlier connection is dead");
            self.swarm.close_connection(earlier);
        }
        self.admit(peer);
        if info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
            self.relays.offered(peer);
        }
        if info.protocols.contains(&self.names.directory_protocol()) {
            self.enter_in_directory(peer, &info.listen_addrs);
        }
    }

    /// Lets a node of another network go. One that mDNS showed is told to the owner, who may want to join it.
    fn on_stranger(&mut self, peer: PeerKey, name: String, domain: Option<[u8; 32]>) {
        self.counters.strangers_disconnected += 1;
        if let (Some(addresses), Some(domain)) = (self.lan.get(&peer), domain) {
            let addresses = addresses.iter().cloned().collect();
            self.events.push_back(NetEvent::LanNetwork { peer, name, domain, addresses });
        }
        self.fail_dial(peer, "it is of another network");
        self.disconnect(peer);
    }

    fn enter_in_directory(&mut self, peer: PeerKey, listen: &[Multiaddr]) {
        let links: Vec<IpAddr> = self.peers.addresses(peer).into_iter().filter_map(ip_of).collect();
        let usable: Vec<Multiaddr> = listen
            .iter()
            .filter(|address| is_usable(address, &links))
            .take(ADDRESSES_PER_PEER_MAX)
            .cloned()
            .collect();
        let mut is_new = false;
        for address in usable {
            let update = self.swarm.behaviour_mut().directory.add_address(&peer.peer_id(), address);
            is_new |= matches!(update, kad::RoutingUpdate::Success);
        }
        if is_new && self.peers.admitted_count() <= BOOTSTRAP_PEERS && !self.provided.is_empty() {
            self.provide_again_at.get_or_insert(Instant::now() + PROVIDE_AGAIN_DELAY);
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        let Some(peer) = PeerKey::of(&event.peer) else {
            return;
        };
        let rtt = match event.result {
            Ok(rtt) => Some(rtt),
            Err(ping::Failure::Unsupported) => return,
            Err(ping::Failure::Timeout | ping::Failure::Other { .. }) => None,
        };
        if self.peers.pinged(peer, event.connection, rtt) {
            tracing::debug!(?peer, "Connection is dead");
            self.swarm.close_connection(event.connection);
        }
    }

    fn on_nat_status(&mut self, status: &autonat::NatStatus) {
        tracing::info!(?status, "Reachability from the internet");
        let is_private = matches!(status, autonat::NatStatus::Private);
        self.relays.set_wanted(is_private);
        // Whoever cannot be dialed must not be asked by strangers.
        let mode = if is_private { kad::Mode::Client } else { kad::Mode::Server };
        self.swarm.behaviour_mut().directory.set_mode(Some(mode));
    }

    /// Contacts nodes that mDNS showed, so that identify tells which network they are of.
    pub(super) fn on_lan_nodes(&mut self, nodes: Vec<(PeerId, Multiaddr)>) {
        let mut new = BTreeSet::new();
        for (peer, address) in nodes {
            let Some(peer) = PeerKey::of(&peer) else {
                continue;
            };
            if self.lan.len() >= LAN_NODES_MAX && !self.lan.contains_key(&peer) {
                continue;
            }
            let addresses = self.lan.entry(peer).or_default();
            if addresses.is_empty() {
                new.insert(peer);
            }
            if addresses.len() < ADDRESSES_PER_PEER_MAX {
                addresses.insert(address);
            }
        }
        for peer in new {
            let addresses = self.lan.get(&peer).map(|addresses| addresses.iter().cloned().collect());
            self.dial_quietly(peer, addresses.unwrap_or_default());
        }
    }

    pub(super) fn on_tick(&mut self) {
        let now = Instant::now();
        let ended: Vec<PeerKey> =
            self.bans.iter().filter(|(_, until)| **until <= now).map(|(p, _)| *p).collect();
        for peer in ended {
            self.unban(peer);
        }
        for peer in self.peers.unidentified(now) {
            self.counters.strangers_disconnected += 1;
            self.disconnect(peer);
        }
        for (peer, connection) in self.peers.replaced(now) {
            // A job stream may still run over it.
            if self.swarm.behaviour().jobs.streams_with(&peer) == 0 {
                self.swarm.close_connection(connection);
            }
        }
        self.peers.sweep(now);
        self.seek_relay();
        self.tend_directory(now);
    }

    fn seek_relay(&mut self) {
        let Some((relay, address)) =
            self.relays.next().and_then(|relay| Some((relay, self.peers.dialed_address(relay)?.clone())))
        else {
            return;
        };
        let address = address.with_p2p(relay.peer_id()).unwrap_or_else(|other| other);
        match self.swarm.listen_on(address.with(libp2p::core::multiaddr::Protocol::P2pCircuit)) {
            Ok(listener) => self.relays.held(relay, listener),
            Err(error) => {
                tracing::debug!(?relay, %error, "Relay not usable");
                self.relays.gone(relay);
            }
        }
    }

    fn tend_directory(&mut self, now: Instant) {
        if self.provide_again_at.is_some_and(|at| at <= now) {
            self.provide_again_at = None;
            for key in self.provided.clone() {
                self.provide(key);
            }
        }
        if self.bootstrap_at <= now {
            self.bootstrap_at = now + BOOTSTRAP_INTERVAL;
            if self.peers.admitted_count() < BOOTSTRAP_PEERS {
                // An error says that nobody is known yet.
                let _ = self.swarm.behaviour_mut().directory.bootstrap();
            }
        }
    }
}

/// Says whether we could dial a peer there: an address of a private network only while we share that network.
fn is_usable(address: &Multiaddr, links: &[IpAddr]) -> bool {
    match ip_of(address) {
        None => true,
        Some(ip) if ip.is_unspecified() => false,
        Some(ip) if ip.is_loopback() => links.iter().any(IpAddr::is_loopback),
        Some(ip) if is_public(&ip) => true,
        Some(_) => links.iter().any(|link| !is_public(link)),
    }
}

fn failure_of(error: &OutboundFailure) -> SendFailure {
    match error {
        OutboundFailure::DialFailure => SendFailure::Unreachable,
        OutboundFailure::Timeout => SendFailure::Timeout,
        OutboundFailure::ConnectionClosed => SendFailure::Closed,
        OutboundFailure::UnsupportedProtocols => SendFailure::Unsupported,
        OutboundFailure::Io(_) => SendFailure::Broken,
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn private_addresses_are_used_only_within_their_network() {
        let check = |address: &str, link: &str, usable: bool| {
            let links = [link.parse().unwrap()];
            assert_eq!(is_usable(&address.parse().unwrap(), &links), usable, "{address} over {link}");
        };

        check("/ip4/8.8.8.8/udp/1/quic-v1", "8.8.8.8", true);
        check("/ip4/192.168.1.2/tcp/1", "8.8.8.8", false);
        check("/ip4/192.168.1.2/tcp/1", "192.168.1.2", true);
        check("/ip4/127.0.0.1/tcp/1", "192.168.1.2", false);
        check("/ip4/127.0.0.1/tcp/1", "127.0.0.1", true);
        check("/ip4/0.0.0.0/tcp/1", "127.0.0.1", false);
        check("/dns4/example.org/tcp/1", "8.8.8.8", true);
    }
}
