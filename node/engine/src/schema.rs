//! Reads a JSON Schema from whoever asks, and refuses one that would grow out of bounds when it is compiled.
//!
//! Where several schemas must hold at once (`allOf`, `$ref` or `anyOf` beside other keywords) a compiler multiplies their
//! alternatives; it also recurses through references, fields and pattern after pattern. What that comes to is estimated from
//! above here, before anything is compiled, whatever the order in which the compiler reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::frame::JobError;

/// Bounds the text of a schema.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;

/// Bounds the nodes that a schema may come to when its alternatives are multiplied out.
const NODES_MAX: u64 = 20_000;

/// Bounds how often something may have to be repeated, because each repetition is written out.
const REPEATS_MAX: u64 = 4_096;

/// Bounds the levels of a schema, those of everything that references lead to added up: a compiler recurses into them all.
const LEVELS_MAX: u64 = 1_000;

/// Bounds the properties, named and required, of all objects of a schema together: alternatives may put them in one.
const NAMES_MAX: u64 = 2_000;

/// Bounds the bytes of a property's name and of a pattern of names.
const NAME_BYTES_MAX: usize = 256;

/// Bounds the patterns of property names in a schema: each is compared to each other.
const PATTERNS_MAX: u64 = 16;

/// Bounds what is done again for every node: pairs of patterns that are compared, and optional properties where
/// they are counted.
const WORK_MAX: u64 = 5_000;

/// Keywords whose number says how often something is repeated.
const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// Keywords that hold schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// Keywords whose value is data, and no schema.
const DATA: [&str; 4] = ["const", "enum", "default", "examples"];

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
    let mut estimate = Estimate::over(&schema);
    estimate.descend(&schema)?;
    let nodes = estimate.of(&schema)?.nodes;
    estimate.total.check(nodes)?;
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

/// What all objects of a schema have together.
#[derive(Default)]
struct Total {
    /// Properties, named or required.
    names: u64,
    /// Properties that are not required beside where they are named.
    optional: u64,
    patterns: u64,
    /// Somewhere the number of properties is bounded.
    counts: bool,
}

impl Total {
    /// Adds what a schema says of its own properties.
    fn add(&mut self, keywords: &Map<String, Value>) -> Result<(), JobError> {
        let keys = |name: &str| keywords.get(name).and_then(Value::as_object).into_iter().flat_map(Map::keys);
        let required: BTreeSet<&str> = list(keywords, "required").iter().filter_map(Value::as_str).collect();
        let optional = keys("properties").filter(|name| !required.contains(name.as_str())).count();
        let names: Vec<&str> = keys("properties").map(String::as_str).chain(required).collect();
        let patterns: Vec<&str> = keys("patternProperties").map(String::as_str).collect();
        if let Some(long) = names.iter().chain(&patterns).find(|name| name.len() > NAME_BYTES_MAX) {
            let words =
                format!("the property `{}` in the schema has more than {NAME_BYTES_MAX} bytes", short(long));
            return bad(words);
        }
        let options = list(keywords, "enum").iter().map(names_in).max();
        let in_data = keywords.get("const").map_or(0, names_in) + options.unwrap_or(0);
        self.names += names.len() as u64 + in_data;
        self.optional += optional as u64;
        self.patterns += patterns.len() as u64;
        self.counts |= keywords.contains_key("minProperties") || keywords.contains_key("maxProperties");
        if self.names > NAMES_MAX {
            return bad(format!(
                "the schema names and requires more than {NAMES_MAX} properties: make it simpler"
            ));
        }
        if self.patterns > PATTERNS_MAX {
            return bad(format!(
                "`patternProperties` has more than {PATTERNS_MAX} patterns in the schema: use fewer"
            ));
        }
        Ok(())
    }

    /// Checks what is done for every node of the schema.
    fn check(&self, nodes: u64) -> Result<(), JobError> {
        let pairs = self.patterns * self.patterns.saturating_sub(1) / 2;
        if nodes.saturating_mul(pairs) > WORK_MAX {
            return bad(
                "`patternProperties` has too many patterns for a schema of this size: use fewer".to_owned()
            );
        }
        if self.counts && nodes.saturating_mul(self.optional) > WORK_MAX {
            return bad("`minProperties` and `maxProperties` cannot be had in a schema with so many optional properties: leave them out".to_owned());
        }
        Ok(())
    }
}

struct Estimate<'a> {
    root: &'a Value,
    /// What references come to; none while one is being looked at.
    of_refs: BTreeMap<&'a str, Option<Size>>,
    /// Levels of the schema and of everything that a reference led to.
    levels: u64,
    total: Total,
    /// The schemas in `total`, by their addresses: references lead to some of them again.
    counted: BTreeSet<*const Map<String, Value>>,
}

impl<'a> Estimate<'a> {
    fn over(root: &'a Value) -> Self {
        let (total, counted) = (Total::default(), BTreeSet::new());
        Self { root, of_refs: BTreeMap::new(), levels: 0, total, counted }
    }

    /// Counts the levels below, before anything recurses into them.
    fn descend(&mut self, into: &Value) -> Result<(), JobError> {
        self.levels += levels(into);
        if self.levels > LEVELS_MAX {
            return bad(format!(
                "the schema and what its references lead to have more than {LEVELS_MAX} levels: make it flatter"
            ));
        }
        Ok(())
    }

    fn of(&mut self, schema: &'a Value) -> Result<Size, JobError> {
        let Value::Object(keywords) = schema else { return Ok(Size::LEAF) };
        check_counts(keywords)?;
        check_meaning(keywords, std::ptr::eq(schema, self.root))?;
        if self.counted.insert(std::ptr::from_ref(keywords)) {
            self.total.add(keywords)?;
        }
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
                (name, data) if DATA.contains(&name) => {
                    size.nodes = size.nodes.saturating_add(values(data));
                    Vec::new()
                }
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
        if name.contains('%') {
            return bad(format!(
                "the reference `{}` has a `%`: give what it names another name",
                short(name)
            ));
        }
        let Some(target) = self.root.pointer(pointer) else {
            return bad(format!("the reference `{}` leads nowhere", short(name)));
        };
        self.descend(target)?;
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

/// Returns the values in a value.
fn inner(value: &Value) -> Vec<&Value> {
    match value {
        Value::Object(fields) => fields.values().collect(),
        Value::Array(all) => all.iter().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// Returns how deep a value goes. JSON is read to 128 levels only.
fn levels(value: &Value) -> u64 {
    inner(value).into_iter().map(levels).max().unwrap_or(0) + 1
}

/// Returns how many values a value has, itself included.
fn values(value: &Value) -> u64 {
    inner(value).into_iter().map(values).sum::<u64>() + 1
}

/// Returns how many fields all objects in a value have together.
fn names_in(value: &Value) -> u64 {
    let own = value.as_object().map_or(0, Map::len) as u64;
    own + inner(value).into_iter().map(names_in).sum::<u64>()
}

/// Refuses what would make the compiler read something else than is estimated here.
fn check_meaning(keywords: &Map<String, Value>, is_root: bool) -> Result<(), JobError> {
    let moved = ["$id", "id"].into_iter().find(|name| keywords.get(*name).is_some_and(Value::is_string));
    if let Some(name) = moved.filter(|_| !is_root) {
        return bad(format!("`{name}` below the top of the schema is not supported: leave it out"));
    }
    let choices = ["allOf", "anyOf", "oneOf"];
    match choices.into_iter().find(|name| keywords.get(*name).is_some_and(|value| !value.is_array())) {
        Some(name) => bad(format!("`{name}` in the schema must be a list")),
        None => Ok(()),
    }
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
