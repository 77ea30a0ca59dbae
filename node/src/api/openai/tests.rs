//! The exact bytes of answers, streams and errors, in front of a driver that is not real.

use std::time::Duration;

use axum::response::IntoResponse as _;
use reqwest::{Method, RequestBuilder};

use super::error::Refusal;
use crate::api::tests::{Served, served};
use crate::exit::{Failure, FailureKind};

/// Sends JSON as a program without a key does.
pub(super) fn post(served: &Served, path: &str, body: &str) -> RequestBuilder {
    let http = reqwest::Client::builder().no_proxy().build().expect("plain");
    let request = http.post(format!("http://{}{path}", served.address));
    request.header("content-type", "application/json").body(body.to_owned())
}

/// Returns status and body, with what is different each time replaced: ids of jobs and the time.
pub(super) async fn answer(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.expect("answered");
    let jobs = response.headers().get("x-sharemesh-job").map(|jobs| jobs.to_str().expect("text").to_owned());
    let (status, mut text) = (response.status().as_u16(), response.text().await.expect("text"));
    for (number, job) in jobs.iter().flat_map(|jobs| jobs.split(", ")).enumerate() {
        text = text.replace(job, &format!("JOB{number}"));
    }
    let created = text.split("\"created\":").nth(1).and_then(|rest| rest.split(',').next());
    // Of models it is not known.
    if let Some(created) = created.map(str::to_owned).filter(|created| created != "0") {
        assert!(created.parse::<u64>().expect("a number") > 1_700_000_000, "{created}");
        text = text.replace(&format!("\"created\":{created}"), "\"created\":NOW");
    }
    (status, text)
}

pub(super) async fn until(holds: impl Fn() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), look).await.expect("it holds at last");
}

#[tokio::test]
async fn a_chat_is_answered_word_for_word() {
    let served = served().await;
    let body = r#"{"model":"echo","messages":[{"role":"user","content":"héllo"}],"user":"me"}"#;

    let response = post(&served, "/v1/chat/completions", body).send().await.expect("answered");
    for (name, value) in [
        ("x-sharemesh-provider", "aa"),
        ("x-sharemesh-receipt", "cc"),
        ("x-sharemesh-price", "0.0000001"),
        ("x-sharemesh-ignored", "user"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    assert_eq!(response.headers()["x-request-id"].len(), 32);

    let (status, text) = answer(post(&served, "/v1/chat/completions", body)).await;
    assert_eq!(status, 200);
    assert_eq!(
        text,
        concat!(
            r#"{"id":"chatcmpl-JOB0","object":"chat.completion","created":NOW,"model":"echo","choices":[{"index":0,"#,
            r#""message":{"role":"assistant","content":"héllo","refusal":null},"logprobs":null,"finish_reason":"stop"}],"#,
            r#""usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3},"sharemesh":[{"job":"JOB0","#,
            r#""provider":"aa","receipt":"cc","price_nano":100,"price_credits":"0.0000001"}]}"#,
        )
    );
}

#[tokio::test]
async fn calls_of_tools_are_told_word_for_word_whole_and_streamed() {
    let served = served().await;
    let said = r#"Wait.<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1]}}\n</tool_call>"#;
    let tools = r#"[{"type":"function","function":{"name":"f"}}]"#;
    let body = |said: &str, more: &str| {
        format!(
            r#"{{"model":"echo","messages":[{{"role":"user","content":"{said}"}}],"tools":{tools}{more}}}"#
        )
    };

    let (status, text) = answer(post(&served, "/v1/chat/completions", &body(said, ""))).await;
    assert_eq!(status, 200, "{text}");
    let message = concat!(
        r#"{"role":"assistant","content":"Wait.","refusal":null,"tool_calls":[{"id":"call_JOB0_0_0","#,
        r#""type":"function","function":{"name":"f","arguments":"{\"a\": [1]}"}}]}"#,
    );
    assert!(text.contains(message), "{text}");
    assert!(text.contains(r#""finish_reason":"tool_calls""#), "{text}");

    let (status, text) =
        answer(post(&served, "/v1/chat/completions", &body(said, r#","stream":true"#))).await;
    assert_eq!(status, 200, "{text}");
    let deltas: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once(r#""choices":[{"index":0,"#))
        .map(|(_, choice)| choice.trim_end_matches("}]}"))
        .collect();
    assert_eq!(
        deltas,
        [
            r#""delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null"#,
            r#""delta":{"content":"Wait."},"logprobs":null,"finish_reason":null"#,
            concat!(
                r#""delta":{"tool_calls":[{"index":0,"id":"call_JOB0_0_0","type":"function","#,
                r#""function":{"name":"f","arguments":""}}]},"logprobs":null,"finish_reason":null"#,
            ),
            concat!(
                r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\": [1]}"}}]},"#,
                r#""logprobs":null,"finish_reason":null"#,
            ),
            r#""delta":{},"logprobs":null,"finish_reason":"tool_calls""#,
        ]
    );

    // Words have their log probabilities, calls have none.
    for (said, more, expected) in [
        ("Wait.", r#","logprobs":true"#, true),
        ("Wait.", r#","logprobs":true,"stream":true"#, true),
        (said.strip_prefix("Wait.").expect("words"), r#","logprobs":true"#, false),
        (said.strip_prefix("Wait.").expect("words"), r#","logprobs":true,"stream":true"#, false),
    ] {
        let (status, text) = answer(post(&served, "/v1/chat/completions", &body(said, more))).await;
        assert_eq!(status, 200, "{text}");
        assert_eq!(text.contains(r#""logprobs":{"content":[{"token":"Wait.""#), expected, "{text}");
        assert_eq!(text.contains(r#""logprobs":{"#), expected, "{text}");
    }

    let broken = r#"<tool_call>{}"#;
    let (status, text) = answer(post(&served, "/v1/chat/completions", &body(broken, ""))).await;
    assert_eq!(status, 502, "{text}");
    let (_, text) = answer(post(&served, "/v1/chat/completions", &body(broken, r#","stream":true"#))).await;
    assert!(text.contains("data: {\"error\"") && !text.contains("[DONE]"), "{text}");
}

#[tokio::test]
async fn a_stream_is_role_parts_end_and_done() {
    let served = served().await;
    let body = r#"{"model":"echo","messages":[{"role":"user","content":"hi\nyou"}],"stream":true}"#;

    let response = post(&served, "/v1/chat/completions", body).send().await.expect("answered");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.headers()["x-sharemesh-provider"], "aa");

    let (status, text) = answer(post(&served, "/v1/chat/completions", body)).await;
    assert_eq!(status, 200);
    let head = r#"data: {"id":"chatcmpl-JOB0","object":"chat.completion.chunk","created":NOW,"model":"echo","choices":[{"index":0,"delta":"#;
    let chunks = [
        r#"{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#,
        r#"{"content":"hi\nyou"},"logprobs":null,"finish_reason":null}]}"#,
        r#"{},"logprobs":null,"finish_reason":"stop"}]}"#,
    ];
    let expected: String = chunks.iter().map(|chunk| format!("{head}{chunk}\n\n")).collect();
    assert_eq!(text, expected + "data: [DONE]\n\n");
}

#[tokio::test]
async fn usage_comes_in_one_chunk_without_choices_and_only_if_asked_for() {
    let served = served().await;
    let body = r#"{"model":"echo","messages":[{"role":"user","content":"hi"}],"stream":true,"n":2,"stream_options":{"include_usage":true}}"#;

    let (_, text) = answer(post(&served, "/v1/chat/completions", body)).await;

    let chunks: Vec<&str> = text.split_terminator("\n\n").collect();
    let (last, rest) = chunks.split_last().expect("chunks");
    let (usage, rest) = rest.split_last().expect("chunks");
    assert_eq!(*last, "data: [DONE]");
    assert!(
        usage.starts_with(
            r#"data: {"id":"chatcmpl-JOB0","object":"chat.completion.chunk","created":NOW,"model":"echo","choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6},"sharemesh":[{"job":"JOB"#
        ),
        "{usage}"
    );
    assert_eq!(rest.len(), 6, "{text}");
    assert!(rest.iter().all(|chunk| chunk.ends_with(r#"}],"usage":null}"#)), "{text}");
    for index in 0..2 {
        let role = format!(r#""choices":[{{"index":{index},"delta":{{"role":"assistant","content":""}}"#);
        let end =
            format!(r#""choices":[{{"index":{index},"delta":{{}},"logprobs":null,"finish_reason":"stop"}}]"#);
        assert!(rest.iter().any(|chunk| chunk.contains(&role)), "{text}");
        assert!(rest.iter().any(|chunk| chunk.contains(&end)), "{text}");
    }
}

#[tokio::test]
async fn log_probabilities_have_the_form_of_each_endpoint() {
    let served = served().await;

    let body =
        r#"{"model":"echo","messages":[{"role":"user","content":"é"}],"logprobs":true,"top_logprobs":1}"#;
    let (_, chat) = answer(post(&served, "/v1/chat/completions", body)).await;
    assert!(
        chat.contains(
            r#""logprobs":{"content":[{"token":"é","logprob":-0.5,"bytes":[195,169],"top_logprobs":[{"token":"no","logprob":-1.5,"bytes":[110,111]}]}],"refusal":null}"#
        ),
        "{chat}"
    );

    let (_, text) =
        answer(post(&served, "/v1/completions", r#"{"model":"echo","prompt":"é","logprobs":1}"#)).await;
    assert!(
        text.contains(
            r#""logprobs":{"tokens":["é"],"token_logprobs":[-0.5],"top_logprobs":[{"no":-1.5}],"text_offset":[0]}"#
        ),
        "{text}"
    );
}

#[tokio::test]
async fn a_completion_is_answered_word_for_word_whole_and_streamed() {
    let served = served().await;

    let (_, text) =
        answer(post(&served, "/v1/completions", r#"{"model":"echo","prompt":["a","b"],"echo":true}"#)).await;
    assert!(
        text.starts_with(concat!(
            r#"{"id":"cmpl-JOB0","object":"text_completion","created":NOW,"model":"echo","choices":["#,
            r#"{"text":"aa","index":0,"logprobs":null,"finish_reason":"stop"},"#,
            r#"{"text":"bb","index":1,"logprobs":null,"finish_reason":"stop"}],"usage":"#
        )),
        "{text}"
    );

    let (_, text) =
        answer(post(&served, "/v1/completions", r#"{"model":"echo","prompt":"a","stream":true}"#)).await;
    let head = r#"data: {"id":"cmpl-JOB0","object":"text_completion","created":NOW,"model":"echo","choices":[{"text":"#;
    assert_eq!(
        text,
        format!(
            "{head}\"a\",\"index\":0,\"logprobs\":null,\"finish_reason\":null}}]}}\n\n\
             {head}\"\",\"index\":0,\"logprobs\":null,\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"
        )
    );
}

#[tokio::test]
async fn errors_have_four_fields_and_an_honest_status() {
    let served = served().await;
    let chat = |model: &str, more: &str| {
        let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"x"}}]{more}}}"#);
        post(&served, "/v1/chat/completions", &body)
    };

    let (status, text) = answer(chat("echo", r#","temperature":3"#)).await;
    assert_eq!(status, 400);
    assert_eq!(
        text,
        r#"{"error":{"message":"`temperature` is 3: send a number from 0 to 2","type":"invalid_request_error","param":"temperature","code":null}}"#
    );
    let (status, text) = answer(chat("poor", "")).await;
    assert_eq!(status, 402);
    assert_eq!(
        text,
        r#"{"error":{"message":"needs 2 credits and has 1: ask the issuer for a grant","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#
    );
    for (request, expected) in [
        (chat("none", ""), 503),
        (chat("poor", r#","stream":true"#), 402),
        (chat("half", ""), 502),
        (post(&served, "/v1/chat/completions", "{"), 400),
        (post(&served, "/v1/chat/completions", "[]"), 400),
        (post(&served, "/v1/chat/completions", "\u{0}"), 400),
        (post(&served, "/v1/chat/completions", &"x".repeat(crate::api::BODY_BYTES_MAX + 1)), 413),
        (post(&served, "/v1/nonsense", "{}"), 404),
        (post(&served, "/v1/models", "{}"), 405),
    ] {
        let (status, text) = answer(request).await;
        assert_eq!(status, expected, "{text}");
        let error: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let names: Vec<_> = error["error"].as_object().expect("an object").keys().collect();
        assert_eq!(names, ["message", "type", "param", "code"], "{text}");
    }
}

#[tokio::test]
async fn clients_are_told_to_ask_again_only_where_nothing_was_paid() {
    let served = served().await;
    let retry = async |model: &str, more: &str| {
        let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"x"}}]{more}}}"#);
        let response = post(&served, "/v1/chat/completions", &body).send().await.expect("answered");
        response.headers()["x-should-retry"].to_str().expect("text").to_owned()
    };

    assert_eq!(retry("none", "").await, "true");
    assert_eq!(retry("half", "").await, "false", "a part was paid");
    assert_eq!(retry("lost", "").await, "false", "it had begun, and nobody says what was paid");
    assert_eq!(retry("none", r#","n":2"#).await, "true", "none of both had begun");
    assert_eq!(retry("half", r#","n":2"#).await, "false", "the other choice may have been paid");
    assert_eq!(retry("poor", "").await, "false");
    assert_eq!(retry("echo", r#","n":0"#).await, "false");
}

#[tokio::test]
async fn choices_for_which_there_are_no_slots_are_not_begun() {
    let served = served().await;
    let body = r#"{"model":"echo","messages":[{"role":"user","content":"x"}],"n":5}"#;

    let response = post(&served, "/v1/chat/completions", body).send().await.expect("answered");

    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-should-retry"]),
        (429, &"true".parse().unwrap())
    );
    assert_eq!(served.told.submitted(), 0);
}

#[tokio::test]
async fn what_a_request_may_hold_is_bounded_by_all_its_choices() {
    let served = served().await;
    let refused = async |more: &str| {
        let body = format!(r#"{{"model":"echo","messages":[{{"role":"user","content":"x"}}]{more}}}"#);
        answer(post(&served, "/v1/chat/completions", &body)).await
    };
    let (status, text) = refused(r#","n":4,"logprobs":true,"max_tokens":2049"#).await;
    assert!(status == 400 && text.contains("8192 tokens of all choices"), "{text}");
    let (status, text) = refused(r#","provider":{"max_price ":"0.001"}"#).await;
    assert!(status == 400 && text.contains("provider.max_price "), "{text}");
    let long = "x".repeat(3 << 20);
    let body = format!(r#"{{"model":"echo","messages":[{{"role":"user","content":"{long}"}}],"n":6}}"#);
    let (status, text) = answer(post(&served, "/v1/chat/completions", &body)).await;
    assert!(status == 400 && text.contains("ask for fewer choices"), "{text}");
    assert_eq!(served.told.submitted(), 0);
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_said_in_the_stream_and_ends_it() {
    let served = served().await;
    let body = r#"{"model":"half","messages":[{"role":"user","content":"hi"}],"stream":true}"#;

    let (status, text) = answer(post(&served, "/v1/chat/completions", body)).await;

    assert_eq!(status, 200);
    let last = text.split_terminator("\n\n").last().expect("chunks");
    assert_eq!(
        last,
        r#"data: {"error":{"message":"lost the provider in mid-stream","type":"server_error","param":null,"code":"provider_lost"}}"#
    );
}

#[tokio::test]
async fn an_answer_of_a_form_goes_on_when_its_engine_fails_until_its_form_is_at_fault() {
    let served = served().await;
    let ask = |model: &str| {
        let body = format!(
            r#"{{"model":"{model}","messages":[{{"role":"user","content":"x"}}],"response_format":{{"type":"json_object"}}}}"#
        );
        answer(post(&served, "/v1/chat/completions", &body))
    };

    let (status, text) = ask("crash").await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("t0 t1 t2 t3 "), "each went on where the one before it ended: {text}");
    assert_eq!(served.told.submitted(), 4);

    let (status, text) = ask("stuck").await;
    assert_eq!(status, 502, "{text}");
    assert!(text.contains("worker_lost"), "{text}");
    assert_eq!(
        served.told.submitted(),
        4 + 2,
        "one after the token that came, and the next, which made none"
    );
}

#[tokio::test]
async fn closing_the_connection_cancels_every_choice() {
    for stream in [true, false] {
        let served = served().await;
        let body = format!(
            r#"{{"model":"slow","messages":[{{"role":"user","content":"x"}}],"n":2,"stream":{stream}}}"#
        );
        let request = tokio::spawn(post(&served, "/v1/chat/completions", &body).send());
        until(|| served.told.submitted() == 2).await;

        if stream {
            drop(request.await.expect("not cancelled").expect("answered"));
        } else {
            request.abort();
        }

        until(|| served.told.cancelled().len() == 2).await;
    }
}

#[tokio::test]
async fn models_are_listed_shown_and_missed() {
    let served = served().await;
    let get = |path: &str| answer(served.request(Method::GET, path));

    let (status, text) = get("/v1/models").await;
    assert_eq!(status, 200);
    assert!(text.starts_with(r#"{"object":"list","data":[{"id":"","object":"model","created":0,"#), "{text}");
    let (status, text) = get("/v1/models/org/name").await;
    assert_eq!(status, 200);
    assert!(text.starts_with(r#"{"id":"org/name","object":"model","#), "{text}");
    let (status, text) = get("/v1/models/nobody").await;
    assert_eq!(status, 404);
    assert!(text.contains(r#""param":"model","code":"model_not_found""#), "{text}");
}

#[tokio::test]
async fn programs_of_the_same_user_need_no_key_and_web_pages_and_wrong_keys_do() {
    let served = served().await;
    let body = r#"{"model":"echo","messages":[{"role":"user","content":"x"}]}"#;
    let post = || post(&served, "/v1/chat/completions", body);
    let status = async |request| answer(request).await.0;

    if cfg!(target_os = "linux") {
        assert_eq!(status(post()).await, 200);
        assert_eq!(status(post().header("authorization", "Bearer unused")).await, 200);
    }
    assert_eq!(status(post().header("authorization", served.token.header())).await, 200);
    assert_eq!(status(post().header("authorization", format!("Bearer {}", "ab".repeat(32)))).await, 401);
    assert_eq!(status(post().header("origin", "http://localhost:3000")).await, 403);
    assert_eq!(status(post().header("sec-fetch-site", "cross-site")).await, 403);
    assert_eq!(status(post().header("host", "evil.example")).await, 403);
    assert_eq!(status(post().header("x-forwarded-for", "192.0.2.1")).await, 401);
    let form = reqwest::Client::builder().no_proxy().build().expect("plain");
    let form = form.post(format!("http://{}/v1/chat/completions", served.address)).body(body);
    assert_eq!(status(form).await, 415);
}

#[tokio::test]
async fn a_dry_run_says_the_price_and_runs_nothing() {
    let served = served().await;
    let body = r#"{"model":"echo","messages":[{"role":"user","content":"x"}],"n":2}"#;

    let (status, text) = answer(post(&served, "/v1/chat/completions?dry_run=true", body)).await;

    assert_eq!(status, 200);
    let start = r#"{"object":"sharemesh.dry_run","model":"echo","n":2,"price_max":{"nano":200,"credits":"0.0000002"},"candidates":[{"node":"aa""#;
    assert!(text.starts_with(start), "{text}");
    for (path, body) in [
        ("chat", r#"{"model":"echo","messages":[{"role":"user","content":"x"}]}"#),
        ("generate", r#"{"model":"echo","prompt":"x"}"#),
        ("embed", r#"{"model":"echo","input":"x"}"#),
        ("embeddings", r#"{"model":"echo","prompt":"x"}"#),
    ] {
        let (status, text) = answer(post(&served, &format!("/api/{path}?dry_run=true"), body)).await;
        assert_eq!(status, 200, "{path}: {text}");
        assert!(text.starts_with(r#"{"object":"sharemesh.dry_run","model":"echo","n":1"#), "{path}: {text}");
        assert_eq!(answer(post(&served, &format!("/api/{path}?dry=true"), body)).await.0, 400, "{path}");
    }
    assert_eq!(served.told.submitted(), 0);
    assert_eq!(answer(post(&served, "/v1/chat/completions?dry=true", body)).await.0, 400);
}

#[test]
fn whoever_may_ask_again_is_told_when_and_never_more_than_a_minute() {
    let told = |failure: Failure| {
        let response = Refusal::from(failure).into_response();
        response.headers().get("retry-after").map(|seconds| seconds.to_str().expect("text").to_owned())
    };
    let failed = |kind| Failure::new(kind, "words");
    assert_eq!(told(failed(FailureKind::NoProvider)).as_deref(), Some("5"));
    assert_eq!(told(failed(FailureKind::Busy)).as_deref(), Some("5"));
    assert_eq!(told(failed(FailureKind::Busy).retry_after(1_001)).as_deref(), Some("2"));
    assert_eq!(told(failed(FailureKind::Refused).retry_after(u64::MAX)).as_deref(), Some("60"));
    assert_eq!(told(failed(FailureKind::ProviderLost)), None, "at once");
    assert_eq!(told(failed(FailureKind::Usage).retry_after(1_000)), None, "it would fail again");
}

#[tokio::test]
async fn metrics_count_what_happened_and_hold_nothing_of_prompts() {
    let served = served().await;
    let body = r#"{"model":"echo","messages":[{"role":"user","content":"canary"}]}"#;
    answer(post(&served, "/v1/chat/completions", body)).await;
    answer(post(&served, "/v1/canary", "{}")).await;
    // Four providers make one answer, one breaks off, and of a model that nobody serves only its client knows the name.
    for model in ["crash", "half", "canary"] {
        let body = format!(r#"{{"model":"{model}","prompt":"x"}}"#);
        answer(post(&served, "/v1/completions", &body)).await;
    }
    answer(served.request(Method::from_bytes(b"CANARY").expect("a word"), "/v1/models")).await;

    let response = served.request(Method::GET, "/metrics").send().await.expect("answered");
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.expect("text");

    for line in [
        r#"http_server_request_duration_seconds_count{http_route="/v1/chat/completions",http_request_method="POST",http_response_status_code="200"} 1"#,
        r#"sharemesh_jobs_total{outcome="stop"} 2"#,
        "sharemesh_spent_nanocredits_total 600",
        "sharemesh_ready 1",
        r#"gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="sharemesh",gen_ai_request_model="echo"} 1"#,
        r#"gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="text_completion",gen_ai_provider_name="sharemesh",gen_ai_request_model="crash"} 1"#,
        r#"gen_ai_server_time_per_output_token_seconds_count{gen_ai_operation_name="text_completion",gen_ai_provider_name="sharemesh",gen_ai_request_model="crash"} 1"#,
        r#"gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="text_completion",gen_ai_provider_name="sharemesh",gen_ai_request_model="half",error_type="provider_lost"} 1"#,
        r#"gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="text_completion",gen_ai_provider_name="sharemesh",gen_ai_request_model="_OTHER",error_type="no_provider"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.to_lowercase().contains("canary"), "{text}");
    let page = reqwest::Client::builder().no_proxy().build().expect("plain");
    let page = page.get(format!("http://{}/metrics", served.address)).header("sec-fetch-site", "cross-site");
    assert_eq!(answer(page).await.0, 403);
}

#[tokio::test]
async fn errors_of_the_outer_layers_have_the_form_of_the_endpoint_that_was_meant() {
    let served = served().await;
    let get = |path: &str| served.request(Method::GET, path);
    let http = reqwest::Client::builder().no_proxy().build().expect("plain");
    let form = http.post(format!("http://{}/v1/completions", served.address)).body("prompt=x");
    for (request, expected) in [
        (get("/v1/models").header("host", "evil.example"), 403),
        (get("/v1/models").header("origin", "https://evil.example"), 403),
        (form, 415),
    ] {
        let response = request.send().await.expect("answered");
        assert_eq!(response.status().as_u16(), expected);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert_eq!(response.headers()["x-request-id"].len(), 32);
        let error: serde_json::Value = response.json().await.expect("JSON");
        let fields: Vec<&String> = error["error"].as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["message", "type", "param", "code"], "{error}");
    }

    let (status, text) = answer(get("/sharemesh/v1/status").header("host", "evil.example")).await;
    assert_eq!(status, 403);
    assert!(text.contains(r#""code":"forbidden""#), "{text}");
    let wrong = get("/v1/chat/completions").send().await.expect("answered");
    assert_eq!(
        (wrong.status().as_u16(), &wrong.headers()["allow"]),
        (405, &"POST".parse().expect("a header"))
    );
}
