//! What an owner and a payee make of what issuers answer, one of whom may answer anything.

use proptest::prelude::*;
use protocol::ids::{ChannelId, RecordId};
use protocol::keys::PublicKey;
use protocol::ledger::issuer::{Balance, IssuerError};
use protocol::ledger::quorum::{Acks, Answers, View, Views};
use protocol::ledger::records::{Epoch, Recorded, RedeemAck, Vote};
use protocol::signed::{Role, sign};

use crate::network::{DEPOSIT, domain, issuer_signer, manifest, opening};

fn key(place: usize) -> PublicKey {
    issuer_signer(place).public()
}

fn votes(answers: &mut Answers, place: usize) -> bool {
    votes_after(answers, place, None)
}

fn votes_after(answers: &mut Answers, place: usize, settled: Option<Epoch>) -> bool {
    let op = opening(DEPOSIT / 2);
    let vote = Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled };
    answers.voted(key(place), sign(vote, domain(), Role::Issuer, &issuer_signer(place)))
}

fn records(answers: &mut Answers, place: usize) {
    let recorded = Recorded { op: opening(DEPOSIT / 2).id(), epoch: Epoch(0) };
    answers.recorded(key(place), sign(recorded, domain(), Role::Issuer, &issuer_signer(place)));
}

#[test]
fn votes_alone_commit_nothing_and_three_recordings_do() {
    let mut answers = Answers::default();
    assert_eq!([0, 0, 1].map(|place| votes(&mut answers, place)), [true, false, true]);
    assert!(!answers.is_certified(&manifest()));
    assert_eq!([2, 3, 0].map(|place| votes(&mut answers, place)), [true, true, false]);
    assert!(answers.is_certified(&manifest()) && !answers.is_committed(&manifest()));

    for place in [0, 1, 1] {
        records(&mut answers, place);
        assert!(!answers.is_committed(&manifest()));
    }
    records(&mut answers, 3);
    assert!(answers.is_committed(&manifest()));
    assert_eq!((answers.votes().len(), answers.recordings().len()), (4, 3));
}

#[test]
fn a_vote_of_an_issuer_that_has_followed_more_checkpoints_replaces_its_former_one() {
    let mut answers = Answers::default();
    let said = [Some(Epoch(3)), None, Some(Epoch(3)), Some(Epoch(2)), Some(Epoch(4))];
    let first = said.map(|settled| votes_after(&mut answers, 1, settled));
    assert_eq!(first, [true, false, false, false, false]);
    assert_eq!(answers.votes().iter().map(|vote| vote.settled).collect::<Vec<_>>(), [Some(Epoch(4))]);
}

#[test]
fn a_step_is_abandoned_when_three_refuse_it_and_a_vote_takes_a_refusal_back() {
    let mut answers = Answers::default();
    let refuses = |place: usize, answers: &mut Answers| {
        answers.refused(key(place), IssuerError::SlotLocked, &manifest())
    };
    assert!(!refuses(0, &mut answers) && !refuses(1, &mut answers) && !refuses(1, &mut answers));

    votes(&mut answers, 1);
    assert!(!refuses(2, &mut answers));
    assert!(refuses(3, &mut answers));
}

#[test]
fn what_an_issuer_says_late_does_not_replace_what_it_said_since() {
    let view = |cash, as_of| View {
        next: as_of,
        head: RecordId::NONE,
        balance: Balance { cash, as_of, ..Balance::default() },
    };
    let mut views = Views::default();
    for place in 0..3 {
        views.learn(key(place), view(5, 2));
        views.learn(key(place), view(9, 1));
    }
    let supported = views.supported(&manifest()).expect("a quorum has answered");
    assert_eq!((supported.agreed, supported.balance.cash), (Some((2, RecordId::NONE)), 5));
}

#[test]
fn a_head_counts_when_more_issuers_name_it_in_its_slot_than_may_lie() {
    let (before, step, lie) = (RecordId([1; 32]), RecordId([7; 32]), RecordId([0xff; 32]));
    let supported = |said: [(u64, RecordId); 4]| {
        let mut views = Views::default();
        for (place, (next, head)) in said.into_iter().enumerate() {
            views.learn(key(place), View { next, head, balance: Balance::default() });
        }
        let supported = views.supported(&manifest()).expect("all have answered");
        (supported.agreed, supported.vouched)
    };

    // One has recorded the step, two will, and one lies about the slot before, or about the one after.
    assert_eq!(supported([(2, step), (1, before), (1, before), (1, lie)]), (None, vec![(1, before)]));
    assert_eq!(supported([(2, step), (1, before), (1, before), (2, lie)]), (None, vec![(1, before)]));
    assert_eq!(supported([(2, step), (2, step), (1, before), (9, lie)]), (None, vec![(2, step)]));
    let both = vec![(1, before), (2, step)];
    assert_eq!(supported([(2, step), (1, before), (2, step), (1, before)]), (None, both));
    let agreed = (Some((1, before)), vec![(1, before)]);
    assert_eq!(supported([(1, lie), (1, before), (1, before), (1, before)]), agreed);
    assert_eq!(supported([(2, step), (1, before), (3, lie), (4, lie)]), (None, vec![]));
}

/// What an issuer says: its next slot, and what can be spent.
fn said() -> impl Strategy<Value = (u64, u64)> {
    (prop_oneof![0..5_u64, any::<u64>()], prop_oneof![0..100_u64, any::<u64>()])
}

fn ack(amount: u64, closed: bool) -> RedeemAck {
    RedeemAck { channel: ChannelId([1; 32]), amount, closed, epoch: Epoch(0) }
}

fn view((next, cash): (u64, u64), as_of: u64) -> View {
    let balance = Balance { cash, earned: 0, held: 0, as_of };
    View { next, head: RecordId::NONE, balance }
}

proptest! {
    #[test]
    fn a_liar_moves_neither_slot_nor_balance_beyond_what_honest_issuers_say(
        honest in [said(), said(), said()],
        lie in said(),
        order in Just(vec![0, 1, 2, 3]).prop_shuffle(),
    ) {
        let mut views = Views::default();
        for (count, place) in order.into_iter().enumerate() {
            prop_assert_eq!(views.supported(&manifest()).is_some(), count >= 3);
            views.learn(key(place), view(honest.get(place).copied().unwrap_or(lie), 1));
        }

        let supported = views.supported(&manifest()).expect("all have answered");
        let named = |slot: (u64, RecordId)| honest.iter().filter(|(next, _)| (*next, RecordId::NONE) == slot).count();
        prop_assert!(supported.vouched.iter().all(|slot| named(*slot) >= 1));
        prop_assert!(supported.agreed.is_none_or(|slot| named(slot) >= 2));
        let mut amounts = honest.map(|(_, cash)| cash);
        amounts.sort_unstable();
        prop_assert!((amounts[0]..=amounts[1]).contains(&supported.balance.available()));
    }

    #[test]
    fn what_an_issuer_said_before_replaces_nothing(first in said(), second in said()) {
        let learnt = |said: [((u64, u64), u64); 2]| {
            let mut views = Views::default();
            for place in 0..4 {
                said.iter().for_each(|(said, as_of)| views.learn(key(place), view(*said, *as_of)));
            }
            views.supported(&manifest())
        };

        prop_assert_eq!(learnt([(first, 1), (second, 2)]), learnt([(second, 2), (first, 1)]));
    }

    #[test]
    fn what_is_safe_two_honest_issuers_have_paid_and_what_is_vouched_for_one(
        honest in [any::<u64>(), any::<u64>(), any::<u64>()],
        lie in any::<u64>(),
        order in Just(vec![0, 1, 2, 3, 0, 1, 2, 3]).prop_shuffle(),
    ) {
        let mut acks = Acks::default();
        for place in order {
            acks.learn(key(place), &ack(honest.get(place).copied().unwrap_or(lie), place == 3));
        }

        let paid = |amount: u64| honest.iter().filter(|paid| **paid >= amount).count();
        prop_assert!(paid(acks.safe(&manifest())) >= 2);
        prop_assert!(paid(acks.vouched(&manifest())) >= 1);
        prop_assert!(acks.safe(&manifest()) <= acks.vouched(&manifest()));
        prop_assert_eq!(acks.end(&manifest()), None, "only the liar says so");
    }

    #[test]
    fn a_channel_ends_for_a_payee_with_what_an_honest_issuer_says_whatever_a_liar_said_before(
        lie in any::<u64>(),
        before in 0..100_u64,
        end in any::<u64>(),
        order in Just(vec![0, 1, 2, 3]).prop_shuffle(),
    ) {
        let mut acks = Acks::default();
        (0..3).for_each(|place| acks.learn(key(place), &ack(before, false)));
        for place in order {
            acks.learn(key(place), &ack(if place == 3 { lie } else { end }, true));
            let honest = (0..3).filter(|place| acks.is_closed_by(key(*place))).count();
            let agreed = honest + usize::from(acks.is_closed_by(key(3)) && lie == end);
            prop_assert_eq!(acks.end(&manifest()), (agreed > 1).then_some(end));
        }
    }
}
