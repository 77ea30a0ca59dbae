//! One record of every kind that is signed, always the same.

use protocol::advert::{self, Advert, Incentive, ModelOffer, ProviderClass};
use protocol::ids::{AccountId, ChannelId, Digest, DomainId, JobId, ModelId, NodeId, RecordId};
use protocol::keys::Signer;
use protocol::ledger::account::{Inception, Lineage, promise};
use protocol::ledger::agreement::{Ballot, Phase};
use protocol::ledger::checkpoint::{AccountLeaf, ChannelLeaf, Checkpoint};
use protocol::ledger::merkle::Tree;
use protocol::ledger::records::{
    Accepted, AccountOp, Claim, CloseVote, Deposit, Device, Epoch, Final, Membership, OpBody, OpenChannel,
    Receipt, Recorded, RedeemAck, Rights, Source, Terms, Vote, WithdrawalPaid, text_digest,
};
use protocol::licence::{Licence, LicenceKind, Scope, open_licence};
use protocol::manifest::Manifest;
use protocol::model::Modality;
use protocol::price::{Price, Usage};
use protocol::signed::{Role, Signable, Verified, sign};
use protocol::time::Time;

pub(crate) const DOMAIN: DomainId = DomainId([0xd0; 32]);
pub(crate) const JOB: JobId = JobId([0x10; 16]);
pub(crate) const MODEL: ModelId = ModelId([0x30; 32]);
pub(crate) const CHANNEL: ChannelId = ChannelId([0x40; 32]);
pub(crate) const EPOCH: Epoch = Epoch(3);

pub(crate) fn manifest() -> Verified<Manifest> {
    home().signed_by(&issuer())
}

pub(crate) fn device() -> Verified<Device> {
    let rights = Rights { serve: true, spend: true };
    let device = Device { account: id(&account()), node: name(&node()), rights, version: 1, expires: EPOCH };
    sign(device, DOMAIN, Role::Owner, &account())
}

pub(crate) fn membership() -> Verified<Membership> {
    by_issuer(Membership { node: name(&node()), account: id(&account()), epoch: EPOCH })
}

pub(crate) fn deposit() -> Verified<Deposit> {
    let reference = Digest::of(b"ticket");
    let source = Source::Budget;
    by_issuer(Deposit { reference, account: id(&account()), amount: 5, epoch: EPOCH, source })
}

pub(crate) fn open_channel() -> Verified<AccountOp> {
    account_op(OpBody::OpenChannel(OpenChannel {
        payee: name(&node()),
        terms: terms().id(),
        cap: 1_000_000,
        expires: EPOCH.plus(4),
        payer: name(&signer(6)),
        payer_key: payer().public(),
    }))
}

pub(crate) fn withdrawal() -> Verified<AccountOp> {
    account_op(OpBody::Withdraw { amount: 9_000, payout: text_digest("bank account 1") })
}

pub(crate) fn inception() -> Inception {
    Inception { key: account().public(), next: promise(signer(7).public()) }
}

/// The account that begins so, after one rotation.
pub(crate) fn lineage() -> Lineage {
    let mut lineage = Lineage::new(inception());
    lineage.rotate(&rotation()).expect("promised");
    lineage
}

pub(crate) fn rotation() -> Verified<AccountOp> {
    let to = Inception { key: signer(7).public(), next: promise(signer(8).public()) };
    let (account, previous) = (inception().account(), RecordId([0x50; 32]));
    let op = AccountOp { account, sequence: 7, previous, epoch: EPOCH, body: OpBody::Rotate(to) };
    sign(op, DOMAIN, Role::Owner, &signer(7))
}

/// The account's seventh step, with this body.
pub(crate) fn account_op(body: OpBody) -> Verified<AccountOp> {
    let previous = RecordId([0x50; 32]);
    let op = AccountOp { account: id(&account()), sequence: 7, previous, epoch: EPOCH, body };
    sign(op, DOMAIN, Role::Owner, &account())
}

pub(crate) fn close_vote() -> Verified<CloseVote> {
    by_issuer(CloseVote { channel: CHANNEL, amount: 414_000, epoch: EPOCH })
}

pub(crate) fn withdrawal_paid() -> Verified<WithdrawalPaid> {
    let (step, reference) = (withdrawal().id(), "transfer 1".to_owned());
    by_issuer(WithdrawalPaid { step, reference, epoch: EPOCH })
}

pub(crate) fn vote() -> Verified<Vote> {
    by_issuer(Vote {
        op: open_channel().id(),
        account: id(&account()),
        sequence: 7,
        epoch: EPOCH,
        settled: Some(EPOCH),
    })
}

pub(crate) fn recorded() -> Verified<Recorded> {
    by_issuer(Recorded { op: open_channel().id(), epoch: EPOCH })
}

pub(crate) fn terms() -> Verified<Terms> {
    let terms = Terms {
        payee: name(&node()),
        payee_account: id(&account()),
        payee_key: payee().public(),
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

pub(crate) fn receipt() -> Verified<Receipt> {
    let usage = Usage { calls: 2, tokens_in: 30, tokens_out: 96, compute: 0 };
    let jobs = Digest::of(b"jobs");
    let receipt = Receipt { channel: CHANNEL, sequence: 9, amount: 414_000, usage, jobs, epoch: EPOCH };
    by_both(receipt)
}

pub(crate) fn closing() -> Verified<Final> {
    by_both(Final { channel: CHANNEL, amount: 123_456, receipt: Some(receipt().id()) })
}

pub(crate) fn redeem_ack() -> Verified<RedeemAck> {
    by_issuer(RedeemAck { channel: CHANNEL, amount: 123_456, closed: true, epoch: EPOCH })
}

pub(crate) fn claim() -> Verified<Claim> {
    let claim = Claim { channel: CHANNEL, receipt: receipt().id(), amount: 400_000 };
    sign(claim, DOMAIN, Role::Payee, &payee())
}

pub(crate) fn ballot() -> Verified<Ballot> {
    let (previous, checkpoint) = (RecordId([0x51; 32]), checkpoint().id());
    by_issuer(Ballot { previous, round: 2, phase: Phase::Commit, checkpoint })
}

pub(crate) fn accepted() -> Verified<Accepted> {
    let accepted = Accepted { job: JOB, tokens_in: 12, start: Time(1_700_000_000_000) };
    sign(accepted, DOMAIN, Role::Node, &node())
}

pub(crate) fn licence() -> Verified<Licence> {
    let licence = Licence { model: MODEL, kind: LicenceKind::Open, scope: Scope::Both };
    sign(licence, DOMAIN, Role::Owner, &account())
}

pub(crate) fn advert() -> Verified<Advert> {
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
    sign(advert, DOMAIN, Role::Node, &node())
}

pub(crate) fn checkpoint() -> Verified<Checkpoint> {
    checkpoint_of(5_000)
}

/// Another checkpoint of the same epoch: the two convict whoever signed them.
pub(crate) fn other_checkpoint() -> Verified<Checkpoint> {
    checkpoint_of(5_001)
}

fn checkpoint_of(deposited: u128) -> Verified<Checkpoint> {
    by_issuer(Checkpoint {
        epoch: EPOCH,
        previous: RecordId([0x51; 32]),
        accounts: Tree::new(vec![account_leaf()]).expect("one").root(),
        channels: Tree::<ChannelLeaf>::new(Vec::new()).expect("none").root(),
        deposited,
        withdrawn: 7,
        facts: Digest::of(b"facts"),
    })
}

pub(crate) fn account_leaf() -> AccountLeaf {
    let (account, head) = (id(&account()), open_channel().id());
    AccountLeaf { account, cash: 4_000, earned: 993, held: 0, steps: 8, head }
}

fn by_issuer<T: Signable>(value: T) -> Verified<T> {
    sign(value, DOMAIN, Role::Issuer, &issuer())
}

fn by_both<T: Signable>(value: T) -> Verified<T> {
    sign(value, DOMAIN, Role::Payer, &payer()).signed_also_by(DOMAIN, Role::Payee, &payee())
}

fn home() -> Manifest {
    Manifest::home("home".to_owned(), Time(1_700_000_000_000), &issuer(), name(&node()))
}

pub(crate) const fn price() -> Price {
    Price { call: 0, input: 1_000_000_000, output: 4_000_000_000 }
}

fn issuer() -> Signer {
    signer(1)
}

pub(crate) fn node() -> Signer {
    signer(2)
}

pub(crate) fn account() -> Signer {
    signer(3)
}

fn payer() -> Signer {
    signer(4)
}

fn payee() -> Signer {
    signer(5)
}

pub(crate) fn signer(seed: u8) -> Signer {
    Signer::from_seed([seed; 32])
}

pub(crate) fn id(signer: &Signer) -> AccountId {
    signer.public().into()
}

pub(crate) fn name(signer: &Signer) -> NodeId {
    signer.public().into()
}
