//! `sharemesh keys`: lets others use this node's API, each up to what it was given.

use clap::{Args, Subcommand};

use super::Global;
use super::client::{Client, escape};
use super::terminal::{Terminal, facts, table};
use crate::api::keys::limits_of;
use crate::api::views::{KeyBody, KeyMadeView, KeyView, Money, parse_credits};
use crate::api_keys::ApiKeys;
use crate::clock::Clock;
use crate::exit::{Failure, FailureKind};
use crate::folder::DataFolder;

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a key; its secret is printed once and kept nowhere
    #[command(after_help = "\
Examples:
  sharemesh keys create phone --per-day 0.5
  sharemesh keys create friends --budget 20 --per-day 2 --requests-per-minute 30 --jobs 4

Whoever has the key sends it as `Authorization: Bearer KEY`, as clients of OpenAI's API do. It opens the endpoints under
/v1 and nothing else. A day is from midnight to midnight UTC.")]
    Create(CreateArgs),
    /// Show all keys and what was used of them
    #[command(after_help = "Example:\n  sharemesh keys ls --json")]
    Ls,
    /// Show a key
    #[command(after_help = "Example:\n  sharemesh keys show phone")]
    Show {
        /// Its name or id
        name: String,
    },
    /// Let nobody use a key any more; jobs that run under it end as they would
    #[command(after_help = "Example:\n  sharemesh keys revoke phone")]
    Revoke {
        /// Its name or id
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// What to call it
    name: String,
    /// Credits that it may spend in all
    #[arg(long, value_name = "CREDITS")]
    budget: Option<String>,
    /// Credits that it may spend in a day
    #[arg(long, value_name = "CREDITS")]
    per_day: Option<String>,
    /// It may spend whatever the account has
    #[arg(long)]
    unlimited: bool,
    /// Requests in any 60 seconds [default: 60]
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Jobs at once; each choice of an answer is one [default: 8]
    #[arg(long, value_name = "N")]
    jobs: Option<u32>,
}

/// Where the keys are: with the node that runs, or in the folder of one that does not.
enum Keys {
    Running(Client),
    /// The folder is locked as long as they are looked at.
    Here {
        keys: ApiKeys,
        _folder: DataFolder,
    },
}

pub(super) async fn run(command: KeysCommand, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let keys = Keys::open(global)?;
    match command {
        KeysCommand::Create(arguments) => {
            let made = keys.create(body_of(arguments)?).await?;
            // The secret alone is data, so that a script can take it as it is.
            terminal.show(&made, |made| made.key.clone())?;
            if !terminal.is_json() {
                terminal.message("This is the only time that the key is shown.");
            }
        }
        KeysCommand::Ls => terminal.show(&keys.list().await?, |keys| list(keys))?,
        KeysCommand::Show { name } => terminal.show(&keys.show(&name).await?, describe)?,
        KeysCommand::Revoke { name } => {
            let key = keys.revoke(&name).await?;
            terminal.show(&key, |key| format!("`{}` ({}) opens nothing any more", key.name, key.id))?;
        }
    }
    Ok(())
}

fn body_of(arguments: CreateArgs) -> Result<KeyBody, Failure> {
    let CreateArgs { name, budget, per_day, unlimited, requests_per_minute, jobs } = arguments;
    let body = KeyBody {
        name,
        budget_nano: budget.as_deref().map(parse_credits).transpose()?,
        per_day_nano: per_day.as_deref().map(parse_credits).transpose()?,
        unlimited,
        requests_per_minute,
        jobs_at_once: jobs,
    };
    let words = "give the key a budget with --budget or --per-day, or say --unlimited, and not both";
    limits_of(&body).map_err(|failure| Failure { message: words.to_owned(), ..failure })?;
    Ok(body)
}

impl Keys {
    fn open(global: &Global) -> Result<Self, Failure> {
        match global.client() {
            Ok(client) => Ok(Self::Running(client)),
            Err(failure) if failure.kind == FailureKind::NotRunning => {
                let data = global.data()?;
                let folder = DataFolder::open(&data).map_err(|error| Failure::internal(error.to_string()))?;
                Ok(Self::Here { keys: ApiKeys::open(&data)?, _folder: folder })
            }
            Err(failure) => Err(failure),
        }
    }

    async fn create(&self, body: KeyBody) -> Result<KeyMadeView, Failure> {
        match self {
            Self::Running(client) => client.post("keys", &body).await,
            Self::Here { keys, .. } => keys.create(&body.name, limits_of(&body)?).await,
        }
    }

    async fn list(&self) -> Result<Vec<KeyView>, Failure> {
        match self {
            Self::Running(client) => client.get("keys").await,
            Self::Here { keys, .. } => Ok(keys.list()),
        }
    }

    async fn show(&self, name: &str) -> Result<KeyView, Failure> {
        match self {
            Self::Running(client) => client.get(&format!("keys/{}", escape(name))).await,
            Self::Here { keys, .. } => keys.show(name),
        }
    }

    async fn revoke(&self, name: &str) -> Result<KeyView, Failure> {
        match self {
            Self::Running(client) => client.delete_for(&format!("keys/{}", escape(name))).await,
            Self::Here { keys, .. } => keys.revoke(name).await,
        }
    }
}

fn list(keys: &[KeyView]) -> String {
    if keys.is_empty() {
        return "No keys. Make one with `sharemesh keys create NAME --per-day CREDITS`.".to_owned();
    }
    let row = |key: &KeyView| {
        vec![
            key.name.clone(),
            key.id.clone(),
            if key.revoked_ms.is_some() { "revoked" } else { "active" }.to_owned(),
            of(&key.spent_today, key.per_day.as_ref()),
            of(&key.spent, key.budget.as_ref()),
            key.requests.to_string(),
            key.jobs.to_string(),
        ]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    table(&["NAME", "ID", "STATE", "TODAY", "IN ALL", "REQUESTS", "JOBS"], &rows)
}

fn of(spent: &Money, budget: Option<&Money>) -> String {
    match budget {
        Some(budget) => format!("{} of {}", spent.credits, budget.credits),
        None => spent.credits.clone(),
    }
}

fn describe(key: &KeyView) -> String {
    let now_ms = Clock::start(0).now_ms();
    let ago = |at: u64| format!("{} ago", super::terminal::duration(now_ms.saturating_sub(at)));
    facts(&[
        ("key", format!("{} ({})", key.name, key.id)),
        ("made", ago(key.created_ms)),
        ("revoked", key.revoked_ms.map(ago).unwrap_or_default()),
        ("last used", key.last_used_ms.map_or_else(|| "never".to_owned(), ago)),
        ("today", format!("{} credits", of(&key.spent_today, key.per_day.as_ref()))),
        ("in all", format!("{} credits", of(&key.spent, key.budget.as_ref()))),
        ("set aside", key.reserved.to_string()),
        (
            "limits",
            format!("{} requests a minute, {} jobs at once", key.requests_per_minute, key.jobs_at_once),
        ),
        (
            "used",
            format!(
                "{} requests, {} jobs, {} tokens in, {} out",
                key.requests, key.jobs, key.tokens_in, key.tokens_out
            ),
        ),
    ])
}
