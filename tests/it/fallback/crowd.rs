//! Many answers at once whose providers are killed, lose their engines or fall silent, each at a token drawn for it.

use std::collections::BTreeSet;
use std::time::Duration;

use engine::{FakeOptions, ModelSource};
use futures::StreamExt as _;
use node::api::views::{LedgerChannelView, ServedModelView};
use protocol::ledger::money::QUANTUM;
use protocol::prng::Prng;
use reqwest::StatusCode;
use serde_json::Value;
use tests::{Ground, OPENING_NANO, PATIENCE, Peer, check_sums, job, until};
use tokio::sync::{Mutex, MutexGuard};

use super::{Mesh, Read, TOKENS, body, settle};
use crate::SHAREMESH;
use crate::job::directly;

/// Answers at once.
const AT_ONCE: usize = 48;

/// One answer in so many has its provider fail.
const FAULT_EVERY: u64 = 12;

/// The fake engine at a pace at which all answers at once cost a fraction of a core.
const PACE: &str = r#"--fake={"load_ms":0,"fail_to_load":null,"tokens_per_s":50,"prefill_tokens_per_s":0,"context_length":0,"crash_at":null,"hang_at":null}"#;

/// What becomes of a provider.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Its process ends as by a power cut, and is started again.
    Killed,
    /// The process that computes ends so; the node starts another.
    EngineKilled,
    /// It stands still until the answer has ended without it.
    Silent,
}

/// What befalls the provider of one answer, and after how many parts of it.
#[derive(Clone, Copy, Debug)]
struct Plan {
    fault: Option<Fault>,
    parts: usize,
}

impl Plan {
    /// Draws what befalls the answer of this number.
    fn draw(seed: u64, number: u64) -> Self {
        let mut random = Prng::new(seed ^ Prng::new(number).next_u64());
        let fault = (random.below(FAULT_EVERY) == 0).then(|| match random.below(4) {
            0 | 1 => Fault::Killed,
            2 => Fault::EngineKilled,
            _ => Fault::Silent,
        });
        Self { fault, parts: 1 + usize::try_from(random.below(TOKENS - 2)).expect("few") }
    }
}

/// A provider, whatever state it is in; whoever makes it fail holds it until it is well again.
struct Provider {
    node: String,
    peer: Mutex<Option<Peer>>,
}

struct Crowd {
    issuer: Peer,
    consumer: Peer,
    providers: Vec<Provider>,
    /// One at a time stands still, so that all the others are never waited for.
    silence: Mutex<()>,
    seed: u64,
}

/// What came of one answer.
struct Told {
    number: u64,
    is_whole: bool,
    text: String,
    last: Value,
    /// What its provider was made to suffer.
    fault: Option<Fault>,
}

impl Crowd {
    async fn start(ground: &Ground, seed: u64) -> Self {
        let Mesh { issuer, providers, consumer, .. } =
            Mesh::start(ground, "fake", &["--slots", "64", PACE]).await;
        let mut held = Vec::new();
        for peer in providers {
            let node = peer.as_ref().expect("it runs").status().await.node;
            held.push(Provider { node, peer: Mutex::new(peer) });
        }
        Self { issuer, consumer, providers: held, silence: Mutex::default(), seed }
    }

    /// Asks as clients do: again, if there was nobody just then.
    async fn ask(&self, number: u64) -> reqwest::Response {
        let begun = std::time::Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "nobody takes answer {number}");
            let response = super::chat(&self.consumer, body("fake", number, true)).await;
            if response.status() == StatusCode::OK {
                return response;
            }
            let headers = response.headers().clone();
            let words = response.text().await.expect("an error says why");
            assert_eq!(headers["x-should-retry"], "true", "{words}");
            let wait = headers["retry-after"].to_str().expect("text").parse().expect("seconds");
            tokio::time::sleep(Duration::from_secs(wait)).await;
        }
    }

    async fn answer(&self, number: u64) -> Told {
        let Plan { fault, parts } = Plan::draw(self.seed, number);
        let mut response = self.ask(number).await;
        let node = response.headers()["x-sharemesh-provider"].to_str().expect("text").to_owned();
        let provider = self.providers.iter().find(|provider| provider.node == node).expect("one of three");
        let mut read = Read::default();
        read.until(&mut response, parts).await;
        // One that fails already has failed this answer, too.
        let mut peer = fault.and_then(|_| provider.peer.try_lock().ok());
        let rest = read.until(&mut response, usize::MAX);
        let suffered = match (fault, &mut peer) {
            (Some(fault), Some(peer)) => self.fail(fault, peer, rest).await,
            _ => {
                rest.await;
                None
            }
        };
        let last = read.chunks.last().cloned().unwrap_or_default();
        Told { number, is_whole: read.done, text: read.text, last, fault: suffered }
    }

    /// Makes a provider fail, and has it well again; meanwhile the rest of the answer is read.
    async fn fail(
        &self,
        fault: Fault,
        held: &mut MutexGuard<'_, Option<Peer>>,
        rest: impl Future<Output = bool>,
    ) -> Option<Fault> {
        match fault {
            Fault::Killed => {
                let mut peer = held.take().expect("whoever had it gave it back");
                peer.kill();
                let (again, _) = tokio::join!(peer.restart(), rest);
                **held = Some(again);
            }
            Fault::EngineKilled => {
                let peer = held.as_ref().expect("it runs");
                let pid = until("there is an engine", async || {
                    engine_of(peer).await.ok_or_else(|| "there is none".to_owned())
                })
                .await;
                signal("-9", pid);
                let again = until("the engine is there again", async || {
                    let other = engine_of(peer).await.filter(|other| *other != pid);
                    other.ok_or_else(|| "it is not".to_owned())
                });
                tokio::join!(again, rest);
            }
            Fault::Silent => {
                let Ok(_alone) = self.silence.try_lock() else {
                    rest.await;
                    return None;
                };
                let pid = held.as_ref().expect("it runs").pid();
                signal("-STOP", pid);
                rest.await;
                signal("-CONT", pid);
            }
        }
        Some(fault)
    }

    async fn check(self, told: &[Told]) {
        let mut jobs = BTreeSet::new();
        let (mut price, mut dearest, mut broken) = (0, 0, 0);
        for Told { number, last, .. } in told.iter().filter(|told| told.is_whole) {
            assert_eq!(last["usage"]["completion_tokens"], TOKENS, "answer {number}: {last}");
            let charges = last["sharemesh"].as_array().expect("a list");
            broken += charges.len() - 1;
            let (mut paid, mut cost) = (0, 0);
            for charge in charges {
                let job = charge["job"].as_str().expect("text");
                assert!(jobs.insert(job.to_owned()), "answer {number}: {job} is billed twice");
                let view = self.consumer.job_once_known(job).await;
                assert_eq!(view.price.nano, charge["price_nano"].as_u64().expect("a number"), "{view:?}");
                paid += u64::from(view.tokens_out);
                cost += view.price.nano;
            }
            assert_eq!(paid, TOKENS, "answer {number}: each token is paid once: {last}");
            price += cost;
            dearest = dearest.max(cost);
        }
        let mut all = vec![&self.issuer, &self.consumer];
        let providers: Vec<Peer> =
            self.providers.into_iter().map(|provider| provider.peer.into_inner().expect("it runs")).collect();
        all.extend(&providers);
        settle(&self.issuer, &all[1..]).await;
        check_sums(&all).await;
        let spent = OPENING_NANO - self.consumer.balance().await.cash.nano;
        let channels: Vec<LedgerChannelView> =
            self.consumer.client().get("ledger/channels").await.expect("it keeps its channels");
        let fees = channels.len() as u64 * QUANTUM;
        eprintln!(
            "{} jobs of {} answers, {broken} of them broken off: {price} nano, spent {spent} with {fees} for {} channels",
            jobs.len(),
            told.len(),
            channels.len()
        );
        assert!(broken > 0, "no answer broke off");
        if told.iter().all(|told| told.is_whole) {
            // What was paid ahead to whoever broke off is lost, and never more than the rest of its answer.
            assert!((price + fees..=price + fees + broken as u64 * dearest).contains(&spent), "{spent}");
        }
    }
}

/// Returns the process that computes for a provider, if it can take jobs.
async fn engine_of(peer: &Peer) -> Option<u32> {
    let models: Vec<ServedModelView> = peer.client().get("models").await.expect("it runs");
    models.iter().find(|model| model.state == "ready")?.worker_pid
}

fn signal(signal: &str, pid: u32) {
    // A process that has just ended needs none.
    let _ = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
}

/// `SHAREMESH_REQUESTS` sets how many answers there are, `SHAREMESH_SEED` what befalls whom.
#[tokio::test]
async fn of_many_answers_whose_providers_fail_at_random_tokens_all_but_a_few_are_whole_and_none_is_billed_twice()
 {
    let seed = std::env::var("SHAREMESH_SEED").map_or(5, |seed| seed.parse().unwrap());
    let count: u64 = std::env::var("SHAREMESH_REQUESTS").map_or(500, |count| count.parse().unwrap());
    let ground = Ground::new(SHAREMESH);
    let crowd = Crowd::start(&ground, seed).await;

    let told: Vec<Told> = futures::stream::iter(0..count)
        .map(|number| crowd.answer(number))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;

    let mut whole = 0;
    for Told { number, is_whole, text, last, .. } in &told {
        let expected = expected(*number);
        if *is_whole {
            assert_eq!(*text, expected, "answer {number} of seed {seed}: a token is missing or doubled");
            whole += 1;
        } else {
            assert!(
                expected.starts_with(text),
                "answer {number} of seed {seed}: {text} is not of {expected}"
            );
            eprintln!("answer {number} of seed {seed} is not whole: {last}");
        }
    }
    let faults: Vec<Fault> = told.iter().filter_map(|told| told.fault).collect();
    eprintln!("{whole} of {count} are whole; {} faults: {faults:?}", faults.len());
    assert!(!faults.is_empty() || count < 4 * FAULT_EVERY, "nothing befell anybody");
    assert!(whole * 1_000 >= count * 995, "{whole} of {count} are whole");
    crowd.check(&told).await;
}

/// Returns what the answer of this number is, from an engine in this process.
fn expected(number: u64) -> String {
    let mut asked = job(&format!("Tell story number {number}."), u32::try_from(TOKENS).expect("few"));
    asked.seed = Some(number);
    directly(ModelSource::Fake(FakeOptions::default()), &asked)
}
