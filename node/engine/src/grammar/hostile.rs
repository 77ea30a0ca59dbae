//! Schemas that mean harm, for tests.

use serde_json::{Value, json};

use super::Grammars;
use crate::frame::{Form, Generate, Prompt, Sampling};
use crate::sampler::choose;

/// Tokens that are drawn of each answer.
const TOKENS: u32 = 100;

/// Compiles each schema and draws the beginning of an answer; says how many could be compiled.
pub(crate) fn follow(grammars: &Grammars, vocabulary_size: usize) -> usize {
    let follows = |schema: &Value| {
        let begun = std::time::Instant::now();
        let generate = Generate {
            prompt: Prompt::Text("x".to_owned()),
            sampling: Sampling::default(),
            max_tokens: 1,
            resume: Vec::new(),
            logprobs: None,
            form: Some(Form::Json { schema: schema.to_string() }),
        };
        let compiled = grammars.compile(&generate).ok().flatten();
        let took = begun.elapsed();
        let mut slowest = std::time::Duration::ZERO;
        let is_sound = compiled.is_some();
        if let Some(mut constraint) = compiled {
            for index in 0..TOKENS {
                let begun = std::time::Instant::now();
                let mut logits = vec![0.0; vocabulary_size];
                let masked = constraint.mask(&mut logits).is_ok();
                let id = choose(&mut logits, &[], index, &Sampling::default());
                let taken = masked && id.is_some_and(|id| constraint.take(id).is_ok());
                slowest = slowest.max(begun.elapsed());
                if !taken || constraint.is_complete() {
                    break;
                }
            }
        }
        let schema: String = schema.to_string().chars().take(80).collect();
        println!("compiled in {took:?}, slowest token {slowest:?}: {schema}");
        is_sound
    };
    schemas().iter().filter(|schema| follows(schema)).count()
}

/// References that lead from one definition to the next, each through 90 levels below a keyword.
pub(crate) fn chain(length: usize, keyword: &str) -> Value {
    let link = |n: usize| {
        let next =
            if n == 0 { json!({"type": "null"}) } else { json!({"$ref": format!("#/$defs/d{}", n - 1)}) };
        let nested = (0..90).fold(next, |inner, _| json!({"type": "array", keyword: inner}));
        (format!("d{n}"), nested)
    };
    let defs: serde_json::Map<_, _> = (0..length).map(link).collect();
    json!({"$ref": format!("#/$defs/d{}", length - 1), "$defs": defs})
}

/// An object of so many properties, all required.
pub(crate) fn required(count: usize) -> Value {
    json!({"type": "object", "required": (0..count).map(|n| n.to_string()).collect::<Vec<_>>()})
}

/// Schemas that mean harm: small to write, large or slow to compile or to follow.
pub(crate) fn schemas() -> Vec<Value> {
    let choice = |n: usize| json!({"anyOf": [{"const": format!("a{n}")}, {"const": format!("b{n}")}]});
    let object = |n: usize| {
        let side = |s: &str| json!({"properties": {format!("p{n}"): {"const": s}}});
        json!({"anyOf": [side("a"), side("b")]})
    };
    let doubled: Value = (0..40)
        .map(|n| {
            let next = format!("#/$defs/d{}", n + 1);
            (format!("d{n}"), json!({"allOf": [{"$ref": next}, {"$ref": next}]}))
        })
        .chain([("d40".to_owned(), json!({"type": "object"}))])
        .collect::<serde_json::Map<_, _>>()
        .into();
    let many: serde_json::Map<_, _> =
        (0..3_000).map(|n| (format!("p{n}"), json!({"type": "string"}))).collect();
    let optional: serde_json::Map<_, _> =
        (0..300).map(|n| (format!("p{n}"), json!({"type": "string"}))).collect();
    vec![
        json!({"allOf": (0..30).map(choice).collect::<Vec<_>>()}),
        json!({"type": "object", "allOf": (0..30).map(object).collect::<Vec<_>>()}),
        json!({"$ref": "#/$defs/d0", "$defs": doubled}),
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}], "anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"type": "array", "items": {}, "minItems": 4_000_000_000_u64}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "array", "minItems": 4_000},
            "minItems": 4_000}, "minItems": 4_000}),
        json!({"type": "string", "minLength": 4_000_000_000_u64}),
        json!({"type": "string", "pattern": "(a{1,1000}){1,1000}"}),
        json!({"type": "string", "pattern": "a{1000000000}"}),
        json!({"type": "string", "pattern": "(a|aa)+(b|bb)+.*x.{900}"}),
        json!({"type": "string", "pattern": "^(.*a.*b.*c.*d.*e){50}$"}),
        json!({"type": "string", "pattern": "[ab]*a[ab]{14}c"}),
        json!({"type": "integer", "minimum": 1, "maximum": 9_007_199_254_740_991_u64, "multipleOf": 7919}),
        json!({"properties": many, "anyOf": (0..900).map(|n| json!({"minProperties": n})).collect::<Vec<_>>()}),
        json!({"properties": optional, "additionalProperties": false}),
        json!({"patternProperties": {"(a|b|c)*d": {}, "(a|b)*c.{50}": {}, "x.*y.*z": {}}}),
        (0..100).fold(json!({}), |inner, _| json!({"type": "object", "properties": {"a": inner}})),
        json!({"enum": (0..5_000).map(|n| format!("{n:08}")).collect::<Vec<_>>()}),
        chain(9, "items"),
        chain(9, "unknown"),
        chain(20, "items"),
        required(2_000),
        required(9_000),
        json!({"type": "array", "prefixItems": vec![json!({"type": "null"}); 3_000], "minItems": 3_000}),
        json!({"oneOf": (0..900).map(|n| json!({"properties": {"a": {"const": n}}, "required": ["a"], "type": "object"}))
            .collect::<Vec<_>>()}),
        json!({"type": "object", "patternProperties": (0..16).map(|n| (format!("[ab]*a[ab]{{8}}c{n}x$"), json!({})))
            .collect::<serde_json::Map<_, _>>(), "allOf": vec![json!({"properties": {"a": {}}}); 6]}),
        json!({"type": "object", "minProperties": 1, "additionalProperties": false,
            "properties": (0..64).map(|n| (format!("{n}"), json!({}))).collect::<serde_json::Map<_, _>>()}),
        json!({"type": "object", "additionalProperties": {"$ref": "#"}, "propertyNames": {"pattern": ".*a.{300}"}}),
    ]
}
