//! Keeps answers for whoever sends the same request again under the same `Idempotency-Key`, so that nobody pays twice.
//!
//! In memory only, for ten minutes. A request with a key runs to its end even if its client goes: the client is to come
//! back for the answer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

use super::error::Refusal;
use crate::api::Api;
use crate::api::caller::Caller;
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
}

impl Whole {
    async fn of(response: Response) -> Self {
        let (head, body) = response.into_parts();
        // It is ours, whole and in memory already.
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        Self { status: head.status, headers: head.headers, body }
    }

    fn cost(&self) -> usize {
        self.body.len() + COST_MIN
    }

    fn into_response(self, again: bool) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if again {
            response.headers_mut().insert("x-sharemesh-replayed", HeaderValue::from_static("true"));
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

/// Refuses a key for an answer that nobody keeps.
pub(super) fn check_whole(stream: bool) -> Result<(), Failure> {
    if stream {
        let words = "`Idempotency-Key` is for whole answers: leave it out, or do not set `stream`";
        return Err(Failure::usage(words).in_param("stream"));
    }
    Ok(())
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
    // A task of its own, which goes on when the client does not.
    let clock = api.clock;
    let task = tokio::spawn(async move {
        let (response, keep) = match run.await {
            Ok(response) => (response, true),
            Err(refusal) => {
                let paid = refusal.was_paid();
                (refusal.into_response(), paid)
            }
        };
        let whole = Whole::of(response).await;
        if keep {
            running.end(whole.clone(), clock.now_ms());
        }
        whole
    });
    let whole = task.await.map_err(|error| Failure::internal(format!("the request failed: {error}")))?;
    Ok(whole.into_response(false))
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
        if whole.cost() > BYTES_MAX {
            return;
        }
        kept.bytes += whole.cost();
        kept.done.push_back((now_ms, self.key.clone()));
        if let Some(entry) = kept.entries.get_mut(&self.key) {
            entry.answer = Some(whole);
        }
        while kept.bytes > BYTES_MAX && kept.forget_oldest() {}
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
        Whole { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::from(vec![b'x'; bytes]) }
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
}
