//! What an issuer keeps of the last epochs, so that anybody can compute their checkpoints again.
//!
//! The newest state is kept whole, as trees from which proofs are taken; each older one as what must be changed back to
//! come to it. Pages of any of them are read without building it.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::ids::AccountId;
use crate::ledger::checkpoint::{AccountLeaf, ChannelLeaf};
use crate::ledger::issuer::Snapshot;
use crate::ledger::merkle::{MerkleError, Proof, SumLeaf, SumRoot, Tree};
use crate::ledger::records::Epoch;

/// Epochs kept unless told otherwise.
pub const EPOCHS_KEPT: usize = 8;

/// Most leaves on a page: the largest has 141 bytes, so that a page fits a message.
pub const PAGE_MAX: usize = 448;

/// The key of a leaf.
pub type Key = [u8; 32];

/// The epochs kept.
#[derive(Debug, Clone)]
pub struct EpochLog {
    epochs: VecDeque<Epoch>,
    kept: usize,
    accounts: Log<AccountLeaf>,
    changes: Vec<u64>,
    channels: Log<ChannelLeaf>,
}

/// The leaves of one tree, now and before.
#[derive(Debug, Clone)]
struct Log<L> {
    tree: Tree<L>,
    /// For each older epoch what its successor must be changed back by, the oldest first.
    back: VecDeque<BTreeMap<Key, Option<L>>>,
}

/// Some leaves of a tree, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<L> {
    /// The leaves.
    pub leaves: Vec<L>,
    /// The key after which the next page begins; none on the last.
    pub next: Option<Key>,
}

impl EpochLog {
    /// Returns a log of at most `kept` epochs.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self {
            epochs: VecDeque::new(),
            kept: kept.max(1),
            accounts: Log::new(),
            changes: Vec::new(),
            channels: Log::new(),
        }
    }

    /// Adds the state at the end of `epoch`; returns the roots of its accounts and of its channels.
    ///
    /// # Errors
    /// When its sums overflow.
    pub fn push(&mut self, epoch: Epoch, snapshot: Snapshot) -> Result<(SumRoot, SumRoot), MerkleError> {
        let (accounts, channels) = (Tree::new(snapshot.accounts)?, Tree::new(snapshot.channels)?);
        let older = self.kept.saturating_sub(1);
        self.accounts.push(accounts, older);
        self.channels.push(channels, older);
        self.changes = snapshot.changes;
        self.epochs.push_back(epoch);
        while self.epochs.len() > self.kept {
            self.epochs.pop_front();
        }
        Ok((self.accounts.tree.root(), self.channels.tree.root()))
    }

    /// Returns the epochs kept, the oldest first.
    pub fn epochs(&self) -> impl Iterator<Item = Epoch> + '_ {
        self.epochs.iter().copied()
    }

    /// Returns the proof of an account in the newest epoch, with its count of changes then; none of one that was not
    /// there.
    #[must_use]
    pub fn prove(&self, account: AccountId) -> Option<(Proof<AccountLeaf>, u64)> {
        let place = self.accounts.tree.place(account.0)?;
        Some((self.accounts.tree.prove(account.0)?, *self.changes.get(place)?))
    }

    /// Returns the accounts of an epoch that follow the key `after`; nothing of an epoch that is not kept.
    #[must_use]
    pub fn accounts(&self, epoch: Epoch, after: Option<Key>) -> Option<Page<AccountLeaf>> {
        Some(self.accounts.page(self.age(epoch)?, after))
    }

    /// Returns the open channels of an epoch that follow the key `after`; nothing of an epoch that is not kept.
    #[must_use]
    pub fn channels(&self, epoch: Epoch, after: Option<Key>) -> Option<Page<ChannelLeaf>> {
        Some(self.channels.page(self.age(epoch)?, after))
    }

    /// Returns how many epochs were added after this one.
    fn age(&self, epoch: Epoch) -> Option<usize> {
        self.epochs.iter().rev().position(|kept| *kept == epoch)
    }
}

impl<L: SumLeaf + PartialEq> Log<L> {
    fn new() -> Self {
        Self { tree: Tree::new(Vec::new()).expect("no leaves are sorted"), back: VecDeque::new() }
    }

    fn push(&mut self, tree: Tree<L>, older: usize) {
        let changed = changes_back(self.tree.leaves(), tree.leaves());
        self.back.push_back(changed);
        while self.back.len() > older {
            self.back.pop_front();
        }
        self.tree = tree;
    }

    fn page(&self, age: usize, after: Option<Key>) -> Page<L> {
        let leaves = self.tree.leaves();
        let begin = after.map_or(0, |after| leaves.partition_point(|leaf| leaf.key() <= after));
        let newest = leaves.get(begin..).unwrap_or_default();
        let is_last = newest.len() <= PAGE_MAX;
        let newest = newest.get(..PAGE_MAX).unwrap_or(newest);
        let end = newest.last().filter(|_| !is_last).map(SumLeaf::key);
        let is_within =
            |key: &Key| after.is_none_or(|after| *key > after) && end.is_none_or(|end| *key <= end);
        let mut page: BTreeMap<Key, Option<&L>> =
            newest.iter().map(|leaf| (leaf.key(), Some(leaf))).collect();
        for back in self.back.iter().rev().take(age) {
            let begin = after.unwrap_or_default();
            let changed = back.range(begin..).take_while(|(key, _)| end.is_none_or(|end| **key <= end));
            page.extend(changed.filter(|(key, _)| is_within(key)).map(|(key, leaf)| (*key, leaf.as_ref())));
        }
        let mut leaves: Vec<L> = page.into_values().flatten().cloned().collect();
        let next = if leaves.len() > PAGE_MAX {
            leaves.truncate(PAGE_MAX);
            leaves.last().map(SumLeaf::key)
        } else {
            end
        };
        Page { leaves, next }
    }
}

/// Returns what must be done to `new` to come back to `old`; both are sorted.
fn changes_back<L: SumLeaf + PartialEq>(old: &[L], new: &[L]) -> BTreeMap<Key, Option<L>> {
    let mut back = BTreeMap::new();
    let mut old = old.iter().peekable();
    for leaf in new {
        while let Some(gone) = old.next_if(|old| old.key() < leaf.key()) {
            back.insert(gone.key(), Some(gone.clone()));
        }
        match old.next_if(|old| old.key() == leaf.key()) {
            Some(same) if same == leaf => {}
            before => {
                back.insert(leaf.key(), before.cloned());
            }
        }
    }
    back.extend(old.map(|gone| (gone.key(), Some(gone.clone()))));
    back
}
