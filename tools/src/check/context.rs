//! Where the checks run, and how they start other programs.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// What every step may ask.
pub(super) struct Context {
    /// Folder of the workspace.
    pub(super) root: PathBuf,
    /// Whether what a developer's machine may lack must be there.
    pub(super) ci: bool,
    json: bool,
}

impl Context {
    /// Finds the workspace around the current folder.
    pub(super) fn new(json: bool) -> Result<Self> {
        let mut context = Self {
            root: PathBuf::from("."),
            ci: std::env::var_os("CI").is_some_and(|value| value == "true"),
            json,
        };
        let manifest =
            context.output("cargo", &["locate-project", "--workspace", "--message-format", "plain"])?;
        context.root =
            PathBuf::from(manifest.trim()).parent().context("the workspace has no folder")?.to_owned();
        Ok(context)
    }

    /// Says something to whoever watches.
    pub(super) fn say(&self, text: &str) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    /// Returns `program` with `arguments`, to be run in the workspace.
    pub(super) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root);
        // `cargo run` tells us about the package `tools`; build scripts that watch these names would run again.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&*name);
            }
        }
        command
    }

    /// Runs `command` in sight; anything but success is an error.
    pub(super) fn run(&self, command: &mut Command) -> Result<()> {
        self.say(&format!("$ {}", words(command)));
        if self.json {
            command.stdout(Stdio::from(std::io::stderr()));
        }
        let status = command.status().with_context(|| format!("cannot start `{}`", words(command)))?;
        ensure!(status.success(), "`{}` ended with {status}", words(command));
        Ok(())
    }

    /// Runs `cargo` with `arguments` in sight.
    pub(super) fn cargo(&self, arguments: &[&str]) -> Result<()> {
        self.run(&mut self.command("cargo", arguments))
    }

    /// Returns what `program` prints; anything but success is an error.
    pub(super) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program, arguments);
        command.stderr(Stdio::inherit());
        let output = command.output().with_context(|| format!("cannot start `{}`", words(&command)))?;
        ensure!(output.status.success(), "`{}` ended with {}", words(&command), output.status);
        String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", words(&command)))
    }

    /// Returns what `program` prints, or nothing if it is not there or fails: a question, not a step.
    pub(super) fn ask(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let output =
            self.command(program, arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    }
}

fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
