//! Runs the steps of CI in order and says what passed, what failed, what was skipped and why.

mod context;

mod steps;

mod deny;

mod purity;

pub(crate) mod mutants;

pub(crate) mod vectors;

mod report;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::builder::PossibleValuesParser;

use context::Context;
use report::{Report, Row, Verdict};
use steps::{Outcome, STEPS, Step};

/// What to check and how to say it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Runs this step only; may be repeated
    #[arg(long, value_name = "STEP", value_parser = PossibleValuesParser::new(STEPS.iter().map(|step| step.name)))]
    only: Vec<String>,
    /// Goes on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Names the steps and runs none
    #[arg(long)]
    list: bool,
    /// Prints the report as JSON on standard output, and all else on standard error
    #[arg(long)]
    json: bool,
    /// First builds and installs cargo-deny at the pinned version (minutes)
    #[arg(long)]
    install: bool,
}

/// Runs the chosen steps; the exit code is a failure if one of them failed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        println!("{}", report::list(&STEPS, arguments.json)?);
        return Ok(ExitCode::SUCCESS);
    }
    let context = Context::new(arguments.json)?;
    if arguments.install {
        steps::install_cargo_deny(&context)?;
    }
    let report = run_steps(&context, arguments);
    println!("{}", if arguments.json { report.json()? } else { report.table() });
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_steps(context: &Context, arguments: &Arguments) -> Report {
    let mut report = Report::default();
    let mut failed = None;
    for step in STEPS
        .iter()
        .filter(|step| arguments.only.is_empty() || arguments.only.iter().any(|name| name == step.name))
    {
        let row = match failed {
            Some(name) if !arguments.keep_going => {
                Row::skipped(step.name, format!("not run, since {name} failed"))
            }
            _ => run_step(context, step),
        };
        if matches!(row.verdict, Verdict::Failed(_)) {
            failed = Some(step.name);
        }
        report.rows.push(row);
    }
    report
}

fn run_step(context: &Context, step: &Step) -> Row {
    context.say(&format!("\n==> {}: {}", step.name, step.about));
    let started = Instant::now();
    let verdict = match (step.run)(context) {
        Ok(Outcome::Passed) => Verdict::Passed,
        Ok(Outcome::Skipped(why)) => Verdict::Skipped(why),
        Err(error) => Verdict::Failed(format!("{error:#}")),
    };
    if let Verdict::Failed(why) = &verdict {
        context.say(&format!("{why}\nRepeat it with: cargo xtask check --only {}", step.name));
    }
    let row = Row { step: step.name, seconds: started.elapsed().as_secs_f64(), verdict };
    context.say(&format!("<== {row}"));
    row
}
