//! Deposits from outside: three of four operators make one, a lying issuer makes none, and a reference has only one.

use proptest::prelude::*;
use protocol::ids::Digest;
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::outside::from_outside;
use protocol::ledger::quorum::is_agreed;
use protocol::ledger::records::{Deposit, Epoch, Source};
use protocol::signed::Verified;

use crate::network::{DEPOSIT, HONEST, Honest, cases, issuer_signer, lie, manifest, payer};

const REFERENCE: Digest = Digest([9; 32]);

fn paid(amount: u64, epoch: u32) -> Deposit {
    from_outside(REFERENCE, payer(), amount, Epoch(epoch))
}

fn issuers() -> [Honest; HONEST] {
    [0, 1, 2].map(Honest::new)
}

/// An operator types a deposit in.
fn vouch(issuer: &mut Honest, deposit: Deposit) -> Result<(), IssuerError> {
    let record = issuer.witness.vouch(deposit)?;
    issuer.write(record);
    Ok(())
}

/// An issuer hears what another one says, and books it when a quorum has signed.
fn hear(issuer: &mut Honest, by: usize, deposit: &Verified<Deposit>) {
    if !is_agreed(deposit, &manifest()) {
        issuer.witness.hear_outside(issuer_signer(by).public(), deposit);
    }
    enter(issuer, Some(deposit.clone()));
    let gathered = issuer.witness.outside(REFERENCE);
    enter(issuer, gathered);
}

fn enter(issuer: &mut Honest, deposit: Option<Verified<Deposit>>) {
    if let Some(deposit) = deposit.filter(|deposit| is_agreed(deposit, &manifest())) {
        let record = issuer.witness.enter(&deposit).unwrap_or_default();
        issuer.write(record);
    }
}

/// What an issuer says of the reference: its signature and those that it knows, or what it has booked.
fn said(issuer: &Honest) -> Option<Verified<Deposit>> {
    let mut booked = issuer.witness.facts.since(0).1.into_iter().filter_map(|name| {
        let protocol::ledger::quorum::Fact::Deposit(deposit) = issuer.witness.facts.get(&name)? else {
            return None;
        };
        (deposit.reference == REFERENCE).then(|| deposit.clone())
    });
    issuer.witness.outside(REFERENCE).or_else(|| booked.next_back())
}

fn booked(issuer: &Honest) -> Option<u64> {
    issuer.witness.books.deposit_of(REFERENCE).map(|(_, amount)| amount)
}

/// Everybody hears everybody, until nothing is left to say.
fn meet(issuers: &mut [Honest; HONEST]) {
    for _ in 0..4 {
        for by in 0..HONEST {
            let Some(deposit) = said(&issuers[by]) else { continue };
            (0..HONEST).filter(|to| *to != by).for_each(|to| hear(&mut issuers[to], by, &deposit));
        }
    }
}

#[test]
fn three_operators_make_a_deposit_in_whatever_epoch_each_says_so() {
    let mut issuers = issuers();
    vouch(&mut issuers[0], paid(500, 7)).expect("nothing in its way");
    vouch(&mut issuers[1], paid(500, 5)).expect("nothing in its way");
    meet(&mut issuers);
    assert_eq!(issuers.each_ref().map(booked), [None; HONEST]);
    let progress = issuers[0].witness.progress(REFERENCE).expect("waits");
    assert_eq!((progress.signed, progress.others), (2, 0));

    vouch(&mut issuers[2], paid(500, 9)).expect("nothing in its way");
    meet(&mut issuers);
    assert_eq!(issuers.each_ref().map(booked), [Some(500); HONEST]);
    assert_eq!(vouch(&mut issuers[0], paid(500, 9)), Ok(()), "the same again");
    assert_eq!(issuers[0].witness.books.deposited(), u128::from(DEPOSIT) + 500);
    assert_eq!(issuers[0].witness.progress(REFERENCE), None);
}

#[test]
fn an_operator_signs_one_deposit_for_a_reference_and_a_crash_does_not_make_it_forget() {
    let mut issuers = issuers();
    vouch(&mut issuers[0], paid(500, 7)).expect("nothing in its way");
    issuers[0].crash(0);
    assert_eq!(vouch(&mut issuers[0], paid(501, 7)), Err(IssuerError::OtherDeposit { amount: 500 }));

    for operator in [1, 2] {
        vouch(&mut issuers[operator], paid(501, 7)).expect("nothing in its way");
    }
    meet(&mut issuers);
    assert_eq!(issuers.each_ref().map(booked), [None; HONEST]);
    assert_eq!(issuers[0].witness.progress(REFERENCE).map(|progress| progress.others), Some(2));
}

#[test]
fn a_reference_of_the_budget_is_not_one_of_a_payment_and_the_other_way_round() {
    let [mut first, mut second, _] = issuers();
    let gift = lie(Deposit { source: Source::Budget, ..paid(500, 0) });
    let (_, record) = first.witness.endorse(&gift, issuer_signer(HONEST).public()).expect("its part");
    first.write(record);
    assert_eq!(vouch(&mut first, paid(500, 0)), Err(IssuerError::SlotLocked));

    vouch(&mut second, paid(500, 0)).expect("nothing in its way");
    second.crash(1);
    let endorsed = second.witness.endorse(&gift, issuer_signer(HONEST).public());
    assert_eq!(endorsed.map(|_| ()), Err(IssuerError::SlotLocked));
}

#[test]
fn what_operators_have_seen_is_not_limited_by_the_budget() {
    let mut issuers = issuers();
    let amount = manifest().grant_budget + 1;
    issuers.iter_mut().for_each(|issuer| vouch(issuer, paid(amount, 0)).expect("nothing in its way"));
    meet(&mut issuers);
    assert_eq!(issuers.each_ref().map(booked), [Some(amount); HONEST]);
    assert_eq!(issuers[0].witness.books.budget_left(), manifest().grant_budget - DEPOSIT);
}

#[derive(Debug, Clone)]
enum Event {
    /// An operator types a deposit in: the right amount, or a slip.
    Vouch {
        operator: usize,
        amount: u64,
        epoch: u32,
    },
    /// What one says reaches another one.
    Hear {
        by: usize,
        to: usize,
    },
    /// The liar signs whatever it likes, with all signatures that it was told.
    Lie {
        to: usize,
        amount: u64,
        epoch: u32,
    },
    Crash(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let (amount, epoch) = (500..503_u64, 0..4_u32);
    prop_oneof![
        2 => (0..HONEST, amount.clone(), epoch.clone())
            .prop_map(|(operator, amount, epoch)| Event::Vouch { operator, amount, epoch }),
        4 => (0..HONEST, 0..HONEST).prop_map(|(by, to)| Event::Hear { by, to }),
        3 => (0..HONEST, amount, epoch).prop_map(|(to, amount, epoch)| Event::Lie { to, amount, epoch }),
        1 => (0..HONEST).prop_map(Event::Crash),
    ]
}

/// The liar's deposit, with the signatures of all honest issuers that have ever signed just that.
fn lies(told: &[Verified<Deposit>], amount: u64, epoch: u32) -> Verified<Deposit> {
    let all = |_, _| true;
    told.iter().fold(lie(paid(amount, epoch)), |lie, told| lie.with_signatures_of(told, all))
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn only_what_two_honest_operators_have_seen_enters_and_all_books_agree(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut issuers = issuers();
        let mut seen = [None; HONEST];
        let mut told = Vec::new();
        for event in events {
            match event {
                Event::Vouch { operator, amount, epoch } => {
                    if vouch(&mut issuers[operator], paid(amount, epoch)).is_ok() && booked(&issuers[operator]).is_none() {
                        prop_assert!(seen[operator].is_none_or(|seen| seen == amount));
                        seen[operator] = Some(amount);
                    }
                }
                Event::Hear { by, to } => {
                    let deposit = said(&issuers[by]).filter(|_| by != to);
                    deposit.iter().for_each(|deposit| hear(&mut issuers[to], by, deposit));
                }
                Event::Lie { to, amount, epoch } => {
                    hear(&mut issuers[to], HONEST, &lies(&told, amount, epoch));
                }
                Event::Crash(place) => issuers[place].crash(place),
            }
            told.extend(issuers.iter().filter_map(said));
            let entered: Vec<u64> = issuers.iter().filter_map(booked).collect();
            for amount in &entered {
                let by = seen.iter().filter(|seen| **seen == Some(*amount)).count();
                prop_assert!(by >= 2, "{amount} entered, which {by} honest operators have seen");
                prop_assert_eq!(*amount, entered[0]);
            }
            for issuer in &issuers {
                let all = u128::from(DEPOSIT + booked(issuer).unwrap_or(0));
                prop_assert!(issuer.witness.books.is_conserved() && issuer.witness.books.deposited() == all);
            }
        }

        meet(&mut issuers);
        if seen.iter().all(|one| one.is_some() && *one == seen[0]) {
            prop_assert_eq!(issuers.each_ref().map(booked), [seen[0]; HONEST]);
        }
    }
}
