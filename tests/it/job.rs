//! One whole job between separate processes: text, receipts, ledgers, sums.

use std::collections::BTreeSet;
use std::path::PathBuf;

use engine::direct::generate_directly;
use engine::frame::{ChatMessage, Generate, Prompt, Sampling};
use engine::options::{DeviceChoice, FakeOptions, ModelSource, WorkerOptions};
use futures::future::join_all;
use node::api::views::{JobAccount, JobBody};
use tests::{Ground, OPENING_NANO, PACED, Peer, Trio, job};

use crate::SHAREMESH;

/// What a home network takes for opening a channel, in nano-credits.
const OPEN_FEE: u64 = protocol::ledger::money::QUANTUM;

#[tokio::test]
async fn a_job_from_a_consumer_without_a_model_gives_what_the_engine_gives() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;

    let body = job("Why is the sky blue?", 48);
    let (text, account) = trio.consumer.must_ask(&body).await;

    assert_eq!(text, directly(ModelSource::Fake(FakeOptions::default()), &body));
    assert_eq!(account.tokens_out, 48);
    assert_eq!(account.provider, trio.provider.status().await.node);
    check_receipts(&trio.consumer, &trio.provider, &account).await;
    trio.check_books().await;
    check_paid(&trio.consumer, account.price.nano).await;
}

#[tokio::test]
async fn a_real_model_answers_through_the_mesh_as_it_does_alone() {
    let Some(model) = real_model() else { return };
    let ground = Ground::new(SHAREMESH);
    let path = model.to_str().unwrap();
    let issuer = ground.start("issuer", &[]).await;
    let provider = ground
        .start("provider", &["--join", &issuer.ticket(0).await, "--serve", path, "--threads", "2"])
        .await;
    let consumer = ground.start("consumer", &["--join", &issuer.ticket(OPENING_NANO).await]).await;
    let trio = Trio { issuer, provider, consumer };
    let name = trio.provider.status().await.models[0].name.clone();

    let body = JobBody { model: name, ..job("Why is the sky blue?", 24) };
    let (text, account) = trio.consumer.must_ask(&body).await;

    let source = ModelSource::Gguf { path: model, cache_dir: ground.path().join("direct") };
    assert_eq!(text, directly(source, &body));
    check_receipts(&trio.consumer, &trio.provider, &account).await;
    trio.check_books().await;
}

#[tokio::test]
async fn jobs_one_after_the_other_share_a_channel_and_every_receipt_is_on_both_sides() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;

    let mut price = 0;
    for round in 0..4 {
        let (_, account) = trio.consumer.must_ask(&job(&format!("round {round}"), 24)).await;
        check_receipts(&trio.consumer, &trio.provider, &account).await;
        price += account.price.nano;
    }

    let channels: BTreeSet<String> =
        trio.consumer.receipts().await.into_iter().map(|receipt| receipt.channel).collect();
    assert_eq!(channels.len(), 1);
    trio.check_books().await;
    check_paid(&trio.consumer, price).await;
}

#[tokio::test]
async fn four_jobs_at_once_all_complete() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let bodies: Vec<_> = (0..4).map(|number| job(&format!("job {number}"), 40)).collect();
    let answers = join_all(bodies.iter().map(|body| trio.consumer.must_ask(body))).await;

    for (body, (text, account)) in bodies.iter().zip(&answers) {
        assert_eq!(*text, directly(ModelSource::Fake(FakeOptions::default()), body));
        assert_eq!(account.tokens_out, 40);
    }
    trio.check_books().await;
    let price: u64 = answers.iter().map(|(_, account)| account.price.nano).sum();
    check_paid(&trio.consumer, price).await;
}

#[tokio::test]
async fn of_sixteen_jobs_at_once_each_completes_or_is_refused_and_none_is_paid_above_the_cap() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let bodies: Vec<_> = (0..16).map(|number| job(&format!("job {number}"), 40)).collect();
    let answers = join_all(bodies.iter().map(|body| trio.consumer.ask(body))).await;

    let mut price = 0;
    for answer in &answers {
        match (&answer.failure, &answer.account) {
            (None, Some(account)) => {
                assert_eq!(account.tokens_out, 40);
                price += account.price.nano;
            }
            (Some(failure), None) => {
                assert!(
                    failure.message.contains("busy") || failure.reason.as_deref() == Some("busy"),
                    "{failure:?}"
                );
            }
            (..) => panic!("{answer:?}"),
        }
    }
    assert!(price > 0, "{answers:?}");
    // `verify` checks every receipt against the cap of its channel.
    trio.check_books().await;
    check_paid(&trio.consumer, price).await;
}

/// Checks that both ledgers hold the receipt that the account names, signed by both.
async fn check_receipts(consumer: &Peer, provider: &Peer, account: &JobAccount) {
    let id = account.receipt.clone().expect("a paid job has a receipt");
    for peer in [consumer, provider] {
        let view = peer.receipt_once_signed(&id).await;
        assert!(view.payer_signature && view.payee_signature, "{}: {view:#?}", peer.name);
        assert_eq!(view.receipt.id, id);
        assert!(view.jobs.iter().any(|job| job.job == account.job), "{}: {view:#?}", peer.name);
        assert_eq!(peer.job(&account.job).await.price, account.price);
    }
}

/// Checks that a consumer whose channels are all closed has paid the prices of its jobs and for its channels, of which
/// jobs at once may need more than one.
pub(crate) async fn check_paid(consumer: &Peer, price: u64) {
    let spent = OPENING_NANO - consumer.balance().await.cash.nano;
    let fees = spent.checked_sub(price).expect("nobody pays less than the price");
    let channels = fees / OPEN_FEE;
    assert!(fees.is_multiple_of(OPEN_FEE) && (1..=16).contains(&channels), "{spent} for jobs of {price}");
}

/// Asks an engine in this process.
pub(crate) fn directly(model: ModelSource, body: &JobBody) -> String {
    let options =
        WorkerOptions { model, device: DeviceChoice::Auto, slots: 1, context_max: None, threads: Some(2) };
    let message = ChatMessage { role: "user".to_owned(), content: body.prompt.clone().unwrap() };
    let generate = Generate {
        prompt: Prompt::Chat(vec![message]),
        sampling: Sampling { seed: body.seed.unwrap(), ..Sampling::default() },
        max_tokens: body.max_tokens.unwrap(),
        resume: Vec::new(),
        logprobs: None,
        form: None,
    };
    generate_directly(&options, generate, |_| ()).unwrap().text
}

/// Finds the real model; in continuous integration it must be there.
pub(crate) fn real_model() -> Option<PathBuf> {
    let found = std::env::var_os("SHAREMESH_TEST_MODEL").map(PathBuf::from).filter(|path| path.is_file());
    let required = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(found.is_some() || !required, "set SHAREMESH_TEST_MODEL to the path of a GGUF file");
    if found.is_none() {
        eprintln!("skipped: SHAREMESH_TEST_MODEL names no GGUF file");
    }
    found
}
