//! Many jobs at once: room is given once, on either side of a channel, and channels are not opened by the dozen.

use std::collections::{BTreeMap, BTreeSet};

use protocol::ids::{ChannelId, Digest, JobId};
use protocol::job::{Failure, JobSpec};
use protocol::ledger::records::OpBody;
use protocol::message::{Checked, Message};
use protocol::node::{Node, Order, OwnerCommand};
use protocol::price::Usage;
use protocol::record::Record;
use simulations::home::{Home, MODEL, PRICE, Setting, spec};
use simulations::network::Conditions;
use simulations::world::{Fault, Outcome, World};

const SEEDS: std::ops::Range<u64> = 0..200;

const QUICK: Conditions = Conditions { latency_ms: 1, jitter_ms: 1, ..Conditions::CALM };

const UNEVEN: Conditions = Conditions { latency_ms: 5, jitter_ms: 40, ..Conditions::CALM };

fn worst(spec: &JobSpec) -> u64 {
    PRICE.cost(&spec.worst_usage()).expect("small numbers")
}

/// Submits sixteen jobs in the same instant and lets them end; returns what became of them and how many ever ran at once.
fn sixteen(home: &mut Home, wanted: &JobSpec, ms: u64) -> (Vec<Option<Outcome>>, usize) {
    let consumer = home.consumers[0];
    let jobs: Vec<JobId> = (0..16).map(|_| home.submit(0, consumer, wanted.clone())).collect();
    let mut most = 0;
    for _ in 0..ms {
        home.world.run_for(1);
        let placed = home.world.node(consumer).expect("runs").jobs();
        let placed = placed.filter(|(_, job)| job.phase == "submitted" || job.phase == "running").count();
        let served = home.world.node(home.providers[0]).map_or(0, Node::serving_count);
        most = most.max(placed).max(served);
    }
    let ended = |job: &JobId| home.world.jobs[job].outcome.clone().map(|(_, outcome)| outcome);
    (jobs.iter().map(ended).collect(), most)
}

#[test]
fn of_sixteen_jobs_that_a_payer_has_room_for_one_of_it_admits_exactly_one() {
    let wanted = spec(MODEL, 400, 200, 255);
    for seed in SEEDS {
        let setting = Setting { credits: worst(&wanted) * 3 / 2, slots: 16, ..Setting::small(seed, 1) };
        let mut home = Home::joined(&setting, UNEVEN);

        let (outcomes, most) = sixteen(&mut home, &wanted, 9_000);

        let done = outcomes.iter().filter(|outcome| matches!(outcome, Some(Outcome::Done(_)))).count();
        let poor = |outcome: &&Option<Outcome>| {
            matches!(outcome, Some(Outcome::Failed(Failure::NotEnoughCredits { .. }, None)))
        };
        assert_eq!(
            (done, outcomes.iter().filter(poor).count(), most),
            (1, 15, 1),
            "seed {seed}: {outcomes:?}"
        );
    }
}

/// Returns the channel that a consumer has opened.
fn opened(home: &Home) -> ChannelId {
    home.world.opened_channels()[0].0
}

#[test]
fn of_sixteen_jobs_that_a_channel_has_room_for_one_of_its_payee_admits_exactly_one() {
    let (first, wanted) = (spec(MODEL, 400, 200, 255), spec(MODEL, 40, 16, 255));
    for seed in SEEDS {
        // The channel holds the worst case of the first job alone; what that did not use has room for one of the others.
        let setting = Setting { credits: worst(&first) + 20_000, slots: 16, ..Setting::small(seed, 1) };
        let mut home = Home::joined(&setting, UNEVEN);
        let (consumer, provider) = (home.consumers[0], home.providers[0]);
        let before = home.submit(0, consumer, first.clone());
        home.world.run_for(8_000);
        assert!(matches!(home.world.jobs[&before].outcome, Some((_, Outcome::Done(_)))), "seed {seed}");
        let channel = opened(&home);

        // A payer that keeps no count of its room.
        home.world.hosts[consumer].adversary = true;
        let jobs: Vec<JobId> = (0..16).map(|number| JobId([number + 1; 16])).collect();
        for (number, job) in (0..).zip(&jobs) {
            let submit = Message::<Checked>::Submit {
                job: *job,
                spec: wanted.clone(),
                channel: Some(channel),
                opening: None,
            };
            home.world.bytes_in((seed + number) % 7, consumer, provider, submit.to_wire().to_bytes());
        }
        let (mut admitted, mut most) = (BTreeSet::<JobId>::new(), 0);
        for _ in 0..1_000 {
            home.world.run_for(1);
            admitted.extend(jobs.iter().filter(|job| home.world.generated(provider, **job).is_some()));
            most = most.max(home.world.node(provider).expect("runs").serving_count());
        }
        assert_eq!((admitted.len(), most), (1, 1), "seed {seed}");
    }
}

/// Returns how many channels were opened to each payee.
fn channels_by_payee(home: &Home) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for (_, _, payee) in home.world.opened_channels() {
        *counts.entry(payee).or_insert(0) += 1;
    }
    counts
}

#[test]
fn sixteen_jobs_at_once_open_three_channels_to_a_payee_at_most() {
    let wanted = spec(MODEL, 400, 200, 255);
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        // From just enough for all to plenty.
        let credits = worst(&wanted) * (17 + 8 * (seed % 8)) + 100_000;
        let providers = 1 + usize::try_from(seed % 3).expect("small");
        let setting = Setting { credits, slots: 16, ..Setting::small(seed, providers) };
        let mut home = Home::joined(&setting, UNEVEN);

        let (outcomes, _) = sixteen(&mut home, &wanted, 9_000);

        let done = outcomes.iter().filter(|outcome| matches!(outcome, Some(Outcome::Done(_)))).count();
        assert_eq!(done, 16, "seed {seed}: {outcomes:?}");
        let channels = channels_by_payee(&home);
        assert!(channels.values().all(|count| *count <= 3), "seed {seed}: {channels:?}");
        seen.extend(channels.into_values());
    }
    assert!(seen.contains(&2) || seen.contains(&3), "no burst needed a second channel: {seen:?}");
}

/// Says whether a node has written down what the issuer told it of somebody else's step.
fn has_news(home: &Home, host: usize) -> bool {
    home.world.records(host).any(|record| matches!(record, Record::Noticed(_)))
}

#[test]
fn a_payee_that_was_away_when_its_channel_expired_gets_all_it_earned_within_grace() {
    for seed in 0..20 {
        let epoch_ms = 120_000;
        let setting = Setting { epoch_ms, ..Setting::small(seed, 1) };
        let mut home = Home::joined(&setting, UNEVEN);
        let (consumer, provider) = (home.consumers[0], home.providers[0]);
        let job = home.submit(0, consumer, spec(MODEL, 400, 300, 100));
        assert!(home.world.run_until_so(20_000, |world| {
            matches!(world.jobs.get(&job).and_then(|job| job.outcome.as_ref()), Some((_, Outcome::Done(_))))
        }));
        // Long enough for the last receipt to be on its disk, and too short for it to have been redeemed.
        home.world.run_for(300);
        home.world.fault_in(0, provider, Fault::Crash);
        home.world.command_in(10, consumer, OwnerCommand::Settle);
        let channel = opened(&home);
        let account = home.world.hosts[provider].config.owner.account();

        let expires = |home: &Home| home.world.steps().any(|op| matches!(op.body, OpBody::Expire(_)));
        for _ in 0..5 * epoch_ms / 5_000 {
            if !expires(&home) {
                home.world.run_for(5_000);
            }
        }
        assert!(expires(&home), "seed {seed}: the payer did not end it alone");
        assert!(!has_news(&home, provider));
        // Its last epoch is over, its grace is not; and its payer is away.
        home.world.fault_in(0, consumer, Fault::Crash);
        home.world.run_for(2 * epoch_ms);
        home.world.fault_in(0, provider, Fault::Restart);
        home.world.run_for(10_000);

        assert!(has_news(&home, provider), "seed {seed}");
        let paid = PRICE.cost(&Usage { calls: 1, tokens_in: 110, tokens_out: 201, compute: 0 });
        let books = home.world.node(0).and_then(Node::books).expect("the issuer runs");
        assert_eq!(books.channel(channel).map(|(redeemed, _)| Some(redeemed)), Some(paid), "seed {seed}");
        let earned = books.balance(account).earned;
        assert!(earned > 0, "seed {seed}");
        home.world.run_for(4 * epoch_ms);
        let books = home.world.node(0).and_then(Node::books).expect("the issuer runs");
        assert_eq!(books.channel(channel), Some((paid.expect("small"), true)), "seed {seed}");
        assert!(books.is_conserved() && home.world.findings.is_empty(), "{:?}", home.world.findings);
    }
}

#[test]
fn a_payment_waits_for_its_turn_among_openings() {
    let wanted = spec(MODEL, 400, 200, 255);
    for seed in 0..50 {
        let mut home = Home::joined(&Setting { slots: 16, ..Setting::small(seed, 2) }, UNEVEN);
        let (consumer, paid) = (home.consumers[0], home.providers[1]);
        let to = home.world.hosts[paid].config.owner.account();
        let name = Digest::of(&seed.to_be_bytes());
        let order = Order::Pay { to, amount: 1_000 };
        home.world.command_in(seed % 60, consumer, OwnerCommand::Order(name, order));

        let (outcomes, _) = sixteen(&mut home, &wanted, 9_000);

        assert!(outcomes.iter().all(|outcome| matches!(outcome, Some(Outcome::Done(_)))), "seed {seed}");
        assert!(matches!(home.world.orders.get(&name), Some(Ok(_))), "seed {seed}");
        assert!(has_news(&home, paid), "seed {seed}");
        assert_eq!(home.world.findings, Vec::<String>::new());
    }
}

#[test]
fn quick_jobs_one_after_the_other_do_not_wait_for_channels() {
    for seed in 0..10 {
        let mut home = Home::joined(&Setting { slots: 16, ..Setting::small(seed, 1) }, QUICK);
        let consumer = home.consumers[0];
        for number in 0..100 {
            let begun = home.world.now;
            let job = home.submit(0, consumer, spec(MODEL, 1, 16, 255));
            let is_done = |world: &World| {
                matches!(
                    world.jobs.get(&job).and_then(|job| job.outcome.as_ref()),
                    Some((_, Outcome::Done(_)))
                )
            };
            assert!(home.world.run_until_so(1_000, is_done), "seed {seed}, job {number} began at {begun:?}");
        }
        let channels = home.world.opened_channels().len();
        assert!(channels > 4, "seed {seed}: {channels} channels were enough for all of them");
    }
}
