//! `cargo xtask bench engine`: the worker process by itself, one answer and several at once, on the CPU and on a GPU.

mod worker;

mod agreement;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use engine::frame::{ChatMessage, Generate, Prompt, Sampling};
use engine::{DeviceChoice, ModelSource, WorkerOptions};
use node::models::Models;
use serde::Serialize;

use self::agreement::Agreement;
use self::worker::{Answer, Worker};
use super::decode::MODEL;
use super::samples::{Samples, Spread};
use super::table::{Machine, Table};

/// What to measure.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Prints one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// One short run of each: to see that it works, not for numbers that are quoted
    #[arg(long)]
    quick: bool,
    /// Measures this device beside the CPU
    #[arg(long, value_enum, default_value_t = Extra::None)]
    device: Extra,
    /// A `sharemesh` program to measure in place of one built here
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,
    /// A model file in place of the catalogue's smollm2-135m
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// What is measured beside the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Extra {
    /// Nothing
    None,
    /// The first NVIDIA GPU
    Cuda,
}

impl Arguments {
    /// Returns the cargo features that the program needs.
    pub(super) fn features(&self) -> &'static [&'static str] {
        match self.device {
            Extra::None => &[],
            Extra::Cuda => &["node/cuda"],
        }
    }

    /// Returns the program to measure, if it is not to be built.
    pub(super) fn program(&self) -> Option<&Path> {
        self.program.as_deref()
    }
}

/// How much to measure.
struct Runs {
    /// Tokens of each answer.
    tokens: u32,
    /// How often all streams are run together, and the long prompt is read.
    repeats: usize,
    /// How many answers are written at once.
    together: &'static [usize],
}

impl Runs {
    const WHOLE: Self = Self { tokens: 128, repeats: 3, together: &[8, 32] };
    const QUICK: Self = Self { tokens: 48, repeats: 1, together: &[8] };
}

/// Answers that are also written alone, and compared with those written together.
const ALONE: usize = 8;

/// Words of the long prompt, a token each.
const LONG_PROMPT: usize = 1_000;

/// Jobs at once that the worker takes.
const SLOTS: u32 = 32;

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    model: String,
    devices: Vec<Measured>,
    /// Of the second device with the CPU.
    agreement: Option<Agreement>,
}

/// One device's numbers; rates in tokens per second, times in milliseconds.
#[derive(Debug, Serialize)]
struct Measured {
    kind: String,
    name: String,
    memory_bytes: u64,
    weights_bytes: u64,
    load_ms: f64,
    /// From the request to the first token of one answer, with a prompt of `prompt_tokens`.
    first_token_ms: Spread,
    prompt_tokens: u32,
    /// Tokens of a long prompt by the time until one more was computed.
    prefill: Spread,
    long_prompt_tokens: u32,
    decode: Vec<Decode>,
}

/// Answers written at once.
#[derive(Debug, Serialize)]
struct Decode {
    streams: usize,
    /// Of all answers together, while all of them are being written.
    rate: Spread,
    /// Until the last of them has its first token, in milliseconds.
    all_begun_ms: Spread,
    /// How many have the same tokens as alone, of how many that were compared.
    same_as_alone: Option<(usize, usize)>,
}

/// Measures and prints.
pub(super) fn run(program: &Path, arguments: &Arguments) -> Result<()> {
    let runs = if arguments.quick { Runs::QUICK } else { Runs::WHOLE };
    let path = match &arguments.model {
        Some(path) => path.clone(),
        None => Models::open()?.resolve(MODEL, &|_| {})?.path,
    };
    let report = measure(program, path, arguments.device, &runs)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.table().print();
    }
    Ok(())
}

fn measure(program: &Path, path: PathBuf, extra: Extra, runs: &Runs) -> Result<Report> {
    let machine = Machine::here();
    let model = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let cache = tempfile::tempdir().context("cannot make a folder for the requantised model")?;
    let source = ModelSource::Gguf { path, cache_dir: cache.path().to_owned() };
    let cuda = (extra == Extra::Cuda).then_some(DeviceChoice::Cuda(0));
    let (mut devices, mut answers) = (Vec::new(), Vec::new());
    for device in [DeviceChoice::Cpu].into_iter().chain(cuda) {
        super::say(&format!("{device:?}: loading"));
        let options =
            WorkerOptions { model: source.clone(), device, slots: SLOTS, context_max: None, threads: None };
        let mut worker = Worker::start(program, &options)?;
        devices.push(measure_device(&mut worker, runs)?);
        answers.push(compared(&mut worker, runs.tokens)?);
        worker.end()?;
    }
    let agreement = match answers.as_slice() {
        [cpu, other] => Some(Agreement::of(cpu, other)),
        _ => None,
    };
    Ok(Report { machine, model, devices, agreement })
}

fn measure_device(worker: &mut Worker, runs: &Runs) -> Result<Measured> {
    // What is used for the first time is slow everywhere.
    worker.run(&[story(0, runs.tokens)])?;
    super::say("a long prompt");
    let (prefill, long_prompt_tokens) = prefill(worker, runs.repeats)?;
    super::say("one answer at a time");
    let (mut alone, mut first_token, mut rate) = (Vec::new(), Samples::default(), Samples::default());
    for number in 0..ALONE {
        let answer = worker.run(&[story(number, runs.tokens)])?.remove(0);
        first_token.push_time(*answer.times.first().context("an empty answer")?);
        rate.push(rate_of(std::slice::from_ref(&answer))?);
        alone.push(answer);
    }
    let first_token_ms = first_token.spread();
    let one = Decode { streams: 1, rate: rate.spread(), all_begun_ms: first_token_ms, same_as_alone: None };
    let mut decode = vec![one];
    for streams in runs.together {
        super::say(&format!("{streams} answers at once"));
        decode.push(together(worker, *streams, runs, &alone)?);
    }
    let info = &worker.info;
    Ok(Measured {
        kind: info.device.kind.clone(),
        name: info.device.name.clone(),
        memory_bytes: info.device.memory_bytes,
        weights_bytes: info.weights_bytes,
        load_ms: worker.load.as_secs_f64() * 1000.0,
        first_token_ms,
        prompt_tokens: alone[0].tokens_in,
        prefill,
        long_prompt_tokens,
        decode,
    })
}

fn prefill(worker: &mut Worker, repeats: usize) -> Result<(Spread, u32)> {
    let (mut rate, mut tokens_in) = (Samples::default(), 0);
    for _ in 0..repeats {
        let answer = worker.run(&[generate("word ".repeat(LONG_PROMPT), 1)])?.remove(0);
        // The one token may be the answer's end, which is not sent.
        rate.push(f64::from(answer.tokens_in) / answer.ended.as_secs_f64());
        tokens_in = answer.tokens_in;
    }
    Ok((rate.spread(), tokens_in))
}

fn together(worker: &mut Worker, streams: usize, runs: &Runs, alone: &[Answer]) -> Result<Decode> {
    let requests: Vec<_> = (0..streams).map(|number| story(number, runs.tokens)).collect();
    let (mut rate, mut all_begun) = (Samples::default(), Samples::default());
    let (mut same, mut compared) = (0, 0);
    for _ in 0..runs.repeats {
        let answers = worker.run(&requests)?;
        rate.push(rate_of(&answers)?);
        all_begun.push_time(begun(&answers));
        same += answers.iter().zip(alone).filter(|(answer, alone)| answer.ids == alone.ids).count();
        compared += answers.len().min(alone.len());
    }
    let same_as_alone = Some((same, compared));
    Ok(Decode { streams, rate: rate.spread(), all_begun_ms: all_begun.spread(), same_as_alone })
}

/// Returns when the last answer has its first token.
fn begun(answers: &[Answer]) -> Duration {
    answers.iter().filter_map(|answer| answer.times.first()).copied().max().unwrap_or_default()
}

/// Returns the tokens per second of all answers, from when the last begins until the first ends.
fn rate_of(answers: &[Answer]) -> Result<f64> {
    let begun = begun(answers);
    let ended = answers.iter().filter_map(|answer| answer.times.last()).copied().min().unwrap_or_default();
    ensure!(begun < ended, "no time at which all answers are being written: {begun:?} to {ended:?}");
    let within = |time: &&Duration| begun < **time && **time <= ended;
    let tokens = answers.iter().flat_map(|answer| &answer.times).filter(within).count();
    #[expect(clippy::cast_precision_loss, reason = "some thousand tokens")]
    Ok(tokens as f64 / (ended - begun).as_secs_f64())
}

/// Prompts of several kinds, answered with what is compared between devices.
fn compared(worker: &mut Worker, tokens: u32) -> Result<Vec<Answer>> {
    const PROMPTS: [&str; 6] = [
        "What is the capital of France?",
        "Explain why the sky is blue.",
        "List ten animals and where they live.",
        "Write a Python function that returns the n-th Fibonacci number.",
        "Translate to German: The ship left the harbour at dawn.",
        "Write a long story about a lighthouse keeper and the sea, with many details.",
    ];
    PROMPTS
        .iter()
        .map(|prompt| {
            let request = Generate { logprobs: Some(2), ..generate((*prompt).to_owned(), tokens) };
            Ok(worker.run(&[request])?.remove(0))
        })
        .collect()
}

/// Returns a request whose answer does not end by itself.
fn story(number: usize, tokens: u32) -> Generate {
    let prompt = format!(
        "Write a long story about a lighthouse keeper and the sea, with many details. It is story number {number}."
    );
    generate(prompt, tokens)
}

fn generate(content: String, max_tokens: u32) -> Generate {
    Generate {
        prompt: Prompt::Chat(vec![ChatMessage { role: "user".to_owned(), content }]),
        sampling: Sampling::greedy(),
        max_tokens,
        resume: Vec::new(),
        logprobs: None,
        form: None,
    }
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new(&self.machine);
        for measured in &self.devices {
            measured.add_to(&mut table, &self.model);
        }
        if let [cpu, other] = self.devices.as_slice() {
            for (cpu, other) in cpu.decode.iter().zip(&other.decode) {
                let what = format!("decode, {} at once: {} / CPU", cpu.streams, self.devices[1].kind);
                let ratio = other.rate.p50 / cpu.rate.p50;
                table.number(&what, &format!("{ratio:.2}"), other.rate.runs, "");
            }
        }
        for (what, value) in self.agreement.iter().flat_map(Agreement::lines) {
            table.number(&what, &value, 1, "");
        }
        table
    }
}

impl Measured {
    fn add_to(&self, table: &mut Table, model: &str) {
        let rate = |spread: &Spread| format!("{:.1} tokens/s", spread.p50);
        let gib = |bytes: u64| bytes >> 20;
        let about = format!("{}: {}, {} MiB", self.kind, self.name, gib(self.memory_bytes));
        table.number(&about, &format!("weights {} MiB", gib(self.weights_bytes)), 1, model);
        table.number("  loaded in", &format!("{:.0} ms", self.load_ms), 1, "");
        let what = format!("  first token, {} tokens of prompt", self.prompt_tokens);
        table.times(&what, &self.first_token_ms, "");
        let what = format!("  prefill, {} tokens of prompt", self.long_prompt_tokens);
        table.number(&what, &rate(&self.prefill), self.prefill.runs, "");
        for decode in &self.decode {
            let what = format!("  decode, {} at once", decode.streams);
            table.number(&what, &rate(&decode.rate), decode.rate.runs, "");
            if let Some((same, compared)) = decode.same_as_alone {
                table.times("    until all have begun", &decode.all_begun_ms, "");
                table.number(
                    "    same tokens as alone",
                    &format!("{same} of {compared}"),
                    decode.rate.runs,
                    "",
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(times_ms: &[u64]) -> Answer {
        Answer { times: times_ms.iter().copied().map(Duration::from_millis).collect(), ..Answer::default() }
    }

    #[test]
    fn a_rate_counts_what_comes_while_all_answers_are_being_written() {
        let answers = [answer(&[10, 100, 200, 300, 400]), answer(&[100, 200, 300])];

        // From 100 to 300 ms: two tokens of each.
        assert_eq!(rate_of(&answers).expect("they overlap"), 20.0);
    }

    #[test]
    fn answers_that_are_never_written_at_once_have_no_rate() {
        assert!(rate_of(&[answer(&[1, 2]), answer(&[3, 4])]).is_err());
        assert!(rate_of(&[answer(&[])]).is_err());
    }
}
