//! `sharemesh pay`, `deposit` and `withdraw`: money that moves beside channels.

use std::io::{IsTerminal as _, Write as _};

use clap::{Args, Subcommand};

use super::Global;
use super::client::Client;
use super::terminal::{Terminal, short, table};
use crate::api::views::{
    DepositBody, DepositView, FeesView, Money, PaidBody, PayBody, PayView, WithdrawBody, WithdrawalView,
    parse_credits,
};
use crate::exit::{Failure, FailureKind};

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  sharemesh pay 5c0e…a1 0.5    (the account's id is in its `sharemesh status`)

Cash alone can be given away; what was earned by serving is for buying work. Repeating the command pays again.

Exit codes:
  0 paid, 1 refused or not answered yet, 2 change what you ask, 3 node not running, 5 not enough cash")]
pub(super) struct PayArgs {
    /// Id of the account
    account: String,
    /// How much, in credits
    amount: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  sharemesh deposit 5c0e…a1 20 --reference \"bank transfer 2026-11-21 #17\"

Only the issuer's operator books deposits, after the payment outside has arrived. A reference counts once: the same
deposit again changes nothing and says so; with another account or amount it is refused.

In a network with several issuers each operator who has seen the payment runs the same command on the own node, in any
order. The command says how many have, and how many are needed; when they have signed, the deposit is booked everywhere.

Exit codes:
  0 booked, booked before, or signed; 1 refused; 2 change what you ask; 3 node not running")]
pub(super) struct DepositArgs {
    /// Id of the account
    account: String,
    /// How much, in credits
    amount: String,
    /// Names the payment outside
    #[arg(long, value_name = "TEXT")]
    reference: String,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sharemesh withdraw 5 --to \"IBAN CH93 0076 2011 6238 5295 7\"
  sharemesh withdraw 5 --to \"IBAN CH93 …\" --yes
  sharemesh withdraw ls
  sharemesh withdraw paid 3f9a --reference \"transfer 88\"

The fee is shown first, and nothing happens without a yes. The credits leave the account at once; the issuer's operator
sees the request with `ls`, pays it outside, and marks it as paid. Of several operators the one pays whose issuer `ls`
names; after 7 epochs it is the next one's turn.

Exit codes:
  0 done, 1 refused or not answered yet, 2 not confirmed or change what you ask, 3 node not running, 5 not enough cash"
)]
pub(super) struct WithdrawArgs {
    #[command(subcommand)]
    command: Option<WithdrawCommand>,
    /// How much, in credits
    amount: Option<String>,
    /// Where the operator shall pay it
    #[arg(long, value_name = "TEXT")]
    to: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
enum WithdrawCommand {
    /// Show withdrawals: your own, or everybody's on the issuer
    #[command(after_help = "Example:\n  sharemesh withdraw ls --json")]
    Ls,
    /// As the issuer's operator: mark a withdrawal as paid
    #[command(after_help = "Example:\n  sharemesh withdraw paid 3f9a --reference \"transfer 88\"")]
    Paid {
        /// The withdrawal's id, or its beginning
        id: String,
        /// Names the payment outside
        #[arg(long, value_name = "TEXT")]
        reference: String,
    },
}

pub(super) async fn pay(arguments: PayArgs, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let body = PayBody { account: arguments.account, nano: parse_credits(&arguments.amount)? };
    let paid: PayView = global.client()?.post("account/payments", &body).await?;
    Ok(terminal.show(&paid, |paid| {
        let account = short(&paid.account);
        format!(
            "{} paid to {account} for a fee of {}; {} of cash left\nstep  {}",
            paid.amount, paid.fee, paid.cash, paid.step
        )
    })?)
}

pub(super) async fn deposit(
    arguments: DepositArgs,
    global: &Global,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let DepositArgs { account, amount, reference } = arguments;
    let body = DepositBody { account, nano: parse_credits(&amount)?, reference };
    let deposit: DepositView = global.client()?.post("network/deposits", &body).await?;
    Ok(terminal.show(&deposit, describe_deposit)?)
}

fn describe_deposit(deposit: &DepositView) -> String {
    let what = format!("{} for {} under `{}`", deposit.amount, short(&deposit.account), deposit.reference);
    if deposit.booked {
        return format!("booked {what}; the account has {} now", deposit.available);
    }
    let DepositView { signed, needed, differing, .. } = deposit;
    if signed >= needed {
        return format!("{what} was booked before: nothing has changed");
    }
    let missing = needed.saturating_sub(*signed);
    let mut words = format!(
        "signed {what}\n{signed} of {needed} operators have; it is booked when {missing} more run the same command"
    );
    if *differing > 0 {
        words += &format!(
            "\n{differing} signed another account or amount under this reference: compare with them, and if they are \
             right take a new reference"
        );
    }
    words
}

pub(super) async fn withdraw(
    arguments: WithdrawArgs,
    global: &Global,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let client = global.client()?;
    match arguments.command {
        Some(WithdrawCommand::Ls) => {
            let all: Vec<WithdrawalView> = client.get("account/withdrawals").await?;
            if all.is_empty() {
                terminal.message("No withdrawals yet.");
            }
            Ok(terminal.show(&all, |all| describe(all))?)
        }
        Some(WithdrawCommand::Paid { id, reference }) => {
            super::ledger::check_id(&id)?;
            let path = format!("network/withdrawals/{id}/paid");
            let paid: WithdrawalView = client.post(&path, &PaidBody { reference }).await?;
            Ok(terminal.show(&paid, |paid| describe(std::slice::from_ref(paid)))?)
        }
        None => request(arguments, &client, terminal).await,
    }
}

async fn request(arguments: WithdrawArgs, client: &Client, terminal: &Terminal) -> anyhow::Result<()> {
    let missing = |what| Failure::usage(format!("{what} is missing: sharemesh withdraw AMOUNT --to TEXT"));
    let nano = parse_credits(&arguments.amount.ok_or_else(|| missing("the amount"))?)?;
    let to = arguments.to.ok_or_else(|| missing("where to pay"))?;
    let fees: FeesView = client.get("account/fees").await?;
    let all =
        nano.checked_add(fees.withdraw.nano).ok_or_else(|| Failure::usage("the amount is too large"))?;
    let (amount, all) = (Money::from_nano(nano), Money::from_nano(all));
    let what =
        format!("Withdraw {amount} to `{to}` for a fee of {}: {all} leave the account.", fees.withdraw);
    if !arguments.yes {
        confirm(&what, terminal)?;
    }
    let asked: WithdrawalView = client.post("account/withdrawals", &WithdrawBody { nano, to }).await?;
    Ok(terminal.show(&asked, |asked| {
        format!(
            "requested {} to `{}`\nwithdrawal  {}",
            asked.amount,
            asked.to.as_deref().unwrap_or(""),
            asked.id
        )
    })?)
}

/// Asks a person; whoever is none has to say yes in the command.
fn confirm(what: &str, terminal: &Terminal) -> Result<(), Failure> {
    terminal.message(what);
    let refused = |why: &str| Failure::usage(format!("nothing was withdrawn: {why}"));
    if !std::io::stdin().is_terminal() || terminal.is_json() {
        return Err(refused("add --yes to confirm"));
    }
    terminal.message("Go on? [y/N]");
    std::io::stderr().flush().map_err(|error| Failure::internal(error.to_string()))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Failure::internal(error.to_string()))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Usage, "nothing was withdrawn"))
}

fn describe(all: &[WithdrawalView]) -> String {
    let row = |one: &WithdrawalView| {
        vec![
            short(&one.id).to_owned(),
            short(&one.account).to_owned(),
            one.amount.credits.clone(),
            one.state.clone(),
            one.to.clone().unwrap_or_else(|| "not told yet".to_owned()),
            one.reference.clone().unwrap_or_default(),
            one.payer.as_deref().map(short).unwrap_or_default().to_owned(),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    table(&["WITHDRAWAL", "ACCOUNT", "CREDITS", "STATE", "TO", "REFERENCE", "PAYER"], &rows)
}
