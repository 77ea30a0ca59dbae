//! Identifiers that cannot be mistaken for one another.

use alloc::string::String;
use core::cmp::Ordering;
use core::fmt;
use core::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Text that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not an id: expected {digits} hexadecimal digits")]
pub struct IdError {
    text: String,
    digits: usize,
}

/// Compares as the bytes do, eight at once first: that nearly always tells, and maps of many names are gone through often.
fn compare<const N: usize>(one: &[u8; N], other: &[u8; N]) -> Ordering {
    let first = |bytes: &[u8; N]| bytes.first_chunk().map(|first| u64::from_be_bytes(*first));
    first(one).cmp(&first(other)).then_with(|| one.cmp(other))
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                compare(&self.0, &other.0)
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0[..4])
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_hex(text).map(Self)
            }
        }
    };
}

identifier!(
    /// A node: the Ed25519 public key of its transport identity.
    NodeId,
    32
);
identifier!(
    /// An account: the public key it began with; rotation changes the key in force, not this name.
    AccountId,
    32
);
identifier!(
    /// A network: the record id of its first manifest.
    DomainId,
    32
);
identifier!(
    /// A signed record: BLAKE3 over type, domain and body, never over signatures.
    RecordId,
    32
);
identifier!(
    /// A payment channel: the record id of the operation that opened it.
    ChannelId,
    32
);
identifier!(
    /// A model: the hash of its manifest.
    ModelId,
    32
);
identifier!(
    /// A BLAKE3 hash of content.
    Digest,
    32
);
identifier!(
    /// One job, named by whoever submits it.
    JobId,
    16
);

impl Digest {
    /// Returns the hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The hash chain of nothing.
    pub const ZERO: Self = Self([0; 32]);
}

impl RecordId {
    /// Stands for "no record", as the predecessor of a first one.
    pub const NONE: Self = Self([0; 32]);
}

impl From<RecordId> for ChannelId {
    fn from(id: RecordId) -> Self {
        Self(id.0)
    }
}

impl From<ChannelId> for RecordId {
    fn from(id: ChannelId) -> Self {
        Self(id.0)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], IdError> {
    let decoded = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    decoded
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| IdError { text: text.chars().take(80).collect(), digits: 2 * N })
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::{JobId, NodeId};

    #[test]
    fn ids_are_in_the_order_of_their_bytes() {
        let id = JobId([100; 16]);
        for place in 0..16 {
            for byte in [99, 101, 200] {
                let mut other = id;
                other.0[place] = byte;
                assert_eq!(id.cmp(&other), id.0.cmp(&other.0));
                assert_eq!(other.partial_cmp(&id), other.0.partial_cmp(&id.0));
            }
        }
        assert_eq!(id.cmp(&id), core::cmp::Ordering::Equal);
    }

    #[test]
    fn an_id_survives_being_printed_and_parsed() {
        let id = NodeId([0xa7; 32]);

        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn text_of_the_wrong_length_or_alphabet_is_refused() {
        assert!("ab".parse::<JobId>().is_err());
        assert!("+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1".parse::<JobId>().is_err());
        assert!("zz".repeat(16).parse::<JobId>().is_err());
        assert!("é".repeat(16).parse::<JobId>().is_err());
    }
}
