//! Turns an encoder as it is published, weights beside a vocabulary and settings, into the one file that is loaded.
//!
//! The same input always gives the same bytes. Only folders whose origin is known are given here; the file itself is
//! checked like any other before it is loaded.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde::Deserialize;

/// The files that are read, each in the published folder.
pub const FILES: [&str; 4] = ["config.json", "sentence_bert_config.json", "vocab.txt", "model.safetensors"];

/// Types of tokens in the file: ordinary ones, and those that stand for no text.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Tensors by their names in the file and where they are published.
const TENSORS: [(&str, &str); 5] = [
    ("token_embd.weight", "embeddings.word_embeddings.weight"),
    ("position_embd.weight", "embeddings.position_embeddings.weight"),
    ("token_types.weight", "embeddings.token_type_embeddings.weight"),
    ("token_embd_norm.weight", "embeddings.LayerNorm.weight"),
    ("token_embd_norm.bias", "embeddings.LayerNorm.bias"),
];

/// The same of each layer, each with a weight and a bias.
const PARTS: [(&str, &str); 8] = [
    ("attn_q", "attention.self.query"),
    ("attn_k", "attention.self.key"),
    ("attn_v", "attention.self.value"),
    ("attn_output", "attention.output.dense"),
    ("attn_output_norm", "attention.output.LayerNorm"),
    ("ffn_up", "intermediate.dense"),
    ("ffn_down", "output.dense"),
    ("layer_output_norm", "output.LayerNorm"),
];

/// What is read of `config.json`.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_act: String,
    hidden_size: u32,
    intermediate_size: u32,
    num_attention_heads: u32,
    num_hidden_layers: u32,
    layer_norm_eps: f64,
}

/// What is read of `sentence_bert_config.json`.
#[derive(Deserialize)]
struct Limits {
    max_seq_length: u32,
}

/// Reads the [`FILES`] of `folder` and writes the file for `name` at `path`.
///
/// The vectors are those of sentence-transformers: means of the tokens' vectors, of length 1.
pub fn convert(folder: &Path, name: &str, path: &Path) -> Result<()> {
    let config: Config = read_json(&folder.join(FILES[0]))?;
    let limits: Limits = read_json(&folder.join(FILES[1]))?;
    ensure!(
        config.model_type == "bert" && config.hidden_act == "gelu",
        "only models of the kind `bert` with `gelu` can be converted"
    );
    let vocabulary = fs::read_to_string(folder.join(FILES[2])).context("cannot read vocab.txt")?;
    let keys = keys(name, &config, &limits, &vocabulary)?;
    let tensors = candle_core::safetensors::load(folder.join(FILES[3]), &Device::Cpu)?;
    let tensors = named(&config, &tensors)?;
    let keys: Vec<_> = keys.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut output = BufWriter::new(File::create(path)?);
    gguf_file::write(&mut output, &keys, &tensors)?;
    Ok(output.flush()?)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))
}

fn keys(name: &str, config: &Config, limits: &Limits, vocabulary: &str) -> Result<Vec<(String, Value)>> {
    let text = |text: &str| Value::String(text.to_owned());
    let tokens: Vec<&str> = vocabulary.lines().collect();
    let id = |token: &str| {
        let at = tokens.iter().position(|other| *other == token);
        let at = at.with_context(|| format!("vocab.txt has no {token}"))?;
        Ok::<_, anyhow::Error>(Value::U32(u32::try_from(at)?))
    };
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let token_type = |token: &&str| Value::I32(if specials.contains(token) { CONTROL } else { NORMAL });
    #[expect(clippy::cast_possible_truncation, reason = "the format has no wider number for it")]
    let epsilon = config.layer_norm_eps as f32;
    let keys = [
        ("general.architecture", text("bert")),
        ("general.name", text(name)),
        ("bert.block_count", Value::U32(config.num_hidden_layers)),
        ("bert.context_length", Value::U32(limits.max_seq_length)),
        ("bert.embedding_length", Value::U32(config.hidden_size)),
        ("bert.feed_forward_length", Value::U32(config.intermediate_size)),
        ("bert.attention.head_count", Value::U32(config.num_attention_heads)),
        ("bert.attention.layer_norm_epsilon", Value::F32(epsilon)),
        ("bert.attention.causal", Value::Bool(false)),
        ("bert.pooling_type", Value::U32(1)),
        ("tokenizer.ggml.model", text("bert")),
        ("tokenizer.ggml.tokens", Value::Array(tokens.iter().map(|token| text(&piece(token))).collect())),
        ("tokenizer.ggml.token_type", Value::Array(tokens.iter().map(token_type).collect())),
        ("tokenizer.ggml.padding_token_id", id(specials[0])?),
        ("tokenizer.ggml.unknown_token_id", id(specials[1])?),
        ("tokenizer.ggml.cls_token_id", id(specials[2])?),
        ("tokenizer.ggml.seperator_token_id", id(specials[3])?),
        ("tokenizer.ggml.mask_token_id", id(specials[4])?),
    ];
    Ok(keys.map(|(key, value)| (key.to_owned(), value)).into())
}

/// Returns a token as the file has it: what begins a word is marked, and not what goes on with one.
fn piece(token: &str) -> String {
    if token.starts_with('[') && token.ends_with(']') {
        return token.to_owned();
    }
    token.strip_prefix("##").map_or_else(|| format!("\u{2581}{token}"), str::to_owned)
}

fn named(config: &Config, published: &HashMap<String, Tensor>) -> Result<Vec<(String, QTensor)>> {
    let names = TENSORS.map(|(name, from)| (name.to_owned(), from.to_owned()));
    let layers = (0..config.num_hidden_layers).flat_map(|layer| {
        PARTS.iter().flat_map(move |(name, from)| {
            ["weight", "bias"].map(|kind| {
                (format!("blk.{layer}.{name}.{kind}"), format!("encoder.layer.{layer}.{from}.{kind}"))
            })
        })
    });
    let tensor = |(name, from): (String, String)| {
        let tensor = published.get(&from).with_context(|| format!("there is no tensor `{from}`"))?;
        Ok((name, QTensor::quantize(tensor, GgmlDType::F32)?))
    };
    names.into_iter().chain(layers).map(tensor).collect()
}
