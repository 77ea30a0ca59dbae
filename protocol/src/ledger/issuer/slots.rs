//! Steps where several issuers must agree: a lock before the vote, a certificate before the step.

use super::{Issuer, IssuerError, Taking};
use crate::ids::{AccountId, RecordId};
use crate::ledger::quorum::{Certificate, is_agreed};
use crate::ledger::records::{AccountOp, Deposit, Epoch, Terms};
use crate::message::Checked;
use crate::mutant;
use crate::signed::Verified;

impl Issuer {
    /// Says whether other issuers have a say in these books.
    #[must_use]
    pub fn is_one_of_many(&self) -> bool {
        self.manifest.issuers.len() > 1
    }

    /// Locks an account's next slot to a step that all rules permit; locking it to the same step again changes nothing.
    /// The lock must be on disk before the vote for it leaves.
    ///
    /// # Errors
    /// Says which rule the step breaks, or that another step has the slot.
    pub fn lock(
        &mut self,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        now: Epoch,
    ) -> Result<(), IssuerError> {
        self.lock_as(op, terms, now, Taking::Judge)
    }

    /// Locks a slot once more to a step for which our own journal says that we voted in epoch `now`. Rules that came later
    /// do not hold for it.
    ///
    /// # Errors
    /// When it contradicts what came before it.
    pub fn replay_lock(
        &mut self,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        now: Epoch,
    ) -> Result<(), IssuerError> {
        self.lock_as(op, terms, now, Taking::JudgeAgain)
    }

    fn lock_as(
        &mut self,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        now: Epoch,
        taking: Taking,
    ) -> Result<(), IssuerError> {
        match self.locked(op.account) {
            Some(locked) if locked == op.id() => return Ok(()),
            Some(_) if mutant::is_in("vote-twice") => {}
            // What does not fit there is judged as such: it may fit once we have followed the others.
            Some(_) if (op.sequence, op.previous) == self.next_slot(op.account) => {
                return Err(IssuerError::SlotLocked);
            }
            Some(_) | None => {}
        }
        match self.take(op, terms, now, taking) {
            // The vote was given, out of what these books had then.
            Err(IssuerError::NotEnough { .. } | IssuerError::NotEnoughCash { .. })
                if taking == Taking::JudgeAgain => {}
            judged => judged?,
        }
        if self.next_slot(op.account).1 == op.id() {
            return Ok(());
        }

        self.lock_to(op);
        Ok(())
    }

    /// Locks an account's next slot to a step, whatever rules say.
    pub(super) fn lock_to(&mut self, op: &Verified<AccountOp>) {
        self.account_in(op.account).locks.insert(op.sequence, op.id());
    }

    /// Returns the step for which we voted in an account's next slot.
    #[must_use]
    pub fn locked(&self, account: AccountId) -> Option<RecordId> {
        let account = self.accounts.get(&account)?;
        account.locks.get(&account.next).copied()
    }

    /// Carries out a step that a quorum has voted for, whatever we voted for ourselves; says whether it is new. Taking it
    /// again changes nothing. It must be on disk before our word of it leaves.
    ///
    /// # Errors
    /// [`IssuerError::Behind`] when steps or credits that came before it, or room for it, are missing here; otherwise what
    /// is wrong with the certificate.
    pub fn certify(&mut self, certificate: &Certificate<Checked>, now: Epoch) -> Result<bool, IssuerError> {
        let op = &certificate.op;
        if op.sequence < self.next_slot(op.account).0 {
            self.check_votes(certificate)?;
            return Ok(false);
        }
        self.check_votes(certificate)?;
        match self.take(op, certificate.terms.as_ref(), now, Taking::Certified) {
            Err(
                IssuerError::WrongSequence { .. }
                | IssuerError::NotEnough { .. }
                | IssuerError::NotEnoughCash { .. }
                | IssuerError::UnknownAccount
                | IssuerError::Full,
            ) => Err(IssuerError::Behind),
            taken => taken.map(|()| true),
        }
    }

    /// Books credits that a quorum of issuers says have entered; says whether they are new.
    ///
    /// # Errors
    /// When there is no quorum, the amount exceeds 64 bits or the books are full.
    pub fn enter(&mut self, deposit: &Verified<Deposit>) -> Result<bool, IssuerError> {
        if !is_agreed(deposit, &self.manifest) {
            return Err(IssuerError::NoQuorum);
        }
        let known = self.deposits.contains_key(&deposit.reference);
        self.deposit(deposit)?;
        Ok(!known)
    }
}
