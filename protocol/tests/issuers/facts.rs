//! An issuer that was away comes to hold every fact that another one lists, and asks only for what stays missing.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use protocol::ids::Digest;
use protocol::ledger::facts::{Cursor, FACTS_MAX, Facts, NAMES_MAX, WANTED_MAX};
use protocol::ledger::quorum::Fact;
use protocol::ledger::records::{Deposit, Epoch, Source};
use protocol::message::Checked;
use protocol::signed::{Role, sign};

use crate::network::{cases, domain, issuer_signer, payer};

fn fact(number: usize) -> Fact<Checked> {
    let mut reference = [0; 32];
    reference[..8].copy_from_slice(&number.to_be_bytes());
    let (reference, epoch, source) = (Digest(reference), Epoch(0), Source::Budget);
    let deposit = Deposit { reference, account: payer(), amount: 1, epoch, source };
    Fact::Deposit(sign(deposit, domain(), Role::Issuer, &issuer_signer(0)))
}

fn facts(numbers: impl IntoIterator<Item = usize>) -> Facts {
    let mut facts = Facts::default();
    numbers.into_iter().for_each(|number| facts.push(fact(number)));
    facts
}

/// The facts that histories are made of, signed once for all.
static SIGNED: LazyLock<Vec<Arc<Fact<Checked>>>> =
    LazyLock::new(|| (0..200).map(|number| Arc::new(fact(number))).collect());

fn signed(numbers: impl IntoIterator<Item = usize>) -> Facts {
    let mut facts = Facts::default();
    numbers.into_iter().for_each(|number| facts.push(SIGNED[number].clone()));
    facts
}

/// Asks once; returns how many facts were fetched.
fn follow(cursor: &mut Cursor, mine: &mut Facts, theirs: &Facts) -> usize {
    let (first, names) = theirs.since(cursor.next);
    let wanted = cursor.listed(first, &names, |name| mine.get(name).is_some());
    for name in &wanted {
        mine.push(theirs.get(name).expect("listed").clone());
    }
    wanted.len()
}

#[test]
fn what_is_missing_is_asked_for_when_it_is_missing_again_or_at_once_in_a_hurry() {
    let theirs = facts(0..3);
    let (mut patient, mut mine) = (Cursor::default(), facts([1]));
    assert_eq!([(); 3].map(|()| follow(&mut patient, &mut mine, &theirs)), [0, 2, 0]);
    assert_eq!(patient.next, 3);

    let (mut hurried, mut mine) = (Cursor::default(), facts([1]));
    hurried.hurry();
    assert_eq!([(); 2].map(|()| follow(&mut hurried, &mut mine, &theirs)), [2, 0]);
}

#[test]
fn a_fact_is_listed_once_and_the_oldest_make_room() {
    let mut facts = facts([7, 7]);
    assert_eq!(facts.since(0), (0, vec![fact(7).name()]));

    (0..FACTS_MAX).map(|number| number + 100).for_each(|number| facts.push(fact(number)));
    let (first, names) = facts.since(0);
    assert_eq!((first, names.len(), names[0]), (1, NAMES_MAX, fact(100).name()));
    assert!(facts.get(&fact(7).name()).is_none());
    assert_eq!(facts.since(u64::MAX), (1 + FACTS_MAX as u64, Vec::new()));
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn whoever_asks_again_and_again_comes_to_hold_everything(
        count in 0..200_usize,
        known in prop::collection::btree_set(0..200_usize, 0..100),
        hurries in any::<bool>(),
    ) {
        let theirs = signed(0..count);
        let (mut cursor, mut mine) = (Cursor::default(), signed(known));
        for _ in 0..2 * (count / WANTED_MAX + 2) {
            if hurries {
                cursor.hurry();
            }
            prop_assert!(follow(&mut cursor, &mut mine, &theirs) <= WANTED_MAX);
        }

        prop_assert_eq!(cursor.next, count as u64);
        prop_assert!((0..count).all(|number| mine.get(&SIGNED[number].name()).is_some()));
    }
}
