//! What the computing thread does for a model that generates: in each turn a chunk of one prompt, and then a token for every
//! job that may have one.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, anyhow};

use super::reader::{Command, Prepared, Serial};
use super::shared::Shared;
use super::{Computing, Prepare};
use crate::frame::{Finish, FromWorker, JobError, JobKey, Request, makes_no_vectors};
use crate::generation::{Generation, Part};
use crate::model::{Model, PreparedJob, Vocabulary};

/// Turns a valid request to the tokens of a prompt.
pub(super) fn preparing(words: Arc<impl Vocabulary>) -> impl Prepare {
    move |request| match request {
        Request::Generate(generate) => {
            let prepared = words.prepare(Arc::new(generate))?;
            Ok(Prepared::Text(Box::new(prepared)))
        }
        Request::Embed(_) => Err(makes_no_vectors()),
    }
}

pub(super) struct Compute<M: Model, W> {
    model: M,
    vocabulary: Arc<dyn Vocabulary>,
    shared: Arc<Shared<W>>,
    /// At most one per slot. The first that has a prompt to read is the next to read a chunk of it.
    jobs: VecDeque<Job<M::Session>>,
}

struct Job<S> {
    key: JobKey,
    serial: Serial,
    up_to: u32,
    phase: Phase<S>,
}

enum Phase<S> {
    Preparing,
    Generating(Box<Generation<S>>),
}

impl<S> Job<S> {
    fn generation(&mut self) -> Option<&mut Generation<S>> {
        match &mut self.phase {
            Phase::Preparing => None,
            Phase::Generating(generation) => Some(generation),
        }
    }

    fn prefilling(&mut self) -> Option<&mut Generation<S>> {
        self.generation().filter(|generation| generation.is_prefilling() && !generation.is_finished())
    }

    fn decoding(&mut self) -> Option<&mut Generation<S>> {
        let up_to = self.up_to;
        self.generation().filter(|generation| {
            !generation.is_prefilling() && !generation.is_finished() && generation.index() < up_to
        })
    }
}

impl<M: Model, W> Compute<M, W> {
    pub(super) fn new(model: M, vocabulary: Arc<dyn Vocabulary>, shared: Arc<Shared<W>>) -> Self {
        Self { model, vocabulary, shared, jobs: VecDeque::new() }
    }
}

impl<M: Model, W: Write> Computing for Compute<M, W> {
    fn has_work(&mut self) -> bool {
        self.jobs.iter_mut().any(|job| job.prefilling().is_some() || job.decoding().is_some())
    }

    fn on_command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Begun(key, serial, up_to) => {
                self.jobs.push_back(Job { key, serial, up_to, phase: Phase::Preparing });
                Ok(())
            }
            Command::Prepared(key, serial, Prepared::Text(prepared)) => {
                self.on_prepared(key, serial, *prepared)
            }
            Command::Prepared(_, _, Prepared::Inputs(_)) => {
                Err(anyhow!("inputs were prepared for a model of text"))
            }
            Command::Granted(key, up_to) => {
                for job in self.jobs.iter_mut().filter(|job| job.key == key) {
                    job.up_to = job.up_to.max(up_to);
                }
                Ok(())
            }
            Command::Cancelled(key) => self.on_cancelled(key),
        }
    }

    fn turn(&mut self) -> Result<()> {
        self.prefill_one().and_then(|()| self.decode_all()).and_then(|()| self.send_parts())
    }
}

impl<M: Model, W: Write> Compute<M, W> {
    fn on_prepared(&mut self, key: JobKey, serial: Serial, prepared: PreparedJob) -> Result<()> {
        let Some(job) = self.jobs.iter_mut().find(|job| job.key == key && job.serial == serial) else {
            return Ok(());
        };
        match Generation::open(&self.model, self.vocabulary.clone(), prepared) {
            Ok(generation) => {
                job.phase = Phase::Generating(Box::new(generation));
                self.send_parts()
            }
            Err(error) => self.fail(&[key], &error),
        }
    }

    fn on_cancelled(&mut self, key: JobKey) -> Result<()> {
        let Some(at) = self.jobs.iter().position(|job| job.key == key) else { return Ok(()) };
        let job = self.jobs.remove(at).expect("just found");
        let part = match job.phase {
            Phase::Preparing => Part { finish: Some(Finish::Cancelled), ..Part::default() },
            Phase::Generating(generation) => generation.cancel(),
        };
        self.shared.send(&part.into_frame(key))
    }

    /// Reads a chunk of one prompt, and puts its job behind the others.
    fn prefill_one(&mut self) -> Result<()> {
        let Some(at) = self.jobs.iter_mut().position(|job| job.prefilling().is_some()) else { return Ok(()) };
        let mut job = self.jobs.remove(at).expect("just found");
        let generation = job.generation().expect("it is prefilling");
        let result = generation.prefill(&self.model);
        let key = job.key;
        self.jobs.push_back(job);
        result.or_else(|error| self.fail(&[key], &error))
    }

    fn decode_all(&mut self) -> Result<()> {
        for _ in 0..self.model.tokens_per_turn() {
            if let Err(error) = self.decode_once() {
                return self.fail_decoding(&error);
            }
        }
        Ok(())
    }

    fn decode_once(&mut self) -> Result<()> {
        let mut generations: Vec<_> = self.jobs.iter_mut().filter_map(Job::decoding).collect();
        let mut batch: Vec<_> = generations.iter_mut().map(|generation| generation.decode_input()).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let logits = self.model.decode(&mut batch)?;
        generations.iter_mut().zip(logits).try_for_each(|(generation, logits)| generation.accept(logits))
    }

    fn send_parts(&mut self) -> Result<()> {
        let mut parts = Vec::new();
        self.jobs.retain_mut(|job| {
            let key = job.key;
            let Some(generation) = job.generation() else { return true };
            let part = generation.take_part();
            let is_last = part.as_ref().is_some_and(|part| part.finish.is_some());
            parts.extend(part.map(|part| part.into_frame(key)));
            let fault = generation.take_fault().map(|error| FromWorker::Failed { job: key, error });
            let is_over = is_last || fault.is_some();
            parts.extend(fault);
            !is_over
        });
        parts.iter().try_for_each(|frame| self.shared.send(frame))
    }

    /// Fails the jobs of a batch, because an error does not say whose it is.
    fn fail_decoding(&mut self, error: &anyhow::Error) -> Result<()> {
        let keys: Vec<_> =
            self.jobs.iter_mut().filter_map(|job| job.decoding().is_some().then_some(job.key)).collect();
        self.fail(&keys, error)
    }

    /// Fails jobs, and with them the process if none can be computed any more: the node starts another.
    fn fail(&mut self, keys: &[JobKey], error: &anyhow::Error) -> Result<()> {
        for key in keys {
            tracing::error!(job = %key, error = %format!("{error:#}"), "A job failed");
            self.jobs.retain(|job| job.key != *key);
            self.shared.fail(*key, JobError::Internal(format!("{error:#}")))?;
        }
        self.model.check()
    }
}
