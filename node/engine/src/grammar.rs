//! Keeps an answer to a form: says which tokens may come next, so that what comes out always follows the grammar.
//!
//! A form comes from whoever asks, who may mean harm: its size, the work of compiling it and the work of each token are
//! bounded, and what goes beyond is a refusal of that one job.

use std::fmt;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;

use crate::frame::{Form, JobError};
use crate::schema;

/// Bounds the states that the lexer of one job may grow to; each is 1 to 2 KB.
const LEXER_STATES_MAX: usize = 20_000;

/// Compiles forms to grammars over one vocabulary.
pub(crate) struct Grammars {
    factory: ParserFactory,
}

impl Grammars {
    /// Takes the bytes of every token, none for those that a grammar never allows, and the tokens that end an answer.
    pub(crate) fn new(words: &[Vec<u8>], ends: &[u32]) -> anyhow::Result<Self> {
        let vocab_size = u32::try_from(words.len())?;
        let end = ends.iter().copied().find(|end| *end < vocab_size);
        let end = end.ok_or_else(|| anyhow::anyhow!("the model has no token that ends an answer"))?;
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, end), words);
        let ends: Vec<u32> = ends.iter().copied().filter(|end| *end < vocab_size).collect();
        Self::over(&(Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends))) as TokEnv))
    }

    fn over(tokens: &TokEnv) -> anyhow::Result<Self> {
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(tokens, InferenceCapabilities::default(), &slices)?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory })
    }

    /// Compiles a form; the error says what is wrong with it.
    pub(crate) fn compile(&self, form: &Form) -> Result<Constraint, JobError> {
        let grammar = grammar_of(form)?;
        let parser = self.factory.create_parser(grammar);
        let parser = parser.map_err(|error| JobError::BadForm(words_of(&error)))?;
        Ok(Constraint { matcher: Box::new(Matcher::new(Ok(parser))) })
    }
}

/// Says whether a form can be compiled, without a model: what passes here is refused by no worker.
pub fn check(form: &Form) -> Result<(), JobError> {
    let grammars = Grammars::over(&ApproximateTokEnv::single_byte_env());
    let grammars = grammars.map_err(|error| JobError::Internal(error.to_string()))?;
    grammars.compile(form).map(|_| ())
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

fn grammar_of(form: &Form) -> Result<TopLevelGrammar, JobError> {
    match form {
        Form::Json { schema } => {
            let mut schema: Value = schema::read(schema)?;
            spaced_once(&mut schema);
            Ok(TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(schema)))
        }
    }
}

/// Allows white space only where Python's `json.dumps` writes it: a model could go on with it for ever.
fn spaced_once(schema: &mut Value) {
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

fn astray(error: &anyhow::Error) -> JobError {
    JobError::BadRequest(format!("the answer cannot be kept to its form: {}", words_of(error)))
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

    /// All bytes and some words, as a model has them; the last token ends an answer.
    fn words() -> Vec<Vec<u8>> {
        let words = ["name", "true", "\": \"", "\", \"", "}", "null", " 12", "é", "\"}"];
        let bytes = (0..=255).map(|byte| vec![byte]);
        bytes.chain(words.map(|word| word.as_bytes().to_vec())).chain([Vec::new()]).collect()
    }

    fn grammars() -> Grammars {
        let words = words();
        Grammars::new(&words, &[u32::try_from(words.len() - 1).expect("small")]).expect("sound")
    }

    fn form(schema: &Value) -> Form {
        Form::Json { schema: schema.to_string() }
    }

    /// Draws an answer from logits that know nothing of it; returns none if it is not complete after many tokens.
    fn draw(grammars: &Grammars, form: &Form, seed: u64) -> Option<String> {
        let words = words();
        let end = u32::try_from(words.len() - 1).expect("small");
        let mut constraint = grammars.compile(form).expect("sound");
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
            Err(JobError::BadForm(why)) => why,
            other => panic!("expected a refusal of {}, not {other:?}", short(schema)),
        }
    }

    fn short(schema: &Value) -> String {
        schema.to_string().chars().take(200).collect()
    }

    #[test]
    fn what_is_no_schema_is_refused_in_words() {
        assert!(refusal(&json!([])).contains("must be a JSON object"));
        assert!(refusal(&json!({"type": "king"})).contains("king"));
        assert!(refusal(&json!({"$ref": "#/nowhere"})).contains("leads nowhere"));
        assert!(refusal(&json!({"$ref": "https://example.org/schema"})).contains("out of the schema"));
        assert!(refusal(&json!({"type": "string", "pattern": "("})).contains("regex"));
        assert!(refusal(&json!({"description": "x".repeat(70_000)})).contains("bytes"));
        let broken = Form::Json { schema: "{".to_owned() };
        assert!(matches!(check(&broken), Err(JobError::BadForm(_))));
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
