//! The index that the API reads: accounts, channels, jobs, receipts. The only code that knows sled.
//!
//! The journal is the truth; this can be thrown away and is, whenever it is in doubt. sled 0.34 does not sync
//! when told to flush, panics on flipped bits and opens silently on an older state after a cut, so the index
//! carries its own position, counts and hashes, every value its own checksum, and every call a guard.
//! Writes go through a thread of their own; reads are blocking calls for threads that may block.

mod books;
mod entry;
mod files;
#[cfg(test)]
#[cfg(unix)]
mod tests;
mod writer;

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, TrySendError};
use std::sync::{Arc, RwLock};

use crate::journal::{Head, Position};

use entry::{full_key, range, read, unseal};
use files::{abandon, compare, create, quarantine, read_whole, words_of};
use writer::{Work, Writer};

/// Bounds the batches that wait for the writer; a batch is what one commit of the journal brought.
pub const APPLY_QUEUE_MAX: usize = 1024;

/// Bounds a key: two identities and an index prefix.
pub const KEY_BYTES_MAX: usize = 128;

/// sled is slow beyond one of its pages.
pub const VALUE_BYTES_MAX: usize = 16 << 10;

/// Bounds one page of a scan.
pub const SCAN_MAX: usize = 1000;

/// The sets of the index; the byte stands before each of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    Receipts = 1,
    Jobs = 2,
    Channels = 3,
    Accounts = 4,
    Meta = 5,
}

const TREES: usize = 5;

/// An entry that replaces whatever has its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub tree: Tree,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// What opening found.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// The caller applies what the journal has behind this.
    pub position: Position,
    /// Why the index begins at zero again, if it does.
    pub rebuild: Option<String>,
}

/// Why the index does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the index is in doubt and must be rebuilt: {0}")]
    Doubtful(String),
}

/// Why entries were not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The entries come back: apply them later, alone or with those of later records, but never skip them.
    #[error("{APPLY_QUEUE_MAX} batches wait for the index already")]
    Full(Vec<Put>),
    #[error(
        "an entry has a key of {key} and a value of {value} bytes; at most {KEY_BYTES_MAX} and {VALUE_BYTES_MAX}"
    )]
    TooLong { key: usize, value: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A key, without its tree, and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Which part of a tree to read.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    pub prefix: &'a [u8],
    pub order: Order,
    /// At most [`SCAN_MAX`] entries come back, whatever this says.
    pub limit: usize,
    /// The last key of the page before, which the next one begins behind.
    pub cursor: Option<&'a [u8]>,
}

/// The index with its writer; there is one, and any number of [`Reader`]s.
pub struct Store {
    path: PathBuf,
    reader: Reader,
    writer: Option<Writer>,
}

impl Store {
    /// Opens the index in the folder `path`, if it is whole and at a place that the journal knows; blocks.
    ///
    /// `head_at` returns the journal's chain head at a position, or nothing beyond its end. An index in doubt is put aside
    /// and an empty one takes its place; the caller replays the journal from [`Opened::position`].
    pub fn open(path: &Path, head_at: impl FnOnce(Position) -> Option<Head>) -> io::Result<(Self, Opened)> {
        let read = read_whole(path);
        let head = head_at(read.as_ref().map_or(Position(0), |(_, books)| books.position));
        let (db, books, rebuild) = match read.and_then(|(db, books)| compare(db, books, head)) {
            Ok((db, books)) => (db, books, None),
            Err(why) => {
                quarantine(path)?;
                let (db, books) = create(path)?;
                (db, books, Some(why))
            }
        };
        let position = books.position;
        let state = Arc::new(RwLock::new(State::Ready(db)));
        let reader = Reader { state };
        let writer = Some(Writer::start(reader.clone(), books)?);
        Ok((Self { path: path.to_owned(), reader, writer }, Opened { position, rebuild }))
    }

    /// Returns a handle for reading, which survives a rebuild.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Takes what the records up to `position` change; never waits. Only durable records may come here:
    /// an index ahead of its journal is thrown away.
    pub fn apply(&self, position: Position, head: Head, puts: Vec<Put>) -> Result<(), ApplyError> {
        self.reader.check()?;
        let oversized = |put: &&Put| put.key.len() > KEY_BYTES_MAX || put.value.len() > VALUE_BYTES_MAX;
        if let Some(put) = puts.iter().find(oversized) {
            return Err(ApplyError::TooLong { key: put.key.len(), value: put.value.len() });
        }
        match self.writer().send(Work::Apply { position, head, puts }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(Work::Apply { puts, .. })) => Err(ApplyError::Full(puts)),
            Err(TrySendError::Full(Work::Flush(_)) | TrySendError::Disconnected(_)) => {
                Err(self.reader.doubt("its writer has ended").into())
            }
        }
    }

    /// Blocks until everything taken so far can be read and is with the operating system.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.reader.check()?;
        let (done, wait) = mpsc::sync_channel(1);
        let sent = self.writer().sender.as_ref().is_some_and(|sender| sender.send(Work::Flush(done)).is_ok());
        if !sent || wait.recv().is_err() {
            return Err(self.reader.doubt("its writer has ended"));
        }
        self.reader.check()
    }

    /// Begins an empty index; blocks. One in doubt is put aside, a sound one removed. The caller replays the journal from
    /// zero.
    pub fn rebuild(&mut self) -> io::Result<()> {
        let was_sound = self.reader.close("it is being rebuilt");
        self.writer = None;
        if was_sound {
            fs::remove_dir_all(&self.path)?;
        } else {
            quarantine(&self.path)?;
        }
        let (db, books) = create(&self.path)?;
        *self.reader.state.write().expect("no holder panics") = State::Ready(db);
        self.writer = Some(Writer::start(self.reader.clone(), books)?);
        Ok(())
    }

    fn writer(&self) -> &Writer {
        self.writer.as_ref().expect("only a failed rebuild leaves none, and then the index is in doubt")
    }
}

/// Reads the index; every call blocks.
#[derive(Clone)]
pub struct Reader {
    state: Arc<RwLock<State>>,
}

enum State {
    Ready(sled::Db),
    Doubtful(String),
}

impl Reader {
    /// Returns the value of a key.
    pub fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.guarded(|db| read(db, &full_key(tree, key)))
    }

    /// Returns entries whose keys begin with a prefix, in the order of their keys.
    pub fn scan(&self, tree: Tree, scan: Scan<'_>) -> Result<Vec<Entry>, StoreError> {
        let Some(range) = range(tree, scan) else { return Ok(Vec::new()) };
        let limit = scan.limit.min(SCAN_MAX);
        let open = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = entry.map_err(|error| error.to_string())?;
            let value = unseal(&key, &value)?.to_vec();
            Ok((key[1..].to_vec(), value))
        };
        self.guarded(|db| match scan.order {
            Order::Ascending => db.range(range).take(limit).map(open).collect(),
            Order::Descending => db.range(range).rev().take(limit).map(open).collect(),
        })
    }

    fn check(&self) -> Result<(), StoreError> {
        self.db().map(drop)
    }

    fn db(&self) -> Result<sled::Db, StoreError> {
        match &*self.state.read().expect("no holder panics") {
            State::Ready(db) => Ok(db.clone()),
            State::Doubtful(why) => Err(StoreError::Doubtful(why.clone())),
        }
    }

    /// Lets `act` use sled; an error or a panic of it puts the index in doubt for everybody.
    fn guarded<T>(&self, act: impl FnOnce(&sled::Db) -> Result<T, String>) -> Result<T, StoreError> {
        let db = self.db()?;
        let outcome = catch_unwind(AssertUnwindSafe(|| act(&db)))
            .unwrap_or_else(|panic| Err(format!("sled panicked: {}", words_of(&*panic))));
        outcome.map_err(|why| self.doubt(&why))
    }

    /// Puts the index in doubt, if it is not already, and returns why it is.
    fn doubt(&self, why: &str) -> StoreError {
        if self.close(why) {
            tracing::warn!(why, "The index is in doubt");
        }
        self.db().err().unwrap_or_else(|| StoreError::Doubtful(why.to_owned()))
    }

    /// Lets nobody use sled any more; says whether anybody could.
    fn close(&self, why: &str) -> bool {
        let mut state = self.state.write().expect("no holder panics");
        let State::Ready(db) = &*state else { return false };
        drop(abandon(db.clone()));
        *state = State::Doubtful(why.to_owned());
        true
    }
}
