//! What a node found wrong with the network's books: named, written down, shown to its owner.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ledger::checkpoint::TotalsError;
use crate::ledger::records::Epoch;

/// Something about a checkpoint that cannot be with honest issuers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Error, Serialize, Deserialize)]
pub enum Finding {
    /// Its sums do not agree with each other.
    #[error("the checkpoint of epoch {} does not add up: {error}", epoch.0)]
    Totals {
        /// Its epoch.
        epoch: Epoch,
        /// Which.
        error: TotalsError,
    },
    /// It leaves out a checkpoint that the issuers signed before it.
    #[error("the checkpoint of epoch {} does not follow the one before it", epoch.0)]
    Chain {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The proof of our account leads elsewhere.
    #[error("the issuer's proof of our account does not lead to its checkpoint of epoch {}", epoch.0)]
    Proof {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Our account is not in it.
    #[error("the checkpoint of epoch {} leaves our account out", epoch.0)]
    Missing {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Our account holds something else in it than the issuer told us.
    #[error("the checkpoint of epoch {} states another balance of our account than the issuer told us", epoch.0)]
    Balance {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Our account has taken other steps in it than the issuer told us.
    #[error("the checkpoint of epoch {} states other steps of our account than the issuer told us", epoch.0)]
    Steps {
        /// Its epoch.
        epoch: Epoch,
    },
    /// As issuer: our own journal leads to other books than we signed.
    #[error("our journal leads to other books than those we signed for epoch {}", epoch.0)]
    Books {
        /// Its epoch.
        epoch: Epoch,
    },
    /// An issuer signed two checkpoints of one epoch.
    #[error("an issuer signed two different checkpoints of epoch {}", epoch.0)]
    Forked {
        /// Their epoch.
        epoch: Epoch,
    },
    /// What the issuer serves of an epoch does not make up its checkpoint.
    #[error("what the issuer serves of epoch {} does not make up its checkpoint", epoch.0)]
    Log {
        /// The epoch.
        epoch: Epoch,
    },
}

impl Finding {
    /// Returns its name, for counts and programs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Totals { .. } => "checkpoint_totals",
            Self::Chain { .. } => "checkpoint_chain",
            Self::Proof { .. } => "own_leaf_proof",
            Self::Missing { .. } => "own_leaf_missing",
            Self::Balance { .. } => "own_leaf_balance",
            Self::Steps { .. } => "own_leaf_steps",
            Self::Books { .. } => "own_books",
            Self::Forked { .. } => "checkpoint_forked",
            Self::Log { .. } => "epoch_log",
        }
    }
}
