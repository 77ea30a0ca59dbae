//! The node's data folder: private, used by one node at a time, with small files that are whole or absent.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The arrangement of files in the folder that this program knows.
pub const FORMAT: u32 = 1;

/// A killed node's lock is held for a moment longer than its process.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

const LOCK_FILE: &str = "lock";
const FORMAT_FILE: &str = "format";

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("data folder {path} is in use by another node ({owner})")]
    InUse { path: PathBuf, owner: String },
    #[error("data folder {path} cannot be written: {source}. Choose another one, or make it writable")]
    ReadOnly { path: PathBuf, source: io::Error },
    #[error("data folder {path} has format {found}; this program knows {FORMAT}: use a newer one")]
    Newer { path: PathBuf, found: String },
    #[error("data folder {path} cannot be used: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Who may read a small file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner alone: keys, tokens.
    Private,
    /// Whoever may enter the folder.
    Shared,
}

/// The data folder, locked until this is dropped or the process dies, however it dies.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Creates the folder if it is missing and takes it for this process.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let refuse = |source| refusal(path, source);
        create_private(path).map_err(refuse)?;
        let lock = lock(path)?;
        check_format(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder of the journal.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Returns the folder of the index.
    pub fn index(&self) -> PathBuf {
        self.path.join("index")
    }

    /// Replaces a small file: after a crash it holds the old bytes or these, whole.
    pub fn write(&self, name: &str, contents: &[u8], access: Access) -> Result<(), FolderError> {
        let path = self.path.join(name);
        write_atomically(&path, contents, access).map_err(|source| refusal(&path, source))
    }
}

/// Replaces the file at `path`, durably; a crash leaves the old bytes or these.
pub fn write_atomically(path: &Path, contents: &[u8], access: Access) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let temporary = folder.join(name);
    // A leftover of a crash may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = match access {
        Access::Private => private(),
        Access::Shared => OpenOptions::new(),
    };
    let mut file = options.write(true).create_new(true).open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(folder)
}

/// Creates a folder that only the owner may enter, durably; leaves one that exists as it is.
pub fn create_private(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        fs::create_dir_all(parent)?;
    }
    match private_directory().create(path) {
        Err(error) if !path.is_dir() => return Err(error),
        Ok(()) | Err(_) => {}
    }
    sync_directory(parent.unwrap_or(Path::new(".")))
}

/// Makes a folder's list of names durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    // Windows keeps names durable by itself and cannot open folders as files.
    if cfg!(windows) { Ok(()) } else { File::open(path)?.sync_all() }
}

/// Returns options that create files which only the owner may read.
pub fn private() -> OpenOptions {
    #[allow(unused_mut, reason = "Windows inherits the folder's access")]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn private_directory() -> DirBuilder {
    #[allow(unused_mut, reason = "Windows inherits the parent's access")]
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

fn lock(path: &Path) -> Result<File, FolderError> {
    let refuse = |source| refusal(path, source);
    let place = path.join(LOCK_FILE);
    let mut file =
        private().read(true).write(true).create(true).truncate(false).open(&place).map_err(refuse)?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(refuse)?;
                write!(file, "{}", std::process::id()).map_err(refuse)?;
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(refuse(source)),
        }
    }
    let mut pid = String::new();
    let owner = match file.read_to_string(&mut pid) {
        Ok(1..) => format!("pid {pid}"),
        Ok(0) | Err(_) => "pid unknown".to_owned(),
    };
    Err(FolderError::InUse { path: path.to_owned(), owner })
}

fn check_format(path: &Path) -> Result<(), FolderError> {
    let place = path.join(FORMAT_FILE);
    match fs::read_to_string(&place) {
        Ok(found) if found.trim().parse() == Ok(FORMAT) => Ok(()),
        Ok(found) => Err(FolderError::Newer { path: path.to_owned(), found: found.trim().to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_atomically(&place, format!("{FORMAT}\n").as_bytes(), Access::Shared)
                .map_err(|source| refusal(path, source))
        }
        Err(source) => Err(FolderError::Io { path: path.to_owned(), source }),
    }
}

fn refusal(path: &Path, source: io::Error) -> FolderError {
    let path = path.to_owned();
    if matches!(source.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) {
        FolderError::ReadOnly { path, source }
    } else {
        FolderError::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_second_node_is_told_who_uses_the_folder() {
        let temporary = TempDir::new().unwrap();
        let path = temporary.path().join("data");
        let first = DataFolder::open(&path).unwrap();

        let error = DataFolder::open(&path).unwrap_err().to_string();
        assert!(error.contains("is in use by another node (pid "), "{error}");
        assert!(error.contains(&std::process::id().to_string()), "{error}");

        drop(first);
        DataFolder::open(&path).unwrap();
    }

    #[test]
    fn a_newer_folder_is_refused() {
        let temporary = TempDir::new().unwrap();
        let folder = DataFolder::open(temporary.path()).unwrap();
        folder.write(FORMAT_FILE, b"2\n", Access::Shared).unwrap();
        drop(folder);

        let error = DataFolder::open(temporary.path()).unwrap_err().to_string();

        assert!(error.contains("has format 2; this program knows 1"), "{error}");
    }

    #[test]
    fn a_small_file_is_replaced_whole_whatever_a_crash_left_beside_it() {
        let temporary = TempDir::new().unwrap();
        let folder = DataFolder::open(temporary.path()).unwrap();
        fs::write(folder.path().join("key.new"), b"half").unwrap();

        folder.write("key", b"old", Access::Private).unwrap();
        folder.write("key", b"new", Access::Private).unwrap();

        assert_eq!(fs::read(folder.path().join("key")).unwrap(), b"new");
        assert!(!folder.path().join("key.new").exists());
    }

    #[cfg(unix)]
    #[test]
    fn folders_and_private_files_are_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let temporary = TempDir::new().unwrap();
        let folder = DataFolder::open(&temporary.path().join("deep/data")).unwrap();
        folder.write("key", b"secret", Access::Private).unwrap();
        let mode_of = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;

        assert_eq!(mode_of(folder.path()), 0o700);
        assert_eq!(mode_of(&folder.path().join("key")), 0o600);
        assert_eq!(mode_of(&folder.path().join(LOCK_FILE)), 0o600);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_read_only_folder_is_named_as_such() {
        // Root may write anywhere but on a read-only mount, so the test runs itself again inside one.
        if let Ok(path) = std::env::var("READ_ONLY_FOLDER") {
            let error = DataFolder::open(Path::new(&path)).unwrap_err().to_string();
            assert!(error.contains("cannot be written"), "{error}");
            return;
        }
        let temporary = TempDir::new().unwrap();
        drop(DataFolder::open(temporary.path()).unwrap());
        let test = "folder::tests::a_read_only_folder_is_named_as_such";
        let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77
            READ_ONLY_FOLDER="$1" exec "$0" --exact "$2""#;
        let ran = std::process::Command::new("unshare")
            .args(["-rm", "sh", "-c", script])
            .arg(std::env::current_exe().unwrap())
            .arg(temporary.path())
            .arg(test)
            .output();
        match ran {
            Ok(output) if output.status.success() => {
                let words = String::from_utf8_lossy(&output.stdout);
                assert!(words.contains("1 passed"), "the test did not run: {words}");
            }
            Ok(output) if output.status.code() == Some(101) => {
                panic!("{}", String::from_utf8_lossy(&output.stdout))
            }
            Ok(_) | Err(_) => println!("skipped: no mount namespaces here"),
        }
    }
}
