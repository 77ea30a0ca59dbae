//! `cargo xtask`: the checks that CI runs, and benchmarks.

#![expect(clippy::print_stdout, reason = "a command-line tool answers on standard output")]

mod bench;
mod check;
mod clients;
mod models;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tools of those who work on Sharemesh.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs all that CI runs, step by step
    Check(check::Arguments),
    /// Puts faults into the protocol on purpose and requires that a test finds each
    Mutants(check::mutants::Arguments),
    /// Writes the golden vectors of everything that is signed, said or written down, or compares them
    Vectors(check::vectors::Arguments),
    /// Measures what the network adds to the engine, and how fast it gets over faults
    Bench(bench::Arguments),
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Mutants(arguments) => check::mutants::run(&arguments),
        Command::Vectors(arguments) => check::vectors::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    }
}
