//! Bounded models of four issuers, searched whole: the real code of slots and ends, one issuer lying, crashes anywhere.
//!
//! `cargo test -p protocol --test issuers -- --nocapture` prints how many states each has.

mod closing;
mod network;
mod slots;
