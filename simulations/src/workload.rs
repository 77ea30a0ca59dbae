//! What machines want and when: jobs that come whether or not earlier ones are done, by day and by night.

use protocol::prng::Prng;

use crate::home::{Home, MODEL, UNKNOWN_MODEL, spec_ending};
use crate::network::Region;
use crate::scenario::{Asks, Cheat, Lengths, Scenario, Tail};

/// Times at which a job may come for each job that comes on average: with many, arrivals are all but a Poisson process.
const TIMES_A_JOB: u64 = 4;

/// The local hours of day; the others are night.
const DAY: std::ops::Range<u64> = 7..23;

/// Time between two jobs with which it is seen whether jobs are done.
pub(crate) const PROBE_MS: u64 = 2_000;

/// Most of them in all.
const PROBES_MAX: usize = 50;

/// Tokens of each.
const PROBE_TOKENS: u32 = 16;

/// Time in which the jobs of a burst come.
const BURST_MS: u64 = 2_000;

/// Time within which a job that is given up is given up.
const CANCEL_MS: u64 = 4_000;

const HOUR_MS: u64 = 3_600_000;

/// Has everybody want what the scenario says, from now on.
pub fn schedule(home: &mut Home, scenario: &Scenario) {
    let mut prng = home.prng.child();
    for (group, places) in scenario.hosts.iter().zip(home.groups.clone()) {
        let Some(asks) = &group.asks else { continue };
        for place in places {
            wants(home, scenario, place, asks, &mut prng);
        }
    }
    for (group, places) in scenario.hosts.iter().zip(home.groups.clone()) {
        let Some([from, to]) = group.serves.as_ref().and_then(|serves| serves.hours) else { continue };
        for place in places {
            lends(home, scenario, place, from..to);
        }
    }
}

fn wants(home: &mut Home, scenario: &Scenario, place: usize, asks: &Asks, prng: &mut Prng) {
    let [from, to] = asks.during.unwrap_or([0, scenario.minutes]).map(|minute| minute.min(scenario.minutes));
    let region = home.world.network.region(place);
    let times = asks.jobs_per_hour * TIMES_A_JOB * (to - from);
    // What does not divide is left to chance, so that the average is right.
    let per = 60 * asks.burst;
    let times = times / per + u64::from(prng.below(per) < times % per);
    for _ in 0..times {
        let at = from * 60_000 + prng.below((to - from) * 60_000);
        let percent = if is_day(local_hour(scenario, region, at)) { 100 } else { asks.night_percent };
        if prng.below(TIMES_A_JOB * 100) < percent {
            for _ in 0..asks.burst {
                let at = at + if asks.burst > 1 { prng.below(BURST_MS) } else { 0 };
                want(home, place, asks, at, prng);
            }
        }
    }
}

fn want(home: &mut Home, place: usize, asks: &Asks, at: u64, prng: &mut Prng) {
    let model = if prng.below(1000) < asks.unknown_permille { UNKNOWN_MODEL } else { MODEL };
    let bytes = asks.prompt_bytes.draw(prng);
    let most = u32::try_from(asks.answer_tokens.draw(prng)).unwrap_or(u32::MAX);
    let natural = u32::try_from(1 + prng.below(2 * u64::from(most))).unwrap_or(u32::MAX);
    let job = home.submit(at, place, spec_ending(model, bytes, most, natural));
    if prng.below(1000) < asks.cancel_permille {
        home.world.cancel_in(at + 1 + prng.below(CANCEL_MS), place, job);
    }
}

/// Has some of those that ask want one small job each, one after another; returns how many.
///
/// Nobody does where somebody serves who delivers nothing: it would take them as long as it takes to find that out.
pub(crate) fn probe(home: &mut Home, scenario: &Scenario) -> u64 {
    let groups = || scenario.hosts.iter().zip(&home.groups);
    let serves =
        |place: &usize| home.world.hosts[*place].offer.is_some() && !home.world.hosts[*place].resting;
    let some_serve = home.providers.iter().any(serves);
    if !some_serve || scenario.hosts.iter().any(|group| group.cheats == Some(Cheat::NonDeliverer)) {
        return 0;
    }
    let ask = groups().filter(|(group, _)| group.asks.is_some() && group.cheats.is_none());
    let places: Vec<usize> = ask.flat_map(|(_, places)| places.iter().copied()).collect();
    let step = places.len().div_ceil(PROBES_MAX).max(1);
    let mut asked = 0;
    for place in places.into_iter().step_by(step) {
        let job = home.submit(asked * PROBE_MS, place, spec_ending(MODEL, 40, PROBE_TOKENS, PROBE_TOKENS));
        home.world.probes.insert(job);
        asked += 1;
    }
    asked
}

/// Lends an engine in certain hours of the local day only.
fn lends(home: &mut Home, scenario: &Scenario, place: usize, hours: std::ops::Range<u64>) {
    let region = home.world.network.region(place);
    let serves = |hour: u64| {
        if hours.start < hours.end { hours.contains(&hour) } else { hour >= hours.start || hour < hours.end }
    };
    let mut before = true;
    let ends = scenario.minutes * 60_000 / HOUR_MS;
    for hour in 0..=ends {
        let now = serves(local_hour(scenario, region, hour * HOUR_MS));
        if now != before {
            home.world.serve_in(hour * HOUR_MS, place, now);
            before = now;
        }
    }
}

/// Returns the local hour `ms` after the beginning of a scenario.
fn local_hour(scenario: &Scenario, region: Option<Region>, ms: u64) -> u64 {
    let ahead = region.map_or(0, Region::hours_ahead).rem_euclid(24).unsigned_abs();
    (scenario.start_hour + ms / HOUR_MS + ahead) % 24
}

fn is_day(hour: u64) -> bool {
    DAY.contains(&hour)
}

impl Lengths {
    /// Draws a length.
    fn draw(self, prng: &mut Prng) -> u64 {
        let uniform = |prng: &mut Prng, from: u64, to: u64| from + prng.below(to - from + 1);
        match self.tail {
            Tail::None => uniform(prng, self.min, self.max),
            Tail::Heavy => {
                let mut from = self.min;
                while from * 2 <= self.max && prng.below(2) == 0 {
                    from *= 2;
                }
                uniform(prng, from, (from * 2 - 1).min(self.max).max(from))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_as_long_is_half_as_often() {
        let mut prng = Prng::new(1);
        let lengths = Lengths { min: 10, max: 10_000, tail: Tail::Heavy };
        let drawn: Vec<u64> = (0..10_000).map(|_| lengths.draw(&mut prng)).collect();

        let above = |least: u64| drawn.iter().filter(|length| **length >= least).count();
        assert!(drawn.iter().all(|length| (10..=10_000).contains(length)));
        for (least, expected) in [(20, 5_000), (40, 2_500), (80, 1_250), (320, 312)] {
            assert!(above(least).abs_diff(expected) < expected / 5, "{} above {least}", above(least));
        }
    }

    #[test]
    fn equal_lengths_are_equally_often() {
        let mut prng = Prng::new(1);
        let lengths = Lengths { min: 5, max: 8, tail: Tail::None };
        let drawn: Vec<u64> = (0..4_000).map(|_| lengths.draw(&mut prng)).collect();

        for length in 5..=8 {
            let often = drawn.iter().filter(|drawn| **drawn == length).count();
            assert!(often.abs_diff(1_000) < 150, "{often} of {length}");
        }
    }
}
