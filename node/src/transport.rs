//! A node's whole ledger in one file: append-only, hash-chained, and checked entirely before anything is rebuilt.
//!
//! The file begins with a header that says whose ledger it is and of which network. Each record follows with its length
//! before it and the chain's head behind it, so an earlier file is the beginning of a later one. Keys are not in it.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use protocol::audit::Audit;
use protocol::encoding::{decode, encode};
use protocol::ids::{AccountId, NodeId};
use protocol::manifest::{Manifest, verify_manifest};
use protocol::record::{RECORD_BYTES_MAX, Record};
use protocol::signed::{Signed, Verified};
use serde::{Deserialize, Serialize};

use crate::exit::{Failure, FailureKind};
use crate::folder::{DataFolder, FolderError, private, sync_directory};
use crate::identity::Belongs;
use crate::journal::{Head, Journal, Options, Refused, Urgency};

/// Says what the file is, and in which form.
const MAGIC: &[u8; 20] = b"sharemesh ledger 1\r\n";

/// Bounds the header: a manifest and some addresses.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Where a journal is rebuilt before it is one.
const UNFINISHED: &str = "journal.part";

/// Records that are handed to the journal at once.
const BATCH: usize = 256;

/// How long a full journal is waited for before it is tried again.
const PAUSE: Duration = Duration::from_millis(2);

/// Whose ledger a file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    node: NodeId,
    account: AccountId,
    manifest: Signed<Manifest>,
    addresses: Vec<String>,
}

/// What was written, or rebuilt.
#[derive(Clone, Debug, Serialize)]
pub struct Moved {
    /// The node whose ledger it is.
    pub node: String,
    /// Its account.
    pub account: String,
    /// Records in the file.
    pub records: u64,
    /// Of them, those that were not in it before.
    pub new: u64,
    /// Head of the chain over all of them: two files with the same one hold the same ledger.
    pub head: String,
}

/// Writes the ledger of a stopped node to `file`, or continues a file that was written before.
///
/// # Errors
/// When a node uses the folder, there is no ledger in it, or the file holds something else.
pub fn export(data: &Path, file: &Path) -> Result<Moved> {
    if !data.join("journal").is_dir() {
        let words = format!("{} holds no ledger: name the node's folder with --data", data.display());
        return Err(Failure::new(FailureKind::NotFound, words).into());
    }
    let folder = open(data)?;
    let owner = Belongs::of(&folder)?;
    let header = Header {
        node: owner.node,
        account: owner.account,
        manifest: owner.manifest.signed(),
        addresses: owner.addresses.clone(),
    };
    let before = existing(file, &header)?;
    let mut writer = Appender::open(file, &header, before.as_ref())?;
    let (journal, _) =
        Journal::open(&folder.journal(), Options::default(), |_, _, record| writer.take(record))?;
    journal.close()?;
    let (records, new, head) = writer.finish(file)?;
    Ok(moved(&header, records, new, &head))
}

/// Rebuilds the ledger of `file` in a data folder that holds nothing but the node's keys.
///
/// # Errors
/// When the file does not hold in every part, is not this node's, or the folder is not empty. Nothing is changed then.
pub fn import(data: &Path, file: &Path) -> Result<Moved> {
    let (header, records, head) = check(file)?;
    let folder = open(data)?;
    check_empty(&folder)?;
    let node = crate::identity::node_of(&folder)?;
    if node != Some(header.node) {
        let found =
            node.map_or("there are none".to_owned(), |node| format!("those of node {node} are there"));
        let words = format!(
            "the ledger is that of node {}, whose keys must be in {} first ({found}): copy the key files of its old \
             data folder there, and nothing else",
            header.node,
            data.display()
        );
        return Err(Failure::new(FailureKind::Refused, words).into());
    }
    rebuild(&folder, &header, file)?;
    Ok(moved(&header, records, records, &head))
}

fn moved(header: &Header, records: u64, new: u64, head: &Head) -> Moved {
    let head = data_encoding::HEXLOWER.encode(head);
    Moved { node: header.node.to_string(), account: header.account.to_string(), records, new, head }
}

fn open(data: &Path) -> Result<DataFolder> {
    DataFolder::open(data).map_err(|error| match error {
        FolderError::InUse { .. } => Failure::new(
            FailureKind::Refused,
            format!(
                "{error}. Stop it first with `sharemesh down`: a ledger that goes on in one place while a copy of it \
                 starts in another forks, because two wallets sign different steps for the same position"
            ),
        )
        .into(),
        FolderError::ReadOnly { .. } | FolderError::Newer { .. } | FolderError::Io { .. } => error.into(),
    })
}

/// Says that a folder holds keys at most, or what an interrupted import left.
fn check_empty(folder: &DataFolder) -> Result<()> {
    let interrupted = folder.path().join(UNFINISHED).exists();
    for entry in fs::read_dir(folder.path())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_ours = ["lock", "format"].contains(&name.as_str())
            || crate::identity::KEY_FILES.contains(&name.as_str());
        let is_left = interrupted && ["network", UNFINISHED].contains(&name.as_str());
        if !is_ours && !is_left {
            let words = format!(
                "{} is not empty (it holds `{name}`): a ledger is rebuilt in a folder with the node's keys and nothing \
                 else, so that it replaces none",
                folder.path().display()
            );
            return Err(Failure::new(FailureKind::Refused, words).into());
        }
    }
    Ok(())
}

fn rebuild(folder: &DataFolder, header: &Header, file: &Path) -> Result<()> {
    let unfinished = folder.path().join(UNFINISHED);
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    crate::folder::create_private(&unfinished)?;
    let (mut journal, _) = Journal::open(&unfinished, Options::default(), |_, _, _| ())?;
    let mut batch = Vec::new();
    let mut reader = Reader::open(file)?;
    while let Some(record) = reader.next()? {
        batch.push(record);
        if batch.len() >= BATCH {
            append(&mut journal, &batch)?;
            batch.clear();
        }
    }
    append(&mut journal, &batch)?;
    journal.close()?;
    crate::identity::restore_network(folder, header.manifest.clone(), header.addresses.clone())?;
    // From here on it is a ledger.
    fs::rename(&unfinished, folder.journal())?;
    Ok(sync_directory(folder.path())?)
}

fn append(journal: &mut Journal, batch: &[Vec<u8>]) -> Result<()> {
    loop {
        match journal.append(batch, Urgency::Now) {
            Ok(_) => return Ok(()),
            Err(Refused::Full) => std::thread::sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Checks a whole file: its form and chain, every record, signature and sum.
fn check(file: &Path) -> Result<(Header, u64, Head)> {
    let mut reader = Reader::open(file)?;
    let manifest = Manifest::clone(&reader.manifest);
    let mut audit = Audit::new(manifest);
    while let Some(bytes) = reader.next()? {
        let record = Record::from_bytes(&bytes);
        let record = record
            .map_err(|error| refuse(file, &format!("record {} cannot be read: {error}", reader.count)))?;
        audit.check(record);
    }
    let findings = audit.finish();
    let failed = findings.checks.iter().filter(|(_, holds, _)| !holds).map(|(what, ..)| what);
    if let Some(problem) = findings.problems.iter().chain(failed).next() {
        return Err(refuse(file, &format!("it does not hold: {problem}")).into());
    }
    Ok((reader.header, reader.count, reader.head))
}

fn refuse(file: &Path, why: &str) -> Failure {
    Failure::new(FailureKind::Refused, format!("{}: {why}. Nothing was changed", file.display()))
}

/// Reads a file that may be there already; it must be the beginning of what will be written.
fn existing(file: &Path, header: &Header) -> Result<Option<(u64, Head)>> {
    if !file.exists() {
        return Ok(None);
    }
    let mut reader = Reader::open(file)?;
    if reader.header.node != header.node || reader.header.manifest != header.manifest {
        return Err(refuse(file, "it holds another node's ledger").into());
    }
    while reader.next()?.is_some() {}
    Ok(Some((reader.count, reader.head)))
}

/// Reads a file and follows its chain.
struct Reader {
    file: BufReader<File>,
    path: std::path::PathBuf,
    header: Header,
    manifest: Verified<Manifest>,
    count: u64,
    head: Head,
}

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut file = BufReader::new(file);
        let mut magic = [0; MAGIC.len()];
        let is_ledger = file.read_exact(&mut magic).is_ok() && magic == *MAGIC;
        if !is_ledger {
            return Err(refuse(path, "it is no ledger that this version wrote").into());
        }
        let broken = || refuse(path, "its beginning is damaged");
        let bytes = framed(&mut file, HEADER_BYTES_MAX).ok().flatten().ok_or_else(broken)?;
        let mut head = Head::default();
        file.read_exact(&mut head).map_err(|_| broken())?;
        let header: Header = decode(&bytes, HEADER_BYTES_MAX).map_err(|_| broken())?;
        let manifest = verify_manifest(header.manifest.clone()).map_err(|_| broken())?;
        if head != first_head(&bytes) {
            return Err(broken().into());
        }
        Ok(Self { file, path: path.to_owned(), header, manifest, count: 0, head })
    }

    /// Returns the next record, or nothing at the end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let torn = |count| refuse(&self.path, &format!("it breaks off or is damaged after record {count}"));
        let record = framed(&mut self.file, RECORD_BYTES_MAX).map_err(|_| torn(self.count))?;
        let Some(record) = record else { return Ok(None) };
        let mut head = Head::default();
        self.file.read_exact(&mut head).map_err(|_| torn(self.count))?;
        if head != next_head(&self.head, &record) {
            return Err(torn(self.count));
        }
        self.head = head;
        self.count += 1;
        Ok(Some(record))
    }
}

/// Reads a length and so many bytes; nothing at the very end.
fn framed(file: &mut impl Read, most: usize) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut first = 0;
    while first == 0 {
        match file.read(&mut length[..1]) {
            Ok(0) => return Ok(None),
            Ok(read) => first = read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    file.read_exact(&mut length[1..])?;
    let length = u32::from_be_bytes(length) as usize;
    if length > most {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

fn first_head(header: &[u8]) -> Head {
    next_head(&Head::default(), header)
}

fn next_head(head: &Head, record: &[u8]) -> Head {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sharemesh/v1/export\0").update(head).update(record);
    hasher.finalize().into()
}

/// Appends the records that a file does not hold yet.
struct Appender {
    file: BufWriter<File>,
    head: Head,
    count: u64,
    /// What the file held before, and the chain's head after it.
    before: u64,
    expected: Option<Head>,
    /// The file is not the beginning of this journal.
    differs: bool,
    failed: Option<io::Error>,
}

impl Appender {
    fn open(path: &Path, header: &Header, before: Option<&(u64, Head)>) -> Result<Self> {
        let bytes = encode(header);
        let mut head = first_head(&bytes);
        let mut options = private();
        let file = if before.is_some() { options.append(true) } else { options.write(true).create_new(true) };
        let file = file.open(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut file = BufWriter::new(file);
        if before.is_none() {
            file.write_all(MAGIC)?;
            write_frame(&mut file, &bytes, &head)?;
        } else {
            // The header may name other addresses; the chain begins with the one that is there.
            head = Reader::open(path)?.head;
        }
        let (before, expected) = before.map_or((0, None), |(count, head)| (*count, Some(*head)));
        let differs = before == 0 && expected.is_some_and(|expected| expected != head);
        Ok(Self { file, head, count: 0, before, expected, differs, failed: None })
    }

    fn take(&mut self, record: &[u8]) {
        self.head = next_head(&self.head, record);
        self.count += 1;
        if self.count == self.before {
            self.differs = self.expected != Some(self.head);
        }
        if self.count > self.before && !self.differs && self.failed.is_none() {
            self.failed = write_frame(&mut self.file, record, &self.head).err();
        }
    }

    fn finish(mut self, path: &Path) -> Result<(u64, u64, Head)> {
        if self.differs || self.count < self.before {
            return Err(refuse(path, "it is no earlier state of this ledger, or the journal was pruned since: write to another file").into());
        }
        if let Some(error) = self.failed.take() {
            return Err(error).with_context(|| format!("cannot write {}", path.display()));
        }
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        sync_directory(folder.unwrap_or(Path::new(".")))?;
        Ok((self.count, self.count - self.before, self.head))
    }
}

fn write_frame(file: &mut impl Write, bytes: &[u8], head: &Head) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| ErrorKind::InvalidInput)?;
    file.write_all(&length.to_be_bytes())?;
    file.write_all(bytes)?;
    file.write_all(head)
}
