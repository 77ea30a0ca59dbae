//! Keys: who signs, and deriving one key from another so that only one secret needs keeping.

use core::fmt;

use ed25519_dalek::{Signer as _, SigningKey, Verifier as _, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, NodeId};
use crate::mutant;

/// An Ed25519 public key as it travels: 32 bytes that may or may not be a point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

/// An Ed25519 signature as it travels: R and S.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signature(pub [u8; 32], pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&NodeId(self.0), f)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&NodeId(self.0), f)
    }
}

impl From<NodeId> for PublicKey {
    fn from(node: NodeId) -> Self {
        Self(node.0)
    }
}

impl From<PublicKey> for NodeId {
    fn from(key: PublicKey) -> Self {
        Self(key.0)
    }
}

impl From<PublicKey> for AccountId {
    fn from(key: PublicKey) -> Self {
        Self(key.0)
    }
}

impl From<AccountId> for PublicKey {
    fn from(account: AccountId) -> Self {
        Self(account.0)
    }
}

/// A secret that signs.
#[derive(Clone)]
pub struct Signer(Kind);

#[derive(Clone)]
enum Kind {
    Ed25519(SigningKey),
    Simulated([u8; 32]),
}

impl Signer {
    /// Returns the signer of an Ed25519 seed.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(Kind::Ed25519(SigningKey::from_bytes(&seed)))
    }

    /// Returns a signer whose "signatures" anybody can make: for simulated nodes that are honest by construction.
    #[must_use]
    pub fn simulated(seed: [u8; 32]) -> Self {
        Self(Kind::Simulated(seed))
    }

    /// Returns the key that verifies what this signer signs.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        match &self.0 {
            Kind::Ed25519(key) => PublicKey(key.verifying_key().to_bytes()),
            Kind::Simulated(seed) => PublicKey(*blake3::hash(seed).as_bytes()),
        }
    }

    /// Returns the signer of another seed, of the same kind as this one.
    #[must_use]
    pub fn sibling(&self, seed: [u8; 32]) -> Self {
        match &self.0 {
            Kind::Ed25519(_) => Self::from_seed(seed),
            Kind::Simulated(_) => Self::simulated(seed),
        }
    }

    /// Returns the signer that belongs to this one and `context`: the same each time, unlinkable without the secret.
    #[must_use]
    pub fn derive(&self, context: &[u8]) -> Self {
        let secret = match &self.0 {
            Kind::Ed25519(key) => key.as_bytes(),
            Kind::Simulated(seed) => seed,
        };
        let mut hasher = blake3::Hasher::new_derive_key("sharemesh v1 derived signing key");
        hasher.update(secret).update(context);
        let seed = *hasher.finalize().as_bytes();
        self.sibling(seed)
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Signature {
        match &self.0 {
            Kind::Ed25519(key) => {
                let signature = key.sign(bytes);
                Signature(*signature.r_bytes(), *signature.s_bytes())
            }
            Kind::Simulated(_) => simulated_signature(self.public(), bytes),
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer of {:?}", self.public())
    }
}

/// Which signatures count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Ed25519 with `verify_strict`: no small-order keys, no second spelling of a signature.
    Strict,
    /// A checksum in place of a signature: thousands of times faster, worth nothing against an attacker.
    Simulated,
}

impl Scheme {
    /// Says whether `signature` is `key`'s over `bytes`.
    #[must_use]
    pub(crate) fn verifies(self, key: PublicKey, bytes: &[u8], signature: Signature) -> bool {
        match self {
            Self::Strict => VerifyingKey::from_bytes(&key.0).is_ok_and(|verifier| {
                let signature = ed25519_dalek::Signature::from_components(signature.0, signature.1);
                let strict = verifier.verify_strict(bytes, &signature).is_ok();
                strict || mutant::is_in("lenient-signatures") && verifier.verify(bytes, &signature).is_ok()
            }),
            Self::Simulated => simulated_signature(key, bytes) == signature,
        }
    }
}

fn simulated_signature(key: PublicKey, bytes: &[u8]) -> Signature {
    Signature(*blake3::keyed_hash(&key.0, bytes).as_bytes(), [0; 32])
}

#[cfg(test)]
mod tests;
