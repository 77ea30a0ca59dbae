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
        // What fits the first window is done before anybody can know.
        let unpaid = group("non-payers");
        assert!(unpaid.completed * 2 <= unpaid.placed, "seed {seed}: {unpaid:?}");
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
