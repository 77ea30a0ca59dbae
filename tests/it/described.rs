//! The description of the API at `/openapi.json`: every endpoint is in it, and answers as it says whatever it is sent.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use node::api::auth::NodeFile;
use serde_json::Value;
use tests::Ground;

use crate::SHAREMESH;
use crate::openai::clients;

/// Requests that are made up for each endpoint, beside those at the edges of what its description allows.
const REQUESTS: &str = "10";

/// How long all of them may take: thousands.
const PATIENCE: Duration = Duration::from_secs(900);

#[tokio::test]
async fn whatever_an_endpoint_is_sent_it_answers_as_described_and_has_no_fault() {
    let Some(clients) = clients() else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let address = trio.consumer.client().address();
    let token = NodeFile::read(&ground.path().join("consumer")).unwrap().token.header();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");

    let mut command = Command::new("python3");
    command.args(["-m", "schemathesis.cli", "--config-file"]).arg(here.join("schemathesis.toml"));
    command.args([
        "run",
        &format!("http://{address}/openapi.json"),
        "--header",
        &format!("Authorization:{token}"),
    ]);
    let requests = std::env::var("SHAREMESH_REQUESTS").unwrap_or_else(|_| REQUESTS.to_owned());
    command.args(["--max-examples", &requests, "--seed", "1", "--no-color", "--request-timeout", "60"]);
    command.current_dir(ground.path()).env("PYTHONPATH", format!("{}:{}", clients.display(), here.display()));
    command.env("SCHEMATHESIS_HOOKS", "fuzzing").env("NO_PROXY", "*");
    let ended = ground.program().finish_within(PATIENCE, command, b"").await;

    assert_eq!(ended.code, Some(0), "{}\n{}\n{}", ended.stdout, ended.stderr, trio.consumer.log());
    trio.consumer.status().await;
}

#[tokio::test]
async fn the_description_names_every_endpoint_of_the_documents() {
    let ground = Ground::new(SHAREMESH);
    let node = ground.start("issuer", &["--dev"]).await;
    let url = format!("http://{}/openapi.json", node.client().address());

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let described: Value = http.get(url).send().await.unwrap().json().await.unwrap();

    let schemas = &described["components"]["schemas"];
    assert!(schemas["Function"]["properties"]["parameters"].is_object(), "requests have names of their own");
    assert!(schemas["AnswerFunction"]["properties"]["arguments"].is_object(), "and so have answers");
    let dry =
        &described["paths"]["/v1/embeddings"]["post"]["responses"]["200"]["content"]["application/json"];
    assert_eq!(dry["schema"]["anyOf"][1]["$ref"], "#/components/schemas/DryRun", "{dry}");
    assert!(schemas["DryRun"]["properties"]["candidates"].is_object(), "{}", schemas["DryRun"]);
    let paths = described["paths"].as_object().expect("paths");
    let mut names = BTreeSet::new();
    for path in ["/v1/chat/completions", "/v1/models/{id}", "/api/chat", "/sharemesh/v1/keys", "/livez", "/"]
    {
        assert!(paths.contains_key(path), "{path}: {:?}", paths.keys());
    }
    for (path, item) in paths {
        for (method, operation) in item.as_object().expect("operations") {
            assert!(operation["summary"].is_string(), "{method} {path} says what it does");
            assert!(names.insert(operation["operationId"].as_str()), "{method} {path} has a name of its own");
            assert!(operation["responses"]["500"].is_object(), "{method} {path} says how it fails");
            for (status, expected) in may_fail(method, path) {
                let is_said = operation["responses"][status].is_object();
                assert_eq!(is_said, expected, "{method} {path} fails so: {status}");
            }
        }
    }
}

/// Returns how some endpoints fail, and how they do not.
fn may_fail(method: &str, path: &str) -> Vec<(&'static str, bool)> {
    match (method, path) {
        ("get", "/livez") => {
            vec![("401", false), ("402", false), ("404", false), ("422", false), ("503", false)]
        }
        ("get", "/v1/models") => {
            vec![("401", true), ("402", false), ("404", false), ("413", false), ("503", true)]
        }
        ("get", "/v1/models/{id}") => vec![("404", true), ("402", false), ("409", false)],
        ("post", "/v1/chat/completions" | "/api/chat" | "/v1/embeddings") => {
            ["400", "401", "402", "404", "409", "413", "415", "422", "502", "504"]
                .map(|status| (status, true))
                .into()
        }
        ("post", "/sharemesh/v1/account/payments") => vec![("402", true), ("422", false), ("415", false)],
        _ => Vec::new(),
    }
}
