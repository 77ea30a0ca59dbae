//! Answers to what the API asks: what the node knows, in the words of the API.

use std::collections::BTreeMap;

use protocol::advert::{Incentive, ProviderClass};
use protocol::ids::{ChannelId, Digest, JobId, ModelId, NodeId, RecordId};
use protocol::job::{Finish, JobEvent as CoreEvent, JobRecord};
use protocol::ledger::records::{SplitLine, SplitRole};
use protocol::node::{Input, OwnerCommand};
use protocol::price::Price;
use protocol::router::{Considered, Gate};
use protocol::scheduler::Refusal;
use protocol::ticket::Ticket;
use tokio::sync::mpsc;

use crate::api::views::{
    BalanceView, BookView, BooksView, CandidateView, GrantView, JobAccount, JobEvent, JobView, Money,
    NearbyView, NetworkView, PeerView, PriceView, ProviderView, ReceiptDetailView, ReceiptView, ReceiptsView,
    ServedModelView, SplitView, StatusView, TicketView,
};
use crate::command::{Command, JobRequest, Reply};
use crate::exit::{Failure, FailureKind};
use crate::journal::Position;
use crate::net::{Direction, Transport};

use super::index::{Asker, ReceiptEntry};
use super::jobs::{cancelled, failure_of};
use super::mesh::{name_key, ticket_addresses};
use super::promises::{Answer, Promise};
use super::settle::Settling;
use super::{Driver, Model};

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
    pub(super) promises: Vec<Promise>,
}

/// A job whose model nobody has been heard of yet.
#[derive(Debug)]
struct Submission {
    job: JobId,
    request: JobRequest,
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
            Command::Submit { job, request, events } => self.on_submit(JobId(job), *request, events),
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
            Command::Settle(reply) => self.settle(reply),
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
        self.answer_promises();
    }

    fn promise(&mut self, names: Digest, answer: Answer) {
        self.waiting.promises.push(Promise::new(names, answer));
    }

    // --------------------------------------------------------------------------------------------- jobs

    fn on_submit(&mut self, job: JobId, request: JobRequest, events: mpsc::Sender<JobEvent>) {
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
            self.net.lookup(name_key(&submission.request.model));
            self.waiting.submissions.push(submission);
        } else {
            self.place(submission, &models);
        }
    }

    fn place(&mut self, submission: Submission, models: &[ModelId]) {
        let Submission { job, request, events, .. } = submission;
        let failure = match models {
            [model] => {
                let model = *model;
                self.submit(job, request, model, events);
                // The queue of inputs may have been drained before this request was looked at.
                return;
            }
            [] if crate::models::catalogue::find(&request.model).is_some() => Failure::new(
                FailureKind::NoProvider,
                format!(
                    "nobody serves `{0}` now: serve it on a node with `sharemesh up --serve {0}`",
                    request.model
                ),
            ),
            [] => Failure::new(
                FailureKind::UnknownModel,
                format!(
                    "nobody has heard of the model `{}`: `sharemesh providers` lists those served",
                    request.model
                ),
            ),
            several => Failure::usage(format!(
                "`{}` names {} different models; ask for one by its id: {}",
                request.model,
                several.len(),
                several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )),
        };
        let _ = events.try_send(JobEvent::Failed { failure, account: None });
    }

    fn resolve(&self, name: &str) -> Vec<ModelId> {
        match name.parse() {
            Ok(id) => Vec::from([id]),
            Err(_) => {
                let name = crate::models::catalogue::find(name).map_or(name.to_owned(), |entry| entry.name);
                self.node.models_named(&name, self.now())
            }
        }
    }

    /// Returns what a client is told of an event of its job, and whether it is the last one.
    pub(super) fn view_of(&mut self, job: JobId, event: CoreEvent) -> (Option<JobEvent>, bool) {
        match event {
            CoreEvent::Chosen { provider, considered } => {
                let why: Vec<CandidateView> = considered.iter().map(|c| self.candidate(c)).collect();
                let worst = considered.iter().find(|c| c.provider == provider).map_or(0, |c| c.price);
                let Some(own) = self.jobs.get_mut(&job) else { return (None, false) };
                own.why.clone_from(&why);
                own.attempts += 1;
                own.price_max = worst;
                (Some(JobEvent::Chosen { job: job.to_string(), provider: provider.to_string(), why }), false)
            }
            CoreEvent::Accepted { tokens_in } => {
                let price_max = self.jobs.get(&job).map_or(0, |own| own.price_max).into();
                (Some(JobEvent::Accepted { tokens_in, price_max }), false)
            }
            CoreEvent::Done(account) => {
                (self.account(job, &account).map(|account| JobEvent::Done(Box::new(account))), true)
            }
            CoreEvent::Failed { failure, account } => {
                let model = self.jobs.get(&job).map(|own| own.request.model.clone()).unwrap_or_default();
                let account = account.and_then(|account| self.account(job, &account)).map(Box::new);
                (Some(JobEvent::Failed { failure: failure_of(&failure, &model), account }), true)
            }
        }
    }

    fn account(&self, job: JobId, account: &protocol::job::JobAccount) -> Option<JobAccount> {
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
            split,
            receipt: account.receipt.map(|receipt| receipt.to_string()),
            finish: finish_name(record.finish).to_owned(),
            text_digest: own.text.to_string(),
            attempts: own.attempts,
        })
    }

    fn split_view(
        &self,
        account: &protocol::job::JobAccount,
        (role, to, amount): (SplitRole, protocol::ids::AccountId, u64),
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

    fn candidate(&self, considered: &Considered) -> CandidateView {
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

    // -------------------------------------------------------------------------------------- node and mesh

    /// Returns what a node's owner calls it, where its advert says so.
    fn name_of(&self, node: NodeId) -> String {
        if node == self.node.id() {
            return self.config.name.clone();
        }
        self.node
            .providers(self.now())
            .find(|advert| advert.node == node)
            .map(|a| a.name.clone())
            .unwrap_or_default()
    }

    fn status(&self) -> StatusView {
        let manifest = self.node.manifest();
        let waiting_for = self.waiting_for();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let mut warnings: Vec<String> = self
            .models
            .iter()
            .filter(|(_, m)| m.state == "failed")
            .map(|(n, m)| format!("{n}: {}", m.detail))
            .collect();
        if manifest.issuers.len() == 1 && self.identity.issuer.is_none() {
            warnings.push("this network has one issuer, which is trusted with all deposits".to_owned());
        }
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.config.name.clone(),
            node: self.node.id().to_string(),
            account: self.node.account().to_string(),
            ready: waiting_for.is_empty(),
            waiting_for,
            network: NetworkView {
                id: self.node.domain().to_string(),
                name: manifest.name.clone(),
                issuer: self.identity.issuer.is_some(),
                issuers: manifest.issuers.iter().map(|issuer| issuer.node.to_string()).collect(),
                dev: manifest.development,
                epoch: u64::from(manifest.epoch(self.now()).0),
                budget_left: self.node.books().map(|books| books.budget_left().into()),
            },
            addresses: self.addresses(),
            uptime_ms: self.clock.elapsed_ms(),
            peers: count(self.node.peers().count()),
            models: self.models.values().map(|model| self.model_view(model)).collect(),
            jobs_serving: count(self.serving.len()),
            jobs_submitted: count(self.jobs.len()),
            available: self.node.balance().available().into(),
            nearby: self.nearby(),
            warnings,
            offences: self.offences.names(),
            data: self.config.data.display().to_string(),
        }
    }

    fn waiting_for(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        if self.net.listening().is_empty() {
            waiting.push("an address to listen on".to_owned());
        }
        if !self.node.is_admitted() {
            waiting.push("the network's issuer, to be admitted".to_owned());
        }
        let loading = self.models.iter().filter(|(_, model)| matches!(model.state, "loading" | "restarting"));
        waiting.extend(loading.map(|(name, model)| format!("{name}: {} {}", model.state, model.detail)));
        waiting
    }

    fn nearby(&self) -> Vec<NearbyView> {
        let view = |nearby: &super::mesh::Nearby| NearbyView {
            network: Digest(nearby.domain).to_string(),
            name: nearby.name.clone(),
            address: nearby.addresses.first().map(ToString::to_string).unwrap_or_default(),
            join:
                "sharemesh up --data NEW_FOLDER --join TICKET (its owner makes one: sharemesh network ticket)"
                    .to_owned(),
        };
        self.mesh.nearby.iter().map(view).collect()
    }

    fn peers(&self) -> Vec<PeerView> {
        let now = self.now();
        let known = |node| self.node.peers().find(|peer| peer.node == node);
        let view = |info: crate::net::PeerInfo| {
            let node = NodeId(info.peer.0);
            let models = self.node.providers(now).filter(|advert| advert.node == node);
            PeerView {
                node: node.to_string(),
                name: Some(self.name_of(node)).filter(|name| !name.is_empty()),
                account: known(node).and_then(|peer| peer.account).map(|account| account.to_string()),
                transport: match info.transport {
                    Transport::Quic => "quic",
                    Transport::Tcp => "tcp",
                    Transport::Relay => "relay",
                }
                .to_owned(),
                address: info.addresses.first().map(ToString::to_string).unwrap_or_default(),
                direction: match info.direction {
                    Direction::Accepted => "in",
                    Direction::Dialed => "out",
                }
                .to_owned(),
                rtt_us: info.rtt_micro,
                connected_ms: u64::try_from(info.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                models: models
                    .flat_map(|advert| advert.models.iter().map(|offer| offer.name.clone()))
                    .collect(),
                offences: self.offences.of(node),
            }
        };
        self.net.peers().into_iter().map(view).collect()
    }

    fn on_providers(&mut self, model: Option<String>, reply: Reply<Vec<ProviderView>>) {
        match &model {
            Some(name) => self.net.lookup(name_key(name)),
            None => {
                for entry in crate::models::catalogue::entries() {
                    self.net.lookup(name_key(&entry.name));
                }
                self.net.lookup(name_key(crate::models::FAKE));
            }
        }
        if self.waiting.discoveries.len() >= SUBMISSIONS_MAX {
            let failure =
                Failure::new(FailureKind::Busy, "too many wait for providers: try again in a moment");
            return answer(reply, Err(failure.retry_after(DISCOVER_MS)));
        }
        let until_ms = self.clock.now_ms() + DISCOVER_MS;
        self.waiting.discoveries.push(Discovery { model, reply, until_ms });
    }

    /// Says whether [`Self::providers`] would find anybody; asked after every event while somebody waits.
    fn knows_provider(&self, model: Option<&str>) -> bool {
        let is_wanted = |name: &str, id: ModelId| {
            model.is_none_or(|wanted| {
                wanted == name || wanted.parse().is_ok_and(|wanted: ModelId| wanted == id)
            })
        };
        let mut offers = self.node.providers(self.now()).flat_map(|advert| &advert.models);
        let mut local = self.models.values().filter(|model| model.state == "ready");
        offers.any(|offer| is_wanted(&offer.name, offer.model))
            || local.any(|model| model.id.is_some_and(|id| is_wanted(&model.served.name, id)))
    }

    fn providers(&self, model: Option<&str>) -> Vec<ProviderView> {
        let now = self.now();
        let rtts: BTreeMap<NodeId, u64> = self
            .net
            .peers()
            .into_iter()
            .filter_map(|info| Some((NodeId(info.peer.0), info.rtt_micro?)))
            .collect();
        let mut views = Vec::new();
        for advert in self.node.providers(now) {
            for offer in &advert.models {
                let device = advert.devices.first();
                views.push(ProviderView {
                    node: advert.node.to_string(),
                    account: advert.account.to_string(),
                    name: advert.name.clone(),
                    local: false,
                    model: offer.name.clone(),
                    model_id: offer.model.to_string(),
                    price: price_view(&offer.price),
                    slots: u32::from(offer.slots),
                    busy: u32::from(offer.busy),
                    tokens_per_s_milli: offer.decode_milli,
                    context: offer.context_tokens,
                    quantisation: offer.quantisation.clone(),
                    licence: "open".to_owned(),
                    incentive: match advert.incentive {
                        Incentive::Exchange => "exchange",
                        Incentive::Rewards => "rewards",
                    }
                    .to_owned(),
                    class: match advert.class {
                        ProviderClass::Community => "community",
                        ProviderClass::Company => "company",
                    }
                    .to_owned(),
                    region: Some(advert.region.clone()).filter(|region| !region.is_empty()),
                    device: device.map(|device| device.kind.clone()).unwrap_or_default(),
                    device_name: device.map(|device| device.name.clone()).unwrap_or_default(),
                    memory_bytes: device.map_or(0, |device| device.memory_bytes),
                    rtt_us: rtts.get(&advert.node).copied(),
                    expires_ms: advert.valid_to.0,
                });
            }
        }
        views.extend(
            self.models
                .values()
                .filter(|model| model.state == "ready")
                .map(|model| self.local_provider(model)),
        );
        let wanted =
            |view: &ProviderView| model.is_none_or(|name| view.model == name || view.model_id == name);
        views.retain(wanted);
        views
    }

    fn local_provider(&self, model: &Model) -> ProviderView {
        let view = self.model_view(model);
        ProviderView {
            node: self.node.id().to_string(),
            account: self.node.account().to_string(),
            name: self.config.name.clone(),
            local: true,
            model: view.name,
            model_id: view.model_id,
            price: view.price,
            slots: view.slots,
            busy: view.busy,
            tokens_per_s_milli: view.tokens_per_s_milli,
            context: view.context,
            device: view.device,
            quantisation: model.info.as_ref().map(|info| info.quantisation.clone()).unwrap_or_default(),
            licence: "open".to_owned(),
            incentive: "exchange".to_owned(),
            class: "community".to_owned(),
            memory_bytes: model.info.as_ref().map_or(0, |info| info.device.memory_bytes),
            ..ProviderView::default()
        }
    }

    fn model_view(&self, model: &Model) -> ServedModelView {
        let busy = self
            .node
            .served()
            .find(|(offer, ..)| Some(offer.model) == model.id)
            .map_or(0, |(_, busy, _)| busy);
        let info = model.info.as_ref();
        ServedModelView {
            name: model.served.name.clone(),
            model_id: model.id.map(|id| id.to_string()).unwrap_or_default(),
            state: model.state.to_owned(),
            detail: model.detail.clone(),
            price: price_view(&Price {
                call: 0,
                input: model.served.price.input_nano_per_million,
                output: model.served.price.output_nano_per_million,
            }),
            slots: model.served.slots,
            busy: u32::from(busy),
            tokens_per_s_milli: info.map_or(0, |info| info.decode_tokens_per_s_milli),
            context: info.map_or(0, |info| info.context_length),
            device: info.map(|info| info.device.kind.clone()).unwrap_or_default(),
            worker_pid: model.pid,
            restarts: model.restarts,
        }
    }

    fn check_model(&self, name: &str) -> Result<(), Failure> {
        let permitted = name != crate::models::FAKE || self.node.manifest().development;
        if permitted {
            Ok(())
        } else {
            Err(Failure::usage("the fake model is served only in a network made with `sharemesh up --dev`"))
        }
    }

    fn unload(&mut self, name: &str) -> Result<(), Failure> {
        let model = self.models.get_mut(name);
        let model = model
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("`{name}` is not served here")))?;
        model.state = "stopping";
        self.workers.stop(name);
        Ok(())
    }

    // -------------------------------------------------------------------------------------------- ledger

    fn balance(&self) -> BalanceView {
        let balance = self.node.balance();
        let channels = self.node.channels();
        let count = |paying| {
            u32::try_from(channels.iter().filter(|c| c.paying == paying).count()).unwrap_or(u32::MAX)
        };
        let signed: u64 = channels.iter().filter(|channel| channel.paying).map(|channel| channel.paid).sum();
        BalanceView {
            account: self.node.account().to_string(),
            available: balance.available().into(),
            cash: balance.cash.into(),
            earned: balance.earned.into(),
            held: balance.held.saturating_sub(signed).into(),
            pending: channels.iter().map(|channel| channel.unredeemed).sum::<u64>().into(),
            channels_out: count(true),
            channels_in: count(false),
            books: self.books(),
        }
    }

    fn books(&self) -> Option<BooksView> {
        let books = self.node.books()?;
        let manifest = self.node.manifest();
        let role = |account| {
            if account == manifest.network {
                "network"
            } else if manifest.pools.iter().any(|pool| pool.account == account) {
                "pool"
            } else {
                "member"
            }
        };
        let accounts: Vec<BookView> = books
            .balances()
            .map(|(account, balance)| BookView {
                account: account.to_string(),
                role: role(account).to_owned(),
                cash: balance.cash.into(),
                earned: balance.earned.into(),
                held: balance.held.into(),
            })
            .collect();
        let sum = |of: fn(&BookView) -> u64| Money::from_nano(accounts.iter().map(of).sum());
        Some(BooksView {
            deposited: u64::try_from(books.deposited()).unwrap_or(u64::MAX).into(),
            withdrawn: Money::from_nano(0),
            available: sum(|book| book.cash.nano + book.earned.nano),
            held: sum(|book| book.held.nano),
            conserved: books.is_conserved(),
            budget: manifest.grant_budget.into(),
            budget_left: books.budget_left().into(),
            accounts,
        })
    }

    fn asker(&self) -> Result<Asker, Failure> {
        let names = self.model_names();
        self.durable.reader().map(|reader| Asker { reader, names }).ok_or_else(|| {
            Failure::new(FailureKind::Unavailable, "the index is being rebuilt: try again in a moment")
                .retry_after(1000)
        })
    }

    /// Returns what the models that are known now are called.
    fn model_names(&self) -> BTreeMap<ModelId, String> {
        let offers = self.node.providers(self.now()).flat_map(|advert| &advert.models);
        let served = self.node.served().map(|(offer, ..)| offer);
        offers.chain(served).map(|offer| (offer.model, offer.name.clone())).collect()
    }

    fn on_receipts(&self, limit: u32, before: Option<String>, reply: Reply<ReceiptsView>) {
        let asker = match self.asker() {
            Ok(asker) => asker,
            Err(failure) => return answer(reply, Err(failure)),
        };
        tokio::task::spawn_blocking(move || {
            answer(reply, receipts(&asker, limit.min(PAGE_MAX), before.as_deref()))
        });
    }

    fn on_show_receipt(&self, id: String, reply: Reply<Box<ReceiptDetailView>>) {
        let asker = match self.asker() {
            Ok(asker) => asker,
            Err(failure) => return answer(reply, Err(failure)),
        };
        let (me, history, domain) = (self.node.id(), self.durable.history(), self.node.domain());
        tokio::task::spawn_blocking(move || {
            let shown = show_receipt(&asker, &id, me).and_then(|(position, mut view)| {
                let signed = signatures_at(&history, position, domain)?;
                (view.payer_signature, view.payee_signature) = signed;
                Ok(Box::new(view))
            });
            answer(reply, shown);
        });
    }

    fn on_show_job(&self, job: JobId, reply: Reply<Box<JobView>>) {
        let running = self.node.jobs().find(|(id, _)| *id == job);
        if let Some((_, view)) = running {
            let why = self.jobs.get(&job).map(|own| own.why.clone()).unwrap_or_default();
            let view = JobView {
                job: job.to_string(),
                role: "consumer".to_owned(),
                state: if view.phase == "running" { "running" } else { "placed" }.to_owned(),
                detail: view.phase.to_owned(),
                model: self.model_names().remove(&view.model).unwrap_or_else(|| view.model.to_string()),
                peer: view.provider.map(|node| node.to_string()).unwrap_or_default(),
                tokens_out: view.tokens,
                started_ms: view.submitted.0,
                why,
                ..JobView::default()
            };
            return answer(reply, Ok(Box::new(view)));
        }
        let asker = match self.asker() {
            Ok(asker) => asker,
            Err(failure) => return answer(reply, Err(failure)),
        };
        let me = self.node.id();
        let why =
            self.reasons.iter().find(|(id, _)| *id == job).map(|(_, why)| why.clone()).unwrap_or_default();
        tokio::task::spawn_blocking(move || {
            let found = asker.job(job).map_err(|error| Failure::internal(error.to_string()));
            let view = found.and_then(|record| {
                let unknown =
                    || Failure::new(FailureKind::NotFound, format!("no job {job} in this node's ledger"));
                job_view(&asker, &record.ok_or_else(unknown)?, me)
            });
            answer(reply, view.map(|view| Box::new(JobView { why, ..view })));
        });
    }

    // ------------------------------------------------------------------------------------------- network

    /// Makes a ticket; returns the name under which it will be written, and what to answer then.
    fn ticket(&mut self, amount: u64, uses: u32) -> Result<(Digest, TicketView), Failure> {
        let books = self.node.books().ok_or_else(not_issuer)?;
        if uses != 1 {
            return Err(Failure::usage("a ticket admits one node: make one for each"));
        }
        books
            .check_budget(amount)
            .map_err(|error| Failure::new(FailureKind::NoCredits, error.to_string()))?;
        let budget_left = books.budget_left().saturating_sub(amount);
        let addresses = ticket_addresses(self.addresses())
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
        books
            .check_budget(amount)
            .map_err(|error| Failure::new(FailureKind::NoCredits, error.to_string()))?;
        let (left, available) = (books.budget_left(), books.balance(account).available());
        let reference = Digest(crate::identity::random());
        self.inputs.push_back(Input::Owner(OwnerCommand::Grant { reference, account, amount }));
        let view = GrantView {
            account: account.to_string(),
            credits: amount.into(),
            available: available.saturating_add(amount).into(),
            budget_left: left.saturating_sub(amount).into(),
            record: reference.to_string(),
        };
        Ok((reference, view))
    }
}

/// Most jobs, and most questions, that wait for a model to be heard of.
const SUBMISSIONS_MAX: usize = 256;

fn answer<T>(reply: Reply<T>, result: Result<T, Failure>) {
    // Whoever asked may have gone.
    let _ = reply.send(result);
}

fn not_issuer() -> Failure {
    Failure::new(
        FailureKind::Forbidden,
        "this node is not the network's issuer: run the command on the node that made the network",
    )
}

fn price_view(price: &Price) -> PriceView {
    PriceView { input_per_million: price.input.into(), output_per_million: price.output.into() }
}

const fn role_name(role: SplitRole) -> &'static str {
    match role {
        SplitRole::Provider => "provider",
        SplitRole::Pool => "pool",
        SplitRole::Network => "network",
        SplitRole::Builder => "builder",
    }
}

const fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
        Finish::Lost => "lost",
    }
}

/// Returns the name of a gate, with the reason of a refusal.
pub(super) fn gate_name(gate: Gate) -> String {
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

const fn refusal_name(refusal: Refusal) -> &'static str {
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

// --------------------------------------------------------------------------------- from the index, blocking

fn broken(error: crate::store::StoreError) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("{error}: try again in a moment")).retry_after(1000)
}

fn receipts(asker: &Asker, limit: u32, before: Option<&str>) -> Result<ReceiptsView, Failure> {
    let before = match before {
        None => None,
        Some(id) => Some(one_receipt(asker, id)?.0),
    };
    let page = asker.receipts(limit as usize, before).map_err(broken)?;
    let next =
        if page.len() == limit as usize { page.last().map(|(_, entry)| entry.id.to_string()) } else { None };
    let receipts = page.iter().map(|(_, entry)| receipt_view(asker, entry)).collect::<Result<_, _>>()?;
    Ok(ReceiptsView { receipts, next })
}

fn one_receipt(asker: &Asker, id: &str) -> Result<(Position, ReceiptEntry), Failure> {
    let even = &id[..id.len() / 2 * 2];
    let prefix = data_encoding::HEXLOWER_PERMISSIVE.decode(even.as_bytes()).ok().filter(|p| !p.is_empty());
    let prefix =
        prefix.ok_or_else(|| Failure::usage(format!("`{id}` is not the beginning of a receipt's id")))?;
    let mut found = asker.receipts_beginning(&prefix).map_err(broken)?;
    found.retain(|(_, entry)| entry.id.to_string().starts_with(&id.to_ascii_lowercase()));
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(FailureKind::NotFound, format!("no receipt `{id}` in this node's ledger"))),
        _ => Err(Failure::usage(format!("several receipts begin with `{id}`: give more of the id"))),
    }
}

fn receipt_view(asker: &Asker, entry: &ReceiptEntry) -> Result<ReceiptView, Failure> {
    let channel = asker.channel(entry.channel).map_err(broken)?;
    let redeemed = asker.redeemed(entry.channel).map_err(broken)?;
    let (paying, payer, payee, model) = channel
        .map_or((false, String::new(), String::new(), String::new()), |c| {
            (c.paying, c.payer.to_string(), c.payee.to_string(), asker.name(c.model))
        });
    Ok(ReceiptView {
        id: entry.id.to_string(),
        channel: entry.channel.to_string(),
        seq: entry.sequence,
        direction: if paying { "paid" } else { "received" }.to_owned(),
        payer,
        payee,
        model,
        cumulative: entry.amount.into(),
        calls: entry.usage.calls,
        tokens_in: entry.usage.tokens_in,
        tokens_out: entry.usage.tokens_out,
        epoch: u64::from(entry.epoch),
        cosigned: entry.cosigned,
        redeemed: redeemed.is_some_and(|redeemed| redeemed.closed || redeemed.amount >= entry.amount),
    })
}

fn show_receipt(asker: &Asker, id: &str, me: NodeId) -> Result<(Position, ReceiptDetailView), Failure> {
    let (position, entry) = one_receipt(asker, id)?;
    let channel = asker.channel(entry.channel).map_err(broken)?;
    let jobs = asker.jobs_of(entry.channel).map_err(broken)?;
    let jobs = jobs.iter().map(|record| job_view(asker, record, me)).collect::<Result<_, _>>()?;
    let (terms, price, split) =
        channel.map_or((String::new(), PriceView::default(), Vec::new()), |channel| {
            let split = split_of(&channel.split, entry.amount);
            (channel.terms.to_string(), price_view(&channel.price), split)
        });
    let receipt = receipt_view(asker, &entry)?;
    let view = ReceiptDetailView {
        receipt,
        terms,
        price,
        split,
        jobs,
        payer_signature: false,
        payee_signature: false,
    };
    Ok((position, view))
}

/// Returns how the full quanta of `amount` are divided, and what waits.
fn split_of(lines: &[SplitLine], amount: u64) -> Vec<SplitView> {
    let quanta = amount / protocol::ledger::money::QUANTUM;
    let line = |line: &SplitLine| SplitView {
        role: role_name(line.role).to_owned(),
        account: line.account.to_string(),
        bps: u32::from(line.bps),
        amount: quanta.saturating_mul(u64::from(line.bps)).into(),
    };
    let mut views: Vec<SplitView> = lines.iter().map(line).collect();
    let waiting = protocol::ledger::money::waiting(amount);
    if waiting > 0 {
        let role = "pending".to_owned();
        views.push(SplitView { role, account: String::new(), bps: 0, amount: waiting.into() });
    }
    views
}

fn job_view(asker: &Asker, record: &JobRecord, me: NodeId) -> Result<JobView, Failure> {
    let head =
        record.channel.map(|channel: ChannelId| asker.head(channel)).transpose().map_err(broken)?.flatten();
    let requested = record.requester == me;
    let price = record.price.cost(&record.usage).unwrap_or(u64::MAX);
    Ok(JobView {
        job: record.job.to_string(),
        role: if requested { "consumer" } else { "provider" }.to_owned(),
        state: if record.finish == Finish::Lost { "failed" } else { "settled" }.to_owned(),
        detail: finish_name(record.finish).to_owned(),
        model: asker.name(record.model),
        peer: if requested { record.provider } else { record.requester }.to_string(),
        tokens_in: u32::try_from(record.usage.tokens_in).unwrap_or(u32::MAX),
        tokens_out: u32::try_from(record.usage.tokens_out).unwrap_or(u32::MAX),
        price: price.into(),
        receipt: head.filter(|head| head.cosigned).map(|head: ReceiptEntry| RecordId::to_string(&head.id)),
        channel: record.channel.map(|channel| channel.to_string()),
        started_ms: record.start.0,
        ended_ms: Some(record.end.0),
        why: Vec::new(),
    })
}

/// Checks, now, the signatures of the receipt at a position of the journal.
pub(super) fn signatures_at(
    history: &crate::journal::History,
    position: Position,
    domain: protocol::ids::DomainId,
) -> Result<(bool, bool), Failure> {
    use protocol::keys::Scheme;
    use protocol::record::Record;
    use protocol::signed::Role;

    let mut signed = (false, false);
    let before = Position(position.0.saturating_sub(1));
    let read = history.replay(before, position, |_, _, bytes| {
        if let Ok(Record::Receipt(receipt)) = Record::from_bytes(bytes)
            && let Ok(receipt) = receipt.verify(domain, Scheme::Strict)
        {
            signed = (receipt.signer(Role::Payer).is_some(), receipt.signer(Role::Payee).is_some());
        }
    });
    read.map_err(|error| Failure::internal(format!("the journal cannot be read: {error}")))?;
    Ok(signed)
}
