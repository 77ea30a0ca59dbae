//! Reads the keys of a GGUF file with errors that name the key.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use candle_core::quantized::gguf_file::Value;

/// The keys and values of a model file.
pub(crate) struct Metadata(pub(crate) HashMap<String, Value>);

impl Metadata {
    /// Returns a text, if the key is there.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_string().ok().map(String::as_str)
    }

    /// Returns a whole number of any width, if the key is there and it fits.
    pub(crate) fn number(&self, key: &str) -> Option<u32> {
        match *self.0.get(key)? {
            Value::U8(number) => Some(number.into()),
            Value::U16(number) => Some(number.into()),
            Value::U32(number) => Some(number),
            Value::U64(number) => number.try_into().ok(),
            Value::I8(number) => number.try_into().ok(),
            Value::I16(number) => number.try_into().ok(),
            Value::I32(number) => number.try_into().ok(),
            Value::I64(number) => number.try_into().ok(),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        }
    }

    /// Returns a whole number that the model cannot do without.
    pub(crate) fn needed_number(&self, key: &str) -> Result<u32> {
        self.number(key).with_context(|| missing(key))
    }

    /// Returns a number, if the key is there.
    pub(crate) fn float(&self, key: &str) -> Option<f32> {
        self.0.get(key)?.to_f32().ok()
    }

    /// Returns whether a flag is there and set.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| value.to_bool().unwrap_or(false))
    }

    /// Returns a list of texts that the model cannot do without.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let Some(Value::Array(values)) = self.0.get(key) else { bail!(missing(key)) };
        values
            .iter()
            .map(|value| {
                let Value::String(text) = value else {
                    bail!("the model's file has something else than text in `{key}`: fetch it again")
                };
                Ok(text.as_str())
            })
            .collect()
    }

    /// Returns a list of small numbers, empty if the key is not there.
    pub(crate) fn numbers(&self, key: &str) -> Vec<i64> {
        let Some(Value::Array(values)) = self.0.get(key) else { return Vec::new() };
        values
            .iter()
            .map(|value| value.to_i32().map(i64::from).or_else(|_| value.to_i64()).unwrap_or(0))
            .collect()
    }
}

fn missing(key: &str) -> String {
    format!("the model's file lacks `{key}`: use a file that was converted for llama.cpp")
}
