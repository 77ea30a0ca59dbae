//! The thread that reads frames: it tells the others what the node says, and answers pings itself.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};

use anyhow::{Context, Result, anyhow};

use super::shared::{Begin, Shared};
use crate::frame::{FromWorker, JobError, JobKey, Request, ToWorker, read_frame};
use crate::model::PreparedJob;

/// What the computing thread is told between turns.
pub(super) enum Command {
    Begun(JobKey, Serial, u32),
    Prepared(JobKey, Serial, Prepared),
    Granted(JobKey, u32),
    Cancelled(JobKey),
}

/// A request that is ready to be computed.
pub(super) enum Prepared {
    Text(Box<PreparedJob>),
    /// The tokens of each input.
    Inputs(Vec<Vec<u32>>),
}

impl Prepared {
    pub(super) fn tokens_in(&self) -> usize {
        match self {
            Self::Text(prepared) => prepared.tokens_in,
            Self::Inputs(inputs) => inputs.iter().map(Vec::len).sum(),
        }
    }
}

/// Tells a job from an earlier one with the same key.
pub(super) type Serial = u64;

pub(super) struct Preparation {
    pub(super) job: JobKey,
    pub(super) serial: Serial,
    pub(super) request: Request,
}

pub(super) struct Reader<W> {
    pub(super) shared: Arc<Shared<W>>,
    pub(super) commands: SyncSender<Command>,
    pub(super) requests: SyncSender<Preparation>,
    pub(super) serial: Serial,
}

impl<W: Write> Reader<W> {
    pub(super) fn run(mut self, mut input: impl Read) -> Result<()> {
        while let Some(frame) = read_frame(&mut input).context("cannot read a frame from the node")? {
            match frame {
                ToWorker::Start { job, request, up_to } => self.start(job, request, up_to)?,
                ToWorker::Grant { job, up_to } => self.command(Command::Granted(job, up_to))?,
                ToWorker::Cancel { job } => self.command(Command::Cancelled(job))?,
                ToWorker::Ping(number) => self.pong(number)?,
                ToWorker::Shutdown => break,
            }
        }
        Ok(())
    }

    fn start(&mut self, job: JobKey, request: Request, up_to: u32) -> Result<()> {
        if let Err(error) = request.validate() {
            return self.shared.refuse(job, error);
        }
        match self.shared.begin(job) {
            Begin::Begun => {}
            Begin::Full => return self.shared.refuse(job, JobError::TooManyJobs),
            Begin::Twice => {
                tracing::warn!(%job, "Ignored a start with the key of a running job");
                return Ok(());
            }
        }
        self.serial += 1;
        self.command(Command::Begun(job, self.serial, up_to))?;
        match self.requests.try_send(Preparation { job, serial: self.serial, request }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                self.shared.fail(job, JobError::TooManyJobs)?;
                self.command(Command::Cancelled(job))
            }
            Err(TrySendError::Disconnected(_)) => Err(anyhow!("the preparing thread has ended")),
        }
    }

    fn command(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| anyhow!("the computing thread has ended"))
    }

    fn pong(&self, number: u64) -> Result<()> {
        let turns = self.shared.turns.load(Ordering::Relaxed);
        let busy = self.shared.busy.load(Ordering::Relaxed);
        self.shared.send(&FromWorker::Pong { number, turns, busy })
    }
}
