//! What the local API says and hears, as JSON; the driver fills these in and the command line reads them.
//!
//! Ids are lowercase hexadecimal. Money is [`Money`]. Times are Unix milliseconds, durations say their unit.

mod transfers;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::exit::Failure;

pub use transfers::*;

/// Nano-credits in a credit.
pub const NANO_PER_CREDIT: u64 = 1_000_000_000;

/// An amount, exact for machines and readable for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Money {
    /// Nano-credits.
    pub nano: u64,
    /// The same in credits, such as `1.5`.
    pub credits: String,
}

impl Money {
    /// Makes an amount of nano-credits.
    #[must_use]
    pub fn from_nano(nano: u64) -> Self {
        Self { nano, credits: format_credits(nano) }
    }
}

impl NetworkView {
    /// Returns how many issuers can be spoken to now.
    #[must_use]
    pub fn issuers_reachable(&self) -> usize {
        self.issuers.iter().filter(|issuer| issuer.reachable).count()
    }
}

impl From<u64> for Money {
    fn from(nano: u64) -> Self {
        Self::from_nano(nano)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} credits", self.credits)
    }
}

/// Returns nano-credits as credits without needless zeros.
#[must_use]
pub fn format_credits(nano: u64) -> String {
    let whole = nano / NANO_PER_CREDIT;
    let part = format!("{:09}", nano % NANO_PER_CREDIT);
    match part.trim_end_matches('0') {
        "" => whole.to_string(),
        part => format!("{whole}.{part}"),
    }
}

/// Reads credits such as `2`, `0.25` or `1_000`; at most nine decimals, never negative.
pub fn parse_credits(text: &str) -> Result<u64, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "`{text}` is not an amount of credits: write a number such as 2 or 0.25, with at most 9 decimals"
        ))
    };
    let text = text.replace('_', "");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 9 || !digits(whole) || !digits(part) {
        return Err(wrong());
    }

    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let part: u64 = format!("{part:0<9}").parse().map_err(|_| wrong())?;
    whole.checked_mul(NANO_PER_CREDIT).and_then(|nano| nano.checked_add(part)).ok_or_else(wrong)
}

/// What a model's provider asks per million tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceView {
    /// For a million tokens of prompts.
    pub input_per_million: Money,
    /// For a million tokens of answers.
    pub output_per_million: Money,
}

// ---------------------------------------------------------------------------------------------- this node

/// This node: `GET status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of the program.
    pub version: String,
    /// What its owner calls it.
    pub name: String,
    /// Its node id.
    pub node: String,
    /// Its owner's account.
    pub account: String,
    /// Whether it takes jobs: listening, joined, and the models it was told to serve are loaded or given up.
    pub ready: bool,
    /// What is still to be done until then, in words.
    pub waiting_for: Vec<String>,
    /// The network it is in.
    pub network: NetworkView,
    /// Where it listens, with the node id, so that another node can dial it.
    pub addresses: Vec<String>,
    /// Time since start.
    pub uptime_ms: u64,
    /// Nodes connected now.
    pub peers: u32,
    /// Models it serves.
    pub models: Vec<ServedModelView>,
    /// Jobs it works on for others.
    pub jobs_serving: u32,
    /// Jobs it submitted that still run.
    pub jobs_submitted: u32,
    /// What it can spend.
    pub available: Money,
    /// Home networks seen on this LAN and not joined.
    pub nearby: Vec<NearbyView>,
    /// What the owner should look at, in words.
    pub warnings: Vec<String>,
    /// Counts of what peers did wrong, by name.
    pub offences: Vec<(String, u64)>,
    /// What it knows of the issuers' books.
    #[serde(default)]
    pub books: BooksStateView,
    /// The directory of its data.
    pub data: String,
}

/// The network a node is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether this node is its issuer.
    pub issuer: bool,
    /// Its issuers.
    pub issuers: Vec<IssuerView>,
    /// How many of them must agree.
    #[serde(default)]
    pub quorum: u32,
    /// Whether it permits the fake engine.
    pub dev: bool,
    /// The epoch it is in.
    pub epoch: u64,
    /// Issuer only: what is left of the stated budget for its tickets and grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_left: Option<Money>,
}

/// One issuer of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerView {
    /// The node that speaks for it.
    pub node: String,
    /// The key with which it signs.
    pub key: String,
    /// Whether it can be spoken to now, or is this node.
    pub reachable: bool,
}

/// A home network seen on this LAN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearbyView {
    /// Its id.
    pub network: String,
    /// The name of the node that was seen.
    pub name: String,
    /// Where it was seen.
    pub address: String,
    /// The command that joins it.
    pub join: String,
}

/// A connected node: `GET peers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Its node id.
    pub node: String,
    /// What its owner calls it, where it said so.
    pub name: Option<String>,
    /// Its account, where it said so.
    pub account: Option<String>,
    /// `quic`, `tcp` or `relay`.
    pub transport: String,
    /// Where it is.
    pub address: String,
    /// Who dialled: `in` or `out`.
    pub direction: String,
    /// Last round-trip time in microseconds.
    pub rtt_us: Option<u64>,
    /// Time connected.
    pub connected_ms: u64,
    /// Models it serves.
    pub models: Vec<String>,
    /// Offences counted against it.
    pub offences: u32,
}

/// A provider of a model, from its last advert: `GET providers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProviderView {
    /// Its node id.
    pub node: String,
    /// Its account.
    pub account: String,
    /// What its owner calls it.
    pub name: String,
    /// Whether it is this node.
    pub local: bool,
    /// The model's name.
    pub model: String,
    /// The model's id.
    pub model_id: String,
    /// What it asks.
    pub price: PriceView,
    /// Jobs at once.
    pub slots: u32,
    /// Slots taken.
    pub busy: u32,
    /// Measured speed of one answer in thousandths of tokens per second.
    pub tokens_per_s_milli: u64,
    /// Prompt and answer together.
    pub context: u32,
    /// How weights are stored.
    pub quantisation: String,
    /// The licence's identifier.
    pub licence: String,
    /// `exchange`, `rewards` or `mission`.
    pub incentive: String,
    /// `community` or `company`.
    pub class: String,
    /// The region it claims.
    pub region: Option<String>,
    /// The device's kind, `cpu` or `cuda`.
    pub device: String,
    /// The device's own name.
    pub device_name: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// Last round-trip time in microseconds.
    pub rtt_us: Option<u64>,
    /// When the advert ends.
    pub expires_ms: u64,
}

/// A model that this node serves: part of `GET status` and all of `GET models`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServedModelView {
    /// Its name.
    pub name: String,
    /// Its id in the network.
    pub model_id: String,
    /// `loading`, `ready`, `restarting`, `failed` or `stopping`.
    pub state: String,
    /// More on the state: percent loaded, why it failed and what to do.
    pub detail: String,
    /// What this node asks.
    pub price: PriceView,
    /// Jobs at once.
    pub slots: u32,
    /// Slots taken.
    pub busy: u32,
    /// Measured speed of one answer in thousandths of tokens per second.
    pub tokens_per_s_milli: u64,
    /// Prompt and answer together.
    pub context: u32,
    /// The device's kind and name.
    pub device: String,
    /// Process id of the worker.
    pub worker_pid: Option<u32>,
    /// How often the worker was started again.
    pub restarts: u32,
}

// --------------------------------------------------------------------------------------------------- jobs

/// What `POST jobs` takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobBody {
    /// The model's name or id.
    pub model: String,
    /// The prompt, as one user message. Either this or `messages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Put before `prompt` as a system message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// A whole chat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<MessageBody>,
    /// The most tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 to 2; 0 always takes the likeliest token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Above 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// 0 keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// 1 changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Strings that end the answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Where the randomness comes from; random by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The most that the whole job may cost, in nano-credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_price_nano: Option<u64>,
    /// Only these nodes, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// The job's id, 32 hexadecimal digits, unique; random by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

/// One message of a chat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageBody {
    /// `system`, `user`, `assistant` or what the model's template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What happens to a job, in order: one server-sent event each, with `type` as the event's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobEvent {
    /// A provider was chosen; again when an attempt failed and another provider continues.
    Chosen {
        /// The job.
        job: String,
        /// The chosen node.
        provider: String,
        /// Everybody who was considered, the chosen one first.
        why: Vec<CandidateView>,
    },
    /// The provider took the job.
    Accepted {
        /// Tokens of the prompt.
        tokens_in: u32,
        /// The most that it can cost.
        price_max: Money,
    },
    /// The next part of the answer.
    Text {
        /// Whole characters.
        text: String,
        /// Index of the first token of this part.
        index: u32,
        /// Tokens in this part.
        tokens: u32,
    },
    /// The answer is complete; nothing follows.
    Done(Box<JobAccount>),
    /// The job ended without a complete answer; nothing follows.
    Failed {
        /// Why, and what to do.
        #[serde(flatten)]
        failure: Failure,
        /// What was delivered and paid until then, where anything was.
        account: Option<Box<JobAccount>>,
    },
}

impl JobEvent {
    /// Returns the event's name on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Chosen { .. } => "chosen",
            Self::Accepted { .. } => "accepted",
            Self::Text { .. } => "text",
            Self::Done(_) => "done",
            Self::Failed { .. } => "failed",
        }
    }

    /// Returns whether nothing follows.
    #[must_use]
    pub fn is_last(&self) -> bool {
        match self {
            Self::Chosen { .. } | Self::Accepted { .. } | Self::Text { .. } => false,
            Self::Done(_) | Self::Failed { .. } => true,
        }
    }
}

/// A provider that was considered for a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CandidateView {
    /// Its node id.
    pub node: String,
    /// What its owner calls it.
    pub name: String,
    /// Whether it was taken.
    pub chosen: bool,
    /// The name of the gate at which it was rejected, or why it was taken.
    pub reason: String,
    /// What the job was estimated to cost there.
    pub price: Option<Money>,
    /// How long the job was estimated to take there.
    pub estimate_ms: Option<u64>,
}

/// The account of a job that ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobAccount {
    /// The job's id.
    pub job: String,
    /// The model's name.
    pub model: String,
    /// The provider's node id.
    pub provider: String,
    /// What its owner calls it.
    pub provider_name: String,
    /// The provider's account.
    pub provider_account: String,
    /// Why it was chosen, in words.
    pub why: String,
    /// Tokens of the prompt.
    pub tokens_in: u32,
    /// Tokens of the answer.
    pub tokens_out: u32,
    /// From submission to the first token.
    pub ttft_ms: u64,
    /// From submission to the end.
    pub total_ms: u64,
    /// Tokens per second after the first.
    pub tokens_per_s: f64,
    /// What it cost.
    pub price: Money,
    /// How the price is split; the lines add up to the price.
    pub split: Vec<SplitView>,
    /// Id of the receipt that covers it, where one was signed.
    pub receipt: Option<String>,
    /// `stop`, `length` or `cancelled`.
    pub finish: String,
    /// BLAKE3 of the answer's text.
    pub text_digest: String,
    /// How many providers worked on it.
    pub attempts: u32,
}

/// One line of a split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitView {
    /// `provider`, `creator`, `pool`, `network`, `builder`, a cause's name, or `pending` for what waits in the
    /// channel until a quantum is full.
    pub role: String,
    /// Who gets it.
    pub account: String,
    /// Its share of the base price in ten-thousandths.
    pub bps: u32,
    /// How much.
    pub amount: Money,
}

/// A job from this node's own ledger: `GET jobs/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// The job's id.
    pub job: String,
    /// `consumer` or `provider`: what this node was in it.
    pub role: String,
    /// `placed`, `running`, `settled` or `failed`.
    pub state: String,
    /// More on the state.
    pub detail: String,
    /// The model's name.
    pub model: String,
    /// The other node.
    pub peer: String,
    /// Tokens of the prompt.
    pub tokens_in: u32,
    /// Tokens of the answer.
    pub tokens_out: u32,
    /// What it cost.
    pub price: Money,
    /// Id of the receipt that covers it, as this node's ledger holds it with both signatures.
    pub receipt: Option<String>,
    /// The channel it was paid in.
    pub channel: Option<String>,
    /// When it began.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Why its provider was chosen and each other was not.
    pub why: Vec<CandidateView>,
}

// ------------------------------------------------------------------------------------------------- ledger

/// What an account has: `GET ledger/balance`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceView {
    /// The account.
    pub account: String,
    /// What can be spent: `cash` and `earned`.
    pub available: Money,
    /// From deposits, tickets and Rewards; can be withdrawn.
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
    /// Issuer only: everybody's accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub books: Option<BooksView>,
}

/// An issuer's books.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptsView {
    /// A page of them.
    pub receipts: Vec<ReceiptView>,
    /// Give this as `before` for the next page; nothing at the end.
    pub next: Option<String>,
}

/// A receipt from this node's own store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// What.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// The numbers.
    pub detail: String,
}

/// Which checkpoint to compute again: `POST ledger/audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditBody {
    /// Its epoch; the newest unless given.
    pub epoch: Option<u32>,
}

/// What computing a checkpoint again from the leaves that the issuer serves came to: `POST ledger/audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Pages fetched.
    pub pages: u32,
    /// What differs, in words.
    pub differences: Vec<String>,
}

/// A tree of a checkpoint, computed from its leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What closing and redeeming did: `POST ledger/settle`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleView {
    /// Idle channels closed.
    pub closed: u32,
    /// Receipts redeemed.
    pub redeemed: u32,
    /// Channels still open, because a job runs on them or the other side does not answer.
    pub open: u32,
}

// ------------------------------------------------------------------------------------------------ network

/// What `POST network/tickets` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketBody {
    /// The opening amount.
    #[serde(default)]
    pub credits_nano: u64,
}

/// A ticket: `POST network/tickets`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantBody {
    /// The account.
    pub account: String,
    /// How much.
    pub nano: u64,
}

/// A deposit out of the budget: `POST network/grants`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateBody {
    /// Seed of the promised key.
    pub key: String,
    /// Promise of the key after it.
    pub next: String,
}

/// What `POST account/devices` takes; without rights it revokes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What `POST models` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadBody {
    /// A name from the catalogue or the path of a file.
    pub model: String,
}

/// A failure as HTTP has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// The failure.
    pub error: ErrorBody,
}

/// The failure inside an [`ErrorView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What happened and what to do.
    pub message: String,
    /// The class of failure that clients of this kind of API know.
    #[serde(rename = "type")]
    pub class: String,
    /// The kind, see [`crate::exit::FailureKind`].
    pub code: crate::exit::FailureKind,
    /// See [`Failure::reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// See [`Failure::retry_after_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_printed_and_read_back_exactly() {
        for nano in [0, 1, 999_999_999, NANO_PER_CREDIT, 1_500_000_000, u64::MAX] {
            assert_eq!(parse_credits(&format_credits(nano)), Ok(nano));
        }
        assert_eq!(format_credits(1_500_000_000), "1.5");
        assert_eq!(parse_credits("1_000"), Ok(1_000 * NANO_PER_CREDIT));
    }

    #[test]
    fn amounts_that_are_not_exact_are_refused() {
        for text in ["", ".", "-1", "1.0000000001", "1e3", "nan", "18446744074", ".5", "1,5"] {
            assert!(parse_credits(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_job_event_survives_json() {
        let event = JobEvent::Failed {
            failure: Failure::new(crate::exit::FailureKind::NoCredits, "too little").retry_after(5),
            account: None,
        };

        let json = serde_json::to_string(&event).expect("plain");

        assert!(json.contains(r#""type":"failed","kind":"no_credits""#), "{json}");
        assert_eq!(serde_json::from_str::<JobEvent>(&json).expect("ours"), event);
    }
}
