//! The owner of an account at four issuers, and what it makes of their answers: one may lie, and one may be behind.

use super::issuers::{four, key, on};
use super::*;
use crate::ledger::quorum::{Fact, freed_head};
use crate::ledger::records::Vote;

/// Two epochs are over.
const LATER: Time = START.plus_ms(2 * 24 * 60 * 60 * 1000);

/// The last step that all issuers know in the beginning.
const HEAD: RecordId = RecordId([1; 32]);

/// Another step, of which one issuer that is behind and one that lies say that it came after.
const DROPPED: RecordId = RecordId([2; 32]);

impl Told {
    /// Returns the owner of an account, connected to the four issuers and not told anything yet.
    fn owner_at_four() -> Self {
        let mut told = node_of(four(), CONSUMER, None);
        (0..4).for_each(|place| told.meets(place));
        told
    }

    /// An issuer says where the account stands.
    fn is_told(&mut self, place: u8, next: u64, head: RecordId, as_of: u64) -> Vec<Effect> {
        let balance = Balance { cash: 1_000_000_000_000, earned: 0, held: 0, as_of };
        let account = self.node.account();
        self.hears(LATER, &on(place), Message::AccountState { account, next, head, balance })
    }

    fn orders(&mut self, now: Time, tag: u8) -> Vec<Effect> {
        self.told(now, Input::Owner(OwnerCommand::Order(Digest([tag; 32]), Order::Noop)))
    }

    fn pending(&self) -> Option<RecordId> {
        self.node.wallet.pending().map(Verified::id)
    }

    /// Returns the owner with a step that it has just signed.
    fn with_a_step() -> (Self, Verified<AccountOp>) {
        let mut owner = Self::owner_at_four();
        (0..4).for_each(|place| drop(owner.is_told(place, 1, HEAD, 1)));
        owner.orders(LATER, 1);
        let step = owner.node.wallet.pending().cloned().expect("it was signed");
        (owner, step)
    }

    fn votes(&mut self, place: u8, step: &Verified<AccountOp>, settled: Option<Epoch>) -> Vec<Effect> {
        let (op, account, sequence) = (step.id(), step.account, step.sequence);
        let vote = Vote { op, account, sequence, epoch: Epoch(0), settled };
        let vote = sign(vote, four().domain(), Role::Issuer, &key(place));
        let balance = Balance { as_of: 1, ..Balance::default() };
        self.hears(START, &on(place), Message::Voted { vote, balance })
    }

    fn records(&mut self, place: u8, step: &Verified<AccountOp>) -> Vec<Effect> {
        let recorded = Recorded { op: step.id(), epoch: Epoch(0) };
        let recorded = sign(recorded, four().domain(), Role::Issuer, &key(place));
        let balance = Balance { as_of: 2, ..Balance::default() };
        self.hears(START, &on(place), Message::Recorded { recorded, balance })
    }
}

/// Returns how many issuers are sent a step, and how many a certificate, with how many votes that state a checkpoint.
fn shown(out: &[Effect]) -> (usize, usize, usize) {
    let mut shown = (0, 0, 0);
    for effect in out {
        match effect {
            Effect::Send(_, Message::Step { .. }) => shown.0 += 1,
            Effect::Send(_, Message::Fact(Fact::Step(certificate))) => {
                shown.1 += 1;
                let votes = certificate.votes.iter().cloned();
                let votes = votes.map(|vote| vote.verify(four().domain(), Scheme::Strict).expect("signed"));
                shown.2 += votes.filter(|vote| vote.settled.is_some()).count();
            }
            _ => {}
        }
    }
    shown
}

#[test]
fn a_step_is_not_left_for_a_head_that_no_quorum_names() {
    let (mut owner, step) = Told::with_a_step();
    owner.is_told(0, 2, DROPPED, 2);
    owner.is_told(3, 2, DROPPED, 2);
    assert_eq!(owner.pending(), Some(step.id()), "one of them may lie, and the other one be behind");
    assert_eq!(shown(&owner.orders(LATER, 2)), (0, 0, 0), "one step at a time");

    (0..3).for_each(|place| drop(owner.records(place, &step)));
    let next = owner.node.wallet.pending().expect("the next one");
    assert_eq!((next.sequence, next.previous), (2, step.id()));
}

#[test]
fn an_owner_that_starts_waits_until_a_quorum_names_its_head() {
    let mut owner = Told::owner_at_four();
    for (place, next, head) in [(0, 2, DROPPED), (3, 2, DROPPED), (1, 1, HEAD), (2, 1, HEAD)] {
        owner.is_told(place, next, head, 1);
        assert_eq!(shown(&owner.orders(LATER, place)), (0, 0, 0));
    }
    assert_eq!(owner.node.balance().cash, 1_000_000_000_000, "what it holds is known");

    owner.is_told(0, 1, HEAD, 2);
    owner.is_told(3, 1, HEAD, 2);
    let step = owner.node.wallet.pending().expect("what was ordered");
    assert_eq!((step.sequence, step.previous), (1, HEAD));
}

#[test]
fn a_step_whose_slot_a_checkpoint_has_freed_is_left_when_more_issuers_say_so_than_may_lie() {
    for (one, other) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
        let (mut owner, step) = Told::with_a_step();
        let head = freed_head(HEAD, Epoch(0));
        owner.is_told(one, 1, head, 2);
        assert_eq!(owner.pending(), Some(step.id()));
        // A third one holds what the checkpoint has dropped.
        owner.is_told((0..4).find(|place| ![one, other].contains(place)).expect("a third"), 2, DROPPED, 2);
        let out = owner.is_told(other, 1, head, 2);
        assert_eq!(owner.pending(), None, "{one} and {other}");
        assert!(out.contains(&Effect::Record(Record::GivenUp(step.id()))));

        // Those that have not followed say what was before, and are enough with one that lies.
        (0..4).for_each(|place| drop(owner.is_told(place, 1, HEAD, 3)));
        owner.orders(LATER, 2);
        let next = owner.node.wallet.pending().expect("signed");
        assert_eq!((next.sequence, next.previous), (1, head));
    }
}

#[test]
fn an_owner_whose_step_is_for_a_slot_long_taken_signs_no_other_one_for_it() {
    let (_, old) = Told::with_a_step();
    let mut owner = Told::owner_at_four();
    owner.node.wallet.replay(old.clone());
    for (place, next) in [(0, 9), (1, 9), (2, 8)] {
        owner.is_told(place, next, RecordId([9; 32]), 5);
        let (op, error) = (old.id(), IssuerError::WrongSequence { next });
        let balance = Balance { as_of: 5, ..Balance::default() };
        let out = owner.hears(START, &on(place), Message::StepRefused { op, error, balance });
        assert_eq!(shown(&out), (0, 0, 0));
    }
    assert_eq!((owner.pending(), shown(&owner.orders(LATER, 2))), (None, (0, 0, 0)));
    owner.is_told(2, 9, RecordId([9; 32]), 6);
    let next = owner.node.wallet.pending().expect("what was ordered");
    assert_eq!((next.sequence, next.previous), (9, RecordId([9; 32])));
}

#[test]
fn whoever_ordered_a_step_that_another_one_has_overtaken_is_told() {
    let (mut owner, step) = Told::with_a_step();
    let out: Vec<Effect> = (0..3).flat_map(|place| owner.is_told(place, 2, DROPPED, 2)).collect();
    let error = OrderError::Refused(IssuerError::WrongSequence { next: 2 });
    assert!(out.contains(&Effect::Ordered(Digest([1; 32]), Err(error))), "{out:?}");
    assert!(owner.pending() != Some(step.id()));
}

#[test]
fn an_owner_whose_issuers_do_not_agree_asks_them_once_for_a_job_that_waits() {
    let mut owner = Told::owner_at_four();
    let advert = Advert::clone(&advert(&PROVIDER, 1, START, DEAR));
    let licence = open_licence(MODEL, four().domain());
    let models = vec![ModelOffer { licence, ..offer(DEAR) }];
    let advert = sign(Advert { models, ..advert }, four().domain(), Role::Node, &PROVIDER.node());
    owner.greeted_at_four(&PROVIDER, Some(advert));
    owner.told(START, Input::Submitted(job(1), spec()));
    let terms = Terms {
        payer_account: owner.node.account(),
        licence,
        split: Terms::standard_split(&four(), Modality::Text, PROVIDER.account()),
        ..Terms::clone(&terms(DEAR))
    };
    let terms = sign(terms, four().domain(), Role::Node, &PROVIDER.node());
    let queries = |out: &[Effect]| sent(out).iter().filter(|name| **name == "account_query").count();

    assert_eq!(queries(&owner.hears(START, &PROVIDER, Message::Offer { job: job(1), terms })), 4);
    for (as_of, place) in (1..9).flat_map(|as_of| (0..4).map(move |place| (as_of, place))) {
        let (next, head) = if place % 3 == 0 { (2, DROPPED) } else { (1, HEAD) };
        assert_eq!(queries(&owner.is_told(place, next, head, as_of)), 0);
    }
    assert_eq!(shown(&owner.is_told(0, 1, HEAD, 9)).0, 4, "a quorum agrees: the channel is opened");
}

#[test]
fn where_some_votes_do_not_count_all_issuers_are_asked_again_and_newer_ones_are_shown() {
    let (mut owner, step) = Told::with_a_step();
    assert_eq!(shown(&owner.votes(0, &step, None)), (0, 0, 0));
    owner.votes(1, &step, None);
    assert_eq!(shown(&owner.votes(3, &step, None)), (0, 4, 0), "a certificate");
    let refused = |owner: &mut Told| {
        let (op, error) = (step.id(), IssuerError::WrongEpoch);
        let balance = Balance { as_of: 1, ..Balance::default() };
        owner.hears(START, &on(2), Message::StepRefused { op, error, balance })
    };

    assert_eq!(shown(&refused(&mut owner)), (4, 4, 0));
    assert_eq!(shown(&refused(&mut owner)), (0, 0, 0), "that is known");
    // A liar could name one checkpoint after the other.
    assert_eq!(
        shown(&owner.votes(0, &step, Some(Epoch(0)))),
        (0, 0, 0),
        "it is shown with the next question"
    );
    assert_eq!(shown(&owner.is_told(2, 1, HEAD, 2)), (1, 1, 1));
    assert_eq!(shown(&owner.votes(2, &step, Some(Epoch(0)))), (4, 4, 8), "a vote that was missing");
    assert_eq!(owner.pending(), Some(step.id()));
}

#[test]
fn a_step_that_was_signed_before_a_start_is_done_when_a_quorum_has_recorded_it() {
    let (_, step) = Told::with_a_step();
    let mut owner = Told::owner_at_four();
    owner.node.wallet.replay(step.clone());
    // Also while it recovers what else it had.
    owner.node.recover(&mut Vec::new());
    (0..3).for_each(|place| drop(owner.records(place, &step)));
    assert_eq!(owner.pending(), None);
    owner.node.recovery = None;
    owner.orders(LATER, 2);
    let next = owner.node.wallet.pending().expect("signed");
    assert_eq!((next.sequence, next.previous), (2, step.id()));
}

#[test]
fn a_step_that_issuers_do_not_count_credits_for_yet_is_kept_and_asked_for_again() {
    let (mut owner, step) = Told::with_a_step();
    for place in 0..4 {
        let (op, error) = (step.id(), IssuerError::Uncounted { needed: 10_000, available: 0 });
        let balance = Balance { as_of: 1, ..Balance::default() };
        let out = owner.hears(START, &on(place), Message::StepRefused { op, error, balance });
        assert_eq!((owner.pending(), shown(&out)), (Some(step.id()), (0, 0, 0)), "{place}");
    }
    let why = owner.node.why_not_opened();
    assert!(
        matches!(&why, Failure::IssuerRefused(why) if why.contains("10000 nano-credits needed")),
        "{why:?}"
    );

    let counts = |owner: &mut Told, place| {
        let counted = Message::Confirmed { channel: ChannelId([1; 32]), amount: 20_000 };
        shown(&owner.hears(START, &on(place), counted))
    };
    assert_eq!(counts(&mut owner, 2), (1, 0, 0), "it may count enough now");
    owner.votes(2, &step, None);
    assert_eq!(counts(&mut owner, 2), (0, 0, 0), "it has voted");
    assert_eq!(shown(&owner.is_told(1, 1, HEAD, 2)), (1, 0, 0));
}
