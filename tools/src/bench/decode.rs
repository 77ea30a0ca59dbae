//! The decode rate through the mesh against the same engine called directly, in alternating pairs.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use engine::frame::{ChatMessage, Generate, Prompt, Sampling};
use engine::{Engine, WorkerOptions};
use node::api::views::JobBody;
use node::models::Models;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::cluster::{Cluster, run_job};
use super::samples::{Samples, Spread};

/// The model that is decoded with.
pub(super) const MODEL: &str = "smollm2-135m";

/// An answer that does not end by itself.
const PROMPT: &str = "Write a long story about a lighthouse keeper and the sea, with many details.";

/// Tokens of each answer: several payment windows.
const TOKENS: u32 = 192;

/// What the process with the engine is told.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The worker's options as JSON
    options: String,
}

/// Rates in tokens per second.
#[derive(Debug, Serialize)]
pub(super) struct Decode {
    pub(super) threads: usize,
    pub(super) mesh: Spread,
    pub(super) direct: Spread,
    /// Mesh by direct, of each pair.
    pub(super) ratio: Spread,
    /// From the API to the first token with a real model, in milliseconds; mostly the prompt.
    pub(super) first_token_ms: Spread,
}

/// An answer of the engine that is called directly.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    text: String,
    tokens: usize,
    tokens_per_s: f64,
}

/// Measures pairs with an engine on so many threads; which of a pair is first alternates.
pub(super) async fn measure(program: &Path, threads: usize, pairs: usize) -> Result<Decode> {
    let cluster = Cluster::start(program, MODEL, &["--threads", &threads.to_string()]).await?;
    let mut direct_engine = Direct::start(threads)?;
    let body = cluster.job(PROMPT, TOKENS);
    // What is used for the first time is slow everywhere.
    let expected = direct_engine.run(&body).await?;
    run_job(&cluster.consumer.client, &body).await?;
    let (mut mesh, mut direct, mut ratio) = (Samples::default(), Samples::default(), Samples::default());
    let mut first_token = Samples::default();
    for pair in 0..pairs {
        let before = if pair % 2 == 0 { Some(direct_engine.run(&body).await?) } else { None };
        let run = run_job(&cluster.consumer.client, &body).await?;
        let answer = match before {
            Some(answer) => answer,
            None => direct_engine.run(&body).await?,
        };
        ensure!(
            run.text == answer.text && run.text == expected.text,
            "the mesh and the engine differ:\n{}\n{}",
            run.text,
            answer.text
        );
        mesh.push(run.tokens_per_s());
        direct.push(answer.tokens_per_s);
        ratio.push(run.tokens_per_s() / answer.tokens_per_s);
        first_token.push_time(run.first);
    }
    cluster.end().await?;
    Ok(Decode {
        threads,
        mesh: mesh.spread(),
        direct: direct.spread(),
        ratio: ratio.spread(),
        first_token_ms: first_token.spread(),
    })
}

/// The engine in a process of its own, because it reads its number of threads at the start of one.
struct Direct {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Direct {
    fn start(threads: usize) -> Result<Self> {
        let models = Models::open()?;
        let file = models.resolve(MODEL, &|_| {})?;
        let options = models.served(&file, file.price, 1, Some(threads)).worker_options();
        let mut child = Command::new(std::env::current_exe().context("cannot find this program")?)
            .args(["bench", "direct", &serde_json::to_string(&options)?])
            .envs(options.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the engine")?;
        let input = child.stdin.take().context("a pipe")?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        Ok(Self { _child: child, input, output })
    }

    async fn run(&mut self, body: &JobBody) -> Result<Answer> {
        self.input.write_all(format!("{}\n", serde_json::to_string(body)?).as_bytes()).await?;
        let line = self.output.next_line().await?.context("the engine has ended")?;
        serde_json::from_str(&line).context("the engine's answer")
    }
}

/// Answers jobs, one JSON object on each line, until there are no more.
pub(super) fn run_directly(arguments: &Arguments) -> Result<()> {
    let options: WorkerOptions = serde_json::from_str(&arguments.options).context("the options")?;
    let engine = Engine::load(&options)?;
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = complete(&engine, &serde_json::from_str(&line?)?)?;
        writeln!(output, "{}", serde_json::to_string(&answer)?)?;
        output.flush()?;
    }
    Ok(())
}

/// Times the parts of an answer as a client of the mesh does.
fn complete(engine: &Engine, body: &JobBody) -> Result<Answer> {
    let begun = Instant::now();
    let mut parts: Vec<(Duration, usize)> = Vec::new();
    let completion = engine.generate(generate_of(body), |part| {
        if !part.ids.is_empty() {
            parts.push((begun.elapsed(), part.ids.len()));
        }
    })?;
    let ((first, first_tokens), (last, _)) = (parts[0], parts[parts.len() - 1]);
    let tokens = completion.ids.len();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred tokens")]
    let tokens_per_s = (tokens - first_tokens) as f64 / (last - first).as_secs_f64();
    Ok(Answer { text: completion.text, tokens, tokens_per_s })
}

fn generate_of(body: &JobBody) -> Generate {
    let content = body.prompt.clone().unwrap_or_default();
    let sampling = Sampling {
        temperature: body.temperature.unwrap_or_default(),
        seed: body.seed.unwrap_or_default(),
        ..Sampling::default()
    };
    Generate {
        prompt: Prompt::Chat(vec![ChatMessage { role: "user".to_owned(), content }]),
        sampling,
        max_tokens: body.max_tokens.unwrap_or_default(),
        resume: Vec::new(),
        logprobs: None,
        form: None,
    }
}
