//! Vectors, word for word, in front of a driver that is not real: each has the length of its text and its number.

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::api::tests::{Served, served};
use crate::api_keys::Limits;

fn post(served: &Served, path: &str, body: &Value) -> RequestBuilder {
    let http = reqwest::Client::builder().no_proxy().build().expect("plain");
    http.post(format!("http://{}{path}", served.address)).json(body)
}

async fn embed(served: &Served, body: Value) -> Response {
    post(served, "/v1/embeddings", &body).send().await.expect("answered")
}

async fn json_of(response: Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

fn vectors(answer: &Value) -> Vec<Vec<f64>> {
    let data = answer["data"].as_array().expect("a list").iter();
    data.map(|one| serde_json::from_value(one["embedding"].clone()).expect("numbers")).collect()
}

#[tokio::test]
async fn vectors_are_answered_word_for_word() {
    let served = served().await;

    let response = embed(&served, json!({"model": "echo", "input": ["a", "four"], "user": "me"})).await;

    assert_eq!(response.headers()["x-sharemesh-provider"], "p0");
    assert_eq!(response.headers()["x-sharemesh-price"], "0.0000001");
    assert_eq!(response.headers()["x-sharemesh-ignored"], "user");
    let job = response.headers()["x-sharemesh-job"].to_str().expect("text").to_owned();
    assert_eq!(
        response.text().await.expect("text").replace(&job, "JOB"),
        concat!(
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1.0,0.0,-1.5]},"#,
            r#"{"object":"embedding","index":1,"embedding":[4.0,1.0,-1.5]}],"model":"echo","#,
            r#""usage":{"prompt_tokens":7,"total_tokens":7},"sharemesh":[{"job":"JOB","provider":"p0","#,
            r#""receipt":"cc","price_nano":100,"price_credits":"0.0000001"}]}"#,
        )
    );
    let (_, answer) =
        json_of(embed(&served, json!({"model": "echo", "input": "a", "encoding_format": "base64"})).await)
            .await;
    // 1.0, 0.0 and -1.5, four bytes each.
    assert_eq!(answer["data"][0]["embedding"], "AACAPwAAAAAAAMC/");
}

#[tokio::test]
async fn texts_and_tokens_are_taken_in_every_form() {
    let served = served().await;
    for (input, expected) in [
        (json!("héllo"), vec![6.0]),
        (json!(["a", "bb"]), vec![1.0, 2.0]),
        (json!([5, 6, 7]), vec![3.0]),
        (json!([[5], [6, 7]]), vec![1.0, 2.0]),
    ] {
        let (status, answer) = json_of(embed(&served, json!({"model": "echo", "input": input})).await).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(vectors(&answer).iter().map(|vector| vector[0]).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_by_name() {
    let served = served().await;
    for (changes, param) in [
        (json!({"model": null}), "model"),
        (json!({"input": null}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [[]]}), "input"),
        (json!({"input": ["a", ""]}), "input"),
        (json!({"input": ["a", 5]}), "input"),
        (json!({"input": [-1]}), "input"),
        (json!({"input": [1.5]}), "input"),
        (json!({"input": {"a": 1}}), "input"),
        (json!({"input": vec!["a"; 2_049]}), "input"),
        (json!({"encoding_format": "hex"}), "encoding_format"),
        (json!({"dimensions": 8}), "dimensions"),
        (json!({"provider": {"order": ["x"]}}), "provider.order"),
    ] {
        let mut body = json!({"model": "echo", "input": "hi"});
        for (name, value) in changes.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let (status, answer) = json_of(embed(&served, body).await).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{changes}: {answer}");
    }
    assert_eq!(served.told.submitted(), 0);
    let (status, _) = json_of(embed(&served, json!({"model": "nobody", "input": "hi"})).await).await;
    assert_eq!(status, 503);
}

#[tokio::test]
async fn another_provider_makes_the_vectors_that_are_missing() {
    let served = served().await;

    let (status, answer) =
        json_of(embed(&served, json!({"model": "half", "input": ["a", "bb", "ccc"]})).await).await;

    assert_eq!(status, 200, "{answer}");
    assert_eq!(vectors(&answer), [[1.0, 0.0, -1.5], [2.0, 0.0, -1.5], [3.0, 0.0, -1.5]]);
    assert_eq!(answer["usage"]["prompt_tokens"], 21, "each counts what it read");
    let charges = answer["sharemesh"].as_array().expect("a list");
    let providers: Vec<_> = charges.iter().map(|charge| charge["provider"].as_str().expect("text")).collect();
    assert_eq!(providers, ["p0", "p1", "p2"]);
    assert!(charges.iter().all(|charge| charge["price_nano"] == 100));

    let alone = json!({"model": "half", "input": ["a", "bb"], "provider": {"allow_fallbacks": false}});
    let response = embed(&served, alone).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-should-retry"]),
        (502, &"false".parse().expect("text"))
    );
}

#[tokio::test]
async fn an_answer_that_lacks_vectors_is_an_error_that_nobody_repeats() {
    let served = served().await;
    let response = embed(&served, json!({"model": "short", "input": ["a", "b"]})).await;
    assert_eq!(response.headers()["x-should-retry"], "false");
    let (status, answer) = json_of(response).await;
    assert_eq!(status, 502);
    assert!(answer["error"]["message"].as_str().expect("text").contains("1 of 2 vectors"), "{answer}");
}

#[tokio::test]
async fn a_dry_run_runs_nothing_and_the_same_key_runs_once() {
    let served = served().await;
    let body = json!({"model": "echo", "input": ["a", "b"]});

    let (status, quote) =
        json_of(post(&served, "/v1/embeddings?dry_run=true", &body).send().await.expect("answered")).await;
    assert_eq!((status, &quote["n"], &quote["price_max"]["nano"]), (200, &json!(1), &json!(100)));
    assert_eq!(served.told.submitted(), 0);

    let again = || post(&served, "/v1/embeddings", &body).header("idempotency-key", "k").send();
    let (first, second) = (again().await.expect("answered"), again().await.expect("answered"));
    assert_eq!(second.headers()["x-sharemesh-replayed"], "true");
    assert_eq!(first.text().await.expect("text"), second.text().await.expect("text"));
    assert_eq!(served.told.submitted(), 1);
}

#[tokio::test]
async fn a_keys_budget_binds_vectors_too() {
    let served = served().await;
    let limits =
        Limits { budget_nano: Some(250), per_day_nano: None, requests_per_minute: 100, jobs_at_once: 100 };
    let key = served.keys.create("k", limits).await.expect("room").key;
    let body = json!({"model": "echo", "input": "a"});
    let ask =
        || post(&served, "/v1/embeddings", &body).header("authorization", format!("Bearer {key}")).send();

    assert_eq!(ask().await.expect("answered").status(), 200);
    assert_eq!(ask().await.expect("answered").status(), 200);
    assert_eq!(ask().await.expect("answered").status(), 402);
    assert_eq!(served.keys.show("k").expect("there").spent.nano, 200);
}

#[tokio::test]
async fn programs_made_for_ollama_get_vectors_in_their_words() {
    let served = served().await;
    let ask = async |path: &str, body: Value| {
        json_of(post(&served, path, &body).send().await.expect("answered")).await
    };

    let (status, mut answer) = ask("/api/embed", json!({"model": "echo:latest", "input": ["a", "bb"]})).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["sharemesh"]["price_nano"], 100);
    answer.as_object_mut().expect("an object").remove("sharemesh");
    // A long text is cut, unless the program says otherwise: the third number tells.
    assert_eq!(
        answer,
        json!({
            "model": "echo", "embeddings": [[1.0, 0.0, 0.5], [2.0, 1.0, 0.5]], "total_duration": 0,
            "load_duration": 0, "prompt_eval_count": 7,
        })
    );
    let whole = json!({"model": "echo", "input": "a", "truncate": false});
    assert_eq!(ask("/api/embed", whole).await.1["embeddings"], json!([[1.0, 0.0, -1.5]]));
    let older = ask("/api/embeddings", json!({"model": "echo", "prompt": "abc"})).await;
    assert_eq!(older.1["embedding"], json!([3.0, 0.0, 0.5]));
    assert_eq!(ask("/api/embed", json!({"model": "echo", "input": []})).await.1["embeddings"], json!([]));
    assert_eq!(
        ask("/api/embeddings", json!({"model": "echo", "prompt": ""})).await.1["embedding"],
        json!([])
    );

    let (status, refused) = ask("/api/embed", json!({"model": "echo", "input": "a", "dimensions": 4})).await;
    assert_eq!(status, 400);
    assert!(refused["error"].as_str().expect("text").contains("dimensions"), "{refused}");
}
