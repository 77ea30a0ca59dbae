//! Nothing passes for something else: every bit of every signed record counts, and so do its type, capacity and network.

use std::collections::BTreeSet;

use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;
use protocol::encoding::encode;
use protocol::ids::DomainId;
use protocol::keys::{PublicKey, Signature};
use protocol::signed::{Attestation, Role};

use crate::kinds::{Kind, kinds};

const ROLES: [Role; 6] = [Role::Owner, Role::Node, Role::Payer, Role::Payee, Role::Issuer, Role::Root];

/// Returns a record as it travels, of parts that need not belong together.
fn travelling(body: &[u8], attestations: &[Attestation]) -> Vec<u8> {
    encode(&(body, attestations))
}

/// Signs any body as a record of a type, from the words of `docs/protocol.md` and not by our own code.
fn signed_as(tag: &str, body: &[u8], role: Role, domain: DomainId) -> Attestation {
    let key = SigningKey::from_bytes(&[77; 32]);
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let bytes = [b"sharemesh/v1/", tag.as_bytes(), &[0, role as u8], &domain.0, &length, body].concat();
    let signature = key.sign(&bytes);
    let signature = Signature(*signature.r_bytes(), *signature.s_bytes());
    Attestation { role, key: PublicKey(key.verifying_key().to_bytes()), signature }
}

fn refused(kind: &Kind, bytes: &[u8], what: &str) {
    assert!(kind.takes(bytes).is_err(), "{}: {what} passes", kind.name);
}

#[test]
fn what_is_passed_on_is_what_came() {
    for kind in kinds() {
        assert_eq!(kind.takes(&kind.bytes).as_ref(), Ok(&kind.bytes), "{}", kind.name);
    }
}

#[test]
fn signatures_are_over_the_bytes_that_the_documents_name() {
    for kind in kinds() {
        let attestation = signed_as(kind.tag, &kind.body, Role::Owner, kind.domain);
        let bytes = travelling(&kind.body, &[attestation]);
        assert_eq!(kind.takes(&bytes), Ok(bytes), "{}", kind.name);

        let id = blake3::Hasher::new()
            .update(kind.tag.as_bytes())
            .update(&[0])
            .update(&kind.domain.0)
            .update(&kind.body)
            .finalize();
        assert_eq!(kind.id.0, *id.as_bytes(), "{}", kind.name);
    }
}

#[test]
fn no_bit_can_be_flipped() {
    for kind in kinds() {
        for bit in 0..kind.bytes.len() * 8 {
            let mut bytes = kind.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            refused(&kind, &bytes, &format!("with bit {bit} flipped it"));
        }
    }
}

#[test]
fn no_record_passes_for_one_of_another_type() {
    let kinds = kinds();
    for kind in &kinds {
        for other in kinds.iter().filter(|other| other.tag != kind.tag) {
            refused(other, &kind.bytes, kind.tag);
            assert!(
                (other.read)(&kind.bytes, kind.domain).is_err(),
                "{} passes for {}",
                kind.name,
                other.name
            );
            let attestation = signed_as(kind.tag, &other.body, Role::Owner, other.domain);
            refused(other, &travelling(&other.body, &[attestation]), &format!("signed as {} it", kind.tag));
        }
    }
}

#[test]
fn no_signature_passes_in_another_capacity() {
    for kind in kinds() {
        for place in 0..kind.attestations().len() {
            for role in ROLES.into_iter().filter(|role| *role != kind.attestations()[place].role) {
                let mut attestations = kind.attestations();
                attestations[place].role = role;
                attestations.sort_unstable();
                refused(&kind, &travelling(&kind.body, &attestations), &format!("as {role:?} it"));
            }
        }
    }
}

#[test]
fn no_signature_passes_for_another_key() {
    for kind in kinds() {
        let mut attestations = kind.attestations();
        attestations[0].key = signed_as(kind.tag, &kind.body, attestations[0].role, kind.domain).key;
        attestations.sort_unstable();
        refused(&kind, &travelling(&kind.body, &attestations), "with another key it");
    }
}

#[test]
fn no_record_passes_in_another_network() {
    for kind in kinds() {
        for domain in [DomainId([1; 32]), DomainId([0; 32]), crate::samples::DOMAIN] {
            let same = domain == kind.domain;
            assert_eq!((kind.read)(&kind.bytes, domain).is_ok(), same, "{} in {domain:?}", kind.name);
        }
    }
}

#[test]
fn no_signature_passes_for_another_value_or_channel() {
    for kind in kinds() {
        for byte in 0..kind.body.len() {
            let mut body = kind.body.clone();
            body[byte] = body[byte].wrapping_add(1);
            refused(&kind, &travelling(&body, &kind.attestations()), &format!("with byte {byte} changed it"));
        }
    }
}

#[test]
fn a_record_without_a_signature_or_with_one_too_many_is_refused() {
    for kind in kinds() {
        refused(&kind, &travelling(&kind.body, &[]), "without a signature it");
        let mut attestations = kind.attestations();
        attestations.push(attestations[0]);
        refused(&kind, &travelling(&kind.body, &attestations), "with a signature twice it");
        let more = ROLES.map(|role| signed_as(kind.tag, &kind.body, role, kind.domain));
        let most = kind.attestations().len();
        let fits = kind.takes(&travelling(&kind.body, &more[..most]));
        assert!(fits.is_ok(), "{}: {fits:?}", kind.name);
        if kind.signatures_max < more.len() {
            refused(&kind, &travelling(&kind.body, &more), "with six signatures it");
        }
    }
}

#[test]
fn signatures_have_one_order() {
    for kind in kinds().iter().filter(|kind| kind.attestations().len() > 1) {
        let mut attestations = kind.attestations();
        attestations.reverse();
        refused(kind, &travelling(&kind.body, &attestations), "in another order it");
    }
}

#[test]
fn bytes_left_over_and_missing_are_refused() {
    for kind in kinds() {
        let signed = |body: &[u8]| travelling(body, &[signed_as(kind.tag, body, Role::Owner, kind.domain)]);
        refused(&kind, &signed(&[&kind.body[..], &[0]].concat()), "with a byte more it");
        refused(&kind, &signed(&kind.body[..kind.body.len() - 1]), "with a byte less it");
        refused(&kind, &[&kind.bytes[..], &[0]].concat(), "with a byte behind it it");
        refused(&kind, &kind.bytes[..kind.bytes.len() - 1], "with its last byte cut off it");
    }
}

/// Every byte that can be a number is spelled one byte longer, and signed: whoever signs could otherwise give one value
/// many ids.
#[test]
fn padded_numbers_are_refused_though_they_are_signed() {
    for kind in kinds() {
        let mut reasons = BTreeSet::new();
        for place in (0..kind.body.len()).filter(|place| kind.body[*place] < 0x80) {
            let padded =
                [&kind.body[..place], &[kind.body[place] | 0x80, 0], &kind.body[place + 1..]].concat();
            let attestation = signed_as(kind.tag, &padded, Role::Owner, kind.domain);
            let bytes = travelling(&padded, &[attestation]);
            match kind.takes(&bytes) {
                // No number stood there: the bytes are another value, and its one encoding.
                Ok(read) => assert_eq!(read, bytes, "{}", kind.name),
                Err(reason) => _ = reasons.insert(reason),
            }
        }
        let canonical = "the bytes are not the canonical encoding of their value";
        assert!(reasons.contains(canonical), "{}: {reasons:?}", kind.name);
    }
}

proptest! {
    #![proptest_config(crate::values::cases())]

    /// A body of which a few bytes are changed, removed or added, and which is signed: if it is taken, then as the value
    /// whose one encoding it is.
    #[test]
    fn a_mangled_record_is_refused_or_is_what_it_says(
        kind in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..5),
    ) {
        thread_local!(static KINDS: Vec<Kind> = kinds());
        KINDS.with(|kinds| {
            let kind = kind.get(kinds);
            let mut body = kind.body.clone();
            for (place, byte, edit) in edits {
                let place = place.index(body.len());
                match edit {
                    0 => body[place] = byte,
                    1 => body.insert(place, byte),
                    _ => _ = body.remove(place),
                }
            }
            let bytes = travelling(&body, &[signed_as(kind.tag, &body, Role::Node, kind.domain)]);
            if let Ok(read) = kind.takes(&bytes) {
                prop_assert_eq!(read, bytes);
            }
            Ok(())
        })?;
    }
}
