//! Batches of receipts on this disk: through the journal, and as plain appends of the same bytes.
//!
//! A disk that others use is at times ten times slower than at others, for milliseconds or for minutes. So the ways take turns
//! every few batches, in all orders, in files of one folder that grow alike, and only times of one turn are compared. Plain
//! appends are measured twice in each turn, in two files: what these differ by is what the measure itself cannot tell.

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

/// Batches of one way in a turn. One more goes before, whose time does not count: it waits for what the way before has
/// left to the disk.
const TURN: usize = 4;

/// By how much the two floors may differ for anything to be said about the journal.
const DOUBT: f64 = 0.03;

/// Batches of receipts, times in milliseconds: medians count, because a disk that others use stalls at times.
#[derive(Debug, Serialize)]
pub(super) struct Journal {
    pub(super) batch: usize,
    pub(super) bytes_per_receipt: usize,
    pub(super) raw_ms: Spread,
    pub(super) stored_ms: Spread,
    pub(super) stored_per_s: f64,
    /// Plain appends by the journal, each the median of the same turn.
    pub(super) ratios: Ratios,
    pub(super) ratio: f64,
    /// The same of plain appends in one file by those in another: 1 on a disk that treats both alike.
    pub(super) control: Ratios,
    /// Bytes that the journal writes, with lengths, checksums and marks, by those of plain appends.
    pub(super) bytes_ratio: f64,
}

/// What turns say.
#[derive(Debug, Serialize)]
pub(super) struct Ratios {
    pub(super) turns: usize,
    pub(super) p10: f64,
    pub(super) p25: f64,
    pub(super) p50: f64,
    pub(super) p75: f64,
    pub(super) p90: f64,
}

impl Ratios {
    fn of(samples: &Samples) -> Self {
        let [p10, p25, p50, p75, p90] = [10, 25, 50, 75, 90].map(|part| samples.quantile(part));
        Self { turns: samples.spread().runs, p10, p25, p50, p75, p90 }
    }
}

impl Journal {
    /// Says whether the disk treated equals alike, so that the ratio says something about the journal.
    pub(super) fn is_told(&self) -> bool {
        (self.control.p50 - 1.0).abs() <= DOUBT
    }
}

/// Ways to store a batch, in the order in which a turn tells of them.
#[derive(Clone, Copy)]
enum Way {
    Plain,
    Journal,
    PlainAgain,
}

/// All orders, so that what comes after what does not matter.
const ORDERS: [[Way; 3]; 6] = {
    use Way::{Journal as J, Plain as P, PlainAgain as A};
    [[P, J, A], [A, P, J], [J, A, P], [J, P, A], [P, A, J], [A, J, P]]
};

/// Measures batches of receipts through the journal and, in turn with them, as plain appends of the same bytes.
pub(super) fn measure(turns: usize) -> Result<Journal> {
    let (manifest, _) = home();
    let payer = Payer::new(1);
    let numbers = 1..=BATCH as u64;
    let receipts =
        numbers.map(|number| receipt(ChannelId([9; 32]), number, manifest.domain(), &payer.account));
    let records: Vec<Vec<u8>> =
        receipts.map(|receipt| Record::Receipt(receipt.signed()).to_bytes()).collect();
    let bytes = records.concat();
    let folder = folder()?;
    let path = folder.path().join("journal");
    let (disk, events) = Watched::open(&path, bytes.len())?;
    let (mut journal, _) = journal::Journal::open_on(Arc::new(disk), Options::default(), |_, _, _| {})?;
    // Beside the journal's own file, so that they are treated alike.
    let mut plain = [File::create(path.join("plain"))?, File::create(path.join("plain-again"))?];
    let (mut raw, mut stored) = (Samples::default(), Samples::default());
    let (mut ratios, mut control) = (Samples::default(), Samples::default());
    for turn in 0..turns {
        let mut medians = [0.0; 3];
        for way in ORDERS[turn % ORDERS.len()] {
            let (times, all) = match way {
                Way::Plain => (append(&mut plain[0], &bytes)?, &mut raw),
                Way::PlainAgain => (append(&mut plain[1], &bytes)?, &mut raw),
                Way::Journal => (store(&mut journal, &records, &events)?, &mut stored),
            };
            let mut own = Samples::default();
            times.iter().for_each(|time| own.push_time(*time));
            times.iter().for_each(|time| all.push_time(*time));
            medians[way as usize] = own.spread().p50;
        }
        let [plain, journal, again] = medians;
        // Against both floors, each of which stands before the journal and behind it as often as the other.
        ratios.push(f64::midpoint(plain, again) / journal);
        control.push(plain / again);
    }
    journal.close()?;
    let (stored_ms, ratios) = (stored.spread(), Ratios::of(&ratios));
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let length = |name: &str| -> Result<f64> { Ok(std::fs::metadata(path.join(name))?.len() as f64) };
    Ok(Journal {
        batch: BATCH,
        bytes_per_receipt: bytes.len() / BATCH,
        raw_ms: raw.spread(),
        stored_ms,
        stored_per_s: per_s(BATCH, Duration::from_secs_f64(stored_ms.p50 / 1000.0)),
        ratio: ratios.p50,
        ratios,
        control: Ratios::of(&control),
        bytes_ratio: length("00000001.seg")? / length("plain")?,
    })
}

/// Appends batches to a file, each from when the one before it was durable.
fn append(file: &mut File, batch: &[u8]) -> io::Result<Vec<Duration>> {
    let mut ends = Vec::new();
    for _ in 0..=TURN {
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
    for _ in 0..=TURN {
        journal.append(records, Urgency::Now)?;
        while let Event::Durable(end) = events.recv()? {
            ends.push(end);
        }
    }
    while ends.len() <= TURN {
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
        // More than one turn makes: the disk waits for nobody.
        let (events, receiver) = sync_channel(8 * TURN);
        Ok((Self { disk: Directory::open(path)?, batch_bytes, events }, receiver))
    }

    fn watch(&self, file: Box<dyn SegmentFile>) -> Box<dyn SegmentFile> {
        Box::new(WatchedFile { file, batch_bytes: self.batch_bytes, events: self.events.clone() })
    }
}

impl SegmentFile for WatchedFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= self.batch_bytes {
            // Nobody listens after the last turn.
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

    fn read(&self, name: &str, limit: u64, contents: &mut Vec<u8>) -> io::Result<()> {
        self.disk.read(name, limit, contents)
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
