//! Channels in messages: proofs that they were opened, their newest receipts, and what mirrors keep of them.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Checked, Stage, Wire};
use crate::ids::{ChannelId, DomainId, RecordId};
use crate::keys::Scheme;
use crate::ledger::records::{AccountOp, Receipt, Recorded, Terms};
use crate::manifest::Manifest;
use crate::signed::{Role, Signed, SignedError, Verified};

/// Most channel heads in one message.
pub const HEADS_MAX: usize = 512;

/// Most channels in one message of a mirror: with the largest quorum each takes about 3 KiB.
pub const KEPT_MAX: usize = 16;

/// Most receipts or channels named in one message to a mirror.
pub const KEPT_QUERY_MAX: usize = 512;

/// Proof that a channel was opened and committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<AccountOp>: Serialize, S::Of<Recorded>: Serialize, S::Of<Terms>: Serialize",
    deserialize = "S::Of<AccountOp>: Deserialize<'de>, S::Of<Recorded>: Deserialize<'de>,
        S::Of<Terms>: Deserialize<'de>"
))]
pub struct Opening<S: Stage> {
    /// The step that opened it.
    pub op: S::Of<AccountOp>,
    /// The payee's terms.
    pub terms: S::Of<Terms>,
    /// A quorum's word that the step is durable.
    pub recorded: Vec<S::Of<Recorded>>,
}

impl Opening<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold, or there are more than a quorum can have.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Opening<Checked>, SignedError> {
        self.map(
            |recorded| recorded.verify(domain, scheme),
            |op| op.verify(domain, scheme),
            |terms| terms.verify(domain, scheme),
        )
    }

    /// Takes an opening out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<Opening<Checked>, SignedError> {
        self.map(
            |recorded| recorded.read_back(domain),
            |op| op.read_back(domain),
            |terms| terms.read_back(domain),
        )
    }

    fn map(
        self,
        recorded: impl Fn(Signed<Recorded>) -> Result<Verified<Recorded>, SignedError>,
        op: impl Fn(Signed<AccountOp>) -> Result<Verified<AccountOp>, SignedError>,
        terms: impl Fn(Signed<Terms>) -> Result<Verified<Terms>, SignedError>,
    ) -> Result<Opening<Checked>, SignedError> {
        if self.recorded.len() > crate::manifest::ISSUERS_MAX {
            return Err(SignedError::Attestations);
        }
        let recorded = self.recorded.into_iter().map(recorded).collect::<Result<_, _>>()?;
        Ok(Opening { op: op(self.op)?, terms: terms(self.terms)?, recorded })
    }
}

impl Opening<Checked> {
    /// Says whether a quorum of the network's issuers durably holds the step.
    #[must_use]
    pub fn is_committed(&self, manifest: &Manifest) -> bool {
        if self.recorded.len() > manifest.issuers.len() {
            return false;
        }
        let confirms = |issuer: &crate::manifest::Issuer| {
            let signed = |recorded: &Verified<Recorded>| recorded.is_signed_by(Role::Issuer, issuer.key);
            self.recorded.iter().any(|recorded| recorded.op == self.op.id() && signed(recorded))
        };
        manifest.issuers.iter().filter(|issuer| confirms(issuer)).count() >= usize::from(manifest.quorum)
    }

    /// Returns the opening as it travels.
    #[must_use]
    pub fn signed(&self) -> Opening<Wire> {
        Opening {
            op: self.op.signed(),
            terms: self.terms.signed(),
            recorded: self.recorded.iter().map(Verified::signed).collect(),
        }
    }
}

/// A channel as a mirror keeps it: proof that it was opened, and the newest receipt, if there is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<AccountOp>: Serialize, S::Of<Receipt>: Serialize, S::Of<Recorded>: Serialize,
        S::Of<Terms>: Serialize",
    deserialize = "S::Of<AccountOp>: Deserialize<'de>, S::Of<Receipt>: Deserialize<'de>,
        S::Of<Recorded>: Deserialize<'de>, S::Of<Terms>: Deserialize<'de>"
))]
pub struct Kept<S: Stage> {
    /// The proof.
    pub opening: Opening<S>,
    /// The receipt, signed by both sides.
    pub receipt: Option<S::Of<Receipt>>,
}

impl Kept<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold, or there are more than a quorum can have.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Kept<Checked>, SignedError> {
        let receipt = self.receipt.map(|receipt| receipt.verify(domain, scheme)).transpose()?;
        Ok(Kept { opening: self.opening.verify(domain, scheme)?, receipt })
    }
}

impl Kept<Checked> {
    /// Says whether the receipt is one of the channel that the proof opens.
    #[must_use]
    pub fn is_of_one(&self) -> bool {
        let channel = ChannelId::from(self.opening.op.id());
        self.receipt.as_ref().is_none_or(|receipt| receipt.channel == channel)
    }

    /// Returns it as it travels.
    #[must_use]
    pub fn signed(&self) -> Kept<Wire> {
        Kept { opening: self.opening.signed(), receipt: self.receipt.as_ref().map(Verified::signed) }
    }
}

/// The newest receipts of the channels between two nodes whose names lie in a range, at most [`HEADS_MAX`]: of a channel
/// in the range that is missing here, the sender has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// The range begins after this channel.
    pub after: ChannelId,
    /// The range ends with this channel.
    pub until: ChannelId,
    /// The receipts, in the order of the channels.
    pub heads: Vec<Head>,
}

impl Heads {
    /// Returns heads in as many parts as they need, all channels covered.
    #[must_use]
    pub fn pages(mut heads: Vec<Head>) -> Vec<Self> {
        heads.sort_unstable_by_key(|head| head.channel);
        let (first, last) = (ChannelId([0; 32]), ChannelId([0xff; 32]));
        let mut pages: Vec<Self> = Vec::new();
        for heads in heads.chunks(HEADS_MAX) {
            let after = pages.last().map_or(first, |page| page.until);
            let until = heads.last().map_or(last, |head| head.channel);
            pages.push(Self { after, until, heads: heads.to_vec() });
        }
        match pages.last_mut() {
            Some(page) => page.until = last,
            None => pages.push(Self { after: first, until: last, heads }),
        }
        pages
    }

    /// Says whether the range includes a channel.
    #[must_use]
    pub fn covers(&self, channel: ChannelId) -> bool {
        channel > self.after && channel <= self.until
    }
}

/// The newest receipt of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The channel.
    pub channel: ChannelId,
    /// Its base paid.
    pub amount: u64,
    /// The receipt.
    pub receipt: RecordId,
    /// From the payee: the least with which it lets the channel end. From the payer: 0.
    pub due: u64,
    /// From the payee: the base of all that it counts, jobs in flight at what they were granted. From the payer: 0.
    pub counted: u64,
}
