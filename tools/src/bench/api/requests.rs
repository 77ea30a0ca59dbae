//! Requests to an instant engine behind the network, beside the same requests to a bare server, so many at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use reqwest::StatusCode;
use serde::Serialize;
use tokio::task::JoinSet;

use super::bare::Bare;
use super::client::{Asked, Client};
use crate::bench::cluster::Cluster;
use crate::bench::samples::{Samples, Spread};

/// So many streams at once.
pub(super) const AT_ONCE: [usize; 4] = [1, 8, 32, 128];

/// Tokens of each answer: one part of the instant engine.
pub(super) const TOKENS: u32 = 64;

/// Rounds in which the node and the bare server take turns, so that what else the machine does hits both.
const ROUNDS: usize = 4;

/// Requests by so many who each ask again as soon as they are answered.
#[derive(Debug, Serialize)]
pub(super) struct Level {
    pub(super) at_once: usize,
    /// Median time to the first token at the node less that at the bare server, in milliseconds.
    pub(super) added_ms: f64,
    /// Until the first token, in milliseconds.
    pub(super) first: Spread,
    /// Until the end, in milliseconds.
    pub(super) whole: Spread,
    pub(super) per_s: f64,
    pub(super) bare_first: Spread,
    pub(super) bare_whole: Spread,
    pub(super) bare_per_s: f64,
}

#[derive(Default)]
struct Side {
    first: Samples,
    whole: Samples,
    requests: usize,
    seconds: f64,
}

impl Side {
    fn per_s(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// Measures all levels; `requests` of each at least, and more where many are at once.
pub(super) async fn measure(cluster: &Cluster, requests: usize) -> Result<Vec<Level>> {
    let bare = Bare::start().await?;
    let node = Client::new(cluster.consumer.client.address(), &cluster.model, TOKENS)?;
    let bare = Client::new(bare.address, &cluster.model, TOKENS).map(|client| (client, bare))?;
    let mut levels = Vec::new();
    for at_once in AT_ONCE {
        let each = requests.max(at_once * 16) / ROUNDS;
        // Connections and channels are opened before it counts.
        run(&node, at_once, at_once * 2, &mut Side::default()).await?;
        run(&bare.0, at_once, at_once * 2, &mut Side::default()).await?;
        let (mut ours, mut theirs) = (Side::default(), Side::default());
        for _ in 0..ROUNDS {
            run(&node, at_once, each, &mut ours).await?;
            run(&bare.0, at_once, each, &mut theirs).await?;
        }
        let (first, bare_first) = (ours.first.spread(), theirs.first.spread());
        levels.push(Level {
            at_once,
            added_ms: first.p50 - bare_first.p50,
            first,
            whole: ours.whole.spread(),
            per_s: ours.per_s(),
            bare_first,
            bare_whole: theirs.whole.spread(),
            bare_per_s: theirs.per_s(),
        });
    }
    Ok(levels)
}

async fn run(client: &Client, at_once: usize, requests: usize, side: &mut Side) -> Result<()> {
    let left = Arc::new(AtomicUsize::new(requests));
    let begun = Instant::now();
    let mut askers = JoinSet::new();
    for _ in 0..at_once {
        let (client, left) = (client.clone(), left.clone());
        askers.spawn(async move {
            let mut answers: Vec<Asked> = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                answers.push(client.ask().await?);
            }
            anyhow::Ok(answers)
        });
    }
    while let Some(answers) = askers.join_next().await {
        for Asked { status, first, whole, is_whole, last, .. } in answers?? {
            ensure!(status == StatusCode::OK, "a request was refused with {status}");
            ensure!(is_whole, "an answer ended with {last}");
            side.first.push_time(first);
            side.whole.push_time(whole);
        }
    }
    side.requests += requests;
    side.seconds += begun.elapsed().as_secs_f64();
    Ok(())
}
