//! What must hold, whatever happens: each rule with a name, a sentence, and the number of times that it was checked.

mod healed;
mod settled;
mod while_running;

use crate::world::World;

/// Inputs of one host in a second of virtual time that no sane traffic of a few others reaches.
pub const INPUTS_PER_SECOND_MAX: u64 = 2_000;

/// What each of the others may add to that.
pub const INPUTS_OF_ONE_MAX: u64 = 10;

/// Others that a node dials in a second: eight that the directory names, for several jobs at once.
pub const DIALS_MAX: usize = 32;

/// How long a job may take in all: five minutes are far beyond the longest answer and every timeout together.
pub const JOB_MS_MAX: u64 = 5 * 60 * 1000;

/// Findings kept in words; what is broken at every step would fill the memory, and says no more than its beginning.
pub const FINDINGS_MAX: usize = 200;

/// A rule about the whole world.
#[derive(Debug, Clone, Copy)]
pub struct Invariant {
    /// Name in reports.
    pub name: &'static str,
    /// What it says.
    pub sentence: &'static str,
    /// Checks it, and counts.
    pub check: fn(&World, &mut Tally),
}

/// A rule about single events, checked where they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Always {
    /// See [`Always::sentence`]; so for all.
    CreditsConserved,
    /// Inputs per second are bounded.
    NoBusyLoop,
    /// Encodings are unique.
    OneEncoding,
    /// Honest messages check.
    MessagesCheck,
    /// Votes are durable first.
    VotesOnDisk,
    /// Jobs end once.
    JobsEndOnce,
    /// Journals can be read back.
    JournalsRead,
    /// Tickets admit.
    TicketsAdmit,
    /// Whoever is asked serves.
    AskedServes,
    /// Nobody offers a job to itself.
    NoSelfOffer,
    /// What is believed was said.
    OffersTrue,
    /// Dials are bounded.
    DialsBounded,
    /// The books are what was written.
    BooksFollow,
}

impl Always {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::CreditsConserved,
        Self::NoBusyLoop,
        Self::OneEncoding,
        Self::MessagesCheck,
        Self::VotesOnDisk,
        Self::JobsEndOnce,
        Self::JournalsRead,
        Self::TicketsAdmit,
        Self::AskedServes,
        Self::NoSelfOffer,
        Self::OffersTrue,
        Self::DialsBounded,
        Self::BooksFollow,
    ];

    /// Returns its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreditsConserved => "credits_conserved",
            Self::NoBusyLoop => "no_busy_loop",
            Self::OneEncoding => "one_encoding",
            Self::MessagesCheck => "messages_check",
            Self::VotesOnDisk => "votes_on_disk",
            Self::JobsEndOnce => "jobs_end_once",
            Self::JournalsRead => "journals_read",
            Self::TicketsAdmit => "tickets_admit",
            Self::AskedServes => "asked_serves",
            Self::NoSelfOffer => "no_self_offer",
            Self::OffersTrue => "offers_true",
            Self::DialsBounded => "dials_bounded",
            Self::BooksFollow => "books_follow",
        }
    }

    /// Returns what it says.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::CreditsConserved => {
                "After every step of an issuer (of more than 100 nodes: every second) its books hold what was deposited."
            }
            Self::NoBusyLoop => "No machine handles more inputs in a second than sane traffic has.",
            Self::OneEncoding => "A message that was read encodes to the bytes that came.",
            Self::MessagesCheck => "What an honest node sends passes every check of whoever gets it.",
            Self::VotesOnDisk => "An issuer's vote for a checkpoint leaves when it is on its disk.",
            Self::JobsEndOnce => "Whoever wanted a job is told once how it ended.",
            Self::JournalsRead => "A node starts again from whatever its journal holds after a crash.",
            Self::TicketsAdmit => "A ticket admits whoever it was made for.",
            Self::AskedServes => {
                "Whoever is asked for terms says itself that it serves, in an advert that still counts."
            }
            Self::NoSelfOffer => "No node counts itself among the providers of a job that it gives away.",
            Self::OffersTrue => "What a node believes that an honest provider asks is what that one asks.",
            Self::DialsBounded => "No node dials more than a few others in a second, whatever it is told of.",
            Self::BooksFollow => {
                "An issuer that is alone (of at most 100 nodes) holds for everybody what plain sums over its journal give."
            }
        }
    }
}

/// How often a rule was checked, and where it did not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Times that it was checked.
    pub checks: u64,
    /// Times that it did not hold.
    pub broken: u64,
    /// The first of these, in words.
    pub findings: Vec<String>,
}

impl Tally {
    /// Counts a check, and says what was found where it does not hold.
    pub fn check(&mut self, holds: bool, finding: impl FnOnce() -> String) {
        self.checks += 1;
        if !holds {
            self.broken += 1;
            if self.findings.len() < FINDINGS_MAX {
                self.findings.push(finding());
            }
        }
    }

    /// Adds what another tally of the same rule counted.
    pub fn add(&mut self, other: Self) {
        self.checks += other.checks;
        self.broken += other.broken;
        let room = FINDINGS_MAX.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.into_iter().take(room));
    }
}

/// What is checked every few seconds while everything runs.
pub const WHILE_RUNNING: &[Invariant] = while_running::INVARIANTS;

/// What is checked when the network has healed and every job is over, before anything is settled.
pub const WHEN_HEALED: &[Invariant] = healed::INVARIANTS;

/// What is checked when whoever asks then had time to be served.
pub const WHEN_ASKED: &[Invariant] = &[healed::SERVED];

/// What is checked when everybody has settled.
pub const WHEN_SETTLED: &[Invariant] = settled::INVARIANTS;

/// Returns what does not hold of some rules.
#[must_use]
pub fn findings(invariants: &[Invariant], world: &World) -> Vec<String> {
    let mut tally = Tally::default();
    for invariant in invariants {
        (invariant.check)(world, &mut tally);
    }
    tally.findings
}
