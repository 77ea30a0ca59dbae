//! What the core makes of a journal: how long it takes to follow it, and what it holds in memory afterwards. In a process of
//! its own, so that nothing else is in that memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use node::folder::DataFolder;
use node::identity::Identity;
use node::journal;
use protocol::advert::{Incentive, ProviderClass};
use protocol::manifest::Manifest;
use protocol::node::{Config, Starting};
use protocol::record::{Record, is_checkpoint};
use protocol::time::Time;
use serde::{Deserialize, Serialize};

use super::super::idle::memory_mb;

/// Where the journal is.
#[derive(clap::Args)]
pub(in super::super) struct Arguments {
    /// The data folder of a node that has stopped
    data: PathBuf,
}

/// What following a journal took.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Replay {
    /// Reading the journal with its checksums and hashes, and nothing else.
    pub(super) checked_ms: f64,
    /// Until the last line was taken.
    pub(super) ms: f64,
    /// What is in memory then that was not before, in MB of a million bytes.
    pub(super) mb: f64,
}

/// Follows the journal in `data` in another process.
pub(super) fn measure(data: &Path) -> Result<Replay> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args(["bench", "replay"]).arg(data).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the journal was not followed");
    serde_json::from_slice(&output.stdout).context("what it took")
}

/// Does so in this process, and prints what it took.
pub(in super::super) fn run(arguments: &Arguments) -> Result<()> {
    let folder = DataFolder::open(&arguments.data)?;
    let identity = Identity::open(&folder, &super::reopen::config(&arguments.data), Time::default())?;
    let config = Config {
        manifest: Manifest::clone(&identity.manifest),
        node: identity.node,
        owner: identity.owner,
        issuer: identity.issuer,
        name: String::new(),
        incentive: Incentive::Exchange,
        class: ProviderClass::Community,
        region: String::new(),
        version: String::new(),
        builders: BTreeMap::new(),
    };
    let begun = Instant::now();
    let options = journal::Options::default();
    journal::Journal::open(&folder.journal(), options, |_, _, _| {})?.0.close()?;
    let checked_ms = begun.elapsed().as_secs_f64() * 1000.0;
    let before = memory_mb(std::process::id(), "RssAnon:")?;
    let begun = Instant::now();
    let mut checkpoints = 0;
    journal::peek(&folder.journal(), |line| checkpoints += usize::from(is_checkpoint(line)))?;
    let mut starting = Starting::new(config, 1, checkpoints);
    let mut failed = None;
    let each = |_, _: &journal::Head, line: &[u8]| {
        let followed = Record::read_back(line).map_err(anyhow::Error::from);
        failed = failed.take().or(followed.and_then(|record| Ok(starting.follow(record)?)).err());
    };
    let (journal, _) = journal::Journal::open(&folder.journal(), options, each)?;
    let ms = begun.elapsed().as_secs_f64() * 1000.0;
    journal.close()?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mb = memory_mb(std::process::id(), "RssAnon:")? - before;
    println!("{}", serde_json::to_string(&Replay { checked_ms, ms, mb })?);
    // Only now may it be forgotten.
    drop(starting);
    Ok(())
}
