//! Redeems at the issuers what channels have earned, and learns what they have paid.

use alloc::vec::Vec;

use crate::ids::{ChannelId, NodeId};
use crate::keys::PublicKey;
use crate::ledger::paid::Paid;
use crate::ledger::records::RedeemAck;
use crate::message::Message;
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::RECONCILE_MS;
use crate::node::{Effect, Node, Offence};

/// Most channels after whose ends an issuer is asked at once.
pub(super) const ENDS_ASKED_MAX: usize = 64;

/// Unredeemed earnings that are not left waiting, in nano-credits: a hundredth of a credit.
const REDEEM_AT: u64 = 10_000_000;

/// How long any earnings wait to be redeemed, in milliseconds.
pub(super) const REDEEM_MS: u64 = 60_000;

/// Says whether something is due that is done every [`REDEEM_MS`].
pub(in crate::node) const fn is_round(now: Time) -> bool {
    now.0 / REDEEM_MS != now.0.saturating_sub(RECONCILE_MS) / REDEEM_MS
}

/// Returns those of all that are asked about in this round: every one is, in turn.
pub(super) fn in_turn<T>(all: &[T], now: Time) -> impl Iterator<Item = &T> {
    let round = if mutant::is_in("ends-not-in-turn") { 0 } else { now.0 / REDEEM_MS };
    let first = usize::try_from(round).unwrap_or_default().wrapping_mul(ENDS_ASKED_MAX);
    let first = first.checked_rem(all.len()).unwrap_or_default();
    let (before, from) = all.split_at_checked(first).unwrap_or_default();
    from.iter().chain(before).take(ENDS_ASKED_MAX)
}

impl Node {
    pub(super) fn redeem(&mut self, now: Time, out: &mut Vec<Effect>) {
        let round = is_round(now);
        self.redeem_above(if round { 0 } else { REDEEM_AT }, now, out);
        if round {
            self.ask_payouts(out);
            self.ask_ends(now, out);
            self.ask_again_for_missing(out);
        }
        if round && self.is_admitted() {
            // The issuer tells of every change, but once, and what it tells may be lost.
            self.query_account(out);
        }
    }

    pub(in crate::node) fn redeem_above(&mut self, amount: u64, now: Time, out: &mut Vec<Effect>) {
        let mut messages = Vec::new();
        for (key, issuer) in self.issuers_with_keys() {
            let due = self.paid.iter().filter(|(_, paid)| !paid.is_closing() && !self.is_past(paid, now));
            for (channel, paid) in due {
                let known = self.acks.get(channel).map_or(0, |acks| acks.by(key));
                let exceeds = |earned: u64| earned.saturating_sub(known) > amount;
                // What was earned is at most what was paid, and takes longer to tell.
                let is_due = exceeds(paid.paid()) && exceeds(paid.earned());
                if let Some((receipt, claim)) = is_due.then(|| paid.claim(*channel)).flatten() {
                    messages.push((issuer, Message::Redeem { receipt, claim }));
                }
            }
        }
        for (issuer, message) in messages {
            self.send(issuer, message, out);
        }
    }

    /// Asks what was paid at the end of channels that the issuers have ended by themselves, as far as their word of it has
    /// not come: a receipt is answered with it.
    pub(super) fn ask_ends(&mut self, now: Time, out: &mut Vec<Effect>) {
        if mutant::is_in("ends-not-asked") {
            return;
        }
        for (key, issuer) in self.issuers_with_keys() {
            let is_told =
                |channel: &ChannelId| self.acks.get(channel).is_some_and(|acks| acks.is_closed_by(key));
            let over =
                self.paid.iter().filter(|(channel, paid)| self.is_past(paid, now) && !is_told(channel));
            let over: Vec<(&ChannelId, &Paid)> = over.map(|(channel, paid)| (channel, &**paid)).collect();
            // Some may have been forgotten there, and are not answered.
            let asked = in_turn(&over, now);
            let claims: Vec<_> = asked.filter_map(|(channel, paid)| paid.claim(**channel)).collect();
            for (receipt, claim) in claims {
                self.send(issuer, Message::Redeem { receipt, claim }, out);
            }
        }
    }

    /// Says whether the grace of a channel is over, and the epoch in which issuers hand on what they paid until then: nothing
    /// is earned on it any more, and it is kept to learn its end.
    pub(in crate::node) fn is_past(&self, paid: &Paid, now: Time) -> bool {
        paid.expires.plus(self.config.manifest.grace_epochs).plus(1) < self.epoch(now)
    }

    /// Redeems what a channel has earned, however little.
    pub(in crate::node) fn redeem_channel(&mut self, channel: ChannelId, out: &mut Vec<Effect>) {
        let paid = self.paid.get(&channel).filter(|paid| paid.unredeemed() > 0 && !paid.is_closing());
        let Some((receipt, claim)) = paid.and_then(|paid| paid.claim(channel)) else { return };
        for issuer in self.issuers() {
            self.send(issuer, Message::Redeem { receipt: receipt.clone(), claim: claim.clone() }, out);
        }
    }

    pub(in crate::node) fn on_redeemed(
        &mut self,
        from: NodeId,
        ack: &Verified<RedeemAck>,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from).filter(|key| ack.is_signed_by(Role::Issuer, *key)) else {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        };
        if !self.is_known(ack.channel) {
            return;
        }
        let said = self.acks.get(&ack.channel).cloned().unwrap_or_default();
        // Also what a payer has counted itself: its statement says what was moved, whatever comes of the channel.
        if ack.amount > said.by(key) || (ack.closed && !said.is_closed_by(key)) {
            out.push(Effect::Note(Record::Redeemed(ack.signed())));
            self.apply_ack(key, ack);
            if self.keep_ack(key, ack.clone()) {
                self.show_paid(ack.channel, out);
            }
            self.balance_is_old = true;
        }
    }

    /// Takes an issuer's word on one of our channels: it counts as far as enough others say the same.
    pub(in crate::node) fn apply_ack(&mut self, key: PublicKey, ack: &RedeemAck) {
        if !self.is_known(ack.channel) {
            return;
        }
        let manifest = &self.config.manifest;
        let acks = self.acks.entry(ack.channel).or_default();
        acks.learn(key, ack);
        if acks.end(manifest).is_some() {
            self.acks.remove(&ack.channel);
            self.paying.remove(&ack.channel);
            if let Some(paid) = self.paid.remove(&ack.channel) {
                self.ended.insert(ack.channel, (paid.expires, paid.payer_account));
            }
            if let Some(booked) = self.missing.remove(&ack.channel) {
                self.ended.insert(ack.channel, (booked.expires, booked.payer));
            }
        } else if let Some(paid) = self.paid.get_mut(&ack.channel) {
            paid.redeemed(acks.safe(manifest));
        } else if let Some(paying) = self.paying.get_mut(&ack.channel) {
            paying.side.concede(acks.vouched(manifest));
        } else if let Some(booked) = self.missing.get_mut(&ack.channel) {
            booked.redeemed = booked.redeemed.max(acks.safe(manifest));
        }
    }

    /// Says whether a channel of ours has not ended yet, even if we know no more of it than that.
    pub(super) fn is_known(&self, channel: ChannelId) -> bool {
        self.paid.contains_key(&channel)
            || self.paying.contains_key(&channel)
            || (self.missing.contains_key(&channel) && !mutant::is_in("missing-deaf"))
    }
}
