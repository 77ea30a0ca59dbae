//! Balances, receipts, checks of the store and audits of the books.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{JobView, Money, PriceView, SplitView};

// ------------------------------------------------------------------------------------------------- ledger

/// What an account has: `GET ledger/balance`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BalanceView {
    /// The account.
    pub account: String,
    /// What can be spent: `cash` and `earned`.
    pub available: Money,
    /// From deposits, tickets, payments, shares and markups; can be withdrawn.
    pub cash: Money,
    /// From serving under Exchange; buys priority.
    pub earned: Money,
    /// Escrowed in channels that this account opened, and not yet signed away.
    pub held: Money,
    /// Received in receipts and not yet redeemed.
    pub pending: Money,
    /// Open channels that this account pays in.
    pub channels_out: u32,
    /// Open channels that this account is paid in.
    pub channels_in: u32,
    /// The step that was signed and that the issuers have not confirmed: it may still change all of the above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<StepView>,
    /// Issuer only: everybody's accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub books: Option<BooksView>,
}

/// A step of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// Its id.
    pub id: String,
    /// What it does: `channel`, `payment`, `withdrawal`, `expiry`, `inception`, `rotation` or `noop`.
    pub kind: String,
    /// What it escrows or moves.
    pub amount: Money,
}

/// An issuer's books.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BooksView {
    /// All that ever came in.
    pub deposited: Money,
    /// All that ever went out.
    pub withdrawn: Money,
    /// Sum over all accounts of what they can spend.
    pub available: Money,
    /// Sum of what is escrowed in open channels.
    pub held: Money,
    /// Whether `available + held == deposited - withdrawn`.
    pub conserved: bool,
    /// The stated budget for tickets and grants.
    pub budget: Money,
    /// What is left of it.
    pub budget_left: Money,
    /// Every account.
    pub accounts: Vec<BookView>,
}

/// One account in an issuer's books.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BookView {
    /// The account.
    pub account: String,
    /// What it is for, where the issuer knows: `pool`, `network`, `member`.
    pub role: String,
    /// See [`BalanceView::cash`].
    pub cash: Money,
    /// See [`BalanceView::earned`].
    pub earned: Money,
    /// See [`BalanceView::held`].
    pub held: Money,
}

/// Receipts, newest first: `GET ledger/receipts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReceiptsView {
    /// A page of them.
    pub receipts: Vec<ReceiptView>,
    /// Give this as `before` for the next page; nothing at the end.
    pub next: Option<String>,
}

/// A receipt from this node's own store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReceiptView {
    /// Its id.
    pub id: String,
    /// Its channel.
    pub channel: String,
    /// Its number in the channel.
    pub seq: u64,
    /// `paid` or `received`.
    pub direction: String,
    /// Who pays.
    pub payer: String,
    /// Who is paid.
    pub payee: String,
    /// The model's name.
    pub model: String,
    /// All that was paid in the channel up to and with it.
    pub cumulative: Money,
    /// Calls up to and with it.
    pub calls: u64,
    /// Tokens of prompts up to and with it.
    pub tokens_in: u64,
    /// Tokens of answers up to and with it.
    pub tokens_out: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Whether both parties signed.
    pub cosigned: bool,
    /// Whether an issuer has acknowledged it, or a higher one of the channel.
    pub redeemed: bool,
}

/// One receipt with all that belongs to it: `GET ledger/receipts/{id}`, where the beginning of an id is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReceiptDetailView {
    /// The receipt.
    pub receipt: ReceiptView,
    /// Id of the terms it stands under.
    pub terms: String,
    /// What they ask.
    pub price: PriceView,
    /// How its cumulative amount is split.
    pub split: Vec<SplitView>,
    /// Jobs of its channel that this node still knows.
    pub jobs: Vec<JobView>,
    /// Whether the payer's signature verifies, checked now.
    pub payer_signature: bool,
    /// Whether the payee's signature verifies, checked now.
    pub payee_signature: bool,
}

/// What re-checking the whole ledger found: `POST ledger/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyView {
    /// Whether everything holds.
    pub ok: bool,
    /// Records read.
    pub records: u64,
    /// Signatures checked.
    pub signatures: u64,
    /// Receipts among the records.
    pub receipts: u64,
    /// Sums checked, each with its name.
    pub checks: Vec<CheckView>,
    /// What does not hold, in words.
    pub problems: Vec<String>,
    /// How long it took.
    pub took_ms: u64,
}

/// One thing that was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    /// What.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// The numbers.
    pub detail: String,
}

/// Which checkpoint to compute again: `POST ledger/audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditBody {
    /// Its epoch; the newest unless given.
    pub epoch: Option<u32>,
}

/// What computing a checkpoint again from the leaves that an issuer serves came to: `POST ledger/audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// Whether everything agrees.
    pub ok: bool,
    /// Epoch of the checkpoint.
    pub epoch: u64,
    /// Id of the checkpoint.
    pub checkpoint: String,
    /// Issuers that signed it.
    pub signatures: u32,
    /// Credits that ever entered, by the checkpoint.
    pub deposited: Money,
    /// Credits that ever left, by the checkpoint.
    pub withdrawn: Money,
    /// Accounts, computed from their leaves.
    pub accounts: TreeView,
    /// Open channels, computed from their leaves.
    pub channels: TreeView,
    /// This node's account in it.
    pub own: Option<OwnLeafView>,
    /// Node of the issuer whose leaves these are.
    pub issuer: Option<String>,
    /// Issuers that were asked before, in vain: another one is asked when one says nothing or something else than what a
    /// quorum has signed.
    pub distrusted: Vec<DistrustedView>,
    /// Pages fetched.
    pub pages: u32,
    /// What differs, in words.
    pub differences: Vec<String>,
}

/// An issuer whose leaves were not those of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DistrustedView {
    /// The issuer's node.
    pub issuer: String,
    /// Whether it serves something else than what a quorum has signed; otherwise it does not answer, or has forgotten.
    pub wrong: bool,
    /// What it came to.
    pub why: String,
}

/// A tree of a checkpoint, computed from its leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TreeView {
    /// The root computed.
    pub root: String,
    /// The root that the checkpoint states.
    pub stated: String,
    /// Leaves.
    pub count: u64,
    /// What can be spent and withdrawn; of channels, what they hold out of it.
    pub cash: Money,
    /// What can be spent only; of channels, what they hold out of it.
    pub earned: Money,
    /// What accounts have in open channels.
    pub held: Money,
}

/// This node's account in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OwnLeafView {
    /// What can be spent and withdrawn.
    pub cash: Money,
    /// What can be spent only.
    pub earned: Money,
    /// What open channels hold.
    pub held: Money,
    /// Steps taken.
    pub steps: u64,
}

/// What a node knows of the issuers' books.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BooksStateView {
    /// Epoch of the newest checkpoint; none before the first.
    pub checkpoint_epoch: Option<u64>,
    /// Its id.
    pub checkpoint: Option<String>,
    /// What became of the proof of this node's account in it: `proved`, `included`, `absent`, `wrong`, or `waiting`.
    pub own_leaf: String,
    /// What cannot be with honest issuers: the kind, and in words.
    pub findings: Vec<(String, String)>,
    /// Proofs that somebody signed two records where one can stand.
    pub equivocations: Vec<String>,
}

/// What to keep when the journal is pruned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneBody {
    /// For how many epochs after their end the lines of channels are kept all the same; as configured unless given.
    #[serde(default)]
    pub keep_epochs: Option<u32>,
}

/// What pruning the journal did: `POST ledger/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PruneView {
    /// Of channels that were over before this epoch, grace included, only sums are left.
    pub before: u32,
    /// Records there were, without those of the newest segment.
    pub records: u64,
    /// Of them, those that are gone.
    pub dropped: u64,
    /// And those that became the sum of what a channel moved in an epoch.
    pub folded: u64,
    /// Bytes of the journal, without its newest segment.
    pub bytes_before: u64,
    /// Bytes of the same now.
    pub bytes_after: u64,
}

/// What closing and redeeming did: `POST ledger/settle`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettleView {
    /// Idle channels closed.
    pub closed: u32,
    /// Receipts redeemed.
    pub redeemed: u32,
    /// Channels still open, because a job runs on them or the other side does not answer, with one that the issuers are
    /// about to open.
    pub open: u32,
}
