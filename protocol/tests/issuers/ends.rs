//! Checkpoints and the ends of channels: an end and a redemption beyond it are signed by the same two, who may be one.

use std::sync::Arc;

use protocol::advert::Incentive;
use protocol::ids::{AccountId, ChannelId, RecordId};
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::quorum::{Certificate, EndCertificate, Fact};
use protocol::ledger::records::{AccountOp, CloseVote, Epoch, Final, OpBody, OpenChannel, Terms};
use protocol::ledger::settled::Outcome;
use protocol::ledger::witness::Witness;
use protocol::licence::open_licence;
use protocol::message::Checked;
use protocol::model::Modality;
use protocol::record::Record;
use protocol::signed::{Role, Verified, sign};

use crate::network::{DEPOSIT, HONEST, domain, lie, manifest, opening, payer, signer, terms};
use crate::settling::{certified, follow, opened, redemption};

const REDEEMED: u64 = 400_000;

/// The account of the payee, which is its payer's own.
fn payee() -> AccountId {
    signer(2).public().into()
}

fn merchant() -> AccountId {
    signer(30).public().into()
}

fn channel() -> ChannelId {
    opening(DEPOSIT / 2).id().into()
}

/// Returns the end of the channel with nothing paid, as both sides signed it.
fn nothing_paid() -> Verified<Final> {
    let closing = Final { channel: channel(), amount: 0, receipt: None };
    let closing = sign(closing, domain(), Role::Payer, &signer(6));
    closing.signed_also_by(domain(), Role::Payee, &signer(4))
}

fn lied_end() -> Verified<CloseVote> {
    lie(CloseVote { channel: channel(), amount: 0, epoch: Epoch(1) })
}

/// Returns the payee's first step, which spends what it was paid on a channel to somebody else, and its terms.
fn spending() -> (Verified<AccountOp>, Verified<Terms>) {
    let other: AccountId = signer(22).public().into();
    let terms = Terms {
        payee: signer(23).public().into(),
        payee_account: other,
        payee_key: signer(24).public(),
        payer_account: payee(),
        incentive: Incentive::Exchange,
        split: Terms::standard_split(&manifest(), Modality::Text, other),
        licence: open_licence(terms().model, domain()),
        ..Terms::clone(&terms())
    };
    let terms = sign(terms, domain(), Role::Node, &signer(23));
    let open = OpenChannel {
        payee: terms.payee,
        terms: terms.id(),
        cap: 300_000,
        expires: Epoch(4),
        payer: signer(25).public().into(),
        payer_key: signer(26).public(),
    };
    let body = OpBody::OpenChannel(open);
    let op = AccountOp { account: payee(), sequence: 0, previous: RecordId::NONE, epoch: Epoch(1), body };
    (sign(op, domain(), Role::Owner, &signer(2)), terms)
}

/// Returns the payer's second step: nearly all that it had before it opened the channel.
fn payment() -> Verified<AccountOp> {
    let body = OpBody::Pay { to: merchant(), amount: 900_000 };
    let previous = opening(DEPOSIT / 2).id();
    let op = AccountOp { account: payer(), sequence: 1, previous, epoch: Epoch(1), body };
    sign(op, domain(), Role::Owner, &signer(1))
}

/// Returns a step with the votes of those who vote for it, if they are a quorum.
fn voted(
    issuers: &mut [Witness],
    (op, terms): (&Verified<AccountOp>, Option<&Verified<Terms>>),
) -> Result<Certificate<Checked>, IssuerError> {
    let votes = issuers.iter_mut().map(|issuer| issuer.vote(op, terms, Epoch(1)).map(|(vote, _)| vote));
    let votes = votes.collect::<Result<_, _>>()?;
    let certificate = Certificate { op: op.clone(), terms: terms.cloned(), votes };
    certificate.check(&manifest()).map(|()| certificate)
}

/// Returns the end that two honest issuers have promised, and the liar with them.
fn end_of(promises: impl IntoIterator<Item = Verified<CloseVote>>) -> EndCertificate<Checked> {
    let end = EndCertificate { votes: promises.into_iter().chain([lied_end()]).collect() };
    end.check(&manifest()).expect("three promised");
    end
}

fn promise(issuer: &mut Witness) -> Verified<CloseVote> {
    issuer.promise(&nothing_paid(), Epoch(0)).expect("nothing is paid").0
}

/// Returns an issuer that has paid, what it would have a checkpoint state, and what that comes to.
fn paid(place: usize) -> (Witness, Vec<RecordId>, Outcome) {
    let mut issuer = opened(place);
    let (receipt, claim) = redemption(1, REDEEMED);
    issuer.redeem(&receipt, Some(&claim)).expect("within the receipt");
    let (names, outcome) = issuer.settled.propose(Epoch(0)).expect("stated");
    (issuer, names, outcome)
}

/// Payer and payee are one. Two issuers have promised an end with nothing paid when the liar has a checkpoint state a
/// redemption; it keeps its own promise until the payee has a step certified that spends what it was paid, and nobody has
/// recorded that step. Would the end count then, the payer had its cap back and could spend it again; the next checkpoint
/// of the liar, with the payee's step in it, would undo that payment.
#[test]
fn no_channel_ends_below_what_a_checkpoint_states_so_that_no_payment_is_undone() {
    let mut honest: Vec<Witness> = (0..HONEST).map(opened).collect();
    let promises = [1, 2].map(|place| promise(&mut honest[place]));
    let (mut liar, names, outcome) = paid(HONEST);
    assert!(honest.iter().all(|issuer| !issuer.objects(&outcome)), "nobody has ended the channel");
    let proposer = liar.clone();
    for issuer in honest.iter_mut().chain([&mut liar]) {
        follow(issuer, &proposer, &names, Epoch(0));
        assert_eq!(issuer.books.channel(channel()), Some((REDEEMED, false)));
        assert_eq!(issuer.books.promised(channel()), None, "a promise below is void");
    }
    let (spend, with) = spending();
    let withheld = voted(&mut honest, (&spend, Some(&with))).expect("the payee has what it was paid");

    let end = end_of(promises);
    for issuer in &mut honest {
        assert_eq!(issuer.end(&end), Err(IssuerError::WrongEpoch));
    }
    let paid = voted(&mut honest, (&payment(), None)).map(drop);
    assert!(matches!(paid, Err(IssuerError::NotEnoughCash { .. })), "{paid:?}");

    liar.certify(&withheld, Epoch(1)).expect("a quorum voted");
    let (names, outcome) = liar.settled.propose(Epoch(1)).expect("stated");
    for issuer in &mut honest {
        assert!(!issuer.objects(&outcome));
        follow(issuer, &liar, &names, Epoch(1));
        assert_eq!(issuer.books.next_slot(payee()), (1, spend.id()));
        assert!(issuer.books.is_conserved());
    }
}

/// The same with the checkpoint after the end: who has recorded it does not prepare; who has prepared does not record it, and
/// proposes otherwise as soon as it knows of it, so that there is a checkpoint without the liar.
#[test]
fn a_checkpoint_that_pays_beyond_an_end_is_not_prepared_and_the_next_proposal_states_the_end() {
    let (mut payer_of_it, names, outcome) = paid(0);
    let [mut ended, mut late] = [1, 2].map(opened);
    let promises = [&mut ended, &mut late].map(promise);
    let end = end_of(promises);
    ended.end(&end).expect("a quorum promised").expect("news");
    assert!(ended.objects(&outcome), "who has ended a channel lets no checkpoint pay more on it");

    for issuer in [&mut payer_of_it, &mut late] {
        issuer.settled.learn(redeemed());
        assert!(!issuer.objects(&outcome));
        issuer.freeze_paid(&names);
        assert_eq!(issuer.end(&end), Err(IssuerError::Behind));
        assert_eq!(issuer.books.channel(channel()).map(|(_, closed)| closed), Some(false));
    }
    // Without the liar all three must prepare.
    for proposer in [&payer_of_it, &ended, &late] {
        let (_, outcome) = proposer.settled.propose(Epoch(0)).expect("stated");
        assert_eq!(outcome.books.channel(channel()), Some((0, true)));
        assert!([&payer_of_it, &ended, &late].iter().all(|issuer| !issuer.objects(&outcome)));
    }
    let (names, _) = payer_of_it.settled.propose(Epoch(0)).expect("stated");
    let proposer = payer_of_it.clone();
    for issuer in [&mut payer_of_it, &mut ended, &mut late] {
        follow(issuer, &proposer, &names, Epoch(0));
        assert_eq!(issuer.books.channel(channel()), Some((0, true)));
        assert_eq!((issuer.settled.since(), issuer.books.is_conserved()), (0, true));
    }
}

fn redeemed() -> Arc<Fact<Checked>> {
    let (receipt, claim) = redemption(1, REDEEMED);
    Arc::new(Fact::Redeemed { receipt, claim: Some(claim) })
}

#[test]
fn who_is_shown_an_end_after_it_prepared_another_one_by_expiry_proposes_the_one_that_was_promised() {
    let over = Epoch(manifest().grace_epochs + 3);
    let (mut issuer, _, _) = paid(0);
    let (_, outcome) = issuer.settled.propose(over).expect("stated");
    assert_eq!(outcome.ended, [(channel(), REDEEMED)]);
    issuer.freeze(over, &[], &[channel()]);

    let [mut one, mut other] = [1, 2].map(opened);
    let end = end_of([&mut one, &mut other].map(promise));
    assert_eq!(issuer.end(&end), Err(IssuerError::Behind));
    one.end(&end).expect("a quorum promised");
    let (_, again) = issuer.settled.propose(over).expect("stated");
    assert_eq!((again.ended.as_slice(), again.books.channel(channel())), (&[][..], Some((0, true))));
    assert!(one.objects(&outcome) && !one.objects(&again));
}

#[test]
fn who_has_prepared_keeps_no_copy_of_a_step_that_others_could_not_take() {
    let (mut issuer, _, _) = paid(0);
    let (spend, with) = spending();
    let good = Certificate { terms: Some(with), ..certified(&spend, None) };
    issuer.freeze(Epoch(0), &[(payee(), 0)], &[]);
    let forged = sign(AccountOp::clone(&spend), domain(), Role::Owner, &signer(1));
    let copies = [
        (Certificate { terms: None, ..good.clone() }, IssuerError::WrongTerms),
        (Certificate { terms: Some(terms()), ..good.clone() }, IssuerError::WrongTerms),
        (Certificate { op: forged, ..good.clone() }, IssuerError::WrongKey),
    ];
    for (copy, error) in &copies {
        assert_eq!(issuer.certify(copy, Epoch(1)), Err(*error));
        assert_eq!(issuer.settled.get(&spend.id()), None);
    }
    assert_eq!(issuer.certify(&good, Epoch(1)), Err(IssuerError::Behind));
    for (copy, error) in &copies {
        assert_eq!(issuer.certify(copy, Epoch(1)), Err(*error));
        // Whatever else a proposal brings.
        issuer.settled.learn(Arc::new(Fact::Step(copy.clone())));
        assert_eq!(issuer.settled.get(&spend.id()).map(|fact| &**fact), Some(&Fact::Step(good.clone())));
    }
    let (_, outcome) = issuer.settled.propose(Epoch(0)).expect("stated");
    assert_eq!(outcome.books.next_slot(payee()), (1, spend.id()));
}

#[test]
fn who_cannot_take_an_end_because_what_it_paid_beyond_is_spent_proposes_that_end() {
    let (mut issuer, _, _) = paid(0);
    let (spend, with) = spending();
    let spent = Certificate { terms: Some(with), ..certified(&spend, None) };
    issuer.certify(&spent, Epoch(1)).expect("the payee has what it was paid here");
    let [mut one, mut other] = [1, 2].map(opened);
    let end = end_of([&mut one, &mut other].map(promise));
    one.end(&end).expect("a quorum promised").expect("news");
    assert_eq!(issuer.end(&end), Err(IssuerError::Behind));

    let (_, outcome) = issuer.settled.propose(Epoch(1)).expect("stated");
    assert_eq!(outcome.books.channel(channel()), Some((0, true)));
    assert!(!one.objects(&outcome));
}

/// Journals were written before no channel ended below what a checkpoint states; the payer may have spent its cap since.
#[test]
fn an_old_journal_with_an_end_below_what_was_stated_is_read_and_the_next_checkpoint_is_as_the_others() {
    let (mut issuer, names, _) = paid(0);
    let proposer = issuer.clone();
    follow(&mut issuer, &proposer, &names, Epoch(0));
    let [mut one, mut other] = [1, 2].map(opened);
    let end = end_of([&mut one, &mut other].map(promise));
    assert_eq!(issuer.end(&end), Err(IssuerError::WrongEpoch));
    let certificate = certified(&payment(), Some(Epoch(0))).signed();
    for line in [Record::Concluded(end.signed()), Record::Certified { certificate, epoch: Epoch(1) }] {
        issuer.replay(line).expect("as it was written");
    }
    assert_eq!(issuer.books.channel(channel()), Some((0, true)));

    let (names, outcome) = issuer.settled.propose(Epoch(1)).expect("stated");
    assert!(names.is_empty() && !issuer.objects(&outcome));
    let proposer = issuer.clone();
    follow(&mut issuer, &proposer, &names, Epoch(1));
    assert_eq!(issuer.books.channel(channel()), Some((REDEEMED, false)));
    assert!(issuer.books.is_conserved());
}
