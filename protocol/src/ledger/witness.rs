//! One issuer of several: votes, records, promises and co-signs, each with the line that must be on disk before it leaves.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::ids::{ChannelId, Digest, DomainId, RecordId};
use crate::keys::{PublicKey, Signer};
use crate::ledger::facts::Facts;
use crate::ledger::issuer::{Issuer, IssuerError};
use crate::ledger::outside::{Outside, Progress};
use crate::ledger::quorum::{Certificate, EndCertificate, Fact, is_agreed};
use crate::ledger::records::{AccountOp, CloseVote, Deposit, Epoch, Final, Recorded, Source, Terms, Vote};
use crate::manifest::Manifest;
use crate::message::Checked;
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Signable, Verified, sign};

/// Most deposits that wait for signatures: bounds memory.
const PROPOSALS_MAX: usize = 10_000;

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
    /// Deposits that we proposed, with the signatures so far.
    proposals: BTreeMap<Digest, Verified<Deposit>>,
    /// Deposits from outside that operators have seen.
    outside: Outside,
    /// Votes for the end of open channels.
    ends: BTreeMap<ChannelId, BTreeMap<PublicKey, Verified<CloseVote>>>,
}

impl Witness {
    /// Returns an issuer with empty books.
    #[must_use]
    pub fn new(manifest: Manifest, signer: Signer) -> Self {
        Self {
            books: Issuer::new(manifest.clone()),
            facts: Facts::default(),
            domain: manifest.domain(),
            manifest,
            signer,
            endorsed: BTreeMap::new(),
            given: BTreeMap::new(),
            proposals: BTreeMap::new(),
            outside: Outside::default(),
            ends: BTreeMap::new(),
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
        self.books.lock(op, terms, epoch)?;
        let vote = Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch };
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
        let is_new = self.books.certify(certificate, epoch)?;
        self.facts.push(Fact::Step(certificate.clone()));
        let recorded = self.sign(Recorded { op: certificate.op.id(), epoch });
        let record = Record::Certified { certificate: certificate.signed(), epoch };
        let is_written = !is_new || mutant::is_in("recorded-before-disk");
        Ok((recorded, (!is_written).then_some(record)))
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
        let is_new = self.books.end_by(certificate)?;
        self.facts.push(Fact::End(certificate.clone()));
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
    /// When its part of the budget does not suffice, it has not signed, or the reference is another deposit's.
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

    fn give(&mut self, deposit: &Verified<Deposit>, proposer: PublicKey) -> Result<(), IssuerError> {
        let given = self.given_by(proposer);
        let sum = given.checked_add(deposit.amount).ok_or(IssuerError::Overflow)?;
        if sum > self.part() {
            return Err(IssuerError::Budget { left: self.part().saturating_sub(given) });
        }

        self.given.insert(proposer, sum);
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
        self.facts.push(Fact::Deposit(deposit.clone()));
        self.proposals.remove(&deposit.reference);
        self.outside.booked(deposit.reference);
        Ok(is_new.then(|| Record::Deposited(deposit.signed())))
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
                self.books.lock(&op.read_back(domain)?, terms.as_ref(), epoch)?;
            }
            Record::Certified { certificate, epoch } => {
                self.certify(&certificate.read_back(domain)?, epoch)?;
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
            Record::PaidOut { receipt, amount } => {
                self.books.redeem(&receipt.read_back(domain)?, amount)?;
            }
            Record::Concluded(certificate) => {
                self.end(&certificate.read_back(domain)?)?;
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
            | Record::Recovered(_) => {}
        }
        Ok(())
    }
}
