//! How four issuers agree on the checkpoint of an epoch, one of them lying, every one of them crashing once: the rules of
//! decision 0012, in every order of votes, timeouts and restarts. What was sent stays sent and may arrive at any time.

use stateright::{Checker, Model, Property};

use crate::seen::search;

const ISSUERS: usize = 4;
/// The last issuer lies: it votes for everything, in every round, to whoever it likes.
const HONEST: usize = 3;
const ROUNDS: usize = 3;
/// What must hold: then no two honest issuers sign different checkpoints, and no two can ever have a quorum.
const AGREED: &str = "one checkpoint of an epoch is agreed on";
/// The two checkpoints that could be signed.
const VALUES: [u8; 2] = [1, 2];

/// Which rules are followed.
#[derive(Debug, Clone, Copy)]
struct Rules {
    quorum: u32,
    /// Prepares on which an issuer locks and commits.
    prepares: u32,
    keeps_lock: bool,
    /// A lock yields only to prepares of a later round than its own.
    yields_to_later: bool,
    writes_first: bool,
    /// Who proposes in round 0.
    first: usize,
}

const RULES: Rules =
    Rules { quorum: 3, prepares: 3, keeps_lock: true, yields_to_later: true, writes_first: true, first: 3 };

/// What an issuer knows of its own votes; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Votes {
    round: usize,
    prepared: [u8; ROUNDS],
    /// Value, and the round in which it got its prepares.
    lock: (u8, usize),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct State {
    memory: [Votes; HONEST],
    disk: [Votes; HONEST],
    crashed: [bool; HONEST],
    proposals: [u8; ROUNDS],
    /// Honest issuers that sent a prepare, by round and value, as bits.
    prepares: [[u8; 2]; ROUNDS],
    commits: [[u8; 2]; ROUNDS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Propose(u8),
    Prepare(usize, u8),
    Commit(usize, u8),
    Timeout(usize),
    Crash(usize),
}

const fn place(value: u8) -> usize {
    value as usize - 1
}

impl State {
    /// Counts the issuers that may have sent this, the lying one always among them.
    fn count(sent: u8) -> u32 {
        sent.count_ones() + 1
    }

    /// Says whether a quorum committed a checkpoint in one round, upon which every issuer that sees it signs.
    fn is_decided(&self, value: u8, quorum: u32) -> bool {
        self.commits.iter().any(|round| Self::count(round[place(value)]) >= quorum)
    }
}

impl Rules {
    fn proposer(&self, round: usize) -> usize {
        (self.first + round) % ISSUERS
    }

    /// Says whether an issuer may prepare `value` in its round.
    fn may_prepare(&self, state: &State, issuer: usize, value: u8) -> bool {
        let votes = &state.memory[issuer];
        let round = votes.round;
        if round >= ROUNDS || votes.prepared[round] != 0 {
            return false;
        }
        let is_proposed = self.proposer(round) >= HONEST || state.proposals[round] == value;
        let (locked, since) = votes.lock;
        let is_free = locked == 0 || locked == value || !self.keeps_lock;
        let from = if self.yields_to_later { since + 1 } else { 0 };
        let yields =
            (from..round).any(|later| State::count(state.prepares[later][place(value)]) >= self.quorum);
        is_proposed && (is_free || yields)
    }

    fn may_commit(&self, state: &State, issuer: usize, value: u8) -> bool {
        let round = state.memory[issuer].round;
        let is_new =
            round < ROUNDS && VALUES.iter().all(|v| state.commits[round][place(*v)] & (1 << issuer) == 0);
        is_new && State::count(state.prepares[round][place(value)]) >= self.prepares
    }
}

impl Model for Rules {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for value in VALUES {
            actions.push(Action::Propose(value));
            for issuer in 0..HONEST {
                actions.push(Action::Prepare(issuer, value));
                actions.push(Action::Commit(issuer, value));
            }
        }
        for issuer in 0..HONEST {
            if state.memory[issuer].round + 1 < ROUNDS {
                actions.push(Action::Timeout(issuer));
            }
            // A crash that finds everything on disk changes nothing.
            if !state.crashed[issuer] && state.memory[issuer] != state.disk[issuer] {
                actions.push(Action::Crash(issuer));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let mut voted = None;
        match action {
            Action::Propose(value) => {
                let due = |round: &usize| {
                    let proposer = self.proposer(*round);
                    proposer < HONEST
                        && state.memory[proposer].round == *round
                        && state.proposals[*round] == 0
                };
                let round = (0..ROUNDS).find(due)?;
                let lock = state.memory[self.proposer(round)].lock.0;
                if self.keeps_lock && lock != 0 && lock != value {
                    return None;
                }
                state.proposals[round] = value;
            }
            Action::Prepare(issuer, value) => {
                if !self.may_prepare(last, issuer, value) {
                    return None;
                }
                let round = state.memory[issuer].round;
                state.memory[issuer].prepared[round] = value;
                state.prepares[round][place(value)] |= 1 << issuer;
                voted = Some(issuer);
            }
            Action::Commit(issuer, value) => {
                if !self.may_commit(last, issuer, value) {
                    return None;
                }
                let round = state.memory[issuer].round;
                state.memory[issuer].lock = (value, round);
                state.commits[round][place(value)] |= 1 << issuer;
                voted = Some(issuer);
            }
            Action::Timeout(issuer) => {
                state.memory[issuer].round += 1;
                voted = Some(issuer);
            }
            Action::Crash(issuer) => {
                state.memory[issuer] = state.disk[issuer];
                state.crashed[issuer] = true;
            }
        }
        if let Some(issuer) = voted.filter(|_| self.writes_first) {
            state.disk[issuer] = state.memory[issuer];
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(AGREED, |rules: &Self, state: &State| {
                !VALUES.iter().all(|value| state.is_decided(*value, rules.quorum))
            }),
            Property::sometimes("a checkpoint is agreed on", |rules: &Self, state: &State| {
                VALUES.iter().any(|value| state.is_decided(*value, rules.quorum))
            }),
            Property::sometimes(
                "one is agreed on after a round that failed",
                |rules: &Self, state: &State| {
                    VALUES.iter().any(|value| State::count(state.commits[1][place(*value)]) >= rules.quorum)
                        && state.commits[0].iter().all(|commits| *commits == 0)
                },
            ),
        ]
    }
}

#[expect(clippy::print_stdout, reason = "says how much was searched, to whoever runs it with `--nocapture`")]
fn is_safe(rules: Rules) -> bool {
    let checker = rules.checker().threads(2).spawn_bfs().join();
    println!("{rules:?}: {} states", checker.unique_state_count());
    checker.discovery(AGREED).is_none()
}

#[test]
fn four_issuers_never_agree_on_two_checkpoints_of_one_epoch() {
    for first in [0, 3] {
        search("checkpoint", Rules { first, ..RULES });
    }
}

#[test]
fn every_rule_of_the_agreement_is_needed() {
    let broken = [
        Rules { quorum: 2, prepares: 2, ..RULES },
        Rules { prepares: 2, ..RULES },
        Rules { keeps_lock: false, ..RULES },
        Rules { yields_to_later: false, ..RULES },
        Rules { writes_first: false, ..RULES },
    ];
    for rules in broken {
        assert!(!is_safe(rules), "{rules:?}");
    }
}
