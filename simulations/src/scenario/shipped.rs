//! The scenarios that come with the program, and reading one by name or path.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::Scenario;

/// Bounds the text of a scenario.
const BYTES_MAX: u64 = 1 << 20;

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../scenarios/", $name, ".toml")))),*]
    };
}

/// Names and texts of the scenarios that come with the program.
pub const SHIPPED: [(&str, &str); 17] = shipped![
    "home",
    "studio",
    "campus",
    "night-and-day",
    "churn",
    "disk-loss",
    "partition",
    "issuer-failure",
    "overload",
    "sybil",
    "adversaries",
    "haggle",
    "poison",
    "city",
    "traffic",
    "smoke",
    "smoke-four-issuers",
];

/// Reads the scenario in the file `path`, or, where there is no such file, the one of that name that comes with the
/// program.
///
/// # Errors
/// When there is none, or it is not a scenario.
pub fn read(path: &str) -> anyhow::Result<Scenario> {
    let text = match std::fs::metadata(path) {
        Ok(found) if found.len() > BYTES_MAX => bail!("{path} is larger than a scenario can be"),
        Ok(_) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?,
        Err(_) => of_name(path)?.to_owned(),
    };
    Scenario::parse(&text).with_context(|| format!("{path} is not a scenario"))
}

fn of_name(path: &str) -> anyhow::Result<&'static str> {
    let name = Path::new(path).file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let shipped = SHIPPED.iter().find(|(shipped, _)| *shipped == name);
    let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
    let text = shipped.map(|(_, text)| *text);
    text.with_context(|| format!("there is no file {path}; scenarios of the program: {}", names.join(", ")))
}
