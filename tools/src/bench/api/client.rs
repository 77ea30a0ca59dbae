//! A client of streams that costs little itself: it counts events and keeps times, and understands nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

/// So much is kept of what came last.
const TAIL: usize = 400;

/// The end of every stream that came to its end.
const LAST: &[u8] = b"data: [DONE]\n\n";

/// Events of an answer beside its tokens: the role, why it ended, the usage, and the end.
pub(super) const EVENTS_BESIDE_TOKENS: u64 = 4;

/// Somebody who asks one server again and again, on connections that stay open.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    body: String,
}

/// What came of one request.
pub(super) struct Asked {
    pub(super) status: StatusCode,
    /// Whether it was told when to come again.
    pub(super) has_retry_after: bool,
    /// Until the first token, of an answer; until the status, of a refusal.
    pub(super) first: Duration,
    /// Until the end.
    pub(super) whole: Duration,
    /// Whether all events came.
    pub(super) is_whole: bool,
    /// The last that came, to be shown where it is not the end.
    pub(super) last: String,
}

/// Counts the events of a stream as they come.
#[derive(Default)]
struct Events {
    count: u64,
    tail: Vec<u8>,
}

impl Events {
    /// Takes bytes; returns how many more events are whole.
    fn take(&mut self, bytes: &[u8]) -> u64 {
        // Each event is one line and an empty one.
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let before = self.count / 2;
        self.count += lines;
        let kept = bytes.len().min(TAIL);
        self.tail.extend_from_slice(&bytes[bytes.len() - kept..]);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
        self.count / 2 - before
    }

    fn is_whole(&self) -> bool {
        self.tail.ends_with(LAST)
    }
}

impl Client {
    /// Returns who asks the server at `address` for an answer of so many tokens, and its usage.
    pub(super) fn new(address: std::net::SocketAddr, model: &str, tokens: u32) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build().context("no client")?;
        let body = json!({
            "model": model, "max_tokens": tokens, "seed": 1, "stream": true,
            "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": "Why is the sky blue? Answer in a few words."}],
        });
        Ok(Self { http, url: format!("http://{address}/v1/chat/completions"), body: body.to_string() })
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(&self) -> Result<Response> {
        let request = self.http.post(&self.url).header("content-type", "application/json");
        request.body(self.body.clone()).send().await.context("the server gave no answer")
    }

    /// Asks once and reads to the end.
    pub(super) async fn ask(&self) -> Result<Asked> {
        let begun = Instant::now();
        let mut response = self.send().await?;
        let status = response.status();
        let has_retry_after = response.headers().contains_key("retry-after");
        let mut first = (status != StatusCode::OK).then(|| begun.elapsed());
        let mut events = Events::default();
        while let Some(bytes) = response.chunk().await.context("an answer broke off")? {
            events.take(&bytes);
            // The first event says who speaks, the second has the first token.
            if first.is_none() && events.count >= 4 {
                first = Some(begun.elapsed());
            }
        }
        let whole = begun.elapsed();
        Ok(Asked {
            status,
            has_retry_after,
            first: first.unwrap_or(whole),
            whole,
            is_whole: events.is_whole(),
            last: String::from_utf8_lossy(&events.tail).into_owned(),
        })
    }

    /// Asks once, and counts the events of the answer in `seen` as they come; returns how many there were in all.
    pub(super) async fn follow(&self, seen: &Arc<AtomicU64>) -> Result<u64> {
        let mut response = self.send().await?;
        let status = response.status();
        if status != StatusCode::OK {
            let words: Value = response.json().await.unwrap_or_default();
            anyhow::bail!("refused with {status}: {words}");
        }
        let mut events = Events::default();
        while let Some(bytes) = response.chunk().await.context("an answer broke off")? {
            seen.fetch_add(events.take(&bytes), Ordering::Relaxed);
        }
        let last = String::from_utf8_lossy(&events.tail);
        ensure!(events.is_whole(), "an answer ended with {last}");
        Ok(events.count / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_however_they_are_cut() {
        let stream = b"data: {}\n\ndata: {\"a\":\"\\n\"}\n\ndata: [DONE]\n\n";
        for size in 1..stream.len() {
            let mut events = Events::default();
            let sum: u64 = stream.chunks(size).map(|part| events.take(part)).sum();
            assert_eq!((sum, events.is_whole()), (3, true), "in parts of {size}");
        }
        let mut cut = Events::default();
        cut.take(&stream[..stream.len() - 1]);
        assert!(!cut.is_whole());
    }
}
