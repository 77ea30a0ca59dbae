//! Disks that are lost, one after another: what was on them comes back from whoever has it.

use simulations::home::{Home, MODEL, Setting, spec};
use simulations::network::Conditions;
use simulations::play::run;
use simulations::scenario::read;
use simulations::world::Fault;

/// In each of these somebody asked a partner that was recovering itself, or that too many asked at once.
#[test]
fn what_a_partner_could_not_give_back_at_first_is_asked_for_again() {
    let scenario = read("disk-loss").expect("it comes with the program");
    for seed in [1, 6, 7] {
        assert_eq!(run(&scenario, seed).findings, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn what_was_missing_after_a_recovery_is_asked_for_after_a_restart_too() {
    let mut home = Home::joined(&Setting::small(42, 1), Conditions::CALM);
    let (consumer, provider) = (home.consumers[0], home.providers[0]);
    let job = home.submit(0, consumer, spec(MODEL, 400, 100, 255));
    home.does(job, 20_000);
    home.world.run_for(5_000);
    let before = home.world.channels(consumer);

    // Nobody is there who could give the channel back.
    home.world.fault_in(0, provider, Fault::Crash);
    home.world.fault_in(0, consumer, Fault::LoseDisk);
    home.world.fault_in(2_000, consumer, Fault::Restart);
    assert!(home.world.run_until_so(120_000, |world| world.hosts[consumer].recovered.is_some()));
    assert_eq!(home.world.hosts[consumer].recovered, Some((0, 1)));

    home.world.fault_in(0, consumer, Fault::Crash);
    home.world.fault_in(1_000, consumer, Fault::Restart);
    home.world.fault_in(5_000, provider, Fault::Restart);
    home.world.run_for(30_000);
    let given: Vec<_> =
        home.world.hosts[consumer].restored.iter().map(|(_, channel, paid)| (*channel, *paid)).collect();
    assert_eq!(
        given,
        [(before[0].channel, Some(before[0].paid))],
        "it dials whom it pays, and is given back the channel"
    );
    home.settles();
}
