//! Web pages: those of origins that the owner named may use the endpoints for programs, with a key.

use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;
use tests::Ground;

use crate::SHAREMESH;

#[tokio::test]
async fn a_page_of_a_named_origin_may_ask_with_a_key_and_a_wildcard_is_refused() {
    let ground = Ground::new(SHAREMESH);
    let refused =
        ground.program().run(&ground.data("other"), &["up", "--cors-origin", "https://*.example"], b"").await;
    refused.must_fail(2, &["https://*.example", "name each origin", "--cors-origin https://app.example"]);

    let node = ground.start("node", &["--dev", "--cors-origin", "https://App.example:443"]).await;
    let made = node.cli(&["--json", "keys", "create", "page", "--per-day", "1"]).await;
    let made: Value = serde_json::from_str(&made.stdout).unwrap_or_else(|error| panic!("{error}: {made:?}"));
    let key = made["key"].as_str().expect("a key");
    let request = |method: &str, origin: &str| -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let url = format!("http://{}/v1/models", node.client().address());
        Client::builder().no_proxy().build().expect("plain").request(method, url).header("origin", origin)
    };
    let asked = request("OPTIONS", "https://app.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,idempotency-key");

    let asked = asked.send().await.expect("answered");

    assert_eq!(asked.headers()["access-control-allow-origin"], "https://app.example");
    assert_eq!(asked.headers()["access-control-allow-headers"], "authorization,idempotency-key");
    let answer = request("GET", "https://app.example").bearer_auth(key).send().await.expect("answered");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example");
    let keyless = request("GET", "https://app.example").send().await.expect("answered");
    assert_eq!(keyless.status(), 403);
    let other = request("GET", "https://evil.example").bearer_auth(key).send().await.expect("answered");
    assert_eq!(other.status(), 403);
}
