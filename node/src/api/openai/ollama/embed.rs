//! `/api/embed` and the older `/api/embeddings`: vectors of texts, in Ollama's words.

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use engine::frame::{Embed, EmbedInput};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::asked::{model, routed};
use super::super::embeddings::{check, gather};
use super::super::error::Refusal;
use super::super::fields::{Fields, parse, wrong};
use super::super::jobs::quote;
use super::super::once;
use super::super::run::{Placed, place};
use super::answer::{NANOS_PER_MS, charge, charged};
use crate::api::Api;
use crate::api::caller::Caller;
use crate::api::views::JobAccount;
use crate::command::JobRequest;
use crate::exit::Failure;

/// Which of the two endpoints is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Embed,
    Embeddings,
}

impl Endpoint {
    /// Returns where it is.
    const fn path(self) -> &'static str {
        match self {
            Self::Embed => "/api/embed",
            Self::Embeddings => "/api/embeddings",
        }
    }
}

/// A request that makes sense.
struct Wanted {
    request: JobRequest,
    ignored: Vec<String>,
}

/// Answers a request.
pub(super) async fn respond(
    endpoint: Endpoint,
    api: Api,
    caller: Caller,
    is_dry: bool,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Refusal> {
    let Wanted { request, ignored } = read(endpoint, body)?;
    let count = request.parts_max();
    if count == 0 {
        // Programs ask so whether the model is there.
        return Ok(Json(nothing(endpoint, &request.model)).into_response());
    }
    if is_dry {
        return quote(&api, request.model.clone(), vec![request], &ignored).await;
    }
    let run = run(endpoint, api.clone(), caller.clone(), Wanted { request, ignored }, count);
    once((&api, &caller), headers, (endpoint.path(), body), run).await
}

async fn run(
    endpoint: Endpoint,
    api: Api,
    caller: Caller,
    Wanted { request, ignored }: Wanted,
    count: usize,
) -> Result<Response, Refusal> {
    let Placed { model, watched, stake, headers } = place(&api, caller, request, &ignored).await?;
    let (vectors, account) = gather(watched, &stake, count).await?;
    let mut response = Json(whole(endpoint, model, vectors, &account)).into_response();
    charged(response.headers_mut(), &account);
    response.headers_mut().extend(headers);
    Ok(response)
}

fn read(endpoint: Endpoint, body: &[u8]) -> Result<Wanted, Failure> {
    let mut fields = Fields::read(body)?;
    let named = model(&mut fields)?;
    let named = named.strip_suffix(":latest").unwrap_or(&named).to_owned();
    let inputs = match endpoint {
        Endpoint::Embed => texts(fields.take("input")?)?,
        // Of no text it gives no numbers.
        Endpoint::Embeddings => {
            fields.take::<String>("prompt")?.filter(|text| !text.is_empty()).into_iter().collect()
        }
    };
    let inputs: Vec<EmbedInput> = inputs.into_iter().map(EmbedInput::Text).collect();
    if !inputs.is_empty() {
        check(&inputs)?;
    }
    if fields.has("dimensions") {
        let words = "cannot be chosen: no model here makes shorter vectors than its own, leave it out";
        return Err(wrong("dimensions", words));
    }
    // A long text is cut unless the program says otherwise.
    let truncate = fields.take("truncate")?.unwrap_or(true);
    ["options", "keep_alive"].iter().for_each(|name| fields.ignore(name));
    let request = routed(JobRequest::new(named, Embed { inputs, truncate }), &mut fields)?;
    Ok(Wanted { request, ignored: fields.leftover() })
}

fn texts(given: Option<Value>) -> Result<Vec<String>, Failure> {
    match given {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text]),
        Some(list) => parse("input", list),
    }
}

fn nothing(endpoint: Endpoint, model: &str) -> Value {
    match endpoint {
        Endpoint::Embed => json!({"model": model, "embeddings": []}),
        Endpoint::Embeddings => json!({"embedding": []}),
    }
}

/// An answer, word for word as clients read it: durations are nanoseconds.
#[derive(Serialize)]
#[serde(untagged)]
enum Whole {
    Embed {
        model: String,
        embeddings: Vec<Vec<f32>>,
        total_duration: u64,
        load_duration: u64,
        prompt_eval_count: u32,
        sharemesh: Value,
    },
    Embeddings {
        embedding: Vec<f32>,
        sharemesh: Value,
    },
}

fn whole(endpoint: Endpoint, model: String, mut vectors: Vec<Vec<f32>>, account: &JobAccount) -> Whole {
    let sharemesh = charge(account);
    match endpoint {
        Endpoint::Embed => Whole::Embed {
            model,
            embeddings: vectors,
            total_duration: account.total_ms * NANOS_PER_MS,
            load_duration: 0,
            prompt_eval_count: account.tokens_in,
            sharemesh,
        },
        Endpoint::Embeddings => Whole::Embeddings { embedding: vectors.pop().unwrap_or_default(), sharemesh },
    }
}
