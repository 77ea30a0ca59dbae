//! Deposits from outside among several issuers: each operator says by itself what it has seen, and a quorum makes one.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::ids::{AccountId, Digest, DomainId};
use crate::keys::{PublicKey, Signer};
use crate::ledger::issuer::IssuerError;
use crate::ledger::quorum::is_agreed;
use crate::ledger::records::{Deposit, Epoch, Source};
use crate::manifest::Manifest;
use crate::mutant;
use crate::signed::{Role, Verified, sign};

/// Most deposits of ours that wait for other operators: each was typed in by hand.
const OURS_MAX: usize = 10_000;

/// Most deposits of another issuer that are remembered, so that a lying one fills no more than its own share.
const HEARD_PER_ISSUER_MAX: usize = 1_000;

/// Most deposits that are repeated at once.
const ROUND_MAX: usize = 32;

/// What operators say has come in, as long as it is not booked.
#[derive(Debug, Clone, Default)]
pub struct Outside {
    /// What our operator has seen: one account and one amount for a reference, for good.
    ours: BTreeMap<Digest, Verified<Deposit>>,
    /// What other issuers have signed.
    heard: BTreeMap<(PublicKey, Digest), Verified<Deposit>>,
    /// The last one that was repeated.
    repeated: Option<Digest>,
}

/// How far a deposit from outside has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Account that our operator has named.
    pub account: AccountId,
    /// Amount that our operator has named, in nano-credits.
    pub amount: u64,
    /// Issuers that have signed just that, our own among them.
    pub signed: usize,
    /// Issuers that have signed something else under the same reference.
    pub others: usize,
}

impl Outside {
    /// Signs what our operator has seen; saying the same again changes nothing. The epoch is the lowest that anybody has
    /// signed for it, so that all come to sign the same record. Says whether it is new.
    ///
    /// # Errors
    /// When another account or amount was signed for the reference, or too many wait.
    pub fn vouch(
        &mut self,
        deposit: Deposit,
        domain: DomainId,
        signer: &Signer,
    ) -> Result<bool, IssuerError> {
        if let Some(ours) = self.ours.get(&deposit.reference) {
            if is_same(ours, &deposit) {
                return Ok(false);
            }
            if !mutant::is_in("vouch-twice") {
                return Err(IssuerError::OtherDeposit { amount: ours.amount });
            }
        }
        if self.ours.len() >= OURS_MAX {
            return Err(IssuerError::Full);
        }
        let heard = self.heard_of(deposit.reference).filter(|heard| is_same(heard, &deposit));
        let epoch =
            heard.map(|heard| heard.epoch).min().map_or(deposit.epoch, |heard| heard.min(deposit.epoch));

        let ours = sign(Deposit { epoch, ..deposit }, domain, Role::Issuer, signer);
        self.ours.insert(ours.reference, ours);
        Ok(true)
    }

    /// Takes note of what another issuer has signed. If our operator has seen the same, but our record names a later
    /// epoch, ours is signed again with the earlier one; says whether it was.
    pub fn hear(
        &mut self,
        by: PublicKey,
        deposit: &Verified<Deposit>,
        domain: DomainId,
        signer: &Signer,
    ) -> bool {
        if !deposit.is_signed_by(Role::Issuer, by) || deposit.source != Source::Outside {
            return false;
        }
        let place = (by, deposit.reference);
        let by_it = self.heard.range((by, Digest([0; 32]))..=(by, Digest([0xff; 32]))).count();
        if by_it < HEARD_PER_ISSUER_MAX || self.heard.contains_key(&place) {
            self.heard.insert(place, deposit.clone());
        }
        match self.ours.get_mut(&deposit.reference) {
            Some(ours) if is_same(ours, deposit) && deposit.epoch < ours.epoch => {
                *ours = sign(Deposit::clone(deposit), domain, Role::Issuer, signer);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Returns our deposit of a reference with every signature that we know.
    #[must_use]
    pub fn gathered(&self, reference: Digest, manifest: &Manifest) -> Option<Verified<Deposit>> {
        let is_issuer = |role, key| role == Role::Issuer && manifest.has_issuer_key(key);
        let ours = self.ours.get(&reference)?.clone();
        Some(self.heard_of(reference).fold(ours, |ours, heard| ours.with_signatures_of(heard, is_issuer)))
    }

    /// Returns our deposit of a reference when a quorum has signed it.
    #[must_use]
    pub fn agreed(&self, reference: Digest, manifest: &Manifest) -> Option<Verified<Deposit>> {
        self.gathered(reference, manifest).filter(|deposit| is_agreed(deposit, manifest))
    }

    /// Returns how far the deposit of a reference has come that our operator has seen.
    #[must_use]
    pub fn progress(&self, reference: Digest, manifest: &Manifest) -> Option<Progress> {
        let ours = self.ours.get(&reference)?;
        let same = self.heard_of(reference).filter(|heard| is_same(heard, ours));
        let signers = same.chain([ours]).flat_map(|deposit| deposit.signers(Role::Issuer));
        let signers: BTreeSet<PublicKey> = signers.filter(|key| manifest.has_issuer_key(*key)).collect();
        let others = self.heard_of(reference).filter(|heard| !is_same(heard, ours)).count();
        Some(Progress { account: ours.account, amount: ours.amount, signed: signers.len(), others })
    }

    /// Returns the deposits whose turn it is to be repeated, with the signatures so far.
    pub fn round(&mut self, manifest: &Manifest) -> Vec<Verified<Deposit>> {
        let later = self.ours.keys().filter(|reference| self.repeated.is_none_or(|last| **reference > last));
        let references: Vec<Digest> = later.take(ROUND_MAX).copied().collect();
        // After the last comes the first.
        self.repeated = references.last().copied().filter(|_| references.len() == ROUND_MAX);
        references.into_iter().filter_map(|reference| self.gathered(reference, manifest)).collect()
    }

    /// Forgets a deposit that is in the books, which know its reference for good.
    pub fn booked(&mut self, reference: Digest) {
        self.ours.remove(&reference);
        self.heard.retain(|(_, heard), _| *heard != reference);
    }

    /// Takes back from our journal what our operator has seen.
    pub fn restore(&mut self, deposit: Verified<Deposit>) {
        self.ours.insert(deposit.reference, deposit);
    }

    /// Returns our own signature for a reference, to be written down.
    #[must_use]
    pub fn ours(&self, reference: Digest) -> Option<&Verified<Deposit>> {
        self.ours.get(&reference)
    }

    fn heard_of(&self, reference: Digest) -> impl Iterator<Item = &Verified<Deposit>> + '_ {
        self.heard.iter().filter(move |((_, heard), _)| *heard == reference).map(|(_, deposit)| deposit)
    }
}

/// Says whether two deposits of one reference are of the same payment. Their epochs may differ.
fn is_same(one: &Deposit, other: &Deposit) -> bool {
    let what = |deposit: &Deposit| (deposit.reference, deposit.account, deposit.amount, deposit.source);
    what(one) == what(other)
}

/// Returns a deposit from outside.
#[must_use]
pub const fn from_outside(reference: Digest, account: AccountId, amount: u64, epoch: Epoch) -> Deposit {
    Deposit { reference, account, amount, epoch, source: Source::Outside }
}
