//! Every rule of the Sharemesh network: who may do what, who owes whom, and what follows from what happened.
//!
//! The crate has no IO, no clock, no entropy and no threads: it is `no_std`, so none of them can be named.
//! Time and seeds are arguments; what should happen comes back as values. Read the modules in this order.

#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs, clippy::float_arithmetic)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod mutant;

pub mod time;

pub mod prng;

pub mod ids;

pub mod encoding;

pub mod keys;

pub mod signed;

pub mod manifest;

pub mod ticket;

pub mod price;

pub mod licence;

pub mod model;

pub mod advert;

pub mod job;

#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod ledger;

pub mod books;

pub mod forward;

pub mod agreeing;

pub mod message;

pub mod record;

pub mod deadlines;

pub mod router;

pub mod clocks;

pub mod scheduler;

pub mod node;

pub mod audit;

pub mod statement;

pub mod pruning;
