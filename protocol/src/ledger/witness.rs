//! One issuer of several: votes, records, promises and co-signs, each with the line that must be on disk before it leaves.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;

use crate::agreeing::AgreedRecord;
use crate::ids::{AccountId, ChannelId, Digest, DomainId, RecordId};
use crate::keys::{PublicKey, Signer};
use crate::ledger::counted::paid_by_quorum;
use crate::ledger::facts::Facts;
use crate::ledger::issuer::{Issuer, IssuerError, has_lapsed};
use crate::ledger::outside::{Outside, Progress};
use crate::ledger::quorum::{Certificate, EndCertificate, Fact, is_agreed};
use crate::ledger::records::{
    AccountOp, Claim, CloseVote, Deposit, Epoch, Final, Receipt, Recorded, RedeemAck, Source, Terms, Vote,
};
use crate::ledger::settled::{Outcome, Settled};
use crate::manifest::Manifest;
use crate::message::Checked;
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Signable, Verified, sign};

/// Most deposits that wait for signatures: bounds memory.
const PROPOSALS_MAX: usize = 10_000;

/// Most deposits out of the budget that we sign for one proposer between two checkpoints. Each is a line on our disk, and an
/// account and a reference for ever; and they take room in the checkpoint that steps have to pay for.
pub const GIFTS_MAX: u64 = 2_048;

/// Meetings of the issuers after which a lock is old: a certificate takes no longer.
const OLD_MEETINGS: u32 = 2;

/// What an issuer says, and the line that must be on its disk first; none when it is there already.
pub type Said<T> = (T, Option<Record>);

/// An issuer with its books and what it knows of the others' votes.
#[derive(Debug, Clone)]
pub struct Witness {
    /// The books.
    pub books: Issuer,
    /// What was taken, for others to fetch.
    pub facts: Facts,
    manifest: Manifest,
    domain: DomainId,
    signer: Signer,
    /// For which deposit of a reference we have signed.
    endorsed: BTreeMap<Digest, RecordId>,
    /// What we have signed for each issuer that proposed it, in nano-credits.
    given: BTreeMap<PublicKey, u64>,
    /// How many deposits these were since the last checkpoint.
    gifts: BTreeMap<PublicKey, u64>,
    /// Deposits that we proposed, with the signatures so far.
    proposals: BTreeMap<Digest, Verified<Deposit>>,
    /// Deposits from outside that operators have seen.
    outside: Outside,
    /// Votes for the end of open channels.
    ends: BTreeMap<ChannelId, BTreeMap<PublicKey, Verified<CloseVote>>>,
    /// What the last checkpoint settled, and the facts since.
    pub settled: Settled,
    /// What a checkpoint that we have prepared would resolve.
    frozen: Frozen,
    /// The steps to which slots are locked.
    locks: BTreeMap<AccountId, Locked>,
    /// The account whose lock was shown last.
    shown: AccountId,
}

/// A step for which we voted.
#[derive(Debug, Clone)]
struct Locked {
    op: Verified<AccountOp>,
    /// How often the issuers have met since: a lock that is new will have its certificate soon.
    meetings: u32,
    /// Another step that its owner signed for the same slot.
    rival: Option<Verified<AccountOp>>,
}

/// What nothing but the next checkpoint may resolve.
#[derive(Debug, Clone, Default)]
struct Frozen {
    /// Slots, and the epoch of the checkpoint before which votes would be void in them.
    slots: BTreeMap<(AccountId, u64), Epoch>,
    channels: BTreeSet<ChannelId>,
    /// What it would state as paid on channels that stay open: they do not end below.
    paid: BTreeMap<ChannelId, u64>,
}

impl Witness {
    /// Returns an issuer with empty books.
    #[must_use]
    pub fn new(manifest: Manifest, signer: Signer) -> Self {
        let manifest_of_books = manifest.clone();
        Self {
            books: Issuer::new(manifest.clone()),
            facts: Facts::default(),
            domain: manifest.domain(),
            manifest,
            signer,
            endorsed: BTreeMap::new(),
            given: BTreeMap::new(),
            gifts: BTreeMap::new(),
            proposals: BTreeMap::new(),
            outside: Outside::default(),
            ends: BTreeMap::new(),
            settled: Settled::new(manifest_of_books),
            frozen: Frozen::default(),
            locks: BTreeMap::new(),
            shown: AccountId([0; 32]),
        }
    }

    /// Returns the key of this issuer.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.signer.public()
    }

    /// Signs as issuer.
    #[must_use]
    pub fn sign<T: Signable>(&self, record: T) -> Verified<T> {
        sign(record, self.domain, Role::Issuer, &self.signer)
    }

    /// Votes for a step and locks its slot to it.
    ///
    /// # Errors
    /// Says which rule the step breaks, or that another step has the slot.
    pub fn vote(
        &mut self,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        epoch: Epoch,
    ) -> Result<Said<Verified<Vote>>, IssuerError> {
        let known = |books: &Issuer| {
            books.locked(op.account) == Some(op.id()) || books.next_slot(op.account).1 == op.id()
        };
        let was_known = known(&self.books);
        if !was_known && op.sequence == self.books.next_slot(op.account).0 {
            self.settled.check_room(op)?;
        }
        self.books.lock(op, terms, epoch)?;
        self.locked(op);
        let settled = self.settled.epoch();
        let vote = Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch, settled };
        let terms = terms.map(Verified::signed);
        let record = Record::Voted { op: op.signed(), terms, epoch };
        let is_written = was_known || mutant::is_in("vote-before-disk");
        Ok((self.sign(vote), (!is_written).then_some(record)))
    }

    /// Takes a certified step.
    ///
    /// # Errors
    /// Says what is missing: in the certificate, or here.
    pub fn certify(
        &mut self,
        certificate: &Certificate<Checked>,
        epoch: Epoch,
    ) -> Result<Said<Verified<Recorded>>, IssuerError> {
        if self.is_frozen(certificate) && !self.books.is_void(certificate) {
            self.contest_step(certificate)?;
            return Err(IssuerError::Behind);
        }
        let channel = certificate.op.id().into();
        let paid = self.books.parked_paid(channel);
        let is_new = self.books.certify(certificate, epoch)?;
        if !is_new && !self.holds(&certificate.op) && !mutant::is_in("recorded-unheld") {
            return Err(IssuerError::Behind);
        }
        if is_new {
            self.pay_again(channel, paid);
        }
        self.took(Fact::Step(certificate.clone()), is_new);
        self.locks.retain(|account, lock| {
            *account != certificate.op.account || lock.op.sequence > certificate.op.sequence
        });
        let recorded = self.sign(Recorded { op: certificate.op.id(), epoch });
        let record = Record::Certified { certificate: certificate.signed(), epoch };
        let is_written = !is_new || mutant::is_in("recorded-before-disk");
        Ok((recorded, (!is_written).then_some(record)))
    }

    /// Pays once more what we had paid on a channel whose opening had to wait after a checkpoint, and what we were shown since.
    fn pay_again(&mut self, channel: ChannelId, paid: u64) {
        if let Some(Fact::Redeemed { receipt, claim }) = self.settled.paid(channel).map(Arc::as_ref)
            && !mutant::is_in("paid-unparked")
        {
            self.books.pay_again(receipt, paid);
            // More than a promised end waits on.
            let _ = self.books.redeem_claimed(receipt, claim.as_ref());
        }
    }

    /// Keeps a certified step that must wait for our next proposal, if it is whole: it stands for every copy of that step.
    fn contest_step(&mut self, certificate: &Certificate<Checked>) -> Result<(), IssuerError> {
        let op = &certificate.op;
        certificate.check(&self.manifest)?;
        if !certificate.has_its_terms() {
            return Err(IssuerError::WrongTerms);
        }
        // Of a later slot we do not know yet which key may sign in it.
        if (op.sequence, op.previous) == self.books.next_slot(op.account) {
            self.books.check_step(op)?;
            self.settled.contest(Fact::Step(certificate.clone()));
        }
        Ok(())
    }

    /// Says whether a step whose slot is taken is the one that took it. Until we have followed a checkpoint that stands, it
    /// may be another one, which that checkpoint drops.
    fn holds(&self, op: &Verified<AccountOp>) -> bool {
        self.settled.is_past(op) || self.settled.has_taken(&op.id()) || !self.books.is_one_of_many()
    }

    /// Promises to let a channel end as both sides signed.
    ///
    /// # Errors
    /// When they did not, or more was redeemed, or another end was promised.
    pub fn promise(
        &mut self,
        closing: &Verified<Final>,
        epoch: Epoch,
    ) -> Result<Said<Verified<CloseVote>>, IssuerError> {
        let channel = closing.channel;
        let has_ended = self.books.channel(channel).is_some_and(|(_, closed)| closed);
        let was_promised = has_ended || self.books.promised(channel).is_some();
        let amount = self.books.promise_end(closing)?;
        let record = Record::Promised { channel, amount };
        Ok((self.promised(channel, amount, epoch), (!was_promised).then_some(record)))
    }

    /// Promises to let every channel end at what it has paid whose time is over.
    pub fn promise_expired(&mut self, epoch: Epoch) -> Vec<Said<Verified<CloseVote>>> {
        let over = self.books.promise_expired(epoch);
        let said = over.into_iter().map(|(channel, amount)| {
            self.publish_paid(channel);
            let record = Record::Promised { channel, amount };
            (self.promised(channel, amount, epoch), Some(record))
        });
        said.collect()
    }

    fn promised(&mut self, channel: ChannelId, amount: u64, epoch: Epoch) -> Verified<CloseVote> {
        let vote = self.sign(CloseVote { channel, amount, epoch });
        self.hear(&vote);
        vote
    }

    /// Takes note of an issuer's vote for the end of a channel that is open here; returns the certificate when a quorum
    /// agrees.
    pub fn hear(&mut self, vote: &Verified<CloseVote>) -> Option<EndCertificate<Checked>> {
        let key = vote.signer(Role::Issuer).filter(|key| self.manifest.has_issuer_key(*key))?;
        if self.books.channel(vote.channel).is_none_or(|(_, closed)| closed) {
            return None;
        }
        let votes = self.ends.entry(vote.channel).or_default();
        votes.insert(key, vote.clone());
        self.end_of(vote)
    }

    fn end_of(&self, vote: &CloseVote) -> Option<EndCertificate<Checked>> {
        let votes = self.ends.get(&vote.channel)?.values();
        let votes = votes.filter(|other| other.amount == vote.amount).cloned().collect();
        let certificate = EndCertificate { votes };
        certificate.check(&self.manifest).is_ok().then_some(certificate)
    }

    /// Ends a channel as a quorum promised.
    ///
    /// # Errors
    /// Says what is missing: in the certificate, or here.
    pub fn end(&mut self, certificate: &EndCertificate<Checked>) -> Result<Option<Record>, IssuerError> {
        let (channel, amount) = certificate.check(&self.manifest)?;
        let is_below = self.frozen.paid.get(&channel).is_some_and(|paid| amount < *paid);
        let is_frozen = self.frozen.channels.contains(&channel) || is_below;
        if is_frozen && !self.books.is_end_void(certificate) {
            self.settled.contest(Fact::End(certificate.clone()));
            return Err(IssuerError::Behind);
        }
        let taken = self.take_end(certificate);
        if matches!(taken, Err(IssuerError::Behind)) {
            // What we have paid beyond is spent here: others, who have not paid it, object to what says so.
            self.settled.contest(Fact::End(certificate.clone()));
        }
        taken
    }

    fn take_end(&mut self, certificate: &EndCertificate<Checked>) -> Result<Option<Record>, IssuerError> {
        let is_new = self.books.end_by(certificate)?;
        self.took(Fact::End(certificate.clone()), is_new);
        if let Some(vote) = certificate.votes.first() {
            self.ends.remove(&vote.channel);
        }
        Ok(is_new.then(|| Record::Concluded(certificate.signed())))
    }

    /// Proposes a deposit out of the budget.
    ///
    /// # Errors
    /// When our part of the budget does not suffice, or the reference is taken.
    pub fn propose(&mut self, deposit: Deposit) -> Result<Said<Verified<Deposit>>, IssuerError> {
        if self.proposals.len() >= PROPOSALS_MAX {
            return Err(IssuerError::Full);
        }
        let deposit = self.sign(deposit);
        let (signed, record) = self.endorse(&deposit, self.key())?;
        self.proposals.insert(signed.reference, signed.clone());
        Ok((signed, record))
    }

    /// Signs a deposit that another issuer proposes.
    ///
    /// # Errors
    /// When its part of the budget does not suffice, it has not signed, or the reference is another deposit's; when it gives
    /// nothing, or the proposer has made too many since the last checkpoint.
    pub fn endorse(
        &mut self,
        deposit: &Verified<Deposit>,
        proposer: PublicKey,
    ) -> Result<Said<Verified<Deposit>>, IssuerError> {
        if deposit.source != Source::Budget {
            // Only an operator who has seen the payment could sign.
            return Err(IssuerError::NoQuorum);
        }
        if !deposit.is_signed_by(Role::Issuer, proposer) {
            return Err(IssuerError::WrongKey);
        }
        let from_outside = self.outside.ours(deposit.reference).is_some();
        let record = match self.endorsed.get(&deposit.reference) {
            Some(endorsed) if *endorsed == deposit.id() => None,
            Some(_) => return Err(IssuerError::SlotLocked),
            None if from_outside || self.books.deposit_of(deposit.reference).is_some() => {
                return Err(IssuerError::SlotLocked);
            }
            None => {
                self.check_gift(deposit.amount, proposer)?;
                self.give(deposit, proposer)?;
                Some(Record::Endorsed { deposit: deposit.signed(), proposer })
            }
        };
        Ok((deposit.clone().signed_also_by(self.domain, Role::Issuer, &self.signer), record))
    }

    /// Returns what each issuer may propose in all, in nano-credits.
    fn part(&self) -> u64 {
        let issuers = u64::try_from(self.manifest.issuers.len()).unwrap_or(u64::MAX);
        self.manifest.grant_budget.checked_div(issuers).unwrap_or(0)
    }

    fn given_by(&self, proposer: PublicKey) -> u64 {
        self.given.get(&proposer).copied().unwrap_or(0)
    }

    /// Returns what this issuer may still propose, in nano-credits.
    #[must_use]
    pub fn part_left(&self) -> u64 {
        self.part().saturating_sub(self.given_by(self.key()))
    }

    /// Checks what the sum does not bound: a liar makes no end of deposits that give nothing or next to nothing.
    fn check_gift(&self, amount: u64, proposer: PublicKey) -> Result<(), IssuerError> {
        let made = self.gifts.get(&proposer).copied().unwrap_or(0);
        if amount == 0 {
            Err(IssuerError::NoTransfer)
        } else if made >= GIFTS_MAX && !mutant::is_in("gifts-unlimited") {
            Err(IssuerError::Full)
        } else {
            Ok(())
        }
    }

    fn give(&mut self, deposit: &Verified<Deposit>, proposer: PublicKey) -> Result<(), IssuerError> {
        let given = self.given_by(proposer);
        let sum = given.checked_add(deposit.amount).ok_or(IssuerError::Overflow)?;
        if sum > self.part() {
            return Err(IssuerError::Budget { left: self.part().saturating_sub(given) });
        }

        self.given.insert(proposer, sum);
        let made = self.gifts.entry(proposer).or_default();
        *made = made.saturating_add(1);
        self.endorsed.insert(deposit.reference, deposit.id());
        Ok(())
    }

    /// Adds the signatures of other issuers to a deposit that we proposed; returns it when a quorum has signed.
    pub fn gather(&mut self, deposit: &Verified<Deposit>) -> Option<Verified<Deposit>> {
        let manifest = &self.manifest;
        let proposal = self.proposals.get_mut(&deposit.reference)?;
        let is_issuer = |role, key| role == Role::Issuer && manifest.has_issuer_key(key);
        *proposal = proposal.clone().with_signatures_of(deposit, is_issuer);
        is_agreed(proposal, manifest).then(|| proposal.clone())
    }

    /// Signs a deposit from outside that our operator has seen; the same again changes nothing.
    ///
    /// # Errors
    /// When something else was signed or booked under its reference, or too many wait.
    pub fn vouch(&mut self, deposit: Deposit) -> Result<Option<Record>, IssuerError> {
        match self.books.deposit_of(deposit.reference) {
            Some(booked) if booked == (deposit.account, deposit.amount) => return Ok(None),
            Some((_, amount)) => return Err(IssuerError::OtherDeposit { amount }),
            None if self.endorsed.contains_key(&deposit.reference) => return Err(IssuerError::SlotLocked),
            None => {}
        }
        let reference = deposit.reference;
        let is_new = self.outside.vouch(deposit, self.domain, &self.signer)?;
        let ours = self.outside.ours(reference).filter(|_| is_new);
        Ok(ours.map(|deposit| Record::Vouched(deposit.signed())))
    }

    /// Takes note of a deposit from outside that another issuer has signed; says whether there is anything to tell
    /// the others: our signature has changed, or a quorum has signed.
    pub fn hear_outside(&mut self, by: PublicKey, deposit: &Verified<Deposit>) -> bool {
        if self.books.deposit_of(deposit.reference).is_some() {
            return false;
        }
        let has_changed = self.outside.hear(by, deposit, self.domain, &self.signer);
        has_changed || self.outside.agreed(deposit.reference, &self.manifest).is_some()
    }

    /// Returns the deposit of a reference from outside that our operator has seen, with all signatures that we know.
    #[must_use]
    pub fn outside(&self, reference: Digest) -> Option<Verified<Deposit>> {
        self.outside.gathered(reference, &self.manifest)
    }

    /// Returns how far that deposit has come.
    #[must_use]
    pub fn progress(&self, reference: Digest) -> Option<Progress> {
        self.outside.progress(reference, &self.manifest)
    }

    /// Returns the deposits from outside whose turn it is to be repeated to the other issuers.
    pub fn round(&mut self) -> Vec<Verified<Deposit>> {
        self.outside.round(&self.manifest)
    }

    /// Returns our proposals that too few have signed.
    #[must_use]
    pub fn proposals(&self) -> Vec<Verified<Deposit>> {
        self.proposals.values().cloned().collect()
    }

    /// Books credits that a quorum of issuers says have entered.
    ///
    /// # Errors
    /// When there is no quorum, or the books cannot take them.
    pub fn enter(&mut self, deposit: &Verified<Deposit>) -> Result<Option<Record>, IssuerError> {
        let is_new = self.books.enter(deposit)?;
        self.took(Fact::Deposit(deposit.clone()), is_new);
        self.proposals.remove(&deposit.reference);
        self.outside.booked(deposit.reference);
        Ok(is_new.then(|| Record::Deposited(deposit.signed())))
    }

    /// Returns a fact for another issuer.
    #[must_use]
    pub fn fact(&self, name: &RecordId) -> Option<&Fact<Checked>> {
        self.settled.get(name).map(Arc::as_ref).or_else(|| self.facts.get(name))
    }

    /// Keeps a fact for others, and for the next checkpoint if our books had not taken it before.
    fn took(&mut self, fact: Fact<Checked>, is_new: bool) {
        let fact = Arc::new(fact);
        if is_new {
            self.facts.replace(fact.clone());
        } else {
            self.facts.push(fact.clone());
        }
        if is_new && self.books.is_one_of_many() {
            self.settled.took(fact);
        }
    }

    /// Pays out what a payee claims, or without its word what the receipt's usage costs; returns the base paid in all.
    ///
    /// # Errors
    /// As [`Issuer::redeem_claimed`].
    pub fn redeem(
        &mut self,
        receipt: &Verified<Receipt>,
        claim: Option<&Verified<Claim>>,
    ) -> Result<Said<u64>, IssuerError> {
        let is_new = self.books.redeem_claimed(receipt, claim)?;
        let amount = self.books.channel(receipt.channel).map_or(0, |(redeemed, _)| redeemed);
        if !self.books.is_one_of_many() {
            let record = Record::PaidOut { receipt: receipt.signed(), amount };
            return Ok((amount, is_new.then_some(record)));
        }
        let fact = Fact::Redeemed { receipt: receipt.clone(), claim: claim.cloned() };
        let record = Record::Agreed(AgreedRecord::Taken(fact.signed()));
        if is_new {
            self.settled.took(Arc::new(fact));
        }
        Ok((amount, is_new.then_some(record)))
    }

    /// Counts what enough issuers say that they have paid on a channel: from now on steps may be paid out of it. Returns the
    /// channel and the amount.
    ///
    /// # Errors
    /// When too few say so, or somebody who is no issuer; when the channel is unknown, or cannot pay as much.
    pub fn count(&mut self, acks: &[Verified<RedeemAck>]) -> Result<Said<(ChannelId, u64)>, IssuerError> {
        let (channel, amount) = paid_by_quorum(acks, &self.manifest)?;
        let is_new = self.books.count(channel, amount)?;
        Ok(((channel, amount), is_new.then_some(Record::Counted { channel, amount })))
    }

    /// Takes what another issuer has paid on a channel. What we may not pay any more, because we have promised an end, is
    /// kept for the checkpoint.
    ///
    /// # Errors
    /// As [`Issuer::redeem_claimed`].
    pub fn redeem_elsewhere(
        &mut self,
        receipt: &Verified<Receipt>,
        claim: Option<&Verified<Claim>>,
    ) -> Result<Option<Record>, IssuerError> {
        let (amount, record) = self.redeem(receipt, claim)?;
        let fact = Fact::Redeemed { receipt: receipt.clone(), claim: claim.cloned() };
        let is_open = self.books.channel(receipt.channel).is_some_and(|(_, closed)| !closed);
        let is_held_back = is_open && self.books.amount_claimed(receipt, claim)? > amount;
        if record.is_some() || !is_held_back || self.settled.has_taken(&fact.name()) {
            return Ok(record);
        }
        let kept = self.settled.paid(receipt.channel).map(Arc::as_ref);
        if let Some(Fact::Redeemed { receipt: of, claim: by }) = kept
            && self.books.amount_claimed(of, by.as_ref())? >= self.books.amount_claimed(receipt, claim)?
        {
            return Ok(None);
        }
        let record = Record::Agreed(AgreedRecord::Taken(fact.signed()));
        self.settled.took(Arc::new(fact));
        Ok(Some(record))
    }

    /// Hands what we have paid on a channel whose time is over to the other issuers, as far as no checkpoint states it.
    fn publish_paid(&mut self, channel: ChannelId) {
        if let Some(fact) = self.settled.paid(channel).cloned() {
            self.facts.push(fact);
        }
    }

    /// Remembers the step for which we voted.
    fn locked(&mut self, op: &Verified<AccountOp>) {
        if self.books.is_one_of_many() && self.books.locked(op.account) == Some(op.id()) {
            let lock = || Locked { op: op.clone(), meetings: 0, rival: None };
            let known = self.locks.entry(op.account).or_insert_with(lock);
            if known.op.id() != op.id() {
                *known = lock();
            }
        }
    }

    /// The issuers meet: returns the steps for which we voted some meetings ago and which have no certificate yet, at most
    /// `most` in turn. Other issuers may hold others for the same slots.
    pub fn old_locks(&mut self, most: usize) -> Vec<Verified<AccountOp>> {
        let books = &self.books;
        self.locks.retain(|account, lock| books.locked(*account) == Some(lock.op.id()));
        for lock in self.locks.values_mut() {
            lock.meetings = lock.meetings.saturating_add(1);
        }
        let after = (Bound::Excluded(self.shown), Bound::Unbounded);
        let old = self.locks.range(after).filter(|(_, lock)| lock.meetings > OLD_MEETINGS).take(most);
        let old: Vec<Verified<AccountOp>> = old.map(|(_, lock)| lock.op.clone()).collect();
        self.shown = old.last().filter(|_| old.len() == most).map_or(AccountId([0; 32]), |op| op.account);
        old
    }

    /// Compares a step that its owner signed with the one for which we voted in its slot, and remembers the other one.
    pub fn compare_lock(&mut self, op: &Verified<AccountOp>) {
        let is_owners = self.books.check_step(op).is_ok();
        let Some(lock) = self.locks.get_mut(&op.account).filter(|_| is_owners) else { return };
        let same_slot = (lock.op.sequence, lock.op.previous) == (op.sequence, op.previous);
        if same_slot && lock.op.id() != op.id() && lock.rival.is_none() {
            lock.rival = Some(op.clone());
        }
    }

    /// Returns slots that have been locked for long while another step was signed for them: neither may ever get a quorum.
    #[must_use]
    pub fn stuck(&self) -> Vec<(Verified<AccountOp>, Verified<AccountOp>)> {
        let old = self.locks.values().filter(|lock| lock.meetings > OLD_MEETINGS);
        old.filter_map(|lock| Some((lock.op.clone(), lock.rival.clone()?))).collect()
    }

    /// Keeps two steps that an owner signed for its next slot, so that the next checkpoint frees it; says whether they are
    /// news.
    pub fn double(&mut self, one: &Verified<AccountOp>, other: &Verified<AccountOp>) -> Option<Record> {
        let (first, second) = if one.id() < other.id() { (one, other) } else { (other, one) };
        let fact = Fact::Doubled(first.clone(), second.clone());
        let mut books = self.books.account_alone(one.account);
        let head = self.books.next_slot(one.account).1;
        // Steps from before the slot was freed do not show that it is stuck again.
        let is_old = one.previous != head || other.previous != head;
        if is_old || self.settled.stuck(one.account) == Some(one.sequence) {
            return None;
        }
        books.free_slot((first, second), Epoch(0)).ok()?;
        let record = Record::Agreed(AgreedRecord::Taken(fact.signed()));
        self.settled.took(Arc::new(fact));
        Some(record)
    }

    /// Returns the steps for which we voted long ago that have no certificate and that others will not vote for any more,
    /// as of epoch `now`: too few may have voted in time, and too few have refused for the owner to give them up.
    #[must_use]
    pub fn lapsed(&self, now: Epoch) -> Vec<Verified<AccountOp>> {
        let old = self.locks.values().filter(|lock| lock.meetings > OLD_MEETINGS);
        old.filter(|lock| has_lapsed(&lock.op, now)).map(|lock| lock.op.clone()).collect()
    }

    /// Keeps a step that is too old to be voted for, of an owner whose next slot it is for, so that the next checkpoint
    /// gives the slot back; says whether that is news. Nobody's word is needed for it, and what was certified is not
    /// touched.
    pub fn lapse(&mut self, op: &Verified<AccountOp>, now: Epoch) -> Option<Record> {
        let over = Epoch(now.0.checked_sub(1)?);
        let is_other = self.books.locked(op.account).is_some_and(|locked| locked != op.id());
        let is_known = self.settled.stuck(op.account) == Some(op.sequence);
        if is_other || is_known || self.books.account_alone(op.account).free_lapsed(op, over).is_err() {
            return None;
        }
        let fact = Fact::Lapsed(op.clone());
        let record = Record::Agreed(AgreedRecord::Taken(fact.signed()));
        self.settled.took(Arc::new(fact));
        Some(record)
    }

    /// Says whether a step must wait for a checkpoint that would free its slot.
    fn is_frozen(&self, certificate: &Certificate<Checked>) -> bool {
        let op = &certificate.op;
        let until = self.frozen.slots.get(&(op.account, op.sequence));
        until.is_some_and(|until| !certificate.has_quorum_after(*until, &self.manifest))
    }

    /// Says whether a checkpoint would resolve something otherwise than we have recorded it, or pay more on a channel than
    /// the end says that we have recorded: then we may not prepare it, because a quorum may have recorded the same.
    #[must_use]
    pub fn objects(&self, outcome: &Outcome) -> bool {
        // Also a step that waits for credits is recorded.
        let freed: BTreeSet<(AccountId, u64)> = outcome.freed.iter().copied().collect();
        let mut certified = self.settled.certified_in(&freed);
        let is_dropped =
            |(account, sequence): (AccountId, u64)| outcome.books.next_slot(account).0 <= sequence;
        let has_ended_otherwise = |(channel, amount): &(ChannelId, u64)| {
            self.books.channel(*channel).is_some_and(|(paid, closed)| closed || paid > *amount)
        };
        if mutant::is_in("unlock-recorded") {
            return false;
        }
        let is_paid_beyond = |(channel, amount): (ChannelId, u64)| {
            let stated = outcome.books.channel(channel);
            stated.is_some_and(|(paid, closed)| paid > amount || (closed && paid < amount))
        };
        certified.any(is_dropped)
            || outcome.ended.iter().any(has_ended_otherwise)
            || (self.settled.ends().any(is_paid_beyond) && !mutant::is_in("end-undone"))
    }

    /// Takes no end of a channel below what a checkpoint would state as paid that we prepare. The names of its facts must be
    /// on disk before the vote leaves.
    pub fn freeze_paid(&mut self, names: &[RecordId]) {
        if mutant::is_in("paid-unfrozen") {
            return;
        }
        for (channel, amount) in self.settled.paid_by(names) {
            let paid = self.frozen.paid.entry(channel).or_default();
            *paid = amount.max(*paid);
        }
    }

    /// Leaves to the next checkpoint what one that we prepare would resolve. It must be on disk before the vote leaves.
    pub fn freeze(&mut self, epoch: Epoch, slots: &[(AccountId, u64)], channels: &[ChannelId]) {
        for slot in slots {
            let until = self.frozen.slots.entry(*slot).or_insert(epoch);
            *until = epoch.max(*until);
        }
        for channel in channels {
            self.books.pay_no_more(*channel);
            self.frozen.channels.insert(*channel);
        }
    }

    /// Follows a checkpoint that stands.
    pub fn adopt(&mut self, id: RecordId, names: &[RecordId], outcome: Outcome) {
        for (channel, _) in &outcome.ended {
            self.ends.remove(channel);
        }
        self.settled.adopt(id, names, outcome, &mut self.books);
        let settled = &self.settled;
        self.facts.forget(|fact| matches!(fact, Fact::End(_)) && settled.is_void(fact));
        self.gifts.clear();
        self.frozen = Frozen::default();
        let books = &self.books;
        self.locks.retain(|account, lock| books.locked(*account) == Some(lock.op.id()));
        self.ends.retain(|channel, _| books.channel(*channel).is_some_and(|(_, closed)| !closed));
    }

    /// Takes a fact back that has no line of its own.
    ///
    /// # Errors
    /// When it contradicts those before it.
    pub fn replay_taken(&mut self, fact: Fact<Checked>) -> Result<(), IssuerError> {
        match fact {
            Fact::Redeemed { receipt, claim } => self.redeem_elsewhere(&receipt, claim.as_ref()).map(drop),
            Fact::Doubled(..) | Fact::Lapsed(_) => {
                self.settled.took(Arc::new(fact));
                Ok(())
            }
            Fact::Deposit(_) | Fact::Step(_) | Fact::End(_) | Fact::Paid(_) => Ok(()),
        }
    }

    /// Takes back a certified step. What these books cannot take, because they pay less since a checkpoint than when the line
    /// was written, waits as it does after one.
    fn replay_certified(
        &mut self,
        certificate: Certificate<Checked>,
        epoch: Epoch,
    ) -> Result<(), IssuerError> {
        match self.certify(&certificate, epoch) {
            Err(IssuerError::Behind) => {
                let fact = Fact::Step(certificate);
                self.books.keep_slot(&fact);
                self.settled.took(Arc::new(fact));
                Ok(())
            }
            taken => taken.map(drop),
        }
    }

    /// Takes back a line of our own journal; lines of other kinds change nothing.
    ///
    /// # Errors
    /// When it cannot be read or contradicts those before it.
    pub fn replay(&mut self, record: Record) -> Result<(), crate::node::ReplayError> {
        let domain = self.domain;
        match record {
            Record::Voted { op, terms, epoch } => {
                let terms = terms.map(|terms| terms.read_back(domain)).transpose()?;
                let op = op.read_back(domain)?;
                self.books.replay_lock(&op, terms.as_ref(), epoch)?;
                self.locked(&op);
            }
            Record::Certified { certificate, epoch } => {
                self.replay_certified(certificate.read_back(domain)?, epoch)?;
            }
            Record::Endorsed { deposit, proposer } => {
                let deposit = deposit.read_back(domain)?;
                self.give(&deposit, proposer)?;
                if proposer == self.key() {
                    self.proposals.insert(deposit.reference, deposit);
                }
            }
            Record::Vouched(deposit) => self.outside.restore(deposit.read_back(domain)?),
            Record::Promised { channel, amount } => self.books.restore_promise(channel, amount),
            Record::Counted { channel, amount } => self.books.restore_count(channel, amount),
            Record::Agreed(AgreedRecord::Taken(fact)) => self.replay_taken(fact.read_back(domain)?)?,
            Record::PaidOut { receipt, amount } => {
                self.books.redeem(&receipt.read_back(domain)?, amount)?;
            }
            Record::Concluded(certificate) => {
                let certificate = certificate.read_back(domain)?;
                match self.take_end(&certificate) {
                    // From before the rule: the next checkpoint will not state it, and our books will not have it then.
                    Err(IssuerError::WrongEpoch) => drop(self.books.replay_end(&certificate)?),
                    taken => drop(taken?),
                }
            }
            Record::Deposited(deposit) => {
                let deposit = deposit.read_back(domain)?;
                if self.books.is_one_of_many() {
                    self.enter(&deposit)?;
                } else {
                    self.books.deposit(&deposit)?;
                }
            }
            Record::Joined { .. }
            | Record::Step { .. }
            | Record::Paying(_)
            | Record::Paid(_)
            | Record::Receipt(_)
            | Record::Job(_)
            | Record::Final(_)
            | Record::Redeemed(_)
            | Record::Ticket { .. }
            | Record::Admitted { .. }
            | Record::Stepped { .. }
            | Record::Closed(_)
            | Record::Expired(_)
            | Record::Taken(_)
            | Record::Text(_)
            | Record::WithdrawalPaid(_)
            | Record::Noticed(_)
            | Record::Books(_)
            | Record::Lineage(_)
            | Record::Authorised { .. }
            | Record::Delegated { .. }
            | Record::Lent { .. }
            | Record::Kept { .. }
            | Record::Over(_)
            | Record::Recovering
            | Record::Ended { .. }
            | Record::Recovered(_)
            | Record::Missing(_)
            | Record::Forward(_)
            | Record::GivenUp(_)
            | Record::Moved(_)
            | Record::Agreed(_) => {}
        }
        Ok(())
    }
}
