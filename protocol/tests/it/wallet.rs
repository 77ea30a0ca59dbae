//! One slot, one step: whatever is lost, late or repeated, and however often the node starts again.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use protocol::ids::{ChannelId, RecordId};
use protocol::ledger::issuer::Balance;
use protocol::ledger::records::{AccountOp, Epoch, OpBody};
use protocol::ledger::wallet::Wallet;
use protocol::signed::Verified;

use crate::common::{cases, domain, signer};

#[derive(Debug, Clone)]
enum Event {
    Sign(u8),
    /// The pending step leaves, perhaps again.
    Send,
    /// The issuer gets one of the steps on their way, and takes it if it wishes.
    Arrive {
        which: usize,
        willing: bool,
    },
    /// The issuer says what the account holds.
    Tell,
    /// One of the issuer's answers arrives; it stays on its way too, so that it can come again.
    Answer(usize),
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<u8>().prop_map(Event::Sign),
        4 => Just(Event::Send),
        4 => (0..8_usize, prop::bool::weighted(0.7)).prop_map(|(which, willing)| Event::Arrive { which, willing }),
        2 => Just(Event::Tell),
        6 => (0..8_usize).prop_map(Event::Answer),
        1 => Just(Event::Restart),
    ]
}

#[derive(Debug, Clone)]
enum Answer {
    State(u64, RecordId, Balance),
    Recorded(RecordId, Balance),
    Refused(RecordId, Balance),
}

struct Story {
    wallet: Wallet,
    journal: Vec<Verified<AccountOp>>,
    certified: BTreeSet<RecordId>,
    steps: Vec<Verified<AccountOp>>,
    answers: Vec<Answer>,
    next: u64,
    head: RecordId,
    refused: BTreeSet<RecordId>,
    told_refused: BTreeSet<RecordId>,
    balance: Balance,
}

impl Story {
    fn new() -> Self {
        Self {
            wallet: Wallet::new(domain(), signer(1)),
            journal: Vec::new(),
            certified: BTreeSet::new(),
            steps: Vec::new(),
            answers: Vec::new(),
            next: 0,
            head: RecordId::NONE,
            refused: BTreeSet::new(),
            told_refused: BTreeSet::new(),
            balance: Balance::default(),
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Sign(tag) => {
                let body = OpBody::Expire(ChannelId([*tag; 32]));
                self.journal.extend(self.wallet.sign(body, Epoch(0)));
            }
            Event::Send => self.steps.extend(self.wallet.pending().cloned()),
            Event::Arrive { which, willing } => {
                if !self.steps.is_empty() {
                    let step = self.steps[which % self.steps.len()].clone();
                    self.arrive(&step, *willing);
                }
            }
            Event::Tell => self.answers.push(Answer::State(self.next, self.head, self.balance)),
            Event::Answer(which) => {
                if !self.answers.is_empty() {
                    let answer = self.answers[which % self.answers.len()].clone();
                    self.answer(&answer);
                }
            }
            Event::Restart => self.restart(),
        }
    }

    fn arrive(&mut self, step: &Verified<AccountOp>, willing: bool) {
        let id = step.id();
        let fits = step.sequence == self.next && step.previous == self.head && !self.refused.contains(&id);
        if id != self.head && fits && willing {
            (self.next, self.head) = (self.next + 1, id);
            self.balance.as_of += 1;
        }
        if id == self.head {
            self.answers.push(Answer::Recorded(id, self.balance));
        } else {
            self.refused.insert(id);
            self.answers.push(Answer::Refused(id, self.balance));
        }
    }

    fn answer(&mut self, answer: &Answer) {
        let pending = self.wallet.pending().map(Verified::id);
        match answer {
            Answer::State(next, head, balance) => {
                self.wallet.learn(*next, *head, *balance);
            }
            Answer::Recorded(op, balance) => {
                self.wallet.recorded(*op, *balance);
                if pending == Some(*op) && self.wallet.is_idle() {
                    self.certified.insert(*op);
                }
            }
            Answer::Refused(op, balance) => {
                self.wallet.refused(*op, *balance, false);
                if pending == Some(*op) {
                    self.told_refused.insert(*op);
                }
            }
        }
    }

    fn restart(&mut self) {
        self.wallet = Wallet::new(domain(), signer(1));
        for op in &self.journal {
            self.wallet.replay(op.clone());
            if self.certified.contains(&op.id()) {
                self.wallet.replay_certified(op.id());
            }
        }
        // What was on its way to the old connection never arrives.
        self.answers.clear();
    }
}

#[test]
fn what_is_older_than_what_is_known_of_an_account_changes_nothing() {
    let mut wallet = Wallet::new(domain(), signer(1));
    let newer = Balance { cash: 5, as_of: 2, ..Balance::default() };
    wallet.learn(1, RecordId([1; 32]), newer);
    wallet.learn(0, RecordId::NONE, Balance { cash: 9, as_of: 1, ..Balance::default() });
    assert_eq!((wallet.balance(), wallet.next()), (newer, Some(1)));
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_slot_is_signed_again_only_after_the_issuer_refused_what_was_in_it(
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut story = Story::new();
        for event in &events {
            story.happen(event);
        }

        let mut slots: BTreeMap<u64, Vec<RecordId>> = BTreeMap::new();
        for op in &story.journal {
            let slot = slots.entry(op.sequence).or_default();
            if slot.last() != Some(&op.id()) {
                slot.push(op.id());
            }
        }
        for signed in slots.values() {
            for op in &signed[..signed.len() - 1] {
                prop_assert!(story.refused.contains(op), "slot signed twice: {:?}", signed);
            }
        }
    }

    #[test]
    fn a_wallet_whose_messages_arrive_goes_on(events in prop::collection::vec(event(), 0..60)) {
        let mut story = Story::new();
        for event in &events {
            story.happen(event);
        }

        let calm = |story: &mut Story| {
            story.answers.clear();
            story.happen(&Event::Tell);
            story.happen(&Event::Answer(0));
            if let Some(pending) = story.wallet.pending().cloned() {
                story.arrive(&pending, true);
                let last = story.answers.last().cloned().expect("an answer");
                story.answer(&last);
            }
        };
        calm(&mut story);
        prop_assert!(story.wallet.is_idle());
        story.happen(&Event::Sign(1));
        let signed = story.journal.last().map(Verified::id);
        calm(&mut story);
        prop_assert!(story.refused.contains(&signed.expect("signed")) || story.head == signed.expect("signed"));
    }
}
