//! What a request would cost, and why a job went where it did: additions to the API.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json as Answer};
use protocol::ledger::money::markup_within;
use protocol::ledger::records::Markup;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::Refusal;
use super::run::name;
use crate::api::Api;
use crate::api::caller::Caller;
use crate::api::views::{BuilderView, CandidateView, JobView, Money, format_credits};
use crate::command::{Command, JobRequest, parse_job};
use crate::exit::{Failure, FailureKind};

/// What a request would cost, and who would be considered for it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DryRun {
    object: &'static str,
    model: String,
    /// Choices.
    n: usize,
    /// The most that all choices together could cost at the best provider; none if nobody can be used.
    price_max: Option<Money>,
    /// The most of it that the builder who routed the request could get.
    #[serde(skip_serializing_if = "Option::is_none")]
    builder: Option<BuilderView>,
    candidates: Vec<CandidateView>,
}

/// Says what a request would cost now; nothing is run and nothing reserved.
pub(super) async fn quote(
    api: &Api,
    named: String,
    jobs: Vec<JobRequest>,
    ignored: &[String],
) -> Result<Response, Refusal> {
    let model = Some(named.clone());
    // Waits a moment for adverts of a model that nobody has been heard of.
    api.commands.ask(|reply| Command::Providers { model, reply }).await?;
    let (mut price_max, mut share, mut candidates) = (Some(0_u64), 0_u64, Vec::new());
    let markup = jobs.first().and_then(|job| job.markup);
    let bps = markup.map_or(0, |markup| markup.bps);
    let n = jobs.len();
    for job in jobs {
        let quote = api.commands.ask(|reply| Command::Quote { request: Arc::new(job), reply }).await?;
        let price = quote.price_max.map(|price| price.nano);
        share = share.saturating_add(price.map_or(0, |price| markup_within(price, bps)));
        price_max = price_max.zip(price).map(|(sum, price)| sum.saturating_add(price));
        if candidates.is_empty() {
            candidates = quote.candidates;
        }
    }
    let builder = markup.zip(price_max).map(|(Markup { builder, bps }, _)| BuilderView {
        account: builder.to_string(),
        markup_bps: bps,
        amount: share.into(),
    });
    let price_max = price_max.map(Money::from_nano);
    let price = price_max.as_ref().map(|price| format_credits(price.nano));
    let view = DryRun { object: "sharemesh.dry_run", model: named, n, price_max, builder, candidates };
    let mut response = Answer(view).into_response();
    name(response.headers_mut(), "x-sharemesh-price", &price.into_iter().collect::<Vec<_>>());
    name(response.headers_mut(), "x-sharemesh-ignored", ignored);
    Ok(response)
}

/// Shows a job of this node, by its own id or that of the answer whose first choice it was.
///
/// A key sees only what was asked for with it.
#[utoipa::path(
    get,
    path = "/jobs/{id}",
    tag = "openai",
    params(("id" = String, Path, description = "The job's id, or that of an answer.")),
    responses((status = 200, body = JobView))
)]
pub(super) async fn show(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Answer<JobView>, Refusal> {
    let bare =
        ["chatcmpl-", "cmpl-", "resp_"].iter().find_map(|prefix| id.strip_prefix(prefix)).unwrap_or(&id);
    let job = parse_job(bare).map_err(|failure: Failure| failure.in_param("id"))?;
    if let Caller::Key(key) = &caller
        && !api.keys.placed(key, &job)
    {
        let words = format!("no job `{id}` was asked for lately with this key");
        return Err(Failure::new(FailureKind::NotFound, words).in_param("id").into());
    }
    Ok(Answer(*api.commands.ask(|reply| Command::ShowJob { job, reply }).await?))
}
