//! What of a channel's redemption counts where one of several issuers judges a step: what can never be undone.
//!
//! What an issuer has paid alone is taken back if a quorum ends the channel below. So before it votes it counts only what
//! a quorum has paid, what a checkpoint states, and ends on which a quorum has agreed. All else, what can be said of a
//! balance included, is as the books have it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{Channel, Held, Issuer, IssuerError, Taking, is_earned};
use crate::ids::{AccountId, ChannelId};
use crate::ledger::money::shares;
use crate::mutant;

/// What was paid and does not count yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Counting {
    /// What a quorum has paid on open channels, if it is more than the last checkpoint states.
    proven: BTreeMap<ChannelId, u64>,
    /// What accounts have got beyond that and what is stated; nobody who has got nothing.
    uncounted: BTreeMap<AccountId, Held>,
}

/// Out of what a step is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purse {
    Cash,
    EarnedAndCash,
}

impl Issuer {
    /// Counts what a quorum has paid on a channel, as far as it is or will be paid here; says whether that is news. It must
    /// be on disk before our word of it leaves. Less than before changes nothing.
    ///
    /// # Errors
    /// [`IssuerError::UnknownChannel`], and when the amount is above the channel's cap.
    pub fn count(&mut self, id: ChannelId, amount: u64) -> Result<bool, IssuerError> {
        let channel = self.channels.get(&id).ok_or(IssuerError::UnknownChannel)?;
        if amount > channel.cap {
            return Err(IssuerError::WrongAmount);
        }
        let known = self.proven_on(id).max(channel.stated);
        if !self.is_one_of_many() || channel.closed || amount <= known {
            return Ok(false);
        }
        let before = self.uncounted_on(id);

        self.counting.proven.insert(id, amount);
        self.recount(id, &before);
        Ok(true)
    }

    /// Takes the same out of our own journal, whatever became of the channel.
    pub fn restore_count(&mut self, id: ChannelId, amount: u64) {
        if !mutant::is_in("counted-forgotten") {
            // A channel that is not there has nothing to count.
            let _ = self.count(id, amount);
        }
    }

    /// Returns how much of what an account can spend does not count yet where a step is judged, in nano-credits.
    #[must_use]
    pub fn uncounted(&self, account: AccountId) -> u64 {
        self.counting.uncounted.get(&account).map_or(0, |held| held.earned.saturating_add(held.cash))
    }

    /// Checks that a step for which we would vote is paid out of what counts.
    pub(super) fn check_counted(
        &self,
        account: AccountId,
        needed: u64,
        purse: Purse,
        taking: Taking,
    ) -> Result<(), IssuerError> {
        let uncounted = self.counting.uncounted.get(&account).copied().unwrap_or_default();
        let balance = self.balance(account);
        let all = balance.available().saturating_sub(self.uncounted(account));
        let available = match purse {
            Purse::EarnedAndCash => all,
            // A channel may have taken what was earned and does not count: then it has cost cash.
            Purse::Cash if mutant::is_in("buckets-apart") => balance.cash.saturating_sub(uncounted.cash),
            Purse::Cash => all.min(balance.cash.saturating_sub(uncounted.cash)),
        };
        if taking != Taking::Judge || needed <= available || mutant::is_in("counts-own-payment") {
            Ok(())
        } else {
            Err(IssuerError::Uncounted { needed, available })
        }
    }

    /// Returns what each account has got of a channel that does not count yet.
    pub(super) fn uncounted_on(&self, id: ChannelId) -> Vec<(AccountId, Held)> {
        let channel = self.channels.get(&id).filter(|channel| !channel.closed && self.is_one_of_many());
        let Some(channel) = channel else { return Vec::new() };
        beyond(channel, self.proven_on(id).max(channel.stated))
    }

    /// Returns the base that a quorum has paid on a channel, as far as that was shown.
    pub(super) fn proven_on(&self, id: ChannelId) -> u64 {
        self.counting.proven.get(&id).copied().unwrap_or(0)
    }

    /// Notes what does not count of a channel after it has changed, in place of what did not count before.
    pub(super) fn recount(&mut self, id: ChannelId, before: &[(AccountId, Held)]) {
        if self.channels.get(&id).is_none_or(|channel| channel.closed) {
            self.counting.proven.remove(&id);
        }
        let after = self.uncounted_on(id);
        // The sums are parts of balances, which fit.
        let sums = &mut self.counting.uncounted;
        for (account, more) in &after {
            let sum = sums.entry(*account).or_default();
            sum.earned = sum.earned.saturating_add(more.earned);
            sum.cash = sum.cash.saturating_add(more.cash);
        }
        for (account, less) in before {
            let sum = sums.entry(*account).or_default();
            sum.earned = sum.earned.saturating_sub(less.earned);
            sum.cash = sum.cash.saturating_sub(less.cash);
            if *sum == Held::default() {
                sums.remove(account);
            }
        }
    }

    /// A checkpoint states all that these books have paid: all of it counts.
    pub(super) fn count_all(&mut self) {
        self.counting = Counting::default();
    }

    /// Takes over from our books before a checkpoint what was proven since.
    pub(super) fn carry_over_proven(&mut self, before: &Self) {
        for (id, amount) in &before.counting.proven {
            self.restore_count(*id, *amount);
        }
    }
}

/// Returns what each account has got of a channel beyond a base of `counted`.
fn beyond(channel: &Channel, counted: u64) -> Vec<(AccountId, Held)> {
    // They were paid, so they fit.
    let shares = shares(&channel.terms, counted.min(channel.redeemed), channel.redeemed).unwrap_or_default();
    let held = shares.into_iter().filter(|(_, share)| *share > 0).map(|(line, share)| {
        let in_bucket = if is_earned(line.role, channel.terms.incentive) {
            Held { earned: share, cash: 0 }
        } else {
            Held { earned: 0, cash: share }
        };
        (line.account, in_bucket)
    });
    held.collect()
}
