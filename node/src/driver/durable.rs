//! What must survive: the journal, the index that follows it, and the effects that wait for the disk.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use protocol::ids::{DomainId, JobId, NodeId};
use protocol::message::{Message, Wire};
use protocol::node::Effect;
use protocol::record::Record;
use tokio::time::Instant;

use crate::folder::{DataFolder, sync_directory};
use crate::journal::{self, History, Journal, JournalError, Position, Urgency};
use crate::store::Reader;

use super::index::{Indexer, JournalEnd};

/// How long a start waits for the index, from its beginning: most need less, and larger ones must not hold it up.
const INDEX_PATIENCE: Duration = Duration::from_millis(700);

/// How long it waits at least once the journal is read.
const INDEX_PATIENCE_MIN: Duration = Duration::from_millis(50);

/// The journal, its index and what waits for either.
pub(super) struct Durable {
    journal: Option<Journal>,
    history: History,
    committed: Position,
    /// The last record that effects wait for.
    recorded: Position,
    /// Effects in order, each with the record that must be durable before.
    held: VecDeque<(Position, Effect)>,
    /// How many held messages each peer has: later ones must not overtake them.
    held_for: BTreeMap<NodeId, usize>,
    index: Indexer,
    stale: StaleMark,
    /// The mark is there, and goes when the index was made again.
    is_stale: bool,
}

/// A file that says that the index holds what is gone from the journal: it is made again at the next start, if it was not
/// before.
#[derive(Clone, Debug)]
pub(super) struct StaleMark(PathBuf);

impl StaleMark {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the mark, durably.
    pub(super) fn set(&self) -> io::Result<()> {
        fs::write(&self.0, b"")?;
        self.0.parent().map_or(Ok(()), sync_directory)
    }

    /// Removes the mark; one that stays costs a rebuild.
    pub(super) fn clear(&self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Durable {
    /// Opens the journal and its index; hands on each record, and none after one that is not taken.
    pub(super) fn open(
        folder: &DataFolder,
        domain: DomainId,
        take: impl FnMut(Record) -> Result<()>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let (journal, recovered) = follow(&folder.journal(), take)?;
        if recovered.torn_bytes > 0 {
            tracing::warn!(bytes = recovered.torn_bytes, "Cut off an unfinished write at the journal's end");
        }
        let (history, committed) = (journal.history(), recovered.position);
        let end = JournalEnd { history: history.clone(), position: committed, head: recovered.head };
        // Not before: of a large journal it takes the processor that the node needs to start.
        let mut index = Indexer::open(folder.index(), domain, end)?;
        let stale = StaleMark(folder.path().join("index.stale"));
        let is_stale = stale.path().exists();
        if is_stale {
            index.doubt();
        }
        index.wait(INDEX_PATIENCE.saturating_sub(begun.elapsed()).max(INDEX_PATIENCE_MIN))?;
        Ok(Self {
            journal: Some(journal),
            history,
            committed,
            recorded: committed,
            held: VecDeque::new(),
            held_for: BTreeMap::new(),
            index,
            stale,
            is_stale,
        })
    }

    /// Writes a record that later effects wait for.
    pub(super) fn record(&mut self, record: &Record) -> Result<Position> {
        self.recorded = self.append(record, Urgency::Now)?;
        Ok(self.recorded)
    }

    /// Writes a record that nobody waits for.
    pub(super) fn note(&mut self, record: &Record) -> Result<Position> {
        self.append(record, Urgency::Soon)
    }

    fn append(&mut self, record: &Record, urgency: Urgency) -> Result<Position> {
        let journal = self.journal.as_mut().context("the journal is closed")?;
        let position = journal
            .append(&[record.to_bytes()], urgency)
            .context("the journal takes no more records: the disk is full or too slow")?;
        self.index.push(position, journal.head(), record);
        Ok(position)
    }

    /// Returns the effect if it may happen now, or keeps it until `after` is durable. Order is kept for each peer, and
    /// what states a durable fact waits for every record written before: it may tell of any of them.
    pub(super) fn hold(&mut self, effect: Effect, after: Option<Position>) -> Option<Effect> {
        let (peer, is_fact) = if let Effect::Send(peer, message) = &effect {
            (Some(*peer), states_fact(message))
        } else {
            (None, false)
        };
        let after = after.or(Some(self.recorded).filter(|recorded| is_fact && *recorded > self.committed));
        let behind = peer.filter(|peer| self.held_for.contains_key(peer));
        let latest = self.held.back().map_or(Position::default(), |(position, _)| *position);
        let position = match (after, behind) {
            (Some(after), _) => after.max(latest),
            (None, Some(_)) => latest,
            (None, None) => return Some(effect),
        };
        if let Some(peer) = peer {
            *self.held_for.entry(peer).or_default() += 1;
        }
        self.held.push_back((position, effect));
        None
    }

    /// Waits until more is durable. Cancel safe.
    pub(super) async fn committed(&mut self) -> Result<Position, JournalError> {
        match &mut self.journal {
            Some(journal) => journal.committed().await,
            None => std::future::pending().await,
        }
    }

    /// Returns the effects that no longer wait.
    pub(super) fn release(&mut self, position: Position) -> Vec<Effect> {
        self.committed = position;
        let ready = self.held.iter().take_while(|(after, _)| *after <= position).count();
        let released: Vec<Effect> = self.held.drain(..ready).map(|(_, effect)| effect).collect();
        for effect in &released {
            if let Effect::Send(peer, _) = effect
                && let Some(count) = self.held_for.get_mut(peer)
            {
                *count -= 1;
                if *count == 0 {
                    self.held_for.remove(peer);
                }
            }
        }
        released
    }

    pub(super) fn index_up_to(&mut self, position: Position) {
        self.index.apply_up_to(position);
    }

    /// Has the journal begin a new segment; nothing when it is closed.
    pub(super) fn seal(&self) -> Option<std::sync::mpsc::Receiver<()>> {
        self.journal.as_ref().map(Journal::seal)
    }

    /// Has the index made again from the journal, of which records are gone.
    pub(super) fn reindex(&mut self) {
        self.index.doubt();
        self.is_stale = true;
    }

    pub(super) fn stale_mark(&self) -> StaleMark {
        self.stale.clone()
    }

    /// Gives the index what it had no room for, or rebuilds it when it is in doubt.
    pub(super) fn index_retry(&mut self) {
        self.index.apply_up_to(self.committed);
        self.index.mend(&self.history, self.committed);
        if self.is_stale && self.index.reader().is_some() {
            self.is_stale = false;
            self.stale.clear();
        }
    }

    pub(super) fn reader(&self) -> Option<Reader> {
        self.index.reader()
    }

    /// Returns up to where records are durable.
    pub(super) const fn position(&self) -> Position {
        self.committed
    }

    pub(super) fn history(&self) -> History {
        self.history.clone()
    }

    /// Says whether the index has everything that was written.
    pub(super) fn is_indexed(&self) -> bool {
        self.index.is_current()
    }

    /// Says whether nothing waits for the disk.
    pub(super) fn is_settled(&self) -> bool {
        self.held.is_empty()
    }

    /// Says whether a word on a job waits for the disk.
    pub(super) fn holds_word_on(&self, job: JobId) -> bool {
        self.held.iter().any(|(_, effect)| matches!(effect, Effect::Tell(about, _) if *about == job))
    }

    /// Commits everything and closes.
    pub(super) fn close(&mut self) -> Result<()> {
        if let Some(journal) = self.journal.take() {
            journal.close()?;
        }
        Ok(())
    }
}

/// Opens the journal and hands on each record, and none after one that is not taken: it is read and checked on a thread of
/// its own meanwhile. Only bytes go from one thread to the other, because what is read out of them is forgotten soon, and
/// memory is given back soonest where it was taken.
fn follow(path: &Path, mut take: impl FnMut(Record) -> Result<()>) -> Result<(Journal, journal::Recovered)> {
    let (sender, batches) = mpsc::sync_channel(BATCHES_MAX);
    std::thread::scope(|scope| {
        let opening = scope.spawn(move || {
            let mut batch = Batch::default();
            let each = |position: Position, _: &journal::Head, bytes: &[u8]| {
                batch.push(position, bytes);
                if batch.bytes.len() >= BATCH_BYTES {
                    // Nobody takes any more once one was refused.
                    let _ = sender.send(std::mem::take(&mut batch));
                }
            };
            let opened = Journal::open(path, journal::Options::default(), each);
            let _ = sender.send(batch);
            opened
        });
        let taken = batches.into_iter().try_for_each(|batch| {
            batch.records().try_for_each(|(position, bytes)| read(position, bytes).and_then(&mut take))
        });
        let opened = opening.join().map_err(|_| JournalError::Panicked)??;
        taken.map(|()| opened)
    })
}

/// Records as bytes, that go from one thread to the other at once.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where each stands in the journal, and where it ends in `bytes`.
    ends: Vec<(Position, usize)>,
}

impl Batch {
    fn push(&mut self, position: Position, record: &[u8]) {
        self.bytes.reserve(if self.bytes.is_empty() { BATCH_BYTES + RECORD_BYTES } else { 0 });
        self.bytes.extend_from_slice(record);
        self.ends.push((position, self.bytes.len()));
    }

    fn records(&self) -> impl Iterator<Item = (Position, &[u8])> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        begins.zip(&self.ends).map(|(begin, (position, end))| (*position, &self.bytes[begin..*end]))
    }
}

/// How many bytes go at once.
const BATCH_BYTES: usize = 64 << 10;

/// What the last record of them may add before they are moved.
const RECORD_BYTES: usize = 4 << 10;

/// Bounds how far reading may be ahead: what is read must not pile up.
const BATCHES_MAX: usize = 8;

fn read(position: Position, bytes: &[u8]) -> Result<Record> {
    Record::read_back(bytes).map_err(|error| {
        anyhow::anyhow!(
            "record {position} of the journal cannot be read ({error}): it was written by another version of \
             sharemesh; start that version, or restore the folder from a backup"
        )
    })
}

/// Says whether a message tells its receiver of what must be on our disk, whichever input wrote it there: what an
/// account holds, which step it took, what was paid out of a channel, who was admitted. Its receiver may be another than
/// the one whose message was recorded, so the order kept for each peer is not enough. What belongs to a job goes at once.
const fn states_fact(message: &Message<Wire>) -> bool {
    match message {
        Message::Joined { .. }
        | Message::AccountState { .. }
        | Message::Step { .. }
        | Message::Stepped { .. }
        | Message::StepRefused { .. }
        | Message::Redeem { .. }
        | Message::Redeemed(_)
        | Message::Close { .. }
        | Message::Lineage(_)
        | Message::Devices { .. }
        | Message::Spent(_)
        | Message::Notice(_)
        | Message::Noticed(_)
        | Message::Payout { .. }
        | Message::Withdrawal { .. }
        | Message::RedeemedKept(_)
        | Message::Channels { .. }
        | Message::Voted { .. }
        | Message::Recorded { .. }
        | Message::Fact(_)
        | Message::Deposit(_)
        | Message::CloseVoted(_)
        | Message::Facts { .. }
        | Message::Markups(_)
        | Message::MarkupsNoted(_)
        | Message::Confirm(_)
        | Message::Confirmed { .. } => true,
        Message::FactsQuery(_)
        | Message::FactQuery(_)
        | Message::Hello { .. }
        | Message::Join { .. }
        | Message::JoinRefused(_)
        | Message::Advert(_)
        | Message::AdvertQuery
        | Message::Ask { .. }
        | Message::Offer { .. }
        | Message::Refused { .. }
        | Message::AccountQuery
        | Message::Clock(_)
        | Message::Submit { .. }
        | Message::Accepted(_)
        | Message::Pay { .. }
        // A receipt is written without anybody waiting, and shown to nobody but the payer, in order.
        | Message::CoSigned(_)
        | Message::Finished { .. }
        | Message::Failed { .. }
        | Message::Cancel { .. }
        | Message::Heads(_)
        | Message::Spend { .. }
        | Message::SpendRefused { .. }
        | Message::Keep(_)
        | Message::Kept { .. }
        | Message::Compare(_)
        | Message::Compared(_)
        | Message::KeptQuery(_)
        | Message::Over(_)
        | Message::RedeemKept(_)
        | Message::ChannelsQuery(_)
        | Message::Recover(_) => false,
        Message::Books(message) => message.states_fact(),
        Message::Agreeing(message) => message.states_fact(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::{AccountId, Digest, RecordId};
    use protocol::ledger::issuer::Balance;

    use super::*;

    const PAYER: NodeId = NodeId([1; 32]);
    const PAYEE: NodeId = NodeId([2; 32]);

    #[tokio::test]
    async fn an_index_that_dropped_entries_is_read_from_the_journal_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(&folder.path().join("node")).unwrap();
        let mut durable = Durable::open(&folder, DomainId([0; 32]), |_| Ok(())).unwrap();
        let ticket = Record::Ticket { fingerprint: Digest([5; 32]), amount: 1 };
        durable.record(&ticket).unwrap();
        let position = durable.committed().await.unwrap();
        durable.release(position);
        let head = durable.journal.as_ref().unwrap().head();
        for _ in 0..super::super::index::WAITING_MAX {
            durable.index.push(position, head, &ticket);
        }
        assert!(durable.reader().is_none(), "an index with holes answers nobody");

        while !durable.is_indexed() {
            durable.index_retry();
            std::thread::yield_now();
        }

        assert!(durable.reader().is_some());
    }

    #[tokio::test]
    async fn records_come_back_in_order_and_none_after_one_that_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(&folder.path().join("node")).unwrap();
        let mut durable = Durable::open(&folder, DomainId([0; 32]), |_| Ok(())).unwrap();
        for amount in 0..5_000 {
            durable.record(&Record::Ticket { fingerprint: Digest([5; 32]), amount }).unwrap();
        }
        durable.close().unwrap();
        drop(durable);

        let mut taken = Vec::new();
        let refused = Durable::open(&folder, DomainId([0; 32]), |record| {
            let Record::Ticket { amount, .. } = record else { panic!("{record:?} was not written") };
            anyhow::ensure!(amount < 3_500, "refused");
            taken.push(amount);
            Ok(())
        });

        assert_eq!(refused.err().map(|error| error.to_string()).as_deref(), Some("refused"));
        assert_eq!(taken, (0..3_500).collect::<Vec<u64>>());
    }

    #[tokio::test]
    async fn an_index_that_holds_what_was_pruned_is_made_again_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(&folder.path().join("node")).unwrap();
        let open = || Durable::open(&folder, DomainId([0; 32]), |_| Ok(())).unwrap();
        let mark = open().stale_mark();
        mark.set().unwrap();

        let mut durable = open();
        assert!(durable.reader().is_none(), "it answers nobody before that");
        while durable.reader().is_none() {
            durable.index_retry();
            std::thread::yield_now();
        }

        assert!(!mark.path().exists());
    }

    #[tokio::test]
    async fn what_states_a_fact_waits_for_every_record_before_it_and_a_job_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(&folder.path().join("node")).unwrap();
        let mut durable = Durable::open(&folder, DomainId([0; 32]), |_| Ok(())).unwrap();
        let job = JobId([3; 16]);
        let balance = Effect::Send(
            PAYEE,
            Message::AccountState {
                account: AccountId([4; 32]),
                next: 1,
                head: RecordId::NONE,
                balance: Balance::default(),
            },
        );
        assert_eq!(durable.hold(balance.clone(), None), Some(balance.clone()), "nothing is under way");

        let ticket = Record::Ticket { fingerprint: Digest([5; 32]), amount: 1 };
        let position = durable.record(&ticket).unwrap();
        let cancel = Effect::Send(PAYER, Message::Cancel { job });

        assert_eq!(durable.hold(cancel.clone(), None), Some(cancel), "a job waits for nobody else's record");
        assert_eq!(durable.hold(balance.clone(), None), None);
        let behind = Effect::Send(PAYEE, Message::Cancel { job });
        assert_eq!(
            durable.hold(behind.clone(), None),
            None,
            "nothing overtakes what the same peer waits for"
        );
        assert_eq!(durable.committed().await.unwrap(), position);
        assert_eq!(durable.release(position), [balance, behind]);
    }
}
