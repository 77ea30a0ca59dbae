//! Stories of an account's keys and nodes: rotate against spend, an old machine, a node that asks its wallet node.

use protocol::ids::{AccountId, JobId, NodeId};
use protocol::keys::Signer;
use protocol::ledger::account::{Inception, Lineage, promise};
use protocol::ledger::records::{Device, Epoch, Rights};
use protocol::node::{Config, Delegation, Node, Owner, OwnerCommand, RotationView};
use protocol::price::Usage;
use protocol::signed::{Role, sign};
use simulations::devices::Speed;
use simulations::home::{Home, MODEL, PRICE, Setting, spec};
use simulations::network::Conditions;
use simulations::world::{Fault, Outcome, World};

const CREDITS: u64 = 1_000_000_000;

fn key(rotations: u8) -> Signer {
    Signer::simulated([200 + rotations; 32])
}

fn begins(rotations: u8) -> Inception {
    Inception { key: key(rotations).public(), next: promise(key(rotations + 1).public()) }
}

fn account() -> AccountId {
    begins(0).account()
}

fn wallet() -> Owner {
    Owner::Wallet { inception: begins(0), key: key(0), next: None }
}

/// Adds a machine that consumes for `owner`, with a ticket that carries `amount`.
fn add(home: &mut Home, tag: u8, owner: Owner, amount: u64) -> usize {
    let node = Signer::simulated([tag; 32]);
    let config = Config { node, owner, ..home.world.hosts[home.consumers[0]].config.clone() };
    let secret = [tag; 16];
    home.world.command_in(0, 0, OwnerCommand::MakeTicket { secret, amount });
    home.world.deposited += u128::from(amount);
    home.world.run_for(1_000);
    let place = home.world.add(config, Speed { prefill: 2_000, decode: 60 }, None, Some(secret));
    home.world.run_for(5_000);
    assert!(home.world.is_joined(place), "host {place} did not join");
    place
}

fn id(tag: u8) -> NodeId {
    Signer::simulated([tag; 32]).public().into()
}

fn home() -> Home {
    Home::joined(&Setting::small(42, 2), Conditions::CALM)
}

/// Replaces the key at `host` in `ms`, as its shell does: the next key is on its disk first.
fn rotate_in(home: &mut Home, ms: u64, host: usize, rotations: u8) {
    let (key, next) = (key(rotations - 1), Some(key(rotations)));
    home.world.hosts[host].config.owner = Owner::Wallet { inception: begins(0), key, next };
    let next = begins(rotations).next;
    home.world.command_in(ms, host, OwnerCommand::Rotate { seed: [200 + rotations; 32], next });
}

fn has_failed(world: &World, job: JobId) -> bool {
    let outcome = world.jobs.get(&job).and_then(|job| job.outcome.as_ref());
    matches!(outcome, Some((_, Outcome::Failed(..))))
}

fn rotations(world: &World) -> usize {
    let books = world.node(0).and_then(Node::books).expect("an issuer");
    books.lineage(account()).map_or(0, Lineage::rotations)
}

#[test]
fn rotate_against_spend_with_losses_and_a_crash_ends_with_one_key_and_all_credits() {
    for seed in 0..20_u64 {
        let mut home = home();
        let place = add(&mut home, 90, wallet(), CREDITS);
        home.consumers.push(place);
        home.world.network.conditions.loss_permille = 50;
        // Different jobs, so that every one opens a channel or waits for one.
        for number in 0..6_u64 {
            home.submit(number * 700, place, spec(MODEL, 400, 200, 80));
        }
        rotate_in(&mut home, 100 + 370 * seed % 4_300, place, 1);
        home.world.fault_in(200 + 510 * seed % 4_700, place, Fault::Crash);
        home.world.fault_in(6_000, place, Fault::Restart);
        home.world.run_for(12_000);
        if rotations(&home.world) == 0 {
            // The command died with the process: the owner says it again.
            rotate_in(&mut home, 0, place, 1);
        }
        home.world.run_for(60_000);
        home.world.network.conditions.loss_permille = 0;

        assert_eq!(rotations(&home.world), 1, "seed {seed}");
        let again = home.submit(0, place, spec(MODEL, 400, 100, 80));
        assert!(home.world.run_until_so(30_000, |world| world.is_done(again)), "seed {seed}");
        let view = home.world.node(place).expect("runs").account_view();
        assert_eq!((view.key, view.held, view.rotation), (key(1).public(), true, RotationView::None));
        home.settles();
    }
}

#[test]
fn a_machine_with_the_replaced_key_spends_no_more_and_the_owner_goes_on() {
    let mut home = home();
    let old = add(&mut home, 90, wallet(), CREDITS);
    let first = home.submit(0, old, spec(MODEL, 400, 100, 80));
    home.does(first, 15_000);

    // The owner recovers on another machine, and rotates there; the old one is in somebody else's hands.
    let new = add(&mut home, 91, wallet(), 0);
    rotate_in(&mut home, 0, new, 1);
    home.world.run_for(10_000);
    assert_eq!(rotations(&home.world), 1);
    let stolen = home.submit(0, old, spec(MODEL, 4_000, 400, 80));
    let own = home.submit(0, new, spec(MODEL, 400, 100, 80));
    assert!(home.world.run_until_so(90_000, |world| has_failed(world, stolen) || world.is_done(stolen)));
    assert!(home.world.run_until_so(30_000, |world| world.is_done(own)), "{:?}", home.world.jobs[&own]);

    // The channel that it opened with its key in force is all that the old machine could still use.
    let opened = home.world.opened_channels().iter().filter(|(_, payer, _)| *payer == old).count();
    assert_eq!(opened, 1, "a channel was opened with the replaced key");
    assert_eq!(home.world.findings, Vec::<String>::new());
}

#[test]
fn another_node_of_the_account_asks_its_wallet_node_and_uses_the_channel_as_its_own() {
    let mut home = home();
    let place = add(&mut home, 90, wallet(), CREDITS);
    let rights = Rights { serve: false, spend: true };
    let authorise = OwnerCommand::Authorise { node: id(91), rights, until: Epoch(50), budget: 500_000_000 };
    home.world.command_in(0, place, authorise);
    home.world.run_for(1_000);
    let given = home.world.node(place).and_then(|node| node.delegation_of(id(91))).expect("authorised");
    let phone = add(&mut home, 91, given.into(), 0);
    home.consumers.extend([place, phone]);
    home.world.dial(phone, place);
    home.world.run_for(2_000);

    let job = home.submit(0, phone, spec(MODEL, 400, 100, 80));
    assert!(
        home.world.run_until_so(20_000, |world| world.is_done(job)),
        "{:?}",
        home.world.jobs.get(&job).map(|job| &job.outcome)
    );
    // A rotation changes the key, not the delegation of those that are connected.
    rotate_in(&mut home, 0, place, 1);
    home.world.run_for(5_000);
    let again = home.submit(0, phone, spec(MODEL, 4_000, 800, 80));
    home.does(again, 30_000);
    home.settles();
    let paid = CREDITS - home.world.booked(account()).available();
    let least = PRICE.cost(&Usage { calls: 2, tokens_in: 200, tokens_out: 100, compute: 0 }).expect("small");
    assert!(paid > least, "{paid} nano-credits were paid for both jobs, {least} are due at least");
}

#[test]
fn the_nodes_of_an_account_that_lost_their_disks_go_on_with_the_key_in_force() {
    let mut home = home();
    let place = add(&mut home, 90, wallet(), CREDITS);
    let rights = Rights { serve: false, spend: true };
    let authorised = |home: &mut Home| {
        let command = OwnerCommand::Authorise { node: id(91), rights, until: Epoch(50), budget: 500_000_000 };
        home.world.command_in(0, place, command);
        home.world.run_for(1_000);
        home.world.node(place).and_then(|node| node.delegation_of(id(91))).expect("authorised")
    };
    let given = authorised(&mut home);
    let phone = add(&mut home, 91, given.into(), 0);
    home.consumers.extend([place, phone]);
    home.world.dial(phone, place);
    home.world.run_for(2_000);
    rotate_in(&mut home, 0, place, 1);
    home.world.run_for(5_000);
    assert_eq!(rotations(&home.world), 1);
    let first = home.submit(0, phone, spec(MODEL, 400, 100, 80));
    home.does(first, 30_000);

    for lost in [place, phone] {
        home.world.fault_in(0, lost, Fault::LoseDisk);
    }
    home.world.fault_in(1_000, place, Fault::Restart);
    assert!(home.world.run_until_so(150_000, |world| world.hosts[place].recovered == Some((0, 0))));
    // The wallet node has forgotten whom it authorised, and the other one's delegation is by the key that was replaced.
    home.world.hosts[phone].config.owner = authorised(&mut home).into();
    home.world.fault_in(0, phone, Fault::Restart);
    home.world.run_for(5_000);
    home.world.dial(phone, place);
    for provider in home.providers.clone() {
        home.world.dial(phone, provider);
    }
    assert!(home.world.run_until_so(150_000, |world| world.hosts[phone].recovered == Some((1, 0))));

    for node in [place, phone] {
        let job = home.submit(0, node, spec(MODEL, 400, 100, 80));
        let done = home.world.run_until_so(60_000, |world| world.is_done(job));
        assert!(done, "{:?}", home.world.jobs.get(&job).map(|job| &job.outcome));
    }
    home.settles();
}

#[test]
fn a_node_without_the_right_to_spend_is_told_so() {
    let mut home = home();
    let place = add(&mut home, 90, wallet(), CREDITS);
    // Signed by the owner, but never authorised at the wallet node.
    let rights = Rights { serve: false, spend: true };
    let device = Device { account: account(), node: id(91), rights, version: 1, expires: Epoch(7) };
    let domain = home.world.hosts[0].config.manifest.domain();
    let device = sign(device, domain, Role::Owner, &key(0));
    let given = Delegation { device, lineage: Some(Lineage::new(begins(0))), wallet: id(90) };
    let phone = add(&mut home, 91, given.into(), 0);
    home.world.dial(phone, place);
    home.world.run_for(2_000);

    let job = home.submit(0, phone, spec(MODEL, 400, 100, 80));

    assert!(home.world.run_until_so(20_000, |world| has_failed(world, job)));
    assert_eq!(home.world.booked(account()).held, 0);
}
