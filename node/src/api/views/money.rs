//! Amounts and prices.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::exit::Failure;

/// Nano-credits in a credit.
pub const NANO_PER_CREDIT: u64 = 1_000_000_000;

/// An amount, exact for machines and readable for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Money {
    /// Nano-credits.
    pub nano: u64,
    /// The same in credits, such as `1.5`.
    pub credits: String,
}

impl Money {
    /// Makes an amount of nano-credits.
    #[must_use]
    pub fn from_nano(nano: u64) -> Self {
        Self { nano, credits: format_credits(nano) }
    }
}

impl From<u64> for Money {
    fn from(nano: u64) -> Self {
        Self::from_nano(nano)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} credits", self.credits)
    }
}

/// Returns nano-credits as credits without needless zeros.
#[must_use]
pub fn format_credits(nano: u64) -> String {
    let whole = nano / NANO_PER_CREDIT;
    let part = format!("{:09}", nano % NANO_PER_CREDIT);
    match part.trim_end_matches('0') {
        "" => whole.to_string(),
        part => format!("{whole}.{part}"),
    }
}

/// Reads credits such as `2`, `0.25` or `1_000`; at most nine decimals, never negative.
pub fn parse_credits(text: &str) -> Result<u64, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "`{text}` is not an amount of credits: write a number such as 2 or 0.25, with at most 9 decimals"
        ))
    };
    let text = text.replace('_', "");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 9 || !digits(whole) || !digits(part) {
        return Err(wrong());
    }

    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let part: u64 = format!("{part:0<9}").parse().map_err(|_| wrong())?;
    whole.checked_mul(NANO_PER_CREDIT).and_then(|nano| nano.checked_add(part)).ok_or_else(wrong)
}

/// What a model's provider asks per million tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PriceView {
    /// For a million tokens of prompts.
    pub input_per_million: Money,
    /// For a million tokens of answers.
    pub output_per_million: Money,
}

/// What a builder gets on top of a price, for having routed a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuilderView {
    /// Its account.
    pub account: String,
    /// Its share of the provider's price in ten-thousandths.
    pub markup_bps: u16,
    /// How much of the price is its.
    pub amount: Money,
}

/// One line of a split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SplitView {
    /// `provider`, `creator`, `pool`, `network`, `builder`, a cause's name, or `pending` for what waits in the
    /// channel until a quantum is full.
    pub role: String,
    /// Who gets it.
    pub account: String,
    /// Its share of the base price in ten-thousandths.
    pub bps: u32,
    /// How much.
    pub amount: Money,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_printed_and_read_back_exactly() {
        for nano in [0, 1, 999_999_999, NANO_PER_CREDIT, 1_500_000_000, u64::MAX] {
            assert_eq!(parse_credits(&format_credits(nano)), Ok(nano));
        }
        assert_eq!(format_credits(1_500_000_000), "1.5");
        assert_eq!(parse_credits("1_000"), Ok(1_000 * NANO_PER_CREDIT));
    }

    #[test]
    fn amounts_that_are_not_exact_are_refused() {
        for text in ["", ".", "-1", "1.0000000001", "1e3", "nan", "18446744074", ".5", "1,5"] {
            assert!(parse_credits(text).is_err(), "{text}");
        }
    }
}
