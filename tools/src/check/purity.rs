//! `protocol` decides and does nothing else: no clock, file, socket, thread or entropy is within its reach.
//!
//! A crate that is `no_std` cannot name them, and its dependencies are a list that changes on purpose only.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::context::Context;

/// All that `protocol` may depend on.
const DIRECT: [&str; 6] = ["blake3", "data-encoding", "ed25519-dalek", "postcard", "serde", "thiserror"];

/// What may not come in through those either: runtimes, networks, entropy, clocks, threads.
const NEVER: [&str; 15] = [
    "async-std",
    "candle-core",
    "chrono",
    "crossbeam",
    "getrandom",
    "libp2p",
    "mio",
    "rand",
    "rayon",
    "reqwest",
    "sled",
    "socket2",
    "time",
    "tokio",
    "tracing-subscriber",
];

/// Checks the sources and the dependencies.
pub(super) fn check(context: &Context) -> Result<()> {
    let source = context.root.join("protocol/src");
    let mut faults = Vec::new();
    for path in rust_files(&source)? {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(&context.root).unwrap_or(&path).display().to_string();
        faults.extend(source_faults(&name, &text));
    }
    let tree = ["tree", "--package", "protocol", "--edges", "normal", "--target", "all", "--prefix", "depth"];
    faults.extend(tree_faults(&context.output("cargo", &tree)?));
    ensure!(faults.is_empty(), "`protocol` is not pure:\n{}", faults.join("\n"));
    Ok(())
}

pub(super) fn rust_files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Says what in a source file of `protocol` opens a way out.
fn source_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if path.ends_with("/lib.rs") {
        let wanted = ["#![no_std]", "#![forbid(unsafe_code)]"];
        let missing = wanted.iter().filter(|line| !text.lines().any(|found| found == **line));
        faults.extend(missing.map(|line| format!("{path}: has no line `{line}`")));
    }
    let mut before = "";
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.contains("extern crate std") && !["#[cfg(test)]", "#[cfg(mutants)]"].contains(&before) {
            faults.push(format!("{path}:{number}: `extern crate std` outside of tests"));
        }
        before = line;
    }
    faults
}

/// Says what in the lines of `cargo tree --prefix depth` is too much.
fn tree_faults(tree: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for line in tree.lines() {
        let name = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let depth = &line[..line.len() - name.len()];
        let name = name.split(' ').next().unwrap_or_default();
        if depth == "1" && !DIRECT.contains(&name) {
            faults.push(format!("depends on {name}, which is not one of {}", DIRECT.join(", ")));
        }
        if NEVER
            .iter()
            .any(|never| name == *never || name.strip_prefix(never).is_some_and(|rest| rest.starts_with('-')))
        {
            faults.push(format!("{name} is in its tree"));
        }
    }
    faults.sort();
    faults.dedup();
    faults
}

#[cfg(test)]
mod tests {
    use super::{source_faults, tree_faults};

    const HEAD: &str = "//! Rules.\n#![no_std]\n#![forbid(unsafe_code)]\n";

    #[test]
    fn a_library_with_std_is_found() {
        assert_eq!(source_faults("protocol/src/lib.rs", HEAD), Vec::<String>::new());
        assert_eq!(source_faults("protocol/src/lib.rs", "//! Rules.\n#![forbid(unsafe_code)]\n").len(), 1);
        assert_eq!(source_faults("protocol/src/lib.rs", "//! Rules.\n#![no_std]\n").len(), 1);
    }

    #[test]
    fn std_comes_back_in_tests_only() {
        let tested = format!("{HEAD}#[cfg(test)]\nextern crate std;\n");
        assert_eq!(source_faults("protocol/src/lib.rs", &tested), Vec::<String>::new());

        let faults = source_faults("protocol/src/ids.rs", "//! Ids.\nextern crate std as core2;\n");
        assert_eq!(faults, ["protocol/src/ids.rs:2: `extern crate std` outside of tests"]);
    }

    #[test]
    fn a_new_dependency_is_found_at_any_depth() {
        let tree = "0protocol v0.1.0\n1serde v1.0.0\n2serde_core v1.0.0\n";
        assert_eq!(tree_faults(tree), Vec::<String>::new());

        let faults = tree_faults(&format!("{tree}2getrandom v0.4.0\n"));
        assert_eq!(faults, ["getrandom is in its tree"]);
        let faults = tree_faults(&format!("{tree}1libp2p-core v0.43.0\n"));
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
