//! The end of a channel where several issuers must agree: one vote at each, and only a quorum's votes free what is left.

use alloc::vec::Vec;

use super::{Channel, Held, Issuer, IssuerError, Part, signed_by_both};
use crate::ids::ChannelId;
use crate::ledger::money::{Overflow, shares};
use crate::ledger::quorum::EndCertificate;
use crate::ledger::records::{CloseVote, Epoch, Final, SplitRole};
use crate::message::Checked;
use crate::mutant;
use crate::signed::Verified;

impl Issuer {
    /// Promises to let a channel end with the amount that both sides signed, and to redeem nothing beyond; returns the
    /// amount. Promising it again changes nothing. The promise must be on disk before the vote leaves.
    ///
    /// # Errors
    /// When the final is not the channel's, states less than was redeemed, or another amount was promised.
    pub fn promise_end(&mut self, closing: &Verified<Final>) -> Result<u64, IssuerError> {
        let channel = self.channels.get_mut(&closing.channel).ok_or(IssuerError::UnknownChannel)?;
        if !signed_by_both(closing, channel) {
            return Err(IssuerError::WrongKey);
        }
        if closing.amount > channel.cap {
            return Err(IssuerError::WrongAmount);
        }
        promise(channel, closing.amount)
    }

    /// Promises to let every channel end at what it has paid whose expiry and grace are over; returns what was promised,
    /// once an epoch until it has ended. Forgets channels that were closed long ago.
    pub fn promise_expired(&mut self, now: Epoch) -> Vec<(ChannelId, u64)> {
        let later = self.due.split_off(&(now, ChannelId([0; 32])));
        let over = core::mem::replace(&mut self.due, later);
        over.into_iter().filter_map(|(_, id)| self.promise_or_forget(id, now)).collect()
    }

    fn promise_or_forget(&mut self, id: ChannelId, now: Epoch) -> Option<(ChannelId, u64)> {
        let channel = self.channels.get_mut(&id)?;
        let forgotten = channel.expires.plus(self.manifest.grace_epochs).plus(super::KEPT_EPOCHS);
        if channel.closed && forgotten < now {
            self.channels.remove(&id);
            return None;
        }
        self.due.insert((forgotten.max(now.plus(1)), id));
        if channel.closed {
            return None;
        }
        let amount = *channel.ending.get_or_insert(channel.redeemed);
        Some((id, amount))
    }

    /// Pays no more on a channel than has been paid: a checkpoint is about to end it.
    pub fn pay_no_more(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.ending.get_or_insert(channel.redeemed);
        }
    }

    /// Takes back a promise from our own journal.
    pub fn restore_promise(&mut self, id: ChannelId, amount: u64) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.ending = Some(amount);
        }
    }

    /// Returns the amount with which we promised to let a channel end.
    #[must_use]
    pub fn promised(&self, channel: ChannelId) -> Option<u64> {
        self.channels.get(&channel)?.ending
    }

    /// Says whether a channel was to end below what a checkpoint has stated as paid since: the promises are void. Whoever
    /// was paid may have spent it, on the word of a quorum.
    #[must_use]
    pub fn is_end_void(&self, certificate: &EndCertificate<Checked>) -> bool {
        let promised = certificate.votes.first();
        let stated =
            |vote: &Verified<CloseVote>| Some(self.channels.get(&vote.channel)?.stated > vote.amount);
        promised.and_then(stated).unwrap_or(false) && !mutant::is_in("end-below-stated")
    }

    /// Notes that a checkpoint states all that these books have paid.
    pub fn settle_paid(&mut self) {
        self.channels.values_mut().for_each(|channel| channel.stated = channel.redeemed);
        self.count_all();
    }

    /// Ends a channel as a quorum of issuers promised; says whether that is new. What was paid beyond is taken back.
    ///
    /// # Errors
    /// [`IssuerError::UnknownChannel`] or [`IssuerError::Behind`] when its opening, or credits since, are missing here;
    /// [`IssuerError::NoQuorum`] when too few promised; [`IssuerError::WrongEpoch`] when a checkpoint since states more.
    pub fn end_by(&mut self, certificate: &EndCertificate<Checked>) -> Result<bool, IssuerError> {
        let (id, _) = certificate.check(&self.manifest)?;
        let is_open = self.channels.get(&id).is_some_and(|channel| !channel.closed);
        if is_open && self.is_end_void(certificate) {
            return Err(IssuerError::WrongEpoch);
        }
        self.replay_end(certificate)
    }

    /// Ends a channel once more for which our own journal says that we ended it. That no channel ends below what a
    /// checkpoint states is a rule that came later.
    ///
    /// # Errors
    /// As [`Self::end_by`], but for what a checkpoint states.
    pub fn replay_end(&mut self, certificate: &EndCertificate<Checked>) -> Result<bool, IssuerError> {
        let (id, amount) = certificate.check(&self.manifest)?;
        let channel = self.channels.get(&id).ok_or(IssuerError::UnknownChannel)?;
        if channel.closed {
            return Ok(false);
        }
        if amount > channel.cap {
            return Err(IssuerError::WrongAmount);
        }
        let mut part = self.part_of(id)?;
        if amount < part.channel.redeemed {
            part.take_back(amount).map_err(|Overflow| IssuerError::Behind)?;
        } else {
            part.pay_out(amount)?;
        }
        part.end(amount)?;

        self.adopt(part);
        Ok(true)
    }
}

fn promise(channel: &mut Channel, amount: u64) -> Result<u64, IssuerError> {
    let other = channel.ending.is_some_and(|ending| ending != amount);
    if channel.closed && channel.redeemed == amount {
        return Ok(amount);
    }
    if channel.closed {
        return Err(IssuerError::Closed);
    }
    if other || amount < channel.redeemed {
        return Err(IssuerError::WrongAmount);
    }

    channel.ending = Some(amount);
    Ok(amount)
}

impl Part {
    /// Returns to the channel what was paid beyond `amount`.
    fn take_back(&mut self, amount: u64) -> Result<(), Overflow> {
        let mut returned: u64 = 0;
        for (line, share) in shares(&self.channel.terms, amount, self.channel.redeemed)? {
            let balance = &mut self.accounts.entry(line.account).or_default().balance;
            let from_earned = if line.role == SplitRole::Provider { balance.earned.min(share) } else { 0 };
            let from_cash = share.checked_sub(from_earned).ok_or(Overflow)?;
            balance.earned = balance.earned.checked_sub(from_earned).ok_or(Overflow)?;
            balance.cash = balance.cash.checked_sub(from_cash).ok_or(Overflow)?;
            returned = returned.checked_add(share).ok_or(Overflow)?;
        }
        let payer = self.accounts.entry(self.channel.payer).or_default();
        payer.balance.held = payer.balance.held.checked_add(returned).ok_or(Overflow)?;
        let held = self.channel.held.earned.checked_add(self.channel.held.cash).ok_or(Overflow)?;
        let held = held.checked_add(returned).ok_or(Overflow)?;
        self.channel.held = self.channel.opened.last(held)?;
        self.channel.redeemed = amount;
        Ok(())
    }
}

impl Held {
    /// Returns what of this is left when `left` of it is left, `earned` having gone first.
    fn last(self, left: u64) -> Result<Self, Overflow> {
        let whole = self.earned.checked_add(self.cash).ok_or(Overflow)?;
        self.less(whole.checked_sub(left).ok_or(Overflow)?)
    }
}
