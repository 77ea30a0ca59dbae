//! What the network adds to a request, with an engine that needs no time: until the first token, and until a refusal.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use engine::FakeOptions;
use node::api::views::{JobBody, JobView};
use node::cli::client::Client;
use node::exit::{Failure, FailureKind};
use node::models::FAKE;
use serde::Serialize;

use super::cluster::{Cluster, Run, failure_of, run_job, run_until, until};
use super::samples::{Samples, Spread};

/// Tokens of each answer.
const TOKENS: u32 = 64;

/// A prompt of an ordinary length.
const PROMPT: &str = "Why is the sky blue, and why is it red in the evening? Answer in a few words.";

/// So many tokens may the job have that opens the warm channel; four times as many then fit on it.
const WARM_TOKENS: u32 = 60_000;

/// A job of so many tokens keeps the provider's only slot busy at one token a second.
const FILLER_TOKENS: u32 = 3_600;

/// Times of requests from the API to the first token, in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    /// Through the network, on a channel that has room for all of them.
    pub(super) warm: Spread,
    /// The same until the client hears which provider was chosen.
    pub(super) warm_chosen: Spread,
    /// The same until the end: with the account and its receipt.
    pub(super) warm_done: Spread,
    /// The same requests put to the provider itself: API, driver and worker without the network.
    pub(super) at_home: Spread,
    /// Requests one after the other with channels as the protocol opens them.
    pub(super) as_it_comes: Spread,
    /// Those of them that opened a channel.
    pub(super) cold: Spread,
    /// Their part of `as_it_comes`.
    pub(super) cold_share: f64,
    /// An answer of the API without content: the part of HTTP in all of the above.
    pub(super) http: Spread,
}

/// Returns the options of a fake engine of this speed, 0 for instant, whose context has room for [`WARM_TOKENS`].
fn fake(tokens_per_s: u32) -> String {
    let options = FakeOptions { tokens_per_s, context_length: 2 * WARM_TOKENS, ..FakeOptions::default() };
    serde_json::to_string(&options).expect("plain data")
}

/// Measures requests that all succeed.
pub(super) async fn measure(program: &Path, runs: usize, runs_as_it_comes: usize) -> Result<Latency> {
    let cluster = Cluster::start(program, FAKE, &["--fake", &fake(0)]).await?;
    let consumer = &cluster.consumer.client;
    let body = cluster.job(PROMPT, TOKENS);
    run_job(consumer, &body).await?;
    let http = http(consumer, runs).await?;

    let mut runs_as_they_come = Vec::new();
    for _ in 0..runs_as_it_comes {
        runs_as_they_come.push(checked(run_job(consumer, &body).await?)?);
    }
    let (mut as_it_comes, mut cold) = (Samples::default(), Samples::default());
    let mut seen = BTreeSet::new();
    for run in &runs_as_they_come {
        as_it_comes.push_time(run.first);
        if seen.insert(channel(consumer, run).await?) {
            cold.push_time(run.first);
        }
    }

    // One job that might be long opens a channel with room for all that follow.
    run_job(consumer, &cluster.job("[[end=1]]", WARM_TOKENS)).await?;
    let mut warm_runs = Vec::new();
    for _ in 0..runs {
        warm_runs.push(checked(run_job(consumer, &body).await?)?);
    }
    let (mut warm, mut chosen, mut done) = (Samples::default(), Samples::default(), Samples::default());
    let mut channels = BTreeSet::new();
    for run in &warm_runs {
        warm.push_time(run.first);
        chosen.push_time(run.chosen);
        done.push_time(run.done);
        channels.insert(channel(consumer, run).await?);
    }
    channels.retain(|channel| !seen.contains(channel));
    ensure!(channels.len() <= 1, "warm requests used {} new channels instead of one", channels.len());

    let mut at_home = Samples::default();
    for _ in 0..runs {
        at_home.push_time(checked(run_job(&cluster.provider.client, &body).await?)?.first);
    }
    cluster.end().await?;
    let (as_it_comes, cold) = (as_it_comes.spread(), cold.spread());
    #[expect(clippy::cast_precision_loss, reason = "a few hundred runs")]
    let cold_share = cold.runs as f64 / as_it_comes.runs.max(1) as f64;
    Ok(Latency {
        warm: warm.spread(),
        warm_chosen: chosen.spread(),
        warm_done: done.spread(),
        at_home: at_home.spread(),
        as_it_comes,
        cold,
        cold_share,
        http: http.spread(),
    })
}

fn checked(run: Run) -> Result<Run> {
    ensure!(run.tokens == TOKENS, "{} tokens arrived instead of {TOKENS}", run.tokens);
    Ok(run)
}

/// Returns the channel on which a job was paid; the ledger shows a job a moment after its end.
async fn channel(client: &Client, run: &Run) -> Result<String> {
    let path = format!("jobs/{}", run.account.job);
    let job = until("a job to be in the ledger", async || match client.get::<JobView>(&path).await {
        Ok(job) => Ok(Some(job)),
        Err(failure) if failure.kind == FailureKind::NotFound => Ok(None),
        Err(failure) => Err(failure.into()),
    });
    job.await?.channel.context("a job was not paid on a channel")
}

async fn http(client: &Client, runs: usize) -> Result<Samples> {
    let http = reqwest::Client::builder().no_proxy().build().context("cannot prepare requests")?;
    let url = format!("http://{}/livez", client.address());
    let mut samples = Samples::default();
    for _ in 0..runs {
        let begun = Instant::now();
        http.get(&url).send().await?.error_for_status()?.bytes().await?;
        samples.push_time(begun.elapsed());
    }
    Ok(samples)
}

/// Measures refusals by a provider whose only slot is taken.
pub(super) async fn measure_refusals(program: &Path, runs: usize) -> Result<Spread> {
    let cluster = Cluster::start(program, FAKE, &["--slots", "1", "--fake", &fake(1)]).await?;
    let consumer = &cluster.consumer.client;
    let filler = run_until(consumer, &cluster.job("[[end=3600]]", FILLER_TOKENS), 1).await?;
    let body = cluster.job(PROMPT, TOKENS);
    let mut samples = Samples::default();
    for _ in 0..runs {
        let begun = Instant::now();
        let failure = refusal(consumer, &body).await?;
        samples.push_time(begun.elapsed());
        ensure!(failure.kind == FailureKind::Refused, "refused for another reason: {failure}");
    }
    drop(filler);
    cluster.end().await?;
    Ok(samples.spread())
}

async fn refusal(client: &Client, body: &JobBody) -> Result<Failure> {
    match client.submit(body).await {
        Err(failure) => Ok(failure),
        Ok(mut events) => failure_of(&mut events).await,
    }
}
