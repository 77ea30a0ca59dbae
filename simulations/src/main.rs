//! Runs simulations: `smoke` as the tests do, `run` for one seed.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use simulations::scenario::{Report, Setting, run};

/// Seeds of the smoke test: fixed, so that a change that breaks one is seen at once.
const SMOKE_SEEDS: [u64; 5] = [1, 2, 3, 4, 5];

/// Seeds of the smoke test with four issuers.
const QUORUM_SEEDS: [u64; 2] = [6, 7];

#[derive(Parser)]
#[command(about = "Thousands of protocol nodes in virtual time, from one seed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs seven fixed seeds, two of them with four issuers, each twice, and checks that all that must hold holds.
    Smoke {
        /// Prints the reports as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Runs one seed.
    Run(RunArgs),
    /// Runs seeds one after another until one fails.
    Sweep {
        /// First seed.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Number of seeds.
        #[arg(long, default_value_t = 100)]
        count: u64,
    },
}

#[derive(Args)]
struct RunArgs {
    /// Decides everything that is left to chance.
    #[arg(long)]
    seed: u64,
    /// Issuers: 1, 4, 7 and so on.
    #[arg(long)]
    issuers: Option<usize>,
    /// Machines that serve.
    #[arg(long)]
    providers: Option<usize>,
    /// Machines that ask.
    #[arg(long)]
    consumers: Option<usize>,
    /// Jobs of each that asks.
    #[arg(long)]
    jobs: Option<usize>,
    /// Length of the troubled time in milliseconds.
    #[arg(long)]
    trouble_ms: Option<u64>,
    /// Messages lost in it, of 1,000.
    #[arg(long)]
    loss: Option<u64>,
    /// Crashes, cuts and engine faults in it.
    #[arg(long)]
    faults: Option<usize>,
    /// Payments and withdrawals in it.
    #[arg(long)]
    orders: Option<usize>,
    /// Length of an epoch in virtual milliseconds.
    #[arg(long)]
    epoch_ms: Option<u64>,
    /// Prints all that happens to this host.
    #[arg(long)]
    watch: Option<usize>,
}

impl RunArgs {
    fn setting(&self) -> Setting {
        let smoke = Setting::smoke(self.seed);
        Setting {
            issuers: self.issuers.unwrap_or(smoke.issuers),
            providers: self.providers.unwrap_or(smoke.providers),
            consumers: self.consumers.unwrap_or(smoke.consumers),
            jobs: self.jobs.unwrap_or(smoke.jobs),
            trouble_ms: self.trouble_ms.unwrap_or(smoke.trouble_ms),
            loss_permille: self.loss.unwrap_or(smoke.loss_permille),
            faults: self.faults.unwrap_or(smoke.faults),
            orders: self.orders.unwrap_or(smoke.orders),
            epoch_ms: self.epoch_ms.unwrap_or(smoke.epoch_ms),
            ..smoke
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    let passed = match Cli::parse().command {
        Command::Smoke { json } => smoke(&mut out, json)?,
        Command::Run(args) => {
            let report = run(&args.setting(), args.watch);
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
            report.findings.is_empty()
        }
        Command::Sweep { from, count } => sweep(&mut out, from, count)?,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn smoke(out: &mut impl std::io::Write, json: bool) -> anyhow::Result<bool> {
    let mut reports = Vec::new();
    let settings = SMOKE_SEEDS.map(Setting::smoke).into_iter().chain(QUORUM_SEEDS.map(Setting::four_issuers));
    for setting in settings {
        let mut report = run(&setting, None);
        if run(&setting, None).trace != report.trace {
            report.findings.push("the same seed ran in two ways".to_owned());
        }
        if !json {
            print_line(out, &setting, &report)?;
        }
        reports.push(report);
    }
    let failed = reports.iter().filter(|report| !report.findings.is_empty()).count();
    if json {
        writeln!(out, "{}", serde_json::to_string(&reports)?)?;
    } else {
        writeln!(out, "{} passed, {failed} failed", reports.len() - failed)?;
    }
    Ok(failed == 0)
}

fn print_line(out: &mut impl std::io::Write, setting: &Setting, report: &Report) -> anyhow::Result<()> {
    let (jobs, done, failed) = report.jobs;
    let verdict = if report.findings.is_empty() { "passed" } else { "FAILED" };
    writeln!(
        out,
        "seed {}: {verdict}, {jobs} jobs, {done} done, {failed} not, {} inputs, trace {}",
        report.seed,
        report.inputs,
        &report.trace[..16]
    )?;
    for finding in &report.findings {
        writeln!(out, "  {finding}")?;
    }
    if !report.findings.is_empty() {
        writeln!(out, "  {}", setting.reproduce())?;
    }
    Ok(())
}

fn sweep(out: &mut impl std::io::Write, from: u64, count: u64) -> anyhow::Result<bool> {
    for seed in from..from + count {
        let setting = Setting::smoke(seed);
        let report = run(&setting, None);
        if !report.findings.is_empty() {
            print_line(out, &setting, &report)?;
            return Ok(false);
        }
    }
    writeln!(out, "{count} passed, 0 failed")?;
    Ok(true)
}
