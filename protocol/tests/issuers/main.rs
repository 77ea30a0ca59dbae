//! Four issuers, one of them lying: bounded models of slots and ends, searched whole with crashes anywhere, and tests of
//! what their word takes together: votes, answers, facts, deposits, keys.
//!
//! `cargo test -p protocol --test issuers -- --nocapture` prints how many states each model has.

mod agreement;
mod allowance;
mod answers;
mod closing;
mod counting;
mod deposits;
mod ends;
mod expiry;
mod facts;
mod network;
mod outside;
mod rotation;
mod settling;
mod slots;
mod votes;
