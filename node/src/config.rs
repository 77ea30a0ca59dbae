//! What a node is told: a file, then the environment, then flags, checked before any socket opens.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use engine::FakeOptions;
use engine::options::SLOTS_MAX;
use protocol::advert::{ProviderClass, REGION_BYTES_MAX, is_region};
use protocol::ids::AccountId;
use protocol::ledger::money::BPS;
use serde::Deserialize;

use crate::api;
use crate::api::cors::Origins;
use crate::api::views::{NANO_PER_CREDIT, parse_credits};
use crate::exit::Failure;
use crate::issuer_key::IssuerKey;
use crate::models::{FAKE, Models, OnProgress, Price, ServedModel, cannot};
use crate::net::Multiaddr;
use crate::network_file::NetworkFile;
use crate::vault::Secret;
use crate::worker::WORKERS_MAX;

/// The port of the mesh unless another is chosen: fixed, so that a ticket's addresses outlive a restart.
pub const MESH_PORT: u16 = 7432;

/// Jobs at once on each model unless told otherwise: more share the machine's memory bandwidth to nobody's gain.
pub const SLOTS: u32 = 4;

/// What an issuer of a home network may hand out in tickets and grants, in credits.
pub const BUDGET_CREDITS: u64 = 1_000_000;

/// For how many epochs after their end channels can be looked at unless told otherwise: a month at home.
pub const KEEP_EPOCHS: u32 = 30;

/// Bounds the addresses that a node listens on.
const LISTEN_MAX: usize = 16;

/// Bounds the addresses of issuers that are given on top of those of a file or ticket.
const BOOTSTRAP_MAX: usize = 32;

/// Bounds an address: a name has at most 253 bytes, and a node id 52.
const CONTACT_BYTES_MAX: usize = 512;

/// Bounds the builders that may be paid.
const BUILDERS_MAX: usize = 1_024;

/// Bounds a node's name: it is in every advert.
const NAME_BYTES_MAX: usize = 64;

/// Bounds a ticket, which a person pastes.
const TICKET_BYTES_MAX: usize = 4096;

/// Everything a node is told, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The folder of its keys and its ledger; exists, unless it is to be created.
    pub data: PathBuf,
    /// What its owner calls it.
    pub name: String,
    /// What it says in adverts that it is; nobody vouches for it.
    pub class: ProviderClass,
    /// Where it says that it is, in capitals; empty if it does not say.
    pub region: String,
    /// Addresses to listen on, as multiaddresses.
    pub listen: Vec<String>,
    /// Where the API listens.
    pub api: SocketAddr,
    /// A ticket to join with; without one, the network of the data folder or a new home network.
    pub join: Option<String>,
    /// Whether home networks on the LAN are shown, and this one is.
    pub mdns: bool,
    /// Whether a new home network permits the fake model.
    pub dev: bool,
    /// The models to serve.
    pub serve: Vec<ServedModel>,
    /// What is asked for each model in place of the catalogue's price.
    pub price: Option<Price>,
    /// Jobs at once on each model.
    pub slots: u32,
    /// Threads of each model.
    pub threads: Option<usize>,
    /// What a new home network's issuer may hand out, in nano-credits.
    pub budget_nano: u64,
    /// For how many epochs after their end the journal keeps the lines of channels all the same.
    pub keep_epochs: u32,
    /// Whether to get back from others what the journal has lost, before anything is signed or served.
    pub recover: bool,
    /// Whether the end of standard input ends the node.
    pub exit_with_parent: bool,
    /// What opens the account's key file, where the data folder has one.
    pub passphrase: Option<Secret>,
    /// The right to act for an account whose wallet node is another; needed once, the data folder remembers.
    pub device: Option<String>,
    /// The network of a file; needed once, the data folder remembers.
    pub network: Option<NetworkFile>,
    /// The keys that make this node one of its issuers; needed once, the data folder remembers.
    pub issuer_key: Option<IssuerKey>,
    /// More addresses of issuers, as multiaddresses; the data folder remembers.
    pub bootstrap: Vec<String>,
    /// Builders to whom requests may have a markup paid, each with the most, in basis points.
    pub builders: BTreeMap<AccountId, u16>,
    /// Web pages that may use the API with a key.
    pub cors_origins: Origins,
}

/// What a node may be told, each thing or not, as a file or flags have it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// See [`Config::name`].
    pub name: Option<String>,
    /// `community` or `company`; see [`Config::class`].
    pub class: Option<String>,
    /// See [`Config::region`].
    pub region: Option<String>,
    /// Multiaddresses, or `ip:port` for QUIC and TCP there.
    #[serde(default)]
    pub listen: Vec<String>,
    /// `127.0.0.1:7433` or the like.
    pub api: Option<String>,
    /// Names of the catalogue, of registered files, or paths.
    #[serde(default)]
    pub serve: Vec<String>,
    /// `true` or `false`.
    pub mdns: Option<bool>,
    /// See [`Config::dev`].
    pub dev: Option<bool>,
    /// Credits for a million tokens of prompts.
    pub price_in: Option<String>,
    /// Credits for a million tokens of answers.
    pub price_out: Option<String>,
    /// See [`Config::slots`].
    pub slots: Option<u32>,
    /// See [`Config::threads`].
    pub threads: Option<usize>,
    /// Credits; see [`Config::budget_nano`].
    pub budget: Option<String>,
    /// See [`Config::keep_epochs`].
    pub keep_epochs: Option<u32>,
    /// See [`Config::join`].
    #[serde(skip)]
    pub join: Option<String>,
    /// See [`Config::recover`].
    #[serde(skip)]
    pub recover: bool,
    /// See [`Config::exit_with_parent`].
    #[serde(skip)]
    pub exit_with_parent: bool,
    /// See [`Config::passphrase`].
    #[serde(skip)]
    pub passphrase: Option<Secret>,
    /// See [`Config::device`].
    #[serde(skip)]
    pub device: Option<String>,
    /// The file of a network.
    #[serde(skip)]
    pub network: Option<PathBuf>,
    /// The file of an issuer's keys.
    #[serde(skip)]
    pub issuer_key: Option<PathBuf>,
    /// See [`Config::bootstrap`]; also as `HOST:PORT`.
    #[serde(default)]
    pub bootstrap: Vec<String>,
    /// Accounts of builders, each alone or as `ACCOUNT=BPS`; see [`Config::builders`].
    #[serde(default)]
    pub builders: Vec<String>,
    /// Each as in `https://app.example`; see [`Config::cors_origins`].
    #[serde(default)]
    pub cors_origins: Vec<String>,
    /// How the fake model behaves.
    #[serde(skip)]
    pub fake: Option<FakeOptions>,
}

impl Settings {
    /// Reads `<data>/config.toml`; no file says nothing.
    pub fn read(data: &Path) -> Result<Self, Failure> {
        let path = data.join("config.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        toml::from_str(&text).map_err(|error| Failure::usage(format!("{} is wrong: {error}", path.display())))
    }

    /// Takes what is said here, and from `base` what is not.
    #[must_use]
    pub fn over(self, base: Self) -> Self {
        let list = |mine: Vec<String>, other: Vec<String>| if mine.is_empty() { other } else { mine };
        Self {
            name: self.name.or(base.name),
            class: self.class.or(base.class),
            region: self.region.or(base.region),
            listen: list(self.listen, base.listen),
            api: self.api.or(base.api),
            serve: list(self.serve, base.serve),
            mdns: self.mdns.or(base.mdns),
            dev: self.dev.or(base.dev),
            price_in: self.price_in.or(base.price_in),
            price_out: self.price_out.or(base.price_out),
            slots: self.slots.or(base.slots),
            threads: self.threads.or(base.threads),
            budget: self.budget.or(base.budget),
            keep_epochs: self.keep_epochs.or(base.keep_epochs),
            join: self.join.or(base.join),
            recover: self.recover || base.recover,
            exit_with_parent: self.exit_with_parent || base.exit_with_parent,
            passphrase: self.passphrase.or(base.passphrase),
            device: self.device.or(base.device),
            network: self.network.or(base.network),
            issuer_key: self.issuer_key.or(base.issuer_key),
            bootstrap: list(self.bootstrap, base.bootstrap),
            builders: list(self.builders, base.builders),
            cors_origins: list(self.cors_origins, base.cors_origins),
            fake: self.fake.or(base.fake),
        }
    }

    /// Checks everything that can be checked without the network; reads the files of the models.
    pub fn resolve(
        self,
        data: PathBuf,
        models: &Models,
        progress: OnProgress<'_>,
    ) -> Result<Config, Failure> {
        let name = name_of(self.name)?;
        let class = self.class.as_deref().map_or(Ok(ProviderClass::Community), class_of)?;
        let region = self.region.as_deref().map_or(Ok(String::new()), region_of)?;
        let listen = addresses(&self.listen)?;
        let api = self.api.as_deref().map_or(Ok(SocketAddr::from(([127, 0, 0, 1], api::PORT))), parse_api)?;
        let join = self.join.map(ticket).transpose()?;
        let slots = in_range("slots", self.slots.unwrap_or(SLOTS), SLOTS_MAX)?;
        let price = price_of(self.price_in.as_deref(), self.price_out.as_deref())?;
        let budget = self.budget.as_deref().map_or(Ok(BUDGET_CREDITS * NANO_PER_CREDIT), parse_credits)?;
        if self.threads == Some(0) {
            return Err(Failure::usage(
                "threads is 0: give at least 1, or leave it out for all cores but one",
            ));
        }
        if self.serve.len() > WORKERS_MAX {
            return Err(Failure::usage(format!(
                "a node serves at most {WORKERS_MAX} models: start another node"
            )));
        }
        let mut config = Config {
            data,
            name,
            class,
            region,
            listen,
            api,
            join,
            mdns: self.mdns.unwrap_or(true),
            dev: self.dev.unwrap_or(false),
            serve: Vec::new(),
            price,
            slots,
            threads: Some(self.threads.unwrap_or_else(threads)),
            budget_nano: budget,
            keep_epochs: self.keep_epochs.unwrap_or(KEEP_EPOCHS),
            recover: self.recover,
            exit_with_parent: self.exit_with_parent,
            passphrase: self.passphrase,
            device: self.device,
            network: self.network.as_deref().map(NetworkFile::read).transpose()?,
            issuer_key: self.issuer_key.as_deref().map(IssuerKey::read).transpose()?,
            bootstrap: contacts(&self.bootstrap)?,
            builders: builders(&self.builders)?,
            cors_origins: Origins::parse(&self.cors_origins)?,
        };
        for name in &self.serve {
            let model = served(name, &config, self.fake.clone(), models, progress)?;
            if config.serve.iter().any(|other| other.name == model.name) {
                return Err(Failure::usage(format!("`{}` is to be served twice: name it once", model.name)));
            }
            config.serve.push(model);
        }
        Ok(config)
    }
}

fn served(
    name: &str,
    config: &Config,
    fake: Option<FakeOptions>,
    models: &Models,
    progress: OnProgress<'_>,
) -> Result<ServedModel, Failure> {
    if name == FAKE {
        // Whether the network permits it is known when it is joined.
        return Ok(ServedModel::fake(
            fake.unwrap_or_default(),
            config.price.unwrap_or(crate::models::PRICE),
            config.slots,
        ));
    }
    let file = models.resolve(name, progress)?;
    Ok(models.served(&file, config.price.unwrap_or(file.price), config.slots, config.threads))
}

/// Returns how many threads compute unless told otherwise: all cores but one, because a computing thread that has to
/// wait for its core makes all the others wait at every layer.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1))
}

/// Returns the data folder: as given, else the user's own.
pub fn data_folder(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let folder = match given {
        Some(folder) => folder,
        None => default_data_folder(|name| std::env::var_os(name))?,
    };
    std::path::absolute(&folder).map_err(|error| cannot("use", &folder, &error))
}

fn default_data_folder(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<PathBuf, Failure> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .or_else(|| set("LOCALAPPDATA"))
        .map(|folder| folder.join("sharemesh"))
        .ok_or_else(|| Failure::usage("no data folder: give one with --data DIR"))
}

/// Reads which builders may be paid, and how much; unless that is said, as much as the network allows.
fn builders(given: &[String]) -> Result<BTreeMap<AccountId, u16>, Failure> {
    if given.len() > BUILDERS_MAX {
        return Err(Failure::usage(format!("at most {BUILDERS_MAX} builders can be allowed")));
    }
    let most = u16::try_from(BPS).unwrap_or(u16::MAX);
    let one = |text: &String| {
        let (account, bps) = match text.split_once('=') {
            Some((account, bps)) => (account, bps.trim().parse()),
            None => (text.as_str(), Ok(most)),
        };
        let account = account.trim().parse();
        account.ok().zip(bps.ok().filter(|bps| *bps <= most)).ok_or_else(|| {
            Failure::usage(format!(
                "`{text}` allows no builder: write ACCOUNT or ACCOUNT=BPS, with the account's id and at most {most} \
                 hundredths of a percent, as in `--builder 4f…=500` for 5 %"
            ))
        })
    };
    given.iter().map(one).collect()
}

fn name_of(given: Option<String>) -> Result<String, Failure> {
    let name = given.unwrap_or_else(machine_name);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Failure::usage(format!(
            "a node's name has 1 to {NAME_BYTES_MAX} bytes without control characters: choose another with --name"
        )));
    }
    Ok(name)
}

fn class_of(text: &str) -> Result<ProviderClass, Failure> {
    match text {
        "community" => Ok(ProviderClass::Community),
        "company" => Ok(ProviderClass::Company),
        _ => Err(Failure::usage(format!("`{text}` is no class of providers: write community or company"))),
    }
}

fn region_of(text: &str) -> Result<String, Failure> {
    if text.is_empty() || is_region(text) {
        return Ok(text.to_ascii_uppercase());
    }
    Err(Failure::usage(format!(
        "`{text}` is no region: write the ISO 3166 code of a country, EU, or a part of one such as DE-BY, with at most \
         {REGION_BYTES_MAX} letters, digits and hyphens"
    )))
}

fn machine_name() -> String {
    let read =
        fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
    let name: String =
        read.unwrap_or_default().trim().chars().filter(|letter| !letter.is_control()).take(16).collect();
    if name.is_empty() { "sharemesh".to_owned() } else { name }
}

fn ticket(text: String) -> Result<String, Failure> {
    let text = text.trim().to_owned();
    if text.is_empty()
        || text.len() > TICKET_BYTES_MAX
        || text.chars().any(|letter| !letter.is_ascii_graphic())
    {
        return Err(Failure::usage(
            "this is not a ticket: paste all of what `sharemesh network ticket` printed on the issuer's machine",
        ));
    }
    Ok(text)
}

fn price_of(input: Option<&str>, output: Option<&str>) -> Result<Option<Price>, Failure> {
    match (input, output) {
        (None, None) => Ok(None),
        (Some(input), Some(output)) => Ok(Some(Price {
            input_nano_per_million: parse_credits(input)?,
            output_nano_per_million: parse_credits(output)?,
        })),
        _ => Err(Failure::usage(
            "give both --price-in and --price-out, in credits per million tokens, or neither",
        )),
    }
}

fn in_range(what: &str, value: u32, max: u32) -> Result<u32, Failure> {
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    Err(Failure::usage(format!("{what} is {value}: give 1 to {max}")))
}

/// Reads where the API listens: `127.0.0.1:7433`, or a port alone.
pub fn parse_api(text: &str) -> Result<SocketAddr, Failure> {
    let port = text.parse::<u16>().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    port.or_else(|_| text.replace("localhost:", "127.0.0.1:").parse::<SocketAddr>()).map_err(|_| {
        Failure::usage(format!(
            "`{text}` is no address for the API: write for example 127.0.0.1:{}",
            api::PORT
        ))
    })
}

fn addresses(given: &[String]) -> Result<Vec<String>, Failure> {
    if given.len() > LISTEN_MAX {
        return Err(Failure::usage(format!("at most {LISTEN_MAX} addresses to listen on")));
    }
    if given.is_empty() {
        return Ok(both_transports(SocketAddr::from(([0, 0, 0, 0], MESH_PORT))));
    }
    let each: Result<Vec<_>, _> = given.iter().map(|text| parse_listen(text)).collect();
    Ok(each?.concat())
}

/// Turns `ip:port` into QUIC and TCP there, and checks a multiaddress.
fn parse_listen(text: &str) -> Result<Vec<String>, Failure> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(both_transports(address));
    }
    let wrong = || {
        Failure::usage(format!(
            "`{text}` is no address to listen on: write for example 0.0.0.0:{MESH_PORT}, /ip4/0.0.0.0/udp/{MESH_PORT}/quic-v1 or /ip4/0.0.0.0/tcp/{MESH_PORT}"
        ))
    };
    let parts: Vec<_> = text.split('/').collect();
    let (ip, protocol, port, rest) = match parts.as_slice() {
        ["", family @ ("ip4" | "ip6"), ip, protocol, port, rest @ ..] => {
            let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
            if ip.is_ipv4() != (*family == "ip4") {
                return Err(wrong());
            }
            (ip, *protocol, port.parse::<u16>().map_err(|_| wrong())?, rest)
        }
        _ => return Err(wrong()),
    };
    match (protocol, rest) {
        ("udp", ["quic-v1"]) => Ok(vec![quic(SocketAddr::new(ip, port))]),
        ("tcp", []) => Ok(vec![tcp(SocketAddr::new(ip, port))]),
        _ => Err(wrong()),
    }
}

fn contacts(given: &[String]) -> Result<Vec<String>, Failure> {
    if given.len() > BOOTSTRAP_MAX {
        return Err(Failure::usage(format!("at most {BOOTSTRAP_MAX} addresses of issuers")));
    }
    let each: Result<Vec<_>, _> = given.iter().map(|text| parse_contact(text)).collect();
    Ok(each?.concat())
}

/// Turns `HOST:PORT` into QUIC and TCP there, and checks a multiaddress.
///
/// # Errors
/// When it is neither.
pub fn parse_contact(text: &str) -> Result<Vec<String>, Failure> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(both_transports(address));
    }
    let wrong = || {
        Failure::usage(format!(
            "`{text}` is no address of a node: write for example 192.0.2.1:{MESH_PORT}, host.example:{MESH_PORT} or an \
             address that `sharemesh status` shows there"
        ))
    };
    if text.len() > CONTACT_BYTES_MAX {
        return Err(wrong());
    }
    if text.starts_with('/') {
        let is_dialable = text.contains("/quic-v1") || text.contains("/tcp/");
        return match text.parse::<Multiaddr>() {
            Ok(address) if is_dialable => Ok(vec![address.to_string()]),
            Ok(_) | Err(_) => Err(wrong()),
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if host.is_empty() || !host.bytes().all(is_name) {
        return Err(wrong());
    }
    Ok(vec![format!("/dns/{host}/udp/{port}/quic-v1"), format!("/dns/{host}/tcp/{port}")])
}

fn both_transports(address: SocketAddr) -> Vec<String> {
    vec![quic(address), tcp(address)]
}

fn quic(address: SocketAddr) -> String {
    format!("/{}/{}/udp/{}/quic-v1", family(address), address.ip(), address.port())
}

fn tcp(address: SocketAddr) -> String {
    format!("/{}/{}/tcp/{}", family(address), address.ip(), address.port())
}

fn family(address: SocketAddr) -> &'static str {
    if address.is_ipv4() { "ip4" } else { "ip6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::FailureKind;
    use crate::models::fetch::Fetcher;

    fn resolve(settings: Settings) -> Result<Config, Failure> {
        let models = Models::at("/nowhere/cache".into(), Fetcher::new("python3"));
        settings.resolve("/nowhere/data".into(), &models, &|_| {})
    }

    fn settings() -> Settings {
        Settings { name: Some("here".to_owned()), ..Settings::default() }
    }

    #[test]
    fn nothing_told_is_a_home_network_on_fixed_ports() {
        let config = resolve(settings()).expect("sound");

        assert_eq!(config.listen, ["/ip4/0.0.0.0/udp/7432/quic-v1", "/ip4/0.0.0.0/tcp/7432"]);
        assert_eq!(config.api.to_string(), "127.0.0.1:7433");
        assert!(config.mdns && !config.dev && config.serve.is_empty() && config.join.is_none());
    }

    #[test]
    fn flags_come_before_the_file() {
        let file: Settings =
            toml::from_str("name = 'file'\nslots = 2\nserve = ['a']\nmdns = false").expect("sound");
        let flags = Settings { slots: Some(3), serve: vec!["b".to_owned()], ..Settings::default() };

        let both = flags.over(file);

        assert_eq!((both.name.as_deref(), both.slots, both.mdns), (Some("file"), Some(3), Some(false)));
        assert_eq!(both.serve, ["b"]);
    }

    #[test]
    fn a_file_with_an_unknown_word_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join("config.toml"), "nmae = 'x'").expect("writable");

        assert_eq!(Settings::read(folder.path()).expect_err("misspelt").kind, FailureKind::Usage);
        assert_eq!(Settings::read(Path::new("/nowhere")), Ok(Settings::default()));
    }

    #[test]
    fn addresses_are_read_in_both_ways_of_writing() {
        let read = |text: &str| parse_listen(text).map(|list| list.join(" ")).unwrap_or_default();

        assert_eq!(read("127.0.0.1:9"), "/ip4/127.0.0.1/udp/9/quic-v1 /ip4/127.0.0.1/tcp/9");
        assert_eq!(read("[::1]:9"), "/ip6/::1/udp/9/quic-v1 /ip6/::1/tcp/9");
        assert_eq!(read("/ip4/127.0.0.1/tcp/0"), "/ip4/127.0.0.1/tcp/0");
        assert_eq!(read("/ip4/127.0.0.1/udp/1/quic-v1"), "/ip4/127.0.0.1/udp/1/quic-v1");
        for wrong in ["", "127.0.0.1", "/ip6/127.0.0.1/tcp/1", "/ip4/1.2.3.4/udp/1", "/dns4/a/tcp/1", "a:1"] {
            assert_eq!(read(wrong), "", "{wrong}");
        }
    }

    #[test]
    fn the_api_is_on_this_machine_unless_an_address_is_given() {
        assert_eq!(parse_api("8000").map(|address| address.to_string()), Ok("127.0.0.1:8000".to_owned()));
        assert!(parse_api("localhost:8000").is_ok() && parse_api("[::1]:8000").is_ok());
        assert!(parse_api("0.0.0.0:7433").is_ok() && parse_api("192.168.1.2:7433").is_ok());
        assert!(parse_api("nonsense").expect_err("no address").message.contains("127.0.0.1:7433"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_opens() {
        let refused = |settings: Settings| resolve(settings).expect_err("makes no sense").kind;

        assert_eq!(refused(Settings { slots: Some(0), ..settings() }), FailureKind::Usage);
        assert_eq!(refused(Settings { slots: Some(SLOTS_MAX + 1), ..settings() }), FailureKind::Usage);
        assert_eq!(refused(Settings { threads: Some(0), ..settings() }), FailureKind::Usage);
        assert_eq!(refused(Settings { price_in: Some("1".to_owned()), ..settings() }), FailureKind::Usage);
        assert_eq!(
            refused(Settings { join: Some("two words".to_owned()), ..settings() }),
            FailureKind::Usage
        );
        assert_eq!(refused(Settings { name: Some("x".repeat(65)), ..settings() }), FailureKind::Usage);
        let twice = vec![FAKE.to_owned(), FAKE.to_owned()];
        assert_eq!(refused(Settings { serve: twice, ..settings() }), FailureKind::Usage);
        let region = |region: &str| Settings { region: Some(region.to_owned()), ..settings() };
        assert_eq!(refused(region("Bavaria")), FailureKind::Usage);
        assert_eq!(resolve(region("de-by")).map(|config| config.region), Ok("DE-BY".to_owned()));
        let class = |class: &str| Settings { class: Some(class.to_owned()), ..settings() };
        assert_eq!(refused(class("mine")), FailureKind::Usage);
        assert_eq!(resolve(class("company")).map(|config| config.class), Ok(ProviderClass::Company));
        let any = vec!["*".to_owned()];
        assert_eq!(refused(Settings { cors_origins: any, ..settings() }), FailureKind::Usage);
        let unknown = vec!["nonsense".to_owned()];
        assert_eq!(refused(Settings { serve: unknown, ..settings() }), FailureKind::UnknownModel);
    }

    #[test]
    fn the_data_folder_is_the_users_own() {
        let folder = |variables: &'static [(&str, &str)]| {
            default_data_folder(|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
            })
        };

        assert_eq!(folder(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]), Ok("/x/sharemesh".into()));
        assert_eq!(folder(&[("HOME", "/h")]), Ok("/h/.local/share/sharemesh".into()));
    }
}
