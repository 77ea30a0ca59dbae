//! Faults put into the protocol on purpose: each must be found by the test named beside it.
//!
//! A mutant is compiled in with `RUSTFLAGS='--cfg mutant="<name>"'`, never with a feature, so that no build of the product
//! can carry one. A run that passes with a mutant in it means that the test has stopped testing.

/// One deliberate fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutant {
    /// Value of the configuration key `mutant`.
    pub name: &'static str,
    /// Package whose test must fail.
    pub package: &'static str,
    /// The test, as `cargo test` filters by it.
    pub test: &'static str,
    /// What the fault is.
    pub fault: &'static str,
}

const fn mutant(name: &'static str, test: &'static str, fault: &'static str) -> Mutant {
    Mutant { name, package: "protocol", test, fault }
}

/// Every deliberate fault.
pub const MUTANTS: [Mutant; 14] = [
    mutant("merge-last-wins", "in_whatever_order", "the receipt that came last wins"),
    mutant("redeem-not-max", "what_is_redeemed_does_not_depend_on_the_order", "a lower redemption is taken"),
    mutant(
        "floor-and-remainder",
        "shares_do_not_depend_on_the_steps",
        "shares are rounded, the rest is the provider's",
    ),
    mutant("final-while-busy", "a_channel_ends_at_what_both_count", "a channel ends while a job runs on it"),
    mutant(
        "open-without-funds",
        "the_books_hold_what_was_deposited",
        "a channel is opened with what is not there",
    ),
    mutant("payee-believes-less", "a_payer_who_denies", "the payee takes over a count below its own"),
    mutant(
        "older-balance-counts",
        "a_slot_is_signed_again_only",
        "an older balance and slot replace newer ones",
    ),
    mutant(
        "serve-uncommitted",
        "a_channel_that_no_issuer_recorded",
        "a provider serves before the opening is committed",
    ),
    mutant(
        "serve-after-close",
        "a_closed_channel_shown_again",
        "a provider serves on a channel that is closed",
    ),
    mutant("replaced-key-signs", "a_rotation_and_a_spend", "a key that was replaced still signs steps"),
    mutant("rotate-unpromised", "a_rotation_and_a_spend", "a stolen key names any key as its successor"),
    mutant(
        "old-delegation-counts",
        "a_higher_version_replaces",
        "a delegation that was replaced still counts",
    ),
    mutant("revoked-device-spends", "a_node_without_the_right_to_spend", "rights are not looked at"),
    mutant("spend-beyond-budget", "another_node_of_the_account", "a node may escrow any amount"),
];
