//! As payee: shows the issuers that enough of them have paid, so that what was earned can be spent before a checkpoint
//! states it. As one of several issuers: counts it from then on.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Bound;

use crate::ids::{ChannelId, NodeId};
use crate::keys::PublicKey;
use crate::ledger::counted::Proof;
use crate::ledger::records::RedeemAck;
use crate::message::Message;
use crate::mutant;
use crate::signed::Verified;

use super::{Effect, Node, Offence};

/// Most channels whose proofs wait to be confirmed: bounds memory. What is earned on others counts from the next checkpoint
/// on.
const CONFIRMING_MAX: usize = 16_384;

/// Most channels whose proofs are sent again at once.
const AGAIN_MAX: usize = 64;

/// The channels on which we are paid and of which not every issuer has confirmed that it counts what was paid.
#[derive(Debug)]
pub(super) struct Confirming {
    proofs: BTreeMap<ChannelId, Proof>,
    /// The channel whose proof was sent again last.
    after: ChannelId,
}

impl Default for Confirming {
    fn default() -> Self {
        Self { proofs: BTreeMap::new(), after: ChannelId([0; 32]) }
    }
}

impl Node {
    /// Keeps an issuer's acknowledgement for the others; says whether a quorum has paid more by it.
    pub(super) fn keep_ack(&mut self, key: PublicKey, ack: Verified<RedeemAck>) -> bool {
        let channel = ack.channel;
        let proofs = &mut self.confirming.proofs;
        if !self.paid.contains_key(&channel) {
            proofs.remove(&channel);
            return false;
        }
        if self.config.manifest.issuers.len() <= 1 {
            return false;
        }
        let has_room =
            |proofs: &BTreeMap<_, _>| proofs.contains_key(&channel) || proofs.len() < CONFIRMING_MAX;
        if !has_room(proofs) {
            // An issuer that is down, or says that it has paid more than there is, must not take the place of others.
            proofs.retain(|_, proof| !proof.is_counted(&self.config.manifest));
        }
        if !has_room(proofs) {
            return false;
        }
        proofs.entry(channel).or_default().take(key, ack, &self.config.manifest)
    }

    /// Shows every issuer that can be spoken to what a quorum has paid on a channel, if it has not confirmed that.
    pub(super) fn show_paid(&mut self, channel: ChannelId, out: &mut Vec<Effect>) {
        let Some(proof) = self.confirming.proofs.get(&channel) else { return };
        let manifest = &self.config.manifest;
        let lacking = self.issuers_with_keys().into_iter();
        let lacking = lacking.filter_map(|(key, node)| Some((node, proof.for_issuer(key, manifest)?)));
        for (issuer, acks) in lacking.collect::<Vec<_>>() {
            self.send(issuer, Message::Confirm(acks), out);
        }
    }

    /// Sends again what issuers have not confirmed, of some channels in turn.
    pub(super) fn show_paid_again(&mut self, out: &mut Vec<Effect>) {
        let paid = &self.paid;
        self.confirming.proofs.retain(|channel, _| paid.contains_key(channel));
        if mutant::is_in("proof-said-once") {
            return;
        }
        let later = (Bound::Excluded(self.confirming.after), Bound::Unbounded);
        let (issuers, manifest) = (self.issuers_with_keys(), &self.config.manifest);
        let is_lacking = |proof: &Proof| issuers.iter().any(|(key, _)| proof.is_lacking(*key, manifest));
        let lacking = self.confirming.proofs.range(later).filter(|(_, proof)| is_lacking(proof));
        let next: Vec<ChannelId> = lacking.map(|(channel, _)| *channel).take(AGAIN_MAX).collect();
        let is_last = next.len() < AGAIN_MAX;
        self.confirming.after = next.last().copied().filter(|_| !is_last).unwrap_or(ChannelId([0; 32]));
        for channel in next {
            self.show_paid(channel, out);
        }
    }

    /// As one of several issuers: counts what a quorum has paid on a channel.
    pub(super) fn on_confirm(&mut self, from: NodeId, acks: &[Verified<RedeemAck>], out: &mut Vec<Effect>) {
        let Some(channel) = acks.first().map(|ack| ack.channel) else {
            return out.push(Effect::Penalise(from, Offence::BadLedger));
        };
        if !self.is_party(from, channel, out) || !self.has_many_issuers() {
            return;
        }
        let Some(issuing) = &mut self.issuing else { return };
        match issuing.count(acks) {
            Ok(((channel, amount), record)) => {
                Self::record_said(record, out);
                self.send(from, Message::Confirmed { channel, amount }, out);
            }
            Err(_) => out.push(Effect::Penalise(from, Offence::BadLedger)),
        }
    }

    /// An issuer counts what we have shown it: a step of ours that waited for that is judged anew.
    pub(super) fn on_confirmed(
        &mut self,
        from: NodeId,
        (channel, amount): (ChannelId, u64),
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from) else {
            return out.push(Effect::Penalise(from, Offence::WrongSigner));
        };
        if let Some(proof) = self.confirming.proofs.get_mut(&channel) {
            proof.confirm(key, amount);
            if proof.is_over(&self.config.manifest) {
                self.confirming.proofs.remove(&channel);
            }
        }
        if self.answers.waits(key) {
            self.resend_step(from, out);
        }
    }
}
