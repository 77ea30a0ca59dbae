//! Join tickets: one line of text with which another machine joins a network.

use alloc::string::String;
use alloc::vec::Vec;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::encoding::{DecodeError, decode, encode};
use crate::ids::Digest;
use crate::manifest::{Manifest, verify_manifest};
use crate::signed::{Signed, SignedError, Verified};

/// Bounds the addresses in a ticket.
pub const ADDRESSES_MAX: usize = 8;

/// Bounds a ticket's bytes: a manifest, its signature and the addresses.
const TICKET_BYTES_MAX: usize = 4096;

const PREFIX: &str = "sharemesh1";

/// The right to join, once, with what is needed to find the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The network, signed by its root.
    pub manifest: Signed<Manifest>,
    /// Where its issuers can be reached (multiaddresses).
    pub addresses: Vec<String>,
    /// What the issuer recognises the ticket by; whoever knows it may use it, once.
    pub secret: [u8; 16],
}

/// Text that is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TicketError {
    /// Not in the alphabet, or without the prefix.
    #[error(
        "this is not a whole join ticket, which begins with `sharemesh1` and holds letters and digits: copy it again"
    )]
    Text,
    /// Cut short or changed.
    #[error("the join ticket is damaged ({0}): copy it again, whole")]
    Damaged(#[from] DecodeError),
    /// Its network is not signed by its root.
    #[error("the join ticket names a network that its founder did not sign: {0}")]
    Manifest(#[from] SignedError),
}

impl Ticket {
    /// Returns the ticket as one word.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::from(PREFIX);
        text.push_str(&BASE32_NOPAD.encode(&encode(self)).to_ascii_lowercase());
        text
    }

    /// Reads a ticket and checks the network it names.
    ///
    /// # Errors
    /// When the text is no ticket, is damaged, or names a network that is not signed by its root.
    pub fn from_text(text: &str) -> Result<(Self, Verified<Manifest>), TicketError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(TicketError::Text)?;
        let bytes =
            BASE32_NOPAD.decode(digits.to_ascii_uppercase().as_bytes()).map_err(|_| TicketError::Text)?;
        let ticket: Self = decode(&bytes, TICKET_BYTES_MAX)?;
        if ticket.addresses.len() > ADDRESSES_MAX {
            return Err(DecodeError::Malformed.into());
        }
        let manifest = verify_manifest(ticket.manifest.clone())?;
        Ok((ticket, manifest))
    }

    /// Returns what an issuer keeps of a ticket: enough to recognise it, not enough to use it.
    #[must_use]
    pub fn fingerprint(secret: &[u8; 16]) -> Digest {
        Digest::of(secret)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::ids::NodeId;
    use crate::keys::Signer;
    use crate::time::Time;

    fn ticket() -> Ticket {
        let issuer = Signer::from_seed([3; 32]);
        let manifest = Manifest::home("home".to_string(), Time(1), &issuer, NodeId([4; 32]));
        let addresses = Vec::from(["/ip4/127.0.0.1/udp/1/quic-v1".to_string()]);
        Ticket { manifest: manifest.signed_by(&issuer).signed(), addresses, secret: [5; 16] }
    }

    #[test]
    fn a_ticket_survives_being_copied() {
        let text = ticket().to_text();

        let (read, manifest) = Ticket::from_text(&text).expect("our own ticket reads");
        assert_eq!(read, ticket());
        assert_eq!(manifest.name, "home");
        assert_eq!(
            Ticket::from_text(&text.to_uppercase().replace("SHAREMESH1", "sharemesh1")).unwrap().0,
            read
        );
    }

    #[test]
    fn a_ticket_cut_short_or_changed_is_refused() {
        let text = ticket().to_text();

        assert_eq!(Ticket::from_text("hello"), Err(TicketError::Text));
        assert!(Ticket::from_text(&text[..text.len() - 3]).is_err());
        for position in PREFIX.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[position] = if changed[position] == b'a' { b'b' } else { b'a' };
            let changed = Ticket::from_text(core::str::from_utf8(&changed).unwrap());
            assert_ne!(changed.map(|(ticket, _)| ticket), Ok(ticket()));
        }
    }
}
