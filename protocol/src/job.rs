//! A job as the protocol sees it: sizes and digests, never the prompt or the answer.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ChannelId, Digest, JobId, ModelId, NodeId, RecordId};
use crate::ledger::issuer::IssuerError;
use crate::ledger::money::most_with_markup;
use crate::ledger::records::{Markup, SplitRole};
use crate::model::Modality;
use crate::mutant;
use crate::price::{Price, Reading, Usage, Worst};
use crate::router::Considered;
use crate::time::Time;

/// Tokens that templates and special tokens may add to a prompt; no more than this and one token a byte is believed.
pub const TEMPLATE_TOKENS_MAX: u64 = 512;

/// Special tokens that each text may add that becomes a vector: one before it, one after it.
pub const TEXT_TOKENS_ADDED_MAX: u64 = 2;

/// Most tokens that one text may have that becomes a vector: no engine reads more of one.
pub const TEXT_TOKENS_MAX: u64 = 2_048;

/// Most tokens that one job may ask for: bounds reservations and streams.
pub const JOB_TOKENS_MAX: u32 = 1 << 17;

/// Most bytes of one prompt.
pub const INPUT_BYTES_MAX: u64 = 8 << 20;

/// What is to be done, as the requester's shell hands it to the core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Model that shall answer.
    pub model: ModelId,
    /// The prompt, by digest.
    pub input: Input,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Most tokens to generate; of a job for vectors as many as there are texts, since each vector counts as a token.
    pub max_tokens: u32,
    /// What the requester insists on.
    pub constraints: Constraints,
    /// Who routed the job, and what they get on top of its price.
    pub markup: Option<Markup>,
    /// Names the request that the job is a part of in the logs of both sides.
    pub trace: Trace,
}

/// The name of a request in logs: the trace id of W3C's `traceparent`. It says nothing of the request.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace(pub [u8; 16]);

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A prompt by size and digest; its bytes stay with the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Digest of the body that travels beside the message.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// Its kind.
    pub modality: Modality,
}

/// How tokens are drawn; integers, so that both sides mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Temperature in thousandths; 0 takes the likeliest token.
    pub temperature_milli: u32,
    /// Nucleus in thousandths.
    pub top_p_milli: u32,
    /// Number of likeliest tokens considered; 0 considers all.
    pub top_k: u32,
    /// Repetition penalty in thousandths.
    pub repetition_penalty_milli: u32,
    /// Makes draws repeatable.
    pub seed: u64,
}

/// What a requester insists on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraints {
    /// Most nano-credits for the whole job, in the worst case.
    pub price_max: Option<u64>,
    /// Only these providers, when not empty.
    pub only: Box<[NodeId]>,
    /// Never these providers.
    pub ignore: Box<[NodeId]>,
    /// What to weigh.
    pub sort: Sort,
    /// These first, in this order, before anything is weighed.
    pub order: Box<[NodeId]>,
}

impl Constraints {
    /// Says whether `node` may serve a job of its own owner, as it does before it looks for others: it is allowed, and
    /// nobody else is named before it.
    #[must_use]
    pub fn may_stay(&self, node: NodeId) -> bool {
        let is_allowed = self.only.is_empty() || self.only.contains(&node);
        let is_first = self.order.first().is_none_or(|first| *first == node);
        is_allowed && is_first && !self.ignore.contains(&node)
    }
}

/// What the router weighs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sort {
    /// Time and price alike.
    #[default]
    Balanced,
    /// Price first.
    Price,
    /// Estimated total time first.
    Latency,
    /// Tokens per second of one answer first.
    Throughput,
}

impl JobSpec {
    /// Returns the most that this job can be counted as.
    #[must_use]
    pub fn worst_usage(&self) -> Usage {
        Usage {
            calls: 1,
            tokens_in: self.tokens_in_max(),
            tokens_out: u64::from(self.max_tokens),
            compute: 0,
        }
    }

    /// Returns the same with how its prompt is counted.
    #[must_use]
    pub fn worst(&self) -> Worst {
        let reading = match self.input.modality {
            Modality::Embedding => Reading::ByPart,
            Modality::Text | Modality::Speech | Modality::Image => Reading::Whole,
        };
        Worst { usage: self.worst_usage(), reading }
    }

    /// Returns the most that this job can take off its payer at a price, markup included; `None` when it does not fit 64
    /// bits.
    #[must_use]
    pub fn worst_price(&self, price: &Price) -> Option<u64> {
        let bps = if mutant::is_in("price-max-without-markup") { 0 } else { self.markup_bps() };
        most_with_markup(price.cost(&self.worst_usage())?, bps).ok()
    }

    /// Returns the markup in basis points of the base; 0 without one.
    #[must_use]
    pub fn markup_bps(&self) -> u16 {
        self.markup.map_or(0, |markup| markup.bps)
    }

    /// Returns the most prompt tokens that the requester believes.
    #[must_use]
    pub fn tokens_in_max(&self) -> u64 {
        let bytes = self.input.bytes;
        match self.input.modality {
            // Each of the texts has its own special tokens, and none is read beyond a context.
            Modality::Embedding => {
                let texts = u64::from(self.max_tokens);
                let read = bytes.saturating_add(texts.saturating_mul(TEXT_TOKENS_ADDED_MAX));
                read.min(texts.saturating_mul(TEXT_TOKENS_MAX))
            }
            Modality::Text | Modality::Speech | Modality::Image => bytes.saturating_add(TEMPLATE_TOKENS_MAX),
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model or a stop string ended it.
    Stop,
    /// The token limit ended it.
    Length,
    /// The requester ended it.
    Cancelled,
    /// The connection or the engine was lost.
    Lost,
}

/// What both sides keep of a finished job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job.
    pub job: JobId,
    /// Channel that paid for it; none when it ran at home, for nothing.
    pub channel: Option<ChannelId>,
    /// Node that served it.
    pub provider: NodeId,
    /// Node that asked for it.
    pub requester: NodeId,
    /// Model.
    pub model: ModelId,
    /// What was delivered.
    pub usage: Usage,
    /// Price table.
    pub price: Price,
    /// When it was accepted.
    pub start: Time,
    /// When it ended.
    pub end: Time,
    /// Digest of the prompt.
    pub input: Digest,
    /// Digest over the token ids, or over the numbers of the vectors.
    pub output: Digest,
    /// Why it ended.
    pub finish: Finish,
}

/// What the requester's shell learns of its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// A provider was chosen, for these reasons.
    Chosen {
        /// The provider.
        provider: NodeId,
        /// Everybody who was considered.
        considered: Vec<Considered>,
        /// For how many milliseconds the job waited for a channel.
        opening_ms: u64,
    },
    /// The provider took the job.
    Accepted {
        /// Prompt tokens it counted.
        tokens_in: u32,
    },
    /// The job ended and is accounted for.
    Done(JobAccount),
    /// The job failed; whatever was delivered is accounted for all the same.
    Failed {
        /// Why.
        failure: Failure,
        /// What was delivered and paid, when anything was.
        account: Option<JobAccount>,
    },
}

/// What a job came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobAccount {
    /// What both sides keep.
    pub record: JobRecord,
    /// Account that was paid.
    pub payee: Option<AccountId>,
    /// Nano-credits that this job added to the channel's bill, markup included.
    pub price: u64,
    /// Nano-credits that were signed for beyond the price when the job broke off, and that its provider may still claim.
    pub ahead: u64,
    /// How the full quanta that this job completed are divided.
    pub split: Vec<(SplitRole, AccountId, u64)>,
    /// What this job leaves in the channel for the next quantum, or takes from what an earlier one left there; the
    /// shares and this make up the price.
    pub in_channel: i64,
    /// Receipt that covers the job; none for a job at home.
    pub receipt: Option<RecordId>,
}

/// Names what is too long: the prompt, or one of several texts.
pub(crate) fn too_long(text: Option<u32>) -> String {
    text.map_or_else(
        || String::from("the prompt"),
        |text| alloc::format!("text {text} of the input, counted from 0,"),
    )
}

/// Why a job failed, in words a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody serves the model, or nobody who does may be used.
    #[error("no provider can serve this model now")]
    NoProvider(Vec<Considered>),
    /// The account does not hold enough.
    #[error("not enough credits: {needed} nano-credits needed, {available} available")]
    NotEnoughCredits {
        /// Worst case of the job with the fee for a channel.
        needed: u64,
        /// What can be spent now.
        available: u64,
    },
    /// The issuer does not answer, so no channel can be opened.
    #[error("the network's issuer cannot be reached, so no payment channel can be opened")]
    IssuerUnreachable,
    /// The issuer refused to open a channel.
    #[error("the network's issuer refused to open a payment channel: {0}")]
    IssuerRefused(String),
    /// The prompt and the answer do not fit the model.
    #[error("{} has {tokens} tokens, which leaves no room in the model's context of {context}", too_long(*text))]
    PromptTooLong {
        /// Tokens counted.
        tokens: u32,
        /// Tokens that fit.
        context: u32,
        /// Which of several texts it is, the first being 0.
        text: Option<u32>,
    },
    /// The provider was lost in the middle.
    #[error("lost the provider {0} in mid-stream")]
    ProviderLost(NodeId),
    /// The provider's engine failed.
    #[error("the provider's engine failed: {0}")]
    EngineFailed(String),
    /// The provider broke the rules.
    #[error("the provider broke the protocol: {0}")]
    Misbehaved(&'static str),
    /// Took longer than allowed.
    #[error("the provider took the job and then delivered nothing for too long")]
    TimedOut,
    /// The request itself cannot be served.
    #[error("{0}")]
    BadRequest(String),
    /// Its owner gave it up before it was done.
    #[error("the job was cancelled")]
    Cancelled,
    /// Its channel was closed under it.
    #[error("the payment channel of the job ended before the job did")]
    ChannelEnded,
    /// This node may not open a channel for its account, and nobody did for it.
    #[error("no payment channel could be opened for this node's account: {0}")]
    WalletRefused(String),
    /// The account has made as many steps as the issuers take of it before the next checkpoint.
    #[error("no payment channel could be opened: {0}")]
    TooManySteps(IssuerError),
    /// This node has as many jobs of its own in flight as it may, or this one already.
    #[error("this node has too many jobs of its own in flight")]
    TooManyJobs,
    /// This node takes no jobs now, because it ends, or asks others for what it lost and signs nothing before.
    #[error("this node {0}")]
    NotNow(&'static str),
    /// This node waits to be admitted; providers count what strangers ask of them as an offence.
    #[error("this node is no member of the network yet, and nobody else works for it before")]
    NotAdmitted,
}
