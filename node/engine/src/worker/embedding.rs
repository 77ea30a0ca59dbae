//! What the computing thread does for a model that makes vectors: in each turn the next few of one job.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, anyhow};

use super::reader::{Command, Prepared, Serial};
use super::shared::Shared;
use super::{Computing, Prepare};
use crate::frame::{Finish, FromWorker, JobError, JobKey, Request, makes_no_text};
use crate::model::bert::Bert;
use crate::wordpiece::WordPieces;

/// Tokens of the texts that are read in one turn, unless one text alone has more: large enough for the kernels to be
/// efficient, small enough for the other jobs not to wait long.
const TURN_TOKENS_MAX: usize = 512;

/// Bounds the vectors of one turn, so that they fit a frame.
const TURN_VECTORS_MAX: usize = 64;

/// Turns a valid request for vectors to tokens.
pub(super) fn preparing(words: Arc<WordPieces>) -> impl Prepare {
    move |request| match request {
        Request::Embed(embed) => words.prepare(&embed).map(Prepared::Inputs),
        Request::Generate(_) => Err(makes_no_text()),
    }
}

pub(super) struct Compute<W> {
    model: Bert,
    shared: Arc<Shared<W>>,
    /// At most one per slot; the first that may have a vector is the next to get some.
    jobs: VecDeque<Job>,
}

struct Job {
    key: JobKey,
    serial: Serial,
    /// How many vectors it may have.
    up_to: usize,
    /// The tokens of each input, once they are there.
    inputs: Vec<Vec<u32>>,
    /// Vectors that were made.
    made: usize,
}

impl Job {
    /// Returns the inputs whose vectors are made in the next turn of this job; none if it may have no more.
    fn next(&self) -> &[Vec<u32>] {
        let end = self.inputs.len().min(self.up_to).min(self.made + TURN_VECTORS_MAX);
        let waiting = self.inputs.get(self.made..end).unwrap_or_default();
        let mut tokens = 0;
        let fitting = waiting.iter().take_while(|input| {
            tokens += input.len();
            tokens <= TURN_TOKENS_MAX
        });
        &waiting[..fitting.count().max(1).min(waiting.len())]
    }

    /// Says why nothing follows, once nothing does.
    fn finish(&self) -> Option<Finish> {
        (self.made == self.inputs.len()).then_some(Finish::Stop)
    }
}

impl<W: Write> Compute<W> {
    pub(super) fn new(model: Bert, shared: Arc<Shared<W>>) -> Self {
        Self { model, shared, jobs: VecDeque::new() }
    }

    fn on_cancelled(&mut self, key: JobKey) -> Result<()> {
        let Some(at) = self.jobs.iter().position(|job| job.key == key) else { return Ok(()) };
        let job = self.jobs.remove(at).expect("just found");
        self.shared.send(&vectors(&job, Vec::new(), Some(Finish::Cancelled)))
    }

    /// Fails a job, and with it the process if none can be computed any more: the node starts another.
    fn fail(&self, key: JobKey, error: &anyhow::Error) -> Result<()> {
        tracing::error!(job = %key, error = %format!("{error:#}"), "A job failed");
        self.shared.fail(key, JobError::Internal(format!("{error:#}")))?;
        self.model.check()
    }
}

impl<W: Write> Computing for Compute<W> {
    fn has_work(&mut self) -> bool {
        self.jobs.iter().any(|job| !job.next().is_empty())
    }

    fn on_command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Begun(key, serial, up_to) => {
                self.jobs.push_back(Job { key, serial, up_to: up_to as usize, inputs: Vec::new(), made: 0 });
            }
            Command::Prepared(key, serial, Prepared::Inputs(inputs)) => {
                let job = self.jobs.iter_mut().find(|job| job.key == key && job.serial == serial);
                if let Some(job) = job {
                    job.inputs = inputs;
                }
            }
            Command::Prepared(_, _, Prepared::Text(_)) => {
                return Err(anyhow!("a text was prepared for a model of vectors"));
            }
            Command::Granted(key, up_to) => {
                for job in self.jobs.iter_mut().filter(|job| job.key == key) {
                    job.up_to = job.up_to.max(up_to as usize);
                }
            }
            Command::Cancelled(key) => return self.on_cancelled(key),
        }
        Ok(())
    }

    /// Makes the next vectors of one job, and puts it behind the others.
    fn turn(&mut self) -> Result<()> {
        let Some(at) = self.jobs.iter().position(|job| !job.next().is_empty()) else { return Ok(()) };
        let mut job = self.jobs.remove(at).expect("just found");
        let texts: Vec<&[u32]> = job.next().iter().map(Vec::as_slice).collect();
        match self.model.embed(&texts) {
            Ok(made) => {
                let begin = job.made;
                job.made += made.len();
                let finish = job.finish();
                let index = u32::try_from(begin).expect("bounded by the inputs");
                let key = job.key;
                if finish.is_none() {
                    self.jobs.push_back(job);
                }
                self.shared.send(&FromWorker::Vectors { job: key, index, vectors: made, finish })
            }
            Err(error) => self.fail(job.key, &error),
        }
    }
}

fn vectors(job: &Job, vectors: Vec<Vec<f32>>, finish: Option<Finish>) -> FromWorker {
    let index = u32::try_from(job.made).expect("bounded by the inputs");
    FromWorker::Vectors { job: job.key, index, vectors, finish }
}
