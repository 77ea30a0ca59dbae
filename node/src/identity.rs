//! Who this node is and which network it is in: its keys and its manifest, made at the first start, kept for good.

use anyhow::{Context as _, Result};
use protocol::encoding::{decode, encode};
use protocol::ids::{AccountId, DomainId, NodeId};
use protocol::keys::Signer;
use protocol::manifest::{Admission, Issuer, Manifest, verify_manifest};
use protocol::node::{Delegation, Owner};
use protocol::signed::{Signed, Verified};
use protocol::ticket::Ticket;
use protocol::time::Time;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::delegation;
use crate::exit::{Failure, FailureKind};
use crate::folder::{Access, DataFolder};
use crate::issuer_key::IssuerKey;
use crate::net::PeerKey;
use crate::vault::{self, Vault};

const KEYS_FILE: &str = "keys";
const NETWORK_FILE: &str = "network";
const DEVICE_FILE: &str = "device";

/// The files without which a node is not who it was.
pub const KEY_FILES: [&str; 3] = [KEYS_FILE, vault::FILE, DEVICE_FILE];

/// Bounds both files; they hold a few keys, a manifest and some addresses.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// Most addresses of issuers that are kept.
const ADDRESSES_KEPT_MAX: usize = 128;

/// Keys and network of a node.
#[derive(Debug)]
pub struct Identity {
    /// Seed of the node's key, which is its name on the mesh.
    pub secret: [u8; 32],
    /// Key of the node.
    pub node: Signer,
    /// For whom it acts.
    pub owner: Owner,
    /// The account's key file, opened, where there is one.
    pub vault: Option<Vault>,
    /// Key of the issuer, if this node is the network's.
    pub issuer: Option<Signer>,
    /// The network, signed by its root.
    pub manifest: Verified<Manifest>,
    /// Where its issuers were reachable when it was joined.
    pub addresses: Vec<String>,
    /// Secret of the ticket with which it was joined.
    pub ticket: Option<[u8; 16]>,
}

/// Seeds of the keys, as they are kept. Node, account and issuer have keys of their own from the first day on, so that
/// a lost machine is not a lost account.
#[derive(Clone, Serialize, Deserialize)]
struct Keys {
    node: [u8; 32],
    account: [u8; 32],
    issuer: [u8; 32],
}

/// A node's network, as it is kept.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Membership {
    manifest: Signed<Manifest>,
    addresses: Vec<String>,
    ticket: Option<[u8; 16]>,
}

impl Identity {
    /// Reads who this node is, or makes it up: new keys, or those of an issuer; the network of the ticket or the file, or
    /// a new home network. Nothing is written before all of it fits together.
    pub fn open(folder: &DataFolder, config: &Config, now: Time) -> Result<Self> {
        let saved = (read::<Keys>(folder, KEYS_FILE)?, read::<Membership>(folder, NETWORK_FILE)?);
        if config.recover && (saved.0.is_none() || (saved.1.is_none() && config.join.is_none())) {
            return Err(nothing_to_recover(folder).into());
        }
        let keys = keys_of(saved.0.as_ref(), config, folder)?;
        let membership = network_of(saved.1.as_ref(), &keys, config, folder, now)?;
        let manifest = verify_manifest(membership.manifest.clone())
            .with_context(|| format!("{} is damaged", folder.path().join(NETWORK_FILE).display()))?;
        let is_issuer = is_issuer(&manifest, &keys, config)?;
        if !is_issuer && saved.1.is_none() {
            check_may_join(&manifest, membership.ticket.is_some())?;
        }
        check_bootstrap(&manifest, &config.bootstrap)?;
        if saved.0.is_none() {
            create(folder, KEYS_FILE, &keys)?;
        }
        if saved.1.as_ref() != Some(&membership) {
            create(folder, NETWORK_FILE, &membership)?;
        }
        let (node, issuer) = (Signer::from_seed(keys.node), Signer::from_seed(keys.issuer));
        let vault = open_vault(folder, config)?;
        let given = delegation_of(folder, config, node.public().into(), manifest.domain())?;
        let owner = match (&vault, given) {
            (Some(_), Some(_)) => {
                let what = "this data folder has an account's key file, so its node is that account's: start the other account's device in a new folder";
                return Err(Failure::usage(what).into());
            }
            (Some(vault), None) => vault.owner(),
            (None, Some(given)) => given.into(),
            (None, None) => Signer::from_seed(keys.account).into(),
        };
        Ok(Self {
            secret: keys.node,
            node,
            owner,
            vault,
            issuer: is_issuer.then_some(issuer),
            manifest,
            addresses: membership.addresses,
            ticket: membership.ticket,
        })
    }
}

impl Keys {
    fn draw() -> Self {
        Self { node: random(), account: random(), issuer: random() }
    }

    fn issuer(&self) -> Issuer {
        IssuerKey { issuer: self.issuer, node: self.node }.public()
    }
}

/// Returns the keys of the folder, or new ones for it: an issuer's node and issuer keys are those of its file.
fn keys_of(saved: Option<&Keys>, config: &Config, folder: &DataFolder) -> Result<Keys> {
    match (saved, &config.issuer_key) {
        (Some(keys), Some(given)) if keys.issuer() != given.public() => {
            let what = format!(
                "{} has the keys of another node than --issuer-key: choose another folder with --data",
                folder.path().display()
            );
            Err(Failure::new(FailureKind::Forbidden, what).into())
        }
        (Some(keys), _) => Ok(keys.clone()),
        (None, Some(given)) => Ok(Keys { node: given.node, issuer: given.issuer, ..Keys::draw() }),
        (None, None) => Ok(Keys::draw()),
    }
}

/// Returns the network of a ticket, a file or the folder, or a new home network.
fn network_of(
    saved: Option<&Membership>,
    keys: &Keys,
    config: &Config,
    folder: &DataFolder,
    now: Time,
) -> Result<Membership> {
    let ticket = config.join.as_deref().map(Ticket::from_text).transpose();
    let ticket = ticket.map_err(|error| Failure::usage(error.to_string()))?;
    let of_ticket = ticket.map(|(Ticket { manifest, addresses, secret }, _)| {
        ("the ticket", Membership { manifest, addresses, ticket: Some(secret) })
    });
    let of_file = config.network.as_ref().map(|file| {
        let ticket = saved.and_then(|saved| saved.ticket);
        ("the file", Membership { manifest: file.manifest.signed(), addresses: file.contacts(), ticket })
    });
    let mut membership = match (of_ticket.or(of_file), saved) {
        (Some((source, given)), Some(saved)) => {
            check_same_network(saved, &given, source, folder)?;
            // An earlier ticket may have admitted nobody, and issuers may have moved.
            given
        }
        (Some((_, given)), None) => given,
        (None, Some(saved)) => saved.clone(),
        (None, None) if config.issuer_key.is_some() || !config.bootstrap.is_empty() => {
            let what = "--issuer-key and --bootstrap need a network: give its file with --network";
            return Err(Failure::usage(what).into());
        }
        (None, None) => {
            let (issuer, node) = (Signer::from_seed(keys.issuer), Signer::from_seed(keys.node));
            let manifest = home(config, now, &issuer, node.public().into());
            Membership { manifest, addresses: Vec::new(), ticket: None }
        }
    };
    membership.addresses = with_bootstrap(&config.bootstrap, membership.addresses);
    Ok(membership)
}

/// Puts the addresses that were given now before those that are known.
fn with_bootstrap(given: &[String], known: Vec<String>) -> Vec<String> {
    let mut all = given.to_vec();
    for address in known {
        if all.len() < ADDRESSES_KEPT_MAX && !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// Says whether these keys are those of one of the network's issuers.
fn is_issuer(manifest: &Manifest, keys: &Keys, config: &Config) -> Result<bool, Failure> {
    let own = keys.issuer();
    if manifest.issuers.contains(&own) {
        return Ok(true);
    }
    let forbidden = |what| Err(Failure::new(FailureKind::Forbidden, what));
    if manifest.has_issuer_key(own.key) || manifest.has_issuer_node(own.node) {
        return forbidden(format!(
            "network `{}` has an issuer with one of this folder's two keys, but not with both: start the folder whose \
             `sharemesh network issuer-key` is in the network's file",
            manifest.name
        ));
    }
    if config.issuer_key.is_some() {
        return forbidden(format!(
            "the key of --issuer-key belongs to none of the {} issuers of network `{}`: take the key file that was made \
             for this network, or leave the flag out",
            manifest.issuers.len(),
            manifest.name
        ));
    }
    Ok(false)
}

/// An address that names somebody else leads to no issuer.
fn check_bootstrap(manifest: &Manifest, given: &[String]) -> Result<(), Failure> {
    let named = |text: &String| text.parse().ok().and_then(|address| PeerKey::named_by(&address));
    let wrong = |text: &&String| named(text).is_some_and(|peer| !manifest.has_issuer_node(NodeId(peer.0)));
    given.iter().find(wrong).map_or(Ok(()), |wrong| {
        Err(Failure::usage(format!("--bootstrap {wrong} names a node that is no issuer of this network")))
    })
}

/// Whoever is no issuer needs a ticket, unless the network is open to everybody.
fn check_may_join(manifest: &Manifest, has_ticket: bool) -> Result<(), Failure> {
    if has_ticket || manifest.admission == Admission::Open {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Forbidden,
        format!(
            "network `{}` admits holders of a ticket, and this folder's keys are none of its issuers': ask an issuer's \
             operator for a ticket (`sharemesh network ticket`) and join with --join TICKET",
            manifest.name
        ),
    ))
}

/// Returns the public half of a folder's issuer keys, which are made if there are none.
pub fn issuer_of(folder: &DataFolder) -> Result<Issuer> {
    let keys = match read::<Keys>(folder, KEYS_FILE)? {
        Some(keys) => keys,
        None => {
            let keys = Keys::draw();
            create(folder, KEYS_FILE, &keys)?;
            keys
        }
    };
    if let Some(membership) = read::<Membership>(folder, NETWORK_FILE)? {
        let manifest = verify_manifest(membership.manifest)?;
        if !manifest.issuers.contains(&keys.issuer()) {
            let what = format!(
                "{} belongs to network `{}` and can be no other's issuer: choose a new folder with --data",
                folder.path().display(),
                manifest.name
            );
            return Err(Failure::new(FailureKind::Forbidden, what).into());
        }
    }
    Ok(keys.issuer())
}

/// Whose data folder it is, without its secrets.
#[derive(Debug)]
pub struct Belongs {
    /// The node.
    pub node: NodeId,
    /// Its account.
    pub account: AccountId,
    /// The network, signed by its root.
    pub manifest: Verified<Manifest>,
    /// Where its issuers were reachable when it was joined.
    pub addresses: Vec<String>,
}

impl Belongs {
    /// Reads whose folder it is; it must have been used.
    pub fn of(folder: &DataFolder) -> Result<Self> {
        let (keys, membership) =
            (read::<Keys>(folder, KEYS_FILE)?, read::<Membership>(folder, NETWORK_FILE)?);
        let (Some(keys), Some(membership)) = (keys, membership) else {
            let words = format!("no node has run in {}", folder.path().display());
            return Err(Failure::new(FailureKind::NotFound, words).into());
        };
        let node = NodeId::from(Signer::from_seed(keys.node).public());
        let manifest = verify_manifest(membership.manifest)?;
        Ok(Self {
            node,
            account: account_of(folder, &keys, node, manifest.domain())?,
            manifest,
            addresses: membership.addresses,
        })
    }
}

/// Returns the account for which a folder's node acts.
fn account_of(folder: &DataFolder, keys: &Keys, node: NodeId, domain: DomainId) -> Result<AccountId> {
    if let Some(text) = vault::read(folder.path())? {
        return Ok(vault::account_of(&text)?);
    }
    if let Some(text) = read::<String>(folder, DEVICE_FILE)? {
        return Ok(delegation::from_text(&text, node, domain)?.device.account);
    }
    Ok(Signer::from_seed(keys.account).public().into())
}

/// Returns the node whose keys are in a folder.
pub fn node_of(folder: &DataFolder) -> Result<Option<NodeId>> {
    Ok(read::<Keys>(folder, KEYS_FILE)?.map(|keys| Signer::from_seed(keys.node).public().into()))
}

/// Writes down the network of a node that is rebuilt; it was admitted, so it needs no ticket.
pub fn restore_network(
    folder: &DataFolder,
    manifest: Signed<Manifest>,
    addresses: Vec<String>,
) -> Result<()> {
    create(folder, NETWORK_FILE, &Membership { manifest, addresses, ticket: None })
}

fn open_vault(folder: &DataFolder, config: &Config) -> Result<Option<Vault>> {
    let Some(text) = vault::read(folder.path())? else { return Ok(None) };
    let passphrase = config.passphrase.as_ref().ok_or_else(|| {
        Failure::usage("the account's key file is encrypted: give its passphrase with --passphrase-file")
    })?;
    Ok(Some(Vault::open(&text, passphrase)?))
}

/// Returns the delegation that this node was given, now or before.
fn delegation_of(
    folder: &DataFolder,
    config: &Config,
    node: NodeId,
    domain: DomainId,
) -> Result<Option<Delegation>> {
    let text = match &config.device {
        Some(text) => Some(text.clone()),
        None => read(folder, DEVICE_FILE)?,
    };
    let given = text.as_deref().map(|text| delegation::from_text(text, node, domain)).transpose()?;
    if let Some(text) = config.device.clone() {
        create(folder, DEVICE_FILE, &text)?;
    }
    Ok(given)
}

fn nothing_to_recover(folder: &DataFolder) -> Failure {
    let folder = folder.path().display();
    Failure::usage(format!(
        "{folder} has no keys, or no network: recovery needs the files `{KEYS_FILE}` and `{NETWORK_FILE}` of the lost \
         folder, or `{KEYS_FILE}` and a ticket (--join TICKET)"
    ))
}

fn home(config: &Config, now: Time, issuer: &Signer, node: NodeId) -> Signed<Manifest> {
    let manifest = Manifest::home(config.name.clone(), now, issuer, node);
    let manifest = Manifest { development: config.dev, grant_budget: config.budget_nano, ..manifest };
    manifest.signed_by(issuer).signed()
}

fn check_same_network(
    ours: &Membership,
    given: &Membership,
    source: &str,
    folder: &DataFolder,
) -> Result<()> {
    let ours = verify_manifest(ours.manifest.clone()).context("the data folder's network file is damaged")?;
    let given = verify_manifest(given.manifest.clone())?;
    if given.domain() == ours.domain() {
        return Ok(());
    }
    let folder = folder.path().display();
    Err(Failure::new(
        FailureKind::Forbidden,
        format!(
            "{source} is for network `{}`, but {folder} belongs to network `{}`: choose another folder with --data",
            given.name, ours.name
        ),
    )
    .into())
}

fn read<T: Serialize + serde::de::DeserializeOwned>(folder: &DataFolder, name: &str) -> Result<Option<T>> {
    let path = folder.path().join(name);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let value = decode(&bytes, FILE_BYTES_MAX)
        .with_context(|| format!("{} is damaged: restore it from a backup", path.display()))?;
    Ok(Some(value))
}

fn create<T: Serialize>(folder: &DataFolder, name: &str, value: &T) -> Result<()> {
    Ok(folder.write(name, &encode(value), Access::Private)?)
}

/// Draws a secret.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut secret = [0; N];
    getrandom::fill(&mut secret).expect("the operating system has randomness");
    secret
}
