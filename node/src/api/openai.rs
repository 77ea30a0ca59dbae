//! The endpoints that programs made for OpenAI's API speak: `/v1/models`, `/v1/chat/completions`, `/v1/completions`,
//! `/v1/responses`, `/v1/embeddings`, `/v1/jobs`.
//!
//! In reading order: `fields` takes a request's parameters by name, `messages` its chat, `prompts` what it begins with and `form` what the answer must look
//! like; `asked` makes jobs of them;
//! `run` submits these and gathers or streams what they answer, in the words of `wire`; `responses` writes them as items and
//! events; `embeddings` does all this for vectors;
//! `models` lists what is offered, and
//! `jobs` says what a request would cost and why a job went where it did; `idempotency` keeps answers for whoever asks again. `ollama` is
//! the same for programs made for Ollama.

#[cfg(test)]
mod again_tests;
mod asked;
mod calls;
mod described;
mod embeddings;
#[cfg(test)]
mod embeddings_tests;
mod error;
mod fields;
mod form;
mod idempotency;
mod jobs;
#[cfg(test)]
mod keys_tests;
mod messages;
mod models;
pub(super) mod ollama;
mod prompts;
mod responses;
mod run;
mod spoken;
mod stream;
#[cfg(test)]
mod tests;
mod tools;
mod wire;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use axum::{Extension, Router};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::caller::Caller;
use crate::exit::Failure;

use asked::Asked;
pub(super) use described::OllamaError;
pub(super) use error::{ErrorBody, Refusal};
pub(super) use idempotency::Answers;
pub(super) use jobs::DryRun;
use wire::Dialect;

pub(super) fn router() -> (Router<Api>, OpenApi) {
    let (router, document) = OpenApiRouter::default()
        .routes(routes!(models::list))
        .routes(routes!(models::show))
        .routes(routes!(chat))
        .routes(routes!(completions))
        .routes(routes!(embed))
        .routes(routes!(respond))
        .routes(routes!(jobs::show))
        .split_for_parts();
    (router.fallback(not_found).method_not_allowed_fallback(wrong_method), document)
}

/// Answers a chat, whole or as a stream of chunks.
#[utoipa::path(
    post,
    path = "/chat/completions",
    tag = "openai",
    params(Options, ("idempotency-key" = Option<String>, Header, description = "Requests with the same key are one.")),
    request_body = described::ChatRequest,
    responses((status = 200, description = "The answer; its chunks if streamed; with `dry_run` what it would cost.", content(
        (wire::Answer = "application/json"), (String = "text/event-stream")
    )))
)]
async fn chat(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    answer(Dialect::Chat, (api, caller), query, &headers, body).await
}

/// Goes on with a text, whole or as a stream of chunks.
#[utoipa::path(
    post,
    path = "/completions",
    tag = "openai",
    params(Options, ("idempotency-key" = Option<String>, Header, description = "Requests with the same key are one.")),
    request_body = described::CompletionRequest,
    responses((status = 200, description = "The answer; its chunks if streamed; with `dry_run` what it would cost.", content(
        (wire::Answer = "application/json"), (String = "text/event-stream")
    )))
)]
async fn completions(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    answer(Dialect::Completion, (api, caller), query, &headers, body).await
}

type Query = Result<axum::extract::Query<Options>, QueryRejection>;
type Body = Result<Bytes, BytesRejection>;

/// What may stand after `?`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Says what it would cost, and runs nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Says whether a request is to say what it would cost, and to run nothing.
fn is_dry_run(query: Query) -> Result<bool, Failure> {
    let options = query.map_err(|error| Failure::usage(format!("wrong query: {error}")))?;
    Ok(options.dry_run)
}

async fn answer(
    dialect: Dialect,
    (api, caller): (Api, Caller),
    query: Query,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let is_dry = is_dry_run(query)?;
    let body = body?;
    let asked = Asked::of(dialect, &body)?.checked().await?;
    if is_dry {
        return jobs::quote(&api, asked.model, asked.jobs, &asked.ignored).await;
    }
    let run = run::run(api.clone(), caller.clone(), asked);
    once((&api, &caller), headers, (dialect.path(), &body), run).await
}

/// Runs a request, or has it answered as the same one was that had its `Idempotency-Key`.
async fn once(
    (api, caller): (&Api, &Caller),
    headers: &HeaderMap,
    (path, body): (&str, &[u8]),
    run: impl Future<Output = Result<Response, Refusal>> + Send + 'static,
) -> Result<Response, Refusal> {
    let Some(key) = idempotency::key_of(headers)? else { return run.await };
    idempotency::run_once(api, caller, &key, &[path.as_bytes(), body].concat(), run).await
}

/// Makes vectors of texts.
#[utoipa::path(
    post,
    path = "/embeddings",
    tag = "openai",
    params(Options, ("idempotency-key" = Option<String>, Header, description = "Requests with the same key are one.")),
    request_body = described::EmbeddingsRequest,
    responses((status = 200, description = "The vectors; with `dry_run` what they would cost.", body = Object))
)]
async fn embed(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let is_dry = is_dry_run(query)?;
    let body = body?;
    let wanted = embeddings::Wanted::of(&body)?;
    if is_dry {
        let model = wanted.request.model.clone();
        return jobs::quote(&api, model, vec![wanted.request], &wanted.ignored).await;
    }
    let run = embeddings::run(api.clone(), caller.clone(), wanted);
    once((&api, &caller), &headers, (embeddings::PATH, &body), run).await
}

/// Goes on with a conversation, whole or as a stream of events.
#[utoipa::path(
    post,
    path = "/responses",
    tag = "openai",
    params(Options, ("idempotency-key" = Option<String>, Header, description = "Requests with the same key are one.")),
    request_body = described::ResponsesRequest,
    responses((status = 200, description = "The answer; its events if streamed; with `dry_run` what it would cost.", content(
        (Object = "application/json"), (String = "text/event-stream")
    )))
)]
async fn respond(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let is_dry = is_dry_run(query)?;
    let body = body?;
    let wanted = responses::Wanted::of(&body).await?;
    if is_dry {
        let asked = wanted.asked;
        return jobs::quote(&api, asked.model, asked.jobs, &asked.ignored).await;
    }
    let run = responses::run(api.clone(), caller.clone(), wanted);
    once((&api, &caller), &headers, (responses::PATH, &body), run).await
}

async fn not_found(request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(200).collect();
    let words = format!("nothing at `/v1{path}`: docs/api.md lists the endpoints");
    Failure::new(crate::exit::FailureKind::NotFound, words).into()
}

async fn wrong_method(request: Request) -> Refusal {
    Refusal::wrong_method(request.method(), request.uri().path())
}

/// Names each request, so that a client's report can be found again in the log.
pub(super) async fn name_request(request: Request, next: Next) -> Response {
    let trace = crate::trace::of(request.headers());
    let begun = tokio::time::Instant::now();
    tracing::debug!(%trace, method = %request.method(), path = %request.uri().path(), "Request");
    let mut response = crate::trace::within(trace, next.run(request)).await;
    let ms = crate::trace::ms(begun.elapsed());
    tracing::debug!(%trace, status = response.status().as_u16(), ms, "Answered");
    if let Ok(id) = HeaderValue::from_str(&trace.to_string()) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}
