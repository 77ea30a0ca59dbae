//! All tests of whole nodes and of the house in one binary, which links once.

// Always set here; said again because clippy lets helpers unwrap only below it.
#[cfg(test)]
mod account;
#[cfg(test)]
mod again;
#[cfg(test)]
mod attacker;
#[cfg(test)]
mod builder;
#[cfg(test)]
mod cli;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod crash;
#[cfg(test)]
mod described;
#[cfg(test)]
mod embeddings;
#[cfg(test)]
mod fallback;
#[cfg(test)]
mod house;
#[cfg(test)]
mod job;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod liar;
#[cfg(test)]
mod openai;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod providers;
#[cfg(test)]
mod pruning;
#[cfg(test)]
#[cfg(unix)]
mod quorum;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod trace;

/// The program under test.
#[cfg(test)]
const SHAREMESH: &str = env!("CARGO_BIN_EXE_sharemesh-under-test");
