//! Dividing and pricing: exact, and the same however an amount came about.

use proptest::prelude::*;
use protocol::advert::Incentive;
use protocol::ids::RecordId;
use protocol::ledger::money::{QUANTUM, markup_within, most_with_markup, shares, waiting, with_markup};
use protocol::ledger::records::{Markup, Terms, TermsError};
use protocol::licence::open_licence;
use protocol::price::{Price, Usage};

use crate::common::{MODEL, account, domain, manifest, many_cases, terms, usage};

fn amounts() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![0..30_000_u64, 0..(1_u64 << 50)], 1..8).prop_map(|mut amounts| {
        amounts.sort_unstable();
        amounts
    })
}

fn work() -> impl Strategy<Value = Usage> {
    (0..3_u64, 0..(1_u64 << 24), 0..(1_u64 << 20))
        .prop_map(|(calls, tokens_in, tokens_out)| usage(calls, tokens_in, tokens_out))
}

proptest! {
    #![proptest_config(many_cases())]

    #[test]
    fn shares_and_what_waits_are_exactly_the_amount(amount in 0..(1_u64 << 50), markup in 0..3_000_u16) {
        let terms = terms(2, 1, Incentive::Rewards, markup);

        let paid: u64 = shares(&terms, 0, amount).unwrap().into_iter().map(|(_, share)| share).sum();
        prop_assert_eq!(paid + waiting(amount), with_markup(amount, markup).unwrap());
    }

    #[test]
    fn no_part_of_a_bill_costs_more_than_its_worst_case_with_the_markup(
        before in 0..(1_u64 << 50), part in 0..(1_u64 << 40), markup in 0..3_000_u16,
    ) {
        let whole = |base| with_markup(base, markup).unwrap();
        let most = most_with_markup(part, markup).unwrap();
        let cost = whole(before + part) - whole(before);
        prop_assert!(cost <= most && most - cost <= u64::from(markup));
        prop_assert_eq!(most - markup_within(most, markup), part);
    }

    #[test]
    fn shares_do_not_depend_on_the_steps(amounts in amounts(), markup in 0..3_000_u16) {
        let terms = terms(2, 1, Incentive::Rewards, markup);
        let last = *amounts.last().unwrap();
        let whole: Vec<u64> = shares(&terms, 0, last).unwrap().into_iter().map(|(_, share)| share).collect();

        let mut sums = vec![0; whole.len()];
        let mut before = 0;
        for amount in amounts {
            for (sum, (_, share)) in sums.iter_mut().zip(shares(&terms, before, amount).unwrap()) {
                *sum += share;
            }
            before = amount;
        }
        prop_assert_eq!(sums, whole);
    }

    #[test]
    fn no_share_falls_when_the_amount_rises(amount in 0..(1_u64 << 50), more in 0..(3 * QUANTUM)) {
        let terms = terms(2, 1, Incentive::Exchange, 250);
        let less = shares(&terms, 0, amount).unwrap();

        for ((_, before), (_, after)) in less.into_iter().zip(shares(&terms, 0, amount + more).unwrap()) {
            prop_assert!(after >= before);
        }
    }

    #[test]
    fn a_cost_does_not_depend_on_the_order_of_work(
        mut jobs in prop::collection::vec(work(), 1..12),
        price in (0..1_000_000_u64, 0..(1_u64 << 33), 0..(1_u64 << 33)),
    ) {
        let price = Price { call: price.0, input: price.1, output: price.2 };
        let sum = |jobs: &[Usage]| jobs.iter().fold(Usage::default(), |sum, job| sum.plus(job));
        let whole = price.cost(&sum(&jobs)).unwrap();

        let mut one_by_one = 0;
        let mut done = Usage::default();
        for job in &jobs {
            let before = price.cost(&done).unwrap();
            done = done.plus(job);
            one_by_one += price.cost(&done).unwrap() - before;
        }
        prop_assert_eq!(one_by_one, whole);
        jobs.reverse();
        prop_assert_eq!(price.cost(&sum(&jobs)).unwrap(), whole);
    }
}

#[test]
fn terms_that_divide_otherwise_than_the_network_does_are_refused() {
    let check = |change: fn(&mut Terms)| {
        let mut terms = Terms::clone(&terms(2, 1, Incentive::Exchange, 0));
        change(&mut terms);
        terms.check(&manifest(), open_licence(MODEL, domain()))
    };

    assert_eq!(check(|_| ()), Ok(()));
    assert_eq!(check(|terms| terms.incentive = Incentive::Rewards), Err(TermsError::Incentive));
    assert_eq!(check(|terms| terms.split[0].bps -= 1), Err(TermsError::Sum));
    assert_eq!(check(|terms| move_bps(terms, 2_201)), Err(TermsError::Floor));
    assert_eq!(check(|terms| move_bps(terms, 1)), Err(TermsError::Shares));
    assert_eq!(check(|terms| terms.split[1].account = account(9)), Err(TermsError::Shares));
    assert_eq!(check(|terms| terms.split[2].account = account(9)), Err(TermsError::Shares));
    assert_eq!(check(|terms| terms.split[0].account = account(9)), Err(TermsError::Payee));
    assert_eq!(check(|terms| terms.markup = Some(markup(3_000))), Ok(()));
    assert_eq!(check(|terms| terms.markup = Some(markup(3_001))), Err(TermsError::Markup));
    assert_eq!(check(|terms| terms.licence = RecordId::NONE), Err(TermsError::Licence));
}

/// Moves a part of the provider's share, which stands first, to the pool, which stands second.
fn move_bps(terms: &mut Terms, bps: u16) {
    terms.split[0].bps -= bps;
    terms.split[1].bps += bps;
}

fn markup(bps: u16) -> Markup {
    Markup { builder: account(9), bps }
}
