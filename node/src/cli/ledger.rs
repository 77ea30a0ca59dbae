//! `sharemesh ledger`: what the node's own store says of money.

use clap::Subcommand;

use super::Global;
use super::status::price;
use super::terminal::{Terminal, facts, model, short, table};
use crate::api::views::{
    AuditBody, AuditView, BalanceView, ReceiptDetailView, ReceiptView, ReceiptsView, SettleView, VerifyView,
};
use crate::exit::Failure;

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
    /// Show one receipt with its terms, split and jobs
    #[command(after_help = "Example:\n  sharemesh ledger show 3f9a    (the beginning of an id is enough)")]
    Show {
        /// The receipt's id, or its beginning
        id: String,
    },
    /// Check every signature and every sum again
    #[command(after_help = "Example:\n  sharemesh ledger verify && echo sound")]
    Verify,
    /// Compute a checkpoint again from what the issuer serves, and compare
    #[command(after_help = "Examples:\n  sharemesh ledger audit\n  sharemesh ledger audit --epoch 20 --json")]
    Audit {
        /// The epoch whose checkpoint is computed; the newest unless given
        #[arg(long, value_name = "N")]
        epoch: Option<u32>,
    },
    /// Close idle channels and redeem receipts now instead of within the minute
    #[command(after_help = "Example:\n  sharemesh ledger settle")]
    Settle,
}

pub(super) async fn run(command: LedgerCommand, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
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
            let detail: ReceiptDetailView = client.get(&format!("ledger/receipts/{id}")).await?;
            terminal.show(&detail, describe_detail)?;
        }
        LedgerCommand::Verify => return verify(&client.post("ledger/verify", &()).await?, terminal),
        LedgerCommand::Audit { epoch } => {
            return audit(&client.post("ledger/audit", &AuditBody { epoch }).await?, terminal);
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

/// Refuses what would otherwise become part of an address.
fn check_id(id: &str) -> Result<(), Failure> {
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
        ("pages", view.pages.to_string()),
    ]);
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
