//! What a channel has come to, and the jobs in flight on it.

use alloc::collections::BTreeMap;

use crate::ids::{Digest, JobId};
use crate::price::{Usage, Worst};

/// What was delivered on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    /// Work of jobs that ended.
    pub(super) settled: Usage,
    /// Hash chain over them.
    pub(super) jobs: Digest,
}

impl Default for Count {
    fn default() -> Self {
        Self { settled: Usage::default(), jobs: Digest::ZERO }
    }
}

/// The work that the newest receipt does not state.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) count: Count,
    pub(super) flights: BTreeMap<JobId, Flight>,
    /// Of the work that ended, first windows that were lost unpaid, set aside while other jobs run: they are owed like the
    /// rest, but must not stand between those jobs and what was paid for them.
    pub(super) set_aside: Usage,
}

impl Work {
    /// Returns a count that differs from the receipt's, or is about to.
    pub(super) fn beyond(count: Count) -> Self {
        Self { count, flights: BTreeMap::new(), set_aside: Usage::default() }
    }

    /// Says whether all of it is in a receipt that states `stated`.
    pub(super) fn is_over(&self, stated: &Count) -> bool {
        self.flights.is_empty() && self.set_aside == Usage::default() && self.count == *stated
    }
}

/// A job in flight on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) worst: Worst,
    /// Prompt tokens, once they are counted.
    pub(super) tokens_in: Option<u32>,
    pub(super) granted: u32,
    /// Runs on the first window, which no receipt has covered.
    pub(super) postpaid: bool,
}

impl Flight {
    /// Returns the work of all that it was granted.
    pub(super) fn usage(&self) -> Usage {
        let all = self.worst.usage;
        let tokens_in = self.tokens_in.map_or(all.tokens_in, u64::from);
        self.worst.usage_of(tokens_in, u64::from(self.granted).min(all.tokens_out))
    }
}
