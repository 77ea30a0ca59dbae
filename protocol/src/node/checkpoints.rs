//! Checkpoints: as issuer made at the end of each epoch, as node followed, and compared with what we were told of our
//! own account. What does not fit is written down, counted and shown; it stops nothing.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::books::{BooksMessage, BooksRecord, LeafKind, Leaves, PageName};
use crate::ids::{AccountId, Digest, NodeId, RecordId};
use crate::ledger::checkpoint::{AccountLeaf, Checkpoint, is_signed_by_quorum};
use crate::ledger::epoch_log::{EPOCHS_KEPT, EpochLog};
use crate::ledger::equivocation::Equivocation;
use crate::ledger::finding::Finding;
use crate::ledger::issuer::Balance;
use crate::ledger::issuer::Snapshot;
use crate::ledger::merkle::{MerkleError, Proof, SumRoot};
use crate::ledger::records::{AccountOp, Epoch};
use crate::message::{Checked, Message};
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::{Effect, Node, Offence};

/// Checkpoints that a node keeps: those of the epochs that can be audited, and as many before.
pub const KEPT_MAX: usize = 2 * EPOCHS_KEPT;

/// Balances that we remember having been told.
const TOLD_MAX: usize = 128;

/// Findings and proofs kept, so that nobody fills our memory or our disk with them.
const FINDINGS_MAX: usize = 64;

/// Proofs against owners that are kept: anybody can make accounts and convict them.
const OWNERS_MAX: usize = 256;

/// Steps of this epoch that an issuer keeps, to recognise a second one in the same place.
const STEPS_MAX: usize = 10_000;

/// Refused steps of an account that an issuer remembers: its owner signs others in their place, and is right to.
const REFUSED_MAX: usize = 16;

/// How often an answer is asked for that does not come; after that for the proof of our account only, and as often more rarely.
const ASKED_MAX: u32 = 12;

/// Pages served to one peer in each [`super::channels::RECONCILE_MS`].
const PAGES_MAX: u32 = 64;

/// What a node knows of the issuers' books.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// By epoch.
    kept: Vec<Verified<Checkpoint>>,
    /// What the issuer told us of our account, the newest last.
    told: VecDeque<Told>,
    own: Option<(RecordId, OwnLeaf)>,
    /// How often we have asked for the proof of our account in the newest checkpoint.
    leaf_asked: u32,
    /// The checkpoint missing before one that we keep, and how often we have asked for it.
    gap: Option<(RecordId, u32)>,
    findings: Vec<Finding>,
    equivocations: Vec<Equivocation<Checked>>,
    /// Checkpoints that are still to come from the journal at the start.
    to_replay: usize,
    /// Pages served to peers since the last reconciliation.
    served: BTreeMap<NodeId, u32>,
}

/// What an issuer keeps of the epochs.
#[derive(Debug)]
pub(super) struct EpochEnds {
    log: EpochLog,
    /// The last step of each account in this epoch.
    steps: BTreeMap<AccountId, Verified<AccountOp>>,
    refused: BTreeMap<AccountId, VecDeque<RecordId>>,
}

/// What we were told of our account, and when.
#[derive(Debug, Clone, Copy)]
struct Told {
    balance: Balance,
    steps: u64,
    epoch: Epoch,
}

/// What became of the proof of our account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnLeaf {
    /// It leads to the checkpoint and states what we were told.
    Proved,
    /// It leads to the checkpoint, which is of a moment about which we were told nothing.
    Included,
    /// Our account has never held anything, and is not in it.
    Absent,
    /// It does not hold.
    Wrong,
}

/// What a node knows of the issuers' books, for its owner.
#[derive(Debug, Clone)]
pub struct BooksView<'a> {
    /// The newest checkpoint.
    pub newest: Option<&'a Verified<Checkpoint>>,
    /// What became of the proof of our account in it; nothing until the issuer has answered.
    pub own: Option<OwnLeaf>,
    /// What cannot be with honest issuers.
    pub findings: &'a [Finding],
    /// Proofs against whoever signed two records where one can stand.
    pub equivocations: &'a [Equivocation<Checked>],
}

impl EpochEnds {
    pub(super) fn new() -> Self {
        Self { log: EpochLog::new(EPOCHS_KEPT), steps: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Keeps the books that a checkpoint of several issuers states.
    ///
    /// # Errors
    /// When their sums overflow.
    pub(super) fn keep(&mut self, epoch: Epoch, books: Snapshot) -> Result<(), MerkleError> {
        self.log.push(epoch, books).map(drop)
    }

    /// Remembers that a step was taken.
    pub(super) fn took(&mut self, op: &Verified<AccountOp>) {
        if self.steps.len() < STEPS_MAX || self.steps.contains_key(&op.account) {
            self.steps.insert(op.account, op.clone());
        }
    }

    /// Remembers that a step was refused: another one may be signed in its place.
    pub(super) fn refused(&mut self, op: &Verified<AccountOp>) {
        if self.refused.len() >= STEPS_MAX && !self.refused.contains_key(&op.account) {
            self.refused.clear();
        }
        let refused = self.refused.entry(op.account).or_default();
        if refused.len() >= REFUSED_MAX {
            refused.pop_front();
        }
        refused.push_back(op.id());
    }

    /// Returns the proof that this step and one that was taken are two in one place.
    fn second(&self, op: &Verified<AccountOp>) -> Option<Equivocation<Checked>> {
        let was_refused = self.refused.get(&op.account).is_some_and(|refused| refused.contains(&op.id()));
        let taken = self.steps.get(&op.account).filter(|_| !was_refused)?;
        Equivocation::of_steps(taken.clone(), op.clone())
    }
}

impl Checkpoints {
    pub(super) fn newest(&self) -> Option<&Verified<Checkpoint>> {
        self.kept.last()
    }

    fn with_id(&self, id: RecordId) -> Option<&Verified<Checkpoint>> {
        self.kept.iter().find(|checkpoint| checkpoint.id() == id)
    }

    /// Keeps a checkpoint of an epoch of which none is kept.
    fn keep(&mut self, checkpoint: Verified<Checkpoint>) {
        let place = self.kept.partition_point(|kept| kept.epoch < checkpoint.epoch);
        if place == self.kept.len() {
            self.own = None;
            self.leaf_asked = 0;
        }
        self.kept.insert(place, checkpoint);
        while self.kept.len() > KEPT_MAX {
            self.kept.remove(0);
        }
    }

    /// Returns the epochs of checkpoints that leave out one that is kept.
    fn breaks(&self) -> Vec<Epoch> {
        let skips = |pair: &[Verified<Checkpoint>]| {
            let [before, after] = pair else { return None };
            let others = self.kept.iter().any(|kept| kept.id() == after.previous);
            let first = after.previous == RecordId::NONE;
            (after.previous != before.id() && (others || first)).then_some(after.epoch)
        };
        self.kept.windows(2).filter_map(skips).collect()
    }

    /// Returns the id of a checkpoint that is missing between two that are kept.
    fn missing(&self) -> Option<RecordId> {
        let pairs = self.kept.windows(2).rev();
        pairs
            .filter(|pair| pair[1].previous != pair[0].id())
            .map(|pair| pair[1].previous)
            .find(|id| *id != RecordId::NONE && self.with_id(*id).is_none())
    }

    /// Remembers what an issuer told us of our account.
    pub(super) fn told(&mut self, balance: Balance, steps: u64, epoch: Epoch) {
        let told = Told { balance, steps, epoch };
        if self.told.iter().any(|known| known.balance.as_of == balance.as_of && known.steps == steps) {
            return;
        }
        if self.told.len() >= TOLD_MAX {
            self.told.pop_front();
        }
        self.told.push_back(told);
    }

    /// Compares the leaf of our account, at its change `as_of`, with what we were told.
    fn compare(&self, leaf: &AccountLeaf, as_of: u64, epoch: Epoch) -> Result<OwnLeaf, Finding> {
        let mut known = OwnLeaf::Included;
        for told in &self.told {
            let Balance { cash, earned, held, as_of: at } = told.balance;
            if at == as_of {
                if (cash, earned, held) != (leaf.cash, leaf.earned, leaf.held) {
                    return Err(Finding::Balance { epoch });
                }
                known = OwnLeaf::Proved;
            }
            // What we were told before the epoch of the checkpoint cannot be news to it.
            let goes_back = at > as_of && told.epoch < epoch;
            let too_few = at <= as_of && told.steps > leaf.steps;
            let too_many = at >= as_of && told.steps < leaf.steps;
            if goes_back || too_few || too_many {
                return Err(Finding::Steps { epoch });
            }
        }
        Ok(known)
    }

    /// Says whether a proof is new and there is room for it: one for each culprit.
    fn is_new(&self, proof: &Equivocation<Checked>, manifest: &crate::manifest::Manifest) -> bool {
        let Some(culprit) = proof.culprit(manifest) else { return false };
        let known = self.equivocations.iter().any(|known| known.culprit(manifest) == Some(culprit));
        let is_steps = |proof: &&Equivocation<Checked>| matches!(proof, Equivocation::Steps(..));
        let owners = self.equivocations.iter().filter(is_steps).count();
        !known && (owners < OWNERS_MAX || !is_steps(&proof))
    }

    /// Learns how many checkpoints the journal has, before it is followed.
    pub(super) const fn expect(&mut self, checkpoints: usize) {
        self.to_replay = checkpoints;
    }

    /// Starts a new run of pages served.
    pub(super) fn reconciled(&mut self) {
        self.served.clear();
    }

    fn may_serve(&mut self, peer: NodeId) -> bool {
        let served = self.served.entry(peer).or_default();
        *served = served.saturating_add(1);
        *served <= PAGES_MAX
    }
}

impl Node {
    /// Returns what this node knows of the issuers' books.
    #[must_use]
    pub fn books_view(&self) -> BooksView<'_> {
        let newest = self.checkpoints.newest();
        let own = self.checkpoints.own.filter(|(id, _)| newest.is_some_and(|newest| newest.id() == *id));
        BooksView {
            newest,
            own: own.map(|(_, own)| own),
            findings: &self.checkpoints.findings,
            equivocations: &self.checkpoints.equivocations,
        }
    }

    /// Returns the checkpoints that are kept, the oldest first.
    #[must_use]
    pub fn checkpoints(&self) -> &[Verified<Checkpoint>] {
        &self.checkpoints.kept
    }

    /// As the only issuer: ends the epochs that are over, before anything of the present one is taken. Several issuers
    /// agree first.
    pub(super) fn end_epochs(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.has_many_issuers() {
            return self.begin_agreement(now, out);
        }
        let Some(over) = self.epoch(now).0.checked_sub(1).map(Epoch) else { return };
        let known = self.checkpoints.newest().is_some_and(|newest| newest.epoch >= over);
        if self.issuing.is_none() || known {
            return;
        }
        self.expire_channels(now, out);
        let previous = self.checkpoints.newest().map_or(RecordId::NONE, Verified::id);
        let Some(issuing) = &mut self.issuing else { return };
        let Some(checkpoint) = close_books(&mut issuing.ends, &mut issuing.witness.books, over, previous)
        else {
            return;
        };
        let checkpoint = issuing.sign(checkpoint);
        out.push(Effect::Record(Record::Books(BooksRecord::Checkpoint(checkpoint.signed()))));
        self.checkpoints.keep(checkpoint.clone());
        self.spread(BooksMessage::Checkpoint(checkpoint), out);
        self.send(self.me, Message::Books(BooksMessage::LeafQuery), out);
    }

    fn spread(&self, message: BooksMessage<Checked>, out: &mut Vec<Effect>) {
        out.push(Effect::Spread(message.to_wire()));
    }

    /// Says whether a message that came by gossip should be passed on.
    #[must_use]
    pub fn passes_on(&self, message: &BooksMessage<Checked>, now: Time) -> bool {
        match message {
            BooksMessage::Checkpoint(checkpoint) => {
                self.is_credible(checkpoint, now)
                    && self.checkpoints.newest().is_none_or(|newest| newest.epoch < checkpoint.epoch)
            }
            BooksMessage::Equivocation(proof) => self.checkpoints.is_new(proof, &self.config.manifest),
            BooksMessage::Query(_)
            | BooksMessage::LeafQuery
            | BooksMessage::Leaf { .. }
            | BooksMessage::PageQuery(_)
            | BooksMessage::Page(..) => false,
        }
    }

    fn is_credible(&self, checkpoint: &Verified<Checkpoint>, now: Time) -> bool {
        let begun = checkpoint.epoch <= self.epoch(now);
        begun && is_signed_by_quorum(checkpoint, &self.config.manifest)
    }

    pub(super) fn on_books(
        &mut self,
        from: NodeId,
        message: BooksMessage<Checked>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        match message {
            BooksMessage::Checkpoint(checkpoint) => self.on_checkpoint(Some(from), checkpoint, now, out),
            BooksMessage::Query(id) => self.on_checkpoint_query(from, id, out),
            BooksMessage::LeafQuery => self.on_leaf_query(from, out),
            BooksMessage::Leaf { checkpoint, proof } => self.on_leaf(from, checkpoint, proof, out),
            BooksMessage::Equivocation(proof) => self.on_equivocation(Some(from), proof, out),
            BooksMessage::PageQuery(name) => self.on_page_query(from, name, out),
            BooksMessage::Page(name, leaves) => self.on_page(from, &name, &leaves, now, out),
        }
    }

    /// Takes what came by gossip; who passed it on has no part in it.
    pub(super) fn on_spread(&mut self, message: BooksMessage<Checked>, now: Time, out: &mut Vec<Effect>) {
        match message {
            BooksMessage::Checkpoint(checkpoint) => self.on_checkpoint(None, checkpoint, now, out),
            BooksMessage::Equivocation(proof) => self.on_equivocation(None, proof, out),
            BooksMessage::Query(_)
            | BooksMessage::LeafQuery
            | BooksMessage::Leaf { .. }
            | BooksMessage::PageQuery(_)
            | BooksMessage::Page(..) => {}
        }
    }

    pub(super) fn on_checkpoint(
        &mut self,
        from: Option<NodeId>,
        checkpoint: Verified<Checkpoint>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !is_signed_by_quorum(&checkpoint, &self.config.manifest) {
            out.extend(from.map(|from| Effect::Penalise(from, Offence::WrongSigner)));
            return;
        }
        let oldest = self.checkpoints.kept.first().map_or(Epoch(0), |oldest| oldest.epoch);
        let full = self.checkpoints.kept.len() >= KEPT_MAX;
        // A checkpoint of an epoch that has not begun here is a matter of clocks: it comes again.
        if !self.is_credible(&checkpoint, now) || (full && checkpoint.epoch < oldest) {
            return;
        }
        let same = self.checkpoints.kept.iter().find(|kept| kept.epoch == checkpoint.epoch).cloned();
        match same {
            Some(same) if same.id() == checkpoint.id() => {}
            Some(same) => {
                self.find(Finding::Forked { epoch: checkpoint.epoch }, out);
                self.prove_forked(same, checkpoint, out);
            }
            None => {
                self.follow(checkpoint, out);
                self.adopt_next(now, out);
            }
        }
    }

    /// Shows everybody that an issuer has signed two checkpoints of one epoch.
    pub(super) fn prove_forked(
        &mut self,
        one: Verified<Checkpoint>,
        other: Verified<Checkpoint>,
        out: &mut Vec<Effect>,
    ) {
        if let Some(proof) = Equivocation::of_checkpoints(one, other) {
            self.on_equivocation(None, proof, out);
        }
    }

    fn follow(&mut self, checkpoint: Verified<Checkpoint>, out: &mut Vec<Effect>) {
        if let Err(error) = checkpoint.check_totals() {
            self.find(Finding::Totals { epoch: checkpoint.epoch, error }, out);
        }
        out.push(Effect::Note(Record::Books(BooksRecord::Checkpoint(checkpoint.signed()))));
        self.checkpoints.keep(checkpoint);
        for epoch in self.checkpoints.breaks() {
            self.find(Finding::Chain { epoch }, out);
        }
        self.ask_books(out);
    }

    /// Returns an issuer that can be spoken to, another one at each attempt: among several, one may be behind or lie.
    fn checkpoint_maker(&self) -> Option<NodeId> {
        if !self.has_many_issuers() {
            return self.issuer().filter(|_| self.is_admitted());
        }
        let leaf_asked = self.checkpoints.leaf_asked;
        let asked = leaf_asked.wrapping_add(leaf_asked / ASKED_MAX);
        let asked = asked.wrapping_add(self.checkpoints.gap.map_or(0, |(_, asked)| asked));
        let others: Vec<NodeId> = self.issuers().into_iter().filter(|node| *node != self.me).collect();
        let place = usize::try_from(asked).unwrap_or(0).checked_rem(others.len())?;
        others.get(place).copied().filter(|_| self.is_admitted())
    }

    /// Asks for whatever is missing of the books: the newest checkpoint, one between, the proof of our account.
    pub(super) fn ask_books(&mut self, out: &mut Vec<Effect>) {
        let Some(issuer) = self.checkpoint_maker() else { return };
        if let Some(missing) = self.checkpoints.missing() {
            let asked = self.checkpoints.gap.filter(|(id, _)| *id == missing).map_or(0, |(_, asked)| asked);
            if asked < ASKED_MAX && issuer != self.me {
                self.checkpoints.gap = Some((missing, asked.saturating_add(1)));
                self.send(issuer, Message::Books(BooksMessage::Query(Some(missing))), out);
            }
        }
        let is_open = self.checkpoints.newest().is_some() && self.books_view().own.is_none();
        let asked = self.checkpoints.leaf_asked;
        self.checkpoints.leaf_asked = asked.saturating_add(u32::from(is_open));
        // Whoever can prove it may have been away for long.
        if is_open && (asked < ASKED_MAX || asked.is_multiple_of(ASKED_MAX)) {
            self.send(issuer, Message::Books(BooksMessage::LeafQuery), out);
        }
    }

    /// Asks an issuer for its newest checkpoint when the one that is known is old: gossip may have been lost.
    pub(super) fn ask_newest(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.checkpoints.reconciled();
        let Some(issuer) = self.checkpoint_maker().filter(|issuer| *issuer != self.me) else { return };
        let epoch = self.epoch(now);
        let is_old = self.checkpoints.newest().is_none_or(|newest| newest.epoch.plus(1) < epoch);
        if is_old && epoch > Epoch(0) {
            self.send(issuer, Message::Books(BooksMessage::Query(None)), out);
        }
        self.ask_books(out);
    }

    fn on_checkpoint_query(&mut self, from: NodeId, id: Option<RecordId>, out: &mut Vec<Effect>) {
        let checkpoint = id.map_or(self.checkpoints.newest(), |id| self.checkpoints.with_id(id));
        if let Some(checkpoint) = checkpoint.cloned() {
            self.send(from, Message::Books(BooksMessage::Checkpoint(checkpoint)), out);
        }
    }

    fn on_leaf_query(&mut self, from: NodeId, out: &mut Vec<Effect>) {
        let (Some(issuing), Some(account)) = (&self.issuing, self.account_of(from)) else { return };
        let newest = self.checkpoints.newest();
        // One of several issuers may know a checkpoint that it cannot follow yet.
        let newest = newest.filter(|newest| issuing.ends.log.epochs().last() == Some(newest.epoch));
        let Some(checkpoint) = newest.map(Verified::id) else { return };
        let proof = issuing.ends.log.prove(account);
        self.send(from, Message::Books(BooksMessage::Leaf { checkpoint, proof }), out);
    }

    fn on_leaf(
        &mut self,
        from: NodeId,
        checkpoint: RecordId,
        proof: Option<(Proof<AccountLeaf>, u64)>,
        out: &mut Vec<Effect>,
    ) {
        let is_issuer = from == self.me || self.config.manifest.has_issuer_node(from);
        let newest = self.checkpoints.newest().filter(|newest| newest.id() == checkpoint);
        let Some(newest) = newest.filter(|_| is_issuer) else { return };
        let (epoch, root) = (newest.epoch, newest.accounts);
        if self.has_many_issuers() {
            return self.on_leaf_of_many(checkpoint, (epoch, root), proof, out);
        }
        let own = match proof {
            None => self.absent(epoch),
            Some((proof, as_of)) => {
                let is_ours = proof.leaf.account == self.wallet.account();
                if is_ours && proof.verify(&root).is_ok() {
                    self.checkpoints.compare(&proof.leaf, as_of, epoch)
                } else {
                    Err(Finding::Proof { epoch })
                }
            }
        };
        if let Err(finding) = own {
            self.find(finding, out);
        }
        self.checkpoints.own = Some((checkpoint, own.unwrap_or(OwnLeaf::Wrong)));
    }

    /// Among several issuers one that shows no proof, or a wrong one, proves nothing: another one is asked. A proof that
    /// holds is of what a quorum has signed.
    fn on_leaf_of_many(
        &mut self,
        checkpoint: RecordId,
        (epoch, root): (Epoch, SumRoot),
        proof: Option<(Proof<AccountLeaf>, u64)>,
        out: &mut Vec<Effect>,
    ) {
        let Some((proof, _)) = proof else {
            // Nobody can prove that an account is not there.
            let Balance { cash, earned, held, .. } = self.wallet.balance();
            if self.checkpoints.own.is_none() && (cash, earned, held) == (0, 0, 0) {
                self.checkpoints.own = Some((checkpoint, OwnLeaf::Absent));
            }
            return;
        };
        if proof.leaf.account != self.wallet.account() || proof.verify(&root).is_err() {
            return;
        }
        // A step that is under way may be in it. A node that only acts for the account hears of its steps late.
        let most =
            self.wallet.next().map(|next| next.saturating_add(u64::from(self.wallet.pending().is_some())));
        let most = most.filter(|_| !self.is_device());
        let own = if most.is_some_and(|most| proof.leaf.steps > most) {
            self.find(Finding::Steps { epoch }, out);
            OwnLeaf::Wrong
        } else {
            OwnLeaf::Included
        };
        self.checkpoints.own = Some((checkpoint, own));
    }

    /// An account that has never held anything is in no books; one of which we were told before is missing.
    fn absent(&self, epoch: Epoch) -> Result<OwnLeaf, Finding> {
        let holds = |told: &Told| told.epoch < epoch && told.balance != Balance::default();
        if self.checkpoints.told.iter().any(holds) {
            Err(Finding::Missing { epoch })
        } else {
            Ok(OwnLeaf::Absent)
        }
    }

    /// Writes down what cannot be with honest issuers, once.
    pub(super) fn find(&mut self, finding: Finding, out: &mut Vec<Effect>) {
        let findings = &mut self.checkpoints.findings;
        if !findings.contains(&finding) && findings.len() < FINDINGS_MAX {
            findings.push(finding);
            out.push(Effect::Record(Record::Books(BooksRecord::Finding(finding))));
        }
    }

    pub(super) fn on_equivocation(
        &mut self,
        from: Option<NodeId>,
        proof: Equivocation<Checked>,
        out: &mut Vec<Effect>,
    ) {
        if proof.culprit(&self.config.manifest).is_none() {
            out.extend(from.map(|from| Effect::Penalise(from, Offence::BadLedger)));
            return;
        }
        if !self.checkpoints.is_new(&proof, &self.config.manifest) {
            return;
        }
        if let Equivocation::Checkpoints(first, _) = &proof {
            self.find(Finding::Forked { epoch: first.epoch }, out);
        }
        out.push(Effect::Record(Record::Books(BooksRecord::Equivocation(proof.signed()))));
        self.checkpoints.equivocations.push(proof.clone());
        self.spread(BooksMessage::Equivocation(proof), out);
    }

    /// As issuer: looks whether a step that came too late is a second one in the place of another.
    pub(super) fn on_second_step(&mut self, op: &Verified<AccountOp>, out: &mut Vec<Effect>) {
        let proof = self.issuing.as_ref().and_then(|issuing| issuing.ends.second(op));
        if let Some(proof) = proof {
            self.on_equivocation(None, proof, out);
        }
    }

    fn on_page_query(&mut self, from: NodeId, name: PageName, out: &mut Vec<Effect>) {
        let Some(issuing) = &self.issuing else { return };
        if from != self.me && !self.checkpoints.may_serve(from) {
            return;
        }
        let epoch = self.checkpoints.with_id(name.checkpoint).map(|checkpoint| checkpoint.epoch);
        let leaves = epoch.and_then(|epoch| match name.kind {
            LeafKind::Accounts => issuing.ends.log.accounts(epoch, name.after).map(Leaves::from),
            LeafKind::Channels => issuing.ends.log.channels(epoch, name.after).map(Leaves::from),
        });
        let page = BooksMessage::Page(name, leaves.unwrap_or(Leaves::Gone));
        self.send(from, Message::Books(page), out);
    }

    /// Takes back what the journal says of the books.
    pub(super) fn replay_books(&mut self, record: BooksRecord) -> Result<(), crate::signed::SignedError> {
        let domain = self.domain;
        match record {
            BooksRecord::Checkpoint(checkpoint) => {
                let checkpoint = checkpoint.read_back(domain)?;
                self.replay_own_checkpoint(&checkpoint);
                if self.checkpoints.kept.iter().all(|kept| kept.epoch != checkpoint.epoch) {
                    self.checkpoints.keep(checkpoint);
                }
            }
            BooksRecord::Equivocation(proof) => {
                self.checkpoints.equivocations.push(proof.read_back(domain)?);
            }
            BooksRecord::Finding(finding) => self.checkpoints.findings.push(finding),
        }
        Ok(())
    }

    fn replay_own_checkpoint(&mut self, checkpoint: &Verified<Checkpoint>) {
        let Some(issuing) = &mut self.issuing else { return };
        if !checkpoint.is_signed_by(Role::Issuer, issuing.key()) || issuing.books.is_one_of_many() {
            return;
        }
        // Trees are computed for the epochs that are kept only: a journal of years would take its length in trees.
        self.checkpoints.to_replay = self.checkpoints.to_replay.saturating_sub(1);
        if self.checkpoints.to_replay >= EPOCHS_KEPT {
            issuing.books.end_epoch(checkpoint.epoch);
            return;
        }
        let again =
            close_books(&mut issuing.ends, &mut issuing.witness.books, checkpoint.epoch, checkpoint.previous);
        let finding = Finding::Books { epoch: checkpoint.epoch };
        if again.as_ref() != Some(&**checkpoint) {
            self.remember_finding(finding);
        }
    }

    /// Notes what the journal itself shows.
    pub(super) fn remember_finding(&mut self, finding: Finding) {
        let findings = &mut self.checkpoints.findings;
        if findings.len() < FINDINGS_MAX && !findings.contains(&finding) {
            findings.push(finding);
        }
    }
}

/// Closes the books of an epoch; nothing when its sums cannot be stated, which no deposits can come to.
fn close_books(
    ends: &mut EpochEnds,
    books: &mut crate::ledger::issuer::Issuer,
    epoch: Epoch,
    previous: RecordId,
) -> Option<Checkpoint> {
    let (accounts, channels) = ends.log.push(epoch, books.snapshot()).ok()?;
    books.end_epoch(epoch);
    ends.steps.clear();
    let (deposited, withdrawn) = (books.deposited(), books.withdrawn());
    Some(Checkpoint { epoch, previous, accounts, channels, deposited, withdrawn, facts: Digest::ZERO })
}
