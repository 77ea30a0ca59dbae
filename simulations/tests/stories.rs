//! Short stories with virtual times: what happens when one thing goes wrong in a small network.

use protocol::ids::{JobId, RecordId};
use protocol::job::Failure;
use protocol::node::Node;
use protocol::price::Usage;
use protocol::prng::Prng;
use protocol::router::Gate;
use protocol::scheduler::Refusal;
use simulations::home::{Home, MODEL, PRICE, Setting, UNKNOWN_MODEL, spec};
use simulations::network::Conditions;
use simulations::play::run;
use simulations::scenario::read;
use simulations::world::{Fault, Outcome, Tracked, World};

fn home(providers: usize) -> Home {
    Home::joined(&Setting::small(42, providers), Conditions::CALM)
}

fn tracked(world: &World, job: JobId) -> &Tracked {
    &world.jobs[&job]
}

fn failure(world: &World, job: JobId) -> Option<&Failure> {
    match world.outcome(job)? {
        Outcome::Failed(failure, _) => Some(failure),
        Outcome::Done(_) | Outcome::OwnerGone => None,
    }
}

fn cost(tokens_in: u32, tokens_out: u32) -> u64 {
    let (tokens_in, tokens_out) = (u64::from(tokens_in), u64::from(tokens_out));
    PRICE.cost(&Usage { calls: 1, tokens_in, tokens_out, compute: 0 }).expect("small numbers")
}

#[test]
fn a_job_is_served_paid_and_settled() {
    let mut home = home(1);
    let job = home.submit(0, home.consumers[0], spec(MODEL, 400, 300, 100));

    home.does(job, 15_000);
    assert_eq!(tracked(&home.world, job).tokens, 201);
    home.settles();
    let consumer = home.world.node(home.consumers[0]).expect("runs").account();
    let fee = home.world.hosts[0].config.manifest.open_fee;
    assert_eq!(home.world.booked(consumer).available(), Setting::small(0, 1).credits - cost(110, 201) - fee);
}

#[test]
fn a_consumer_learns_of_a_killed_provider_within_seconds_and_loses_at_most_a_window() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    let job = home.submit(0, consumer, spec(MODEL, 400, 400, 255));
    assert!(
        home.world.run_until_so(15_000, |world| world.jobs.get(&job).is_some_and(|job| job.tokens >= 160))
    );

    home.world.fault_in(0, provider, Fault::Crash);
    let killed = home.world.now;
    assert!(home.world.run_until_so(2_500, |world| failure(world, job).is_some()), "not told by then");

    let told = &home.world.jobs[&job];
    let took = told.outcome.as_ref().map(|(at, _)| at.since_ms(killed));
    assert!(took.is_some_and(|ms| ms <= 2_500), "{took:?}");
    let delivered = told.tokens;
    let paid = home.world.channels(consumer)[0].paid;
    assert!(paid >= cost(110, delivered) && paid <= cost(110, delivered + delivered.max(64)), "{paid}");
    home.world.fault_in(0, provider, Fault::Restart);
    home.settles();
}

#[test]
fn a_provider_stops_for_a_killed_consumer_and_keeps_its_receipt() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    let job = home.submit(0, consumer, spec(MODEL, 400, 400, 255));
    assert!(
        home.world.run_until_so(15_000, |world| world.generated(provider, job).is_some_and(|n| n >= 160))
    );

    home.world.fault_in(0, consumer, Fault::Crash);
    assert!(
        home.world.run_until_so(2_000, |world| world.generated(provider, job).is_none()),
        "still generates"
    );
    let kept = home.world.channels(provider)[0];
    assert!(kept.paid >= cost(110, 160), "{kept:?}");

    home.world.fault_in(1_000, consumer, Fault::Restart);
    let next = home.submit(8_000, consumer, spec(MODEL, 400, 100, 255));
    home.does(next, 20_000);
    home.settles();
}

#[test]
fn a_model_that_nobody_serves_has_no_provider() {
    let mut home = home(1);
    let job = home.submit(0, home.consumers[0], spec(UNKNOWN_MODEL, 400, 100, 10));

    home.world.run_for(8_000);
    assert!(matches!(failure(&home.world, job), Some(Failure::NoProvider(_))));
    home.settles();
}

#[test]
fn a_job_beyond_ones_means_is_refused_by_name() {
    let setting = Setting { credits: 100_000, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let job = home.submit(0, home.consumers[0], spec(MODEL, 400, 300, 10));

    home.world.run_for(12_000);
    assert!(
        matches!(failure(&home.world, job), Some(Failure::NotEnoughCredits { available: 100_000, .. })),
        "{:?}",
        home.world.outcome(job)
    );
    home.settles();
}

#[test]
fn a_full_provider_is_passed_over_for_another() {
    let setting = Setting { slots: 1, ..Setting::small(42, 2) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let jobs: Vec<JobId> =
        (0..2).map(|n| home.submit(n * 800, home.consumers[0], spec(MODEL, 400, 400, 255))).collect();

    home.world.run_for(30_000);
    assert!(jobs.iter().all(|job| home.world.is_done(*job)));
    let served = |job: &JobId| tracked(&home.world, *job).provider;
    assert_ne!(served(&jobs[0]), served(&jobs[1]));
    home.settles();
}

#[test]
fn a_full_network_says_that_it_is_busy() {
    let setting = Setting { slots: 1, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    // 511 tokens at 40 to 99 a second.
    let long = home.submit(0, home.consumers[0], spec(MODEL, 400, 600, 255));
    assert!(home.world.run_until_so(15_000, |world| world.jobs.get(&long).is_some_and(|job| job.tokens > 0)));
    let refused = home.submit(0, home.consumers[0], spec(MODEL, 400, 400, 255));

    assert!(home.world.run_until_so(6_000, |world| failure(world, refused).is_some()));
    let Some(Failure::NoProvider(considered)) = failure(&home.world, refused) else {
        panic!("{:?}", home.world.outcome(refused));
    };
    assert!(matches!(considered[0].gate, Some(Gate::Refused(Refusal::Busy { .. }))), "{considered:?}");
    home.settles();
}

#[test]
fn sixteen_jobs_never_exceed_a_channel_with_room_for_one() {
    let worst = cost(400 + 512, 200);
    let setting = Setting { credits: worst * 3 / 2, slots: 16, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    let jobs: Vec<JobId> = (0..16).map(|_| home.submit(0, consumer, spec(MODEL, 400, 200, 255))).collect();

    for _ in 0..20_000 {
        home.world.run_for(1);
        let placed = home
            .world
            .node(consumer)
            .expect("runs")
            .jobs()
            .filter(|(_, job)| job.phase == "submitted" || job.phase == "running");
        assert!(placed.count() <= 1);
        assert!(home.world.node(provider).expect("runs").serving_count() <= 1);
        assert!(home.world.channels(consumer).iter().all(|channel| channel.paid <= channel.cap));
    }
    assert!(jobs.iter().all(|job| home.world.outcome(*job).is_some()));
    assert!(jobs.iter().any(|job| home.world.is_done(*job)));
    home.settles();
}

#[test]
fn sixteen_jobs_share_what_they_need_when_there_is_enough() {
    let setting = Setting { slots: 16, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let jobs: Vec<JobId> =
        (0..16).map(|_| home.submit(0, home.consumers[0], spec(MODEL, 400, 200, 255))).collect();

    home.world.run_for(30_000);
    let failed: Vec<_> = jobs.iter().filter(|job| !home.world.is_done(**job)).collect();
    assert!(failed.is_empty(), "{:?}", home.world.outcome(*failed[0]));
    home.settles();
}

#[test]
fn a_crashed_issuer_holds_nothing_up_that_is_open() {
    let mut home = home(2);
    let consumer = home.consumers[0];
    let first = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.does(first, 15_000);

    home.world.fault_in(0, 0, Fault::Crash);
    let second = home.submit(100, consumer, spec(MODEL, 400, 100, 255));
    home.does(second, 10_000);
    home.settles();
}

#[test]
fn a_lost_connection_costs_the_job_and_not_the_next_one() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    let job = home.submit(0, consumer, spec(MODEL, 400, 400, 255));
    assert!(
        home.world.run_until_so(15_000, |world| world.jobs.get(&job).is_some_and(|job| job.tokens >= 160))
    );

    home.world.fault_in(0, consumer, Fault::Cut(provider));
    assert!(home.world.run_until_so(2_500, |world| failure(world, job).is_some()));
    let next = home.submit(12_000, consumer, spec(MODEL, 400, 100, 255));
    home.does(next, 30_000);
    home.settles();
}

#[test]
fn arbitrary_bytes_change_nothing() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    home.world.dial(consumer, provider);
    home.world.run_for(1_000);
    home.world.hosts[consumer].adversary = true;
    let mut prng = Prng::new(7);
    for _ in 0..5_000 {
        let length = prng.below(200);
        let bytes = (0..length).map(|_| prng.next_u64().to_be_bytes()[0]).collect();
        home.world.bytes_in(prng.below(10_000), consumer, provider, bytes);
    }

    home.world.run_for(12_000);
    assert_eq!(home.world.findings, Vec::<String>::new());
    assert_eq!(home.world.node(provider).map(Node::serving_count), Some(0));
}

#[test]
fn one_seed_runs_in_one_way_and_holds() {
    let scenario = read("smoke").expect("it comes with the program");
    for seed in [7, 35, 281, 351, 1024] {
        let report = run(&scenario, seed);

        assert_eq!(report.findings, Vec::<String>::new(), "seed {seed}");
        assert_eq!(run(&scenario, seed).trace_hash, report.trace_hash, "seed {seed}");
    }
}

/// The receipts of a payee's open channels, and those that the others keep for it.
fn copies(world: &World, payee: usize) -> (Vec<RecordId>, Vec<Vec<RecordId>>) {
    let heads = world.channels(payee).iter().filter(|view| !view.paying).map(|view| view.head).collect();
    let id = world.hosts[payee].id;
    let kept = world.hosts.iter().filter_map(|host| host.node.as_ref()).map(|node| {
        node.kept_receipts().filter(|(whose, _)| *whose == id).map(|(_, receipt)| receipt.id()).collect()
    });
    (heads, kept.filter(|kept: &Vec<RecordId>| !kept.is_empty()).collect())
}

#[test]
fn mirrors_keep_the_newest_receipt_of_a_channel_until_it_is_over() {
    let setting = Setting { consumers: 5, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let provider = home.providers[0];
    for consumer in home.consumers.clone() {
        home.world.dial(consumer, provider);
    }
    for round in 0..2 {
        let job = home.submit(0, home.consumers[0], spec(MODEL, 400, 100, 255));
        home.does(job, 20_000);
        home.world.run_for(70_000);

        let (heads, kept) = copies(&home.world, provider);
        assert_eq!(heads.len(), 1, "round {round}");
        assert_eq!(kept, vec![heads.clone(); 3], "three mirrors, each with the newest receipt");
        let payer = home.world.node(home.consumers[0]).expect("runs");
        assert_eq!(payer.kept_receipts().count(), 0, "the payer is no mirror of its own channel");
    }

    home.settle();
    assert_eq!(copies(&home.world, provider), (Vec::new(), Vec::new()));
    home.settles();
}

#[test]
fn a_provider_that_lost_its_disk_gets_its_earnings_back_from_partner_and_mirrors() {
    let setting = Setting { consumers: 5, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let (provider, consumer) = (home.providers[0], home.consumers[0]);
    for consumer in home.consumers.clone() {
        home.world.dial(consumer, provider);
    }
    let job = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.does(job, 20_000);
    home.world.run_for(70_000);
    let before = home.world.channels(provider);

    home.world.fault_in(0, provider, Fault::LoseDisk);
    home.world.fault_in(3_000, provider, Fault::Restart);
    for consumer in home.consumers.clone() {
        home.world.run_for(1_000);
        home.world.dial(consumer, provider);
    }
    assert!(home.world.run_until_so(30_000, |world| world.hosts[provider].recovered.is_some()));
    assert_eq!(home.world.hosts[provider].recovered, Some((1, 0)));
    let after = home.world.channels(provider);
    assert_eq!((after[0].channel, after[0].head), (before[0].channel, before[0].head));
    home.settles();
}

#[test]
fn a_provider_that_lost_its_disk_is_given_its_earnings_by_mirrors_while_the_payer_is_away() {
    let setting = Setting { consumers: 5, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let (provider, consumer) = (home.providers[0], home.consumers[0]);
    for consumer in home.consumers.clone() {
        home.world.dial(consumer, provider);
    }
    // A first job, so that there is a channel; then the issuer is away, so that the second is not redeemed.
    let first = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.does(first, 20_000);
    home.world.run_for(70_000);
    home.world.fault_in(0, 0, Fault::Crash);
    let second = home.submit(100, consumer, spec(MODEL, 400, 100, 255));
    home.does(second, 20_000);
    home.world.run_for(70_000);
    let before = home.world.channels(provider);
    assert!(before[0].unredeemed > 0, "{before:?}");

    home.world.fault_in(0, provider, Fault::LoseDisk);
    home.world.fault_in(0, consumer, Fault::Crash);
    home.world.fault_in(1_000, 0, Fault::Restart);
    home.world.fault_in(3_000, provider, Fault::Restart);
    home.world.run_for(5_000);
    for consumer in home.consumers.clone() {
        home.world.dial(consumer, provider);
    }
    assert!(home.world.run_until_so(30_000, |world| world.hosts[provider].recovered.is_some()));
    assert_eq!(home.world.hosts[provider].recovered, Some((1, 0)));
    let given = home.world.hosts[provider].restored.clone();
    assert!(given.iter().all(|(by, ..)| *by != home.world.hosts[consumer].id), "the payer is away");
    assert_eq!(home.world.channels(provider)[0].head, before[0].head);

    // It serves again, and what it earned is paid out.
    let third = home.submit(1_000, home.consumers[1], spec(MODEL, 400, 100, 255));
    home.does(third, 30_000);
    home.world.run_for(10_000);
    let books = home.world.node(0).and_then(Node::books).expect("the issuer runs");
    let earned = before[0].paid.min(cost(110, 100) * 2);
    assert!(books.channel(before[0].channel).is_some_and(|(redeemed, _)| redeemed >= earned - 1), "{earned}");
    home.settles();
}

#[test]
fn a_consumer_that_lost_its_disk_signs_nothing_below_what_it_signed_before() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    let job = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.does(job, 20_000);
    home.world.run_for(5_000);
    let before = home.world.channels(consumer);

    home.world.fault_in(0, consumer, Fault::LoseDisk);
    home.world.fault_in(2_000, consumer, Fault::Restart);
    home.world.run_for(4_000);
    let too_early = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.world.run_for(100);
    assert!(matches!(failure(&home.world, too_early), Some(Failure::NotNow(_))), "it recovers");
    home.world.dial(consumer, provider);
    assert!(home.world.run_until_so(90_000, |world| world.hosts[consumer].recovered.is_some()));
    assert_eq!(home.world.hosts[consumer].recovered, Some((1, 0)));
    let after = home.world.channels(consumer);
    assert_eq!((after[0].channel, after[0].head), (before[0].channel, before[0].head));

    let next = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.does(next, 20_000);
    home.settles();
}

#[test]
fn a_node_that_recovers_waits_for_the_issuer_and_serves_nobody_meanwhile() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    let job = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.does(job, 20_000);
    home.world.run_for(70_000);
    home.world.fault_in(0, 0, Fault::Crash);
    home.world.fault_in(0, provider, Fault::LoseDisk);
    home.world.fault_in(2_000, provider, Fault::Restart);
    home.world.run_for(3_000);
    home.world.dial(consumer, provider);

    let refused = home.submit(1_000, consumer, spec(MODEL, 400, 100, 255));
    home.world.run_for(300_000);
    assert_eq!(home.world.hosts[provider].recovered, None);
    assert!(failure(&home.world, refused).is_some(), "{:?}", home.world.outcome(refused));
    assert_eq!(home.world.node(provider).map(Node::serving_count), Some(0));

    home.world.fault_in(0, 0, Fault::Restart);
    assert!(home.world.run_until_so(120_000, |world| world.hosts[provider].recovered.is_some()));
    home.settles();
}

#[test]
fn a_consumer_that_recovers_with_a_step_under_way_finishes_that_step() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    home.world.dial(consumer, provider);
    home.world.run_for(2_000);
    // It signs the opening of a channel and is killed before it hears that the issuer has taken it.
    home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    let signed = |world: &World| world.sent.contains_key("stepped");
    assert!(home.world.run_until_so(5_000, signed));
    assert!(home.world.channels(consumer).is_empty());
    home.world.fault_in(0, consumer, Fault::Crash);
    home.world.fault_in(1_000, consumer, Fault::Recover);
    home.world.run_for(2_000);
    home.world.dial(consumer, provider);

    assert!(home.world.run_until_so(120_000, |world| world.hosts[consumer].recovered.is_some()));
    assert_eq!(home.world.channels(consumer).len(), 1, "the channel that the issuer has open");
    home.settles();
}
