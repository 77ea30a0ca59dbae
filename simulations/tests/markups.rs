//! Jobs that builders routed: who gets what, down to the last nano-credit, whatever breaks meanwhile.

use protocol::ids::{AccountId, JobId};
use protocol::job::{Failure, JobSpec};
use protocol::ledger::records::Markup;
use protocol::node::Node;
use protocol::statement::{Kind, Statement};
use simulations::checks;
use simulations::home::{Home, MODEL, Setting, spec};
use simulations::network::Conditions;
use simulations::world::{Fault, Outcome, World};

const BPS: u16 = 1_250;

/// Returns a network whose first consumer may pay the second one a markup.
fn home(issuers: usize) -> (Home, Markup) {
    let setting = Setting { issuers, consumers: 2, ..Setting::small(7, 2) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let builder = account(&home.world, home.consumers[1]);
    let payer = home.consumers[0];
    home.world.hosts[payer].config.builders.insert(builder, BPS);
    home.world.fault_in(0, payer, Fault::Crash);
    home.world.fault_in(1_000, payer, Fault::Restart);
    home.world.run_for(20_000);
    (home, Markup { builder, bps: BPS })
}

fn account(world: &World, host: usize) -> AccountId {
    world.hosts[host].config.owner.account()
}

fn node(world: &World, host: usize) -> &Node {
    world.node(host).expect("runs")
}

fn job(home: &mut Home, markup: Option<Markup>) -> JobId {
    home.submit(0, home.consumers[0], JobSpec { markup, ..spec(MODEL, 3_000, 300, 200) })
}

/// Returns what jobs cost, and how much of it went to the builder.
fn paid(home: &Home, jobs: &[JobId]) -> (u64, u64) {
    let accounts = jobs.iter().map(|job| match &home.world.jobs[job].outcome {
        Some((_, Outcome::Done(account))) => account,
        other => panic!("{other:?}"),
    });
    accounts.fold((0, 0), |(price, share), account| {
        let shares: u64 = account.split.iter().map(|(.., amount)| amount).sum();
        let whole = i64::try_from(shares).expect("small") + account.in_channel;
        assert_eq!(i64::try_from(account.price), Ok(whole), "the shares make up the price");
        let markup =
            account.split.iter().filter(|(_, to, _)| *to == builder(home)).map(|(.., amount)| amount);
        (price + account.price, share + markup.sum::<u64>())
    })
}

fn builder(home: &Home) -> AccountId {
    account(&home.world, home.consumers[1])
}

/// Returns what the builder's own node says that it got for routing.
fn told(home: &Home) -> u64 {
    let host = home.consumers[1];
    let node = node(&home.world, host);
    let mut statement = Statement::new(node.manifest(), node.id(), node.account());
    home.world.records(host).for_each(|record| statement.take(&record));
    let lines = statement.finish().into_iter().filter(|line| line.kind == Kind::Markup);
    lines.map(|line| line.credit - line.debit).sum()
}

#[track_caller]
fn settles(home: &mut Home) {
    home.heal(60_000);
    home.settle();
    home.settle();
    assert_eq!(checks::findings(checks::WHEN_SETTLED, &home.world), Vec::<String>::new());
}

#[test]
fn a_builder_gets_its_markup_of_every_job_that_names_it_and_of_no_other() {
    for issuers in [1, 4] {
        let (mut home, markup) = home(issuers);
        let before = home.world.booked(builder(&home)).available();
        let mut jobs = Vec::new();
        for round in 0..6 {
            let id = job(&mut home, (round % 3 != 2).then_some(markup));
            home.does(id, 30_000);
            jobs.push((id, round % 3 != 2));
        }
        let with = |wanted| {
            let jobs: Vec<JobId> = jobs.iter().filter(|(_, is)| *is == wanted).map(|(id, _)| *id).collect();
            paid(&home, &jobs)
        };
        let ((price, share), (_, none)) = (with(true), with(false));
        assert!(share > 0 && none == 0, "{share} and {none}");
        // An eighth of the base, but for what has filled no quantum.
        assert!((share * 9).abs_diff(price) <= 9 * 4 * u64::from(BPS) + 4 * 10_000, "{share} of {price}");

        settles(&mut home);
        let got = home.world.booked(builder(&home)).available() - before;
        assert_eq!((got, told(&home)), (share, share), "{issuers} issuers");
    }
}

#[test]
fn a_builder_hears_what_it_got_though_it_and_the_issuer_were_down() {
    let (mut home, markup) = home(1);
    let before = home.world.booked(builder(&home)).available();
    home.world.fault_in(0, home.consumers[1], Fault::Crash);
    let id = job(&mut home, Some(markup));
    home.does(id, 30_000);
    home.world.run_for(90_000);
    home.world.fault_in(0, 0, Fault::Crash);
    home.world.fault_in(5_000, 0, Fault::Restart);
    settles(&mut home);
    let (_, share) = paid(&home, &[id]);
    assert_eq!((home.world.booked(builder(&home)).available() - before, told(&home)), (share, share));

    // Both start again, and nothing counts twice.
    for host in [0, home.consumers[1]] {
        home.world.fault_in(0, host, Fault::Crash);
        home.world.fault_in(1_000, host, Fault::Restart);
    }
    settles(&mut home);
    assert_eq!(told(&home), share);
}

#[test]
fn nobody_is_paid_whom_the_owner_has_not_allowed_nor_more_than_was_allowed() {
    let (mut home, markup) = home(1);
    let stranger = account(&home.world, home.providers[0]);
    let own = account(&home.world, home.consumers[0]);
    for wrong in [
        Markup { builder: stranger, ..markup },
        Markup { builder: own, ..markup },
        Markup { bps: BPS + 1, ..markup },
        Markup { bps: 3_001, ..markup },
    ] {
        let id = job(&mut home, Some(wrong));
        home.world.run_for(1_000);
        let outcome = &home.world.jobs[&id].outcome;
        assert!(matches!(outcome, Some((_, Outcome::Failed(Failure::BadRequest(_), None)))), "{outcome:?}");
    }
    assert!(home.world.opened_channels().is_empty());
}
