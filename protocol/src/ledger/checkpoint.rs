//! The checkpoint of an epoch: what the issuers' books come to, in one signed record that commits to every account.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{AccountId, ChannelId, Digest, NodeId, RecordId};
use crate::ledger::issuer::{ACCOUNTS_MAX, CHANNELS_MAX};
use crate::ledger::merkle::{SumLeaf, SumRoot, Sums};
use crate::ledger::records::Epoch;
use crate::manifest::{ISSUERS_MAX, Manifest};
use crate::signed::{Role, Signable, Verified};

/// The state of the network at the end of an epoch; signed by a quorum of issuers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The epoch that is over. An issuer that was away leaves epochs out.
    pub epoch: Epoch,
    /// The checkpoint before; none before the first.
    pub previous: RecordId,
    /// Every account.
    pub accounts: SumRoot,
    /// Every open channel, with what it holds by the bucket that it came from.
    pub channels: SumRoot,
    /// Nano-credits that ever entered.
    pub deposited: u128,
    /// Nano-credits that ever left.
    pub withdrawn: u128,
    /// Digest over the names of the facts that led here from the checkpoint before, in their order, on which several
    /// issuers have agreed; zero where there is one, whose books nobody else keeps.
    pub facts: Digest,
}

/// An account in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountLeaf {
    /// The account.
    pub account: AccountId,
    /// Nano-credits that can be spent and withdrawn.
    pub cash: u64,
    /// Nano-credits that can be spent only.
    pub earned: u64,
    /// Nano-credits that its open channels hold.
    pub held: u64,
    /// Steps taken.
    pub steps: u64,
    /// The last of them.
    pub head: RecordId,
}

/// An open channel in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelLeaf {
    /// The channel.
    pub channel: ChannelId,
    /// Account that pays.
    pub payer: AccountId,
    /// Node that is paid.
    pub payee: NodeId,
    /// Most base that it can pay.
    pub cap: u64,
    /// Base paid out.
    pub redeemed: u64,
    /// Last epoch.
    pub expires: Epoch,
    /// What it still holds out of `cash`.
    pub cash: u64,
    /// What it still holds out of `earned`.
    pub earned: u64,
}

/// Why the numbers of a checkpoint cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Error, Serialize, Deserialize)]
pub enum TotalsError {
    /// Accounts hold other credits than entered and did not leave.
    #[error("accounts hold other credits than were deposited and not withdrawn")]
    Deposits,
    /// Accounts and channels disagree on what is held.
    #[error("what accounts have in channels is not what channels hold")]
    Held,
}

impl Signable for Checkpoint {
    const TAG: &'static str = "checkpoint";
    const BYTES_MAX: usize = 512;
    const ATTESTATIONS_MAX: usize = ISSUERS_MAX;

    fn check_bounds(&self) -> Result<(), &'static str> {
        let within =
            |root: &SumRoot, most: usize| usize::try_from(root.count).is_ok_and(|count| count <= most);
        if !within(&self.accounts, ACCOUNTS_MAX) {
            return Err("accounts");
        }
        if within(&self.channels, CHANNELS_MAX) { Ok(()) } else { Err("channels") }
    }
}

impl SumLeaf for AccountLeaf {
    const TREE: u8 = 1;

    fn key(&self) -> [u8; 32] {
        self.account.0
    }

    fn sums(&self) -> Sums {
        Sums { cash: self.cash.into(), earned: self.earned.into(), held: self.held.into() }
    }
}

impl SumLeaf for ChannelLeaf {
    const TREE: u8 = 2;

    fn key(&self) -> [u8; 32] {
        self.channel.0
    }

    fn sums(&self) -> Sums {
        Sums { cash: self.cash.into(), earned: self.earned.into(), held: 0 }
    }
}

impl Checkpoint {
    /// Checks the sums against each other.
    ///
    /// # Errors
    /// Says which do not agree.
    pub fn check_totals(&self) -> Result<(), TotalsError> {
        let there = self.deposited.checked_sub(self.withdrawn);
        if there.is_none() || self.accounts.sums.total() != there {
            return Err(TotalsError::Deposits);
        }
        if self.channels.sums.total() == Some(self.accounts.sums.held) {
            Ok(())
        } else {
            Err(TotalsError::Held)
        }
    }
}

/// Says whether a quorum of the network's issuers signed, and nobody else.
#[must_use]
pub fn is_signed_by_quorum(checkpoint: &Verified<Checkpoint>, manifest: &Manifest) -> bool {
    let signed = |key| checkpoint.is_signed_by(Role::Issuer, key);
    let signers = manifest.issuers.iter().filter(|issuer| signed(issuer.key)).count();
    signers >= usize::from(manifest.quorum) && signers == checkpoint.signature_count()
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::ledger::merkle::Tree;

    #[test]
    fn totals_that_disagree_are_found() {
        let account = AccountLeaf {
            account: AccountId([1; 32]),
            cash: 70,
            earned: 20,
            held: 10,
            steps: 1,
            head: RecordId([2; 32]),
        };
        let channel = ChannelLeaf {
            channel: ChannelId([2; 32]),
            payer: account.account,
            payee: NodeId([3; 32]),
            cap: 12,
            redeemed: 2,
            expires: Epoch(4),
            cash: 7,
            earned: 3,
        };
        let good = Checkpoint {
            epoch: Epoch(1),
            previous: RecordId::NONE,
            accounts: Tree::new(Vec::from([account])).expect("one").root(),
            channels: Tree::new(Vec::from([channel])).expect("one").root(),
            deposited: 105,
            withdrawn: 5,
            facts: Digest::ZERO,
        };
        assert_eq!(good.check_totals(), Ok(()));

        let more = Checkpoint { deposited: 106, ..good.clone() };
        assert_eq!(more.check_totals(), Err(TotalsError::Deposits));
        let negative = Checkpoint { deposited: 0, ..good.clone() };
        assert_eq!(negative.check_totals(), Err(TotalsError::Deposits));
        let mut unheld = good;
        unheld.channels.sums.cash = 6;
        assert_eq!(unheld.check_totals(), Err(TotalsError::Held));
    }
}
