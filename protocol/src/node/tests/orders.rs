//! What the owner orders of its account, and what it is told of it.

use super::orders::{Order, OrderError};
use super::*;

/// A consumer and the effects of its order to pay more than it has, signed and refused.
fn refused() -> (Told, Verified<AccountOp>, Vec<Effect>) {
    let mut node = consumer();
    node.has_credits();
    let order =
        Input::Owner(OwnerCommand::Order(Digest([9; 32]), Order::Pay { to: account(60), amount: u64::MAX }));
    let mut out = node.told(START, order);
    let step = node.node.step_under_way().cloned().expect("the issuer judges it");
    let (op, error, balance) = (step.id(), IssuerError::UnknownChannel, node.node.balance());
    out.extend(node.hears(START, &ISSUER, Message::StepRefused { op, error, balance }));
    (node, step, out)
}

fn account(seed: u8) -> crate::ids::AccountId {
    signer(seed).public().into()
}

#[test]
fn an_owner_is_told_of_a_refusal_only_when_a_restart_makes_nothing_of_the_step() {
    let (node, step, out) = refused();
    let told = Effect::Ordered(Digest([9; 32]), Err(OrderError::Refused(IssuerError::UnknownChannel)));
    let told = out.iter().position(|effect| *effect == told).expect("told");
    let kept = |effects: &[Effect]| -> Vec<Record> {
        let records = effects.iter().filter_map(|effect| match effect {
            Effect::Record(record) => Some(record.clone()),
            _ => None,
        });
        records.collect()
    };
    let (before, after) = (kept(&out[..1]), kept(&out[..told]));
    assert!(matches!(before.as_slice(), [Record::Step { .. }]));

    let again = |records: &[Record]| {
        let mut again = Node::new(node.node.config.clone(), 2, records, START).expect("its own journal");
        again.wallet.learn(step.sequence, step.previous, Balance::default(), Epoch(1));
        again.step_under_way().cloned()
    };
    assert_eq!(again(&before), Some(step.clone()), "signed, and not known to be refused");
    assert_eq!(again(&after), None);
}
