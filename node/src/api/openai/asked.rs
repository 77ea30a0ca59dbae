//! What a request asks for: one job for each choice, and how the answer is to be written.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use engine::frame::{Generate, LOGPROBS_MAX, Prompt, Sampling};
use protocol::ids::NodeId;
use protocol::job::Sort;
use protocol::ledger::money::BPS;
use protocol::ledger::records::Markup;
use serde_json::{Map, Number, Value, json};

use super::calls::Calls;
use super::fields::{Fields, parse, unsupported, wrong};
use super::form;
use super::prompts::{self, param_of, prompt_bytes};
use super::wire::Dialect;
use crate::api::jobs::random_seed;
use crate::api::views::parse_credits;
use crate::command::{ANSWER_TOKENS_MAX, JobRequest, Wants};
use crate::exit::Failure;

/// The longest answer of a chat unless another is asked for.
pub(super) const CHAT_TOKENS_DEFAULT: u32 = 2_048;

/// The same of a completion, as clients of this endpoint expect it.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

/// The longest answer with log probabilities, of which each token has many.
const LOGPROB_TOKENS_MAX: u32 = 8_192;

/// Bounds the prompts of all choices together; each job has its own.
const PROMPTS_BYTES_MAX: usize = 16 << 20;

/// Bounds the choices of one request; each is a job.
const CHOICES_MAX: u32 = 128;

/// Most alternatives that the older endpoint gives.
const COMPLETION_LOGPROBS_MAX: u8 = 5;

/// Bounds the nodes that `provider.only` and `provider.ignore` name.
const NODES_MAX: usize = 64;

/// Bounds the words of `provider.quantizations` and `provider.regions`.
const WORDS_MAX: usize = 16;

/// Bounds each of them.
const WORD_BYTES_MAX: usize = 64;

/// The smallest nucleus that can be said in thousandths: the likeliest token alone.
const TOP_P_MIN: f32 = 0.001;

/// Parameters that change nothing here.
const IGNORED: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "reasoning_effort",
    "verbosity",
    "service_tier",
    "prediction",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// A request that makes sense.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) dialect: Dialect,
    pub(super) model: String,
    /// One for each choice, in the order of their indices.
    pub(super) jobs: Vec<JobRequest>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// What a completion repeats before each choice's answer; empty for none.
    pub(super) echoed: Vec<String>,
    /// Names of parameters that change nothing.
    pub(super) ignored: Vec<String>,
}

impl Asked {
    /// Reads a request, or says what to change.
    pub(super) fn of(dialect: Dialect, body: &[u8]) -> Result<Self, Failure> {
        let mut fields = Fields::read(body)?;
        let model = model(&mut fields)?;
        let prompts = match dialect {
            Dialect::Chat => prompts::chat(&mut fields)?,
            Dialect::Completion => prompts::texts(&mut fields)?,
        };
        let echoed = prompts::echoed(dialect, &mut fields, &prompts)?;
        refuse_what_changes_the_answer(&mut fields)?;
        let (stream, include_usage) = streaming(&mut fields)?;
        let choices = choices(&mut fields, prompts.len())?;
        let (generate, template) = template(dialect, &mut fields, model.clone())?;
        let jobs = jobs(&generate, &template, prompts, choices)?;
        IGNORED.iter().for_each(|name| fields.ignore(name));
        let each = |text: &String| std::iter::repeat_n(text.clone(), choices as usize).collect::<Vec<_>>();
        let echoed = echoed.iter().flat_map(each).collect();
        let ignored = fields.leftover();
        Ok(Self { dialect, model, jobs, stream, include_usage, echoed, ignored })
    }

    /// Checks what takes a while: whether answers can be kept to the form that is asked for.
    pub(super) async fn checked(self) -> Result<Self, Failure> {
        let first = self.jobs.first().and_then(JobRequest::generate);
        if let Some(generate) = first.filter(|generate| engine::grammar::is_needed(generate)).cloned() {
            let check = tokio::task::spawn_blocking(move || check(generate));
            check.await.map_err(|error| Failure::internal(error.to_string()))??;
        }
        Ok(self)
    }

    /// Returns what finds calls in the answers, where they may have any.
    pub(super) fn calls(&self) -> Option<Calls> {
        Calls::of(self.jobs.first()?.generate()?)
    }
}

/// Takes the name of the model.
pub(super) fn model(fields: &mut Fields) -> Result<String, Failure> {
    let model: String =
        fields.take("model")?.ok_or_else(|| wrong("model", "is missing: see `GET /v1/models`"))?;
    if !(1..=256).contains(&model.len()) {
        return Err(wrong("model", "must have 1 to 256 bytes: see `GET /v1/models`"));
    }
    Ok(model)
}

/// Checks the form alone first, so that what is wrong with the tools is said of them.
fn check(mut generate: Generate) -> Result<(), Failure> {
    let check = |generate: &Generate, param: &str| {
        let checked = engine::grammar::check(generate);
        checked.map_err(|error| Failure::usage(error.to_string()).in_param(param))
    };
    let with_tools = Some(generate.clone()).filter(|generate| Calls::of(generate).is_some());
    generate.prompt = Prompt::Text(String::new());
    check(&generate, "response_format")?;
    with_tools.map_or(Ok(()), |generate| check(&generate, "tools"))
}

fn refuse_what_changes_the_answer(fields: &mut Fields) -> Result<(), Failure> {
    let auto = [json!("none"), json!("auto")];
    // Those of a chat were taken before.
    fields.refuse("tools", &[json!([])])?;
    fields.refuse("tool_choice", &auto)?;
    fields.refuse("functions", &[json!([])])?;
    fields.refuse("function_call", &auto)?;
    fields.refuse("modalities", &[json!(["text"])])?;
    fields.refuse("suffix", &[json!("")])?;
    fields.refuse("best_of", &[json!(1)])?;
    for name in ["audio", "web_search_options"] {
        fields.refuse(name, &[])?;
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------- answers

/// Returns whether to stream, and whether a stream ends with the usage.
fn streaming(fields: &mut Fields) -> Result<(bool, bool), Failure> {
    let stream = fields.take("stream")?.unwrap_or(false);
    let Some(options) = fields.take::<Map<String, Value>>("stream_options")? else {
        return Ok((stream, false));
    };
    if !stream {
        return Err(wrong("stream_options", "is for streams only: set `stream` too"));
    }
    let include = options.get("include_usage").cloned().filter(|value| !value.is_null());
    let include = include.map_or(Ok(false), |value| parse("stream_options.include_usage", value))?;
    Ok((stream, include))
}

/// Returns the choices for each of so many prompts.
fn choices(fields: &mut Fields, prompts: usize) -> Result<u32, Failure> {
    let choices = fields.take::<u32>("n")?.unwrap_or(1);
    let all = u64::from(choices) * prompts as u64;
    if !(1..=u64::from(CHOICES_MAX)).contains(&all) {
        return Err(wrong("n", &format!("makes {all} choices in all: ask for 1 to {CHOICES_MAX}")));
    }
    Ok(choices)
}

fn jobs(
    generate: &Generate,
    template: &JobRequest,
    prompts: Vec<Prompt>,
    choices: u32,
) -> Result<Vec<JobRequest>, Failure> {
    let bytes: usize = prompts.iter().map(prompt_bytes).sum();
    if bytes.saturating_mul(choices as usize) > PROMPTS_BYTES_MAX {
        let words = format!("times the prompt is more than {PROMPTS_BYTES_MAX} bytes: ask for fewer choices");
        return Err(wrong("n", &words));
    }
    let all = (prompts.len() as u64).saturating_mul(u64::from(choices));
    let tokens = all.saturating_mul(u64::from(generate.max_tokens));
    if generate.logprobs.is_some() && tokens > u64::from(LOGPROB_TOKENS_MAX) {
        let words =
            format!("can be had for at most {LOGPROB_TOKENS_MAX} tokens of all choices: lower `max_tokens`");
        return Err(wrong("logprobs", &words));
    }
    let mut jobs = Vec::new();
    for prompt in prompts {
        for choice in 0..choices {
            let mut generate = Generate { prompt: prompt.clone(), ..generate.clone() };
            // The same seed for all choices would make the same answer of all.
            generate.sampling.seed = generate.sampling.seed.wrapping_add(u64::from(choice));
            generate
                .validate()
                .map_err(|error| Failure::usage(error.to_string()).in_param(param_of(&generate.prompt)))?;
            jobs.push(JobRequest { work: generate.into(), ..template.clone() });
        }
    }
    Ok(jobs)
}

/// Returns what is asked for without the prompt, and who may do it.
fn template(dialect: Dialect, fields: &mut Fields, model: String) -> Result<(Generate, JobRequest), Failure> {
    let open_ended = !fields.has("max_tokens") && !fields.has("max_completion_tokens");
    let max_tokens = max_tokens(dialect, fields)?;
    let sampling = sampling(fields)?;
    let logprobs = logprobs(dialect, fields)?;
    let form = form::read(dialect, fields)?;
    let prompt = Prompt::Text(String::new());
    let generate = Generate { prompt, sampling, max_tokens, resume: Vec::new(), logprobs, form };
    let request = JobRequest { open_ended, ..JobRequest::new(model, generate.clone()) };
    Ok((generate, routed(request, fields)?))
}

fn max_tokens(dialect: Dialect, fields: &mut Fields) -> Result<u32, Failure> {
    let (usual, newer) = match dialect {
        Dialect::Chat => (CHAT_TOKENS_DEFAULT, fields.take::<i64>("max_completion_tokens")?),
        Dialect::Completion => (COMPLETION_TOKENS_DEFAULT, None),
    };
    let older = fields.take::<i64>("max_tokens")?;
    let (name, asked) = match (newer, older) {
        (Some(newer), Some(older)) if newer != older => {
            return Err(wrong("max_tokens", "differs from `max_completion_tokens`: send one of them"));
        }
        (Some(newer), _) => ("max_completion_tokens", newer),
        (None, older) => ("max_tokens", older.unwrap_or(i64::from(usual))),
    };
    let fits = u32::try_from(asked).ok().filter(|tokens| (1..=ANSWER_TOKENS_MAX).contains(tokens));
    fits.ok_or_else(|| wrong(name, &format!("is {asked}: ask for 1 to {ANSWER_TOKENS_MAX} tokens")))
}

fn sampling(fields: &mut Fields) -> Result<Sampling, Failure> {
    let usual = Sampling::default();
    let seed = fields.take::<Number>("seed")?.map(|seed| {
        let bits = seed.as_u64().or(seed.as_i64().map(i64::cast_unsigned));
        bits.ok_or_else(|| wrong("seed", "must be a whole number of 64 bits"))
    });
    let sampling = Sampling {
        temperature: number(fields, "temperature", 0.0..=2.0)?.unwrap_or(usual.temperature),
        top_p: number(fields, "top_p", 0.0..=1.0)?.unwrap_or(usual.top_p).max(TOP_P_MIN),
        top_k: fields.take("top_k")?.unwrap_or(usual.top_k),
        repetition_penalty: number(fields, "repetition_penalty", 0.01..=2.0)?
            .unwrap_or(usual.repetition_penalty),
        presence_penalty: number(fields, "presence_penalty", -2.0..=2.0)?.unwrap_or_default(),
        frequency_penalty: number(fields, "frequency_penalty", -2.0..=2.0)?.unwrap_or_default(),
        logit_bias: logit_bias(fields)?,
        stop: stop(fields)?,
        seed: seed.transpose()?.unwrap_or_else(random_seed),
    };
    sampling.validate().map_err(|error| Failure::usage(error.to_string()).in_param("stop"))?;
    Ok(sampling)
}

fn number(fields: &mut Fields, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, Failure> {
    let number = fields.take::<f32>(name)?;
    match number.filter(|number| !range.contains(number)) {
        Some(number) => {
            let words = format!("is {number}: send a number from {} to {}", range.start(), range.end());
            Err(wrong(name, &words))
        }
        None => Ok(number),
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, Failure> {
    match fields.take::<Value>("stop")? {
        Some(Value::String(one)) => Ok(vec![one]),
        Some(several) => parse("stop", several),
        None => Ok(Vec::new()),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Failure> {
    let given: BTreeMap<String, f32> = fields.take("logit_bias")?.unwrap_or_default();
    let mut bias = Vec::new();
    for (id, shift) in given {
        let id = id.parse().map_err(|_| wrong("logit_bias", "must name tokens by their ids"))?;
        if !(-100.0..=100.0).contains(&shift) {
            return Err(wrong("logit_bias", "must have numbers from -100 to 100"));
        }
        bias.push((id, shift));
    }
    if bias.len() > engine::frame::LOGIT_BIAS_MAX {
        return Err(wrong(
            "logit_bias",
            &format!("names more than {} tokens", engine::frame::LOGIT_BIAS_MAX),
        ));
    }
    bias.sort_by_key(|(id, _)| *id);
    Ok(bias)
}

/// Returns how many alternatives come with each token, if log probabilities are asked for.
fn logprobs(dialect: Dialect, fields: &mut Fields) -> Result<Option<u8>, Failure> {
    let (name, asked, most) = match dialect {
        Dialect::Completion => ("logprobs", fields.take::<i64>("logprobs")?, COMPLETION_LOGPROBS_MAX),
        Dialect::Chat => {
            let wanted = fields.take("logprobs")?.unwrap_or(false);
            let top = fields.take::<i64>("top_logprobs")?;
            if top.is_some_and(|top| top != 0) && !wanted {
                return Err(wrong("top_logprobs", "needs `logprobs` to be true"));
            }
            ("top_logprobs", wanted.then(|| top.unwrap_or(0)), LOGPROBS_MAX)
        }
    };
    let Some(asked) = asked else { return Ok(None) };
    let top = u8::try_from(asked).ok().filter(|top| *top <= most);
    top.map(Some).ok_or_else(|| wrong(name, &format!("is {asked}: ask for 0 to {most}")))
}

// ------------------------------------------------------------------------------------------------ providers

/// Puts into a job what the extensions `provider` and `builder` ask for; whatever the router cannot do is refused.
pub(super) fn routed(request: JobRequest, fields: &mut Fields) -> Result<JobRequest, Failure> {
    let markup = markup(fields)?;
    wanted_provider(JobRequest { markup, ..request }, fields)
}

/// Reads who routed the request; a markup of nothing is none. Whom the node's owner allows, and how much, the driver knows.
fn markup(fields: &mut Fields) -> Result<Option<Markup>, Failure> {
    let Some(given) = fields.take("builder")? else { return Ok(None) };
    let mut fields = Fields::of(given);
    let named = |failure: Failure| match failure.param.clone() {
        Some(param) => failure.in_param(format!("builder.{param}")),
        None => failure,
    };
    let account = fields.take::<String>("account").map_err(named)?;
    let bps = fields.take::<i64>("markup_bps").map_err(named)?.unwrap_or(0);
    if let Some(name) = fields.unknown() {
        return Err(unsupported(&format!("builder.{name}")));
    }
    let account =
        account.ok_or_else(|| wrong("builder.account", "is missing: send the builder's account"))?;
    let builder = account.parse();
    let builder =
        builder.map_err(|_| wrong("builder.account", "must be an account's id of 64 hexadecimal digits"))?;
    let bps = u16::try_from(bps).ok().filter(|bps| u64::from(*bps) <= BPS);
    let bps =
        bps.ok_or_else(|| wrong("builder.markup_bps", &format!("must be a whole number from 0 to {BPS}")))?;
    Ok((bps > 0).then_some(Markup { builder, bps }))
}

fn wanted_provider(request: JobRequest, fields: &mut Fields) -> Result<JobRequest, Failure> {
    let Some(given) = fields.take("provider")? else { return Ok(request) };
    let mut fields = Fields::of(given);
    let named = |failure: Failure| match failure.param.clone() {
        Some(param) => failure.in_param(format!("provider.{param}")),
        None => failure,
    };
    let only = nodes(&mut fields, "only").map_err(named)?;
    let ignore = nodes(&mut fields, "ignore").map_err(named)?;
    let order = nodes(&mut fields, "order").map_err(named)?;
    let sort = match fields.take::<String>("sort").map_err(named)?.as_deref() {
        None => Sort::Balanced,
        Some("price") => Sort::Price,
        Some("latency") => Sort::Latency,
        Some("throughput") => Sort::Throughput,
        Some(_) => return Err(wrong("provider.sort", "must be `price`, `latency` or `throughput`")),
    };
    let price = fields.take::<Value>("max_price").map_err(named)?;
    let max_price_nano = price.map(|price| max_price(&price)).transpose()?;
    let wants = wants(&mut fields).map_err(named)?;
    let fallbacks = fields.take("allow_fallbacks").map_err(named)?.unwrap_or(true);
    match fields.unknown() {
        Some(name) => Err(unsupported(&format!("provider.{name}"))),
        None => Ok(JobRequest { only, ignore, order, sort, max_price_nano, wants, fallbacks, ..request }),
    }
}

/// Reads what adverts must say of a provider.
fn wants(fields: &mut Fields) -> Result<Wants, Failure> {
    let class = fields.take::<String>("class")?;
    if class.as_ref().is_some_and(|class| !["community", "company"].contains(&class.as_str())) {
        return Err(wrong("class", "must be `community` or `company`"));
    }
    let speed = number(fields, "preferred_min_throughput", 0.0..=1e9)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in the range of both")]
    let speed_milli = speed.map(|speed| (f64::from(speed) * 1_000.0) as u64);
    let (quantisations, regions) = (words(fields, "quantizations")?, words(fields, "regions")?);
    Ok(Wants { quantisations, regions, class, speed_milli })
}

fn words(fields: &mut Fields, name: &str) -> Result<Vec<String>, Failure> {
    let words: Vec<String> = fields.take(name)?.unwrap_or_default();
    if words.len() > WORDS_MAX || words.iter().any(|word| !(1..=WORD_BYTES_MAX).contains(&word.len())) {
        return Err(wrong(
            name,
            &format!("must be a list of at most {WORDS_MAX} words of 1 to {WORD_BYTES_MAX} bytes"),
        ));
    }
    Ok(words)
}

/// Reads the most that one job may cost, in credits.
fn max_price(price: &Value) -> Result<u64, Failure> {
    let text = match price {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            return Err(wrong(
                "provider.max_price",
                "must be the credits that one job may cost, such as \"0.25\"",
            ));
        }
    };
    parse_credits(&text).map_err(|failure| failure.in_param("provider.max_price"))
}

fn nodes(fields: &mut Fields, name: &str) -> Result<Vec<String>, Failure> {
    let nodes: Vec<String> = fields.take(name)?.unwrap_or_default();
    if nodes.len() > NODES_MAX || nodes.iter().any(|node| node.parse::<NodeId>().is_err()) {
        let words =
            format!("must be a list of at most {NODES_MAX} node ids, as `sharemesh providers` shows them");
        return Err(wrong(name, &words));
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use engine::frame::Form;
    use proptest::prelude::*;

    use super::*;

    fn asked(dialect: Dialect, changes: Value) -> Result<Asked, Failure> {
        let mut body = match dialect {
            Dialect::Chat => json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
            Dialect::Completion => json!({"model": "m", "prompt": "hi"}),
        };
        let Value::Object(changes) = changes else { panic!("an object") };
        body.as_object_mut().expect("an object").extend(changes);
        Asked::of(dialect, body.to_string().as_bytes())
    }

    fn text(job: &JobRequest) -> &Generate {
        job.generate().expect("a job for text")
    }

    fn chat(changes: Value) -> Result<Asked, Failure> {
        asked(Dialect::Chat, changes)
    }

    #[test]
    fn every_parameter_reaches_the_job() {
        let asked = chat(json!({
            "temperature": 0.5, "top_p": 0, "max_completion_tokens": 7, "max_tokens": 7, "seed": -1, "stop": ["a", "b"],
            "presence_penalty": 1, "frequency_penalty": -2, "logit_bias": {"50": -100, "7": 1.5}, "logprobs": true,
            "top_logprobs": 3, "n": 2, "stream": true, "stream_options": {"include_usage": true}, "user": "u",
            "provider": {"only": ["11".repeat(32)], "sort": "price", "max_price": 0.25}, "strange": 1,
        }));
        let asked = asked.expect("sound");

        let [first, second] = &asked.jobs[..] else { panic!("two choices") };
        let Sampling {
            temperature, top_p, seed, stop, presence_penalty, frequency_penalty, logit_bias, ..
        } = &text(first).sampling;
        assert_eq!((*temperature, *top_p, *seed), (0.5, 0.001, u64::MAX));
        assert_eq!((*presence_penalty, *frequency_penalty), (1.0, -2.0));
        assert_eq!((logit_bias.as_slice(), stop.len()), ([(7, 1.5), (50, -100.0)].as_slice(), 2));
        assert_eq!((text(first).max_tokens, text(first).logprobs), (7, Some(3)));
        assert_eq!((first.sort, first.max_price_nano, first.only.len()), (Sort::Price, Some(250_000_000), 1));
        assert_eq!(text(second).sampling.seed, 0, "another seed for another answer");
        assert!(asked.stream && asked.include_usage);
        assert_eq!(asked.ignored, ["user", "strange"]);
    }

    #[test]
    fn an_answer_of_which_nothing_is_said_may_be_shortened_and_no_other() {
        let open_ended = |changes: Value| chat(changes).expect("sound").jobs[0].open_ended;

        assert!(open_ended(json!({})) && open_ended(json!({"max_tokens": null})));
        assert!(
            !open_ended(json!({"max_tokens": 600})) && !open_ended(json!({"max_completion_tokens": 600}))
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (changes, param) in [
            (json!({"model": null}), "model"),
            (json!({"model": ""}), "model"),
            (json!({"messages": "hi"}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"temperature": 2.5}), "temperature"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"top_p": -1}), "top_p"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": 5, "max_completion_tokens": 6}), "max_tokens"),
            (json!({"max_completion_tokens": 1e9}), "max_completion_tokens"),
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"stop": ["", "a"]}), "stop"),
            (json!({"stop": [1]}), "stop"),
            (json!({"seed": 0.5}), "seed"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
            (json!({"logprobs": true, "max_tokens": 10_000}), "logprobs"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"presence_penalty": 3}), "presence_penalty"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"response_format": {"type": "xml"}}), "response_format"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function.name"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"audio": {"voice": "x"}}), "audio"),
            (json!({"provider": {"only": ["x"]}}), "provider.only"),
            (json!({"provider": {"sort": "beauty"}}), "provider.sort"),
            (json!({"provider": {"order": ["a"]}}), "provider.order"),
            (json!({"provider": {"quantizations": "q4"}}), "provider.quantizations"),
            (json!({"provider": {"regions": [""]}}), "provider.regions"),
            (json!({"provider": {"class": "mine"}}), "provider.class"),
            (
                json!({"provider": {"preferred_min_throughput": {"p50": 1}}}),
                "provider.preferred_min_throughput",
            ),
            (json!({"provider": {"allow_fallbacks": "no"}}), "provider.allow_fallbacks"),
            (json!({"provider": {"max_price": {"prompt": 1}}}), "provider.max_price"),
            (json!({"provider": {"max_price": "-1"}}), "provider.max_price"),
            (json!({"provider": 1}), "provider"),
        ] {
            let failure = chat(changes.clone()).expect_err(param);
            assert_eq!(failure.param.as_deref(), Some(param), "{changes}: {failure}");
            assert_eq!(failure.kind, crate::exit::FailureKind::Usage, "{changes}");
        }
    }

    #[test]
    fn a_chat_has_tools_where_they_may_be_called_or_were() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let prompt = |changes: Value| text(&chat(changes).expect("sound").jobs[0]).prompt.clone();
        assert!(matches!(prompt(json!({"tools": tools})), Prompt::Tools(chat) if chat.parallel));
        assert!(matches!(prompt(json!({"tools": tools, "tool_choice": "none"})), Prompt::Chat(_)));
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let messages = json!([
            {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "4"},
        ]);
        assert!(matches!(prompt(json!({"messages": messages})), Prompt::Tools(chat) if !chat.may_call()));

        for (changes, param) in [
            (json!({"tools": tools, "tool_choice": {"function": {"name": "g"}}}), "tools"),
            (json!({"tools": [tools[0], tools[0]]}), "tools"),
        ] {
            assert_eq!(chat(changes).expect_err(param).param.as_deref(), Some(param));
        }
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_of_the_parameter_in_which_it_is() {
        let format = |kind: &str| json!({"type": "json_schema", "json_schema": {"schema": {"type": kind}}});
        let tools = |kind: &str| json!([{"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}]);
        for (form, tool, param) in [("king", "object", "response_format"), ("string", "king", "tools")] {
            let asked = chat(json!({"response_format": format(form), "tools": tools(tool)})).expect("read");
            assert_eq!(asked.checked().await.expect_err(param).param.as_deref(), Some(param));
        }
        let messages = vec![json!({"role": "user", "content": "x"}); engine::frame::CHAT_MESSAGES_MAX + 1];
        for changes in
            [json!({"messages": messages}), json!({"messages": messages, "tools": tools("object")})]
        {
            assert_eq!(chat(changes).expect_err("too many").param.as_deref(), Some("messages"));
        }
    }

    #[tokio::test]
    async fn a_form_that_no_provider_would_keep_to_is_refused_here() {
        let asked = |schema: Value| {
            let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
            chat(json!({"response_format": format, "n": 2})).expect("read")
        };
        let sound = asked(json!({"type": "object", "properties": {"a": {"type": "integer"}}}));
        let checked = sound.checked().await.expect("sound");
        let Some(Form::Json { schema }) = &text(&checked.jobs[1]).form else { panic!("every choice has it") };
        assert!(schema.contains("integer"));

        for schema in [json!({"type": "king"}), json!({"$ref": "#/x"}), json!({"enum": ["x".repeat(70_000)]})]
        {
            let failure = asked(schema).checked().await.expect_err("no form");
            assert_eq!(failure.param.as_deref(), Some("response_format"), "{failure}");
            assert_eq!(failure.kind, crate::exit::FailureKind::Usage);
        }
    }

    #[test]
    fn parameters_that_ask_for_what_happens_anyway_are_fine() {
        let asked = chat(json!({
            "response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "logit_bias": {}, "stop": null,
            "modalities": ["text"], "provider": {"allow_fallbacks": true}, "n": 1, "top_logprobs": 0,
        }));

        let asked = asked.expect("sound");
        assert!(asked.ignored.is_empty() && asked.jobs.len() == 1, "{asked:?}");
    }

    /// Anything that JSON can say, small.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop_oneof!["text", "user", "json_object", "price", "[a-z0-9]{0,8}"].prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            let key =
                prop_oneof!["type", "role", "content", "only", "max_price", "include_usage", "[a-z0-9]{0,4}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    const PARAMETERS: [&str; 24] = [
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "stop",
        "seed",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "stream",
        "stream_options",
        "provider",
        "echo",
        "tools",
        "response_format",
        "repetition_penalty",
        "user",
    ];

    proptest! {
        #[test]
        fn whatever_a_parameter_is_the_request_is_sound_or_refused_as_a_mistake(
            parameter in prop::sample::select(&PARAMETERS[..]),
            value in any_json(),
            is_chat: bool,
        ) {
            let dialect = if is_chat { Dialect::Chat } else { Dialect::Completion };
            match asked(dialect, json!({ parameter: value })) {
                Ok(asked) => {
                    for job in &asked.jobs {
                        prop_assert_eq!(text(job).validate(), Ok(()));
                    }
                    prop_assert!(!asked.jobs.is_empty());
                }
                Err(failure) => {
                    prop_assert_eq!(failure.kind, crate::exit::FailureKind::Usage);
                    prop_assert!(failure.param.is_some(), "{}", failure);
                }
            }
        }
    }

    #[test]
    fn a_completion_has_a_choice_for_each_prompt_and_may_repeat_it() {
        let asked =
            asked(Dialect::Completion, json!({"prompt": ["a", "b"], "n": 2, "echo": true})).expect("sound");

        assert_eq!(asked.jobs.len(), 4);
        assert_eq!(asked.echoed, ["a", "a", "b", "b"]);
        assert_eq!(text(&asked.jobs[2]).prompt, Prompt::Text("b".to_owned()));
        assert_eq!(text(&asked.jobs[0]).max_tokens, COMPLETION_TOKENS_DEFAULT);
    }

    #[test]
    fn a_completion_may_begin_with_tokens() {
        let prompts = |prompt: Value| {
            let asked = asked(Dialect::Completion, json!({"prompt": prompt})).expect("sound");
            asked.jobs.iter().map(|job| text(job).prompt.clone()).collect::<Vec<_>>()
        };

        assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(json!([[1, 2], [3]])), [Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])]);
    }

    #[test]
    fn a_completion_that_makes_no_sense_is_refused_by_name() {
        for (changes, param) in [
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [1, "a"]}), "prompt"),
            (json!({"prompt": [-1]}), "prompt"),
            (json!({"prompt": [[1], []]}), "prompt"),
            (json!({"prompt": [1, 2], "echo": true}), "echo"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"logprobs": 6}), "logprobs"),
            (json!({"logprobs": 1, "echo": true}), "echo"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"best_of": 3}), "best_of"),
        ] {
            let failure = asked(Dialect::Completion, changes.clone()).expect_err(param);
            assert_eq!(failure.param.as_deref(), Some(param), "{changes}: {failure}");
        }
    }
}
