//! Properties of the ledger and of what is signed, over thousands of random cases.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one kind of effect among all")]

mod account;
mod bounds;
mod channel;
mod checkpoint;
mod common;
mod durable;
mod issuer;
mod kinds;
mod mirror;
mod money;
mod provider;
mod reconcile;
mod terms;
mod wallet;
