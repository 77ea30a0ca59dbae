//! Steps that move cash: payments between accounts, withdrawals, and the step that only fills its position.
//!
//! None of them touches `earned`: what is earned under Exchange can be spent on work, and not be cashed in.

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, Digest, RecordId};
use crate::ledger::records::Epoch;
use crate::mutant;

use super::counting::Purse;
use super::{Balance, Issuer, IssuerError, Taking};

/// Most withdrawals kept. One that was paid makes room for a new one; each costs a fee, and takes at least as much more with
/// it, so filling it is dear.
pub const WITHDRAWALS_MAX: usize = 100_000;

/// Cash that left the network on its owner's word, to be paid out by an issuer's operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// Whose it was.
    pub account: AccountId,
    /// Nano-credits to pay out.
    pub amount: u64,
    /// Digest of the text that says where to.
    pub payout: Digest,
    /// Epoch in which it was taken.
    pub epoch: Epoch,
    /// Digest of the operator's reference, once it was paid.
    pub paid: Option<Digest>,
    /// Whether a checkpoint states it. One that this issuer alone has recorded may be dropped by a checkpoint that it has
    /// not followed yet: it must not be paid. The only issuer's own word settles it.
    pub is_settled: bool,
}

/// The withdrawals of a network.
#[derive(Debug, Clone, Default)]
pub(super) struct Withdrawals {
    requests: BTreeMap<RecordId, Withdrawal>,
    sum: u128,
}

impl Issuer {
    /// Returns all nano-credits that ever left.
    #[must_use]
    pub const fn withdrawn(&self) -> u128 {
        self.withdrawals.sum
    }

    /// Returns the withdrawals, paid and not, by the step that asked for each.
    pub fn withdrawals(&self) -> impl Iterator<Item = (RecordId, &Withdrawal)> + '_ {
        self.withdrawals.requests.iter().map(|(id, withdrawal)| (*id, withdrawal))
    }

    /// Returns a withdrawal.
    #[must_use]
    pub fn withdrawal(&self, step: RecordId) -> Option<&Withdrawal> {
        self.withdrawals.requests.get(&step)
    }

    /// Notes that a withdrawal was paid out; the same reference again changes nothing.
    ///
    /// # Errors
    /// When there is no such withdrawal, or it was paid with another reference.
    pub fn mark_paid(&mut self, step: RecordId, reference: Digest) -> Result<(), IssuerError> {
        let request = self.withdrawals.requests.get_mut(&step).ok_or(IssuerError::UnknownWithdrawal)?;
        match request.paid {
            Some(paid) if paid != reference => Err(IssuerError::OtherReference),
            Some(_) | None => {
                request.paid = Some(reference);
                Ok(())
            }
        }
    }

    /// Moves cash from one account to another; the fee is the payer's.
    pub(super) fn pay(
        &mut self,
        from: AccountId,
        to: AccountId,
        amount: u64,
        taking: Taking,
    ) -> Result<(), IssuerError> {
        if amount == 0 || from == to {
            return Err(IssuerError::NoTransfer);
        }
        let mut part = CashPart::of(self, [from, to, self.manifest.network]);
        part.take(from, (amount, self.manifest.pay_fee), taking)?;
        self.check_counted(from, amount.saturating_add(self.manifest.pay_fee), Purse::Cash, taking)?;
        part.give(to, amount)?;
        part.give(self.manifest.network, self.manifest.pay_fee)?;
        self.check_room([to, self.manifest.network], taking)?;
        if taking.only_judges() {
            return Ok(());
        }

        part.adopt(self, from);
        Ok(())
    }

    /// Takes cash out of the network.
    pub(super) fn withdraw(
        &mut self,
        step: RecordId,
        (account, amount): (AccountId, u64),
        (payout, epoch): (Digest, Epoch),
        taking: Taking,
    ) -> Result<(), IssuerError> {
        if amount == 0 {
            return Err(IssuerError::NoTransfer);
        }
        let least = self.manifest.withdraw_fee;
        if taking.is_first() && amount < least && !mutant::is_in("withdrawals-unjudged") {
            return Err(IssuerError::TooLittle { least });
        }
        let mut part = CashPart::of(self, [account, self.manifest.network, self.manifest.network]);
        part.take(account, (amount, least), taking)?;
        self.check_counted(account, amount.saturating_add(least), Purse::Cash, taking)?;
        part.give(self.manifest.network, least)?;
        let sum = self.withdrawals.sum.checked_add(u128::from(amount)).ok_or(IssuerError::Overflow)?;
        self.check_room([self.manifest.network], taking)?;
        // What a quorum votes for and nobody can take holds its account up.
        if taking.is_first() && !mutant::is_in("withdrawals-unjudged") {
            self.withdrawals.find_room()?;
        }
        if taking.only_judges() {
            return Ok(());
        }
        self.withdrawals.make_room()?;

        part.adopt(self, account);
        self.withdrawals.sum = sum;
        let is_settled = !self.is_one_of_many();
        let request = Withdrawal { account, amount, payout, epoch, paid: None, is_settled };
        self.withdrawals.requests.insert(step, request);
        Ok(())
    }

    /// Takes the fee for a step that does nothing else.
    pub(super) fn fill_slot(&mut self, account: AccountId, taking: Taking) -> Result<(), IssuerError> {
        let fee = self.manifest.pay_fee;
        let mut part = CashPart::of(self, [account, self.manifest.network, self.manifest.network]);
        part.take(account, (0, fee), taking)?;
        self.check_counted(account, fee, Purse::Cash, taking)?;
        part.give(self.manifest.network, fee)?;
        self.check_room([self.manifest.network], taking)?;
        if taking.only_judges() {
            return Ok(());
        }

        part.adopt(self, account);
        Ok(())
    }
}

impl Withdrawals {
    pub(super) fn forget(&mut self) {
        self.requests.clear();
    }

    pub(super) fn drop_request(&mut self, step: RecordId) {
        self.requests.remove(&step);
    }

    /// A checkpoint states all that are here.
    pub(super) fn settle(&mut self) {
        self.requests.values_mut().for_each(|request| request.is_settled = true);
    }

    /// Takes over the requests of the books before, with what was done about them.
    pub(super) fn carry_over(&mut self, before: &Self) {
        for (step, request) in &before.requests {
            let is_settled = self.requests.get(step).is_some_and(|stated| stated.is_settled);
            let is_settled = request.is_settled || is_settled;
            self.requests.insert(*step, Withdrawal { is_settled, ..*request });
        }
    }

    pub(super) const fn restore_sum(&mut self, sum: u128) {
        self.sum = sum;
    }

    pub(super) fn restore(&mut self, step: RecordId, request: Withdrawal) {
        self.requests.insert(step, request);
    }

    /// Returns the request that must go for a new one, if one must.
    fn find_room(&self) -> Result<Option<RecordId>, IssuerError> {
        if self.requests.len() < WITHDRAWALS_MAX {
            return Ok(None);
        }
        let paid = self.requests.iter().find(|(_, request)| request.paid.is_some());
        paid.map(|(id, _)| Some(*id)).ok_or(IssuerError::Full)
    }

    fn make_room(&mut self) -> Result<(), IssuerError> {
        if let Some(paid) = self.find_room()? {
            self.requests.remove(&paid);
        }
        Ok(())
    }
}

/// A copy of the balances that a step can touch, so that it is whole or not at all.
struct CashPart(BTreeMap<AccountId, Balance>);

impl CashPart {
    fn of(books: &Issuer, accounts: [AccountId; 3]) -> Self {
        Self(accounts.into_iter().map(|account| (account, books.balance(account))).collect())
    }

    /// Takes `amount` and `fee` out of an account's cash, and out of what it earned only if a quorum has judged that the
    /// cash is there: books in which a credit and a step came in another order may have it in the other bucket.
    fn take(
        &mut self,
        account: AccountId,
        (amount, fee): (u64, u64),
        taking: Taking,
    ) -> Result<(), IssuerError> {
        let needed = amount.checked_add(fee).ok_or(IssuerError::Overflow)?;
        let balance = self.0.entry(account).or_default();
        let available = balance.cash;
        let from_cash = if taking == Taking::Certified { needed.min(available) } else { needed };
        let lacking = IssuerError::NotEnoughCash { needed, available };
        balance.cash = available.checked_sub(from_cash).ok_or(lacking)?;
        let from_earned = needed.checked_sub(from_cash).ok_or(IssuerError::Overflow)?;
        balance.earned = balance.earned.checked_sub(from_earned).ok_or(lacking)?;
        Ok(())
    }

    fn give(&mut self, account: AccountId, amount: u64) -> Result<(), IssuerError> {
        let balance = self.0.entry(account).or_default();
        balance.cash = balance.cash.checked_add(amount).ok_or(IssuerError::Overflow)?;
        Ok(())
    }

    /// Writes the balances back. Those of others than the step's own account are news to them; its own is counted with
    /// the step.
    fn adopt(self, books: &mut Issuer, own: AccountId) {
        for (id, mut balance) in self.0 {
            let account = books.account_in(id);
            if id != own && balance != account.balance {
                balance.as_of = balance.as_of.saturating_add(1);
            }
            account.balance = balance;
        }
    }
}
