//! Providers that vanish in the middle of an answer: another one goes on, and nobody notices but the ledger.

#[cfg(unix)]
mod crowd;

use std::collections::BTreeSet;

use protocol::prng::Prng;
use reqwest::Response;
use serde_json::{Value, json};
use tests::{Ground, OPENING_NANO, Peer, check_sums, until};

use crate::SHAREMESH;
use crate::job::real_model;

/// Tokens of each answer.
const TOKENS: u64 = 64;

/// Tokens that are left when a provider is killed, at the least.
const LEFT: u64 = 16;

/// The fake engine at a pace at which a provider can be killed between two tokens.
const PACE: &str = r#"--fake={"load_ms":0,"fail_to_load":null,"tokens_per_s":100,"prefill_tokens_per_s":0,"context_length":0,"crash_at":null,"hang_at":null}"#;

/// A network with three providers.
struct Mesh {
    issuer: Peer,
    providers: Vec<Option<Peer>>,
    consumer: Peer,
    /// What the consumer calls the model.
    model: String,
}

impl Mesh {
    /// Starts all; the providers serve this, with these further flags.
    async fn start(ground: &Ground, served: &str, flags: &[&str]) -> Self {
        let issuer = ground.start("issuer", &["--dev"]).await;
        let mut providers = Vec::new();
        for name in ["one", "two", "three"] {
            let ticket = issuer.ticket(0).await;
            let serving = [&["--join", &ticket, "--serve", served], flags].concat();
            providers.push(Some(ground.start(name, &serving).await));
        }
        let ticket = issuer.ticket(OPENING_NANO).await;
        let consumer = ground.start("consumer", &["--join", &ticket]).await;
        let model = providers[0].as_ref().expect("it runs").status().await.models[0].name.clone();
        consumer.until_provided_by(&model, 3).await;
        Self { issuer, providers, consumer, model }
    }

    async fn chat(&self, body: Value) -> Response {
        chat(&self.consumer, body).await
    }

    fn body(&self, seed: u64, stream: bool) -> Value {
        body(&self.model, seed, stream)
    }

    /// Returns the provider with this node id.
    async fn serving(&self, node: &str) -> usize {
        for (at, provider) in self.providers.iter().enumerate() {
            if provider.as_ref().expect("it runs").status().await.node == node {
                return at;
            }
        }
        panic!("nobody is {node}");
    }

    async fn restart(&mut self, at: usize) {
        let provider = self.providers[at].take().expect("there");
        self.providers[at] = Some(provider.restart().await);
        // Whoever was told of it while it was gone has to hear of it again.
        self.consumer.until_provided_by(&self.model, 3).await;
    }

    async fn check_books(&self) {
        let providers = self.providers.iter().map(|provider| provider.as_ref().expect("it runs"));
        let all: Vec<&Peer> = [&self.issuer, &self.consumer].into_iter().chain(providers).collect();
        settle(&self.issuer, &all[1..]).await;
        check_sums(&all).await;
    }
}

async fn chat(consumer: &Peer, body: Value) -> Response {
    let url = format!("http://{}/v1/chat/completions", consumer.client().address());
    let http = reqwest::Client::builder().no_proxy().build().expect("plain");
    http.post(url).json(&body).send().await.expect("answered")
}

/// Has everybody close and redeem until the issuer holds nothing.
async fn settle(issuer: &Peer, members: &[&Peer]) {
    until("all channels are closed and redeemed", async || {
        for peer in members {
            peer.client().post::<Value>("ledger/settle", &()).await.map_err(|f| f.message)?;
        }
        let books = issuer.balance().await.books.ok_or("the issuer has no books")?;
        if books.held.nano == 0 { Ok(()) } else { Err(format!("{:?} are held", books.held)) }
    })
    .await;
}

fn body(model: &str, seed: u64, stream: bool) -> Value {
    let options = if stream { json!({"include_usage": true}) } else { Value::Null };
    json!({
        "model": model, "messages": [{"role": "user", "content": format!("Tell story number {seed}.")}],
        "max_tokens": TOKENS, "seed": seed,
        "stream": stream, "stream_options": options,
    })
}

/// What came of a stream.
#[derive(Default)]
struct Read {
    text: String,
    chunks: Vec<Value>,
    done: bool,
    rest: String,
}

impl Read {
    /// Reads until so many parts of the answer have come; false if it ended before.
    async fn until(&mut self, response: &mut Response, parts: usize) -> bool {
        while self.parts() < parts {
            let Some(bytes) = response.chunk().await.expect("a stream") else { return false };
            self.rest += std::str::from_utf8(&bytes).expect("whole characters");
            while let Some((event, rest)) = self.rest.split_once("\n\n") {
                let event = event.strip_prefix("data: ").map(str::to_owned);
                self.rest = rest.to_owned();
                match event.as_deref() {
                    Some("[DONE]") => self.done = true,
                    Some(data) => self.take(serde_json::from_str(data).expect("JSON")),
                    None => {}
                }
            }
        }
        true
    }

    fn take(&mut self, chunk: Value) {
        self.text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        self.chunks.push(chunk);
    }

    fn parts(&self) -> usize {
        let is_part =
            |chunk: &&Value| chunk["choices"][0]["delta"]["content"].as_str().is_some_and(|t| !t.is_empty());
        self.chunks.iter().filter(is_part).count()
    }
}

/// `SHAREMESH_FALLBACKS` sets how many answers are broken off, `SHAREMESH_SEED` at which tokens.
#[tokio::test]
async fn an_answer_whose_provider_is_killed_at_any_token_is_whole_and_each_token_is_paid_once() {
    break_answers_off("fake", &[PACE], 4).await;
}

#[tokio::test]
async fn an_answer_of_a_real_model_goes_on_at_another_provider_as_if_nothing_had_been() {
    let Some(model) = real_model() else { return };
    break_answers_off(model.to_str().expect("text"), &["--threads", "2"], 6).await;
}

/// Kills the provider of each answer at a token drawn for it, and compares the answer with that of one which was left alone.
async fn break_answers_off(served: &str, flags: &[&str], count: u64) {
    let seed = std::env::var("SHAREMESH_SEED").map_or(31, |seed| seed.parse().unwrap());
    let count = std::env::var("SHAREMESH_FALLBACKS").map_or(count, |count| count.parse().unwrap());
    let ground = Ground::new(SHAREMESH);
    let mut mesh = Mesh::start(&ground, served, flags).await;
    let mut random = Prng::new(seed);
    let (mut whole, mut broken, mut jobs) = (0, 0, BTreeSet::new());

    for number in 0..count {
        let expected: Value = mesh.chat(mesh.body(number, false)).await.json().await.expect("JSON");
        let tokens = expected["usage"]["completion_tokens"].as_u64().expect("a number");
        assert!(tokens == TOKENS || served != "fake" && tokens < TOKENS, "{expected}");
        let expected = expected["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
        let mut stream = mesh.chat(mesh.body(number, true)).await;
        let provider = stream.headers()["x-sharemesh-provider"].to_str().expect("text").to_owned();
        let at = mesh.serving(&provider).await;
        let mut read = Read::default();
        let parts = 1 + random.below(TOKENS - LEFT);
        read.until(&mut stream, usize::try_from(parts).expect("few")).await;
        mesh.providers[at].as_mut().expect("it runs").kill();
        read.until(&mut stream, usize::MAX).await;

        eprintln!(
            "answer {number} of seed {seed}: killed {provider} after {parts} parts, done: {}",
            read.done
        );
        whole += u64::from(read.done);
        if read.done {
            assert_eq!(read.text, expected, "no token is missing or doubled");
            let last = read.chunks.last().expect("the usage");
            assert_eq!(last["usage"]["completion_tokens"], tokens, "{last}");
            let charges = last["sharemesh"].as_array().expect("a list");
            let is_broken = charges.len() > 1;
            // Of a short one all may have been made before its provider was killed.
            assert!(is_broken || parts + LEFT > tokens, "another one went on: {last}");
            broken += u64::from(is_broken);
            let mut paid = 0;
            for charge in charges {
                let job = charge["job"].as_str().expect("text");
                assert!(jobs.insert(job.to_owned()), "{job} is billed twice");
                let view = mesh.consumer.job_once_known(job).await;
                assert_eq!(view.price.nano, charge["price_nano"].as_u64().expect("a number"));
                paid += u64::from(view.tokens_out);
            }
            assert_eq!(paid, tokens, "each token is paid once: {last}");
        } else {
            eprintln!("{:?}", read.chunks.last());
        }
        mesh.restart(at).await;
    }

    assert!(whole * 1_000 >= count * 995, "{whole} of {count} are whole");
    assert!(broken > 0, "another one went on with none of them");
    mesh.check_books().await;
}

#[tokio::test]
async fn a_client_that_wants_no_other_provider_is_told_of_the_failure() {
    let ground = Ground::new(SHAREMESH);
    let mut mesh = Mesh::start(&ground, "fake", &[PACE]).await;
    let mut alone = mesh.body(1, true);
    alone["provider"] = json!({"allow_fallbacks": false});
    let mut stream = mesh.chat(alone).await;
    let provider = stream.headers()["x-sharemesh-provider"].to_str().expect("text").to_owned();
    let at = mesh.serving(&provider).await;
    let mut read = Read::default();

    assert!(read.until(&mut stream, 3).await);
    mesh.providers[at].as_mut().expect("it runs").kill();
    read.until(&mut stream, usize::MAX).await;

    let last = read.chunks.last().expect("an event");
    assert!(!read.done);
    assert_eq!(last["error"]["code"], "provider_lost", "{last}");
}

#[tokio::test]
async fn an_answer_of_a_form_whose_engine_dies_is_gone_on_with_and_keeps_its_form() {
    let ground = Ground::new(SHAREMESH);
    let issuer = ground.start("issuer", &["--dev"]).await;
    let serve = async |name: &str, fake: &str| {
        let ticket = issuer.ticket(0).await;
        ground.start(name, &["--join", &ticket, "--serve", "fake", fake]).await
    };
    let dying = serve("dying", &PACE.replace("\"crash_at\":null", "\"crash_at\":9")).await;
    let whole = serve("whole", PACE).await;
    let consumer = ground.start("consumer", &["--join", &issuer.ticket(OPENING_NANO).await]).await;
    consumer.until_provided_by("fake", 2).await;
    let schema = json!({
        "type": "object", "properties": {"story": {"type": "string", "minLength": 40}}, "required": ["story"],
        "additionalProperties": false,
    });
    let first = dying.status().await.node;
    let asked = json!({
        "model": "fake", "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 200,
        "response_format": {"type": "json_schema", "json_schema": {"name": "story", "schema": schema}},
        "provider": {"order": [first]},
    });

    let answer = chat(&consumer, asked).await;

    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.expect("JSON");
    let text = answer["choices"][0]["message"]["content"].as_str().expect("text");
    let read: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(read["story"].as_str().is_some_and(|story| story.chars().count() >= 40), "{read}");
    let providers: Vec<&Value> =
        answer["sharemesh"].as_array().expect("a list").iter().map(|charge| &charge["provider"]).collect();
    assert_eq!(providers, [&json!(first), &json!(whole.status().await.node)], "{answer}");

    // The id of either job leads to both.
    let http = reqwest::Client::builder().no_proxy().build().expect("plain");
    let mut views = Vec::new();
    for charge in answer["sharemesh"].as_array().expect("a list") {
        let job = charge["job"].as_str().expect("text");
        consumer.job_once_known(job).await;
        let url = format!("http://{}/v1/jobs/{job}", consumer.client().address());
        views.push(http.get(url).send().await.expect("answered").json::<Value>().await.expect("JSON"));
    }
    assert_eq!(views[0], views[1]);
    assert_eq!(views[0]["job"], answer["sharemesh"][0]["job"]);
    assert_eq!((&views[0]["state"], views[0]["jobs"].as_array().map(Vec::len)), (&json!("settled"), Some(2)));
    assert_eq!(views[0]["tokens_out"], answer["usage"]["completion_tokens"]);
}

#[tokio::test]
async fn a_client_names_whom_it_wants_first_and_what_they_must_say_of_themselves() {
    let ground = Ground::new(SHAREMESH);
    let mesh = Mesh::start(&ground, "fake", &[PACE]).await;
    let ask = async |provider: Value| {
        let mut asked = mesh.body(1, false);
        (asked["provider"], asked["max_tokens"]) = (provider, json!(2));
        mesh.chat(asked).await
    };

    for provider in &mesh.providers {
        let node = provider.as_ref().expect("it runs").status().await.node;
        let answer = ask(json!({"order": ["ab".repeat(32), node], "sort": "throughput"})).await;
        assert_eq!(answer.headers()["x-sharemesh-provider"], node.as_str());
    }
    for (provider, expected) in [
        (
            json!({"quantizations": ["Q8_0", "NONE"], "class": "community", "preferred_min_throughput": 1e6}),
            200,
        ),
        (json!({"quantizations": ["Q8_0"]}), 503),
        (json!({"regions": ["eu"]}), 503),
        (json!({"class": "company"}), 503),
    ] {
        let answer = ask(provider.clone()).await;
        assert_eq!(
            answer.status().as_u16(),
            expected,
            "{provider}: {}",
            answer.text().await.unwrap_or_default()
        );
    }
}
