//! An issuer's books brought forward: in its journal they stand in place of the lines that led to them.
//!
//! As in a ledger on paper, where a new volume begins with the balances of the old one: what the lines before came to is
//! written down once, and the checkpoint that follows says with the issuer's signature whether it was right.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::encoding::encode;
use crate::ids::{AccountId, ChannelId, Digest, NodeId, RecordId};
use crate::keys::PublicKey;
use crate::ledger::account::SignedLineage;
use crate::ledger::issuer::{Balance, Withdrawal};
use crate::ledger::records::{AccountOp, Deposit, Epoch, Membership, Terms, WithdrawalPaid};
use crate::signed::Signed;

/// What the entries of one line take at most, as far as there is more than one; well below what a line may take.
const LINE_BYTES: usize = 24 * 1024;

/// A part of the books, as one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// Which part it is, from 0.
    pub part: u32,
    /// How many there are. Nothing is taken before all of them have come.
    pub parts: u32,
    /// What is in it.
    pub entries: Vec<Entry>,
}

/// One thing that an issuer knows from the lines before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Entry {
    /// Sums.
    Totals(Totals),
    /// An account.
    Account(Box<AccountEntry>),
    /// A channel that is not forgotten yet.
    Channel(Box<ChannelEntry>),
    /// After this epoch a channel is to be ended or forgotten.
    Due(Epoch, ChannelId),
    /// What was booked under a reference: it counts once, for ever.
    Booked {
        /// The reference.
        reference: Digest,
        /// Account that got it.
        account: AccountId,
        /// Nano-credits.
        amount: u64,
    },
    /// A withdrawal.
    Withdrawal(RecordId, Withdrawal),
    /// Whose operator has paid a withdrawal.
    Payout(Signed<WithdrawalPaid>),
    /// A ticket that nobody has used.
    Ticket {
        /// What it is recognised by.
        fingerprint: Digest,
        /// Nano-credits it carries.
        amount: u64,
    },
    /// A ticket that has admitted a node.
    Admitted {
        /// What it is recognised by.
        fingerprint: Digest,
        /// The node's proof.
        membership: Signed<Membership>,
        /// The opening amount.
        deposit: Option<Signed<Deposit>>,
    },
    /// News that its receiver has not confirmed.
    News {
        /// Its place in the order of all news.
        number: u64,
        /// The node that it is for, if it is not for an account.
        node: Option<NodeId>,
        /// What happened.
        what: Happened,
    },
    /// How much news there has been.
    Told(u64),
}

/// What news is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Happened {
    /// Credits entered for an account.
    Deposit(Signed<Deposit>),
    /// A step was taken that concerns somebody else than its own account.
    Step {
        /// The step.
        op: Signed<AccountOp>,
        /// Epoch in which it was taken.
        epoch: Epoch,
    },
}

/// Sums over all time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Nano-credits that ever entered.
    pub deposited: u128,
    /// Those of them that came out of the budget.
    pub given: u128,
    /// Nano-credits that ever left.
    pub withdrawn: u128,
}

/// An account in the books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountEntry {
    /// The account.
    pub account: AccountId,
    /// What it has.
    pub balance: Balance,
    /// Position of its next step: whatever was signed for one before is never taken again.
    pub next: u64,
    /// Its last step.
    pub head: Option<RecordId>,
    /// How many channels it has open.
    pub channels: u32,
    /// Its keys, if they can be replaced.
    pub lineage: Option<SignedLineage>,
}

/// A channel in the books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelEntry {
    /// The channel.
    pub channel: ChannelId,
    /// Account that pays.
    pub payer: AccountId,
    /// Its node that pays.
    pub payer_node: NodeId,
    /// Key that signs receipts for it.
    pub payer_key: PublicKey,
    /// Its terms.
    pub terms: Terms,
    /// Most that it pays.
    pub cap: u64,
    /// What it holds.
    pub held: HeldEntry,
    /// What it held when it was opened.
    pub opened: HeldEntry,
    /// Base paid out.
    pub redeemed: u64,
    /// Last epoch in which it takes jobs.
    pub expires: Epoch,
    /// Says that it is closed.
    pub closed: bool,
    /// Says that it was closed since the last checkpoint.
    pub ended: bool,
    /// Last epoch in which its end is remembered, once a checkpoint states it.
    pub kept_to: Option<Epoch>,
}

/// What a channel holds, by bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEntry {
    /// Out of what was earned.
    pub earned: u64,
    /// Out of cash.
    pub cash: u64,
}

impl Forward {
    /// Returns the lines that hold these entries.
    #[must_use]
    pub fn lines(entries: Vec<Entry>) -> Vec<Self> {
        let mut lines: Vec<Vec<Entry>> = Vec::from([Vec::new()]);
        let mut bytes = 0_usize;
        for entry in entries {
            let more = encode(&entry).len();
            bytes = bytes.saturating_add(more);
            if bytes > LINE_BYTES {
                lines.push(Vec::new());
                bytes = more;
            }
            if let Some(line) = lines.last_mut() {
                line.push(entry);
            }
        }
        let count = |lines: usize| u32::try_from(lines).unwrap_or(u32::MAX);
        let parts = count(lines.len());
        let lines = lines.into_iter().enumerate();
        lines.map(|(part, entries)| Self { part: count(part), parts, entries }).collect()
    }
}

/// Gathers the lines until all of them have come.
#[derive(Debug, Clone, Default)]
pub struct Gathering {
    next: u32,
    entries: Vec<Entry>,
}

/// A part that does not follow the one before, is missing, or is in the journal of one of several issuers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("part {part} of the books brought forward is not where it should be")]
pub struct OutOfOrder {
    /// Which part.
    pub part: u32,
}

impl Gathering {
    /// Checks that none is begun and not whole.
    ///
    /// # Errors
    /// When a part is missing.
    pub const fn rest(&self) -> Result<(), OutOfOrder> {
        if self.next == 0 { Ok(()) } else { Err(OutOfOrder { part: self.next }) }
    }

    /// Takes the next line; returns all entries with the last one.
    ///
    /// # Errors
    /// When a line between is missing.
    pub fn take(&mut self, line: Forward) -> Result<Option<Vec<Entry>>, OutOfOrder> {
        if line.part == 0 {
            *self = Self::default();
        }
        if line.part != self.next {
            return Err(OutOfOrder { part: line.part });
        }
        self.entries.extend(line.entries);
        self.next = self.next.saturating_add(1);
        Ok((self.next == line.parts).then(|| core::mem::take(self).entries))
    }
}
