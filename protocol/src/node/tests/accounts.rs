//! Whose word counts for an account: rotated keys, delegations by version and rights, session keys.

use super::*;
use crate::ledger::account::{Lineage, promise};
use crate::message::SpendRefusal;

/// Keys of an account with a next key.
fn begins(number: u8) -> Inception {
    Inception { key: signer(number).public(), next: promise(signer(number + 1).public()) }
}

fn lineage(rotations: u8) -> Lineage {
    let mut lineage = Lineage::new(begins(80));
    for number in 1..=rotations {
        let op = AccountOp {
            account: lineage.account(),
            sequence: u64::from(number),
            previous: RecordId::NONE,
            epoch: Epoch(0),
            body: OpBody::Rotate(begins(80 + number)),
        };
        let op = sign(op, manifest().domain(), Role::Owner, &signer(80 + number));
        lineage.rotate(&op).expect("promised");
    }
    lineage
}

fn delegated(node: &Somebody, rights: (bool, bool), version: u32, key: u8) -> Verified<records::Device> {
    let rights = Rights { serve: rights.0, spend: rights.1 };
    let account = begins(80).account();
    let device = records::Device { account, node: node.id(), rights, version, expires: Epoch(5) };
    sign(device, manifest().domain(), Role::Owner, &signer(key))
}

fn greets(
    node: &mut Told,
    peer: &Somebody,
    device: Verified<records::Device>,
    lineage: Option<Lineage>,
) -> Vec<Effect> {
    node.told(START, Input::PeerUp(peer.id()));
    node.hears(START, peer, Message::Hello { device, lineage, membership: None, advert: None, asks: false })
}

fn acts(node: &Told, peer: &Somebody) -> bool {
    node.node.peers().any(|view| view.node == peer.id() && view.account.is_some() && view.admitted)
}

fn penalised(out: &[Effect]) -> bool {
    out.iter().any(|effect| matches!(effect, Effect::Penalise(..)))
}

#[test]
fn a_delegation_counts_with_the_key_in_force_and_its_lineage_only() {
    let both = (true, true);
    for (key, shown, counts) in [
        (80, Some(lineage(0)), true),
        (81, Some(lineage(1)), true),
        (80, Some(lineage(1)), false),
        (81, Some(lineage(0)), false),
        (80, None, false),
    ] {
        let mut node = provider(DEAR);
        let out = greets(&mut node, &ISSUER, delegated(&ISSUER, both, 1, key), shown);
        assert_eq!((acts(&node, &ISSUER), penalised(&out)), (counts, !counts), "key {key}");
    }
}

#[test]
fn whoever_has_seen_a_rotation_believes_the_old_key_no_more_and_counts_no_offence() {
    let mut node = provider(DEAR);
    greets(&mut node, &ISSUER, delegated(&ISSUER, (true, true), 1, 80), Some(lineage(0)));
    assert!(acts(&node, &ISSUER));

    greets(&mut node, &PROVIDER_2, delegated(&PROVIDER_2, (true, true), 1, 81), Some(lineage(1)));
    assert!(!acts(&node, &ISSUER), "its delegation is by the key that was replaced");
    let out = greets(&mut node, &ISSUER, delegated(&ISSUER, (true, true), 1, 80), Some(lineage(0)));
    assert!(!acts(&node, &ISSUER) && !penalised(&out));
    greets(&mut node, &ISSUER, delegated(&ISSUER, (true, true), 1, 81), Some(lineage(1)));
    assert!(acts(&node, &ISSUER));
}

const PROVIDER_2: Somebody = Somebody(6, 51);

#[test]
fn a_higher_version_replaces_a_delegation_and_a_lower_one_brings_it_not_back() {
    let mut node = provider(DEAR);
    let account = CONSUMER.account();
    let version = |version, serve| {
        let rights = Rights { serve, spend: serve };
        let device = records::Device { account, node: CONSUMER.id(), rights, version, expires: Epoch(5) };
        sign(device, manifest().domain(), Role::Owner, &signer(CONSUMER.1))
    };
    let spends = |node: &Told| node.node.may_spend(CONSUMER.id());
    assert!(spends(&node));

    // Another node of the account says that the delegation has ended.
    let wallet = Somebody(7, CONSUMER.1);
    node.greeted_by(START, &wallet, None);
    let revoked = Message::Devices { devices: vec![version(2, false)], lineage: None };
    assert_eq!(node.hears(START, &wallet, revoked), []);
    assert!(!spends(&node));

    node.told(START, Input::PeerDown(CONSUMER.id()));
    greets(&mut node, &CONSUMER, version(1, true), None);
    assert!(!acts(&node, &CONSUMER) && !spends(&node));
    greets(&mut node, &CONSUMER, version(3, true), None);
    assert!(acts(&node, &CONSUMER) && spends(&node));
}

#[test]
fn versions_that_a_thief_signed_with_a_replaced_key_are_outranked() {
    let mut node = provider(DEAR);
    greets(&mut node, &ISSUER, delegated(&ISSUER, (true, true), 1, 80), Some(lineage(0)));
    let thief = Somebody(9, 0);
    greets(&mut node, &thief, delegated(&thief, (true, true), 1, 80), Some(lineage(0)));
    let devices = vec![delegated(&ISSUER, (false, false), u32::MAX, 80)];
    node.hears(START, &thief, Message::Devices { devices, lineage: Some(lineage(0)) });
    assert!(!node.node.may_spend(ISSUER.id()), "the key was in force");

    greets(&mut node, &ISSUER, delegated(&ISSUER, (true, true), 1, 81), Some(lineage(1)));

    assert!(acts(&node, &ISSUER) && node.node.may_spend(ISSUER.id()));
    assert!(!acts(&node, &thief));
}

#[test]
fn nobody_ends_the_delegation_of_anothers_account() {
    let mut node = provider(DEAR);
    node.greeted_by(START, &PROVIDER_2, None);
    let rights = Rights { serve: false, spend: false };
    let (account, id) = (CONSUMER.account(), CONSUMER.id());
    let device = records::Device { account, node: id, rights, version: 9, expires: Epoch(5) };
    let device = sign(device, manifest().domain(), Role::Owner, &signer(PROVIDER_2.1));

    let out = node.hears(START, &PROVIDER_2, Message::Devices { devices: vec![device], lineage: None });

    assert!(penalised(&out) && node.node.may_spend(CONSUMER.id()));
}

#[test]
fn a_node_without_the_right_to_spend_gets_no_job_done_for_its_account() {
    let mut node = provider(DEAR);
    let channel = node.opens_channel();
    let rights = Rights { serve: true, spend: false };
    let (account, id) = (CONSUMER.account(), CONSUMER.id());
    let device = records::Device { account, node: id, rights, version: 2, expires: Epoch(5) };
    let device = sign(device, manifest().domain(), Role::Owner, &signer(CONSUMER.1));
    greets(&mut node, &CONSUMER, device, None);

    let submit = Message::Submit { job: job(1), spec: spec(), channel: Some(channel), opening: None };
    let out = node.hears(START, &CONSUMER, submit);

    assert_eq!((sent(&out), grants(&out)), (vec!["refused"], vec![]));
}

#[test]
fn terms_of_a_node_that_may_not_serve_for_the_account_they_pay_are_turned_down() {
    for (rights, account, taken) in [
        (Rights { serve: true, spend: true }, PROVIDER.1, true),
        (Rights { serve: false, spend: true }, PROVIDER.1, false),
        (Rights { serve: true, spend: true }, 52, false),
    ] {
        let mut node = consumer();
        node.has_credits();
        let id = signer(account).public().into();
        let device =
            records::Device { account: id, node: PROVIDER.id(), rights, version: 1, expires: Epoch(5) };
        let device = sign(device, manifest().domain(), Role::Owner, &signer(account));
        node.told(START, Input::Heard(advert(&PROVIDER, 1, START, Price::default())));
        greets(&mut node, &PROVIDER, device, None);
        node.told(START, Input::Submitted(job(1), spec()));

        let offer = Message::Offer { job: job(1), terms: terms(Price::default()) };
        let out = node.hears(START, &PROVIDER, offer);

        assert_eq!(sent(&out).contains(&"submit"), taken, "{out:?}");
    }
}

#[test]
fn a_receipt_counts_with_the_session_key_of_its_opening_and_from_its_payer_only() {
    let mut node = provider(DEAR);
    let channel = node.opens_channel();
    let receipt = |key: u8| {
        let (amount, usage, jobs) = (1, Usage::default(), Digest::ZERO);
        let receipt = Receipt { channel, sequence: 1, amount, usage, jobs, epoch: Epoch(0) };
        sign(receipt, manifest().domain(), Role::Payer, &signer(key))
    };
    let pay = |key| Message::Pay { receipt: receipt(key), allowances: Vec::new() };

    // The account's own key and another's are as good as none.
    for key in [CONSUMER.1, CONSUMER.0, 71] {
        assert!(sent(&node.hears(START, &CONSUMER, pay(key))).is_empty());
    }
    node.greeted_by(START, &PROVIDER_2, None);
    assert!(sent(&node.hears(START, &PROVIDER_2, pay(70))).is_empty());
    assert_eq!(sent(&node.hears(START, &CONSUMER, pay(70))), ["co_signed"]);
}

#[test]
fn a_channel_shown_by_a_node_that_its_account_has_not_delegated_is_not_taken() {
    let mut node = provider(DEAR);
    node.told(START, Input::PeerDown(CONSUMER.id()));
    // The node that the opening names, but for another account.
    node.greeted_by(START, &Somebody(CONSUMER.0, 77), None);

    node.opens_channel();

    assert_eq!(node.node.channels().len(), 0);
}

/// A wallet node with an idle wallet and credits.
fn wallet_node() -> Told {
    let mut node = consumer();
    node.has_credits();
    node
}

fn authorises(node: &mut Told, spend: bool, budget: u64) -> Vec<Effect> {
    let rights = Rights { serve: true, spend };
    let command = OwnerCommand::Authorise { node: PHONE.id(), rights, until: Epoch(30), budget };
    node.told(START, Input::Owner(command))
}

const PHONE: Somebody = Somebody(8, CONSUMER.1);

fn spend(request: u64, cap: u64) -> Message<Checked> {
    Message::Spend { request, terms: terms(DEAR), cap, payer_key: signer(72).public() }
}

fn spend_refusal(out: &[Effect]) -> Option<SpendRefusal> {
    out.iter().find_map(|effect| match effect {
        Effect::Send(_, Message::SpendRefused { refusal, .. }) => Some(*refusal),
        _ => None,
    })
}

#[test]
fn another_node_of_the_account_gets_channels_within_its_budget() {
    let mut node = wallet_node();
    node.greeted_by(START, &PHONE, None);
    assert_eq!(
        spend_refusal(&node.hears(START, &PHONE, spend(1, 10_000))),
        Some(SpendRefusal::NotAuthorised)
    );
    authorises(&mut node, true, 25_000);

    let out = node.hears(START, &PHONE, spend(2, 20_000));
    assert_eq!(sent(&out), ["step"]);
    assert!(matches!(out[0], Effect::Record(Record::Step { .. })), "durable before it leaves");
    // The same request is the same channel; another one is beyond the budget while this one is under way, too.
    assert_eq!(node.hears(START, &PHONE, spend(2, 20_000)), []);
    let refused = spend_refusal(&node.hears(START, &PHONE, spend(3, 20_000)));
    assert_eq!(refused, Some(SpendRefusal::Budget { left: 5_000 }));

    authorises(&mut node, false, 25_000);
    let refused = spend_refusal(&node.hears(START, &PHONE, spend(4, 1_000)));
    assert_eq!(refused, Some(SpendRefusal::NotAuthorised));
}

#[test]
fn a_stranger_gets_no_channel_of_the_account() {
    let mut node = wallet_node();
    node.greeted_by(START, &PROVIDER, None);

    let out = node.hears(START, &PROVIDER, spend(1, 10_000));

    assert!(penalised(&out) && sent(&out).is_empty());
}

#[test]
fn delegations_are_renewed_until_their_end_and_survive_a_restart() {
    let mut node = wallet_node();
    let recorded = authorises(&mut node, true, 5);
    let epoch_ms = manifest().epoch_ms;
    assert_eq!(node.node.account_view().devices.len(), 1);
    let expires = |node: &Told| node.node.delegation_of(PHONE.id()).map(|given| given.device.expires);
    assert_eq!(expires(&node), Some(Epoch(7)));

    node.told(START.plus_ms(6 * epoch_ms), Input::Wake);
    assert_eq!(expires(&node), Some(Epoch(13)));

    let records: Vec<Record> = recorded
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Record(record) => Some(record),
            _ => None,
        })
        .collect();
    let again = Node::new(node.node.config.clone(), 1, &records, START).expect("its own journal");
    assert_eq!(
        again.account_view().devices,
        [DeviceView {
            node: PHONE.id(),
            rights: Rights { serve: true, spend: true },
            version: 1,
            until: Epoch(30),
            budget: 5,
        }]
    );
    node.told(START.plus_ms(40 * epoch_ms), Input::Wake);
    assert_eq!(node.node.account_view().devices, []);
}

#[test]
fn a_node_that_recovers_signs_neither_how_its_account_begins_nor_a_rotation_nor_an_order() {
    let mut config = consumer().node.config.clone();
    config.owner = Owner::Wallet { inception: begins(80), key: signer(80), next: Some(signer(81)) };
    let node = Node::new(config, 1, &[Record::Recovering], START).expect("a journal");
    let mut node = Told { node };
    node.greeted_by(START, &ISSUER, None);
    let state = || Message::AccountState {
        account: begins(80).account(),
        next: 0,
        head: RecordId::NONE,
        balance: Balance::default(),
    };
    let rotate = OwnerCommand::Rotate { seed: [81; 32], next: begins(81).next };
    let order = OwnerCommand::Order(Digest::ZERO, Order::Noop);

    let mut before = node.hears(START, &ISSUER, state());
    before.extend(node.told(START, Input::Owner(rotate)));
    before.extend(node.told(START, Input::Owner(order)));
    before.extend(node.hears(START, &ISSUER, state()));
    let none = Message::Channels { channels: Vec::new(), last: true };
    node.hears(START, &ISSUER, none);
    let after = node.hears(START, &ISSUER, Message::Kept { entries: Vec::new(), last: true });

    assert!(!sent(&before).contains(&"step"), "{before:?}");
    assert!(sent(&after).contains(&"step"), "{after:?}");
}

#[test]
fn a_rotation_that_is_refused_is_signed_again_after_a_while_and_not_at_once() {
    let mut config = consumer().node.config.clone();
    config.owner = Owner::Wallet { inception: begins(80), key: signer(80), next: Some(signer(81)) };
    let mut node = Told { node: Node::new(config, 1, &[], START).expect("an empty journal") };
    node.greeted_by(START, &ISSUER, None);
    let account = begins(80).account();
    let (head, balance) = (RecordId([1; 32]), Balance::default());
    node.hears(START, &ISSUER, Message::AccountState { account, next: 1, head, balance });
    let rotate = OwnerCommand::Rotate { seed: [81; 32], next: begins(81).next };
    assert!(sent(&node.told(START, Input::Owner(rotate))).contains(&"step"));

    let (op, error) = (node.node.wallet.pending().expect("signed").id(), IssuerError::WrongEpoch);
    let refused = node.hears(START, &ISSUER, Message::StepRefused { op, error, balance });
    assert!(!sent(&refused).contains(&"step"), "{refused:?}");
    let again = node.told(START.plus_ms(6_000), Input::Wake);
    assert!(sent(&again).contains(&"step"), "{again:?}");
}
