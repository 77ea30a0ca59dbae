//! Who may call the endpoints that other programs speak: whoever shows a key, or the token, and programs of the node's own
//! user.
//!
//! A request that shows neither must come from a process of the same user, and from no web page. Where the system does
//! not say whose a connection is, and from other machines, only keys count.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::Extension;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, Method, Request, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Api;
use super::auth::{Token, bearer, owner_only};
use super::openai::Refusal;
use crate::api_keys::{KeyId, PREFIX};
use crate::exit::{Failure, FailureKind};

/// Digits of a token: what looks like one and is not ours is refused rather than taken for no key.
const TOKEN_DIGITS: usize = 64;

/// What proxies add to the requests of others, who must not be taken for the user that runs the proxy.
const PASSED_ON: [&str; 5] = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];

/// One connection to the API, and whose it is once that was asked.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The other end and ours.
    ends: Option<(SocketAddr, SocketAddr)>,
    own: Arc<OnceLock<bool>>,
}

/// Who sends a request, and so who pays for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// The node's owner, or a program of the same user: all that the account has.
    Owner,
    /// Whoever has a key: what it was given.
    Key(KeyId),
}

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner => formatter.write_str("owner"),
            Self::Key(key) => write!(formatter, "key {key}"),
        }
    }
}

impl Connection {
    /// Makes one of its other end and ours.
    pub(super) fn between(ends: Option<(SocketAddr, SocketAddr)>) -> Self {
        Self { ends, own: Arc::default() }
    }

    /// Says whether both ends are addresses that only this machine has.
    pub(super) fn is_local(&self) -> bool {
        let loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        self.ends.is_some_and(|(there, here)| loopback(there) && loopback(here))
    }

    /// Says whether the other end is a process of our own user.
    async fn is_own(&self) -> bool {
        if let Some(own) = self.own.get() {
            return *own;
        }
        let Some((there, here)) = self.ends else { return false };
        let looked = tokio::task::spawn_blocking(move || same_user(there, here)).await.unwrap_or(false);
        *self.own.get_or_init(|| looked)
    }
}

/// Lets through whoever may use the node's credits, and says to the rest who it is.
pub(super) async fn require_caller(
    State(api): State<Api>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let caller = match caller(&api, &connection, request.method(), request.headers()).await {
        Ok(caller) => caller,
        Err(refusal) => return refusal.into_response(),
    };
    let room = match &caller {
        Caller::Key(key) => match api.keys.request(key) {
            Ok(room) => Some(room),
            Err(failure) => return Refusal::from(failure).into_response(),
        },
        Caller::Owner => None,
    };
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).await;
    if let Some((limit, left)) = room {
        response.headers_mut().insert("x-ratelimit-limit-requests", HeaderValue::from(limit));
        response.headers_mut().insert("x-ratelimit-remaining-requests", HeaderValue::from(left));
    }
    response
}

/// Lets through the owner alone, where [`require_caller`] has let somebody through.
pub(super) async fn require_owner(
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
    next: Next,
) -> Response {
    match caller {
        Caller::Owner => next.run(request).await,
        Caller::Key(_) => Refusal::from(owner_only()).into_response(),
    }
}

/// Says whether a request is none of the owner's, as far as can be told before it is looked at: from another machine, or
/// with a key.
pub(super) fn is_guest(request: &Request<Body>) -> bool {
    let connection = request.extensions().get::<ConnectInfo<Connection>>();
    let is_local = connection.is_some_and(|ConnectInfo(connection)| connection.is_local());
    !is_local || bearer(request.headers()).starts_with(PREFIX)
}

/// Finds out who sends a request, or why it may not.
async fn caller(
    api: &Api,
    connection: &Connection,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Caller, Refusal> {
    let shown_key = bearer(headers);
    if shown_key.starts_with(PREFIX) {
        let found = api.keys.find(shown_key).map(Caller::Key);
        return found.ok_or_else(|| unauthorised("the key is wrong, or was revoked"));
    }
    if !connection.is_local() {
        return Err(unauthorised("a key is needed on other machines than the node's own"));
    }
    match shown(headers, &api.token) {
        Shown::Token => return Ok(Caller::Owner),
        Shown::Wrong => return Err(unauthorised("the key is wrong")),
        Shown::Nothing => {}
    }
    check_no_page(method, headers)?;
    if PASSED_ON.iter().any(|name| headers.contains_key(*name)) {
        return Err(unauthorised("a key is needed for what a proxy passes on"));
    }
    if connection.is_own().await {
        return Ok(Caller::Owner);
    }
    Err(unauthorised(
        "a key is needed, because this connection cannot be shown to be one of the user who runs the node",
    ))
}

enum Shown {
    Token,
    Wrong,
    Nothing,
}

/// Looks at the key of a request. Clients cannot do without one, so a word that cannot be ours counts as none.
fn shown(headers: &HeaderMap, token: &Token) -> Shown {
    let key = bearer(headers);
    let looks_like_ours = key.len() == TOKEN_DIGITS && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    if token.is(key) {
        Shown::Token
    } else if looks_like_ours {
        Shown::Wrong
    } else {
        Shown::Nothing
    }
}

/// Refuses what a browser sends on behalf of a page, whichever site it comes from.
fn check_no_page(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if headers.contains_key(header::ORIGIN) || site.is_some_and(|site| site != b"none") {
        let words = "web pages need a key, and an origin that the owner names (`--cors-origin`); programs that send `Origin` must show a \
             key or the token of node.json";
        return Err(Failure::new(FailureKind::Forbidden, words).into());
    }
    // A page cannot send JSON without being asked for permission first, which only named ones are given.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if method == Method::POST && !kind.eq_ignore_ascii_case("application/json") {
        return Err(Refusal::unsupported_media());
    }
    Ok(())
}

fn unauthorised(what: &str) -> Refusal {
    Failure::new(
        FailureKind::Unauthorised,
        format!(
            "{what}: send `Authorization: Bearer KEY` with a key that the node's owner made with `sharemesh keys create`"
        ),
    )
    .into()
}

/// Says whether both ends of a connection belong to the same user; the system's table of connections knows.
#[cfg(target_os = "linux")]
fn same_user(there: SocketAddr, here: SocketAddr) -> bool {
    use procfs::net::{TcpNetEntry, TcpState, tcp, tcp6};

    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (there, here) = (plain(there), plain(here));
    let tables = [tcp(), tcp6()].into_iter().flatten().flatten();
    // The end of a socket that its process has closed is shown as the administrator's.
    let open: Vec<TcpNetEntry> = tables.filter(|entry| entry.state == TcpState::Established).collect();
    let owner = |local, remote| {
        let ends = |entry: &&TcpNetEntry| (plain(entry.local_address), plain(entry.remote_address));
        open.iter().find(|entry| ends(entry) == (local, remote)).map(|entry| entry.uid)
    };
    let nobody = overflow_user();
    owner(here, there).is_some_and(|own| own != nobody && owner(there, here) == Some(own))
}

/// Returns the user as whom the system shows every user that this namespace does not know.
#[cfg(target_os = "linux")]
fn overflow_user() -> u32 {
    let known = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
    known.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_534)
}

/// Says that it is not known whose a connection is.
#[cfg(not(target_os = "linux"))]
fn same_user(_: SocketAddr, _: SocketAddr) -> bool {
    false
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (header::HeaderName::from_static(name), header::HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_page_of_any_site_is_told_from_a_program() {
        let json = ("content-type", "application/json; charset=utf-8");
        let check = |pairs: &[(&'static str, &'static str)]| check_no_page(&Method::POST, &headers(pairs));

        assert!(check(&[json]).is_ok());
        assert!(check(&[json, ("sec-fetch-site", "none")]).is_ok());
        for page in [
            ("origin", "https://evil.example"),
            ("origin", "http://localhost:3000"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(check(&[json, page]).expect_err("a page").status(), 403, "{page:?}");
        }
        // What a form can send without asking.
        assert_eq!(check(&[]).expect_err("no kind").status(), 415);
        assert_eq!(check(&[("content-type", "text/plain")]).expect_err("a form").status(), 415);
        assert!(check_no_page(&Method::GET, &headers(&[])).is_ok());
    }

    #[test]
    fn a_word_that_is_no_token_is_no_key_and_a_wrong_token_is_wrong() {
        let token = Token::draw();
        let shown = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
            super::shown(&headers, &token)
        };

        assert!(matches!(shown(&token.header()), Shown::Token));
        assert!(matches!(shown(&Token::draw().header()), Shown::Wrong));
        assert!(matches!(shown("Bearer unused"), Shown::Nothing));
        assert!(matches!(shown("Basic dXNlcg=="), Shown::Nothing));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_connection_of_the_same_user_is_known_and_one_that_is_not_there_is_not() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(any).await else { continue };
            let here = listener.local_addr().expect("bound");
            let there = TcpStream::connect(here).await.expect("listening");
            let there = there.local_addr().map(|address| (there, address)).expect("connected");

            assert!(same_user(there.1, here), "{any}");

            assert!(!same_user(here, here), "{any}");
            drop(there.0);
        }
    }
}
