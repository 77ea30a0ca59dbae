//! What the index holds of the journal's records: what a person asks for by name or by time.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use protocol::ids::{AccountId, ChannelId, DomainId, JobId, ModelId, NodeId, RecordId};
use protocol::job::JobRecord;
use protocol::ledger::records::{Markup, OpBody, SplitLine, Terms};
use protocol::message::{Opening, Wire};
use protocol::price::{Price, Usage};
use protocol::record::Record;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::journal::{Head, History, Position};
use crate::store::{ApplyError, Order, Put, Reader, SCAN_MAX, Scan, Store, StoreError, Tree};

/// A receipt as the index has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReceiptEntry {
    pub(super) id: RecordId,
    pub(super) channel: ChannelId,
    pub(super) sequence: u64,
    pub(super) amount: u64,
    pub(super) usage: Usage,
    pub(super) epoch: u32,
    pub(super) cosigned: bool,
}

/// A channel as the index has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ChannelEntry {
    pub(super) paying: bool,
    pub(super) payer: AccountId,
    pub(super) payee: AccountId,
    pub(super) payee_node: NodeId,
    pub(super) model: ModelId,
    pub(super) terms: RecordId,
    pub(super) price: Price,
    pub(super) split: Vec<SplitLine>,
    pub(super) cap: u64,
}

/// What the issuer has paid out of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct RedeemedEntry {
    pub(super) amount: u64,
    pub(super) closed: bool,
}

const RECEIPT: u8 = b'r';
const HEAD: u8 = b'h';
const REDEEMED: u8 = b'p';

/// Follows the journal with the index, which is opened, and when it is in doubt rebuilt, beside the running node.
pub(super) struct Indexer {
    store: Option<Store>,
    domain: DomainId,
    /// Entries of records that are not durable yet, or that the index had no room for.
    waiting: VecDeque<(Position, Head, Vec<Put>)>,
    /// Entries were dropped: the index must be rebuilt from the journal, which has them.
    incomplete: bool,
    mending: Option<mpsc::Receiver<Mended>>,
    /// When a rebuild that failed may be tried again.
    mend_at: Option<Instant>,
}

/// An index that was opened or rebuilt, and up to where it has everything; `None` when a rebuild failed.
type Mended = io::Result<(Store, Option<Position>)>;

/// Where the journal ends that an index is opened for.
pub(super) struct JournalEnd {
    pub(super) history: History,
    pub(super) position: Position,
    pub(super) head: Head,
}

/// Bounds the entries that wait for an index that is slow or away; beyond, they are read from the journal again.
pub(super) const WAITING_MAX: usize = 100_000;

/// How long after a rebuild that failed another is tried: the disk may have room by then.
const MEND_AGAIN: Duration = Duration::from_secs(60);

impl Indexer {
    /// Begins to open the index in the folder `path`, for a journal that was read, on a thread of its own.
    pub(super) fn open(path: PathBuf, domain: DomainId, end: JournalEnd) -> io::Result<Self> {
        let mending = on_thread(move || open_index(&path, domain, &end))?;
        let (waiting, mending) = (VecDeque::new(), Some(mending));
        Ok(Self { store: None, domain, waiting, incomplete: false, mending, mend_at: None })
    }

    /// Waits for the index to be opened, but no longer than `patience`: a large one is opened beside the running node.
    pub(super) fn wait(&mut self, patience: Duration) -> io::Result<()> {
        let opened = self.mending.as_ref().map(|opening| opening.recv_timeout(patience));
        if let Some(Ok(opened)) = opened {
            let (store, mended) = opened?;
            self.on_mended(store, mended);
        }
        Ok(())
    }

    pub(super) fn push(&mut self, position: Position, head: Head, record: &Record) {
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.clear();
            self.incomplete = true;
        }
        self.waiting.push_back((position, head, puts(position, record, self.domain)));
    }

    pub(super) fn apply_up_to(&mut self, durable: Position) {
        let Some(store) = self.store.as_ref().filter(|_| !self.incomplete) else { return };
        while let Some((position, head, puts)) = self.waiting.pop_front() {
            if position > durable {
                self.waiting.push_front((position, head, puts));
                return;
            }
            match store.apply(position, head, puts) {
                Ok(()) => {}
                Err(ApplyError::Full(puts)) => {
                    self.waiting.push_front((position, head, puts));
                    return;
                }
                Err(error @ ApplyError::TooLong { .. }) => {
                    tracing::error!(%error, %position, "The index goes on without a record");
                }
                Err(error @ ApplyError::Store(_)) => {
                    tracing::warn!(%error, "The index does not take a record");
                    self.incomplete = true;
                    return;
                }
            }
        }
    }

    /// Has the index rebuilt.
    pub(super) fn doubt(&mut self) {
        self.incomplete = true;
    }

    /// Rebuilds an index that is in doubt, on a thread of its own; until then it does not answer.
    pub(super) fn mend(&mut self, history: &History, durable: Position) {
        if let Some(done) = &self.mending {
            match done.try_recv() {
                Ok(Ok((store, mended))) => self.on_mended(store, mended),
                Ok(Err(error)) => {
                    tracing::error!(%error, "The index cannot be opened: restart the node to try again");
                    self.mending = None;
                }
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => {
                    tracing::error!("The index is gone: restart the node to have it rebuilt");
                    self.mending = None;
                }
            }
            return;
        }
        if self.mend_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let incomplete = self.incomplete;
        let is_doubtful = |store: &mut Store| incomplete || store.reader().get(Tree::Meta, b"?").is_err();
        let Some(mut store) = self.store.take_if(is_doubtful) else { return };
        self.incomplete = false;
        let (history, domain) = (history.clone(), self.domain);
        let run = move || {
            let begun = store.rebuild().map_err(anyhow::Error::from);
            let mended =
                begun.and_then(|()| catch_up(&store, &history, Position::default(), durable, domain));
            if let Err(error) = &mended {
                tracing::error!(%error, "The index could not be rebuilt; trying again in a minute");
            }
            Ok((store, mended.is_ok().then_some(durable)))
        };
        match on_thread(run) {
            Ok(receiver) => self.mending = Some(receiver),
            Err(error) => tracing::error!(%error, "No thread for rebuilding the index"),
        }
    }

    fn on_mended(&mut self, store: Store, mended: Option<Position>) {
        self.mending = None;
        self.store = Some(store);
        if let Some(position) = mended {
            self.waiting.retain(|(at, _, _)| *at > position);
            self.mend_at = None;
            tracing::info!("The index is whole again");
        } else {
            self.incomplete = true;
            self.mend_at = Some(Instant::now() + MEND_AGAIN);
        }
    }

    /// Says whether the index has everything.
    pub(super) fn is_current(&self) -> bool {
        self.waiting.is_empty() && !self.incomplete && self.store.is_some()
    }

    pub(super) fn reader(&self) -> Option<Reader> {
        self.store.as_ref().filter(|_| !self.incomplete).map(Store::reader)
    }
}

/// Opens, repairs or catches up with an index where that may take its time.
fn on_thread(run: impl FnOnce() -> Mended + Send + 'static) -> io::Result<mpsc::Receiver<Mended>> {
    let (sender, receiver) = mpsc::channel();
    // A node that has stopped needs no index.
    let run = move || drop(sender.send(run()));
    std::thread::Builder::new().name("mend".to_owned()).spawn(run)?;
    Ok(receiver)
}

fn open_index(path: &Path, domain: DomainId, end: &JournalEnd) -> Mended {
    let JournalEnd { history, position, head } = end;
    let head_at = |at: Position| match at {
        Position(0) => None,
        at if at == *position => Some(*head),
        // What cannot be read is not what the index was made from.
        at => history.head_at(at).ok().flatten(),
    };
    let (store, opened) = Store::open(path, head_at)?;
    if let Some(why) = &opened.rebuild {
        tracing::info!(%why, "Rebuilding the index from the journal");
    }
    let whole = catch_up(&store, history, opened.position, *position, domain);
    if let Err(error) = &whole {
        tracing::error!(%error, "The index does not follow the journal");
    }
    Ok((store, whole.is_ok().then_some(*position)))
}

/// Gives an index what the journal has behind `after`, up to and with `until`; all of it can be read then.
fn catch_up(
    store: &Store,
    history: &History,
    after: Position,
    until: Position,
    domain: DomainId,
) -> anyhow::Result<()> {
    let mut failed = None;
    history.replay(after, until, |position, head, bytes| {
        if let (Ok(record), None) = (Record::read_back(bytes), &failed) {
            failed = put_in(store, position, *head, puts(position, &record, domain)).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    Ok(store.flush()?)
}

/// Applies entries, however busy the index is.
fn put_in(store: &Store, position: Position, head: Head, mut entries: Vec<Put>) -> Result<(), StoreError> {
    loop {
        match store.apply(position, head, entries) {
            Ok(()) => return Ok(()),
            Err(ApplyError::Full(back)) => {
                entries = back;
                store.flush()?;
            }
            Err(error @ ApplyError::TooLong { .. }) => {
                tracing::error!(%error, %position, "The index goes on without a record");
                return Ok(());
            }
            Err(ApplyError::Store(error)) => return Err(error),
        }
    }
}

/// Returns the entries that a record makes.
fn puts(position: Position, record: &Record, domain: DomainId) -> Vec<Put> {
    let at = position.0.to_be_bytes();
    match record {
        Record::Paying(opening) => channel_puts(opening, true, domain),
        Record::Paid(opening) => channel_puts(opening, false, domain),
        Record::Receipt(receipt) => {
            let Some((value, id, signers)) = receipt.peek_in(domain) else { return Vec::new() };
            let entry = ReceiptEntry {
                id,
                channel: value.channel,
                sequence: value.sequence,
                amount: value.amount,
                usage: value.usage,
                epoch: value.epoch.0,
                cosigned: signers > 1,
            };
            Vec::from([
                put(Tree::Receipts, &at, &entry),
                put(Tree::Meta, &key(RECEIPT, &id.0), &position.0),
                put(Tree::Meta, &key(HEAD, &value.channel.0), &position.0),
            ])
        }
        Record::Job(job) => Vec::from([put(Tree::Jobs, &job.job.0, job)]),
        Record::Redeemed(ack) => {
            let Some((ack, _, _)) = ack.peek_in(domain) else { return Vec::new() };
            let entry = RedeemedEntry { amount: ack.amount, closed: ack.closed };
            Vec::from([put(Tree::Meta, &key(REDEEMED, &ack.channel.0), &entry)])
        }
        Record::Joined { .. }
        | Record::Step { .. }
        | Record::Final(_)
        | Record::Ticket { .. }
        | Record::Admitted { .. }
        | Record::Deposited(_)
        | Record::Stepped { .. }
        | Record::PaidOut { .. }
        | Record::Closed(_)
        | Record::Expired(_)
        | Record::Books(_)
        | Record::Taken(_)
        | Record::Text(_)
        | Record::WithdrawalPaid(_)
        | Record::Noticed(_)
        | Record::Lineage(_)
        | Record::Authorised { .. }
        | Record::Delegated { .. }
        // The channel is another node's, which keeps its receipts.
        | Record::Lent { .. }
        | Record::Kept { .. }
        | Record::Over(_)
        | Record::Recovering
        | Record::Ended { .. }
        | Record::Recovered(_)
        | Record::Missing(_)
        | Record::Forward(_)
        | Record::GivenUp(_)
        | Record::Moved(_)
        | Record::Voted { .. }
        | Record::Certified { .. }
        | Record::Endorsed { .. }
        | Record::Promised { .. }
        | Record::Counted { .. }
        | Record::Concluded(_)
        | Record::Vouched(_)
        | Record::Agreed(_) => Vec::new(),
    }
}

fn channel_puts(opening: &Opening<Wire>, paying: bool, domain: DomainId) -> Vec<Put> {
    let (Some((op, id, _)), Some((terms, terms_id, _))) =
        (opening.op.peek_in(domain), opening.terms.peek_in(domain))
    else {
        return Vec::new();
    };
    let OpBody::OpenChannel(open) = op.body else { return Vec::new() };
    let Terms { payee, payee_account, model, price, mut split, markup, .. } = terms;
    split.extend(markup.map(Markup::line));
    let entry = ChannelEntry {
        paying,
        payer: op.account,
        payee: payee_account,
        payee_node: payee,
        model,
        terms: terms_id,
        price,
        split,
        cap: open.cap,
    };
    Vec::from([put(Tree::Channels, &id.0, &entry)])
}

fn put<T: Serialize>(tree: Tree, key: &[u8], value: &T) -> Put {
    Put { tree, key: key.to_vec(), value: protocol::encoding::encode(value) }
}

fn key(kind: u8, id: &[u8; 32]) -> [u8; 33] {
    let mut key = [kind; 33];
    key[1..].copy_from_slice(id);
    key
}

/// Asks the index; every call blocks.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) reader: Reader,
    /// What models are called, for the models that are known.
    pub(super) names: BTreeMap<ModelId, String>,
}

impl Asker {
    fn get<T: Serialize + DeserializeOwned>(&self, tree: Tree, key: &[u8]) -> Result<Option<T>, StoreError> {
        Ok(self.reader.get(tree, key)?.and_then(|bytes| protocol::encoding::decode(&bytes, VALUE_MAX).ok()))
    }

    /// Returns what a model is called, or its id when nobody who is known serves it.
    pub(super) fn name(&self, model: ModelId) -> String {
        self.names.get(&model).cloned().unwrap_or_else(|| model.to_string())
    }

    pub(super) fn channel(&self, channel: ChannelId) -> Result<Option<ChannelEntry>, StoreError> {
        self.get(Tree::Channels, &channel.0)
    }

    /// Returns the channels that were ever opened.
    pub(super) fn channels(&self) -> Result<Vec<(ChannelId, ChannelEntry)>, StoreError> {
        let scan = Scan { prefix: &[], order: Order::Ascending, limit: SCAN_MAX, cursor: None };
        let read = |(key, value): (Vec<u8>, Vec<u8>)| {
            let id = ChannelId(key.try_into().ok()?);
            Some((id, protocol::encoding::decode(&value, VALUE_MAX).ok()?))
        };
        Ok(self.reader.scan(Tree::Channels, scan)?.into_iter().filter_map(read).collect())
    }

    pub(super) fn redeemed(&self, channel: ChannelId) -> Result<Option<RedeemedEntry>, StoreError> {
        self.get(Tree::Meta, &key(REDEEMED, &channel.0))
    }

    pub(super) fn job(&self, job: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.get(Tree::Jobs, &job.0)
    }

    /// Returns the jobs of a channel, as far as they are found among so many jobs of all.
    pub(super) fn jobs_of(&self, channel: ChannelId) -> Result<JobsOf, StoreError> {
        let (mut found, mut cursor) = (JobsOf::default(), None::<Vec<u8>>);
        for _ in 0..JOBS_SCANNED_MAX / SCAN_MAX {
            let scan =
                Scan { prefix: &[], order: Order::Ascending, limit: SCAN_MAX, cursor: cursor.as_deref() };
            let entries = self.reader.scan(Tree::Jobs, scan)?;
            let records =
                entries.iter().filter_map(|(_, bytes)| protocol::encoding::decode(bytes, VALUE_MAX).ok());
            found.jobs.extend(records.filter(|record: &JobRecord| record.channel == Some(channel)));
            if entries.len() < SCAN_MAX {
                return Ok(JobsOf { is_whole: true, ..found });
            }
            cursor = entries.into_iter().last().map(|(key, _)| key);
        }
        Ok(found)
    }

    /// Returns the newest receipt of a channel.
    pub(super) fn head(&self, channel: ChannelId) -> Result<Option<ReceiptEntry>, StoreError> {
        let at: Option<u64> = self.get(Tree::Meta, &key(HEAD, &channel.0))?;
        at.map_or(Ok(None), |at| self.get(Tree::Receipts, &at.to_be_bytes()))
    }

    /// Returns the receipts whose ids begin so, at most two.
    pub(super) fn receipts_beginning(
        &self,
        prefix: &[u8],
    ) -> Result<Vec<(Position, ReceiptEntry)>, StoreError> {
        let prefix = [&[RECEIPT], prefix].concat();
        let scan = Scan { prefix: &prefix, order: Order::Ascending, limit: 2, cursor: None };
        let mut found = Vec::new();
        for (_, value) in self.reader.scan(Tree::Meta, scan)? {
            let Ok(at) = protocol::encoding::decode::<u64>(&value, VALUE_MAX) else { continue };
            if let Some(entry) = self.get(Tree::Receipts, &at.to_be_bytes())? {
                found.push((Position(at), entry));
            }
        }
        Ok(found)
    }

    /// Returns receipts, newest first, each once, behind `before`.
    pub(super) fn receipts(
        &self,
        limit: usize,
        before: Option<Position>,
    ) -> Result<Vec<(Position, ReceiptEntry)>, StoreError> {
        let mut cursor = before.map(|position| position.0.to_be_bytes().to_vec());
        let mut found = Vec::new();
        while found.len() < limit {
            let page = Scan { prefix: &[], order: Order::Descending, limit: 256, cursor: cursor.as_deref() };
            let entries = self.reader.scan(Tree::Receipts, page)?;
            let Some((last, _)) = entries.last() else { break };
            cursor = Some(last.clone());
            for (at, value) in &entries {
                let Ok(entry) = protocol::encoding::decode::<ReceiptEntry>(value, VALUE_MAX) else {
                    continue;
                };
                let Ok(at) = at.as_slice().try_into().map(u64::from_be_bytes) else { continue };
                // A receipt is written again when its second signature comes: only the last one counts.
                let latest: Option<u64> = self.get(Tree::Meta, &key(RECEIPT, &entry.id.0))?;
                if latest == Some(at) && found.len() < limit {
                    found.push((Position(at), entry));
                }
            }
        }
        Ok(found)
    }
}

/// Jobs of a channel.
#[derive(Debug, Default)]
pub(super) struct JobsOf {
    pub(super) jobs: Vec<JobRecord>,
    /// Whether there are no others: there is no index by channel, and not all jobs of a node are looked through.
    pub(super) is_whole: bool,
}

/// Jobs looked through for those of one channel.
const JOBS_SCANNED_MAX: usize = 10_000;

/// Bounds a value; the store has a smaller bound of its own.
const VALUE_MAX: usize = 16 * 1024;
