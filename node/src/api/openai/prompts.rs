//! What a request begins with: a chat for the model's template, or texts and tokens that are continued as they are.

use engine::frame::Prompt;
use engine::tools::{ToolChat, Turn};
use serde_json::Value;

use super::fields::{Fields, parse, wrong};
use super::messages;
use super::tools::{self, Tools};
use super::wire::Dialect;
use crate::exit::Failure;

/// Reads the chat of a request, with its tools.
pub(super) fn chat(fields: &mut Fields) -> Result<Vec<Prompt>, Failure> {
    let given: Vec<Value> =
        fields.take("messages")?.ok_or_else(|| wrong("messages", "is missing: send the chat"))?;
    if given.iter().any(|message| message.get("name").is_some()) {
        fields.note_ignored("messages.name");
    }
    let turns = messages::read(given)?;
    let Tools { tools, choice, parallel } = tools::read(fields)?;
    Ok(vec![prompt_of(ToolChat { turns, tools, choice, parallel })?])
}

/// Returns a chat as one without tools if nothing in it has to do with them: every provider knows that.
fn prompt_of(chat: ToolChat) -> Result<Prompt, Failure> {
    chat.validate_turns().map_err(|error| Failure::usage(error.to_string()).in_param("messages"))?;
    let all_said = chat.turns.iter().all(|turn| matches!(turn, Turn::Said(_)));
    if chat.may_call() || !all_said {
        return Ok(Prompt::Tools(Box::new(chat)));
    }
    // A choice of what is not there is still a mistake.
    chat.validate().map_err(|error| Failure::usage(error.to_string()).in_param("tool_choice"))?;
    let said = |turn| match turn {
        Turn::Said(message) => Some(message),
        Turn::Called { .. } | Turn::Returned { .. } => None,
    };
    Ok(Prompt::Chat(chat.turns.into_iter().filter_map(said).collect()))
}

/// Reads the prompts of a completion: a text, a list of texts, the tokens of one, or a list of these.
pub(super) fn texts(fields: &mut Fields) -> Result<Vec<Prompt>, Failure> {
    let given = fields.take::<Value>("prompt")?.ok_or_else(|| wrong("prompt", "is missing: send a text"))?;
    let of_texts = |texts: Vec<String>| texts.into_iter().map(Prompt::Text).collect();
    let of_tokens = |lists: Vec<Vec<u32>>| lists.into_iter().map(Prompt::Tokens).collect();
    let all = |list: &[Value], is: fn(&Value) -> bool| !list.is_empty() && list.iter().all(is);
    let prompts: Vec<Prompt> = match given {
        Value::String(text) => of_texts(vec![text]),
        Value::Array(list) if all(&list, Value::is_string) => of_texts(parse("prompt", list.into())?),
        Value::Array(list) if all(&list, Value::is_number) => of_tokens(vec![parse("prompt", list.into())?]),
        Value::Array(list) if all(&list, Value::is_array) => of_tokens(parse("prompt", list.into())?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            return Err(wrong(
                "prompt",
                "must be a text, a list of texts, or lists of the model's own tokens",
            ));
        }
    };
    let is_empty = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Tokens(ids) => ids.is_empty(),
        Prompt::Chat(_) | Prompt::Tools(_) => false,
    };
    if prompts.iter().any(is_empty) {
        return Err(wrong("prompt", "is empty: send some text"));
    }
    Ok(prompts)
}

/// Returns what is repeated before each answer, if that is asked for.
pub(super) fn echoed(
    dialect: Dialect,
    fields: &mut Fields,
    prompts: &[Prompt],
) -> Result<Vec<String>, Failure> {
    if dialect == Dialect::Chat || !fields.take("echo")?.unwrap_or(false) {
        return Ok(Vec::new());
    }
    if fields.has("logprobs") {
        return Err(wrong("echo", "cannot be had with `logprobs`: leave one of them out"));
    }
    let text = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => Ok(text.clone()),
        Prompt::Tokens(_) | Prompt::Chat(_) | Prompt::Tools(_) => {
            Err(wrong("echo", "cannot be had of tokens, whose text only the provider knows: send the text"))
        }
    };
    prompts.iter().map(text).collect()
}

/// Returns the parameter that is at fault where a prompt makes no sense.
pub(super) const fn param_of(prompt: &Prompt) -> &'static str {
    match prompt {
        Prompt::Chat(_) => "messages",
        Prompt::Text(_) | Prompt::Tokens(_) => "prompt",
        Prompt::Tools(_) => "tools",
    }
}

/// Returns how much there is to send of a prompt.
pub(super) fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(ids) => ids.len() * size_of::<u32>(),
        Prompt::Tools(chat) => chat.bytes(),
        Prompt::Chat(messages) => {
            messages.iter().map(|message| message.role.len() + message.content.len()).sum()
        }
    }
}
