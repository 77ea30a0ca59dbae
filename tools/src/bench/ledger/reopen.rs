//! A provider that is paid on very many channels: how long it takes to start, what it holds in memory and on disk.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use node::api::views::{BalanceView, ReceiptsView};
use node::config::Config;
use node::folder::DataFolder;
use node::identity::Identity;
use node::journal::{self, Urgency};
use protocol::ids::{AccountId, ChannelId, Digest};
use protocol::keys::Signer;
use protocol::ledger::paid::chain;
use protocol::ledger::records::{Epoch, Recorded};
use protocol::manifest::Manifest;
use protocol::message::Opening;
use protocol::record::Record;
use protocol::signed::{Role, sign};
use protocol::time::Time;
use serde::Serialize;

use super::super::cluster::{Node, folder, until};
use super::super::idle::memory_mb;
use super::super::samples::{Samples, Spread};
use super::pruned::{self, PrunedChannels};
use super::records::{Payer, job, payee_signer, receipt_for, terms};
use super::replay::{self, Replay};

/// Channels of one payer; an account has no more open at once.
const PER_PAYER: usize = 64;

/// What very many channels cost.
#[derive(Debug, Serialize)]
pub(super) struct Reopen {
    pub(super) channels: usize,
    /// From the start of the process until its API says what is owed, with an index that is whole.
    pub(super) api_ms: Spread,
    /// Until it lists receipts, which are read from the index.
    pub(super) index_ms: Spread,
    /// Resident memory then, the median of all starts; in MB of a million bytes.
    pub(super) rss_mb: f64,
    /// The most that was resident by then.
    pub(super) peak_mb: f64,
    /// The journal followed by the core alone.
    pub(super) core: Replay,
    pub(super) core_bytes_per_channel: f64,
    /// Resident memory of a node without a channel.
    pub(super) rss_empty_mb: f64,
    pub(super) journal_bytes_per_channel: f64,
    pub(super) index_bytes_per_channel: f64,
    /// When all channels are over and pruned.
    pub(super) pruned: PrunedChannels,
}

pub(super) async fn measure(program: &Path, channels: usize, starts: usize) -> Result<Reopen> {
    let folder = folder()?;
    let data = folder.path().join("node");
    let flags = ["--listen", "127.0.0.1:0"].map(str::to_owned);
    let mut node = Node::start(program, &data, &flags).await?;
    let rss_empty_mb = memory_mb(node.pid()?, "VmRSS:")?;
    node.end().await?;
    let empty = bytes_in(&data.join("journal"))?;
    fill(&data, channels).await?;
    let journal_bytes = bytes_in(&data.join("journal"))? - empty;

    // The first start makes the index of what was written beside it.
    node.start_again().await?;
    until_indexed(&node).await?;
    node.end().await?;
    let index_bytes = bytes_in(&data.join("index"))?;
    let core = replay::measure(&data)?;
    // Else the first start would wait for the disk to take all that was just written.
    ensure!(Command::new("sync").status()?.success(), "the disk does not take what was written");

    let (mut api, mut index) = (Samples::default(), Samples::default());
    let (mut rss, mut peak) = (Samples::default(), Samples::default());
    for _ in 0..starts {
        let begun = Instant::now();
        node.start_again().await?;
        let balance: BalanceView = node.client.get("ledger/balance").await?;
        api.push_time(begun.elapsed());
        ensure!(balance.channels_in as usize == channels, "{} channels came back", balance.channels_in);
        rss.push(memory_mb(node.pid()?, "VmRSS:")?);
        peak.push(memory_mb(node.pid()?, "VmHWM:")?);
        until_indexed(&node).await?;
        index.push_time(begun.elapsed());
        node.end().await?;
    }
    let pruned = pruned::measure(&mut node, &data, channels, empty).await?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let per_channel = |bytes: u64| (bytes as f64 / channels as f64).round();
    Ok(Reopen {
        channels,
        api_ms: api.spread(),
        index_ms: index.spread(),
        rss_mb: rss.spread().p50,
        peak_mb: peak.spread().p50,
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        core_bytes_per_channel: (core.mb * 1e6 / channels as f64).round(),
        core,
        rss_empty_mb,
        journal_bytes_per_channel: per_channel(journal_bytes),
        index_bytes_per_channel: per_channel(index_bytes),
        pruned,
    })
}

async fn until_indexed(node: &Node) -> Result<()> {
    until("the index to answer", async || {
        let page = node.client.get_with::<ReceiptsView>("ledger/receipts", &[("limit", "1")]).await;
        Ok(page.ok().filter(|page| !page.receipts.is_empty()))
    })
    .await?;
    Ok(())
}

/// Writes the openings of channels to the journal of a node that has stopped, each with a receipt that both have signed.
async fn fill(data: &Path, channels: usize) -> Result<()> {
    let folder = DataFolder::open(data)?;
    let identity = Identity::open(&folder, &config(data), Time::default())?;
    let manifest = Manifest::clone(&identity.manifest);
    let issuer = identity.issuer.context("the node has made its network")?;
    let (mut journal, _) =
        journal::Journal::open(&folder.journal(), journal::Options::default(), |_, _, _| {})?;
    for first in (0..channels).step_by(PER_PAYER) {
        let count = PER_PAYER.min(channels - first);
        let records = records(first, count, &manifest, &identity.node, identity.owner.account(), &issuer);
        let position = journal.append(&records, Urgency::Now)?;
        while journal.committed().await? < position {}
    }
    journal.close()?;
    Ok(())
}

/// Says where the node is; what else a node is told does not matter to who it is.
pub(super) fn config(data: &Path) -> Config {
    Config {
        data: data.to_owned(),
        name: String::new(),
        class: protocol::advert::ProviderClass::Community,
        region: String::new(),
        listen: Vec::new(),
        api: ([127, 0, 0, 1], 0).into(),
        join: None,
        mdns: false,
        dev: false,
        serve: Vec::new(),
        price: None,
        slots: 1,
        threads: None,
        budget_nano: 0,
        keep_epochs: 0,
        recover: false,
        exit_with_parent: false,
        passphrase: None,
        device: None,
        network: None,
        issuer_key: None,
        bootstrap: Vec::new(),
        builders: std::collections::BTreeMap::new(),
        cors_origins: node::api::cors::Origins::default(),
    }
}

fn records(
    number: usize,
    count: usize,
    manifest: &Manifest,
    payee: &Signer,
    account: AccountId,
    issuer: &Signer,
) -> Vec<Vec<u8>> {
    let domain = manifest.domain();
    let mut payer = Payer::new(number);
    let terms = terms(manifest, payee, account, payer.id());
    let other = payee_signer(payee, payer.id());
    let mut records = Vec::with_capacity(3 * count);
    for sequence in 1..=count as u64 {
        let op = payer.open(&terms, domain);
        let channel = ChannelId::from(op.id());
        let recorded = sign(Recorded { op: op.id(), epoch: Epoch(0) }, domain, Role::Issuer, issuer);
        let opening = Opening { op, terms: terms.clone(), recorded: vec![recorded] };
        let job = job(channel, payer.node.public().into(), &terms);
        let work = (job.usage, chain(Digest::ZERO, &job));
        let receipt = receipt_for(channel, work, sequence, domain, &payer.account);
        let receipt = receipt.signed_also_by(domain, Role::Payee, &other);
        records.push(Record::Paid(opening.signed()).to_bytes());
        records.push(Record::Job(job).to_bytes());
        records.push(Record::Receipt(receipt.signed()).to_bytes());
    }
    records
}

pub(super) fn bytes_in(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_in(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
