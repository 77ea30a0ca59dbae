//! `ledger audit`, and what the status says of the issuers' books.

use protocol::ledger::equivocation::Equivocation;
use protocol::ledger::merkle::SumRoot;
use protocol::ledger::records::Epoch;
use protocol::node::{AuditState, Input, OwnLeaf, OwnerCommand};

use crate::api::views::{AuditView, BooksStateView, DistrustedView, Money, OwnLeafView, TreeView};
use crate::command::Reply;
use crate::exit::{Failure, FailureKind};

use super::Driver;

impl Driver {
    pub(super) fn audit(&mut self, epoch: Option<u32>, reply: Reply<Box<AuditView>>) {
        if self.waiting.auditing.is_some() {
            let failure =
                Failure::new(FailureKind::Busy, "another audit is under way: try again in a moment");
            // Whoever asked may have gone.
            let _ = reply.send(Err(failure.retry_after(1_000)));
            return;
        }
        self.inputs.push_back(Input::Owner(OwnerCommand::Audit(epoch.map(Epoch))));
        self.waiting.auditing = Some(reply);
    }

    pub(super) fn answer_audit(&mut self) {
        let is_begun = !self.inputs.iter().any(|input| matches!(input, Input::Owner(OwnerCommand::Audit(_))));
        let Some(audit) = self.node.audit_view().filter(|_| is_begun && self.waiting.auditing.is_some())
        else {
            return;
        };
        if audit.state == AuditState::Running {
            return;
        }
        let answer = audit_view(audit).map(Box::new);
        if let Some(reply) = self.waiting.auditing.take() {
            let _ = reply.send(answer);
        }
    }

    pub(super) fn books_state(&self) -> BooksStateView {
        let books = self.node.books_view();
        let own_leaf = match (books.newest, books.own) {
            (None, _) => "",
            (Some(_), None) => "waiting",
            (Some(_), Some(OwnLeaf::Proved)) => "proved",
            (Some(_), Some(OwnLeaf::Included)) => "included",
            (Some(_), Some(OwnLeaf::Absent)) => "absent",
            (Some(_), Some(OwnLeaf::Wrong)) => "wrong",
        };
        let finding =
            |finding: &protocol::ledger::finding::Finding| (finding.name().to_owned(), finding.to_string());
        let manifest = self.node.manifest();
        let proof = |proof: &Equivocation<protocol::message::Checked>| {
            let what = match proof {
                Equivocation::Checkpoints(first, _) => format!("two checkpoints of epoch {}", first.epoch.0),
                Equivocation::Steps(first, _) => format!("two steps {}", first.sequence),
            };
            let culprit = proof.culprit(manifest).map(|key| format!("{key:?}")).unwrap_or_default();
            let (first, second) = proof.ids();
            format!("{culprit} signed {what}: {first} and {second}")
        };
        BooksStateView {
            checkpoint_epoch: books.newest.map(|newest| u64::from(newest.epoch.0)),
            checkpoint: books.newest.map(|newest| newest.id().to_string()),
            own_leaf: own_leaf.to_owned(),
            findings: books.findings.iter().map(finding).collect(),
            equivocations: books.equivocations.iter().map(proof).collect(),
        }
    }
}

fn audit_view(audit: &protocol::node::AuditView) -> Result<AuditView, Failure> {
    let impossible = || Failure::new(FailureKind::Unavailable, audit.differences.join("; "));
    let checkpoint = audit.checkpoint.as_ref().filter(|_| audit.state == AuditState::Done);
    let checkpoint = checkpoint.ok_or_else(impossible)?;
    let own = audit.own.as_ref().map(|leaf| OwnLeafView {
        cash: leaf.cash.into(),
        earned: leaf.earned.into(),
        held: leaf.held.into(),
        steps: leaf.steps,
    });
    Ok(AuditView {
        ok: audit.differences.is_empty(),
        epoch: u64::from(checkpoint.epoch.0),
        checkpoint: checkpoint.id().to_string(),
        signatures: u32::try_from(checkpoint.signature_count()).unwrap_or(u32::MAX),
        deposited: money(checkpoint.deposited),
        withdrawn: money(checkpoint.withdrawn),
        accounts: tree(audit.accounts.as_ref(), &checkpoint.accounts),
        channels: tree(audit.channels.as_ref(), &checkpoint.channels),
        own,
        issuer: audit.issuer.map(|issuer| issuer.to_string()),
        distrusted: audit.distrusted.iter().map(distrusted).collect(),
        pages: audit.pages,
        differences: audit.differences.clone(),
    })
}

fn distrusted(distrusted: &protocol::node::Distrusted) -> DistrustedView {
    let (issuer, wrong) = (distrusted.issuer.to_string(), distrusted.is_wrong);
    DistrustedView { issuer, wrong, why: distrusted.why.clone() }
}

fn tree(computed: Option<&SumRoot>, stated: &SumRoot) -> TreeView {
    let Some(computed) = computed else {
        return TreeView { stated: stated.hash.to_string(), ..TreeView::default() };
    };
    TreeView {
        root: computed.hash.to_string(),
        stated: stated.hash.to_string(),
        count: computed.count,
        cash: money(computed.sums.cash),
        earned: money(computed.sums.earned),
        held: money(computed.sums.held),
    }
}

/// Returns a sum as an amount; sums are within the budget of a network, which fits.
fn money(sum: u128) -> Money {
    u64::try_from(sum).unwrap_or(u64::MAX).into()
}
