//! Set reconciliation: two peers find out which records only one of them holds, without listing the rest.
//!
//! The side that asks names a salt and takes so many coded cells of the other's set, more each time, until its own
//! cells and these tell the difference; then it asks for the ids of the records that it lacks. What this costs depends
//! on the difference alone, not on the sets and not on where in them they differ. The side that answers keeps nothing
//! between messages.
//!
//! The salt is new each time and known to nobody before, so that nobody can make records that hide one another.

mod cells;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::encoding::{DecodeError, decode, encode};
use crate::ids::RecordId;

use cells::{Cell, Name, peel};

/// Bounds one message of a reconciliation, so that it fits a message between peers with what is around it.
pub const RECONCILE_BYTES_MAX: usize = 60 * 1024;

/// Bounds the questions of one reconciliation: as many as the most differences take.
pub const ROUNDS_MAX: u32 = 80;

/// Bounds what one reconciliation may find, so that a peer which names records that nobody has fills no memory.
pub const DIFFERENCES_MAX: usize = 65_536;

/// Cells of the first answer: enough for about ten differences.
const CELLS_FIRST: usize = 16;

/// Most cells of an answer: 12 bytes each.
const CELLS_MAX: usize = 5_000;

/// Most cells in all.
const CELLS_ALL_MAX: usize = 2 * DIFFERENCES_MAX;

/// Most ids of an answer: 32 bytes each.
const IDS_MAX: usize = 1_900;

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
    /// Not an answer to the last question: one to an earlier comparison that came late, or the peer's records changed
    /// since.
    #[error("this answers another question")]
    Mismatch,
    /// The two sets differ by more than is compared, or the peer finds no end.
    #[error("the reconciliation finds no end")]
    Endless,
}

impl From<DecodeError> for ReconcileError {
    fn from(error: DecodeError) -> Self {
        if let DecodeError::TooLong { length, .. } = error {
            Self::TooLong { length }
        } else {
            Self::Malformed
        }
    }
}

/// Makes the names of one comparison; drawn by the side that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salt(pub [u8; 16]);

/// The records that one side holds, each once.
#[derive(Debug, Clone, Default)]
pub struct Set(Vec<RecordId>);

impl FromIterator<RecordId> for Set {
    fn from_iter<I: IntoIterator<Item = RecordId>>(records: I) -> Self {
        let mut records: Vec<RecordId> = records.into_iter().collect();
        records.sort_unstable();
        records.dedup();
        Self(records)
    }
}

impl Set {
    fn named(&self, salt: Salt) -> impl Iterator<Item = (Name, RecordId)> + '_ {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&salt.0);
        self.0.iter().map(move |id| (name_of(&key, id), *id))
    }
}

fn name_of(key: &[u8; 32], id: &RecordId) -> Name {
    let mut name = Name::default();
    name.copy_from_slice(&blake3::keyed_hash(key, &id.0).as_bytes()[..8]);
    name
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Question {
    /// So many cells, from this one on.
    Cells { salt: Salt, first: u32, count: u32 },
    /// The ids of the records with these names.
    Ids { salt: Salt, names: Vec<Name> },
}

/// Says which comparison an answer belongs to: the beginning of its salt.
type Tag = [u8; 4];

impl Salt {
    const fn tag(self) -> Tag {
        let [a, b, c, d, ..] = self.0;
        [a, b, c, d]
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Cells(Tag, Vec<Cell>),
    Ids(Tag, Vec<RecordId>),
}

impl Answer {
    const fn tag(&self) -> Tag {
        match self {
            Self::Cells(tag, _) | Self::Ids(tag, _) => *tag,
        }
    }
}

/// Answers a question about `set`.
///
/// # Errors
/// When the question is too long or none at all.
pub fn answer(set: &Set, question: &[u8]) -> Result<Vec<u8>, ReconcileError> {
    let answered = match decode(question, RECONCILE_BYTES_MAX)? {
        Question::Cells { salt, first, count } => {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let last = usize::try_from(first).unwrap_or(usize::MAX).saturating_add(count);
            if count > CELLS_MAX || last > CELLS_ALL_MAX {
                return Err(ReconcileError::Malformed);
            }
            Answer::Cells(
                salt.tag(),
                cells::cells(set.named(salt).map(|(name, _)| name), first.into(), count),
            )
        }
        Question::Ids { salt, names } => {
            if names.len() > IDS_MAX {
                return Err(ReconcileError::Malformed);
            }
            let names: BTreeSet<Name> = names.into_iter().collect();
            let wanted = set.named(salt).filter(|(name, _)| names.contains(name));
            Answer::Ids(salt.tag(), wanted.map(|(_, id)| id).take(IDS_MAX).collect())
        }
    };
    Ok(encode(&answered))
}

/// The side that asks.
#[derive(Debug)]
pub struct Session {
    salt: Salt,
    set: Set,
    rounds: u32,
    /// What the other's cells and ours do not share.
    cells: Vec<Cell>,
    /// Records that we lack, whose ids are not known yet.
    nameless: BTreeSet<Name>,
    found: Differences,
    asked: Question,
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
    /// Begins to compare `set` with a peer's; returns the first question too. The peer must not know `salt` before.
    #[must_use]
    pub fn begin(set: Set, salt: Salt) -> (Self, Vec<u8>) {
        let asked = Question::Cells { salt, first: 0, count: counted(CELLS_FIRST) };
        let question = encode(&asked);
        let (cells, nameless, found) = (Vec::new(), BTreeSet::new(), Differences::default());
        (Self { salt, set, rounds: 1, cells, nameless, found, asked }, question)
    }

    /// Takes the peer's answer to the last question.
    ///
    /// # Errors
    /// When it is too long or no answer, or the peer finds no end; the session is then of no more use.
    /// [`ReconcileError::Mismatch`] when it is one to another question; the session still waits for its own.
    pub fn on_answer(&mut self, answer: &[u8]) -> Result<Step, ReconcileError> {
        let answer: Answer = decode(answer, RECONCILE_BYTES_MAX)?;
        if answer.tag() != self.salt.tag() {
            return Err(ReconcileError::Mismatch);
        }
        match (answer, self.asked.clone()) {
            (Answer::Cells(_, theirs), Question::Cells { count, .. }) if theirs.len() == size(count) => {
                self.on_cells(&theirs)
            }
            (Answer::Ids(_, ids), Question::Ids { names, .. }) => self.on_ids(&ids, &names),
            (Answer::Cells(..) | Answer::Ids(..), _) => Err(ReconcileError::Mismatch),
        }
    }

    fn on_cells(&mut self, theirs: &[Cell]) -> Result<Step, ReconcileError> {
        let ours = self.set.named(self.salt).map(|(name, _)| name);
        let mut news = cells::cells(ours, u64::from(counted(self.cells.len())), theirs.len());
        news.iter_mut().zip(theirs).for_each(|(cell, other)| cell.toggle(other));
        self.cells.append(&mut news);
        let Some(mut names) = peel(self.cells.clone()) else { return self.ask_for_more() };
        if names.len() > DIFFERENCES_MAX {
            return Err(ReconcileError::Endless);
        }
        let here = self.set.named(self.salt).filter(|(name, _)| names.remove(name));
        self.found.only_here = here.map(|(_, id)| id).collect();
        self.nameless = names;
        self.ask_for_ids()
    }

    /// Asks for half as many cells again.
    fn ask_for_more(&mut self) -> Result<Step, ReconcileError> {
        let held = self.cells.len();
        let count = held.div_ceil(2).min(CELLS_MAX).min(CELLS_ALL_MAX.saturating_sub(held));
        if count == 0 {
            return Err(ReconcileError::Endless);
        }
        self.ask(Question::Cells { salt: self.salt, first: counted(held), count: counted(count) })
    }

    fn on_ids(&mut self, ids: &[RecordId], names: &[Name]) -> Result<Step, ReconcileError> {
        let given: Set = ids.iter().copied().collect();
        let given: BTreeMap<Name, RecordId> = given.named(self.salt).collect();
        if ids.len() != names.len() || !names.iter().all(|name| given.contains_key(name)) {
            return Err(ReconcileError::Mismatch);
        }
        for (name, id) in given {
            self.nameless.remove(&name);
            self.found.only_there.insert(id);
        }
        self.ask_for_ids()
    }

    fn ask_for_ids(&mut self) -> Result<Step, ReconcileError> {
        let names: Vec<Name> = self.nameless.iter().take(IDS_MAX).copied().collect();
        if names.is_empty() {
            return Ok(Step::Done(core::mem::take(&mut self.found)));
        }
        self.ask(Question::Ids { salt: self.salt, names })
    }

    fn ask(&mut self, question: Question) -> Result<Step, ReconcileError> {
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds > ROUNDS_MAX {
            return Err(ReconcileError::Endless);
        }
        let bytes = encode(&question);
        self.asked = question;
        Ok(Step::Ask(bytes))
    }
}

fn counted(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
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
pub fn exchange(asking: Set, answering: &Set, salt: Salt) -> Result<Exchange, ReconcileError> {
    let (mut session, mut question) = Session::begin(asking, salt);
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

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::ids::Digest;
    use crate::prng::Prng;

    const SALT: Salt = Salt([7; 16]);

    fn record(number: u32) -> RecordId {
        RecordId(Digest::of(&number.to_be_bytes()).0)
    }

    /// Returns the error with which a session ends that is answered like this, if it ends.
    fn end_of(set: Set, mut answer: impl FnMut(&Question) -> Answer) -> Option<ReconcileError> {
        let (mut session, _) = Session::begin(set, SALT);
        (0..=ROUNDS_MAX).find_map(|_| session.on_answer(&encode(&answer(&session.asked.clone()))).err())
    }

    #[test]
    fn a_question_that_is_none_is_refused() {
        let set: Set = (0..100).map(record).collect();

        assert_eq!(answer(&set, &[]), Err(ReconcileError::Malformed));
        assert_eq!(answer(&set, &[2, 0, 0]), Err(ReconcileError::Malformed));
        let length = RECONCILE_BYTES_MAX + 1;
        assert_eq!(answer(&set, &vec![0; length]), Err(ReconcileError::TooLong { length }));
        let many = [(0, CELLS_MAX + 1), (CELLS_ALL_MAX, 1), (u32::MAX as usize, 1)];
        for (first, count) in many.map(|(first, count)| (counted(first), counted(count))) {
            let question = encode(&Question::Cells { salt: SALT, first, count });
            assert_eq!(answer(&set, &question), Err(ReconcileError::Malformed));
        }
        let question = encode(&Question::Ids { salt: SALT, names: vec![[0; 8]; IDS_MAX + 1] });
        assert_eq!(answer(&set, &question), Err(ReconcileError::Malformed));
    }

    #[test]
    fn a_peer_whose_cells_never_end_is_left() {
        let set: Set = (0..1000).map(record).collect();
        let mut noise = Prng::new(1);
        let ended = end_of(set, |asked| {
            let Question::Cells { first, count, .. } = asked else { panic!("noise has no names") };
            let names = core::iter::repeat_with(|| noise.next_u64().to_be_bytes());
            Answer::Cells(SALT.tag(), cells::cells(names.take(2000), u64::from(*first), size(*count)))
        });
        assert_eq!(ended, Some(ReconcileError::Endless));
    }

    #[test]
    fn a_peer_that_claims_too_many_records_is_left() {
        let ended = end_of(Set::default(), |asked| {
            let Question::Cells { first, count, .. } = asked else { panic!("there are too many") };
            let claims: Set = (0..70_000).map(record).collect();
            let names = claims.named(SALT).map(|(name, _)| name);
            Answer::Cells(SALT.tag(), cells::cells(names, u64::from(*first), size(*count)))
        });
        assert_eq!(ended, Some(ReconcileError::Endless));
    }

    #[test]
    fn ids_that_were_not_asked_for_are_no_answer() {
        let theirs: Set = (0..3).map(record).collect();
        for wrong in [vec![], vec![record(0)], vec![record(0), record(1), record(9)], vec![record(0); 3]] {
            let ended = end_of(Set::default(), |asked| match asked {
                Question::Cells { first, count, .. } => {
                    let names = theirs.named(SALT).map(|(name, _)| name);
                    Answer::Cells(SALT.tag(), cells::cells(names, u64::from(*first), size(*count)))
                }
                Question::Ids { .. } => Answer::Ids(SALT.tag(), wrong.clone()),
            });
            assert_eq!(ended, Some(ReconcileError::Mismatch));
        }
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let (mut session, _) = Session::begin(Set::default(), SALT);
        let late = Answer::Cells([8; 4], vec![Cell::default(); CELLS_FIRST]);
        assert_eq!(session.on_answer(&encode(&late)), Err(ReconcileError::Mismatch));
        let fewer = Answer::Cells(SALT.tag(), vec![Cell::default(); CELLS_FIRST - 1]);
        assert_eq!(session.on_answer(&encode(&fewer)), Err(ReconcileError::Mismatch));
        assert_eq!(
            session.on_answer(&encode(&Answer::Ids(SALT.tag(), vec![]))),
            Err(ReconcileError::Mismatch)
        );
        assert_eq!(session.on_answer(&[9]), Err(ReconcileError::Malformed));
        let own = Answer::Cells(SALT.tag(), vec![Cell::default(); CELLS_FIRST]);
        assert_eq!(session.on_answer(&encode(&own)), Ok(Step::Done(Differences::default())));
    }
}
