//! The owner's endpoints for API keys: make, list, show, revoke.

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::views::{KeyBody, KeyMadeView, KeyView};
use super::{Api, Json};
use crate::api_keys::Limits;
use crate::exit::Failure;

/// Returns the API keys.
#[utoipa::path(get, path = "/keys", tag = "keys", responses((status = 200, body = Vec<KeyView>)))]
pub(super) async fn list(State(api): State<Api>) -> Answer<Vec<KeyView>> {
    Answer(api.keys.list())
}

/// Makes an API key, which is shown this once.
#[utoipa::path(post, path = "/keys", tag = "keys", responses((status = 201, body = KeyMadeView)), request_body = KeyBody)]
pub(super) async fn create(
    State(api): State<Api>,
    Json(body): Json<KeyBody>,
) -> Result<(StatusCode, Answer<KeyMadeView>), Failure> {
    let limits = limits_of(&body)?;
    api.keys.create(&body.name, limits).await.map(|made| (StatusCode::CREATED, Answer(made)))
}

/// Shows an API key's limits and use.
#[utoipa::path(get, path = "/keys/{name}", tag = "keys", params(("name" = String, Path, description = "What the key is called.")), responses((status = 200, body = KeyView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Answer<KeyView>, Failure> {
    api.keys.show(&name).map(Answer)
}

/// Ends an API key.
#[utoipa::path(delete, path = "/keys/{name}", tag = "keys", params(("name" = String, Path, description = "What the key is called.")), responses((status = 200, body = KeyView)))]
pub(super) async fn revoke(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Answer<KeyView>, Failure> {
    api.keys.revoke(&name).await.map(Answer)
}

/// Returns what a key shall be allowed; one without any budget must be asked for as such.
pub(crate) fn limits_of(body: &KeyBody) -> Result<Limits, Failure> {
    let has_budget = body.budget_nano.is_some() || body.per_day_nano.is_some();
    if has_budget == body.unlimited {
        let words = "give a key a budget, in all or for a day, or say that it is unlimited, and not both";
        return Err(Failure::usage(words).in_param("budget_nano"));
    }
    Ok(Limits {
        budget_nano: body.budget_nano,
        per_day_nano: body.per_day_nano,
        requests_per_minute: body.requests_per_minute.unwrap_or(Limits::REQUESTS_PER_MINUTE),
        jobs_at_once: body.jobs_at_once.unwrap_or(Limits::JOBS_AT_ONCE),
    })
}
