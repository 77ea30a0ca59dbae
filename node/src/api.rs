//! The local HTTP API.

pub mod views;
