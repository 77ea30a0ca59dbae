//! How far this node's clock is from the issuers': who is off finds no partner, because adverts of another time are not
//! believed, and cannot know why.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::keys::PublicKey;
use crate::time::Time;

/// A clock that is off by less does no harm, and messages take their time.
pub const CLOCK_OFF_MS_MIN: u64 = 10_000;

/// What issuers last said of the time.
#[derive(Debug, Clone, Default)]
pub struct Clocks(BTreeMap<PublicKey, i64>);

impl Clocks {
    /// Learns what an issuer's clock shows while ours shows `now`.
    pub fn hear(&mut self, issuer: PublicKey, theirs: Time, now: Time) {
        let ahead = i128::from(theirs.0) - i128::from(now.0);
        let ahead = i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX });
        self.0.insert(issuer, ahead);
    }

    /// Returns by how many milliseconds the issuers' clocks are ahead of ours, if ours is off by
    /// [`CLOCK_OFF_MS_MIN`] or more. The median counts: fewer than a third who lie cannot move it away from the honest.
    #[must_use]
    pub fn off_ms(&self) -> Option<i64> {
        let mut ahead: Vec<i64> = self.0.values().copied().collect();
        ahead.sort_unstable();
        let median = ahead.get(ahead.len() / 2).copied()?;
        (median.unsigned_abs() >= CLOCK_OFF_MS_MIN).then_some(median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(theirs: &[u64], ours: u64, expected: Option<i64>) {
        let mut clocks = Clocks::default();
        for (number, theirs) in (0..).zip(theirs) {
            clocks.hear(PublicKey([number; 32]), Time(*theirs), Time(ours));
        }
        assert_eq!(clocks.off_ms(), expected, "{theirs:?}");
    }

    #[test]
    fn a_clock_is_off_by_the_median_of_what_issuers_say() {
        check(&[], 100_000, None);
        check(&[100_000], 100_000, None);
        check(&[109_999], 100_000, None);
        check(&[220_000], 100_000, Some(120_000));
        check(&[90_000], 100_000, Some(-10_000));
        // One of four lies.
        check(&[u64::MAX, 100_001, 99_990, 100_000], 100_000, None);
        check(&[0, 220_000, 220_010, 220_020], 100_000, Some(120_010));
        check(&[u64::MAX], 0, Some(i64::MAX));
    }

    #[test]
    fn the_newest_word_of_an_issuer_counts() {
        let mut clocks = Clocks::default();
        clocks.hear(PublicKey([1; 32]), Time(220_000), Time(100_000));
        clocks.hear(PublicKey([1; 32]), Time(230_000), Time(230_000));
        assert_eq!(clocks.off_ms(), None);
    }
}
