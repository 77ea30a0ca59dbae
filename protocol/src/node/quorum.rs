//! One issuer of several: votes, takes what a quorum agreed on, catches up with the others.

use alloc::vec::Vec;

use crate::agreeing::Agreeing;
use crate::ids::{AccountId, Digest, NodeId, RecordId};
use crate::keys::PublicKey;
use crate::ledger::equivocation::Equivocation;
use crate::ledger::facts::WANTED_MAX;
use crate::ledger::issuer::{Balance, IssuerError};
use crate::ledger::outside::Progress;
use crate::ledger::quorum::{EndCertificate, Fact, is_agreed};
use crate::ledger::records::{AccountOp, CloseVote, Deposit, Epoch, Final, Source, Terms, WithdrawalPaid};
use crate::message::{Checked, Message};
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::{Effect, Node, Offence};

/// How often an issuer that is behind asks out of turn.
const HURRY_MS: u64 = 1_000;

/// Most facts remembered that our books do not list; beyond, all are asked for once more.
const JUDGED_MAX: usize = 16_384;

impl Node {
    /// Says whether the network has more than one issuer.
    pub(super) const fn has_many_issuers(&self) -> bool {
        self.config.manifest.issuers.len() > 1
    }

    /// Returns the key of the issuer that runs on `node`.
    pub(super) fn issuer_key(&self, node: NodeId) -> Option<PublicKey> {
        self.config.manifest.issuer_on(node).map(|issuer| issuer.key)
    }

    /// Says something to every other issuer that can be spoken to.
    pub(super) fn tell_issuers(&mut self, message: &Message<Checked>, out: &mut Vec<Effect>) {
        for issuer in self.issuers() {
            if issuer != self.me {
                self.send(issuer, message.clone(), out);
            }
        }
    }

    pub(super) fn record_said(record: Option<Record>, out: &mut Vec<Effect>) {
        out.extend(record.map(Effect::Record));
    }

    /// Judges a step of an account; votes for it, or says why not.
    pub(super) fn vote_for(
        &mut self,
        from: NodeId,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let epoch = self.epoch(now);
        let refused = self.peers.get(&from).and_then(|peer| peer.refused(op.id(), now));
        let Some(issuing) = &mut self.issuing else { return };
        let said = match refused {
            Some(error) => Err(error),
            None => issuing.vote(op, terms, epoch).map_err(|error| issuing.judge(error, op)),
        };
        let balance = issuing.books.balance(op.account);
        match said {
            Ok((vote, record)) => {
                Self::record_said(record, out);
                self.send(from, Message::Voted { vote, balance }, out);
            }
            Err(error) => {
                issuing.compare_lock(op);
                self.refuse(from, op.id(), error, now, out);
                self.send(from, Message::StepRefused { op: op.id(), error, balance }, out);
            }
        }
    }

    fn refuse(&mut self, from: NodeId, op: RecordId, error: IssuerError, now: Time, out: &mut Vec<Effect>) {
        if error == IssuerError::WrongKey {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
        }
        if error == IssuerError::Behind {
            self.hurry(now, out);
        } else if !matches!(error, IssuerError::Uncounted { .. })
            && let Some(peer) = self.peers.get_mut(&from)
            && peer.refused(op, now).is_none()
        {
            peer.refuse(op, error, now);
        }
    }

    /// Takes what proves itself: from an issuer, from the owner of a step, from whoever receives credits.
    pub(super) fn on_fact(&mut self, from: NodeId, fact: &Fact<Checked>, now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        let account = self.account_of(from);
        let is_owner = fact.owner().is_some() && fact.owner() == account;
        let is_receiver = fact.receiver().is_some() && fact.receiver() == account;
        if !(is_owner || is_receiver || self.config.manifest.has_issuer_node(from)) {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        if let Fact::Paid(paid) = fact {
            return self.on_paid(from, paid, now, out);
        }
        let Some(issuing) = self.issuing.as_mut().filter(|issuing| issuing.books.is_one_of_many()) else {
            return;
        };
        let taken = match fact {
            Fact::Paid(_) => return,
            Fact::Deposit(deposit) => issuing.enter(deposit).map(|record| (None, record)),
            Fact::End(certificate) => issuing.end(certificate).map(|record| (None, record)),
            Fact::Step(certificate) => {
                issuing.certify(certificate, epoch).map(|(recorded, record)| (Some(recorded), record))
            }
            Fact::Redeemed { receipt, claim } => {
                issuing.redeem_elsewhere(receipt, claim.as_ref()).map(|record| (None, record))
            }
            // Only who has voted in a slot knows that it is stuck; a proposal that frees it brings the two steps.
            Fact::Doubled(..) | Fact::Lapsed(_) => Ok((None, None)),
        };
        // Others may have the same step with votes that count. Who follows the checkpoint lists a void end no more, and may
        // list another one of the same name.
        let is_void_step = matches!((fact, &taken), (Fact::Step(_), Err(IssuerError::WrongEpoch)));
        let is_judged = taken.is_ok() || is_void_step;
        match taken {
            Ok((recorded, record)) => {
                let is_new = record.is_some();
                Self::record_said(record, out);
                if let (Some(recorded), Some(account), true) = (recorded, account, is_owner) {
                    let balance = self.booked(account);
                    self.send(from, Message::Recorded { recorded, balance }, out);
                }
                if is_new {
                    self.took(fact, is_owner, now, out);
                }
            }
            // Its slot was freed since it was voted for: whoever made it must ask for votes again. Or an end is below what a
            // checkpoint states since.
            Err(IssuerError::WrongEpoch) => {
                if let (Fact::Step(certificate), Some(account), true) = (fact, account, is_owner) {
                    let (op, error) = (certificate.op.id(), IssuerError::WrongEpoch);
                    let balance = self.booked(account);
                    self.send(from, Message::StepRefused { op, error, balance }, out);
                }
            }
            // It comes again with the next question. Whoever brings what there is no room for here has done nothing wrong.
            Err(IssuerError::Behind | IssuerError::UnknownChannel | IssuerError::Full) => {
                self.hurry(now, out)
            }
            Err(_) => out.push(Effect::Penalise(from, Offence::BadLedger)),
        }
        if is_judged {
            self.judged(fact);
        }
        self.learned(from, fact, now, out);
    }

    /// Remembers that a fact has come which our books do not list, so that it is not asked for again.
    fn judged(&mut self, fact: &Fact<Checked>) {
        let Some(issuing) = &mut self.issuing else { return };
        if issuing.witness.facts.get(&fact.name()).is_none() {
            if issuing.judged.len() >= JUDGED_MAX {
                issuing.judged.clear();
            }
            issuing.judged.insert(fact.name());
        }
    }

    /// From an issuer: the operator whose turn it was has paid a withdrawal.
    fn on_paid(&mut self, from: NodeId, paid: &Verified<WithdrawalPaid>, now: Time, out: &mut Vec<Effect>) {
        match self.take_payout(paid, self.epoch(now)) {
            Ok(false) => {}
            Ok(true) => {
                out.push(Effect::Record(Record::WithdrawalPaid(paid.signed())));
                self.tell_payout(paid, out);
            }
            // It comes again when the step has come.
            Err(IssuerError::UnknownWithdrawal) => self.hurry(now, out),
            Err(_) => out.push(Effect::Penalise(from, Offence::BadLedger)),
        }
    }

    fn booked(&self, account: AccountId) -> Balance {
        self.issuing.as_ref().map(|issuing| issuing.books.balance(account)).unwrap_or_default()
    }

    /// Tells whom it concerns what was taken and is written down. The owner of a step that brought it knows.
    fn took(&mut self, fact: &Fact<Checked>, is_owner: bool, now: Time, out: &mut Vec<Effect>) {
        match fact {
            Fact::Step(certificate) => {
                if !is_owner {
                    self.tell_account(certificate.op.account, out);
                }
                self.tell_concerned(certificate, out);
            }
            Fact::Deposit(deposit) => {
                if let Some(issuing) = &mut self.issuing {
                    issuing.inboxes.file_deposit(deposit.clone());
                }
                self.tell_account(deposit.account, out);
            }
            Fact::Paid(_) => {}
            Fact::Redeemed { receipt, .. } => self.acknowledge(receipt.channel, now, out),
            Fact::Doubled(..) | Fact::Lapsed(_) => {}
            Fact::End(certificate) => {
                if let Some(vote) = certificate.votes.first() {
                    self.acknowledge(vote.channel, now, out);
                }
            }
        }
    }

    /// Proposes credits out of the budget to the other issuers.
    pub(super) fn propose(
        &mut self,
        deposit: Deposit,
        out: &mut Vec<Effect>,
    ) -> Result<Verified<Deposit>, IssuerError> {
        let issuing = self.issuing.as_mut().ok_or(IssuerError::NoQuorum)?;
        let (deposit, record) = issuing.propose(deposit)?;
        Self::record_said(record, out);
        self.tell_issuers(&Message::Deposit(deposit.clone()), out);
        Ok(deposit)
    }

    /// From an issuer: a deposit that it proposes, or ours with its signature.
    pub(super) fn on_deposit(
        &mut self,
        from: NodeId,
        deposit: &Verified<Deposit>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.issuer_key(from) else {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        };
        if is_agreed(deposit, &self.config.manifest) {
            return self.on_fact(from, &Fact::Deposit(deposit.clone()), now, out);
        }
        let Some(issuing) = &mut self.issuing else { return };
        if deposit.source == Source::Outside {
            if issuing.hear_outside(key, deposit) {
                self.spread_outside(deposit.reference, now, out);
            }
            return;
        }
        if deposit.is_signed_by(Role::Issuer, issuing.key()) {
            if let Some(agreed) = issuing.gather(deposit) {
                self.enter_agreed(agreed, now, out);
            }
            return;
        }
        // Beyond its part of the budget, or for a reference that is taken: it stays without our signature.
        if let Ok((signed, record)) = issuing.endorse(deposit, key) {
            Self::record_said(record, out);
            self.send(from, Message::Deposit(signed), out);
        }
    }

    /// Books a deposit that a quorum has signed, and hands it to the other issuers.
    fn enter_agreed(&mut self, deposit: Verified<Deposit>, now: Time, out: &mut Vec<Effect>) {
        let fact = Fact::Deposit(deposit);
        self.on_fact(self.me, &fact, now, out);
        self.tell_issuers(&Message::Fact(fact), out);
    }

    /// Our operator has seen a payment from outside: signs its deposit, and tells the other issuers.
    pub(super) fn vouch(&mut self, deposit: Deposit, now: Time, out: &mut Vec<Effect>) {
        let reference = deposit.reference;
        let Some(issuing) = &mut self.issuing else { return };
        // Where the reference is taken, nothing is signed.
        let Ok(record) = issuing.vouch(deposit) else { return };
        Self::record_said(record, out);
        self.spread_outside(reference, now, out);
    }

    fn spread_outside(&mut self, reference: Digest, now: Time, out: &mut Vec<Effect>) {
        let Some(deposit) = self.issuing.as_ref().and_then(|issuing| issuing.outside(reference)) else {
            return;
        };
        if is_agreed(&deposit, &self.config.manifest) {
            self.enter_agreed(deposit, now, out);
        } else {
            self.tell_issuers(&Message::Deposit(deposit), out);
        }
    }

    /// As one of several issuers: returns how far the deposit from outside has come that our operator has seen under this
    /// reference; none when it has seen none, or it is booked.
    #[must_use]
    pub fn deposit_progress(&self, reference: Digest) -> Option<Progress> {
        self.issuing.as_ref()?.progress(reference)
    }

    /// Votes for the end of a channel that both sides have signed, and tells the other issuers.
    pub(super) fn vote_for_end(
        &mut self,
        from: NodeId,
        closing: &Verified<Final>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let epoch = self.epoch(now);
        let channel = closing.channel;
        let Some(issuing) = &mut self.issuing else { return };
        if issuing.books.channel(channel).is_some_and(|(_, closed)| closed) {
            return self.answer(from, channel, now, out);
        }
        match issuing.promise(closing, epoch) {
            Ok((vote, record)) => {
                Self::record_said(record, out);
                self.tell_issuers(&Message::CloseVoted(vote.clone()), out);
                self.heard_end(&vote, now, out);
                self.answer(from, channel, now, out);
            }
            // The payer asks what became of its proposal, which only both signatures make an end.
            Err(_) if closing.signer(Role::Payee).is_none() => self.answer(from, channel, now, out),
            Err(IssuerError::WrongAmount) => self.acknowledge(channel, now, out),
            Err(_) => out.push(Effect::Penalise(from, Offence::BadLedger)),
        }
    }

    /// From an issuer: its vote for the end of a channel.
    pub(super) fn on_close_voted(
        &mut self,
        from: NodeId,
        vote: &Verified<CloseVote>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if self.issuer_key(from).is_some_and(|key| vote.is_signed_by(Role::Issuer, key)) {
            self.heard_end(vote, now, out);
        } else {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
        }
    }

    fn heard_end(&mut self, vote: &Verified<CloseVote>, now: Time, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        if let Some(certificate) = issuing.hear(vote) {
            self.end_by(&certificate, now, out);
        }
    }

    fn end_by(&mut self, certificate: &EndCertificate<Checked>, now: Time, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        // What is missing here comes from the others, and the certificate with it.
        if let Ok(Some(record)) = issuing.end(certificate) {
            out.push(Effect::Record(record));
            self.took(&Fact::End(certificate.clone()), false, now, out);
        }
    }

    /// Asks the others for what we may have missed, repeats what they may have missed, ends what is over.
    pub(super) fn meet_issuers(&mut self, now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        let Some(issuing) = &mut self.issuing else { return };
        let mut messages: Vec<Message<Checked>> =
            issuing.proposals().into_iter().take(WANTED_MAX).map(Message::Deposit).collect();
        messages.extend(issuing.round().into_iter().map(Message::Deposit));
        let promised = issuing.promise_expired(epoch);
        for (vote, record) in promised {
            Self::record_said(record, out);
            self.heard_end(&vote, now, out);
            messages.push(Message::CloseVoted(vote));
        }
        let Some(issuing) = &mut self.issuing else { return };
        let locks = issuing.old_locks(WANTED_MAX).into_iter();
        messages.extend(locks.map(|op| Message::Agreeing(Agreeing::Locked(op))));
        for message in messages {
            self.tell_issuers(&message, out);
        }
        self.file_stuck(epoch, out);
        self.ask_for_facts(out);
    }

    /// From an issuer: a step for which it voted a while ago. If it has a certificate here, that is what it misses.
    /// If it is too old to get one, the next checkpoint shall give its slot back, whoever proposes it.
    pub(super) fn on_locked(
        &mut self,
        from: NodeId,
        op: &Verified<AccountOp>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let epoch = self.epoch(now);
        let Some(issuing) = &mut self.issuing else { return };
        issuing.compare_lock(op);
        if let Some(fact) = issuing.fact(&op.id()).cloned() {
            self.send(from, Message::Fact(fact), out);
        } else if !mutant::is_in("no-lapse") {
            Self::record_said(issuing.lapse(op, epoch), out);
        }
    }

    /// Keeps two steps for one slot of which neither gets a quorum, and steps that are too old to get one, so that the
    /// next checkpoint frees the slot; shows two steps to everybody.
    fn file_stuck(&mut self, epoch: Epoch, out: &mut Vec<Effect>) {
        let stuck = self.issuing.as_ref().map(|issuing| issuing.stuck());
        for (one, other) in stuck.into_iter().flatten() {
            let Some(issuing) = &mut self.issuing else { return };
            if let Some(record) = issuing.double(&one, &other) {
                out.push(Effect::Record(record));
                self.found_two_steps(&one, &other, out);
            }
        }
        let Some(issuing) = &mut self.issuing else { return };
        let lapsed = if mutant::is_in("no-lapse") { Vec::new() } else { issuing.lapsed(epoch) };
        for op in lapsed {
            Self::record_said(issuing.lapse(&op, epoch), out);
        }
    }

    fn found_two_steps(
        &mut self,
        one: &Verified<AccountOp>,
        other: &Verified<AccountOp>,
        out: &mut Vec<Effect>,
    ) {
        if let Some(proof) = Equivocation::of_steps(one.clone(), other.clone()) {
            self.on_equivocation(None, proof, out);
        }
    }

    /// Asks at once, because something that came before is missing here.
    fn hurry(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        // Every answer that cannot be taken would otherwise ask again, and its answers too.
        if now.since_ms(issuing.hurried) < HURRY_MS {
            return;
        }
        issuing.hurried = now;
        let others = self.config.manifest.issuers.iter().map(|issuer| issuer.node);
        for issuer in others.filter(|node| *node != self.me) {
            issuing.cursors.entry(issuer).or_default().hurry();
        }
        self.ask_for_facts(out);
    }

    fn ask_for_facts(&mut self, out: &mut Vec<Effect>) {
        for issuer in self.issuers() {
            if issuer != self.me {
                let Some(issuing) = &mut self.issuing else { return };
                let next = issuing.cursors.entry(issuer).or_default().next;
                self.send(issuer, Message::FactsQuery(next), out);
            }
        }
    }

    pub(super) fn on_facts_query(&mut self, from: NodeId, since: u64, out: &mut Vec<Effect>) {
        let Some(issuing) = self.issuing.as_ref().filter(|_| self.config.manifest.has_issuer_node(from))
        else {
            return;
        };
        let (first, names) = issuing.facts.since(since);
        self.send(from, Message::Facts { first, names }, out);
    }

    pub(super) fn on_facts(&mut self, from: NodeId, first: u64, names: &[RecordId], out: &mut Vec<Effect>) {
        if !self.config.manifest.has_issuer_node(from) {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        let Some(issuing) = &mut self.issuing else { return };
        let cursor = issuing.cursors.entry(from).or_default();
        let before = cursor.next;
        let (facts, judged) = (&issuing.witness.facts, &issuing.judged);
        let has_come =
            |name: &RecordId| *name == RecordId::NONE || facts.get(name).is_some() || judged.contains(name);
        let wanted = cursor.listed(first, names, has_come);
        let next = cursor.next;
        if !wanted.is_empty() {
            self.send(from, Message::FactQuery(wanted), out);
        } else if next > before {
            self.send(from, Message::FactsQuery(next), out);
        }
    }

    pub(super) fn on_fact_query(&mut self, from: NodeId, names: &[RecordId], out: &mut Vec<Effect>) {
        let Some(issuing) = self.issuing.as_ref().filter(|_| self.config.manifest.has_issuer_node(from))
        else {
            return;
        };
        let facts: Vec<Fact<Checked>> =
            names.iter().take(WANTED_MAX).filter_map(|name| issuing.fact(name).cloned()).collect();
        for fact in facts {
            self.send(from, Message::Fact(fact), out);
        }
    }
}
