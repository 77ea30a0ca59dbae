//! The file of all keys, written whole by a thread of its own; whoever waits at once is served by one writing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::exit::Failure;
use crate::folder::{Access, write_atomically};
use crate::models::cannot;

use super::book::Book;

/// Its name in the data folder.
pub(super) const FILE: &str = "api-keys.json";

/// Arrangement of the file.
const FORMAT: u32 = 1;

/// Bounds the file: all keys with all that can be set aside.
const BYTES_MAX: u64 = 4 << 20;

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    #[serde(flatten)]
    book: &'a Book,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
    #[serde(flatten)]
    book: serde_json::Value,
}

/// Reads the keys of a data folder; no file has none.
pub(super) fn read(data: &Path) -> Result<Book, Failure> {
    let path = data.join(FILE);
    let bytes = match fs::metadata(&path).and_then(|known| match known.len() > BYTES_MAX {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => fs::read(&path),
    }) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Book::default()),
        Err(error) => return Err(cannot("read", &path, &error)),
    };
    let damaged = |why: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "{} is damaged ({why}): put back a copy of it, or remove it, which ends all API keys",
            path.display()
        ))
    };
    let Format { format, book } = serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
    if format != FORMAT {
        let words =
            format!("{} has format {format}; this program knows {FORMAT}: use a newer one", path.display());
        return Err(Failure::usage(words));
    }
    let book: Book = serde_json::from_value(book).map_err(|error| damaged(&error))?;
    book.take_over().map_err(|failure| damaged(&failure))
}

/// Writes the keys whenever they have changed.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    done: watch::Receiver<Done>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    book: Arc<Mutex<Book>>,
    /// Whether somebody has something to write.
    asked: Mutex<bool>,
    wake: Condvar,
    stop: AtomicBool,
}

/// How far writing has come.
#[derive(Clone, Debug, Default)]
struct Done {
    /// The last change that is on disk.
    written: u64,
    /// The last change that could not be written, and why.
    failed: Option<(u64, String)>,
}

impl Keeper {
    pub(super) fn start(data: &Path, book: Arc<Mutex<Book>>) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            path: data.join(FILE),
            book,
            asked: Mutex::new(false),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let (sender, done) = watch::channel(Done::default());
        let thread = shared.clone();
        std::thread::Builder::new()
            .name("api-keys".to_owned())
            .spawn(move || thread.run(&sender))
            .map_err(|error| Failure::internal(format!("cannot start a thread: {error}")))?;
        Ok(Self { shared, done })
    }

    /// Has what has changed written soon.
    pub(super) fn wake(&self) {
        *self.shared.asked.lock().expect("nothing panics while it holds this") = true;
        self.shared.wake.notify_one();
    }

    /// Waits until a change is on disk.
    pub(super) async fn written(&self, version: u64) -> Result<(), Failure> {
        self.wake();
        let mut done = self.done.clone();
        let is_over = |done: &Done| {
            done.written >= version || done.failed.as_ref().is_some_and(|(failed, _)| *failed >= version)
        };
        let ended = || Failure::internal("the API keys are not written any more: the node is going down");
        let done = done.wait_for(is_over).await.map_err(|_| ended())?;
        match &done.failed {
            Some((failed, why)) if done.written < version && *failed >= version => {
                Err(Failure::internal(format!("{why}: nothing was spent")))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self, done: &watch::Sender<Done>) {
        while !self.stop.load(Ordering::Relaxed) {
            self.sleep();
            let (version, text) = self.text();
            if version <= done.borrow().written {
                continue;
            }
            let written = text.and_then(|text| write_atomically(&self.path, &text, Access::Private));
            done.send_modify(|done| match written {
                Ok(()) => done.written = version,
                Err(error) => {
                    let why = cannot("write", &self.path, &error).message;
                    tracing::error!(%why, "Cannot write the API keys");
                    done.failed = Some((version, why));
                }
            });
        }
    }

    fn sleep(&self) {
        let asked = self.asked.lock().expect("nothing panics while it holds this");
        let mut asked =
            self.wake.wait_while(asked, |asked| !*asked).expect("nothing panics while it holds this");
        *asked = false;
    }

    fn text(&self) -> (u64, io::Result<Vec<u8>>) {
        let book = self.book.lock().expect("nothing panics while it holds the keys");
        let text = serde_json::to_vec_pretty(&Written { format: FORMAT, book: &book });
        (book.version(), text.map_err(io::Error::other))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ApiKeys, Limits, Worst};
    use super::*;
    use crate::exit::FailureKind;

    const LIMITS: Limits =
        Limits { budget_nano: Some(9), per_day_nano: None, requests_per_minute: 1, jobs_at_once: 1 };

    #[test]
    fn a_damaged_or_newer_file_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().expect("temporary folder");
        for (text, word) in [
            ("{", "damaged"),
            (r#"{"format":2}"#, "newer"),
            (r#"{"format":1,"keys":[{}]}"#, "damaged"),
            (r#"{"format":1,"keys":[],"more":1}"#, "damaged"),
        ] {
            fs::write(folder.path().join(FILE), text).expect("writable");
            let failure = ApiKeys::open(folder.path()).expect_err(text);
            assert_eq!(failure.kind, FailureKind::Usage);
            assert!(failure.message.contains(word) && failure.message.contains(FILE), "{failure}");
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn the_file_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(folder.path()).expect("new");
        keys.create("k", LIMITS).await.expect("room");

        let mode = fs::metadata(folder.path().join(FILE)).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_job_is_not_placed_when_its_price_cannot_be_written() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(folder.path()).expect("new");
        let made = keys.create("k", LIMITS).await.expect("room");
        let key = keys.find(&made.key).expect("known");
        let kept = folder.path().join("kept");
        fs::rename(folder.path().join(FILE), &kept).expect("there");
        // A folder cannot be replaced by a file.
        fs::create_dir_all(folder.path().join(FILE).join("in the way")).expect("writable");
        let worst = [Worst { job: [1; 16], least: 9, most: 9 }];

        let failure = keys.reserve(&key, &worst).await.expect_err("not durable");

        assert_eq!(failure.kind, FailureKind::Internal);
        fs::remove_dir_all(folder.path().join(FILE)).expect("ours");
        assert!(keys.reserve(&key, &worst).await.is_ok(), "it was given back, and the disk is well again");
    }
}
