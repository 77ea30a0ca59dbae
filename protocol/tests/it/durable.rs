//! What a node has said is what it still knows after a crash: lines are on disk before the word of them leaves.

use std::collections::BTreeMap;

use protocol::advert::Incentive;
use protocol::ids::{ChannelId, Digest};
use protocol::ledger::records::{Claim, Deposit, Epoch, Final, Receipt, Source};
use protocol::message::{Message, Wire};
use protocol::node::{Config, Effect, Node};
use protocol::price::Usage;
use protocol::record::Record;
use protocol::signed::{Role, Signable, Verified, sign};

use crate::common::{account, digest, domain, manifest, payee_signer, payer_signer, signer, terms};
use crate::provider::{
    self, ISSUER, NOW, PAYER, PROVIDER, greet, greet_issuer, opening, provider_after, receive, runs, submit,
};

const ISSUER_NODE: u8 = 201;

/// Returns the lines that are on disk when a message of this name leaves, and the message.
fn on_disk_before(effects: &[Effect], name: &str) -> (Vec<Record>, Message<Wire>) {
    let said = |effect: &Effect| match effect {
        Effect::Send(_, message) if message.name() == name => Some(message.clone()),
        _ => None,
    };
    let leaves = effects.iter().position(|effect| said(effect).is_some()).expect("it answers");
    let lines = effects[..leaves].iter().filter_map(|effect| match effect {
        Effect::Record(line) => Some(line.clone()),
        _ => None,
    });
    (lines.collect(), said(&effects[leaves]).expect("just found"))
}

/// Returns the issuer started from this journal, which payer and payee have greeted.
fn issuer_after(journal: &[Record]) -> Node {
    let config = Config {
        manifest: manifest(),
        node: signer(ISSUER_NODE),
        owner: signer(ISSUER_NODE + 50).into(),
        issuer: Some(signer(ISSUER)),
        incentive: Incentive::Rewards,
        class: protocol::advert::ProviderClass::Community,
        region: String::new(),
        version: String::new(),
        name: String::new(),
        builders: BTreeMap::new(),
    };
    let mut node = Node::new(config, 1, journal, NOW).expect("a whole journal");
    greet(&mut node, PAYER);
    greet(&mut node, PROVIDER);
    node
}

fn funded() -> Vec<Record> {
    let (reference, account) = (digest(1), account(PAYER + 50));
    let deposit =
        Deposit { reference, account, amount: 2_000_000_000, epoch: Epoch(0), source: Source::Outside };
    vec![Record::Deposited(sign(deposit, domain(), Role::Issuer, &signer(ISSUER)).signed())]
}

fn by_both<T: Signable>(value: T) -> Verified<T> {
    let payer = sign(value, domain(), Role::Payer, &payer_signer(PAYER));
    payer.signed_also_by(domain(), Role::Payee, &payee_signer(PROVIDER))
}

fn redemption(channel: ChannelId, amount: u64) -> Message<Wire> {
    let (usage, jobs) = (Usage::default(), Digest::ZERO);
    let receipt = Receipt { channel, sequence: 1, amount, usage, jobs, epoch: Epoch(0) };
    let receipt = by_both(receipt);
    let claim = Claim { channel, receipt: receipt.id(), amount };
    let claim = sign(claim, domain(), Role::Payee, &payee_signer(PROVIDER));
    Message::Redeem { receipt: receipt.signed(), claim: claim.signed() }
}

/// Returns what an issuer that starts from this journal says was paid out, when somebody asks for less.
fn paid_out(journal: &[Record], channel: ChannelId) -> (u64, bool) {
    let effects = receive(&mut issuer_after(journal), PROVIDER, &redemption(channel, 1));
    let (lines, said) = on_disk_before(&effects, "redeemed");
    assert_eq!(lines, [], "repeating changes nothing");
    let Message::Redeemed(ack) = said else { panic!("named so") };
    let (ack, ..) = ack.peek_in(domain()).expect("our own");
    (ack.amount, ack.closed)
}

#[test]
fn an_issuer_still_knows_after_a_crash_what_it_has_answered() {
    let mut journal = funded();
    let (channel, opening) = opening(terms(PROVIDER, PAYER + 50, Incentive::Exchange, 0).signed(), &[]);
    let step = Message::Step { op: opening.op.clone(), terms: Some(opening.terms) };

    let (lines, _) = on_disk_before(&receive(&mut issuer_after(&journal), PAYER, &step), "stepped");
    journal.extend(lines);
    let effects = receive(&mut issuer_after(&journal), PAYER, &Message::AccountQuery);
    let (_, state) = on_disk_before(&effects, "account_state");
    assert!(matches!(state, Message::AccountState { next: 1, head, .. } if ChannelId::from(head) == channel));

    let effects = receive(&mut issuer_after(&journal), PROVIDER, &redemption(channel, 400_000));
    journal.extend(on_disk_before(&effects, "redeemed").0);
    assert_eq!(paid_out(&journal, channel), (400_000, false));

    let closing = by_both(Final { channel, amount: 500_000, receipt: None }).signed();
    let close = Message::Close { closing, opening: None };
    let effects = receive(&mut issuer_after(&journal), PROVIDER, &close);
    journal.extend(on_disk_before(&effects, "redeemed").0);
    assert_eq!(paid_out(&journal, channel), (500_000, true));
}

#[test]
fn a_payee_still_knows_after_a_crash_which_end_it_has_signed() {
    let mut node = provider_after(&[]);
    greet_issuer(&mut node);
    let terms = provider::terms(&mut node);
    let (channel, opening) = opening(terms, &[signer(ISSUER)]);
    let closing = Final { channel, amount: 0, receipt: None };
    let closing = sign(closing, domain(), Role::Payer, &payer_signer(PAYER)).signed();

    let close = Message::Close { closing, opening: Some(opening.clone()) };
    let (lines, _) = on_disk_before(&receive(&mut node, PAYER, &close), "close");
    let serves_after =
        |lines: &[Record]| runs(&submit(&mut provider_after(lines), 1, channel, Some(opening.clone())));
    assert!(!serves_after(&lines));
    let is_end = |line: &Record| matches!(line, Record::Final(_));
    let without: Vec<_> = lines.into_iter().filter(|line| !is_end(line)).collect();
    assert!(serves_after(&without), "without that line it would serve");
}
