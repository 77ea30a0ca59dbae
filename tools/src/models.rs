//! The models that tests run on: from the node's own catalogue and cache, so that they are fetched once for both.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use node::models::Models;

/// Tells tests where the model is; those that need it skip themselves without.
pub(crate) const TEST_MODEL: &str = "SHAREMESH_TEST_MODEL";

/// The smallest model that talks: 93 MB, Apache-2.0.
const NAME: &str = "smollm2-135m";

/// Tells tests where the model of vectors is.
pub(crate) const TEST_ENCODER: &str = "SHAREMESH_TEST_ENCODER";

/// The smallest model of vectors that people use: 84 MB, Apache-2.0.
const ENCODER_NAME: &str = "all-minilm-l6-v2";

/// Returns where the model is, fetched and checked.
pub(crate) fn test_model() -> Result<PathBuf> {
    pulled(NAME)
}

/// Returns where the model of vectors is, fetched and checked.
pub(crate) fn test_encoder() -> Result<PathBuf> {
    pulled(ENCODER_NAME)
}

fn pulled(name: &str) -> Result<PathBuf> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let models = Models::open()?;
    let file =
        runtime.block_on(models.pull(name, &|_| ())).with_context(|| format!("cannot fetch {name}"))?;
    Ok(file.path)
}
