//! The exact bytes of answers and events, in front of a driver that is not real.

use engine::frame::{Form, Prompt};
use engine::tools::{ToolChoice, Turn};
use serde_json::{Map, Value, json};

use super::super::calls::Piece;
use super::super::wire::{Finish, Tally};
use super::Wanted;
use super::writing::{Said, Writing};
use crate::api::tests::{Served, served};
use crate::exit::Failure;

async fn wanted(body: Value) -> Result<Wanted, Failure> {
    Wanted::of(body.to_string().as_bytes()).await
}

async fn ask(served: &Served, body: &Value) -> (u16, String) {
    let http = reqwest::Client::builder().no_proxy().build().expect("plain");
    let request = http.post(format!("http://{}/v1/responses", served.address)).json(body);
    let response = request.send().await.expect("answered");
    let job = response.headers().get("x-sharemesh-job").map(|job| job.to_str().expect("text").to_owned());
    let (status, mut text) = (response.status().as_u16(), response.text().await.expect("text"));
    if let Some(job) = job {
        text = text.replace(&job, "JOB");
    }
    let created = text.split("\"created_at\":").nth(1).and_then(|rest| rest.split(',').next());
    if let Some(created) = created.map(str::to_owned) {
        assert!(created.parse::<u64>().expect("a number") > 1_700_000_000, "{created}");
        text = text.replace(&format!("\"created_at\":{created}"), "\"created_at\":0");
    }
    (status, text)
}

/// Returns the events of a stream, each checked to be named as it says and in its place.
fn events(stream: &str) -> Vec<Value> {
    let mut events = Vec::new();
    for block in stream.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':')) {
        let (name, data) = block.split_once('\n').expect("two lines");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        assert_eq!(data["sequence_number"], events.len());
        events.push(data);
    }
    events
}

fn message(status: &str, content: Value) -> Value {
    json!({"id": "msg_JOB_0", "type": "message", "status": status, "role": "assistant", "content": content})
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn response(status: &str, output: Value) -> Value {
    json!({
        "id": "resp_JOB", "object": "response", "created_at": 0, "status": status, "background": false,
        "error": null, "incomplete_details": null, "instructions": null, "max_output_tokens": null,
        "metadata": {}, "model": "echo", "output": output, "parallel_tool_calls": true,
        "previous_response_id": null, "reasoning": {"effort": null, "summary": null}, "store": false,
        "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
        "top_p": 1.0, "truncation": "disabled", "usage": null, "user": null,
    })
}

fn done() -> Value {
    let mut done = response("completed", json!([message("completed", json!([part("héllo")]))]));
    done["usage"] = json!({
        "input_tokens": 2, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 3,
    });
    done["sharemesh"] = json!([{
        "job": "JOB", "provider": "aa", "receipt": "cc", "price_nano": 100, "price_credits": "0.0000001",
    }]);
    done
}

#[tokio::test]
async fn a_response_is_answered_whole_and_event_by_event() {
    let served = served().await;
    let body = json!({"model": "echo", "input": "héllo"});

    let (status, whole) = ask(&served, &body).await;
    assert_eq!(status, 200, "{whole}");
    assert_eq!(serde_json::from_str::<Value>(&whole).expect("JSON"), done());

    let (status, stream) = ask(&served, &json!({"model": "echo", "input": "héllo", "stream": true})).await;
    assert_eq!(status, 200);
    let item = json!({"item_id": "msg_JOB_0", "output_index": 0, "content_index": 0});
    let event = |number: usize, name: &str, more: &[Value]| {
        let mut event = json!({"type": name, "sequence_number": number});
        for more in more {
            event.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        }
        event
    };
    let begun = json!({"response": response("in_progress", json!([]))});
    let finished = json!({"output_index": 0, "item": message("completed", json!([part("héllo")]))});
    let expected = [
        event(0, "response.created", std::slice::from_ref(&begun)),
        event(1, "response.in_progress", &[begun]),
        event(
            2,
            "response.output_item.added",
            &[json!({"output_index": 0, "item": message("in_progress", json!([]))})],
        ),
        event(3, "response.content_part.added", &[item.clone(), json!({"part": part("")})]),
        event(4, "response.output_text.delta", &[item.clone(), json!({"delta": "héllo", "logprobs": []})]),
        event(5, "response.output_text.done", &[item.clone(), json!({"text": "héllo", "logprobs": []})]),
        event(6, "response.content_part.done", &[item, json!({"part": part("héllo")})]),
        event(7, "response.output_item.done", &[finished]),
        event(8, "response.completed", &[json!({"response": done()})]),
    ];
    for (found, expected) in events(&stream).iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(events(&stream).len(), expected.len());
}

#[tokio::test]
async fn what_fails_has_its_status_before_the_stream_and_an_event_in_it() {
    let served = served().await;
    let (status, refused) = ask(&served, &json!({"model": "poor", "input": "x", "stream": true})).await;
    assert_eq!(status, 402, "{refused}");

    let lost = json!({
        "model": "half", "input": "x", "stream": true, "provider": {"allow_fallbacks": false},
    });
    let (status, stream) = ask(&served, &lost).await;
    let last = events(&stream).pop().expect("events");
    assert_eq!((status, &last["type"]), (200, &json!("response.failed")));
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error"]["code"], "provider_lost");
    assert!(!stream.contains("[DONE]"));
}

#[tokio::test]
async fn conversations_tools_and_forms_are_understood() {
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true});
    let asked = wanted(json!({
        "model": "m", "instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0, "tools": [tool],
        "tool_choice": {"type": "function", "name": "f"}, "store": true, "metadata": {"a": "b"}, "seed": 4,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Go."}]},
            {"type": "reasoning", "summary": []},
            {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "4"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "5"}]},
        ],
    }))
    .await
    .expect("sound");

    let generate = asked.asked.jobs[0].generate().expect("text");
    let Prompt::Tools(chat) = &generate.prompt else { panic!("{generate:?}") };
    assert_eq!(chat.turns.len(), 5, "{chat:?}");
    assert!(
        matches!(&chat.turns[2], Turn::Called { content, calls } if content == "Yes." && calls.len() == 2)
    );
    assert!(matches!(&chat.turns[4], Turn::Returned { call, content } if call == "c2" && content == "5"));
    assert_eq!((&chat.choice, generate.max_tokens), (&ToolChoice::Named("f".to_owned()), 9));
    assert_eq!(generate.sampling.seed, 4);
    assert_eq!(asked.asked.ignored, ["store"]);
    assert_eq!(asked.echo["tools"], json!([tool]));
    assert_eq!((&asked.echo["metadata"], &asked.echo["temperature"]), (&json!({"a": "b"}), &json!(0)));

    let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": true});
    let formed =
        wanted(json!({"model": "m", "input": "x", "text": {"format": format}})).await.expect("sound");
    let form = Some(Form::Json { schema: r#"{"type":"integer"}"#.to_owned() });
    assert_eq!(formed.asked.jobs[0].generate().expect("text").form, form);
    assert_eq!(formed.echo["text"]["format"], format);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name() {
    for (changes, param) in [
        (json!({"model": null}), "model"),
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": [5]}), "input[0]"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (json!({"input": [{"role": "king", "content": "x"}]}), "input[0].role"),
        (json!({"instructions": "Be brief.", "input": [{"role": "king", "content": "x"}]}), "input[0].role"),
        (
            json!({"input": [{"role": "user", "content": "x"}, {"type": "reasoning"}, {"role": "king", "content": "x"}]}),
            "input[2].role",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "text.format.schema"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "no"}}}}),
            "text.format",
        ),
    ] {
        let mut body = json!({"model": "m", "input": "x"});
        for (name, value) in changes.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let failure = wanted(body).await.map(|_| ()).expect_err(param);
        assert_eq!(failure.param.as_deref(), Some(param), "{changes}: {failure}");
        assert!(!failure.message.contains("`messages"), "{failure}");
    }
}

#[test]
fn calls_are_items_of_their_own_and_an_answer_that_is_cut_says_so() {
    let mut writing = Writing::new("JOB", 0, "m", Map::new());
    for piece in [
        Piece::Text("Let me see.".to_owned()),
        Piece::Call { index: 0, name: "f".to_owned() },
        Piece::Arguments { index: 0, text: "{\"a\":".to_owned() },
        Piece::Arguments { index: 0, text: " 1}".to_owned() },
        Piece::Call { index: 1, name: "g".to_owned() },
        Piece::Arguments { index: 1, text: "{".to_owned() },
    ] {
        writing.take(piece);
    }
    writing.close(Finish::Length);
    let said = writing.said();
    let names: Vec<&str> = said.iter().map(|Said { name, .. }| *name).collect();
    assert_eq!(
        names,
        [
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
        ]
    );
    assert_eq!(
        said[9].data,
        json!({
            "type": "response.function_call_arguments.done", "sequence_number": 9, "item_id": "fc_JOB_1",
            "output_index": 1, "name": "f", "arguments": "{\"a\": 1}",
        })
    );
    let whole = writing.whole(&Tally::default());
    assert_eq!(
        (&whole["status"], &whole["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    let statuses: Vec<_> =
        whole["output"].as_array().expect("a list").iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, ["completed", "completed", "incomplete"]);
    assert_eq!(whole["output"][1]["call_id"], "call_JOB_0_0");
    assert_eq!(writing.end(&Tally::default())[0].name, "response.incomplete");
}

#[test]
fn an_answer_of_nothing_is_a_message_of_no_words() {
    let mut writing = Writing::new("JOB", 0, "m", Map::new());
    writing.close(Finish::Stop);
    assert_eq!(writing.whole(&Tally::default())["output"], json!([message("completed", json!([part("")]))]));
}
