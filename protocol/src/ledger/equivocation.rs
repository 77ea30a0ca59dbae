//! Proof that somebody signed two different records where only one can stand.

use serde::{Deserialize, Serialize};

use crate::ids::{DomainId, RecordId};
use crate::keys::{PublicKey, Scheme};
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::records::AccountOp;
use crate::manifest::Manifest;
use crate::message::{Checked, Stage, Wire};
use crate::signed::{Role, Signable, Signed, SignedError, Verified};

/// A record of which its signer may sign one only for each slot.
pub trait Slotted: Signable {
    /// What there may be one record for.
    type Slot: PartialEq;
    /// As what the slot's owner signs.
    const ROLE: Role;

    /// Returns the slot that the record takes.
    fn slot(&self) -> Self::Slot;
}

impl Slotted for Checkpoint {
    type Slot = crate::ledger::records::Epoch;
    const ROLE: Role = Role::Issuer;

    fn slot(&self) -> Self::Slot {
        self.epoch
    }
}

impl Slotted for AccountOp {
    type Slot = (crate::ids::AccountId, u64);
    const ROLE: Role = Role::Owner;

    fn slot(&self) -> Self::Slot {
        (self.account, self.sequence)
    }
}

/// Two records of one slot, which prove by themselves what their signer did. The one with the lower id comes first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<Checkpoint>: Serialize, S::Of<AccountOp>: Serialize",
    deserialize = "S::Of<Checkpoint>: Deserialize<'de>, S::Of<AccountOp>: Deserialize<'de>"
))]
pub enum Equivocation<S: Stage> {
    /// An issuer signed two checkpoints of one epoch.
    Checkpoints(S::Of<Checkpoint>, S::Of<Checkpoint>),
    /// An owner signed two steps in one place of its account.
    Steps(S::Of<AccountOp>, S::Of<AccountOp>),
}

/// Returns the key that signed both of two different records of one slot, if there is one.
#[must_use]
pub fn culprit_of<T: Slotted>(first: &Verified<T>, second: &Verified<T>) -> Option<PublicKey> {
    if first.slot() != second.slot() || first.id() == second.id() {
        return None;
    }
    first.signers(T::ROLE).find(|key| second.is_signed_by(T::ROLE, *key))
}

fn in_order<T: Slotted>(first: Verified<T>, second: Verified<T>) -> (Verified<T>, Verified<T>) {
    if first.id() < second.id() { (first, second) } else { (second, first) }
}

impl Equivocation<Checked> {
    /// Returns the proof against an issuer, if the two checkpoints are one.
    #[must_use]
    pub fn of_checkpoints(first: Verified<Checkpoint>, second: Verified<Checkpoint>) -> Option<Self> {
        culprit_of(&first, &second)?;
        let (first, second) = in_order(first, second);
        Some(Self::Checkpoints(first, second))
    }

    /// Returns the proof against an owner, if the two steps are one.
    #[must_use]
    pub fn of_steps(first: Verified<AccountOp>, second: Verified<AccountOp>) -> Option<Self> {
        culprit_of(&first, &second)?;
        let (first, second) = in_order(first, second);
        Some(Self::Steps(first, second))
    }

    /// Returns the key that the proof convicts: an issuer's of `manifest`, or that of the account whose steps they are.
    /// Nothing where the two records prove nothing: anybody can sign two records with a key that has no right to either.
    #[must_use]
    pub fn culprit(&self, manifest: &Manifest) -> Option<PublicKey> {
        let ordered = match self {
            Self::Checkpoints(first, second) => first.id() < second.id(),
            Self::Steps(first, second) => first.id() < second.id(),
        };
        let culprit = match self {
            Self::Checkpoints(first, second) => {
                culprit_of(first, second).filter(|key| manifest.has_issuer_key(*key))
            }
            Self::Steps(first, second) => {
                culprit_of(first, second).filter(|key| *key == first.account.into())
            }
        };
        culprit.filter(|_| ordered)
    }

    /// Returns the ids of the two records.
    #[must_use]
    pub const fn ids(&self) -> (RecordId, RecordId) {
        match self {
            Self::Checkpoints(first, second) => (first.id(), second.id()),
            Self::Steps(first, second) => (first.id(), second.id()),
        }
    }

    /// Returns the proof as it travels.
    #[must_use]
    pub fn signed(&self) -> Equivocation<Wire> {
        match self {
            Self::Checkpoints(first, second) => Equivocation::Checkpoints(first.signed(), second.signed()),
            Self::Steps(first, second) => Equivocation::Steps(first.signed(), second.signed()),
        }
    }
}

impl Equivocation<Wire> {
    /// Checks every signature. What the proof shows, and whom it convicts, says [`Equivocation::culprit`].
    ///
    /// # Errors
    /// When a record does not hold.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Equivocation<Checked>, SignedError> {
        Ok(match self {
            Self::Checkpoints(first, second) => {
                let (first, second) = pair(first, second, |record| record.verify(domain, scheme))?;
                Equivocation::Checkpoints(first, second)
            }
            Self::Steps(first, second) => {
                let (first, second) = pair(first, second, |record| record.verify(domain, scheme))?;
                Equivocation::Steps(first, second)
            }
        })
    }

    /// Takes a proof out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<Equivocation<Checked>, SignedError> {
        Ok(match self {
            Self::Checkpoints(first, second) => {
                let (first, second) = pair(first, second, |record| record.read_back(domain))?;
                Equivocation::Checkpoints(first, second)
            }
            Self::Steps(first, second) => {
                let (first, second) = pair(first, second, |record| record.read_back(domain))?;
                Equivocation::Steps(first, second)
            }
        })
    }
}

type Pair<T> = (Verified<T>, Verified<T>);

fn pair<T: Signable>(
    first: Signed<T>,
    second: Signed<T>,
    check: impl Fn(Signed<T>) -> Result<Verified<T>, SignedError>,
) -> Result<Pair<T>, SignedError> {
    Ok((check(first)?, check(second)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ChannelId, NodeId};
    use crate::keys::Signer;
    use crate::ledger::records::{Epoch, OpBody};
    use crate::signed::sign;
    use crate::time::Time;

    fn signer(seed: u8) -> Signer {
        Signer::from_seed([seed; 32])
    }

    fn manifest() -> Manifest {
        Manifest::home("home".into(), Time(0), &signer(1), NodeId::from(signer(2).public()))
    }

    fn step(sequence: u64, tag: u8, key: u8) -> Verified<AccountOp> {
        let account = signer(3).public().into();
        let body = OpBody::Expire(ChannelId([tag; 32]));
        let op = AccountOp { account, sequence, previous: RecordId::NONE, epoch: Epoch(0), body };
        sign(op, manifest().domain(), Role::Owner, &signer(key))
    }

    #[test]
    fn two_steps_in_one_place_convict_their_owner_and_nobody_else() {
        let manifest = manifest();
        let proof = Equivocation::of_steps(step(4, 1, 3), step(4, 2, 3)).expect("one place");
        assert_eq!(proof.culprit(&manifest), Some(signer(3).public()));
        let again = Equivocation::of_steps(step(4, 2, 3), step(4, 1, 3)).expect("one place");
        assert_eq!(again, proof, "the same pair is the same proof");
        assert_eq!(
            proof.signed().verify(manifest.domain(), Scheme::Strict).expect("signed").culprit(&manifest),
            Some(signer(3).public())
        );

        assert_eq!(Equivocation::of_steps(step(4, 1, 3), step(5, 2, 3)), None, "two places");
        assert_eq!(Equivocation::of_steps(step(4, 1, 3), step(4, 1, 3)), None, "one step, twice");
        assert_eq!(Equivocation::of_steps(step(4, 1, 3), step(4, 2, 9)), None, "two signers");
        let framed = Equivocation::of_steps(step(4, 1, 9), step(4, 2, 9)).expect("one signer");
        assert_eq!(framed.culprit(&manifest), None, "the key is not the account's");
        if let Equivocation::Steps(first, second) = proof {
            let turned = Equivocation::Steps(second, first);
            assert_eq!(turned.culprit(&manifest), None, "one proof has one form");
        }
    }
}
