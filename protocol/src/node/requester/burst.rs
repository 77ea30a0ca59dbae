//! Jobs that come together: how large a channel for them must be, and how many may be opened for them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::ids::{JobId, ModelId, NodeId};
use crate::ledger::money::with_markup;
use crate::ledger::records::{Markup, Terms};
use crate::node::{Node, Timer};
use crate::price::Usage;
use crate::time::Time;

use super::{Job, Phase};

/// Most channels that are opened to one payee for one model in [`BURST_MS`]: one sized by what is known at first, one for
/// those who came too late to be counted in it, one ahead of the next job. More would be fees for nothing.
pub(in crate::node) const BURST_CHANNELS_MAX: usize = 3;

/// How long openings count as one burst at most; they count no longer than the jobs that they were signed for run, so that
/// quick jobs one after the other never wait for it.
pub(in crate::node) const BURST_MS: u64 = 2_000;

/// An opening that was signed.
#[derive(Debug)]
struct Signed {
    at: Time,
    payee: NodeId,
    model: ModelId,
    markup: Option<Markup>,
    job: JobId,
}

/// The openings of the last moments.
#[derive(Debug, Default)]
pub(in crate::node) struct Burst(Vec<Signed>);

impl Burst {
    /// Notes an opening for `job` that is about to be signed, while these jobs run; returns when it may be, if not now.
    pub(in crate::node) fn note<T>(
        &mut self,
        terms: &Terms,
        job: JobId,
        running: &BTreeMap<JobId, T>,
        now: Time,
    ) -> Result<(), Time> {
        self.0.retain(|signed| now.since_ms(signed.at) < BURST_MS && running.contains_key(&signed.job));
        let key = (terms.payee, terms.model, terms.markup);
        let same = self.0.iter().filter(|signed| (signed.payee, signed.model, signed.markup) == key);
        if same.clone().count() >= BURST_CHANNELS_MAX {
            let first = same.map(|signed| signed.at).min().unwrap_or(now);
            return Err(first.plus_ms(BURST_MS));
        }
        self.0.push(Signed { at: now, payee: terms.payee, model: terms.model, markup: terms.markup, job });
        Ok(())
    }
}

impl Job {
    /// Says whether a channel on these terms is for such a job.
    fn is_paid_on(&self, terms: &Terms) -> bool {
        (self.spec.model, self.spec.markup) == (terms.model, terms.markup)
    }

    /// Says whether the job waits for a channel to this payee.
    fn waits_for(&self, payee: NodeId) -> bool {
        matches!(&self.phase, Phase::Opening { terms, op: None, .. } if terms.payee == payee)
    }

    /// Says whether the job waits for a channel to this payee, or may well do so in a moment.
    fn may_wait_for(&self, payee: NodeId) -> bool {
        match &self.phase {
            Phase::Asking { waiting, offers, late: _ } => {
                waiting.contains(&payee) || offers.iter().any(|terms| terms.payee == payee)
            }
            Phase::Finding | Phase::Opening { .. } | Phase::Placed(_) | Phase::AtHome { .. } => {
                self.waits_for(payee)
            }
        }
    }
}

impl Node {
    /// Says whether a job of ours waits for a channel on such terms: it opens the next one itself, in its size.
    pub(in crate::node) fn has_waiting(&self, terms: &Terms) -> bool {
        self.jobs.values().any(|job| job.is_paid_on(terms) && job.waits_for(terms.payee))
    }

    /// Returns what a channel for job `id` shall hold, whose worst case costs `least`: room for all jobs that wait for
    /// this payee, as far as the account can pay, and for those that may come to it, with half of what there is at most.
    pub(super) fn cap_for_burst(&self, id: JobId, terms: &Terms, least: u64) -> u64 {
        let available = self.wallet.balance().available();
        let waiting = self.room_for(id, terms, available, |job| job.waits_for(terms.payee));
        let likely = self.room_for(id, terms, available / 2, |job| job.may_wait_for(terms.payee));
        self.cap_for(least).max(waiting).max(likely)
    }

    /// Returns the cost of as many of these jobs, `id` first, as `most` pays together.
    fn room_for(&self, id: JobId, terms: &Terms, most: u64, counts: impl Fn(&Job) -> bool) -> u64 {
        let Some(own) = self.jobs.get(&id) else { return 0 };
        let others = self.jobs.iter().filter(|(other, _)| **other != id).map(|(_, job)| job);
        let others = others.filter(|job| job.is_paid_on(terms) && counts(job));
        let (mut sum, mut room) = (own.spec.worst_usage(), 0);
        let mut fits = |usage: &Usage| {
            let cost = self.affordable(terms, usage, most);
            room = cost.unwrap_or(room);
            cost.is_some()
        };
        if !fits(&sum) {
            return 0;
        }
        for job in others {
            let more = sum.plus(&job.spec.worst_usage());
            if !fits(&more) {
                break;
            }
            sum = more;
        }
        room
    }

    /// Returns the cost of `usage`, if a channel for it takes no more than `most` with markup and fee.
    fn affordable(&self, terms: &Terms, usage: &Usage, most: u64) -> Option<u64> {
        let cost = terms.price.cost(usage)?;
        let hold = with_markup(cost, terms.markup.map_or(0, |markup| markup.bps)).ok()?;
        let needed = hold.checked_add(self.config.manifest.open_fee)?;
        (needed <= most).then_some(cost)
    }

    /// Looks again for jobs that wait until another channel may be opened.
    pub(in crate::node) fn reopen_at(&mut self, at: Time) {
        self.deadlines.set_earlier(Timer::Openings, at);
    }
}
