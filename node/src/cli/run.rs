//! `sharemesh run`: submits a job through the local node, streams the answer, accounts for it.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::client::{Client, Events};
use super::terminal::{Terminal, facts, named};
use super::{Global, signal};
use crate::api::views::{CandidateView, JobAccount, JobBody, JobEvent, Money, SplitView, parse_credits};
use crate::exit::{Failure, FailureKind};

/// Bounds a prompt from standard input, as the API does.
const PROMPT_BYTES_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;

/// After Ctrl-C, how long to wait for the account of what was delivered until then.
const ACCOUNT_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sharemesh run smollm2-135m \"Why is the sky blue?\"
  sharemesh run smollm2-135m --system \"Answer in one sentence.\" < question.txt
  sharemesh run smollm2-135m \"Hello\" --temperature 0 --max-tokens 20 --json")]
pub(super) struct RunArgs {
    /// Name of the model: `sharemesh providers` shows those that are served
    model: String,
    /// What to answer; from standard input if it is missing or `-`
    prompt: Option<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, Default, Args)]
struct Options {
    /// The most tokens of the answer [default: 512]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// From 0, always the likeliest token, to 2 [default: 1]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keep so many of the likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// The same seed makes the same answer [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// What to tell the model beforehand
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// End the answer before this string; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// The most that the job may cost, in credits
    #[arg(long, value_name = "CREDITS")]
    max_price: Option<String>,
    /// Only this node, by id; may be repeated
    #[arg(long, value_name = "NODE")]
    only: Vec<String>,
}

/// What is printed with `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    text: &'a str,
    #[serde(flatten)]
    account: &'a JobAccount,
    candidates: &'a [CandidateView],
}

pub(super) async fn run(arguments: RunArgs, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let prompt = match arguments.prompt.filter(|prompt| prompt != "-") {
        Some(prompt) => prompt,
        None => read_prompt()?,
    };
    let body = body_of(arguments.model, prompt, arguments.options)?;
    let client = global.client()?;
    let job = body.job.clone().unwrap_or_default();
    let mut answer = Answer::default();
    let submitted = tokio::select! {
        events = client.submit(&body) => events,
        () = signal::interrupted() => return Err(interrupted().into()),
    };
    let mut events = submitted?;
    tokio::select! {
        followed = answer.follow(&mut events, terminal, !terminal.is_json()) => followed?,
        () = signal::interrupted() => {
            cancel(&client, &job, &mut answer, &mut events, terminal).await;
            return Err(interrupted().into());
        }
    }
    report(&answer, terminal)
}

fn body_of(model: String, prompt: String, options: Options) -> Result<JobBody, Failure> {
    if options.max_tokens == Some(0) {
        return Err(Failure::usage("--max-tokens is 0: ask for at least 1 token"));
    }
    Ok(JobBody {
        model,
        prompt: Some(prompt),
        system: options.system,
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        top_p: options.top_p,
        top_k: options.top_k,
        stop: options.stop,
        seed: options.seed,
        max_price_nano: options.max_price.as_deref().map(parse_credits).transpose()?,
        only: options.only,
        // Known before the answer begins, so that it can be cancelled by name.
        job: Some(crate::command::format_job(&crate::command::new_job())),
        ..JobBody::default()
    })
}

/// Reads a prompt from standard input.
fn read_prompt() -> Result<String, Failure> {
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        return Err(Failure::usage("no prompt: write it after the model's name, or pipe it in"));
    }
    let mut bytes = Vec::new();
    let most = PROMPT_BYTES_MAX as u64 + 1;
    input
        .by_ref()
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::internal(format!("cannot read standard input: {error}")))?;
    prompt_of(bytes)
}

fn prompt_of(bytes: Vec<u8>) -> Result<String, Failure> {
    if bytes.len() > PROMPT_BYTES_MAX {
        return Err(Failure::usage(format!(
            "the prompt is longer than {PROMPT_BYTES_MAX} bytes: shorten it"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        Failure::usage(format!(
            "the prompt is not UTF-8 text (byte {} is wrong): convert it, for example with iconv",
            error.utf8_error().valid_up_to()
        ))
    })?;
    if text.trim().is_empty() {
        return Err(Failure::usage("the prompt is empty: write what the model is to answer"));
    }
    Ok(text)
}

/// What came of a job so far.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The answer's text.
    pub(crate) text: String,
    /// Who was considered.
    pub(crate) candidates: Vec<CandidateView>,
    /// The account, at the end.
    pub(crate) account: Option<JobAccount>,
}

impl Answer {
    /// Follows a job to its end and prints the text as it comes, if it is to be shown.
    pub(crate) async fn follow(
        &mut self,
        events: &mut Events,
        terminal: &Terminal,
        show: bool,
    ) -> anyhow::Result<()> {
        loop {
            match events.next().await? {
                JobEvent::Chosen { why, .. } => self.candidates = why,
                JobEvent::Accepted { .. } => {}
                JobEvent::Vectors { .. } => {}
                JobEvent::Text { text, .. } => {
                    if show {
                        terminal.data(&text)?;
                    }
                    self.text += &text;
                }
                JobEvent::Done(account) => {
                    self.account = Some(*account);
                    return self.end_line(terminal, show);
                }
                JobEvent::Failed { failure, account } => {
                    self.account = account.map(|account| *account);
                    self.end_line(terminal, show)?;
                    if let Some(account) = self.account.as_ref().filter(|_| !terminal.is_json()) {
                        terminal.message(&describe(account));
                    }
                    return Err(failure.into());
                }
            }
        }
    }

    fn end_line(&self, terminal: &Terminal, show: bool) -> anyhow::Result<()> {
        if show && !self.text.is_empty() && !self.text.ends_with('\n') {
            terminal.data("\n")?;
        }
        Ok(())
    }
}

fn report(answer: &Answer, terminal: &Terminal) -> anyhow::Result<()> {
    let Some(account) = &answer.account else { return Ok(()) };
    if terminal.is_json() {
        let report = Report { text: &answer.text, account, candidates: &answer.candidates };
        terminal.object(&report)?;
    } else {
        terminal.message(&format!("\n{}", describe(account)));
    }
    Ok(())
}

/// Cancels a job and waits a moment for the account of what was delivered.
async fn cancel(client: &Client, job: &str, answer: &mut Answer, events: &mut Events, terminal: &Terminal) {
    // What was said so far stays on a line of its own; a closed output is no matter now.
    let _ = answer.end_line(terminal, !terminal.is_json());
    let ending = async {
        // Closing the stream cancels too; this way the account still comes.
        client.delete(&format!("jobs/{job}")).await?;
        answer.follow(events, terminal, false).await
    };
    tokio::select! {
        // Its failure is the cancellation, and its account has been shown.
        _ = tokio::time::timeout(ACCOUNT_MAX, ending) => {}
        () = signal::interrupted() => {}
    }
}

fn interrupted() -> Failure {
    Failure::new(FailureKind::Cancelled, "interrupted: the job was cancelled")
}

/// Returns the account of a job as people read it.
pub(crate) fn describe(account: &JobAccount) -> String {
    let split = account.split.iter().map(line).collect::<Vec<_>>().join(", ");
    let why = if account.why.is_empty() { String::new() } else { format!(": {}", account.why) };
    let attempts =
        if account.attempts > 1 { format!(", after {} attempts", account.attempts) } else { String::new() };
    let text = facts(&[
        ("provider", format!("{}{why}{attempts}", named(&account.provider_name, &account.provider))),
        (
            "tokens",
            format!(
                "{} in, {} out; the first after {} ms, then {:.1} per second; ended by {}",
                account.tokens_in, account.tokens_out, account.ttft_ms, account.tokens_per_s, account.finish
            ),
        ),
        ("price", account.price.to_string()),
        ("split", split),
        ("receipt", account.receipt.clone().unwrap_or_default()),
    ]);
    text.trim_end().to_owned()
}

fn line(line: &SplitView) -> String {
    let Money { credits, .. } = &line.amount;
    let share = match line.bps {
        0 => String::new(),
        bps => format!(" ({}.{:02} %)", bps / 100, bps % 100),
    };
    format!("{} {credits}{share}", line.role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_is_no_text_says_where() {
        let failure = prompt_of(b"ab\xff".to_vec()).expect_err("no text");

        assert_eq!(failure.kind.exit_code(), 2);
        assert!(failure.message.contains("byte 2"), "{failure}");
    }

    #[test]
    fn an_empty_or_endless_prompt_is_a_usage_error() {
        assert_eq!(prompt_of(b" \n".to_vec()).expect_err("empty").kind, FailureKind::Usage);
        assert_eq!(prompt_of(vec![b'a'; PROMPT_BYTES_MAX + 1]).expect_err("long").kind, FailureKind::Usage);
        assert_eq!(prompt_of("why?\n".into()), Ok("why?\n".to_owned()));
    }

    #[test]
    fn no_tokens_is_refused_before_the_node_is_asked() {
        let options = Options { max_tokens: Some(0), ..Options::default() };

        assert_eq!(body_of("m".into(), "p".into(), options).expect_err("none").kind, FailureKind::Usage);
    }
}
