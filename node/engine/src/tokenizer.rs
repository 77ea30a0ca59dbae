//! Makes tokens from text and bytes from tokens, as the model's file says.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

use crate::frame::{Generate, JobError, Prompt};
use crate::grammar::Grammars;
use crate::metadata::Metadata;
use crate::model::{PreparedJob, Vocabulary};
use crate::template::ChatTemplate;

/// How GPT-4 and, with digits one by one, Qwen 2 cut text; facts of the published tokenizers.
const SPLIT_QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with up to three digits, as Llama 3 cuts it.
const SPLIT_LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Control tokens that end an answer in files that name only one of several.
const ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
];

/// A token that only templates write; its text is never part of an answer.
const CONTROL: i64 = 3;
/// A token that is found in text before all others.
const USER_DEFINED: i64 = 4;

/// The words of a model and its chat template.
pub(crate) struct GgufVocabulary {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// Bytes by token; empty for control tokens.
    bytes: Vec<Box<[u8]>>,
    ends: BTreeSet<u32>,
    /// What a prompt that is no chat begins with.
    begin: Option<u32>,
    context_length: u32,
    digest: [u8; 32],
    /// Made when the first job asks for a form.
    grammars: OnceLock<Result<Grammars, String>>,
}

impl GgufVocabulary {
    /// Builds the tokenizer that the file's keys describe.
    pub(crate) fn new(metadata: &Metadata, context_length: u32) -> Result<Self> {
        let model = metadata.text("tokenizer.ggml.model").unwrap_or("none");
        if model != "gpt2" {
            bail!("the tokenizer `{model}` is not supported, only `gpt2`: use a model with byte-level BPE");
        }
        let tokens = metadata.texts("tokenizer.ggml.tokens")?;
        let types = metadata.numbers("tokenizer.ggml.token_type");
        let token = |key: &str| metadata.number(key).filter(|id| (*id as usize) < tokens.len());
        let begin = token("tokenizer.ggml.bos_token_id");
        let end = token("tokenizer.ggml.eos_token_id");
        let text_of = |id: Option<u32>| id.map_or("", |id| tokens[id as usize]);
        let is_control = |id: usize| types.get(id) == Some(&CONTROL);
        let named_ends =
            (0..).zip(&tokens).filter(|(id, text)| is_control(*id as usize) && ENDS.contains(text));
        let other_end = token("tokenizer.ggml.eot_token_id");
        Ok(Self {
            tokenizer: build(metadata, &tokens, &types)?,
            template: ChatTemplate::new(
                metadata.text("tokenizer.chat_template"),
                text_of(begin),
                text_of(end),
            )?,
            bytes: (0..).zip(&tokens).map(|(id, text)| bytes_of(text, types.get(id).copied())).collect(),
            ends: named_ends.map(|(id, _)| id).chain(end).chain(other_end).collect(),
            begin: begin.filter(|_| metadata.is_set("tokenizer.ggml.add_bos_token")),
            context_length,
            digest: digest(metadata, &tokens, &types)?,
            grammars: OnceLock::new(),
        })
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    pub(crate) fn template_digest(&self) -> [u8; 32] {
        self.template.digest()
    }

    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the tokens of a text, control tokens by their names included.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| anyhow!(error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns what keeps answers of this model to a form.
    pub(crate) fn grammars(&self) -> Result<&Grammars, JobError> {
        let make = || {
            let words: Vec<_> = self.bytes.iter().map(|bytes| bytes.to_vec()).collect();
            let ends: Vec<_> = self.ends.iter().copied().collect();
            Grammars::new(words, &ends).map_err(|error| format!("{error:#}"))
        };
        self.grammars.get_or_init(make).as_ref().map_err(|error| JobError::Internal(error.clone()))
    }

    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, JobError> {
        let encode = |text: &str| {
            self.encode(text)
                .map_err(|error| JobError::BadRequest(format!("cannot make tokens of it: {error:#}")))
        };
        match prompt {
            Prompt::Chat(messages) => encode(&self.template.render(messages)?),
            Prompt::Tools(chat) => encode(&self.template.render_tools(chat)?),
            Prompt::Tokens(ids) => Ok(ids.clone()),
            Prompt::Text(text) => Ok(self.begin.into_iter().chain(encode(text)?).collect()),
        }
    }
}

impl Vocabulary for GgufVocabulary {
    fn prepare(&self, generate: Arc<Generate>) -> Result<PreparedJob, JobError> {
        let prompt = self.prompt(&generate.prompt)?;
        PreparedJob::new(generate, prompt, self.context_length, self.size())?.constrain(|| self.grammars())
    }

    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes.get(id as usize).map_or(&[], |bytes| bytes))
    }

    fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

fn build(metadata: &Metadata, tokens: &[&str], types: &[i64]) -> Result<Tokenizer> {
    let vocabulary: Vocab = (0..).zip(tokens).map(|(id, text)| ((*text).to_owned(), id)).collect();
    let merges = metadata.texts("tokenizer.ggml.merges")?.into_iter().map(|merge| {
        let pair = merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
        pair.context("the model's file has a merge that is no pair: fetch it again")
    });
    let pre = metadata.text("tokenizer.ggml.pre").unwrap_or("default");
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges.collect::<Result<Vec<_>>>()?)
        .ignore_merges(PreTokenizer::named(pre)? == PreTokenizer::Llama3)
        .build()
        .map_err(|error| anyhow!("the model's file has no valid vocabulary, fetch it again: {error}"))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(PreTokenizer::named(pre)?.build()?));
    let of_type = |wanted: i64| {
        let typed = tokens.iter().zip(types).filter(move |(_, of_type)| **of_type == wanted);
        typed.map(move |(text, _)| AddedToken::from((*text).to_owned(), wanted == CONTROL).normalized(false))
    };
    let invalid = |error| anyhow!("the model's file has invalid special tokens, fetch it again: {error}");
    tokenizer.add_special_tokens(of_type(CONTROL).collect::<Vec<_>>()).map_err(invalid)?;
    tokenizer.add_tokens(of_type(USER_DEFINED).collect::<Vec<_>>()).map_err(invalid)?;
    Ok(tokenizer)
}

/// How text is cut before pairs are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PreTokenizer {
    /// As GPT-2 does.
    Gpt2,
    /// Digits one by one, then as GPT-2 does.
    Digits,
    Llama3,
    Qwen2,
}

impl PreTokenizer {
    /// Takes the names that llama.cpp gives.
    fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "default" | "gpt-2" | "gpt2" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => Self::Digits,
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            _ => bail!("the pre-tokenizer `{name}` is not supported: use another model"),
        })
    }

    fn build(self) -> Result<PreTokenizerWrapper> {
        Ok(match self {
            Self::Gpt2 => ByteLevel::new(false, true, true).into(),
            Self::Digits => {
                Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()]).into()
            }
            Self::Llama3 => split(SPLIT_LLAMA3)?,
            Self::Qwen2 => split(SPLIT_QWEN2)?,
        })
    }
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split =
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|error| anyhow!(error))?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
}

/// Returns the bytes that a token adds to a text.
fn bytes_of(text: &str, token_type: Option<i64>) -> Box<[u8]> {
    match token_type {
        Some(CONTROL) => Box::new([]),
        Some(USER_DEFINED) => text.as_bytes().into(),
        Some(_) | None => text.chars().flat_map(bytes_of_character).collect(),
    }
}

/// Returns the byte for which a character stands in GPT-2's vocabularies: printable ones stand for themselves,
/// the others were moved to the characters from 256 on, in their order. Other characters are what they are.
fn bytes_of_character(character: char) -> Vec<u8> {
    let is_printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let number = character as u32;
    let byte = match u8::try_from(number) {
        Ok(byte) if is_printable(byte) => Some(byte),
        Ok(_) => None,
        Err(_) => (0..=255).filter(|byte| !is_printable(*byte)).nth((number - 256) as usize),
    };
    byte.map_or_else(|| character.to_string().into_bytes(), |byte| vec![byte])
}

/// Digests everything that decides which tokens a text becomes, each part with its length.
fn digest(metadata: &Metadata, tokens: &[&str], types: &[i64]) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(metadata.text("tokenizer.ggml.pre").unwrap_or("default"));
    for text in tokens.iter().chain(&metadata.texts("tokenizer.ggml.merges")?) {
        add(text);
    }
    for key in ["bos_token_id", "eos_token_id", "eot_token_id"] {
        add(&format!("{:?}", metadata.number(&format!("tokenizer.ggml.{key}"))));
    }
    add(&format!("{}", metadata.is_set("tokenizer.ggml.add_bos_token")));
    types.iter().for_each(|token_type| add(&token_type.to_string()));
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_character() {
        // The space and the newline, as they look in every vocabulary of this kind.
        assert_eq!(bytes_of_character('Ġ'), b" ");
        assert_eq!(bytes_of_character('Ċ'), b"\n");
        assert_eq!(bytes_of_character('a'), b"a");
        let characters = (33..=126).chain(161..=172).chain(174..=323).filter_map(char::from_u32);
        let mut bytes: Vec<_> = characters.flat_map(bytes_of_character).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<_>>());
    }

    #[test]
    fn every_known_way_to_cut_text_can_be_built() {
        for name in ["default", "smollm", "llama-bpe", "qwen2"] {
            PreTokenizer::named(name).expect("known").build().expect("its pattern is valid");
        }
        assert!(PreTokenizer::named("none such").is_err());
    }
}
