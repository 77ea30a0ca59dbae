//! The rules as functions of a path and a text, each shown to find a bad example.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Bounds a file in git: weights, recordings and dumps belong into a cache or a release.
pub(crate) const FILE_BYTES_MAX: usize = 200 * 1024;

/// Words that code may use in some places only.
pub(crate) struct Confined {
    /// A line with one of these is meant.
    words: &'static [&'static str],
    /// Unless it has this too.
    unless: Option<&'static str>,
    /// Beginnings of the paths where they may stand.
    homes: &'static [&'static str],
    why: &'static str,
}

pub(crate) const CONFINED: [Confined; 9] = [
    Confined {
        words: &["feature = \"cuda\""],
        unless: None,
        homes: &["node/engine/src/device.rs"],
        why: "one file decides between the device and its stub",
    },
    Confined {
        words: &["libp2p::", "libp2p_"],
        // A log filter names a crate, and uses nothing of it.
        unless: Some("libp2p_kad=error"),
        homes: &["node/src/net.rs", "node/src/net/", "tools/src/bench", "tests/"],
        why: "only `net` knows libp2p",
    },
    Confined {
        words: &["sled::"],
        unless: None,
        homes: &["node/src/store.rs", "node/src/store/"],
        why: "only `store` knows sled",
    },
    Confined {
        words: &["quinn::"],
        unless: None,
        homes: &["tools/src/bench"],
        why: "quinn itself is only the floor that benchmarks compare with",
    },
    Confined {
        words: &["for_simulation", "::Simulated", "::simulated("],
        unless: None,
        homes: &[
            "protocol/src/keys.rs",
            "protocol/src/keys/tests.rs",
            "protocol/src/signed.rs",
            "protocol/tests/",
            "simulations/",
        ],
        why: "what anybody can sign must not reach a real node",
    },
    Confined {
        words: &[concat!("unbounded_", "channel"), concat!("mpsc::", "unbounded")],
        unless: None,
        homes: &[],
        why: "every queue is bounded",
    },
    Confined {
        words: &[concat!("todo", "!("), concat!("unimplemented", "!(")],
        unless: None,
        homes: &[],
        why: "what is committed is finished",
    },
    Confined {
        words: &["SystemTime"],
        unless: None,
        homes: &["node/src/clock.rs"],
        why: "only `clock` reads the time of day",
    },
    Confined {
        words: &["time::Instant", "time::{Duration, Instant", "time::{Instant"],
        unless: Some("tokio::time::"),
        homes: &[
            "node/src/clock.rs",
            "node/src/net/tests",
            "node/engine/",
            "simulations/src/main.rs",
            "tools/",
            "tests/",
        ],
        why: "time is an argument, or tokio's, which tests can hold still",
    },
];

/// Says where `text` uses a confined word away from its home.
pub(crate) fn strays(confined: &Confined, path: &str, text: &str) -> Vec<String> {
    if confined.homes.iter().any(|home| path.starts_with(home)) {
        return Vec::new();
    }
    // The tests of `protocol` stand at the foot of its files and may do as `protocol/tests` does.
    let foot = if path.starts_with("protocol/src/") { text.find("\n#[cfg(test)]\nmod ") } else { None };
    let code = &text[..foot.unwrap_or(text.len())];
    let stray = |line: &str| {
        !line.trim_start().starts_with("//")
            && confined.words.iter().any(|word| line.contains(word))
            && !confined.unless.is_some_and(|other| line.contains(other))
    };
    let lines = code.lines().zip(1..).filter(|(line, _)| stray(line));
    lines.map(|(line, number)| format!("{path}:{number}: `{}`: {}", line.trim(), confined.why)).collect()
}

/// Says if a Rust file does not begin with a sentence about itself.
pub(crate) fn missing_opening(path: &str, text: &str) -> Option<String> {
    let opened =
        text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > "//! ".len());
    (!opened).then(|| format!("{path}:1: opens without a `//!` line that says what the file is for"))
}

/// Says if a module of `protocol` is not named in the architecture, by its path below `src`.
pub(crate) fn unmapped_module(path: &str, architecture: &str) -> Option<String> {
    let module = path.strip_prefix("protocol/src/")?;
    let tests = module.ends_with("/tests.rs") || module.contains("/tests/");
    let named = tests || module == "lib.rs" || architecture.contains(&format!("`{module}`"));
    (!named).then(|| format!("{path}: docs/ARCHITECTURE.md does not name `{module}`"))
}

/// Says if a file is too large for git.
pub(crate) fn too_large(path: &str, bytes: usize) -> Option<String> {
    let large = path != "Cargo.lock" && bytes > FILE_BYTES_MAX;
    large.then(|| format!("{path}: {bytes} bytes, more than {FILE_BYTES_MAX}"))
}

/// Says where `text` names a folder of one machine or a host of a package registry.
pub(crate) fn local_names(path: &str, text: &str) -> Vec<String> {
    // In pieces, so that this file does not name them.
    const FOLDERS: [&str; 4] =
        [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
    const HOSTS: [&str; 6] = [
        concat!("pypi", ".org"),
        concat!("python", "hosted.org"),
        concat!("registry.", "npmjs.org"),
        concat!("static.", "crates.io"),
        concat!("index.", "crates.io"),
        concat!("deb.", "debian.org"),
    ];
    let fault = |line: &str| {
        HOSTS
            .iter()
            .find(|host| line.contains(*host))
            .or_else(|| FOLDERS.iter().find(|folder| is_absolute(line, folder)))
            .copied()
    };
    let found = text.lines().zip(1..).filter_map(|(line, number)| Some((number, fault(line)?)));
    found.map(|(number, name)| format!("{path}:{number}: names `{name}`")).collect()
}

/// Says whether `folder` stands at the beginning of a path in `line`, not in the middle of one.
fn is_absolute(line: &str, folder: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '~' | '}' | ')' | '*');
    line.match_indices(folder).any(|(at, _)| !line[..at].ends_with(inside))
}

/// Which of our crates uses which.
pub(crate) type Edges = BTreeMap<String, BTreeSet<String>>;

/// Returns the edges that the manifests have, of any kind, from `cargo metadata --no-deps`.
pub(crate) fn edges_of(metadata: &Value) -> Edges {
    let packages = || metadata["packages"].as_array().into_iter().flatten();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let ours: BTreeSet<_> = packages().map(name).collect();
    let used = |package: &Value| {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        dependencies.map(name).filter(|dependency| ours.contains(dependency)).collect()
    };
    packages().map(|package| (name(package), used(package))).collect()
}

/// Returns the edges that the architecture lists: lines `a -> b, c` or `a -> nothing`.
pub(crate) fn edges_in(architecture: &str) -> Edges {
    let section = architecture.split("## Dependencies between our crates").nth(1).unwrap_or_default();
    let block = section.split("```").nth(1).unwrap_or_default();
    let edges = block.lines().filter_map(|line| line.split_once(" -> "));
    edges
        .map(|(from, to)| {
            let to = to.split(',').map(str::trim).filter(|name| *name != "nothing");
            (from.trim().to_owned(), to.map(str::to_owned).collect())
        })
        .collect()
}

/// Returns the commands that `sharemesh --help` lists.
pub(crate) fn listed_commands(help: &str) -> BTreeSet<String> {
    let section = help.split("Commands:").nth(1).unwrap_or_default();
    let lines = section.lines().skip(1).take_while(|line| !line.is_empty());
    // Continuations of a description are indented deeper than names.
    let lines = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Says which commands a document shows as `sharemesh <command>` that the program does not have.
pub(crate) fn unknown_commands(path: &str, text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fenced = false;
    for (line, number) in text.lines().zip(1..) {
        fenced ^= line.trim_start().starts_with("```");
        let shown = line.match_indices("sharemesh ").filter(|(at, _)| is_program(&line[..*at], fenced));
        for (at, program) in shown {
            let rest = &line[at + program.len()..];
            let command =
                rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap_or_default();
            if !command.is_empty() && !command.starts_with('-') && !known.contains(command) {
                faults.push(format!("{path}:{number}: `sharemesh {command}` does not exist"));
            }
        }
    }
    faults
}

/// Says whether what stands before the word makes it the program: a shell's line, or code within a sentence.
/// Says which files and functions are named as tests in the tables under "What stops what" and are not among the sources,
/// each a path and its text. A path may be given by its end.
pub(crate) fn unknown_tests(document: &str, sources: &[(&str, &str)]) -> Vec<String> {
    let section = document.split("\n## What stops what\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section
        .lines()
        .filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|')?.rsplit('|').next());
    let named: BTreeSet<&str> = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(!named.is_empty(), "no test is named: a rule that sees nothing proves nothing");
    let is_there = |name: &&str| match name.strip_suffix(".rs") {
        Some(_) => sources.iter().any(|(path, _)| *path == *name || path.ends_with(&format!("/{name}"))),
        None if name.contains('/') => sources.iter().any(|(path, _)| path.starts_with(&format!("{name}/"))),
        None => {
            let is_function = name.contains('_') && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            !is_function || sources.iter().any(|(_, text)| text.contains(&format!("fn {name}(")))
        }
    };
    let unknown = named.into_iter().filter(|name| !is_there(name));
    unknown.map(|name| format!("docs/ledger.md names `{name}`, which does not exist")).collect()
}

fn is_program(before: &str, fenced: bool) -> bool {
    let before = before.trim_end_matches("./target/release/").trim_end_matches("./target/debug/");
    before.ends_with('`')
        || fenced && ["", "$", "&&", "|", ";", "("].iter().any(|end| before.trim_end().ends_with(end))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_confined(path: &str, line: &str, stray: bool) {
        let found = CONFINED.iter().flat_map(|confined| strays(confined, path, line)).collect::<Vec<_>>();

        assert_eq!(!found.is_empty(), stray, "{path}: {line}: {found:?}");
    }

    #[test]
    fn each_confined_word_is_found_away_from_home_and_left_alone_at_home() {
        for (line, home) in [
            ("#[cfg(feature = \"cuda\")]", Some("node/engine/src/device.rs")),
            ("use libp2p::Swarm;", Some("node/src/net/behaviour.rs")),
            ("use libp2p_stream::Control;", Some("node/src/net.rs")),
            ("let db = sled::open(path)?;", Some("node/src/store.rs")),
            ("quinn::Endpoint::client(address)", Some("tools/src/bench.rs")),
            ("Verified::assume_for_simulation(record)", Some("simulations/src/world.rs")),
            ("Signer::simulated(seed)", Some("protocol/src/keys.rs")),
            ("Scheme::Simulated", Some("protocol/src/signed.rs")),
            (concat!("mpsc::unbounded_", "channel()"), None),
            (concat!("todo", "!()"), None),
            (concat!("unimplemented", "!()"), None),
            ("std::time::SystemTime::now()", Some("node/src/clock.rs")),
            ("use std::time::{Duration, Instant};", Some("tools/src/bench/mesh.rs")),
            ("let start = std::time::Instant::now();", Some("node/engine/src/worker.rs")),
        ] {
            check_confined("node/src/driver.rs", line, true);
            check_confined("protocol/src/job.rs", line, true);
            if let Some(home) = home {
                check_confined(home, line, false);
            }
        }
    }

    #[test]
    fn neither_tokios_time_nor_a_comment_is_a_stray() {
        check_confined("node/src/driver.rs", "let now = tokio::time::Instant::now();", false);
        check_confined("node/src/driver.rs", "    // sled::Db would be slower here", false);
        check_confined("node/src/worker.rs", "use std::time::Duration;", false);
    }

    #[test]
    fn only_the_tests_at_the_foot_of_protocol_may_simulate() {
        let tests = "\n#[cfg(test)]\nmod tests {\n    Scheme::Simulated\n}\n";

        check_confined("protocol/src/channel.rs", &format!("//! Channels.\n{tests}"), false);
        check_confined("protocol/src/channel.rs", &format!("Scheme::Simulated\n{tests}"), true);
        check_confined("node/src/channel.rs", &format!("//! Channels.\n{tests}"), true);
    }

    #[test]
    fn a_file_without_an_opening_is_found() {
        assert_eq!(missing_opening("a.rs", "//! Chooses.\nfn a() {}\n"), None);
        for text in ["", "fn a() {}\n", "// Chooses.\n", "//!\n", "\n//! Chooses.\n"] {
            assert!(missing_opening("a.rs", text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn a_module_that_the_map_lacks_is_found() {
        let map = "| `ledger/terms.rs` | what was agreed |";

        assert_eq!(unmapped_module("protocol/src/ledger/terms.rs", map), None);
        assert_eq!(unmapped_module("protocol/src/lib.rs", map), None);
        assert!(unmapped_module("protocol/src/terms.rs", map).is_some());
    }

    #[test]
    fn a_large_file_is_found() {
        assert_eq!(too_large("Cargo.lock", FILE_BYTES_MAX + 1), None);
        assert_eq!(too_large("a.json", FILE_BYTES_MAX), None);
        assert!(too_large("a.json", FILE_BYTES_MAX + 1).is_some());
    }

    #[test]
    fn names_of_one_machine_are_found_and_relative_paths_are_not() {
        for line in [
            concat!("cd /ho", "me/me/sharemesh"),
            concat!("\"/wo", "rk/cache\""),
            concat!("https://pypi", ".org/simple"),
        ] {
            assert_eq!(local_names("a.md", line).len(), 1, "{line}");
        }
        for line in [concat!("tests/wo", "rk/a.json"), "~/.cache/sharemesh", "/tmp/sharemesh"] {
            assert_eq!(local_names("a.md", line), Vec::<String>::new(), "{line}");
        }
    }

    #[test]
    fn an_edge_that_only_one_side_has_makes_a_difference() {
        let listed =
            edges_in("# A\n## Dependencies between our crates\n```text\na -> nothing\nb -> a\n```\n");
        let package = |name, dependencies| json!({ "name": name, "dependencies": dependencies });
        let metadata =
            |b| json!({ "packages": [package("a", json!([{ "name": "serde" }])), package("b", b)] });

        assert_eq!(edges_of(&metadata(json!([{ "name": "a", "kind": "dev" }]))), listed);
        assert_ne!(edges_of(&metadata(json!([]))), listed);
        assert_ne!(edges_of(&metadata(json!([{ "name": "a" }, { "name": "b" }]))), listed);
        assert_eq!(edges_in("no such heading"), Edges::new());
    }

    #[test]
    fn a_command_that_does_not_exist_is_found_in_code_only() {
        let help = "Usage: sharemesh <COMMAND>\n\nCommands:\n  demo    Starts a network\n          of three\n  models  Lists\n\nOptions:\n  -h\n";
        let known = listed_commands(help);
        assert_eq!(known.iter().map(String::as_str).collect::<Vec<_>>(), ["demo", "models"]);

        let text = "The sharemesh network. Use `sharemesh dome`.\n```sh\nsharemesh demo --port 1\n$ sharemesh modles\n```\n";
        let faults = unknown_commands("README.md", text, &known);
        assert_eq!(
            faults,
            [
                "README.md:1: `sharemesh dome` does not exist",
                "README.md:4: `sharemesh modles` does not exist"
            ]
        );
    }

    #[test]
    fn a_test_that_does_not_exist_is_found_in_the_last_column_only() {
        let document = "# A\n## What stops what\n\n| attack | by | test |\n|---|---|---|\n\
            | one | `no_such` | `a/b.rs`, `it_holds`, `SEED_OF`, `cargo xtask b` |\n\
            | two | x | `b.rs` (`it_does_not`), `c/d.rs`, `a`, `e/f` |\n## Other\n| `gone_too` |\n";
        let sources = [("a/b.rs", "fn it_holds() {}")];

        let faults = unknown_tests(document, &sources);

        let names: Vec<_> = faults.iter().filter_map(|fault| fault.split('`').nth(1)).collect();
        assert_eq!(names, ["c/d.rs", "e/f", "it_does_not"]);
    }
}
