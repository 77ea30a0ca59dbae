//! The Sharemesh node: everything around `protocol` that touches the machine.

pub mod folder;
pub mod journal;
pub mod net;
pub mod store;
