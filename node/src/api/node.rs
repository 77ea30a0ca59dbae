//! Answers about this node, its models, its ledger and its network: each asks the driver one question.

use axum::Json as Answer;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;

use super::auth::owner_only;
use super::caller::Connection;
use super::views::{
    AuditBody, AuditView, BalanceView, GrantBody, GrantView, LoadBody, PeerView, ProviderView, PruneBody,
    PruneView, ReceiptDetailView, ReceiptsView, ServedModelView, SettleView, StatusView, TicketBody,
    TicketView, VerifyView,
};
use super::{Api, Json, Query};
use crate::command::Command;
use crate::exit::{Failure, FailureKind};

type Answered<T> = Result<Answer<T>, Failure>;

/// Receipts in a page unless another number is asked for.
const RECEIPTS_DEFAULT: u32 = 50;

/// Bounds a page of receipts.
const RECEIPTS_MAX: u32 = 500;

/// Says that the process runs.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200)))]
pub(super) async fn live() -> StatusCode {
    StatusCode::OK
}

/// Says whether the node can take jobs; for programs of this machine.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = 200)))]
pub(super) async fn ready(
    State(api): State<Api>,
    ConnectInfo(connection): ConnectInfo<Connection>,
) -> Result<StatusCode, Failure> {
    if !connection.is_local() {
        return Err(owner_only());
    }
    let status = api.commands.ask(Command::Status).await?;
    if status.ready {
        return Ok(StatusCode::OK);
    }
    let what = format!("not ready: waiting for {}", status.waiting_for.join(", "));
    Err(Failure::new(FailureKind::Unavailable, what).retry_after(1_000))
}

/// Returns measurements for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<impl IntoResponse, Failure> {
    let status = api.commands.ask(Command::Status).await?;
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    Ok(([kind], api.metrics.render(&status)))
}

/// Returns what this node is and does.
#[utoipa::path(get, path = "/status", tag = "node", responses((status = 200, body = StatusView)))]
pub(super) async fn status(State(api): State<Api>) -> Answered<StatusView> {
    api.commands.ask(Command::Status).await.map(Answer)
}

/// Returns the nodes that this one is connected with.
#[utoipa::path(get, path = "/peers", tag = "node", responses((status = 200, body = Vec<PeerView>)))]
pub(super) async fn peers(State(api): State<Api>) -> Answered<Vec<PeerView>> {
    api.commands.ask(Command::Peers).await.map(Answer)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Providers {
    /// Only those of this model, by name or id.
    model: Option<String>,
}

/// Returns who serves models, and at what price.
#[utoipa::path(get, path = "/providers", tag = "node", params(Providers), responses((status = 200, body = Vec<ProviderView>)))]
pub(super) async fn providers(
    State(api): State<Api>,
    Query(Providers { model }): Query<Providers>,
) -> Answered<Vec<ProviderView>> {
    api.commands.ask(|reply| Command::Providers { model, reply }).await.map(Answer)
}

/// Returns the models that this node serves.
#[utoipa::path(get, path = "/models", tag = "node", responses((status = 200, body = Vec<ServedModelView>)))]
pub(super) async fn models(State(api): State<Api>) -> Answered<Vec<ServedModelView>> {
    api.commands.ask(Command::Models).await.map(Answer)
}

/// Has this node serve another model.
#[utoipa::path(post, path = "/models", tag = "node", responses((status = 200, body = ServedModelView)), request_body = LoadBody)]
pub(super) async fn load(State(api): State<Api>, Json(body): Json<LoadBody>) -> Answered<ServedModelView> {
    let Api { models, load, commands, .. } = api;
    // Reading a file for its digest can take long.
    let found = tokio::task::spawn_blocking(move || {
        let file = models.resolve(&body.model, &|_| {})?;
        Ok::<_, Failure>(models.served(&file, load.price.unwrap_or(file.price), load.slots, load.threads))
    });
    let model =
        found.await.map_err(|error| Failure::internal(format!("reading the model failed: {error}")))??;
    commands.ask(|reply| Command::Load { model: Box::new(model), reply }).await.map(Answer)
}

/// Has this node serve a model no more.
#[utoipa::path(delete, path = "/models/{name}", tag = "node", params(("name" = String, Path, description = "The model's name.")), responses((status = 204)))]
pub(super) async fn unload(State(api): State<Api>, Path(model): Path<String>) -> Result<StatusCode, Failure> {
    api.commands.ask(|reply| Command::Unload { model, reply }).await.map(|()| StatusCode::NO_CONTENT)
}

/// Returns what the account has.
#[utoipa::path(get, path = "/ledger/balance", tag = "ledger", responses((status = 200, body = BalanceView)))]
pub(super) async fn balance(State(api): State<Api>) -> Answered<BalanceView> {
    api.commands.ask(Command::Balance).await.map(Answer)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// How many at most; 50 unless given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Only what is older than the receipt with this id.
    before: Option<String>,
}

/// Returns receipts, newest first.
#[utoipa::path(get, path = "/ledger/receipts", tag = "ledger", params(Page), responses((status = 200, body = ReceiptsView)))]
pub(super) async fn receipts(State(api): State<Api>, Query(page): Query<Page>) -> Answered<ReceiptsView> {
    let limit = page.limit.unwrap_or(RECEIPTS_DEFAULT);
    if !(1..=RECEIPTS_MAX).contains(&limit) {
        return Err(Failure::usage(format!("limit is {limit}: ask for 1 to {RECEIPTS_MAX} receipts")));
    }
    api.commands.ask(|reply| Command::Receipts { limit, before: page.before, reply }).await.map(Answer)
}

/// Shows a receipt and its jobs.
#[utoipa::path(get, path = "/ledger/receipts/{id}", tag = "ledger", params(("id" = String, Path, description = "The receipt's id, or its beginning.")), responses((status = 200, body = ReceiptDetailView)))]
pub(super) async fn receipt(State(api): State<Api>, Path(id): Path<String>) -> Answered<ReceiptDetailView> {
    let id = id.to_ascii_lowercase();
    if !(1..=64).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Failure::usage("write the id of a receipt, or its beginning, in hexadecimal digits"));
    }
    api.commands.ask(|reply| Command::ShowReceipt { id, reply }).await.map(|detail| Answer(*detail))
}

/// Checks every signature, chain and sum of this node's ledger.
#[utoipa::path(post, path = "/ledger/verify", tag = "ledger", responses((status = 200, body = VerifyView)))]
pub(super) async fn verify(State(api): State<Api>) -> Answered<VerifyView> {
    api.commands.ask(Command::Verify).await.map(Answer)
}

/// Computes a checkpoint of the issuers again.
#[utoipa::path(post, path = "/ledger/audit", tag = "ledger", responses((status = 200, body = AuditView)), request_body = AuditBody)]
pub(super) async fn audit(State(api): State<Api>, Json(body): Json<AuditBody>) -> Answered<AuditView> {
    let epoch = body.epoch;
    api.commands.ask(|reply| Command::Audit { epoch, reply }).await.map(|audit| Answer(*audit))
}

/// Leaves sums of what is long over.
#[utoipa::path(post, path = "/ledger/prune", tag = "ledger", responses((status = 200, body = PruneView)), request_body = PruneBody)]
pub(super) async fn prune(State(api): State<Api>, Json(body): Json<PruneBody>) -> Answered<PruneView> {
    let keep_epochs = body.keep_epochs;
    api.commands.ask(|reply| Command::Prune { keep_epochs, reply }).await.map(Answer)
}

/// Closes all channels, so that what is held is free again.
#[utoipa::path(post, path = "/ledger/settle", tag = "ledger", responses((status = 200, body = SettleView)))]
pub(super) async fn settle(State(api): State<Api>) -> Answered<SettleView> {
    api.commands.ask(Command::Settle).await.map(Answer)
}

/// Makes a ticket with which one machine joins; for issuers.
#[utoipa::path(post, path = "/network/tickets", tag = "network", responses((status = 200, body = TicketView)), request_body = TicketBody)]
pub(super) async fn ticket(State(api): State<Api>, Json(body): Json<TicketBody>) -> Answered<TicketView> {
    let credits_nano = body.credits_nano;
    api.commands.ask(|reply| Command::Ticket { credits_nano, uses: 1, reply }).await.map(Answer)
}

/// Gives an account credits out of the stated budget; for issuers.
#[utoipa::path(post, path = "/network/grants", tag = "network", responses((status = 200, body = GrantView)), request_body = GrantBody)]
pub(super) async fn grant(State(api): State<Api>, Json(body): Json<GrantBody>) -> Answered<GrantView> {
    let GrantBody { account, nano } = body;
    if nano == 0 {
        return Err(Failure::usage("a grant of 0 credits does nothing: name an amount"));
    }
    api.commands.ask(|reply| Command::Grant { account, nano, reply }).await.map(Answer)
}

/// Ends the node when its jobs have ended.
#[utoipa::path(post, path = "/shutdown", tag = "node", responses((status = 202)))]
pub(super) async fn shutdown(State(api): State<Api>) -> Result<StatusCode, Failure> {
    api.commands.ask(Command::Shutdown).await.map(|()| StatusCode::ACCEPTED)
}
