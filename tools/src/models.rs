//! The model that tests run on: from the node's own catalogue and cache, so that it is fetched once for both.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use node::models::Models;

/// Tells tests where the model is; those that need it skip themselves without.
pub(crate) const TEST_MODEL: &str = "SHAREMESH_TEST_MODEL";

/// The smallest model that talks: 93 MB, Apache-2.0.
const NAME: &str = "smollm2-135m";

/// Returns where the model is, fetched and checked.
pub(crate) fn test_model() -> Result<PathBuf> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let models = Models::open()?;
    let file =
        runtime.block_on(models.pull(NAME, &|_| ())).with_context(|| format!("cannot fetch {NAME}"))?;
    Ok(file.path)
}
