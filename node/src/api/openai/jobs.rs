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
use crate::api::fallback::Chain;
use crate::api::views::{BuilderView, CandidateView, JobView, Money, format_credits};
use crate::command::{Command, JobRequest, parse_job};
use crate::exit::{Failure, FailureKind};

/// What a request would cost, and who would be considered for it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct DryRun {
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

/// Shows a job of this node, by its own id or that of the answer whose first choice it was; where several providers worked
/// on an answer, the id of each job leads to the whole.
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
    let Chain { jobs, is_vectors } = api.relays.jobs_of(job);
    if let Caller::Key(key) = &caller
        && !jobs.iter().any(|job| api.keys.placed(key, job))
    {
        let words = format!("no job `{id}` was asked for lately with this key");
        return Err(Failure::new(FailureKind::NotFound, words).in_param("id").into());
    }
    if jobs.len() == 1 {
        return Ok(Answer(*api.commands.ask(|reply| Command::ShowJob { job, reply }).await?));
    }
    let mut views = Vec::new();
    for job in jobs {
        match api.commands.ask(|reply| Command::ShowJob { job, reply }).await {
            Ok(view) => views.push(*view),
            // One that came to nothing long ago was forgotten.
            Err(failure) if failure.kind == FailureKind::NotFound => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    together(views, is_vectors).map(Answer).ok_or_else(|| {
        Failure::new(FailureKind::NotFound, format!("no job `{id}` in this node's ledger"))
            .in_param("id")
            .into()
    })
}

/// Shows an answer on which several providers worked: as its first job, which is the one that clients know, with what the
/// last one came to and the sums of all. A prompt that each of them read is counted once; of texts each read others.
fn together(jobs: Vec<JobView>, is_vectors: bool) -> Option<JobView> {
    let (first, last) = (jobs.first()?.clone(), jobs.last()?.clone());
    if jobs.len() == 1 {
        return Some(first);
    }
    let price = jobs.iter().fold(0, |sum: u64, job| sum.saturating_add(job.price.nano));
    let mut read = jobs.iter().map(|job| job.tokens_in);
    let tokens_in = match is_vectors {
        true => read.fold(0, u32::saturating_add),
        false => read.find(|tokens| *tokens > 0).unwrap_or(0),
    };
    let builders = || jobs.iter().filter_map(|job| job.builder.as_ref());
    let markup = builders().fold(0, |sum: u64, builder| sum.saturating_add(builder.amount.nano));
    Some(JobView {
        job: first.job,
        tokens_in,
        tokens_out: jobs.iter().fold(0, |sum: u32, job| sum.saturating_add(job.tokens_out)),
        price: price.into(),
        builder: builders().next().cloned().map(|one| BuilderView { amount: markup.into(), ..one }),
        split: jobs.iter().flat_map(|job| job.split.clone()).collect(),
        paid_by: jobs.iter().rev().find_map(|job| job.paid_by.clone()),
        started_ms: first.started_ms,
        jobs,
        ..last
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::views::SplitView;

    #[test]
    fn an_answer_of_several_providers_is_shown_as_one_with_the_sums_of_all() {
        let job = |job: &str, state: &str, tokens_out, nano: u64| JobView {
            job: job.to_owned(),
            state: state.to_owned(),
            tokens_out,
            tokens_in: 5 + tokens_out,
            price: nano.into(),
            split: vec![SplitView {
                role: "provider".to_owned(),
                amount: nano.into(),
                ..SplitView::default()
            }],
            started_ms: u64::from(tokens_out),
            ..JobView::default()
        };

        let whole =
            together(vec![job("a", "failed", 1, 10), job("b", "settled", 2, 20)], false).expect("some");

        assert_eq!((whole.job.as_str(), whole.state.as_str()), ("a", "settled"));
        assert_eq!((whole.tokens_in, whole.tokens_out, whole.price.nano, whole.started_ms), (6, 3, 30, 1));
        assert_eq!(whole.split.iter().map(|line| line.amount.nano).sum::<u64>(), 30);
        assert_eq!(whole.jobs.len(), 2);
        assert_eq!(together(vec![job("a", "failed", 1, 10)], false).expect("one").jobs.len(), 0);
        assert!(together(Vec::new(), false).is_none());
    }

    #[test]
    fn a_prompt_is_counted_once_whoever_read_it_first_and_texts_once_for_each_who_read_them() {
        let read = |tokens_in| JobView { tokens_in, ..JobView::default() };
        let tokens = |is_vectors| {
            let whole = together(vec![read(0), read(5), read(7)], is_vectors).expect("some");
            whole.tokens_in
        };

        assert_eq!((tokens(false), tokens(true)), (5, 12));
    }
}
