//! A job's prompt as it travels beside the messages, and its translation between the engine's words and the core's.

use bytes::Bytes;
use engine::frame::{Embed, Form, Generate, Prompt, Sampling};
use protocol::ids::{Digest, ModelId, NodeId};
use protocol::job::{Constraints, Input, JobSpec};
use protocol::model::Modality;
use serde::{Deserialize, Serialize};

use crate::command::{JobRequest, Work};
use crate::exit::Failure;

/// What the engine needs and the core must not see; numbers are thousandths, so that both sides mean the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Body {
    prompt: Prompt,
    stop: Vec<String>,
    presence_penalty_milli: i32,
    frequency_penalty_milli: i32,
    logit_bias_milli: Vec<(u32, i32)>,
    logprobs: Option<u8>,
}

/// A body with what only some jobs have; it follows what every body has, so that a node that does not know it refuses the
/// job rather than doing another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FullBody {
    body: Body,
    more: More,
}

/// What only some jobs have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct More {
    /// Ids of the answer's tokens that another provider made.
    resume: Vec<u32>,
    /// The most tokens of the answer, those included.
    max_tokens: u32,
    /// What the answer must look like.
    form: Option<Form>,
}

impl Body {
    fn of(generate: &Generate) -> Self {
        let Generate { prompt, sampling, logprobs, .. } = generate;
        let bias = sampling.logit_bias.iter().map(|(id, bias)| (*id, to_signed_milli(*bias)));
        Self {
            prompt: prompt.clone(),
            stop: sampling.stop.clone(),
            presence_penalty_milli: to_signed_milli(sampling.presence_penalty),
            frequency_penalty_milli: to_signed_milli(sampling.frequency_penalty),
            logit_bias_milli: bias.collect(),
            logprobs: *logprobs,
        }
    }
}

/// Returns what kind of model can do it.
pub(super) const fn modality(work: &Work) -> Modality {
    match work {
        Work::Generate(_) => Modality::Text,
        Work::Embed(_) => Modality::Embedding,
    }
}

/// Returns what the core is told of a request, and the body that goes beside it.
pub(super) fn describe(request: &JobRequest, model: ModelId) -> Result<(JobSpec, Bytes), Failure> {
    let (body, sampling, max_tokens) = match &request.work {
        Work::Generate(generate) => (encode(generate), sampling_of(generate), tokens_max(generate)),
        Work::Embed(embed) => {
            let vectors = u32::try_from(embed.inputs.len()).unwrap_or(u32::MAX);
            (protocol::encoding::encode(embed), DRAWS_NOTHING, vectors)
        }
    };
    let body = Bytes::from(body);
    let (only, ignore) = (nodes(&request.only)?, nodes(&request.ignore)?);
    let modality = modality(&request.work);
    let input = Input { digest: Digest::of(&body), bytes: body.len() as u64, modality };
    let (price_max, sort, order) = (request.max_price_nano, request.sort, nodes(&request.order)?);
    let constraints = Constraints { price_max, only, ignore, sort, order };
    let JobRequest { markup, trace, .. } = *request;
    Ok((JobSpec { model, input, sampling, max_tokens, constraints, markup, trace }, body))
}

/// What the core is told where no tokens are drawn.
const DRAWS_NOTHING: protocol::job::Sampling = protocol::job::Sampling {
    temperature_milli: 0,
    top_p_milli: 1_000,
    top_k: 0,
    repetition_penalty_milli: 1_000,
    seed: 0,
};

fn sampling_of(Generate { sampling, .. }: &Generate) -> protocol::job::Sampling {
    protocol::job::Sampling {
        temperature_milli: to_milli(sampling.temperature),
        top_p_milli: to_milli(sampling.top_p),
        top_k: sampling.top_k,
        repetition_penalty_milli: to_milli(sampling.repetition_penalty),
        seed: sampling.seed,
    }
}

/// Returns how many tokens are to be made: not those that are there already; a job that only has to say that it is over
/// still has room for one.
fn tokens_max(generate: &Generate) -> u32 {
    let resumed = u32::try_from(generate.resume.len()).unwrap_or(u32::MAX);
    generate.max_tokens.saturating_sub(resumed).max(generate.max_tokens.min(1))
}

fn encode(generate: &Generate) -> Vec<u8> {
    let body = Body::of(generate);
    if generate.resume.is_empty() && generate.form.is_none() {
        return protocol::encoding::encode(&body);
    }
    let Generate { resume, max_tokens, form, .. } = generate.clone();
    let more = More { resume, max_tokens, form };
    protocol::encoding::encode(&FullBody { body, more })
}

fn decode(bytes: &[u8]) -> Result<(Body, Option<More>), String> {
    let max = protocol::job::INPUT_BYTES_MAX as usize;
    if let Ok(body) = protocol::encoding::decode::<Body>(bytes, max) {
        return Ok((body, None));
    }
    let full = protocol::encoding::decode::<FullBody>(bytes, max);
    let full = full.map_err(|error| format!("the prompt cannot be read: {error}"))?;
    Ok((full.body, Some(full.more)))
}

/// Returns the tokens that are there already, and the most that there may be in all: no more than are paid for on top.
fn lengths(spec: &JobSpec, more: Option<More>) -> Result<(Vec<u32>, u32), String> {
    let Some(More { resume, max_tokens, form }) = more else { return Ok((Vec::new(), spec.max_tokens)) };
    let resumed = u32::try_from(resume.len()).unwrap_or(u32::MAX);
    if (resume.is_empty() && form.is_none())
        || max_tokens < resumed
        || max_tokens > resumed.saturating_add(spec.max_tokens)
    {
        return Err("the answer that is to go on does not fit its length".to_owned());
    }
    Ok((resume, max_tokens))
}

/// Returns what the engine is asked to do.
pub(super) fn work(spec: &JobSpec, body: &[u8]) -> Result<Work, String> {
    match spec.input.modality {
        Modality::Text => generate(spec, body).map(Work::Generate),
        Modality::Embedding => embed(spec, body).map(Work::Embed),
        Modality::Speech | Modality::Image => Err("no engine here does such jobs".to_owned()),
    }
}

/// Returns the texts of which vectors are to be made: as many as are paid for.
fn embed(spec: &JobSpec, body: &[u8]) -> Result<Embed, String> {
    let max = protocol::job::INPUT_BYTES_MAX as usize;
    let embed: Embed = protocol::encoding::decode(body, max).map_err(|error| error.to_string())?;
    embed.validate().map_err(|error| error.to_string())?;
    if embed.inputs.len() != spec.max_tokens as usize {
        return Err("the inputs are not as many as the vectors that are asked for".to_owned());
    }
    Ok(embed)
}

fn generate(spec: &JobSpec, body: &[u8]) -> Result<Generate, String> {
    let (body, more) = decode(body)?;
    let form = more.as_ref().and_then(|more| more.form.clone());
    let (resume, max_tokens) = lengths(spec, more)?;
    let sampling = Sampling {
        temperature: from_milli(spec.sampling.temperature_milli),
        top_p: from_milli(spec.sampling.top_p_milli),
        top_k: spec.sampling.top_k,
        repetition_penalty: from_milli(spec.sampling.repetition_penalty_milli),
        presence_penalty: from_signed_milli(body.presence_penalty_milli),
        frequency_penalty: from_signed_milli(body.frequency_penalty_milli),
        logit_bias: body.logit_bias_milli.iter().map(|(id, bias)| (*id, from_signed_milli(*bias))).collect(),
        stop: body.stop,
        seed: spec.sampling.seed,
    };
    let Body { prompt, logprobs, .. } = body;
    let generate = Generate { prompt, sampling, max_tokens, resume, logprobs, form };
    generate.validate().map_err(|error| error.to_string())?;
    Ok(generate)
}

fn nodes(named: &[String]) -> Result<Box<[NodeId]>, Failure> {
    let parsed = named.iter().map(|node| node.parse::<NodeId>());
    parsed.collect::<Result<_, _>>().map_err(|error| Failure::usage(error.to_string()))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded and clamped to the range"
)]
fn to_milli(value: f32) -> u32 {
    (value * 1000.0).round().clamp(0.0, 1_000_000.0) as u32
}

#[expect(clippy::cast_precision_loss, reason = "thousandths below a million are exact")]
fn from_milli(milli: u32) -> f32 {
    milli.min(1_000_000) as f32 / 1000.0
}

#[expect(clippy::cast_possible_truncation, reason = "rounded and clamped to the range")]
fn to_signed_milli(value: f32) -> i32 {
    (value * 1000.0).round().clamp(-1_000_000.0, 1_000_000.0) as i32
}

#[expect(clippy::cast_precision_loss, reason = "thousandths below a million are exact")]
fn from_signed_milli(milli: i32) -> f32 {
    milli.clamp(-1_000_000, 1_000_000) as f32 / 1000.0
}

#[cfg(test)]
mod tests {
    use engine::frame::{ChatMessage, EmbedInput};

    use super::*;

    #[test]
    fn what_vectors_are_made_of_travels_in_these_bytes() {
        let inputs = vec![EmbedInput::Text("hi".to_owned()), EmbedInput::Tokens(vec![1, 300])];
        let request = JobRequest::new(String::new(), Embed { inputs, truncate: true });

        let (spec, body) = describe(&request, ModelId([1; 32])).expect("valid");

        assert_eq!(&body[..], [2, 0, 2, b'h', b'i', 1, 2, 1, 172, 2, 1]);
        assert_eq!((spec.max_tokens, spec.input.modality), (2, Modality::Embedding));
        assert_eq!(work(&spec, &body), Ok(request.work));
        assert!(work(&JobSpec { max_tokens: 1, ..spec }, &body).is_err(), "more than are paid for");
    }

    #[test]
    fn the_engine_is_asked_for_what_the_client_asked_for() {
        let message = ChatMessage { role: "user".to_owned(), content: "Why?".to_owned() };
        let asked = Generate {
            prompt: Prompt::Chat(vec![message]),
            sampling: Sampling {
                temperature: 0.7,
                top_p: 0.95,
                top_k: 40,
                repetition_penalty: 1.1,
                presence_penalty: 0.5,
                frequency_penalty: -1.25,
                logit_bias: vec![(7, -100.0), (8, 0.5)],
                stop: vec!["\n".to_owned()],
                seed: 7,
            },
            max_tokens: 9,
            resume: Vec::new(),
            logprobs: Some(2),
            form: None,
        };
        let request = JobRequest::new(String::new(), asked.clone());

        let (spec, body) = describe(&request, ModelId([1; 32])).expect("valid");

        assert_eq!(generate(&spec, &body), Ok(asked.clone()));
        assert!(generate(&spec, &body[1..]).is_err());

        let form = Some(Form::Json { schema: "{}".to_owned() });
        let formed = JobRequest::new(String::new(), Generate { form, ..asked.clone() });
        let (spec, with_form) = describe(&formed, ModelId([1; 32])).expect("valid");

        assert_eq!(work(&spec, &with_form), Ok(formed.work));
        // Whoever knows no forms finds bytes left over, and refuses.
        assert!(with_form.starts_with(&body));
        assert!(protocol::encoding::decode::<Body>(&with_form, with_form.len()).is_err());
        assert!(generate(&spec, &[&with_form[..], &[0]].concat()).is_err());
        for resume in [vec![5, 6], vec![7; 9]] {
            let left = 9 - u32::try_from(resume.len()).expect("few");
            let half = JobRequest::new(String::new(), Generate { resume, ..asked.clone() });
            let (spec, whole) = describe(&half, ModelId([1; 32])).expect("valid");
            assert_eq!(spec.max_tokens, left.max(1), "what is there already is not paid again");
            assert_eq!(work(&spec, &whole), Ok(half.work.clone()));
            assert!(whole.starts_with(&body));
            assert!(
                protocol::encoding::decode::<Body>(&whole, whole.len()).is_err(),
                "an older node refuses"
            );
            let more = JobSpec { max_tokens: spec.max_tokens - 1, ..spec };
            assert!(left == 0 || generate(&more, &whole).is_err(), "more than is paid for");
        }
    }
}
