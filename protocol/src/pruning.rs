//! What a journal need not keep: of channels that were over long ago only what they moved.
//!
//! All lines are surveyed first, oldest first; then those that may be replaced are read again, a part of the journal at a
//! time. A node that starts from the lines left knows what it would know from all of them, and its account's statement
//! has the same sums. Of an issuer that is alone, the books at a checkpoint that nobody audits any more take the place of the
//! lines that led to them. What one of several issuers writes as such stays whole: it is how they compute their books.

mod forward;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};

use crate::books::BooksRecord;
use crate::ids::{AccountId, ChannelId, DomainId, NodeId, RecordId};
use crate::job::JobRecord;
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::issuer::Booked;
use crate::ledger::records::{AccountOp, Epoch, OpBody, VALIDITY_EPOCHS_MAX};
use crate::manifest::Manifest;
use crate::message::{Opening, Wire};
use crate::mutant;
use crate::node::{CHECKPOINTS_KEPT_MAX, Node, is_issuers};
use crate::record::Record;
use crate::signed::{Signed, Verified};
use crate::statement::{Kind, Line, Statement};
use crate::time::Time;

use forward::{Brought, Ledger};

/// Whose journal is pruned, and how far.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The network.
    pub manifest: Manifest,
    /// The node.
    pub node: NodeId,
    /// Its account.
    pub account: AccountId,
    /// Says whether the node is an issuer.
    pub is_issuer: bool,
    /// The epoch now.
    pub epoch: Epoch,
    /// For how many epochs after the issuers have forgotten a channel its lines are kept all the same, and those of jobs
    /// that ran at home after they ended.
    pub keep_epochs: u32,
    /// Channels that the node knows now, whose lines all stay.
    pub open: BTreeSet<ChannelId>,
    /// The oldest checkpoint that the node keeps, once it keeps as many as it ever will: nobody is served what is before.
    pub oldest: Option<Epoch>,
}

impl Policy {
    /// Returns the policy for a node at `now`. An epoch counts when a checkpoint of the one before it is known: a clock that
    /// is wrong must not make the node forget what it could still be paid for.
    #[must_use]
    pub fn of(node: &Node, keep_epochs: u32, now: Time) -> Self {
        let manifest = Manifest::clone(node.manifest());
        let agreed = node.checkpoints().iter().map(|checkpoint| checkpoint.epoch.plus(1)).max();
        Self {
            node: node.id(),
            account: node.account(),
            is_issuer: node.books().is_some(),
            epoch: manifest.epoch(now).min(agreed.unwrap_or_default()),
            manifest,
            keep_epochs,
            open: node.channels().into_iter().map(|view| view.channel).collect(),
            oldest: oldest_of(node.checkpoints()),
        }
    }

    /// Returns the epoch before which the issuers must have forgotten a channel for only its sums to be kept.
    #[must_use]
    pub fn over_before(&self) -> Epoch {
        Epoch(self.epoch.0.saturating_sub(self.keep_epochs.max(1)))
    }

    /// Says whether nobody asks any more for what led to the books at the end of an epoch.
    fn is_past(&self, epoch: Epoch) -> bool {
        let oldest = if mutant::is_in("forward-what-is-audited") { Some(self.epoch) } else { self.oldest };
        oldest.is_some_and(|oldest| epoch < oldest) && epoch < self.over_before()
    }

    /// Returns the last epoch in which something can happen on a channel with this last epoch for jobs.
    fn end(&self, expires: Epoch) -> Epoch {
        expires.plus(if mutant::is_in("prune-in-grace") { 0 } else { self.manifest.grace_epochs })
    }

    /// Says whether nothing can happen any more on a channel, be it kept for its owner to look at or not.
    fn is_over(&self, expires: Epoch) -> bool {
        self.end(expires).plus(1) < self.epoch
    }

    /// Says whether a channel is over for so long that only its sums are kept: a payer asks for its end as long as the
    /// issuers remember it.
    fn is_old(&self, expires: Epoch) -> bool {
        self.end(expires).plus(VALIDITY_EPOCHS_MAX) < self.over_before()
    }
}

/// Returns the epoch of the oldest checkpoint, if they are as many as are ever kept.
fn oldest_of(kept: &[Verified<Checkpoint>]) -> Option<Epoch> {
    let oldest = kept.iter().map(|checkpoint| checkpoint.epoch).min();
    oldest.filter(|_| kept.len() >= CHECKPOINTS_KEPT_MAX)
}

/// What becomes of a line.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It stays as it is.
    Keep,
    /// It goes.
    Drop,
    /// Another line takes its place, which holds what several said.
    Replace(Box<Record>),
}

/// A channel in the journal.
#[derive(Debug, Clone, Copy)]
struct Seen {
    expires: Epoch,
    /// Position of the last line about it.
    last: u64,
}

/// A channel of which this node keeps receipts as a mirror.
#[derive(Debug, Clone, Copy)]
struct Mirrored {
    expires: Epoch,
    last: u64,
    /// The last line says that nothing is kept any more.
    forgotten: bool,
}

/// Reads a whole journal to learn what in it still matters.
#[derive(Debug)]
pub struct Survey {
    policy: Policy,
    domain: DomainId,
    channels: BTreeMap<ChannelId, Seen>,
    mirrored: BTreeMap<ChannelId, Mirrored>,
    /// The step that the account signed last, and where: its line tells which positions are taken.
    step: Option<(u64, RecordId)>,
    /// The line of the job that ended last, and when: the clock is never behind it.
    job: (Time, u64),
    /// The newest epochs of which there are checkpoints.
    checkpoints: BTreeSet<Epoch>,
    /// The books of an issuer that is alone.
    ledger: Option<Ledger>,
}

impl Survey {
    /// Begins.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            domain: policy.manifest.domain(),
            ledger: Ledger::of(&policy),
            policy,
            channels: BTreeMap::new(),
            mirrored: BTreeMap::new(),
            step: None,
            job: (Time::default(), 0),
            checkpoints: BTreeSet::new(),
        }
    }

    /// Takes the line at `position`, which rises.
    pub fn take(&mut self, position: u64, record: &Record) {
        let domain = self.domain;
        if let Some(ledger) = &mut self.ledger {
            ledger.take(position, record, &self.policy);
        }
        if let Record::Step { op, .. } = record {
            self.step = self.own_step(op).map(|(_, id)| (position, id)).or(self.step);
        } else if let Record::Kept { .. } | Record::Over(_) = record {
            self.mirror(position, record);
        } else if let Record::Books(BooksRecord::Checkpoint(checkpoint)) = record {
            self.checkpoints.extend(checkpoint.peek_in(domain).map(|(checkpoint, ..)| checkpoint.epoch));
            if self.checkpoints.len() > CHECKPOINTS_KEPT_MAX {
                self.checkpoints.pop_first();
            }
        } else if let Record::Paying(opening) | Record::Paid(opening) | Record::Lent { opening, .. } = record
            && let Some((channel, expires)) = opened(opening, domain)
        {
            self.channels.insert(channel, Seen { expires, last: position });
        } else if let Some(seen) = record.channel(domain).and_then(|channel| self.channels.get_mut(&channel))
        {
            seen.last = position;
        }
        if let Record::Job(job) = record {
            self.job = self.job.max((job.end, position));
        }
    }

    /// Goes on with the next part of those that may be replaced; what is surveyed after the last of them stays.
    pub fn next_part(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.next_part();
        }
    }

    /// Returns a step of the node's account, and its id: the folder may have acted for another account before.
    fn own_step(&self, op: &Signed<AccountOp>) -> Option<(AccountOp, RecordId)> {
        let (op, id, _) = op.peek_in(self.domain)?;
        (op.account == self.policy.account).then_some((op, id))
    }

    fn mirror(&mut self, position: u64, record: &Record) {
        if let Record::Kept { opening: Some(opening), .. } = record
            && let Some((channel, expires)) = opened(opening, self.domain)
        {
            self.mirrored.insert(channel, Mirrored { expires, last: position, forgotten: false });
        } else if let Some(kept) =
            record.mirrored(self.domain).and_then(|channel| self.mirrored.get_mut(&channel))
        {
            (kept.last, kept.forgotten) = (position, matches!(record, Record::Over(_)));
        }
    }

    /// Returns the plan for the lines up to and with `until`: of what has a line behind it, nothing goes.
    #[must_use]
    pub fn plan(mut self, until: u64) -> Plan {
        let Policy { manifest, node, account, .. } = &self.policy;
        let forward = self.ledger.take().map(Ledger::finish).unwrap_or_default();
        let statement = Statement::new(manifest, *node, *account);
        Plan { survey: self, until, statement, forward, folds: BTreeMap::new(), moved: BTreeMap::new() }
    }
}

/// Says of each line what becomes of it.
///
/// The lines are read in order, a part at a time: [`Plan::read`] for each of the part, then [`Plan::verdict`] for each
/// again, then [`Plan::next_part`]. Sums are made within a part, so that parts may be replaced one by one, the last one
/// first: with any number of the last parts replaced the journal is whole.
#[derive(Debug)]
pub struct Plan {
    survey: Survey,
    until: u64,
    statement: Statement,
    /// What is brought forward of an issuer's books.
    forward: Brought,
    /// Where in this part a sum is to stand.
    folds: BTreeMap<u64, Line>,
    /// Where the sum of a channel, an epoch and a kind stands so far.
    moved: BTreeMap<(ChannelId, Epoch, Kind), u64>,
}

impl Plan {
    /// Learns what the line at `position` moved.
    pub fn read(&mut self, position: u64, record: &Record) {
        self.statement.take(record);
        let is_sum = matches!(record, Record::Moved(_));
        for line in self.statement.drain() {
            let Some(channel) = line.channel.filter(|channel| is_sum || self.is_over(*channel)) else {
                continue;
            };
            let before = self.moved.insert((channel, line.epoch, line.kind), position);
            let before = before.and_then(|at| self.folds.remove(&at));
            self.folds.insert(position, before.map_or(line, |before| sum(&before, &line)));
        }
    }

    /// Returns what becomes of the line at `position`, which was read in this part.
    #[must_use]
    pub fn verdict(&self, position: u64, record: &Record) -> Verdict {
        if let Some(line) = self.folds.get(&position) {
            return Verdict::Replace(Box::new(Record::Moved(*line)));
        }
        if let Some(line) = self.forward.lines.get(&position) {
            return Verdict::Replace(Box::new(Record::Forward(line.clone())));
        }
        if self.keeps(position, record) { Verdict::Keep } else { Verdict::Drop }
    }

    /// Goes on with the next part.
    pub fn next_part(&mut self) {
        self.folds.clear();
        self.moved.clear();
    }

    fn keeps(&self, position: u64, record: &Record) -> bool {
        let Survey { policy, domain, step, .. } = &self.survey;
        if let Record::Step { op, .. } = record {
            let is_last = step.is_some_and(|(last, _)| last == position);
            let opens = |(op, _): (AccountOp, RecordId)| matches!(op.body, OpBody::OpenChannel(_));
            (is_last && !mutant::is_in("prune-last-step")) || !self.survey.own_step(op).is_some_and(opens)
        } else if let Record::GivenUp(op) = record {
            step.is_some_and(|(_, last)| last == *op)
        } else if let Record::Ended { expires, .. } = record {
            !policy.is_over(*expires)
        } else if let Record::Missing(Booked { expires, .. }) = record {
            !policy.is_over(expires.plus(VALIDITY_EPOCHS_MAX))
        } else if let Record::Books(BooksRecord::Checkpoint(checkpoint)) = record {
            let epoch = checkpoint.peek_in(*domain).map(|(checkpoint, ..)| checkpoint.epoch);
            // An issuer's are what its lines are compared with.
            (policy.is_issuer && position >= self.forward.before)
                || epoch.is_none_or(|epoch| self.survey.checkpoints.contains(&epoch))
        } else if is_issuers(record) {
            position >= self.forward.before
        } else if let Record::Over(channel) = record {
            // It goes when what it puts an end to has gone: that may stand in a part that is replaced after this one.
            self.survey.mirrored.contains_key(channel)
        } else if let Record::Kept { opening, .. } = record {
            let channel = record.mirrored(*domain);
            channel.is_none_or(|channel| self.keeps_mirrored(channel, position, opening.is_some()))
        } else if let Record::Job(job) = record {
            self.survey.job.1 == position || !self.is_old_job(job)
        } else {
            // A sum stands where it was put, and nowhere else.
            let is_over = record.channel(*domain).is_some_and(|channel| self.is_over(channel));
            !is_over && !matches!(record, Record::Moved(_))
        }
    }

    /// Says whether a job ran on a channel of which only sums are kept, or long ago on none that is known here.
    fn is_old_job(&self, job: &JobRecord) -> bool {
        let policy = &self.survey.policy;
        match job.channel.filter(|channel| self.survey.channels.contains_key(channel)) {
            Some(channel) => self.is_over(channel),
            None => policy.manifest.epoch(job.end) < policy.over_before(),
        }
    }

    /// Says whether only what it moved is kept of a channel.
    fn is_over(&self, channel: ChannelId) -> bool {
        let Survey { policy, step, .. } = &self.survey;
        let Some(seen) = self.survey.channels.get(&channel) else { return false };
        let is_last = step.is_some_and(|(_, op)| channel == op.into());
        policy.is_old(seen.expires) && seen.last <= self.until && !is_last && !policy.open.contains(&channel)
    }

    /// Says whether a mirror needs a line: of a channel that it keeps, the proof and the newest receipt.
    fn keeps_mirrored(&self, channel: ChannelId, position: u64, proves: bool) -> bool {
        let Some(kept) = self.survey.mirrored.get(&channel) else { return false };
        let is_gone = kept.forgotten || self.survey.policy.is_over(kept.expires);
        !(is_gone && kept.last <= self.until) && (proves || kept.last == position)
    }
}

/// Returns one line for two of the same channel, epoch and kind.
fn sum(before: &Line, line: &Line) -> Line {
    Line {
        credit: before.credit.saturating_add(line.credit),
        debit: before.debit.saturating_add(line.debit),
        ..*line
    }
}

fn opened(opening: &Opening<Wire>, domain: DomainId) -> Option<(ChannelId, Epoch)> {
    let (op, id, _) = opening.op.peek_in(domain)?;
    let OpBody::OpenChannel(open) = op.body else { return None };
    Some((id.into(), open.expires))
}
