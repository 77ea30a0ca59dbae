//! Issuers that took the same facts in different orders, or lack some, come to the same checkpoint.

use std::sync::Arc;

use proptest::prelude::*;
use protocol::ids::{AccountId, ChannelId, Digest, RecordId};
use protocol::keys::Signer;
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::quorum::{Certificate, Fact};
use protocol::ledger::records::{AccountOp, Claim, Deposit, Epoch, OpBody, Receipt, Source, Vote};
use protocol::ledger::settled::BatchError;
use protocol::ledger::witness::Witness;
use protocol::message::Checked;
use protocol::price::Usage;
use protocol::record::Record;
use protocol::signed::{Role, Signable, Verified, id_of, sign};

use crate::network::{DEPOSIT, cases, domain, issuer_signer, manifest, opening, payer, signer, terms};

const ACCOUNTS: u8 = 3;
const CREDITS: u64 = 1_000_000;

fn owner(tag: u8) -> Signer {
    signer(100 + tag)
}

fn account(tag: u8) -> AccountId {
    owner(tag).public().into()
}

/// Returns a record with the signatures of these issuers.
pub(crate) fn by<T: Signable>(places: &[usize], record: T) -> Vec<Verified<T>> {
    places.iter().map(|place| sign(record.clone(), domain(), Role::Issuer, &issuer_signer(*place))).collect()
}

fn deposit(tag: u8) -> Verified<Deposit> {
    let (reference, source) = (Digest([tag; 32]), Source::Budget);
    let deposit = Deposit { reference, account: account(tag), amount: CREDITS, epoch: Epoch(0), source };
    agreed(deposit)
}

fn agreed(deposit: Deposit) -> Verified<Deposit> {
    let first = sign(deposit, domain(), Role::Issuer, &issuer_signer(0));
    (1..3).fold(first, |deposit, place| deposit.signed_also_by(domain(), Role::Issuer, &issuer_signer(place)))
}

fn step(tag: u8, sequence: u64, previous: RecordId, body: OpBody) -> Verified<AccountOp> {
    let op = AccountOp { account: account(tag), sequence, previous, epoch: Epoch(0), body };
    sign(op, domain(), Role::Owner, &owner(tag))
}

/// Returns a step with the votes of issuers that had followed the checkpoint of this epoch.
pub(crate) fn certified(op: &Verified<AccountOp>, settled: Option<Epoch>) -> Certificate<Checked> {
    let (id, account, sequence) = (op.id(), op.account, op.sequence);
    let vote = Vote { op: id, account, sequence, epoch: Epoch(1), settled };
    Certificate { op: op.clone(), terms: None, votes: by(&[0, 1, 2], vote) }
}

/// Returns what a history comes to: deposits, then payments in a ring.
fn facts(payments: &[(u8, u64)]) -> Vec<Fact<Checked>> {
    let mut facts: Vec<Fact<Checked>> = (0..ACCOUNTS).map(|tag| Fact::Deposit(deposit(tag))).collect();
    let mut heads = [(0, RecordId::NONE); ACCOUNTS as usize];
    for (from, amount) in payments {
        let (sequence, previous) = heads[usize::from(*from)];
        let to = account((from + 1) % ACCOUNTS);
        let op = step(*from, sequence, previous, OpBody::Pay { to, amount: *amount });
        heads[usize::from(*from)] = (sequence + 1, op.id());
        facts.push(Fact::Step(certified(&op, None)));
    }
    facts
}

/// Returns an issuer that was shown these facts, again and again until it can take no more.
fn witness(place: usize, facts: &[Fact<Checked>]) -> Witness {
    let mut witness = Witness::new(manifest(), issuer_signer(place));
    for _ in 0..=facts.len() {
        for fact in facts {
            match fact {
                Fact::Deposit(deposit) => drop(witness.enter(deposit)),
                Fact::Step(certificate) => drop(witness.certify(certificate, Epoch(0))),
                Fact::End(_)
                | Fact::Redeemed { .. }
                | Fact::Doubled(..)
                | Fact::Lapsed(_)
                | Fact::Paid(_) => unreachable!("none is made"),
            }
        }
    }
    witness
}

/// Lets an issuer follow a checkpoint that another one proposes.
pub(crate) fn follow(issuer: &mut Witness, proposer: &Witness, names: &[RecordId], epoch: Epoch) -> RecordId {
    for name in names {
        issuer.settled.learn(Arc::new(proposer.fact(name).expect("its own proposal").clone()));
    }
    let outcome = issuer.settled.outcome(epoch, names).expect("every fact proves itself");
    let id = id_of(&outcome.checkpoint, domain());
    issuer.adopt(id, names, outcome);
    id
}

fn balances(witness: &Witness) -> Vec<(AccountId, u64, u64, u64)> {
    let balances = witness.books.balances();
    balances.map(|(account, held)| (account, held.cash, held.earned, held.held)).collect()
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn issuers_with_other_orders_and_gaps_come_to_the_same_books(
        payments in prop::collection::vec((0..ACCOUNTS, 1..50_000_u64), 0..12),
        order in any::<prop::sample::Index>(),
        known in 0..16_usize,
    ) {
        let all = facts(&payments);
        let mut turned = all.clone();
        turned.rotate_left(order.index(all.len()));
        let proposer = witness(0, &turned);
        let mut few = witness(1, &all[..known.min(all.len())]);
        let mut many = witness(2, &all);
        let (names, outcome) = proposer.settled.propose(Epoch(4)).expect("sums that can be stated");
        prop_assert_eq!(outcome.checkpoint.check_totals(), Ok(()));

        let one = follow(&mut few, &proposer, &names, Epoch(4));
        let other = follow(&mut many, &proposer, &names, Epoch(4));
        prop_assert_eq!(one, other);
        prop_assert_eq!(balances(&few), balances(&many));
        prop_assert!(few.books.is_conserved() && many.books.is_conserved());
        prop_assert_eq!(few.settled.since(), 0);
    }
}

#[test]
fn what_a_proposer_lacks_stays_in_the_books_of_whoever_has_it() {
    let all = facts(&[(0, 5_000), (0, 7_000)]);
    let proposer = witness(0, &all[..4]);
    let mut issuer = witness(1, &all);
    let (names, _) = proposer.settled.propose(Epoch(0)).expect("sums that can be stated");

    follow(&mut issuer, &proposer, &names, Epoch(0));
    assert_eq!(issuer.books.next_slot(account(0)).0, 2, "a recorded step is never dropped");
    assert_eq!(issuer.settled.since(), 1);
    assert!(issuer.books.is_conserved());
}

/// Two steps for the first slot of an account.
fn two_steps() -> [Verified<AccountOp>; 2] {
    [1_000, 2_000].map(|amount| step(0, 0, RecordId::NONE, OpBody::Pay { to: account(1), amount }))
}

#[test]
fn a_checkpoint_frees_a_slot_and_only_later_votes_count_in_it() {
    let [one, other] = two_steps();
    let deposits = facts(&[]);
    let [mut first, mut second] = [0, 1].map(|place| witness(place, &deposits));
    first.vote(&one, None, Epoch(0)).expect("within the rules");
    second.vote(&other, None, Epoch(0)).expect("within the rules");
    first.double(&one, &other).expect("two steps for one slot");

    let (names, outcome) = first.settled.propose(Epoch(0)).expect("sums that can be stated");
    assert_eq!(outcome.freed, [(account(0), 0)]);
    assert!(!first.objects(&outcome) && !second.objects(&outcome));
    let proposer = first.clone();
    follow(&mut first, &proposer, &names, Epoch(0));
    follow(&mut second, &proposer, &names, Epoch(0));

    assert_eq!((first.books.locked(account(0)), second.books.locked(account(0))), (None, None));
    assert_eq!(second.certify(&certified(&one, None), Epoch(1)), Err(IssuerError::WrongEpoch));
    let next = after_freeing(&second, 3_000);
    let (vote, _) = second.vote(&next, None, Epoch(1)).expect("within the rules");
    assert_eq!(vote.settled, Some(Epoch(0)));
    second.certify(&certified(&next, Some(Epoch(0))), Epoch(1)).expect("later votes");
    assert_eq!(second.books.next_slot(account(0)), (1, next.id()));
}

/// Issuers that have found two steps for one slot follow a checkpoint whose proposer had not: would their books free the
/// slot by themselves, they could certify and serve steps in it that the next checkpoint does not know.
#[test]
fn a_slot_is_freed_by_a_checkpoint_that_states_its_two_steps_and_by_no_other() {
    let [one, other] = two_steps();
    let deposits = facts(&[]);
    let [mut finder, mut proposer] = [0, 1].map(|place| witness(place, &deposits));
    finder.vote(&one, None, Epoch(0)).expect("within the rules");
    finder.double(&one, &other).expect("two steps for one slot");
    let (names, outcome) = proposer.settled.propose(Epoch(0)).expect("sums that can be stated");
    assert_eq!(outcome.freed, []);
    let known = proposer.clone();
    follow(&mut finder, &known, &names, Epoch(0));
    follow(&mut proposer, &known, &names, Epoch(0));

    assert_eq!(finder.books.next_slot(account(0)), (0, RecordId::NONE));
    assert_eq!(finder.books.locked(account(0)), Some(one.id()), "its vote stands");
    let (names, outcome) = finder.settled.propose(Epoch(1)).expect("sums that can be stated");
    assert_eq!(outcome.freed, [(account(0), 0)]);
    let known = finder.clone();
    follow(&mut finder, &known, &names, Epoch(1));
    follow(&mut proposer, &known, &names, Epoch(1));
    assert_eq!(finder.books.next_slot(account(0)), proposer.books.next_slot(account(0)));

    let next = after_freeing(&finder, 3_000);
    finder.certify(&certified(&next, Some(Epoch(1))), Epoch(2)).expect("later votes");
    let (names, _) = finder.settled.propose(Epoch(2)).expect("sums that can be stated");
    let known = finder.clone();
    follow(&mut finder, &known, &names, Epoch(2));
    assert_eq!(finder.books.next_slot(account(0)), (1, next.id()), "what was certified stands");
}

#[test]
fn a_checkpoint_gives_the_slot_back_of_a_step_that_too_few_voted_for_while_its_epoch_lasted() {
    let [one, _] = two_steps();
    let deposits = facts(&[]);
    let [mut early, mut late] = [0, 1].map(|place| witness(place, &deposits));
    early.vote(&one, None, Epoch(0)).expect("within the rules");
    assert_eq!(late.vote(&one, None, Epoch(2)), Err(IssuerError::WrongEpoch));
    assert_eq!(early.lapsed(Epoch(2)), [], "its certificate may be on its way");
    (0..3).for_each(|_| drop(early.old_locks(8)));
    assert_eq!((early.lapsed(Epoch(1)), early.lapsed(Epoch(2))), (vec![], vec![one.clone()]));

    for issuer in [&mut early, &mut late] {
        assert_eq!(issuer.lapse(&one, Epoch(1)), None, "it may be voted for still");
        assert!(issuer.lapse(&one, Epoch(2)).is_some());
        assert_eq!(issuer.lapse(&one, Epoch(2)), None, "it is known");
    }
    let (names, outcome) = late.settled.propose(Epoch(1)).expect("sums that can be stated");
    assert_eq!(outcome.freed, [(account(0), 0)]);
    assert!(!early.objects(&outcome) && !late.objects(&outcome));
    let proposer = late.clone();
    follow(&mut early, &proposer, &names, Epoch(1));
    follow(&mut late, &proposer, &names, Epoch(1));

    assert_eq!(early.books.locked(account(0)), None);
    assert_eq!(late.certify(&certified(&one, None), Epoch(2)), Err(IssuerError::WrongEpoch));
    assert_eq!(early.lapse(&one, Epoch(3)), None, "it frees nothing again");
    let head = early.books.next_slot(account(0)).1;
    let body = OpBody::Pay { to: account(1), amount: 1_000 };
    let op = AccountOp { account: account(0), sequence: 0, previous: head, epoch: Epoch(2), body };
    let again = sign(op, domain(), Role::Owner, &owner(0));
    for issuer in [&mut early, &mut late] {
        issuer.vote(&again, None, Epoch(2)).expect("within the rules");
    }
}

#[test]
fn an_issuer_that_holds_a_dropped_step_does_not_say_that_it_has_recorded_the_one_that_has_its_slot() {
    let [one, other] = two_steps();
    let deposits = facts(&[]);
    let [mut behind, mut proposer] = [0, 1].map(|place| witness(place, &deposits));
    behind.certify(&certified(&one, None), Epoch(0)).expect("a quorum voted");
    proposer.double(&one, &other).expect("two steps for one slot");
    let (names, _) = proposer.settled.propose(Epoch(0)).expect("sums that can be stated");
    let known = proposer.clone();
    follow(&mut proposer, &known, &names, Epoch(0));
    let next = certified(&after_freeing(&proposer, 3_000), Some(Epoch(0)));
    proposer.certify(&next, Epoch(1)).expect("later votes");

    assert_eq!(behind.certify(&next, Epoch(1)), Err(IssuerError::Behind));
    assert_eq!(behind.certify(&certified(&one, None), Epoch(1)).map(|(_, record)| record), Ok(None));
    follow(&mut behind, &known, &names, Epoch(0));
    let (recorded, record) = behind.certify(&next, Epoch(1)).expect("it has followed");
    assert_eq!((recorded.op, record.is_some()), (next.op.id(), true));
    assert_eq!(behind.certify(&next, Epoch(1)).map(|(_, record)| record), Ok(None), "taken before");
}

#[test]
fn a_withdrawal_is_to_be_paid_when_a_checkpoint_states_it() {
    let credits = agreed(Deposit { amount: 10 * CREDITS, ..Deposit::clone(&deposit(0)) });
    let credits = Fact::Deposit(credits);
    let mut issuer = witness(0, core::slice::from_ref(&credits));
    let body = OpBody::Withdraw { amount: 5_000, payout: Digest([1; 32]) };
    let op = step(0, 0, RecordId::NONE, body);
    issuer.certify(&certified(&op, None), Epoch(0)).expect("a quorum voted");
    let is_settled = |issuer: &Witness| issuer.books.withdrawal(op.id()).map(|request| request.is_settled);
    assert_eq!(is_settled(&issuer), Some(false));
    // The one whose turn it is to propose has not heard of it.
    let proposer = witness(1, &[credits]);
    let (names, _) = proposer.settled.propose(Epoch(0)).expect("sums that can be stated");
    follow(&mut issuer, &proposer, &names, Epoch(0));
    assert_eq!(is_settled(&issuer), Some(false), "it waits for a checkpoint that states it");
    for epoch in [1, 2] {
        let (names, _) = issuer.settled.propose(Epoch(epoch)).expect("sums that can be stated");
        let known = issuer.clone();
        follow(&mut issuer, &known, &names, Epoch(epoch));
        assert_eq!(is_settled(&issuer), Some(true), "after the checkpoint of epoch {epoch}");
    }
}

#[test]
fn a_step_that_was_recorded_is_not_given_up_however_old_it_is() {
    let [one, _] = two_steps();
    let deposits = facts(&[]);
    let [mut proposer, mut recorder] = [0, 1].map(|place| witness(place, &deposits));
    proposer.lapse(&one, Epoch(2)).expect("nobody votes for it any more");
    let (_, outcome) = proposer.settled.propose(Epoch(1)).expect("sums that can be stated");
    assert!(!recorder.objects(&outcome));
    recorder.certify(&certified(&one, None), Epoch(2)).expect("a quorum voted in time");
    assert!(recorder.objects(&outcome), "who has recorded a step lets nobody free its slot");
    assert_eq!(recorder.lapse(&one, Epoch(2)), None);

    // Whoever has it from the recorder keeps it too.
    proposer.certify(&certified(&one, None), Epoch(2)).expect("a quorum voted in time");
    let (_, outcome) = proposer.settled.propose(Epoch(1)).expect("sums that can be stated");
    assert_eq!((outcome.freed, outcome.books.next_slot(account(0))), (vec![], (1, one.id())));
}

/// An issuer has voted in a slot behind a step that cannot be taken any more, because the credits for it are gone: when
/// they are there again it must not vote for another.
#[test]
fn a_vote_stands_though_the_step_before_it_waits() {
    let gift = step(0, 0, RecordId::NONE, OpBody::Pay { to: account(1), amount: 900_000 });
    let pay =
        |sequence, previous, amount| step(1, sequence, previous, OpBody::Pay { to: account(2), amount });
    let spend = pay(0, RecordId::NONE, 1_500_000);
    let [voted, other] = [1_000, 2_000].map(|amount| pay(1, spend.id(), amount));
    let mut issuer = witness(0, &facts(&[]));
    for step in [&gift, &spend] {
        issuer.certify(&certified(step, None), Epoch(0)).expect("a quorum voted");
    }
    issuer.vote(&voted, None, Epoch(0)).expect("within the rules");

    let [one, two] = two_steps();
    let mut freer = witness(1, &facts(&[]));
    freer.double(&one, &two).expect("two steps for one slot");
    let (names, _) = freer.settled.propose(Epoch(0)).expect("sums that can be stated");
    follow(&mut issuer, &freer, &names, Epoch(0));
    assert_eq!(
        issuer.books.next_slot(account(1)).0,
        0,
        "the gift is gone, and with it the step that it paid for"
    );

    let more = Deposit { reference: Digest([77; 32]), account: account(1), ..Deposit::clone(&deposit(1)) };
    issuer.enter(&agreed(more)).expect("a quorum signed");
    let (names, _) = issuer.settled.propose(Epoch(1)).expect("sums that can be stated");
    let proposer = issuer.clone();
    follow(&mut issuer, &proposer, &names, Epoch(1));
    assert_eq!(issuer.books.next_slot(account(1)), (1, spend.id()));
    assert_eq!(issuer.vote(&other, None, Epoch(1)), Err(IssuerError::SlotLocked));
    issuer.vote(&voted, None, Epoch(1)).expect("the step for which it voted");
}

/// Returns a step for the first slot of an account after it was freed.
fn after_freeing(issuer: &Witness, amount: u64) -> Verified<AccountOp> {
    let (next, head) = issuer.books.next_slot(account(0));
    assert_eq!((next, head == RecordId::NONE), (0, false));
    step(0, 0, head, OpBody::Pay { to: account(1), amount })
}

/// A liar frees a slot twice and has one step recorded by another honest issuer each time: with its own word that would be
/// three of four for a step that no checkpoint states.
#[test]
fn no_step_from_before_its_slot_was_freed_is_voted_for_or_recorded_again() {
    let [one, other] = two_steps();
    let third = step(0, 0, RecordId::NONE, OpBody::Pay { to: account(1), amount: 3_000 });
    let deposits = facts(&[]);
    let [mut early, mut late] = [0, 1].map(|place| witness(place, &deposits));
    for step in [&one, &third] {
        let mut early = early.clone();
        early.certify(&certified(step, None), Epoch(0)).expect("a quorum voted before");
    }
    late.double(&one, &other).expect("two steps for one slot");
    let (names, _) = late.settled.propose(Epoch(0)).expect("sums that can be stated");
    let proposer = late.clone();
    follow(&mut late, &proposer, &names, Epoch(0));
    follow(&mut early, &proposer, &names, Epoch(0));

    for old in [&one, &other, &third] {
        for issuer in [&mut early, &mut late] {
            assert_eq!(issuer.vote(old, None, Epoch(1)), Err(IssuerError::WrongSequence { next: 0 }));
            assert!(issuer.certify(&certified(old, Some(Epoch(0))), Epoch(1)).is_err());
        }
    }
    assert_eq!(late.double(&one, &other), None, "the same two free nothing again");
    let again = Fact::Doubled(one.clone(), other.clone());
    late.settled.learn(Arc::new(again.clone()));
    let outcome = late.settled.outcome(Epoch(1), &[again.name()]);
    assert_eq!(outcome.err(), Some(BatchError::Fact(IssuerError::WrongSequence { next: 0 })));
}

/// The maker of a deposit chooses its reference; with the id of a step it would hide that step from the checkpoints.
#[test]
fn a_deposit_that_is_called_like_a_step_hides_no_step() {
    let [one, _] = two_steps();
    let named = Deposit { reference: Digest(one.id().0), ..(*deposit(1)).clone() };
    let mut issuer = witness(0, &facts(&[]));
    let before = issuer.settled.since();
    issuer.enter(&agreed(named)).expect("a quorum signed");
    issuer.certify(&certified(&one, None), Epoch(0)).expect("a quorum voted");
    assert_eq!(issuer.settled.since(), before + 2);
    let (names, outcome) = issuer.settled.propose(Epoch(0)).expect("sums that can be stated");
    assert_eq!(names.len(), before + 2);
    assert_eq!(outcome.books.next_slot(account(0)), (1, one.id()));
}

#[test]
fn a_checkpoint_that_would_free_a_slot_with_a_recorded_step_is_not_prepared() {
    let [one, other] = two_steps();
    let deposits = facts(&[]);
    let [mut proposer, mut recorder, mut freezer] = [0, 1, 2].map(|place| witness(place, &deposits));
    proposer.vote(&one, None, Epoch(0)).expect("within the rules");
    proposer.double(&one, &other).expect("two steps for one slot");
    let (_, outcome) = proposer.settled.propose(Epoch(0)).expect("sums that can be stated");

    recorder.certify(&certified(&one, None), Epoch(0)).expect("a quorum voted");
    assert!(recorder.objects(&outcome), "who has recorded a step lets nobody free its slot");

    assert!(!freezer.objects(&outcome));
    freezer.freeze(Epoch(0), &outcome.freed, &[]);
    assert_eq!(freezer.certify(&certified(&one, None), Epoch(0)), Err(IssuerError::Behind));
}

#[test]
fn who_is_shown_a_certificate_after_it_prepared_that_its_slot_is_freed_proposes_otherwise() {
    let [one, other] = two_steps();
    let mut issuer = witness(0, &facts(&[]));
    issuer.vote(&one, None, Epoch(0)).expect("within the rules");
    issuer.double(&one, &other).expect("two steps for one slot");
    let (_, outcome) = issuer.settled.propose(Epoch(0)).expect("sums that can be stated");
    issuer.freeze(Epoch(0), &outcome.freed, &[]);

    let forged = Certificate { votes: Vec::new(), ..certified(&other, None) };
    assert_eq!(issuer.certify(&forged, Epoch(0)), Err(IssuerError::NoQuorum));
    let (_, outcome) = issuer.settled.propose(Epoch(0)).expect("sums that can be stated");
    assert_eq!(outcome.freed, [(account(0), 0)]);
    assert_eq!(issuer.certify(&certified(&one, None), Epoch(0)), Err(IssuerError::Behind));
    let (_, outcome) = issuer.settled.propose(Epoch(0)).expect("sums that can be stated");
    assert_eq!((outcome.freed.as_slice(), outcome.books.next_slot(account(0))), (&[][..], (1, one.id())));
}

/// The credits of a recorded step are gone when a checkpoint frees the slot of the payment that brought them.
#[test]
fn a_checkpoint_that_would_free_the_slot_of_a_recorded_step_that_waits_for_credits_is_not_prepared() {
    let gift = step(0, 0, RecordId::NONE, OpBody::Pay { to: account(1), amount: 900_000 });
    let [spend, other] =
        [1_500_000, 1].map(|amount| step(1, 0, RecordId::NONE, OpBody::Pay { to: account(2), amount }));
    let mut recorder = witness(0, &facts(&[]));
    recorder.certify(&certified(&gift, None), Epoch(0)).expect("a quorum voted");
    recorder.certify(&certified(&spend, None), Epoch(0)).expect("a quorum voted");

    let [one, two] = two_steps();
    let mut freer = witness(1, &facts(&[]));
    freer.double(&one, &two).expect("two steps for one slot");
    let (names, _) = freer.settled.propose(Epoch(0)).expect("sums that can be stated");
    let proposer = freer.clone();
    follow(&mut freer, &proposer, &names, Epoch(0));
    follow(&mut recorder, &proposer, &names, Epoch(0));
    assert_eq!(recorder.books.next_slot(account(1)), (0, RecordId::NONE), "it waits");
    assert_eq!(recorder.books.locked(account(1)), Some(spend.id()));

    freer.double(&spend, &other).expect("two steps for one slot");
    let (_, outcome) = freer.settled.propose(Epoch(1)).expect("sums that can be stated");
    assert_eq!(outcome.freed, [(account(1), 0)]);
    assert!(recorder.objects(&outcome));
}

#[test]
fn what_issuers_voted_for_while_a_checkpoint_was_agreed_on_counts_for_nothing_once_it_has_freed_the_slot() {
    let [one, other] = two_steps();
    let mut issuers = [0, 1, 2].map(|place| witness(place, &facts(&[])));
    issuers[2].vote(&other, None, Epoch(0)).expect("within the rules");
    issuers[2].double(&one, &other).expect("two steps for one slot");
    // The epoch that the checkpoint states is over.
    let mut votes =
        [0, 1].map(|place| issuers[place].vote(&one, None, Epoch(1)).expect("within the rules").0);
    let (names, _) = issuers[2].settled.propose(Epoch(0)).expect("sums that can be stated");
    let proposer = issuers[2].clone();
    for issuer in &mut issuers {
        follow(issuer, &proposer, &names, Epoch(0));
    }

    let lied = Vote { settled: Some(Epoch(9)), ..(*votes[0]).clone() };
    let mut lied = by(&[3], lied);
    lied.extend(votes.clone());
    let stale = Certificate { op: one.clone(), terms: None, votes: lied };
    assert_eq!(stale.check(&manifest()), Ok(()));
    assert_eq!(issuers[0].certify(&stale, Epoch(1)), Err(IssuerError::WrongEpoch));
    let next = after_freeing(&issuers[0], 2_000);
    votes = [0, 1].map(|place| issuers[place].vote(&next, None, Epoch(1)).expect("a free slot").0);
    let mut again = Vec::from([issuers[2].vote(&next, None, Epoch(1)).expect("a free slot").0]);
    again.extend(votes);
    let fresh = Certificate { op: next.clone(), terms: None, votes: again };
    issuers[0].certify(&fresh, Epoch(1)).expect("a quorum has voted since");
    let word = issuers[0].certify(&stale, Epoch(1));
    assert_eq!(word, Err(IssuerError::WrongEpoch), "nobody says that it has recorded what never stood");
}

#[test]
fn two_steps_in_a_slot_that_got_its_certificate_all_the_same_hold_up_no_checkpoint() {
    let [one, other] = two_steps();
    let mut issuer = witness(0, &facts(&[]));
    issuer.vote(&one, None, Epoch(0)).expect("within the rules");
    issuer.double(&one, &other).expect("two steps for one slot");
    issuer.certify(&certified(&one, None), Epoch(0)).expect("a quorum voted");

    let (names, outcome) = issuer.settled.propose(Epoch(0)).expect("sums that can be stated");
    assert!(!issuer.objects(&outcome));
    assert_eq!((outcome.freed.as_slice(), outcome.books.next_slot(account(0)).0), (&[][..], 1));
    let proposer = issuer.clone();
    follow(&mut issuer, &proposer, &names, Epoch(0));
    assert_eq!(issuer.settled.since(), 0, "the two steps are settled with the slot");
}

#[test]
fn one_owner_fills_no_books_with_pairs_of_steps_and_no_old_pair_frees_a_slot_again() {
    let pay = |amount| step(0, 0, RecordId::NONE, OpBody::Pay { to: account(1), amount });
    let steps: Vec<_> = (1..6).map(pay).collect();
    let mut issuer = witness(0, &facts(&[]));
    let before = issuer.settled.since();
    for one in &steps {
        for other in steps.iter().filter(|other| other.id() != one.id()) {
            issuer.double(one, other);
        }
    }
    assert_eq!(issuer.settled.since(), before + 1);

    let (names, _) = issuer.settled.propose(Epoch(0)).expect("sums that can be stated");
    let proposer = issuer.clone();
    follow(&mut issuer, &proposer, &names, Epoch(0));
    assert_eq!(issuer.double(&steps[3], &steps[4]), None);
    let [one, other] = [1, 2].map(|amount| after_freeing(&issuer, amount));
    issuer.vote(&one, None, Epoch(1)).expect("a free slot");
    assert_eq!(issuer.double(&steps[3], &steps[4]), None);
    assert!(issuer.double(&one, &other).is_some(), "its slot may be stuck again");
}

#[test]
fn two_steps_in_one_place_are_the_same_fact_whichever_comes_first() {
    let [one, other] = two_steps();
    let record = |first: &Verified<AccountOp>, second: &Verified<AccountOp>| {
        witness(0, &facts(&[])).double(first, second).map(|record| record.to_bytes())
    };
    assert!(record(&one, &other).is_some());
    assert_eq!(record(&one, &other), record(&other, &one));
}

#[test]
fn a_frozen_slot_stays_frozen_whatever_is_prepared_later() {
    let [one, _] = two_steps();
    let mut issuer = witness(0, &facts(&[]));
    issuer.freeze(Epoch(3), &[(account(0), 0)], &[]);
    issuer.freeze(Epoch(2), &[(account(0), 0), (account(0), 1)], &[]);
    let certificate = certified(&one, Some(Epoch(2)));
    assert_eq!(issuer.certify(&certificate, Epoch(4)), Err(IssuerError::Behind));
}

/// Shows an issuer the payer's deposit and its channel.
pub(crate) fn opened(place: usize) -> Witness {
    let (reference, source) = (Digest([77; 32]), Source::Budget);
    let deposit = Deposit { reference, account: payer(), amount: DEPOSIT, epoch: Epoch(0), source };
    let deposit = (1..3).fold(sign(deposit, domain(), Role::Issuer, &issuer_signer(0)), |deposit, place| {
        deposit.signed_also_by(domain(), Role::Issuer, &issuer_signer(place))
    });
    let op = opening(DEPOSIT / 2);
    let certificate = Certificate { terms: Some(terms()), ..certified(&op, None) };
    let mut witness = Witness::new(manifest(), issuer_signer(place));
    witness.enter(&deposit).expect("signed by a quorum");
    witness.certify(&certificate, Epoch(0)).expect("a quorum voted");
    witness
}

/// Returns a receipt of the payer's channel, and the payee's claim to all of it.
pub(crate) fn redemption(sequence: u64, amount: u64) -> (Verified<Receipt>, Verified<Claim>) {
    let channel = ChannelId::from(opening(DEPOSIT / 2).id());
    let (usage, jobs, epoch) = (Usage::default(), Digest::ZERO, Epoch(0));
    let receipt = Receipt { channel, sequence, amount, usage, jobs, epoch };
    let receipt =
        sign(receipt, domain(), Role::Payer, &signer(6)).signed_also_by(domain(), Role::Payee, &signer(4));
    let claim = Claim { channel, receipt: receipt.id(), amount };
    let claim = sign(claim, domain(), Role::Payee, &signer(4));
    (receipt, claim)
}

#[test]
fn a_checkpoint_ends_a_channel_at_the_largest_redemption_when_no_quorum_agrees_on_its_end() {
    let channel = ChannelId::from(opening(DEPOSIT / 2).id());
    let [mut less, mut more] = [opened(0), opened(1)];
    let [small, large] = [redemption(1, 30_000), redemption(2, 70_000)];
    less.redeem(&small.0, Some(&small.1)).expect("within the receipt");
    more.redeem(&large.0, Some(&large.1)).expect("within the receipt");
    let over = manifest().grace_epochs + 2;
    assert_eq!(less.settled.propose(Epoch(over)).expect("stated").1.ended, [], "grace lasts to its end");
    less.promise_expired(Epoch(over + 1));
    more.promise_expired(Epoch(over + 1));

    let (_, early) = less.settled.propose(Epoch(over + 1)).expect("stated");
    assert_eq!(early.ended, [(channel, 30_000)]);
    assert!(more.objects(&early), "who has paid more lets no checkpoint take it back");

    let (_, names) = more.facts.since(0);
    let paid = names.iter().find_map(|name| {
        let Fact::Redeemed { receipt, claim } = more.fact(name)? else { return None };
        Some((receipt.clone(), claim.clone()))
    });
    let (receipt, claim) = paid.expect("what was paid on a channel that is over is handed to the others");
    less.redeem_elsewhere(&receipt, claim.as_ref()).expect("the payee's word").expect("news");
    let (names, outcome) = less.settled.propose(Epoch(over + 1)).expect("stated");
    assert_eq!(outcome.ended, [(channel, 70_000)]);
    assert!(!less.objects(&outcome) && !more.objects(&outcome));

    let proposer = less.clone();
    follow(&mut more, &proposer, &names, Epoch(over + 1));
    follow(&mut less, &proposer, &names, Epoch(over + 1));
    for issuer in [&less, &more] {
        assert_eq!(issuer.books.channel(channel), Some((70_000, true)));
        assert!(issuer.books.is_conserved());
        assert_eq!(issuer.books.balance(payer()).held, 0);
    }
}

#[test]
fn an_issuer_comes_back_from_its_journal_with_the_steps_for_which_it_voted() {
    let [one, other] = two_steps();
    let mut before = witness(0, &facts(&[]));
    let mut journal: Vec<Record> =
        (0..ACCOUNTS).map(|tag| Record::Deposited(deposit(tag).signed())).collect();
    journal.extend(before.vote(&one, None, Epoch(0)).expect("within the rules").1);

    let mut after = Witness::new(manifest(), issuer_signer(0));
    journal.into_iter().for_each(|record| after.replay(record).expect("its own journal"));
    after.compare_lock(&other);
    for _ in 0..3 {
        after.old_locks(8);
    }
    assert_eq!(after.stuck(), [(one, other)]);
}

#[test]
fn what_a_prepared_checkpoint_states_is_known_when_it_stands_whatever_was_paid_meanwhile() {
    let mut issuer = opened(0);
    let [small, large] = [redemption(1, 30_000), redemption(2, 70_000)];
    issuer.redeem(&small.0, Some(&small.1)).expect("within the receipt");
    let (names, outcome) = issuer.settled.propose(Epoch(0)).expect("stated");
    issuer.settled.hold(outcome.checkpoint.facts, &names);
    issuer.redeem(&large.0, Some(&large.1)).expect("within the receipt");

    let again = issuer.settled.outcome(Epoch(0), &names).expect("every fact is still here");
    assert_eq!(again.checkpoint, outcome.checkpoint);
    issuer.adopt(id_of(&again.checkpoint, domain()), &names, again);
    let channel = ChannelId::from(opening(DEPOSIT / 2).id());
    assert_eq!(issuer.books.channel(channel), Some((70_000, false)), "what was paid since is kept");
    assert_eq!(issuer.settled.since(), 1);
}

#[test]
fn nothing_more_is_paid_on_a_channel_that_a_prepared_checkpoint_ends() {
    let channel = ChannelId::from(opening(DEPOSIT / 2).id());
    let mut issuer = opened(0);
    let [small, large] = [redemption(1, 30_000), redemption(2, 70_000)];
    issuer.redeem(&small.0, Some(&small.1)).expect("within the receipt");
    issuer.freeze(Epoch(9), &[], &[channel]);
    let (paid, record) = issuer.redeem(&large.0, Some(&large.1)).expect("nothing is wrong with it");
    assert_eq!((paid, record), (30_000, None));
}
