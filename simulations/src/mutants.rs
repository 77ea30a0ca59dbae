//! Faults put into the protocol on purpose: each must be found by the test, or in the scenario, named beside it.
//!
//! `cargo xtask mutants` compiles the tests once with `--cfg mutants`, never with a feature, so that no build of the product
//! can carry one, and names one fault after the other in the environment. A test that passes with its mutant has stopped
//! testing.

/// One deliberate fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutant {
    /// What `SHAREMESH_MUTANT` is set to.
    pub name: &'static str,
    /// Package whose test must fail.
    pub package: &'static str,
    /// Where in the package the test is.
    pub target: Target,
    /// The test, by its full path.
    pub test: &'static str,
    /// What the fault is.
    pub fault: &'static str,
}

/// What is compiled to run a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The package's own tests, at the foot of its files.
    Lib,
    /// A folder in `tests`.
    Test(&'static str),
}

const fn mutant(name: &'static str, test: &'static str, fault: &'static str) -> Mutant {
    Mutant { name, package: "protocol", target: Target::Test("it"), test, fault }
}

const fn in_lib(name: &'static str, test: &'static str, fault: &'static str) -> Mutant {
    Mutant { target: Target::Lib, ..mutant(name, test, fault) }
}

const fn in_model(name: &'static str, test: &'static str, fault: &'static str) -> Mutant {
    Mutant { target: Target::Test("models"), ..mutant(name, test, fault) }
}

const fn among_issuers(name: &'static str, test: &'static str, fault: &'static str) -> Mutant {
    Mutant { target: Target::Test("issuers"), ..mutant(name, test, fault) }
}

const fn in_pruned_network(name: &'static str, fault: &'static str) -> Mutant {
    let test = "a_node_knows_the_same_from_a_pruned_journal";
    in_story("pruning", name, test, fault)
}

const fn in_story(
    target: &'static str,
    name: &'static str,
    test: &'static str,
    fault: &'static str,
) -> Mutant {
    Mutant { package: "simulations", target: Target::Test(target), ..mutant(name, test, fault) }
}

/// Every deliberate fault.
pub const MUTANTS: [Mutant; 100] = [
    among_issuers(
        "paid-outshown",
        "counting::what_an_issuer_has_paid_is_paid_after_a_checkpoint_though_it_was_shown_more",
        "an issuer forgets what it has paid when it was shown more and follows a checkpoint that states neither",
    ),
    in_lib(
        "down-at-work",
        "node::tests::a_provider_that_lost_one_job_of_two_and_goes_on_with_the_other_is_asked_by_a_third",
        "who lost one job of many is left alone though it does the others",
    ),
    in_lib(
        "channel-of-another-builder",
        "node::channels::tests::a_job_uses_no_channel_that_pays_another_builder",
        "a job is paid on a channel that pays another builder, or none",
    ),
    in_lib(
        "price-max-without-markup",
        "node::channels::tests::a_job_uses_no_channel_that_pays_another_builder",
        "what a job may cost does not count the builder's markup",
    ),
    in_lib(
        "markup-of-the-provider",
        "node::tests::an_offer_with_another_markup_than_the_job_has_is_turned_down",
        "a payer takes terms with a markup that it did not ask for",
    ),
    in_lib(
        "vectors-read-whole",
        "price::tests::texts_of_which_no_vectors_were_made_are_not_read",
        "who breaks off after one vector is paid for reading all texts",
    ),
    in_lib(
        "merkle-sums-only-total",
        "ledger::merkle::tests::sums_cannot_be_moved_between_the_children_of_a_node",
        "a node of a tree commits to the total of its children only",
    ),
    mutant(
        "merge-last-wins",
        "channel::a_payee_ends_with_the_same_receipt_in_whatever_order",
        "the receipt that came last wins",
    ),
    mutant(
        "redeem-not-max",
        "issuer::what_is_redeemed_does_not_depend_on_the_order",
        "a lower redemption is taken",
    ),
    mutant(
        "floor-and-remainder",
        "money::shares_do_not_depend_on_the_steps",
        "shares are rounded, the rest is the provider's",
    ),
    mutant(
        "final-while-busy",
        "channel::a_channel_ends_at_what_both_count_or_what_was_paid_out",
        "a channel ends while a job runs on it",
    ),
    mutant(
        "open-without-funds",
        "issuer::the_books_hold_what_was_deposited_after_every_step",
        "a channel is opened with what is not there",
    ),
    mutant(
        "payee-believes-less",
        "channel::a_payer_who_denies_what_was_delivered_has_no_more_for_it",
        "the payee takes over a count below its own",
    ),
    mutant(
        "older-balance-counts",
        "wallet::what_is_older_than_what_is_known_of_an_account_changes_nothing",
        "an older balance and slot replace newer ones",
    ),
    mutant(
        "serve-uncommitted",
        "provider::a_channel_that_no_issuer_recorded_is_not_served_on",
        "a provider serves before the opening is committed",
    ),
    mutant(
        "serve-after-close",
        "provider::a_closed_channel_shown_again_is_not_served_on",
        "a provider serves on a channel that is closed",
    ),
    in_pruned_network("prune-in-grace", "the lines of a channel go while its grace lasts"),
    in_pruned_network("prune-last-step", "the line of the step signed last goes"),
    in_pruned_network(
        "forward-what-is-audited",
        "an issuer drops lines that led to checkpoints which it still serves",
    ),
    in_pruned_network(
        "forward-without-used-tickets",
        "an issuer that prunes forgets which tickets were used",
    ),
    mutant(
        "forward-without-references",
        "issuer::books_brought_forward_take_and_refuse_what_the_books_did",
        "an issuer that prunes forgets under which references deposits were booked",
    ),
    in_lib(
        "refusal-not-kept",
        "node::tests::orders::an_owner_is_told_of_a_refusal_only_when_a_restart_makes_nothing_of_the_step",
        "an owner is told that a step is refused, and a restart sends it again",
    ),
    in_story(
        "disks",
        "missing-not-kept",
        "what_was_missing_after_a_recovery_is_asked_for_after_a_restart_too",
        "a restart forgets which channels nobody had given back",
    ),
    in_story(
        "partners",
        "ends-not-asked",
        "a_payee_that_was_away_when_its_channel_ended_learns_what_it_was_paid_at_the_end",
        "a payee does not ask what was paid when a channel ended without it",
    ),
    in_lib(
        "lenient-signatures",
        "keys::tests::a_key_of_small_order_verifies_nothing",
        "signatures are checked by the lenient equation",
    ),
    in_model(
        "no-grace",
        "ending::a_channel_ends_right_in_every_order_of_events",
        "a channel ends with its last epoch, without grace",
    ),
    in_model(
        "final-below-due",
        "ending::a_channel_ends_right_in_every_order_of_events",
        "the payee signs an end below what it earned",
    ),
    mutant(
        "grant-unpaid",
        "channel::a_payer_who_denies_what_was_delivered_has_no_more_for_it",
        "a payee generates what no receipt covers",
    ),
    in_model(
        "window-ahead-of-delivery",
        "streaming::payment_keeps_up_with_a_stream_whatever_is_lost",
        "a payer signs the largest window from the first token on",
    ),
    in_model(
        "restart-without-doubt",
        "streaming::a_payer_that_forgets_its_newest_receipts_goes_on_or_closes",
        "a payer that was restarted begins jobs whatever the payee counts",
    ),
    mutant(
        "issuer-answers-before-disk",
        "durable::an_issuer_still_knows_after_a_crash_what_it_has_answered",
        "an issuer acknowledges what is not on its disk",
    ),
    mutant(
        "final-before-disk",
        "durable::a_payee_still_knows_after_a_crash_which_end_it_has_signed",
        "a payee's signature under an end leaves before it is on its disk",
    ),
    mutant(
        "replaced-key-signs",
        "account::a_rotation_and_a_spend_never_share_a_slot_and_no_old_key_spends",
        "a key that was replaced still signs steps",
    ),
    mutant(
        "rotate-unpromised",
        "account::a_rotation_and_a_spend_never_share_a_slot_and_no_old_key_spends",
        "any key may take the place of the one in force",
    ),
    in_lib(
        "old-delegation-counts",
        "node::tests::accounts::a_higher_version_replaces_a_delegation_and_a_lower_one_brings_it_not_back",
        "a delegation that was replaced still counts",
    ),
    in_lib(
        "revoked-device-spends",
        "node::tests::accounts::a_node_without_the_right_to_spend_gets_no_job_done_for_its_account",
        "the rights of a delegation are not looked at",
    ),
    in_lib(
        "spend-beyond-budget",
        "node::tests::accounts::another_node_of_the_account_gets_channels_within_its_budget",
        "a node may have any amount escrowed",
    ),
    mutant(
        "serve-after-recovery",
        "provider::a_channel_that_ended_before_a_lost_disk_is_not_served_on_when_the_issuers_have_forgotten_it",
        "a provider serves on a channel that ended before it lost its disk",
    ),
    in_lib(
        "serve-below-redeemed",
        "ledger::paid::tests::a_channel_takes_no_job_while_the_receipt_of_what_was_paid_out_is_lacking",
        "a payee works again for what was paid out to it before it lost its disk",
    ),
    among_issuers(
        "quorum-of-two",
        "slots::no_slot_has_two_steps_whoever_crashes_and_whatever_one_issuer_says",
        "two issuers of four are a quorum",
    ),
    among_issuers(
        "vote-before-disk",
        "slots::no_slot_has_two_steps_whoever_crashes_and_whatever_one_issuer_says",
        "an issuer's vote leaves before the lock of the slot is on its disk",
    ),
    among_issuers(
        "close-without-quorum",
        "closing::only_a_quorum_ends_a_channel_and_no_acknowledged_redemption_is_lost",
        "one issuer's vote ends a channel",
    ),
    among_issuers(
        "end-undone",
        "closing::no_checkpoint_undoes_an_end_that_a_quorum_recorded_and_no_end_what_a_checkpoint_states",
        "an issuer that has ended a channel lets a checkpoint pay more on it",
    ),
    among_issuers(
        "paid-unfrozen",
        "closing::no_checkpoint_undoes_an_end_that_a_quorum_recorded_and_no_end_what_a_checkpoint_states",
        "an issuer ends a channel below what a checkpoint would state that it has prepared",
    ),
    among_issuers(
        "end-below-stated",
        "ends::no_channel_ends_below_what_a_checkpoint_states_so_that_no_payment_is_undone",
        "old promises end a channel below what a checkpoint has stated since",
    ),
    among_issuers(
        "uncontested",
        "ends::a_checkpoint_that_pays_beyond_an_end_is_not_prepared_and_the_next_proposal_states_the_end",
        "an issuer proposes again and again what another one has to object to",
    ),
    among_issuers(
        "gifts-unlimited",
        "deposits::a_proposer_makes_so_many_deposits_before_a_checkpoint_and_none_of_nothing",
        "one issuer has the others sign deposits without end",
    ),
    among_issuers(
        "vouch-twice",
        "outside::an_operator_signs_one_deposit_for_a_reference_and_a_crash_does_not_make_it_forget",
        "an issuer signs two deposits for one reference",
    ),
    among_issuers(
        "serve-at-votes",
        "answers::votes_alone_commit_nothing_and_three_recordings_do",
        "an opening counts as committed when it is voted for",
    ),
    in_model(
        "vote-twice",
        "rotating::a_rotation_and_spends_share_one_sequence_in_every_order",
        "an issuer votes for two steps in one slot",
    ),
    in_model(
        "recorded-before-disk",
        "rotating::a_rotation_and_spends_share_one_sequence_in_every_order",
        "an issuer's word that it recorded a step leaves before the step is on its disk",
    ),
    in_model(
        "rotate-at-vote",
        "rotating::a_rotation_and_spends_share_one_sequence_in_every_order",
        "a vote for a rotation replaces the key already",
    ),
    in_model(
        "two-devices-sign",
        "devices::one_wallet_node_signs_for_all_nodes_of_its_owner_and_no_slot_is_stuck",
        "two nodes of one owner sign steps of their account",
    ),
    in_model(
        "unlock-drops-recorded",
        "succession::a_slot_holds_one_step_over_a_checkpoint_and_a_change_of_issuers",
        "a checkpoint that gives slots back leaves out what some have recorded",
    ),
    in_model(
        "count-votes-over-checkpoint",
        "succession::a_slot_holds_one_step_over_a_checkpoint_and_a_change_of_issuers",
        "a step counts at its votes while a checkpoint may give its slot back",
    ),
    in_model(
        "take-after-report",
        "succession::a_slot_holds_one_step_over_a_checkpoint_and_a_change_of_issuers",
        "an issuer goes on taking steps after it has reported for a checkpoint",
    ),
    in_model(
        "successor-without-quorum",
        "succession::a_slot_holds_one_step_over_a_checkpoint_and_a_change_of_issuers",
        "new issuers go by a checkpoint that one of the old ones signed",
    ),
    in_lib(
        "empty-signature",
        "signed::tests::a_record_without_a_signature_or_with_an_empty_one_is_not_read",
        "an empty signature passes",
    ),
    mutant(
        "mirror-keeps-half-signed",
        "mirror::nothing_is_kept_without_proof",
        "a mirror keeps a receipt that its payer alone signed",
    ),
    among_issuers(
        "older-view-counts",
        "answers::what_an_issuer_says_late_does_not_replace_what_it_said_since",
        "what an issuer said of an account earlier replaces what it said since",
    ),
    among_issuers(
        "head-unvouched",
        "answers::a_head_counts_when_more_issuers_name_it_in_its_slot_than_may_lie",
        "one liar invents the head of an account for its owner",
    ),
    in_lib(
        "any-head-frees",
        "ledger::wallet::tests::a_step_is_given_up_when_a_checkpoint_has_freed_its_slot_and_for_no_other_head",
        "an owner gives a step up for any other head in its slot",
    ),
    in_lib(
        "vouched-head-stands",
        "node::tests::committing::a_step_is_not_left_for_a_head_that_no_quorum_names",
        "an owner leaves its step for one that an issuer behind a checkpoint and a liar say took its slot",
    ),
    in_lib(
        "freed-forgotten",
        "node::tests::committing::a_step_whose_slot_a_checkpoint_has_freed_is_left_when_more_issuers_say_so_than_may_lie",
        "an owner goes back behind a head that a checkpoint has left, because issuers that are behind say so",
    ),
    among_issuers(
        "recorded-unheld",
        "settling::an_issuer_that_holds_a_dropped_step_does_not_say_that_it_has_recorded_the_one_that_has_its_slot",
        "an issuer says that it has recorded a step while it holds another one in its slot",
    ),
    in_story(
        "payouts",
        "unsettled-paid",
        "only_the_operator_whose_turn_it_is_marks_a_withdrawal_and_all_come_to_know",
        "an operator pays a withdrawal that no checkpoint states",
    ),
    among_issuers(
        "freed-head-kept",
        "settling::no_step_from_before_its_slot_was_freed_is_voted_for_or_recorded_again",
        "steps from before a slot was freed may be voted for in it again",
    ),
    among_issuers(
        "freed-unstated",
        "settling::a_slot_is_freed_by_a_checkpoint_that_states_its_two_steps_and_by_no_other",
        "an issuer's books free a slot when they follow a checkpoint that does not state the two steps in it",
    ),
    in_lib(
        "missing-not-paged",
        "node::recovery::tests::whoever_holds_more_of_what_is_missing_than_one_answer_takes_is_asked_for_the_rest",
        "of what is missing after a recovery only what fits one answer is given back",
    ),
    in_lib(
        "missing-deaf",
        "node::recovery::tests::what_an_issuer_says_of_a_missing_channel_is_kept_and_counts",
        "what issuers say of a channel that nobody has given back is dropped",
    ),
    in_lib(
        "recovery-held-up",
        "node::recovery::tests::nobody_holds_up_a_recovery_for_longer_than_ten_minutes_by_giving_back_a_little_now_and_then",
        "a recovery goes on as long as anybody gives something back",
    ),
    in_lib(
        "ends-not-in-turn",
        "node::channels::tests::every_end_that_is_not_known_is_asked_for_in_turn",
        "only the ends of the same few channels are asked for",
    ),
    in_lib(
        "refused-unaccounted",
        "node::tests::a_provider_that_takes_back_what_it_began_is_paid_for_what_came_and_the_job_is_accounted_for",
        "tokens that came are not accounted for when their provider refuses the job afterwards",
    ),
    among_issuers(
        "lapse-early",
        "settling::a_checkpoint_gives_the_slot_back_of_a_step_that_too_few_voted_for_while_its_epoch_lasted",
        "a checkpoint gives the slot back of a step that may still be voted for",
    ),
    in_story(
        "quorum",
        "void-vote-refuses",
        "a_step_that_too_few_voted_for_while_its_epoch_lasted_is_given_up_and_its_account_goes_on",
        "an owner gives a step up for which a quorum votes, because a liar's vote does not count",
    ),
    in_story(
        "quorum",
        "no-lapse",
        "a_step_that_too_few_voted_for_while_its_epoch_lasted_is_given_up_and_its_account_goes_on",
        "a step that got too few votes while its epoch lasted is under way for ever",
    ),
    among_issuers(
        "lock-behind-lost",
        "settling::a_vote_stands_though_the_step_before_it_waits",
        "an issuer forgets for which step it voted when the step before it cannot be taken any more",
    ),
    among_issuers(
        "rounds-alone",
        "agreement::whoever_is_ahead_waits_for_a_quorum_and_then_a_whole_round",
        "an issuer goes through rounds in which it is alone",
    ),
    among_issuers(
        "lock-not-kept",
        "agreement::four_issuers_never_agree_on_two_checkpoints_whoever_crashes_and_whatever_one_says",
        "an issuer prepares another checkpoint than the one on which it is locked",
    ),
    among_issuers(
        "commit-unprepared",
        "agreement::nothing_is_committed_before_a_quorum_has_prepared_it",
        "an issuer commits what only itself and one other have prepared",
    ),
    among_issuers(
        "unlock-recorded",
        "settling::a_checkpoint_that_would_free_a_slot_with_a_recorded_step_is_not_prepared",
        "an issuer lets a checkpoint free a slot of which it has recorded a step",
    ),
    among_issuers(
        "stale-votes-count",
        "settling::what_issuers_voted_for_while_a_checkpoint_was_agreed_on_counts_for_nothing_once_it_has_freed_the_slot",
        "votes from before a checkpoint that freed their slot count in it if they are of a later epoch",
    ),
    among_issuers(
        "counts-own-payment",
        "counting::no_step_is_certified_by_what_three_issuers_have_paid_one_each",
        "an issuer that judges a step counts what it alone has paid",
    ),
    among_issuers(
        "counted-by-few",
        "counting::only_issuers_words_on_one_channel_count_and_each_issuer_once",
        "what one issuer acknowledges counts everywhere",
    ),
    among_issuers(
        "counted-forgotten",
        "counting::what_counts_is_there_after_a_restart_and_what_an_old_journal_does_not_say_waits_for_a_checkpoint",
        "an issuer forgets in a restart and at a checkpoint what a quorum has paid",
    ),
    among_issuers(
        "buckets-apart",
        "counting::what_does_not_count_is_spent_by_no_step_whichever_bucket_it_takes",
        "earnings that do not count pay for work, and the cash that they save for a payment",
    ),
    among_issuers(
        "promise-outpaid",
        "counting::an_issuer_pays_no_more_than_it_has_promised_after_a_checkpoint_either",
        "after a checkpoint an issuer pays beyond an end that it has promised",
    ),
    among_issuers(
        "promise-unparked",
        "counting::what_an_issuer_has_paid_and_promised_stands_when_an_opening_had_to_wait_after_a_checkpoint",
        "an issuer forgets what end it has promised while the opening of the channel waits",
    ),
    among_issuers(
        "paid-unparked",
        "counting::what_an_issuer_has_paid_and_promised_stands_when_an_opening_had_to_wait_after_a_checkpoint",
        "an issuer forgets what it has paid while the opening of the channel waits",
    ),
    in_lib(
        "uncounted-refuses",
        "node::tests::committing::a_step_that_issuers_do_not_count_credits_for_yet_is_kept_and_asked_for_again",
        "a step is given up that waits for nothing but more issuers to pay what it spends",
    ),
    in_story(
        "quorum",
        "proof-said-once",
        "what_a_provider_earned_counts_at_every_issuer_though_one_was_down_and_the_provider_started_again",
        "a payee shows once what a quorum has paid, whoever was away",
    ),
    among_issuers(
        "steps-unlimited",
        "allowance::one_account_makes_so_many_steps_before_a_checkpoint_and_stops_nobody_but_itself",
        "an account makes as many steps between two checkpoints as it pays for",
    ),
    in_story(
        "agreement",
        "ballot-before-disk",
        "four_issuers_agree_on_every_epoch_and_everybody_finds_its_account",
        "an issuer's vote for a checkpoint leaves before it is on its disk",
    ),
    mutant(
        "rewards-opened",
        "issuer::no_channel_turns_what_was_earned_into_cash",
        "a channel is opened on terms by which what its payer earned becomes cash",
    ),
    in_lib(
        "payees-unawaited",
        "ledger::issuer::tests::whom_an_open_channel_pays_has_a_place_in_full_books",
        "a channel brings more accounts into the books than a checkpoint may state",
    ),
    in_lib(
        "deposits-without-room",
        "ledger::issuer::tests::payments_and_channels_leave_room_for_deposits",
        "payments fill the books, so that nobody new can be given anything",
    ),
    in_lib(
        "withdrawals-unjudged",
        "node::tests::issuers::an_issuer_that_has_no_room_for_a_withdrawal_votes_for_none_and_blames_nobody",
        "an issuer votes for a withdrawal that it has no room to record",
    ),
    in_lib(
        "full-news-drops-new",
        "node::notices::tests::payments_to_nobody_take_no_room_from_deposits_and_ends_nor_from_later_payments",
        "when much news waits nobody hears of anything new",
    ),
    in_lib(
        "silent-co-signer",
        "node::channels::tests::a_payer_ends_a_channel_alone_whose_payee_never_signs_its_last_receipt",
        "a payer waits for a receipt's second signature until the channel's own end",
    ),
    in_lib(
        "silence-forgotten",
        "node::channels::tests::a_payer_that_is_switched_off_each_night_gives_a_silent_payee_up_too",
        "a payer that is started again begins to wait for its payee anew",
    ),
];

/// One deliberate fault that a scenario must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hunted {
    /// What `SHAREMESH_MUTANT` is set to.
    pub name: &'static str,
    /// Scenario that comes with the program.
    pub scenario: &'static str,
    /// Seed of it with which the fault is found, and without it everything holds.
    pub seed: u64,
    /// A rule that is broken then.
    pub rule: &'static str,
    /// What the fault is.
    pub fault: &'static str,
}

const fn hunted(
    name: &'static str,
    scenario: &'static str,
    seed: u64,
    rule: &'static str,
    fault: &'static str,
) -> Hunted {
    Hunted { name, scenario, seed, rule, fault }
}

/// Every deliberate fault that a scenario must find.
pub const HUNTED: [Hunted; 14] = [
    hunted("no-resend", "smoke", 1, "channels_closed", "what was not acknowledged is not sent again"),
    hunted("advert-unverified", "poison", 1, "offers_true", "the signature of an advert is not checked"),
    hunted(
        "issuer-answers-before-disk",
        "churn",
        30,
        "statements_explain",
        "an issuer acknowledges what is not on its disk",
    ),
    hunted("redeem-not-max", "churn", 1, "books_follow", "a lower redemption is taken"),
    hunted("self-offer", "poison", 1, "no_self_offer", "a node takes its own advert for another's"),
    hunted(
        "no-ageing",
        "home",
        2,
        "served_when_healed",
        "a provider that failed once is left alone for good",
    ),
    hunted(
        "double-redeem",
        "churn",
        1,
        "books_follow",
        "what was paid out is paid out again when shown again",
    ),
    hunted("ignore-expiry", "poison", 1, "asked_serves", "an advert that has ended counts"),
    hunted(
        "final-below-due",
        "haggle",
        1,
        "losses_bounded",
        "a payee signs the end of a channel below what it earned",
    ),
    hunted("slots-unlimited", "overload", 1, "queues_bounded", "a provider takes jobs without a free slot"),
    hunted("trust-directory", "poison", 1, "dials_bounded", "whoever the directory names is dialled"),
    hunted("no-grace", "churn", 1, "books_follow", "a channel ends with its last epoch, without grace"),
    hunted("quorum-of-two", "issuer-failure", 1, "honest_unpenalised", "two issuers of four are a quorum"),
    hunted(
        "floor-and-remainder",
        "churn",
        1,
        "books_follow",
        "shares are rounded, the rest is the provider's",
    ),
];
