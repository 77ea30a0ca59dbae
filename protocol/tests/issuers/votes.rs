//! What a quorum's votes are, and what only looks like them.

use protocol::ids::{ChannelId, RecordId};
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::quorum::{Certificate, EndCertificate, Fact};
use protocol::ledger::records::{AccountOp, CloseVote, Epoch, Vote};
use protocol::message::Checked;
use protocol::signed::{Role, Verified, sign};

use crate::network::{DEPOSIT, domain, issuer_signer, manifest, opening, signer, terms};

fn vote(op: &Verified<AccountOp>) -> Vote {
    Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled: None }
}

fn by(place: usize, vote: Vote) -> Verified<Vote> {
    sign(vote, domain(), Role::Issuer, &issuer_signer(place))
}

fn check(op: &Verified<AccountOp>, votes: Vec<Verified<Vote>>) -> Result<(), IssuerError> {
    Certificate::<Checked> { op: op.clone(), terms: Some(terms()), votes }.check(&manifest())
}

#[test]
fn a_step_needs_the_votes_of_three_issuers_for_itself() {
    let op = opening(DEPOSIT / 2);
    let two = || vec![by(0, vote(&op)), by(1, vote(&op))];
    let and = |third: Verified<Vote>| check(&op, two().into_iter().chain([third]).collect());

    assert_eq!(check(&op, two()), Err(IssuerError::NoQuorum));
    assert_eq!(and(by(2, vote(&op))), Ok(()));
    assert_eq!(and(by(1, Vote { epoch: Epoch(1), ..vote(&op) })), Err(IssuerError::NoQuorum));
    assert_eq!(and(sign(vote(&op), domain(), Role::Issuer, &signer(9))), Err(IssuerError::NoQuorum));
    assert_eq!(and(sign(vote(&op), domain(), Role::Node, &issuer_signer(2))), Err(IssuerError::NoQuorum));
    assert_eq!(and(by(2, Vote { op: RecordId([9; 32]), ..vote(&op) })), Err(IssuerError::NoQuorum));
    assert_eq!(and(by(2, Vote { sequence: 1, ..vote(&op) })), Err(IssuerError::NoQuorum));
}

#[test]
fn an_end_needs_the_votes_of_three_issuers_for_one_amount() {
    let channel = ChannelId([5; 32]);
    let by = |place, channel, amount| {
        sign(CloseVote { channel, amount, epoch: Epoch(0) }, domain(), Role::Issuer, &issuer_signer(place))
    };
    let check = |third: Verified<CloseVote>| {
        let votes = vec![by(0, channel, 40), by(1, channel, 40), third];
        EndCertificate::<Checked> { votes }.check(&manifest())
    };

    assert_eq!(check(by(2, channel, 40)), Ok((channel, 40)));
    assert_eq!(check(by(2, channel, 41)), Err(IssuerError::NoQuorum));
    assert_eq!(check(by(2, ChannelId([6; 32]), 40)), Err(IssuerError::NoQuorum));
    assert_eq!(check(by(1, channel, 40)), Err(IssuerError::NoQuorum));
    assert_eq!(
        EndCertificate::<Checked> { votes: Vec::new() }.check(&manifest()),
        Err(IssuerError::NoQuorum)
    );
}

#[test]
fn the_end_of_a_channel_has_another_name_than_its_opening() {
    let op = opening(DEPOSIT / 2);
    let end = CloseVote { channel: op.id().into(), amount: 0, epoch: Epoch(0) };
    let end = sign(end, domain(), Role::Issuer, &issuer_signer(0));
    let opened = Fact::<Checked>::Step(Certificate { op, terms: None, votes: Vec::new() });
    let ended = Fact::<Checked>::End(EndCertificate { votes: vec![end] });

    assert_ne!(opened.name(), ended.name());
}
