//! The official Python client of OpenAI.

use std::path::PathBuf;

use engine::direct::Engine;
use engine::frame::{ChatMessage, Generate, Prompt, Sampling};
use engine::options::{DeviceChoice, ModelSource, WorkerOptions};
use serde_json::{Value, json};
use tests::{Ground, PACED};

use super::{check_logs, clients, python, real_trio};
use crate::SHAREMESH;
use crate::embeddings::real_encoder;
use crate::job::real_model;

#[tokio::test]
async fn the_official_python_client_is_served_through_the_mesh() {
    let Some(clients) = clients() else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let said = python(&ground, &clients, &trio, "mesh.py", &["fake", &"ab".repeat(32)]).await;

    assert_eq!(said.end.done.len(), 20, "{:?}", said.end);
    let receipt = said.lines[0]["receipt"].as_str().expect("an id");
    let receipt = trio.consumer.receipt_once_signed(receipt).await;
    assert!(receipt.payer_signature && receipt.payee_signature, "{receipt:#?}");
    said.end.check_bill(&trio).await;
    check_logs(&ground, &["Why is the sky blue", "siko tate doni", "a key of the client"]);
}

#[tokio::test]
async fn a_real_model_does_for_the_official_python_client_what_the_engine_does() {
    let (Some(clients), Some(model), Some(encoder)) = (clients(), real_model(), real_encoder()) else {
        return;
    };
    let ground = Ground::new(SHAREMESH);
    let (trio, [name, _]) = real_trio(&ground, &model, &encoder).await;

    let chat = [
        ("system", "Answer in one word."),
        ("user", "What is the capital of France?"),
        ("assistant", "Paris."),
        ("user", "And of Italy?"),
    ];
    let expected = directly(model, ground.path().join("direct"), &chat, 12);
    let messages: Vec<Value> =
        chat.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    let words = [name, json!(messages).to_string(), expected.ids[0].to_string()];
    let said = python(&ground, &clients, &trio, "model.py", &words.each_ref().map(String::as_str)).await;

    assert_eq!(said.lines[0]["text"], expected.text.as_str());
    assert_eq!(said.lines[0]["tokens_in"], expected.tokens_in);
    assert_eq!(said.end.done.len(), 12, "{:?}", said.end);
    assert_eq!(said.end.stopped.len(), 2, "{:?}", said.end);
    said.end.check_bill(&trio).await;
    check_logs(&ground, &["Why is the sky blue", "the capital of France", "How is the weather"]);
}

/// Asks an engine in this process, which always takes the likeliest token.
fn directly(path: PathBuf, cache_dir: PathBuf, chat: &[(&str, &str)], max_tokens: u32) -> engine::Completion {
    let model = ModelSource::Gguf { path, cache_dir };
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
