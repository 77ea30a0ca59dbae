//! Getting the chosen provider a channel with room, and handing it the job.

use alloc::vec::Vec;

use crate::ids::{ChannelId, JobId, NodeId, RecordId};
use crate::job::{Failure, JobEvent};
use crate::ledger::money::with_markup;
use crate::message::Message;
use crate::price::Price;
use crate::router::Gate;
use crate::time::Time;

use super::{ACCEPT_MS, Job, Phase, Placement};
use crate::node::{Effect, Node, Timer};

impl Node {
    /// Gets the chosen provider a channel: none if it asks nothing, one that has room, or a new one.
    pub(super) fn open(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Phase::Opening { terms, op: None, .. } = &job.phase else { return };
        let (provider, spec) = (terms.payee, job.spec.clone());
        let worst = spec.worst_usage();
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
        let most = spec.worst_price(&terms.price);
        if let Some(channel) = self.open_channel_with(provider, &spec, most, now) {
            self.place(id, channel, now, out);
            return;
        }
        let is_idle = self.wallet.is_idle();
        // Somebody may just have paid us.
        let is_poor = is_idle && least.is_none_or(|(_, needed)| needed > available);
        let is_unknown = !is_idle && self.wallet.pending().is_none();
        if (is_poor || is_unknown) && self.is_first_query(id) {
            self.query_account(out);
            return;
        }
        if !is_idle {
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
        let cap = self.cap_for_burst(id, &terms, least);
        if self.is_device() {
            self.ask_wallet(&terms, cap, now, out);
            return;
        }
        if let Some(op) = self.sign_opening(&terms, cap, id, now, out)
            && let Some(Phase::Opening { op: signed, .. }) = self.jobs.get_mut(&id).map(|job| &mut job.phase)
        {
            *signed = Some(op);
        }
    }

    /// Notes that issuers are asked for a job what our account holds; says whether that is the first time. What they answer
    /// comes back to the job, and need not say where the account stands.
    fn is_first_query(&mut self, id: JobId) -> bool {
        let phase = self.jobs.get_mut(&id).map(|job| &mut job.phase);
        let Some(Phase::Opening { queried, .. }) = phase else { return false };
        !core::mem::replace(queried, true)
    }

    /// The wallet is free again, or a channel was opened: jobs that wait for one may go on.
    pub(in crate::node) fn resume_openings(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.rotate_if_wanted(now, out);
        self.lend_next(now, out);
        self.sign_order(now, out);
        let waiting = |job: &Job| matches!(job.phase, Phase::Opening { op: None, .. });
        let jobs: Vec<JobId> = self.jobs.iter().filter(|(_, job)| waiting(job)).map(|(id, _)| *id).collect();
        for id in jobs {
            self.open(id, now, out);
        }
    }

    /// Hands the job that a channel was opened for to its provider.
    pub(in crate::node) fn on_opened(
        &mut self,
        op: RecordId,
        channel: ChannelId,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let waits =
            |job: &Job| matches!(&job.phase, Phase::Opening { op: Some(signed), .. } if *signed == op);
        if let Some(id) = self.jobs.iter().find(|(_, job)| waits(job)).map(|(id, _)| *id) {
            self.place(id, channel, now, out);
        }
    }

    /// Says whether a job waits for a channel that is not signed yet.
    pub(in crate::node) fn has_openings_waiting(&self) -> bool {
        self.jobs.values().any(|job| matches!(job.phase, Phase::Opening { op: None, .. }))
    }

    /// Ends the jobs that wait for a channel which nobody will open.
    pub(in crate::node) fn fail_openings(&mut self, failure: &Failure, out: &mut Vec<Effect>) {
        let waiting = |job: &Job| matches!(job.phase, Phase::Opening { op: None, .. });
        let jobs: Vec<JobId> = self.jobs.iter().filter(|(_, job)| waiting(job)).map(|(id, _)| *id).collect();
        for id in jobs {
            self.fail(id, failure.clone(), out);
        }
    }

    pub(in crate::node) fn on_opening_refused(
        &mut self,
        op: RecordId,
        failure: Failure,
        out: &mut Vec<Effect>,
    ) {
        let waits =
            |job: &Job| matches!(&job.phase, Phase::Opening { op: Some(signed), .. } if *signed == op);
        if let Some(id) = self.jobs.iter().find(|(_, job)| waits(job)).map(|(id, _)| *id) {
            self.fail(id, failure, out);
        }
    }

    pub(super) fn place(&mut self, id: JobId, channel: ChannelId, now: Time, out: &mut Vec<Effect>) {
        let Some(worst) = self.jobs.get(&id).map(|job| job.spec.worst()) else { return };
        let Some(paying) = self.paying.get_mut(&channel).map(|channel| &mut channel.side) else { return };
        let (provider, price) = (paying.terms.payee, paying.terms.price);
        if paying.reserve(id, worst) {
            self.submit(id, provider, Some(channel), price, now, out);
            self.open_ahead(channel, id, now, out);
        } else {
            // Another job took the room between the choice and now.
            self.seek(id, now, out);
        }
    }

    pub(super) fn submit(
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
            waited_for: false,
        });
        let mut considered = job.considered.clone();
        for other in &mut considered {
            let gate = job.rejected.get(&other.provider).copied().or(other.gate);
            if other.provider == provider {
                other.gate = None;
                other.price = job.spec.worst_price(&price).unwrap_or(u64::MAX);
            } else {
                other.gate = gate.or(Some(Gate::Outbid));
            }
        }
        let spec = job.spec.clone();
        let opening_ms = job.opening.take().map_or(0, |since| now.since_ms(since));
        self.deadlines.set(Timer::Job(id), now.plus_ms(ACCEPT_MS));
        out.push(Effect::Attach { job: id, provider });
        self.send(provider, Message::Submit { job: id, spec, channel, opening }, out);
        out.push(Effect::Tell(id, JobEvent::Chosen { provider, considered, opening_ms }));
    }
}
