//! The issuer's role: admits nodes, books deposits, witnesses steps, pays out channels.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::ids::{AccountId, ChannelId, Digest, NodeId, RecordId};
use crate::ledger::facts::Cursor;
use crate::ledger::issuer::IssuerError;
use crate::ledger::outside::from_outside;
use crate::ledger::quorum::Certificate;
use crate::ledger::records::{
    AccountOp, Claim, Deposit, Epoch, Final, Membership, OpBody, Receipt, Recorded, RedeemAck, Source, Terms,
    Vote, WithdrawalPaid,
};
use crate::ledger::witness::Witness;
use crate::manifest::Admission;
use crate::message::{Checked, JoinError, Message};
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::ticket::Ticket;
use crate::time::Time;

use super::agreeing::Convention;
use super::checkpoints::EpochEnds;
use super::markups::Untold;
use super::notices::Inboxes;
use super::{Effect, Node, Offence};

/// Most tickets that were made and not used.
const TICKETS_MAX: usize = 10_000;

/// What a node keeps as an issuer.
#[derive(Debug)]
pub(super) struct Issuing {
    pub(super) witness: Witness,
    pub(super) tickets: BTreeMap<Digest, TicketState>,
    /// News for those whom a step concerns.
    pub(super) inboxes: Inboxes,
    pub(super) untold: Untold,
    /// Whose operator has paid a withdrawal, with which reference.
    pub(super) payouts: BTreeMap<RecordId, Verified<WithdrawalPaid>>,
    pub(super) ends: EpochEnds,
    /// The agreement on the next checkpoint, where there are several issuers.
    pub(super) agreeing: Convention,
    /// How far we have followed the other issuers.
    pub(super) cursors: BTreeMap<NodeId, Cursor>,
    /// Names of facts that came and that our books do not list: taken otherwise, older than ours, or void.
    pub(super) judged: BTreeSet<RecordId>,
    /// When we last asked them out of turn.
    pub(super) hurried: Time,
}

impl core::ops::Deref for Issuing {
    type Target = Witness;

    fn deref(&self) -> &Witness {
        &self.witness
    }
}

impl core::ops::DerefMut for Issuing {
    fn deref_mut(&mut self) -> &mut Witness {
        &mut self.witness
    }
}

/// A ticket that this issuer made.
#[derive(Debug, Clone)]
pub(super) enum TicketState {
    /// Carries an amount and admits whoever shows it first.
    Unused(u64),
    /// Admitted a node.
    Used(Box<Admitted>),
}

/// What a ticket has led to.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    pub(super) membership: Verified<Membership>,
    pub(super) deposit: Option<Verified<Deposit>>,
}

impl Issuing {
    /// Returns our word that a step was taken; the same whenever it is asked for.
    fn recorded(&self, op: &Verified<AccountOp>, epoch: Epoch) -> Verified<Recorded> {
        self.sign(Recorded { op: op.id(), epoch })
    }

    fn vote_for(&self, op: &Verified<AccountOp>, epoch: Epoch) -> Verified<Vote> {
        self.sign(Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch, settled: None })
    }

    /// Returns what is wrong with a step for which we do not vote. One that cannot be placed may fit once we have followed
    /// the others, if a checkpoint has dropped what we hold in its slot or before it: that we are behind refuses nothing.
    pub(super) fn judge(&self, error: IssuerError, op: &AccountOp) -> IssuerError {
        let IssuerError::WrongSequence { next } = error else { return error };
        let is_taken = op.sequence < next && !self.settled.is_past(op);
        let is_behind = self.agreeing.is_behind() && !self.settled.is_past(op);
        if is_taken || is_behind || self.books.may_come_to(op) { IssuerError::Behind } else { error }
    }

    /// As the only issuer: returns the proof that a step was taken, for those whom it concerns.
    pub(super) fn certificate(&self, op: &Verified<AccountOp>, epoch: Epoch) -> Certificate<Checked> {
        Certificate { op: op.clone(), terms: None, votes: Vec::from([self.vote_for(op, epoch)]) }
    }
}

impl Node {
    pub(super) fn make_ticket(&mut self, secret: [u8; 16], amount: u64, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        let unused = issuing.tickets.values().filter(|state| matches!(state, TicketState::Unused(_))).count();
        if unused >= TICKETS_MAX {
            return;
        }
        let fingerprint = Ticket::fingerprint(&secret);
        issuing.tickets.insert(fingerprint, TicketState::Unused(amount));
        out.push(Effect::Record(Record::Ticket { fingerprint, amount }));
    }

    pub(super) fn grant(
        &mut self,
        reference: Digest,
        account: AccountId,
        amount: u64,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let epoch = self.epoch(now);
        let source = Source::Budget;
        if self.has_many_issuers() {
            // What exceeds our part of the budget is not proposed.
            let _ = self.propose(Deposit { reference, account, amount, epoch, source }, out);
            return;
        }
        let within = self.issuing.as_ref().map(|issuing| issuing.books.check_budget(amount));
        if within == Some(Ok(())) {
            self.book(Deposit { reference, account, amount, epoch, source }, out);
        }
    }

    /// Books credits that were paid for outside; among several issuers, says that our operator has seen it.
    pub(super) fn book_deposit(
        &mut self,
        reference: Digest,
        account: AccountId,
        amount: u64,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let deposit = from_outside(reference, account, amount, self.epoch(now));
        if self.has_many_issuers() {
            self.vouch(deposit, now, out);
        } else {
            self.book(deposit, out);
        }
    }

    fn book(&mut self, deposit: Deposit, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        if issuing.books.deposit_of(deposit.reference).is_some() {
            return;
        }
        let account = deposit.account;
        let deposit = issuing.sign(deposit);
        if issuing.books.deposit(&deposit).is_ok() {
            out.push(Effect::Record(Record::Deposited(deposit.signed())));
            issuing.inboxes.file_deposit(deposit);
            self.tell_account(account, out);
        }
    }

    pub(super) fn on_join(&mut self, from: NodeId, secret: [u8; 16], now: Time, out: &mut Vec<Effect>) {
        let reply = match self.admit_with(from, secret, now, out) {
            Ok(Admitted { membership, deposit }) => Message::Joined { membership, deposit },
            Err(error) => Message::JoinRefused(error),
        };
        self.send(from, reply, out);
    }

    fn admit_with(
        &mut self,
        from: NodeId,
        secret: [u8; 16],
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Result<Admitted, JoinError> {
        let epoch = self.epoch(now);
        let account =
            self.peers.get(&from).and_then(|peer| peer.account()).ok_or(JoinError::UnknownTicket)?;
        let open = self.config.manifest.admission == Admission::Open;
        let issuing = self.issuing.as_mut().ok_or(JoinError::NotIssuer)?;
        let fingerprint = Ticket::fingerprint(&secret);
        let amount = match issuing.tickets.get(&fingerprint) {
            Some(TicketState::Used(admitted)) if admitted.membership.node == from => {
                return Ok(Admitted::clone(admitted));
            }
            Some(TicketState::Used(_)) => return Err(JoinError::Used),
            Some(TicketState::Unused(amount)) => *amount,
            // Whoever asks is admitted, and nothing need be kept of it.
            None if open => {
                let membership = issuing.sign(Membership { node: from, account, epoch });
                return Ok(Admitted { membership, deposit: None });
            }
            None => return Err(JoinError::UnknownTicket),
        };
        let membership = issuing.sign(Membership { node: from, account, epoch });
        let deposit = Deposit { reference: fingerprint, account, amount, epoch, source: Source::Budget };
        let deposit = (amount > 0).then(|| self.book_opening(deposit, out)).transpose();
        let deposit = deposit.map_err(JoinError::Deposit)?;
        let issuing = self.issuing.as_mut().ok_or(JoinError::NotIssuer)?;
        let admitted = Admitted { membership, deposit };
        issuing.tickets.insert(fingerprint, TicketState::Used(Box::new(admitted.clone())));
        out.push(Effect::Record(Record::Admitted {
            ticket: fingerprint,
            membership: admitted.membership.signed(),
            deposit: admitted.deposit.as_ref().map(Verified::signed),
        }));
        Ok(admitted)
    }

    /// Books a ticket's credits; among several issuers, proposes them.
    fn book_opening(
        &mut self,
        deposit: Deposit,
        out: &mut Vec<Effect>,
    ) -> Result<Verified<Deposit>, IssuerError> {
        if self.has_many_issuers() {
            return self.propose(deposit, out);
        }
        let issuing = self.issuing.as_mut().ok_or(IssuerError::NoQuorum)?;
        let deposit = issuing.sign(deposit);
        issuing.books.check_budget(deposit.amount)?;
        issuing.books.deposit(&deposit)?;
        Ok(deposit)
    }

    pub(super) fn on_account_query(&mut self, from: NodeId, now: Time, out: &mut Vec<Effect>) {
        if let Some(account) = self.account_of(from) {
            self.send(from, Message::Clock(now), out);
            self.tell_state(from, account, out);
            self.tell_news(from, out);
            self.tell_markups(from, account, now, out);
        }
    }

    /// Tells an account what it holds, wherever it is connected.
    pub(super) fn tell_account(&mut self, account: AccountId, out: &mut Vec<Effect>) {
        for node in self.nodes_of(account) {
            self.tell_state(node, account, out);
            self.tell_news(node, out);
        }
    }

    fn tell_state(&mut self, node: NodeId, account: AccountId, out: &mut Vec<Effect>) {
        let Some(issuing) = &self.issuing else { return };
        let (next, head) = issuing.books.next_slot(account);
        let balance = issuing.books.balance(account);
        // Before the state: what is next can be signed only with the key in force.
        self.tell_lineage(node, account, out);
        self.send(node, Message::AccountState { account, next, head, balance }, out);
    }

    pub(super) fn on_step(
        &mut self,
        from: NodeId,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let epoch = self.epoch(now);
        if self.account_of(from) != Some(op.account) || !self.may_spend(from) {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        if self.has_many_issuers() {
            return self.vote_for(from, op, terms, now, out);
        }
        let Some(issuing) = &mut self.issuing else { return };
        let known = issuing.books.next_slot(op.account).1 == op.id();
        let refused = self.peers.get(&from).and_then(|peer| peer.refused(op.id(), now));
        let taken = match refused {
            Some(error) => Err(error),
            None => issuing.books.apply(op, terms, epoch),
        };
        let balance = issuing.books.balance(op.account);
        if let Err(error) = taken {
            if !matches!(error, IssuerError::WrongSequence { next } if op.sequence < next) {
                issuing.ends.refused(op);
            }
            if let Some(peer) = self.peers.get_mut(&from) {
                peer.refuse(op.id(), error, now);
            }
            if error == IssuerError::WrongKey {
                out.push(Effect::Penalise(from, Offence::WrongSigner));
            }
            self.send(from, Message::StepRefused { op: op.id(), error, balance }, out);
            self.on_second_step(op, out);
            return;
        }
        let vote = issuing.vote_for(op, epoch);
        let recorded = issuing.recorded(op, epoch);
        if !known {
            issuing.ends.took(op);
            let certificate = issuing.certificate(op, epoch);
            let terms = terms.map(Verified::signed);
            out.push(durable(Record::Stepped { op: op.signed(), terms, epoch }));
            self.tell_concerned(&certificate, out);
        }
        self.send(from, Message::Stepped { vote, recorded, balance }, out);
    }

    /// As issuer: tells whoever is paid by a step, or whose channel it ends.
    pub(super) fn tell_concerned(&mut self, certificate: &Certificate<Checked>, out: &mut Vec<Effect>) {
        let Some(issuing) = &mut self.issuing else { return };
        if let Some(payee) = issuing.inboxes.file_step(certificate, &issuing.witness.books) {
            self.tell_news(payee, out);
        }
        if let OpBody::Pay { to, .. } = certificate.op.body {
            self.tell_account(to, out);
        }
    }

    pub(super) fn on_redeem(
        &mut self,
        from: NodeId,
        receipt: &Verified<Receipt>,
        claim: &Verified<Claim>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !self.is_party(from, receipt.channel, out) {
            return;
        }
        let Some(issuing) = &mut self.issuing else { return };
        match issuing.redeem(receipt, Some(claim)) {
            Err(IssuerError::UnknownChannel) => {}
            Err(_) => out.push(Effect::Penalise(from, Offence::BadLedger)),
            Ok((_, Some(record))) => {
                out.push(durable(record));
                self.acknowledge(receipt.channel, now, out);
            }
            Ok(_) => self.answer(from, receipt.channel, now, out),
        }
    }

    /// As issuer: takes what a mirror brings for a payee that may be away. Both parties signed it and the payee alone
    /// gains, so it matters little who brings it; the answer tells nothing that its bearer does not know.
    pub(super) fn on_redeem_kept(
        &mut self,
        from: NodeId,
        receipt: &Verified<Receipt>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(issuing) = &mut self.issuing else { return };
        match issuing.redeem(receipt, None) {
            Err(IssuerError::UnknownChannel) => return,
            Err(_) => return out.push(Effect::Penalise(from, Offence::BadLedger)),
            Ok((_, Some(record))) => {
                out.push(durable(record));
                self.acknowledge(receipt.channel, now, out);
            }
            Ok(_) => {}
        }
        self.send(from, Message::RedeemedKept(receipt.id()), out);
    }

    /// As issuer: says whether a peer pays or is paid on a channel. Nobody else has any business with it; whoever asks
    /// about a channel that is forgotten may well have had.
    pub(super) fn is_party(&self, from: NodeId, channel: ChannelId, out: &mut Vec<Effect>) -> bool {
        let parties = self.issuing.as_ref().and_then(|issuing| issuing.books.parties(channel));
        let Some((payer, payee)) = parties else { return false };
        let is_party = from == payee || self.account_of(from) == Some(payer);
        if !is_party {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
        }
        is_party
    }

    /// As issuer: closes a channel that both sides have ended.
    pub(super) fn close_channel(
        &mut self,
        from: NodeId,
        closing: &Verified<Final>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !self.is_party(from, closing.channel, out) {
            return;
        }
        if self.has_many_issuers() {
            return self.vote_for_end(from, closing, now, out);
        }
        let Some(issuing) = &mut self.issuing else { return };
        let closed = issuing.books.channel(closing.channel).is_some_and(|(_, closed)| closed);
        match issuing.books.close(closing) {
            // The payer asks what became of its proposal, which only both signatures make an end.
            Err(_) if closing.signer(Role::Payee).is_none() => self.answer(from, closing.channel, now, out),
            // The payee has been paid more in the meantime.
            Err(IssuerError::WrongAmount) => self.acknowledge(closing.channel, now, out),
            Err(_) => out.push(Effect::Penalise(from, Offence::BadLedger)),
            Ok(_) if closed => self.answer(from, closing.channel, now, out),
            Ok(_) => {
                out.push(durable(Record::Closed(closing.signed())));
                self.acknowledge(closing.channel, now, out);
            }
        }
    }

    /// Tells a party that asks what was paid out of a channel, and what it holds.
    pub(super) fn answer(&mut self, party: NodeId, channel: ChannelId, now: Time, out: &mut Vec<Effect>) {
        if let Some(ack) = self.ack_of(channel, now) {
            self.send(party, Message::Redeemed(ack), out);
        }
        if let Some(account) = self.account_of(party) {
            self.tell_account(account, out);
        }
    }

    fn ack_of(&self, channel: ChannelId, now: Time) -> Option<Verified<RedeemAck>> {
        let epoch = self.epoch(now);
        let issuing = self.issuing.as_ref()?;
        let (amount, closed) = issuing.books.channel(channel)?;
        Some(issuing.sign(RedeemAck { channel, amount, closed, epoch }))
    }

    /// Tells both sides what was paid out of a channel, and everybody who got a share what they hold.
    pub(super) fn acknowledge(&mut self, channel: ChannelId, now: Time, out: &mut Vec<Effect>) {
        let Some(ack) = self.ack_of(channel, now) else { return };
        let Some(issuing) = &self.issuing else { return };
        let Some((payer, payee)) = issuing.books.parties(channel) else { return };
        let builder = issuing.books.routed(channel, self.epoch(now)).map(|(builder, _)| builder);
        self.send(payee, Message::Redeemed(ack.clone()), out);
        for node in self.nodes_of(payer) {
            self.send(node, Message::Redeemed(ack.clone()), out);
        }
        let payee_account = self.account_of(payee);
        for account in [Some(payer), payee_account].into_iter().flatten() {
            self.tell_account(account, out);
        }
        if let (Some(builder), Some(issuing)) = (builder, &mut self.issuing) {
            issuing.untold.extend([(builder, channel)]);
            self.tell_account(builder, out);
            for node in self.nodes_of(builder) {
                self.tell_markups(node, builder, now, out);
            }
        }
    }

    /// As issuer: ends channels whose time is over.
    pub(super) fn expire_channels(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.has_many_issuers() {
            return self.meet_issuers(now, out);
        }
        let epoch = self.epoch(now);
        let Some(issuing) = &mut self.issuing else { return };
        let expired = issuing.books.expire(epoch);
        if expired.is_empty() {
            return;
        }
        out.push(Effect::Record(Record::Expired(epoch)));
        for (channel, _, _) in expired {
            self.acknowledge(channel, now, out);
        }
    }
}

/// Returns the effect that puts a line on disk before anything after it leaves.
fn durable(line: Record) -> Effect {
    if mutant::is_in("issuer-answers-before-disk") { Effect::Note(line) } else { Effect::Record(line) }
}
