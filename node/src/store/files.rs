//! The folder of the index: opening it whole or not at all, and putting aside what is in doubt.

use std::any::Any;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crate::journal::Head;

use super::books::{BOOKS_KEY, Books};
use super::entry::{seal, tree_of, unseal};

/// sled's page cache: an index of a million receipts is read in pages, not kept.
const CACHE_BYTES: u64 = 8 << 20;

/// Sets of the index that are kept for a look after they were in doubt.
pub(super) const QUARANTINED_MAX: usize = 2;

/// A killed process holds sled's lock for a moment longer.
const LOCK_ATTEMPTS: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Opening reads all of the index, about 2 us an entry; one that takes longer than this hangs on damage.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a doubtful index may take to let go of its files.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens an index that exists and reads all of it; says what is wrong with it otherwise.
pub(super) fn read_whole(path: &Path) -> Result<(sled::Db, Books), String> {
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
pub(super) fn compare(db: sled::Db, books: Books, head: Option<Head>) -> Result<(sled::Db, Books), String> {
    let why = match head {
        Some(head) if head == books.head => return Ok((db, books)),
        Some(_) => format!("its history up to record {} is not the journal's", books.position),
        None => format!("it is at record {}, where the journal has none", books.position),
    };
    // So that nothing of it writes any more when its folder moves.
    let _ = abandon(db).recv_timeout(ABANDON_TIMEOUT);
    Err(why)
}

pub(super) fn create(path: &Path) -> io::Result<(sled::Db, Books)> {
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
pub(super) fn abandon(db: sled::Db) -> Receiver<()> {
    let (done, wait) = mpsc::sync_channel(1);
    let drop = move || {
        let _ = catch_unwind(AssertUnwindSafe(move || drop(db)));
        drop(done);
    };
    // Without a thread it is dropped right here, which is worse but not wrong.
    let _ = std::thread::Builder::new().name("index-drop".to_owned()).spawn(drop);
    wait
}

pub(super) fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Renames a folder in doubt and removes the oldest of those that were.
pub(super) fn quarantine(path: &Path) -> io::Result<()> {
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
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

pub(super) fn quarantined(path: &Path) -> io::Result<Vec<u64>> {
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
