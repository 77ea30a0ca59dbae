//! A journal without the lines that its node need not keep: the core says which, the journal does it.

use protocol::pruning::{Plan, Policy, Survey, Verdict as Fate};
use protocol::record::Record;

use crate::journal::pruning::{Pruned, Pruner, Verdict};
use crate::journal::{History, JournalError, Position};

/// Prunes all segments but the newest, as far as records up to `durable` say; may run beside the journal, once at a time.
///
/// # Errors
/// When a file cannot be read or written, or the disk lacks room; the journal is whole then too.
pub fn prune(history: &History, durable: Position, policy: Policy) -> Result<Pruned, JournalError> {
    history.prune(durable, &mut Lines::Surveyed(Box::new(Survey::new(policy))))
}

/// The core's word on the lines of a journal; what cannot be read stays.
enum Lines {
    Surveyed(Box<Survey>),
    Planned(Box<Plan>),
    Done,
}

impl Pruner for Lines {
    fn survey(&mut self, position: Position, record: &[u8]) {
        if let (Self::Surveyed(survey), Ok(record)) = (self, Record::read_back(record)) {
            survey.take(position.0, &record);
        }
    }

    fn begin(&mut self, until: Position) {
        if let Self::Surveyed(survey) = std::mem::replace(self, Self::Done) {
            *self = Self::Planned(Box::new(survey.plan(until.0)));
        }
    }

    fn read(&mut self, position: Position, record: &[u8]) {
        if let (Self::Planned(plan), Ok(record)) = (self, Record::read_back(record)) {
            plan.read(position.0, &record);
        }
    }

    fn verdict(&mut self, position: Position, record: &[u8]) -> Verdict {
        let (Self::Planned(plan), Ok(record)) = (self, Record::read_back(record)) else {
            return Verdict::Keep;
        };
        match plan.verdict(position.0, &record) {
            Fate::Keep => Verdict::Keep,
            Fate::Drop => Verdict::Drop,
            Fate::Replace(line) => Verdict::Replace(line.to_bytes()),
        }
    }

    fn next_segment(&mut self) {
        match self {
            Self::Surveyed(survey) => survey.next_part(),
            Self::Planned(plan) => plan.next_part(),
            Self::Done => {}
        }
    }
}
