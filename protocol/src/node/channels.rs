//! Keeps channels in order: opens them and pays; in the files beside it redeems, closes, and says again what was lost.

mod closing;
mod reconciling;
mod redeeming;

use alloc::vec::Vec;

use crate::ids::{ChannelId, JobId, NodeId, RecordId};
use crate::job::JobSpec;
use crate::ledger::paying::Paying;
use crate::ledger::records::{Epoch, Final, OpBody, OpenChannel, Receipt, Terms, VALIDITY_EPOCHS_MAX};
use crate::message::{Checked, Message, Opening};
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::{Effect, Node, Offence};

pub(super) use reconciling::RECONCILE_MS;
pub(super) use redeeming::is_round;

/// A channel on which we pay, with what is needed to use and to prove it.
#[derive(Debug)]
pub(super) struct PayingChannel {
    pub(super) side: Paying,
    /// Proof for the payee, until it has confirmed a job, and again when it has lost it.
    pub(super) opening: Opening<Checked>,
    pub(super) confirmed: bool,
    used: Time,
    /// It takes no more jobs, and is closed as soon as nothing is open on it.
    pub(super) to_close: bool,
    /// Last epoch in which it takes jobs.
    pub(super) expires: Epoch,
    /// Since which epoch the payee has owed its signature, without which both cannot end it.
    silent_since: Option<Epoch>,
    /// Since when it has been asked for it, as far as this process knows.
    asked_since: Option<Time>,
}

impl PayingChannel {
    /// Says whether the payee's signature is all that is lacking: under the end, or under the last receipt before it.
    fn waits_for_payee(&self) -> bool {
        let lacks_receipt = self.side.unacknowledged().is_some() && !mutant::is_in("silent-co-signer");
        self.side.is_closing() || (self.to_close && !self.side.is_busy() && lacks_receipt)
    }

    /// Notes whether the payee owes a signature in `epoch`. What it owes for a receipt it owes since that was signed.
    fn note_silence(&mut self, epoch: Epoch, now: Time) {
        if !self.waits_for_payee() {
            (self.silent_since, self.asked_since) = (None, None);
            return;
        }
        let paid_in = self.side.head().filter(|_| !self.side.is_closing()).map(|head| head.epoch);
        self.silent_since.get_or_insert(paid_in.unwrap_or(epoch));
        self.asked_since.get_or_insert(now);
    }

    /// Takes the end back that we signed before a restart. The line has no date: it is from the epoch after the newest
    /// checkpoint before it, or that of something which both had signed.
    pub(super) fn replay_close(&mut self, closing: Verified<Final>, newest: Option<Epoch>) {
        let signed = self.side.head().map_or(Epoch(0), |head| head.epoch).max(self.opening.op.epoch);
        if !mutant::is_in("silence-forgotten") {
            self.silent_since = Some(newest.map_or(signed, |over| over.plus(1).max(signed)));
        }
        self.side.replay_close(closing);
    }

    fn unconfirmed(&self) -> Option<Opening<Checked>> {
        (!self.confirmed).then(|| self.opening.clone())
    }
}

impl Node {
    /// Signs the step that opens a channel for `job`; it leaves once it is on disk. `None` while the wallet is not free, and when
    /// enough channels to this payee were opened just now.
    pub(super) fn sign_opening(
        &mut self,
        terms: &Verified<Terms>,
        cap: u64,
        job: JobId,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Option<RecordId> {
        let epoch = self.epoch(now);
        if let Err(later) = self.burst.note(terms, job, &self.jobs, now) {
            self.reopen_at(later);
            return None;
        }
        let payer_key = self.payer_signer(terms).public();
        let expires = epoch.plus(VALIDITY_EPOCHS_MAX).min(terms.valid_to);
        let open =
            OpenChannel { payee: terms.payee, terms: terms.id(), cap, expires, payer: self.me, payer_key };
        self.sign_step(OpBody::OpenChannel(open), Some(terms), now, out)
    }

    /// Signs the account's next step; it leaves once it is on disk. An account that has not begun begins first, and a node
    /// that recovers signs nothing: then there is none, and whoever wants the step is asked again.
    pub(super) fn sign_step(
        &mut self,
        body: OpBody,
        terms: Option<&Verified<Terms>>,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Option<RecordId> {
        self.issuer().filter(|_| self.recovery.is_none())?;
        if !matches!(body, OpBody::Inception(_)) && self.begins(now, out) {
            return None;
        }
        let op = self.wallet.sign(body, self.epoch(now))?;
        out.push(Effect::Record(Record::Step { op: op.signed(), terms: terms.map(Verified::signed) }));
        self.opening_terms = terms.cloned();
        let id = op.id();
        self.send_step(out);
        Some(id)
    }

    /// Signs how the account begins, if the issuers have not seen that yet; says whether it did.
    pub(super) fn begins(&mut self, now: Time, out: &mut Vec<Effect>) -> bool {
        let inception = self.wallet.is_to_begin().map(OpBody::Inception);
        inception.is_some_and(|body| self.sign_step(body, None, now, out).is_some())
    }

    /// Returns the session key with which we pay on these terms: this node's own, so that it outlives every key of the
    /// account.
    pub(super) fn payer_signer(&self, terms: &Verified<Terms>) -> crate::keys::Signer {
        self.config.node.derive(&[b"payer".as_slice(), &terms.id().0].concat())
    }

    /// Takes up the paying side of a channel that is committed.
    pub(super) fn adopt_paying(&mut self, opening: Opening<Checked>, now: Time) -> bool {
        let OpBody::OpenChannel(open) = &opening.op.body else { return false };
        let channel = ChannelId::from(opening.op.id());
        if self.paying.contains_key(&channel) {
            return false;
        }
        let signer = self.payer_signer(&opening.terms);
        if open.payer != self.me || signer.public() != open.payer_key {
            return false;
        }
        let side = Paying::new(channel, opening.terms.clone(), open.cap, signer);
        let expires = open.expires;
        let opened = PayingChannel {
            side,
            opening,
            confirmed: false,
            used: now,
            to_close: false,
            expires,
            silent_since: None,
            asked_since: None,
        };
        self.supersede(&opened.side.terms);
        self.paying.insert(channel, opened);
        true
    }

    /// A newer channel to the same payee for the same model and builder takes the place of the older ones.
    fn supersede(&mut self, terms: &Terms) {
        let key = |terms: &Terms| (terms.payee, terms.model, terms.markup);
        let older = self.paying.values_mut().filter(|channel| key(&channel.side.terms) == key(terms));
        older.for_each(|channel| channel.to_close = true);
    }

    /// Returns a channel on which a job can be paid now, for `price_max` with its markup at most: an older channel has the
    /// price of its day. One with another markup would pay another builder.
    pub(super) fn open_channel_with(
        &self,
        provider: NodeId,
        spec: &JobSpec,
        price_max: Option<u64>,
        now: Time,
    ) -> Option<ChannelId> {
        let (epoch, worst) = (self.epoch(now), spec.worst_usage());
        let fits = |channel: &&PayingChannel| {
            let terms = &channel.side.terms;
            let is_open = !channel.to_close && channel.expires >= epoch;
            let is_dear =
                price_max.is_some_and(|most| spec.worst_price(&terms.price).is_none_or(|cost| cost > most));
            let is_same = terms.markup == spec.markup || mutant::is_in("channel-of-another-builder");
            let matches = terms.payee == provider && terms.model == spec.model && is_same;
            is_open && matches && !is_dear && channel.side.fits(&worst)
        };
        self.paying.values().find(fits).map(|channel| channel.side.channel)
    }

    /// Opens the next channel while the last job that fits this one runs, so that the job after it need not wait.
    pub(super) fn open_ahead(&mut self, channel: ChannelId, job: JobId, now: Time, out: &mut Vec<Effect>) {
        let (Some(paying), Some(spec)) = (self.paying.get(&channel), self.spec_of(job)) else { return };
        let terms = paying.side.terms.clone();
        let may_sign = self.wallet.is_idle() && self.wallet.holds_key();
        let is_covered = self.open_channel_with(terms.payee, &spec, None, now).is_some();
        if !may_sign || is_covered || self.has_waiting(&terms) {
            return;
        }
        let worst = terms.price.cost(&spec.worst_usage());
        let Some(worst) = worst.filter(|_| terms.valid_to >= self.epoch(now)) else {
            return;
        };
        let cap = self.cap_for(worst);
        // Capital that a job in hand might need is not locked up for one that may never come.
        if cap >= worst.saturating_mul(2) {
            self.sign_opening(&terms, cap, job, now, out);
        }
    }

    /// Returns what a new channel shall hold: four jobs' worth, so that the next ones need no opening, but never more
    /// than a quarter of what there is, nor less than one job.
    pub(super) fn cap_for(&self, worst: u64) -> u64 {
        worst.saturating_mul(4).min(self.wallet.balance().available() / 4).max(worst)
    }

    /// Sends the next receipt of a channel if one is due.
    pub(super) fn pay(&mut self, channel: ChannelId, now: Time, out: &mut Vec<Effect>) {
        let (domain, epoch) = (self.domain, self.epoch(now));
        let Some(paying) = self.paying.get_mut(&channel) else { return };
        paying.used = now;
        let before = paying.side.head().map(Verified::id);
        let Some((receipt, allowances)) = paying.side.pay(domain, epoch) else { return };
        let payee = paying.side.terms.payee;
        if before != Some(receipt.id()) {
            out.push(Effect::Note(Record::Receipt(receipt.signed())));
        }
        self.send(payee, Message::Pay { receipt, allowances }, out);
    }

    pub(super) fn on_co_signed(
        &mut self,
        from: NodeId,
        receipt: Verified<Receipt>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(paying) = self.paying.get_mut(&receipt.channel) else { return };
        if paying.side.terms.payee != from || !receipt.is_signed_by(Role::Payee, paying.side.terms.payee_key)
        {
            out.push(Effect::Penalise(from, Offence::BadLedger));
            return;
        }
        let (channel, to_close) = (receipt.channel, paying.to_close);
        if paying.side.adopt(&receipt) {
            // It is there: for its signature under the end it has as long again.
            (paying.silent_since, paying.asked_since) = (None, None);
            out.push(Effect::Note(Record::Receipt(receipt.signed())));
            // What is due for a job in flight may be due on top of what was forgotten.
            self.pay(channel, now, out);
        }
        if to_close {
            self.close_ready(out);
        }
    }

    /// Returns the proof of a channel that its payee has not confirmed yet.
    pub(super) fn unconfirmed_opening(&self, channel: ChannelId) -> Option<Opening<Checked>> {
        self.paying.get(&channel)?.unconfirmed()
    }

    /// Takes no more work.
    pub(super) fn stop(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.stopping = true;
        if self.recovery.is_none() {
            self.redeem(now, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::redeeming::{ENDS_ASKED_MAX, REDEEM_MS, in_turn};
    use alloc::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::advert::{Incentive, ProviderClass};
    use crate::ids::{AccountId, ModelId};
    use crate::keys::Signer;
    use crate::ledger::issuer::{Balance, IssuerError};
    use crate::ledger::records::{AccountOp, Markup};
    use crate::manifest::{Admission, Manifest};
    use crate::model::Modality;
    use crate::node::Config;
    use crate::node::tests::spec;
    use crate::price::Price;
    use crate::signed::sign;

    const NOW: Time = Time(1_800_000_000_000);
    const MODEL: ModelId = ModelId([7; 32]);

    fn signer(seed: u8) -> Signer {
        Signer::from_seed([seed; 32])
    }

    fn config() -> Config {
        let manifest = Manifest::home("home".into(), NOW, &signer(1), NodeId::from(signer(2).public()));
        Config {
            manifest: Manifest { admission: Admission::Open, ..manifest },
            node: signer(4),
            owner: signer(3).into(),
            issuer: None,
            name: "consumer".into(),
            incentive: Incentive::Exchange,
            class: ProviderClass::Community,
            region: alloc::string::String::new(),
            version: alloc::string::String::new(),
            builders: BTreeMap::new(),
        }
    }

    fn consumer() -> Node {
        Node::new(config(), 1, &[], NOW).expect("an empty journal")
    }

    fn opening(node: &Node, price: Price, cap: u64) -> Opening<Checked> {
        opening_for(node, None, price, cap)
    }

    fn opening_for(node: &Node, markup: Option<Markup>, price: Price, cap: u64) -> Opening<Checked> {
        let payee_account = AccountId::from(signer(50).public());
        let terms = Terms {
            payee: signer(5).public().into(),
            payee_account,
            payee_key: signer(60).public(),
            payer_account: node.account(),
            model: MODEL,
            licence: crate::licence::open_licence(MODEL, node.domain()),
            incentive: Incentive::Exchange,
            price,
            markup,
            split: Terms::standard_split(node.manifest(), Modality::Text, payee_account),
            valid_to: Epoch(7),
        };
        let terms = sign(terms, node.domain(), Role::Node, &signer(5));
        let body = OpBody::OpenChannel(OpenChannel {
            payee: terms.payee,
            terms: terms.id(),
            cap,
            expires: Epoch(7),
            payer: node.id(),
            payer_key: node.payer_signer(&terms).public(),
        });
        let account = node.account();
        let op = AccountOp { account, sequence: 0, previous: RecordId::NONE, epoch: Epoch(0), body };
        let op = sign(op, node.domain(), Role::Owner, &signer(3));
        Opening { op, terms, recorded: Vec::new() }
    }

    #[test]
    fn a_job_does_not_use_a_channel_that_is_dearer_than_it_allows() {
        let mut node = consumer();
        let dear = opening(&node, Price { call: 1000, input: 0, output: 0 }, 1_000_000);
        assert!(node.adopt_paying(dear, NOW));
        let provider = signer(5).public().into();

        let found = |price_max| node.open_channel_with(provider, &spec(), price_max, NOW).is_some();
        assert!(found(None) && found(Some(1000)));
        assert!(!found(Some(999)));
    }

    #[test]
    fn a_job_uses_no_channel_that_pays_another_builder() {
        let mut node = consumer();
        let builder = |tag: u8, bps| Some(Markup { builder: signer(tag).public().into(), bps });
        let provider = signer(5).public().into();
        let all = [None, builder(80, 250), builder(80, 300), builder(81, 250)];
        let found =
            |node: &Node, markup| node.open_channel_with(provider, &JobSpec { markup, ..spec() }, None, NOW);

        let mut opened = Vec::new();
        for markup in all {
            assert_eq!(found(&node, markup), None, "{markup:?}");
            let price = Price { call: 1000, input: 0, output: 0 };
            let channel = opening_for(&node, markup, price, 1_000_000);
            opened.push(Some(ChannelId::from(channel.op.id())));
            assert!(node.adopt_paying(channel, NOW));
        }
        // Nor does a channel for one builder take the place of another's.
        assert_eq!(all.map(|markup| found(&node, markup)).as_slice(), opened);

        let dear = JobSpec { markup: builder(80, 250), ..spec() };
        let found = |most| node.open_channel_with(provider, &dear, Some(most), NOW).is_some();
        assert!(found(1_250) && !found(1_249), "the markup counts");
    }

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    const MINUTE_MS: u64 = 60 * 1000;

    /// Lets the payer look after its channels on a day, some minutes after midnight; returns the step by which it ends the
    /// channel alone, if it signs one, and the lines of it.
    fn ended_alone(node: &mut Node, day: u64, minutes: u64) -> Option<(Verified<AccountOp>, Vec<Record>)> {
        let now = NOW.plus_ms(day * DAY_MS + minutes * MINUTE_MS);
        let mut out = Vec::new();
        node.on_reconcile_due(now, &mut out);
        let domain = node.domain();
        let lines = |effect: Effect| if let Effect::Record(line) = effect { Some(line) } else { None };
        let lines: Vec<Record> = out.into_iter().filter_map(lines).collect();
        let step = lines.iter().find_map(|line| {
            let Record::Step { op, .. } = line else { return None };
            op.clone().read_back(domain).ok()
        })?;
        matches!(step.body, OpBody::Expire(_)).then_some((step, lines))
    }

    /// Returns a payer with an open channel, whose issuer is there.
    fn payer_of_one() -> (Node, Opening<Checked>, ChannelId) {
        let mut node = consumer();
        let opened = opening(&node, Price { call: 1000, input: 0, output: 0 }, 1_000_000);
        let id = ChannelId::from(opened.op.id());
        assert!(node.adopt_paying(opened.clone(), NOW));
        meets_issuer(&mut node, 1, RecordId([8; 32]));
        (node, opened, id)
    }

    fn meets_issuer(node: &mut Node, next: u64, head: RecordId) {
        node.wallet.learn(next, head, Balance::default(), Epoch(1));
        assert!(node.wallet.is_idle());
        greet_as_issuer(node);
    }

    /// Has a job done and paid, the last receipt of which the payee does not sign.
    fn pays(node: &mut Node, channel: ChannelId) {
        let job = JobId([5; 16]);
        let usage = crate::price::Usage { calls: 1, tokens_in: 3, tokens_out: 2, compute: 0 };
        let side = &mut node.paying.get_mut(&channel).expect("adopted").side;
        assert!(side.reserve(job, usage));
        side.accepted(job, 3);
        side.delivered(job, 2);
        side.end(job, usage, None);
        node.pay(channel, NOW, &mut Vec::new());
        assert!(node.paying[&channel].side.unacknowledged().is_some());
    }

    #[test]
    fn a_payer_ends_a_channel_alone_whose_payee_does_not_agree() {
        let (mut node, _, id) = payer_of_one();
        assert!(ended_alone(&mut node, 1, 0).is_none() && ended_alone(&mut node, 2, 0).is_none());
        let (step, _) = ended_alone(&mut node, 3, 0).expect("silent for an epoch");
        assert_eq!(step.body, OpBody::Expire(id));
    }

    #[test]
    fn a_payer_ends_a_channel_alone_whose_payee_never_signs_its_last_receipt() {
        let (mut node, _, id) = payer_of_one();
        pays(&mut node, id);
        assert!(ended_alone(&mut node, 0, 20).is_none() && ended_alone(&mut node, 1, 0).is_none());
        let (step, _) = ended_alone(&mut node, 2, 0).expect("silent since the receipt of day 0");
        assert!(!node.paying[&id].side.is_closing(), "it has signed no end that the payee could not know");

        // Refused for now: made again, and not at once.
        let refuses = |node: &mut Node, op: RecordId, error, minutes| {
            let issuer = NodeId::from(signer(2).public());
            let now = NOW.plus_ms(2 * DAY_MS + minutes * MINUTE_MS);
            let refused = Message::StepRefused { op, error, balance: Balance::default() };
            node.handle(now, crate::node::Input::Received(issuer, refused), &mut Vec::new());
            assert!(node.wallet.pending().is_none());
        };
        refuses(&mut node, step.id(), IssuerError::TooManySteps { made: 9 }, 1);
        assert!(ended_alone(&mut node, 2, 1).is_none() && ended_alone(&mut node, 2, 10).is_none());
        let (again, _) = ended_alone(&mut node, 2, 11).expect("after ten minutes");
        refuses(&mut node, again.id(), IssuerError::Closed, 12);
        assert!(ended_alone(&mut node, 2, 13).is_none() && ended_alone(&mut node, 2, 60).is_none());
    }

    #[test]
    fn a_payee_that_signs_the_last_receipt_late_has_as_long_again_for_the_end() {
        let (mut node, opened, id) = payer_of_one();
        pays(&mut node, id);
        assert!(ended_alone(&mut node, 0, 20).is_none() && ended_alone(&mut node, 1, 0).is_none());
        let receipt = node.paying[&id].side.head().expect("paid").clone();
        let receipt = receipt.signed_also_by(node.domain(), Role::Payee, &signer(60));
        let returned = NOW.plus_ms(2 * DAY_MS);
        node.on_co_signed(opened.terms.payee, receipt, returned, &mut Vec::new());
        assert!(node.paying[&id].side.is_closing(), "the end is signed at once");

        assert!(ended_alone(&mut node, 2, 0).is_none(), "the payee has not even seen it");
        assert!(ended_alone(&mut node, 2, 20).is_none() && ended_alone(&mut node, 3, 20).is_none());
        assert!(ended_alone(&mut node, 4, 0).is_some());
    }

    #[test]
    fn a_payer_that_is_switched_off_each_night_gives_a_silent_payee_up_too() {
        let (node, opened, id) = payer_of_one();
        let closing = Final { channel: id, amount: 0, receipt: None };
        let closing = sign(closing, node.domain(), Role::Payer, &node.payer_signer(&opened.terms));
        let lines = [Record::Paying(opened.signed()), Record::Final(closing.signed())];
        let started = |lines: &[Record], day: u64, (next, head)| {
            let mut node = Node::new(config(), 1, lines, NOW.plus_ms(day * DAY_MS)).expect("its own journal");
            meets_issuer(&mut node, next, head);
            node
        };
        let on_day_at = |lines: &[Record], day: u64, slot: (u64, RecordId)| {
            let mut node = started(lines, day, slot);
            assert!(ended_alone(&mut node, day, 0).is_none(), "the payee is asked first");
            assert!(ended_alone(&mut node, day, 9).is_none());
            ended_alone(&mut node, day, 10)
        };
        let on_day = |lines: &[Record], day: u64| on_day_at(lines, day, (1, RecordId([8; 32])));
        assert!(on_day(&lines, 1).is_none());
        let (step, signed) = on_day(&lines, 2).expect("the end is of day 0");
        assert_eq!(step.body, OpBody::Expire(id));

        // An end that was signed behind a checkpoint is not older than that.
        let [paying, closing] = lines.clone();
        let checkpoint = Record::Books(crate::books::BooksRecord::Checkpoint(checkpoint_of(1).signed()));
        let later = [paying, checkpoint, closing];
        assert!(on_day(&later, 2).is_none() && on_day(&later, 3).is_none());
        assert!(on_day(&later, 4).is_some(), "the end is of day 2");

        // Once the issuers have taken the step, a start makes it not again.
        let recorded = crate::ledger::records::Recorded { op: step.id(), epoch: Epoch(2) };
        let taken = Record::Taken(sign(recorded, node.domain(), Role::Issuer, &signer(1)).signed());
        let lines = [lines.to_vec(), signed, Vec::from([taken])].concat();
        assert!(on_day_at(&lines, 2, (2, step.id())).is_none());
    }

    fn checkpoint_of(epoch: u32) -> Verified<crate::ledger::checkpoint::Checkpoint> {
        let nothing = crate::ledger::merkle::Tree::<crate::ledger::checkpoint::AccountLeaf>::new(Vec::new());
        let root = nothing.expect("nothing overflows").root();
        let checkpoint = crate::ledger::checkpoint::Checkpoint {
            epoch: Epoch(epoch),
            previous: RecordId::NONE,
            accounts: root,
            channels: root,
            deposited: 0,
            withdrawn: 0,
            facts: crate::ids::Digest::ZERO,
        };
        sign(checkpoint, config().manifest.domain(), Role::Issuer, &signer(1))
    }

    fn greet_as_issuer(node: &mut Node) {
        let issuer = NodeId::from(signer(2).public());
        let device = crate::ledger::records::Device {
            account: signer(40).public().into(),
            node: issuer,
            rights: crate::ledger::records::Rights { serve: true, spend: true },
            version: 1,
            expires: Epoch(7),
        };
        let device = sign(device, node.domain(), Role::Owner, &signer(40));
        let mut out = Vec::new();
        node.handle(NOW, crate::node::Input::PeerUp(issuer), &mut out);
        let hello = Message::Hello { device, lineage: None, membership: None, advert: None, asks: false };
        node.handle(NOW, crate::node::Input::Received(issuer, hello), &mut out);
    }

    #[test]
    fn every_end_that_is_not_known_is_asked_for_in_turn() {
        for count in [1, 64, 65, 150] {
            let all: Vec<usize> = (0..count).collect();
            let rounds = (0..3).map(|round| NOW.plus_ms(round * REDEEM_MS));
            let asked: Vec<Vec<usize>> = rounds.map(|now| in_turn(&all, now).copied().collect()).collect();
            assert!(asked.iter().all(|round| round.len() == count.min(ENDS_ASKED_MAX)));
            let each: BTreeSet<usize> = asked.into_iter().flatten().collect();
            assert_eq!(each.len(), count);
        }
    }

    #[test]
    fn a_payer_forgets_a_channel_when_the_issuers_do() {
        let mut node = consumer();
        let channel = opening(&node, Price { call: 1000, input: 0, output: 0 }, 1_000_000);
        assert!(node.adopt_paying(channel, NOW));
        let at = |days: u64| NOW.plus_ms(days * 24 * 60 * 60 * 1000);

        // The issuers remember it for seven days more.
        node.on_reconcile_due(at(7 + 3 + 7 + 1), &mut Vec::new());
        assert_eq!(node.channels().len(), 1);
        node.on_reconcile_due(at(7 + 3 + 7 + 2), &mut Vec::new());
        assert_eq!(node.channels().len(), 0);
    }
}
