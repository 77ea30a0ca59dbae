//! The cost model of an engine: it counts a prompt, reads it, then generates at a rate, and stops where it must.

use std::collections::BTreeMap;

use protocol::ids::{Digest, JobId, NodeId};
use protocol::job::{Finish, JobSpec};

/// Tokens between two reports.
pub const REPORT_TOKENS: u32 = 16;

/// How fast a device is.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// Prompt tokens per second.
    pub prefill: u64,
    /// Generated tokens per second, of each job.
    pub decode: u64,
}

/// An engine with the jobs it runs.
#[derive(Debug)]
pub struct Device {
    /// How fast it is.
    pub speed: Speed,
    /// Counts prompts and generates nothing.
    pub stalls: bool,
    jobs: BTreeMap<JobId, Run>,
}

/// A job in an engine.
#[derive(Debug, Clone)]
pub struct Run {
    /// Who gets the tokens.
    pub requester: NodeId,
    /// Tokens generated.
    pub tokens: u32,
    prompt: u32,
    target: u32,
    length: bool,
    up_to: u32,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Counting,
    Reading,
    Generating,
    Waiting,
}

/// What an engine does next with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It has counted the prompt, and goes on after so many milliseconds.
    Counted(u32, u64),
    /// It has generated so many tokens in all, and goes on after so many milliseconds.
    Generated(u32, u64),
    /// It waits for a grant; so many tokens were generated in all.
    Paused(u32),
    /// It is done.
    Done(u32, Finish),
}

impl Device {
    /// Returns an idle device.
    #[must_use]
    pub const fn new(speed: Speed) -> Self {
        Self { speed, stalls: false, jobs: BTreeMap::new() }
    }

    /// Takes a job; its first step is due at once.
    pub fn run(&mut self, job: JobId, requester: NodeId, spec: &JobSpec, up_to: u32) {
        // Like a model, the prompt alone decides where the answer ends.
        let natural = natural_of(spec.input.digest);
        let run = Run {
            requester,
            tokens: 0,
            prompt: tokens_of(spec.input.bytes),
            target: natural.min(spec.max_tokens),
            length: natural > spec.max_tokens,
            up_to,
            stage: Stage::Counting,
        };
        self.jobs.insert(job, run);
    }

    /// Lets a job go on; `true` when it waited for that.
    pub fn grant(&mut self, job: JobId, up_to: u32) -> bool {
        let Some(run) = self.jobs.get_mut(&job) else { return false };
        run.up_to = run.up_to.max(up_to);
        let resumed = run.stage == Stage::Waiting && run.up_to > run.tokens;
        if resumed {
            run.stage = Stage::Generating;
        }
        resumed
    }

    /// Returns a job that is running.
    #[must_use]
    pub fn job(&self, job: JobId) -> Option<&Run> {
        self.jobs.get(&job)
    }

    /// Returns how many jobs run.
    #[must_use]
    pub fn load(&self) -> usize {
        self.jobs.len()
    }

    /// Takes a job out before its end.
    pub fn abort(&mut self, job: JobId) -> Option<Run> {
        self.jobs.remove(&job)
    }

    /// Forgets all jobs, as a crash does.
    pub fn reset(&mut self) {
        self.jobs.clear();
    }

    /// Goes on with a job; `None` when it is gone or waits.
    pub fn step(&mut self, job: JobId) -> Option<Step> {
        let run = self.jobs.get_mut(&job)?;
        match run.stage {
            Stage::Counting => {
                run.stage = Stage::Reading;
                Some(Step::Counted(run.prompt, 1 + u64::from(run.prompt) * 1000 / self.speed.prefill))
            }
            Stage::Waiting => None,
            Stage::Reading if self.stalls => None,
            Stage::Reading | Stage::Generating => {
                let before = run.tokens;
                run.stage = Stage::Generating;
                let boundary = (before / REPORT_TOKENS + 1) * REPORT_TOKENS;
                run.tokens = boundary.min(run.target).min(run.up_to.max(before));
                if run.tokens >= run.target {
                    let finish = if run.length { Finish::Length } else { Finish::Stop };
                    let tokens = run.tokens;
                    self.jobs.remove(&job);
                    return Some(Step::Done(tokens, finish));
                }
                if run.tokens >= run.up_to {
                    run.stage = Stage::Waiting;
                    return Some(Step::Paused(run.tokens));
                }
                let tokens = u64::from(run.tokens - before);
                Some(Step::Generated(run.tokens, 1 + tokens * 1000 / self.speed.decode))
            }
        }
    }
}

/// Returns the digest of a prompt to which the model's answer ends after about so many tokens.
#[must_use]
pub fn prompt_ending(natural: u32) -> Digest {
    let half = natural.saturating_sub(1) / 2;
    let mut digest = [0; 32];
    digest[..4].copy_from_slice(&half.to_le_bytes());
    Digest(digest)
}

/// Returns after how many tokens the model's answer to a prompt ends.
const fn natural_of(prompt: Digest) -> u32 {
    let [a, b, c, d, ..] = prompt.0;
    u32::from_le_bytes([a, b, c, d]).saturating_mul(2).saturating_add(1)
}

/// Returns how many tokens a simulated prompt has.
#[must_use]
pub fn tokens_of(bytes: u64) -> u32 {
    u32::try_from(bytes / 4 + 10).unwrap_or(u32::MAX)
}

/// Returns the digest over the first tokens of a job's simulated answer.
#[must_use]
pub fn digest_of(job: JobId, tokens: u32) -> Digest {
    Digest::of(&[job.0.as_slice(), &tokens.to_be_bytes()].concat())
}
