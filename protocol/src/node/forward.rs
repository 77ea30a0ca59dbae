//! What an issuer that is alone knows by its lines, as entries that take the place of these lines, and back.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::books::BooksRecord;
use crate::forward::{Entry, Forward, Gathering, Happened, OutOfOrder};
use crate::ids::DomainId;
use crate::keys::Signer;
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::finding::Finding;
use crate::ledger::issuer::Issuer;
use crate::ledger::merkle::Tree;
use crate::ledger::witness::Witness;
use crate::manifest::Manifest;
use crate::message::{Checked, News};
use crate::mutant;
use crate::record::Record;
use crate::signed::{SignedError, Verified};
use crate::time::Time;

use super::issuing::{Admitted, Issuing, TicketState};
use super::orders::note_payout;
use super::replay::{ReplayError, replay_issuing};
use super::{agreeing, checkpoints, markups, notices};

/// What is being brought forward while a journal is followed.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    gathering: Gathering,
    /// The books were brought forward, and no checkpoint has said yet whether they are right.
    is_unproved: bool,
}

impl Forwarding {
    /// Nothing else may be computed from while parts of the books are missing.
    pub(super) fn check_whole(&self) -> Result<(), OutOfOrder> {
        self.gathering.rest()
    }
}

/// Follows the lines of an issuer that is alone, and says what they come to. It has no key and answers nobody.
#[derive(Debug)]
pub struct Bookkeeper {
    issuing: Issuing,
    domain: DomainId,
    gathering: Gathering,
}

impl Bookkeeper {
    /// Returns one with empty books of a network.
    #[must_use]
    pub fn new(manifest: &Manifest) -> Self {
        // News carries signatures, and what is brought forward of it does not.
        let nobody = Signer::from_seed([0; 32]);
        let (domain, gathering) = (manifest.domain(), Gathering::default());
        Self { issuing: Issuing::new(manifest.clone(), nobody), domain, gathering }
    }

    /// Takes the next line of the journal, of whatever kind.
    ///
    /// # Errors
    /// When it cannot be read or contradicts the ones before it.
    pub fn take(&mut self, record: &Record) -> Result<(), ReplayError> {
        if let Record::Forward(line) = record {
            if let Some(entries) = self.gathering.take(line.clone())? {
                self.issuing.restore(&entries, self.domain)?;
            }
        } else if let Record::WithdrawalPaid(paid) = record {
            let paid = paid.clone().read_back(self.domain)?;
            // The line of an owner, about a request that is not in these books.
            let _ = note_payout(&mut self.issuing, &paid, paid.epoch);
        } else if let Record::Books(BooksRecord::Checkpoint(checkpoint)) = record {
            self.gathering.rest()?;
            let checkpoint = checkpoint.clone().read_back(self.domain)?;
            self.issuing.books.forget(checkpoint.epoch.plus(1));
            self.issuing.books.end_epoch(checkpoint.epoch);
        } else if is_issuers(record) {
            self.gathering.rest()?;
            replay_issuing(&mut self.issuing, record.clone(), self.domain)?;
        }
        Ok(())
    }

    /// Says whether the books, with what this checkpoint lets them forget, are those that it states.
    #[must_use]
    pub fn is_stated(&self, checkpoint: &Checkpoint) -> bool {
        are_stated(&self.issuing.books, checkpoint)
    }

    /// Returns lines that can take the place of all those that were taken.
    #[must_use]
    pub fn forward(&self) -> Vec<Forward> {
        Forward::lines(self.issuing.entries())
    }
}

/// Says whether a line is one by which an issuer that is alone computes its books, and which entries can replace.
#[must_use]
pub const fn is_issuers(record: &Record) -> bool {
    matches!(
        record,
        Record::Ticket { .. }
            | Record::Admitted { .. }
            | Record::Deposited(_)
            | Record::Stepped { .. }
            | Record::PaidOut { .. }
            | Record::Closed(_)
            | Record::Expired(_)
            | Record::Forward(_)
    )
}

/// Says whether the books are those that a checkpoint states.
#[must_use]
pub fn are_stated(books: &Issuer, checkpoint: &Checkpoint) -> bool {
    let snapshot = books.snapshot();
    Tree::new(snapshot.accounts).map(|tree| tree.root()) == Ok(checkpoint.accounts)
        && Tree::new(snapshot.channels).map(|tree| tree.root()) == Ok(checkpoint.channels)
        && (books.deposited(), books.withdrawn()) == (checkpoint.deposited, checkpoint.withdrawn)
}

impl Issuing {
    /// Returns an issuer of a network in which nothing has happened yet.
    pub(super) fn new(manifest: Manifest, signer: Signer) -> Self {
        Self {
            witness: Witness::new(manifest, signer),
            untold: markups::Untold::default(),
            tickets: BTreeMap::new(),
            cursors: BTreeMap::new(),
            judged: BTreeSet::new(),
            hurried: Time::default(),
            inboxes: notices::Inboxes::default(),
            payouts: BTreeMap::new(),
            ends: checkpoints::EpochEnds::new(),
            agreeing: agreeing::Convention::default(),
        }
    }

    fn entries(&self) -> Vec<Entry> {
        let mut entries = self.books.entries();
        entries.extend(self.payouts.values().map(|paid| Entry::Payout(Verified::signed(paid))));
        let tickets = self.tickets.iter().filter_map(|(fingerprint, state)| match state {
            TicketState::Unused(amount) => Some(Entry::Ticket { fingerprint: *fingerprint, amount: *amount }),
            TicketState::Used(_) if mutant::is_in("forward-without-used-tickets") => None,
            TicketState::Used(admitted) => Some(Entry::Admitted {
                fingerprint: *fingerprint,
                membership: admitted.membership.signed(),
                deposit: admitted.deposit.as_ref().map(Verified::signed),
            }),
        });
        entries.extend(tickets);
        entries.extend(self.inboxes.entries());
        entries
    }

    /// Returns news as it is told: with the word of this issuer, which is the same whenever it is given.
    fn news(&self, what: &Happened, domain: DomainId) -> Result<News<Checked>, SignedError> {
        Ok(match what {
            Happened::Deposit(deposit) => News::Deposit(deposit.clone().read_back(domain)?),
            Happened::Step { op, epoch } => {
                News::Step(self.certificate(&op.clone().read_back(domain)?, *epoch))
            }
        })
    }

    /// Puts what these entries say in the place of all that is known so far.
    fn restore(&mut self, entries: &[Entry], domain: DomainId) -> Result<(), SignedError> {
        self.witness.books = self.books.emptied();
        self.tickets.clear();
        self.payouts.clear();
        self.inboxes = notices::Inboxes::default();
        for entry in entries {
            self.witness.books.restore(entry)?;
            match entry {
                Entry::Payout(paid) => {
                    let paid = paid.clone().read_back(domain)?;
                    self.payouts.insert(paid.step, paid);
                }
                Entry::Ticket { fingerprint, amount } => {
                    self.tickets.insert(*fingerprint, TicketState::Unused(*amount));
                }
                Entry::Admitted { fingerprint, membership, deposit } => {
                    let membership = membership.clone().read_back(domain)?;
                    let deposit = deposit.clone().map(|deposit| deposit.read_back(domain)).transpose()?;
                    let admitted = Box::new(Admitted { membership, deposit });
                    self.tickets.insert(*fingerprint, TicketState::Used(admitted));
                }
                Entry::News { number, node, what } => {
                    let news = self.news(what, domain)?;
                    self.inboxes.restore(*number, *node, news);
                }
                Entry::Told(told) => self.inboxes.restore_told(*told),
                Entry::Totals(_)
                | Entry::Account(_)
                | Entry::Channel(_)
                | Entry::Due(..)
                | Entry::Booked { .. }
                | Entry::Withdrawal(..) => {}
            }
        }
        Ok(())
    }
}

impl super::Node {
    /// Takes a line of books that were brought forward out of the journal.
    pub(super) fn replay_forward(&mut self, line: Forward) -> Result<(), ReplayError> {
        let Some(issuing) = &mut self.issuing else { return Ok(()) };
        if issuing.books.is_one_of_many() {
            return Err(OutOfOrder { part: line.part }.into());
        }
        if let Some(entries) = self.forwarding.gathering.take(line)? {
            issuing.restore(&entries, self.domain)?;
            self.forwarding.is_unproved = true;
        }
        Ok(())
    }

    /// As the only issuer: forgets before a checkpoint what was forgotten when it was made, and looks whether books that
    /// were brought forward are those that it states.
    pub(super) fn replay_end_of_epoch(&mut self, record: &BooksRecord) -> Result<(), ReplayError> {
        let BooksRecord::Checkpoint(checkpoint) = record else { return Ok(()) };
        let Some(issuing) = &mut self.issuing else { return Ok(()) };
        let Some((checkpoint, ..)) = checkpoint.peek_in(self.domain) else { return Ok(()) };
        self.forwarding.gathering.rest()?;
        issuing.witness.books.forget(checkpoint.epoch.plus(1));
        let is_unproved = core::mem::take(&mut self.forwarding.is_unproved);
        if is_unproved && !are_stated(&issuing.books, &checkpoint) {
            self.remember_finding(Finding::Books { epoch: checkpoint.epoch });
        }
        Ok(())
    }
}
