//! What the properties share: a small network with simulated signatures.

use proptest::test_runner::Config;
use protocol::advert::Incentive;
use protocol::ids::{AccountId, Digest, DomainId, ModelId, NodeId};
use protocol::keys::Signer;
use protocol::ledger::records::{Epoch, Markup, Terms};
use protocol::licence::open_licence;
use protocol::manifest::Manifest;
use protocol::model::Modality;
use protocol::price::{Price, Usage};
use protocol::signed::{Role, Verified, sign};
use protocol::time::Time;

pub(crate) const MODEL: ModelId = ModelId([7; 32]);

pub(crate) const PRICE: Price = Price { call: 3, input: 500_000_001, output: 2_000_000_003 };

/// Enough to find what is rare, few enough for every change; `PROPTEST_CASES` asks for more.
pub(crate) fn cases() -> Config {
    let asked = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { asked.cases } else { 2_000 };
    Config { cases, failure_persistence: None, ..asked }
}

/// For properties whose every case is a few sums.
pub(crate) fn many_cases() -> Config {
    Config { cases: 10_000, ..cases() }
}

pub(crate) fn signer(tag: u8) -> Signer {
    Signer::simulated([tag; 32])
}

pub(crate) fn account(tag: u8) -> AccountId {
    signer(tag).public().into()
}

pub(crate) fn manifest() -> Manifest {
    let node = NodeId::from(signer(201).public());
    Manifest { open_fee: 10_000, ..Manifest::home("properties".to_owned(), Time(0), &signer(200), node) }
}

pub(crate) fn domain() -> DomainId {
    manifest().domain()
}

/// Terms of the payee with this tag, who is its own account, for a payer's account.
pub(crate) fn terms(payee: u8, payer: u8, incentive: Incentive, markup_bps: u16) -> Verified<Terms> {
    let manifest = manifest();
    let payee_account = account(payee);
    let terms = Terms {
        payee: signer(payee).public().into(),
        payee_account,
        payee_key: payee_signer(payee).public(),
        payer_account: account(payer),
        model: MODEL,
        licence: open_licence(MODEL, manifest.domain()),
        incentive,
        price: PRICE,
        markup: (markup_bps > 0).then(|| Markup { builder: account(99), bps: markup_bps }),
        split: Terms::standard_split(&manifest, Modality::Text, payee_account),
        valid_to: Epoch(7),
    };
    sign(terms, manifest.domain(), Role::Node, &signer(payee))
}

pub(crate) fn payee_signer(payee: u8) -> Signer {
    signer(payee).derive(b"payee")
}

pub(crate) fn payer_signer(payer: u8) -> Signer {
    signer(payer).derive(b"payer")
}

pub(crate) const fn usage(calls: u64, tokens_in: u64, tokens_out: u64) -> Usage {
    Usage { calls, tokens_in, tokens_out, compute: 0 }
}

pub(crate) const fn digest(tag: u8) -> Digest {
    Digest([tag; 32])
}
