//! The steps, in the order in which CI runs them.
//!
//! All of them build with the dev profile and the features of the whole workspace, so that dependencies are built
//! twice at most: once for real, once for what only looks (clippy and doc).

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::context::Context;
use super::{deny, mutants, purity, vectors};
use crate::{clients, models};

/// One thing that CI checks.
pub(super) struct Step {
    /// Word for `--only`.
    pub(super) name: &'static str,
    /// What holds when it passes.
    pub(super) about: &'static str,
    /// Does it.
    pub(super) run: fn(&Context) -> Result<Outcome>,
}

/// How a step ended that did not fail.
pub(super) enum Outcome {
    /// It ran, and what it says holds.
    Passed,
    /// It could not run here, and why.
    Skipped(String),
}

/// The newest cargo-deny that `deny.toml` was tried with.
const CARGO_DENY: &str = "0.20.2";

/// Random cases of each property; without this, as on every change of a developer, there are 2,000.
const PROPERTY_CASES: &str = "10000";

pub(super) const STEPS: [Step; 15] = [
    Step {
        name: "fmt",
        about: "every file is formatted",
        run: |c| passed(c.cargo(&["fmt", "--all", "--check"])),
    },
    Step { name: "clippy", about: "no lint has a complaint", run: clippy },
    Step { name: "model", about: "the model that tests run on is here", run: model },
    Step { name: "clients", about: "the clients that tests drive nodes with are here", run: clients },
    Step { name: "test", about: "every test passes", run: test },
    Step {
        name: "vectors",
        about: "everything that is signed, said or written down keeps its bytes",
        run: |c| passed(vectors::compare(c)),
    },
    Step {
        name: "mutants",
        about: "every fault that is put in on purpose is found",
        run: |c| passed(mutants::all(c)),
    },
    Step { name: "doc", about: "the documentation builds without a warning", run: doc },
    Step { name: "deny", about: "deny.toml allows every dependency", run: deny },
    Step { name: "advisories", about: "no dependency has a known advisory", run: advisories },
    Step { name: "lockfile", about: "Cargo.lock says what the manifests say", run: lockfile },
    Step {
        name: "purity",
        about: "`protocol` can name no clock, file, socket or thread",
        run: |c| passed(purity::check(c)),
    },
    Step {
        name: "purity-wasm",
        about: "`protocol` builds where there is no operating system",
        run: purity_wasm,
    },
    Step {
        name: "simulation",
        about: "simulated networks keep every invariant, twice the same",
        run: simulation,
    },
    Step { name: "cuda", about: "no lint has a complaint with CUDA", run: cuda },
];

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

fn clippy(context: &Context) -> Result<Outcome> {
    passed(context.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn model(context: &Context) -> Result<Outcome> {
    match present(context, models::test_model())? {
        Outcome::Passed => present(context, models::test_encoder()),
        skipped => Ok(skipped),
    }
}

fn clients(context: &Context) -> Result<Outcome> {
    present(context, clients::test_clients())
}

/// Says where something is that a developer may lack and CI may not.
fn present(context: &Context, found: Result<PathBuf>) -> Result<Outcome> {
    match found {
        Ok(path) => {
            context.say(&path.display().to_string());
            Ok(Outcome::Passed)
        }
        Err(error) if context.ci => Err(error),
        Err(error) => Ok(Outcome::Skipped(format!("{error:#}"))),
    }
}

fn test(context: &Context) -> Result<Outcome> {
    let mut command = context.command("cargo", &["test", "--workspace"]);
    if std::env::var_os("PROPTEST_CASES").is_none() {
        command.env("PROPTEST_CASES", PROPERTY_CASES);
    }
    provide(context, &mut command, models::TEST_MODEL, models::test_model)?;
    provide(context, &mut command, models::TEST_ENCODER, models::test_encoder)?;
    provide(context, &mut command, clients::TEST_CLIENTS, clients::test_clients)?;
    passed(context.run(&mut command))
}

/// Tells tests where something is that is fetched for them, unless the environment does already.
fn provide(
    context: &Context,
    command: &mut Command,
    name: &str,
    fetch: fn() -> Result<PathBuf>,
) -> Result<()> {
    if std::env::var_os(name).is_some() {
        return Ok(());
    }
    match fetch() {
        Ok(path) => _ = command.env(name, path),
        Err(error) if context.ci => return Err(error),
        Err(error) => context.say(&format!("tests that need {name} will skip themselves: {error:#}")),
    }
    Ok(())
}

fn doc(context: &Context) -> Result<Outcome> {
    let mut command = context.command("cargo", &["doc", "--workspace", "--no-deps"]);
    passed(context.run(command.env("RUSTDOCFLAGS", "-D warnings")))
}

fn deny(context: &Context) -> Result<Outcome> {
    deny::check(context)?;
    if has_cargo_deny(context) {
        context.cargo(&["deny", "check", "bans", "licenses", "sources"])?;
    }
    Ok(Outcome::Passed)
}

fn advisories(context: &Context) -> Result<Outcome> {
    if !has_cargo_deny(context) {
        let why = format!(
            "cargo-deny {CARGO_DENY} is not installed (cargo xtask check --only advisories --install)"
        );
        return Ok(Outcome::Skipped(why));
    }
    if context.cargo(&["deny", "fetch", "db"]).is_err() {
        return Ok(Outcome::Skipped("the advisory database cannot be fetched".to_owned()));
    }
    passed(context.cargo(&["deny", "--offline", "check", "advisories"]))
}

fn has_cargo_deny(context: &Context) -> bool {
    context.ask("cargo", &["deny", "--version"]).is_some_and(|version| version.trim().ends_with(CARGO_DENY))
}

/// Builds and installs cargo-deny, if it is not there.
pub(super) fn install_cargo_deny(context: &Context) -> Result<()> {
    if has_cargo_deny(context) {
        return Ok(());
    }
    context.cargo(&["install", "--locked", "cargo-deny", "--version", CARGO_DENY])
}

fn lockfile(context: &Context) -> Result<Outcome> {
    context.output("cargo", &["metadata", "--locked", "--format-version", "1"])?;
    if context.ci {
        // Cargo may have mended the file before this step saw it; then it is not the committed one.
        context.run(&mut context.command("git", &["diff", "--exit-code", "HEAD", "--", "Cargo.lock"]))?;
    }
    Ok(Outcome::Passed)
}

fn purity_wasm(context: &Context) -> Result<Outcome> {
    const TARGET: &str = "wasm32-unknown-unknown";
    let libraries = context.ask("rustc", &["--print", "target-libdir", "--target", TARGET]);
    if !libraries.is_some_and(|path| std::path::Path::new(path.trim()).exists()) {
        return Ok(Outcome::Skipped(format!("target not installed (rustup target add {TARGET})")));
    }
    passed(context.cargo(&["check", "--package", "protocol", "--target", TARGET]))
}

fn simulation(context: &Context) -> Result<Outcome> {
    // Built with the whole workspace, so that shared dependencies keep the features they were built with before.
    context.cargo(&["build", "--workspace", "--bin", "simulations"])?;
    let simulations = std::env::current_exe()?.with_file_name("simulations");
    passed(context.run(&mut context.command(&simulations.to_string_lossy(), &["smoke"])))
}

fn cuda(context: &Context) -> Result<Outcome> {
    if context.ask("nvcc", &["--version"]).is_none() {
        return Ok(Outcome::Skipped("nvcc is not on the PATH".to_owned()));
    }
    let arguments =
        ["clippy", "--package", "node", "--features", "cuda", "--all-targets", "--", "-D", "warnings"];
    let mut command = context.command("cargo", &arguments);
    if std::env::var_os("CUDA_COMPUTE_CAP").is_none() {
        // Linting needs no card; without this the build asks one for its capability.
        command.env("CUDA_COMPUTE_CAP", "80");
    }
    passed(context.run(&mut command))
}
