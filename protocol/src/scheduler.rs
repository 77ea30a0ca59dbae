//! Admits work within bounds: a slot or a refusal at once, never a queue without end.

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{JobId, ModelId, NodeId};
use crate::job::too_long;
use crate::mutant;
use crate::time::Time;

/// How long an offer holds its slot.
pub const OFFER_MS: u64 = 5_000;

/// Most slots of a model that one peer holds by asking; its newer ask takes the place of its oldest, so that names of jobs
/// that never come take no more than these.
const HELD_PER_PEER_MAX: usize = 2;

/// Wait suggested to whoever is refused for want of a slot, while no job has been timed yet.
const RETRY_MS_DEFAULT: u64 = 1_000;

/// Why a provider turns work down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Every slot is taken.
    #[error("every slot is taken; try again in {retry_ms} ms")]
    Busy {
        /// Wait until a slot is likely to be free.
        retry_ms: u64,
    },
    /// The model is not served here.
    #[error("the model is not served here")]
    NotServed,
    /// The model is still loading or its engine restarts.
    #[error("the engine is not ready; try again in {retry_ms} ms")]
    NotReady {
        /// Wait until it is likely to be.
        retry_ms: u64,
    },
    /// The prompt leaves no room for an answer.
    #[error("{} has {tokens} tokens, and the model's context is {context}", too_long(*text))]
    PromptTooLong {
        /// Tokens counted.
        tokens: u32,
        /// Tokens that fit.
        context: u32,
        /// Which of several texts it is, the first being 0.
        text: Option<u32>,
    },
    /// The channel is not one that pays here for this model.
    #[error("the payment channel is not valid here")]
    BadChannel,
    /// The channel has no room for the worst case of the job.
    #[error("the payment channel has no room for this job")]
    NoRoom,
    /// Earlier jobs on the channel are not paid.
    #[error("earlier jobs on this channel are not paid")]
    Unpaid,
    /// The request is out of bounds.
    #[error("the request is out of bounds")]
    BadRequest,
    /// The provider stops.
    #[error("the provider is shutting down")]
    Stopping,
}

impl Refusal {
    /// Says whether another channel would help.
    #[must_use]
    pub const fn is_about_channel(&self) -> bool {
        matches!(self, Self::BadChannel | Self::NoRoom | Self::Unpaid)
    }
}

/// The slots of every model served here.
#[derive(Debug, Clone, Default)]
pub struct Scheduler {
    models: BTreeMap<ModelId, Slots>,
}

#[derive(Debug, Clone, Default)]
struct Slots {
    total: u16,
    ready: bool,
    held: BTreeMap<(NodeId, JobId), Time>,
    running: BTreeMap<JobId, Time>,
    /// Smoothed duration of a job.
    duration_ms: Option<u64>,
}

impl Scheduler {
    /// Begins to serve `model` with `slots` jobs at once.
    pub fn serve(&mut self, model: ModelId, slots: u16) {
        let entry = self.models.entry(model).or_default();
        entry.total = slots;
        entry.ready = true;
    }

    /// Stops admitting jobs for `model` until it is served again.
    pub fn pause(&mut self, model: ModelId) {
        if let Some(slots) = self.models.get_mut(&model) {
            slots.ready = false;
        }
    }

    /// Says whether jobs for `model` are admitted.
    #[must_use]
    pub fn is_ready(&self, model: ModelId) -> bool {
        self.models.get(&model).is_some_and(|slots| slots.ready)
    }

    /// Returns the jobs that run or are promised a slot, and the slots.
    #[must_use]
    pub fn load(&self, model: ModelId) -> (u16, u16) {
        let count = |slots: &Slots| u16::try_from(slots.held.len() + slots.running.len()).unwrap_or(u16::MAX);
        self.models.get(&model).map_or((0, 0), |slots| (count(slots).min(slots.total), slots.total))
    }

    /// Holds a slot for a job that `peer` was offered one for.
    ///
    /// # Errors
    /// When there is none.
    pub fn hold(&mut self, peer: NodeId, job: JobId, model: ModelId, now: Time) -> Result<(), Refusal> {
        if let Some(slots) = self.models.get_mut(&model) {
            slots.make_way(peer, job);
        }
        let slots = self.free(peer, job, model, now)?;
        slots.held.insert((peer, job), now.plus_ms(OFFER_MS));
        Ok(())
    }

    /// Takes a slot for a job of `peer`, the held one if there is one.
    ///
    /// # Errors
    /// When there is none.
    pub fn admit(&mut self, peer: NodeId, job: JobId, model: ModelId, now: Time) -> Result<(), Refusal> {
        let slots = self.free(peer, job, model, now)?;
        slots.held.remove(&(peer, job));
        slots.running.insert(job, now);
        Ok(())
    }

    /// Frees the slot of a job that ran; freeing it twice changes nothing.
    pub fn release(&mut self, job: JobId, now: Time) {
        for slots in self.models.values_mut() {
            if let Some(since) = slots.running.remove(&job) {
                let taken = now.since_ms(since);
                slots.duration_ms = Some(slots.duration_ms.map_or(taken, |before| (3 * before + taken) / 4));
            }
        }
    }

    /// Gives back a slot that was held for a job of `peer`; a running job keeps its own, and so does everybody else's.
    pub fn let_go(&mut self, peer: NodeId, job: JobId) {
        for slots in self.models.values_mut() {
            slots.held.remove(&(peer, job));
        }
    }

    /// Forgets the slots that were held for too long.
    pub fn expire_holds(&mut self, now: Time) {
        for slots in self.models.values_mut() {
            slots.held.retain(|_, until| *until > now);
        }
    }

    fn free(&mut self, peer: NodeId, job: JobId, model: ModelId, now: Time) -> Result<&mut Slots, Refusal> {
        let slots = self.models.get_mut(&model).ok_or(Refusal::NotServed)?;
        if !slots.ready {
            return Err(Refusal::NotReady { retry_ms: RETRY_MS_DEFAULT });
        }
        slots.held.retain(|_, until| *until > now);
        let taken = slots.running.len() + slots.held.keys().filter(|held| **held != (peer, job)).count();
        let is_full = taken >= usize::from(slots.total) && !mutant::is_in("slots-unlimited");
        if slots.running.contains_key(&job) || is_full {
            // Of so many jobs that last so long, one ends after that part of it.
            let turn = slots.duration_ms.unwrap_or(RETRY_MS_DEFAULT) / u64::from(slots.total).max(1);
            return Err(Refusal::Busy { retry_ms: turn.max(1) });
        }
        Ok(slots)
    }
}

impl Slots {
    /// Lets go what `peer` has held longest, if it holds as much as it may.
    fn make_way(&mut self, peer: NodeId, job: JobId) {
        let theirs = || self.held.iter().filter(|((holder, held), _)| *holder == peer && *held != job);
        if theirs().count() >= HELD_PER_PEER_MAX
            && let Some(oldest) = theirs().min_by_key(|(_, until)| **until).map(|(held, _)| *held)
        {
            self.held.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelId = ModelId([1; 32]);

    const PEER: NodeId = NodeId([1; 32]);

    fn job(tag: u8) -> JobId {
        JobId([tag; 16])
    }

    #[test]
    fn a_full_scheduler_refuses_and_a_released_slot_is_free_again() {
        let mut scheduler = Scheduler::default();
        scheduler.serve(MODEL, 1);

        assert_eq!(scheduler.admit(PEER, job(1), MODEL, Time(0)), Ok(()));
        assert!(matches!(scheduler.admit(PEER, job(2), MODEL, Time(0)), Err(Refusal::Busy { .. })));
        scheduler.release(job(1), Time(500));
        scheduler.release(job(1), Time(900));
        assert_eq!(scheduler.admit(PEER, job(2), MODEL, Time(600)), Ok(()));
        assert_eq!(scheduler.hold(PEER, job(3), MODEL, Time(600)), Err(Refusal::Busy { retry_ms: 500 }));
    }

    #[test]
    fn an_offer_holds_its_slot_for_its_own_job_and_not_for_ever() {
        let mut scheduler = Scheduler::default();
        scheduler.serve(MODEL, 1);

        assert_eq!(scheduler.hold(PEER, job(1), MODEL, Time(0)), Ok(()));
        assert!(scheduler.hold(PEER, job(2), MODEL, Time(1)).is_err());
        assert_eq!(scheduler.admit(PEER, job(1), MODEL, Time(1)), Ok(()));
        scheduler.release(job(1), Time(2));

        assert_eq!(scheduler.hold(PEER, job(3), MODEL, Time(2)), Ok(()));
        assert_eq!(scheduler.admit(PEER, job(4), MODEL, Time(2 + OFFER_MS)), Ok(()));
    }

    #[test]
    fn a_model_that_is_not_served_or_not_ready_is_refused_by_name() {
        let mut scheduler = Scheduler::default();

        assert_eq!(scheduler.admit(PEER, job(1), MODEL, Time(0)), Err(Refusal::NotServed));
        scheduler.serve(MODEL, 1);
        scheduler.pause(MODEL);
        assert!(matches!(scheduler.admit(PEER, job(1), MODEL, Time(0)), Err(Refusal::NotReady { .. })));
    }

    #[test]
    fn one_peer_holds_two_slots_at_most_and_nobody_else_gives_them_back() {
        let other = NodeId([2; 32]);
        let mut scheduler = Scheduler::default();
        scheduler.serve(MODEL, 3);

        for tag in 0..100 {
            assert_eq!(scheduler.hold(PEER, job(tag), MODEL, Time(u64::from(tag))), Ok(()));
        }
        assert_eq!(scheduler.load(MODEL), (2, 3));
        assert_eq!(scheduler.hold(other, job(200), MODEL, Time(100)), Ok(()));
        scheduler.let_go(PEER, job(200));
        assert_eq!(scheduler.load(MODEL), (3, 3));
        scheduler.let_go(other, job(200));
        assert_eq!(scheduler.load(MODEL), (2, 3));
    }
}
