//! The tools of a request, and whether to call them.

use engine::tools::{Tool, ToolChoice};
use serde_json::{Map, Value};

use super::fields::{Fields, parse, wrong};
use crate::exit::Failure;

/// A function without parameters takes none.
const NO_PARAMETERS: &str = r#"{"type":"object","properties":{},"additionalProperties":false}"#;

/// What a request says of tools.
pub(super) struct Tools {
    pub(super) tools: Vec<Tool>,
    pub(super) choice: ToolChoice,
    pub(super) parallel: bool,
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn read(fields: &mut Fields) -> Result<Tools, Failure> {
    let given: Vec<Value> = fields.take("tools")?.unwrap_or_default();
    let tools = given.into_iter().enumerate().map(|(at, tool)| tool_of(&format!("tools[{at}]"), tool));
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    let choice = match fields.take::<Value>("tool_choice")? {
        Some(choice) => choice_of(&choice)?,
        None => ToolChoice::Auto,
    };
    let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
    Ok(Tools { tools, choice, parallel })
}

fn tool_of(at: &str, tool: Value) -> Result<Tool, Failure> {
    let tool: Map<String, Value> = parse(at, tool)?;
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(wrong(&format!("{at}.type"), "must be `function`: there are no other tools here"));
    }
    let at = format!("{at}.function");
    // The endpoint for responses has it all on one level.
    let function = tool.get("function").cloned().unwrap_or(Value::Object(tool));
    let mut function: Map<String, Value> = parse(&at, function)?;
    let mut text = |name: &str| -> Result<Option<String>, Failure> {
        let value = function.remove(name).filter(|value| !value.is_null());
        value.map(|value| parse(&format!("{at}.{name}"), value)).transpose()
    };
    let name = text("name")?.ok_or_else(|| wrong(&format!("{at}.name"), "is missing"))?;
    let description = text("description")?.unwrap_or_default();
    let parameters = match function.remove("parameters") {
        None | Some(Value::Null) => NO_PARAMETERS.to_owned(),
        Some(schema @ Value::Object(_)) => schema.to_string(),
        Some(_) => return Err(wrong(&format!("{at}.parameters"), "must be a JSON Schema")),
    };
    Ok(Tool { name, description, parameters })
}

fn choice_of(choice: &Value) -> Result<ToolChoice, Failure> {
    let name = choice.pointer("/function/name").or_else(|| choice.get("name")).and_then(Value::as_str);
    match (choice.as_str(), name) {
        (Some("none"), _) => Ok(ToolChoice::Never),
        (Some("auto"), _) => Ok(ToolChoice::Auto),
        (Some("required"), _) => Ok(ToolChoice::Required),
        (None, Some(name)) => Ok(ToolChoice::Named(name.to_owned())),
        _ => Err(wrong("tool_choice", "must be `none`, `auto`, `required` or name a function of `tools`")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_from(body: &Value) -> Result<Tools, Failure> {
        read(&mut Fields::read(body.to_string().as_bytes()).expect("an object"))
    }

    #[test]
    fn tools_are_read_as_clients_write_them() {
        let function =
            json!({"name": "f", "description": "does", "parameters": {"type": "object"}, "strict": true});
        let tools = json!([{"type": "function", "function": function}, {"type": "function", "name": "g"}]);
        let choice = json!({"type": "function", "function": {"name": "f"}});

        let read = read_from(&json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false}));

        let read = read.expect("sound");
        assert_eq!(
            (read.tools[0].name.as_str(), read.tools[0].parameters.as_str()),
            ("f", r#"{"type":"object"}"#)
        );
        assert_eq!((read.tools[1].name.as_str(), read.tools[1].parameters.as_str()), ("g", NO_PARAMETERS));
        assert_eq!((read.choice, read.parallel), (ToolChoice::Named("f".to_owned()), false));
    }

    #[test]
    fn what_cannot_be_called_is_refused_by_name() {
        for (body, param) in [
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name"),
            (json!({"tools": [3]}), "tools[0]"),
            (
                json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}),
                "tools[0].function.parameters",
            ),
            (json!({"tool_choice": "maybe"}), "tool_choice"),
            (json!({"parallel_tool_calls": 3}), "parallel_tool_calls"),
        ] {
            assert_eq!(read_from(&body).map(|_| ()).expect_err(param).param.as_deref(), Some(param));
        }
    }
}
