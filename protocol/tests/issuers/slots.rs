//! A payer signs two steps for one slot, each for more than half of what it has: at most one is ever taken.

use protocol::ledger::quorum::Certificate;
use protocol::ledger::records::{AccountOp, Epoch, Vote};
use protocol::message::Checked;
use protocol::signed::{Role, Verified};
use stateright::{Model, Property};

use crate::network::{DEPOSIT, HONEST, Honest, issuer_signer, lie, manifest, opening, search, terms};

/// One of the two steps.
type Step = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// An issuer is asked for its vote.
    Ask(usize, Step),
    /// An issuer is shown a certificate.
    Show(usize, Step),
    /// An issuer dies and starts again.
    Crash(usize),
}

#[derive(Debug, Clone, PartialEq, Hash)]
struct State {
    issuers: Vec<Honest>,
    /// Which honest issuers' votes the payer has, and whose recordings.
    votes: [[bool; HONEST]; 2],
    recorded: [[bool; HONEST]; 2],
}

struct Slots([Verified<AccountOp>; 2]);

impl Slots {
    /// Returns what the payer can show for a step: with the liar's vote.
    fn certificate(&self, state: &State, step: Step) -> Certificate<Checked> {
        let op = &self.0[step];
        let vote = Vote { op: op.id(), account: op.account, sequence: 0, epoch: Epoch(0), settled: None };
        let honest = (0..HONEST).filter(|place| state.votes[step][*place]);
        let by = |place| {
            protocol::signed::sign(vote.clone(), manifest().domain(), Role::Issuer, &issuer_signer(place))
        };
        let votes = honest.map(by).chain([lie(vote.clone())]).collect();
        Certificate { op: op.clone(), terms: Some(terms()), votes }
    }

    fn is_certified(&self, state: &State, step: Step) -> bool {
        self.certificate(state, step).check(&manifest()).is_ok()
    }
}

impl Model for Slots {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let issuers = (0..HONEST).map(Honest::new).collect();
        vec![State { issuers, votes: [[false; HONEST]; 2], recorded: [[false; HONEST]; 2] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for place in 0..HONEST {
            for step in 0..2 {
                actions.push(Action::Ask(place, step));
                if self.is_certified(state, step) {
                    actions.push(Action::Show(place, step));
                }
            }
            // One crash is enough to lose what is not on disk, and keeps the model small.
            if state.issuers.iter().all(|issuer| !issuer.crashed) {
                actions.push(Action::Crash(place));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Ask(place, step) => {
                let issuer = &mut next.issuers[place];
                let said = issuer.witness.vote(&self.0[step], Some(&terms()), Epoch(0));
                let Ok((_, record)) = said else { return None };
                issuer.write(record);
                next.votes[step][place] = true;
            }
            Action::Show(place, step) => {
                let certificate = self.certificate(state, step);
                let issuer = &mut next.issuers[place];
                let Ok((_, record)) = issuer.witness.certify(&certificate, Epoch(0)) else { return None };
                let taken = issuer.witness.books.next_slot(self.0[step].account).1;
                issuer.write(record);
                next.recorded[step][place] = taken == self.0[step].id();
            }
            Action::Crash(place) => next.issuers[place].crash(place),
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one certificate in a slot", |model: &Self, state| {
                !(model.is_certified(state, 0) && model.is_certified(state, 1))
            }),
            Property::always("one step is taken in a slot", |_, state: &State| {
                !(state.recorded[0].contains(&true) && state.recorded[1].contains(&true))
            }),
            Property::always("credits are conserved", |_, state: &State| {
                let books = || state.issuers.iter().map(|issuer| &issuer.witness.books);
                books().all(|books| books.is_conserved() && books.deposited() == u128::from(DEPOSIT))
            }),
            Property::sometimes("a step is committed", |_, state: &State| {
                state.recorded.contains(&[true; HONEST])
            }),
        ]
    }
}

#[test]
fn no_slot_has_two_steps_whoever_crashes_and_whatever_one_issuer_says() {
    search("slots", Slots([opening(DEPOSIT / 10 * 6), opening(DEPOSIT / 10 * 7)]));
}
