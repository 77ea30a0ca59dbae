//! The end of a channel: redeeming and closing against each other and against expiry, in every order, each repeated.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

use protocol::advert::Incentive;
use protocol::ids::{ChannelId, JobId};
use protocol::job::{Finish, JobRecord};
use protocol::ledger::issuer::{Balance, Issuer};
use protocol::ledger::paid::Paid;
use protocol::ledger::records::{
    AccountOp, Deposit, Epoch, Final, OpBody, OpenChannel, Receipt, Source, SplitRole,
};
use protocol::ledger::wallet::Wallet;
use protocol::price::Usage;
use protocol::signed::{Role, Verified, sign};
use protocol::time::Time;
use stateright::{Model, Property};

use crate::common::{
    MODEL, PRICE, account, digest, domain, manifest, payee_signer, payer_signer, signer, terms, usage,
};
use crate::seen::{hash_shown, search};

const PAYER: u8 = 1;
const PAYEE: u8 = 2;
const DEPOSIT: u64 = 1_000_000;
const CAP: u64 = 300_000;

/// What the payee delivered, by its own count and the payer's.
const WORK: Usage = usage(1, 0, 19);
/// What the two receipts state: the older, and the newer with something prepaid.
const STATED: [u64; 2] = [25_000, 45_000];
/// What the payee asks to be paid, by which receipt: a part, all that it earned, and all that was prepaid.
const REDEMPTIONS: [(usize, u64); 3] = [(0, 25_000), (1, EARNED), (1, 45_000)];
const EARNED: u64 = 38_004;
/// The ends that the payer proposes: too little, what is right, too much.
const PROPOSALS: [u64; 3] = [30_000, EARNED, 45_000];
/// The channel's last epoch is 2 and grace lasts 3; an early expiry makes that 1.
const EPOCHS: [u32; 5] = [0, 1, 4, 5, 6];
const EXPIRES: Epoch = Epoch(2);

/// Something on its way to the issuer: it may arrive late, often or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Sent {
    Redeem(usize),
    Final(u64),
    Expire,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The payee asks for a payment.
    Redeem(usize),
    /// The payer proposes an end and the payee judges it.
    Propose(u64),
    /// The payer gives the payee up.
    GiveUp,
    Arrive(Sent),
    /// The issuer's word of what it paid out reaches the payee.
    Acknowledge(u64),
    NextEpoch,
    /// The payee starts again from its journal, in which the acknowledgements are not.
    RestartPayee,
}

/// What the issuer did, as its journal has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Expire(Epoch),
    PaidOut(usize),
    Closed(u64),
    Expired(Epoch),
}

/// How a channel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    ByBoth(u64),
    ByExpiry(u64),
}

#[derive(Debug, Clone)]
struct State {
    books: Issuer,
    journal: Vec<Line>,
    payee: Paid,
    epoch: usize,
    sent: BTreeSet<Sent>,
    /// Amounts that the issuer has acknowledged.
    acknowledged: BTreeSet<u64>,
    end: Option<End>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hash_shown(self, hasher);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

struct Ending {
    opening: Verified<AccountOp>,
    books: Issuer,
    receipts: [Verified<Receipt>; 2],
}

impl Ending {
    fn new() -> Self {
        let mut books = Issuer::new(manifest());
        let (reference, epoch, source) = (digest(1), Epoch(0), Source::Outside);
        let deposit = Deposit { reference, account: account(PAYER), amount: DEPOSIT, epoch, source };
        books.deposit(&deposit).expect("fits");
        let terms = terms(PAYEE, PAYER, Incentive::Exchange, 0);
        let mut wallet = Wallet::new(domain(), signer(PAYER));
        let (next, head) = books.next_slot(account(PAYER));
        wallet.learn(next, head, books.balance(account(PAYER)));
        let open = OpenChannel {
            payee: terms.payee,
            terms: terms.id(),
            cap: CAP,
            expires: EXPIRES,
            payer: signer(PAYER).public().into(),
            payer_key: payer_signer(PAYER).public(),
        };
        let opening = wallet.sign(OpBody::OpenChannel(open), epoch).expect("idle");
        books.apply(&opening, Some(&terms), epoch).expect("within the rules");
        let receipts = [1, 2].map(|sequence| receipt(opening.id().into(), sequence));
        Self { opening, books, receipts }
    }

    fn channel(&self) -> ChannelId {
        self.opening.id().into()
    }

    /// Returns the payee as its journal has it: both receipts and the job.
    fn payee(&self) -> Paid {
        let payer = (signer(PAYER).public().into(), account(PAYER), payer_signer(PAYER).public());
        let terms = terms(PAYEE, PAYER, Incentive::Exchange, 0);
        let mut payee = Paid::new(terms, payer, CAP, (payee_signer(PAYEE), domain()));
        self.receipts.iter().for_each(|receipt| payee.replay(receipt));
        payee.replay_job(&job(self.channel()));
        payee.restarted();
        payee
    }

    fn proposal(&self, amount: u64) -> Verified<Final> {
        let closing =
            Final { channel: self.channel(), amount, receipt: self.receipts.last().map(Verified::id) };
        sign(closing, domain(), Role::Payer, &payer_signer(PAYER))
    }

    fn closing(&self, amount: u64) -> Verified<Final> {
        self.proposal(amount).signed_also_by(domain(), Role::Payee, &payee_signer(PAYEE))
    }

    fn expiry(&self) -> Verified<AccountOp> {
        let mut wallet = Wallet::new(domain(), signer(PAYER));
        wallet.learn(1, self.opening.id(), Balance::default());
        wallet.sign(OpBody::Expire(self.channel()), Epoch(0)).expect("idle")
    }

    /// What the issuer does with what arrives; the journal has whatever changed the books.
    fn arrive(&self, state: &mut State, sent: Sent) {
        let epoch = Epoch(EPOCHS[state.epoch]);
        let view = |state: &State| (self.paid_out(state), state.books.next_slot(account(PAYER)));
        let before = view(state);
        match sent {
            Sent::Redeem(which) => {
                let (receipt, amount) = REDEMPTIONS[which];
                if state.books.redeem(&self.receipts[receipt], amount).is_ok() {
                    state.acknowledged.extend(state.books.channel(self.channel()).map(|(amount, _)| amount));
                }
            }
            Sent::Final(amount) => {
                let was_open = !self.paid_out(state).1;
                if state.books.close(&self.closing(amount)).is_ok() && was_open {
                    state.end.get_or_insert(End::ByBoth(amount));
                }
            }
            Sent::Expire => _ = state.books.apply(&self.expiry(), None, epoch),
        }
        if view(state) != before {
            state.journal.push(match sent {
                Sent::Redeem(which) => Line::PaidOut(which),
                Sent::Final(amount) => Line::Closed(amount),
                Sent::Expire => Line::Expire(epoch),
            });
        }
    }

    fn rebuilt(&self, journal: &[Line]) -> Issuer {
        let mut books = self.books.clone();
        for line in journal {
            match *line {
                Line::Expire(epoch) => _ = books.apply(&self.expiry(), None, epoch),
                Line::PaidOut(which) => {
                    let (receipt, amount) = REDEMPTIONS[which];
                    books.redeem(&self.receipts[receipt], amount).expect("taken before");
                }
                Line::Closed(amount) => _ = books.close(&self.closing(amount)).expect("taken before"),
                Line::Expired(epoch) => _ = books.expire(epoch),
            }
        }
        books
    }

    fn paid_out(&self, state: &State) -> (u64, bool) {
        state.books.channel(self.channel()).expect("kept for some epochs after its end")
    }
}

fn receipt(channel: ChannelId, sequence: u64) -> Verified<Receipt> {
    let amount = STATED[usize::try_from(sequence - 1).expect("small")];
    let receipt = Receipt { channel, sequence, amount, usage: WORK, jobs: digest(0), epoch: Epoch(0) };
    sign(receipt, domain(), Role::Payer, &payer_signer(PAYER)).signed_also_by(
        domain(),
        Role::Payee,
        &payee_signer(PAYEE),
    )
}

fn job(channel: ChannelId) -> JobRecord {
    JobRecord {
        job: JobId([1; 16]),
        channel: Some(channel),
        provider: signer(PAYEE).public().into(),
        requester: signer(PAYER).public().into(),
        model: MODEL,
        usage: WORK,
        price: PRICE,
        start: Time(0),
        end: Time(1),
        input: digest(1),
        output: digest(2),
        finish: Finish::Stop,
    }
}

impl Model for Ending {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            books: self.books.clone(),
            journal: Vec::new(),
            payee: self.payee(),
            epoch: 0,
            sent: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            end: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend((0..REDEMPTIONS.len()).map(Action::Redeem));
        actions.extend(PROPOSALS.map(Action::Propose));
        actions.extend(state.sent.iter().copied().map(Action::Arrive));
        actions.extend(state.acknowledged.iter().copied().map(Action::Acknowledge));
        actions.extend([Action::GiveUp, Action::RestartPayee]);
        if state.epoch + 1 < EPOCHS.len() {
            actions.push(Action::NextEpoch);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Redeem(which) => _ = state.sent.insert(Sent::Redeem(which)),
            Action::GiveUp => _ = state.sent.insert(Sent::Expire),
            Action::Propose(amount) => {
                let both = state.payee.close(&self.proposal(amount)).ok()?;
                state.sent.insert(Sent::Final(both.amount));
            }
            Action::Arrive(sent) => self.arrive(&mut state, sent),
            Action::Acknowledge(amount) => state.payee.redeemed(amount),
            Action::NextEpoch => {
                state.epoch += 1;
                let epoch = Epoch(EPOCHS[state.epoch]);
                for (_, _, amount) in state.books.expire(epoch) {
                    state.end.get_or_insert(End::ByExpiry(amount));
                    state.journal.push(Line::Expired(epoch));
                }
            }
            Action::RestartPayee => {
                let closing = state.payee.closing().cloned();
                state.payee = self.payee();
                closing.into_iter().for_each(|closing| state.payee.replay_close(closing));
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("credits are conserved", |_, state| state.books.is_conserved()),
            Property::<Self>::always("no payout is above the cap or what both signed", |model, state| {
                model.paid_out(state).0 <= CAP.min(STATED[1])
            }),
            Property::<Self>::always("nothing that was acknowledged is lost", |model, state| {
                state.acknowledged.iter().all(|amount| *amount <= model.paid_out(state).0)
            }),
            Property::<Self>::always("an end is the end, and what both signed", |model, state| {
                match state.end {
                    None => !model.paid_out(state).1,
                    Some(End::ByBoth(amount) | End::ByExpiry(amount)) => {
                        model.paid_out(state) == (amount, true)
                    }
                }
            }),
            Property::<Self>::always("no channel ends by expiry before its grace is over", |_, state| {
                let early = state.journal.iter().any(|line| matches!(line, Line::Expire(Epoch(0))));
                let last = if early { 1 } else { EXPIRES.0 };
                let over = EPOCHS[state.epoch] > last + manifest().grace_epochs;
                over || !matches!(state.end, Some(End::ByExpiry(_)))
            }),
            Property::<Self>::always(
                "an end that the payee signed pays for what it earned",
                |_, state| !matches!(state.end, Some(End::ByBoth(amount)) if amount < EARNED),
            ),
            Property::<Self>::always("every share is what the division says", divided),
            Property::<Self>::always("a journal gives back the books", |model, state| {
                let books = model.rebuilt(&state.journal);
                books.balances().eq(state.books.balances())
                    && books.channel(model.channel()) == state.books.channel(model.channel())
            }),
            Property::<Self>::always("what is held comes back at last", |model, state| {
                let mut books = state.books.clone();
                books.expire(Epoch(7));
                let closed = books.channel(model.channel()).is_some_and(|(_, closed)| closed);
                closed && books.balance(account(PAYER)).held == 0 && books.is_conserved()
            }),
            Property::<Self>::sometimes("a channel ends by both", |_, state| {
                matches!(state.end, Some(End::ByBoth(EARNED)))
            }),
            Property::<Self>::sometimes("a channel expires after a payout", |_, state| {
                matches!(state.end, Some(End::ByExpiry(EARNED)))
            }),
            Property::<Self>::sometimes("a channel expires unpaid", |_, state| {
                matches!(state.end, Some(End::ByExpiry(0)))
            }),
            Property::<Self>::sometimes("a payee redeems all that was prepaid", |model, state| {
                model.paid_out(state).0 == STATED[1]
            }),
        ]
    }
}

/// Says whether everybody holds what follows from the amount paid out, reckoned apart from the books.
fn divided(model: &Ending, state: &State) -> bool {
    let (amount, closed) = model.paid_out(state);
    let (quanta, rest) = (amount / 10_000, if closed { amount % 10_000 } else { 0 });
    let terms = terms(PAYEE, PAYER, Incentive::Exchange, 0);
    let fee = manifest().open_fee;
    terms.split.iter().all(|line| {
        let share = quanta * u64::from(line.bps);
        let other = match line.role {
            SplitRole::Provider => rest,
            SplitRole::Network => fee,
            SplitRole::Pool | SplitRole::Builder => 0,
        };
        state.books.balance(line.account).available() == share + other
    }) && state.books.balance(account(PAYER)).available() == DEPOSIT - fee - if closed { amount } else { CAP }
}

#[test]
fn a_channel_ends_right_in_every_order_of_events() {
    assert_eq!(PRICE.cost(&WORK), Some(EARNED));

    search("ending", Ending::new());
}
