//! Between the mesh and the core: messages are checked before they become inputs, and contacts are kept up.

use std::collections::BTreeMap;

use anyhow::Result;
use protocol::ids::{ModelId, NodeId};
use protocol::keys::Scheme;
use protocol::message::{MESSAGE_BYTES_MAX, Message, Wire};
use protocol::node::{Heard, Input};
use protocol::ticket::ADDRESSES_MAX;

use crate::identity::Identity;
use crate::net::{Direction, GossipId, Multiaddr, NetEvent, PeerInfo, PeerKey, Transport, Verdict};

use super::answers::clock_warning;
use super::offences::Offence;
use super::prompts::Sender;
use super::{Driver, stream};

/// First and longest pause between attempts to reach somebody.
const RETRY_MS: (u64, u64) = (500, 30_000);

/// Messages that may overtake a peer's greeting; the core keeps as many. More are not worth a signature check.
const EARLY_MAX: u32 = 8;

/// Messages before a greeting that are more than a race: who has forgotten that we were gone is reminded long before.
const UNGREETED_MAX: u32 = 256;

/// Addresses of its maker that a ticket holds at least.
const OWN_ADDRESSES_MIN: usize = 2;

/// Most LAN networks remembered.
const NEARBY_MAX: usize = 64;

/// Most peers whose messages before a greeting are counted; beyond, all are counted anew.
const EARLY_PEERS_MAX: usize = 1024;

/// With whom this node must stay in touch.
#[derive(Debug)]
pub(super) struct Contacts {
    issuers: Vec<(NodeId, Vec<Multiaddr>)>,
    /// When to try again, and the pause after that.
    retries: BTreeMap<NodeId, (u64, u64)>,
    /// Messages of connected peers before they greeted.
    early: BTreeMap<NodeId, u32>,
    /// Whether the owner was told that the clock is off.
    clock_off: bool,
    pub(super) nearby: Vec<Nearby>,
    pub(super) listening: Vec<Multiaddr>,
}

/// A home network seen on the LAN.
#[derive(Debug, Clone)]
pub(super) struct Nearby {
    pub(super) name: String,
    pub(super) domain: [u8; 32],
    pub(super) addresses: Vec<Multiaddr>,
}

impl Contacts {
    pub(super) fn new(identity: &Identity) -> Self {
        let addresses: Vec<Multiaddr> = identity.addresses.iter().filter_map(|a| a.parse().ok()).collect();
        let issuers = identity.manifest.issuers.iter().map(|issuer| {
            let own = addresses.iter().filter_map(|address| PeerKey(issuer.node.0).at(address.clone()));
            (issuer.node, own.collect())
        });
        Self {
            issuers: issuers.collect(),
            retries: BTreeMap::new(),
            early: BTreeMap::new(),
            clock_off: false,
            nearby: Vec::new(),
            listening: Vec::new(),
        }
    }
}

/// Name of the topic on which checkpoints and proofs against their signers are spread: every node listens to it.
pub(super) const BOOKS_TOPIC: &str = "checkpoints";

/// Returns the name of the topic on which a model's adverts are spread.
pub(super) fn topic(model: ModelId) -> String {
    format!("model/{model}")
}

/// Returns the directory's key for a model's name: whoever wants it knows only that.
pub(super) fn name_key(name: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sharemesh/v1/model-name\0").update(name.as_bytes());
    *hasher.finalize().as_bytes()
}

impl Driver {
    pub(super) fn on_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Received { from, message, body } => self.on_message(NodeId(from.0), &message, body),
            NetEvent::SendFailed { to, tag, reason } => {
                if let Some(job) = self.tags.remove(&tag) {
                    tracing::debug!(to = %NodeId(to.0), %job, %reason, "A message about a job did not arrive");
                    self.inputs.push_back(Input::SendFailed(NodeId(to.0), job));
                }
            }
            NetEvent::Gossip { id, from, data, .. } => self.on_gossip(NodeId(from.0), &id, &data),
            NetEvent::PeerUp(peer) => {
                self.mesh.retries.remove(&NodeId(peer.0));
                self.inputs.push_back(Input::PeerUp(NodeId(peer.0)));
            }
            NetEvent::PeerDown(peer) => {
                let peer = NodeId(peer.0);
                self.mesh.early.remove(&peer);
                self.prompts.forget_peer(peer);
                self.inputs.push_back(Input::PeerDown(peer));
            }
            NetEvent::DialFailed { peer, reason } => {
                tracing::debug!(peer = %NodeId(peer.0), %reason, "Cannot reach a peer");
            }
            NetEvent::Found { key, peers, .. } => {
                let nodes = peers.into_iter().map(|peer| NodeId(peer.0)).collect();
                self.inputs.push_back(Input::Found(ModelId(key), nodes));
            }
            NetEvent::Stream { from, stream } => {
                tokio::spawn(stream::greet(NodeId(from.0), stream, self.stream_sender.clone()));
            }
            NetEvent::LanNetwork { name, domain, addresses, .. } => self.on_nearby(name, domain, addresses),
            NetEvent::Listening(address) => {
                tracing::info!(%address, "Listening");
                self.mesh.listening.push(address);
            }
            NetEvent::Offence { peer, kind } => self.penalise(NodeId(peer.0), Offence::Transport(kind)),
        }
    }

    fn on_message(&mut self, from: NodeId, bytes: &[u8], body: bytes::Bytes) {
        let peer = self.node.peers().find(|peer| peer.node == from);
        let has_greeted = peer.is_some_and(|peer| peer.account.is_some());
        if has_greeted {
            self.mesh.early.remove(&from);
        } else if !introduces(bytes) && !self.let_early(from) {
            return;
        }
        let message = match Message::check(bytes, self.node.domain(), Scheme::Strict) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%from, %error, "Dropped a message");
                self.penalise(from, error.into());
                return;
            }
        };
        if let Message::Submit { job, spec, .. } = &message {
            let is_announced = spec.input.bytes == body.len() as u64
                && spec.input.digest == protocol::ids::Digest::of(&body);
            if !is_announced {
                self.penalise(from, Offence::WrongBody);
                return;
            }
            let is_member = peer.is_some_and(|peer| peer.admitted);
            let sender = if is_member { Sender::Member } else { Sender::Stranger };
            // Without its prompt a job fails as soon as it is taken, and its requester asks another.
            if !self.serving.contains_key(job)
                && !self.prompts.keep(from, *job, body, sender, self.clock.now_ms())
            {
                tracing::debug!(%from, %job, "No room for a prompt");
            }
        }
        tracing::trace!(%from, message = message.name(), "Received");
        self.inputs.push_back(Input::Received(from, message));
    }

    /// Says whether a message that overtook its peer's greeting is worth looking at.
    fn let_early(&mut self, from: NodeId) -> bool {
        if self.mesh.early.len() >= EARLY_PEERS_MAX {
            self.mesh.early.clear();
        }
        let count = self.mesh.early.entry(from).or_default();
        *count += 1;
        let count = *count;
        if count > UNGREETED_MAX {
            self.mesh.early.remove(&from);
            self.penalise(from, Offence::NoGreeting);
        }
        count <= EARLY_MAX
    }

    /// Passes on what holds, and nothing else; what no honest node passes on is held against whoever did.
    fn on_gossip(&mut self, from: NodeId, id: &GossipId, data: &[u8]) {
        let heard = match Message::check(data, self.node.domain(), Scheme::Strict) {
            Ok(Message::Advert(advert)) => match self.node.hears(&advert, self.now()) {
                Heard::News => Ok(Some(advert)),
                Heard::Ignored => Ok(None),
                Heard::Refused(offence) => Err(offence.into()),
            },
            Ok(Message::Books(message)) => {
                let passes_on = self.node.passes_on(&message, self.now());
                self.net.judge(id, if passes_on { Verdict::Accept } else { Verdict::Ignore });
                // What is not passed on may still contradict what is known.
                self.inputs.push_back(Input::Spread(message));
                return;
            }
            Ok(_) => Err(Offence::Undecodable),
            Err(error) => Err(error.into()),
        };
        match heard {
            Ok(Some(advert)) => {
                self.net.judge(id, Verdict::Accept);
                self.inputs.push_back(Input::Heard(advert));
            }
            Ok(None) => self.net.judge(id, Verdict::Ignore),
            Err(offence) => {
                self.net.judge(id, Verdict::Reject);
                self.penalise(from, offence);
            }
        }
    }

    fn on_nearby(&mut self, name: String, domain: [u8; 32], addresses: Vec<Multiaddr>) {
        self.mesh.nearby.retain(|nearby| nearby.domain != domain);
        if self.mesh.nearby.len() < NEARBY_MAX {
            tracing::info!(%name, "A home network is on this LAN: ask its owner for a ticket to join it");
            self.mesh.nearby.push(Nearby { name, domain, addresses });
        }
    }

    /// Says in the directory that this node serves a model, by its id and by its name.
    pub(super) fn provide(&mut self, model: ModelId) {
        self.net.provide(model.0);
        let name = self.models.iter().find(|(_, served)| served.id == Some(model)).map(|(name, _)| name);
        if let Some(name) = name {
            self.net.provide(name_key(name));
        }
    }

    /// Dials the issuers, and those whom this node pays, until they are connected.
    pub(super) fn keep_contacts(&mut self) {
        let connected: Vec<NodeId> = self.node.peers().map(|peer| peer.node).collect();
        let away = |node: &NodeId| !connected.contains(node) && *node != self.node.id();
        let partners = self.node.payees().into_iter().map(|payee| (payee, Vec::new()));
        let wanted: Vec<_> =
            self.mesh.issuers.iter().cloned().chain(partners).filter(|(node, _)| away(node)).collect();
        let now = self.clock.now_ms();
        for (node, addresses) in wanted {
            let (at, pause) = self.mesh.retries.get(&node).copied().unwrap_or((0, RETRY_MS.0));
            if at <= now {
                self.mesh.retries.insert(node, (now + pause, (pause * 2).min(RETRY_MS.1)));
                self.net.dial(PeerKey(node.0), addresses);
            }
        }
    }

    /// Tells the owner when the clock is off, and when it is right again.
    pub(super) fn watch_clock(&mut self) {
        let off = self.node.clock_off_ms();
        if std::mem::replace(&mut self.mesh.clock_off, off.is_some()) == off.is_some() {
            return;
        }
        match off {
            Some(ms) => tracing::warn!("{}", clock_warning(ms)),
            None => tracing::info!("This machine's clock is right again"),
        }
    }

    /// Returns where the other issuers are reached, as far as that is known.
    pub(super) fn addresses_of_issuers(&self) -> Vec<Vec<String>> {
        // An accepted TCP connection comes from a port at which nobody listens.
        let is_dialable =
            |info: &PeerInfo| info.direction == Direction::Dialed || info.transport == Transport::Quic;
        let connected: Vec<PeerInfo> = self.net.peers().into_iter().filter(is_dialable).collect();
        let others = self.mesh.issuers.iter().filter(|(node, _)| *node != self.node.id());
        let known = others.map(|(node, told)| {
            let key = PeerKey(node.0);
            let links = connected.iter().filter(|info| info.peer == key).flat_map(|info| &info.addresses);
            let all = told.iter().chain(links).filter_map(|address| key.at(address.clone()));
            all.map(|address| address.to_string()).collect()
        });
        known.collect()
    }

    /// Returns where other nodes find this one.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.net.listening().iter().map(ToString::to_string).collect()
    }
}

/// Says whether a message is one with which an acquaintance begins; nothing in it is checked.
fn introduces(bytes: &[u8]) -> bool {
    let message = protocol::encoding::decode::<Message<Wire>>(bytes, MESSAGE_BYTES_MAX);
    // What is no message is dealt with where it is checked: no signature is looked at before it is read.
    message.map_or(true, |message| {
        matches!(
            message,
            Message::Hello { .. } | Message::Join { .. } | Message::Joined { .. } | Message::JoinRefused(_)
        )
    })
}

/// Returns the addresses for a ticket: this node's own, and as far as there is room one of each other issuer.
pub(super) fn ticket_addresses(own: Vec<String>, others: Vec<Vec<String>>) -> Result<Vec<String>> {
    anyhow::ensure!(!own.is_empty(), "this node listens nowhere yet: try again in a moment");
    let mut addresses = far_first(own);
    let others = others.into_iter().filter_map(|other| far_first(other).into_iter().next());
    let others: Vec<String> = others.take(ADDRESSES_MAX - OWN_ADDRESSES_MIN).collect();
    addresses.truncate(ADDRESSES_MAX - others.len());
    addresses.extend(others);
    Ok(addresses)
}

/// Addresses that only this machine can reach come last: a ticket holds few.
fn far_first(mut addresses: Vec<String>) -> Vec<String> {
    addresses.sort_by_key(|address| address.contains("/127.") || address.contains("/::1/"));
    addresses
}

#[cfg(test)]
mod tests {
    use protocol::ids::JobId;

    use super::*;

    #[test]
    fn a_ticket_leads_to_its_maker_and_to_the_other_issuers() {
        let own = || {
            ["/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/udp/1/quic-v1"]
                .map(str::to_owned)
        };
        let other = |number: u8| {
            Vec::from([format!("/ip4/192.0.2.{number}/tcp/1"), "/ip4/127.0.0.1/tcp/2".to_owned()])
        };

        let alone = ticket_addresses(own().to_vec(), Vec::new()).unwrap();
        assert_eq!(alone.last().unwrap(), "/ip4/127.0.0.1/tcp/1");
        let many = ticket_addresses(own().to_vec(), (2..17).map(other).collect()).unwrap();
        assert_eq!(many.len(), ADDRESSES_MAX);
        assert_eq!(many[..3], [&own()[1..], &[other(2)[0].clone()]].concat());
        assert!(ticket_addresses(Vec::new(), vec![other(2)]).is_err());
    }

    #[test]
    fn an_acquaintance_begins_with_a_greeting_or_a_ticket() {
        let check = |message: Message<Wire>| introduces(&message.to_bytes());

        assert!(check(Message::Join { secret: [1; 16] }));
        assert!(!check(Message::AccountQuery));
        assert!(!check(Message::Cancel { job: JobId([1; 16]) }));
        assert!(introduces(b"no message"));
    }
}
