//! Rotate against spend at four issuers, one of them lying: two machines hold an account's keys, the old one spends with
//! the key in force while the owner replaces it on the new one, and both go on behind whatever was taken.
//!
//! Votes and certificates stay sent and may arrive anywhere, late, often or never; issuers crash whenever they like.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};

use protocol::ids::{AccountId, Digest, RecordId};
use protocol::keys::{PublicKey, Signer};
use protocol::ledger::account::{Inception, promise};
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::quorum::Certificate;
use protocol::ledger::records::{AccountOp, Deposit, Epoch, OpBody, Source, Vote};
use protocol::manifest::Manifest;
use protocol::message::Checked;
use protocol::record::Record;
use protocol::signed::{Role, Verified, sign};
use stateright::{Model, Property};

use crate::network::{HONEST, Honest, domain, issuer_signer, lie, manifest, signer};
use crate::seen::search;

const CREDITS: u64 = 1_000_000;
/// More than half: two of them in one slot would spend what is not there.
const SPENT: u64 = 600_000;

/// A step that somebody has signed, by its place in [`Rotating::steps`].
type Step = usize;

/// The old key spends.
const SPEND: Step = 0;
/// The owner replaces it, in the same place.
const ROTATION: Step = 1;
/// The old key spends behind the rotation: nobody may ever take it.
const STOLEN: Step = 2;
/// The new key spends behind the rotation.
const FRESH: Step = 3;
/// The spend won: the owner rotates behind it.
const ROTATION_AFTER: Step = 4;
/// The spend won: the old key spends again, in the same place.
const SPEND_AFTER: Step = 5;
const STEPS: usize = 6;

/// Pairs that want the same place behind the same step.
const RIVALS: [[Step; 2]; 3] = [[SPEND, ROTATION], [STOLEN, FRESH], [ROTATION_AFTER, SPEND_AFTER]];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// An issuer is asked for its vote.
    Ask(usize, Step),
    /// An issuer is shown a certificate.
    Show(usize, Step),
    /// An issuer dies and starts again.
    Crash(usize),
}

/// An honest issuer. What it was asked and shown since it was born, and what of that is on its disk, says all about it.
#[derive(Debug, Clone)]
struct Issuer {
    honest: Honest,
    knows: Vec<Action>,
    disk: Vec<Action>,
}

impl Hash for Issuer {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        format!("{:?}{:?}", self.knows, self.disk).hash(hasher);
    }
}

impl PartialEq for Issuer {
    fn eq(&self, other: &Self) -> bool {
        self.knows == other.knows && self.disk == other.disk
    }
}

impl Issuer {
    fn remember(&mut self, action: Action, record: Option<Record>) {
        self.knows.push(action);
        if record.is_some() {
            self.disk.push(action);
        }
        self.honest.write(record);
    }

    fn crash(&mut self, place: usize) {
        self.honest.crash(place);
        self.knows.clone_from(&self.disk);
    }

    /// Returns the key in force by its books.
    fn key(&self) -> PublicKey {
        let books = &self.honest.witness.books;
        books.lineage(account()).expect("it has begun").key()
    }

    fn head(&self) -> (u64, RecordId) {
        self.honest.witness.books.next_slot(account())
    }
}

#[derive(Debug, Clone, PartialEq, Hash)]
struct State {
    issuers: [Issuer; HONEST],
    /// Whose votes the signers have, and whose word that a step is recorded.
    votes: [[bool; HONEST]; STEPS],
    recorded: [[bool; HONEST]; STEPS],
    /// Somebody was shown the certificate of the next step and did not take it.
    refused: Option<Step>,
}

struct Rotating {
    manifest: Manifest,
    issuers: [Issuer; HONEST],
    steps: [Verified<AccountOp>; STEPS],
    /// What all issuers could vote for each step.
    votes: [Vec<Verified<Vote>>; STEPS],
}

fn key(rotations: u8) -> Signer {
    signer(20 + rotations)
}

fn begins(rotations: u8) -> Inception {
    Inception { key: key(rotations).public(), next: promise(key(rotations + 1).public()) }
}

fn account() -> AccountId {
    begins(0).account()
}

/// Returns the step after `last`, signed with the key after so many rotations.
fn step(last: Option<&Verified<AccountOp>>, body: OpBody, rotations: u8) -> Verified<AccountOp> {
    let (sequence, previous) = last.map_or((0, RecordId::NONE), |last| (last.sequence + 1, last.id()));
    let op = AccountOp { account: account(), sequence, previous, epoch: Epoch(0), body };
    sign(op, domain(), Role::Owner, &key(rotations))
}

/// Returns a payment to the account of the signer with this number.
fn pay(to: u8) -> OpBody {
    OpBody::Pay { to: signer(to).public().into(), amount: SPENT }
}

/// Returns the votes of all for a step, the liar's last.
fn votes(op: &Verified<AccountOp>) -> Vec<Verified<Vote>> {
    let vote =
        Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled: None };
    let honest = (0..HONEST).map(|place| sign(vote.clone(), domain(), Role::Issuer, &issuer_signer(place)));
    honest.chain([lie(vote.clone())]).collect()
}

/// Returns an issuer of a funded account that has begun.
fn issuer(place: usize, inception: &Verified<AccountOp>) -> Issuer {
    let mut honest = Honest::new(place);
    let (reference, epoch, source) = (Digest([9; 32]), Epoch(0), Source::Outside);
    let deposit = Deposit { reference, account: account(), amount: CREDITS, epoch, source };
    let deposit = (1..4).fold(sign(deposit, domain(), Role::Issuer, &issuer_signer(0)), |deposit, place| {
        deposit.signed_also_by(domain(), Role::Issuer, &issuer_signer(place))
    });
    let record = honest.witness.enter(&deposit).expect("signed by all");
    honest.write(record);
    let begun = Certificate { op: inception.clone(), terms: None, votes: votes(inception) };
    let (_, record) = honest.witness.certify(&begun, Epoch(0)).expect("by a quorum");
    honest.write(record);
    Issuer { honest, knows: Vec::new(), disk: Vec::new() }
}

impl Rotating {
    fn new() -> Self {
        let inception = step(None, OpBody::Inception(begins(0)), 0);
        let spend = step(Some(&inception), pay(30), 0);
        let rotation = step(Some(&inception), OpBody::Rotate(begins(1)), 1);
        let steps = [
            spend.clone(),
            rotation.clone(),
            step(Some(&rotation), pay(31), 0),
            step(Some(&rotation), pay(32), 1),
            step(Some(&spend), OpBody::Rotate(begins(1)), 1),
            step(Some(&spend), OpBody::Noop, 0),
        ];
        let issuers = [0, 1, 2].map(|place| issuer(place, &inception));
        Self { manifest: manifest(), issuers, votes: steps.each_ref().map(votes), steps }
    }

    /// Returns a step with the votes that its signer has, and the liar's.
    fn certificate(&self, state: &State, step: Step) -> Certificate<Checked> {
        let is_there = |place: usize| place == HONEST || state.votes[step][place];
        let votes = self.votes[step].iter().enumerate().filter(|(place, _)| is_there(*place));
        let votes = votes.map(|(_, vote)| vote.clone()).collect();
        Certificate { op: self.steps[step].clone(), terms: None, votes }
    }

    fn is_certified(&self, state: &State, step: Step) -> bool {
        self.certificate(state, step).check(&self.manifest).is_ok()
    }

    /// Says whether an issuer's books have a step.
    fn has(&self, issuer: &Issuer, step: Step) -> bool {
        let (next, head) = issuer.head();
        let op = &self.steps[step];
        let follows = |other: &Verified<AccountOp>| other.id() == head && other.previous == op.id();
        head == op.id() || next > op.sequence && self.steps.iter().any(follows)
    }

    fn ask(&self, state: &mut State, place: usize, step: Step) -> Option<()> {
        let issuer = &mut state.issuers[place];
        let (_, record) = issuer.honest.witness.vote(&self.steps[step], None, Epoch(0)).ok()?;
        let action = Action::Ask(place, step);
        if !issuer.knows.contains(&action) {
            issuer.remember(action, record);
        }
        state.votes[step][place] = true;
        Some(())
    }

    fn show(&self, state: &mut State, place: usize, step: Step) {
        let certificate = self.certificate(state, step);
        let issuer = &mut state.issuers[place];
        match issuer.honest.witness.certify(&certificate, Epoch(0)) {
            Ok((_, record)) => {
                let action = Action::Show(place, step);
                if !issuer.knows.contains(&action) {
                    issuer.remember(action, record);
                }
                state.recorded[step][place] = true;
            }
            Err(IssuerError::Behind) => {}
            Err(_) => state.refused = Some(step),
        }
    }
}

impl Model for Rotating {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let none = [[false; HONEST]; STEPS];
        vec![State { issuers: self.issuers.clone(), votes: none, recorded: none, refused: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let certified: Vec<Step> = (0..STEPS).filter(|step| self.is_certified(state, *step)).collect();
        for place in 0..HONEST {
            actions.extend((0..STEPS).map(|step| Action::Ask(place, step)));
            actions.extend(certified.iter().map(|step| Action::Show(place, *step)));
            actions.push(Action::Crash(place));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Ask(place, step) => self.ask(&mut state, place, step)?,
            Action::Show(place, step) => self.show(&mut state, place, step),
            Action::Crash(place) => state.issuers[place].crash(place),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one step is certified in a slot", |model: &Self, state: &State| {
                RIVALS.iter().all(|pair| !pair.iter().all(|step| model.is_certified(state, *step)))
            }),
            Property::always("no step of a replaced key is taken", |model: &Self, state: &State| {
                !model.is_certified(state, STOLEN)
                    && state.issuers.iter().all(|issuer| !model.has(issuer, STOLEN))
            }),
            Property::always("what was called recorded stays recorded", |model: &Self, state: &State| {
                let is_there = |step: Step, place: usize| {
                    !state.recorded[step][place] || model.has(&state.issuers[place], step)
                };
                (0..STEPS).all(|step| (0..HONEST).all(|place| is_there(step, place)))
            }),
            Property::always("the key in force is that of the steps taken", |model: &Self, state: &State| {
                state.issuers.iter().all(|issuer| {
                    let rotated = model.has(issuer, ROTATION) || model.has(issuer, ROTATION_AFTER);
                    issuer.key() == key(u8::from(rotated)).public()
                })
            }),
            Property::always("whoever can take a certified step takes it", |_, state: &State| {
                state.refused.is_none()
            }),
            Property::always("credits are conserved", |_, state: &State| {
                state.issuers.iter().all(|issuer| issuer.honest.witness.books.is_conserved())
            }),
            Property::sometimes("the rotation wins and the new key spends", |_, state: &State| {
                state.recorded[FRESH].contains(&true)
            }),
            Property::sometimes("the spend wins and the rotation follows", |_, state: &State| {
                state.recorded[ROTATION_AFTER].contains(&true)
            }),
            Property::sometimes("the spend wins and another follows", |_, state: &State| {
                state.recorded[SPEND_AFTER].contains(&true)
            }),
        ]
    }
}

#[test]
fn a_rotation_and_spends_share_one_sequence_in_every_order() {
    search("rotating", Rotating::new());
}
