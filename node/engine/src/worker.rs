//! The worker process: reads frames, computes jobs in turn, writes frames.
//!
//! Three threads besides the caller's: one *reads* frames and answers pings, one *prepares* prompts, one
//! *computes*. A turn of the computing thread reads one chunk of one prompt and then makes one token for every
//! job that may have one, so that no job waits longer than a turn; commands are taken between turns. What a turn is
//! for a model that makes vectors is in `embedding`.
//!
//! Output blocks when the node does not read it, and then everything waits: a node must always read.

mod embedding;

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
    Finish, FromWorker, JobError, JobKey, ModelInfo, Request, ToWorker, makes_no_vectors, read_frame,
    write_frame,
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

// ---------------------------------------------------------------------------------------------------- reader

/// What the computing thread is told between turns.
enum Command {
    Begun(JobKey, Serial, u32),
    Prepared(JobKey, Serial, Prepared),
    Granted(JobKey, u32),
    Cancelled(JobKey),
}

/// A request that is ready to be computed.
enum Prepared {
    Text(Box<PreparedJob>),
    /// The tokens of each input.
    Inputs(Vec<Vec<u32>>),
}

impl Prepared {
    fn tokens_in(&self) -> usize {
        match self {
            Self::Text(prepared) => prepared.tokens_in,
            Self::Inputs(inputs) => inputs.iter().map(Vec::len).sum(),
        }
    }
}

/// Tells a job from an earlier one with the same key.
type Serial = u64;

struct Preparation {
    job: JobKey,
    serial: Serial,
    request: Request,
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
        let words = vocabulary.clone();
        let prepare = move |request| match request {
            Request::Generate(generate) => {
                let prepared = words.prepare(Arc::new(generate))?;
                Ok(Prepared::Text(Box::new(prepared)))
            }
            Request::Embed(_) => Err(makes_no_vectors()),
        };
        let compute = Compute { model, vocabulary, shared: self.shared.clone(), jobs: VecDeque::new() };
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

impl<M: Model, W: Write> Computing for Compute<M, W> {
    fn has_work(&mut self) -> bool {
        self.jobs.iter_mut().any(|job| job.prefilling().is_some() || job.decoding().is_some())
    }

    fn on_command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Begun(key, serial, up_to) => {
                self.jobs.push_back(Job { key, serial, up_to, phase: Phase::Preparing });
                Ok(())
            }
            Command::Prepared(key, serial, Prepared::Text(prepared)) => {
                self.on_prepared(key, serial, *prepared)
            }
            Command::Prepared(_, _, Prepared::Inputs(_)) => {
                Err(anyhow!("inputs were prepared for a model of text"))
            }
            Command::Granted(key, up_to) => {
                for job in self.jobs.iter_mut().filter(|job| job.key == key) {
                    job.up_to = job.up_to.max(up_to);
                }
                Ok(())
            }
            Command::Cancelled(key) => self.on_cancelled(key),
        }
    }

    fn turn(&mut self) -> Result<()> {
        self.prefill_one().and_then(|()| self.decode_all()).and_then(|()| self.send_parts())
    }
}

impl<M: Model, W: Write> Compute<M, W> {
    fn on_prepared(&mut self, key: JobKey, serial: Serial, prepared: PreparedJob) -> Result<()> {
        let Some(job) = self.jobs.iter_mut().find(|job| job.key == key && job.serial == serial) else {
            return Ok(());
        };
        match Generation::open(&self.model, self.vocabulary.clone(), prepared) {
            Ok(generation) => {
                job.phase = Phase::Generating(Box::new(generation));
                self.send_parts()
            }
            Err(error) => self.fail(&[key], &error),
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

    /// Reads a chunk of one prompt, and puts its job behind the others.
    fn prefill_one(&mut self) -> Result<()> {
        let Some(at) = self.jobs.iter_mut().position(|job| job.prefilling().is_some()) else { return Ok(()) };
        let mut job = self.jobs.remove(at).expect("just found");
        let generation = job.generation().expect("it is prefilling");
        let result = generation.prefill(&self.model);
        let key = job.key;
        self.jobs.push_back(job);
        result.or_else(|error| self.fail(&[key], &error))
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
            let key = job.key;
            let Some(generation) = job.generation() else { return true };
            let part = generation.take_part();
            let is_last = part.as_ref().is_some_and(|part| part.finish.is_some());
            parts.extend(part.map(|part| part.into_frame(key)));
            let fault = generation.take_fault().map(|error| FromWorker::Failed { job: key, error });
            let is_over = is_last || fault.is_some();
            parts.extend(fault);
            !is_over
        });
        parts.iter().try_for_each(|frame| self.shared.send(frame))
    }

    /// Fails the jobs of a batch, because an error does not say whose it is.
    fn fail_decoding(&mut self, error: &anyhow::Error) -> Result<()> {
        let keys: Vec<_> =
            self.jobs.iter_mut().filter_map(|job| job.decoding().is_some().then_some(job.key)).collect();
        self.fail(&keys, error)
    }

    /// Fails jobs, and with them the process if none can be computed any more: the node starts another.
    fn fail(&mut self, keys: &[JobKey], error: &anyhow::Error) -> Result<()> {
        for key in keys {
            tracing::error!(job = %key, error = %format!("{error:#}"), "A job failed");
            self.jobs.retain(|job| job.key != *key);
            self.shared.fail(*key, JobError::Internal(format!("{error:#}")))?;
        }
        self.model.check()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{self, PipeReader, PipeWriter};
    use std::process::{Command as Process, Stdio};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::direct::Engine;
    use crate::frame::{Form, Generate, Prompt, Sampling};
    use crate::options::{DeviceChoice, FakeOptions, ModelSource};

    /// A worker on threads of this process, with the node's ends of its pipes.
    struct Worker {
        to: Option<PipeWriter>,
        from: PipeReader,
        thread: JoinHandle<Result<()>>,
    }

    impl Worker {
        fn start(options: WorkerOptions) -> Self {
            let (input, to) = io::pipe().expect("a pipe");
            let (from, output) = io::pipe().expect("a pipe");
            Self { to: Some(to), from, thread: thread::spawn(move || run(options, input, output)) }
        }

        fn ready(options: WorkerOptions) -> Self {
            let mut worker = Self::start(options);
            while !matches!(worker.next(), FromWorker::Ready(_)) {}
            worker
        }

        fn send(&mut self, frame: &ToWorker) {
            write_frame(self.to.as_mut().expect("not closed"), frame).expect("the worker reads");
        }

        fn next(&mut self) -> FromWorker {
            read_frame(&mut self.from).expect("valid frames").expect("the worker writes")
        }

        /// Reads until every job named has ended.
        fn answers(&mut self, jobs: &[JobKey]) -> BTreeMap<JobKey, Answer> {
            let mut answers: BTreeMap<_, _> = jobs.iter().map(|job| (*job, Answer::default())).collect();
            while answers.values().any(|answer| answer.end.is_none()) {
                self.collect(&mut answers);
            }
            answers
        }

        fn collect(&mut self, answers: &mut BTreeMap<JobKey, Answer>) {
            match self.next() {
                FromWorker::Prepared { job, tokens_in } => {
                    answers.get_mut(&job).expect("started").tokens_in = tokens_in;
                }
                FromWorker::Tokens { job, index, ids, bytes, finish, .. } => {
                    let answer = answers.get_mut(&job).expect("started");
                    assert!(answer.end.is_none(), "a frame after the last");
                    assert_eq!(index as usize, answer.ids.len(), "a token is missing or twice");
                    answer.ids.extend(ids);
                    answer.text += std::str::from_utf8(&bytes).expect("whole characters");
                    answer.end = finish.map(Ok);
                    answer.frames += 1;
                }
                FromWorker::Failed { job, error } => {
                    answers.get_mut(&job).expect("started").end = Some(Err(error));
                }
                FromWorker::Pong { .. } => {}
                other @ (FromWorker::Loading { .. }
                | FromWorker::Vectors { .. }
                | FromWorker::Ready(_)
                | FromWorker::LoadFailed { .. }) => {
                    panic!("unexpected {other:?}")
                }
            }
        }

        fn end(mut self) -> Result<()> {
            self.to = None;
            self.thread.join().expect("the worker does not panic")
        }

        /// Waits for it to end by itself: its input stays open, since the end of input is a clean end of its own.
        fn fails(self) -> anyhow::Error {
            self.thread.join().expect("the worker does not panic").expect_err("it cannot go on")
        }
    }

    #[derive(Debug, Default, PartialEq)]
    struct Answer {
        ids: Vec<u32>,
        text: String,
        tokens_in: u32,
        end: Option<Result<Finish, JobError>>,
        frames: usize,
    }

    fn fake(fake: FakeOptions) -> WorkerOptions {
        WorkerOptions {
            model: ModelSource::Fake(fake),
            device: DeviceChoice::Cpu,
            slots: 4,
            context_max: None,
            threads: None,
        }
    }

    fn paced() -> WorkerOptions {
        fake(FakeOptions { tokens_per_s: 500, ..FakeOptions::default() })
    }

    fn generate(prompt: &str, max_tokens: u32) -> Generate {
        Generate {
            prompt: Prompt::Text(prompt.to_owned()),
            sampling: Sampling::default(),
            max_tokens,
            resume: Vec::new(),
            logprobs: None,
            form: None,
        }
    }

    fn start(number: u8, generate: Generate, up_to: u32) -> ToWorker {
        ToWorker::Start { job: job(number), request: Request::Generate(generate), up_to }
    }

    fn job(number: u8) -> JobKey {
        JobKey([number; 16])
    }

    fn ended(answer: &Answer) -> Finish {
        *answer.end.as_ref().expect("it ended").as_ref().expect("it did not fail")
    }

    #[test]
    fn an_instant_answer_comes_in_one_frame() {
        let mut worker = Worker::ready(fake(FakeOptions::default()));
        worker.send(&start(1, generate("hello", 64), u32::MAX));
        let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
        assert_eq!((answer.ids.len(), answer.tokens_in, ended(&answer)), (64, 2, Finish::Length));
        assert_eq!(answer.frames, 1);
        worker.end().expect("a clean end");
    }

    #[test]
    fn jobs_together_get_the_answers_they_would_get_alone() {
        let requests: Vec<_> =
            (0..4).map(|number| generate(&"job ".repeat(100 * (number + 1)), 40)).collect();
        let mut worker = Worker::ready(paced());
        for (number, request) in (0..).zip(&requests) {
            worker.send(&start(number, request.clone(), u32::MAX));
        }
        let answers = worker.answers(&[job(0), job(1), job(2), job(3)]);
        for (number, request) in (0..).zip(requests) {
            let alone = Engine::load(&fake(FakeOptions::default())).expect("loads").generate(request, |_| ());
            let alone = alone.expect("no fault");
            assert_eq!((&answers[&job(number)].ids, &answers[&job(number)].text), (&alone.ids, &alone.text));
        }
    }

    #[test]
    fn a_job_pauses_at_its_grant_and_goes_on_with_the_next() {
        let mut worker = Worker::ready(fake(FakeOptions::default()));
        worker.send(&start(1, generate("pay first", 50), 10));
        let mut answers = BTreeMap::from([(job(1), Answer::default())]);
        for granted in [10, 30, 50] {
            worker.send(&ToWorker::Grant { job: job(1), up_to: granted });
            // A lower grant takes nothing back.
            worker.send(&ToWorker::Grant { job: job(1), up_to: 1 });
            while answers[&job(1)].ids.len() < granted as usize {
                worker.collect(&mut answers);
            }
            worker.send(&ToWorker::Ping(u64::from(granted)));
            assert!(matches!(worker.next(), FromWorker::Pong { .. }), "no token beyond the grant");
        }
        assert_eq!(ended(&answers[&job(1)]), Finish::Length);
    }

    #[test]
    fn a_cancelled_job_ends_within_a_token_and_says_so() {
        let mut worker = Worker::ready(paced());
        worker.send(&start(1, generate("long", 8000), u32::MAX));
        let mut answers = BTreeMap::from([(job(1), Answer::default())]);
        while answers[&job(1)].ids.len() < 3 {
            worker.collect(&mut answers);
        }
        worker.send(&ToWorker::Cancel { job: job(1) });
        let begun = Instant::now();
        while answers[&job(1)].end.is_none() {
            worker.collect(&mut answers);
        }
        assert_eq!(ended(&answers[&job(1)]), Finish::Cancelled);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        // Its key and its slot are free again.
        worker.send(&start(1, generate("again", 2), u32::MAX));
        assert_eq!(ended(&worker.answers(&[job(1)])[&job(1)]), Finish::Length);
    }

    #[test]
    fn a_job_paused_at_its_grant_can_be_cancelled() {
        let mut worker = Worker::ready(paced());
        worker.send(&start(1, generate("unpaid", 5), 0));
        worker.send(&ToWorker::Cancel { job: job(1) });
        let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
        assert_eq!((ended(&answer), answer.ids.len()), (Finish::Cancelled, 0));
    }

    #[test]
    fn an_answer_ends_where_its_form_does() {
        let mut worker = Worker::ready(fake(FakeOptions::default()));
        let schema = r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"], "additionalProperties": false}"#;
        let form = Some(Form::Json { schema: schema.to_owned() });
        let formed = Generate { form, ..generate("who", 64) };
        worker.send(&start(1, formed.clone(), u32::MAX));
        let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
        assert_eq!((answer.text.as_str(), ended(&answer)), (r#"{"name": "", "age": -0}"#, Finish::Stop));
        // As many tokens as it needs are enough, and one fewer is not.
        let needed = u32::try_from(answer.ids.len()).expect("small");
        for (max_tokens, finish) in [(needed, Finish::Stop), (needed - 1, Finish::Length)] {
            worker.send(&start(2, Generate { max_tokens, ..formed.clone() }, u32::MAX));
            assert_eq!(ended(&worker.answers(&[job(2)])[&job(2)]), finish);
        }
    }

    #[test]
    fn no_tokens_asked_for_is_an_answer_at_once() {
        let mut worker = Worker::ready(paced());
        worker.send(&start(1, generate("nothing", 0), 0));
        let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
        assert_eq!((ended(&answer), answer.ids.len(), answer.tokens_in), (Finish::Length, 0, 2));
    }

    #[test]
    fn a_job_beyond_the_slots_is_refused_at_once_and_a_later_one_taken() {
        let mut worker = Worker::ready(paced());
        for number in 0..5 {
            worker.send(&start(number, generate("busy", 100), u32::MAX));
        }
        let answers = worker.answers(&[job(0), job(1), job(2), job(3), job(4)]);
        assert_eq!(answers[&job(4)].end, Some(Err(JobError::TooManyJobs)));
        worker.send(&start(4, generate("now", 1), u32::MAX));
        assert_eq!(ended(&worker.answers(&[job(4)])[&job(4)]), Finish::Length);
    }

    #[test]
    fn a_bad_request_fails_alone() {
        let mut worker = Worker::ready(fake(FakeOptions { context_length: 100, ..FakeOptions::default() }));
        let mut strange = generate("x", 1);
        strange.sampling.temperature = f32::NAN;
        worker.send(&start(1, strange, 1));
        worker.send(&start(2, generate(&"long".repeat(100), 1), 1));
        worker.send(&start(3, generate("", 1), 1));
        worker.send(&start(4, Generate { resume: vec![9999], ..generate("x", 4) }, 4));
        worker.send(&start(5, generate("fine", 500), 500));
        let answers = worker.answers(&[1, 2, 3, 4, 5].map(job));
        assert!(matches!(answers[&job(1)].end, Some(Err(JobError::BadRequest(_)))));
        let too_long = JobError::PromptTooLong { tokens: 100, context: 100, text: None };
        assert_eq!(answers[&job(2)].end, Some(Err(too_long)));
        assert!(matches!(answers[&job(3)].end, Some(Err(JobError::BadRequest(_)))));
        assert!(matches!(answers[&job(4)].end, Some(Err(JobError::BadRequest(_)))));
        // The context ends this one.
        assert_eq!((ended(&answers[&job(5)]), answers[&job(5)].ids.len()), (Finish::Length, 99));
        let form = |schema: &str| Some(Form::Json { schema: schema.to_owned() });
        worker.send(&start(6, Generate { form: form("{\"type\": 7}"), ..generate("x", 4) }, 4));
        worker.send(&start(7, Generate { form: form("true"), ..generate("x", 4) }, 4));
        let answers = worker.answers(&[6, 7].map(job));
        assert!(matches!(answers[&job(6)].end, Some(Err(JobError::BadRequest(_)))), "{answers:?}");
        assert!(matches!(answers[&job(7)].end, Some(Err(JobError::BadForm(_)))), "{answers:?}");
    }

    #[test]
    fn an_error_of_the_device_fails_the_jobs_it_was_computing_and_no_later_one() {
        let mut worker = Worker::ready(paced());
        worker.send(&start(1, generate("[[fail=3]]", 100), u32::MAX));
        let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
        assert!(matches!(answer.end, Some(Err(JobError::Internal(_)))), "{answer:?}");
        assert_eq!(answer.ids.len(), 3);
        worker.send(&start(2, generate("fine", 5), u32::MAX));
        assert_eq!(ended(&worker.answers(&[job(2)])[&job(2)]), Finish::Length);
    }

    #[test]
    fn a_device_that_cannot_be_used_any_more_ends_the_worker_once_its_jobs_have_failed() {
        let mut worker = Worker::ready(paced());
        // Granted no token, the other is no part of the batch that fails: its end is that of the process.
        worker.send(&start(1, generate("other", 100), 0));
        worker.send(&start(2, generate("[[break=3]]", 100), u32::MAX));
        let mut answers = BTreeMap::from([1, 2].map(|number| (job(number), Answer::default())));
        while answers[&job(2)].end.is_none() {
            worker.collect(&mut answers);
        }
        assert!(matches!(answers[&job(2)].end, Some(Err(JobError::Internal(_)))), "{answers:?}");
        assert_eq!(answers[&job(1)].end, None);
        let error = format!("{:#}", worker.fails());
        assert!(error.contains("device"), "{error}");
    }

    #[test]
    fn a_stop_string_ends_the_answer_and_is_not_sent() {
        let mut worker = Worker::ready(fake(FakeOptions::default()));
        worker.send(&start(1, generate("stop", 40), u32::MAX));
        let whole = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for").text;
        let stop: String = whole.chars().skip(50).take(7).collect();
        let before = whole.split(&stop).next().expect("at least one part").to_owned();
        let mut request = generate("stop", 40);
        request.sampling.stop = vec![stop];
        worker.send(&start(2, request.clone(), u32::MAX));
        let answer = worker.answers(&[job(2)]).remove(&job(2)).expect("asked for");
        assert_eq!((&answer.text, ended(&answer)), (&before, Finish::Stop));

        // Whoever resumes at any token adds just what is missing.
        for index in 0..answer.ids.len() {
            let sent = sent_up_to(&mut worker, &request, index);
            worker.send(&start(
                3,
                Generate { resume: answer.ids[..index].to_vec(), ..request.clone() },
                u32::MAX,
            ));
            let mut answers = BTreeMap::from([(job(3), Answer { ids: vec![0; index], ..Answer::default() })]);
            while answers[&job(3)].end.is_none() {
                worker.collect(&mut answers);
            }
            assert_eq!(sent + &answers[&job(3)].text, before, "resumed at {index}");
        }
    }

    /// Returns the text that comes with the first `count` tokens.
    fn sent_up_to(worker: &mut Worker, request: &Generate, count: usize) -> String {
        worker.send(&start(9, request.clone(), u32::try_from(count).expect("small")));
        let mut answers = BTreeMap::from([(job(9), Answer::default())]);
        while answers[&job(9)].ids.len() < count {
            worker.collect(&mut answers);
        }
        worker.send(&ToWorker::Cancel { job: job(9) });
        while answers[&job(9)].end.is_none() {
            worker.collect(&mut answers);
        }
        answers.remove(&job(9)).expect("just there").text
    }

    #[test]
    fn pings_are_answered_while_computing_and_tell_a_hang() {
        let mut worker = Worker::ready(paced());
        worker.send(&start(1, generate("[[hang=3]]", 100), u32::MAX));
        let mut answers = BTreeMap::from([(job(1), Answer::default())]);
        while answers[&job(1)].ids.len() < 3 {
            worker.collect(&mut answers);
        }
        let pongs = [1, 2].map(|number| {
            thread::sleep(Duration::from_millis(50));
            worker.send(&ToWorker::Ping(number));
            worker.next()
        });
        let [FromWorker::Pong { turns, busy: true, .. }, FromWorker::Pong { turns: later, busy: true, .. }] =
            pongs
        else {
            panic!("unexpected {pongs:?}")
        };
        assert_eq!(turns, later);
        // The end of input ends even a worker that hangs.
        worker.end().expect("a clean end");
    }

    #[test]
    fn shutdown_and_the_end_of_input_end_a_worker_that_generates() {
        for shutdown in [true, false] {
            let mut worker = Worker::ready(paced());
            worker.send(&start(1, generate("long", 8000), u32::MAX));
            assert!(matches!(worker.next(), FromWorker::Prepared { .. }));
            if shutdown {
                worker.send(&ToWorker::Shutdown);
            }
            let begun = Instant::now();
            worker.end().expect("a clean end");
            assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        }
    }

    #[test]
    fn a_model_that_cannot_be_loaded_is_said_before_the_end() {
        let options = FakeOptions { fail_to_load: Some("no such file".to_owned()), ..FakeOptions::default() };
        let mut worker = Worker::start(fake(options));
        assert!(matches!(worker.next(), FromWorker::Loading { .. }));
        let FromWorker::LoadFailed { error } = worker.next() else { panic!("expected a failure") };
        assert!(error.contains("no such file"));
        assert!(worker.fails().to_string().contains("cannot load the model"));
    }

    #[test]
    fn bytes_that_are_no_frame_end_the_worker_with_an_error() {
        let mut worker = Worker::ready(paced());
        worker.to.as_mut().expect("open").write_all(&[0xff; 16]).expect("the worker reads");
        assert!(worker.fails().to_string().contains("cannot read a frame"));
    }

    #[test]
    fn a_crash_on_request_ends_the_process_and_no_other() {
        const CHILD: &str = "ENGINE_TEST_CRASHING_CHILD";
        if std::env::var_os(CHILD).is_some() {
            run(fake(FakeOptions { crash_at: Some(2), ..FakeOptions::default() }), io::stdin(), io::sink())
                .expect("it crashes before it ends");
            return;
        }
        let name = "worker::tests::a_crash_on_request_ends_the_process_and_no_other";
        let mut child = Process::new(std::env::current_exe().expect("this test"))
            .args(["--exact", name])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test runs again");
        let mut input = child.stdin.take().expect("piped");
        write_frame(&mut input, &start(1, generate("crash", 9), 9)).expect("the child reads");
        let status = child.wait().expect("a child");
        assert!(!status.success(), "{status}");
    }
}
