//! The frames that a node and its worker process exchange over the worker's standard input and output.
//!
//! A frame is a four-byte big-endian length and that many bytes of postcard, as `LengthDelimitedCodec` of
//! tokio-util has it by default: the asynchronous side uses that codec with [`encode`] and [`decode`].
//!
//! The life of a job: `Start` is answered by `Prepared` and then by `Tokens` frames, of which exactly the last
//! has a `finish`, or by `Vectors` frames in the same way; or by one `Failed` at any point. After a frame with a
//! `finish` or a `Failed`, nothing more is said of that job and its key is free again.

use std::fmt;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::tools::ToolChat;

/// Bounds a frame: a prompt of a million tokens fits, and a corrupt length cannot ask for all memory.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bounds the alternatives per token; the largest number that clients of this kind of API may ask for.
pub const LOGPROBS_MAX: u8 = 20;

/// Bounds the stop strings of a request, because each token is compared with all of them.
pub const STOP_STRINGS_MAX: usize = 16;

/// Bounds one stop string, because as many bytes of the answer may have to be held back.
pub const STOP_STRING_BYTES_MAX: usize = 256;

/// Bounds the tokens whose logits a request shifts; as many as clients of this kind of API may name.
pub const LOGIT_BIAS_MAX: usize = 300;

/// The lowest log probability that is said: that of a token which cannot come up, as clients of this kind of API know it.
pub const LOGPROB_MIN: f32 = -9999.0;

/// Bounds the messages of a chat, because the template walks over all of them.
pub const CHAT_MESSAGES_MAX: usize = 4096;

/// Bounds the inputs of one request for vectors; as many as clients of this kind of API may send.
pub const EMBED_INPUTS_MAX: usize = 2048;

/// Bounds the numbers of a vector.
pub const DIMENSIONS_MAX: u32 = crate::model::bert::WIDTH_MAX;

/// Names a job; chosen by the node, unique among the jobs that run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobKey(pub [u8; 16]);

impl fmt::Display for JobKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for JobKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "JobKey({self})")
    }
}

/// What the node says to its worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Begins a job that may produce tokens while their index is below `up_to`.
    Start {
        /// The job's key.
        job: JobKey,
        /// What to do.
        request: Request,
        /// The first bound, as in `Grant`.
        up_to: u32,
    },
    /// Raises a job's bound: it may produce the tokens with an index below `up_to`, and pauses there until the
    /// next grant. A lower bound than before changes nothing.
    Grant {
        /// The job's key.
        job: JobKey,
        /// The bound, counted from the beginning of the answer, resumed tokens included.
        up_to: u32,
    },
    /// Ends a job within one token; answered by a last `Tokens` with [`Finish::Cancelled`].
    Cancel {
        /// The job's key.
        job: JobKey,
    },
    /// Asks for a `Pong` with the same number.
    Ping(u64),
    /// Ends the process at once, like the end of its input.
    Shutdown,
}

/// What a job asks for, by modality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Text from a prompt.
    Generate(Generate),
    /// Vectors of texts.
    Embed(Embed),
}

/// Vectors, one for each input: all of one length, each of length 1 in space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Embed {
    /// At most [`EMBED_INPUTS_MAX`].
    pub inputs: Vec<EmbedInput>,
    /// Cuts an input that is longer than the model's context instead of refusing it.
    pub truncate: bool,
}

/// What a vector is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EmbedInput {
    /// Text, to which the model's tokenizer adds its special tokens.
    Text(String),
    /// The model's own tokens, taken as they are.
    Tokens(Vec<u32>),
}

impl Embed {
    /// Checks how many inputs there are, and that none is a list of no tokens.
    pub fn validate(&self) -> Result<(), JobError> {
        if !(1..=EMBED_INPUTS_MAX).contains(&self.inputs.len()) {
            return bad(format!("{} inputs: send 1 to {EMBED_INPUTS_MAX}", self.inputs.len()));
        }
        let is_nothing = |input: &EmbedInput| matches!(input, EmbedInput::Tokens(ids) if ids.is_empty());
        if self.inputs.iter().any(is_nothing) {
            return bad("an input is a list of no tokens: send at least one".to_owned());
        }
        Ok(())
    }
}

/// Text generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// What the text continues.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most tokens of the answer, those of `resume` included.
    pub max_tokens: u32,
    /// Ids of the answer that were produced elsewhere: this worker continues after them, with the index
    /// `resume.len()`, exactly as if it had produced them itself. Bytes that the first producer held back
    /// because they began a character or a stop string come with this worker's first frames.
    pub resume: Vec<u32>,
    /// Asks for the log probability of each token, with so many alternatives; at most [`LOGPROBS_MAX`].
    pub logprobs: Option<u8>,
    /// What the answer must look like, unless `max_tokens` or a stop string cuts it short; none for anything.
    pub form: Option<Form>,
}

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// One JSON value.
    Json {
        /// The JSON Schema that it satisfies, as text of at most [`crate::schema::SCHEMA_BYTES_MAX`] bytes.
        schema: String,
    },
}

/// What a generation starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Prompt {
    /// Messages for the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Text taken as it is.
    Text(String),
    /// A chat in which tools may be called.
    Tools(Box<ToolChat>),
    /// Tokens of the model's own vocabulary, taken as they are: nothing is put before them.
    Tokens(Vec<u32>),
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant` or what the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// How tokens are chosen; the choice is a pure function of the model, the tokens before it, and this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits, 0 to 2; 0 always takes the likeliest token. By default 1.
    pub temperature: f32,
    /// Keeps the likeliest tokens that together have this probability, above 0 to 1. By default 1, all.
    pub top_p: f32,
    /// Keeps so many of the likeliest tokens; 0, the default, keeps all.
    pub top_k: u32,
    /// Makes tokens among the last ones less likely, above 0 to 2; 1, the default, changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token that the answer has already, -2 to 2; by default 0.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit as often as the answer has it already, -2 to 2; by default 0.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, -100 to 100 each; at most [`LOGIT_BIAS_MAX`], none by default.
    pub logit_bias: Vec<(u32, f32)>,
    /// Ends the answer before any of these strings; none by default.
    pub stop: Vec<String>,
    /// Where the randomness comes from: the same seed makes the same answer. By default 0.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            stop: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Returns the settings that always take the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

impl From<Generate> for Request {
    fn from(generate: Generate) -> Self {
        Self::Generate(generate)
    }
}

impl From<Embed> for Request {
    fn from(embed: Embed) -> Self {
        Self::Embed(embed)
    }
}

impl Request {
    /// Checks every field against its range; the error says what to send instead.
    pub fn validate(&self) -> Result<(), JobError> {
        match self {
            Self::Generate(generate) => generate.validate(),
            Self::Embed(embed) => embed.validate(),
        }
    }
}

/// Returns what is said to whoever asks an encoder for text.
pub(crate) fn makes_no_text() -> JobError {
    JobError::BadRequest("this model makes vectors and no text: ask it for embeddings".to_owned())
}

/// Returns what is said to whoever asks a model of text for vectors.
pub(crate) fn makes_no_vectors() -> JobError {
    JobError::BadRequest("this model makes text and no vectors: ask another one for embeddings".to_owned())
}

impl Generate {
    /// Checks every field against its range; the error says what to send instead.
    pub fn validate(&self) -> Result<(), JobError> {
        self.sampling.validate()?;
        if let Some(top) = self.logprobs.filter(|top| *top > LOGPROBS_MAX) {
            return bad(format!("logprobs is {top}: ask for at most {LOGPROBS_MAX} alternatives"));
        }
        match &self.prompt {
            Prompt::Chat(messages) if messages.is_empty() => {
                bad("the chat has no messages: send at least one".to_owned())
            }
            Prompt::Chat(messages) if messages.len() > CHAT_MESSAGES_MAX => {
                bad(format!("the chat has {} messages: send at most {CHAT_MESSAGES_MAX}", messages.len()))
            }
            Prompt::Tools(chat) => chat.validate(),
            Prompt::Tokens(ids) if ids.is_empty() => bad("the prompt has no tokens: send some".to_owned()),
            Prompt::Chat(_) | Prompt::Text(_) | Prompt::Tokens(_) => Ok(()),
        }
    }
}

impl Sampling {
    /// Checks every field against its range; a NaN is outside of all.
    pub fn validate(&self) -> Result<(), JobError> {
        // `contains` is false for NaN, which is what we want.
        if !(0.0..=2.0).contains(&self.temperature) {
            return bad(format!("temperature is {}: send a number from 0 to 2", self.temperature));
        }
        if !(f32::MIN_POSITIVE..=1.0).contains(&self.top_p) {
            return bad(format!("top_p is {}: send a number above 0 and at most 1", self.top_p));
        }
        if !(0.01..=2.0).contains(&self.repetition_penalty) {
            return bad(format!(
                "repetition_penalty is {}: send a number from 0.01 to 2",
                self.repetition_penalty
            ));
        }
        let penalties =
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)];
        if let Some((name, penalty)) = penalties.iter().find(|(_, value)| !(-2.0..=2.0).contains(value)) {
            return bad(format!("{name} is {penalty}: send a number from -2 to 2"));
        }
        if self.logit_bias.len() > LOGIT_BIAS_MAX {
            return bad(format!(
                "logit_bias names {} tokens: at most {LOGIT_BIAS_MAX}",
                self.logit_bias.len()
            ));
        }
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            return bad(format!("logit_bias of token {id} is {bias}: send a number from -100 to 100"));
        }
        if self.stop.len() > STOP_STRINGS_MAX {
            return bad(format!("{} stop strings: send at most {STOP_STRINGS_MAX}", self.stop.len()));
        }
        if self.stop.iter().any(|stop| stop.is_empty() || stop.len() > STOP_STRING_BYTES_MAX) {
            return bad(format!("a stop string has 1 to {STOP_STRING_BYTES_MAX} bytes: change or remove it"));
        }
        Ok(())
    }
}

fn bad(what: String) -> Result<(), JobError> {
    Err(JobError::BadRequest(what))
}

/// What the worker says to its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Says how far loading is; repeated, so that a slow load can be told from a hung one.
    Loading {
        /// Part done, 0 to 100.
        percent: u8,
        /// What is being done, in words.
        what: String,
    },
    /// Says that the model is loaded and jobs are taken.
    Ready(ModelInfo),
    /// Says that the model cannot be loaded; the process ends after it.
    LoadFailed {
        /// Why, and what to do.
        error: String,
    },
    /// Says that the prompt was templated and counted.
    Prepared {
        /// The job's key.
        job: JobKey,
        /// Tokens of the prompt, without the resumed ones.
        tokens_in: u32,
    },
    /// Carries the next part of an answer.
    Tokens {
        /// The job's key.
        job: JobKey,
        /// Index of the first token in this frame, counted from the beginning of the answer. In a frame without
        /// tokens, the index that the next one would have had.
        index: u32,
        /// The tokens, without the one with which a model ends its answer.
        ids: Vec<u32>,
        /// Text, always whole UTF-8 characters. Bytes that begin a character or may begin a stop string come
        /// with a later frame; at the end they are flushed (broken characters as U+FFFD), except after
        /// [`Finish::Cancelled`], so that the answer can be resumed elsewhere.
        bytes: Vec<u8>,
        /// As many as there are ids, if they were asked for.
        logprobs: Option<Vec<TokenLogprob>>,
        /// Set in the last frame of the job.
        finish: Option<Finish>,
    },
    /// Says that a job ended without an answer.
    Failed {
        /// The job's key.
        job: JobKey,
        /// Why.
        error: JobError,
    },
    /// Answers a `Ping`, from the thread that reads, even while others compute.
    ///
    /// A worker whose `turns` stand still from one pong to the next while it is `busy` is computing one turn
    /// (at most one chunk of a prompt and one token of each job) for that long, or hangs.
    Pong {
        /// The number of the ping.
        number: u64,
        /// Turns of the compute loop so far.
        turns: u64,
        /// Whether the compute loop is inside a turn.
        busy: bool,
    },
    /// Carries the next vectors of a job that asks for them; a bound of `Grant` counts vectors.
    Vectors {
        /// The job's key.
        job: JobKey,
        /// Index of the first vector in this frame.
        index: u32,
        /// One for each input, in their order.
        vectors: Vec<Vec<f32>>,
        /// Set in the last frame of the job.
        finish: Option<Finish>,
    },
}

/// The log probability of one token, before temperature, penalties and filters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Of the chosen token.
    pub logprob: f32,
    /// The chosen token's bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// The likeliest tokens, best first.
    pub top: Vec<Alternative>,
}

/// A token that might have been chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// The token.
    pub id: u32,
    /// Its log probability.
    pub logprob: f32,
    /// Its bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model ended it, or a stop string came up.
    Stop,
    /// It reached `max_tokens` or the end of the model's context.
    Length,
    /// The node cancelled it.
    Cancelled,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum JobError {
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens and the context {context}: shorten the prompt")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: u32,
        /// Tokens of the context.
        context: u32,
        /// Which of several texts it is, the first being 0.
        text: Option<u32>,
    },
    /// All slots are taken.
    #[error("all slots of this worker are taken: try again when a job has ended")]
    TooManyJobs,
    /// The request makes no sense.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// The form that the answer shall have goes beyond our own bounds: [`crate::grammar::check`] says so before.
    #[error("bad form of the answer: {0}")]
    BadForm(String),
    /// The worker is at fault.
    #[error("the engine failed: {0}")]
    Internal(String),
}

/// What a loaded model is and can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The model's name for people, from its file.
    pub name: String,
    /// The family, such as `llama`.
    pub architecture: String,
    /// What it makes.
    pub output: Output,
    /// How most weights are stored, such as `Q4_1`; as in the source file, before any requantisation.
    pub quantisation: String,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    /// Number of weights.
    pub parameters: u64,
    /// Jobs at once.
    pub slots: u32,
    /// Where it runs.
    pub device: DeviceInfo,
    /// Memory of the weights.
    pub weights_bytes: u64,
    /// BLAKE3 of the chat template's text.
    pub chat_template_digest: [u8; 32],
    /// BLAKE3 of everything that makes tokens from text.
    pub tokenizer_digest: [u8; 32],
    /// BLAKE3 of the source file, where it was read whole.
    pub weights_digest: Option<[u8; 32]>,
    /// Tokens per second of one job's answer, or vectors of short texts, in thousandths, measured after loading.
    pub decode_tokens_per_s_milli: u64,
    /// Tokens per second of a prompt, in thousandths, measured after loading.
    pub prefill_tokens_per_s_milli: u64,
}

/// What a model makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Text, token by token.
    Text,
    /// Vectors of so many numbers.
    Vectors(u32),
}

/// What a model runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `cpu` or `cuda`.
    pub kind: String,
    /// The device's own name.
    pub name: String,
    /// Its memory; 0 where it cannot be known.
    pub memory_bytes: u64,
}

/// Returns a frame's bytes without the length.
pub fn encode<T: Serialize>(frame: &T) -> io::Result<Vec<u8>> {
    let bytes = postcard::to_stdvec(frame).map_err(invalid)?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(invalid(format!("a frame of {} bytes: at most {FRAME_BYTES_MAX} fit", bytes.len())));
    }
    Ok(bytes)
}

/// Takes a frame from all of `bytes`, which are without the length.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let (frame, rest) = postcard::take_from_bytes(bytes).map_err(invalid)?;
    if !rest.is_empty() {
        return Err(invalid(format!(
            "{} bytes after a frame: both sides must be the same version",
            rest.len()
        )));
    }
    Ok(frame)
}

/// Writes a frame with its length and flushes.
pub fn write_frame<T: Serialize>(output: &mut impl Write, frame: &T) -> io::Result<()> {
    let bytes = encode(frame)?;
    let length = u32::try_from(bytes.len()).expect("FRAME_BYTES_MAX fits 32 bits");
    output.write_all(&length.to_be_bytes())?;
    output.write_all(&bytes)?;
    output.flush()
}

/// Reads a frame; `None` at the end of the input between two frames.
pub fn read_frame<T: DeserializeOwned>(input: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    if !read_or_end(input, &mut length)? {
        return Ok(None);
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(invalid(format!("a frame of {length} bytes: at most {FRAME_BYTES_MAX} are taken")));
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    decode(&bytes).map(Some)
}

fn read_or_end(input: &mut impl Read, buffer: &mut [u8; 4]) -> io::Result<bool> {
    loop {
        match input.read(&mut buffer[..1]) {
            Ok(0) => return Ok(false),
            Ok(_) => return input.read_exact(&mut buffer[1..]).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn generate() -> Generate {
        Generate {
            prompt: Prompt::Text("once".to_owned()),
            sampling: Sampling::default(),
            max_tokens: 8,
            resume: vec![1, 2],
            logprobs: Some(3),
            form: None,
        }
    }

    #[test]
    fn frames_survive_the_pipe_in_order() {
        let start =
            ToWorker::Start { job: JobKey([7; 16]), request: Request::Generate(generate()), up_to: 4 };
        let mut pipe = Vec::new();
        write_frame(&mut pipe, &start).expect("a vector takes all");
        write_frame(&mut pipe, &ToWorker::Ping(9)).expect("a vector takes all");

        let mut input = pipe.as_slice();

        assert_eq!(read_frame(&mut input).expect("valid"), Some(start));
        assert_eq!(read_frame(&mut input).expect("valid"), Some(ToWorker::Ping(9)));
        assert_eq!(read_frame::<ToWorker>(&mut input).expect("the end is no error"), None);
    }

    #[test]
    fn a_length_over_the_bound_is_refused_before_memory_is_taken() {
        let mut input = &[0xff_u8; 8][..];
        let error = read_frame::<ToWorker>(&mut input).expect_err("4 GiB");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_frame_over_the_bound_is_not_written() {
        let mut request = generate();
        request.prompt = Prompt::Text("x".repeat(FRAME_BYTES_MAX));
        let start = ToWorker::Start { job: JobKey([0; 16]), request: Request::Generate(request), up_to: 0 };
        assert!(write_frame(&mut Vec::new(), &start).is_err());
    }

    #[test]
    fn a_frame_cut_short_is_an_error_and_not_the_end() {
        let mut pipe = Vec::new();
        write_frame(&mut pipe, &ToWorker::Ping(1 << 40)).expect("a vector takes all");
        for length in 1..pipe.len() {
            assert!(read_frame::<ToWorker>(&mut &pipe[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn every_setting_outside_its_range_is_named_in_the_refusal() {
        let with = |change: fn(&mut Generate)| {
            let mut request = generate();
            change(&mut request);
            match request.validate() {
                Err(JobError::BadRequest(what)) => what,
                other => panic!("expected a refusal, not {other:?}"),
            }
        };
        assert!(generate().validate().is_ok());
        assert!(with(|request| request.sampling.temperature = f32::NAN).contains("temperature"));
        assert!(with(|request| request.sampling.temperature = -0.1).contains("temperature"));
        assert!(with(|request| request.sampling.top_p = 0.0).contains("top_p"));
        assert!(with(|request| request.sampling.top_p = f32::INFINITY).contains("top_p"));
        assert!(with(|request| request.sampling.repetition_penalty = 0.0).contains("repetition_penalty"));
        assert!(with(|request| request.sampling.presence_penalty = 2.1).contains("presence_penalty"));
        assert!(with(|request| request.sampling.frequency_penalty = f32::NAN).contains("frequency_penalty"));
        assert!(with(|request| request.sampling.logit_bias = vec![(3, 101.0)]).contains("logit_bias"));
        assert!(with(|request| request.sampling.logit_bias = vec![(3, 1.0); 301]).contains("logit_bias"));
        assert!(with(|request| request.sampling.stop = vec![String::new()]).contains("stop"));
        assert!(with(|request| request.sampling.stop = vec!["x".to_owned(); 17]).contains("stop"));
        assert!(with(|request| request.logprobs = Some(21)).contains("logprobs"));
        assert!(with(|request| request.prompt = Prompt::Chat(Vec::new())).contains("messages"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_a_reader(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode::<ToWorker>(&bytes);
            let _ = decode::<FromWorker>(&bytes);
            let _ = read_frame::<ToWorker>(&mut bytes.as_slice());
        }
    }
}
