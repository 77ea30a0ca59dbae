//! A small network with a mesh, whose traffic is counted to be held against that of real nodes.

use protocol::price::NANO_PER_CREDIT;

use crate::home::{Home, MODEL, Setting, spec};
use crate::network::Conditions;
use crate::network::wire::{Kind, Traffic};

/// What is played, in the simulator and by real nodes alike.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Machines that serve.
    pub providers: usize,
    /// Machines that ask.
    pub consumers: usize,
    /// Seconds from when everybody is there until counting begins.
    pub calm_s: u64,
    /// Jobs of each that asks, one after the other.
    pub jobs: usize,
    /// Seconds between two jobs of one.
    pub every_s: u64,
    /// Bytes of a prompt.
    pub prompt_bytes: u64,
    /// Tokens of an answer.
    pub tokens: u32,
    /// Tokens a second.
    pub decode: u64,
}

impl Plan {
    /// Returns how long it is counted, in seconds.
    #[must_use]
    pub const fn seconds(&self) -> u64 {
        self.jobs as u64 * self.every_s
    }
}

/// Plays it; returns what all nodes sent together while it was counted.
#[must_use]
pub fn simulated(plan: &Plan, seed: u64) -> [(Kind, Counted); Kind::ALL.len()] {
    let setting = Setting {
        consumers: plan.consumers,
        credits: 10_000 * NANO_PER_CREDIT,
        decode: plan.decode,
        mesh: true,
        ..Setting::small(seed, plan.providers)
    };
    let calm = Conditions { latency_ms: 0, jitter_ms: 1, ..Conditions::CALM };
    let mut home = Home::joined(&setting, calm);
    home.world.run_for(plan.calm_s * 1000);
    let before = home.world.traffic.clone();
    let consumers = home.consumers.clone();
    for (number, consumer) in consumers.into_iter().enumerate() {
        let first = plan.every_s * 1000 * number as u64 / plan.consumers as u64;
        for job in 0..plan.jobs as u64 {
            let spec = spec(MODEL, plan.prompt_bytes, plan.tokens, u8::MAX);
            home.submit(first + job * plan.every_s * 1000, consumer, spec);
        }
    }
    home.world.run_for(plan.seconds() * 1000);
    Kind::ALL.map(|kind| (kind, Counted::between(&before, &home.world.traffic, kind)))
}

/// What was sent of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Messages, questions, frames: whatever is sent of this kind.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Counted {
    fn between(before: &[Traffic], after: &[Traffic], kind: Kind) -> Self {
        let sum = |traffic: &[Traffic], of: fn(&Traffic, Kind) -> u64| {
            traffic.iter().map(|traffic| of(traffic, kind)).sum::<u64>()
        };
        let grown = |of| sum(after, of) - sum(before, of);
        Self { count: grown(Traffic::count), bytes: grown(Traffic::bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Plan, simulated};
    use crate::network::wire::Kind;

    #[test]
    fn traffic_is_counted_by_kind_and_one_seed_gives_one_count() {
        let plan = Plan {
            providers: 2,
            consumers: 2,
            calm_s: 5,
            jobs: 2,
            every_s: 20,
            prompt_bytes: 100,
            tokens: 32,
            decode: 50,
        };

        let counted = simulated(&plan, 1);

        assert_eq!(counted, simulated(&plan, 1));
        // In so small a network everybody is connected: nobody looks anything up, and so nobody listens to gossip.
        let always = |kind: &Kind| !matches!(kind, Kind::Directory | Kind::Gossip);
        for (kind, counted) in counted.iter().filter(|(kind, _)| always(kind)) {
            assert!(counted.count > 0 && counted.bytes > counted.count, "{kind:?}: {counted:?}");
        }
    }
}
