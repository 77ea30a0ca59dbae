//! Tests with a real model, whose path is in `SHAREMESH_TEST_MODEL`: SmolLM2-135M-Instruct as Q4_1.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::direct::{Completion, Engine};
use crate::frame::{
    ChatMessage, Finish, Form, FromWorker, Generate, JobKey, Prompt, Request, Sampling, ToWorker,
};
use crate::frame::{read_frame, write_frame};
use crate::model::Vocabulary;
use crate::options::{DeviceChoice, ModelSource, WorkerOptions};
use crate::worker;

/// Says where the model is; `None`, which skips the test, is not accepted where everything must be tested.
fn path() -> Option<PathBuf> {
    let path = std::env::var_os("SHAREMESH_TEST_MODEL").map(PathBuf::from);
    if path.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "set SHAREMESH_TEST_MODEL to the model's file");
        println!("skipped: set SHAREMESH_TEST_MODEL to the file of SmolLM2-135M-Instruct as Q4_1");
    }
    path
}

fn options(path: PathBuf, cache_dir: PathBuf) -> WorkerOptions {
    WorkerOptions {
        model: ModelSource::Gguf { path, cache_dir },
        device: DeviceChoice::Cpu,
        slots: 4,
        context_max: Some(2048),
        threads: None,
    }
}

/// Loads once for all tests.
fn engine() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let path = path()?;
    let load = || {
        let cache_dir = tempfile::tempdir().expect("a folder");
        Engine::load(&options(path, cache_dir.path().to_owned())).expect("the model loads")
    };
    Some(ENGINE.get_or_init(load))
}

fn chat(content: &str, max_tokens: u32) -> Generate {
    Generate {
        prompt: Prompt::Chat(vec![ChatMessage { role: "user".to_owned(), content: content.to_owned() }]),
        sampling: Sampling::greedy(),
        max_tokens,
        resume: Vec::new(),
        logprobs: None,
        form: None,
    }
}

fn ask(engine: &Engine, generate: Generate) -> Completion {
    engine.generate(generate, |_| ()).expect("the model computes")
}

#[test]
fn a_chat_gets_a_sensible_answer() {
    let Some(engine) = engine() else { return };
    let answer = ask(engine, chat("What is the capital of France?", 40));
    println!("{}", answer.text);
    assert!(answer.text.contains("Paris"), "{}", answer.text);
    assert_eq!(answer.finish, Finish::Stop);
}

#[test]
fn the_file_is_described_as_it_is() {
    let Some(engine) = engine() else { return };
    let info = engine.info();
    assert_eq!((info.architecture.as_str(), info.quantisation.as_str()), ("llama", "Q4_1"));
    assert_eq!((info.parameters, info.context_length), (134_515_008, 2048));
    assert!(info.decode_tokens_per_s_milli > 0 && info.prefill_tokens_per_s_milli > 0);
}

#[test]
fn digits_are_tokens_one_by_one() {
    let Some(engine) = engine() else { return };
    let vocabulary = engine.gguf_vocabulary();
    let ids = vocabulary.encode("In 1984, 42!").expect("it is text");
    let tokens = ids.iter().map(|id| String::from_utf8_lossy(&vocabulary.token_bytes(*id)).into_owned());
    assert_eq!(tokens.collect::<Vec<_>>(), ["In", " ", "1", "9", "8", "4", ",", " ", "4", "2", "!"]);
    assert_eq!(vocabulary.encode("<|im_start|>user\n").expect("it is text").first(), Some(&1));
}

#[test]
fn any_text_comes_back_from_its_tokens() {
    let Some(engine) = engine() else { return };
    let vocabulary = engine.gguf_vocabulary();
    for text in ["naïve 🙂👩‍🚀 emoji", "  two  spaces\n\n\ttabs", "日本語とعربى", "x = [1, 2, 3];"]
    {
        let ids = vocabulary.encode(text).expect("it is text");
        let bytes: Vec<_> = ids.iter().flat_map(|id| vocabulary.token_bytes(*id).into_owned()).collect();
        assert_eq!(String::from_utf8(bytes).as_deref(), Ok(text));
    }
}

#[test]
fn emoji_across_tokens_come_whole() {
    let Some(engine) = engine() else { return };
    let emoji = engine.gguf_vocabulary().encode("🙂").expect("it is text");
    assert!(emoji.len() > 1, "this test wants an emoji of several tokens");
    // Resumed inside of the emoji, the answer begins with the whole of it or with no part of it.
    let mut request = chat("Repeat: 🙂🙂🙂🙂🙂🙂", 24);
    request.resume = emoji[..1].to_vec();
    let answer = ask(engine, request);
    assert!(answer.text.chars().all(|character| character != '\0'), "{}", answer.text);
}

#[test]
fn an_answer_resumes_at_every_index() {
    let Some(engine) = engine() else { return };
    for sampling in [Sampling::greedy(), Sampling { seed: 5, top_p: 0.9, ..Sampling::default() }] {
        let request = Generate { sampling, ..chat("Write a line about the sea.", 8) };
        let whole = ask(engine, request.clone());
        for index in 0..whole.ids.len() {
            let rest = ask(engine, Generate { resume: whole.ids[..index].to_vec(), ..request.clone() });
            assert_eq!(rest.ids, whole.ids[index..], "resumed at {index}");
            assert!(whole.text.ends_with(&rest.text), "{:?} {:?}", whole.text, rest.text);
        }
    }
}

#[test]
fn log_probabilities_fit_the_tokens() {
    let Some(engine) = engine() else { return };
    let mut parts = Vec::new();
    let request = Generate { logprobs: Some(3), ..chat("Say yes.", 4) };
    engine.generate(request, |part| parts.push(part.clone())).expect("the model computes");
    for part in parts {
        let logprobs = part.logprobs.expect("asked for");
        assert_eq!(logprobs.len(), part.ids.len());
        for (id, logprob) in part.ids.iter().zip(logprobs) {
            assert_eq!((logprob.top.len(), logprob.top[0].id), (3, *id), "greedy takes the likeliest");
            assert!(logprob.logprob <= 0.0 && logprob.top[0].logprob >= logprob.top[2].logprob);
        }
    }
}

#[test]
fn streams_together_are_equal_to_streams_alone() {
    let Some(path) = path() else { return };
    let Some(engine) = engine() else { return };
    let requests: Vec<_> = ["Hello!", "Count to ten.", "Why is the sky blue?", "Write a poem."]
        .iter()
        .enumerate()
        .map(|(number, content)| {
            let long = content.repeat(1 + 10 * number);
            let sampling = Sampling { seed: number as u64, ..Sampling::default() };
            Generate { sampling, ..chat(&long, 6) }
        })
        .collect();

    let cache_dir = tempfile::tempdir().expect("a folder");
    let options = options(path, cache_dir.path().to_owned());
    let (input, mut to) = std::io::pipe().expect("a pipe");
    let (mut from, output) = std::io::pipe().expect("a pipe");
    let thread = std::thread::spawn(move || worker::run(options, input, output));
    for (number, request) in (0..).zip(&requests) {
        let request = Request::Generate(request.clone());
        write_frame(&mut to, &ToWorker::Start { job: JobKey([number; 16]), request, up_to: 100 })
            .expect("it reads");
    }
    let mut together = vec![Vec::new(); requests.len()];
    let mut running = requests.len();
    while running > 0 {
        match read_frame(&mut from).expect("valid").expect("not the end") {
            FromWorker::Tokens { job, ids, finish, .. } => {
                together[usize::from(job.0[0])].extend(ids);
                running -= usize::from(finish.is_some());
            }
            FromWorker::Failed { error, .. } => panic!("{error}"),
            FromWorker::LoadFailed { error } => panic!("{error}"),
            FromWorker::Loading { .. }
            | FromWorker::Ready(_)
            | FromWorker::Prepared { .. }
            | FromWorker::Vectors { .. }
            | FromWorker::Pong { .. } => {}
        }
    }
    drop(to);
    thread.join().expect("no panic").expect("a clean end");

    for (together, request) in together.into_iter().zip(requests) {
        assert_eq!(together, ask(engine, request).ids);
    }
}

#[test]
fn the_requantised_file_is_used_again_unless_it_is_damaged() {
    let Some(path) = path() else { return };
    let cache_dir = tempfile::tempdir().expect("a folder");
    let request = chat("Hello!", 6);
    let load = || Engine::load(&options(path.clone(), cache_dir.path().to_owned())).expect("the model loads");
    let answer = ask(&load(), request.clone()).ids;
    let cached = only_file(cache_dir.path());
    let first = fs::read(&cached).expect("it can be read");

    assert_eq!(ask(&load(), request.clone()).ids, answer, "from the cache");
    let mut damaged = first.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&cached, damaged).expect("it can be written");
    assert_eq!(ask(&load(), request.clone()).ids, answer, "after damage");
    assert!(fs::read(&cached).expect("it can be read") == first, "the damage was repaired");
    fs::write(&cached, b"GGUF").expect("it can be written");
    assert_eq!(ask(&load(), request).ids, answer, "after truncation");
}

#[test]
fn a_cache_folder_that_cannot_be_made_is_done_without() {
    let Some(path) = path() else { return };
    let file = tempfile::NamedTempFile::new().expect("a file");
    let engine = Engine::load(&options(path, file.path().join("cache"))).expect("the model loads");
    assert_eq!(ask(&engine, chat("Hi", 1)).ids.len(), 1);
}

fn only_file(folder: &std::path::Path) -> PathBuf {
    let files: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn an_answer_of_a_form_is_json_of_it_and_can_be_resumed_anywhere() {
    let Some(engine) = engine() else { return };
    let schema = r#"{"type": "object", "properties": {"capital": {"type": "string", "maxLength": 30},
        "inhabitants": {"type": "integer"}, "river": {"enum": ["Seine", "Thames", "Tiber"]}},
        "required": ["capital", "inhabitants", "river"], "additionalProperties": false}"#;
    let form = Some(Form::Json { schema: schema.to_owned() });
    let request =
        Generate { form, ..chat("Describe France: capital, inhabitants, river. Answer in JSON.", 80) };

    let answer = ask(engine, request.clone());

    println!("{}", answer.text);
    assert_eq!(answer.finish, Finish::Stop);
    let value: serde_json::Value = serde_json::from_str(&answer.text).expect("JSON");
    assert!(value["capital"].as_str().is_some_and(|capital| capital.contains("Paris")), "{value}");
    assert!(value["inhabitants"].is_i64() && value["river"].is_string(), "{value}");
    for index in [1, answer.ids.len() / 2, answer.ids.len()] {
        let resumed = ask(engine, Generate { resume: answer.ids[..index].to_vec(), ..request.clone() });
        assert_eq!((&resumed.ids[..], resumed.finish), (&answer.ids[index..], Finish::Stop));
    }
    // Tokens that no answer of the form begins with are no answer to go on with.
    let astray = Generate { resume: vec![answer.ids[1]; 3], ..request.clone() };
    assert!(engine.generate(astray, |_| ()).is_err());
    let cut = ask(engine, Generate { max_tokens: 5, ..request });
    assert_eq!((cut.finish, cut.ids.len()), (Finish::Length, 5));
}

#[test]
fn schemas_that_mean_harm_take_no_long_time_of_a_large_vocabulary() {
    let Some(engine) = engine() else { return };
    let vocabulary = engine.gguf_vocabulary();
    let followed = crate::grammar::hostile::follow(vocabulary.grammars().expect("sound"), vocabulary.size());
    assert!(followed > 5, "some of them can be followed");
}
