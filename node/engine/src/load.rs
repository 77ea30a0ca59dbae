//! Loads the model that the options name.

use std::sync::Arc;

use anyhow::Result;

use crate::fake::{Fake, FakeVocabulary};
use crate::options::{ModelSource, WorkerOptions};

/// A model of one of the kinds that this crate knows, with its vocabulary.
pub(crate) enum Loaded {
    Fake(Fake, Arc<FakeVocabulary>),
}

/// Loads; `progress` is told the percentage and what is being done.
pub(crate) fn load(options: &WorkerOptions, progress: &mut dyn FnMut(u8, &str)) -> Result<Loaded> {
    match &options.model {
        ModelSource::Fake(fake) => {
            progress(0, "loading the fake model");
            Ok(Loaded::Fake(Fake::load(fake)?, Arc::new(FakeVocabulary::new(fake))))
        }
        ModelSource::Gguf { .. } => anyhow::bail!("not yet"),
    }
}
