//! What a key pays for: set aside before a job is placed, counted when it ends, whoever is still there to see it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Api;
use super::caller::Caller;
use super::sse::JobPlace;
use super::views::{JobAccount, JobEvent, QuoteView};
use crate::api_keys::{Reserved, Used, Worst};
use crate::command::{Command, JobId, JobRequest};
use crate::exit::{Failure, FailureKind};

/// Sets aside what jobs may cost, on disk, and bounds each by it. The owner's jobs are bounded by the account alone.
pub(super) async fn set_aside(
    api: &Api,
    caller: &Caller,
    ids: &[JobId],
    jobs: &mut [JobRequest],
) -> Result<Vec<Option<Reserved>>, Failure> {
    let Caller::Key(key) = caller else { return Ok(jobs.iter().map(|_| None).collect()) };
    let mut worst = Vec::new();
    for (job, request) in ids.iter().zip(jobs.iter()) {
        let (least, most) = price_range(api, request).await?;
        worst.push(Worst { job: *job, least, most });
    }
    let reserved = api.keys.reserve(key, &worst).await?;
    for (request, reserved) in jobs.iter_mut().zip(&reserved) {
        let own = request.max_price_nano.unwrap_or(u64::MAX);
        request.max_price_nano = Some(own.min(reserved.nano()));
    }
    Ok(reserved.into_iter().map(Some).collect())
}

/// How long somebody is waited for who could serve a job, as long as the job itself would wait.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// How often it is looked whether somebody can.
const LOOK: Duration = Duration::from_millis(250);

/// Returns what a job costs in the worst case at the cheapest and the dearest provider; nothing if there is none after a
/// while, so that the job finds that out.
async fn price_range(api: &Api, request: &JobRequest) -> Result<(u64, u64), Failure> {
    let request = Arc::new(request.clone());
    let until = Instant::now() + WAIT_MAX;
    let quote = quoted(api, &request).await?;
    if let Some(range) = quote.range {
        return Ok(range);
    }
    // Waiting lengthens nobody's context: the job is told so at once.
    if !quote.candidates.is_empty() && quote.candidates.iter().all(|candidate| candidate.reason == "context")
    {
        return Ok((0, 0));
    }
    // Looks for providers of a model that nobody has been heard of.
    let model = Some(request.model.clone());
    api.commands.ask(|reply| Command::Providers { model, reply }).await?;
    loop {
        let range = quoted(api, &request).await?.range;
        if range.is_some() || Instant::now() >= until {
            return Ok(range.unwrap_or_default());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns what a job would cost as far as it is known now; nothing is known of a model that nobody serves.
pub(super) async fn quoted(api: &Api, request: &Arc<JobRequest>) -> Result<QuoteView, Failure> {
    match api.commands.ask(|reply| Command::Quote { request: request.clone(), reply }).await {
        Err(failure) if is_unheard_of(&failure) => Ok(QuoteView::default()),
        quote => quote,
    }
}

fn is_unheard_of(failure: &Failure) -> bool {
    matches!(failure.kind, FailureKind::UnknownModel | FailureKind::NoProvider)
}

/// Returns a failure as a caller may see it: what the account has is its owner's business.
pub(super) fn for_caller(caller: &Caller, failure: Failure) -> Failure {
    if *caller == Caller::Owner || failure.kind != FailureKind::NoCredits {
        return failure;
    }
    Failure {
        message: "the node's account cannot pay for this now: tell the node's owner".to_owned(),
        ..failure
    }
}

/// What was set aside for a job that was placed.
#[derive(Debug)]
pub(super) struct Spending {
    reserved: Reserved,
    /// Whether something was delivered, and so may have been paid.
    begun: bool,
}

impl Spending {
    pub(super) const fn new(reserved: Reserved) -> Self {
        Self { reserved, begun: false }
    }

    /// Takes note of what happens to the job; after the last event nothing is left of it.
    pub(super) fn note(mut self, event: &JobEvent) -> Option<Self> {
        match event {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } => Some(self),
            JobEvent::Text { .. } | JobEvent::Vectors { .. } => {
                self.begun = true;
                Some(self)
            }
            JobEvent::Done(account) | JobEvent::Failed { account: Some(account), .. } => {
                let used = used(account, self.reserved.nano());
                self.reserved.settle(used);
                None
            }
            JobEvent::Failed { failure, account: None } => {
                if self.begun && !came_to_nothing(failure.kind) {
                    self.reserved.settle_in_full();
                } else {
                    self.reserved.settle(Used::default());
                }
                None
            }
        }
    }
}

/// Returns what a job used: its price, and what a provider that broke off may keep of what was paid ahead.
fn used(account: &JobAccount, reserved: u64) -> Used {
    let price = account.price.nano;
    Used {
        nano: price.saturating_add(account.ahead_nano).min(reserved.max(price)),
        tokens_in: account.tokens_in.into(),
        tokens_out: account.tokens_out.into(),
    }
}

/// Says whether a job that failed so, and has no account, was paid for by nobody: every provider that took it gave it back.
pub(super) const fn came_to_nothing(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Usage
        | FailureKind::NoCredits
        | FailureKind::NoProvider
        | FailureKind::UnknownModel
        | FailureKind::PromptTooLong
        | FailureKind::Refused
        | FailureKind::Busy
        | FailureKind::Forbidden => true,
        FailureKind::Unauthorised
        | FailureKind::NotFound
        | FailureKind::NotRunning
        | FailureKind::ProviderLost
        | FailureKind::WorkerLost
        | FailureKind::TimedOut
        | FailureKind::Cancelled
        | FailureKind::Unavailable
        | FailureKind::Download
        | FailureKind::Internal => false,
    }
}

/// Counts what a job cost whose client has gone; it keeps its place until then.
pub(super) async fn follow(
    spending: Spending,
    mut events: mpsc::Receiver<JobEvent>,
    _place: Option<JobPlace>,
) {
    let mut spending = Some(spending);
    while let Some(left) = spending.take() {
        match events.recv().await {
            Some(event) => spending = left.note(&event),
            // The node goes down: what is set aside stays on disk, and the next start counts it.
            None => drop(left),
        }
    }
}
