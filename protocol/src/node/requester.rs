//! The requester's side of a job: find, ask, open a channel, submit, pay as it arrives, account.
//!
//! Here are the job and its phases, how it comes and how it ends; each phase has a file.

mod accounting;
mod asking;
mod burst;
mod finding;
mod home;
mod opening;
mod running;

pub(super) use burst::Burst;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use crate::ids::{ChannelId, Digest, JobId, ModelId, NodeId, RecordId};
use crate::job::{Failure, INPUT_BYTES_MAX, JOB_TOKENS_MAX, JobEvent, JobRecord, JobSpec};
use crate::ledger::records::Terms;
use crate::message::Message;
use crate::price::Price;
use crate::router::{Considered, Gate};
use crate::scheduler::Refusal;
use crate::signed::Verified;
use crate::time::Time;

use super::provider::Serving;
use super::{Effect, Node, Timer};

/// Most jobs of the owner in flight.
pub const JOBS_MAX: usize = 256;

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

/// Of so many jobs one goes to whoever promises most, even if others have done jobs for us and it has not.
const EXPLORED: u64 = 8;

/// How long a provider that took a job has for its first token while there is another one, beside the time it is expected
/// to take in all.
const PATIENCE_MS: u64 = 10_000;

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
    /// A provider that never did a job for us may be chosen over those that did.
    explores: bool,
    /// A provider took it and generated nothing.
    stalled: bool,
    /// Since when it waits for a channel, or did.
    opening: Option<Time>,
}

#[derive(Debug)]
enum Phase {
    /// No usable provider is known yet.
    Finding,
    /// Providers were asked for terms; once it is `late`, the first offer is taken.
    Asking { waiting: BTreeSet<NodeId>, offers: Vec<Verified<Terms>>, late: bool },
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
    /// It is waited for longer than for others, because there is no other.
    waited_for: bool,
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
        if let Err(error) = spec.markup.map_or(Ok(()), |markup| self.check_markup(&markup)) {
            out.push(Effect::Tell(job, failed(Failure::BadRequest(error.to_string()))));
            return;
        }
        if let Err(failure) = self.has_room_for(job) {
            out.push(Effect::Tell(job, failed(failure)));
            return;
        }
        let explores = self.prng.below(EXPLORED) == 0;
        let new = |phase, spec| Job {
            spec,
            phase,
            rejected: BTreeMap::new(),
            considered: Vec::new(),
            find_until: None,
            reopened: false,
            cancelled: false,
            submitted: now,
            explores,
            stalled: false,
            opening: None,
        };
        let is_of_kind =
            self.served.get(&spec.model).is_some_and(|(offer, _)| offer.modality == spec.input.modality);
        let may_stay = is_of_kind && spec.constraints.may_stay(self.me);
        if may_stay && self.scheduler.admit(self.me, job, spec.model, now).is_ok() {
            let considered = Vec::from([Considered::ourselves(self.me)]);
            out.push(Effect::Tell(job, JobEvent::Chosen { provider: self.me, considered, opening_ms: 0 }));
            out.push(Effect::Attach { job, provider: self.me });
            let up_to = spec.max_tokens;
            self.jobs.insert(job, new(Phase::AtHome { tokens_in: 0, start: now }, spec.clone()));
            self.serving.insert(job, Serving::at_home(self.me, spec.clone(), now));
            out.push(Effect::Run { job, requester: self.me, spec, up_to });
            return;
        }
        if !self.is_admitted() {
            out.push(Effect::Tell(job, failed(Failure::NotAdmitted)));
            return;
        }
        self.jobs.insert(job, new(Phase::Finding, spec));
        self.seek(job, now, out);
    }

    pub(super) fn spec_of(&self, job: JobId) -> Option<JobSpec> {
        self.jobs.get(&job).map(|job| job.spec.clone())
    }

    /// Says why a job of the owner cannot be taken now, whatever it is.
    fn has_room_for(&self, job: JobId) -> Result<(), Failure> {
        if self.stopping {
            return Err(Failure::NotNow("is stopping"));
        }
        if self.recovery.is_some() {
            return Err(Failure::NotNow("recovers what it lost, and signs nothing before"));
        }
        let is_full = self.jobs.len() >= JOBS_MAX || self.jobs.contains_key(&job);
        if is_full { Err(Failure::TooManyJobs) } else { Ok(()) }
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
            Phase::Asking { waiting, offers, late: _ } => {
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
            Phase::Asking { .. } => self.on_asking_due(id, now, out),
            Phase::Opening { .. } => self.fail(id, self.why_not_opened(), out),
            Phase::Placed(placed) if placed.accepted.is_none() && placed.tokens == 0 => {
                let provider = placed.provider;
                self.router.failed(provider, now);
                self.send(provider, Message::Cancel { job: id }, out);
                self.try_next(id, Gate::NoAnswer, now, out);
            }
            Phase::Placed(placed)
                if placed.is_running() && !job.cancelled && placed.tokens == 0 && !placed.waited_for =>
            {
                self.on_stalled(id, now, out);
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

    /// Returns how long a provider is expected to take in all, in milliseconds.
    fn estimate_ms(&self, provider: NodeId) -> u64 {
        let considered = self.considered.iter().find(|considered| considered.provider == provider);
        considered.map_or(0, |considered| considered.estimate_ms).min(ESTIMATE_MS_MAX)
    }

    fn is_refused_as_busy(&self) -> bool {
        self.rejected.values().any(|gate| matches!(gate, Gate::Refused(Refusal::Busy { .. })))
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
