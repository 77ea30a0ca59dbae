//! Segments without the records that nobody needs any more.
//!
//! Only segments to which nothing is appended any more are pruned. Each is written anew under another name, made durable
//! and put in the place of the whole one, the newest first: after a crash at any moment every segment is there, whole or
//! pruned, and behind a pruned one there are only pruned ones, or ones of which nothing was to be dropped.

#[cfg(test)]
pub(super) mod tests;

use std::io;

use super::disk::Disk;
use super::segment::{self, Head, Header};
use super::{History, JournalError, Position, SEGMENT_BYTES, damaged};

/// How the name of a file ends that will take a segment's place.
const UNFINISHED: &str = ".new";

/// A segment is written anew if that saves this part of it; so are those behind it, if anything of them goes.
const WORTH: u64 = 8;

/// What is left free for the journal to go on: a new segment and something for others.
const RESERVE_BYTES: u64 = 2 * SEGMENT_BYTES;

/// What becomes of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Drop,
    Replace(Vec<u8>),
}

/// Says of each record whether it is needed.
pub trait Pruner {
    /// Sees every record, in order, before anything is decided; [`Pruner::next_segment`] follows each segment that may be
    /// pruned, and not the newest.
    fn survey(&mut self, position: Position, record: &[u8]);

    /// All up to and with `until` may go.
    fn begin(&mut self, until: Position);

    /// Sees every record of a segment, in order, before it is asked about each of them.
    fn read(&mut self, position: Position, record: &[u8]);

    /// Says what becomes of a record of this segment.
    fn verdict(&mut self, position: Position, record: &[u8]) -> Verdict;

    /// Goes on with the next segment.
    fn next_segment(&mut self);
}

/// What pruning came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Segments that were written anew, of those that could be.
    pub segments: u64,
    pub of_segments: u64,
    /// Records that went, those folded into another included, and what is left.
    pub dropped: u64,
    pub folded: u64,
    pub left: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// A segment as it would be.
struct Thinned {
    bytes: Vec<u8>,
    dropped: u64,
    folded: u64,
    left: u64,
    before: u64,
}

impl History {
    /// Prunes all segments but the one that is written to; of that one, records up to `durable` say what is needed. One
    /// caller at a time.
    ///
    /// # Errors
    /// When a file cannot be read or written, or the disk lacks room; then the journal is as good as before.
    pub fn prune(&self, durable: Position, pruner: &mut dyn Pruner) -> Result<Pruned, JournalError> {
        let disk = &*self.disk;
        clear(disk)?;
        let mut sealed = self.headers_behind(Position::default())?;
        if sealed.len() < 2 {
            return Ok(Pruned::default());
        }
        let open = sealed.pop();
        let mut end = Position::default();
        for header in &sealed {
            end = self.each(header, &mut |position, record| pruner.survey(position, record))?.position;
            pruner.next_segment();
        }
        if let Some(open) = open {
            self.each(&open, &mut |position, record| {
                if position <= durable {
                    pruner.survey(position, record);
                }
            })?;
        }
        pruner.begin(end);

        let written = self.write_thinned(&sealed, pruner);
        let (written, pruned) = written.inspect_err(|_| drop(clear(disk)))?;
        for segment in written.into_iter().rev() {
            let name = segment::name(segment);
            disk.rename(&format!("{name}{UNFINISHED}"), &name)
                .and_then(|()| disk.sync_directory())
                .map_err(|source| failed(disk, segment, source))?;
        }
        Ok(pruned)
    }

    /// Writes what will take the place of segments; says of which.
    fn write_thinned(
        &self,
        sealed: &[Header],
        pruner: &mut dyn Pruner,
    ) -> Result<(Vec<u64>, Pruned), JournalError> {
        let mut pruned = Pruned { of_segments: sealed.len() as u64, ..Pruned::default() };
        let mut written = Vec::new();
        for header in sealed {
            let thinned = self.thin(header, pruner)?;
            let saved = thinned.before.saturating_sub(thinned.bytes.len() as u64);
            let is_worth = saved >= thinned.before / WORTH || !written.is_empty();
            let writes = is_worth && thinned.dropped > 0;
            pruned.add(&thinned, writes);
            if writes {
                self.check_room(thinned.bytes.len() as u64)?;
                write(&*self.disk, header.segment, &thinned)
                    .map_err(|source| failed(&*self.disk, header.segment, source))?;
                written.push(header.segment);
            }
        }
        Ok((written, pruned))
    }

    /// Says whether the journal can go on when so much is written beside it.
    fn check_room(&self, bytes: u64) -> Result<(), JournalError> {
        let free = self.disk.free_bytes();
        let free = free.map_err(|source| JournalError::Io { path: self.disk.path().to_owned(), source })?;
        let needed = bytes + RESERVE_BYTES;
        if free < needed { Err(JournalError::NoRoom { needed, free }) } else { Ok(()) }
    }

    /// Calls back with the records of a segment; returns what reading it came to.
    fn each(
        &self,
        header: &Header,
        each: &mut dyn FnMut(Position, &[u8]),
    ) -> Result<segment::Scan, JournalError> {
        let (header, contents) = self.contents(header)?;
        Ok(segment::scan(&header, &contents, &mut |position, _, record| each(position, record)))
    }

    fn thin(&self, header: &Header, pruner: &mut dyn Pruner) -> Result<Thinned, JournalError> {
        let (whole, contents) = self.contents(header)?;
        let read = &mut |position, _: &Head, record: &[u8]| pruner.read(position, record);
        let scan = segment::scan(&whole, &contents, read);
        if scan.fault.is_some() {
            return Err(damaged(&*self.disk, header, &scan, "a record of the past is not whole"));
        }
        let bytes = Header { is_pruned: true, ..*header }.encode().to_vec();
        let mut thinned = Thinned { bytes, dropped: 0, folded: 0, left: 0, before: contents.len() as u64 };
        let mut head = header.head;
        segment::scan(&whole, &contents, &mut |position, _, record| {
            let verdict = pruner.verdict(position, record);
            thinned.take(position, record, &verdict, &mut head);
        });
        pruner.next_segment();
        let offset = thinned.bytes.len() as u64;
        let bridge = segment::encode_bridge(header.segment, offset, scan.position, &head, &scan.head);
        thinned.bytes.extend_from_slice(&bridge);
        Ok(thinned)
    }
}

impl Thinned {
    fn take(&mut self, position: Position, record: &[u8], verdict: &Verdict, head: &mut Head) {
        let record = match verdict {
            Verdict::Drop => {
                self.dropped += 1;
                return;
            }
            Verdict::Keep => record,
            Verdict::Replace(sum) => {
                self.dropped += u64::from(sum != record);
                self.folded += u64::from(sum != record);
                sum
            }
        };
        self.left += 1;
        *head = segment::encode_pruned(head, position, record, &mut self.bytes);
    }
}

impl Pruned {
    fn add(&mut self, thinned: &Thinned, is_written: bool) {
        let Thinned { dropped, folded, left, before, .. } = *thinned;
        self.bytes_before += before;
        if is_written {
            self.segments += 1;
            self.dropped += dropped;
            self.folded += folded;
            self.left += left;
            self.bytes_after += thinned.bytes.len() as u64;
        } else {
            self.left += left + dropped - folded;
            self.bytes_after += before;
        }
    }
}

/// Removes what an interrupted pruning has left.
pub(super) fn clear(disk: &dyn Disk) -> Result<(), JournalError> {
    let io = |source| JournalError::Io { path: disk.path().to_owned(), source };
    for name in disk.names().map_err(io)? {
        if name.strip_suffix(UNFINISHED).and_then(segment::number).is_some() {
            disk.remove(&name).map_err(io)?;
        }
    }
    Ok(())
}

fn write(disk: &dyn Disk, segment: u64, thinned: &Thinned) -> io::Result<()> {
    let mut file = disk.create(&format!("{}{UNFINISHED}", segment::name(segment)))?;
    file.write_all(&thinned.bytes)?;
    file.sync_data()
}

fn failed(disk: &dyn Disk, segment: u64, source: io::Error) -> JournalError {
    JournalError::Io { path: disk.path().join(segment::name(segment)), source }
}
