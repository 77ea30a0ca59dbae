//! What is said of payments, deposits, withdrawals, channels and statements.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Money;

/// What steps cost: `GET account/fees`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FeesView {
    /// For opening a channel.
    pub open: Money,
    /// For a payment to an account.
    pub pay: Money,
    /// For a withdrawal.
    pub withdraw: Money,
}

/// What `POST account/payments` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PayBody {
    /// Account that receives it.
    pub account: String,
    /// Nano-credits.
    pub nano: u64,
}

/// A payment that the issuer has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PayView {
    /// Id of the step.
    pub step: String,
    /// Account that received it.
    pub account: String,
    /// What it received.
    pub amount: Money,
    /// What it cost beside.
    pub fee: Money,
    /// Cash that is left.
    pub cash: Money,
}

/// What `POST network/deposits` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DepositBody {
    /// Account that receives it.
    pub account: String,
    /// Nano-credits.
    pub nano: u64,
    /// Names the payment outside.
    pub reference: String,
}

/// A deposit from outside. Among several issuers it counts when as many operators as are needed have signed the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DepositView {
    /// Account that received it.
    pub account: String,
    /// How much.
    pub amount: Money,
    /// Names the payment outside.
    pub reference: String,
    /// False if it had been booked before, or more operators have to sign it.
    pub booked: bool,
    /// Operators that have signed it, as far as this node knows.
    pub signed: usize,
    /// Operators that must: it is booked as soon as they have.
    pub needed: usize,
    /// Operators that have signed another account or amount under this reference.
    pub differing: usize,
    /// What the account can spend now.
    pub available: Money,
}

/// What `POST account/withdrawals` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WithdrawBody {
    /// Nano-credits.
    pub nano: u64,
    /// Where the issuer's operator shall pay it.
    pub to: String,
}

/// What `POST network/withdrawals/{id}/paid` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PaidBody {
    /// The operator's reference of the payment outside.
    pub reference: String,
}

/// A withdrawal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WithdrawalView {
    /// Id of the step that withdrew.
    pub id: String,
    /// Whose it was.
    pub account: String,
    /// What is paid out.
    pub amount: Money,
    /// Where to; none while the issuer has not been told.
    pub to: Option<String>,
    /// `settling` at an issuer until a checkpoint states it, then `requested`, and `paid` in the end.
    pub state: String,
    /// The operator's reference, once it is paid.
    pub reference: Option<String>,
    /// Node of the issuer whose operator has paid it, or whose turn it is to pay.
    pub payer: Option<String>,
}

/// A channel of this node, open or not: an element of `GET ledger/channels`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LedgerChannelView {
    /// The channel.
    pub id: String,
    /// `paying` or `paid`: this node's side.
    pub side: String,
    /// `open`, `closing` or `ended`.
    pub state: String,
    /// The other account.
    pub partner: String,
    /// The model.
    pub model: String,
    /// The most base that it can pay.
    pub cap: Money,
    /// Base that no job has a claim to; nothing once it has ended.
    pub room: Money,
    /// Base that the newest receipt states.
    pub paid: Money,
    /// Base that the issuer has paid out.
    pub redeemed: Money,
    /// The newest receipt, if there is one.
    pub receipt: Option<String>,
    /// Last epoch in which it takes jobs; unknown once it has ended.
    pub expires: Option<u32>,
}

/// What moved on the account: `GET ledger/statement`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatementView {
    /// The account.
    pub account: String,
    /// First epoch.
    pub from: u32,
    /// Last epoch.
    pub to: u32,
    /// What the lines before add up to.
    pub opening: Money,
    /// The lines, oldest first.
    pub lines: Vec<StatementLine>,
    /// What all lines up to the last epoch add up to: what the account then had, channels included.
    pub closing: Money,
}

/// One movement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatementLine {
    /// Epoch in which the issuer booked it.
    pub epoch: u32,
    /// `deposit`, `received`, `paid`, `withdrawn`, `fee`, `bought` or `sold`.
    pub kind: String,
    /// What came in.
    pub credit: Money,
    /// What went out, with fees.
    pub debit: Money,
    /// The other account.
    pub partner: Option<String>,
    /// The deposit, step or receipt that shows it; `ledger show` follows it.
    pub record: Option<String>,
    /// The channel on which it was paid.
    pub channel: Option<String>,
}

/// Anything in the ledger that has an id: `GET ledger/entries/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EntryView {
    /// `deposit`, `step`, `channel` or `job`.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// What is known of it.
    pub facts: Vec<FactView>,
    /// Ids to which it leads.
    pub follow: Vec<FactView>,
}

/// A fact with its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FactView {
    /// What it is.
    pub name: String,
    /// What it says.
    pub value: String,
}
