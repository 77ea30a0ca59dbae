//! Why nodes are not admitted, and channels not opened for other nodes of an account.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ledger::issuer::IssuerError;

/// Why a wallet node opens no channel for another node of its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum SpendRefusal {
    /// The node is not authorised to spend.
    #[error("its owner has not authorised this node to spend: see `sharemesh account authorise --spend`")]
    NotAuthorised,
    /// The node has used up what it may spend in this epoch.
    #[error("this node may spend {left} more nano-credits in this epoch: its owner sets the limit")]
    Budget {
        /// Nano-credits left.
        left: u64,
    },
    /// The account does not hold enough.
    #[error("the account holds {available} nano-credits, which is not enough")]
    NotEnough {
        /// What it can spend.
        available: u64,
    },
    /// The wallet node cannot open it now.
    #[error("the wallet node of the account cannot open a channel now")]
    Unavailable,
}

/// Why a node is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum JoinError {
    /// No such ticket.
    #[error("this network's issuer does not know the ticket: ask for a new one")]
    UnknownTicket,
    /// Another node used it.
    #[error("the ticket was used by another node: each ticket admits one node, ask for a new one")]
    Used,
    /// The amount could not be booked.
    #[error("the issuer could not book the ticket's credits: {0}")]
    Deposit(IssuerError),
    /// The peer is no issuer.
    #[error("this node is not an issuer of the network")]
    NotIssuer,
}
