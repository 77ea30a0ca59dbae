//! `cargo xtask bench faults`: how long real processes take to notice a fault and to get over it.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use node::api::views::ServedModelView;
use node::exit::FailureKind;
use node::models::FAKE;
use serde::Serialize;

use super::cluster::{Cluster, Node, failure_of, run_job, run_until, until};
use super::decode::MODEL;
use super::samples::{Samples, Spread};
use super::table::{Machine, Table, target};

/// How often to measure.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Prints one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// How often each fault is made
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: usize,
}

/// A fake engine that makes a token in 20 ms.
const PACED: &str = r#"{"load_ms":0,"fail_to_load":null,"tokens_per_s":50,"prefill_tokens_per_s":0,"context_length":0,"crash_at":null,"hang_at":null}"#;

/// A job that outlasts every measurement.
const PROMPT: &str = "Tell me a story without end.";
const TOKENS: u32 = 4_000;

/// So many tokens have arrived when the fault is made.
const TOKENS_BEFORE: u32 = 10;

/// Times in milliseconds.
#[derive(Debug, Default)]
struct Times {
    provider_killed: Samples,
    provider_again: Samples,
    usable_again: Samples,
    consumer_killed: Samples,
    consumer_again: Samples,
    worker_killed_client: Samples,
    worker_killed: Samples,
    client_gone: Samples,
    model_again: Samples,
    model_worker_again: Samples,
}

/// The result, in milliseconds.
#[derive(Debug, Serialize)]
struct Report {
    /// Provider killed in mid-stream: until the client hears of it.
    provider_killed_to_client_error: Spread,
    /// The killed provider started again: until it is ready.
    provider_restart_to_ready: Spread,
    /// From there until a job is done there again.
    provider_ready_to_job_done: Spread,
    /// Consumer killed in mid-stream: until the provider's engine has stopped.
    consumer_killed_to_engine_stopped: Spread,
    /// The killed consumer, which has no model, started again: until it is ready.
    consumer_restart_to_ready: Spread,
    /// Worker killed in mid-stream: until the client hears of it.
    worker_killed_to_client_error: Spread,
    /// Worker killed: until its successor is ready.
    worker_killed_to_ready: Spread,
    /// Client disconnected in mid-stream: until the provider's engine has stopped.
    client_gone_to_engine_stopped: Spread,
    /// A killed provider of a real model started again: until it is ready.
    model_restart_to_ready: Spread,
    /// Worker of a real model killed: until its successor is ready.
    model_worker_killed_to_ready: Spread,
    machine: Machine,
}

/// Makes the faults, measures and prints.
pub(super) async fn run(program: &Path, arguments: &Arguments) -> Result<()> {
    let machine = Machine::here();
    let mut times = Times::default();
    let mut cluster = Cluster::start(program, FAKE, &["--fake", PACED]).await?;
    for run in 1..=arguments.runs {
        super::say(&format!("faults, run {run} of {}", arguments.runs));
        disconnect_client(&cluster, &mut times).await?;
        kill_worker(&cluster, &mut times).await?;
        kill_provider(&mut cluster, &mut times).await?;
        kill_consumer(&mut cluster, &mut times).await?;
    }
    cluster.end().await?;
    kill_real_model(program, arguments.runs.div_ceil(2), &mut times).await?;
    let report = Report::new(&times, machine);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.table().print();
    }
    Ok(())
}

async fn disconnect_client(cluster: &Cluster, times: &mut Times) -> Result<()> {
    let events = run_until(&cluster.consumer.client, &cluster.job(PROMPT, TOKENS), TOKENS_BEFORE).await?;
    let begun = Instant::now();
    drop(events);
    until_stopped(&cluster.provider).await?;
    times.client_gone.push_time(begun.elapsed());
    Ok(())
}

/// Waits until a node's engine works on nothing.
async fn until_stopped(node: &Node) -> Result<()> {
    until("the engine to stop", async || Ok((node.status().await?.jobs_serving == 0).then_some(()))).await
}

async fn kill_worker(cluster: &Cluster, times: &mut Times) -> Result<()> {
    let body = cluster.job(PROMPT, TOKENS);
    let mut events = run_until(&cluster.consumer.client, &body, TOKENS_BEFORE).await?;
    let pid = worker_of(&cluster.provider).await?;
    let begun = Instant::now();
    kill(pid)?;
    let failure = failure_of(&mut events).await?;
    times.worker_killed_client.push_time(begun.elapsed());
    ensure!(failure.kind == FailureKind::WorkerLost, "another failure than expected: {failure}");
    until_worker_other_than(pid, &cluster.provider).await?;
    times.worker_killed.push_time(begun.elapsed());
    Ok(())
}

async fn worker_of(node: &Node) -> Result<u32> {
    let models: Vec<ServedModelView> = node.client.get("models").await?;
    models.first().and_then(|model| model.worker_pid).context("the provider has no worker")
}

async fn until_worker_other_than(pid: u32, node: &Node) -> Result<()> {
    until("the worker to be ready again", async || {
        let models: Vec<ServedModelView> = node.client.get("models").await?;
        let ready = |model: &ServedModelView| {
            model.state == "ready" && model.worker_pid.is_some_and(|worker| worker != pid)
        };
        Ok(models.first().is_some_and(ready).then_some(()))
    })
    .await
}

/// Ends a process by force.
fn kill(pid: u32) -> Result<()> {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().context("cannot run kill")?;
    ensure!(status.success(), "there is no process {pid}");
    Ok(())
}

async fn kill_provider(cluster: &mut Cluster, times: &mut Times) -> Result<()> {
    let body = cluster.job(PROMPT, TOKENS);
    let mut events = run_until(&cluster.consumer.client, &body, TOKENS_BEFORE).await?;
    let begun = Instant::now();
    cluster.provider.kill().await?;
    let failure = failure_of(&mut events).await?;
    times.provider_killed.push_time(begun.elapsed());
    ensure!(failure.kind == FailureKind::ProviderLost, "another failure than expected: {failure}");

    let begun = Instant::now();
    cluster.provider.start_again().await?;
    cluster.provider.until_ready().await?;
    times.provider_again.push_time(begun.elapsed());
    let begun = Instant::now();
    let body = cluster.job("[[end=1]]", 64);
    until("the provider to be used again", async || Ok(run_job(&cluster.consumer.client, &body).await.ok()))
        .await?;
    times.usable_again.push_time(begun.elapsed());
    Ok(())
}

async fn kill_consumer(cluster: &mut Cluster, times: &mut Times) -> Result<()> {
    let events = run_until(&cluster.consumer.client, &cluster.job(PROMPT, TOKENS), TOKENS_BEFORE).await?;
    let begun = Instant::now();
    cluster.consumer.kill().await?;
    until_stopped(&cluster.provider).await?;
    times.consumer_killed.push_time(begun.elapsed());
    drop(events);

    let begun = Instant::now();
    cluster.consumer.start_again().await?;
    cluster.consumer.until_ready().await?;
    times.consumer_again.push_time(begun.elapsed());
    cluster.until_found().await
}

async fn kill_real_model(program: &Path, runs: usize, times: &mut Times) -> Result<()> {
    super::say(&format!("faults of a provider of {MODEL}"));
    let mut cluster = Cluster::start(program, MODEL, &[]).await?;
    for _ in 0..runs {
        let pid = worker_of(&cluster.provider).await?;
        let begun = Instant::now();
        kill(pid)?;
        until_worker_other_than(pid, &cluster.provider).await?;
        times.model_worker_again.push_time(begun.elapsed());

        cluster.provider.kill().await?;
        let begun = Instant::now();
        cluster.provider.start_again().await?;
        cluster.provider.until_ready().await?;
        times.model_again.push_time(begun.elapsed());
    }
    cluster.end().await
}

impl Report {
    fn new(times: &Times, machine: Machine) -> Self {
        Self {
            provider_killed_to_client_error: times.provider_killed.spread(),
            provider_restart_to_ready: times.provider_again.spread(),
            provider_ready_to_job_done: times.usable_again.spread(),
            consumer_killed_to_engine_stopped: times.consumer_killed.spread(),
            consumer_restart_to_ready: times.consumer_again.spread(),
            worker_killed_to_client_error: times.worker_killed_client.spread(),
            worker_killed_to_ready: times.worker_killed.spread(),
            client_gone_to_engine_stopped: times.client_gone.spread(),
            model_restart_to_ready: times.model_again.spread(),
            model_worker_killed_to_ready: times.model_worker_again.spread(),
            machine,
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&self.machine);
        let killed = &self.provider_killed_to_client_error;
        let goal = target("about 2 s", killed.p50 <= 2_500.0);
        table.times("provider killed in mid-stream: client hears of it", killed, &goal);
        table.times("  provider started again: ready", &self.provider_restart_to_ready, "");
        table.times("  from there: a job is done there again", &self.provider_ready_to_job_done, "");
        let killed = &self.consumer_killed_to_engine_stopped;
        let goal = target("about 2 s", killed.p50 <= 2_500.0);
        table.times("consumer killed in mid-stream: engine has stopped", killed, &goal);
        table.times("  consumer started again: ready", &self.consumer_restart_to_ready, "");
        table.times(
            "worker killed in mid-stream: client hears of it",
            &self.worker_killed_to_client_error,
            "",
        );
        table.times(
            "  its successor is ready (fake model)",
            &self.worker_killed_to_ready,
            "waits 500 ms first",
        );
        table.times("client disconnects: engine has stopped", &self.client_gone_to_engine_stopped, "");
        table.times(
            &format!("node with {MODEL} killed, started again: ready"),
            &self.model_restart_to_ready,
            "",
        );
        table.times(
            &format!("worker with {MODEL} killed: successor ready"),
            &self.model_worker_killed_to_ready,
            "",
        );
        table
    }
}
