//! What peers say, and what a journal keeps, about the issuers' books: checkpoints, proofs of accounts, pages of what a
//! checkpoint commits to, and proofs against those who signed two different things.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{DomainId, RecordId};
use crate::keys::Scheme;
use crate::ledger::checkpoint::{AccountLeaf, ChannelLeaf, Checkpoint};
use crate::ledger::epoch_log::{Key, Page};
use crate::ledger::equivocation::Equivocation;
use crate::ledger::finding::Finding;
use crate::ledger::merkle::Proof;
use crate::ledger::records::AccountOp;
use crate::message::{Checked, Stage, Wire};
use crate::signed::{Signed, SignedError, Verified};

/// What is said about the books.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<Checkpoint>: Serialize, S::Of<AccountOp>: Serialize",
    deserialize = "S::Of<Checkpoint>: Deserialize<'de>, S::Of<AccountOp>: Deserialize<'de>"
))]
pub enum BooksMessage<S: Stage> {
    /// A checkpoint; also spread by gossip.
    Checkpoint(S::Of<Checkpoint>),
    /// Asks for the checkpoint with this id, or for the newest.
    Query(Option<RecordId>),
    /// Asks an issuer for the proof of the sender's account in its newest checkpoint.
    LeafQuery,
    /// The proof of an account.
    Leaf {
        /// The checkpoint in which it stands.
        checkpoint: RecordId,
        /// The proof, and the account's count of changes at that moment; none when the account is unknown.
        proof: Option<(Proof<AccountLeaf>, u64)>,
    },
    /// Somebody signed two different records where one can stand; also spread by gossip.
    Equivocation(Equivocation<S>),
    /// Asks an issuer for a page of what a checkpoint commits to.
    PageQuery(PageName),
    /// A page.
    Page(PageName, Leaves),
}

/// Names a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageName {
    /// The checkpoint.
    pub checkpoint: RecordId,
    /// Which of its trees.
    pub kind: LeafKind,
    /// Key after which the page begins.
    pub after: Option<Key>,
}

/// The trees of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeafKind {
    /// Accounts.
    Accounts,
    /// Open channels.
    Channels,
}

/// What a page holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaves {
    /// Accounts, and the key after which the next page begins.
    Accounts(Vec<AccountLeaf>, Option<Key>),
    /// Channels, and the key after which the next page begins.
    Channels(Vec<ChannelLeaf>, Option<Key>),
    /// The epoch is no longer kept.
    Gone,
}

/// What a journal keeps about the books.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum BooksRecord {
    /// A checkpoint: as issuer our own, otherwise one that was received.
    Checkpoint(Signed<Checkpoint>),
    /// A proof against somebody.
    Equivocation(Equivocation<Wire>),
    /// Something about a checkpoint that cannot be.
    Finding(Finding),
}

impl From<Page<AccountLeaf>> for Leaves {
    fn from(page: Page<AccountLeaf>) -> Self {
        Self::Accounts(page.leaves, page.next)
    }
}

impl From<Page<ChannelLeaf>> for Leaves {
    fn from(page: Page<ChannelLeaf>) -> Self {
        Self::Channels(page.leaves, page.next)
    }
}

impl BooksMessage<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<BooksMessage<Checked>, SignedError> {
        Ok(match self {
            Self::Checkpoint(checkpoint) => BooksMessage::Checkpoint(checkpoint.verify(domain, scheme)?),
            Self::Query(id) => BooksMessage::Query(id),
            Self::LeafQuery => BooksMessage::LeafQuery,
            Self::Leaf { checkpoint, proof } => BooksMessage::Leaf { checkpoint, proof },
            Self::Equivocation(proof) => BooksMessage::Equivocation(proof.verify(domain, scheme)?),
            Self::PageQuery(name) => BooksMessage::PageQuery(name),
            Self::Page(name, leaves) => BooksMessage::Page(name, leaves),
        })
    }
}

impl BooksMessage<Checked> {
    /// Returns the message as it travels.
    #[must_use]
    pub fn to_wire(&self) -> BooksMessage<Wire> {
        match self {
            Self::Checkpoint(checkpoint) => BooksMessage::Checkpoint(Verified::signed(checkpoint)),
            Self::Query(id) => BooksMessage::Query(*id),
            Self::LeafQuery => BooksMessage::LeafQuery,
            Self::Leaf { checkpoint, proof } => {
                BooksMessage::Leaf { checkpoint: *checkpoint, proof: proof.clone() }
            }
            Self::Equivocation(proof) => BooksMessage::Equivocation(proof.signed()),
            Self::PageQuery(name) => BooksMessage::PageQuery(*name),
            Self::Page(name, leaves) => BooksMessage::Page(*name, leaves.clone()),
        }
    }
}

impl<S: Stage> BooksMessage<S> {
    /// Returns the message's name, for logs and counts.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Checkpoint(_) => "checkpoint",
            Self::Query(_) => "checkpoint_query",
            Self::LeafQuery => "leaf_query",
            Self::Leaf { .. } => "leaf",
            Self::Equivocation(_) => "equivocation",
            Self::PageQuery(_) => "page_query",
            Self::Page(..) => "page",
        }
    }

    /// Says whether the message states what must be on the sender's disk.
    #[must_use]
    pub const fn states_fact(&self) -> bool {
        matches!(self, Self::Checkpoint(_) | Self::Leaf { .. } | Self::Page(..))
    }
}
