//! Proof that a quorum of issuers has paid on a channel: from then on no end can undo it, and steps are paid out of it.
//!
//! Of those who acknowledge an amount more are honest than may lie, and they promise no end below what they have paid. So
//! too few are left for one.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::ids::ChannelId;
use crate::keys::PublicKey;
use crate::ledger::issuer::IssuerError;
use crate::ledger::records::RedeemAck;
use crate::manifest::Manifest;
use crate::mutant;
use crate::signed::{Role, Verified};

/// Returns the channel and the base that a quorum of issuers has paid on it, by what each acknowledges.
///
/// # Errors
/// [`IssuerError::NoQuorum`] when too few do, [`IssuerError::WrongKey`] when one of them is no issuer,
/// [`IssuerError::UnknownChannel`] when they are about several channels.
pub fn paid_by_quorum(
    acks: &[Verified<RedeemAck>],
    manifest: &Manifest,
) -> Result<(ChannelId, u64), IssuerError> {
    let first = acks.first().ok_or(IssuerError::NoQuorum)?;
    let mut paid: BTreeMap<PublicKey, u64> = BTreeMap::new();
    for ack in acks {
        let issuer = ack.signer(Role::Issuer).filter(|key| manifest.has_issuer_key(*key));
        let most = paid.entry(issuer.ok_or(IssuerError::WrongKey)?).or_default();
        if ack.channel != first.channel {
            return Err(IssuerError::UnknownChannel);
        }
        *most = ack.amount.max(*most);
    }
    let least = if mutant::is_in("counted-by-few") { 1 } else { manifest.quorum().max(1) };
    let mut amounts: Vec<u64> = paid.into_values().collect();
    amounts.sort_unstable_by_key(|amount| core::cmp::Reverse(*amount));
    let amount = amounts.get(least.saturating_sub(1)).ok_or(IssuerError::NoQuorum)?;
    Ok((first.channel, *amount))
}

/// What a payee shows the issuers of one of its channels.
#[derive(Debug, Clone, Default)]
pub struct Proof {
    /// The greatest amount that each has acknowledged.
    acks: BTreeMap<PublicKey, Verified<RedeemAck>>,
    /// Up to which amount each has confirmed that it counts.
    confirmed: BTreeMap<PublicKey, u64>,
}

impl Proof {
    /// Takes an issuer's acknowledgement; says whether a quorum has paid more by it.
    pub fn take(&mut self, key: PublicKey, ack: Verified<RedeemAck>, manifest: &Manifest) -> bool {
        let before = self.amount(manifest);
        if self.acks.get(&key).is_none_or(|known| known.amount < ack.amount) {
            self.acks.insert(key, ack);
        }
        self.amount(manifest) > before
    }

    /// Learns up to which amount an issuer counts what was paid.
    pub fn confirm(&mut self, key: PublicKey, amount: u64) {
        let known = self.confirmed.entry(key).or_default();
        *known = amount.max(*known);
    }

    /// Returns the acknowledgements, if a quorum has paid anything that this issuer has not confirmed.
    #[must_use]
    pub fn for_issuer(&self, key: PublicKey, manifest: &Manifest) -> Option<Vec<Verified<RedeemAck>>> {
        self.is_lacking(key, manifest).then(|| self.acks.values().cloned().collect())
    }

    /// Says whether a quorum has paid anything that this issuer has not confirmed.
    #[must_use]
    pub fn is_lacking(&self, key: PublicKey, manifest: &Manifest) -> bool {
        self.amount(manifest) > self.confirmed.get(&key).copied().unwrap_or(0)
    }

    /// Says whether a quorum counts all that a quorum has paid, so that steps can be paid out of it. It need not be kept where
    /// there is no room, whatever one issuer alone says or does not say.
    #[must_use]
    pub fn is_counted(&self, manifest: &Manifest) -> bool {
        manifest.agrees(|key| !self.is_lacking(key, manifest))
    }

    /// Says whether every issuer has confirmed all that any of them has acknowledged.
    #[must_use]
    pub fn is_over(&self, manifest: &Manifest) -> bool {
        let most = self.acks.values().map(|ack| ack.amount).max().unwrap_or(0);
        let counts = |key| self.confirmed.get(&key).is_some_and(|amount| *amount >= most);
        manifest.issuers.iter().all(|issuer| counts(issuer.key))
    }

    /// Returns what a quorum has paid.
    fn amount(&self, manifest: &Manifest) -> u64 {
        let acks: Vec<Verified<RedeemAck>> = self.acks.values().cloned().collect();
        paid_by_quorum(&acks, manifest).map_or(0, |(_, amount)| amount)
    }
}
