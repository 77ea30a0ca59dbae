//! Four issuers with epochs of seconds: they agree on one checkpoint after another, whoever lies, crashes or is not heard.

use protocol::ids::{Digest, RecordId};
use protocol::job::Failure;
use protocol::keys::Signer;
use protocol::ledger::allowance::COMMON_OF_ONE_MAX;
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::records::{AccountOp, Epoch, OpBody};
use protocol::message::{Message, Wire};
use protocol::node::{AuditState, Node, Order, OrderError, Owner, OwnerCommand};
use protocol::signed::{Role, Verified, sign};
use simulations::home::{Home, MODEL, Setting, spec};
use simulations::network::Conditions;
use simulations::play::run;
use simulations::scenario::read;
use simulations::world::{Fault, Outcome, World};

const EPOCH_MS: u64 = 40_000;

fn setting(seed: u64) -> Setting {
    Setting { issuers: 4, epoch_ms: EPOCH_MS, ..Setting::small(seed, 1) }
}

fn home() -> Home {
    Home::joined(&setting(42), Conditions::CALM)
}

/// Returns the checkpoints that an issuer keeps.
fn checkpoints(world: &World, place: usize) -> Vec<(Epoch, RecordId)> {
    let node = world.node(place).into_iter().flat_map(Node::checkpoints);
    node.map(|kept| (kept.epoch, Verified::id(kept))).collect()
}

/// Checks that no two nodes hold different checkpoints of one epoch; returns those of the first honest issuer.
#[track_caller]
fn one_chain(world: &World) -> Vec<(Epoch, RecordId)> {
    let first = world.books().next().expect("one runs").0;
    let ours = checkpoints(world, first);
    for place in 0..world.hosts.len() {
        for (epoch, id) in checkpoints(world, place) {
            let same = ours.iter().find(|(other, _)| *other == epoch);
            assert!(same.is_none_or(|(_, other)| *other == id), "host {place} has another one of {epoch:?}");
        }
    }
    ours
}

#[track_caller]
fn settles(home: &mut Home) {
    home.settles();
    one_chain(&home.world);
}

#[test]
fn four_issuers_agree_on_every_epoch_and_everybody_finds_its_account() {
    let mut home = home();
    home.does_a_job();
    home.world.run_for(4 * EPOCH_MS);

    let kept = one_chain(&home.world);
    let epochs: Vec<u32> = kept.iter().map(|(epoch, _)| epoch.0).collect();
    assert_eq!(epochs, (0..epochs.len() as u32).collect::<Vec<_>>(), "no epoch is left out");
    assert!(epochs.len() >= 4, "{epochs:?}");
    assert!((0..4).all(|place| checkpoints(&home.world, place) == kept));
    settles(&mut home);
}

#[test]
fn an_issuer_that_was_away_for_epochs_follows_the_checkpoints_that_it_missed() {
    let mut home = home();
    home.world.fault_in(0, 2, Fault::Crash);
    home.does_a_job();
    home.world.run_for(12 * EPOCH_MS);
    let kept = one_chain(&home.world);
    assert!(kept.len() >= 12, "{kept:?}");

    home.world.fault_in(0, 2, Fault::Restart);
    home.world.run_for(20_000);
    assert_eq!(checkpoints(&home.world, 2).last(), one_chain(&home.world).last());
    settles(&mut home);
}

#[test]
fn two_issuers_down_of_four_agree_on_nothing_until_one_is_back() {
    let mut home = home();
    home.world.fault_in(0, 1, Fault::Crash);
    home.world.fault_in(0, 2, Fault::Crash);
    let before = checkpoints(&home.world, 0);
    home.world.run_for(2 * EPOCH_MS);
    assert_eq!(checkpoints(&home.world, 0), before);

    home.world.fault_in(0, 1, Fault::Restart);
    home.world.run_for(EPOCH_MS);
    assert!(one_chain(&home.world).len() > before.len());
    settles(&mut home);
}

#[test]
fn a_proposer_that_dies_in_every_round_and_one_that_lies_make_no_two_checkpoints() {
    let mut home = home();
    home.world.run_for(10_000);
    home.lies(3);
    home.world.network.conditions.loss_permille = 20;
    let start = home.world.hosts[0].config.manifest.created;
    for epoch in 1..=5_u64 {
        let boundary = start.plus_ms(epoch * EPOCH_MS);
        // Whoever proposes first, and then whoever is next, dies just after it could say so.
        for round in 0..2_u64 {
            let proposer = usize::try_from(epoch - 1 + round).expect("small") % 4;
            let at = boundary.since_ms(home.world.now) + round * (EPOCH_MS / 8) + 60;
            home.world.fault_in(at, proposer, Fault::Crash);
            home.world.fault_in(at + 3_000, proposer, Fault::Restart);
        }
        home.does_a_job();
        home.world.run_until(boundary.plus_ms(EPOCH_MS / 2));
        one_chain(&home.world);
    }
    assert!(one_chain(&home.world).len() >= 4);
    settles(&mut home);
}

#[test]
fn an_audit_goes_on_with_another_issuer_when_one_serves_other_books_and_one_says_nothing() {
    let mut home = home();
    home.lies(0);
    home.world.hosts[1].silent.insert("page");
    home.world.run_for(2 * EPOCH_MS);

    let consumer = home.consumers[0];
    home.world.command_in(0, consumer, OwnerCommand::Audit(None));
    home.world.run_for(30_000);

    let audit = home.world.node(consumer).and_then(Node::audit_view).expect("one was begun");
    let known: Vec<_> = audit.distrusted.iter().map(|other| (other.issuer, other.is_wrong)).collect();
    let id = |place: usize| home.world.hosts[place].id;
    assert_eq!(known, [(id(0), true), (id(1), false)]);
    assert_eq!((audit.state, audit.issuer), (AuditState::Done, Some(id(2))));
    assert_eq!(audit.differences, Vec::<String>::new());
    assert_eq!(audit.accounts.map(|root| root.hash), audit.checkpoint.as_ref().map(|it| it.accounts.hash));
}

#[test]
fn losses_crashes_and_cuts_leave_one_chain_of_checkpoints() {
    let mut scenario = read("smoke-four-issuers").expect("it comes with the program");
    (scenario.network.epoch_s, scenario.minutes) = (EPOCH_MS / 1000, 2);
    for seed in 1..=3 {
        let report = run(&scenario, seed);
        assert_eq!(report.findings, Vec::<String>::new(), "seed {seed}");
        assert!(report.figures.checkpoints >= 4, "{} checkpoints", report.figures.checkpoints);
    }
}

#[test]
fn a_slot_with_two_steps_is_freed_by_a_checkpoint_and_everybody_hears_of_it() {
    let mut home = Home::joined(&Setting { consumers: 2, ..setting(42) }, Conditions::CALM);
    let cheat = home.consumers[1];
    home.world.hosts[cheat].adversary = true;
    let Owner::Key(signer) = home.world.hosts[cheat].config.owner.clone() else {
        unreachable!("a plain key")
    };
    let account = home.world.node(cheat).expect("runs").account();
    let (next, previous) = home.world.books().next().expect("runs").1.next_slot(account);
    let (one, other) = (step(&home, &signer, next, previous, 0), step(&home, &signer, next, previous, 1));
    for issuer in 0..4 {
        let (early, late) = if issuer < 2 { (&one, &other) } else { (&other, &one) };
        home.world.bytes_in(0, cheat, issuer, early.1.clone());
        home.world.bytes_in(500, cheat, issuer, late.1.clone());
    }
    home.world.run_for(2_000);
    let locks =
        |home: &Home| -> Vec<_> { home.world.books().map(|(_, books)| books.locked(account)).collect() };
    assert_eq!(locks(&home), [Some(one.0), Some(one.0), Some(other.0), Some(other.0)]);

    home.world.run_for(2 * EPOCH_MS);
    assert_eq!(locks(&home), [None; 4], "the checkpoint has freed the slot");
    for place in 0..home.world.hosts.len() {
        let proofs = home.world.node(place).expect("runs").books_view().equivocations.len();
        assert_eq!(proofs, 1, "host {place} holds the proof");
    }
    let job = home.submit(0, cheat, spec(MODEL, 400, 100, 100));
    let is_done = |world: &World| matches!(world.jobs[&job].outcome, Some((_, Outcome::Done(_))));
    assert!(home.world.run_until_so(20_000, |world| world.jobs.contains_key(&job) && is_done(world)));
    one_chain(&home.world);
}

/// Has a member order steps that do nothing, a few at a time, until one is refused; returns why.
fn spams(home: &mut Home, member: usize) -> OrderError {
    for round in 0..u64::MAX {
        let names: Vec<Digest> = (0..8).map(|turn| Digest::of(&(8 * round + turn).to_be_bytes())).collect();
        for name in &names {
            home.world.command_in(0, member, OwnerCommand::Order(*name, Order::Noop));
        }
        let all = |world: &World| names.iter().all(|name| world.orders.contains_key(name));
        assert!(home.world.run_until_so(20_000, all), "every order is answered");
        let refused = names.iter().find_map(|name| home.world.orders[name].clone().err());
        if let Some(error) = refused {
            return error;
        }
    }
    unreachable!("there is an end of credits")
}

#[test]
fn a_member_that_makes_steps_without_end_stops_nobody_but_itself_and_only_until_the_checkpoint() {
    let long = Setting { consumers: 2, epoch_ms: 20 * 60_000, ..setting(42) };
    let mut home = Home::joined(&long, Conditions::CALM);
    let spammer = home.consumers[1];
    let error = spams(&mut home, spammer);
    let made = COMMON_OF_ONE_MAX;
    assert_eq!(error, OrderError::Refused(IssuerError::TooManySteps { made }));

    let job = home.submit(0, spammer, spec(MODEL, 400, 100, 100));
    assert!(home.world.run_until_so(5_000, |world| world.is_done(job) || world.outcome(job).is_some()));
    let refused = Failure::TooManySteps(IssuerError::TooManySteps { made });
    assert_eq!(home.world.outcome(job), Some(&Outcome::Failed(refused, None)));
    home.does_a_job();
    let (name, to) = (Digest::of(b"gift"), home.world.hosts[spammer].config.owner.account());
    let gift = OwnerCommand::Order(name, Order::Pay { to, amount: 1_000 });
    home.world.command_in(0, home.consumers[0], gift);
    home.world.run_for(2_000);
    assert!(home.world.orders[&name].is_ok());

    let start = home.world.hosts[0].config.manifest.created;
    home.world.run_until(start.plus_ms(long.epoch_ms + 30_000));
    assert_eq!(one_chain(&home.world).len(), 1);
    let job = home.submit(0, spammer, spec(MODEL, 400, 100, 100));
    home.does(job, 20_000);
    settles(&mut home);
}

fn step(home: &Home, signer: &Signer, sequence: u64, previous: RecordId, epoch: u32) -> (RecordId, Vec<u8>) {
    let account = signer.public().into();
    let domain = home.world.hosts[0].config.manifest.domain();
    let op = AccountOp { account, sequence, previous, epoch: Epoch(epoch), body: OpBody::Noop };
    let op = sign(op, domain, Role::Owner, signer);
    (op.id(), Message::<Wire>::Step { op: op.signed(), terms: None }.to_bytes())
}
