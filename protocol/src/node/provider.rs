//! The provider's side of a job: offer, admit, run, be paid as it goes.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::ids::{AccountId, ChannelId, Digest, JobId, ModelId, NodeId};
use crate::job::{Failure, Finish, INPUT_BYTES_MAX, JOB_TOKENS_MAX, JobRecord, JobSpec};
use crate::ledger::paid::{Agreement, Grant, Paid};
use crate::ledger::paying::Allowances;
use crate::ledger::records::{
    Accepted, AccountOp, Markup, OpBody, OpenChannel, Receipt, Recorded, Terms, VALIDITY_EPOCHS_MAX,
};
use crate::message::{Checked, Kept, Message, Opening};
use crate::mutant;
use crate::price::Price;
use crate::record::Record;
use crate::scheduler::Refusal;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::{Effect, EngineEvent, EngineFault, Node, Offence, Timer};

/// Most channels on which this node is paid, or was until lately.
const PAID_MAX: usize = 100_000;

/// Most open channels on which one account pays this node: routing is sticky, so more are an attack.
const PAID_PER_PAYER_MAX: usize = 64;

/// Most channels of one account, ended ones included: one that idles and ends every ten minutes, for as many epochs as a
/// channel may last.
const KNOWN_PER_PAYER_MAX: usize = 1024;

/// How long a job may wait for a payment before it is given up: long enough for a lost receipt to be sent again, twice.
const UNPAID_MS: u64 = 20_000;

/// How long payer and payee may count differently before a job that depends on it is ended: long enough for every message
/// on its way to arrive, and for one to be sent again.
const UNCOVERED_MS: u64 = 12_000;

/// Returns our side of a channel that was opened by `op`, which the issuers have recorded.
fn side(
    agreement: Arc<Agreement>,
    open: &OpenChannel,
    op: &Verified<AccountOp>,
    recorded: &[Verified<Recorded>],
) -> Paid {
    Paid::on(agreement, open.cap).until(open.expires).proven_by(op, recorded)
}

/// A job that our engine runs.
#[derive(Debug)]
pub(super) struct Serving {
    requester: NodeId,
    channel: Option<ChannelId>,
    spec: JobSpec,
    price: Price,
    tokens_in: Option<u32>,
    /// Our word that we took it.
    accepted: Option<Verified<Accepted>>,
    start: Time,
    /// Tokens that it may generate.
    granted: u32,
    /// Nothing is left of what was granted: only a payment takes it further.
    waits: bool,
    /// Since when the payer believes to have paid for more than we count.
    uncovered: Option<Time>,
    /// The requester is gone.
    lost: bool,
}

impl Serving {
    pub(super) fn at_home(me: NodeId, spec: JobSpec, now: Time) -> Self {
        Self {
            requester: me,
            channel: None,
            spec,
            price: Price::default(),
            tokens_in: None,
            accepted: None,
            start: now,
            granted: u32::MAX,
            waits: false,
            uncovered: None,
            lost: false,
        }
    }
}

impl Node {
    pub(super) fn on_ask(
        &mut self,
        from: NodeId,
        job: JobId,
        (model, account, markup): (ModelId, AccountId, Option<Markup>),
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let is_allowed = markup.is_none_or(|markup| markup.bps <= self.config.manifest.markup_max_bps);
        let held = if self.stopping {
            Err(Refusal::Stopping)
        } else if is_allowed {
            self.scheduler.hold(from, job, model, now)
        } else {
            Err(Refusal::BadRequest)
        };
        let terms = held.and_then(|()| self.terms(model, account, markup, now).ok_or(Refusal::NotServed));
        match terms {
            Ok(terms) => self.send(from, Message::Offer { job, terms }, out),
            Err(refusal) => self.send(from, Message::Refused { job, refusal }, out),
        }
    }

    /// Returns our conditions for an account that wants a model; a markup on top of them is nothing to us.
    fn terms(
        &self,
        model: ModelId,
        payer_account: AccountId,
        markup: Option<Markup>,
        now: Time,
    ) -> Option<Verified<Terms>> {
        let (offer, _) = self.served.get(&model).filter(|_| self.device.rights.serve)?;
        let payee_account = self.wallet.account();
        let context = [b"payee".as_slice(), &payer_account.0, &model.0].concat();
        Some(self.sign(Terms {
            payee: self.me,
            payee_account,
            payee_key: self.config.node.derive(&context).public(),
            payer_account,
            model,
            licence: offer.licence,
            incentive: self.config.incentive,
            price: offer.price,
            markup,
            split: Terms::standard_split(&self.config.manifest, offer.modality, payee_account),
            valid_to: self.epoch(now).plus(VALIDITY_EPOCHS_MAX),
        }))
    }

    pub(super) fn on_submit(
        &mut self,
        from: NodeId,
        job: JobId,
        spec: JobSpec,
        channel: Option<ChannelId>,
        opening: Option<Opening<Checked>>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if self.serving.contains_key(&job) {
            return;
        }
        if let Some(opening) = opening {
            self.on_opening(from, opening, now, out);
        }
        if let Err(refusal) = self.take(from, job, &spec, channel, now) {
            self.scheduler.let_go(from, job);
            self.send(from, Message::Refused { job, refusal }, out);
            return;
        }
        let paid = channel.and_then(|channel| self.paid.get_mut(&channel));
        let (up_to, price) = paid.map_or((spec.max_tokens, Price::default()), |paid| {
            (paid.begin(job, spec.worst()).min(spec.max_tokens), paid.terms.price)
        });
        let serving = Serving {
            requester: from,
            channel,
            spec: spec.clone(),
            price,
            tokens_in: None,
            accepted: None,
            start: now,
            granted: up_to,
            waits: false,
            uncovered: None,
            lost: false,
        };
        self.serving.insert(job, serving);
        out.push(Effect::Run { job, requester: from, spec, up_to });
    }

    /// Admits a job: bounds, channel, room, slot.
    fn take(
        &mut self,
        from: NodeId,
        job: JobId,
        spec: &JobSpec,
        channel: Option<ChannelId>,
        now: Time,
    ) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        let bounded = (1..=JOB_TOKENS_MAX).contains(&spec.max_tokens) && spec.input.bytes <= INPUT_BYTES_MAX;
        if !bounded {
            return Err(Refusal::BadRequest);
        }
        let (offer, _) = self.served.get(&spec.model).ok_or(Refusal::NotServed)?;
        if offer.modality != spec.input.modality {
            return Err(Refusal::BadRequest);
        }
        match channel {
            None if !offer.price.is_free() => return Err(Refusal::BadChannel),
            None => {}
            Some(channel) => {
                let paid = self.paid.get(&channel).ok_or(Refusal::BadChannel)?;
                let is_over = paid.expires < self.epoch(now);
                let may_spend = self.may_spend(from) || mutant::is_in("revoked-device-spends");
                if paid.payer != from || !may_spend || paid.terms.model != spec.model || is_over {
                    return Err(Refusal::BadChannel);
                }
                if paid.is_disputed() {
                    return Err(Refusal::Unpaid);
                }
                if !paid.fits(&spec.worst_usage()) {
                    return Err(Refusal::NoRoom);
                }
            }
        }
        self.scheduler.admit(from, job, spec.model, now)
    }

    /// Takes note of a channel that the issuers have committed for us; showing it again changes nothing.
    pub(super) fn on_opening(
        &mut self,
        from: NodeId,
        opening: Opening<Checked>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let channel = opening.op.id().into();
        let ended = self.ended.contains_key(&channel) && !mutant::is_in("serve-after-close");
        let known = self.paid.contains_key(&channel) || ended;
        if known || self.paid.len() + self.ended.len() >= PAID_MAX {
            return;
        }
        if self.missing.contains_key(&channel) {
            self.restore(from, Kept { opening, receipt: None }, now, out);
            return;
        }
        let OpBody::OpenChannel(open) = &opening.op.body else {
            return out.push(Effect::Penalise(from, Offence::BadLedger));
        };
        // Whoever never got to use a channel shows its opening until the end, and a little after it.
        if open.expires < self.epoch(now) || self.ended_before_recovery(&opening) {
            return;
        }
        let valid = self.is_committed(&opening)
            && self.account_of(from) == Some(opening.op.account)
            && self.may_spend(from)
            && open.payer == from;
        if valid && !self.has_room_for_channel_of(opening.op.account, now) {
            return;
        }
        match self.paid_side(&opening).filter(|_| valid) {
            Some(paid) => {
                self.paid.insert(opening.op.id().into(), Box::new(paid));
                out.push(Effect::Record(Record::Paid(opening.signed())));
            }
            None => out.push(Effect::Penalise(from, Offence::BadLedger)),
        }
    }

    fn has_room_for_channel_of(&self, payer: AccountId, now: Time) -> bool {
        let open = |paid: &Paid| paid.payer_account == payer && !self.is_past(paid, now);
        let open = self.paid.values().filter(|paid| open(paid)).count();
        let ended = self.ended.values().filter(|(_, account)| *account == payer).count();
        open < PAID_PER_PAYER_MAX && open.saturating_add(ended) < KNOWN_PER_PAYER_MAX
    }

    /// Says whether a quorum of issuers durably holds the step.
    pub(super) fn is_committed(&self, opening: &Opening<Checked>) -> bool {
        if mutant::is_in("serve-uncommitted") {
            return true;
        }
        opening.is_committed(&self.config.manifest)
    }

    /// Returns our side of a channel, if it was opened on our own terms.
    pub(super) fn paid_side(&mut self, opening: &Opening<Checked>) -> Option<Paid> {
        let OpBody::OpenChannel(open) = &opening.op.body else { return None };
        let terms = &opening.terms;
        let ours = open.payee == self.me
            && open.terms == terms.id()
            && terms.payee == self.me
            && terms.payer_account == opening.op.account
            && terms.is_signed_by(Role::Node, self.me.into());
        if !ours {
            return None;
        }
        let agreement = self.agreed(terms, open)?;
        Some(side(agreement, open, &opening.op, &opening.recorded))
    }

    /// Returns our side of a channel out of our own journal, if one on the same terms, with the same payer, was there before:
    /// nothing of them is read again.
    pub(super) fn paid_side_as_before(
        &self,
        op: &Verified<AccountOp>,
        recorded: &[Verified<Recorded>],
    ) -> Option<Paid> {
        let OpBody::OpenChannel(open) = &op.body else { return None };
        let known = self.agreed.get(&open.terms)?;
        let as_before = open.payee == self.me
            && (known.payer, known.payer_account, known.payer_key)
                == (open.payer, op.account, open.payer_key);
        as_before.then(|| side(known.clone(), open, op, recorded))
    }

    /// Returns what the channels of one payer on terms of ours share, with the key with which we sign receipts on them, if
    /// they name it: once for all of them.
    fn agreed(&mut self, terms: &Verified<Terms>, open: &OpenChannel) -> Option<Arc<Agreement>> {
        let known = self.agreed.get(&terms.id());
        if let Some(known) =
            known.filter(|known| (known.payer, known.payer_key) == (open.payer, open.payer_key))
        {
            return Some(known.clone());
        }
        let context = [b"payee".as_slice(), &terms.payer_account.0, &terms.model.0].concat();
        let signer = self.config.node.derive(&context);
        if signer.public() != terms.payee_key {
            return None;
        }
        if self.agreed.len() > self.paid.len() {
            self.agreed.retain(|_, agreement| Arc::strong_count(agreement) > 1);
        }
        let issuers = self.config.manifest.issuers.iter().map(|issuer| issuer.key);
        let agreement = Arc::new(Agreement {
            terms: Arc::new(terms.clone()),
            payer: open.payer,
            payer_account: terms.payer_account,
            payer_key: open.payer_key,
            domain: self.domain,
            signer: Arc::new(signer),
            keys: core::iter::once(terms.payer_account.into()).chain(issuers).collect(),
        });
        self.agreed.insert(terms.id(), agreement.clone());
        Some(agreement)
    }

    pub(super) fn on_engine(&mut self, event: EngineEvent, now: Time, out: &mut Vec<Effect>) {
        match event {
            EngineEvent::Ready { offer, device } => {
                self.scheduler.serve(offer.model, offer.slots);
                self.served.insert(offer.model, (offer, device));
                self.advertise(now, out);
            }
            // What it served is kept: the engine comes back with the same, and channels on its terms stay usable.
            EngineEvent::Lost(model) => self.scheduler.pause(model),
            EngineEvent::Waiting { job, tokens_out } => self.on_waiting(job, tokens_out, now),
            EngineEvent::Prepared { job, tokens_in } => self.on_prepared(job, tokens_in, now, out),
            EngineEvent::Finished { job, tokens_out, digest, finish } => {
                self.on_engine_finished(job, tokens_out, digest, finish, now, out);
            }
            EngineEvent::Failed { job, tokens_out, digest, fault } => {
                self.on_engine_failed(job, tokens_out, digest, fault, now, out);
            }
        }
    }

    fn on_prepared(&mut self, job: JobId, tokens_in: u32, now: Time, out: &mut Vec<Effect>) {
        let Some(serving) = self.serving.get_mut(&job) else { return };
        serving.tokens_in = Some(tokens_in);
        let (requester, channel) = (serving.requester, serving.channel);
        if requester == self.me {
            self.on_prepared_at_home(job, tokens_in, out);
            return;
        }
        if let Some(paid) = channel.and_then(|channel| self.paid.get_mut(&channel)) {
            paid.prepared(job, tokens_in);
        }
        let accepted = self.sign(Accepted { job, tokens_in, start: now });
        if let Some(serving) = self.serving.get_mut(&job) {
            serving.accepted = Some(accepted.clone());
        }
        self.send(requester, Message::Accepted(accepted), out);
        self.on_waiting(job, 0, now);
    }

    /// The engine has generated `tokens_out` and goes no further than it was granted: from here on the payer's time runs.
    fn on_waiting(&mut self, job: JobId, tokens_out: u32, now: Time) {
        let Some(serving) = self.serving.get_mut(&job) else { return };
        if tokens_out >= serving.granted && tokens_out < serving.spec.max_tokens && !serving.waits {
            serving.waits = true;
            self.deadlines.set(Timer::Serving(job), now.plus_ms(UNPAID_MS));
        }
    }

    fn grant_tokens(&mut self, job: JobId, up_to: u32, out: &mut Vec<Effect>) {
        let Some(serving) = self.serving.get_mut(&job) else { return };
        serving.granted = up_to;
        serving.waits = false;
        serving.uncovered = None;
        self.deadlines.clear(&Timer::Serving(job));
        out.push(Effect::Grant { job, up_to });
    }

    fn on_engine_finished(
        &mut self,
        job: JobId,
        tokens_out: u32,
        digest: Digest,
        finish: Finish,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(serving) = self.end_serving(job, now) else { return };
        if serving.requester == self.me {
            self.on_done_at_home(job, (tokens_out, digest, finish), None, now, out);
            return;
        }
        let finish = if serving.lost { Finish::Lost } else { finish };
        let record = self.record_of(job, &serving, tokens_out, digest, finish, now);
        out.push(Effect::Note(Record::Job(record.clone())));
        let paid = serving.channel.and_then(|channel| self.paid.get_mut(&channel));
        let jobs = paid.and_then(|paid| paid.end(&record)).unwrap_or(Digest::ZERO);
        self.pass_first_window(serving.channel, out);
        self.send(serving.requester, Message::Finished { record, jobs }, out);
    }

    fn on_engine_failed(
        &mut self,
        job: JobId,
        tokens_out: u32,
        digest: Digest,
        fault: EngineFault,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(serving) = self.end_serving(job, now) else { return };
        if serving.requester == self.me {
            let failure = match fault {
                EngineFault::PromptTooLong { tokens, context, text } => {
                    Failure::PromptTooLong { tokens, context, text }
                }
                EngineFault::BadRequest(reason) => Failure::BadRequest(reason),
                EngineFault::Broken(reason) => Failure::EngineFailed(reason),
            };
            self.on_done_at_home(job, (tokens_out, digest, Finish::Lost), Some(failure), now, out);
            return;
        }
        let record = self.record_of(job, &serving, tokens_out, digest, Finish::Lost, now);
        if let Some(paid) = serving.channel.and_then(|channel| self.paid.get_mut(&channel)) {
            if tokens_out == 0 {
                paid.abandon(job);
            } else {
                paid.end(&record);
                out.push(Effect::Note(Record::Job(record)));
            }
        }
        self.pass_first_window(serving.channel, out);
        let message = match fault {
            EngineFault::PromptTooLong { tokens, context, text } => {
                Message::Refused { job, refusal: Refusal::PromptTooLong { tokens, context, text } }
            }
            EngineFault::BadRequest(_) => Message::Refused { job, refusal: Refusal::BadRequest },
            EngineFault::Broken(_) => Message::Failed { job, tokens_out, reason: fault.to_string() },
        };
        self.send(serving.requester, message, out);
    }

    /// A job of a channel has ended: one that waited for it may begin.
    fn pass_first_window(&mut self, channel: Option<ChannelId>, out: &mut Vec<Effect>) {
        let paid = channel.and_then(|channel| self.paid.get_mut(&channel));
        if let Some((job, up_to)) = paid.and_then(|paid| paid.pass_first_window()) {
            self.grant_tokens(job, up_to, out);
        }
    }

    fn end_serving(&mut self, job: JobId, now: Time) -> Option<Serving> {
        self.scheduler.release(job, now);
        self.deadlines.clear(&Timer::Serving(job));
        self.serving.remove(&job)
    }

    fn record_of(
        &self,
        job: JobId,
        serving: &Serving,
        tokens_out: u32,
        output: Digest,
        finish: Finish,
        now: Time,
    ) -> JobRecord {
        let tokens_in = serving.tokens_in.unwrap_or(0);
        JobRecord {
            job,
            channel: serving.channel,
            provider: self.me,
            requester: serving.requester,
            model: serving.spec.model,
            usage: serving.spec.worst().usage_of(u64::from(tokens_in), u64::from(tokens_out)),
            price: serving.price,
            start: serving.start,
            end: now,
            input: serving.spec.input.digest,
            output,
            finish,
        }
    }

    pub(super) fn on_pay(
        &mut self,
        from: NodeId,
        receipt: &Verified<Receipt>,
        allowances: &Allowances,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(paid) = self.paid.get_mut(&receipt.channel).filter(|paid| paid.payer == from) else {
            return;
        };
        match paid.receive(receipt) {
            Err(_) => {
                out.push(Effect::Penalise(from, Offence::BadLedger));
                return;
            }
            Ok(Some(both)) => {
                out.push(Effect::Note(Record::Receipt(both.signed())));
                self.send(from, Message::CoSigned(both), out);
            }
            // Our signature may have been lost on its way, or the payer has forgotten a newer receipt.
            Ok(None) => {
                if let Some(head) = paid.head(receipt.channel) {
                    self.send(from, Message::CoSigned(head), out);
                }
            }
        }
        for (job, up_to) in allowances.iter().copied().take(usize::from(u16::MAX)) {
            let Some(paid) = self.paid.get_mut(&receipt.channel) else { return };
            match paid.grant(job, up_to) {
                Grant::Raised(up_to) => self.grant_tokens(job, up_to, out),
                Grant::Unchanged => {}
                Grant::Uncovered => {
                    if let Some(serving) = self.serving.get_mut(&job) {
                        serving.uncovered.get_or_insert(now);
                    }
                }
            }
        }
    }

    /// Repeats that jobs were taken whose payment is still to come, and ends those for which the two sides will not agree.
    pub(super) fn review_serving(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut accepted = Vec::new();
        let mut hopeless = Vec::new();
        for (job, serving) in &mut self.serving {
            let paid = serving.channel.and_then(|channel| self.paid.get(&channel));
            if paid.is_some_and(|paid| paid.is_stuck(*job)) {
                serving.uncovered.get_or_insert(now);
            }
            if paid.is_some_and(|paid| paid.is_unpaid(*job)) {
                accepted.extend(serving.accepted.clone().map(|accepted| (serving.requester, accepted)));
            }
            if serving.uncovered.is_some_and(|since| now.since_ms(since) >= UNCOVERED_MS) {
                hopeless.push(*job);
            }
        }
        for (requester, accepted) in accepted {
            if self.is_connected(requester) {
                self.send(requester, Message::Accepted(accepted), out);
            }
        }
        for job in hopeless {
            self.on_requester_lost(job, out);
        }
    }

    pub(super) fn on_cancel(&mut self, from: NodeId, job: JobId, out: &mut Vec<Effect>) {
        self.scheduler.let_go(from, job);
        if self.serving.get(&job).is_some_and(|serving| serving.requester == from) {
            out.push(Effect::Abort(job));
        }
    }

    /// The requester's end of a job's stream is gone: nobody would pay for more.
    pub(super) fn on_requester_lost(&mut self, job: JobId, out: &mut Vec<Effect>) {
        let me = self.me;
        if let Some(serving) = self.serving.get_mut(&job).filter(|serving| serving.requester != me) {
            serving.lost = true;
            out.push(Effect::Abort(job));
        }
    }

    pub(super) fn on_serving_due(&mut self, job: JobId, now: Time, out: &mut Vec<Effect>) {
        if self.is_behind_another(job) {
            self.deadlines.set(Timer::Serving(job), now.plus_ms(UNPAID_MS));
        } else {
            self.on_requester_lost(job, out);
        }
    }

    /// Says whether a job has no window yet because the first one of its channel is still being generated: nothing was
    /// delivered, so the payer owes nothing.
    fn is_behind_another(&self, job: JobId) -> bool {
        let Some(serving) = self.serving.get(&job).filter(|serving| serving.granted == 0) else {
            return false;
        };
        let Some(paid) = serving.channel.and_then(|channel| self.paid.get(&channel)) else { return false };
        self.serving.iter().any(|(other, ahead)| {
            ahead.channel == serving.channel && ahead.granted > 0 && !ahead.waits && paid.is_unpaid(*other)
        })
    }
}
