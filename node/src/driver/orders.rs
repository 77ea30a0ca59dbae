//! Payments and withdrawals that were asked for: answered once the issuer has taken or refused the step.

use std::collections::BTreeMap;

use protocol::ids::{AccountId, Digest, RecordId};
use protocol::ledger::issuer::IssuerError;
use protocol::node::{Input, Order, OrderError, OwnerCommand};

use crate::api::views::{PayView, WithdrawalView};
use crate::command::Reply;
use crate::exit::{Failure, FailureKind};

use super::Driver;

/// How long the issuer is waited for.
const ORDER_MS: u64 = 10_000;

/// Orders whose answers wait for the issuer.
#[derive(Debug, Default)]
pub(super) struct Orders(BTreeMap<Digest, (Answer, u64)>);

#[derive(Debug)]
enum Answer {
    Pay(Reply<PayView>, PayView),
    Withdraw(Reply<WithdrawalView>, WithdrawalView),
}

impl Answer {
    fn give(self, result: Result<(RecordId, u64), Failure>) {
        // Whoever asked may have gone.
        match self {
            Self::Pay(reply, view) => {
                let view =
                    result.map(|(step, cash)| PayView { step: step.to_string(), cash: cash.into(), ..view });
                _ = reply.send(view);
            }
            Self::Withdraw(reply, view) => {
                let view = result.map(|(step, _)| WithdrawalView { id: step.to_string(), ..view });
                _ = reply.send(view);
            }
        }
    }
}

impl Driver {
    pub(super) fn on_pay(&mut self, account: &str, nano: u64, reply: Reply<PayView>) {
        let to = match account.parse::<AccountId>() {
            Ok(to) => to,
            Err(error) => {
                let _ = reply.send(Err(Failure::usage(error.to_string())));
                return;
            }
        };
        let fee = self.node.manifest().pay_fee.into();
        let view = PayView { account: account.to_owned(), amount: nano.into(), fee, ..PayView::default() };
        self.carry_out(Order::Pay { to, amount: nano }, Answer::Pay(reply, view));
    }

    pub(super) fn on_withdraw(&mut self, nano: u64, to: String, reply: Reply<WithdrawalView>) {
        let view = WithdrawalView {
            account: self.node.account().to_string(),
            amount: nano.into(),
            to: Some(to.clone()),
            state: "requested".to_owned(),
            ..WithdrawalView::default()
        };
        self.carry_out(Order::Withdraw { amount: nano, to }, Answer::Withdraw(reply, view));
    }

    fn carry_out(&mut self, order: Order, answer: Answer) {
        let name = Digest(crate::identity::random());
        self.inputs.push_back(Input::Owner(OwnerCommand::Order(name, order)));
        self.waiting.orders.0.insert(name, (answer, self.clock.now_ms() + ORDER_MS));
    }

    pub(super) fn on_ordered(&mut self, name: Digest, result: Result<RecordId, OrderError>) {
        let Some((answer, _)) = self.waiting.orders.0.remove(&name) else { return };
        let cash = self.node.balance().cash;
        answer.give(result.map(|step| (step, cash)).map_err(refused));
    }

    /// Tells those who have waited long enough that their order may still be carried out.
    pub(super) fn answer_orders(&mut self) {
        let now = self.clock.now_ms();
        for (_, (answer, _)) in self.waiting.orders.0.extract_if(.., |_, (_, until)| *until <= now) {
            let words = "the issuer has not answered yet. The order stands and is carried out when it does: look at \
                         `sharemesh ledger statement` before you repeat it";
            answer.give(Err(Failure::new(FailureKind::Unavailable, words)));
        }
    }
}

fn refused(error: OrderError) -> Failure {
    let kind = match &error {
        OrderError::Unreachable => FailureKind::Unavailable,
        OrderError::Busy | OrderError::Refused(IssuerError::TooManySteps { .. }) => FailureKind::Busy,
        OrderError::Text => FailureKind::Usage,
        OrderError::Refused(IssuerError::NotEnoughCash { .. } | IssuerError::NotEnough { .. }) => {
            FailureKind::NoCredits
        }
        OrderError::Refused(IssuerError::NoTransfer | IssuerError::TooLittle { .. }) => FailureKind::Usage,
        OrderError::NoKey | OrderError::Refused(_) => FailureKind::Refused,
    };
    Failure::new(kind, error.to_string())
}
