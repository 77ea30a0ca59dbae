//! `sharemesh network` and `sharemesh grant`.

mod create;

use clap::{Args, Subcommand};

use super::Global;
use super::status::issuers_line;
use super::terminal::{Terminal, facts, short};
use crate::api::views::{
    GrantBody, GrantView, NetworkView, StatusView, TicketBody, TicketView, parse_credits,
};

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Make a network with one or several issuers, each a node of its own, in a file
    #[command(after_help = "\
Examples:
  sharemesh network create --issuers 4 --out ours.toml
      makes the keys of four issuers, each in a file of its own beside ours.toml
  sharemesh network create --issuers 4 --out ours.toml --address a.example:7432 --address b.example:7432 \\
      --address c.example:7432 --address d.example:7432
  sharemesh network create --out ours.toml --issuer KEY@NODE --issuer KEY@NODE --issuer KEY@NODE --issuer KEY@NODE
      for operators who made their keys themselves, with `sharemesh network issuer-key`
  sharemesh network create --issuers 1 --out lab.toml --epoch 10s --dev --json")]
    Create(Box<create::CreateArgs>),
    /// Print the public half of this data folder's issuer keys, for whoever makes the network
    #[command(after_help = "\
Examples:
  sharemesh network issuer-key
  sharemesh network issuer-key --data ./issuer --address host.example:7432")]
    IssuerKey {
        /// Where this issuer will be reached, HOST:PORT
        #[arg(long, value_name = "ADDR")]
        address: Option<String>,
    },
    /// Make a string with which one other machine joins your network; only an issuer can
    #[command(after_help = "Examples:\n  sharemesh network ticket\n  sharemesh network ticket --credits 5")]
    Ticket {
        /// Opening amount for the machine that joins, out of the network's budget: of several issuers each gives out
        /// an equal part of it
        #[arg(long, value_name = "N", default_value = "0")]
        credits: String,
    },
    /// Show the network this node is in
    #[command(after_help = "Example:\n  sharemesh network show --json")]
    Show,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sharemesh grant 5c0e…a1 10    (the account's id is in its `sharemesh status`)"
)]
pub(super) struct GrantArgs {
    /// Id of the account
    account: String,
    /// How much
    credits: String,
}

pub(super) async fn run(command: NetworkCommand, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(arguments) => create::create(&arguments, terminal)?,
        NetworkCommand::IssuerKey { address } => {
            create::issuer_key(address.as_deref(), global, terminal)?;
        }
        NetworkCommand::Ticket { credits } => {
            let body = TicketBody { credits_nano: parse_credits(&credits)? };
            let ticket: TicketView = global.client()?.post("network/tickets", &body).await?;
            // The ticket alone is data, so that a script can take it as it is.
            terminal.show(&ticket, |ticket| ticket.ticket.clone())?;
            if !terminal.is_json() {
                let credits = &ticket.credits;
                terminal
                    .message(&format!("For one machine, with {credits}. There: sharemesh up --join TICKET"));
            }
        }
        NetworkCommand::Show => {
            let status: StatusView = global.client()?.get("status").await?;
            terminal.show(&status.network, describe)?;
        }
    }
    Ok(())
}

pub(super) async fn grant(arguments: GrantArgs, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let body = GrantBody { account: arguments.account, nano: parse_credits(&arguments.credits)? };
    let grant: GrantView = global.client()?.post("network/grants", &body).await?;
    Ok(terminal.show(&grant, |grant| {
        format!(
            "{} to {}, which has {} now; {} left of the budget",
            grant.credits,
            short(&grant.account),
            grant.available,
            grant.budget_left
        )
    })?)
}

fn describe(network: &NetworkView) -> String {
    let trust = if network.issuers.len() > 1 {
        "deposits are safe while a quorum of issuers is honest; a provider can read the prompts it serves"
    } else {
        "deposits are held by the issuer, and a provider can read the prompts it serves"
    };
    let mut lines = vec![
        ("network", network.id.clone()),
        ("name", network.name.clone()),
        ("this node", if network.issuer { "is an issuer" } else { "is a member" }.to_owned()),
        ("issuers", issuers_line(network)),
        ("epoch", network.epoch.to_string()),
        ("fake model", if network.dev { "permitted" } else { "refused" }.to_owned()),
        ("budget left", network.budget_left.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("trust", trust.to_owned()),
    ];
    for issuer in &network.issuers {
        let reach = if issuer.reachable { "reachable" } else { "not reachable" };
        lines.push(("issuer", format!("node {}: {reach}", issuer.node)));
    }
    facts(&lines)
}
