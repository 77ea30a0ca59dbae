//! House rules: what a reader of the whole repository could complain about, said by a test instead.

mod rules;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rules::CONFINED;

/// A file of the repository, committed or about to be.
struct Tracked {
    path: String,
    bytes: Vec<u8>,
}

impl Tracked {
    fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()
    }
}

#[test]
fn our_crates_depend_on_each_other_as_the_architecture_says() {
    let metadata = output("cargo", &["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata = serde_json::from_str(&metadata).unwrap();

    assert_eq!(rules::edges_of(&metadata), rules::edges_in(&architecture()));
}

#[test]
fn words_with_a_home_stay_at_home() {
    // The rules themselves must spell the words.
    let sources = tracked(|path| path.ends_with(".rs") && !path.starts_with("tests/it/house"));
    let faults = sources.iter().flat_map(|file| {
        let text = file.text().unwrap_or_default();
        CONFINED.iter().flat_map(|confined| rules::strays(confined, &file.path, text))
    });

    none(faults);
}

#[test]
fn every_rust_file_opens_with_what_it_is_for() {
    none(tracked(|path| path.ends_with(".rs")).iter().flat_map(|file| {
        let text = file.text().unwrap_or_default();
        rules::missing_opening(&file.path, text)
    }));
}

#[test]
fn every_module_of_protocol_is_on_the_map() {
    let architecture = architecture();
    let modules = tracked(|path| path.starts_with("protocol/src/") && path.ends_with(".rs"));

    none(modules.iter().flat_map(|file| rules::unmapped_module(&file.path, &architecture)));
}

#[test]
fn no_file_is_large_but_the_lock() {
    none(tracked(|_| true).iter().flat_map(|file| rules::too_large(&file.path, file.bytes.len())));
}

#[test]
fn every_command_in_the_documents_exists() {
    let mut known = rules::listed_commands(&output(env!("CARGO_BIN_EXE_sharemesh-under-test"), &["--help"]));
    // Hidden, because only a node runs it.
    known.insert("worker".to_owned());
    let documents = tracked(|path| path.ends_with(".md"));
    none(
        documents
            .iter()
            .flat_map(|file| rules::unknown_commands(&file.path, file.text().unwrap_or_default(), &known)),
    );
}

#[test]
fn every_test_that_the_ledgers_document_names_exists() {
    let sources = tracked(|path| path.ends_with(".rs"));
    let texts: Vec<_> = sources.iter().map(|file| (&*file.path, file.text().unwrap_or_default())).collect();
    let document = tracked(|path| path == "docs/ledger.md");

    none(document.iter().flat_map(|file| rules::unknown_tests(file.text().unwrap_or_default(), &texts)));
}

#[test]
fn no_text_names_a_machine_or_a_registry_host() {
    let files = tracked(|path| path != "Cargo.lock");

    none(files.iter().flat_map(|file| rules::local_names(&file.path, file.text().unwrap_or_default())));
}

fn none(faults: impl IntoIterator<Item = String>) {
    let faults: Vec<_> = faults.into_iter().collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn architecture() -> String {
    fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn tracked(wanted: impl Fn(&str) -> bool) -> Vec<Tracked> {
    // Checkouts of continuous integration often belong to somebody else.
    let list = ["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let paths = output("git", &list);
    let paths = paths.split('\0').filter(|path| !path.is_empty() && wanted(path));
    // A deleted file is listed until the deletion is committed.
    let files = paths
        .filter_map(|path| Some(Tracked { path: path.to_owned(), bytes: fs::read(root().join(path)).ok()? }));
    let files: Vec<_> = files.collect();
    assert!(!files.is_empty(), "no file to check: a rule that sees nothing proves nothing");
    files
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
