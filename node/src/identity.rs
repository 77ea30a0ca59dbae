//! Who this node is and which network it is in: its keys and its manifest, made at the first start, kept for good.

use anyhow::{Context as _, Result};
use protocol::encoding::{decode, encode};
use protocol::ids::{AccountId, DomainId, NodeId};
use protocol::keys::Signer;
use protocol::manifest::{Manifest, verify_manifest};
use protocol::node::{Delegation, Owner};
use protocol::signed::{Signed, Verified};
use protocol::ticket::Ticket;
use protocol::time::Time;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::delegation;
use crate::exit::{Failure, FailureKind};
use crate::folder::{Access, DataFolder};
use crate::vault::{self, Vault};

const KEYS_FILE: &str = "keys";
const NETWORK_FILE: &str = "network";
const DEVICE_FILE: &str = "device";

/// The files without which a node is not who it was.
pub const KEY_FILES: [&str; 3] = [KEYS_FILE, vault::FILE, DEVICE_FILE];

/// Bounds both files; they hold a few keys, a manifest and some addresses.
const FILE_BYTES_MAX: usize = 16 * 1024;

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
#[derive(Serialize, Deserialize)]
struct Keys {
    node: [u8; 32],
    account: [u8; 32],
    issuer: [u8; 32],
}

/// A node's network, as it is kept.
#[derive(Serialize, Deserialize)]
struct Membership {
    manifest: Signed<Manifest>,
    addresses: Vec<String>,
    ticket: Option<[u8; 16]>,
}

impl Identity {
    /// Reads who this node is, or makes it up: new keys; the network of the ticket, or a new home network.
    pub fn open(folder: &DataFolder, config: &Config, now: Time) -> Result<Self> {
        let keys = match read(folder, KEYS_FILE)? {
            Some(keys) => keys,
            None => create(folder, KEYS_FILE, Keys { node: random(), account: random(), issuer: random() })?,
        };
        let ticket = config.join.as_deref().map(Ticket::from_text).transpose();
        let ticket = ticket.map_err(|error| Failure::usage(error.to_string()))?;
        let node = Signer::from_seed(keys.node);
        let issuer = Signer::from_seed(keys.issuer);
        let membership = match (read::<Membership>(folder, NETWORK_FILE)?, ticket) {
            (Some(membership), None) => membership,
            (Some(membership), Some((Ticket { addresses, secret, .. }, manifest))) => {
                check_same_network(&membership, &manifest, folder)?;
                // An earlier ticket may have admitted nobody, and the issuer may have moved.
                create(folder, NETWORK_FILE, Membership { addresses, ticket: Some(secret), ..membership })?
            }
            (None, Some((Ticket { manifest, addresses, secret }, _))) => {
                create(folder, NETWORK_FILE, Membership { manifest, addresses, ticket: Some(secret) })?
            }
            (None, None) => {
                let manifest = home(config, now, &issuer, node.public().into());
                create(folder, NETWORK_FILE, Membership { manifest, addresses: Vec::new(), ticket: None })?
            }
        };
        let manifest = verify_manifest(membership.manifest)
            .with_context(|| format!("{} is damaged", folder.path().join(NETWORK_FILE).display()))?;
        let is_issuer = manifest.has_issuer_key(issuer.public());
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
    create(folder, NETWORK_FILE, Membership { manifest, addresses, ticket: None }).map(drop)
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
        create(folder, DEVICE_FILE, text)?;
    }
    Ok(given)
}

fn home(config: &Config, now: Time, issuer: &Signer, node: NodeId) -> Signed<Manifest> {
    let manifest = Manifest::home(config.name.clone(), now, issuer, node);
    let manifest = Manifest { development: config.dev, grant_budget: config.budget_nano, ..manifest };
    manifest.signed_by(issuer).signed()
}

fn check_same_network(ours: &Membership, joined: &Verified<Manifest>, folder: &DataFolder) -> Result<()> {
    let ours = verify_manifest(ours.manifest.clone()).context("the data folder's network file is damaged")?;
    if joined.domain() == ours.domain() {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Forbidden,
        format!(
            "the ticket is for network `{}`, but {} belongs to network `{}`: choose another folder with --data",
            joined.name,
            folder.path().display(),
            ours.name
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

fn create<T: Serialize>(folder: &DataFolder, name: &str, value: T) -> Result<T> {
    folder.write(name, &encode(&value), Access::Private)?;
    Ok(value)
}

/// Draws a secret.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut secret = [0; N];
    getrandom::fill(&mut secret).expect("the operating system has randomness");
    secret
}
