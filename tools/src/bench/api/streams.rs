//! What long streams cost the gateway: processor time a token where it has all it can do, and a share of a core and memory
//! where many go on at the pace of a model.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tokio::task::JoinSet;

use super::client::{Client, EVENTS_BESIDE_TOKENS};
use crate::bench::cluster::{Cluster, until};
use crate::bench::idle::{cpu_s, memory_mb};

/// Streams that go on at the pace of a model.
pub(super) const STEADY_STREAMS: usize = 128;

/// Tokens a second of each.
pub(super) const STEADY_PACE: u32 = 50;

/// The share of that pace which counts as keeping it.
const PACE_KEPT: f64 = 0.95;

/// Streams that go on as fast as they can.
pub(super) const FAST_STREAMS: usize = 16;

/// Tokens of each of these.
const FAST_TOKENS: u32 = 60_000;

/// A context with room for that.
pub(super) const FAST_CONTEXT: u32 = 65_000;

/// Streams whose gateway has all that it can do.
#[derive(Debug, Serialize)]
pub(super) struct Fast {
    pub(super) streams: usize,
    pub(super) tokens_per_cpu_s: f64,
    pub(super) tokens_per_s: f64,
    /// Share of one core that the gateway took meanwhile.
    pub(super) cores: f64,
    pub(super) tokens: u64,
}

/// Streams at the pace of a model.
#[derive(Debug, Serialize)]
pub(super) struct Steady {
    pub(super) streams: usize,
    /// Of each stream, as it came.
    pub(super) tokens_per_s: f64,
    /// Whether that is the pace at which the engine makes them; a gateway that falls behind takes a small share of a core.
    pub(super) keeps_pace: bool,
    /// Share of one core that the gateway took.
    pub(super) core_share: f64,
    /// Anonymous memory that came with the streams, of each, in MB of a million bytes.
    pub(super) mb_per_stream: f64,
    pub(super) seconds: f64,
}

/// Follows streams to their end, all begun at once.
struct Streams {
    seen: Arc<AtomicU64>,
    running: JoinSet<Result<u64>>,
}

impl Streams {
    fn begin(cluster: &Cluster, count: usize, tokens: u32) -> Result<Self> {
        let client = Client::new(cluster.consumer.client.address(), &cluster.model, tokens)?;
        let seen = Arc::<AtomicU64>::default();
        let mut running = JoinSet::new();
        for _ in 0..count {
            let (client, seen) = (client.clone(), seen.clone());
            running.spawn(async move { client.follow(&seen).await });
        }
        Ok(Self { seen, running })
    }

    fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Waits until so many events have come; fails if a stream ends before.
    async fn until_seen(&mut self, events: u64) -> Result<()> {
        until("the streams to be on", async || {
            if let Some(ended) = self.running.try_join_next() {
                anyhow::bail!("a stream ended too early: {:?}", ended?);
            }
            Ok((self.seen() >= events).then_some(()))
        })
        .await
    }
}

/// Lets streams go on as fast as they can, to their end; checks that each token was an event of its own.
///
/// The gateway comes after all other processes, so that it always has more to do than it can: where it waits for tokens it
/// wakes for a few of them, and that is what it would be measured by. It stays so; the network is of no use for anything else.
pub(super) async fn measure_fast(cluster: &Cluster) -> Result<Fast> {
    let pid = cluster.consumer.pid()?;
    come_last(pid)?;
    let (cpu, begun) = (cpu_s(pid)?, Instant::now());
    let mut streams = Streams::begin(cluster, FAST_STREAMS, FAST_TOKENS)?;
    while let Some(ended) = streams.running.join_next().await {
        let events = ended??;
        let tokens = events.checked_sub(EVENTS_BESIDE_TOKENS).context("a stream without its end")?;
        ensure!(tokens == u64::from(FAST_TOKENS), "{tokens} events for {FAST_TOKENS} tokens");
    }
    let (cpu, wall) = (cpu_s(pid)? - cpu, begun.elapsed().as_secs_f64());
    let tokens = FAST_STREAMS as u64 * u64::from(FAST_TOKENS);
    Ok(Fast {
        streams: FAST_STREAMS,
        tokens_per_cpu_s: tokens as f64 / cpu,
        tokens_per_s: tokens as f64 / wall,
        cores: cpu / wall,
        tokens,
    })
}

/// Gives all threads of a process a tenth of the weight of others; with less still, on a machine that does something else, it would
/// be silent for so long that its partners think it lost.
fn come_last(pid: u32) -> Result<()> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("it has no threads")? {
        let thread = thread?.file_name();
        let status =
            Command::new("renice").args(["-n", "10", "-p"]).arg(thread).stdout(Stdio::null()).status();
        ensure!(status.context("there is no `renice`: install util-linux")?.success(), "`renice` failed");
    }
    Ok(())
}

/// Measures over a time in which all streams go on, and then breaks them off.
pub(super) async fn measure_steady(cluster: &Cluster, period: Duration) -> Result<Steady> {
    let pid = cluster.consumer.pid()?;
    let memory = memory_mb(pid, "RssAnon:")?;
    let most = u32::try_from(period.as_secs()).context("a short time")? + 60;
    let mut streams = Streams::begin(cluster, STEADY_STREAMS, most * STEADY_PACE)?;
    streams.until_seen(STEADY_STREAMS as u64 * u64::from(STEADY_PACE)).await?;
    let (cpu, seen, begun) = (cpu_s(pid)?, streams.seen(), Instant::now());
    let mut most_memory = memory;
    while begun.elapsed() < period {
        tokio::time::sleep(Duration::from_secs(1)).await;
        most_memory = most_memory.max(memory_mb(pid, "RssAnon:")?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (cpu, seen) = (cpu_s(pid)? - cpu, streams.seen() - seen);
    ensure!(streams.running.try_join_next().is_none(), "a stream ended too early");
    let tokens_per_s = seen as f64 / seconds / STEADY_STREAMS as f64;
    Ok(Steady {
        streams: STEADY_STREAMS,
        tokens_per_s,
        keeps_pace: tokens_per_s >= PACE_KEPT * f64::from(STEADY_PACE),
        core_share: cpu / seconds,
        mb_per_stream: (most_memory - memory) / STEADY_STREAMS as f64,
        seconds,
    })
}
