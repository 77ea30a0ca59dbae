//! Closing the books of a job: the record, the bill, the receipt.

use alloc::vec::Vec;

use crate::ids::{ChannelId, Digest, JobId};
use crate::job::{Failure, Finish, JobAccount, JobEvent, JobRecord};
use crate::ledger::money::{shares, waiting, with_markup};
use crate::model::Modality;
use crate::record::Record;
use crate::router::Gate;
use crate::signed::Verified;
use crate::time::Time;

use super::{Phase, failed};
use crate::node::{Effect, Node, Offence};

impl Node {
    /// Closes the books of a job once both its stream and its provider say that it is over.
    pub(super) fn account_for(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Phase::Placed(placed) = &job.phase else { return };
        let (Some((tokens, digest)), Some((record, jobs))) = (placed.ended, &placed.finished) else { return };
        let tokens_in = placed.accepted.map_or(0, |(tokens_in, _)| u64::from(tokens_in));
        let usage = job.spec.worst().usage_of(tokens_in, u64::from(tokens));
        let agreed = record.usage == usage && record.output == digest;
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
        let is_short = job.spec.input.modality == Modality::Embedding
            && finish != Finish::Lost
            && !job.cancelled
            && tokens < job.spec.max_tokens;
        if is_short {
            out.push(Effect::Penalise(provider, Offence::BadCount));
            self.settle_by_own_count(
                id,
                Failure::Misbehaved("it ended before all vectors were there"),
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
        let makes_tokens = job.spec.input.modality != Modality::Embedding;
        self.router.succeeded(provider, makes_tokens.then_some((u64::from(tokens), ms)), now);
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
    pub(super) fn settle_by_own_count(
        &mut self,
        id: JobId,
        failure: Failure,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(Phase::Placed(placed)) = self.jobs.get(&id).map(|job| &job.phase) else { return };
        let digest = placed.ended.map_or(Digest::ZERO, |(_, digest)| digest);
        self.router.failed(placed.provider, now);
        let account = self.close_books(id, digest, Finish::Lost, None, now, out);
        out.push(Effect::Tell(id, JobEvent::Failed { failure, account }));
        self.forget_job(id, out);
    }

    /// Ends a placed job on its channel, signs the receipt, keeps the record.
    pub(super) fn close_books(
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
        let usage = job.spec.worst().usage_of(tokens_in, u64::from(placed.tokens));
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
                ahead: 0,
                split: Vec::new(),
                in_channel: 0,
                receipt: None,
            });
        };
        self.bill(id, record, channel, jobs, now, out)
    }

    pub(super) fn bill(
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
        let ahead = if record.finish == Finish::Lost { side.ahead(id, &record.usage) } else { 0 };
        let base = match record.finish {
            Finish::Lost => side.end_lost(id, record.usage)?,
            Finish::Stop | Finish::Length | Finish::Cancelled => side.end(id, record.usage, jobs)?,
        };
        let after = before.saturating_add(base);
        let bps = side.terms.markup.map_or(0, |markup| markup.bps);
        let paid = |base: u64| with_markup(base, bps).unwrap_or(u64::MAX);
        let price = paid(after).saturating_sub(paid(before));
        let ahead = paid(after.saturating_add(ahead)).saturating_sub(paid(after));
        let split = shares(&side.terms, before, after).unwrap_or_default();
        let split = split.into_iter().map(|(line, share)| (line.role, line.account, share)).collect();
        let in_channel =
            i64::try_from(waiting(after)).unwrap_or(0) - i64::try_from(waiting(before)).unwrap_or(0);
        let payee = Some(side.terms.payee_account);
        self.pay(channel, now, out);
        let receipt = self.paying.get(&channel)?.side.head().map(Verified::id);
        Some(JobAccount { record, payee, price, ahead, split, in_channel, receipt })
    }
}
