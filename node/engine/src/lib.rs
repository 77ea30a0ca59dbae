//! Inference for Sharemesh: prompts in, tokens or vectors out; knows tensors and tokens, never peers.
//!
//! In reading order: [`frame`] is what a node and its worker process say to each other and [`options`] what the
//! process is started with; [`worker`] is the loop of that process and [`direct`] the same without a process;
//! [`model`] is what the loop needs of a model, and [`fake`] a model for tests. A real one is loaded by `load`:
//! [`gguf_check`] and `weights` read its file, `tokenizer` and `template` its words, [`device`] says where it
//! runs, `pages` moves it where it is read fast, and `model::llama` computes it with `cache`; `generation`, `sampler` and `text`
//! make the answer, and [`grammar`] keeps it to the form that was asked for, within the bounds of [`schema`].
//! An encoder, which makes vectors of texts, has `wordpiece` for its words and is computed by `model::bert`;
//! [`sentence`] makes its file of the files that are published.

pub mod frame;
pub mod options;
pub mod worker;

pub mod direct;
pub mod model;

pub mod fake;

mod load;

pub mod gguf_check;
mod metadata;
mod weights;

pub mod sentence;

mod template;
mod tokenizer;
pub mod tools;
mod wordpiece;

mod cache;
pub mod device;
mod pages;

mod generation;
pub mod grammar;
mod sampler;
pub mod schema;
mod text;

#[cfg(test)]
mod real_encoder;
#[cfg(test)]
mod real_model;
#[cfg(test)]
mod tiny_encoder;
#[cfg(test)]
mod tiny_model;

pub use direct::{Completion, Engine, Timings, generate_directly};
pub use generation::Part;
pub use options::{DeviceChoice, FakeOptions, ModelSource, WorkerOptions};
