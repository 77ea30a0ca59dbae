//! The same request again under its `Idempotency-Key`, at a real node.

use reqwest::{Client, Response};
use serde_json::{Value, json};
use tests::{Ground, PACED, Trio, until};

use crate::SHAREMESH;

/// Tokens of the answer: seconds of them, so that it is under way when it is asked for again.
const TOKENS: u64 = 400;

async fn ask(trio: &Trio, path: &str, key: &str, body: &Value) -> Response {
    let url = format!("http://{}{path}", trio.consumer.client().address());
    let request = Client::builder().no_proxy().build().expect("plain").post(url).json(body);
    request.header("idempotency-key", key).send().await.expect("answered")
}

#[tokio::test]
async fn a_stream_whose_client_lost_its_connection_is_there_when_it_comes_back_and_paid_once() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;
    let chat = json!({
        "model": "fake", "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": TOKENS,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let generate = json!({"model": "fake", "prompt": "Tell a story.", "options": {"num_predict": TOKENS}});
    for (path, body, end) in
        [("/v1/chat/completions", chat, "data: [DONE]"), ("/api/generate", generate, "\"done\":true")]
    {
        let mut first = ask(&trio, path, path, &body).await;
        let job = first.headers()["x-sharemesh-job"].to_str().expect("text").to_owned();
        first.chunk().await.expect("a part").expect("more than nothing");
        drop(first);

        let second = ask(&trio, path, path, &body).await;
        assert_eq!(
            (second.status().as_u16(), &second.headers()["x-should-retry"]),
            (409, &"true".parse().expect("ok"))
        );
        let kept = until("the stream has ended", async || {
            let again = ask(&trio, path, path, &body).await;
            if again.status() == 409 { Err("it is in flight".to_owned()) } else { Ok(again) }
        })
        .await;

        assert_eq!(
            (kept.status().as_u16(), &kept.headers()["x-sharemesh-replayed"]),
            (200, &"true".parse().expect("ok"))
        );
        assert_eq!(kept.headers()["x-sharemesh-job"], job.as_str());
        let text = kept.text().await.expect("text");
        assert!(text.contains(end), "{text}");
        let view = trio.consumer.job_once_known(&job).await;
        assert_eq!((u64::from(view.tokens_out), view.detail.as_str()), (TOKENS, "length"));
        assert!(text.contains(&format!("\"price_nano\":{}", view.price.nano)), "{text}");
    }
    // Two answers, and nothing for what was asked again.
    let receipts = trio.consumer.receipts().await;
    let served: u64 = receipts.iter().map(|receipt| receipt.tokens_out).max().unwrap_or_default();
    assert_eq!(served, 2 * TOKENS, "{receipts:#?}");
    trio.check_books().await;
}
