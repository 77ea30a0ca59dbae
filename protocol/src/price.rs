//! What a unit of work costs, and what a job's units are.

use serde::{Deserialize, Serialize};

/// Nano-credits in one credit; all money in this crate is in nano-credits.
pub const NANO_PER_CREDIT: u64 = 1_000_000_000;

/// Tokens to which a price refers.
const PRICED_TOKENS: u128 = 1_000_000;

/// A provider's price table, in nano-credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Per job.
    pub call: u64,
    /// Per million prompt tokens.
    pub input: u64,
    /// Per million generated tokens.
    pub output: u64,
}

/// Counted work, cumulative over a channel or of one job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Jobs.
    pub calls: u64,
    /// Prompt tokens.
    pub tokens_in: u64,
    /// Generated tokens.
    pub tokens_out: u64,
    /// Compute units: tokens weighed by the model's size; no price depends on them.
    pub compute: u64,
}

impl Price {
    /// Returns what `usage` costs in nano-credits, rounded up once over the whole, so that the way in which usage came
    /// about does not matter; `None` when it does not fit 64 bits.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> Option<u64> {
        let by_token = u128::from(self.input)
            .checked_mul(u128::from(usage.tokens_in))?
            .checked_add(u128::from(self.output).checked_mul(u128::from(usage.tokens_out))?)?
            .div_ceil(PRICED_TOKENS);
        let by_call = u128::from(self.call).checked_mul(u128::from(usage.calls))?;
        u64::try_from(by_token.checked_add(by_call)?).ok()
    }

    /// Says whether everything is given away.
    #[must_use]
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }
}

impl Usage {
    /// Returns what is due for one job: nothing if it ended before its first token, however it ended, so that whoever
    /// never answers is never paid for reading.
    #[must_use]
    pub const fn of_job(tokens_in: u64, tokens_out: u64) -> Self {
        if tokens_out == 0 {
            return Self { calls: 0, tokens_in: 0, tokens_out: 0, compute: 0 };
        }
        Self { calls: 1, tokens_in, tokens_out, compute: 0 }
    }

    /// Returns both together; stops at the largest number, which no price can afford.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            tokens_in: self.tokens_in.saturating_add(other.tokens_in),
            tokens_out: self.tokens_out.saturating_add(other.tokens_out),
            compute: self.compute.saturating_add(other.compute),
        }
    }

    /// Returns the larger of both, count by count.
    #[must_use]
    pub fn or_more(&self, other: &Self) -> Self {
        Self {
            calls: self.calls.max(other.calls),
            tokens_in: self.tokens_in.max(other.tokens_in),
            tokens_out: self.tokens_out.max(other.tokens_out),
            compute: self.compute.max(other.compute),
        }
    }

    /// Says whether no count is below `other`'s.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        self.calls >= other.calls
            && self.tokens_in >= other.tokens_in
            && self.tokens_out >= other.tokens_out
            && self.compute >= other.compute
    }
}

#[cfg(test)]
mod tests {
    use super::{Price, Usage};

    const PRICE: Price = Price { call: 5, input: 1_000_001, output: 4_000_000 };

    fn usage(tokens_in: u64, tokens_out: u64) -> Usage {
        Usage { calls: 1, tokens_in, tokens_out, compute: 0 }
    }

    #[test]
    fn a_cost_is_rounded_up_once() {
        assert_eq!(PRICE.cost(&usage(1, 1)), Some(5 + 6));
        assert_eq!(PRICE.cost(&usage(1_000_000, 0)), Some(5 + 1_000_001));
    }

    #[test]
    fn a_job_without_a_token_costs_nothing() {
        assert_eq!(PRICE.cost(&Usage::of_job(8_000, 0)), Some(0));
        assert_eq!(Usage::of_job(8_000, 1), usage(8_000, 1));
    }

    #[test]
    fn a_cost_beyond_64_bits_is_none() {
        assert_eq!(Price { output: u64::MAX, ..PRICE }.cost(&usage(0, u64::MAX)), None);
    }
}
