//! Records per second: signed, checked, merged on one core; stored on this disk.

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ed25519_dalek::{Signer as _, SigningKey};
use node::journal::{self, Urgency};
use protocol::ids::ChannelId;
use protocol::keys::{Scheme, Signer};
use protocol::ledger::paying::Paying;
use protocol::ledger::records::Receipt;
use protocol::manifest::Manifest;
use protocol::record::Record;
use protocol::signed::{Role, Verified};
use protocol::time::Time;
use serde::Serialize;

use super::super::cluster::folder;
use super::super::samples::{Samples, Spread};
use super::records::{Payer, receipt, terms};

/// Receipts that go to the disk together: as many as a busy provider gathers in the time of one `fdatasync`.
const BATCH: usize = 64;

/// Batches in a row, before the other way of storing them has its turn.
const ROUND: usize = 20;

/// Receipts per second on one core.
#[derive(Debug, Serialize)]
pub(super) struct Rates {
    pub(super) receipts: usize,
    pub(super) bare_sign_per_s: f64,
    pub(super) bare_verify_per_s: f64,
    pub(super) signed_per_s: f64,
    pub(super) verified_per_s: f64,
    /// Against half of the bare rate, because a receipt has two signatures.
    pub(super) verify_ratio: f64,
    pub(super) merged_per_s: f64,
}

/// Batches of receipts on this disk, times in milliseconds: medians count, because a disk that others use stalls at times.
#[derive(Debug, Serialize)]
pub(super) struct Journal {
    pub(super) batch: usize,
    pub(super) bytes_per_receipt: usize,
    pub(super) raw_ms: Spread,
    pub(super) stored_ms: Spread,
    pub(super) stored_per_s: f64,
    pub(super) ratio: f64,
}

/// Returns the manifest of a network with one issuer, and the issuer's key.
pub(super) fn home() -> (Manifest, Signer) {
    let issuer = Signer::from_seed([1; 32]);
    let node = Signer::from_seed([2; 32]).public().into();
    (Manifest::home("bench".to_owned(), Time(1_800_000_000_000), &issuer, node), issuer)
}

/// Measures what is done with receipts in memory.
pub(super) fn measure(receipts: usize) -> Result<Rates> {
    let (manifest, _) = home();
    let (domain, payee) = (manifest.domain(), Signer::from_seed([3; 32]));
    let payer = Payer::new(1);
    let channel = ChannelId([9; 32]);
    let numbers = 1..=receipts as u64;

    let begun = Instant::now();
    let signed: Vec<_> = numbers.map(|number| receipt(channel, number, domain, &payer.account)).collect();
    let signed_per_s = per_s(receipts, begun.elapsed());

    let terms = terms(&manifest, &payee, payee.public().into(), payer.id());
    let other = super::records::payee_signer(&payee, payer.id());
    let both: Vec<Verified<Receipt>> =
        signed.into_iter().map(|receipt| receipt.signed_also_by(domain, Role::Payee, &other)).collect();
    let received: Vec<_> = both.iter().map(Verified::signed).collect();
    let (bare_sign_per_s, bare_verify_per_s) = bare(receipts, protocol::encoding::encode(&*both[0]).len())?;
    let begun = Instant::now();
    for receipt in received {
        black_box(receipt.verify(domain, Scheme::Strict)?);
    }
    let verified_per_s = per_s(receipts, begun.elapsed());

    let mut paying = Paying::new(channel, terms, u64::MAX, payer.account);
    let begun = Instant::now();
    for receipt in &both {
        ensure!(paying.adopt(receipt), "a newer receipt was not taken");
    }
    let merged_per_s = per_s(receipts, begun.elapsed());
    let verify_ratio = verified_per_s / (bare_verify_per_s / 2.0);
    Ok(Rates {
        receipts,
        bare_sign_per_s,
        bare_verify_per_s,
        signed_per_s,
        verified_per_s,
        verify_ratio,
        merged_per_s,
    })
}

/// Measures the signature scheme alone, over as many bytes as are signed of a receipt.
fn bare(runs: usize, body: usize) -> Result<(f64, f64)> {
    // The type's name, the capacity, the network and the length stand before the body.
    let bytes = vec![7; body + 58];
    let key = SigningKey::from_bytes(&[4; 32]);
    let begun = Instant::now();
    for _ in 1..runs {
        black_box(key.sign(black_box(&bytes)));
    }
    let sign = per_s(runs, begun.elapsed());
    let (signature, verifier) = (key.sign(&bytes), key.verifying_key().to_bytes());
    let begun = Instant::now();
    for _ in 0..runs {
        // A key travels as bytes and is made a point again each time.
        let verifier = ed25519_dalek::VerifyingKey::from_bytes(black_box(&verifier))?;
        verifier.verify_strict(black_box(&bytes), &signature)?;
    }
    Ok((sign, per_s(runs, begun.elapsed())))
}

/// Measures batches of receipts through the journal and, alternating with them, as plain appends of the same bytes.
pub(super) async fn measure_journal(batches: usize) -> Result<Journal> {
    let (manifest, _) = home();
    let payer = Payer::new(1);
    let records: Vec<Vec<u8>> = (1..=BATCH as u64)
        .map(|number| {
            let receipt = receipt(ChannelId([9; 32]), number, manifest.domain(), &payer.account);
            Record::Receipt(receipt.signed()).to_bytes()
        })
        .collect();
    let bytes = records.concat();
    let (raw_folder, folder) = (folder()?, folder()?);
    let mut raw = std::fs::File::create(raw_folder.path().join("raw"))?;
    let (mut journal, _) =
        journal::Journal::open(&folder.path().join("journal"), Default::default(), |_, _, _| {})?;
    let (mut raw_times, mut stored_times) = (Samples::default(), Samples::default());
    for _ in 0..batches.div_ceil(ROUND) {
        for _ in 0..ROUND {
            let begun = Instant::now();
            raw.write_all(&bytes)?;
            raw.sync_data()?;
            raw_times.push_time(begun.elapsed());
        }
        store(&mut journal, &records, &mut stored_times).await?;
    }
    journal.close()?;
    let (raw_ms, stored_ms) = (raw_times.spread(), stored_times.spread());
    Ok(Journal {
        batch: BATCH,
        bytes_per_receipt: bytes.len() / BATCH,
        raw_ms,
        stored_ms,
        stored_per_s: per_s(BATCH, Duration::from_secs_f64(stored_ms.p50 / 1000.0)),
        ratio: raw_ms.p50 / stored_ms.p50,
    })
}

/// Stores batches as a driver does: the next one gathers while the disk works on the last. Each takes from when the one
/// before it was durable until it is; two that went to the disk as one do not count.
async fn store(journal: &mut journal::Journal, records: &[Vec<u8>], times: &mut Samples) -> Result<()> {
    let batch = records.len() as u64;
    let mut durable = journal.append(records, Urgency::Now)?.0 - batch;
    let mut begun = Instant::now();
    for _ in 0..ROUND {
        // The journal's thread must have taken what waits: it is at work for several times as long.
        while begun.elapsed() < Duration::from_micros(50) {
            std::hint::spin_loop();
        }
        journal.append(records, Urgency::Now)?;
        let next = durable + batch;
        while durable < next {
            durable = journal.committed().await?.0;
        }
        if durable == next {
            times.push_time(begun.elapsed());
        }
        begun = Instant::now();
    }
    while durable < journal.position().0 {
        durable = journal.committed().await?.0;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand runs")]
pub(super) fn per_s(runs: usize, time: Duration) -> f64 {
    (runs as f64 / time.as_secs_f64()).round()
}
