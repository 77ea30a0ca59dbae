//! Reconciliation: both sides learn exactly what they do not share, whatever they hold, at a cost that is bounded.

use std::collections::BTreeSet;

use proptest::prelude::*;
use protocol::ids::{Digest, RecordId};
use protocol::ledger::reconcile::{RECONCILE_BYTES_MAX, ROUNDS_MAX, Session, Set, Step, answer, exchange};
use protocol::ledger::records::Epoch;

type Key = (Epoch, RecordId);

/// Ids that often share their beginning, so that bounds are needed in full. Their ends are as random as those of hashes:
/// fingerprints are sums. A record has one epoch only.
fn keys() -> impl Strategy<Value = BTreeSet<Key>> {
    let id = (any::<[u8; 32]>(), any::<bool>()).prop_map(|(mut id, shares)| {
        if shares {
            id[..16].fill(7);
        }
        id
    });
    let epoch = |id: [u8; 32]| if id[31] % 5 == 4 { u32::MAX } else { u32::from(id[31] % 5) };
    prop::collection::btree_set(id.prop_map(move |id| (Epoch(epoch(id)), RecordId(id))), 0..300)
}

fn ids<'a>(keys: impl Iterator<Item = &'a Key>) -> BTreeSet<RecordId> {
    keys.map(|(_, id)| *id).collect()
}

proptest! {
    #[test]
    fn afterwards_both_sides_hold_the_same(common in keys(), here in keys(), there in keys()) {
        let here: BTreeSet<Key> = common.union(&here).copied().collect();
        let there: BTreeSet<Key> = common.union(&there).copied().collect();
        let set: Set = there.iter().copied().collect();

        let found = exchange(here.iter().copied().collect(), &set).expect("honest sides find an end");
        prop_assert_eq!(found.differences.only_here, ids(here.difference(&there)));
        prop_assert_eq!(found.differences.only_there, ids(there.difference(&here)));
        prop_assert!(found.rounds <= ROUNDS_MAX);
    }

    #[test]
    fn nothing_that_a_peer_says_stops_us(said in prop::collection::vec(any::<u8>(), 0..600), keys in keys()) {
        let set: Set = keys.into_iter().collect();
        for said in [said.clone(), [vec![0x61], said].concat()] {
            if let Ok(answered) = answer(&set, &said) {
                prop_assert!(answered.len() <= RECONCILE_BYTES_MAX);
            }
            let (mut session, first) = Session::begin(set.clone()).expect("a whole set");
            prop_assert!(first.len() <= RECONCILE_BYTES_MAX);
            if let Ok(Step::Ask(next)) = session.on_answer(&said) {
                prop_assert!(next.len() <= RECONCILE_BYTES_MAX);
            }
        }
    }
}

fn key(epoch: u32, number: u32) -> Key {
    (Epoch(epoch), RecordId(Digest::of(&number.to_be_bytes()).0))
}

#[test]
fn every_message_is_bounded_when_two_sides_share_nothing() {
    let here: Set = (0..20_000).map(|number| key(0, number)).collect();
    let there: Set = (20_000..40_000).map(|number| key(0, number)).collect();
    let (mut session, mut question) = Session::begin(here).expect("a whole set");
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

/// Of `total` records the two sides differ in `differing`, half of them on each side; all of those are of the last epoch,
/// as after a partition, or of any.
fn cost(total: u32, differing: u32, scattered: bool) -> (u64, u32) {
    let epochs = 100;
    let differs = |number: u32| {
        if scattered { number.is_multiple_of(total / differing) } else { number >= total - differing }
    };
    let epoch = |number: u32| if !scattered && differs(number) { epochs } else { number % epochs };
    let side = |parity: u32| -> Set {
        let held = (0..total)
            .filter(|number| !differs(*number) || (number / (total / differing) + number) % 2 == parity);
        held.map(|number| key(epoch(number), number)).collect()
    };
    let exchanged = exchange(side(0), &side(1)).expect("an end");
    let found = exchanged.differences.only_here.len() + exchanged.differences.only_there.len();
    assert_eq!(found, differing as usize);
    (exchanged.bytes, exchanged.rounds)
}

/// A receipt with both signatures.
const RECEIPT_BYTES: u64 = 330;

#[test]
fn differences_of_one_epoch_cost_less_than_the_records_themselves() {
    for differing in [10, 100, 1000] {
        let (bytes, _) = cost(20_000, differing, false);
        assert!(bytes <= u64::from(differing) * RECEIPT_BYTES + 2 * 1024, "{differing}: {bytes}");
    }
}

#[test]
#[ignore = "measures: some seconds and 300 MB"]
fn a_million_records_are_compared() {
    for scattered in [false, true] {
        for differing in [10, 100, 1000] {
            let (bytes, rounds) = cost(1_000_000, differing, scattered);
            println!("scattered {scattered}, {differing} of 1,000,000: {bytes} bytes, {rounds} rounds");
        }
    }
}
