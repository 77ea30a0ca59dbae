//! `sharemesh ledger channels`, `statement` and what `show` follows beside receipts.

use crate::api::views::{EntryView, LedgerChannelView, StatementLine, StatementView};
use crate::cli::terminal::{facts, model, short, table};

pub(super) fn describe_channels(channels: &[LedgerChannelView]) -> String {
    let row = |channel: &LedgerChannelView| {
        vec![
            short(&channel.id).to_owned(),
            channel.side.clone(),
            channel.state.clone(),
            short(&channel.partner).to_owned(),
            model(&channel.model).to_owned(),
            channel.cap.credits.clone(),
            channel.room.credits.clone(),
            channel.paid.credits.clone(),
            channel.redeemed.credits.clone(),
            channel.receipt.as_deref().map(short).unwrap_or_default().to_owned(),
        ]
    };
    let rows: Vec<_> = channels.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    table(
        &["CHANNEL", "SIDE", "STATE", "PARTNER", "MODEL", "CAP", "ROOM", "PAID", "REDEEMED", "RECEIPT"],
        &rows,
    )
}

pub(super) fn describe_statement(statement: &StatementView) -> String {
    let row = |line: &StatementLine| {
        let amount = |nano: u64, credits: &str| if nano == 0 { String::new() } else { credits.to_owned() };
        let id = |id: &Option<String>| id.as_deref().map(short).unwrap_or_default().to_owned();
        vec![
            line.epoch.to_string(),
            line.kind.clone(),
            amount(line.credit.nano, &line.credit.credits),
            amount(line.debit.nano, &line.debit.credits),
            id(&line.partner),
            id(&line.record),
            id(&line.channel),
        ]
    };
    let rows: Vec<_> = statement.lines.iter().map(row).collect();
    let mut text = facts(&[
        ("account", statement.account.clone()),
        ("epochs", format!("{} to {}", statement.from, statement.to)),
        ("before", statement.opening.to_string()),
    ]);
    if !rows.is_empty() {
        text += &table(&["EPOCH", "WHAT", "IN", "OUT", "PARTNER", "RECORD", "CHANNEL"], &rows);
    }
    text + &facts(&[("after", statement.closing.to_string())])
}

/// Returns the lines as comma-separated values, ids whole, amounts in credits.
pub(super) fn csv(statement: &StatementView) -> String {
    let mut text = "epoch,kind,credit,debit,partner,record,channel\n".to_owned();
    for line in &statement.lines {
        let field = |id: &Option<String>| id.clone().unwrap_or_default();
        text += &format!(
            "{},{},{},{},{},{},{}\n",
            line.epoch,
            line.kind,
            line.credit.credits,
            line.debit.credits,
            field(&line.partner),
            field(&line.record),
            field(&line.channel)
        );
    }
    text
}

pub(super) fn describe_entry(entry: &EntryView) -> String {
    let mut text = facts(&[(entry.kind.as_str(), entry.id.clone())]);
    for fact in &entry.facts {
        text += &facts(&[(fact.name.as_str(), fact.value.clone())]);
    }
    for fact in &entry.follow {
        text += &format!("follow  {} {}\n", fact.name, fact.value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_for_a_spreadsheet_has_whole_ids_and_plain_numbers() {
        let line = StatementLine {
            epoch: 3,
            kind: "bought".to_owned(),
            credit: 0.into(),
            debit: 1_500_000_000.into(),
            record: Some("ab".repeat(32)),
            ..StatementLine::default()
        };
        let statement = StatementView { lines: vec![line], ..StatementView::default() };

        let expected =
            format!("epoch,kind,credit,debit,partner,record,channel\n3,bought,0,1.5,,{},\n", "ab".repeat(32));
        assert_eq!(csv(&statement), expected);
    }
}
