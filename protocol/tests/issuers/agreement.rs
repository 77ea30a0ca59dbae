//! The agreement on a checkpoint as issuers run it: one of four lies, one of the others may crash, rounds run out.
//! What was sent stays sent and may arrive at any time.

use std::collections::BTreeSet;

use protocol::ids::RecordId;
use protocol::keys::PublicKey;
use protocol::ledger::agreement::{Agreement, Ballot, Phase};
use protocol::manifest::Manifest;
use protocol::signed::{Role, Verified, sign};
use protocol::time::Time;
use stateright::{Model, Property};

use crate::network::{HONEST, domain, issuer_signer, manifest, search};

const ROUNDS: u32 = 2;
const VALUES: [u8; 2] = [1, 2];

/// A vote without its signature: the place of the issuer, the phase, the round, the checkpoint.
type Cast = (usize, Phase, u32, u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Propose(u8),
    Prepare(usize, u8),
    Commit(usize),
    Timeout(usize),
    Crash(usize),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct State {
    /// What each has on disk: its votes, in their order.
    journals: [Vec<Cast>; HONEST],
    rounds: [u32; HONEST],
    has_crashed: bool,
    proposals: [u8; ROUNDS as usize],
}

struct Council {
    manifest: Manifest,
    /// Who proposes first.
    turn: u32,
}

fn id(value: u8) -> RecordId {
    RecordId([value; 32])
}

fn key(place: usize) -> PublicKey {
    issuer_signer(place).public()
}

fn ballot((place, phase, round, value): Cast) -> Verified<Ballot> {
    let ballot = Ballot { previous: RecordId::NONE, round, phase, checkpoint: id(value) };
    sign(ballot, domain(), Role::Issuer, &issuer_signer(place))
}

impl State {
    /// Returns all votes of a kind that may have been sent; the lying issuer's is always among them.
    fn sent(&self, phase: Phase, round: u32, value: u8) -> Vec<Cast> {
        let cast = |place| (place, phase, round, value);
        let honest = (0..HONEST).filter(|place| self.journals[*place].contains(&cast(*place)));
        honest.chain([HONEST]).map(cast).collect()
    }

    fn prepares(&self, round: u32, value: u8) -> Vec<Verified<Ballot>> {
        self.sent(Phase::Prepare, round, value).into_iter().map(ballot).collect()
    }
}

impl Council {
    /// Returns an issuer's agreement as it comes back from its journal, in the round in which it is.
    fn agreement(&self, state: &State, place: usize) -> Agreement {
        let mut agreement = Agreement::new(RecordId::NONE, self.turn);
        for cast in &state.journals[place] {
            let (_, phase, round, value) = *cast;
            let prepares = if phase == Phase::Commit { state.prepares(round, value) } else { Vec::new() };
            agreement.restore(key(place), &ballot(*cast), prepares);
        }
        agreement.enter(state.rounds[place]);
        agreement
    }

    fn proposer(&self, round: u32) -> usize {
        (self.turn + round) as usize % 4
    }

    fn prepare(&self, state: &mut State, place: usize, value: u8) -> Option<()> {
        let agreement = self.agreement(state, place);
        let round = agreement.round();
        let is_proposed =
            self.proposer(round) == HONEST || state.proposals.get(round as usize) == Some(&value);
        let shown = (0..round).rev().map(|earlier| state.prepares(earlier, value));
        let may = [Vec::new()]
            .into_iter()
            .chain(shown)
            .any(|shown| agreement.may_prepare(key(place), id(value), &shown, &self.manifest));
        (is_proposed && may && agreement.prepared(key(place)).is_none())
            .then(|| state.journals[place].push((place, Phase::Prepare, round, value)))
    }

    fn commit(&self, state: &mut State, place: usize) -> Option<()> {
        let mut agreement = self.agreement(state, place);
        let round = agreement.round();
        for value in VALUES {
            for cast in state.sent(Phase::Prepare, round, value) {
                // Of the liar only one of its votes is heard: the one that suits it.
                let is_ours = agreement.prepared(key(place)) == Some(id(value));
                if cast.0 != place && (cast.0 != HONEST || is_ours) {
                    agreement.hear(key(cast.0), &ballot(cast)).expect("one vote of each");
                }
            }
        }
        let lock = agreement.to_commit(key(place), &self.manifest)?;
        let value = VALUES.into_iter().find(|value| id(*value) == lock.checkpoint)?;
        state.journals[place].push((place, Phase::Commit, round, value));
        Some(())
    }

    fn propose(&self, state: &mut State, value: u8) -> Option<()> {
        let due = |round: &u32| {
            let place = self.proposer(*round);
            place < HONEST
                && state.proposals[*round as usize] == 0
                && self.agreement(state, place).round() == *round
        };
        let round = (0..ROUNDS).find(due)?;
        let agreement = self.agreement(state, self.proposer(round));
        let is_free = agreement.lock().is_none_or(|lock| lock.checkpoint == id(value));
        is_free.then(|| state.proposals[round as usize] = value)
    }

    /// Says whether a quorum committed a checkpoint in one round, upon which every issuer that hears of it signs.
    fn is_decided(&self, state: &State, value: u8) -> bool {
        (0..ROUNDS).any(|round| {
            let mut agreement = Agreement::new(RecordId::NONE, self.turn);
            for cast in state.sent(Phase::Commit, round, value) {
                agreement.hear(key(cast.0), &ballot(cast)).expect("one vote of each");
            }
            agreement.decided(&self.manifest) == Some(id(value))
        })
    }
}

impl Model for Council {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(VALUES.map(Action::Propose));
        for place in 0..HONEST {
            actions.extend(VALUES.map(|value| Action::Prepare(place, value)));
            actions.push(Action::Commit(place));
            if state.rounds[place] + 1 < ROUNDS {
                actions.push(Action::Timeout(place));
            }
            if !state.has_crashed {
                actions.push(Action::Crash(place));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Propose(value) => self.propose(&mut state, value)?,
            Action::Prepare(place, value) => self.prepare(&mut state, place, value)?,
            Action::Commit(place) => self.commit(&mut state, place)?,
            Action::Timeout(place) => state.rounds[place] += 1,
            Action::Crash(place) => {
                // What it knew of its round is forgotten; its votes come back.
                state.rounds[place] = 0;
                state.has_crashed = true;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one checkpoint is agreed on", |model: &Self, state: &State| {
                !VALUES.into_iter().all(|value| model.is_decided(state, value))
            }),
            Property::sometimes("a checkpoint is agreed on", |model: &Self, state: &State| {
                VALUES.into_iter().any(|value| model.is_decided(state, value))
            }),
            Property::always("nobody votes twice in one place", |_, state: &State| {
                state.journals.iter().all(|journal| {
                    let places: BTreeSet<_> = journal.iter().map(|cast| (cast.1, cast.2)).collect();
                    places.len() == journal.len()
                })
            }),
        ]
    }
}

#[test]
fn four_issuers_never_agree_on_two_checkpoints_whoever_crashes_and_whatever_one_says() {
    for turn in [0, 3] {
        search("agreement", Council { manifest: manifest(), turn });
    }
}

/// Returns an issuer's agreement in a round, having heard these votes.
fn having_heard(round: u32, casts: &[Cast]) -> Agreement {
    let mut agreement = Agreement::new(RecordId::NONE, 0);
    agreement.enter(round);
    for cast in casts {
        agreement.hear(key(cast.0), &ballot(*cast)).expect("one vote of each");
    }
    agreement
}

#[test]
fn nothing_is_committed_before_a_quorum_has_prepared_it() {
    let prepares = [0, 1, 2].map(|place| (place, Phase::Prepare, 0, 1));
    assert_eq!(having_heard(0, &prepares[..2]).to_commit(key(0), &manifest()), None);
    let other = [prepares[0], prepares[1], (2, Phase::Prepare, 0, 2)];
    assert_eq!(having_heard(0, &other).to_commit(key(0), &manifest()), None);
    let lock = having_heard(0, &prepares).to_commit(key(0), &manifest()).expect("a quorum");
    assert_eq!((lock.round, lock.checkpoint, lock.prepares.len()), (0, id(1), 3));
}

#[test]
fn a_lock_yields_to_a_quorum_of_a_later_round_and_to_nothing_else() {
    let locked = (0, Phase::Commit, 1, 1);
    let mut agreement = Agreement::new(RecordId::NONE, 0);
    agreement.restore(key(0), &ballot(locked), Vec::new());
    agreement.enter(3);
    let yields = |round, places: &[usize]| {
        let prepares: Vec<_> =
            places.iter().map(|place| ballot((*place, Phase::Prepare, round, 2))).collect();
        agreement.may_prepare(key(0), id(2), &prepares, &manifest())
    };
    assert!(yields(2, &[1, 2, 3]));
    assert!(!yields(2, &[1, 2]) && !yields(2, &[1, 2, 2]) && !yields(2, &[]));
    assert!(!yields(1, &[1, 2, 3]) && !yields(0, &[1, 2, 3]), "not later than the lock");
    assert!(!yields(3, &[1, 2, 3]), "not before this round");
    assert!(agreement.may_prepare(key(0), id(1), &[], &manifest()), "what it is locked on");
}

#[test]
fn whoever_is_ahead_waits_for_a_quorum_and_then_a_whole_round() {
    let manifest = manifest();
    let long = manifest.epoch_ms;
    let mut ahead = Agreement::new(RecordId::NONE, 0);
    ahead.enter(20);
    assert!(!ahead.is_over(key(0), Time(0), &manifest) && !ahead.is_over(key(0), Time(long), &manifest));
    ahead.is_in(key(1), 20, &manifest);
    ahead.is_in(key(2), 19, &manifest);
    assert!(!ahead.is_over(key(0), Time(2 * long), &manifest), "two of four are there");

    // The round begins when the third has come.
    ahead.is_in(key(2), 20, &manifest);
    assert!(!ahead.is_over(key(0), Time(3 * long), &manifest));
    assert!(!ahead.is_over(key(0), Time(3 * long + long / 8 - 1), &manifest));
    assert!(ahead.is_over(key(0), Time(3 * long + long / 8), &manifest));
}
