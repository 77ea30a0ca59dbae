//! `sharemesh account`: the account's key, its recovery phrase, and the nodes that may act for it.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use serde::Serialize;

use super::Global;
use super::terminal::{Terminal, facts, short};
use crate::api::views::{AccountView, AuthoriseBody, DelegationView, RotateBody, parse_credits};
use crate::exit::{Failure, FailureKind};
use crate::folder::DataFolder;
use crate::vault::{self, Phrase, Secret, Vault};

const PASSPHRASE: &str = "SHAREMESH_PASSPHRASE";
const PHRASE: &str = "SHAREMESH_PHRASE";

/// Most epochs, or days, that may be asked for at once.
const UNTIL_MAX: u32 = 100_000;

#[derive(Debug, Subcommand)]
pub(super) enum AccountCommand {
    /// Make an account for a new data folder; shows its recovery phrase once
    #[command(after_help = "\
Examples:
  sharemesh account new --data ./wallet                               asks for a passphrase
  sharemesh account new --data ./wallet --passphrase-file ./secret    for scripts; then: up --passphrase-file")]
    New(Passphrase),
    /// Make an account's key file again from its recovery phrase, in a new data folder
    #[command(after_help = "\
Examples:
  sharemesh account recover --data ./wallet
  sharemesh account recover --data ./wallet --rotations 1    the key was replaced once")]
    Recover {
        #[command(flatten)]
        phrase: PhraseSource,
        #[command(flatten)]
        passphrase: Passphrase,
        /// How often the account's key was replaced
        #[arg(long, default_value = "0", value_name = "N")]
        rotations: u32,
    },
    /// Show the account: its key, its next step, its nodes
    #[command(after_help = "Example:\n  sharemesh account show --json")]
    Show,
    /// Replace the account's key by the next one, which only the recovery phrase makes
    #[command(after_help = "Example:\n  sharemesh account rotate")]
    Rotate(PhraseSource),
    /// Let another node act for this account
    #[command(after_help = "\
Examples:
  sharemesh account authorise NODE --until 30d --serve
  sharemesh account authorise NODE --until 12 --serve --spend --budget 5

Then, on that node: sharemesh up --device DELEGATION")]
    Authorise {
        /// Id of the node, as its `sharemesh status` shows it
        node: String,
        /// For how long: days, such as 30d, or the number of the last epoch
        #[arg(long, value_name = "EPOCH|DAYS")]
        until: String,
        /// It may serve models, and what it earns is the account's
        #[arg(long)]
        serve: bool,
        /// It may submit jobs, which the account pays
        #[arg(long)]
        spend: bool,
        /// Credits that may be escrowed for it in an epoch
        #[arg(long, value_name = "CREDITS", default_value = "1")]
        budget: String,
    },
    /// Let a node act for this account no longer
    #[command(after_help = "Example:\n  sharemesh account revoke NODE")]
    Revoke {
        /// Id of the node
        node: String,
    },
}

/// Where the passphrase of the key file comes from.
#[derive(Clone, Debug, Args)]
pub(super) struct Passphrase {
    /// Read the key file's passphrase from this file [default: SHAREMESH_PASSPHRASE, or asked for]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Where the recovery phrase comes from.
#[derive(Debug, Args)]
pub(super) struct PhraseSource {
    /// Read the recovery phrase from this file [default: SHAREMESH_PHRASE, or asked for]
    #[arg(long, value_name = "FILE")]
    phrase_file: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Made {
    account: String,
    /// Shown here, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    phrase: Option<String>,
    data: String,
}

pub(super) async fn run(command: AccountCommand, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    match command {
        AccountCommand::New(passphrase) => new(&passphrase, global, terminal),
        AccountCommand::Recover { phrase, passphrase, rotations } => {
            let data = fresh(global)?;
            let phrase = phrase.read()?;
            let vault = Vault::new(&phrase, rotations, &passphrase.choose()?)?;
            make(&vault, &data, None, terminal)
        }
        AccountCommand::Show => {
            let account: AccountView = global.client()?.get("account").await?;
            Ok(terminal.show(&account, describe)?)
        }
        AccountCommand::Rotate(phrase) => rotate(&phrase, global, terminal).await,
        AccountCommand::Authorise { node, until, serve, spend, budget } => {
            if !serve && !spend {
                return Err(Failure::usage("say what the node may do: --serve, --spend, or both").into());
            }
            let (until_epoch, days) = parse_until(&until)?;
            let budget_nano = parse_credits(&budget)?;
            let body = AuthoriseBody { node, serve, spend, until_epoch, days, budget_nano };
            authorise(&body, global, terminal).await
        }
        AccountCommand::Revoke { node } => {
            authorise(&AuthoriseBody { node, ..AuthoriseBody::default() }, global, terminal).await
        }
    }
}

fn new(passphrase: &Passphrase, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let data = fresh(global)?;
    let phrase = Phrase::draw();
    let vault = Vault::new(&phrase, 0, &passphrase.choose()?)?;
    make(&vault, &data, Some(&phrase), terminal)
}

/// Returns the data folder, if no node has begun in it: a journal belongs to one account.
fn fresh(global: &Global) -> Result<PathBuf, Failure> {
    let data = global.data()?;
    for file in ["keys", vault::FILE] {
        if data.join(file).exists() {
            return Err(Failure::new(
                FailureKind::Forbidden,
                format!("{} has an account already: choose a new folder with --data", data.display()),
            ));
        }
    }
    Ok(data)
}

fn make(vault: &Vault, data: &Path, phrase: Option<&Phrase>, terminal: &Terminal) -> anyhow::Result<()> {
    let folder = DataFolder::open(data)?;
    vault.write(&folder)?;
    let made = Made {
        account: vault.account().to_string(),
        phrase: phrase.map(Phrase::words),
        data: data.display().to_string(),
    };
    terminal.show(&made, |made| {
        let mut lines = vec![("account", made.account.clone())];
        lines.extend(made.phrase.clone().map(|phrase| ("phrase", phrase)));
        facts(&lines)
    })?;
    if !terminal.is_json() {
        if phrase.is_some() {
            terminal.message(
                "Write the phrase on paper now: it is shown once, and it alone brings the account back.",
            );
        }
        terminal.message(&format!("Start the account's node with: sharemesh up --data {}", made.data));
    }
    Ok(())
}

async fn rotate(source: &PhraseSource, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let client = global.client()?;
    let account: AccountView = client.get("account").await?;
    if !account.rotatable || !account.is_wallet {
        return Err(Failure::new(
            FailureKind::Forbidden,
            "this node's account has no recovery phrase, or another node is its wallet node: see `sharemesh account show`",
        )
        .into());
    }
    let phrase = source.read()?;
    if phrase.inception(0).account().to_string() != account.account {
        let what = "this is the recovery phrase of another account";
        return Err(Failure::new(FailureKind::Forbidden, what).into());
    }
    let next = account.rotations.saturating_add(1);
    // The phrase stays in this process; the node gets the one key that it needs.
    let body = RotateBody {
        key: HEXLOWER.encode(&phrase.seed(next)),
        next: phrase.inception(next).next.to_string(),
    };
    let rotated: AccountView = client.post("account/rotate", &body).await?;
    terminal.show(&rotated, describe)?;
    if !terminal.is_json() {
        terminal.message(if rotated.rotation == "none" {
            "The key is replaced: the old one signs nothing any more."
        } else {
            "The rotation waits for the network's issuer, and will go on by itself."
        });
    }
    Ok(())
}

async fn authorise(body: &AuthoriseBody, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let given: DelegationView = global.client()?.post("account/devices", body).await?;
    // The delegation alone is data, so that a script can take it as it is.
    terminal.show(&given, |given| given.delegation.clone().unwrap_or_default())?;
    if !terminal.is_json() {
        let node = short(&given.node);
        terminal.message(&match given.delegation {
            Some(_) => format!("For node {node}. There: sharemesh up --device DELEGATION"),
            None => format!("Node {node} may no longer act for the account."),
        });
    }
    Ok(())
}

/// Reads `30d` as days and `12` as an epoch.
fn parse_until(text: &str) -> Result<(Option<u32>, u32), Failure> {
    let wrong = || Failure::usage(format!("--until `{text}`: write days, such as 30d, or an epoch's number"));
    let number = |digits: &str| digits.parse().ok().filter(|number| *number <= UNTIL_MAX).ok_or_else(wrong);
    match text.strip_suffix('d') {
        Some(days) => Ok((None, number(days)?)),
        None => Ok((Some(number(text)?), 0)),
    }
}

impl Passphrase {
    /// Returns the passphrase for a file that is there.
    pub(super) fn for_existing(&self) -> Result<Secret, Failure> {
        self.given()?.map_or_else(|| ask("Passphrase of the account's key file: ", "--passphrase-file"), Ok)
    }

    /// Returns a new passphrase, typed twice if it is typed.
    fn choose(&self) -> Result<Secret, Failure> {
        if let Some(secret) = self.given()? {
            return Ok(secret);
        }
        let first = ask("New passphrase for the account's key file: ", "--passphrase-file")?;
        if first == ask("Again: ", "--passphrase-file")? {
            return Ok(first);
        }
        Err(Failure::usage("the two passphrases differ: try again"))
    }

    fn given(&self) -> Result<Option<Secret>, Failure> {
        from_file_or_environment(self.passphrase_file.as_deref(), PASSPHRASE)
    }
}

impl PhraseSource {
    fn read(&self) -> Result<Phrase, Failure> {
        let given = from_file_or_environment(self.phrase_file.as_deref(), PHRASE)?;
        Phrase::parse(&given.map_or_else(|| ask("Recovery phrase: ", "--phrase-file"), Ok)?)
    }
}

fn from_file_or_environment(file: Option<&Path>, variable: &str) -> Result<Option<Secret>, Failure> {
    if let Some(path) = file {
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
        return Ok(Some(Secret::new(&text)));
    }
    Ok(std::env::var(variable).ok().filter(|text| !text.is_empty()).map(|text| Secret::new(&text)))
}

/// Asks on the terminal, without showing what is typed.
fn ask(what: &str, flag: &str) -> Result<Secret, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("there is no terminal to ask on: use {flag}")));
    }
    let text = rpassword::prompt_password(what);
    text.map(|text| Secret::new(&text)).map_err(|error| Failure::usage(format!("cannot ask: {error}")))
}

fn describe(account: &AccountView) -> String {
    let rights = |serve: bool, spend: bool| match (serve, spend) {
        (true, true) => "serve, spend",
        (true, false) => "serve",
        (false, true) => "spend",
        (false, false) => "nothing (revoked)",
    };
    let key = if account.held { account.key.clone() } else { format!("{} (not held here)", account.key) };
    let wallet =
        if account.is_wallet { "this node".to_owned() } else { format!("node {}", account.wallet_node) };
    let kept = if account.encrypted { "encrypted" } else { "in the clear, for this user only" };
    let mut lines = vec![
        ("account", account.account.clone()),
        ("key in force", key),
        ("key file", kept.to_owned()),
        (
            "rotations",
            if account.rotatable { account.rotations.to_string() } else { "not possible".to_owned() },
        ),
        ("rotation", account.rotation.clone()),
        ("next step", account.sequence.map_or_else(|| "not known yet".to_owned(), |next| next.to_string())),
        ("wallet node", wallet),
        ("this node may", rights(account.serve, account.spend).to_owned()),
        ("until epoch", format!("{} (now {}), then renewed", account.expires_epoch, account.epoch)),
    ];
    for device in &account.devices {
        let may = rights(device.serve, device.spend);
        let text =
            format!("{}: {may} until epoch {}, {} an epoch", device.node, device.until_epoch, device.budget);
        lines.push(("node", text));
    }
    facts(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_days_or_an_epoch() {
        assert_eq!(parse_until("30d"), Ok((None, 30)));
        assert_eq!(parse_until("12"), Ok((Some(12), 0)));
        for wrong in ["", "d", "-1", "tomorrow", "4294967295"] {
            assert!(parse_until(wrong).is_err(), "{wrong}");
        }
    }
}
