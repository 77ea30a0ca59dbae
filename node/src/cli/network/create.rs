//! `sharemesh network create` and `issuer-key`: a network with one or several issuers, in a file.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use data_encoding::HEXLOWER;
use protocol::ids::AccountId;
use protocol::keys::Signer;
use protocol::manifest::{Admission, ISSUERS_MAX, Issuer, Manifest, Pool};
use protocol::model::Modality;
use protocol::signed::Signable as _;
use protocol::time::Time;
use serde::Serialize;

use crate::api::views::parse_credits;
use crate::cli::Global;
use crate::cli::terminal::{Terminal, duration, facts};
use crate::clock::Clock;
use crate::config::{BUDGET_CREDITS, parse_contact};
use crate::exit::{Failure, FailureKind};
use crate::folder::{self, DataFolder};
use crate::identity::{self, random};
use crate::issuer_key::{IssuerKey, IssuerName};
use crate::models::cannot;
use crate::network_file::{ADDRESSES_MAX, NetworkFile};

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// How many issuers: 1, 4, 7, 10, 13 or 16; of n = 3f + 1 any f may fail [default: as many as --issuer names, or 1]
    #[arg(long, value_name = "N")]
    issuers: Option<usize>,
    /// An issuer whose operator made its key, as `sharemesh network issuer-key` prints it there; may be repeated. Keys of
    /// the others are made here
    #[arg(long, value_name = "KEY@NODE[@ADDR]")]
    issuer: Vec<IssuerName>,
    /// Where an issuer whose key is made here will be reached, HOST:PORT; repeat it for each, in order
    #[arg(long, value_name = "ADDR")]
    address: Vec<String>,
    /// The file to write; key files are written beside it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What people call the network [default: the file's name]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    rules: Rules,
    #[command(flatten)]
    shares: Shares,
}

/// What everybody agrees to by joining.
#[derive(Debug, Args)]
struct Rules {
    /// Who may join
    #[arg(long, value_enum, default_value = "ticket")]
    admission: AdmissionArg,
    /// Length of an epoch, such as 24h, 30m or 10s
    #[arg(long, value_name = "TIME", default_value = "24h")]
    epoch: String,
    /// Epochs after a channel's end in which it can still be redeemed
    #[arg(long, value_name = "EPOCHS", default_value = "3")]
    grace: u32,
    /// Fee for opening a channel, in credits; never less than the default
    #[arg(long, value_name = "CREDITS", default_value = "0.00001")]
    open_fee: String,
    /// Fee for a payment to an account, in credits; never less than the default
    #[arg(long, value_name = "CREDITS", default_value = "0.00001")]
    pay_fee: String,
    /// Fee for a withdrawal, in credits
    #[arg(long, value_name = "CREDITS", default_value = "0.001")]
    withdraw_fee: String,
    /// Credits that tickets and grants may ever give away, an equal part by each issuer [default: 1000000]
    #[arg(long, value_name = "CREDITS")]
    budget: Option<String>,
    /// Permit the model `fake`: for tests and development only
    #[arg(long)]
    dev: bool,
}

/// Who gets which part of what a job costs, in basis points: hundredths of a percent.
#[derive(Debug, Args)]
struct Shares {
    /// The network's share
    #[arg(long, value_name = "BPS", default_value = "300")]
    network_bps: u16,
    /// The pool's share
    #[arg(long, value_name = "BPS", default_value = "500")]
    pool_bps: u16,
    /// Least share of whoever serves, from 7000
    #[arg(long, value_name = "BPS", default_value = "7000")]
    provider_floor_bps: u16,
    /// Most that a builder may add on top
    #[arg(long, value_name = "BPS", default_value = "3000")]
    markup_max_bps: u16,
    /// Account that gets fees and the network's share [default: one of the root key]
    #[arg(long, value_name = "ACCOUNT")]
    network_account: Option<String>,
    /// Account that gets the pool's share [default: one of the root key]
    #[arg(long, value_name = "ACCOUNT")]
    pool_account: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AdmissionArg {
    /// Holders of a ticket
    Ticket,
    /// Everybody
    Open,
}

/// What `create` prints.
#[derive(Debug, Serialize)]
struct Created {
    network: String,
    name: String,
    file: String,
    /// Whoever has it may sign the network's next manifest.
    root_key: String,
    issuers: Vec<CreatedIssuer>,
    /// How many issuers must agree.
    quorum: usize,
    /// How many issuers may fail without harm.
    faults_max: usize,
    epoch_ms: u64,
    grace_epochs: u32,
    network_account: String,
    budget_credits: String,
}

#[derive(Debug, Serialize)]
struct CreatedIssuer {
    key: String,
    node: String,
    addresses: Vec<String>,
    /// Its keys, if they were made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_file: Option<String>,
}

/// An issuer of the network to be, with its keys if they are made here.
struct Planned {
    issuer: Issuer,
    addresses: Vec<String>,
    key: Option<(PathBuf, IssuerKey)>,
}

/// Makes a network and writes its file, and key files beside it.
pub(super) fn create(arguments: &CreateArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let planned = arguments.planned()?;
    let (root_seed, root_path) = (random::<32>(), beside(&arguments.out, "root.key"));
    let root = Signer::from_seed(root_seed);
    let manifest = arguments.manifest(&planned, &root)?;
    let addresses = planned.iter().map(|planned| planned.addresses.clone()).collect();
    let file = NetworkFile { manifest: manifest.signed_by(&root), addresses };

    let mut files = vec![(root_path.clone(), root_text(&root_seed, &root))];
    let keys = planned.iter().filter_map(|planned| planned.key.as_ref());
    files.extend(keys.map(|(path, key)| (path.clone(), key.to_text())));
    // Last, so that where it is nothing is missing.
    files.push((arguments.out.clone(), file.to_text()));
    write_new(&files)?;

    let created = created(&file, &planned, arguments, &root_path);
    terminal.show(&created, describe)?;
    if !terminal.is_json() {
        advise(&created, terminal);
    }
    Ok(())
}

/// Prints the public half of this data folder's issuer keys; makes them if there are none.
pub(super) fn issuer_key(address: Option<&str>, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Public {
        issuer: String,
        key: String,
        node: String,
        data: String,
    }
    address.map(parse_contact).transpose()?;
    let folder = DataFolder::open(&global.data()?)?;
    let issuer = identity::issuer_of(&folder)?;
    let name = IssuerName { issuer, addresses: Vec::new() }.to_string();
    let public = Public {
        issuer: address.map_or(name.clone(), |address| format!("{name}@{address}")),
        key: HEXLOWER.encode(&issuer.key.0),
        node: issuer.node.to_string(),
        data: folder.path().display().to_string(),
    };
    // The word alone is data, so that a script can take it as it is.
    terminal.show(&public, |public| public.issuer.clone())?;
    if !terminal.is_json() {
        terminal.message(
            "Give this to whoever makes the network (sharemesh network create --issuer …); the secret half stays here.",
        );
    }
    Ok(())
}

impl CreateArgs {
    fn planned(&self) -> Result<Vec<Planned>, Failure> {
        let named = self.issuer.len();
        let count = self.issuers.unwrap_or(named.max(1));
        if count % 3 != 1 || count > ISSUERS_MAX {
            return Err(Failure::usage(format!(
                "{count} issuers do not make a network: take 1, 4, 7, 10, 13 or 16, of which 0, 1, 2, 3, 4 or 5 may fail"
            )));
        }
        let made = count.checked_sub(named).ok_or_else(|| {
            Failure::usage(format!("--issuer names {named} issuers, and --issuers says {count}"))
        })?;
        if self.address.len() > made {
            return Err(Failure::usage(format!(
                "{} times --address for {made} issuers whose keys are made here: those of --issuer have theirs after \
                 another @",
                self.address.len()
            )));
        }
        let named = self
            .issuer
            .iter()
            .map(|name| Ok(Planned { issuer: name.issuer, addresses: name.addresses.clone(), key: None }));
        let made = (0..made).map(|number| {
            let addresses = self.address.get(number).map_or(Ok(Vec::new()), |text| parse_contact(text))?;
            let path = beside(&self.out, &format!("issuer-{}.key", self.issuer.len() + number + 1));
            let key = IssuerKey::draw();
            Ok(Planned { issuer: key.public(), addresses, key: Some((path, key)) })
        });
        named.chain(made).collect()
    }

    fn manifest(&self, planned: &[Planned], root: &Signer) -> Result<Manifest, Failure> {
        let (rules, shares) = (&self.rules, &self.shares);
        let issuers: Vec<Issuer> = planned.iter().map(|planned| planned.issuer).collect();
        let quorum = issuers.len() - (issuers.len() - 1) / 3;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => self.out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        };
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(Failure::usage("a network has a name without control characters: give --name"));
        }
        let budget = rules.budget.clone().unwrap_or_else(|| BUDGET_CREDITS.to_string());
        let pool = account(shares.pool_account.as_deref(), root, b"text pool account")?;
        let manifest = Manifest {
            name,
            created: Time(Clock::start(0).now_ms()),
            issuers,
            quorum: u8::try_from(quorum).map_err(|_| Failure::usage("too many issuers"))?,
            root: root.public(),
            admission: rules.admission.into(),
            epoch_ms: parse_epoch(&rules.epoch)?,
            grace_epochs: rules.grace,
            open_fee: parse_credits(&rules.open_fee)?,
            pay_fee: parse_credits(&rules.pay_fee)?,
            withdraw_fee: parse_credits(&rules.withdraw_fee)?,
            network: account(shares.network_account.as_deref(), root, b"network account")?,
            network_bps: shares.network_bps,
            pools: Vec::from([Pool { class: Modality::Text, account: pool }]),
            pool_bps: shares.pool_bps,
            provider_floor_bps: shares.provider_floor_bps,
            markup_max_bps: shares.markup_max_bps,
            grant_budget: parse_credits(&budget)?,
            development: rules.dev,
            previous: None,
        };
        manifest.check_bounds().map_err(out_of_bounds)?;
        Ok(manifest)
    }
}

impl From<AdmissionArg> for Admission {
    fn from(argument: AdmissionArg) -> Self {
        match argument {
            AdmissionArg::Ticket => Self::Ticket,
            AdmissionArg::Open => Self::Open,
        }
    }
}

/// Says what a manifest may not state, in the words of the options.
fn out_of_bounds(field: &'static str) -> Failure {
    let help = match field {
        "issuers" => "the same issuer was named twice: each has a key and a node of its own",
        "epoch_ms" => "an epoch takes at least 1s",
        "grace_epochs" => "there is at least 1 grace epoch",
        "open_fee" | "pay_fee" | "withdraw_fee" => "a fee is at least 0.00001 credits",
        "provider_floor_bps" => "whoever serves gets at least 7000 basis points",
        "network_bps, pool_bps and provider_floor_bps" => "together they exceed 10000 basis points",
        "name" => "the name is too long",
        other => other,
    };
    Failure::usage(format!("this makes no network ({field}): {help}"))
}

fn account(given: Option<&str>, root: &Signer, purpose: &[u8]) -> Result<AccountId, Failure> {
    match given {
        Some(id) => id.parse().map_err(|error: protocol::ids::IdError| Failure::usage(error.to_string())),
        None => Ok(root.derive(purpose).public().into()),
    }
}

/// Reads a length of time such as `10s`, `30m`, `24h` or `1d`, in milliseconds.
fn parse_epoch(text: &str) -> Result<u64, Failure> {
    /// A century: nobody waits longer, and it is far from what a file can say.
    const EPOCH_MS_MAX: u64 = 100 * 366 * 24 * 60 * 60 * 1000;
    let wrong = || Failure::usage(format!("--epoch `{text}`: write a time such as 24h, 30m or 10s"));
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let split = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let (_, unit_ms) = units.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit_ms).filter(|ms| *ms <= EPOCH_MS_MAX).ok_or_else(wrong)
}

fn beside(out: &Path, ending: &str) -> PathBuf {
    out.with_extension(ending)
}

fn root_text(seed: &[u8; 32], root: &Signer) -> String {
    format!(
        "# SECRET: whoever has this file may sign the network's next manifest. No node needs it: keep it offline.\n\
         version = 1\npublic = \"{}\"\nroot_seed = \"{}\"\n",
        HEXLOWER.encode(&root.public().0),
        HEXLOWER.encode(seed)
    )
}

/// Writes files that must not be there yet, all but the last for the owner alone.
fn write_new(files: &[(PathBuf, String)]) -> Result<(), Failure> {
    if let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        let what = format!("{} is there already and is not replaced: choose another --out", path.display());
        return Err(Failure::new(FailureKind::Forbidden, what));
    }
    for (number, (path, text)) in files.iter().enumerate() {
        let options = if number + 1 < files.len() { folder::private() } else { fs::OpenOptions::new() };
        write_durably(options, path, text).map_err(|error| cannot("write", path, &error))?;
    }
    Ok(())
}

fn write_durably(mut options: fs::OpenOptions, path: &Path, text: &str) -> io::Result<()> {
    let mut file = options.write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    folder::sync_directory(parent.unwrap_or(Path::new(".")))
}

fn created(file: &NetworkFile, planned: &[Planned], arguments: &CreateArgs, root: &Path) -> Created {
    let manifest = &file.manifest;
    let issuers = planned.iter().map(|planned| CreatedIssuer {
        key: HEXLOWER.encode(&planned.issuer.key.0),
        node: planned.issuer.node.to_string(),
        addresses: planned.addresses.iter().take(ADDRESSES_MAX).cloned().collect(),
        key_file: planned.key.as_ref().map(|(path, _)| path.display().to_string()),
    });
    Created {
        network: manifest.domain().to_string(),
        name: manifest.name.clone(),
        file: arguments.out.display().to_string(),
        root_key: root.display().to_string(),
        issuers: issuers.collect(),
        quorum: manifest.quorum(),
        faults_max: manifest.faults_max(),
        epoch_ms: manifest.epoch_ms,
        grace_epochs: manifest.grace_epochs,
        network_account: manifest.network.to_string(),
        budget_credits: crate::api::views::format_credits(manifest.grant_budget),
    }
}

fn describe(created: &Created) -> String {
    let (issuers, quorum, faults) = (created.issuers.len(), created.quorum, created.faults_max);
    let mut lines = vec![
        ("network", created.network.clone()),
        ("name", created.name.clone()),
        ("file", created.file.clone()),
        ("root key", format!("{} (secret; no node needs it)", created.root_key)),
        ("quorum", format!("{quorum} of {issuers} issuers must agree; {faults} may fail")),
        ("epoch", format!("{}, and {} for grace", duration(created.epoch_ms), created.grace_epochs)),
        ("budget", format!("{} credits", created.budget_credits)),
        ("fees go to", created.network_account.clone()),
    ];
    for issuer in &created.issuers {
        let keys = issuer.key_file.clone().unwrap_or_else(|| "its operator has the keys".to_owned());
        lines.push(("issuer", format!("node {}: {keys}", issuer.node)));
    }
    facts(&lines)
}

fn advise(created: &Created, terminal: &Terminal) {
    let file = &created.file;
    if let Some(key) = created.issuers.iter().find_map(|issuer| issuer.key_file.as_ref()) {
        terminal.message(&format!(
            "Bring {file} and one key file to each issuer's machine. There: sharemesh up --network {file} --issuer-key {key}"
        ));
    }
    if created.issuers.iter().any(|issuer| issuer.key_file.is_none()) {
        terminal
            .message(&format!("Operators with keys of their own start with: sharemesh up --network {file}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_a_time_with_its_unit() {
        let day = 24 * 60 * 60 * 1000;

        for (text, ms) in [("24h", day), ("1d", day), ("30m", day / 48), ("10s", 10_000), ("1500ms", 1500)] {
            assert_eq!(parse_epoch(text), Ok(ms));
        }
        for wrong in ["", "10", "s", "-1s", "1.5h", "10 s", "99999999999d", "18446744073709551615d"] {
            assert!(parse_epoch(wrong).is_err(), "{wrong}");
        }
    }
}
