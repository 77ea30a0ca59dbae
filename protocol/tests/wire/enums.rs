//! The closed enums inside messages and lines: a variant keeps its number, and new ones come at the end.

use std::fmt::{Debug, Write as _};

use protocol::advert::{Incentive, ProviderClass};
use protocol::agreeing::{AgreedRecord, Agreeing};
use protocol::books::{BooksMessage, BooksRecord, LeafKind, Leaves};
use protocol::forward::{Entry, Happened};
use protocol::job::{Finish, Sort};
use protocol::ledger::equivocation::Equivocation;
use protocol::ledger::finding::Finding;
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::quorum::Fact;
use protocol::ledger::records::{OpBody, SplitRole, TermsError};
use protocol::licence::{LicenceKind, Scope};
use protocol::manifest::Admission;
use protocol::message::{JoinError, Message, SpendRefusal, Wire};
use protocol::model::Modality;
use protocol::record::Record;
use protocol::scheduler::Refusal;
use protocol::signed::Role;
use protocol::statement::Kind;
use serde::de::DeserializeOwned;

/// Returns the names of an enum's variants in the order of their numbers: its number and zeros are a value of each.
pub(crate) fn variants<E: DeserializeOwned + Debug>() -> Vec<String> {
    let value = |number: u8| {
        let mut bytes = [0; 1024];
        bytes[0] = number;
        postcard::take_from_bytes::<E>(&bytes).ok().map(|(value, _)| first_word(&value))
    };
    (0..=u8::MAX).map_while(value).collect()
}

/// Returns the name of a value's variant.
pub(crate) fn first_word(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().expect("at least one").to_owned()
}

/// Returns the variants of every enum with their numbers, as the vectors have them.
pub(crate) fn table() -> String {
    let mut table = String::new();
    let mut list = |name: &str, variants: Vec<String>| {
        assert!(!variants.is_empty(), "{name} has no variant that zeros are a value of");
        for (number, variant) in variants.iter().enumerate() {
            writeln!(table, "{name} {number} {variant}").expect("a string takes everything");
        }
    };
    list("Admission", variants::<Admission>());
    list("AgreedRecord", variants::<AgreedRecord>());
    list("Agreeing", variants::<Agreeing<Wire>>());
    list("BooksMessage", variants::<BooksMessage<Wire>>());
    list("BooksRecord", variants::<BooksRecord>());
    list("Entry", variants::<Entry>());
    list("Equivocation", variants::<Equivocation<Wire>>());
    list("Fact", variants::<Fact<Wire>>());
    list("Finding", variants::<Finding>());
    list("Finish", variants::<Finish>());
    list("Happened", variants::<Happened>());
    list("Incentive", variants::<Incentive>());
    list("IssuerError", variants::<IssuerError>());
    list("JoinError", variants::<JoinError>());
    list("Kind", variants::<Kind>());
    list("LeafKind", variants::<LeafKind>());
    list("Leaves", variants::<Leaves>());
    list("LicenceKind", variants::<LicenceKind>());
    list("Message", variants::<Message<Wire>>());
    list("Modality", variants::<Modality>());
    list("OpBody", variants::<OpBody>());
    list("ProviderClass", variants::<ProviderClass>());
    list("Record", variants::<Record>());
    list("Refusal", variants::<Refusal>());
    list("Role", variants::<Role>());
    list("Scope", variants::<Scope>());
    list("Sort", variants::<Sort>());
    list("SpendRefusal", variants::<SpendRefusal>());
    list("SplitRole", variants::<SplitRole>());
    list("TermsError", variants::<TermsError>());
    table
}
