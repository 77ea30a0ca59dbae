//! Dividing money exactly: shares fall due per full quantum, so no rounding ever favours anybody.

use alloc::vec::Vec;

use thiserror::Error;

use crate::ledger::records::{SplitLine, Terms};
use crate::mutant;

/// Basis points in the whole.
pub const BPS: u64 = 10_000;

/// Nano-credits of base at which shares fall due: one basis point of a quantum is exactly one nano-credit.
pub const QUANTUM: u64 = BPS;

/// An amount does not fit 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an amount exceeds what 64 bits hold")]
pub struct Overflow;

/// What a channel must hold to pay a base of `base` nano-credits and the markup on it.
///
/// # Errors
/// When it exceeds 64 bits.
pub fn with_markup(base: u64, markup_bps: u16) -> Result<u64, Overflow> {
    let quanta = base / QUANTUM;
    let markup = quanta.checked_mul(u64::from(markup_bps)).ok_or(Overflow)?;
    base.checked_add(markup).ok_or(Overflow)
}

/// The most that a part of a channel's bill, of `base` nano-credits, takes off its payer with the markup on it: the part may
/// fill a quantum that another one began.
///
/// # Errors
/// When it exceeds 64 bits.
pub fn most_with_markup(base: u64, markup_bps: u16) -> Result<u64, Overflow> {
    let markup = base.div_ceil(QUANTUM).checked_mul(u64::from(markup_bps)).ok_or(Overflow)?;
    base.checked_add(markup).ok_or(Overflow)
}

/// Returns how much of what [`most_with_markup`] says is the markup.
#[must_use]
pub const fn markup_within(most: u64, markup_bps: u16) -> u64 {
    let quanta = most.div_ceil(QUANTUM.saturating_add(markup_bps as u64));
    quanta.saturating_mul(markup_bps as u64)
}

/// Returns who gets what when the base of a channel rises from `before` to `after`: shares of the full quanta between.
///
/// # Errors
/// When an amount exceeds 64 bits.
pub fn shares(terms: &Terms, before: u64, after: u64) -> Result<Vec<(SplitLine, u64)>, Overflow> {
    if mutant::is_in("floor-and-remainder") {
        return floor_and_remainder(terms, before, after);
    }
    shares_of(terms.split.iter().copied().chain(terms.markup.map(|markup| markup.line())), before, after)
}

/// Returns the same for the lines of some terms, the builder's included.
///
/// # Errors
/// When an amount exceeds 64 bits.
pub fn shares_of(
    lines: impl Iterator<Item = SplitLine>,
    before: u64,
    after: u64,
) -> Result<Vec<(SplitLine, u64)>, Overflow> {
    let quanta = (after / QUANTUM).checked_sub(before / QUANTUM).ok_or(Overflow)?;
    let share = |line: SplitLine| {
        let amount = quanta.checked_mul(u64::from(line.bps)).ok_or(Overflow)?;
        Ok((line, amount))
    };
    lines.map(share).collect()
}

/// The division that must not be used: it is exact, but the provider's part can fall when the amount rises.
fn floor_and_remainder(terms: &Terms, before: u64, after: u64) -> Result<Vec<(SplitLine, u64)>, Overflow> {
    let step = after.checked_sub(before).ok_or(Overflow)?;
    let part =
        |line: &SplitLine| step.checked_mul(u64::from(line.bps)).map(|product| product / BPS).ok_or(Overflow);
    let mut divided = Vec::new();
    let mut rest = step;
    for line in terms.split.iter().rev() {
        let share = if divided.len().saturating_add(1) == terms.split.len() { rest } else { part(line)? };
        rest = rest.saturating_sub(share);
        divided.insert(0, (*line, share));
    }
    Ok(divided)
}

/// Returns the part of `base` that has not filled a quantum and waits in the channel.
#[must_use]
pub const fn waiting(base: u64) -> u64 {
    base % QUANTUM
}
