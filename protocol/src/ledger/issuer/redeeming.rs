//! Paying channels out and ending them, on a copy of what a step can touch.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{Account, Channel, Held, Issuer, IssuerError, KEPT_EPOCHS};
use crate::advert::Incentive;
use crate::ids::{AccountId, ChannelId, NodeId};
use crate::ledger::money::{Overflow, shares, waiting};
use crate::ledger::records::{Claim, Epoch, Final, Receipt, SplitRole};
use crate::mutant;
use crate::signed::{Role, Verified};

impl Issuer {
    /// Pays out `amount` in all, up to what a co-signed receipt states: the largest amount wins, in whatever order they
    /// come. A payee takes less than the receipt when not all that was prepaid is delivered. Returns the base redeemed
    /// in all.
    ///
    /// # Errors
    /// When the receipt is not the channel's, or the amount is beyond it or beyond the channel's cap.
    pub fn redeem(&mut self, receipt: &Verified<Receipt>, amount: u64) -> Result<u64, IssuerError> {
        let channel = self.channels.get(&receipt.channel).ok_or(IssuerError::UnknownChannel)?;
        if !signed_by_both(receipt, channel) {
            return Err(IssuerError::WrongKey);
        }
        if receipt.amount > channel.cap || amount > receipt.amount {
            return Err(IssuerError::WrongAmount);
        }
        if mutant::is_in("redeem-not-max") && amount < channel.redeemed && !channel.closed {
            self.channels.entry(receipt.channel).and_modify(|channel| channel.redeemed = amount);
            return Ok(amount);
        }
        if mutant::is_in("double-redeem") && amount == channel.redeemed && !channel.closed {
            self.channels.entry(receipt.channel).and_modify(|channel| channel.redeemed = 0);
            let mut part = self.part_of(receipt.channel)?;
            part.pay_out(amount)?;
            self.adopt(part);
            return Ok(amount);
        }
        let is_above = channel.ending.is_some_and(|ending| amount > ending);
        if amount <= channel.redeemed || channel.closed || is_above {
            return Ok(channel.redeemed);
        }
        let mut part = self.part_of(receipt.channel)?;
        part.pay_out(amount)?;

        self.adopt(part);
        Ok(amount)
    }

    /// Pays out what a payee claims of a co-signed receipt, or without a claim what the receipt's own usage costs; says
    /// whether more is paid than before.
    ///
    /// # Errors
    /// As [`Issuer::redeem`], and when the claim is not the payee's or not of this receipt.
    pub fn redeem_claimed(
        &mut self,
        receipt: &Verified<Receipt>,
        claim: Option<&Verified<Claim>>,
    ) -> Result<bool, IssuerError> {
        let amount = self.amount_claimed(receipt, claim)?;
        let before = self.channel(receipt.channel).map_or(0, |(redeemed, _)| redeemed);
        Ok(self.redeem(receipt, amount)? > before)
    }

    /// Returns how much is to be paid out by a claim, or without one.
    ///
    /// # Errors
    /// When the channel is unknown, or the claim is not its payee's or not of this receipt.
    pub fn amount_claimed(
        &self,
        receipt: &Verified<Receipt>,
        claim: Option<&Verified<Claim>>,
    ) -> Result<u64, IssuerError> {
        let channel = self.channels.get(&receipt.channel).ok_or(IssuerError::UnknownChannel)?;
        let Some(claim) = claim else {
            let used = channel.terms.price.cost(&receipt.usage).ok_or(IssuerError::Overflow)?;
            return Ok(used.min(receipt.amount));
        };
        let is_payees = claim.is_signed_by(Role::Payee, channel.terms.payee_key);
        if is_payees && (claim.channel, claim.receipt) == (receipt.channel, receipt.id()) {
            Ok(claim.amount)
        } else {
            Err(IssuerError::WrongKey)
        }
    }

    /// Pays out what a co-signed receipt's own usage costs, at most its amount, whoever shows it. What is prepaid beyond
    /// is the payer's until it is used, and only the payee knows how much of it was. Returns the base redeemed in all.
    ///
    /// # Errors
    /// As [`Issuer::redeem`].
    pub fn redeem_used(&mut self, receipt: &Verified<Receipt>) -> Result<u64, IssuerError> {
        self.redeem(receipt, self.amount_claimed(receipt, None)?)
    }

    /// Ends a channel with the amount that both sides signed: what it still holds returns to the payer. Repeating
    /// changes nothing. Returns the base redeemed in all.
    ///
    /// # Errors
    /// When the final is not the channel's, or states less than was redeemed already.
    pub fn close(&mut self, closing: &Verified<Final>) -> Result<u64, IssuerError> {
        let channel = self.channels.get(&closing.channel).ok_or(IssuerError::UnknownChannel)?;
        if !signed_by_both(closing, channel) {
            return Err(IssuerError::WrongKey);
        }
        if channel.closed {
            return Ok(channel.redeemed);
        }
        if closing.amount > channel.cap || closing.amount < channel.redeemed {
            return Err(IssuerError::WrongAmount);
        }
        self.end(closing.channel, closing.amount)
    }

    /// Ends every channel whose expiry and grace are over, at what was redeemed; returns which. Forgets those that were
    /// closed long ago.
    pub fn expire(&mut self, now: Epoch) -> Vec<(ChannelId, NodeId, u64)> {
        if self.is_one_of_many() {
            return Vec::new();
        }
        let later = self.due.split_off(&(now, ChannelId([0; 32])));
        let over = core::mem::replace(&mut self.due, later);
        over.into_iter().filter_map(|(_, id)| self.end_or_forget(id, now)).collect()
    }

    /// Forgets those that were closed long ago, and ends none. An issuer does so with every epoch, and writes nothing about
    /// it if it ends nothing.
    pub fn forget(&mut self, now: Epoch) {
        if self.is_one_of_many() {
            return;
        }
        let later = self.due.split_off(&(now, ChannelId([0; 32])));
        for (epoch, id) in core::mem::replace(&mut self.due, later) {
            if self.channels.get(&id).is_some_and(|channel| !channel.closed) {
                self.due.insert((epoch, id));
            } else {
                self.end_or_forget(id, now);
            }
        }
    }

    fn end_or_forget(&mut self, id: ChannelId, now: Epoch) -> Option<(ChannelId, NodeId, u64)> {
        let channel = self.channels.get(&id)?;
        let (payee, amount, was_closed) = (channel.terms.payee, channel.redeemed, channel.closed);
        let due = channel.expires.plus(self.manifest.grace_epochs);
        let forgotten = channel.kept_to.unwrap_or(due.plus(KEPT_EPOCHS));
        if was_closed && forgotten < now {
            self.channels.remove(&id);
            self.due.remove(&(due, id));
            return None;
        }
        let ended = if was_closed { None } else { Some(self.end(id, amount)) };
        // What could not be ended is tried again with the next epoch.
        let is_open = matches!(ended, Some(Err(_)));
        self.due.insert((if is_open { now } else { forgotten.max(now) }, id));
        ended?.ok().map(|amount| (id, payee, amount))
    }

    pub(super) fn end(&mut self, id: ChannelId, amount: u64) -> Result<u64, IssuerError> {
        let mut part = self.part_of(id)?;
        part.pay_out(amount)?;
        part.end(amount)?;

        self.adopt(part);
        self.ended.insert(id);
        Ok(amount)
    }

    /// Copies the part of the books that a step on one channel can touch, so that the step is whole or not at all.
    pub(super) fn part_of(&self, id: ChannelId) -> Result<Part, IssuerError> {
        let channel = self.channels.get(&id).ok_or(IssuerError::UnknownChannel)?.clone();
        let copy = |account| (account, self.accounts.get(&account).cloned().unwrap_or_default());
        let accounts = channel.accounts().map(copy).collect();
        Ok(Part { accounts, id, channel })
    }

    pub(super) fn adopt(&mut self, part: Part) {
        let (id, uncounted) = (part.id, self.uncounted_on(part.id));
        for (id, mut account) in part.accounts {
            account.balance.as_of = account.balance.as_of.saturating_add(1);
            self.put_account(id, account);
        }
        self.channels.insert(id, part.channel);
        self.recount(id, &uncounted);
    }
}

/// A copy of one channel and of the accounts it pays.
pub(super) struct Part {
    pub(super) accounts: BTreeMap<AccountId, Account>,
    pub(super) id: ChannelId,
    pub(super) channel: Channel,
}

impl Part {
    /// Pays the shares of every quantum that is full at `amount`.
    pub(super) fn pay_out(&mut self, amount: u64) -> Result<(), IssuerError> {
        for (line, share) in shares(&self.channel.terms, self.channel.redeemed, amount)? {
            self.pay(line.role, line.account, share)?;
        }
        self.channel.redeemed = amount;
        Ok(())
    }

    /// Pays the payee what fills no quantum, returns the rest to the payer.
    pub(super) fn end(&mut self, amount: u64) -> Result<(), IssuerError> {
        self.pay(SplitRole::Provider, self.channel.terms.payee_account, waiting(amount))?;
        let Held { earned, cash } = core::mem::take(&mut self.channel.held);
        self.channel.closed = true;
        let payer = self.accounts.entry(self.channel.payer).or_default();
        let left = earned.checked_add(cash).ok_or(Overflow)?;
        payer.balance.held = payer.balance.held.checked_sub(left).ok_or(Overflow)?;
        payer.balance.earned = payer.balance.earned.checked_add(earned).ok_or(Overflow)?;
        payer.balance.cash = payer.balance.cash.checked_add(cash).ok_or(Overflow)?;
        payer.channels = payer.channels.saturating_sub(1);
        Ok(())
    }

    fn pay(&mut self, role: SplitRole, account: AccountId, amount: u64) -> Result<(), IssuerError> {
        self.channel.held = self.channel.held.less(amount)?;
        let payer = self.accounts.entry(self.channel.payer).or_default();
        payer.balance.held = payer.balance.held.checked_sub(amount).ok_or(Overflow)?;
        let balance = &mut self.accounts.entry(account).or_default().balance;
        let is_earned = is_earned(role, self.channel.terms.incentive);
        let bucket = if is_earned { &mut balance.earned } else { &mut balance.cash };
        *bucket = bucket.checked_add(amount).ok_or(Overflow)?;
        Ok(())
    }
}

/// Says whether what a channel pays is earned, and not cash.
pub(super) const fn is_earned(role: SplitRole, incentive: Incentive) -> bool {
    match (role, incentive) {
        (SplitRole::Provider, Incentive::Exchange) => true,
        (SplitRole::Provider, Incentive::Rewards)
        | (SplitRole::Pool | SplitRole::Network | SplitRole::Builder, _) => false,
    }
}

impl Held {
    /// Returns what is left after paying `amount`, `earned` first.
    pub(super) fn less(self, amount: u64) -> Result<Self, Overflow> {
        let from_earned = self.earned.min(amount);
        let from_cash = amount.checked_sub(from_earned).ok_or(Overflow)?;
        Ok(Self {
            earned: self.earned.checked_sub(from_earned).ok_or(Overflow)?,
            cash: self.cash.checked_sub(from_cash).ok_or(Overflow)?,
        })
    }
}

pub(super) fn signed_by_both<T: crate::signed::Signable>(record: &Verified<T>, channel: &Channel) -> bool {
    record.is_signed_only_by(&[(Role::Payer, channel.payer_key), (Role::Payee, channel.terms.payee_key)])
}
