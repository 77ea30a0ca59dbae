//! Submits the jobs of a request, and gathers their answers or hands them to a stream.

use std::sync::Arc;

use axum::Json as Answer;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use engine::frame::TokenLogprob;
use futures::future::try_join_all;

use super::asked::Asked;
use super::calls::{Calls, Malformed, Piece};
use super::error::Refusal;
use super::idempotency::{End, Ending};
use super::spoken::of_words;
use super::stream;
use super::wire::{Call, Finish, Function, Head, Tally};
use crate::api::caller::Caller;
use crate::api::spending::{came_to_nothing, for_caller, set_aside};
use crate::api::sse::{Begun, Watched};
use crate::api::views::{JobAccount, JobEvent, format_credits};
use crate::api::{Api, busy};
use crate::api_keys::Reserved;
use crate::command::{Command, JobId, JobRequest, events_of, format_job, new_job};
use crate::exit::{Failure, FailureKind};

/// Runs a request to its end, or to the first word of its stream.
pub(super) async fn run(api: Api, caller: Caller, asked: Asked) -> Result<Response, Refusal> {
    let ids: Vec<JobId> = asked.jobs.iter().map(|_| new_job()).collect();
    let names: Vec<String> = ids.iter().map(format_job).collect();
    let calls = asked.calls();
    let head = Head {
        dialect: asked.dialect,
        id: asked.dialect.id(&names[0]),
        created: api.clock.now_ms() / 1000,
        model: asked.model,
    };
    check_slots(&api, &head.model, ids.len()).await?;
    let stake = Stake::of(caller, &names);
    let watched = submit(&api, ids, asked.jobs, &stake).await?;
    let echoed = asked.echoed.into_iter().map(Some).chain(std::iter::repeat(None));
    let choices = watched.into_iter().zip(echoed).collect();
    let mut response = if asked.stream {
        let wanted = stream::Wanted { usage: asked.include_usage, calls };
        stream::respond(head, choices, wanted, stake).await?
    } else {
        gather(&head, choices, calls.as_ref(), &stake).await?
    };
    name(response.headers_mut(), "x-sharemesh-job", &names);
    name(response.headers_mut(), "x-sharemesh-ignored", &asked.ignored);
    Ok(response)
}

/// A request of one choice that runs, whose answer is written elsewhere.
pub(super) struct Placed {
    pub(super) model: String,
    pub(super) watched: Watched,
    pub(super) stake: Stake,
    /// What is said in the answer's head.
    pub(super) headers: HeaderMap,
}

/// Submits the only job of a request; `ignored` are its parameters that change nothing.
pub(super) async fn place(
    api: &Api,
    caller: Caller,
    request: JobRequest,
    ignored: &[String],
) -> Result<Placed, Refusal> {
    let job = new_job();
    let model = request.model.clone();
    let stake = Stake::of(caller, &[format_job(&job)]);
    let mut watched = submit(api, vec![job], vec![request], &stake).await?;
    let watched = watched.pop().ok_or_else(|| Failure::internal("the request has no job"))?;
    let mut headers = HeaderMap::new();
    name(&mut headers, "x-sharemesh-job", &[format_job(&job)]);
    name(&mut headers, "x-sharemesh-ignored", ignored);
    Ok(Placed { model, watched, stake, headers })
}

/// What is known of whether a request was paid for, in part or whole.
#[derive(Clone, Debug)]
pub(super) struct Stake {
    /// It has one choice.
    alone: bool,
    begun: Begun,
    /// Who pays.
    caller: Caller,
    /// How its stream ends.
    ending: Ending,
    /// Names of its jobs.
    jobs: Arc<[String]>,
}

impl Stake {
    /// Says of a request with these jobs, one for each choice, that nothing has begun.
    pub(super) fn of(caller: Caller, jobs: &[String]) -> Self {
        let (alone, jobs) = (jobs.len() == 1, jobs.into());
        Self { alone, begun: Begun::default(), caller, ending: Ending::default(), jobs }
    }

    /// Returns how the answer's stream ends, for the response that carries it.
    pub(super) fn ending(&self) -> Ending {
        self.ending.clone()
    }

    /// Notes that the stream said everything.
    pub(super) fn ended_whole(&self) {
        self.ending.note(End::Whole);
    }

    /// Notes that the stream said a failure and nothing more.
    pub(super) fn broke_off(&self, refusal: &Refusal) {
        self.ending.note(if refusal.was_paid() { End::Paid } else { End::Unpaid });
    }
}

/// Refuses choices for which there are no slots now: the others would begin, and be paid for nothing.
async fn check_slots(api: &Api, model: &str, choices: usize) -> Result<(), Failure> {
    if choices == 1 {
        return Ok(());
    }
    let model = Some(model.to_owned());
    let providers = api.commands.ask(|reply| Command::Providers { model, reply }).await?;
    // The node's own engine lets jobs wait; and nobody at all is told in better words later.
    if providers.is_empty() || providers.iter().any(|provider| provider.local) {
        return Ok(());
    }
    let free: u64 =
        providers.iter().map(|provider| u64::from(provider.slots.saturating_sub(provider.busy))).sum();
    if free < choices as u64 {
        let words =
            format!("{choices} choices need as many free slots at once, and there are {free}: ask for fewer");
        return Err(Failure::new(FailureKind::Busy, words).in_param("n").retry_after(1_000));
    }
    Ok(())
}

/// Submits all jobs of a request, or none if this node has no room for all.
async fn submit(
    api: &Api,
    ids: Vec<JobId>,
    mut jobs: Vec<JobRequest>,
    stake: &Stake,
) -> Result<Vec<Watched>, Refusal> {
    let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    let full = |_| busy("this node streams as many jobs as it may");
    let mut permits = api.jobs.clone().try_acquire_many_owned(count).map_err(full)?;
    let mut guests = match &stake.caller {
        Caller::Key(_) => Some(api.guest_jobs.clone().try_acquire_many_owned(count).map_err(full)?),
        Caller::Owner => None,
    };
    // What the client would pay in all; each job alone is bounded by what was set aside for it, too.
    let own: Vec<Option<u64>> = jobs.iter().map(|request| request.max_price_nano).collect();
    let reserved = set_aside(api, &stake.caller, &ids, &mut jobs).await?;
    let mut watched = Vec::new();
    for (((job, request), own), mut reserved) in ids.into_iter().zip(jobs).zip(own).zip(reserved) {
        let permit = permits.split(1).ok_or_else(|| Failure::internal("a permit for each job was taken"))?;
        let guest = guests.as_mut().and_then(|guests| guests.split(1));
        let relaying = api.relays.begin(job)?;
        let (sender, events) = events_of(&request);
        let request = Arc::new(request);
        let submit = Command::Submit { job, request: request.clone(), events: sender };
        let told = api.commands.tell(submit);
        // The others may have begun by now.
        told.map_err(|failure| Refusal::from(failure).not_to_be_repeated(!watched.is_empty()))?;
        reserved.iter_mut().for_each(Reserved::place);
        let one = Watched::new(relaying, events, (permit, guest), request, api)
            .noting(stake.begun.clone())
            .paid_by(reserved);
        watched.push(one.falling_back(stake.caller.clone(), own));
    }
    Ok(watched)
}

/// A choice in the making: its job, and what is repeated before its answer.
pub(super) type Choice = (Watched, Option<String>);

/// Waits for all choices; if one fails, the others are cancelled.
async fn gather(
    head: &Head,
    choices: Vec<Choice>,
    calls: Option<&Calls>,
    stake: &Stake,
) -> Result<Response, Refusal> {
    let whole =
        try_join_all(choices.into_iter().map(|(watched, echoed)| collect(watched, echoed, stake))).await?;
    let mut tally = Tally::default();
    let mut answers = Vec::new();
    for (index, Collected { text, logprobs, account, finish }) in whole.into_iter().enumerate() {
        tally.add(&account);
        let may_call = calls.is_some();
        let read = match calls {
            Some(calls) => read_calls(head, index, calls.clone(), &text),
            None => Ok((text, Vec::new(), false)),
        };
        let (text, calls, are_whole) = read.map_err(|Malformed| astray(stake))?;
        let logprobs = if may_call { of_words(logprobs, &text) } else { logprobs };
        let logprobs = (!logprobs.is_empty()).then(|| head.logprobs(&logprobs, 0));
        let finish = with_calls(finish, are_whole);
        answers.push(head.choice(index, text, calls, logprobs, finish));
    }
    let mut response = Answer(head.whole(answers, &tally)).into_response();
    describe(response.headers_mut(), &tally);
    Ok(response)
}

/// Returns the words of an answer, the calls in it, and whether those are whole.
fn read_calls(
    head: &Head,
    index: usize,
    mut calls: Calls,
    answer: &str,
) -> Result<(String, Vec<Call>, bool), Malformed> {
    let (mut words, mut found) = (String::new(), Vec::new());
    let pieces = calls.take(answer)?;
    for piece in pieces.into_iter().chain(calls.rest()) {
        match piece {
            Piece::Text(text) => words += &text,
            Piece::Call { index: call, name } => {
                let function = Function { name, arguments: String::new() };
                found.push(Call { id: head.call_id(index, call), kind: "function", function });
            }
            Piece::Arguments { index: call, text } => found[call].function.arguments += &text,
        }
    }
    Ok((words, found, calls.are_whole()))
}

/// Returns why an answer ended, as clients read it, where it may have whole calls: a `stop` text can cut one short.
pub(super) fn with_calls(finish: Finish, are_whole: bool) -> Finish {
    match finish {
        Finish::Stop if are_whole => Finish::ToolCalls,
        Finish::Stop | Finish::Length | Finish::ToolCalls => finish,
    }
}

/// The provider did not keep the answer to its form. It is paid for by now, so nobody is to ask again by itself.
pub(super) fn astray(stake: &Stake) -> Refusal {
    let words = "the provider's answer has a call that cannot be read or is of no tool of yours: name another provider";
    let refusal = Refusal::from(Failure::new(FailureKind::ProviderLost, words));
    refusal.not_to_be_repeated(true).of_jobs(stake.jobs.clone())
}

struct Collected {
    text: String,
    logprobs: Vec<TokenLogprob>,
    account: Box<JobAccount>,
    finish: Finish,
}

async fn collect(mut watched: Watched, echoed: Option<String>, stake: &Stake) -> Result<Collected, Refusal> {
    let (mut text, mut logprobs) = (echoed.unwrap_or_default(), Vec::new());
    while let Some(event) = watched.next().await {
        match event {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } | JobEvent::Vectors { .. } => {}
            JobEvent::Text { text: part, logprobs: more, .. } => {
                text += &part;
                logprobs.extend(more);
            }
            JobEvent::Done(account) => {
                let finish = finish_of(&account, stake)?;
                return Ok(Collected { text, logprobs, account, finish });
            }
            JobEvent::Failed { failure, account } => return Err(refusal(failure, account.as_deref(), stake)),
        }
    }
    Err(Failure::internal("the job has no last event").into())
}

/// Returns why an answer ended, or the failure that it is for a client.
pub(super) fn finish_of(account: &JobAccount, stake: &Stake) -> Result<Finish, Refusal> {
    match account.finish.as_str() {
        "stop" => Ok(Finish::Stop),
        "length" => Ok(Finish::Length),
        other => {
            let failure =
                Failure::new(FailureKind::Cancelled, format!("the job ended before its answer: {other}"));
            Err(refusal(failure, Some(account), stake))
        }
    }
}

/// Makes an error of a job's failure. What began and was not accounted for may have been paid, and with several choices
/// some of the others.
pub(super) fn refusal(failure: Failure, account: Option<&JobAccount>, stake: &Stake) -> Refusal {
    let paid = match account.filter(|_| stake.alone) {
        // A provider that broke off may keep what was paid ahead.
        Some(account) => account.price.nano.saturating_add(account.ahead_nano) > 0,
        // Of one answer that came to nothing everybody gave back what he had.
        None => stake.begun.is() && !(stake.alone && came_to_nothing(failure.kind)),
    };
    Refusal::from(for_caller(&stake.caller, failure)).not_to_be_repeated(paid).of_jobs(stake.jobs.clone())
}

/// Says in headers who answered and what it cost.
pub(super) fn describe(headers: &mut HeaderMap, tally: &Tally) {
    let providers: Vec<String> = tally.charges.iter().map(|charge| charge.provider.clone()).collect();
    let receipts: Vec<String> = tally.charges.iter().filter_map(|charge| charge.receipt.clone()).collect();
    name(headers, "x-sharemesh-provider", &providers);
    name(headers, "x-sharemesh-receipt", &receipts);
    name(headers, "x-sharemesh-price", &[format_credits(tally.price_nano())]);
}

/// Bounds what a header lists: clients refuse large heads, and the answer's body has all of it.
const LISTED_MAX: usize = 16;

/// Sets a header to a list; an empty one has no header.
pub(super) fn name(headers: &mut HeaderMap, header: &'static str, values: &[String]) {
    if values.is_empty() {
        return;
    }
    let listed = &values[..values.len().min(LISTED_MAX)];
    if let Ok(value) = HeaderValue::from_str(&listed.join(", ")) {
        headers.insert(header, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Failure {
        Failure::new(FailureKind::ProviderLost, "gone")
    }

    #[test]
    fn what_was_paid_ahead_and_kept_was_paid() {
        let stake = Stake::of(Caller::Owner, &["a".to_owned()]);
        let paid = |nano: u64, ahead_nano| {
            let account = JobAccount { price: nano.into(), ahead_nano, ..JobAccount::default() };
            refusal(lost(), Some(&account), &stake).was_paid()
        };

        assert_eq!([paid(0, 0), paid(0, 1), paid(1, 0), paid(1, u64::MAX)], [false, true, true, true]);
    }

    #[test]
    fn an_answer_that_went_astray_was_paid_and_names_its_job() {
        let refusal = astray(&Stake::of(Caller::Owner, &["a".to_owned()]));

        assert!(refusal.was_paid());
        assert_eq!(refusal.into_response().headers()["x-sharemesh-job"], "a");
    }
}
