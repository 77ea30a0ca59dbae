//! Answers to what the API asks: what the node knows, in the words of the API.

mod account;
mod jobs;
mod ledger;
mod mesh;
mod money;
mod statement;

use std::sync::Arc;

use protocol::ids::{Digest, JobId, ModelId};
use protocol::node::{Input, OwnerCommand};
use protocol::ticket::Ticket;
use tokio::sync::mpsc;

use crate::api::views::{AuditView, CandidateView, GrantView, JobEvent, Money, ProviderView, TicketView};
use crate::command::{Command, JobRequest, Reply, Work};
use crate::exit::{Failure, FailureKind};

use super::Driver;
use super::body;
use super::jobs::cancelled;
use super::mesh::{name_key, ticket_addresses};
use super::orders::Orders;
use super::promises::{Answer, Promise};
use super::settle::Settling;

pub(super) use jobs::gate_name;
pub(super) use mesh::clock_warning;

/// How long a model's name is looked for in the mesh.
const RESOLVE_MS: u64 = 5_000;

/// How long `providers` waits when nobody is known.
const DISCOVER_MS: u64 = 2_000;

/// Most receipts on a page.
const PAGE_MAX: u32 = 500;

/// Requests that wait for the mesh or for others.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    submissions: Vec<Submission>,
    discoveries: Vec<Discovery>,
    pub(super) settling: Vec<Settling>,
    pub(super) auditing: Option<Reply<Box<AuditView>>>,
    rotating: Vec<account::Rotating>,
    pub(super) promises: Vec<Promise>,
    pub(super) orders: Orders,
}

/// A job whose model nobody has been heard of yet.
#[derive(Debug)]
struct Submission {
    job: JobId,
    request: Arc<JobRequest>,
    events: mpsc::Sender<JobEvent>,
    until_ms: u64,
}

/// A question for providers that waits for adverts.
#[derive(Debug)]
struct Discovery {
    model: Option<String>,
    reply: Reply<Vec<ProviderView>>,
    until_ms: u64,
}

impl Waiting {
    /// Ends a job that waits for its model, if it does.
    pub(super) fn cancel_submission(&mut self, job: JobId) {
        for submission in self.submissions.extract_if(.., |submission| submission.job == job) {
            let failed = JobEvent::Failed { failure: cancelled(), account: None };
            let _ = submission.events.try_send(failed);
        }
    }

    /// Ends every job that waits for its model.
    pub(super) fn end_submissions(&mut self, failure: &Failure) {
        for submission in self.submissions.drain(..) {
            let failed = JobEvent::Failed { failure: failure.clone(), account: None };
            let _ = submission.events.try_send(failed);
        }
    }

    fn has_submission(&self, job: JobId) -> bool {
        self.submissions.iter().any(|submission| submission.job == job)
    }
}

impl Driver {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Submit { job, request, events } => self.on_submit(JobId(job), request, events),
            Command::Quote { request, reply } => answer(reply, self.quote(&request)),
            Command::Cancel { job } => self.cancel(JobId(job)),
            Command::Status(reply) => answer(reply, Ok(self.status())),
            Command::Peers(reply) => answer(reply, Ok(self.peers())),
            Command::Providers { model, reply } => self.on_providers(model, reply),
            Command::Models(reply) => {
                answer(reply, Ok(self.models.values().map(|m| self.model_view(m)).collect()))
            }
            Command::Load { model, reply } => {
                let name = model.name.clone();
                let loaded = self.check_model(&name).and_then(|()| self.load(*model));
                let view =
                    loaded.map(|()| self.models.get(&name).map(|m| self.model_view(m)).unwrap_or_default());
                answer(reply, view);
            }
            Command::Unload { model, reply } => answer(reply, self.unload(&model)),
            Command::Balance(reply) => answer(reply, Ok(self.balance())),
            Command::Receipts { limit, before, reply } => self.on_receipts(limit, before, reply),
            Command::ShowReceipt { id, reply } => self.on_show_receipt(id, reply),
            Command::ShowJob { job, reply } => self.on_show_job(JobId(job), reply),
            Command::Verify(reply) => self.on_verify(reply),
            Command::Ticket { credits_nano, uses, reply } => match self.ticket(credits_nano, uses) {
                Ok((names, view)) => self.promise(names, Answer::Ticket(reply, view)),
                Err(failure) => answer(reply, Err(failure)),
            },
            Command::Grant { account, nano, reply } => match self.on_grant(&account, nano) {
                Ok((names, view)) => self.promise(names, Answer::Grant(reply, view)),
                Err(failure) => answer(reply, Err(failure)),
            },
            Command::Fees(reply) => answer(reply, Ok(self.fees())),
            Command::Pay { account, nano, reply } => self.on_pay(&account, nano, reply),
            Command::Withdraw { nano, to, reply } => self.on_withdraw(nano, to, reply),
            Command::Withdrawals(reply) => answer(reply, Ok(self.withdrawals())),
            Command::MarkPaid { id, reference, reply } => self.on_mark_paid(&id, reference, reply),
            Command::Deposit { account, nano, reference, reply } => {
                self.on_deposit(&account, nano, reference, reply);
            }
            Command::Channels(reply) => self.on_channels(reply),
            Command::Statement { from, to, reply } => self.on_statement((from, to), reply),
            Command::Entry { id, reply } => self.on_entry(id, reply),
            Command::Settle(reply) => self.settle(reply),
            Command::Prune { keep_epochs, reply } => self.prune(keep_epochs, reply),
            Command::Audit { epoch, reply } => self.audit(epoch, reply),
            Command::Account(reply) => answer(reply, Ok(self.account_view())),
            Command::Rotate { seed, next, reply } => self.on_rotate(seed, next, reply),
            Command::Authorise { body, reply } => self.on_authorise(&body, reply),
            Command::Shutdown(reply) => {
                answer(reply, Ok(()));
                self.shutdown.cancel();
            }
        }
    }

    /// Answers whoever waited for something that is there now, or no longer waits.
    pub(super) fn answer_waiting(&mut self) {
        let now = self.clock.now_ms();
        for submission in std::mem::take(&mut self.waiting.submissions) {
            let models = self.resolve(&submission.request.model);
            if models.is_empty() && submission.until_ms > now {
                self.waiting.submissions.push(submission);
            } else {
                self.place(submission, &models);
            }
        }
        for discovery in std::mem::take(&mut self.waiting.discoveries) {
            if discovery.until_ms > now && !self.knows_provider(discovery.model.as_deref()) {
                self.waiting.discoveries.push(discovery);
            } else {
                let found = self.providers(discovery.model.as_deref());
                answer(discovery.reply, Ok(found));
            }
        }
        self.answer_settling();
        self.answer_audit();
        self.answer_rotating();
        self.answer_promises();
        self.answer_orders();
    }

    fn promise(&mut self, names: Digest, answer: Answer) {
        self.waiting.promises.push(Promise::new(names, answer));
    }

    // --------------------------------------------------------------------------------------------- jobs

    fn on_submit(&mut self, job: JobId, request: Arc<JobRequest>, events: mpsc::Sender<JobEvent>) {
        let is_known = self.jobs.contains_key(&job)
            || self.waiting.has_submission(job)
            || self.serving.contains_key(&job);
        if is_known || self.waiting.submissions.len() >= SUBMISSIONS_MAX {
            let failure =
                Failure::new(FailureKind::Busy, "this job is known already, or too many wait: try again");
            let _ = events.try_send(JobEvent::Failed { failure, account: None });
            return;
        }
        let until_ms = self.clock.now_ms() + RESOLVE_MS;
        let submission = Submission { job, request, events, until_ms };
        let models = self.resolve(&submission.request.model);
        if models.is_empty() {
            self.net.lookup(name_key(canonical(&submission.request.model)));
            self.waiting.submissions.push(submission);
        } else {
            self.place(submission, &models);
        }
    }

    fn place(&mut self, submission: Submission, models: &[ModelId]) {
        let Submission { job, mut request, events, .. } = submission;
        match one_model(&request.model, models) {
            // The queue of inputs may have been drained before this request was looked at.
            Ok(model) => {
                self.fit(&mut request, model);
                let checked = self.check_builder(&request).and_then(|()| self.check_kind(&request, model));
                match checked.and_then(|()| self.narrow(&mut request, model)) {
                    Ok(()) => self.submit(job, request, model, events),
                    Err(failure) => {
                        let why = self.unfit(&request, model);
                        self.end_unplaced(job, &request, why, failure, &events);
                    }
                }
            }
            Err(failure) => self.end_unplaced(job, &request, Vec::new(), failure, &events),
        }
    }

    fn end_unplaced(
        &mut self,
        job: JobId,
        request: &JobRequest,
        why: Vec<CandidateView>,
        failure: Failure,
        events: &mpsc::Sender<JobEvent>,
    ) {
        self.note_unplaced(job, request, why, &failure);
        let _ = events.try_send(JobEvent::Failed { failure, account: None });
    }

    /// Lowers the length of an answer for which none was named to what the longest context of a provider holds.
    fn fit(&self, request: &mut Arc<JobRequest>, model: ModelId) {
        if !request.open_ended {
            return;
        }
        let offers = self.node.providers(self.now()).flat_map(|advert| &advert.models);
        let offers = offers.chain(self.node.served().map(|(offer, ..)| offer));
        let contexts = offers.filter(|offer| offer.model == model).map(|offer| offer.context_tokens);
        if let Some(context) = contexts.max() {
            let most = context.saturating_sub(1).max(1);
            if let Work::Generate(generate) = &mut Arc::make_mut(request).work {
                generate.max_tokens = generate.max_tokens.min(most);
            }
        }
    }

    /// Refuses a job that no provider of the model could do, because all say that it makes something else.
    fn check_kind(&self, request: &JobRequest, model: ModelId) -> Result<(), Failure> {
        let offers = self.node.providers(self.now()).flat_map(|advert| &advert.models);
        let offers = offers.chain(self.node.served().map(|(offer, ..)| offer));
        let mut kinds = offers.filter(|offer| offer.model == model).map(|offer| offer.modality).peekable();
        if kinds.peek().is_none() || kinds.any(|kind| kind == body::modality(&request.work)) {
            return Ok(());
        }
        let words = match &request.work {
            Work::Generate(_) => "makes no text: ask it for embeddings, or ask another model",
            Work::Embed(_) => "makes no embeddings: name one that does (`sharemesh providers` lists them)",
        };
        let name: String = request.model.chars().take(256).collect();
        Err(Failure::usage(format!("the model `{name}` {words}")).in_param("model"))
    }

    fn resolve(&self, name: &str) -> Vec<ModelId> {
        match name.parse() {
            Ok(id) => Vec::from([id]),
            Err(_) => self.node.models_named(canonical(name), self.now()),
        }
    }

    // ------------------------------------------------------------------------------------------- network

    /// Makes a ticket; returns the name under which it will be written, and what to answer then.
    fn ticket(&mut self, amount: u64, uses: u32) -> Result<(Digest, TicketView), Failure> {
        if uses != 1 {
            return Err(Failure::usage("a ticket admits one node: make one for each"));
        }
        let budget_left = self.budget_after(amount)?;
        let addresses = ticket_addresses(self.addresses(), self.addresses_of_issuers())
            .map_err(|error| Failure::new(FailureKind::Unavailable, error.to_string()))?;
        let secret = crate::identity::random();
        self.inputs.push_back(Input::Owner(OwnerCommand::MakeTicket { secret, amount }));
        let ticket = Ticket { manifest: self.identity.manifest.signed(), addresses, secret }.to_text();
        let view = TicketView {
            join: format!("sharemesh up --join {ticket}"),
            ticket,
            network: self.node.manifest().name.clone(),
            credits: amount.into(),
            expires_ms: None,
            budget_left: budget_left.into(),
        };
        Ok((Ticket::fingerprint(&secret), view))
    }

    /// Gives credits; returns the name under which that will be written, and what to answer then.
    fn on_grant(&mut self, account: &str, amount: u64) -> Result<(Digest, GrantView), Failure> {
        let books = self.node.books().ok_or_else(not_issuer)?;
        let account =
            account.parse().map_err(|error: protocol::ids::IdError| Failure::usage(error.to_string()))?;
        let available = books.balance(account).available();
        let budget_left = self.budget_after(amount)?;
        let reference = Digest(crate::identity::random());
        self.inputs.push_back(Input::Owner(OwnerCommand::Grant { reference, account, amount }));
        let view = GrantView {
            account: account.to_string(),
            credits: amount.into(),
            available: available.saturating_add(amount).into(),
            budget_left: budget_left.into(),
            record: reference.to_string(),
        };
        Ok((reference, view))
    }

    /// Returns what would be left to give away after this amount, if there is as much.
    fn budget_after(&self, amount: u64) -> Result<u64, Failure> {
        let left = self.node.budget_left().ok_or_else(not_issuer)?;
        let issuers = self.node.manifest().issuers.len();
        left.checked_sub(amount).ok_or_else(|| {
            let whose = if issuers > 1 { "this issuer's part of the budget" } else { "the budget" };
            let words = format!("{} are left of {whose} for tickets and grants", Money::from_nano(left));
            Failure::new(FailureKind::NoCredits, words)
        })
    }
}

/// Returns the name by which the mesh knows a model of the catalogue, whatever other name or writing of it is used.
pub(super) fn canonical(name: &str) -> &str {
    crate::models::catalogue::find(name).map_or(name, |entry| &entry.name)
}

/// Returns the model that a name stands for, if it stands for one.
fn one_model(name: &str, models: &[ModelId]) -> Result<ModelId, Failure> {
    match models {
        [model] => Ok(*model),
        [] if crate::models::catalogue::find(name).is_some() => Err(Failure::new(
            FailureKind::NoProvider,
            format!("nobody serves `{name}` now: serve it on a node with `sharemesh up --serve {name}`"),
        )),
        [] => Err(Failure::new(
            FailureKind::UnknownModel,
            format!("nobody has heard of the model `{name}`: `sharemesh providers` lists those served"),
        )),
        several => Err(Failure::usage(format!(
            "`{name}` names {} different models; ask for one by its id: {}",
            several.len(),
            several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// Most jobs, and most questions, that wait for a model to be heard of.
const SUBMISSIONS_MAX: usize = 256;

pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, Failure>) {
    // Whoever asked may have gone.
    let _ = reply.send(result);
}

fn not_issuer() -> Failure {
    Failure::new(
        FailureKind::Forbidden,
        "this node is not the network's issuer, or none of them: run the command on a node that is (`sharemesh network show`)",
    )
}
