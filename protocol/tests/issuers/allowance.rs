//! One of several issuers votes for so many steps of an account between two checkpoints, and nobody takes another's room.

use protocol::ids::{AccountId, Digest, RecordId};
use protocol::keys::{PublicKey, Signer};
use protocol::ledger::account::Inception;
use protocol::ledger::allowance::{COMMON_OF_ONE_MAX, KEY_STEPS_MAX, KEY_STEPS_OF_ONE_MAX, OWN_MAX};
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::quorum::{Answers, Certificate, Fact};
use protocol::ledger::records::{AccountOp, Deposit, Epoch, OpBody, Source, Vote};
use protocol::ledger::witness::Witness;
use protocol::message::Checked;
use protocol::record::Record;
use protocol::signed::{Role, Verified, id_of, sign};

use crate::network::{domain, issuer_signer, manifest, signer};

const CREDITS: u64 = 4_000_000_000;

fn owner(tag: u8) -> Signer {
    signer(100 + tag)
}

fn account(tag: u8) -> AccountId {
    owner(tag).public().into()
}

fn deposit(tag: u8, amount: u64) -> Verified<Deposit> {
    let (reference, source) = (Digest([tag; 32]), Source::Outside);
    let deposit = Deposit { reference, account: account(tag), amount, epoch: Epoch(0), source };
    let first = sign(deposit, domain(), Role::Issuer, &issuer_signer(0));
    (1..3).fold(first, |deposit, place| deposit.signed_also_by(domain(), Role::Issuer, &issuer_signer(place)))
}

fn step(tag: u8, (sequence, previous): (u64, RecordId), body: OpBody) -> Verified<AccountOp> {
    let op = AccountOp { account: account(tag), sequence, previous, epoch: Epoch(0), body };
    sign(op, domain(), Role::Owner, &owner(tag))
}

fn certified(op: &Verified<AccountOp>) -> Certificate<Checked> {
    let vote =
        Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled: None };
    let by = |place| sign(vote.clone(), domain(), Role::Issuer, &issuer_signer(place));
    Certificate { op: op.clone(), terms: None, votes: [0, 1, 2].map(by).into() }
}

/// An issuer, and what is on its disk.
struct Desk {
    witness: Witness,
    journal: Vec<Record>,
}

impl Desk {
    /// Returns an issuer with the deposits of accounts 0, 1 and so on.
    fn with(amounts: &[u64]) -> Self {
        let mut witness = Witness::new(manifest(), issuer_signer(0));
        let deposits = (0..).zip(amounts).map(|(tag, amount)| deposit(tag, *amount));
        let journal =
            deposits.map(|deposit| witness.enter(&deposit).expect("agreed").expect("new")).collect();
        Self { witness, journal }
    }

    /// Returns the next step of an account, which does nothing.
    fn next(&self, tag: u8) -> Verified<AccountOp> {
        step(tag, self.witness.books.next_slot(account(tag)), OpBody::Noop)
    }

    /// Asks for a vote for the next step of an account, on a copy.
    fn asked(&self, tag: u8) -> Result<(), IssuerError> {
        self.witness.clone().vote(&self.next(tag), None, Epoch(0)).map(drop)
    }

    fn takes_next(&mut self, tag: u8) {
        let (_, record) =
            self.witness.certify(&certified(&self.next(tag)), Epoch(0)).expect("a quorum voted");
        self.journal.extend(record);
    }

    /// Makes a checkpoint of all that was taken.
    fn ends_epoch(&mut self, epoch: Epoch) {
        let (names, outcome) = self.witness.settled.propose(epoch).expect("sums that can be stated");
        self.witness.adopt(id_of(&outcome.checkpoint, domain()), &names, outcome);
    }
}

#[test]
fn one_account_makes_so_many_steps_before_a_checkpoint_and_stops_nobody_but_itself() {
    let mut desk = Desk::with(&[CREDITS; 2]);
    for _ in 1..COMMON_OF_ONE_MAX {
        desk.takes_next(0);
    }
    assert_eq!(desk.asked(0), Ok(()));
    desk.takes_next(0);
    let refused = Err(IssuerError::TooManySteps { made: COMMON_OF_ONE_MAX });
    assert_eq!((desk.asked(0), desk.asked(1)), (refused, Ok(())));

    let mut after = Desk { witness: Witness::new(manifest(), issuer_signer(0)), journal: Vec::new() };
    desk.journal.iter().for_each(|record| after.witness.replay(record.clone()).expect("its own journal"));
    assert_eq!((after.asked(0), after.asked(1)), (refused, Ok(())), "a crash forgets no step");

    // Others may have counted otherwise: what a quorum has voted for is taken.
    desk.takes_next(0);
    desk.ends_epoch(Epoch(0));
    assert_eq!((desk.asked(0), desk.asked(1)), (Ok(()), Ok(())));
}

#[test]
fn a_step_for_which_we_have_voted_is_voted_for_again_when_the_room_is_gone() {
    let mut desk = Desk::with(&[CREDITS]);
    for _ in 1..COMMON_OF_ONE_MAX {
        desk.takes_next(0);
    }
    let last = desk.next(0);
    desk.witness.vote(&last, None, Epoch(0)).expect("room for one");
    desk.takes_next(0);
    assert!(desk.asked(0).is_err());
    assert!(desk.witness.vote(&last, None, Epoch(0)).is_ok());
}

#[test]
fn what_an_account_held_at_the_checkpoint_gives_it_steps_that_nobody_else_can_take() {
    let mut desk = Desk::with(&[CREDITS, 3 * CREDITS]);
    desk.ends_epoch(Epoch(0));
    // A step so far on is none that fits, but room is judged by its place alone.
    let has_room = |tag: u8, place: u64| {
        let op = step(tag, (place, RecordId::NONE), OpBody::Noop);
        desk.witness.settled.check_room(&op).is_ok()
    };
    for (tag, own) in [(0, OWN_MAX / 4), (1, OWN_MAX / 4 * 3), (2, 0)] {
        let most = own + COMMON_OF_ONE_MAX;
        assert_eq!([most - 1, most].map(|place| has_room(tag, place)), [true, false]);
    }
}

#[test]
fn a_key_can_be_replaced_whatever_its_thief_has_signed() {
    let desk = Desk::with(&[CREDITS]);
    let to = Inception { key: owner(9).public(), next: Digest([3; 32]) };
    let beyond = |body| step(0, (COMMON_OF_ONE_MAX, RecordId::NONE), body);
    let room = |body| desk.witness.settled.check_room(&beyond(body)).is_ok();
    assert_eq!([OpBody::Noop, OpBody::Rotate(to), OpBody::Inception(to)].map(room), [false, true, true]);
}

#[test]
fn steps_that_cost_nothing_take_no_room_that_others_pay_for() {
    let mut desk = Desk::with(&[CREDITS]);
    let to = Inception { key: owner(9).public(), next: Digest([3; 32]) };
    let rotation = |number: u64, sequence: u64| {
        let (account, body) = (AccountId(Digest::of(&number.to_be_bytes()).0), OpBody::Rotate(to));
        let op = AccountOp { account, sequence, previous: RecordId::NONE, epoch: Epoch(0), body };
        sign(op, domain(), Role::Owner, &owner(1))
    };
    let settled = &mut desk.witness.settled;
    let mut let_in = |number: u64| {
        let mut taken = 0;
        for step in (0..17).map(|sequence| rotation(number, sequence)) {
            if number <= KEY_STEPS_MAX && settled.check_room(&step).is_err() {
                break;
            }
            settled.took(Fact::Step(certified(&step)).into());
            taken += 1;
        }
        taken
    };
    assert_eq!(let_in(0), KEY_STEPS_OF_ONE_MAX);
    assert_eq!((1..KEY_STEPS_MAX).map(&mut let_in).sum::<u64>(), KEY_STEPS_MAX - KEY_STEPS_OF_ONE_MAX);

    // A quorum of others may have had room for more of them than there is common room: they take none of it.
    (KEY_STEPS_MAX + 1..).take(1_300).for_each(|number| assert_eq!(let_in(number), 17));
    assert_eq!(desk.asked(0), Ok(()));
}

#[test]
fn an_owner_learns_that_there_is_no_room_from_more_issuers_than_can_lie() {
    let key = |place: usize| -> PublicKey { issuer_signer(place).public() };
    let mut answers = Answers::default();
    let error = IssuerError::TooManySteps { made: 7 };
    assert!(!answers.refused(key(0), error, &manifest()));
    assert_eq!(answers.lacks_room(&manifest()), None);
    assert!(!answers.refused(key(1), IssuerError::SlotLocked, &manifest()));
    assert_eq!(answers.lacks_room(&manifest()), None);
    assert!(answers.refused(key(2), error, &manifest()));
    assert_eq!(answers.lacks_room(&manifest()), Some(error));
}
