//! Tools that a model may call: what is told to it of them, and the one way to write a call.
//!
//! Every model writes calls as those do that were trained on Hermes' format: `<tool_call>`, a line with `name` and
//! `arguments` as JSON, `</tool_call>`. A model whose template knows that is told of its tools by the template, any other
//! in words; the grammar holds for both, so that arguments always satisfy the tool's schema.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::frame::{CHAT_MESSAGES_MAX, ChatMessage, JobError};
use crate::{grammar, schema};

/// Bounds the tools of a chat; as many as clients of this kind of API may name.
pub const TOOLS_MAX: usize = 128;

/// Bounds a tool's name.
pub const NAME_BYTES_MAX: usize = 64;

/// Bounds what is said of all tools together.
pub const TOOLS_BYTES_MAX: usize = 256 * 1024;

/// What a call begins with.
pub const OPEN: &str = "<tool_call>";

/// What stands between that and the tool's name.
pub const BEFORE_NAME: &str = "\n{\"name\": \"";

/// What stands between the name and the arguments.
pub const BEFORE_ARGUMENTS: &str = "\", \"arguments\": ";

/// What stands after the arguments.
pub const CLOSE: &str = "}\n</tool_call>";

/// A chat in which tools may be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolChat {
    /// What was said, called and returned so far.
    pub turns: Vec<Turn>,
    /// The tools.
    pub tools: Vec<Tool>,
    /// Whether to call one.
    pub choice: ToolChoice,
    /// Whether several may be called at once.
    pub parallel: bool,
}

/// One turn of a chat with tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// Words.
    Said(ChatMessage),
    /// The assistant called tools.
    Called {
        /// What it said before, if anything.
        content: String,
        /// The calls.
        calls: Vec<ToolCall>,
    },
    /// What a call came to.
    Returned {
        /// The call's id.
        call: String,
        /// The result.
        content: String,
    },
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model; may be empty.
    pub description: String,
    /// JSON Schema of its arguments, an object, as text.
    pub parameters: String,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// By which its result is told from others.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON as text.
    pub arguments: String,
}

/// Whether a tool is to be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolChoice {
    /// None.
    Never,
    /// As the model likes.
    Auto,
    /// At least one.
    Required,
    /// This one, once.
    Named(String),
}

impl Tool {
    fn bytes(&self) -> usize {
        self.name.len() + self.description.len() + self.parameters.len()
    }
}

impl ToolChat {
    /// Checks the bounds; the schemas of parameters are checked by [`grammar::check`].
    pub fn validate(&self) -> Result<(), JobError> {
        self.validate_turns()?;
        let bad = |words: String| Err(JobError::BadRequest(words));
        if self.tools.len() > TOOLS_MAX {
            return bad(format!("{} tools: send at most {TOOLS_MAX}", self.tools.len()));
        }
        if self.tools.iter().map(Tool::bytes).sum::<usize>() > TOOLS_BYTES_MAX {
            return bad(format!("the tools are more than {TOOLS_BYTES_MAX} bytes: describe them shorter"));
        }
        let mut names = BTreeSet::new();
        if let Some(tool) =
            self.tools.iter().find(|tool| !is_name(&tool.name) || !names.insert(tool.name.as_str()))
        {
            let name: String = tool.name.chars().take(NAME_BYTES_MAX).collect();
            return bad(format!(
                "the tool `{name}`: a name has 1 to {NAME_BYTES_MAX} letters, digits, `_` or `-`, and no two are equal"
            ));
        }
        match &self.choice {
            ToolChoice::Required if self.tools.is_empty() => {
                bad("there is no tool to call: send one".to_owned())
            }
            ToolChoice::Named(name) if !names.contains(name.as_str()) => {
                bad("the tool to call is not among the tools: send it too".to_owned())
            }
            ToolChoice::Never | ToolChoice::Auto | ToolChoice::Required | ToolChoice::Named(_) => Ok(()),
        }
    }

    /// Checks the bounds of what was said so far.
    pub fn validate_turns(&self) -> Result<(), JobError> {
        let bad = |words: String| Err(JobError::BadRequest(words));
        if self.turns.is_empty() || self.turns.len() > CHAT_MESSAGES_MAX {
            return bad(format!("the chat has {} messages: send 1 to {CHAT_MESSAGES_MAX}", self.turns.len()));
        }
        let calls = |turn: &Turn| match turn {
            Turn::Called { calls, .. } => calls.len(),
            Turn::Said(_) | Turn::Returned { .. } => 0,
        };
        let calls: usize = self.turns.iter().map(calls).sum();
        if calls > CHAT_MESSAGES_MAX {
            return bad(format!("the chat has {calls} calls of tools: at most {CHAT_MESSAGES_MAX}"));
        }
        Ok(())
    }

    /// Returns about how many bytes it has.
    pub fn bytes(&self) -> usize {
        let of_turn = |turn: &Turn| match turn {
            Turn::Said(message) => message.role.len() + message.content.len(),
            Turn::Called { content, calls } => {
                let calls = calls.iter().map(|call| call.id.len() + call.name.len() + call.arguments.len());
                content.len() + calls.sum::<usize>()
            }
            Turn::Returned { call, content } => call.len() + content.len(),
        };
        self.turns.iter().map(of_turn).sum::<usize>() + self.tools.iter().map(Tool::bytes).sum::<usize>()
    }

    /// Says whether the answer may have calls.
    pub fn may_call(&self) -> bool {
        !self.tools.is_empty() && self.choice != ToolChoice::Never
    }

    /// Returns the tools that may be called.
    pub fn callable(&self) -> impl Iterator<Item = &Tool> {
        self.tools.iter().filter(|tool| match &self.choice {
            ToolChoice::Named(name) => tool.name == *name,
            ToolChoice::Never | ToolChoice::Auto | ToolChoice::Required => true,
        })
    }

    /// Returns the grammar of an answer, whose words, where it has any, satisfy `schema` if there is one.
    pub(crate) fn grammar(&self, schema: Option<&Value>) -> Result<String, JobError> {
        let (mut rules, mut names, mut nodes) = (String::new(), Vec::new(), 0);
        for (at, tool) in self.callable().enumerate() {
            let (mut parameters, size) =
                schema::read_sized(&tool.parameters).map_err(|error| of_tool(tool, &error))?;
            nodes = u64::saturating_add(nodes, size);
            object_only(tool, &mut parameters)?;
            grammar::space_once(&mut parameters);
            let head = Value::from(format!("{}{BEFORE_ARGUMENTS}", tool.name));
            // Writing to a text does not fail.
            let _ = writeln!(rules, "f{at}: {head} %json {parameters}");
            names.push(format!("f{at}"));
        }
        schema::check_nodes(nodes)?;
        let more = if self.parallel && !matches!(self.choice, ToolChoice::Named(_)) {
            format!("({} body)*", Value::from(format!("\n{OPEN}")))
        } else {
            String::new()
        };
        let open = Value::from(OPEN);
        let start = match (&self.choice, schema) {
            (ToolChoice::Required | ToolChoice::Named(_), _) => format!("start: {open} body {more}\n"),
            (_, Some(schema)) => format!("start: words | {open} body {more}\nwords: %json {schema}\n"),
            (_, None) => {
                format!(
                    "start: TEXT | opening body {more}\nTEXT: /(.|\\n)*/\nopening[lazy]: /(.|\\n)*/ {open}\n"
                )
            }
        };
        let body = format!("body: {} name {}\n", Value::from(BEFORE_NAME), Value::from(CLOSE));
        Ok(format!("%llguidance {{}}\n{start}{body}name: {}\n{rules}", names.join(" | ")))
    }

    /// Returns the turns as plain messages, with the tools described in the first: for models whose template knows none.
    pub(crate) fn in_words(&self) -> Vec<ChatMessage> {
        let mut messages: Vec<ChatMessage> = self.turns.iter().map(said).collect();
        if self.may_call() {
            let words = self.instructions();
            match messages.first_mut().filter(|first| first.role == "system") {
                Some(first) => first.content = format!("{}\n\n{words}", first.content),
                None => messages.insert(0, ChatMessage { role: "system".to_owned(), content: words }),
            }
        }
        messages
    }

    fn instructions(&self) -> String {
        let tools: Vec<String> = self.callable().map(|tool| described(tool).to_string()).collect();
        format!(
            "# Tools\n\nYou may call functions to help with what the user asks. These are the functions:\n<tools>\n{}\n\
             </tools>\n\nTo call one, answer with its name and its arguments as JSON, like this:\n{OPEN}\n\
             {{\"name\": <function-name>, \"arguments\": <arguments-object>}}\n</tool_call>",
            tools.join("\n")
        )
    }

    /// Returns the tools as templates that know them expect them.
    pub(crate) fn tools_for_template(&self) -> Option<Vec<Value>> {
        self.may_call().then(|| self.callable().map(described).collect())
    }

    /// Returns the turns as templates that know tools expect them.
    pub(crate) fn turns_for_template(&self) -> Vec<Value> {
        self.turns.iter().map(for_template).collect()
    }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

fn of_tool(tool: &Tool, error: &JobError) -> JobError {
    JobError::BadForm(format!("the parameters of the tool `{}`: {error}", tool.name))
}

/// Arguments are an object, also where the schema leaves it open.
fn object_only(tool: &Tool, schema: &mut Value) -> Result<(), JobError> {
    let keywords = schema.as_object_mut().expect("checked by `schema::read_sized`");
    match keywords.get("type").and_then(Value::as_str) {
        Some("object") => Ok(()),
        None if !keywords.contains_key("type") => {
            keywords.insert("type".to_owned(), Value::from("object"));
            Ok(())
        }
        _ => Err(of_tool(tool, &JobError::BadForm("must be of type `object`".to_owned()))),
    }
}

fn described(tool: &Tool) -> Value {
    let parameters: Value = serde_json::from_str(&tool.parameters).unwrap_or_default();
    let mut function = Map::from_iter([("name".to_owned(), Value::from(tool.name.as_str()))]);
    if !tool.description.is_empty() {
        function.insert("description".to_owned(), Value::from(tool.description.as_str()));
    }
    function.insert("parameters".to_owned(), parameters);
    json!({"type": "function", "function": function})
}

fn said(turn: &Turn) -> ChatMessage {
    let message = |role: &str, content: String| ChatMessage { role: role.to_owned(), content };
    match turn {
        Turn::Said(words) => words.clone(),
        Turn::Called { content, calls } => {
            let calls = calls.iter().map(|call| {
                let name = Value::from(call.name.as_str());
                format!("{OPEN}\n{{\"name\": {name}{}{}{CLOSE}", &BEFORE_ARGUMENTS[1..], call.arguments)
            });
            let words = Some(content.clone()).filter(|content| !content.is_empty());
            message("assistant", words.into_iter().chain(calls).collect::<Vec<_>>().join("\n"))
        }
        Turn::Returned { content, .. } => {
            message("user", format!("<tool_response>\n{content}\n</tool_response>"))
        }
    }
}

fn for_template(turn: &Turn) -> Value {
    match turn {
        Turn::Said(words) => json!({"role": words.role, "content": words.content}),
        Turn::Called { content, calls } => {
            let call = |call: &ToolCall| {
                let arguments = serde_json::from_str(&call.arguments);
                let arguments: Value = arguments.unwrap_or_else(|_| Value::from(call.arguments.as_str()));
                json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
            };
            let calls: Vec<Value> = calls.iter().map(call).collect();
            json!({"role": "assistant", "content": content, "tool_calls": calls})
        }
        Turn::Returned { call, content } => json!({"role": "tool", "tool_call_id": call, "content": content}),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn chat(choice: ToolChoice) -> ToolChat {
        let tool = |name: &str, parameters: &str| Tool {
            name: name.to_owned(),
            description: "Says how it is there.".to_owned(),
            parameters: parameters.to_owned(),
        };
        let place = r#"{"type":"object","properties":{"place":{"type":"string"}},"required":["place"]}"#;
        let user = ChatMessage { role: "user".to_owned(), content: "How is Rome?".to_owned() };
        ToolChat {
            turns: vec![Turn::Said(user)],
            tools: vec![tool("weather", place), tool("time", r#"{"properties":{}}"#)],
            choice,
            parallel: true,
        }
    }

    #[test]
    fn tools_that_make_no_sense_are_refused_in_words() {
        let refused = |change: fn(&mut ToolChat)| {
            let mut chat = chat(ToolChoice::Auto);
            change(&mut chat);
            chat.validate().expect_err("refused").to_string()
        };
        assert_eq!(chat(ToolChoice::Auto).validate(), Ok(()));
        assert!(refused(|chat| chat.turns.clear()).contains("messages"));
        let call = ToolCall { id: String::new(), name: String::new(), arguments: String::new() };
        let called = Turn::Called { content: String::new(), calls: vec![call; CHAT_MESSAGES_MAX / 2 + 1] };
        let mut chat_of_calls = chat(ToolChoice::Auto);
        chat_of_calls.turns.push(called.clone());
        assert_eq!(chat_of_calls.validate(), Ok(()));
        chat_of_calls.turns.push(called);
        assert!(chat_of_calls.validate().expect_err("too many").to_string().contains("calls of tools"));
        assert!(refused(|chat| chat.tools[0].name = "a b".to_owned()).contains("a name has"));
        assert!(refused(|chat| chat.tools[0].name = "time".to_owned()).contains("no two are equal"));
        assert!(refused(|chat| chat.tools[0].description = "x".repeat(TOOLS_BYTES_MAX)).contains("shorter"));
        assert!(refused(|chat| chat.tools = vec![chat.tools[0].clone(); 129]).contains("at most 128"));
        assert!(refused(|chat| chat.choice = ToolChoice::Named("x".to_owned())).contains("not among"));
        assert!(
            refused(|chat| {
                chat.tools.clear();
                chat.choice = ToolChoice::Required;
            })
            .contains("no tool")
        );
    }

    #[test]
    fn a_model_without_tools_in_its_template_is_told_in_words() {
        let mut chat = chat(ToolChoice::Auto);
        let call = ToolCall { id: "1".to_owned(), name: "time".to_owned(), arguments: "{}".to_owned() };
        chat.turns.push(Turn::Called { content: "Wait.".to_owned(), calls: vec![call] });
        chat.turns.push(Turn::Returned { call: "1".to_owned(), content: "noon".to_owned() });

        let messages = chat.in_words();

        let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(messages[0].content.contains(r#""name":"weather""#), "{}", messages[0].content);
        assert_eq!(
            messages[2].content,
            "Wait.\n<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>"
        );
        assert_eq!(messages[3].content, "<tool_response>\nnoon\n</tool_response>");
        chat.choice = ToolChoice::Never;
        assert_eq!(chat.in_words()[0].role, "user");
    }
}
