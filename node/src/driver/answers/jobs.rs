//! What a client is told of its job, and the names of choices, refusals and ends.

use std::sync::Arc;

use protocol::ids::{AccountId, JobId};
use protocol::job::{Failure as JobFailure, Finish, JobEvent as CoreEvent};
use protocol::ledger::records::{Markup, SplitRole};
use protocol::router::{Considered, Gate};
use protocol::scheduler::Refusal;

use crate::api::views::{BuilderView, CandidateView, JobAccount, JobEvent, QuoteView, SplitView};
use crate::command::JobRequest;
use crate::driver::Driver;
use crate::driver::answers::one_model;
use crate::driver::body;
use crate::driver::jobs::failure_of;
use crate::exit::{Failure, FailureKind};

impl Driver {
    /// Returns what a client is told of an event of its job, and whether it is the last one.
    pub(in crate::driver) fn view_of(&mut self, job: JobId, event: CoreEvent) -> (Option<JobEvent>, bool) {
        match event {
            CoreEvent::Chosen { provider, considered, opening_ms } => {
                let now = self.clock.now_ms();
                let why = self.why(job, &considered);
                let worst = considered.iter().find(|c| c.provider == provider).map_or(0, |c| c.price);
                let Some(own) = self.jobs.get_mut(&job) else { return (None, false) };
                own.why.clone_from(&why);
                own.attempts += 1;
                own.steps.took("open", 0, opening_ms);
                own.steps.done("route", 0, now);
                own.price_max = worst;
                (Some(JobEvent::Chosen { job: job.to_string(), provider: provider.to_string(), why }), false)
            }
            CoreEvent::Accepted { tokens_in } => {
                let now = self.clock.now_ms();
                if let Some(own) = self.jobs.get_mut(&job) {
                    own.steps.done("accept", tokens_in, now);
                }
                let price_max = self.jobs.get(&job).map_or(0, |own| own.price_max).into();
                (Some(JobEvent::Accepted { tokens_in, price_max }), false)
            }
            CoreEvent::Done(account) => {
                let now = self.clock.now_ms();
                if let Some(own) = self.jobs.get_mut(&job) {
                    own.steps.done("receipt", 0, now);
                }
                (self.account(job, &account).map(|account| JobEvent::Done(Box::new(account))), true)
            }
            CoreEvent::Failed { failure, account } => {
                if let JobFailure::NoProvider(considered) = &failure {
                    let why = self.why(job, considered);
                    self.jobs.entry(job).and_modify(|own| own.why = why);
                }
                let model = self.jobs.get(&job).map(|own| own.request.model.clone()).unwrap_or_default();
                let account = account.and_then(|account| self.account(job, &account)).map(Box::new);
                let failure = self.too_few_answered(&failure).unwrap_or_else(|| failure_of(&failure, &model));
                (Some(JobEvent::Failed { failure, account }), true)
            }
        }
    }

    /// Says that no quorum of several issuers answered, where that was the reason.
    fn too_few_answered(&self, failure: &JobFailure) -> Option<Failure> {
        let manifest = self.node.manifest();
        let issuers = manifest.issuers.len();
        (*failure == JobFailure::IssuerUnreachable && issuers > 1).then(|| {
            let words = format!(
                "too few of the network's {issuers} issuers answer, and {} must agree, so no payment channel can be \
                 opened: `sharemesh status` says which; try again when one more is up",
                manifest.quorum()
            );
            Failure::new(FailureKind::Unavailable, words)
        })
    }

    pub(super) fn account(&self, job: JobId, account: &protocol::job::JobAccount) -> Option<JobAccount> {
        let own = self.jobs.get(&job)?;
        let record = &account.record;
        let now = self.clock.now_ms();
        let first = own.first_token_ms.unwrap_or(now);
        let tokens_out = u32::try_from(record.usage.tokens_out).unwrap_or(u32::MAX);
        let after_first = now.saturating_sub(first).max(1);
        let mut split: Vec<SplitView> =
            account.split.iter().map(|line| self.split_view(account, *line)).collect();
        if account.in_channel > 0 {
            split.push(SplitView {
                role: "pending".to_owned(),
                account: String::new(),
                bps: 0,
                amount: account.in_channel.unsigned_abs().into(),
            });
        }
        let markup = own.request.markup.filter(|_| record.channel.is_some());
        let builder = markup.map(|Markup { builder, bps }| {
            let lines = account.split.iter().filter(|(role, ..)| *role == SplitRole::Builder);
            BuilderView {
                account: builder.to_string(),
                markup_bps: bps,
                amount: lines.map(|(.., amount)| amount).sum::<u64>().into(),
            }
        });
        Some(JobAccount {
            job: job.to_string(),
            model: own.request.model.clone(),
            provider: record.provider.to_string(),
            provider_name: self.name_of(record.provider),
            provider_account: account.payee.map(|payee| payee.to_string()).unwrap_or_default(),
            why: own.why.iter().find(|why| why.chosen).map(|why| why.reason.clone()).unwrap_or_default(),
            tokens_in: u32::try_from(record.usage.tokens_in).unwrap_or(u32::MAX),
            tokens_out,
            ttft_ms: first.saturating_sub(own.submitted_ms),
            total_ms: now.saturating_sub(own.submitted_ms),
            tokens_per_s: f64::from(tokens_out.saturating_sub(1)) * 1000.0
                / f64::from(u32::try_from(after_first).unwrap_or(u32::MAX)),
            price: account.price.into(),
            builder,
            ahead_nano: account.ahead,
            split,
            receipt: account.receipt.map(|receipt| receipt.to_string()),
            finish: finish_name(record.finish).to_owned(),
            text_digest: own.text.to_string(),
            attempts: own.attempts,
            earlier: Vec::new(),
        })
    }

    pub(super) fn split_view(
        &self,
        account: &protocol::job::JobAccount,
        (role, to, amount): (SplitRole, AccountId, u64),
    ) -> SplitView {
        let shares: u64 =
            account.split.iter().filter(|(role, ..)| *role != SplitRole::Builder).map(|l| l.2).sum();
        let bps = amount.saturating_mul(10_000).checked_div(shares).unwrap_or(0);
        SplitView {
            role: role_name(role).to_owned(),
            account: to.to_string(),
            bps: u32::try_from(bps).unwrap_or(u32::MAX),
            amount: amount.into(),
        }
    }

    /// Says what a job would cost, and who would be considered for it.
    pub(super) fn quote(&self, request: &Arc<JobRequest>) -> Result<QuoteView, Failure> {
        let model = one_model(&request.model, &self.resolve(&request.model))?;
        let mut request = Arc::clone(request);
        self.check_builder(&request)?;
        self.check_kind(&request, model)?;
        self.fit(&mut request, model);
        let is_wanted_of_nobody = self.narrow(&mut request, model).is_err();
        if is_wanted_of_nobody {
            return Ok(QuoteView { candidates: self.unfit(&request, model), ..QuoteView::default() });
        }
        let (spec, _) = body::describe(&request, model)?;
        let considered = self.node.quote(&spec, self.now());
        let price_max = considered.first().filter(|best| best.gate.is_none()).map(|best| best.price.into());
        let may_serve = |considered: &&Considered| matches!(considered.gate, None | Some(Gate::Unreachable));
        let usable = considered.iter().any(|considered| may_serve(&considered));
        let may_soon =
            |considered: &&Considered| may_serve(considered) || considered.gate == Some(Gate::Unhealthy);
        let range = range_of(considered.iter().filter(may_soon).map(|considered| considered.price).collect());
        let range = range.map(|range| with_best(range, &considered));
        let candidate = |(at, considered): (usize, &Considered)| {
            let view = self.candidate(considered);
            let is_second = at > 0 && view.chosen;
            let reason = if is_second { "usable, and not the best".to_owned() } else { view.reason };
            CandidateView { chosen: view.chosen && !is_second, reason, ..view }
        };
        let mut candidates: Vec<_> = considered.iter().enumerate().map(candidate).collect();
        self.name_unfit(&request, model, &mut candidates);
        let resting = considered.iter().any(|considered| considered.gate == Some(Gate::Unhealthy));
        Ok(QuoteView { price_max, range, usable, resting, candidates })
    }

    pub(in crate::driver) fn candidate(&self, considered: &Considered) -> CandidateView {
        let here = considered.provider == self.node.id();
        let reason = match considered.gate {
            Some(gate) => gate_name(gate),
            None if here => "serves the model itself, for nothing".to_owned(),
            None => "best estimate of time and price".to_owned(),
        };
        CandidateView {
            node: considered.provider.to_string(),
            name: self.name_of(considered.provider),
            chosen: considered.gate.is_none(),
            reason,
            price: Some(considered.price.into()),
            estimate_ms: Some(considered.estimate_ms),
        }
    }
}

/// How many times the price in the middle a price may be that something is set aside for.
const DEAREST: u64 = 4;

/// Returns the least of some prices, and the most of those that are not out of all proportion: one advert cannot have a
/// whole budget set aside.
fn range_of(mut prices: Vec<u64>) -> Option<(u64, u64)> {
    prices.sort_unstable();
    let least = *prices.first()?;
    let paid: Vec<u64> = prices.into_iter().filter(|price| *price > 0).collect();
    let Some(middle) = paid.get(paid.len().saturating_sub(1) / 2) else { return Some((least, least)) };
    let bound = middle.saturating_mul(DEAREST);
    let most = paid.iter().rev().find(|price| **price <= bound).copied().unwrap_or(*middle);
    Some((least, most))
}

/// Raises the most to what the best provider asks, as nodes rank them: adverts of others, however cheap and many, must not
/// keep a job from whoever has done jobs before.
fn with_best((least, most): (u64, u64), considered: &[Considered]) -> (u64, u64) {
    let best = considered.iter().find(|considered| considered.gate.is_none() && considered.price > 0);
    (least, most.max(best.map_or(0, |best| best.price)))
}

pub(super) const fn role_name(role: SplitRole) -> &'static str {
    match role {
        SplitRole::Provider => "provider",
        SplitRole::Pool => "pool",
        SplitRole::Network => "network",
        SplitRole::Builder => "builder",
    }
}

pub(super) const fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
        Finish::Lost => "lost",
    }
}

/// Returns the name of a gate, with the reason of a refusal.
pub(in crate::driver) fn gate_name(gate: Gate) -> String {
    let name = match gate {
        Gate::NotServed => "not_served",
        Gate::Stale => "stale_advert",
        Gate::Licence => "licence",
        Gate::Excluded => "excluded",
        Gate::Price => "price",
        Gate::Context => "context",
        Gate::Unhealthy => "failed_recently",
        Gate::Unreachable => "unreachable",
        Gate::NoAnswer => "no_answer",
        Gate::Refused(refusal) => return format!("refused: {}", refusal_name(refusal)),
        Gate::BadTerms => "bad_terms",
        Gate::Outbid => "outbid",
    };
    name.to_owned()
}

pub(super) const fn refusal_name(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Busy { .. } => "busy",
        Refusal::NotServed => "not_served",
        Refusal::NotReady { .. } => "not_ready",
        Refusal::PromptTooLong { .. } => "prompt_too_long",
        Refusal::BadChannel => "bad_channel",
        Refusal::NoRoom => "no_room",
        Refusal::Unpaid => "unpaid",
        Refusal::BadRequest => "bad_request",
        Refusal::Stopping => "stopping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absurd_price_is_set_aside_by_nobody_and_a_very_low_one_keeps_nobody_out() {
        assert_eq!(range_of(vec![]), None);
        assert_eq!(range_of(vec![10]), Some((10, 10)));
        assert_eq!(range_of(vec![20, 50, 10]), Some((10, 50)));
        assert_eq!(range_of(vec![10, u64::MAX]), Some((10, 10)));
        assert_eq!(range_of(vec![1, 100, 100]), Some((1, 100)));
        assert_eq!(range_of(vec![0, 100]), Some((0, 100)));
        assert_eq!(range_of(vec![0]), Some((0, 0)));
    }

    #[test]
    fn cheap_adverts_keep_no_job_from_the_best_provider() {
        let provider = |price, gate| Considered {
            provider: protocol::ids::NodeId([1; 32]),
            gate,
            estimate_ms: 1,
            price,
            rank: 0,
            decode_milli: 0,
        };
        let away = Some(Gate::Unreachable);
        let considered = [provider(0, None), provider(100, None), provider(1, away), provider(1, away)];
        assert_eq!(with_best((0, 1), &considered), (0, 100));
        assert_eq!(with_best((1, 1), &considered[2..]), (1, 1));
    }
}
