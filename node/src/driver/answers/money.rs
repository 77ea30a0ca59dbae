//! What an issuer's operator does by hand, and what became of withdrawals.

use protocol::ids::{AccountId, Digest, NodeId, RecordId};
use protocol::ledger::records::{WithdrawalPaid, text_digest};
use protocol::node::{Input, OwnerCommand};
use protocol::signed::{Role, Verified};

use crate::api::views::{DepositView, FeesView, WithdrawalView};
use crate::command::Reply;
use crate::driver::Driver;
use crate::driver::promises::Answer;
use crate::exit::{Failure, FailureKind};

use super::{answer, not_issuer};

impl Driver {
    pub(super) fn fees(&self) -> FeesView {
        let manifest = self.node.manifest();
        FeesView {
            open: manifest.open_fee.into(),
            pay: manifest.pay_fee.into(),
            withdraw: manifest.withdraw_fee.into(),
        }
    }

    pub(super) fn on_deposit(
        &mut self,
        account: &str,
        nano: u64,
        reference: String,
        reply: Reply<DepositView>,
    ) {
        match self.deposit(account, nano, reference) {
            Ok((_, view)) if !view.booked => answer(reply, Ok(view)),
            Ok((names, view)) => self.promise(names, Answer::Deposit(reply, view)),
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    /// Books a deposit, or signs it as one of several operators; returns the name under which that will be written, and
    /// what to answer then.
    fn deposit(
        &mut self,
        account: &str,
        nano: u64,
        reference: String,
    ) -> Result<(Digest, DepositView), Failure> {
        let books = self.node.books().ok_or_else(not_issuer)?;
        let to =
            account.parse().map_err(|error: protocol::ids::IdError| Failure::usage(error.to_string()))?;
        let name = text_digest(&reference);
        let available = books.balance(to).available();
        let needed = self.node.manifest().quorum();
        let view = DepositView {
            account: account.to_owned(),
            amount: nano.into(),
            reference,
            signed: needed,
            needed,
            available: available.into(),
            ..DepositView::default()
        };
        match books.deposit_of(name) {
            Some(booked) if booked == (to, nano) => return Ok((name, view)),
            Some(other) => return Err(reference_taken("was booked before", other, &view.reference)),
            None => {}
        }
        match self.node.deposit_progress(name).map(|ours| (ours.account, ours.amount)) {
            Some(ours) if ours == (to, nano) => return Ok((name, self.deposited(view))),
            Some(other) => return Err(reference_taken("was signed here before", other, &view.reference)),
            None => {}
        }
        available.checked_add(nano).ok_or_else(|| Failure::usage("the amount is too large"))?;
        self.inputs.push_back(Input::Owner(OwnerCommand::Deposit {
            reference: name,
            account: to,
            amount: nano,
        }));
        Ok((name, DepositView { booked: true, ..view }))
    }

    /// Returns what has become of a deposit once what was written of it is durable.
    pub(in crate::driver) fn deposited(&self, view: DepositView) -> DepositView {
        let progress = self.node.deposit_progress(text_digest(&view.reference));
        let account = view.account.parse().ok();
        let balance = account.zip(self.node.books()).map(|(account, books)| books.balance(account));
        let available = balance.map_or(view.available.clone(), |balance| balance.available().into());
        match progress {
            Some(progress) => DepositView {
                booked: false,
                signed: progress.signed,
                differing: progress.others,
                available,
                ..view
            },
            None => DepositView { available, ..view },
        }
    }

    /// Returns our own withdrawals, or at an issuer everybody's.
    pub(super) fn withdrawals(&self) -> Vec<WithdrawalView> {
        let Some(books) = self.node.books() else {
            let own = self.node.withdrawals();
            return own.map(|(id, own)| self.own_withdrawal(id, own)).collect();
        };
        books.withdrawals().map(|(id, _)| self.asked_withdrawal(id)).collect()
    }

    fn own_withdrawal(&self, id: RecordId, own: &protocol::node::OwnWithdrawal) -> WithdrawalView {
        WithdrawalView {
            id: id.to_string(),
            account: self.node.account().to_string(),
            amount: own.amount.into(),
            to: own.to.clone(),
            state: state(own.paid.is_some(), true),
            reference: own.paid.as_ref().map(|paid| paid.reference.clone()),
            payer: own.paid.as_ref().and_then(|paid| self.issuer_of(paid)),
        }
    }

    /// As issuer: returns a withdrawal that somebody asked for.
    fn asked_withdrawal(&self, id: RecordId) -> WithdrawalView {
        let Some(request) = self.node.books().and_then(|books| books.withdrawal(id)) else {
            return WithdrawalView::default();
        };
        WithdrawalView {
            id: id.to_string(),
            account: request.account.to_string(),
            amount: request.amount.into(),
            to: self.node.payout_text(request.payout).map(str::to_owned),
            state: state(request.paid.is_some(), request.is_settled),
            reference: self.node.payout(id).map(|paid| paid.reference.clone()),
            payer: self.node.payout(id).map_or_else(
                || self.payer_of(id).map(|(payer, _)| payer.to_string()),
                |paid| self.issuer_of(paid),
            ),
        }
    }

    /// Returns the node of the issuer that says that it has paid a withdrawal.
    fn issuer_of(&self, paid: &Verified<WithdrawalPaid>) -> Option<String> {
        let issuers = self.node.manifest().issuers.iter();
        let mut signers = issuers.filter(|issuer| paid.is_signed_by(Role::Issuer, issuer.key));
        signers.next().map(|issuer| issuer.node.to_string())
    }

    /// As issuer: returns whose turn it is to pay a withdrawal, and until before which epoch.
    fn payer_of(&self, id: RecordId) -> Option<(NodeId, u32)> {
        let manifest = self.node.manifest();
        let taken = self.node.books()?.withdrawal(id)?.epoch;
        let now = manifest.epoch(self.now());
        manifest.payer_of(id, taken, now).map(|(issuer, next)| (issuer.node, next.0))
    }

    pub(super) fn on_mark_paid(&mut self, id: &str, reference: String, reply: Reply<WithdrawalView>) {
        match self.mark_paid(id, reference) {
            Ok((_, view, true)) => answer(reply, Ok(view)),
            Ok((step, view, false)) => self.promise(Digest(step.0), Answer::Paid(reply, view)),
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    /// Marks a withdrawal as paid; returns whether it was so before.
    fn mark_paid(
        &mut self,
        id: &str,
        reference: String,
    ) -> Result<(RecordId, WithdrawalView, bool), Failure> {
        let books = self.node.books().ok_or_else(not_issuer)?;
        let found: Vec<RecordId> = books
            .withdrawals()
            .map(|(step, _)| step)
            .filter(|step| step.to_string().starts_with(id))
            .collect();
        let step = match found.as_slice() {
            [step] => *step,
            [] => {
                return Err(Failure::new(FailureKind::NotFound, format!("no withdrawal begins with `{id}`")));
            }
            _ => {
                return Err(Failure::usage(format!(
                    "several withdrawals begin with `{id}`: give more of the id"
                )));
            }
        };
        let view = self.asked_withdrawal(step);
        match &view.reference {
            Some(before) if *before == reference => return Ok((step, view, true)),
            Some(before) => {
                let words =
                    format!("withdrawal {step} was marked as paid before, with the reference `{before}`");
                return Err(Failure::new(FailureKind::Refused, words));
            }
            None if !books.withdrawal(step).is_some_and(|request| request.is_settled) => {
                let words = format!(
                    "no checkpoint states withdrawal {step} yet, so the other issuers may not know of it: do not pay it \
                     before `withdraw ls` shows it as requested, which takes up to two epochs as a rule"
                );
                return Err(Failure::new(FailureKind::Refused, words));
            }
            None => {}
        }
        if let Some((payer, next)) = self.payer_of(step).filter(|(payer, _)| *payer != self.node.id()) {
            let words = format!(
                "it is for the operator of issuer {payer} to pay withdrawal {step} before epoch {next}: if two pay it, it \
                 is paid twice"
            );
            return Err(Failure::new(FailureKind::Refused, words));
        }
        self.inputs.push_back(Input::Owner(OwnerCommand::MarkPaid { step, reference: reference.clone() }));
        Ok((step, WithdrawalView { state: state(true, true), reference: Some(reference), ..view }, false))
    }
}

fn reference_taken(how: &str, (account, amount): (AccountId, u64), reference: &str) -> Failure {
    let amount = crate::api::views::Money::from_nano(amount);
    let words = format!(
        "the reference `{reference}` {how}, with {amount} for {account}: a payment counts once, so give this one its own \
         reference"
    );
    Failure::new(FailureKind::Refused, words)
}

fn state(is_paid: bool, is_settled: bool) -> String {
    let state = match (is_paid, is_settled) {
        (true, _) => "paid",
        (false, true) => "requested",
        (false, false) => "settling",
    };
    state.to_owned()
}
