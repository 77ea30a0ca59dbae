//! One of four issuers and what the other three tell it: facts, proposals, two steps in one slot.

use super::*;
use crate::agreeing::{AgreedRecord, Agreeing};
use crate::books::BooksMessage;
use crate::forward::Entry;
use crate::ledger::facts::{NAMES_MAX, WANTED_MAX};
use crate::ledger::issuer::{IssuerError, WITHDRAWALS_MAX, Withdrawal};
use crate::ledger::quorum::{Certificate, EndCertificate, Fact, freed_head};
use crate::ledger::records::{Deposit, Source, Vote};
use crate::ledger::witness::Witness;
use crate::manifest::Issuer;
use crate::message::Wire;
use crate::node::peers::Peer;

/// When the first epoch is over, and the first issuer proposes what it comes to.
const OVER: Time = START.plus_ms(24 * 60 * 60 * 1000 + 1);

/// The issuer under test; those before it propose first.
const OURS: u8 = 2;

pub(super) fn on(place: u8) -> Somebody {
    Somebody(120 + place, 130 + place)
}

pub(super) fn key(place: u8) -> Signer {
    signer(140 + place)
}

pub(super) fn four() -> Manifest {
    let issuer = |place: u8| Issuer { key: key(place).public(), node: on(place).id() };
    Manifest { issuers: (0..4).map(issuer).collect(), quorum: 3, ..manifest() }
}

fn owner(tag: u8) -> Signer {
    signer(160 + tag)
}

/// Returns a record with the signatures of these issuers.
fn by<T: Signable>(places: [u8; 3], record: &T) -> [Verified<T>; 3] {
    places.map(|place| sign(record.clone(), four().domain(), Role::Issuer, &key(place)))
}

/// Returns a record that a quorum has signed.
fn agreed<T: Signable>(record: &T) -> Verified<T> {
    let [first, second, third] = by([0, 1, 3], record);
    [second, third].iter().fold(first, |all, one| all.with_signatures_of(one, |_, _| true))
}

/// Returns a deposit of an account on which a quorum has agreed.
fn deposit(number: u16, tag: u8) -> Fact<Checked> {
    let mut reference = [0; 32];
    reference[..2].copy_from_slice(&number.to_be_bytes());
    let (reference, source) = (Digest(reference), Source::Outside);
    let account = owner(tag).public().into();
    Fact::Deposit(agreed(&Deposit { reference, account, amount: 1_000_000, epoch: Epoch(0), source }))
}

/// Returns the first step of an account.
fn step(tag: u8, amount: u64) -> Verified<AccountOp> {
    let body = OpBody::Pay { to: CONSUMER.account(), amount };
    let account = owner(tag).public().into();
    let op = AccountOp { account, sequence: 0, previous: RecordId::NONE, epoch: Epoch(0), body };
    sign(op, four().domain(), Role::Owner, &owner(tag))
}

/// Returns a step with the votes of these issuers.
fn certified(op: &Verified<AccountOp>, places: [u8; 3]) -> Certificate<Checked> {
    let vote =
        Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled: None };
    Certificate { op: op.clone(), terms: None, votes: by(places, &vote).into() }
}

impl Told {
    /// Returns an issuer that is connected to the other three.
    fn one_of_four() -> Self {
        Self::one_of_four_with(&[])
    }

    /// Returns one that comes back with this journal.
    fn one_of_four_with(journal: &[Record]) -> Self {
        let mut told = node_with(four(), on(OURS), Some(key(OURS)), journal);
        (0..4).filter(|place| *place != OURS).for_each(|place| told.meets(place));
        told
    }

    /// One of the four issuers connects and greets.
    pub(super) fn meets(&mut self, place: u8) {
        self.greeted_at_four(&on(place), None);
    }

    /// Somebody of the network with four issuers connects and greets.
    pub(super) fn greeted_at_four(&mut self, peer: &Somebody, advert: Option<Verified<Advert>>) {
        self.told(START, Input::PeerUp(peer.id()));
        let rights = Rights { serve: true, spend: true };
        let (account, node) = (peer.account(), peer.id());
        let device = records::Device { account, node, rights, version: 1, expires: Epoch(7) };
        let device = sign(device, four().domain(), Role::Owner, &signer(peer.1));
        let hello = Message::Hello { device, lineage: None, membership: None, advert, asks: false };
        self.hears(START, peer, hello);
    }

    fn hears_fact(&mut self, now: Time, place: u8, fact: &Fact<Checked>) -> Vec<Effect> {
        self.hears(now, &on(place), Message::Fact(fact.clone()))
    }

    fn witness(&self) -> &Witness {
        &self.node.issuing.as_ref().expect("an issuer").witness
    }

    /// The first issuer proposes a checkpoint of these facts, and names them when it is asked to; returns what follows.
    fn is_shown(&mut self, facts: &[Fact<Checked>]) -> Vec<Effect> {
        let mut proposer = Witness::new(four(), key(0));
        for fact in facts {
            match fact {
                Fact::Deposit(deposit) => drop(proposer.enter(deposit).expect("agreed")),
                Fact::Step(certificate) => drop(proposer.certify(certificate, Epoch(0)).expect("voted for")),
                Fact::Redeemed { receipt, claim } => {
                    drop(proposer.redeem(receipt, claim.as_ref()).expect("signed by both"));
                }
                _ => unreachable!("none is proposed here"),
            }
        }
        let (names, outcome) = proposer.settled.propose(Epoch(0)).expect("sums that can be stated");
        let checkpoint = Box::new(outcome.checkpoint);
        let facts = checkpoint.facts;
        self.told(OVER, Input::Wake);
        let proposal = Agreeing::Proposal { round: 0, checkpoint, prepares: Vec::new() };
        let mut out = self.hears(OVER, &on(0), Message::Agreeing(proposal));
        for (page, names) in names.chunks(NAMES_MAX).enumerate() {
            assert!(sent(&out).contains(&"names_query"), "{:?}", sent(&out));
            let from = u32::try_from(page * NAMES_MAX).expect("few");
            let names = Agreeing::Names { facts, from, names: names.to_vec() };
            out = self.hears(OVER, &on(0), Message::Agreeing(names));
        }
        out
    }
}

/// Returns the names of the facts for which an issuer is asked.
fn asked(out: &[Effect], place: u8) -> Vec<RecordId> {
    let names = |effect: &Effect| match effect {
        Effect::Send(to, Message::FactQuery(names)) if *to == on(place).id() => names.clone(),
        _ => Vec::new(),
    };
    out.iter().flat_map(names).collect()
}

fn has_voted(out: &[Effect]) -> bool {
    let is_ballot =
        |effect: &Effect| matches!(effect, Effect::Record(Record::Agreed(AgreedRecord::Balloted { .. })));
    out.iter().any(is_ballot)
}

#[test]
fn a_fact_of_a_proposal_is_taken_only_from_the_issuer_that_was_asked_for_it() {
    let (credits, op) = (deposit(1, 0), step(0, 5_000));
    let [theirs, others] = [[0, 1, 3], [0, 1, 2]].map(|places| certified(&op, places));
    let mut node = Told::one_of_four();
    let out = node.is_shown(&[credits.clone(), Fact::Step(theirs.clone())]);
    assert_eq!(asked(&out, 0), [credits.name(), op.id()]);

    // Without the credits the step is not taken into the books either.
    node.hears_fact(OVER, 1, &Fact::Step(others));
    assert!(node.witness().settled.get(&op.id()).is_none());
    node.hears_fact(OVER, 0, &Fact::Step(theirs.clone()));
    let learned = node.witness().settled.get(&op.id()).map(|fact| Fact::clone(fact));
    assert_eq!(learned, Some(Fact::Step(theirs)));
    assert!(has_voted(&node.hears_fact(OVER, 0, &credits)), "now it comes to the same");
}

/// Returns what leads to a channel that has paid, and its end below that.
fn paid_and_ended() -> ([Fact<Checked>; 3], Fact<Checked>) {
    let (domain, payer) = (four().domain(), Somebody(150, 160));
    let terms = Terms {
        payer_account: payer.account(),
        licence: open_licence(MODEL, domain),
        split: Terms::standard_split(&four(), Modality::Text, PROVIDER.account()),
        ..Terms::clone(&terms(DEAR))
    };
    let terms = sign(terms, domain, Role::Node, &PROVIDER.node());
    let open = OpenChannel {
        payee: PROVIDER.id(),
        terms: terms.id(),
        cap: 500_000,
        expires: Epoch(6),
        payer: payer.id(),
        payer_key: signer(70).public(),
    };
    let body = OpBody::OpenChannel(open);
    let op =
        AccountOp { account: payer.account(), sequence: 0, previous: RecordId::NONE, epoch: Epoch(0), body };
    let op = sign(op, domain, Role::Owner, &owner(0));
    let channel = op.id().into();
    let (usage, jobs, amount) = (Usage::default(), Digest::ZERO, 70_000);
    let receipt = Receipt { channel, sequence: 1, amount, usage, jobs, epoch: Epoch(0) };
    let receipt = sign(receipt, domain, Role::Payer, &signer(70));
    let receipt = receipt.signed_also_by(domain, Role::Payee, &signer(60));
    let claim = records::Claim { channel, receipt: receipt.id(), amount };
    let claim = Some(sign(claim, domain, Role::Payee, &signer(60)));
    let opened = Certificate { terms: Some(terms), ..certified(&op, [0, 1, 3]) };
    let end = records::CloseVote { channel, amount: 0, epoch: Epoch(0) };
    let end = Fact::End(EndCertificate { votes: by([0, 1, 3], &end).into() });
    ([deposit(1, 0), Fact::Step(opened), Fact::Redeemed { receipt, claim }], end)
}

#[test]
fn who_prepared_what_a_channel_has_paid_takes_no_end_below_it_after_a_restart_either() {
    let (facts, end) = paid_and_ended();
    let channel = ChannelId::from(facts[1].name());
    let mut node = Told::one_of_four();
    let mut out = node.is_shown(&facts);
    assert_eq!(asked(&out, 0), facts.each_ref().map(Fact::name));
    facts.iter().for_each(|fact| out.extend(node.hears_fact(OVER, 0, fact)));
    assert!(has_voted(&out));
    let journal: Vec<Record> = out
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Record(record) => Some(record),
            _ => None,
        })
        .collect();

    let mut again = Told::one_of_four_with(&journal);
    assert_eq!(again.witness().books.channel(channel), Some((70_000, false)));
    for node in [&mut node, &mut again] {
        node.hears_fact(OVER, 1, &end);
        assert_eq!(node.witness().books.channel(channel), Some((70_000, false)));
        let (_, outcome) = node.witness().settled.propose(Epoch(0)).expect("sums that can be stated");
        assert_eq!(
            outcome.books.channel(channel),
            Some((0, true)),
            "what it proposes next others can prepare"
        );
    }
    let mut fresh = Told::one_of_four();
    facts.iter().chain([&end]).for_each(|fact| drop(fresh.hears_fact(OVER, 0, fact)));
    assert_eq!(fresh.witness().books.channel(channel), Some((0, true)));
}

#[test]
fn an_issuer_has_on_disk_what_it_confirms_to_count_and_blames_whoever_shows_it_too_little() {
    let (facts, _) = paid_and_ended();
    let channel = ChannelId::from(facts[1].name());
    let mut node = Told::one_of_four();
    facts.iter().for_each(|fact| drop(node.hears_fact(START, 0, fact)));
    [&PROVIDER, &CONSUMER].iter().for_each(|member| node.greeted_at_four(member, None));
    let acks = by([0, 1, 3], &records::RedeemAck { channel, amount: 70_000, closed: false, epoch: Epoch(0) });

    let mut shows = |who: &Somebody, acks: &[Verified<records::RedeemAck>]| {
        let out = node.hears(START, who, Message::Confirm(acks.to_vec()));
        (out, node.witness().books.uncounted(PROVIDER.account()))
    };
    let blamed = |who: &Somebody, offence| vec![Effect::Penalise(who.id(), offence)];
    let uncounted = 7 * 9_200;
    assert_eq!(shows(&PROVIDER, &[]), (blamed(&PROVIDER, Offence::BadLedger), uncounted));
    assert_eq!(shows(&PROVIDER, &acks[..2]), (blamed(&PROVIDER, Offence::BadLedger), uncounted));
    assert_eq!(shows(&CONSUMER, &acks), (blamed(&CONSUMER, Offence::WrongSigner), uncounted));

    let line = Effect::Record(Record::Counted { channel, amount: 70_000 });
    let confirms = Effect::Send(PROVIDER.id(), Message::Confirmed { channel, amount: 70_000 });
    assert_eq!(shows(&PROVIDER, &acks), (vec![line, confirms.clone()], 0));
    assert_eq!(shows(&PROVIDER, &acks), (vec![confirms], 0), "it is on disk");
}

#[test]
fn one_issuers_word_makes_no_slot_stuck() {
    let (one, other) = (step(0, 5_000), step(0, 6_000));
    let mut node = Told::one_of_four();
    node.hears_fact(START, 0, &deposit(1, 0));
    let [first, second] = if one.id() < other.id() { [&one, &other] } else { [&other, &one] };
    let both = Fact::Doubled(first.clone(), second.clone());

    let out = node.hears_fact(START, 0, &both);
    assert!(!out.iter().any(|effect| matches!(effect, Effect::Record(_) | Effect::Spread(_))));
    let (names, _) = node.witness().settled.propose(Epoch(0)).expect("sums that can be stated");
    assert_eq!(names, [deposit(1, 0).name()], "what it proposes frees no slot");

    // Our own lock and another one's word do, when both have lasted.
    let issuing = node.node.issuing.as_mut().expect("an issuer");
    issuing.vote(&one, None, Epoch(0)).expect("within the rules");
    node.hears(START, &on(0), Message::Agreeing(Agreeing::Locked(other)));
    for seconds in 1..6 {
        node.told(START.plus_ms(seconds * 6_000), Input::Wake);
    }
    assert_eq!(node.witness().settled.stuck(one.account), Some(0));
}

#[test]
fn an_issuer_that_has_not_followed_a_checkpoint_does_not_refuse_a_step_that_it_cannot_place() {
    let owners_node = Somebody(119, 160);
    let mut node = Told::one_of_four();
    node.hears_fact(START, 0, &deposit(1, 0));
    node.greeted_at_four(&owners_node, None);
    let after = |previous: u8| {
        let op = AccountOp { previous: RecordId([previous; 32]), ..AccountOp::clone(&step(0, 5_000)) };
        sign(op, four().domain(), Role::Owner, &owner(0))
    };
    let answer = |node: &mut Told, op: &Verified<AccountOp>| {
        let out = node.hears(OVER, &owners_node, Message::Step { op: op.clone(), terms: None });
        let error = out.into_iter().find_map(|effect| match effect {
            Effect::Send(_, Message::StepRefused { error, .. }) => Some(error),
            _ => None,
        });
        error.expect("no vote")
    };
    assert_eq!(answer(&mut node, &after(1)), IssuerError::WrongSequence { next: 0 });
    // Though its vote has locked the slot, in which a checkpoint leaves another head.
    let issuing = node.node.issuing.as_mut().expect("an issuer");
    issuing.vote(&step(0, 5_000), None, Epoch(0)).expect("within the rules");
    let freed = freed_head(RecordId::NONE, Epoch(0));
    let behind = AccountOp { previous: freed, ..AccountOp::clone(&step(0, 6_000)) };
    let behind = sign(behind, four().domain(), Role::Owner, &owner(0));
    assert_eq!(answer(&mut node, &behind), IssuerError::Behind);
    assert_eq!(answer(&mut node, &step(0, 6_000)), IssuerError::SlotLocked);
    // And though it has recorded what the checkpoint drops.
    node.hears_fact(START, 0, &Fact::Step(certified(&step(0, 5_000), [0, 1, 3])));
    assert_eq!(answer(&mut node, &behind), IssuerError::Behind);

    let mut other = Witness::new(four(), key(0));
    let Fact::Deposit(credits) = deposit(1, 0) else { unreachable!("it is one") };
    other.enter(&credits).expect("agreed");
    other.certify(&certified(&step(0, 5_000), [0, 1, 3]), Epoch(0)).expect("voted for");
    let (_, outcome) = other.settled.propose(Epoch(0)).expect("sums that can be stated");
    let checkpoint = BooksMessage::Checkpoint(agreed(&outcome.checkpoint));
    node.told(OVER, Input::Spread(checkpoint));
    assert_eq!(answer(&mut node, &after(2)), IssuerError::Behind);
}

#[test]
fn a_fact_that_came_and_that_no_list_holds_is_not_asked_for_again() {
    let (one, other) = (step(0, 5_000), step(0, 6_000));
    let both = Fact::Doubled(one.clone(), other.clone());
    let mut node = Told::one_of_four();
    let listed =
        |node: &mut Told| node.hears(START, &on(0), Message::Facts { first: 0, names: vec![both.name()] });
    let first = asked(&listed(&mut node), 0);
    assert_eq!((first, asked(&listed(&mut node), 0)), (vec![], vec![both.name()]));

    node.hears_fact(START, 0, &both);
    for _ in 0..3 {
        assert_eq!(asked(&listed(&mut node), 0), []);
    }
    let out = node.hears(START, &on(0), Message::Facts { first: 1, names: vec![one.id()] });
    assert_eq!(asked(&out, 0), [], "it may come by itself");
    let out = node.hears(START, &on(0), Message::Facts { first: 1, names: vec![one.id()] });
    assert_eq!(asked(&out, 0), [one.id()], "what follows is asked for");
}

#[test]
fn an_issuer_that_was_away_for_long_asks_for_no_more_than_its_peers_may_send() {
    let facts: Vec<Fact<Checked>> = (0..1_500).map(|number| deposit(number, 0)).collect();
    let fact = |name: &RecordId| facts.iter().find(|fact| fact.name() == *name).expect("proposed");
    let mut node = Told::one_of_four();
    let mut wanted = asked(&node.is_shown(&facts), 0);
    let fetches = |node: &mut Told, now: Time, wanted: &mut Vec<RecordId>| {
        let (mut count, mut out) = (0, Vec::new());
        while !wanted.is_empty() {
            count += wanted.len();
            out = wanted.iter().flat_map(|name| node.hears_fact(now, 0, fact(name))).collect();
            *wanted = asked(&out, 0);
        }
        (count, has_voted(&out))
    };

    let (count, has_voted) = fetches(&mut node, OVER, &mut wanted);
    assert!((1_000..1_000 + WANTED_MAX).contains(&count) && !has_voted, "{count} in one second");
    let later = OVER.plus_ms(1_500);
    wanted = asked(&node.told(later, Input::Wake), 0);
    let (rest, has_voted) = fetches(&mut node, later, &mut wanted);
    assert_eq!((count + rest, has_voted), (facts.len(), true));
}

#[test]
fn a_step_without_room_may_be_asked_for_again_when_no_copy_is_under_way_and_others_may_not() {
    let mut peer = Peer::default();
    let op = RecordId([1; 32]);
    let stands = |peer: &Peer, seconds: u64| peer.refused(op, START.plus_ms(seconds * 1_000)).is_some();
    peer.refuse(op, IssuerError::TooManySteps { made: 9 }, START);
    assert_eq!([0, 59, 60].map(|seconds| stands(&peer, seconds)), [true, true, false]);
    peer.refuse(op, IssuerError::SlotLocked, START);
    assert_eq!([0, 60, 6_000].map(|seconds| stands(&peer, seconds)), [true; 3]);
    assert_eq!(peer.refused(RecordId([2; 32]), START), None);
}

/// Returns the first step of an account, which withdraws.
fn withdrawal(tag: u8) -> Verified<AccountOp> {
    let body = OpBody::Withdraw { amount: 1_000_000, payout: Digest::ZERO };
    let op = AccountOp { body, ..AccountOp::clone(&step(tag, 1)) };
    sign(op, four().domain(), Role::Owner, &owner(tag))
}

#[test]
fn an_issuer_that_has_no_room_for_a_withdrawal_votes_for_none_and_blames_nobody() {
    let owners_node = Somebody(119, 160);
    let op = withdrawal(0);
    let mut node = Told::one_of_four();
    (1..4).for_each(|number| drop(node.hears_fact(START, 0, &deposit(number, 0))));
    node.greeted_at_four(&owners_node, None);
    let waits = Withdrawal {
        account: op.account,
        amount: 1_000_000,
        payout: Digest::ZERO,
        epoch: Epoch(0),
        paid: None,
        is_settled: true,
    };
    let number = |number: usize| RecordId(*blake3::hash(&number.to_be_bytes()).as_bytes());
    let books = |node: &mut Told, act: &dyn Fn(&mut crate::ledger::issuer::Issuer)| {
        act(&mut node.node.issuing.as_mut().expect("an issuer").witness.books);
    };
    books(&mut node, &|books| {
        let all = (0..WITHDRAWALS_MAX).map(|place| Entry::Withdrawal(number(place), waits));
        all.for_each(|entry| books.restore(&entry).expect("no keys in it"));
    });

    let out = node.hears(START, &owners_node, Message::Step { op: op.clone(), terms: None });
    let error = out.iter().find_map(|effect| match effect {
        Effect::Send(_, Message::StepRefused { error, .. }) => Some(*error),
        _ => None,
    });
    assert_eq!(error, Some(IssuerError::Full));

    // Others had room. It is brought by one of them, and by its owner.
    let fact = Fact::Step(certified(&op, [0, 1, 3]));
    let mut out = node.hears_fact(START, 0, &fact);
    out.extend(node.hears(START, &owners_node, Message::Fact(fact.clone())));
    let is_blame = |effect: &Effect| matches!(effect, Effect::Penalise(..) | Effect::Record(_));
    assert!(!out.iter().any(is_blame), "{out:?}");
    books(&mut node, &|books| books.mark_paid(number(7), Digest::ZERO).expect("there"));
    let out = node.hears_fact(START, 0, &fact);
    assert!(out.iter().any(|effect| matches!(effect, Effect::Record(Record::Certified { .. }))));
}

/// Returns the issuer that is asked for names or facts, and the question.
fn question(out: &[Effect]) -> Option<(u8, Message<Wire>)> {
    let question = |effect: &Effect| match effect {
        Effect::Send(
            to,
            message @ (Message::FactQuery(_) | Message::Agreeing(Agreeing::NamesQuery { .. })),
        ) => Some(((0..4).find(|place| on(*place).id() == *to)?, message.clone())),
        _ => None,
    };
    out.iter().find_map(question)
}

impl Told {
    /// A checkpoint stands, and the others answer what is asked about it for some seconds; the first one that is asked for
    /// the name of `shown` answers with that, always.
    fn is_led(&mut self, mut now: Time, proposer: &Witness, epoch: Epoch, shown: &Fact<Checked>) {
        let (names, outcome) = proposer.settled.propose(epoch).expect("sums that can be stated");
        let checkpoint = BooksMessage::Checkpoint(agreed(&outcome.checkpoint));
        let mut out = self.told(now, Input::Wake);
        out.extend(self.told(now, Input::Spread(checkpoint)));
        let mut liar = None;
        for _ in 0..40 {
            out = match question(&out) {
                Some((place, Message::FactQuery(wanted))) => {
                    let answer = |name: &RecordId| {
                        let lies = *name == shown.name() && *liar.get_or_insert(place) == place;
                        let fact = if lies { Some(shown) } else { proposer.fact(name) };
                        self.hears_fact(now, place, fact.expect("its own proposal"))
                    };
                    wanted.iter().flat_map(answer).collect()
                }
                Some((place, Message::Agreeing(Agreeing::NamesQuery { facts, from }))) => {
                    let names = Agreeing::Names { facts, from, names: names.clone() };
                    self.hears(now, &on(place), Message::Agreeing(names))
                }
                _ => {
                    now = now.plus_ms(600);
                    self.told(now, Input::Wake)
                }
            };
        }
        assert!(liar.is_some(), "somebody was asked");
    }
}

/// Whoever has the other copies cannot tell: their name is the same, and so are the votes.
#[test]
fn an_issuer_that_was_shown_a_step_signed_with_another_key_follows_with_what_others_show_it() {
    let good = step(0, 5_000);
    let forged = sign(AccountOp::clone(&good), four().domain(), Role::Owner, &owner(1));
    let forged = Certificate { op: forged, ..certified(&good, [0, 1, 3]) };
    let mut proposer = Witness::new(four(), key(0));
    let Fact::Deposit(credits) = deposit(1, 0) else { unreachable!("it is one") };
    proposer.enter(&credits).expect("agreed");
    proposer.certify(&certified(&good, [0, 1, 3]), Epoch(0)).expect("voted for");

    let mut node = Told::one_of_four();
    node.is_led(OVER, &proposer, Epoch(0), &Fact::Step(forged));
    assert_eq!(node.witness().settled.epoch(), Some(Epoch(0)));
    assert_eq!(node.witness().books.next_slot(good.account), (1, good.id()));
}

/// Returns the end of a channel as three of four issuers promised.
fn end_at(channel: ChannelId, amount: u64) -> EndCertificate<Checked> {
    let end = records::CloseVote { channel, amount, epoch: Epoch(0) };
    EndCertificate { votes: by([0, 1, 3], &end).into() }
}

#[test]
fn an_issuer_that_was_shown_a_void_end_follows_a_checkpoint_that_states_the_other_one() {
    let (facts, _) = paid_and_ended();
    let channel = ChannelId::from(facts[1].name());
    let mut proposer = Witness::new(four(), key(0));
    let mut node = Told::one_of_four();
    for fact in &facts {
        node.hears_fact(START, 0, fact);
        match fact {
            Fact::Deposit(deposit) => drop(proposer.enter(deposit).expect("agreed")),
            Fact::Step(certificate) => drop(proposer.certify(certificate, Epoch(0)).expect("voted for")),
            Fact::Redeemed { receipt, claim } => {
                drop(proposer.redeem(receipt, claim.as_ref()).expect("signed by both"));
            }
            _ => unreachable!("none is made"),
        }
    }
    let (names, outcome) = proposer.settled.propose(Epoch(0)).expect("sums that can be stated");
    let stated = agreed(&outcome.checkpoint);
    let page = Agreeing::Names { facts: stated.facts, from: 0, names: names.clone() };
    node.told(OVER, Input::Wake);
    let out = node.told(OVER, Input::Spread(BooksMessage::Checkpoint(stated.clone())));
    let (place, _) = question(&out).expect("it has no names");
    node.hears(OVER, &on(place), Message::Agreeing(page));
    assert_eq!(node.witness().settled.epoch(), Some(Epoch(0)));

    proposer.adopt(stated.id(), &names, outcome);
    proposer.end(&end_at(channel, 70_000)).expect("as stated").expect("news");
    let later = OVER.plus_ms(24 * 60 * 60 * 1000);
    node.is_led(later, &proposer, Epoch(1), &Fact::End(end_at(channel, 0)));
    assert_eq!(node.witness().settled.epoch(), Some(Epoch(1)));
    assert_eq!(node.witness().books.channel(channel), Some((70_000, true)));
}

/// An issuer that had recorded the void end lists the other one where those find it that are past the first.
#[test]
fn a_void_end_is_listed_no_more_and_another_one_is_asked_for() {
    let (facts, end) = paid_and_ended();
    let channel = ChannelId::from(facts[1].name());
    let mut other = Witness::new(four(), key(0));
    let Fact::End(void) = &end else { unreachable!("it is one") };
    let (Fact::Deposit(credits), Fact::Step(opened)) = (&facts[0], &facts[1]) else {
        unreachable!("in this order")
    };
    let mut stating = other.clone();
    for issuer in [&mut other, &mut stating] {
        issuer.enter(credits).expect("agreed");
        issuer.certify(opened, Epoch(0)).expect("voted for");
    }
    other.end(void).expect("as promised").expect("news");
    let Fact::Redeemed { receipt, claim } = &facts[2] else { unreachable!("in this order") };
    stating.redeem(receipt, claim.as_ref()).expect("signed by both");
    let (names, _) = stating.settled.propose(Epoch(0)).expect("sums that can be stated");
    names.iter().for_each(|name| {
        other.settled.learn(Arc::new(stating.fact(name).expect("its own proposal").clone()));
    });
    let outcome = other.settled.outcome(Epoch(0), &names).expect("the same");
    let before = other.facts.since(0).1;
    other.adopt(RecordId([1; 32]), &names, outcome);
    let void_place = before.iter().position(|name| *name == end.name()).expect("listed");
    assert_eq!(other.facts.since(0).1[void_place], RecordId::NONE);
    let ended = end_at(channel, 70_000);
    other.end(&ended).expect("as stated").expect("news");
    assert_eq!(other.facts.since(3), (3, vec![end.name()]));

    let mut node = Told::one_of_four();
    let issuing = node.node.issuing.as_mut().expect("an issuer");
    issuing.enter(credits).expect("agreed");
    issuing.certify(opened, Epoch(0)).expect("voted for");
    issuing.redeem(receipt, claim.as_ref()).expect("signed by both");
    let (names, outcome) = issuing.settled.propose(Epoch(0)).expect("sums that can be stated");
    issuing.adopt(RecordId([1; 32]), &names, outcome);
    node.hears_fact(OVER, 1, &end);
    let listed = |node: &mut Told| {
        let (first, names) = other.facts.since(2);
        node.hears(OVER, &on(0), Message::Facts { first, names })
    };
    assert_eq!((asked(&listed(&mut node), 0), asked(&listed(&mut node), 0)), (vec![], vec![end.name()]));
    node.hears_fact(OVER, 0, &Fact::End(ended));
    assert_eq!(node.witness().books.channel(channel), Some((70_000, true)));
    assert_eq!(asked(&listed(&mut node), 0), []);
}
