//! Checks what a journal says of the issuers' books.

use alloc::format;
use alloc::string::ToString;

use crate::books::BooksRecord;
use crate::ledger::checkpoint::{Checkpoint, is_signed_by_quorum};
use crate::ledger::equivocation::Equivocation;
use crate::ledger::merkle::Tree;
use crate::message::Wire;
use crate::signed::{Signed, Verified};

use super::Audit;

impl Audit {
    pub(super) fn of_books(&mut self, record: BooksRecord) {
        match record {
            BooksRecord::Checkpoint(checkpoint) => self.checkpoint(checkpoint),
            BooksRecord::Equivocation(proof) => self.equivocation(proof),
            BooksRecord::Finding(finding) => {
                self.findings_seen = self.findings_seen.saturating_add(1);
                self.problem(finding.to_string());
            }
        }
    }

    fn checkpoint(&mut self, checkpoint: Signed<Checkpoint>) {
        let Some(checkpoint) = self.verified(checkpoint) else { return };
        self.checkpoints = self.checkpoints.saturating_add(1);
        let epoch = checkpoint.epoch.0;
        if !is_signed_by_quorum(&checkpoint, &self.manifest) {
            self.problem(format!("the checkpoint of epoch {epoch} is not signed by a quorum of issuers"));
        }
        if let Err(error) = checkpoint.check_totals() {
            self.problem(format!("the checkpoint of epoch {epoch} does not add up: {error}"));
        }
        if self.is_issuer && self.manifest.issuers.len() == 1 {
            self.compare(&checkpoint);
        }
    }

    /// As issuer: compares our checkpoint with the books that the journal leads to.
    fn compare(&mut self, checkpoint: &Verified<Checkpoint>) {
        let snapshot = self.books.snapshot();
        let accounts = Tree::new(snapshot.accounts).map(|tree| tree.root());
        let channels = Tree::new(snapshot.channels).map(|tree| tree.root());
        self.books.end_epoch(checkpoint.epoch);
        if accounts != Ok(checkpoint.accounts) || channels != Ok(checkpoint.channels) {
            let epoch = checkpoint.epoch.0;
            self.problem(format!(
                "the books of the journal are not those of the checkpoint of epoch {epoch}"
            ));
        }
    }

    fn equivocation(&mut self, proof: Equivocation<Wire>) {
        match proof.verify(self.domain, self.scheme) {
            Ok(proof) if proof.culprit(&self.manifest).is_some() => {
                self.equivocations = self.equivocations.saturating_add(1);
                self.signed(2);
            }
            Ok(_) | Err(_) => self.problem("a proof against somebody proves nothing".to_string()),
        }
    }

    /// Adds what was found of the books to the checks.
    pub(super) fn finish_books(&mut self) {
        let (checkpoints, findings, equivocations) =
            (self.checkpoints, self.findings_seen, self.equivocations);
        if checkpoints > 0 || findings > 0 || equivocations > 0 {
            self.findings.checks.push((
                "every checkpoint fits what was known of it".to_string(),
                findings == 0,
                format!(
                    "{checkpoints} checkpoints, {findings} findings, {equivocations} proofs of two records in one place"
                ),
            ));
        }
    }
}
