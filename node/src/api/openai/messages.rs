//! The messages of a chat, as clients write them, for the model's chat template.

use engine::frame::ChatMessage;
use serde_json::{Map, Value};

use super::fields::{parse, wrong};
use crate::exit::Failure;

/// Reads all messages; an error names the one that cannot be taken.
pub(super) fn read(messages: Vec<Value>) -> Result<Vec<ChatMessage>, Failure> {
    if messages.is_empty() {
        return Err(wrong("messages", "is empty: send at least one message"));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| read_one(&format!("messages[{at}]"), message))
        .collect()
}

fn read_one(at: &str, message: Value) -> Result<ChatMessage, Failure> {
    let mut message: Map<String, Value> = parse(at, message)?;
    let name = format!("{at}.role");
    let role = match message.remove("role") {
        Some(role) => role_of(&name, &parse::<String>(&name, role)?)?,
        None => return Err(wrong(&name, "is missing: write `system`, `user` or `assistant`")),
    };
    for calls in ["tool_calls", "function_call"] {
        if message
            .remove(calls)
            .is_some_and(|value| !matches!(&value, Value::Null) && value != Value::Array(Vec::new()))
        {
            return Err(wrong(&format!("{at}.{calls}"), "is not supported here: tools cannot be called yet"));
        }
    }
    let name = format!("{at}.content");
    let content = match message.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => text_of(&name, parts)?,
        None | Some(Value::Null) => return Err(wrong(&name, "is missing: write what is said")),
        Some(_) => return Err(wrong(&name, "must be a text or a list of parts")),
    };
    Ok(ChatMessage { role, content })
}

/// Returns the role that chat templates know; what developers say is what the system says.
fn role_of(name: &str, role: &str) -> Result<String, Failure> {
    match role {
        "system" | "user" | "assistant" => Ok(role.to_owned()),
        "developer" => Ok("system".to_owned()),
        "tool" | "function" => Err(wrong(name, "is not supported here: tools cannot be called yet")),
        _ => Err(wrong(name, "is unknown: write `system`, `developer`, `user` or `assistant`")),
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

        let said: Vec<_> = read.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(said, [("system", "Be brief."), ("user", "Why?"), ("assistant", "Because.")]);
    }

    #[test]
    fn the_refusal_names_the_message_that_cannot_be_taken() {
        let user = json!({"role": "user", "content": "hi"});
        assert_eq!(refused(json!([])), "messages");
        assert_eq!(refused(json!([user, 3])), "messages[1]");
        assert_eq!(refused(json!([{"content": "hi"}])), "messages[0].role");
        assert_eq!(refused(json!([{"role": "king", "content": "hi"}])), "messages[0].role");
        assert_eq!(refused(json!([user, {"role": "tool", "content": "4"}])), "messages[1].role");
        assert_eq!(refused(json!([{"role": "assistant", "content": null}])), "messages[0].content");
        assert_eq!(refused(json!([{"role": "user", "content": {"a": 1}}])), "messages[0].content");
        let image =
            json!([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]);
        assert_eq!(refused(json!([{"role": "user", "content": image}])), "messages[0].content[1].type");
        let call = json!({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]});
        assert_eq!(refused(json!([call])), "messages[0].tool_calls");
    }
}
