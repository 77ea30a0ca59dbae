//! `sharemesh worker`: the process that has a model in memory, and neither keys nor network.

use std::io;
use std::process::ExitCode;

use clap::Args;
use engine::WorkerOptions;

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// What to load and how, as JSON
    #[arg(long, value_name = "JSON")]
    options: String,
}

pub(super) fn run(arguments: &WorkerArgs) -> ExitCode {
    let options: WorkerOptions = match serde_json::from_str(&arguments.options) {
        Ok(options) => options,
        Err(error) => {
            tracing_to_stderr();
            tracing::error!(%error, "The options cannot be read");
            return ExitCode::from(2);
        }
    };
    tracing_to_stderr();
    match engine::worker::run(options, io::stdin(), io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The node reads the last lines of this log when it says why a worker died.
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs plain lines: the node adds time and place when it hands them on.
fn tracing_to_stderr() {
    let subscriber = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).without_time();
    // Only a second subscriber in one process could fail.
    let _ = subscriber.with_max_level(tracing::Level::INFO).try_init();
}
