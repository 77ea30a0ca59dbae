//! `ledger verify`: the whole journal is read again and everything in it checked, beside the running node.

use protocol::audit::Audit;
use protocol::record::Record;

use crate::api::views::{CheckView, VerifyView};
use crate::command::Reply;
use crate::journal::{History, Position};

use super::Driver;

impl Driver {
    pub(super) fn on_verify(&self, reply: Reply<VerifyView>) {
        let (history, until) = (self.durable.history(), self.durable.position());
        let audit = Audit::new(self.node.manifest().clone());
        let clock = self.clock;
        tokio::task::spawn_blocking(move || {
            let begun = clock.now_ms();
            let view = verify(&history, until, audit);
            // Whoever asked may have gone.
            let _ = reply.send(Ok(VerifyView { took_ms: clock.now_ms() - begun, ..view }));
        });
    }
}

fn verify(history: &History, until: Position, mut audit: Audit) -> VerifyView {
    let mut unreadable = Vec::new();
    let read =
        history.replay(Position::default(), until, |position, _, bytes| match Record::from_bytes(bytes) {
            Ok(record) => audit.check(record),
            Err(error) => unreadable.push(format!("record {position} cannot be read: {error}")),
        });
    let findings = audit.finish();
    let mut problems: Vec<String> = findings.problems.into_iter().chain(unreadable).collect();
    // The journal itself checks lengths, checksums and the chain of hashes.
    problems.extend(read.err().map(|error| error.to_string()));
    let view = |(name, ok, detail)| CheckView { name, ok, detail };
    let checks: Vec<CheckView> = findings.checks.into_iter().map(view).collect();
    VerifyView {
        ok: problems.is_empty() && checks.iter().all(|check| check.ok),
        records: findings.records,
        signatures: findings.signatures,
        receipts: findings.receipts,
        checks,
        problems,
        took_ms: 0,
    }
}
