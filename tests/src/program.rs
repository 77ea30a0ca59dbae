//! The program as a process: called like a user calls it, never left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

/// The executable under test, with an empty cache of its own.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    cache: PathBuf,
    variables: Vec<(String, PathBuf)>,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Checks that a command failed with this code, said all of these words on standard error, and did not panic.
    #[track_caller]
    pub fn must_fail(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is missing: {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }

    /// Checks that a command succeeded; returns its data.
    #[track_caller]
    pub fn must_succeed(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        &self.stdout
    }
}

impl Program {
    pub(crate) fn new(path: &str, cache: &Path) -> Self {
        Self { path: path.into(), cache: cache.to_owned(), variables: Vec::new() }
    }

    /// Uses another cache of models.
    #[must_use]
    pub fn with_cache(&self, cache: &Path) -> Self {
        Self { cache: cache.to_owned(), ..self.clone() }
    }

    /// Sets a variable in the program's environment.
    #[must_use]
    pub fn with_env(&self, name: &str, value: &Path) -> Self {
        let mut variables = self.variables.clone();
        variables.push((name.to_owned(), value.to_owned()));
        Self { variables, ..self.clone() }
    }

    /// Returns the executable.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a command whose surroundings are the test's, not the user's.
    #[must_use]
    pub fn command(&self, data: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--data").arg(data);
        self.surround(&mut command);
        command
    }

    /// Returns a command of another program, which is to call this one.
    #[must_use]
    pub fn command_of(&self, other: &str) -> Command {
        let mut command = Command::new(other);
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command
            .env("SHAREMESH_CACHE", &self.cache)
            .env_remove("SHAREMESH_DATA")
            .env_remove("SHAREMESH_API")
            .env_remove("SHAREMESH_PASSPHRASE")
            .env_remove("SHAREMESH_PHRASE")
            .env_remove("SHAREMESH_LOG")
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    /// Starts `sharemesh up`; it ends with this process at the latest.
    pub(crate) fn node(&self, name: &str, data: &Path, listen: &str, log: &Path, flags: &[&str]) -> Process {
        let log = File::options().create(true).append(true).open(log).expect("the log can be written");
        let errors = log.try_clone().expect("a file can be opened twice");
        let mut command = self.command(data);
        command
            .args(["--api", "127.0.0.1:0", "up", "--listen", listen, "--mdns", "off", "--name", name])
            .args(["--log", "warn,node=debug", "--exit-with-parent"])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors);
        Process(command.spawn().expect("the program can be started"))
    }

    /// Runs a command to its end.
    pub async fn run(&self, data: &Path, words: &[&str], input: &[u8]) -> Ended {
        let mut command = self.command(data);
        command.args(words);
        self.finish(command, input).await
    }

    /// Runs a command that a test has prepared to its end.
    pub async fn finish(&self, command: Command, input: &[u8]) -> Ended {
        self.finish_within(crate::PATIENCE, command, input).await
    }

    /// Runs a command to its end that may take another time than most.
    pub async fn finish_within(&self, most: Duration, command: Command, input: &[u8]) -> Ended {
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the program can be started");
        let mut stdin = child.stdin.take().expect("piped");
        // A program that does not read its input closes it.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        let output = tokio::time::timeout(most, child.wait_with_output());
        let output = output.await.expect("a command ends").expect("its output can be read");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Starts a command that a test wants to kill.
    pub(crate) fn begin(&self, data: &Path, words: &[&str]) -> Process {
        let mut command = self.command(data);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Process(command.spawn().expect("the program can be started"))
    }
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Returns its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Returns how it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("our own child")
    }

    /// Ends it at once.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.0.kill();
        self.0.wait().expect("our own child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
