//! Prunes the journal beside the running node: once a day by itself, and when its owner says so.

use std::sync::mpsc;
use std::time::Duration;

use protocol::manifest::Manifest;
use protocol::node::Node;
use protocol::pruning::{Plan, Policy, Survey, Verdict as Fate};
use protocol::record::Record;

use crate::api::views::PruneView;
use crate::command::Reply;
use crate::exit::{Failure, FailureKind};
use crate::journal::pruning::{Pruned, Pruner, Verdict};
use crate::journal::{History, JournalError, Position};

use super::Driver;

/// How long after its start a node first looks at what it need not keep: what was asked of it comes first.
const FIRST_MS: u64 = 10 * 60 * 1000;

/// How often it looks again.
const EVERY_MS: u64 = 24 * 60 * 60 * 1000;

/// How long a journal may take to begin a new segment when its owner wants all others pruned.
const SEAL_MAX: Duration = Duration::from_secs(30);

/// When the journal is pruned next, and whoever waits for it.
#[derive(Debug, Default)]
pub(super) struct Pruning {
    /// When the node looks by itself; nothing while it has not begun to wait.
    next_ms: Option<u64>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    done: mpsc::Receiver<Result<Pruned, JournalError>>,
    reply: Option<Reply<PruneView>>,
    before: u32,
}

impl Driver {
    /// Prunes now, all that is on disk.
    pub(super) fn prune(&mut self, keep_epochs: Option<u32>, reply: Reply<PruneView>) {
        let refused = if self.pruning.running.is_some() {
            Some("the journal is being pruned already: ask again in a while")
        } else if self.node.recovery().is_some() {
            Some("this node is getting back what it lost: ask again when it has")
        } else {
            None
        };
        if let Some(why) = refused {
            return super::answers::answer(reply, Err(Failure::new(FailureKind::Busy, why)));
        }
        let sealed = self.durable.seal();
        self.begin_pruning(keep_epochs.unwrap_or(self.config.keep_epochs), sealed, Some(reply));
    }

    /// Prunes when it is time, and ends what is done.
    pub(super) fn review_pruning(&mut self) {
        self.end_pruning();
        let now = self.clock.now_ms();
        let next = *self.pruning.next_ms.get_or_insert(now + FIRST_MS);
        if now >= next && self.pruning.running.is_none() && self.node.recovery().is_none() {
            self.pruning.next_ms = Some(now + EVERY_MS);
            self.begin_pruning(self.config.keep_epochs, None, None);
        }
    }

    fn begin_pruning(
        &mut self,
        keep_epochs: u32,
        sealed: Option<mpsc::Receiver<()>>,
        reply: Option<Reply<PruneView>>,
    ) {
        let policy = policy(&self.node, self.node.manifest().epoch(self.now()), keep_epochs);
        let before = policy.over_before().0;
        let (history, (sender, done)) = (self.durable.history(), mpsc::channel());
        let run = move || {
            // Without a new segment the last one is left as it is.
            let _ = sealed.map(|sealed| sealed.recv_timeout(SEAL_MAX));
            // A node that has stopped waits for nobody.
            let _ = sender.send(prune(&history, policy));
        };
        match std::thread::Builder::new().name("prune".to_owned()).spawn(run) {
            Ok(_) => self.pruning.running = Some(Running { done, reply, before }),
            Err(error) => {
                tracing::error!(%error, "No thread for pruning the journal");
                if let Some(reply) = reply {
                    super::answers::answer(reply, Err(Failure::internal(error.to_string())));
                }
            }
        }
    }

    fn end_pruning(&mut self) {
        let Some(running) = &self.pruning.running else { return };
        let done = match running.done.try_recv() {
            Err(mpsc::TryRecvError::Empty) => return,
            Err(mpsc::TryRecvError::Disconnected) => {
                Err(Failure::internal("the thread that pruned the journal ended in a panic".to_owned()))
            }
            Ok(done) => {
                done.map_err(|error| Failure::internal(format!("the journal was not pruned: {error}")))
            }
        };
        let Some(Running { reply, before, .. }) = self.pruning.running.take() else { return };
        match &done {
            Ok(pruned) if pruned.segments > 0 => {
                let Pruned { dropped, folded, left, bytes_before, bytes_after, .. } = *pruned;
                tracing::info!(
                    before,
                    dropped,
                    folded,
                    left,
                    bytes_before,
                    bytes_after,
                    "Pruned the journal"
                );
                self.durable.reindex();
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "The journal was not pruned"),
        }
        if let Some(reply) = reply {
            super::answers::answer(reply, done.map(|pruned| view(&pruned, before)));
        }
    }
}

fn policy(node: &Node, epoch: protocol::ledger::records::Epoch, keep_epochs: u32) -> Policy {
    Policy {
        manifest: Manifest::clone(node.manifest()),
        node: node.id(),
        account: node.account(),
        is_issuer: node.books().is_some(),
        epoch,
        keep_epochs,
        open: node.channels().into_iter().map(|view| view.channel).collect(),
    }
}

fn prune(history: &History, policy: Policy) -> Result<Pruned, JournalError> {
    history.prune(&mut Lines::Surveyed(Box::new(Survey::new(policy))))
}

fn view(pruned: &Pruned, before: u32) -> PruneView {
    PruneView {
        before,
        records: pruned.left + pruned.dropped - pruned.folded,
        dropped: pruned.dropped - pruned.folded,
        folded: pruned.folded,
        bytes_before: pruned.bytes_before,
        bytes_after: pruned.bytes_after,
    }
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
            Fate::Fold(line) => Verdict::Replace(Record::Moved(line).to_bytes()),
        }
    }

    fn next_segment(&mut self) {
        if let Self::Planned(plan) = self {
            plan.next_part();
        }
    }
}
