//! One issuer of several agrees with the others on the next checkpoint, and follows those that stand.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::agreeing::{AgreedRecord, Agreeing, FROZEN_PER_LINE, NAMES_PER_LINE, names_of};
use crate::books::BooksMessage;
use crate::ids::{AccountId, Digest, NodeId, RecordId};
use crate::keys::PublicKey;
use crate::ledger::agreement::{Agreement, Ballot, BallotError, Phase};
use crate::ledger::checkpoint::{Checkpoint, is_signed_by_quorum};
use crate::ledger::facts::{NAMES_MAX, WANTED_MAX};
use crate::ledger::finding::Finding;
use crate::ledger::quorum::{Fact, is_agreed};
use crate::ledger::records::Epoch;
use crate::ledger::settled::{BATCH_MAX, Outcome, digest_of};
use crate::message::{Checked, Message};
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified, id_of};
use crate::time::Time;

use super::replay::ReplayError;
use super::{Effect, Node, Offence, Timer};

/// How often an issuer repeats what others may have missed, in milliseconds.
const REPEAT_MS: u64 = 1_000;

/// The same when a round lasts long: then too few issuers are there, and more words do not help.
const REPEAT_LATE_MS: u64 = 5_000;

/// How long an answer about names and facts is waited for.
const FETCH_MS: u64 = 500;

/// Facts fetched in a second before the rest waits for the next one: who sends faster would be taken for a flood.
const FETCHED_PER_SECOND: u32 = 1_000;

/// What an issuer knows of the agreement on the next checkpoint.
#[derive(Debug, Default)]
pub(super) struct Convention {
    agreement: Option<Agreement>,
    /// The newest proposal of each issuer.
    proposals: BTreeMap<NodeId, Proposal>,
    /// The names of the facts of proposed checkpoints, as far as they were told.
    batches: BTreeMap<Digest, Batch>,
    /// What checkpoints come to that we have computed.
    outcomes: BTreeMap<RecordId, Outcome>,
    /// Facts that we have asked for, and whom: what others say of them may be another certificate than the one that counts.
    wanted: BTreeSet<RecordId>,
    asked: Option<NodeId>,
    /// When the present second of fetching began, and how many facts have come in it.
    came: (Time, u32),
    /// The checkpoint that each issuer has signed.
    signed: BTreeMap<PublicKey, Verified<Checkpoint>>,
    /// Checkpoints whose names are in our journal.
    written: BTreeMap<RecordId, Checkpoint>,
    fetched: Time,
    /// The checkpoint that stands and that we cannot follow yet.
    standing: Option<(RecordId, Checkpoint)>,
    /// Which of the others is asked about it: one after the other, for some may not have it, or lie.
    turn: usize,
    /// While the journal is read: names that a line to come will claim.
    names: Vec<Vec<RecordId>>,
}

#[derive(Debug, Clone)]
struct Proposal {
    round: u32,
    id: RecordId,
    checkpoint: Checkpoint,
    prepares: Vec<Verified<Ballot>>,
    /// Its facts do not lead to it.
    is_refused: bool,
}

#[derive(Debug, Clone, Default)]
struct Batch {
    names: Vec<RecordId>,
    is_whole: bool,
    /// Who was asked for them: nobody else may add to them.
    of: Option<NodeId>,
}

impl Convention {
    /// Forgets an agreement that is over.
    fn end(&mut self) {
        *self = Self::default();
    }

    /// Says whether a checkpoint stands that we have not followed yet.
    pub(super) const fn is_behind(&self) -> bool {
        self.standing.is_some()
    }

    /// Returns the content of a checkpoint that was proposed or signed.
    fn content(&self, id: RecordId) -> Option<&Checkpoint> {
        let proposed = self.proposals.values().find(|proposal| proposal.id == id);
        let signed = || self.signed.values().find(|signed| signed.id() == id);
        let proposed = proposed.map(|proposal| &proposal.checkpoint);
        let standing = || self.standing.as_ref().filter(|(standing, _)| *standing == id);
        proposed
            .or_else(|| self.written.get(&id))
            .or_else(|| signed().map(|signed| &**signed))
            .or_else(|| standing().map(|(_, checkpoint)| checkpoint))
    }

    /// Keeps in memory what may still be needed, so that liars cannot fill it; returns the digests of the facts of
    /// those checkpoints.
    fn tidy(&mut self) -> BTreeSet<Digest> {
        let proposed = self.proposals.values().map(|proposal| proposal.id);
        let locked =
            self.agreement.as_ref().and_then(|agreement| agreement.lock()).map(|lock| lock.checkpoint);
        let signed = self.signed.values().map(|signed| signed.id());
        let standing = self.standing.as_ref().map(|(id, _)| *id);
        let ids: BTreeSet<RecordId> = proposed.chain(locked).chain(signed).chain(standing).collect();
        self.outcomes.retain(|id, _| ids.contains(id));
        self.written.retain(|id, _| ids.contains(id));
        let digests: BTreeSet<Digest> =
            ids.iter().filter_map(|id| self.content(*id)).map(|content| content.facts).collect();
        self.batches.retain(|digest, _| digests.contains(digest));
        digests
    }
}

impl Node {
    /// As one of several issuers: begins to agree when an epoch is over that no checkpoint states.
    pub(super) fn begin_agreement(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Some(over) = self.epoch(now).0.checked_sub(1).map(Epoch) else { return };
        let Some(issuing) = self.issuing.as_mut().filter(|_| self.config.manifest.issuers.len() > 1) else {
            return;
        };
        let (epoch, previous) = (issuing.settled.epoch(), issuing.settled.previous());
        if epoch.is_some_and(|epoch| epoch >= over) || self.deadlines.is_set(&Timer::Agreement) {
            return;
        }
        let turn = epoch.map_or(0, |epoch| epoch.0.saturating_add(1));
        issuing.agreeing.agreement.get_or_insert_with(|| Agreement::new(previous, turn));
        self.deadlines.set(Timer::Agreement, now.plus_ms(REPEAT_MS));
        self.progress(now, out);
    }

    pub(super) fn on_agreement_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        let manifest = &self.config.manifest;
        let Some(issuing) = &mut self.issuing else { return };
        let me = issuing.key();
        let Some(agreement) = &mut issuing.agreeing.agreement else { return };
        if agreement.is_over(me, now, manifest) {
            agreement.enter(agreement.round().saturating_add(1));
        }
        let late = agreement.round() as usize > manifest.issuers.len();
        let ms = if late { REPEAT_LATE_MS } else { REPEAT_MS };
        self.deadlines.set(Timer::Agreement, now.plus_ms(ms));
        self.repeat(out);
        self.progress(now, out);
    }

    /// Repeats what others may have missed.
    fn repeat(&mut self, out: &mut Vec<Effect>) {
        let Some(issuing) = &self.issuing else { return };
        let (me, convention) = (issuing.key(), &issuing.agreeing);
        let Some(agreement) = &convention.agreement else { return };
        let (previous, round) = (agreement.previous(), agreement.round());
        let mut messages = Vec::from([Agreeing::Round { previous, round }]);
        messages.extend(agreement.own(me).into_iter().map(Agreeing::Ballot));
        messages.extend(convention.signed.get(&me).cloned().map(Agreeing::Signed));
        self.repeat_proposal(out);
        for message in messages {
            self.tell_issuers(&Message::Agreeing(message), out);
        }
    }

    pub(super) fn on_agreeing(
        &mut self,
        from: NodeId,
        message: Agreeing<Checked>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from) else {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        };
        if self.issuing.is_none() {
            return;
        }
        match message {
            Agreeing::Round { previous, round } => self.on_round(from, (key, previous, round), out),
            Agreeing::Proposal { round, checkpoint, prepares } => {
                self.on_proposal(from, round, *checkpoint, prepares, out);
            }
            Agreeing::NamesQuery { facts, from: first } => self.on_names_query(from, facts, first, out),
            Agreeing::Names { facts, from: first, names } => {
                self.on_names(from, facts, first, names, (now, out))
            }
            Agreeing::Ballot(ballot) => self.on_ballot(from, key, &ballot, out),
            Agreeing::Signed(checkpoint) => self.on_signed(from, key, checkpoint, now, out),
            Agreeing::Locked(op) => self.on_locked(from, &op, now, out),
        }
        self.progress(now, out);
    }

    fn on_round(
        &mut self,
        from: NodeId,
        (key, previous, round): (PublicKey, RecordId, u32),
        out: &mut Vec<Effect>,
    ) {
        let manifest = &self.config.manifest;
        let Some(issuing) = &mut self.issuing else { return };
        let agreement = issuing.agreeing.agreement.as_mut();
        if let Some(agreement) = agreement.filter(|agreement| agreement.previous() == previous) {
            if let Some(round) = agreement.is_in(key, round, manifest) {
                agreement.enter(round);
            }
            return;
        }
        // Whoever is still at one that we are past is shown what followed.
        let next = self.checkpoints().iter().find(|kept| kept.previous == previous).cloned();
        if let Some(next) = next {
            self.send(from, Message::Books(BooksMessage::Checkpoint(next)), out);
        }
    }

    fn on_proposal(
        &mut self,
        from: NodeId,
        round: u32,
        checkpoint: Checkpoint,
        prepares: Vec<Verified<Ballot>>,
        out: &mut Vec<Effect>,
    ) {
        let (domain, manifest) = (self.domain, &self.config.manifest);
        let Some(issuing) = &mut self.issuing else { return };
        let convention = &mut issuing.agreeing;
        let Some(agreement) = convention.agreement.as_ref() else { return };
        if checkpoint.previous != agreement.previous() {
            return;
        }
        if agreement.proposer(round, manifest).is_none_or(|proposer| proposer.node != from) {
            return out.push(Effect::Penalise(from, Offence::WrongSigner));
        }
        let id = id_of(&checkpoint, domain);
        match convention.proposals.get(&from) {
            Some(known) if known.round > round => {}
            Some(known) if known.round == round => {
                if known.id != id {
                    out.push(Effect::Penalise(from, Offence::BadLedger));
                }
            }
            Some(_) | None => {
                let proposal = Proposal { round, id, checkpoint, prepares, is_refused: false };
                convention.proposals.insert(from, proposal);
                self.tidy_agreement();
            }
        }
    }

    fn tidy_agreement(&mut self) {
        let Some(issuing) = &mut self.issuing else { return };
        let needed = issuing.agreeing.tidy();
        issuing.settled.release(&needed);
    }

    fn on_names_query(&mut self, from: NodeId, facts: Digest, first: u32, out: &mut Vec<Effect>) {
        let Some(issuing) = &self.issuing else { return };
        let batch = issuing.agreeing.batches.get(&facts).filter(|batch| batch.is_whole);
        let names = batch.map(|batch| batch.names.as_slice()).or_else(|| issuing.settled.past(facts));
        let page = names.and_then(|names| names.get(first as usize..));
        if let Some(page) = page {
            let names = page.iter().take(NAMES_MAX).copied().collect();
            self.send(from, Message::Agreeing(Agreeing::Names { facts, from: first, names }), out);
        }
    }

    fn on_names(
        &mut self,
        from: NodeId,
        facts: Digest,
        first: u32,
        names: Vec<RecordId>,
        (now, out): (Time, &mut Vec<Effect>),
    ) {
        let Some(issuing) = &mut self.issuing else { return };
        let convention = &mut issuing.agreeing;
        let Some(batch) = convention.batches.get_mut(&facts).filter(|batch| !batch.is_whole) else { return };
        if batch.of != Some(from) || batch.names.len() != first as usize {
            return;
        }
        let is_last = names.len() < NAMES_MAX;
        batch.names.extend(names.into_iter().take(NAMES_MAX));
        convention.fetched = Time::default();
        if is_last && digest_of(&batch.names) == facts && batch.names.len() <= BATCH_MAX {
            batch.is_whole = true;
        } else if is_last || batch.names.len() > BATCH_MAX {
            // From the beginning, from whoever is next, and not at once.
            *batch = Batch::default();
            convention.fetched = now;
            convention.turn = convention.turn.wrapping_add(1);
            out.push(Effect::Penalise(from, Offence::BadLedger));
        }
    }

    fn on_ballot(&mut self, from: NodeId, key: PublicKey, ballot: &Verified<Ballot>, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        let Some(agreement) = &mut issuing.agreeing.agreement else { return };
        match agreement.hear(key, ballot) {
            Ok(()) => {}
            Err(BallotError::WrongSigner) => out.push(Effect::Penalise(from, Offence::WrongSigner)),
            Err(BallotError::Twice) => out.push(Effect::Penalise(from, Offence::BadLedger)),
        }
    }

    fn on_signed(
        &mut self,
        from: NodeId,
        key: PublicKey,
        checkpoint: Verified<Checkpoint>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let manifest = &self.config.manifest;
        let is_by_issuers = checkpoint.signers(Role::Issuer).all(|signer| manifest.has_issuer_key(signer))
            && checkpoint.signers(Role::Issuer).count() == checkpoint.signature_count();
        if !is_by_issuers || !checkpoint.is_signed_by(Role::Issuer, key) {
            return out.push(Effect::Penalise(from, Offence::WrongSigner));
        }
        if is_signed_by_quorum(&checkpoint, manifest) {
            return self.on_checkpoint(None, checkpoint, now, out);
        }
        let Some(issuing) = &mut self.issuing else { return };
        if checkpoint.previous == issuing.settled.previous() {
            let convention = &mut issuing.agreeing;
            match convention.signed.get(&key).cloned() {
                Some(known) if known.id() == checkpoint.id() => {
                    let known = known.with_signatures_of(&checkpoint, |_, _| true);
                    convention.signed.insert(key, known);
                }
                Some(known) if known.epoch == checkpoint.epoch => {
                    self.prove_forked(known, checkpoint, out);
                }
                Some(_) | None => {
                    convention.signed.insert(key, checkpoint);
                    self.tidy_agreement();
                }
            }
        }
    }

    /// Does whatever can be done now.
    pub(super) fn progress(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.adopt_next(now, out);
        self.propose_checkpoint(now, out);
        self.prepare(now, out);
        self.commit_ballot(out);
        self.sign_decided(out);
        self.complete(now, out);
        self.adopt_next(now, out);
    }

    /// Proposes, if it is our turn and we have not.
    fn propose_checkpoint(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Some(over) = self.epoch(now).0.checked_sub(1).map(Epoch) else { return };
        let (me, domain, manifest) = (self.me, self.domain, &self.config.manifest);
        let Some(issuing) = &mut self.issuing else { return };
        let Some(agreement) = &issuing.agreeing.agreement else { return };
        let round = agreement.round();
        let is_ours = agreement.proposer(round, manifest).is_some_and(|proposer| proposer.node == me);
        let has_proposed = issuing.agreeing.proposals.get(&me).is_some_and(|ours| ours.round >= round);
        if !is_ours || has_proposed {
            return;
        }
        let key = issuing.key();
        let begun = agreement.lock().map(|lock| (lock.checkpoint, lock.prepares.clone()));
        // After a crash in this round it must be what we have prepared in it.
        let begun = begun.or_else(|| Some((agreement.prepared(key)?, Vec::new())));
        let (checkpoint, prepares) = match begun {
            Some((id, prepares)) => match issuing.agreeing.content(id) {
                Some(checkpoint) => (checkpoint.clone(), prepares),
                // Somebody else who is locked on it knows it.
                None => return,
            },
            None => {
                let Ok((names, outcome)) = issuing.settled.propose(over) else { return };
                let checkpoint = outcome.checkpoint.clone();
                issuing.settled.hold(checkpoint.facts, &names);
                let agreeing = &mut issuing.agreeing;
                agreeing.batches.insert(checkpoint.facts, Batch { names, is_whole: true, of: None });
                agreeing.outcomes.insert(id_of(&checkpoint, domain), outcome);
                (checkpoint, Vec::new())
            }
        };
        let id = id_of(&checkpoint, domain);
        let proposal = Proposal { round, id, checkpoint, prepares, is_refused: false };
        issuing.agreeing.proposals.insert(me, proposal);
        self.tidy_agreement();
        self.prepare(now, out);
        self.repeat_proposal(out);
    }

    /// Says what we propose in this round, once we have prepared it ourselves and that is on its way to the disk.
    fn repeat_proposal(&mut self, out: &mut Vec<Effect>) {
        let Some(issuing) = &self.issuing else { return };
        let convention = &issuing.agreeing;
        let Some(agreement) = &convention.agreement else { return };
        let Some(Proposal { round, id, checkpoint, prepares, .. }) = convention.proposals.get(&self.me)
        else {
            return;
        };
        if *round == agreement.round() && agreement.prepared(issuing.key()) == Some(*id) {
            let (checkpoint, prepares) = (Box::new(checkpoint.clone()), prepares.clone());
            let message = Agreeing::Proposal { round: *round, checkpoint, prepares };
            self.tell_issuers(&Message::Agreeing(message), out);
        }
    }

    /// Prepares what the proposer of our round proposes, once we have come to the same.
    fn prepare(&mut self, now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        let manifest = &self.config.manifest;
        let Some(issuing) = &self.issuing else { return };
        let (me, convention) = (issuing.key(), &issuing.agreeing);
        let Some(agreement) = &convention.agreement else { return };
        let round = agreement.round();
        let Some(proposer) = agreement.proposer(round, manifest).map(|issuer| issuer.node) else { return };
        let proposal = convention.proposals.get(&proposer).filter(|proposal| proposal.round == round);
        let proposal = proposal.filter(|proposal| !proposal.is_refused);
        let Some(Proposal { id, checkpoint, prepares, .. }) = proposal.cloned() else { return };
        let is_over = checkpoint.epoch < epoch
            && issuing.settled.epoch().is_none_or(|settled| settled < checkpoint.epoch);
        if agreement.prepared(me).is_some()
            || !is_over
            || !agreement.may_prepare(me, id, &prepares, manifest)
            || !self.has_outcome(id, &checkpoint, proposer, now, out)
        {
            return;
        }
        let Some(issuing) = &self.issuing else { return };
        // What a quorum has prepared can be recorded by no quorum any more, whatever we have recorded ourselves.
        let Some(agreement) = &issuing.agreeing.agreement else { return };
        let is_proven = agreement.is_proven(id, &prepares, &self.config.manifest);
        let objects = |outcome| issuing.objects(outcome) && !is_proven;
        if issuing.agreeing.outcomes.get(&id).is_none_or(objects) {
            return;
        }
        self.write_candidate(id, out);
        self.freeze(id, out);
        self.cast(
            Ballot { previous: checkpoint.previous, round, phase: Phase::Prepare, checkpoint: id },
            out,
        );
    }

    /// Says whether we know what a checkpoint comes to, and that it is what it says; asks `of` for what is missing.
    fn has_outcome(
        &mut self,
        id: RecordId,
        checkpoint: &Checkpoint,
        of: NodeId,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(issuing) = &mut self.issuing else { return false };
        if issuing.agreeing.outcomes.contains_key(&id) {
            return true;
        }
        let is_ours = of == self.me;
        if now.since_ms(issuing.agreeing.fetched) < FETCH_MS && !is_ours {
            return false;
        }
        let facts = checkpoint.facts;
        let (witness, agreeing) = (&mut issuing.witness, &mut issuing.agreeing);
        let batch = agreeing.batches.entry(facts).or_default();
        if !batch.is_whole {
            if is_ours {
                return false;
            }
            if batch.of != Some(of) {
                *batch = Batch { of: Some(of), ..Batch::default() };
            }
            let from = u32::try_from(batch.names.len()).unwrap_or(u32::MAX);
            agreeing.fetched = now;
            self.send(of, Message::Agreeing(Agreeing::NamesQuery { facts, from }), out);
            return false;
        }
        let missing = batch.names.iter().filter(|name| witness.settled.get(name).is_none());
        let missing: Vec<RecordId> = missing.take(WANTED_MAX).copied().collect();
        if !missing.is_empty() {
            if !is_ours {
                witness.settled.make_room(missing.len());
                agreeing.fetched = now;
                agreeing.wanted = missing.iter().copied().collect();
                agreeing.asked = Some(of);
                self.send(of, Message::FactQuery(missing), out);
            }
            return false;
        }
        match witness.settled.outcome(checkpoint.epoch, &batch.names) {
            Ok(outcome) if outcome.checkpoint == *checkpoint => {
                // Not before: what was learned may be what does not lead to it.
                witness.settled.hold(facts, &batch.names);
                agreeing.outcomes.insert(id, outcome);
                true
            }
            failed => {
                // Whoever was asked may have shown us another certificate of a step than the one that counts.
                witness.settled.forget_learned();
                agreeing.batches.remove(&facts);
                agreeing.fetched = now;
                agreeing.turn = agreeing.turn.wrapping_add(1);
                let proposals = agreeing.proposals.values_mut();
                proposals
                    .filter(|proposal| proposal.id == id)
                    .for_each(|proposal| proposal.is_refused = true);
                let is_standing = agreeing.standing.as_ref().is_some_and(|(other, _)| *other == id);
                if failed.is_ok() && !is_standing {
                    out.push(Effect::Penalise(of, Offence::BadLedger));
                }
                self.tidy_agreement();
                false
            }
        }
    }

    /// Keeps a fact that we have asked for and that our books have not taken.
    pub(super) fn learned(&mut self, from: NodeId, fact: &Fact<Checked>, now: Time, out: &mut Vec<Effect>) {
        let manifest = &self.config.manifest;
        let Some(issuing) = &mut self.issuing else { return };
        let name = fact.name();
        if issuing.agreeing.asked != Some(from) || !issuing.agreeing.wanted.contains(&name) {
            return;
        }
        let is_proven = match fact {
            Fact::Deposit(deposit) => is_agreed(deposit, manifest),
            Fact::Step(certificate) => certificate.check(manifest).is_ok() && certificate.has_its_terms(),
            Fact::End(certificate) => certificate.check(manifest).is_ok(),
            // Their names are those of all their parts.
            Fact::Redeemed { .. } | Fact::Doubled(..) | Fact::Lapsed(_) => true,
            Fact::Paid(_) => false,
        };
        if !is_proven || issuing.settled.is_void(fact) {
            // That is no answer: somebody else is asked.
            return;
        }
        issuing.settled.learn(Arc::new(fact.clone()));
        let convention = &mut issuing.agreeing;
        convention.wanted.remove(&name);
        let in_second = now.since_ms(convention.came.0) < 1_000;
        convention.came =
            if in_second { (convention.came.0, convention.came.1.saturating_add(1)) } else { (now, 1) };
        if convention.wanted.is_empty() && convention.came.1 < FETCHED_PER_SECOND {
            issuing.agreeing.fetched = Time::default();
            self.progress(now, out);
        }
    }

    /// Writes down to which facts a checkpoint leads, and those that our journal lacks: after a crash they must be there.
    fn write_candidate(&mut self, id: RecordId, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        let Some(outcome) = issuing.agreeing.outcomes.get(&id) else { return };
        let checkpoint = outcome.checkpoint.clone();
        let Some(batch) = issuing.agreeing.batches.get(&checkpoint.facts) else { return };
        if issuing.agreeing.written.contains_key(&id) {
            return;
        }
        let agreed = |record| Effect::Record(Record::Agreed(record));
        let learned = batch.names.iter().filter(|name| !issuing.settled.has_taken(name));
        let learned = learned.filter_map(|name| issuing.settled.get(name));
        out.extend(learned.map(|fact| agreed(AgreedRecord::Learned(fact.signed()))));
        let pages = batch.names.chunks(NAMES_PER_LINE);
        out.extend(pages.map(|page| agreed(AgreedRecord::Names(page.to_vec()))));
        out.push(agreed(AgreedRecord::Candidate(checkpoint.clone())));
        issuing.agreeing.written.insert(id, checkpoint);
    }

    fn freeze(&mut self, id: RecordId, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        let Some(outcome) = issuing.agreeing.outcomes.get(&id) else { return };
        let Checkpoint { epoch, facts, .. } = outcome.checkpoint;
        let slots: Vec<(AccountId, u64)> = outcome.freed.clone();
        let channels: Vec<_> = outcome.ended.iter().map(|(channel, _)| *channel).collect();
        for page in slots.chunks(FROZEN_PER_LINE) {
            let line = AgreedRecord::Frozen { epoch, slots: page.to_vec(), channels: Vec::new() };
            out.push(Effect::Record(Record::Agreed(line)));
        }
        for page in channels.chunks(FROZEN_PER_LINE) {
            let line = AgreedRecord::Frozen { epoch, slots: Vec::new(), channels: page.to_vec() };
            out.push(Effect::Record(Record::Agreed(line)));
        }
        issuing.freeze(epoch, &slots, &channels);
        if let Some(batch) = issuing.agreeing.batches.get(&facts) {
            issuing.witness.freeze_paid(&batch.names);
        }
    }

    /// Commits what a quorum has prepared.
    fn commit_ballot(&mut self, out: &mut Vec<Effect>) {
        let manifest = &self.config.manifest;
        let Some(issuing) = &mut self.issuing else { return };
        let me = issuing.key();
        let Some(agreement) = &mut issuing.agreeing.agreement else { return };
        let Some(lock) = agreement.to_commit(me, manifest) else { return };
        let (round, checkpoint, previous) = (lock.round, lock.checkpoint, agreement.previous());
        agreement.lock_on(lock);
        self.cast(Ballot { previous, round, phase: Phase::Commit, checkpoint }, out);
    }

    /// Writes our vote down, and sends it.
    fn cast(&mut self, ballot: Ballot, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        let (me, phase, ballot) = (issuing.key(), ballot.phase, issuing.sign(ballot));
        let Some(agreement) = &mut issuing.agreeing.agreement else { return };
        if agreement.hear(me, &ballot).is_err() {
            return;
        }
        let lock = agreement.lock().filter(|_| phase == Phase::Commit);
        let prepares =
            lock.map_or_else(Vec::new, |lock| lock.prepares.iter().map(Verified::signed).collect());
        let line = Record::Agreed(AgreedRecord::Balloted { ballot: ballot.signed(), prepares });
        let early = mutant::is_in("ballot-before-disk");
        out.push(if early { Effect::Note(line) } else { Effect::Record(line) });
        self.tell_issuers(&Message::Agreeing(Agreeing::Ballot(ballot)), out);
    }

    /// Signs the checkpoint that a quorum has committed.
    fn sign_decided(&mut self, out: &mut Vec<Effect>) {
        let manifest = &self.config.manifest;
        let Some(issuing) = &mut self.issuing else { return };
        let me = issuing.key();
        let decided = issuing.agreeing.agreement.as_ref().and_then(|agreement| agreement.decided(manifest));
        let Some(id) = decided.filter(|_| !issuing.agreeing.signed.contains_key(&me)) else { return };
        let Some(checkpoint) = issuing.agreeing.content(id).cloned() else { return };
        let signed = issuing.sign(checkpoint);
        issuing.agreeing.signed.insert(me, signed.clone());
        out.push(Effect::Record(Record::Agreed(AgreedRecord::Signed(signed.signed()))));
        self.tell_issuers(&Message::Agreeing(Agreeing::Signed(signed)), out);
    }

    /// Puts the signatures of a quorum together.
    fn complete(&mut self, now: Time, out: &mut Vec<Effect>) {
        let manifest = &self.config.manifest;
        let Some(issuing) = &self.issuing else { return };
        let signed = &issuing.agreeing.signed;
        let whole = signed.values().find_map(|one| {
            let others = signed.values().fold(one.clone(), |all, other| {
                all.with_signatures_of(other, |role, key| {
                    role == Role::Issuer && manifest.has_issuer_key(key)
                })
            });
            is_signed_by_quorum(&others, manifest).then_some(others)
        });
        if let Some(whole) =
            whole.filter(|whole| self.checkpoints().iter().all(|kept| kept.id() != whole.id()))
        {
            self.on_checkpoint(None, whole.clone(), now, out);
            out.push(Effect::Spread(BooksMessage::<Checked>::Checkpoint(whole).to_wire()));
        }
    }

    /// Follows the checkpoints that stand and come after ours.
    pub(super) fn adopt_next(&mut self, now: Time, out: &mut Vec<Effect>) {
        loop {
            let Some(issuing) = &self.issuing else { return };
            if !issuing.books.is_one_of_many() {
                return;
            }
            let previous = issuing.settled.previous();
            let next = self.checkpoints().iter().find(|kept| kept.previous == previous).cloned();
            let Some(next) = next else { return };
            let others: Vec<NodeId> = self.issuers().into_iter().filter(|node| *node != self.me).collect();
            let Some(of) = self.stands(&next, now).checked_rem(others.len()) else { return };
            let of = others.get(of).copied().unwrap_or(self.me);
            if !self.has_outcome(next.id(), &next, of, now, out) {
                return;
            }
            self.write_candidate(next.id(), out);
            out.push(Effect::Record(Record::Agreed(AgreedRecord::Adopted(next.signed()))));
            let ended = self.adopt(&next);
            for channel in ended {
                self.acknowledge(channel, now, out);
            }
            self.tell_everybody(out);
            self.deadlines.clear(&Timer::Agreement);
            self.send(self.me, Message::Books(BooksMessage::LeafQuery), out);
        }
    }

    /// Notes a checkpoint that stands and that we shall follow; returns whose turn it is to be asked about it.
    fn stands(&mut self, next: &Verified<Checkpoint>, now: Time) -> usize {
        let Some(issuing) = &mut self.issuing else { return 0 };
        let convention = &mut issuing.agreeing;
        let known = convention.standing.replace((next.id(), Checkpoint::clone(next)));
        let is_unanswered =
            convention.fetched != Time::default() && now.since_ms(convention.fetched) >= FETCH_MS;
        if known.is_some() && is_unanswered {
            convention.turn = convention.turn.wrapping_add(1);
        }
        convention.turn
    }

    /// Lets our books follow a checkpoint whose outcome we know; returns the channels that it ended.
    fn adopt(&mut self, checkpoint: &Verified<Checkpoint>) -> Vec<crate::ids::ChannelId> {
        let Some(issuing) = &mut self.issuing else { return Vec::new() };
        let Some(outcome) = issuing.agreeing.outcomes.remove(&checkpoint.id()) else { return Vec::new() };
        let Some(batch) = issuing.agreeing.batches.remove(&checkpoint.facts) else { return Vec::new() };
        let ended = outcome.ended.iter().map(|(channel, _)| *channel).collect();
        // The sums were stated once, for the checkpoint itself.
        let _ = issuing.ends.keep(checkpoint.epoch, outcome.books.snapshot());
        issuing.witness.adopt(checkpoint.id(), &batch.names, outcome);
        issuing.agreeing.end();
        ended
    }

    /// Tells everybody who is connected what its account holds.
    fn tell_everybody(&mut self, out: &mut Vec<Effect>) {
        let accounts: BTreeSet<AccountId> = self.peers().filter_map(|peer| peer.account).collect();
        for account in accounts {
            self.tell_account(account, out);
        }
    }

    /// Takes back a line about an agreement.
    pub(super) fn replay_agreed(&mut self, record: AgreedRecord) -> Result<(), ReplayError> {
        let domain = self.domain;
        let Some(issuing) = &mut self.issuing else { return Ok(()) };
        match record {
            AgreedRecord::Taken(fact) => issuing.replay_taken(fact.read_back(domain)?)?,
            AgreedRecord::Learned(fact) => issuing.settled.learn(Arc::new(fact.read_back(domain)?)),
            AgreedRecord::Names(names) => issuing.agreeing.names.push(names),
            AgreedRecord::Candidate(checkpoint) => {
                let names = names_of(core::mem::take(&mut issuing.agreeing.names), checkpoint.facts);
                issuing.settled.hold(checkpoint.facts, &names);
                // Whether it was prepared too does not matter: no more is frozen than may be.
                issuing.freeze_paid(&names);
                let batch = Batch { names, is_whole: true, of: None };
                issuing.agreeing.batches.insert(checkpoint.facts, batch);
                issuing.agreeing.written.insert(id_of(&checkpoint, domain), checkpoint);
            }
            AgreedRecord::Frozen { epoch, slots, channels } => issuing.freeze(epoch, &slots, &channels),
            AgreedRecord::Balloted { ballot, prepares } => {
                let ballot = ballot.read_back(domain)?;
                let prepares = prepares.into_iter().map(|prepare| prepare.read_back(domain));
                let prepares = prepares.collect::<Result<_, _>>()?;
                self.restore_ballot(&ballot, prepares);
            }
            AgreedRecord::Signed(checkpoint) => {
                let (key, checkpoint) = (issuing.key(), checkpoint.read_back(domain)?);
                if checkpoint.previous == issuing.settled.previous() {
                    issuing.agreeing.signed.insert(key, checkpoint);
                }
            }
            AgreedRecord::Adopted(checkpoint) => self.replay_adopted(&checkpoint.read_back(domain)?),
        }
        Ok(())
    }

    fn restore_ballot(&mut self, ballot: &Verified<Ballot>, prepares: Vec<Verified<Ballot>>) {
        let Some(issuing) = &mut self.issuing else { return };
        let (me, previous) = (issuing.key(), issuing.settled.previous());
        let turn = issuing.settled.epoch().map_or(0, |epoch| epoch.0.saturating_add(1));
        let begin = || Agreement::new(previous, turn);
        let agreement = issuing.agreeing.agreement.get_or_insert_with(begin);
        agreement.restore(me, ballot, prepares);
    }

    fn replay_adopted(&mut self, checkpoint: &Verified<Checkpoint>) {
        let Some(issuing) = &mut self.issuing else { return };
        let names = issuing.agreeing.batches.get(&checkpoint.facts).map(|batch| batch.names.clone());
        let outcome = issuing.settled.outcome(checkpoint.epoch, &names.unwrap_or_default());
        match outcome.ok().filter(|outcome| outcome.checkpoint == **checkpoint) {
            Some(outcome) => {
                issuing.agreeing.outcomes.insert(checkpoint.id(), outcome);
                self.adopt(checkpoint);
            }
            None => self.remember_finding(Finding::Books { epoch: checkpoint.epoch }),
        }
    }
}
