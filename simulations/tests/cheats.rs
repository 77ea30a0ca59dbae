//! Machines that cheat: honest ones lose at most a window to each, and agree on everything else.

use simulations::play::run;
use simulations::scenario::read;

#[test]
fn nobody_honest_loses_more_than_a_window_to_whoever_cheats() {
    let scenario = read("adversaries").expect("it comes with the program");
    for seed in [2, 3] {
        let report = run(&scenario, seed);
        assert_eq!(report.findings, Vec::<String>::new(), "seed {seed}");
        let group = |name: &str| {
            let found = report.figures.groups.iter().find(|group| group.name == name);
            found.unwrap_or_else(|| panic!("no group {name}"))
        };
        // What fits the first window is done before anybody can know, and how many jobs do is chance: that they get no more
        // for nothing is among the rules, in tokens and in credits.
        for rule in ["nothing_long_free", "losses_bounded"] {
            let checked = report.invariants.iter().find(|held| held.name == rule).map(|held| held.checks);
            assert!(checked > Some(0), "seed {seed}: {rule} was not checked");
        }
        assert!(group("non-payers").placed > 0, "seed {seed}");
        assert_eq!(group("non-deliverers").served_tokens, 0, "seed {seed}");
        let honest = group("consumers");
        assert!(honest.completed * 20 >= honest.placed * 19, "seed {seed}: {honest:?}");
    }
}

#[test]
fn what_honest_machines_pay_is_earned_by_honest_ones_among_four_times_as_many_that_deliver_nothing() {
    let scenario = read("sybil").expect("it comes with the program");
    let report = run(&scenario, 1);
    // Among them that almost all jobs are done.
    assert_eq!(report.findings, Vec::<String>::new());
    assert!(report.figures.groups.iter().any(|group| group.name == "sybils" && group.served_tokens == 0));
}
