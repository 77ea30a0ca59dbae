//! Streams a job's events; closing the connection cancels the job.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Api;
use super::caller::Caller;
use super::fallback::{Fallback, Next, Relaying};
use super::spending::{self, Spending};
use super::views::JobEvent;
use crate::api_keys::Reserved;
use crate::command::{JobId, JobRequest};
use crate::exit::{Failure, FailureKind};

/// Keeps connections through idle prefill; clients ignore such comments.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// One of the jobs that may stream at once, and of those of keys where one pays.
pub(super) type JobPlace = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

/// A job's events, and its cancellation if they are dropped before the last.
pub(super) struct Watched {
    /// The id that clients know, which is the answer's alone.
    relaying: Relaying,
    job: JobId,
    events: mpsc::Receiver<JobEvent>,
    api: Api,
    over: bool,
    place: Option<JobPlace>,
    /// What was set aside for the job, if a key pays for it.
    spending: Option<Spending>,
    /// Who goes on if the provider does not.
    fallback: Option<Box<Fallback>>,
    begun: Begun,
}

/// Whether a provider has begun any of some jobs: from then on something may have been paid, whatever comes.
#[derive(Clone, Debug, Default)]
pub(super) struct Begun(Arc<AtomicBool>);

impl Begun {
    /// Says whether one was begun.
    pub(super) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Watched {
    pub(super) fn new(
        relaying: Relaying,
        events: mpsc::Receiver<JobEvent>,
        place: JobPlace,
        api: &Api,
    ) -> Self {
        let job = relaying.first();
        let (api, begun, place) = (api.clone(), Begun::default(), Some(place));
        Self { relaying, job, events, api, over: false, place, spending: None, fallback: None, begun }
    }

    /// Counts what the job costs to the key for which it was set aside.
    pub(super) fn paid_by(mut self, reserved: Option<Reserved>) -> Self {
        self.spending = reserved.map(Spending::new);
        self
    }

    /// Lets another provider go on with the answer, if the request allows that, for at most `max_price_nano` in all.
    pub(super) fn falling_back(
        mut self,
        caller: Caller,
        request: Arc<JobRequest>,
        max_price_nano: Option<u64>,
    ) -> Self {
        let fallback = || Box::new(Fallback::new(&self.api, caller, request.clone(), max_price_nano));
        self.fallback = request.fallbacks.then(fallback);
        self
    }

    /// Notes in `begun`, too, when the job begins.
    pub(super) fn noting(mut self, begun: Begun) -> Self {
        self.begun = begun;
        self
    }

    /// Returns the next event; none after the last one. If the provider fails in mid-stream, the next ones are those of
    /// another that goes on, and the last one has the account of both.
    pub(super) async fn next(&mut self) -> Option<JobEvent> {
        if self.over {
            return None;
        }
        loop {
            let event = match self.events.recv().await {
                Some(event) => event,
                None => self.gone(),
            };
            self.note(&event);
            let Some(fallback) = &mut self.fallback else {
                self.over = event.is_last();
                return Some(event);
            };
            if self.relaying.is_cancelled() {
                fallback.give_up();
            }
            match fallback.after(event).await {
                Next::Event(event) => {
                    self.over = event.is_last();
                    return Some(event);
                }
                Next::Job { job, events, reserved } => {
                    (self.job, self.events) = (job, events);
                    self.spending = reserved.map(Spending::new);
                    if self.api.relays.pass(self.relaying.first(), job) {
                        // It was cancelled while somebody was looked for.
                        self.api.commands.cancel(job);
                    }
                }
            }
        }
    }

    /// Counts what happened.
    fn note(&mut self, event: &JobEvent) {
        self.spending = self.spending.take().and_then(|spending| spending.note(event));
        match event {
            JobEvent::Done(account) => self.api.metrics.job_done(account),
            JobEvent::Failed { failure, account } => {
                self.api.metrics.job_failed(failure.kind, account.as_deref());
            }
            JobEvent::Accepted { .. } | JobEvent::Text { .. } | JobEvent::Vectors { .. } => {
                self.begun.note();
            }
            JobEvent::Chosen { .. } => {}
        }
    }

    /// Says why there are no more events though the last one did not come.
    fn gone(&self) -> JobEvent {
        let failure = if self.api.stop.is_cancelled() {
            Failure::new(FailureKind::Unavailable, "the node went down while the job ran: submit it again")
        } else {
            Failure::internal("the node lost the job: see its log")
        };
        JobEvent::Failed { failure, account: None }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.over {
            self.api.metrics.job_failed(FailureKind::Cancelled, None);
            self.api.commands.cancel(self.job);
            if let Some(spending) = self.spending.take() {
                let events = std::mem::replace(&mut self.events, mpsc::channel(1).1);
                tokio::spawn(spending::follow(spending, events, self.place.take()));
            }
        }
    }
}

/// Answers with the stream, or with the failure if that is the first event.
pub(super) async fn respond(mut watched: Watched, job: &str) -> Result<Response, Failure> {
    let first = match watched.next().await {
        Some(JobEvent::Failed { failure, account: None }) => return Err(failure),
        Some(event) => event,
        None => return Err(Failure::internal("the job has no events")),
    };
    let stream = Sse::new(stream(first, watched)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let mut response = stream.into_response();
    if let Ok(job) = HeaderValue::from_str(job) {
        response.headers_mut().insert("sharemesh-job", job);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn stream(first: JobEvent, watched: Watched) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold((Some(first), watched), |(first, mut watched)| async move {
        let event = match first {
            Some(event) => event,
            None => watched.next().await?,
        };
        Some((Ok(event_of(&event)), (None, watched)))
    })
}

fn event_of(event: &JobEvent) -> Event {
    let named = Event::default().event(event.name());
    // Our events are plain data, which JSON can always say.
    named.json_data(event).unwrap_or_else(|error| Event::default().comment(error.to_string()))
}
