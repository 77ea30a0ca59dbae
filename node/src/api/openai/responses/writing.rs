//! Items and events of one answer, word for word as clients of this API read them.

use serde_json::{Map, Value, json};

use super::super::calls::Piece;
use super::super::error::Refusal;
use super::super::wire::{Finish, Tally};

/// An event of a stream.
#[derive(Debug, PartialEq)]
pub(super) struct Said {
    pub(super) name: &'static str,
    pub(super) data: Value,
}

/// Writes an answer part by part.
#[derive(Debug)]
pub(super) struct Writing {
    job: String,
    created: u64,
    model: String,
    /// What was asked for, as the answer repeats it.
    echo: Map<String, Value>,
    /// Events that were not handed out yet.
    said: Vec<Said>,
    /// Number of the next event.
    sequence: u64,
    /// Items that are done.
    output: Vec<Value>,
    open: Option<Open>,
    /// Set once nothing follows.
    finish: Option<Finish>,
}

/// The item that is being written.
#[derive(Debug)]
enum Open {
    Message { text: String },
    Call { call: usize, name: String, arguments: String },
}

impl Writing {
    /// Begins an answer that was asked for at `created`, in Unix seconds.
    pub(super) fn new(job: &str, created: u64, model: &str, echo: Map<String, Value>) -> Self {
        Self {
            job: job.to_owned(),
            created,
            model: model.to_owned(),
            echo,
            said: Vec::new(),
            sequence: 0,
            output: Vec::new(),
            open: None,
            finish: None,
        }
    }

    /// Returns the events with which a stream begins.
    pub(super) fn begin(&mut self) -> Vec<Said> {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress", None);
            self.say(name, json!({"response": response}));
        }
        self.said()
    }

    /// Takes the next part of the answer.
    pub(super) fn take(&mut self, piece: Piece) {
        match piece {
            // A token may end in the middle of a character, which comes with the next.
            Piece::Text(text) if text.is_empty() => {}
            Piece::Text(more) => {
                if !matches!(self.open, Some(Open::Message { .. })) {
                    self.close_item("completed");
                    self.open_message();
                }
                let (at, item) = self.place();
                self.say(
                    "response.output_text.delta",
                    json!({"item_id": item, "output_index": at, "content_index": 0, "delta": more, "logprobs": []}),
                );
                if let Some(Open::Message { text }) = &mut self.open {
                    *text += &more;
                }
            }
            Piece::Call { index, name } => {
                self.close_item("completed");
                self.open = Some(Open::Call { call: index, name, arguments: String::new() });
                self.say_added();
            }
            Piece::Arguments { text, .. } => {
                let (at, item) = self.place();
                self.say(
                    "response.function_call_arguments.delta",
                    json!({"item_id": item, "output_index": at, "delta": text}),
                );
                if let Some(Open::Call { arguments, .. }) = &mut self.open {
                    *arguments += &text;
                }
            }
        }
    }

    /// Takes note that nothing follows; an answer of nothing is a message of no words.
    pub(super) fn close(&mut self, finish: Finish) {
        if self.output.is_empty() && self.open.is_none() {
            self.open_message();
        }
        self.close_item(if finish == Finish::Length { "incomplete" } else { "completed" });
        self.finish = Some(finish);
    }

    /// Returns the answer, once nothing follows.
    pub(super) fn whole(&self, tally: &Tally) -> Value {
        let status = if self.finish == Some(Finish::Length) { "incomplete" } else { "completed" };
        self.response(status, Some(tally))
    }

    /// Returns the last event of a stream.
    pub(super) fn end(&mut self, tally: &Tally) -> Vec<Said> {
        let is_cut = self.finish == Some(Finish::Length);
        let name = if is_cut { "response.incomplete" } else { "response.completed" };
        let response = self.whole(tally);
        self.say(name, json!({"response": response}));
        self.said()
    }

    /// Returns the last event of a stream that fails.
    pub(super) fn fail(&mut self, refusal: &Refusal) -> Vec<Said> {
        let mut response = self.response("failed", None);
        let code = refusal.code().unwrap_or("server_error");
        response["error"] = json!({"code": code, "message": refusal.words()});
        self.say("response.failed", json!({"response": response}));
        self.said()
    }

    /// Takes the events that were not handed out yet.
    pub(super) fn said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    fn open_message(&mut self) {
        self.open = Some(Open::Message { text: String::new() });
        self.say_added();
        let (at, item) = self.place();
        let part = part_of("");
        self.say(
            "response.content_part.added",
            json!({"item_id": item, "output_index": at, "content_index": 0, "part": part}),
        );
    }

    fn say_added(&mut self) {
        let item = self.item("in_progress");
        let at = self.output.len();
        self.say("response.output_item.added", json!({"output_index": at, "item": item}));
    }

    /// Says that the open item is done, if there is one.
    fn close_item(&mut self, status: &str) {
        let (at, id) = self.place();
        match &self.open {
            None => return,
            Some(Open::Message { text }) => {
                let (text, part) = (text.clone(), part_of(text));
                self.say(
                    "response.output_text.done",
                    json!({"item_id": id, "output_index": at, "content_index": 0, "text": text, "logprobs": []}),
                );
                self.say(
                    "response.content_part.done",
                    json!({"item_id": id, "output_index": at, "content_index": 0, "part": part}),
                );
            }
            Some(Open::Call { name, arguments, .. }) => {
                let data = json!({"item_id": id, "output_index": at, "name": name, "arguments": arguments});
                self.say("response.function_call_arguments.done", data);
            }
        }
        let item = self.item(status);
        self.say("response.output_item.done", json!({"output_index": at, "item": item}));
        self.output.push(item);
        self.open = None;
    }

    /// Returns where the open item is, and its id.
    fn place(&self) -> (usize, String) {
        let at = self.output.len();
        let kind = if matches!(self.open, Some(Open::Call { .. })) { "fc" } else { "msg" };
        (at, format!("{kind}_{}_{at}", self.job))
    }

    /// Returns the open item as it is now.
    fn item(&self, status: &str) -> Value {
        let (_, id) = self.place();
        match &self.open {
            // Its content is told of by events of their own.
            Some(Open::Message { .. }) if status == "in_progress" => {
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": []})
            }
            Some(Open::Message { text }) => json!({
                "id": id, "type": "message", "status": status, "role": "assistant", "content": [part_of(text)],
            }),
            Some(Open::Call { call, name, arguments }) => json!({
                "id": id, "type": "function_call", "status": status, "name": name, "arguments": arguments,
                "call_id": format!("call_{}_0_{call}", self.job),
            }),
            None => Value::Null,
        }
    }

    /// Returns the answer as it is now.
    fn response(&self, status: &str, tally: Option<&Tally>) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let usage = tally.map(|tally| {
            let (input, output, total) = tally.usage.counts();
            json!({
                "input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": total,
            })
        });
        let mut response = json!({
            "id": format!("resp_{}", self.job),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": incomplete,
            "model": self.model,
            "output": self.output,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "truncation": "disabled",
            "usage": usage,
        });
        if let Value::Object(response) = &mut response {
            response.extend(self.echo.clone());
            if let Some(tally) = tally {
                response.insert("sharemesh".to_owned(), json!(tally.charges));
            }
        }
        response
    }

    fn say(&mut self, name: &'static str, mut data: Value) {
        data["type"] = name.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        self.said.push(Said { name, data });
    }
}

fn part_of(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}
