//! Accounts, the nodes that act for them, and what an operator hands out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Money;

// ------------------------------------------------------------------------------------------------ network

/// What `POST network/tickets` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketBody {
    /// The opening amount.
    #[serde(default)]
    pub credits_nano: u64,
}

/// A ticket: `POST network/tickets`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TicketView {
    /// The string with which one other machine joins.
    pub ticket: String,
    /// The network it is for.
    pub network: String,
    /// The amount it carries.
    pub credits: Money,
    /// When it ends, if it does.
    pub expires_ms: Option<u64>,
    /// What is left of the stated budget.
    pub budget_left: Money,
    /// The command for the other machine.
    pub join: String,
}

/// What `POST network/grants` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantBody {
    /// The account.
    pub account: String,
    /// How much.
    pub nano: u64,
}

/// A deposit out of the budget: `POST network/grants`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrantView {
    /// The account.
    pub account: String,
    /// How much.
    pub credits: Money,
    /// What the account can spend now.
    pub available: Money,
    /// What is left of the stated budget.
    pub budget_left: Money,
    /// Id of the deposit's record.
    pub record: String,
}

/// The account: `GET account`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountView {
    /// Its id, which no rotation changes.
    pub account: String,
    /// Its key in force.
    pub key: String,
    /// Whether this node holds that key.
    pub held: bool,
    /// Whether the key is kept in an encrypted file.
    pub encrypted: bool,
    /// Whether the key can be replaced.
    pub rotatable: bool,
    /// How often it was.
    pub rotations: u32,
    /// Position of its next step, once an issuer has said.
    pub sequence: Option<u64>,
    /// The node that signs its steps.
    pub wallet_node: String,
    /// Whether that is this node.
    pub is_wallet: bool,
    /// Whether this node may serve for it.
    pub serve: bool,
    /// Whether this node may submit jobs that it pays.
    pub spend: bool,
    /// The epoch now.
    pub epoch: u32,
    /// Last epoch in which this node may, unless that is renewed.
    pub expires_epoch: u32,
    /// `none`, `pending`, or why the issuers refused it.
    pub rotation: String,
    /// Other nodes that may act for it, or may no longer.
    pub devices: Vec<DeviceView>,
}

/// A node that was authorised, or revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    /// The node.
    pub node: String,
    /// Whether it may serve.
    pub serve: bool,
    /// Whether it may submit jobs that the account pays.
    pub spend: bool,
    /// Counts the changes.
    pub version: u32,
    /// Last epoch in which it may.
    pub until_epoch: u32,
    /// What may be escrowed for it in an epoch.
    pub budget: Money,
}

/// What `POST account/rotate` takes; the key is a secret.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateBody {
    /// Seed of the promised key.
    pub key: String,
    /// Promise of the key after it.
    pub next: String,
}

/// What `POST account/devices` takes; without rights it revokes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthoriseBody {
    /// The node.
    pub node: String,
    /// Whether it may serve.
    #[serde(default)]
    pub serve: bool,
    /// Whether it may submit jobs that the account pays.
    #[serde(default)]
    pub spend: bool,
    /// Last epoch in which it may.
    #[serde(default)]
    pub until_epoch: Option<u32>,
    /// For how many days it may, where no epoch is named.
    #[serde(default)]
    pub days: u32,
    /// Nano-credits that may be escrowed for it in an epoch.
    #[serde(default)]
    pub budget_nano: u64,
}

/// What a node that was authorised must be given: `POST account/devices`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DelegationView {
    /// The node.
    pub node: String,
    /// The account.
    pub account: String,
    /// Whether it may serve.
    pub serve: bool,
    /// Whether it may submit jobs that the account pays.
    pub spend: bool,
    /// Counts the changes.
    pub version: u32,
    /// For `sharemesh up --device` on that node; none when it was revoked.
    pub delegation: Option<String>,
}
