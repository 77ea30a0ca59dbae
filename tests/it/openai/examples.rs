//! The examples of `docs/api.md`, as they stand there.

use std::path::Path;
use std::process::Command;

use tests::Ground;

use super::{clients, node_of};
use crate::SHAREMESH;
use crate::embeddings::{name_of, real_encoder};

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
