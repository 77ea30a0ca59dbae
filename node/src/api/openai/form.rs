//! What an answer must look like: `response_format`.

use engine::frame::Form;
use serde_json::{Map, Value};

use super::fields::{Fields, parse, wrong};
use super::wire::Dialect;
use crate::exit::Failure;

const NAME: &str = "response_format";

/// The schema of any object.
const OBJECT: &str = r#"{"type":"object"}"#;

/// Returns the form that a request asks for; none for text.
pub(super) fn read(dialect: Dialect, fields: &mut Fields) -> Result<Option<Form>, Failure> {
    let Some(format) = fields.take::<Map<String, Value>>(NAME)? else { return Ok(None) };
    let kind = format.get("type").and_then(Value::as_str).unwrap_or_default();
    match (kind, dialect) {
        ("text", _) => Ok(None),
        (_, Dialect::Completion) => Err(wrong(NAME, "is for chats only: use `/v1/chat/completions`")),
        ("json_object", Dialect::Chat) => Ok(Some(Form::Json { schema: OBJECT.to_owned() })),
        ("json_schema", Dialect::Chat) => schema(&format).map(Some),
        (_, Dialect::Chat) => {
            Err(wrong(NAME, "has an unknown `type`: `text`, `json_object` or `json_schema`"))
        }
    }
}

fn schema(format: &Map<String, Value>) -> Result<Form, Failure> {
    let name = "response_format.json_schema";
    let given = format.get("json_schema").cloned().unwrap_or_default();
    let given: Map<String, Value> = parse(name, given)?;
    let schema = given.get("schema").filter(|schema| schema.is_object());
    let schema = schema.ok_or_else(|| wrong(&format!("{name}.schema"), "is missing: send a JSON Schema"))?;
    Ok(Form::Json { schema: schema.to_string() })
}
