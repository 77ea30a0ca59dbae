//! The paid side of one channel: what was delivered, what was paid, and how far it is safe to go on.

mod kept;
mod work;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;

use thiserror::Error;

use crate::encoding::encoded;
use crate::ids::{AccountId, ChannelId, Digest, DomainId, JobId, NodeId, RecordId};
use crate::job::{Finish, JobRecord};
use crate::keys::{PublicKey, Signer};
use crate::ledger::paying::{WINDOW_MIN, outranks, rank};
use crate::ledger::records::{AccountOp, Claim, Epoch, Final, Receipt, Recorded, Terms};
use crate::message::{Checked, Opening};
use crate::mutant;
use crate::price::{Usage, Worst};
use crate::signed::{Role, Signable, Verified, sign};

use kept::{Evidence, Head};
use work::{Count, Flight, Work};

/// A channel on which we are paid. Which one it is says whoever keeps it: a node may have a hundred thousand, each by its
/// name.
#[derive(Debug, Clone)]
pub struct Paid {
    agreement: Arc<Agreement>,
    /// Last epoch in which it takes jobs.
    pub expires: Epoch,
    cap: u64,
    evidence: Evidence,
    /// Base paid: the amount of the newest receipt.
    paid: u64,
    /// Base that the issuer has paid out.
    redeemed: u64,
    /// What the newest receipt does not state; nothing while the channel is at rest and both sides count the same.
    work: Option<Box<Work>>,
    /// A job was interrupted: the payer may count less than we do.
    interrupted: bool,
    closing: Option<Box<Verified<Final>>>,
}

/// What the channels of one payer on the same terms share.
#[derive(Debug, Clone)]
pub struct Agreement {
    /// Our conditions.
    pub terms: Arc<Verified<Terms>>,
    /// Node that pays.
    pub payer: NodeId,
    /// Account that pays.
    pub payer_account: AccountId,
    /// Key that signs for it.
    pub payer_key: PublicKey,
    /// The network.
    pub domain: DomainId,
    /// Signs for us.
    pub signer: Arc<Signer>,
    /// Keys that sign openings, as far as they are known: kept here once.
    pub keys: Vec<PublicKey>,
}

/// What channels share reads as their own.
impl Deref for Paid {
    type Target = Agreement;

    fn deref(&self) -> &Agreement {
        &self.agreement
    }
}

/// What a payment changes for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// It may generate so many tokens.
    Raised(u32),
    /// Nothing: it may generate as many already.
    Unchanged,
    /// Nothing: the payer counts less than we do.
    Uncovered,
}

/// Why a receipt or a final is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PaidError {
    /// Not signed with the key named at opening.
    #[error("not signed with the channel's key")]
    WrongKey,
    /// More than the channel can pay.
    #[error("the amount is above the channel's cap")]
    AboveCap,
    /// States less than is due.
    #[error("the amount is below what was delivered")]
    TooLittle,
    /// A job is open on the channel.
    #[error("a job is open on the channel")]
    Busy,
    /// The end follows another receipt than the newest that we hold: one side has lost some.
    #[error("the two sides hold different receipts")]
    OtherReceipt,
}

impl Paid {
    /// Returns the paid side of a channel that shares nothing with others.
    #[must_use]
    pub fn new(
        terms: Verified<Terms>,
        (payer, payer_account, payer_key): (NodeId, AccountId, PublicKey),
        cap: u64,
        (signer, domain): (Signer, DomainId),
    ) -> Self {
        let (terms, signer, keys) = (Arc::new(terms), Arc::new(signer), Vec::new());
        let agreement = Agreement { terms, payer, payer_account, payer_key, domain, signer, keys };
        Self::on(Arc::new(agreement), cap)
    }

    /// Returns the paid side of a channel that the issuers have committed.
    #[must_use]
    pub fn on(agreement: Arc<Agreement>, cap: u64) -> Self {
        Self {
            agreement,
            expires: Epoch(u32::MAX),
            cap,
            evidence: Evidence::default(),
            paid: 0,
            redeemed: 0,
            work: None,
            interrupted: false,
            closing: None,
        }
    }

    /// Returns the same channel with the last epoch in which it takes jobs.
    #[must_use]
    pub fn until(self, expires: Epoch) -> Self {
        Self { expires, ..self }
    }

    /// Returns the same channel with the proof that it was opened.
    #[must_use]
    pub fn proven_by(mut self, op: &Verified<AccountOp>, recorded: &[Verified<Recorded>]) -> Self {
        self.evidence.set_proof(op, recorded, &self.agreement);
        self
    }

    /// Returns the proof that the channel, which is this one, was opened, if it was kept.
    #[must_use]
    pub fn opening(&self, channel: ChannelId) -> Option<Opening<Checked>> {
        self.evidence.opening(channel, self)
    }

    /// Returns the newest receipt of the channel, signed by both; our signature is made again.
    #[must_use]
    pub fn head(&self, channel: ChannelId) -> Option<Verified<Receipt>> {
        Some(self.evidence.head()?.receipt(channel, self))
    }

    /// Says whether there is one, without making it.
    #[must_use]
    pub fn has_head(&self) -> bool {
        self.evidence.has_head()
    }

    /// Takes a receipt that both have signed, if it is newer than the newest; says whether it did.
    fn take(&mut self, receipt: &Verified<Receipt>) -> bool {
        let count = self.count();
        let is_taken = self.is_news(receipt) && self.evidence.set_head(receipt, &self.agreement);
        if is_taken {
            self.paid = receipt.amount;
            self.set_count(count);
        }
        is_taken
    }

    fn is_news(&self, receipt: &Verified<Receipt>) -> bool {
        let head = self.evidence.head();
        let rank_of = |head: &Head| (self.paid, head.sequence, head.id(receipt.channel, self));
        head.is_none_or(|head| outranks(rank(receipt), rank_of(&head)))
    }

    fn count(&self) -> Count {
        self.work.as_ref().map_or_else(|| self.stated(), |work| work.count)
    }

    /// Returns what the newest receipt states.
    fn stated(&self) -> Count {
        self.evidence.head().map(|head| head.count()).unwrap_or_default()
    }

    fn set_count(&mut self, count: Count) {
        let stated = self.stated();
        match &mut self.work {
            Some(work) => work.count = count,
            None if count == stated => {}
            None => self.work = Some(Box::new(Work::beyond(count))),
        }
        self.work.take_if(|work| work.is_over(&stated));
    }

    fn flights(&self) -> impl Iterator<Item = (&JobId, &Flight)> {
        self.work.iter().flat_map(|work| &work.flights)
    }

    fn flight(&self, job: JobId) -> Option<&Flight> {
        self.work.as_ref()?.flights.get(&job)
    }

    fn flight_mut(&mut self, job: JobId) -> Option<&mut Flight> {
        self.work.as_mut()?.flights.get_mut(&job)
    }

    /// Returns the base paid, in nano-credits.
    #[must_use]
    pub const fn paid(&self) -> u64 {
        self.paid
    }

    /// Returns the base that was delivered and paid; what is prepaid beyond is the payer's until it is used.
    #[must_use]
    pub fn earned(&self) -> u64 {
        self.cost(&self.count().settled).unwrap_or(u64::MAX).min(self.paid())
    }

    /// Returns the base earned that the issuer has not paid out yet.
    #[must_use]
    pub fn unredeemed(&self) -> u64 {
        self.earned().saturating_sub(self.redeemed)
    }

    /// Returns what the issuers shall pay out: the newest receipt, and our word on how much of it we have earned.
    #[must_use]
    pub fn claim(&self, channel: ChannelId) -> Option<(Verified<Receipt>, Verified<Claim>)> {
        let receipt = self.head(channel)?;
        let claim = Claim { channel, receipt: receipt.id(), amount: self.earned() };
        Some((receipt, sign(claim, self.domain, Role::Payee, &self.signer)))
    }

    /// Returns the most base that the channel can pay.
    #[must_use]
    pub const fn cap(&self) -> u64 {
        self.cap
    }

    /// Learns what the issuer has paid out. An end below that can never be recorded, so it is taken back.
    pub fn redeemed(&mut self, amount: u64) {
        self.redeemed = self.redeemed.max(amount);
        if self.closing.as_ref().is_some_and(|closing| closing.amount < self.redeemed) {
            self.closing = None;
        }
    }

    /// Returns the base that the issuer has paid out, as far as we know.
    #[must_use]
    pub const fn amount_redeemed(&self) -> u64 {
        self.redeemed
    }

    /// Returns the least with which we let the channel end: what was earned, and never less than was paid out.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.earned().max(self.redeemed)
    }

    /// Returns the base of all that we count, jobs in flight at what they were granted.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.cost(&self.granted()).unwrap_or(u64::MAX)
    }

    /// Says whether a job is in flight.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.work.as_ref().is_some_and(|work| !work.flights.is_empty())
    }

    /// Says whether we signed the channel's end.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Returns the channel's end, once signed.
    #[must_use]
    pub fn closing(&self) -> Option<&Verified<Final>> {
        self.closing.as_deref()
    }

    /// Says whether a job of at most `worst` fits the cap beside those in flight.
    #[must_use]
    pub fn fits(&self, worst: &Usage) -> bool {
        let all =
            self.flights().fold(self.owed().plus(worst), |sum, (_, flight)| sum.plus(&flight.worst.usage));
        self.closing.is_none() && self.cost(&all).is_some_and(|cost| cost <= self.cap)
    }

    /// Returns the base that is committed to no job: the cap less what is owed and the worst case of every job in flight.
    #[must_use]
    pub fn room(&self) -> u64 {
        let all = self.flights().fold(self.owed(), |sum, (_, flight)| sum.plus(&flight.worst.usage));
        self.cost(&all).map_or(0, |cost| self.cap.saturating_sub(cost.max(self.paid())))
    }

    /// Says whether a job was interrupted and the payer has not signed and paid for what we count since: another job
    /// would begin with two different sums. So it would while we lack the receipt of what was paid out to us already.
    #[must_use]
    pub fn is_disputed(&self) -> bool {
        let owed = self.owed();
        let stated = self.stated().settled;
        let agrees = stated.covers(&owed) && self.affords(&stated);
        let lacks = self.redeemed > self.paid() && !mutant::is_in("serve-below-redeemed");
        lacks || (self.interrupted && !(agrees && self.evidence.has_head()))
    }

    /// Learns the newest receipt of the channel that the payer holds. If it is ours and does not cover what was delivered, the payer has
    /// lost count, as a crash makes it.
    pub fn shown(&mut self, channel: ChannelId, receipt: RecordId) {
        let is_ours = self.evidence.has_head() && receipt == self.head_id(channel);
        if is_ours && !self.is_busy() && !self.stated().settled.covers(&self.count().settled) {
            self.interrupted = true;
        }
    }

    /// Opens a job; returns how many tokens may be generated at once.
    ///
    /// One first window at a time is delivered before it is paid; every other job waits for a receipt.
    pub fn begin(&mut self, job: JobId, worst: impl Into<Worst>) -> u32 {
        let worst = worst.into();
        let outstanding = !self.affords(&self.granted());
        let granted = if self.terms.price.is_free() {
            u32::MAX
        } else if outstanding {
            0
        } else {
            WINDOW_MIN
        };
        let flight = Flight { worst, tokens_in: None, granted, postpaid: granted > 0 };
        let count = self.count();
        self.work.get_or_insert_with(|| Box::new(Work::beyond(count))).flights.insert(job, flight);
        granted
    }

    /// Learns how many tokens the prompt of a job has.
    pub fn prepared(&mut self, job: JobId, tokens_in: u32) {
        if let Some(flight) = self.flight_mut(job) {
            flight.tokens_in = Some(tokens_in);
        }
    }

    /// Takes a receipt; an older one changes nothing. Returns it with our signature if it is news.
    ///
    /// # Errors
    /// When it is not the payer's or above the cap.
    pub fn receive(&mut self, receipt: &Verified<Receipt>) -> Result<Option<Verified<Receipt>>, PaidError> {
        if !self.is_by_payer(receipt) {
            return Err(PaidError::WrongKey);
        }
        if receipt.amount > self.cap {
            return Err(PaidError::AboveCap);
        }
        if self.is_closing() || !self.is_news(receipt) {
            return Ok(None);
        }

        let both = receipt.clone().signed_also_by(self.domain, Role::Payee, &self.signer);
        if !self.take(&both) {
            return Err(PaidError::WrongKey);
        }
        if !self.is_busy() {
            self.agree();
        }
        if self.affords(&self.granted()) {
            let flights = self.work.iter_mut().flat_map(|work| work.flights.values_mut());
            flights.for_each(|flight| flight.postpaid = false);
        }
        Ok(Some(both))
    }

    /// Takes a receipt of our own journal.
    pub fn replay(&mut self, receipt: &Verified<Receipt>) {
        self.take(receipt);
    }

    /// Takes back a receipt that we co-signed and have forgotten; an older one changes nothing. Says whether it is news.
    pub fn adopt(&mut self, receipt: &Verified<Receipt>) -> bool {
        let both = [(Role::Payer, self.payer_key), (Role::Payee, self.terms.payee_key)];
        let is_ours = receipt.is_signed_only_by(&both) && receipt.amount <= self.cap && !self.is_closing();
        let news = is_ours && self.take(receipt);
        if news && !self.is_busy() {
            self.agree();
        }
        news
    }

    /// Takes a job that ended out of our own journal.
    pub fn replay_job(&mut self, record: &JobRecord) {
        self.interrupted |= was_interrupted(record);
        let Count { settled, jobs } = self.count();
        self.set_count(Count { settled: settled.plus(&record.usage), jobs: chain(jobs, record) });
    }

    /// Learns that the journal ends here: a job that ran when we stopped has no line in it, but the payer may have
    /// signed for what it saw of it.
    pub fn restarted(&mut self) {
        self.agree();
    }

    /// Takes the channel's end of our own journal.
    pub fn replay_close(&mut self, closing: Verified<Final>) {
        self.closing = Some(Box::new(closing));
    }

    /// Raises what a job may generate if the receipts cover it beside all that ended and all that they covered before.
    pub fn grant(&mut self, job: JobId, up_to: u32) -> Grant {
        let Some(flight) = self.flight(job).copied() else { return Grant::Unchanged };
        let most = u32::try_from(flight.worst.usage.tokens_out).unwrap_or(u32::MAX);
        let granted = up_to.min(most);
        if granted <= flight.granted || flight.tokens_in.is_none() {
            return Grant::Unchanged;
        }
        let raised = Flight { granted, postpaid: false, ..flight };
        let others = || self.flights().filter(|(other, _)| **other != job);
        // One first window is delivered before it is paid, so it must not hold this job up.
        let windows = others().filter(|(_, flight)| flight.postpaid);
        let unpaid = windows.max_by_key(|(_, flight)| flight.usage().tokens_in).map(|(other, _)| *other);
        let covered = others().filter(|(other, _)| Some(**other) != unpaid);
        let covered = covered.fold(self.count().settled, |sum, (_, flight)| sum.plus(&flight.usage()));
        let all = covered.plus(&raised.usage());
        if !self.affords(&all) && !mutant::is_in("grant-unpaid") {
            return Grant::Uncovered;
        }
        if let Some(flight) = self.flight_mut(job) {
            *flight = raised;
        }
        Grant::Raised(granted)
    }

    /// Gives the first window to a job that waits, when no other is unpaid any more; returns the job and its window.
    pub fn pass_first_window(&mut self) -> Option<(JobId, u32)> {
        if !self.affords(&self.granted()) {
            return None;
        }
        let mut flights = self.work.iter_mut().flat_map(|work| &mut work.flights);
        let (job, flight) = flights.find(|(_, flight)| flight.granted == 0)?;
        *flight = Flight { granted: WINDOW_MIN, postpaid: true, ..*flight };
        Some((*job, WINDOW_MIN))
    }

    /// Says whether a job waits for a payment that the payer may not know to be due: after an interruption the unpaid
    /// first window is spent, and a payer who saw nothing of it pays nothing.
    #[must_use]
    pub fn is_stuck(&self, job: JobId) -> bool {
        self.is_disputed() && self.flight(job).is_some_and(|flight| flight.granted == 0)
    }

    /// Says whether a job waits for the first receipt that covers it.
    #[must_use]
    pub fn is_unpaid(&self, job: JobId) -> bool {
        self.flight(job).is_some_and(|flight| flight.postpaid || flight.granted == 0)
    }

    /// Ends a job with what was delivered and appends it to the hash chain; ending a job twice changes nothing.
    /// Returns the chain after it.
    pub fn end(&mut self, record: &JobRecord) -> Option<Digest> {
        let flight = self.work.as_mut()?.flights.remove(&record.job)?;
        let lost_unpaid = record.finish == Finish::Lost && flight.postpaid;
        let set_aside = lost_unpaid && !self.affords(&self.granted().plus(&record.usage));
        if let Some(work) = &mut self.work {
            let sum = if set_aside { &mut work.set_aside } else { &mut work.count.settled };
            *sum = sum.plus(&record.usage);
            work.count.jobs = chain(work.count.jobs, record);
        }
        self.interrupted |= was_interrupted(record);
        let jobs = self.count().jobs;
        self.rejoin();
        Some(jobs)
    }

    /// Gives up a job that never began.
    pub fn abandon(&mut self, job: JobId) {
        if let Some(work) = &mut self.work {
            work.flights.remove(&job);
        }
        self.rejoin();
    }

    /// Signs the channel's end that the payer proposes, if no job is open and it pays for all that was delivered. It
    /// must be on disk before it leaves; nothing is taken on the channel afterwards.
    ///
    /// # Errors
    /// When it is not the payer's, states too little, follows another receipt, or a job is open.
    pub fn close(&mut self, closing: &Verified<Final>) -> Result<Verified<Final>, PaidError> {
        if let Some(signed) = &self.closing {
            return Ok(Verified::clone(signed));
        }
        if !self.is_by_payer(closing) {
            return Err(PaidError::WrongKey);
        }
        if self.is_busy() && !mutant::is_in("final-while-busy") {
            return Err(PaidError::Busy);
        }
        if closing.amount > self.cap {
            return Err(PaidError::AboveCap);
        }
        if closing.amount < self.due() && !mutant::is_in("final-below-due") {
            return Err(PaidError::TooLittle);
        }

        if closing.receipt != self.evidence.head().map(|head| head.id(closing.channel, self)) {
            return Err(PaidError::OtherReceipt);
        }

        let signed = closing.clone().signed_also_by(self.domain, Role::Payee, &self.signer);
        self.closing = Some(Box::new(signed.clone()));
        Ok(signed)
    }

    /// Returns the id of the newest receipt of the channel.
    #[must_use]
    pub fn head_id(&self, channel: ChannelId) -> RecordId {
        self.evidence.head().map_or(RecordId::NONE, |head| head.id(channel, self))
    }

    /// Says whether the payer signed and nobody else but us: the issuer reads no record with a third signature.
    fn is_by_payer<T: Signable>(&self, record: &Verified<T>) -> bool {
        let (payer, payee) = ((Role::Payer, self.payer_key), (Role::Payee, self.terms.payee_key));
        record.is_signed_only_by(&[payer]) || record.is_signed_only_by(&[payer, payee])
    }

    /// What was set aside while jobs ran counts again when none does.
    fn rejoin(&mut self) {
        if let Some(work) = self.work.as_mut().filter(|work| work.flights.is_empty()) {
            let Count { settled, jobs } = work.count;
            let settled = settled.plus(&core::mem::take(&mut work.set_aside));
            self.set_count(Count { settled, jobs });
        }
    }

    /// Takes the payer's count if it is paid for. Ours never falls: a payer could interrupt every job, deny it, and have
    /// the next one for the same money.
    fn agree(&mut self) {
        // At rest it is ours already.
        if self.work.is_none() {
            return;
        }
        let stated = self.evidence.head().map(|head| head.count().settled);
        if let Some(usage) = stated.filter(|usage| self.affords(usage)) {
            let believes_less = mutant::is_in("payee-believes-less");
            let Count { settled, jobs } = self.count();
            let settled = if believes_less { usage } else { settled.or_more(&usage) };
            self.set_count(Count { settled, jobs });
        }
    }

    fn owed(&self) -> Usage {
        let settled = self.count().settled;
        self.work.as_ref().map_or(settled, |work| settled.plus(&work.set_aside))
    }

    fn granted(&self) -> Usage {
        self.flights().fold(self.owed(), |sum, (_, flight)| sum.plus(&flight.usage()))
    }

    fn affords(&self, usage: &Usage) -> bool {
        self.cost(usage).is_some_and(|cost| cost <= self.paid())
    }

    fn cost(&self, usage: &Usage) -> Option<u64> {
        self.terms.price.cost(usage)
    }
}

/// Says whether the payer may not know of all that a job came to.
fn was_interrupted(record: &JobRecord) -> bool {
    record.finish == Finish::Lost && record.usage != Usage::default()
}

/// Returns the hash chain `before` with one job appended.
#[must_use]
pub fn chain(before: Digest, record: &JobRecord) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sharemesh/v1/jobs\0").update(&before.0);
    encoded(record, |record| hasher.update(record));
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advert::Incentive;
    use crate::ids::ModelId;
    use crate::ledger::records::{OpBody, OpenChannel};
    use crate::price::Price;
    use crate::prng::Prng;
    use crate::signed::sign;
    use crate::time::Time;

    const DOMAIN: DomainId = DomainId([1; 32]);
    const CHANNEL: ChannelId = ChannelId([9; 32]);
    const PRICE: Price = Price { call: 0, input: 1_000_000_000, output: 1_000_000_000 };
    const WORST: Usage = Usage { calls: 1, tokens_in: 8000, tokens_out: 4096, compute: 0 };

    fn signer(seed: u8) -> Signer {
        Signer::from_seed([seed; 32])
    }

    fn job(number: u8) -> JobId {
        JobId([number; 16])
    }

    fn paid() -> Paid {
        let account = |seed| AccountId::from(signer(seed).public());
        let terms = Terms {
            payee: signer(5).public().into(),
            payee_account: account(50),
            payee_key: signer(60).public(),
            payer_account: account(3),
            model: ModelId([7; 32]),
            licence: RecordId::NONE,
            incentive: Incentive::Exchange,
            price: PRICE,
            markup: None,
            split: alloc::vec::Vec::new(),
            valid_to: Epoch(7),
        };
        let terms = sign(terms, DOMAIN, Role::Node, &signer(5));
        let payer = (signer(4).public().into(), account(3), signer(70).public());
        Paid::new(terms, payer, 1_000_000_000_000, (signer(60), DOMAIN))
    }

    #[test]
    fn a_receipt_of_whatever_length_takes_the_place_of_the_last_and_leaves_the_proof() {
        let side = paid();
        let open = OpenChannel {
            payee: side.terms.payee,
            terms: side.terms.id(),
            cap: side.cap(),
            expires: Epoch(9),
            payer: side.payer,
            payer_key: side.payer_key,
        };
        let (account, body) = (side.payer_account, OpBody::OpenChannel(open));
        let op = AccountOp { account, sequence: 0, previous: RecordId::NONE, epoch: Epoch(0), body };
        let op = sign(op, DOMAIN, Role::Owner, &signer(3));
        let channel = ChannelId::from(op.id());
        let recorded = Recorded { op: op.id(), epoch: Epoch(0) };
        let recorded = sign(recorded, DOMAIN, Role::Issuer, &signer(1));
        let mut side = side.proven_by(&op, &[recorded]);
        let opening = side.opening(channel).expect("it was proven");
        assert_eq!(opening.op, op);

        for (amount, most) in [(1, 1), (2, 1 << 40), (3, 5), (4, u64::MAX), (5, 0)] {
            let usage = Usage { calls: most, tokens_in: most, tokens_out: most, compute: most };
            let (jobs, epoch) = (Digest([amount as u8; 32]), Epoch(u32::MAX));
            let receipt = Receipt { channel, sequence: most, amount, usage, jobs, epoch };
            let receipt = sign(receipt, DOMAIN, Role::Payer, &signer(70));
            let receipt = receipt.signed_also_by(DOMAIN, Role::Payee, &signer(60));
            side.replay(&receipt);
            assert_eq!(side.head(channel), Some(receipt));
            assert_eq!(side.opening(channel).as_ref(), Some(&opening));
        }
    }

    fn record(job: JobId, tokens_in: u64, tokens_out: u64, finish: Finish) -> JobRecord {
        JobRecord {
            job,
            channel: Some(CHANNEL),
            provider: signer(5).public().into(),
            requester: signer(4).public().into(),
            model: ModelId([7; 32]),
            usage: Usage::of_job(tokens_in, tokens_out),
            price: PRICE,
            start: Time::default(),
            end: Time::default(),
            input: Digest::ZERO,
            output: Digest::ZERO,
            finish,
        }
    }

    fn usage(calls: u64, tokens_in: u64, tokens_out: u64) -> Usage {
        Usage { calls, tokens_in, tokens_out, compute: 0 }
    }

    fn receipt(sequence: u64, amount: u64, usage: Usage) -> Verified<Receipt> {
        receipt_after(sequence, amount, usage, Digest::ZERO)
    }

    fn receipt_after(sequence: u64, amount: u64, usage: Usage, jobs: Digest) -> Verified<Receipt> {
        let receipt = Receipt { channel: CHANNEL, sequence, amount, usage, jobs, epoch: Epoch(0) };
        sign(receipt, DOMAIN, Role::Payer, &signer(70))
    }

    #[test]
    fn receipts_and_ends_with_a_foreign_signature_are_refused() {
        let mut paid = paid();
        let by_more = receipt(1, 500, Usage::default()).signed_also_by(DOMAIN, Role::Owner, &signer(100));
        assert_eq!(paid.receive(&by_more), Err(PaidError::WrongKey));

        let closing = Final { channel: CHANNEL, amount: 500, receipt: None };
        let closing = sign(closing, DOMAIN, Role::Payer, &signer(70));
        let by_more = closing.signed_also_by(DOMAIN, Role::Owner, &signer(100));
        assert_eq!(paid.close(&by_more), Err(PaidError::WrongKey));
        assert!(!paid.is_closing());
    }

    #[test]
    fn a_payer_that_drops_every_stream_gets_one_free_window() {
        let mut paid = paid();
        let mut free = 0;
        for round in 0..50 {
            if paid.is_disputed() {
                break;
            }
            let (dropped, sitter) = (job(2 * round), job(2 * round + 1));
            free += paid.begin(dropped, WORST);
            assert_eq!(paid.begin(sitter, WORST), 0);
            paid.prepared(dropped, 8000);
            paid.end(&record(dropped, 8000, 64, Finish::Lost));
            free += paid.pass_first_window().map_or(0, |(_, window)| window);
            paid.end(&record(sitter, 10, 0, Finish::Cancelled));
            let denies = receipt(u64::from(round) + 1, 0, Usage::default());
            assert!(paid.receive(&denies).expect("signed").is_some());
        }

        assert_eq!(free, WINDOW_MIN);
        assert!(paid.is_disputed());
    }

    #[test]
    fn jobs_that_wait_do_not_get_the_window_that_another_lost_unpaid() {
        let mut paid = paid();
        let mut free = 0;
        for number in 0..100 {
            free += paid.begin(job(number), WORST);
            paid.prepared(job(number), 8000);
        }
        for number in 0..100 {
            paid.end(&record(job(number), 8000, 64, Finish::Lost));
            free += paid.pass_first_window().map_or(0, |(_, window)| window);
        }

        assert_eq!(free, WINDOW_MIN);
    }

    #[test]
    fn a_window_that_is_paid_stands_between_another_job_and_its_grant() {
        let mut paid = paid();
        paid.begin(job(1), WORST);
        paid.prepared(job(1), 0);
        let pays = receipt(1, 64_000, usage(1, 0, 64));
        paid.receive(&pays).expect("signed");
        paid.begin(job(2), WORST);
        paid.prepared(job(2), 0);

        assert_eq!(paid.grant(job(2), 65), Grant::Uncovered);
    }

    #[test]
    fn a_lost_first_window_does_not_hold_up_a_job_that_is_paid() {
        let mut paid = paid();
        paid.begin(job(1), WORST);
        paid.begin(job(2), WORST);
        paid.prepared(job(1), 100);
        paid.prepared(job(2), 100);
        paid.end(&record(job(1), 100, 64, Finish::Lost));
        paid.receive(&receipt(1, 164_000, usage(1, 100, 1))).expect("signed");

        assert_eq!(paid.grant(job(2), 64), Grant::Raised(64));
        paid.end(&record(job(2), 100, 64, Finish::Stop));
        assert_eq!((paid.earned(), paid.is_disputed()), (164_000, true));
    }

    #[test]
    fn a_dispute_is_over_when_what_was_lost_is_paid() {
        let mut paid = paid();
        paid.begin(job(1), WORST);
        paid.prepared(job(1), 100);
        paid.end(&record(job(1), 100, 64, Finish::Lost));
        paid.receive(&receipt(1, 163_999, usage(1, 100, 64))).expect("signed");
        assert!(paid.is_disputed());

        paid.receive(&receipt(2, 164_000, usage(1, 100, 64))).expect("signed");
        assert!(!paid.is_disputed());
    }

    #[test]
    fn a_channel_takes_no_job_while_the_receipt_of_what_was_paid_out_is_lacking() {
        let mut paid = paid();
        paid.redeemed(164_000);
        assert!(paid.is_disputed());
        paid.receive(&receipt(1, 163_999, usage(1, 100, 64))).expect("signed");
        assert!(paid.is_disputed());

        let given_back = receipt(2, 164_000, usage(1, 100, 64));
        assert!(paid.adopt(&given_back.signed_also_by(DOMAIN, Role::Payee, &signer(60))));
        assert!(!paid.is_disputed());
    }

    fn up_to(prng: &mut Prng, most: u64) -> u64 {
        prng.below(most.saturating_add(1))
    }

    /// A channel beside the lines that its node would have in its journal.
    struct Journaled {
        live: Paid,
        lines: alloc::vec::Vec<Line>,
    }

    enum Line {
        Receipt(Verified<Receipt>),
        Job(JobRecord),
        Redeemed(u64),
    }

    impl Journaled {
        /// Does something that an honest or a dishonest payer may bring about; it never states more than it was given.
        fn step(&mut self, prng: &mut Prng, number: u8) {
            let open: alloc::vec::Vec<JobId> = self.live.flights().map(|(job, _)| *job).collect();
            let one = open.iter().copied().max_by_key(|_| prng.next_u64());
            match (prng.below(6), one) {
                (0 | 1, _) if open.len() < 3 => {
                    self.live.begin(job(number), WORST);
                    self.live.prepared(job(number), 100);
                }
                (0..=2, Some(job)) => {
                    let finish = [Finish::Stop, Finish::Cancelled, Finish::Lost];
                    let finish = finish[usize::try_from(prng.below(3)).expect("small")];
                    let granted = u64::from(self.live.flight(job).expect("in flight").granted);
                    let ended = record(job, 100, up_to(prng, granted), finish);
                    self.live.end(&ended);
                    self.live.pass_first_window();
                    self.lines.push(Line::Job(ended));
                }
                (3, Some(job)) => {
                    self.live.grant(job, u32::try_from(prng.below(4096)).expect("small"));
                }
                (4, _) => {
                    let redeemed = up_to(prng, self.live.unredeemed());
                    self.live.redeemed(redeemed);
                    self.lines.push(Line::Redeemed(redeemed));
                }
                _ => self.pay(prng, number),
            }
        }

        fn pay(&mut self, prng: &mut Prng, number: u8) {
            let owed = self.live.count().settled;
            let stated = if prng.below(2) == 0 {
                owed
            } else {
                usage(up_to(prng, owed.calls), owed.tokens_in, up_to(prng, owed.tokens_out))
            };
            let least = self.live.paid().max(PRICE.cost(&stated).unwrap_or(0));
            let amount = least.saturating_add(prng.below(200_000));
            let jobs = if prng.below(2) == 0 { self.live.count().jobs } else { Digest::ZERO };
            let receipt = receipt_after(u64::from(number), amount, stated, jobs);
            if let Ok(Some(both)) = self.live.receive(&receipt) {
                self.lines.push(Line::Receipt(both));
            }
        }

        fn replayed(&self) -> Paid {
            let mut again = paid();
            for line in &self.lines {
                match line {
                    Line::Receipt(receipt) => again.replay(receipt),
                    Line::Job(record) => again.replay_job(record),
                    Line::Redeemed(amount) => again.redeemed(*amount),
                }
            }
            again.restarted();
            again
        }
    }

    #[test]
    fn a_restarted_payee_grants_refuses_and_closes_for_what_it_did_before() {
        let (mut compared, mut at_rest) = (0, 0);
        for seed in 0..300 {
            let mut prng = Prng::new(seed);
            let mut channel = Journaled { live: paid(), lines: alloc::vec::Vec::new() };
            for number in 0..40 {
                channel.step(&mut prng, number);
                if channel.live.is_busy() {
                    continue;
                }
                let (mut before, mut after) = (channel.live.clone(), channel.replayed());
                let sums = |paid: &Paid| {
                    (paid.paid(), paid.earned(), paid.due(), paid.unredeemed(), paid.count().jobs)
                };
                assert_eq!(sums(&before), sums(&after), "seed {seed}");
                assert_eq!(before.is_disputed(), after.is_disputed(), "seed {seed}");
                assert_eq!(before.fits(&WORST), after.fits(&WORST), "seed {seed}");
                assert_eq!(before.begin(job(200), WORST), after.begin(job(200), WORST), "seed {seed}");
                before.prepared(job(200), 100);
                after.prepared(job(200), 100);
                for up_to in [65, 100, 200, 1000, 4096] {
                    assert_eq!(before.grant(job(200), up_to), after.grant(job(200), up_to), "seed {seed}");
                }
                compared += 1;
                let worked = channel.live.count().jobs != Digest::ZERO;
                at_rest += u32::from(worked && channel.live.work.is_none());
            }
        }
        assert!(compared > 1_000 && at_rest > 100, "{compared}, {at_rest} of them at rest");
    }

    #[test]
    fn a_restarted_payee_forgets_nothing_that_the_payer_left_out_of_its_receipts() {
        let mut channel = Journaled { live: paid(), lines: alloc::vec::Vec::new() };
        channel.live.begin(job(1), WORST);
        channel.live.prepared(job(1), 0);
        let silent = receipt(1, 4_096_000, Usage::default());
        channel.lines.push(Line::Receipt(channel.live.receive(&silent).expect("signed").expect("news")));
        channel.live.grant(job(1), 4096);
        let ended = record(job(1), 0, 4096, Finish::Length);
        channel.live.end(&ended);
        channel.lines.push(Line::Job(ended));

        let mut again = channel.replayed();
        assert_eq!(again.earned(), 4_096_000);
        again.begin(job(2), WORST);
        again.prepared(job(2), 0);
        assert_eq!(again.grant(job(2), 4096), Grant::Uncovered);
    }
}
