//! Who may use the API: holders of the token in `<data>/node.json`, and no web page.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Request, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};

use super::Api;
use super::caller::Connection;
use crate::api_keys::PREFIX;
use crate::exit::{Failure, FailureKind};
use crate::folder::{Access, write_atomically};
use crate::models::cannot;

/// What allows its holder everything the owner may do.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token(..)")
    }
}

impl Token {
    /// Draws a new one: 32 random bytes in hexadecimal.
    #[must_use]
    pub fn draw() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system has randomness");
        Self(data_encoding::HEXLOWER.encode(&bytes))
    }

    /// Returns the text of the `Authorization` header.
    #[must_use]
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    pub(super) fn is(&self, other: &str) -> bool {
        // Hashes are compared, whose common beginning says nothing about the token.
        blake3::hash(self.0.as_bytes()) == blake3::hash(other.as_bytes())
    }
}

/// How programs on this machine find a running node: `<data>/node.json`, for its owner's eyes only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// The program's version.
    pub version: String,
    /// Where the API listens.
    pub api: SocketAddr,
    /// What to show there.
    pub token: Token,
    /// The node's process.
    pub pid: u32,
}

impl NodeFile {
    /// Returns where it is.
    #[must_use]
    pub fn path(data: &Path) -> PathBuf {
        data.join("node.json")
    }

    /// Writes it, readable by the owner only from its first byte on.
    pub fn write(&self, data: &Path) -> Result<(), Failure> {
        let path = Self::path(data);
        let json = serde_json::to_vec_pretty(self).map_err(|error| Failure::internal(error.to_string()))?;
        write_atomically(&path, &json, Access::Private).map_err(|error| cannot("write", &path, &error))
    }

    /// Reads it; an error says that no node runs there.
    pub fn read(data: &Path) -> Result<Self, Failure> {
        let path = Self::path(data);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(not_running(&format!("no node is running in {}", data.display())));
            }
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        let file: Self = serde_json::from_slice(&bytes)
            .map_err(|_| not_running(&format!("{} is damaged, so no node can be found", path.display())))?;
        if !is_running(file.pid) {
            return Err(not_running(&format!("the node of {} has ended without saying so", data.display())));
        }
        Ok(file)
    }

    /// Removes it if it is this process's.
    pub fn remove(&self, data: &Path) {
        let path = Self::path(data);
        let ours = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        if ours.is_some_and(|file| file == *self) {
            // A stale file is recognised by its process.
            let _ = fs::remove_file(path);
        }
    }
}

/// Says that no node runs and how to start one.
pub(crate) fn not_running(what: &str) -> Failure {
    Failure::new(FailureKind::NotRunning, format!("{what}: start it with `sharemesh up`"))
}

/// Returns whether a process lives, as far as it can be known without asking it: where `/proc` is missing, yes.
fn is_running(pid: u32) -> bool {
    !Path::new("/proc/self").exists() || Path::new("/proc").join(pid.to_string()).exists()
}

/// Refuses requests that a web page can make by pointing its own name at this machine.
///
/// Whoever comes from elsewhere or shows a key may use any name for this machine: the key is what lets it in.
pub(super) async fn require_local_host(
    State(api): State<Api>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let may_be_named = !connection.is_local() || bearer(request.headers()).starts_with(PREFIX);
    let is_foreign =
        has_foreign_origin(request.headers()) && !api.origins.allow(request.headers(), request.uri());
    if (may_be_named || host.is_some_and(is_local)) && !is_foreign {
        return next.run(request).await;
    }
    let words = "this API answers only to 127.0.0.1, [::1] and localhost, and to no page of a site that its owner has not named (`--cors-origin`)";
    super::refuse(request.uri(), Failure::new(FailureKind::Forbidden, words))
}

fn has_foreign_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let name = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    !name.is_some_and(|(_, host)| is_local(host))
}

fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    matches!(name, "127.0.0.1" | "[::1]" | "localhost")
}

/// Returns what a request shows as its key; nothing is an empty word.
pub(super) fn bearer(headers: &HeaderMap) -> &str {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, key) = shown.and_then(|shown| shown.split_once(' ')).unwrap_or_default();
    if scheme.eq_ignore_ascii_case("bearer") { key.trim_start_matches(' ') } else { "" }
}

/// Refuses requests without the token, which counts on this machine only.
pub(super) async fn require_token(
    State(api): State<Api>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let shown = bearer(request.headers());
    if !connection.is_local() || api.keys.find(shown).is_some() {
        return owner_only().into_response();
    }
    if api.token.is(shown) {
        return next.run(request).await;
    }
    Failure::new(
        FailureKind::Unauthorised,
        "the token is missing or wrong: send `Authorization: Bearer TOKEN` with the one in node.json in the node's data folder",
    )
    .into_response()
}

/// Says that something is not for keys, nor for other machines.
pub(super) fn owner_only() -> Failure {
    Failure::new(
        FailureKind::Forbidden,
        "this is for the node's owner, on its own machine: keys and other machines can use the endpoints under /v1",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node_file(pid: u32) -> NodeFile {
        NodeFile {
            version: "0".to_owned(),
            api: "127.0.0.1:7433".parse().expect("address"),
            token: Token::draw(),
            pid,
        }
    }

    #[test]
    fn a_node_file_is_found_again_and_private() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = node_file(std::process::id());

        file.write(folder.path()).expect("writable");

        assert_eq!(NodeFile::read(folder.path()), Ok(file.clone()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(NodeFile::path(folder.path())).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        file.remove(folder.path());
        assert!(!NodeFile::path(folder.path()).exists());
    }

    #[test]
    fn another_nodes_file_is_not_removed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        node_file(std::process::id()).write(folder.path()).expect("writable");

        node_file(std::process::id()).remove(folder.path());

        assert!(NodeFile::path(folder.path()).exists());
    }

    #[test]
    fn no_node_a_dead_one_and_a_damaged_file_all_say_how_to_start_one() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let kind = || {
            let failure = NodeFile::read(folder.path()).expect_err("no node");
            assert!(failure.message.contains("`sharemesh up`"), "{failure}");
            failure.kind
        };

        assert_eq!(kind(), FailureKind::NotRunning);
        // Above the largest process id that Linux gives.
        node_file(4_194_305).write(folder.path()).expect("writable");
        if Path::new("/proc/self").exists() {
            assert_eq!(kind(), FailureKind::NotRunning);
        }
        fs::write(NodeFile::path(folder.path()), "{").expect("writable");
        assert_eq!(kind(), FailureKind::NotRunning);
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["127.0.0.1:7433", "localhost", "[::1]:80", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["example.org", "127.0.0.1.example.org:7433", "localhost.example.org", "", "evil:127.0.0.1"]
        {
            assert!(!is_local(host), "{host}");
        }
    }
}
