//! Compiles the deliberate faults into the protocol, puts in one after the other and requires that its test fails, or that
//! its scenario finds it.

mod hunt;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use simulations::mutants::{HUNTED, MUTANTS, Mutant, Target};

use super::context::Context;
use super::purity::rust_files;

/// Names the fault that a test program with all of them puts in.
const CHOSEN: &str = "SHAREMESH_MUTANT";

/// Which faults to try.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Tries this fault only; may be repeated
    #[arg(long, value_name = "MUTANT")]
    only: Vec<String>,
    /// Names the faults and tries none
    #[arg(long)]
    list: bool,
    /// Has scenarios look for the faults that they must find, from their first seed on
    #[arg(long)]
    scenarios: bool,
    /// Most seeds of each scenario, with --scenarios
    #[arg(long, default_value_t = 100, requires = "scenarios")]
    seeds: u64,
}

/// Tries the chosen faults.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    for name in &arguments.only {
        ensure!(is_listed(name), "there is no mutant `{name}`");
    }
    let is_chosen =
        |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|chosen| chosen == name);
    let tested: Vec<_> = MUTANTS.iter().filter(|mutant| is_chosen(mutant.name)).collect();
    let hunted: Vec<_> = HUNTED.iter().filter(|hunted| is_chosen(hunted.name)).collect();
    if arguments.list {
        tested.iter().for_each(|mutant| println!("{:<26} {} ({})", mutant.name, mutant.fault, mutant.test));
        hunted
            .iter()
            .for_each(|hunted| println!("{:<26} {} ({})", hunted.name, hunted.fault, hunted.scenario));
        return Ok(ExitCode::SUCCESS);
    }
    let context = Context::new(false)?;
    if arguments.scenarios {
        hunt::search(&context, &hunted, arguments.seeds)?;
    } else {
        attempt(&context, &tested)?;
        hunt::known(&context, &hunted)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Tries every fault.
pub(super) fn all(context: &Context) -> Result<()> {
    attempt(context, &MUTANTS.iter().collect::<Vec<_>>())?;
    hunt::known(context, &HUNTED.iter().collect::<Vec<_>>())
}

fn is_listed(name: &str) -> bool {
    MUTANTS.iter().any(|mutant| mutant.name == name) || HUNTED.iter().any(|hunted| hunted.name == name)
}

fn attempt(context: &Context, mutants: &[&Mutant]) -> Result<()> {
    if mutants.is_empty() {
        return Ok(());
    }
    let unlisted = unlisted(&context.root)?;
    ensure!(unlisted.is_empty(), "faults in the sources that no test is named for: {unlisted:?}");
    let programs = build(context, mutants)?;
    passes_without(&programs, mutants)?;

    let mut survivors = Vec::new();
    for mutant in mutants {
        let program = program(&programs, mutant)?;
        match verdicts(program, &[mutant.test], Some(mutant.name))?[..] {
            [Verdict::Failed] => context.say(&format!("{:<24} found by {}", mutant.name, mutant.test)),
            [Verdict::Passed] => survivors.push(format!("{}: {}", mutant.name, mutant.test)),
            _ => bail!("`{}` with {} is no single test", mutant.test, mutant.name),
        }
    }
    ensure!(survivors.is_empty(), "tests that pass with the fault in:\n{}", survivors.join("\n"));
    context.say(&format!("{} faults, each found by its test", mutants.len()));
    Ok(())
}

/// A test that fails anyway finds nothing.
fn passes_without(programs: &Programs, mutants: &[&Mutant]) -> Result<()> {
    let mut tests: BTreeMap<(&str, Target), BTreeSet<&str>> = BTreeMap::new();
    for mutant in mutants {
        tests.entry((mutant.package, mutant.target)).or_default().insert(mutant.test);
    }
    for ((package, target), names) in tests {
        let program = programs.get(&(package, target)).context("cargo named no test program")?;
        let names: Vec<_> = names.into_iter().collect();
        for (name, verdict) in names.iter().zip(verdicts(program, &names, None)?) {
            match verdict {
                Verdict::Passed => {}
                Verdict::Failed => bail!("`{name}` fails without any fault"),
                Verdict::Missing => bail!("there is no test `{name}` in {package}, {target:?}"),
            }
        }
    }
    Ok(())
}

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Missing,
}

/// Runs tests by their full paths, with a fault if one is named.
fn verdicts(program: &Path, tests: &[&str], fault: Option<&str>) -> Result<Vec<Verdict>> {
    let mut command = Command::new(program);
    // Why it fails does not matter here, so the smallest case that fails is not looked for.
    command.arg("--exact").args(tests).env("PROPTEST_MAX_SHRINK_ITERS", "0").stderr(Stdio::null());
    command.env_remove(CHOSEN).envs(fault.map(|name| (CHOSEN, name)));
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(tests.iter().map(|test| verdict(&text, test)).collect())
}

fn verdict(output: &str, test: &str) -> Verdict {
    let says = |word: &str| output.lines().any(|line| line == format!("test {test} ... {word}"));
    match (says("ok"), says("FAILED")) {
        (true, _) => Verdict::Passed,
        (false, true) => Verdict::Failed,
        (false, false) => Verdict::Missing,
    }
}

/// Test programs by package and target.
type Programs = BTreeMap<(&'static str, Target), PathBuf>;

/// Compiles the test programs with every fault in them, to be chosen when they run.
fn build(context: &Context, mutants: &[&Mutant]) -> Result<Programs> {
    let packages: BTreeSet<&'static str> = mutants.iter().map(|mutant| mutant.package).collect();
    let mut programs = BTreeMap::new();
    for package in packages {
        let mut command =
            context.command("cargo", &["test", "--no-run", "--quiet", "--message-format", "json"]);
        command.args(["--package", package, "--lib", "--tests"]).env("CARGO_TARGET_DIR", folder(context)?);
        command.env("CARGO_INCREMENTAL", "0").env("RUSTFLAGS", "--cfg mutants");
        let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        ensure!(output.status.success(), "{package} does not compile with `--cfg mutants`");
        let built = programs_of(&String::from_utf8_lossy(&output.stdout))?;
        programs.extend(built.into_iter().map(|(target, path)| ((package, target), path)));
    }
    Ok(programs)
}

fn program<'a>(programs: &'a Programs, mutant: &Mutant) -> Result<&'a Path> {
    let program = programs.get(&(mutant.package, mutant.target)).context("cargo named no test program")?;
    Ok(program)
}

/// A line of cargo's JSON.
#[derive(Deserialize)]
struct Artifact {
    target: Option<ArtifactTarget>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ArtifactTarget {
    kind: Vec<String>,
    name: String,
}

fn programs_of(json: &str) -> Result<BTreeMap<Target, PathBuf>> {
    let mut programs = BTreeMap::new();
    for line in json.lines() {
        let artifact: Artifact = serde_json::from_str(line).context("cargo printed something else")?;
        let (Some(target), Some(executable)) = (artifact.target, artifact.executable) else { continue };
        let is_test = target.kind.iter().any(|kind| kind == "test");
        let named = MUTANTS.iter().map(|mutant| mutant.target).find(|other| match other {
            Target::Lib => !is_test,
            Target::Test(name) => is_test && *name == target.name,
        });
        programs.extend(named.map(|target| (target, executable)));
    }
    Ok(programs)
}

/// Returns the folder for what is built with faults in it.
fn folder(context: &Context) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let metadata = context.output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata is not as expected")?;
    Ok(metadata.target_directory.join("mutants"))
}

/// Returns faults in the sources that the list does not name.
fn unlisted(root: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for folder in ["protocol/src", "protocol/tests", "simulations/src"] {
        for path in rust_files(&root.join(folder))? {
            names.extend(faults_in(&fs::read_to_string(path)?));
        }
    }
    Ok(names.into_iter().filter(|name| !is_listed(name)).collect())
}

fn faults_in(text: &str) -> Vec<String> {
    let named = text.split("mutant::is_in(\"").skip(1).filter_map(|rest| rest.split('"').next());
    named.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{Verdict, faults_in, verdict};

    const OUTPUT: &str = "running 2 tests\ntest a::b ... FAILED\ntest c ... ok\n";

    #[test]
    fn a_test_is_judged_by_its_own_line() {
        assert_eq!(verdict(OUTPUT, "a::b"), Verdict::Failed);
        assert_eq!(verdict(OUTPUT, "c"), Verdict::Passed);
        assert_eq!(verdict(OUTPUT, "b"), Verdict::Missing);
    }

    #[test]
    fn a_fault_in_the_sources_is_seen() {
        let text = "if mutant::is_in(\"one\") || !mutant::is_in(\"two\") {";
        assert_eq!(faults_in(text), ["one", "two"]);
    }
}
