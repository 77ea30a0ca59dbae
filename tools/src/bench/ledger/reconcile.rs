//! What two peers say to each other until they know which records only one of them holds.

use anyhow::{Context as _, Result, ensure};
use protocol::ids::{ChannelId, Digest, RecordId};
use protocol::keys::Signer;
use protocol::ledger::reconcile::{Salt, Set, exchange};
use protocol::record::Record;
use protocol::signed::Role;
use serde::Serialize;

use super::rates::home;
use super::records::{Payer, payee_signer, receipt};

/// Comparisons of each size, with other salts: chance decides how many cells are needed.
const RUNS: u8 = 5;

/// One number for each size of a difference.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct BySize {
    pub(super) d10: f64,
    pub(super) d100: f64,
    pub(super) d1000: f64,
}

/// What comparing cost; the worst of all runs.
#[derive(Debug, Serialize)]
pub(super) struct Reconcile {
    pub(super) records: usize,
    /// Bytes of one record: a receipt that both have signed.
    pub(super) record_bytes: usize,
    /// Questions and answers, without the records.
    pub(super) bytes: BySize,
    /// By the bytes of the differing records.
    pub(super) ratio: BySize,
    /// Questions.
    pub(super) rounds: BySize,
    pub(super) runs: usize,
}

pub(super) fn measure(records: usize) -> Result<Reconcile> {
    let ids: Vec<RecordId> = (0..records as u64).map(|number| id(&number.to_le_bytes())).collect();
    let record_bytes = record_bytes();
    let sizes = [10, 100, 1000].map(|differing| worst(&ids, differing));
    let [d10, d100, d1000] = sizes;
    let (d10, d100, d1000) = (d10?, d100?, d1000?);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let ratio =
        |bytes: f64, differing: usize| (bytes / (differing * record_bytes) as f64 * 1000.0).round() / 1000.0;
    Ok(Reconcile {
        records,
        record_bytes,
        bytes: BySize { d10: d10.0, d100: d100.0, d1000: d1000.0 },
        ratio: BySize { d10: ratio(d10.0, 10), d100: ratio(d100.0, 100), d1000: ratio(d1000.0, 1000) },
        rounds: BySize { d10: d10.1, d100: d100.1, d1000: d1000.1 },
        runs: RUNS.into(),
    })
}

fn id(bytes: &[u8]) -> RecordId {
    RecordId(Digest::of(bytes).0)
}

/// Returns the most bytes and questions that two sets took of which each lacks half of `differing` records, which lie
/// anywhere among the others.
fn worst(ids: &[RecordId], differing: usize) -> Result<(f64, f64)> {
    let stride = ids.len() / differing;
    let lacks = |number: usize, side| number.is_multiple_of(stride) && number / stride % 2 == side;
    let side = |side| -> Set {
        let held = ids.iter().enumerate().filter(|(number, _)| !lacks(*number, side));
        held.map(|(_, id)| *id).collect()
    };
    let (here, there) = (side(0), side(1));
    let (mut bytes, mut rounds) = (0, 0);
    for run in 0..RUNS {
        let exchanged = exchange(here.clone(), &there, Salt([run; 16])).context("two honest sides")?;
        let found = exchanged.differences;
        ensure!(
            found.only_here.len() + found.only_there.len() == differing,
            "not all differences were found"
        );
        bytes = bytes.max(exchanged.bytes);
        rounds = rounds.max(exchanged.rounds);
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok((bytes as f64, f64::from(rounds)))
}

fn record_bytes() -> usize {
    let (manifest, payee) = (home().0, Signer::from_seed([3; 32]));
    let payer = Payer::new(1);
    let receipt = receipt(ChannelId([9; 32]), 1000, manifest.domain(), &payer.account);
    let other = payee_signer(&payee, payer.id());
    let receipt = receipt.signed_also_by(manifest.domain(), Role::Payee, &other);
    Record::Receipt(receipt.signed()).to_bytes().len()
}
