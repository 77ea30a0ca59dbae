//! What the owner orders of its account beside channels: payments and withdrawals, signed one at a time.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::{AccountId, Digest, NodeId, RecordId};
use crate::ledger::issuer::IssuerError;
use crate::ledger::quorum::Fact;
use crate::ledger::records::{
    AccountOp, Epoch, OpBody, PAYOUT_BYTES_MAX, Recorded, WithdrawalPaid, text_digest,
};
use crate::manifest::Manifest;
use crate::message::Message;
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::issuing::Issuing;
use super::{Effect, Node, Offence};

/// Most orders that wait for the wallet.
const ORDERS_MAX: usize = 16;

/// Most withdrawals of our own that are remembered.
const WITHDRAWALS_KEPT_MAX: usize = 1_000;

/// A step that the owner asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Gives cash to another account.
    Pay {
        /// To whom.
        to: AccountId,
        /// Nano-credits.
        amount: u64,
    },
    /// Takes cash out of the network.
    Withdraw {
        /// Nano-credits.
        amount: u64,
        /// Where the issuer's operator shall pay it.
        to: String,
    },
    /// Fills a position and does nothing else.
    Noop,
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Nothing was signed: no issuer can be reached.
    #[error("no issuer can be reached now; nothing was signed")]
    Unreachable,
    /// Nothing was signed: others wait already.
    #[error("{ORDERS_MAX} payments and withdrawals wait already; nothing was signed")]
    Busy,
    /// Nothing was signed: the text is empty or too long.
    #[error("where to pay must be said in 1 to {PAYOUT_BYTES_MAX} bytes")]
    Text,
    /// Nothing was signed: another node holds the key.
    #[error("this node does not hold the account's key: order it at the account's wallet node")]
    NoKey,
    /// The issuer refused it; nothing has changed.
    #[error("{0}")]
    Refused(IssuerError),
}

/// A withdrawal of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnWithdrawal {
    /// Nano-credits.
    pub amount: u64,
    /// Where it is to be paid, if we know it still.
    pub to: Option<String>,
    /// The word of the issuer whose operator has paid it.
    pub paid: Option<Verified<WithdrawalPaid>>,
    payout: Digest,
    /// Epoch of the step.
    taken: Epoch,
    /// Issuers that know where to pay it.
    known: BTreeSet<NodeId>,
}

/// The owner's orders and what became of the withdrawals among them.
#[derive(Debug, Default)]
pub(super) struct Orders {
    waiting: VecDeque<(Digest, Order)>,
    /// The order that the wallet's pending step carries out.
    signed: Option<(RecordId, Digest)>,
    withdrawals: BTreeMap<RecordId, OwnWithdrawal>,
    /// Texts that digests in steps stand for: our own, and as issuer those of others.
    pub(super) texts: BTreeMap<Digest, String>,
}

impl Node {
    pub(super) fn on_order(&mut self, id: Digest, order: Order, now: Time, out: &mut Vec<Effect>) {
        let refused = match &order {
            Order::Withdraw { to, .. } if !(1..=PAYOUT_BYTES_MAX).contains(&to.len()) => {
                Some(OrderError::Text)
            }
            _ if self.is_device() || self.wallet.is_idle() && !self.wallet.holds_key() => {
                Some(OrderError::NoKey)
            }
            _ if self.issuer().is_none() => Some(OrderError::Unreachable),
            _ if self.orders.waiting.len() >= ORDERS_MAX => Some(OrderError::Busy),
            Order::Pay { .. } | Order::Withdraw { .. } | Order::Noop => None,
        };
        if let Some(error) = refused {
            out.push(Effect::Ordered(id, Err(error)));
            return;
        }
        self.orders.waiting.push_back((id, order));
        self.sign_order(now, out);
        self.query_account_if_unknown(out);
    }

    /// Signs the order that waits longest, if the wallet is free.
    pub(super) fn sign_order(&mut self, now: Time, out: &mut Vec<Effect>) {
        let may = self.wallet.is_idle() && self.wallet.holds_key() && self.recovery.is_none();
        if self.issuer().is_none() || !may {
            return;
        }
        if self.orders.waiting.is_empty() || self.begins(now, out) {
            return;
        }
        let Some((id, order)) = self.orders.waiting.pop_front() else { return };
        let body = match order {
            Order::Pay { to, amount } => OpBody::Pay { to, amount },
            Order::Withdraw { amount, to } => {
                let payout = text_digest(&to);
                // Before the step: without it nobody would know where to pay.
                out.push(Effect::Record(Record::Text(to.clone())));
                self.orders.texts.insert(payout, to);
                OpBody::Withdraw { amount, payout }
            }
            Order::Noop => OpBody::Noop,
        };
        let epoch = self.epoch(now);
        let Some(op) = self.wallet.sign(body, epoch) else { return };
        self.opening_terms = None;
        self.orders.signed = Some((op.id(), id));
        out.push(Effect::Record(Record::Step { op: op.signed(), terms: None }));
        self.send_step(out);
    }

    /// Our step that opens no channel was committed.
    pub(super) fn on_step_taken(
        &mut self,
        op: &Verified<AccountOp>,
        recorded: &Verified<Recorded>,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::Record(Record::Taken(recorded.signed())));
        self.remember_withdrawal(op);
        self.ends_early(op);
        if let Some((_, id)) = self.orders.signed.take_if(|(signed, _)| *signed == op.id()) {
            out.push(Effect::Ordered(id, Ok(op.id())));
        }
        self.say_payouts(out);
    }

    pub(super) fn on_order_refused(&mut self, op: RecordId, error: IssuerError, out: &mut Vec<Effect>) {
        if let Some((_, id)) = self.orders.signed.take_if(|(signed, _)| *signed == op) {
            out.push(Effect::Ordered(id, Err(OrderError::Refused(error))));
        }
    }

    /// Keeps a withdrawal of ours that was taken.
    pub(super) fn remember_withdrawal(&mut self, op: &Verified<AccountOp>) {
        let OpBody::Withdraw { amount, payout } = &op.body else { return };
        if self.orders.withdrawals.len() >= WITHDRAWALS_KEPT_MAX {
            let paid = self.orders.withdrawals.iter().find(|(_, own)| own.paid.is_some());
            let oldest = paid.or_else(|| self.orders.withdrawals.iter().next()).map(|(id, _)| *id);
            oldest.map(|id| self.orders.withdrawals.remove(&id));
        }
        let to = self.orders.texts.get(payout).cloned();
        let own = OwnWithdrawal {
            amount: *amount,
            to,
            paid: None,
            payout: *payout,
            taken: op.epoch,
            known: BTreeSet::new(),
        };
        self.orders.withdrawals.insert(op.id(), own);
    }

    /// Tells every issuer where to pay what is not paid, and so asks what became of it.
    pub(super) fn ask_payouts(&mut self, out: &mut Vec<Effect>) {
        let open = self.orders.withdrawals.iter().filter(|(_, own)| own.paid.is_none());
        let open = open.filter_map(|(step, own)| Some((*step, own.to.clone()?)));
        let open: Vec<(RecordId, String)> = open.take(ORDERS_MAX).collect();
        for issuer in self.issuers() {
            for (step, to) in open.clone() {
                self.send(issuer, Message::Payout { step, to }, out);
            }
        }
    }

    /// Tells issuers where to pay what they have not confirmed to know.
    pub(super) fn say_payouts(&mut self, out: &mut Vec<Effect>) {
        let issuers = self.issuers();
        let open = self.orders.withdrawals.values().filter(|own| own.paid.is_none());
        let unknown = open.flat_map(|own| issuers.iter().filter(|issuer| !own.known.contains(issuer)));
        if unknown.count() > 0 {
            self.ask_payouts(out);
        }
    }

    /// As issuer: learns where a withdrawal is to be paid.
    pub(super) fn on_payout(&mut self, from: NodeId, step: RecordId, to: String, out: &mut Vec<Effect>) {
        let account = self.account_of(from);
        let Some(issuing) = &self.issuing else { return };
        // A withdrawal that was paid long ago is forgotten.
        let Some(request) = issuing.books.withdrawal(step).copied() else { return };
        let payout = text_digest(&to);
        if account != Some(request.account) || request.payout != payout || to.len() > PAYOUT_BYTES_MAX {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        if self.orders.texts.insert(payout, to.clone()).is_none() {
            out.push(Effect::Record(Record::Text(to)));
        }
        let paid = self.issuing.as_ref().and_then(|issuing| issuing.payouts.get(&step).cloned());
        self.send(from, Message::Withdrawal { step, paid }, out);
    }

    /// As issuer: the operator, whose turn it is, has paid a withdrawal out that a checkpoint states.
    pub(super) fn mark_paid(&mut self, step: RecordId, reference: String, now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        let Some(issuing) = &self.issuing else { return };
        let is_settled = issuing.books.withdrawal(step).is_some_and(|request| request.is_settled);
        if !is_settled && !mutant::is_in("unsettled-paid") {
            return;
        }
        let paid = issuing.sign(WithdrawalPaid { step, reference, epoch });
        if self.take_payout(&paid, epoch) == Ok(true) {
            out.push(Effect::Record(Record::WithdrawalPaid(paid.signed())));
            self.tell_payout(&paid, out);
            if self.has_many_issuers() {
                self.tell_issuers(&Message::Fact(Fact::Paid(paid)), out);
            }
        }
    }

    /// As issuer: takes the word of the issuer whose turn it was; says whether it is new.
    pub(super) fn take_payout(
        &mut self,
        paid: &Verified<WithdrawalPaid>,
        now: Epoch,
    ) -> Result<bool, IssuerError> {
        let issuing = self.issuing.as_mut().ok_or(IssuerError::UnknownWithdrawal)?;
        note_payout(issuing, paid, now)
    }

    /// As issuer: tells the owner that its withdrawal is paid.
    pub(super) fn tell_payout(&mut self, paid: &Verified<WithdrawalPaid>, out: &mut Vec<Effect>) {
        let request = self.issuing.as_ref().and_then(|issuing| issuing.books.withdrawal(paid.step));
        let account = request.map(|request| request.account);
        for node in account.map(|account| self.nodes_of(account)).unwrap_or_default() {
            self.send(node, Message::Withdrawal { step: paid.step, paid: Some(paid.clone()) }, out);
        }
    }

    /// What an issuer says of a withdrawal of ours. That it is paid only the issuer says whose turn it was.
    pub(super) fn on_withdrawal(
        &mut self,
        from: NodeId,
        step: RecordId,
        paid: Option<Verified<WithdrawalPaid>>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !(from == self.me || self.config.manifest.has_issuer_node(from)) {
            return;
        }
        let epoch = self.epoch(now);
        let Some(own) = self.orders.withdrawals.get_mut(&step) else { return };
        own.known.insert(from);
        let Some(paid) = paid.filter(|_| own.paid.is_none()) else { return };
        let by_its_payer = is_by_its_payer(&paid, own.taken, &self.config.manifest);
        if paid.step != step || paid.epoch > epoch.plus(1) || !by_its_payer {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        own.paid = Some(paid.clone());
        out.push(Effect::Record(Record::WithdrawalPaid(paid.signed())));
    }

    /// Takes back from the journal that a withdrawal was paid.
    pub(super) fn replay_paid(&mut self, paid: Verified<WithdrawalPaid>) {
        if let Some(own) = self.orders.withdrawals.get_mut(&paid.step) {
            own.paid = Some(paid.clone());
        }
        // At an owner there is no request to mark.
        let _ = self.take_payout(&paid, paid.epoch);
    }

    /// Returns our withdrawals, by the step that asked for each.
    pub fn withdrawals(&self) -> impl Iterator<Item = (RecordId, &OwnWithdrawal)> + '_ {
        self.orders.withdrawals.iter().map(|(id, own)| (*id, own))
    }

    /// As issuer: returns where a withdrawal is to be paid, if its owner has said so.
    #[must_use]
    pub fn payout_text(&self, payout: Digest) -> Option<&str> {
        self.orders.texts.get(&payout).map(String::as_str)
    }

    /// As issuer: returns whose operator has paid a withdrawal, with which reference.
    #[must_use]
    pub fn payout(&self, step: RecordId) -> Option<&Verified<WithdrawalPaid>> {
        self.issuing.as_ref()?.payouts.get(&step)
    }
}

/// Takes note that a withdrawal was paid out; says whether that is new.
pub(super) fn note_payout(
    issuing: &mut Issuing,
    paid: &Verified<WithdrawalPaid>,
    now: Epoch,
) -> Result<bool, IssuerError> {
    let request = *issuing.books.withdrawal(paid.step).ok_or(IssuerError::UnknownWithdrawal)?;
    if !is_by_its_payer(paid, request.epoch, issuing.books.manifest()) {
        return Err(IssuerError::WrongKey);
    }
    if paid.epoch > now.plus(1) {
        return Err(IssuerError::WrongEpoch);
    }
    if issuing.books.is_one_of_many() {
        issuing.facts.push(Fact::Paid(paid.clone()));
    }
    if issuing.payouts.contains_key(&paid.step) {
        return Ok(false);
    }
    issuing.books.mark_paid(paid.step, text_digest(&paid.reference))?;
    issuing.payouts.insert(paid.step, paid.clone());
    Ok(true)
}

/// Says whether the issuer signed it whose turn it was when it says so.
fn is_by_its_payer(paid: &Verified<WithdrawalPaid>, taken: Epoch, manifest: &Manifest) -> bool {
    let payer = manifest.payer_of(paid.step, taken, paid.epoch);
    payer.is_some_and(|(issuer, _)| paid.is_signed_by(Role::Issuer, issuer.key))
}
