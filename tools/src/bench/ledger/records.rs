//! The records that are measured: real ones, signed by everybody who has to.

use protocol::advert::Incentive;
use protocol::ids::{AccountId, ChannelId, Digest, DomainId, JobId, ModelId, NodeId, RecordId};
use protocol::job::{Finish, JobRecord};
use protocol::keys::Signer;
use protocol::ledger::records::{AccountOp, Epoch, OpBody, OpenChannel, Receipt, Terms};
use protocol::licence::open_licence;
use protocol::manifest::Manifest;
use protocol::model::Modality;
use protocol::price::{Price, Usage};
use protocol::signed::{Role, Verified, sign};
use protocol::time::Time;

/// What a channel can pay.
const CAP: u64 = 100_000_000_000;

/// A model that nobody serves.
pub(super) const MODEL: ModelId = ModelId([7; 32]);

/// Whoever pays on channels: keys of its node and of its account.
pub(super) struct Payer {
    pub(super) node: Signer,
    pub(super) account: Signer,
    sequence: u64,
    previous: RecordId,
}

impl Payer {
    pub(super) fn new(number: usize) -> Self {
        let key =
            |purpose: &[u8]| Signer::from_seed([5; 32]).derive(&[purpose, &number.to_le_bytes()].concat());
        Self { node: key(b"node"), account: key(b"account"), sequence: 0, previous: RecordId::NONE }
    }

    pub(super) fn id(&self) -> AccountId {
        self.account.public().into()
    }

    /// Signs the opening of one more channel on these terms.
    pub(super) fn open(&mut self, terms: &Verified<Terms>, domain: DomainId) -> Verified<AccountOp> {
        let open = OpenChannel {
            payee: terms.payee,
            terms: terms.id(),
            cap: CAP,
            expires: Epoch(6),
            payer: self.node.public().into(),
            payer_key: self.account.public(),
        };
        let (sequence, previous) = (self.sequence, self.previous);
        let body = OpBody::OpenChannel(open);
        let op = AccountOp { account: self.id(), sequence, previous, epoch: Epoch(0), body };
        let op = sign(op, domain, Role::Owner, &self.account);
        self.sequence += 1;
        self.previous = op.id();
        op
    }
}

/// Returns the key with which `payee` signs receipts of such a payer.
pub(super) fn payee_signer(payee: &Signer, payer: AccountId) -> Signer {
    payee.derive(&[b"payee".as_slice(), &payer.0, &MODEL.0].concat())
}

/// Returns the terms of a provider for a payer.
pub(super) fn terms(
    manifest: &Manifest,
    payee: &Signer,
    account: AccountId,
    payer: AccountId,
) -> Verified<Terms> {
    let domain = manifest.domain();
    let terms = Terms {
        payee: NodeId::from(payee.public()),
        payee_account: account,
        payee_key: payee_signer(payee, payer).public(),
        payer_account: payer,
        model: MODEL,
        licence: open_licence(MODEL, domain),
        incentive: Incentive::Exchange,
        price: Price { call: 0, input: 50_000_000, output: 200_000_000 },
        markup: None,
        split: Terms::standard_split(manifest, Modality::Text, account),
        valid_to: Epoch(7),
    };
    sign(terms, domain, Role::Node, payee)
}

/// Returns the receipt with this number of a channel, signed by the payer.
pub(super) fn receipt(
    channel: ChannelId,
    sequence: u64,
    domain: DomainId,
    payer: &Signer,
) -> Verified<Receipt> {
    let usage = Usage { calls: sequence, tokens_in: 40 * sequence, tokens_out: 64 * sequence, compute: 0 };
    let jobs = Digest([u8::try_from(sequence % 251).unwrap_or_default(); 32]);
    receipt_for(channel, (usage, jobs), sequence, domain, payer)
}

/// Returns the receipt for this work and its hash chain, signed by the payer.
pub(super) fn receipt_for(
    channel: ChannelId,
    (usage, jobs): (Usage, Digest),
    sequence: u64,
    domain: DomainId,
    payer: &Signer,
) -> Verified<Receipt> {
    let receipt = Receipt { channel, sequence, amount: 20_000 * sequence, usage, jobs, epoch: Epoch(0) };
    sign(receipt, domain, Role::Payer, payer)
}

/// Returns a job that ran on a channel on these terms.
pub(super) fn job(channel: ChannelId, requester: NodeId, terms: &Terms) -> JobRecord {
    let mut job = JobId([0; 16]);
    job.0.copy_from_slice(&channel.0[..16]);
    JobRecord {
        job,
        channel: Some(channel),
        provider: terms.payee,
        requester,
        model: terms.model,
        usage: Usage::of_job(40, 64),
        price: terms.price,
        start: Time(1_700_000_000_000),
        end: Time(1_700_000_001_000),
        input: Digest(channel.0),
        output: Digest(channel.0),
        finish: Finish::Length,
    }
}
