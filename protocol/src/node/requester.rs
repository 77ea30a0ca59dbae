//! The requester's side of a job: find, ask, open a channel, submit, pay as it arrives, account.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::{ChannelId, Digest, JobId, ModelId, NodeId, RecordId};
use crate::job::{
    Failure, Finish, INPUT_BYTES_MAX, JOB_TOKENS_MAX, JobAccount, JobEvent, JobRecord, JobSpec,
};
use crate::ledger::money::{shares, waiting, with_markup};
use crate::ledger::records::{Accepted, Terms};
use crate::licence::open_licence;
use crate::message::Message;
use crate::price::{Price, Usage};
use crate::record::Record;
use crate::router::{Considered, Gate};
use crate::scheduler::Refusal;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::provider::Serving;
use super::{Effect, Node, Offence, Timer};

/// Most jobs of the owner in flight.
const JOBS_MAX: usize = 256;

/// Providers asked at once.
const ASKED_MAX: usize = 4;

/// How long answers to an ask are waited for, at most.
const ASK_MS: u64 = 250;

/// How long providers are looked for.
const FIND_MS: u64 = 5_000;

/// How long a job goes from provider to provider before one has taken it, in all.
const SEARCH_MS: u64 = 60_000;

/// How long better candidates are waited for once there is one.
const GATHER_MS: u64 = 50;

/// How long the issuer has to open a channel.
const OPEN_MS: u64 = 5_000;

/// How long a provider has to take a job; a loaded machine may need seconds to count a long prompt.
const ACCEPT_MS: u64 = 20_000;

/// How long a provider that took a job has for its first token, beside the time it is expected to take in all.
const FIRST_TOKEN_MS: u64 = 120_000;

/// Longest time that is expected of a job for its first token: whoever advertises a rate of nothing gets no more.
const ESTIMATE_MS_MAX: u64 = 10 * 60 * 1000;

/// How long a stream may go on without a token: heartbeats alone are no progress.
const PROGRESS_MS: u64 = 60_000;

/// How long the two ends of a job (the stream's and the account's) may be apart.
const SETTLE_MS: u64 = 5_000;

/// A job of the owner.
#[derive(Debug)]
pub(super) struct Job {
    spec: JobSpec,
    phase: Phase,
    /// Why providers were passed over, so far.
    rejected: BTreeMap<NodeId, Gate>,
    considered: Vec<Considered>,
    /// Until when providers are looked for, once none was usable.
    find_until: Option<Time>,
    /// A provider refused the channel it was to be paid by, so another one was opened.
    reopened: bool,
    cancelled: bool,
    submitted: Time,
}

#[derive(Debug)]
enum Phase {
    /// No usable provider is known yet.
    Finding,
    /// Providers were asked for terms.
    Asking { waiting: BTreeSet<NodeId>, offers: Vec<Verified<Terms>> },
    /// Terms were chosen; a channel is needed.
    Opening { terms: Verified<Terms>, op: Option<RecordId>, queried: bool },
    /// A provider has the job.
    Placed(Placement),
    /// Our own engine has the job.
    AtHome { tokens_in: u32, start: Time },
}

/// A job at a provider.
#[derive(Debug, Clone)]
struct Placement {
    provider: NodeId,
    channel: Option<ChannelId>,
    price: Price,
    accepted: Option<(u32, Time)>,
    tokens: u32,
    first_token: Option<Time>,
    /// Tokens and digest at the stream's end.
    ended: Option<(u32, Digest)>,
    /// The provider's account.
    finished: Option<(JobRecord, Digest)>,
    /// Why the provider could not go on.
    failed: Option<String>,
}

impl Placement {
    /// Says whether it was taken, and neither its stream nor its provider has said that it is over.
    const fn is_running(&self) -> bool {
        self.accepted.is_some() && self.ended.is_none() && self.finished.is_none()
    }
}

/// A job as its owner sees it.
#[derive(Debug, Clone)]
pub struct JobView {
    /// Where it is: `finding`, `asking`, `opening`, `submitted`, `running`.
    pub phase: &'static str,
    /// Model.
    pub model: ModelId,
    /// Provider, once chosen.
    pub provider: Option<NodeId>,
    /// Tokens that have arrived.
    pub tokens: u32,
    /// When it was submitted.
    pub submitted: Time,
}

impl Node {
    pub(super) fn on_submitted(&mut self, job: JobId, spec: JobSpec, now: Time, out: &mut Vec<Effect>) {
        if let Err(reason) = check(&spec) {
            out.push(Effect::Tell(job, failed(Failure::BadRequest(String::from(reason)))));
            return;
        }
        if self.jobs.len() >= JOBS_MAX || self.jobs.contains_key(&job) || self.stopping {
            let failure =
                Failure::BadRequest(String::from("this node has too many jobs in flight, or is stopping"));
            out.push(Effect::Tell(job, failed(failure)));
            return;
        }
        let new = |phase, spec| Job {
            spec,
            phase,
            rejected: BTreeMap::new(),
            considered: Vec::new(),
            find_until: None,
            reopened: false,
            cancelled: false,
            submitted: now,
        };
        let only = &spec.constraints.only;
        let may_stay =
            !spec.constraints.ignore.contains(&self.me) && (only.is_empty() || only.contains(&self.me));
        if may_stay && self.scheduler.admit(self.me, job, spec.model, now).is_ok() {
            let considered =
                Vec::from([Considered { provider: self.me, gate: None, estimate_ms: 0, price: 0 }]);
            out.push(Effect::Tell(job, JobEvent::Chosen { provider: self.me, considered }));
            out.push(Effect::Attach { job, provider: self.me });
            let up_to = spec.max_tokens;
            self.jobs.insert(job, new(Phase::AtHome { tokens_in: 0, start: now }, spec.clone()));
            self.serving.insert(job, Serving::at_home(self.me, spec.clone(), now));
            out.push(Effect::Run { job, requester: self.me, spec, up_to });
            return;
        }
        self.jobs.insert(job, new(Phase::Finding, spec));
        self.seek(job, now, out);
    }

    /// Places a job with the best provider known, or looks for one.
    fn seek(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let mut ranked = self.router.rank(&job.spec, self.domain, |node| self.is_connected(node), now);
        for considered in &mut ranked {
            considered.gate = job.rejected.get(&considered.provider).copied().or(considered.gate);
        }
        crate::router::sort(&mut ranked, job.spec.constraints.sort);
        let usable: Vec<NodeId> = ranked.iter().filter(|c| c.gate.is_none()).map(|c| c.provider).collect();
        let (model, worst) = (job.spec.model, job.spec.worst_usage());
        let is_saturated = self.is_saturated(id, model);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.considered = ranked;
        let most = job.considered.iter().find(|c| c.gate.is_none()).map_or(0, |c| c.price);
        let Some(best) = usable.first().copied() else {
            let is_late = now.since_ms(job.submitted) >= SEARCH_MS;
            match job.find_until {
                None if !is_late && !is_saturated => {
                    let until = now.plus_ms(FIND_MS);
                    job.find_until = Some(until);
                    job.phase = Phase::Finding;
                    self.deadlines.set(Timer::Job(id), until);
                    self.dial_stale(id, out);
                    self.discover(model, out);
                }
                Some(until) if now < until && job.is_hopeful() => {
                    job.phase = Phase::Finding;
                    self.deadlines.set(Timer::Job(id), until);
                }
                None | Some(_) => self.fail(id, Failure::NoProvider(Vec::new()), out),
            }
            return;
        };
        if now.since_ms(job.submitted) >= SEARCH_MS {
            self.fail(id, Failure::NoProvider(Vec::new()), out);
            return;
        }
        if let Some(failure) = self.may_not_spend() {
            self.fail(id, failure, out);
            return;
        }
        // A channel on older terms may be dearer than what its provider asks now.
        if let Some(channel) = self.open_channel_with(best, model, &worst, Some(most), now) {
            self.place(id, channel, now, out);
            return;
        }
        let asked: Vec<NodeId> = usable.into_iter().take(ASKED_MAX).collect();
        let asking = Phase::Asking { waiting: asked.iter().copied().collect(), offers: Vec::new() };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.phase = asking;
        }
        self.deadlines.set(Timer::Job(id), now.plus_ms(ASK_MS));
        let account = self.wallet.account();
        for provider in asked {
            self.send(provider, Message::Ask { job: id, model, account }, out);
        }
    }

    /// Says whether a job was refused for want of a slot by providers of a model whose adverts we hear anyway: looking
    /// for others would find nobody new, and whoever asked wants to know at once.
    fn is_saturated(&self, id: JobId, model: ModelId) -> bool {
        let busy = |gate: &Gate| matches!(gate, Gate::Refused(Refusal::Busy { .. }));
        self.subscribed.contains(&model)
            && self.jobs.get(&id).is_some_and(|job| job.rejected.values().any(busy))
    }

    /// Known providers that are merely not connected are dialled at once; the directory may know more.
    fn dial_stale(&self, id: JobId, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let away = job.considered.iter().filter(|c| c.gate == Some(Gate::Unreachable)).take(ASKED_MAX);
        out.extend(away.map(|c| Effect::Dial(c.provider)));
    }

    /// A connected provider of some models became known: jobs that look for one may go on.
    pub(super) fn on_candidate(&mut self, models: &[ModelId], now: Time) {
        let finding = |job: &Job| matches!(job.phase, Phase::Finding) && models.contains(&job.spec.model);
        let jobs: Vec<JobId> = self.jobs.iter().filter(|(_, job)| finding(job)).map(|(id, _)| *id).collect();
        for id in jobs {
            self.deadlines.set_earlier(Timer::Job(id), now.plus_ms(GATHER_MS));
        }
    }

    pub(super) fn wants_any(&self, models: &[ModelId]) -> bool {
        self.jobs.values().any(|job| matches!(job.phase, Phase::Finding) && models.contains(&job.spec.model))
    }

    pub(super) fn on_offer(
        &mut self,
        from: NodeId,
        id: JobId,
        terms: Verified<Terms>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let serves = self.serves_for(from) == Some(terms.payee_account);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Asking { waiting, offers } = &mut job.phase else { return };
        if !waiting.remove(&from) {
            return;
        }
        let ours = terms.payer_account == self.wallet.account() && terms.model == job.spec.model;
        let theirs = terms.payee == from && terms.is_signed_by(Role::Node, from.into()) && serves;
        let licence = open_licence(job.spec.model, self.domain);
        let worst = terms.price.cost(&job.spec.worst_usage());
        let considered = job.considered.iter_mut().find(|considered| considered.provider == from);
        let advertised = considered.as_ref().map_or(0, |considered| considered.price);
        let most = job.spec.constraints.price_max.unwrap_or(u64::MAX).min(advertised);
        if !ours || !theirs || terms.markup.is_some() || terms.check(&self.config.manifest, licence).is_err()
        {
            job.rejected.insert(from, Gate::BadTerms);
            out.push(Effect::Penalise(from, Offence::WrongSigner));
        } else if let Some(worst) = worst.filter(|worst| *worst <= most) {
            // What is offered counts from here on, not what was advertised.
            if let Some(considered) = considered {
                considered.price = worst;
            }
            offers.push(terms);
        } else {
            job.rejected.insert(from, Gate::Price);
        }
        if waiting.is_empty() {
            self.choose(id, now, out);
        }
    }

    pub(super) fn on_refused(
        &mut self,
        from: NodeId,
        id: JobId,
        refusal: Refusal,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match &mut job.phase {
            Phase::Asking { waiting, .. } if waiting.contains(&from) => {
                waiting.remove(&from);
                job.rejected.insert(from, Gate::Refused(refusal));
                if waiting.is_empty() {
                    self.choose(id, now, out);
                }
            }
            Phase::Placed(placed) if placed.provider == from && placed.accepted.is_none() => {
                let channel = placed.channel;
                if let Refusal::PromptTooLong { tokens, context } = refusal {
                    self.fail(id, Failure::PromptTooLong { tokens, context }, out);
                } else if let Some(channel) = channel.filter(|_| refusal.is_about_channel() && !job.reopened)
                {
                    job.reopened = true;
                    self.leave(id, channel, out);
                    self.seek(id, now, out);
                } else {
                    self.try_next(id, Gate::Refused(refusal), now, out);
                }
            }
            Phase::Finding
            | Phase::Asking { .. }
            | Phase::Opening { .. }
            | Phase::Placed(_)
            | Phase::AtHome { .. } => {}
        }
    }

    /// The connection to a provider is gone: it will not answer what it was asked.
    pub(super) fn fail_asks(&mut self, peer: NodeId, now: Time, out: &mut Vec<Effect>) {
        let mut complete = Vec::new();
        for (id, job) in &mut self.jobs {
            if let Phase::Asking { waiting, .. } = &mut job.phase
                && waiting.remove(&peer)
            {
                job.rejected.insert(peer, Gate::Unreachable);
                if waiting.is_empty() {
                    complete.push(*id);
                }
            }
        }
        for id in complete {
            self.choose(id, now, out);
        }
    }

    pub(super) fn on_send_failed(&mut self, to: NodeId, id: JobId, now: Time, out: &mut Vec<Effect>) {
        self.fail_asks(to, now, out);
        let unanswered = self.jobs.get(&id).is_some_and(|job| {
            matches!(&job.phase, Phase::Placed(p) if p.provider == to && p.accepted.is_none() && p.tokens == 0)
        });
        if unanswered {
            self.router.failed(to, now);
            self.try_next(id, Gate::Unreachable, now, out);
        }
    }

    /// Takes the best of the offers that came.
    fn choose(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Asking { waiting, offers } = &mut job.phase else { return };
        for silent in core::mem::take(waiting) {
            job.rejected.insert(silent, Gate::NoAnswer);
        }
        crate::router::sort(&mut job.considered, job.spec.constraints.sort);
        let best =
            job.considered.iter().find_map(|c| offers.iter().position(|terms| terms.payee == c.provider));
        let best = best.map(|position| offers.swap_remove(position));
        let others: Vec<NodeId> = offers.iter().map(|terms| terms.payee).collect();
        for other in others {
            self.send(other, Message::Cancel { job: id }, out);
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(terms) = best else {
            job.find_until.get_or_insert(now);
            self.seek(id, now, out);
            return;
        };
        job.phase = Phase::Opening { terms, op: None, queried: false };
        self.deadlines.set(Timer::Job(id), now.plus_ms(OPEN_MS));
        self.open(id, now, out);
    }

    /// Gets the chosen provider a channel: none if it asks nothing, one that has room, or a new one.
    fn open(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Opening { terms, op: None, queried } = &mut job.phase else { return };
        let (provider, model, worst) = (terms.payee, job.spec.model, job.spec.worst_usage());
        if terms.price.is_free() {
            let price = terms.price;
            self.submit(id, provider, None, price, now, out);
            return;
        }
        let terms = terms.clone();
        let markup_bps = terms.markup.map_or(0, |markup| markup.bps);
        let fee = self.config.manifest.open_fee;
        let available = self.wallet.balance().available();
        let needed = |cap: u64| with_markup(cap, markup_bps).ok()?.checked_add(fee);
        let least = terms.price.cost(&worst).and_then(|worst| Some((worst, needed(worst)?)));
        if self.wallet.is_idle() && least.is_none_or(|(_, needed)| needed > available) && !*queried {
            // Somebody may just have paid us.
            *queried = true;
            self.query_account(out);
            return;
        }
        let most = terms.price.cost(&worst);
        if let Some(channel) = self.open_channel_with(provider, model, &worst, most, now) {
            self.place(id, channel, now, out);
            return;
        }
        if !self.wallet.is_idle() {
            self.query_account_if_unknown(out);
            return;
        }
        if let Some(failure) = self.cannot_spend() {
            self.fail(id, failure, out);
            return;
        }
        let Some((least, _)) = least.filter(|(_, needed)| *needed <= available) else {
            let needed = least.map_or(u64::MAX, |(_, needed)| needed);
            self.fail(id, Failure::NotEnoughCredits { needed, available }, out);
            return;
        };
        let cap = self.cap_for(least);
        if self.is_device() {
            self.ask_wallet(&terms, cap, now, out);
            return;
        }
        if let Some(op) = self.sign_opening(&terms, cap, now, out)
            && let Some(Phase::Opening { op: signed, .. }) = self.jobs.get_mut(&id).map(|job| &mut job.phase)
        {
            *signed = Some(op);
        }
    }

    /// The wallet is free again, or a channel was opened: jobs that wait for one may go on.
    pub(super) fn resume_openings(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.rotate_if_wanted(now, out);
        self.lend_next(now, out);
        let waiting = |job: &Job| matches!(job.phase, Phase::Opening { op: None, .. });
        let jobs: Vec<JobId> = self.jobs.iter().filter(|(_, job)| waiting(job)).map(|(id, _)| *id).collect();
        for id in jobs {
            self.open(id, now, out);
        }
    }

    /// Hands the job that a channel was opened for to its provider.
    pub(super) fn on_opened(&mut self, op: RecordId, channel: ChannelId, now: Time, out: &mut Vec<Effect>) {
        let waits =
            |job: &Job| matches!(&job.phase, Phase::Opening { op: Some(signed), .. } if *signed == op);
        if let Some(id) = self.jobs.iter().find(|(_, job)| waits(job)).map(|(id, _)| *id) {
            self.place(id, channel, now, out);
        }
    }

    /// Says whether a job waits for a channel that is not signed yet.
    pub(super) fn has_openings_waiting(&self) -> bool {
        self.jobs.values().any(|job| matches!(job.phase, Phase::Opening { op: None, .. }))
    }

    /// Ends the jobs that wait for a channel which nobody will open.
    pub(super) fn fail_openings(&mut self, failure: &Failure, out: &mut Vec<Effect>) {
        let waiting = |job: &Job| matches!(job.phase, Phase::Opening { op: None, .. });
        let jobs: Vec<JobId> = self.jobs.iter().filter(|(_, job)| waiting(job)).map(|(id, _)| *id).collect();
        for id in jobs {
            self.fail(id, failure.clone(), out);
        }
    }

    pub(super) fn on_opening_refused(&mut self, op: RecordId, failure: Failure, out: &mut Vec<Effect>) {
        let waits =
            |job: &Job| matches!(&job.phase, Phase::Opening { op: Some(signed), .. } if *signed == op);
        if let Some(id) = self.jobs.iter().find(|(_, job)| waits(job)).map(|(id, _)| *id) {
            self.fail(id, failure, out);
        }
    }

    fn place(&mut self, id: JobId, channel: ChannelId, now: Time, out: &mut Vec<Effect>) {
        let Some(worst) = self.jobs.get(&id).map(|job| job.spec.worst_usage()) else { return };
        let Some(paying) = self.paying.get_mut(&channel).map(|channel| &mut channel.side) else { return };
        let (provider, price) = (paying.terms.payee, paying.terms.price);
        if paying.reserve(id, worst) {
            self.submit(id, provider, Some(channel), price, now, out);
            self.open_ahead(channel, &worst, now, out);
        } else {
            // Another job took the room between the choice and now.
            self.seek(id, now, out);
        }
    }

    fn submit(
        &mut self,
        id: JobId,
        provider: NodeId,
        channel: Option<ChannelId>,
        price: Price,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let opening = channel.and_then(|channel| self.unconfirmed_opening(channel));
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.phase = Phase::Placed(Placement {
            provider,
            channel,
            price,
            accepted: None,
            tokens: 0,
            first_token: None,
            ended: None,
            finished: None,
            failed: None,
        });
        let mut considered = job.considered.clone();
        for other in &mut considered {
            let gate = job.rejected.get(&other.provider).copied().or(other.gate);
            if other.provider == provider {
                other.gate = None;
                other.price = price.cost(&job.spec.worst_usage()).unwrap_or(u64::MAX);
            } else {
                other.gate = gate.or(Some(Gate::Outbid));
            }
        }
        let spec = job.spec.clone();
        self.deadlines.set(Timer::Job(id), now.plus_ms(ACCEPT_MS));
        out.push(Effect::Attach { job: id, provider });
        self.send(provider, Message::Submit { job: id, spec, channel, opening }, out);
        out.push(Effect::Tell(id, JobEvent::Chosen { provider, considered }));
    }

    /// Gives the job to the next provider: nothing was delivered, so nothing is owed.
    fn try_next(&mut self, id: JobId, gate: Gate, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Placed(placed) = &job.phase else { return };
        let (provider, channel) = (placed.provider, placed.channel);
        job.rejected.insert(provider, gate);
        if let Some(channel) = channel {
            if !matches!(gate, Gate::Refused(_)) {
                self.retire(channel);
            }
            self.release(id, channel);
        }
        let detached = out.len();
        out.push(Effect::Detach(id));
        if self.jobs.get(&id).is_some_and(|job| job.cancelled) {
            self.fail(id, Failure::Cancelled, out);
        } else {
            self.seek(id, now, out);
        }
        if !self.jobs.contains_key(&id) {
            // A job that ended is detached after its owner was told so, and not before.
            out.remove(detached);
        }
    }

    /// Takes a job off a channel that its provider does not accept, for good.
    fn leave(&mut self, id: JobId, channel: ChannelId, out: &mut Vec<Effect>) {
        self.retire(channel);
        self.release(id, channel);
        out.push(Effect::Detach(id));
    }

    /// Uses a channel no more: the two sides may count differently.
    fn retire(&mut self, channel: ChannelId) {
        if let Some(channel) = self.paying.get_mut(&channel) {
            channel.side.retire();
        }
    }

    fn release(&mut self, id: JobId, channel: ChannelId) {
        if let Some(channel) = self.paying.get_mut(&channel) {
            channel.side.release(id);
        }
    }

    pub(super) fn on_accepted(
        &mut self,
        from: NodeId,
        accepted: &Accepted,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let id = accepted.job;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let most = job.spec.tokens_in_max();
        let Phase::Placed(placed) = &mut job.phase else { return };
        if placed.provider != from || placed.accepted.is_some() {
            return;
        }
        if u64::from(accepted.tokens_in) > most {
            out.push(Effect::Penalise(from, Offence::BadCount));
            self.send(from, Message::Cancel { job: id }, out);
            self.try_next(id, Gate::BadTerms, now, out);
            return;
        }
        placed.accepted = Some((accepted.tokens_in, now));
        let (channel, streaming) = (placed.channel, placed.ended.is_none());
        if job.cancelled {
            // The cancellation may have overtaken the job.
            self.send(from, Message::Cancel { job: id }, out);
        } else if streaming {
            // The stream's heartbeat tells whether the provider lives, but not whether it works.
            let considered = job.considered.iter().find(|considered| considered.provider == from);
            let estimate_ms = considered.map_or(0, |considered| considered.estimate_ms).min(ESTIMATE_MS_MAX);
            self.deadlines.set(Timer::Job(id), now.plus_ms(FIRST_TOKEN_MS + estimate_ms));
        }
        out.push(Effect::Tell(id, JobEvent::Accepted { tokens_in: accepted.tokens_in }));
        if let Some(channel) = channel {
            if let Some(channel) = self.paying.get_mut(&channel) {
                channel.side.accepted(id, accepted.tokens_in);
                channel.opening = None;
            }
            self.pay(channel, now, out);
        }
    }

    pub(super) fn on_progress(&mut self, id: JobId, tokens: u32, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Placed(placed) = &mut job.phase else { return };
        let is_news = tokens > placed.tokens;
        placed.tokens = placed.tokens.max(tokens);
        placed.first_token.get_or_insert(now);
        if is_news && placed.is_running() && !job.cancelled {
            self.deadlines.set(Timer::Job(id), now.plus_ms(PROGRESS_MS));
        }
        if let Some(channel) = placed.channel {
            if let Some(channel) = self.paying.get_mut(&channel) {
                channel.side.delivered(id, tokens);
            }
            self.pay(channel, now, out);
        }
    }

    pub(super) fn on_stream_ended(
        &mut self,
        id: JobId,
        tokens: u32,
        digest: Digest,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(Phase::Placed(placed)) = self.jobs.get_mut(&id).map(|job| &mut job.phase) else { return };
        placed.tokens = placed.tokens.max(tokens);
        placed.ended = Some((tokens, digest));
        if let Some(reason) = placed.failed.take() {
            self.settle_by_own_count(id, Failure::EngineFailed(reason), now, out);
            return;
        }
        self.deadlines.set(Timer::Job(id), now.plus_ms(SETTLE_MS));
        self.account_for(id, now, out);
    }

    pub(super) fn on_finished(
        &mut self,
        from: NodeId,
        record: JobRecord,
        jobs: Digest,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let id = record.job;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let most = job.spec.tokens_in_max();
        let Phase::Placed(placed) = &mut job.phase else { return };
        if placed.provider != from || record.usage.tokens_in > most {
            return;
        }
        if placed.accepted.is_none() {
            let tokens_in = u32::try_from(record.usage.tokens_in).unwrap_or(u32::MAX);
            placed.accepted = Some((tokens_in, now));
            out.push(Effect::Tell(id, JobEvent::Accepted { tokens_in }));
        }
        placed.finished = Some((record, jobs));
        self.deadlines.set(Timer::Job(id), now.plus_ms(SETTLE_MS));
        self.account_for(id, now, out);
    }

    /// Closes the books of a job once both its stream and its provider say that it is over.
    fn account_for(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Phase::Placed(placed) = &job.phase else { return };
        let (Some((tokens, digest)), Some((record, jobs))) = (placed.ended, &placed.finished) else { return };
        let tokens_in = placed.accepted.map_or(0, |(tokens_in, _)| u64::from(tokens_in));
        let agreed = record.usage == Usage::of_job(tokens_in, u64::from(tokens)) && record.output == digest;
        let (provider, finish, jobs) = (placed.provider, record.finish, *jobs);
        if !agreed {
            out.push(Effect::Penalise(provider, Offence::BadCount));
            self.settle_by_own_count(
                id,
                Failure::Misbehaved("it counted other tokens than it delivered"),
                now,
                out,
            );
            return;
        }
        if finish == Finish::Lost && tokens == 0 && !job.cancelled {
            self.try_next(id, Gate::Unhealthy, now, out);
            return;
        }
        let ms = placed.first_token.map_or(1, |first| now.since_ms(first));
        self.router.succeeded(provider, u64::from(tokens), ms, now);
        let event = match self.close_books(id, digest, finish, Some(jobs), now, out) {
            account if finish == Finish::Lost => {
                JobEvent::Failed { failure: Failure::ProviderLost(provider), account }
            }
            Some(account) => JobEvent::Done(account),
            None => failed(Failure::ChannelEnded),
        };
        out.push(Effect::Tell(id, event));
        self.forget_job(id, out);
    }

    /// Accounts for what has arrived, without the provider's word, and fails the job.
    fn settle_by_own_count(&mut self, id: JobId, failure: Failure, now: Time, out: &mut Vec<Effect>) {
        let Some(Phase::Placed(placed)) = self.jobs.get(&id).map(|job| &job.phase) else { return };
        let digest = placed.ended.map_or(Digest::ZERO, |(_, digest)| digest);
        self.router.failed(placed.provider, now);
        let account = self.close_books(id, digest, Finish::Lost, None, now, out);
        out.push(Effect::Tell(id, JobEvent::Failed { failure, account }));
        self.forget_job(id, out);
    }

    /// Ends a placed job on its channel, signs the receipt, keeps the record.
    fn close_books(
        &mut self,
        id: JobId,
        output: Digest,
        finish: Finish,
        jobs: Option<Digest>,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Option<JobAccount> {
        let job = self.jobs.get(&id)?;
        let Phase::Placed(placed) = &job.phase else { return None };
        let tokens_in = placed.accepted.map_or(0, |(tokens_in, _)| u64::from(tokens_in));
        let usage = Usage::of_job(tokens_in, u64::from(placed.tokens));
        let record = JobRecord {
            job: id,
            channel: placed.channel,
            provider: placed.provider,
            requester: self.me,
            model: job.spec.model,
            usage,
            price: placed.price,
            start: placed.accepted.map_or(job.submitted, |(_, at)| at),
            end: now,
            input: job.spec.input.digest,
            output,
            finish,
        };
        out.push(Effect::Note(Record::Job(record.clone())));
        let Some(channel) = placed.channel else {
            return Some(JobAccount {
                record,
                payee: None,
                price: 0,
                split: Vec::new(),
                in_channel: 0,
                receipt: None,
            });
        };
        self.bill(id, record, channel, jobs, now, out)
    }

    fn bill(
        &mut self,
        id: JobId,
        record: JobRecord,
        channel: ChannelId,
        jobs: Option<Digest>,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Option<JobAccount> {
        let side = &mut self.paying.get_mut(&channel)?.side;
        let before = side.bill();
        let price = match record.finish {
            Finish::Lost => side.end_lost(id, record.usage)?,
            Finish::Stop | Finish::Length | Finish::Cancelled => side.end(id, record.usage, jobs)?,
        };
        let after = before.saturating_add(price);
        let split = shares(&side.terms, before, after).unwrap_or_default();
        let split = split.into_iter().map(|(line, share)| (line.role, line.account, share)).collect();
        let in_channel =
            i64::try_from(waiting(after)).unwrap_or(0) - i64::try_from(waiting(before)).unwrap_or(0);
        let payee = Some(side.terms.payee_account);
        self.pay(channel, now, out);
        let receipt = self.paying.get(&channel)?.side.head().map(Verified::id);
        Some(JobAccount { record, payee, price, split, in_channel, receipt })
    }

    pub(super) fn on_stream_lost(
        &mut self,
        id: JobId,
        tokens: u32,
        digest: Digest,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        self.on_requester_lost(id, out);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let cancelled = job.cancelled;
        let Phase::Placed(placed) = &mut job.phase else { return };
        let provider = placed.provider;
        placed.tokens = placed.tokens.max(tokens);
        placed.ended = Some((placed.tokens, digest));
        let delivered = placed.tokens > 0;
        if let Some(channel) = placed.channel.and_then(|channel| self.paying.get_mut(&channel)) {
            channel.side.delivered(id, tokens);
        }
        self.router.failed(provider, now);
        let failed = placed.failed.take();
        if delivered || cancelled {
            let failure = match failed {
                Some(reason) => Failure::EngineFailed(reason),
                None if cancelled => Failure::Cancelled,
                None => Failure::ProviderLost(provider),
            };
            self.settle_by_own_count(id, failure, now, out);
        } else {
            self.try_next(id, Gate::Unreachable, now, out);
        }
    }

    pub(super) fn on_failed(
        &mut self,
        from: NodeId,
        id: JobId,
        tokens_out: u32,
        reason: String,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(Phase::Placed(placed)) = self.jobs.get_mut(&id).map(|job| &mut job.phase) else { return };
        if placed.provider != from {
            return;
        }
        let reason = reason.chars().take(REASON_CHARS_MAX).collect();
        if tokens_out == 0 && placed.tokens == 0 {
            self.router.failed(from, now);
            self.try_next(id, Gate::Unhealthy, now, out);
        } else if placed.ended.is_some() {
            self.settle_by_own_count(id, Failure::EngineFailed(reason), now, out);
        } else {
            // Tokens may still be on their way; what was delivered is known at the stream's end.
            placed.failed = Some(reason);
            self.deadlines.set(Timer::Job(id), now.plus_ms(SETTLE_MS));
        }
    }

    pub(super) fn on_cancelled(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.cancelled = true;
        match &job.phase {
            Phase::Placed(placed) => {
                let provider = placed.provider;
                self.deadlines.set(Timer::Job(id), now.plus_ms(SETTLE_MS));
                self.send(provider, Message::Cancel { job: id }, out);
            }
            Phase::AtHome { .. } => out.push(Effect::Abort(id)),
            Phase::Asking { waiting, offers } => {
                let holding = waiting.iter().copied().chain(offers.iter().map(|terms| terms.payee));
                for provider in holding.collect::<Vec<_>>() {
                    self.send(provider, Message::Cancel { job: id }, out);
                }
                self.fail(id, Failure::Cancelled, out);
            }
            Phase::Finding | Phase::Opening { .. } => self.fail(id, Failure::Cancelled, out),
        }
    }

    pub(super) fn on_job_due(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        match &job.phase {
            Phase::Finding => self.seek(id, now, out),
            Phase::Asking { .. } => self.choose(id, now, out),
            Phase::Opening { .. } => self.fail(id, Failure::IssuerUnreachable, out),
            Phase::Placed(placed) if placed.accepted.is_none() && placed.tokens == 0 => {
                let provider = placed.provider;
                self.router.failed(provider, now);
                self.send(provider, Message::Cancel { job: id }, out);
                self.try_next(id, Gate::NoAnswer, now, out);
            }
            Phase::Placed(placed) if placed.is_running() && !job.cancelled => {
                let provider = placed.provider;
                self.send(provider, Message::Cancel { job: id }, out);
                self.settle_by_own_count(id, Failure::TimedOut, now, out);
            }
            Phase::Placed(placed) => {
                let failure = match &placed.failed {
                    Some(reason) => Failure::EngineFailed(reason.clone()),
                    None if job.cancelled => Failure::Cancelled,
                    None => Failure::ProviderLost(placed.provider),
                };
                self.settle_by_own_count(id, failure, now, out);
            }
            Phase::AtHome { .. } => {}
        }
    }

    /// Our own engine has counted the prompt of a job of ours.
    pub(super) fn on_prepared_at_home(&mut self, id: JobId, tokens_in: u32, out: &mut Vec<Effect>) {
        if let Some(Phase::AtHome { tokens_in: counted, .. }) =
            self.jobs.get_mut(&id).map(|job| &mut job.phase)
        {
            *counted = tokens_in;
            out.push(Effect::Tell(id, JobEvent::Accepted { tokens_in }));
        }
    }

    /// Our own engine is done with a job of ours.
    pub(super) fn on_done_at_home(
        &mut self,
        id: JobId,
        result: Result<(u32, Digest, Finish), Failure>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Phase::AtHome { tokens_in, start } = job.phase else { return };
        match result {
            Err(failure) => out.push(Effect::Tell(id, failed(failure))),
            Ok((tokens_out, output, finish)) => {
                let (tokens_in, tokens_out) = (u64::from(tokens_in), u64::from(tokens_out));
                let record = JobRecord {
                    job: id,
                    channel: None,
                    provider: self.me,
                    requester: self.me,
                    model: job.spec.model,
                    usage: Usage { calls: 1, tokens_in, tokens_out, compute: 0 },
                    price: Price::default(),
                    start,
                    end: now,
                    input: job.spec.input.digest,
                    output,
                    finish,
                };
                out.push(Effect::Note(Record::Job(record.clone())));
                let account = JobAccount {
                    record,
                    payee: None,
                    price: 0,
                    split: Vec::new(),
                    in_channel: 0,
                    receipt: None,
                };
                out.push(Effect::Tell(id, JobEvent::Done(account)));
            }
        }
        self.forget_job(id, out);
    }

    fn fail(&mut self, id: JobId, failure: Failure, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let unexplained = matches!(failure, Failure::NoProvider(_));
        let failure = if unexplained { Failure::NoProvider(job.explained()) } else { failure };
        if let Phase::Placed(placed) = &job.phase
            && let Some(channel) = placed.channel.and_then(|channel| self.paying.get_mut(&channel))
        {
            channel.side.release(id);
        }
        out.push(Effect::Tell(id, failed(failure)));
        self.forget_job(id, out);
    }

    fn forget_job(&mut self, id: JobId, out: &mut Vec<Effect>) {
        self.jobs.remove(&id);
        self.deadlines.clear(&Timer::Job(id));
        out.push(Effect::Detach(id));
    }

    /// Returns the owner's jobs in flight.
    pub fn jobs(&self) -> impl Iterator<Item = (JobId, JobView)> + '_ {
        self.jobs.iter().map(|(id, job)| (*id, job.view()))
    }
}

/// Most characters of a peer's explanation that are passed on.
const REASON_CHARS_MAX: usize = 200;

impl Job {
    fn explained(&self) -> Vec<Considered> {
        let mut considered = self.considered.clone();
        for provider in &mut considered {
            provider.gate = self.rejected.get(&provider.provider).copied().or(provider.gate);
        }
        considered
    }

    /// Says whether waiting may help: nobody has been asked yet, or a provider is being dialled.
    fn is_hopeful(&self) -> bool {
        let is_dialled =
            |c: &Considered| c.gate == Some(Gate::Unreachable) && !self.rejected.contains_key(&c.provider);
        matches!(self.phase, Phase::Finding) || self.considered.iter().any(is_dialled)
    }

    fn view(&self) -> JobView {
        let (phase, provider, tokens) = match &self.phase {
            Phase::Finding => ("finding", None, 0),
            Phase::Asking { .. } => ("asking", None, 0),
            Phase::Opening { terms, .. } => ("opening", Some(terms.payee), 0),
            Phase::Placed(placed) if placed.accepted.is_none() => ("submitted", Some(placed.provider), 0),
            Phase::Placed(placed) => ("running", Some(placed.provider), placed.tokens),
            Phase::AtHome { .. } => ("running", None, 0),
        };
        JobView { phase, model: self.spec.model, provider, tokens, submitted: self.submitted }
    }
}

fn check(spec: &JobSpec) -> Result<(), &'static str> {
    if spec.max_tokens == 0 {
        return Err("max_tokens must be at least 1");
    }
    if spec.max_tokens > JOB_TOKENS_MAX {
        return Err("max_tokens must be at most 131072");
    }
    if spec.input.bytes > INPUT_BYTES_MAX {
        return Err("the prompt must be at most 8 MiB");
    }
    Ok(())
}

const fn failed(failure: Failure) -> JobEvent {
    JobEvent::Failed { failure, account: None }
}
