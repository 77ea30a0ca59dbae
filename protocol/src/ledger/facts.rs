//! The facts that an issuer has taken, in its own order, so that others can fetch those they missed.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::ids::RecordId;
use crate::ledger::quorum::Fact;
use crate::message::Checked;

/// Most facts kept: an issuer that was away for longer needs more than its peers' memory.
pub const FACTS_MAX: usize = 131_072;

/// Most names in one message.
pub const NAMES_MAX: usize = 1_024;

/// Most facts asked for at once.
pub const WANTED_MAX: usize = 32;

/// What an issuer can hand over.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Number of the first name kept.
    first: u64,
    names: VecDeque<RecordId>,
    facts: BTreeMap<RecordId, Arc<Fact<Checked>>>,
}

/// How far an issuer has followed another one.
#[derive(Debug, Clone, Default)]
pub struct Cursor {
    /// Number of the next name to ask for.
    pub next: u64,
    /// What was missing when it last asked, and may only have been on its way.
    missing: Vec<RecordId>,
    hurries: bool,
}

impl Facts {
    /// Keeps a fact that was taken; one that is kept already changes nothing.
    pub fn push(&mut self, fact: impl Into<Arc<Fact<Checked>>>) {
        let fact = fact.into();
        let name = fact.name();
        if self.facts.contains_key(&name) {
            return;
        }
        if self.names.len() >= FACTS_MAX
            && let Some(oldest) = self.names.pop_front()
        {
            self.facts.remove(&oldest);
            self.first = self.first.saturating_add(1);
        }
        self.names.push_back(name);
        self.facts.insert(name, fact);
    }

    /// Keeps a fact that was taken instead of one with the same name: a step that was certified again, because the votes
    /// for it had become void.
    pub fn replace(&mut self, fact: Arc<Fact<Checked>>) {
        match self.facts.get_mut(&fact.name()) {
            Some(known) => *known = fact,
            None => self.push(fact),
        }
    }

    /// Forgets facts, so that others of the same names are listed when they come. Their places stay, with no name.
    pub fn forget(&mut self, is_over: impl Fn(&Fact<Checked>) -> bool) {
        self.facts.retain(|_, fact| !is_over(fact));
        let is_kept = |name: &RecordId| self.facts.contains_key(name);
        self.names.iter_mut().filter(|name| !is_kept(name)).for_each(|name| *name = RecordId::NONE);
    }

    /// Returns a fact.
    #[must_use]
    pub fn get(&self, name: &RecordId) -> Option<&Fact<Checked>> {
        self.facts.get(name).map(Arc::as_ref)
    }

    /// Returns the names from number `since` on, at most [`NAMES_MAX`], with the number of the first of them. What was
    /// forgotten is [`RecordId::NONE`].
    #[must_use]
    pub fn since(&self, since: u64) -> (u64, Vec<RecordId>) {
        let from = since.clamp(self.first, self.end());
        let skip = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        (from, self.names.iter().skip(skip).take(NAMES_MAX).copied().collect())
    }

    fn end(&self) -> u64 {
        self.first.saturating_add(u64::try_from(self.names.len()).unwrap_or(u64::MAX))
    }
}

impl Cursor {
    /// Takes the names that an issuer has listed from number `first` on, and which of them have come; returns those to ask
    /// for at once. What was not missing before is given time to come by itself.
    pub fn listed(
        &mut self,
        first: u64,
        names: &[RecordId],
        has_come: impl Fn(&RecordId) -> bool,
    ) -> Vec<RecordId> {
        let missing = names.iter().filter(|name| !has_come(name));
        let missing: Vec<RecordId> = missing.take(NAMES_MAX).copied().collect();
        if missing.is_empty() {
            let count = u64::try_from(names.len()).unwrap_or(u64::MAX);
            self.next = self.next.max(first.saturating_add(count));
        }
        let hurries = core::mem::take(&mut self.hurries);
        let late = missing.iter().filter(|name| hurries || self.missing.contains(name));
        let wanted = late.take(WANTED_MAX).copied().collect();
        self.missing = missing;
        wanted
    }

    /// Counts whatever is missing as late, because we know that we are behind.
    pub const fn hurry(&mut self) {
        self.hurries = true;
    }
}
