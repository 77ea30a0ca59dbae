//! The network between hosts: who is connected, how long a message takes, which ones are lost.

pub mod directory;
pub mod gossip;
mod regions;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};

use protocol::prng::Prng;
use protocol::time::Time;

pub use regions::Region;

/// How the network treats messages.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    /// Shortest way of a message in milliseconds.
    pub latency_ms: u64,
    /// Largest addition to it; every message draws its own, so messages overtake each other.
    pub jitter_ms: u64,
    /// Messages lost, of 1,000.
    pub loss_permille: u64,
    /// Messages that arrive twice, of 1,000.
    pub duplicate_permille: u64,
}

impl Conditions {
    /// A network without faults.
    pub const CALM: Self = Self { latency_ms: 5, jitter_ms: 20, loss_permille: 0, duplicate_permille: 0 };
}

/// Connections between hosts, each with a number of its own.
#[derive(Debug)]
pub struct Network {
    /// How messages are treated now.
    pub conditions: Conditions,
    /// Milliseconds that every message from or to a host takes longer.
    pub slow_ms: BTreeMap<usize, u64>,
    /// Where hosts are, by place.
    regions: Vec<Option<Region>>,
    links: BTreeMap<(usize, usize), Link>,
    /// The partners of each host, by place.
    partners: Vec<BTreeSet<usize>>,
    /// Those that reach only each other.
    apart: BTreeSet<usize>,
    last: u64,
    prng: Prng,
}

/// A connection.
#[derive(Debug, Clone, Copy)]
struct Link {
    number: u64,
    /// When it last carried anything.
    used: Time,
}

const fn pair(a: usize, b: usize) -> (usize, usize) {
    if a < b { (a, b) } else { (b, a) }
}

impl Network {
    /// Returns a network without connections.
    #[must_use]
    pub const fn new(conditions: Conditions, prng: Prng) -> Self {
        Self {
            conditions,
            slow_ms: BTreeMap::new(),
            regions: Vec::new(),
            links: BTreeMap::new(),
            partners: Vec::new(),
            apart: BTreeSet::new(),
            last: 0,
            prng,
        }
    }

    /// Says where a host is.
    pub fn place(&mut self, host: usize, region: Option<Region>) {
        if self.regions.len() <= host {
            self.regions.resize(host + 1, None);
        }
        self.regions[host] = region;
    }

    /// Returns where a host is, if anything was said of it.
    #[must_use]
    pub fn region(&self, host: usize) -> Option<Region> {
        self.regions.get(host).copied().flatten()
    }

    /// Returns the connection between two hosts.
    #[must_use]
    pub fn link(&self, a: usize, b: usize) -> Option<u64> {
        self.links.get(&pair(a, b)).map(|link| link.number)
    }

    /// Connects two hosts; `None` when they are connected already or are kept apart.
    pub fn connect(&mut self, a: usize, b: usize) -> Option<u64> {
        if a == b || self.link(a, b).is_some() || !self.reaches(a, b) {
            return None;
        }
        self.last += 1;
        self.links.insert(pair(a, b), Link { number: self.last, used: Time(0) });
        self.partners.resize_with(self.partners.len().max(a.max(b) + 1), BTreeSet::new);
        self.partners[a].insert(b);
        self.partners[b].insert(a);
        Some(self.last)
    }

    /// Lets nobody else connect to `some`, nor them to anybody else.
    pub fn part(&mut self, some: &[usize]) {
        self.apart = some.iter().copied().collect();
    }

    /// Takes the connection of two hosts away.
    pub fn cut(&mut self, a: usize, b: usize) -> Option<u64> {
        let link = self.links.remove(&pair(a, b))?.number;
        self.partners[a].remove(&b);
        self.partners[b].remove(&a);
        Some(link)
    }

    /// Returns the hosts connected to `host`.
    #[must_use]
    pub fn partners(&self, host: usize) -> Vec<usize> {
        self.partners.get(host).into_iter().flatten().copied().collect()
    }

    /// Returns how many hosts `host` is connected with.
    #[must_use]
    pub fn degree(&self, host: usize) -> usize {
        self.partners.get(host).map_or(0, BTreeSet::len)
    }

    /// Says whether two hosts could be connected as far as partitions go.
    #[must_use]
    pub fn reaches(&self, a: usize, b: usize) -> bool {
        self.apart.contains(&a) == self.apart.contains(&b)
    }

    /// Notes that a connection carries something.
    pub fn touch(&mut self, a: usize, b: usize, now: Time) {
        if let Some(link) = self.links.get_mut(&pair(a, b)) {
            link.used = now;
        }
    }

    /// Returns the connections that have carried nothing for so long.
    #[must_use]
    pub fn idle(&self, ms: u64, now: Time) -> Vec<(usize, usize)> {
        let idle = self.links.iter().filter(|(_, link)| now.since_ms(link.used) > ms);
        idle.map(|(pair, _)| *pair).collect()
    }

    /// Returns how long a message from one host to another takes, or `None` when it is lost.
    pub fn carry(&mut self, from: usize, to: usize) -> Option<u64> {
        let lost = self.prng.below(1000) < self.conditions.loss_permille;
        let delay = self.delay(from, to);
        (!lost).then_some(delay)
    }

    /// Says whether a message arrives a second time.
    pub fn duplicates(&mut self) -> bool {
        let permille = self.conditions.duplicate_permille;
        permille > 0 && self.prng.below(1000) < permille
    }

    /// Returns how long something from one host to another takes that is not lost.
    pub fn delay(&mut self, from: usize, to: usize) -> u64 {
        let slow: u64 = [from, to].iter().filter_map(|host| self.slow_ms.get(host)).sum();
        let far = match (self.region(from), self.region(to)) {
            (Some(one), Some(other)) => one.one_way_ms(other),
            (Some(_) | None, Some(_) | None) => 0,
        };
        self.conditions.latency_ms + far + slow + self.prng.below(self.conditions.jitter_ms + 1)
    }
}
