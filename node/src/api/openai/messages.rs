//! The messages of a chat, as clients write them, with calls of tools and their results, for the model's chat template.

use engine::frame::ChatMessage;
use engine::tools::{TOOLS_MAX, ToolCall, Turn};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::{parse, wrong};
use crate::exit::Failure;

/// Reads all messages; an error names the one that cannot be taken.
pub(super) fn read(messages: Vec<Value>) -> Result<Vec<Turn>, Failure> {
    if messages.is_empty() {
        return Err(wrong("messages", "is empty: send at least one message"));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| read_one(&format!("messages[{at}]"), message))
        .collect()
}

fn read_one(at: &str, message: Value) -> Result<Turn, Failure> {
    let mut message: Map<String, Value> = parse(at, message)?;
    let name = format!("{at}.role");
    let role = match message.remove("role") {
        Some(role) => parse::<String>(&name, role)?,
        None => return Err(wrong(&name, "is missing: write `system`, `user`, `assistant` or `tool`")),
    };
    let of_functions = message.remove("function_call").is_some_and(|value| !value.is_null());
    if of_functions || role == "function" {
        return Err(wrong(&name, "speaks of functions in the old way: use `tool_calls` and the role `tool`"));
    }
    let calls = match message.remove("tool_calls") {
        None | Some(Value::Null) => Vec::new(),
        Some(calls) => calls_of(&format!("{at}.tool_calls"), calls)?,
    };
    let content = content_of(&format!("{at}.content"), message.remove("content"))?;
    match (role.as_str(), calls.is_empty(), content) {
        ("assistant", false, content) => Ok(Turn::Called { content: content.unwrap_or_default(), calls }),
        (_, false, _) => Err(wrong(&format!("{at}.tool_calls"), "is for messages of the assistant only")),
        (_, true, None) => Err(wrong(&format!("{at}.content"), "is missing: write what is said")),
        ("tool", true, Some(content)) => {
            let name = format!("{at}.tool_call_id");
            let call = message.remove("tool_call_id").ok_or_else(|| wrong(&name, "is missing"))?;
            Ok(Turn::Returned { call: parse(&name, call)?, content })
        }
        (role, true, Some(content)) => Ok(Turn::Said(ChatMessage { role: role_of(&name, role)?, content })),
    }
}

fn content_of(name: &str, content: Option<Value>) -> Result<Option<String>, Failure> {
    match content {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => text_of(name, parts).map(Some),
        None | Some(Value::Null) => Ok(None),
        Some(_) => Err(wrong(name, "must be a text or a list of parts")),
    }
}

/// A call as clients write it.
#[derive(Deserialize)]
struct Call {
    id: String,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: String,
}

fn calls_of(name: &str, calls: Value) -> Result<Vec<ToolCall>, Failure> {
    let calls: Vec<Call> = parse(name, calls)?;
    if calls.len() > TOOLS_MAX {
        return Err(wrong(name, &format!("has {} calls: at most {TOOLS_MAX}", calls.len())));
    }
    let call = |Call { id, function: Function { name, arguments } }| ToolCall { id, name, arguments };
    Ok(calls.into_iter().map(call).collect())
}

/// Returns the role that chat templates know; what developers say is what the system says.
fn role_of(name: &str, role: &str) -> Result<String, Failure> {
    match role {
        "system" | "user" | "assistant" => Ok(role.to_owned()),
        "developer" => Ok("system".to_owned()),
        _ => Err(wrong(name, "is unknown: write `system`, `developer`, `user`, `assistant` or `tool`")),
    }
}

/// Joins the parts of a message, all of which must be text.
fn text_of(name: &str, parts: Vec<Value>) -> Result<String, Failure> {
    let mut whole = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let name = format!("{name}[{at}]");
        let mut part: Map<String, Value> = parse(&name, part)?;
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = match kind.as_str() {
            "text" => "text",
            "refusal" => "refusal",
            _ => {
                return Err(wrong(
                    &format!("{name}.type"),
                    "is not supported here: send parts of type `text`",
                ));
            }
        };
        let name = format!("{name}.{key}");
        let text = part.remove(key).ok_or_else(|| wrong(&name, "is missing"))?;
        whole += &parse::<String>(&name, text)?;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(messages: Value) -> String {
        let Value::Array(messages) = messages else { panic!("a list") };
        read(messages).expect_err("refused").param.expect("names what is meant")
    }

    #[test]
    fn texts_parts_and_developers_are_understood() {
        let messages = json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}], "name": "ann"},
            {"role": "assistant", "content": "Because.", "tool_calls": null},
        ]);
        let Value::Array(messages) = messages else { panic!("a list") };

        let read = read(messages).expect("understood");

        let said = |role: &str, content: &str| {
            Turn::Said(ChatMessage { role: role.to_owned(), content: content.to_owned() })
        };
        assert_eq!(read, [said("system", "Be brief."), said("user", "Why?"), said("assistant", "Because.")]);
    }

    #[test]
    fn calls_and_what_they_came_to_are_understood() {
        let function = json!({"name": "f", "arguments": "{\"a\": 1}"});
        let messages = json!([
            {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "4"}]},
        ]);
        let Value::Array(messages) = messages else { panic!("a list") };

        let read = read(messages).expect("understood");

        let call = ToolCall { id: "c".to_owned(), name: "f".to_owned(), arguments: "{\"a\": 1}".to_owned() };
        assert_eq!(read[0], Turn::Called { content: String::new(), calls: vec![call] });
        assert_eq!(read[1], Turn::Returned { call: "c".to_owned(), content: "4".to_owned() });
    }

    #[test]
    fn the_refusal_names_the_message_that_cannot_be_taken() {
        let user = json!({"role": "user", "content": "hi"});
        assert_eq!(refused(json!([])), "messages");
        assert_eq!(refused(json!([user, 3])), "messages[1]");
        assert_eq!(refused(json!([{"content": "hi"}])), "messages[0].role");
        assert_eq!(refused(json!([{"role": "king", "content": "hi"}])), "messages[0].role");
        assert_eq!(refused(json!([user, {"role": "tool", "content": "4"}])), "messages[1].tool_call_id");
        assert_eq!(refused(json!([user, {"role": "function", "content": "4"}])), "messages[1].role");
        assert_eq!(refused(json!([{"role": "assistant", "content": null}])), "messages[0].content");
        assert_eq!(refused(json!([{"role": "user", "content": {"a": 1}}])), "messages[0].content");
        let image =
            json!([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]);
        assert_eq!(refused(json!([{"role": "user", "content": image}])), "messages[0].content[1].type");
        let call = json!({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]});
        assert_eq!(refused(json!([call])), "messages[0].tool_calls");
        let function = json!({"name": "f", "arguments": "{}"});
        let user = json!({"role": "user", "content": "", "tool_calls": [{"id": "1", "function": function}]});
        assert_eq!(refused(json!([user])), "messages[0].tool_calls");
    }
}
