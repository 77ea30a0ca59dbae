//! What issuers tell those whom a step of somebody else concerns.

use serde::{Deserialize, Serialize};

use super::{Checked, Stage, Wire};
use crate::ids::{DomainId, RecordId};
use crate::keys::Scheme;
use crate::ledger::issuer::IssuerError;
use crate::ledger::quorum::{Certificate, Fact, is_agreed};
use crate::ledger::records::{AccountOp, Deposit, Terms, Vote};
use crate::manifest::Manifest;
use crate::signed::SignedError;

/// What the issuers booked and what concerns the receiver. It proves itself: a quorum has signed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<AccountOp>: Serialize, S::Of<Deposit>: Serialize, S::Of<Terms>: Serialize,
        S::Of<Vote>: Serialize",
    deserialize = "S::Of<AccountOp>: Deserialize<'de>, S::Of<Deposit>: Deserialize<'de>,
        S::Of<Terms>: Deserialize<'de>, S::Of<Vote>: Deserialize<'de>"
))]
pub enum News<S: Stage> {
    /// Credits that entered for the receiver's account.
    Deposit(S::Of<Deposit>),
    /// Another account's step: a payment to the receiver's account, or the early end of a channel to its node.
    Step(Certificate<S>),
}

impl News<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<News<Checked>, SignedError> {
        Ok(match self {
            Self::Deposit(deposit) => News::Deposit(deposit.verify(domain, scheme)?),
            Self::Step(certificate) => News::Step(certificate.verify(domain, scheme)?),
        })
    }

    /// Takes news out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<News<Checked>, SignedError> {
        Ok(match self {
            Self::Deposit(deposit) => News::Deposit(deposit.read_back(domain)?),
            Self::Step(certificate) => News::Step(certificate.read_back(domain)?),
        })
    }
}

impl News<Checked> {
    /// Returns the news as it travels and is kept.
    #[must_use]
    pub fn signed(&self) -> News<Wire> {
        match self {
            Self::Deposit(deposit) => News::Deposit(deposit.signed()),
            Self::Step(certificate) => News::Step(certificate.signed()),
        }
    }

    /// Returns the id of the deposit or the step.
    #[must_use]
    pub const fn id(&self) -> RecordId {
        match self {
            Self::Deposit(deposit) => deposit.id(),
            Self::Step(certificate) => certificate.op.id(),
        }
    }

    /// Checks that a quorum of the network's issuers has signed it.
    ///
    /// # Errors
    /// [`IssuerError::NoQuorum`] when too few have.
    pub fn check(&self, manifest: &Manifest) -> Result<(), IssuerError> {
        match self {
            Self::Deposit(deposit) if is_agreed(deposit, manifest) => Ok(()),
            Self::Deposit(_) => Err(IssuerError::NoQuorum),
            Self::Step(certificate) => certificate.check(manifest),
        }
    }

    /// Returns the news as what issuers hand to each other.
    #[must_use]
    pub fn fact(&self) -> Fact<Checked> {
        match self {
            Self::Deposit(deposit) => Fact::Deposit(deposit.clone()),
            Self::Step(certificate) => Fact::Step(certificate.clone()),
        }
    }
}
