//! Books that several issuers bring to the same state: what a checkpoint resolves, and how an issuer's own books follow.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::{Issuer, IssuerError};
use crate::ids::{AccountId, ChannelId};
use crate::ledger::account::check_signer;
use crate::ledger::quorum::{Certificate, Fact, freed_head};
use crate::ledger::records::{AccountOp, Epoch, Receipt};
use crate::ledger::wallet::FREED_EPOCHS;
use crate::message::Checked;
use crate::mutant;
use crate::signed::Verified;

/// A slot that a checkpoint has freed, because its owner signed two steps for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Freed {
    sequence: u64,
    /// Votes before the checkpoint of this epoch count for nothing in this slot.
    epoch: Epoch,
}

/// What others have our word of on a channel.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Word {
    /// The end that we promised.
    pub(super) ending: Option<u64>,
    /// Base that we have paid.
    paid: u64,
    /// Base that a quorum has paid, if it was shown to us and is more than was stated.
    pub(super) proven: u64,
}

/// Says whether no honest issuer votes for a step in epoch `now` that has not voted for it before.
#[must_use]
pub fn has_lapsed(op: &AccountOp, now: Epoch) -> bool {
    op.epoch.plus(1) < now || mutant::is_in("lapse-early")
}

impl Issuer {
    /// Frees the slot for which an account's owner has signed these two steps: votes before the checkpoint of `epoch` are
    /// void in it. The account has another head from then on, so that none of the steps signed before fits the slot: one of
    /// them may have been recorded by somebody, and voted for again its old and new recordings would come to a quorum.
    ///
    /// # Errors
    /// When they are not two steps of the account's owner for its next slot.
    pub fn free_slot(
        &mut self,
        (first, second): (&Verified<AccountOp>, &Verified<AccountOp>),
        epoch: Epoch,
    ) -> Result<(), IssuerError> {
        let same = (first.account, first.sequence) == (second.account, second.sequence);
        let (next, head) = self.next_slot(first.account);
        let follow = [first, second].iter().all(|op| op.previous == head);
        if !same || first.id() == second.id() || first.sequence != next || !follow {
            return Err(IssuerError::WrongSequence { next });
        }
        for op in [first, second] {
            check_signer(op, self.lineage(op.account))?;
        }
        self.free(first.account, epoch)
    }

    /// Frees the slot of a step for which no honest issuer votes any more, because its epoch was over when that of the
    /// checkpoint of `epoch` began; otherwise the same.
    ///
    /// # Errors
    /// When it is not a step of the account's owner for its next slot, or may still be voted for.
    pub fn free_lapsed(&mut self, op: &Verified<AccountOp>, epoch: Epoch) -> Result<(), IssuerError> {
        let (next, head) = self.next_slot(op.account);
        if (op.sequence, op.previous) != (next, head) {
            return Err(IssuerError::WrongSequence { next });
        }
        if !has_lapsed(op, epoch.plus(1)) {
            return Err(IssuerError::WrongEpoch);
        }
        check_signer(op, self.lineage(op.account))?;
        self.free(op.account, epoch)
    }

    /// Says whether a step may fit its account once we have followed the others: it is for a later slot, or for the next one
    /// behind a head that a checkpoint may leave there.
    #[must_use]
    pub fn may_come_to(&self, op: &AccountOp) -> bool {
        let (next, head) = self.next_slot(op.account);
        let oldest = op.epoch.0.saturating_sub(FREED_EPOCHS);
        let may_follow = || (oldest..=op.epoch.0).any(|epoch| freed_head(head, Epoch(epoch)) == op.previous);
        op.sequence > next || (op.sequence == next && may_follow())
    }

    fn free(&mut self, id: AccountId, epoch: Epoch) -> Result<(), IssuerError> {
        let (next, head) = self.next_slot(id);
        let account = self.accounts.get_mut(&id).ok_or(IssuerError::UnknownAccount)?;

        account.freed = Some(Freed { sequence: next, epoch });
        account.head = Some(if mutant::is_in("freed-head-kept") { head } else { freed_head(head, epoch) });
        account.locks.clear();
        Ok(())
    }

    /// Checks that a step is signed by the key that may sign it, as far as these books know.
    ///
    /// # Errors
    /// Says what is wrong with the key.
    pub fn check_step(&self, op: &Verified<AccountOp>) -> Result<(), IssuerError> {
        Ok(check_signer(op, self.lineage(op.account))?)
    }

    /// Returns books that know this account and nothing else, to try something on it.
    #[must_use]
    pub fn account_alone(&self, account: AccountId) -> Self {
        let mut books = Self::new(self.manifest.clone());
        books.accounts.extend(self.accounts.get(&account).map(|known| (account, known.clone())));
        books
    }

    /// Returns the epoch of the checkpoint before which votes are void in this slot.
    #[must_use]
    pub fn void_until(&self, account: AccountId, sequence: u64) -> Option<Epoch> {
        let freed = self.accounts.get(&account)?.freed?;
        (freed.sequence == sequence).then_some(freed.epoch)
    }

    /// Says whether enough of the votes of a certificate count in its slot.
    pub(super) fn check_votes(&self, certificate: &Certificate<Checked>) -> Result<(), IssuerError> {
        if self.is_void(certificate) {
            Err(IssuerError::WrongEpoch)
        } else {
            certificate.check(&self.manifest)
        }
    }

    /// Says whether a step was certified by votes that are void since its slot was freed. What lies before such a slot is
    /// settled: nobody needs a word on it, and there may be certificates of steps that never came to stand.
    #[must_use]
    pub fn is_void(&self, certificate: &Certificate<Checked>) -> bool {
        let op = &certificate.op;
        let freed = self.accounts.get(&op.account).and_then(|account| account.freed);
        freed.is_some_and(|freed| {
            op.sequence < freed.sequence
                || (op.sequence == freed.sequence
                    && !certificate.has_quorum_after(freed.epoch, &self.manifest))
        })
    }

    /// Forgets the withdrawal of a step of ours that did not come to stand: another one has its slot.
    pub fn drop_withdrawal_of(&mut self, fact: &Fact<Checked>, settled: &Self) {
        if let Fact::Step(certificate) = fact
            && settled.withdrawal(certificate.op.id()).is_none()
        {
            self.withdrawals.drop_request(certificate.op.id());
        }
    }

    /// Ends every channel whose time was over before `epoch`, so that a whole epoch was left for issuers to agree on its
    /// end and to tell each other what they had paid. Returns each with the base paid.
    ///
    /// # Errors
    /// When an amount overflows, which no deposits can come to.
    pub fn resolve(&mut self, epoch: Epoch) -> Result<Vec<(ChannelId, u64)>, IssuerError> {
        let later = self.due.split_off(&(epoch, ChannelId([0; 32])));
        let over = core::mem::replace(&mut self.due, later);
        let mut ended = Vec::new();
        for (_, id) in over {
            let Some(channel) = self.channels.get(&id) else { continue };
            let kept_to = channel
                .kept_to
                .unwrap_or_else(|| channel.expires.plus(self.manifest.grace_epochs).plus(super::KEPT_EPOCHS));
            if channel.closed && kept_to < epoch {
                self.channels.remove(&id);
                continue;
            }
            if !channel.closed {
                let amount = self.end(id, channel.redeemed)?;
                ended.push((id, amount));
            }
            self.due.insert((kept_to.max(epoch), id));
        }
        Ok(ended)
    }

    /// Takes over from our books before a checkpoint what it does not settle: votes for slots that are still open and that
    /// it has not freed, promised ends that are not below what it states, what was done about withdrawals. Balances count on
    /// from where they were, so that whoever was told of the former does not take the new ones for older.
    ///
    /// Of channels that are not in these books it keeps our word on those whose opening is `awaited`.
    pub fn carry_over(&mut self, before: &Self, awaited: &BTreeSet<ChannelId>) {
        for (id, old) in &before.accounts {
            let Some(account) = self.accounts.get_mut(id) else { continue };
            // A slot may be behind a step that cannot be taken for the time being: the vote in it was given all the same.
            let is_open = account.freed == old.freed
                && (account.next == old.next || !mutant::is_in("lock-behind-lost"));
            account.locks = if is_open { old.locks.clone() } else { BTreeMap::new() };
            account.locks = account.locks.split_off(&account.next);
            let same = (account.balance.cash, account.balance.earned, account.balance.held, account.next)
                == (old.balance.cash, old.balance.earned, old.balance.held, old.next);
            let least = old.balance.as_of.saturating_add(u64::from(!same));
            account.balance.as_of = if same { least } else { account.balance.as_of.max(least) };
        }
        for id in before.channels.keys().chain(before.parked.keys()) {
            self.carry_promise(before, *id);
        }
        self.park(before, awaited);
        self.carry_over_proven(before);
        self.withdrawals.carry_over(&before.withdrawals);
    }

    /// Keeps our word before a redemption is taken once more, which another issuer may have shown us. One beyond the end that
    /// we promised waits on: were it paid, our word of that and the promise could both be of a quorum. What we had paid is
    /// paid again, out of the same receipt, for it is of a quorum too.
    pub fn keep_word(&mut self, before: &Self, fact: &Fact<Checked>) {
        let Fact::Redeemed { receipt, .. } = fact else { return };
        if !mutant::is_in("promise-outpaid") {
            self.carry_promise(before, receipt.channel);
        }
        let word = before.word_on(receipt.channel);
        if !mutant::is_in("paid-outshown") {
            self.pay_again(receipt, word.paid);
        }
    }

    /// Pays once more what we had paid on a channel, if it is open: others have our word of it.
    pub fn pay_again(&mut self, receipt: &Verified<Receipt>, paid: u64) {
        // It was paid before, by this receipt or an older one of the channel, so it can be.
        let _ = self.redeem(receipt, paid);
    }

    /// Returns what we had paid on a channel whose opening waits.
    #[must_use]
    pub fn parked_paid(&self, id: ChannelId) -> u64 {
        self.parked.get(&id).map_or(0, |word| word.paid)
    }

    fn word_on(&self, id: ChannelId) -> Word {
        let Some(channel) = self.channels.get(&id) else {
            return self.parked.get(&id).copied().unwrap_or_default();
        };
        Word { ending: channel.ending, paid: channel.redeemed, proven: self.proven_on(id) }
    }

    fn carry_promise(&mut self, before: &Self, id: ChannelId) {
        let promised = before.word_on(id).ending;
        if let Some(channel) = self.channels.get_mut(&id).filter(|channel| !channel.closed) {
            channel.ending = promised.filter(|amount| *amount >= channel.stated);
        }
    }

    /// Keeps our word on channels that are not in these books, because their opening waits for credits: when it is taken it
    /// holds again.
    fn park(&mut self, before: &Self, awaited: &BTreeSet<ChannelId>) {
        let is_closed = |id: &ChannelId| before.channels.get(id).is_some_and(|channel| channel.closed);
        let waits = |id: &&ChannelId| {
            !self.channels.contains_key(*id) && !is_closed(id) && !mutant::is_in("promise-unparked")
        };
        self.parked = awaited.iter().filter(waits).map(|id| (*id, before.word_on(*id))).collect();
    }

    /// Keeps the slot of a recorded step that cannot be taken yet for that step.
    pub fn keep_slot(&mut self, fact: &Fact<Checked>) {
        if let Fact::Step(certificate) = fact
            && self.next_slot(certificate.op.account).0 <= certificate.op.sequence
        {
            self.lock_to(&certificate.op);
        }
    }

    /// Notes that a checkpoint states every withdrawal in these books.
    pub fn settle_withdrawals(&mut self) {
        self.withdrawals.settle();
    }

    /// Forgets what only an operator needs to know of withdrawals.
    pub fn forget_withdrawals(&mut self) {
        self.withdrawals.forget();
    }
}
