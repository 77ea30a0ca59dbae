//! Goes on with an answer whose provider failed in mid-stream: another one gets the prompt and the tokens so far.
//!
//! Each provider has a job of its own and is paid for what it delivered, once. To the client it is one answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Api;
use super::caller::Caller;
use super::spending::{quoted, set_aside};
use super::views::{BuilderView, JobAccount, JobEvent, Money};
use crate::api_keys::Reserved;
use crate::command::{Command, JobId, JobRequest, Work, events_of, new_job};
use crate::driver::hash_vectors;
use crate::exit::{Failure, FailureKind};

/// Bounds the attempts to go on.
const ATTEMPTS_MAX: u32 = 16;

/// Bounds the providers that may be paid for reading one request of which nothing comes, or only vectors.
const READERS_MAX: usize = 3;

/// Engines that fail at the same token of an answer kept to a form, after which nobody else is asked.
const FORM_BREAKS_MAX: u32 = 2;

/// How many times a provider may fail at one answer.
const FAILURES_MAX: usize = 2;

/// How long somebody is waited for who failed lately, and so is left alone for 10 seconds, or is busy.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// How often it is looked whether somebody can go on.
const LOOK: Duration = Duration::from_millis(250);

/// What is needed to go on with an answer.
pub(super) struct Fallback {
    api: Api,
    caller: Caller,
    request: Arc<JobRequest>,
    /// The most that the client pays for the whole answer, whatever was set aside for its first job.
    max_price_nano: Option<u64>,
    /// Tokens so far, at most as many as were asked for.
    ids: Vec<u32>,
    /// Vectors so far.
    vectors: usize,
    /// Of the text so far.
    text: blake3::Hasher,
    /// Whether somebody took it, by which a stream has begun: from then on a refusal is no answer to the client.
    taken: bool,
    /// What those did who failed.
    earlier: Vec<JobAccount>,
    /// Who failed at it, once for each time.
    failed: Vec<String>,
    /// Who was asked last, and has not taken it yet.
    chosen: Option<String>,
    /// Who took it, and of whom nothing has come yet.
    takers: Vec<String>,
    /// Why the first one did.
    failure: Option<Failure>,
    /// Engines that failed at it since the last part of it came.
    broken: u32,
    attempts: u32,
    /// Until when somebody is looked for, once the answer has broken off.
    until: Option<Instant>,
}

/// Most answers whose jobs are remembered together, where several providers worked on one.
const CHAINS_MAX: usize = 256;

/// Which job makes an answer now, by the id of its first one, which is the one that clients know.
#[derive(Clone, Default)]
pub(super) struct Relays(Arc<Mutex<Relayed>>);

#[derive(Default)]
struct Relayed {
    running: BTreeMap<JobId, Relay>,
    /// Answers with which somebody else went on; the newest last.
    chains: VecDeque<Chain>,
}

/// The jobs of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// In order.
    pub(super) jobs: Vec<JobId>,
    /// Whether it is vectors, of whose texts each job has read others.
    pub(super) is_vectors: bool,
}

struct Relay {
    now: JobId,
    cancelled: Cancelled,
}

/// Whether somebody cancelled an answer, so that nobody is to go on with it. Asked at each token, so no lock is taken for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    pub(super) fn is(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Relays {
    /// Begins an answer, before its job is submitted. Whoever sends an id twice is refused here: what had the same id would
    /// cancel the other's job when its own client goes.
    pub(super) fn begin(&self, first: JobId) -> Result<Relaying, Failure> {
        let relays = &mut self.lock().running;
        if relays.contains_key(&first) {
            let words = "this job is being answered already: draw a new id for another one";
            return Err(Failure::new(FailureKind::Busy, words).in_param("job"));
        }
        let cancelled = Cancelled::default();
        relays.insert(first, Relay { now: first, cancelled: cancelled.clone() });
        Ok(Relaying { relays: self.clone(), first, cancelled })
    }

    /// Notes that another job goes on with an answer to such work; returns whether it was cancelled.
    pub(super) fn pass(&self, first: JobId, now: JobId, work: &Work) -> bool {
        let mut relayed = self.lock();
        relayed.note(first, now, matches!(work, Work::Embed(_)));
        relayed.running.get_mut(&first).is_some_and(|relay| {
            relay.now = now;
            relay.cancelled.is()
        })
    }

    /// Returns the jobs of an answer, by the id of any of them; this one alone where nobody else worked on it, or where that
    /// was forgotten.
    pub(super) fn jobs_of(&self, job: JobId) -> Chain {
        let relayed = self.lock();
        let found = relayed.chains.iter().rev().find(|chain| chain.jobs.contains(&job));
        found.cloned().unwrap_or_else(|| Chain { jobs: vec![job], is_vectors: false })
    }

    /// Notes that somebody cancels an answer; returns the job to cancel.
    pub(super) fn cancel(&self, job: JobId) -> JobId {
        self.lock().running.get(&job).map_or(job, |relay| {
            relay.cancelled.0.store(true, Ordering::Release);
            relay.now
        })
    }

    fn lock(&self) -> MutexGuard<'_, Relayed> {
        self.0.lock().expect("nothing panics while it holds the answers")
    }
}

impl Relayed {
    fn note(&mut self, first: JobId, now: JobId, is_vectors: bool) {
        if let Some(chain) = self.chains.iter_mut().find(|chain| chain.jobs[0] == first) {
            chain.jobs.push(now);
            return;
        }
        self.chains.push_back(Chain { jobs: vec![first, now], is_vectors });
        if self.chains.len() > CHAINS_MAX {
            self.chains.pop_front();
        }
    }
}

/// An answer that has an id for itself until it is over.
pub(super) struct Relaying {
    relays: Relays,
    first: JobId,
    cancelled: Cancelled,
}

impl Relaying {
    /// Returns the id that clients know.
    pub(super) const fn first(&self) -> JobId {
        self.first
    }

    /// Says whether somebody cancelled it.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is()
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        self.relays.lock().running.remove(&self.first);
    }
}

/// What comes after an event.
pub(super) enum Next {
    /// The event itself, with the account of all who worked on the answer if it is the last.
    Event(JobEvent),
    /// The events of another job, which goes on.
    Job { job: JobId, events: mpsc::Receiver<JobEvent>, reserved: Option<Reserved> },
}

impl Fallback {
    pub(super) fn new(
        api: &Api,
        caller: Caller,
        request: Arc<JobRequest>,
        max_price_nano: Option<u64>,
    ) -> Self {
        Self {
            api: api.clone(),
            caller,
            request,
            max_price_nano,
            ids: Vec::new(),
            vectors: 0,
            text: blake3::Hasher::new(),
            taken: false,
            earlier: Vec::new(),
            failed: Vec::new(),
            chosen: None,
            takers: Vec::new(),
            failure: None,
            broken: 0,
            attempts: 0,
            until: None,
        }
    }

    /// Has nobody else go on from here.
    pub(super) fn give_up(&mut self) {
        self.attempts = ATTEMPTS_MAX;
    }

    /// Takes note of an event, and has somebody else go on if it says that the provider did not.
    pub(super) async fn after(&mut self, event: JobEvent) -> Next {
        if let JobEvent::Failed { failure, .. } = &event {
            self.broken += u32::from(failure.kind == FailureKind::WorkerLost);
        }
        match event {
            JobEvent::Text { ref text, ref ids, .. } => {
                self.text.update(text.as_bytes());
                self.ids.extend(ids);
                self.came();
                Next::Event(event)
            }
            JobEvent::Vectors { vectors, .. } => {
                hash_vectors(&mut self.text, &vectors);
                // Whoever goes on counts from the first that was missing.
                let index = u32::try_from(self.vectors).unwrap_or(u32::MAX);
                self.vectors += vectors.len();
                self.came();
                Next::Event(JobEvent::Vectors { index, vectors })
            }
            JobEvent::Failed { account: Some(account), .. } if self.has_all_vectors() => {
                let account = JobAccount { finish: "stop".to_owned(), ..*account };
                Next::Event(JobEvent::Done(Box::new(self.whole(account))))
            }
            JobEvent::Failed { failure, account: Some(account) }
                if self.may_go_on(failure.kind, &account) =>
            {
                self.failure.get_or_insert(failure);
                self.failed.push(account.provider.clone());
                self.earlier.push(*account);
                self.go_on().await
            }
            JobEvent::Failed { failure, account: None } if self.may_look_again(failure.kind) => {
                self.failure.get_or_insert(failure);
                self.failed.append(&mut self.takers);
                tokio::time::sleep(LOOK).await;
                self.go_on().await
            }
            JobEvent::Failed { failure, account } => {
                self.failure.get_or_insert(failure);
                Next::Event(self.failed(account))
            }
            JobEvent::Done(account) => Next::Event(JobEvent::Done(Box::new(self.whole(*account)))),
            JobEvent::Accepted { .. } => {
                self.taken = true;
                self.takers.extend(self.chosen.take());
                Next::Event(event)
            }
            JobEvent::Chosen { ref provider, .. } => {
                self.chosen = Some(provider.clone());
                Next::Event(event)
            }
        }
    }

    /// Part of the answer came: whoever is looked for after this is looked for anew.
    fn came(&mut self) {
        self.until = None;
        self.broken = 0;
        self.takers.clear();
    }

    /// Says whether nothing is missing but the provider's word that it is done.
    fn has_all_vectors(&self) -> bool {
        matches!(&self.request.work, Work::Embed(embed) if self.vectors >= embed.inputs.len())
    }

    fn may_go_on(&self, kind: FailureKind, last: &JobAccount) -> bool {
        let is_lost =
            matches!(kind, FailureKind::ProviderLost | FailureKind::TimedOut | FailureKind::WorkerLost);
        let has_part = !self.ids.is_empty() || self.vectors > 0;
        // Text whose tokens are not known cannot be gone on with.
        let gave_nothing = self.taken && !has_part && last.tokens_out == 0;
        let has_begun = has_part || gave_nothing;
        // What is left is read anew by each, and who reads may be paid for it.
        let is_vectors = matches!(self.request.work, Work::Embed(_));
        let is_dear = is_vectors || (gave_nothing && last.price.nano > 0);
        let may_others = !is_dear || self.earlier.len() + 1 < READERS_MAX;
        is_lost && !self.is_form_at_fault() && has_begun && may_others && self.attempts < ATTEMPTS_MAX
    }

    /// Says whether the form of the answer has broken two engines where neither could go on by a token: it would break the
    /// next, and each would count as failed.
    fn is_form_at_fault(&self) -> bool {
        self.broken >= FORM_BREAKS_MAX && self.request.generate().is_some_and(engine::grammar::is_needed)
    }

    /// Says whether an attempt to go on came to nothing, and somebody else may still be found. The first is made by the job
    /// itself, where whoever took it failed before the first token.
    fn may_look_again(&self, kind: FailureKind) -> bool {
        let was_refused = matches!(kind, FailureKind::NoProvider | FailureKind::Refused | FailureKind::Busy);
        let is_in_time = self.until.is_none_or(|until| Instant::now() < until);
        was_refused && is_in_time && (self.taken || !self.earlier.is_empty()) && self.attempts < ATTEMPTS_MAX
    }

    /// Has somebody go on, or says that nobody does.
    async fn go_on(&mut self) -> Next {
        self.attempts += 1;
        match self.place().await {
            Some(next) => next,
            None => Next::Event(self.failed(None)),
        }
    }

    /// Places what is left of the answer with somebody; none if there is nobody.
    async fn place(&mut self) -> Option<Next> {
        let rest = self.rest();
        let ids = [new_job()];
        let (requests, mut reserved) = loop {
            let mut requests = [self.until_somebody(&rest).await?];
            match set_aside(&self.api, &self.caller, &ids, &mut requests).await {
                Ok(reserved) => break (requests, reserved),
                // Another job of the key has taken the place of the one that was lost.
                Err(failure) if failure.kind == FailureKind::Busy && self.until > Some(Instant::now()) => {
                    tokio::time::sleep(LOOK).await;
                }
                Err(_) => return None,
            }
        };
        let ([request], [job]) = (requests, ids);
        let (sender, events) = events_of(&request);
        let submit = Command::Submit { job, request: Arc::new(request), events: sender };
        self.api.commands.tell(submit).ok()?;
        let mut reserved = reserved.pop().flatten();
        reserved.iter_mut().for_each(Reserved::place);
        tracing::debug!(tokens = self.ids.len(), attempt = self.attempts, "Another provider goes on");
        Some(Next::Job { job, events, reserved })
    }

    /// Returns what is left to do, whoever does it.
    fn rest(&self) -> JobRequest {
        let mut request = JobRequest::clone(&self.request);
        match &mut request.work {
            Work::Generate(generate) => generate.resume.clone_from(&self.ids),
            Work::Embed(embed) => _ = embed.inputs.drain(..self.vectors.min(embed.inputs.len())),
        }
        request.max_price_nano = self.max_price_nano.map(|most| most.saturating_sub(self.price_nano()));
        request
    }

    /// Waits until somebody can do the rest of an answer, and returns the job for those; none if nobody is known who could in
    /// a moment. Whoever failed at it comes after all others, and may be well again when nobody else is.
    async fn until_somebody(&mut self, rest: &JobRequest) -> Option<JobRequest> {
        let until = *self.until.get_or_insert_with(|| Instant::now() + WAIT_MAX);
        // The only provider there is is not waited for: its client hears at once that it failed.
        let failures = if failed_at(&self.failed, 1).len() > 1 { 1..=FAILURES_MAX } else { 1..=1 };
        loop {
            let mut is_any_resting = false;
            for failures in failures.clone() {
                let mut request = rest.clone();
                request.ignore.extend(failed_at(&self.failed, failures));
                let request = Arc::new(request);
                match quoted(&self.api, &request).await {
                    Ok(quote) if quote.usable => return Some(Arc::unwrap_or_clone(request)),
                    Ok(quote) => is_any_resting |= quote.resting,
                    // The node has more to do than it takes, for a moment.
                    Err(failure) if failure.kind == FailureKind::Busy => is_any_resting = true,
                    Err(_) => return None,
                }
            }
            if !is_any_resting || Instant::now() >= until {
                tracing::debug!(is_any_resting, attempts = self.attempts, "Nobody goes on");
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn failed(&self, account: Option<Box<JobAccount>>) -> JobEvent {
        let failure = self.failure.clone().unwrap_or_else(|| Failure::internal("the job failed"));
        let account = match account {
            Some(account) => Some(Box::new(self.whole(*account))),
            None => self.earlier.split_last().map(|(last, before)| Box::new(self.sum(last.clone(), before))),
        };
        JobEvent::Failed { failure, account }
    }

    fn whole(&self, account: JobAccount) -> JobAccount {
        self.sum(account, &self.earlier)
    }

    fn sum(&self, last: JobAccount, earlier: &[JobAccount]) -> JobAccount {
        let read = last.tokens_in;
        let whole = sum(last, earlier, &self.text);
        match &self.request.work {
            Work::Generate(_) => whole,
            // Of texts each has read those of which it made vectors.
            Work::Embed(_) => {
                let tokens_in =
                    earlier.iter().fold(read, |sum, account| sum.saturating_add(account.tokens_in));
                JobAccount { tokens_in, ..whole }
            }
        }
    }

    /// Returns what may have been paid so far.
    fn price_nano(&self) -> u64 {
        let paid = |account: &JobAccount| account.price.nano.saturating_add(account.ahead_nano);
        self.earlier.iter().fold(0, |sum, account| sum.saturating_add(paid(account)))
    }
}

/// Returns those of whom each failed so many times.
fn failed_at(failed: &[String], times: usize) -> BTreeSet<String> {
    let count = |provider: &String| failed.iter().filter(|other| *other == provider).count();
    failed.iter().filter(|provider| count(provider) >= times).cloned().collect()
}

/// Returns the account of an answer that several made: its prompt is counted once, and everything that was paid.
fn sum(last: JobAccount, earlier: &[JobAccount], text: &blake3::Hasher) -> JobAccount {
    let Some(first) = earlier.first() else { return last };
    let all = || earlier.iter().chain([&last]);
    let (tokens_in, ttft_ms) = (first.tokens_in, first.ttft_ms);
    let tokens_out = all().fold(0, |sum: u32, account| sum.saturating_add(account.tokens_out));
    let total_ms = all().fold(0, |sum: u64, account| sum.saturating_add(account.total_ms));
    let price = all().fold(0, |sum: u64, account| sum.saturating_add(account.price.nano));
    let ahead_nano = all().fold(0, |sum: u64, account| sum.saturating_add(account.ahead_nano));
    let builders = || all().filter_map(|account| account.builder.as_ref());
    let markup = builders().fold(0, |sum: u64, builder| sum.saturating_add(builder.amount.nano));
    // Whoever answered the rest may have asked for nothing.
    let builder =
        builders().next().cloned().map(|one| BuilderView { amount: Money::from_nano(markup), ..one });
    let seconds =
        f64::from(u32::try_from(total_ms.saturating_sub(ttft_ms).max(1)).unwrap_or(u32::MAX)) / 1_000.0;
    JobAccount {
        tokens_in,
        tokens_out,
        ttft_ms,
        total_ms,
        tokens_per_s: f64::from(tokens_out.saturating_sub(1)) / seconds,
        price: Money::from_nano(price),
        ahead_nano,
        builder,
        split: all().flat_map(|account| account.split.clone()).collect(),
        text_digest: text.finalize().to_hex().to_string(),
        attempts: all().map(|account| account.attempts).sum(),
        earlier: earlier.to_vec(),
        ..last
    }
}

#[cfg(test)]
mod tests {
    use engine::frame::Embed;

    use super::*;

    #[test]
    fn who_failed_at_an_answer_is_counted_by_how_often() {
        let failed = ["a", "b", "a", "c"].map(str::to_owned);
        let names = |times| failed_at(&failed, times).into_iter().collect::<Vec<_>>();
        assert_eq!(names(1), ["a", "b", "c"]);
        assert_eq!(names(FAILURES_MAX), ["a"]);
    }

    #[test]
    fn what_all_who_broke_off_may_keep_beyond_the_price_is_in_the_sum() {
        let account =
            |nano: u64, ahead_nano| JobAccount { price: nano.into(), ahead_nano, ..JobAccount::default() };

        let whole = sum(account(3, 0), &[account(0, 1_000), account(2, 10)], &blake3::Hasher::new());

        assert_eq!((whole.price.nano, whole.ahead_nano), (5, 1_010));
    }

    #[test]
    fn the_id_that_clients_know_cancels_the_job_that_goes_on_and_nobody_after_it() {
        let relays = Relays::default();
        let (first, second, other) = ([1; 16], [2; 16], [3; 16]);

        let answer = relays.begin(first).expect("new");
        assert_eq!(answer.first(), first);
        let work = Work::Embed(Embed { inputs: Vec::new(), truncate: false });
        assert!(!relays.pass(first, second, &work) && !answer.is_cancelled());
        assert!(relays.begin(first).is_err(), "the same id again");
        assert_eq!(relays.cancel(first), second);
        assert!(answer.is_cancelled() && relays.pass(first, other, &work));
        drop(answer);
        assert_eq!(relays.cancel(first), first);
        assert!(relays.begin(first).is_ok_and(|answer| !answer.is_cancelled()), "the id is free again");
        for job in [first, second, other] {
            let chain = relays.jobs_of(job);
            assert_eq!(chain.jobs, [first, second, other], "any of them leads to all");
            assert!(chain.is_vectors);
        }
        assert_eq!(relays.jobs_of([4; 16]).jobs, [[4; 16]]);
        for number in 0..CHAINS_MAX {
            let first = u128::try_from(number).expect("few").to_be_bytes();
            relays.pass(first, [7; 16], &work);
        }
        assert_eq!(relays.jobs_of(second).jobs, [second], "the oldest makes way");
        assert!(relays.lock().chains.len() <= CHAINS_MAX);
    }
}
