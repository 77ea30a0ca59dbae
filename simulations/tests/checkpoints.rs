//! Epochs of seconds under losses, crashes and cuts: every node follows the checkpoints and finds its account in them.

use simulations::play::run;
use simulations::scenario::read;

#[test]
fn every_account_is_proved_in_the_last_checkpoint_whatever_happened_before() {
    let mut scenario = read("smoke").expect("it comes with the program");
    (scenario.network.epoch_s, scenario.minutes) = (40, 2);
    for seed in 1..=12 {
        let report = run(&scenario, seed);
        assert_eq!(report.findings, Vec::<String>::new(), "seed {seed}");
        assert!(report.figures.checkpoints >= 8, "{} checkpoints", report.figures.checkpoints);
        assert!(report.jobs.completed > 0, "nothing was done");
    }
}
