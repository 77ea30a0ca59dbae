//! Credits enter when a quorum has signed for them, and no issuer gives away more than its part of the budget.

use protocol::ids::Digest;
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::records::{Deposit, Epoch, Source};
use protocol::ledger::witness::GIFTS_MAX;
use protocol::signed::{Role, Verified, id_of};

use crate::network::{HONEST, Honest, domain, issuer_signer, lie, manifest, payer, signer};

fn deposit(reference: u8, amount: u64) -> Deposit {
    let (reference, epoch, source) = (Digest([reference; 32]), Epoch(0), Source::Budget);
    Deposit { reference, account: payer(), amount, epoch, source }
}

fn issuers() -> [Honest; HONEST] {
    [0, 1, 2].map(Honest::new)
}

fn propose(issuer: &mut Honest, deposit: Deposit) -> Result<Verified<Deposit>, IssuerError> {
    let (proposed, record) = issuer.witness.propose(deposit)?;
    issuer.write(record);
    Ok(proposed)
}

/// Signs what issuer 0 proposed.
fn endorse(issuer: &mut Honest, deposit: &Verified<Deposit>) -> Result<Verified<Deposit>, IssuerError> {
    let (endorsed, record) = issuer.witness.endorse(deposit, issuer_signer(0).public())?;
    issuer.write(record);
    Ok(endorsed)
}

#[test]
fn a_deposit_is_booked_once_when_three_have_signed_it() {
    let [mut first, mut second, mut third] = issuers();
    let before = first.witness.books.deposited();
    let proposed = propose(&mut first, deposit(2, 500)).expect("within its part");
    assert_eq!(first.witness.enter(&proposed), Err(IssuerError::NoQuorum));
    let two = endorse(&mut second, &proposed).expect("within its part");
    assert_eq!(first.witness.gather(&two), None);

    let three = endorse(&mut third, &proposed).expect("within its part");
    let agreed = first.witness.gather(&three).expect("three have signed");
    for issuer in [&mut first, &mut second, &mut third] {
        assert!(issuer.witness.enter(&agreed).expect("agreed").is_some());
        assert_eq!(issuer.witness.enter(&agreed), Ok(None));
        assert_eq!(issuer.witness.books.deposited(), before + 500);
    }
    assert_eq!(first.witness.proposals(), []);
}

#[test]
fn a_proposer_gets_its_part_of_the_budget_signed_and_no_more() {
    let [mut first, mut second, _] = issuers();
    let part = manifest().grant_budget / 4;
    let over = propose(&mut first, deposit(2, part + 1));
    assert_eq!(over.map(|_| ()), Err(IssuerError::Budget { left: part }));

    let all = propose(&mut first, deposit(2, part)).expect("its part");
    assert!(endorse(&mut second, &all).is_ok());
    assert!(endorse(&mut second, &all).is_ok(), "the same again");
    let mut more = Honest::new(0);
    let more = propose(&mut more, deposit(3, 1)).expect("one that has forgotten, or lies");
    assert_eq!(endorse(&mut second, &more).map(|_| ()), Err(IssuerError::Budget { left: 0 }));
}

#[test]
fn a_proposer_makes_so_many_deposits_before_a_checkpoint_and_none_of_nothing() {
    let [mut first, mut second, _] = issuers();
    assert_eq!(propose(&mut first, deposit(2, 0)).map(|_| ()), Err(IssuerError::NoTransfer));
    let gift = |number: u64| {
        let mut reference = [0; 32];
        reference[..8].copy_from_slice(&number.to_le_bytes());
        lie(Deposit { reference: Digest(reference), ..deposit(0, 1) })
    };
    let liar = issuer_signer(HONEST).public();
    let sign = |second: &mut Honest, deposit: &Verified<Deposit>| {
        let (_, record) = second.witness.endorse(deposit, liar)?;
        second.write(record);
        Ok(())
    };
    let nothing = lie(deposit(2, 0));
    assert_eq!(sign(&mut second, &nothing), Err(IssuerError::NoTransfer));
    for number in 1..=GIFTS_MAX {
        assert_eq!(sign(&mut second, &gift(number)), Ok(()));
    }
    let lines = second.journal.len();
    for _ in 0..2 {
        assert_eq!(sign(&mut second, &gift(GIFTS_MAX + 1)), Err(IssuerError::Full));
        assert_eq!(sign(&mut second, &gift(GIFTS_MAX)), Ok(()), "the same again");
        assert_eq!(second.journal.len(), lines, "nothing is written for it");
        second.crash(1);
    }
    let others = propose(&mut first, deposit(3, 1)).expect("within its part");
    assert!(endorse(&mut second, &others).is_ok(), "whoever does not flood is not held up");

    let (names, outcome) = second.witness.settled.propose(Epoch(0)).expect("sums that can be stated");
    let id = id_of(&outcome.checkpoint, domain());
    second.witness.adopt(id, &names, outcome);
    assert_eq!(sign(&mut second, &gift(GIFTS_MAX + 1)), Ok(()), "a checkpoint makes room again");
}

#[test]
fn a_reference_has_one_deposit_and_a_crash_forgets_neither_it_nor_what_was_given() {
    let [mut first, mut second, mut third] = issuers();
    let proposed = propose(&mut first, deposit(2, 500)).expect("within its part");
    endorse(&mut second, &proposed).expect("within its part");
    let other = propose(&mut Honest::new(0), deposit(2, 501)).expect("one that lies");
    let outside = Deposit { source: Source::Outside, ..deposit(4, 1) };
    let outside = first.witness.sign(outside);

    first.crash(0);
    second.crash(1);
    assert_eq!(endorse(&mut second, &other).map(|_| ()), Err(IssuerError::SlotLocked));
    assert_eq!(endorse(&mut second, &outside).map(|_| ()), Err(IssuerError::NoQuorum));
    let part = manifest().grant_budget / 4;
    let over = propose(&mut first, deposit(3, part));
    assert_eq!(over.map(|_| ()), Err(IssuerError::Budget { left: part - 500 }));
    let again = endorse(&mut second, &proposed).expect("as before");
    assert_eq!(first.witness.gather(&again), None);
    let three = endorse(&mut third, &first.witness.proposals()[0]).expect("within its part");
    assert!(first.witness.gather(&three).is_some());
}

#[test]
fn only_issuers_signatures_are_gathered() {
    let [mut first, mut second, _] = issuers();
    let proposed = propose(&mut first, deposit(2, 500)).expect("within its part");
    let two = endorse(&mut second, &proposed).expect("within its part");
    // An issuer's key in another capacity, and a stranger's in an issuer's.
    let more = two.signed_also_by(domain(), Role::Owner, &issuer_signer(2));
    let more = more.signed_also_by(domain(), Role::Issuer, &signer(77));

    assert_eq!(first.witness.gather(&more), None);
    let [gathered] = &first.witness.proposals()[..] else { panic!("one") };
    assert_eq!(gathered.attestations().len(), 2, "the proposer and one other issuer");
}
