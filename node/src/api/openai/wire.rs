//! Answers, word for word as clients of this API read them.

use engine::frame::{Alternative, TokenLogprob};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::views::{BuilderView, JobAccount, format_credits};

/// Which of the two endpoints an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Chat,
    Completion,
}

impl Dialect {
    /// Returns the id of an answer whose first job is this one.
    pub(super) fn id(self, job: &str) -> String {
        match self {
            Self::Chat => format!("chatcmpl-{job}"),
            Self::Completion => format!("cmpl-{job}"),
        }
    }

    /// Returns where the endpoint is.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completion => "/completions",
        }
    }

    fn object(self, chunk: bool) -> &'static str {
        match (self, chunk) {
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Chat, false) => "chat.completion",
            // Chunks and whole answers of this endpoint have the same name.
            (Self::Completion, _) => "text_completion",
        }
    }
}

/// What all parts of one answer begin with.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) dialect: Dialect,
    pub(super) id: String,
    /// Unix time in seconds.
    pub(super) created: u64,
    pub(super) model: String,
}

/// A whole answer, or one chunk of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Answer<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice>,
    /// Left out where the client did not ask for it, null before the last chunk where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
    /// What each choice cost and who was paid: an addition to the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Charge>>)]
    sharemesh: Option<&'a [Charge]>,
}

impl Head {
    /// Returns a whole answer.
    pub(super) fn whole<'a>(&'a self, choices: Vec<Choice>, tally: &'a Tally) -> Answer<'a> {
        self.answer(false, choices, Some(Some(tally.usage)), Some(&tally.charges))
    }

    /// Returns a chunk with one choice; with `usage` the field for it is there, and empty.
    pub(super) fn chunk(&self, choice: Choice, usage: bool) -> Answer<'_> {
        self.answer(true, vec![choice], usage.then_some(None), None)
    }

    /// Returns the chunk that follows the last choice, if usage was asked for.
    pub(super) fn usage<'a>(&'a self, tally: &'a Tally) -> Answer<'a> {
        self.answer(true, Vec::new(), Some(Some(tally.usage)), Some(&tally.charges))
    }

    fn answer<'a>(
        &'a self,
        chunk: bool,
        choices: Vec<Choice>,
        usage: Option<Option<Usage>>,
        sharemesh: Option<&'a [Charge]>,
    ) -> Answer<'a> {
        let Self { dialect, id, created, model } = self;
        Answer { id, object: dialect.object(chunk), created: *created, model, choices, usage, sharemesh }
    }

    /// Returns the first chunk of a choice, which says who speaks; a completion has none.
    pub(super) fn role(&self, index: usize) -> Option<Choice> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), tool_calls: Vec::new() };
        (self.dialect == Dialect::Chat).then_some(Choice::Delta {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
        })
    }

    /// Returns the next part of a choice.
    pub(super) fn part(&self, index: usize, text: String, logprobs: Option<Logprobs>) -> Choice {
        match self.dialect {
            Dialect::Chat => {
                let delta = Delta { content: Some(text), ..Delta::default() };
                Choice::Delta { index, delta, logprobs, finish_reason: None }
            }
            Dialect::Completion => Choice::Text { text, index, logprobs, finish_reason: None },
        }
    }

    /// Returns the beginning of a call in a choice of a chat.
    pub(super) fn call(&self, index: usize, call: usize, name: String) -> Choice {
        let function = FunctionDelta { name: Some(name), arguments: String::new() };
        let id = Some(self.call_id(index, call));
        delta_of_call(index, CallDelta { index: call, id, kind: Some("function"), function })
    }

    /// Returns more of the arguments of a call in a choice of a chat.
    pub(super) fn arguments(&self, index: usize, call: usize, arguments: String) -> Choice {
        let function = FunctionDelta { name: None, arguments };
        delta_of_call(index, CallDelta { index: call, id: None, kind: None, function })
    }

    /// Returns the id of a call: unlike any other, as the answer's own is.
    pub(super) fn call_id(&self, index: usize, call: usize) -> String {
        let job = self.id.rsplit('-').next().unwrap_or_default();
        format!("call_{job}_{index}_{call}")
    }

    /// Returns the last chunk of a choice, which says why it ended.
    pub(super) fn end(&self, index: usize, finish: Finish) -> Choice {
        let finish_reason = Some(finish);
        match self.dialect {
            Dialect::Chat => Choice::Delta { index, delta: Delta::default(), logprobs: None, finish_reason },
            Dialect::Completion => Choice::Text { text: String::new(), index, logprobs: None, finish_reason },
        }
    }

    /// Returns a whole choice.
    pub(super) fn choice(
        &self,
        index: usize,
        text: String,
        tool_calls: Vec<Call>,
        logprobs: Option<Logprobs>,
        finish: Finish,
    ) -> Choice {
        match self.dialect {
            Dialect::Chat => {
                let content = Some(text).filter(|text| tool_calls.is_empty() || !text.is_empty());
                let message = Message { role: "assistant", content, refusal: (), tool_calls };
                Choice::Message { index, message, logprobs, finish_reason: finish }
            }
            Dialect::Completion => Choice::Text { text, index, logprobs, finish_reason: Some(finish) },
        }
    }

    /// Returns log probabilities in the endpoint's form; `offset` is where in the text the first token begins.
    pub(super) fn logprobs(&self, tokens: &[TokenLogprob], offset: usize) -> Logprobs {
        match self.dialect {
            Dialect::Chat => Logprobs::Chat { content: tokens.iter().map(token).collect(), refusal: () },
            Dialect::Completion => listed(tokens, offset),
        }
    }
}

/// One choice, in one of the forms that it has.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Choice {
    Message { index: usize, message: Message, logprobs: Option<Logprobs>, finish_reason: Finish },
    Delta { index: usize, delta: Delta, logprobs: Option<Logprobs>, finish_reason: Option<Finish> },
    Text { text: String, index: usize, logprobs: Option<Logprobs>, finish_reason: Option<Finish> },
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AnswerMessage)]
pub(super) struct Message {
    role: &'static str,
    content: Option<String>,
    #[schema(value_type = Option<String>)]
    refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

/// A call of a tool, whole.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AnswerCall)]
pub(super) struct Call {
    pub(super) id: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) function: Function,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AnswerFunction)]
pub(super) struct Function {
    pub(super) name: String,
    /// JSON.
    pub(super) arguments: String,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallDelta>,
}

/// A part of a call.
#[derive(Debug, Serialize, ToSchema)]
struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Debug, Serialize, ToSchema)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

fn delta_of_call(index: usize, call: CallDelta) -> Choice {
    let delta = Delta { tool_calls: vec![call], ..Delta::default() };
    Choice::Delta { index, delta, logprobs: None, finish_reason: None }
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Finish {
    Stop,
    Length,
    ToolCalls,
}

/// Log probabilities, as one endpoint or the other has them.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Logprobs {
    Chat {
        content: Vec<Token>,
        #[schema(value_type = Option<String>)]
        refusal: (),
    },
    Completion {
        tokens: Vec<String>,
        token_logprobs: Vec<f32>,
        #[schema(value_type = Vec<Object>)]
        top_logprobs: Vec<Map<String, Value>>,
        text_offset: Vec<usize>,
    },
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Token {
    #[serde(flatten)]
    said: Said,
    top_logprobs: Vec<Said>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Said {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

fn token(token: &TokenLogprob) -> Token {
    let said = |logprob, bytes: &[u8]| Said { token: lossy(bytes), logprob, bytes: bytes.to_vec() };
    let top = token.top.iter().map(|Alternative { logprob, bytes, .. }| said(*logprob, bytes));
    Token { said: said(token.logprob, &token.bytes), top_logprobs: top.collect() }
}

fn listed(tokens: &[TokenLogprob], offset: usize) -> Logprobs {
    let offsets = tokens.iter().scan(offset, |at, token| {
        let begin = *at;
        *at += lossy(&token.bytes).chars().count();
        Some(begin)
    });
    let top = |token: &TokenLogprob| {
        token.top.iter().map(|other| (lossy(&other.bytes), Value::from(other.logprob))).collect()
    };
    Logprobs::Completion {
        tokens: tokens.iter().map(|token| lossy(&token.bytes)).collect(),
        token_logprobs: tokens.iter().map(|token| token.logprob).collect(),
        top_logprobs: tokens.iter().map(top).collect(),
        text_offset: offsets.collect(),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Tokens of all choices; every choice is a job of its own, whose prompt was read and paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    /// Returns tokens of prompts, of answers, and of both.
    pub(super) const fn counts(self) -> (u64, u64, u64) {
        (self.prompt_tokens, self.completion_tokens, self.total_tokens)
    }
}

/// What one choice cost, and who was paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Charge {
    pub(super) job: String,
    pub(super) provider: String,
    /// Id of the receipt that covers it; none for a job that the node's own engine did.
    pub(super) receipt: Option<String>,
    pub(super) price_nano: u64,
    pub(super) price_credits: String,
    /// The part of the price that the builder gets who routed the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) builder: Option<BuilderView>,
}

/// What all choices came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) usage: Usage,
    pub(super) charges: Vec<Charge>,
}

impl Charge {
    /// Returns what one provider was paid, where `before` is what those were who worked on the answer before it.
    fn of(account: &JobAccount, before: &[JobAccount]) -> Self {
        let sum = |of: fn(&JobAccount) -> u64| before.iter().map(of).fold(0, u64::saturating_add);
        let price_nano = account.price.nano.saturating_sub(sum(|account| account.price.nano));
        let shared = sum(|account| account.builder.as_ref().map_or(0, |builder| builder.amount.nano));
        let builder = account.builder.clone().map(|builder| {
            let amount = builder.amount.nano.saturating_sub(shared).into();
            BuilderView { amount, ..builder }
        });
        Self {
            builder,
            job: account.job.clone(),
            provider: account.provider.clone(),
            receipt: account.receipt.clone(),
            price_nano,
            price_credits: format_credits(price_nano),
        }
    }
}

impl Tally {
    pub(super) fn add(&mut self, account: &JobAccount) {
        let (tokens_in, tokens_out) = (u64::from(account.tokens_in), u64::from(account.tokens_out));
        self.usage.prompt_tokens += tokens_in;
        self.usage.completion_tokens += tokens_out;
        self.usage.total_tokens += tokens_in + tokens_out;
        // An answer that several providers made was paid to each for its part.
        self.charges.extend(account.earlier.iter().map(|earlier| Charge::of(earlier, &[])));
        self.charges.push(Charge::of(account, &account.earlier));
    }

    /// Returns what all choices cost together.
    pub(super) fn price_nano(&self) -> u64 {
        self.charges.iter().fold(0, |sum: u64, charge| sum.saturating_add(charge.price_nano))
    }
}
