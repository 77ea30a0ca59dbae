//! Streams a job's events; closing the connection cancels the job.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use engine::frame::Prompt;
use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::Api;
use super::caller::Caller;
use super::fallback::{Fallback, Next, Relaying};
use super::spending::{self, Spending};
use super::views::{JobAccount, JobEvent};
use crate::api_keys::Reserved;
use crate::command::{JobId, JobRequest, Work};
use crate::exit::{Failure, FailureKind};
use crate::metrics::{Answered, Metrics, Operation};

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
    measured: Measured,
}

/// What is measured of an answer as its client sees it, whoever works on it.
struct Measured {
    request: Arc<JobRequest>,
    since: Instant,
    /// Until its first part came.
    first: Option<Duration>,
    /// Whether somebody serves the model, so that its name is not a client's own.
    is_known: bool,
}

impl Measured {
    fn of(request: Arc<JobRequest>) -> Self {
        Self { request, since: Instant::now(), first: None, is_known: false }
    }

    /// Takes note of an event; the last one is counted.
    fn note(&mut self, event: &JobEvent, metrics: &Metrics) {
        match event {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } => self.is_known = true,
            JobEvent::Text { .. } | JobEvent::Vectors { .. } => {
                self.first.get_or_insert_with(|| self.since.elapsed());
            }
            JobEvent::Done(account) => self.end(None, Some(account), metrics),
            JobEvent::Failed { failure, account } => {
                self.end(Some(failure.kind), account.as_deref(), metrics);
            }
        }
    }

    fn end(&self, error: Option<FailureKind>, account: Option<&JobAccount>, metrics: &Metrics) {
        let operation = match &self.request.work {
            Work::Embed(_) => Operation::Embeddings,
            Work::Generate(generate) => match &generate.prompt {
                Prompt::Text(_) | Prompt::Tokens(_) => Operation::TextCompletion,
                Prompt::Chat(_) | Prompt::Tools(_) => Operation::Chat,
            },
        };
        let model = Some(self.request.model.as_str()).filter(|_| self.is_known);
        let took = self.since.elapsed();
        metrics.model_answered(&Answered { operation, model, error, took, first: self.first, account });
    }
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
        request: Arc<JobRequest>,
        api: &Api,
    ) -> Self {
        let job = relaying.first();
        let (api, begun, place) = (api.clone(), Begun::default(), Some(place));
        let measured = Measured::of(request);
        Self {
            relaying,
            job,
            events,
            api,
            over: false,
            place,
            spending: None,
            fallback: None,
            begun,
            measured,
        }
    }

    /// Counts what the job costs to the key for which it was set aside.
    pub(super) fn paid_by(mut self, reserved: Option<Reserved>) -> Self {
        self.spending = reserved.map(Spending::new);
        self
    }

    /// Lets another provider go on with the answer, if the request allows that, for at most `max_price_nano` in all.
    pub(super) fn falling_back(mut self, caller: Caller, max_price_nano: Option<u64>) -> Self {
        let request = self.measured.request.clone();
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
                return Some(self.seen(event));
            };
            if self.relaying.is_cancelled() {
                fallback.give_up();
            }
            match fallback.after(event).await {
                Next::Event(event) => return Some(self.seen(event)),
                Next::Job { job, events, reserved } => {
                    (self.job, self.events) = (job, events);
                    self.spending = reserved.map(Spending::new);
                    if self.api.relays.pass(self.relaying.first(), job, &self.measured.request.work) {
                        // It was cancelled while somebody was looked for.
                        self.api.commands.cancel(job);
                    }
                }
            }
        }
    }

    /// Takes note of what the client sees.
    fn seen(&mut self, event: JobEvent) -> JobEvent {
        self.over = event.is_last();
        self.measured.note(&event, &self.api.metrics);
        event
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
            self.measured.end(Some(FailureKind::Cancelled), None, &self.api.metrics);
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
