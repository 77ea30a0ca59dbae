//! Judges every dependency by `deny.toml` where cargo-deny is not installed: licences, bans with floors, sources.

use anyhow::{Context as _, Result, ensure};
use semver::{Version, VersionReq};
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use super::context::Context;

/// The part of `deny.toml` that is judged here.
#[derive(Deserialize)]
struct Policy {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    /// `name` or `name:version-requirement`.
    #[serde(rename = "crate")]
    spec: String,
    reason: String,
}

#[derive(Deserialize)]
struct Sources {
    #[serde(rename = "allow-registry")]
    registries: Vec<String>,
}

/// The part of `cargo metadata` that is judged here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: Version,
    license: Option<String>,
    /// Nothing for a path, which only a package of ours is: a test compares those with the architecture.
    source: Option<String>,
}

/// Judges all packages that any feature, platform or test of ours can pull in.
pub(super) fn check(context: &Context) -> Result<()> {
    let policy = std::fs::read_to_string(context.root.join("deny.toml")).context("cannot read deny.toml")?;
    let policy: Policy = toml::from_str(&policy).context("deny.toml is not as expected")?;
    let metadata = context.output("cargo", &["metadata", "--format-version", "1", "--all-features"])?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata is not as expected")?;

    let complaints = complaints(&policy, &metadata.packages)?;
    ensure!(complaints.is_empty(), "deny.toml forbids:\n{}", complaints.join("\n"));
    context.say(&format!(
        "{} packages: licences, bans and sources as deny.toml wants them",
        metadata.packages.len()
    ));
    Ok(())
}

fn complaints(policy: &Policy, packages: &[Package]) -> Result<Vec<String>> {
    let bans = policy.bans.deny.iter().map(parsed_ban).collect::<Result<Vec<_>>>()?;
    let mut complaints = Vec::new();
    for package in packages {
        let mut complain =
            |why: String| complaints.push(format!("{} {}: {why}", package.name, package.version));
        for (name, versions, reason) in &bans {
            if *name == package.name && versions.matches(&package.version) {
                complain(format!("banned ({reason})"));
            }
        }
        if let Some(source) = &package.source
            && !policy
                .sources
                .registries
                .iter()
                .any(|allowed| source.strip_prefix("registry+") == Some(allowed))
        {
            complain(format!("comes from {source}"));
        }
        if !licence_allowed(&policy.licenses, package)? {
            complain(format!("licence {}", package.license.as_deref().unwrap_or("not stated")));
        }
    }
    Ok(complaints)
}

fn parsed_ban(ban: &Ban) -> Result<(&str, VersionReq, &str)> {
    let (name, versions) = ban.spec.split_once(':').unwrap_or((&ban.spec, "*"));
    let versions =
        versions.parse().with_context(|| format!("deny.toml bans `{}`, which is no range", ban.spec))?;
    Ok((name, versions, &ban.reason))
}

fn licence_allowed(licences: &Licences, package: &Package) -> Result<bool> {
    let Some(expression) = &package.license else { return Ok(false) };
    // Lax: old manifests write `MIT/Apache-2.0`.
    let Ok(expression) = Expression::parse_mode(expression, ParseMode::LAX) else { return Ok(false) };
    let exceptions = licences.exceptions.iter().filter(|exception| exception.name == package.name);
    let allowed = licences.allow.iter().chain(exceptions.flat_map(|exception| &exception.allow));
    let allowed = allowed
        .map(|name| {
            Licensee::parse(name).with_context(|| format!("deny.toml allows `{name}`, which is no licence"))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(expression.evaluate(|wanted| allowed.iter().any(|licensee| licensee.satisfies(wanted))))
}

#[cfg(test)]
mod tests {
    use super::{Package, Policy, complaints};

    const POLICY: &str = r#"
        licenses = { allow = ["MIT", "ISC"], exceptions = [{ crate = "special", allow = ["MPL-2.0"] }] }
        bans = { deny = [
            { crate = "mesh:<0.57.1", reason = "floor" },
            { crate = "bincode", reason = "unmaintained" },
        ] }
        sources = { allow-registry = ["https://example.org/index"] }
    "#;

    fn check(name: &str, version: &str, license: &str, source: Option<&str>, expected: &[&str]) {
        let policy: Policy = toml::from_str(POLICY).unwrap();
        let license = (!license.is_empty()).then(|| license.to_owned());
        let source = source.map(str::to_owned);
        let package = Package { name: name.to_owned(), version: version.parse().unwrap(), license, source };

        assert_eq!(complaints(&policy, &[package]).unwrap(), expected);
    }

    #[test]
    fn a_version_below_the_floor_is_refused() {
        check("mesh", "0.57.0", "MIT", None, &["mesh 0.57.0: banned (floor)"]);
        check("mesh", "0.57.1", "MIT", None, &[]);
    }

    #[test]
    fn a_ban_without_a_range_refuses_every_version() {
        check("bincode", "2.0.1", "MIT", None, &["bincode 2.0.1: banned (unmaintained)"]);
    }

    #[test]
    fn one_allowed_licence_of_a_choice_is_enough_and_one_forbidden_of_a_sum_too_many() {
        check("a", "1.0.0", "GPL-3.0-only OR MIT", None, &[]);
        check("a", "1.0.0", "GPL-3.0-only/MIT", None, &[]);
        check("a", "1.0.0", "ISC AND MIT", None, &[]);
        check("a", "1.0.0", "GPL-3.0-only AND MIT", None, &["a 1.0.0: licence GPL-3.0-only AND MIT"]);
        check("a", "1.0.0", "", None, &["a 1.0.0: licence not stated"]);
    }

    #[test]
    fn an_exception_holds_for_its_crate_only() {
        check("special", "1.0.0", "MPL-2.0", None, &[]);
        check("other", "1.0.0", "MPL-2.0", None, &["other 1.0.0: licence MPL-2.0"]);
    }

    #[test]
    fn only_the_allowed_registry_is_a_source() {
        check("a", "1.0.0", "MIT", Some("registry+https://example.org/index"), &[]);
        check(
            "a",
            "1.0.0",
            "MIT",
            Some("git+https://example.org/a"),
            &["a 1.0.0: comes from git+https://example.org/a"],
        );
    }
}
