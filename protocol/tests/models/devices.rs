//! Two nodes of one owner want a channel each, at four issuers of whom one keeps silent: one wallet node signs for both,
//! so no slot is ever locked to two steps of an honest owner.

use protocol::ids::RecordId;
use protocol::ledger::quorum::Certificate;
use protocol::ledger::records::{AccountOp, Epoch, OpBody, Vote};
use protocol::message::Checked;
use protocol::signed::{Role, Verified, sign};
use stateright::{Model, Property};

use crate::mutant;
use crate::network::{HONEST, Honest, domain, issuer_signer, payer, signer};
use crate::seen::search;

/// Which step comes from whom: the wallet node's own, and the one that another node asks for.
type Step = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Ask(usize, Step),
    Show(usize, Step),
}

#[derive(Debug, Clone, PartialEq, Hash)]
struct State {
    issuers: Vec<Honest>,
    votes: [[bool; HONEST]; 2],
}

struct Devices([Verified<AccountOp>; 2]);

fn step(last: Option<&Verified<AccountOp>>, to: u8) -> Verified<AccountOp> {
    let (sequence, previous) = last.map_or((0, RecordId::NONE), |last| (last.sequence + 1, last.id()));
    let body = OpBody::Pay { to: signer(to).public().into(), amount: 100_000 };
    let op = AccountOp { account: payer(), sequence, previous, epoch: Epoch(0), body };
    sign(op, domain(), Role::Owner, &signer(1))
}

impl Devices {
    fn new() -> Self {
        let own = step(None, 30);
        // The wallet node signs the second behind the first; another node knows of no first.
        let first = Some(&own).filter(|_| !mutant::is_in("two-devices-sign"));
        let other = step(first, 31);
        Self([own, other])
    }

    /// Returns a step with all votes for it, if they are a quorum.
    fn certificate(&self, state: &State, step: Step) -> Option<Certificate<Checked>> {
        let op = &self.0[step];
        let vote =
            Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled: None };
        let voted = (0..HONEST).filter(|place| state.votes[step][*place]);
        let votes = voted.map(|place| sign(vote.clone(), domain(), Role::Issuer, &issuer_signer(place)));
        let certificate = Certificate { op: op.clone(), terms: None, votes: votes.collect() };
        (certificate.votes.len() == HONEST).then_some(certificate)
    }
}

impl Model for Devices {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { issuers: (0..HONEST).map(Honest::new).collect(), votes: [[false; HONEST]; 2] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for step in 0..2 {
            actions.extend((0..HONEST).map(|place| Action::Ask(place, step)));
            if self.certificate(state, step).is_some() {
                actions.extend((0..HONEST).map(|place| Action::Show(place, step)));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Ask(place, step) => {
                let issuer = &mut state.issuers[place];
                let (_, record) = issuer.witness.vote(&self.0[step], None, Epoch(0)).ok()?;
                issuer.write(record);
                state.votes[step][place] = true;
            }
            Action::Show(place, step) => {
                let certificate = self.certificate(last, step)?;
                let issuer = &mut state.issuers[place];
                let (_, record) = issuer.witness.certify(&certificate, Epoch(0)).ok()?;
                issuer.write(record);
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no slot of an honest owner is stuck", |_, state: &State| {
                let books = || state.issuers.iter().map(|issuer| &issuer.witness.books);
                let locks =
                    books().filter_map(|books| Some((books.next_slot(payer()), books.locked(payer())?)));
                let locks: Vec<_> = locks.collect();
                locks.iter().all(|(slot, step)| locks.iter().all(|(at, other)| at != slot || other == step))
            }),
            Property::sometimes("both are taken", |model: &Self, state: &State| {
                state
                    .issuers
                    .iter()
                    .any(|issuer| issuer.witness.books.next_slot(payer()) == (2, model.0[1].id()))
            }),
        ]
    }
}

#[test]
fn one_wallet_node_signs_for_all_nodes_of_its_owner_and_no_slot_is_stuck() {
    search("devices", Devices::new());
}
