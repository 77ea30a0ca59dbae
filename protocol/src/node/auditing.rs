//! An audit of a checkpoint: every page of what it commits to is fetched from an issuer, and its roots and sums are
//! computed again, leaf by leaf, without holding them. Among several issuers another one is asked when one does not
//! answer or serves something else.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::books::{BooksMessage, LeafKind, Leaves, PageName};
use crate::ids::NodeId;
use crate::ledger::checkpoint::{AccountLeaf, Checkpoint};
use crate::ledger::epoch_log::{Key, PAGE_MAX};
use crate::ledger::finding::Finding;
use crate::ledger::merkle::{MerkleError, RootBuilder, SumLeaf, SumRoot};
use crate::ledger::records::Epoch;
use crate::message::Message;
use crate::signed::Verified;
use crate::time::Time;

use super::{Effect, Node, Offence};

/// How often a page is asked for again that does not come, before the audit is given up.
const ATTEMPTS_MAX: u32 = 6;

/// The same while another issuer can be asked: an issuer that has served a run of pages serves the next one only after
/// its next round, which may come after ours.
const ATTEMPTS_OF_ONE: u32 = 2;

/// Most pages of one audit: those of as many leaves as books can have, half filled.
const PAGES_MAX: u32 = 16_384;

/// Most pages without a leaf: there are some where all of a page has come only later.
const EMPTY_MAX: u32 = 256;

/// Differences that are written down.
const DIFFERENCES_MAX: usize = 16;

/// How far an audit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditState {
    /// Pages are being fetched.
    Running,
    /// Everything was compared.
    Done,
    /// It could not be carried out; the differences say why.
    Impossible,
}

/// An issuer whose leaves were not those of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distrusted {
    /// The issuer's node.
    pub issuer: NodeId,
    /// Whether it serves something else than what a quorum has signed: it lies or its disk is damaged. Otherwise it said
    /// nothing, or no longer keeps it.
    pub is_wrong: bool,
    /// What it came to, in words.
    pub why: String,
}

/// What an audit has found so far.
#[derive(Debug, Clone)]
pub struct AuditView {
    /// How far it is.
    pub state: AuditState,
    /// The checkpoint, unless none is known.
    pub checkpoint: Option<Verified<Checkpoint>>,
    /// What the accounts come to.
    pub accounts: Option<SumRoot>,
    /// What the open channels come to.
    pub channels: Option<SumRoot>,
    /// Our own account in it.
    pub own: Option<AccountLeaf>,
    /// Whose leaves these are.
    pub issuer: Option<NodeId>,
    /// Who was asked before, in vain.
    pub distrusted: Vec<Distrusted>,
    /// Pages looked at.
    pub pages: u32,
    /// What differs from the checkpoint, in words; nothing when everything agrees.
    pub differences: Vec<String>,
}

/// An audit under way, or the last one.
#[derive(Debug)]
pub(super) struct Auditing {
    view: AuditView,
    /// Who else can be asked.
    left: VecDeque<NodeId>,
    builder: RootBuilder,
    kind: LeafKind,
    after: Option<Key>,
    asked: Time,
    attempts: u32,
    empty: u32,
}

impl Auditing {
    fn new(checkpoint: Option<Verified<Checkpoint>>, mut left: VecDeque<NodeId>, now: Time) -> Self {
        let view = AuditView {
            state: AuditState::Running,
            checkpoint,
            accounts: None,
            channels: None,
            own: None,
            issuer: left.pop_front(),
            distrusted: Vec::new(),
            pages: 0,
            differences: Vec::new(),
        };
        let (builder, kind) = (RootBuilder::new::<AccountLeaf>(), LeafKind::Accounts);
        Self { view, left, builder, kind, after: None, asked: now, attempts: 0, empty: 0 }
    }

    /// Takes more whom it may ask.
    #[cfg(test)]
    pub(super) fn ask_also(&mut self, others: impl IntoIterator<Item = NodeId>) {
        self.left.extend(others);
    }

    /// Begins again with the next issuer; says whether there is one.
    fn turn_away(&mut self, is_wrong: bool, why: &str, now: Time) -> bool {
        if self.left.is_empty() {
            return false;
        }
        let distrusted = self.view.issuer.map(|issuer| Distrusted { issuer, is_wrong, why: why.to_string() });
        let left = core::mem::take(&mut self.left);
        let checkpoint = self.view.checkpoint.take();
        let mut known = core::mem::take(&mut self.view.distrusted);
        known.extend(distrusted);
        *self = Self::new(checkpoint, left, now);
        self.view.distrusted = known;
        true
    }

    fn impossible(&mut self, why: String) {
        self.view.state = AuditState::Impossible;
        self.differs(why);
    }

    fn differs(&mut self, what: String) {
        if self.view.differences.len() < DIFFERENCES_MAX {
            self.view.differences.push(what);
        }
    }

    /// Ends an audit for which nobody is left that could answer. If issuers contradict what a quorum has signed, that is
    /// what it has found.
    fn give_up(&mut self, why: &str) {
        let wrong = self.view.distrusted.iter().filter(|distrusted| distrusted.is_wrong);
        let wrong: Vec<String> = wrong.map(|it| format!("issuer {}: {}", it.issuer, it.why)).collect();
        self.impossible(why.to_string());
        if !wrong.is_empty() {
            self.view.state = AuditState::Done;
            wrong.into_iter().for_each(|wrong| self.differs(wrong));
        }
    }

    const fn is_running(&self) -> bool {
        matches!(self.view.state, AuditState::Running)
    }

    fn name(&self) -> Option<PageName> {
        let checkpoint = self.view.checkpoint.as_ref()?.id();
        Some(PageName { checkpoint, kind: self.kind, after: self.after })
    }

    /// Takes the leaves of a page; says whether the tree is complete.
    fn take<L: SumLeaf>(&mut self, leaves: &[L], next: Option<Key>) -> Result<bool, MerkleError> {
        let is_forward = |key: Key| self.after.is_none_or(|after| key > after);
        let last = leaves.last().map(SumLeaf::key);
        let goes_on = next.is_none_or(|next| is_forward(next) && last.is_none_or(|last| last <= next));
        if leaves.len() > PAGE_MAX || !goes_on || !leaves.first().is_none_or(|leaf| is_forward(leaf.key())) {
            return Err(MerkleError::Unsorted);
        }
        self.empty = self.empty.saturating_add(u32::from(leaves.is_empty()));
        for leaf in leaves {
            self.builder.push(leaf)?;
        }
        self.after = next;
        Ok(next.is_none())
    }

    /// Takes a page; an error ends the audit.
    fn page(&mut self, leaves: &Leaves, own: Key) -> Result<(), MerkleError> {
        self.view.pages = self.view.pages.saturating_add(1);
        let is_complete = match leaves {
            Leaves::Accounts(leaves, next) => {
                self.view.own =
                    leaves.iter().find(|leaf| leaf.key() == own).cloned().or(self.view.own.take());
                self.take(leaves, *next)?
            }
            Leaves::Channels(leaves, next) => self.take(leaves, *next)?,
            Leaves::Gone => return Err(MerkleError::Shape),
        };
        if self.view.pages > PAGES_MAX || self.empty > EMPTY_MAX {
            return Err(MerkleError::TooMany);
        }
        if is_complete {
            let builder = core::mem::take(&mut self.builder);
            let root = builder.finish()?;
            self.complete(root);
        }
        Ok(())
    }

    /// Says whether the trees that are complete have the roots that the checkpoint states.
    fn is_of_checkpoint(&self) -> bool {
        let Some(checkpoint) = &self.view.checkpoint else { return false };
        self.view.accounts.is_none_or(|root| root == checkpoint.accounts)
            && self.view.channels.is_none_or(|root| root == checkpoint.channels)
    }

    fn complete(&mut self, root: SumRoot) {
        let Some(checkpoint) = self.view.checkpoint.clone() else { return };
        match self.kind {
            LeafKind::Accounts => {
                self.view.accounts = Some(root);
                self.compare("accounts", &checkpoint.accounts, &root);
                self.kind = LeafKind::Channels;
                self.builder = RootBuilder::new::<crate::ledger::checkpoint::ChannelLeaf>();
            }
            LeafKind::Channels => {
                self.view.channels = Some(root);
                self.compare("channels", &checkpoint.channels, &root);
                if let Err(error) = checkpoint.check_totals() {
                    self.differs(error.to_string());
                }
                self.view.state = AuditState::Done;
            }
        }
    }

    fn compare(&mut self, what: &str, stated: &SumRoot, computed: &SumRoot) {
        let (ours, theirs) = (computed.sums, stated.sums);
        let numbers = [
            ("number", u128::from(computed.count), u128::from(stated.count)),
            ("cash", ours.cash, theirs.cash),
            ("earned", ours.earned, theirs.earned),
            ("held", ours.held, theirs.held),
        ];
        for (name, computed, stated) in numbers.into_iter().filter(|(_, computed, stated)| computed != stated)
        {
            self.differs(format!(
                "{what}: {name} is {computed} by the leaves and {stated} by the checkpoint"
            ));
        }
        if computed.hash != stated.hash {
            self.differs(format!(
                "{what}: the root is {} by the leaves and {} by the checkpoint",
                computed.hash, stated.hash
            ));
        }
    }
}

impl Node {
    /// Returns what the audit under way, or the last one, has found.
    #[must_use]
    pub fn audit_view(&self) -> Option<&AuditView> {
        self.auditing.as_ref().map(|auditing| &auditing.view)
    }

    /// Begins an audit of the checkpoint of an epoch, or of the newest.
    pub(super) fn audit(&mut self, epoch: Option<Epoch>, now: Time, out: &mut Vec<Effect>) {
        let wanted = |checkpoint: &&Verified<Checkpoint>| epoch.is_none_or(|epoch| checkpoint.epoch == epoch);
        let checkpoint = self.checkpoints().iter().rev().find(wanted).cloned();
        let mut auditing = Auditing::new(checkpoint, self.to_audit(), now);
        if auditing.view.checkpoint.is_none() {
            auditing.impossible(match (epoch, self.checkpoints()) {
                (_, []) => "no checkpoint is known here yet: the first comes when an epoch ends".to_string(),
                (epoch, [oldest, .., newest]) => unknown(epoch, oldest.epoch, newest.epoch),
                (epoch, [only]) => unknown(epoch, only.epoch, only.epoch),
            });
        }
        self.auditing = Some(auditing);
        self.ask_page(now, out);
    }

    /// Returns the issuers to ask, ourselves last.
    fn to_audit(&self) -> VecDeque<NodeId> {
        if !self.has_many_issuers() {
            return self.issuer().into_iter().collect();
        }
        let (ours, others): (Vec<NodeId>, Vec<NodeId>) =
            self.issuers().into_iter().partition(|issuer| *issuer == self.me);
        others.into_iter().chain(ours).collect()
    }

    fn ask_page(&mut self, now: Time, out: &mut Vec<Effect>) {
        let first = self.to_audit().pop_front();
        let Some(auditing) = self.auditing.as_mut().filter(|auditing| auditing.is_running()) else { return };
        auditing.view.issuer = auditing.view.issuer.or(first);
        let (Some(issuer), Some(name)) = (auditing.view.issuer, auditing.name()) else { return };
        auditing.asked = now;
        self.send(issuer, Message::Books(BooksMessage::PageQuery(name)), out);
    }

    /// Asks again for a page that does not come.
    pub(super) fn review_audit(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Some(auditing) = self.auditing.as_mut().filter(|auditing| auditing.is_running()) else { return };
        if now.since_ms(auditing.asked) < super::channels::RECONCILE_MS / 2 {
            return;
        }
        auditing.attempts = auditing.attempts.saturating_add(1);
        let most = if auditing.left.is_empty() { ATTEMPTS_MAX } else { ATTEMPTS_OF_ONE };
        let why = "the issuer does not answer";
        if auditing.attempts > most && !auditing.turn_away(false, why, now) {
            auditing.give_up(why);
            return self.conclude(out);
        }
        self.ask_page(now, out);
    }

    pub(super) fn on_page(
        &mut self,
        from: NodeId,
        name: &PageName,
        leaves: &Leaves,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let own = self.wallet.account().0;
        let Some(auditing) = self.auditing.as_mut().filter(|auditing| auditing.is_running()) else { return };
        // A page that comes twice, or that nobody asked for, changes nothing.
        let is_kind = matches!(
            (name.kind, leaves),
            (LeafKind::Accounts, Leaves::Accounts(..))
                | (LeafKind::Channels, Leaves::Channels(..))
                | (_, Leaves::Gone)
        );
        if auditing.view.issuer != Some(from) || auditing.name() != Some(*name) || !is_kind {
            return;
        }
        auditing.attempts = 0;
        match auditing.page(leaves, own) {
            Ok(()) if auditing.is_of_checkpoint() => {}
            // Of the last one all that differs is said.
            Ok(()) => {
                let why = auditing.view.differences.join("; ");
                auditing.turn_away(true, &why, now);
            }
            Err(MerkleError::Shape) => {
                let why = "the issuer no longer keeps what this checkpoint commits to";
                if !auditing.turn_away(false, why, now) {
                    auditing.give_up(why);
                }
            }
            Err(error) => {
                let why = format!("what the issuer serves makes up no tree: {error}");
                if !auditing.turn_away(true, &why, now) {
                    auditing.view.state = AuditState::Done;
                    auditing.differs(why);
                }
            }
        }
        self.conclude(out);
        self.ask_page(now, out);
    }

    /// Writes down what does not hold. An issuer that served something else than what is shown to hold is charged.
    fn conclude(&mut self, out: &mut Vec<Effect>) {
        let Some(auditing) = &self.auditing else { return };
        if auditing.view.state != AuditState::Done {
            return;
        }
        let Some(epoch) = auditing.view.checkpoint.as_ref().map(|checkpoint| checkpoint.epoch) else {
            return;
        };
        if auditing.view.differences.is_empty() {
            let wrong = auditing.view.distrusted.iter().filter(|distrusted| distrusted.is_wrong);
            out.extend(wrong.map(|wrong| Effect::Penalise(wrong.issuer, Offence::BadLedger)));
        } else {
            self.find(Finding::Log { epoch }, out);
        }
    }
}

fn unknown(epoch: Option<Epoch>, oldest: Epoch, newest: Epoch) -> String {
    let epoch = epoch.unwrap_or_default().0;
    format!(
        "no checkpoint of epoch {epoch} is kept here; the oldest is of {}, the newest of {}",
        oldest.0, newest.0
    )
}
