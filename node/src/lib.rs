//! skeleton

pub mod folder;
pub mod journal;
pub mod store;
