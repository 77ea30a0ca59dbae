//! What builders get on top of the base: to whom jobs of this account may pay it, and how they hear what they got.
//!
//! A builder is no party to the channels that pay it, so it has no receipts of them. Each issuer tells it what it has paid
//! out of each, until the builder has written that down; what one more issuer says than may lie counts.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use thiserror::Error;

use crate::ids::{AccountId, ChannelId, NodeId};
use crate::keys::PublicKey;
use crate::ledger::issuer::Routed;
use crate::ledger::money::QUANTUM;
use crate::ledger::quorum::Acks;
use crate::ledger::records::{Markup, RedeemAck};
use crate::message::{Message, ROUTED_MAX};
use crate::record::Record;
use crate::statement::{Kind, Line};
use crate::time::Time;

use super::{Effect, Node, Offence};

/// Most channels that have not ended of which a builder remembers what one issuer says: others wait until some have.
const CLAIMS_MAX: usize = 65_536;

/// As issuer: channels that have paid builders, who have not confirmed that they know.
#[derive(Debug, Default)]
pub(super) struct Untold(BTreeMap<AccountId, BTreeSet<ChannelId>>);

/// As builder: what channels have paid us.
#[derive(Debug, Default)]
pub(super) struct Markups {
    /// What issuers have said of channels that pay on; a liar may name another payer or markup than the others.
    said: BTreeMap<(ChannelId, AccountId, u16), Acks>,
    /// Whose channel, with which markup, each issuer has said that one is: it says so once, so that none fills the memory.
    claims: BTreeMap<PublicKey, BTreeMap<ChannelId, (AccountId, u16)>>,
    /// What is written down of each channel, in nano-credits.
    moved: BTreeMap<ChannelId, u64>,
}

impl Untold {
    /// Notes that channels have paid builders.
    pub(super) fn extend(&mut self, channels: impl IntoIterator<Item = (AccountId, ChannelId)>) {
        for (builder, channel) in channels {
            self.0.entry(builder).or_default().insert(channel);
        }
    }

    fn confirm(&mut self, builder: AccountId, channel: ChannelId) {
        if let Some(channels) = self.0.get_mut(&builder) {
            channels.remove(&channel);
            if channels.is_empty() {
                self.0.remove(&builder);
            }
        }
    }
}

impl Markups {
    /// Says whether an issuer may say this of a channel: it has said nothing else before, and not too much of others.
    fn may_say(&mut self, issuer: PublicKey, routed: &Routed) -> bool {
        let claims = self.claims.entry(issuer).or_default();
        let claim = (routed.payer, routed.bps);
        match claims.get(&routed.channel) {
            Some(known) => *known == claim,
            None if claims.len() >= CLAIMS_MAX => false,
            None => claims.insert(routed.channel, claim).is_none(),
        }
    }

    /// Says whether all of this is written down, of a channel that was forgotten since: an issuer that says so late is heard,
    /// and nothing is kept of it.
    fn is_over(&self, routed: &Routed) -> bool {
        let Routed { channel, payer, bps, redeemed, closed, .. } = *routed;
        let is_same = self.moved.get(&channel) == Some(&markup_of(redeemed, bps));
        closed && is_same && !self.said.contains_key(&(channel, payer, bps))
    }

    /// Forgets what was said of a channel that has ended: what it paid in all is written down.
    fn forget(&mut self, channel: ChannelId) {
        let claims = self.claims.values_mut().filter_map(|claims| claims.remove(&channel));
        for (payer, bps) in claims {
            self.said.remove(&(channel, payer, bps));
        }
    }

    /// Takes a line of our own journal.
    pub(super) fn replay(&mut self, line: &Line) {
        if let (Kind::Markup, Some(channel)) = (line.kind, line.channel) {
            let moved = self.moved.entry(channel).or_default();
            *moved = moved.saturating_add(line.credit).saturating_sub(line.debit);
        }
    }
}

/// Returns what a builder has got of a channel that has paid this base, in nano-credits.
fn markup_of(base: u64, bps: u16) -> u64 {
    (base / QUANTUM).saturating_mul(u64::from(bps))
}

/// Why a job may not pay a markup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MarkupError {
    /// The network or the account's owner allows less.
    #[error("the markup is above {most} basis points, the most that it may be")]
    TooHigh {
        /// The most that it may be, in basis points.
        most: u16,
    },
    /// The account's owner has not allowed this builder.
    #[error("the owner of this node's account has not allowed this builder")]
    NotAllowed,
    /// The builder's account is the payer's.
    #[error("the builder is the account that pays")]
    Own,
}

impl Node {
    /// As issuer: tells a builder what its channels have paid; what is left follows when that is confirmed.
    pub(super) fn tell_markups(&mut self, to: NodeId, account: AccountId, now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        let Some(issuing) = &mut self.issuing else { return };
        let Some(channels) = issuing.untold.0.get_mut(&account) else { return };
        // The books forget a channel long after its end.
        channels.retain(|channel| issuing.witness.books.routed(*channel, epoch).is_some());
        let routed = channels.iter().filter_map(|channel| issuing.witness.books.routed(*channel, epoch));
        let routed: Vec<Routed> = routed.map(|(_, routed)| routed).take(ROUTED_MAX).collect();
        if !routed.is_empty() {
            self.send(to, Message::Markups(routed), out);
        }
    }

    /// As issuer: a builder has written down what channels have paid it.
    pub(super) fn on_markups_noted(
        &mut self,
        from: NodeId,
        noted: &[Routed],
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let epoch = self.epoch(now);
        let (Some(account), Some(issuing)) = (self.account_of(from), &mut self.issuing) else { return };
        for routed in noted.iter().take(ROUTED_MAX) {
            let current = issuing.witness.books.routed(routed.channel, epoch);
            let is_current = current.is_none_or(|(_, current)| {
                (current.redeemed, current.closed) == (routed.redeemed, routed.closed)
            });
            if is_current {
                issuing.untold.confirm(account, routed.channel);
            }
        }
        if noted.len() >= ROUTED_MAX {
            self.tell_markups(from, account, now, out);
        }
    }

    /// As builder: writes down what issuers have paid us out of channels. Heard twice, it changes nothing.
    pub(super) fn on_markups(&mut self, from: NodeId, mut told: Vec<Routed>, out: &mut Vec<Effect>) {
        let Some(key) = self.issuer_key(from).filter(|_| told.len() <= ROUTED_MAX) else {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        };
        // What an account receives its wallet node writes down, once.
        if self.is_device() {
            return;
        }
        // What is not heard is not confirmed either.
        told.retain(|routed| self.markups.is_over(routed) || self.markups.may_say(key, routed));
        for routed in &told {
            if self.markups.is_over(routed) {
                continue;
            }
            let Routed { channel, payer, bps, redeemed, closed, epoch } = *routed;
            let said = self.markups.said.entry((channel, payer, bps)).or_default();
            said.learn(key, &RedeemAck { channel, amount: redeemed, closed, epoch });
            let manifest = &self.config.manifest;
            let (end, epoch) = (said.end(manifest), said.epoch(manifest));
            let base = end.unwrap_or_else(|| said.vouched(manifest));
            let all = markup_of(base, bps);
            let before = self.markups.moved.get(&channel).copied().unwrap_or(0);
            // Only an end takes back what some issuers had paid beyond it; others may just have said less so far.
            if all > before || (end.is_some() && all < before) {
                self.markups.moved.insert(channel, all);
                let (credit, debit) = (all.saturating_sub(before), before.saturating_sub(all));
                let (partner, channel) = (Some(payer), Some(channel));
                let line = Line { epoch, kind: Kind::Markup, credit, debit, partner, record: None, channel };
                out.push(Effect::Record(Record::Moved(line)));
            }
            if end.is_some() {
                self.markups.forget(channel);
            }
        }
        self.send(from, Message::MarkupsNoted(told), out);
    }

    /// Checks a markup against the network's limit and what the owner has allowed. Paying oneself is refused: it would only
    /// turn what was earned into cash.
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn check_markup(&self, markup: &Markup) -> Result<(), MarkupError> {
        let most = self.config.manifest.markup_max_bps;
        if markup.bps > most {
            return Err(MarkupError::TooHigh { most });
        }
        if markup.builder == self.wallet.account() {
            return Err(MarkupError::Own);
        }
        match self.config.builders.get(&markup.builder) {
            None => Err(MarkupError::NotAllowed),
            Some(&most) if markup.bps > most => Err(MarkupError::TooHigh { most }),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::keys::Signer;
    use crate::ledger::records::Epoch;

    fn routed(channel: u8, payer: u8) -> Routed {
        let (channel, payer) = (ChannelId([channel; 32]), AccountId([payer; 32]));
        Routed { channel, payer, bps: 100, redeemed: 1, closed: false, epoch: Epoch(0) }
    }

    #[test]
    fn an_issuer_says_one_thing_of_a_channel_and_may_say_it_again_when_the_channel_is_forgotten() {
        let mut markups = Markups::default();
        let [one, other] = [1, 2].map(|seed| Signer::simulated([seed; 32]).public());
        let said = [(one, 1), (one, 2), (one, 1), (other, 2)];
        let heard = said.map(|(issuer, payer)| markups.may_say(issuer, &routed(1, payer)));
        assert_eq!(heard, vec![true, false, true, true][..]);

        markups.said.entry((ChannelId([1; 32]), AccountId([1; 32]), 100)).or_default();
        markups.forget(ChannelId([1; 32]));
        assert!(markups.said.is_empty() && markups.may_say(one, &routed(1, 2)));
    }

    #[test]
    fn an_issuer_that_says_late_that_a_channel_has_ended_adds_nothing() {
        let mut markups = Markups::default();
        let ended = Routed { redeemed: 5 * QUANTUM, closed: true, ..routed(1, 1) };
        assert!(!markups.is_over(&ended), "nothing is written down of it");
        markups.moved.insert(ended.channel, 500);
        assert!(markups.is_over(&ended) && !markups.is_over(&Routed { closed: false, ..ended }));
        assert!(!markups.is_over(&Routed { redeemed: 6 * QUANTUM, ..ended }), "it has paid more");
        markups.said.entry((ended.channel, ended.payer, ended.bps)).or_default();
        assert!(!markups.is_over(&ended), "others have yet to say so");
    }

    #[test]
    fn an_issuer_that_invents_channels_keeps_none_of_the_others_from_being_heard() {
        let mut markups = Markups::default();
        let [liar, honest] = [1, 2].map(|seed| Signer::simulated([seed; 32]).public());
        let invented = |number: usize| {
            let mut channel = [0; 32];
            channel[..8].copy_from_slice(&number.to_be_bytes());
            Routed { channel: ChannelId(channel), ..routed(0, 1) }
        };
        let heard = (0..CLAIMS_MAX + 10).filter(|number| markups.may_say(liar, &invented(*number))).count();
        assert_eq!(heard, CLAIMS_MAX);
        assert!(markups.may_say(honest, &routed(9, 1)));
    }
}
