//! The worker process: reads frames, computes jobs in turn, writes frames.
//!
//! Three threads besides the caller's: one *reads* frames and answers pings, one *prepares* prompts, one
//! *computes*. A turn of the computing thread reads one chunk of one prompt and then makes one token for every
//! job that may have one, so that no job waits longer than a turn; commands are taken between turns. What a turn is
//! for a model that generates is in `generating`, for one that makes vectors in `embedding`.
//!
//! Output blocks when the node does not read it, and then everything waits: a node must always read.

mod embedding;
mod generating;
mod reader;
mod shared;

use std::any::Any;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow};

use self::reader::{Command, Preparation, Prepared, Reader};
use self::shared::Shared;
use crate::frame::{FromWorker, JobError, ModelInfo, Request};
use crate::load::{Loaded, load};
use crate::model::{Model, Vocabulary};
use crate::options::WorkerOptions;

/// Bounds the commands between two turns; the reader waits when it is full, which a turn ends.
const COMMANDS_MAX: usize = 1024;

/// Prompts that may wait for templating, for each slot: cancelled ones wait there too.
const PREPARATIONS_PER_SLOT_MAX: usize = 4;

/// Loads the model, says so, and serves until the end of `input`, which ends even a running computation.
///
/// Returns an error if loading fails, if the computing thread panics, or if a frame cannot be read or written;
/// the process is then to be ended and started again.
pub fn run(
    options: WorkerOptions,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
) -> Result<()> {
    options.validate()?;
    let shared = Arc::new(Shared::new(output, options.slots));
    let (commands, inbox) = sync_channel(COMMANDS_MAX);
    let (requests, preparations) = sync_channel(PREPARATIONS_PER_SLOT_MAX * options.slots as usize);
    let (ended, end) = sync_channel(2);

    // Open until somebody has said how it ends: a reader that fails must not be overtaken by a compute thread that ends
    // because the reader is gone.
    let open = requests.clone();
    let reader = Reader { shared: shared.clone(), commands: commands.clone(), requests, serial: 0 };
    spawn("reader", ended.clone(), move || reader.run(input))?;
    let stage = Stage { shared: shared.clone(), commands, preparations, inbox, ended: ended.clone() };
    spawn("compute", ended, move || stage.load_and_compute(&options))?;

    let result = end.recv().context("both threads say how they end")?;
    drop(open);
    shared.stop.store(true, Ordering::Relaxed);
    result
}

/// Starts a thread whose result, or panic, is sent to `ended`.
fn spawn(
    name: &str,
    ended: SyncSender<Result<()>>,
    run: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let guarded = move || {
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(describe(&*panic)));
        // Only the first end counts; nobody listens to a second.
        let _ = ended.try_send(result);
    };
    thread::Builder::new().name(name.to_owned()).spawn(guarded).context("cannot start a thread")?;
    Ok(())
}

fn describe(panic: &(dyn Any + Send)) -> anyhow::Error {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    anyhow!("a thread of the worker panicked: {}", text.as_deref().unwrap_or("no message"))
}

/// What the computing thread starts with.
struct Stage<W> {
    shared: Arc<Shared<W>>,
    commands: SyncSender<Command>,
    preparations: Receiver<Preparation>,
    inbox: Receiver<Command>,
    ended: SyncSender<Result<()>>,
}

impl<W: Write + Send + 'static> Stage<W> {
    fn load_and_compute(self, options: &WorkerOptions) -> Result<()> {
        let shared = self.shared.clone();
        let mut progress = |percent, what: &str| {
            // A node that is gone shows with the next frame.
            let _ = shared.send(&FromWorker::Loading { percent, what: what.to_owned() });
        };
        match load(options, &mut progress) {
            Ok(Loaded::Fake(model, vocabulary)) => self.generate(*model, vocabulary),
            Ok(Loaded::Llama(model, vocabulary)) => self.generate(*model, vocabulary),
            Ok(Loaded::Bert(model, words)) => {
                let info = model.info().clone();
                let compute = embedding::Compute::new(*model, self.shared.clone());
                self.compute(info, embedding::preparing(words), compute)
            }
            Err(error) => {
                shared.send(&FromWorker::LoadFailed { error: format!("{error:#}") })?;
                Err(error.context("cannot load the model"))
            }
        }
    }

    fn generate<M: Model>(self, model: M, vocabulary: Arc<impl Vocabulary>) -> Result<()> {
        let info = model.info().clone();
        let prepare = generating::preparing(vocabulary.clone());
        let compute = generating::Compute::new(model, vocabulary, self.shared.clone());
        self.compute(info, prepare, compute)
    }

    /// Says that the model is there, and computes what it is asked until the input ends.
    fn compute(self, mut info: ModelInfo, prepare: impl Prepare, compute: impl Computing) -> Result<()> {
        let Self { shared, commands, preparations, inbox, ended } = self;
        info.slots = shared.slots;
        shared.send(&FromWorker::Ready(info))?;

        let preparer = Preparer { shared: shared.clone(), prepare, commands };
        spawn("prepare", ended, move || preparer.run(&preparations))?;
        run_turns(&shared, compute, &inbox)
    }
}

/// Turns a valid request to tokens.
trait Prepare: Fn(Request) -> Result<Prepared, JobError> + Send + 'static {}

impl<F: Fn(Request) -> Result<Prepared, JobError> + Send + 'static> Prepare for F {}

struct Preparer<W, P> {
    shared: Arc<Shared<W>>,
    prepare: P,
    commands: SyncSender<Command>,
}

impl<W: Write, P: Prepare> Preparer<W, P> {
    fn run(self, preparations: &Receiver<Preparation>) -> Result<()> {
        for Preparation { job, serial, request } in preparations {
            match self.prepare(request) {
                Ok(prepared) => {
                    let tokens_in = u32::try_from(prepared.tokens_in()).expect("bounded by the frame");
                    self.shared.send(&FromWorker::Prepared { job, tokens_in })?;
                    let prepared = Command::Prepared(job, serial, prepared);
                    self.commands.send(prepared).map_err(|_| anyhow!("the computing thread has ended"))?;
                }
                Err(error) => {
                    self.shared.fail(job, error)?;
                    let forget = Command::Cancelled(job);
                    self.commands.send(forget).map_err(|_| anyhow!("the computing thread has ended"))?;
                }
            }
        }
        Ok(())
    }

    /// Prepares a request; a panic over a strange prompt is that job's failure and no other's.
    fn prepare(&self, request: Request) -> Result<Prepared, JobError> {
        let prepare = AssertUnwindSafe(|| (self.prepare)(request));
        catch_unwind(prepare).unwrap_or_else(|panic| Err(JobError::Internal(describe(&*panic).to_string())))
    }
}

/// What the computing thread does between the frames that it reads.
trait Computing {
    /// Says whether a turn would do anything.
    fn has_work(&mut self) -> bool;

    /// Takes note of what the node says.
    fn on_command(&mut self, command: Command) -> Result<()>;

    /// Computes a little for the jobs that there are.
    fn turn(&mut self) -> Result<()>;
}

/// Computes turn by turn, and takes commands between turns, until nobody sends any.
fn run_turns<W>(shared: &Shared<W>, mut compute: impl Computing, inbox: &Receiver<Command>) -> Result<()> {
    while !shared.stop.load(Ordering::Relaxed) {
        if !compute.has_work() {
            let Ok(command) = inbox.recv() else { return Ok(()) };
            compute.on_command(command)?;
        }
        loop {
            match inbox.try_recv() {
                Ok(command) => compute.on_command(command)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        if compute.has_work() {
            shared.busy.store(true, Ordering::Relaxed);
            let result = compute.turn();
            shared.busy.store(false, Ordering::Relaxed);
            shared.turns.fetch_add(1, Ordering::Relaxed);
            result?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
