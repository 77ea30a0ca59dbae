//! How an entry lies in sled: its tree's byte before its key, its version and checksum before its value.

use std::ops::Bound;

use super::{Order, Scan, Tree};

const VALUE_VERSION: u8 = 1;
const VALUE_OVERHEAD: usize = 5;

pub(super) fn full_key(tree: Tree, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(tree as u8);
    full.extend_from_slice(key);
    full
}

pub(super) fn tree_of(key: &[u8]) -> Option<Tree> {
    match key.first()? {
        1 => Some(Tree::Receipts),
        2 => Some(Tree::Jobs),
        3 => Some(Tree::Channels),
        4 => Some(Tree::Accounts),
        5 => Some(Tree::Meta),
        _ => None,
    }
}

type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Returns the bounds of a scan, or nothing when its cursor is not inside its prefix.
pub(super) fn range(tree: Tree, scan: Scan<'_>) -> Option<Range> {
    let start = full_key(tree, scan.prefix);
    let mut end = start.clone();
    // The tree's own byte is far below 255, so that something always has a successor.
    while end.pop_if(|byte| *byte == u8::MAX).is_some() {}
    *end.last_mut().expect("the tree's byte remains") += 1;

    let (lower, upper) = (Bound::Included(start), Bound::Excluded(end));
    let Some(cursor) = scan.cursor else { return Some((lower, upper)) };
    if !cursor.starts_with(scan.prefix) {
        return None;
    }
    let cursor = Bound::Excluded(full_key(tree, cursor));
    Some(match scan.order {
        Order::Ascending => (cursor, upper),
        Order::Descending => (lower, cursor),
    })
}

pub(super) fn read(db: &sled::Db, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let value = db.get(key).map_err(|error| error.to_string())?;
    value.map(|value| unseal(key, &value).map(<[u8]>::to_vec)).transpose()
}

// The key is part of the checksum: a value that turns up under another key is damage too.
pub(super) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(VALUE_OVERHEAD + value.len());
    sealed.push(VALUE_VERSION);
    sealed.extend_from_slice(&checksum(key, value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

pub(super) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], String> {
    let (overhead, value) =
        sealed.split_first_chunk::<VALUE_OVERHEAD>().ok_or("a value is too short".to_owned())?;
    let [version, checksum @ ..] = *overhead;
    if version != VALUE_VERSION {
        return Err(format!("a value has version {version}"));
    }
    if u32::from_le_bytes(checksum) != self::checksum(key, value) {
        return Err("a value does not have its checksum".to_owned());
    }
    Ok(value)
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}
