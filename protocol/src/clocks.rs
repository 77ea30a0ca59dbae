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
    /// Returns the clocks of which nothing was heard. To a node that is an issuer itself, `own` clock is right.
    #[must_use]
    pub fn new(own: Option<PublicKey>) -> Self {
        Self(own.map(|issuer| (issuer, 0)).into_iter().collect())
    }

    /// Learns what an issuer's clock shows while ours shows `now`.
    pub fn hear(&mut self, issuer: PublicKey, theirs: Time, now: Time) {
        let ahead = i128::from(theirs.0) - i128::from(now.0);
        let ahead = i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX });
        self.0.insert(issuer, ahead);
    }

    /// Returns by how many milliseconds the issuers' clocks are ahead of ours, if ours is off by
    /// [`CLOCK_OFF_MS_MIN`] or more; nothing until `quorum` issuers have said their time.
    ///
    /// The median counts, of two the one nearer to ours. A quorum is all but those `f` of `3f + 1` who may lie, so at
    /// least `2f + 1` were heard: on either side of the median are `f` or more, and it lies between what two honest
    /// issuers said, if it is not itself an honest one's word.
    #[must_use]
    pub fn off_ms(&self, quorum: usize) -> Option<i64> {
        if self.0.len() < quorum {
            return None;
        }
        let mut ahead: Vec<i64> = self.0.values().copied().collect();
        ahead.sort_unstable();
        let middle = [ahead.len().checked_sub(1)? / 2, ahead.len() / 2];
        let median =
            middle.into_iter().filter_map(|at| ahead.get(at).copied()).min_by_key(|ms| ms.unsigned_abs())?;
        (median.unsigned_abs() >= CLOCK_OFF_MS_MIN).then_some(median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(mut clocks: Clocks, theirs: &[u64], ours: u64) -> Clocks {
        for (number, theirs) in (0..).zip(theirs) {
            clocks.hear(PublicKey([number; 32]), Time(*theirs), Time(ours));
        }
        clocks
    }

    #[track_caller]
    fn check(theirs: &[u64], ours: u64, quorum: usize, expected: Option<i64>) {
        assert_eq!(heard(Clocks::default(), theirs, ours).off_ms(quorum), expected, "{theirs:?}");
    }

    #[test]
    fn a_clock_is_off_by_the_median_of_what_issuers_say() {
        check(&[], 100_000, 0, None);
        check(&[], 100_000, 1, None);
        check(&[100_000], 100_000, 1, None);
        check(&[109_999], 100_000, 1, None);
        check(&[220_000], 100_000, 1, Some(120_000));
        check(&[90_000], 100_000, 1, Some(-10_000));
        // One of four lies.
        check(&[u64::MAX, 100_001, 99_990, 100_000], 100_000, 3, None);
        check(&[u64::MAX, 100_001, 99_990], 100_000, 3, None);
        check(&[0, 220_000, 220_010, 220_020], 100_000, 3, Some(120_000));
        check(&[0, 0, 0, u64::MAX], 120_000, 3, Some(-120_000));
        check(&[u64::MAX], 0, 1, Some(i64::MAX));
    }

    #[test]
    fn of_two_medians_the_nearer_counts() {
        check(&[0, 85_000, 109_000, 300_000], 100_000, 3, None);
        check(&[0, 91_000, 115_000, 300_000], 100_000, 3, None);
        check(&[0, 80_000, 85_000, 300_000], 100_000, 3, Some(-15_000));
    }

    #[test]
    fn fewer_issuers_than_a_quorum_say_nothing() {
        for (heard, expected) in [(1, None), (2, None), (3, Some(120_000)), (4, Some(120_000))] {
            check(&[220_000; 4][..heard], 100_000, 3, expected);
        }
    }

    #[test]
    fn an_issuer_is_one_of_its_quorum() {
        let issuer = Clocks::new(Some(PublicKey([9; 32])));
        assert_eq!(heard(issuer.clone(), &[220_000], 100_000).off_ms(3), None);
        assert_eq!(heard(issuer.clone(), &[220_000; 2], 100_000).off_ms(3), Some(120_000));
        assert_eq!(heard(issuer, &[u64::MAX, 100_000], 100_000).off_ms(3), None);
    }

    #[test]
    fn the_newest_word_of_an_issuer_counts() {
        let mut clocks = Clocks::default();
        clocks.hear(PublicKey([1; 32]), Time(220_000), Time(100_000));
        clocks.hear(PublicKey([1; 32]), Time(230_000), Time(230_000));
        assert_eq!(clocks.off_ms(1), None);
    }
}
