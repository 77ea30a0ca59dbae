//! `sharemesh up`: runs a node in the foreground; `sharemesh down` ends it.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use engine::FakeOptions;
use serde::Serialize;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::account::Passphrase;
use super::terminal::{Terminal, facts};
use super::{Global, models, signal};
use crate::api::auth::{NodeFile, Token};
use crate::api::views::{StatusView, TicketView};
use crate::api::{self, Admitted, Loading};
use crate::api_keys::ApiKeys;
use crate::command::{self, Command, Commands};
use crate::config::{Config, Settings};
use crate::exit::{Failure, FailureKind};
use crate::folder::FolderError;
use crate::models::{Models, catalogue};
use crate::{VERSION, driver, vault};

/// How long the end of a node may take: jobs are handed back, the journal is written, workers end.
const END_MAX: Duration = Duration::from_secs(15);

/// How often a node that is not ready yet is looked at.
const STARTING_POLL: Duration = Duration::from_millis(100);

/// How often home networks nearby are looked for.
const NEARBY_POLL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sharemesh up                                     a home network of your own; prints its ticket
  sharemesh up --serve smollm2-135m                the same, and serves a model in it
  sharemesh up --join TICKET --serve ./model.gguf  serve a file of yours in somebody's network
  sharemesh up --network ours.toml --issuer-key ours.issuer-1.key   be one of a network's issuers
  sharemesh up --recover                           the journal is lost: get channels and earnings back
  sharemesh up --data ./second --listen 0.0.0.0:7442 --api 127.0.0.1:7443   a second node on this machine

Settings may also stand in <data>/config.toml (name, class, region, listen, api, serve, mdns, dev, price_in, price_out,
slots, threads, budget, keep_epochs, bootstrap, builders, cors_origins); flags come before it.")]
pub(super) struct UpArgs {
    /// Where to listen: IP:PORT for QUIC and TCP, or a multiaddress; may be repeated [default: 0.0.0.0:7432]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Serve this model: a name of the catalogue or the path of a GGUF file; may be repeated
    #[arg(long, value_name = "MODEL")]
    serve: Vec<String>,
    /// Join the network of this ticket; needed once, the data folder remembers
    #[arg(long, value_name = "TICKET")]
    join: Option<String>,
    /// Join the network of this file, as one of its issuers or because it is open to all; needed once, the data folder
    /// remembers
    #[arg(long, value_name = "FILE", conflicts_with = "join")]
    network: Option<PathBuf>,
    /// Be the issuer whose keys `sharemesh network create` wrote to this file; needed once, the data folder remembers
    #[arg(long, value_name = "FILE")]
    issuer_key: Option<PathBuf>,
    /// Where an issuer of the network is reached, besides what file or ticket say: HOST:PORT, or an address of its
    /// `sharemesh status`; may be repeated
    #[arg(long, value_name = "ADDR")]
    bootstrap: Vec<String>,
    /// Let requests name this builder and have it paid a markup on top of a provider's price: its account, alone or with
    /// the most in hundredths of a percent; may be repeated
    #[arg(long, value_name = "ACCOUNT[=BPS]")]
    builder: Vec<String>,
    /// Let web pages of this origin use the API from a browser, with a key: as in https://app.example, one site each and no
    /// wildcard; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Act for the account whose owner gave this delegation; needed once, the data folder remembers
    #[arg(long, value_name = "DELEGATION")]
    device: Option<String>,
    #[command(flatten)]
    passphrase: Passphrase,
    /// What to call this node [default: the machine's name]
    #[arg(long)]
    name: Option<String>,
    /// Where this node is, for requests that ask for a region: an ISO 3166 code such as DE, EU or DE-BY [default: not said]
    #[arg(long, value_name = "CODE")]
    region: Option<String>,
    /// What this node is, for requests that ask for a class; nobody vouches for it [default: community]
    #[arg(long)]
    class: Option<Class>,
    /// Show home networks on the LAN, and this one to others; nothing is joined by itself [default: on]
    #[arg(long)]
    mdns: Option<Switch>,
    /// Make a new home network one for development, which permits the model `fake`
    #[arg(long)]
    dev: bool,
    /// Credits for a million tokens of prompts [default: the catalogue's]
    #[arg(long, value_name = "CREDITS")]
    price_in: Option<String>,
    /// Credits for a million tokens of answers [default: the catalogue's]
    #[arg(long, value_name = "CREDITS")]
    price_out: Option<String>,
    /// Jobs at once on each model [default: 4]
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// Threads of each model [default: all cores but one]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Credits that a new home network's issuer may hand out [default: 1000000]
    #[arg(long, value_name = "CREDITS")]
    budget: Option<String>,
    /// For how many epochs after its end a channel's receipts and job records are kept; then `ledger statement` has its
    /// sums alone [default: 30]
    #[arg(long, value_name = "N")]
    keep_epochs: Option<u32>,
    /// What to log to standard error, such as `debug` or `warn,node=debug`
    #[arg(
        long,
        value_name = "FILTER",
        env = "SHAREMESH_LOG",
        hide_env_values = true,
        default_value = "warn,node=info,libp2p_kad=error"
    )]
    log: String,
    /// How to log: words for people, or one JSON object a line
    #[arg(
        long,
        value_name = "FORMAT",
        env = "SHAREMESH_LOG_FORMAT",
        hide_env_values = true,
        default_value = "text"
    )]
    log_format: LogFormat,
    /// After a lost disk or an old backup: ask issuers, partners and mirrors for this node's channels and receipts, and
    /// neither sign nor serve before that is done; the folder needs `keys` and `network`, and `account.json` if there was
    /// one
    #[arg(long)]
    recover: bool,
    /// End with the end of standard input, which a parent process holds open
    #[arg(long, hide = true)]
    exit_with_parent: bool,
    /// How the fake model behaves, as JSON
    #[arg(long, hide = true, value_name = "JSON")]
    fake: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Class {
    Community,
    Company,
}

impl Class {
    /// Returns what a file says for it.
    const fn word(self) -> &'static str {
        match self {
            Self::Community => "community",
            Self::Company => "company",
        }
    }
}

/// What `up` prints.
#[derive(Debug, Serialize)]
struct Announcement {
    node: String,
    account: String,
    network: String,
    issuer: bool,
    addresses: Vec<String>,
    api: String,
    pid: u32,
    /// For one other machine; only an issuer has one.
    ticket: Option<String>,
}

pub(super) async fn run(arguments: UpArgs, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    log_to_stderr(&arguments.log, arguments.log_format, terminal)?;
    let data = global.data()?;
    let passphrase = match vault::read(&data)? {
        Some(_) => Some(arguments.passphrase.for_existing()?),
        None => None,
    };
    let settings = Settings { passphrase, ..settings_of(arguments, global)? }.over(Settings::read(&data)?);
    let models = Models::open()?;
    let config = resolve(settings, &data, &models, terminal).await?;
    let stop = CancellationToken::new();
    if config.exit_with_parent {
        stop_with_parent(stop.clone());
    }

    check_open(&config)?;
    let listening = api::listen(config.api).await?;
    let (commands, receiver) = command::queue();
    let mut driver = driver::start(config.clone(), receiver, stop.clone()).await.map_err(explain_folder)?;
    let file = NodeFile {
        version: VERSION.to_owned(),
        api: listening.local,
        token: Token::draw(),
        pid: std::process::id(),
    };
    // The driver has locked the folder.
    let keys = ApiKeys::open(&data)?;
    let written = file.write(&data);
    let load = Loading { price: config.price, slots: config.slots, threads: config.threads };
    let admitted = Admitted { token: file.token.clone(), keys, origins: config.cors_origins.clone() };
    let api = tokio::spawn(api::serve(listening, commands.clone(), models, load, admitted, stop.clone()));

    let mut driver_ended = false;
    let outcome = tokio::select! {
        ended = &mut driver => {
            driver_ended = true;
            joined(ended)
        }
        failed = announce(written, &commands, &file, terminal) => failed,
        () = signal::interrupted() => Ok(()),
        () = stop.cancelled() => Ok(()),
    };
    stop.cancel();
    // Why the driver ended explains more than that it no longer answers.
    let outcome = if driver_ended { outcome } else { end(driver).await.and(outcome) };
    file.remove(&data);
    // Its streams ended with the driver.
    let _ = tokio::time::timeout(END_MAX, api).await;
    outcome
}

pub(super) async fn down(global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let data = global.data()?;
    let client = global.client()?;
    client.tell("shutdown").await?;
    let deadline = tokio::time::Instant::now() + END_MAX;
    while NodeFile::read(&data).is_ok_and(|file| file.pid == client.pid()) {
        if tokio::time::Instant::now() >= deadline {
            let pid = client.pid();
            return Err(Failure::internal(format!(
                "the node (process {pid}) takes long to end: see its log"
            ))
            .into());
        }
        tokio::time::sleep(STARTING_POLL).await;
    }
    terminal.message("The node has ended.");
    Ok(())
}

/// Refuses an API that others can reach and nobody could use.
fn check_open(config: &Config) -> Result<(), Failure> {
    if config.api.ip().is_loopback() || ApiKeys::any_in(&config.data)? {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the API is to listen at {}, where others can reach it, and there is no key to let them in: make one with \
         `sharemesh keys create NAME --per-day CREDITS`, or listen on this machine only with --api 127.0.0.1:{}",
        config.api,
        config.api.port()
    )))
}

/// Waits for the driver to end in order, but not for ever, and not against the user's will.
async fn end(driver: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        ended = tokio::time::timeout(END_MAX, driver) => match ended {
            Ok(ended) => joined(ended),
            Err(_) => Err(Failure::internal("the node took too long to end and was cut off; nothing acknowledged is lost").into()),
        },
        () = signal::interrupted() => {
            let what = "interrupted twice: cut off; nothing acknowledged is lost";
            Err(Failure::new(FailureKind::Cancelled, what).into())
        }
    }
}

fn joined(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    ended.unwrap_or_else(|error| Err(Failure::internal(format!("the node stopped working: {error}")).into()))
}

fn log_to_stderr(filter: &str, format: LogFormat, terminal: &Terminal) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!("--log `{filter}` cannot be read ({error}): write for example `debug`"))
    })?;
    let subscriber = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(terminal.colours_messages());
    let subscriber = subscriber.with_env_filter(filter);
    // Fails only if this process logs already.
    let _ = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    Ok(())
}

fn settings_of(arguments: UpArgs, global: &Global) -> Result<Settings, Failure> {
    let fake = arguments.fake.as_deref().map(fake_options).transpose()?;
    Ok(Settings {
        name: arguments.name,
        class: arguments.class.map(|class| class.word().to_owned()),
        region: arguments.region,
        listen: arguments.listen,
        api: global.api.clone(),
        serve: arguments.serve,
        mdns: arguments.mdns.map(|switch| switch == Switch::On),
        dev: arguments.dev.then_some(true),
        price_in: arguments.price_in,
        price_out: arguments.price_out,
        slots: arguments.slots,
        threads: arguments.threads,
        budget: arguments.budget,
        keep_epochs: arguments.keep_epochs,
        join: arguments.join,
        recover: arguments.recover,
        builders: arguments.builder,
        cors_origins: arguments.cors_origin,
        exit_with_parent: arguments.exit_with_parent,
        passphrase: None,
        device: arguments.device,
        network: arguments.network,
        issuer_key: arguments.issuer_key,
        bootstrap: arguments.bootstrap,
        fake,
    })
}

/// Reads how the fake model behaves; what is not said is as by default.
fn fake_options(text: &str) -> Result<FakeOptions, Failure> {
    let wrong = |error: serde_json::Error| Failure::usage(format!("--fake cannot be read: {error}"));
    let said: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(wrong)?;
    let mut options = serde_json::to_value(FakeOptions::default()).map_err(wrong)?;
    for (name, value) in said {
        let option =
            options.get_mut(&name).ok_or_else(|| Failure::usage(format!("--fake knows no `{name}`")))?;
        *option = value;
    }
    serde_json::from_value(options).map_err(wrong)
}

/// Fetches what is to be served and missing, then checks everything.
async fn resolve(
    settings: Settings,
    data: &Path,
    models: &Models,
    terminal: &Terminal,
) -> Result<Config, Failure> {
    // First without models, so that nothing is fetched for a node that could not start.
    let without = Settings { serve: Vec::new(), ..settings.clone() };
    without.resolve(data.to_owned(), models, &|_| {})?;
    for name in settings.serve.iter().filter(|name| catalogue::find(name).is_some()) {
        models::pull(models, name, terminal).await?;
    }
    let bar = terminal.bar("models");
    settings.resolve(data.to_owned(), models, &|progress| bar.step(&progress))
}

/// Says what to do about a data folder that cannot be had.
fn explain_folder(error: anyhow::Error) -> anyhow::Error {
    let help = match error.downcast_ref::<FolderError>() {
        Some(FolderError::InUse { .. }) => {
            "end that node with `sharemesh down`, or choose another folder with --data DIR"
        }
        Some(FolderError::Io { .. }) => "check the path, or choose another folder with --data DIR",
        Some(FolderError::ReadOnly { .. } | FolderError::Newer { .. }) | None => return error,
    };
    Failure::internal(format!("{error:#}: {help}")).into()
}

/// Stops when standard input ends. A thread, because reading it cannot be given up.
fn stop_with_parent(stop: CancellationToken) {
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut buffer = [0; 256];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "Cannot see whether the parent lives");
                    break;
                }
            }
        }
        tracing::info!("The parent is gone: ending");
        stop.cancel();
    });
}

/// Says how to reach this node, then what changes; ends only if that fails.
async fn announce(
    written: Result<(), Failure>,
    commands: &Commands,
    file: &NodeFile,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    written?;
    let status = if terminal.is_json() {
        until_ready(commands, terminal).await?
    } else {
        until_listening(commands).await?
    };
    let ticket = match status.network.issuer {
        true => Some(ticket(commands).await?),
        false => None,
    };
    let announcement = Announcement {
        node: status.node,
        account: status.account,
        network: status.network.id,
        issuer: status.network.issuer,
        addresses: status.addresses,
        api: format!("http://{}", file.api),
        pid: file.pid,
        ticket: ticket.as_ref().map(|ticket| ticket.ticket.clone()),
    };
    terminal.show(&announcement, describe)?;
    if !terminal.is_json() {
        if ticket.is_some() {
            terminal.message("One other machine joins with: sharemesh up --join TICKET");
        }
        until_ready(commands, terminal).await?;
        terminal.message("Ready. End with Ctrl-C.");
    }
    watch_nearby(commands, terminal).await
}

async fn ticket(commands: &Commands) -> Result<TicketView, Failure> {
    commands.ask(|reply| Command::Ticket { credits_nano: 0, uses: 1, reply }).await
}

/// Waits for the first address: what is announced, and the ticket, is of use only with one.
async fn until_listening(commands: &Commands) -> Result<StatusView, Failure> {
    loop {
        let status = commands.ask(Command::Status).await?;
        if !status.addresses.is_empty() {
            return Ok(status);
        }
        tokio::time::sleep(STARTING_POLL).await;
    }
}

async fn until_ready(commands: &Commands, terminal: &Terminal) -> Result<StatusView, Failure> {
    let (mut failed, mut step) = (BTreeSet::new(), String::new());
    loop {
        let status = commands.ask(Command::Status).await?;
        for model in status.models.iter().filter(|model| model.state == "failed") {
            if failed.insert(model.name.clone()) {
                terminal.message(&format!("Cannot serve {}: {}", model.name, model.detail));
            }
        }
        if status.ready {
            return Ok(status);
        }
        let line = format!("Waiting for {}", status.waiting_for.join(", "));
        // A line for each step, not for each percent.
        let now: String = line.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        if step != now && !status.waiting_for.is_empty() {
            terminal.message(&line);
            step = now;
        }
        tokio::time::sleep(STARTING_POLL).await;
    }
}

/// Shows home networks on the LAN with the command that joins them; never joins.
async fn watch_nearby(commands: &Commands, terminal: &Terminal) -> anyhow::Result<()> {
    /// Bounds what is remembered of networks that were shown.
    const SHOWN_MAX: usize = 256;

    let mut shown = BTreeSet::new();
    loop {
        // The driver ends only with the node.
        let Ok(status) = commands.ask(Command::Status).await else { return std::future::pending().await };
        for nearby in status.nearby {
            if shown.len() < SHOWN_MAX && shown.insert(nearby.network) {
                terminal.message(&format!(
                    "Nearby: {} at {}. To join it: {}",
                    nearby.name, nearby.address, nearby.join
                ));
            }
        }
        tokio::time::sleep(NEARBY_POLL).await;
    }
}

fn describe(announcement: &Announcement) -> String {
    let role = if announcement.issuer { " (this node is an issuer of it)" } else { "" };
    let mut text = facts(&[
        ("node", announcement.node.clone()),
        ("account", announcement.account.clone()),
        ("network", format!("{}{role}", announcement.network)),
        ("api", announcement.api.clone()),
        ("ticket", announcement.ticket.clone().unwrap_or_default()),
    ]);
    for address in &announcement.addresses {
        text += &format!("listens  {address}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::DataFolder;

    #[test]
    fn the_fake_model_is_told_only_what_differs() {
        let options = fake_options(r#"{"tokens_per_s":50,"crash_at":3}"#).expect("sound");

        assert_eq!(options, FakeOptions { tokens_per_s: 50, crash_at: Some(3), ..FakeOptions::default() });
        assert!(fake_options("{\"nonsense\":1}").is_err() && fake_options("[]").is_err());
    }

    #[test]
    fn a_folder_in_use_says_what_to_do() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let _taken = DataFolder::open(folder.path()).expect("free");
        let error = DataFolder::open(folder.path()).expect_err("in use");

        let failure = crate::exit::failure_of(&explain_folder(error.into()));

        assert_eq!(failure.kind.exit_code(), 1);
        assert!(
            failure.message.contains("sharemesh down") && failure.message.contains("--data"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn a_node_that_does_not_listen_yet_is_not_announced() {
        let (commands, mut asked) = command::queue();
        let (terminal, data, _) = Terminal::kept(false);
        let (api, pid) = (([127, 0, 0, 1], 1).into(), 1);
        let file = NodeFile { version: VERSION.to_owned(), api, token: Token::draw(), pid };
        let answer = async {
            for addresses in [vec![], vec!["/ip4/127.0.0.1/udp/1/quic-v1".to_owned()]] {
                let Some(Command::Status(reply)) = asked.recv().await else {
                    panic!("asked for something else")
                };
                let mut status = StatusView { addresses, ..StatusView::default() };
                status.network.issuer = true;
                reply.send(Ok(status)).expect("waited for");
            }
            let Some(Command::Ticket { reply, .. }) = asked.recv().await else { panic!("no ticket is made") };
            reply.send(Ok(TicketView::default())).expect("waited for");
            asked.recv().await
        };

        tokio::select! {
            ended = announce(Ok(()), &commands, &file, &terminal) => panic!("{ended:?}"),
            _ = answer => {}
        }

        assert!(data.text().contains("/ip4/127.0.0.1/udp/1/quic-v1"), "{}", data.text());
    }

    #[test]
    fn a_log_filter_that_makes_no_sense_is_a_usage_error() {
        let (terminal, _, _) = Terminal::kept(false);

        assert_eq!(
            log_to_stderr("a=b=c", LogFormat::Text, &terminal).expect_err("nonsense").kind,
            FailureKind::Usage
        );
    }
}
