//! Says in the log how long each step of a job took, under the names that it has on both of its nodes.

use protocol::ids::JobId;
use protocol::job::Trace;
use tracing::Span;

/// The steps of one job on one of its nodes; nothing of what is asked or answered is in them.
#[derive(Debug)]
pub(super) struct Steps {
    span: Span,
    since_ms: u64,
}

impl Steps {
    /// Begins to measure; `side` is what this node is in the job.
    pub(super) fn begin(side: &'static str, job: JobId, trace: Trace, now_ms: u64) -> Self {
        Self { span: tracing::debug_span!("job", side, %job, %trace), since_ms: now_ms }
    }

    /// Notes that a step is done; `count` is how many tokens, or vectors, it was about.
    pub(super) fn done(&mut self, step: &'static str, count: u32, now_ms: u64) {
        let ms = now_ms.saturating_sub(self.since_ms);
        self.took(step, count, ms);
        self.since_ms = now_ms;
    }

    /// Notes a step within another, which has taken so long.
    pub(super) fn took(&self, step: &'static str, count: u32, ms: u64) {
        self.span.in_scope(|| tracing::debug!(step, count, ms, "Step"));
    }
}
