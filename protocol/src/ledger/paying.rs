//! The paying side of one channel: what was delivered, what was signed, and how far ahead to sign.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::ids::{AccountId, ChannelId, Digest, DomainId, JobId, NodeId, RecordId};
use crate::keys::Signer;
use crate::ledger::records::{Epoch, Final, Receipt, Terms};
use crate::mutant;
use crate::price::{Usage, Worst};
use crate::signed::{Role, Verified, sign};

/// Tokens that may be delivered unpaid, and by which payment runs ahead at first.
pub const WINDOW_MIN: u32 = 64;

/// Most tokens by which payment ever runs ahead.
pub const WINDOW_MAX: u32 = 4096;

/// A channel on which we pay.
#[derive(Debug, Clone)]
pub struct Paying {
    /// The channel.
    pub channel: ChannelId,
    /// The payee's conditions.
    pub terms: Verified<Terms>,
    cap: u64,
    signer: Signer,
    head: Option<Verified<Receipt>>,
    /// Work of jobs that ended.
    settled: Usage,
    jobs: Digest,
    flights: BTreeMap<JobId, Flight>,
    /// The payee has not been told of a raised allowance.
    unannounced: bool,
    /// Base below which the channel cannot end: what the payee counts, or the issuer has paid out.
    due: u64,
    /// Since a restart, the payee has not yet shown the newest receipt it holds.
    doubtful: bool,
    /// The two sides may have counted differently: takes no more jobs, is closed when those in flight are over.
    retired: bool,
    closing: Option<Verified<Final>>,
}

/// A job in flight on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flight {
    worst: Worst,
    /// Prompt tokens, once the provider has counted them.
    tokens_in: Option<u32>,
    delivered: u32,
    /// Generated tokens for which we have signed.
    allowance: u32,
}

/// How many tokens of which job a payment covers: a hint beside the receipt, checked against its amount.
pub type Allowances = Vec<(JobId, u32)>;

impl Paying {
    /// Returns the paying side of a channel that was just opened.
    #[must_use]
    pub fn new(channel: ChannelId, terms: Verified<Terms>, cap: u64, signer: Signer) -> Self {
        Self {
            channel,
            terms,
            cap,
            signer,
            head: None,
            settled: Usage::default(),
            jobs: Digest::ZERO,
            flights: BTreeMap::new(),
            unannounced: false,
            due: 0,
            doubtful: false,
            retired: false,
            closing: None,
        }
    }

    /// Learns that this side was restarted: the payee may hold a newer receipt than the journal, so nothing is signed for
    /// a new job before it has shown its own.
    pub fn restarted(&mut self) {
        self.doubtful = true;
        self.retired = self.head.is_none();
    }

    /// Takes no more jobs: after an interruption the two sides may count differently, and what is prepaid is all that
    /// can be lost as long as nothing more is prepaid.
    pub fn retire(&mut self) {
        self.retired = true;
    }

    /// Says whether the channel takes no more jobs.
    #[must_use]
    pub const fn is_retired(&self) -> bool {
        self.retired
    }

    /// Learns the newest receipt that the payee holds, the least with which it lets the channel end, and what it counts in
    /// all. Only this ends the doubt after a restart: a co-signed receipt may be late, and not the newest. A payee that
    /// counts more, as of a prompt or of a job that we have forgotten, would wait for a payment that we do not know of.
    ///
    /// The payee can have the issuer pay out every receipt it holds, so conceding that much costs nothing.
    pub fn shown(&mut self, receipt: RecordId, due: u64, counted: u64) {
        if self.doubtful && self.head.as_ref().is_some_and(|head| head.id() == receipt) {
            self.doubtful = false;
            self.retired |= counted > self.bill() && !mutant::is_in("restart-without-doubt");
        }
        self.concede(due.min(self.paid()));
    }

    /// Learns what the issuer has paid out: the channel cannot end with less.
    pub fn concede(&mut self, due: u64) {
        self.due = self.due.max(due);
        if self.closing.as_ref().is_some_and(|closing| closing.amount < self.due) {
            self.closing = None;
        }
    }

    /// Returns the base below which the channel cannot end, as far as we know.
    #[must_use]
    pub const fn due(&self) -> u64 {
        self.due
    }

    /// Returns the payee's node and account.
    #[must_use]
    pub fn payee(&self) -> (NodeId, AccountId) {
        (self.terms.payee, self.terms.payee_account)
    }

    /// Returns the newest receipt we signed.
    #[must_use]
    pub const fn head(&self) -> Option<&Verified<Receipt>> {
        self.head.as_ref()
    }

    /// Returns the newest receipt if we lack the payee's signature on it, or the payee may not know what it allows: the
    /// allowances of jobs in flight travel beside it, and nobody acknowledges them.
    #[must_use]
    pub fn unacknowledged(&self) -> Option<&Verified<Receipt>> {
        self.head.as_ref().filter(|_| !self.is_cosigned() || self.is_busy())
    }

    /// Says whether the newest receipt bears the payee's signature too.
    #[must_use]
    pub fn is_cosigned(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.signer(Role::Payee).is_some())
    }

    /// Returns the base signed for, in nano-credits.
    #[must_use]
    pub fn paid(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.amount)
    }

    /// Returns the base that the jobs which ended cost, in nano-credits.
    #[must_use]
    pub fn bill(&self) -> u64 {
        self.cost(&self.settled).unwrap_or(u64::MAX)
    }

    /// Returns the most base that the channel can pay.
    #[must_use]
    pub const fn cap(&self) -> u64 {
        self.cap
    }

    /// Says whether a job is in flight.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Says whether the channel is being closed.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Returns the base that is committed to no job: the cap less what was paid or is due, less the worst case of every
    /// job in flight.
    #[must_use]
    pub fn room(&self) -> u64 {
        let worst = self.flights.values().fold(self.settled, |sum, flight| sum.plus(&flight.worst.usage));
        let committed = self.cost(&worst).map(|cost| cost.max(self.paid()));
        committed.map_or(0, |committed| self.cap.saturating_sub(committed))
    }

    /// Says whether a job of at most `worst` fits.
    #[must_use]
    pub fn fits(&self, worst: &Usage) -> bool {
        let all =
            self.flights.values().fold(self.settled.plus(worst), |sum, flight| sum.plus(&flight.worst.usage));
        let open = self.closing.is_none() && !self.doubtful && !self.retired;
        open && self.cost(&all).is_some_and(|cost| cost <= self.cap)
    }

    /// Reserves room for a job; `false` when it does not fit, and nothing changes.
    #[must_use]
    pub fn reserve(&mut self, job: JobId, worst: impl Into<Worst>) -> bool {
        let worst = worst.into();
        let fits = self.fits(&worst.usage);
        if fits {
            self.flights.insert(job, Flight { worst, tokens_in: None, delivered: 0, allowance: 0 });
        }
        fits
    }

    /// Gives the room of a job back that was not begun.
    pub fn release(&mut self, job: JobId) {
        self.flights.remove(&job);
    }

    /// Learns how many prompt tokens the provider counted.
    pub fn accepted(&mut self, job: JobId, tokens_in: u32) {
        if let Some(flight) = self.flights.get_mut(&job) {
            flight.tokens_in = Some(tokens_in);
        }
    }

    /// Learns how many tokens of a job have arrived.
    pub fn delivered(&mut self, job: JobId, tokens: u32) {
        if let Some(flight) = self.flights.get_mut(&job) {
            flight.delivered = flight.delivered.max(tokens);
        }
    }

    /// Ends a job with what was delivered; `jobs` is the payee's hash chain after it, when it said so. Ending a job
    /// twice changes nothing. Returns the nano-credits of base that the job adds to the bill.
    pub fn end(&mut self, job: JobId, usage: Usage, jobs: Option<Digest>) -> Option<u64> {
        self.flights.remove(&job)?;
        let before = self.cost(&self.settled);
        self.settled = self.settled.plus(&usage);
        self.jobs = jobs.unwrap_or(self.jobs);
        self.cost(&self.settled)?.checked_sub(before?)
    }

    /// Returns the nano-credits of base that were signed for a job in flight beyond what `usage` costs.
    #[must_use]
    pub fn ahead(&self, job: JobId, usage: &Usage) -> u64 {
        let Some(flight) = self.flights.get(&job) else { return 0 };
        let used = self.settled.plus(usage);
        let allowed = flight.usage(flight.allowance).or_more(usage);
        let costs = self.cost(&self.settled.plus(&allowed)).zip(self.cost(&used));
        costs.map_or(0, |(allowed, used)| allowed.saturating_sub(used))
    }

    /// Ends a job that was interrupted, like [`Paying::end`], and retires the channel. While other jobs run, the payee's
    /// own count of this one stands between them and their next grant, so all that was signed for it is conceded.
    pub fn end_lost(&mut self, job: JobId, usage: Usage) -> Option<u64> {
        self.retire();
        let flight = *self.flights.get(&job)?;
        let price = self.end(job, usage, None)?;
        if self.is_busy() {
            let allowed = flight.usage(flight.allowance);
            // Who never answered is not paid for reading.
            let has_answered = usage.tokens_in > 0;
            let tokens_in = if has_answered { allowed.tokens_in.saturating_sub(usage.tokens_in) } else { 0 };
            let unseen = Usage {
                calls: 0,
                tokens_in,
                tokens_out: allowed.tokens_out.saturating_sub(usage.tokens_out),
                compute: 0,
            };
            self.settled = self.settled.plus(&unseen);
        }
        Some(price)
    }

    /// Signs the next receipt if one is due, with the allowance of every job in flight. What an earlier job left prepaid
    /// may cover a raised allowance: then the last receipt is returned again, with that allowance.
    ///
    /// Payment runs one window ahead of delivery and is renewed when half of it is used; nothing is paid ahead before the
    /// payee has delivered something on this channel.
    pub fn pay(&mut self, domain: DomainId, epoch: Epoch) -> Option<(Verified<Receipt>, Allowances)> {
        self.extend_allowances();
        let due = self.flights.values().fold(self.settled, |sum, flight| sum.plus(&flight.allowed()));
        let amount = self.cost(&due)?.min(self.cap).max(self.paid());
        let usage = self.flights.values().fold(self.settled, |sum, flight| sum.plus(&flight.used()));
        let news = self.head.as_ref().map_or(usage != Usage::default(), |head| {
            amount > head.amount
                || (self.flights.is_empty() && (head.usage != usage || head.jobs != self.jobs))
        });
        if !news {
            let repeated = self.head.clone().filter(|_| self.unannounced)?;
            self.unannounced = false;
            return Some((repeated, self.allowances()));
        }
        let sequence = self.head.as_ref().map_or(0, |head| head.sequence).checked_add(1)?;
        let receipt = Receipt { channel: self.channel, sequence, amount, usage, jobs: self.jobs, epoch };
        let receipt = sign(receipt, domain, Role::Payer, &self.signer);
        self.head = Some(receipt.clone());
        self.unannounced = false;
        Some((receipt, self.allowances()))
    }

    /// Returns what every job in flight may generate by what was signed.
    #[must_use]
    pub fn allowances(&self) -> Allowances {
        self.flights.iter().map(|(job, flight)| (*job, flight.allowance)).collect()
    }

    /// Takes the payee's copy of a receipt: a newer one that we signed ourselves and have forgotten is adopted whole, and
    /// retires the channel; the one we sent last is thereby known to have arrived. Returns whether anything changed.
    pub fn adopt(&mut self, receipt: &Verified<Receipt>) -> bool {
        let ours = (Role::Payer, self.signer.public());
        let both = [ours, (Role::Payee, self.terms.payee_key)];
        if !receipt.is_signed_only_by(&[ours]) && !receipt.is_signed_only_by(&both) {
            return false;
        }
        let newer = self.head.as_ref().is_none_or(|head| is_newer(receipt, head));
        if newer {
            // What else was forgotten with it the payee may count, and wait for.
            self.retired |= !mutant::is_in("restart-without-doubt");
            self.head = Some(receipt.clone());
            self.settled = receipt.usage;
            self.jobs = receipt.jobs;
            // The payee agrees to an end only after the newest receipt.
            self.closing = None;
        }
        // Our own journal also holds receipts that the payee never signed: those may not have arrived.
        let by_both = receipt.signer(Role::Payee).is_some();
        let settles = by_both && self.head.as_ref().is_some_and(|head| head.id() == receipt.id());
        let news = newer || (settles && !self.is_cosigned());
        if settles {
            self.head = Some(receipt.clone());
        }
        news
    }

    /// Signs the end of the channel: for what was delivered, even if more was paid ahead, or for what the payee counts if
    /// that was paid. `None` while a job is in flight.
    pub fn close(&mut self, domain: DomainId) -> Option<Verified<Final>> {
        if self.is_busy() {
            return None;
        }
        if self.closing.is_none() {
            let amount = self.cost(&self.settled)?.max(self.due).min(self.cap);
            let receipt = self.head.as_ref().map(Verified::id);
            let closing = Final { channel: self.channel, amount, receipt };
            self.closing = Some(sign(closing, domain, Role::Payer, &self.signer));
        }
        self.closing.clone()
    }

    /// Returns the channel's end, once signed.
    #[must_use]
    pub const fn closing(&self) -> Option<&Verified<Final>> {
        self.closing.as_ref()
    }

    /// Takes the channel's end back that we signed before a restart.
    pub fn replay_close(&mut self, closing: Verified<Final>) {
        self.closing = Some(closing);
    }

    fn extend_allowances(&mut self) {
        let delivered: u64 = self.flights.values().map(|flight| u64::from(flight.delivered)).sum();
        let delivered = delivered.saturating_add(self.settled.tokens_out);
        if delivered == 0 {
            return;
        }
        let delivered = if mutant::is_in("window-ahead-of-delivery") { u64::MAX } else { delivered };
        let window = u32::try_from(delivered).unwrap_or(WINDOW_MAX).clamp(WINDOW_MIN, WINDOW_MAX);
        for flight in self.flights.values_mut().filter(|flight| flight.tokens_in.is_some()) {
            if flight.delivered.saturating_add(window / 2) >= flight.allowance {
                let most = u32::try_from(flight.worst.usage.tokens_out).unwrap_or(u32::MAX);
                let raised = flight.delivered.saturating_add(window).min(most);
                self.unannounced |= raised > flight.allowance;
                flight.allowance = raised;
            }
        }
    }

    fn cost(&self, usage: &Usage) -> Option<u64> {
        self.terms.price.cost(usage)
    }
}

impl Flight {
    fn allowed(&self) -> Usage {
        self.usage(self.allowance.max(self.delivered))
    }

    fn used(&self) -> Usage {
        self.usage(self.delivered)
    }

    /// A prompt is due at the first token, so that whoever never answers is never paid for reading.
    fn usage(&self, tokens_out: u32) -> Usage {
        self.worst.usage_of(u64::from(self.tokens_in.unwrap_or(0)), u64::from(tokens_out))
    }
}

/// Orders receipts of one channel: by amount, then sequence, then id, so that merging needs no order of arrival.
pub type Rank = (u64, u64, RecordId);

/// Returns the place of a receipt among those of its channel.
#[must_use]
pub fn rank(receipt: &Verified<Receipt>) -> Rank {
    (receipt.amount, receipt.sequence, receipt.id())
}

/// Says whether a receipt of one rank replaces one of another.
#[must_use]
pub fn outranks(rank: Rank, than: Rank) -> bool {
    if mutant::is_in("merge-last-wins") { rank.2 != than.2 } else { rank > than }
}

/// Says whether a receipt replaces another of its channel.
#[must_use]
pub fn is_newer(receipt: &Verified<Receipt>, than: &Verified<Receipt>) -> bool {
    outranks(rank(receipt), rank(than))
}
