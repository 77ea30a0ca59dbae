//! Prunes the journal beside the running node: once a day by itself, and when its owner says so.

use std::sync::mpsc;
use std::time::Duration;

use protocol::pruning::Policy;

use crate::api::views::PruneView;
use crate::command::Reply;
use crate::exit::{Failure, FailureKind};
use crate::journal::JournalError;
use crate::journal::pruning::Pruned;
use crate::pruning::prune;

use super::Driver;

/// How long after its start a node first looks at what it need not keep: what was asked of it comes first.
const FIRST_MS: u64 = 10 * 60 * 1000;

/// How often it looks again.
const EVERY_MS: u64 = 24 * 60 * 60 * 1000;

/// How long a journal may take to begin a new segment when its owner wants all others pruned.
const SEAL_MAX: Duration = Duration::from_secs(30);

/// How long an owner waits for the index at most.
const INDEX_MAX_MS: u64 = 60_000;

/// When the journal is pruned next, and whoever waits for it.
#[derive(Debug, Default)]
pub(super) struct Pruning {
    /// When the node looks by itself; nothing while it has not begun to wait.
    next_ms: Option<u64>,
    running: Option<Running>,
    told: Option<Told>,
}

#[derive(Debug)]
struct Running {
    done: mpsc::Receiver<Result<Pruned, JournalError>>,
    reply: Option<Reply<PruneView>>,
    before: u32,
}

/// An owner who is told what was done when the index answers again.
#[derive(Debug)]
struct Told {
    reply: Reply<PruneView>,
    view: PruneView,
    until_ms: u64,
}

impl Driver {
    /// Prunes now, all that is on disk.
    pub(super) fn prune(&mut self, keep_epochs: Option<u32>, reply: Reply<PruneView>) {
        let refused = if self.pruning.is_busy() {
            Some("the journal is being pruned already: ask again in a while")
        } else {
            self.keeps_all()
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
        if now >= next && !self.pruning.is_busy() && self.keeps_all().is_none() {
            self.pruning.next_ms = Some(now + EVERY_MS);
            self.begin_pruning(self.config.keep_epochs, None, None);
        }
    }

    /// Says why nothing may be pruned now.
    fn keeps_all(&self) -> Option<&'static str> {
        if self.node.recovery().is_some() {
            Some("this node is getting back what it lost: ask again when it has")
        } else if self.node.clock_off_ms().is_some() {
            Some("this machine's clock is wrong, so it does not know what is over: set it right first")
        } else {
            None
        }
    }

    fn begin_pruning(
        &mut self,
        keep_epochs: u32,
        sealed: Option<mpsc::Receiver<()>>,
        reply: Option<Reply<PruneView>>,
    ) {
        let policy = Policy::of(&self.node, keep_epochs, self.now());
        let before = policy.over_before().0;
        let (history, durable) = (self.durable.history(), self.durable.position());
        let ((sender, done), stale) = (mpsc::channel(), self.durable.stale_mark());
        let run = move || {
            // Without a new segment the last one is left as it is.
            let _ = sealed.map(|sealed| sealed.recv_timeout(SEAL_MAX));
            // What is gone from the journal is still in the index, whatever happens before that is made again.
            let pruned =
                stale.set().map_err(|source| JournalError::Io { path: stale.path().to_owned(), source });
            // A node that has stopped waits for nobody.
            let _ = sender.send(pruned.and_then(|()| prune(&history, durable, policy)));
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
        let now = self.clock.now_ms();
        let is_due = |told: &mut Told| told.until_ms <= now || self.durable.reader().is_some();
        if let Some(Told { reply, view, .. }) = self.pruning.told.take_if(is_due) {
            super::answers::answer(reply, Ok(view));
        }
        let Some(running) = &self.pruning.running else { return };
        let done = match running.done.try_recv() {
            Err(mpsc::TryRecvError::Empty) => return,
            Err(mpsc::TryRecvError::Disconnected) => {
                Err("the thread that pruned the journal ended in a panic".to_owned())
            }
            Ok(done) => done.map_err(|error| error.to_string()),
        };
        let Some(Running { reply, before, .. }) = self.pruning.running.take() else { return };
        if done.as_ref().map_or(true, |pruned| pruned.segments > 0) {
            self.durable.reindex();
        } else {
            self.durable.stale_mark().clear();
        }
        match done {
            Ok(pruned) => {
                tracing::info!(before, ?pruned, "Pruned the journal");
                let (view, until_ms) = (view(&pruned, before), now + INDEX_MAX_MS);
                self.pruning.told = reply.map(|reply| Told { reply, view, until_ms });
            }
            Err(error) => {
                tracing::error!(%error, "The journal was not pruned");
                if let Some(reply) = reply {
                    let failure = Failure::internal(format!("the journal was not pruned: {error}"));
                    super::answers::answer(reply, Err(failure));
                }
            }
        }
    }
}

impl Pruning {
    const fn is_busy(&self) -> bool {
        self.running.is_some() || self.told.is_some()
    }
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
