//! The worker processes of this node: one child per served model, each watched by a task of its own.

mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use engine::WorkerOptions;
use engine::frame::{FromWorker, ModelInfo, ToWorker};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;
use watch::{Order, Watch};

/// Bounds the models of one node: each is a process with weights in memory.
pub const WORKERS_MAX: usize = 16;

/// Bounds the frames that wait for one worker; a worker reads between two turns.
const ORDERS_MAX: usize = 1024;

/// Bounds the events that wait for the driver; a watcher waits when it is full, and its worker behind it.
const EVENTS_MAX: usize = 1024;

/// What happens to a worker.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "the large one is the frequent one, and few wait")]
pub enum WorkerEvent {
    /// Its process runs.
    Started {
        /// The process id.
        pid: Option<u32>,
    },
    /// It loads; repeated.
    Loading {
        /// Part done, 0 to 100.
        percent: u8,
        /// What is being done, in words.
        what: String,
    },
    /// It takes jobs.
    Ready(Box<ModelInfo>),
    /// It says something about a job: `Prepared`, `Tokens` or `Failed`.
    Frame(FromWorker),
    /// It is gone, and all its jobs with it.
    Lost {
        /// Why.
        reason: LostReason,
    },
    /// It will be started again; follows `Lost`.
    Restarting {
        /// After so long.
        in_ms: u64,
    },
    /// It cannot be used and is not started again; nothing follows.
    GaveUp {
        /// Why, and what to do.
        error: String,
    },
    /// It ended because it was told to; nothing follows.
    Stopped,
}

/// Why a worker was lost.
#[derive(Clone, Debug, PartialEq)]
pub enum LostReason {
    /// The process could not be started.
    NotStarted(String),
    /// The process ended by itself.
    Crashed {
        /// How, where it is known.
        status: Option<ExitStatus>,
        /// The last it said in its log.
        last_words: String,
    },
    /// It computed one turn for longer than it may.
    Hung {
        /// For so long.
        for_ms: u64,
    },
    /// It did not answer a ping.
    Silent {
        /// For so long.
        for_ms: u64,
    },
    /// It said something that is no frame.
    BadFrame(String),
}

impl LostReason {
    /// Returns the reason's name for records and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotStarted(_) => "not_started",
            Self::Crashed { .. } => "crashed",
            Self::Hung { .. } => "hung",
            Self::Silent { .. } => "silent",
            Self::BadFrame(_) => "bad_frame",
        }
    }
}

impl fmt::Display for LostReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(error) => write!(formatter, "the worker could not be started: {error}"),
            Self::Crashed { status, last_words } => {
                formatter.write_str("the worker crashed")?;
                if let Some(status) = status {
                    write!(formatter, " ({status})")?;
                }
                if last_words.is_empty() { Ok(()) } else { write!(formatter, ": {last_words}") }
            }
            Self::Hung { for_ms } => {
                write!(formatter, "the worker hung: it computed one turn for {for_ms} ms")
            }
            Self::Silent { for_ms } => write!(formatter, "the worker did not answer for {for_ms} ms"),
            Self::BadFrame(error) => write!(formatter, "the worker sent a broken frame: {error}"),
        }
    }
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The worker has too much to read.
    #[error("the worker's queue is full")]
    Full,
    /// No worker of that model is ready.
    #[error("the worker is not ready")]
    NotReady,
    /// No worker reads as much at once.
    #[error("the prompt is larger than a worker takes")]
    TooLarge,
}

/// How patient a watcher is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time between pings.
    pub ping_every: Duration,
    /// Silence that counts as loss. The worker's reading thread answers even while others compute.
    pub silent_max: Duration,
    /// One turn that counts as a hang: a chunk of a prompt and a token of each job, on a slow and busy machine.
    pub turn_max: Duration,
    /// Time between two words of a worker that loads, generous because requantising a model is silent for long.
    pub loading_max: Duration,
    /// How long a worker that was told to end may take.
    pub stop_max: Duration,
    /// The wait before the first restart; each next one doubles.
    pub backoff_first: Duration,
    /// The longest wait before a restart.
    pub backoff_max: Duration,
    /// A worker that was ready for so long starts again with the first wait.
    pub stable_after: Duration,
    /// So many starts in a row may end before the worker is ready.
    pub failed_starts_max: u32,
}

impl Limits {
    /// The limits of a node.
    pub const NODE: Self = Self {
        ping_every: Duration::from_secs(1),
        silent_max: Duration::from_secs(10),
        turn_max: Duration::from_secs(20),
        loading_max: Duration::from_secs(120),
        stop_max: Duration::from_secs(3),
        backoff_first: Duration::from_millis(500),
        backoff_max: Duration::from_secs(30),
        stable_after: Duration::from_secs(60),
        failed_starts_max: 3,
    };
}

/// The program whose `worker` command a child runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Arguments; the options as JSON follow.
    pub arguments: Vec<String>,
}

impl Program {
    /// Returns the running executable, whatever its name, with the arguments that make it a worker.
    pub fn current() -> Result<Self, Failure> {
        let path = std::env::current_exe()
            .map_err(|error| Failure::internal(format!("cannot find the path of this program: {error}")))?;
        Ok(Self { path, arguments: vec!["worker".to_owned(), "--options".to_owned()] })
    }
}

/// All workers of a node, by the name of their model.
#[derive(Debug)]
pub struct Workers {
    program: Program,
    limits: Limits,
    workers: BTreeMap<String, Worker>,
    events: mpsc::Receiver<(String, u64, WorkerEvent)>,
    sender: mpsc::Sender<(String, u64, WorkerEvent)>,
}

#[derive(Debug)]
struct Worker {
    orders: mpsc::Sender<Order>,
    /// The run that is ready: frames for an earlier one must not reach a later one.
    ready: Option<u64>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Workers {
    /// Makes a manager without workers.
    #[must_use]
    pub fn new(program: Program, limits: Limits) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        Self { program, limits, workers: BTreeMap::new(), events, sender }
    }

    /// Starts a worker; its events have the name of the model.
    pub fn start(&mut self, model: &str, options: &WorkerOptions) -> Result<(), Failure> {
        if self.workers.contains_key(model) {
            return Err(Failure::usage(format!("`{model}` is already served")));
        }
        if self.workers.len() >= WORKERS_MAX {
            return Err(Failure::usage(format!(
                "a node serves at most {WORKERS_MAX} models: unload one first"
            )));
        }
        let environment = options.environment();
        let options = serde_json::to_string(options)
            .map_err(|error| Failure::internal(format!("the worker's options cannot be written: {error}")))?;

        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let stop = CancellationToken::new();
        let watch = Watch {
            model: model.to_owned(),
            program: self.program.clone(),
            options,
            environment,
            limits: self.limits,
            inbox,
            events: self.sender.clone(),
            stop: stop.clone(),
        };
        let task = tokio::spawn(watch.run());
        self.workers.insert(model.to_owned(), Worker { orders, ready: None, stop, task });
        Ok(())
    }

    /// Gives a frame to a worker, or says at once why not.
    pub fn send(&self, model: &str, frame: &ToWorker) -> Result<(), SendError> {
        let worker = self.workers.get(model).ok_or(SendError::NotReady)?;
        let run = worker.ready.ok_or(SendError::NotReady)?;
        let bytes = engine::frame::encode(frame).map_err(|_| SendError::TooLarge)?.into();
        worker.orders.try_send(Order { run, bytes }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::NotReady,
        })
    }

    /// Tells a worker to end; `Stopped` follows. Without such a worker nothing happens.
    pub fn stop(&mut self, model: &str) {
        if let Some(worker) = self.workers.get_mut(model) {
            worker.ready = None;
            worker.stop.cancel();
        }
    }

    /// Returns whether a worker of this model takes jobs.
    #[must_use]
    pub fn is_ready(&self, model: &str) -> bool {
        self.workers.get(model).is_some_and(|worker| worker.ready.is_some())
    }

    /// Returns the next event and the model it is about; waits for ever if there are no workers. Cancel safe.
    pub async fn next(&mut self) -> (String, WorkerEvent) {
        let (model, run, event) = self.events.recv().await.expect("this manager keeps a sender itself");
        self.note(&model, run, &event);
        (model, event)
    }

    fn note(&mut self, model: &str, run: u64, event: &WorkerEvent) {
        let Some(worker) = self.workers.get_mut(model) else { return };
        match event {
            WorkerEvent::Ready(_) if !worker.stop.is_cancelled() => worker.ready = Some(run),
            WorkerEvent::Ready(_) | WorkerEvent::Lost { .. } => worker.ready = None,
            WorkerEvent::GaveUp { .. } | WorkerEvent::Stopped => {
                self.workers.remove(model);
            }
            WorkerEvent::Started { .. }
            | WorkerEvent::Loading { .. }
            | WorkerEvent::Frame(_)
            | WorkerEvent::Restarting { .. } => {}
        }
    }

    /// Ends all workers, those that do not listen by force, and waits for it.
    pub async fn shutdown(mut self) {
        for worker in self.workers.values() {
            worker.stop.cancel();
        }
        // Watchers that find the queue full must not wait for a reader that will not come.
        self.events.close();
        for (_, worker) in std::mem::take(&mut self.workers) {
            // A watcher that panicked has dropped its child, which kills it.
            let _ = worker.task.await;
        }
    }
}
