//! The network between hosts: who is connected, how long a message takes, which ones are lost.

use std::collections::{BTreeMap, BTreeSet};

use protocol::prng::Prng;

/// How the network treats messages.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    /// Shortest way of a message in milliseconds.
    pub latency_ms: u64,
    /// Largest addition to it; every message draws its own, so messages overtake each other.
    pub jitter_ms: u64,
    /// Messages lost, of 1,000.
    pub loss_permille: u64,
}

impl Conditions {
    /// A network without faults.
    pub const CALM: Self = Self { latency_ms: 5, jitter_ms: 20, loss_permille: 0 };
}

/// Connections between hosts, each with a number of its own.
#[derive(Debug)]
pub struct Network {
    /// How messages are treated now.
    pub conditions: Conditions,
    /// Milliseconds that every message from or to a host takes longer.
    pub slow_ms: BTreeMap<usize, u64>,
    links: BTreeMap<(usize, usize), u64>,
    /// Those that reach only each other.
    apart: BTreeSet<usize>,
    last: u64,
    prng: Prng,
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
            links: BTreeMap::new(),
            apart: BTreeSet::new(),
            last: 0,
            prng,
        }
    }

    /// Returns the connection between two hosts.
    #[must_use]
    pub fn link(&self, a: usize, b: usize) -> Option<u64> {
        self.links.get(&pair(a, b)).copied()
    }

    /// Connects two hosts; `None` when they are connected already or are kept apart.
    pub fn connect(&mut self, a: usize, b: usize) -> Option<u64> {
        if a == b || self.link(a, b).is_some() || self.apart.contains(&a) != self.apart.contains(&b) {
            return None;
        }
        self.last += 1;
        self.links.insert(pair(a, b), self.last);
        Some(self.last)
    }

    /// Lets nobody else connect to `some`, nor them to anybody else.
    pub fn part(&mut self, some: &[usize]) {
        self.apart = some.iter().copied().collect();
    }

    /// Takes the connection of two hosts away.
    pub fn cut(&mut self, a: usize, b: usize) -> Option<u64> {
        self.links.remove(&pair(a, b))
    }

    /// Returns the hosts connected to `host`.
    #[must_use]
    pub fn partners(&self, host: usize) -> Vec<usize> {
        let other = |&(a, b): &(usize, usize)| match (a == host, b == host) {
            (true, _) => Some(b),
            (_, true) => Some(a),
            (false, false) => None,
        };
        self.links.keys().filter_map(other).collect()
    }

    /// Returns how long a message takes, or `None` when it is lost.
    pub fn carry(&mut self) -> Option<u64> {
        let lost = self.prng.below(1000) < self.conditions.loss_permille;
        let delay = self.delay();
        (!lost).then_some(delay)
    }

    /// Returns by how much everything between two hosts takes longer.
    #[must_use]
    pub fn slowness(&self, a: usize, b: usize) -> u64 {
        [a, b].iter().filter_map(|host| self.slow_ms.get(host)).sum()
    }

    /// Returns how long something takes that is not lost.
    pub fn delay(&mut self) -> u64 {
        self.conditions.latency_ms + self.prng.below(self.conditions.jitter_ms + 1)
    }
}
