//! Keeps an answer to a form: says which tokens may come next, so that what comes out always follows the grammar.
//!
//! A form comes from whoever asks, who may mean harm: its size, the work of compiling it and the work of each token are
//! bounded, and what goes beyond is a refusal of that one job.

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;

use crate::frame::{Form, Generate, JobError, Prompt};
use crate::schema;
use crate::tools::ToolChat;

/// Bounds the states that the lexer of one job may grow to; each is 1 to 2 KB.
const LEXER_STATES_MAX: usize = 20_000;

/// The stack on which forms are compiled, because that recurses into them: what [`schema`] lets through needs a part of it.
const STACK_BYTES: usize = 64 << 20;

/// Compiles forms to grammars over one vocabulary.
pub(crate) struct Grammars {
    factory: ParserFactory,
}

impl Grammars {
    /// Takes the bytes of every token, none for those that a grammar never allows, and the tokens that end an answer,
    /// which a grammar allows nowhere else.
    pub(crate) fn new(mut words: Vec<Vec<u8>>, ends: &[u32]) -> anyhow::Result<Self> {
        let vocab_size = u32::try_from(words.len())?;
        let end = ends.iter().copied().find(|end| *end < vocab_size);
        let end = end.ok_or_else(|| anyhow::anyhow!("the model has no token that ends an answer"))?;
        let ends: Vec<u32> = ends.iter().copied().filter(|end| *end < vocab_size).collect();
        ends.iter().for_each(|end| words[*end as usize].clear());
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, end), &words);
        Self::over(&(Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends))) as TokEnv))
    }

    fn over(tokens: &TokEnv) -> anyhow::Result<Self> {
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(tokens, InferenceCapabilities::default(), &slices)?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory })
    }

    /// Compiles what the answer to a request must look like, none for anything; the error says what is wrong with it.
    pub(crate) fn compile(&self, generate: &Generate) -> Result<Option<Constraint>, JobError> {
        deep(|| {
            let Some(grammar) = grammar_of(generate)? else { return Ok(None) };
            let parser = self.factory.create_parser(grammar).map_err(|error| not_compiled(&error))?;
            Ok(Some(Constraint { matcher: Box::new(Matcher::new(Ok(parser))) }))
        })
    }
}

/// Runs what recurses deeply; a panic in it goes on here.
fn deep<T: Send>(run: impl FnOnce() -> Result<T, JobError> + Send) -> Result<T, JobError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, run);
        let thread = thread.map_err(|error| JobError::Internal(format!("cannot start a thread: {error}")))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Says whether answers can be kept to the form of a request, without a model: what passes here is refused by no worker.
pub fn check(generate: &Generate) -> Result<(), JobError> {
    let grammars = Grammars::over(&ApproximateTokEnv::single_byte_env());
    let grammars = grammars.map_err(|error| JobError::Internal(error.to_string()))?;
    grammars.compile(generate).map(|_| ())
}

/// Says whether the answer to a request has a form.
pub fn is_needed(generate: &Generate) -> bool {
    generate.form.is_some() || tools_of(generate).is_some()
}

fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: LEXER_STATES_MAX,
        // A fiftieth of a second, about.
        initial_lexer_fuel: 1_000_000,
        max_grammar_size: 100_000,
        // Would take its time once for each token of the vocabulary.
        precompute_large_lexemes: false,
        // What the model says must not reach a log.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

fn tools_of(generate: &Generate) -> Option<&ToolChat> {
    match &generate.prompt {
        Prompt::Tools(chat) => Some(&**chat).filter(|chat| chat.may_call()),
        Prompt::Chat(_) | Prompt::Text(_) | Prompt::Tokens(_) => None,
    }
}

fn grammar_of(generate: &Generate) -> Result<Option<TopLevelGrammar>, JobError> {
    let schema = generate.form.as_ref().map(|Form::Json { schema }| schema::read(schema)).transpose()?;
    let schema = schema.map(|mut schema| {
        space_once(&mut schema);
        schema
    });
    let grammar = match (tools_of(generate), schema) {
        (Some(chat), schema) => GrammarWithLexer::from_lark(chat.grammar(schema.as_ref())?),
        (None, Some(schema)) => GrammarWithLexer::from_json_schema(schema),
        (None, None) => return Ok(None),
    };
    Ok(Some(TopLevelGrammar::from_grammar(grammar)))
}

/// Allows white space only where Python's `json.dumps` writes it: a model could go on with it for ever.
pub(crate) fn space_once(schema: &mut Value) {
    let options = JsonCompileOptions {
        item_separator: ", ".to_owned(),
        key_separator: ": ".to_owned(),
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    if schema.is_object() {
        options.apply_to(schema);
    }
}

fn words_of(error: &anyhow::Error) -> String {
    let words: String = error.to_string().chars().take(300).collect();
    words.trim_end_matches("<non-verbose/>").trim().to_owned()
}

/// Another version of the compiler may take it, so this is no offence of whoever asks.
fn not_compiled(error: &anyhow::Error) -> JobError {
    JobError::BadRequest(format!("the form of the answer: {}", words_of(error)))
}

/// The job runs by now: whoever asked is to hear that it failed.
fn astray(error: &anyhow::Error) -> JobError {
    JobError::Internal(format!("the answer cannot be kept to its form: {}", words_of(error)))
}

/// What one answer may still become.
#[derive(Clone)]
pub struct Constraint {
    matcher: Box<Matcher>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Constraint(..)")
    }
}

impl Constraint {
    /// Makes every token impossible that would leave the form.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), JobError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| astray(&error))?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= allowed.len() || !allowed.get(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the next token, which must be one that the mask left.
    pub(crate) fn take(&mut self, id: u32) -> Result<(), JobError> {
        self.matcher.consume_token(id).map_err(|error| astray(&error))
    }

    /// Says whether nothing can follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

#[cfg(test)]
pub(crate) mod hostile;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::frame::Sampling;
    use crate::sampler::choose;
    use crate::tools::ToolChoice;

    /// All bytes and some words, as a model has them; the last token ends an answer.
    fn words() -> Vec<Vec<u8>> {
        let words = ["name", "true", "\": \"", "\", \"", "}", "null", " 12", "é", "\"}", "<end>"];
        let bytes = (0..=255).map(|byte| vec![byte]);
        bytes.chain(words.map(|word| word.as_bytes().to_vec())).collect()
    }

    fn grammars() -> Grammars {
        let words = words();
        let end = u32::try_from(words.len() - 1).expect("small");
        Grammars::new(words, &[end]).expect("sound")
    }

    fn form(schema: &Value) -> Generate {
        formed(schema.to_string())
    }

    fn formed(schema: String) -> Generate {
        Generate {
            prompt: Prompt::Text("x".to_owned()),
            sampling: Sampling::default(),
            max_tokens: 1,
            resume: Vec::new(),
            logprobs: None,
            form: Some(Form::Json { schema }),
        }
    }

    /// Draws an answer from logits that know nothing of it; returns none if it is not complete after many tokens.
    fn draw(grammars: &Grammars, form: &Generate, seed: u64) -> Option<String> {
        let words = words();
        let end = u32::try_from(words.len() - 1).expect("small");
        let mut constraint = grammars.compile(form).expect("sound").expect("it has one");
        let mut answer = Vec::new();
        for index in 0..400 {
            // The quote is likely, so that texts end.
            let mut logits: Vec<f32> =
                (0..words.len()).map(|id| if id == usize::from(b'"') { 4.0 } else { 0.0 }).collect();
            constraint.mask(&mut logits).expect("within its bounds");
            let id =
                choose(&mut logits, &[], index, &Sampling { seed, ..Sampling::default() }).expect("a token");
            if id == end {
                return Some(String::from_utf8(answer).expect("text"));
            }
            answer.extend(&words[id as usize]);
            constraint.take(id).expect("the mask left it");
            if constraint.is_complete() {
                return Some(String::from_utf8(answer).expect("text"));
            }
        }
        None
    }

    #[test]
    fn whatever_the_model_would_say_the_answer_satisfies_the_schema() {
        let grammars = grammars();
        let schema = json!({
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 5},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
                "kind": {"$ref": "#/$defs/kind"},
            },
            "required": ["name", "age", "tags", "kind"],
            "additionalProperties": false,
            "$defs": {"kind": {"anyOf": [{"const": "x"}, {"type": "null"}]}},
        });
        for seed in 0..50 {
            let answer = draw(&grammars, &form(&schema), seed).expect("it is short");
            let value: Value =
                serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
            let keys: Vec<_> = value.as_object().expect("an object").keys().collect();
            assert_eq!(keys, ["name", "age", "tags", "kind"], "{answer}");
            assert!(value["name"].as_str().expect("text").chars().count() <= 5, "{answer}");
            assert!(value["age"].as_u64().expect("a number") <= 150, "{answer}");
            assert!(value["tags"].as_array().expect("a list").len() <= 2, "{answer}");
            assert!(value["kind"].is_null() || value["kind"] == "x", "{answer}");
        }
    }

    #[test]
    fn any_object_that_ends_parses() {
        let grammars = grammars();
        let form = form(&json!({"type": "object"}));
        let ended: Vec<_> = (0..30).filter_map(|seed| draw(&grammars, &form, seed)).collect();
        assert!(ended.len() > 5, "{ended:?}");
        for answer in ended {
            // JSON allows numbers that no double holds; where this reader meets one, the text was JSON up to there.
            match serde_json::from_str::<Value>(&answer) {
                Ok(value) => assert!(value.is_object(), "{answer}"),
                Err(error) => assert!(error.to_string().contains("number out of range"), "{error}: {answer}"),
            }
        }
    }

    #[test]
    fn options_of_the_compiler_cannot_be_set_from_outside() {
        let schema = json!({"x-guidance": {"whitespace_pattern": "(a|aa)+$"}, "type": "object",
            "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
        let answer = draw(&grammars(), &form(&schema), 1).expect("it is short");
        assert!(["{\"a\": true}", "{\"a\": false}"].contains(&answer.as_str()), "{answer}");
    }

    fn refusal(schema: &Value) -> String {
        match check(&form(schema)) {
            Err(JobError::BadForm(why) | JobError::BadRequest(why)) => why,
            other => panic!("expected a refusal of {}, not {other:?}", short(schema)),
        }
    }

    fn short(schema: &Value) -> String {
        schema.to_string().chars().take(200).collect()
    }

    fn called(choice: ToolChoice, change: impl FnOnce(&mut ToolChat)) -> Generate {
        let mut chat = crate::tools::tests::chat(choice);
        change(&mut chat);
        Generate { prompt: Prompt::Tools(Box::new(chat)), form: None, ..form(&json!({})) }
    }

    /// Says whether a grammar lets a text through, to its end.
    fn allows(generate: &Generate, text: &str) -> bool {
        let mut constraint = grammars().compile(generate).expect("sound").expect("it has one");
        let end = words().len() - 1;
        let mut take = |id: usize| {
            let mut logits = vec![0.0; words().len()];
            let allowed = constraint.mask(&mut logits).is_ok() && logits[id] == 0.0;
            allowed && constraint.take(u32::try_from(id).expect("small")).is_ok()
        };
        // A form that allows nothing more has ended already.
        text.bytes().all(|byte| take(byte.into()))
            && (constraint.is_complete() || {
                let mut logits = vec![0.0; words().len()];
                constraint.mask(&mut logits).is_ok() && logits[end] == 0.0
            })
    }

    #[test]
    fn calls_are_written_one_way_and_their_arguments_satisfy_the_tool() {
        let weather =
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Rome\"}}\n</tool_call>";
        let time = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
        let both = format!("{weather}\n{time}");
        let wrong = weather.replace("place", "where");
        let after_words = format!("I look: {both}");
        let one = |chat: &mut ToolChat| chat.parallel = false;
        for (generate, text, is_allowed) in [
            (called(ToolChoice::Auto, |_| ()), "Hello, a < b, <tool_cal.", true),
            (called(ToolChoice::Auto, |_| ()), "", true),
            (called(ToolChoice::Auto, |_| ()), weather, true),
            (called(ToolChoice::Auto, |_| ()), after_words.as_str(), true),
            (called(ToolChoice::Auto, |_| ()), wrong.as_str(), false),
            (called(ToolChoice::Auto, |_| ()), "<tool_call>", false),
            (called(ToolChoice::Auto, one), weather, true),
            (called(ToolChoice::Auto, one), both.as_str(), false),
            (called(ToolChoice::Required, |_| ()), "Hello", false),
            (called(ToolChoice::Required, |_| ()), "", false),
            (called(ToolChoice::Required, |_| ()), both.as_str(), true),
            (called(ToolChoice::Named("time".to_owned()), |_| ()), time, true),
            (called(ToolChoice::Named("time".to_owned()), |_| ()), weather, false),
            (called(ToolChoice::Named("weather".to_owned()), |_| ()), both.as_str(), false),
        ] {
            assert_eq!(allows(&generate, text), is_allowed, "{text} {generate:?}");
        }
        let form = Some(Form::Json { schema: r#"{"enum": ["a"]}"#.to_owned() });
        let formed = Generate { form, ..called(ToolChoice::Auto, |_| ()) };
        for (text, is_allowed) in [("\"a\"", true), (weather, true), ("a", false), ("\"b\"", false)] {
            assert_eq!(allows(&formed, text), is_allowed, "{text}");
        }
    }

    #[test]
    fn a_tool_whose_parameters_are_no_object_or_out_of_bounds_is_refused_by_its_name() {
        for parameters in [r#"{"type": "string"}"#, "{", r#"{"properties": {"a": {"minItems": 9999}}}"#] {
            let generate = called(ToolChoice::Auto, |chat| chat.tools[1].parameters = parameters.to_owned());
            let error = check(&generate).expect_err("refused").to_string();
            assert!(error.contains("`time`"), "{error}");
        }
        assert_eq!(check(&called(ToolChoice::Never, |chat| chat.tools[0].parameters.clear())), Ok(()));
    }

    #[test]
    fn what_is_no_schema_is_refused_in_words() {
        assert!(refusal(&json!([])).contains("must be a JSON object"));
        assert!(refusal(&json!({"type": "king"})).contains("king"));
        assert!(refusal(&json!({"$ref": "#/nowhere"})).contains("leads nowhere"));
        assert!(refusal(&json!({"$ref": "https://example.org/schema"})).contains("out of the schema"));
        assert!(refusal(&json!({"type": "string", "pattern": "("})).contains("regex"));
        assert!(refusal(&json!({"description": "x".repeat(70_000)})).contains("bytes"));
        assert!(matches!(check(&formed("{".to_owned())), Err(JobError::BadForm(_))));
    }

    #[test]
    fn only_what_our_own_bounds_refuse_is_an_offence() {
        assert!(matches!(check(&form(&json!({"type": "king"}))), Err(JobError::BadRequest(_))));
        assert!(matches!(check(&form(&json!({"$ref": "#/nowhere"}))), Err(JobError::BadForm(_))));
    }

    #[test]
    fn a_token_that_ends_an_answer_is_allowed_in_no_text() {
        let mut constraint =
            grammars().compile(&form(&json!({"type": "string"}))).expect("sound").expect("one");
        let end = words().len() - 1;
        let allowed = |constraint: &mut Constraint| {
            let mut logits = vec![0.0; words().len()];
            constraint.mask(&mut logits).expect("within its bounds");
            logits[end] == 0.0
        };
        for byte in *b"\"a" {
            assert!(!allowed(&mut constraint), "before {byte}");
            constraint.take(byte.into()).expect("the mask left it");
        }
        assert!(!allowed(&mut constraint), "in the middle of a text");
    }

    #[test]
    fn a_job_that_runs_and_leaves_its_form_fails_and_is_not_refused() {
        let mut constraint =
            grammars().compile(&form(&json!({"type": "integer"}))).expect("sound").expect("one");
        assert!(matches!(constraint.take(u32::from(b'x')), Err(JobError::Internal(_))));
    }

    #[test]
    fn what_the_compiler_recurses_into_fits_its_stack_or_is_refused() {
        assert_eq!(check(&form(&hostile::chain(9, "items"))), Ok(()));
        assert!(refusal(&hostile::chain(20, "items")).contains("levels"));
        assert!(refusal(&hostile::chain(20, "x")).contains("levels"));
        assert_eq!(check(&form(&hostile::required(2_000))), Ok(()));
        assert!(refusal(&hostile::required(9_000)).contains("properties"));
        let fields: serde_json::Map<_, _> = (0..5_000).map(|n| (format!("{n}"), json!(0))).collect();
        assert!(refusal(&json!({"const": fields})).contains("properties"));
    }

    #[test]
    fn what_would_be_done_for_every_pair_of_properties_or_patterns_is_refused() {
        let named = |count: usize, value: &Value| -> Value {
            (0..count).map(|n| (format!("^p{n}x"), value.clone())).collect::<serde_json::Map<_, _>>().into()
        };
        let text = json!({"type": "string"});
        assert_eq!(check(&form(&json!({"type": "object", "patternProperties": named(16, &text)}))), Ok(()));
        let many = json!({"type": "object", "patternProperties": named(17, &text)});
        assert!(refusal(&many).contains("patternProperties"));
        let again = vec![json!({"properties": {"a": text}}); 50];
        let combined = json!({"type": "object", "patternProperties": named(16, &text), "allOf": again});
        assert!(refusal(&combined).contains("patternProperties"));
        for count in ["minProperties", "maxProperties"] {
            let mut schema =
                json!({"type": "object", "properties": named(64, &text), "additionalProperties": false});
            schema[count] = 1.into();
            assert_eq!(check(&form(&schema)), Ok(()));
            schema["properties"] = named(900, &text);
            assert!(refusal(&schema).contains(count));
        }
        let long = json!({"properties": {"x".repeat(300): {}}});
        assert!(refusal(&long).contains("bytes"));
    }

    #[test]
    fn what_is_estimated_is_what_is_compiled() {
        assert!(refusal(&json!({"$defs": {"a": {"$id": "x"}}})).contains("$id"));
        assert!(refusal(&json!({"$ref": "#/$defs/a%20b", "$defs": {"a%20b": {}}})).contains('%'));
        assert!(refusal(&json!({"anyOf": {"type": "string"}})).contains("must be a list"));
        let of_ids = json!({"$id": "https://example.org/x", "type": "object", "properties": {"id": {"type": "string"},
            "kind": {"const": {"id": "x"}}, "anyOf": {"type": "null"}}});
        assert_eq!(check(&form(&of_ids)), Ok(()));
    }

    #[test]
    fn schemas_that_mean_harm_are_refused_or_followed_within_bounds() {
        let followed = hostile::follow(&grammars(), words().len());
        assert!(followed > 5, "some of them can be followed");
        for schema in &hostile::schemas()[..3] {
            assert!(refusal(schema).contains("multiplied out"));
        }
    }
}
