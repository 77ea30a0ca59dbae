//! The issuer's rules at their very edges: what is exactly within is taken, one beyond is refused, and so is far beyond.

use protocol::advert::Incentive;
use protocol::ids::{ChannelId, Digest};
use protocol::ledger::issuer::{Issuer, IssuerError};
use protocol::ledger::quorum::Acks;
use protocol::ledger::records::{
    AccountOp, Deposit, Epoch, Final, OpBody, OpenChannel, Receipt, RedeemAck, Source, Terms,
};
use protocol::signed::{Role, Verified, sign};

use crate::common::{account, digest, domain, manifest, payee_signer, payer_signer, signer, terms, usage};

const PAYER: u8 = 1;
const PAYEE: u8 = 2;
const NOW: u32 = 20;

/// An opening and what the issuer knows; every part may be put at an edge.
struct Opening {
    funds: u64,
    cap: u64,
    valid_to: u32,
    expires: u32,
    signed: u32,
    now: u32,
}

impl Default for Opening {
    fn default() -> Self {
        let cap = 100_000;
        Self { funds: cap + manifest().open_fee, cap, valid_to: 40, expires: NOW + 7, signed: NOW, now: NOW }
    }
}

impl Opening {
    fn terms(&self) -> Verified<Terms> {
        let valid_to = Epoch(self.valid_to);
        let terms = Terms { valid_to, ..Terms::clone(&terms(PAYEE, PAYER, Incentive::Exchange, 0)) };
        sign(terms, domain(), Role::Node, &signer(PAYEE))
    }

    fn books(&self) -> Issuer {
        let mut books = Issuer::new(manifest());
        let (reference, amount) = (digest(1), self.funds);
        let deposit =
            Deposit { reference, account: account(PAYER), amount, epoch: Epoch(0), source: Source::Budget };
        let deposit = sign(deposit, domain(), Role::Issuer, &signer(0));
        books.deposit(&deposit).expect("within the budget");
        books
    }

    fn open(&self, books: &mut Issuer) -> Result<ChannelId, IssuerError> {
        let terms = self.terms();
        let open = OpenChannel {
            payee: terms.payee,
            terms: terms.id(),
            cap: self.cap,
            expires: Epoch(self.expires),
            payer: signer(PAYER).public().into(),
            payer_key: payer_signer(PAYER).public(),
        };
        let op = next(books, PAYER, self.signed, OpBody::OpenChannel(open));
        books.apply(&op, Some(&terms), Epoch(self.now)).map(|()| op.id().into())
    }

    fn judged(&self) -> Result<(), IssuerError> {
        self.open(&mut self.books()).map(drop)
    }
}

fn next(books: &Issuer, owner: u8, epoch: u32, body: OpBody) -> Verified<AccountOp> {
    let (sequence, previous) = books.next_slot(account(owner));
    let op = AccountOp { account: account(owner), sequence, previous, epoch: Epoch(epoch), body };
    sign(op, domain(), Role::Owner, &signer(owner))
}

fn receipt(channel: ChannelId, amount: u64) -> Verified<Receipt> {
    let (usage, jobs, epoch) = (usage(1, 0, 0), Digest::ZERO, Epoch(NOW));
    let receipt = Receipt { channel, sequence: 1, amount, usage, jobs, epoch };
    let receipt = sign(receipt, domain(), Role::Payer, &payer_signer(PAYER));
    receipt.signed_also_by(domain(), Role::Payee, &payee_signer(PAYEE))
}

#[test]
fn an_opening_is_judged_by_epochs_to_the_very_last_one() {
    let within = [
        Opening::default(),
        Opening { valid_to: NOW + 7, ..Opening::default() },
        Opening { valid_to: NOW, expires: NOW, ..Opening::default() },
        Opening { signed: NOW - 1, ..Opening::default() },
        Opening { signed: NOW + 1, ..Opening::default() },
    ];
    assert!(within.iter().all(|opening| opening.judged() == Ok(())));
    for late in [1, 2, 9] {
        let ended = Opening { valid_to: NOW - late, expires: NOW, ..Opening::default() };
        assert_eq!(ended.judged(), Err(IssuerError::WrongTerms));
        let over = Opening { expires: NOW - late, ..Opening::default() };
        assert_eq!(over.judged(), Err(IssuerError::WrongExpiry));
        let long = Opening { expires: NOW + 7 + late, ..Opening::default() };
        assert_eq!(long.judged(), Err(IssuerError::WrongExpiry));
        let beyond_terms = Opening { valid_to: NOW + 2, expires: NOW + 2 + late, ..Opening::default() };
        assert_eq!(beyond_terms.judged(), Err(IssuerError::WrongExpiry));
        for signed in [NOW - 1 - late, NOW + 1 + late] {
            assert_eq!(Opening { signed, ..Opening::default() }.judged(), Err(IssuerError::WrongEpoch));
        }
    }
}

#[test]
fn an_account_opens_what_it_can_pay_to_the_last_nano_credit_and_sixty_four_channels() {
    let exact = Opening::default();
    let (needed, available) = (exact.funds, exact.funds - 1);
    let poor = Opening { funds: available, ..Opening::default() };
    assert_eq!(poor.judged(), Err(IssuerError::NotEnough { needed, available }));

    let rich = Opening { funds: 100 * needed, ..Opening::default() };
    let mut books = rich.books();
    for channel in 0..64 {
        assert!(rich.open(&mut books).is_ok(), "channel {channel}");
    }
    assert_eq!(rich.open(&mut books), Err(IssuerError::Full));
}

#[test]
fn a_redemption_is_paid_up_to_the_receipt_and_the_cap() {
    let opening = Opening::default();
    let mut books = opening.books();
    let channel = opening.open(&mut books).expect("within the rules");

    let over = receipt(channel, opening.cap + 1);
    assert_eq!(books.redeem(&over, 1), Err(IssuerError::WrongAmount));
    let all = receipt(channel, opening.cap);
    assert_eq!(books.redeem(&all, opening.cap + 1), Err(IssuerError::WrongAmount));
    assert_eq!(books.redeem(&all, 7), Ok(7));
    assert_eq!(books.redeem(&receipt(channel, 7), 8), Err(IssuerError::WrongAmount));
    assert_eq!(books.redeem(&all, opening.cap), Ok(opening.cap));
    let unknown = receipt(ChannelId([9; 32]), 1);
    assert_eq!(books.redeem(&unknown, 1), Err(IssuerError::UnknownChannel));
}

#[test]
fn a_channel_is_ended_early_by_its_payer_while_that_is_early() {
    let ends = |expires: u32, owner: u8| {
        let opening = Opening { expires, ..Opening::default() };
        let mut books = opening.books();
        let channel = opening.open(&mut books).expect("within the rules");
        let op = next(&books, owner, NOW, OpBody::Expire(channel));
        books.apply(&op, None, Epoch(NOW))
    };
    assert_eq!(ends(NOW + 2, PAYER), Ok(()));
    assert_eq!(ends(NOW + 1, PAYER), Err(IssuerError::Closed), "it ends then anyway");
    assert_eq!(ends(NOW, PAYER), Err(IssuerError::Closed));
    assert_eq!(ends(NOW + 7, PAYEE), Err(IssuerError::WrongKey));
}

#[test]
fn a_channel_ends_by_both_between_what_was_paid_and_its_cap_and_once() {
    let opening = Opening::default();
    let mut books = opening.books();
    let channel = opening.open(&mut books).expect("within the rules");
    books.redeem(&receipt(channel, 70), 70).expect("within the cap");
    let mut close = |amount| {
        let closing = Final { channel, amount, receipt: None };
        let closing = sign(closing, domain(), Role::Payer, &payer_signer(PAYER));
        books.close(&closing.signed_also_by(domain(), Role::Payee, &payee_signer(PAYEE)))
    };
    assert_eq!(close(69), Err(IssuerError::WrongAmount));
    assert_eq!(close(opening.cap + 1), Err(IssuerError::WrongAmount));
    assert_eq!(close(70), Ok(70));
    assert_eq!((close(71), close(opening.cap)), (Ok(70), Ok(70)), "it has ended");
    assert_eq!(books.redeem(&receipt(channel, 80), 80), Ok(70));
    assert!(books.is_conserved());
}

#[test]
fn a_channel_that_nobody_closed_ends_behind_its_last_epoch_of_grace_and_not_in_it() {
    let opening = Opening::default();
    let mut books = opening.books();
    let channel = opening.open(&mut books).expect("within the rules");
    let last = opening.expires + manifest().grace_epochs;

    assert_eq!(books.expire(Epoch(last)), []);
    let ended: Vec<_> = books.expire(Epoch(last + 1)).into_iter().map(|(id, _, paid)| (id, paid)).collect();
    assert_eq!(ended, [(channel, 0)]);
    assert_eq!(books.balance(account(PAYER)).available(), opening.cap);
    assert_eq!(books.expire(Epoch(last + 1)), []);
    for (epoch, known) in [(last + 7, true), (last + 8, false)] {
        books.expire(Epoch(epoch));
        assert_eq!(books.channel(channel).is_some(), known, "in epoch {epoch}");
    }
}

#[test]
fn cash_goes_to_the_last_nano_credit_with_its_fee_and_nothing_goes_nowhere() {
    let fees = [manifest().pay_fee, manifest().withdraw_fee];
    let judged = |funds, body: OpBody| {
        let mut books = Opening { funds, ..Opening::default() }.books();
        let op = next(&books, PAYER, NOW, body);
        books.apply(&op, None, Epoch(NOW)).map(|()| (books.balance(account(PAYER)).cash, books.withdrawn()))
    };
    let pay = |to: u8, amount| OpBody::Pay { to: account(to), amount };
    let withdraw = |amount| OpBody::Withdraw { amount, payout: digest(5) };
    // What is withdrawn is worth the hand that pays it out.
    let least = fees[1];
    assert_eq!(judged(fees[0] + 9, pay(PAYEE, 9)), Ok((0, 0)));
    assert_eq!(judged(fees[1] + least, withdraw(least)), Ok((0, least.into())));
    assert_eq!(judged(fees[0], OpBody::Noop), Ok((0, 0)));

    let short = |fee: u64, amount: u64| {
        let needed = fee + amount;
        Err(IssuerError::NotEnoughCash { needed, available: needed - 1 })
    };
    assert_eq!(judged(fees[0] + 8, pay(PAYEE, 9)), short(fees[0], 9));
    assert_eq!(judged(fees[1] + least - 1, withdraw(least)), short(fees[1], least));
    assert_eq!(judged(10 * fees[1], withdraw(least - 1)), Err(IssuerError::TooLittle { least }));
    assert_eq!(judged(fees[0] - 1, OpBody::Noop), short(fees[0], 0));
    for nothing in [pay(PAYEE, 0), pay(PAYER, 9), withdraw(0)] {
        assert_eq!(judged(10 * fees[1], nothing), Err(IssuerError::NoTransfer));
    }
}

#[test]
fn what_an_issuer_said_of_a_channel_is_nothing_until_it_says_something_and_then_the_most_it_said() {
    let (one, other) = (signer(10).public(), signer(11).public());
    let said = |amount, closed| {
        let ack = RedeemAck { channel: ChannelId([3; 32]), amount, closed, epoch: Epoch(NOW) };
        sign(ack, domain(), Role::Issuer, &signer(10))
    };
    let mut acks = Acks::default();
    assert_eq!((acks.by(one), acks.is_closed_by(one)), (0, false));
    for amount in [5, 3] {
        acks.learn(one, &said(amount, false));
        assert_eq!((acks.by(one), acks.by(other)), (5, 0));
    }
    acks.learn(one, &said(5, true));
    assert_eq!((acks.is_closed_by(one), acks.is_closed_by(other)), (true, false));
}
