//! Withdrawals in a network with four issuers: one operator pays, and everybody comes to know which.

use protocol::ids::{Digest, RecordId};
use protocol::ledger::quorum::Fact;
use protocol::ledger::records::{Epoch, WithdrawalPaid};
use protocol::message::{Message, Wire};
use protocol::node::{Node, Offence, Order, OwnerCommand};
use protocol::signed::{Role, sign};
use simulations::checks;
use simulations::home::{Home, Setting};
use simulations::network::Conditions;
use simulations::world::{Fault, World};

/// Long enough for a withdrawal to be recorded long before a checkpoint states it.
const EPOCH_MS: u64 = 60_000;

/// Returns a network in which the consumer has withdrawn, and the step. A checkpoint states it: before, nobody pays.
fn withdrawn() -> (Home, RecordId) {
    let setting = Setting { issuers: 4, epoch_ms: EPOCH_MS, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let order = Order::Withdraw { amount: 5_000_000, to: "a bank".to_owned() };
    home.world.command_in(0, home.consumers[0], OwnerCommand::Order(Digest([1; 32]), order));
    home.world.run_for(10_000);
    let (step, request) = home.world.books().next().expect("runs").1.withdrawals().next().expect("taken");
    let (step, payout) = (step, request.payout);
    let told = (0..4).filter(|issuer| node(&home.world, *issuer).payout_text(payout) == Some("a bank"));
    assert_eq!(told.count(), 4);
    let payer = turn(&home.world, step);
    mark(&mut home, payer, step);
    home.world.run_for(5_000);
    assert_eq!(references(&home, step), vec![None; 5]);
    home.world.run_for(2 * EPOCH_MS);
    (home, step)
}

fn node(world: &World, host: usize) -> &Node {
    world.node(host).expect("runs")
}

/// Returns whose turn it is.
fn turn(world: &World, step: RecordId) -> usize {
    let manifest = &world.hosts[0].config.manifest;
    let taken = world.books().next().expect("runs").1.withdrawal(step).expect("taken").epoch;
    let (issuer, _) = manifest.payer_of(step, taken, manifest.epoch(world.now)).expect("somebody's");
    world.host_of(issuer.node).expect("there")
}

fn mark(home: &mut Home, issuer: usize, step: RecordId) {
    let reference = format!("transfer of {issuer}");
    home.world.command_in(0, issuer, OwnerCommand::MarkPaid { step, reference });
}

/// Returns with which reference each issuer, and at last the owner, believes it to be paid.
fn references(home: &Home, step: RecordId) -> Vec<Option<String>> {
    let at = |issuer| node(&home.world, issuer).payout(step).map(|paid| paid.reference.clone());
    let own = node(&home.world, home.consumers[0]).withdrawals().find(|(id, _)| *id == step);
    let own = own.and_then(|(_, own)| own.paid.as_ref().map(|paid| paid.reference.clone()));
    (0..4).map(at).chain([own]).collect()
}

#[test]
fn only_the_operator_whose_turn_it_is_marks_a_withdrawal_and_all_come_to_know() {
    let (mut home, step) = withdrawn();
    let payer = turn(&home.world, step);
    let away = (payer + 1) % 4;
    for issuer in (0..4).filter(|issuer| *issuer != payer) {
        mark(&mut home, issuer, step);
    }
    home.world.run_for(10_000);
    assert_eq!(references(&home, step), vec![None; 5]);

    home.world.fault_in(0, away, Fault::Crash);
    home.world.run_for(1_000);
    mark(&mut home, payer, step);
    home.world.run_for(5_000);
    home.world.fault_in(0, payer, Fault::Crash);
    home.world.fault_in(0, away, Fault::Restart);
    home.world.run_for(20_000);
    home.heal(30_000);
    assert_eq!(references(&home, step), vec![Some(format!("transfer of {payer}")); 5]);
    home.settle();
    assert_eq!(checks::findings(checks::WHEN_SETTLED, &home.world), Vec::<String>::new());
}

#[test]
fn an_issuer_that_says_out_of_turn_that_it_has_paid_is_believed_by_nobody() {
    let (mut home, step) = withdrawn();
    let payer = turn(&home.world, step);
    let (liar, honest, owner) = ((payer + 1) % 4, (payer + 2) % 4, home.consumers[0]);
    home.world.hosts[liar].adversary = true;
    let signer = home.world.hosts[liar].config.issuer.clone().expect("an issuer");
    for epoch in [0, 7] {
        let paid = WithdrawalPaid { step, reference: "never".to_owned(), epoch: Epoch(epoch) };
        let paid = sign(paid, home.world.domain(), Role::Issuer, &signer);
        let told = Message::<Wire>::Withdrawal { step, paid: Some(paid.signed()) };
        home.world.bytes_in(0, liar, owner, told.to_bytes());
        let fact = Message::<Wire>::Fact(Fact::Paid(paid.signed()));
        home.world.bytes_in(0, liar, honest, fact.to_bytes());
    }
    home.world.run_for(5_000);

    assert_eq!(references(&home, step), vec![None; 5]);
    let mut penalties = home.world.hosts[liar].penalties.clone();
    penalties.sort_unstable();
    let (by_owner, by_honest) = ((owner, Offence::WrongSigner), (honest, Offence::BadLedger));
    assert_eq!(penalties, [by_honest, by_honest, by_owner, by_owner]);
}

#[test]
fn when_an_operator_has_not_paid_for_seven_epochs_it_is_the_next_ones_turn() {
    let (mut home, step) = withdrawn();
    let first = turn(&home.world, step);
    home.world.fault_in(0, first, Fault::Crash);
    home.world.run_for(8 * EPOCH_MS);
    let next = turn(&home.world, step);
    assert_eq!(next, (first + 1) % 4);

    mark(&mut home, next, step);
    home.world.run_for(10_000);
    home.world.fault_in(0, first, Fault::Restart);
    home.world.run_for(20_000);
    mark(&mut home, first, step);
    home.world.run_for(10_000);
    assert_eq!(references(&home, step), vec![Some(format!("transfer of {next}")); 5]);
}
