//! The models a node can serve: a small built-in catalogue, files of the owner's, and where they are kept.

use std::path::PathBuf;

use engine::{DeviceChoice, FakeOptions, ModelSource, WorkerOptions};

/// A model's file on this machine, known to be whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// The name by which it is asked for.
    pub name: String,
    /// Where the file is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// BLAKE3 of the file.
    pub digest: [u8; 32],
    /// SHA-256 of the file in hexadecimal, where the catalogue pins one.
    pub sha256: Option<String>,
    /// The licence's SPDX identifier, or `unknown`.
    pub licence: String,
    /// The family, such as `llama`, or `unknown` before it was loaded.
    pub architecture: String,
    /// Tokens of prompt and answer together; 0 before it was loaded.
    pub context: u32,
    /// What the catalogue proposes to ask for it.
    pub price: Price,
}

/// What is asked per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Nano-credits for a million tokens of prompts.
    pub input_nano_per_million: u64,
    /// Nano-credits for a million tokens of answers.
    pub output_nano_per_million: u64,
}

/// A model as a node serves it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedModel {
    /// The name by which it is asked for.
    pub name: String,
    /// What the worker loads.
    pub source: ModelSource,
    /// BLAKE3 of the file; of the name for the fake model.
    pub digest: [u8; 32],
    /// Size of the file.
    pub size: u64,
    /// The licence's SPDX identifier, or `unknown`.
    pub licence: String,
    /// The family, or `unknown` before it was loaded.
    pub architecture: String,
    /// What is asked for it.
    pub price: Price,
    /// Jobs at once.
    pub slots: u32,
    /// Threads that compute; without a number, one per physical core.
    pub threads: Option<usize>,
}

impl ServedModel {
    /// Returns what its worker is started with.
    #[must_use]
    pub fn worker_options(&self) -> WorkerOptions {
        WorkerOptions {
            model: self.source.clone(),
            device: DeviceChoice::Auto,
            slots: self.slots,
            context_max: None,
            threads: self.threads,
        }
    }

    /// Returns the fake model, which only a network made with `--dev` permits.
    #[must_use]
    pub fn fake(options: FakeOptions, price: Price, slots: u32) -> Self {
        Self {
            name: FAKE.to_owned(),
            source: ModelSource::Fake(options),
            digest: *blake3::hash(FAKE.as_bytes()).as_bytes(),
            size: 0,
            licence: "CC0-1.0".to_owned(),
            architecture: FAKE.to_owned(),
            price,
            slots,
            threads: Some(1),
        }
    }
}

/// The name of the model without weights.
pub const FAKE: &str = "fake";
