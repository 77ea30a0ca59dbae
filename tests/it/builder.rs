//! Builders: a request names who routed it, and their account ends with exactly its markup.

use node::api::views::{JobView, Money, StatementView};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tests::{Ground, OPENING_NANO, Peer, Trio, check_sums, until};

use crate::SHAREMESH;

const BPS: u64 = 1_500;

/// Starts an issuer, a provider, a builder's node and a consumer that may pay the builder.
async fn market(ground: &Ground) -> (Trio, Peer) {
    let issuer = ground.start("issuer", &["--dev"]).await;
    let provider = ground.start("provider", &["--join", &issuer.ticket(0).await, "--serve", "fake"]).await;
    let builder = ground.start("builder", &["--join", &issuer.ticket(0).await]).await;
    let allowed = format!("{}={BPS}", builder.status().await.account);
    let joins = ["--join", &issuer.ticket(OPENING_NANO).await, "--builder", &allowed];
    let consumer = ground.start("consumer", &joins).await;
    consumer.until_provided("fake").await;
    (Trio { issuer, provider, consumer }, builder)
}

async fn post(node: &Peer, path: &str, key: Option<&str>, body: &Value) -> Response {
    let url = format!("http://{}{path}", node.client().address());
    let request = Client::builder().no_proxy().build().expect("plain").post(url).json(body);
    let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
    request.send().await.expect("answered")
}

fn chat(builder: &Value, more: Value) -> Value {
    let mut body = json!({
        "model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "builder": builder,
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn nano(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[tokio::test]
async fn a_builder_that_is_named_ends_with_exactly_its_markup() {
    let ground = Ground::new(SHAREMESH);
    let (trio, builder) = market(&ground).await;
    let account = builder.status().await.account;
    let named = json!({"account": account, "markup_bps": BPS});

    let quote: Value =
        post(&trio.consumer, "/v1/chat/completions?dry_run=true", None, &chat(&named, json!({})))
            .await
            .json()
            .await
            .expect("JSON");
    let plain = chat(&Value::Null, json!({}));
    let without: Value = post(&trio.consumer, "/v1/chat/completions?dry_run=true", None, &plain)
        .await
        .json()
        .await
        .expect("JSON");
    assert_eq!(
        (&quote["builder"]["account"], &quote["builder"]["markup_bps"]),
        (&json!(account), &json!(BPS))
    );
    let share = nano(&quote["builder"]["amount"]["nano"]);
    assert!(share > 0);
    assert_eq!(nano(&quote["price_max"]["nano"]) - share, nano(&without["price_max"]["nano"]));
    assert!(without.get("builder").is_none());

    // Every dialect that takes the extension, and one request that names nobody.
    let prompt = json!({"model": "fake", "prompt": "hi", "max_tokens": 40, "builder": named});
    let answers = [
        ("/v1/chat/completions", chat(&named, json!({}))),
        ("/v1/completions", prompt),
        ("/v1/responses", json!({"model": "fake", "input": "hi", "max_output_tokens": 40, "builder": named})),
        (
            "/api/generate",
            json!({"model": "fake", "prompt": "hi", "stream": false, "builder": named,
            "options": {"num_predict": 40}}),
        ),
        ("/v1/chat/completions", plain),
    ];
    let (mut paid, mut shares, mut channels) = (0, 0, Vec::new());
    for (path, body) in answers {
        let response = post(&trio.consumer, path, None, &body).await;
        let header = response.headers().get("x-sharemesh-price").cloned();
        assert_eq!(response.status(), 200, "{path}");
        let answer: Value = response.json().await.expect("JSON");
        let charge =
            if answer["sharemesh"].is_array() { &answer["sharemesh"][0] } else { &answer["sharemesh"] };
        let (price, share) = (nano(&charge["price_nano"]), charge["builder"]["amount"]["nano"].as_u64());
        if let Some(header) = header {
            assert_eq!(header, charge["price_credits"].as_str().expect("text"));
        }
        assert_eq!(share.is_some(), body["builder"].is_object(), "{path}: {answer}");
        let job: JobView = trio.consumer.job_once_known(charge["job"].as_str().expect("an id")).await;
        assert_eq!(job.price.nano, price, "{path}");
        assert_eq!(job.builder.as_ref().map(|builder| builder.amount.nano), share, "{path}");
        channels.push((job.channel.expect("it was paid"), share.is_some()));
        paid += price;
        shares += share.unwrap_or(0);
    }
    assert!(shares > 0);
    let others = |named: bool| channels.iter().filter(move |(_, is)| *is == named).map(|(id, _)| id);
    assert!(others(false).all(|plain| others(true).all(|named| named != plain)), "{channels:?}");

    trio.check_books().await;
    until("the builder knows what it got", async || {
        let balance = builder.balance().await;
        if balance.available.nano == shares { Ok(()) } else { Err(format!("{balance:?}, not {shares}")) }
    })
    .await;
    check_sums(&[&trio.issuer, &trio.provider, &trio.consumer, &builder]).await;
    let spent = OPENING_NANO - trio.consumer.balance().await.cash.nano;
    let fees = spent.checked_sub(paid).expect("no less than the price");
    assert!(fees.is_multiple_of(10_000), "{spent} for jobs of {paid}");

    let words = builder.cli(&["ledger", "statement", "--json"]).await;
    let statement: StatementView = serde_json::from_str(words.must_succeed()).expect("a statement");
    assert_eq!(statement.closing, Money::from_nano(shares));
    assert!(!statement.lines.is_empty() && statement.lines.iter().all(|line| line.kind == "markup"));
    let payer = trio.consumer.status().await.account;
    assert!(statement.lines.iter().all(|line| line.partner.as_deref() == Some(&payer)), "{statement:?}");
}

#[tokio::test]
async fn a_builder_is_paid_only_as_the_owner_and_the_request_allow() {
    let ground = Ground::new(SHAREMESH);
    let (trio, builder) = market(&ground).await;
    let account = builder.status().await.account;
    let own = trio.consumer.status().await.account;
    let stranger = trio.provider.status().await.account;

    for (wrong, param) in [
        (json!({"account": account, "markup_bps": 3_001}), "builder.markup_bps"),
        (json!({"account": account, "markup_bps": BPS + 1}), "builder.markup_bps"),
        (json!({"account": account, "markup_bps": -1}), "builder.markup_bps"),
        (json!({"account": stranger, "markup_bps": 1}), "builder.account"),
        (json!({"account": own, "markup_bps": 1}), "builder.account"),
        (json!({"account": "nobody", "markup_bps": 1}), "builder.account"),
        (json!({"markup_bps": 1}), "builder.account"),
        (json!({"account": account, "markup_bps": 1, "name": "x"}), "builder.name"),
    ] {
        let response = post(&trio.consumer, "/v1/chat/completions", None, &chat(&wrong, json!({}))).await;
        assert_eq!(response.status(), 400, "{wrong}");
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["error"]["param"], param, "{answer}");
    }

    // What the request and a key allow bounds the whole, markup included.
    let named = json!({"account": account, "markup_bps": BPS});
    let quote: Value =
        post(&trio.consumer, "/v1/chat/completions?dry_run=true", None, &chat(&named, json!({})))
            .await
            .json()
            .await
            .expect("JSON");
    let most = nano(&quote["price_max"]["nano"]);
    let limit = |nano: u64| json!({"provider": {"max_price": Money::from_nano(nano).credits}});
    let refused = post(&trio.consumer, "/v1/chat/completions", None, &chat(&named, limit(most - 1))).await;
    assert_eq!(refused.status(), 503, "{}", refused.text().await.unwrap_or_default());
    let done = post(&trio.consumer, "/v1/chat/completions", None, &chat(&named, limit(most))).await;
    assert_eq!(done.status(), 200);
    let budget = Money::from_nano(most).credits;
    let secret = trio.consumer.cli(&["keys", "create", "app", "--budget", &budget]).await;
    let secret = secret.must_succeed().trim().to_owned();
    let done = post(&trio.consumer, "/v1/chat/completions", Some(&secret), &chat(&named, json!({}))).await;
    let answer: Value = done.json().await.expect("JSON");
    let price = nano(&answer["sharemesh"][0]["price_nano"]);
    let key = trio.consumer.cli(&["keys", "show", "app", "--json"]).await;
    let key: Value = serde_json::from_str(key.must_succeed()).expect("a key");
    assert_eq!(nano(&key["spent"]["nano"]), price);
    trio.check_books().await;
}
