//! Answers in Ollama's words: one object, or a line of JSON for each part and a last one with what it came to.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures::Stream;
use futures::stream::unfold;
use serde_json::{Map, Value, json};

use super::super::asked::Asked;
use super::super::calls::{Calls, Malformed, Piece};
use super::super::error::Refusal;
use super::super::jobs::quote;
use super::super::once;
use super::super::run::{self, Placed, Stake, astray, describe, finish_of, name, refusal};
use super::super::stream::accepted;
use super::super::wire::{Finish, Tally};
use super::asked::{self, Endpoint};
use crate::api::Api;
use crate::api::caller::Caller;
use crate::api::sse::Watched;
use crate::api::views::{JobAccount, JobEvent};
use crate::clock::Clock;
use crate::exit::Failure;

pub(super) const NANOS_PER_MS: u64 = 1_000_000;

/// Answers a request, whole or line by line.
pub(super) async fn respond(
    endpoint: Endpoint,
    api: Api,
    caller: Caller,
    is_dry: bool,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Refusal> {
    let (asked, stream) = asked::read(endpoint, body)?;
    let asked = asked.checked().await?;
    if is_dry {
        return quote(&api, asked.model, asked.jobs, &asked.ignored).await;
    }
    let run = run(endpoint, api.clone(), caller.clone(), asked, stream);
    once((&api, &caller), headers, (endpoint.path(), body), run).await
}

/// Runs a request to its end, or to the first line of its stream.
async fn run(
    endpoint: Endpoint,
    api: Api,
    caller: Caller,
    asked: Asked,
    stream: bool,
) -> Result<Response, Refusal> {
    let calls = asked.calls();
    let clock = api.clock;
    let Asked { model, mut jobs, ignored, .. } = asked;
    let request = jobs.pop().ok_or_else(|| Failure::internal("the request has no job"))?;
    let Placed { mut watched, stake, headers, .. } = run::place(&api, caller, request, &ignored).await?;
    // What fails before has its status.
    let (provider, first) = accepted(&mut watched, &stake).await?;
    let talk = Talk { endpoint, model, clock, calls, open: Vec::new() };
    let mut response = if stream {
        let ending = stake.ending();
        let lines = Body::from_stream(lines(Lines {
            talk,
            watched,
            stake,
            first,
            ready: VecDeque::new(),
            over: false,
        }));
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))];
        let mut response = (kind, lines).into_response();
        response.extensions_mut().insert(ending);
        name(response.headers_mut(), "x-sharemesh-provider", &provider.into_iter().collect::<Vec<_>>());
        response
    } else {
        whole(talk, watched, &stake, first).await?
    };
    response.headers_mut().extend(headers);
    Ok(response)
}

async fn whole(
    mut talk: Talk,
    mut watched: Watched,
    stake: &Stake,
    mut first: Option<JobEvent>,
) -> Result<Response, Refusal> {
    let (mut text, mut calls) = (String::new(), Vec::new());
    loop {
        let event = match first.take() {
            Some(event) => Some(event),
            None => watched.next().await,
        };
        match event {
            Some(JobEvent::Text { text: more, .. }) => {
                let part = talk.part(&more).map_err(|Malformed| astray(stake))?;
                text += &part.text;
                calls.extend(part.calls);
            }
            Some(JobEvent::Done(account)) => {
                let finish = finish_of(&account, stake)?;
                let rest = talk.rest();
                text += &rest.text;
                calls.extend(rest.calls);
                let mut response = Json(talk.last(Part { text, calls }, &account, finish)).into_response();
                charged(response.headers_mut(), &account);
                return Ok(response);
            }
            Some(JobEvent::Failed { failure, account }) => {
                return Err(refusal(failure, account.as_deref(), stake));
            }
            Some(JobEvent::Chosen { .. } | JobEvent::Accepted { .. } | JobEvent::Vectors { .. }) => {}
            None => return Err(Failure::internal("the job has no last event").into()),
        }
    }
}

struct Lines {
    talk: Talk,
    watched: Watched,
    stake: Stake,
    first: Option<JobEvent>,
    ready: VecDeque<Value>,
    over: bool,
}

fn lines(lines: Lines) -> impl Stream<Item = Result<Bytes, Infallible>> {
    unfold(lines, async |mut lines| {
        while lines.ready.is_empty() && !lines.over {
            let event = match lines.first.take() {
                Some(event) => Some(event),
                None => lines.watched.next().await,
            };
            match event {
                Some(event) => lines.on(event),
                None => lines.over = true,
            }
        }
        let line = lines.ready.pop_front()?;
        Some((Ok(Bytes::from(format!("{line}\n"))), lines))
    })
}

impl Lines {
    fn on(&mut self, event: JobEvent) {
        match event {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } | JobEvent::Vectors { .. } => {}
            JobEvent::Text { text, .. } => match self.talk.part(&text) {
                Ok(part) => self.say(part),
                Err(Malformed) => self.fail(&astray(&self.stake)),
            },
            JobEvent::Done(account) => match finish_of(&account, &self.stake) {
                Ok(finish) => {
                    let rest = self.talk.rest();
                    self.say(rest);
                    let last = self.talk.last(Part::default(), &account, finish);
                    self.ready.push_back(last);
                    self.stake.ended_whole();
                    self.over = true;
                }
                Err(refusal) => self.fail(&refusal),
            },
            JobEvent::Failed { failure, account } => {
                self.fail(&refusal(failure, account.as_deref(), &self.stake));
            }
        }
    }

    fn say(&mut self, part: Part) {
        if !part.text.is_empty() || !part.calls.is_empty() {
            let line = self.talk.line(part);
            self.ready.push_back(line.into());
        }
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.stake.broke_off(refusal);
        self.ready.push_back(json!({"error": refusal.words()}));
        self.over = true;
    }
}

/// A part of an answer, or all of it.
#[derive(Default)]
struct Part {
    text: String,
    calls: Vec<Value>,
}

/// Writes the parts of one answer.
struct Talk {
    endpoint: Endpoint,
    model: String,
    clock: Clock,
    /// What finds calls of tools, where there may be any.
    calls: Option<Calls>,
    /// The call whose arguments are coming: its tool and what came.
    open: Vec<(String, String)>,
}

impl Talk {
    fn part(&mut self, text: &str) -> Result<Part, Malformed> {
        match &mut self.calls {
            Some(calls) => {
                let pieces = calls.take(text)?;
                Ok(self.read(pieces))
            }
            None => Ok(Part { text: text.to_owned(), calls: Vec::new() }),
        }
    }

    /// Returns what was held back until the end.
    fn rest(&mut self) -> Part {
        let rest = self.calls.as_mut().and_then(Calls::rest);
        let mut part = self.read(rest.into_iter().collect());
        part.calls.extend(self.close());
        part
    }

    /// Calls are handed out whole, each when the next one begins or the answer ends.
    fn read(&mut self, pieces: Vec<Piece>) -> Part {
        let mut part = Part::default();
        for piece in pieces {
            match piece {
                Piece::Text(text) => part.text += &text,
                Piece::Call { name, .. } => {
                    part.calls.extend(self.close());
                    self.open.push((name, String::new()));
                }
                Piece::Arguments { text, .. } => {
                    if let Some((_, arguments)) = self.open.last_mut() {
                        *arguments += &text;
                    }
                }
            }
        }
        part
    }

    /// Returns the call that is open; one that was cut short has arguments that are none, and is left out.
    fn close(&mut self) -> Option<Value> {
        let (name, arguments) = self.open.pop()?;
        let arguments: Value = serde_json::from_str(&arguments).ok()?;
        Some(json!({"function": {"name": name, "arguments": arguments}}))
    }

    fn line(&self, Part { text, calls }: Part) -> Map<String, Value> {
        let now = i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX);
        let mut line = Map::new();
        line.insert("model".to_owned(), self.model.as_str().into());
        line.insert("created_at".to_owned(), time(now).into());
        match self.endpoint {
            Endpoint::Chat => {
                let mut message = json!({"role": "assistant", "content": text});
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                line.insert("message".to_owned(), message);
            }
            Endpoint::Generate => {
                line.insert("response".to_owned(), text.into());
            }
        }
        line.insert("done".to_owned(), false.into());
        line
    }

    /// Returns the last line, or the whole answer: durations are nanoseconds.
    fn last(&self, part: Part, account: &JobAccount, finish: Finish) -> Value {
        let mut line = self.line(part);
        let after_first = account.total_ms.saturating_sub(account.ttft_ms);
        let reason = if finish == Finish::Length { "length" } else { "stop" };
        let more = json!({
            "done": true,
            "done_reason": reason,
            "total_duration": account.total_ms * NANOS_PER_MS,
            "load_duration": 0,
            "prompt_eval_count": account.tokens_in,
            "prompt_eval_duration": account.ttft_ms * NANOS_PER_MS,
            "eval_count": account.tokens_out,
            "eval_duration": after_first * NANOS_PER_MS,
            "sharemesh": charge(account),
        });
        if let Value::Object(more) = more {
            line.extend(more);
        }
        line.into()
    }
}

/// Says the same in headers.
pub(super) fn charged(headers: &mut HeaderMap, account: &JobAccount) {
    let mut tally = Tally::default();
    tally.add(account);
    describe(headers, &tally);
}

/// Says who was paid, and what: an addition to the API. Where several worked on an answer the price is that of all, and what
/// of it went to those who broke off is `earlier`.
pub(super) fn charge(account: &JobAccount) -> Value {
    let mut charge = json!({
        "job": account.job,
        "provider": account.provider,
        "receipt": account.receipt,
        "price_nano": account.price.nano,
        "price_credits": account.price.credits,
    });
    if let Some(builder) = &account.builder {
        charge["builder"] = json!(builder);
    }
    if !account.earlier.is_empty() {
        charge["earlier"] = account.earlier.iter().map(self::charge).collect();
    }
    charge
}

/// Writes a time, in Unix milliseconds, as RFC 3339 has it.
pub(super) fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).unwrap_or_default().to_string()
}
