//! Speaks with the running node over its local API, which it finds by `<data>/node.json`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::auth::{NodeFile, not_running};
use crate::api::views::{ErrorView, JobBody, JobEvent};
use crate::exit::{Failure, FailureKind};

/// The node is on this machine.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Bounds the wait for an answer; checking a large ledger takes longest.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// Bounds one event of a job.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A node that can be asked.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    authorisation: String,
    pid: u32,
}

impl Client {
    /// Finds the node of a data folder; `address` is used in place of the one it wrote down.
    pub fn open(data: &Path, address: Option<SocketAddr>) -> Result<Self, Failure> {
        let file = NodeFile::read(data)?;
        let http = reqwest::Client::builder()
            // A proxy of the user's is for the world, not for this machine.
            .no_proxy()
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| Failure::internal(format!("cannot prepare requests: {error}")))?;
        let address = address.unwrap_or(file.api);
        Ok(Self { http, address, authorisation: file.token.header(), pid: file.pid })
    }

    /// Returns where the node's API is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the node's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks with GET, below `/sharemesh/v1/`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.read(self.send(self.request(Method::GET, path).timeout(ANSWER_MAX)).await?).await
    }

    /// Asks with GET and a query.
    pub async fn get_with<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        self.get(&format!("{path}?{}", query.join("&"))).await
    }

    /// Asks with POST.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let request = self.request(Method::POST, path).timeout(ANSWER_MAX).json(body);
        self.read(self.send(request).await?).await
    }

    /// Tells with POST; the answer says nothing.
    pub async fn tell(&self, path: &str) -> Result<(), Failure> {
        self.send(self.request(Method::POST, path).timeout(ANSWER_MAX)).await.map(drop)
    }

    /// Asks with DELETE.
    pub async fn delete(&self, path: &str) -> Result<(), Failure> {
        self.send(self.request(Method::DELETE, path).timeout(ANSWER_MAX)).await.map(drop)
    }

    /// Asks with DELETE for what is left.
    pub async fn delete_for<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.read(self.send(self.request(Method::DELETE, path).timeout(ANSWER_MAX)).await?).await
    }

    /// Submits a job and returns its events, the last of them `Done` or `Failed`; dropping them cancels the job.
    pub async fn submit(&self, body: &JobBody) -> Result<Events, Failure> {
        let response = self.send(self.request(Method::POST, "jobs").json(body)).await?;
        Ok(Events { bytes: Box::pin(response.bytes_stream()), buffer: Vec::new() })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}/sharemesh/v1/{path}", self.address);
        self.http.request(method, url).header("authorization", &self.authorisation)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.no_answer(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(Failure::new(
                FailureKind::Unauthorised,
                format!(
                    "what answers at {} is not the node of this data folder: check --data and --api, or start the node with `sharemesh up`",
                    self.address
                ),
            ));
        }
        let text = response.text().await.unwrap_or_default();
        Err(serde_json::from_str::<ErrorView>(&text)
            .map_or_else(|_| Failure::internal(format!("the node answered {status}: {text}")), Failure::from))
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let bytes = response.bytes().await.map_err(|error| self.no_answer(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::internal(format!(
                "the node answered something else than expected ({error}): is it the same version?"
            ))
        })
    }

    fn no_answer(&self, error: &reqwest::Error) -> Failure {
        if error.is_connect() {
            return not_running(&format!("no node answers at {}", self.address));
        }
        if error.is_timeout() {
            return Failure::internal(format!(
                "the node at {} did not answer in time: see its log",
                self.address
            ));
        }
        lost_node(error)
    }
}

fn lost_node(error: &reqwest::Error) -> Failure {
    not_running(&format!("the connection to the node ended ({error})"))
}

/// Writes a text as a part of an address.
pub(super) fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

type Bytes = std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>;

/// The events of one job.
pub struct Events {
    bytes: Bytes,
    buffer: Vec<u8>,
}

impl Events {
    /// Returns the next event; an error if the stream ends without the last one. Cancel safe.
    pub async fn next(&mut self) -> Result<JobEvent, Failure> {
        loop {
            if let Some(event) = take_event(&mut self.buffer)? {
                return Ok(event);
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(Failure::internal("the node sent an event without end: is it the same version?"));
            }
            match self.bytes.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(lost_node(&error)),
                None => return Err(not_running("the node ended while the job ran")),
            }
        }
    }
}

/// Takes the first whole event out of a buffer of server-sent events.
fn take_event(buffer: &mut Vec<u8>) -> Result<Option<JobEvent>, Failure> {
    while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
        let block: Vec<u8> = buffer.drain(..end + 2).collect();
        let block = String::from_utf8_lossy(&block);
        let data: String =
            block.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
        if data.is_empty() {
            // A comment that keeps the connection.
            continue;
        }
        let event = serde_json::from_str(&data);
        return event
            .map(Some)
            .map_err(|error| Failure::internal(format!("an event cannot be read: {error}")));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_whole_from_pieces() {
        let mut buffer = b": keep\n\nevent: text\ndata: {\"type\":\"text\",\"text\":\"a\",".to_vec();
        assert_eq!(take_event(&mut buffer), Ok(None));
        buffer.extend_from_slice(b"\"index\":0,\"tokens\":1}\n\nevent");

        let event = take_event(&mut buffer);

        let text = JobEvent::Text {
            text: "a".to_owned(),
            index: 0,
            tokens: 1,
            ids: Vec::new(),
            logprobs: Vec::new(),
        };
        assert_eq!(event, Ok(Some(text)));
        assert_eq!(buffer, b"event");
    }

    #[test]
    fn a_query_is_escaped() {
        assert_eq!(escape("a b/c&d"), "a%20b%2Fc%26d");
    }

    #[test]
    fn a_folder_without_a_node_says_how_to_start_one() {
        let folder = tempfile::tempdir().expect("temporary folder");

        let failure = Client::open(folder.path(), None).expect_err("no node");

        assert_eq!((failure.kind, failure.kind.exit_code()), (FailureKind::NotRunning, 3));
    }
}
