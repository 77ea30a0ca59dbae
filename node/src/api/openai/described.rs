//! What requests may say, for the description of the API alone: `asked` and `ollama` read them, field by field, so that a
//! mistake names its field.
#![expect(dead_code, reason = "described, not read")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A chat to be answered. Other fields are taken, and the header `x-sharemesh-ignored` lists those that change nothing.
#[derive(Deserialize, ToSchema)]
pub(super) struct ChatRequest {
    /// The model's name or id, as `GET /v1/models` lists them.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    #[schema(minimum = 1, maximum = 65_536)]
    max_tokens: Option<u32>,
    /// The same as `max_tokens`.
    #[schema(minimum = 1, maximum = 65_536)]
    max_completion_tokens: Option<u32>,
    #[serde(flatten)]
    sampling: Sampling,
    /// Whether to give the log probability of each token.
    logprobs: Option<bool>,
    /// How many alternatives to give with it.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u8>,
    response_format: Option<ResponseFormat>,
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// Whether there may be several calls in one answer.
    parallel_tool_calls: Option<bool>,
    #[serde(flatten)]
    common: Common,
}

/// A text to be gone on with.
#[derive(Deserialize, ToSchema)]
pub(super) struct CompletionRequest {
    /// The model's name or id, as `GET /v1/models` lists them.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    prompt: Inputs,
    #[schema(minimum = 1, maximum = 65_536, default = 16)]
    max_tokens: Option<u32>,
    #[serde(flatten)]
    sampling: Sampling,
    /// How many alternatives to give with each token.
    #[schema(minimum = 0, maximum = 5)]
    logprobs: Option<u8>,
    /// Whether to repeat the prompt before the answer.
    echo: Option<bool>,
    #[serde(flatten)]
    common: Common,
}

/// How tokens are chosen.
#[derive(Deserialize, ToSchema)]
struct Sampling {
    #[serde(flatten)]
    draws: Draws,
    /// 1 changes nothing.
    #[schema(minimum = 0.01, maximum = 2)]
    repetition_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    /// What is added to the logits of tokens, by their ids: from -100 to 100.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Texts that end the answer.
    stop: Option<Texts>,
}

/// What all dialects call by the same names.
#[derive(Deserialize, ToSchema)]
struct Draws {
    /// 0 always takes the likeliest token.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// 0 keeps all.
    top_k: Option<u32>,
    /// Where the randomness comes from; random unless given.
    seed: Option<i64>,
}

/// What both endpoints take.
#[derive(Deserialize, ToSchema)]
struct Common {
    /// Choices; each is a job, and is paid for.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    n: Option<u32>,
    /// Whether to answer with server-sent events.
    #[schema(default = false)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    provider: Option<Provider>,
    builder: Option<Builder>,
    /// Taken, and changes nothing.
    user: Option<String>,
    /// Taken, and changes nothing.
    metadata: Option<BTreeMap<String, String>>,
}

/// How a stream ends; for streams only.
#[derive(Deserialize, ToSchema)]
struct StreamOptions {
    /// Whether the usage is a last chunk of its own.
    include_usage: Option<bool>,
}

/// One text or several.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Texts {
    One(String),
    Several(Vec<String>),
}

/// A message of a chat.
#[derive(Deserialize, ToSchema)]
struct Message {
    role: Role,
    /// A text, or parts of type `text`; may be missing in a message with calls.
    content: Option<Content>,
    /// Calls that an `assistant` made.
    tool_calls: Option<Vec<Call>>,
    /// Of which call a `tool` tells the result.
    tool_call_id: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize, ToSchema)]
struct Part {
    #[serde(rename = "type")]
    kind: PartKind,
    text: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PartKind {
    Text,
}

/// A call of a tool.
#[derive(Deserialize, ToSchema)]
struct Call {
    id: String,
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: Called,
}

#[derive(Deserialize, ToSchema)]
struct Called {
    name: String,
    /// JSON, as text.
    arguments: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum FunctionKind {
    Function,
}

/// A function that the model may call.
#[derive(Deserialize, ToSchema)]
struct Tool {
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: Function,
}

#[derive(Deserialize, ToSchema)]
struct Function {
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    /// A JSON Schema of an object.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

/// Whether the model is to call, and what.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum ToolChoice {
    Mode(ToolMode),
    Function(NamedTool),
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ToolMode {
    None,
    Auto,
    Required,
}

#[derive(Deserialize, ToSchema)]
struct NamedTool {
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: Named,
}

#[derive(Deserialize, ToSchema)]
struct Named {
    name: String,
}

/// What the answer must look like.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: NamedSchema },
}

#[derive(Deserialize, ToSchema)]
struct NamedSchema {
    name: Option<String>,
    #[schema(value_type = Object)]
    schema: Value,
    /// The form is always kept.
    strict: Option<bool>,
}

/// Who may do the job, and what is weighed: an addition to the API.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Provider {
    /// Only these nodes.
    #[schema(max_items = 64)]
    only: Option<Vec<String>>,
    /// Never these nodes.
    #[schema(max_items = 64)]
    ignore: Option<Vec<String>>,
    /// These nodes first, in this order.
    #[schema(max_items = 64)]
    order: Option<Vec<String>>,
    sort: Option<Sort>,
    /// The credits that one job may cost at most, such as `0.25`.
    max_price: Option<Price>,
    /// Whether another provider may go on with an answer that broke off.
    #[schema(default = true)]
    allow_fallbacks: Option<bool>,
    #[schema(max_items = 16)]
    quantizations: Option<Vec<String>>,
    #[schema(max_items = 16)]
    regions: Option<Vec<String>>,
    class: Option<Class>,
    /// Tokens per second.
    #[schema(minimum = 0)]
    preferred_min_throughput: Option<f32>,
}

/// Who routed the request, and is paid on top of the provider's price: an addition to the API. The node's owner must have
/// allowed the builder.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Builder {
    /// The builder's account.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    account: String,
    /// Hundredths of a percent of the provider's price; 0 pays nobody.
    #[schema(minimum = 0, maximum = 10_000, default = 0)]
    markup_bps: Option<u16>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Sort {
    Price,
    Latency,
    Throughput,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Price {
    Text(String),
    Number(f64),
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Class {
    Community,
    Company,
}

/// A chat to be answered, in Ollama's words.
#[derive(Deserialize, ToSchema)]
pub(super) struct OllamaChatRequest {
    model: String,
    #[schema(min_items = 1)]
    messages: Vec<OllamaMessage>,
    #[schema(value_type = Option<Vec<Object>>, max_items = 128)]
    tools: Option<Vec<Value>>,
    #[serde(flatten)]
    common: OllamaCommon,
}

#[derive(Deserialize, ToSchema)]
struct OllamaMessage {
    role: Role,
    content: String,
}

/// A prompt to be answered, in Ollama's words.
#[derive(Deserialize, ToSchema)]
pub(super) struct OllamaGenerateRequest {
    model: String,
    #[schema(min_length = 1)]
    prompt: String,
    system: Option<String>,
    /// Whether the prompt is taken as it is, without the model's template.
    raw: Option<bool>,
    #[serde(flatten)]
    common: OllamaCommon,
}

#[derive(Deserialize, ToSchema)]
struct OllamaCommon {
    /// Whether each part is a line of its own.
    #[schema(default = true)]
    stream: Option<bool>,
    /// `json`, or a JSON Schema.
    #[schema(value_type = Option<Object>)]
    format: Option<Value>,
    options: Option<OllamaOptions>,
    provider: Option<Provider>,
    builder: Option<Builder>,
}

/// How tokens are chosen, and how many.
#[derive(Deserialize, ToSchema)]
struct OllamaOptions {
    /// The most tokens of the answer; -1 for no bound but the endpoint's own.
    num_predict: Option<i64>,
    #[serde(flatten)]
    draws: Draws,
    #[schema(minimum = 0.01, maximum = 2)]
    repeat_penalty: Option<f32>,
    stop: Option<Vec<String>>,
}

/// A model, in Ollama's words.
#[derive(Deserialize, ToSchema)]
pub(super) struct OllamaShowRequest {
    model: String,
}

/// An error, in Ollama's words.
#[derive(Deserialize, ToSchema)]
pub(in crate::api) struct OllamaError {
    /// What happened and what to do.
    error: String,
}

/// Texts to be made vectors of.
#[derive(Deserialize, ToSchema)]
pub(super) struct EmbeddingsRequest {
    /// The model's name or id, as `GET /v1/models` lists them.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    input: Inputs,
    encoding_format: Option<Encoding>,
    provider: Option<Provider>,
    builder: Option<Builder>,
    /// Taken, and changes nothing.
    user: Option<String>,
}

/// A text, texts, the model's own tokens of one, or of several.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Inputs {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

/// How numbers are written.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    Base64,
}

/// A conversation to be gone on with; nothing of it is kept.
#[derive(Deserialize, ToSchema)]
pub(super) struct ResponsesRequest {
    /// The model's name or id, as `GET /v1/models` lists them.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    input: ResponsesInput,
    /// Said before the conversation.
    instructions: Option<String>,
    #[schema(minimum = 1, maximum = 65_536)]
    max_output_tokens: Option<u32>,
    /// Whether to answer with server-sent events.
    #[schema(default = false)]
    stream: Option<bool>,
    #[serde(flatten)]
    draws: Draws,
    /// `format`: what the answer must look like.
    #[schema(value_type = Option<Object>)]
    text: Option<Value>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>, max_items = 128)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<ResponsesToolChoice>,
    /// Whether there may be several calls in one answer.
    parallel_tool_calls: Option<bool>,
    /// 1 changes nothing.
    #[schema(minimum = 0.01, maximum = 2)]
    repetition_penalty: Option<f32>,
    provider: Option<Provider>,
    builder: Option<Builder>,
    /// Repeated in the answer.
    user: Option<String>,
    /// Repeated in the answer.
    metadata: Option<BTreeMap<String, String>>,
}

/// Whether the model is to call, and what.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum ResponsesToolChoice {
    Mode(ToolMode),
    #[schema(value_type = Object)]
    Function(Value),
}

/// A text of the user, or the items of the conversation.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum ResponsesInput {
    Text(String),
    #[schema(value_type = Vec<Object>)]
    Items(Vec<Value>),
}

/// Texts to be made vectors of, in Ollama's words.
#[derive(Deserialize, ToSchema)]
pub(super) struct OllamaEmbedRequest {
    model: String,
    input: Option<Texts>,
    /// Whether a text that is too long is cut.
    #[schema(default = true)]
    truncate: Option<bool>,
    provider: Option<Provider>,
    builder: Option<Builder>,
}

/// A text to be made a vector of, in Ollama's older words.
#[derive(Deserialize, ToSchema)]
pub(super) struct OllamaEmbeddingsRequest {
    model: String,
    prompt: Option<String>,
    provider: Option<Provider>,
    builder: Option<Builder>,
}
