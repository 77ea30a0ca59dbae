//! Keys with which others use this node's API, and spend no more of its account than each was given.
//!
//! In reading order: [`Limits`] is what a key may do; `book` has the rules, without a clock or a disk; `entry` is one key as
//! it is kept; `file` writes all of it to `<data>/api-keys.json`. What a job may cost is on disk before the job leaves, so
//! that no crash gives back what was spent.

mod book;
mod entry;
mod file;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::api::views::{KeyMadeView, KeyView};
use crate::clock::Clock;
use crate::command::JobId;
use crate::exit::{Failure, FailureKind};

use book::Book;
pub use entry::{KeyId, Limits};
use file::Keeper;

/// What every key begins with, so that people and programs that look for leaked secrets know it.
pub const PREFIX: &str = "smk-";

/// Hexadecimal digits after it: 256 bits, which nobody guesses, so a fast hash of them is safe to keep.
const DIGITS: usize = 64;

/// What a job may cost under a key: at least so much, and no more than this is ever needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worst {
    /// The job.
    pub job: JobId,
    /// The worst case at the cheapest provider that can be used, in nano-credits.
    pub least: u64,
    /// The worst case at the dearest.
    pub most: u64,
}

/// What was used of a key by one job that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// What it cost, in nano-credits.
    pub nano: u64,
    /// Tokens of the prompt.
    pub tokens_in: u64,
    /// Tokens of the answer.
    pub tokens_out: u64,
}

/// All keys of a node; clones share them.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    book: Arc<Mutex<Book>>,
    keeper: Arc<Keeper>,
    clock: Clock,
}

impl ApiKeys {
    /// Reads the keys of a data folder that this process has locked, and starts the thread that writes them.
    ///
    /// Jobs that were under way when the process before ended count in full: nobody knows what they cost.
    pub fn open(data: &Path) -> Result<Self, Failure> {
        let book = Arc::new(Mutex::new(file::read(data)?));
        let keeper = Arc::new(Keeper::start(data, book.clone())?);
        Ok(Self { book, keeper, clock: Clock::start(0) })
    }

    /// Says whether a data folder has a key that may be used.
    pub fn any_in(data: &Path) -> Result<bool, Failure> {
        Ok(file::read(data)?.active() > 0)
    }

    /// Makes a key; the answer alone has the secret. It is on disk before this returns.
    pub async fn create(&self, name: &str, limits: Limits) -> Result<KeyMadeView, Failure> {
        let secret = draw();
        let view = self.lock().create(name, limits, hash(&secret), self.clock.now_ms())?;
        self.keep().await?;
        Ok(KeyMadeView { key: secret, info: view })
    }

    /// Returns all keys, newest first, revoked ones included.
    #[must_use]
    pub fn list(&self) -> Vec<KeyView> {
        self.lock().list(self.clock.now_ms())
    }

    /// Returns the key with this name or id.
    pub fn show(&self, name: &str) -> Result<KeyView, Failure> {
        self.lock().show(name, self.clock.now_ms())
    }

    /// Lets nobody use a key any more; repeating changes nothing. Jobs that run under it end as they would.
    pub async fn revoke(&self, name: &str) -> Result<KeyView, Failure> {
        let view = self.lock().revoke(name, self.clock.now_ms())?;
        self.keep().await?;
        Ok(view)
    }

    /// Returns whose secret this is, if it is that of a key that may be used.
    #[must_use]
    pub fn find(&self, secret: &str) -> Option<KeyId> {
        let digits = secret.strip_prefix(PREFIX)?;
        (digits.len() == DIGITS).then(|| self.lock().find(&hash(secret))).flatten()
    }

    /// Counts a request against a key's rate; returns how many the minute and what is left of it have room for.
    pub fn request(&self, key: &KeyId) -> Result<(u32, u32), Failure> {
        self.lock().request(key, self.clock.now_ms())
    }

    /// Sets aside what jobs may cost, all or none, and returns once that is on disk. Dropping a reservation before its job
    /// was placed gives it back.
    pub async fn reserve(&self, key: &KeyId, jobs: &[Worst]) -> Result<Vec<Reserved>, Failure> {
        let granted = self.lock().reserve(key, jobs, self.clock.now_ms())?;
        let reserved = |(worst, nano): (&Worst, u64)| Reserved {
            keys: self.clone(),
            key: key.clone(),
            job: worst.job,
            nano,
            placed: false,
        };
        let all: Vec<Reserved> = jobs.iter().zip(granted).map(reserved).collect();
        if all.iter().any(|reserved| reserved.nano > 0) {
            self.keep().await?;
        }
        Ok(all)
    }

    /// Says whether a job was placed under a key lately.
    #[must_use]
    pub fn placed(&self, key: &KeyId, job: &JobId) -> bool {
        self.lock().placed(key, job)
    }

    /// Writes what is not written yet and ends the thread.
    pub async fn close(&self) -> Result<(), Failure> {
        let kept = self.keep().await;
        self.keeper.stop();
        kept
    }

    async fn keep(&self) -> Result<(), Failure> {
        let version = self.lock().version();
        self.keeper.written(version).await
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nothing panics while it holds the keys")
    }
}

/// What was set aside for one job.
#[derive(Debug)]
pub struct Reserved {
    keys: ApiKeys,
    key: KeyId,
    job: JobId,
    nano: u64,
    placed: bool,
}

impl Reserved {
    /// Returns the most that the job may cost, in nano-credits.
    #[must_use]
    pub const fn nano(&self) -> u64 {
        self.nano
    }

    /// Notes that the job was placed: from here on something may be spent.
    pub fn place(&mut self) {
        self.placed = true;
    }

    /// Counts what the job cost in place of what was set aside for it.
    pub fn settle(mut self, used: Used) {
        self.placed = true;
        self.keys.lock().settle(&self.key, &self.job, used);
        self.keys.keeper.wake();
    }

    /// Counts all that was set aside: what the job cost cannot be known.
    pub fn settle_in_full(self) {
        let nano = self.nano;
        self.settle(Used { nano, ..Used::default() });
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // One that was placed and not settled stays: the next start counts it in full.
        if !self.placed {
            self.keys.lock().release(&self.key, &self.job);
            self.keys.keeper.wake();
        }
    }
}

fn draw() -> String {
    let mut bytes = [0; DIGITS / 2];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    format!("{PREFIX}{}", data_encoding::HEXLOWER.encode(&bytes))
}

/// Returns what is kept of a secret. Comparing hashes of this type takes the same time whatever they are.
fn hash(secret: &str) -> blake3::Hash {
    blake3::derive_key("sharemesh 2026-11 hash of an API key", secret.as_bytes()).into()
}

fn unknown(name: &str) -> Failure {
    let name: String = name.chars().take(64).collect();
    Failure::new(
        FailureKind::NotFound,
        format!("no key is called `{name}`: `sharemesh keys ls` shows them all"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAILY: Limits =
        Limits { budget_nano: None, per_day_nano: Some(100), requests_per_minute: 60, jobs_at_once: 4 };

    fn worst(job: u8, nano: u64) -> Worst {
        Worst { job: [job; 16], least: nano, most: nano }
    }

    #[tokio::test]
    async fn a_secret_is_shown_once_and_kept_nowhere() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(folder.path()).expect("new");
        let made = keys.create("phone", DAILY).await.expect("room");

        let written = std::fs::read_to_string(folder.path().join(file::FILE)).expect("written");

        assert!(!written.contains(&made.key[PREFIX.len()..]), "{written}");
        assert!(!format!("{keys:?}").contains(&made.key[PREFIX.len()..]));
        assert_eq!(keys.find(&made.key).map(|key| key.to_string()), Some(made.info.id));
        assert_eq!(keys.find(&draw()), None);
        assert_eq!(keys.find(&made.key[..20]), None);
    }

    #[tokio::test]
    async fn what_was_set_aside_when_the_process_died_counts_as_spent() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(folder.path()).expect("new");
        let made = keys.create("phone", DAILY).await.expect("room");
        let key = keys.find(&made.key).expect("known");
        let mut reserved = keys.reserve(&key, &[worst(1, 60)]).await.expect("in the budget");
        reserved[0].place();

        // No orderly end: the file is as the dead process left it.
        let again = ApiKeys::open(folder.path()).expect("whole");

        assert_eq!(again.find(&made.key), Some(key.clone()));
        let refused = again.reserve(&key, &[worst(2, 41)]).await.expect_err("40 are left");
        assert_eq!(refused.kind, FailureKind::NoCredits);
        assert_eq!(again.show("phone").expect("there").spent.nano, 60);
        assert!(again.reserve(&key, &[worst(2, 40)]).await.is_ok());
    }

    #[tokio::test]
    async fn what_was_settled_survives_an_orderly_end() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(folder.path()).expect("new");
        let made = keys.create("phone", DAILY).await.expect("room");
        let key = keys.find(&made.key).expect("known");
        let mut reserved = keys.reserve(&key, &[worst(1, 60)]).await.expect("in the budget");
        let mut reserved = reserved.pop().expect("one");
        reserved.place();
        reserved.settle(Used { nano: 7, tokens_in: 2, tokens_out: 3 });
        keys.close().await.expect("writable");

        let view = ApiKeys::open(folder.path()).expect("whole").show(&made.info.id).expect("there");

        assert_eq!((view.spent.nano, view.spent_today.nano, view.reserved.nano), (7, 7, 0));
        assert_eq!((view.jobs, view.tokens_in, view.tokens_out), (1, 2, 3));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_budget_binds_whoever_races_for_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(folder.path()).expect("new");
        let made = keys.create("phone", Limits { jobs_at_once: 192, ..DAILY }).await.expect("room");
        let key = keys.find(&made.key).expect("known");

        let race = (0..64).map(|job| {
            let (keys, key) = (keys.clone(), key.clone());
            tokio::spawn(async move {
                let mut reserved = keys.reserve(&key, &[worst(job, 9)]).await.ok()?.pop()?;
                reserved.place();
                reserved.settle_in_full();
                Some(())
            })
        });
        let won = futures::future::join_all(race).await.into_iter().filter(|won| matches!(won, Ok(Some(()))));

        assert_eq!(won.count(), 11, "of 100");
        assert_eq!(keys.show("phone").expect("there").spent.nano, 99);
    }

    #[tokio::test]
    async fn a_reservation_whose_job_was_never_placed_is_given_back() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(folder.path()).expect("new");
        let made = keys.create("phone", DAILY).await.expect("room");
        let key = keys.find(&made.key).expect("known");

        drop(keys.reserve(&key, &[worst(1, 60), worst(2, 40)]).await.expect("in the budget"));

        assert!(keys.reserve(&key, &[worst(3, 100)]).await.is_ok());
    }

    #[tokio::test]
    async fn a_key_that_was_revoked_opens_nothing_after_a_restart_either() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(folder.path()).expect("new");
        let made = keys.create("phone", DAILY).await.expect("room");
        keys.revoke("phone").await.expect("there");
        keys.revoke(&made.info.id).await.expect("revoked twice is revoked");

        assert_eq!(keys.find(&made.key), None);
        assert_eq!(ApiKeys::open(folder.path()).expect("whole").find(&made.key), None);
        assert_eq!(ApiKeys::any_in(folder.path()), Ok(false));
    }
}
