//! A job's prompt as it travels beside the messages, and its translation between the engine's words and the core's.

use bytes::Bytes;
use engine::frame::{Generate, Prompt, Sampling};
use protocol::ids::{Digest, ModelId, NodeId};
use protocol::job::{Constraints, Input, JobSpec};
use protocol::model::Modality;
use serde::{Deserialize, Serialize};

use crate::command::JobRequest;
use crate::exit::Failure;

/// What the engine needs and the core must not see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Body {
    prompt: Prompt,
    stop: Vec<String>,
}

/// Returns what the core is told of a request, and the body that goes beside it.
pub(super) fn describe(request: &JobRequest, model: ModelId) -> Result<(JobSpec, Bytes), Failure> {
    let generate = &request.generate;
    let body = Body { prompt: generate.prompt.clone(), stop: generate.sampling.stop.clone() };
    let body = Bytes::from(protocol::encoding::encode(&body));
    let only = request.only.iter().map(|node| node.parse::<NodeId>());
    let only: Vec<NodeId> =
        only.collect::<Result<_, _>>().map_err(|error| Failure::usage(error.to_string()))?;
    let input = Input { digest: Digest::of(&body), bytes: body.len() as u64, modality: Modality::Text };
    let sampling = protocol::job::Sampling {
        temperature_milli: to_milli(generate.sampling.temperature),
        top_p_milli: to_milli(generate.sampling.top_p),
        top_k: generate.sampling.top_k,
        repetition_penalty_milli: to_milli(generate.sampling.repetition_penalty),
        seed: generate.sampling.seed,
    };
    let constraints = Constraints { price_max: request.max_price_nano, only, ..Constraints::default() };
    Ok((JobSpec { model, input, sampling, max_tokens: generate.max_tokens, constraints }, body))
}

/// Returns what the engine is asked to do.
pub(super) fn generate(spec: &JobSpec, body: &[u8]) -> Result<Generate, String> {
    let max = protocol::job::INPUT_BYTES_MAX as usize;
    let Body { prompt, stop } = protocol::encoding::decode(body, max)
        .map_err(|error| format!("the prompt cannot be read: {error}"))?;
    let sampling = Sampling {
        temperature: from_milli(spec.sampling.temperature_milli),
        top_p: from_milli(spec.sampling.top_p_milli),
        top_k: spec.sampling.top_k,
        repetition_penalty: from_milli(spec.sampling.repetition_penalty_milli),
        stop,
        seed: spec.sampling.seed,
    };
    let generate =
        Generate { prompt, sampling, max_tokens: spec.max_tokens, resume: Vec::new(), logprobs: None };
    generate.validate().map_err(|error| error.to_string())?;
    Ok(generate)
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

#[cfg(test)]
mod tests {
    use engine::frame::ChatMessage;

    use super::*;

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
                stop: vec!["\n".to_owned()],
                seed: 7,
            },
            max_tokens: 9,
            resume: Vec::new(),
            logprobs: None,
        };
        let request = JobRequest {
            model: String::new(),
            generate: asked.clone(),
            max_price_nano: None,
            only: Vec::new(),
        };

        let (spec, body) = describe(&request, ModelId([1; 32])).expect("valid");

        assert_eq!(generate(&spec, &body), Ok(asked));
        assert!(generate(&spec, &body[1..]).is_err());
    }
}
