//! Streams the choices of a request as server-sent events: role, parts, why it ended, usage if asked for, `[DONE]`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use engine::frame::TokenLogprob;
use futures::stream::{BoxStream, select_all, unfold};
use futures::{Stream, StreamExt as _};
use serde::Serialize;

use super::calls::{Calls, Malformed, Piece};
use super::error::Refusal;
use super::run::{Choice, Stake, astray, finish_of, name, refusal, with_calls};
use super::spoken::Spoken;
use super::wire::{Finish, Head, Tally};
use crate::api::coalesced::Gathered;
use crate::api::sse::{KEEP_ALIVE, Watched};
use crate::api::views::JobEvent;
use crate::idle::Idle;

/// Bytes after which what is ready is handed on although there is more.
const READY_MAX: usize = 16 * 1024;

/// What clients ignore, by which a connection is kept while nothing is ready.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// What is to be in a stream beside the words.
pub(super) struct Wanted {
    pub(super) usage: bool,
    /// What finds calls of tools, where the answers may have any.
    pub(super) calls: Option<Calls>,
}

/// Answers with the stream once every job was accepted, or with the failure if one was not.
pub(super) async fn respond(
    head: Head,
    choices: Vec<Choice>,
    Wanted { usage, calls }: Wanted,
    stake: Stake,
) -> Result<Response, Refusal> {
    let (mut providers, mut echoed, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (mut watched, repeated)) in choices.into_iter().enumerate() {
        let (provider, first) = accepted(&mut watched, &stake).await?;
        providers.extend(provider);
        echoed.push(repeated.unwrap_or_default());
        jobs.push(events(index, first, watched));
    }
    let ending = stake.ending();
    let talk = Talk::begin(head, Wanted { usage, calls }, stake, &echoed);
    let jobs = if jobs.len() == 1 { jobs.remove(0) } else { select_all(jobs).boxed() };
    let mut response = Body::from_stream(EventStream::new(talk, jobs, KEEP_ALIVE)).into_response();
    response.extensions_mut().insert(Gathered);
    response.extensions_mut().insert(ending);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    name(headers, "x-sharemesh-provider", &providers);
    Ok(response)
}

/// Waits until a job is accepted; returns its provider, and an event that came instead, if one did.
pub(super) async fn accepted(
    watched: &mut Watched,
    stake: &Stake,
) -> Result<(Option<String>, Option<JobEvent>), Refusal> {
    let mut chosen = None;
    loop {
        match watched.next().await {
            Some(JobEvent::Chosen { provider, .. }) => chosen = Some(provider),
            Some(JobEvent::Vectors { .. }) => {}
            Some(JobEvent::Accepted { .. }) | None => return Ok((chosen, None)),
            Some(JobEvent::Failed { failure, account }) => {
                return Err(refusal(failure, account.as_deref(), stake));
            }
            Some(event @ (JobEvent::Text { .. } | JobEvent::Done(_))) => return Ok((chosen, Some(event))),
        }
    }
}

/// Returns what else happens to a job; dropping it cancels the job.
fn events(index: usize, first: Option<JobEvent>, watched: Watched) -> BoxStream<'static, (usize, JobEvent)> {
    let rest = unfold(watched, async |mut watched| Some((watched.next().await?, watched)));
    futures::stream::iter(first).chain(rest).map(move |event| (index, event)).boxed()
}

type Jobs = BoxStream<'static, (usize, JobEvent)>;

/// The events, as many together as are ready, and a comment where there are none for so long.
///
/// It is polled by hand: what is asked for a token must be asked once, and no timer be looked at while there is one.
struct EventStream {
    talk: Talk,
    /// None once nothing more is wanted of them.
    jobs: Option<Jobs>,
    idle: Idle,
}

impl EventStream {
    fn new(talk: Talk, jobs: Jobs, keep_alive: Duration) -> Self {
        Self { talk, jobs: Some(jobs), idle: Idle::new(keep_alive) }
    }

    /// Takes what has happened to the jobs.
    fn take_ready(&mut self, cx: &mut Context<'_>) {
        while let Some(jobs) = self.jobs.as_mut().filter(|_| self.talk.ready.len() < READY_MAX) {
            let goes_on = match jobs.poll_next_unpin(cx) {
                Poll::Pending => return,
                // Nobody wants the other choices of an answer that failed.
                Poll::Ready(Some((index, event))) => self.talk.on(index, event).is_ok(),
                Poll::Ready(None) => {
                    self.talk.end();
                    false
                }
            };
            if !goes_on {
                self.jobs = None;
            }
        }
    }
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.take_ready(cx);
        if self.talk.ready.is_empty() {
            if self.jobs.is_none() {
                return Poll::Ready(None);
            }
            ready!(self.idle.poll_over(cx));
            self.talk.ready.extend_from_slice(COMMENT);
        }
        self.idle.end();
        Poll::Ready(Some(Ok(std::mem::take(&mut self.talk.ready).into())))
    }
}

/// Turns what happens to jobs into events of the stream.
struct Talk {
    head: Head,
    /// Whether the client asked for the usage.
    usage: bool,
    stake: Stake,
    tally: Tally,
    /// Events that are to be handed on.
    ready: Vec<u8>,
    /// What is around the text of each part of a choice.
    frames: Vec<PartFrame>,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
    /// What finds calls of tools in each choice, where there may be any.
    calls: Vec<Option<Calls>>,
    /// Log probabilities of each choice that may be of its words or of calls.
    spoken: Vec<Spoken>,
}

/// Says that the answer failed, and that the client was told.
struct Over;

impl Talk {
    /// Begins with what is repeated of the prompt for each choice, which may be nothing.
    fn begin(head: Head, Wanted { usage, calls }: Wanted, stake: Stake, echoed: &[String]) -> Self {
        let mut ready = Vec::new();
        for (index, echoed) in echoed.iter().enumerate() {
            let first = head.role(index);
            let repeated = (!echoed.is_empty()).then(|| head.part(index, echoed.clone(), None));
            for choice in first.into_iter().chain(repeated) {
                write(&mut ready, &head.chunk(choice, usage));
            }
        }
        let offsets = echoed.iter().map(|echoed| echoed.chars().count()).collect();
        let frames = (0..echoed.len()).map(|index| PartFrame::of(&head, index, usage)).collect();
        let (tally, calls) = (Tally::default(), vec![calls; echoed.len()]);
        let spoken = vec![Spoken::default(); echoed.len()];
        Self { head, usage, stake, tally, ready, frames, offsets, calls, spoken }
    }

    fn on(&mut self, index: usize, happened: JobEvent) -> Result<(), Over> {
        match happened {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } | JobEvent::Vectors { .. } => Ok(()),
            JobEvent::Text { text, logprobs, .. } => match &mut self.calls[index] {
                Some(calls) => match calls.take(&text) {
                    Ok(pieces) => {
                        self.spoken[index].take(logprobs);
                        self.pieces(index, pieces);
                        Ok(())
                    }
                    Err(Malformed) => self.fail(&astray(&self.stake)),
                },
                None => {
                    self.part(index, &text, &logprobs);
                    Ok(())
                }
            },
            JobEvent::Done(account) => match finish_of(&account, &self.stake) {
                Ok(finish) => {
                    self.tally.add(&account);
                    let finish = self.end_calls(index, finish);
                    let last = self.head.end(index, finish);
                    write(&mut self.ready, &self.head.chunk(last, self.usage));
                    Ok(())
                }
                Err(refusal) => self.fail(&refusal),
            },
            JobEvent::Failed { failure, account } => {
                self.fail(&refusal(failure, account.as_deref(), &self.stake))
            }
        }
    }

    fn part(&mut self, index: usize, text: &str, logprobs: &[TokenLogprob]) {
        // A token may end in the middle of a character, which comes with the next.
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        let offset = self.offsets[index];
        self.offsets[index] += text.chars().count();
        if logprobs.is_empty() {
            self.frames[index].write(&mut self.ready, text);
        } else {
            let logprobs = Some(self.head.logprobs(logprobs, offset));
            let part = self.head.part(index, text.to_owned(), logprobs);
            write(&mut self.ready, &self.head.chunk(part, self.usage));
        }
    }

    fn pieces(&mut self, index: usize, pieces: Vec<Piece>) {
        for piece in pieces {
            let choice = match piece {
                Piece::Text(text) => {
                    let logprobs = self.spoken[index].said(&text);
                    self.part(index, &text, &logprobs);
                    continue;
                }
                Piece::Call { index: call, name } => self.head.call(index, call, name),
                Piece::Arguments { index: call, text } => self.head.arguments(index, call, text),
            };
            write(&mut self.ready, &self.head.chunk(choice, self.usage));
        }
    }

    /// Hands out what was held back, and says how the answer ended if it has calls.
    fn end_calls(&mut self, index: usize, finish: Finish) -> Finish {
        let Some(calls) = &mut self.calls[index] else { return finish };
        let (rest, are_whole) = (calls.rest(), calls.are_whole());
        self.pieces(index, rest.into_iter().collect());
        if let Some(token) = self.spoken[index].rest() {
            self.part(index, "", &[token]);
        }
        with_calls(finish, are_whole)
    }

    fn fail(&mut self, refusal: &Refusal) -> Result<(), Over> {
        self.stake.broke_off(refusal);
        write(&mut self.ready, &refusal.body());
        Err(Over)
    }

    fn end(&mut self) {
        if self.usage {
            write(&mut self.ready, &self.head.usage(&self.tally));
        }
        self.ready.extend_from_slice(b"data: [DONE]\n\n");
        self.stake.ended_whole();
    }
}

/// The event of a part without its text: nothing else changes from token to token, and writing all of it anew costs most
/// of what a token costs.
struct PartFrame {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl PartFrame {
    fn of(head: &Head, index: usize, usage: bool) -> Self {
        let part = head.part(index, MARK.to_owned(), None);
        let mut event = Vec::new();
        write(&mut event, &head.chunk(part, usage));
        let mut text = Vec::new();
        json(&mut text, MARK);
        // The last one: before it a client may have written what it likes, and after it only our own words come.
        let at = event.windows(text.len()).rposition(|part| part == text).unwrap_or(event.len());
        let after = event.split_off((at + text.len()).min(event.len()));
        event.truncate(at);
        Self { before: event, after }
    }

    fn write(&self, ready: &mut Vec<u8>, text: &str) {
        ready.reserve(self.before.len() + text.len() + QUOTES + self.after.len());
        ready.extend_from_slice(&self.before);
        json(ready, text);
        ready.extend_from_slice(&self.after);
    }
}

/// Bytes around a text that is a JSON string, if nothing in it is escaped.
const QUOTES: usize = 2;

/// Stands where the text of a part is to be.
const MARK: &str = "\u{1}text\u{1}";

/// Writes an event: a line, since JSON has no line breaks but escaped ones.
fn write(ready: &mut Vec<u8>, data: &(impl Serialize + ?Sized)) {
    ready.extend_from_slice(b"data: ");
    json(ready, data);
    ready.extend_from_slice(b"\n\n");
}

fn json(ready: &mut Vec<u8>, data: &(impl Serialize + ?Sized)) {
    // Our events are plain data, which JSON can always say, and memory takes every byte.
    serde_json::to_writer(ready, data).expect("plain data");
}

#[cfg(test)]
mod tests {
    use super::super::wire::Dialect;
    use super::*;
    use crate::api::caller::Caller;

    #[tokio::test]
    async fn a_stream_that_has_nothing_to_say_says_so_and_goes_on() {
        let head = Head { dialect: Dialect::Chat, id: "x-1".to_owned(), created: 7, model: "m".to_owned() };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let jobs = unfold(receiver, async |mut receiver| Some(((0, receiver.recv().await?), receiver)));
        let wanted = Wanted { usage: false, calls: None };
        let talk = Talk::begin(head, wanted, Stake::of(Caller::Owner, &[String::new()]), &[String::new()]);
        let mut stream = EventStream::new(talk, jobs.boxed(), Duration::from_millis(20));
        let role = stream.next().await.expect("who speaks").expect("good");
        assert!(String::from_utf8_lossy(&role).contains("assistant"));
        for _ in 0..2 {
            assert_eq!(stream.next().await.expect("a comment").expect("good"), COMMENT);
        }
        let text =
            JobEvent::Text { text: "a".into(), index: 0, tokens: 1, ids: vec![1], logprobs: Vec::new() };
        sender.send(text).await.expect("it listens");
        let part = loop {
            let part = stream.next().await.expect("a part").expect("good");
            if part != COMMENT {
                break part;
            }
        };
        assert!(part.starts_with(b"data: {") && part.ends_with(b"\n\n"), "{part:?}");
    }

    #[test]
    fn a_part_is_written_as_its_whole_chunk_would_be() {
        for (dialect, usage) in [(Dialect::Chat, false), (Dialect::Chat, true), (Dialect::Completion, true)] {
            // Whoever asks names the model.
            let head = Head { dialect, id: "x-1".to_owned(), created: 7, model: format!("m{MARK}\"\n") };
            let frame = PartFrame::of(&head, 3, usage);
            for text in ["", "a", " \"quoted\"\n\r\t\\", "\u{0}\u{1}text\u{1}\u{7f}\u{2028}", "ß🙂"] {
                let (mut short, mut whole) = (Vec::new(), Vec::new());
                frame.write(&mut short, text);
                write(&mut whole, &head.chunk(head.part(3, text.to_owned(), None), usage));
                assert_eq!(String::from_utf8(short), String::from_utf8(whole));
            }
        }
    }
}
