//! The Sharemesh node: everything around `protocol` that touches the machine.
//!
//! In reading order: [`cli`] is what a user types and [`config`] what becomes of it, [`demo`] a whole network in
//! one command; [`api`] is what clients speak with and [`api_keys`] what lets others do so, [`command`] what the API asks of the [`driver`] and [`metrics`] what it counts; the driver is the event loop around the
//! protocol's node; [`identity`] is its keys and its network,
//! [`network_file`] a network in a file and [`issuer_key`] what makes a node one of its issuers,
//! [`vault`] an account's sealed keys, [`delegation`] the right to act for somebody else's account;
//! [`net`] is the mesh, [`journal`] the durable truth in a [`folder`], [`store`] its index, [`transport`] both in a file; [`models`] finds weights
//! and [`worker`] runs them in processes of their own; [`clock`] is the only reader of time and [`exit`] the list of
//! failures.

pub mod cli;
pub mod config;
pub mod demo;

pub mod api;
pub mod api_keys;
pub mod command;
pub mod metrics;
pub mod trace;

pub mod driver;
pub mod identity;
pub mod issuer_key;
pub mod network_file;

pub mod delegation;
pub mod vault;

pub mod net;

pub mod folder;
pub mod journal;
pub mod pruning;
pub mod store;
pub mod transport;

pub mod models;
pub mod worker;

pub mod clock;
pub mod exit;
mod idle;

use std::process::ExitCode;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    cli::main(std::env::args_os())
}
