//! An account replaces its key by certificates: its slots and its keys go together at every issuer.

use protocol::ids::{AccountId, Digest, RecordId};
use protocol::keys::Signer;
use protocol::ledger::account::{Inception, Lineage, promise};
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::quorum::Certificate;
use protocol::ledger::records::{AccountOp, Deposit, Epoch, OpBody, Source, Vote};
use protocol::message::Checked;
use protocol::signed::{Role, Verified, sign};

use crate::network::{HONEST, Honest, domain, issuer_signer, lie, signer};

const CREDITS: u64 = 1_000_000_000;

fn key(rotations: u8) -> Signer {
    signer(20 + rotations)
}

fn begins(rotations: u8) -> Inception {
    Inception { key: key(rotations).public(), next: promise(key(rotations + 1).public()) }
}

fn account() -> AccountId {
    begins(0).account()
}

/// Returns issuers of whom those in `funded` know the account's deposit.
fn issuers(funded: [bool; HONEST]) -> [Honest; HONEST] {
    let mut issuers = [0, 1, 2].map(Honest::new);
    issuers.iter_mut().zip(funded).filter(|(_, funded)| *funded).for_each(|(issuer, _)| fund(issuer));
    issuers
}

fn fund(issuer: &mut Honest) {
    let (reference, epoch, source) = (Digest([9; 32]), Epoch(0), Source::Outside);
    let deposit = Deposit { reference, account: account(), amount: CREDITS, epoch, source };
    let deposit = (1..4).fold(sign(deposit, domain(), Role::Issuer, &issuer_signer(0)), |deposit, place| {
        deposit.signed_also_by(domain(), Role::Issuer, &issuer_signer(place))
    });
    let record = issuer.witness.enter(&deposit).expect("signed by all");
    issuer.write(record);
}

/// Returns the step after `last`, signed with the key after so many rotations.
fn step(last: Option<&Verified<AccountOp>>, body: OpBody, rotations: u8) -> Verified<AccountOp> {
    let (sequence, previous) = last.map_or((0, RecordId::NONE), |last| (last.sequence + 1, last.id()));
    let op = AccountOp { account: account(), sequence, previous, epoch: Epoch(0), body };
    sign(op, domain(), Role::Owner, &key(rotations))
}

fn vote(issuer: &mut Honest, op: &Verified<AccountOp>) -> Result<Verified<Vote>, IssuerError> {
    let (vote, record) = issuer.witness.vote(op, None, Epoch(0))?;
    issuer.write(record);
    Ok(vote)
}

/// Returns the step with the votes of all who vote for it, and the liar's.
fn certificate(issuers: &mut [Honest], op: &Verified<AccountOp>) -> Certificate<Checked> {
    let lied =
        Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled: None };
    let votes = issuers.iter_mut().filter_map(|issuer| vote(issuer, op).ok());
    Certificate { op: op.clone(), terms: None, votes: votes.chain([lie(lied)]).collect() }
}

fn certify(issuer: &mut Honest, certificate: &Certificate<Checked>) -> Result<(), IssuerError> {
    let (_, record) = issuer.witness.certify(certificate, Epoch(0))?;
    issuer.write(record);
    Ok(())
}

/// Brings a step to all.
fn take(issuers: &mut [Honest; HONEST], op: &Verified<AccountOp>) {
    let certificate = certificate(issuers, op);
    for issuer in issuers {
        certify(issuer, &certificate).expect("by a quorum");
    }
}

/// The next slot of the account, what holds its key, and how often that was replaced.
fn state(issuer: &Honest) -> (u64, RecordId, Option<(usize, protocol::keys::PublicKey)>) {
    let books = &issuer.witness.books;
    let (next, head) = books.next_slot(account());
    (next, head, books.lineage(account()).map(|lineage: &Lineage| (lineage.rotations(), lineage.key())))
}

#[test]
fn slots_and_keys_agree_at_every_issuer_after_each_step_and_after_a_crash() {
    let mut issuers = issuers([true; HONEST]);
    let inception = step(None, OpBody::Inception(begins(0)), 0);
    let rotation = step(Some(&inception), OpBody::Rotate(begins(1)), 1);
    let spend = step(Some(&rotation), OpBody::Noop, 1);

    for (count, (op, rotations)) in [(&inception, 0), (&rotation, 1), (&spend, 1)].into_iter().enumerate() {
        take(&mut issuers, op);
        let expected = (count as u64 + 1, op.id(), Some((usize::from(rotations), key(rotations).public())));
        assert_eq!(issuers.each_ref().map(state), [expected; HONEST]);
        issuers.iter_mut().enumerate().for_each(|(place, issuer)| issuer.crash(place));
        assert_eq!(issuers.each_ref().map(state), [expected; HONEST]);
    }
    let old = step(Some(&spend), OpBody::Noop, 0);
    for issuer in &mut issuers {
        assert_eq!(vote(issuer, &old), Err(IssuerError::KeyReplaced));
        assert_eq!(issuer.witness.books.locked(account()), None);
        assert!(issuer.witness.books.is_conserved());
    }
}

#[test]
fn a_vote_for_a_rotation_replaces_no_key() {
    let mut issuers = issuers([true; HONEST]);
    let inception = step(None, OpBody::Inception(begins(0)), 0);
    vote(&mut issuers[0], &inception).expect("within the rules");
    assert_eq!(state(&issuers[0]), (0, RecordId::NONE, None));

    take(&mut issuers, &inception);
    let before = state(&issuers[0]);
    vote(&mut issuers[0], &step(Some(&inception), OpBody::Rotate(begins(1)), 1)).expect("as was promised");
    assert_eq!(state(&issuers[0]), before);
}

#[test]
fn an_issuer_that_missed_the_deposit_or_a_rotation_is_behind_until_it_has_them() {
    let mut issuers = issuers([true, true, false]);
    let inception = step(None, OpBody::Inception(begins(0)), 0);
    let rotation = step(Some(&inception), OpBody::Rotate(begins(1)), 1);
    let spend = step(Some(&rotation), OpBody::Noop, 1);
    let steps = [&inception, &rotation, &spend].map(|op| {
        let certificate = certificate(&mut issuers[..2], op);
        issuers[..2].iter_mut().for_each(|issuer| certify(issuer, &certificate).expect("by a quorum"));
        certificate
    });

    let [first, _, late] = &mut issuers;
    assert_eq!(certify(late, &steps[0]), Err(IssuerError::Behind));
    fund(late);
    assert_eq!(certify(late, &steps[2]), Err(IssuerError::Behind));
    certify(late, &steps[0]).expect("next");
    assert_eq!(certify(late, &steps[2]), Err(IssuerError::Behind));
    assert_eq!(vote(late, &spend), Err(IssuerError::WrongSequence { next: 1 }), "and not: the wrong key");
    certify(late, &steps[1]).expect("next");
    certify(late, &steps[2]).expect("next");
    assert_eq!(state(late), state(first));
    assert_eq!(late.witness.books.balance(account()), first.witness.books.balance(account()));
}

#[test]
fn a_spend_of_the_old_key_and_a_rotation_never_share_a_slot() {
    let mut issuers = issuers([true; HONEST]);
    let inception = step(None, OpBody::Inception(begins(0)), 0);
    take(&mut issuers, &inception);
    let spend = step(Some(&inception), OpBody::Noop, 0);
    let rotation = step(Some(&inception), OpBody::Rotate(begins(1)), 1);
    vote(&mut issuers[0], &spend).expect("a thief was first here");
    assert_eq!(vote(&mut issuers[0], &rotation), Err(IssuerError::SlotLocked));

    take(&mut issuers, &rotation);
    let expected = (2, rotation.id(), Some((1, key(1).public())));
    assert_eq!(issuers.each_ref().map(state), [expected; HONEST]);
    let stolen = certificate(&mut issuers, &spend);
    assert_eq!(stolen.votes.len(), 1, "the liar's alone");
    assert_eq!(certify(&mut issuers[0], &stolen), Err(IssuerError::NoQuorum));
}
