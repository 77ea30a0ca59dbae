//! What a run came to: what held, what became of the jobs, and the figures of the scenario.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::home::Home;
use crate::network::wire::{Kind, Traffic};
use crate::scenario::{Expect, Scenario};
use crate::world::{Outcome, Tracked, World};

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash over every input of every node, with its time.
    pub trace_hash: String,
    /// Events of any kind: messages, frames, timers, steps of engines, faults.
    pub events: u64,
    /// Inputs that nodes handled.
    pub inputs: u64,
    /// What must hold, and whether it did.
    pub invariants: Vec<Held>,
    /// Where something did not hold.
    pub findings: Vec<String>,
    /// What nodes sent.
    pub control_bytes_per_node_s: Control,
    /// What became of jobs.
    pub jobs: Jobs,
    /// Figures of the scenario.
    pub figures: Figures,
}

/// An invariant after a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    #[serde(skip)]
    pub sentence: &'static str,
    /// Says whether it held each time.
    pub held: bool,
    /// How often it was checked.
    pub checks: u64,
}

/// Bytes that a node sent, for each second of virtual time: all but prompts, tokens and what is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Control {
    /// Half of the nodes sent at most so many.
    pub p50: u64,
    /// 99 of 100 nodes sent at most so many.
    pub p99: u64,
    /// The same for each kind of traffic by itself.
    pub by_kind: BTreeMap<&'static str, Spread>,
    /// What these figures leave out.
    pub without: &'static str,
}

/// Without a mesh.
const WITHOUT: &str =
    "directory (Kademlia), forwarding of gossip, identify, ping, acknowledgements, transport";

/// With a mesh.
const WITHOUT_IN_MESH: &str = "heartbeats of jobs, NAT traversal, handshakes and headers of QUIC";

impl Control {
    fn of(scenario: &Scenario, world: &World, virtual_s: u64) -> Self {
        let rates = |bytes: &dyn Fn(&Traffic) -> u64| {
            Spread::of(world.traffic.iter().map(|traffic| bytes(traffic) / virtual_s).collect())
        };
        let Spread { p50, p99 } = rates(&Traffic::total);
        let by_kind = Kind::ALL.map(|kind| (kind.name(), rates(&|traffic| traffic.bytes(kind))));
        let without = if scenario.network.mesh { WITHOUT_IN_MESH } else { WITHOUT };
        Self { p50, p99, by_kind: by_kind.into(), without }
    }
}

/// What became of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Jobs {
    /// Wanted, by nodes that ran.
    pub placed: usize,
    /// Done.
    pub completed: usize,
    /// Not done, for whatever reason: also because nobody serves the model, or whoever wanted it gave up or crashed.
    pub failed: usize,
}

/// Figures of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Machines, with the issuers.
    pub nodes: usize,
    /// Virtual seconds in all.
    pub virtual_s: u64,
    /// Milliseconds from wanting a job to its first token, of jobs that were done.
    pub first_token_ms: Spread,
    /// Milliseconds from wanting a job to its end, of jobs that were done.
    pub done_ms: Spread,
    /// Why jobs were not done, with how many.
    pub failures: BTreeMap<String, usize>,
    /// Checkpoints that the first issuer keeps at the end.
    pub checkpoints: usize,
    /// Part of what honest machines paid that honest machines earned.
    pub honest_share: f64,
    /// How unequally those that serve earned: 0 is all the same, 1 is all to one.
    pub earnings_gini: f64,
    /// The groups.
    pub groups: Vec<GroupFigures>,
    /// Messages by kind.
    pub messages: BTreeMap<&'static str, Sent>,
}

/// How numbers spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Half are at most this.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
}

/// What became of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupFigures {
    /// Its name.
    pub name: String,
    /// How many machines.
    pub nodes: usize,
    /// Jobs that it wanted.
    pub placed: usize,
    /// Those of them that were done.
    pub completed: usize,
    /// Tokens that it generated for others.
    pub served_tokens: u64,
    /// Part of its slots that worked during the scenario's minutes; nothing where it serves nothing.
    pub utilisation: Option<f64>,
    /// Nano-credits that its machines have together, less what they began with.
    pub gained: i128,
}

/// Messages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// How many.
    pub count: u64,
    /// Their bytes as encoded.
    pub bytes: u64,
}

impl Report {
    /// Says whether everything held.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.findings.is_empty() && self.invariants.iter().all(|invariant| invariant.held)
    }

    pub(crate) fn of(
        scenario: &Scenario,
        home: &Home,
        seed: u64,
        invariants: Vec<Held>,
        findings: Vec<String>,
    ) -> Self {
        let world = &home.world;
        let virtual_s = (world.now.since_ms(home.began) / 1000).max(1);
        let mut report = Self {
            seed,
            trace_hash: world.trace_hash().to_hex().to_string(),
            events: world.events,
            inputs: world.inputs,
            invariants,
            findings,
            control_bytes_per_node_s: Control::of(scenario, world, virtual_s),
            jobs: jobs(world),
            figures: Figures::of(scenario, home, virtual_s),
        };
        report.expects(&scenario.expect);
        report
    }

    /// Checks what the scenario expects.
    fn expects(&mut self, expect: &Expect) {
        let Jobs { placed, completed, .. } = self.jobs;
        let least = usize::try_from(expect.completed_percent_min).unwrap_or(0);
        if least > 0 {
            self.expected(
                "enough_completed",
                "So much of the jobs placed is done as the scenario expects.",
                completed * 100 >= placed * least,
                || format!("{completed} of {placed} jobs were done, less than {least} percent"),
            );
        }
        let (least, share) = (expect.honest_share_percent_min, self.figures.honest_share);
        if least > 0 {
            self.expected(
                "honest_share",
                "So much of what honest machines paid was earned by honest ones as the scenario expects.",
                share * 100.0 >= least as f64,
                || format!("honest machines earned {share} of what honest ones paid, not {least} percent"),
            );
        }
        let (most, p99) = (expect.control_p99_max, self.control_bytes_per_node_s.p99);
        if most > 0 {
            self.expected(
                "control_bounded",
                "99 of 100 machines send no more control traffic than the scenario expects.",
                p99 <= most,
                || format!("99 of 100 machines sent up to {p99} bytes a second, more than {most}"),
            );
        }
        let (most, median) = (expect.first_token_ms_median_max, self.figures.first_token_ms.p50);
        if most > 0 {
            self.expected(
                "first_token_soon",
                "Half of the jobs done have their first token as soon as the scenario expects.",
                median <= most,
                || format!("the first token took {median} ms in the median, more than {most}"),
            );
        }
    }

    fn expected(
        &mut self,
        name: &'static str,
        sentence: &'static str,
        held: bool,
        finding: impl FnOnce() -> String,
    ) {
        self.invariants.push(Held { name, sentence, held, checks: 1 });
        if !held {
            self.findings.push(finding());
        }
    }
}

impl Spread {
    fn of(mut numbers: Vec<u64>) -> Self {
        numbers.sort_unstable();
        let at = |percent: usize| {
            let place = (numbers.len() * percent).div_ceil(100).saturating_sub(1);
            numbers.get(place).copied().unwrap_or(0)
        };
        Self { p50: at(50), p99: at(99) }
    }
}

fn jobs(world: &World) -> Jobs {
    let (placed, completed) = (world.jobs.len(), world.jobs.values().filter(|job| is_done(job)).count());
    Jobs { placed, completed, failed: placed - completed }
}

const fn is_done(job: &Tracked) -> bool {
    matches!(job.outcome, Some((_, Outcome::Done(_))))
}

impl Figures {
    fn of(scenario: &Scenario, home: &Home, virtual_s: u64) -> Self {
        let world = &home.world;
        let done: Vec<&Tracked> = world.jobs.values().filter(|job| is_done(job)).collect();
        let first = done.iter().filter_map(|job| Some(job.first_token?.since_ms(job.submitted)));
        let ends = done.iter().filter_map(|job| Some(job.outcome.as_ref()?.0.since_ms(job.submitted)));
        let sent = |(name, (count, bytes)): (&&'static str, &(u64, u64))| {
            (*name, Sent { count: *count, bytes: *bytes })
        };
        let tokens = tokens_by_provider(world);
        let groups = scenario.hosts.iter().zip(&home.groups);
        Self {
            nodes: world.hosts.len(),
            virtual_s,
            first_token_ms: Spread::of(first.collect()),
            done_ms: Spread::of(ends.collect()),
            failures: failures(world),
            checkpoints: world.node(0).map_or(0, |issuer| issuer.checkpoints().len()),
            honest_share: honest_share(world),
            earnings_gini: gini(home.providers.iter().map(|place| tokens_price(world, &tokens, *place))),
            groups: groups
                .map(|(group, places)| {
                    GroupFigures::of(scenario, &group.name, group.nano_credits, places, world, &tokens)
                })
                .collect(),
            messages: world.sent.iter().map(sent).collect(),
        }
    }
}

impl GroupFigures {
    fn of(
        scenario: &Scenario,
        name: &str,
        ticket: u64,
        places: &[usize],
        world: &World,
        tokens: &BTreeMap<usize, u64>,
    ) -> Self {
        let has = |place: &usize| {
            let balance = world.booked(world.hosts[*place].config.owner.account());
            i128::from(balance.cash) + i128::from(balance.earned) + i128::from(balance.held)
                - i128::from(ticket)
        };
        let generated = |place: &usize| tokens.get(place).copied().unwrap_or(0);
        let busy_ms = |place: &usize| generated(place) * 1000 / world.hosts[*place].device.speed.decode;
        let slots =
            |place: &usize| world.hosts[*place].offer.as_ref().map_or(0, |offer| u64::from(offer.slots));
        let room_ms = places.iter().map(slots).sum::<u64>() * scenario.minutes * 60_000;
        let worked = places.iter().map(busy_ms).sum::<u64>();
        let wanted = world.jobs.values().filter(|job| places.binary_search(&job.host).is_ok());
        let wanted: Vec<&Tracked> = wanted.collect();
        Self {
            name: name.to_owned(),
            nodes: places.len(),
            placed: wanted.len(),
            completed: wanted.iter().filter(|job| is_done(job)).count(),
            served_tokens: places.iter().map(generated).sum(),
            utilisation: (room_ms > 0).then(|| thousandths(worked as f64 / room_ms as f64)),
            gained: places.iter().map(has).sum(),
        }
    }
}

/// Returns which part of what honest machines paid went to honest ones; all where nothing was paid.
fn honest_share(world: &World) -> f64 {
    let Some((_, books)) = world.books().next() else { return 1.0 };
    let (mut all, mut honest) = (0_u64, 0_u64);
    for (channel, payer, payee) in world.opened_channels() {
        if !world.hosts[payer].adversary {
            let paid = books.channel(channel).map_or(0, |(redeemed, _)| redeemed);
            all += paid;
            honest += if world.hosts[payee].adversary { 0 } else { paid };
        }
    }
    if all == 0 { 1.0 } else { thousandths(honest as f64 / all as f64) }
}

/// Tokens that each machine delivered to others.
fn tokens_by_provider(world: &World) -> BTreeMap<usize, u64> {
    let mut tokens = BTreeMap::new();
    for ((requester, provider), delivered) in &world.delivered {
        if requester != provider {
            *tokens.entry(*provider).or_default() += delivered.usage.tokens_out;
        }
    }
    tokens
}

fn tokens_price(world: &World, tokens: &BTreeMap<usize, u64>, place: usize) -> u64 {
    let price = world.price_of(place).map_or(0, |price| price.output);
    let tokens = tokens.get(&place).copied().unwrap_or(0);
    u64::try_from(u128::from(tokens) * u128::from(price) / 1_000_000).unwrap_or(u64::MAX)
}

fn failures(world: &World) -> BTreeMap<String, usize> {
    let mut failures = BTreeMap::new();
    for job in world.jobs.values() {
        let name = match &job.outcome {
            Some((_, Outcome::Failed(failure, _))) => format!("{failure:?}"),
            Some((_, Outcome::OwnerGone)) => "OwnerGone".to_owned(),
            Some((_, Outcome::Done(_))) => continue,
            None => "None".to_owned(),
        };
        let name = name.split(['(', ' ']).next().unwrap_or_default().to_owned();
        *failures.entry(name).or_insert(0) += 1;
    }
    failures
}

/// Returns how unequal numbers are: 0 when all are the same, 1 when one has all.
fn gini(numbers: impl Iterator<Item = u64>) -> f64 {
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    let (count, sum) = (numbers.len() as f64, numbers.iter().map(|number| *number as f64).sum::<f64>());
    if sum <= 0.0 {
        return 0.0;
    }
    let ranked: f64 = numbers.iter().zip(1..).map(|(number, rank)| f64::from(rank) * *number as f64).sum();
    thousandths(2.0 * ranked / (count * sum) - (count + 1.0) / count)
}

fn thousandths(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::{Spread, gini};

    #[test]
    fn half_and_ninety_nine_of_a_hundred_are_at_most_what_is_said() {
        assert_eq!(Spread::of((1..=100).rev().collect()), Spread { p50: 50, p99: 99 });
        assert_eq!(Spread::of(vec![7]), Spread { p50: 7, p99: 7 });
        assert_eq!(Spread::of(Vec::new()), Spread { p50: 0, p99: 0 });
    }

    #[test]
    fn equal_earnings_have_a_gini_of_nothing_and_one_earner_of_four_of_three_quarters() {
        assert!(gini([5, 5, 5, 5].into_iter()).abs() < 1e-9);
        assert!((gini([0, 0, 0, 8].into_iter()) - 0.75).abs() < 1e-9);
    }
}
