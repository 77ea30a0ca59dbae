//! What the local API says and hears, as JSON; the driver fills these in and the command line reads them.
//!
//! Ids are lowercase hexadecimal. Money is [`Money`]. Times are Unix milliseconds, durations say their unit.

mod account;
mod failure;
mod jobs;
mod keys;
mod ledger;
mod mesh;
mod money;
mod transfers;

pub use account::*;
pub use failure::*;
pub use jobs::*;
pub use keys::*;
pub use ledger::*;
pub use mesh::*;
pub use money::*;
pub use transfers::*;
