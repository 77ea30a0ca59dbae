//! `sharemesh network` and `sharemesh grant`.

use clap::{Args, Subcommand};

use super::Global;
use super::terminal::{Terminal, facts, short};
use crate::api::views::{
    GrantBody, GrantView, NetworkView, StatusView, TicketBody, TicketView, parse_credits,
};

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Make a string with which one other machine joins your network
    #[command(after_help = "Examples:\n  sharemesh network ticket\n  sharemesh network ticket --credits 5")]
    Ticket {
        /// Opening amount for the machine that joins, out of the network's budget
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
    facts(&[
        ("network", network.id.clone()),
        ("name", network.name.clone()),
        ("issuer", if network.issuer { "this node" } else { "another node" }.to_owned()),
        ("issuers", network.issuers.join(", ")),
        ("epoch", network.epoch.to_string()),
        ("fake model", if network.dev { "permitted" } else { "refused" }.to_owned()),
        ("budget left", network.budget_left.as_ref().map(ToString::to_string).unwrap_or_default()),
        (
            "trust",
            "deposits are held by the issuer, and a provider can read the prompts it serves".to_owned(),
        ),
    ])
}
