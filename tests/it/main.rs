//! All tests of whole nodes and of the house in one binary, which links once.

// Always set here; said again because clippy lets helpers unwrap only below it.
#[cfg(test)]
mod house;
