//! Answers about the account: its key, its nodes, its rotation.

use axum::Json as Answer;
use axum::extract::State;

use super::views::{AccountView, AuthoriseBody, DelegationView, RotateBody};
use super::{Api, Json};
use crate::command::Command;
use crate::exit::Failure;

/// Shows the account.
#[utoipa::path(get, path = "/account", tag = "account", responses((status = 200, body = AccountView)))]
pub(super) async fn show(State(api): State<Api>) -> Result<Answer<AccountView>, Failure> {
    api.commands.ask(Command::Account).await.map(Answer)
}

/// Replaces the account's key by the promised one.
#[utoipa::path(post, path = "/account/rotate", tag = "account", responses((status = 200, body = AccountView)), request_body = RotateBody)]
pub(super) async fn rotate(
    State(api): State<Api>,
    Json(body): Json<RotateBody>,
) -> Result<Answer<AccountView>, Failure> {
    let wrong = || Failure::usage("`key` and `next` are 64 hexadecimal digits each");
    let key = data_encoding::HEXLOWER.decode(body.key.as_bytes()).map_err(|_| wrong())?;
    let seed = key.try_into().map_err(|_| wrong())?;
    let next = body.next.parse().map_err(|_| wrong())?;
    api.commands.ask(|reply| Command::Rotate { seed, next, reply }).await.map(Answer)
}

/// Lets another node act for the account, or no more.
#[utoipa::path(post, path = "/account/devices", tag = "account", responses((status = 200, body = DelegationView)), request_body = AuthoriseBody)]
pub(super) async fn authorise(
    State(api): State<Api>,
    Json(body): Json<AuthoriseBody>,
) -> Result<Answer<DelegationView>, Failure> {
    api.commands.ask(|reply| Command::Authorise { body, reply }).await.map(Answer)
}
