//! skeleton

pub mod folder;
pub mod journal;
