//! The command line: what a user types, and where each command is carried out.
//!
//! Data goes to standard output and everything else to standard error; exit codes are those of [`crate::exit`].

pub mod client;
pub mod signal;
pub mod terminal;

mod account;
mod keys;
mod ledger;
mod models;
mod network;
pub(crate) mod run;
mod status;
mod transfers;
mod up;
mod worker;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::api::local_part;
use crate::config;
use crate::exit::{Failure, failure_of};
use client::Client;
pub(crate) use models::pull;
use terminal::Terminal;

/// What a user typed.
#[derive(Debug, Parser)]
#[command(
    name = "sharemesh",
    version,
    about = "Run AI models for each other, and be paid in credits nobody can forge",
    after_help = EXAMPLES,
    arg_required_else_help = true,
    propagate_version = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  sharemesh demo \"Why is the sky blue?\"       a whole network on this machine, in one command
  sharemesh up --serve smollm2-135m           a home network, and a model served in it
  sharemesh up --join TICKET                  join a network with a ticket from its issuer
  sharemesh run smollm2-135m \"Hello\"          ask a model through the local node

Exit codes:
  0 done, 1 failed, 2 change what you ask, 3 node not running, 5 not enough credits, 6 no provider,
  130 interrupted";

/// What every command understands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Folder of the node's keys and ledger [default: ~/.local/share/sharemesh]
    #[arg(long, global = true, value_name = "DIR", env = "SHAREMESH_DATA", hide_env_values = true)]
    data: Option<PathBuf>,
    /// Where the node's local API is [default: 127.0.0.1:7433, or as the running node wrote down]
    #[arg(long, global = true, value_name = "ADDR", env = "SHAREMESH_API", hide_env_values = true)]
    api: Option<String>,
    /// Print one JSON object instead of words
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    /// Returns the data folder.
    pub fn data(&self) -> Result<PathBuf, Failure> {
        config::data_folder(self.data.clone())
    }

    /// Finds the running node.
    pub fn client(&self) -> Result<Client, Failure> {
        let address = self.api.as_deref().map(config::parse_api).transpose()?.map(local_part);
        Client::open(&self.data()?, address)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node in the foreground
    Up(Box<up::UpArgs>),
    /// End the running node
    Down,
    /// Ask a model; the answer streams to standard output
    Run(Box<run::RunArgs>),
    /// Fetch, list and remove models
    #[command(subcommand, after_help = "Example:\n  sharemesh models ls")]
    Models(models::ModelsCommand),
    /// Show this node
    #[command(after_help = "Example:\n  sharemesh status --json")]
    Status,
    /// Show who is connected, and how
    #[command(after_help = "Example:\n  sharemesh peers")]
    Peers,
    /// Show who serves what, at which price and load
    Providers(status::ProvidersArgs),
    /// Show balance and receipts, and check them
    #[command(subcommand, after_help = "Example:\n  sharemesh ledger balance")]
    Ledger(ledger::LedgerCommand),
    /// Let others use this node's API and spend from its account: keys with budgets and limits
    #[command(subcommand, after_help = "Example:\n  sharemesh keys create phone --per-day 0.5")]
    Keys(keys::KeysCommand),
    /// Make an account with a recovery phrase, replace its key, let other nodes act for it
    #[command(subcommand, after_help = "Example:\n  sharemesh account new --data ./wallet")]
    Account(account::AccountCommand),
    /// Make a network with several issuers, invite others into yours, show it
    #[command(subcommand, after_help = "Example:\n  sharemesh network ticket --credits 5")]
    Network(network::NetworkCommand),
    /// Give credits out of your home network's budget to an account
    Grant(network::GrantArgs),
    /// Pay an account out of your cash
    Pay(transfers::PayArgs),
    /// As the issuer's operator: book credits that were paid for outside
    Deposit(transfers::DepositArgs),
    /// Take cash out of the network, and see what became of it
    Withdraw(transfers::WithdrawArgs),
    /// Build a network of three processes on this machine and run one real job in it
    Demo(Box<crate::demo::DemoArgs>),
    /// Serve a model to the node that started this process
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
    /// Print the version
    Version,
}

/// Parses, runs and says how it ended.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match Cli::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(answer) => return say(&answer),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return say(&error),
    };
    if let Command::Worker(arguments) = &cli.command {
        // A worker speaks frames on standard output, and computes on threads of its own.
        return worker::run(arguments);
    }
    let terminal = Terminal::of_process(cli.global.json);
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal.failure(&Failure::internal(format!("cannot start: {error}")));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(dispatch(cli, &terminal));
    // A thread that waits for standard input would be waited for.
    runtime.shutdown_background();
    ended(result, &terminal)
}

fn runtime(command: &Command) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = if matches!(command, Command::Up(_)) {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.enable_all().build()
}

/// Prints help, the version, or what is wrong with the arguments.
fn say(answer: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed standard output here.
    let _ = answer.print();
    u8::try_from(answer.exit_code()).unwrap_or(2).into()
}

fn ended(result: anyhow::Result<()>, terminal: &Terminal) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let closed = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(closed) {
        // `sharemesh … | head` has what it wanted.
        return ExitCode::SUCCESS;
    }
    let failure = failure_of(&error);
    terminal.failure(&failure);
    failure.kind.exit_code().into()
}

async fn dispatch(cli: Cli, terminal: &Terminal) -> anyhow::Result<()> {
    let global = &cli.global;
    match cli.command {
        Command::Up(arguments) => up::run(*arguments, global, terminal).await,
        Command::Down => up::down(global, terminal).await,
        Command::Run(arguments) => run::run(*arguments, global, terminal).await,
        Command::Models(command) => models::run(command, global, terminal).await,
        Command::Status => status::status(global, terminal).await,
        Command::Peers => status::peers(global, terminal).await,
        Command::Providers(arguments) => status::providers(arguments, global, terminal).await,
        Command::Ledger(command) => ledger::run(command, global, terminal).await,
        Command::Keys(command) => keys::run(command, global, terminal).await,
        Command::Account(command) => account::run(command, global, terminal).await,
        Command::Network(command) => network::run(command, global, terminal).await,
        Command::Grant(arguments) => network::grant(arguments, global, terminal).await,
        Command::Pay(arguments) => transfers::pay(arguments, global, terminal).await,
        Command::Deposit(arguments) => transfers::deposit(arguments, global, terminal).await,
        Command::Withdraw(arguments) => transfers::withdraw(arguments, global, terminal).await,
        Command::Demo(arguments) => crate::demo::run(*arguments, terminal).await,
        Command::Worker(_) => unreachable!("workers run without a runtime"),
        Command::Version => Ok(version(terminal)?),
    }
}

fn version(terminal: &Terminal) -> io::Result<()> {
    let version = serde_json::json!({ "name": "sharemesh", "version": crate::VERSION });
    terminal.show(&version, |_| format!("sharemesh {}", crate::VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::api::auth::NodeFile;
    use crate::api::tests::{Served, served};

    /// A folder in which a node with a fake driver seems to run.
    async fn running() -> (tempfile::TempDir, Served) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let served = served().await;
        let file = NodeFile {
            version: crate::VERSION.to_owned(),
            api: served.address,
            token: served.token.clone(),
            pid: std::process::id(),
        };
        file.write(folder.path()).expect("writable");
        (folder, served)
    }

    /// Runs a command; returns how it ended, its data and its messages.
    async fn command(folder: &tempfile::TempDir, words: &[&str]) -> (u8, String, String) {
        let json = words.contains(&"--json");
        let (terminal, data, messages) = Terminal::kept(json);
        let path = folder.path().to_str().expect("text");
        let words = ["sharemesh", "--data", path].into_iter().chain(words.iter().copied());
        let cli = Cli::try_parse_from(words).expect("understood");
        let code = match dispatch(cli, &terminal).await {
            Ok(()) => 0,
            Err(error) => failure_of(&error).kind.exit_code(),
        };
        (code, data.text(), messages.text())
    }

    #[tokio::test]
    async fn an_answer_is_data_and_its_account_a_message() {
        let (folder, _served) = running().await;

        let (code, data, messages) = command(&folder, &["run", "echo", "hello"]).await;

        assert_eq!((code, data.as_str()), (0, "hello\n"));
        assert!(messages.contains("provider  there aa: the only one"), "{messages}");
        assert!(messages.contains("0.0000001 credits"), "{messages}");
        assert!(messages.contains("provider 0.000000092 (92.00 %)"), "{messages}");
    }

    #[tokio::test]
    async fn an_answer_for_scripts_is_one_object() {
        let (folder, _served) = running().await;

        let (code, data, messages) = command(&folder, &["run", "echo", "hello", "--json"]).await;

        let object: serde_json::Value = serde_json::from_str(&data).expect("one object");
        assert_eq!((code, messages.as_str()), (0, ""));
        assert_eq!((&object["text"], &object["receipt"]), (&"hello".into(), &"cc".into()));
        assert_eq!(object["price"]["nano"], 100);
    }

    #[tokio::test]
    async fn failures_have_their_exit_codes() {
        let (folder, _served) = running().await;
        let nowhere = tempfile::tempdir().expect("temporary folder");

        assert_eq!(command(&folder, &["run", "poor", "x"]).await.0, 5);
        assert_eq!(command(&folder, &["run", "none", "x"]).await.0, 6);
        assert_eq!(command(&folder, &["run", "echo", " "]).await.0, 2);
        assert_eq!(command(&folder, &["run", "echo", "x", "--max-tokens", "0"]).await.0, 2);
        assert_eq!(command(&folder, &["run", "echo", "x", "--temperature", "9"]).await.0, 2);
        assert_eq!(command(&folder, &["ledger", "show", "ab"]).await.0, 1);
        assert_eq!(command(&folder, &["grant", "ab", "many"]).await.0, 2);
        assert_eq!(command(&folder, &["pay", "ab", "0"]).await.0, 2);
        assert_eq!(command(&folder, &["withdraw", "1"]).await.0, 2);
        assert_eq!(command(&nowhere, &["status"]).await.0, 3);
        assert_eq!(command(&folder, &["status", "--api", "127.0.0.1:1"]).await.0, 3);
    }

    #[tokio::test]
    async fn every_question_is_answered_in_words_and_as_json() {
        let (folder, _served) = running().await;

        for words in [
            &["status"][..],
            &["peers"],
            &["providers", "--model", "a b"],
            &["ledger", "balance"],
            &["ledger", "receipts", "--before", "ab"],
            &["ledger", "show", "00"],
            &["ledger", "verify"],
            &["ledger", "settle"],
            &["ledger", "prune", "--keep-epochs", "3"],
            &["network", "ticket", "--credits", "2"],
            &["network", "show"],
            &["keys", "ls"],
            &["account", "show"],
            &["account", "authorise", "ab", "--until", "3d", "--serve"],
            &["account", "revoke", "ab"],
            &["grant", "ab", "1.5"],
            &["pay", "ab", "1.5"],
            &["deposit", "ab", "1.5", "--reference", "transfer 1"],
            &["withdraw", "2", "--to", "a bank", "--yes"],
            &["withdraw", "ls"],
            &["withdraw", "paid", "ab", "--reference", "transfer 2"],
            &["ledger", "channels"],
            &["ledger", "statement", "--from", "0", "--to", "2026-11-21"],
            &["ledger", "show", "0e"],
            &["version"],
        ] {
            let (code, _, messages) = command(&folder, words).await;
            assert_eq!(code, 0, "{words:?} {messages}");
            let (code, data, messages) = command(&folder, &[words, &["--json"]].concat()).await;
            assert_eq!(code, 0, "{words:?} {messages}");
            assert!(serde_json::from_str::<serde_json::Value>(&data).is_ok(), "{words:?} {data}");
        }
        let (_, ticket, _) = command(&folder, &["network", "ticket"]).await;
        assert_eq!(ticket, "sharemesh1fake\n");
    }

    #[tokio::test]
    async fn keys_are_made_shown_and_revoked_whether_the_node_runs_or_not() {
        let (folder, _served) = running().await;
        let nowhere = tempfile::tempdir().expect("temporary folder");

        for folder in [&folder, &nowhere] {
            let (code, secret, message) =
                command(folder, &["keys", "create", "a b", "--per-day", "0.5"]).await;
            assert_eq!((code, secret.len()), (0, "smk-".len() + 64 + 1), "{message}");
            let (code, made, _) = command(folder, &["keys", "create", "c", "--unlimited", "--json"]).await;
            let made: serde_json::Value = serde_json::from_str(&made).expect("one object");
            assert!(code == 0 && made["key"].as_str().expect("text").starts_with("smk-"), "{made}");
            let (_, list, _) = command(folder, &["keys", "ls"]).await;
            assert!(
                list.contains("a b") && list.contains("0 of 0.5") && !list.contains(secret.trim()),
                "{list}"
            );
            let (code, shown, _) = command(folder, &["keys", "show", "a b"]).await;
            assert!(code == 0 && shown.contains("60 requests a minute"), "{shown}");
            let id = made["id"].as_str().expect("text");
            assert_eq!(command(folder, &["keys", "revoke", id]).await.0, 0);
            assert!(command(folder, &["keys", "show", "c"]).await.1.contains("revoked"));
            assert_eq!(command(folder, &["keys", "show", "nobody"]).await.0, 1);
            assert_eq!(command(folder, &["keys", "create", "a b", "--per-day", "1"]).await.0, 2, "taken");
            assert_eq!(command(folder, &["keys", "create", "d"]).await.0, 2, "no budget");
        }
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_readme_is_understood() {
        for line in [
            "sharemesh up --data d --listen 127.0.0.1:0 --serve a --serve b --join t --api 127.0.0.1:1 --name n --mdns off",
            "sharemesh up --dev --price-in 1 --price-out 4 --slots 2 --log debug",
            "sharemesh run m hello --max-tokens 5 --temperature 0 --top-p 0.5 --top-k 3 --seed 1 --system s --max-price 1",
            "sharemesh run m",
            "sharemesh models pull smollm2-135m",
            "sharemesh models ls --json",
            "sharemesh models rm smollm2-135m",
            "sharemesh status --json --data d",
            "sharemesh peers",
            "sharemesh providers --model m",
            "sharemesh ledger balance",
            "sharemesh ledger receipts --limit 3",
            "sharemesh ledger show ab",
            "sharemesh ledger verify",
            "sharemesh network ticket --credits 5",
            "sharemesh network show",
            "sharemesh network create --issuers 4 --out f --epoch 1h --admission open --budget 5 --name n --address a:1",
            "sharemesh network issuer-key --address a:1",
            "sharemesh up --network f --issuer-key k --bootstrap a:1",
            "sharemesh account new --data d --passphrase-file f",
            "sharemesh account recover --phrase-file f --rotations 1",
            "sharemesh keys create phone --budget 5 --per-day 0.5 --requests-per-minute 30 --jobs 2",
            "sharemesh keys create all --unlimited",
            "sharemesh keys ls",
            "sharemesh keys show phone --json",
            "sharemesh keys revoke phone",
            "sharemesh account show",
            "sharemesh account rotate --phrase-file f",
            "sharemesh account authorise ab --until 30d --serve --spend --budget 5",
            "sharemesh account revoke ab",
            "sharemesh grant ab 5",
            "sharemesh pay ab 0.5",
            "sharemesh deposit ab 5 --reference r",
            "sharemesh withdraw 5 --to t --yes",
            "sharemesh withdraw ls",
            "sharemesh withdraw paid ab --reference r",
            "sharemesh ledger channels",
            "sharemesh ledger statement --from 1 --to 2 --csv",
            "sharemesh ledger export f",
            "sharemesh ledger import f",
            "sharemesh demo --json --keep why",
            "sharemesh worker --options {}",
            "sharemesh version",
            "sharemesh down",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_a_usage_error() {
        for line in
            ["sharemesh nonsense", "sharemesh up --nonsense", "sharemesh run", "sharemesh run m p --seed x"]
        {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
        assert_eq!(parse("sharemesh --help").expect_err("help").exit_code(), 0);
        assert_eq!(parse("sharemesh --version").expect_err("version").exit_code(), 0);
    }

    #[test]
    fn every_help_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set())
            {
                let path = format!("{path} {}", sub.get_name());
                if sub.has_subcommands() {
                    check(sub, &path);
                }
                let help = sub.clone().render_help().to_string();
                let name = path.split_whitespace().next_back().unwrap_or_default();
                assert!(help.contains("Example") || ["down", "version"].contains(&name), "{path}");
            }
        }
        check(&Cli::command(), "sharemesh");
    }
}
