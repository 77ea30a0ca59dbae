//! How far apart parts of the world are: measured round trips between data centres, and local time.

use serde::{Deserialize, Serialize};

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Region {
    /// Northern Virginia.
    Virginia,
    /// Northern California.
    California,
    /// Oregon.
    Oregon,
    /// Dublin.
    Ireland,
    /// Frankfurt.
    Frankfurt,
    /// Tokyo.
    Tokyo,
    /// Seoul.
    Seoul,
    /// Singapore.
    Singapore,
    /// Sydney.
    Sydney,
    /// São Paulo.
    SaoPaulo,
}

/// Average round trips in milliseconds between data centres of Amazon in these regions, in the order of [`Region`], each
/// row without what stands in an earlier one. Measured over the public addresses of machines there, as told in
/// "Latency Between AWS Global Regions" and repeated in
/// <https://acomputerscientistlearnsaws.blogspot.com/2017/04/aws-regions.html>; rounded. Homes are farther than data
/// centres: `network.latency_ms` of a scenario is added to each.
const ROUND_TRIP_MS: [&[u64]; 9] = [
    &[73, 87, 81, 89, 145, 178, 217, 230, 120],
    &[19, 153, 167, 103, 132, 174, 158, 193],
    &[137, 160, 89, 118, 161, 162, 183],
    &[20, 212, 242, 239, 310, 191],
    &[237, 266, 326, 324, 195],
    &[31, 74, 104, 257],
    &[72, 134, 286],
    &[175, 328],
    &[323],
];

impl Region {
    /// Returns how long a message takes from one region to another, in milliseconds.
    #[must_use]
    pub fn one_way_ms(self, other: Self) -> u64 {
        let (low, high) = (self.min(other) as usize, self.max(other) as usize);
        let between = high.checked_sub(low + 1).and_then(|place| ROUND_TRIP_MS.get(low)?.get(place));
        between.copied().unwrap_or(0) / 2
    }

    /// Returns by how many hours its winter time is ahead of UTC.
    #[must_use]
    pub const fn hours_ahead(self) -> i64 {
        match self {
            Self::Virginia => -5,
            Self::California | Self::Oregon => -8,
            Self::Ireland => 0,
            Self::Frankfurt => 1,
            Self::Tokyo | Self::Seoul => 9,
            Self::Singapore => 8,
            Self::Sydney => 10,
            Self::SaoPaulo => -3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Region;

    #[test]
    fn a_way_is_as_long_in_both_directions_and_nothing_within_a_region() {
        assert_eq!(Region::Frankfurt.one_way_ms(Region::Ireland), 10);
        assert_eq!(Region::Ireland.one_way_ms(Region::Frankfurt), 10);
        assert_eq!(Region::Virginia.one_way_ms(Region::SaoPaulo), 60);
        assert_eq!(Region::SaoPaulo.one_way_ms(Region::Sydney), 161);
        assert_eq!(Region::Tokyo.one_way_ms(Region::Tokyo), 0);
    }
}
