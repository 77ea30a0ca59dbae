//! Disks that are lost, one after another: what was on them comes back from whoever has it.

use simulations::play::run;
use simulations::scenario::read;

/// In each of these somebody asked a partner that was recovering itself, or that too many asked at once.
#[test]
fn what_a_partner_could_not_give_back_at_first_is_asked_for_again() {
    let scenario = read("disk-loss").expect("it comes with the program");
    for seed in [1, 6, 7] {
        assert_eq!(run(&scenario, seed).findings, Vec::<String>::new(), "seed {seed}");
    }
}
