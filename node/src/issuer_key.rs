//! The keys of one issuer: in a file that its operator guards, and the public half, which is in the network's file.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use protocol::ids::{Digest, NodeId};
use protocol::keys::{PublicKey, Signer};
use protocol::manifest::Issuer;
use serde::{Deserialize, Serialize};

use crate::config::parse_contact;
use crate::exit::Failure;
use crate::identity::random;
use crate::models::cannot;

/// Arrangement of the file.
const VERSION: u32 = 1;

/// Seeds of the two keys that make an issuer: the one that signs as issuer, and the one of the node that speaks for it.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuerKey {
    /// Seed of the issuer's key.
    pub issuer: [u8; 32],
    /// Seed of its node's key.
    pub node: [u8; 32],
}

/// The file, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    public: String,
    issuer_seed: String,
    node_seed: String,
}

impl IssuerKey {
    /// Draws new keys.
    #[must_use]
    pub fn draw() -> Self {
        Self { issuer: random(), node: random() }
    }

    /// Returns what a manifest says of this issuer.
    #[must_use]
    pub fn public(&self) -> Issuer {
        Issuer {
            key: Signer::from_seed(self.issuer).public(),
            node: Signer::from_seed(self.node).public().into(),
        }
    }

    /// Returns the file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let text = Text {
            version: VERSION,
            public: IssuerName { issuer: self.public(), addresses: Vec::new() }.to_string(),
            issuer_seed: HEXLOWER.encode(&self.issuer),
            node_seed: HEXLOWER.encode(&self.node),
        };
        let text = toml::to_string(&text).expect("words and numbers are TOML");
        format!(
            "# SECRET: whoever has this file is this issuer. Give it to one node, and keep a copy offline.\n{text}"
        )
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// When it cannot be read, or is not one.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| cannot("read", path, &error))?;
        // What is wrong is not said with the text beside it: that would print a secret.
        Self::from_text(&text).ok_or_else(|| {
            Failure::usage(format!(
                "{} is not an issuer's key file, or is damaged: take the one that `sharemesh network create` wrote",
                path.display()
            ))
        })
    }

    fn from_text(text: &str) -> Option<Self> {
        let Text { version, public, issuer_seed, node_seed } = toml::from_str(text).ok()?;
        let seed = |text: &str| text.parse().ok().map(|Digest(seed)| seed);
        let keys = Self { issuer: seed(&issuer_seed)?, node: seed(&node_seed)? };
        let named = public.parse::<IssuerName>().ok()?;
        (version == VERSION && named.issuer == keys.public()).then_some(keys)
    }
}

impl fmt::Debug for IssuerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "IssuerKey({:?})", self.public().key)
    }
}

/// The public half of an issuer as one word, `KEY@NODE` or `KEY@NODE@ADDRESS`: what an operator gives to whoever makes
/// the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerName {
    /// Its key and its node.
    pub issuer: Issuer,
    /// Where it can be reached, as multiaddresses.
    pub addresses: Vec<String>,
}

impl fmt::Display for IssuerName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", HEXLOWER.encode(&self.issuer.key.0), self.issuer.node)
    }
}

impl FromStr for IssuerName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::usage(format!(
                "`{text}` names no issuer: write KEY@NODE or KEY@NODE@HOST:PORT, as `sharemesh network issuer-key` \
                 prints on the issuer's machine"
            ))
        };
        let mut parts = text.splitn(3, '@');
        let key = parts.next().and_then(|key| key.parse().ok()).map(|Digest(key)| PublicKey(key));
        let node = parts.next().and_then(|node| node.parse::<NodeId>().ok());
        let (key, node) = (key.ok_or_else(wrong)?, node.ok_or_else(wrong)?);
        let addresses = parts.next().map_or(Ok(Vec::new()), parse_contact)?;
        Ok(Self { issuer: Issuer { key, node }, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_reads_as_it_was_written_and_no_other_way() {
        let keys = IssuerKey::draw();
        let text = keys.to_text();

        assert_eq!(IssuerKey::from_text(&text), Some(keys.clone()));
        let other = IssuerKey { node: IssuerKey::draw().node, ..keys };
        let swapped = text.replace(&HEXLOWER.encode(&keys.node), &HEXLOWER.encode(&other.node));
        assert_eq!(IssuerKey::from_text(&swapped), None, "the public half is another's");
        assert_eq!(IssuerKey::from_text(&text.replace("version = 1", "version = 2")), None);
        assert_eq!(IssuerKey::from_text("nonsense"), None);
    }

    #[test]
    fn a_key_is_printed_nowhere() {
        let keys = IssuerKey::draw();

        assert!(!format!("{keys:?}").contains(&HEXLOWER.encode(&keys.issuer)));
    }

    #[test]
    fn an_issuer_is_named_by_its_key_its_node_and_perhaps_its_address() {
        let name = IssuerName { issuer: IssuerKey::draw().public(), addresses: Vec::new() };

        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        let at: IssuerName = format!("{name}@192.0.2.1:7432").parse().expect("sound");
        assert_eq!(at.addresses, ["/ip4/192.0.2.1/udp/7432/quic-v1", "/ip4/192.0.2.1/tcp/7432"]);
        for wrong in ["", "ab@cd", &name.to_string()[1..], &format!("{name}@nowhere")] {
            assert_eq!(wrong.parse::<IssuerName>().expect_err(wrong).kind.exit_code(), 2);
        }
    }
}
