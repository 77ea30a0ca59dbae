//! API keys: what is asked for, and what is told of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Money;

/// What `POST keys` takes. One of the two budgets must be given, or `unlimited` be true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyBody {
    /// What to call it.
    pub name: String,
    /// Nano-credits in all.
    #[serde(default)]
    pub budget_nano: Option<u64>,
    /// Nano-credits in a day, from midnight to midnight UTC.
    #[serde(default)]
    pub per_day_nano: Option<u64>,
    /// Whether it may spend whatever the account has.
    #[serde(default)]
    pub unlimited: bool,
    /// Requests in any 60 seconds; 60 unless given.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Jobs at once; 8 unless given.
    #[serde(default)]
    pub jobs_at_once: Option<u32>,
}

/// A key, without its secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// Eight hexadecimal digits that name it.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// When it was made.
    pub created_ms: u64,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
    /// What it may spend in all.
    pub budget: Option<Money>,
    /// What it may spend in a day.
    pub per_day: Option<Money>,
    /// Requests in any 60 seconds.
    pub requests_per_minute: u32,
    /// Jobs at once.
    pub jobs_at_once: u32,
    /// Requests that were let through.
    pub requests: u64,
    /// Jobs that ended.
    pub jobs: u64,
    /// Tokens of their prompts.
    pub tokens_in: u64,
    /// Tokens of their answers.
    pub tokens_out: u64,
    /// What they cost.
    pub spent: Money,
    /// The same of jobs that began today, UTC.
    pub spent_today: Money,
    /// What is set aside for jobs that run.
    pub reserved: Money,
    /// When a request last came with it.
    pub last_used_ms: Option<u64>,
}

/// A key that was made.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyMadeView {
    /// The secret: shown here, and never again.
    pub key: String,
    /// The rest of it.
    #[serde(flatten)]
    pub info: KeyView,
}

impl std::fmt::Debug for KeyMadeView {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "KeyMadeView({:?})", self.info)
    }
}
