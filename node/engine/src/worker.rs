//! The worker process: reads frames, computes jobs in turn, writes frames.
//!
//! Three threads besides the caller's: one *reads* frames and answers pings, one *prepares* prompts, one
//! *computes*. A turn of the computing thread reads one chunk of one prompt and then makes one token for every
//! job that may have one, so that no job waits longer than a turn; commands are taken between turns.
//!
//! Output blocks when the node does not read it, and then everything waits: a node must always read.

use std::any::Any;
use std::collections::{BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::frame::{
    Finish, FromWorker, Generate, JobError, JobKey, Request, ToWorker, read_frame, write_frame,
};
use crate::generation::{Generation, Part};
use crate::load::{Loaded, load};
use crate::model::{Model, PreparedJob, Vocabulary};
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

    let reader = Reader { shared: shared.clone(), commands: commands.clone(), requests, serial: 0 };
    spawn("reader", ended.clone(), move || reader.run(input))?;
    let stage = Stage { shared: shared.clone(), commands, preparations, inbox, ended: ended.clone() };
    spawn("compute", ended, move || stage.load_and_compute(&options))?;

    let result = end.recv().context("both threads say how they end")?;
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

// ---------------------------------------------------------------------------------------------- shared state

/// What all threads use.
struct Shared<W> {
    output: Mutex<Output<W>>,
    slots: u32,
    turns: AtomicU64,
    busy: AtomicBool,
    stop: AtomicBool,
}

/// The writer, and the jobs that something may still be said of.
struct Output<W> {
    writer: W,
    live: BTreeSet<JobKey>,
}

/// What came of a job's begin.
enum Begin {
    Begun,
    Full,
    Twice,
}

impl<W: Write> Shared<W> {
    fn new(writer: W, slots: u32) -> Self {
        Self {
            output: Mutex::new(Output { writer, live: BTreeSet::new() }),
            slots,
            turns: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    fn begin(&self, job: JobKey) -> Begin {
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
    fn send(&self, frame: &FromWorker) -> Result<()> {
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
    fn refuse(&self, job: JobKey, error: JobError) -> Result<()> {
        let output = &mut *self.output.lock().expect(NO_PANIC);
        write_frame(&mut output.writer, &FromWorker::Failed { job, error })
            .context("the node does not take frames any more")
    }

    fn fail(&self, job: JobKey, error: JobError) -> Result<()> {
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
        FromWorker::Prepared { job, .. } | FromWorker::Tokens { job, finish: None, .. } => {
            Some((*job, About::Running))
        }
        FromWorker::Tokens { job, finish: Some(_), .. } | FromWorker::Failed { job, .. } => {
            Some((*job, About::Ended))
        }
        FromWorker::Loading { .. }
        | FromWorker::Ready(_)
        | FromWorker::LoadFailed { .. }
        | FromWorker::Pong { .. } => None,
    }
}

// ---------------------------------------------------------------------------------------------------- reader

/// What the computing thread is told between turns.
enum Command {
    Begun(JobKey, Serial, u32),
    Prepared(JobKey, Serial, Box<PreparedJob>),
    Granted(JobKey, u32),
    Cancelled(JobKey),
}

/// Tells a job from an earlier one with the same key.
type Serial = u64;

struct Preparation {
    job: JobKey,
    serial: Serial,
    generate: Generate,
}

struct Reader<W> {
    shared: Arc<Shared<W>>,
    commands: SyncSender<Command>,
    requests: SyncSender<Preparation>,
    serial: Serial,
}

impl<W: Write> Reader<W> {
    fn run(mut self, mut input: impl Read) -> Result<()> {
        while let Some(frame) = read_frame(&mut input).context("cannot read a frame from the node")? {
            match frame {
                ToWorker::Start { job, request: Request::Generate(generate), up_to } => {
                    self.start(job, generate, up_to)?;
                }
                ToWorker::Grant { job, up_to } => self.command(Command::Granted(job, up_to))?,
                ToWorker::Cancel { job } => self.command(Command::Cancelled(job))?,
                ToWorker::Ping(number) => self.pong(number)?,
                ToWorker::Shutdown => break,
            }
        }
        Ok(())
    }

    fn start(&mut self, job: JobKey, generate: Generate, up_to: u32) -> Result<()> {
        if let Err(error) = generate.validate() {
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
        match self.requests.try_send(Preparation { job, serial: self.serial, generate }) {
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

// ------------------------------------------------------------------------------------------- load and prepare

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
            Ok(Loaded::Fake(model, vocabulary)) => self.compute(model, vocabulary),
            Err(error) => {
                shared.send(&FromWorker::LoadFailed { error: format!("{error:#}") })?;
                Err(error.context("cannot load the model"))
            }
        }
    }

    fn compute<M: Model>(self, model: M, vocabulary: Arc<impl Vocabulary>) -> Result<()> {
        let Self { shared, commands, preparations, inbox, ended } = self;
        let mut info = model.info().clone();
        info.slots = shared.slots;
        shared.send(&FromWorker::Ready(info))?;

        let preparer = Preparer { shared: shared.clone(), vocabulary: vocabulary.clone(), commands };
        spawn("prepare", ended, move || preparer.run(&preparations))?;
        Compute { model, vocabulary, shared, jobs: VecDeque::new() }.run(&inbox)
    }
}

struct Preparer<W, V> {
    shared: Arc<Shared<W>>,
    vocabulary: Arc<V>,
    commands: SyncSender<Command>,
}

impl<W: Write, V: Vocabulary> Preparer<W, V> {
    fn run(self, preparations: &Receiver<Preparation>) -> Result<()> {
        for Preparation { job, serial, generate } in preparations {
            match self.vocabulary.prepare(Arc::new(generate)) {
                Ok(prepared) => {
                    let tokens_in = u32::try_from(prepared.tokens_in).expect("bounded by the context");
                    self.shared.send(&FromWorker::Prepared { job, tokens_in })?;
                    let prepared = Command::Prepared(job, serial, Box::new(prepared));
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
}

// --------------------------------------------------------------------------------------------------- compute

struct Compute<M: Model, W> {
    model: M,
    vocabulary: Arc<dyn Vocabulary>,
    shared: Arc<Shared<W>>,
    /// At most one per slot. The first that has a prompt to read is the next to read a chunk of it.
    jobs: VecDeque<Job<M::Session>>,
}

struct Job<S> {
    key: JobKey,
    serial: Serial,
    up_to: u32,
    phase: Phase<S>,
}

enum Phase<S> {
    Preparing,
    Generating(Box<Generation<S>>),
}

impl<S> Job<S> {
    fn generation(&mut self) -> Option<&mut Generation<S>> {
        match &mut self.phase {
            Phase::Preparing => None,
            Phase::Generating(generation) => Some(generation),
        }
    }

    fn prefilling(&mut self) -> Option<&mut Generation<S>> {
        self.generation().filter(|generation| generation.is_prefilling() && !generation.is_finished())
    }

    fn decoding(&mut self) -> Option<&mut Generation<S>> {
        let up_to = self.up_to;
        self.generation().filter(|generation| {
            !generation.is_prefilling() && !generation.is_finished() && generation.index() < up_to
        })
    }
}

impl<M: Model, W: Write> Compute<M, W> {
    fn run(mut self, inbox: &Receiver<Command>) -> Result<()> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if !self.has_work() {
                let Ok(command) = inbox.recv() else { return Ok(()) };
                self.on_command(command)?;
            }
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.on_command(command)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            if self.has_work() {
                self.turn()?;
            }
        }
        Ok(())
    }

    fn has_work(&mut self) -> bool {
        self.jobs.iter_mut().any(|job| job.prefilling().is_some() || job.decoding().is_some())
    }

    fn on_command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Begun(key, serial, up_to) => {
                self.jobs.push_back(Job { key, serial, up_to, phase: Phase::Preparing });
                Ok(())
            }
            Command::Prepared(key, serial, prepared) => self.on_prepared(key, serial, *prepared),
            Command::Granted(key, up_to) => {
                for job in self.jobs.iter_mut().filter(|job| job.key == key) {
                    job.up_to = job.up_to.max(up_to);
                }
                Ok(())
            }
            Command::Cancelled(key) => self.on_cancelled(key),
        }
    }

    fn on_prepared(&mut self, key: JobKey, serial: Serial, prepared: PreparedJob) -> Result<()> {
        let Some(job) = self.jobs.iter_mut().find(|job| job.key == key && job.serial == serial) else {
            return Ok(());
        };
        match Generation::open(&self.model, self.vocabulary.clone(), prepared) {
            Ok(generation) => {
                job.phase = Phase::Generating(Box::new(generation));
                self.send_parts()
            }
            Err(error) => self.fail(key, &error),
        }
    }

    fn on_cancelled(&mut self, key: JobKey) -> Result<()> {
        let Some(at) = self.jobs.iter().position(|job| job.key == key) else { return Ok(()) };
        let job = self.jobs.remove(at).expect("just found");
        let part = match job.phase {
            Phase::Preparing => Part { finish: Some(Finish::Cancelled), ..Part::default() },
            Phase::Generating(generation) => generation.cancel(),
        };
        self.shared.send(&part.into_frame(key))
    }

    fn turn(&mut self) -> Result<()> {
        self.shared.busy.store(true, Ordering::Relaxed);
        let result = self.prefill_one().and_then(|()| self.decode_all()).and_then(|()| self.send_parts());
        self.shared.busy.store(false, Ordering::Relaxed);
        self.shared.turns.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Reads a chunk of one prompt, and puts its job behind the others.
    fn prefill_one(&mut self) -> Result<()> {
        let Some(at) = self.jobs.iter_mut().position(|job| job.prefilling().is_some()) else { return Ok(()) };
        let mut job = self.jobs.remove(at).expect("just found");
        let generation = job.generation().expect("it is prefilling");
        let result = generation.prefill(&self.model);
        let key = job.key;
        self.jobs.push_back(job);
        result.or_else(|error| self.fail(key, &error))
    }

    fn decode_all(&mut self) -> Result<()> {
        for _ in 0..self.model.tokens_per_turn() {
            if let Err(error) = self.decode_once() {
                return self.fail_decoding(&error);
            }
        }
        Ok(())
    }

    fn decode_once(&mut self) -> Result<()> {
        let mut generations: Vec<_> = self.jobs.iter_mut().filter_map(Job::decoding).collect();
        let mut batch: Vec<_> = generations.iter_mut().map(|generation| generation.decode_input()).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let logits = self.model.decode(&mut batch)?;
        generations.iter_mut().zip(logits).try_for_each(|(generation, logits)| generation.accept(logits))
    }

    fn send_parts(&mut self) -> Result<()> {
        let mut parts = Vec::new();
        self.jobs.retain_mut(|job| {
            let part = job.generation().and_then(Generation::take_part);
            let is_last = part.as_ref().is_some_and(|part| part.finish.is_some());
            parts.extend(part.map(|part| part.into_frame(job.key)));
            !is_last
        });
        parts.iter().try_for_each(|frame| self.shared.send(frame))
    }

    /// Fails the jobs of a batch, because an error does not say whose it is.
    fn fail_decoding(&mut self, error: &anyhow::Error) -> Result<()> {
        let keys: Vec<_> =
            self.jobs.iter_mut().filter_map(|job| job.decoding().is_some().then_some(job.key)).collect();
        keys.into_iter().try_for_each(|key| self.fail(key, error))
    }

    fn fail(&mut self, key: JobKey, error: &anyhow::Error) -> Result<()> {
        tracing::error!(job = %key, error = %format!("{error:#}"), "A job failed");
        self.jobs.retain(|job| job.key != key);
        self.shared.fail(key, JobError::Internal(format!("{error:#}")))
    }
}
