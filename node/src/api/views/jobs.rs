//! Jobs: what is asked, what comes back, and why who did it.

use engine::frame::TokenLogprob;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::exit::Failure;

use super::{BuilderView, Money, SplitView};

// --------------------------------------------------------------------------------------------------- jobs

/// What `POST jobs` takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
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
    /// Whether another provider may go on with an answer that its provider did not bring to its end; it may by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_fallbacks: Option<bool>,
    /// The job's id, 32 hexadecimal digits, unique; random by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

/// One message of a chat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageBody {
    /// `system`, `user`, `assistant` or what the model's template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What happens to a job, in order: one server-sent event each, with `type` as the event's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
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
        /// Their ids, with which another provider can go on; not for clients.
        #[serde(skip)]
        ids: Vec<u32>,
        /// One for each token, if they were asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schema(value_type = Vec<Object>)]
        logprobs: Vec<TokenLogprob>,
    },
    /// The next vectors of a job that asks for them.
    Vectors {
        /// Index of the first vector of this part.
        index: u32,
        /// One for each text, in their order.
        vectors: Vec<Vec<f32>>,
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
            Self::Vectors { .. } => "vectors",
            Self::Done(_) => "done",
            Self::Failed { .. } => "failed",
        }
    }

    /// Returns whether nothing follows.
    #[must_use]
    pub fn is_last(&self) -> bool {
        match self {
            Self::Chosen { .. } | Self::Accepted { .. } | Self::Text { .. } | Self::Vectors { .. } => false,
            Self::Done(_) | Self::Failed { .. } => true,
        }
    }
}

/// A provider that was considered for a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
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

/// What a job would cost now, and who would be considered for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuoteView {
    /// The most that it could cost at the best provider; none if nobody can be used.
    pub price_max: Option<Money>,
    /// The same at the cheapest and at the dearest that can be used, or could in a moment: once they are reached, or have
    /// rested. Who asks for many times what others do is not counted.
    pub range: Option<(u64, u64)>,
    /// Whether somebody can be used now, or once reached.
    pub usable: bool,
    /// Whether there is somebody who failed lately, and is left alone for some seconds.
    pub resting: bool,
    /// Everybody who would be considered, the usable ones first, best first.
    pub candidates: Vec<CandidateView>,
}

/// The account of a job that ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
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
    /// What it cost, with the builder's part.
    pub price: Money,
    /// The builder's part of the price; none where nobody routed the job, or it cost nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder: Option<BuilderView>,
    /// What was paid ahead to a provider that broke off, and that it may keep beyond the price, in nano-credits; not for
    /// clients.
    #[serde(skip)]
    pub ahead_nano: u64,
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
    /// Accounts of jobs whose providers did not bring the answer to its end; the sums above contain them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub earlier: Vec<Self>,
}

/// A job from this node's own ledger: `GET jobs/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
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
    /// What it cost, with the builder's part.
    pub price: Money,
    /// The builder's part of the price; none where nobody routed the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder: Option<BuilderView>,
    /// Whose what it cost is: `provider`, `pool`, `network` and `builder` get shares of the full quanta of the channel's bill
    /// that it completed, as the channel's terms divide them; `pending` waits in the channel for a full quantum, and
    /// `carried` is what earlier jobs had left there and these shares contain. The shares and `pending` without `carried`
    /// are the price.
    #[serde(default)]
    pub split: Vec<SplitView>,
    /// Who paid it, once it is in the ledger; none if it ran at home or came to nothing.
    #[serde(default)]
    pub paid_by: Option<PaidByView>,
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
    /// Each job of an answer that several providers worked on, in order; the sums above contain them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub jobs: Vec<Self>,
}

/// Who paid for a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PaidByView {
    /// The account.
    pub account: String,
    /// The channel, of which the job's receipt is one.
    pub channel: String,
}

#[cfg(test)]
mod tests {
    use super::*;

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
