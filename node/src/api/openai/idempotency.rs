//! Keeps answers for whoever sends the same request again under the same `Idempotency-Key`, so that nobody pays twice.
//!
//! In memory only, for ten minutes. A stream is kept as it was sent, and is given again from its beginning. A request with a
//! key runs to its end even if its client goes: the client is to come back for the answer. A stream for which there is no room
//! and whose client went is cancelled, for nobody could ever read it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

use futures::StreamExt as _;
use futures::stream::unfold;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::error::Refusal;
use crate::api::Api;
use crate::api::caller::Caller;
use crate::api::coalesced::Gathered;
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
    /// Of streams that are being kept, which do not make way.
    held: usize,
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

/// How long a stream waits for a client that does not read it.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// The client of a stream that is being kept.
struct Listener {
    parts: mpsc::Sender<Bytes>,
    /// How long it may leave everything unread.
    patience: Duration,
    /// It was not handed all of it.
    is_given_up: Arc<AtomicBool>,
}

impl Listener {
    /// Returns it, and what it reads: a stream that breaks off, and does not just end, where it was given up.
    fn new(patience: Duration) -> (Self, Body) {
        let (parts, receiver) = mpsc::channel::<Bytes>(UNREAD_MAX);
        let is_given_up = Arc::<AtomicBool>::default();
        let state = Some((receiver, is_given_up.clone()));
        let body = unfold(state, async |state| {
            let (mut parts, is_given_up) = state?;
            match parts.recv().await {
                Some(part) => Some((Ok(part), Some((parts, is_given_up)))),
                None if is_given_up.load(Ordering::Acquire) => {
                    Some((Err(io::Error::from(io::ErrorKind::TimedOut)), None))
                }
                None => None,
            }
        });
        (Self { parts, patience, is_given_up }, Body::from_stream(body))
    }

    /// Hands a part on; none is left of a client that is gone, or does not read.
    async fn hand(self, part: Bytes) -> Option<Self> {
        match timeout(self.patience, self.parts.send(part)).await {
            Ok(sent) => sent.is_ok().then_some(self),
            Err(_) => {
                self.is_given_up.store(true, Ordering::Release);
                None
            }
        }
    }
}

/// Hands a stream on as it comes, and keeps it if it ends whole, or was paid for in part.
async fn record(
    running: Running,
    clock: Clock,
    response: Response,
    ending: &Ending,
    client: oneshot::Sender<Response>,
) {
    let (mut head, body) = response.into_parts();
    // Its parts are handed on one by one.
    head.extensions.remove::<Gathered>();
    let (listener, parts) = Listener::new(STALLED_MAX);
    let (status, headers) = (head.status, head.headers.clone());
    let is_there = client.send(Response::from_parts(head, parts)).is_ok();
    let (mut listener, mut body) = (Some(listener).filter(|_| is_there), body.into_data_stream());
    let (mut recording, mut last) = (Recording::of(&running.answers), Vec::new());
    while let Some(Ok(part)) = body.next().await {
        recording.push(&part);
        if ending.is().is_some() {
            last.push(part);
        } else if let Some(client) = listener.take() {
            listener = client.hand(part).await;
        }
        // Nobody reads it, and nobody could later.
        if listener.is_none() && recording.is_given_up {
            return;
        }
    }
    // One that says nothing of its end was cut off, and may have been paid for.
    let end = ending.is().unwrap_or(End::Paid);
    // Before the client hears the end, after which it may ask again at once.
    if end != End::Unpaid {
        let is_whole = end == End::Whole;
        let whole = |body| Whole { status, headers, body, is_whole };
        recording.end(running, whole, clock.now_ms());
    } else {
        drop((recording, running));
    }
    for part in last {
        // One that is gone comes back for the answer.
        let Some(client) = listener.take() else { return };
        listener = client.hand(part).await;
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
    /// The room it has, as much as the answer costs that it becomes.
    held: usize,
    /// There was no room for it.
    is_given_up: bool,
}

impl Recording {
    fn of(answers: &Answers) -> Self {
        let is_room = answers.lock().hold(COST_MIN);
        let held = if is_room { COST_MIN } else { 0 };
        Self { answers: answers.clone(), parts: Vec::new(), held, is_given_up: !is_room }
    }

    fn push(&mut self, part: &Bytes) {
        if self.is_given_up {
            return;
        }
        if self.answers.lock().hold(part.len()) {
            self.held += part.len();
            self.parts.push(part.clone());
        } else {
            self.is_given_up = true;
            self.release();
        }
    }

    /// Keeps the whole, if there was room for it, in the room that it has.
    fn end(mut self, running: Running, whole: impl FnOnce(Bytes) -> Whole, now_ms: u64) {
        if self.is_given_up {
            return;
        }
        let whole = whole(self.parts.concat().into());
        let mut kept = self.answers.lock();
        kept.held -= std::mem::take(&mut self.held);
        kept.keep(&running.key, whole, now_ms);
    }

    fn release(&mut self) {
        self.parts.clear();
        let held = std::mem::take(&mut self.held);
        let mut kept = self.answers.lock();
        kept.held -= held;
        kept.bytes -= held;
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
        if kept.make_room(whole.cost()) {
            kept.keep(&self.key, whole, now_ms);
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

    /// Makes room for so many bytes, which they have then; says whether there is as much. Nothing makes way in vain.
    fn make_room(&mut self, bytes: usize) -> bool {
        if self.held.saturating_add(bytes) > BYTES_MAX {
            return false;
        }
        while self.bytes + bytes > BYTES_MAX && self.forget_oldest() {}
        self.bytes += bytes;
        true
    }

    /// Makes room for a stream that is being kept.
    fn hold(&mut self, bytes: usize) -> bool {
        let is_room = self.make_room(bytes);
        self.held += if is_room { bytes } else { 0 };
        is_room
    }

    /// Keeps an answer, which has room.
    fn keep(&mut self, key: &str, whole: Whole, now_ms: u64) {
        self.done.push_back((now_ms, key.to_owned()));
        if let Some(entry) = self.entries.get_mut(key) {
            entry.answer = Some(whole);
        }
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
        let part = Bytes::from(vec![b'x'; BYTES_MAX / 2 - 2 * COST_MIN]);

        streams.iter_mut().for_each(|stream| stream.push(&part));

        assert!(matches!(begin(&answers, "old", b"r", 0), Ok(Begun::Now(_))), "the oldest makes way");
        assert_eq!(streams.each_ref().map(|stream| stream.is_given_up), [false, false, true]);
        assert_eq!(answers.lock().bytes, BYTES_MAX - 2 * COST_MIN);
        let kept = streams.map(|stream| is_kept(&answers, stream));
        assert_eq!(kept, [true, true, false]);
        assert_eq!(answers.lock().held, 0, "nothing is being kept");
        answers.lock().forget_old(AGE_MS_MAX);
        assert_eq!(answers.lock().bytes, 0, "nothing is left of them");
    }

    /// Ends a stream; says whether it is given again.
    fn is_kept(answers: &Answers, stream: Recording) -> bool {
        let key = format!("stream {}", answers.lock().entries.len());
        let Ok(Begun::Now(running)) = begin(answers, &key, b"r", 0) else { panic!("{key} is new") };
        stream.end(running, |body| Whole { body, ..whole(0) }, 0);
        matches!(begin(answers, &key, b"r", 0), Ok(Begun::Before(_)))
    }

    #[test]
    fn a_stream_has_room_for_its_head_from_the_beginning() {
        let [mut fits, mut large] = [(); 2].map(|()| Recording::of(&Answers::default()));

        fits.push(&Bytes::from(vec![b'x'; BYTES_MAX - COST_MIN]));
        large.push(&Bytes::from(vec![b'x'; BYTES_MAX - COST_MIN + 1]));

        assert_eq!([fits.is_given_up, large.is_given_up], [false, true]);
        assert!(Recording::of(&fits.answers).is_given_up, "another one");
        assert!(is_kept(&fits.answers.clone(), fits));
    }

    #[test]
    fn nothing_makes_way_for_a_part_that_has_no_room_even_so() {
        let answers = Answers::default();
        end(&answers, "old", 10, 0);
        let mut stream = Recording::of(&answers);
        let part = Bytes::from(vec![b'x'; BYTES_MAX / 2]);

        stream.push(&part);
        stream.push(&part);

        assert!(stream.is_given_up);
        assert!(matches!(begin(&answers, "old", b"r", 0), Ok(Begun::Before(_))));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up_and_finds_its_stream_broken_off() {
        let (listener, body) = Listener::new(Duration::from_millis(10));
        let mut listener = Some(listener);
        for _ in 0..UNREAD_MAX {
            listener = listener.expect("it may read later").hand(Bytes::from_static(b"x")).await;
        }

        let left = listener.expect("as much may wait").hand(Bytes::from_static(b"x")).await;

        assert!(left.is_none());
        let read: Vec<_> = body.into_data_stream().collect().await;
        assert_eq!(read.len(), UNREAD_MAX + 1);
        assert!(read.last().is_some_and(Result::is_err), "an end would be taken for the answer's");
    }

    #[tokio::test]
    async fn a_stream_that_is_kept_is_handed_on_in_parts_that_are_yet_to_be_gathered() {
        let answers = Answers::default();
        let Ok(Begun::Now(running)) = begin(&answers, "k", b"r", 0) else { panic!("it is new") };
        let (ending, (head, answer)) = (Ending::default(), oneshot::channel());
        ending.note(End::Whole);
        let mut response = Response::new(Body::from("x"));
        response.extensions_mut().insert(Gathered);

        record(running, Clock::start(0), response, &ending, head).await;

        let answer = answer.await.expect("answered");
        assert!(answer.extensions().get::<Gathered>().is_none());
        assert_eq!(to_bytes(answer.into_body(), 10).await.expect("whole"), "x");
        assert!(matches!(begin(&answers, "k", b"r", 0), Ok(Begun::Before(_))));
    }
}
