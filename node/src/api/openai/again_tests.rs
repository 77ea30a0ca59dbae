//! The same request again, under the same `Idempotency-Key`.

use reqwest::RequestBuilder;
use serde_json::Value;

use super::tests::{answer, post, until};
use crate::api::tests::served;

#[tokio::test]
async fn the_same_request_under_the_same_key_is_run_once() {
    let served = served().await;
    let ask = |model: &str, key: &str, more: &str| {
        let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"x"}}]{more}}}"#);
        post(&served, "/v1/chat/completions", &body).header("idempotency-key", key.to_owned())
    };

    let first = ask("echo", "a", "").send().await.expect("answered");
    let again = ask("echo", "a", "").send().await.expect("answered");
    assert_eq!(again.headers()["x-sharemesh-replayed"], "true");
    assert_eq!(again.headers()["x-sharemesh-job"], first.headers()["x-sharemesh-job"]);
    assert_eq!(again.text().await.expect("text"), first.text().await.expect("text"));
    assert_eq!(served.told.submitted(), 1);

    assert_eq!(answer(ask("echo", "a", r#","n":2"#)).await.0, 422, "another request");
    assert_eq!(answer(ask("echo", "", "")).await.0, 400);
    // What failed and was paid for in part is not run again; what was not is.
    let before = served.told.submitted();
    for (model, status) in [("half", 502), ("half", 502), ("none", 503), ("none", 503)] {
        assert_eq!(answer(ask(model, model, "")).await.0, status);
    }
    assert_eq!(served.told.submitted(), before + 3);
}

#[tokio::test]
async fn a_request_under_a_key_goes_on_when_its_client_goes_and_is_in_flight_until_it_ends() {
    let served = served().await;
    let body = r#"{"model":"slow","messages":[{"role":"user","content":"x"}]}"#;
    let ask = || post(&served, "/v1/chat/completions", body).header("idempotency-key", "k");
    let first = tokio::spawn(ask().send());
    until(|| served.told.submitted() == 1).await;
    first.abort();

    let second = ask().send().await.expect("answered");

    assert_eq!(second.status(), 409);
    assert_eq!(second.headers()["x-should-retry"], "true");
    assert_eq!((served.told.submitted(), served.told.cancelled().len()), (1, 0));
}

/// Returns a request of a chat under a key.
fn keyed(request: RequestBuilder, key: &str) -> RequestBuilder {
    request.header("idempotency-key", key.to_owned())
}

fn chat(model: &str, more: &str) -> String {
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"x"}}],"stream":true{more}}}"#)
}

#[tokio::test]
async fn a_stream_that_ended_whole_is_given_again_byte_for_byte_and_paid_once() {
    let served = served().await;
    let usage = r#","stream_options":{"include_usage":true}"#;
    let responses = r#"{"model":"echo","input":"x","stream":true}"#;
    let ollama = r#"{"model":"echo","messages":[{"role":"user","content":"x"}]}"#;
    let all = [
        ("/v1/chat/completions", chat("echo", usage), "text/event-stream"),
        ("/v1/responses", responses.to_owned(), "text/event-stream"),
        ("/api/chat", ollama.to_owned(), "application/x-ndjson"),
    ];
    for (number, (path, body, kind)) in all.iter().enumerate() {
        let ask = || keyed(post(&served, path, body), path).send();
        let first = ask().await.expect("answered");
        let (job, provider) =
            ["x-sharemesh-job", "x-sharemesh-provider"].map(|name| first.headers()[name].clone()).into();
        assert!(first.headers().get("x-sharemesh-replayed").is_none());
        let first = first.text().await.expect("text");
        // At once: whoever has heard the end may ask again.
        let again = ask().await.expect("answered");

        assert_eq!(
            (again.status().as_u16(), &again.headers()["content-type"]),
            (200, &kind.parse().expect("a header"))
        );
        assert_eq!(again.headers()["x-sharemesh-replayed"], "true");
        assert_eq!(
            (&again.headers()["x-sharemesh-job"], &again.headers()["x-sharemesh-provider"]),
            (&job, &provider)
        );
        assert_eq!(again.text().await.expect("text"), first, "{path}");
        assert!(first.contains("cc"), "the receipt is in it: {first}");
        assert_eq!(served.told.submitted(), number + 1);
        let other = body.replacen("\"x\"", "\"y\"", 1);
        assert_eq!(answer(keyed(post(&served, path, &other), path)).await.0, 422);
    }
}

#[tokio::test]
async fn a_stream_in_flight_is_not_begun_again_and_goes_on_when_its_client_goes() {
    let served = served().await;
    let body = chat("slow", "");
    let ask = || keyed(post(&served, "/v1/chat/completions", &body), "k").send();
    let first = ask().await.expect("answered");
    assert_eq!(first.status(), 200);
    drop(first);

    let second = ask().await.expect("answered");

    assert_eq!(
        (second.status().as_u16(), &second.headers()["x-should-retry"]),
        (409, &"true".parse().expect("a header"))
    );
    assert!(second.headers().contains_key("retry-after"));
    assert_eq!((served.told.submitted(), served.told.cancelled().len()), (1, 0));
}

#[tokio::test]
async fn a_stream_that_broke_off_after_it_was_paid_says_so_again_and_pays_nothing() {
    let served = served().await;
    let ask = |path: &'static str, body: String| keyed(post(&served, path, &body), path).send();
    let ollama = r#"{"model":"half","messages":[{"role":"user","content":"x"}]}"#;
    for (path, body) in [("/v1/chat/completions", chat("half", "")), ("/api/chat", ollama.to_owned())] {
        let before = served.told.submitted();
        let first = ask(path, body.clone()).await.expect("answered").text().await.expect("text");
        let again = ask(path, body).await.expect("answered");

        assert_eq!(again.headers()["x-sharemesh-replayed"], "broken-off");
        let again = again.text().await.expect("text");
        assert_eq!(again, first);
        let last = again.lines().rfind(|line| !line.is_empty()).expect("a line");
        let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).expect("JSON");
        assert!(!last["error"].is_null(), "{last}");
        assert_eq!(served.told.submitted(), before + 1);
    }
    // Nothing was paid: the same key may try again.
    for tries in 1..=2 {
        let before = served.told.submitted();
        let fresh = keyed(post(&served, "/v1/chat/completions", &chat("none", "")), "new").send();
        assert_eq!(fresh.await.expect("answered").status(), 503, "{tries}");
        assert_eq!(served.told.submitted(), before + 1);
    }
}

#[tokio::test]
async fn requests_of_ollamas_programs_are_run_once_under_a_key_and_say_in_headers_what_they_cost() {
    let served = served().await;
    let embed = r#"{"model":"echo","input":["x"]}"#;
    let generate = r#"{"model":"echo","prompt":"x","stream":false}"#;
    for (number, (path, body)) in [("/api/embed", embed), ("/api/generate", generate)].into_iter().enumerate()
    {
        let ask = || keyed(post(&served, path, body), path).send();
        let first = ask().await.expect("answered");
        for (name, value) in [("x-sharemesh-receipt", "cc"), ("x-sharemesh-price", "0.0000001")] {
            assert_eq!(first.headers()[name], value, "{path}");
        }
        assert_eq!(first.headers()["x-sharemesh-job"].len(), 32);
        assert!(first.headers().contains_key("x-sharemesh-provider"));
        let first = first.text().await.expect("text");
        let again = ask().await.expect("answered");
        assert_eq!(again.headers()["x-sharemesh-replayed"], "true");
        assert_eq!(again.headers()["x-sharemesh-price"], "0.0000001");
        assert_eq!(again.text().await.expect("text"), first);
        assert_eq!(served.told.submitted(), number + 1);
    }
}
