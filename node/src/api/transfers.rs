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

/// Returns what steps of the account cost.
#[utoipa::path(get, path = "/account/fees", tag = "account", responses((status = 200, body = FeesView)))]
pub(super) async fn fees(State(api): State<Api>) -> Answered<FeesView> {
    api.commands.ask(Command::Fees).await.map(Answer)
}

/// Pays another account.
#[utoipa::path(post, path = "/account/payments", tag = "account", responses((status = 200, body = PayView)), request_body = PayBody)]
pub(super) async fn pay(State(api): State<Api>, Json(body): Json<PayBody>) -> Answered<PayView> {
    let PayBody { account, nano } = body;
    some(nano)?;
    api.commands.ask(|reply| Command::Pay { account, nano, reply }).await.map(Answer)
}

/// Asks for credits to be paid out.
#[utoipa::path(post, path = "/account/withdrawals", tag = "account", responses((status = 200, body = WithdrawalView)), request_body = WithdrawBody)]
pub(super) async fn withdraw(
    State(api): State<Api>,
    Json(body): Json<WithdrawBody>,
) -> Answered<WithdrawalView> {
    let WithdrawBody { nano, to } = body;
    some(nano)?;
    text(&to, "where to pay")?;
    api.commands.ask(|reply| Command::Withdraw { nano, to, reply }).await.map(Answer)
}

/// Returns withdrawals.
#[utoipa::path(get, path = "/account/withdrawals", tag = "account", responses((status = 200, body = Vec<WithdrawalView>)))]
pub(super) async fn withdrawals(State(api): State<Api>) -> Answered<Vec<WithdrawalView>> {
    api.commands.ask(Command::Withdrawals).await.map(Answer)
}

/// Notes that a withdrawal was paid out; for issuers.
#[utoipa::path(post, path = "/network/withdrawals/{id}/paid", tag = "network", params(("id" = String, Path, description = "The withdrawal's id, or its beginning.")), responses((status = 200, body = WithdrawalView)), request_body = PaidBody)]
pub(super) async fn mark_paid(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<PaidBody>,
) -> Answered<WithdrawalView> {
    let (id, PaidBody { reference }) = (hex(&id)?, body);
    text(&reference, "the reference")?;
    api.commands.ask(|reply| Command::MarkPaid { id, reference, reply }).await.map(Answer)
}

/// Books a payment from outside; for issuers.
#[utoipa::path(post, path = "/network/deposits", tag = "network", responses((status = 200, body = DepositView)), request_body = DepositBody)]
pub(super) async fn deposit(State(api): State<Api>, Json(body): Json<DepositBody>) -> Answered<DepositView> {
    let DepositBody { account, nano, reference } = body;
    some(nano)?;
    text(&reference, "the reference")?;
    api.commands.ask(|reply| Command::Deposit { account, nano, reference, reply }).await.map(Answer)
}

/// Returns this node's channels.
#[utoipa::path(get, path = "/ledger/channels", tag = "ledger", responses((status = 200, body = Vec<LedgerChannelView>)))]
pub(super) async fn channels(State(api): State<Api>) -> Answered<Vec<LedgerChannelView>> {
    api.commands.ask(Command::Channels).await.map(Answer)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Period {
    /// The first epoch, or a day such as 2026-11-21.
    from: Option<String>,
    /// The last epoch, or a day.
    to: Option<String>,
}

/// Returns what moved on the account.
#[utoipa::path(get, path = "/ledger/statement", tag = "ledger", params(Period), responses((status = 200, body = StatementView)))]
pub(super) async fn statement(
    State(api): State<Api>,
    Query(Period { from, to }): Query<Period>,
) -> Answered<StatementView> {
    api.commands.ask(|reply| Command::Statement { from, to, reply }).await.map(Answer)
}

/// Shows anything in the ledger that has an id.
#[utoipa::path(get, path = "/ledger/entries/{id}", tag = "ledger", params(("id" = String, Path, description = "The id, or its beginning.")), responses((status = 200, body = EntryView)))]
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
