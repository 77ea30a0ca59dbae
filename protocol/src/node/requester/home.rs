//! A job that our own engine can serve: it takes no channel and costs nothing.

use alloc::vec::Vec;

use crate::ids::{Digest, JobId};
use crate::job::{Failure, Finish, JobAccount, JobEvent, JobRecord};
use crate::price::{Price, Usage};
use crate::record::Record;
use crate::time::Time;

use super::{Phase, failed};
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

    /// Our own engine is done with a job of ours.
    pub(in crate::node) fn on_done_at_home(
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
}
