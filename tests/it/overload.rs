//! More requests than there is room for: those that are taken are served, the rest hear so at once and pay nothing, and
//! clients that go away stop what was done for them.

use std::collections::BTreeMap;

use futures::future::join_all;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tests::{Ground, PACED, Trio, until};

use crate::SHAREMESH;

/// Jobs that stream at once, as `api.rs` bounds them.
const JOBS_MAX: usize = 192;

/// The fake engine so slow that whoever is refused is so while all the others go on.
const SLOW: &str = r#"--fake={"load_ms":0,"fail_to_load":null,"tokens_per_s":5,"prefill_tokens_per_s":0,"context_length":0,"crash_at":null,"hang_at":null}"#;

/// Asks for a stream of so many tokens at most.
async fn stream(http: &reqwest::Client, trio: &Trio, max_tokens: u32) -> Response {
    let body = json!({
        "model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens, "seed": 1,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let url = format!("http://{}/v1/chat/completions", trio.consumer.client().address());
    http.post(url).json(&body).send().await.unwrap()
}

/// Counts answers by status; each that is no stream must say when to come again.
fn by_status(answers: &[Response]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.status().as_u16()).or_insert(0) += 1;
        if answer.status() != StatusCode::OK {
            assert_eq!(answer.headers()["x-should-retry"], "true", "{answer:?}");
            let seconds: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!(seconds <= 60, "{answer:?}");
        }
    }
    counts
}

/// Reads a stream to its end; returns its chunks.
async fn chunks(answer: Response) -> Vec<Value> {
    let text = answer.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    events.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn of_five_times_as_many_requests_as_slots_those_are_served_that_have_one_and_the_rest_pay_nothing() {
    let (ground, http) = (Ground::new(SHAREMESH), reqwest::Client::builder().no_proxy().build().unwrap());
    let trio = ground.trio(&[PACED, "--slots", "4"]).await;
    // One after the other they open a channel on which all have room.
    chunks(stream(&http, &trio, 40).await).await;

    let mut paid = Vec::new();
    for _ in 0..2 {
        // So long that none has ended when the last is asked for.
        let answers = join_all((0..20).map(|_| stream(&http, &trio, 600))).await;
        let counts = by_status(&answers);
        let served = answers.into_iter().filter(|answer| answer.status() == StatusCode::OK);
        for answer in join_all(served.map(chunks)).await {
            let last = answer.last().unwrap();
            assert_eq!(last["usage"]["completion_tokens"], 600, "{last}");
            let charges = last["sharemesh"].as_array().unwrap();
            paid.extend(charges.iter().map(|charge| charge["job"].as_str().unwrap().to_owned()));
        }
        // No slot is left empty, and nobody waits for one.
        let count = |status: u16| counts.get(&status).copied().unwrap_or_default();
        assert!(count(200) >= 4 && count(200) + count(429) == 20, "{counts:?}");
    }

    trio.until_converged().await;
    let calls: u64 = newest_by_channel(&trio).await.into_values().sum();
    assert_eq!(calls, 1 + paid.len() as u64, "whoever was refused pays nothing");
    trio.check_books().await;
}

/// Returns the calls that the newest receipt of each channel counts.
async fn newest_by_channel(trio: &Trio) -> BTreeMap<String, u64> {
    let mut newest = BTreeMap::new();
    for receipt in trio.consumer.receipts().await {
        newest.entry(receipt.channel).or_insert(receipt.calls);
    }
    newest
}

#[tokio::test]
async fn a_node_streams_as_many_jobs_as_it_may_from_one_provider_refuses_more_at_once_and_takes_others_afterwards()
 {
    let (ground, http) = (Ground::new(SHAREMESH), reqwest::Client::builder().no_proxy().build().unwrap());
    let trio = ground.trio(&[SLOW, "--slots", "256"]).await;
    chunks(stream(&http, &trio, 8).await).await;

    let mut answers = join_all((0..JOBS_MAX + 40).map(|_| stream(&http, &trio, 1_000))).await;

    let counts = by_status(&answers);
    assert_eq!(counts, BTreeMap::from([(200, JOBS_MAX), (429, 40)]));
    assert_eq!(trio.provider.status().await.jobs_serving as usize, JOBS_MAX, "none has ended meanwhile");
    answers.retain(|answer| answer.status() == StatusCode::OK);
    for answer in &mut answers {
        assert!(answer.chunk().await.unwrap().is_some(), "each goes on");
    }
    answers.truncate(JOBS_MAX / 2);
    trio.provider.until_serving(u32::try_from(JOBS_MAX / 2).unwrap()).await;
    until("those who wait are taken", async || {
        let (status, text) = {
            let answer = stream(&http, &trio, 2).await;
            (answer.status(), answer.text().await.unwrap())
        };
        if status == StatusCode::OK { Ok(()) } else { Err(text) }
    })
    .await;
    for answer in &mut answers {
        assert!(answer.chunk().await.unwrap().is_some(), "each still goes on");
    }
    drop(answers);
    trio.provider.until_idle().await;
    chunks(stream(&http, &trio, 8).await).await;
    trio.check_books().await;
}

#[tokio::test]
async fn clients_that_close_their_connections_stop_the_engine_and_pay_for_what_came_once() {
    const ASKED: u32 = 8_000;
    let (ground, http) = (Ground::new(SHAREMESH), reqwest::Client::builder().no_proxy().build().unwrap());
    let trio = ground.trio(&[PACED, "--slots", "8"]).await;

    let mut jobs = Vec::new();
    for _ in 0..2 {
        let mut answers = join_all((0..8).map(|_| stream(&http, &trio, ASKED))).await;
        for answer in &mut answers {
            assert_eq!(answer.status(), StatusCode::OK);
            jobs.push(answer.headers()["x-sharemesh-job"].to_str().unwrap().to_owned());
            for _ in 0..4 {
                assert!(answer.chunk().await.unwrap().is_some());
            }
        }
        assert_eq!(trio.provider.status().await.jobs_serving, 8);
        drop(answers);
        trio.provider.until_idle().await;
    }

    let (mut tokens, mut price) = (0, 0);
    for job in &jobs {
        let paid = trio.consumer.job_once_known(job).await;
        let made = trio.provider.job_once_known(job).await;
        // At its pace the answer would have taken more than a minute.
        assert!((1..ASKED / 4).contains(&made.tokens_out), "{made:?}");
        assert_eq!((paid.tokens_out, &paid.price), (made.tokens_out, &made.price), "{paid:?} and {made:?}");
        tokens += u64::from(paid.tokens_out);
        price += paid.price.nano;
    }
    trio.until_converged().await;
    assert!(tokens > 0 && price > 0);
    let newest = newest_by_channel(&trio).await;
    assert_eq!(newest.values().sum::<u64>(), jobs.len() as u64, "each was billed once: {newest:?}");
    trio.check_books().await;
}
