//! What the node's API is measured beside: a server of server-sent events that is nothing but axum, in a process of its
//! own, and answers at once with events of the same form.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use axum::response::sse::{Event, Sse};
use axum::routing::post;
use axum::{Json, Router};
use futures::Stream;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Tokens of a part, as an instant engine sends them.
const PART_TOKENS: u64 = 64;

/// One chunk of an answer, with the fields of the real ones.
#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Option<()>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// Serves on a free port, which it prints, until its standard input ends.
pub(crate) async fn serve() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("no port")?;
    let mut output = std::io::stdout();
    writeln!(output, "{}", listener.local_addr()?)?;
    output.flush()?;
    let router = Router::new().route("/v1/chat/completions", post(answer));
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // As the node does; without it small writes may wait, and the comparison would flatter the node.
        let _ = stream.set_nodelay(true);
    });
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    let parent_gone = async move { while let Ok(Some(_)) = input.next_line().await {} };
    axum::serve(listener, router).with_graceful_shutdown(parent_gone).await.context("cannot serve")
}

async fn answer(Json(asked): Json<Value>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let tokens = asked["max_tokens"].as_u64().unwrap_or(1);
    let model = asked["model"].as_str().unwrap_or_default().to_owned();
    let parts = tokens.div_ceil(PART_TOKENS);
    let text = move |part: u64| {
        " bako".repeat(usize::try_from((tokens - part * PART_TOKENS).min(PART_TOKENS)).unwrap_or(0))
    };
    let said = move |number: u64| {
        let text = if (1..=parts).contains(&number) { Some(text(number - 1)) } else { None };
        let delta = match &text {
            Some(text) => Delta { role: None, content: Some(text) },
            None if number == 0 => Delta { role: Some("assistant"), content: Some("") },
            None => Delta { role: None, content: None },
        };
        let finish_reason = (number == parts + 1).then_some("length");
        let choices = [Choice { index: 0, delta, logprobs: None, finish_reason }];
        let chunk = Chunk {
            id: "chatcmpl-00000000000000000000000000000000",
            object: "chat.completion.chunk",
            created: 1_700_000_000,
            model: &model,
            choices,
            usage: None,
        };
        // Three ends: why, the usage, and that there is no more.
        if number == parts + 3 {
            Event::default().data("[DONE]")
        } else {
            Event::default().json_data(chunk).unwrap_or_default()
        }
    };
    Sse::new(futures::stream::iter((0..parts + 4).map(move |number| Ok(said(number)))))
}

/// The server as a process; it ends when this is dropped.
pub(super) struct Bare {
    pub(super) address: SocketAddr,
    _process: Child,
}

impl Bare {
    /// Starts it: this very program, told to be it.
    pub(super) async fn start() -> Result<Self> {
        let own: PathBuf = std::env::current_exe().context("this program has no path")?;
        let mut process = Command::new(own)
            .args(["bench", "bare"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the server to compare with")?;
        let output = process.stdout.take().context("its output is a pipe")?;
        let line = BufReader::new(output).lines().next_line().await?.context("it ended")?;
        Ok(Self { address: line.parse().context("it printed no address")?, _process: process })
    }
}
