//! Range-based set reconciliation: two peers find out which records only one of them holds, without listing the rest.
//!
//! The side that begins sends fingerprints of ranges of its set; the other compares them with its own and answers with
//! finer ones where they differ, until short lists of ids are left. Records are ordered by epoch, then id: what two
//! peers have missed of each other is mostly of the last epochs, hence of a few neighbouring ranges. The side that
//! answers keeps nothing between messages.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use thiserror::Error;

use crate::ids::RecordId;
use crate::ledger::records::Epoch;

/// Bounds one message of a reconciliation, so that it fits a message between peers with what is around it.
pub const RECONCILE_BYTES_MAX: usize = 60 * 1024;

/// Bounds the questions of one reconciliation: 5 halve a million records down to lists, the others carry lists.
pub const ROUNDS_MAX: u32 = 64;

/// Bounds what one reconciliation may find, so that a peer which names records that nobody has fills no memory.
pub const DIFFERENCES_MAX: usize = 65_536;

/// Why a reconciliation cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReconcileError {
    /// Longer than a message may be.
    #[error("{length} bytes are more than a message of a reconciliation may have")]
    TooLong {
        /// Length given.
        length: usize,
    },
    /// Not a message of a reconciliation.
    #[error("this is no message of a reconciliation")]
    Malformed,
    /// The peer names more than the two sets can differ by, or finds no end.
    #[error("the reconciliation finds no end")]
    Endless,
}

/// The records that one side holds, by the epoch in which they were made and their id. The ids must be hashes: ranges are
/// compared by the sums of their ids.
#[derive(Debug, Clone)]
pub struct Set(NegentropyStorageVector);

impl FromIterator<(Epoch, RecordId)> for Set {
    fn from_iter<I: IntoIterator<Item = (Epoch, RecordId)>>(records: I) -> Self {
        let mut storage = NegentropyStorageVector::new();
        for (epoch, id) in records {
            let inserted = storage.insert(u64::from(epoch.0), Id::from_byte_array(id.0));
            inserted.expect("a set takes records until it is sealed");
        }
        storage.seal().expect("a set is sealed once");
        Self(storage)
    }
}

/// Answers a question about `set`.
///
/// # Errors
/// When the question is too long or none at all.
pub fn answer(set: &Set, question: &[u8]) -> Result<Vec<u8>, ReconcileError> {
    check_length(question)?;
    let mut side = Negentropy::borrowed(&set.0, limit()).map_err(|_| ReconcileError::Malformed)?;
    side.reconcile(question).map_err(|_| ReconcileError::Malformed)
}

/// The side that asks.
#[derive(Debug)]
pub struct Session {
    side: Negentropy<'static, NegentropyStorageVector>,
    rounds: u32,
    found: Differences,
}

/// What two sets do not share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// Records that only the side that asks holds.
    pub only_here: BTreeSet<RecordId>,
    /// Records that only the side that answers holds, or says to hold.
    pub only_there: BTreeSet<RecordId>,
}

/// What follows from an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask this next.
    Ask(Vec<u8>),
    /// Nothing is left to ask.
    Done(Differences),
}

impl Session {
    /// Begins to compare `set` with a peer's; returns the first question too.
    ///
    /// # Errors
    /// Never for a set that was collected whole.
    pub fn begin(set: Set) -> Result<(Self, Vec<u8>), ReconcileError> {
        let mut side = Negentropy::owned(set.0, limit()).map_err(|_| ReconcileError::Malformed)?;
        let question = side.initiate().map_err(|_| ReconcileError::Malformed)?;
        Ok((Self { side, rounds: 1, found: Differences::default() }, question))
    }

    /// Takes the peer's answer to the last question.
    ///
    /// # Errors
    /// When it is too long, no answer, or the peer finds no end; the session is then of no more use.
    pub fn on_answer(&mut self, answer: &[u8]) -> Result<Step, ReconcileError> {
        check_length(answer)?;
        let (mut here, mut there) = (Vec::new(), Vec::new());
        let next = self.side.reconcile_with_ids(answer, &mut here, &mut there);
        let next = next.map_err(|_| ReconcileError::Malformed)?;
        self.found.only_here.extend(here.into_iter().map(record_id));
        self.found.only_there.extend(there.into_iter().map(record_id));
        let Some(question) = next else { return Ok(Step::Done(core::mem::take(&mut self.found))) };
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds > ROUNDS_MAX || self.found.only_there.len() > DIFFERENCES_MAX {
            return Err(ReconcileError::Endless);
        }
        Ok(Step::Ask(question))
    }
}

/// What a reconciliation of two sets in one place came to: for tests, and for measuring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What they do not share.
    pub differences: Differences,
    /// Questions asked.
    pub rounds: u32,
    /// Bytes of all questions and answers, without the records.
    pub bytes: u64,
}

/// Reconciles two sets at once.
///
/// # Errors
/// When it needs more rounds, or finds more, than is allowed between peers.
pub fn exchange(asking: Set, answering: &Set) -> Result<Exchange, ReconcileError> {
    let (mut session, mut question) = Session::begin(asking)?;
    let (mut rounds, mut bytes) = (0_u32, 0_u64);
    let counted = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    loop {
        let answered = answer(answering, &question)?;
        rounds = rounds.saturating_add(1);
        bytes = bytes.saturating_add(counted(&question)).saturating_add(counted(&answered));
        match session.on_answer(&answered)? {
            Step::Ask(next) => question = next,
            Step::Done(differences) => return Ok(Exchange { differences, rounds, bytes }),
        }
    }
}

fn limit() -> u64 {
    u64::try_from(RECONCILE_BYTES_MAX).unwrap_or(u64::MAX)
}

const fn check_length(message: &[u8]) -> Result<(), ReconcileError> {
    let length = message.len();
    if length > RECONCILE_BYTES_MAX { Err(ReconcileError::TooLong { length }) } else { Ok(()) }
}

fn record_id(id: Id) -> RecordId {
    RecordId(id.to_bytes())
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::ids::Digest;

    fn record(epoch: u32, number: u32) -> (Epoch, RecordId) {
        (Epoch(epoch), RecordId(Digest::of(&number.to_be_bytes()).0))
    }

    #[test]
    fn a_question_that_is_none_is_refused() {
        let set: Set = (0..100).map(|number| record(0, number)).collect();

        assert_eq!(answer(&set, &[]), Err(ReconcileError::Malformed));
        assert_eq!(answer(&set, &[0x61, 0, 0, 9]), Err(ReconcileError::Malformed));
        let length = RECONCILE_BYTES_MAX + 1;
        assert_eq!(answer(&set, &vec![0x61; length]), Err(ReconcileError::TooLong { length }));
    }

    #[test]
    fn a_peer_that_never_agrees_is_left() {
        let set: Set = (0..1000).map(|number| record(0, number)).collect();
        let (mut session, _) = Session::begin(set).expect("a whole set");
        // One range over everything, with a fingerprint that fits nothing.
        let contrary = [&[0x61, 0, 0, 1][..], &[0xab; 16]].concat();

        let ended = (0..=ROUNDS_MAX).find_map(|_| session.on_answer(&contrary).err());
        assert_eq!(ended, Some(ReconcileError::Endless));
    }

    #[test]
    fn a_peer_that_names_records_without_end_is_left() {
        let (mut session, _) = Session::begin(Set::from_iter([])).expect("a whole set");
        let mut number = 0_u32;
        let mut ended = None;
        for _ in 0..ROUNDS_MAX {
            // 1,200 ids below a bound, then a fingerprint of the rest, so that there is something to ask.
            let mut claims = vec![0x61, 1, 1, 0xff, 2, 0x89, 0x30];
            for _ in 0..1200 {
                number += 1;
                claims.extend(record(0, number).1.0);
            }
            claims.extend([0, 0, 1]);
            claims.extend([0xab; 16]);
            ended = ended.or(session.on_answer(&claims).err());
        }
        assert_eq!(ended, Some(ReconcileError::Endless));
    }
}
