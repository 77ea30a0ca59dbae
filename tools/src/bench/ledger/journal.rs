//! Batches of receipts on this disk: through the journal, and as plain appends of the same bytes.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use node::journal::disk::{Directory, Disk, SegmentFile};
use node::journal::{self, Options, Urgency};
use protocol::ids::ChannelId;
use protocol::record::Record;
use serde::Serialize;

use super::super::cluster::folder;
use super::super::samples::{Samples, Spread};
use super::rates::{home, per_s};
use super::records::{Payer, receipt};

/// Receipts that go to the disk together: as many as a busy provider gathers in the time of one `fdatasync`.
const BATCH: usize = 64;

/// Batches in a row, before the other way of storing them has its turn.
const ROUND: usize = 20;

/// Batches of receipts, times in milliseconds: medians count, because a disk that others use stalls at times.
#[derive(Debug, Serialize)]
pub(super) struct Journal {
    pub(super) batch: usize,
    pub(super) bytes_per_receipt: usize,
    pub(super) raw_ms: Spread,
    pub(super) stored_ms: Spread,
    pub(super) stored_per_s: f64,
    /// Of plain appends to the journal, of the medians of two rounds that followed each other.
    pub(super) ratios: Spread,
    pub(super) ratio: f64,
}

/// Measures batches of receipts through the journal and, alternating with them, as plain appends of the same bytes.
pub(super) fn measure(batches: usize) -> Result<Journal> {
    let (manifest, _) = home();
    let payer = Payer::new(1);
    let numbers = 1..=BATCH as u64;
    let receipts =
        numbers.map(|number| receipt(ChannelId([9; 32]), number, manifest.domain(), &payer.account));
    let records: Vec<Vec<u8>> =
        receipts.map(|receipt| Record::Receipt(receipt.signed()).to_bytes()).collect();
    let bytes = records.concat();
    let (raw_folder, folder) = (folder()?, folder()?);
    let mut raw = File::create(raw_folder.path().join("raw"))?;
    let (disk, events) = Watched::open(&folder.path().join("journal"), bytes.len())?;
    let (mut journal, _) = journal::Journal::open_on(Arc::new(disk), Options::default(), |_, _, _| {})?;
    let (mut raw_all, mut stored_all, mut ratios) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..batches.div_ceil(ROUND) {
        let plain = append(&mut raw, &bytes)?;
        let stored = store(&mut journal, &records, &events)?;
        let median = |times: &[Duration]| {
            let mut samples = Samples::default();
            times.iter().for_each(|time| samples.push_time(*time));
            samples.spread().p50
        };
        ratios.push(median(&plain) / median(&stored));
        plain.into_iter().for_each(|time| raw_all.push_time(time));
        stored.into_iter().for_each(|time| stored_all.push_time(time));
    }
    journal.close()?;
    let (stored_ms, ratios) = (stored_all.spread(), ratios.spread());
    Ok(Journal {
        batch: BATCH,
        bytes_per_receipt: bytes.len() / BATCH,
        raw_ms: raw_all.spread(),
        stored_ms,
        stored_per_s: per_s(BATCH, Duration::from_secs_f64(stored_ms.p50 / 1000.0)),
        ratio: ratios.p50,
        ratios,
    })
}

/// Appends batches to a file, each from when the one before it was durable.
fn append(file: &mut File, batch: &[u8]) -> io::Result<Vec<Duration>> {
    let mut ends = vec![Instant::now()];
    for _ in 0..ROUND {
        io::Write::write_all(file, batch)?;
        file.sync_data()?;
        ends.push(Instant::now());
    }
    Ok(between(&ends))
}

/// Stores batches as a busy driver does: the next one gathers while the disk works on the last. Each takes from when the one
/// before it was durable until it is.
fn store(
    journal: &mut journal::Journal,
    records: &[Vec<u8>],
    events: &Receiver<Event>,
) -> Result<Vec<Duration>> {
    while events.try_recv().is_ok() {}
    let mut ends = Vec::new();
    for _ in 0..=ROUND {
        journal.append(records, Urgency::Now)?;
        while let Event::Durable(end) = events.recv()? {
            ends.push(end);
        }
    }
    while ends.len() <= ROUND {
        if let Event::Durable(end) = events.recv()? {
            ends.push(end);
        }
    }
    Ok(between(&ends))
}

fn between(ends: &[Instant]) -> Vec<Duration> {
    ends.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// What the disk does.
enum Event {
    /// It has been given a batch: what is appended now goes into the next one.
    Begun,
    Durable(Instant),
}

/// A folder of the real file system that tells what happens in it.
struct Watched {
    disk: Directory,
    /// How long a batch is at least; the marks between batches are shorter.
    batch_bytes: usize,
    events: SyncSender<Event>,
}

struct WatchedFile {
    file: Box<dyn SegmentFile>,
    batch_bytes: usize,
    events: SyncSender<Event>,
}

impl Watched {
    fn open(path: &Path, batch_bytes: usize) -> Result<(Self, Receiver<Event>)> {
        // More than one round makes: the disk waits for nobody.
        let (events, receiver) = sync_channel(8 * ROUND);
        Ok((Self { disk: Directory::open(path)?, batch_bytes, events }, receiver))
    }

    fn watch(&self, file: Box<dyn SegmentFile>) -> Box<dyn SegmentFile> {
        Box::new(WatchedFile { file, batch_bytes: self.batch_bytes, events: self.events.clone() })
    }
}

impl SegmentFile for WatchedFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= self.batch_bytes {
            // Nobody listens after the last round.
            let _ = self.events.try_send(Event::Begun);
        }
        self.file.write_all(bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let _ = self.events.try_send(Event::Durable(Instant::now()));
        Ok(())
    }
}

impl Disk for Watched {
    fn path(&self) -> &Path {
        self.disk.path()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.disk.names()
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.disk.read(name, limit)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        Ok(self.watch(self.disk.create(name)?))
    }

    fn open_at(&self, name: &str, length: u64, at: u64) -> io::Result<Box<dyn SegmentFile>> {
        Ok(self.watch(self.disk.open_at(name, length, at)?))
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        self.disk.rename(name, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.disk.sync_directory()
    }
}
