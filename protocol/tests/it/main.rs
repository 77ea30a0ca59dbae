//! Properties of the ledger and of what is signed, over thousands of random cases.

mod channel;
mod common;
mod issuer;
mod money;
mod provider;
mod records;
mod wallet;
