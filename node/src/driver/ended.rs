//! What is remembered of jobs that ended: why their providers were chosen, and what kept those that nobody took.

use std::collections::VecDeque;

use protocol::ids::{JobId, ModelId};
use protocol::router::Considered;

use crate::api::views::{CandidateView, JobView};
use crate::command::JobRequest;
use crate::exit::Failure;

use super::Driver;
use super::jobs::OwnJob;

/// Most jobs that ended whose choice of provider can still be explained.
const ENDED_MAX: usize = 256;

/// A job that ended, newest last.
#[derive(Debug)]
pub(super) struct Ended {
    job: JobId,
    model: String,
    started_ms: u64,
    ended_ms: u64,
    /// Everybody who was considered when it was placed last.
    pub(super) why: Vec<CandidateView>,
    /// Why it came to nothing, where it did.
    failure: Option<Failure>,
    /// Whether something was delivered, so that the ledger has a record of it or gets one in a moment.
    pub(super) accounted: bool,
}

impl Ended {
    /// Shows a job of which the ledger has nothing, because nothing was delivered.
    pub(super) fn view(&self) -> JobView {
        JobView {
            job: self.job.to_string(),
            role: "consumer".to_owned(),
            state: "failed".to_owned(),
            detail: self.failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default(),
            model: self.model.clone(),
            peer: self
                .why
                .iter()
                .find(|candidate| candidate.chosen)
                .map(|one| one.node.clone())
                .unwrap_or_default(),
            started_ms: self.started_ms,
            ended_ms: Some(self.ended_ms),
            why: self.why.clone(),
            ..JobView::default()
        }
    }
}

/// The newest jobs that ended.
#[derive(Debug, Default)]
pub(super) struct Endings(VecDeque<Ended>);

impl Endings {
    pub(super) fn find(&self, job: JobId) -> Option<&Ended> {
        self.0.iter().rev().find(|ended| ended.job == job)
    }

    fn note(&mut self, ended: Ended) {
        self.0.push_back(ended);
        if self.0.len() > ENDED_MAX {
            self.0.pop_front();
        }
    }
}

impl Driver {
    /// Remembers a job that ended.
    pub(super) fn note_ended(&mut self, job: JobId, own: OwnJob, failure: Option<Failure>, accounted: bool) {
        let ended_ms = self.clock.now_ms();
        let OwnJob { request, why, submitted_ms: started_ms, .. } = own;
        let model = request.model.clone();
        self.ended.note(Ended { job, model, started_ms, ended_ms, why, failure, accounted });
    }

    /// Remembers a job that could not be placed.
    pub(super) fn note_unplaced(
        &mut self,
        job: JobId,
        request: &JobRequest,
        why: Vec<CandidateView>,
        failure: &Failure,
    ) {
        let now = self.clock.now_ms();
        let (model, failure) = (request.model.clone(), Some(failure.clone()));
        self.ended.note(Ended { job, model, started_ms: now, ended_ms: now, why, failure, accounted: false });
    }

    /// Returns who was considered for a job of ours, in the words of its client.
    pub(super) fn why(&self, job: JobId, considered: &[Considered]) -> Vec<CandidateView> {
        let mut why: Vec<_> = considered.iter().map(|considered| self.candidate(considered)).collect();
        if let Some(own) = self.jobs.get(&job) {
            self.name_unfit(&own.request, own.model, &mut why);
        }
        why
    }

    /// Returns who would be considered for a job that cannot be placed as it is asked for.
    pub(super) fn unfit(&self, request: &JobRequest, model: ModelId) -> Vec<CandidateView> {
        let Ok((spec, _)) = super::body::describe(request, model) else { return Vec::new() };
        let considered = self.node.quote(&spec, self.now());
        let mut why: Vec<_> = considered.iter().map(|considered| self.candidate(considered)).collect();
        self.name_unfit(request, model, &mut why);
        why
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::FailureKind;

    fn ended(number: u8, failure: Option<Failure>) -> Ended {
        let why = vec![CandidateView {
            node: "aa".to_owned(),
            reason: "region".to_owned(),
            ..CandidateView::default()
        }];
        let job = JobId([number; 16]);
        Ended { job, model: "m".to_owned(), started_ms: 1, ended_ms: 2, why, failure, accounted: false }
    }

    #[test]
    fn a_job_that_nobody_took_is_shown_with_its_reasons_and_the_oldest_make_way() {
        let mut endings = Endings::default();
        endings.note(ended(1, Some(Failure::new(FailureKind::NoProvider, "nobody is there"))));

        let view = endings.find(JobId([1; 16])).expect("kept").view();
        assert_eq!(
            (view.state.as_str(), view.detail.as_str(), view.price.nano),
            ("failed", "nobody is there", 0)
        );
        assert_eq!(view.why[0].reason, "region");
        for _ in 0..ENDED_MAX {
            endings.note(ended(2, None));
        }
        assert!(endings.find(JobId([1; 16])).is_none() && endings.0.len() == ENDED_MAX);
    }
}
