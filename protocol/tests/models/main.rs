//! Bounded models of channels, searched whole: the real code of both sides and of the issuer, in every order of events.
//!
//! `cargo test -p protocol --test models -- --nocapture` prints how many states each has.

#[path = "../it/common.rs"]
#[expect(dead_code, reason = "the properties share more than the models need")]
mod common;

#[path = "../issuers/network.rs"]
#[expect(dead_code, reason = "the issuers' tests share more than this model needs")]
mod network;

#[path = "../../src/mutant.rs"]
mod mutant;

mod checkpoint;
mod devices;
mod ending;
mod rotating;
mod seen;
mod streaming;
mod succession;
