//! Peers that do not keep the rules: refused, counted, shut out in the end, while the node goes on serving others.

use std::time::Duration;

use node::api::views::JobBody;
use node::clock::Clock;
use node::exit::FailureKind;
use node::net::{Limits, MESSAGE_MAX, Mdns, Multiaddr, Net, NetConfig, NetEvent, PeerKey, Repeat};
use protocol::advert::{Advert, Incentive, ProviderClass};
use protocol::ids::{AccountId, ChannelId, Digest, DomainId, JobId, ModelId, NodeId};
use protocol::job::{Constraints, Input, JobSpec, Sampling, Trace};
use protocol::keys::Signer;
use protocol::ledger::records::{Device, Epoch, Final, Membership, Receipt, RedeemAck, Rights};
use protocol::message::{Message, Wire};
use protocol::model::Modality;
use protocol::price::Usage;
use protocol::signed::{Role, Signed, sign};
use protocol::ticket::Ticket;
use protocol::time::Time;
use tests::{Ground, PATIENCE, Peer, Trio, job, until};

use crate::SHAREMESH;

/// How often a peer may offend before it is shut out.
const OFFENCES_MAX: usize = 5;

#[tokio::test]
async fn a_peer_that_sends_garbage_is_counted_and_shut_out() {
    let (_ground, trio) = mesh().await;
    let attacker = Attacker::admitted(&trio, 1).await;
    let garbage = vec![vec![], vec![0xff; 100], b"GET / HTTP/1.1".to_vec(), vec![7; MESSAGE_MAX]];
    let endless = garbage.into_iter().cycle().take(OFFENCES_MAX).collect();

    check(&trio, attacker, endless, "undecodable_message").await;
}

#[tokio::test]
async fn a_peer_whose_signatures_do_not_hold_is_counted_and_shut_out() {
    let (_ground, trio) = mesh().await;
    let attacker = Attacker::admitted(&trio, 2).await;
    let forged = |number: usize| {
        let mut bytes = attacker.pay(attacker.domain).to_bytes();
        // The signature is before the last few bytes, which count the allowances.
        let place = bytes.len() - 8 - number;
        bytes[place] ^= 1;
        bytes
    };
    let forged = (0..OFFENCES_MAX).map(forged).collect();

    check(&trio, attacker, forged, "bad_signature").await;
}

#[tokio::test]
async fn a_peer_that_replays_records_of_another_network_is_counted_and_shut_out() {
    let (_ground, trio) = mesh().await;
    let attacker = Attacker::admitted(&trio, 3).await;
    let elsewhere = DomainId([9; 32]);
    let replayed = (0..OFFENCES_MAX).map(|_| attacker.pay(elsewhere).to_bytes()).collect();

    check(&trio, attacker, replayed, "bad_signature").await;
}

#[tokio::test]
async fn a_peer_that_says_adverts_which_no_honest_node_says_is_counted_and_shut_out() {
    let (_ground, trio) = mesh().await;
    let attacker = Attacker::admitted(&trio, 7).await;
    let (myself, now) = (attacker.node.public().into(), Clock::start(0).now_ms());
    let provider = NodeId(attacker.victim.0);

    // A sound one, then: the same, one that is over, another that is, one in somebody else's name, one without end.
    let adverts = [
        attacker.advert(myself, now, now + 90_000),
        attacker.advert(myself, now, now + 90_000),
        attacker.advert(myself, now - 3_600_000, now - 3_510_000),
        attacker.advert(myself, now + 1, 1),
        attacker.advert(provider, now + 2, now + 90_000),
        attacker.advert(myself, now + 3, u64::MAX),
    ];
    assert_eq!(adverts.len(), 1 + OFFENCES_MAX);
    let adverts = adverts.map(|advert| Message::<Wire>::Advert(advert).to_bytes()).into();

    check(&trio, attacker, adverts, "bad_advert").await;
}

#[tokio::test]
async fn a_peer_that_spreads_by_gossip_what_no_honest_node_passes_on_is_counted() {
    let (_ground, trio) = mesh().await;
    let model = ModelId([9; 32]);
    // Now the consumer listens to whoever says that it serves the model.
    let unserved = JobBody { model: model.to_string(), ..job("hello", 8) };
    assert_eq!(trio.consumer.ask(&unserved).await.kind(), Some(FailureKind::NoProvider));
    let mut attacker = Attacker::admitted(&trio, 8).await;
    attacker.dial(&trio.consumer).await;

    let (myself, mut now) = (attacker.node.public().into(), Clock::start(0).now_ms());
    until("the consumer counts it", async || {
        now += 1;
        let lasting = Message::<Wire>::Advert(attacker.advert(myself, now, u64::MAX));
        attacker.net.publish(&format!("model/{model}"), lasting.to_bytes());
        let _ = tokio::time::timeout(Duration::from_millis(50), attacker.net.next()).await;
        let offences = trio.consumer.status().await.offences;
        if offences.iter().any(|(name, _)| name == "bad_advert") {
            Ok(())
        } else {
            Err(format!("{offences:?}"))
        }
    })
    .await;

    trio.consumer.must_ask(&job("hello", 24)).await;
    trio.check_books().await;
}

#[tokio::test]
async fn a_peer_whose_prompt_is_not_the_announced_one_is_counted_and_shut_out() {
    let (_ground, trio) = mesh().await;
    let mut attacker = Attacker::admitted(&trio, 4).await;
    let spec = JobSpec {
        model: ModelId([1; 32]),
        input: Input { digest: Digest::of(b"this"), bytes: 4, modality: Modality::Text },
        sampling: Sampling {
            temperature_milli: 1000,
            top_p_milli: 1000,
            top_k: 0,
            repetition_penalty_milli: 1000,
            seed: 1,
        },
        max_tokens: 10,
        constraints: Constraints::default(),
        markup: None,
        trace: Trace::default(),
    };
    for number in 0..OFFENCES_MAX {
        let job = JobId([u8::try_from(number).unwrap(); 16]);
        let submit = Message::<Wire>::Submit { job, spec: spec.clone(), channel: None, opening: None };
        attacker.send_with(submit.to_bytes(), b"that".to_vec());
    }

    check(&trio, attacker, Vec::new(), "wrong_body").await;
}

#[tokio::test]
async fn what_a_peer_has_no_right_to_changes_nothing() {
    let (_ground, trio) = mesh().await;
    let (_, account) = trio.consumer.must_ask(&job("before", 24)).await;
    let receipt = account.receipt.unwrap();
    for peer in [&trio.provider, &trio.consumer] {
        peer.receipt_once_signed(&receipt).await;
    }
    let before = (trio.provider.receipts().await, trio.consumer.receipts().await);
    let foreign: ChannelId = before.0[0].channel.parse().unwrap();
    let mut attacker = Attacker::admitted(&trio, 5).await;
    let domain = attacker.domain;

    // In order: a payment and an end on somebody else's channel, an advert in somebody else's name, one that is over, an
    // issuer's word by nobody, a cancellation of somebody else's job, membership by oneself.
    let ended = Final { channel: foreign, amount: 0, receipt: None };
    let ack = RedeemAck { channel: foreign, amount: u64::MAX, closed: true, epoch: Epoch(0) };
    let provider = NodeId(attacker.victim.0);
    let myself = attacker.node.public().into();
    let job: JobId = account.job.parse().unwrap();
    let messages = vec![
        Message::Pay { receipt: attacker.receipt(foreign, domain), allowances: vec![(job, u32::MAX)] },
        Message::Close { closing: sign(ended, domain, Role::Payer, &attacker.node).signed(), opening: None },
        Message::Advert(attacker.advert(provider, u64::MAX, u64::MAX)),
        Message::Advert(attacker.advert(myself, u64::MAX, 1)),
        Message::Redeemed(sign(ack, domain, Role::Issuer, &attacker.node).signed()),
        Message::Cancel { job },
        Message::AdvertQuery,
    ];
    for message in messages {
        attacker.send(Message::<Wire>::to_bytes(&message));
    }
    // The answer to the last one says that all were read.
    attacker.until_advert().await;

    assert_eq!((trio.provider.receipts().await, trio.consumer.receipts().await), before);
    let offences = trio.provider.status().await.offences;
    assert!(offences.iter().any(|(name, _)| name == "wrong_signer"), "{offences:?}");
    trio.consumer.must_ask(&JobBody { seed: Some(8), ..self::job("after", 24) }).await;
    trio.check_books().await;
}

#[tokio::test]
async fn a_peer_that_never_greets_is_served_nothing() {
    let (_ground, trio) = mesh().await;
    let domain = Ticket::from_text(&trio.issuer.ticket(0).await).unwrap().1.domain();
    let mut stranger = Attacker::connected(&trio, 6, domain).await;
    for _ in 0..100 {
        stranger.send(Message::<Wire>::AdvertQuery.to_bytes());
    }

    trio.consumer.must_ask(&job("hello", 24)).await;
    trio.check_books().await;
}

async fn mesh() -> (Ground, Trio) {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    (ground, trio)
}

/// Sends messages to the provider and checks that it counts them by this name, shuts their sender out and serves on.
async fn check(trio: &Trio, mut attacker: Attacker, messages: Vec<Vec<u8>>, offence: &str) {
    for message in messages {
        attacker.send(message);
    }
    attacker.until_shut_out().await;

    let offences = trio.provider.status().await.offences;
    let counted = offences.iter().find(|(name, _)| name == offence).map_or(0, |(_, count)| *count);
    assert!(counted >= OFFENCES_MAX as u64, "{offences:?}");
    let me = attacker.node.public();
    let peers: Vec<node::api::views::PeerView> = trio.provider.client().get("peers").await.unwrap();
    assert!(peers.iter().all(|peer| peer.node != NodeId::from(me).to_string()), "{peers:?}");
    trio.consumer.must_ask(&job("hello", 24)).await;
    trio.check_books().await;
}

/// A peer that speaks the protocol's language and minds none of its rules.
struct Attacker {
    net: Net,
    node: Signer,
    domain: DomainId,
    victim: PeerKey,
    tag: u64,
}

impl Attacker {
    /// Connects to the provider as a member of the network.
    async fn admitted(trio: &Trio, seed: u8) -> Self {
        let (ticket, manifest) = Ticket::from_text(&trio.issuer.ticket(0).await).unwrap();
        let domain = manifest.domain();
        let mut attacker = Self::connected(trio, seed, domain).await;
        let issuer = attacker.dial(&trio.issuer).await;
        attacker.tell(issuer, &attacker.hello(None));
        attacker.tell(issuer, &Message::Join { secret: ticket.secret });
        let membership = attacker.until_joined().await;
        attacker.send(attacker.hello(Some(membership)).to_bytes());
        attacker.send(Message::<Wire>::AdvertQuery.to_bytes());
        attacker.until_advert().await;
        attacker
    }

    /// Connects to the provider and says nothing.
    async fn connected(trio: &Trio, seed: u8, domain: DomainId) -> Self {
        let config = NetConfig {
            secret: [seed; 32],
            domain: domain.0,
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
            announce: Vec::new(),
            mdns: Mdns::Off,
            relay_server: false,
            upnp: false,
            agent: "attacker".to_owned(),
            limits: Limits::STANDARD,
        };
        let (net, node) = (Net::new(config).unwrap(), Signer::from_seed([seed; 32]));
        let mut attacker = Self { net, node, domain, victim: PeerKey([0; 32]), tag: 0 };
        attacker.victim = attacker.dial(&trio.provider).await;
        attacker
    }

    async fn dial(&mut self, peer: &Peer) -> PeerKey {
        let status = peer.status().await;
        let key = PeerKey(status.node.parse::<NodeId>().unwrap().0);
        let addresses: Vec<Multiaddr> = status.addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.net.dial(key, addresses);
        self.until("connected", |event| matches!(event, NetEvent::PeerUp(peer) if *peer == key)).await;
        key
    }

    fn hello(&self, membership: Option<Signed<Membership>>) -> Message<Wire> {
        let account = AccountId::from(self.node.public());
        let rights = Rights { serve: true, spend: true };
        let node = self.node.public().into();
        let device = Device { account, node, rights, version: 1, expires: Epoch(u32::MAX) };
        let device = sign(device, self.domain, Role::Owner, &self.node).signed();
        Message::Hello { device, lineage: None, membership, advert: None, asks: false }
    }

    fn receipt(&self, channel: ChannelId, domain: DomainId) -> Signed<Receipt> {
        let (usage, jobs) = (Usage::default(), Digest::ZERO);
        let receipt = Receipt { channel, sequence: 9, amount: 1, usage, jobs, epoch: Epoch(0) };
        sign(receipt, domain, Role::Payer, &self.node).signed()
    }

    fn pay(&self, domain: DomainId) -> Message<Wire> {
        Message::Pay { receipt: self.receipt(ChannelId([1; 32]), domain), allowances: Vec::new() }
    }

    /// Returns an advert in the name of `node`.
    fn advert(&self, node: NodeId, sequence: u64, valid_to: u64) -> Signed<Advert> {
        let advert = Advert {
            node,
            name: "attacker".to_owned(),
            account: AccountId::from(self.node.public()),
            sequence,
            class: ProviderClass::Community,
            region: String::new(),
            devices: Vec::new(),
            models: Vec::new(),
            incentive: Incentive::Exchange,
            version: String::new(),
            valid_to: Time(valid_to),
        };
        sign(advert, self.domain, Role::Node, &self.node).signed()
    }

    fn send(&mut self, message: Vec<u8>) {
        self.send_with(message, Vec::new());
    }

    fn send_with(&mut self, message: Vec<u8>, body: Vec<u8>) {
        self.tag += 1;
        self.net.send(self.victim, self.tag, message, body.into(), Repeat::Yes);
    }

    fn tell(&mut self, to: PeerKey, message: &Message<Wire>) {
        self.tag += 1;
        self.net.send(to, self.tag, message.to_bytes(), Vec::new().into(), Repeat::Yes);
    }

    async fn until_joined(&mut self) -> Signed<Membership> {
        let mut found = None;
        self.until("admitted", |event| {
            if let Some(Message::Joined { membership, .. }) = message_in(event) {
                found = Some(membership);
            }
            matches!(message_in(event), Some(Message::Joined { .. }))
        })
        .await;
        found.unwrap()
    }

    /// Waits until the provider has said what it serves.
    async fn until_advert(&mut self) {
        let victim = self.victim;
        self.until("answered", |event| {
            matches!(event, NetEvent::Received { from, .. } if *from == victim)
                && matches!(message_in(event), Some(Message::Advert(_)))
        })
        .await;
    }

    async fn until_shut_out(&mut self) {
        let victim = self.victim;
        self.until("shut out", |event| matches!(event, NetEvent::PeerDown(peer) if *peer == victim)).await;
    }

    async fn until(&mut self, what: &str, mut seen: impl FnMut(&NetEvent) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async { while !seen(&self.net.next().await) {} });
        waited.await.unwrap_or_else(|_| panic!("the attacker waited too long to be {what}"));
    }
}

fn message_in(event: &NetEvent) -> Option<Message<Wire>> {
    let NetEvent::Received { message, .. } = event else { return None };
    protocol::encoding::decode(message, MESSAGE_MAX).ok()
}
