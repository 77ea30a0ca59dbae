//! Four issuers, three of them honest, with their journals; the fourth signs whatever suits it.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};

use proptest::prelude::ProptestConfig;
use protocol::advert::Incentive;
use protocol::ids::{AccountId, Digest, DomainId, ModelId, NodeId, RecordId};
use protocol::keys::Signer;
use protocol::ledger::records::{AccountOp, Deposit, Epoch, OpBody, OpenChannel, Source, Terms};
use protocol::ledger::witness::Witness;
use protocol::licence::open_licence;
use protocol::manifest::{Issuer, Manifest};
use protocol::model::Modality;
use protocol::price::Price;
use protocol::record::Record;
use protocol::signed::{Role, Signable, Verified, sign};
use protocol::time::Time;
use stateright::{Checker, HasDiscoveries, Model};

pub(crate) const HONEST: usize = 3;
pub(crate) const DEPOSIT: u64 = 1_000_000;
const MODEL: ModelId = ModelId([7; 32]);

/// Enough for every change, each case being a history of four issuers; `PROPTEST_CASES` asks for more.
pub(crate) fn cases(few: u32) -> ProptestConfig {
    let asked = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { asked.cases } else { few };
    ProptestConfig { cases, failure_persistence: None, ..asked }
}

pub(crate) fn signer(tag: u8) -> Signer {
    Signer::simulated([tag; 32])
}

pub(crate) fn issuer_signer(place: usize) -> Signer {
    signer(200 + u8::try_from(place).expect("four issuers"))
}

pub(crate) fn payer() -> AccountId {
    signer(1).public().into()
}

pub(crate) fn manifest() -> Manifest {
    let node = |place: u8| NodeId::from(signer(210 + place).public());
    let issuers =
        (0..4).map(|place| Issuer { key: issuer_signer(usize::from(place)).public(), node: node(place) });
    let home = Manifest::home("models".to_owned(), Time(0), &issuer_signer(0), node(0));
    Manifest { issuers: issuers.collect(), quorum: 3, ..home }
}

pub(crate) fn domain() -> DomainId {
    manifest().domain()
}

/// Signs as the lying issuer.
pub(crate) fn lie<T: Signable>(record: T) -> Verified<T> {
    sign(record, domain(), Role::Issuer, &issuer_signer(HONEST))
}

pub(crate) fn terms() -> Verified<Terms> {
    let manifest = manifest();
    let payee_account: AccountId = signer(2).public().into();
    let terms = Terms {
        payee: signer(3).public().into(),
        payee_account,
        payee_key: signer(4).public(),
        payer_account: payer(),
        model: MODEL,
        licence: open_licence(MODEL, manifest.domain()),
        incentive: Incentive::Exchange,
        price: Price::default(),
        markup: None,
        split: Terms::standard_split(&manifest, Modality::Text, payee_account),
        valid_to: Epoch(7),
    };
    sign(terms, manifest.domain(), Role::Node, &signer(3))
}

/// Returns the payer's first step: a channel with this cap.
pub(crate) fn opening(cap: u64) -> Verified<AccountOp> {
    let terms = terms();
    let open = OpenChannel {
        payee: terms.payee,
        terms: terms.id(),
        cap,
        expires: Epoch(2),
        payer: signer(5).public().into(),
        payer_key: signer(6).public(),
    };
    let body = OpBody::OpenChannel(open);
    let op = AccountOp { account: payer(), sequence: 0, previous: RecordId::NONE, epoch: Epoch(0), body };
    sign(op, domain(), Role::Owner, &signer(1))
}

/// An honest issuer: what it knows, and what is on its disk.
#[derive(Debug, Clone)]
pub(crate) struct Honest {
    pub(crate) witness: Witness,
    pub(crate) journal: Vec<Record>,
    pub(crate) crashed: bool,
}

impl Honest {
    /// Returns an issuer that has booked the payer's deposit.
    pub(crate) fn new(place: usize) -> Self {
        let deposit = Deposit {
            reference: Digest([1; 32]),
            account: payer(),
            amount: DEPOSIT,
            epoch: Epoch(0),
            source: Source::Budget,
        };
        let deposit = (1..4)
            .fold(sign(deposit, domain(), Role::Issuer, &issuer_signer(0)), |deposit, place| {
                deposit.signed_also_by(domain(), Role::Issuer, &issuer_signer(place))
            });
        let mut witness = Witness::new(manifest(), issuer_signer(place));
        let record = witness.enter(&deposit).expect("signed by all");
        Self { witness, journal: record.into_iter().collect(), crashed: false }
    }

    /// Writes down what must be on disk before anything leaves.
    pub(crate) fn write(&mut self, record: Option<Record>) {
        self.journal.extend(record);
    }

    /// Starts again with what is on disk.
    pub(crate) fn crash(&mut self, place: usize) {
        self.witness = Witness::new(manifest(), issuer_signer(place));
        for record in &self.journal {
            self.witness.replay(record.clone()).expect("its own journal");
        }
        self.crashed = true;
    }

    /// Returns all that tells one state of it from another.
    fn shown(&self) -> impl Debug + Hash + PartialEq {
        let books = &self.witness.books;
        let accounts: Vec<String> = books.balances().map(|balance| format!("{balance:?}")).collect();
        (
            accounts,
            books.next_slot(payer()),
            books.locked(payer()),
            format!("{:?}", self.journal),
            self.crashed,
        )
    }
}

impl Hash for Honest {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.shown().hash(hasher);
    }
}

impl PartialEq for Honest {
    fn eq(&self, other: &Self) -> bool {
        self.shown() == other.shown()
    }
}

/// Searches every state of a model; panics with the shortest way to a state where a property does not hold.
#[expect(clippy::print_stdout, reason = "says how much was searched, to whoever runs it with `--nocapture`")]
pub(crate) fn search<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Send + Sync + PartialEq + Clone,
    M::Action: Debug + Clone + PartialEq,
{
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{name}: {} states, {} deep", checker.unique_state_count(), checker.max_depth());
    for (property, path) in checker.discoveries() {
        let is_example = checker.discovery_classification(property).to_string() == "example";
        assert!(is_example, "{name}: `{property}` does not hold after {:#?}", path.into_actions());
    }
    checker.assert_properties();
}
