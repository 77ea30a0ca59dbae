//! Money: accounts, channels, receipts and issuers. Every step checks on copies, then commits without failing.
//!
//! All arithmetic is checked, in integers of nano-credits. Nothing here knows of jobs' contents, peers or time beyond
//! epochs.

pub mod money;

pub mod records;

pub mod account;

pub mod issuer;

pub mod quorum;

pub mod counted;

pub mod facts;

pub mod outside;

pub mod witness;

pub mod wallet;

pub mod paying;

pub mod paid;

pub mod merkle;

pub mod checkpoint;

pub mod agreement;

pub mod allowance;

pub mod settled;

pub mod epoch_log;

pub mod equivocation;

pub mod finding;

pub mod reconcile;

pub mod mirror;
