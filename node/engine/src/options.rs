//! What a worker is started with; the node passes it to the process as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything a worker must be told before its first frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerOptions {
    /// Which model to load.
    pub model: ModelSource,
    /// What to run it on.
    pub device: DeviceChoice,
    /// Jobs at once, 1 to [`SLOTS_MAX`].
    pub slots: u32,
    /// Bounds prompt and answer together below what the model could do, to bound memory.
    pub context_max: Option<u32>,
    /// Threads that compute; without a number, one per physical core. It takes effect by [`Self::environment`].
    pub threads: Option<usize>,
}

/// Bounds the jobs at once, because each holds its own key-value cache.
pub const SLOTS_MAX: u32 = 256;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ModelSource {
    /// A model file.
    Gguf {
        /// The file.
        path: PathBuf,
        /// Where files requantised for this machine are kept; made if missing, and done without if unwritable.
        cache_dir: PathBuf,
    },
    /// Reproducible tokens without a model, for tests.
    Fake(FakeOptions),
}

/// What a model runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceChoice {
    /// The first GPU if this build and this machine have one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number; loading fails if there is none.
    Cuda(usize),
}

/// How a fake model behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FakeOptions {
    /// Time that loading takes.
    pub load_ms: u64,
    /// Makes loading fail with this message.
    pub fail_to_load: Option<String>,
    /// Speed of each job's answer; 0 is instant.
    pub tokens_per_s: u32,
    /// Speed of reading prompts; 0 is instant.
    pub prefill_tokens_per_s: u32,
    /// Tokens of prompt and answer together; 0 is [`FAKE_CONTEXT_LENGTH`].
    pub context_length: u32,
    /// Ends the process before the token with this index of any job.
    pub crash_at: Option<u32>,
    /// Stops computing for ever before the token with this index of any job.
    pub hang_at: Option<u32>,
}

/// The context of a fake model that was not told another.
pub const FAKE_CONTEXT_LENGTH: u32 = 8192;

impl WorkerOptions {
    /// Checks the numbers; the error says what to set instead.
    pub fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            (1..=SLOTS_MAX).contains(&self.slots),
            "{} slots: set a number from 1 to {SLOTS_MAX}",
            self.slots
        );
        anyhow::ensure!(self.context_max != Some(0), "a context of 0 tokens: set more or leave it out");
        anyhow::ensure!(self.threads != Some(0), "0 threads: set at least one or leave it out");
        Ok(())
    }

    /// Returns the environment that a worker process with these options must be started with, because the
    /// tensor library reads its number of threads only from there.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let threads = self.threads.iter();
        threads.flat_map(|threads| THREAD_VARIABLES.map(|name| (name, threads.to_string()))).collect()
    }
}

/// Where the tensor library and the thread pool under it look for their number of threads.
const THREAD_VARIABLES: [&str; 2] = ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"];
