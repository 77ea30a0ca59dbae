//! API keys of real nodes: what they spend, what they cannot, and what a power cut does not give back.

use std::time::Duration;

use node::api::views::KeyView;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tests::{Ground, PACED, Peer, until};

use crate::SHAREMESH;

/// Makes a key with the command line; returns its secret.
async fn create(node: &Peer, name: &str, words: &[&str]) -> String {
    let made = node.cli(&[&["keys", "create", name], words].concat()).await;
    made.must_succeed().trim().to_owned()
}

async fn key(node: &Peer, name: &str) -> KeyView {
    let shown = node.cli(&["keys", "show", name, "--json"]).await;
    serde_json::from_str(shown.must_succeed()).expect("a key")
}

async fn chat(node: &Peer, key: &str, max_tokens: u32, stream: bool) -> Response {
    let url = format!("http://{}/v1/chat/completions", node.client().address());
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"model": "fake", "messages": messages, "max_tokens": max_tokens, "stream": stream});
    let http = Client::builder().no_proxy().build().expect("plain");
    http.post(url).bearer_auth(key).json(&body).send().await.expect("answered")
}

#[tokio::test]
async fn a_key_spends_what_its_jobs_cost_and_never_more_than_its_budget() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let secret = create(&trio.consumer, "phone", &["--budget", "0.001"]).await;

    let (mut paid, mut jobs) = (0, 0);
    let refused = loop {
        let answer = chat(&trio.consumer, &secret, 40, false).await;
        if answer.status() != 200 {
            break answer;
        }
        let answer: Value = answer.json().await.expect("JSON");
        paid += answer["sharemesh"][0]["price_nano"].as_u64().expect("a number");
        jobs += 1;
    };

    assert_eq!(refused.status(), 402, "{}", refused.text().await.unwrap_or_default());
    let view = key(&trio.consumer, "phone").await;
    assert!(jobs > 0 && paid > 0);
    assert_eq!((view.spent.nano, view.reserved.nano, view.jobs), (paid, 0, jobs));
    assert!(view.spent.nano <= 1_000_000, "{view:?}");
    assert_eq!(view.spent_today, view.spent);
    assert!(!trio.consumer.log().contains(&secret[4..]));
    trio.consumer.cli(&["keys", "revoke", "phone"]).await.must_succeed();
    assert_eq!(chat(&trio.consumer, &secret, 1, false).await.status(), 401);
    trio.check_books().await;
}

#[tokio::test]
async fn what_fits_no_context_is_too_long_for_a_key_too_and_not_too_dear() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[r#"--fake={"context_length":128}"#]).await;
    let secret = create(&trio.consumer, "phone", &["--budget", "1"]).await;

    let refused = chat(&trio.consumer, &secret, 500, false).await;

    assert_eq!(refused.status(), 400);
    let refused: Value = refused.json().await.expect("JSON");
    assert_eq!(refused["error"]["code"], "context_length_exceeded", "{refused}");
    assert_eq!(chat(&trio.consumer, &secret, 5, false).await.status(), 200);
}

#[tokio::test]
async fn a_power_cut_in_mid_stream_gives_no_budget_back() {
    let ground = Ground::new(SHAREMESH);
    let mut trio = ground.trio(&[PACED]).await;
    let secret = create(&trio.consumer, "phone", &["--per-day", "1"]).await;
    let mut stream = chat(&trio.consumer, &secret, 2_000, true).await;
    until("some of the answer is there", async || match stream.chunk().await {
        Ok(Some(chunk)) if String::from_utf8_lossy(&chunk).contains("content\":\"") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let before = key(&trio.consumer, "phone").await;

    trio.consumer = trio.consumer.kill_and_restart().await;

    let after = key(&trio.consumer, "phone").await;
    assert!(before.reserved.nano > 0 && before.spent.nano == 0, "{before:?}");
    assert_eq!((after.spent.nano, after.reserved.nano), (before.reserved.nano, 0), "counted in full");
    assert_eq!(after.spent_today, after.spent);
    trio.consumer.until_provided("fake").await;
    trio.check_books().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_charged_what_was_delivered() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;
    let secret = create(&trio.consumer, "phone", &["--per-day", "1"]).await;
    let mut stream = chat(&trio.consumer, &secret, 2_000, true).await;
    let first = tokio::time::timeout(Duration::from_secs(60), stream.chunk()).await.expect("in time");
    assert!(first.expect("readable").is_some());
    let worst = key(&trio.consumer, "phone").await.reserved.nano;

    drop(stream);

    until("the job is over", async || {
        let view = key(&trio.consumer, "phone").await;
        if view.jobs == 1 { Ok(()) } else { Err(format!("{view:?}")) }
    })
    .await;
    let view = key(&trio.consumer, "phone").await;
    assert!(view.spent.nano < worst && view.reserved.nano == 0, "{view:?}, of {worst}");
    assert!(view.tokens_out < 2_000, "{view:?}");
    trio.check_books().await;
}

#[tokio::test]
async fn an_api_that_others_can_reach_needs_a_key_to_start() {
    let ground = Ground::new(SHAREMESH);
    let data = ground.data("open");
    let up = ["--api", "0.0.0.0:0", "up", "--listen", "127.0.0.1:0", "--mdns", "off", "--exit-with-parent"];

    let refused = ground.program().run(&data, &up, b"").await;
    refused.must_fail(2, &["sharemesh keys create", "127.0.0.1:0"]);

    // Standard input ends at once, and the node with it.
    ground.program().run(&data, &["keys", "create", "a", "--per-day", "1"], b"").await.must_succeed();
    let started = ground.program().run(&data, &up, b"").await;
    assert_eq!(started.code, Some(0), "{started:?}");
}
