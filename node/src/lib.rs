//! skeleton
pub mod net;
