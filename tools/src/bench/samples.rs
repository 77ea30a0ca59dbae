//! Many runs become a few numbers, each of them a value that was measured.

use std::time::Duration;

use serde::Serialize;

/// What was measured, one value per run.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<f64>);

/// Runs in short; of `p99` and `max` of few runs nothing can be said but that no run was worse.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) runs: usize,
    pub(super) min: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Samples {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a time in milliseconds.
    pub(super) fn push_time(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1000.0);
    }

    /// Returns the value that `part` percent of all do not exceed.
    pub(super) fn quantile(&self, part: usize) -> f64 {
        nearest_rank(&self.sorted(), part)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub(super) fn spread(&self) -> Spread {
        let sorted = self.sorted();
        let at = |part: usize| nearest_rank(&sorted, part);
        Spread { runs: sorted.len(), min: at(0), p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

/// The smallest value that at least `part` percent of the values do not exceed; 0 of none.
fn nearest_rank(sorted: &[f64], part: usize) -> f64 {
    let rank = (sorted.len() * part).div_ceil(100).max(1);
    let value = sorted.get(rank - 1).copied().unwrap_or_default();
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quantile_is_a_measured_value() {
        let mut samples = Samples::default();
        for value in (1..=200).rev() {
            samples.push(f64::from(value));
        }

        let spread = samples.spread();

        assert_eq!((spread.runs, spread.min, spread.max), (200, 1.0, 200.0));
        assert_eq!((spread.p50, spread.p90, spread.p99), (100.0, 180.0, 198.0));
    }

    #[test]
    fn one_run_and_none_are_no_trouble() {
        let mut one = Samples::default();
        one.push(3.0);

        assert_eq!((one.spread().p50, one.spread().p99), (3.0, 3.0));
        assert_eq!(Samples::default().spread().p50, 0.0);
    }
}
