//! A job that a provider has: what arrives, what it says, how it breaks off.

use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::{ChannelId, Digest, JobId, NodeId};
use crate::job::{Failure, JobEvent, JobRecord};
use crate::ledger::records::Accepted;
use crate::message::Message;
use crate::router::Gate;
use crate::time::Time;

use super::{FIRST_TOKEN_MS, PATIENCE_MS, PROGRESS_MS, Phase, REASON_CHARS_MAX, SETTLE_MS};
use crate::node::{Effect, Node, Offence, Timer};

impl Node {
    /// Gives the job to the next provider: nothing was delivered, so nothing is owed.
    pub(super) fn try_next(&mut self, id: JobId, gate: Gate, now: Time, out: &mut Vec<Effect>) {
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

    /// Fails a job whose provider takes back what it began. Tokens have arrived, and may have been paid for: they are
    /// accounted for, whatever it says.
    pub(super) fn disavow(&mut self, id: JobId, how: &'static str, now: Time, out: &mut Vec<Effect>) {
        self.settle_by_own_count(id, Failure::Misbehaved(how), now, out);
    }

    /// Takes a job off a channel that its provider does not accept, for good.
    pub(super) fn leave(&mut self, id: JobId, channel: ChannelId, out: &mut Vec<Effect>) {
        self.retire(channel);
        self.release(id, channel);
        out.push(Effect::Detach(id));
    }

    /// Uses a channel no more: the two sides may count differently.
    pub(super) fn retire(&mut self, channel: ChannelId) {
        if let Some(channel) = self.paying.get_mut(&channel) {
            channel.side.retire();
        }
    }

    pub(super) fn release(&mut self, id: JobId, channel: ChannelId) {
        if let Some(channel) = self.paying.get_mut(&channel) {
            channel.side.release(id);
        }
    }

    pub(in crate::node) fn on_accepted(
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
            let delivered = placed.tokens > 0;
            self.send(from, Message::Cancel { job: id }, out);
            if delivered {
                self.disavow(id, "it counted a longer prompt than it got", now, out);
            } else {
                self.try_next(id, Gate::BadTerms, now, out);
            }
            return;
        }
        placed.accepted = Some((accepted.tokens_in, now));
        let (channel, streaming) = (placed.channel, placed.ended.is_none());
        if job.cancelled {
            // The cancellation may have overtaken the job.
            self.send(from, Message::Cancel { job: id }, out);
        } else if streaming {
            // The stream's heartbeat tells whether the provider lives, but not whether it works.
            let estimate_ms = job.estimate_ms(from);
            self.deadlines.set(Timer::Job(id), now.plus_ms(PATIENCE_MS + estimate_ms));
        }
        out.push(Effect::Tell(id, JobEvent::Accepted { tokens_in: accepted.tokens_in }));
        if let Some(channel) = channel {
            if let Some(channel) = self.paying.get_mut(&channel) {
                channel.side.accepted(id, accepted.tokens_in);
                channel.confirmed = true;
            }
            self.pay(channel, now, out);
        }
    }

    /// A provider took the job and generates nothing: somebody else gets it, if there is anybody. Nothing was delivered, so
    /// nothing is owed.
    pub(super) fn on_stalled(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let may_move = self.has_another(id, now);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let estimate_ms = |provider| job.estimate_ms(provider);
        let Phase::Placed(placed) = &job.phase else { return };
        let (provider, (_, accepted)) = (placed.provider, placed.accepted.unwrap_or((0, now)));
        let until = accepted.plus_ms(FIRST_TOKEN_MS + estimate_ms(provider));
        if may_move {
            job.stalled = true;
            self.router.failed(provider, now);
            self.send(provider, Message::Cancel { job: id }, out);
            self.try_next(id, Gate::NoAnswer, now, out);
        } else if let Phase::Placed(placed) = &mut job.phase {
            placed.waited_for = true;
            self.deadlines.set(Timer::Job(id), until);
        }
    }

    pub(in crate::node) fn on_progress(&mut self, id: JobId, tokens: u32, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Placed(placed) = &mut job.phase else { return };
        let is_news = tokens > placed.tokens;
        placed.tokens = placed.tokens.max(tokens);
        placed.first_token.get_or_insert(now);
        if is_news && placed.is_running() && !job.cancelled {
            self.deadlines.set(Timer::Job(id), now.plus_ms(PROGRESS_MS));
        }
        let (provider, model, channel) = (placed.provider, job.spec.model, placed.channel);
        if is_news && self.router.worked(provider, now) {
            self.on_candidate(&[model], now);
        }
        if let Some(channel) = channel {
            if let Some(channel) = self.paying.get_mut(&channel) {
                channel.side.delivered(id, tokens);
            }
            self.pay(channel, now, out);
        }
    }

    pub(in crate::node) fn on_stream_ended(
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

    pub(in crate::node) fn on_finished(
        &mut self,
        from: NodeId,
        record: JobRecord,
        jobs: Digest,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let id = record.job;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let worst = job.spec.worst();
        let Phase::Placed(placed) = &mut job.phase else { return };
        if placed.provider != from || worst.tokens_in_of(&record.usage) > worst.usage.tokens_in {
            return;
        }
        if placed.accepted.is_none() {
            let tokens_in = u32::try_from(worst.tokens_in_of(&record.usage)).unwrap_or(u32::MAX);
            placed.accepted = Some((tokens_in, now));
            out.push(Effect::Tell(id, JobEvent::Accepted { tokens_in }));
        }
        placed.finished = Some((record, jobs));
        self.deadlines.set(Timer::Job(id), now.plus_ms(SETTLE_MS));
        self.account_for(id, now, out);
    }

    pub(in crate::node) fn on_stream_lost(
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

    pub(in crate::node) fn on_failed(
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
}
