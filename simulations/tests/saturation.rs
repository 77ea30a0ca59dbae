//! Networks that are full: whoever asks hears it at once.

use protocol::job::Failure;
use simulations::network::Conditions;
use simulations::scenario::{Home, MODEL, Setting, spec};
use simulations::world::Outcome;

/// Slots of each simulated provider.
const SLOTS: usize = 4;

#[test]
fn a_full_network_whose_adverts_are_heard_says_so_at_once() {
    let mut home =
        Home::joined(&Setting { providers: 1, consumers: 1, ..Setting::smoke(1) }, Conditions::CALM);
    let consumer = home.consumers[0];
    for _ in 0..SLOTS {
        home.submit(0, consumer, spec(MODEL, 100, 4_000, u8::MAX));
    }
    home.world.run_for(3_000);
    // The first one looks for other providers, and finds none.
    home.submit(0, consumer, spec(MODEL, 100, 10, u8::MAX));
    home.world.run_for(6_000);

    let job = home.submit(0, consumer, spec(MODEL, 100, 10, u8::MAX));
    home.world.run_for(1_000);

    let tracked = &home.world.jobs[&job];
    let Some((at, Outcome::Failed(Failure::NoProvider(_), None))) = &tracked.outcome else {
        panic!("the job should have been refused: {:?}", tracked.outcome);
    };
    assert!(at.since_ms(tracked.submitted) < 500, "refused after {} ms", at.since_ms(tracked.submitted));
}
