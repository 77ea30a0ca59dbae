//! Payment beside a stream: receipts are lost, repeated and overtaken, and either side crashes and forgets the newest.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use protocol::advert::Incentive;
use protocol::ids::{ChannelId, Digest, JobId, RecordId};
use protocol::job::{Finish, JobRecord};
use protocol::ledger::paid::{Grant, Paid};
use protocol::ledger::paying::{Allowances, Paying, WINDOW_MAX, WINDOW_MIN};
use protocol::ledger::records::{Epoch, Receipt};
use protocol::price::Usage;
use protocol::signed::Verified;
use protocol::time::Time;
use stateright::{Model, Property};

use crate::common::{
    MODEL, PRICE, account, digest, domain, payee_signer, payer_signer, signer, terms, usage,
};
use crate::seen::{hash_shown, search};

const CHANNEL: ChannelId = ChannelId([9; 32]);
const PAYER: u8 = 1;
const PAYEE: u8 = 2;
const CAP: u64 = 100_000_000;
/// Tokens of each job's prompt.
const PROMPT: u32 = 10;
const EPOCH: Epoch = Epoch(0);

/// How much happens: enough to reach every rule, and few enough states to search them all.
#[derive(Debug, Clone, Copy)]
struct Streaming {
    jobs: u8,
    /// Tokens of each job.
    tokens: u32,
    /// How many are generated, or arrive, at once.
    step: u32,
    /// Whether tokens may come before the payee's word of the prompt's length.
    late: bool,
    /// Whether the payer, and the payee, may crash: once each.
    crashes: (bool, bool),
}

/// A job that runs at one side at least.
#[derive(Debug, Clone, Copy)]
struct Flight {
    number: u8,
    at_payer: bool,
    at_payee: bool,
    /// Whether the payer knows how long the payee found the prompt; tokens may be faster than that message.
    accepted: bool,
    granted: u32,
    generated: u32,
    arrived: u32,
    /// What the payee said at the end.
    finished: Option<Digest>,
}

/// A line of the payee's journal.
#[derive(Debug, Clone)]
enum Line {
    Receipt(Verified<Receipt>),
    Job(JobRecord),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Begin,
    Accept,
    Generate,
    Arrive,
    FinishAtPayee,
    FinishAtPayer,
    /// The stream breaks: each side ends the job by its own count.
    Break,
    /// A receipt reaches the payee; it stays on its way, so that it can come again and late.
    Pay(usize),
    /// A co-signed receipt reaches the payer, and stays on its way.
    CoSigned(usize),
    /// The two meet again and show each other what they hold.
    Meet,
    /// A side stops and starts again without so many of the last lines of its journal.
    CrashPayer(usize),
    CrashPayee(usize),
}

#[derive(Debug, Clone)]
struct State {
    setting: Streaming,
    payer: Paying,
    payer_journal: Vec<Verified<Receipt>>,
    payee: Paid,
    payee_journal: Vec<Line>,
    begun: u8,
    flight: Option<Flight>,
    pays: BTreeMap<(u64, RecordId, Allowances), Verified<Receipt>>,
    co_signed: BTreeMap<(u64, RecordId), Verified<Receipt>>,
    payer_crashed: bool,
    payee_crashed: bool,
    /// Whether the payer is back from its crash and has not met the payee yet.
    is_back: bool,
    /// What really happened, counted apart: generated, arrived, and the most that was ever signed for.
    generated: Usage,
    arrived: Usage,
    signed: u64,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hash_shown(&(&self.payer, &self.payee, self.flight, self.begun), hasher);
        hash_shown(
            &(
                self.payer_crashed,
                self.payee_crashed,
                self.is_back,
                self.generated,
                self.arrived,
                self.signed,
            ),
            hasher,
        );
        self.payer_journal.iter().for_each(|receipt| receipt.id().hash(hasher));
        for line in &self.payee_journal {
            match line {
                Line::Receipt(receipt) => receipt.id().hash(hasher),
                Line::Job(record) => hash_shown(record, hasher),
            }
        }
        self.pays.keys().for_each(|key| key.hash(hasher));
        self.co_signed.keys().for_each(|key| key.hash(hasher));
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

fn new_payer() -> Paying {
    Paying::new(CHANNEL, terms(PAYEE, PAYER, Incentive::Exchange, 0), CAP, payer_signer(PAYER))
}

fn new_payee() -> Paid {
    let payer = (signer(PAYER).public().into(), account(PAYER), payer_signer(PAYER).public());
    Paid::new(terms(PAYEE, PAYER, Incentive::Exchange, 0), payer, CAP, (payee_signer(PAYEE), domain()))
}

fn job(number: u8) -> JobId {
    JobId([number; 16])
}

fn record(flight: &Flight, finish: Finish) -> JobRecord {
    JobRecord {
        job: job(flight.number),
        channel: Some(CHANNEL),
        provider: signer(PAYEE).public().into(),
        requester: signer(PAYER).public().into(),
        model: MODEL,
        usage: Usage::of_job(u64::from(PROMPT), u64::from(flight.generated)),
        price: PRICE,
        start: Time(0),
        end: Time(1),
        input: digest(1),
        output: digest(2),
        finish,
    }
}

fn cost(usage: &Usage) -> u64 {
    PRICE.cost(usage).expect("small numbers")
}

impl State {
    fn new(setting: Streaming) -> Self {
        Self {
            setting,
            payer: new_payer(),
            payer_journal: Vec::new(),
            payee: new_payee(),
            payee_journal: Vec::new(),
            begun: 0,
            flight: None,
            pays: BTreeMap::new(),
            co_signed: BTreeMap::new(),
            payer_crashed: false,
            payee_crashed: false,
            is_back: false,
            generated: Usage::default(),
            arrived: Usage::default(),
            signed: 0,
        }
    }

    fn begin(&mut self) -> Option<()> {
        let number = self.begun + 1;
        let worst = usage(1, u64::from(PROMPT), u64::from(self.setting.tokens));
        let welcome = self.payee.fits(&worst) && !self.payee.is_disputed();
        if self.flight.is_some()
            || number > self.setting.jobs
            || !welcome
            || !self.payer.reserve(job(number), worst)
        {
            return None;
        }
        self.begun = number;
        let granted = self.payee.begin(job(number), worst);
        self.payee.prepared(job(number), PROMPT);
        self.flight = Some(Flight {
            number,
            at_payer: true,
            at_payee: true,
            accepted: false,
            granted,
            generated: 0,
            arrived: 0,
            finished: None,
        });
        if !self.setting.late {
            self.accept();
        }
        Some(())
    }

    fn accept(&mut self) -> Option<()> {
        let flight = self.flight.as_mut().filter(|flight| flight.at_payer && !flight.accepted)?;
        flight.accepted = true;
        self.payer.accepted(job(flight.number), PROMPT);
        self.pay();
        Some(())
    }

    fn generate(&mut self) -> Option<()> {
        let Streaming { step, tokens, .. } = self.setting;
        let flight = self.flight.as_mut().filter(|flight| flight.at_payee)?;
        let generated = flight.generated + step;
        if generated > flight.granted.min(tokens) {
            return None;
        }
        self.generated = self.generated.plus(&of_step(flight.generated, step));
        flight.generated = generated;
        Some(())
    }

    fn arrive(&mut self) -> Option<()> {
        let Streaming { step, .. } = self.setting;
        let flight = self.flight.as_mut().filter(|flight| flight.at_payer)?;
        if flight.arrived == flight.generated {
            return None;
        }
        self.arrived = self.arrived.plus(&of_step(flight.arrived, step));
        flight.arrived += step;
        self.payer.delivered(job(flight.number), flight.arrived);
        self.pay();
        Some(())
    }

    /// The payer signs what is due and sends it.
    fn pay(&mut self) {
        let before = self.payer.head().map(Verified::id);
        let Some((receipt, allowances)) = self.payer.pay(domain(), EPOCH) else { return };
        if before != Some(receipt.id()) {
            self.payer_journal.push(receipt.clone());
        }
        self.signed = self.signed.max(receipt.amount);
        self.send(receipt, allowances);
    }

    fn send(&mut self, receipt: Verified<Receipt>, allowances: Allowances) {
        self.pays.insert((receipt.amount, receipt.id(), allowances), receipt);
    }

    fn answer(&mut self, receipt: Verified<Receipt>) {
        self.co_signed.insert((receipt.amount, receipt.id()), receipt);
    }

    fn receive(&mut self, receipt: &Verified<Receipt>, allowances: &Allowances) {
        match self.payee.receive(receipt) {
            Err(error) => panic!("an honest payer's receipt is refused: {error}"),
            Ok(Some(both)) => {
                self.payee_journal.push(Line::Receipt(both.clone()));
                self.answer(both);
            }
            Ok(None) => self.payee.head(CHANNEL).into_iter().for_each(|head| self.answer(head)),
        }
        for (paid, up_to) in allowances {
            let Grant::Raised(up_to) = self.payee.grant(*paid, *up_to) else { continue };
            let flight = self.flight.as_mut().filter(|flight| job(flight.number) == *paid);
            flight.expect("the payee grants what runs").granted = up_to;
        }
    }

    fn adopt(&mut self, receipt: &Verified<Receipt>) {
        if self.payer.adopt(receipt) {
            self.payer_journal.push(receipt.clone());
            self.pay();
        }
    }

    fn finish_at_payee(&mut self) -> Option<()> {
        let tokens = self.setting.tokens;
        let flight = self.flight.as_mut().filter(|flight| flight.at_payee && flight.generated == tokens)?;
        let record = record(flight, Finish::Length);
        flight.finished = self.payee.end(&record);
        flight.at_payee = false;
        self.payee_journal.push(Line::Job(record));
        self.forget_flight();
        Some(())
    }

    fn finish_at_payer(&mut self) -> Option<()> {
        let tokens = self.setting.tokens;
        let flight = self.flight.as_mut().filter(|flight| flight.at_payer && flight.arrived == tokens)?;
        let jobs = flight.finished?;
        let used = Usage::of_job(u64::from(PROMPT), u64::from(tokens));
        self.payer.end(job(flight.number), used, Some(jobs));
        flight.at_payer = false;
        self.pay();
        self.forget_flight();
        Some(())
    }

    fn break_stream(&mut self) -> Option<()> {
        self.flight?;
        self.end_at_payee();
        self.end_at_payer();
        Some(())
    }

    fn end_at_payee(&mut self) {
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.at_payee) else { return };
        flight.at_payee = false;
        let record = record(flight, Finish::Lost);
        if flight.generated == 0 {
            self.payee.abandon(record.job);
        } else {
            self.payee.end(&record);
            self.payee_journal.push(Line::Job(record));
        }
        self.forget_flight();
    }

    fn end_at_payer(&mut self) {
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.at_payer) else { return };
        flight.at_payer = false;
        let prompt = if flight.accepted { PROMPT } else { 0 };
        let used = Usage::of_job(u64::from(prompt), u64::from(flight.arrived));
        self.payer.end_lost(job(flight.number), used);
        self.pay();
        self.forget_flight();
    }

    fn forget_flight(&mut self) {
        self.flight = self.flight.filter(|flight| flight.at_payer || flight.at_payee);
    }

    fn meet(&mut self) {
        // The connection of the run that ended is closed, with all that was on its way in it.
        if std::mem::take(&mut self.is_back) {
            self.pays.clear();
            self.co_signed.clear();
        }
        let (payer, payee) = (self.payer.head().cloned(), self.payee.head(CHANNEL));
        if let Some(head) = &payee {
            self.payer.shown(head.id(), self.payee.due(), self.payee.counted());
        }
        if let Some(head) = &payer {
            self.payee.shown(CHANNEL, head.id());
        }
        if payer.as_ref().map(Verified::id) != payee.as_ref().map(Verified::id) {
            let allowances = self.payer.allowances();
            payer.into_iter().for_each(|head| self.send(head, allowances.clone()));
            payee.into_iter().for_each(|head| self.answer(head));
        }
    }

    fn crash_payer(&mut self, lost: usize) -> Option<()> {
        let kept = self.payer_journal.len().checked_sub(lost).filter(|_| !self.payer_crashed)?;
        self.payer_crashed = true;
        self.is_back = true;
        self.payer_journal.truncate(kept);
        self.payer = new_payer();
        for receipt in &self.payer_journal {
            self.payer.adopt(receipt);
        }
        self.payer.restarted();
        if let Some(flight) = &mut self.flight {
            flight.at_payer = false;
        }
        self.forget_flight();
        Some(())
    }

    fn crash_payee(&mut self, lost: usize) -> Option<()> {
        let kept = self.payee_journal.len().checked_sub(lost).filter(|_| !self.payee_crashed)?;
        self.payee_crashed = true;
        self.payee_journal.truncate(kept);
        self.payee = new_payee();
        for line in &self.payee_journal {
            match line {
                Line::Receipt(receipt) => self.payee.replay(receipt),
                Line::Job(record) => self.payee.replay_job(record),
            }
        }
        self.payee.restarted();
        if let Some(flight) = &mut self.flight {
            flight.at_payee = false;
        }
        self.forget_flight();
        Some(())
    }

    /// Lets the two meet until both have signed the end of the channel; returns its amount.
    fn closed(&self) -> Option<u64> {
        let mut state = self.clone();
        state.break_stream();
        for _ in 0..4 {
            state.meet();
            for ((_, _, allowances), receipt) in state.pays.clone() {
                state.receive(&receipt, &allowances);
            }
            state.co_signed.clone().values().for_each(|receipt| state.adopt(receipt));
            let due = state.payee.due();
            let closing = state.payer.close(domain())?;
            if let Ok(both) = state.payee.close(&closing) {
                return Some(both.amount).filter(|amount| *amount >= due);
            }
        }
        None
    }

    /// Says whether the job in flight comes to its end once all that is on its way arrives.
    fn completes(&self) -> bool {
        let mut state = self.clone();
        for _ in 0..8 {
            state.accept();
            for ((_, _, allowances), receipt) in state.pays.clone() {
                state.receive(&receipt, &allowances);
            }
            state.co_signed.clone().values().for_each(|receipt| state.adopt(receipt));
            while state.generate().is_some() {}
            while state.arrive().is_some() {}
            if state.finish_at_payee().is_some() && state.finish_at_payer().is_some() {
                return true;
            }
        }
        false
    }

    /// Returns the base that either side still knows to be signed for.
    fn known(&self) -> u64 {
        self.payee.paid().max(self.payer.paid())
    }
}

/// What the next tokens add to a job of which so many have come; its prompt and its call come with the first.
fn of_step(before: u32, step: u32) -> Usage {
    if before == 0 { usage(1, u64::from(PROMPT), u64::from(step)) } else { usage(0, 0, u64::from(step)) }
}

impl Model for Streaming {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(*self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend([
            Action::Begin,
            Action::Accept,
            Action::Generate,
            Action::Arrive,
            Action::FinishAtPayee,
        ]);
        actions.extend([Action::FinishAtPayer, Action::Break, Action::Meet]);
        actions.extend((0..state.pays.len()).map(Action::Pay));
        actions.extend((0..state.co_signed.len()).map(Action::CoSigned));
        let crashes = |may: bool| (0..=2).filter(move |_| may);
        actions.extend(crashes(self.crashes.0).map(Action::CrashPayer));
        actions.extend(crashes(self.crashes.1).map(Action::CrashPayee));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Begin => state.begin()?,
            Action::Accept => state.accept()?,
            Action::Generate => state.generate()?,
            Action::Arrive => state.arrive()?,
            Action::FinishAtPayee => state.finish_at_payee()?,
            Action::FinishAtPayer => state.finish_at_payer()?,
            Action::Break => state.break_stream()?,
            Action::Pay(which) => {
                let ((_, _, allowances), receipt) = last.pays.iter().nth(which)?;
                state.receive(receipt, allowances);
            }
            Action::CoSigned(which) => state.adopt(last.co_signed.values().nth(which)?),
            Action::Meet => state.meet(),
            Action::CrashPayer(lost) => state.crash_payer(lost)?,
            Action::CrashPayee(lost) => state.crash_payee(lost)?,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("a payer is never ahead by more than a window", |_, state| {
                let window = state.arrived.tokens_out.clamp(u64::from(WINDOW_MIN), u64::from(WINDOW_MAX));
                let jobs = u64::from(state.begun);
                let most = usage(jobs, jobs * u64::from(PROMPT), state.arrived.tokens_out + window);
                state.signed == 0 || state.signed <= cost(&most)
            }),
            Property::<Self>::always("a payer signs nothing before the first token", |_, state| {
                state.signed == 0 || state.arrived.tokens_out > 0
            }),
            Property::<Self>::always("a payee is never ahead by more than the first window", |_, state| {
                let window = usage(1, u64::from(PROMPT), u64::from(WINDOW_MIN));
                let both_forgot = state.payer_crashed && state.payee_crashed;
                both_forgot || cost(&state.generated) <= state.known() + cost(&window)
            }),
            Property::<Self>::always("the payee never holds what the payer did not sign", |_, state| {
                state.payee.paid() <= state.signed && state.payer.paid() <= state.signed
            }),
            Property::<Self>::always("the two can always agree on the end", |_, state| {
                state.closed().is_some_and(|amount| amount <= state.signed)
            }),
            Property::<Self>::always("a job that was taken can be finished", |_, state| {
                let runs = state.flight.is_some_and(|flight| flight.at_payer && flight.at_payee);
                !runs || state.completes()
            }),
            Property::<Self>::sometimes("every job ends and is paid", |model, state| {
                let jobs = u64::from(model.jobs);
                let all = usage(jobs, jobs * u64::from(PROMPT), jobs * u64::from(model.tokens));
                state.flight.is_none() && state.payee.paid() == cost(&all) && state.payer.bill() == cost(&all)
            }),
            Property::<Self>::sometimes("whoever crashed goes on", |model, state| {
                let crashed =
                    state.payer_crashed == model.crashes.0 && state.payee_crashed == model.crashes.1;
                let goes_on = state.arrived.tokens_out > u64::from(model.tokens) && !state.payer.is_retired();
                crashed && (goes_on || model.jobs == 1)
            }),
        ]
    }
}

#[test]
fn payment_keeps_up_with_a_stream_whatever_is_lost() {
    search("streaming", Streaming { jobs: 1, tokens: 160, step: 32, late: true, crashes: (false, false) });
    search(
        "streaming, two jobs",
        Streaming { jobs: 2, tokens: 128, step: 64, late: true, crashes: (false, false) },
    );
}

#[test]
fn a_payer_that_forgets_its_newest_receipts_goes_on_or_closes() {
    search(
        "streaming, the payer crashes",
        Streaming { jobs: 2, tokens: 128, step: 64, late: true, crashes: (true, false) },
    );
}

#[test]
fn a_payee_that_forgets_its_newest_receipts_goes_on_or_closes() {
    search(
        "streaming, the payee crashes",
        Streaming { jobs: 2, tokens: 128, step: 64, late: false, crashes: (false, true) },
    );
}

#[test]
fn two_sides_that_both_forget_can_still_close() {
    search(
        "streaming, both crash",
        Streaming { jobs: 1, tokens: 128, step: 64, late: true, crashes: (true, true) },
    );
}
