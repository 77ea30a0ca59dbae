//! The demo's nodes: processes of this very program, with all they write in one folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::cli::client::Client;
use crate::exit::Failure;
use crate::models::cannot;

/// How long a process may take until its API answers.
const START_MAX: Duration = Duration::from_secs(30);

/// How long a process may take to end before it is ended.
const END_MAX: Duration = Duration::from_secs(5);

/// How often a process that starts is looked at.
const POLL: Duration = Duration::from_millis(20);

/// So many lines of a log explain why a process ended.
const LAST_WORDS_MAX: usize = 5;

/// A folder for everything, removed at the end.
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    pub(super) fn create() -> Result<Self, Failure> {
        let mut name = [0; 6];
        getrandom::fill(&mut name).expect("the operating system has randomness");
        let path =
            std::env::temp_dir().join(format!("sharemesh-demo-{}", data_encoding::HEXLOWER.encode(&name)));
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).map_err(|error| cannot("create", &path, &error))?;
        Ok(Self { path, keep: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // A temporary folder that cannot be removed is the system's to clean.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// One node; its process ends when this is dropped, unless it was left.
pub(super) struct Peer {
    name: &'static str,
    data: PathBuf,
    log: PathBuf,
    child: Child,
    client: Option<Client>,
}

impl Peer {
    /// Starts `sharemesh up` with ports of the system's choice.
    pub(super) fn start(
        name: &'static str,
        folder: &Path,
        flags: &[&str],
        keep: bool,
    ) -> Result<Self, Failure> {
        let (data, log) = (folder.join(name), folder.join(format!("{name}.log")));
        let program = std::env::current_exe()
            .map_err(|error| Failure::internal(format!("cannot find the path of this program: {error}")))?;
        let output = File::create(&log).map_err(|error| cannot("write", &log, &error))?;
        let errors = output.try_clone().map_err(|error| cannot("write", &log, &error))?;
        let mut command = Command::new(program);
        command
            .arg("--data")
            .arg(&data)
            .args(["--api", "127.0.0.1:0", "up", "--listen", "127.0.0.1:0", "--mdns", "off", "--name", name])
            .args(flags)
            // What the user's shell says of another node is not meant for these.
            .env_remove("SHAREMESH_DATA")
            .env_remove("SHAREMESH_API")
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true);
        // Ctrl-C in a terminal is for the demo, which then ends its nodes in order.
        #[cfg(unix)]
        command.process_group(0);
        if keep {
            command.stdin(Stdio::null());
        } else {
            command.arg("--exit-with-parent").stdin(Stdio::piped());
        }
        let child = command
            .spawn()
            .map_err(|error| Failure::internal(format!("cannot start the {name}: {error}")))?;
        Ok(Self { name, data, log, child, client: None })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until the node's API can be found.
    pub(super) async fn connect(&mut self) -> Result<Client, Failure> {
        let deadline = Instant::now() + START_MAX;
        loop {
            self.check_alive()?;
            if let Ok(client) = Client::open(&self.data, None)
                && client.pid() == self.child.id().unwrap_or(0)
            {
                return Ok(self.client.insert(client).clone());
            }
            if Instant::now() >= deadline {
                return Err(Failure::internal(format!(
                    "the {} did not start in time\n{}",
                    self.name,
                    self.last_words()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) fn client(&self) -> Result<&Client, Failure> {
        self.client.as_ref().ok_or_else(|| Failure::internal(format!("the {} is not connected", self.name)))
    }

    pub(super) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        let answer = self.client()?.get(path).await;
        // A node that has ended explains more than a connection that has.
        if answer.is_err() {
            self.check_alive()?;
        }
        answer
    }

    pub(super) async fn get_with<T: DeserializeOwned>(
        &mut self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let answer = self.client()?.get_with(path, query).await;
        if answer.is_err() {
            self.check_alive()?;
        }
        answer
    }

    /// Fails if the process has ended.
    pub(super) fn check_alive(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                Err(Failure::internal(format!("the {} ended ({status})\n{}", self.name, self.last_words())))
            }
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Returns the last lines of its log.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<_> = text.lines().rev().take(LAST_WORDS_MAX).collect();
        lines.into_iter().rev().map(|line| format!("  {}: {line}", self.name)).collect::<Vec<_>>().join("\n")
    }

    /// Lets the process live on without this one.
    pub(super) fn leave(self) {
        // Dropping it would end the process, and that cannot be taken back.
        std::mem::forget(self.child);
    }

    /// Ends the process: asks it, closes its standard input, and in the end by force.
    pub(super) async fn end(mut self) {
        // One that cannot be asked is ended below.
        if let Some(client) = &self.client {
            let _ = tokio::time::timeout(END_MAX, client.tell("shutdown")).await;
        }
        drop(self.child.stdin.take());
        if tokio::time::timeout(END_MAX, self.child.wait()).await.is_err() {
            // Fails only if it has just ended.
            let _ = self.child.kill().await;
        }
    }
}
