//! What somebody receives in a network with four issuers reaches its journal once, whatever one of them does.

use protocol::ids::{AccountId, Digest, RecordId};
use protocol::keys::Signer;
use protocol::ledger::quorum::Certificate;
use protocol::ledger::records::{AccountOp, Deposit, Epoch, OpBody, Source, Vote};
use protocol::message::{Message, News, Wire};
use protocol::node::{Node, Offence, Order, Owner, OwnerCommand};
use protocol::record::Record;
use protocol::signed::{Role, Verified, sign};
use protocol::statement::{Kind, Line, Statement};
use simulations::checks;
use simulations::home::{Home, Setting};
use simulations::network::Conditions;
use simulations::world::{Fault, World};

const AMOUNT: u64 = 20_000_000;

fn home() -> Home {
    let home = Home::joined(&Setting { issuers: 4, ..Setting::small(42, 1) }, Conditions::CALM);
    assert_eq!(home.world.findings, Vec::<String>::new());
    home
}

fn node(world: &World, host: usize) -> &Node {
    world.node(host).expect("runs")
}

fn received(world: &World, host: usize) -> Vec<Line> {
    let node = node(world, host);
    let mut statement = Statement::new(node.manifest(), node.id(), node.account());
    world.records(host).for_each(|record| statement.take(&record));
    statement.finish().into_iter().filter(|line| line.kind == Kind::Received).collect()
}

fn noted(world: &World, host: usize) -> usize {
    world.records(host).filter(|record| matches!(record, Record::Noticed(News::Step(_)))).count()
}

fn pay(home: &mut Home, name: u8) {
    let (from, to) = (home.consumers[0], home.providers[0]);
    let order = Order::Pay { to: home.world.hosts[to].config.owner.account(), amount: AMOUNT };
    home.world.command_in(0, from, OwnerCommand::Order(Digest([name; 32]), order));
}

#[track_caller]
fn settles(home: &mut Home) {
    home.heal(60_000);
    home.settle();
    assert_eq!(checks::findings(checks::WHEN_SETTLED, &home.world), Vec::<String>::new());
}

#[test]
fn a_payment_is_in_the_receivers_statement_once_while_one_issuer_is_down_and_one_repeats_its_news() {
    let mut home = home();
    home.lies(3);
    let receiver = home.providers[0];
    pay(&mut home, 1);
    home.world.run_for(10_000);
    home.world.fault_in(0, 2, Fault::Crash);
    home.world.fault_in(0, receiver, Fault::Crash);
    home.world.fault_in(1_000, receiver, Fault::Restart);
    home.world.run_for(20_000);

    let lines = received(&home.world, receiver);
    assert_eq!(lines.iter().map(|line| line.credit).collect::<Vec<_>>(), [AMOUNT]);
    assert_eq!(noted(&home.world, receiver), 1);
    settles(&mut home);
    assert_eq!((received(&home.world, receiver), noted(&home.world, receiver)), (lines, 1));
}

#[test]
fn a_payment_to_a_node_that_is_away_is_told_when_it_is_back_even_by_issuers_that_started_again() {
    let mut home = home();
    let receiver = home.providers[0];
    home.world.fault_in(0, receiver, Fault::Crash);
    home.world.run_for(2_000);
    for name in 1..4 {
        pay(&mut home, name);
        home.world.run_for(5_000);
    }
    (0..4).for_each(|issuer| home.world.fault_in(0, issuer, Fault::Crash));
    (0..4).for_each(|issuer| home.world.fault_in(1_000, issuer, Fault::Restart));
    home.world.fault_in(5_000, receiver, Fault::Restart);
    home.world.run_for(30_000);

    assert_eq!(noted(&home.world, receiver), 3);
    settles(&mut home);
}

fn issuer_signer(world: &World, issuer: usize) -> Signer {
    world.hosts[issuer].config.issuer.clone().expect("an issuer")
}

/// Returns a deposit of somebody, signed by these issuers.
fn deposit(world: &World, account: AccountId, issuers: &[usize]) -> Verified<Deposit> {
    let domain = world.domain();
    let deposit = Deposit {
        reference: Digest([9; 32]),
        account,
        amount: AMOUNT,
        epoch: Epoch(0),
        source: Source::Outside,
    };
    let first = sign(deposit, domain, Role::Issuer, &issuer_signer(world, issuers[0]));
    let more = issuers.iter().map(|issuer| issuer_signer(world, *issuer));
    more.fold(first, |deposit, signer| deposit.signed_also_by(domain, Role::Issuer, &signer))
}

#[test]
fn what_fewer_than_a_quorum_have_signed_is_no_news() {
    let mut home = home();
    let receiver = home.providers[0];
    let account = node(&home.world, receiver).account();
    home.lies(3);
    let before = home.world.records(receiver).count();
    for issuers in [&[3][..], &[2, 3]] {
        let news = News::Deposit(deposit(&home.world, account, issuers).signed());
        home.world.bytes_in(0, 3, receiver, Message::<Wire>::Notice(news).to_bytes());
    }
    home.world.run_for(100);

    assert_eq!(home.world.records(receiver).count(), before);
    let penalties: Vec<_> = home.world.hosts[3].penalties.iter().filter(|(by, _)| *by == receiver).collect();
    assert_eq!(penalties, [&(receiver, Offence::WrongSigner); 2]);
}

/// Returns the consumer's next step, a payment, with votes of all honest issuers: the consumer shows it to nobody else.
fn certificate(home: &Home) -> (RecordId, News<Wire>) {
    let (world, from) = (&home.world, home.consumers[0]);
    let Owner::Key(signer) = world.hosts[from].config.owner.clone() else { unreachable!("a plain key") };
    let account = node(world, from).account();
    let (sequence, previous) = world.books().next().expect("runs").1.next_slot(account);
    let body = OpBody::Pay { to: node(world, home.providers[0]).account(), amount: AMOUNT };
    let op = AccountOp { account, sequence, previous, epoch: Epoch(0), body };
    let op = sign(op, world.domain(), Role::Owner, &signer);
    let vote = |issuer: usize| {
        let vote = Vote { op: op.id(), account, sequence, epoch: Epoch(0), settled: None };
        sign(vote, world.domain(), Role::Issuer, &issuer_signer(world, issuer))
    };
    let votes = [0, 1, 2].map(vote).to_vec();
    (op.id(), News::Step(Certificate { op, terms: None, votes }.signed()))
}

#[test]
fn what_one_issuer_keeps_from_the_others_the_receiver_hands_on() {
    let mut home = home();
    home.lies(3);
    let (payer, receiver) = (home.consumers[0], home.providers[0]);
    home.world.hosts[payer].adversary = true;
    let (op, news) = certificate(&home);
    home.world.bytes_in(0, 3, receiver, Message::<Wire>::Notice(news).to_bytes());
    home.world.run_for(10_000);

    let account = node(&home.world, payer).account();
    let heads: Vec<RecordId> = home.world.books().map(|(_, books)| books.next_slot(account).1).collect();
    assert_eq!(heads, [op; 3]);
    assert_eq!((received(&home.world, receiver).len(), noted(&home.world, receiver)), (1, 1));
}
