//! One key as it is kept: its name, the hash of its secret, its limits, what was used of it.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::api::views::KeyView;
use crate::command::{JobId, format_job, parse_job};
use crate::exit::Failure;

/// Bounds a key's name, which is in every list.
const NAME_BYTES_MAX: usize = 64;

/// Bounds the requests of a minute, whose times are remembered one by one.
pub(super) const REQUESTS_PER_MINUTE_MAX: u32 = 6_000;

/// Bounds the jobs of one key that run at once: as many as a node streams to all.
pub(super) const JOBS_AT_ONCE_MAX: u32 = 192;

/// Over how long requests are counted.
const MINUTE_MS: u64 = 60_000;

/// Milliseconds of a day, which begins at midnight UTC.
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// Names a key for people and programs, who must not see its secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub(super) String);

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Nano-credits in all; none for as many as the account has.
    pub budget_nano: Option<u64>,
    /// Nano-credits in a day, from midnight to midnight UTC.
    pub per_day_nano: Option<u64>,
    /// Requests in any 60 seconds.
    pub requests_per_minute: u32,
    /// Jobs at once; each choice of an answer is one.
    pub jobs_at_once: u32,
}

impl Limits {
    /// Requests in a minute unless told otherwise: what a person and some programs send.
    pub const REQUESTS_PER_MINUTE: u32 = 60;

    /// Jobs at once unless told otherwise: a key leaves most of a node to others.
    pub const JOBS_AT_ONCE: u32 = 8;

    pub(super) fn check(&self) -> Result<(), Failure> {
        let range = |what: &str, value: u32, max: u32| {
            let words = format!("{what} is {value}: give 1 to {max}");
            if (1..=max).contains(&value) { Ok(()) } else { Err(Failure::usage(words).in_param(what)) }
        };
        range("requests_per_minute", self.requests_per_minute, REQUESTS_PER_MINUTE_MAX)?;
        range("jobs_at_once", self.jobs_at_once, JOBS_AT_ONCE_MAX)
    }
}

/// What was used of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    pub(super) requests: u64,
    pub(super) jobs: u64,
    pub(super) tokens_in: u64,
    pub(super) tokens_out: u64,
    pub(super) spent_nano: u64,
    /// The day that the next line is about, in days since 1970.
    pub(super) day: u64,
    pub(super) day_nano: u64,
    pub(super) last_used_ms: Option<u64>,
}

/// What is set aside for a job that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Aside {
    job: String,
    pub(super) nano: u64,
    /// The day on which it began, whose budget it takes.
    pub(super) day: u64,
}

impl Aside {
    pub(super) fn new(job: &JobId, nano: u64, day: u64) -> Self {
        Self { job: format_job(job), nano, day }
    }

    pub(super) fn is_for(&self, job: &JobId) -> bool {
        parse_job(&self.job).as_ref() == Ok(job)
    }
}

/// A key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) id: KeyId,
    pub(super) name: String,
    /// Of the secret, in hexadecimal digits.
    hash: String,
    pub(super) created_ms: u64,
    pub(super) revoked_ms: Option<u64>,
    pub(super) limits: Limits,
    pub(super) usage: Usage,
    pub(super) aside: Vec<Aside>,
    /// When the requests of the last minute came; not kept on disk.
    #[serde(skip)]
    recent_ms: VecDeque<u64>,
}

impl Entry {
    pub(super) fn new(name: &str, limits: Limits, hash: &blake3::Hash, now_ms: u64) -> Self {
        // A part of the hash says nothing of the secret.
        let id = KeyId(hash.to_hex()[..8].to_owned());
        Self {
            id,
            name: name.to_owned(),
            hash: hash.to_hex().to_string(),
            created_ms: now_ms,
            revoked_ms: None,
            limits,
            usage: Usage { day: day_of(now_ms), ..Usage::default() },
            aside: Vec::new(),
            recent_ms: VecDeque::new(),
        }
    }

    /// Says what is wrong with an entry of a file.
    pub(super) fn check(&self) -> Result<(), Failure> {
        check_name(&self.name)?;
        let is_id = self.id.0.len() == 8 && self.id.0.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id || blake3::Hash::from_hex(&self.hash).is_err() {
            return Err(Failure::usage(format!("the key `{}` is damaged", self.name)));
        }
        self.limits.check()
    }

    pub(super) fn is_active(&self) -> bool {
        self.revoked_ms.is_none()
    }

    /// Compares in a time that does not depend on where the two differ.
    pub(super) fn has(&self, hash: &blake3::Hash) -> bool {
        blake3::Hash::from_hex(&self.hash).is_ok_and(|own| own == *hash)
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.id.0 == name
    }

    /// Takes note of the day. A clock that was set back changes nothing, because it would give back what was spent.
    pub(super) fn begin_day(&mut self, now_ms: u64) {
        if day_of(now_ms) > self.usage.day {
            self.usage.day = day_of(now_ms);
            self.usage.day_nano = 0;
        }
    }

    pub(super) fn aside_nano(&self) -> u64 {
        self.aside.iter().fold(0, |sum, aside| sum.saturating_add(aside.nano))
    }

    fn aside_today_nano(&self) -> u64 {
        let today = self.aside.iter().filter(|aside| aside.day == self.usage.day);
        today.fold(0, |sum, aside| sum.saturating_add(aside.nano))
    }

    /// Returns what is left of the budgets, with the name of the one that binds; none if there is no budget.
    pub(super) fn left(&self) -> Option<(u64, &'static str)> {
        let used = self.usage.spent_nano.saturating_add(self.aside_nano());
        let used_today = self.usage.day_nano.saturating_add(self.aside_today_nano());
        let total = self.limits.budget_nano.map(|budget| (budget.saturating_sub(used), "budget"));
        let day =
            self.limits.per_day_nano.map(|budget| (budget.saturating_sub(used_today), "budget of the day"));
        total.into_iter().chain(day).min()
    }

    /// Counts what a job cost to the day on which it began.
    pub(super) fn spend(&mut self, nano: u64, day: u64) {
        self.usage.spent_nano = self.usage.spent_nano.saturating_add(nano);
        if day == self.usage.day {
            self.usage.day_nano = self.usage.day_nano.saturating_add(nano);
        }
    }

    /// Counts a request if the minute has room for it; returns how many more it has, or how long until it has.
    pub(super) fn note_request(&mut self, now_ms: u64) -> Result<u32, u64> {
        while self.recent_ms.front().is_some_and(|at| now_ms.saturating_sub(*at) >= MINUTE_MS) {
            self.recent_ms.pop_front();
        }
        let recent = u32::try_from(self.recent_ms.len()).unwrap_or(u32::MAX);
        match (self.limits.requests_per_minute.checked_sub(recent + 1), self.recent_ms.front()) {
            (None, Some(oldest)) => Err((oldest + MINUTE_MS).saturating_sub(now_ms).max(1)),
            (left, _) => {
                self.recent_ms.push_back(now_ms);
                self.usage.requests = self.usage.requests.saturating_add(1);
                self.usage.last_used_ms = Some(now_ms);
                Ok(left.unwrap_or(0))
            }
        }
    }

    pub(super) fn view(&self, now_ms: u64) -> KeyView {
        let Usage { requests, jobs, tokens_in, tokens_out, spent_nano, day, day_nano, last_used_ms } =
            self.usage;
        let today = if day_of(now_ms) > day { 0 } else { day_nano };
        KeyView {
            id: self.id.to_string(),
            name: self.name.clone(),
            created_ms: self.created_ms,
            revoked_ms: self.revoked_ms,
            budget: self.limits.budget_nano.map(Into::into),
            per_day: self.limits.per_day_nano.map(Into::into),
            requests_per_minute: self.limits.requests_per_minute,
            jobs_at_once: self.limits.jobs_at_once,
            requests,
            jobs,
            tokens_in,
            tokens_out,
            spent: spent_nano.into(),
            spent_today: today.into(),
            reserved: self.aside_nano().into(),
            last_used_ms,
        }
    }
}

pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.chars().any(char::is_control)
        || name.contains('/')
    {
        let words = format!("a key's name has 1 to {NAME_BYTES_MAX} bytes, no `/` and no control characters");
        return Err(Failure::usage(words).in_param("name"));
    }
    Ok(())
}

pub(super) const fn day_of(now_ms: u64) -> u64 {
    now_ms / DAY_MS
}
