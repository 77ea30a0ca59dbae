//! Networks with four issuers: one may be down, slow or lying, and money stays whole.

use protocol::ids::{AccountId, Digest};
use protocol::keys::Signer;
use protocol::ledger::account::{Inception, promise};
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::records::{AccountOp, Epoch, OpBody, text_digest};
use protocol::message::{Message, Wire};
use protocol::node::{Config, Order, OrderError, Owner, OwnerCommand};
use protocol::signed::{Role, sign};
use simulations::devices::Speed;
use simulations::home::{Home, MODEL, Setting, spec};
use simulations::network::Conditions;
use simulations::world::Fault;

fn home() -> Home {
    Home::joined(&Setting { issuers: 4, ..Setting::small(42, 1) }, Conditions::CALM)
}

#[test]
fn four_issuers_serve_a_job_and_agree_when_it_is_settled() {
    let mut home = home();
    home.does_a_job();
    home.settles();
    assert_eq!(home.world.books().count(), 4);
}

#[test]
fn an_issuer_that_is_down_delays_nobody_and_catches_up() {
    let mut home = home();
    home.world.fault_in(0, 2, Fault::Crash);
    home.world.run_for(3_000);

    home.does_a_job();
    home.does_a_job();
    home.settles();
    assert_eq!(home.world.books().count(), 4);
}

/// Before any checkpoint states it.
#[test]
fn what_a_provider_earned_counts_at_every_issuer_though_one_was_down_and_the_provider_started_again() {
    let mut home = home();
    let provider = home.providers[0];
    let account = home.world.hosts[provider].config.owner.account();
    let counted = |home: &Home| -> Vec<(bool, u64)> {
        let books = home.world.books().map(|(_, books)| books);
        books.map(|books| (books.balance(account).earned > 0, books.uncounted(account))).collect()
    };
    home.world.fault_in(0, 2, Fault::Crash);
    home.world.run_for(3_000);
    home.does_a_job();
    home.world.run_for(70_000);
    assert_eq!(counted(&home), [(true, 0); 3]);

    home.world.fault_in(0, provider, Fault::Crash);
    home.world.fault_in(1_000, provider, Fault::Restart);
    home.world.fault_in(5_000, 2, Fault::Restart);
    home.world.run_for(130_000);
    assert_eq!(counted(&home), [(true, 0); 4]);
    home.settles();
}

#[test]
fn two_issuers_down_of_four_open_no_channel() {
    let mut home = home();
    home.world.fault_in(0, 1, Fault::Crash);
    home.world.fault_in(0, 2, Fault::Crash);
    home.world.run_for(3_000);

    let job = home.submit(0, home.consumers[0], spec(MODEL, 400, 300, 100));
    assert!(!home.world.run_until_so(20_000, |world| world.is_done(job)));
    assert_eq!(home.world.opened_channels(), []);
    home.settles();
}

#[test]
fn one_issuer_lies_one_is_slow_one_is_down_for_a_while() {
    let mut home = home();
    home.lies(3);
    home.slows(1, 800);
    home.does_a_job();

    home.world.fault_in(0, 2, Fault::Crash);
    home.world.run_for(3_000);
    home.does_a_job();
    home.settles();
    assert_eq!(home.world.books().count(), 3);
}

#[test]
fn an_owner_who_signs_two_steps_for_one_slot_locks_nobody_but_itself() {
    let setting = Setting { issuers: 4, consumers: 2, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let (honest, cheat) = (home.consumers[0], home.consumers[1]);
    home.world.hosts[cheat].adversary = true;
    let Owner::Key(signer) = home.world.hosts[cheat].config.owner.clone() else {
        unreachable!("a plain key")
    };
    let first = home.submit(0, cheat, spec(MODEL, 400, 100, 100));
    home.does(first, 15_000);
    let channel = home.world.opened_channels()[0].0;
    let account = home.world.node(cheat).expect("runs").account();
    let (next, previous) = home.world.books().next().expect("runs").1.next_slot(account);

    let domain = home.world.hosts[0].config.manifest.domain();
    let step = |epoch| {
        let body = OpBody::Expire(channel);
        let op = AccountOp { account, sequence: next, previous, epoch: Epoch(epoch), body };
        let op = sign(op, domain, Role::Owner, &signer);
        (op.id(), Message::<Wire>::Step { op: op.signed(), terms: None }.to_bytes())
    };
    let (one, other) = (step(0), step(1));
    for issuer in 0..4 {
        let (early, late) = if issuer < 2 { (&one, &other) } else { (&other, &one) };
        home.world.bytes_in(0, cheat, issuer, early.1.clone());
        home.world.bytes_in(500, cheat, issuer, late.1.clone());
    }
    home.world.run_for(2_000);

    let locks: Vec<_> = home.world.books().map(|(_, books)| books.locked(account)).collect();
    assert_eq!(locks, [Some(one.0), Some(one.0), Some(other.0), Some(other.0)]);
    let job = home.submit(0, honest, spec(MODEL, 400, 300, 100));
    home.does(job, 15_000);
    assert!(home.world.books().all(|(_, books)| books.is_conserved()));
}

/// One honest issuer and a liar vote for a payment while the two others are away; when they are back its epoch is over. Two
/// votes are no certificate, and two refusals too few to give it up: a checkpoint gives its place back, and its owner is told.
#[test]
fn a_step_that_too_few_voted_for_while_its_epoch_lasted_is_given_up_and_its_account_goes_on() {
    let setting = Setting { issuers: 4, epoch_ms: 20_000, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    home.lies(3);
    let (owner, order) = (home.consumers[0], Digest([1; 32]));
    let account = home.world.hosts[owner].config.owner.account();
    let to = home.world.hosts[home.providers[0]].config.owner.account();
    for away in [0, 2] {
        home.world.fault_in(0, away, Fault::Crash);
    }
    home.world.run_for(1_000);
    let pay = Order::Pay { to, amount: 5_000_000 };
    home.world.command_in(0, owner, OwnerCommand::Order(order, pay));
    home.world.run_for(60_000);
    let locks: Vec<_> = home.world.books().map(|(_, books)| books.locked(account).is_some()).collect();
    assert_eq!((locks, home.world.orders.get(&order)), (vec![true], None));

    for away in [0, 2] {
        home.world.fault_in(0, away, Fault::Restart);
    }
    home.world.run_for(80_000);
    let told = home.world.orders.get(&order);
    assert_eq!(told, Some(&Err(OrderError::Refused(IssuerError::Lapsed))));
    assert!(home.world.books().all(|(_, books)| books.locked(account).is_none()));
    home.does_a_job();
    home.settles();
}

/// An operator types in what it has seen.
fn operator(home: &mut Home, ms: u64, issuer: usize, (account, amount): (AccountId, u64)) {
    let reference = text_digest("transfer 17");
    home.world.command_in(ms, issuer, OwnerCommand::Deposit { reference, account, amount });
}

fn booked(home: &Home) -> Vec<Option<u64>> {
    let reference = text_digest("transfer 17");
    home.world.books().map(|(_, books)| books.deposit_of(reference).map(|(_, amount)| amount)).collect()
}

#[test]
fn three_operators_book_a_deposit_from_outside_while_the_fourth_lies_and_one_of_them_crashes() {
    let mut home = home();
    home.lies(3);
    home.world.network.conditions.loss_permille = 100;
    let deposit = (home.world.hosts[home.consumers[0]].config.owner.account(), 3_000_000_000);
    operator(&mut home, 0, 0, deposit);
    operator(&mut home, 0, 1, deposit);
    home.world.fault_in(1_000, 0, Fault::Crash);
    home.world.fault_in(4_000, 0, Fault::Restart);
    home.world.run_for(20_000);
    assert_eq!(booked(&home), [None; 3]);
    let seen = home.world.node(0).and_then(|node| node.deposit_progress(text_digest("transfer 17")));
    assert_eq!(seen.map(|seen| (seen.amount, seen.signed)), Some((deposit.1, 2)));

    operator(&mut home, 0, 2, deposit);
    home.world.run_for(10_000);
    operator(&mut home, 0, 2, deposit);
    operator(&mut home, 0, 1, (deposit.0, 2 * deposit.1));
    home.world.run_for(10_000);
    assert_eq!(booked(&home), [Some(deposit.1); 3]);
    home.world.deposited += u128::from(deposit.1);
    home.settles();
}

#[test]
fn operators_who_differ_book_nothing_and_each_sees_that_they_do() {
    let mut home = home();
    let account = home.world.hosts[home.consumers[0]].config.owner.account();
    for issuer in 0..4 {
        operator(&mut home, 0, issuer, (account, 1_000 + issuer as u64 % 2));
    }
    home.world.run_for(15_000);
    assert_eq!(booked(&home), [None; 4]);
    for issuer in 0..4 {
        let seen = home.world.node(issuer).and_then(|node| node.deposit_progress(text_digest("transfer 17")));
        assert_eq!(seen.map(|seen| (seen.signed, seen.others)), Some((2, 2)));
    }
}

/// The key of an account after so many rotations.
fn key(rotations: u8) -> Signer {
    Signer::simulated([200 + rotations; 32])
}

fn begins(rotations: u8) -> Inception {
    Inception { key: key(rotations).public(), next: promise(key(rotations + 1).public()) }
}

fn wallet(rotations: u8, next: Option<Signer>) -> Owner {
    Owner::Wallet { inception: begins(0), key: key(rotations), next }
}

/// Adds a machine that consumes for an account with a next key.
fn add(home: &mut Home) -> usize {
    let (node, owner) = (Signer::simulated([90; 32]), wallet(0, None));
    let config = Config { node, owner, ..home.world.hosts[home.consumers[0]].config.clone() };
    let (secret, amount) = ([90; 16], 1_000_000_000);
    home.world.command_in(0, 0, OwnerCommand::MakeTicket { secret, amount });
    home.world.deposited += u128::from(amount);
    home.world.run_for(1_000);
    let place = home.world.add(config, Speed { prefill: 2_000, decode: 60 }, None, Some(secret));
    home.world.run_for(15_000);
    place
}

#[test]
fn an_account_replaces_its_key_while_an_issuer_is_down_and_spends_with_the_new_one() {
    let mut home = home();
    let owner = add(&mut home);
    let account = begins(0).account();
    home.world.fault_in(0, 2, Fault::Crash);
    home.world.hosts[owner].config.owner = wallet(0, Some(key(1)));
    home.world.command_in(0, owner, OwnerCommand::Rotate { seed: [201; 32], next: begins(1).next });
    home.world.run_for(3_000);

    let job = home.submit(0, owner, spec(MODEL, 400, 300, 100));
    assert!(
        home.world.run_until_so(15_000, |world| world.is_done(job)),
        "{:?}",
        home.world.jobs[&job].outcome
    );
    home.settles();
    let keys = |place: usize| {
        let books = home.world.node(place).and_then(protocol::node::Node::books).expect("an issuer");
        books.lineage(account).map(|lineage| (lineage.rotations(), lineage.key()))
    };
    assert_eq!([0, 1, 2, 3].map(keys), [Some((1, key(1).public())); 4]);
}
