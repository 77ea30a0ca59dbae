//! `cargo xtask bench api`: what the HTTP API of a node costs, with providers behind the network, beside a bare server.

pub(crate) mod bare;

mod client;

mod overload;

mod requests;

mod streams;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use engine::FakeOptions;
use node::models::FAKE;
use serde::Serialize;

use super::cluster::Cluster;
use super::samples::Spread;
use super::table::{Machine, Table, target};

/// How much to measure.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Prints one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// A fraction of the runs: to see that it works, not for numbers that are quoted
    #[arg(long)]
    quick: bool,
    /// The node's program, if not a release build of this tree
    #[arg(long)]
    program: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn program(&self) -> Option<&Path> {
        self.program.as_deref()
    }
}

/// So much is measured of each thing.
struct Runs {
    requests: usize,
    steady: Duration,
    overload_s: u64,
    cancels: usize,
}

impl Runs {
    const WHOLE: Self =
        Self { requests: 1_000, steady: Duration::from_secs(20), overload_s: 15, cancels: 100 };
    const QUICK: Self = Self { requests: 100, steady: Duration::from_secs(5), overload_s: 5, cancels: 10 };
}

/// The result; its first six keys are what others rely on.
#[derive(Debug, Serialize)]
struct Report {
    added_latency_ms: Added,
    tokens_per_cpu_s: f64,
    core_share_128x50: f64,
    mb_per_stream: f64,
    overload_p99_ratio: f64,
    recovery_s: f64,
    cancel_ms: Spread,
    requests: Vec<requests::Level>,
    fast: streams::Fast,
    steady: streams::Steady,
    overload: overload::Overload,
    machine: Machine,
}

/// Median time to the first token beyond that of a bare server, with so many streams at once.
#[derive(Debug, Serialize)]
struct Added {
    c1: f64,
    c8: f64,
    c32: f64,
    c128: f64,
}

/// Measures and prints.
pub(super) async fn run(program: &Path, arguments: &Arguments) -> Result<()> {
    let runs = if arguments.quick { Runs::QUICK } else { Runs::WHOLE };
    let report = measure(program, &runs).await?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.table().print();
    }
    Ok(())
}

/// Starts a network whose provider has a fake engine of this speed and so many slots.
async fn network(program: &Path, fake: &FakeOptions, slots: u32) -> Result<Cluster> {
    let fake = serde_json::to_string(fake)?;
    Cluster::start(program, FAKE, &["--fake", &fake, "--slots", &slots.to_string()]).await
}

async fn measure(program: &Path, runs: &Runs) -> Result<Report> {
    let machine = Machine::here();
    super::say("requests to an instant engine, and to a bare server");
    let cluster = network(program, &FakeOptions::default(), 192).await?;
    let requests = requests::measure(&cluster, runs.requests).await?;
    cluster.end().await?;
    super::say("streams as fast as they can");
    // So fast that it never waits, and yet each token is a part of its own.
    let fast = FakeOptions {
        tokens_per_s: 1_000_000_000,
        context_length: streams::FAST_CONTEXT,
        ..FakeOptions::default()
    };
    let cluster = network(program, &fast, 64).await?;
    let fast = streams::measure_fast(&cluster).await?;
    cluster.end().await?;
    super::say("streams at the pace of a model");
    let paced = |tokens_per_s| FakeOptions { tokens_per_s, ..FakeOptions::default() };
    let cluster = network(program, &paced(streams::STEADY_PACE), 160).await?;
    let steady = streams::measure_steady(&cluster, runs.steady).await?;
    cluster.end().await?;
    super::say("five times as many requests as there is room for");
    let cluster = network(program, &paced(overload::PACE), overload::SLOTS).await?;
    let overload = overload::measure(&cluster, runs.overload_s).await?;
    super::say("connections that are closed in mid-stream");
    let cancel_ms = overload::measure_cancel(&cluster, runs.cancels).await?;
    cluster.end().await?;
    let added = |at_once| {
        let level = requests.iter().find(|level| level.at_once == at_once);
        level.map_or(f64::NAN, |level| level.added_ms)
    };
    Ok(Report {
        added_latency_ms: Added { c1: added(1), c8: added(8), c32: added(32), c128: added(128) },
        tokens_per_cpu_s: fast.tokens_per_cpu_s,
        core_share_128x50: steady.core_share,
        mb_per_stream: steady.mb_per_stream,
        overload_p99_ratio: overload.p99_ratio,
        recovery_s: overload.recovery_s,
        cancel_ms,
        requests,
        fast,
        steady,
        overload,
        machine,
    })
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new(&self.machine);
        self.add_requests(&mut table);
        self.add_streams(&mut table);
        self.add_overload(&mut table);
        table
    }

    fn add_requests(&self, table: &mut Table) {
        for level in &self.requests {
            let at_once = level.at_once;
            table.times(&format!("{at_once} at once: first token, bare server"), &level.bare_first, "");
            table.times("  at the node", &level.first, "");
            let runs = level.first.runs;
            table.number("  added, median", &format!("{:.2} ms", level.added_ms), runs, "");
            table.times("  whole answer, bare server", &level.bare_whole, "");
            table.times("  at the node", &level.whole, "");
            let rates = format!("{:.0} / {:.0} a second", level.per_s, level.bare_per_s);
            table.number("  requests, node / bare server", &rates, runs, "");
        }
    }

    fn add_streams(&self, table: &mut Table) {
        let fast = &self.fast;
        let goal = target(">= 200,000", fast.tokens_per_cpu_s >= 200_000.0);
        let what = format!("tokens per CPU-second of the gateway, {} streams", fast.streams);
        table.number(&what, &format!("{:.0}", fast.tokens_per_cpu_s), 1, &goal);
        let rate = format!("{:.0} a second, {:.2} cores", fast.tokens_per_s, fast.cores);
        table.number("  tokens, and what the gateway took for them", &rate, 1, "");
        let steady = &self.steady;
        let what =
            format!("{} streams at {:.1} tokens/s: share of a core", steady.streams, steady.tokens_per_s);
        let goal = target("<= 15 % at 50 tokens/s", steady.keeps_pace && steady.core_share <= 0.15);
        table.number(&what, &format!("{:.1} %", steady.core_share * 100.0), 1, &goal);
        let goal = target("<= 1 MB", steady.mb_per_stream <= 1.0);
        table.number("  memory of each stream", &format!("{:.3} MB", steady.mb_per_stream), 1, &goal);
    }

    fn add_overload(&self, table: &mut Table) {
        let overload = &self.overload;
        table.times("whole answer with room to spare", &overload.unloaded, "");
        table.times("  asked 5 times too much: of those admitted", &overload.admitted, "");
        let goal = target("<= 3", overload.p99_ratio <= 3.0);
        table.number(
            "  99th percentiles, overloaded / unloaded",
            &format!("{:.2}", overload.p99_ratio),
            1,
            &goal,
        );
        table.times("  refusals", &overload.refused, "");
        let goal = target("<= 5 s", overload.recovery_s <= 5.0);
        table.number("  until all is well again", &format!("{:.2} s", overload.recovery_s), 1, &goal);
        let goal = target("<= 1 s", self.cancel_ms.p99 <= 1_000.0);
        table.times("connection closed: the provider's engine has stopped", &self.cancel_ms, &goal);
    }
}
