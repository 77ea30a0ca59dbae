//! What a mirror keeps, and what an issuer pays out to whom a mirror brings it.

use std::sync::Arc;

use protocol::advert::Incentive;
use protocol::ids::{ChannelId, Digest, NodeId, RecordId};
use protocol::keys::Signer;
use protocol::ledger::issuer::{Issuer, IssuerError};
use protocol::ledger::mirror::{Mirror, MirrorError, News};
use protocol::ledger::paid::{Agreement, Paid};
use protocol::ledger::reconcile::{Salt, exchange};
use protocol::ledger::records::{AccountOp, Deposit, Epoch, OpBody, OpenChannel, Receipt, Recorded, Source};
use protocol::message::{Checked, Kept, Opening};
use protocol::price::Usage;
use protocol::signed::{Role, Verified, sign};

use crate::common::{
    PRICE, account, digest, domain, manifest, payee_signer, payer_signer, signer, terms, usage,
};

const ISSUER: u8 = 200;

const PAYER: u8 = 1;

const PAYEE: u8 = 2;

const CAP: u64 = 1_000_000_000;

fn id(tag: u8) -> NodeId {
    signer(tag).public().into()
}

/// Returns a channel that expires in epoch 2, with `recorded_by`'s word for it.
fn opening(sequence: u64, recorded_by: &Signer) -> Opening<Checked> {
    let terms = terms(PAYEE, PAYER, Incentive::Exchange, 0);
    let open = OpenChannel {
        payee: id(PAYEE),
        terms: terms.id(),
        cap: CAP,
        expires: Epoch(2),
        payer: id(PAYER),
        payer_key: payer_signer(PAYER).public(),
    };
    let body = OpBody::OpenChannel(open);
    let op = AccountOp { account: account(PAYER), sequence, previous: RecordId::NONE, epoch: Epoch(0), body };
    let op = sign(op, domain(), Role::Owner, &signer(PAYER));
    let recorded = Recorded { op: op.id(), epoch: Epoch(0) };
    let recorded = sign(recorded, domain(), Role::Issuer, recorded_by);
    Opening { op, terms, recorded: vec![recorded] }
}

/// Returns a receipt of work that costs `used` tokens of answer, paid for `amount`.
fn receipt(channel: RecordId, used: Usage, amount: u64) -> Verified<Receipt> {
    let receipt = Receipt {
        channel: ChannelId::from(channel),
        sequence: amount,
        amount,
        usage: used,
        jobs: Digest::ZERO,
        epoch: Epoch(0),
    };
    let receipt = sign(receipt, domain(), Role::Payer, &payer_signer(PAYER));
    receipt.signed_also_by(domain(), Role::Payee, &payee_signer(PAYEE))
}

fn entry(sequence: u64, amount: u64) -> Kept<Checked> {
    let opening = opening(sequence, &signer(ISSUER));
    let receipt = receipt(opening.op.id(), usage(1, 0, 0), amount);
    Kept { opening, receipt: Some(receipt) }
}

fn keep(mirror: &mut Mirror, entry: &Kept<Checked>) -> Result<News, MirrorError> {
    mirror.keep(id(PAYEE), entry, &manifest(), Epoch(0))
}

#[test]
fn the_newest_receipt_of_a_channel_is_kept_whatever_the_order() {
    let mut mirror = Mirror::default();
    assert_eq!(keep(&mut mirror, &entry(0, 50)), Ok(News::Channel));
    assert_eq!(keep(&mut mirror, &entry(0, 90)), Ok(News::Receipt));
    assert_eq!(keep(&mut mirror, &entry(0, 70)), Ok(News::None));
    assert_eq!(keep(&mut mirror, &entry(0, 90)), Ok(News::None));

    let kept: Vec<u64> = mirror.receipts().map(|(_, receipt)| receipt.amount).collect();
    assert_eq!(kept, [90]);
    let of = |tag| mirror.set_of(id(tag));
    let found = exchange(of(PAYEE), &of(PAYER), Salt([1; 16])).expect("two sets");
    assert_eq!((found.differences.only_here.len(), found.differences.only_there.len()), (1, 0));
}

#[test]
fn a_payee_shows_opening_and_receipt_as_they_were_signed() {
    let entry = entry(3, 50);
    let receipt = entry.receipt.as_ref().expect("there is one");
    let paid = |keys| {
        let agreement = Agreement {
            terms: Arc::new(entry.opening.terms.clone()),
            payer: id(PAYER),
            payer_account: account(PAYER),
            payer_key: payer_signer(PAYER).public(),
            domain: domain(),
            signer: Arc::new(payee_signer(PAYEE)),
            keys,
        };
        let Opening { op, recorded, .. } = &entry.opening;
        Paid::on(Arc::new(agreement), CAP).until(Epoch(2)).proven_by(op, recorded)
    };
    for keys in [vec![], vec![account(PAYER).into(), signer(ISSUER).public()], vec![signer(9).public()]] {
        let (mut ours, channel) = (paid(keys), entry.opening.op.id().into());
        ours.replay(receipt);
        // The payer lets it end early.
        ours.expires = Epoch(1);

        assert_eq!(ours.head(channel).as_ref(), Some(receipt));
        assert_eq!(ours.opening(channel).as_ref(), Some(&entry.opening));
        assert_eq!(ours.opening(ChannelId([9; 32])), None, "of another channel");
    }
}

#[test]
fn nothing_is_kept_without_proof() {
    let mut mirror = Mirror::default();
    let foreign = Kept { opening: opening(0, &signer(9)), ..entry(0, 50) };
    assert_eq!(keep(&mut mirror, &foreign), Err(MirrorError::Unproven), "no issuer's word");
    let uncommitted = Opening { recorded: Vec::new(), ..opening(0, &signer(ISSUER)) };
    let uncommitted = Kept { opening: uncommitted, ..entry(0, 50) };
    assert_eq!(keep(&mut mirror, &uncommitted), Err(MirrorError::Unproven), "nobody's word");
    let others = mirror.keep(id(7), &entry(0, 50), &manifest(), Epoch(0));
    assert_eq!(others, Err(MirrorError::Unproven), "another's channel");

    let channel = opening(0, &signer(ISSUER)).op.id();
    let half = receipt(channel, usage(1, 0, 0), 50);
    let half = sign(Receipt::clone(&half), domain(), Role::Payer, &payer_signer(PAYER));
    let refused =
        [half, receipt(channel, usage(1, 0, 0), CAP + 1), receipt(RecordId([9; 32]), usage(1, 0, 0), 50)];
    for receipt in refused {
        let entry = Kept { receipt: Some(receipt), ..entry(0, 50) };
        assert_eq!(keep(&mut mirror, &entry), Err(MirrorError::BadReceipt));
    }
    assert!(mirror.is_empty());
}

#[test]
fn a_channel_is_kept_until_nothing_can_be_redeemed_on_it() {
    let mut mirror = Mirror::default();
    keep(&mut mirror, &entry(0, 50)).expect("room");
    let due = |mirror: &Mirror, epoch, away| mirror.to_redeem(3, Epoch(epoch), |_| away).count();

    assert_eq!((due(&mirror, 4, false), due(&mirror, 4, true)), (0, 1));
    assert_eq!(due(&mirror, 5, false), 1, "the last epoch of grace");
    assert_eq!(mirror.expire(3, Epoch(5)), []);
    assert_eq!(mirror.expire(3, Epoch(6)).len(), 1);
    assert!(mirror.is_empty());
    let late = mirror.keep(id(PAYEE), &entry(0, 50), &manifest(), Epoch(6));
    assert_eq!(late, Err(MirrorError::Over));
}

/// Returns books on which the channel of [`opening`] is open.
fn books() -> Issuer {
    let mut books = Issuer::new(manifest());
    let (reference, account) = (digest(1), account(PAYER));
    let source = Source::Outside;
    let deposit = Deposit { reference, account, amount: 10 * CAP, epoch: Epoch(0), source };
    books.deposit(&deposit).expect("fits");
    let opening = opening(0, &signer(ISSUER));
    books.apply(&opening.op, Some(&opening.terms), Epoch(0)).expect("within the rules");
    books
}

#[test]
fn whoever_brings_a_receipt_it_pays_what_was_used_and_not_what_was_prepaid() {
    let mut books = books();
    let channel = opening(0, &signer(ISSUER)).op.id();
    let used = usage(1, 100, 50);
    let cost = PRICE.cost(&used).expect("small numbers");
    let prepaid = receipt(channel, used, cost + 500_000);

    for _ in 0..2 {
        assert_eq!(books.redeem_used(&prepaid), Ok(cost), "again changes nothing");
    }
    assert_eq!(
        books.redeem(&prepaid, cost + 500_000),
        Ok(cost + 500_000),
        "the payee may say that all was used"
    );
    assert_eq!(books.redeem_used(&prepaid), Ok(cost + 500_000), "it never falls");
    assert!(books.is_conserved());

    // A receipt that pays less than its usage costs pays what it says.
    let mut books = self::books();
    assert_eq!(books.redeem_used(&receipt(channel, used, cost - 1)), Ok(cost - 1));
    let half = sign(Receipt::clone(&prepaid), domain(), Role::Payer, &payer_signer(PAYER));
    assert_eq!(books.redeem_used(&half), Err(IssuerError::WrongKey));
}
