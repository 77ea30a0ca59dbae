//! Everything that is signed as one list without types, so that a rule can be put to all of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use protocol::encoding::{decode, encode};
use protocol::ids::{AccountId, ChannelId, DomainId, RecordId};
use protocol::keys::Scheme;
use protocol::ledger::records::OpBody;
use protocol::manifest::Manifest;
use protocol::signed::{Attestation, Signable, Signed, Verified};

use crate::enums::variants;
use crate::samples;

/// A kind of signed record, with one record of it.
pub(crate) struct Kind {
    /// Name of the type in the code.
    pub(crate) type_name: &'static str,
    /// Its tag in the signed bytes.
    pub(crate) tag: &'static str,
    /// Name of the sample: the tag, and what is special.
    pub(crate) name: String,
    /// Network it is signed in.
    pub(crate) domain: DomainId,
    pub(crate) id: RecordId,
    /// Most signatures that such a record may carry.
    pub(crate) signatures_max: usize,
    /// What is signed.
    pub(crate) body: Vec<u8>,
    /// The record as it travels.
    pub(crate) bytes: Vec<u8>,
    /// Reads and verifies a record of this kind as a node does; returns it as it would be passed on.
    pub(crate) read: fn(&[u8], DomainId) -> Result<Vec<u8>, String>,
}

impl Kind {
    fn of<T: Signable>(sample: &Verified<T>) -> Self {
        // A manifest founds its network, and so is signed in none.
        let domain = if T::TAG == Manifest::TAG { DomainId([0; 32]) } else { samples::DOMAIN };
        Self {
            type_name: std::any::type_name::<T>().rsplit("::").next().expect("a path has an end"),
            tag: T::TAG,
            name: T::TAG.to_owned(),
            domain,
            id: sample.id(),
            signatures_max: T::ATTESTATIONS_MAX,
            body: encode(&**sample),
            bytes: encode(&sample.signed()),
            read: |bytes, domain| {
                let read: Signed<T> = decode(bytes, 1 << 16).map_err(|error| error.to_string())?;
                let read = read.verify(domain, Scheme::Strict).map_err(|error| error.to_string())?;
                assert_eq!(decode::<T>(&encode(&*read), 1 << 16).as_ref(), Ok(&*read));
                Ok(encode(&read.signed()))
            },
        }
    }

    fn called(self, special: &str) -> Self {
        Self { name: format!("{}-{special}", self.tag), ..self }
    }

    /// Returns what travels around the body: who signed, and the signatures.
    pub(crate) fn attestations(&self) -> Vec<Attestation> {
        decode::<(Vec<u8>, Vec<Attestation>)>(&self.bytes, 1 << 16).expect("the same fields").1
    }

    /// Says what a node makes of `bytes` in the record's own network.
    pub(crate) fn takes(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        (self.read)(bytes, self.domain)
    }
}

/// Returns a record of every kind; of a step of an account, one for everything it can do.
pub(crate) fn kinds() -> Vec<Kind> {
    vec![
        Kind::of(&samples::manifest()),
        Kind::of(&samples::device()),
        Kind::of(&samples::membership()),
        Kind::of(&samples::deposit()),
        Kind::of(&samples::open_channel()),
        Kind::of(&samples::account_op(OpBody::Expire(ChannelId([0x41; 32])))).called("expire"),
        Kind::of(&samples::account_op(OpBody::Pay { to: AccountId([0x42; 32]), amount: 7_000 }))
            .called("pay"),
        Kind::of(&samples::withdrawal()).called("withdraw"),
        Kind::of(&samples::account_op(OpBody::Noop)).called("noop"),
        Kind::of(&samples::account_op(OpBody::Inception(samples::inception()))).called("inception"),
        Kind::of(&samples::rotation()).called("rotate"),
        Kind::of(&samples::vote()),
        Kind::of(&samples::close_vote()),
        Kind::of(&samples::withdrawal_paid()),
        Kind::of(&samples::recorded()),
        Kind::of(&samples::terms()),
        Kind::of(&samples::receipt()),
        Kind::of(&samples::closing()),
        Kind::of(&samples::redeem_ack()),
        Kind::of(&samples::accepted()),
        Kind::of(&samples::advert()),
        Kind::of(&samples::licence()),
        Kind::of(&samples::checkpoint()),
        Kind::of(&samples::claim()),
        Kind::of(&samples::ballot()),
    ]
}

/// Returns the names of all types that the sources of `protocol` make signable.
pub(crate) fn signable_types() -> BTreeSet<String> {
    let mut types = BTreeSet::new();
    for text in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let implemented = text.lines().filter_map(|line| line.strip_prefix("impl Signable for "));
        types.extend(implemented.map(|rest| rest.trim_end_matches(" {").to_owned()));
        let listed = text.split("\nsignable! {").skip(1).filter_map(|rest| rest.split('}').next());
        let names = listed.flat_map(str::lines).filter_map(|line| line.split_once(" = "));
        types.extend(names.map(|(name, _)| name.trim().to_owned()));
    }
    types
}

fn sources(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the sources are here");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let texts = paths.flat_map(|path| {
        if path.is_dir() { sources(&path) } else { vec![fs::read_to_string(&path).expect("text")] }
    });
    texts.collect()
}

#[test]
fn every_signed_type_of_the_sources_is_listed() {
    let listed: BTreeSet<_> = kinds().iter().map(|kind| kind.type_name.to_owned()).collect();

    assert_eq!(listed, signable_types());
    assert!(listed.len() >= 14, "a scan that sees nothing proves nothing: {listed:?}");
}

#[test]
fn no_two_types_have_the_same_tag() {
    let tags: BTreeSet<_> = kinds().iter().map(|kind| (kind.tag, kind.type_name)).collect();
    let distinct: BTreeSet<_> = tags.iter().map(|(tag, _)| tag).collect();

    assert_eq!(tags.len(), distinct.len(), "{tags:?}");
}

#[test]
fn everything_that_a_step_of_an_account_can_do_is_listed() {
    let steps = kinds().iter().filter(|kind| kind.type_name == "AccountOp").count();

    assert_eq!(steps, variants::<OpBody>().len());
}
