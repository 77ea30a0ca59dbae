//! Says a request in the words of a chat, whose rules then hold for it.

use serde_json::{Map, Value, json};

use super::super::asked::Asked;
use super::super::fields::{Fields, parse, unsupported, wrong};
use super::super::wire::Dialect;
use crate::exit::Failure;

/// What is refused, because nothing is kept and nothing runs when nobody waits, with what is as good as leaving it out.
fn refuse_what_is_not_there(fields: &mut Fields) -> Result<(), Failure> {
    for name in ["previous_response_id", "conversation"] {
        if fields.has(name) {
            return Err(wrong(
                name,
                "is not supported: nothing is kept here, send the whole conversation as `input`",
            ));
        }
    }
    fields.refuse("background", &[json!(false)])?;
    fields.refuse("prompt", &[])?;
    fields.refuse("truncation", &[json!("disabled")])?;
    fields.refuse("top_logprobs", &[json!(0)])
}

/// Parameters that chats have under the same names.
const SAME: [&str; 12] = [
    "model",
    "stream",
    "temperature",
    "top_p",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "seed",
    "top_k",
    "repetition_penalty",
    "provider",
    "builder",
];

/// Parameters that change nothing here.
const IGNORED: [&str; 10] = [
    "store",
    "include",
    "reasoning",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "max_tool_calls",
    "stream_options",
    "context_management",
];

/// Names of a chat's parameters, and what they are called here; longer ones first.
const NAMES: [(&str, &str); 6] = [
    ("response_format.json_schema.schema", "text.format.schema"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("prompt", "input"),
];

/// A request that makes sense.
#[derive(Debug)]
pub(in super::super) struct Wanted {
    pub(in super::super) asked: Asked,
    /// What was asked for, as the answer repeats it.
    pub(super) echo: Map<String, Value>,
}

impl Wanted {
    /// Reads a request, or says what to change.
    pub(in super::super) async fn of(body: &[u8]) -> Result<Self, Failure> {
        let Chat { said, origins, echo, ignored } = chat(Fields::read(body)?)?;
        let renamed = |failure| renamed(failure, &origins);
        let asked = Asked::of(Dialect::Chat, Value::Object(said).to_string().as_bytes()).map_err(renamed)?;
        let mut asked = asked.checked().await.map_err(renamed)?;
        asked.ignored.extend(ignored);
        Ok(Self { asked, echo })
    }
}

/// Says a failure of a chat in the words of this endpoint; `origins` tells what each message was made of.
fn renamed(failure: Failure, origins: &[String]) -> Failure {
    let Some(param) = failure.param.clone() else { return failure };
    let of_message =
        origins.iter().enumerate().map(|(at, origin)| (format!("messages[{at}]"), origin.as_str()));
    let of_name = NAMES.iter().map(|(name, ours)| ((*name).to_owned(), *ours));
    let Some((name, ours)) = of_message.chain(of_name).find(|(name, _)| param.starts_with(name)) else {
        return failure;
    };
    let message = failure.message.replacen(&name, ours, 1);
    Failure { message, ..failure }.in_param(param.replacen(&name, ours, 1))
}

/// A request in the words of a chat.
struct Chat {
    /// The body.
    said: Map<String, Value>,
    /// What each of its messages was made of.
    origins: Vec<String>,
    /// What the answer repeats.
    echo: Map<String, Value>,
    /// Names of what changes nothing.
    ignored: Vec<String>,
}

fn chat(mut fields: Fields) -> Result<Chat, Failure> {
    refuse_what_is_not_there(&mut fields)?;
    let instructions = fields.take::<String>("instructions")?;
    let (messages, origins) = messages(instructions.as_deref(), fields.take("input")?)?;
    let text = fields.take::<Map<String, Value>>("text")?.unwrap_or_default();
    let most = fields.take::<Value>("max_output_tokens")?;
    let (metadata, user) = (fields.take::<Value>("metadata")?, fields.take::<Value>("user")?);
    let mut said = Map::from_iter([("messages".to_owned(), messages.into())]);
    for name in SAME {
        said.extend(fields.take::<Value>(name)?.map(|value| (name.to_owned(), value)));
    }
    let format = text.get("format").cloned().filter(|format| !format.is_null());
    if let Some(format) = &format {
        said.insert("response_format".to_owned(), chat_format(format)?);
    }
    said.extend(most.clone().map(|most| ("max_completion_tokens".to_owned(), most)));
    IGNORED.iter().for_each(|name| fields.ignore(name));
    let given = |name: &str, otherwise: Value| said.get(name).cloned().unwrap_or(otherwise);
    let echo = json!({
        "instructions": instructions,
        "max_output_tokens": most,
        "metadata": metadata.unwrap_or_else(|| json!({})),
        "parallel_tool_calls": given("parallel_tool_calls", json!(true)),
        "temperature": given("temperature", json!(1.0)),
        "text": {"format": format.unwrap_or_else(|| json!({"type": "text"}))},
        "tool_choice": given("tool_choice", json!("auto")),
        "tools": given("tools", json!([])),
        "top_p": given("top_p", json!(1.0)),
        "user": user,
    });
    let Value::Object(echo) = echo else { return Err(Failure::internal("an object is an object")) };
    Ok(Chat { said, origins, echo, ignored: fields.leftover() })
}

/// Says what the text shall look like as chats say it: there, a schema is one level further down.
fn chat_format(format: &Value) -> Result<Value, Failure> {
    let format: Map<String, Value> = parse("text.format", format.clone())?;
    if format.get("type").and_then(Value::as_str) != Some("json_schema") {
        return Ok(Value::Object(format));
    }
    Ok(json!({"type": "json_schema", "json_schema": format}))
}

/// Says the conversation as the messages of a chat, and of each of them what it was made of first: items that follow each
/// other may become one message, or none.
fn messages(instructions: Option<&str>, input: Option<Value>) -> Result<(Vec<Value>, Vec<String>), Failure> {
    let mut messages = Vec::new();
    let mut origins: Vec<String> = instructions.iter().map(|_| "instructions".to_owned()).collect();
    messages.extend(instructions.map(|text| json!({"role": "system", "content": text})));
    match input {
        None => return Err(wrong("input", "is missing: send a text, or the items of a conversation")),
        Some(Value::String(text)) => {
            messages.push(json!({"role": "user", "content": text}));
            origins.push("input".to_owned());
        }
        Some(Value::Array(items)) => {
            for (at, item) in items.into_iter().enumerate() {
                let at = format!("input[{at}]");
                take_item(&mut messages, &at, item)?;
                origins.resize(messages.len(), at);
            }
        }
        Some(_) => return Err(wrong("input", "must be a text or a list of items")),
    }
    if messages.len() == usize::from(instructions.is_some()) {
        return Err(wrong("input", "is empty: send a text, or the items of a conversation"));
    }
    Ok((messages, origins))
}

fn take_item(messages: &mut Vec<Value>, at: &str, item: Value) -> Result<(), Failure> {
    let mut item: Map<String, Value> = parse(at, item)?;
    let kind = match item.remove("type") {
        Some(kind) => parse::<String>(&format!("{at}.type"), kind)?,
        None => "message".to_owned(),
    };
    match kind.as_str() {
        "message" => {
            let content = content(&format!("{at}.content"), item.remove("content").unwrap_or_default())?;
            let role = item.remove("role").unwrap_or_default();
            messages.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let [id, name, arguments] =
                ["call_id", "name", "arguments"].map(|key| item.remove(key).unwrap_or_default());
            let call =
                json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            add_call(messages, call);
        }
        "function_call_output" => {
            let id = item.remove("call_id").unwrap_or_default();
            let content = content(&format!("{at}.output"), item.remove("output").unwrap_or_default())?;
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
        }
        // What a model thought is its own.
        "reasoning" => {}
        _ => return Err(unsupported(&format!("{at}.type"))),
    }
    Ok(())
}

/// Puts calls that follow each other, or words of the assistant, into one message.
fn add_call(messages: &mut Vec<Value>, call: Value) {
    if let Some(last) = messages.last_mut().filter(|last| last["role"] == "assistant") {
        match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
            Some(calls) => calls.push(call),
            None => last["tool_calls"] = json!([call]),
        }
        return;
    }
    messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
}

/// Says content as chats say it: text, or parts of text.
fn content(at: &str, content: Value) -> Result<Value, Failure> {
    let Value::Array(parts) = content else { return Ok(content) };
    let part = |(number, part): (usize, Value)| {
        let at = format!("{at}[{number}]");
        let mut part: Map<String, Value> = parse(&at, part)?;
        match part.get("type").and_then(Value::as_str) {
            Some("input_text" | "output_text" | "text") => {
                Ok(json!({"type": "text", "text": part.remove("text").unwrap_or_default()}))
            }
            Some("refusal") => {
                Ok(json!({"type": "refusal", "refusal": part.remove("refusal").unwrap_or_default()}))
            }
            _ => Err(wrong(&format!("{at}.type"), "is not supported here: send parts of type `input_text`")),
        }
    };
    parts.into_iter().enumerate().map(part).collect::<Result<Vec<_>, _>>().map(Value::Array)
}
