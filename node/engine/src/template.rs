//! Turns the messages of a chat into the text that a model was trained on.
//!
//! The template comes from the model's file, so it is foreign code: it runs without loaders, with bounded steps,
//! bounded output, and nothing but the messages to read.

use std::io::{self, Write};

use anyhow::{Context, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};

use serde::Serialize as _;
use serde_json::ser::Formatter;

use crate::frame::{ChatMessage, FRAME_BYTES_MAX, JobError};
use crate::tools::{self, ToolChat};

/// Bounds the steps of a rendering; a chat of the most messages takes a tenth of it.
const FUEL_MAX: u64 = 5_000_000;

/// Bounds the output: a frame's worth of messages, and as much again for the template's own words.
const OUTPUT_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// What a file without a template gets: ChatML, which most open models know.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
    + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}";

const NAME: &str = "chat";

/// A compiled template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    digest: [u8; 32],
    /// It is written for tools, and for the one way in which they are called here.
    knows_tools: bool,
    begin_token: String,
    end_token: String,
}

impl ChatTemplate {
    /// Compiles the file's template, or ChatML if there is none.
    pub(crate) fn new(source: Option<&str>, begin_token: &str, end_token: &str) -> Result<Self> {
        let source = source.unwrap_or(CHATML);
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL_MAX));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.set_syntax(as_in_python()?);
        environment
            .add_template_owned(NAME, source.to_owned())
            .context("the model's chat template is not valid: use another file of this model")?;
        let digest = *blake3::hash(source.as_bytes()).as_bytes();
        let knows_tools = source.contains("tools") && source.contains(tools::OPEN);
        Ok(Self {
            environment,
            digest,
            knows_tools,
            begin_token: begin_token.to_owned(),
            end_token: end_token.to_owned(),
        })
    }

    /// Returns the BLAKE3 of the template's text.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Renders the messages, up to where the assistant answers.
    pub(crate) fn render(&self, messages: &[ChatMessage]) -> Result<String, JobError> {
        let message = |message: &ChatMessage| {
            context! { role => message.role.as_str(), content => message.content.as_str() }
        };
        self.render_values(messages.iter().map(message).collect(), None)
    }

    /// Renders a chat with tools: by the template if it is written for them, else with the tools described in words.
    pub(crate) fn render_tools(&self, chat: &ToolChat) -> Result<String, JobError> {
        if !self.knows_tools {
            return self.render(&chat.in_words());
        }
        let turns = chat.turns_for_template();
        self.render_values(
            turns.into_iter().map(|turn| Value::from(Serde(turn))).collect(),
            chat.tools_for_template(),
        )
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        tools: Option<Vec<serde_json::Value>>,
    ) -> Result<String, JobError> {
        let context = context! {
            messages => messages,
            tools => tools.map(|tools| Value::from(Serde(tools))),
            add_generation_prompt => true,
            bos_token => self.begin_token.as_str(),
            eos_token => self.end_token.as_str(),
        };
        let mut output = Bounded(Vec::new());
        let template = self.environment.get_template(NAME).expect("added in `new`");
        template.render_captured_to(context, &mut output).map_err(|error| refuse(&error))?;
        String::from_utf8(output.0).map_err(|_| JobError::Internal("the template cut a character".to_owned()))
    }
}

/// Returns the treatment of white space around blocks for which templates of this kind are written.
fn as_in_python() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// Templates call this for chats that they do not take, such as two messages of the same role.
fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Writes JSON as Python's `json.dumps` does, which is how models have seen it; arguments such as `indent` change nothing.
fn to_json(value: &Value, _: Kwargs) -> Result<Value, Error> {
    let mut text = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut text, AsPython))
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&text).into_owned()))
}

struct AsPython;

impl Formatter for AsPython {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn refuse(error: &Error) -> JobError {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    JobError::BadRequest(format!("this model's chat template does not take these messages: {detail}"))
}

/// Collects output up to the bound.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other("the template writes too much"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::{ToolCall, ToolChoice, Turn};

    fn chat(messages: &[(&str, &str)]) -> Vec<ChatMessage> {
        let message = |(role, content): &(&str, &str)| ChatMessage {
            role: (*role).to_owned(),
            content: (*content).to_owned(),
        };
        messages.iter().map(message).collect()
    }

    fn render(source: &str, messages: &[(&str, &str)]) -> Result<String, JobError> {
        ChatTemplate::new(Some(source), "<s>", "</s>").expect("compiles").render(&chat(messages))
    }

    #[test]
    fn a_file_without_a_template_gets_chatml() {
        let text = ChatTemplate::new(None, "", "").expect("compiles").render(&chat(&[("user", "hi")]));
        assert_eq!(text.expect("renders"), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn python_methods_blocks_and_tokens_work_as_in_python() {
        let source = "{{ bos_token }}{% for m in messages %}\n    {%- if m.role.upper() == 'USER' %}\n\
            [{{ m['content'].strip() }}]\n    {%- endif %}\n{% endfor %}{{ eos_token }}";
        assert_eq!(render(source, &[("user", " a "), ("system", "b")]).expect("renders"), "<s>[a]</s>");
    }

    #[test]
    fn an_endless_template_ends_as_a_refusal() {
        let source = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}";
        assert!(matches!(render(source, &[]), Err(JobError::BadRequest(_))));
        let source = "{% for i in range(10**9) %}{% endfor %}";
        assert!(matches!(render(source, &[]), Err(JobError::BadRequest(_))));
    }

    #[test]
    fn a_flood_of_output_ends_as_a_refusal() {
        let source = "{% for i in range(90000) %}{{ messages[0].content }}{% endfor %}";
        assert!(matches!(render(source, &[("user", &"x".repeat(1000))]), Err(JobError::BadRequest(_))));
    }

    #[test]
    fn the_template_says_what_it_does_not_take() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with user') }}{% endif %}";
        let Err(JobError::BadRequest(why)) = render(source, &[("tool", "x")]) else {
            panic!("expected a refusal")
        };
        assert!(why.contains("begin with user"), "{why}");
    }

    #[test]
    fn tools_go_to_a_template_that_knows_them_and_into_words_for_any_other() {
        let mut chat = crate::tools::tests::chat(ToolChoice::Auto);
        let call =
            ToolCall { id: "1".to_owned(), name: "time".to_owned(), arguments: "{\"a\": 1}".to_owned() };
        chat.turns.push(Turn::Called { content: String::new(), calls: vec![call] });
        chat.turns.push(Turn::Returned { call: "1".to_owned(), content: "noon".to_owned() });
        // The way of Qwen 2.5.
        let knows = "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {{ tool | tojson }};{% endfor %}{% endif %}\
            {% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }} \
            {{ c.function.arguments | tojson }}{% endfor %}/{% endfor %}";
        let template = ChatTemplate::new(Some(knows), "", "").expect("compiles");

        let text = template.render_tools(&chat).expect("renders");

        assert!(
            text.starts_with(r#"weather {"type": "function", "function": {"name": "weather", "#),
            "{text}"
        );
        assert!(
            text.ends_with("user:How is Rome?/assistant:<tool_call>time {\"a\": 1}/tool:noon/"),
            "{text}"
        );
        chat.choice = ToolChoice::Never;
        assert!(template.render_tools(&chat).expect("renders").starts_with("user:"));

        chat.choice = ToolChoice::Auto;
        let words = ChatTemplate::new(None, "", "").expect("compiles").render_tools(&chat).expect("renders");
        assert!(words.contains("\"name\":\"weather\"") && words.contains("<tool_response>\nnoon"), "{words}");
    }

    #[test]
    fn a_template_cannot_read_files() {
        assert!(render("{% include '/etc/hostname' %}", &[]).is_err());
    }
}
