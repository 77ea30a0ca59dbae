//! What a node keeps for others: the newest receipt of a channel with the proof of the channel, so that a payee that
//! lost its disk, or is away for long, gets what it earned.
//!
//! Nothing is taken on trust: the issuers' word that the channel was opened and both parties' signatures on the receipt
//! are checked, so that the space of a mirror cannot be filled without paying for channels.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use thiserror::Error;

use crate::ids::{ChannelId, NodeId, RecordId};
use crate::ledger::paying::is_newer;
use crate::ledger::reconcile::Set;
use crate::ledger::records::{Epoch, OpBody, OpenChannel, Receipt};
use crate::manifest::Manifest;
use crate::message::{Checked, Kept, Opening};
use crate::mutant;
use crate::signed::{Role, Verified};

/// Most channels kept for one payee.
pub const PER_PAYEE_MAX: usize = 4096;

/// Most channels kept in all: about 1.5 KiB each.
pub const IN_ALL_MAX: usize = 16_384;

/// Why a mirror does not keep something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MirrorError {
    /// The opening is not of a channel on which the sender is paid, or no quorum of issuers stands for it.
    #[error("no proof of a channel on which the sender is paid")]
    Unproven,
    /// The receipt is not the channel's, or not signed by both sides.
    #[error("not a receipt of the channel that both sides signed")]
    BadReceipt,
    /// Nothing can be redeemed on the channel any more.
    #[error("the channel is over")]
    Over,
    /// A bound is reached.
    #[error("no room for more")]
    Full,
}

/// A channel that is kept.
#[derive(Debug, Clone)]
struct Entry {
    opening: Opening<Checked>,
    receipt: Verified<Receipt>,
    expires: Epoch,
    /// Issuers that have paid out this receipt, or more.
    paid_by: BTreeSet<NodeId>,
}

/// All that is kept, by payee.
#[derive(Debug, Clone, Default)]
pub struct Mirror {
    payees: BTreeMap<NodeId, BTreeMap<ChannelId, Entry>>,
    payee_of: BTreeMap<ChannelId, NodeId>,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing: the same receipt or a newer one was here.
    None,
    /// A newer receipt of a channel that was known.
    Receipt,
    /// A channel that was not known.
    Channel,
}

impl Mirror {
    /// Keeps a channel's receipt for `payee`; an older one changes nothing.
    ///
    /// # Errors
    /// Says why it is not kept.
    pub fn keep(
        &mut self,
        payee: NodeId,
        kept: &Kept<Checked>,
        manifest: &Manifest,
        now: Epoch,
    ) -> Result<News, MirrorError> {
        let Kept { opening, receipt } = kept;
        let open =
            proven(opening, manifest).filter(|open| open.payee == payee).ok_or(MirrorError::Unproven)?;
        let receipt = receipt.as_ref().filter(|receipt| is_of(receipt, opening, open));
        let receipt = receipt.ok_or(MirrorError::BadReceipt)?;
        if open.expires.plus(manifest.grace_epochs) < now {
            return Err(MirrorError::Over);
        }
        let held = self.entry(receipt.channel);
        let news = match held {
            Some(held) if !is_newer(receipt, &held.receipt) => return Ok(News::None),
            Some(_) => News::Receipt,
            None => News::Channel,
        };
        let of_payee = self.payees.get(&payee).map_or(0, BTreeMap::len);
        if news == News::Channel && (of_payee >= PER_PAYEE_MAX || self.payee_of.len() >= IN_ALL_MAX) {
            return Err(MirrorError::Full);
        }

        self.insert(payee, open.expires, opening.clone(), receipt.clone());
        Ok(news)
    }

    /// Takes a line of our own journal.
    pub fn restore(&mut self, opening: Option<Opening<Checked>>, receipt: Verified<Receipt>) {
        let opening = opening.or_else(|| Some(self.entry(receipt.channel)?.opening.clone()));
        let Some(opening) = opening else { return };
        if let OpBody::OpenChannel(open) = &opening.op.body {
            let (payee, expires) = (open.payee, open.expires);
            self.insert(payee, expires, opening, receipt);
        }
    }

    /// Keeps nothing for a channel any more; says whether anything was kept.
    pub fn forget(&mut self, channel: ChannelId) -> bool {
        let Some(payee) = self.payee_of.remove(&channel) else { return false };
        if let Some(channels) = self.payees.get_mut(&payee) {
            channels.remove(&channel);
            if channels.is_empty() {
                self.payees.remove(&payee);
            }
        }
        true
    }

    /// Forgets the channels on which nothing can be redeemed any more; returns which.
    pub fn expire(&mut self, grace: u32, now: Epoch) -> Vec<ChannelId> {
        let entries = self.payees.values().flatten();
        let over = entries.filter(|(_, entry)| entry.expires.plus(grace) < now);
        let over: Vec<ChannelId> = over.map(|(channel, _)| *channel).collect();
        for channel in &over {
            self.forget(*channel);
        }
        over
    }

    /// Says whether a channel is kept for `payee`.
    #[must_use]
    pub fn keeps(&self, payee: NodeId, channel: ChannelId) -> bool {
        self.payee_of.get(&channel) == Some(&payee)
    }

    /// Returns for how many channels something is kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payee_of.len()
    }

    /// Says whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.payee_of.is_empty()
    }

    /// Returns for whom something is kept.
    pub fn payees(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.payees.keys().copied()
    }

    /// Returns the receipts kept, each with whose it is.
    pub fn receipts(&self) -> impl Iterator<Item = (NodeId, &Verified<Receipt>)> {
        let payees = self.payees.iter();
        payees.flat_map(|(payee, channels)| channels.values().map(|entry| (*payee, &entry.receipt)))
    }

    /// Returns the receipts kept for `payee`, to be compared with its own.
    #[must_use]
    pub fn set_of(&self, payee: NodeId) -> Set {
        let entries = self.payees.get(&payee).into_iter().flat_map(BTreeMap::values);
        entries.map(|entry| entry.receipt.id()).collect()
    }

    /// Returns what is kept for `payee`, in the order of the channels.
    pub fn of(&self, payee: NodeId) -> impl Iterator<Item = Kept<Checked>> + '_ {
        let entries = self.payees.get(&payee).into_iter().flat_map(BTreeMap::values);
        entries.map(|entry| Kept { opening: entry.opening.clone(), receipt: Some(entry.receipt.clone()) })
    }

    /// Returns the receipts that nobody but a mirror may still bring to the issuers: those of channels in their last
    /// epoch of grace, and those of payees that `is_away` says to be away.
    pub fn to_redeem(
        &self,
        grace: u32,
        now: Epoch,
        is_away: impl Fn(NodeId) -> bool,
    ) -> impl Iterator<Item = (&Verified<Receipt>, &BTreeSet<NodeId>)> {
        let away = self.payees.iter().map(move |(payee, channels)| (is_away(*payee), channels));
        let entries = away.flat_map(|(away, channels)| channels.values().map(move |entry| (away, entry)));
        let due = entries.filter(move |(away, entry)| *away || entry.expires.plus(grace) <= now);
        due.map(|(_, entry)| (&entry.receipt, &entry.paid_by))
    }

    /// Learns that an issuer has paid out a receipt.
    pub fn paid(&mut self, issuer: NodeId, receipt: RecordId) {
        let mut entries = self.payees.values_mut().flat_map(BTreeMap::values_mut);
        if let Some(entry) = entries.find(|entry| entry.receipt.id() == receipt) {
            entry.paid_by.insert(issuer);
        }
    }

    fn entry(&self, channel: ChannelId) -> Option<&Entry> {
        self.payees.get(self.payee_of.get(&channel)?)?.get(&channel)
    }

    fn insert(
        &mut self,
        payee: NodeId,
        expires: Epoch,
        opening: Opening<Checked>,
        receipt: Verified<Receipt>,
    ) {
        self.payee_of.insert(receipt.channel, payee);
        let entry = Entry { opening, receipt, expires, paid_by: BTreeSet::new() };
        self.payees.entry(payee).or_default().insert(entry.receipt.channel, entry);
    }
}

/// Returns what an opening opens, if it is whole: on terms of the payee's node, and with a quorum of issuers behind it,
/// who have checked the step itself.
#[must_use]
pub fn proven<'a>(opening: &'a Opening<Checked>, manifest: &Manifest) -> Option<&'a OpenChannel> {
    let OpBody::OpenChannel(open) = &opening.op.body else { return None };
    let terms = &opening.terms;
    let belongs = open.terms == terms.id()
        && open.payee == terms.payee
        && terms.payer_account == opening.op.account
        && terms.is_signed_by(Role::Node, terms.payee.into());
    (belongs && opening.is_committed(manifest)).then_some(open)
}

/// Says whether a receipt is one of the channel that both sides signed, within its cap.
#[must_use]
pub fn is_of(receipt: &Verified<Receipt>, opening: &Opening<Checked>, open: &OpenChannel) -> bool {
    let both = [(Role::Payer, open.payer_key), (Role::Payee, opening.terms.payee_key)];
    let payer_alone = receipt.is_signed_only_by(&both[..1]) && mutant::is_in("mirror-keeps-half-signed");
    receipt.channel == ChannelId::from(opening.op.id())
        && receipt.amount <= open.cap
        && (receipt.is_signed_only_by(&both) || payer_alone)
}
