//! Damage, loss and order: the index is whole, behind or rebuilt.

use std::fs;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use crate::journal::GENESIS;

use super::files::{QUARANTINED_MAX, beside, quarantined};
use super::*;

const COUNT: u64 = 400;

/// The head that the tests' journal has at a position; it ends at `COUNT`.
fn head_at(position: Position) -> Option<Head> {
    (position.0 <= COUNT).then(|| head_of(position.0))
}

fn head_of(position: u64) -> Head {
    let mut head = GENESIS;
    head[..8].copy_from_slice(&position.to_le_bytes());
    head
}

fn puts_of(position: u64) -> Vec<Put> {
    let receipt = Put {
        tree: Tree::Receipts,
        key: position.to_be_bytes().to_vec(),
        value: vec![position as u8; 20 + (position % 300) as usize],
    };
    let account =
        Put { tree: Tree::Accounts, key: vec![(position % 7) as u8], value: position.to_le_bytes().to_vec() };
    vec![receipt, account]
}

fn replay(store: &Store, after: Position, until: u64) {
    for position in after.0 + 1..=until {
        let mut puts = puts_of(position);
        loop {
            match store.apply(Position(position), head_of(position), puts) {
                Ok(()) => break,
                Err(ApplyError::Full(back)) => puts = back,
                Err(error) => panic!("{error}"),
            }
            store.flush().unwrap();
        }
    }
    store.flush().unwrap();
}

fn contents(reader: &Reader) -> Result<Vec<Entry>, StoreError> {
    let mut all = Vec::new();
    for tree in [Tree::Receipts, Tree::Jobs, Tree::Channels, Tree::Accounts, Tree::Meta] {
        let mut cursor: Option<Vec<u8>> = None;
        loop {
            let scan = Scan { prefix: &[], order: Order::Ascending, limit: 150, cursor: cursor.as_deref() };
            let page = reader.scan(tree, scan)?;
            let Some((last, _)) = page.last() else { break };
            cursor = Some(last.clone());
            all.extend(page);
        }
    }
    Ok(all)
}

fn filled(path: &Path) -> Vec<Entry> {
    let (store, opened) = Store::open(path, head_at).unwrap();
    assert_eq!(opened.position, Position(0));
    replay(&store, Position(0), COUNT);
    contents(&store.reader()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The largest file: where sled keeps its pages.
fn pages(index: &Path) -> PathBuf {
    let files = fs::read_dir(index).unwrap().map(|entry| entry.unwrap());
    files.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap().path()
}

/// Opens a spoilt index, replays what it asks for, and compares it with the whole one.
fn check_heals(index: &Path, expected: &[Entry]) -> Option<String> {
    let (mut store, opened) = Store::open(index, head_at).unwrap();
    replay(&store, opened.position, COUNT);
    let mut why = opened.rebuild;
    if let Err(StoreError::Doubtful(late)) = contents(&store.reader()) {
        store.rebuild().unwrap();
        replay(&store, Position(0), COUNT);
        why = Some(late);
    }
    assert_eq!(contents(&store.reader()).unwrap(), expected);
    why
}

#[test]
fn a_closed_index_opens_where_it_was() {
    let temporary = TempDir::new().unwrap();
    let path = temporary.path().join("index");
    let expected = filled(&path);

    let (store, opened) = Store::open(&path, head_at).unwrap();

    assert_eq!(opened, Opened { position: Position(COUNT), rebuild: None });
    assert_eq!(contents(&store.reader()).unwrap(), expected);
    assert_eq!(expected.len(), COUNT as usize + 7);
}

#[test]
fn an_index_behind_its_journal_is_continued() {
    let temporary = TempDir::new().unwrap();
    let expected = filled(&temporary.path().join("whole"));
    let path = temporary.path().join("index");
    let (store, _) = Store::open(&path, head_at).unwrap();
    replay(&store, Position(0), 100);
    drop(store);

    let (store, opened) = Store::open(&path, head_at).unwrap();
    assert_eq!(opened, Opened { position: Position(100), rebuild: None });
    replay(&store, Position(100), COUNT);

    assert_eq!(contents(&store.reader()).unwrap(), expected);
}

#[test]
fn an_index_ahead_of_its_journal_or_beside_it_is_put_aside() {
    let temporary = TempDir::new().unwrap();
    let path = temporary.path().join("index");
    filled(&path);

    let shorter = |position: Position| head_at(position).filter(|_| position.0 < COUNT);
    let (store, opened) = Store::open(&path, shorter).unwrap();
    assert!(opened.rebuild.unwrap().contains("where the journal has none"));
    replay(&store, Position(0), COUNT);
    drop(store);

    let (store, opened) = Store::open(&path, |_| Some([7; 32])).unwrap();
    assert!(opened.rebuild.unwrap().contains("is not the journal's"));
    drop(store);

    for _ in 0..3 {
        Store::open(&path, |_| Some([8; 32])).unwrap();
    }
    assert_eq!(quarantined(&path).unwrap().len(), QUARANTINED_MAX);
}

#[test]
fn an_index_deleted_or_cut_is_rebuilt_or_continued_with_equal_contents() {
    let temporary = TempDir::new().unwrap();
    let whole = temporary.path().join("whole");
    let expected = filled(&whole);

    let missing = temporary.path().join("missing");
    assert_eq!(check_heals(&missing, &expected).as_deref(), Some("there is none"));
    for twentieth in 0..20 {
        let index = temporary.path().join(format!("cut{twentieth}"));
        copy(&whole, &index);
        let pages = OpenOptions::new().write(true).open(pages(&index)).unwrap();
        let length = pages.metadata().unwrap().len();
        pages.set_len(length * twentieth / 20).unwrap();
        check_heals(&index, &expected);
    }
}

/// Flips one bit in each of 20 copies and returns how many of them began at zero again.
fn flip_bits(whole: &Path, expected: &[Entry], file: impl Fn(&Path) -> PathBuf, seed: u64) -> usize {
    let mut random = seed;
    let mut rebuilt = 0;
    for flip in 0..20 {
        let index = whole.with_extension(format!("flip{flip}"));
        copy(whole, &index);
        let file = OpenOptions::new().read(true).write(true).open(file(&index)).unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // sled's file is filled up with empty space; all that these tests write is in front of this.
        let place = (random >> 33) % file.metadata().unwrap().len().min(250_000);
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        byte[0] ^= 1 << (random >> 30 & 7);
        file.write_all_at(&byte, place).unwrap();

        rebuilt += usize::from(check_heals(&index, expected).is_some());
        fs::remove_dir_all(index).unwrap();
    }
    rebuilt
}

#[test]
fn an_index_with_one_flipped_bit_is_whole_or_behind_or_rebuilt() {
    let temporary = TempDir::new().unwrap();
    let path = temporary.path().join("index");
    let expected = filled(&path);
    // Never opened again: sled reads its log, and stops at the flip as if the rest had never been.
    flip_bits(&path, &expected, pages, 1);

    // Opened again: sled believes its snapshot, and meets the flip while reading.
    drop(Store::open(&path, head_at).unwrap());
    let snapshot = |index: &Path| {
        let mut files = fs::read_dir(index).unwrap().map(|entry| entry.unwrap().path());
        files.find(|file| file.file_name().unwrap().to_string_lossy().starts_with("snap")).unwrap()
    };
    assert!(flip_bits(&path, &expected, pages, 2) > 0);
    assert!(flip_bits(&path, &expected, snapshot, 3) > 0);
}

#[test]
fn an_opening_that_killed_the_process_is_not_tried_again() {
    let temporary = TempDir::new().unwrap();
    let path = temporary.path().join("index");
    let expected = filled(&path);
    fs::write(beside(&path, "opening"), []).unwrap();

    assert!(check_heals(&path, &expected).unwrap().contains("did not end"));

    let (_store, opened) = Store::open(&path, head_at).unwrap();
    assert_eq!(opened.rebuild, None);
}

#[test]
fn a_panic_while_reading_puts_the_index_in_doubt_until_it_is_rebuilt() {
    let temporary = TempDir::new().unwrap();
    let path = temporary.path().join("index");
    let (mut store, _) = Store::open(&path, head_at).unwrap();
    let reader = store.reader();

    let doubt: Result<(), _> = reader.guarded(|_| panic!("as sled does"));
    assert_eq!(doubt, Err(StoreError::Doubtful("sled panicked: as sled does".to_owned())));
    assert_eq!(reader.get(Tree::Jobs, b"key").unwrap_err(), doubt.unwrap_err());
    assert!(matches!(store.apply(Position(1), GENESIS, Vec::new()), Err(ApplyError::Store(_))));

    store.rebuild().unwrap();
    replay(&store, Position(0), COUNT);
    assert_eq!(contents(&reader).unwrap().len(), COUNT as usize + 7);
}

#[test]
fn scans_page_in_both_directions_and_stay_inside_their_prefix() {
    let temporary = TempDir::new().unwrap();
    let (store, _) = Store::open(&temporary.path().join("index"), head_at).unwrap();
    let keys: [&[u8]; 6] = [b"a", b"b", b"b\x00", b"b\xff", b"b\xff\xff", b"c"];
    let put = |key: &&[u8]| Put { tree: Tree::Jobs, key: key.to_vec(), value: key.to_vec() };
    store.apply(Position(1), GENESIS, keys.iter().map(put).collect()).unwrap();
    let other = Put { tree: Tree::Channels, key: b"b1".to_vec(), value: Vec::new() };
    store.apply(Position(2), GENESIS, vec![other]).unwrap();
    store.flush().unwrap();
    let reader = store.reader();
    let keys_of = |prefix, order, limit, cursor| -> Vec<Vec<u8>> {
        let scan = Scan { prefix, order, limit, cursor };
        reader.scan(Tree::Jobs, scan).unwrap().into_iter().map(|(key, _)| key).collect()
    };

    assert_eq!(keys_of(b"b", Order::Ascending, 9, None), keys[1..5]);
    assert_eq!(keys_of(b"b", Order::Ascending, 2, Some(b"b\x00")), keys[3..5]);
    assert_eq!(keys_of(b"b", Order::Descending, 2, None), [keys[4], keys[3]]);
    assert_eq!(keys_of(b"b", Order::Descending, 9, Some(b"b\xff")), [keys[2], keys[1]]);
    assert_eq!(keys_of(b"", Order::Ascending, 9, None), keys);
    assert_eq!(keys_of(b"b", Order::Ascending, 9, Some(b"c")), Vec::<Vec<u8>>::new());
    assert_eq!(keys_of(b"b\xff", Order::Ascending, 9, None), keys[3..5]);
    assert_eq!(reader.get(Tree::Jobs, b"b\x00").unwrap().as_deref(), Some(&b"b\x00"[..]));
    assert_eq!(reader.get(Tree::Accounts, b"b\x00").unwrap(), None);
}

#[test]
fn entries_that_are_too_long_are_refused() {
    let temporary = TempDir::new().unwrap();
    let (store, _) = Store::open(&temporary.path().join("index"), head_at).unwrap();
    let put = Put { tree: Tree::Meta, key: vec![0; KEY_BYTES_MAX + 1], value: Vec::new() };

    let refused = store.apply(Position(1), GENESIS, vec![put]);

    assert_eq!(refused, Err(ApplyError::TooLong { key: KEY_BYTES_MAX + 1, value: 0 }));
}
