//! How several issuers agree on one checkpoint: rounds with a proposer each, two votes, and a lock between rounds.
//!
//! Decision 0012 has the rules and why they are enough; `protocol/tests/issuers/agreement.rs` searches this very code.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::RecordId;
use crate::keys::PublicKey;
use crate::manifest::{ISSUERS_MAX, Issuer, Manifest};
use crate::mutant;
use crate::signed::{Role, Signable, Verified};
use crate::time::Time;

/// How long the first round lasts, in milliseconds; each later one twice as long.
const ROUND_MS: u64 = 10_000;

/// Rounds last at most this part of an epoch.
const ROUNDS_PER_EPOCH: u64 = 8;

/// An issuer's vote for the checkpoint that follows another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// The checkpoint before; none before the first.
    pub previous: RecordId,
    /// The round.
    pub round: u32,
    /// Which of the two votes of a round it is.
    pub phase: Phase,
    /// The checkpoint voted for.
    pub checkpoint: RecordId,
}

/// The two votes of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// "I have come to the same checkpoint, and have prepared no other in this round."
    Prepare,
    /// "A quorum has prepared it, and I am locked on it."
    Commit,
}

impl Signable for Ballot {
    const TAG: &'static str = "ballot";
    const BYTES_MAX: usize = 128;
}

/// What an issuer is locked on: a quorum has prepared it, so some quorum may have committed it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lock {
    /// The round in which it was prepared.
    pub round: u32,
    /// The checkpoint.
    pub checkpoint: RecordId,
    /// The quorum's votes, which free others from their locks.
    pub prepares: Vec<Verified<Ballot>>,
}

/// Why a vote does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BallotError {
    /// Not signed by the issuer that sent it.
    WrongSigner,
    /// Its sender voted for another checkpoint in the same place.
    Twice,
}

/// The newest that one issuer has said.
#[derive(Debug, Clone, Default)]
struct Heard {
    round: u32,
    prepare: Option<Verified<Ballot>>,
    commit: Option<Verified<Ballot>>,
}

/// The agreement on the checkpoint that follows another one, as one issuer sees it.
#[derive(Debug, Clone)]
pub struct Agreement {
    previous: RecordId,
    /// Turns the order of the proposers, so that not the same issuer begins every time.
    turn: u32,
    round: u32,
    /// When a quorum was first seen in this round or a later one: the round lasts from then on.
    full: Option<Time>,
    lock: Option<Lock>,
    heard: BTreeMap<PublicKey, Heard>,
}

impl Agreement {
    /// Begins the agreement on what follows `previous`.
    #[must_use]
    pub const fn new(previous: RecordId, turn: u32) -> Self {
        Self { previous, turn, round: 0, full: None, lock: None, heard: BTreeMap::new() }
    }

    /// Returns the checkpoint before.
    #[must_use]
    pub const fn previous(&self) -> RecordId {
        self.previous
    }

    /// Returns the round.
    #[must_use]
    pub const fn round(&self) -> u32 {
        self.round
    }

    /// Returns what we are locked on.
    #[must_use]
    pub const fn lock(&self) -> Option<&Lock> {
        self.lock.as_ref()
    }

    /// Returns who proposes in `round`.
    #[must_use]
    pub fn proposer<'a>(&self, round: u32, manifest: &'a Manifest) -> Option<&'a Issuer> {
        let issuers = u64::try_from(manifest.issuers.len()).unwrap_or(1);
        let place = u64::from(self.turn).saturating_add(u64::from(round)).checked_rem(issuers)?;
        manifest.issuers.get(usize::try_from(place).ok()?)
    }

    /// Says whether the round is over. It lasts from when a quorum was seen in it: whoever was alone for a while waits for
    /// the others there, or it would stay ahead of them for ever, each in a round of its own.
    pub fn is_over(&mut self, me: PublicKey, now: Time, manifest: &Manifest) -> bool {
        let is_here = |key| key == me || self.heard.get(&key).is_some_and(|heard| heard.round >= self.round);
        if self.full.is_none() && (manifest.agrees(is_here) || mutant::is_in("rounds-alone")) {
            self.full = Some(now);
        }
        let most = manifest.epoch_ms / ROUNDS_PER_EPOCH;
        let ms = 1_u64.checked_shl(self.round).and_then(|times| ROUND_MS.checked_mul(times));
        self.full.is_some_and(|full| now >= full.plus_ms(ms.unwrap_or(most).min(most)))
    }

    /// Goes to a later round; an earlier one changes nothing.
    pub const fn enter(&mut self, round: u32) {
        if round > self.round {
            self.round = round;
            self.full = None;
        }
    }

    /// Takes note of the round in which an issuer is; returns the round to which we must follow, because at least one
    /// honest issuer is there.
    pub fn is_in(&mut self, key: PublicKey, round: u32, manifest: &Manifest) -> Option<u32> {
        let heard = self.heard.entry(key).or_default();
        heard.round = heard.round.max(round);
        let mut rounds: Vec<u32> = self.heard.values().map(|heard| heard.round).collect();
        rounds.sort_unstable_by_key(|round| core::cmp::Reverse(*round));
        rounds.get(manifest.faults_max()).copied().filter(|round| *round > self.round)
    }

    /// Returns what we have prepared in this round.
    #[must_use]
    pub fn prepared(&self, me: PublicKey) -> Option<RecordId> {
        let prepare = self.heard.get(&me)?.prepare.as_ref()?;
        (prepare.round == self.round).then_some(prepare.checkpoint)
    }

    /// Says whether we may prepare `checkpoint`, which the proposer of our round shows with the `prepares` of an earlier
    /// round, if there are any.
    #[must_use]
    pub fn may_prepare(
        &self,
        me: PublicKey,
        checkpoint: RecordId,
        prepares: &[Verified<Ballot>],
        manifest: &Manifest,
    ) -> bool {
        if self.prepared(me).is_some_and(|prepared| prepared != checkpoint) {
            return false;
        }
        match &self.lock {
            None => true,
            Some(lock) if lock.checkpoint == checkpoint || mutant::is_in("lock-not-kept") => true,
            Some(lock) => self
                .proven(checkpoint, prepares, manifest)
                .is_some_and(|round| round > lock.round && round < self.round),
        }
    }

    /// Says whether `prepares` prove that a quorum prepared `checkpoint`.
    #[must_use]
    pub fn is_proven(
        &self,
        checkpoint: RecordId,
        prepares: &[Verified<Ballot>],
        manifest: &Manifest,
    ) -> bool {
        self.proven(checkpoint, prepares, manifest).is_some()
    }

    /// Returns the round in which `prepares` prove that a quorum prepared `checkpoint`.
    fn proven(
        &self,
        checkpoint: RecordId,
        prepares: &[Verified<Ballot>],
        manifest: &Manifest,
    ) -> Option<u32> {
        let round = prepares.first()?.round;
        let wanted = Ballot { previous: self.previous, round, phase: Phase::Prepare, checkpoint };
        let by = |key| prepares.iter().any(|one| **one == wanted && one.is_signed_by(Role::Issuer, key));
        (prepares.len() <= ISSUERS_MAX && manifest.agrees(by)).then_some(round)
    }

    /// Takes a vote of the issuer with this key, ours too; only the newest of each kind is kept.
    ///
    /// # Errors
    /// When the issuer did not sign it, or has voted for another checkpoint in its place.
    pub fn hear(&mut self, key: PublicKey, ballot: &Verified<Ballot>) -> Result<(), BallotError> {
        if !ballot.is_signed_by(Role::Issuer, key) {
            return Err(BallotError::WrongSigner);
        }
        if ballot.previous != self.previous {
            return Ok(());
        }
        let heard = self.heard.entry(key).or_default();
        let known = match ballot.phase {
            Phase::Prepare => &mut heard.prepare,
            Phase::Commit => &mut heard.commit,
        };
        match known {
            Some(known) if known.round > ballot.round => return Ok(()),
            Some(known) if known.round == ballot.round && known.checkpoint != ballot.checkpoint => {
                return Err(BallotError::Twice);
            }
            Some(_) | None => *known = Some(ballot.clone()),
        }
        heard.round = heard.round.max(ballot.round);
        Ok(())
    }

    /// Returns what a quorum has prepared in our round, we among it, unless we have committed it already.
    #[must_use]
    pub fn to_commit(&self, me: PublicKey, manifest: &Manifest) -> Option<Lock> {
        let (round, checkpoint) = (self.round, self.prepared(me)?);
        let ours = self.heard.get(&me)?.commit.as_ref();
        if ours.is_some_and(|commit| commit.round >= round) {
            return None;
        }
        let is_this = |one: &&Verified<Ballot>| one.round == round && one.checkpoint == checkpoint;
        let prepares: Vec<Verified<Ballot>> =
            self.heard.values().filter_map(|heard| heard.prepare.as_ref()).filter(is_this).cloned().collect();
        let too_few = mutant::is_in("commit-unprepared") && prepares.len() >= 2;
        self.proven(checkpoint, &prepares, manifest).or(too_few.then_some(round))?;
        Some(Lock { round, checkpoint, prepares })
    }

    /// Locks us on what a quorum has prepared.
    pub fn lock_on(&mut self, lock: Lock) {
        self.lock = Some(lock);
    }

    /// Returns the checkpoint that a quorum has committed in one round.
    #[must_use]
    pub fn decided(&self, manifest: &Manifest) -> Option<RecordId> {
        let commits = || self.heard.values().filter_map(|heard| heard.commit.as_ref());
        let is_decided = |one: &&Verified<Ballot>| {
            let same = |other: &Verified<Ballot>| **other == ***one;
            manifest.agrees(|key| commits().any(|other| same(other) && other.is_signed_by(Role::Issuer, key)))
        };
        commits().find(is_decided).map(|one| one.checkpoint)
    }

    /// Returns our newest votes, to be repeated to whoever may have missed them.
    #[must_use]
    pub fn own(&self, me: PublicKey) -> Vec<Verified<Ballot>> {
        let heard = self.heard.get(&me);
        let votes = heard.map(|heard| [heard.prepare.clone(), heard.commit.clone()]);
        votes.into_iter().flatten().flatten().collect()
    }

    /// Takes back a vote of ours from the journal; with a commit, the lock that came with it.
    pub fn restore(&mut self, me: PublicKey, ballot: &Verified<Ballot>, prepares: Vec<Verified<Ballot>>) {
        if ballot.previous != self.previous || self.hear(me, ballot).is_err() {
            return;
        }
        self.round = self.round.max(ballot.round);
        if ballot.phase == Phase::Commit {
            self.lock = Some(Lock { round: ballot.round, checkpoint: ballot.checkpoint, prepares });
        }
    }
}
