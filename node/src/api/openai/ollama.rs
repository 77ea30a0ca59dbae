//! The endpoints that programs made for Ollama speak: what `/v1` does, in Ollama's words.
//!
//! In reading order: `asked` says a request in the words of `/v1`, which reads and bounds it; `answer` writes what comes of
//! it, as one object or as a line for each part; `embed` does both for vectors; `models` says what is offered.

mod answer;
mod asked;
mod embed;
mod models;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Extension, Json, Router};
use serde_json::{Value, json};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Body as Given, Options, Query, Refusal, described, is_dry_run};
use crate::api::Api;
use crate::api::caller::Caller;
use crate::exit::{Failure, FailureKind};
use asked::Endpoint;

/// Bounds an error that is said in other words; ours are a few hundred bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;

pub(in crate::api) fn router() -> (Router<Api>, OpenApi) {
    let (router, document) = OpenApiRouter::default()
        .routes(routes!(version))
        .routes(routes!(models::tags))
        .routes(routes!(models::running))
        .routes(routes!(models::show))
        .routes(routes!(chat))
        .routes(routes!(generate))
        .routes(routes!(embed))
        .routes(routes!(embeddings))
        .split_for_parts();
    (router.route("/{*other}", any(not_found)), document)
}

/// Says that somebody is here, in the words by which programs find Ollama.
#[utoipa::path(get, path = "/", tag = "ollama", responses((status = 200, body = String, content_type = "text/plain")))]
pub(in crate::api) async fn greet() -> &'static str {
    "Ollama is running"
}

/// Returns the version of this program.
#[utoipa::path(get, path = "/version", tag = "ollama", responses((status = 200, body = Object)))]
async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// Answers a chat, whole or line by line.
#[utoipa::path(
    post,
    path = "/chat",
    tag = "ollama",
    params(Options, ("idempotency-key" = Option<String>, Header, description = "Requests with the same key are one.")),
    request_body = described::OllamaChatRequest,
    responses((status = 200, description = "The answer, or a line of JSON for each part.", content(
        (Object = "application/json"), (String = "application/x-ndjson")
    )))
)]
async fn chat(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Query,
    headers: HeaderMap,
    body: Given,
) -> Result<Response, Refusal> {
    answer::respond(Endpoint::Chat, api, caller, is_dry_run(query)?, &headers, &body?).await
}

/// Answers a prompt, whole or line by line.
#[utoipa::path(
    post,
    path = "/generate",
    tag = "ollama",
    params(Options, ("idempotency-key" = Option<String>, Header, description = "Requests with the same key are one.")),
    request_body = described::OllamaGenerateRequest,
    responses((status = 200, description = "The answer, or a line of JSON for each part.", content(
        (Object = "application/json"), (String = "application/x-ndjson")
    )))
)]
async fn generate(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Query,
    headers: HeaderMap,
    body: Given,
) -> Result<Response, Refusal> {
    answer::respond(Endpoint::Generate, api, caller, is_dry_run(query)?, &headers, &body?).await
}

/// Makes vectors of texts.
#[utoipa::path(
    post,
    path = "/embed",
    tag = "ollama",
    params(Options, ("idempotency-key" = Option<String>, Header, description = "Requests with the same key are one.")),
    request_body = described::OllamaEmbedRequest,
    responses((status = 200, body = Object))
)]
async fn embed(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Query,
    headers: HeaderMap,
    body: Given,
) -> Result<Response, Refusal> {
    embed::respond(embed::Endpoint::Embed, api, caller, is_dry_run(query)?, &headers, &body?).await
}

/// Makes a vector of a text, as older programs ask for it.
#[utoipa::path(
    post,
    path = "/embeddings",
    tag = "ollama",
    params(Options, ("idempotency-key" = Option<String>, Header, description = "Requests with the same key are one.")),
    request_body = described::OllamaEmbeddingsRequest,
    responses((status = 200, body = Object))
)]
async fn embeddings(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Query,
    headers: HeaderMap,
    body: Given,
) -> Result<Response, Refusal> {
    embed::respond(embed::Endpoint::Embeddings, api, caller, is_dry_run(query)?, &headers, &body?).await
}

async fn not_found(request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(200).collect();
    let words = format!("nothing at `/api{path}`: docs/api.md lists the endpoints");
    Failure::new(FailureKind::NotFound, words).into()
}

/// Headers that an error keeps when it is said in other words.
const KEPT: [&str; 6] =
    ["retry-after", "x-request-id", "x-should-retry", "x-sharemesh-job", "x-sharemesh-replayed", "allow"];

/// Says errors as Ollama's clients read them: `{"error": "words"}`.
pub(in crate::api) async fn in_its_words(response: Response) -> Response {
    if !response.status().is_client_error() && !response.status().is_server_error() {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let words = words_of(body).await.unwrap_or_else(|| head.status.to_string());
    let kept: HeaderMap =
        KEPT.iter().filter_map(|name| Some((name.parse().ok()?, head.headers.remove(*name)?))).collect();
    let mut response = (head.status, Json(json!({"error": words}))).into_response();
    response.headers_mut().extend(kept);
    response
}

/// Refuses a request before any endpoint has seen it.
pub(in crate::api) fn refuse(failure: Failure) -> Response {
    let mut response = Refusal::from(failure.clone()).into_response();
    *response.body_mut() = Body::from(json!({"error": failure.message}).to_string());
    response.headers_mut().remove("content-length");
    response
}

async fn words_of(body: Body) -> Option<String> {
    let bytes = to_bytes(body, ERROR_BYTES_MAX).await.ok()?;
    let error: Value = serde_json::from_slice(&bytes).ok()?;
    error.pointer("/error/message")?.as_str().map(str::to_owned)
}
