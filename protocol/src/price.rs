//! What a unit of work costs, and what a job's units are.

use serde::{Deserialize, Serialize};

use crate::mutant;

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

/// The most that a job can be counted as, and how reading its prompt is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worst {
    /// All of it.
    pub usage: Usage,
    /// How its prompt is counted.
    pub reading: Reading,
}

/// How reading a prompt is counted of a job that ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Whole, from the first token on: nothing can be answered before all is read.
    Whole,
    /// By as much as there is of what was to be made: each vector is made of a text of its own.
    ByPart,
}

impl From<Usage> for Worst {
    fn from(usage: Usage) -> Self {
        Self { usage, reading: Reading::Whole }
    }
}

impl Worst {
    /// Returns what is due for so many tokens, or vectors, of a job whose prompt has `tokens_in` tokens; a part of a token
    /// read counts as one.
    #[must_use]
    pub fn usage_of(&self, tokens_in: u64, tokens_out: u64) -> Usage {
        let read = match self.reading {
            Reading::ByPart if tokens_out < self.usage.tokens_out && !mutant::is_in("vectors-read-whole") => {
                let read = u128::from(tokens_in).saturating_mul(u128::from(tokens_out));
                let read = read.div_ceil(u128::from(self.usage.tokens_out));
                u64::try_from(read).unwrap_or(u64::MAX)
            }
            Reading::Whole | Reading::ByPart => tokens_in,
        };
        Usage::of_job(read, tokens_out)
    }

    /// Returns a number of prompt tokens of which [`Worst::usage_of`] makes this usage.
    #[must_use]
    pub fn tokens_in_of(&self, usage: &Usage) -> u64 {
        let (read, made, all) = (usage.tokens_in, usage.tokens_out, self.usage.tokens_out);
        match self.reading {
            Reading::ByPart if (1..all).contains(&made) && read > 0 => {
                let before = u128::from(read - 1).saturating_mul(u128::from(all)) / u128::from(made);
                u64::try_from(before.saturating_add(1)).unwrap_or(u64::MAX)
            }
            Reading::Whole | Reading::ByPart => read,
        }
    }
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
    use super::{Price, Reading, Usage, Worst};

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
    fn texts_of_which_no_vectors_were_made_are_not_read() {
        let worst = |texts, reading| Worst { usage: usage(9_000, texts), reading };
        let read = |texts, tokens_in, made| worst(texts, Reading::ByPart).usage_of(tokens_in, made).tokens_in;

        assert_eq!((read(100, 5_000, 1), read(100, 5_000, 99), read(100, 5_000, 100)), (50, 4_950, 5_000));
        assert_eq!((read(3, 10, 1), read(3, 10, 2), read(3, 10, 0)), (4, 7, 0));
        assert_eq!(worst(100, Reading::Whole).usage_of(5_000, 1).tokens_in, 5_000);
        for (texts, tokens_in, made) in [(3, 10, 1), (7, 23, 5), (2_048, 8_000, 2_047), (5, 4, 3), (4, 9, 4)]
        {
            let worst = worst(texts, Reading::ByPart);
            let counted = worst.usage_of(tokens_in, made);
            assert_eq!(worst.usage_of(worst.tokens_in_of(&counted), made), counted);
        }
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
