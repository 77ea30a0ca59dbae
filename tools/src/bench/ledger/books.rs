//! What the only issuer does on the spot when an epoch ends: its books become a tree that carries sums.

use std::time::Instant;

use anyhow::Result;
use protocol::ids::{AccountId, Digest};
use protocol::ledger::epoch_log::{EPOCHS_KEPT, EpochLog};
use protocol::ledger::issuer::Issuer;
use protocol::ledger::records::{Deposit, Epoch, Source};
use protocol::manifest::Manifest;
use serde::Serialize;

use super::super::samples::{Samples, Spread};
use super::rates::home;

/// What the end of an epoch costs.
#[derive(Debug, Serialize)]
pub(super) struct Books {
    pub(super) accounts: usize,
    /// Nothing else happens in the node meanwhile.
    pub(super) closing_ms: Spread,
}

pub(super) fn measure(accounts: usize, epochs: u32) -> Result<Books> {
    let manifest = Manifest { grant_budget: u64::MAX, ..home().0 };
    let mut books = Issuer::new(manifest);
    for number in 0..accounts as u64 {
        let name = Digest::of(&number.to_le_bytes());
        let (account, source) = (AccountId(name.0), Source::Budget);
        books.deposit(&Deposit { reference: name, account, amount: 1_000, epoch: Epoch(0), source })?;
    }
    let mut log = EpochLog::new(EPOCHS_KEPT);
    let mut times = Samples::default();
    for epoch in (0..epochs).map(Epoch) {
        let begun = Instant::now();
        log.push(epoch, books.snapshot())?;
        books.end_epoch(epoch);
        times.push_time(begun.elapsed());
    }
    Ok(Books { accounts, closing_ms: times.spread() })
}
