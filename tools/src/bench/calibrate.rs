//! `cargo xtask bench calibrate`: one small network played by real nodes and by the simulator, their traffic side by side.
//!
//! Bytes are those on streams, which no build and no speed of a machine changes; only jobs that wait would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use node::api::views::JobBody;
use node::models::FAKE;
use serde::Serialize;
use simulations::calibrating::{Plan, simulated};
use simulations::network::wire::Kind;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::cluster::{Node, folder, run_job, ticket};

/// What is played.
const PLAN: Plan = Plan {
    providers: 3,
    consumers: 6,
    calm_s: 30,
    jobs: 6,
    every_s: 20,
    prompt_bytes: 240,
    tokens: 64,
    decode: 50,
};

/// Seeds over which the simulator's counts are averaged.
const SEEDS: u64 = 10;

/// Room between counts that are called equal.
const NEAR: f64 = 0.2;

/// What to compare.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Prints one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// The node's program, if not a release build of this tree
    #[arg(long)]
    program: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn program(&self) -> Option<&Path> {
        self.program.as_deref()
    }
}

/// One kind of traffic, of all nodes together.
#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    /// Bytes sent by real nodes, prompts left out.
    real_bytes: u64,
    simulated_bytes: u64,
    /// Streams that real nodes opened, and what the simulator counts for them: each message is a stream, as is each
    /// question to the directory; gossip and pings have streams that last.
    real_streams: u64,
    simulated_streams: Option<u64>,
    ratio: f64,
    near: bool,
}

/// Measures and prints.
pub(super) async fn run(program: &Path, arguments: &Arguments) -> Result<()> {
    let real = real(program).await?;
    let simulated: Vec<_> = (1..=SEEDS).map(|seed| simulated(&PLAN, seed)).collect();
    let rows: Vec<Row> = Kind::ALL
        .iter()
        .enumerate()
        .map(|(place, kind)| {
            let mean = |of: &dyn Fn(usize) -> u64| (0..simulated.len()).map(of).sum::<u64>() / SEEDS;
            let (bytes, frames) =
                (mean(&|n| simulated[n][place].1.bytes), mean(&|n| simulated[n][place].1.count));
            Row::of(*kind, real.get(kind.name()).copied().unwrap_or_default(), bytes, frames)
        })
        .collect();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    Ok(())
}

impl Row {
    fn of(kind: Kind, (sent, streams): (u64, u64), simulated_bytes: u64, frames: u64) -> Self {
        // Both ends count a stream, and for both the simulator counts a frame.
        let prompts = (PLAN.consumers * PLAN.jobs) as u64 * PLAN.prompt_bytes;
        let is_paired = matches!(kind, Kind::Messages | Kind::Directory);
        let real_bytes = if kind == Kind::Messages { sent.saturating_sub(prompts) } else { sent };
        let ratio = simulated_bytes as f64 / (real_bytes as f64).max(1.0);
        Self {
            kind: kind.name(),
            real_bytes,
            simulated_bytes,
            real_streams: streams / 2,
            simulated_streams: is_paired.then_some(frames / 2),
            ratio,
            near: (ratio - 1.0).abs() <= NEAR,
        }
    }
}

fn print(rows: &[Row]) {
    let Plan { providers, consumers, jobs, .. } = PLAN;
    println!(
        "{providers} that serve, {consumers} that ask for {jobs} jobs each, one issuer; {} s, all nodes together",
        PLAN.seconds()
    );
    println!(
        "{:10} {:>12} {:>12} {:>7} {:>10} {:>10}",
        "", "real bytes", "simulated", "ratio", "real", "simulated"
    );
    for row in rows {
        let streams = row.simulated_streams.map(|count| count.to_string()).unwrap_or_default();
        let verdict = if row.near { "" } else { "  more than 20 % apart" };
        println!(
            "{:10} {:>12} {:>12} {:>7.2} {:>10} {streams:>10}{verdict}",
            row.kind, row.real_bytes, row.simulated_bytes, row.ratio, row.real_streams
        );
    }
}

/// Plays it with processes on loopback; returns bytes and streams by kind.
async fn real(program: &Path) -> Result<BTreeMap<String, (u64, u64)>> {
    let network = Network::start(program).await?;
    super::say("everybody is there; waiting for calm");
    tokio::time::sleep(Duration::from_secs(PLAN.calm_s)).await;
    let before = network.traffic().await?;
    super::say(&format!("{} s of jobs", PLAN.seconds()));
    let end = tokio::time::Instant::now() + Duration::from_secs(PLAN.seconds());
    network.jobs().await?;
    tokio::time::sleep_until(end).await;
    let mut after = network.traffic().await?;
    for (kind, (bytes, streams)) in before {
        let now = after.entry(kind).or_default();
        *now = (now.0.saturating_sub(bytes), now.1.saturating_sub(streams));
    }
    Ok(after)
}

/// Real nodes: the issuer, those that serve, those that ask.
struct Network {
    nodes: Vec<Node>,
    _folder: TempDir,
}

impl Network {
    async fn start(program: &Path) -> Result<Self> {
        let folder = folder()?;
        let start = async |name: String, flags: Vec<String>| {
            let mut all = ["--listen", "127.0.0.1:0", "--name", &name].map(str::to_owned).to_vec();
            all.extend(flags);
            Node::start(program, &folder.path().join(&name), &all).await
        };
        let issuer = start("issuer".to_owned(), vec!["--dev".to_owned()]).await?;
        let paced = format!(
            r#"{{"load_ms":0,"fail_to_load":null,"tokens_per_s":{},"prefill_tokens_per_s":0,"context_length":0,"crash_at":null,"hang_at":null}}"#,
            PLAN.decode
        );
        let mut nodes = vec![issuer];
        for number in 0..PLAN.providers + PLAN.consumers {
            let ticket = ticket(&nodes[0], 10_000).await?;
            let mut flags = vec!["--join".to_owned(), ticket];
            if number < PLAN.providers {
                flags.extend(["--serve", FAKE, "--fake", &paced].map(str::to_owned));
            }
            nodes.push(start(format!("node-{number}"), flags).await?);
        }
        for node in &nodes {
            node.until_ready().await?;
        }
        Ok(Self { nodes, _folder: folder })
    }

    async fn traffic(&self) -> Result<BTreeMap<String, (u64, u64)>> {
        let mut all: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for node in &self.nodes {
            for traffic in node.status().await?.traffic {
                let sum = all.entry(traffic.kind).or_default();
                *sum = (sum.0 + traffic.sent, sum.1 + traffic.streams);
            }
        }
        Ok(all)
    }

    async fn jobs(&self) -> Result<()> {
        let asking = &self.nodes[1 + PLAN.providers..];
        let mut running = JoinSet::new();
        for (number, node) in asking.iter().enumerate() {
            let client = node.client.clone();
            let first_ms = PLAN.every_s * 1000 * number as u64 / asking.len() as u64;
            running.spawn(async move {
                tokio::time::sleep(Duration::from_millis(first_ms)).await;
                for _ in 0..PLAN.jobs {
                    let next = tokio::time::Instant::now() + Duration::from_secs(PLAN.every_s);
                    run_job(&client, &job()).await?;
                    tokio::time::sleep_until(next).await;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = running.join_next().await {
            done.context("a task of the benchmark ended")??;
        }
        Ok(())
    }
}

fn job() -> JobBody {
    JobBody {
        model: FAKE.to_owned(),
        prompt: Some("a".repeat(usize::try_from(PLAN.prompt_bytes).unwrap_or(0))),
        max_tokens: Some(PLAN.tokens),
        temperature: Some(0.0),
        seed: Some(1),
        ..JobBody::default()
    }
}
