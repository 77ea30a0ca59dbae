//! Answers about payments, deposits, withdrawals, channels and statements.

use axum::Json as Answer;
use axum::extract::{Path, State};
use serde::Deserialize;

use super::views::{
    DepositBody, DepositView, EntryView, FeesView, LedgerChannelView, PaidBody, PayBody, PayView,
    StatementView, WithdrawBody, WithdrawalView,
};
use super::{Api, Json, Query};
use crate::command::Command;
use crate::exit::Failure;

type Answered<T> = Result<Answer<T>, Failure>;

pub(super) async fn fees(State(api): State<Api>) -> Answered<FeesView> {
    api.commands.ask(Command::Fees).await.map(Answer)
}

pub(super) async fn pay(State(api): State<Api>, Json(body): Json<PayBody>) -> Answered<PayView> {
    let PayBody { account, nano } = body;
    some(nano)?;
    api.commands.ask(|reply| Command::Pay { account, nano, reply }).await.map(Answer)
}

pub(super) async fn withdraw(
    State(api): State<Api>,
    Json(body): Json<WithdrawBody>,
) -> Answered<WithdrawalView> {
    let WithdrawBody { nano, to } = body;
    some(nano)?;
    text(&to, "where to pay")?;
    api.commands.ask(|reply| Command::Withdraw { nano, to, reply }).await.map(Answer)
}

pub(super) async fn withdrawals(State(api): State<Api>) -> Answered<Vec<WithdrawalView>> {
    api.commands.ask(Command::Withdrawals).await.map(Answer)
}

pub(super) async fn mark_paid(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<PaidBody>,
) -> Answered<WithdrawalView> {
    let (id, PaidBody { reference }) = (hex(&id)?, body);
    text(&reference, "the reference")?;
    api.commands.ask(|reply| Command::MarkPaid { id, reference, reply }).await.map(Answer)
}

pub(super) async fn deposit(State(api): State<Api>, Json(body): Json<DepositBody>) -> Answered<DepositView> {
    let DepositBody { account, nano, reference } = body;
    some(nano)?;
    text(&reference, "the reference")?;
    api.commands.ask(|reply| Command::Deposit { account, nano, reference, reply }).await.map(Answer)
}

pub(super) async fn channels(State(api): State<Api>) -> Answered<Vec<LedgerChannelView>> {
    api.commands.ask(Command::Channels).await.map(Answer)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Period {
    from: Option<String>,
    to: Option<String>,
}

pub(super) async fn statement(
    State(api): State<Api>,
    Query(Period { from, to }): Query<Period>,
) -> Answered<StatementView> {
    api.commands.ask(|reply| Command::Statement { from, to, reply }).await.map(Answer)
}

pub(super) async fn entry(State(api): State<Api>, Path(id): Path<String>) -> Answered<EntryView> {
    let id = hex(&id)?;
    api.commands.ask(|reply| Command::Entry { id, reply }).await.map(Answer)
}

fn some(nano: u64) -> Result<(), Failure> {
    if nano > 0 { Ok(()) } else { Err(Failure::usage("0 credits move nothing: name an amount")) }
}

fn text(text: &str, what: &str) -> Result<(), Failure> {
    let most = protocol::ledger::records::PAYOUT_BYTES_MAX;
    if (1..=most).contains(&text.trim().len()) && text.len() <= most {
        return Ok(());
    }
    Err(Failure::usage(format!("{what} must be a text of 1 to {most} bytes")))
}

fn hex(id: &str) -> Result<String, Failure> {
    let id = id.to_ascii_lowercase();
    if (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(id);
    }
    Err(Failure::usage("write an id, or its beginning, in hexadecimal digits"))
}
