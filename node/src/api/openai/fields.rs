//! Takes the parameters of a request one by one, and knows what was left over.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::exit::Failure;

/// Bounds the names that an answer's header lists.
const LISTED_MAX: usize = 32;

/// What a request asks for, by name.
pub(super) struct Fields {
    given: Map<String, Value>,
    /// Names of what was read and changes nothing.
    ignored: Vec<String>,
}

impl Fields {
    /// Reads a body, which must be a JSON object.
    pub(super) fn read(body: &[u8]) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Failure::usage(format!("the body is not valid JSON: {error}")))?;
        let Value::Object(given) = value else {
            return Err(Failure::usage("the body must be a JSON object, with `model` and what to answer"));
        };
        Ok(Self::of(given))
    }

    /// Takes the parameters of an object inside of a body.
    pub(super) fn of(given: Map<String, Value>) -> Self {
        Self { given, ignored: Vec::new() }
    }

    /// Says whether a parameter was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.given.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes a parameter; none if it is missing or null.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        match self.given.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => parse(name, value).map(Some),
        }
    }

    /// Takes a parameter that changes nothing here, and remembers to say so.
    pub(super) fn ignore(&mut self, name: &str) {
        if self.given.remove(name).is_some_and(|value| !value.is_null()) {
            self.note_ignored(name);
        }
    }

    /// Remembers to say that something changes nothing.
    pub(super) fn note_ignored(&mut self, name: &str) {
        self.ignored.push(name.to_owned());
    }

    /// Refuses a parameter that would change the answer and cannot be honoured, unless it asks for what happens anyway.
    pub(super) fn refuse(&mut self, name: &str, usual: &[Value]) -> Result<(), Failure> {
        match self.given.remove(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if usual.contains(&value) => Ok(()),
            Some(_) => Err(unsupported(name)),
        }
    }

    /// Returns a name that nobody has asked for, whatever it looks like.
    pub(super) fn unknown(&self) -> Option<&str> {
        self.given.iter().find(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str())
    }

    /// Returns the names of everything that was given and changes nothing.
    pub(super) fn leftover(mut self) -> Vec<String> {
        let unknown = self.given.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name);
        self.ignored.extend(unknown.filter(|name| is_plain(name)));
        self.ignored.truncate(LISTED_MAX);
        self.ignored
    }
}

/// Reads a value, or says which parameter it is that cannot be read.
pub(super) fn parse<T: DeserializeOwned>(name: &str, value: Value) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|error| wrong(name, &format!("cannot be read: {error}")))
}

/// Says what is wrong with a parameter.
pub(super) fn wrong(name: &str, what: &str) -> Failure {
    Failure::usage(format!("`{name}` {what}")).in_param(name)
}

/// Says that a parameter cannot be honoured.
pub(super) fn unsupported(name: &str) -> Failure {
    wrong(name, "is not supported here: leave it out (docs/api.md lists what is)")
}

/// Says whether a name can stand in a header as it is.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_read_names_its_parameter() {
        let mut fields =
            Fields::read(br#"{"n": "two", "seed": null, "user": "x", "tools": []}"#).expect("an object");

        assert_eq!(fields.take::<u32>("n").expect_err("a word").param.as_deref(), Some("n"));
        assert_eq!(fields.take::<u64>("seed"), Ok(None));
        fields.ignore("user");
        assert_eq!(fields.refuse("tools", &[json!([])]), Ok(()));
        assert_eq!(fields.leftover(), ["user"]);
    }

    #[test]
    fn whatever_is_not_an_object_is_refused() {
        for body in ["", "[]", "1", "{", "\"a\"", &"[".repeat(1000)] {
            assert!(Fields::read(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn names_that_cannot_stand_in_a_header_are_not_listed() {
        let fields = Fields::read("{\"ok\": 1, \"a\\r\\nb: c\": 1, \"é\": 1}".as_bytes()).expect("an object");

        assert_eq!(fields.leftover(), ["ok"]);
    }
}
