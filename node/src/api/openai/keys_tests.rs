//! What holders of keys can do and cannot, in front of a driver that is not real.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::api::tests::{Served, served, served_at};
use crate::api_keys::{Limits, PREFIX};

/// Allows what the tests below do not bound.
const WIDE: Limits =
    Limits { budget_nano: None, per_day_nano: None, requests_per_minute: 100, jobs_at_once: 100 };

async fn key(served: &Served, limits: Limits) -> String {
    served.keys.create("k", limits).await.expect("room").key
}

fn request(served: &Served, key: &str, method: Method, path: &str) -> RequestBuilder {
    at(served.address, key, method, path)
}

fn at(address: SocketAddr, key: &str, method: Method, path: &str) -> RequestBuilder {
    let http = reqwest::Client::builder().no_proxy().build().expect("plain");
    http.request(method, format!("http://{address}{path}")).header("authorization", format!("Bearer {key}"))
}

fn body(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}]})
}

async fn chat(served: &Served, key: &str, body: Value) -> Response {
    let request = request(served, key, Method::POST, "/v1/chat/completions").json(&body);
    request.send().await.expect("answered")
}

async fn error(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json::<Value>().await.expect("JSON")["error"].clone())
}

fn spent(served: &Served) -> (u64, u64, u64) {
    let view = served.keys.show("k").expect("there");
    (view.spent.nano, view.reserved.nano, view.jobs)
}

async fn until(holds: impl Fn() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), look).await.expect("it holds at last");
}

#[tokio::test]
async fn a_key_opens_the_endpoints_under_v1_and_none_of_the_owners() {
    let served = served().await;
    let key = key(&served, WIDE).await;

    assert_eq!(chat(&served, &key, body("echo")).await.status(), 200);
    for path in ["/v1/models", "/livez"] {
        let answer = request(&served, &key, Method::GET, path).send().await.expect("answered");
        assert_eq!(answer.status(), 200, "{path}");
    }
    for (method, path) in [
        (Method::GET, "/sharemesh/v1/status"),
        (Method::GET, "/sharemesh/v1/keys"),
        (Method::POST, "/sharemesh/v1/keys"),
        (Method::POST, "/sharemesh/v1/account/payments"),
        (Method::POST, "/sharemesh/v1/jobs"),
        (Method::POST, "/sharemesh/v1/shutdown"),
        (Method::GET, "/metrics"),
    ] {
        let answer = request(&served, &key, method, path).json(&json!({})).send().await.expect("answered");
        assert_eq!(error(answer).await.0, 403, "{path}");
    }
}

#[tokio::test]
async fn a_wrong_and_a_revoked_key_are_refused_alike() {
    let served = served().await;
    let key = key(&served, WIDE).await;
    let wrong = format!("{PREFIX}{}", "0".repeat(64));

    let (status, of_wrong) = error(chat(&served, &wrong, body("echo")).await).await;
    served.keys.revoke("k").await.expect("there");
    let (again, of_revoked) = error(chat(&served, &key, body("echo")).await).await;

    assert_eq!((status, again), (401, 401));
    assert_eq!(of_wrong, of_revoked);
    assert_eq!(of_wrong["code"], "invalid_api_key");
    assert_eq!(served.told.submitted(), 0);
}

#[tokio::test]
async fn what_a_job_cost_is_counted_and_the_rest_of_its_worst_case_is_free_again() {
    let served = served().await;
    // The fake driver's worst case is between 100 and 150, and a job costs 100.
    let key = key(&served, Limits { budget_nano: Some(320), ..WIDE }).await;

    for _ in 0..3 {
        assert_eq!(chat(&served, &key, body("echo")).await.status(), 200);
    }
    let (status, refused) = error(chat(&served, &key, body("echo")).await).await;

    assert_eq!(
        (status, &refused["code"], &refused["type"]),
        (402, &json!("insufficient_quota"), &json!("insufficient_quota"))
    );
    assert!(refused["message"].as_str().expect("text").contains("0.00000002 credits left"), "{refused}");
    assert_eq!((spent(&served), served.told.submitted()), ((300, 0, 3), 3));
}

#[tokio::test]
async fn a_budget_binds_requests_that_come_at_once() {
    let served = served().await;
    let key = key(&served, Limits { budget_nano: Some(500), ..WIDE }).await;

    let answers = futures::future::join_all((0..20).map(|_| chat(&served, &key, body("echo")))).await;

    let done = answers.iter().filter(|answer| answer.status() == 200).count();
    let (nano, reserved, jobs) = spent(&served);
    assert!(answers.iter().all(|answer| [200, 402].contains(&answer.status().as_u16())));
    assert_eq!((nano, reserved, jobs), (100 * done as u64, 0, done as u64));
    assert_eq!(served.told.submitted(), done);
    assert!((1..=5).contains(&done), "{done}");
}

#[tokio::test]
async fn choices_are_set_aside_for_all_or_none() {
    let served = served().await;
    let key = key(&served, Limits { budget_nano: Some(250), ..WIDE }).await;
    let with = |n: u32| {
        let mut body = body("echo");
        body["n"] = json!(n);
        body
    };

    assert_eq!(chat(&served, &key, with(3)).await.status(), 402);
    assert_eq!(served.told.submitted(), 0);
    assert_eq!(chat(&served, &key, with(2)).await.status(), 200);
    assert_eq!(spent(&served), (200, 0, 2));
}

#[tokio::test]
async fn a_job_whose_client_has_gone_is_counted_when_it_ends() {
    let served = served().await;
    let key = key(&served, WIDE).await;
    let mut slow = body("slow");
    slow["stream"] = json!(true);

    let stream = chat(&served, &key, slow).await;
    assert_eq!(spent(&served), (0, 150, 0));
    drop(stream);
    until(|| served.told.cancelled().len() == 1).await;

    // The fake driver says nothing of a job that was cancelled, as one that went down does.
    assert_eq!(spent(&served), (0, 150, 0), "nobody knows what it cost");
}

#[tokio::test]
async fn a_job_that_came_to_nothing_costs_nothing_and_one_of_which_nothing_is_known_all() {
    let served = served().await;
    let key = key(&served, WIDE).await;

    assert_eq!(chat(&served, &key, body("none")).await.status(), 503);
    assert_eq!(spent(&served), (0, 0, 1));
    assert_eq!(chat(&served, &key, body("half")).await.status(), 502);
    assert_eq!(spent(&served), (100, 0, 2), "what was delivered");
    assert_eq!(chat(&served, &key, body("lost")).await.status(), 503);
    assert_eq!(spent(&served), (250, 0, 3), "the node went down while it ran");
    assert_eq!(chat(&served, &key, body("broken")).await.status(), 502);
    assert_eq!(spent(&served), (250, 0, 4), "nothing was delivered");
    assert_eq!(chat(&served, &key, body("taken")).await.status(), 502);
    assert_eq!(spent(&served), (400, 0, 5), "what was paid ahead, as far as it was set aside");
}

#[tokio::test]
async fn rates_are_limits_that_say_how_long_to_wait() {
    let served = served().await;
    let key = key(&served, Limits { requests_per_minute: 2, jobs_at_once: 1, ..WIDE }).await;

    let first = chat(&served, &key, body("echo")).await;
    assert_eq!(first.headers()["x-ratelimit-limit-requests"], "2");
    assert_eq!(first.headers()["x-ratelimit-remaining-requests"], "1");
    assert_eq!(chat(&served, &key, body("echo")).await.status(), 200);
    let third = chat(&served, &key, body("echo")).await;

    assert_eq!(third.headers()["x-should-retry"], "true");
    let wait: u64 = third.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(error(third).await.1["code"], "rate_limit_exceeded");
    let models = request(&served, &key, Method::GET, "/v1/models").send().await.expect("answered");
    assert_eq!(models.status(), 429, "asking what there is counts, too");
}

#[tokio::test]
async fn jobs_at_once_are_bounded_for_each_key() {
    let served = served().await;
    let key = key(&served, Limits { jobs_at_once: 1, ..WIDE }).await;
    let mut slow = body("slow");
    slow["stream"] = json!(true);
    let _stream = chat(&served, &key, slow).await;

    let refused = chat(&served, &key, body("echo")).await;

    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (429, &"1".parse().expect("a header"))
    );
    assert_eq!(served.told.submitted(), 1);
}

#[tokio::test]
async fn nobody_sees_jobs_or_answers_of_somebody_else() {
    let served = served().await;
    let key = key(&served, WIDE).await;
    let other = served.keys.create("other", WIDE).await.expect("room").key;
    let ask = |key: &str| {
        let request = request(&served, key, Method::POST, "/v1/chat/completions").json(&body("echo"));
        request.header("idempotency-key", "the same").send()
    };

    let mine = ask(&key).await.expect("answered");
    let theirs = ask(&other).await.expect("answered");

    assert!(!theirs.headers().contains_key("x-sharemesh-replayed"));
    assert_eq!(served.told.submitted(), 2);
    let job = mine.headers()["x-sharemesh-job"].to_str().expect("text").to_owned();
    let show = |key: &str| request(&served, key, Method::GET, &format!("/v1/jobs/{job}")).send();
    assert_eq!(show(&key).await.expect("answered").status(), 200);
    assert_eq!(show(&other).await.expect("answered").status(), 404);
}

#[tokio::test]
async fn what_the_account_has_is_told_to_its_owner_only() {
    let served = served().await;
    let key = key(&served, WIDE).await;

    let (status, refused) = error(chat(&served, &key, body("poor")).await).await;

    assert_eq!((status, &refused["code"]), (402, &json!("insufficient_quota")));
    assert!(!refused["message"].as_str().expect("text").contains("has 1"), "{refused}");
}

/// Returns an address of this machine that is not its own alone, if it has one; nothing is sent.
fn outer_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[tokio::test]
async fn other_machines_need_a_key_and_never_get_more_than_it_opens() {
    let Some(ip) = outer_address() else {
        eprintln!("skipped: this machine has no address but its own");
        return;
    };
    let served = served_at("0.0.0.0:0").await;
    let key = key(&served, WIDE).await;
    let outside = SocketAddr::new(ip, served.address.port());
    let chat = |key: &str| {
        let request = at(outside, key, Method::POST, "/v1/chat/completions").json(&body("echo"));
        request.header("host", "mesh.example").send()
    };

    assert_eq!(chat(&key).await.expect("answered").status(), 200);
    let token = served.token.header();
    let token = token.trim_start_matches("Bearer ");
    for nobody in ["unused", token] {
        assert_eq!(chat(nobody).await.expect("answered").status(), 401, "not even the owner's token");
        let status = at(outside, nobody, Method::GET, "/sharemesh/v1/status").send().await.expect("answered");
        assert_eq!(status.status(), 403);
    }
    let own = request(&served, "unused", Method::GET, "/v1/models").send().await.expect("answered");
    assert_eq!(
        own.status().as_u16(),
        if cfg!(target_os = "linux") { 200 } else { 401 },
        "as before on this machine"
    );
}

#[tokio::test]
async fn a_page_that_points_its_name_here_gets_nothing_without_a_key() {
    let served = served().await;
    let key = key(&served, WIDE).await;
    let named =
        |key: &str| request(&served, key, Method::GET, "/v1/models").header("host", "evil.example").send();

    assert_eq!(named("unused").await.expect("answered").status(), 403);
    assert_eq!(named(&format!("{PREFIX}x")).await.expect("answered").status(), 401);
    assert_eq!(named(&key).await.expect("answered").status(), 200, "behind a proxy with a name");
    let page = request(&served, &key, Method::GET, "/v1/models").header("origin", "https://evil.example");
    assert_eq!(page.send().await.expect("answered").status(), 403);
}

#[tokio::test]
async fn an_answer_that_several_providers_made_is_one_answer_and_each_part_is_paid_once() {
    let served = served().await;
    let key = key(&served, WIDE).await;

    let answer: Value = chat(&served, &key, body("relay")).await.json().await.expect("JSON");

    assert_eq!(answer["choices"][0]["message"]["content"], "t0 t1 t2 t3 ");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}));
    let charges = answer["sharemesh"].as_array().expect("a list");
    let providers: Vec<&Value> = charges.iter().map(|charge| &charge["provider"]).collect();
    assert_eq!(providers, ["p0", "p1", "p2", "p3"]);
    assert!(charges.iter().all(|charge| charge["price_nano"] == 100), "{answer}");
    assert_eq!((spent(&served), served.told.submitted()), ((400, 0, 4), 4));
}

#[tokio::test]
async fn what_was_set_aside_for_the_first_job_bounds_no_other() {
    let served = served().await;
    // The first job gets 150, and all four cost 400.
    let key = key(&served, WIDE).await;
    let priced = |max: &str| {
        let mut body = body("relay");
        body["provider"] = json!({"max_price": max});
        body
    };

    assert_eq!(chat(&served, &key, body("relay")).await.status(), 200);
    assert_eq!(chat(&served, &key, priced("0.0000004")).await.status(), 200);
}

#[tokio::test]
async fn an_answer_goes_on_only_as_far_as_the_key_pays_and_the_client_wants() {
    let served = served().await;
    // Two jobs, of which each costs 100 and at least so much is set aside.
    let key = key(&served, Limits { budget_nano: Some(250), ..WIDE }).await;

    let (status, failed) = error(chat(&served, &key, body("relay")).await).await;
    assert_eq!((status, &failed["code"]), (502, &json!("provider_lost")), "{failed}");
    assert_eq!((spent(&served), served.told.submitted()), ((200, 0, 2), 2));

    let other = served.keys.create("other", WIDE).await.expect("room").key;
    let mut alone = body("relay");
    alone["provider"] = json!({"allow_fallbacks": false});
    let answer = chat(&served, &other, alone).await;
    assert_eq!(answer.headers()["x-should-retry"], "false", "a part was paid");
    assert_eq!((answer.status().as_u16(), served.told.submitted()), (502, 3));
}
