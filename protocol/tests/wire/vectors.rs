//! Golden vectors: exact bytes that other programs and later versions can be held against.
//!
//! `cargo xtask vectors` writes `tests/vectors` anew, after a change of format that is meant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use protocol::encoding::encode;
use protocol::record::Record;

use crate::enums::{first_word, table};
use crate::kinds::kinds;
use crate::messages::{agreed, agreeing, books, facts, lines, messages};

/// Tells the test to write what it would compare.
const WRITE: &str = "SHAREMESH_WRITE_VECTORS";

#[test]
fn everything_keeps_its_bytes() {
    let made = made();
    if std::env::var_os(WRITE).is_some() {
        return write(&made);
    }
    let kept = kept();
    for (name, text) in &made {
        let golden = kept.get(name).map_or("", String::as_str);
        let differs = text.lines().find(|line| !golden.lines().any(|other| other == *line));
        assert!(
            text == golden,
            "{name} has other bytes than before: older nodes would not understand them ({}). If that is meant: \
             cargo xtask vectors",
            differs.unwrap_or("a line is gone")
        );
    }
    let stale: Vec<_> = kept.keys().filter(|name| !made.contains_key(*name)).collect();
    assert!(stale.is_empty(), "vectors of nothing: {stale:?}. If that is meant: cargo xtask vectors");
}

/// Returns every file with what it should hold.
fn made() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for kind in kinds() {
        let parts = [("body", kind.body), ("id", kind.id.0.to_vec()), ("signed", kind.bytes)];
        let text = parts.iter().map(|(part, bytes)| line(part, bytes)).collect();
        let before = files.insert(format!("{}.hex", kind.name), text);
        assert!(before.is_none(), "two samples are called {}", kind.name);
    }
    let messages = messages().into_iter().map(|message| line(message.name(), &encode(&message))).collect();
    files.insert("messages.hex".to_owned(), messages);
    let books = books().into_iter().map(|message| line(message.name(), &encode(&message))).collect();
    files.insert("books.hex".to_owned(), books);
    let said = agreeing().into_iter().map(|message| line(message.name(), &encode(&message)));
    let facts = facts().into_iter().map(|fact| line(&first_word(&fact), &encode(&fact)));
    let kept = agreed().into_iter().map(|record| line(&first_word(&record), &encode(&record)));
    files.insert("agreement.hex".to_owned(), said.chain(facts).chain(kept).collect());
    let lines = lines().iter().map(|record: &Record| line(&first_word(record), &encode(record))).collect();
    files.insert("journal.hex".to_owned(), lines);
    files.insert("enums.txt".to_owned(), table());
    files
}

fn line(name: &str, bytes: &[u8]) -> String {
    let mut text = format!("{name} ");
    bytes.iter().for_each(|byte| write!(text, "{byte:02x}").expect("a string takes everything"));
    text.push('\n');
    text
}

fn kept() -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder()).expect("the folder is part of the repository");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let name = |path: &Path| path.file_name().expect("a file").to_string_lossy().into_owned();
    paths.map(|path| (name(&path), fs::read_to_string(&path).expect("text"))).collect()
}

fn write(made: &BTreeMap<String, String>) {
    for name in kept().keys().filter(|name| !made.contains_key(*name)) {
        fs::remove_file(folder().join(name)).expect("removable");
    }
    made.iter().for_each(|(name, text)| fs::write(folder().join(name), text).expect("writable"));
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}
