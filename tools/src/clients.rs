//! The official clients that tests drive a node with: from the package index, pinned by hash, fetched once.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use node::models::Models;
use protocol::ids::Digest;

/// Tells tests where Python finds the clients; those that need them skip themselves without.
pub(crate) const TEST_CLIENTS: &str = "SHAREMESH_TEST_CLIENTS";

/// Packages with their versions and hashes.
const REQUIREMENTS: &str = include_str!("../../tests/clients/requirements.txt");

/// Returns the folder with the Python packages, fetched and checked.
pub(crate) fn test_clients() -> Result<PathBuf> {
    let all = Models::open()?.cache().join("clients");
    let folder = all.join(&Digest::of(REQUIREMENTS.as_bytes()).to_string()[..16]);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(&all).with_context(|| format!("cannot make {}", all.display()))?;
    // Whoever finds the folder finds it whole.
    let made = tempfile::tempdir_in(&all)?;
    let requirements = made.path().join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS)?;
    let packages = made.path().join("packages");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:"]);
    pip.arg("--target").arg(&packages).arg("--requirement").arg(&requirements);
    let status = pip.status().context("cannot start python3, which fetches the clients")?;
    ensure!(status.success(), "pip could not fetch the clients of tests/clients/requirements.txt ({status})");
    match fs::rename(&packages, &folder) {
        // Somebody else was faster.
        Err(_) if folder.is_dir() => Ok(folder),
        Err(error) => Err(error).with_context(|| format!("cannot make {}", folder.display())),
        Ok(()) => Ok(folder),
    }
}
