//! Watches one worker process: starts it, carries frames, notices that it is gone or hangs, starts it again.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::frame::{self, FromWorker, ToWorker};
use futures::{SinkExt as _, StreamExt as _};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::bytes::Bytes;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec, LinesCodec};
use tokio_util::sync::CancellationToken;

use super::{Limits, LostReason, Program, WorkerEvent};

/// Bounds a line of a worker's log.
const LOG_LINE_BYTES_MAX: usize = 8 * 1024;

/// So many lines of a worker's log explain its death.
const LAST_WORDS_MAX: usize = 3;

/// A frame for one run of a worker.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) run: u64,
    /// A frame, encoded.
    pub(super) bytes: Bytes,
}

/// Everything that the task of one worker has.
pub(super) struct Watch {
    pub(super) model: String,
    pub(super) program: Program,
    /// As JSON.
    pub(super) options: String,
    /// What must be set before the process starts, such as the number of threads.
    pub(super) environment: Vec<(&'static str, String)>,
    pub(super) limits: Limits,
    pub(super) inbox: mpsc::Receiver<Order>,
    pub(super) events: mpsc::Sender<(String, u64, WorkerEvent)>,
    pub(super) stop: CancellationToken,
}

/// How one run of the process ended.
enum End {
    Lost { reason: LostReason, ready_for: Option<Duration> },
    LoadFailed(String),
    Stopped,
}

/// Nobody listens any more: the node is going down.
struct Unheard;

impl Watch {
    /// Runs the worker again and again until it is stopped, cannot be loaded, or nobody listens.
    pub(super) async fn run(mut self) {
        let mut wait = self.limits.backoff_first;
        let mut failed_starts = 0;
        for run in 1.. {
            let Ok(end) = self.run_once(run).await else { return };
            let (reason, ready_for) = match end {
                End::Stopped => return self.last(run, WorkerEvent::Stopped).await,
                End::LoadFailed(error) => return self.last(run, WorkerEvent::GaveUp { error }).await,
                End::Lost { reason, ready_for } => (reason, ready_for),
            };
            tracing::warn!(model = %self.model, %reason, "Lost a worker");
            failed_starts = if ready_for.is_some() { 0 } else { failed_starts + 1 };
            if ready_for.is_some_and(|time| time >= self.limits.stable_after) {
                wait = self.limits.backoff_first;
            }
            let error = format!(
                "{reason}; it never got ready in {failed_starts} starts: check the model's file and the memory, then load it again"
            );
            if self.tell(run, WorkerEvent::Lost { reason }).await.is_err() {
                return;
            }
            if failed_starts >= self.limits.failed_starts_max {
                return self.last(run, WorkerEvent::GaveUp { error }).await;
            }
            if self.wait(run, wait).await.is_err() {
                return;
            }
            wait = (wait * 2).min(self.limits.backoff_max);
        }
    }

    /// Waits before a restart; an error means that there is none.
    async fn wait(&self, run: u64, wait: Duration) -> Result<(), Unheard> {
        self.tell(run, WorkerEvent::Restarting { in_ms: millis(wait) }).await?;
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.stop.cancelled() => {
                self.last(run, WorkerEvent::Stopped).await;
                Err(Unheard)
            }
        }
    }

    async fn run_once(&mut self, run: u64) -> Result<End, Unheard> {
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(error) => return Ok(not_started(&error)),
        };
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three were asked to be pipes");
        };
        self.tell(run, WorkerEvent::Started { pid: child.id() }).await?;

        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let log = tokio::spawn(log_lines(self.model.clone(), stderr, last_words.clone()));
        let said = self.converse(run, stdin, FramedRead::new(stdout, codec())).await;
        let said = match said {
            Ok(said) => said,
            Err(Unheard) => {
                self.end(&mut child).await;
                return Err(Unheard);
            }
        };
        if matches!(said.over, Over::Lost(_)) {
            // It hangs or talks nonsense: its jobs must not wait for a polite end. Fails only if it has just ended.
            let _ = child.start_kill();
        }
        let status = self.end(&mut child).await;
        // The log ends with the process, unless a grandchild holds it open.
        let _ = tokio::time::timeout(self.limits.stop_max, log).await;
        if self.stop.is_cancelled() {
            return Ok(End::Stopped);
        }
        Ok(match said.over {
            Over::LoadFailed(error) => End::LoadFailed(error),
            Over::Lost(reason) => End::Lost { reason, ready_for: said.ready_for },
            Over::Closed => {
                let last_words = last_words.lock().map(|lines| join(&lines)).unwrap_or_default();
                End::Lost { reason: LostReason::Crashed { status, last_words }, ready_for: said.ready_for }
            }
        })
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program.path);
        command.args(&self.program.arguments).arg(&self.options).envs(self.environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // Ctrl-C in a terminal is for the node, which then ends its workers in order.
        #[cfg(unix)]
        command.process_group(0);
        command.spawn()
    }

    /// Waits for the process to end, in the end by force.
    async fn end(&self, child: &mut Child) -> Option<std::process::ExitStatus> {
        if let Ok(status) = tokio::time::timeout(self.limits.stop_max, child.wait()).await {
            return status.ok();
        }
        // Killing fails only if the process has just ended.
        let _ = child.start_kill();
        child.wait().await.ok()
    }

    /// Carries frames both ways until the worker is gone, hangs, fails to load or is stopped.
    async fn converse(
        &mut self,
        run: u64,
        stdin: ChildStdin,
        mut frames: FramedRead<tokio::process::ChildStdout, LengthDelimitedCodec>,
    ) -> Result<Said, Unheard> {
        let (ping, pings) = watch::channel(0);
        let writer = write_frames(run, stdin, &mut self.inbox, pings, self.stop.clone());
        tokio::pin!(writer);
        let mut writes = true;
        let mut health = Health::new(Instant::now(), self.limits);
        let mut tick = tokio::time::interval(self.limits.ping_every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stopping = None;

        let over = loop {
            tokio::select! {
                // What the worker said must be heard before it is judged.
                biased;
                read = frames.next() => {
                    let frame = match read {
                        None => break Over::Closed,
                        Some(Err(error)) => break Over::Lost(LostReason::BadFrame(error.to_string())),
                        Some(Ok(bytes)) => match frame::decode::<FromWorker>(&bytes) {
                            Ok(frame) => frame,
                            Err(error) => break Over::Lost(LostReason::BadFrame(error.to_string())),
                        },
                    };
                    health.heard(Instant::now(), &frame);
                    match event_of(frame) {
                        Ok(Some(event)) => send(&self.events, &self.model, run, event).await?,
                        Ok(None) => {}
                        Err(error) => break Over::LoadFailed(error),
                    }
                }
                // Its end is no news: a worker that closed its input is closing its output too.
                () = &mut writer, if writes => writes = false,
                () = self.stop.cancelled(), if stopping.is_none() => stopping = Some(Instant::now()),
                _ = tick.tick() => {
                    let now = Instant::now();
                    if stopping.is_some_and(|since| now - since >= self.limits.stop_max) {
                        break Over::Closed;
                    }
                    if let Some(reason) = health.verdict(now) {
                        break Over::Lost(reason);
                    }
                    ping.send_modify(|number| *number += 1);
                }
            }
        };
        Ok(Said { over, ready_for: health.ready_since.map(|since| since.elapsed()) })
    }

    async fn tell(&self, run: u64, event: WorkerEvent) -> Result<(), Unheard> {
        send(&self.events, &self.model, run, event).await
    }

    async fn last(&self, run: u64, event: WorkerEvent) {
        // Nobody may be left to hear the last word.
        let _ = self.tell(run, event).await;
    }
}

/// What a conversation came to.
struct Said {
    over: Over,
    ready_for: Option<Duration>,
}

enum Over {
    Closed,
    Lost(LostReason),
    LoadFailed(String),
}

async fn send(
    events: &mpsc::Sender<(String, u64, WorkerEvent)>,
    model: &str,
    run: u64,
    event: WorkerEvent,
) -> Result<(), Unheard> {
    events.send((model.to_owned(), run, event)).await.map_err(|_| Unheard)
}

/// Returns the event for the driver, nothing for what is between watcher and worker, or why loading failed.
fn event_of(frame: FromWorker) -> Result<Option<WorkerEvent>, String> {
    match frame {
        FromWorker::Loading { percent, what } => Ok(Some(WorkerEvent::Loading { percent, what })),
        FromWorker::Ready(info) => Ok(Some(WorkerEvent::Ready(Box::new(info)))),
        FromWorker::LoadFailed { error } => Err(error),
        FromWorker::Pong { .. } => Ok(None),
        frame @ (FromWorker::Prepared { .. }
        | FromWorker::Tokens { .. }
        | FromWorker::Vectors { .. }
        | FromWorker::Failed { .. }) => Ok(Some(WorkerEvent::Frame(frame))),
    }
}

/// Writes orders of this run and pings until told to stop, then says so and closes the worker's input.
async fn write_frames(
    run: u64,
    stdin: ChildStdin,
    inbox: &mut mpsc::Receiver<Order>,
    mut pings: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    let mut output = FramedWrite::new(stdin, codec());
    loop {
        let (bytes, last) = tokio::select! {
            biased;
            () = stop.cancelled() => (encoded(&ToWorker::Shutdown), true),
            changed = pings.changed() => match changed {
                Ok(()) => (encoded(&ToWorker::Ping(*pings.borrow_and_update())), false),
                Err(_) => return,
            },
            order = inbox.recv() => match order {
                Some(order) if order.run == run => (order.bytes, false),
                Some(_) => continue,
                None => (encoded(&ToWorker::Shutdown), true),
            },
        };
        if output.send(bytes).await.is_err() || last {
            return;
        }
    }
}

/// Encodes one of our own small frames.
fn encoded(frame: &ToWorker) -> Bytes {
    frame::encode(frame).expect("it is far below the bound").into()
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(frame::FRAME_BYTES_MAX).new_codec()
}

/// Hands a worker's log on and keeps its last lines.
async fn log_lines(model: String, stderr: ChildStderr, last_words: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = FramedRead::new(stderr, LinesCodec::new_with_max_length(LOG_LINE_BYTES_MAX));
    while let Some(line) = lines.next().await {
        // A line that is too long, or not text, ends the stream once; what follows it is read on.
        let Ok(line) = line else { continue };
        tracing::debug!(target: "sharemesh::worker", %model, "{line}");
        if let Ok(mut kept) = last_words.lock() {
            kept.push_back(line);
            if kept.len() > LAST_WORDS_MAX {
                kept.pop_front();
            }
        }
    }
}

fn join(lines: &VecDeque<String>) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" | ")
}

fn not_started(error: &std::io::Error) -> End {
    End::Lost { reason: LostReason::NotStarted(error.to_string()), ready_for: None }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Judges from what a worker says whether it hangs.
struct Health {
    limits: Limits,
    heard: Instant,
    ready_since: Option<Instant>,
    turns: u64,
    /// Since when the same turn is computed.
    turn_since: Option<Instant>,
}

impl Health {
    fn new(now: Instant, limits: Limits) -> Self {
        Self { limits, heard: now, ready_since: None, turns: 0, turn_since: None }
    }

    fn heard(&mut self, now: Instant, frame: &FromWorker) {
        match frame {
            FromWorker::Pong { turns, busy, .. } => {
                // A worker that loads answers pings too: only words about loading count then.
                if self.ready_since.is_some() {
                    self.heard = now;
                }
                if !busy {
                    self.turn_since = None;
                } else if self.turns != *turns || self.turn_since.is_none() {
                    self.turn_since = Some(now);
                }
                self.turns = *turns;
            }
            FromWorker::Ready(_) => {
                self.ready_since = Some(now);
                self.turn_since = None;
                self.heard = now;
            }
            FromWorker::Loading { .. }
            | FromWorker::LoadFailed { .. }
            | FromWorker::Prepared { .. }
            | FromWorker::Tokens { .. }
            | FromWorker::Vectors { .. }
            | FromWorker::Failed { .. } => self.heard = now,
        }
    }

    fn verdict(&self, now: Instant) -> Option<LostReason> {
        let silent = now - self.heard;
        let silent_max = match self.ready_since {
            Some(_) => self.limits.silent_max,
            None => self.limits.loading_max,
        };
        if silent >= silent_max {
            return Some(LostReason::Silent { for_ms: millis(silent) });
        }
        let turn = self.turn_since.filter(|_| self.ready_since.is_some()).map(|since| now - since)?;
        (turn >= self.limits.turn_max).then(|| LostReason::Hung { for_ms: millis(turn) })
    }
}

#[cfg(test)]
mod tests {
    use engine::frame::{DeviceInfo, ModelInfo, write_frame};
    use engine::{DeviceChoice, FakeOptions, ModelSource, WorkerOptions};

    use super::*;
    use crate::worker::{SendError, Workers};

    /// Starts a "worker" that says what is in `frames` and then does `then`.
    fn workers(frames: &[FromWorker], then: &str, limits: Limits) -> (tempfile::TempDir, Workers) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("frames");
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| write_frame(&mut bytes, frame).expect("fits"));
        std::fs::write(&path, bytes).expect("writable");
        let script = format!("cat {}; {then}", path.display());
        let program = Program { path: "/bin/sh".into(), arguments: vec!["-c".to_owned(), script] };
        let mut workers = Workers::new(program, limits);
        let options = WorkerOptions {
            model: ModelSource::Fake(FakeOptions::default()),
            device: DeviceChoice::Cpu,
            slots: 1,
            context_max: None,
            threads: Some(1),
        };
        workers.start("fake", &options).expect("first");
        (folder, workers)
    }

    fn hasty() -> Limits {
        Limits {
            ping_every: Duration::from_millis(20),
            silent_max: Duration::from_millis(300),
            loading_max: Duration::from_millis(300),
            stop_max: Duration::from_millis(500),
            backoff_first: Duration::from_millis(10),
            ..Limits::NODE
        }
    }

    fn info() -> FromWorker {
        FromWorker::Ready(ModelInfo {
            name: "fake".to_owned(),
            architecture: "fake".to_owned(),
            output: engine::frame::Output::Text,
            quantisation: "none".to_owned(),
            context_length: 64,
            parameters: 0,
            slots: 1,
            device: DeviceInfo { kind: "cpu".to_owned(), name: "test".to_owned(), memory_bytes: 0 },
            weights_bytes: 0,
            chat_template_digest: [0; 32],
            tokenizer_digest: [0; 32],
            weights_digest: None,
            decode_tokens_per_s_milli: 0,
            prefill_tokens_per_s_milli: 0,
        })
    }

    /// Returns the next event that `wanted` picks, skipping the others.
    async fn until<T>(workers: &mut Workers, wanted: impl Fn(WorkerEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                if let Some(found) = wanted(workers.next().await.1) {
                    return found;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), search).await.expect("comes in time")
    }

    fn lost(event: WorkerEvent) -> Option<LostReason> {
        if let WorkerEvent::Lost { reason } = event { Some(reason) } else { None }
    }

    fn is_ready(event: WorkerEvent) -> Option<()> {
        matches!(event, WorkerEvent::Ready(_)).then_some(())
    }

    #[tokio::test]
    async fn what_is_larger_than_a_worker_reads_is_refused_and_the_worker_goes_on() {
        let (_folder, mut workers) = workers(&[info()], "cat >/dev/null", hasty());
        until(&mut workers, is_ready).await;
        let generate = engine::frame::Generate {
            prompt: engine::frame::Prompt::Text("x".repeat(frame::FRAME_BYTES_MAX)),
            max_tokens: 1,
            sampling: engine::frame::Sampling::default(),
            resume: Vec::new(),
            logprobs: None,
            form: None,
        };
        let request = engine::frame::Request::Generate(generate);
        let start = ToWorker::Start { job: engine::frame::JobKey([1; 16]), request, up_to: 1 };

        assert_eq!(workers.send("fake", &start), Err(SendError::TooLarge));
        assert_eq!(workers.send("fake", &ToWorker::Ping(1)), Ok(()));
        workers.shutdown().await;
    }

    #[tokio::test]
    async fn a_crash_is_named_with_the_last_words_and_the_worker_comes_back() {
        let (_folder, mut workers) = workers(&[info()], "echo out of luck >&2; exit 7", hasty());
        until(&mut workers, is_ready).await;

        let reason = until(&mut workers, lost).await;

        assert_eq!(reason.name(), "crashed");
        assert!(reason.to_string().contains("out of luck"), "{reason}");
        assert!(reason.to_string().contains('7'), "{reason}");
        assert_eq!(workers.send("fake", &ToWorker::Ping(1)), Err(SendError::NotReady));
        until(&mut workers, is_ready).await;
        workers.shutdown().await;
    }

    #[tokio::test]
    async fn a_worker_that_answers_nothing_is_lost_and_comes_back() {
        let (_folder, mut workers) = workers(&[info()], "exec sleep 1000", hasty());
        until(&mut workers, is_ready).await;

        assert_eq!(until(&mut workers, lost).await.name(), "silent");
        until(&mut workers, is_ready).await;
        workers.shutdown().await;
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_loaded_is_final() {
        let failed = FromWorker::LoadFailed { error: "no such tensor".to_owned() };
        let (_folder, mut workers) = workers(&[failed], "exit 1", hasty());

        let error = until(&mut workers, |event| {
            assert_eq!(lost(event.clone()), None);
            if let WorkerEvent::GaveUp { error } = event { Some(error) } else { None }
        });

        assert_eq!(error.await, "no such tensor");
        workers.shutdown().await;
    }

    #[tokio::test]
    async fn a_worker_that_never_gets_ready_is_given_up() {
        let (_folder, mut workers) = workers(&[], "exit 1", hasty());

        let error =
            until(
                &mut workers,
                |event| {
                    if let WorkerEvent::GaveUp { error } = event { Some(error) } else { None }
                },
            );

        assert!(error.await.contains("in 3 starts"));
        workers.shutdown().await;
    }

    #[tokio::test]
    async fn nonsense_from_a_worker_is_a_loss() {
        let (_folder, mut workers) = workers(&[], "echo 'hello, this is not a frame'; sleep 5", hasty());

        assert_eq!(until(&mut workers, lost).await.name(), "bad_frame");
        workers.shutdown().await;
    }

    #[tokio::test]
    async fn a_worker_that_ignores_its_end_is_ended_by_force() {
        let (_folder, mut workers) =
            workers(&[info()], "exec sleep 1000", Limits { silent_max: Duration::from_secs(60), ..hasty() });
        until(&mut workers, is_ready).await;

        workers.stop("fake");

        until(&mut workers, |event| (event == WorkerEvent::Stopped).then_some(())).await;
        workers.shutdown().await;
    }

    fn pong(turns: u64, busy: bool) -> FromWorker {
        FromWorker::Pong { number: 1, turns, busy }
    }

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn ready(start: Instant) -> Health {
        let mut health = Health::new(start, Limits::NODE);
        health.ready_since = Some(start);
        health
    }

    #[test]
    fn a_turn_that_never_ends_is_a_hang() {
        let start = Instant::now();
        let mut health = ready(start);
        for second in 0..=20 {
            health.heard(start + seconds(second), &pong(7, true));
        }

        assert_eq!(health.verdict(start + seconds(19)), None);
        assert_eq!(health.verdict(start + seconds(20)), Some(LostReason::Hung { for_ms: 20_000 }));
    }

    #[test]
    fn turns_that_go_on_are_no_hang() {
        let start = Instant::now();
        let mut health = ready(start);
        for second in 0..=100 {
            health.heard(start + seconds(second), &pong(second, true));
        }

        assert_eq!(health.verdict(start + seconds(100)), None);
    }

    #[test]
    fn no_pong_is_silence() {
        let start = Instant::now();
        let health = ready(start);

        assert_eq!(health.verdict(start + seconds(10)), Some(LostReason::Silent { for_ms: 10_000 }));
    }

    #[test]
    fn a_load_that_says_nothing_is_silence_even_if_pings_are_answered() {
        let start = Instant::now();
        let mut health = Health::new(start, Limits::NODE);
        health.heard(start + seconds(119), &pong(0, true));

        assert_eq!(health.verdict(start + seconds(119)), None);
        assert_eq!(health.verdict(start + seconds(120)), Some(LostReason::Silent { for_ms: 120_000 }));
    }
}
