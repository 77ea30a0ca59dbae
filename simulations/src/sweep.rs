//! Many seeds of one scenario over all cores.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use serde::Serialize;

use simulations::compare::Measured;
use simulations::play::run;
use simulations::report::Report;
use simulations::scenario::Scenario;

/// What `sweep --json` prints.
#[derive(Serialize)]
struct Swept {
    passed: usize,
    failed: Vec<Failed>,
    #[serde(flatten)]
    measured: Measured,
}

/// A seed that failed.
#[derive(Serialize)]
struct Failed {
    seed: u64,
    invariants: Vec<&'static str>,
    findings: Vec<String>,
    repeat: String,
}

/// Findings printed of each seed that fails.
const FINDINGS_SHOWN: usize = 3;

/// When a sweep ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Every seed was played.
    All,
    /// One has failed.
    Failed,
}

/// Plays `scenario` with every one of `seeds`; says whether all passed. `line` tells how to repeat a seed.
pub(crate) fn sweep(
    out: &mut impl Write,
    scenario: &Scenario,
    (seeds, until): (Range<u64>, Until),
    json: bool,
    line: &dyn Fn(u64) -> String,
) -> anyhow::Result<bool> {
    let count = seeds.end - seeds.start;
    let (mut passed, mut failed) = (0, BTreeMap::new());
    let enough = AtomicBool::new(false);
    let mut measured = Measured::default();
    each(scenario, seeds, &enough, |report| {
        measured.add(&report);
        if report.passed() {
            passed += 1;
        } else {
            let one = Failed::of(&report, line);
            if !json {
                one.print(out)?;
            }
            failed.insert(report.seed, one);
            enough.fetch_or(until == Until::Failed, Ordering::Relaxed);
        }
        let done = passed + failed.len();
        let _ = writeln!(std::io::stderr(), "{done} of {count} seeds, {} failed", failed.len());
        Ok(())
    })?;
    let all = failed.is_empty();
    if json {
        let swept = Swept { passed, failed: failed.into_values().collect(), measured };
        writeln!(out, "{}", serde_json::to_string(&swept)?)?;
    } else {
        writeln!(out, "{passed} passed, {} failed", failed.len())?;
    }
    Ok(all)
}

/// Plays every seed on some core until it is enough, and hands over each report as it comes.
pub(crate) fn each(
    scenario: &Scenario,
    seeds: Range<u64>,
    enough: &AtomicBool,
    mut take: impl FnMut(Report) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(seeds.start);
    let (send, reports) = mpsc::sync_channel(cores);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = seed >= seeds.end || enough.load(Ordering::Relaxed);
                    if over || send.send(run(scenario, seed)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        reports.into_iter().try_for_each(&mut take)
    })
}

impl Failed {
    fn of(report: &Report, line: &dyn Fn(u64) -> String) -> Self {
        let broken = report.invariants.iter().filter(|invariant| !invariant.held);
        Self {
            seed: report.seed,
            invariants: broken.map(|invariant| invariant.name).collect(),
            findings: report.findings.clone(),
            repeat: line(report.seed),
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "seed {}: {}", self.seed, self.invariants.join(", "))?;
        for finding in self.findings.iter().take(FINDINGS_SHOWN) {
            writeln!(out, "  {finding}")?;
        }
        writeln!(out, "  {}", self.repeat)
    }
}
