//! What providers say of themselves, and what a job's view says of who was considered, charged and paid.

use node::api::views::JobView;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tests::{Ground, OPENING_NANO, Peer};

use crate::SHAREMESH;

async fn post(node: &Peer, path: &str, body: &Value) -> Response {
    let url = format!("http://{}{path}", node.client().address());
    Client::builder().no_proxy().build().expect("plain").post(url).json(body).send().await.expect("answered")
}

async fn get(node: &Peer, path: &str) -> Value {
    let url = format!("http://{}{path}", node.client().address());
    let response =
        Client::builder().no_proxy().build().expect("plain").get(url).send().await.expect("answered");
    response.json().await.expect("JSON")
}

fn chat(provider: &Value) -> Value {
    json!({
        "model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40, "provider": provider,
    })
}

fn reason<'a>(candidates: &'a Value, node: &str) -> &'a Value {
    let candidates = candidates.as_array().expect("a list");
    &candidates.iter().find(|candidate| candidate["node"] == node).expect("it was considered")["reason"]
}

#[tokio::test]
async fn a_region_and_a_class_choose_those_who_say_them_and_the_others_have_a_named_reason() {
    let ground = Ground::new(SHAREMESH);
    let issuer = ground.start("issuer", &["--dev"]).await;
    let mut nodes = Vec::new();
    for (name, place) in [
        ("near", ["--region", "de-by", "--class", "company"]),
        ("far", ["--region", "us", "--class", "community"]),
    ] {
        let ticket = issuer.ticket(0).await;
        let serving = [&["--join", ticket.as_str(), "--serve", "fake"], &place[..]].concat();
        let peer = ground.start(name, &serving).await;
        nodes.push((peer.status().await.node, peer));
    }
    let (near, far) = (&nodes[0].0, &nodes[1].0);
    let consumer = ground.start("consumer", &["--join", &issuer.ticket(OPENING_NANO).await]).await;
    consumer.until_provided_by("fake", 2).await;

    for (provider, chosen) in [
        (json!({"regions": ["eu", "de"]}), near),
        (json!({"regions": ["US"]}), far),
        (json!({"class": "company"}), near),
        (json!({"class": "community", "regions": ["us", "jp"]}), far),
    ] {
        let answer = post(&consumer, "/v1/chat/completions", &chat(&provider)).await;
        assert_eq!(answer.status(), 200, "{provider}");
        assert_eq!(answer.headers()["x-sharemesh-provider"], chosen.as_str(), "{provider}");
    }

    let model = get(&consumer, "/v1/models/fake").await;
    assert_eq!(model["sharemesh"]["regions"], json!(["DE-BY", "US"]));
    assert_eq!(model["sharemesh"]["classes"], json!(["community", "company"]));
    let listed = consumer.cli(&["providers"]).await;
    assert!(listed.stdout.contains("DE-BY company") && listed.stdout.contains("US"), "{}", listed.stdout);

    let dry = post(&consumer, "/v1/chat/completions?dry_run=true", &chat(&json!({"regions": ["de"]}))).await;
    let dry: Value = dry.json().await.expect("JSON");
    assert_eq!(reason(&dry["candidates"], far), "region", "{dry}");
    // Nobody says it: the dry run names what is missing of each, and so does the job that was not placed.
    let nobody = chat(&json!({"regions": ["us"], "class": "company"}));
    let dry: Value =
        post(&consumer, "/v1/chat/completions?dry_run=true", &nobody).await.json().await.expect("JSON");
    assert_eq!(
        (&dry["price_max"], reason(&dry["candidates"], near)),
        (&Value::Null, &json!("region")),
        "{dry}"
    );
    assert_eq!(reason(&dry["candidates"], far), "class", "{dry}");
    let refused = post(&consumer, "/v1/chat/completions", &nobody).await;
    assert_eq!(refused.status(), 503);
    let id = refused.headers()["x-sharemesh-job"].to_str().expect("text");
    let view = get(&consumer, &format!("/v1/jobs/{id}")).await;
    assert_eq!((&view["state"], &view["price"]["nano"]), (&json!("failed"), &json!(0)), "{view}");
    assert_eq!(reason(&view["why"], far), "class", "{view}");
    assert!(view["detail"].as_str().is_some_and(|detail| detail.contains("regions")), "{view}");
}

#[tokio::test]
async fn the_view_of_a_job_says_to_whom_each_part_of_its_price_went_and_who_paid() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let (consumer, provider) = (&trio.consumer, &trio.provider);
    let accounts = [consumer.status().await.account, provider.status().await.account];

    // More than one job in a channel: each begins in the middle of a quantum that an earlier one left.
    let (mut total, mut waiting) = (0, 0);
    for tokens in [33, 7, 50] {
        let mut body = chat(&Value::Null);
        body["max_tokens"] = json!(tokens);
        let answer: Value = post(consumer, "/v1/chat/completions", &body).await.json().await.expect("JSON");
        let charge = &answer["sharemesh"][0];
        let job: JobView = consumer.job_once_known(charge["job"].as_str().expect("an id")).await;

        let of = |role: &str| {
            job.split.iter().filter(|line| line.role == role).map(|line| line.amount.nano).sum::<u64>()
        };
        let shares = of("provider") + of("pool") + of("network");
        assert_eq!(shares + of("pending") - of("carried"), job.price.nano, "{job:#?}");
        assert_eq!(job.price.nano, charge["price_nano"].as_u64().expect("a number"));
        let paid_by = job.paid_by.as_ref().expect("it was paid");
        assert_eq!((&paid_by.account, Some(&paid_by.channel)), (&accounts[0], job.channel.as_ref()));
        let to_provider = job.split.iter().find(|line| line.role == "provider").expect("a share");
        assert_eq!(to_provider.account, accounts[1]);
        total += to_provider.amount.nano;
        waiting = waiting + of("pending") - of("carried");

        // Both sides say the same of who got what.
        let theirs = provider.job_once_known(&job.job).await;
        assert_eq!((&theirs.split, &theirs.paid_by), (&job.split, &job.paid_by));
    }

    trio.check_books().await;
    let earned = provider.balance().await.earned.nano;
    assert!(total > 0 && waiting > 0);
    assert_eq!(earned, total + waiting, "what waits when the channel ends is the provider's");
}
