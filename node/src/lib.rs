//! The Sharemesh node: everything around `protocol` that touches the machine.
//!
//! In reading order: [`cli`] is what a user types and [`config`] what becomes of it; [`api`] is what clients on
//! this machine speak with, [`command`] what the API asks of the driver; [`net`] is the mesh, [`journal`] the durable
//! truth in a [`folder`], [`store`] its index; [`models`] finds weights and [`worker`] runs them in processes of
//! their own; [`clock`] is the only reader of time and [`exit`] the list of failures.

pub mod api;
pub mod clock;
pub mod command;
pub mod exit;
pub mod folder;
pub mod journal;
pub mod models;
pub mod net;
pub mod store;
pub mod worker;
