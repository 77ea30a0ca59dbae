//! Opening a channel, and its payer's step by which it ends soon: judged once, then carried out.

use super::{
    Balance, CHANNELS_MAX, CHANNELS_PER_ACCOUNT_MAX, Channel, Held, Issuer, IssuerError, Taking, counting,
    room,
};
use crate::ids::ChannelId;
use crate::ledger::money::{Overflow, with_markup};
use crate::ledger::records::{AccountOp, Epoch, OpenChannel, Terms, VALIDITY_EPOCHS_MAX};
use crate::licence::open_licence;
use crate::mutant;
use crate::signed::{Role, Verified};

impl Issuer {
    pub(super) fn open(
        &mut self,
        op: &Verified<AccountOp>,
        open: &OpenChannel,
        terms: &Verified<Terms>,
        now: Epoch,
        taking: Taking,
    ) -> Result<(), IssuerError> {
        if taking == Taking::Certified {
            // A vote is for the step, which names its terms by their id: these may be any.
            if open.terms != terms.id() {
                return Err(IssuerError::WrongTerms);
            }
        } else {
            self.judge_opening(op, open, terms, now)?;
        }
        if taking.is_first() && !mutant::is_in("rewards-opened") {
            terms.check_incentive().map_err(IssuerError::BadTerms)?;
        }
        let markup_bps = terms.markup.map_or(0, |markup| markup.bps);
        let hold = with_markup(open.cap, markup_bps)?;
        let needed = hold.checked_add(self.manifest.open_fee).ok_or(IssuerError::Overflow)?;
        let account = self.accounts.get(&op.account).cloned().unwrap_or_default();
        if needed > account.balance.available() && !mutant::is_in("open-without-funds") {
            return Err(IssuerError::NotEnough { needed, available: account.balance.available() });
        }
        self.check_counted(op.account, needed, counting::Purse::EarnedAndCash, taking)?;
        if self.channels.len() >= CHANNELS_MAX {
            return Err(IssuerError::Full);
        }
        let channel_count = account.channels.checked_add(1).ok_or(IssuerError::Overflow)?;
        self.check_room(room::paid_by(terms).chain([self.manifest.network]), taking)?;
        let (left, fee) = take(account.balance, self.manifest.open_fee)?;
        let (left, held) = take(left, hold)?;
        let fee = fee.earned.checked_add(fee.cash).ok_or(IssuerError::Overflow)?;
        let held_sum = left.held.checked_add(hold).ok_or(IssuerError::Overflow)?;
        // Read after the payer's: the network may be its own customer.
        let network =
            if op.account == self.manifest.network { left } else { self.balance(self.manifest.network) };
        let network_cash = network.cash.checked_add(fee).ok_or(IssuerError::Overflow)?;
        if taking.only_judges() {
            return Ok(());
        }

        let payer = self.account_in(op.account);
        payer.balance = Balance { held: held_sum, ..left };
        payer.channels = channel_count;
        let network = &mut self.account_in(self.manifest.network).balance;
        network.cash = network_cash;
        network.as_of = network.as_of.saturating_add(1);
        let grace = if mutant::is_in("no-grace") { 0 } else { self.manifest.grace_epochs };
        self.due.insert((open.expires.plus(grace), op.id().into()));
        let word = self.parked.remove(&op.id().into()).unwrap_or_default();
        let channel = Channel {
            payer: op.account,
            payer_node: open.payer,
            payer_key: open.payer_key,
            terms: Terms::clone(terms),
            cap: open.cap,
            held,
            opened: held,
            redeemed: 0,
            stated: 0,
            expires: open.expires,
            ending: word.ending,
            closed: false,
            kept_to: None,
        };
        self.await_accounts(&channel);
        self.channels.insert(op.id().into(), channel);
        self.restore_count(op.id().into(), word.proven);
        Ok(())
    }

    /// Judges what only holds at the moment of opening, once.
    fn judge_opening(
        &self,
        op: &Verified<AccountOp>,
        open: &OpenChannel,
        terms: &Verified<Terms>,
        now: Epoch,
    ) -> Result<(), IssuerError> {
        let fits = open.terms == terms.id() && open.payee == terms.payee && terms.payer_account == op.account;
        if !fits || terms.valid_to < now {
            return Err(IssuerError::WrongTerms);
        }
        if !terms.is_signed_by(Role::Node, terms.payee.into()) {
            return Err(IssuerError::WrongKey);
        }
        terms
            .check_shares(&self.manifest, open_licence(terms.model, self.domain))
            .map_err(IssuerError::BadTerms)?;
        if open.expires < now || open.expires > now.plus(VALIDITY_EPOCHS_MAX) || open.expires > terms.valid_to
        {
            return Err(IssuerError::WrongExpiry);
        }
        let channels = self.accounts.get(&op.account).map_or(0, |account| account.channels);
        if channels as usize >= CHANNELS_PER_ACCOUNT_MAX { Err(IssuerError::Full) } else { Ok(()) }
    }

    pub(super) fn expire_soon(
        &mut self,
        op: &Verified<AccountOp>,
        id: ChannelId,
        now: Epoch,
        taking: Taking,
    ) -> Result<(), IssuerError> {
        // A quorum knows the channel; it may have ended and be forgotten here by now.
        let unknown = if taking == Taking::Certified { Ok(()) } else { Err(IssuerError::UnknownChannel) };
        let Some(channel) = self.channels.get_mut(&id) else { return unknown };
        if channel.payer != op.account {
            return Err(IssuerError::WrongKey);
        }
        // By the step's own epoch, so that all issuers come to the same one.
        let expires = if taking == Taking::Certified { op.epoch.plus(1) } else { now.plus(1) };
        let has_ended = channel.closed || channel.expires <= expires;
        // Ending it again would fill the journal of every issuer at no cost.
        if has_ended && taking != Taking::Certified {
            return Err(IssuerError::Closed);
        }
        if has_ended || taking.only_judges() {
            return Ok(());
        }

        channel.expires = expires;
        self.due.insert((channel.expires.plus(self.manifest.grace_epochs), id));
        Ok(())
    }
}

/// Takes `amount` out of a balance, `earned` first; returns what is left and what was taken.
fn take(balance: Balance, amount: u64) -> Result<(Balance, Held), Overflow> {
    let earned = balance.earned.min(amount);
    let cash = amount.checked_sub(earned).ok_or(Overflow)?;
    let cash_left = balance.cash.checked_sub(cash);
    let cash_left = if mutant::is_in("open-without-funds") { cash_left.or(Some(0)) } else { cash_left };
    let left = Balance {
        earned: balance.earned.checked_sub(earned).ok_or(Overflow)?,
        cash: cash_left.ok_or(Overflow)?,
        ..balance
    };
    Ok((left, Held { earned, cash }))
}
