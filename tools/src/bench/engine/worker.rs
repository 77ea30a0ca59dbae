//! A worker process as a node starts it, driven over its pipes without a node.

use std::io::BufReader;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use engine::WorkerOptions;
use engine::frame::{
    FromWorker, Generate, JobKey, ModelInfo, Request, ToWorker, TokenLogprob, read_frame, write_frame,
};

/// A process that has a model in memory.
pub(super) struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What it says it has loaded.
    pub(super) info: ModelInfo,
    /// From its start until it takes jobs.
    pub(super) load: Duration,
}

/// One answer, and when its parts came.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) tokens_in: u32,
    pub(super) ids: Vec<u32>,
    pub(super) logprobs: Vec<TokenLogprob>,
    /// When each token came, from when the first of all jobs was sent.
    pub(super) times: Vec<Duration>,
    /// When it ended.
    pub(super) ended: Duration,
}

impl Worker {
    /// Starts a worker of this program and waits until it takes jobs.
    pub(super) fn start(program: &Path, options: &WorkerOptions) -> Result<Self> {
        let begun = Instant::now();
        let mut child = Command::new(program)
            .args(["worker", "--options", &serde_json::to_string(options)?])
            .envs(options.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let input = child.stdin.take().context("a pipe")?;
        let mut output = BufReader::new(child.stdout.take().context("a pipe")?);
        let info = loop {
            match read_frame(&mut output)?.context("the worker ended while it loaded")? {
                FromWorker::Ready(info) => break info,
                FromWorker::LoadFailed { error } => bail!("the worker cannot load the model: {error}"),
                FromWorker::Loading { .. }
                | FromWorker::Prepared { .. }
                | FromWorker::Tokens { .. }
                | FromWorker::Vectors { .. }
                | FromWorker::Failed { .. }
                | FromWorker::Pong { .. } => {}
            }
        };
        Ok(Self { child, input, output, info, load: begun.elapsed() })
    }

    /// Answers all requests at once, in their order.
    pub(super) fn run(&mut self, requests: &[Generate]) -> Result<Vec<Answer>> {
        let begun = Instant::now();
        for (number, request) in (0..).zip(requests) {
            let request = Request::Generate(request.clone());
            write_frame(&mut self.input, &ToWorker::Start { job: key(number), request, up_to: u32::MAX })?;
        }
        let mut answers = vec![Answer::default(); requests.len()];
        let mut running = requests.len();
        while running > 0 {
            match read_frame(&mut self.output)?.context("the worker ended")? {
                FromWorker::Prepared { job, tokens_in } => answers[number_of(job)].tokens_in = tokens_in,
                FromWorker::Tokens { job, ids, logprobs, finish, .. } => {
                    let answer = &mut answers[number_of(job)];
                    answer.times.resize(answer.times.len() + ids.len(), begun.elapsed());
                    answer.ids.extend(ids);
                    answer.logprobs.extend(logprobs.unwrap_or_default());
                    if finish.is_some() {
                        answer.ended = begun.elapsed();
                        running -= 1;
                    }
                }
                FromWorker::Failed { error, .. } => bail!("a job failed: {error}"),
                FromWorker::LoadFailed { error } => bail!("the worker failed: {error}"),
                FromWorker::Loading { .. }
                | FromWorker::Ready(_)
                | FromWorker::Vectors { .. }
                | FromWorker::Pong { .. } => {}
            }
        }
        Ok(answers)
    }

    /// Ends it in order.
    pub(super) fn end(mut self) -> Result<()> {
        drop(self.input);
        let status = self.child.wait().context("cannot wait for the worker")?;
        ensure!(status.success(), "the worker ended with {status}");
        Ok(())
    }
}

fn key(number: u32) -> JobKey {
    JobKey(u128::from(number).to_be_bytes())
}

fn number_of(job: JobKey) -> usize {
    usize::try_from(u128::from_be_bytes(job.0)).expect("one of our own keys")
}
