//! What counts where a step is judged: what a quorum has paid, what a checkpoint states, and ends that a quorum has promised.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::advert::Incentive;
use protocol::ids::{AccountId, ChannelId, Digest, RecordId};
use protocol::keys::Signer;
use protocol::ledger::counted::Proof;
use protocol::ledger::issuer::{Issuer, IssuerError};
use protocol::ledger::quorum::{Certificate, EndCertificate, Fact};
use protocol::ledger::records::{
    AccountOp, Claim, CloseVote, Deposit, Epoch, Final, OpBody, OpenChannel, Receipt, RedeemAck, Source,
    Terms,
};
use protocol::ledger::witness::Witness;
use protocol::message::Checked;
use protocol::model::Modality;
use protocol::price::Usage;
use protocol::record::Record;
use protocol::signed::{Role, Verified, sign};

use crate::network::{
    DEPOSIT, HONEST, Honest, cases, domain, issuer_signer, lie, manifest, payer, signer, terms,
};
use crate::settling::{certified, follow};

const CHANNELS: usize = 3;
const CAP: u64 = 300_000;
/// The payee's part of a cap that is paid out whole.
const EARNED: u64 = CAP / 100 * 92;

/// A step that has too few votes yet, and its terms.
type Wanted = (Verified<AccountOp>, Option<Verified<Terms>>);

type Redemption = (Verified<Receipt>, Verified<Claim>);

/// The account of the payee, which may be its payer's own.
fn payee() -> AccountId {
    signer(2).public().into()
}

fn step(owner: &Signer, (sequence, previous): (u64, RecordId), body: OpBody) -> Verified<AccountOp> {
    let account = owner.public().into();
    sign(AccountOp { account, sequence, previous, epoch: Epoch(0), body }, domain(), Role::Owner, owner)
}

/// Returns the payer's first steps, each of which opens a channel to the payee.
fn openings() -> Vec<Verified<AccountOp>> {
    let body = OpBody::OpenChannel(OpenChannel {
        payee: terms().payee,
        terms: terms().id(),
        cap: CAP,
        expires: Epoch(2),
        payer: signer(5).public().into(),
        payer_key: signer(6).public(),
    });
    let mut steps: Vec<Verified<AccountOp>> = Vec::new();
    for sequence in 0..CHANNELS {
        let previous = steps.last().map_or(RecordId::NONE, Verified::id);
        let slot = (u64::try_from(sequence).expect("three"), previous);
        steps.push(step(&signer(1), slot, body.clone()));
    }
    steps
}

fn channel(number: usize) -> ChannelId {
    openings()[number].id().into()
}

/// Returns an issuer that has recorded the payer's channels, with its journal.
fn opened(place: usize) -> Honest {
    let mut issuer = Honest::new(place);
    for op in openings() {
        let certificate = Certificate { terms: Some(terms()), ..certified(&op, None) };
        let (_, record) = issuer.witness.certify(&certificate, Epoch(0)).expect("by a quorum");
        issuer.write(record);
    }
    issuer
}

/// Returns the payer's end of a channel and the payee's signature under it.
fn ending(number: usize, amount: u64) -> Verified<Final> {
    let closing = Final { channel: channel(number), amount, receipt: None };
    let closing = sign(closing, domain(), Role::Payer, &signer(6));
    closing.signed_also_by(domain(), Role::Payee, &signer(4))
}

fn redemption(number: usize, amount: u64) -> Redemption {
    let (usage, jobs, epoch) = (Usage::default(), Digest::ZERO, Epoch(0));
    let receipt = Receipt { channel: channel(number), sequence: amount, amount, usage, jobs, epoch };
    let receipt = sign(receipt, domain(), Role::Payer, &signer(6));
    let receipt = receipt.signed_also_by(domain(), Role::Payee, &signer(4));
    let claim = Claim { channel: channel(number), receipt: receipt.id(), amount };
    (receipt, sign(claim, domain(), Role::Payee, &signer(4)))
}

fn redeem(issuer: &mut Honest, number: usize, amount: u64) -> Verified<RedeemAck> {
    let (receipt, claim) = redemption(number, amount);
    let (amount, record) = issuer.witness.redeem(&receipt, Some(&claim)).expect("within the receipt");
    issuer.write(record);
    issuer.witness.sign(RedeemAck { channel: channel(number), amount, closed: false, epoch: Epoch(0) })
}

/// The payee's account gets cash.
fn has_cash(issuer: &mut Honest) {
    let deposit = Deposit {
        reference: Digest([2; 32]),
        account: payee(),
        amount: 500_000,
        epoch: Epoch(0),
        source: Source::Budget,
    };
    let deposit = (1..4).fold(sign(deposit, domain(), Role::Issuer, &issuer_signer(0)), |deposit, place| {
        deposit.signed_also_by(domain(), Role::Issuer, &issuer_signer(place))
    });
    issuer.witness.enter(&deposit).expect("signed by all");
}

fn count(issuer: &mut Honest, acks: &[Verified<RedeemAck>]) -> Result<bool, IssuerError> {
    let (_, record) = issuer.witness.count(acks)?;
    let is_new = record.is_some();
    issuer.write(record);
    Ok(is_new)
}

fn promise(issuer: &mut Honest, number: usize, amount: u64) -> Verified<CloseVote> {
    let (vote, record) = issuer.witness.promise(&ending(number, amount), Epoch(0)).expect("no more is paid");
    issuer.write(record);
    vote
}

/// Returns a step of the payee, which spends what it was paid on a channel to somebody else, and its terms.
fn spending(slot: (u64, RecordId), cap: u64) -> (Verified<AccountOp>, Verified<Terms>) {
    let other: AccountId = signer(22).public().into();
    let terms = Terms {
        payee: signer(23).public().into(),
        payee_account: other,
        payee_key: signer(24).public(),
        payer_account: payee(),
        incentive: Incentive::Exchange,
        split: Terms::standard_split(&manifest(), Modality::Text, other),
        ..Terms::clone(&terms())
    };
    let terms = sign(terms, domain(), Role::Node, &signer(23));
    let open = OpenChannel {
        payee: terms.payee,
        terms: terms.id(),
        cap,
        expires: Epoch(4),
        payer: signer(25).public().into(),
        payer_key: signer(26).public(),
    };
    (step(&signer(2), slot, OpBody::OpenChannel(open)), terms)
}

/// Returns the payee's first step.
fn spend() -> (Verified<AccountOp>, Verified<Terms>) {
    spending((0, RecordId::NONE), 200_000)
}

/// Asks an issuer for its vote.
fn asked(
    issuer: &mut Honest,
    (op, terms): &(Verified<AccountOp>, Verified<Terms>),
) -> Result<(), IssuerError> {
    let (_, record) = issuer.witness.vote(op, Some(terms), Epoch(0))?;
    issuer.write(record);
    Ok(())
}

const UNCOUNTED: Result<(), IssuerError> = Err(IssuerError::Uncounted { needed: 210_000, available: 0 });

/// Payer and payee are one, and nobody lies. Three channels are redeemed at three issuers, one each, and the two others of
/// these promise each an end with nothing paid: each of the three has what a step of the payee spends, and would record it.
/// Then the fourth promises all three ends, and the payer has all of its caps back.
#[test]
fn no_step_is_certified_by_what_three_issuers_have_paid_one_each() {
    let mut issuers: Vec<Honest> = (0..4).map(opened).collect();
    let mut promises: Vec<Vec<Verified<CloseVote>>> = vec![Vec::new(); CHANNELS];
    for number in 0..CHANNELS {
        redeem(&mut issuers[number], number, CAP);
        assert_eq!(issuers[number].witness.books.balance(payee()).earned, EARNED, "it is paid all the same");
        for place in (0..HONEST).filter(|place| *place != number) {
            promises[number].push(promise(&mut issuers[place], number, 0));
        }
    }
    let votes: Vec<_> = issuers[..HONEST].iter_mut().map(|issuer| asked(issuer, &spend())).collect();
    assert_eq!(votes, [UNCOUNTED; HONEST]);

    for (number, mut votes) in promises.into_iter().enumerate() {
        votes.push(promise(&mut issuers[HONEST], number, 0));
        let end = EndCertificate { votes };
        for issuer in &mut issuers {
            issuer.witness.end(&end).expect("nothing of it is spent").expect("news");
        }
    }
    for issuer in &issuers {
        let books = &issuer.witness.books;
        assert_eq!(books.balance(payer()).cash, DEPOSIT - 30_000, "all caps are back");
        assert_eq!((books.balance(payee()).available(), books.uncounted(payee())), (0, 0));
        assert!(books.is_conserved());
    }
}

#[test]
fn what_a_quorum_has_paid_counts_wherever_it_was_shown_and_no_end_undoes_it() {
    let mut issuers: Vec<Honest> = (0..4).map(opened).collect();
    // The fourth is down.
    let acks: Vec<_> = issuers[..HONEST].iter_mut().map(|issuer| redeem(issuer, 0, CAP)).collect();
    for issuer in &mut issuers[..HONEST] {
        assert_eq!(asked(issuer, &spend()), UNCOUNTED);
        assert_eq!(count(issuer, &acks[..2]), Err(IssuerError::NoQuorum));
        assert_eq!(count(issuer, &acks), Ok(true));
        assert_eq!(count(issuer, &acks), Ok(false), "it is on disk");
        assert_eq!(asked(issuer, &spend()), Ok(()));
        let lower = issuer.witness.promise(&ending(0, CAP - 1), Epoch(0));
        assert_eq!(lower.map(drop), Err(IssuerError::WrongAmount));
    }
    // It has paid nothing; what it pays later counts at once.
    let late = &mut issuers[HONEST];
    assert_eq!(count(late, &acks), Ok(true));
    assert!(matches!(asked(late, &spend()), Err(IssuerError::NotEnough { .. })));
    redeem(late, 0, CAP);
    assert_eq!(asked(late, &spend()), Ok(()));
}

#[test]
fn what_counts_is_there_after_a_restart_and_what_an_old_journal_does_not_say_waits_for_a_checkpoint() {
    let mut issuers: Vec<Honest> = (0..HONEST).map(opened).collect();
    let acks: Vec<_> = issuers.iter_mut().map(|issuer| redeem(issuer, 0, CAP)).collect();
    count(&mut issuers[0], &acks).expect("three have paid");
    issuers[0].crash(0);
    issuers[1].crash(1);
    assert_eq!(asked(&mut issuers[0], &spend()), Ok(()));
    assert_eq!(asked(&mut issuers[1], &spend()), UNCOUNTED);

    let proposer = issuers[0].witness.clone();
    let (names, _) = proposer.settled.propose(Epoch(0)).expect("stated");
    follow(&mut issuers[1].witness, &proposer, &names, Epoch(0));
    assert_eq!(asked(&mut issuers[1], &spend()), Ok(()));
}

#[test]
fn what_was_shown_counts_on_after_a_checkpoint_that_does_not_state_it() {
    let mut issuers: Vec<Honest> = (0..4).map(opened).collect();
    let acks: Vec<_> = issuers[..HONEST].iter_mut().map(|issuer| redeem(issuer, 0, CAP)).collect();
    count(&mut issuers[0], &acks).expect("three have paid");
    let proposer = issuers[HONEST].witness.clone();
    let (names, outcome) = proposer.settled.propose(Epoch(0)).expect("stated");
    assert_eq!(outcome.books.channel(channel(0)), Some((0, false)));
    for issuer in &mut issuers[..2] {
        follow(&mut issuer.witness, &proposer, &names, Epoch(0));
    }
    assert_eq!(asked(&mut issuers[0], &spend()), Ok(()));
    assert_eq!(asked(&mut issuers[1], &spend()), UNCOUNTED);
}

#[test]
fn only_issuers_words_on_one_channel_count_and_each_issuer_once() {
    let mut issuers: Vec<Honest> = (0..HONEST).map(opened).collect();
    let acks: Vec<_> = issuers.iter_mut().map(|issuer| redeem(issuer, 0, CAP)).collect();
    let ack = |number, amount| RedeemAck { channel: channel(number), amount, closed: false, epoch: Epoch(0) };
    let mut shown = |acks: &[Verified<RedeemAck>]| count(&mut issuers[0], acks);
    assert_eq!(shown(&[]), Err(IssuerError::NoQuorum));
    assert_eq!(shown(&[lie(ack(0, CAP)), lie(ack(0, CAP - 1)), acks[0].clone()]), Err(IssuerError::NoQuorum));
    let foreign = sign(ack(0, CAP), domain(), Role::Issuer, &signer(9));
    assert_eq!(shown(&[acks[0].clone(), acks[1].clone(), foreign]), Err(IssuerError::WrongKey));
    let as_payee = sign(ack(0, CAP), domain(), Role::Payee, &issuer_signer(HONEST));
    assert_eq!(shown(&[acks[0].clone(), acks[1].clone(), as_payee]), Err(IssuerError::WrongKey));
    let other = lie(ack(1, CAP));
    assert_eq!(shown(&[acks[0].clone(), acks[1].clone(), other]), Err(IssuerError::UnknownChannel));
    let beyond: Vec<_> = (0..HONEST)
        .map(|place| sign(ack(0, CAP + 1), domain(), Role::Issuer, &issuer_signer(place)))
        .collect();
    assert_eq!(shown(&beyond), Err(IssuerError::WrongAmount));
    // A liar's word is worth what the least of a quorum says.
    assert_eq!(shown(&[acks[0].clone(), acks[1].clone(), lie(ack(0, 20_000))]), Ok(true));
    assert_eq!(issuers[0].witness.books.uncounted(payee()), EARNED - 2 * 9_200);
}

/// What has gone out of what was earned and does not count has cost cash.
#[test]
fn what_does_not_count_is_spent_by_no_step_whichever_bucket_it_takes() {
    let mut issuer = opened(0);
    has_cash(&mut issuer);
    redeem(&mut issuer, 0, CAP);
    let first = spend();
    asked(&mut issuer, &first).expect("there is cash");
    let certificate = Certificate { terms: Some(first.1), ..certified(&first.0, None) };
    issuer.witness.certify(&certificate, Epoch(0)).expect("by a quorum");
    assert_eq!(issuer.witness.books.balance(payee()).cash, 500_000, "what was earned is spent first");

    let pay = |amount| step(&signer(2), (1, first.0.id()), OpBody::Pay { to: payer(), amount });
    let refused = issuer.witness.vote(&pay(280_001), None, Epoch(0)).map(drop);
    assert_eq!(refused, Err(IssuerError::Uncounted { needed: 290_001, available: 290_000 }));
    issuer.witness.vote(&pay(280_000), None, Epoch(0)).expect("500,000 less what the channel cost");
}

/// A redemption that another issuer shows to one that has promised an end below waits for a checkpoint that states it.
/// Were it paid after any other checkpoint, that issuer's word of it and its promise would both count.
#[test]
fn an_issuer_pays_no_more_than_it_has_promised_after_a_checkpoint_either() {
    let mut issuer = opened(0);
    promise(&mut issuer, 0, 0);
    let (receipt, claim) = redemption(0, CAP);
    issuer.witness.redeem_elsewhere(&receipt, Some(&claim)).expect("signed by both").expect("kept");
    let proposer = opened(1).witness;
    let (names, _) = proposer.settled.propose(Epoch(0)).expect("stated");
    follow(&mut issuer.witness, &proposer, &names, Epoch(0));

    assert_eq!(issuer.witness.books.promised(channel(0)), Some(0));
    assert_eq!(redeem(&mut issuer, 0, CAP).amount, 0);
    let (_, outcome) = issuer.witness.settled.propose(Epoch(1)).expect("stated");
    assert_eq!(outcome.books.channel(channel(0)), Some((CAP, false)), "it is not lost");
}

/// One issuer is down, and another says that it has paid more than there is: what a quorum counts is done with all the same.
#[test]
fn a_proof_that_a_quorum_has_confirmed_makes_room_whatever_one_issuer_says() {
    let mut proof = Proof::default();
    let key = |place| issuer_signer(place).public();
    for place in 0..3 {
        let ack = redeem(&mut opened(place), 0, CAP);
        assert_eq!(proof.take(key(place), ack, &manifest()), place == 2, "by the third");
    }
    let much = RedeemAck { channel: channel(0), amount: u64::MAX, closed: false, epoch: Epoch(0) };
    proof.take(key(2), sign(much, domain(), Role::Issuer, &issuer_signer(2)), &manifest());
    for place in 0..3 {
        assert!(proof.is_lacking(key(place), &manifest()) && !proof.is_counted(&manifest()));
        proof.confirm(key(place), CAP);
    }

    assert!(proof.is_counted(&manifest()));
    assert!(proof.for_issuer(key(3), &manifest()).is_some(), "it is shown to the fourth all the same");
}

/// An issuer that has paid and promised an end is shown a redemption beyond it, and follows a checkpoint that states neither.
/// What it had paid is paid: its word of that may be one of the quorum by which a step counts.
#[test]
fn what_an_issuer_has_paid_is_paid_after_a_checkpoint_though_it_was_shown_more() {
    let mut issuer = opened(0);
    redeem(&mut issuer, 0, CAP / 2);
    promise(&mut issuer, 0, CAP / 2);
    let (receipt, claim) = redemption(0, CAP);
    issuer.witness.redeem_elsewhere(&receipt, Some(&claim)).expect("signed by both").expect("kept");
    let proposer = opened(1).witness;
    let (names, _) = proposer.settled.propose(Epoch(0)).expect("stated");
    follow(&mut issuer.witness, &proposer, &names, Epoch(0));

    assert_eq!(issuer.witness.books.promised(channel(0)), Some(CAP / 2));
    assert_eq!(issuer.witness.books.channel(channel(0)), Some((CAP / 2, false)));
    let closing = ending(0, 0);
    assert_eq!(issuer.witness.promise(&closing, Epoch(1)).map(drop), Err(IssuerError::WrongAmount));
}

/// An issuer has paid on a channel, and promised the end of another, that were opened out of what only its books had; a
/// checkpoint takes that back, and both openings wait. When they are taken, out of something else, its words stand.
#[test]
fn what_an_issuer_has_paid_and_promised_stands_when_an_opening_had_to_wait_after_a_checkpoint() {
    let mut issuer = opened(0);
    redeem(&mut issuer, 0, CAP);
    let (first, with) = spending((0, RecordId::NONE), 100_000);
    let (second, _) = spending((1, first.id()), 100_000);
    let steps = [&first, &second].map(|op| Certificate { terms: Some(with.clone()), ..certified(op, None) });
    for step in &steps {
        issuer.witness.certify(step, Epoch(0)).expect("it has paid what they cost");
    }
    let [paid, ended] = [&first, &second].map(|op| ChannelId::from(op.id()));
    let receipt = Receipt {
        channel: paid,
        sequence: 1,
        amount: 60_000,
        usage: Usage::default(),
        jobs: Digest::ZERO,
        epoch: Epoch(0),
    };
    let receipt = sign(receipt, domain(), Role::Payer, &signer(26));
    let receipt = receipt.signed_also_by(domain(), Role::Payee, &signer(24));
    let claim = Claim { channel: paid, receipt: receipt.id(), amount: 60_000 };
    let claim = sign(claim, domain(), Role::Payee, &signer(24));
    issuer.witness.redeem(&receipt, Some(&claim)).expect("within the receipt");
    let close = |channel, amount| {
        let closing = sign(Final { channel, amount, receipt: None }, domain(), Role::Payer, &signer(26));
        closing.signed_also_by(domain(), Role::Payee, &signer(24))
    };
    issuer.witness.promise(&close(ended, 20_000), Epoch(0)).expect("nothing is paid");

    // Twice: the second time they wait already.
    let mut others = opened(1).witness;
    let votes = (1..4).map(|place| opened(place).witness.promise(&ending(0, 0), Epoch(0)).expect("unpaid").0);
    others.end(&EndCertificate { votes: votes.collect() }).expect("by a quorum").expect("news");
    for epoch in [Epoch(0), Epoch(1)] {
        let (names, _) = others.settled.propose(epoch).expect("stated");
        let proposer = others.clone();
        for issuer in [&mut issuer.witness, &mut others] {
            follow(issuer, &proposer, &names, epoch);
        }
        assert_eq!([paid, ended].map(|channel| issuer.witness.books.channel(channel)), [None, None]);
    }
    has_cash(&mut issuer);
    for step in &steps {
        issuer.witness.certify(step, Epoch(1)).expect("there is enough now");
    }
    let books = &issuer.witness.books;
    assert_eq!(
        [paid, ended].map(|channel| books.channel(channel)),
        [Some((60_000, false)), Some((0, false))]
    );
    assert!(books.is_conserved());
    let mut promised = |channel, amount| issuer.witness.promise(&close(channel, amount), Epoch(1)).map(drop);
    assert_eq!(promised(paid, 0), Err(IssuerError::WrongAmount));
    assert_eq!(promised(ended, 0), Err(IssuerError::WrongAmount));
    assert_eq!(promised(ended, 20_000), Ok(()));
}

/// What may happen in a history.
#[derive(Debug, Clone, Copy)]
enum Act {
    Redeem {
        place: usize,
        number: usize,
        amount: u64,
    },
    Promise {
        place: usize,
        number: usize,
        amount: u64,
    },
    /// An issuer hears the promises so far.
    Hear {
        place: usize,
        number: usize,
    },
    /// An issuer is shown what all have acknowledged so far.
    Show {
        place: usize,
        number: usize,
    },
    /// The payer, or the payee, wants to spend so much.
    Want {
        is_payer: bool,
        amount: u64,
    },
    /// All issuers but one are asked for their votes for what it wants.
    Ask {
        is_payer: bool,
        but: usize,
    },
    /// An issuer is shown the certified steps.
    Record {
        place: usize,
    },
    Crash {
        place: usize,
    },
    Checkpoint {
        proposer: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let (place, number) = (0..4_usize, 0..CHANNELS);
    let amount = prop_oneof![Just(CAP), Just(CAP / 3)];
    let end = prop_oneof![3 => Just(0), 1 => Just(CAP / 3), 1 => Just(CAP)];
    let wanted = prop_oneof![Just(50_000), Just(200_000), Just(250_000), Just(800_000)];
    prop_oneof![
        6 => (place.clone(), number.clone(), amount)
            .prop_map(|(place, number, amount)| Act::Redeem { place, number, amount }),
        6 => (place.clone(), number.clone(), end)
            .prop_map(|(place, number, amount)| Act::Promise { place, number, amount }),
        3 => (place.clone(), number.clone()).prop_map(|(place, number)| Act::Hear { place, number }),
        3 => (place.clone(), number).prop_map(|(place, number)| Act::Show { place, number }),
        2 => (any::<bool>(), wanted).prop_map(|(is_payer, amount)| Act::Want { is_payer, amount }),
        5 => (any::<bool>(), place.clone()).prop_map(|(is_payer, but)| Act::Ask { is_payer, but }),
        3 => place.clone().prop_map(|place| Act::Record { place }),
        1 => place.clone().prop_map(|place| Act::Crash { place }),
        1 => place.prop_map(|proposer| Act::Checkpoint { proposer }),
    ]
}

/// Four honest issuers, an owner of payer and payee who does what it likes, and what can never be undone.
struct History {
    issuers: Vec<Honest>,
    promises: BTreeMap<(usize, u64), BTreeMap<usize, Verified<CloseVote>>>,
    acks: Vec<BTreeMap<usize, Verified<RedeemAck>>>,
    /// What checkpoints state as paid, and with what they end a channel.
    stated: [u64; CHANNELS],
    ended: [Option<u64>; CHANNELS],
    /// What the payee and the payer want.
    pending: [Option<Wanted>; 2],
    steps: Vec<Certificate<Checked>>,
    checkpoints: u32,
}

impl History {
    fn new() -> Self {
        Self {
            issuers: (0..4).map(opened).collect(),
            promises: BTreeMap::new(),
            acks: vec![BTreeMap::new(); CHANNELS],
            stated: [0; CHANNELS],
            ended: [None; CHANNELS],
            pending: [None, None],
            steps: Vec::new(),
            checkpoints: 0,
        }
    }

    /// Returns the next slot of an account, behind its certified steps.
    fn slot(&self, account: AccountId) -> (u64, RecordId) {
        let openings = openings();
        let own = openings.iter().chain(self.steps.iter().map(|step| &step.op));
        let last = own.rev().find(|op| op.account == account);
        last.map_or((0, RecordId::NONE), |op| (op.sequence + 1, op.id()))
    }

    fn end(&self, number: usize) -> Option<EndCertificate<Checked>> {
        let of_it = self.promises.iter().filter(|((of, _), _)| *of == number);
        let mut ends = of_it.map(|(_, votes)| EndCertificate { votes: votes.values().cloned().collect() });
        ends.find(|end| end.check(&manifest()).is_ok())
    }

    fn play(&mut self, act: Act) {
        match act {
            Act::Redeem { place, number, amount } => {
                let (receipt, claim) = redemption(number, amount);
                let issuer = &mut self.issuers[place];
                let Ok((amount, record)) = issuer.witness.redeem(&receipt, Some(&claim)) else { return };
                issuer.write(record);
                let ack = RedeemAck { channel: channel(number), amount, closed: false, epoch: Epoch(0) };
                let known = self.acks[number].get(&place).map_or(0, |known| known.amount);
                if amount > known {
                    self.acks[number].insert(place, issuer.witness.sign(ack));
                }
            }
            Act::Promise { place, number, amount } => {
                let issuer = &mut self.issuers[place];
                let Ok((vote, record)) = issuer.witness.promise(&ending(number, amount), Epoch(0)) else {
                    return;
                };
                issuer.write(record);
                self.promises.entry((number, amount)).or_default().insert(place, vote);
            }
            Act::Hear { place, number } => {
                if let Some(end) = self.end(number) {
                    let issuer = &mut self.issuers[place];
                    let record = issuer.witness.end(&end).ok().flatten();
                    issuer.write(record);
                }
            }
            Act::Show { place, number } => {
                let acks: Vec<_> = self.acks[number].values().cloned().collect();
                let shown = count(&mut self.issuers[place], &acks);
                let is_over = shown == Err(IssuerError::UnknownChannel) && self.ended[number].is_some();
                assert!(shown.is_ok() || shown == Err(IssuerError::NoQuorum) || is_over, "{shown:?}");
            }
            Act::Want { is_payer, amount } => {
                let (owner, account) = if is_payer { (signer(1), payer()) } else { (signer(2), payee()) };
                let slot = self.slot(account);
                let pending = &mut self.pending[usize::from(is_payer)];
                if pending.is_none() && is_payer {
                    *pending =
                        Some((step(&owner, slot, OpBody::Pay { to: AccountId([9; 32]), amount }), None));
                } else if pending.is_none() {
                    let (op, terms) = spending(slot, amount);
                    *pending = Some((op, Some(terms)));
                }
            }
            Act::Ask { is_payer, but } => {
                let Some((op, terms)) = self.pending[usize::from(is_payer)].clone() else { return };
                let others = self.issuers.iter_mut().enumerate().filter(|(place, _)| *place != but);
                let votes = others.filter_map(|(_, issuer)| {
                    let (vote, record) = issuer.witness.vote(&op, terms.as_ref(), Epoch(0)).ok()?;
                    issuer.write(record);
                    Some(vote)
                });
                let votes = votes.collect();
                let certificate = Certificate { op, terms, votes };
                if certificate.check(&manifest()).is_ok() {
                    self.steps.push(certificate);
                    self.pending[usize::from(is_payer)] = None;
                }
            }
            Act::Record { place } => {
                let issuer = &mut self.issuers[place];
                for step in &self.steps {
                    let record = issuer.witness.certify(step, Epoch(0)).ok().and_then(|(_, record)| record);
                    issuer.write(record);
                }
            }
            // What was agreed on is read by the node, not by the witness.
            Act::Crash { place } if self.checkpoints == 0 => self.issuers[place].crash(place),
            Act::Crash { .. } => {}
            Act::Checkpoint { proposer } => self.agree(proposer),
        }
    }

    /// The issuers fetch each other's facts, and agree on what one of them proposes unless too many object.
    fn agree(&mut self, proposer: usize) {
        for number in 0..CHANNELS {
            (0..4).for_each(|place| self.play(Act::Hear { place, number }));
        }
        (0..4).for_each(|place| self.play(Act::Record { place }));
        let epoch = Epoch(self.checkpoints);
        let proposer = self.issuers[proposer].witness.clone();
        let (names, outcome) = proposer.settled.propose(epoch).expect("stated");
        let prepare = self.issuers.iter().filter(|issuer| !issuer.witness.objects(&outcome)).count();
        if prepare < manifest().quorum() {
            return;
        }
        for issuer in &mut self.issuers {
            follow(&mut issuer.witness, &proposer, &names, epoch);
        }
        self.checkpoints += 1;
        for number in 0..CHANNELS {
            // It is forgotten some epochs after its end.
            if let Some((paid, is_closed)) = outcome.books.channel(channel(number)) {
                self.stated[number] = paid;
                self.ended[number] = is_closed.then_some(paid);
            }
        }
    }

    /// Returns books in which nothing counts but what can never be undone, and all certified steps as far as it pays for them.
    fn settled(&self) -> Issuer {
        let mut books = opened(0).witness.books;
        for number in 0..CHANNELS {
            let mut acked: Vec<u64> = self.acks[number].values().map(|ack| ack.amount).collect();
            acked.sort_unstable();
            let acked = acked.len().checked_sub(manifest().quorum()).map_or(0, |place| acked[place]);
            let paid = acked.max(self.stated[number]);
            if paid > 0 {
                let (receipt, _) = redemption(number, CAP);
                books.redeem(&receipt, paid).expect("within the cap");
            }
            if let Some(amount) = self.ended[number] {
                books.close(&ending(number, amount)).expect("no checkpoint undoes what a quorum has paid");
            } else if let Some(end) =
                self.end(number).filter(|end| end.votes[0].amount >= self.stated[number])
            {
                assert!(end.votes[0].amount >= paid, "no end undoes what a quorum has paid");
                books.end_by(&end).expect("by a quorum");
            }
        }
        for step in &self.steps {
            // Which of them comes first does not matter: neither pays the other.
            books.certify(step, Epoch(0)).expect("no step is certified that nobody can pay");
        }
        books
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn certified_steps_are_paid_by_what_can_never_be_undone(acts in prop::collection::vec(act(), 0..80)) {
        let mut history = History::new();
        for act in acts {
            history.play(act);
            for issuer in &history.issuers {
                prop_assert!(issuer.witness.books.is_conserved());
            }
        }
        prop_assert!(history.settled().is_conserved());
    }

    /// Whatever order acknowledgements, redemptions and proofs come in, and however often: all count the same.
    #[test]
    fn what_counts_does_not_depend_on_the_order(
        acts in prop::collection::vec((0..3_u8, 0..CHANNELS, 1..=30_u64), 0..30),
        crash in any::<prop::sample::Index>(),
    ) {
        let mut issuer = opened(0);
        let (mut paid, mut proven) = ([0; CHANNELS], [0; CHANNELS]);
        for (place, (kind, number, amount)) in acts.iter().enumerate() {
            let amount = amount * 10_000;
            if *kind == 0 {
                redeem(&mut issuer, *number, amount);
                paid[*number] = amount.max(paid[*number]);
            } else {
                let ack = RedeemAck { channel: channel(*number), amount, closed: false, epoch: Epoch(0) };
                let acks: Vec<_> = (1..4).map(|place| sign(ack.clone(), domain(), Role::Issuer, &issuer_signer(place))).collect();
                let is_new = count(&mut issuer, &acks).expect("a quorum");
                prop_assert_eq!(is_new, amount > proven[*number]);
                proven[*number] = amount.max(proven[*number]);
            }
            if crash.index(acts.len()) == place {
                issuer.crash(0);
            }
            let beyond = (0..CHANNELS).map(|number| paid[number].saturating_sub(proven[number]) / 10_000 * 9_200);
            prop_assert_eq!(issuer.witness.books.uncounted(payee()), beyond.sum::<u64>());
        }
    }
}

#[test]
fn a_line_about_what_counts_of_a_channel_that_is_forgotten_changes_nothing() {
    let mut issuer = Witness::new(manifest(), issuer_signer(0));
    issuer.replay(Record::Counted { channel: channel(0), amount: CAP }).expect("as it was written");
    let fact = Fact::Step(Certificate { terms: Some(terms()), ..certified(&openings()[0], None) });
    assert_eq!(issuer.settled.get(&fact.name()), None);
}
