//! Prompts that came with jobs of others, until the core takes the job, turns it down, or says nothing for long.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::ids::{JobId, NodeId};

/// Bounds what members have waiting; the core answers them at once, or after one write to the disk.
const MEMBERS_BYTES_MAX: usize = 48 << 20;

/// Bounds what peers have waiting who are not admitted yet: two of the largest prompts may overtake their greeting.
const STRANGERS_BYTES_MAX: usize = 16 << 20;

/// The least that a prompt counts, so that many empty ones are bounded too.
const COST_MIN: usize = 16 << 10;

/// How long the core may keep a job before it decides: a greeting that was overtaken has come by then.
const AGE_MAX_MS: u64 = 30_000;

/// Who sent a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Member,
    Stranger,
}

/// The prompts that wait. A peer's prompt is found under its own name only, so that nobody replaces another's.
#[derive(Debug, Default)]
pub(super) struct Prompts {
    kept: BTreeMap<(NodeId, JobId), Prompt>,
}

#[derive(Debug)]
struct Prompt {
    body: Bytes,
    sender: Sender,
    since_ms: u64,
}

impl Prompt {
    fn cost(&self) -> usize {
        self.body.len().max(COST_MIN)
    }
}

impl Prompts {
    /// Keeps the prompt of a job, in place of an earlier one of the same peer for it; says whether there was room.
    pub(super) fn keep(
        &mut self,
        from: NodeId,
        job: JobId,
        body: Bytes,
        sender: Sender,
        now_ms: u64,
    ) -> bool {
        self.kept.remove(&(from, job));
        let prompt = Prompt { body, sender, since_ms: now_ms };
        let most = match sender {
            Sender::Member => MEMBERS_BYTES_MAX,
            Sender::Stranger => STRANGERS_BYTES_MAX,
        };
        let others = self.kept.values().filter(|other| other.sender == sender);
        let has_room = others.map(Prompt::cost).sum::<usize>() + prompt.cost() <= most;
        if has_room {
            self.kept.insert((from, job), prompt);
        }
        has_room
    }

    /// Hands out the prompt of a job; it is kept no longer.
    pub(super) fn take(&mut self, from: NodeId, job: JobId) -> Option<Bytes> {
        self.kept.remove(&(from, job)).map(|prompt| prompt.body)
    }

    /// Forgets the prompts of jobs about which the core has said nothing.
    pub(super) fn forget_old(&mut self, now_ms: u64) {
        self.kept.retain(|_, prompt| now_ms.saturating_sub(prompt.since_ms) < AGE_MAX_MS);
    }

    /// Forgets what somebody who has left had waiting.
    pub(super) fn forget_peer(&mut self, peer: NodeId) {
        self.kept.retain(|(from, _), _| *from != peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: NodeId = NodeId([1; 32]);
    const BOB: NodeId = NodeId([2; 32]);
    const JOB: JobId = JobId([3; 16]);

    #[test]
    fn a_rival_cannot_replace_a_prompt() {
        let mut prompts = Prompts::default();

        prompts.keep(ALICE, JOB, Bytes::from_static(b"hers"), Sender::Member, 0);
        prompts.keep(BOB, JOB, Bytes::from_static(b"his"), Sender::Member, 0);

        assert_eq!(prompts.take(ALICE, JOB).as_deref(), Some(b"hers".as_slice()));
        assert_eq!(prompts.take(ALICE, JOB), None);
    }

    #[test]
    fn strangers_fill_their_own_room_only_and_lose_it_with_time() {
        let mut prompts = Prompts::default();
        let large = Bytes::from(vec![0; 8 << 20]);
        let stranger = |prompts: &mut Prompts, n: u8, at| {
            prompts.keep(NodeId([n; 32]), JOB, large.clone(), Sender::Stranger, at)
        };

        let kept = (10..100).filter(|n| stranger(&mut prompts, *n, 0)).count();

        assert_eq!(kept, 2);
        assert!(prompts.keep(ALICE, JOB, large.clone(), Sender::Member, 0));
        prompts.forget_old(AGE_MAX_MS);
        assert!(stranger(&mut prompts, 100, AGE_MAX_MS));
    }

    #[test]
    fn empty_prompts_are_bounded_too() {
        let mut prompts = Prompts::default();
        let jobs = (0..u32::MAX).map(|n| {
            let mut job = [0; 16];
            job[..4].copy_from_slice(&n.to_le_bytes());
            JobId(job)
        });

        let kept = jobs.take_while(|job| prompts.keep(BOB, *job, Bytes::new(), Sender::Stranger, 0));

        assert_eq!(kept.take(100_000).count(), STRANGERS_BYTES_MAX / COST_MIN);
    }
}
