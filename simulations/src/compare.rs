//! What got better and what got worse between two sets of runs, with the spread over seeds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::Report;

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    Higher,
    Lower,
}

/// Figures that are compared, and which way each is better.
const FIGURES: [(&str, Better); 9] = [
    ("jobs_done_percent", Better::Higher),
    ("first_token_ms_p50", Better::Lower),
    ("first_token_ms_p99", Better::Lower),
    ("done_ms_p50", Better::Lower),
    ("done_ms_p99", Better::Lower),
    ("control_bytes_per_node_s_p50", Better::Lower),
    ("control_bytes_per_node_s_p99", Better::Lower),
    ("honest_share_percent", Better::Higher),
    ("rules_broken", Better::Lower),
];

/// Figures of many runs of one scenario, each with a value for every seed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// By the name of the figure: its values, by seed.
    pub figures: BTreeMap<String, BTreeMap<u64, f64>>,
}

/// A figure on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// Its name.
    pub figure: &'static str,
    /// Quartiles of the baseline.
    pub baseline: Quartiles,
    /// Quartiles of what is compared with it.
    pub current: Quartiles,
    /// What is to be said of it.
    pub verdict: Verdict,
}

/// Where a quarter, a half and three quarters of values lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quartiles {
    /// A quarter is at most this.
    pub low: f64,
    /// Half is.
    pub median: f64,
    /// Three quarters are.
    pub high: f64,
}

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The middle halves do not meet, and it is better.
    Better,
    /// They do not meet, and it is worse.
    Worse,
    /// They meet: the seeds differ as much among themselves.
    Same,
}

impl Measured {
    /// Adds what a run came to.
    pub fn add(&mut self, report: &Report) {
        let (jobs, figures) = (report.jobs, &report.figures);
        let control = &report.control_bytes_per_node_s;
        let broken = report.invariants.iter().filter(|rule| !rule.held).count();
        let values = [
            jobs.completed as f64 * 100.0 / jobs.placed.max(1) as f64,
            figures.first_token_ms.p50 as f64,
            figures.first_token_ms.p99 as f64,
            figures.done_ms.p50 as f64,
            figures.done_ms.p99 as f64,
            control.p50 as f64,
            control.p99 as f64,
            figures.honest_share * 100.0,
            broken as f64,
        ];
        for ((name, _), value) in FIGURES.iter().zip(values) {
            self.figures.entry((*name).to_owned()).or_default().insert(report.seed, value);
        }
    }

    /// Returns how figures that both have differ.
    #[must_use]
    pub fn compare(&self, current: &Self) -> Vec<Compared> {
        let both = |(figure, better): &(&'static str, Better)| {
            let baseline = Quartiles::of(self.figures.get(*figure)?)?;
            let current = Quartiles::of(current.figures.get(*figure)?)?;
            Some(Compared { figure, baseline, current, verdict: verdict(baseline, current, *better) })
        };
        FIGURES.iter().filter_map(both).collect()
    }
}

fn verdict(baseline: Quartiles, current: Quartiles, better: Better) -> Verdict {
    let (rises, falls) = (current.low > baseline.high, current.high < baseline.low);
    match (rises, falls, better) {
        (true, _, Better::Higher) | (_, true, Better::Lower) => Verdict::Better,
        (true, _, Better::Lower) | (_, true, Better::Higher) => Verdict::Worse,
        (false, false, _) => Verdict::Same,
    }
}

impl Quartiles {
    fn of(values: &BTreeMap<u64, f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.values().copied().collect();
        values.sort_by(f64::total_cmp);
        let at = |quarters: usize| values.get((values.len() * quarters).div_ceil(4).checked_sub(1)?).copied();
        Some(Self { low: at(1)?, median: at(2)?, high: at(3)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(values: &[f64]) -> Measured {
        let values: BTreeMap<u64, f64> = (1..).zip(values.iter().copied()).collect();
        Measured { figures: FIGURES.iter().map(|(name, _)| ((*name).to_owned(), values.clone())).collect() }
    }

    fn verdict_of(baseline: &[f64], current: &[f64], figure: &str) -> Verdict {
        let compared = measured(baseline).compare(&measured(current));
        compared.iter().find(|compared| compared.figure == figure).expect("it is compared").verdict
    }

    #[test]
    fn what_lies_beyond_the_spread_of_the_seeds_differs_and_what_lies_within_does_not() {
        let baseline = [10.0, 11.0, 12.0, 13.0];
        assert_eq!(verdict_of(&baseline, &[14.0, 15.0, 16.0, 17.0], "jobs_done_percent"), Verdict::Better);
        assert_eq!(verdict_of(&baseline, &[14.0, 15.0, 16.0, 17.0], "done_ms_p50"), Verdict::Worse);
        assert_eq!(verdict_of(&baseline, &[1.0, 2.0, 3.0, 4.0], "done_ms_p50"), Verdict::Better);
        assert_eq!(verdict_of(&baseline, &[9.0, 12.0, 13.0, 40.0], "done_ms_p50"), Verdict::Same);
    }

    #[test]
    fn a_figure_that_one_side_lacks_is_not_compared() {
        assert_eq!(measured(&[1.0]).compare(&Measured::default()), Vec::new());
    }
}
