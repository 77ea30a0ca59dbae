//! Brings the books of an issuer that is alone forward: finds the checkpoint at which lines can take the place of all
//! before.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::books::BooksRecord;
use crate::forward::Forward;
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::records::Epoch;
use crate::node::{Bookkeeper, is_issuers};
use crate::record::Record;

use super::Policy;

/// What takes the place of an issuer's lines.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// The position of the checkpoint that states the books; every line by which they were computed goes before it. 0 when
    /// none does.
    pub(super) before: u64,
    /// What stands where instead, all in one part of the journal: parts are replaced one by one, the last one first, and
    /// whatever is still whole before these lines is put aside by them.
    pub(super) lines: BTreeMap<u64, Forward>,
}

/// An issuer's books, as the lines surveyed so far lead to them.
#[derive(Debug)]
pub(super) struct Ledger {
    /// None once a line contradicted those before it.
    keeper: Option<Bookkeeper>,
    /// Where in this part lines stand that would go.
    places: Vec<u64>,
    /// The newest checkpoint of this part at which that can be, and of all parts before.
    here: Option<Brought>,
    found: Brought,
    /// The newest epoch of which there was a checkpoint.
    newest: Option<Epoch>,
}

impl Ledger {
    pub(super) fn of(policy: &Policy) -> Option<Self> {
        let is_alone = policy.is_issuer && policy.manifest.issuers.len() == 1;
        is_alone.then(|| Self {
            keeper: Some(Bookkeeper::new(&policy.manifest)),
            places: Vec::new(),
            here: None,
            found: Brought::default(),
            newest: None,
        })
    }

    pub(super) fn take(&mut self, position: u64, record: &Record, policy: &Policy) {
        if let Record::Books(BooksRecord::Checkpoint(checkpoint)) = record
            && let Some((checkpoint, ..)) = checkpoint.peek_in(policy.manifest.domain())
        {
            let follows = self.newest.is_none_or(|newest| newest < checkpoint.epoch);
            if follows && policy.is_past(checkpoint.epoch) {
                self.here = self.bring(position, &checkpoint).or(self.here.take());
            }
            self.newest = self.newest.max(Some(checkpoint.epoch));
        }
        if is_issuers(record) {
            self.places.push(position);
        }
        // What contradicts itself stays whole, for whoever looks into it.
        self.keeper.take_if(|keeper| keeper.take(record).is_err());
    }

    pub(super) fn next_part(&mut self) {
        if let Some(here) = self.here.take() {
            self.found = here;
        }
        self.places.clear();
    }

    pub(super) fn finish(self) -> Brought {
        self.keeper.map_or_else(Brought::default, |_| self.found)
    }

    /// Returns what would take the place of all lines before the checkpoint at `position`, if this part has room for it.
    /// Nothing that the checkpoint does not say takes the place of anything.
    fn bring(&self, position: u64, checkpoint: &Checkpoint) -> Option<Brought> {
        let keeper = self.keeper.as_ref().filter(|keeper| keeper.is_stated(checkpoint))?;
        let lines = keeper.forward();
        let first = self.places.len().checked_sub(lines.len())?;
        let places = self.places.get(first..)?.iter().copied();
        Some(Brought { before: position, lines: places.zip(lines).collect() })
    }
}
