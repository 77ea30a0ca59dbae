//! What moved on an account, line by line, out of its node's own journal.
//!
//! Money moves when the issuers book it: deposits, steps, payouts of channels. Of several issuers one may lie, so that an
//! amount counts that one more acknowledges than may. The lines of all time add up to what the account has and holds; if
//! it has several nodes, those of all of them do, because each node has its own jobs.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ChannelId, DomainId, NodeId, RecordId};
use crate::keys::PublicKey;
use crate::ledger::money::{BPS, QUANTUM, waiting};
use crate::ledger::quorum::{Acks, Certificate};
use crate::ledger::records::{AccountOp, Deposit, Epoch, OpBody, RedeemAck, SplitRole, Terms};
use crate::manifest::Manifest;
use crate::message::{News, Opening, Wire};
use crate::record::Record;
use crate::signed::{Role, Signable, Signed};

/// One movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Epoch in which the issuer booked it.
    pub epoch: Epoch,
    /// What it was.
    pub kind: Kind,
    /// Nano-credits that came in.
    pub credit: u64,
    /// Nano-credits that went out, with fees.
    pub debit: u64,
    /// The other account, if there is one.
    pub partner: Option<AccountId>,
    /// The record that shows it: a deposit, a step, a receipt.
    pub record: Option<RecordId>,
    /// The channel on which it was paid.
    pub channel: Option<ChannelId>,
}

/// What a movement was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Credits entered.
    Deposit,
    /// Somebody paid us beside channels.
    Received,
    /// We paid somebody beside channels.
    Paid,
    /// Cash left the network.
    Withdrawn,
    /// The fee of a channel that was opened, or of a step that did nothing.
    Fee,
    /// Work that we bought on a channel.
    Bought,
    /// Work that we sold on a channel.
    Sold,
    /// Markup on the work of others that we routed.
    Markup,
}

impl Kind {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deposit => "deposit",
            Self::Received => "received",
            Self::Paid => "paid",
            Self::Withdrawn => "withdrawn",
            Self::Fee => "fee",
            Self::Bought => "bought",
            Self::Sold => "sold",
            Self::Markup => "markup",
        }
    }
}

/// Makes a statement: takes a journal's records in order.
#[derive(Debug)]
pub struct Statement {
    manifest: Manifest,
    domain: DomainId,
    me: NodeId,
    account: AccountId,
    lines: Vec<Line>,
    /// What came in by news: an issuer that lies may tell it again when it is long forgotten.
    received: BTreeSet<RecordId>,
    channels: BTreeMap<ChannelId, Channel>,
    /// Our step that waits for the issuer's word.
    pending: Option<(RecordId, AccountOp)>,
}

#[derive(Debug)]
struct Channel {
    paying: bool,
    terms: Terms,
    payer: AccountId,
    /// Newest receipt.
    head: Option<RecordId>,
    /// What issuers have acknowledged.
    acks: Acks,
    /// What they have moved so far.
    moved: u64,
}

impl Statement {
    /// Begins a statement of an account whose node is `me`.
    #[must_use]
    pub fn new(manifest: &Manifest, me: NodeId, account: AccountId) -> Self {
        Self {
            domain: manifest.domain(),
            manifest: manifest.clone(),
            me,
            account,
            lines: Vec::new(),
            received: BTreeSet::new(),
            channels: BTreeMap::new(),
            pending: None,
        }
    }

    /// Takes the next record.
    pub fn take(&mut self, record: &Record) {
        match record {
            Record::Joined { deposit, .. } => {
                // Among several issuers it is a proposal; when it has entered, they bring the news.
                let booked = deposit.as_ref().filter(|_| self.manifest.issuers.len() == 1);
                if let Some((deposit, id)) = booked.and_then(|deposit| self.read(deposit)) {
                    self.deposit(&deposit, id);
                }
            }
            Record::Noticed(news) => self.news(news),
            Record::Step { op, .. } => self.pending = self.read(op).map(|(op, id)| (id, op)),
            Record::GivenUp(_) => self.pending = None,
            Record::Moved(line) => self.lines.push(*line),
            Record::Taken(recorded) => {
                let Some((recorded, _)) = self.read(recorded) else { return };
                if let Some((id, op)) = self.pending.take_if(|(id, _)| *id == recorded.op) {
                    self.step(id, &op, recorded.epoch);
                }
            }
            Record::Paying(opening) => self.opening(opening, true),
            Record::Paid(opening) => self.opening(opening, false),
            Record::Receipt(receipt) => {
                let Some((receipt, id)) = self.read(receipt) else { return };
                if let Some(channel) = self.channels.get_mut(&receipt.channel) {
                    channel.head = Some(id);
                }
            }
            Record::Redeemed(ack) => {
                if let Ok(ack) = ack.clone().read_back(self.domain)
                    && let Some(issuer) = ack.signer(Role::Issuer)
                {
                    self.redeemed(issuer, &ack);
                }
            }
            Record::Job(_)
            | Record::Final(_)
            | Record::Ticket { .. }
            | Record::Admitted { .. }
            | Record::Deposited(_)
            | Record::Stepped { .. }
            | Record::PaidOut { .. }
            | Record::Closed(_)
            | Record::Expired(_)
            | Record::Text(_)
            | Record::WithdrawalPaid(_)
            | Record::Books(_)
            | Record::Lineage(_)
            | Record::Authorised { .. }
            | Record::Delegated { .. }
            | Record::Voted { .. }
            | Record::Certified { .. }
            | Record::Endorsed { .. }
            | Record::Promised { .. }
            | Record::Counted { .. }
            | Record::Concluded(_)
            | Record::Vouched(_)
            | Record::Agreed(_)
            // It is in the statement of the node that uses the channel.
            | Record::Lent { .. }
            // As mirror, for others.
            | Record::Kept { .. }
            | Record::Over(_)
            | Record::Recovering
            | Record::Ended { .. }
            | Record::Recovered(_)
            | Record::Missing(_)
            | Record::Forward(_) => {}
        }
    }

    /// Returns the lines, oldest first.
    #[must_use]
    pub fn finish(self) -> Vec<Line> {
        self.lines
    }

    /// Takes out the lines made so far.
    pub(crate) fn drain(&mut self) -> Vec<Line> {
        core::mem::take(&mut self.lines)
    }

    fn read<T: Signable>(&self, record: &Signed<T>) -> Option<(T, RecordId)> {
        record.peek_in(self.domain).map(|(value, id, _)| (value, id))
    }

    fn line(&mut self, epoch: Epoch, kind: Kind, (credit, debit): (u64, u64)) -> Option<&mut Line> {
        self.lines.push(Line { epoch, kind, credit, debit, partner: None, record: None, channel: None });
        self.lines.last_mut()
    }

    fn deposit(&mut self, deposit: &Deposit, id: RecordId) {
        if !self.received.insert(id) {
            return;
        }
        if let Some(line) = self.line(deposit.epoch, Kind::Deposit, (deposit.amount, 0)) {
            line.record = Some(id);
        }
    }

    fn news(&mut self, news: &News<Wire>) {
        match news {
            News::Deposit(deposit) => {
                if let Some((deposit, id)) = self.read(deposit) {
                    self.deposit(&deposit, id);
                }
            }
            News::Step(certificate) => self.payment(certificate),
        }
    }

    fn payment(&mut self, certificate: &Certificate<Wire>) {
        let Ok(certificate) = certificate.clone().read_back(self.domain) else { return };
        let (op, epoch) = (&certificate.op, certificate.epoch(&self.manifest));
        let OpBody::Pay { to, amount } = op.body else { return };
        if to != self.account || !self.received.insert(op.id()) {
            return;
        }
        if let Some(line) = self.line(epoch, Kind::Received, (amount, 0)) {
            (line.partner, line.record) = (Some(op.account), Some(op.id()));
        }
    }

    fn step(&mut self, id: RecordId, op: &AccountOp, epoch: Epoch) {
        let (kind, debit, partner) = match &op.body {
            OpBody::Pay { to, amount } => {
                (Kind::Paid, amount.saturating_add(self.manifest.pay_fee), Some(*to))
            }
            OpBody::Withdraw { amount, .. } => {
                (Kind::Withdrawn, amount.saturating_add(self.manifest.withdraw_fee), None)
            }
            OpBody::Noop => (Kind::Fee, self.manifest.pay_fee, None),
            OpBody::OpenChannel(_) | OpBody::Expire(_) | OpBody::Inception(_) | OpBody::Rotate(_) => return,
        };
        if let Some(line) = self.line(epoch, kind, (0, debit)) {
            (line.partner, line.record) = (partner, Some(id));
        }
    }

    fn opening(&mut self, opening: &Opening<Wire>, paying: bool) {
        let (Some((op, id)), Some((terms, _))) = (self.read(&opening.op), self.read(&opening.terms)) else {
            return;
        };
        let channel = ChannelId::from(id);
        if paying && let Some(line) = self.line(op.epoch, Kind::Fee, (0, self.manifest.open_fee)) {
            (line.record, line.channel) = (Some(id), Some(channel));
        }
        // A node may sell to itself: the money goes round, and what it pays is what counts first.
        self.channels.entry(channel).or_insert(Channel {
            paying,
            payer: op.account,
            terms,
            head: None,
            acks: Acks::default(),
            moved: 0,
        });
    }

    fn redeemed(&mut self, issuer: PublicKey, ack: &RedeemAck) {
        let me = self.me;
        let Some(channel) = self.channels.get_mut(&ack.channel) else { return };
        channel.acks.learn(issuer, ack);
        let epoch = channel.acks.epoch(&self.manifest);
        let end = channel.acks.end(&self.manifest);
        let amount = end.unwrap_or_else(|| channel.acks.vouched(&self.manifest));
        let moved = if channel.paying { spent } else { earned }(&channel.terms, amount, end.is_some());
        // An end may take back what some issuers had paid beyond it.
        let (more, less) = (moved.saturating_sub(channel.moved), channel.moved.saturating_sub(moved));
        channel.moved = moved;
        let (paying, head) = (channel.paying, channel.head);
        let partner = if paying { channel.terms.payee_account } else { channel.payer };
        if (more, less) == (0, 0) || (!paying && channel.terms.payee != me) {
            return;
        }
        let (kind, amounts) = if paying { (Kind::Bought, (less, more)) } else { (Kind::Sold, (more, less)) };
        if let Some(line) = self.line(epoch, kind, amounts) {
            (line.partner, line.record, line.channel) = (Some(partner), head, Some(ack.channel));
        }
    }
}

/// Returns what has left the payer when so much was redeemed: full quanta with the markup on them, the rest at the end.
fn spent(terms: &Terms, amount: u64, has_ended: bool) -> u64 {
    let bps = terms.markup.map_or(0, |markup| u64::from(markup.bps)).saturating_add(BPS);
    let rest = if has_ended { waiting(amount) } else { 0 };
    (amount / QUANTUM).saturating_mul(bps).saturating_add(rest)
}

/// Returns what has come to the payee when so much was redeemed: its share of full quanta, the rest at the end.
fn earned(terms: &Terms, amount: u64, has_ended: bool) -> u64 {
    let lines = terms.split.iter().filter(|line| line.role == SplitRole::Provider);
    let bps = lines.fold(0, |sum: u64, line| sum.saturating_add(u64::from(line.bps)));
    let rest = if has_ended { waiting(amount) } else { 0 };
    (amount / QUANTUM).saturating_mul(bps).saturating_add(rest)
}
