//! `cargo xtask bench ledger`: what records cost to sign, check, merge and keep, beside what the machine can do at best.

mod books;
mod journal;
mod opens;
mod pruned;
mod rates;
mod reconcile;
mod records;
mod reopen;
mod replay;

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use self::books::Books;
use self::journal::{Journal, Ratios};
use self::opens::Opens;
use self::pruned::PrunedChannels;
use self::rates::Rates;
use self::reconcile::{BySize, Reconcile};
use self::reopen::Reopen;
use super::table::{Machine, Table, target};

pub(super) use self::replay::{Arguments as ReplayArguments, run as replay};

/// How much to measure.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Prints one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// A tenth of everything: to see that it works, not for numbers that are quoted
    #[arg(long)]
    quick: bool,
}

/// The result; its first keys are what others rely on.
#[derive(Debug, Serialize)]
struct Report {
    verify_per_s: f64,
    verify_ratio: f64,
    journal_ratio: f64,
    opens_per_s: Opens,
    reopen_ms: f64,
    reopen_rss_mb: f64,
    bytes_per_channel: f64,
    reconcile_bytes: BySize,
    reconcile_ratio: BySize,
    rates: Rates,
    journal: Journal,
    reopen: Reopen,
    reconcile: Reconcile,
    books: Books,
    machine: Machine,
}

/// Measures and prints.
pub(super) async fn run(program: &Path, arguments: &Arguments) -> Result<()> {
    let part = if arguments.quick { 10 } else { 1 };
    let report = measure(program, part).await?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.table().print();
    }
    Ok(())
}

async fn measure(program: &Path, part: usize) -> Result<Report> {
    let machine = Machine::here();
    super::say("receipts, on one core");
    let rates = rates::measure(20_000 / part)?;
    super::say("the journal");
    let journal = journal::measure(600 / part)?;
    super::say("an issuer, and four");
    let opens_per_s = opens::measure(32 / part.min(8)).await?;
    let records = 1_000_000 / part;
    super::say(&format!("two sets of {records} records"));
    let reconcile = reconcile::measure(records)?;
    let books = books::measure(100_000 / part, 10)?;
    let channels = 100_000 / part;
    super::say(&format!("a provider with {channels} channels (making them takes a while)"));
    let reopen = reopen::measure(program, channels, 5).await?;
    Ok(Report {
        verify_per_s: rates.verified_per_s,
        verify_ratio: rates.verify_ratio,
        journal_ratio: journal.ratio,
        opens_per_s,
        reopen_ms: reopen.api_ms.p50,
        reopen_rss_mb: reopen.rss_mb,
        bytes_per_channel: reopen.journal_bytes_per_channel + reopen.index_bytes_per_channel,
        reconcile_bytes: reconcile.bytes,
        reconcile_ratio: reconcile.ratio,
        rates,
        journal,
        reopen,
        reconcile,
        books,
        machine,
    })
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new(&self.machine);
        self.add_rates(&mut table);
        self.add_journal(&mut table);
        self.add_reopen(&mut table);
        self.add_reconcile(&mut table);
        let Books { accounts, closing_ms } = &self.books;
        table.times(&format!("closing an epoch of {accounts} accounts"), closing_ms, "");
        table
    }

    fn add_rates(&self, table: &mut Table) {
        let rates = &self.rates;
        let per_s = |rate: f64| format!("{rate:.0} / s");
        let runs = rates.receipts;
        table.number(
            "floor: ed25519 `verify_strict` of as many bytes",
            &per_s(rates.bare_verify_per_s),
            runs,
            "",
        );
        table.number("floor: ed25519 `sign` of as many bytes", &per_s(rates.bare_sign_per_s), runs, "");
        table.number("receipts signed", &per_s(rates.signed_per_s), runs, "");
        let goal = target(">= 0.80 of the floor / 2", rates.verify_ratio >= 0.8);
        table.number("receipts checked, two signatures each", &per_s(rates.verified_per_s), runs, "");
        table.number("  by the floor for two", &format!("{:.3}", rates.verify_ratio), runs, &goal);
        table.number("receipts merged by the payer", &per_s(rates.merged_per_s), runs, "");
    }

    fn add_journal(&self, table: &mut Table) {
        let Journal { batch, raw_ms, stored_ms, stored_per_s, ratios, control, bytes_ratio, .. } =
            &self.journal;
        table.times(&format!("floor: append and fdatasync of {batch} receipts"), raw_ms, "");
        let half = |ratios: &Ratios| format!("{:.3} ({:.3} to {:.3})", ratios.p50, ratios.p25, ratios.p75);
        let is_told = self.journal.is_told();
        let goal = if is_told { "alike" } else { "NOT ALIKE: this disk says nothing now" };
        table.number("  by the same in another file (middle half)", &half(control), control.turns, goal);
        table.times("receipts stored, as many in a batch", stored_ms, "");
        let runs = stored_ms.runs;
        table.number("  that is", &format!("{stored_per_s:.0} / s"), runs, "");
        let goal =
            if is_told { target(">= 0.90", ratios.p50 >= 0.9) } else { ">= 0.90: not told".to_owned() };
        table.number("  floor by it (middle half)", &half(ratios), ratios.turns, &goal);
        table.number("  bytes by those of the floor", &format!("{bytes_ratio:.3}"), 1, "");
        let Opens { n1, n4, opened } = &self.opens_per_s;
        table.number("channels opened by one issuer, n = 1", &format!("{n1:.0} / s"), *opened, "");
        table.number("channels opened by four on this machine, n = 4", &format!("{n4:.0} / s"), *opened, "");
    }

    fn add_reconcile(&self, table: &mut Table) {
        let Reconcile { records, record_bytes, bytes, ratio, rounds, runs } = &self.reconcile;
        table.number("a receipt with both signatures", &format!("{record_bytes} bytes"), 1, "");
        let sizes = [
            (10, bytes.d10, ratio.d10, rounds.d10),
            (100, bytes.d100, ratio.d100, rounds.d100),
            (1000, bytes.d1000, ratio.d1000, rounds.d1000),
        ];
        for (differing, bytes, ratio, rounds) in sizes {
            let what = format!("comparing {records} records of which {differing} differ, most bytes");
            table.number(&what, &format!("{bytes:.0}"), *runs, "");
            // Twice the difference and 1 KB may travel; once it does as the records themselves.
            let size = f64::from(differing) * f64::from(u32::try_from(*record_bytes).unwrap_or(u32::MAX));
            let goal = target("<= 1 + 1 KB", bytes <= size + 1000.0);
            table.number("  by the bytes of those records", &format!("{ratio:.3}"), *runs, &goal);
            table.number("  questions", &format!("{rounds:.0}"), *runs, "");
        }
    }

    fn add_reopen(&self, table: &mut Table) {
        let Reopen { channels, api_ms, index_ms, rss_mb, peak_mb, core, .. } = &self.reopen;
        let Reopen { journal_bytes_per_channel, index_bytes_per_channel, .. } = &self.reopen;
        let what = format!("start with {channels} channels until the API answers");
        table.times(&what, api_ms, &target("<= 1 s", api_ms.p50 <= 1_000.0));
        let goal = target("<= 150 MB", *rss_mb <= 150.0);
        table.number("  resident then", &format!("{rss_mb:.0} MB"), api_ms.runs, &goal);
        table.number("  at most until then", &format!("{peak_mb:.0} MB"), api_ms.runs, "");
        table.times("  until the index answers too", index_ms, "");
        table.number(
            "  floor: reading the journal and its hashes",
            &format!("{:.0} ms", core.checked_ms),
            1,
            "",
        );
        table.number("  of it following the journal", &format!("{:.0} ms", core.ms), 1, "");
        let bytes = self.reopen.core_bytes_per_channel;
        let goal = target("<= 500", bytes <= 500.0);
        table.number("  bytes of a channel in the core", &format!("{bytes:.0}"), *channels, &goal);
        let bytes = journal_bytes_per_channel + index_bytes_per_channel;
        let goal = target("<= 4,000", bytes <= 4_000.0);
        table.number("bytes of a channel on disk", &format!("{bytes:.0}"), *channels, &goal);
        let parts = format!("{journal_bytes_per_channel:.0} + {index_bytes_per_channel:.0}");
        table.number("  journal + index", &parts, *channels, "");
        let PrunedChannels { journal_bytes_before, journal_bytes, index_bytes, .. } = &self.reopen.pruned;
        let bytes = journal_bytes + index_bytes;
        let goal = target("<= 2,000", bytes <= 2_000.0);
        table.number("  when it is over and pruned", &format!("{bytes:.0}"), *channels, &goal);
        let parts = format!("{journal_bytes:.0} + {index_bytes:.0}");
        table.number(
            &format!("  journal + index, after {journal_bytes_before:.0} in the journal"),
            &parts,
            *channels,
            "",
        );
    }
}
