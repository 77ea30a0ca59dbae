//! Checks a whole journal again: every signature, every chain of receipts, every sum.

mod agreed;
mod books;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::forward::Gathering;
use crate::ids::{ChannelId, DomainId};
use crate::keys::Scheme;
use crate::ledger::account::SignedLineage;
use crate::ledger::issuer::{Issuer, IssuerError};
use crate::ledger::paying::is_newer;
use crate::ledger::quorum::Fact;
use crate::ledger::records::{OpBody, Receipt, WithdrawalPaid, text_digest};
use crate::licence::open_licence;
use crate::manifest::Manifest;
use crate::message::{Checked, News, Opening, Wire};
use crate::record::Record;
use crate::signed::{Role, Signable, Signed, Verified};

/// Most problems that are written down.
const PROBLEMS_MAX: usize = 100;

/// What an audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Records looked at.
    pub records: u64,
    /// Signatures checked.
    pub signatures: u64,
    /// Receipts among the records.
    pub receipts: u64,
    /// What was summed, whether it holds, and the numbers.
    pub checks: Vec<(String, bool, String)>,
    /// What does not hold, in words.
    pub problems: Vec<String>,
}

/// An audit under way: give it every record of a journal, in order, and then ask what it found.
#[derive(Debug)]
pub struct Audit {
    manifest: Manifest,
    domain: DomainId,
    scheme: Scheme,
    channels: BTreeMap<ChannelId, Channel>,
    books: Issuer,
    agreed: agreed::Agreed,
    is_issuer: bool,
    /// Books that are being brought forward.
    forward: Gathering,
    checkpoints: u64,
    findings_seen: u64,
    equivocations: u64,
    findings: Findings,
}

#[derive(Debug)]
struct Channel {
    opening: Opening<Checked>,
    cap: u64,
    head: Option<Verified<Receipt>>,
    /// Kept for another node.
    kept: bool,
}

impl Audit {
    /// Begins an audit of a journal of network `manifest`.
    #[must_use]
    pub fn new(manifest: Manifest) -> Self {
        Self::by(manifest, Scheme::Strict)
    }

    /// Begins an audit that checks signatures by a scheme.
    #[must_use]
    pub fn by(manifest: Manifest, scheme: Scheme) -> Self {
        let domain = manifest.domain();
        let books = Issuer::new(manifest.clone());
        let manifest_of_books = manifest.clone();
        Self {
            manifest,
            domain,
            scheme,
            channels: BTreeMap::new(),
            agreed: agreed::Agreed::new(manifest_of_books),
            books,
            is_issuer: false,
            forward: Gathering::default(),
            checkpoints: 0,
            findings_seen: 0,
            equivocations: 0,
            findings: Findings::default(),
        }
    }

    /// Checks the next record.
    pub fn check(&mut self, record: Record) {
        self.findings.records = self.findings.records.saturating_add(1);
        match record {
            Record::Joined { membership, deposit } => {
                self.by_issuer(membership);
                self.by_issuer_maybe(deposit);
            }
            Record::Step { op, terms } => {
                self.verified(op);
                terms.map(|terms| self.verified(terms));
            }
            Record::Paying(opening) | Record::Paid(opening) => self.opening(opening, false),
            Record::Receipt(receipt) => self.receipt(receipt),
            Record::Final(closing) => {
                self.verified(closing);
            }
            Record::Redeemed(ack) => self.by_issuer(ack),
            Record::Job(_)
            | Record::Ticket { .. }
            | Record::Over(_)
            | Record::Recovering
            | Record::Ended { .. }
            | Record::Recovered(_)
            | Record::Missing(_)
            | Record::GivenUp(_)
            | Record::Moved(_) => {}
            Record::Kept { opening, receipt } => self.kept(opening, receipt),
            Record::Admitted { membership, deposit, .. } => {
                self.by_issuer(membership);
                if self.books.is_one_of_many() {
                    // It counts when a quorum has signed it.
                    self.by_issuer_maybe(deposit);
                } else {
                    self.deposit(deposit);
                }
            }
            Record::Deposited(deposit) => self.deposit(Some(deposit)),
            Record::Stepped { op, terms, epoch } => {
                self.is_issuer = true;
                let terms = terms.and_then(|terms| self.verified(terms));
                let applied = self.verified(op).map(|op| self.books.replay_step(&op, terms.as_ref(), epoch));
                self.book("an account's step", applied);
            }
            Record::PaidOut { receipt, amount } => {
                let paid =
                    self.verified(receipt).map(|receipt| self.books.redeem(&receipt, amount).map(drop));
                self.book("a redemption", paid);
            }
            Record::Closed(closing) => {
                let closed = self.verified(closing).map(|closing| self.books.close(&closing).map(drop));
                self.book("a channel's end", closed);
            }
            Record::Expired(epoch) => {
                self.books.expire(epoch);
                self.conserved();
            }
            Record::Voted { op, terms, epoch } => {
                self.is_issuer = true;
                let terms = terms.and_then(|terms| self.verified(terms));
                let locked = self.verified(op).map(|op| self.books.replay_lock(&op, terms.as_ref(), epoch));
                self.book("a vote", locked);
            }
            Record::Certified { certificate, epoch } => {
                self.signed(certificate.votes.len().saturating_add(1));
                let certificate = certificate.verify(self.domain, self.scheme);
                let Ok(certificate) = certificate else {
                    return self.problem("a certificate is not signed as it should be".to_string());
                };
                self.books.keep_places(&certificate);
                let taken = self.books.certify(&certificate, epoch).map(drop);
                self.agreed.took(Fact::Step(certificate), taken.is_ok());
                self.book("a certified step", Some(taken));
            }
            Record::Endorsed { deposit, .. } | Record::Vouched(deposit) => self.by_issuer(deposit),
            Record::Promised { channel, amount } => self.books.restore_promise(channel, amount),
            Record::Counted { channel, amount } => self.books.restore_count(channel, amount),
            Record::Concluded(certificate) => {
                self.signed(certificate.votes.len());
                let Ok(certificate) = certificate.verify(self.domain, self.scheme) else {
                    return self.problem("the end of a channel is not signed as it should be".to_string());
                };
                let ended = self.books.end_by(&certificate).map(drop);
                let is_from_before = ended == Err(IssuerError::WrongEpoch);
                let ended =
                    if is_from_before { self.books.replay_end(&certificate).map(drop) } else { ended };
                self.agreed.took(Fact::End(certificate), ended.is_ok() && !is_from_before);
                self.book("a channel's end", Some(ended));
            }
            Record::Taken(recorded) => self.by_issuer(recorded),
            Record::Noticed(news) => self.news(news),
            Record::WithdrawalPaid(paid) => self.withdrawal_paid(paid),
            Record::Text(_) => {}
            Record::Books(record) => self.of_books(record),
            Record::Forward(line) => self.forward(line),
            Record::Agreed(record) => self.of_agreement(record),
            Record::Lineage(lineage) => self.lineage(lineage),
            Record::Authorised { device, .. } => drop(self.verified(device)),
            Record::Delegated { device, lineage } => {
                self.verified(device);
                if let Some(lineage) = lineage {
                    self.lineage(lineage);
                }
            }
            Record::Lent { opening, .. } => self.opening(opening, false),
        }
    }

    /// Returns what was found.
    #[must_use]
    pub fn finish(mut self) -> Findings {
        let own = || self.channels.values().filter(|channel| !channel.kept);
        let paid: u64 = own().filter_map(|channel| channel.head.as_ref()).map(|head| head.amount).sum();
        let within = self.channels.values().all(|c| c.head.as_ref().is_none_or(|head| head.amount <= c.cap));
        let channels = own().count();
        self.findings.checks.push((
            "every receipt is within its channel's cap".to_string(),
            within,
            format!("{channels} channels, {paid} nano-credits signed"),
        ));
        if self.is_issuer || self.books.deposited() > 0 {
            let held = self.books.is_conserved();
            let (deposited, withdrawn) = (self.books.deposited(), self.books.withdrawn());
            let accounts = self.books.balances().count();
            self.findings.checks.push((
                "all that is held anywhere is what was deposited and not withdrawn".to_string(),
                held,
                format!("{deposited} nano-credits deposited, {withdrawn} withdrawn, {accounts} accounts"),
            ));
        }
        self.finish_books();
        self.findings
    }

    fn news(&mut self, news: News<Wire>) {
        let signatures = match &news {
            News::Deposit(deposit) => deposit.signature_count(),
            News::Step(certificate) => certificate.votes.len().saturating_add(1),
        };
        match news.verify(self.domain, self.scheme) {
            Ok(news) => {
                self.signed(signatures);
                if let Err(error) = news.check(&self.manifest) {
                    self.problem(format!("news of {}: {error}", news.id()));
                }
            }
            Err(error) => self.problem(format!("the issuers' news does not hold: {error}")),
        }
    }

    /// As issuer, a payout must answer a request; whoever asked only keeps what it was told.
    fn withdrawal_paid(&mut self, paid: Signed<WithdrawalPaid>) {
        let Some((mark, ..)) = paid.peek_in(self.domain) else {
            return self.problem("the payout of a withdrawal cannot be read".to_string());
        };
        self.by_issuer(paid);
        if self.is_issuer && self.books.withdrawal(mark.step).is_some() {
            let marked = self.books.mark_paid(mark.step, text_digest(&mark.reference));
            self.book("a withdrawal's payout", Some(marked));
        }
    }

    fn opening(&mut self, opening: Opening<Wire>, kept: bool) {
        let signatures = opening.recorded.len().saturating_add(2);
        let Ok(opening) = opening.verify(self.domain, self.scheme) else {
            return self.problem("the opening of a channel is not signed as it should be".to_string());
        };
        self.signed(signatures);
        let OpBody::OpenChannel(open) = &opening.op.body else {
            return self.problem("the opening of a channel opens none".to_string());
        };
        let licence = open_licence(opening.terms.model, self.domain);
        let belongs = open.terms == opening.terms.id()
            && opening.op.signer(Role::Owner).is_some()
            && opening.terms.is_signed_by(Role::Node, opening.terms.payee.into());
        let is_committed = self.manifest.agrees(|key| {
            let by = |r: &&Verified<_>| Verified::is_signed_by(*r, Role::Issuer, key);
            opening.recorded.iter().filter(by).any(|recorded| recorded.op == opening.op.id())
        });
        if let Err(error) = opening.terms.check_shares(&self.manifest, licence) {
            self.problem(format!("channel {}: {error}", opening.op.id()));
        }
        if !belongs || !is_committed {
            self.problem(format!("channel {} was not opened as it should be", opening.op.id()));
        }
        let (id, cap) = (ChannelId::from(opening.op.id()), open.cap);
        self.channels.insert(id, Channel { opening, cap, head: None, kept });
    }

    fn lineage(&mut self, lineage: SignedLineage) {
        match lineage.verify(self.domain, self.scheme) {
            Ok(lineage) => self.signed(lineage.rotations()),
            Err(error) => self.problem(format!("the keys of an account do not follow each other: {error}")),
        }
    }

    fn receipt(&mut self, receipt: Signed<Receipt>) {
        self.findings.receipts = self.findings.receipts.saturating_add(1);
        let Some(receipt) = self.verified(receipt) else { return };
        let Some(channel) = self.channels.get_mut(&receipt.channel) else {
            return self.problem(format!("receipt {} is for a channel that was never opened", receipt.id()));
        };
        let OpBody::OpenChannel(open) = &channel.opening.op.body else { return };
        let by_payer = receipt.is_signed_by(Role::Payer, open.payer_key);
        let by_payee = receipt.signer(Role::Payee).is_none_or(|key| key == channel.opening.terms.payee_key);
        let backward = channel.head.as_ref().is_some_and(|head| receipt.amount < head.amount);
        let above = receipt.amount > channel.cap;
        if channel.head.as_ref().is_none_or(|head| is_newer(&receipt, head)) {
            channel.head = Some(receipt.clone());
        }
        if !by_payer || !by_payee {
            self.problem(format!("receipt {} is signed with another key than its channel's", receipt.id()));
        }
        if backward || above {
            self.problem(format!("receipt {} states an amount that cannot be", receipt.id()));
        }
    }

    /// What a mirror keeps for another node.
    fn kept(&mut self, opening: Option<Opening<Wire>>, receipt: Signed<Receipt>) {
        if let Some(opening) = opening {
            self.opening(opening, true);
        }
        if receipt.signature_count() < 2 {
            self.problem("a receipt kept for another node lacks a signature".to_string());
        }
        self.receipt(receipt);
    }

    fn deposit(&mut self, deposit: Option<Signed<crate::ledger::records::Deposit>>) {
        self.is_issuer = true;
        if let Some(deposit) = deposit {
            let many = self.books.is_one_of_many();
            let booked = self.verified(deposit).map(|deposit| {
                self.books.keep_place(deposit.account);
                let taken =
                    if many { self.books.enter(&deposit).map(drop) } else { self.books.deposit(&deposit) };
                self.agreed.took(Fact::Deposit(deposit), taken.is_ok());
                taken
            });
            self.book("a deposit", booked);
        }
    }

    fn by_issuer<T: Signable>(&mut self, record: Signed<T>) {
        let Some(record) = self.verified(record) else { return };
        if !self.manifest.issuers.iter().any(|issuer| record.is_signed_by(Role::Issuer, issuer.key)) {
            self.problem(format!("{} {} is not signed by an issuer", T::TAG, record.id()));
        }
    }

    fn by_issuer_maybe<T: Signable>(&mut self, record: Option<Signed<T>>) {
        if let Some(record) = record {
            self.by_issuer(record);
        }
    }

    fn verified<T: Signable>(&mut self, record: Signed<T>) -> Option<Verified<T>> {
        let signatures = record.signature_count();
        match record.verify(self.domain, self.scheme) {
            Ok(record) => {
                self.signed(signatures);
                Some(record)
            }
            Err(error) => {
                self.problem(format!("a record of type {} does not hold: {error}", T::TAG));
                None
            }
        }
    }

    fn book(&mut self, what: &str, booked: Option<Result<(), IssuerError>>) {
        if let Some(Err(error)) = booked {
            self.problem(format!("{what} contradicts the books: {error}"));
        }
        self.conserved();
    }

    fn conserved(&mut self) {
        // Summing all accounts after every record would take a journal's square; the end is summed again in `finish`.
        let sampled = self.findings.records.is_multiple_of(1024);
        if sampled && !self.books.is_conserved() {
            self.problem(format!("after record {} the books do not add up", self.findings.records));
        }
    }

    fn signed(&mut self, signatures: usize) {
        let signatures = u64::try_from(signatures).unwrap_or(u64::MAX);
        self.findings.signatures = self.findings.signatures.saturating_add(signatures);
    }

    fn problem(&mut self, what: String) {
        if self.findings.problems.len() < PROBLEMS_MAX {
            self.findings.problems.push(what);
        }
    }
}
