//! What the threads of a worker share: the writer, with which jobs something may still be said of, and what they do now.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use anyhow::{Context, Result};

use crate::frame::{FromWorker, JobError, JobKey, write_frame};

/// What all threads use.
pub(super) struct Shared<W> {
    output: Mutex<Output<W>>,
    pub(super) slots: u32,
    pub(super) turns: AtomicU64,
    pub(super) busy: AtomicBool,
    pub(super) stop: AtomicBool,
}

/// The writer, and the jobs that something may still be said of.
struct Output<W> {
    writer: W,
    live: BTreeSet<JobKey>,
}

/// What came of a job's begin.
pub(super) enum Begin {
    Begun,
    Full,
    Twice,
}

impl<W: Write> Shared<W> {
    pub(super) fn new(writer: W, slots: u32) -> Self {
        Self {
            output: Mutex::new(Output { writer, live: BTreeSet::new() }),
            slots,
            turns: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    pub(super) fn begin(&self, job: JobKey) -> Begin {
        let live = &mut self.output.lock().expect(NO_PANIC).live;
        if live.contains(&job) {
            Begin::Twice
        } else if live.len() >= self.slots as usize {
            Begin::Full
        } else {
            live.insert(job);
            Begin::Begun
        }
    }

    /// Writes a frame; one about a job that ended is dropped, so that its last frame is the last.
    pub(super) fn send(&self, frame: &FromWorker) -> Result<()> {
        let output = &mut *self.output.lock().expect(NO_PANIC);
        if let Some((job, about)) = subject(frame) {
            let is_live = match about {
                About::Running => output.live.contains(&job),
                About::Ended => output.live.remove(&job),
            };
            if !is_live {
                return Ok(());
            }
        }
        write_frame(&mut output.writer, frame).context("the node does not take frames any more")
    }

    /// Writes that a job which never began has failed.
    pub(super) fn refuse(&self, job: JobKey, error: JobError) -> Result<()> {
        let output = &mut *self.output.lock().expect(NO_PANIC);
        write_frame(&mut output.writer, &FromWorker::Failed { job, error })
            .context("the node does not take frames any more")
    }

    pub(super) fn fail(&self, job: JobKey, error: JobError) -> Result<()> {
        self.send(&FromWorker::Failed { job, error })
    }
}

const NO_PANIC: &str = "nothing panics while it holds the output";

enum About {
    Running,
    Ended,
}

fn subject(frame: &FromWorker) -> Option<(JobKey, About)> {
    match frame {
        FromWorker::Prepared { job, .. }
        | FromWorker::Tokens { job, finish: None, .. }
        | FromWorker::Vectors { job, finish: None, .. } => Some((*job, About::Running)),
        FromWorker::Tokens { job, finish: Some(_), .. }
        | FromWorker::Vectors { job, finish: Some(_), .. }
        | FromWorker::Failed { job, .. } => Some((*job, About::Ended)),
        FromWorker::Loading { .. }
        | FromWorker::Ready(_)
        | FromWorker::LoadFailed { .. }
        | FromWorker::Pong { .. } => None,
    }
}
