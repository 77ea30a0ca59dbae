//! Rotate against spend: a wallet, the owner's recovery of it, and a thief with an old key want the same slots.

use proptest::prelude::*;
use protocol::advert::Incentive;
use protocol::ids::{AccountId, Digest};
use protocol::keys::Signer;
use protocol::ledger::account::{Inception, Lineage, promise};
use protocol::ledger::issuer::{Issuer, IssuerError};
use protocol::ledger::records::{AccountOp, Deposit, Epoch, OpBody, OpenChannel, Source, Terms};
use protocol::ledger::wallet::Wallet;
use protocol::signed::{Role, Verified, sign};

use crate::common::{self, cases, domain, manifest, signer};

/// Two nodes hold the owner's keys: the old machine, and the one on which the owner recovers.
#[derive(Debug, Clone)]
enum Event {
    /// One of them hears from the issuer what the account's state is.
    Hear(usize),
    /// One of them signs a spend, if it can.
    Spend(usize),
    /// The owner rotates on one of them.
    Rotate(usize),
    /// A step that was signed at some time arrives at the issuer.
    Arrive(usize),
    /// Whoever stole the key that was in force so many rotations ago signs the account's next step.
    Steal { age: usize, rotates: bool },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..2_usize).prop_map(Event::Hear),
        3 => (0..2_usize).prop_map(Event::Spend),
        2 => (0..2_usize).prop_map(Event::Rotate),
        5 => (0..6_usize).prop_map(Event::Arrive),
        2 => (0..3_usize, any::<bool>()).prop_map(|(age, rotates)| Event::Steal { age, rotates }),
    ]
}

fn key(number: usize) -> Signer {
    signer(100 + u8::try_from(number).expect("few"))
}

fn begins(number: usize) -> Inception {
    Inception { key: key(number).public(), next: promise(key(number + 1).public()) }
}

fn account() -> AccountId {
    begins(0).account()
}

struct Story {
    books: Issuer,
    wallets: [Wallet; 2],
    signed: Vec<Verified<AccountOp>>,
    rotations: usize,
}

impl Story {
    fn new() -> Self {
        let mut books = Issuer::new(manifest());
        let deposit = Deposit {
            reference: Digest::ZERO,
            account: account(),
            amount: 1_000_000_000,
            epoch: Epoch(0),
            source: Source::Budget,
        };
        books.deposit(&deposit).expect("fits");
        let wallet = || Wallet::of(domain(), account(), vec![key(0)], Some(Lineage::new(begins(0))));
        let mut story = Self { books, wallets: [wallet(), wallet()], signed: Vec::new(), rotations: 0 };
        story.take(&story.op(OpBody::Inception(begins(0)), &key(0)));
        story
    }

    fn op(&self, body: OpBody, signer: &Signer) -> Verified<AccountOp> {
        let (sequence, previous) = self.books.next_slot(account());
        let op = AccountOp { account: account(), sequence, previous, epoch: Epoch(0), body };
        sign(op, domain(), Role::Owner, signer)
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Hear(which) => self.hear(*which),
            Event::Spend(which) => self.signed.extend(self.wallets[*which].sign(spend(), Epoch(0))),
            Event::Rotate(which) => {
                let known = self.wallets[*which].lineage().map_or(0, Lineage::rotations);
                self.wallets[*which].hold(key(known + 1));
                let op = self.wallets[*which].sign(OpBody::Rotate(begins(known + 1)), Epoch(0));
                self.signed.extend(op);
            }
            Event::Arrive(which) => {
                if let Some(op) = self.signed.get(which % self.signed.len().max(1)).cloned() {
                    self.take(&op);
                }
            }
            Event::Steal { age, rotates } => self.steal(*age, *rotates),
        }
    }

    fn hear(&mut self, which: usize) {
        let wallet = &mut self.wallets[which];
        self.books.lineage(account()).map(|lineage| wallet.learn_lineage(lineage));
        let (next, head) = self.books.next_slot(account());
        let balance = self.books.balance(account());
        wallet.learn(next, head, balance, Epoch(1));
        // The certificate of its own step comes with it.
        wallet.recorded(head, balance);
    }

    fn steal(&self, age: usize, rotates: bool) {
        let Some(number) = self.rotations.checked_sub(age) else { return };
        let own = Inception { key: signer(66).public(), next: promise(signer(67).public()) };
        let body = if rotates { OpBody::Rotate(own) } else { spend() };
        let signer = if rotates { signer(66) } else { key(number) };
        let op = self.op(body, &signer);
        let taken = self.books.clone().apply(&op, Some(&terms()), Epoch(0));
        match (rotates, age) {
            (true, _) => assert_eq!(taken, Err(IssuerError::CannotRotate), "a thief rotates"),
            // Until the owner rotates, a stolen key spends: that is why one rotates.
            (false, 0) => assert_eq!(taken, Ok(())),
            (false, _) => assert_eq!(taken, Err(IssuerError::KeyReplaced), "an old key spends"),
        }
    }

    /// The issuer gets a step; what it takes was signed with the key in force, for the next slot.
    fn take(&mut self, op: &Verified<AccountOp>) {
        let (next, head) = self.books.next_slot(account());
        let in_force = key(self.rotations).public();
        let taken = self.books.apply(op, Some(&terms()), Epoch(0));
        if op.id() == head {
            return assert_eq!(taken, Ok(()));
        }
        if taken.is_err() {
            return assert_eq!(self.books.next_slot(account()), (next, head), "refused, and counted");
        }
        assert_eq!((op.sequence, op.previous), (next, head));
        match op.body {
            OpBody::Rotate(_) => self.rotations += 1,
            _ => assert!(op.is_signed_by(Role::Owner, in_force), "signed with another key: {op:?}"),
        }
        assert_eq!(self.books.lineage(account()).map(Lineage::key), Some(key(self.rotations).public()));
    }
}

fn terms() -> Verified<Terms> {
    let terms = common::terms(5, 1, Incentive::Exchange, 0);
    let terms = Terms { payer_account: account(), ..Terms::clone(&terms) };
    sign(terms, domain(), Role::Node, &signer(5))
}

fn spend() -> OpBody {
    let terms = terms();
    OpBody::OpenChannel(OpenChannel {
        payee: terms.payee,
        terms: terms.id(),
        cap: 1_000,
        expires: terms.valid_to,
        payer: signer(1).public().into(),
        payer_key: signer(2).public(),
    })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_rotation_and_a_spend_never_share_a_slot_and_no_old_key_spends(
        events in prop::collection::vec(event(), 0..24)
    ) {
        let mut story = Story::new();
        for event in &events {
            story.happen(event);
        }

        // Whoever lost the race hears of it, and is at the same place as the issuer.
        for which in 0..2 {
            story.hear(which);
            let wallet = &story.wallets[which];
            prop_assert_eq!(wallet.lineage().map(Lineage::rotations), Some(story.rotations));
            if wallet.is_idle() {
                prop_assert_eq!(wallet.next(), Some(story.books.next_slot(account()).0));
            }
        }
        prop_assert!(story.books.is_conserved());
    }
}
