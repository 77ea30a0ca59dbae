//! Vectors of a real encoder, bought through the mesh: by the official clients, and paid by what is read.

use std::path::{Path, PathBuf};

use engine::direct::Engine;
use engine::frame::{Embed, EmbedInput};
use engine::options::{DeviceChoice, ModelSource, WorkerOptions};
use serde_json::{Value, json};
use tests::Ground;

use crate::SHAREMESH;
use crate::openai::{clients, python};

#[tokio::test]
async fn vectors_are_bought_through_the_mesh_by_the_official_clients() {
    let (Some(clients), Some(encoder)) = (clients(), real_encoder()) else { return };
    let ground = Ground::new(SHAREMESH);
    // The same node serves a model of text: neither is asked for the other's work.
    let trio = ground.trio(&["--serve", encoder.to_str().unwrap(), "--threads", "2"]).await;
    let name = name_of(&encoder);
    trio.consumer.until_provided(&name).await;

    let said = python(&ground, &clients, &trio, "embeddings.py", &[&name, "fake"]).await;

    let texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."];
    let expected = directly(&encoder, &ground.path().join("direct"), &texts);
    let vectors: Vec<Vec<f32>> = serde_json::from_value(said.lines[0]["vectors"].clone()).unwrap();
    for (found, expected) in vectors.iter().zip(&expected) {
        assert_eq!(found.len(), 384);
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5));
    }
    // A credit for a million tokens, and nothing for vectors.
    assert_eq!(said.lines[0]["price"], 25 * 1_000);
    let receipt = trio.consumer.receipt_once_signed(said.lines[0]["receipt"].as_str().unwrap()).await;
    assert!(receipt.payer_signature && receipt.payee_signature, "{receipt:#?}");
    assert_eq!(receipt.price.output_per_million.nano, 0);
    said.end.check_bill(&trio).await;
    for node in ["issuer", "provider", "consumer"] {
        let log = std::fs::read(ground.path().join(format!("{node}.log"))).unwrap();
        assert!(!String::from_utf8_lossy(&log).contains("sunny"), "a text is in the log of {node}");
    }
}

#[tokio::test]
async fn a_nodes_own_encoder_makes_vectors_for_nothing() {
    let Some(encoder) = real_encoder() else { return };
    let ground = Ground::new(SHAREMESH);
    let node = ground.start("issuer", &["--serve", encoder.to_str().unwrap(), "--threads", "2"]).await;
    let url = format!("http://{}/v1/embeddings", node.client().address());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({"model": name_of(&encoder), "input": ["one", "two"]});

    let answer = http.post(url).json(&body).send().await.unwrap();

    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!((answer["data"].as_array().unwrap().len(), &answer["usage"]["prompt_tokens"]), (2, &json!(6)));
    assert_eq!(answer["sharemesh"][0]["price_nano"], 0);
}

#[tokio::test]
async fn whoever_makes_vectors_for_nothing_is_warned() {
    let Some(encoder) = real_encoder() else { return };
    let ground = Ground::new(SHAREMESH);
    let flags =
        ["--serve", encoder.to_str().unwrap(), "--threads", "2", "--price-in", "0", "--price-out", "1"];
    let node = ground.start("issuer", &flags).await;

    tests::until("the log says so", async || {
        let log = node.log();
        if log.contains("it works for nothing") { Ok(()) } else { Err(log) }
    })
    .await;
}

/// Asks an engine in this process.
fn directly(path: &Path, cache: &Path, texts: &[&str]) -> Vec<Vec<f32>> {
    let source = ModelSource::Gguf { path: path.to_owned(), cache_dir: cache.to_owned() };
    let options = WorkerOptions {
        model: source,
        device: DeviceChoice::Auto,
        slots: 1,
        context_max: None,
        threads: Some(2),
    };
    let inputs = texts.iter().map(|text| EmbedInput::Text((*text).to_owned())).collect();
    Engine::load(&options).unwrap().embed(&Embed { inputs, truncate: false }).unwrap().0
}

/// Returns the name under which a node serves a file.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_ascii_lowercase()
}

/// Finds the model of vectors; in continuous integration it must be there.
pub(crate) fn real_encoder() -> Option<PathBuf> {
    let found = std::env::var_os("SHAREMESH_TEST_ENCODER").map(PathBuf::from).filter(|path| path.is_file());
    let required = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(found.is_some() || !required, "set SHAREMESH_TEST_ENCODER to the path of a GGUF file");
    if found.is_none() {
        eprintln!("skipped: SHAREMESH_TEST_ENCODER names no GGUF file (`cargo xtask check --only model`)");
    }
    found
}
