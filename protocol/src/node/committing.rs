//! As an owner: brings a step of our account to all issuers, and holds it to be done when a quorum says so.

use alloc::vec::Vec;

use crate::ids::{ChannelId, NodeId, RecordId};
use crate::job::Failure;
use crate::keys::PublicKey;
use crate::ledger::issuer::{Balance, IssuerError};
use crate::ledger::quorum::{Answers, Certificate, Fact, Supported, View};
use crate::ledger::records::{Epoch, OpBody, Recorded, Vote};
use crate::message::{Message, Opening};
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::{Effect, Node, Offence};

/// Returns why a job fails whose channel the issuers did not open.
fn failure_of(error: IssuerError) -> Failure {
    if let IssuerError::NotEnough { needed, available } = error {
        Failure::NotEnoughCredits { needed, available }
    } else if matches!(error, IssuerError::TooManySteps { .. }) {
        Failure::TooManySteps(error)
    } else {
        Failure::IssuerRefused(alloc::format!("{error}"))
    }
}

impl Node {
    /// Sends a step that was just signed to every issuer that can be spoken to.
    pub(super) fn send_step(&mut self, out: &mut Vec<Effect>) {
        self.answers = Answers::default();
        self.resend_to_all(out);
    }

    fn resend_to_all(&mut self, out: &mut Vec<Effect>) {
        for issuer in self.issuers() {
            self.resend_step(issuer, out);
        }
    }

    /// Sends an issuer what it has not answered of the pending step: its certificate if there is one, and the step itself
    /// while too few have voted, or some votes do not count.
    pub(super) fn resend_step(&mut self, issuer: NodeId, out: &mut Vec<Effect>) {
        let Some(op) = self.wallet.pending().cloned() else { return };
        let manifest = &self.config.manifest;
        if manifest.issuer_on(issuer).is_some_and(|issuer| self.answers.has_recorded(issuer.key)) {
            return;
        }
        let terms = self.opening_terms.clone();
        let is_certified = self.has_many_issuers() && self.answers.is_certified(manifest);
        if !is_certified || self.answers.has_void() {
            self.send(issuer, Message::Step { op: op.clone(), terms: terms.clone() }, out);
        }
        if is_certified {
            let certificate = Certificate { op, terms, votes: self.answers.votes() };
            self.send(issuer, Message::Fact(Fact::Step(certificate)), out);
        }
    }

    /// The only issuer votes and records at once.
    pub(super) fn on_stepped(
        &mut self,
        from: NodeId,
        vote: &Verified<Vote>,
        recorded: Verified<Recorded>,
        balance: Balance,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from).filter(|key| vote.is_signed_by(Role::Issuer, *key)) else {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        };
        if vote.op != recorded.op {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        if self.is_pending(vote.op) {
            self.answers.voted(key, vote.clone());
        }
        self.on_recorded(from, recorded, balance, now, out);
    }

    pub(super) fn on_voted(
        &mut self,
        from: NodeId,
        vote: Verified<Vote>,
        balance: Balance,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from).filter(|key| vote.is_signed_by(Role::Issuer, *key)) else {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        };
        self.views.learn_balance(key, balance);
        let Some(op) = self.wallet.pending().filter(|op| op.id() == vote.op) else { return };
        if vote.account != op.account || vote.sequence != op.sequence {
            out.push(Effect::Penalise(from, Offence::BadLedger));
            return;
        }
        let manifest = &self.config.manifest;
        let was_certified = self.answers.is_certified(manifest);
        if !self.answers.voted(key, vote) {
            return;
        }
        let is_certified = self.answers.is_certified(manifest);
        if is_certified && (!was_certified || self.answers.has_void()) {
            self.resend_to_all(out);
        } else if was_certified {
            // It was slower than the quorum, and may have been away when the certificate was sent.
            self.resend_step(from, out);
        }
    }

    pub(super) fn on_recorded(
        &mut self,
        from: NodeId,
        recorded: Verified<Recorded>,
        balance: Balance,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from).filter(|key| recorded.is_signed_by(Role::Issuer, *key)) else {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        };
        let Some(op) = self.wallet.pending().filter(|op| op.id() == recorded.op) else {
            self.views.learn_balance(key, balance);
            return;
        };
        let next = op.sequence.saturating_add(1);
        self.views.learn(key, View { next, head: op.id(), balance });
        self.answers.recorded(key, recorded);
        if self.answers.is_committed(&self.config.manifest) {
            self.commit(now, out);
        }
    }

    /// The pending step is done.
    fn commit(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Some(op) = self.wallet.pending().cloned() else { return };
        let balance = self.supported_balance();
        self.wallet.recorded(op.id(), balance);
        let terms = self.opening_terms.take();
        let answers = core::mem::take(&mut self.answers);
        if matches!(op.body, OpBody::Rotate(_)) {
            self.on_rotated(now, out);
        }
        if let (OpBody::OpenChannel(open), Some(terms)) = (&op.body, terms) {
            let payer = open.payer;
            let opening = Opening { op, terms, recorded: answers.recordings() };
            if payer != self.me {
                self.lend(payer, opening, out);
                self.resume_openings(now, out);
                return;
            }
            out.push(Effect::Record(Record::Paying(opening.signed())));
            let (id, channel) = (opening.op.id(), ChannelId::from(opening.op.id()));
            if self.adopt_paying(opening, now) {
                self.on_opened(id, channel, now, out);
            }
        } else if let Some(recorded) = answers.recording(&self.config.manifest) {
            self.on_step_taken(&op, recorded, out);
        }
        self.resume_openings(now, out);
    }

    pub(super) fn on_step_refused(
        &mut self,
        from: NodeId,
        op: RecordId,
        error: IssuerError,
        balance: Balance,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from) else { return };
        self.views.learn_balance(key, balance);
        // An issuer that is behind is asked again when it has caught up, or counts what others have paid.
        if !self.is_pending(op) || error == IssuerError::Behind {
            return;
        }
        if matches!(error, IssuerError::Uncounted { .. }) && !mutant::is_in("uncounted-refuses") {
            return self.answers.uncounted(key, error);
        }
        // In a slot that was freed a liar's vote may not count, while honest issuers hold the step and say so.
        let manifest = &self.config.manifest;
        let is_void = error == IssuerError::WrongEpoch && self.answers.is_certified(manifest);
        if is_void && !mutant::is_in("void-vote-refuses") {
            if !self.answers.has_void() {
                self.answers.some_are_void();
                self.resend_to_all(out);
            }
        } else if self.answers.refused(key, error, manifest) {
            self.abandon(op, error, now, out);
        }
    }

    /// A quorum has refused the pending step, or a checkpoint has freed its slot: another may be signed. Nobody is told
    /// before that is on disk: a node that starts again must not make a step that it called refused.
    fn abandon(&mut self, op: RecordId, error: IssuerError, now: Time, out: &mut Vec<Effect>) {
        if !mutant::is_in("refusal-not-kept") {
            out.push(Effect::Record(Record::GivenUp(op)));
        }
        let balance = self.supported_balance();
        let step = self.wallet.pending().cloned();
        // The same place behind another head: a checkpoint has freed it.
        let freed = self.wallet.pending().filter(|_| self.has_many_issuers());
        let freed = freed.map(|op| IssuerError::WrongSequence { next: op.sequence });
        let error = if Some(error) == freed { IssuerError::Lapsed } else { error };
        let is_misplaced = self.has_many_issuers() && matches!(error, IssuerError::WrongSequence { .. });
        self.wallet.refused(op, balance, is_misplaced || error == IssuerError::Lapsed);
        self.opening_terms = None;
        // One issuer alone could say so, and what waits would fail for its word.
        let full = self.answers.lacks_room(&self.config.manifest);
        self.answers = Answers::default();
        self.on_refused_rotation(error);
        self.refuse_lending(op, error, out);
        let failure = failure_of(full.unwrap_or(error));
        self.on_opening_refused(op, failure.clone(), out);
        if full.is_some() {
            // What waits would be refused like it, one after the other.
            self.fail_openings(&failure, out);
        }
        self.on_order_refused(op, error, out);
        step.inspect(|step| self.on_refused_expiry(step, error));
        let is_behind = matches!(
            error,
            IssuerError::WrongSequence { .. } | IssuerError::KeyReplaced | IssuerError::Lapsed
        );
        if is_behind {
            self.query_account(out);
        }
        self.resume_openings(now, out);
    }

    /// Returns why a job has waited for its channel in vain.
    pub(super) fn why_not_opened(&self) -> Failure {
        let manifest = &self.config.manifest;
        let error = self.answers.lacks_room(manifest).or_else(|| self.answers.lacks_credits(manifest));
        error.map_or(Failure::IssuerUnreachable, failure_of)
    }

    fn is_pending(&self, op: RecordId) -> bool {
        self.wallet.pending().is_some_and(|pending| pending.id() == op)
    }

    pub(super) fn query_account(&mut self, out: &mut Vec<Effect>) {
        for issuer in self.issuers() {
            self.send(issuer, Message::AccountQuery, out);
        }
    }

    pub(super) fn query_account_if_unknown(&mut self, out: &mut Vec<Effect>) {
        if self.wallet.pending().is_none() {
            self.query_account(out);
        }
    }

    pub(super) fn on_account_state(
        &mut self,
        from: NodeId,
        account: crate::ids::AccountId,
        view: View,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from).filter(|_| account == self.wallet.account()) else { return };
        self.views.learn(key, view);
        let epoch = self.epoch(now);
        if let Some(supported) = self.views.supported(&self.config.manifest) {
            self.balance_is_old = false;
            if let Some((op, error)) = self.learn_supported(supported, epoch) {
                self.abandon(op, error, now, out);
            }
        }
        if !self.has_many_issuers() {
            self.checkpoints.told(view.balance, view.next, epoch);
        }
        self.resend_step(from, out);
        self.resume_openings(now, out);
    }

    /// Learns what a quorum supports; returns our pending step if it can never be made, and why. Where the account stands
    /// a quorum must name, because a checkpoint may have dropped what only some honest issuers have recorded; that a
    /// checkpoint has freed the slot of our step one honest issuer knows.
    pub(super) fn learn_supported(
        &mut self,
        supported: Supported,
        now: Epoch,
    ) -> Option<(RecordId, IssuerError)> {
        let Supported { agreed, vouched, balance } = supported;
        let freed = vouched.iter().find(|slot| self.wallet.is_freed(**slot, now));
        let rash = vouched.last().filter(|_| mutant::is_in("vouched-head-stands"));
        let Some((next, head)) = freed.or(rash).copied().or(agreed) else {
            self.wallet.take(balance);
            return None;
        };
        self.wallet.learn(next, head, balance, now)
    }

    /// Learns from an issuer what time it is there.
    pub(super) fn on_clock(&mut self, from: NodeId, theirs: Time, now: Time) {
        if let Some(key) = self.issuer_key(from).filter(|_| from != self.me) {
            self.clocks.hear(key, theirs, now);
        }
    }

    fn supported_balance(&self) -> Balance {
        let supported = self.views.supported(&self.config.manifest);
        supported.map_or_else(|| self.wallet.balance(), |view| view.balance)
    }

    /// Returns the keys and nodes of the issuers that can be spoken to now.
    pub(super) fn issuers_with_keys(&self) -> Vec<(PublicKey, NodeId)> {
        let issuers = self.issuers().into_iter();
        issuers.filter_map(|node| Some((self.issuer_key(node)?, node))).collect()
    }
}
