//! Loads the model that the options name, and measures it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::Device;

use crate::device;
use crate::fake::{Fake, FakeVocabulary};
use crate::frame::{DeviceInfo, Generate, ModelInfo, Output, Prompt, Sampling};
use crate::generation::PREFILL_TOKENS_MAX;
use crate::model::bert::{self, Bert};
use crate::model::llama::{Config, Llama};
use crate::model::{Model, PreparedJob};
use crate::options::{ModelSource, WorkerOptions};
use crate::pages;
use crate::tokenizer::GgufVocabulary;
use crate::weights::{self, Weights};
use crate::wordpiece::WordPieces;

/// Tokens that are decoded to measure the speed; more would only make loading slower.
const WARM_UP_TOKENS: u32 = 8;

/// Tokens of the text that is read to measure an encoder's speed.
const LONG_TEXT_TOKENS: u32 = 128;

/// A model of one of the kinds that this crate knows, with its vocabulary.
pub(crate) enum Loaded {
    Fake(Box<Fake>, Arc<FakeVocabulary>),
    Llama(Box<Llama>, Arc<GgufVocabulary>),
    Bert(Box<Bert>, Arc<WordPieces>),
}

/// Loads; `progress` is told the percentage and what is being done.
pub(crate) fn load(options: &WorkerOptions, progress: &mut dyn FnMut(u8, &str)) -> Result<Loaded> {
    match &options.model {
        ModelSource::Fake(fake) => {
            progress(0, "loading the fake model");
            Ok(Loaded::Fake(Box::new(Fake::load(fake)?), Arc::new(FakeVocabulary::new(fake))))
        }
        ModelSource::Gguf { path, cache_dir } => {
            warn_of_environment(options);
            let (device, device_info) = device::open(options.device)?;
            let mut weights = weights::load(path, cache_dir, &device, progress)?;
            let context_max = options.context_max.unwrap_or(u32::MAX);
            if bert::Config::is_meant(&weights.metadata) {
                encoder(&mut weights, &device, device_info, context_max, progress)
            } else {
                llama(&mut weights, &device, device_info, context_max, progress)
            }
        }
    }
}

/// Says what a file says of its model, without what only its kind knows.
fn info(weights: &Weights, device: DeviceInfo, output: Output, context_length: u32) -> ModelInfo {
    let text = |key: &str, otherwise: &str| weights.metadata.text(key).unwrap_or(otherwise).to_owned();
    ModelInfo {
        name: text("general.name", "unnamed"),
        architecture: text("general.architecture", "none"),
        output,
        quantisation: weights.quantisation.clone(),
        context_length,
        parameters: weights.parameters,
        slots: 0,
        device,
        weights_bytes: weights.bytes,
        chat_template_digest: *blake3::hash(b"").as_bytes(),
        tokenizer_digest: [0; 32],
        weights_digest: Some(weights.digest),
        decode_tokens_per_s_milli: 0,
        prefill_tokens_per_s_milli: 0,
    }
}

fn llama(
    weights: &mut Weights,
    device: &Device,
    device_info: DeviceInfo,
    context_max: u32,
    progress: &mut dyn FnMut(u8, &str),
) -> Result<Loaded> {
    let config = Config::new(&weights.metadata)?;
    let context_length = config.context_length.min(context_max);
    let vocabulary = GgufVocabulary::new(&weights.metadata, context_length)?;
    let info = ModelInfo {
        chat_template_digest: vocabulary.template_digest(),
        tokenizer_digest: vocabulary.digest(),
        ..info(weights, device_info, Output::Text, context_length)
    };
    let mut model = Llama::new(weights, config, device, info)?;
    check_vocabulary(model.vocabulary_size(), vocabulary.size())?;
    progress(95, "measuring");
    let (decode, prefill) = measure(&model).context("the model does not compute")?;
    model.set_speeds(decode, prefill);
    Ok(Loaded::Llama(Box::new(model), Arc::new(vocabulary)))
}

fn encoder(
    weights: &mut Weights,
    device: &Device,
    device_info: DeviceInfo,
    context_max: u32,
    progress: &mut dyn FnMut(u8, &str),
) -> Result<Loaded> {
    let config = bert::Config::new(&weights.metadata)?;
    let context_length = config.context_length.min(context_max);
    let words = WordPieces::new(&weights.metadata, context_length)?;
    let output = Output::Vectors(config.dimensions());
    let info =
        ModelInfo { tokenizer_digest: words.digest(), ..info(weights, device_info, output, context_length) };
    let mut model = Bert::new(weights, config, device, info)?;
    check_vocabulary(model.vocabulary_size(), words.size())?;
    progress(95, "measuring");
    let (vectors, tokens) = measure_encoder(&model).context("the model does not compute")?;
    model.set_speeds(vectors, tokens);
    Ok(Loaded::Bert(Box::new(model), Arc::new(words)))
}

fn check_vocabulary(known: usize, named: usize) -> Result<()> {
    ensure!(known >= named, "the model knows fewer tokens than its tokenizer: fetch the file again");
    Ok(())
}

/// Returns thousandths of vectors of short texts per second, and of tokens of a long one.
fn measure_encoder(model: &Bert) -> Result<(u64, u64)> {
    /// Tokens of a sentence.
    const SHORT: u32 = 16;
    let context = model.info().context_length;
    let (short, long) = (SHORT.min(context), LONG_TEXT_TOKENS.min(context));
    let ids = vec![0; long as usize];
    // The first pass also arranges the weights for the kernels.
    model.embed(&[&ids[..short as usize]])?;
    pages::gather();
    let begun = Instant::now();
    model.embed(&[&ids])?;
    model.check()?;
    let read = Instant::now();
    model.embed(&[&ids[..short as usize]])?;
    model.check()?;
    Ok((speed_milli(1, read.elapsed()), speed_milli(long, read - begun)))
}

/// What a worker was not started with cannot be set any more.
fn warn_of_environment(options: &WorkerOptions) {
    for (name, wanted) in options.environment() {
        let found = std::env::var(name).unwrap_or_default();
        if found != wanted {
            tracing::warn!(name, found, wanted, "Start the worker with the environment of its options");
        }
    }
}

/// Returns thousandths of tokens per second of decoding and of prefill.
fn measure(model: &Llama) -> Result<(u64, u64)> {
    let context = model.info().context_length;
    let prompt =
        u32::try_from(PREFILL_TOKENS_MAX).expect("small").min(context.saturating_sub(WARM_UP_TOKENS));
    if prompt == 0 {
        return Ok((0, 0));
    }
    let generate = Generate {
        prompt: Prompt::Text(String::new()),
        sampling: Sampling::greedy(),
        max_tokens: WARM_UP_TOKENS,
        resume: Vec::new(),
        logprobs: None,
        form: None,
    };
    let ids = vec![0; prompt as usize];
    let job = PreparedJob::new(Arc::new(generate), ids, context, model.vocabulary_size())?;
    let mut session = model.open(&job)?;
    // The first pass also arranges the weights for the kernels.
    model.decode(&mut [(&mut session, 0)])?;
    pages::gather();
    let begun = Instant::now();
    model.prefill(&mut session, &job.ids[1..])?;
    // A GPU computes on while this thread goes on.
    model.check()?;
    let read = Instant::now();
    for _ in 1..WARM_UP_TOKENS {
        model.decode(&mut [(&mut session, 0)])?;
    }
    Ok((speed_milli(WARM_UP_TOKENS - 1, read.elapsed()), speed_milli(prompt - 1, read - begun)))
}

fn speed_milli(tokens: u32, elapsed: Duration) -> u64 {
    (f64::from(tokens) * 1000.0 / elapsed.as_secs_f64().max(1e-9)) as u64
}
