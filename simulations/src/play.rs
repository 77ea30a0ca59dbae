//! Plays a scenario: everybody joins, jobs and faults, healing, settling; checks all the while, and reports.

use crate::checks::{self, Always, Invariant, Tally};
use crate::faults;
use crate::home::Home;
use crate::network::Conditions;
use crate::report::{Held, Report};
use crate::samples::Sample;
use crate::scenario::Scenario;
use crate::workload;

/// Virtual time between two looks at what must hold while everything runs.
const LOOK_MS: u64 = 10_000;

/// Time for everything to come to rest once the faults are over.
const REST_MS: u64 = 120_000;

/// Time for partners that have just met to give each other what they lack: some things are asked for once a minute.
const MEET_MS: u64 = 90_000;

/// Time for the last of the jobs with which it is seen whether jobs are done.
const PROBED_MS: u64 = 30_000;

/// Time for deposits to reach all issuers before one of them begins to lie.
const HONEST_MS: u64 = 15_000;

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Virtual milliseconds that have passed.
    pub elapsed_ms: u64,
    /// Virtual milliseconds in all.
    pub total_ms: u64,
    /// Events so far.
    pub events: u64,
}

/// What is looked at besides the rules.
#[derive(Debug, Default)]
pub struct Watch<'a> {
    /// Prints all that happens to this host.
    pub host: Option<usize>,
    /// Where to put a sample every ten virtual seconds.
    pub samples: Option<&'a mut Vec<Sample>>,
}

/// Plays a scenario with a seed; tells how far it is every ten virtual seconds.
#[must_use]
pub fn play(scenario: &Scenario, seed: u64, watch: Watch<'_>, tell: &mut dyn FnMut(Progress)) -> Report {
    let mut run = Run::of(scenario, seed, tell);
    run.home.world.watched = watch.host;
    run.samples = watch.samples;
    run.begin(scenario);
    run.troubles(scenario);
    run.ends(scenario);
    run.report(scenario, seed)
}

/// Plays a scenario without a word.
#[must_use]
pub fn run(scenario: &Scenario, seed: u64) -> Report {
    play(scenario, seed, Watch::default(), &mut |_| {})
}

struct Run<'a> {
    home: Home,
    held: Vec<(Invariant, Tally)>,
    total_ms: u64,
    tell: &'a mut dyn FnMut(Progress),
    samples: Option<&'a mut Vec<Sample>>,
}

impl<'a> Run<'a> {
    fn of(scenario: &Scenario, seed: u64, tell: &'a mut dyn FnMut(Progress)) -> Self {
        let home = Home::founded(scenario, seed);
        // Joining, healing, meeting and settling take what they take in any scenario.
        let total_ms = scenario.minutes * 60_000 + 15_000 + REST_MS + MEET_MS + PROBED_MS + 10_000 + 90_000;
        Self { home, held: Vec::new(), total_ms, tell, samples: None }
    }

    fn begin(&mut self, scenario: &Scenario) {
        self.home.lets_join();
        if scenario.network.slow_issuer_ms > 0 {
            self.home.slows(1, scenario.network.slow_issuer_ms);
        }
        if scenario.network.lying_issuer {
            self.home.world.run_for(HONEST_MS);
            self.home.lies(self.home.world.issuers() - 1);
        }
        workload::schedule(&mut self.home, scenario);
        faults::schedule_orders(&mut self.home, scenario);
        faults::schedule(&mut self.home, scenario);
        let conditions = self.home.world.network.conditions;
        self.home.world.network.conditions = Conditions {
            loss_permille: scenario.network.loss_permille,
            duplicate_permille: scenario.network.duplicate_permille,
            ..conditions
        };
    }

    fn troubles(&mut self, scenario: &Scenario) {
        let end = self.home.world.now.plus_ms(scenario.minutes * 60_000);
        while self.home.world.now < end {
            let next = self.home.world.now.plus_ms(LOOK_MS).min(end);
            self.home.world.run_until(next);
            self.check(checks::WHILE_RUNNING);
            self.tells();
        }
    }

    /// Has some of those that ask ask once more, for little, and forgets what came of it when it is checked.
    fn probes(&mut self, scenario: &Scenario) {
        let asked = workload::probe(&mut self.home, scenario);
        self.home.world.run_for(asked * workload::PROBE_MS + PROBED_MS);
        self.check(checks::WHEN_ASKED);
        for job in std::mem::take(&mut self.home.world.probes) {
            self.home.world.jobs.remove(&job);
        }
        self.tells();
    }

    fn ends(&mut self, scenario: &Scenario) {
        self.home.heal(REST_MS);
        for _ in 0..MEET_MS / LOOK_MS {
            self.tells();
            self.home.world.run_for(LOOK_MS);
        }
        self.check(checks::WHEN_HEALED);
        self.tells();
        self.probes(scenario);
        self.home.settle();
        self.check(checks::WHEN_SETTLED);
        self.tells();
    }

    fn tells(&mut self) {
        let elapsed_ms = self.home.world.now.since_ms(self.home.began);
        if let Some(samples) = &mut self.samples {
            samples.push(Sample::of(&self.home));
        }
        (self.tell)(Progress { elapsed_ms, total_ms: self.total_ms, events: self.home.world.events });
    }

    fn check(&mut self, invariants: &[Invariant]) {
        for invariant in invariants {
            let mut tally = Tally::default();
            (invariant.check)(&self.home.world, &mut tally);
            match self.held.iter_mut().find(|(other, _)| other.name == invariant.name) {
                Some((_, sum)) => sum.add(tally),
                None => self.held.push((*invariant, tally)),
            }
        }
    }

    fn report(self, scenario: &Scenario, seed: u64) -> Report {
        let world = &self.home.world;
        let always = Always::ALL.into_iter().map(|rule| {
            let (checks, broken) = world.tally(rule);
            Held { name: rule.name(), sentence: rule.sentence(), held: broken == 0, checks }
        });
        let others = self.held.iter().map(|(invariant, tally)| Held {
            name: invariant.name,
            sentence: invariant.sentence,
            held: tally.broken == 0,
            checks: tally.checks,
        });
        let mut findings = world.findings.clone();
        for (invariant, tally) in &self.held {
            findings.extend(tally.findings.iter().map(|finding| format!("{}: {finding}", invariant.name)));
        }
        let invariants = always.chain(others).collect();
        Report::of(scenario, &self.home, seed, invariants, findings)
    }
}
