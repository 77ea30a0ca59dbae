//! Cuts a failing scenario down: fewer machines, fewer faults, less time, for as long as the same rule is broken.

use crate::play::run;
use crate::scenario::Scenario;

/// Seeds that are tried with a smaller scenario, from the present one on: what is smaller draws other numbers.
const SEEDS_TRIED: u64 = 6;

/// A scenario that breaks a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Failing {
    /// The scenario.
    pub scenario: Scenario,
    /// With which seed.
    pub seed: u64,
    /// The rule.
    pub rule: String,
}

impl Failing {
    /// Returns the first rule that a scenario breaks, or `rule` if it breaks that; `None` when it does not.
    #[must_use]
    pub fn of(scenario: &Scenario, seed: u64, rule: Option<&str>) -> Option<Self> {
        let report = run(scenario, seed);
        let broken = |held: &&crate::report::Held| !held.held && rule.is_none_or(|rule| rule == held.name);
        let rule = report.invariants.iter().find(broken)?.name.to_owned();
        Some(Self { scenario: scenario.clone(), seed, rule })
    }

    /// Returns the smallest scenario found that breaks the same rule, in at most `runs` runs; tells of each step.
    #[must_use]
    pub fn shrink(self, runs: u64, mut tell: impl FnMut(&Self, u64)) -> Self {
        let (mut least, mut done) = (self, 0);
        'smaller: loop {
            for candidate in candidates(&least.scenario) {
                for seed in (least.seed..).take(usize::try_from(SEEDS_TRIED).unwrap_or(1)) {
                    if done >= runs {
                        return least;
                    }
                    done += 1;
                    if let Some(found) = Self::of(&candidate, seed, Some(&least.rule)) {
                        least = found;
                        tell(&least, done);
                        continue 'smaller;
                    }
                }
            }
            return least;
        }
    }
}

/// Returns scenarios that are a little smaller, those with the most cut off first.
fn candidates(scenario: &Scenario) -> Vec<Scenario> {
    let mut smaller = Vec::new();
    let mut offer = |change: &dyn Fn(&mut Scenario)| {
        let mut other = scenario.clone();
        change(&mut other);
        if other != *scenario {
            smaller.extend(other.checked().ok());
        }
    };
    offer(&|s| s.faults.clear());
    offer(&|s| s.orders = 0);
    for place in 0..scenario.hosts.len() {
        offer(&|s| {
            let gone = s.hosts.remove(place).name;
            s.faults.retain(|plan| plan.hosts != gone);
        });
    }
    for place in 0..scenario.faults.len() {
        offer(&|s| _ = s.faults.remove(place));
    }
    offer(&|s| {
        s.minutes = (s.minutes / 2).max(1);
        s.faults.retain(|plan| plan.at_s.is_none_or(|at| at <= s.minutes * 60));
        for asks in s.hosts.iter_mut().filter_map(|group| group.asks.as_mut()) {
            asks.during = asks.during.filter(|[from, _]| *from < s.minutes);
        }
    });
    for place in 0..scenario.hosts.len() {
        offer(&|s| s.hosts[place].count = (s.hosts[place].count / 2).max(1));
        offer(&|s| s.hosts[place].asks = None);
        offer(&|s| s.hosts[place].simpler());
    }
    for place in 0..scenario.faults.len() {
        offer(&|s| s.faults[place].count = (s.faults[place].count / 2).max(1));
    }
    offer(&|s| s.orders /= 2);
    offer(&|s| {
        s.network.lying_issuer = false;
        s.network.issuers = 1;
    });
    offer(&|s| s.network.lying_issuer = false);
    offer(&|s| s.network.slow_issuer_ms = 0);
    offer(&|s| s.network.duplicate_permille = 0);
    offer(&|s| s.network.loss_permille = 0);
    offer(&|s| s.network.jitter_ms /= 2);
    smaller
}

impl crate::scenario::Group {
    /// Wants less, joins at once, has the right time.
    fn simpler(&mut self) {
        self.joins_within_s = 0;
        self.clock_off_ms = 0;
        if let Some(asks) = &mut self.asks {
            asks.jobs_per_hour = (asks.jobs_per_hour / 2).max(1);
            (asks.burst, asks.cancel_permille, asks.unknown_permille) = (1, 0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::read;

    #[test]
    fn what_is_left_breaks_the_same_rule_and_says_the_same_when_it_is_read_again() {
        let mut scenario = read("smoke").expect("it comes with the program");
        // Nobody serves, so too few jobs are done whatever else happens.
        scenario.hosts[0].serves = None;
        scenario.expect.completed_percent_min = 50;
        let failing = Failing::of(&scenario, 3, None).expect("nobody serves");
        assert_eq!(failing.rule, "enough_completed");

        let least = failing.shrink(200, |_, _| {});

        assert_eq!((least.scenario.nodes(), least.scenario.faults.len(), least.scenario.orders), (1, 0, 0));
        assert_eq!(least.scenario.minutes, 1);
        let read = Scenario::parse(&least.scenario.to_text().expect("a scenario")).expect("a scenario");
        assert_eq!(read, least.scenario);
        assert_eq!(Failing::of(&read, least.seed, Some("enough_completed")), Some(least));
    }

    #[test]
    fn what_holds_is_not_shrunk() {
        let scenario = read("home").expect("it comes with the program");
        assert_eq!(Failing::of(&scenario, 1, None), None);
    }
}
