//! A network in a file that people can read: its manifest, signed by its root, and where its issuers are reached.

use std::path::Path;

use data_encoding::HEXLOWER;
use protocol::ids::{Digest, NodeId, RecordId};
use protocol::keys::{PublicKey, Signature};
use protocol::manifest::{Admission, Issuer, Manifest, Pool, verify_manifest};
use protocol::model::Modality;
use protocol::signed::{Attestation, Role, Signed, Verified};
use protocol::time::Time;
use serde::{Deserialize, Serialize};

use crate::api::views::{format_credits, parse_credits};
use crate::config::parse_contact;
use crate::exit::Failure;
use crate::models::cannot;
use crate::net::PeerKey;

/// Arrangement of the file.
const VERSION: u32 = 1;

/// Bounds the file, which somebody may have sent.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Bounds the addresses of one issuer.
pub const ADDRESSES_MAX: usize = 8;

const HEAD: &str = "\
# A Sharemesh network. All of it but the addresses is signed by the network's root: a changed word makes it unreadable.
# The addresses say where the issuers are reached, and may be changed.
";

/// A network, checked, with the addresses of its issuers.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkFile {
    /// Signed by its root.
    pub manifest: Verified<Manifest>,
    /// Multiaddresses of each issuer, in the manifest's order.
    pub addresses: Vec<Vec<String>>,
}

/// The file, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    id: String,
    name: String,
    created_ms: u64,
    quorum: u8,
    admission: AdmissionText,
    development: bool,
    epoch_ms: u64,
    grace_epochs: u32,
    open_fee: String,
    pay_fee: String,
    withdraw_fee: String,
    grant_budget: String,
    network_account: String,
    network_bps: u16,
    pool_bps: u16,
    provider_floor_bps: u16,
    markup_max_bps: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
    root: String,
    signature: String,
    issuers: Vec<IssuerText>,
    #[serde(default)]
    pools: Vec<PoolText>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AdmissionText {
    Open,
    Ticket,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IssuerText {
    key: String,
    node: String,
    #[serde(default)]
    addresses: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolText {
    class: ClassText,
    account: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClassText {
    Text,
    Embedding,
    Speech,
    Image,
}

impl NetworkFile {
    /// Reads the file of a network and checks its signature.
    ///
    /// # Errors
    /// When it cannot be read, is no such file, or is not what its root signed.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| cannot("read", path, &error))?;
        Self::from_text(&text).map_err(|why| Failure::usage(format!("{} is wrong: {why}", path.display())))
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("it has more than {TEXT_BYTES_MAX} bytes"));
        }
        let text: Text = toml::from_str(text).map_err(|error| error.to_string())?;
        if text.version != VERSION {
            return Err(format!(
                "it has version {}, and this program knows {VERSION}: use a newer one",
                text.version
            ));
        }
        let manifest = text.manifest()?;
        let signature = signature(&text.signature)?;
        let attestation = Attestation { role: Role::Root, key: manifest.root, signature };
        let signed = Signed::unchecked(&manifest, Vec::from([attestation]));
        let manifest = verify_manifest(signed)
            .map_err(|error| format!("it is not what the network's root signed ({error}): get it again"))?;
        if manifest.domain().to_string() != text.id {
            return Err("its `id` is not the hash of what it says: get it again".to_owned());
        }
        let addresses = text.issuers.iter().map(|issuer| contacts(&issuer.addresses));
        Ok(Self { manifest, addresses: addresses.collect::<Result<_, _>>()? })
    }

    /// Returns the addresses of all issuers, the first of each first; each names its node.
    #[must_use]
    pub fn contacts(&self) -> Vec<String> {
        let at = |turn: usize| {
            let issuers = self.manifest.issuers.iter().zip(&self.addresses);
            issuers.filter_map(move |(issuer, addresses)| named(addresses.get(turn)?, issuer.node))
        };
        (0..ADDRESSES_MAX).flat_map(at).collect()
    }

    /// Returns the file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let text = toml::to_string(&Text::of(self)).expect("words and numbers are TOML");
        format!("{HEAD}{text}")
    }
}

impl Text {
    fn of(file: &NetworkFile) -> Self {
        let manifest = &file.manifest;
        let signature = manifest.attestations().first().map(|attestation| attestation.signature);
        let Signature(first, second) = signature.expect("whoever verified a record saw a signature");
        let issuers = manifest.issuers.iter().zip(&file.addresses).map(|(issuer, addresses)| IssuerText {
            key: HEXLOWER.encode(&issuer.key.0),
            node: issuer.node.to_string(),
            addresses: addresses.clone(),
        });
        let pools = manifest.pools.iter();
        Self {
            version: VERSION,
            id: manifest.domain().to_string(),
            name: manifest.name.clone(),
            created_ms: manifest.created.0,
            quorum: manifest.quorum,
            admission: manifest.admission.into(),
            development: manifest.development,
            epoch_ms: manifest.epoch_ms,
            grace_epochs: manifest.grace_epochs,
            open_fee: format_credits(manifest.open_fee),
            pay_fee: format_credits(manifest.pay_fee),
            withdraw_fee: format_credits(manifest.withdraw_fee),
            grant_budget: format_credits(manifest.grant_budget),
            network_account: manifest.network.to_string(),
            network_bps: manifest.network_bps,
            pool_bps: manifest.pool_bps,
            provider_floor_bps: manifest.provider_floor_bps,
            markup_max_bps: manifest.markup_max_bps,
            previous: manifest.previous.map(|previous| previous.to_string()),
            root: HEXLOWER.encode(&manifest.root.0),
            signature: HEXLOWER.encode(&[first, second].concat()),
            issuers: issuers.collect(),
            pools: pools
                .map(|pool| PoolText { class: pool.class.into(), account: pool.account.to_string() })
                .collect(),
        }
    }

    fn manifest(&self) -> Result<Manifest, String> {
        let credits = |text: &str| parse_credits(text).map_err(|failure| failure.message);
        let issuer =
            |issuer: &IssuerText| Ok::<_, String>(Issuer { key: key(&issuer.key)?, node: id(&issuer.node)? });
        let pool = |pool: &PoolText| {
            Ok::<_, String>(Pool { class: (&pool.class).into(), account: id(&pool.account)? })
        };
        Ok(Manifest {
            name: self.name.clone(),
            created: Time(self.created_ms),
            issuers: self.issuers.iter().map(issuer).collect::<Result<_, _>>()?,
            quorum: self.quorum,
            root: key(&self.root)?,
            admission: (&self.admission).into(),
            epoch_ms: self.epoch_ms,
            grace_epochs: self.grace_epochs,
            open_fee: credits(&self.open_fee)?,
            pay_fee: credits(&self.pay_fee)?,
            withdraw_fee: credits(&self.withdraw_fee)?,
            network: id(&self.network_account)?,
            network_bps: self.network_bps,
            pools: self.pools.iter().map(pool).collect::<Result<_, _>>()?,
            pool_bps: self.pool_bps,
            provider_floor_bps: self.provider_floor_bps,
            markup_max_bps: self.markup_max_bps,
            grant_budget: credits(&self.grant_budget)?,
            development: self.development,
            previous: self.previous.as_deref().map(id::<RecordId>).transpose()?,
        })
    }
}

impl From<Admission> for AdmissionText {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Open => Self::Open,
            Admission::Ticket => Self::Ticket,
        }
    }
}

impl From<&AdmissionText> for Admission {
    fn from(text: &AdmissionText) -> Self {
        match text {
            AdmissionText::Open => Self::Open,
            AdmissionText::Ticket => Self::Ticket,
        }
    }
}

impl From<Modality> for ClassText {
    fn from(class: Modality) -> Self {
        match class {
            Modality::Text => Self::Text,
            Modality::Embedding => Self::Embedding,
            Modality::Speech => Self::Speech,
            Modality::Image => Self::Image,
        }
    }
}

impl From<&ClassText> for Modality {
    fn from(text: &ClassText) -> Self {
        match text {
            ClassText::Text => Self::Text,
            ClassText::Embedding => Self::Embedding,
            ClassText::Speech => Self::Speech,
            ClassText::Image => Self::Image,
        }
    }
}

fn id<T: std::str::FromStr<Err = protocol::ids::IdError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: protocol::ids::IdError| error.to_string())
}

fn key(text: &str) -> Result<PublicKey, String> {
    id::<Digest>(text).map(|Digest(key)| PublicKey(key))
}

fn signature(text: &str) -> Result<Signature, String> {
    let (first, second) = text.split_at_checked(64).unwrap_or((text, ""));
    Ok(Signature(id::<Digest>(first)?.0, id::<Digest>(second)?.0))
}

fn named(address: &str, node: NodeId) -> Option<String> {
    PeerKey(node.0).at(address.parse().ok()?).map(|address| address.to_string())
}

/// Checks the addresses of one issuer.
fn contacts(texts: &[String]) -> Result<Vec<String>, String> {
    let parsed: Result<Vec<_>, _> = texts.iter().map(|text| parse_contact(text)).collect();
    let addresses = parsed.map_err(|failure| failure.message)?.concat();
    if addresses.len() > ADDRESSES_MAX {
        return Err(format!("an issuer has at most {ADDRESSES_MAX} addresses"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use protocol::keys::Signer;

    use super::*;
    use crate::issuer_key::IssuerKey;

    fn file() -> NetworkFile {
        let root = Signer::from_seed([7; 32]);
        let issuers: Vec<Issuer> = (0..4).map(|_| IssuerKey::draw().public()).collect();
        let home = Manifest::home("ours".to_owned(), Time(1), &root, issuers[0].node);
        let previous = Some(RecordId([9; 32]));
        let manifest = Manifest { issuers, quorum: 3, grant_budget: u64::MAX, previous, ..home };
        let addresses =
            Vec::from([Vec::from(["/ip4/192.0.2.1/udp/7432/quic-v1".to_owned()]), vec![], vec![], vec![]]);
        NetworkFile { manifest: manifest.signed_by(&root), addresses }
    }

    #[test]
    fn a_network_reads_as_it_was_written() {
        let file = file();

        assert_eq!(NetworkFile::from_text(&file.to_text()), Ok(file));
    }

    #[test]
    fn whatever_is_changed_but_the_addresses_makes_the_file_unreadable() {
        let file = file();
        let text = file.to_text();

        let signed = |line: &&str| line.contains(" = ") && !line.starts_with("addresses");
        for old in text.lines().filter(signed) {
            let (name, value) = old.split_once(" = ").expect("has a value");
            let other = match value.strip_suffix('"') {
                Some(value) if value.ends_with('0') => format!("{}1\"", &value[..value.len() - 1]),
                Some(value) => format!("{}0\"", &value[..value.len() - 1]),
                None if value == "false" => "true".to_owned(),
                None => format!("{value}1"),
            };
            let changed = text.replacen(old, &format!("{name} = {other}"), 1);
            assert!(NetworkFile::from_text(&changed).is_err(), "{old} -> {other}");
        }
        let moved = text.replace("192.0.2.1", "192.0.2.2");
        assert_eq!(NetworkFile::from_text(&moved).map(|file| file.manifest.id()), Ok(file.manifest.id()));
    }

    #[test]
    fn what_is_no_network_says_why() {
        let text = file().to_text();

        for (wrong, why) in [
            ("nonsense".to_owned(), "expected"),
            (text.replace("version = 1", "version = 2"), "use a newer one"),
            (text.replace("name = \"ours\"", "name = \"mine\""), "not what the network's root signed"),
            (text.replace("/udp/7432/quic-v1", ""), "no address"),
            (text.replace("[[pools]]", "[[pool]]"), "unknown field"),
        ] {
            let error = NetworkFile::from_text(&wrong).expect_err(why);
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
