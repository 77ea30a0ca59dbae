//! One request under one name in the logs of every node that works for it, and nothing of what it says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reqwest::Client;
use serde_json::{Value, json};
use tests::{Ground, OPENING_NANO, Peer, until};

use crate::SHAREMESH;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CANARY: &str = "a canary that sings";

/// Returns the steps of a job that a log has under a trace, with what the node was in it.
fn steps(log: &Path, trace: &str) -> BTreeSet<(String, String)> {
    let text = std::fs::read_to_string(log).expect("a log");
    // The last line may be half written.
    let lines = text.lines().filter(|line| line.contains(trace));
    let lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let step = |line: Value| {
        let (step, side) = (line["fields"]["step"].as_str()?, line["span"]["side"].as_str()?);
        assert!(line["fields"]["ms"].is_u64(), "{line}");
        assert_eq!(line["span"]["trace"], trace);
        assert_eq!(line["span"]["job"].as_str().map(str::len), Some(32), "{line}");
        Some((side.to_owned(), step.to_owned()))
    };
    lines.filter_map(step).collect()
}

fn all(side: &str, steps: &[&str]) -> BTreeSet<(String, String)> {
    steps.iter().map(|step| (side.to_owned(), (*step).to_owned())).collect()
}

async fn ask(node: &Peer, traceparent: Option<&str>) -> (String, String) {
    let url = format!("http://{}/v1/chat/completions", node.client().address());
    let messages = json!([{"role": "user", "content": CANARY}]);
    let body = json!({"model": "fake", "messages": messages, "max_tokens": 20});
    let request = Client::builder().no_proxy().build().expect("plain").post(url).json(&body);
    let request =
        traceparent.into_iter().fold(request, |request, value| request.header("traceparent", value));
    let response = request.send().await.expect("answered");
    assert_eq!(response.status(), 200);
    let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
    let answer: Value = response.json().await.expect("JSON");
    (id, answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned())
}

#[tokio::test]
async fn one_id_finds_a_request_in_the_logs_of_both_nodes() {
    let ground = Ground::new(SHAREMESH);
    let logs = ["--log-format", "json"];
    let issuer = ground.start("issuer", &["--dev"]).await;
    let serves = ["--join", &issuer.ticket(0).await, "--serve", "fake"];
    let provider = ground.start("provider", &[&serves[..], &logs].concat()).await;
    let joins = ["--join", &issuer.ticket(OPENING_NANO).await];
    let consumer = ground.start("consumer", &[&joins[..], &logs].concat()).await;
    consumer.until_provided("fake").await;

    let sound = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let (brought, answer) = ask(&consumer, Some(&sound)).await;
    let (made, _) = ask(&consumer, None).await;
    let (other, _) = ask(&consumer, Some(&format!("00-{TRACE}-{CANARY}-01"))).await;

    assert_eq!(brought, TRACE);
    assert!(answer.len() > 20, "long enough to be found by chance nowhere: {answer}");
    assert!([&made, &other].iter().all(|id| id.len() == 32 && *id != TRACE) && made != other);
    let log = |name: &str| ground.path().join(format!("{name}.log"));
    for trace in [brought, made, other] {
        until("both logs have every step", async || {
            let (bought, sold) = (steps(&log("consumer"), &trace), steps(&log("provider"), &trace));
            let bought_all = all("consumer", &["open", "route", "accept", "prefill", "decode", "receipt"]);
            let sold_all = all("provider", &["prepare", "prefill", "decode"]);
            if (&bought, &sold) == (&bought_all, &sold_all) {
                Ok(())
            } else {
                Err(format!("{bought:?}, {sold:?}"))
            }
        })
        .await;
    }
    for name in ["consumer", "provider"] {
        let text = std::fs::read_to_string(log(name)).expect("a log");
        assert!(!text.contains(CANARY) && !text.contains("sings"), "a prompt is in the log of {name}");
        assert!(!text.contains(&answer), "an answer is in the log of {name}");
    }
    for peer in [&issuer, &provider, &consumer] {
        let url = format!("http://{}/metrics", peer.client().address());
        let asked = Client::builder().no_proxy().build().expect("plain").get(url).send().await;
        let metrics = asked.expect("answered").text().await.expect("text");
        assert!(metrics.contains("sharemesh_"), "{metrics}");
        check_absent(&peer.name, metrics.as_bytes(), &answer);
        // The journal and the index are among them, and a ledger is what they are of.
        let folder = files_under(&ground.data(&peer.name));
        assert!(folder.iter().any(|file| file.to_string_lossy().contains("journal")), "{folder:?}");
        for file in folder {
            check_absent(&file.display().to_string(), &std::fs::read(&file).unwrap_or_default(), &answer);
        }
    }
}

/// Checks that neither what was asked nor what was answered is in something.
fn check_absent(what: &str, bytes: &[u8], answer: &str) {
    for words in [CANARY, answer] {
        let is_there = bytes.windows(words.len()).any(|part| part == words.as_bytes());
        assert!(!is_there, "`{words}` is in {what}");
    }
}

/// Returns all files of a folder and of those in it.
fn files_under(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files_under(&path) } else { vec![path] }).collect()
}
