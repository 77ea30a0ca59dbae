//! Streams the choices of a request as server-sent events: role, parts, why it ended, usage if asked for, `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use engine::frame::TokenLogprob;
use futures::stream::{BoxStream, SelectAll, select_all, unfold};
use futures::{Stream, StreamExt as _};
use serde::Serialize;

use super::calls::{Calls, Malformed, Piece};
use super::error::Refusal;
use super::run::{Choice, Stake, astray, finish_of, name, refusal, with_calls};
use super::wire::{Finish, Head, Tally};
use crate::api::sse::{KEEP_ALIVE, Watched};
use crate::api::views::JobEvent;

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
    let calls = vec![calls; echoed.len()];
    let tally = Tally::default();
    let mut talk = Talk { head, usage, stake, tally, ready: VecDeque::new(), offsets: Vec::new(), calls };
    talk.begin(&echoed);
    let stream = Sse::new(stream(talk, select_all(jobs)));
    let mut response =
        stream.keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive")).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    name(response.headers_mut(), "x-sharemesh-provider", &providers);
    Ok(response)
}

/// Waits until a job is accepted; returns its provider, and an event that came instead, if one did.
async fn accepted(
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

type Jobs = SelectAll<BoxStream<'static, (usize, JobEvent)>>;

fn stream(talk: Talk, jobs: Jobs) -> impl Stream<Item = Result<Event, Infallible>> {
    unfold((talk, Some(jobs)), |(mut talk, mut jobs)| async move {
        while talk.ready.is_empty() {
            match jobs.as_mut()?.next().await {
                Some((index, event)) => {
                    if talk.on(index, event).is_err() {
                        // Nobody wants the other choices of an answer that failed.
                        jobs = None;
                    }
                }
                None => {
                    jobs = None;
                    talk.end();
                }
            }
        }
        let event = talk.ready.pop_front()?;
        Some((Ok(event), (talk, jobs)))
    })
}

/// Turns what happens to jobs into events of the stream.
struct Talk {
    head: Head,
    /// Whether the client asked for the usage.
    usage: bool,
    stake: Stake,
    tally: Tally,
    ready: VecDeque<Event>,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
    /// What finds calls of tools in each choice, where there may be any.
    calls: Vec<Option<Calls>>,
}

/// Says that the answer failed, and that the client was told.
struct Over;

impl Talk {
    fn begin(&mut self, echoed: &[String]) {
        for (index, echoed) in echoed.iter().enumerate() {
            self.offsets.push(echoed.chars().count());
            let first = self.head.role(index);
            let repeated = (!echoed.is_empty()).then(|| self.head.part(index, echoed.clone(), None));
            for choice in first.into_iter().chain(repeated) {
                self.ready.push_back(event(&self.head.chunk(choice, self.usage)));
            }
        }
    }

    fn on(&mut self, index: usize, happened: JobEvent) -> Result<(), Over> {
        match happened {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } | JobEvent::Vectors { .. } => Ok(()),
            JobEvent::Text { text, logprobs, .. } => match &mut self.calls[index] {
                Some(calls) => match calls.take(&text) {
                    Ok(pieces) => {
                        self.pieces(index, pieces);
                        Ok(())
                    }
                    Err(Malformed) => self.fail(&astray()),
                },
                None => {
                    self.part(index, text, &logprobs);
                    Ok(())
                }
            },
            JobEvent::Done(account) => match finish_of(&account, &self.stake) {
                Ok(finish) => {
                    self.tally.add(&account);
                    let finish = self.end_calls(index, finish);
                    let last = self.head.end(index, finish);
                    self.ready.push_back(event(&self.head.chunk(last, self.usage)));
                    Ok(())
                }
                Err(refusal) => self.fail(&refusal),
            },
            JobEvent::Failed { failure, account } => {
                self.fail(&refusal(failure, account.as_deref(), &self.stake))
            }
        }
    }

    fn part(&mut self, index: usize, text: String, logprobs: &[TokenLogprob]) {
        // A token may end in the middle of a character, which comes with the next.
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        let offset = self.offsets[index];
        self.offsets[index] += text.chars().count();
        let logprobs = (!logprobs.is_empty()).then(|| self.head.logprobs(logprobs, offset));
        let part = self.head.part(index, text, logprobs);
        self.ready.push_back(event(&self.head.chunk(part, self.usage)));
    }

    fn pieces(&mut self, index: usize, pieces: Vec<Piece>) {
        for piece in pieces {
            let choice = match piece {
                Piece::Text(text) => self.head.part(index, text, None),
                Piece::Call { index: call, name } => self.head.call(index, call, name),
                Piece::Arguments { index: call, text } => self.head.arguments(index, call, text),
            };
            self.ready.push_back(event(&self.head.chunk(choice, self.usage)));
        }
    }

    /// Hands out what was held back, and says how the answer ended if it has calls.
    fn end_calls(&mut self, index: usize, finish: Finish) -> Finish {
        let Some(calls) = &mut self.calls[index] else { return finish };
        let (rest, are_whole) = (calls.rest(), calls.are_whole());
        self.pieces(index, rest.into_iter().collect());
        with_calls(finish, are_whole)
    }

    fn fail(&mut self, refusal: &Refusal) -> Result<(), Over> {
        self.ready.push_back(event(&refusal.body()));
        Err(Over)
    }

    fn end(&mut self) {
        if self.usage {
            self.ready.push_back(event(&self.head.usage(&self.tally)));
        }
        self.ready.push_back(Event::default().data("[DONE]"));
    }
}

fn event(data: &impl Serialize) -> Event {
    // Our events are plain data, which JSON can always say.
    Event::default().json_data(data).unwrap_or_else(|error| Event::default().comment(error.to_string()))
}
