//! Tickets and grants that were asked for: answered once what the core wrote about them is on the disk.

use protocol::ids::{Digest, NodeId};
use protocol::record::Record;

use crate::api::views::{DelegationView, DepositView, GrantView, TicketView, WithdrawalView};
use crate::command::Reply;
use crate::exit::{Failure, FailureKind};
use crate::journal::Position;

use super::Driver;

/// An answer that waits for a record.
#[derive(Debug)]
pub(super) struct Promise {
    /// Fingerprint of the ticket or reference of the deposit, booked or proposed: the record will name it.
    names: Digest,
    /// Where the record is, once it is written.
    at: Option<Position>,
    answer: Answer,
}

#[derive(Debug)]
pub(super) enum Answer {
    Ticket(Reply<TicketView>, TicketView),
    Grant(Reply<GrantView>, GrantView),
    Deposit(Reply<DepositView>, DepositView),
    Paid(Reply<WithdrawalView>, WithdrawalView),
    /// A node that was authorised: what it must be given is read when that is durable.
    Device(Reply<DelegationView>, NodeId),
}

impl Promise {
    pub(super) const fn new(names: Digest, answer: Answer) -> Self {
        Self { names, at: None, answer }
    }
}

impl Answer {
    fn keep(self, driver: &Driver) {
        // Whoever asked may have gone.
        match self {
            Self::Ticket(reply, view) => _ = reply.send(Ok(view)),
            Self::Grant(reply, view) => _ = reply.send(Ok(view)),
            Self::Deposit(reply, view) => _ = reply.send(Ok(driver.deposited(view))),
            Self::Paid(reply, view) => _ = reply.send(Ok(view)),
            Self::Device(reply, node) => _ = reply.send(driver.delegation_view(node)),
        }
    }

    fn refuse(self) {
        match self {
            Self::Ticket(reply, _) => {
                let words = "too many tickets wait to be used: let nodes join with those, then ask again";
                _ = reply.send(Err(Failure::new(FailureKind::Refused, words)));
            }
            Self::Grant(reply, _) => {
                let words = "the issuer could not book the grant: its budget has changed (look at `sharemesh balance`), or it \
                             has made too many before the next checkpoint";
                _ = reply.send(Err(Failure::new(FailureKind::NoCredits, words)));
            }
            Self::Deposit(reply, _) => {
                let words =
                    "the issuer could not book the deposit: its books are full, or the reference is taken";
                _ = reply.send(Err(Failure::new(FailureKind::Refused, words)));
            }
            Self::Paid(reply, _) => {
                let words = "the withdrawal could not be marked: it was, in the meantime";
                _ = reply.send(Err(Failure::new(FailureKind::Refused, words)));
            }
            Self::Device(reply, _) => {
                _ = reply.send(Err(Failure::internal("the node could not be authorised: see the log")));
            }
        }
    }
}

impl Driver {
    /// Notes that a record was written which an answer may wait for.
    pub(super) fn note_promised(&mut self, record: &Record, position: Position) {
        if self.waiting.promises.is_empty() {
            return;
        }
        let named = if let Record::Ticket { fingerprint, .. } = record {
            Some(*fingerprint)
        } else if let Record::Deposited(deposit)
        | Record::Vouched(deposit)
        | Record::Endorsed { deposit, .. } = record
        {
            deposit.peek_in(self.node.domain()).map(|(deposit, ..)| deposit.reference)
        } else if let Record::WithdrawalPaid(paid) = record {
            paid.peek_in(self.node.domain()).map(|(paid, ..)| Digest(paid.step.0))
        } else if let Record::Authorised { device, .. } = record {
            device.peek_in(self.node.domain()).map(|(device, ..)| Digest(device.node.0))
        } else {
            None
        };
        let promises = self.waiting.promises.iter_mut();
        promises
            .filter(|promise| Some(promise.names) == named)
            .for_each(|promise| promise.at = Some(position));
    }

    /// Answers whoever waits for what is durable now, or was not written at all. Every input was handled before.
    pub(super) fn answer_promises(&mut self) {
        for promise in std::mem::take(&mut self.waiting.promises) {
            match promise.at {
                None => promise.answer.refuse(),
                Some(at) if at <= self.durable.position() => promise.answer.keep(self),
                Some(_) => self.waiting.promises.push(promise),
            }
        }
    }
}
