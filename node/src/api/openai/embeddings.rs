//! `/v1/embeddings`: vectors of texts.

use axum::Json as Answer;
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use engine::frame::{EMBED_INPUTS_MAX, Embed, EmbedInput};
use serde::Serialize;
use serde_json::Value;

use super::asked::{model, routed};
use super::error::Refusal;
use super::fields::{Fields, parse, wrong};
use super::run::{Placed, Stake, describe, finish_of, place, refusal};
use super::wire::{Charge, Tally};
use crate::api::Api;
use crate::api::caller::Caller;
use crate::api::sse::Watched;
use crate::api::views::{JobAccount, JobEvent};
use crate::command::JobRequest;
use crate::exit::{Failure, FailureKind};

/// Where the endpoint is.
pub(super) const PATH: &str = "/embeddings";

/// A request that makes sense.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) request: JobRequest,
    encoding: Encoding,
    /// Names of parameters that change nothing.
    pub(super) ignored: Vec<String>,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// As a list of numbers.
    Float,
    /// As base64 of their bytes, four of each, the lowest first.
    Base64,
}

impl Wanted {
    /// Reads a request, or says what to change.
    pub(super) fn of(body: &[u8]) -> Result<Self, Failure> {
        let mut fields = Fields::read(body)?;
        let model = model(&mut fields)?;
        let given = fields.take::<Value>("input")?;
        let inputs = inputs(given.ok_or_else(|| wrong("input", "is missing: send a text"))?)?;
        let encoding = match fields.take::<String>("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(_) => return Err(wrong("encoding_format", "must be `float` or `base64`")),
        };
        if fields.has("dimensions") {
            let words = "cannot be chosen: no model here makes shorter vectors than its own, leave it out";
            return Err(wrong("dimensions", words));
        }
        fields.ignore("user");
        let embed = Embed { inputs, truncate: false };
        let request = routed(JobRequest::new(model, embed), &mut fields)?;
        Ok(Self { request, encoding, ignored: fields.leftover() })
    }
}

/// Reads what vectors are to be made of: a text, a list of texts, the tokens of one, or a list of these.
fn inputs(given: Value) -> Result<Vec<EmbedInput>, Failure> {
    let one = |text: String| match text.is_empty() {
        true => Err(wrong("input", "has an empty text: send some text")),
        false => Ok(EmbedInput::Text(text)),
    };
    let inputs = match given {
        Value::String(text) => vec![one(text)?],
        Value::Array(list) if list.iter().all(Value::is_string) => {
            parse::<Vec<String>>("input", Value::Array(list))?
                .into_iter()
                .map(one)
                .collect::<Result<_, _>>()?
        }
        Value::Array(list) if list.iter().all(Value::is_number) => {
            vec![EmbedInput::Tokens(parse("input", Value::Array(list))?)]
        }
        Value::Array(list) if list.iter().all(Value::is_array) => {
            let lists: Vec<Vec<u32>> = parse("input", Value::Array(list))?;
            lists.into_iter().map(EmbedInput::Tokens).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            return Err(wrong(
                "input",
                "must be a text, a list of texts, or lists of the model's own tokens",
            ));
        }
    };
    check(&inputs)?;
    Ok(inputs)
}

/// Checks how many texts there are, and that none is a list of no tokens.
pub(super) fn check(inputs: &[EmbedInput]) -> Result<(), Failure> {
    if !(1..=EMBED_INPUTS_MAX).contains(&inputs.len()) {
        let words = format!("has {} texts: send 1 to {EMBED_INPUTS_MAX}", inputs.len());
        return Err(wrong("input", &words));
    }
    let is_nothing = |input: &EmbedInput| matches!(input, EmbedInput::Tokens(ids) if ids.is_empty());
    if inputs.iter().any(is_nothing) {
        return Err(wrong("input", "has a list of no tokens: send at least one"));
    }
    Ok(())
}

/// An answer, word for word as clients of this API read it.
#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
    /// What it cost and who was paid: an addition to the API.
    sharemesh: &'a [Charge],
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// Runs a request to its end.
pub(super) async fn run(api: Api, caller: Caller, wanted: Wanted) -> Result<Response, Refusal> {
    let Wanted { request, encoding, ignored } = wanted;
    let count = request.parts_max();
    let Placed { model, watched, stake, mut headers } = place(&api, caller, request, &ignored).await?;
    let (vectors, account) = gather(watched, &stake, count).await?;
    let mut tally = Tally::default();
    tally.add(&account);
    describe(&mut headers, &tally);
    let data = vectors.into_iter().enumerate().map(|(index, vector)| Embedding {
        object: "embedding",
        index,
        embedding: encoding.write(vector),
    });
    let tokens = u64::from(account.tokens_in);
    let usage = Usage { prompt_tokens: tokens, total_tokens: tokens };
    let list = List { object: "list", data: data.collect(), model: &model, usage, sharemesh: &tally.charges };
    let mut response = Answer(list).into_response();
    response.headers_mut().extend(headers);
    Ok(response)
}

impl Encoding {
    fn write(self, vector: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Float(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
                Vector::Base64(BASE64.encode(&bytes))
            }
        }
    }
}

/// Returns vectors that are all there and of one width.
fn whole(
    vectors: Vec<Vec<f32>>,
    count: usize,
    account: Box<JobAccount>,
    stake: &Stake,
) -> Result<(Vec<Vec<f32>>, Box<JobAccount>), Refusal> {
    let width = vectors.first().map_or(0, Vec::len);
    let words = if vectors.len() != count {
        format!("the provider made {} of {count} vectors: name another", vectors.len())
    } else if vectors.iter().any(|vector| vector.len() != width) {
        "one provider's vectors have another width than another's: name one of them".to_owned()
    } else {
        return Ok((vectors, account));
    };
    Err(refusal(Failure::new(FailureKind::ProviderLost, words), Some(&account), stake))
}

/// Waits for so many vectors, and for the account of who made them.
pub(super) async fn gather(
    mut watched: Watched,
    stake: &Stake,
    count: usize,
) -> Result<(Vec<Vec<f32>>, Box<JobAccount>), Refusal> {
    let mut gathered = Vec::new();
    while let Some(event) = watched.next().await {
        match event {
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } | JobEvent::Text { .. } => {}
            JobEvent::Vectors { vectors, .. } => gathered.extend(vectors),
            JobEvent::Failed { account: Some(account), .. } if gathered.len() == count => {
                // Only the provider's word that it is done is missing.
                return whole(gathered, count, account, stake);
            }
            JobEvent::Done(account) => {
                finish_of(&account, stake)?;
                return whole(gathered, count, account, stake);
            }
            JobEvent::Failed { failure, account } => return Err(refusal(failure, account.as_deref(), stake)),
        }
    }
    Err(Failure::internal("the job has no last event").into())
}
