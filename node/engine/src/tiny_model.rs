//! Tests with a tiny model of random weights, made here: what must hold for any model, and quickly.

use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::direct::Engine;
use crate::frame::{Finish, FromWorker, Generate, JobError, JobKey, Prompt, Request, Sampling, ToWorker};
use crate::frame::{read_frame, write_frame};
use crate::options::{DeviceChoice, ModelSource, WorkerOptions};
use crate::sampler::mix;
use crate::worker;

const WIDTH: usize = 256;
const HIDDEN_WIDTH: usize = 512;
const KV_WIDTH: usize = 128;
/// 256 bytes and two control tokens, filled up.
const VOCABULARY_SIZE: usize = 272;
const END: u32 = 257;

/// What a file is made of.
struct Recipe {
    architecture: &'static str,
    tensor_type: GgmlDType,
    changed_keys: Vec<(&'static str, Value)>,
}

impl Recipe {
    fn new(architecture: &'static str, tensor_type: GgmlDType) -> Self {
        Self { architecture, tensor_type, changed_keys: Vec::new() }
    }

    fn write(&self, path: &Path) {
        let mut file = std::fs::File::create(path).expect("a file");
        let keys = self.keys();
        let keys: Vec<_> = keys.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors = self.tensors();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut file, &keys, &tensors).expect("it can be written");
    }

    fn keys(&self) -> Vec<(String, Value)> {
        let architecture = self.architecture;
        let text = |text: &str| Value::String(text.to_owned());
        let mut tokens: Vec<_> = byte_characters().map(|character| text(&character.to_string())).collect();
        tokens.extend([text("<|im_start|>"), text("<|im_end|>")]);
        let unused = (tokens.len()..VOCABULARY_SIZE).map(|id| text(&format!("<unused{id}>")));
        tokens.extend(unused);
        let types = (0..VOCABULARY_SIZE).map(|id| Value::I32(if id < 256 { 1 } else { 3 })).collect();
        let mut keys: Vec<_> = [
            ("general.architecture", text(architecture)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("smollm")),
            ("tokenizer.ggml.tokens", Value::Array(tokens)),
            ("tokenizer.ggml.token_type", Value::Array(types)),
            ("tokenizer.ggml.merges", Value::Array(Vec::new())),
            ("tokenizer.ggml.eos_token_id", Value::U32(END)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let numbers = [
            ("block_count", 2),
            ("context_length", 300),
            ("embedding_length", WIDTH),
            ("feed_forward_length", HIDDEN_WIDTH),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
        ];
        let number = |(key, number): (&str, usize)| {
            (format!("{architecture}.{key}"), Value::U32(u32::try_from(number).expect("small")))
        };
        keys.extend(numbers.map(number));
        for (changed, value) in &self.changed_keys {
            keys.retain(|(key, _)| key != changed);
            keys.push(((*changed).to_owned(), value.clone()));
        }
        keys
    }

    fn tensors(&self) -> Vec<(String, QTensor)> {
        let mut tensors = vec![
            self.matrix("token_embd.weight".to_owned(), VOCABULARY_SIZE, WIDTH),
            row("output_norm.weight".to_owned(), WIDTH, 1.0),
        ];
        for layer in 0..2 {
            let name = |part: &str| format!("blk.{layer}.{part}");
            for part in ["attn_norm.weight", "ffn_norm.weight"] {
                tensors.push(row(name(part), WIDTH, 1.0));
            }
            let matrices = [
                ("attn_q", WIDTH, WIDTH),
                ("attn_k", KV_WIDTH, WIDTH),
                ("attn_v", KV_WIDTH, WIDTH),
                ("attn_output", WIDTH, WIDTH),
                ("ffn_gate", HIDDEN_WIDTH, WIDTH),
                ("ffn_up", HIDDEN_WIDTH, WIDTH),
                ("ffn_down", WIDTH, HIDDEN_WIDTH),
            ];
            for (part, rows, columns) in matrices {
                tensors.push(self.matrix(name(&format!("{part}.weight")), rows, columns));
                if self.architecture == "qwen2" && columns == WIDTH && part.starts_with("attn_") {
                    tensors.push(row(name(&format!("{part}.bias")), rows, 0.1));
                }
            }
        }
        tensors
    }

    fn matrix(&self, name: String, rows: usize, columns: usize) -> (String, QTensor) {
        let numbers = random(&name, rows * columns).map(|number| number / 8.0).collect::<Vec<_>>();
        let tensor = Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).expect("the shape fits");
        (name, QTensor::quantize(&tensor, self.tensor_type).expect("rows are whole blocks"))
    }
}

pub(crate) fn row(name: String, width: usize, scale: f32) -> (String, QTensor) {
    let numbers = random(&name, width).map(|number| scale * (1.0 + number / 4.0)).collect::<Vec<_>>();
    let tensor = Tensor::from_vec(numbers, width, &Device::Cpu).expect("the shape fits");
    (name, QTensor::quantize(&tensor, GgmlDType::F32).expect("any width fits"))
}

/// Returns numbers between -1 and 1 that depend on the name only.
pub(crate) fn random(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let seed = name.bytes().fold(0, |state, byte| mix(state ^ u64::from(byte)));
    (0..count as u64).map(move |at| (mix(seed ^ at) >> 40) as f32 / (1 << 23) as f32 - 1.0)
}

/// Returns the characters that stand for the bytes, in the order of GPT-2's vocabulary.
fn byte_characters() -> impl Iterator<Item = char> {
    let printable = (33..=126).chain(161..=172).chain(174..=255);
    printable.chain(256..=323).filter_map(char::from_u32)
}

pub(crate) fn options(path: &Path) -> WorkerOptions {
    let cache_dir = path.parent().expect("in a folder").join("cache");
    WorkerOptions {
        model: ModelSource::Gguf { path: path.to_owned(), cache_dir },
        device: DeviceChoice::Cpu,
        slots: 4,
        context_max: None,
        threads: None,
    }
}

/// Makes a file and calls `test` with its path.
fn with_file<T>(recipe: &Recipe, test: impl FnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    recipe.write(&path);
    test(&path)
}

fn load(recipe: &Recipe) -> anyhow::Result<Engine> {
    with_file(recipe, |path| Engine::load(&options(path)))
}

fn generate(prompt: &str, max_tokens: u32) -> Generate {
    Generate {
        prompt: Prompt::Text(prompt.to_owned()),
        sampling: Sampling { seed: 3, temperature: 0.8, repetition_penalty: 1.1, ..Sampling::default() },
        max_tokens,
        resume: Vec::new(),
        logprobs: None,
        form: None,
    }
}

fn ids(engine: &Engine, generate: Generate) -> Vec<u32> {
    engine.generate(generate, |_| ()).expect("the model computes").ids
}

const RECIPES: [(&str, GgmlDType); 4] = [
    ("llama", GgmlDType::Q8_0),
    ("llama", GgmlDType::Q4_1),
    ("qwen2", GgmlDType::Q4K),
    ("llama", GgmlDType::F32),
];

#[test]
fn an_answer_resumes_at_every_index() {
    for (architecture, tensor_type) in RECIPES {
        let engine = load(&Recipe::new(architecture, tensor_type)).expect("it loads");
        let request = generate("the prompt is longer than a chunk. ", 40);
        let request = Generate { prompt: Prompt::Text("a long prompt ".repeat(12)), ..request };
        let whole = ids(&engine, request.clone());
        assert!(!whole.is_empty());
        for index in (0..whole.len()).step_by(3) {
            let rest = ids(&engine, Generate { resume: whole[..index].to_vec(), ..request.clone() });
            assert_eq!(rest, whole[index..], "{architecture} {tensor_type:?} resumed at {index}");
        }
    }
}

#[test]
fn a_prompt_of_tokens_is_read_as_it_is_and_only_in_the_models_own() {
    let engine = load(&Recipe::new("llama", GgmlDType::Q8_0)).expect("it loads");
    let request = |ids: Vec<u32>| Generate { prompt: Prompt::Tokens(ids), ..generate("", 12) };

    let answer = engine.generate(request(vec![7, 5, 9]), |_| ()).expect("the model computes");
    assert_eq!(answer.tokens_in, 3, "nothing is put before them");
    let whole = ids(&engine, request(vec![7, 5, 9]));
    assert_ne!(whole, ids(&engine, request(vec![9, 5, 7])));

    for wrong in [Vec::new(), vec![7, u32::MAX]] {
        let error = engine.generate(request(wrong), |_| ()).expect_err("no prompt");
        assert!(matches!(error.downcast_ref(), Some(JobError::BadRequest(_))), "{error:#}");
    }
}

#[test]
fn streams_together_are_equal_to_streams_alone() {
    for (architecture, tensor_type) in RECIPES {
        let recipe = Recipe::new(architecture, tensor_type);
        let requests: Vec<_> = (0..4).map(|number| generate(&"word ".repeat(1 + 12 * number), 30)).collect();
        let together = with_file(&recipe, |path| answers(options(path), &requests));
        let engine = load(&recipe).expect("it loads");
        for (together, request) in together.into_iter().zip(requests) {
            assert_eq!(together, ids(&engine, request), "{architecture} {tensor_type:?}");
        }
    }
}

/// Runs all requests at once in a worker.
fn answers(options: WorkerOptions, requests: &[Generate]) -> Vec<Vec<u32>> {
    let (input, mut to) = std::io::pipe().expect("a pipe");
    let (mut from, output) = std::io::pipe().expect("a pipe");
    let thread = std::thread::spawn(move || worker::run(options, input, output));
    for (number, request) in (0..).zip(requests) {
        let request = Request::Generate(request.clone());
        write_frame(&mut to, &ToWorker::Start { job: JobKey([number; 16]), request, up_to: 100 })
            .expect("it reads");
    }
    let mut answers = vec![Vec::new(); requests.len()];
    let mut running = requests.len();
    while running > 0 {
        match read_frame(&mut from).expect("valid").expect("not the end") {
            FromWorker::Tokens { job, ids, finish, .. } => {
                answers[usize::from(job.0[0])].extend(ids);
                running -= usize::from(finish.is_some());
            }
            FromWorker::Failed { error, .. } => panic!("{error}"),
            FromWorker::LoadFailed { error } => panic!("{error}"),
            FromWorker::Loading { .. }
            | FromWorker::Ready(_)
            | FromWorker::Vectors { .. }
            | FromWorker::Prepared { .. }
            | FromWorker::Pong { .. } => {}
        }
    }
    drop(to);
    thread.join().expect("no panic").expect("a clean end");
    answers
}

#[test]
fn the_context_ends_an_answer() {
    let engine = load(&Recipe::new("llama", GgmlDType::Q8_0)).expect("it loads");
    let request = Generate { sampling: Sampling::greedy(), ..generate(&"x".repeat(280), 1000) };
    let answer = engine.generate(request, |_| ()).expect("the model computes");
    assert!(answer.finish == Finish::Stop || answer.ids.len() == 20, "{answer:?}");
    assert!(engine.generate(generate(&"x".repeat(300), 1), |_| ()).is_err());
}

#[test]
fn files_that_make_no_sense_are_refused_with_the_reason() {
    let with = |key, value| {
        let mut recipe = Recipe::new("llama", GgmlDType::Q8_0);
        recipe.changed_keys.push((key, value));
        let Err(error) = load(&recipe) else { panic!("`{key}` was taken") };
        format!("{error:#}")
    };
    assert!(with("general.architecture", Value::String("mamba".to_owned())).contains("mamba"));
    assert!(with("llama.block_count", Value::U32(3)).contains("blk.2"));
    assert!(with("llama.block_count", Value::U32(u32::MAX)).contains("block_count"));
    assert!(with("llama.embedding_length", Value::U32(512)).contains("shape"));
    assert!(with("llama.embedding_length", Value::U32(0)).contains("embedding_length"));
    assert!(with("llama.attention.head_count", Value::U32(0)).contains("head_count"));
    assert!(with("llama.attention.head_count_kv", Value::U32(3)).contains("share"));
    assert!(with("llama.attention.head_count_kv", Value::U32(0)).contains("share"));
    assert!(with("llama.rope.dimension_count", Value::U32(32)).contains("rotary"));
    assert!(with("llama.rope.scaling.type", Value::String("yarn".to_owned())).contains("yarn"));
    assert!(with("llama.context_length", Value::F32(1.0)).contains("context_length"));
    assert!(with("tokenizer.ggml.model", Value::String("bert".to_owned())).contains("bert"));
    assert!(with("tokenizer.ggml.pre", Value::String("strange".to_owned())).contains("strange"));
    assert!(with("tokenizer.ggml.merges", Value::Array(vec![Value::U8(1)])).contains("merges"));
    let template = Value::String("{% for %}".to_owned());
    assert!(with("tokenizer.chat_template", template).contains("template"));
}

#[test]
fn a_missing_file_or_a_folder_is_refused_with_its_name() {
    for name in ["/no/such/model.gguf", "/"] {
        let Err(error) = Engine::load(&options(&Path::new(name).join("x.gguf"))) else {
            panic!("{name} was taken")
        };
        assert!(format!("{error:#}").contains("x.gguf"), "{error:#}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    assert!(Engine::load(&options(folder.path())).is_err());
}
