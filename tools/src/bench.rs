//! `cargo xtask bench`: what the network adds to the engine, how fast it gets over faults, and what its ledger costs, each
//! number beside its floor.
//!
//! In reading order: [`mesh`], [`faults`], [`ledger`], [`engine`], [`api`] and [`calibrate`] are the benchmarks; [`latency`], [`decode`], [`idle`] and
//! [`floors`] are what the first measures; [`cluster`] is the network of separate processes that both run on, [`release`] the program
//! that is measured, [`samples`] how runs become numbers, and [`table`] how those are printed.

mod mesh;

mod faults;

mod ledger;

mod engine;

mod api;

mod calibrate;

mod latency;

mod decode;

mod idle;

mod floors;

mod cluster;

mod release;

mod samples;

mod table;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// What the network adds: latency, decode rate, refusals, memory, start; with the floors of this machine
    Mesh(mesh::Arguments),
    /// How long it takes to notice a fault and to get over it
    Faults(faults::Arguments),
    /// What records cost to sign, check, merge and keep; with the floors of this machine
    Ledger(ledger::Arguments),
    /// The engine by itself, one answer and several at once, on the CPU and on a GPU beside it
    Engine(engine::Arguments),
    /// The HTTP API of a node before a provider: latency, tokens a CPU-second, memory, overload; beside a bare server
    Api(api::Arguments),
    /// The traffic of a small network of real nodes beside that of the simulator
    Calibrate(calibrate::Arguments),
    /// Answers with events at once, and does nothing else
    #[command(hide = true)]
    Bare,
    /// Runs the engine in this process for jobs on standard input
    #[command(hide = true)]
    Direct(decode::Arguments),
    /// Follows a journal in this process
    #[command(hide = true)]
    Replay(ledger::ReplayArguments),
}

/// Measures in a release build of this tree: this very program, built so, does the measuring.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let What::Direct(arguments) = &arguments.what {
        return decode::run_directly(arguments).map(|()| ExitCode::SUCCESS);
    }
    if let What::Replay(arguments) = &arguments.what {
        return ledger::replay(arguments).map(|()| ExitCode::SUCCESS);
    }
    if let What::Bare = &arguments.what {
        return block_on(api::bare::serve());
    }
    if let What::Calibrate(arguments) = &arguments.what
        && let Some(program) = arguments.program()
    {
        return block_on(calibrate::run(program, arguments));
    }
    if let What::Api(arguments) = &arguments.what
        && let Some(program) = arguments.program()
    {
        return block_on(api::run(program, arguments));
    }
    let features = if let What::Engine(arguments) = &arguments.what { arguments.features() } else { &[] };
    if cfg!(debug_assertions) {
        return release::run_again(features);
    }
    if let What::Engine(arguments) = &arguments.what {
        let program =
            arguments.program().map_or_else(|| release::build_node(features), |path| Ok(path.to_owned()))?;
        return engine::run(&program, arguments).map(|()| ExitCode::SUCCESS);
    }
    let program = release::build_node(features)?;
    block_on(async {
        match &arguments.what {
            What::Mesh(arguments) => mesh::run(&program, arguments).await,
            What::Faults(arguments) => faults::run(&program, arguments).await,
            What::Ledger(arguments) => ledger::run(&program, arguments).await,
            What::Calibrate(arguments) => calibrate::run(&program, arguments).await,
            What::Api(arguments) => api::run(&program, arguments).await,
            What::Engine(_) | What::Direct(_) | What::Replay(_) | What::Bare => Ok(()),
        }
    })
}

fn block_on(measure: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    runtime.context("cannot start the runtime")?.block_on(measure)?;
    Ok(ExitCode::SUCCESS)
}

/// Tells whoever watches what goes on; the results go to standard output.
fn say(text: &str) {
    eprintln!("bench: {text}");
}
