//! Starting again: what the journal says becomes what the node knows.

use alloc::boxed::Box;
use alloc::vec::Vec;

use thiserror::Error;

use crate::forward::OutOfOrder;
use crate::ids::{ChannelId, DomainId};
use crate::ledger::issuer::IssuerError;
use crate::ledger::paid::Paid;
use crate::ledger::quorum::View;
use crate::ledger::records::{Epoch, OpBody, text_digest};
use crate::message::{Opening, Wire};
use crate::record::Record;
use crate::signed::{Role, SignedError};
use crate::time::Time;

use super::issuing::{Admitted, Issuing, TicketState};
use super::recovery::Recovery;
use super::{Config, Node};

/// Why a journal cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// A line cannot be read.
    #[error("a record in the journal cannot be read: {0}")]
    Unreadable(#[from] SignedError),
    /// A line contradicts those before it.
    #[error("a record in the journal contradicts those before it: {0}")]
    Issuer(#[from] IssuerError),
    /// A part of the books that were brought forward is missing.
    #[error("a record in the journal is out of place: {0}")]
    Forward(#[from] OutOfOrder),
    /// A line is about a channel that was never opened.
    #[error("the journal speaks of channel {0}, which it never opened")]
    UnknownChannel(ChannelId),
}

/// A node that follows its journal line by line, and does nothing else yet.
#[derive(Debug)]
pub struct Starting(Node);

impl Starting {
    /// Returns a node that has read nothing yet. `checkpoints` is how many lines about checkpoints the journal has, see
    /// [`crate::record::is_checkpoint`]; only an issuer must know it.
    #[must_use]
    pub fn new(config: Config, seed: u64, checkpoints: usize) -> Self {
        let mut node = Node::empty(config, seed);
        node.checkpoints.expect(checkpoints);
        Self(node)
    }

    /// Takes the next line.
    ///
    /// # Errors
    /// When it cannot be read or contradicts the ones before it: the journal is not this node's.
    pub fn follow(&mut self, record: Record) -> Result<(), ReplayError> {
        self.0.replay(record)
    }

    /// Returns the node that the lines describe, at `now`.
    #[must_use]
    pub fn start(self, now: Time) -> Node {
        let mut node = self.0;
        node.start(now);
        node
    }
}

impl Node {
    fn replay(&mut self, record: Record) -> Result<(), ReplayError> {
        let domain = self.domain;
        match record {
            Record::Joined { membership, .. } => self.membership = Some(membership.read_back(domain)?),
            Record::Step { op, terms } => {
                self.wallet.replay(op.read_back(domain)?);
                self.opening_terms = terms.map(|terms| terms.read_back(domain)).transpose()?;
            }
            Record::Paying(opening) => {
                let opening = opening.read_back(domain)?;
                self.wallet.replay_certified(opening.op.id());
                self.missing.remove(&opening.op.id().into());
                self.adopt_paying(opening, Time::default());
            }
            Record::Paid(opening) => {
                let (channel, mut paid) = self.read_back_paid(opening)?;
                if let Some(booked) = self.missing.remove(&channel) {
                    paid.expires = paid.expires.min(booked.expires);
                    paid.redeemed(booked.redeemed);
                }
                self.paid.insert(channel, Box::new(paid));
            }
            Record::Receipt(receipt) => {
                let receipt = receipt.read_back(domain)?;
                if let Some(paying) = self.paying.get_mut(&receipt.channel) {
                    paying.side.adopt(&receipt);
                    self.missing.remove(&receipt.channel);
                } else if let Some(paid) = self.paid.get_mut(&receipt.channel) {
                    paid.replay(&receipt);
                    self.missing.remove(&receipt.channel);
                }
            }
            Record::Job(job) => {
                let served = job.channel.filter(|_| job.provider == self.me);
                if let Some(paid) = served.and_then(|channel| self.paid.get_mut(&channel)) {
                    paid.replay_job(&job);
                }
            }
            Record::Final(closing) => {
                let closing = closing.read_back(domain)?;
                let newest = self.checkpoints.newest().map(|checkpoint| checkpoint.epoch);
                if let Some(paying) = self.paying.get_mut(&closing.channel) {
                    paying.replay_close(closing, newest);
                } else if let Some(paid) = self.paid.get_mut(&closing.channel) {
                    paid.replay_close(closing);
                }
            }
            Record::Redeemed(ack) => {
                let ack = ack.read_back(domain)?;
                if let Some(key) = ack.signer(Role::Issuer) {
                    self.apply_ack(key, &ack);
                    self.keep_ack(key, ack);
                }
            }
            Record::Taken(recorded) => {
                let recorded = recorded.read_back(domain)?;
                if let Some(op) = self.wallet.pending().filter(|op| op.id() == recorded.op).cloned() {
                    self.wallet.replay_certified(op.id());
                    self.remember_withdrawal(&op);
                    self.ends_early(&op);
                }
            }
            Record::GivenUp(op) => {
                self.wallet.replay_refused(op);
                self.opening_terms = None;
            }
            Record::Moved(line) => self.markups.replay(&line),
            Record::Text(text) => {
                self.orders.texts.insert(text_digest(&text), text);
            }
            Record::WithdrawalPaid(paid) => self.replay_paid(paid.read_back(domain)?),
            Record::Noticed(news) => self.apply_news(&news.read_back(domain)?),
            record @ (Record::Lineage(_)
            | Record::Authorised { .. }
            | Record::Delegated { .. }
            | Record::Lent { .. }) => self.replay_account(record)?,
            Record::Kept { opening, receipt } => {
                let opening = opening.map(|opening| opening.read_back(domain)).transpose()?;
                self.mirrors.kept.restore(opening, receipt.read_back(domain)?);
            }
            Record::Over(channel) => {
                self.mirrors.kept.forget(channel);
            }
            Record::Recovering => {
                self.recovery = Some(Recovery::default());
                self.missing.clear();
            }
            Record::Missing(booked) => self.misses(booked),
            Record::Ended { channel, expires, payer } => {
                self.end_unseen(channel, expires, payer);
            }
            Record::Recovered(since) => {
                self.recovery = None;
                self.recovered = Some(since);
            }
            record @ (Record::Ticket { .. }
            | Record::Admitted { .. }
            | Record::Deposited(_)
            | Record::Stepped { .. }
            | Record::PaidOut { .. }
            | Record::Closed(_)
            | Record::Expired(_)
            | Record::Voted { .. }
            | Record::Certified { .. }
            | Record::Endorsed { .. }
            | Record::Promised { .. }
            | Record::Counted { .. }
            | Record::Vouched(_)
            | Record::Concluded(_)) => {
                if let Some(issuing) = &mut self.issuing {
                    self.forwarding.check_whole()?;
                    replay_issuing(issuing, record, domain)?;
                }
            }
            Record::Books(books) => {
                self.replay_end_of_epoch(&books)?;
                self.replay_books(books)?;
            }
            Record::Forward(line) => self.replay_forward(line)?,
            Record::Agreed(agreed) => self.replay_agreed(agreed)?,
        }
        Ok(())
    }

    /// Takes a channel on which we are paid out of the journal; the terms that its step names are read once for all of them.
    fn read_back_paid(&mut self, opening: Opening<Wire>) -> Result<(ChannelId, Paid), ReplayError> {
        let domain = self.domain;
        let Opening { op, terms, recorded } = opening;
        let op = op.read_back(domain)?;
        let recorded = recorded.into_iter().map(|recorded| recorded.read_back(domain));
        let recorded = recorded.collect::<Result<Vec<_>, _>>()?;
        let channel = ChannelId::from(op.id());
        let paid = if let Some(paid) = self.paid_side_as_before(&op, &recorded) {
            Some(paid)
        } else {
            let terms = terms.read_back(domain)?;
            self.paid_side(&Opening { op, terms, recorded })
        };
        Ok((channel, paid.ok_or(ReplayError::UnknownChannel(channel))?))
    }

    fn replay_account(&mut self, record: Record) -> Result<(), ReplayError> {
        let domain = self.domain;
        if let Record::Lineage(lineage) = record {
            self.wallet.learn_lineage(&lineage.read_back(domain)?);
        } else if let Record::Authorised { device, until, budget } = record {
            self.replay_authorised(device.read_back(domain)?, until, budget);
        } else if let Record::Delegated { device, lineage } = record {
            let lineage = lineage.map(|lineage| lineage.read_back(domain)).transpose()?;
            self.take_delegation(device.read_back(domain)?, lineage.as_ref());
        } else if let Record::Lent { request, opening } = record {
            let opening = opening.read_back(domain)?;
            self.wallet.replay_certified(opening.op.id());
            self.spending.replay_lent(request, opening);
        }
        Ok(())
    }

    /// A node that is an issuer needs nobody to tell it what its own books say of its account.
    pub(super) fn learn_own_account(&mut self) {
        let Some(issuing) = &self.issuing else { return };
        let account = self.wallet.account();
        let (next, head) = issuing.books.next_slot(account);
        let (key, balance) = (issuing.key(), issuing.books.balance(account));
        self.views.learn(key, View { next, head, balance });
        // Nothing is given up before the start is over: issuers will say it again.
        if let Some(supported) = self.views.supported(&self.config.manifest) {
            self.learn_supported(supported, Epoch(0));
        }
    }
}

/// Takes back a line by which an issuer computes its books; lines of other kinds change nothing.
pub(super) fn replay_issuing(
    issuing: &mut Issuing,
    record: Record,
    domain: DomainId,
) -> Result<(), ReplayError> {
    match record {
        Record::Ticket { fingerprint, amount } => {
            issuing.tickets.insert(fingerprint, TicketState::Unused(amount));
        }
        Record::Admitted { ticket, membership, deposit } => {
            let membership = membership.read_back(domain)?;
            let deposit = deposit.map(|deposit| deposit.read_back(domain)).transpose()?;
            // Among several issuers it counts when a quorum has signed it.
            if let Some(deposit) = deposit.as_ref().filter(|_| !issuing.books.is_one_of_many()) {
                issuing.books.keep_place(deposit.account);
                issuing.books.deposit(deposit)?;
            }
            issuing.tickets.insert(ticket, TicketState::Used(Box::new(Admitted { membership, deposit })));
        }
        Record::Deposited(deposit) => {
            let checked = deposit.clone().read_back(domain)?;
            issuing.books.keep_place(checked.account);
            issuing.witness.replay(Record::Deposited(deposit))?;
            issuing.inboxes.file_deposit(checked);
        }
        Record::Certified { certificate, epoch } => {
            let checked = certificate.clone().read_back(domain)?;
            issuing.books.keep_places(&checked);
            issuing.witness.replay(Record::Certified { certificate, epoch })?;
            issuing.inboxes.file_step(&checked, &issuing.witness.books);
        }
        Record::Voted { .. }
        | Record::Endorsed { .. }
        | Record::Promised { .. }
        | Record::Counted { .. }
        | Record::Vouched(_)
        | Record::Concluded(_) => issuing.witness.replay(record)?,
        Record::Stepped { op, terms, epoch } => {
            let terms = terms.map(|terms| terms.read_back(domain)).transpose()?;
            let op = op.read_back(domain)?;
            issuing.books.replay_step(&op, terms.as_ref(), epoch)?;
            if matches!(op.body, OpBody::Pay { .. } | OpBody::Expire(_)) {
                let certificate = issuing.certificate(&op, epoch);
                issuing.inboxes.file_step(&certificate, &issuing.witness.books);
            }
            issuing.ends.took(&op);
        }
        Record::PaidOut { receipt, amount } => {
            issuing.books.redeem(&receipt.read_back(domain)?, amount)?;
        }
        Record::Closed(closing) => {
            issuing.books.close(&closing.read_back(domain)?)?;
        }
        Record::Expired(epoch) => {
            issuing.books.expire(epoch);
        }
        Record::Joined { .. }
        | Record::Step { .. }
        | Record::Paying(_)
        | Record::Paid(_)
        | Record::Receipt(_)
        | Record::Job(_)
        | Record::Final(_)
        | Record::Redeemed(_)
        | Record::Books(_)
        | Record::Agreed(_)
        | Record::Taken(_)
        | Record::GivenUp(_)
        | Record::Moved(_)
        | Record::Text(_)
        | Record::WithdrawalPaid(_)
        | Record::Noticed(_)
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
        | Record::Forward(_) => {}
    }
    Ok(())
}
