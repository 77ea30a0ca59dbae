//! What is shown, sent and asked again from time to time, until both sides and the issuers hold the same.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::ids::{ChannelId, NodeId, RecordId};
use crate::ledger::paid::Paid;
use crate::ledger::quorum::Acks;
use crate::ledger::records::{Epoch, Receipt, VALIDITY_EPOCHS_MAX};
use crate::message::{HEADS_MAX, Head, Heads, Message};
use crate::mutant;
use crate::signed::Verified;
use crate::time::Time;

use super::closing::IDLE_MS;
use super::redeeming::is_round;
use crate::node::{Effect, Node, Timer};

/// How often what was not acknowledged is sent again.
pub(in crate::node) const RECONCILE_MS: u64 = 5_000;

/// Most partners that are dialled at once because something is left to say to them.
const DIALS_MAX: usize = 4;

impl Node {
    /// Tells a partner the newest receipts that we hold of the channels between us.
    pub(in crate::node) fn send_heads(&mut self, partner: NodeId, out: &mut Vec<Effect>) {
        let paying = self.paying.values().filter(|channel| channel.side.terms.payee == partner);
        let paying = paying.filter_map(|channel| {
            let receipt = channel.side.head()?;
            let (channel, amount, receipt) = (receipt.channel, receipt.amount, receipt.id());
            Some(Head { channel, amount, receipt, due: 0, counted: 0 })
        });
        let paid = self.paid.iter().filter(|(_, paid)| paid.payer == partner && paid.has_head());
        let paid = paid.map(|(&channel, paid)| {
            let (amount, receipt) = (paid.paid(), paid.head_id(channel));
            Head { channel, amount, receipt, due: paid.due(), counted: paid.counted() }
        });
        let heads: Vec<Head> = paying.chain(paid).collect();
        // A side that has lost its only receipt has none to show, and says so.
        let deals = self.paid.values().any(|paid| paid.payer == partner);
        if deals || !heads.is_empty() {
            for page in Heads::pages(heads) {
                self.send(partner, Message::Heads(page), out);
            }
        }
    }

    /// Shows every partner who is there what we hold, from time to time: whatever else was lost, this finds it.
    pub(super) fn show_heads(&mut self, now: Time, out: &mut Vec<Effect>) {
        if !is_round(now) {
            return;
        }
        let payees = self.paying.values().map(|channel| channel.side.terms.payee);
        let partners = payees.chain(self.paid.values().map(|paid| paid.payer));
        let partners: BTreeSet<NodeId> = partners.filter(|partner| self.is_connected(*partner)).collect();
        for partner in partners {
            self.send_heads(partner, out);
        }
    }

    /// Sends the partner whatever it holds an older state of.
    pub(in crate::node) fn on_heads(&mut self, from: NodeId, page: &Heads, out: &mut Vec<Effect>) {
        let shown: BTreeMap<ChannelId, RecordId> =
            page.heads.iter().map(|head| (head.channel, head.receipt)).collect();
        let lacks = |head: &Verified<Receipt>| {
            page.covers(head.channel) && shown.get(&head.channel) != Some(&head.id())
        };
        for head in &page.heads {
            let paying = self.paying.get_mut(&head.channel);
            if let Some(paying) = paying.filter(|channel| channel.side.terms.payee == from) {
                paying.side.shown(head.receipt, head.due, head.counted);
            }
            if let Some(paid) = self.paid.get_mut(&head.channel).filter(|paid| paid.payer == from) {
                paid.shown(head.channel, head.receipt);
            }
        }
        let mut messages = Vec::new();
        for paying in self.paying.values().filter(|channel| channel.side.terms.payee == from) {
            let unsigned = !paying.side.is_cosigned();
            let wanted = |head: &&Verified<Receipt>| lacks(head) || (page.covers(head.channel) && unsigned);
            if let Some(head) = paying.side.head().filter(wanted) {
                messages.push(Message::Pay { receipt: head.clone(), allowances: paying.side.allowances() });
            }
        }
        // Showing a receipt takes a signature: only to a partner who lacks it.
        for (&channel, paid) in self.paid.iter().filter(|(_, paid)| paid.payer == from) {
            let differs = shown.get(&channel) != Some(&paid.head_id(channel));
            let lacked = (differs && page.covers(channel)).then(|| paid.head(channel)).flatten();
            messages.extend(lacked.map(Message::CoSigned));
        }
        for message in messages.into_iter().take(HEADS_MAX) {
            self.send(from, message, out);
        }
    }

    pub(in crate::node) fn on_reconcile_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.deadlines.set(Timer::Reconcile, now.plus_ms(RECONCILE_MS + self.prng.below(RECONCILE_MS / 10)));
        self.scheduler.expire_holds(now);
        self.forget_expired(now);
        self.renew_delegations(now, out);
        self.renew_devices(now, out);
        self.rotate_again(now, out);
        self.ask_wallet_again(now, out);
        self.greet_silent(now, out);
        self.join_again(out);
        if self.recovery.is_some() {
            return self.on_recovery_due(now, out);
        }
        self.close_idle(now, IDLE_MS, out);
        self.give_up_silent(now, out);
        self.sign_order(now, out);
        self.say_payouts(out);
        self.resend(out);
        self.review_serving(now, out);
        self.redeem(now, out);
        self.show_paid_again(out);
        self.ask_on_for_missing(out);
        self.show_heads(now, out);
        self.mirror(now, out);
        self.expire_channels(now, out);
        self.hand_on_news(out);
        self.ask_newest(now, out);
        self.review_audit(now, out);
    }

    /// Forgets the channels that the issuer has ended, even if its word of it was lost.
    pub(super) fn forget_expired(&mut self, now: Time) {
        let (epoch, grace) = (self.epoch(now), self.config.manifest.grace_epochs);
        self.ended.retain(|_, (expires, _)| *expires >= epoch);
        let is_over = |expires: Epoch| expires.plus(grace).plus(1) < epoch;
        // The issuers may still say what was paid at its end: a checkpoint that states it is followed by as many epochs.
        let asks = |paid: &Paid| paid.has_head() && !is_over(paid.expires.plus(grace));
        self.paid.retain(|_, paid| paid.is_busy() || !is_over(paid.expires) || asks(paid));
        // They remember it longer for a payer who was away.
        let is_over = |expires: Epoch| is_over(expires.plus(VALIDITY_EPOCHS_MAX));
        self.paying.retain(|_, paying| paying.side.is_busy() || !is_over(paying.expires));
        self.missing.retain(|_, booked| !is_over(booked.expires));
        self.agreed.retain(|_, agreement| Arc::strong_count(agreement) > 1);
        let mut acks = core::mem::take(&mut self.acks);
        acks.retain(|channel, _| self.is_known(*channel));
        self.acks = acks;
    }

    /// Sends again whatever its receiver has not acknowledged.
    pub(super) fn resend(&mut self, out: &mut Vec<Effect>) {
        // Whoever is off asks again, to hear when it is right.
        let unknown = self.balance_is_old || !self.wallet.is_idle() || self.clock_off_ms().is_some();
        for issuer in self.issuers() {
            if self.wallet.pending().is_some() {
                self.resend_step(issuer, out);
            } else if unknown && self.is_admitted() {
                self.send(issuer, Message::AccountQuery, out);
            }
        }
        let mut messages = Vec::new();
        for channel in self.paying.values() {
            let payee = channel.side.terms.payee;
            if let Some(receipt) = channel.side.unacknowledged() {
                let allowances = channel.side.allowances();
                messages.push((payee, Message::Pay { receipt: receipt.clone(), allowances }));
            }
        }
        let issuers = self.issuers_with_keys();
        let open_at = |channel: &ChannelId, acks: &BTreeMap<ChannelId, Acks>| -> Vec<NodeId> {
            let is_closed = |key| acks.get(channel).is_some_and(|acks| acks.is_closed_by(key));
            issuers.iter().filter(|(key, _)| !is_closed(*key)).map(|(_, node)| *node).collect()
        };
        for (channel, paid) in &self.paid {
            if let Some(closing) = paid.closing() {
                let asked = Message::Close { closing: closing.clone(), opening: None };
                let at = open_at(channel, &self.acks);
                messages.extend(at.into_iter().map(|issuer| (issuer, asked.clone())));
            }
        }
        for channel in self.paying.values() {
            if let Some(closing) = channel.side.closing() {
                let (closing, opening) = (closing.clone(), channel.unconfirmed());
                // The payee may have ended the channel already, and the issuer's word of it was lost.
                let asked = Message::Close { closing: closing.clone(), opening: None };
                let at = open_at(&channel.side.channel, &self.acks);
                messages.extend(at.into_iter().map(|issuer| (issuer, asked.clone())));
                messages.push((channel.side.terms.payee, Message::Close { closing, opening }));
            }
        }
        if mutant::is_in("no-resend") {
            messages.clear();
        }
        let mut away = Vec::new();
        for (to, message) in messages {
            if to == self.me || self.is_connected(to) {
                self.send(to, message, out);
            } else if !away.contains(&to) && away.len() < DIALS_MAX {
                away.push(to);
            }
        }
        out.extend(away.into_iter().map(Effect::Dial));
    }
}
