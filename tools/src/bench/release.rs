//! The program that is measured: a release build of this tree, wherever cargo puts it.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Builds this program and the node for release, and lets that build do what this one was told to.
pub(super) fn run_again(features: &[&str]) -> Result<ExitCode> {
    super::say("building for release (the first time takes minutes)");
    build(features)?;
    let program = folder()?.join("xtask");
    let status = Command::new(&program).args(std::env::args_os().skip(1)).status();
    let status = status.with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the node for release and returns its program.
pub(super) fn build_node(features: &[&str]) -> Result<PathBuf> {
    build(features)?;
    Ok(folder()?.join("sharemesh"))
}

/// Returns the commit of this tree, with `+` if it was changed since.
pub(super) fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).stderr(Stdio::null()).output().ok()?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
    };
    let changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_default();
    format!("{commit}{}", if changed { "+" } else { "" })
}

/// Always builds the same packages together: with others, cargo would build all dependencies for other features.
fn build(features: &[&str]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["build", "--quiet", "--release", "--package", "node", "--package", "tools"]);
    command.args(features.iter().flat_map(|feature| ["--features", feature])).stdout(Stdio::null());
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the release build failed");
    Ok(())
}

fn folder() -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }

    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "`cargo metadata` failed");
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo's metadata")?;
    Ok(metadata.target_directory.join("release"))
}
