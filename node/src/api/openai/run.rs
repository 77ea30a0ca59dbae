//! Submits the jobs of a request, and gathers their answers or hands them to a stream.

use axum::Json as Answer;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use engine::frame::TokenLogprob;
use futures::future::try_join_all;

use super::asked::Asked;
use super::error::Refusal;
use super::stream;
use super::wire::{Finish, Head, Tally};
use crate::api::sse::Watched;
use crate::api::views::{JobAccount, JobEvent, format_credits};
use crate::api::{Api, busy};
use crate::command::{Command, JobId, JobRequest, events_of, format_job, new_job};
use crate::exit::{Failure, FailureKind};

/// Runs a request to its end, or to the first word of its stream.
pub(super) async fn run(api: Api, asked: Asked) -> Result<Response, Refusal> {
    let ids: Vec<JobId> = asked.jobs.iter().map(|_| new_job()).collect();
    let names: Vec<String> = ids.iter().map(format_job).collect();
    let head = Head {
        dialect: asked.dialect,
        id: asked.dialect.id(&names[0]),
        created: api.clock.now_ms() / 1000,
        model: asked.model,
    };
    let jobs = ids.into_iter().zip(asked.jobs).map(|(id, job)| submit(&api, id, job));
    let watched = jobs.collect::<Result<Vec<_>, _>>()?;
    let echoed = asked.echoed.into_iter().map(Some).chain(std::iter::repeat(None));
    let choices = watched.into_iter().zip(echoed).collect();
    let mut response = if asked.stream {
        stream::respond(head, choices, asked.include_usage).await?
    } else {
        gather(&head, choices).await?
    };
    name(response.headers_mut(), "x-sharemesh-job", &names);
    name(response.headers_mut(), "x-sharemesh-ignored", &asked.ignored);
    Ok(response)
}

fn submit(api: &Api, job: JobId, request: JobRequest) -> Result<Watched, Failure> {
    let permit = api.jobs.clone().try_acquire_owned();
    let permit = permit.map_err(|_| busy("this node streams as many jobs as it may"))?;
    let (sender, events) = events_of(&request);
    api.commands.tell(Command::Submit { job, request: Box::new(request), events: sender })?;
    Ok(Watched::new(job, events, permit, api))
}

/// A choice in the making: its job, and what is repeated before its answer.
pub(super) type Choice = (Watched, Option<String>);

/// Waits for all choices; if one fails, the others are cancelled.
async fn gather(head: &Head, choices: Vec<Choice>) -> Result<Response, Refusal> {
    let alone = choices.len() == 1;
    let whole =
        try_join_all(choices.into_iter().map(|(watched, echoed)| collect(watched, echoed, alone))).await?;
    let mut tally = Tally::default();
    let mut answers = Vec::new();
    for (index, Collected { text, logprobs, account, finish }) in whole.into_iter().enumerate() {
        tally.add(&account);
        let logprobs = (!logprobs.is_empty()).then(|| head.logprobs(&logprobs, 0));
        answers.push(head.choice(index, text, logprobs, finish));
    }
    let mut response = Answer(head.whole(answers, &tally)).into_response();
    describe(response.headers_mut(), &tally);
    Ok(response)
}

struct Collected {
    text: String,
    logprobs: Vec<TokenLogprob>,
    account: Box<JobAccount>,
    finish: Finish,
}

async fn collect(mut watched: Watched, echoed: Option<String>, alone: bool) -> Result<Collected, Refusal> {
    let (mut text, mut logprobs) = (echoed.unwrap_or_default(), Vec::new());
    while let Some(event) = watched.next().await {
        match event {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } => {}
            JobEvent::Text { text: part, logprobs: more, .. } => {
                text += &part;
                logprobs.extend(more);
            }
            JobEvent::Done(account) => {
                let finish = finish_of(&account, alone)?;
                return Ok(Collected { text, logprobs, account, finish });
            }
            JobEvent::Failed { failure, account } => return Err(refusal(failure, account.as_deref(), alone)),
        }
    }
    Err(Failure::internal("the job has no last event").into())
}

/// Returns why an answer ended, or the failure that it is for a client.
pub(super) fn finish_of(account: &JobAccount, alone: bool) -> Result<Finish, Refusal> {
    match account.finish.as_str() {
        "stop" => Ok(Finish::Stop),
        "length" => Ok(Finish::Length),
        other => {
            let failure =
                Failure::new(FailureKind::Cancelled, format!("the job ended before its answer: {other}"));
            Err(refusal(failure, Some(account), alone))
        }
    }
}

/// Makes an error of a job's failure. With several choices, some of the others may have been paid for.
pub(super) fn refusal(failure: Failure, account: Option<&JobAccount>, alone: bool) -> Refusal {
    let paid = account.is_some_and(|account| account.price.nano > 0);
    Refusal::from(failure).not_to_be_repeated(paid || !alone)
}

/// Says in headers who answered and what it cost.
fn describe(headers: &mut HeaderMap, tally: &Tally) {
    let providers: Vec<String> = tally.charges.iter().map(|charge| charge.provider.clone()).collect();
    let receipts: Vec<String> = tally.charges.iter().filter_map(|charge| charge.receipt.clone()).collect();
    name(headers, "x-sharemesh-provider", &providers);
    name(headers, "x-sharemesh-receipt", &receipts);
    name(headers, "x-sharemesh-price", &[format_credits(tally.price_nano())]);
}

/// Sets a header to a list; an empty one has no header.
pub(super) fn name(headers: &mut HeaderMap, header: &'static str, values: &[String]) {
    if values.is_empty() {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(&values.join(", ")) {
        headers.insert(header, value);
    }
}
