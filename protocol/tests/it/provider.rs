//! A provider alone against a payer who lies: what it must not serve.

use std::collections::BTreeMap;

use protocol::advert::{Device as Hardware, Incentive, ModelOffer, ProviderClass};
use protocol::ids::{ChannelId, DomainId, JobId, NodeId};
use protocol::job::{Constraints, Input as Prompt, JobSpec, Sampling, Trace};
use protocol::keys::{Scheme, Signer};
use protocol::ledger::records::{
    AccountOp, Device, Epoch, Final, Membership, OpBody, OpenChannel, Receipt, Recorded, RedeemAck, Rights,
    Terms,
};
use protocol::licence::open_licence;
use protocol::message::{Message, Opening, Wire};
use protocol::model::Modality;
use protocol::node::{Config, Effect, EngineEvent, Input, Node};
use protocol::record::Record;
use protocol::scheduler::Refusal;
use protocol::signed::{Role, Signed, Verified, sign};
use protocol::time::Time;

use crate::common::{MODEL, PRICE, digest, domain, manifest, payer_signer, signer};

pub(crate) const NOW: Time = Time(1_000);

/// After the last epoch of every channel here.
const LATE: Time = Time(30 * 24 * 60 * 60 * 1_000);

pub(crate) const ISSUER: u8 = 200;

pub(crate) const PROVIDER: u8 = 2;

pub(crate) const PAYER: u8 = 1;

pub(crate) fn id(tag: u8) -> NodeId {
    signer(tag).public().into()
}

pub(crate) fn receive(node: &mut Node, from: u8, message: &Message<Wire>) -> Vec<Effect> {
    let checked = Message::check(&message.to_bytes(), domain(), Scheme::Simulated).expect("well formed");
    handle(node, Input::Received(id(from), checked))
}

pub(crate) fn handle(node: &mut Node, input: Input) -> Vec<Effect> {
    handle_at(NOW, node, input)
}

fn handle_at(now: Time, node: &mut Node, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    node.handle(now, input, &mut effects);
    effects
}

pub(crate) fn offer(domain: DomainId) -> ModelOffer {
    ModelOffer {
        model: MODEL,
        name: "m".to_owned(),
        modality: Modality::Text,
        licence: open_licence(MODEL, domain),
        price: PRICE,
        context_tokens: 8_192,
        slots: 4,
        busy: 0,
        decode_milli: 50_000,
        prefill_milli: 50_000,
        quantisation: "none".to_owned(),
        weights: digest(0),
    }
}

pub(crate) fn membership(tag: u8) -> Signed<Membership> {
    let account = signer(tag + 50).public().into();
    sign(Membership { node: id(tag), account, epoch: Epoch(0) }, domain(), Role::Issuer, &signer(ISSUER))
        .signed()
}

/// Returns a provider that is a member, serves the model and knows the payer.
fn provider() -> Node {
    provider_after(&[])
}

/// Returns it started again from a journal with these lines more.
pub(crate) fn provider_after(lines: &[Record]) -> Node {
    let config = Config {
        manifest: manifest(),
        node: signer(PROVIDER),
        owner: signer(PROVIDER + 50).into(),
        issuer: None,
        incentive: Incentive::Rewards,
        class: ProviderClass::Community,
        region: String::new(),
        version: String::new(),
        name: String::new(),
        builders: BTreeMap::new(),
    };
    let joined = Record::Joined { membership: membership(PROVIDER), deposit: None };
    let journal = [&[joined], lines].concat();
    let mut node = Node::new(config, 1, &journal, NOW).expect("a whole journal");
    let device =
        Hardware { kind: "cpu".to_owned(), name: String::new(), memory_bytes: 1, backend: String::new() };
    handle(&mut node, Input::Engine(EngineEvent::Ready { offer: offer(domain()), device }));
    greet(&mut node, PAYER);
    node
}

/// Lets a member greet a node.
pub(crate) fn greet(node: &mut Node, from: u8) {
    handle(node, Input::PeerUp(id(from)));
    let delegation = Device {
        account: signer(from + 50).public().into(),
        node: id(from),
        rights: Rights { serve: true, spend: true },
        version: 1,
        expires: Epoch(7),
    };
    let hello = Message::Hello {
        device: sign(delegation, domain(), Role::Owner, &signer(from + 50)).signed(),
        lineage: None,
        membership: Some(membership(from)),
        advert: None,
        asks: false,
    };
    receive(node, from, &hello);
}

/// Asks for terms, as an honest payer would.
pub(crate) fn terms(node: &mut Node) -> Signed<Terms> {
    let account = signer(PAYER + 50).public().into();
    let effects = receive(node, PAYER, &Message::Ask { job: job(0), model: MODEL, account, markup: None });
    let offer = effects.into_iter().find_map(|effect| match effect {
        Effect::Send(_, Message::Offer { terms, .. }) => Some(terms),
        _ => None,
    });
    offer.expect("an offer")
}

fn job(tag: u8) -> JobId {
    JobId([tag; 16])
}

pub(crate) fn opening(terms: Signed<Terms>, recorded_by: &[Signer]) -> (ChannelId, Opening<Wire>) {
    let read: Verified<Terms> = terms.clone().verify(domain(), Scheme::Simulated).expect("the provider's");
    let open = OpenChannel {
        payee: id(PROVIDER),
        terms: read.id(),
        cap: 1_000_000_000,
        expires: Epoch(7),
        payer: id(PAYER),
        payer_key: payer_signer(PAYER).public(),
    };
    let op = AccountOp {
        account: signer(PAYER + 50).public().into(),
        sequence: 0,
        previous: protocol::ids::RecordId::NONE,
        epoch: Epoch(0),
        body: OpBody::OpenChannel(open),
    };
    let op = sign(op, domain(), Role::Owner, &signer(PAYER + 50));
    let recorded = recorded_by
        .iter()
        .map(|key| sign(Recorded { op: op.id(), epoch: Epoch(0) }, domain(), Role::Issuer, key).signed())
        .collect();
    (op.id().into(), Opening { op: op.signed(), terms, recorded })
}

pub(crate) fn spec() -> JobSpec {
    JobSpec {
        model: MODEL,
        input: Prompt { digest: digest(1), bytes: 100, modality: Modality::Text },
        sampling: Sampling {
            temperature_milli: 0,
            top_p_milli: 1_000,
            top_k: 0,
            repetition_penalty_milli: 1_000,
            seed: 0,
        },
        max_tokens: 100,
        constraints: Constraints::default(),
        markup: None,
        trace: Trace::default(),
    }
}

pub(crate) fn submit(
    node: &mut Node,
    tag: u8,
    channel: ChannelId,
    opening: Option<Opening<Wire>>,
) -> Vec<Effect> {
    receive(node, PAYER, &Message::Submit { job: job(tag), spec: spec(), channel: Some(channel), opening })
}

pub(crate) fn runs(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Run { .. }))
}

pub(crate) fn refuses(effects: &[Effect]) -> bool {
    let refused = |effect: &Effect| {
        matches!(effect, Effect::Send(_, Message::Refused { refusal: Refusal::BadChannel, .. }))
    };
    effects.iter().any(refused)
}

#[test]
fn a_channel_that_the_issuer_recorded_is_served_on_once_it_is_noted() {
    let mut node = provider();
    let terms = terms(&mut node);
    let (channel, opening) = opening(terms, &[signer(ISSUER)]);

    let effects = submit(&mut node, 1, channel, Some(opening));
    let noted = effects.iter().position(|effect| matches!(effect, Effect::Record(_)));
    let run = effects.iter().position(|effect| matches!(effect, Effect::Run { .. }));
    assert!(noted.is_some() && noted < run, "{effects:?}");
}

#[test]
fn a_channel_that_no_issuer_recorded_is_not_served_on() {
    for recorded_by in [vec![], vec![signer(PAYER)], vec![signer(PROVIDER), signer(PAYER)]] {
        let mut node = provider();
        let terms = terms(&mut node);
        let (channel, opening) = opening(terms, &recorded_by);

        let effects = submit(&mut node, 1, channel, Some(opening));
        assert!(refuses(&effects) && !runs(&effects), "{effects:?}");
    }
}

#[test]
fn a_channel_of_somebody_else_is_not_served_on() {
    let mut node = provider();
    let terms = terms(&mut node);
    let (channel, opening) = opening(terms, &[signer(ISSUER)]);
    assert!(runs(&submit(&mut node, 1, channel, Some(opening))));

    let unknown = submit(&mut node, 2, ChannelId([3; 32]), None);
    assert!(refuses(&unknown) && !runs(&unknown), "{unknown:?}");
}

#[test]
fn a_closed_channel_shown_again_is_not_served_on() {
    let mut node = provider();
    let terms = terms(&mut node);
    let (channel, opening) = opening(terms, &[signer(ISSUER)]);
    assert!(runs(&submit(&mut node, 1, channel, Some(opening.clone()))));

    let ack = RedeemAck { channel, amount: 0, closed: true, epoch: Epoch(0) };
    let ack = sign(ack, domain(), Role::Issuer, &signer(ISSUER)).signed();
    greet_issuer(&mut node);
    receive(&mut node, 201, &Message::Redeemed(ack));
    assert!(node.channels().is_empty());

    let effects = submit(&mut node, 2, channel, Some(opening));
    assert!(refuses(&effects) && !runs(&effects), "{effects:?}");
}

/// The payer's first job never came to run, and it ends the channel late.
#[test]
fn an_opening_shown_after_its_last_epoch_is_not_taken_and_not_held_against_its_payer() {
    let mut node = provider();
    let terms = terms(&mut node);
    let (channel, opening) = opening(terms, &[signer(ISSUER)]);
    let closing = Final { channel, amount: 0, receipt: None };
    let closing = sign(closing, domain(), Role::Payer, &payer_signer(PAYER)).signed();
    let message = Message::Close { closing, opening: Some(opening) };
    let message = Message::check(&message.to_bytes(), domain(), Scheme::Simulated).expect("well formed");

    let effects = handle_at(LATE, &mut node, Input::Received(id(PAYER), message));
    assert_eq!(node.channels(), []);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Penalise(..))), "{effects:?}");
}

#[test]
fn a_channel_that_ended_before_a_lost_disk_is_not_served_on_when_the_issuers_have_forgotten_it() {
    // All that the issuers had open when it recovered was opened before, in the same epoch as this one or in an earlier.
    for (since, served) in [(Epoch(1), false), (Epoch(0), true)] {
        let mut node = provider_after(&[Record::Recovering, Record::Recovered(since)]);
        let terms = terms(&mut node);
        let (channel, opening) = opening(terms, &[signer(ISSUER)]);

        let effects = submit(&mut node, 1, channel, Some(opening));
        assert_eq!((runs(&effects), refuses(&effects)), (served, !served), "{effects:?}");
        let penalised = effects.iter().any(|effect| matches!(effect, Effect::Penalise(..)));
        assert!(!penalised, "its payer may have lost as much");
    }
}

pub(crate) fn greet_issuer(node: &mut Node) {
    handle(node, Input::PeerUp(id(201)));
    let delegation = Device {
        account: signer(201).public().into(),
        node: id(201),
        rights: Rights { serve: true, spend: true },
        version: 1,
        expires: Epoch(7),
    };
    let device = sign(delegation, domain(), Role::Owner, &signer(201)).signed();
    receive(
        node,
        201,
        &Message::Hello { device, lineage: None, membership: None, advert: None, asks: false },
    );
}

#[test]
fn a_receipt_of_another_key_or_above_the_cap_grants_nothing() {
    let mut node = provider();
    let terms = terms(&mut node);
    let (channel, opening) = opening(terms, &[signer(ISSUER)]);
    submit(&mut node, 1, channel, Some(opening));
    handle(&mut node, Input::Engine(EngineEvent::Prepared { job: job(1), tokens_in: 10 }));

    for (key, amount) in [(signer(PAYER), 500_000_000), (payer_signer(PAYER), 2_000_000_000)] {
        let receipt = Receipt {
            channel,
            sequence: 1,
            amount,
            usage: protocol::price::Usage::default(),
            jobs: digest(0),
            epoch: Epoch(0),
        };
        let receipt = sign(receipt, domain(), Role::Payer, &key).signed();
        let effects = receive(&mut node, PAYER, &Message::Pay { receipt, allowances: vec![(job(1), 100)] });
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Grant { .. })), "{effects:?}");
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Penalise(..))), "{effects:?}");
    }
}
