//! A slot over a checkpoint that gives stuck slots back or hands the books to other issuers: the rules of decision 0014,
//! four issuers before and four after, one of each lying, a payer that signs two steps for the slot, crashes anywhere.
//!
//! Whether they are the same four makes no difference: nobody relies on what it knows from before. That one checkpoint is
//! agreed on is taken from the model of that agreement. What was sent stays sent and may arrive at any time.

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::mutant;
use crate::seen::search;

/// The last issuer of each set lies: it votes for everything, records everything and reports what suits it.
const HONEST: usize = 3;
/// The payer's two steps; 0 is none.
const STEPS: [u8; 2] = [1, 2];
const ONE_STEP: &str = "one step of a slot counts, whoever issues";
const KEPT: &str = "what counted before a checkpoint is in it";
const SAME_BOOKS: &str = "no two issuers after it have different steps";
const PROMISES: [&str; 3] = [ONE_STEP, KEPT, SAME_BOOKS];

/// Which rules are followed.
#[derive(Debug, Clone, Copy)]
struct Rules {
    quorum: u32,
    writes_first: bool,
    /// A step counts when a quorum has recorded it, not when a quorum has voted for it.
    counts_recorded: bool,
    /// Whoever has reported takes nothing more before the checkpoint.
    seals: bool,
    /// Reports that a checkpoint is made of.
    reports: u32,
    keeps_recorded: bool,
    /// Issuers that must have signed a checkpoint before others go by it.
    signatures: u32,
    /// Nobody votes after the checkpoint who does not hold it.
    begins_with_it: bool,
    /// Votes from before the checkpoint count no more after it.
    forgets_votes: bool,
}

/// Returns the rules as they are written down, but for a fault that is put in.
fn rules() -> Rules {
    Rules {
        quorum: 3,
        writes_first: true,
        counts_recorded: !mutant::is_in("count-votes-over-checkpoint"),
        seals: !mutant::is_in("take-after-report"),
        reports: 3,
        keeps_recorded: !mutant::is_in("unlock-drops-recorded"),
        signatures: if mutant::is_in("successor-without-quorum") { 1 } else { 3 },
        begins_with_it: true,
        forgets_votes: true,
    }
}

/// Before the checkpoint, or after it.
type Side = usize;
const BEFORE: Side = 0;
const AFTER: Side = 1;

/// What an issuer knows of the slot on one side of the checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Slot {
    voted: u8,
    recorded: u8,
    /// Before: it has reported. After: it goes by a checkpoint.
    turned: bool,
}

/// An honest issuer on one side, with what it has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Issuer {
    memory: Slot,
    disk: Slot,
    /// Whether it sent a vote for each step, and its word that it recorded it.
    votes: [bool; 2],
    recorded: [bool; 2],
    reported: Option<u8>,
}

/// Honest issuers differ by nothing else, so they stand in the order of what they know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct State {
    issuers: [[Issuer; HONEST]; 2],
    checkpoint: Option<u8>,
}

impl State {
    /// Counts the issuers of a side that may have sent this, the lying one always among them.
    fn count(&self, side: Side, sent: impl Fn(&Issuer) -> bool) -> u32 {
        let honest = self.issuers[side].iter().filter(|issuer| sent(issuer)).count();
        u32::try_from(honest).expect("three") + 1
    }

    fn votes(&self, side: Side, step: u8) -> u32 {
        self.count(side, |issuer| issuer.votes[place(step)])
    }

    fn recordings(&self, side: Side, step: u8) -> u32 {
        self.count(side, |issuer| issuer.recorded[place(step)])
    }

    fn reports(&self, wanted: impl Fn(u8) -> bool) -> u32 {
        self.count(BEFORE, |issuer| issuer.reported.is_some_and(&wanted))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Vote(Side, usize, u8),
    Record(Side, usize, u8),
    Report(usize),
    /// A checkpoint with this step in the slot, or none, is agreed on.
    Agree(u8),
    /// An issuer goes on with a checkpoint.
    Begin(usize, u8),
    Crash(Side, usize),
}

const fn place(step: u8) -> usize {
    step as usize - 1
}

impl Rules {
    fn is_certified(&self, state: &State, side: Side, step: u8) -> bool {
        let before = side == AFTER && !self.forgets_votes && state.votes(BEFORE, step) >= self.quorum;
        before || state.votes(side, step) >= self.quorum
    }

    /// Says whether somebody may rely on a step by what issuers of one side said.
    fn counts(&self, state: &State, side: Side, step: u8) -> bool {
        let by_votes = !self.counts_recorded && self.is_certified(state, side, step);
        by_votes || state.recordings(side, step) >= self.quorum
    }

    /// Says whether an issuer still takes something on this side.
    fn is_at_work(&self, slot: Slot, side: Side) -> bool {
        match side {
            BEFORE => !slot.turned || !self.seals,
            _ => slot.turned || !self.begins_with_it,
        }
    }

    fn may_vote(&self, slot: Slot, side: Side) -> bool {
        self.is_at_work(slot, side) && slot.voted == 0 && slot.recorded == 0
    }

    fn may_record(&self, state: &State, slot: Slot, side: Side, step: u8) -> bool {
        self.is_at_work(slot, side) && slot.recorded == 0 && self.is_certified(state, side, step)
    }

    /// Says whether enough reports permit a checkpoint with this step in the slot: the proposer chooses which, and the
    /// lying issuer's is one of them.
    fn may_agree(&self, state: &State, step: u8) -> bool {
        if state.checkpoint.is_some() || state.reports(|_| true) < self.reports {
            return false;
        }
        if step == 0 {
            return !self.keeps_recorded || state.reports(|report| report == 0) >= self.reports;
        }
        // What is reported is shown with its certificate, by the liar too.
        state.reports(|report| report == step) > 1 || self.is_certified(state, BEFORE, step)
    }

    /// Says whether an issuer goes by a checkpoint with this step: the honest sign none but the one agreed on.
    fn may_begin(&self, state: &State, slot: Slot, step: u8) -> bool {
        (state.checkpoint == Some(step) || self.signatures <= 1) && !slot.turned
    }
}

impl Model for Rules {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for side in BEFORE..=AFTER {
            for (number, issuer) in state.issuers[side].iter().enumerate() {
                let slot = issuer.memory;
                if self.may_vote(slot, side) {
                    actions.extend(STEPS.map(|step| Action::Vote(side, number, step)));
                }
                let certified = STEPS.into_iter().filter(|step| self.may_record(state, slot, side, *step));
                actions.extend(certified.map(|step| Action::Record(side, number, step)));
                let begins = (0..=2).filter(|step| side == AFTER && self.may_begin(state, slot, *step));
                actions.extend(begins.map(|step| Action::Begin(number, step)));
                if side == BEFORE && issuer.reported.is_none() {
                    actions.push(Action::Report(number));
                }
                actions.push(Action::Crash(side, number));
            }
        }
        actions.extend((0..=2).filter(|step| self.may_agree(state, *step)).map(Action::Agree));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Vote(side, issuer, step) => {
                let issuer = &mut state.issuers[side][issuer];
                issuer.memory.voted = step;
                issuer.votes[place(step)] = true;
            }
            Action::Record(side, issuer, step) => {
                let issuer = &mut state.issuers[side][issuer];
                issuer.memory.recorded = step;
                issuer.recorded[place(step)] = true;
            }
            Action::Report(issuer) => {
                let issuer = &mut state.issuers[BEFORE][issuer];
                issuer.memory.turned = true;
                issuer.reported = Some(issuer.memory.recorded);
            }
            Action::Agree(step) => state.checkpoint = Some(step),
            Action::Begin(issuer, step) => {
                let slot = &mut state.issuers[AFTER][issuer].memory;
                slot.turned = true;
                slot.recorded = if step == 0 { slot.recorded } else { step };
            }
            Action::Crash(side, issuer) => {
                let issuer = &mut state.issuers[side][issuer];
                issuer.memory = issuer.disk;
            }
        }
        for issuer in state.issuers.iter_mut().flatten().filter(|_| self.writes_first) {
            issuer.disk = issuer.memory;
        }
        state.issuers.iter_mut().for_each(|side| side.sort_unstable());
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_STEP, |rules: &Self, state: &State| {
                let counts = |step: &u8| {
                    let said = [BEFORE, AFTER].into_iter().any(|side| rules.counts(state, side, *step));
                    said || state.checkpoint == Some(*step)
                };
                !STEPS.iter().all(counts)
            }),
            Property::always(KEPT, |rules: &Self, state: &State| {
                let lost = |step: &u8| {
                    let is_left_out = state.checkpoint.is_some_and(|kept| kept != *step);
                    is_left_out && rules.counts(state, BEFORE, *step)
                };
                !STEPS.iter().any(lost)
            }),
            Property::always(SAME_BOOKS, |_, state: &State| {
                let has = |step| state.issuers[AFTER].iter().any(|issuer| issuer.memory.recorded == step);
                !STEPS.into_iter().all(has)
            }),
            Property::sometimes(
                "a checkpoint keeps what too few had recorded",
                |rules: &Self, state: &State| {
                    let kept = state.checkpoint.filter(|step| *step != 0);
                    kept.is_some_and(|step| state.recordings(BEFORE, step) < rules.quorum)
                },
            ),
            Property::sometimes(
                "a slot in which issuers stood against each other is given back",
                |rules: &Self, state: &State| {
                    let stuck = STEPS.iter().all(|step| state.votes(BEFORE, *step) > 1);
                    let taken = STEPS.iter().any(|step| rules.counts(state, AFTER, *step));
                    stuck && state.checkpoint == Some(0) && taken
                },
            ),
        ]
    }
}

/// Says whether a search finds no state that breaks a promise.
fn is_safe(rules: Rules) -> bool {
    let checker = rules.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    PROMISES.iter().all(|promise| checker.discovery(promise).is_none())
}

#[test]
fn a_slot_holds_one_step_over_a_checkpoint_and_a_change_of_issuers() {
    search("succession", rules());
}

#[test]
fn every_rule_of_the_succession_is_needed() {
    let broken = [
        Rules { quorum: 2, ..rules() },
        Rules { writes_first: false, ..rules() },
        Rules { counts_recorded: false, ..rules() },
        Rules { seals: false, ..rules() },
        Rules { reports: 2, ..rules() },
        Rules { keeps_recorded: false, ..rules() },
        Rules { signatures: 1, ..rules() },
        Rules { begins_with_it: false, ..rules() },
        Rules { forgets_votes: false, ..rules() },
    ];
    for rules in broken {
        assert!(!is_safe(rules), "{rules:?}");
    }
}
