//! Ends channels: both sides together, or the payer alone if its payee is silent.

use alloc::vec::Vec;

use crate::ids::NodeId;
use crate::ledger::issuer::IssuerError;
use crate::ledger::records::{AccountOp, Final, OpBody};
use crate::message::{Checked, Message, Opening};
use crate::mutant;
use crate::record::Record;
use crate::signed::Verified;
use crate::time::Time;

use super::PayingChannel;
use crate::node::{Effect, Node};

/// How long a channel may be unused before its escrow is taken back.
pub(super) const IDLE_MS: u64 = 10 * 60 * 1000;

/// How many epochs a payee has to agree to the end of a channel before its payer ends it alone.
const CLOSE_EPOCHS: u32 = 1;

/// For how long a payer asks for that after each start, however long it was away itself; less where epochs are shorter.
const ASKED_MS: u64 = 10 * 60 * 1000;

impl Node {
    /// Closes all idle channels and redeems all earnings, now.
    pub(in crate::node) fn settle(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.recovery.is_some() {
            return;
        }
        self.close_idle(now, 0, out);
        self.redeem_above(0, now, out);
    }

    pub(super) fn close_idle(&mut self, now: Time, idle_ms: u64, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        for channel in self.paying.values_mut() {
            let over =
                channel.side.is_retired() || now.since_ms(channel.used) >= idle_ms || channel.expires < epoch;
            channel.to_close |= !channel.side.is_busy() && over;
        }
        self.close_ready(out);
    }

    /// Ends a channel alone whose payee signs neither its end nor the last receipt before, so that what it holds returns
    /// when grace is over; one at a time, because a wallet signs one step at a time.
    pub(super) fn give_up_silent(&mut self, now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        self.paying.values_mut().for_each(|channel| channel.note_silence(epoch, now));
        if self.issuer().is_none() || !self.wallet.is_idle() {
            return;
        }
        let asked_ms = ASKED_MS.min(self.config.manifest.epoch_ms);
        let is_over = |channel: &&PayingChannel| {
            let is_silent = channel.silent_since.is_some_and(|since| since.plus(CLOSE_EPOCHS) < epoch);
            let is_asked = channel.asked_since.is_some_and(|since| now.since_ms(since) >= asked_ms);
            is_silent && is_asked && channel.expires > epoch.plus(1)
        };
        let over = self.paying.values().find(is_over).map(|channel| channel.side.channel);
        if let Some(channel) = over {
            self.sign_step(OpBody::Expire(channel), None, now, out);
        }
    }

    /// The issuers have taken the step by which we ended a channel alone: it is not made again.
    pub(in crate::node) fn ends_early(&mut self, op: &AccountOp) {
        let OpBody::Expire(channel) = &op.body else { return };
        if let Some(channel) = self.paying.get_mut(channel) {
            channel.expires = channel.expires.min(op.epoch.plus(1));
        }
    }

    /// The issuers have not taken the step by which we wanted to end a channel alone. It is made again after a while, unless
    /// the channel has ended or is about to.
    pub(in crate::node) fn on_refused_expiry(&mut self, op: &AccountOp, error: IssuerError) {
        let OpBody::Expire(channel) = &op.body else { return };
        if matches!(error, IssuerError::Closed | IssuerError::UnknownChannel) {
            self.ends_early(op);
        } else if let Some(channel) = self.paying.get_mut(channel) {
            channel.asked_since = None;
        }
    }

    /// Signs the end of the channels that are to be closed, have no job and no receipt under way.
    pub(super) fn close_ready(&mut self, out: &mut Vec<Effect>) {
        let domain = self.domain;
        let mut messages = Vec::new();
        for channel in self.paying.values_mut() {
            let is_open = channel.side.is_busy() || channel.side.unacknowledged().is_some();
            if !channel.to_close || is_open || channel.side.is_closing() {
                continue;
            }
            if let Some(closing) = channel.side.close(domain) {
                out.push(Effect::Record(Record::Final(closing.signed())));
                let opening = channel.unconfirmed();
                messages.push((channel.side.terms.payee, Message::Close { closing, opening }));
            }
        }
        for (to, message) in messages {
            self.send(to, message, out);
        }
    }

    /// A channel's end: as payee, with the payer's signature; as issuer, with both.
    pub(in crate::node) fn on_close(
        &mut self,
        from: NodeId,
        closing: &Verified<Final>,
        opening: Option<Opening<Checked>>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if let Some(opening) = opening {
            self.on_opening(from, opening, now, out);
        }
        let Some(paid) = self.paid.get_mut(&closing.channel).filter(|paid| paid.payer == from) else {
            self.close_channel(from, closing, now, out);
            return;
        };
        let known = paid.is_closing();
        let Ok(both) = paid.close(closing) else {
            // A job is still open, or the payer has forgotten a receipt or counts less: it will ask again.
            if let Some(head) = paid.head(closing.channel) {
                self.send(from, Message::CoSigned(head), out);
            }
            self.send_heads(from, out);
            return;
        };
        if !known {
            let line = Record::Final(both.signed());
            let early = mutant::is_in("final-before-disk");
            out.push(if early { Effect::Note(line) } else { Effect::Record(line) });
        }
        for issuer in self.issuers() {
            self.send(issuer, Message::Close { closing: both.clone(), opening: None }, out);
        }
    }
}
