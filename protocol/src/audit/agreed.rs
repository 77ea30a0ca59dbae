//! Checks what an issuer of several says of checkpoints: its journal must lead to each that it has followed.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::agreeing::{AgreedRecord, names_of};
use crate::ids::{Digest, RecordId};
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::quorum::Fact;
use crate::ledger::settled::Settled;
use crate::manifest::Manifest;
use crate::message::{Checked, Wire};
use crate::signed::Verified;

use super::Audit;

/// What the journal says of agreements so far.
#[derive(Debug)]
pub(super) struct Agreed {
    settled: Settled,
    is_one_of_many: bool,
    names: Vec<Vec<RecordId>>,
    /// The facts of the checkpoints that were prepared since the last one.
    candidates: BTreeMap<Digest, Vec<RecordId>>,
}

impl Agreed {
    pub(super) fn new(manifest: Manifest) -> Self {
        let is_one_of_many = manifest.issuers.len() > 1;
        let settled = Settled::new(manifest);
        Self { settled, is_one_of_many, names: Vec::new(), candidates: BTreeMap::new() }
    }

    /// Takes note of a fact that the books took.
    pub(super) fn took(&mut self, fact: Fact<Checked>, is_taken: bool) {
        if self.is_one_of_many && is_taken {
            self.settled.took(Arc::new(fact));
        }
    }
}

impl Audit {
    pub(super) fn of_agreement(&mut self, record: AgreedRecord) {
        match record {
            AgreedRecord::Taken(fact) => self.fact(fact, true),
            AgreedRecord::Learned(fact) => self.fact(fact, false),
            AgreedRecord::Names(names) => self.agreed.names.push(names),
            AgreedRecord::Candidate(checkpoint) => {
                let names = names_of(core::mem::take(&mut self.agreed.names), checkpoint.facts);
                self.agreed.settled.hold(checkpoint.facts, &names);
                self.agreed.candidates.insert(checkpoint.facts, names);
            }
            AgreedRecord::Frozen { channels, .. } => {
                channels.into_iter().for_each(|channel| self.books.pay_no_more(channel));
            }
            AgreedRecord::Balloted { ballot, prepares } => {
                self.verified(ballot);
                prepares.into_iter().for_each(|prepare| drop(self.verified(prepare)));
            }
            AgreedRecord::Signed(checkpoint) => drop(self.verified(checkpoint)),
            AgreedRecord::Adopted(checkpoint) => {
                if let Some(checkpoint) = self.verified(checkpoint) {
                    self.adopted(&checkpoint);
                }
            }
        }
    }

    fn fact(&mut self, fact: Fact<Wire>, is_taken: bool) {
        let Ok(fact) = fact.verify(self.domain, self.scheme) else {
            return self.problem("a fact about the books is not signed as it should be".to_string());
        };
        self.signed(2);
        if !is_taken {
            return self.agreed.settled.learn(Arc::new(fact));
        }
        if let Fact::Redeemed { receipt, claim } = &fact {
            let paid = self.books.redeem_claimed(receipt, claim.as_ref()).map(drop);
            self.book("a redemption", Some(paid));
        }
        self.agreed.took(fact, true);
    }

    /// Follows a checkpoint as the issuer did, and compares what it comes to.
    fn adopted(&mut self, checkpoint: &Verified<Checkpoint>) {
        let names = self.agreed.candidates.remove(&checkpoint.facts).unwrap_or_default();
        let outcome = self.agreed.settled.outcome(checkpoint.epoch, &names).ok();
        match outcome.filter(|outcome| outcome.checkpoint == **checkpoint) {
            Some(outcome) => {
                self.agreed.settled.adopt(checkpoint.id(), &names, outcome, &mut self.books);
                self.agreed.candidates.clear();
            }
            None => {
                let epoch = checkpoint.epoch.0;
                self.problem(format!(
                    "the facts of the journal do not lead to the checkpoint of epoch {epoch}"
                ));
            }
        }
    }
}
