//! The issuer's books against a reference model, over random histories with repeats and reordering.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::advert::Incentive;
use protocol::forward::{Forward, Gathering};
use protocol::ids::{AccountId, ChannelId, Digest, RecordId};
use protocol::ledger::issuer::{Issuer, IssuerError};
use protocol::ledger::records::{
    AccountOp, Deposit, Epoch, Final, OpBody, OpenChannel, Receipt, Source, SplitRole, Terms, TermsError,
};
use protocol::price::Usage;
use protocol::record::{RECORD_BYTES_MAX, Record};
use protocol::signed::{Role, Verified, sign};

use crate::common::{
    account, digest, domain, manifest, many_cases, payee_signer, payer_signer, signer, terms,
};

/// Something that may happen; accounts are 1 to 4, channels are counted as they open.
#[derive(Debug, Clone)]
enum Event {
    Deposit {
        reference: u8,
        account: u8,
        amount: u64,
    },
    Open {
        payer: u8,
        payee: u8,
        cap: u64,
        markup: u16,
        exchange: bool,
    },
    Redeem {
        channel: usize,
        stated: u64,
        taken: u64,
    },
    Close {
        channel: usize,
        amount: u64,
    },
    ExpireSoon {
        channel: usize,
    },
    Epochs(u32),
    Pay {
        from: u8,
        to: u8,
        amount: u64,
    },
    Withdraw {
        account: u8,
        amount: u64,
    },
    MarkPaid {
        request: usize,
        reference: u8,
    },
    Noop {
        account: u8,
    },
    /// The last step of an account comes once more, or one from before it.
    StepAgain(usize),
    /// Something that happened before happens again.
    Again(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let amount = || prop_oneof![0..200_000_u64, 0..2_000_000_u64];
    prop_oneof![
        3 => (0..12_u8, 1..5_u8, amount())
            .prop_map(|(reference, account, amount)| Event::Deposit { reference, account, amount }),
        4 => (1..5_u8, 1..5_u8, amount(), prop_oneof![Just(0), 1..3_000_u16], any::<bool>()).prop_map(
            |(payer, payee, cap, markup, exchange)| Event::Open { payer, payee, cap, markup, exchange }
        ),
        6 => (0..6_usize, amount(), amount())
            .prop_map(|(channel, stated, taken)| Event::Redeem { channel, stated, taken: taken.min(stated) }),
        2 => (0..6_usize, amount()).prop_map(|(channel, amount)| Event::Close { channel, amount }),
        1 => (0..6_usize).prop_map(|channel| Event::ExpireSoon { channel }),
        1 => (1..4_u32).prop_map(Event::Epochs),
        3 => (1..5_u8, 1..6_u8, amount()).prop_map(|(from, to, amount)| Event::Pay { from, to, amount }),
        2 => (1..5_u8, amount()).prop_map(|(account, amount)| Event::Withdraw { account, amount }),
        1 => (0..4_usize, 0..3_u8).prop_map(|(request, reference)| Event::MarkPaid { request, reference }),
        1 => (1..5_u8).prop_map(|account| Event::Noop { account }),
        2 => (0..40_usize).prop_map(Event::StepAgain),
        4 => (0..40_usize).prop_map(Event::Again),
    ]
}

/// The books as a page of sums: what every account has in each bucket, what every channel holds of either.
#[derive(Debug, Default)]
struct Model {
    cash: BTreeMap<AccountId, u64>,
    earned: BTreeMap<AccountId, u64>,
    withdrawn: u64,
    requests: BTreeMap<RecordId, (AccountId, u64, Option<Digest>)>,
    channels: BTreeMap<ChannelId, Page>,
    references: BTreeMap<Digest, u64>,
}

#[derive(Debug, Clone)]
struct Page {
    payer: AccountId,
    payee: AccountId,
    terms: Terms,
    held_earned: u64,
    held_cash: u64,
    redeemed: u64,
    closed: bool,
}

impl Model {
    fn give(&mut self, account: AccountId, amount: u64) {
        *self.cash.entry(account).or_default() += amount;
    }

    fn has(bucket: &BTreeMap<AccountId, u64>, account: AccountId) -> u64 {
        bucket.get(&account).copied().unwrap_or(0)
    }

    /// Takes out of both buckets, `earned` first; returns what came out of each.
    fn spend(&mut self, account: AccountId, amount: u64) -> (u64, u64) {
        let earned = Self::has(&self.earned, account).min(amount);
        *self.earned.entry(account).or_default() -= earned;
        *self.cash.entry(account).or_default() -= amount - earned;
        (earned, amount - earned)
    }

    /// Takes out of cash alone, if it is there.
    fn take_cash(&mut self, account: AccountId, amount: u64) -> bool {
        let there = Self::has(&self.cash, account) >= amount;
        if there {
            *self.cash.entry(account).or_default() -= amount;
        }
        there
    }

    fn redeem(&mut self, id: ChannelId, amount: u64) {
        let page = self.channels[&id].clone();
        if page.closed || amount <= page.redeemed {
            return;
        }
        let quanta = amount / 10_000 - page.redeemed / 10_000;
        let mut paid = 0;
        for line in page.terms.split.iter().copied().chain(page.terms.markup.map(|markup| markup.line())) {
            let share = quanta * u64::from(line.bps);
            self.reward(line.role, page.terms.incentive, line.account, share);
            paid += share;
        }
        let page = self.channels.get_mut(&id).expect("known");
        page.pay(paid);
        page.redeemed = amount;
    }

    fn close(&mut self, id: ChannelId, amount: u64) {
        if self.channels[&id].closed {
            return;
        }
        self.redeem(id, amount);
        let page = self.channels.get_mut(&id).expect("known");
        let rest = amount % 10_000;
        page.pay(rest);
        let (payer, payee, incentive) = (page.payer, page.payee, page.terms.incentive);
        let back = (std::mem::take(&mut page.held_earned), std::mem::take(&mut page.held_cash));
        page.closed = true;
        self.reward(SplitRole::Provider, incentive, payee, rest);
        *self.earned.entry(payer).or_default() += back.0;
        self.give(payer, back.1);
    }

    /// The provider's line under Exchange is the only step from cash to `earned`.
    fn reward(&mut self, role: SplitRole, incentive: Incentive, account: AccountId, amount: u64) {
        if (role, incentive) == (SplitRole::Provider, Incentive::Exchange) {
            *self.earned.entry(account).or_default() += amount;
        } else {
            self.give(account, amount);
        }
    }
}

impl Page {
    fn pay(&mut self, amount: u64) {
        let earned = self.held_earned.min(amount);
        self.held_earned -= earned;
        self.held_cash -= amount - earned;
    }
}

struct History {
    books: Issuer,
    model: Model,
    epoch: Epoch,
    opened: Vec<(ChannelId, u8, u8, Epoch)>,
    steps: Vec<(Verified<AccountOp>, Option<Verified<Terms>>)>,
    /// Forgets after each epoch what a checkpoint states, as an issuer does.
    prunes: bool,
}

impl History {
    fn new() -> Self {
        Self {
            books: Issuer::new(manifest()),
            model: Model::default(),
            epoch: Epoch(0),
            opened: Vec::new(),
            steps: Vec::new(),
            prunes: false,
        }
    }

    fn balances(&self) -> Vec<(AccountId, u64, u64, u64)> {
        let balances = self.books.balances();
        balances.map(|(id, balance)| (id, balance.cash, balance.earned, balance.held)).collect()
    }

    fn happen(&mut self, event: &Event, past: &[Event]) {
        match event {
            Event::Deposit { reference, account: to, amount } => {
                let (reference, account) = (digest(*reference), account(*to));
                let source = if amount % 2 == 0 { Source::Outside } else { Source::Budget };
                let deposit = Deposit { reference, account, amount: *amount, epoch: self.epoch, source };
                let booked = self.books.deposit(&deposit);
                let before = self.books.deposit_of(reference);
                assert_eq!(booked.is_ok(), before == Some((account, *amount)), "one reference, one deposit");
                if booked.is_ok() && !self.model.references.contains_key(&reference) {
                    self.model.references.insert(reference, *amount);
                    self.model.give(account, *amount);
                }
            }
            Event::Open { payer, payee, cap, markup, exchange } => {
                self.open(*payer, *payee, *cap, *markup, *exchange)
            }
            Event::Redeem { channel, stated, taken } => {
                let Some((id, receipt)) = self.receipt(*channel, *stated) else { return };
                if self.books.redeem(&receipt, *taken).is_ok() {
                    self.model.redeem(id, *taken);
                }
            }
            Event::Close { channel, amount } => {
                let Some((id, closing)) = self.closing(*channel, *amount) else { return };
                if self.books.close(&closing).is_ok() {
                    self.model.close(id, *amount);
                }
            }
            Event::ExpireSoon { channel } => {
                let Some((id, payer, ..)) = self.channel(*channel) else { return };
                let op = self.op(payer, OpBody::Expire(id));
                if self.take(op) {
                    let next = self.epoch.plus(1);
                    let opened = self.opened.iter_mut().find(|(opened, ..)| *opened == id).expect("known");
                    opened.3 = opened.3.min(next);
                }
            }
            Event::Epochs(epochs) => {
                self.epoch = self.epoch.plus(*epochs);
                if self.prunes {
                    self.books.end_epoch(Epoch(self.epoch.0 - 1));
                }
                for (id, _, redeemed) in self.books.expire(self.epoch) {
                    self.model.close(id, redeemed);
                }
            }
            Event::Pay { from, to, amount } => self.pay(*from, *to, *amount),
            Event::Withdraw { account, amount } => self.withdraw(*account, *amount),
            Event::MarkPaid { request, reference } => self.mark_paid(*request, digest(*reference)),
            Event::Noop { account: tag } => {
                let fee = manifest().pay_fee;
                let op = self.op(*tag, OpBody::Noop);
                let taken = self.take(op);
                assert_eq!(taken, self.model.take_cash(account(*tag), fee));
                if taken {
                    self.model.give(manifest().network, fee);
                }
            }
            Event::StepAgain(which) => self.step_again(*which),
            Event::Again(which) => {
                let again =
                    past.get(which % past.len().max(1)).filter(|event| !matches!(event, Event::Again(_)));
                if let Some(event) = again {
                    self.happen(event, &[]);
                }
            }
        }
    }

    /// Submits a step twice; the second time changes nothing.
    fn take(&mut self, op: Verified<AccountOp>) -> bool {
        let taken = self.books.apply(&op, None, self.epoch).is_ok();
        if taken {
            let after = self.books.balance(op.account);
            assert!(self.books.apply(&op, None, self.epoch).is_ok(), "taken twice, counted once");
            assert_eq!(self.books.balance(op.account), after);
            self.steps.push((op, None));
        }
        taken
    }

    /// Whatever step comes once more, the books stay as they are.
    fn step_again(&mut self, which: usize) {
        let Some((op, terms)) = self.steps.get(which % self.steps.len().max(1)).cloned() else { return };
        let before: Vec<_> = self.books.balances().collect();
        let is_head = self.books.next_slot(op.account).1 == op.id();
        assert_eq!(self.books.apply(&op, terms.as_ref(), self.epoch).is_ok(), is_head);
        assert_eq!(self.books.balances().collect::<Vec<_>>(), before);
    }

    fn pay(&mut self, from: u8, to: u8, amount: u64) {
        let fee = manifest().pay_fee;
        let op = self.op(from, OpBody::Pay { to: account(to), amount });
        let taken = self.take(op);
        let may = amount > 0 && from != to && self.model.take_cash(account(from), amount + fee);
        assert_eq!(taken, may, "{from} pays {to} {amount}");
        if taken {
            self.model.give(account(to), amount);
            self.model.give(manifest().network, fee);
        }
    }

    fn withdraw(&mut self, tag: u8, amount: u64) {
        let fee = manifest().withdraw_fee;
        let op = self.op(tag, OpBody::Withdraw { amount, payout: digest(tag) });
        let id = op.id();
        let taken = self.take(op);
        let is_enough = amount >= fee;
        assert_eq!(taken, is_enough && self.model.take_cash(account(tag), amount + fee));
        if taken {
            self.model.withdrawn += amount;
            self.model.requests.insert(id, (account(tag), amount, None));
            self.model.give(manifest().network, fee);
        }
    }

    fn mark_paid(&mut self, request: usize, reference: Digest) {
        let position = request % self.model.requests.len().max(1);
        let Some((id, request)) = self.model.requests.iter_mut().nth(position) else {
            assert!(self.books.mark_paid(RecordId([1; 32]), reference).is_err());
            return;
        };
        let marked = self.books.mark_paid(*id, reference).is_ok();
        assert_eq!(marked, request.2.is_none_or(|paid| paid == reference));
        if marked {
            request.2 = Some(reference);
        }
    }

    fn op(&self, payer: u8, body: OpBody) -> Verified<AccountOp> {
        let (sequence, previous) = self.books.next_slot(account(payer));
        let op = AccountOp { account: account(payer), sequence, previous, epoch: self.epoch, body };
        sign(op, domain(), Role::Owner, &signer(payer))
    }

    fn open(&mut self, payer: u8, payee: u8, cap: u64, markup: u16, exchange: bool) {
        let incentive = if exchange { Incentive::Exchange } else { Incentive::Rewards };
        let terms = terms(payee, payer, incentive, markup);
        let expires = self.epoch.plus(7).min(terms.valid_to);
        let open = OpenChannel {
            payee: terms.payee,
            terms: terms.id(),
            cap,
            expires,
            payer: signer(payer).public().into(),
            payer_key: payer_signer(payer).public(),
        };
        let op = self.op(payer, OpBody::OpenChannel(open));
        if !exchange {
            assert!(self.books.apply(&op, Some(&terms), self.epoch).is_err(), "no new one under Rewards");
        }
        // A journal may hold one from before that was refused.
        if self.books.replay_step(&op, Some(&terms), self.epoch).is_err() {
            return;
        }
        assert!(self.books.apply(&op, Some(&terms), self.epoch).is_ok(), "taken twice, counted once");
        self.steps.push((op.clone(), Some(terms.clone())));
        let held = cap + cap / 10_000 * u64::from(markup);
        self.model.spend(account(payer), manifest().open_fee);
        let (held_earned, held_cash) = self.model.spend(account(payer), held);
        self.model.give(manifest().network, manifest().open_fee);
        let page = Page {
            payer: account(payer),
            payee: account(payee),
            terms: Terms::clone(&terms),
            held_earned,
            held_cash,
            redeemed: 0,
            closed: false,
        };
        self.model.channels.insert(op.id().into(), page);
        self.opened.push((op.id().into(), payer, payee, expires));
    }

    fn channel(&self, which: usize) -> Option<(ChannelId, u8, u8, Epoch)> {
        self.opened.get(which % self.opened.len().max(1)).copied()
    }

    fn receipt(&self, which: usize, amount: u64) -> Option<(ChannelId, Verified<Receipt>)> {
        let (channel, payer, payee, _) = self.channel(which)?;
        let (usage, jobs) = (Usage::default(), Digest::ZERO);
        let receipt = Receipt { channel, sequence: 1, amount, usage, jobs, epoch: self.epoch };
        let receipt = sign(receipt, domain(), Role::Payer, &payer_signer(payer));
        Some((channel, receipt.signed_also_by(domain(), Role::Payee, &payee_signer(payee))))
    }

    fn closing(&self, which: usize, amount: u64) -> Option<(ChannelId, Verified<Final>)> {
        let (channel, payer, payee, _) = self.channel(which)?;
        let closing = Final { channel, amount, receipt: None };
        let closing = sign(closing, domain(), Role::Payer, &payer_signer(payer));
        Some((channel, closing.signed_also_by(domain(), Role::Payee, &payee_signer(payee))))
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.books.is_conserved());
        let deposited: u64 = self.model.references.values().sum();
        prop_assert_eq!(self.books.deposited(), u128::from(deposited));
        prop_assert_eq!(self.books.withdrawn(), u128::from(self.model.withdrawn));
        let accounts = self.model.cash.keys().chain(self.model.earned.keys());
        for account in accounts {
            let balance = self.books.balance(*account);
            prop_assert_eq!(balance.cash, Model::has(&self.model.cash, *account), "cash of {:?}", account);
            prop_assert_eq!(
                balance.earned,
                Model::has(&self.model.earned, *account),
                "earned of {:?}",
                account
            );
        }
        for (id, request) in self.books.withdrawals() {
            prop_assert_eq!(self.model.requests[&id], (request.account, request.amount, request.paid));
        }
        prop_assert_eq!(self.books.withdrawals().count(), self.model.requests.len());
        for (id, page) in &self.model.channels {
            // A channel that was closed is forgotten some epochs after its expiry and grace.
            let booked = self.books.channel(*id);
            let is_forgotten = booked.is_none() && page.closed;
            prop_assert!(is_forgotten || booked == Some((page.redeemed, page.closed)), "{booked:?}");
        }
        for (account, balance) in self.books.balances() {
            let held = self
                .model
                .channels
                .values()
                .filter(|page| page.payer == account)
                .map(|page| page.held_cash + page.held_earned);
            prop_assert_eq!(balance.held, held.sum::<u64>());
        }
        Ok(())
    }
}

/// Returns the books as they are after the lines that led to them are gone.
fn brought_forward(books: &Issuer) -> Issuer {
    let mut gathering = Gathering::default();
    let mut entries = None;
    for line in Forward::lines(books.entries()) {
        let bytes = Record::Forward(line).to_bytes();
        let Ok(Record::Forward(line)) = Record::from_bytes(&bytes) else { panic!("one line") };
        entries = gathering.take(line).expect("in order");
    }
    let mut again = books.emptied();
    for entry in entries.expect("all parts") {
        again.restore(&entry).expect("its own");
    }
    again
}

#[test]
fn parts_of_books_brought_forward_count_together_or_not_at_all() {
    let mut history = History::new();
    for tag in 0..200 {
        let deposit = Deposit {
            reference: Digest::of(&[tag]),
            account: AccountId([tag; 32]),
            amount: 5,
            epoch: Epoch(0),
            source: Source::Outside,
        };
        history.books.deposit(&deposit).expect("room");
    }
    let entries = history.books.entries();
    let lines = Forward::lines(entries.iter().cycle().take(entries.len() * 3).cloned().collect());
    assert!(lines.len() > 2, "{}", lines.len());
    assert!(lines.iter().all(|line| Record::Forward(line.clone()).to_bytes().len() <= RECORD_BYTES_MAX));

    let mut gathering = Gathering::default();
    assert!(gathering.take(lines[1].clone()).is_err(), "it does not begin so");
    assert_eq!(gathering.take(lines[0].clone()), Ok(None));
    assert!(gathering.take(lines[2].clone()).is_err(), "one between is missing");
    // Whoever begins anew has lost nothing.
    let mut whole = None;
    for line in &lines {
        assert_eq!(whole, None, "not before the last one");
        whole = gathering.take(line.clone()).expect("in order");
    }
    assert_eq!(whole.map(|whole| whole.len()), Some(entries.len() * 3));
}

#[test]
fn what_was_earned_is_neither_paid_nor_withdrawn() {
    let mut history = History::new();
    history.happen(&Event::Deposit { reference: 1, account: 1, amount: 10_000_000 }, &[]);
    history.happen(&Event::Open { payer: 1, payee: 2, cap: 9_000_000, markup: 0, exchange: true }, &[]);
    history.happen(&Event::Redeem { channel: 0, stated: 9_000_000, taken: 9_000_000 }, &[]);
    let balance = history.books.balance(account(2));
    assert_eq!((balance.cash, balance.earned), (0, 8_280_000));

    let op = history.op(2, OpBody::Pay { to: account(3), amount: 1 });
    let refused = IssuerError::NotEnoughCash { needed: 10_001, available: 0 };
    assert_eq!(history.books.apply(&op, None, Epoch(0)), Err(refused));
    let op = history.op(2, OpBody::Withdraw { amount: 1_000_000, payout: Digest::ZERO });
    assert!(matches!(
        history.books.apply(&op, None, Epoch(0)),
        Err(IssuerError::NotEnoughCash { available: 0, .. })
    ));
}

#[test]
fn no_channel_turns_what_was_earned_into_cash() {
    let mut history = History::new();
    history.happen(&Event::Deposit { reference: 1, account: 1, amount: 10_000_000 }, &[]);
    history.happen(&Event::Open { payer: 1, payee: 2, cap: 9_000_000, markup: 0, exchange: true }, &[]);
    history.happen(&Event::Redeem { channel: 0, stated: 9_000_000, taken: 9_000_000 }, &[]);
    assert_eq!(history.books.balance(account(2)).earned, 8_280_000);

    // A second node of the same owner, which signs its terms itself.
    let terms = terms(3, 2, Incentive::Rewards, 0);
    let open = OpenChannel {
        payee: terms.payee,
        terms: terms.id(),
        cap: 8_000_000,
        expires: terms.valid_to,
        payer: signer(2).public().into(),
        payer_key: payer_signer(2).public(),
    };
    let op = history.op(2, OpBody::OpenChannel(open));
    let refused = Err(IssuerError::BadTerms(TermsError::Incentive));
    assert_eq!(history.books.clone().lock(&op, Some(&terms), Epoch(0)), refused);
    assert_eq!(history.books.apply(&op, Some(&terms), Epoch(0)), refused);
    assert_eq!(history.books.balance(account(2)).earned, 8_280_000);

    // What an issuer took or voted for before it refused them is in its journal, and holds.
    assert_eq!(history.books.clone().replay_lock(&op, Some(&terms), Epoch(0)), Ok(()));
    assert_eq!(history.books.replay_step(&op, Some(&terms), Epoch(0)), Ok(()));
}

#[test]
fn credits_from_outside_leave_the_budget_as_it_is() {
    let mut books = Issuer::new(manifest());
    let budget = books.budget_left();
    let deposit = |tag, source| Deposit {
        reference: digest(tag),
        account: account(1),
        amount: 5,
        epoch: Epoch(0),
        source,
    };

    books.deposit(&deposit(1, Source::Outside)).expect("room");
    assert_eq!(books.budget_left(), budget);
    books.deposit(&deposit(2, Source::Budget)).expect("room");
    assert_eq!(books.budget_left(), budget - 5);
}

proptest! {
    #![proptest_config(many_cases())]

    #[test]
    fn the_books_hold_what_was_deposited_after_every_step(events in prop::collection::vec(event(), 1..40)) {
        let mut history = History::new();
        for (position, event) in events.iter().enumerate() {
            history.happen(event, &events[..position]);
            history.check()?;
        }
    }

    #[test]
    fn forgetting_ended_channels_changes_nothing_that_comes_later(
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut whole = History::new();
        let mut pruned = History { prunes: true, ..History::new() };
        for (position, event) in events.iter().enumerate() {
            whole.happen(event, &events[..position]);
            pruned.happen(event, &events[..position]);
            prop_assert_eq!(pruned.balances(), whole.balances());
            pruned.check()?;
        }
        // Grace is over: what is left are the open channels, and every old fact once more changes nothing.
        whole.happen(&Event::Epochs(1), &[]);
        pruned.happen(&Event::Epochs(1), &[]);
        whole.happen(&Event::Epochs(manifest().grace_epochs + 1), &[]);
        pruned.happen(&Event::Epochs(manifest().grace_epochs + 1), &[]);
        let open = pruned.model.channels.values().filter(|page| !page.closed).count();
        let ended_last = pruned.opened.iter().filter(|(id, ..)| pruned.books.channel(*id).is_some_and(|(_, closed)| closed));
        prop_assert_eq!(pruned.books.channel_count(), open + ended_last.count());
        for event in events.iter().filter(|event| matches!(event, Event::Redeem { .. } | Event::Close { .. })) {
            pruned.happen(event, &[]);
            whole.happen(event, &[]);
            prop_assert_eq!(pruned.balances(), whole.balances());
        }
        pruned.check()?;
    }

    #[test]
    fn books_brought_forward_take_and_refuse_what_the_books_did(
        events in prop::collection::vec(event(), 1..40), every in 1..8_usize,
    ) {
        let mut history = History { prunes: true, ..History::new() };
        for (position, event) in events.iter().enumerate() {
            history.happen(event, &events[..position]);
            if position.is_multiple_of(every) {
                let whole = format!("{:?}", history.books);
                history.books = brought_forward(&history.books);
                prop_assert_eq!(format!("{:?}", history.books), whole);
            }
            history.check()?;
        }
        // Every old step and fact once more: what was counted is not counted again, and what was refused is not taken.
        history.books = brought_forward(&history.books);
        for step in 0..history.steps.len() {
            history.happen(&Event::StepAgain(step), &[]);
        }
        let facts = |event: &&Event| {
            matches!(event, Event::Deposit { .. } | Event::Redeem { .. } | Event::Close { .. } | Event::MarkPaid { .. })
        };
        for event in events.iter().filter(facts) {
            history.happen(event, &[]);
            history.check()?;
        }
    }

    #[test]
    fn what_is_redeemed_does_not_depend_on_the_order(
        mut amounts in prop::collection::vec(0..400_000_u64, 1..8),
        rotation in 0..8_usize,
    ) {
        let run = |amounts: &[u64]| {
            let mut history = History::new();
            history.happen(&Event::Deposit { reference: 1, account: 1, amount: 1_000_000 }, &[]);
            history.happen(&Event::Open { payer: 1, payee: 2, cap: 300_000, markup: 250, exchange: true }, &[]);
            for amount in amounts {
                history.happen(&Event::Redeem { channel: 0, stated: *amount, taken: *amount }, &[]);
            }
            let balances: Vec<_> =
                history.books.balances().map(|(id, balance)| (id, balance.cash, balance.earned, balance.held)).collect();
            (history.books.channel(history.opened[0].0), balances)
        };
        let before = run(&amounts);
        let length = amounts.len();
        amounts.rotate_left(rotation % length);
        prop_assert_eq!(run(&amounts), before.clone());
        amounts.reverse();
        amounts.extend_from_within(..);
        prop_assert_eq!(run(&amounts), before);
    }

    #[test]
    fn nobody_else_can_open_redeem_or_close(signs in 3..9_u8, amount in 1..100_000_u64) {
        let mut history = History::new();
        history.happen(&Event::Deposit { reference: 1, account: 1, amount: 1_000_000 }, &[]);
        history.happen(&Event::Open { payer: 1, payee: 2, cap: 300_000, markup: 0, exchange: true }, &[]);
        let (channel, ..) = history.opened[0];
        let receipt =
            Receipt { channel, sequence: 1, amount, usage: Usage::default(), jobs: Digest::ZERO, epoch: Epoch(0) };
        let payer = sign(receipt.clone(), domain(), Role::Payer, &payer_signer(1));
        let stranger = signer(signs);

        prop_assert!(history.books.redeem(&payer, amount).is_err());
        let forged = payer.signed_also_by(domain(), Role::Payee, &stranger);
        prop_assert!(history.books.redeem(&forged, amount).is_err());
        let swapped = sign(receipt, domain(), Role::Payer, &payee_signer(2));
        let swapped = swapped.signed_also_by(domain(), Role::Payee, &payer_signer(1));
        prop_assert!(history.books.redeem(&swapped, amount).is_err());
        let op = AccountOp {
            account: account(1),
            sequence: 1,
            previous: RecordId::from(channel),
            epoch: Epoch(0),
            body: OpBody::Expire(channel),
        };
        prop_assert!(history.books.apply(&sign(op, domain(), Role::Owner, &stranger), None, Epoch(0)).is_err());
        history.check()?;
    }
}
