//! The two sides of a channel: merging needs no order, and neither side can be made to lose more than a window.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::advert::Incentive;
use protocol::ids::{ChannelId, JobId, NodeId};
use protocol::job::{Finish, JobRecord};
use protocol::ledger::paid::{Grant, Paid, PaidError};
use protocol::ledger::paying::{Paying, WINDOW_MIN};
use protocol::ledger::records::{Epoch, Final, Receipt};
use protocol::price::{Reading, Usage, Worst};
use protocol::signed::{Role, Verified, sign};
use protocol::time::Time;

use crate::common::{
    MODEL, PRICE, account, cases, digest, domain, payee_signer, payer_signer, signer, terms, usage,
};

const CHANNEL: ChannelId = ChannelId([9; 32]);

const CAP: u64 = 100_000_000;

fn paid() -> Paid {
    let payer = (NodeId::from(signer(1).public()), account(1), payer_signer(1).public());
    Paid::new(terms(2, 1, Incentive::Exchange, 0), payer, CAP, (payee_signer(2), domain()))
}

fn paying() -> Paying {
    Paying::new(CHANNEL, terms(2, 1, Incentive::Exchange, 0), CAP, payer_signer(1))
}

fn receipt(sequence: u64, amount: u64, usage: Usage) -> Verified<Receipt> {
    let receipt = Receipt { channel: CHANNEL, sequence, amount, usage, jobs: digest(0), epoch: Epoch(0) };
    sign(receipt, domain(), Role::Payer, &payer_signer(1))
}

fn job(tag: u8) -> JobId {
    JobId([tag; 16])
}

fn record(tag: u8, usage: Usage, finish: Finish) -> JobRecord {
    JobRecord {
        job: job(tag),
        channel: Some(CHANNEL),
        provider: signer(2).public().into(),
        requester: signer(1).public().into(),
        model: MODEL,
        usage,
        price: PRICE,
        start: Time(0),
        end: Time(1),
        input: digest(1),
        output: digest(2),
        finish,
    }
}

fn receipts() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    prop::collection::vec((1..6_u64, 0..5_000_u64, 0..50_u64), 1..8)
}

/// What a payer, honest or not, can do to a payee.
#[derive(Debug, Clone)]
enum Move {
    Begin { job: u8, prompt: u64, most: u64 },
    Prepared { job: u8, tokens: u32 },
    Pay { sequence: u64, amount: u64, calls: u64, tokens_in: u64, tokens_out: u64 },
    Ask { job: u8, up_to: u32 },
    End { job: u8, part: u32, lost: bool },
}

fn a_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => (0..5_u8, 0..2_000_u64, 1..2_000_u64)
            .prop_map(|(job, prompt, most)| Move::Begin { job, prompt, most }),
        3 => (0..5_u8, 0..2_000_u32).prop_map(|(job, tokens)| Move::Prepared { job, tokens }),
        3 => (0..20_u64, 0..8_000_000_u64, 0..10_u64, 0..5_000_u64, 0..5_000_u64).prop_map(
            |(sequence, amount, calls, tokens_in, tokens_out)| Move::Pay {
                sequence,
                amount,
                calls,
                tokens_in,
                tokens_out
            }
        ),
        4 => (0..5_u8, 0..3_000_u32).prop_map(|(job, up_to)| Move::Ask { job, up_to }),
        3 => (0..5_u8, 0..=100_u32, any::<bool>()).prop_map(|(job, part, lost)| Move::End { job, part, lost }),
    ]
}

/// What the payee has really let happen, counted apart.
#[derive(Debug, Clone, Copy)]
struct Running {
    worst: Worst,
    tokens_in: Option<u32>,
    granted: u32,
}

impl Running {
    fn usage(&self) -> Usage {
        let tokens_in = self.tokens_in.map_or(0, u64::from);
        self.worst.usage_of(tokens_in, u64::from(self.granted).min(self.worst.usage.tokens_out))
    }
}

fn cost(usage: &Usage) -> u64 {
    PRICE.cost(usage).expect("small numbers")
}

/// Plays moves against a payee, and checks after each that work is ahead of payment by no more than first windows.
fn play(moves: &[Move]) -> Result<(), TestCaseError> {
    let mut paid = paid();
    let mut running: BTreeMap<u8, Running> = BTreeMap::new();
    let mut done = Usage::default();
    for each in moves {
        match *each {
            Move::Begin { job: tag, prompt, most } => {
                let usage = usage(1, prompt + 512, most);
                let reading = if tag.is_multiple_of(2) { Reading::Whole } else { Reading::ByPart };
                let worst = Worst { usage, reading };
                if running.contains_key(&tag) || paid.is_disputed() || !paid.fits(&usage) {
                    continue;
                }
                let granted = paid.begin(job(tag), worst);
                running.insert(tag, Running { worst, tokens_in: None, granted });
            }
            Move::Prepared { job: tag, tokens } => {
                if let Some(flight) = running.get_mut(&tag).filter(|flight| flight.tokens_in.is_none()) {
                    let tokens = tokens.min(u32::try_from(flight.worst.usage.tokens_in).expect("small"));
                    paid.prepared(job(tag), tokens);
                    flight.tokens_in = Some(tokens);
                }
            }
            Move::Pay { sequence, amount, calls, tokens_in, tokens_out } => {
                let before = paid.paid();
                let _ = paid.receive(&receipt(sequence, amount, usage(calls, tokens_in, tokens_out)));
                prop_assert!(paid.paid() >= before);
            }
            Move::Ask { job: tag, up_to } => {
                if let (Grant::Raised(up_to), Some(flight)) =
                    (paid.grant(job(tag), up_to), running.get_mut(&tag))
                {
                    prop_assert!(up_to > flight.granted && u64::from(up_to) <= flight.worst.usage.tokens_out);
                    flight.granted = up_to;
                }
            }
            Move::End { job: tag, part, lost } => {
                let Some(flight) = running.remove(&tag) else { continue };
                let most = u64::from(flight.granted).min(flight.worst.usage.tokens_out);
                let tokens_out = most * u64::from(part) / 100;
                let finish = if lost { Finish::Lost } else { Finish::Stop };
                let tokens_in = flight.tokens_in.map_or(0, u64::from);
                let used = flight.worst.usage_of(tokens_in, tokens_out);
                if flight.tokens_in.is_none() || (flight.granted == 0 && !lost) {
                    paid.abandon(job(tag));
                } else {
                    paid.end(&record(tag, used, finish));
                    done = done.plus(&used);
                }
                if let Some((next, window)) = paid.pass_first_window() {
                    let flight = running.iter_mut().find(|(tag, _)| job(**tag) == next).expect("runs").1;
                    flight.granted = window;
                }
            }
        }
        let all = running.values().fold(done, |sum, flight| sum.plus(&flight.usage()));
        // One first window with its prompt, and one that was lost unpaid while other jobs ran.
        let window = usage(1, 2_512, u64::from(WINDOW_MIN));
        let unpaid = window.plus(&window);
        prop_assert!(cost(&all) <= paid.paid() + cost(&unpaid), "{all:?} for {}", paid.paid());
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_payee_is_never_ahead_by_more_than_first_windows(moves in prop::collection::vec(a_move(), 1..60)) {
        play(&moves)?;
    }

    #[test]
    fn a_payee_ends_with_the_same_receipt_in_whatever_order(
        numbers in receipts(), rotation in 0..8_usize, repeats in any::<bool>(),
    ) {
        let mut all: Vec<_> =
            numbers.iter().map(|(sequence, amount, out)| receipt(*sequence, *amount, usage(1, 0, *out))).collect();
        let head = |receipts: &[Verified<Receipt>]| {
            let mut paid = paid();
            for receipt in receipts {
                let before = paid.paid();
                paid.receive(receipt).expect("the payer's, below the cap");
                assert!(paid.paid() >= before);
                assert_eq!(paid.receive(receipt), Ok(None), "repeating changes nothing");
            }
            paid.head_id(CHANNEL)
        };
        let before = head(&all);
        let length = all.len();
        all.rotate_left(rotation % length);
        if repeats {
            all.extend_from_within(..);
        }
        prop_assert_eq!(head(&all), before);
        all.reverse();
        prop_assert_eq!(head(&all), before);
    }

    #[test]
    fn a_payer_ends_with_the_same_receipt_in_whatever_order(numbers in receipts(), rotation in 0..8_usize) {
        let mut all: Vec<_> = numbers
            .iter()
            .map(|(sequence, amount, out)| {
                receipt(*sequence, *amount, usage(1, 0, *out)).signed_also_by(domain(), Role::Payee, &payee_signer(2))
            })
            .collect();
        let head = |receipts: &[Verified<Receipt>]| {
            let mut paying = paying();
            for receipt in receipts {
                let before = paying.paid();
                paying.adopt(receipt);
                assert!(paying.paid() >= before);
                assert!(!paying.adopt(receipt), "repeating changes nothing");
            }
            paying.head().map(Verified::id)
        };
        let before = head(&all);
        let length = all.len();
        all.rotate_left(rotation % length);
        prop_assert_eq!(head(&all), before);
        all.reverse();
        prop_assert_eq!(head(&all), before);
    }

    #[test]
    fn merging_in_two_parts_is_merging_at_once(numbers in receipts(), split in 0..8_usize) {
        let all: Vec<_> =
            numbers.iter().map(|(sequence, amount, out)| receipt(*sequence, *amount, usage(1, 0, *out))).collect();
        let (one, other) = all.split_at(split % all.len());
        let merge = |receipts: &[Verified<Receipt>]| {
            let mut paid = paid();
            for receipt in receipts {
                paid.receive(receipt).expect("the payer's, below the cap");
            }
            paid.head(CHANNEL)
        };
        let parts: Vec<_> = [merge(one), merge(other)].into_iter().flatten().collect();
        prop_assert_eq!(merge(&parts).map(|head| head.id()), merge(&all).map(|head| head.id()));
    }

    #[test]
    fn a_payer_signs_at_most_one_window_ahead(
        steps in prop::collection::vec((1..200_u32, any::<bool>()), 1..40), most in 1..3_000_u64,
    ) {
        let mut paying = paying();
        prop_assert!(paying.reserve(job(1), usage(1, 512, most)));
        paying.accepted(job(1), 100);
        let mut delivered = 0_u64;
        for (more, pays) in steps {
            delivered = (delivered + u64::from(more)).min(most);
            paying.delivered(job(1), u32::try_from(delivered).expect("small"));
            if pays {
                paying.pay(domain(), Epoch(0));
            }
            let window = delivered.clamp(u64::from(WINDOW_MIN), 4_096);
            let ahead = usage(1, 100, (delivered + window).min(most));
            prop_assert!(paying.paid() <= cost(&ahead), "{} for {delivered} tokens", paying.paid());
        }
    }

    #[test]
    fn a_channel_ends_at_what_both_count_or_what_was_paid_out(
        tokens in 1..500_u64, ahead in 0..500_u64, redeemed in 0..2_000_000_u64, less in 0..1_000_000_u64,
    ) {
        let mut paid = paid();
        paid.begin(job(1), usage(1, 600, 1_000));
        paid.prepared(job(1), 100);
        let used = usage(1, 100, tokens);
        let amount = cost(&usage(1, 100, tokens + ahead));
        let newest = receipt(1, amount, used);
        paid.receive(&newest).expect("the payer's, below the cap");
        let end = |amount, receipt| {
            sign(Final { channel: CHANNEL, amount, receipt }, domain(), Role::Payer, &payer_signer(1))
        };
        let final_of = |amount| end(amount, Some(newest.id()));
        prop_assert!(paid.close(&final_of(amount)).is_err(), "closed while a job runs");

        paid.end(&record(1, used, Finish::Stop));
        let redeemed = redeemed.min(amount);
        paid.redeemed(redeemed);
        let due = cost(&used).max(redeemed);
        prop_assert_eq!(paid.due(), due);
        if less > 0 {
            prop_assert!(paid.close(&final_of(due.saturating_sub(less))).is_err());
        }
        let others = [None, Some(receipt(2, amount, used).id())];
        for other in others {
            prop_assert_eq!(paid.close(&end(due, other)), Err(PaidError::OtherReceipt));
        }
        prop_assert!(paid.close(&final_of(due)).is_ok());
        prop_assert!(!paid.fits(&usage(0, 0, 0)), "serves on a closed channel");
    }
}

#[test]
fn whoever_breaks_off_after_some_vectors_is_paid_for_as_much_of_the_texts() {
    let worst = Worst { usage: usage(1, 10_000, 100), reading: Reading::ByPart };
    let mut payer = paying();
    assert!(payer.reserve(job(1), worst));
    payer.accepted(job(1), 5_000);
    payer.delivered(job(1), 1);

    let (receipt, allowances) = payer.pay(domain(), Epoch(0)).expect("something arrived");
    assert_eq!((receipt.usage, receipt.amount), (usage(1, 50, 1), cost(&usage(1, 3_250, 65))));
    let (one, ahead) = (worst.usage_of(5_000, 1), cost(&usage(1, 3_250, 65)) - cost(&usage(1, 50, 1)));
    assert_eq!((payer.ahead(job(1), &one), payer.end_lost(job(1), one)), (ahead, Some(cost(&one))));

    let mut payee = paid();
    assert_eq!(payee.begin(job(1), worst), WINDOW_MIN);
    payee.prepared(job(1), 5_000);
    assert!(payee.receive(&receipt).is_ok());
    assert_eq!(payee.grant(job(1), allowances[0].1), Grant::Raised(65));
    payee.end(&record(1, one, Finish::Lost));
    assert_eq!(payee.earned(), cost(&one));
}

#[test]
fn a_payer_who_denies_what_was_delivered_has_no_more_for_it() {
    let mut paid = paid();
    let delivered = usage(1, 100, 500);
    paid.begin(job(1), usage(1, 600, 500));
    paid.prepared(job(1), 100);
    paid.receive(&receipt(1, cost(&delivered), delivered)).expect("the payer's, below the cap");
    assert_eq!(paid.grant(job(1), 500), Grant::Raised(500));
    paid.end(&record(1, delivered, Finish::Lost));

    paid.receive(&receipt(2, cost(&delivered), Usage::default())).expect("newer, and for nothing");
    assert!(paid.is_disputed());
    paid.begin(job(2), usage(1, 600, 500));
    paid.prepared(job(2), 100);
    assert_eq!(paid.grant(job(2), 500), Grant::Uncovered);
}

#[test]
fn a_payer_without_the_payees_signature_asks_for_it_until_it_comes() {
    let (mut payer, mut payee) = (paying(), paid());
    let worst = Usage { calls: 1, tokens_in: 10, tokens_out: 64, compute: 0 };
    assert!(payer.reserve(job(1), worst));
    payer.accepted(job(1), 10);
    payer.delivered(job(1), 20);
    payer.end(job(1), Usage { tokens_out: 20, ..worst }, None).expect("a job in flight");
    let (sent, _) = payer.pay(domain(), Epoch(0)).expect("a receipt is due");
    assert_eq!((payer.paid(), sent.amount), (cost(&sent.usage), cost(&sent.usage)));
    let both = payee.receive(&sent).expect("it is the payer's").expect("it is news");

    // The payee shows that it holds the receipt, but its signature was lost.
    payer.shown(both.id(), payee.due(), payee.counted());
    assert_eq!(payer.unacknowledged().map(Verified::id), Some(both.id()));
    assert!(payer.adopt(&both));
    assert!(payer.unacknowledged().is_none() && payer.is_cosigned());
}

#[test]
fn a_payer_that_is_shown_a_newer_receipt_ends_the_channel_after_that_one() {
    let mut payer = paying();
    let ended_early = payer.close(domain()).expect("no job is open");
    assert_eq!(ended_early.receipt, None);

    let forgotten =
        receipt(1, 5_000, usage(1, 0, 64)).signed_also_by(domain(), Role::Payee, &payee_signer(2));
    assert!(payer.adopt(&forgotten));
    assert!(!payer.is_closing());
    assert_eq!(payer.close(domain()).expect("no job is open").receipt, Some(forgotten.id()));
}
