//! A model without weights: reproducible tokens, at any pace, with faults on request. For tests only.
//!
//! Token `i` of an answer is a pure function of the prompt's tokens, the seed and `i`; the settings of the
//! sampler do not matter, because the fake gives one token all the probability. An answer that is kept to a form is the
//! shortest one of that form.
//!
//! A prompt may contain directives, each at most once: `[[crash=5]]` aborts the process before token 5,
//! `[[hang=5]]` stops the computing thread for ever before token 5, `[[fail=5]]` makes computing token 5 an error,
//! `[[break=5]]` that and all that follows, `[[end=5]]` ends the answer after 5 tokens, `[[emoji]]` makes an answer of
//! emoji whose four bytes are four tokens, the last `[[say=…]]` an answer of these very words.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::frame::{ChatMessage, DeviceInfo, Generate, JobError, ModelInfo, Output, Prompt};
use crate::grammar::Grammars;
use crate::model::{Model, PreparedJob, Vocabulary};
use crate::options::{FAKE_CONTEXT_LENGTH, FakeOptions};
use crate::sampler::mix;

/// The token that ends an answer.
const END: u32 = 0;
/// The tokens that are one byte each begin here.
const BYTES: u32 = 1;
/// The tokens that are words begin here.
const WORDS: u32 = BYTES + 256;
const WORDS_COUNT: u32 = 1024;
const VOCABULARY_SIZE: usize = (WORDS + WORDS_COUNT) as usize;

/// Bytes of a prompt that make one token, about as in English with a real model.
const BYTES_PER_TOKEN: usize = 4;

/// Tokens that an instant fake makes before they are sent, so that a test's answer is one frame or a few.
const TOKENS_PER_TURN: usize = 64;

/// The model; its architecture is `fake`, by which a node can refuse it.
pub struct Fake {
    options: FakeOptions,
    info: ModelInfo,
    broken: AtomicBool,
}

impl Fake {
    /// Pretends to load.
    pub fn load(options: &FakeOptions) -> Result<Self> {
        thread::sleep(Duration::from_millis(options.load_ms));
        if let Some(error) = &options.fail_to_load {
            bail!("{error}");
        }
        Ok(Self { options: options.clone(), info: info(options), broken: AtomicBool::new(false) })
    }
}

fn info(options: &FakeOptions) -> ModelInfo {
    ModelInfo {
        name: "fake".to_owned(),
        architecture: "fake".to_owned(),
        output: Output::Text,
        quantisation: "none".to_owned(),
        context_length: context_length(options),
        parameters: 0,
        slots: 0,
        device: DeviceInfo { kind: "cpu".to_owned(), name: "fake".to_owned(), memory_bytes: 0 },
        weights_bytes: 0,
        chat_template_digest: *blake3::hash(b"fake template").as_bytes(),
        tokenizer_digest: *blake3::hash(b"fake tokenizer").as_bytes(),
        weights_digest: Some(*blake3::hash(b"fake weights").as_bytes()),
        decode_tokens_per_s_milli: speed_milli(options.tokens_per_s),
        prefill_tokens_per_s_milli: speed_milli(options.prefill_tokens_per_s),
    }
}

fn context_length(options: &FakeOptions) -> u32 {
    if options.context_length == 0 { FAKE_CONTEXT_LENGTH } else { options.context_length }
}

/// An instant fake says a speed that is high, but not so high that sums with it overflow.
fn speed_milli(tokens_per_s: u32) -> u64 {
    let tokens_per_s = if tokens_per_s == 0 { 100_000 } else { tokens_per_s };
    u64::from(tokens_per_s) * 1000
}

/// One job of the fake.
pub struct FakeSession {
    directives: Directives,
    prompt: u64,
    seed: u64,
    /// The answer is kept to a form.
    has_form: bool,
    tokens_in: usize,
    read: usize,
    due: Instant,
}

impl Model for Fake {
    type Session = FakeSession;

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn open(&self, job: &PreparedJob) -> Result<FakeSession> {
        let prompt = job.ids[..job.tokens_in].iter().fold(0, |state, id| mix(state ^ u64::from(*id)));
        Ok(FakeSession {
            directives: Directives::read(&text_of(&job.generate.prompt)),
            prompt,
            seed: job.generate.sampling.seed,
            has_form: job.constraint.is_some(),
            tokens_in: job.tokens_in,
            read: 0,
            due: Instant::now(),
        })
    }

    fn prefill(&self, session: &mut FakeSession, ids: &[u32]) -> Result<()> {
        session.read += ids.len();
        sleep_per_token(self.options.prefill_tokens_per_s, ids.len());
        Ok(())
    }

    fn decode(&self, batch: &mut [(&mut FakeSession, u32)]) -> Result<Vec<Vec<f32>>> {
        self.keep_pace(batch);
        batch.iter_mut().map(|(session, _)| self.next(session)).collect()
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.broken.load(Ordering::Relaxed), "the fake device is broken");
        Ok(())
    }

    fn tokens_per_turn(&self) -> usize {
        if self.options.tokens_per_s == 0 { TOKENS_PER_TURN } else { 1 }
    }
}

impl Fake {
    fn next(&self, session: &mut FakeSession) -> Result<Vec<f32>> {
        session.read += 1;
        let index = u32::try_from(session.read - session.tokens_in).expect("bounded by the context");
        let directives = &session.directives;
        if [directives.crash_at, self.options.crash_at].contains(&Some(index)) {
            std::process::abort();
        }
        while [directives.hang_at, self.options.hang_at].contains(&Some(index)) {
            thread::park();
        }
        if directives.break_at == Some(index) {
            self.broken.store(true, Ordering::Relaxed);
        }
        self.check()?;
        ensure!(directives.fail_at != Some(index), "the fake failed on request");
        if session.has_form || directives.say.is_some() {
            return Ok(directives.say(index));
        }
        let mut logits = vec![f32::NEG_INFINITY; VOCABULARY_SIZE];
        logits[session.token(index) as usize] = 0.0;
        Ok(logits)
    }

    fn keep_pace(&self, batch: &mut [(&mut FakeSession, u32)]) {
        if self.options.tokens_per_s == 0 {
            return;
        }
        let interval = Duration::from_secs(1) / self.options.tokens_per_s;
        let latest = batch.iter().map(|(session, _)| session.due).max();
        thread::sleep(latest.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now())));
        for (session, _) in batch {
            session.due = (session.due + interval).max(Instant::now());
        }
    }
}

impl FakeSession {
    fn token(&self, index: u32) -> u32 {
        if self.directives.end_at == Some(index) {
            return END;
        }
        if self.directives.emoji {
            let bytes = "🙂".as_bytes();
            return BYTES + u32::from(bytes[index as usize % bytes.len()]);
        }
        let number = mix(self.prompt ^ mix(self.seed) ^ mix(u64::from(index)).rotate_left(1));
        WORDS + u32::try_from(number % u64::from(WORDS_COUNT)).expect("less than the count")
    }
}

fn sleep_per_token(tokens_per_s: u32, tokens: usize) {
    if tokens_per_s != 0 {
        thread::sleep(Duration::from_secs_f64(tokens as f64 / f64::from(tokens_per_s)));
    }
}

#[derive(Debug, Default, PartialEq)]
struct Directives {
    crash_at: Option<u32>,
    hang_at: Option<u32>,
    fail_at: Option<u32>,
    break_at: Option<u32>,
    end_at: Option<u32>,
    emoji: bool,
    say: Option<String>,
}

impl Directives {
    fn read(text: &str) -> Self {
        let at = |name| {
            let (_, rest) = text.split_once(&format!("[[{name}="))?;
            rest.split_once("]]")?.0.parse().ok()
        };
        Self {
            crash_at: at("crash"),
            hang_at: at("hang"),
            fail_at: at("fail"),
            break_at: at("break"),
            end_at: at("end"),
            emoji: text.contains("[[emoji]]"),
            say: text.rsplit_once("[[say=").and_then(|(_, rest)| Some(rest.split_once("]]")?.0.to_owned())),
        }
    }

    /// Returns logits under which the answer says what it shall and then ends; where it says nothing, or may not, the
    /// shortest answer of its form is by far the likeliest: what ends something comes first.
    fn say(&self, index: u32) -> Vec<f32> {
        const STEP: f32 = 1_000.0;
        let mut logits: Vec<f32> = (0..VOCABULARY_SIZE).map(|id| -STEP * (8 + id) as f32).collect();
        let byte = |byte: u8| (BYTES + u32::from(byte)) as usize;
        let first = [END as usize, byte(b'"'), byte(b'}'), byte(b']')];
        for (rank, id) in first.into_iter().enumerate() {
            logits[id] = -STEP * rank as f32;
        }
        if let Some(said) = self.say.as_ref().and_then(|say| say.as_bytes().get(index as usize)) {
            logits[byte(*said)] = STEP;
        }
        logits
    }
}

/// The fake's words.
pub struct FakeVocabulary {
    context_length: u32,
}

impl FakeVocabulary {
    /// Returns the words of a fake with these options.
    pub fn new(options: &FakeOptions) -> Self {
        Self { context_length: context_length(options) }
    }
}

impl Vocabulary for FakeVocabulary {
    fn prepare(&self, generate: Arc<Generate>) -> Result<PreparedJob, JobError> {
        let prompt = match &generate.prompt {
            Prompt::Tokens(ids) => ids.clone(),
            prompt @ (Prompt::Chat(_) | Prompt::Text(_) | Prompt::Tools(_)) => {
                text_of(prompt).as_bytes().chunks(BYTES_PER_TOKEN).map(word_for).collect()
            }
        };
        PreparedJob::new(generate, prompt, self.context_length, VOCABULARY_SIZE)?.constrain(grammars)
    }

    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        match id {
            END => Cow::Borrowed(&[]),
            BYTES..WORDS => Cow::Owned(vec![u8::try_from(id - BYTES).expect("one of 256")]),
            _ => Cow::Owned(word(id - WORDS).into_bytes()),
        }
    }

    fn is_end(&self, id: u32) -> bool {
        id == END
    }
}

/// Returns what keeps the fake's answers to a form; its vocabulary never changes.
fn grammars() -> Result<&'static Grammars, JobError> {
    static GRAMMARS: LazyLock<Result<Grammars, String>> = LazyLock::new(|| {
        let fake = FakeVocabulary::new(&FakeOptions::default());
        let words: Vec<_> = (0..).take(VOCABULARY_SIZE).map(|id| fake.token_bytes(id).into_owned()).collect();
        Grammars::new(words, &[END]).map_err(|error| format!("{error:#}"))
    });
    GRAMMARS.as_ref().map_err(|error| JobError::Internal(error.clone()))
}

/// Returns the template of the fake: a line per message.
fn text_of(prompt: &Prompt) -> Cow<'_, str> {
    match prompt {
        Prompt::Text(text) => Cow::Borrowed(text),
        Prompt::Chat(messages) => lines_of(messages).into(),
        Prompt::Tools(chat) => lines_of(&chat.in_words()).into(),
        // No directive is told by tokens.
        Prompt::Tokens(_) => Cow::Borrowed(""),
    }
}

fn lines_of(messages: &[ChatMessage]) -> String {
    messages.iter().map(|message| format!("{}: {}\n", message.role, message.content)).collect()
}

fn word_for(bytes: &[u8]) -> u32 {
    let number = bytes.iter().fold(0, |state, byte| mix(state ^ u64::from(*byte)));
    WORDS + u32::try_from(number % u64::from(WORDS_COUNT)).expect("less than the count")
}

/// Returns a space and two syllables, different for each number below 1,024.
fn word(number: u32) -> String {
    const CONSONANTS: [&str; 8] = ["b", "d", "k", "l", "m", "n", "s", "t"];
    const VOWELS: [&str; 4] = ["a", "e", "i", "o"];
    let syllable =
        |number: u32| [CONSONANTS[(number / 4 % 8) as usize], VOWELS[(number % 4) as usize]].concat();
    [" ", &syllable(number / 32), &syllable(number % 32)].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::direct::Engine;
    use crate::frame::{Finish, Sampling};
    use crate::options::{DeviceChoice, ModelSource, WorkerOptions};

    fn engine(options: FakeOptions) -> Engine {
        let model = ModelSource::Fake(options);
        Engine::load(&WorkerOptions {
            model,
            device: DeviceChoice::Cpu,
            slots: 1,
            context_max: None,
            threads: None,
        })
        .expect("a fake loads")
    }

    fn generate(prompt: &str, seed: u64, max_tokens: u32) -> Generate {
        Generate {
            prompt: Prompt::Text(prompt.to_owned()),
            sampling: Sampling { seed, ..Sampling::default() },
            max_tokens,
            resume: Vec::new(),
            logprobs: None,
            form: None,
        }
    }

    fn ids(request: Generate) -> Vec<u32> {
        engine(FakeOptions::default()).generate(request, |_| ()).expect("no fault").ids
    }

    #[test]
    fn the_same_prompt_and_seed_make_the_same_answer_and_others_another() {
        let first = ids(generate("hello there", 1, 32));
        assert_eq!(first, ids(generate("hello there", 1, 32)));
        assert_ne!(first, ids(generate("hello there", 2, 32)));
        assert_ne!(first, ids(generate("hello, there", 1, 32)));
        assert!(first.iter().collect::<BTreeSet<_>>().len() > 20, "{first:?}");
    }

    #[test]
    fn the_tokens_of_a_prompt_make_the_answer_that_the_prompt_makes() {
        let tokens: Vec<u32> = b"hello there".chunks(BYTES_PER_TOKEN).map(word_for).collect();
        let request = |ids: Vec<u32>| Generate { prompt: Prompt::Tokens(ids), ..generate("", 1, 32) };

        assert_eq!(ids(request(tokens.clone())), ids(generate("hello there", 1, 32)));
        assert_ne!(ids(request(tokens[1..].to_vec())), ids(request(tokens)));
    }

    #[test]
    fn an_answer_resumes_at_every_index() {
        let whole = ids(generate("resume me", 3, 20));
        for index in 0..=20 {
            let mut request = generate("resume me", 3, 20);
            request.resume = whole[..index].to_vec();
            assert_eq!(ids(request), whole[index..], "from {index}");
        }
    }

    #[test]
    fn emoji_across_tokens_come_whole() {
        let answer =
            engine(FakeOptions::default()).generate(generate("[[emoji]]", 0, 10), |_| ()).expect("no fault");
        assert_eq!(answer.text, "🙂🙂\u{fffd}");
        assert_eq!(answer.ids.len(), 10);
    }

    #[test]
    fn an_answer_ends_where_the_prompt_says() {
        let answer =
            engine(FakeOptions::default()).generate(generate("[[end=7]]", 0, 10), |_| ()).expect("no fault");
        assert_eq!((answer.ids.len(), answer.finish), (7, Finish::Stop));
    }

    #[test]
    fn every_word_is_different() {
        assert_eq!((0..WORDS_COUNT).map(word).collect::<BTreeSet<_>>().len(), WORDS_COUNT as usize);
    }

    #[test]
    fn a_paced_fake_keeps_its_pace() {
        let fake = engine(FakeOptions { tokens_per_s: 200, ..FakeOptions::default() });
        let begun = Instant::now();
        fake.generate(generate("pace", 0, 20), |_| ()).expect("no fault");
        assert!(begun.elapsed() >= Duration::from_millis(90), "{:?}", begun.elapsed());
    }

    #[test]
    fn directives_are_found_anywhere() {
        let found = Directives::read("please [[crash=5]] and [[hang=x]] [[end=7]]");
        assert_eq!(found, Directives { crash_at: Some(5), end_at: Some(7), ..Directives::default() });
    }
}
