//! Checks what a journal says of the issuers' books.

use alloc::format;
use alloc::string::ToString;

use crate::books::BooksRecord;
use crate::forward::{Entry, Forward, Happened};
use crate::ledger::checkpoint::{Checkpoint, is_signed_by_quorum};
use crate::ledger::equivocation::Equivocation;
use crate::message::Wire;
use crate::node::are_stated;
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
        if let Err(error) = self.forward.rest() {
            self.problem(error.to_string());
        }
        self.books.forget(checkpoint.epoch.plus(1));
        let is_stated = are_stated(&self.books, checkpoint);
        self.books.end_epoch(checkpoint.epoch);
        if !is_stated {
            let epoch = checkpoint.epoch.0;
            self.problem(format!(
                "the books of the journal are not those of the checkpoint of epoch {epoch}"
            ));
        }
    }

    /// As issuer: takes books that were brought forward; the checkpoint behind them tells whether they are right.
    pub(super) fn forward(&mut self, line: Forward) {
        self.is_issuer = true;
        if self.books.is_one_of_many() {
            return self
                .problem("books brought forward are in the journal of one of several issuers".to_string());
        }
        for entry in &line.entries {
            match entry.clone() {
                Entry::Payout(paid) => self.by_issuer(paid),
                Entry::Admitted { membership, deposit, .. } => {
                    self.by_issuer(membership);
                    self.by_issuer_maybe(deposit);
                }
                Entry::News { what: Happened::Deposit(deposit), .. } => self.by_issuer(deposit),
                Entry::News { what: Happened::Step { op, .. }, .. } => drop(self.verified(op)),
                Entry::Totals(_)
                | Entry::Account(_)
                | Entry::Channel(_)
                | Entry::Due(..)
                | Entry::Booked { .. }
                | Entry::Withdrawal(..)
                | Entry::Ticket { .. }
                | Entry::Told(_) => {}
            }
        }
        match self.forward.take(line) {
            Ok(None) => {}
            Ok(Some(entries)) => {
                self.books = self.books.emptied();
                if entries.iter().any(|entry| self.books.restore(entry).is_err()) {
                    self.problem(
                        "the keys of an account in the books brought forward cannot be read".to_string(),
                    );
                }
                if !self.books.is_conserved() {
                    self.problem("the books brought forward do not add up".to_string());
                }
            }
            Err(error) => self.problem(error.to_string()),
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
