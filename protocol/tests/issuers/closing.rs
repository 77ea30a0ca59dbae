//! A payee redeems more than it signs away in the channel's end, at whichever issuers, in whatever order.

use protocol::ids::{ChannelId, Digest};
use protocol::ledger::quorum::{Certificate, EndCertificate};
use protocol::ledger::records::{Claim, CloseVote, Epoch, Final, Receipt, Vote};
use protocol::message::Checked;
use protocol::price::Usage;
use protocol::signed::{Role, Verified, sign};
use stateright::{Model, Property};

use crate::network::{
    DEPOSIT, HONEST, Honest, domain, issuer_signer, lie, manifest, opening, search, signer, terms,
};

const REDEEMED: u64 = 60_000;
const END: u64 = 40_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Redeem(usize),
    Promise(usize),
    /// An issuer hears the votes so far, and the liar's.
    Hear(usize),
    Crash(usize),
}

#[derive(Debug, Clone, PartialEq, Hash)]
struct State {
    issuers: Vec<Honest>,
    /// Who has promised the end, and who has acknowledged the redemption.
    promised: [bool; HONEST],
    acknowledged: [bool; HONEST],
    closed: [Option<u64>; HONEST],
}

struct Closing {
    channel: ChannelId,
    receipt: Verified<Receipt>,
    claim: Verified<Claim>,
    closing: Verified<Final>,
}

impl Closing {
    fn new() -> Self {
        let channel = ChannelId::from(opening(DEPOSIT / 2).id());
        let receipt = Receipt {
            channel,
            sequence: 1,
            amount: REDEEMED,
            usage: Usage::default(),
            jobs: Digest::ZERO,
            epoch: Epoch(0),
        };
        let receipt = sign(receipt, domain(), Role::Payer, &signer(6));
        let claim = Claim { channel, receipt: receipt.id(), amount: REDEEMED };
        let closing = Final { channel, amount: END, receipt: None };
        let closing = sign(closing, domain(), Role::Payer, &signer(6));
        Self {
            channel,
            claim: sign(claim, domain(), Role::Payee, &signer(4)),
            receipt: receipt.signed_also_by(domain(), Role::Payee, &signer(4)),
            closing: closing.signed_also_by(domain(), Role::Payee, &signer(4)),
        }
    }

    fn vote(&self) -> CloseVote {
        CloseVote { channel: self.channel, amount: END, epoch: Epoch(0) }
    }

    fn votes(&self, state: &State) -> Vec<Verified<CloseVote>> {
        let honest = (0..HONEST).filter(|place| state.promised[*place]);
        let by = |place| sign(self.vote(), domain(), Role::Issuer, &issuer_signer(place));
        honest.map(by).chain([lie(self.vote())]).collect()
    }
}

impl Model for Closing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let op = opening(DEPOSIT / 2);
        let vote = Vote { op: op.id(), account: op.account, sequence: 0, epoch: Epoch(0), settled: None };
        let votes =
            (0..HONEST).map(|place| sign(vote.clone(), domain(), Role::Issuer, &issuer_signer(place)));
        let certificate = Certificate::<Checked> { op, terms: Some(terms()), votes: votes.collect() };
        let open = |place| {
            let mut issuer = Honest::new(place);
            let (_, record) = issuer.witness.certify(&certificate, Epoch(0)).expect("by a quorum");
            issuer.write(record);
            issuer
        };
        let issuers = (0..HONEST).map(open).collect();
        let none = [false; HONEST];
        vec![State { issuers, promised: none, acknowledged: none, closed: [None; HONEST] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for place in 0..HONEST {
            actions.extend([Action::Redeem(place), Action::Promise(place), Action::Hear(place)]);
            // One crash is enough to lose what is not on disk, and keeps the model small.
            if state.issuers.iter().all(|issuer| !issuer.crashed) {
                actions.push(Action::Crash(place));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Redeem(place) => {
                let issuer = &mut next.issuers[place];
                let (paid, record) = issuer.witness.redeem(&self.receipt, Some(&self.claim)).ok()?;
                issuer.write(record);
                next.acknowledged[place] |= paid >= REDEEMED;
            }
            Action::Promise(place) => {
                let issuer = &mut next.issuers[place];
                let (_, record) = issuer.witness.promise(&self.closing, Epoch(0)).ok()?;
                issuer.write(record);
                next.promised[place] = true;
            }
            Action::Hear(place) => {
                let issuer = &mut next.issuers[place];
                let certificates =
                    self.votes(state).into_iter().filter_map(|vote| issuer.witness.hear(&vote));
                let certificate: EndCertificate<Checked> = certificates.last()?;
                let record = issuer.witness.end(&certificate).ok()?;
                issuer.write(record);
            }
            Action::Crash(place) => {
                next.issuers[place].crash(place);
            }
        }
        for (place, issuer) in next.issuers.iter().enumerate() {
            let (amount, closed) = issuer.witness.books.channel(self.channel)?;
            next.closed[place] = closed.then_some(amount);
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a redemption that a quorum acknowledged is never lost", |_, state: &State| {
                // The liar has acknowledged it too.
                let acknowledged = state.acknowledged.iter().filter(|by| **by).count() + 1;
                acknowledged < manifest().quorum() || state.closed.iter().all(|end| *end != Some(END))
            }),
            Property::always("all honest issuers end it alike", |_, state: &State| {
                let mut ends = state.closed.iter().flatten();
                let first = ends.next();
                ends.all(|end| Some(end) == first)
            }),
            Property::always("credits are conserved", |_, state: &State| {
                state.issuers.iter().all(|issuer| issuer.witness.books.is_conserved())
            }),
            Property::sometimes("the channel ends everywhere", |_, state: &State| {
                state.closed == [Some(END); HONEST]
            }),
        ]
    }
}

#[test]
fn only_a_quorum_ends_a_channel_and_no_acknowledged_redemption_is_lost() {
    search("closing", Closing::new());
}
