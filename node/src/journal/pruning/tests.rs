//! What is left of a journal that was pruned, and what damage to it is refused.

use std::fs;

use tempfile::TempDir;

use super::super::segment::HEADER_BYTES;
use super::super::{Journal, Options, PATIENCE, Urgency};
use super::*;

const ALL: Position = Position(u64::MAX);

const SMALL: Options = Options { segment_bytes: 1000, patience: PATIENCE };

/// Drops records whose first byte is a multiple of three, and puts one byte in the place of those one above.
#[derive(Default)]
pub(in super::super) struct ByFirstByte {
    pub(in super::super) until: Position,
    surveyed: u64,
}

impl ByFirstByte {
    pub(in super::super) fn of(record: &[u8]) -> Verdict {
        match record.first().map(|byte| byte % 3) {
            Some(0) => Verdict::Drop,
            Some(1) => Verdict::Replace(record[..1].to_vec()),
            _ => Verdict::Keep,
        }
    }
}

impl Pruner for ByFirstByte {
    fn survey(&mut self, _: Position, _: &[u8]) {
        self.surveyed += 1;
    }

    fn begin(&mut self, until: Position) {
        self.until = until;
    }

    fn read(&mut self, position: Position, _: &[u8]) {
        assert!(position <= self.until);
    }

    fn verdict(&mut self, _: Position, record: &[u8]) -> Verdict {
        Self::of(record)
    }

    fn next_segment(&mut self) {}
}

fn record(number: u64) -> Vec<u8> {
    [&[number as u8][..], &[b'x'; 60]].concat()
}

type Records = Vec<(u64, Vec<u8>)>;

fn open(folder: &TempDir) -> Result<(Journal, Records), JournalError> {
    let mut records = Vec::new();
    let each = |position: Position, _: &Head, record: &[u8]| records.push((position.0, record.to_vec()));
    let (journal, _) = Journal::open(folder.path(), SMALL, each)?;
    Ok((journal, records))
}

/// Appends records one commit each, so that segments are closed at their size.
async fn fill(journal: &mut Journal, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let position = journal.append(&[record(number)], Urgency::Now).unwrap();
        while journal.committed().await.unwrap() < position {}
    }
}

/// What is to be left of records up to `until`, and all behind it.
fn expected(count: u64, until: Position) -> Records {
    let left = |number: u64| match ByFirstByte::of(&record(number)) {
        Verdict::Keep => Some((number, record(number))),
        _ if number > until.0 => Some((number, record(number))),
        Verdict::Replace(sum) => Some((number, sum)),
        Verdict::Drop => None,
    };
    (1..=count).filter_map(left).collect()
}

fn replayed(history: &History, after: u64, until: u64) -> Records {
    let mut records = Vec::new();
    let each = |position: Position, _: &Head, record: &[u8]| records.push((position.0, record.to_vec()));
    history.replay(Position(after), Position(until), each).unwrap();
    records
}

#[tokio::test]
async fn records_keep_their_places_and_the_chain_goes_on() {
    let folder = TempDir::new().unwrap();
    let (mut journal, _) = open(&folder).unwrap();
    fill(&mut journal, 1..=100).await;
    let (history, head) = (journal.history(), journal.head());
    let mut pruner = ByFirstByte::default();

    let pruned = history.prune(ALL, &mut pruner).unwrap();

    assert_eq!(pruner.surveyed, 100);
    assert_eq!((pruned.segments, pruned.of_segments), (pruned.of_segments, 12));
    assert_eq!(pruned.dropped + pruned.left - pruned.folded, pruner.until.0);
    assert!(pruned.bytes_after * 2 < pruned.bytes_before, "{pruned:?}");
    let left = expected(100, pruner.until);
    assert_eq!(replayed(&history, 0, 100), left);
    for after in [1, 12, 13, 40, pruner.until.0 - 1, pruner.until.0, 99] {
        let behind: Records = left.iter().filter(|(at, _)| *at > after).cloned().collect();
        assert_eq!(replayed(&history, after, 100), behind, "behind {after}");
    }
    assert_eq!(history.head_at(Position(100)).unwrap(), Some(head));

    fill(&mut journal, 101..=120).await;
    let head = journal.head();
    journal.close().unwrap();
    let (journal, records) = open(&folder).unwrap();
    assert_eq!(records, expected(120, pruner.until));
    assert_eq!((journal.position(), journal.head()), (Position(120), head));
}

#[tokio::test]
async fn what_was_pruned_is_pruned_again_to_the_same() {
    let folder = TempDir::new().unwrap();
    let (mut journal, _) = open(&folder).unwrap();
    fill(&mut journal, 1..=50).await;
    journal.seal().recv().unwrap();
    journal.seal().recv().unwrap();

    let first = journal.history().prune(ALL, &mut ByFirstByte::default()).unwrap();
    assert_eq!((first.left, first.dropped - first.folded), (34, 16));
    // One byte in the place of a record is what it is replaced by.
    let second = journal.history().prune(ALL, &mut ByFirstByte::default()).unwrap();
    assert_eq!((second.segments, second.left, second.dropped), (0, 34, 0));
    drop(journal);
    assert_eq!(open(&folder).unwrap().1, expected(50, Position(50)));
}

#[tokio::test]
async fn a_journal_of_one_segment_is_pruned_when_it_is_sealed() {
    let folder = TempDir::new().unwrap();
    let (mut journal, _) = open(&folder).unwrap();
    fill(&mut journal, 1..=3).await;
    assert_eq!(journal.history().prune(ALL, &mut ByFirstByte::default()).unwrap(), Pruned::default());

    journal.seal().recv().unwrap();
    journal.history().prune(ALL, &mut ByFirstByte::default()).unwrap();
    journal.close().unwrap();

    // The segment behind it had nothing in it, and is gone.
    fs::remove_file(folder.path().join(segment::name(2))).unwrap();
    let (mut journal, records) = open(&folder).unwrap();
    assert_eq!(records, expected(3, Position(3)));
    fill(&mut journal, 4..=4).await;
    assert_eq!(journal.position(), Position(4));
    journal.close().unwrap();
    assert_eq!(open(&folder).unwrap().1, expected(4, Position(3)));
}

#[tokio::test]
async fn any_flipped_bit_of_a_pruned_segment_is_refused() {
    let folder = TempDir::new().unwrap();
    let (mut journal, _) = open(&folder).unwrap();
    fill(&mut journal, 1..=20).await;
    journal.history().prune(ALL, &mut ByFirstByte::default()).unwrap();
    journal.close().unwrap();
    let path = folder.path().join(segment::name(1));
    let whole = fs::read(&path).unwrap();

    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).unwrap();
        assert!(open(&folder).is_err(), "bit {bit}");
    }
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(open(&folder).is_err(), "{length} bytes");
    }
    fs::write(&path, [whole.as_slice(), &whole[HEADER_BYTES..]].concat()).unwrap();
    assert!(open(&folder).is_err(), "frames behind its end");
    fs::write(&path, &whole).unwrap();
    assert!(open(&folder).is_ok());
}

#[tokio::test]
async fn what_an_interrupted_pruning_left_is_removed() {
    let folder = TempDir::new().unwrap();
    let (mut journal, _) = open(&folder).unwrap();
    fill(&mut journal, 1..=20).await;
    journal.close().unwrap();
    let left = folder.path().join(format!("{}{UNFINISHED}", segment::name(1)));
    fs::write(&left, b"half").unwrap();

    let (_, records) = open(&folder).unwrap();

    assert_eq!((records.len(), left.exists()), (20, false));
}
