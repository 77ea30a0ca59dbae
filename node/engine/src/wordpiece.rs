//! Makes tokens of the texts that an encoder makes vectors of, as its file says.

use anyhow::{Context, Result, anyhow, ensure};
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer};

use crate::frame::{Embed, EmbedInput, JobError};
use crate::metadata::Metadata;

/// What begins a word in files of this kind; without it a piece goes on with one.
const WORD: char = '\u{2581}';

/// What goes on with a word, as the tokenizer has it.
const CONTINUED: &str = "##";

/// Characters of the longest word that is cut into pieces; longer ones are unknown words. As the published tokenizers.
const WORD_CHARS_MAX: usize = 100;

/// Bytes for each token of the context that are looked at in one text, far more than words of any language have.
const TOKEN_BYTES_MAX: usize = 128;

/// A token that stands for no text.
const CONTROL: i64 = 3;

/// The words of an encoder.
pub(crate) struct WordPieces {
    tokenizer: Tokenizer,
    begin: u32,
    end: u32,
    size: usize,
    context_length: usize,
    digest: [u8; 32],
}

impl WordPieces {
    /// Builds the tokenizer that the file's keys describe: words in small letters without accents, cut into pieces.
    pub(crate) fn new(metadata: &Metadata, context_length: u32) -> Result<Self> {
        let model = metadata.text("tokenizer.ggml.model").unwrap_or("none");
        ensure!(model == "bert", "the tokenizer `{model}` is not supported in an encoder, only `bert`");
        ensure!(context_length > 2, "a context of {context_length} tokens has no room for a text");
        let tokens = metadata.texts("tokenizer.ggml.tokens")?;
        let types = metadata.numbers("tokenizer.ggml.token_type");
        let token = |names: [&str; 2]| {
            let named =
                names.iter().find_map(|name| metadata.number(&format!("tokenizer.ggml.{name}_token_id")));
            let sound = named.filter(|id| (*id as usize) < tokens.len());
            sound.with_context(|| format!("the model's file names no `{}` token: fetch it again", names[0]))
        };
        let begin = token(["cls", "bos"])?;
        // The format spells it so.
        let end = token(["seperator", "eos"])?;
        let unknown = tokens[token(["unknown", "unknown"])? as usize];
        let is_special = |id: usize| types.get(id) == Some(&CONTROL) || is_bracketed(tokens[id]);
        let pieces: Vocab = (0..)
            .zip(&tokens)
            .map(|(id, text)| (if is_special(id as usize) { (*text).to_owned() } else { piece(text) }, id))
            .collect();
        let special = |id: usize| AddedToken::from(tokens[id].to_owned(), true).normalized(false);
        let special = (0..tokens.len()).filter(|id| types.get(*id) == Some(&CONTROL)).map(special);
        Ok(Self {
            tokenizer: build(pieces, unknown, special.collect())?,
            begin,
            end,
            size: tokens.len(),
            context_length: context_length as usize,
            digest: digest(&tokens, &types, [begin, end]),
        })
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Returns the tokens of each input of a valid request, within the context.
    pub(crate) fn prepare(&self, embed: &Embed) -> Result<Vec<Vec<u32>>, JobError> {
        let of_several = |number: usize| u32::try_from(number).ok().filter(|_| embed.inputs.len() > 1);
        let tokens = |(number, input)| {
            self.tokens(input, embed.truncate).map_err(|mut error| {
                if let JobError::PromptTooLong { text, .. } = &mut error {
                    *text = of_several(number);
                }
                error
            })
        };
        embed.inputs.iter().enumerate().map(tokens).collect()
    }

    fn tokens(&self, input: &EmbedInput, truncate: bool) -> Result<Vec<u32>, JobError> {
        let mut ids = match input {
            EmbedInput::Text(text) => self.encode(self.bounded(text, truncate)?)?,
            EmbedInput::Tokens(ids) => self.checked(ids)?,
        };
        if ids.len() <= self.context_length {
            return Ok(ids);
        }
        if !truncate {
            let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            let (tokens, context) = (number(ids.len()), number(self.context_length));
            return Err(JobError::PromptTooLong { tokens, context, text: None });
        }
        ids.truncate(self.context_length);
        if let Some(last) = ids.last_mut() {
            *last = self.end;
        }
        Ok(ids)
    }

    /// Returns as much of a text as may be looked at: whoever is paid by tokens must not be made to read bytes without end.
    fn bounded<'a>(&self, text: &'a str, truncate: bool) -> Result<&'a str, JobError> {
        let most = self.context_length * TOKEN_BYTES_MAX;
        if text.len() <= most {
            return Ok(text);
        }
        if !truncate {
            let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            let tokens = number(text.len().div_ceil(TOKEN_BYTES_MAX));
            return Err(JobError::PromptTooLong { tokens, context: number(self.context_length), text: None });
        }
        Ok(&text[..text.floor_char_boundary(most)])
    }

    /// Returns the tokens of a text between those that begin and end every text.
    fn encode(&self, text: &str) -> Result<Vec<u32>, JobError> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding
            .map_err(|error| JobError::BadRequest(format!("cannot make tokens of an input: {error}")))?;
        Ok([&[self.begin], encoding.get_ids(), &[self.end]].concat())
    }

    fn checked(&self, ids: &[u32]) -> Result<Vec<u32>, JobError> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.size) {
            return Err(JobError::BadRequest(format!(
                "token {id} is not one of this model's {}: send text, or tokens of its own tokenizer",
                self.size
            )));
        }
        if ids.first() != Some(&self.begin) || ids.last() != Some(&self.end) {
            let (begin, end) = (self.begin, self.end);
            return Err(JobError::BadRequest(format!(
                "tokens of a text of this model begin with {begin} and end with {end}: these are another tokenizer's, send text"
            )));
        }
        Ok(ids.to_vec())
    }
}

fn is_bracketed(text: &str) -> bool {
    text.starts_with('[') && text.ends_with(']')
}

/// Returns a piece as the tokenizer writes it.
fn piece(text: &str) -> String {
    text.strip_prefix(WORD).map_or_else(|| format!("{CONTINUED}{text}"), str::to_owned)
}

fn build(pieces: Vocab, unknown: &str, special: Vec<AddedToken>) -> Result<Tokenizer> {
    let invalid = |error| anyhow!("the model's file has no valid vocabulary, fetch it again: {error}");
    let model = WordPiece::builder()
        .vocab(pieces)
        .unk_token(unknown.to_owned())
        .continuing_subword_prefix(CONTINUED.to_owned())
        .max_input_chars_per_word(WORD_CHARS_MAX)
        .build()
        .map_err(invalid)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, true))).map_err(invalid)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.add_special_tokens(special).map_err(invalid)?;
    Ok(tokenizer)
}

/// Digests everything that decides which tokens a text becomes, each part with its length.
fn digest(tokens: &[&str], types: &[i64], ends: [u32; 2]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for text in tokens {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    types.iter().for_each(|token_type| _ = hasher.update(&token_type.to_le_bytes()));
    ends.iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
    *hasher.finalize().as_bytes()
}
