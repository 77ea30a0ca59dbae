//! Runs a model in this very process, without frames: for benchmarks, and to compare a worker's answers with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::frame::{Embed, Finish, Generate, ModelInfo, makes_no_text, makes_no_vectors};
use crate::generation::{Generation, Part};
use crate::load::{Loaded, load};
use crate::model::{Model, Vocabulary};
use crate::options::WorkerOptions;

/// A loaded model.
pub struct Engine {
    loaded: Loaded,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The text, without what was resumed.
    pub text: String,
    /// The tokens, without the resumed ones.
    pub ids: Vec<u32>,
    /// Tokens of the prompt.
    pub tokens_in: u32,
    /// Why it ended.
    pub finish: Finish,
    /// How long it took.
    pub timings: Timings,
}

/// How long the stages of an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Templating and tokenizing.
    pub prepare: Duration,
    /// From there to the first token.
    pub first_token: Duration,
    /// From the first token to the end.
    pub decode: Duration,
}

impl Timings {
    /// Returns the speed after the first token; 0 for an answer of at most one.
    pub fn decode_tokens_per_s(&self, tokens: usize) -> f64 {
        let seconds = self.decode.as_secs_f64();
        if seconds == 0.0 { 0.0 } else { tokens.saturating_sub(1) as f64 / seconds }
    }
}

impl Engine {
    /// Loads the model that `options` name; slots do not matter here.
    pub fn load(options: &WorkerOptions) -> Result<Self> {
        options.validate()?;
        let mut progress = |percent: u8, what: &str| tracing::debug!(percent, what, "Loading");
        Ok(Self { loaded: load(options, &mut progress)? })
    }

    /// Says what was loaded.
    pub fn info(&self) -> &ModelInfo {
        match &self.loaded {
            Loaded::Fake(model, _) => model.info(),
            Loaded::Llama(model, _) => model.info(),
            Loaded::Bert(model, _) => model.info(),
        }
    }

    #[cfg(test)]
    pub(crate) fn gguf_vocabulary(&self) -> &crate::tokenizer::GgufVocabulary {
        match &self.loaded {
            Loaded::Fake(..) | Loaded::Bert(..) => panic!("it has no such vocabulary"),
            Loaded::Llama(_, vocabulary) => vocabulary,
        }
    }

    /// Generates one answer; `on_part` is called with each part as soon as it is known.
    pub fn generate(&self, generate: Generate, on_part: impl FnMut(&Part)) -> Result<Completion> {
        match &self.loaded {
            Loaded::Fake(model, vocabulary) => complete(&**model, vocabulary.clone(), generate, on_part),
            Loaded::Llama(model, vocabulary) => complete(&**model, vocabulary.clone(), generate, on_part),
            Loaded::Bert(..) => Err(makes_no_text().into()),
        }
    }

    /// Makes a vector of each input, all at once, as a worker would; returns the tokens that were read, too.
    pub fn embed(&self, embed: &Embed) -> Result<(Vec<Vec<f32>>, usize)> {
        let Loaded::Bert(model, words) = &self.loaded else { return Err(makes_no_vectors().into()) };
        embed.validate()?;
        let inputs = words.prepare(embed)?;
        let texts: Vec<_> = inputs.iter().map(Vec::as_slice).collect();
        Ok((model.embed(&texts)?, inputs.iter().map(Vec::len).sum()))
    }
}

/// Loads a model and generates one answer, as a worker would.
pub fn generate_directly(
    options: &WorkerOptions,
    generate: Generate,
    on_part: impl FnMut(&Part),
) -> Result<Completion> {
    Engine::load(options)?.generate(generate, on_part)
}

fn complete<M: Model>(
    model: &M,
    vocabulary: Arc<dyn Vocabulary>,
    generate: Generate,
    mut on_part: impl FnMut(&Part),
) -> Result<Completion> {
    generate.validate()?;
    let begun = Instant::now();
    let job = vocabulary.prepare(Arc::new(generate))?;
    let prepared = Instant::now();
    let tokens_in = u32::try_from(job.tokens_in).expect("bounded by the context");
    let mut generation = Generation::open(model, vocabulary, job)?;
    let mut first_token = None;
    let mut answer = Part::default();
    loop {
        if let Some(part) = generation.take_part() {
            first_token.get_or_insert_with(Instant::now);
            on_part(&part);
            answer.ids.extend(part.ids);
            answer.bytes.extend(part.bytes);
            answer.finish = part.finish;
        }
        if answer.finish.is_some() {
            break;
        }
        if let Some(fault) = generation.take_fault() {
            return Err(fault.into());
        }
        step(model, &mut generation)?;
    }
    let first_token = first_token.unwrap_or(prepared);
    Ok(Completion {
        text: String::from_utf8(answer.bytes).expect("parts have whole characters"),
        ids: answer.ids,
        tokens_in,
        finish: answer.finish.expect("the loop ends with it"),
        timings: Timings {
            prepare: prepared - begun,
            first_token: first_token - prepared,
            decode: first_token.elapsed(),
        },
    })
}

fn step<M: Model>(model: &M, generation: &mut Generation<M::Session>) -> Result<()> {
    if generation.is_prefilling() {
        return generation.prefill(model);
    }
    let logits = model.decode(&mut [generation.decode_input()])?;
    logits.into_iter().try_for_each(|logits| generation.accept(logits))
}
