//! Runs simulations: `run` plays a scenario, `sweep` many seeds of one, `smoke` what the tests of every change run.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use simulations::html;
use simulations::play::{Progress, Watch, play, run};
use simulations::report::Report;
use simulations::scenario::{self, SHIPPED, Scenario};
use simulations::shrink::Failing;

use sweep::Until;

mod comparing;
mod sweep;

/// What the smoke test runs: fixed seeds, so that a change that breaks one is seen at once.
const SMOKE: [(&str, &[u64]); 2] = [("smoke", &[1, 2, 3, 4, 5]), ("smoke-four-issuers", &[6, 7])];

/// Seconds between two lines about how far a run is.
const TELL_S: u64 = 5;

#[derive(Parser)]
#[command(about = "Thousands of protocol nodes in virtual time, from one seed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays a scenario and checks that all that must hold holds.
    Run(RunArgs),
    /// Plays a scenario with many seeds, on all cores, and says how to repeat each that fails.
    Sweep(SweepArgs),
    /// Plays seeds that nobody has chosen, of every scenario in turn, on all cores, and says how to repeat each that fails.
    Nightly {
        /// How many runs in all, at least one of each scenario.
        #[arg(long, default_value_t = 1_000)]
        runs: u64,
        /// The first seed; a random one if not given.
        #[arg(long)]
        from: Option<u64>,
    },
    /// Plays two scenarios with the same seeds, or reads two files that `sweep --json` wrote, and says what got better or
    /// worse by more than the seeds differ among themselves.
    Compare {
        /// A scenario, or a file ending in `.json`.
        baseline: String,
        /// Another one.
        current: String,
        /// How many seeds of each scenario.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// Prints one list as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Cuts a failing run down, to fewer machines, fewer faults and less time, while the same rule is broken.
    Shrink(ShrinkArgs),
    /// Lists the scenarios that come with the program.
    List,
    /// Plays seven fixed seeds, two of them with four issuers, each twice; both must be the same.
    Smoke {
        /// Prints the reports as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct RunArgs {
    /// A scenario: a file, or the name of one that comes with the program.
    scenario: String,
    /// Decides everything that is left to chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Machines in all, besides the issuers: groups and faults grow or shrink in proportion.
    #[arg(long)]
    nodes: Option<usize>,
    /// Prints one object as JSON.
    #[arg(long)]
    json: bool,
    /// Prints on standard error all that happens to the host at this place.
    #[arg(long)]
    watch: Option<usize>,
    /// Writes a page with charts, which needs nothing else, to this file.
    #[arg(long)]
    html: Option<std::path::PathBuf>,
}

#[derive(Args)]
struct SweepArgs {
    /// A scenario: a file, or the name of one that comes with the program.
    scenario: String,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Machines in all, besides the issuers.
    #[arg(long)]
    nodes: Option<usize>,
    /// Plays no more seeds when one has failed.
    #[arg(long)]
    until_failed: bool,
    /// Prints one object as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ShrinkArgs {
    /// A scenario: a file, or the name of one that comes with the program.
    scenario: String,
    /// The seed with which it fails.
    #[arg(long)]
    seed: u64,
    /// The rule that must stay broken; the first one that is, if not given.
    #[arg(long)]
    rule: Option<String>,
    /// Most runs.
    #[arg(long, default_value_t = 500)]
    runs: u64,
    /// Where the smaller scenario is written; standard output if not given.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
}

/// What `run --json` prints: the report, and what it took.
#[derive(Serialize)]
struct Timed<'a> {
    scenario: &'a str,
    wall_s: f64,
    /// Most memory that the process had at once, in millions of bytes; nothing where the system does not say.
    peak_rss_mb: Option<u64>,
    #[serde(flatten)]
    report: &'a Report,
}

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    match execute(&mut out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn execute(out: &mut impl Write) -> anyhow::Result<bool> {
    match Cli::parse().command {
        Command::Run(args) => run_one(out, &args),
        Command::Sweep(args) => {
            let scenario = read(&args.scenario, args.nodes)?;
            let seeds = args.from..args.from.saturating_add(args.seeds);
            let until = if args.until_failed { Until::Failed } else { Until::All };
            sweep::sweep(out, &scenario, (seeds, until), args.json, &|seed| {
                line(&args.scenario, seed, args.nodes)
            })
        }
        Command::Nightly { runs, from } => nightly(out, runs, from),
        Command::Compare { baseline, current, seeds, json } => {
            comparing::compare(out, [&baseline, &current], seeds, json)
        }
        Command::Shrink(args) => shrink(out, &args),
        Command::List => {
            for (name, text) in SHIPPED {
                writeln!(out, "{name:20} {}", Scenario::parse(text).context(name)?.about)?;
            }
            Ok(true)
        }
        Command::Smoke { json } => smoke(out, json),
    }
}

fn read(path: &str, nodes: Option<usize>) -> anyhow::Result<Scenario> {
    let scenario = scenario::read(path)?;
    nodes.map_or(Ok(scenario.clone()), |nodes| scenario.with_nodes(nodes))
}

/// Returns the line that repeats a run.
fn line(path: &str, seed: u64, nodes: Option<usize>) -> String {
    let nodes = nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
    format!("cargo run --release -p simulations -- run {path} --seed {seed}{nodes}")
}

fn run_one(out: &mut impl Write, args: &RunArgs) -> anyhow::Result<bool> {
    let scenario = read(&args.scenario, args.nodes)?;
    let began = Instant::now();
    let mut told = 0;
    let mut samples = Vec::new();
    let watch = Watch { host: args.watch, samples: args.html.is_some().then_some(&mut samples) };
    let report = play(&scenario, args.seed, watch, &mut |progress| {
        let seconds = began.elapsed().as_secs();
        if seconds >= told + TELL_S {
            told = seconds;
            tell(progress, seconds);
        }
    });
    let wall_s = began.elapsed().as_millis() as f64 / 1000.0;
    if let Some(path) = &args.html {
        let page = html::page(&args.scenario, &scenario, &report, &samples);
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        let timed = Timed { scenario: &args.scenario, wall_s, peak_rss_mb: peak_rss_mb(), report: &report };
        writeln!(out, "{}", serde_json::to_string(&timed)?)?;
    } else {
        print(out, &scenario, &report, wall_s)?;
        if !report.passed() {
            writeln!(out, "\nrepeat it:\n  {}", line(&args.scenario, args.seed, args.nodes))?;
        }
    }
    Ok(report.passed())
}

fn nightly(out: &mut impl Write, runs: u64, from: Option<u64>) -> anyhow::Result<bool> {
    let from = from.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32);
    let each = runs.div_ceil(SHIPPED.len() as u64).max(1);
    let mut all = true;
    for (name, _) in SHIPPED {
        let scenario = scenario::read(name)?;
        writeln!(out, "{name}, seeds {from} to {}", from.saturating_add(each - 1))?;
        let seeds = from..from.saturating_add(each);
        all &= sweep::sweep(out, &scenario, (seeds, Until::All), false, &|seed| line(name, seed, None))?;
    }
    Ok(all)
}

fn shrink(out: &mut impl Write, args: &ShrinkArgs) -> anyhow::Result<bool> {
    let scenario = read(&args.scenario, None)?;
    let failing = Failing::of(&scenario, args.seed, args.rule.as_deref())
        .with_context(|| format!("{} with seed {} breaks no such rule", args.scenario, args.seed))?;
    let least = failing.shrink(args.runs, |least, runs| {
        let Failing { scenario, seed, rule } = least;
        let (nodes, minutes) = (scenario.nodes(), scenario.minutes);
        let faults: u64 = scenario.faults.iter().map(|plan| plan.count).sum();
        let _ = writeln!(
            std::io::stderr(),
            "{runs} runs: {nodes} machines, {faults} faults, {minutes} minutes, seed {seed} breaks {rule}"
        );
    });
    let text = least.scenario.to_text()?;
    match &args.out {
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            writeln!(
                out,
                "{} is broken:\n  {}",
                least.rule,
                line(&path.to_string_lossy(), least.seed, None)
            )?;
        }
        None => writeln!(out, "# {} is broken with seed {}\n{text}", least.rule, least.seed)?,
    }
    Ok(true)
}

fn tell(progress: Progress, seconds: u64) {
    let Progress { elapsed_ms, total_ms, events } = progress;
    let minutes = |ms: u64| format!("{}:{:02}", ms / 60_000, ms / 1000 % 60);
    let percent = elapsed_ms * 100 / total_ms.max(1);
    let (elapsed, total) = (minutes(elapsed_ms), minutes(total_ms));
    let _ = writeln!(
        std::io::stderr(),
        "{percent:3} %: {elapsed} of {total} virtual minutes, {events} events, {seconds} s"
    );
}

fn print(out: &mut impl Write, scenario: &Scenario, report: &Report, wall_s: f64) -> std::io::Result<()> {
    let Report { jobs, figures, .. } = report;
    writeln!(out, "{}", scenario.about)?;
    writeln!(out)?;
    writeln!(
        out,
        "nodes       {}, {} virtual seconds, seed {}",
        figures.nodes, figures.virtual_s, report.seed
    )?;
    writeln!(out, "jobs        {} placed, {} done, {} not", jobs.placed, jobs.completed, jobs.failed)?;
    for (why, count) in &figures.failures {
        writeln!(out, "            {count} {why}")?;
    }
    let (first, done) = (figures.first_token_ms, figures.done_ms);
    writeln!(out, "first token {} ms for half of those done, {} ms for 99 of 100", first.p50, first.p99)?;
    writeln!(out, "done        {} ms for half, {} ms for 99 of 100", done.p50, done.p99)?;
    for group in &figures.groups {
        let used = group.utilisation.map(|used| format!(", slots used {:.1} %", used * 100.0));
        writeln!(
            out,
            "{:11} {} nodes, {} of {} jobs done, {} tokens served{}, gained {} nano-credits",
            group.name,
            group.nodes,
            group.completed,
            group.placed,
            group.served_tokens,
            used.unwrap_or_default(),
            group.gained
        )?;
    }
    let control = &report.control_bytes_per_node_s;
    writeln!(out, "sent        {} B/s by half of the nodes, {} by 99 of 100,", control.p50, control.p99)?;
    for (kind, spread) in &control.by_kind {
        writeln!(out, "            {kind}: {} B/s, {}", spread.p50, spread.p99)?;
    }
    writeln!(out, "            without {}", control.without)?;
    let rate = report.events as f64 / wall_s.max(0.001);
    writeln!(out, "events      {}, {wall_s:.1} s, {rate:.0} a second", report.events)?;
    writeln!(out, "trace       {}", report.trace_hash)?;
    print_invariants(out, report)
}

fn print_invariants(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    writeln!(out)?;
    for held in &report.invariants {
        let verdict = if held.held { "holds " } else { "BROKEN" };
        writeln!(out, "{verdict} {:9} checks  {:20} {}", held.checks, held.name, held.sentence)?;
    }
    report.findings.iter().try_for_each(|finding| writeln!(out, "  {finding}"))
}

/// Returns the most memory that this process ever had, in millions of bytes.
fn peak_rss_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024 / 1_000_000)
}

fn smoke(out: &mut impl Write, json: bool) -> anyhow::Result<bool> {
    let mut reports = Vec::new();
    for (name, seeds) in SMOKE {
        let scenario = scenario::read(name)?;
        for seed in seeds {
            let mut report = run(&scenario, *seed);
            if run(&scenario, *seed).trace_hash != report.trace_hash {
                report.findings.push("the same seed ran in two ways".to_owned());
            }
            if !json {
                print_line(out, name, &report)?;
            }
            reports.push(report);
        }
    }
    let failed = reports.iter().filter(|report| !report.passed()).count();
    if json {
        writeln!(out, "{}", serde_json::to_string(&reports)?)?;
    } else {
        writeln!(out, "{} passed, {failed} failed", reports.len() - failed)?;
    }
    Ok(failed == 0)
}

fn print_line(out: &mut impl Write, name: &str, report: &Report) -> anyhow::Result<()> {
    let verdict = if report.passed() { "passed" } else { "FAILED" };
    let (seed, jobs, inputs) = (report.seed, report.jobs, report.inputs);
    let trace = &report.trace_hash[..16];
    let (placed, done, not) = (jobs.placed, jobs.completed, jobs.failed);
    writeln!(
        out,
        "seed {seed}: {verdict}, {placed} jobs, {done} done, {not} not, {inputs} inputs, trace {trace}"
    )?;
    report.findings.iter().try_for_each(|finding| writeln!(out, "  {finding}"))?;
    if !report.passed() {
        writeln!(out, "  {}", line(name, seed, None))?;
    }
    Ok(())
}
