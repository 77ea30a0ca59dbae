//! The examples of `docs/api.md`, as they stand there: each block of the document, or the test fails.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::Ground;

use super::{clients, node_of, python_of};
use crate::SHAREMESH;
use crate::embeddings::{name_of, real_encoder};

/// A block of the document.
#[derive(Debug)]
struct Example<'a> {
    language: &'a str,
    /// The program whose settings it has and that is not here, if it is no example to run.
    settings_of: Option<&'a str>,
    text: String,
}

/// Where examples are run.
struct Surroundings {
    clients: PathBuf,
    /// A folder in which examples write, with the commands that they call in `bin`.
    home: PathBuf,
    /// The data folder of the node that they ask.
    data: PathBuf,
}

#[tokio::test]
async fn every_example_of_the_document_runs_as_it_stands() {
    let (Some(clients), Some(encoder)) = (clients(), real_encoder()) else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&["--serve", encoder.to_str().unwrap(), "--threads", "2"]).await;
    let vectors = name_of(&encoder);
    trio.consumer.until_provided(&vectors).await;
    let document = include_str!("../../../docs/api.md");
    let here = trio.consumer.client().address().to_string();
    let ours = |text: &str| text.replace("127.0.0.1:7433", &here).replace("smollm2-135m", "fake");
    let document = ours(document).replace("all-minilm-l6-v2", &vectors);
    let surroundings =
        Surroundings::prepare(clients, ground.path().join("home"), trio.consumer.data().to_owned());

    let (mut languages, mut settings) = (Vec::new(), Vec::new());
    for example in examples(&document) {
        let (command, input) = surroundings.command(&example);
        let ended = ground.program().finish(command, input.as_bytes()).await;
        assert_eq!(ended.code, Some(0), "{example:#?}\n{}\n{}", ended.stdout, ended.stderr);
        assert!(!ended.stdout.trim().is_empty(), "{example:#?}");
        languages.push(example.language);
        settings.extend(example.settings_of);
    }
    for (language, least) in [("sh", 8), ("python", 8), ("js", 4), ("console", 1)] {
        let count = languages.iter().filter(|found| **found == language).count();
        assert!(count >= least, "{count} in {language}");
    }
    assert_eq!(settings, ["aider", "open-webui", "continue", "litellm"]);
    trio.check_books().await;
}

/// Returns all blocks of a document; each must say its language.
fn examples(document: &str) -> Vec<Example<'_>> {
    let mut examples = Vec::new();
    let mut lines = document.lines();
    while let Some(opening) = lines.find_map(|line| line.strip_prefix("```")) {
        let mut words = opening.split_whitespace();
        let language =
            words.next().unwrap_or_else(|| panic!("a block without a language: {:?}", lines.next()));
        let text = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        examples.push(Example { language, settings_of: words.next(), text });
    }
    examples
}

impl Surroundings {
    fn prepare(clients: PathBuf, home: PathBuf, data: PathBuf) -> Self {
        let bin = home.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        symlink(SHAREMESH, bin.join("sharemesh")).unwrap();
        Self { clients, home, data }
    }

    /// Returns what runs an example, and what it is given to read.
    fn command(&self, example: &Example<'_>) -> (Command, String) {
        let Example { language, settings_of, text } = example;
        let (mut command, input) = match (*language, *settings_of) {
            ("sh", None) => (with_words("sh", &["-c", text]), String::new()),
            ("sh", Some(program)) => {
                let called = format!("\n{program} ");
                assert_eq!(text.matches(&called).count(), 1, "{example:#?}");
                let text = text.replace(&called, &format!("\npython3 '{}' {program} ", settings().display()));
                (with_words("sh", &["-c", &text]), String::new())
            }
            ("yaml", Some(program)) => {
                let mut python = python_of(&self.clients);
                python.arg(settings()).arg(program);
                (python, text.clone())
            }
            ("python", None) => (with_words("python3", &["-c", text]), String::new()),
            ("js", None) => {
                let mut node = node_of(&self.clients);
                node.args(["--input-type=module", "--eval", text]);
                (node, String::new())
            }
            ("console", None) => (with_words("sh", &["-e", "-c", &typed(text)]), String::new()),
            other => panic!("nothing runs {other:?}: {example:#?}"),
        };
        let bins = [self.home.join("bin"), self.clients.join("bin")];
        let path = env::var_os("PATH").unwrap_or_default();
        let path: OsString = env::join_paths(bins.into_iter().chain(env::split_paths(&path))).unwrap();
        command.env("PATH", path).env("PYTHONPATH", &self.clients).env("NO_PROXY", "*");
        command.env("LLM_USER_PATH", self.home.join("llm")).env("SHAREMESH_DATA", &self.data);
        (command, input)
    }
}

fn with_words(program: &str, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words);
    command
}

/// Returns what is typed at the prompts of a terminal.
fn typed(text: &str) -> String {
    text.lines().filter_map(|line| line.strip_prefix("$ ")).map(|line| format!("{line}\n")).collect()
}

/// Returns the program that uses the settings of others.
fn settings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/settings.py")
}
