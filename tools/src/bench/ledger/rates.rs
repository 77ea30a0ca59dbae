//! Records per second: signed, checked, merged on one core.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ed25519_dalek::{Signer as _, SigningKey};
use protocol::ids::{ChannelId, DomainId};
use protocol::keys::{Scheme, Signer};
use protocol::ledger::paying::Paying;
use protocol::ledger::records::Receipt;
use protocol::manifest::Manifest;
use protocol::signed::{Role, Signed, Verified};
use protocol::time::Time;
use serde::Serialize;

use super::records::{Payer, receipt, terms};
use crate::bench::samples::Samples;

/// Receipts per second on one core.
#[derive(Debug, Serialize)]
pub(super) struct Rates {
    pub(super) receipts: usize,
    pub(super) bare_sign_per_s: f64,
    pub(super) bare_verify_per_s: f64,
    pub(super) signed_per_s: f64,
    pub(super) verified_per_s: f64,
    /// Against half of the bare rate, because a receipt has two signatures; the median over turns in which both are measured.
    pub(super) verify_ratio: f64,
    pub(super) merged_per_s: f64,
}

/// Receipts that are checked in one turn.
const TURN: usize = 250;

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
    // The type's name, the capacity, the network and the length stand before the body.
    let bytes = vec![7; protocol::encoding::encode(&*both[0]).len() + 58];
    let key = SigningKey::from_bytes(&[4; 32]);
    let bare_sign_per_s = bare_sign(&key, &bytes, receipts);
    let [verified_per_s, bare_verify_per_s, verify_ratio] =
        check_in_turns(received, domain, &key, &bytes)?.map(|samples| samples.spread().p50);

    let mut paying = Paying::new(channel, terms, u64::MAX, payer.account);
    let begun = Instant::now();
    for receipt in &both {
        ensure!(paying.adopt(receipt), "a newer receipt was not taken");
    }
    let merged_per_s = per_s(receipts, begun.elapsed());
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

/// Measures how many signatures the scheme alone makes in a second.
fn bare_sign(key: &SigningKey, bytes: &[u8], runs: usize) -> f64 {
    let begun = Instant::now();
    for _ in 0..runs {
        black_box(key.sign(black_box(bytes)));
    }
    per_s(runs, begun.elapsed())
}

/// Checks receipts, and a bare signature as often, in turns: what else the machine does hits both. Returns of each turn how
/// many receipts are checked in a second, how many bare signatures, and the one by half of the other.
fn check_in_turns(
    mut received: Vec<Signed<Receipt>>,
    domain: DomainId,
    key: &SigningKey,
    bytes: &[u8],
) -> Result<[Samples; 3]> {
    let (signature, verifier) = (key.sign(bytes), key.verifying_key().to_bytes());
    let mut samples = [(); 3].map(|()| Samples::default());
    while !received.is_empty() {
        let turn = received.split_off(received.len().saturating_sub(TURN));
        let runs = turn.len();
        let begun = Instant::now();
        for receipt in turn {
            black_box(receipt.verify(domain, Scheme::Strict)?);
        }
        let ours = per_s(runs, begun.elapsed());
        let begun = Instant::now();
        for _ in 0..runs {
            // A key travels as bytes and is made a point again each time.
            let verifier = ed25519_dalek::VerifyingKey::from_bytes(black_box(&verifier))?;
            verifier.verify_strict(black_box(bytes), &signature)?;
        }
        let bare = per_s(runs, begun.elapsed());
        samples.iter_mut().zip([ours, bare, 2.0 * ours / bare]).for_each(|(all, one)| all.push(one));
    }
    Ok(samples)
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand runs")]
pub(super) fn per_s(runs: usize, time: Duration) -> f64 {
    (runs as f64 / time.as_secs_f64()).round()
}
