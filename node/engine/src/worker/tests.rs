//! A worker on threads of this process, driven over its pipes as by a node.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, PipeWriter};
use std::process::{Command as Process, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::direct::Engine;
use crate::frame::{Finish, Form, Generate, JobKey, Prompt, Sampling, ToWorker, read_frame, write_frame};
use crate::options::{DeviceChoice, FakeOptions, ModelSource};

/// A worker on threads of this process, with the node's ends of its pipes.
struct Worker {
    to: Option<PipeWriter>,
    from: PipeReader,
    thread: JoinHandle<Result<()>>,
}

impl Worker {
    fn start(options: WorkerOptions) -> Self {
        let (input, to) = io::pipe().expect("a pipe");
        let (from, output) = io::pipe().expect("a pipe");
        Self { to: Some(to), from, thread: thread::spawn(move || run(options, input, output)) }
    }

    fn ready(options: WorkerOptions) -> Self {
        let mut worker = Self::start(options);
        while !matches!(worker.next(), FromWorker::Ready(_)) {}
        worker
    }

    fn send(&mut self, frame: &ToWorker) {
        write_frame(self.to.as_mut().expect("not closed"), frame).expect("the worker reads");
    }

    fn next(&mut self) -> FromWorker {
        read_frame(&mut self.from).expect("valid frames").expect("the worker writes")
    }

    /// Reads until every job named has ended.
    fn answers(&mut self, jobs: &[JobKey]) -> BTreeMap<JobKey, Answer> {
        let mut answers: BTreeMap<_, _> = jobs.iter().map(|job| (*job, Answer::default())).collect();
        while answers.values().any(|answer| answer.end.is_none()) {
            self.collect(&mut answers);
        }
        answers
    }

    fn collect(&mut self, answers: &mut BTreeMap<JobKey, Answer>) {
        match self.next() {
            FromWorker::Prepared { job, tokens_in } => {
                answers.get_mut(&job).expect("started").tokens_in = tokens_in;
            }
            FromWorker::Tokens { job, index, ids, bytes, finish, .. } => {
                let answer = answers.get_mut(&job).expect("started");
                assert!(answer.end.is_none(), "a frame after the last");
                assert_eq!(index as usize, answer.ids.len(), "a token is missing or twice");
                answer.ids.extend(ids);
                answer.text += std::str::from_utf8(&bytes).expect("whole characters");
                answer.end = finish.map(Ok);
                answer.frames += 1;
            }
            FromWorker::Failed { job, error } => {
                answers.get_mut(&job).expect("started").end = Some(Err(error));
            }
            FromWorker::Pong { .. } => {}
            other @ (FromWorker::Loading { .. }
            | FromWorker::Vectors { .. }
            | FromWorker::Ready(_)
            | FromWorker::LoadFailed { .. }) => {
                panic!("unexpected {other:?}")
            }
        }
    }

    fn end(mut self) -> Result<()> {
        self.to = None;
        self.thread.join().expect("the worker does not panic")
    }

    /// Waits for it to end by itself: its input stays open, since the end of input is a clean end of its own.
    fn fails(self) -> anyhow::Error {
        self.thread.join().expect("the worker does not panic").expect_err("it cannot go on")
    }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    tokens_in: u32,
    end: Option<Result<Finish, JobError>>,
    frames: usize,
}

fn fake(fake: FakeOptions) -> WorkerOptions {
    WorkerOptions {
        model: ModelSource::Fake(fake),
        device: DeviceChoice::Cpu,
        slots: 4,
        context_max: None,
        threads: None,
    }
}

fn paced() -> WorkerOptions {
    fake(FakeOptions { tokens_per_s: 500, ..FakeOptions::default() })
}

fn generate(prompt: &str, max_tokens: u32) -> Generate {
    Generate {
        prompt: Prompt::Text(prompt.to_owned()),
        sampling: Sampling::default(),
        max_tokens,
        resume: Vec::new(),
        logprobs: None,
        form: None,
    }
}

fn start(number: u8, generate: Generate, up_to: u32) -> ToWorker {
    ToWorker::Start { job: job(number), request: Request::Generate(generate), up_to }
}

fn job(number: u8) -> JobKey {
    JobKey([number; 16])
}

fn ended(answer: &Answer) -> Finish {
    *answer.end.as_ref().expect("it ended").as_ref().expect("it did not fail")
}

#[test]
fn an_instant_answer_comes_in_one_frame() {
    let mut worker = Worker::ready(fake(FakeOptions::default()));
    worker.send(&start(1, generate("hello", 64), u32::MAX));
    let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
    assert_eq!((answer.ids.len(), answer.tokens_in, ended(&answer)), (64, 2, Finish::Length));
    assert_eq!(answer.frames, 1);
    worker.end().expect("a clean end");
}

#[test]
fn jobs_together_get_the_answers_they_would_get_alone() {
    let requests: Vec<_> = (0..4).map(|number| generate(&"job ".repeat(100 * (number + 1)), 40)).collect();
    let mut worker = Worker::ready(paced());
    for (number, request) in (0..).zip(&requests) {
        worker.send(&start(number, request.clone(), u32::MAX));
    }
    let answers = worker.answers(&[job(0), job(1), job(2), job(3)]);
    for (number, request) in (0..).zip(requests) {
        let alone = Engine::load(&fake(FakeOptions::default())).expect("loads").generate(request, |_| ());
        let alone = alone.expect("no fault");
        assert_eq!((&answers[&job(number)].ids, &answers[&job(number)].text), (&alone.ids, &alone.text));
    }
}

#[test]
fn a_job_pauses_at_its_grant_and_goes_on_with_the_next() {
    let mut worker = Worker::ready(fake(FakeOptions::default()));
    worker.send(&start(1, generate("pay first", 50), 10));
    let mut answers = BTreeMap::from([(job(1), Answer::default())]);
    for granted in [10, 30, 50] {
        worker.send(&ToWorker::Grant { job: job(1), up_to: granted });
        // A lower grant takes nothing back.
        worker.send(&ToWorker::Grant { job: job(1), up_to: 1 });
        while answers[&job(1)].ids.len() < granted as usize {
            worker.collect(&mut answers);
        }
        worker.send(&ToWorker::Ping(u64::from(granted)));
        assert!(matches!(worker.next(), FromWorker::Pong { .. }), "no token beyond the grant");
    }
    assert_eq!(ended(&answers[&job(1)]), Finish::Length);
}

#[test]
fn a_cancelled_job_ends_within_a_token_and_says_so() {
    let mut worker = Worker::ready(paced());
    worker.send(&start(1, generate("long", 8000), u32::MAX));
    let mut answers = BTreeMap::from([(job(1), Answer::default())]);
    while answers[&job(1)].ids.len() < 3 {
        worker.collect(&mut answers);
    }
    worker.send(&ToWorker::Cancel { job: job(1) });
    let begun = Instant::now();
    while answers[&job(1)].end.is_none() {
        worker.collect(&mut answers);
    }
    assert_eq!(ended(&answers[&job(1)]), Finish::Cancelled);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // Its key and its slot are free again.
    worker.send(&start(1, generate("again", 2), u32::MAX));
    assert_eq!(ended(&worker.answers(&[job(1)])[&job(1)]), Finish::Length);
}

#[test]
fn a_job_paused_at_its_grant_can_be_cancelled() {
    let mut worker = Worker::ready(paced());
    worker.send(&start(1, generate("unpaid", 5), 0));
    worker.send(&ToWorker::Cancel { job: job(1) });
    let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
    assert_eq!((ended(&answer), answer.ids.len()), (Finish::Cancelled, 0));
}

#[test]
fn an_answer_ends_where_its_form_does() {
    let mut worker = Worker::ready(fake(FakeOptions::default()));
    let schema = r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"], "additionalProperties": false}"#;
    let form = Some(Form::Json { schema: schema.to_owned() });
    let formed = Generate { form, ..generate("who", 64) };
    worker.send(&start(1, formed.clone(), u32::MAX));
    let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
    assert_eq!((answer.text.as_str(), ended(&answer)), (r#"{"name": "", "age": -0}"#, Finish::Stop));
    // As many tokens as it needs are enough, and one fewer is not.
    let needed = u32::try_from(answer.ids.len()).expect("small");
    for (max_tokens, finish) in [(needed, Finish::Stop), (needed - 1, Finish::Length)] {
        worker.send(&start(2, Generate { max_tokens, ..formed.clone() }, u32::MAX));
        assert_eq!(ended(&worker.answers(&[job(2)])[&job(2)]), finish);
    }
}

#[test]
fn no_tokens_asked_for_is_an_answer_at_once() {
    let mut worker = Worker::ready(paced());
    worker.send(&start(1, generate("nothing", 0), 0));
    let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
    assert_eq!((ended(&answer), answer.ids.len(), answer.tokens_in), (Finish::Length, 0, 2));
}

#[test]
fn a_job_beyond_the_slots_is_refused_at_once_and_a_later_one_taken() {
    let mut worker = Worker::ready(paced());
    for number in 0..5 {
        worker.send(&start(number, generate("busy", 100), u32::MAX));
    }
    let answers = worker.answers(&[job(0), job(1), job(2), job(3), job(4)]);
    assert_eq!(answers[&job(4)].end, Some(Err(JobError::TooManyJobs)));
    worker.send(&start(4, generate("now", 1), u32::MAX));
    assert_eq!(ended(&worker.answers(&[job(4)])[&job(4)]), Finish::Length);
}

#[test]
fn a_bad_request_fails_alone() {
    let mut worker = Worker::ready(fake(FakeOptions { context_length: 100, ..FakeOptions::default() }));
    let mut strange = generate("x", 1);
    strange.sampling.temperature = f32::NAN;
    worker.send(&start(1, strange, 1));
    worker.send(&start(2, generate(&"long".repeat(100), 1), 1));
    worker.send(&start(3, generate("", 1), 1));
    worker.send(&start(4, Generate { resume: vec![9999], ..generate("x", 4) }, 4));
    worker.send(&start(5, generate("fine", 500), 500));
    let answers = worker.answers(&[1, 2, 3, 4, 5].map(job));
    assert!(matches!(answers[&job(1)].end, Some(Err(JobError::BadRequest(_)))));
    let too_long = JobError::PromptTooLong { tokens: 100, context: 100, text: None };
    assert_eq!(answers[&job(2)].end, Some(Err(too_long)));
    assert!(matches!(answers[&job(3)].end, Some(Err(JobError::BadRequest(_)))));
    assert!(matches!(answers[&job(4)].end, Some(Err(JobError::BadRequest(_)))));
    // The context ends this one.
    assert_eq!((ended(&answers[&job(5)]), answers[&job(5)].ids.len()), (Finish::Length, 99));
    let form = |schema: &str| Some(Form::Json { schema: schema.to_owned() });
    worker.send(&start(6, Generate { form: form("{\"type\": 7}"), ..generate("x", 4) }, 4));
    worker.send(&start(7, Generate { form: form("true"), ..generate("x", 4) }, 4));
    let answers = worker.answers(&[6, 7].map(job));
    assert!(matches!(answers[&job(6)].end, Some(Err(JobError::BadRequest(_)))), "{answers:?}");
    assert!(matches!(answers[&job(7)].end, Some(Err(JobError::BadForm(_)))), "{answers:?}");
}

#[test]
fn an_error_of_the_device_fails_the_jobs_it_was_computing_and_no_later_one() {
    let mut worker = Worker::ready(paced());
    worker.send(&start(1, generate("[[fail=3]]", 100), u32::MAX));
    let answer = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for");
    assert!(matches!(answer.end, Some(Err(JobError::Internal(_)))), "{answer:?}");
    assert_eq!(answer.ids.len(), 3);
    worker.send(&start(2, generate("fine", 5), u32::MAX));
    assert_eq!(ended(&worker.answers(&[job(2)])[&job(2)]), Finish::Length);
}

#[test]
fn a_device_that_cannot_be_used_any_more_ends_the_worker_once_its_jobs_have_failed() {
    let mut worker = Worker::ready(paced());
    // Granted no token, the other is no part of the batch that fails: its end is that of the process.
    worker.send(&start(1, generate("other", 100), 0));
    worker.send(&start(2, generate("[[break=3]]", 100), u32::MAX));
    let mut answers = BTreeMap::from([1, 2].map(|number| (job(number), Answer::default())));
    while answers[&job(2)].end.is_none() {
        worker.collect(&mut answers);
    }
    assert!(matches!(answers[&job(2)].end, Some(Err(JobError::Internal(_)))), "{answers:?}");
    assert_eq!(answers[&job(1)].end, None);
    let error = format!("{:#}", worker.fails());
    assert!(error.contains("device"), "{error}");
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_sent() {
    let mut worker = Worker::ready(fake(FakeOptions::default()));
    worker.send(&start(1, generate("stop", 40), u32::MAX));
    let whole = worker.answers(&[job(1)]).remove(&job(1)).expect("asked for").text;
    let stop: String = whole.chars().skip(50).take(7).collect();
    let before = whole.split(&stop).next().expect("at least one part").to_owned();
    let mut request = generate("stop", 40);
    request.sampling.stop = vec![stop];
    worker.send(&start(2, request.clone(), u32::MAX));
    let answer = worker.answers(&[job(2)]).remove(&job(2)).expect("asked for");
    assert_eq!((&answer.text, ended(&answer)), (&before, Finish::Stop));

    // Whoever resumes at any token adds just what is missing.
    for index in 0..answer.ids.len() {
        let sent = sent_up_to(&mut worker, &request, index);
        worker.send(&start(
            3,
            Generate { resume: answer.ids[..index].to_vec(), ..request.clone() },
            u32::MAX,
        ));
        let mut answers = BTreeMap::from([(job(3), Answer { ids: vec![0; index], ..Answer::default() })]);
        while answers[&job(3)].end.is_none() {
            worker.collect(&mut answers);
        }
        assert_eq!(sent + &answers[&job(3)].text, before, "resumed at {index}");
    }
}

/// Returns the text that comes with the first `count` tokens.
fn sent_up_to(worker: &mut Worker, request: &Generate, count: usize) -> String {
    worker.send(&start(9, request.clone(), u32::try_from(count).expect("small")));
    let mut answers = BTreeMap::from([(job(9), Answer::default())]);
    while answers[&job(9)].ids.len() < count {
        worker.collect(&mut answers);
    }
    worker.send(&ToWorker::Cancel { job: job(9) });
    while answers[&job(9)].end.is_none() {
        worker.collect(&mut answers);
    }
    answers.remove(&job(9)).expect("just there").text
}

#[test]
fn pings_are_answered_while_computing_and_tell_a_hang() {
    let mut worker = Worker::ready(paced());
    worker.send(&start(1, generate("[[hang=3]]", 100), u32::MAX));
    let mut answers = BTreeMap::from([(job(1), Answer::default())]);
    while answers[&job(1)].ids.len() < 3 {
        worker.collect(&mut answers);
    }
    let pongs = [1, 2].map(|number| {
        thread::sleep(Duration::from_millis(50));
        worker.send(&ToWorker::Ping(number));
        worker.next()
    });
    let [FromWorker::Pong { turns, busy: true, .. }, FromWorker::Pong { turns: later, busy: true, .. }] =
        pongs
    else {
        panic!("unexpected {pongs:?}")
    };
    assert_eq!(turns, later);
    // The end of input ends even a worker that hangs.
    worker.end().expect("a clean end");
}

#[test]
fn shutdown_and_the_end_of_input_end_a_worker_that_generates() {
    for shutdown in [true, false] {
        let mut worker = Worker::ready(paced());
        worker.send(&start(1, generate("long", 8000), u32::MAX));
        assert!(matches!(worker.next(), FromWorker::Prepared { .. }));
        if shutdown {
            worker.send(&ToWorker::Shutdown);
        }
        let begun = Instant::now();
        worker.end().expect("a clean end");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_model_that_cannot_be_loaded_is_said_before_the_end() {
    let options = FakeOptions { fail_to_load: Some("no such file".to_owned()), ..FakeOptions::default() };
    let mut worker = Worker::start(fake(options));
    assert!(matches!(worker.next(), FromWorker::Loading { .. }));
    let FromWorker::LoadFailed { error } = worker.next() else { panic!("expected a failure") };
    assert!(error.contains("no such file"));
    assert!(worker.fails().to_string().contains("cannot load the model"));
}

#[test]
fn bytes_that_are_no_frame_end_the_worker_with_an_error() {
    let mut worker = Worker::ready(paced());
    worker.to.as_mut().expect("open").write_all(&[0xff; 16]).expect("the worker reads");
    assert!(worker.fails().to_string().contains("cannot read a frame"));
}

#[test]
fn a_crash_on_request_ends_the_process_and_no_other() {
    const CHILD: &str = "ENGINE_TEST_CRASHING_CHILD";
    if std::env::var_os(CHILD).is_some() {
        run(fake(FakeOptions { crash_at: Some(2), ..FakeOptions::default() }), io::stdin(), io::sink())
            .expect("it crashes before it ends");
        return;
    }
    let name = "worker::tests::a_crash_on_request_ends_the_process_and_no_other";
    let mut child = Process::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test runs again");
    let mut input = child.stdin.take().expect("piped");
    write_frame(&mut input, &start(1, generate("crash", 9), 9)).expect("the child reads");
    let status = child.wait().expect("a child");
    assert!(!status.success(), "{status}");
}
