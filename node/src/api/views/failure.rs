//! Failures as HTTP has them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A failure as HTTP has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// The failure.
    pub error: ErrorBody,
}

/// The failure inside an [`ErrorView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What happened and what to do.
    pub message: String,
    /// The class of failure that clients of this kind of API know.
    #[serde(rename = "type")]
    pub class: String,
    /// Which part of the request is meant, where that is known.
    #[serde(default)]
    pub param: Option<String>,
    /// The kind, see [`crate::exit::FailureKind`].
    pub code: crate::exit::FailureKind,
    /// See [`crate::exit::Failure::reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// See [`crate::exit::Failure::retry_after_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}
