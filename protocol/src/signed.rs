//! Signed records: the bytes, who attests to them, and the proof that somebody checked.

use alloc::vec::Vec;
use core::fmt::Debug;
use core::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::advert::Advert;
use crate::encoding::{DecodeError, bytes, decode, decode_own, encode, encoded};
use crate::ids::{DomainId, RecordId};
use crate::keys::{PublicKey, Scheme, Signature, Signer};
use crate::mutant;

/// A kind of record that is signed.
pub trait Signable: Serialize + DeserializeOwned + Clone + Debug + PartialEq {
    /// Names the type inside the signed bytes, so that no record passes for another.
    const TAG: &'static str;
    /// Bounds the encoding, so that a peer cannot make us hold more.
    const BYTES_MAX: usize = 4096;
    /// Bounds the signatures: each costs whoever checks it, and a signature too many would make a record that its last
    /// signer could still read unreadable to everybody after.
    const ATTESTATIONS_MAX: usize = 1;

    /// Says what is out of bounds, before any rule looks at the record.
    ///
    /// # Errors
    /// With the name of the field.
    fn check_bounds(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// In which capacity a key signs; part of the signed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// The owner of an account.
    Owner,
    /// A node, with the key that is its name.
    Node,
    /// The paying side of a channel.
    Payer,
    /// The paid side of a channel.
    Payee,
    /// An issuer of the network.
    Issuer,
    /// The root key of the network.
    Root,
}

/// One signature with its capacity and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attestation {
    /// Capacity in which the key signed.
    pub role: Role,
    /// Key that signed.
    pub key: PublicKey,
    /// The signature.
    pub signature: Signature,
}

/// A record as received: exact bytes and signatures that nobody has checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Signed<T> {
    #[serde(with = "bytes")]
    body: Vec<u8>,
    attestations: Vec<Attestation>,
    kind: PhantomData<T>,
}

/// A record whose every signature was checked over the exact bytes received.
///
/// Comes from [`Signed::verify`], from [`sign`] (our own), or from [`Signed::read_back`] (our own journal); within this crate
/// also from the kept parts of one that did. The bytes need not be kept: a canonical value has one encoding.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified<T> {
    value: T,
    id: RecordId,
    attestations: Vec<Attestation>,
}

/// Why a record was not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignedError {
    /// The body is not a canonical value.
    #[error("{0}")]
    Body(#[from] DecodeError),
    /// A field is out of bounds.
    #[error("`{0}` is out of bounds")]
    Bounds(&'static str),
    /// No signature, too many, or not in their one order.
    #[error("the signatures are missing, too many, repeated or out of order")]
    Attestations,
    /// A signature does not verify.
    #[error("the signature of {0:?} does not verify")]
    Signature(PublicKey),
}

/// Returns `value` signed by `signer` as `role` in network `domain`.
#[must_use]
pub fn sign<T: Signable>(value: T, domain: DomainId, role: Role, signer: &Signer) -> Verified<T> {
    let body = encode(&value);
    let signature = signer.sign(&signing_bytes::<T>(&body, domain, role));
    let attestations = Vec::from([Attestation { role, key: signer.public(), signature }]);
    let id = record_id::<T>(&body, domain);
    Verified { value, id, attestations }
}

/// Returns the id that `value` has in network `domain`, signed or not.
#[must_use]
pub fn id_of<T: Signable>(value: &T, domain: DomainId) -> RecordId {
    encoded(value, |body| record_id::<T>(body, domain))
}

impl<T: Signable> Signed<T> {
    /// Returns a record that was written as text, as it would have been received; nothing is checked.
    #[must_use]
    pub fn unchecked(value: &T, attestations: Vec<Attestation>) -> Self {
        Self { body: encode(value), attestations, kind: PhantomData }
    }

    /// Checks canonical form, bounds and every signature.
    ///
    /// # Errors
    /// Says which of them failed; the record must then be dropped and its sender counted.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Verified<T>, SignedError> {
        let ordered = self
            .attestations
            .windows(2)
            .all(|pair| (pair[0].role, pair[0].key) < (pair[1].role, pair[1].key));
        if self.attestations.is_empty() || self.attestations.len() > T::ATTESTATIONS_MAX || !ordered {
            return Err(SignedError::Attestations);
        }
        let value = self.read_value()?;
        for attestation in &self.attestations {
            let bytes = signing_bytes::<T>(&self.body, domain, attestation.role);
            let is_empty = attestation.signature == Signature([0; 32], [0; 32]);
            let passes = (is_empty && mutant::is_in("empty-signature"))
                || (T::TAG == Advert::TAG && mutant::is_in("advert-unverified"));
            if !passes && !scheme.verifies(attestation.key, &bytes, attestation.signature) {
                return Err(SignedError::Signature(attestation.key));
            }
        }
        let id = record_id::<T>(&self.body, domain);
        Ok(Verified { value, id, attestations: self.attestations })
    }

    /// Takes a record out of our own journal, where it was written only after it had been verified.
    ///
    /// # Errors
    /// When it cannot be read: the journal was written by a different version or was damaged.
    pub fn read_back(self, domain: DomainId) -> Result<Verified<T>, SignedError> {
        let id = self.id_in(domain);
        let value: T = decode_own(&self.body, T::BYTES_MAX)?;
        value.check_bounds().map_err(SignedError::Bounds)?;
        Ok(Verified { value, id, attestations: self.attestations })
    }

    /// Returns the record id, whether the rest holds or not.
    #[must_use]
    pub fn id_in(&self, domain: DomainId) -> RecordId {
        record_id::<T>(&self.body, domain)
    }

    /// Returns the value, its id and the number of signatures, none of them checked: for showing our own journal.
    #[must_use]
    pub fn peek_in(&self, domain: DomainId) -> Option<(T, RecordId, usize)> {
        let value = self.read_value().ok()?;
        Some((value, record_id::<T>(&self.body, domain), self.attestations.len()))
    }

    /// Returns how many signatures there are, checked or not.
    #[must_use]
    pub const fn signature_count(&self) -> usize {
        self.attestations.len()
    }

    fn read_value(&self) -> Result<T, SignedError> {
        let value: T = decode(&self.body, T::BYTES_MAX)?;
        value.check_bounds().map_err(SignedError::Bounds)?;
        Ok(value)
    }
}

impl<T: Signable> Verified<T> {
    /// Returns a record whose parts were taken from a verified one and kept.
    pub(crate) const fn of_parts(value: T, id: RecordId, attestations: Vec<Attestation>) -> Self {
        Self { value, id, attestations }
    }

    /// Returns the signature of `key` as `role`.
    pub(crate) fn signature(&self, role: Role, key: PublicKey) -> Option<Signature> {
        self.attestations.iter().find(|a| a.role == role && a.key == key).map(|a| a.signature)
    }

    /// Returns the record id: the same whoever signed.
    pub const fn id(&self) -> RecordId {
        self.id
    }

    /// Returns the record as it travels.
    pub fn signed(&self) -> Signed<T> {
        Signed { body: encode(&self.value), attestations: self.attestations.clone(), kind: PhantomData }
    }

    /// Returns the key that signed as `role`, if exactly one did.
    #[must_use]
    pub fn signer(&self, role: Role) -> Option<PublicKey> {
        let mut keys = self.attestations.iter().filter(|a| a.role == role).map(|a| a.key);
        keys.next().filter(|_| keys.next().is_none())
    }

    /// Returns the keys that signed as `role`.
    pub fn signers(&self, role: Role) -> impl Iterator<Item = PublicKey> + '_ {
        self.attestations.iter().filter(move |a| a.role == role).map(|a| a.key)
    }

    /// Returns how many signed.
    #[must_use]
    pub const fn signature_count(&self) -> usize {
        self.attestations.len()
    }

    /// Returns the signatures.
    #[must_use]
    pub fn attestations(&self) -> &[Attestation] {
        &self.attestations
    }

    /// Says whether `key` signed as `role`.
    #[must_use]
    pub fn is_signed_by(&self, role: Role, key: PublicKey) -> bool {
        self.attestations.iter().any(|a| a.role == role && a.key == key)
    }

    /// Says whether exactly `signers` signed, and nobody else.
    #[must_use]
    pub fn is_signed_only_by(&self, signers: &[(Role, PublicKey)]) -> bool {
        let signed = signers.iter().all(|(role, key)| self.is_signed_by(*role, *key));
        signed && self.attestations.len() == signers.len()
    }

    /// Returns the same record with those signatures of `other`, if it is the same record, that `counts` lets through.
    #[must_use]
    pub fn with_signatures_of(mut self, other: &Self, counts: impl Fn(Role, PublicKey) -> bool) -> Self {
        if self.id == other.id {
            let more = other.attestations.iter().filter(|a| counts(a.role, a.key));
            let news: Vec<Attestation> =
                more.filter(|a| !self.is_signed_by(a.role, a.key)).copied().collect();
            self.attestations.extend(news);
            self.attestations.sort_unstable();
        }
        self
    }

    /// Returns the same record with our signature added; signing twice changes nothing.
    #[must_use]
    pub fn signed_also_by(mut self, domain: DomainId, role: Role, signer: &Signer) -> Self {
        if !self.is_signed_by(role, signer.public()) {
            let signature = signer.sign(&signing_bytes::<T>(&encode(&self.value), domain, role));
            self.attestations.push(Attestation { role, key: signer.public(), signature });
            self.attestations.sort_unstable();
        }
        self
    }
}

impl<T> core::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// `"sharemesh/v1/" || type || 0 || role || domain || length || body`: no two meanings share bytes.
fn signing_bytes<T: Signable>(body: &[u8], domain: DomainId, role: Role) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("bodies are bounded far below 4 GiB");
    [b"sharemesh/v1/", T::TAG.as_bytes(), &[0, role as u8], &domain.0, &length.to_be_bytes(), body].concat()
}

fn record_id<T: Signable>(body: &[u8], domain: DomainId) -> RecordId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(T::TAG.as_bytes()).update(&[0]).update(&domain.0).update(body);
    RecordId(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChannelId;
    use crate::ledger::records::Final;

    const DOMAIN: DomainId = DomainId([1; 32]);

    #[test]
    fn a_record_with_a_signature_too_many_is_not_read() {
        let signer = |seed| Signer::from_seed([seed; 32]);
        let closing = Final { channel: ChannelId([9; 32]), amount: 500, receipt: None };
        let both =
            sign(closing, DOMAIN, Role::Payer, &signer(1)).signed_also_by(DOMAIN, Role::Payee, &signer(2));
        assert!(both.signed().verify(DOMAIN, Scheme::Strict).is_ok());

        let more = both.signed_also_by(DOMAIN, Role::Owner, &signer(3));
        assert_eq!(more.signed().verify(DOMAIN, Scheme::Strict), Err(SignedError::Attestations));
    }

    #[test]
    fn a_record_without_a_signature_or_with_an_empty_one_is_not_read() {
        let signer = Signer::from_seed([1; 32]);
        let closing = Final { channel: ChannelId([9; 32]), amount: 500, receipt: None };
        let signed = sign(closing, DOMAIN, Role::Payer, &signer).signed();
        let without = Signed { attestations: Vec::new(), ..signed.clone() };
        assert_eq!(without.verify(DOMAIN, Scheme::Strict), Err(SignedError::Attestations));

        let empty =
            Attestation { role: Role::Payer, key: signer.public(), signature: Signature([0; 32], [0; 32]) };
        let empty = Signed { attestations: Vec::from([empty]), ..signed };
        assert_eq!(empty.verify(DOMAIN, Scheme::Strict), Err(SignedError::Signature(signer.public())));
    }
}
