//! The golden vectors in `protocol/tests/vectors`: compared in CI, written anew on demand.

use std::process::ExitCode;

use anyhow::Result;

use super::context::Context;

/// Tells the test that compares to write instead.
const WRITE: &str = "SHAREMESH_WRITE_VECTORS";

/// Whether to write or to compare.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compares and writes nothing: fails if any byte differs
    #[arg(long)]
    check: bool,
}

/// Writes the vectors, or compares them.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let context = Context::new(false)?;
    if arguments.check {
        compare(&context)?;
    } else {
        let mut command = context.command("cargo", &TEST);
        context.run(command.env(WRITE, "1"))?;
        context.run(&mut context.command("git", &["status", "--short", "--", "protocol/tests/vectors"]))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails if any byte differs.
pub(super) fn compare(context: &Context) -> Result<()> {
    context.cargo(&TEST)
}

/// With the features of the whole workspace, so that dependencies are not built once more.
const TEST: [&str; 8] = [
    "test",
    "--workspace",
    "--test",
    "wire",
    "--",
    "--exact",
    "vectors::everything_keeps_its_bytes",
    "--quiet",
];
