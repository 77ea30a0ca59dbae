//! The books as leaves of a checkpoint, and what is forgotten once a checkpoint stands.

use alloc::vec::Vec;

use crate::ledger::checkpoint::{AccountLeaf, ChannelLeaf};
use crate::ledger::records::Epoch;

use super::{Account, Channel, ChannelId, Issuer, RecordId};
use crate::ids::AccountId;

/// The books at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every account, sorted by id.
    pub accounts: Vec<AccountLeaf>,
    /// The count of changes of every account, in the same order: tells an owner which of the balances that it was told
    /// this one is. Issuers may count differently, so no checkpoint states it.
    pub changes: Vec<u64>,
    /// Every open channel, sorted by id.
    pub channels: Vec<ChannelLeaf>,
}

impl Issuer {
    /// Returns the books as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let open = self.channels.iter().filter(|(_, channel)| !channel.closed);
        Snapshot {
            accounts: self.accounts.iter().map(|(id, account)| account_leaf(*id, account)).collect(),
            changes: self.accounts.values().map(|account| account.balance.as_of).collect(),
            channels: open.map(|(id, channel)| channel_leaf(*id, channel)).collect(),
        }
    }

    /// Ends an epoch whose checkpoint stands: channels that are closed in it are forgotten when `grace` is over. A fact
    /// about a forgotten channel that comes later changes nothing, as it would not have changed the closed one.
    pub fn end_epoch(&mut self, epoch: Epoch) {
        let kept_to = epoch.plus(self.manifest.grace_epochs);
        for id in core::mem::take(&mut self.ended) {
            if let Some(channel) = self.channels.get_mut(&id) {
                channel.kept_to = Some(kept_to);
                self.due.insert((kept_to, id));
            }
        }
    }

    /// Returns how many channels are remembered, closed ones included.
    #[must_use]
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }
}

fn account_leaf(id: AccountId, account: &Account) -> AccountLeaf {
    AccountLeaf {
        account: id,
        cash: account.balance.cash,
        earned: account.balance.earned,
        held: account.balance.held,
        steps: account.next,
        head: account.head.unwrap_or(RecordId::NONE),
    }
}

fn channel_leaf(id: ChannelId, channel: &Channel) -> ChannelLeaf {
    ChannelLeaf {
        channel: id,
        payer: channel.payer,
        payee: channel.terms.payee,
        cap: channel.cap,
        redeemed: channel.redeemed,
        expires: channel.expires,
        cash: channel.held.cash,
        earned: channel.held.earned,
    }
}
