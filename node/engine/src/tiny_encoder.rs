//! Tests with a tiny encoder of random weights, made here: what must hold for any model of vectors, and quickly.

use std::path::Path;
use std::thread::JoinHandle;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::direct::Engine;
use crate::frame::{
    Embed, EmbedInput, Finish, FromWorker, Generate, JobError, JobKey, Output, Prompt, Request, Sampling,
    ToWorker,
};
use crate::frame::{read_frame, write_frame};
use crate::tiny_model::{options, random, row};
use crate::worker;

const WIDTH: usize = 64;
const HIDDEN_WIDTH: usize = 128;
const CONTEXT: usize = 24;
const WORDS: [&str; 10] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁the", "▁sky", "▁is", "▁blue", "s", "▁."];

/// What a file is made of.
struct Recipe {
    tensor_type: GgmlDType,
    changed_keys: Vec<(&'static str, Value)>,
    /// Numbers that one tensor has instead of its own.
    broken: Option<(&'static str, f32)>,
}

impl Recipe {
    fn new(tensor_type: GgmlDType) -> Self {
        Self { tensor_type, changed_keys: Vec::new(), broken: None }
    }

    fn with(key: &'static str, value: Value) -> Self {
        Self { changed_keys: vec![(key, value)], ..Self::new(GgmlDType::F32) }
    }

    fn write(&self, path: &Path) {
        let mut file = std::fs::File::create(path).expect("a file");
        let keys = self.keys();
        let keys: Vec<_> = keys.iter().map(|(key, value)| (*key, value)).collect();
        let tensors = self.tensors();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut file, &keys, &tensors).expect("it can be written");
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        let text = |text: &str| Value::String(text.to_owned());
        let number = |number: usize| Value::U32(u32::try_from(number).expect("small"));
        let types = (0..WORDS.len()).map(|id| Value::I32(if id < 4 { 3 } else { 1 })).collect();
        let mut keys = vec![
            ("general.architecture", text("bert")),
            ("bert.block_count", number(2)),
            ("bert.context_length", number(CONTEXT)),
            ("bert.embedding_length", number(WIDTH)),
            ("bert.feed_forward_length", number(HIDDEN_WIDTH)),
            ("bert.attention.head_count", number(4)),
            ("tokenizer.ggml.model", text("bert")),
            ("tokenizer.ggml.tokens", Value::Array(WORDS.map(text).into())),
            ("tokenizer.ggml.token_type", Value::Array(types)),
            ("tokenizer.ggml.unknown_token_id", number(1)),
            ("tokenizer.ggml.cls_token_id", number(2)),
            ("tokenizer.ggml.seperator_token_id", number(3)),
        ];
        for (changed, value) in &self.changed_keys {
            keys.retain(|(key, _)| key != changed);
            keys.push((changed, value.clone()));
        }
        keys
    }

    fn tensors(&self) -> Vec<(String, QTensor)> {
        let mut tensors = vec![
            self.matrix("token_embd.weight".to_owned(), WORDS.len(), WIDTH),
            self.matrix("position_embd.weight".to_owned(), CONTEXT, WIDTH),
            self.matrix("token_types.weight".to_owned(), 2, WIDTH),
        ];
        let norm = |name: String| {
            [row(format!("{name}.weight"), WIDTH, 1.0), row(format!("{name}.bias"), WIDTH, 0.1)]
        };
        tensors.extend(norm("token_embd_norm".to_owned()));
        for layer in 0..2 {
            let name = |part: &str| format!("blk.{layer}.{part}");
            tensors.extend(norm(name("attn_output_norm")));
            tensors.extend(norm(name("layer_output_norm")));
            for (part, rows, columns) in [
                ("attn_q", WIDTH, WIDTH),
                ("attn_k", WIDTH, WIDTH),
                ("attn_v", WIDTH, WIDTH),
                ("attn_output", WIDTH, WIDTH),
                ("ffn_up", HIDDEN_WIDTH, WIDTH),
                ("ffn_down", WIDTH, HIDDEN_WIDTH),
            ] {
                tensors.push(self.matrix(name(&format!("{part}.weight")), rows, columns));
                tensors.push(row(name(&format!("{part}.bias")), rows, 0.1));
            }
        }
        tensors
    }

    fn matrix(&self, name: String, rows: usize, columns: usize) -> (String, QTensor) {
        let broken = self.broken.filter(|(broken, _)| *broken == name).map(|(_, number)| number);
        let numbers: Vec<_> =
            random(&name, rows * columns).map(|number| broken.unwrap_or(number / 8.0)).collect();
        let tensor = Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).expect("the shape fits");
        (name, QTensor::quantize(&tensor, self.tensor_type).expect("rows are whole blocks"))
    }

    fn load(&self) -> anyhow::Result<Engine> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tiny.gguf");
        self.write(&path);
        Engine::load(&options(&path))
    }
}

fn embed(inputs: &[&str]) -> Embed {
    let text = |text: &&str| EmbedInput::Text((*text).to_owned());
    Embed { inputs: inputs.iter().map(text).collect(), truncate: false }
}

fn close(left: &[f32], right: &[f32]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| (left - right).abs() < 1e-5)
}

#[test]
fn a_vector_depends_on_its_own_text_alone_and_has_length_one() {
    for tensor_type in [GgmlDType::F32, GgmlDType::F16, GgmlDType::Q8_0, GgmlDType::Q4_1] {
        let engine = Recipe::new(tensor_type).load().expect("it loads");
        assert_eq!(engine.info().output, Output::Vectors(64));
        let texts = ["The sky is blue.", "THE SKIES!", "", "blue the"];
        let (together, tokens) = engine.embed(&embed(&texts)).expect("it computes");
        assert_eq!(tokens, 7 + 5 + 2 + 4);
        for (text, vector) in texts.iter().zip(&together) {
            let (alone, _) = engine.embed(&embed(&[text])).expect("it computes");
            assert!(close(&alone[0], vector), "{tensor_type:?}");
            let length: f32 = vector.iter().map(|number| number * number).sum();
            assert!((length - 1.0).abs() < 1e-5 && vector.len() == WIDTH, "{length}");
        }
        assert!(!close(&together[0], &together[1]) && !close(&together[1], &together[2]));
    }
}

#[test]
fn tokens_are_taken_as_they_are_and_a_long_text_is_refused_or_cut() {
    let engine = Recipe::new(GgmlDType::F32).load().expect("it loads");
    let one = |input: EmbedInput, truncate| engine.embed(&Embed { inputs: vec![input], truncate });
    let text = |text: &str| EmbedInput::Text(text.to_owned());
    let error = |result: anyhow::Result<_>| {
        result.map(|_| ()).expect_err("refused").downcast::<JobError>().expect("a job's")
    };

    let (said, _) = one(text("the skys"), false).expect("it computes");
    let (counted, tokens) = one(EmbedInput::Tokens(vec![2, 4, 5, 8, 3]), false).expect("it computes");
    assert!(close(&said[0], &counted[0]) && tokens == 5);

    let long = "blue ".repeat(CONTEXT);
    let too_long =
        |text| JobError::PromptTooLong { tokens: CONTEXT as u32 + 2, context: CONTEXT as u32, text };
    assert_eq!(error(one(text(&long), false)), too_long(None));
    let several = Embed { inputs: vec![text("the skys"), text(&long)], truncate: false };
    assert_eq!(error(engine.embed(&several)), too_long(Some(1)));
    let (cut, tokens) = one(text(&long), true).expect("it is cut");
    let (fits, _) = one(text(&"blue ".repeat(CONTEXT - 2)), false).expect("it fits");
    assert!(close(&cut[0], &fits[0]) && tokens == CONTEXT);

    // A word of any length is one token, and is not read to its end.
    let endless = "b".repeat(CONTEXT * 128 + 1);
    assert!(matches!(error(one(text(&endless), false)), JobError::PromptTooLong { .. }));
    assert_eq!(one(text(&endless), true).expect("it is cut").1, 3);

    for wrong in [vec![2, 10, 3], vec![4, 5], Vec::new()].map(EmbedInput::Tokens) {
        assert!(matches!(error(one(wrong, true)), JobError::BadRequest(_)));
    }
    assert!(matches!(error(engine.embed(&embed(&[]))), JobError::BadRequest(_)));
}

#[test]
fn encoders_that_make_no_sense_are_refused_with_the_reason() {
    let with = |key, value| {
        let Err(error) = Recipe::with(key, value).load() else { panic!("`{key}` was taken") };
        format!("{error:#}")
    };
    let number = Value::U32;
    assert!(with("bert.block_count", number(3)).contains("blk.2"));
    assert!(with("bert.block_count", number(u32::MAX)).contains("block_count"));
    assert!(with("bert.embedding_length", number(32)).contains("shape"));
    assert!(with("bert.embedding_length", number(1 << 20)).contains("embedding_length"));
    assert!(with("bert.attention.head_count", number(0)).contains("head_count"));
    assert!(with("bert.attention.head_count", number(3)).contains("share"));
    assert!(with("bert.attention.layer_norm_epsilon", Value::F32(f32::NAN)).contains("epsilon"));
    assert!(with("bert.context_length", number(1000)).contains("positions"));
    assert!(with("bert.context_length", number(2)).contains("room"));
    assert!(with("bert.pooling_type", number(3)).contains("pooling"));
    assert!(with("bert.feed_forward_length", number(u32::MAX)).contains("feed_forward_length"));
    assert!(with("tokenizer.ggml.model", Value::String("gpt2".to_owned())).contains("gpt2"));
    assert!(with("tokenizer.ggml.cls_token_id", number(99)).contains("cls"));
    assert!(with("tokenizer.ggml.tokens", Value::Array(vec![Value::U8(1)])).contains("tokens"));
    let many = (0..WORDS.len() + 1).map(|id| Value::String(format!("▁w{id}"))).collect();
    assert!(with("tokenizer.ggml.tokens", Value::Array(many)).contains("fewer tokens"));
    for number in [f32::NAN, f32::INFINITY] {
        let broken = Recipe { broken: Some(("blk.0.ffn_up.weight", number)), ..Recipe::new(GgmlDType::F32) };
        let Err(error) = broken.load() else { panic!("it computes with {number}") };
        assert!(format!("{error:#}").contains("no numbers"), "{error:#}");
    }
}

/// A worker of the tiny encoder on threads of this process.
struct Worker {
    to: std::io::PipeWriter,
    from: std::io::PipeReader,
    thread: JoinHandle<anyhow::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Worker {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tiny.gguf");
        Recipe::new(GgmlDType::F32).write(&path);
        let (input, to) = std::io::pipe().expect("a pipe");
        let (from, output) = std::io::pipe().expect("a pipe");
        let options = options(&path);
        let thread = std::thread::spawn(move || worker::run(options, input, output));
        let mut worker = Self { to, from, thread, _folder: folder };
        while !matches!(worker.next(), FromWorker::Ready(_)) {}
        worker
    }

    fn send(&mut self, frame: &ToWorker) {
        write_frame(&mut self.to, frame).expect("it reads");
    }

    fn ask(&mut self, number: u8, request: Request, up_to: u32) {
        self.send(&ToWorker::Start { job: JobKey([number; 16]), request, up_to });
    }

    fn next(&mut self) -> FromWorker {
        read_frame(&mut self.from).expect("valid").expect("not the end")
    }

    /// Reads to a job's end, or to so many vectors of it.
    fn vectors(&mut self, until: usize) -> (Vec<Vec<f32>>, Option<Finish>) {
        let mut made = Vec::new();
        loop {
            match self.next() {
                FromWorker::Vectors { index, vectors, finish, .. } => {
                    assert!(finish == Some(Finish::Cancelled) || index as usize == made.len());
                    made.extend(vectors);
                    if finish.is_some() || made.len() >= until {
                        return (made, finish);
                    }
                }
                FromWorker::Prepared { .. } => {}
                other @ (FromWorker::Loading { .. }
                | FromWorker::Ready(_)
                | FromWorker::LoadFailed { .. }
                | FromWorker::Tokens { .. }
                | FromWorker::Failed { .. }
                | FromWorker::Pong { .. }) => panic!("unexpected {other:?}"),
            }
        }
    }
}

#[test]
fn a_worker_makes_as_many_vectors_as_it_may_and_says_when_it_is_done() {
    let mut worker = Worker::start();
    let texts: Vec<String> = (0..150).map(|number| "sky blue ".repeat(1 + number % 9)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    worker.ask(1, Request::Embed(embed(&texts)), 70);

    let (first, finish) = worker.vectors(70);
    assert_eq!((first.len(), finish), (70, None));
    worker.send(&ToWorker::Ping(1));
    assert!(matches!(worker.next(), FromWorker::Pong { .. }), "no vector beyond the grant");
    worker.send(&ToWorker::Grant { job: JobKey([1; 16]), up_to: 150 });
    let mut rest = Vec::new();
    while rest.len() < 80 {
        let FromWorker::Vectors { vectors, index, finish, .. } = worker.next() else { panic!("vectors") };
        assert_eq!(index as usize, 70 + rest.len());
        rest.extend(vectors);
        assert_eq!(finish, (rest.len() == 80).then_some(Finish::Stop));
    }

    let direct = Recipe::new(GgmlDType::F32).load().expect("it loads");
    let (expected, _) = direct.embed(&embed(&texts)).expect("it computes");
    assert!(first.iter().chain(&rest).zip(&expected).all(|(left, right)| close(left, right)));
    drop(worker.to);
    worker.thread.join().expect("no panic").expect("a clean end");
}

#[test]
fn a_worker_refuses_what_is_no_request_for_vectors_and_ends_what_is_cancelled() {
    let mut worker = Worker::start();
    let generate = Generate {
        prompt: Prompt::Text("hi".to_owned()),
        sampling: Sampling::default(),
        max_tokens: 1,
        resume: Vec::new(),
        logprobs: None,
        form: None,
    };
    worker.ask(1, Request::Generate(generate), 1);
    let FromWorker::Failed { error: JobError::BadRequest(words), .. } = worker.next() else {
        panic!("refused")
    };
    assert!(words.contains("no text"), "{words}");
    worker.ask(1, Request::Embed(embed(&[])), 1);
    assert!(matches!(worker.next(), FromWorker::Failed { error: JobError::BadRequest(_), .. }));

    worker.ask(2, Request::Embed(embed(&["sky"; 9])), 3);
    assert_eq!(worker.vectors(3).0.len(), 3);
    worker.send(&ToWorker::Cancel { job: JobKey([2; 16]) });
    assert_eq!(worker.vectors(1), (Vec::new(), Some(Finish::Cancelled)));
    // The key is free again.
    worker.ask(2, Request::Embed(embed(&["sky"])), 1);
    assert_eq!(worker.vectors(1).1, Some(Finish::Stop));
}
