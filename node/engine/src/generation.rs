//! One answer in the making: what to compute next, and what follows from the result.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::frame::{Alternative, Finish, FromWorker, JobError, JobKey, LOGPROB_MIN, TokenLogprob};
use crate::grammar::Constraint;
use crate::model::{Model, PreparedJob, Vocabulary};
use crate::sampler;
use crate::text::{Released, TextStream};

/// Tokens of a prompt that are read between two tokens of the other jobs: large enough for the kernels to be
/// efficient, small enough for the others not to falter.
pub(crate) const PREFILL_TOKENS_MAX: usize = 128;

/// A job's tokens, text and session.
pub(crate) struct Generation<S> {
    job: PreparedJob,
    /// Prompt and answer so far.
    ids: Vec<u32>,
    /// How many of them the session has read.
    read: usize,
    session: S,
    text: TextStream,
    vocabulary: Arc<dyn Vocabulary>,
    part: Part,
    /// Why this job, and no other, cannot go on.
    fault: Option<JobError>,
}

/// A part of an answer that was not sent yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// Index of the first token of this part.
    pub index: u32,
    /// The tokens.
    pub ids: Vec<u32>,
    /// Whole characters.
    pub bytes: Vec<u8>,
    /// As many as tokens, if asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Set in the last part.
    pub finish: Option<Finish>,
}

impl Part {
    pub(crate) fn into_frame(self, job: JobKey) -> FromWorker {
        let Self { index, ids, bytes, logprobs, finish } = self;
        FromWorker::Tokens { job, index, ids, bytes, logprobs, finish }
    }
}

impl<S> Generation<S> {
    /// Opens a session and reads over the resumed tokens, which may already end the answer.
    pub(crate) fn open<M: Model<Session = S>>(
        model: &M,
        vocabulary: Arc<dyn Vocabulary>,
        job: PreparedJob,
    ) -> Result<Self> {
        let session = model.open(&job)?;
        let text = TextStream::new(&job.generate.sampling.stop);
        let ids = job.ids.clone();
        let part = Part::default();
        let mut generation = Self { job, ids, read: 0, session, text, vocabulary, part, fault: None };
        generation.part = generation.empty_part();
        generation.read_over_resumed();
        Ok(generation)
    }

    /// Returns the index that the next token will have.
    pub(crate) fn index(&self) -> u32 {
        u32::try_from(self.ids.len() - self.job.tokens_in).expect("bounded by the context")
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.part.finish.is_some() || self.fault.is_some()
    }

    /// Takes what is wrong with this job.
    pub(crate) fn take_fault(&mut self) -> Option<JobError> {
        self.fault.take()
    }

    /// Says whether part of the prompt is to be read before the next token can be computed.
    pub(crate) fn is_prefilling(&self) -> bool {
        self.ids.len() - self.read > 1
    }

    /// Reads the next chunk of the prompt.
    pub(crate) fn prefill<M: Model<Session = S>>(&mut self, model: &M) -> Result<()> {
        let end = (self.read + PREFILL_TOKENS_MAX).min(self.ids.len() - 1);
        model.prefill(&mut self.session, &self.ids[self.read..end])?;
        self.read = end;
        Ok(())
    }

    /// Returns what decoding needs; to be followed by `accept` with the logits.
    pub(crate) fn decode_input(&mut self) -> (&mut S, u32) {
        debug_assert!(!self.is_prefilling() && !self.is_finished());
        (&mut self.session, self.ids[self.read])
    }

    /// Takes the logits of the next token, chooses it, and adds it to the part.
    pub(crate) fn accept(&mut self, mut logits: Vec<f32>) -> Result<()> {
        self.read += 1;
        let index = self.index();
        let normaliser = self.job.generate.logprobs.map(|_| sampler::log_sum_exp(&logits));
        let before_penalties = self.job.generate.logprobs.map(|top| (logits.clone(), usize::from(top)));
        if let Some(Err(error)) = self.job.constraint.as_mut().map(|constraint| constraint.mask(&mut logits))
        {
            self.fault = Some(error);
            return Ok(());
        }
        let id = sampler::choose(&mut logits, &self.ids, index, &self.job.generate.sampling)
            .context("the model computed no numbers: the file may be damaged, fetch it again")?;
        if self.vocabulary.is_end(id) {
            self.finish(Finish::Stop);
            return Ok(());
        }
        if let (Some(normaliser), Some((logits, top))) = (normaliser, before_penalties) {
            let logprob = self.logprob(&logits, normaliser, id, top);
            self.part.logprobs.get_or_insert_default().push(logprob);
        }
        self.part.ids.push(id);
        self.ids.push(id);
        self.release(id);
        self.follow(id);
        Ok(())
    }

    /// Ends the answer with the token after which its form allows nothing more.
    fn follow(&mut self, id: u32) {
        let Some(constraint) = &mut self.job.constraint else { return };
        match constraint.take(id) {
            Ok(()) if !constraint.is_complete() => {}
            Ok(()) if matches!(self.part.finish, None | Some(Finish::Length)) => self.finish(Finish::Stop),
            Ok(()) => {}
            Err(error) => self.fault = Some(error),
        }
    }

    /// Ends the answer; nothing that was held back is sent, so that it can be resumed elsewhere.
    pub(crate) fn cancel(mut self) -> Part {
        self.part.finish = Some(Finish::Cancelled);
        self.part
    }

    /// Takes what is ready to be sent.
    pub(crate) fn take_part(&mut self) -> Option<Part> {
        let empty = self.empty_part();
        let is_worth_it = !self.part.ids.is_empty() || self.part.finish.is_some();
        is_worth_it.then(|| std::mem::replace(&mut self.part, empty))
    }

    fn empty_part(&self) -> Part {
        let logprobs = self.job.generate.logprobs.map(|_| Vec::new());
        Part { index: self.index(), logprobs, ..Part::default() }
    }

    /// The text of resumed tokens was sent by whoever produced them, but what they held back was not.
    fn read_over_resumed(&mut self) {
        for at in self.job.tokens_in..self.ids.len() {
            let released = self.text.push(&self.vocabulary.token_bytes(self.ids[at]));
            if let Released::Stopped(_) = released {
                self.part.finish = Some(Finish::Stop);
                return;
            }
        }
        if self.job.constraint.as_ref().is_some_and(Constraint::is_complete) {
            return self.finish(Finish::Stop);
        }
        self.finish_at_length();
    }

    fn release(&mut self, id: u32) {
        let released = self.text.push(&self.vocabulary.token_bytes(id));
        match released {
            Released::More(text) => {
                self.part.bytes.extend_from_slice(text.as_bytes());
                self.finish_at_length();
            }
            Released::Stopped(text) => {
                self.part.bytes.extend_from_slice(text.as_bytes());
                self.part.finish = Some(Finish::Stop);
            }
        }
    }

    fn finish_at_length(&mut self) {
        if self.ids.len() >= self.job.capacity() {
            self.finish(Finish::Length);
        }
    }

    fn finish(&mut self, finish: Finish) {
        self.part.bytes.extend_from_slice(self.text.finish().as_bytes());
        self.part.finish = Some(finish);
    }

    fn logprob(&self, logits: &[f32], normaliser: f32, id: u32, top: usize) -> TokenLogprob {
        let bytes = |id| self.vocabulary.token_bytes(id).into_owned();
        let logprob = |logit: f32| (logit - normaliser).max(LOGPROB_MIN);
        let top = sampler::highest(logits, top).into_iter();
        let top = top.map(|(id, logit)| Alternative { id, logprob: logprob(logit), bytes: bytes(id) });
        TokenLogprob { logprob: logprob(logits[id as usize]), bytes: bytes(id), top: top.collect() }
    }
}
