//! Jobs over HTTP: a request becomes a command, and the job's events become a stream.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use engine::frame::{ChatMessage, Generate, Prompt, Sampling};

use super::caller::Caller;
use super::sse::{self, Watched};
use super::views::{JobBody, JobEvent, JobView};
use super::{Api, Json, busy};
use crate::command::{
    ANSWER_TOKENS_MAX, Command, JobId, JobRequest, events_of, format_job, new_job, parse_job,
};
use crate::exit::Failure;

/// The longest answer unless another is asked for.
pub(super) const ANSWER_TOKENS_DEFAULT: u32 = 512;

/// Bounds the providers that a job may be kept to.
const ONLY_MAX: usize = 64;

/// Places a job and streams what happens to it.
#[utoipa::path(post, path = "/jobs", tag = "jobs", responses((status = 200, body = JobEvent, content_type = "text/event-stream")), request_body = JobBody)]
pub(super) async fn submit(State(api): State<Api>, Json(body): Json<JobBody>) -> Result<Response, Failure> {
    let job = body.job.as_deref().map_or_else(|| Ok(new_job()), parse_job)?;
    let request = Arc::new(request_of(body)?);
    let permit =
        api.jobs.clone().try_acquire_owned().map_err(|_| busy("this node streams as many jobs as it may"))?;
    let relaying = api.relays.begin(job)?;
    let (sender, events) = events_of(&request);
    api.commands.tell(Command::Submit { job, request: request.clone(), events: sender })?;
    let own = request.max_price_nano;
    let watched =
        Watched::new(relaying, events, (permit, None), request, &api).falling_back(Caller::Owner, own);
    // The answer's head waits for the first event, so that a job that fails at once has an honest status.
    sse::respond(watched, &format_job(&job)).await
}

/// Shows a job of this node.
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job's id.")), responses((status = 200, body = JobView)))]
pub(super) async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Answer<JobView>, Failure> {
    let job: JobId = parse_job(&id)?;
    api.commands.ask(|reply| Command::ShowJob { job, reply }).await.map(|view| Answer(*view))
}

/// Cancels a job.
#[utoipa::path(delete, path = "/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job's id.")), responses((status = 202)))]
pub(super) async fn cancel(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    let job = parse_job(&id)?;
    api.commands.tell(Command::Cancel { job: api.relays.cancel(job) })?;
    Ok(StatusCode::ACCEPTED)
}

/// Turns a body into a request, or says what to change.
pub(super) fn request_of(body: JobBody) -> Result<JobRequest, Failure> {
    let fallbacks = body.allow_fallbacks.unwrap_or(true);
    let open_ended = body.max_tokens.is_none();
    let max_tokens = body.max_tokens.unwrap_or(ANSWER_TOKENS_DEFAULT);
    if !(1..=ANSWER_TOKENS_MAX).contains(&max_tokens) {
        return Err(Failure::usage(format!(
            "max_tokens is {max_tokens}: ask for 1 to {ANSWER_TOKENS_MAX} tokens of answer"
        )));
    }
    if body.model.is_empty() || body.model.len() > 256 {
        return Err(Failure::usage("name a model: `sharemesh providers` shows those that are served"));
    }
    if body.only.len() > ONLY_MAX {
        return Err(Failure::usage(format!("at most {ONLY_MAX} providers can be named in `only`")));
    }
    let defaults = Sampling::default();
    let sampling = Sampling {
        temperature: body.temperature.unwrap_or(defaults.temperature),
        top_p: body.top_p.unwrap_or(defaults.top_p),
        top_k: body.top_k.unwrap_or(defaults.top_k),
        repetition_penalty: body.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        stop: body.stop,
        seed: body.seed.unwrap_or_else(random_seed),
        ..defaults
    };
    let messages = messages_of(body.prompt, body.system, body.messages)?;
    let prompt = Prompt::Chat(messages);
    let generate = Generate { prompt, sampling, max_tokens, resume: Vec::new(), logprobs: None, form: None };
    generate.validate().map_err(|error| Failure::usage(error.to_string()))?;
    let request = JobRequest::new(body.model, generate);
    Ok(JobRequest { fallbacks, open_ended, max_price_nano: body.max_price_nano, only: body.only, ..request })
}

fn messages_of(
    prompt: Option<String>,
    system: Option<String>,
    messages: Vec<super::views::MessageBody>,
) -> Result<Vec<ChatMessage>, Failure> {
    let said = |role: &str, content| ChatMessage { role: role.to_owned(), content };
    match (prompt, messages.is_empty()) {
        (Some(_), false) => Err(Failure::usage("send either `prompt` or `messages`, not both")),
        (None, true) => Err(Failure::usage("the prompt is missing: send `prompt` or `messages`")),
        (Some(prompt), true) if prompt.trim().is_empty() => {
            Err(Failure::usage("the prompt is empty: write what the model is to answer"))
        }
        (Some(prompt), true) => {
            Ok(system.map(|text| said("system", text)).into_iter().chain([said("user", prompt)]).collect())
        }
        (None, false) => {
            let given = messages.into_iter().map(|message| said(&message.role, message.content));
            Ok(system.map(|text| said("system", text)).into_iter().chain(given).collect())
        }
    }
}

pub(super) fn random_seed() -> u64 {
    getrandom::u64().expect("the operating system has randomness")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::FailureKind;

    fn body() -> JobBody {
        JobBody {
            model: "m".to_owned(),
            prompt: Some("why?".to_owned()),
            seed: Some(1),
            ..JobBody::default()
        }
    }

    #[test]
    fn a_prompt_is_a_chat_of_one_message() {
        let request = request_of(body()).expect("sound");

        let message = ChatMessage { role: "user".to_owned(), content: "why?".to_owned() };
        assert_eq!(request.generate().expect("text").prompt, Prompt::Chat(vec![message]));
        assert_eq!(request.generate().expect("text").max_tokens, ANSWER_TOKENS_DEFAULT);
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused_with_what_to_change() {
        let refused = |body: JobBody, word: &str| {
            let failure = request_of(body).expect_err(word);
            assert_eq!(failure.kind, FailureKind::Usage);
            assert!(failure.message.contains(word), "{failure}");
        };

        refused(JobBody { max_tokens: Some(0), ..body() }, "max_tokens is 0");
        refused(JobBody { max_tokens: Some(u32::MAX), ..body() }, "max_tokens");
        refused(JobBody { prompt: None, ..body() }, "missing");
        refused(JobBody { prompt: Some("  ".to_owned()), ..body() }, "empty");
        refused(JobBody { temperature: Some(f32::NAN), ..body() }, "temperature");
        refused(JobBody { top_p: Some(0.0), ..body() }, "top_p");
        refused(JobBody { model: String::new(), ..body() }, "model");
    }
}
