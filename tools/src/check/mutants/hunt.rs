//! Faults that scenarios must find: with the seeds that are known to, or from the first seed on.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use simulations::mutants::Hunted;

use super::super::context::Context;
use super::{CHOSEN, folder};

/// What `simulations run --json` says of rules.
#[derive(Deserialize)]
struct Run {
    invariants: Vec<Held>,
}

#[derive(Deserialize)]
struct Held {
    name: String,
    held: bool,
}

/// What `simulations sweep --json` says.
#[derive(Deserialize)]
struct Swept {
    failed: Vec<Failed>,
}

#[derive(Deserialize)]
struct Failed {
    seed: u64,
    invariants: Vec<String>,
}

/// Plays the known seed of each fault with it and without it: it must break the rule named, and no rule without.
pub(super) fn known(context: &Context, faults: &[&Hunted]) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    let program = build(context, &[])?;
    for hunted in faults {
        let seed = hunted.seed.to_string();
        let arguments = ["run", hunted.scenario, "--seed", &seed, "--json"];
        let run: Run = say(context, &program, &arguments, None)?;
        let broken = broken(&run);
        ensure!(
            broken.is_empty(),
            "{} with seed {seed} breaks {broken:?} without any fault",
            hunted.scenario
        );
        let run: Run = say(context, &program, &arguments, Some(hunted.name))?;
        let (found, rule) = (self::broken(&run), hunted.rule);
        ensure!(
            found.contains(&rule),
            "{} with seed {seed} and `{}` breaks {found:?}, and not {rule}",
            hunted.scenario,
            hunted.name
        );
        context.say(&format!("{:<26} found by {rule} in {}, seed {seed}", hunted.name, hunted.scenario));
    }
    context.say(&format!("{} faults, each found in its scenario", faults.len()));
    Ok(())
}

fn broken(run: &Run) -> Vec<&str> {
    run.invariants.iter().filter(|rule| !rule.held).map(|rule| rule.name.as_str()).collect()
}

/// Plays the scenario of each fault from its first seed on, until one finds it.
pub(super) fn search(context: &Context, faults: &[&Hunted], seeds: u64) -> Result<()> {
    let program = build(context, &["--release"])?;
    let seeds = seeds.to_string();
    let mut missed = Vec::new();
    for hunted in faults {
        let arguments = ["sweep", hunted.scenario, "--seeds", &seeds, "--until-failed", "--json"];
        let swept: Swept = say(context, &program, &arguments, Some(hunted.name))?;
        match swept.failed.first() {
            Some(Failed { seed, invariants }) => context.say(&format!(
                "{:<26} {} seed {seed}: {}",
                hunted.name,
                hunted.scenario,
                invariants.join(", ")
            )),
            None => missed.push(hunted.name),
        }
    }
    ensure!(missed.is_empty(), "faults that no seed up to {seeds} finds: {missed:?}");
    context.say(&format!("{} faults, each found within {seeds} seeds", faults.len()));
    Ok(())
}

/// Compiles the simulator with every fault in it.
fn build(context: &Context, profile: &[&str]) -> Result<PathBuf> {
    let folder = folder(context)?;
    let mut command = context.command("cargo", &["build", "--quiet", "--package", "simulations"]);
    command.args(profile).env("CARGO_TARGET_DIR", &folder);
    command.env("CARGO_INCREMENTAL", "0").env("RUSTFLAGS", "--cfg mutants");
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the simulator does not compile with `--cfg mutants`");
    let built = if profile.is_empty() { "debug" } else { "release" };
    Ok(folder.join(built).join("simulations"))
}

/// Runs the simulator with a fault, if one is named, and reads what it says; that it fails is what is looked for.
fn say<T: DeserializeOwned>(
    context: &Context,
    program: &Path,
    arguments: &[&str],
    fault: Option<&str>,
) -> Result<T> {
    let mut command = context.command(&program.to_string_lossy(), arguments);
    command.env_remove(CHOSEN).envs(fault.map(|name| (CHOSEN, name))).stderr(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`{}` with {fault:?} said no JSON", arguments.join(" ")))
}
