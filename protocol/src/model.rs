//! What a model is: the manifest whose hash is its name.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::encoding::encode;
use crate::ids::{Digest, ModelId};

/// Bounds names that peers choose, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// A model, described completely enough that equal manifests answer alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelManifest {
    /// Name for people.
    pub name: String,
    /// What goes in and comes out.
    pub modality: Modality,
    /// Family, as the model file names it.
    pub architecture: String,
    /// Digest of the weights file.
    pub weights: Digest,
    /// Size of the weights file in bytes.
    pub weights_bytes: u64,
    /// Longest prompt and answer together, in tokens.
    pub context_tokens: u32,
    /// Compute units per token.
    pub compute_weight: u32,
}

/// What goes into a model and what comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Modality {
    /// Text to text.
    Text,
    /// Text to vectors.
    Embedding,
    /// Speech to text.
    Speech,
    /// Text or image to image.
    Image,
}

impl ModelManifest {
    /// Returns the model's name in every network.
    #[must_use]
    pub fn id(&self) -> ModelId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"sharemesh/v1/model\0").update(&encode(self));
        ModelId(*hasher.finalize().as_bytes())
    }
}
