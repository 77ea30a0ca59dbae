//! The index that the API reads: accounts, channels, jobs, receipts. The only code that knows sled.
//!
//! The journal is the truth; this can be thrown away and is, whenever it is in doubt. sled 0.34 does not sync
//! when told to flush, panics on flipped bits and opens silently on an older state after a cut, so the index
//! carries its own position, counts and hashes, every value its own checksum, and every call a guard.
//! Writes go through a thread of their own; reads are blocking calls for threads that may block.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::journal::{GENESIS, Head, Position};

/// sled's page cache: an index of a million receipts is read in pages, not kept.
const CACHE_BYTES: u64 = 8 << 20;

/// Bounds the batches that wait for the writer; a batch is what one commit of the journal brought.
pub const APPLY_QUEUE_MAX: usize = 1024;

/// Bounds a key: two identities and an index prefix.
pub const KEY_BYTES_MAX: usize = 128;

/// sled is slow beyond one of its pages.
pub const VALUE_BYTES_MAX: usize = 16 << 10;

/// Bounds one page of a scan.
pub const SCAN_MAX: usize = 1000;

/// Sets of the index that are kept for a look after they were in doubt.
const QUARANTINED_MAX: usize = 2;

/// Writes stay in sled's buffer for this long; losing them costs a replay from there.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// How long records are gathered before they are applied together: so much later does a reader see them.
const GATHER: Duration = Duration::from_millis(20);

/// Bounds what is applied together.
const GATHERED_MAX: usize = 256;

/// After so many at once there is no need to wait for more.
const MANY: usize = 64;

/// A killed process holds sled's lock for a moment longer.
const LOCK_ATTEMPTS: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Opening reads all of the index, about 2 us an entry; one that takes longer than this hangs on damage.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a doubtful index may take to let go of its files.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(5);

const VALUE_VERSION: u8 = 1;
const VALUE_OVERHEAD: usize = 5;
const BOOKS_KEY: &[u8] = &[0];

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
    /// `head_at` returns the journal's chain head at a position, or nothing beyond its end. It is asked once all of the
    /// index has been read and before anything is changed; its error ends the opening. An index in doubt is put aside and
    /// an empty one takes its place; the caller replays the journal from [`Opened::position`].
    pub fn open(
        path: &Path,
        head_at: impl FnOnce(Position) -> io::Result<Option<Head>>,
    ) -> io::Result<(Self, Opened)> {
        let read = read_whole(path);
        let head = head_at(read.as_ref().map_or(Position(0), |(_, books)| books.position))?;
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

    /// Puts a doubtful index aside and begins an empty one; blocks. The caller replays the journal from zero.
    pub fn rebuild(&mut self) -> io::Result<()> {
        self.reader.doubt("it is being rebuilt");
        self.writer = None;
        quarantine(&self.path)?;
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
        let mut state = self.state.write().expect("no holder panics");
        if let State::Ready(db) = &*state {
            tracing::warn!(why, "The index is in doubt");
            drop(abandon(db.clone()));
            *state = State::Doubtful(why.to_owned());
        }
        match &*state {
            State::Ready(_) => unreachable!("it was put in doubt just now"),
            State::Doubtful(why) => StoreError::Doubtful(why.clone()),
        }
    }
}

enum Work {
    Apply { position: Position, head: Head, puts: Vec<Put> },
    Flush(SyncSender<()>),
}

struct Writer {
    sender: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(reader: Reader, books: Books) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(APPLY_QUEUE_MAX);
        let run = move || write(&reader, books, &receiver);
        let thread = std::thread::Builder::new().name("index".to_owned()).spawn(run)?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    fn send(&self, work: Work) -> Result<(), TrySendError<Work>> {
        match &self.sender {
            Some(sender) => sender.try_send(work),
            None => Err(TrySendError::Disconnected(work)),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // Its panics are caught inside; what remains is nothing that a caller could act on.
            let _ = thread.join();
        }
    }
}

/// Applies batches until nobody sends any more or the index is in doubt.
fn write(reader: &Reader, mut books: Books, work: &Receiver<Work>) {
    let mut dirty = false;
    let mut many = false;
    loop {
        let first = match work.recv_timeout(FLUSH_INTERVAL) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                if std::mem::take(&mut dirty) && reader.guarded(flush).is_err() {
                    return;
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => {
                let _ = reader.guarded(flush);
                return;
            }
        };
        let gathered = Gathered::after(first, work, many);
        many = gathered.works >= MANY;
        if let Some((position, head)) = gathered.end {
            dirty = true;
            if reader.guarded(|db| apply(db, &mut books, position, head, gathered.puts)).is_err() {
                return;
            }
        }
        let Some(reply) = gathered.flush else { continue };
        if reader.guarded(flush).is_err() {
            return;
        }
        // Whoever asked may have gone.
        let _ = reply.try_send(());
    }
}

/// Work that is done at once: the index would otherwise be woken for each record, just while others wait for an answer.
struct Gathered {
    works: usize,
    puts: Vec<Put>,
    /// Up to where the puts go.
    end: Option<(Position, Head)>,
    /// Ends the gathering, because somebody waits.
    flush: Option<SyncSender<()>>,
}

impl Gathered {
    /// Takes what comes with `first`, after a while unless there is much to do.
    fn after(first: Work, work: &Receiver<Work>, hurry: bool) -> Self {
        let mut gathered = Self { works: 0, puts: Vec::new(), end: None, flush: None };
        let is_apply = matches!(first, Work::Apply { .. });
        gathered.take(first);
        if is_apply && !hurry {
            std::thread::sleep(GATHER);
        }
        while gathered.works < GATHERED_MAX && gathered.flush.is_none() {
            let Ok(next) = work.try_recv() else { break };
            gathered.take(next);
        }
        gathered
    }

    fn take(&mut self, work: Work) {
        self.works += 1;
        match work {
            Work::Apply { position, head, puts } => {
                self.puts.extend(puts);
                self.end = Some((position, head));
            }
            Work::Flush(reply) => self.flush = Some(reply),
        }
    }
}

fn flush(db: &sled::Db) -> Result<(), String> {
    db.flush().map(drop).map_err(|error| error.to_string())
}

fn apply(
    db: &sled::Db,
    books: &mut Books,
    position: Position,
    head: Head,
    puts: Vec<Put>,
) -> Result<(), String> {
    assert!(position >= books.position, "the index only moves forward");
    let mut next = books.clone();
    next.position = position;
    next.head = head;
    // The last put of a key wins, and the books count it once.
    let latest: BTreeMap<Vec<u8>, (Tree, Vec<u8>)> =
        puts.into_iter().map(|put| (full_key(put.tree, &put.key), (put.tree, put.value))).collect();
    let mut batch = sled::Batch::default();
    for (key, (tree, value)) in latest {
        if let Some(old) = read(db, &key)? {
            next.remove(tree, &key, &old);
        }
        next.add(tree, &key, &value);
        batch.insert(key.as_slice(), seal(&key, &value));
    }
    batch.insert(BOOKS_KEY, seal(BOOKS_KEY, &next.encode()));

    db.apply_batch(batch).map_err(|error| error.to_string())?;
    *books = next;
    Ok(())
}

/// What the index says of itself, written in one batch with what it speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Books {
    position: Position,
    head: Head,
    totals: [Total; TREES],
}

/// How many entries a tree has, and the sum of their hashes, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Total {
    count: u64,
    sum: u128,
}

impl Books {
    const BYTES: usize = 8 + 32 + TREES * 24;

    fn empty() -> Self {
        Self { position: Position(0), head: GENESIS, totals: [Total::default(); TREES] }
    }

    fn add(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        let total = &mut self.totals[tree as usize - 1];
        total.count += 1;
        total.sum = total.sum.wrapping_add(hash(key, value));
    }

    fn remove(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        let total = &mut self.totals[tree as usize - 1];
        // A damaged count must not stop the node; it is found when the index is opened.
        total.count = total.count.wrapping_sub(1);
        total.sum = total.sum.wrapping_sub(hash(key, value));
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend_from_slice(&self.position.0.to_le_bytes());
        bytes.extend_from_slice(&self.head);
        for total in &self.totals {
            bytes.extend_from_slice(&total.count.to_le_bytes());
            bytes.extend_from_slice(&total.sum.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let (position, rest) = bytes.split_first_chunk()?;
        let (head, mut rest) = rest.split_first_chunk()?;
        let mut totals = [Total::default(); TREES];
        for total in &mut totals {
            let (count, after) = rest.split_first_chunk()?;
            let (sum, after) = after.split_first_chunk()?;
            *total = Total { count: u64::from_le_bytes(*count), sum: u128::from_le_bytes(*sum) };
            rest = after;
        }
        Some(Self { position: Position(u64::from_le_bytes(*position)), head: *head, totals })
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    u128::from_le_bytes(hasher.finalize().as_bytes()[..16].try_into().expect("16 bytes"))
}

fn full_key(tree: Tree, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(tree as u8);
    full.extend_from_slice(key);
    full
}

fn tree_of(key: &[u8]) -> Option<Tree> {
    match key.first()? {
        1 => Some(Tree::Receipts),
        2 => Some(Tree::Jobs),
        3 => Some(Tree::Channels),
        4 => Some(Tree::Accounts),
        5 => Some(Tree::Meta),
        _ => None,
    }
}

type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Returns the bounds of a scan, or nothing when its cursor is not inside its prefix.
fn range(tree: Tree, scan: Scan<'_>) -> Option<Range> {
    let start = full_key(tree, scan.prefix);
    let mut end = start.clone();
    // The tree's own byte is far below 255, so that something always has a successor.
    while end.pop_if(|byte| *byte == u8::MAX).is_some() {}
    *end.last_mut().expect("the tree's byte remains") += 1;

    let (lower, upper) = (Bound::Included(start), Bound::Excluded(end));
    let Some(cursor) = scan.cursor else { return Some((lower, upper)) };
    if !cursor.starts_with(scan.prefix) {
        return None;
    }
    let cursor = Bound::Excluded(full_key(tree, cursor));
    Some(match scan.order {
        Order::Ascending => (cursor, upper),
        Order::Descending => (lower, cursor),
    })
}

fn read(db: &sled::Db, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let value = db.get(key).map_err(|error| error.to_string())?;
    value.map(|value| unseal(key, &value).map(<[u8]>::to_vec)).transpose()
}

// The key is part of the checksum: a value that turns up under another key is damage too.
fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(VALUE_OVERHEAD + value.len());
    sealed.push(VALUE_VERSION);
    sealed.extend_from_slice(&checksum(key, value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], String> {
    let (overhead, value) =
        sealed.split_first_chunk::<VALUE_OVERHEAD>().ok_or("a value is too short".to_owned())?;
    let [version, checksum @ ..] = *overhead;
    if version != VALUE_VERSION {
        return Err(format!("a value has version {version}"));
    }
    if u32::from_le_bytes(checksum) != self::checksum(key, value) {
        return Err("a value does not have its checksum".to_owned());
    }
    Ok(value)
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

/// Opens an index that exists and reads all of it; says what is wrong with it otherwise.
fn read_whole(path: &Path) -> Result<(sled::Db, Books), String> {
    if !path.is_dir() {
        return Err("there is none".to_owned());
    }
    // Damage may end the process where nothing can be caught, by asking for all memory. Then this remains.
    let attempt = beside(path, "opening");
    if attempt.exists() {
        return Err("the last attempt to open it did not end".to_owned());
    }
    fs::write(&attempt, []).map_err(|error| error.to_string())?;
    let outcome = guard({
        let path = path.to_owned();
        move || {
            let db = open_sled(&path)?;
            let books = audit(&db)?;
            Ok((db, books))
        }
    });
    fs::remove_file(&attempt).map_err(|error| error.to_string())?;
    outcome
}

/// Compares an index with what the journal has at its place.
fn compare(db: sled::Db, books: Books, head: Option<Head>) -> Result<(sled::Db, Books), String> {
    let why = match head {
        Some(head) if head == books.head => return Ok((db, books)),
        Some(_) => format!("its history up to record {} is not the journal's", books.position),
        None => format!("it is at record {}, where the journal has none", books.position),
    };
    // So that nothing of it writes any more when its folder moves.
    let _ = abandon(db).recv_timeout(ABANDON_TIMEOUT);
    Err(why)
}

fn create(path: &Path) -> io::Result<(sled::Db, Books)> {
    remove_if_there(&beside(path, "opening"))?;
    let path = path.to_owned();
    let books = Books::empty();
    let first = seal(BOOKS_KEY, &books.encode());
    let db = guard(move || {
        let db = open_sled(&path)?;
        db.insert(BOOKS_KEY, first).map_err(|error| error.to_string())?;
        Ok(db)
    });
    db.map(|db| (db, books)).map_err(|why| io::Error::other(format!("a new index cannot be created: {why}")))
}

fn open_sled(path: &Path) -> Result<sled::Db, String> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let mut attempts = 0;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("lock") && attempts < LOCK_ATTEMPTS => {
                attempts += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            outcome => return outcome.map_err(|error| error.to_string()),
        }
    }
}

/// Compares all entries with the books.
fn audit(db: &sled::Db) -> Result<Books, String> {
    let mut found = Books::empty();
    let mut books = None;
    for entry in db.iter() {
        let (key, value) = entry.map_err(|error| error.to_string())?;
        let value = unseal(&key, &value)?;
        if key == BOOKS_KEY {
            books = Books::decode(value);
        } else {
            let tree = tree_of(&key).ok_or("a key belongs to no tree".to_owned())?;
            found.add(tree, &key, value);
        }
    }
    let books = books.ok_or("it has no books".to_owned())?;
    if books.totals != found.totals {
        return Err("its entries are not those that its books count".to_owned());
    }
    Ok(books)
}

/// Runs what may panic or hang on a thread of its own.
fn guard<T: Send + 'static>(act: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let run = move || {
        let outcome = catch_unwind(AssertUnwindSafe(act))
            .unwrap_or_else(|panic| Err(format!("sled panicked: {}", words_of(&*panic))));
        // Nobody waits any more when this comes too late.
        let _ = sender.try_send(outcome);
    };
    std::thread::Builder::new()
        .name("index-open".to_owned())
        .spawn(run)
        .map_err(|error| error.to_string())?;
    receiver.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(|_| Err("opening it does not end".to_owned()))
}

/// Drops a doubtful database where its panics and its waiting harm nobody; what it returns hangs up after that.
fn abandon(db: sled::Db) -> Receiver<()> {
    let (done, wait) = mpsc::sync_channel(1);
    let drop = move || {
        let _ = catch_unwind(AssertUnwindSafe(move || drop(db)));
        drop(done);
    };
    // Without a thread it is dropped right here, which is worse but not wrong.
    let _ = std::thread::Builder::new().name("index-drop".to_owned()).spawn(drop);
    wait
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Renames a folder in doubt and removes the oldest of those that were.
fn quarantine(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut kept = quarantined(path)?;
    let next = kept.last().map_or(1, |last| last + 1);
    fs::rename(path, quarantine_path(path, next))?;
    kept.push(next);
    while kept.len() > QUARANTINED_MAX {
        fs::remove_dir_all(quarantine_path(path, kept.remove(0)))?;
    }
    Ok(())
}

fn quarantine_path(path: &Path, number: u64) -> PathBuf {
    beside(path, &format!("quarantined-{number}"))
}

/// Returns the path with an ending of its own after whatever name it has.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

fn quarantined(path: &Path) -> io::Result<Vec<u64>> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix(&stem).and_then(|rest| rest.strip_prefix(".quarantined-"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    use tempfile::TempDir;

    use super::*;

    const COUNT: u64 = 400;

    /// The head that the tests' journal has at a position; it ends at `COUNT`.
    #[expect(clippy::unnecessary_wraps, reason = "an index is opened with a function that may fail")]
    fn head_at(position: Position) -> io::Result<Option<Head>> {
        Ok((position.0 <= COUNT).then(|| head_of(position.0)))
    }

    fn head_of(position: u64) -> Head {
        let mut head = GENESIS;
        head[..8].copy_from_slice(&position.to_le_bytes());
        head
    }

    fn puts_of(position: u64) -> Vec<Put> {
        let receipt = Put {
            tree: Tree::Receipts,
            key: position.to_be_bytes().to_vec(),
            value: vec![position as u8; 20 + (position % 300) as usize],
        };
        let account = Put {
            tree: Tree::Accounts,
            key: vec![(position % 7) as u8],
            value: position.to_le_bytes().to_vec(),
        };
        vec![receipt, account]
    }

    fn replay(store: &Store, after: Position, until: u64) {
        for position in after.0 + 1..=until {
            let mut puts = puts_of(position);
            loop {
                match store.apply(Position(position), head_of(position), puts) {
                    Ok(()) => break,
                    Err(ApplyError::Full(back)) => puts = back,
                    Err(error) => panic!("{error}"),
                }
                store.flush().unwrap();
            }
        }
        store.flush().unwrap();
    }

    fn contents(reader: &Reader) -> Result<Vec<Entry>, StoreError> {
        let mut all = Vec::new();
        for tree in [Tree::Receipts, Tree::Jobs, Tree::Channels, Tree::Accounts, Tree::Meta] {
            let mut cursor: Option<Vec<u8>> = None;
            loop {
                let scan =
                    Scan { prefix: &[], order: Order::Ascending, limit: 150, cursor: cursor.as_deref() };
                let page = reader.scan(tree, scan)?;
                let Some((last, _)) = page.last() else { break };
                cursor = Some(last.clone());
                all.extend(page);
            }
        }
        Ok(all)
    }

    fn filled(path: &Path) -> Vec<Entry> {
        let (store, opened) = Store::open(path, head_at).unwrap();
        assert_eq!(opened.position, Position(0));
        replay(&store, Position(0), COUNT);
        contents(&store.reader()).unwrap()
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    /// The largest file: where sled keeps its pages.
    fn pages(index: &Path) -> PathBuf {
        let files = fs::read_dir(index).unwrap().map(|entry| entry.unwrap());
        files.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap().path()
    }

    /// Opens a spoilt index, replays what it asks for, and compares it with the whole one.
    fn check_heals(index: &Path, expected: &[Entry]) -> Option<String> {
        let (mut store, opened) = Store::open(index, head_at).unwrap();
        replay(&store, opened.position, COUNT);
        let mut why = opened.rebuild;
        if let Err(StoreError::Doubtful(late)) = contents(&store.reader()) {
            store.rebuild().unwrap();
            replay(&store, Position(0), COUNT);
            why = Some(late);
        }
        assert_eq!(contents(&store.reader()).unwrap(), expected);
        why
    }

    #[test]
    fn a_closed_index_opens_where_it_was() {
        let temporary = TempDir::new().unwrap();
        let path = temporary.path().join("index");
        let expected = filled(&path);

        let (store, opened) = Store::open(&path, head_at).unwrap();

        assert_eq!(opened, Opened { position: Position(COUNT), rebuild: None });
        assert_eq!(contents(&store.reader()).unwrap(), expected);
        assert_eq!(expected.len(), COUNT as usize + 7);
    }

    #[test]
    fn an_index_behind_its_journal_is_continued() {
        let temporary = TempDir::new().unwrap();
        let expected = filled(&temporary.path().join("whole"));
        let path = temporary.path().join("index");
        let (store, _) = Store::open(&path, head_at).unwrap();
        replay(&store, Position(0), 100);
        drop(store);

        let (store, opened) = Store::open(&path, head_at).unwrap();
        assert_eq!(opened, Opened { position: Position(100), rebuild: None });
        replay(&store, Position(100), COUNT);

        assert_eq!(contents(&store.reader()).unwrap(), expected);
    }

    #[test]
    fn an_index_ahead_of_its_journal_or_beside_it_is_put_aside() {
        let temporary = TempDir::new().unwrap();
        let path = temporary.path().join("index");
        filled(&path);

        let shorter = |position: Position| Ok(head_at(position)?.filter(|_| position.0 < COUNT));
        let (store, opened) = Store::open(&path, shorter).unwrap();
        assert!(opened.rebuild.unwrap().contains("where the journal has none"));
        replay(&store, Position(0), COUNT);
        drop(store);

        let (store, opened) = Store::open(&path, |_| Ok(Some([7; 32]))).unwrap();
        assert!(opened.rebuild.unwrap().contains("is not the journal's"));
        drop(store);

        for _ in 0..3 {
            Store::open(&path, |_| Ok(Some([8; 32]))).unwrap();
        }
        assert_eq!(quarantined(&path).unwrap().len(), QUARANTINED_MAX);
    }

    #[test]
    fn an_index_deleted_or_cut_is_rebuilt_or_continued_with_equal_contents() {
        let temporary = TempDir::new().unwrap();
        let whole = temporary.path().join("whole");
        let expected = filled(&whole);

        let missing = temporary.path().join("missing");
        assert_eq!(check_heals(&missing, &expected).as_deref(), Some("there is none"));
        for twentieth in 0..20 {
            let index = temporary.path().join(format!("cut{twentieth}"));
            copy(&whole, &index);
            let pages = OpenOptions::new().write(true).open(pages(&index)).unwrap();
            let length = pages.metadata().unwrap().len();
            pages.set_len(length * twentieth / 20).unwrap();
            check_heals(&index, &expected);
        }
    }

    /// Flips one bit in each of 20 copies and returns how many of them began at zero again.
    fn flip_bits(whole: &Path, expected: &[Entry], file: impl Fn(&Path) -> PathBuf, seed: u64) -> usize {
        let mut random = seed;
        let mut rebuilt = 0;
        for flip in 0..20 {
            let index = whole.with_extension(format!("flip{flip}"));
            copy(whole, &index);
            let file = OpenOptions::new().read(true).write(true).open(file(&index)).unwrap();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // sled's file is filled up with empty space; all that these tests write is in front of this.
            let place = (random >> 33) % file.metadata().unwrap().len().min(250_000);
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            byte[0] ^= 1 << (random >> 30 & 7);
            file.write_all_at(&byte, place).unwrap();

            rebuilt += usize::from(check_heals(&index, expected).is_some());
            fs::remove_dir_all(index).unwrap();
        }
        rebuilt
    }

    #[test]
    fn an_index_with_one_flipped_bit_is_whole_or_behind_or_rebuilt() {
        let temporary = TempDir::new().unwrap();
        let path = temporary.path().join("index");
        let expected = filled(&path);
        // Never opened again: sled reads its log, and stops at the flip as if the rest had never been.
        flip_bits(&path, &expected, pages, 1);

        // Opened again: sled believes its snapshot, and meets the flip while reading.
        drop(Store::open(&path, head_at).unwrap());
        let snapshot = |index: &Path| {
            let mut files = fs::read_dir(index).unwrap().map(|entry| entry.unwrap().path());
            files.find(|file| file.file_name().unwrap().to_string_lossy().starts_with("snap")).unwrap()
        };
        assert!(flip_bits(&path, &expected, pages, 2) > 0);
        assert!(flip_bits(&path, &expected, snapshot, 3) > 0);
    }

    #[test]
    fn an_opening_that_killed_the_process_is_not_tried_again() {
        let temporary = TempDir::new().unwrap();
        let path = temporary.path().join("index");
        let expected = filled(&path);
        fs::write(beside(&path, "opening"), []).unwrap();

        assert!(check_heals(&path, &expected).unwrap().contains("did not end"));

        let (_store, opened) = Store::open(&path, head_at).unwrap();
        assert_eq!(opened.rebuild, None);
    }

    #[test]
    fn a_panic_while_reading_puts_the_index_in_doubt_until_it_is_rebuilt() {
        let temporary = TempDir::new().unwrap();
        let path = temporary.path().join("index");
        let (mut store, _) = Store::open(&path, head_at).unwrap();
        let reader = store.reader();

        let doubt: Result<(), _> = reader.guarded(|_| panic!("as sled does"));
        assert_eq!(doubt, Err(StoreError::Doubtful("sled panicked: as sled does".to_owned())));
        assert_eq!(reader.get(Tree::Jobs, b"key").unwrap_err(), doubt.unwrap_err());
        assert!(matches!(store.apply(Position(1), GENESIS, Vec::new()), Err(ApplyError::Store(_))));

        store.rebuild().unwrap();
        replay(&store, Position(0), COUNT);
        assert_eq!(contents(&reader).unwrap().len(), COUNT as usize + 7);
    }

    #[test]
    fn scans_page_in_both_directions_and_stay_inside_their_prefix() {
        let temporary = TempDir::new().unwrap();
        let (store, _) = Store::open(&temporary.path().join("index"), head_at).unwrap();
        let keys: [&[u8]; 6] = [b"a", b"b", b"b\x00", b"b\xff", b"b\xff\xff", b"c"];
        let put = |key: &&[u8]| Put { tree: Tree::Jobs, key: key.to_vec(), value: key.to_vec() };
        store.apply(Position(1), GENESIS, keys.iter().map(put).collect()).unwrap();
        let other = Put { tree: Tree::Channels, key: b"b1".to_vec(), value: Vec::new() };
        store.apply(Position(2), GENESIS, vec![other]).unwrap();
        store.flush().unwrap();
        let reader = store.reader();
        let keys_of = |prefix, order, limit, cursor| -> Vec<Vec<u8>> {
            let scan = Scan { prefix, order, limit, cursor };
            reader.scan(Tree::Jobs, scan).unwrap().into_iter().map(|(key, _)| key).collect()
        };

        assert_eq!(keys_of(b"b", Order::Ascending, 9, None), keys[1..5]);
        assert_eq!(keys_of(b"b", Order::Ascending, 2, Some(b"b\x00")), keys[3..5]);
        assert_eq!(keys_of(b"b", Order::Descending, 2, None), [keys[4], keys[3]]);
        assert_eq!(keys_of(b"b", Order::Descending, 9, Some(b"b\xff")), [keys[2], keys[1]]);
        assert_eq!(keys_of(b"", Order::Ascending, 9, None), keys);
        assert_eq!(keys_of(b"b", Order::Ascending, 9, Some(b"c")), Vec::<Vec<u8>>::new());
        assert_eq!(keys_of(b"b\xff", Order::Ascending, 9, None), keys[3..5]);
        assert_eq!(reader.get(Tree::Jobs, b"b\x00").unwrap().as_deref(), Some(&b"b\x00"[..]));
        assert_eq!(reader.get(Tree::Accounts, b"b\x00").unwrap(), None);
    }

    #[test]
    fn entries_that_are_too_long_are_refused() {
        let temporary = TempDir::new().unwrap();
        let (store, _) = Store::open(&temporary.path().join("index"), head_at).unwrap();
        let put = Put { tree: Tree::Meta, key: vec![0; KEY_BYTES_MAX + 1], value: Vec::new() };

        let refused = store.apply(Position(1), GENESIS, vec![put]);

        assert_eq!(refused, Err(ApplyError::TooLong { key: KEY_BYTES_MAX + 1, value: 0 }));
    }
}
