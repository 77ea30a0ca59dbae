//! What the journal asks of a file system: few verbs, so that tests can lose power at any one of them.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::folder;

/// A folder of segment files.
pub trait Disk: Send + Sync {
    /// Returns where the folder is, for messages.
    fn path(&self) -> &Path;

    /// Returns the names of all files in the folder, in any order.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Reads a file from its beginning, at most `limit` bytes of it, in place of what is in `contents`.
    fn read(&self, name: &str, limit: u64, contents: &mut Vec<u8>) -> io::Result<()>;

    /// Creates an empty file; one that exists is an error.
    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>>;

    /// Opens a file, makes it `length` bytes long and stands at byte `at` of it.
    fn open_at(&self, name: &str, length: u64, at: u64) -> io::Result<Box<dyn SegmentFile>>;

    /// Gives a file another name, in place of the file that has it, if there is one.
    fn rename(&self, name: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns how many bytes may still be written to the disk.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Makes the folder's list of names durable.
    fn sync_directory(&self) -> io::Result<()>;
}

/// One open segment file, written from front to back.
pub trait SegmentFile: Send {
    /// Writes all of `bytes` where the last write ended.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written durable, the length included.
    fn sync_data(&mut self) -> io::Result<()>;
}

/// A folder of the real file system.
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Opens or creates the folder, durably.
    pub fn open(path: &Path) -> io::Result<Self> {
        folder::create_private(path)?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Disk for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, name: &str, limit: u64, contents: &mut Vec<u8>) -> io::Result<()> {
        let file = File::open(self.path.join(name))?;
        let length = usize::try_from(file.metadata()?.len().min(limit)).unwrap_or_default();
        contents.clear();
        contents.reserve_exact(length);
        file.take(limit).read_to_end(contents)?;
        Ok(())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(folder::private().write(true).create_new(true).open(self.path.join(name))?))
    }

    fn open_at(&self, name: &str, length: u64, at: u64) -> io::Result<Box<dyn SegmentFile>> {
        let mut file = folder::private().write(true).open(self.path.join(name))?;
        file.set_len(length)?;
        file.seek(SeekFrom::Start(at))?;
        Ok(Box::new(file))
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(name), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        fs4::available_space(&self.path)
    }

    fn sync_directory(&self) -> io::Result<()> {
        folder::sync_directory(&self.path)
    }
}

impl SegmentFile for File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        Self::sync_data(self)
    }
}
