//! The rules of keys: who may ask, what is set aside before a job leaves and what is counted after it.
//!
//! Every change is checked first and then made whole; repeating one changes nothing.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::api::views::{KeyView, Money};
use crate::command::JobId;
use crate::exit::{Failure, FailureKind};

use super::entry::{Aside, Entry, KeyId, Limits, check_name, day_of};
use super::{Used, Worst, unknown};

/// Bounds the keys: every request with one is compared with all.
pub(super) const KEYS_MAX: usize = 256;

/// Bounds the jobs that a key may still ask about.
const PLACED_MAX: usize = 4_096;

/// How long a client is to wait that has as many jobs running as it may.
const JOBS_RETRY_MS: u64 = 1_000;

/// All keys.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Book {
    /// Oldest first.
    keys: Vec<Entry>,
    /// Jobs that were placed lately, oldest first.
    #[serde(skip)]
    placed: VecDeque<(JobId, KeyId)>,
    /// Rises with every change that must be written.
    #[serde(skip)]
    version: u64,
}

impl Book {
    /// Returns the number of the last change.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Checks what was read from a file, and counts in full what was under way when it was written.
    pub(super) fn take_over(mut self) -> Result<Self, Failure> {
        if self.keys.len() > KEYS_MAX {
            return Err(Failure::usage(format!("there are more than {KEYS_MAX} keys")));
        }
        for (at, key) in self.keys.iter().enumerate() {
            key.check()?;
            if self.keys[..at].iter().any(|other| other.id == key.id) {
                return Err(Failure::usage(format!("the key `{}` is there twice", key.name)));
            }
        }
        for key in &mut self.keys {
            for aside in std::mem::take(&mut key.aside) {
                key.spend(aside.nano, aside.day);
                key.usage.jobs = key.usage.jobs.saturating_add(1);
            }
        }
        Ok(self)
    }

    pub(super) fn active(&self) -> usize {
        self.keys.iter().filter(|key| key.is_active()).count()
    }

    pub(super) fn create(
        &mut self,
        name: &str,
        limits: Limits,
        hash: blake3::Hash,
        now_ms: u64,
    ) -> Result<KeyView, Failure> {
        check_name(name)?;
        limits.check()?;
        let entry = Entry::new(name, limits, &hash, now_ms);
        let is_taken = |key: &Entry| key.id == entry.id || key.is_active() && key.is_called(name);
        if self.keys.iter().any(is_taken) {
            return Err(Failure::usage(format!(
                "a key is called `{name}` already: choose another name, or revoke it"
            ))
            .in_param("name"));
        }
        let oldest_revoked = self.keys.iter().position(|key| !key.is_active());
        if self.keys.len() >= KEYS_MAX && oldest_revoked.is_none() {
            return Err(Failure::new(
                FailureKind::Busy,
                format!("a node has at most {KEYS_MAX} keys: revoke one that is not used"),
            ));
        }

        if let Some(oldest) = oldest_revoked.filter(|_| self.keys.len() >= KEYS_MAX) {
            self.keys.remove(oldest);
        }
        let view = entry.view(now_ms);
        self.keys.push(entry);
        self.version += 1;
        Ok(view)
    }

    pub(super) fn list(&self, now_ms: u64) -> Vec<KeyView> {
        self.keys.iter().rev().map(|key| key.view(now_ms)).collect()
    }

    pub(super) fn show(&self, name: &str, now_ms: u64) -> Result<KeyView, Failure> {
        self.called(name).map(|at| self.keys[at].view(now_ms))
    }

    pub(super) fn revoke(&mut self, name: &str, now_ms: u64) -> Result<KeyView, Failure> {
        let at = self.called(name)?;

        let key = &mut self.keys[at];
        key.revoked_ms.get_or_insert(now_ms);
        self.version += 1;
        Ok(key.view(now_ms))
    }

    /// Finds by name or id; of several with a name the one that may be used, else the newest.
    fn called(&self, name: &str) -> Result<usize, Failure> {
        let named = |key: &Entry| key.is_called(name);
        let active = self.keys.iter().position(|key| key.is_active() && named(key));
        active.or_else(|| self.keys.iter().rposition(named)).ok_or_else(|| unknown(name))
    }

    pub(super) fn find(&self, hash: &blake3::Hash) -> Option<KeyId> {
        let mut found = None;
        // All are compared, so that the time does not tell which it was.
        for key in &self.keys {
            if key.has(hash) && key.is_active() {
                found = Some(key.id.clone());
            }
        }
        found
    }

    /// Returns the limit of the minute and what is left of it.
    pub(super) fn request(&mut self, key: &KeyId, now_ms: u64) -> Result<(u32, u32), Failure> {
        let key = self.active_mut(key)?;
        let limit = key.limits.requests_per_minute;
        match key.note_request(now_ms) {
            Ok(left) => Ok((limit, left)),
            Err(wait_ms) => {
                let words =
                    format!("the key `{}` may send {limit} requests in a minute: wait a moment", key.name);
                Err(Failure::new(FailureKind::Busy, words).retry_after(wait_ms))
            }
        }
    }

    /// Sets aside what each job may cost; returns how much that is.
    pub(super) fn reserve(&mut self, key: &KeyId, jobs: &[Worst], now_ms: u64) -> Result<Vec<u64>, Failure> {
        let entry = self.active_mut(key)?;
        entry.begin_day(now_ms);
        let running = entry.aside.len() + jobs.len();
        if running > entry.limits.jobs_at_once as usize {
            return Err(too_many_jobs(entry, jobs.len()));
        }
        let granted = grant(entry, jobs)?;

        let day = day_of(now_ms).max(entry.usage.day);
        for (worst, nano) in jobs.iter().zip(&granted) {
            entry.aside.push(Aside::new(&worst.job, *nano, day));
        }
        self.placed.extend(jobs.iter().map(|worst| (worst.job, key.clone())));
        while self.placed.len() > PLACED_MAX {
            self.placed.pop_front();
        }
        self.version += 1;
        Ok(granted)
    }

    /// Counts what a job cost; one that is not under way changes nothing.
    pub(super) fn settle(&mut self, key: &KeyId, job: &JobId, used: Used) {
        let Some(entry) = self.keys.iter_mut().find(|entry| entry.id == *key) else { return };
        let Some(at) = entry.aside.iter().position(|aside| aside.is_for(job)) else { return };

        let aside = entry.aside.swap_remove(at);
        entry.spend(used.nano, aside.day);
        let usage = &mut entry.usage;
        usage.jobs = usage.jobs.saturating_add(1);
        usage.tokens_in = usage.tokens_in.saturating_add(used.tokens_in);
        usage.tokens_out = usage.tokens_out.saturating_add(used.tokens_out);
        self.version += 1;
    }

    /// Gives back what was set aside for a job that was never placed.
    pub(super) fn release(&mut self, key: &KeyId, job: &JobId) {
        let Some(entry) = self.keys.iter_mut().find(|entry| entry.id == *key) else { return };
        entry.aside.retain(|aside| !aside.is_for(job));
        self.version += 1;
    }

    pub(super) fn placed(&self, key: &KeyId, job: &JobId) -> bool {
        self.placed.iter().any(|(other, owner)| other == job && owner == key)
    }

    fn active_mut(&mut self, key: &KeyId) -> Result<&mut Entry, Failure> {
        let found = self.keys.iter_mut().find(|entry| entry.id == *key && entry.is_active());
        found.ok_or_else(|| Failure::new(FailureKind::Unauthorised, "the key was revoked"))
    }
}

/// Divides what is left: each job gets its least, and what remains goes to the first ones up to their most.
fn grant(entry: &Entry, jobs: &[Worst]) -> Result<Vec<u64>, Failure> {
    let most = jobs.iter().map(|worst| worst.most).collect();
    let Some((left, which)) = entry.left() else { return Ok(most) };
    let least = jobs.iter().try_fold(0_u64, |sum, worst| sum.checked_add(worst.least)).unwrap_or(u64::MAX);
    let Some(mut spare) = left.checked_sub(least) else {
        let words = format!(
            "the {which} of the key `{}` has {} left, and this may cost {}: ask for fewer tokens, or the node's owner for more",
            entry.name,
            Money::from_nano(left),
            Money::from_nano(least)
        );
        return Err(Failure::new(FailureKind::NoCredits, words));
    };
    let share = |worst: &Worst| {
        let more = worst.most.saturating_sub(worst.least).min(spare);
        spare -= more;
        worst.least + more
    };
    Ok(jobs.iter().map(share).collect())
}

fn too_many_jobs(entry: &Entry, more: usize) -> Failure {
    let limit = entry.limits.jobs_at_once;
    if more > limit as usize {
        let words = format!("the key `{}` may have {limit} jobs at once, and these are {more}", entry.name);
        return Failure::usage(words).in_param("n");
    }
    let words =
        format!("the key `{}` may have {limit} jobs at once: wait until one of them has ended", entry.name);
    Failure::new(FailureKind::Busy, words).retry_after(JOBS_RETRY_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 24 * 60 * 60 * 1_000;

    fn book(limits: Limits) -> (Book, KeyId) {
        let mut book = Book::default();
        let view = book.create("k", limits, blake3::hash(b"k"), 10 * DAY).expect("room");
        (book, KeyId(view.id))
    }

    fn limits(budget: Option<u64>, per_day: Option<u64>) -> Limits {
        Limits { budget_nano: budget, per_day_nano: per_day, requests_per_minute: 2, jobs_at_once: 3 }
    }

    fn worst(job: u8, least: u64, most: u64) -> Worst {
        Worst { job: [job; 16], least, most }
    }

    fn used(nano: u64) -> Used {
        Used { nano, ..Used::default() }
    }

    #[test]
    fn requests_are_counted_over_any_minute() {
        let (mut book, key) = book(limits(None, None));

        assert_eq!(book.request(&key, 1_000), Ok((2, 1)));
        assert_eq!(book.request(&key, 31_000), Ok((2, 0)));
        let refused = book.request(&key, 40_000).expect_err("the third");
        assert_eq!((refused.kind, refused.retry_after_ms), (FailureKind::Busy, Some(21_000)));
        assert_eq!(book.request(&key, 61_000), Ok((2, 0)));
        assert!(book.request(&key, 61_000).is_err());
    }

    #[test]
    fn a_day_begins_with_its_whole_budget_and_a_clock_set_back_gives_nothing_back() {
        let (mut book, key) = book(limits(Some(250), Some(100)));
        let mut spend = |job, nano, now| {
            book.reserve(&key, &[worst(job, nano, nano)], now)?;
            book.settle(&key, &[job; 16], used(nano));
            Ok::<_, Failure>(())
        };

        assert!(spend(1, 100, 10 * DAY).is_ok());
        assert!(spend(2, 1, 11 * DAY - 1).is_err());
        assert!(spend(3, 100, 11 * DAY).is_ok());
        assert!(spend(4, 1, 10 * DAY).is_err(), "the clock was set back");
        assert!(spend(5, 51, 12 * DAY).is_err(), "50 are left in all");
        assert!(spend(6, 50, 12 * DAY).is_ok());
    }

    #[test]
    fn a_job_counts_to_the_day_on_which_it_began() {
        let (mut book, key) = book(limits(None, Some(100)));
        book.reserve(&key, &[worst(1, 90, 90)], 10 * DAY).expect("in the budget");
        book.reserve(&key, &[worst(2, 100, 100)], 11 * DAY).expect("a new day");

        book.settle(&key, &[1; 16], used(90));

        let view = book.show("k", 11 * DAY).expect("there");
        assert_eq!((view.spent.nano, view.spent_today.nano, view.reserved.nano), (90, 0, 100));
    }

    #[test]
    fn settling_or_giving_back_twice_changes_nothing() {
        let (mut book, key) = book(limits(Some(100), None));
        book.reserve(&key, &[worst(1, 60, 60)], 0).expect("in the budget");

        book.settle(&key, &[1; 16], used(30));
        book.settle(&key, &[1; 16], used(30));
        book.release(&key, &[1; 16]);

        assert_eq!(book.show("k", 0).expect("there").spent.nano, 30);
    }

    #[test]
    fn what_is_left_is_enough_for_a_cheaper_provider() {
        let (mut book, key) = book(limits(Some(100), None));

        let granted = book.reserve(&key, &[worst(1, 20, 70), worst(2, 20, 70)], 0);

        assert_eq!(granted, Ok(vec![70, 30]));
        assert_eq!(book.reserve(&key, &[worst(3, 1, 1)], 0).expect_err("empty").kind, FailureKind::NoCredits);
    }

    #[test]
    fn jobs_at_once_are_bounded_and_more_than_ever_fit_are_a_mistake() {
        let (mut book, key) = book(limits(None, None));
        book.reserve(&key, &[worst(1, 0, 0), worst(2, 0, 0)], 0).expect("room");

        let busy = book.reserve(&key, &[worst(3, 0, 0), worst(4, 0, 0)], 0).expect_err("one too many");
        let never: Vec<Worst> = (5..9).map(|job| worst(job, 0, 0)).collect();
        let mistake = book.reserve(&key, &never, 0).expect_err("four of three");

        assert_eq!((busy.kind, busy.retry_after_ms), (FailureKind::Busy, Some(JOBS_RETRY_MS)));
        assert_eq!(mistake.kind, FailureKind::Usage);
    }

    #[test]
    fn a_name_is_taken_until_its_key_is_revoked() {
        let (mut book, _) = book(limits(None, None));
        let again = |book: &mut Book| book.create("k", limits(None, None), blake3::hash(b"other"), 0);

        assert_eq!(again(&mut book).expect_err("taken").kind, FailureKind::Usage);
        book.revoke("k", 5).expect("there");
        assert!(again(&mut book).is_ok());
        assert_eq!(book.show("k", 0).expect("there").revoked_ms, None);
        for name in ["", "a\nb", "a/b", &"x".repeat(65)] {
            assert!(book.create(name, limits(None, None), blake3::hash(b"new"), 0).is_err(), "{name:?}");
        }
    }

    #[test]
    fn keys_are_bounded_and_the_oldest_revoked_makes_way() {
        let mut book = Book::default();
        let create = |book: &mut Book, n: usize| {
            book.create(&format!("k{n}"), limits(None, None), blake3::hash(&n.to_le_bytes()), 0)
        };
        for n in 0..KEYS_MAX {
            create(&mut book, n).expect("room");
        }

        assert_eq!(create(&mut book, KEYS_MAX).expect_err("full").kind, FailureKind::Busy);
        book.revoke("k7", 1).expect("there");
        assert!(create(&mut book, KEYS_MAX).is_ok());
        assert!(book.show("k7", 0).is_err());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u8, u64, u64),
        Settle(u8, u64),
        Release(u8),
        Restart,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<u8>(), 0..60_u64, 0..60_u64).prop_map(|(job, a, b)| Step::Reserve(
                job,
                a.min(b),
                a.max(b)
            )),
            (any::<u8>(), 0..=100_u64).prop_map(|(job, percent)| Step::Settle(job, percent)),
            any::<u8>().prop_map(Step::Release),
            Just(Step::Restart),
            (0..DAY).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn no_order_of_events_spends_more_than_the_budgets(steps in prop::collection::vec(step(), 0..60)) {
            let (mut book, key) = book(Limits { jobs_at_once: 192, ..limits(Some(500), Some(100)) });
            let mut now = 10 * DAY;
            // What each job that is under way was granted, and what was ever spent, by day of its beginning.
            let mut granted = std::collections::BTreeMap::<u8, (u64, u64)>::new();
            let mut spent = std::collections::BTreeMap::<u64, u64>::new();
            for step in steps {
                match step {
                    Step::Reserve(job, least, most) if !granted.contains_key(&job) => {
                        if let Ok(nano) = book.reserve(&key, &[worst(job, least, most)], now) {
                            prop_assert!((least..=most).contains(&nano[0]));
                            granted.insert(job, (nano[0], now / DAY));
                        }
                    }
                    Step::Settle(job, percent) => {
                        if let Some((nano, day)) = granted.remove(&job) {
                            let cost = nano * percent / 100;
                            book.settle(&key, &[job; 16], used(cost));
                            *spent.entry(day).or_default() += cost;
                        }
                    }
                    Step::Release(job) => {
                        granted.remove(&job);
                        book.release(&key, &[job; 16]);
                    }
                    Step::Restart => {
                        let text = serde_json::to_string(&book).expect("plain");
                        book = serde_json::from_str::<Book>(&text).expect("ours").take_over().expect("sound");
                        for (nano, day) in std::mem::take(&mut granted).into_values() {
                            *spent.entry(day).or_default() += nano;
                        }
                    }
                    Step::Wait(ms) => now += ms,
                    Step::Reserve(..) => {}
                }
                let total: u64 = spent.values().sum();
                let aside: u64 = granted.values().map(|(nano, _)| nano).sum();
                let view = book.show("k", now).expect("there");
                prop_assert_eq!((view.spent.nano, view.reserved.nano), (total, aside));
                prop_assert!(total + aside <= 500);
                prop_assert!(spent.values().all(|nano| *nano <= 100), "{:?}", spent);
            }
        }
    }
}
