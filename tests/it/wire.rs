//! Golden vectors: the exact bytes of signed records, which no later version may change.
//!
//! `SHAREMESH_WRITE_VECTORS=1 cargo test -p tests wire` writes `tests/vectors` anew, after a change that is meant.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use protocol::advert::{self, Advert, Incentive, ModelOffer, ProviderClass};
use protocol::encoding::{decode, encode};
use protocol::ids::{AccountId, ChannelId, Digest, DomainId, JobId, ModelId, NodeId, RecordId};
use protocol::keys::{Scheme, Signer};
use protocol::ledger::records::{
    Accepted, AccountOp, Deposit, Device, Epoch, Final, Membership, OpBody, OpenChannel, Receipt, Recorded,
    RedeemAck, Rights, Source, Terms, Vote,
};
use protocol::licence::open_licence;
use protocol::manifest::Manifest;
use protocol::message::{Message, Wire};
use protocol::model::Modality;
use protocol::price::{Price, Usage};
use protocol::signed::{Role, Signable, Signed, Verified, sign};
use protocol::time::Time;

const DOMAIN: DomainId = DomainId([0xd0; 32]);
const JOB: JobId = JobId([0x10; 16]);
const MODEL: ModelId = ModelId([0x30; 32]);
const EPOCH: Epoch = Epoch(3);

#[test]
fn records_of_who_may_do_what_keep_their_bytes() {
    let (node, account) = (node(), account());
    let rights = Rights { serve: true, spend: true };
    let device = Device { account: id(&account), node: name(&node), rights, version: 1, expires: EPOCH };
    let membership = Membership { node: name(&node), account: id(&account), epoch: EPOCH };
    let deposit = Deposit {
        reference: Digest::of(b"ticket"),
        account: id(&account),
        amount: 5,
        epoch: EPOCH,
        source: Source::Budget,
    };

    check(&home().signed_by(&issuer()));
    check(&sign(device, DOMAIN, Role::Owner, &account));
    check(&sign(membership, DOMAIN, Role::Issuer, &issuer()));
    check(&sign(deposit, DOMAIN, Role::Issuer, &issuer()));
}

#[test]
fn records_of_a_channel_keep_their_bytes() {
    let (payer, payee) = (signer(4), signer(5));
    let channel = ChannelId([0x40; 32]);
    let open = OpenChannel {
        payee: name(&node()),
        terms: terms().id(),
        cap: 1_000_000,
        expires: EPOCH.plus(4),
        payer: name(&signer(6)),
        payer_key: payer.public(),
    };
    let op = AccountOp {
        account: id(&account()),
        sequence: 7,
        previous: RecordId([0x50; 32]),
        epoch: EPOCH,
        body: OpBody::OpenChannel(open),
    };
    let op = sign(op, DOMAIN, Role::Owner, &account());
    let vote = Vote { op: op.id(), account: id(&account()), sequence: 7, epoch: EPOCH };
    let ended = Final { channel, amount: 123_456, receipt: Some(receipt(channel).id()) };
    let ack = RedeemAck { channel, amount: 123_456, closed: true, epoch: EPOCH };
    let both = |signed: Verified<Receipt>| signed.signed_also_by(DOMAIN, Role::Payee, &payee);

    check(&terms());
    check(&op);
    check(&sign(vote, DOMAIN, Role::Issuer, &issuer()));
    check(&sign(Recorded { op: op.id(), epoch: EPOCH }, DOMAIN, Role::Issuer, &issuer()));
    check(&both(receipt(channel)));
    check(&sign(ended, DOMAIN, Role::Payer, &payer).signed_also_by(DOMAIN, Role::Payee, &payee));
    check(&sign(ack, DOMAIN, Role::Issuer, &issuer()));
}

#[test]
fn records_of_a_provider_keep_their_bytes() {
    let accepted = Accepted { job: JOB, tokens_in: 12, start: Time(1_700_000_000_000) };
    let offer = ModelOffer {
        model: MODEL,
        name: "smollm2-135m".to_owned(),
        modality: Modality::Text,
        licence: open_licence(MODEL, DOMAIN),
        price: price(),
        context_tokens: 8192,
        slots: 4,
        busy: 1,
        decode_milli: 52_500,
        prefill_milli: 900_000,
        quantisation: "Q8_0".to_owned(),
        weights: Digest::of(b"weights"),
    };
    let device = advert::Device {
        kind: "cpu".to_owned(),
        name: "two cores".to_owned(),
        memory_bytes: 8 << 30,
        backend: "candle".to_owned(),
    };
    let advert = Advert {
        node: name(&node()),
        name: "attic".to_owned(),
        account: id(&account()),
        sequence: 1_700_000_000_000,
        class: ProviderClass::Community,
        region: "CH".to_owned(),
        devices: vec![device],
        models: vec![offer],
        incentive: Incentive::Exchange,
        version: "0.1.0".to_owned(),
        valid_to: Time(1_700_000_090_000),
    };

    check(&sign(accepted, DOMAIN, Role::Node, &node()));
    check(&sign(advert, DOMAIN, Role::Node, &node()));
}

#[test]
fn a_message_keeps_its_bytes() {
    let receipt = receipt(ChannelId([0x40; 32])).signed();
    let pay = Message::<Wire>::Pay { receipt, allowances: vec![(JOB, 96)] };

    compare("message_pay", &[("message", pay.to_bytes())]);
    let parsed = Message::check(&pay.to_bytes(), DOMAIN, Scheme::Strict).unwrap();
    assert_eq!(parsed.name(), "pay");
}

/// Compares a record with its vector and reads it back.
fn check<T: Signable>(record: &Verified<T>) {
    let signed = encode(&record.signed());
    let id = record.id().0.to_vec();
    compare(T::TAG, &[("body", encode(&**record)), ("id", id), ("signed", signed.clone())]);

    let read: Signed<T> = decode(&signed, signed.len()).unwrap();
    // A manifest founds its network, and so is signed in none.
    let domain = if T::TAG == Manifest::TAG { DomainId([0; 32]) } else { DOMAIN };
    assert_eq!(read.verify(domain, Scheme::Strict).unwrap(), *record);
}

fn compare(name: &str, parts: &[(&str, Vec<u8>)]) {
    let mut text = String::new();
    for (part, bytes) in parts {
        text.push_str(part);
        text.push(' ');
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").expect("a string takes everything"));
        text.push('\n');
    }
    let path = vectors().join(format!("{name}.hex"));
    if std::env::var_os("SHAREMESH_WRITE_VECTORS").is_some() {
        fs::create_dir_all(vectors()).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, golden, "{name} has other bytes than before: older nodes would not understand them");
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn home() -> Manifest {
    Manifest::home("home".to_owned(), Time(1_700_000_000_000), &issuer(), name(&node()))
}

fn terms() -> Verified<Terms> {
    let terms = Terms {
        payee: name(&node()),
        payee_account: id(&account()),
        payee_key: signer(5).public(),
        payer_account: id(&signer(6)),
        model: MODEL,
        licence: open_licence(MODEL, DOMAIN),
        incentive: Incentive::Exchange,
        price: price(),
        markup: None,
        split: Terms::standard_split(&home(), Modality::Text, id(&account())),
        valid_to: EPOCH.plus(4),
    };
    sign(terms, DOMAIN, Role::Node, &node())
}

fn receipt(channel: ChannelId) -> Verified<Receipt> {
    let usage = Usage { calls: 2, tokens_in: 30, tokens_out: 96, compute: 0 };
    let jobs = Digest::of(b"jobs");
    let receipt = Receipt { channel, sequence: 9, amount: 414_000, usage, jobs, epoch: EPOCH };
    sign(receipt, DOMAIN, Role::Payer, &signer(4))
}

const fn price() -> Price {
    Price { call: 0, input: 1_000_000_000, output: 4_000_000_000 }
}

fn issuer() -> Signer {
    signer(1)
}

fn node() -> Signer {
    signer(2)
}

fn account() -> Signer {
    signer(3)
}

fn signer(seed: u8) -> Signer {
    Signer::from_seed([seed; 32])
}

fn id(signer: &Signer) -> AccountId {
    signer.public().into()
}

fn name(signer: &Signer) -> NodeId {
    signer.public().into()
}
