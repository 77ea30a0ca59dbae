//! Networks that are full: whoever asks hears it at once.

use protocol::job::Failure;
use simulations::home::{Home, MODEL, Setting, spec};
use simulations::network::Conditions;
use simulations::world::Outcome;

/// Jobs for every slot of the provider; the first one opens a channel that has room for more than all of them.
const FILLERS: [u32; 4] = [4_000, 500, 500, 500];

#[test]
fn a_full_network_whose_adverts_are_heard_says_so_at_once() {
    let mut home = Home::joined(&Setting::small(1, 1), Conditions::CALM);
    let consumer = home.consumers[0];
    home.world.run_for(60_000);
    for (tokens_max, ms) in FILLERS.into_iter().zip([0, 500, 500, 500]) {
        home.submit(ms, consumer, spec(MODEL, 100, tokens_max, u8::MAX));
    }
    home.world.run_for(1_000);
    // Whoever is refused first may still look for other providers.
    home.submit(0, consumer, spec(MODEL, 100, 10, u8::MAX));
    home.world.run_for(200);

    let job = home.submit(0, consumer, spec(MODEL, 100, 10, u8::MAX));
    home.world.run_for(1_000);

    let tracked = &home.world.jobs[&job];
    let Some((at, Outcome::Failed(Failure::NoProvider(_), None))) = &tracked.outcome else {
        panic!("the job should have been refused: {:?}", tracked.outcome);
    };
    assert!(!tracked.chosen.is_empty(), "it was not on a channel");
    assert!(at.since_ms(tracked.submitted) < 100, "refused after {} ms", at.since_ms(tracked.submitted));
}
