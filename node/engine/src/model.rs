//! What the worker's loop needs of a model.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Result;

use crate::frame::{Generate, JobError, ModelInfo};
use crate::grammar::{self, Constraint, Grammars};

pub(crate) mod bert;
pub(crate) mod linear;
pub(crate) mod llama;
pub(crate) mod ops;

/// Computes: reads prompts and continues them, for several sessions in turn.
///
/// A session's results depend on its own tokens only, never on the other sessions of a batch: to the bit on a CPU. A GPU's
/// kernels may add in another order for another number of rows.
pub trait Model: Send + 'static {
    /// What one job keeps between turns, mainly its key-value cache.
    type Session: Send;

    /// Says what the model is, with the slots left at 0.
    fn info(&self) -> &ModelInfo;

    /// Makes room for a job of `job.ids` and as many tokens more as it may produce.
    fn open(&self, job: &PreparedJob) -> Result<Self::Session>;

    /// Reads part of a prompt, all of it but the last token, without computing what follows.
    fn prefill(&self, session: &mut Self::Session, ids: &[u32]) -> Result<()>;

    /// Reads one token for each session, and returns the logits of the next one for each.
    fn decode(&self, batch: &mut [(&mut Self::Session, u32)]) -> Result<Vec<Vec<f32>>>;

    /// Waits for what the device still computes, and says whether it can go on: an error here is the end of all jobs.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Says how many tokens to make before they are sent: more than one only where they cost nothing.
    fn tokens_per_turn(&self) -> usize {
        1
    }
}

/// Knows the words: turns requests to tokens and tokens to bytes. Shared between threads.
pub trait Vocabulary: Send + Sync + 'static {
    /// Templates and tokenizes a valid request.
    fn prepare(&self, generate: Arc<Generate>) -> Result<PreparedJob, JobError>;

    /// Returns the bytes that a token adds to the answer; none for special and unknown ones.
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]>;

    /// Says whether a model ends its answer with this token.
    fn is_end(&self, id: u32) -> bool;
}

/// A request that is ready to be computed.
#[derive(Clone, Debug)]
pub struct PreparedJob {
    /// What was asked.
    pub generate: Arc<Generate>,
    /// The prompt's tokens followed by the resumed ones; never empty.
    pub ids: Vec<u32>,
    /// How many of them are the prompt's.
    pub tokens_in: usize,
    /// How many tokens the answer may have in all, by the request and by the context.
    pub tokens_out_max: usize,
    /// What the answer may still become, the resumed tokens already taken.
    pub constraint: Option<Constraint>,
}

impl PreparedJob {
    /// Puts a request and its prompt's tokens together, if they fit the context and the vocabulary.
    pub fn new(
        generate: Arc<Generate>,
        prompt: Vec<u32>,
        context: u32,
        vocabulary_size: usize,
    ) -> Result<Self, JobError> {
        let tokens_in = prompt.len();
        let tokens = u32::try_from(tokens_in).unwrap_or(u32::MAX);
        if tokens == 0 {
            return Err(JobError::BadRequest("the prompt is empty: send some text".to_owned()));
        }
        if tokens >= context {
            return Err(JobError::PromptTooLong { tokens, context, text: None });
        }
        if let Some(id) = prompt.iter().chain(&generate.resume).find(|id| **id as usize >= vocabulary_size) {
            return Err(JobError::BadRequest(format!(
                "token {id} is not one of this model's {vocabulary_size}: send tokens of its own tokenizer"
            )));
        }
        let tokens_out_max = generate.max_tokens.min(context - tokens) as usize;
        // Tokens after the last that may be produced are never read.
        let resumed = generate.resume.len().min(tokens_out_max);
        let ids = [prompt, generate.resume[..resumed].to_vec()].concat();
        Ok(Self { generate, ids, tokens_in, tokens_out_max, constraint: None })
    }

    /// Keeps the answer to the form that the request asks for, if it asks for one.
    pub(crate) fn constrain<'a>(
        mut self,
        grammars: impl FnOnce() -> Result<&'a Grammars, JobError>,
    ) -> Result<Self, JobError> {
        if !grammar::is_needed(&self.generate) {
            return Ok(self);
        }
        let Some(mut constraint) = grammars()?.compile(&self.generate)? else { return Ok(self) };
        // Whoever asks says what was answered so far.
        let mut resumed = self.ids[self.tokens_in..].iter();
        let resumed = resumed.try_for_each(|id| constraint.take(*id));
        resumed.map_err(|error| JobError::BadRequest(error.to_string()))?;
        self.constraint = Some(constraint);
        Ok(self)
    }

    /// Returns how many tokens the session will hold at most.
    pub fn capacity(&self) -> usize {
        self.tokens_in + self.tokens_out_max
    }
}
