//! Reads a JSON Schema from whoever asks, and refuses one that would grow out of bounds when it is compiled.
//!
//! Where several schemas must hold at once (`allOf`, `$ref` or `anyOf` beside other keywords) a compiler multiplies their
//! alternatives. What that comes to is estimated from above here, before anything is compiled.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::frame::JobError;

/// Bounds the text of a schema.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;

/// Bounds the nodes that a schema may come to when its alternatives are multiplied out.
const NODES_MAX: u64 = 20_000;

/// Bounds how often something may have to be repeated, because each repetition is written out.
const REPEATS_MAX: u64 = 4_096;

/// Keywords whose number says how often something is repeated.
const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// Keywords that hold schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// Reads a schema within the bounds.
pub(crate) fn read(text: &str) -> Result<Value, JobError> {
    let (schema, nodes) = read_sized(text)?;
    check_nodes(nodes)?;
    Ok(schema)
}

/// Reads a schema, an object, and estimates the nodes that it comes to.
pub(crate) fn read_sized(text: &str) -> Result<(Value, u64), JobError> {
    if text.len() > SCHEMA_BYTES_MAX {
        return bad(format!("the schema has {} bytes: at most {SCHEMA_BYTES_MAX}", text.len()));
    }
    let schema: Value = serde_json::from_str(text)
        .map_err(|error| JobError::BadForm(format!("the schema is not valid JSON: {error}")))?;
    if !schema.is_object() {
        return bad("the schema must be a JSON object".to_owned());
    }
    let estimate = Estimate { root: &schema, of_refs: BTreeMap::new() }.of(&schema)?;
    let nodes = estimate.nodes;
    Ok((schema, nodes))
}

/// Checks the nodes of all schemas of a job together.
pub(crate) fn check_nodes(nodes: u64) -> Result<(), JobError> {
    if nodes > NODES_MAX {
        return bad(format!(
            "the schema comes to more than {NODES_MAX} nodes when its alternatives are multiplied out: make it simpler"
        ));
    }
    Ok(())
}

fn bad<T>(words: String) -> Result<T, JobError> {
    Err(JobError::BadForm(words))
}

/// What a schema comes to at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    /// Alternatives of its deepest path.
    ways: u64,
    nodes: u64,
}

impl Size {
    const LEAF: Self = Self { ways: 1, nodes: 1 };

    /// Both must hold at once.
    fn and(self, other: Self) -> Self {
        let ways = self.ways.saturating_mul(other.ways);
        Self { ways, nodes: self.nodes.saturating_add(other.nodes).saturating_mul(ways) }
    }

    /// One of them holds.
    fn or(self, other: Self) -> Self {
        Self { ways: self.ways.saturating_add(other.ways), nodes: self.nodes.saturating_add(other.nodes) }
    }

    /// Both are parts of something.
    fn beside(self, other: Self) -> Self {
        Self { ways: self.ways.max(other.ways), nodes: self.nodes.saturating_add(other.nodes) }
    }
}

struct Estimate<'a> {
    root: &'a Value,
    /// What references come to; none while one is being looked at.
    of_refs: BTreeMap<&'a str, Option<Size>>,
}

impl<'a> Estimate<'a> {
    fn of(&mut self, schema: &'a Value) -> Result<Size, JobError> {
        let Value::Object(keywords) = schema else { return Ok(Size::LEAF) };
        check_counts(keywords)?;
        let mut size = self.of_parts(keywords)?;
        for member in list(keywords, "allOf") {
            size = size.and(self.of(member)?);
        }
        for choice in ["anyOf", "oneOf"] {
            let mut options = None;
            for option in list(keywords, choice) {
                let option = self.of(option)?;
                options = Some(options.map_or(option, |all: Size| all.or(option)));
            }
            size = options.map_or(size, |options| size.and(options));
        }
        if let Some(Value::String(name)) = keywords.get("$ref") {
            size = size.and(self.of_ref(name)?);
        }
        Ok(size)
    }

    fn of_parts(&mut self, keywords: &'a Map<String, Value>) -> Result<Size, JobError> {
        let mut size = Size::LEAF;
        for (name, value) in keywords {
            let parts: Vec<&Value> = match (name.as_str(), value) {
                ("allOf" | "anyOf" | "oneOf", _) => Vec::new(),
                (name, Value::Object(named)) if NAMED.contains(&name) => named.values().collect(),
                (_, Value::Object(_)) => vec![value],
                (_, Value::Array(values)) => values.iter().collect(),
                _ => Vec::new(),
            };
            for part in parts {
                size = size.beside(self.of(part)?);
            }
        }
        Ok(size)
    }

    /// A reference that leads back to itself is compiled once, where it stands alone.
    fn of_ref(&mut self, name: &'a str) -> Result<Size, JobError> {
        if let Some(known) = self.of_refs.get(name) {
            return Ok(known.unwrap_or(Size::LEAF));
        }
        let Some(pointer) = name.strip_prefix('#') else {
            return bad(format!("the reference `{}` leads out of the schema", short(name)));
        };
        let Some(target) = self.root.pointer(pointer) else {
            return bad(format!("the reference `{}` leads nowhere", short(name)));
        };
        self.of_refs.insert(name, None);
        let size = self.of(target)?;
        self.of_refs.insert(name, Some(size));
        Ok(size)
    }
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

fn list<'a>(keywords: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    keywords.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn check_counts(keywords: &Map<String, Value>) -> Result<(), JobError> {
    for name in COUNTS {
        if keywords.get(name).and_then(Value::as_f64).is_some_and(|count| count > REPEATS_MAX as f64) {
            return bad(format!(
                "`{name}` in the schema is more than {REPEATS_MAX}: lower it or leave it out"
            ));
        }
    }
    Ok(())
}
