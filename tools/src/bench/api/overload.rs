//! Five times as many requests as there is room for, what becomes of them, and how soon all is well again; and how soon a
//! provider stops whose client is gone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reqwest::StatusCode;
use serde::Serialize;
use tokio::task::JoinSet;

use super::client::{Asked, Client};
use crate::bench::cluster::{Cluster, until};
use crate::bench::samples::{Samples, Spread};

/// Jobs at once that the provider takes.
pub(super) const SLOTS: u32 = 16;

/// Tokens a second of each.
pub(super) const PACE: u32 = 100;

/// Tokens of each answer: half a second.
const TOKENS: u32 = 50;

/// What all slots do in a second.
const CAPACITY_PER_S: f64 = (SLOTS * PACE / TOKENS) as f64;

/// Shares of that which are asked for: with room to spare, far too much, and half again to see it recover.
const UNLOADED: f64 = 0.25;
const OVERLOADED: f64 = 5.0;
const AFTER: f64 = 0.5;

#[derive(Debug, Serialize)]
pub(super) struct Overload {
    /// 99th percentile of the admitted under overload, by that of the unloaded.
    pub(super) p99_ratio: f64,
    /// From the end of the overload until the first request is sent from which on each is admitted and answered in no more
    /// than 1.5 times the 99th percentile of unloaded ones, in seconds.
    pub(super) recovery_s: f64,
    /// Whole answers with room to spare, in milliseconds.
    pub(super) unloaded: Spread,
    /// Whole answers of those admitted under overload, in milliseconds.
    pub(super) admitted: Spread,
    /// Refusals under overload, in milliseconds until the client had them.
    pub(super) refused: Spread,
}

/// One request: when it was sent since the beginning, and what came of it.
type Sent = (Duration, Asked);

/// Measures all three, one after the other.
pub(super) async fn measure(cluster: &Cluster, seconds: u64) -> Result<Overload> {
    let client = Client::new(cluster.consumer.client.address(), &cluster.model, TOKENS)?;
    let period = Duration::from_secs(seconds);
    // Channels with room for all slots are open afterwards.
    offer(&client, AFTER, Duration::from_secs(5)).await?;
    let calm = offer(&client, UNLOADED, period).await?;
    let mut unloaded = Samples::default();
    for (_, asked) in &calm {
        ensure!(asked.status == StatusCode::OK, "refused with room to spare: {}", asked.status);
        unloaded.push_time(asked.whole);
    }
    let unloaded = unloaded.spread();
    // The first requests after it are sent while the last of the overload are still being answered.
    let (stormy, after) = {
        let overload = offer_from(&client, OVERLOADED, Duration::ZERO, period);
        let after = offer_from(&client, AFTER, period, Duration::from_secs(10));
        let (overload, after) = tokio::join!(overload, after);
        (overload?, after?)
    };
    let (mut admitted, mut refused) = (Samples::default(), Samples::default());
    for (_, asked) in &stormy {
        match asked.status {
            StatusCode::OK => {
                ensure!(asked.is_whole, "an admitted answer ended with {}", asked.last);
                admitted.push_time(asked.whole);
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                ensure!(asked.has_retry_after, "a refusal does not say when to come again");
                refused.push_time(asked.first);
            }
            other => anyhow::bail!("a request under overload had {other}"),
        }
    }
    let admitted = admitted.spread();
    let slow = unloaded.p99 * 1.5;
    let is_well = |asked: &Asked| {
        asked.status == StatusCode::OK && asked.is_whole && asked.whole.as_secs_f64() * 1_000.0 <= slow
    };
    let recovery = recovery(&after, period, is_well)?;
    Ok(Overload {
        p99_ratio: admitted.p99 / unloaded.p99,
        recovery_s: recovery.as_secs_f64(),
        unloaded,
        admitted,
        refused: refused.spread(),
    })
}

/// Returns how long after `end` the first request was sent from which on all were well.
fn recovery(after: &[Sent], end: Duration, is_well: impl Fn(&Asked) -> bool) -> Result<Duration> {
    let last_unwell = after.iter().filter(|(_, asked)| !is_well(asked)).map(|(at, _)| *at).max();
    let sent_later =
        after.iter().map(|(at, _)| *at).filter(|at| last_unwell.is_none_or(|unwell| *at > unwell));
    Ok(sent_later.min().context("it was not well again while it was watched")?.saturating_sub(end))
}

async fn offer(client: &Client, share: f64, period: Duration) -> Result<Vec<Sent>> {
    offer_from(client, share, Duration::ZERO, period).await
}

/// Sends requests at an even pace, whatever becomes of those before, from `begin` on.
async fn offer_from(client: &Client, share: f64, begin: Duration, period: Duration) -> Result<Vec<Sent>> {
    let pace = Duration::from_secs_f64(1.0 / (CAPACITY_PER_S * share));
    let started = Instant::now();
    let mut asking = JoinSet::new();
    for number in 0.. {
        let at = begin + pace * number;
        if at >= begin + period {
            break;
        }
        tokio::time::sleep_until((started + at).into()).await;
        let client = client.clone();
        asking.spawn(async move { Ok::<_, anyhow::Error>((at, client.ask().await?)) });
    }
    let mut sent = Vec::new();
    while let Some(asked) = asking.join_next().await {
        sent.push(asked??);
    }
    Ok(sent)
}

/// Breaks connections off in mid-stream; returns how long it took until the provider's engine worked on nothing.
pub(super) async fn measure_cancel(cluster: &Cluster, runs: usize) -> Result<Spread> {
    let client = Client::new(cluster.consumer.client.address(), &cluster.model, 2_000)?;
    let serving = async || anyhow::Ok(cluster.provider.status().await?.jobs_serving);
    let mut times = Samples::default();
    for _ in 0..runs {
        let mut response = client.send().await?;
        ensure!(response.status() == StatusCode::OK, "a request was refused with {}", response.status());
        // The role, and some tokens after it.
        for _ in 0..4 {
            ensure!(response.chunk().await?.is_some(), "an answer ended too early");
        }
        ensure!(serving().await? == 1, "the provider works on one job");
        let begun = Instant::now();
        drop(response);
        until("the engine to stop", async || Ok((serving().await? == 0).then_some(()))).await?;
        times.push_time(begun.elapsed());
    }
    Ok(times.spread())
}
