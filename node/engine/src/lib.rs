//! Inference for Sharemesh: prompts in, tokens out; knows tensors and tokens, never peers.
//!
//! In reading order: [`frame`] is what a node and its worker process say to each other, [`worker`] the loop of
//! that process, [`direct`] the same loop called without a process; [`model`] is what the loop needs of a model
//! and [`fake`] a model for tests.

pub mod frame;
pub mod options;
pub mod worker;

pub mod direct;
pub mod fake;
pub mod model;

pub mod device;
pub mod gguf_check;

mod cache;
mod generation;
mod load;
mod metadata;
mod sampler;
mod template;
mod text;
mod tokenizer;
mod weights;

#[cfg(test)]
mod real_model;
#[cfg(test)]
mod tiny_model;

pub use direct::{Completion, Engine, Timings, generate_directly};
pub use generation::Part;
pub use options::{DeviceChoice, FakeOptions, ModelSource, WorkerOptions};
