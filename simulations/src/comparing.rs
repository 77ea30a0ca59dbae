//! `compare`: plays two scenarios, or reads what sweeps of them have said, and tells what differs.

use std::io::Write;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;

use simulations::compare::{Compared, Measured, Quartiles, Verdict};
use simulations::scenario;

use crate::sweep;

/// Bounds what `sweep --json` may have said.
const BYTES_MAX: u64 = 64 << 20;

/// Compares; says whether nothing got worse.
pub(crate) fn compare(
    out: &mut impl Write,
    [baseline, current]: [&str; 2],
    seeds: u64,
    json: bool,
) -> anyhow::Result<bool> {
    let compared = measure(baseline, seeds)?.compare(&measure(current, seeds)?);
    if json {
        writeln!(out, "{}", serde_json::to_string(&compared)?)?;
    } else {
        print(out, &compared)?;
    }
    Ok(compared.iter().all(|compared| compared.verdict != Verdict::Worse))
}

/// Reads what a sweep has said, or plays a scenario.
fn measure(path: &str, seeds: u64) -> anyhow::Result<Measured> {
    let is_saved = std::path::Path::new(path).extension().is_some_and(|ending| ending == "json");
    if is_saved {
        let found = std::fs::metadata(path).with_context(|| format!("cannot read {path}"))?;
        anyhow::ensure!(found.len() <= BYTES_MAX, "{path} is larger than what a sweep says");
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        return serde_json::from_str(&text)
            .with_context(|| format!("{path} is not what `sweep --json` says of a scenario"));
    }
    let scenario = scenario::read(path)?;
    let mut measured = Measured::default();
    let mut done = 0;
    sweep::each(&scenario, 1..seeds.saturating_add(1), &AtomicBool::new(false), |report| {
        measured.add(&report);
        done += 1;
        let _ = writeln!(std::io::stderr(), "{path}: {done} of {seeds} seeds");
        Ok(())
    })?;
    Ok(measured)
}

fn print(out: &mut impl Write, compared: &[Compared]) -> std::io::Result<()> {
    writeln!(out, "median [middle half of the seeds]")?;
    for Compared { figure, baseline, current, verdict } in compared {
        let verdict = match verdict {
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Same => "same",
        };
        writeln!(out, "{verdict:6} {figure:30} {:>28} -> {:>28}", text(*baseline), text(*current))?;
    }
    Ok(())
}

fn text(Quartiles { low, median, high }: Quartiles) -> String {
    format!("{median:.1} [{low:.1} - {high:.1}]")
}
