//! Who may serve a model, and what is due for it.

use serde::{Deserialize, Serialize};

use crate::ids::{DomainId, ModelId, RecordId};
use crate::signed::{Signable, id_of};

/// A creator's conditions for one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Licence {
    /// Model it is about.
    pub model: ModelId,
    /// What it grants.
    pub kind: LicenceKind,
    /// To whom.
    pub scope: Scope,
}

/// What a licence grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LicenceKind {
    /// Everybody in scope may serve the model, and nothing is due.
    Open,
}

/// Which providers a licence speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// People.
    Community,
    /// Accounts with a class certificate.
    Company,
    /// Everybody.
    Both,
}

impl Signable for Licence {
    const TAG: &'static str = "licence";
}

/// Returns the id of the licence that opens `model` to everybody: the one that holds for a model nobody enrolled.
#[must_use]
pub fn open_licence(model: ModelId, domain: DomainId) -> RecordId {
    id_of(&Licence { model, kind: LicenceKind::Open, scope: Scope::Both }, domain)
}
