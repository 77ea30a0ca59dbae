//! A payee redeems more than it signs away in the channel's end, at whichever issuers, in whatever order; and the liar
//! proposes a checkpoint that states what was redeemed.

use std::sync::Arc;

use protocol::ids::{ChannelId, Digest, RecordId};
use protocol::ledger::quorum::{Certificate, EndCertificate, Fact};
use protocol::ledger::records::{Claim, CloseVote, Epoch, Final, Receipt, Vote};
use protocol::ledger::settled::Outcome;
use protocol::ledger::witness::Witness;
use protocol::message::Checked;
use protocol::price::Usage;
use protocol::signed::{Role, Verified, id_of, sign};
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
    /// An issuer prepares the liar's checkpoint, unless it objects.
    Prepare(usize),
    /// An issuer follows it: with the liar's, there are enough votes.
    Follow(usize),
    Crash(usize),
}

#[derive(Debug, Clone, PartialEq, Hash)]
struct State {
    issuers: Vec<Honest>,
    /// Who has promised the end, and who has acknowledged the redemption.
    promised: [bool; HONEST],
    acknowledged: [bool; HONEST],
    closed: [Option<u64>; HONEST],
    /// Who has ever ended the channel, prepared the checkpoint, followed it.
    ended: [bool; HONEST],
    prepared: [bool; HONEST],
    followed: [bool; HONEST],
}

impl State {
    /// Says whether enough honest issuers have prepared the checkpoint to agree on it with the liar.
    fn may_stand(&self) -> bool {
        self.prepared.iter().filter(|by| **by).count() + 1 >= manifest().quorum()
    }
}

struct Closing {
    channel: ChannelId,
    receipt: Verified<Receipt>,
    claim: Verified<Claim>,
    closing: Verified<Final>,
    /// The facts of the liar's checkpoint, if it proposes one. Then nobody crashes: the lines about checkpoints are read by
    /// the node, and a crash has its own search.
    names: Option<Vec<RecordId>>,
}

impl Closing {
    fn new(has_checkpoint: bool) -> Self {
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
        let claim = sign(claim, domain(), Role::Payee, &signer(4));
        let receipt = receipt.signed_also_by(domain(), Role::Payee, &signer(4));
        let mut liar = opened(HONEST).witness;
        liar.redeem(&receipt, Some(&claim)).expect("within the receipt");
        let (names, _) = liar.settled.propose(Epoch(0)).expect("stated");
        let closing = closing.signed_also_by(domain(), Role::Payee, &signer(4));
        Self { channel, receipt, claim, closing, names: has_checkpoint.then_some(names) }
    }

    /// Returns what the liar's checkpoint comes to, as an issuer computes it.
    fn outcome(&self, names: &[RecordId], witness: &mut Witness) -> Outcome {
        let (receipt, claim) = (self.receipt.clone(), Some(self.claim.clone()));
        witness.settled.learn(Arc::new(Fact::Redeemed { receipt, claim }));
        witness.settled.outcome(Epoch(0), names).expect("every fact proves itself")
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

/// Returns an issuer that has recorded the channel's opening.
fn opened(place: usize) -> Honest {
    let op = opening(DEPOSIT / 2);
    let vote = Vote { op: op.id(), account: op.account, sequence: 0, epoch: Epoch(0), settled: None };
    let votes = (0..HONEST).map(|place| sign(vote.clone(), domain(), Role::Issuer, &issuer_signer(place)));
    let certificate = Certificate::<Checked> { op, terms: Some(terms()), votes: votes.collect() };
    let mut issuer = Honest::new(place);
    let (_, record) = issuer.witness.certify(&certificate, Epoch(0)).expect("by a quorum");
    issuer.write(record);
    issuer
}

impl Model for Closing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let issuers = (0..HONEST).map(opened).collect();
        let none = [false; HONEST];
        vec![State {
            issuers,
            promised: none,
            acknowledged: none,
            closed: [None; HONEST],
            ended: none,
            prepared: none,
            followed: none,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for place in 0..HONEST {
            actions.extend([Action::Redeem(place), Action::Promise(place), Action::Hear(place)]);
            if self.names.is_some() {
                actions.extend([Action::Prepare(place), Action::Follow(place)]);
            } else if state.issuers.iter().all(|issuer| !issuer.crashed) {
                // One crash is enough to lose what is not on disk, and keeps the model small.
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
            Action::Prepare(place) => {
                if state.prepared[place] || state.followed[place] {
                    return None;
                }
                let witness = &mut next.issuers[place].witness;
                let names = self.names.as_ref()?;
                let outcome = self.outcome(names, witness);
                if witness.objects(&outcome) {
                    return None;
                }
                witness.freeze_paid(names);
                next.prepared[place] = true;
            }
            Action::Follow(place) => {
                // They are alike, so it does not matter who is first.
                if !state.may_stand() || state.followed[place] || state.followed[..place].contains(&false) {
                    return None;
                }
                let witness = &mut next.issuers[place].witness;
                let names = self.names.as_ref()?;
                let outcome = self.outcome(names, witness);
                witness.adopt(id_of(&outcome.checkpoint, domain()), names, outcome);
                next.followed[place] = true;
            }
            Action::Crash(place) => {
                next.issuers[place].crash(place);
            }
        }
        for (place, issuer) in next.issuers.iter().enumerate() {
            let (amount, closed) = issuer.witness.books.channel(self.channel)?;
            next.closed[place] = closed.then_some(amount);
            next.ended[place] |= closed;
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a redemption that a quorum acknowledged is never lost", |_, state: &State| {
                // The liar has acknowledged it too.
                let acknowledged = state.acknowledged.iter().filter(|by| **by).count() + 1;
                // Who has not followed the checkpoint yet will.
                let ends = state.closed.iter().zip(state.followed).filter(|(_, followed)| *followed);
                let all = state.closed.iter().filter(|_| !state.may_stand());
                acknowledged < manifest().quorum()
                    || ends.map(|(end, _)| end).chain(all).all(|end| *end != Some(END))
            }),
            Property::always("no checkpoint undoes an end that a quorum recorded", |_, state: &State| {
                // The liar has recorded it too.
                let ended = state.ended.iter().filter(|by| **by).count() + 1;
                ended < manifest().quorum() || !state.may_stand()
            }),
            Property::always("what a checkpoint states stays paid", |model, state: &State| {
                let followed = state.issuers.iter().zip(state.followed).filter(|(_, followed)| *followed);
                let mut paid = followed.map(|(issuer, _)| issuer.witness.books.channel(model.channel));
                paid.all(|channel| channel == Some((REDEEMED, false)))
            }),
            Property::sometimes("the checkpoint is followed everywhere", |model, state: &State| {
                state.followed == [model.names.is_some(); HONEST]
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
    search("closing", Closing::new(false));
}

#[test]
fn no_checkpoint_undoes_an_end_that_a_quorum_recorded_and_no_end_what_a_checkpoint_states() {
    search("closing, with a checkpoint", Closing::new(true));
}
