//! What the index says of itself, so that damage and loss are found when it is opened.

use crate::journal::{GENESIS, Head, Position};

use super::{TREES, Tree};

/// Where the books lie: below the keys of every tree.
pub(super) const BOOKS_KEY: &[u8] = &[0];

/// What the index says of itself, written in one batch with what it speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) position: Position,
    pub(super) head: Head,
    pub(super) totals: [Total; TREES],
}

/// How many entries a tree has, and the sum of their hashes, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    count: u64,
    sum: u128,
}

impl Books {
    const BYTES: usize = 8 + 32 + TREES * 24;

    pub(super) fn empty() -> Self {
        Self { position: Position(0), head: GENESIS, totals: [Total::default(); TREES] }
    }

    pub(super) fn add(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        let total = &mut self.totals[tree as usize - 1];
        total.count += 1;
        total.sum = total.sum.wrapping_add(hash(key, value));
    }

    pub(super) fn remove(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        let total = &mut self.totals[tree as usize - 1];
        // A damaged count must not stop the node; it is found when the index is opened.
        total.count = total.count.wrapping_sub(1);
        total.sum = total.sum.wrapping_sub(hash(key, value));
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend_from_slice(&self.position.0.to_le_bytes());
        bytes.extend_from_slice(&self.head);
        for total in &self.totals {
            bytes.extend_from_slice(&total.count.to_le_bytes());
            bytes.extend_from_slice(&total.sum.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let (position, rest) = bytes.split_first_chunk()?;
        let (head, mut rest) = rest.split_first_chunk()?;
        let mut totals = [Total::default(); TREES];
        for total in &mut totals {
            let (count, after) = rest.split_first_chunk()?;
            let (sum, after) = after.split_first_chunk()?;
            *total = Total { count: u64::from_le_bytes(*count), sum: u128::from_le_bytes(*sum) };
            rest = after;
        }
        Some(Self { position: Position(u64::from_le_bytes(*position)), head: *head, totals })
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    u128::from_le_bytes(hasher.finalize().as_bytes()[..16].try_into().expect("16 bytes"))
}
