//! Reconciliation: both sides learn exactly what they do not share, whatever they hold, at a cost that is bounded.

use std::collections::BTreeSet;

use proptest::prelude::*;
use protocol::ids::{Digest, RecordId};
use protocol::ledger::reconcile::{
    RECONCILE_BYTES_MAX, ROUNDS_MAX, Salt, Session, Set, Step, answer, exchange,
};

const SALT: Salt = Salt([5; 16]);

fn ids() -> impl Strategy<Value = BTreeSet<RecordId>> {
    prop::collection::btree_set(any::<[u8; 32]>().prop_map(RecordId), 0..300)
}

proptest! {
    #[test]
    fn afterwards_both_sides_hold_the_same(common in ids(), here in ids(), there in ids(), salt: [u8; 16]) {
        let here: BTreeSet<RecordId> = common.union(&here).copied().collect();
        let there: BTreeSet<RecordId> = common.union(&there).copied().collect();
        let set: Set = there.iter().copied().collect();

        let found = exchange(here.iter().copied().collect(), &set, Salt(salt));
        let found = found.expect("honest sides find an end");
        prop_assert_eq!(found.differences.only_here, here.difference(&there).copied().collect());
        prop_assert_eq!(found.differences.only_there, there.difference(&here).copied().collect());
        prop_assert!(found.rounds <= ROUNDS_MAX);
    }

    #[test]
    fn nothing_that_a_peer_says_stops_us(said in prop::collection::vec(any::<u8>(), 0..600), ids in ids()) {
        let set: Set = ids.into_iter().collect();
        // As it is, as questions and as answers of either kind.
        for said in [said.clone(), [vec![0], said.clone()].concat(), [vec![0, 16], said].concat()] {
            if let Ok(answered) = answer(&set, &said) {
                prop_assert!(answered.len() <= RECONCILE_BYTES_MAX);
            }
            let (mut session, first) = Session::begin(set.clone(), SALT);
            prop_assert!(first.len() <= RECONCILE_BYTES_MAX);
            if let Ok(Step::Ask(next)) = session.on_answer(&said) {
                prop_assert!(next.len() <= RECONCILE_BYTES_MAX);
            }
        }
    }
}

fn record(number: u32) -> RecordId {
    RecordId(Digest::of(&number.to_be_bytes()).0)
}

#[test]
fn every_message_is_bounded_when_two_sides_share_nothing() {
    let here: Set = (0..20_000).map(record).collect();
    let there: Set = (20_000..40_000).map(record).collect();
    let (mut session, mut question) = Session::begin(here, SALT);
    let found = loop {
        let answered = answer(&there, &question).expect("a question");
        assert!(question.len() <= RECONCILE_BYTES_MAX && answered.len() <= RECONCILE_BYTES_MAX);
        match session.on_answer(&answered).expect("an answer") {
            Step::Ask(next) => question = next,
            Step::Done(found) => break found,
        }
    };
    assert_eq!((found.only_here.len(), found.only_there.len()), (20_000, 20_000));
}

/// Of `total` records the two sides differ in `differing`, half of them on each side.
fn cost(total: u32, differing: u32, salt: Salt) -> (u64, u32) {
    let side = |parity: u32| -> Set {
        (0..total).filter(|number| *number >= differing || number % 2 == parity).map(record).collect()
    };
    let exchanged = exchange(side(0), &side(1), salt).expect("an end");
    let found = exchanged.differences.only_here.len() + exchanged.differences.only_there.len();
    assert_eq!(found, differing as usize);
    (exchanged.bytes, exchanged.rounds)
}

#[test]
fn comparing_costs_a_few_bytes_for_each_difference_and_none_for_what_is_shared() {
    for (differing, most) in [(0, 250), (1, 300), (10, 1_200), (100, 6_000), (1000, 55_000)] {
        for seed in 0..10 {
            let (bytes, _) = cost(5_000, differing, Salt([seed; 16]));
            assert!(bytes <= most, "{differing}: {bytes}");
        }
    }
}

#[test]
fn two_sets_that_are_the_same_take_one_question() {
    assert_eq!(cost(5_000, 0, SALT).1, 1);
}

#[test]
#[ignore = "measures: some seconds and 300 MB"]
fn a_million_records_are_compared() {
    for differing in [10, 100, 1000] {
        let (bytes, rounds) = cost(1_000_000, differing, SALT);
        println!("{differing} of 1,000,000: {bytes} bytes, {rounds} rounds");
    }
}
