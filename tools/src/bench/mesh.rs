//! `cargo xtask bench mesh`: all that the network adds, in one run, side by side.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::decode::{self, Decode};
use super::floors::{self, Floors};
use super::idle::{self, Idle};
use super::latency::{self, Latency};
use super::samples::Spread;
use super::table::{Machine, Table, target};

/// How much to measure.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Prints one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// A tenth of the runs: to see that it works, not for numbers that are quoted
    #[arg(long)]
    quick: bool,
}

/// So many times is each thing measured.
struct Runs {
    requests: usize,
    as_it_comes: usize,
    refusals: usize,
    pairs: usize,
    starts: usize,
    idle: Duration,
}

impl Runs {
    const WHOLE: Self = Self {
        requests: 1_000,
        as_it_comes: 250,
        refusals: 200,
        pairs: 10,
        starts: 10,
        idle: Duration::from_secs(30),
    };
    const QUICK: Self = Self {
        requests: 100,
        as_it_comes: 25,
        refusals: 20,
        pairs: 2,
        starts: 3,
        idle: Duration::from_secs(5),
    };
}

/// The result; its first eight keys are what others rely on.
#[derive(Debug, Serialize)]
struct Report {
    added_latency_ms: Spread,
    decode_ratio: f64,
    refusal_ms: Spread,
    idle_rss_mb: f64,
    idle_cpu_percent: f64,
    ready_ms: f64,
    quinn_rtt_ms: Spread,
    stream_rtt_ms: Spread,
    latency_ms: Latency,
    floors_ms: Floors,
    decode: Vec<Decode>,
    idle: Idle,
    ready_first_ms: Spread,
    ready_again_ms: Spread,
    machine: Machine,
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

async fn measure(program: &Path, runs: &Runs) -> Result<Report> {
    let machine = Machine::here();
    super::say("floors: the disk and round trips");
    let floors = floors::measure(runs.requests).await?;
    super::say("latency: an instant engine behind the network");
    let latency = latency::measure(program, runs.requests, runs.as_it_comes).await?;
    super::say("refusals by a provider that is full");
    let refusals = latency::measure_refusals(program, runs.refusals).await?;
    super::say("starts, and a node that does nothing");
    let (ready_first, ready_again) = idle::measure_starts(program, runs.starts).await?;
    let idle = idle::measure(program, runs.idle).await?;
    let mut decode = Vec::new();
    for threads in [1, 2] {
        super::say(&format!("decode rate with {} on {threads} thread(s)", decode::MODEL));
        decode.push(decode::measure(program, threads, runs.pairs).await?);
    }
    Ok(Report {
        added_latency_ms: latency.warm,
        decode_ratio: decode[0].ratio.p50,
        refusal_ms: refusals,
        idle_rss_mb: idle.rss_mb,
        idle_cpu_percent: idle.cpu_percent,
        ready_ms: ready_first.p50,
        quinn_rtt_ms: floors.quinn,
        stream_rtt_ms: floors.stream,
        latency_ms: latency,
        floors_ms: floors,
        decode,
        idle,
        ready_first_ms: ready_first,
        ready_again_ms: ready_again,
        machine,
    })
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new(&self.machine);
        self.add_floors(&mut table);
        self.add_latency(&mut table);
        self.add_decode(&mut table);
        self.add_idle(&mut table);
        table
    }

    fn add_floors(&self, table: &mut Table) {
        let floors = &self.floors_ms;
        table.times("floor: append and fdatasync", &floors.fdatasync, "");
        table.times("floor: raw quinn, round trip on an open stream", &floors.quinn, "");
        table.times("floor: raw quinn, round trip on a new stream", &floors.quinn_new, "");
        table.times("floor: our stream, round trip on an open one", &floors.stream, "");
        table.times("floor: our stream, round trip on a new one", &floors.stream_new, "");
        table.times("floor: empty answer of the API", &self.latency_ms.http, "");
    }

    fn add_latency(&self, table: &mut Table) {
        let latency = &self.latency_ms;
        let (warm, refusal) = (&latency.warm, &self.refusal_ms);
        let reached = warm.p50 <= 2.0 && warm.p99 <= 5.0;
        table.times("API to first token, warm channel", warm, &target("p50 <= 2 ms, p99 <= 5 ms", reached));
        table.times("  of it until the provider is chosen", &latency.warm_chosen, "");
        table.times("  until the account and its receipt", &latency.warm_done, "");
        table.times("  the same at the provider itself, no network", &latency.at_home, "");
        table.times("API to first token, channels as they come", &latency.as_it_comes, "");
        let share = format!("{:.0} % of those requests", latency.cold_share * 100.0);
        table.times("  those that opened a channel (cold)", &latency.cold, &share);
        let reached = refusal.p50 <= 1.0 && refusal.p99 <= 5.0;
        table.times("refusal when saturated", refusal, &target("p50 <= 1 ms, p99 <= 5 ms", reached));
    }

    fn add_decode(&self, table: &mut Table) {
        for Decode { threads, mesh, direct, ratio, first_token_ms } in &self.decode {
            let goal =
                if *threads == 1 { target(">= 0.99", ratio.p50 >= 0.99) } else { "reported".to_owned() };
            let what = format!("decode rate, {threads} thread(s): mesh / direct");
            table.number(&what, &format!("{:.4}", ratio.p50), ratio.runs, &goal);
            let rates = format!("{:.1} / {:.1} tokens/s", mesh.p50, direct.p50);
            table.number("  rates", &rates, ratio.runs, "");
            let spread = format!("{:.3} to {:.3}", ratio.min, ratio.max);
            table.number("  ratios from lowest to highest", &spread, ratio.runs, "");
            table.times("  first token through the mesh, with the prompt", first_token_ms, "");
        }
    }

    fn add_idle(&self, table: &mut Table) {
        let Idle { rss_mb, anonymous_mb, cpu_percent, seconds } = &self.idle;
        let rss = format!("{rss_mb:.1} MB");
        table.number("idle node without a model: resident", &rss, 1, &target("<= 60 MB", *rss_mb <= 60.0));
        table.number("  of it not the program's file", &format!("{anonymous_mb:.1} MB"), 1, "");
        let goal = target("<= 0.5 % of a core", *cpu_percent <= 0.5);
        let what = format!("idle node without a model: processor over {seconds} s");
        table.number(&what, &format!("{cpu_percent:.2} %"), 1, &goal);
        let first = &self.ready_first_ms;
        table.times("start to ready, new folder", first, &target("<= 1 s", first.p50 <= 1_000.0));
        table.times("start to ready, same folder again", &self.ready_again_ms, "");
    }
}
