//! Partners that do not keep to the rules, or whose clock is wrong: who loses what at most.

use protocol::ids::{ChannelId, JobId};
use protocol::node::{Node, OwnerCommand};
use protocol::price::Usage;
use simulations::checks;
use simulations::home::{Home, MODEL, PRICE, Setting, spec};
use simulations::network::Conditions;
use simulations::world::{Fault, World};

fn home(issuers: usize) -> Home {
    let setting = Setting { issuers, epoch_ms: 10 * 60_000, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    home.world.run_for(15_000);
    home
}

fn cost(calls: u64, tokens_in: u64, tokens_out: u64) -> u64 {
    PRICE.cost(&Usage { calls, tokens_in, tokens_out, compute: 0 }).expect("small numbers")
}

fn redeemed(home: &Home, channel: ChannelId) -> Option<(u64, bool)> {
    home.world.books().next().and_then(|(_, books)| books.channel(channel))
}

#[track_caller]
fn settles(home: &mut Home) {
    home.heal(60_000);
    home.settle();
    assert_eq!(checks::findings(checks::WHEN_SETTLED, &home.world), Vec::<String>::new());
    assert_eq!(home.world.findings, Vec::<String>::new());
}

/// The payer's signature is the payment, so the payer need not wait for the other; nor can it be made to pay more.
#[test]
fn a_payee_that_never_co_signs_gets_what_it_delivered_and_the_payer_its_cap_after_grace() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    home.world.hosts[provider].adversary = true;
    home.world.hosts[provider].silent = ["co_signed", "close", "heads"].into();

    let tokens = home.does_a_job();
    let view = home.world.channels(consumer)[0];
    assert_eq!(view.paid, cost(1, 110, tokens), "the payer has signed for what it got");

    let over = |world: &World| {
        world.books().next().and_then(|(_, books)| books.channel(view.channel)).is_none_or(|(_, over)| over)
    };
    // Silent for two epochs, then one to the channel's end, and grace: and not the seven epochs for which it was opened.
    assert!(home.world.run_until_so(8 * 10 * 60_000, over), "the channel is not over");
    let (paid, _) = redeemed(&home, view.channel).expect("not yet forgotten");
    assert_eq!(paid, cost(1, 110, tokens), "what was delivered, not a token more");
    home.world.run_for(60_000);
    let payer = home.world.node(consumer).expect("runs");
    let fees = home.world.hosts[0].config.manifest.open_fee;
    let credits = Setting::small(0, 1).credits;
    assert_eq!((payer.balance().held, payer.balance().available()), (0, credits - paid - fees));
    assert!(home.world.node(0).and_then(Node::books).is_some_and(|books| books.is_conserved()));
}

/// Sets clocks while a job runs, lets jobs come over two ends of epochs, sets them right, and returns how many jobs were
/// done meanwhile. Who is off is cut out of new work at most: adverts of another time are not believed.
#[track_caller]
fn jobs_done_while_off(issuers: usize, host: usize, ms: i64) -> usize {
    let mut home = home(issuers);
    home.does_a_job();
    let running = home.submit(0, home.consumers[0], spec(MODEL, 400, 400, 255));
    assert!(
        home.world.run_until_so(15_000, |world| world.jobs.get(&running).is_some_and(|job| job.tokens > 100))
    );
    home.world.hosts[host].clock_ms = ms;
    let jobs = (0..30).map(|_| {
        let job = home.submit(0, home.consumers[0], spec(MODEL, 400, 100, 255));
        home.world.run_for(40_000);
        job
    });
    let jobs: Vec<JobId> = jobs.collect();
    let done = jobs.iter().filter(|job| home.world.is_done(**job)).count();

    home.world.hosts[host].clock_ms = 0;
    home.world.run_for(4 * 60_000);
    home.does_a_job();
    settles(&mut home);
    done
}

#[test]
fn an_issuer_whose_clock_is_two_minutes_off_costs_nobody_a_job_or_a_credit() {
    for (issuers, host) in [(1, 0), (4, 0), (4, 2)] {
        for ms in [120_000, -120_000] {
            assert_eq!(jobs_done_while_off(issuers, host, ms), 30, "issuer {host} of {issuers}, {ms} ms");
        }
    }
}

#[test]
fn a_member_whose_clock_is_two_minutes_off_finds_less_work_and_costs_nobody_a_credit() {
    for issuers in [1, 4] {
        for host in [issuers, issuers + 1] {
            for ms in [120_000, -120_000] {
                let done = jobs_done_while_off(issuers, host, ms);
                assert!(done < 30, "host {host}, {ms} ms: {done} jobs");
            }
        }
    }
}

#[test]
fn a_member_whose_clock_is_off_is_told_by_how_much_until_it_is_right() {
    for (issuers, ms) in [(1, 120_000), (1, -120_000), (4, 20_000), (4, -20_000)] {
        let mut home = home(issuers);
        let host = home.consumers[0];
        let off = |home: &Home| home.world.node(host).expect("runs").clock_off_ms();
        home.world.run_for(60_000);
        assert_eq!(off(&home), None);

        home.world.hosts[host].clock_ms = ms;
        home.world.fault_in(0, host, Fault::Crash);
        home.world.fault_in(1_000, host, Fault::Restart);
        home.world.run_for(10_000);
        let ahead = off(&home).expect("it is told");
        assert!((ahead + ms).unsigned_abs() < 1_000, "{ahead} for {ms}");

        home.world.hosts[host].clock_ms = 0;
        // A clock that was ahead stands still until the time it showed.
        home.world.run_for(3 * 60_000);
        assert_eq!(off(&home), None, "{issuers} issuers, {ms} ms");
    }
}

/// Sets some clocks ahead, takes other hosts down, starts `host` again, and returns by how much it then thinks that it is
/// off.
fn off_after(ahead: &[usize], down: &[usize], host: impl Fn(&Home) -> usize) -> Option<i64> {
    let mut home = home(4);
    let host = host(&home);
    for ahead in ahead {
        home.world.hosts[*ahead].clock_ms = 120_000;
    }
    for down in down {
        home.world.fault_in(0, *down, Fault::Crash);
    }
    home.world.fault_in(0, host, Fault::Crash);
    home.world.fault_in(1_000, host, Fault::Restart);
    home.world.run_for(10_000);
    home.world.node(host).expect("runs").clock_off_ms()
}

#[test]
fn a_member_believes_what_a_quorum_of_issuers_says_of_the_time_and_no_fewer() {
    let member = |home: &Home| home.consumers[0];
    assert_eq!(off_after(&[0, 1], &[2, 3], member), None, "two of four");
    assert_eq!(off_after(&[0], &[3], member), None, "one of three lies");
    let ahead = off_after(&[0, 1, 2], &[3], member).expect("three of four agree");
    assert!(ahead.abs_diff(120_000) < 1_000, "{ahead}");
}

#[test]
fn an_issuer_is_told_that_its_clock_is_off_while_another_is_down() {
    let ahead = off_after(&[0], &[3], |_| 0).expect("two others and itself are a quorum");
    assert!(ahead.abs_diff(-120_000) < 1_000, "{ahead}");
}

/// Puts in place of a member's journal one from before a channel ended, another was opened, and jobs were paid on it.
fn with_an_old_journal(issuers: usize, host: usize, starts: Fault) -> Home {
    let mut home = home(issuers);
    home.does_a_job();
    let lines = home.world.lines(host);
    home.world.command_in(0, home.consumers[0], OwnerCommand::Settle);
    home.world.run_for(30_000);
    home.does_a_job();
    home.does_a_job();
    home.world.run_for(30_000);
    assert!(home.world.lines(host) > lines);

    home.world.fault_in(0, host, Fault::OldCopy(lines));
    home.world.fault_in(3_000, host, starts);
    home.world.run_for(5_000);
    home.world.dial(home.consumers[0], home.providers[0]);
    home.world.run_for(90_000);
    home
}

/// Nobody has signed two steps for one place, or anything else that would be held against it.
#[track_caller]
fn nobody_forked(home: &Home) {
    let nodes = home.world.hosts.iter().filter_map(|host| host.node.as_ref());
    assert_eq!(nodes.map(|node| node.books_view().equivocations.len()).sum::<usize>(), 0);
    assert!(home.world.hosts.iter().all(|host| host.penalties.is_empty()));
}

#[test]
fn a_member_that_recovers_from_a_backup_signs_nothing_twice_and_loses_nothing() {
    for issuers in [1, 4] {
        for host in [issuers, issuers + 1] {
            let mut home = with_an_old_journal(issuers, host, Fault::Recover);
            nobody_forked(&home);
            home.does_a_job();
            home.heal(60_000);
            home.settle();
            let mut findings = checks::findings(checks::WHEN_SETTLED, &home.world);
            // Of a channel that has ended meanwhile no history comes back.
            findings.retain(|finding| !finding.starts_with("the statements"));
            assert_eq!(findings, Vec::<String>::new());
        }
    }
}

/// Its channels of the time after the backup are over with expiry and grace.
#[test]
fn a_member_that_does_not_know_that_it_starts_from_a_backup_costs_its_partner_nothing() {
    let fees = |home: &Home, channels: u64| channels * home.world.hosts[0].config.manifest.open_fee;
    for issuers in [1, 4] {
        for host in [issuers, issuers + 1] {
            let mut home = with_an_old_journal(issuers, host, Fault::Restart);
            nobody_forked(&home);
            home.does_a_job();
            home.heal(60_000);
            home.settle();
            home.world.run_for(12 * 10 * 60_000);
            let consumer = home.consumers[0];
            let balance = home.world.node(consumer).expect("runs").balance();
            let spent = Setting::small(0, 1).credits - balance.available();
            let jobs = 4 * cost(1, 110, 100);
            assert!(spent <= jobs + fees(&home, 3), "the consumer spent {spent}");
            // What the provider had not redeemed before, and forgot, is its own loss.
            assert!(host != consumer || spent >= jobs - 4, "the provider was paid {spent}");
            assert_eq!(balance.held, 0);
            assert_eq!(home.world.findings, Vec::<String>::new());
        }
    }
}

#[test]
fn a_payee_that_was_away_when_its_channel_ended_learns_what_it_was_paid_at_the_end() {
    let mut home = home(1);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    let job = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.does(job, 20_000);
    home.world.run_for(70_000);
    let channel = home.world.channels(provider)[0].channel;
    assert!(redeemed(&home, channel).is_some_and(|(amount, closed)| amount > 0 && !closed));

    // Its payer gives up waiting for it to agree to an end, and the issuer ends the channel after its grace.
    home.world.fault_in(0, provider, Fault::Crash);
    let is_closed = |world: &World| {
        world.books().next().and_then(|(_, books)| books.channel(channel)).is_some_and(|(_, closed)| closed)
    };
    assert!(home.world.run_until_so(120 * 60_000, is_closed));
    home.world.fault_in(0, provider, Fault::Restart);
    home.world.run_for(80 * 60_000);
    assert_eq!(home.world.channels(provider), []);
    settles(&mut home);
}
