//! What libp2p does around the nodes where a scenario has it: a directory by Kademlia, gossip by gossipsub, identify and
//! ping, connections that end when nobody uses them, and peers that are shut out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use protocol::advert::Advert;
use protocol::books::BooksMessage;
use protocol::ids::ModelId;
use protocol::message::Checked;
use protocol::node::{Heard as Believed, Input};
use protocol::prng::Prng;
use protocol::signed::Verified;
use protocol::time::Time;

use crate::network::Network;
use crate::network::directory::{Directory, Key};
use crate::network::gossip::{Around, Gossip, Heard, Topic, Verdict};
use crate::network::wire::{self, Kind, Traffic};

use super::{Host, What, World};

/// Time between two heartbeats of gossip.
const BEAT_MS: u64 = 1_000;

/// Every so many heartbeats connections are pinged, and looked at whether anybody uses them.
const BEATS_PER_PING: u64 = 10;

/// Pings between two words of identify on a connection.
const PINGS_PER_IDENTIFY: usize = 30;

/// How long a connection lasts that nobody uses.
const IDLE_MS: u64 = 300_000;

/// Connections of a node, and how many of them others may have made. Issuers take as many as come: their owner says so.
const CONNECTIONS_MAX: usize = 256;
const ACCEPTED_MAX: usize = CONNECTIONS_MAX * 3 / 4;

/// Time after the last new peer until whoever knows few looks around.
const LOOK_AROUND_MS: u64 = 500;

/// Time between two looks around of whoever still knows few.
const LOOK_AGAIN_MS: u64 = 15 * 60_000;

/// Whoever knows as many others does not look for more.
const ENOUGH: usize = 20;

/// Time until what is provided is entered again when new peers came, and between two entries otherwise.
const PROVIDE_AGAIN_MS: u64 = 10_000;
const REPUBLISH_MS: u64 = 30 * 60_000;

/// Offences within [`REMEMBERED_MS`] for which a peer is shut out for [`SHUT_OUT_MS`].
const OFFENCES_MAX: usize = 5;
const REMEMBERED_MS: u64 = 10 * 60_000;
const SHUT_OUT_MS: u64 = 60 * 60_000;

/// Gossip that a neighbour may pass on: a second, and at once.
const GOSSIP_PER_S: u64 = 100;
const GOSSIP_AT_ONCE: u64 = 1_000;

/// What is gossiped.
#[derive(Debug, Clone)]
pub(super) enum Gossiped {
    Advert(Rc<Verified<Advert>>),
    /// An advert whose signature does not hold.
    Forged,
    Books(Rc<(Vec<u8>, BooksMessage<Checked>)>),
}

/// The mesh of all hosts.
#[derive(Debug)]
pub(super) struct Mesh {
    directory: Directory,
    gossip: Gossip<Gossiped>,
    /// When whoever knows few looks around, and whether it is doing so.
    looks: Vec<(Option<Time>, bool)>,
    /// Who will enter again what it provides.
    provides_again: BTreeSet<usize>,
    offences: BTreeMap<(usize, usize), VecDeque<Time>>,
    shut_out: BTreeMap<(usize, usize), Time>,
    /// What a neighbour may still pass on to a host, in thousandths, and since when.
    allowed: BTreeMap<(usize, usize), (u64, Time)>,
    beats: u64,
    prng: Prng,
}

impl Mesh {
    fn new(prng: &mut Prng) -> Self {
        Self {
            directory: Directory::default(),
            gossip: Gossip::new(prng.child()),
            looks: Vec::new(),
            provides_again: BTreeSet::new(),
            offences: BTreeMap::new(),
            shut_out: BTreeMap::new(),
            allowed: BTreeMap::new(),
            beats: 0,
            prng: prng.child(),
        }
    }
}

/// What surrounds gossip while it spreads.
struct Ground<'a> {
    hosts: &'a [Host],
    network: &'a mut Network,
    traffic: &'a mut [Traffic],
    allowed: &'a mut BTreeMap<(usize, usize), (u64, Time)>,
    now: Time,
    /// Who passed on more than it may, to whom.
    excess: Vec<(usize, usize)>,
}

impl Around<Gossiped> for Ground<'_> {
    fn delay(&mut self, from: usize, to: usize) -> u64 {
        // What is lost on its way is sent again by QUIC.
        let first = self.network.carry(from, to);
        first.unwrap_or_else(|| 3 * self.network.delay(from, to))
    }

    fn judge(&mut self, host: usize, from: usize, payload: &Gossiped) -> Verdict {
        let here = &self.hosts[host];
        let Some(node) = &here.node else { return Verdict::Ignore };
        let allowed = self.allowed.entry((host, from)).or_insert((GOSSIP_AT_ONCE * 1000, self.now));
        let refilled = allowed.0 + self.now.since_ms(allowed.1) * GOSSIP_PER_S;
        *allowed = (refilled.min(GOSSIP_AT_ONCE * 1000), self.now);
        if allowed.0 < 1000 {
            self.excess.push((host, from));
            return Verdict::Ignore;
        }
        allowed.0 -= 1000;
        let clock = Time(self.now.0.saturating_add_signed(here.clock_ms));
        match payload {
            Gossiped::Advert(advert) => match node.hears(advert, clock) {
                Believed::News => Verdict::Accept,
                Believed::Ignored => Verdict::Ignore,
                Believed::Refused(_) => Verdict::Reject,
            },
            Gossiped::Forged => Verdict::Reject,
            Gossiped::Books(books) if node.passes_on(&books.1, clock) => Verdict::Accept,
            Gossiped::Books(_) => Verdict::Keep,
        }
    }

    fn partners(&self, host: usize) -> Vec<usize> {
        self.network.partners(host)
    }

    fn traffic(&mut self, host: usize) -> &mut Traffic {
        &mut self.traffic[host]
    }
}

impl World {
    /// Has hosts that come from now on meet as libp2p has them meet.
    pub fn has_mesh(&mut self, prng: &mut Prng) {
        self.mesh = Some(Box::new(Mesh::new(prng)));
        self.schedule(0, BEAT_MS, What::Beat);
    }

    /// Lets gossip do something on the ground of this world; whoever passed on too much is held to it.
    fn with_gossip<T>(&mut self, act: impl FnOnce(&mut Gossip<Gossiped>, &mut Ground<'_>) -> T) -> Option<T> {
        let mut mesh = self.mesh.take()?;
        let mut ground = Ground {
            hosts: &self.hosts,
            network: &mut self.network,
            traffic: &mut self.traffic,
            allowed: &mut mesh.allowed,
            now: self.now,
            excess: Vec::new(),
        };
        let result = act(&mut mesh.gossip, &mut ground);
        let excess = ground.excess;
        self.mesh = Some(mesh);
        for (host, peer) in excess {
            self.offends(host, peer);
        }
        Some(result)
    }

    pub(super) fn listens(&mut self, host: usize, topic: Topic) {
        self.with_gossip(|gossip, ground| gossip.join(topic, host, ground));
    }

    /// Makes room for a new host.
    pub(super) fn meets(&mut self, host: usize) {
        let name = self.hosts[host].id;
        if let Some(mesh) = &mut self.mesh {
            mesh.directory.add(&name.0);
            mesh.looks.push((None, false));
        }
    }

    /// A host has died: what it knew of the others is gone.
    pub(super) fn forgets(&mut self, host: usize) {
        if let Some(mesh) = &mut self.mesh {
            mesh.directory.forget(host);
            mesh.gossip.leave(host);
            mesh.looks[host] = (None, false);
            mesh.provides_again.remove(&host);
        }
    }

    /// Says whether one host may have a connection to another as far as their limits and their memory go.
    pub(super) fn admits(&self, host: usize, peer: usize) -> bool {
        let Some(mesh) = &self.mesh else { return true };
        let issuers = self.issuers();
        let room = |one: usize, most: usize| one < issuers || self.network.degree(one) < most;
        let at_odds = |pair: &(usize, usize)| mesh.shut_out.get(pair).is_some_and(|until| *until > self.now);
        let fits = room(host, CONNECTIONS_MAX) && room(peer, ACCEPTED_MAX);
        fits && !at_odds(&(host, peer)) && !at_odds(&(peer, host))
    }

    /// Two hosts are connected: they say who they are, and enter each other in their directories.
    pub(super) fn links(&mut self, one: usize, other: usize) {
        if self.mesh.is_none() {
            return;
        }
        self.network.touch(one, other, self.now);
        self.with_gossip(|gossip, ground| gossip.link(one, other, ground));
        for (host, peer) in [(one, other), (other, one)] {
            self.traffic[host].add(Kind::Upkeep, wire::IDENTIFIED);
            let network = &self.network;
            let Some(mesh) = &mut self.mesh else { return };
            let is_connected = |entry: usize| network.link(host, entry).is_some();
            if !mesh.directory.enter(host, peer, is_connected) {
                continue;
            }
            if mesh.directory.known(host) < ENOUGH {
                mesh.looks[host].0 = Some(self.now.plus_ms(LOOK_AROUND_MS));
                self.in_incarnation(host, LOOK_AROUND_MS, What::LookAround);
            }
            self.enters_again(host);
        }
    }

    /// What a host provides is entered again for new peers, while there are few.
    fn enters_again(&mut self, host: usize) {
        let few = self.network.degree(host) <= ENOUGH;
        let Some(mesh) = self.mesh.as_mut().filter(|_| few) else { return };
        if !mesh.directory.provided(host).is_empty() && mesh.provides_again.insert(host) {
            self.in_incarnation(host, PROVIDE_AGAIN_MS, |incarnation| What::ProvideAgain(incarnation, false));
        }
    }

    fn in_incarnation(&mut self, host: usize, ms: u64, what: impl FnOnce(u32) -> What) {
        let incarnation = self.hosts[host].incarnation;
        self.schedule(host, ms, what(incarnation));
    }

    pub(super) fn unlinks(&mut self, one: usize, other: usize) {
        if let Some(mesh) = &mut self.mesh {
            mesh.gossip.unlink(one, other);
        }
    }

    /// A second has passed: meshes are tended; now and then connections are pinged and unused ones closed.
    pub(super) fn beat(&mut self) {
        self.schedule(0, BEAT_MS, What::Beat);
        let now = self.now;
        let late = self.with_gossip(|gossip, ground| gossip.beat(now, ground)).unwrap_or_default();
        for (heard, payload) in late {
            self.hears_of(heard, &payload);
        }
        let Some(mesh) = &mut self.mesh else { return };
        mesh.beats += 1;
        let (beats, at_ping) = (mesh.beats, mesh.beats.is_multiple_of(BEATS_PER_PING));
        if at_ping {
            self.ping();
            self.close_idle();
        }
        if (beats * BEAT_MS).is_multiple_of(LOOK_AGAIN_MS) {
            self.look_again();
        }
    }

    fn ping(&mut self) {
        for host in 0..self.hosts.len() {
            let degree = self.network.degree(host);
            self.traffic[host].add_many(Kind::Upkeep, degree, wire::PINGS);
            // Each connection says again what it said at first, five minutes later: a part of them each time.
            let again = degree * wire::IDENTIFIED / PINGS_PER_IDENTIFY;
            self.traffic[host].add_many(Kind::Upkeep, 1, again);
        }
    }

    fn close_idle(&mut self) {
        let now = self.now;
        for ((_, provider), stream) in &self.streams {
            self.network.touch(*provider, stream.requester, now);
        }
        let Some(mesh) = &mut self.mesh else { return };
        mesh.shut_out.retain(|_, until| *until > now);
        mesh.allowed.retain(|_, (_, at)| now.since_ms(*at) < IDLE_MS);
        let idle = self.network.idle(IDLE_MS, now);
        let unused: Vec<_> =
            idle.into_iter().filter(|(one, other)| !mesh.gossip.are_neighbours(*one, *other)).collect();
        for (one, other) in unused {
            self.closes(one, other);
        }
    }

    /// Ends a connection in good order: both know at once.
    fn closes(&mut self, one: usize, other: usize) {
        let Some(link) = self.network.cut(one, other) else { return };
        self.unlinks(one, other);
        self.down(one, other, link);
        self.down(other, one, link);
    }

    fn look_again(&mut self) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].node.is_some() && self.network.degree(host) < ENOUGH {
                let now = self.now;
                self.mesh.iter_mut().for_each(|mesh| mesh.looks[host].0 = Some(now));
                self.in_incarnation(host, 0, What::LookAround);
            }
        }
    }

    /// Whoever knows few looks for its own neighbours, then for somebody in every part of the directory.
    pub(super) fn look_around(&mut self, host: usize) {
        let now = self.now;
        let Some(mesh) = &mut self.mesh else { return };
        let looks = &mut mesh.looks[host];
        if looks.0 != Some(now) || looks.1 {
            return;
        }
        *looks = (None, true);
        let own = mesh.directory.key(host);
        let (_, ms) = self.walk(host, own, None);
        let Some(mesh) = &mut self.mesh else { return };
        let prng = &mut mesh.prng;
        let keys = mesh.directory.refreshed(host, || prng.next_u64());
        self.in_incarnation(host, ms, |incarnation| What::Refresh(incarnation, keys));
    }

    pub(super) fn refresh(&mut self, host: usize, mut keys: Vec<Key>) {
        let Some(key) = keys.pop() else {
            let Some(mesh) = &mut self.mesh else { return };
            mesh.looks[host].1 = false;
            if mesh.looks[host].0.is_some() {
                mesh.looks[host].0 = Some(self.now.plus_ms(LOOK_AROUND_MS));
                self.in_incarnation(host, LOOK_AROUND_MS, What::LookAround);
            }
            return;
        };
        let (_, ms) = self.walk(host, key, None);
        self.in_incarnation(host, ms.max(1), |incarnation| What::Refresh(incarnation, keys));
    }

    /// Walks towards a key, asking for who provides `model` if that is what is sought; returns the nearest that answer,
    /// and how long it took. It is walked at once, and its time added up.
    fn walk(&mut self, host: usize, key: Key, model: Option<ModelId>) -> (Vec<usize>, u64) {
        let Some(mesh) = self.mesh.take() else { return (Vec::new(), 0) };
        let mut walk = mesh.directory.walk(host, key);
        let mut told = BTreeSet::from([host]);
        loop {
            let steps = walk.ask();
            if steps.is_empty() {
                break;
            }
            for step in steps {
                let Some(ms) = self.asks(&mesh, host, step.peer, step.after_ms) else {
                    mesh.directory.answered(&mut walk, step, None);
                    continue;
                };
                let (closer, providers) = self.answers(&mesh, host, step.peer, key, model);
                walk.took(step, ms);
                mesh.directory.answered(&mut walk, step, Some(&closer));
                let new: Vec<_> = providers.into_iter().filter(|provider| told.insert(*provider)).collect();
                self.finds(host, step.after_ms + ms, model.filter(|_| !new.is_empty()), &new);
            }
        }
        let nearest = mesh.directory.nearest_of(walk.answering(), key);
        self.mesh = Some(mesh);
        (nearest, walk.ms())
    }

    /// Returns how long it takes to ask a node something, if it can be asked: the two are connected by then.
    fn asks(&mut self, mesh: &Mesh, host: usize, peer: usize, after_ms: u64) -> Option<u64> {
        let is_linked = self.network.link(host, peer).is_some();
        let at_odds = |pair: (usize, usize)| mesh.shut_out.get(&pair).is_some_and(|until| *until > self.now);
        let is_there = self.hosts[peer].node.is_some() && self.network.reaches(host, peer);
        let room = |one: usize, most| one < self.issuers() || self.network.degree(one) < most;
        let admitted = is_linked || (room(host, CONNECTIONS_MAX) && room(peer, ACCEPTED_MAX));
        if !is_there || !admitted || at_odds((host, peer)) || at_odds((peer, host)) {
            return None;
        }
        let way = self.network.delay(host, peer) + self.network.delay(peer, host);
        if is_linked {
            self.network.touch(host, peer, self.now);
            return Some(way);
        }
        self.schedule(host, after_ms + way, What::Dialled(peer));
        Some(2 * way)
    }

    /// Returns whom a node names: those nearest to a key, and those that provide it.
    fn answers(
        &mut self,
        mesh: &Mesh,
        host: usize,
        peer: usize,
        key: Key,
        model: Option<ModelId>,
    ) -> (Vec<usize>, Vec<usize>) {
        let (closer, providers) = if self.hosts[peer].misleads {
            let others = (0..self.hosts.len()).filter(|other| self.hosts[*other].misleads);
            let nearest = mesh.directory.nearest_of(others.collect(), key);
            (nearest.clone(), nearest)
        } else {
            (mesh.directory.nearest(peer, key, host), mesh.directory.providers(peer, key, self.now))
        };
        let providers = if model.is_some() { providers } else { Vec::new() };
        self.traffic[host].add(Kind::Directory, wire::QUESTION);
        self.traffic[peer].add(Kind::Directory, wire::answer(closer.len() + providers.len()));
        (closer, providers)
    }

    fn finds(&mut self, host: usize, ms: u64, model: Option<ModelId>, providers: &[usize]) {
        let Some(model) = model else { return };
        let nodes = providers.iter().map(|provider| self.hosts[*provider].id).collect();
        self.input_in(ms, host, Input::Found(model, nodes));
    }

    pub(super) fn walk_to_providers(&mut self, host: usize, model: ModelId) {
        let key = Directory::key_of(&model.0);
        self.walk(host, key, Some(model));
    }

    /// Enters a host as a provider of a model, by its id and by its name, with those that are nearest to each.
    pub(super) fn provide(&mut self, host: usize, model: ModelId) {
        for key in [Directory::key_of(&model.0), Directory::key_of(&[&model.0[..], b"name"].concat())] {
            let first = self.mesh.as_mut().is_some_and(|mesh| mesh.directory.provides(host, key));
            if first {
                self.in_incarnation(host, REPUBLISH_MS, |incarnation| What::ProvideAgain(incarnation, true));
            }
            self.enter(host, key);
        }
    }

    pub(super) fn provide_again(&mut self, host: usize, repeats: bool) {
        let Some(mesh) = &mut self.mesh else { return };
        mesh.provides_again.remove(&host);
        for key in mesh.directory.provided(host) {
            self.enter(host, key);
        }
        if repeats {
            self.in_incarnation(host, REPUBLISH_MS, |incarnation| What::ProvideAgain(incarnation, true));
        }
    }

    fn enter(&mut self, host: usize, key: Key) {
        let (nearest, _) = self.walk(host, key, None);
        let Some(mesh) = &mut self.mesh else { return };
        mesh.directory.keep(host, key, host, self.now);
        for keeper in nearest {
            self.traffic[host].add(Kind::Directory, wire::RECORD);
            mesh.directory.keep(keeper, key, host, self.now);
        }
    }

    /// Publishes something; whoever hears it takes it when it arrives.
    pub(super) fn gossips(&mut self, from: usize, topic: Topic, payload: &Gossiped, bytes: usize) {
        let now = self.now;
        let heard = self
            .with_gossip(|gossip, ground| gossip.publish(from, topic, (payload.clone(), bytes), now, ground));
        for heard in heard.unwrap_or_default() {
            self.hears_of(heard, payload);
        }
    }

    fn hears_of(&mut self, heard: Heard, payload: &Gossiped) {
        match (heard.verdict, payload) {
            (Verdict::Reject, _) => self.offends(heard.host, heard.from),
            (Verdict::Ignore, _) | (_, Gossiped::Forged) => {}
            (Verdict::Accept | Verdict::Keep, Gossiped::Advert(advert)) => {
                self.schedule(heard.host, heard.ms, What::Gossip(Rc::clone(advert)));
            }
            (Verdict::Accept | Verdict::Keep, Gossiped::Books(books)) => {
                self.schedule(heard.host, heard.ms, What::Spread(books.0.clone()));
            }
        }
    }

    /// Counts that a peer broke a rule, and shuts it out when it does so again and again.
    pub(super) fn offends(&mut self, host: usize, peer: usize) {
        let now = self.now;
        let Some(mesh) = &mut self.mesh else { return };
        let times = mesh.offences.entry((host, peer)).or_default();
        times.retain(|at| now.since_ms(*at) < REMEMBERED_MS);
        times.push_back(now);
        if times.len() >= OFFENCES_MAX {
            times.clear();
            mesh.shut_out.insert((host, peer), now.plus_ms(SHUT_OUT_MS));
            self.closes(host, peer);
        }
    }
}
