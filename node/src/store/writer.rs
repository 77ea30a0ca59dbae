//! The thread that writes to the index: records are gathered, and applied in one batch.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::journal::{Head, Position};

use super::books::{BOOKS_KEY, Books};
use super::entry::{full_key, read, seal};
use super::{APPLY_QUEUE_MAX, Put, Reader, Tree};

/// Writes stay in sled's buffer for this long; losing them costs a replay from there.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// How long records are gathered before they are applied together: so much later does a reader see them.
const GATHER: Duration = Duration::from_millis(20);

/// Bounds what is applied together.
const GATHERED_MAX: usize = 256;

/// After so many at once there is no need to wait for more.
const MANY: usize = 64;

pub(super) enum Work {
    Apply { position: Position, head: Head, puts: Vec<Put> },
    Flush(SyncSender<()>),
}

pub(super) struct Writer {
    pub(super) sender: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(reader: Reader, books: Books) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(APPLY_QUEUE_MAX);
        let run = move || write(&reader, books, &receiver);
        let thread = std::thread::Builder::new().name("index".to_owned()).spawn(run)?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    pub(super) fn send(&self, work: Work) -> Result<(), TrySendError<Work>> {
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
