//! Numbers of a scenario within their bounds; the reader of TOML adds line and key to what is said here.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

fn check<E: Error>(number: u64, least: u64, most: u64) -> Result<u64, E> {
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(E::custom(format!("{number} is not between {least} and {most}")))
    }
}

pub(super) fn within<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(
    from: D,
) -> Result<u64, D::Error> {
    check(u64::deserialize(from)?, LEAST, MOST)
}

pub(super) fn maybe_within<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(
    from: D,
) -> Result<Option<u64>, D::Error> {
    within::<D, LEAST, MOST>(from).map(Some)
}

pub(super) fn within_all<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(
    from: D,
) -> Result<[u64; 2], D::Error> {
    let pair = <[u64; 2]>::deserialize(from)?;
    pair.into_iter().try_for_each(|number| check(number, LEAST, MOST).map(drop))?;
    Ok(pair)
}

pub(super) fn maybe_within_all<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(
    from: D,
) -> Result<Option<[u64; 2]>, D::Error> {
    within_all::<D, LEAST, MOST>(from).map(Some)
}

pub(super) fn hours<'de, D: Deserializer<'de>>(from: D) -> Result<Option<[u64; 2]>, D::Error> {
    let [from, to] = within_all::<D, 0, 23>(from)?;
    if from == to {
        return Err(D::Error::custom("the two hours must differ"));
    }
    Ok(Some([from, to]))
}

/// Returns `count * wanted / before`, rounded, and at least 1.
pub(super) const fn rounded(count: u64, wanted: u64, before: u64) -> u64 {
    let scaled = (count * wanted + before / 2) / before;
    if scaled == 0 { 1 } else { scaled }
}
