//! Canonical bytes: one value has one encoding, and nothing else decodes to it.

use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes that are not the one encoding of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// More bytes than a value of this kind may have.
    #[error("{length} bytes are more than the {max} allowed")]
    TooLong {
        /// Length given.
        length: usize,
        /// Length allowed.
        max: usize,
    },
    /// Not a value at all.
    #[error("the bytes are not a value of the expected type")]
    Malformed,
    /// A value, but spelled differently from how we would spell it (padded numbers, bytes left over).
    #[error("the bytes are not the canonical encoding of their value")]
    NotCanonical,
}

/// Returns the canonical postcard encoding of `value`.
///
/// # Panics
/// Never for the types of this crate: they are plain data without maps, floats or lengths unknown in advance.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain data always has an encoding")
}

/// Calls `take` with the canonical encoding of `value`: where nobody keeps it, it takes no memory as long as it is short.
pub(crate) fn encoded<T: Serialize, R>(value: &T, take: impl FnOnce(&[u8]) -> R) -> R {
    let mut short = [0; SHORT];
    match postcard::to_slice(value, &mut short) {
        Ok(bytes) => take(bytes),
        Err(_) => take(&encode(value)),
    }
}

/// Bytes of an encoding that is short: all records of a channel are.
const SHORT: usize = 512;

/// Returns the value whose canonical encoding `bytes` are.
///
/// # Errors
/// When the bytes are more than `max`, no value, or not canonical: postcard alone accepts padded varints and bytes
/// left over, which would give one signed value many ids.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong { length: bytes.len(), max });
    }
    let value = postcard::from_bytes(bytes).map_err(|_| DecodeError::Malformed)?;
    if encode(&value) != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}

/// Returns the value that bytes of our own encode, which a checksum has kept: how they are spelled is not looked at again.
///
/// # Errors
/// When the bytes are more than `max`, or no value.
pub fn decode_own<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong { length: bytes.len(), max });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(DecodeError::NotCanonical),
        Err(_) => Err(DecodeError::Malformed),
    }
}

/// Bytes are encoded as a list of numbers would be, but taken as they lie.
pub(crate) mod bytes {
    use alloc::vec::Vec;
    use core::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_byte_buf(Bytes)
    }

    struct Bytes;

    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }
    }
}

/// The same for a fixed number of bytes, in what this crate keeps for itself: taken one by one they would take longer.
pub(crate) mod array {
    use core::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<const N: usize, S: Serializer>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        deserializer.deserialize_bytes(Array)
    }

    struct Array<const N: usize>;

    impl<const N: usize> Visitor<'_> for Array<N> {
        type Value = [u8; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{N} bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<[u8; N], E> {
            bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::{DecodeError, SHORT, decode, decode_own, encode, encoded};

    #[test]
    fn a_value_survives_the_round_trip() {
        let value = (7_u64, String::from("seven"));

        assert_eq!(decode(&encode(&value), 100), Ok(value.clone()));
        assert_eq!(decode_own(&encode(&value), 100), Ok(value));
    }

    #[test]
    fn an_encoding_that_nobody_keeps_is_the_same_whatever_its_length() {
        for length in [0, SHORT - 2, SHORT - 1, 10 * SHORT] {
            let value = "a".repeat(length);
            assert_eq!(encoded(&value, <[u8]>::to_vec), encode(&value));
        }
    }

    #[test]
    fn of_our_own_bytes_none_may_be_missing_or_left_over() {
        assert_eq!(decode_own::<u64>(&[0x07, 0x00], 100), Err(DecodeError::NotCanonical));
        assert_eq!(decode_own::<u64>(&[0x87], 100), Err(DecodeError::Malformed));
        assert_eq!(decode_own::<u64>(&[7], 0), Err(DecodeError::TooLong { length: 1, max: 0 }));
    }

    #[test]
    fn padded_numbers_and_trailing_bytes_are_refused() {
        assert_eq!(decode::<u64>(&[0x87, 0x00], 100), Err(DecodeError::NotCanonical));
        assert_eq!(decode::<u64>(&[0x07, 0x00], 100), Err(DecodeError::NotCanonical));
        assert_eq!(decode::<u64>(&[], 100), Err(DecodeError::Malformed));
    }

    #[test]
    fn a_long_encoding_is_refused_before_it_is_read() {
        assert_eq!(decode::<u64>(&[1; 101], 100), Err(DecodeError::TooLong { length: 101, max: 100 }));
    }
}
