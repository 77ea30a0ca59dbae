//! Epochs of seconds under losses, crashes and cuts: every node follows the checkpoints and finds its account in them.

use simulations::scenario::{Setting, run};

#[test]
fn every_account_is_proved_in_the_last_checkpoint_whatever_happened_before() {
    for seed in 1..=12 {
        let setting = Setting { epoch_ms: 40_000, jobs: 10, trouble_ms: 120_000, ..Setting::smoke(seed) };
        let report = run(&setting, None);
        assert_eq!(report.findings, Vec::<String>::new(), "{}", setting.reproduce());
        assert!(report.checkpoints >= 8, "{} checkpoints", report.checkpoints);
        assert!(report.jobs.1 > 0, "nothing was done");
    }
}
