//! What a node costs that does nothing, and how long it takes to start.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use node::models::FAKE;
use serde::Serialize;

use super::cluster::{Cluster, Node, folder};
use super::samples::{Samples, Spread};

/// A node that has just started has still things to do.
const CALM: Duration = Duration::from_secs(5);

/// Clock ticks in a second, in which the kernel counts processor time for programs.
const TICKS_PER_S: f64 = 100.0;

/// What an idle node without a model costs: one in a network of three, connected to both others.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    /// Resident memory in MB of a million bytes.
    pub(super) rss_mb: f64,
    /// The part of it that is the process's own and not the program's file.
    pub(super) anonymous_mb: f64,
    /// Processor time in percent of one core.
    pub(super) cpu_percent: f64,
    /// For so long.
    pub(super) seconds: u64,
}

pub(super) async fn measure(program: &Path, period: Duration) -> Result<Idle> {
    let cluster = Cluster::start(program, FAKE, &[]).await?;
    let pid = cluster.consumer.pid()?;
    tokio::time::sleep(CALM).await;
    let before = cpu_s(pid)?;
    let begun = Instant::now();
    tokio::time::sleep(period).await;
    let cpu_percent = (cpu_s(pid)? - before) / begun.elapsed().as_secs_f64() * 100.0;
    let (rss_mb, anonymous_mb) = (memory_mb(pid, "VmRSS:")?, memory_mb(pid, "RssAnon:")?);
    cluster.end().await?;
    Ok(Idle { rss_mb, anonymous_mb, cpu_percent, seconds: period.as_secs() })
}

/// Measures how long a node takes from its start until it is ready: in a new folder, and in one that has a network.
pub(super) async fn measure_starts(program: &Path, runs: usize) -> Result<(Spread, Spread)> {
    let (mut first, mut again) = (Samples::default(), Samples::default());
    let flags = ["--listen", "127.0.0.1:0"].map(str::to_owned);
    for _ in 0..runs {
        let folder = folder()?;
        let data = folder.path().join("node");
        for samples in [&mut first, &mut again] {
            let begun = Instant::now();
            let mut node = Node::start(program, &data, &flags).await?;
            node.until_ready().await?;
            samples.push_time(begun.elapsed());
            node.end().await?;
        }
    }
    Ok((first.spread(), again.spread()))
}

/// Returns a line of `/proc/PID/status` in MB of a million bytes.
pub(super) fn memory_mb(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .context("memory can be measured on Linux only")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("the kernel does not say {field}"))? * 1024.0 / 1e6)
}

/// Returns the processor time of a process, in user and in kernel mode, without that of its children.
pub(super) fn cpu_s(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .context("processor time can be measured on Linux only")?;
    // The program's name may contain anything but ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_S)
}
