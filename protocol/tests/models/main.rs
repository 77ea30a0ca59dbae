//! Bounded models of channels, searched whole: the real code of both sides and of the issuer, in every order of events.
//!
//! `cargo test -p protocol --test models -- --nocapture` prints how many states each has.

#[path = "../it/common.rs"]
#[expect(dead_code, reason = "the properties share more than the models need")]
mod common;

mod checkpoint;
mod ending;
mod seen;
mod streaming;
