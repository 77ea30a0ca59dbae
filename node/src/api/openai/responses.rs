//! `/v1/responses`: the newer way to ask for what a chat is, as one answer or as a stream of events.
//!
//! In reading order: `asked` says a request in the words of a chat, whose rules then hold for it; `writing` makes items and
//! events of what the job says. Nothing is kept: whoever goes on sends the whole conversation.

mod asked;
#[cfg(test)]
mod tests;
mod writing;

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Json as Answer;
use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::Stream;
use futures::stream::unfold;

use super::asked::Asked;
use super::calls::{Calls, Malformed, Piece};
use super::error::Refusal;
use super::run::{Placed, Stake, astray, describe, finish_of, name, place, refusal, with_calls};
use super::wire::{Finish, Tally};
use crate::api::Api;
use crate::api::caller::Caller;
use crate::api::sse::{KEEP_ALIVE, Watched};
use crate::api::views::JobEvent;
use crate::exit::Failure;

pub(super) use asked::Wanted;
use writing::{Said, Writing};

/// Where the endpoint is.
pub(super) const PATH: &str = "/responses";

/// Runs a request to its end, or to the first event of its stream.
pub(super) async fn run(api: Api, caller: Caller, wanted: Wanted) -> Result<Response, Refusal> {
    let Wanted { asked, echo } = wanted;
    let (calls, stream) = (asked.calls(), asked.stream);
    let Asked { mut jobs, ignored, .. } = asked;
    let request = jobs.pop().ok_or_else(|| Failure::internal("the request has no job"))?;
    let now = api.clock.now_ms() / 1_000;
    let Placed { model, watched, stake, headers } = place(&api, caller, request, &ignored).await?;
    let job = headers.get("x-sharemesh-job").and_then(|job| job.to_str().ok()).unwrap_or_default();
    let writing = Writing::new(job, now, &model, echo);
    let talk = Talk { watched, stake, calls, writing, ready: VecDeque::new(), over: false };
    let mut response = if stream { talk.stream().await? } else { talk.whole().await? };
    response.headers_mut().extend(headers);
    Ok(response)
}

/// One answer in the making.
struct Talk {
    watched: Watched,
    stake: Stake,
    /// What finds calls of tools, where there may be any.
    calls: Option<Calls>,
    writing: Writing,
    ready: VecDeque<Said>,
    over: bool,
}

impl Talk {
    async fn whole(mut self) -> Result<Response, Refusal> {
        while let Some(event) = self.watched.next().await {
            let tally = self.take(event)?;
            // Nobody reads events of a whole answer.
            self.writing.said();
            if let Some(tally) = tally {
                let mut response = Answer(self.writing.whole(&tally)).into_response();
                describe(response.headers_mut(), &tally);
                return Ok(response);
            }
        }
        Err(Failure::internal("the job has no last event").into())
    }

    /// Answers with the stream once the job was accepted, or with the failure if it was not.
    async fn stream(mut self) -> Result<Response, Refusal> {
        self.ready.extend(self.writing.begin());
        let mut provider = Vec::new();
        loop {
            match self.watched.next().await {
                Some(JobEvent::Chosen { provider: chosen, .. }) => provider = vec![chosen],
                Some(JobEvent::Accepted { .. }) | None => break,
                Some(JobEvent::Failed { failure, account }) => {
                    return Err(refusal(failure, account.as_deref(), &self.stake));
                }
                Some(event @ (JobEvent::Text { .. } | JobEvent::Vectors { .. } | JobEvent::Done(_))) => {
                    self.on(event);
                    break;
                }
            }
        }
        let ending = self.stake.ending();
        let stream = Sse::new(events(self));
        let mut response =
            stream.keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive")).into_response();
        response.extensions_mut().insert(ending);
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        name(response.headers_mut(), "x-sharemesh-provider", &provider);
        Ok(response)
    }

    /// Says in the stream what happened.
    fn on(&mut self, event: JobEvent) {
        let taken = self.take(event);
        self.ready.extend(self.writing.said());
        match taken {
            Ok(None) => {}
            Ok(Some(tally)) => {
                self.ready.extend(self.writing.end(&tally));
                self.stake.ended_whole();
                self.over = true;
            }
            Err(refusal) => {
                self.ready.extend(self.writing.fail(&refusal));
                self.stake.broke_off(&refusal);
                self.over = true;
            }
        }
    }

    /// Writes what an event brings; after the last one, returns what the answer cost.
    fn take(&mut self, event: JobEvent) -> Result<Option<Tally>, Refusal> {
        match event {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } | JobEvent::Vectors { .. } => Ok(None),
            JobEvent::Text { text, .. } => {
                let pieces = match &mut self.calls {
                    Some(calls) => calls.take(&text).map_err(|Malformed| astray(&self.stake))?,
                    None => vec![Piece::Text(text)],
                };
                pieces.into_iter().for_each(|piece| self.writing.take(piece));
                Ok(None)
            }
            JobEvent::Done(account) => {
                let finish = finish_of(&account, &self.stake)?;
                let rest = self.calls.as_mut().and_then(Calls::rest);
                rest.into_iter().for_each(|piece| self.writing.take(piece));
                let are_whole = self.calls.as_ref().is_some_and(Calls::are_whole);
                // There is no `stop` text here that could cut a call short.
                if finish == Finish::Stop && self.calls.as_ref().is_some_and(Calls::is_cut) {
                    return Err(astray(&self.stake));
                }
                self.writing.close(with_calls(finish, are_whole));
                let mut tally = Tally::default();
                tally.add(&account);
                Ok(Some(tally))
            }
            JobEvent::Failed { failure, account } => Err(refusal(failure, account.as_deref(), &self.stake)),
        }
    }
}

fn events(talk: Talk) -> impl Stream<Item = Result<Event, Infallible>> {
    unfold(talk, async |mut talk| {
        while talk.ready.is_empty() && !talk.over {
            match talk.watched.next().await {
                Some(event) => talk.on(event),
                None => talk.over = true,
            }
        }
        let Said { name, data } = talk.ready.pop_front()?;
        // Our events are plain data, which JSON can always say.
        let event = Event::default().event(name).json_data(&data);
        Some((Ok(event.unwrap_or_else(|error| Event::default().comment(error.to_string()))), talk))
    })
}
