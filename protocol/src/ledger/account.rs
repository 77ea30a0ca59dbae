//! Which key an account has in force, and what proves it.
//!
//! An account begins with a key and a promise: the hash of the key that comes after it. Its id is the hash of both, so
//! nobody can begin it otherwise. A rotation reveals the promised key, is signed by it, and promises the next one. So
//! whoever steals the key in force can spend with it, but cannot replace it: the next key was never used.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{AccountId, Digest, DomainId};
use crate::keys::{PublicKey, Scheme};
use crate::ledger::records::{AccountOp, OpBody};
use crate::mutant;
use crate::signed::{Role, Signed, SignedError, Verified};

/// Most rotations of an account: all of them travel with every greeting, and each costs whoever checks it a signature.
pub const ROTATIONS_MAX: usize = 16;

/// How an account begins: its first key, and the promise of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inception {
    /// First key.
    pub key: PublicKey,
    /// Promise of the key after it, as [`promise`] makes it.
    pub next: Digest,
}

/// Which keys an account had, from the first to the one in force: each was promised by the one before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lineage {
    inception: Inception,
    rotations: Vec<Verified<AccountOp>>,
    in_force: Inception,
}

/// A lineage as received: nothing was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedLineage {
    inception: Inception,
    rotations: Vec<Signed<AccountOp>>,
}

/// Why a step may not be signed with the key that signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The key has nothing to do with the account.
    #[error("signed with a key that is not the account's")]
    Foreign,
    /// The key was the account's and was replaced.
    #[error("signed with a key that was replaced")]
    Replaced,
    /// The new key is not the promised one, or did not sign.
    #[error("the new key is not the one that was promised")]
    NotPromised,
    /// The account was made without a next key, or has begun already, or has used up its rotations.
    #[error("the account cannot begin or rotate")]
    Fixed,
}

/// Returns the promise of `key`: it tells nothing of the key, and no other key fits it.
#[must_use]
pub fn promise(key: PublicKey) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("sharemesh v1 promise of an account's next key");
    Digest(*hasher.update(&key.0).finalize().as_bytes())
}

/// Checks that `op` is signed with the key that may sign it; `lineage` is what is known of its account, nothing if it has
/// not begun or is a plain key.
///
/// # Errors
/// Says what is wrong with the key.
pub fn check_signer(op: &Verified<AccountOp>, lineage: Option<&Lineage>) -> Result<(), KeyError> {
    if let OpBody::Inception(inception) = &op.body {
        return check_inception(op, inception, lineage);
    }
    match lineage {
        Some(lineage) if matches!(op.body, OpBody::Rotate(_)) => lineage.check_rotation(op).map(drop),
        Some(lineage) => lineage.check_key(op),
        None if matches!(op.body, OpBody::Rotate(_)) => Err(KeyError::Fixed),
        None if op.is_signed_by(Role::Owner, op.account.into()) => Ok(()),
        None => Err(KeyError::Foreign),
    }
}

fn check_inception(
    op: &Verified<AccountOp>,
    inception: &Inception,
    lineage: Option<&Lineage>,
) -> Result<(), KeyError> {
    let own = inception.account() == op.account && op.is_signed_by(Role::Owner, inception.key);
    match lineage {
        Some(_) => Err(KeyError::Fixed),
        None if own => Ok(()),
        None => Err(KeyError::Foreign),
    }
}

impl Inception {
    /// Returns the account that begins so.
    #[must_use]
    pub fn account(&self) -> AccountId {
        let mut hasher = blake3::Hasher::new_derive_key("sharemesh v1 account");
        AccountId(*hasher.update(&self.key.0).update(&self.next.0).finalize().as_bytes())
    }
}

impl Lineage {
    /// Returns the lineage of an account that has never rotated.
    #[must_use]
    pub const fn new(inception: Inception) -> Self {
        Self { inception, rotations: Vec::new(), in_force: inception }
    }

    /// Returns the account.
    #[must_use]
    pub fn account(&self) -> AccountId {
        self.inception.account()
    }

    /// Returns the key in force.
    #[must_use]
    pub const fn key(&self) -> PublicKey {
        self.in_force.key
    }

    /// Returns the promise of the next key.
    #[must_use]
    pub const fn next(&self) -> Digest {
        self.in_force.next
    }

    /// Returns how the account began.
    #[must_use]
    pub const fn inception(&self) -> Inception {
        self.inception
    }

    /// Returns how often the key was replaced.
    #[must_use]
    pub const fn rotations(&self) -> usize {
        self.rotations.len()
    }

    /// Takes a rotation; the one taken last changes nothing.
    ///
    /// # Errors
    /// When it does not reveal the promised key, or is not signed by it.
    pub fn rotate(&mut self, op: &Verified<AccountOp>) -> Result<(), KeyError> {
        if self.rotations.last().is_some_and(|last| last.id() == op.id()) {
            return Ok(());
        }
        let in_force = self.check_rotation(op)?;

        self.rotations.push(op.clone());
        self.in_force = in_force;
        Ok(())
    }

    /// Says whether this lineage goes on where `other` ends; two lineages of one account can differ only if its owner has
    /// signed twice.
    #[must_use]
    pub fn extends(&self, other: &Self) -> bool {
        let same = self.inception == other.inception && self.rotations.len() > other.rotations.len();
        same && self.rotations.iter().zip(&other.rotations).all(|(ours, theirs)| ours.id() == theirs.id())
    }

    /// Returns the lineage as it travels.
    #[must_use]
    pub fn signed(&self) -> SignedLineage {
        let rotations = self.rotations.iter().map(Verified::signed).collect();
        SignedLineage { inception: self.inception, rotations }
    }

    fn check_rotation(&self, op: &Verified<AccountOp>) -> Result<Inception, KeyError> {
        let OpBody::Rotate(to) = &op.body else { return Err(KeyError::Foreign) };
        if op.account != self.account() {
            return Err(KeyError::Foreign);
        }
        if self.rotations.len() >= ROTATIONS_MAX {
            return Err(KeyError::Fixed);
        }
        let promised = promise(to.key) == self.in_force.next || mutant::is_in("rotate-unpromised");
        if !promised || !op.is_signed_by(Role::Owner, to.key) {
            return Err(KeyError::NotPromised);
        }
        Ok(*to)
    }

    fn check_key(&self, op: &Verified<AccountOp>) -> Result<(), KeyError> {
        if op.is_signed_by(Role::Owner, self.in_force.key) {
            return Ok(());
        }
        if self.had(op) {
            return if mutant::is_in("replaced-key-signs") { Ok(()) } else { Err(KeyError::Replaced) };
        }
        Err(KeyError::Foreign)
    }

    /// Says whether a key that was replaced signed `op`.
    fn had(&self, op: &Verified<AccountOp>) -> bool {
        let rotated = self.rotations.iter().filter_map(|rotation| rotation.signer(Role::Owner));
        core::iter::once(self.inception.key).chain(rotated).any(|key| op.is_signed_by(Role::Owner, key))
    }
}

impl SignedLineage {
    /// Checks every signature and every promise.
    ///
    /// # Errors
    /// When one does not hold, or there are more rotations than an account may have.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Lineage, SignedError> {
        self.follow(|rotation| rotation.verify(domain, scheme))
    }

    /// Takes a lineage out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<Lineage, SignedError> {
        self.follow(|rotation| rotation.read_back(domain))
    }

    fn follow(
        self,
        read: impl Fn(Signed<AccountOp>) -> Result<Verified<AccountOp>, SignedError>,
    ) -> Result<Lineage, SignedError> {
        if self.rotations.len() > ROTATIONS_MAX {
            return Err(SignedError::Attestations);
        }
        let mut lineage = Lineage::new(self.inception);
        for rotation in self.rotations {
            let rotation = read(rotation)?;
            lineage.rotate(&rotation).map_err(|_| SignedError::Bounds("rotations"))?;
        }
        Ok(lineage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ChannelId, RecordId};
    use crate::keys::Signer;
    use crate::ledger::records::Epoch;
    use crate::signed::sign;

    const DOMAIN: DomainId = DomainId([1; 32]);

    fn key(number: u8) -> Signer {
        Signer::from_seed([number; 32])
    }

    fn begins(number: u8) -> Inception {
        Inception { key: key(number).public(), next: promise(key(number + 1).public()) }
    }

    fn lineage() -> Lineage {
        Lineage::new(begins(1))
    }

    fn op(body: OpBody, signer: &Signer) -> Verified<AccountOp> {
        let account = begins(1).account();
        let op = AccountOp { account, sequence: 0, previous: RecordId::NONE, epoch: Epoch(0), body };
        sign(op, DOMAIN, Role::Owner, signer)
    }

    fn rotation(to: u8) -> Verified<AccountOp> {
        op(OpBody::Rotate(begins(to)), &key(to))
    }

    fn spend(number: u8) -> Verified<AccountOp> {
        op(OpBody::Expire(ChannelId([9; 32])), &key(number))
    }

    #[test]
    fn a_key_signs_until_it_is_replaced_and_its_successor_from_then_on() {
        let mut lineage = lineage();
        assert_eq!(check_signer(&spend(1), Some(&lineage)), Ok(()));
        assert_eq!(check_signer(&spend(2), Some(&lineage)), Err(KeyError::Foreign));

        lineage.rotate(&rotation(2)).expect("promised");
        assert_eq!(check_signer(&spend(1), Some(&lineage)), Err(KeyError::Replaced));
        assert_eq!(check_signer(&spend(2), Some(&lineage)), Ok(()));
        assert_eq!((lineage.key(), lineage.rotations()), (key(2).public(), 1));
        assert_eq!(lineage.account(), begins(1).account());
    }

    #[test]
    fn a_stolen_key_cannot_rotate() {
        let thief = key(66);
        let own = Inception { key: thief.public(), next: promise(key(67).public()) };
        // The promised key, which its owner may have shown already, with a promise of the thief's.
        let revealed = Inception { key: key(2).public(), next: promise(thief.public()) };

        for attempt in [
            op(OpBody::Rotate(own), &key(1)),
            op(OpBody::Rotate(own), &thief),
            op(OpBody::Rotate(revealed), &key(1)),
            op(OpBody::Rotate(begins(1)), &key(1)),
        ] {
            assert_eq!(lineage().rotate(&attempt), Err(KeyError::NotPromised), "{attempt:?}");
        }
    }

    #[test]
    fn an_account_begins_with_its_own_inception_only_and_once() {
        let own = op(OpBody::Inception(begins(1)), &key(1));
        let other = op(OpBody::Inception(begins(3)), &key(3));
        let foreign = op(OpBody::Inception(begins(1)), &key(3));

        assert_eq!(check_signer(&own, None), Ok(()));
        assert_eq!(check_signer(&other, None), Err(KeyError::Foreign));
        assert_eq!(check_signer(&foreign, None), Err(KeyError::Foreign));
        assert_eq!(check_signer(&own, Some(&lineage())), Err(KeyError::Fixed));
        assert_eq!(check_signer(&rotation(2), None), Err(KeyError::Fixed));
        assert_eq!(check_signer(&spend(1), None), Err(KeyError::Foreign), "it has not begun");
    }

    #[test]
    fn a_lineage_is_believed_whole_or_not_at_all() {
        let mut lineage = lineage();
        for number in 2..=5 {
            lineage.rotate(&rotation(number)).expect("promised");
        }
        let received = lineage.signed();
        assert_eq!(received.clone().verify(DOMAIN, Scheme::Strict), Ok(lineage));

        let mut gap = received.clone();
        gap.rotations.remove(1);
        assert_eq!(gap.verify(DOMAIN, Scheme::Strict), Err(SignedError::Bounds("rotations")));
        let mut other = received;
        other.inception = begins(9);
        assert_eq!(other.verify(DOMAIN, Scheme::Strict), Err(SignedError::Bounds("rotations")));
    }

    #[test]
    fn rotations_are_bounded_and_repeating_one_changes_nothing() {
        let mut lineage = lineage();
        for number in 2..=17 {
            lineage.rotate(&rotation(number)).expect("promised");
            lineage.rotate(&rotation(number)).expect("the same again");
        }

        assert_eq!(lineage.rotations(), ROTATIONS_MAX);
        assert_eq!(lineage.rotate(&rotation(18)), Err(KeyError::Fixed));
        assert!(lineage.extends(&self::lineage()) && !self::lineage().extends(&lineage));
    }
}
