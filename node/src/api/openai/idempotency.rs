//! Keeps answers for whoever sends the same request again under the same `Idempotency-Key`, so that nobody pays twice.
//!
//! In memory only, for ten minutes. A stream is kept as it was sent, and is given again from its beginning. A request with a key runs to its end even if its client goes: the client is to come
//! back for the answer.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock};

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

use futures::StreamExt as _;
use futures::stream::unfold;
use tokio::sync::{mpsc, oneshot};

use super::error::Refusal;
use crate::api::Api;
use crate::api::caller::Caller;
use crate::clock::Clock;
use crate::exit::{Failure, FailureKind};

/// How long an answer is kept.
const AGE_MS_MAX: u64 = 10 * 60 * 1_000;

/// Bounds what is kept; the oldest makes way.
const BYTES_MAX: usize = 64 << 20;

/// What an answer costs beside its body: headers and key.
const COST_MIN: usize = 2_048;

/// Bounds a key.
const KEY_BYTES_MAX: usize = 255;

/// Answers by key.
#[derive(Clone, Debug, Default)]
pub(in crate::api) struct Answers(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<String, Entry>,
    /// Keys of what is done, oldest first, with the time.
    done: VecDeque<(u64, String)>,
    /// Of what is done, and of streams that are being kept.
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// Tells whether the same key comes with another request.
    request: blake3::Hash,
    /// None while the answer is being made.
    answer: Option<Whole>,
}

/// An answer that can be given again.
#[derive(Clone, Debug)]
struct Whole {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// Whether it is no stream that broke off.
    is_whole: bool,
}

impl Whole {
    async fn of(response: Response) -> Self {
        let (head, body) = response.into_parts();
        // It is ours, whole and in memory already.
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        Self { status: head.status, headers: head.headers, body, is_whole: true }
    }

    fn cost(&self) -> usize {
        self.body.len() + COST_MIN
    }

    fn into_response(self, again: bool) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if again {
            let replayed = if self.is_whole { "true" } else { "broken-off" };
            response.headers_mut().insert("x-sharemesh-replayed", HeaderValue::from_static(replayed));
        }
        response
    }
}

/// Returns the key of a request, if it has one.
pub(super) fn key_of(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()));
    let wrong =
        || Failure::usage(format!("`Idempotency-Key` must be 1 to {KEY_BYTES_MAX} printable characters"));
    key.map(|key| Some(key.to_owned())).ok_or_else(wrong)
}

/// Runs a request, as `run` does, unless it was run before under its key.
pub(super) async fn run_once(
    api: &Api,
    caller: &Caller,
    key: &str,
    request: &[u8],
    run: impl Future<Output = Result<Response, Refusal>> + Send + 'static,
) -> Result<Response, Refusal> {
    let answers = api.answers.clone();
    // Nobody gets what somebody else asked for.
    let key = format!("{caller} {key}");
    let running = match answers.begin(&key, blake3::hash(request), api.clock.now_ms())? {
        Begun::Before(whole) => return Ok(whole.into_response(true)),
        Begun::Now(running) => running,
    };
    let (head, answer) = oneshot::channel();
    // A task of its own, which goes on when the client does not.
    tokio::spawn(run_to_end(running, api.clock, run, head));
    answer.await.map_err(|_| Failure::internal("the request failed: see the node's log").into())
}

/// Runs a request to its end, and keeps its answer; the client gets it by `head`, a stream as it comes.
async fn run_to_end(
    running: Running,
    clock: Clock,
    run: impl Future<Output = Result<Response, Refusal>>,
    head: oneshot::Sender<Response>,
) {
    let (response, keep) = match run.await {
        Ok(response) => (response, true),
        Err(refusal) => {
            let paid = refusal.was_paid();
            (refusal.into_response(), paid)
        }
    };
    if let Some(ending) = response.extensions().get::<Ending>().cloned() {
        return record(running, clock, response, &ending, head).await;
    }
    let whole = Whole::of(response).await;
    if keep {
        running.end(whole.clone(), clock.now_ms());
    }
    // A client that is gone comes back for the answer.
    let _ = head.send(whole.into_response(false));
}

/// Parts of a stream that wait for a client to read them, before the stream itself waits.
const UNREAD_MAX: usize = 64;

/// Hands a stream on as it comes, and keeps it if it ends whole, or was paid for in part.
async fn record(
    running: Running,
    clock: Clock,
    response: Response,
    ending: &Ending,
    client: oneshot::Sender<Response>,
) {
    let (head, body) = response.into_parts();
    let (sender, parts) = mpsc::channel::<Bytes>(UNREAD_MAX);
    let parts = unfold(parts, async |mut parts| Some((Ok::<_, Infallible>(parts.recv().await?), parts)));
    let (status, headers) = (head.status, head.headers.clone());
    let is_there = client.send(Response::from_parts(head, Body::from_stream(parts))).is_ok();
    let (mut sender, mut body) = (Some(sender).filter(|_| is_there), body.into_data_stream());
    let (mut recording, mut last) = (Recording::of(&running.answers), Vec::new());
    while let Some(Ok(part)) = body.next().await {
        recording.push(&part);
        if ending.is().is_some() {
            last.push(part);
        } else if let Some(client) = &sender
            && client.send(part).await.is_err()
        {
            sender = None;
        }
        // Nobody reads it, and nobody could later.
        if sender.is_none() && recording.is_given_up {
            return;
        }
    }
    // One that says nothing of its end was cut off, and may have been paid for.
    let end = ending.is().unwrap_or(End::Paid);
    // Before the client hears the end, after which it may ask again at once.
    if let Some(body) = recording.body().filter(|_| end != End::Unpaid) {
        let is_whole = end == End::Whole;
        running.end(Whole { status, headers, body, is_whole }, clock.now_ms());
    } else {
        drop(running);
    }
    let Some(client) = sender else { return };
    for part in last {
        // One that is gone comes back for the answer.
        let _ = client.send(part).await;
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With all that there was to say.
    Whole,
    /// With a failure, after a part of it may have been paid for.
    Paid,
    /// With a failure, and nothing was paid.
    Unpaid,
}

/// How a stream ends, known once it has; the response that carries it has this among its extensions.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending(Arc<OnceLock<End>>);

impl Ending {
    /// Notes how it ended; the first word counts.
    pub(super) fn note(&self, end: End) {
        let _ = self.0.set(end);
    }

    fn is(&self) -> Option<End> {
        self.0.get().copied()
    }
}

/// The parts of a stream so far, which have room of what answers may take.
struct Recording {
    answers: Answers,
    parts: Vec<Bytes>,
    bytes: usize,
    /// There was no room for it.
    is_given_up: bool,
}

impl Recording {
    fn of(answers: &Answers) -> Self {
        Self { answers: answers.clone(), parts: Vec::new(), bytes: 0, is_given_up: false }
    }

    fn push(&mut self, part: &Bytes) {
        if self.is_given_up {
            return;
        }
        if self.answers.lock().make_room(part.len()) {
            self.bytes += part.len();
            self.parts.push(part.clone());
        } else {
            self.is_given_up = true;
            self.release();
        }
    }

    /// Returns the whole, if there was room for it.
    fn body(mut self) -> Option<Bytes> {
        let body = self.parts.concat().into();
        self.release();
        (!self.is_given_up).then_some(body)
    }

    fn release(&mut self) {
        self.parts.clear();
        self.answers.lock().bytes -= std::mem::take(&mut self.bytes);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.release();
    }
}

/// What came of beginning a request.
#[derive(Debug)]
enum Begun {
    Now(Running),
    Before(Whole),
}

/// A request whose answer is being made; dropping it forgets the key.
#[derive(Debug)]
struct Running {
    answers: Answers,
    key: String,
}

impl Answers {
    fn begin(&self, key: &str, request: blake3::Hash, now_ms: u64) -> Result<Begun, Refusal> {
        let mut kept = self.lock();
        kept.forget_old(now_ms);
        match kept.entries.get(key) {
            Some(entry) if entry.request != request => {
                let words = "this `Idempotency-Key` was used with another request: take a new one";
                Err(Refusal::unprocessable(Failure::usage(words)))
            }
            Some(Entry { answer: Some(whole), .. }) => Ok(Begun::Before(whole.clone())),
            Some(Entry { answer: None, .. }) => {
                let words =
                    "the request with this `Idempotency-Key` is being answered: ask again in a moment";
                let failure = Failure::new(FailureKind::Cancelled, words).retry_after(1_000);
                Err(Refusal::in_flight(failure))
            }
            None => {
                kept.entries.insert(key.to_owned(), Entry { request, answer: None });
                Ok(Begun::Now(Running { answers: self.clone(), key: key.to_owned() }))
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().expect("nothing panics while it holds the answers")
    }
}

impl Running {
    fn end(self, whole: Whole, now_ms: u64) {
        let mut kept = self.answers.lock();
        if !kept.make_room(whole.cost()) {
            return;
        }
        kept.done.push_back((now_ms, self.key.clone()));
        if let Some(entry) = kept.entries.get_mut(&self.key) {
            entry.answer = Some(whole);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut kept = self.answers.lock();
        if kept.entries.get(&self.key).is_some_and(|entry| entry.answer.is_none()) {
            kept.entries.remove(&self.key);
        }
    }
}

impl Kept {
    fn forget_old(&mut self, now_ms: u64) {
        while self.done.front().is_some_and(|(at, _)| now_ms.saturating_sub(*at) >= AGE_MS_MAX) {
            self.forget_oldest();
        }
    }

    /// Makes room for so many bytes, which they have then; says whether there is as much.
    fn make_room(&mut self, bytes: usize) -> bool {
        if bytes > BYTES_MAX {
            return false;
        }
        while self.bytes + bytes > BYTES_MAX && self.forget_oldest() {}
        let is_room = self.bytes + bytes <= BYTES_MAX;
        self.bytes += if is_room { bytes } else { 0 };
        is_room
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((_, key)) = self.done.pop_front() else { return false };
        let forgotten = self.entries.remove(&key).and_then(|entry| entry.answer);
        self.bytes -= forgotten.map_or(0, |whole| whole.cost());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: usize) -> Whole {
        let body = Bytes::from(vec![b'x'; bytes]);
        Whole { status: StatusCode::OK, headers: HeaderMap::new(), body, is_whole: true }
    }

    fn begin(answers: &Answers, key: &str, request: &[u8], now_ms: u64) -> Result<Begun, Refusal> {
        answers.begin(key, blake3::hash(request), now_ms)
    }

    fn end(answers: &Answers, key: &str, bytes: usize, now_ms: u64) {
        let Ok(Begun::Now(running)) = begin(answers, key, b"r", now_ms) else { panic!("{key} is new") };
        running.end(whole(bytes), now_ms);
    }

    #[test]
    fn an_answer_is_given_again_until_it_is_old() {
        let answers = Answers::default();
        end(&answers, "k", 3, 0);

        assert!(matches!(begin(&answers, "k", b"r", AGE_MS_MAX - 1), Ok(Begun::Before(_))));
        assert!(begin(&answers, "k", b"other", 1).is_err());
        assert!(matches!(begin(&answers, "k", b"r", AGE_MS_MAX), Ok(Begun::Now(_))));
        assert_eq!(answers.lock().bytes, 0);
    }

    #[test]
    fn a_request_in_flight_is_not_run_twice_and_one_that_came_to_nothing_is() {
        let answers = Answers::default();
        let running = begin(&answers, "k", b"r", 0);

        assert!(begin(&answers, "k", b"r", 0).is_err());
        drop(running);
        assert!(matches!(begin(&answers, "k", b"r", 0), Ok(Begun::Now(_))));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_makes_way() {
        let answers = Answers::default();
        let large = BYTES_MAX / 4;
        for key in ["a", "b", "c", "d", "e"] {
            end(&answers, key, large, 0);
        }

        assert!(answers.lock().bytes <= BYTES_MAX);
        assert!(matches!(begin(&answers, "a", b"r", 0), Ok(Begun::Now(_))));
        assert!(matches!(begin(&answers, "e", b"r", 0), Ok(Begun::Before(_))));
        end(&answers, "huge", BYTES_MAX, 0);
        assert!(matches!(begin(&answers, "huge", b"r", 0), Ok(Begun::Now(_))), "it does not fit");
    }

    #[test]
    fn streams_that_are_being_kept_share_the_room_with_what_is_done() {
        let answers = Answers::default();
        end(&answers, "old", BYTES_MAX / 2, 0);
        let mut streams = [(); 3].map(|()| Recording::of(&answers));
        let part = Bytes::from(vec![b'x'; BYTES_MAX / 2]);

        streams.iter_mut().for_each(|stream| stream.push(&part));

        assert!(matches!(begin(&answers, "old", b"r", 0), Ok(Begun::Now(_))), "the oldest makes way");
        assert_eq!(streams.each_ref().map(|stream| stream.is_given_up), [false, false, true]);
        assert_eq!(answers.lock().bytes, BYTES_MAX);
        let bodies = streams.map(Recording::body);
        assert_eq!(
            bodies.map(|body| body.map(|body| body.len())),
            [Some(part.len()), Some(part.len()), None]
        );
        assert_eq!(answers.lock().bytes, 0, "nothing is left of them");
    }
}
