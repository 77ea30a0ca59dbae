//! Measures a model file: `cargo run --release -p engine --example decode -- FILE [TOKENS [PROMPT_TOKENS]]`.
//!
//! Threads are set with `CANDLE_NUM_THREADS` and `RAYON_NUM_THREADS`.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use engine::frame::{ChatMessage, Generate, Prompt, Sampling};
use engine::{DeviceChoice, Engine, ModelSource, WorkerOptions};

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let path = arguments.first().context("name a model file")?.into();
    let number = |at: usize, default: u32| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (tokens, prompt_tokens) = (number(1, 200)?, number(2, 0)?);
    let options = WorkerOptions {
        model: ModelSource::Gguf { path, cache_dir: std::env::temp_dir().join("sharemesh-decode-example") },
        device: DeviceChoice::Auto,
        slots: 1,
        context_max: None,
        threads: None,
    };
    let begun = Instant::now();
    let engine = Engine::load(&options)?;
    println!("{:#?}\nloaded in {:.2?}\n", engine.info(), begun.elapsed());

    let content = if prompt_tokens == 0 {
        "Tell me a story about a lighthouse keeper. 🙂".to_owned()
    } else {
        "word ".repeat(prompt_tokens as usize)
    };
    let answer = engine.generate(
        Generate {
            prompt: Prompt::Chat(vec![ChatMessage { role: "user".to_owned(), content }]),
            sampling: Sampling::greedy(),
            max_tokens: tokens,
            resume: Vec::new(),
            logprobs: None,
            form: None,
        },
        |part| {
            let mut output = io::stdout();
            // A closed pipe ends the text, not the measurement.
            let _ = output.write_all(&part.bytes).and_then(|()| output.flush());
        },
    )?;
    let timings = answer.timings;
    println!(
        "\n\n{} tokens in, first token after {:.2?}; {} tokens out, {:?}, {:.1} tokens/s",
        answer.tokens_in,
        timings.prepare + timings.first_token,
        answer.ids.len(),
        answer.finish,
        timings.decode_tokens_per_s(answer.ids.len())
    );
    Ok(())
}
