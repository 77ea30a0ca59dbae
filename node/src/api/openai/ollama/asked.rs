//! Says a request of an Ollama client in the words of `/v1`, whose rules then hold for it.

use serde_json::{Map, Value, json};

use super::super::asked::Asked;
use super::super::fields::{Fields, parse, unsupported, wrong};
use super::super::wire::Dialect;
use crate::exit::Failure;

/// Which of the two endpoints is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Generate,
}

impl Endpoint {
    /// Returns where it is.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/api/chat",
            Self::Generate => "/api/generate",
        }
    }
}

/// Names that options have in both dialects.
const SAME: [&str; 7] =
    ["seed", "top_k", "top_p", "temperature", "presence_penalty", "frequency_penalty", "stop"];

/// What would change the answer and cannot be done.
const UNSUPPORTED: [&str; 4] = ["suffix", "images", "template", "context"];

/// Reads a request: what is asked, and whether the answer is to be streamed.
pub(super) fn read(endpoint: Endpoint, body: &[u8]) -> Result<(Asked, bool), Failure> {
    let mut fields = Fields::read(body)?;
    let stream = fields.take("stream")?.unwrap_or(true);
    let think = fields.take::<Value>("think")?.filter(|think| *think != json!(false));
    if think.is_some() {
        return Err(wrong("think", "is not supported: no model here says its thoughts apart"));
    }
    for name in UNSUPPORTED {
        fields.refuse(name, &[json!(""), json!([])])?;
    }
    let mut said = Map::new();
    let model: String = fields.take("model")?.unwrap_or_default();
    said.insert("model".to_owned(), model.strip_suffix(":latest").unwrap_or(&model).into());
    options(fields.take("options")?.unwrap_or_default(), &mut said)?;
    let is_bounded = said.contains_key("max_tokens");
    let dialect = match endpoint {
        Endpoint::Chat => chat(&mut fields, &mut said)?,
        Endpoint::Generate => generate(&mut fields, &mut said)?,
    };
    if let Some(format) = format(&mut fields)? {
        said.insert("response_format".to_owned(), format);
    }
    if fields.take::<bool>("logprobs")?.unwrap_or(false) {
        return Err(unsupported("logprobs"));
    }
    for name in ["tools", "provider", "builder"] {
        if let Some(value) = fields.take::<Value>(name)? {
            said.insert(name.to_owned(), value);
        }
    }
    let mut asked = Asked::of(dialect, Value::Object(said).to_string().as_bytes())?;
    asked.jobs.iter_mut().for_each(|job| job.open_ended = !is_bounded);
    Ok((asked, stream))
}

fn options(mut given: Map<String, Value>, said: &mut Map<String, Value>) -> Result<(), Failure> {
    for name in SAME {
        said.extend(given.remove(name).map(|value| (name.to_owned(), value)));
    }
    said.extend(given.remove("repeat_penalty").map(|value| ("repetition_penalty".to_owned(), value)));
    // Negative numbers ask for no bound; the endpoint has one all the same.
    if let Some(most) = given.remove("num_predict").filter(|most| !most.is_null()) {
        let most: i64 = parse("options.num_predict", most)?;
        said.extend((most >= 0).then(|| ("max_tokens".to_owned(), Value::from(most))));
    }
    Ok(())
}

fn format(fields: &mut Fields) -> Result<Option<Value>, Failure> {
    match fields.take::<Value>("format")? {
        None => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) if name == "json" => Ok(Some(json!({"type": "json_object"}))),
        Some(schema @ Value::Object(_)) => {
            Ok(Some(json!({"type": "json_schema", "json_schema": {"name": "format", "schema": schema}})))
        }
        Some(_) => Err(wrong("format", "must be `json` or a JSON Schema")),
    }
}

fn generate(fields: &mut Fields, said: &mut Map<String, Value>) -> Result<Dialect, Failure> {
    let prompt: String = fields.take("prompt")?.unwrap_or_default();
    let system: String = fields.take("system")?.unwrap_or_default();
    if prompt.is_empty() {
        return Err(wrong("prompt", "is missing: send a text"));
    }
    if fields.take("raw")?.unwrap_or(false) {
        said.insert("prompt".to_owned(), prompt.into());
        // An answer has no bound of a few words here.
        said.entry("max_tokens").or_insert_with(|| super::super::asked::CHAT_TOKENS_DEFAULT.into());
        return Ok(Dialect::Completion);
    }
    let system = (!system.is_empty()).then(|| json!({"role": "system", "content": system}));
    let messages = system.into_iter().chain([json!({"role": "user", "content": prompt})]);
    said.insert("messages".to_owned(), messages.collect());
    Ok(Dialect::Chat)
}

fn chat(fields: &mut Fields, said: &mut Map<String, Value>) -> Result<Dialect, Failure> {
    let messages: Vec<Map<String, Value>> = fields.take("messages")?.unwrap_or_default();
    let mut calls = Calls::default();
    let messages = messages.into_iter().enumerate().map(|(at, message)| calls.said(at, message));
    said.insert("messages".to_owned(), messages.collect::<Result<_, _>>()?);
    Ok(Dialect::Chat)
}

/// Gives calls the ids that Ollama's clients do not send, so that results find them.
#[derive(Default)]
struct Calls {
    made: usize,
    returned: usize,
}

impl Calls {
    /// Says a message in the words of `/v1`.
    fn said(&mut self, at: usize, mut message: Map<String, Value>) -> Result<Value, Failure> {
        let images = message.remove("images").filter(|images| *images != json!([]) && !images.is_null());
        if images.is_some() {
            return Err(wrong(&format!("messages[{at}].images"), "is not supported here: send text"));
        }
        if let Some(Value::Array(calls)) = message.remove("tool_calls") {
            let calls: Vec<Value> = calls.iter().map(|call| self.call(call)).collect();
            if !calls.is_empty() {
                message.insert("tool_calls".to_owned(), calls.into());
            }
        }
        if message.get("role").and_then(Value::as_str) == Some("tool") {
            let id = message.remove("tool_call_id").unwrap_or_else(|| id_of(self.returned).into());
            message.insert("tool_call_id".to_owned(), id);
            self.returned += 1;
        }
        Ok(Value::Object(message))
    }

    fn call(&mut self, call: &Value) -> Value {
        let id = call.get("id").cloned().unwrap_or_else(|| id_of(self.made).into());
        self.made += 1;
        let name = call.pointer("/function/name").cloned().unwrap_or_default();
        let arguments = call.pointer("/function/arguments").cloned().unwrap_or_else(|| json!({}));
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments.to_string()}})
    }
}

fn id_of(number: usize) -> String {
    format!("call_{number}")
}

#[cfg(test)]
mod tests {
    use engine::frame::{Form, Prompt};
    use engine::tools::Turn;

    use super::*;

    fn asked(endpoint: Endpoint, body: &Value) -> Result<(Asked, bool), Failure> {
        read(endpoint, body.to_string().as_bytes())
    }

    #[test]
    fn options_and_formats_are_said_in_other_words() {
        let body = json!({
            "model": "m:latest", "prompt": "Why?", "system": "Brief.", "format": {"type": "object"}, "keep_alive": "5m",
            "options": {"num_predict": 7, "repeat_penalty": 1.1, "temperature": 0, "stop": ["x"], "num_ctx": 1},
        });
        let (asked, stream) = asked(Endpoint::Generate, &body).expect("sound");

        let job = asked.jobs[0].generate().expect("text");
        assert_eq!((asked.model.as_str(), stream, job.max_tokens), ("m", true, 7));
        assert_eq!((job.sampling.repetition_penalty, job.sampling.temperature), (1.1, 0.0));
        assert_eq!(job.form, Some(Form::Json { schema: r#"{"type":"object"}"#.to_owned() }));
        assert!(matches!(&job.prompt, Prompt::Chat(messages) if messages.len() == 2));
    }

    #[test]
    fn calls_and_results_find_each_other_without_ids() {
        let call = json!({"function": {"name": "f", "arguments": {"a": 1}}});
        let body = json!({"model": "m", "stream": false, "messages": [
            {"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "4", "tool_name": "f"},
        ]});
        let (asked, stream) = asked(Endpoint::Chat, &body).expect("sound");

        let Prompt::Tools(chat) = &asked.jobs[0].generate().expect("text").prompt else {
            panic!("it has calls")
        };
        let (Turn::Called { calls, .. }, Turn::Returned { call, .. }) = (&chat.turns[1], &chat.turns[2])
        else {
            panic!("{chat:?}")
        };
        assert_eq!((&calls[0].id, calls[0].arguments.as_str()), (call, r#"{"a":1}"#));
        assert!(!stream);
    }

    #[test]
    fn raw_text_is_continued_and_what_cannot_be_done_is_refused_by_name() {
        let raw = json!({"model": "m", "prompt": "Once", "raw": true, "options": {"num_predict": -1}});
        let (raw, _) = asked(Endpoint::Generate, &raw).expect("sound");
        assert_eq!(raw.jobs[0].generate().expect("text").prompt, Prompt::Text("Once".to_owned()));
        assert_eq!(raw.jobs[0].generate().expect("text").max_tokens, 2_048);

        for (body, param) in [
            (json!({"model": "m", "prompt": "x", "suffix": "y"}), "suffix"),
            (json!({"model": "m", "prompt": "x", "images": ["aa"]}), "images"),
            (json!({"model": "m", "prompt": "x", "think": true}), "think"),
            (json!({"model": "m", "prompt": "x", "format": "xml"}), "format"),
            (json!({"model": "m", "prompt": "x", "options": {"temperature": 9}}), "temperature"),
            (json!({"model": "m", "prompt": "x", "options": {"num_predict": "y"}}), "options.num_predict"),
            (json!({"model": "m"}), "prompt"),
            (json!({"prompt": "x"}), "model"),
        ] {
            let failure = asked(Endpoint::Generate, &body).map(|_| ()).expect_err(param);
            assert_eq!(failure.param.as_deref(), Some(param), "{body}: {failure}");
        }
    }
}
