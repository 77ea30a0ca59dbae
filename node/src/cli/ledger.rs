//! `sharemesh ledger`: what the node's own store says of money.

mod statement;
mod transport;

use std::path::PathBuf;

use clap::Subcommand;

use super::Global;
use super::client::Client;
use super::status::price;
use super::terminal::{Terminal, facts, model, short, table};
use crate::api::views::{
    AuditBody, AuditView, BalanceView, EntryView, LedgerChannelView, PruneBody, PruneView, ReceiptDetailView,
    ReceiptView, ReceiptsView, SettleView, StatementView, StepView, VerifyView,
};
use crate::exit::{Failure, FailureKind};

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Show what the account has
    #[command(after_help = "Example:\n  sharemesh ledger balance --json")]
    Balance,
    /// List receipts, newest first
    #[command(after_help = "Example:\n  sharemesh ledger receipts --limit 10")]
    Receipts {
        /// At most so many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Only those older than this one
        #[arg(long, value_name = "ID")]
        before: Option<String>,
    },
    /// Show the channels with their room: open, closing and ended ones
    #[command(after_help = "Example:\n  sharemesh ledger channels --json")]
    Channels,
    /// Show what moved on the account; every line names the record that shows it
    #[command(after_help = STATEMENT_EXAMPLES)]
    Statement {
        /// First epoch, or a day such as 2026-11-21 [default: the first]
        #[arg(long, value_name = "EPOCH")]
        from: Option<String>,
        /// Last epoch, or a day [default: the present]
        #[arg(long, value_name = "EPOCH")]
        to: Option<String>,
        /// Print comma-separated values with whole ids
        #[arg(long)]
        csv: bool,
    },
    /// Show a receipt with its terms, split and jobs, or a step, a deposit, a channel or a job
    #[command(
        after_help = "Example:\n  sharemesh ledger show 3f9a    (the beginning of an id is enough, except of a job's)"
    )]
    Show {
        /// The id, or its beginning
        id: String,
    },
    /// Write the whole ledger of the stopped node to a file
    #[command(after_help = transport::EXPORT_EXAMPLES)]
    Export {
        /// The file; one that was written before is continued
        file: PathBuf,
    },
    /// Rebuild a ledger from a file in an empty data folder
    #[command(after_help = transport::IMPORT_EXAMPLES)]
    Import {
        /// The file
        file: PathBuf,
    },
    /// Check every signature and every sum again
    #[command(after_help = "Example:\n  sharemesh ledger verify && echo sound")]
    Verify,
    /// Compute a checkpoint again from what an issuer serves, and compare
    #[command(after_help = "Examples:\n  sharemesh ledger audit\n  sharemesh ledger audit --epoch 20 --json")]
    Audit {
        /// The epoch whose checkpoint is computed; the newest unless given
        #[arg(long, value_name = "N")]
        epoch: Option<u32>,
    },
    /// Forget the lines of channels that were over long ago; what they moved stays
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune {
        /// Keep them for so many epochs after their end [default: as `up` was told, 30]
        #[arg(long, value_name = "EPOCHS")]
        keep_epochs: Option<u32>,
    },
    /// Close idle channels and redeem receipts now instead of within the minute
    #[command(after_help = "Example:\n  sharemesh ledger settle")]
    Settle,
}

pub(super) async fn run(command: LedgerCommand, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    // A ledger is moved while no node uses it.
    if let LedgerCommand::Export { file } = &command {
        return transport::export(file, global, terminal);
    }
    if let LedgerCommand::Import { file } = &command {
        return transport::import(file, global, terminal);
    }
    let client = global.client()?;
    match command {
        LedgerCommand::Export { .. } | LedgerCommand::Import { .. } => {}
        LedgerCommand::Balance => {
            let balance: BalanceView = client.get("ledger/balance").await?;
            terminal.show(&balance, describe_balance)?;
        }
        LedgerCommand::Receipts { limit, before } => {
            let limit = limit.to_string();
            let mut query = vec![("limit", limit.as_str())];
            query.extend(before.as_deref().map(|before| ("before", before)));
            let receipts: ReceiptsView = client.get_with("ledger/receipts", &query).await?;
            if receipts.receipts.is_empty() {
                terminal.message("No receipts yet.");
            }
            terminal.show(&receipts, describe_receipts)?;
            if let Some(next) = receipts.next {
                terminal.message(&format!("More with: sharemesh ledger receipts --before {next}"));
            }
        }
        LedgerCommand::Show { id } => {
            check_id(&id)?;
            return show(&client, &id, terminal).await;
        }
        LedgerCommand::Channels => {
            let channels: Vec<LedgerChannelView> = client.get("ledger/channels").await?;
            if channels.is_empty() {
                terminal.message("No channels yet.");
            }
            terminal.show(&channels, |channels| statement::describe_channels(channels))?;
        }
        LedgerCommand::Statement { from, to, csv } => {
            let period = [("from", from.as_deref()), ("to", to.as_deref())];
            let query: Vec<_> = period.into_iter().filter_map(|(name, at)| Some((name, at?))).collect();
            let view: StatementView = client.get_with("ledger/statement", &query).await?;
            let words = if csv { statement::csv } else { statement::describe_statement };
            terminal.show(&view, words)?;
        }
        LedgerCommand::Verify => return verify(&client.post("ledger/verify", &()).await?, terminal),
        LedgerCommand::Audit { epoch } => {
            return audit(&client.post("ledger/audit", &AuditBody { epoch }).await?, terminal);
        }
        LedgerCommand::Prune { keep_epochs } => {
            terminal.message("Pruning the journal; the node goes on meanwhile.");
            let pruned: PruneView = client.post("ledger/prune", &PruneBody { keep_epochs }).await?;
            terminal.show(&pruned, describe_pruned)?;
        }
        LedgerCommand::Settle => {
            let settled: SettleView = client.post("ledger/settle", &()).await?;
            terminal.show(&settled, |settled| {
                format!(
                    "{} closed, {} redeemed, {} still open",
                    settled.closed, settled.redeemed, settled.open
                )
            })?;
        }
    }
    Ok(())
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  sharemesh ledger prune
  sharemesh ledger prune --keep-epochs 0

Receipts, job records and proofs of channels that ended, grace included, are gone for good afterwards: `ledger statement`
has one line for each such channel, epoch and kind, without a receipt behind it that could be shown. To keep everything,
stop the node and `sharemesh ledger export FILE` first. The node prunes by itself once a day; what it does as an issuer
is never pruned.";

fn describe_pruned(pruned: &PruneView) -> String {
    facts(&[
        ("channels over before epoch", pruned.before.to_string()),
        ("records", format!("{} of {} are gone", pruned.dropped, pruned.records)),
        ("sums in their place", pruned.folded.to_string()),
        (
            "bytes",
            format!("{} before, {} now, beside the newest segment", pruned.bytes_before, pruned.bytes_after),
        ),
    ])
}

const STATEMENT_EXAMPLES: &str = "\
Examples:
  sharemesh ledger statement
  sharemesh ledger statement --from 2026-11-01 --to 2026-11-30 --csv > november.csv

Each line names a deposit, a step or a receipt: `sharemesh ledger show ID` follows it, and from a receipt its jobs.";

/// Shows a receipt, or whatever else has such an id.
async fn show(client: &Client, id: &str, terminal: &Terminal) -> anyhow::Result<()> {
    let receipt: Result<ReceiptDetailView, Failure> = client.get(&format!("ledger/receipts/{id}")).await;
    match receipt {
        Ok(detail) => Ok(terminal.show(&detail, describe_detail)?),
        Err(failure) if failure.kind == FailureKind::NotFound => {
            let entry: EntryView = client.get(&format!("ledger/entries/{id}")).await?;
            Ok(terminal.show(&entry, statement::describe_entry)?)
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Refuses what would otherwise become part of an address.
pub(super) fn check_id(id: &str) -> Result<(), Failure> {
    if (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "`{id}` is not the id of a receipt or its beginning: write hexadecimal digits"
    )))
}

fn verify(view: &VerifyView, terminal: &Terminal) -> anyhow::Result<()> {
    terminal.show(view, |view| {
        let mark = |ok: bool| if ok { "ok  " } else { "BAD " };
        let mut text: String = view
            .checks
            .iter()
            .map(|check| format!("{}{}: {}\n", mark(check.ok), check.name, check.detail))
            .collect();
        text += &format!(
            "{}{} records, {} signatures, {} receipts checked in {} ms\n",
            mark(view.ok),
            view.records,
            view.signatures,
            view.receipts,
            view.took_ms
        );
        text
    })?;
    if view.ok {
        return Ok(());
    }
    let problems =
        if view.problems.is_empty() { "see the checks above".to_owned() } else { view.problems.join("; ") };
    Err(Failure::internal(format!(
        "the ledger does not hold: {problems}. Keep the data folder as it is and ask for help"
    ))
    .into())
}

fn audit(view: &AuditView, terminal: &Terminal) -> anyhow::Result<()> {
    terminal.show(view, describe_audit)?;
    if view.ok {
        return Ok(());
    }
    Err(Failure::internal(format!(
        "the checkpoint of epoch {} does not hold: {}. Keep the data folder as it is, and tell the other owners",
        view.epoch,
        view.differences.join("; ")
    ))
    .into())
}

fn describe_audit(view: &AuditView) -> String {
    let tree = |tree: &crate::api::views::TreeView| {
        let agrees = if tree.root == tree.stated { "root agrees" } else { "ROOT DIFFERS" };
        format!("{} ({agrees}), cash {}, earned {}, held {}", tree.count, tree.cash, tree.earned, tree.held)
    };
    let mut text = facts(&[
        ("checkpoint", format!("{} of epoch {}", view.checkpoint, view.epoch)),
        ("signed by", format!("{} issuers", view.signatures)),
        ("deposited", view.deposited.to_string()),
        ("withdrawn", view.withdrawn.to_string()),
        ("accounts", tree(&view.accounts)),
        ("channels", tree(&view.channels)),
        (
            "own account",
            view.own.as_ref().map_or("not in it".to_owned(), |own| {
                format!("cash {}, earned {}, held {}, {} steps", own.cash, own.earned, own.held, own.steps)
            }),
        ),
        ("served by", format!("{}, in {} pages", view.issuer.as_deref().unwrap_or("nobody"), view.pages)),
    ]);
    for other in &view.distrusted {
        let kind = if other.wrong { "WRONG" } else { "SKIPPED" };
        text += &format!("{kind}  issuer {}: {}\n", other.issuer, other.why);
    }
    for difference in &view.differences {
        text += &format!("DIFFERS  {difference}\n");
    }
    text
}

fn describe_balance(balance: &BalanceView) -> String {
    let mut text = facts(&[
        ("account", balance.account.clone()),
        (
            "available",
            format!(
                "{} (cash {}, earned {})",
                balance.available, balance.cash.credits, balance.earned.credits
            ),
        ),
        ("held", format!("{} in {} open channels", balance.held, balance.channels_out)),
        (
            "pending",
            format!("{} not redeemed yet, from {} open channels", balance.pending, balance.channels_in),
        ),
    ]);
    if let Some(StepView { kind, amount, id }) = &balance.under_way {
        let step =
            format!("{kind} of {amount}, signed, and not confirmed by the issuers yet ({})", short(id));
        text += &facts(&[("under way", step)]);
    }
    let Some(books) = &balance.books else { return text };
    text += "\nBooks of the issuer\n";
    text += &facts(&[
        ("deposited", books.deposited.to_string()),
        ("withdrawn", books.withdrawn.to_string()),
        ("available", books.available.to_string()),
        ("held", books.held.to_string()),
        ("conserved", if books.conserved { "yes" } else { "NO" }.to_owned()),
        ("budget", format!("{} left of {}", books.budget_left.credits, books.budget)),
    ]);
    let row = |book: &crate::api::views::BookView| {
        vec![
            short(&book.account).to_owned(),
            book.role.clone(),
            book.cash.credits.clone(),
            book.earned.credits.clone(),
            book.held.credits.clone(),
        ]
    };
    let rows: Vec<_> = books.accounts.iter().map(row).collect();
    text + &table(&["ACCOUNT", "ROLE", "CASH", "EARNED", "HELD"], &rows)
}

fn describe_receipts(receipts: &ReceiptsView) -> String {
    let row = |receipt: &ReceiptView| {
        let peer = if receipt.direction == "paid" { &receipt.payee } else { &receipt.payer };
        vec![
            short(&receipt.id).to_owned(),
            receipt.direction.clone(),
            short(peer).to_owned(),
            model(&receipt.model).to_owned(),
            receipt.cumulative.credits.clone(),
            receipt.tokens_in.to_string(),
            receipt.tokens_out.to_string(),
            if receipt.cosigned { "both" } else { "payer" }.to_owned(),
            if receipt.redeemed { "yes" } else { "no" }.to_owned(),
        ]
    };
    let rows: Vec<_> = receipts.receipts.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    table(
        &["RECEIPT", "DIRECTION", "PEER", "MODEL", "CREDITS SO FAR", "IN", "OUT", "SIGNED", "REDEEMED"],
        &rows,
    )
}

fn describe_detail(detail: &ReceiptDetailView) -> String {
    let receipt = &detail.receipt;
    let signed = |ok: bool| if ok { "verifies" } else { "DOES NOT VERIFY" };
    let mut text = facts(&[
        ("receipt", receipt.id.clone()),
        ("channel", format!("{}, receipt {} in it", receipt.channel, receipt.seq)),
        ("payer", format!("{} (signature {})", receipt.payer, signed(detail.payer_signature))),
        ("payee", format!("{} (signature {})", receipt.payee, signed(detail.payee_signature))),
        ("model", receipt.model.clone()),
        ("terms", format!("{} at {} credits per million tokens in/out", detail.terms, price(&detail.price))),
        ("so far", receipt.cumulative.to_string()),
        (
            "usage",
            format!("{} calls, {} tokens in, {} out", receipt.calls, receipt.tokens_in, receipt.tokens_out),
        ),
        ("epoch", receipt.epoch.to_string()),
        ("redeemed", if receipt.redeemed { "yes" } else { "not yet" }.to_owned()),
    ]);
    for line in &detail.split {
        text += &format!(
            "split  {} {} credits to {} ({} bps)\n",
            line.role,
            line.amount.credits,
            short(&line.account),
            line.bps
        );
    }
    for job in &detail.jobs {
        text += &format!(
            "job  {} {}: {} in, {} out, {}\n",
            job.job, job.state, job.tokens_in, job.tokens_out, job.price
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hexadecimal_digits_reach_an_address() {
        assert!(check_id("3f9A").is_ok());
        assert!(
            check_id("").is_err() && check_id("../status").is_err() && check_id(&"a".repeat(65)).is_err()
        );
    }

    #[test]
    fn a_ledger_that_does_not_hold_fails_the_command() {
        let (terminal, data, _) = Terminal::kept(false);
        let view = VerifyView {
            problems: vec!["receipt ab has a bad signature".to_owned()],
            ..VerifyView::default()
        };

        let error = verify(&view, &terminal).expect_err("does not hold");

        assert!(error.to_string().contains("receipt ab"), "{error}");
        assert!(data.text().starts_with("BAD"));
        assert!(verify(&VerifyView { ok: true, ..VerifyView::default() }, &terminal).is_ok());
    }
}
