//! The models a node can serve: a small built-in catalogue, files of the owner's, and where they are kept.

pub mod catalogue;
pub mod fetch;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use engine::{DeviceChoice, FakeOptions, ModelSource, WorkerOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::exit::{Failure, FailureKind};
use catalogue::Entry;
use fetch::Fetcher;

/// A model's file on this machine, known to be whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// The name by which it is asked for.
    pub name: String,
    /// Where the file is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// BLAKE3 of the file.
    pub digest: [u8; 32],
    /// SHA-256 of the file in hexadecimal, where the catalogue pins one.
    pub sha256: Option<String>,
    /// The licence's SPDX identifier, or `unknown`.
    pub licence: String,
    /// The family, such as `llama`, or `unknown` before it was loaded.
    pub architecture: String,
    /// Tokens of prompt and answer together; 0 before it was loaded.
    pub context: u32,
    /// What the catalogue proposes to ask for it.
    pub price: Price,
}

/// What is asked per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Nano-credits for a million tokens of prompts.
    pub input_nano_per_million: u64,
    /// Nano-credits for a million tokens of answers.
    pub output_nano_per_million: u64,
}

/// A model as a node serves it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedModel {
    /// The name by which it is asked for.
    pub name: String,
    /// What the worker loads.
    pub source: ModelSource,
    /// BLAKE3 of the file; of the name for the fake model.
    pub digest: [u8; 32],
    /// Size of the file.
    pub size: u64,
    /// The licence's SPDX identifier, or `unknown`.
    pub licence: String,
    /// The family, or `unknown` before it was loaded.
    pub architecture: String,
    /// What is asked for it.
    pub price: Price,
    /// Jobs at once.
    pub slots: u32,
    /// Threads that compute; without a number, one per physical core.
    pub threads: Option<usize>,
}

impl ServedModel {
    /// Returns what its worker is started with.
    #[must_use]
    pub fn worker_options(&self) -> WorkerOptions {
        WorkerOptions {
            model: self.source.clone(),
            device: DeviceChoice::Auto,
            slots: self.slots,
            context_max: None,
            threads: self.threads,
        }
    }

    /// Returns the fake model, which only a network made with `--dev` permits.
    #[must_use]
    pub fn fake(options: FakeOptions, price: Price, slots: u32) -> Self {
        Self {
            name: FAKE.to_owned(),
            source: ModelSource::Fake(options),
            digest: *blake3::hash(FAKE.as_bytes()).as_bytes(),
            size: 0,
            licence: "CC0-1.0".to_owned(),
            architecture: FAKE.to_owned(),
            price,
            slots,
            threads: Some(1),
        }
    }
}

/// The name of the model without weights.
pub const FAKE: &str = "fake";

/// What a provider asks for a file of its owner's unless told otherwise: what the catalogue asks.
pub const PRICE: Price =
    Price { input_nano_per_million: 1_000_000_000, output_nano_per_million: 4_000_000_000 };

/// Bounds the files of the owner's that are known by name.
const LOCAL_MAX: usize = 1_000;

/// What is going on while a model is made available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process fetches the same model.
    Waiting,
    /// Bytes arrive.
    Fetching {
        /// So many.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// An attempt failed; another follows.
    Retrying {
        /// The number of the next attempt.
        attempt: u32,
        /// Why the last one failed.
        reason: String,
        /// The wait before it.
        in_ms: u64,
    },
    /// The file is compared with its digest.
    Checking {
        /// So many bytes.
        done: u64,
        /// Of so many.
        total: u64,
    },
}

/// Whom to tell what is going on.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// A model as `models ls` lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// What it is.
    pub about: String,
    /// `catalogue` or `file`.
    pub source: String,
    /// Whether its file is on this machine.
    pub present: bool,
    /// Where.
    pub path: Option<PathBuf>,
    /// Size of the file.
    pub size: u64,
    /// The licence's SPDX identifier.
    pub licence: String,
    /// The family.
    pub architecture: String,
    /// Prompt and answer together; 0 if unknown.
    pub context: u32,
    /// BLAKE3 of the file, where it is known.
    pub digest: Option<String>,
    /// SHA-256 that the catalogue pins.
    pub sha256: Option<String>,
    /// What the node that runs here says of it: `ready`, `loading` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<String>,
}

/// The models of this machine.
#[derive(Clone, Debug)]
pub struct Models {
    cache: PathBuf,
    fetcher: Fetcher,
}

impl Models {
    /// Finds the cache: `$SHAREMESH_CACHE`, else the user's own cache folder.
    pub fn open() -> Result<Self, Failure> {
        let cache = cache_folder(|name| std::env::var_os(name))?;
        Ok(Self::at(cache, Fetcher::new("python3")))
    }

    /// Uses a folder as the cache.
    #[must_use]
    pub fn at(cache: PathBuf, fetcher: Fetcher) -> Self {
        Self { cache, fetcher }
    }

    /// Returns the folder where what was fetched is kept.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Lists the catalogue and the registered files.
    pub fn list(&self) -> Result<Vec<ModelView>, Failure> {
        let entries = catalogue::entries();
        let mut views: Vec<_> = entries.iter().map(|entry| self.view_of_entry(entry)).collect();
        views.extend(self.local()?.iter().map(|local| self.view_of_local(local)));
        Ok(views)
    }

    /// Finds a model whose file is here, by name or path; reads the file once if its digest is not known yet.
    pub fn resolve(&self, name: &str, progress: OnProgress<'_>) -> Result<ModelFile, Failure> {
        if let Some(entry) = catalogue::find(name) {
            return self.resolve_entry(entry, progress);
        }
        if let Some(local) = self.local()?.into_iter().find(|local| local.name == name) {
            return self.resolve_path(&local.name, &local.path, progress);
        }
        let path = Path::new(name);
        if is_path(name) || path.is_file() {
            return self.resolve_path(&name_of(path), path, progress);
        }
        Err(unknown(name))
    }

    /// Fetches a model of the catalogue, or registers a file, so that [`Models::resolve`] finds it by name.
    pub async fn pull(&self, name: &str, progress: OnProgress<'_>) -> Result<ModelFile, Failure> {
        if let Some(entry) = catalogue::find(name) {
            let path = self.path_of(entry);
            if !path.is_file() {
                let digests = self.fetcher.fetch(entry, &path, progress).await?;
                self.remember(&path, &digests)?;
            }
            return self.resolve_entry(entry, progress);
        }
        let path = Path::new(name);
        if !is_path(name) && !path.is_file() {
            return Err(unknown(name));
        }
        let file = self.resolve_path(&name_of(path), path, progress)?;
        self.register(&file)?;
        Ok(file)
    }

    /// Deletes the file of a catalogue's model, or forgets a registered file without touching it. Says what it did.
    pub fn remove(&self, name: &str) -> Result<String, Failure> {
        if let Some(entry) = catalogue::find(name) {
            let path = self.path_of(entry);
            let folder = path.parent().unwrap_or(&self.cache);
            if !path.exists() {
                return Err(Failure::new(
                    FailureKind::NotFound,
                    format!("`{}` is not on this machine", entry.name),
                ));
            }
            fs::remove_dir_all(folder).map_err(|error| cannot("delete", folder, &error))?;
            self.remove_requantised(&entry.name);
            return Ok(format!("deleted {}", path.display()));
        }
        let mut local = self.local()?;
        let Some(index) = local.iter().position(|local| local.name == name || Path::new(name) == local.path)
        else {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!("no model `{name}` is on this machine: see `sharemesh models ls`"),
            ));
        };
        let forgotten = local.remove(index);
        self.write_local(&local)?;
        self.remove_requantised(&forgotten.name);
        Ok(format!("forgot {}; the file stays", forgotten.path.display()))
    }

    /// Returns what a node needs to serve a file.
    #[must_use]
    pub fn served(&self, file: &ModelFile, price: Price, slots: u32, threads: Option<usize>) -> ServedModel {
        ServedModel {
            name: file.name.clone(),
            source: ModelSource::Gguf { path: file.path.clone(), cache_dir: self.requantised(&file.name) },
            digest: file.digest,
            size: file.size,
            licence: file.licence.clone(),
            architecture: file.architecture.clone(),
            price,
            slots,
            threads,
        }
    }

    fn path_of(&self, entry: &Entry) -> PathBuf {
        self.cache.join("models").join(&entry.name).join(&entry.file)
    }

    fn requantised(&self, name: &str) -> PathBuf {
        self.cache.join("requantised").join(name)
    }

    fn remove_requantised(&self, name: &str) {
        // Only a cache: what is left behind is found again or replaced.
        let _ = fs::remove_dir_all(self.requantised(name));
    }

    fn resolve_entry(&self, entry: &Entry, progress: OnProgress<'_>) -> Result<ModelFile, Failure> {
        let path = self.path_of(entry);
        if !path.is_file() {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!(
                    "`{0}` is not on this machine: fetch it with `sharemesh models pull {0}`",
                    entry.name
                ),
            ));
        }
        let digests = self.digests(&path, progress)?;
        if digests.sha256 != entry.sha256 {
            return Err(Failure::new(
                FailureKind::Download,
                format!(
                    "{} is damaged: its SHA-256 is {} and should be {}. Remove it with `sharemesh models rm {}` and pull it again",
                    path.display(),
                    digests.sha256,
                    entry.sha256,
                    entry.name
                ),
            ));
        }
        Ok(ModelFile {
            name: entry.name.clone(),
            path,
            size: digests.size,
            digest: digests.blake3_bytes()?,
            sha256: Some(entry.sha256.clone()),
            licence: entry.licence.clone(),
            architecture: entry.architecture.clone(),
            context: entry.context,
            price: entry.price,
        })
    }

    fn resolve_path(&self, name: &str, path: &Path, progress: OnProgress<'_>) -> Result<ModelFile, Failure> {
        let path = fs::canonicalize(path).map_err(|error| cannot("open", path, &error))?;
        check_magic(&path)?;
        let digests = self.digests(&path, progress)?;
        Ok(ModelFile {
            name: name.to_owned(),
            size: digests.size,
            digest: digests.blake3_bytes()?,
            sha256: Some(digests.sha256),
            path,
            licence: "unknown".to_owned(),
            architecture: "unknown".to_owned(),
            context: 0,
            price: PRICE,
        })
    }

    /// Returns a file's digests, from the note about it if size and time of change are as they were.
    fn digests(&self, path: &Path, progress: OnProgress<'_>) -> Result<Digests, Failure> {
        let (size, changed) = stamp(path)?;
        if let Some(digests) =
            self.remembered(path).filter(|known| known.size == size && known.changed == changed)
        {
            return Ok(digests);
        }
        let digests = digest_file(path, progress)?;
        self.remember(path, &digests)?;
        Ok(digests)
    }

    /// Notes are kept in the cache and not beside the file, whose folder may be read-only.
    fn note_of(&self, path: &Path) -> PathBuf {
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        self.cache.join("digests").join(format!("{}.json", &name[..32]))
    }

    fn remembered(&self, path: &Path) -> Option<Digests> {
        serde_json::from_slice(&fs::read(self.note_of(path)).ok()?).ok()
    }

    fn remember(&self, path: &Path, digests: &Digests) -> Result<(), Failure> {
        let (size, changed) = stamp(path)?;
        let digests = Digests { size, changed, ..digests.clone() };
        write_json(&self.note_of(path), &digests)
    }

    fn local(&self) -> Result<Vec<Local>, Failure> {
        let path = self.cache.join("local.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::internal(format!(
                "{} is damaged ({error}): delete it and register your files again",
                path.display()
            ))
        })
    }

    fn write_local(&self, local: &[Local]) -> Result<(), Failure> {
        write_json(&self.cache.join("local.json"), &local)
    }

    fn register(&self, file: &ModelFile) -> Result<(), Failure> {
        let mut local = self.local()?;
        if let Some(other) = local.iter().find(|local| local.name == file.name && local.path != file.path) {
            return Err(Failure::usage(format!(
                "`{0}` already names {1}: remove it with `sharemesh models rm {0}`, or rename the file",
                file.name,
                other.path.display()
            )));
        }
        if local.len() >= LOCAL_MAX {
            return Err(Failure::usage(format!("{LOCAL_MAX} files are registered: remove one first")));
        }
        if !local.iter().any(|local| local.path == file.path) {
            local.push(Local { name: file.name.clone(), path: file.path.clone() });
        }
        self.write_local(&local)
    }

    fn view_of_entry(&self, entry: &Entry) -> ModelView {
        let path = self.path_of(entry);
        let present = path.is_file();
        ModelView {
            name: entry.name.clone(),
            aliases: entry.aliases.clone(),
            about: entry.about.clone(),
            source: "catalogue".to_owned(),
            present,
            digest: self.remembered(&path).filter(|_| present).map(|digests| digests.blake3),
            path: present.then_some(path),
            size: entry.size,
            licence: entry.licence.clone(),
            architecture: entry.architecture.clone(),
            context: entry.context,
            sha256: Some(entry.sha256.clone()),
            serving: None,
        }
    }

    fn view_of_local(&self, local: &Local) -> ModelView {
        let digests = self.remembered(&local.path);
        ModelView {
            name: local.name.clone(),
            about: "a file of yours".to_owned(),
            source: "file".to_owned(),
            present: local.path.is_file(),
            path: Some(local.path.clone()),
            size: digests.as_ref().map_or(0, |digests| digests.size),
            licence: "unknown".to_owned(),
            architecture: "unknown".to_owned(),
            sha256: digests.as_ref().map(|digests| digests.sha256.clone()),
            digest: digests.map(|digests| digests.blake3),
            ..ModelView::default()
        }
    }
}

/// A registered file of the owner's.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Local {
    name: String,
    path: PathBuf,
}

/// What is known of a file's content while its size and time of change stay the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    size: u64,
    /// Nanoseconds since the epoch.
    changed: u64,
    blake3: String,
    /// In hexadecimal.
    pub sha256: String,
}

impl Digests {
    fn blake3_bytes(&self) -> Result<[u8; 32], Failure> {
        let hash = blake3::Hash::from_hex(&self.blake3);
        hash.map(|hash| *hash.as_bytes())
            .map_err(|error| Failure::internal(format!("a damaged digest: {error}")))
    }
}

/// Reads a file once for both digests.
pub fn digest_file(path: &Path, progress: OnProgress<'_>) -> Result<Digests, Failure> {
    let failed = |error| cannot("read", path, &error);
    let (size, changed) = stamp(path)?;
    let mut file = File::open(path).map_err(failed)?;
    let (mut blake3, mut sha256) = (blake3::Hasher::new(), Sha256::new());
    let mut buffer = vec![0; 1024 * 1024];
    let mut done = 0;
    loop {
        progress(Progress::Checking { done, total: size });
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        blake3.update(&buffer[..read]);
        sha256.update(&buffer[..read]);
        done += read as u64;
    }
    let sha256 = data_encoding::HEXLOWER.encode(&sha256.finalize());
    Ok(Digests { size, changed, blake3: blake3.finalize().to_hex().to_string(), sha256 })
}

fn stamp(path: &Path) -> Result<(u64, u64), Failure> {
    let metadata = fs::metadata(path).map_err(|error| cannot("open", path, &error))?;
    let changed =
        metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok((metadata.len(), u64::try_from(changed.as_nanos()).unwrap_or(u64::MAX)))
}

/// Refuses what is clearly another kind of file, before a worker is started for it.
fn check_magic(path: &Path) -> Result<(), Failure> {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    match read {
        Ok(()) if &magic == b"GGUF" => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(cannot("read", path, &error)),
        Ok(()) | Err(_) => Err(Failure::usage(format!(
            "{} is not a GGUF file: choose a model in that format",
            path.display()
        ))),
    }
}

fn cache_folder(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<PathBuf, Failure> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("SHAREMESH_CACHE") {
        return std::path::absolute(&folder).map_err(|error| cannot("use", &folder, &error));
    }
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .or_else(|| set("LOCALAPPDATA"))
        .map(|folder| folder.join("sharemesh"))
        .ok_or_else(|| Failure::usage("no folder for models: set SHAREMESH_CACHE to one"))
}

fn is_path(name: &str) -> bool {
    name.contains(std::path::MAIN_SEPARATOR) || name.to_ascii_lowercase().ends_with(".gguf")
}

fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    stem.chars()
        .map(|letter| if letter.is_alphanumeric() || "-._".contains(letter) { letter } else { '-' })
        .collect()
}

fn unknown(name: &str) -> Failure {
    let names: Vec<_> = catalogue::entries().iter().map(|entry| entry.name.as_str()).collect();
    Failure::new(
        FailureKind::UnknownModel,
        format!(
            "no model `{name}`: the catalogue has {}; or give the path of a GGUF file. `sharemesh models ls` shows all",
            names.join(", ")
        ),
    )
}

/// Says which file could not be used and what may help.
pub(crate) fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    const HELP: [(io::ErrorKind, &str); 5] = [
        (io::ErrorKind::PermissionDenied, ": check its permissions"),
        (io::ErrorKind::StorageFull, ": free some space and try again"),
        (io::ErrorKind::QuotaExceeded, ": free some space and try again"),
        (io::ErrorKind::ReadOnlyFilesystem, ": choose a folder that can be written"),
        (io::ErrorKind::NotFound, ": check the path"),
    ];
    let help = HELP.iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, help)| help);
    Failure::internal(format!("cannot {what} {} ({error}){help}", path.display()))
}

/// Writes a small file so that a reader sees the old content or the new, never a part.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    let failed = |error: &io::Error| cannot("write", path, error);
    let folder = path.parent().expect("files of ours are in folders");
    fs::create_dir_all(folder).map_err(|error| cannot("create", folder, &error))?;
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| Failure::internal(error.to_string()))?;
    // Two processes may write the same note at once.
    let part = path.with_extension(format!("{}.part", std::process::id()));
    fs::write(&part, bytes).and_then(|()| fs::rename(&part, path)).map_err(|error| {
        let _ = fs::remove_file(&part);
        failed(&error)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn models() -> (tempfile::TempDir, Models) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let models = Models::at(folder.path().join("cache"), Fetcher::new("python3"));
        (folder, models)
    }

    fn gguf(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, b"GGUF and more").expect("writable");
        path
    }

    #[tokio::test]
    async fn a_registered_file_is_found_by_name_and_read_only_once() {
        let (folder, models) = models();
        let path = gguf(folder.path(), "My Model.Q8.gguf");
        let file = models.pull(path.to_str().expect("text"), &|_| {}).await.expect("registered");
        assert_eq!(file.name, "my-model.q8");
        assert_eq!(file.digest, *blake3::hash(b"GGUF and more").as_bytes());

        let reads = AtomicUsize::new(0);
        let again = models.resolve("my-model.q8", &|_| {
            reads.fetch_add(1, Ordering::Relaxed);
        });

        assert_eq!(again, Ok(file));
        assert_eq!(reads.into_inner(), 0);
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again() {
        let (folder, models) = models();
        let path = gguf(folder.path(), "a.gguf");
        models.pull(path.to_str().expect("text"), &|_| {}).await.expect("registered");

        fs::write(&path, b"GGUF but different").expect("writable");

        let file = models.resolve("a", &|_| {}).expect("there");
        assert_eq!(file.digest, *blake3::hash(b"GGUF but different").as_bytes());
    }

    #[tokio::test]
    async fn removing_a_registered_file_leaves_the_file() {
        let (folder, models) = models();
        let path = gguf(folder.path(), "a.gguf");
        models.pull(path.to_str().expect("text"), &|_| {}).await.expect("registered");

        models.remove("a").expect("known");

        assert!(path.exists());
        assert_eq!(models.resolve("a", &|_| {}).expect_err("gone").kind, FailureKind::UnknownModel);
        assert_eq!(models.remove("a").expect_err("gone").kind, FailureKind::NotFound);
    }

    #[test]
    fn a_damaged_file_of_the_catalogue_is_refused() {
        let (_folder, models) = models();
        let entry = catalogue::find("smollm2").expect("in the catalogue");
        let path = models.path_of(entry);
        fs::create_dir_all(path.parent().expect("folder")).expect("writable");
        fs::write(&path, b"GGUF cut short").expect("writable");

        let failure = models.resolve("smollm2", &|_| {}).expect_err("damaged");

        assert_eq!(failure.kind, FailureKind::Download);
        assert!(failure.message.contains("models rm smollm2-135m"), "{failure}");
    }

    #[test]
    fn what_is_missing_or_no_model_is_said_clearly() {
        let (folder, models) = models();
        let text = folder.path().join("notes.txt");
        fs::write(&text, "hello").expect("writable");

        let kind = |name: &str| models.resolve(name, &|_| {}).expect_err("not usable").kind;

        assert_eq!(kind("smollm2-135m"), FailureKind::NotFound);
        assert_eq!(kind("nonsense"), FailureKind::UnknownModel);
        assert_eq!(kind(text.to_str().expect("text")), FailureKind::Usage);
        assert_eq!(kind("/nowhere/a.gguf"), FailureKind::Internal);
    }

    #[test]
    fn the_cache_is_where_the_user_says() {
        let folder = |variables: &'static [(&str, &str)]| {
            cache_folder(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };

        assert_eq!(folder(&[("SHAREMESH_CACHE", "/a"), ("HOME", "/h")]), Ok("/a".into()));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Ok("/x/sharemesh".into()));
        assert_eq!(folder(&[("HOME", "/h")]), Ok("/h/.cache/sharemesh".into()));
        assert!(folder(&[]).is_err());
    }
}
