//! The two ends of a job's stream: tokens one way, heartbeats both ways, silence counts as loss.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use engine::frame::{DIMENSIONS_MAX, LOGPROB_MIN, TokenLogprob};
use protocol::ids::{Digest, JobId, NodeId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::views::JobEvent;
use crate::clock::Clock;
use crate::command::Work;
use crate::idle::Idle;
use crate::net::{JobReceiver, JobSender, JobStream, OffenceKind, Oversized, PeerKey, StreamOpener};

/// How often each end shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(300);

/// How long a silent end counts as alive: five lost heartbeats.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(1500);

/// How long a stream may take to say for which job it is.
const HELLO_MAX: Duration = Duration::from_secs(5);

/// Tokens between two reports to the core: a quarter of the smallest payment window.
const REPORT_TOKENS: u32 = 16;

/// Reads of a stream in a row between which its heartbeat is not looked at.
const AT_ONCE_MAX: u32 = 8;

/// Frames that wait for the network; a requester pays for what has arrived, so no more than one payment window (4,096
/// tokens) can be under way.
pub(super) const FRAMES_MAX: usize = 4096 + 64;

/// Bytes that are sent at once where more waits: a few packets, which a slow line takes within [`SILENCE_MAX`].
const SENT_MAX: usize = 4 * 1024;

/// Bytes that each token may have brought, on average over the answer: the longest tokens of vocabularies are runs of
/// 128 spaces.
const TOKEN_BYTES_MAX: usize = 512;

/// Numbers of all vectors of a job: 1,024 of the widest, and far more texts than a job may have of what people use.
const VECTOR_NUMBERS_MAX: usize = 1 << 22;

/// Bytes that a text may be ahead of that average.
const SLACK_BYTES_MAX: usize = 4096;

/// What travels on a job's stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum JobFrame {
    /// Says for which job the stream is; the first frame.
    Hello { job: JobId },
    /// The next tokens.
    Tokens(Part),
    /// All tokens were sent.
    End,
    /// Nothing new.
    Heartbeat,
    /// The next vector.
    Vector { index: u32, vector: Vec<f32> },
}

/// The next part of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    /// Index of the first token.
    pub(super) index: u32,
    pub(super) ids: Vec<u32>,
    /// Text, in whole characters.
    pub(super) bytes: Vec<u8>,
    /// One for each token, if they were asked for.
    pub(super) logprobs: Vec<TokenLogprob>,
}

/// What a stream tells the driver.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// A peer opened a stream for a job.
    Greeted { from: NodeId, job: JobId, stream: JobStream },
    /// So many tokens have arrived in all.
    Progress { job: JobId, tokens: u32, at_ms: u64 },
    /// All tokens have arrived.
    Ended { job: JobId, delivered: Delivered },
    /// The stream broke or fell silent.
    Lost { job: JobId, delivered: Delivered },
    /// Whoever wanted the answer is gone.
    Unwanted { job: JobId },
    /// The other end sent what no stream of a job carries.
    Broke { from: NodeId, offence: OffenceKind },
}

/// What has arrived of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivered {
    pub(super) tokens: u32,
    pub(super) digest: Digest,
    pub(super) text: Digest,
}

/// Hands an answer to whoever asked, and counts it.
#[derive(Debug)]
pub(super) struct Delivery {
    events: mpsc::Sender<JobEvent>,
    /// Tokens of the answer that came before, from another provider.
    first: u32,
    tokens: u32,
    tokens_max: u32,
    /// Whether vectors are expected, each of which counts as a token, and of how many numbers they are once one is there.
    vectors: Option<Option<usize>>,
    /// Alternatives that were asked for with each token, if log probabilities were.
    logprobs: Option<u8>,
    bytes: usize,
    /// Whether the last part has come, which brings text that was held back and no token.
    complete: bool,
    ids: blake3::Hasher,
    text: blake3::Hasher,
}

impl Delivery {
    /// Expects what is missing of an answer.
    pub(super) fn of(events: mpsc::Sender<JobEvent>, asked: &Work) -> Self {
        match asked {
            Work::Generate(generate) => {
                let first = u32::try_from(generate.resume.len()).unwrap_or(u32::MAX);
                let tokens_max = generate.max_tokens.saturating_sub(first);
                Self { first, ..Self::new(events, tokens_max, generate.logprobs) }
            }
            Work::Embed(embed) => {
                let vectors_max = u32::try_from(embed.inputs.len()).unwrap_or(u32::MAX);
                Self { vectors: Some(None), ..Self::new(events, vectors_max, None) }
            }
        }
    }

    fn new(events: mpsc::Sender<JobEvent>, tokens_max: u32, logprobs: Option<u8>) -> Self {
        Self {
            events,
            first: 0,
            tokens: 0,
            tokens_max,
            vectors: None,
            logprobs,
            bytes: 0,
            complete: false,
            ids: blake3::Hasher::new(),
            text: blake3::Hasher::new(),
        }
    }

    /// Takes what a frame brings of the answer; `Err` names what is wrong with it.
    fn take_frame(&mut self, frame: JobFrame) -> Result<(), &'static str> {
        match frame {
            JobFrame::Tokens(part) => self.take(part),
            JobFrame::Vector { index, vector } => self.take_vector(index, vector),
            JobFrame::Hello { .. } | JobFrame::End | JobFrame::Heartbeat => Ok(()),
        }
    }

    /// Takes the next tokens; `Err` names what is wrong with them.
    pub(super) fn take(&mut self, part: Part) -> Result<(), &'static str> {
        let Part { index, ids, bytes, logprobs } = part;
        // A job that was cancelled before its first token, or between two, ends with a part of nothing.
        if ids.is_empty() && bytes.is_empty() && logprobs.is_empty() {
            return Ok(());
        }
        if self.tokens.checked_add(self.first) != Some(index) {
            return Err("tokens out of order");
        }
        if self.complete || self.vectors.is_some() {
            return Err("more after the last part, or text where vectors were asked for");
        }
        let count = u32::try_from(ids.len()).map_err(|_| "too many tokens")?;
        let tokens = self.tokens.checked_add(count).filter(|tokens| *tokens <= self.tokens_max);
        let tokens = tokens.ok_or("more tokens than were asked for")?;
        let length = self.bytes.saturating_add(bytes.len());
        if length > (tokens as usize).saturating_mul(TOKEN_BYTES_MAX).saturating_add(SLACK_BYTES_MAX) {
            return Err("more text than the tokens can stand for");
        }
        check_logprobs(self.logprobs, ids.len(), &logprobs)?;

        self.tokens = tokens;
        self.bytes = length;
        self.complete = ids.is_empty();
        hash_ids(&mut self.ids, &ids);
        self.text.update(&bytes);
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        // The queue has room for every token that was asked for and for the last part; one that is closed is noticed by `is_wanted`.
        let _ = self.events.try_send(JobEvent::Text { text, index, tokens: count, ids, logprobs });
        Ok(())
    }

    /// Takes the next vector; `Err` names what is wrong with it.
    pub(super) fn take_vector(&mut self, index: u32, vector: Vec<f32>) -> Result<(), &'static str> {
        let Some(width) = &mut self.vectors else { return Err("a vector where text was asked for") };
        if index != self.tokens || self.tokens >= self.tokens_max {
            return Err("vectors out of order, or more than were asked for");
        }
        let numbers = (self.tokens_max as usize).saturating_mul(vector.len());
        let is_bounded = numbers <= VECTOR_NUMBERS_MAX && is_vector(&vector);
        if !is_bounded || *width.get_or_insert(vector.len()) != vector.len() {
            return Err("a vector of another width or another length than 1");
        }

        self.tokens += 1;
        let vectors = vec![vector];
        hash_vectors(&mut self.ids, &vectors);
        hash_vectors(&mut self.text, &vectors);
        // As with text.
        let _ = self.events.try_send(JobEvent::Vectors { index, vectors });
        Ok(())
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.events.is_closed()
    }

    pub(super) const fn tokens(&self) -> u32 {
        self.tokens
    }

    pub(super) fn delivered(&self) -> Delivered {
        Delivered {
            tokens: self.tokens,
            digest: Digest(*self.ids.finalize().as_bytes()),
            text: Digest(*self.text.finalize().as_bytes()),
        }
    }
}

/// Checks that log probabilities are those that were asked for, and numbers.
fn check_logprobs(asked: Option<u8>, tokens: usize, given: &[TokenLogprob]) -> Result<(), &'static str> {
    let is_sound = |logprob: f32, bytes: &[u8]| {
        // A sum of rounded numbers may be a little above the logarithm of 1.
        (LOGPROB_MIN..=0.1).contains(&logprob) && bytes.len() <= TOKEN_BYTES_MAX
    };
    let Some(top) = asked else {
        return if given.is_empty() { Ok(()) } else { Err("log probabilities that nobody asked for") };
    };
    let sound = given.iter().all(|token| {
        token.top.len() <= usize::from(top)
            && is_sound(token.logprob, &token.bytes)
            && token.top.iter().all(|other| is_sound(other.logprob, &other.bytes))
    });
    if given.len() == tokens && sound { Ok(()) } else { Err("wrong log probabilities") }
}

/// Says whether these are the numbers of a vector of length 1.
fn is_vector(vector: &[f32]) -> bool {
    let square: f64 = vector.iter().map(|number| f64::from(*number).powi(2)).sum();
    vector.len() <= DIMENSIONS_MAX as usize && (square - 1.0).abs() < 1e-3
}

/// Adds vectors to the digest that both ends of a job compute.
pub(crate) fn hash_vectors(hasher: &mut blake3::Hasher, vectors: &[Vec<f32>]) {
    for number in vectors.iter().flatten() {
        hasher.update(&number.to_le_bytes());
    }
}

/// Adds token ids to the digest that both ends of a job compute.
pub(super) fn hash_ids(hasher: &mut blake3::Hasher, ids: &[u32]) {
    for id in ids {
        hasher.update(&id.to_le_bytes());
    }
}

/// Waits for a stream to say for which job it is.
pub(super) async fn greet(from: NodeId, mut stream: JobStream, events: mpsc::Sender<StreamEvent>) {
    let event = match timeout(HELLO_MAX, stream.greeting()).await {
        Ok(Ok(Some(frame))) => match decode(&frame) {
            Some(JobFrame::Hello { job }) => StreamEvent::Greeted { from, job, stream },
            Some(_) | None => StreamEvent::Broke { from, offence: OffenceKind::Malformed },
        },
        // Whoever opens a stream says at once what it is for.
        Err(_) => StreamEvent::Broke { from, offence: OffenceKind::Slow },
        Ok(Err(error)) if is_oversized(&error) => {
            StreamEvent::Broke { from, offence: OffenceKind::Oversized }
        }
        // A peer that went away meanwhile has done nothing wrong.
        Ok(Ok(None) | Err(_)) => return,
    };
    // A driver that is gone needs no streams.
    let _ = events.send(event).await;
}

/// Says whether the other end announced a frame larger than any.
fn is_oversized(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Oversized>())
}

/// The requester's end: takes tokens until they end, the provider falls silent, or `detached`.
pub(super) async fn receive(
    (job, from): (JobId, NodeId),
    stream: JobStream,
    mut delivery: Delivery,
    clock: Clock,
    detached: CancellationToken,
    events: mpsc::Sender<StreamEvent>,
) {
    let (mut receiver, mut sender) = stream.split();
    let mut reported = 0;
    let mut wanted = true;
    let mut at_once = 0;
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = Idle::new(SILENCE_MAX);
    let mut cancelled = pin!(detached.cancelled());
    let offence = loop {
        tokio::select! {
            // What has arrived counts before the silence after it, and while there is more nothing else need be looked at.
            biased;
            first = receiver.recv(), if at_once < AT_ONCE_MAX && !detached.is_cancelled() => {
                at_once += 1;
                silence.end();
                let more = match take_arrived(first, &mut receiver, &mut delivery) {
                    Ok(more) => more,
                    Err(offence) => break offence,
                };
                if wanted && more && !delivery.is_wanted() {
                    wanted = false;
                    let _ = events.send(StreamEvent::Unwanted { job }).await;
                }
                let tokens = delivery.tokens();
                if tokens > reported && (reported == 0 || tokens - reported >= REPORT_TOKENS) {
                    reported = tokens;
                    let _ = events.send(StreamEvent::Progress { job, tokens, at_ms: clock.now_ms() }).await;
                }
                if !more {
                    let _ = events.send(StreamEvent::Ended { job, delivered: delivery.delivered() }).await;
                    return;
                }
                // A stream that always has more must not keep the others from theirs.
                tokio::task::consume_budget().await;
            }
            () = &mut cancelled => return,
            _ = heartbeat.tick() => {
                if beat(&mut sender).await.is_err() {
                    break None;
                }
            }
            () = std::future::ready(()), if at_once >= AT_ONCE_MAX => at_once = 0,
            () = silence.over() => break None,
        }
    };
    if let Some(offence) = offence {
        let _ = events.send(StreamEvent::Broke { from, offence }).await;
    }
    let _ = events.send(StreamEvent::Lost { job, delivered: delivery.delivered() }).await;
}

/// Takes a frame and those that were read with it; says whether more are to come. An error is the end of the stream before
/// its time, and the offence if it is one.
fn take_arrived(
    first: std::io::Result<Option<Bytes>>,
    receiver: &mut JobReceiver,
    delivery: &mut Delivery,
) -> Result<bool, Option<OffenceKind>> {
    let mut next = first;
    loop {
        let frame = match next {
            Ok(Some(frame)) => decode(&frame),
            Err(error) if is_oversized(&error) => return Err(Some(OffenceKind::Oversized)),
            Ok(None) | Err(_) => return Err(None),
        };
        match frame {
            Some(frame @ (JobFrame::Tokens(_) | JobFrame::Vector { .. })) => {
                delivery.take_frame(frame).map_err(|_| Some(OffenceKind::Malformed))?;
            }
            Some(JobFrame::Heartbeat) => {}
            Some(JobFrame::End) => return Ok(false),
            Some(JobFrame::Hello { .. }) | None => return Err(Some(OffenceKind::Malformed)),
        }
        next = receiver.arrived();
        if matches!(next, Ok(None)) {
            return Ok(true);
        }
    }
}

/// The provider's end: sends what the engine makes until it ends or the requester falls silent.
pub(super) async fn serve(
    job: JobId,
    requester: PeerKey,
    opener: StreamOpener,
    mut frames: mpsc::Receiver<JobFrame>,
    events: mpsc::Sender<StreamEvent>,
) {
    let lost = || StreamEvent::Lost {
        job,
        delivered: Delivered { tokens: 0, digest: Digest::ZERO, text: Digest::ZERO },
    };
    let Ok(stream) = opener.open(requester).await else {
        let _ = events.send(lost()).await;
        return;
    };
    let (receiver, sender) = stream.split();
    if let Err(error) = run_serving(job, receiver, sender, &mut frames).await {
        if is_oversized(&error) {
            let (from, offence) = (NodeId(requester.0), OffenceKind::Oversized);
            let _ = events.send(StreamEvent::Broke { from, offence }).await;
        }
        let _ = events.send(lost()).await;
    }
}

async fn run_serving(
    job: JobId,
    mut receiver: JobReceiver,
    mut sender: JobSender,
    frames: &mut mpsc::Receiver<JobFrame>,
) -> std::io::Result<()> {
    send(&mut sender, &JobFrame::Hello { job }).await?;
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = Idle::new(SILENCE_MAX);
    let mut ended = false;
    loop {
        tokio::select! {
            // What has arrived counts before the silence after it.
            biased;
            frame = receiver.recv() => match frame {
                Ok(Some(_)) => silence.end(),
                // Having the end, the requester closes.
                Ok(None) | Err(_) if ended => return Ok(()),
                Ok(None) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return Err(error),
            },
            () = silence.over() => {
                return if ended { Ok(()) } else { Err(std::io::ErrorKind::TimedOut.into()) };
            }
            frame = frames.recv(), if !ended => match frame {
                Some(frame) => ended = send_ready(&mut sender, frame, frames).await?,
                // The job failed: the requester learns why by a message, and here that no more follows.
                None => {
                    ended = true;
                    sender.send(encode(&JobFrame::End)).await?;
                }
            },
            _ = heartbeat.tick() => beat(&mut sender).await?,
        }
    }
}

/// Sends a frame and those that wait behind it, in one go; says whether the last one of the answer was among them.
async fn send_ready(
    sender: &mut JobSender,
    first: JobFrame,
    frames: &mut mpsc::Receiver<JobFrame>,
) -> std::io::Result<bool> {
    let mut next = Some(first);
    while let Some(frame) = next {
        sender.feed(&encode(&frame))?;
        if frame == JobFrame::End {
            return flush(sender).await.map(|()| true);
        }
        next = if sender.unsent() < SENT_MAX { frames.try_recv().ok() } else { None };
    }
    flush(sender).await.map(|()| false)
}

async fn beat(sender: &mut JobSender) -> std::io::Result<()> {
    send(sender, &JobFrame::Heartbeat).await
}

async fn send(sender: &mut JobSender, frame: &JobFrame) -> std::io::Result<()> {
    sender.feed(&encode(frame))?;
    flush(sender).await
}

/// Sends what waits; an end that does not read is as good as silent.
async fn flush(sender: &mut JobSender) -> std::io::Result<()> {
    timeout(SILENCE_MAX, sender.flush()).await.map_err(std::io::Error::from)?
}

fn encode(frame: &JobFrame) -> Bytes {
    Bytes::from(protocol::encoding::encode(frame))
}

fn decode(frame: &[u8]) -> Option<JobFrame> {
    protocol::encoding::decode(frame, crate::net::FRAME_MAX).ok()
}

#[cfg(test)]
mod tests {
    use engine::frame::{Embed, EmbedInput, Generate};

    use super::*;

    fn delivery(tokens_max: u32) -> (Delivery, mpsc::Receiver<JobEvent>) {
        let (sender, receiver) = mpsc::channel(64);
        (Delivery::new(sender, tokens_max, None), receiver)
    }

    fn part(index: u32, ids: &[u32], bytes: &[u8]) -> Part {
        Part { index, ids: ids.to_vec(), bytes: bytes.to_vec(), logprobs: Vec::new() }
    }

    #[test]
    fn vectors_come_in_order_and_are_what_they_are_said_to_be() {
        let inputs = vec![EmbedInput::Tokens(vec![1]); 3];
        let of = || {
            let (sender, receiver) = mpsc::channel(64);
            let asked = Work::from(Embed { inputs: inputs.clone(), truncate: false });
            (Delivery::of(sender, &asked), receiver)
        };
        let good = || vec![0.6, 0.8];
        let (mut delivery, mut events) = of();

        assert_eq!(delivery.take_vector(0, good()), Ok(()));
        for (index, vector) in [
            (0, good()),
            (2, good()),
            (1, vec![1.0]),
            (1, vec![0.6, 0.7]),
            (1, vec![f32::NAN, 0.0]),
            (1, Vec::new()),
        ] {
            assert!(delivery.take_vector(index, vector.clone()).is_err(), "{index} {vector:?}");
        }
        assert!(delivery.take(part(1, &[1], b"a")).is_err(), "no text");
        assert_eq!(delivery.take_vector(1, good()), Ok(()));
        assert_eq!(delivery.take_vector(2, good()), Ok(()));
        assert!(delivery.take_vector(3, good()).is_err(), "more than were asked for");

        assert_eq!(delivery.delivered().tokens, 3);
        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), 3);
        assert!(of().0.take_vector(0, vec![0.01; DIMENSIONS_MAX as usize + 1]).is_err(), "too wide");
        assert!(super::tests::delivery(8).0.take_vector(0, good()).is_err(), "nobody asked for vectors");
    }

    #[test]
    fn a_part_of_nothing_is_no_offence_and_ends_nothing() {
        let (mut delivery, mut events) = delivery(8);
        delivery.first = 3;

        assert_eq!(delivery.take(part(0, &[], b"")), Ok(()));
        assert_eq!(delivery.take(part(3, &[1], b"a")), Ok(()));

        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), 1);
    }

    #[test]
    fn text_without_tokens_ends_an_answer() {
        let (mut delivery, mut events) = delivery(8);

        assert_eq!(delivery.take(part(0, &[1, 2], b"ab")), Ok(()));
        assert_eq!(delivery.take(part(2, &[], b"held back")), Ok(()));

        assert!(delivery.take(part(2, &[], b"again")).is_err());
        assert!(delivery.take(part(2, &[3], b"c")).is_err());
        assert_eq!(delivery.delivered().tokens, 2);
        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), 2);
    }

    #[test]
    fn an_answer_that_goes_on_is_counted_from_where_it_broke_off() {
        let (sender, _receiver) = mpsc::channel(64);
        let asked = Work::from(Generate { max_tokens: 5, resume: vec![1, 2, 3], ..generate() });
        let mut delivery = Delivery::of(sender, &asked);

        assert!(delivery.take(part(0, &[1], b"a")).is_err(), "it is there already");
        assert_eq!(delivery.take(part(3, &[4, 5], b"de")), Ok(()));
        assert!(delivery.take(part(5, &[6], b"f")).is_err(), "more than was asked for in all");
        assert_eq!(delivery.delivered().tokens, 2, "those that this provider is paid for");
    }

    fn generate() -> Generate {
        Generate {
            prompt: engine::frame::Prompt::Text("x".to_owned()),
            sampling: engine::frame::Sampling::greedy(),
            max_tokens: 1,
            resume: Vec::new(),
            logprobs: None,
            form: None,
        }
    }

    #[test]
    fn text_is_bounded_by_the_tokens_it_stands_for() {
        let (mut delivery, _events) = delivery(8);
        let most = TOKEN_BYTES_MAX + SLACK_BYTES_MAX;

        assert!(delivery.take(part(0, &[1], &vec![b'a'; most + 1])).is_err());
        assert_eq!(delivery.delivered().tokens, 0, "what is refused does not count");
        assert_eq!(delivery.take(part(0, &[1], &vec![b'a'; most])), Ok(()));
        assert!(delivery.take(part(1, &[2], &vec![b'a'; TOKEN_BYTES_MAX + 1])).is_err());
        assert_eq!(delivery.take(part(1, &[2], &vec![b'a'; TOKEN_BYTES_MAX])), Ok(()));
    }

    #[test]
    fn log_probabilities_are_those_that_were_asked_for_and_numbers() {
        let token = |logprob| TokenLogprob { logprob, bytes: b"a".to_vec(), top: Vec::new() };
        let take = |asked: Option<u8>, logprobs: Vec<TokenLogprob>| {
            let (sender, _receiver) = mpsc::channel(64);
            Delivery::new(sender, 8, asked).take(Part { logprobs, ..part(0, &[1], b"a") })
        };

        assert_eq!(take(None, Vec::new()), Ok(()));
        assert_eq!(take(Some(0), vec![token(-0.5)]), Ok(()));
        assert!(take(None, vec![token(-0.5)]).is_err());
        assert!(take(Some(0), Vec::new()).is_err());
        assert!(take(Some(0), vec![token(f32::NAN)]).is_err());
        assert!(take(Some(0), vec![token(f32::NEG_INFINITY)]).is_err());
        let other = engine::frame::Alternative { id: 1, logprob: -1.0, bytes: Vec::new() };
        let two = TokenLogprob { top: vec![other.clone(), other], ..token(-0.5) };
        assert!(take(Some(1), vec![two.clone()]).is_err());
        assert_eq!(take(Some(2), vec![two]), Ok(()));
    }
}
