//! Looking for providers of a job's model: those known, those that the directory names.

use alloc::vec::Vec;

use crate::ids::{JobId, ModelId, NodeId};
use crate::job::Failure;
use crate::message::Message;
use crate::router::{Considered, Gate};
use crate::time::Time;

use super::{ASK_MS, ASKED_MAX, FIND_MS, GATHER_MS, Job, Phase, SEARCH_MS};
use crate::node::{Effect, Node, Timer};

impl Node {
    /// Places a job with the best provider known, or looks for one.
    pub(super) fn seek(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(mut ranked) = self.ranked(id, now) else { return };
        let Some(job) = self.jobs.get(&id) else { return };
        for other in ranked.iter_mut().filter(|considered| considered.rank > 0) {
            // Promises have led nowhere: of those that nobody has tried, any may be the one that does the work.
            other.rank = match (job.stalled, job.explores) {
                (true, _) => 2 + self.prng.below(u64::from(u32::MAX)),
                (false, true) => 0,
                (false, false) => other.rank,
            };
        }
        crate::router::sort(&mut ranked, &job.spec.constraints);
        let usable: Vec<NodeId> = ranked.iter().filter(|c| c.gate.is_none()).map(|c| c.provider).collect();
        let spec = job.spec.clone();
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.considered = ranked;
        let most = job.considered.iter().find(|c| c.gate.is_none()).map_or(0, |c| c.price);
        let Some(best) = usable.first().copied() else {
            self.look_further(id, now, out);
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
        if let Some(channel) = self.open_channel_with(best, &spec, Some(most), now) {
            self.place(id, channel, now, out);
            return;
        }
        let asked: Vec<NodeId> = usable.into_iter().take(ASKED_MAX).collect();
        let asking =
            Phase::Asking { waiting: asked.iter().copied().collect(), offers: Vec::new(), late: false };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.phase = asking;
        }
        self.deadlines.set(Timer::Job(id), now.plus_ms(ASK_MS));
        let account = self.wallet.account();
        for provider in asked {
            let ask = Message::Ask { job: id, model: spec.model, account, markup: spec.markup };
            self.send(provider, ask, out);
        }
    }

    /// Returns the providers of a job's model, without those that have been passed over for it.
    fn ranked(&self, id: JobId, now: Time) -> Option<Vec<Considered>> {
        let job = self.jobs.get(&id)?;
        let mut ranked = self.router.rank(&job.spec, self.domain, |node| self.is_connected(node), now);
        for considered in &mut ranked {
            considered.gate = job.rejected.get(&considered.provider).copied().or(considered.gate);
        }
        Some(ranked)
    }

    /// Says whether another provider than the one that has a job could take it, and there is time to ask.
    pub(super) fn has_another(&self, id: JobId, now: Time) -> bool {
        let Some(job) = self.jobs.get(&id) else { return false };
        let Phase::Placed(placed) = &job.phase else { return false };
        let is_other = |c: &Considered| c.gate.is_none() && c.provider != placed.provider;
        let in_time = now.since_ms(job.submitted) < SEARCH_MS;
        in_time && self.ranked(id, now).is_some_and(|ranked| ranked.iter().any(is_other))
    }

    /// No usable provider is known: looks for others, waits for those who are sought, or gives up. A job that was refused
    /// for want of a slot does not wait: whoever asked wants to know at once, and who asks again may find others.
    fn look_further(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let model = job.spec.model;
        let is_late = now.since_ms(job.submitted) >= SEARCH_MS;
        let is_saturated = job.is_refused_as_busy();
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
            None | Some(_) => {
                // Those whose adverts we hear anyway need not be looked for.
                if is_saturated && !self.subscribed.contains(&model) {
                    self.discover(model, out);
                }
                self.fail(id, Failure::NoProvider(Vec::new()), out);
            }
        }
    }

    /// Known providers that are merely not connected are dialled at once; the directory may know more.
    pub(super) fn dial_stale(&self, id: JobId, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let away = job.considered.iter().filter(|c| c.gate == Some(Gate::Unreachable)).take(ASKED_MAX);
        out.extend(away.map(|c| Effect::Dial(c.provider)));
    }

    /// A connected provider of some models became known: jobs that look for one may go on.
    pub(in crate::node) fn on_candidate(&mut self, models: &[ModelId], now: Time) {
        let finding = |job: &Job| matches!(job.phase, Phase::Finding) && models.contains(&job.spec.model);
        let jobs: Vec<JobId> = self.jobs.iter().filter(|(_, job)| finding(job)).map(|(id, _)| *id).collect();
        for id in jobs {
            self.deadlines.set_earlier(Timer::Job(id), now.plus_ms(GATHER_MS));
        }
    }

    pub(in crate::node) fn wants_any(&self, models: &[ModelId]) -> bool {
        self.jobs.values().any(|job| matches!(job.phase, Phase::Finding) && models.contains(&job.spec.model))
    }
}
