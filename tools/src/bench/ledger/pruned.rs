//! What is left on disk of channels that were over long ago.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use node::folder::DataFolder;
use node::identity::Identity;
use node::journal::{Journal, Options, Urgency};
use node::pruning::prune;
use protocol::ids::ChannelId;
use protocol::ledger::records::{Epoch, RedeemAck};
use protocol::manifest::Manifest;
use protocol::pruning::Policy;
use protocol::record::Record;
use protocol::signed::{Role, sign};
use protocol::time::Time;
use serde::Serialize;

use super::super::cluster::{Node, until};
use super::reopen::{bytes_in, config};

/// Long after every channel of the benchmark is over.
const LATER: Epoch = Epoch(1_000);

/// Acknowledgements that are handed to the journal at once.
const BATCH: usize = 64;

/// Bytes on disk by the number of channels, all of them paid out, closed and over.
#[derive(Debug, Serialize)]
pub(super) struct PrunedChannels {
    pub(super) journal_bytes_before: f64,
    pub(super) journal_bytes: f64,
    pub(super) index_bytes: f64,
    pub(super) pruning_ms: f64,
}

/// Closes all channels in the journal of a node that has stopped, prunes it and lets the node make its index again; `empty` is
/// what journal and index took before there was a channel.
pub(super) async fn measure(
    node: &mut Node,
    data: &Path,
    channels: usize,
    empty: u64,
) -> Result<PrunedChannels> {
    let before = close_all(data, channels).await?;
    let begun = std::time::Instant::now();
    prune_all(data)?;
    let pruning_ms = begun.elapsed().as_secs_f64() * 1e3;
    std::fs::remove_dir_all(data.join("index"))?;
    node.start_again().await?;
    until("the index to answer", async || {
        let lines = node.client.get::<serde_json::Value>("ledger/channels").await;
        Ok(lines.ok())
    })
    .await?;
    node.end().await?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let per_channel = |bytes: u64| (bytes as f64 / channels as f64).round();
    let journal = bytes_in(&data.join("journal"))?;
    Ok(PrunedChannels {
        journal_bytes_before: per_channel(before.saturating_sub(empty)),
        journal_bytes: per_channel(journal.saturating_sub(empty)),
        index_bytes: per_channel(bytes_in(&data.join("index"))?),
        pruning_ms,
    })
}

/// Writes the issuer's word that each channel was paid out and closed; returns the journal's bytes then.
async fn close_all(data: &Path, channels: usize) -> Result<u64> {
    let folder = DataFolder::open(data)?;
    let identity = Identity::open(&folder, &config(data), Time::default())?;
    let issuer = identity.issuer.context("the node has made its network")?;
    let domain = identity.manifest.domain();
    let mut receipts = Vec::new();
    let (mut journal, _) = Journal::open(&folder.journal(), Options::default(), |_, _, bytes| {
        if let Ok(Record::Receipt(receipt)) = Record::read_back(bytes) {
            receipts.extend(receipt.peek_in(domain).map(|(receipt, ..)| (receipt.channel, receipt.amount)));
        }
    })?;
    ensure!(receipts.len() == channels, "{} receipts were written", receipts.len());
    for batch in receipts.chunks(BATCH) {
        let lines = batch.iter().map(|(channel, amount)| {
            let ack = RedeemAck { channel: *channel, amount: *amount, closed: true, epoch: Epoch(1) };
            Record::Redeemed(sign(ack, domain, Role::Issuer, &issuer).signed()).to_bytes()
        });
        let position = journal.append(&lines.collect::<Vec<_>>(), Urgency::Now)?;
        while journal.committed().await? < position {}
    }
    journal.close()?;
    bytes_in(&data.join("journal"))
}

fn prune_all(data: &Path) -> Result<()> {
    let folder = DataFolder::open(data)?;
    let identity = Identity::open(&folder, &config(data), Time::default())?;
    let policy = Policy {
        manifest: Manifest::clone(&identity.manifest),
        node: identity.node.public().into(),
        account: identity.owner.account(),
        is_issuer: true,
        epoch: LATER,
        keep_epochs: 0,
        open: BTreeSet::<ChannelId>::new(),
        oldest: None,
    };
    let (journal, _) = Journal::open(&folder.journal(), Options::default(), |_, _, _| {})?;
    journal.seal().recv().context("the journal has ended")?;
    prune(&journal.history(), journal.position(), policy)?;
    journal.close()?;
    Ok(())
}
