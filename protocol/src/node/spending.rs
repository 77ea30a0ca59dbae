//! One wallet node for each account: the account's other nodes ask it for channels, and use them as their own.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::ids::{ChannelId, NodeId, RecordId};
use crate::job::Failure;
use crate::keys::PublicKey;
use crate::ledger::issuer::IssuerError;
use crate::ledger::money::with_markup;
use crate::ledger::records::{Epoch, OpBody, OpenChannel, Terms, VALIDITY_EPOCHS_MAX};
use crate::licence::open_licence;
use crate::message::{Checked, Message, Opening, SpendRefusal};
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::{Effect, Node, Offence};

/// Most requests of the account's nodes that wait to be signed: each is one job that waits, and jobs give up in seconds.
const REQUESTS_MAX: usize = 32;

/// Most channels that are remembered as opened for one node; it uses each for many jobs.
const LENT_MAX: usize = 256;

/// Channels for nodes that do not hold the account's key, on both sides.
#[derive(Debug, Default)]
pub(super) struct Spending {
    /// As wallet node: requests not signed yet.
    requests: VecDeque<Request>,
    /// As wallet node: the step that was signed for a request.
    signed: Option<(RecordId, Request)>,
    /// As wallet node: channels that were opened for others.
    lent: BTreeMap<ChannelId, Lent>,
    /// As another node: the request that waits for the wallet node.
    asked: Option<Request>,
}

#[derive(Debug, Clone)]
struct Request {
    node: NodeId,
    request: u64,
    terms: Verified<Terms>,
    cap: u64,
    payer_key: PublicKey,
}

#[derive(Debug)]
struct Lent {
    node: NodeId,
    request: u64,
    epoch: Epoch,
    cap: u64,
    opening: Opening<Checked>,
}

impl Spending {
    pub(super) fn replay_lent(&mut self, request: u64, opening: Opening<Checked>) {
        let OpBody::OpenChannel(open) = &opening.op.body else { return };
        let (node, cap, epoch) = (open.payer, held(open.cap, &opening.terms), opening.op.epoch);
        self.lent.insert(opening.op.id().into(), Lent { node, request, epoch, cap, opening });
    }

    fn forget_before(&mut self, epoch: Epoch) {
        self.lent.retain(|_, lent| lent.epoch.plus(VALIDITY_EPOCHS_MAX) >= epoch);
    }

    /// Returns what was escrowed for `node` in `epoch`, with what is being escrowed.
    fn escrowed(&self, node: NodeId, epoch: Epoch) -> u64 {
        let lent =
            self.lent.values().filter(|lent| lent.node == node && lent.epoch == epoch).map(|lent| lent.cap);
        let signed = self.signed.iter().map(|(_, request)| request);
        let waiting = self.requests.iter().chain(signed).filter(|request| request.node == node);
        let waiting = waiting.map(|request| held(request.cap, &request.terms));
        lent.chain(waiting).fold(0, u64::saturating_add)
    }
}

/// Returns what a channel takes of the account: its cap with the markup on it.
fn held(cap: u64, terms: &Terms) -> u64 {
    with_markup(cap, terms.markup.map_or(0, |markup| markup.bps)).unwrap_or(u64::MAX)
}

// The wallet node.

impl Node {
    /// A node of our account wants a channel; the same request is answered the same.
    pub(super) fn on_spend(
        &mut self,
        from: NodeId,
        (request, payer_key): (u64, PublicKey),
        terms: Verified<Terms>,
        cap: u64,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if self.account_of(from) != Some(self.wallet.account()) {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return;
        }
        let known = |lent: &&Lent| lent.node == from && lent.request == request;
        if let Some(lent) = self.spending.lent.values().find(known) {
            let opening = lent.opening.clone();
            self.send(from, Message::Spent(opening), out);
            return;
        }
        let waits = |waiting: &Request| waiting.node == from && waiting.request == request;
        let is_signed = self.spending.signed.as_ref().is_some_and(|(_, signed)| waits(signed));
        if is_signed || self.spending.requests.iter().any(waits) {
            return;
        }
        match self.allows(from, &terms, cap, now) {
            Ok(()) => {
                self.spending.requests.push_back(Request { node: from, request, terms, cap, payer_key });
                self.lend_next(now, out);
            }
            Err(refusal) => self.send(from, Message::SpendRefused { request, refusal }, out),
        }
    }

    fn allows(&mut self, node: NodeId, terms: &Terms, cap: u64, now: Time) -> Result<(), SpendRefusal> {
        let epoch = self.epoch(now);
        self.spending.forget_before(epoch);
        let authorised = self.devices.get(&node).filter(|device| device.until >= epoch);
        let authorised = authorised.filter(|authorised| authorised.device.rights.spend);
        let budget = authorised.ok_or(SpendRefusal::NotAuthorised)?.budget;
        let left = budget.saturating_sub(self.spending.escrowed(node, epoch));
        let hold = held(cap, terms);
        if hold > left && !mutant::is_in("spend-beyond-budget") {
            return Err(SpendRefusal::Budget { left });
        }
        let available = self.wallet.balance().available();
        if hold.saturating_add(self.config.manifest.open_fee) > available {
            return Err(SpendRefusal::NotEnough { available });
        }
        let lent = self.spending.lent.values().filter(|lent| lent.node == node).count();
        let room = self.spending.requests.len() < REQUESTS_MAX && lent < LENT_MAX;
        let sound = terms.payer_account == self.wallet.account()
            && terms.markup.is_none_or(|markup| self.check_markup(&markup).is_ok())
            && terms.check(&self.config.manifest, open_licence(terms.model, self.domain)).is_ok();
        if room && sound && self.wallet.holds_key() { Ok(()) } else { Err(SpendRefusal::Unavailable) }
    }

    /// Signs the opening of the next channel that another node waits for, if nothing is under way.
    pub(super) fn lend_next(&mut self, now: Time, out: &mut Vec<Effect>) {
        if !self.wallet.is_idle() {
            return;
        }
        let Some(request) = self.spending.requests.pop_front() else { return };
        let Request { node, terms, cap, payer_key, .. } = request.clone();
        let epoch = self.epoch(now);
        let open = OpenChannel {
            payee: terms.payee,
            terms: terms.id(),
            cap,
            expires: epoch.plus(VALIDITY_EPOCHS_MAX).min(terms.valid_to),
            payer: node,
            payer_key,
        };
        match self.sign_step(OpBody::OpenChannel(open), Some(&terms), now, out) {
            Some(op) => self.spending.signed = Some((op, request)),
            // The account begins first, or no issuer is there: the node asks again, or its job gives up.
            None => self.spending.requests.push_front(request),
        }
    }

    /// A channel for another node is open.
    pub(super) fn lend(&mut self, node: NodeId, opening: Opening<Checked>, out: &mut Vec<Effect>) {
        let op = opening.op.id();
        let signed = self.spending.signed.take_if(|(signed, _)| *signed == op);
        let request = signed.map_or(0, |(_, signed)| signed.request);
        out.push(Effect::Record(Record::Lent { request, opening: opening.signed() }));
        self.spending.replay_lent(request, opening.clone());
        self.send(node, Message::Spent(opening), out);
    }

    pub(super) fn refuse_lending(&mut self, op: RecordId, error: IssuerError, out: &mut Vec<Effect>) {
        let Some((_, signed)) = self.spending.signed.take_if(|(signed, _)| *signed == op) else { return };
        let Request { node, request, .. } = signed;
        let refusal = if let IssuerError::NotEnough { available, .. } = error {
            SpendRefusal::NotEnough { available }
        } else {
            SpendRefusal::Unavailable
        };
        self.send(node, Message::SpendRefused { request, refusal }, out);
    }
}

// The other nodes of the account.

impl Node {
    /// Asks the wallet node for a channel; one at a time, and again until it answers.
    pub(super) fn ask_wallet(&mut self, terms: &Verified<Terms>, cap: u64, now: Time, out: &mut Vec<Effect>) {
        if self.spending.asked.is_some() {
            return;
        }
        let payer_key = self.payer_signer(terms).public();
        let (node, request) = (self.me, self.prng.next_u64());
        self.spending.asked = Some(Request { node, request, terms: terms.clone(), cap, payer_key });
        self.ask_wallet_again(now, out);
    }

    pub(super) fn ask_wallet_again(&mut self, _: Time, out: &mut Vec<Effect>) {
        let Some(Request { request, terms, cap, payer_key, .. }) = self.spending.asked.clone() else {
            return;
        };
        let wallet = self.wallet_node();
        if !self.has_openings_waiting() {
            self.spending.asked = None;
        } else if self.is_connected(wallet) {
            self.send(wallet, Message::Spend { request, terms, cap, payer_key }, out);
        } else {
            out.push(Effect::Dial(wallet));
        }
    }

    /// The wallet node has opened a channel for us.
    pub(super) fn on_spent(&mut self, opening: Opening<Checked>, now: Time, out: &mut Vec<Effect>) {
        let OpBody::OpenChannel(open) = &opening.op.body else { return };
        let belongs = opening.op.account == self.wallet.account()
            && open.payer == self.me
            && open.terms == opening.terms.id()
            && opening.terms.is_signed_by(Role::Node, opening.terms.payee.into())
            && self.is_committed(&opening);
        if !belongs || !self.is_device() {
            return;
        }
        let record = Record::Paying(opening.signed());
        if self.adopt_paying(opening, now) {
            out.push(Effect::Record(record));
            self.spending.asked = None;
            self.query_account(out);
            self.resume_openings(now, out);
        }
    }

    pub(super) fn on_spend_refused(
        &mut self,
        from: NodeId,
        request: u64,
        refusal: SpendRefusal,
        out: &mut Vec<Effect>,
    ) {
        let asked = self.spending.asked.as_ref().is_some_and(|asked| asked.request == request);
        if from != self.wallet_node() || !asked {
            return;
        }
        self.spending.asked = None;
        let needed =
            |available: u64| Failure::NotEnoughCredits { needed: available.saturating_add(1), available };
        let failure = match refusal {
            SpendRefusal::NotEnough { available } => needed(available),
            SpendRefusal::NotAuthorised | SpendRefusal::Budget { .. } | SpendRefusal::Unavailable => {
                Failure::WalletRefused(alloc::format!("{refusal}"))
            }
        };
        self.fail_openings(&failure, out);
    }
}
