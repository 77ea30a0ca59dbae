//! A job that our own engine can serve: it takes no channel and costs nothing.

use alloc::vec::Vec;

use crate::ids::{Digest, JobId};
use crate::job::{Failure, Finish, JobAccount, JobEvent, JobRecord};
use crate::price::Price;
use crate::record::Record;
use crate::time::Time;

use super::Phase;
use crate::node::{Effect, Node};

impl Node {
    /// Our own engine has counted the prompt of a job of ours.
    pub(in crate::node) fn on_prepared_at_home(&mut self, id: JobId, tokens_in: u32, out: &mut Vec<Effect>) {
        if let Some(Phase::AtHome { tokens_in: counted, .. }) =
            self.jobs.get_mut(&id).map(|job| &mut job.phase)
        {
            *counted = tokens_in;
            out.push(Effect::Tell(id, JobEvent::Accepted { tokens_in }));
        }
    }

    /// Our own engine is done with a job of ours, or failed at it. What it delivered is accounted for, and costs nothing.
    pub(in crate::node) fn on_done_at_home(
        &mut self,
        id: JobId,
        (tokens_out, output, finish): (u32, Digest, Finish),
        failure: Option<Failure>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Phase::AtHome { tokens_in, start } = job.phase else { return };
        let usage = job.spec.worst().usage_of(u64::from(tokens_in), u64::from(tokens_out));
        let record = JobRecord {
            job: id,
            channel: None,
            provider: self.me,
            requester: self.me,
            model: job.spec.model,
            usage,
            price: Price::default(),
            start,
            end: now,
            input: job.spec.input.digest,
            output,
            finish,
        };
        let account = (failure.is_none() || tokens_out > 0).then(|| {
            out.push(Effect::Note(Record::Job(record.clone())));
            JobAccount {
                record,
                payee: None,
                price: 0,
                ahead: 0,
                split: Vec::new(),
                in_channel: 0,
                receipt: None,
            }
        });
        let event = match (failure, account) {
            (None, Some(account)) => JobEvent::Done(account),
            (failure, account) => {
                JobEvent::Failed { failure: failure.unwrap_or(Failure::ChannelEnded), account }
            }
        };
        out.push(Effect::Tell(id, event));
        self.forget_job(id, out);
    }
}
