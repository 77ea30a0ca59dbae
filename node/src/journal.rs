//! The journal: the append-only, fsynced truth of the ledger. Records are opaque bytes here.
//!
//! The driver appends and never waits; a thread of its own writes, syncs and reports what is durable. Read on
//! in `segment` (the format), `commit` (the thread), `pruning` (what is not needed any more), `disk` (the file system as
//! tests can break it).

mod commit;
pub mod disk;
#[cfg(test)]
mod powerloss;
pub mod pruning;
pub mod segment;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use commit::{QUEUE_BYTES_MAX, Shared, Writer};
use disk::{Directory, Disk};
use segment::{FRAME_BYTES, Fault, HEADER_BYTES, Header, HeaderFault, Scan};

pub use segment::{GENESIS, Head, RECORD_BYTES_MAX};

/// A segment is closed at this size: few files, and one is read into memory at once.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// How long a `Soon` record waits for company; half of the promised 100 ms, the rest is for a busy disk.
pub const PATIENCE: Duration = Duration::from_millis(50);

/// How many records there are up to and with this one: the first is at 1, nothing is at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When a record must be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// As soon as the disk can, with whatever else waits.
    Now,
    /// Within 100 ms.
    Soon,
}

/// What tests and measurements vary.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub segment_bytes: u64,
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES, patience: PATIENCE }
    }
}

/// What opening found.
#[derive(Debug)]
pub struct Recovered {
    /// The last record, and the chain's head after it.
    pub position: Position,
    pub head: Head,
    pub segments: u64,
    /// Bytes of an unfinished commit that were cut off: nobody was told that they are durable.
    pub torn_bytes: u64,
}

/// Why records were not taken; none of them was.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the disk is behind: {QUEUE_BYTES_MAX} bytes of the journal wait already")]
    Full,
    #[error("a record of {0} bytes is larger than {RECORD_BYTES_MAX}")]
    TooLong(usize),
    #[error("the journal has stopped after an error of the disk")]
    Stopped,
}

/// Why the journal cannot be opened, read or continued.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal cannot use {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the journal is damaged at byte {offset} of {path}, record {position}: {what}. Nothing was changed. Copy \
         the folder first, then restore this file and all before it from one backup; without one, the records before \
         {position} are all that is left"
    )]
    Damaged { path: PathBuf, offset: u64, position: Position, what: &'static str },
    #[error(
        "pruning the journal needs {needed} bytes of free disk, and there are {free}: free some, or leave the journal as \
         it is"
    )]
    NoRoom { needed: u64, free: u64 },
    #[error(
        "the journal lacks {path}, though later files are there; nothing was changed. Restore it from a backup"
    )]
    Missing { path: PathBuf },
    #[error("{path} has journal format {version}; this program reads {known}: use a newer one", known = segment::PRUNED_VERSION)]
    Newer { path: PathBuf, version: u32 },
    #[error("the journal ends at record {end}; record {position} was asked for")]
    Beyond { position: Position, end: Position },
    #[error("the journal's thread ended in a panic")]
    Panicked,
}

/// The open journal. What is appended becomes durable in order, all of it or a front part.
pub struct Journal {
    shared: Arc<Shared>,
    position: Position,
    head: Head,
    durable: watch::Receiver<Position>,
    thread: Option<JoinHandle<Result<(), JournalError>>>,
    history: History,
}

impl Journal {
    /// Opens or creates the journal in `directory` and calls back with every record in order.
    ///
    /// Cuts off what a crash tore; refuses anything else that is not whole, and then the caller forgets what
    /// it was called back with.
    pub fn open(
        directory: &Path,
        options: Options,
        each: impl FnMut(Position, &Head, &[u8]),
    ) -> Result<(Self, Recovered), JournalError> {
        let disk = Directory::open(directory)
            .map_err(|source| JournalError::Io { path: directory.to_owned(), source })?;
        Self::open_on(Arc::new(disk), options, each)
    }

    /// Like [`Journal::open`], on any disk.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        options: Options,
        mut each: impl FnMut(Position, &Head, &[u8]),
    ) -> Result<(Self, Recovered), JournalError> {
        let (writer, recovered) = recover(&disk, options, &mut each)?;
        let (sender, durable) = watch::channel(recovered.position);
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = shared.clone();
            let run = move || commit::run(&shared, writer, options.patience, &sender);
            std::thread::Builder::new()
                .name("journal".to_owned())
                .spawn(run)
                .map_err(|source| JournalError::Io { path: disk.path().to_owned(), source })?
        };
        let (position, head) = (recovered.position, recovered.head);
        let history = History { disk };
        Ok((Self { shared, position, head, durable, thread: Some(thread), history }, recovered))
    }

    /// Takes records in order, all or none, and returns the position of the last; never waits.
    pub fn append(&mut self, records: &[impl AsRef<[u8]>], urgency: Urgency) -> Result<Position, Refused> {
        let lengths = records.iter().map(|record| record.as_ref().len());
        if let Some(length) = lengths.clone().find(|&length| length > RECORD_BYTES_MAX) {
            return Err(Refused::TooLong(length));
        }
        if records.is_empty() {
            return Ok(self.position);
        }
        // A gone sender is a thread that ended.
        if self.thread.is_none() || self.durable.has_changed().is_err() {
            return Err(Refused::Stopped);
        }
        let mut queue = self.shared.queue.lock().expect("no holder panics");
        let bytes: usize = lengths.map(|length| FRAME_BYTES + length).sum();
        if queue.frames.len() + bytes > QUEUE_BYTES_MAX {
            return Err(Refused::Full);
        }

        for record in records.iter().map(AsRef::as_ref) {
            self.position = Position(self.position.0 + 1);
            self.head = segment::chain(&self.head, record);
            segment::encode_record(record, &mut queue.frames);
        }
        queue.position = self.position;
        queue.head = self.head;
        queue.urgent |= urgency == Urgency::Now;
        drop(queue);
        self.shared.filled.notify_one();
        Ok(self.position)
    }

    /// Returns the position of the last record taken, durable or not.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Returns the chain's head after the last record taken.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Begins a new segment, so that all others may be pruned; whoever waits is told when it is there.
    pub fn seal(&self) -> mpsc::Receiver<()> {
        let (sender, sealed) = mpsc::channel();
        self.shared.queue.lock().expect("no holder panics").sealing.push(sender);
        self.shared.filled.notify_one();
        sealed
    }

    /// Returns a reader of what is durable, for use beside the journal.
    pub fn history(&self) -> History {
        self.history.clone()
    }

    /// Waits until more is durable and returns up to where. Cancel safe.
    ///
    /// When the disk fails, says so once and from then on waits forever. What was not reported durable by then
    /// may or may not be there when the journal is opened again.
    pub async fn committed(&mut self) -> Result<Position, JournalError> {
        if self.durable.changed().await.is_ok() {
            return Ok(*self.durable.borrow_and_update());
        }
        match self.thread.take() {
            Some(thread) => Err(outcome_of(thread).err().unwrap_or(JournalError::Panicked)),
            None => std::future::pending().await,
        }
    }

    /// Commits all that was taken and ends the thread; blocks for as long as the disk takes.
    pub fn close(mut self) -> Result<Position, JournalError> {
        self.finish()?;
        Ok(*self.durable.borrow())
    }

    fn finish(&mut self) -> Result<(), JournalError> {
        self.shared.queue.lock().expect("no holder panics").closing = true;
        self.shared.filled.notify_one();
        self.thread.take().map_or(Ok(()), outcome_of)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::error!(%error, "The journal ended with an error that nobody asked for");
        }
    }
}

/// Calls back with the first bytes of the records that seem to be there, and checks and changes nothing: for a look ahead of
/// [`Journal::open`].
pub fn peek(directory: &Path, mut each: impl FnMut(&[u8])) -> Result<(), JournalError> {
    let io = |source| JournalError::Io { path: directory.to_owned(), source };
    let disk = Directory::open(directory).map_err(io)?;
    for segment in segments(&disk)? {
        let file = File::open(directory.join(segment::name(segment))).map_err(io)?;
        segment::skim(BufReader::with_capacity(PEEK_BYTES, file), &mut each).map_err(io)?;
    }
    Ok(())
}

/// What looking ahead reads at once.
const PEEK_BYTES: usize = 256 << 10;

fn outcome_of(thread: JoinHandle<Result<(), JournalError>>) -> Result<(), JournalError> {
    thread.join().unwrap_or(Err(JournalError::Panicked))
}

/// Reads the journal while it grows.
#[derive(Clone)]
pub struct History {
    disk: Arc<dyn Disk>,
}

impl History {
    /// Calls back with the records behind `after` up to and with `until`, which must be durable.
    pub fn replay(
        &self,
        after: Position,
        until: Position,
        mut each: impl FnMut(Position, &Head, &[u8]),
    ) -> Result<(), JournalError> {
        let mut reached = after;
        for header in self.headers_behind(after)? {
            if reached >= until {
                break;
            }
            let (header, contents) = self.contents(&header)?;
            let scan = segment::scan(&header, &contents, &mut |position, head, record| {
                if after < position && position <= until {
                    each(position, head, record);
                }
            });
            reached = scan.position;
            if reached < until && scan.fault.is_some() {
                return Err(damaged(&*self.disk, &header, &scan, "a record of the past is not whole"));
            }
        }
        if reached < until {
            return Err(JournalError::Beyond { position: until, end: reached });
        }
        Ok(())
    }

    /// Returns the chain's head after the record at `position`, or nothing when the journal ends before it.
    pub fn head_at(&self, position: Position) -> Result<Option<Head>, JournalError> {
        let Some(header) = self.headers_behind(position)?.into_iter().next() else { return Ok(None) };
        if header.first.0 == position.0 + 1 {
            return Ok(Some(header.head));
        }
        let (header, contents) = self.contents(&header)?;
        let mut found = None;
        segment::scan(&header, &contents, &mut |at, head, _| {
            if at == position {
                found = Some(*head);
            }
        });
        Ok(found)
    }

    /// Reads a segment, which may have been pruned since its header was read.
    fn contents(&self, header: &Header) -> Result<(Header, Vec<u8>), JournalError> {
        let contents = read(&*self.disk, header.segment, u64::MAX)?;
        let is_pruned = Header::decode(&contents).is_ok_and(|header| header.is_pruned);
        Ok((Header { is_pruned, ..*header }, contents))
    }

    /// Returns the segments from the one on that holds the record behind `after`, or would.
    fn headers_behind(&self, after: Position) -> Result<Vec<Header>, JournalError> {
        let mut headers = Vec::new();
        for segment in segments(&*self.disk)? {
            let start = read(&*self.disk, segment, HEADER_BYTES as u64)?;
            // The newest may be in the making.
            let Ok(header) = Header::decode(&start) else { break };
            if header.first.0 <= after.0 + 1 {
                headers.clear();
            }
            headers.push(header);
        }
        Ok(headers)
    }
}

// Checks all that is there, front to back, and only then changes anything.
fn recover(
    disk: &Arc<dyn Disk>,
    options: Options,
    each: &mut dyn FnMut(Position, &Head, &[u8]),
) -> Result<(Writer, Recovered), JournalError> {
    let mut next = Header::whole(1, Position(1), GENESIS);
    let mut newest: Option<(Header, Scan)> = None;
    // Each segment is large, and of those before nothing is needed any more.
    let mut contents = Vec::new();
    let mut unborn = None;
    let segments = segments(&**disk)?;
    for &segment in &segments {
        let path = disk.path().join(segment::name(segment));
        if segment != next.segment {
            return Err(JournalError::Missing { path: disk.path().join(segment::name(next.segment)) });
        }
        newest = None;
        read_into(&**disk, segment, u64::MAX, &mut contents)?;
        let is_last = Some(&segment) == segments.last();
        let header = match Header::decode(&contents) {
            Ok(header) => header,
            Err(HeaderFault::Newer(version)) => return Err(JournalError::Newer { path, version }),
            // Nothing enters a segment before its header is durable, so nothing is lost with this one.
            Err(HeaderFault::Damaged) if is_last && contents.len() <= HEADER_BYTES => {
                unborn = Some(contents.len() as u64);
                break;
            }
            Err(HeaderFault::Damaged) => {
                return Err(damaged_at(path, 0, next.first, "the header is not whole"));
            }
        };
        if !header.continues(&next) {
            let what = "the header does not continue the segment before, which may have lost its end";
            return Err(damaged_at(path, 0, next.first, what));
        }
        let scan = segment::scan(&header, &contents, each);
        if let Some(what) =
            scan.fault.as_ref().and_then(|fault| refusal(fault, is_last, &header, &contents, &scan))
        {
            return Err(damaged(&**disk, &header, &scan, what));
        }
        next = Header::whole(segment + 1, Position(scan.position.0 + 1), scan.head);
        // Nothing is appended to a segment that was pruned.
        newest = (!header.is_pruned).then_some((header, scan));
    }

    pruning::clear(&**disk)?;
    let mut torn_bytes = unborn.unwrap_or(0);
    if unborn.is_some() {
        let name = segment::name(next.segment);
        disk.remove(&name)
            .and_then(|()| disk.sync_directory())
            .map_err(|source| JournalError::Io { path: disk.path().join(name), source })?;
    }
    let writer = match &newest {
        Some((header, scan)) => {
            torn_bytes += (contents.len() - scan.end) as u64;
            Writer::resume(disk.clone(), header, &contents, scan, options.segment_bytes)?
        }
        None => Writer::create(disk.clone(), next, options.segment_bytes)?,
    };
    let segments = newest.map_or(next.segment, |(header, ..)| header.segment);
    Ok((writer, Recovered { position: Position(next.first.0 - 1), head: next.head, segments, torn_bytes }))
}

/// Says why a fault is more than the torn tail that a crash may leave.
fn refusal(
    fault: &Fault,
    is_last: bool,
    header: &Header,
    contents: &[u8],
    scan: &Scan,
) -> Option<&'static str> {
    match fault {
        _ if header.is_pruned => Some("a segment that was pruned is not whole"),
        Fault::Contradiction => Some("the records before do not have the count or the hashes noted here"),
        Fault::Torn if !is_last => Some("the record is not whole, and a later segment exists"),
        Fault::Torn if segment::find_mark(header, contents, scan.end).is_some() => {
            Some("the record is not whole, and later commits exist")
        }
        Fault::Torn => None,
    }
}

fn segments(disk: &dyn Disk) -> Result<Vec<u64>, JournalError> {
    let names = disk.names().map_err(|source| JournalError::Io { path: disk.path().to_owned(), source })?;
    let mut segments: Vec<u64> = names.iter().filter_map(|name| segment::number(name)).collect();
    segments.sort_unstable();
    Ok(segments)
}

fn read(disk: &dyn Disk, segment: u64, limit: u64) -> Result<Vec<u8>, JournalError> {
    let mut contents = Vec::new();
    read_into(disk, segment, limit, &mut contents)?;
    Ok(contents)
}

fn read_into(disk: &dyn Disk, segment: u64, limit: u64, contents: &mut Vec<u8>) -> Result<(), JournalError> {
    let name = segment::name(segment);
    let read = disk.read(&name, limit, contents);
    read.map_err(|source| JournalError::Io { path: disk.path().join(name), source })
}

fn damaged(disk: &dyn Disk, header: &Header, scan: &Scan, what: &'static str) -> JournalError {
    let path = disk.path().join(segment::name(header.segment));
    damaged_at(path, scan.end as u64, Position(scan.position.0 + 1), what)
}

fn damaged_at(path: PathBuf, offset: u64, position: Position, what: &'static str) -> JournalError {
    JournalError::Damaged { path, offset, position, what }
}
