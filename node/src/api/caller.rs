//! Who may call the endpoints that other programs speak: whoever shows the token, and programs of the node's own user.
//!
//! A request that shows no token must come from a process of the same user, and from no web page. Where the system does
//! not say whose a connection is, only the token counts.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, Request, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::serve::{IncomingStream, Listener};
use tokio::net::{TcpListener, TcpStream};

use super::Api;
use super::auth::Token;
use super::openai::Refusal;
use crate::exit::{Failure, FailureKind};

/// Digits of a token: what looks like one and is not ours is refused rather than taken for no key.
const TOKEN_DIGITS: usize = 64;

/// One connection to the API, and whose it is once that was asked.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The other end and ours.
    ends: Option<(SocketAddr, SocketAddr)>,
    own: Arc<OnceLock<bool>>,
}

/// The API's port; each connection knows its two ends.
pub(super) struct LocalListener(pub(super) TcpListener);

impl Listener for LocalListener {
    type Io = TcpStream;
    type Addr = Connection;

    async fn accept(&mut self) -> (TcpStream, Connection) {
        let (stream, there) = Listener::accept(&mut self.0).await;
        // Tokens are small and must not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "Cannot send small packets at once");
        }
        let ends = stream.local_addr().ok().map(|here| (there, here));
        (stream, Connection { ends, own: Arc::default() })
    }

    fn local_addr(&self) -> io::Result<Connection> {
        TcpListener::local_addr(&self.0)
            .map(|here| Connection { ends: Some((here, here)), own: Arc::default() })
    }
}

impl Connected<IncomingStream<'_, LocalListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, LocalListener>) -> Self {
        stream.remote_addr().clone()
    }
}

impl Connection {
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

/// Lets through whoever may use the node's credits.
pub(super) async fn require_caller(
    State(api): State<Api>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request<Body>,
    next: Next,
) -> Response {
    match shown(request.headers(), &api.token) {
        Shown::Token => return next.run(request).await,
        Shown::Wrong => return unauthorised("the key is wrong").into_response(),
        Shown::Nothing => {}
    }
    if let Err(failure) = check_no_page(request.method(), request.headers()) {
        return Refusal::from(failure).into_response();
    }
    if connection.is_own().await {
        return next.run(request).await;
    }
    unauthorised(
        "a key is needed, because this connection cannot be shown to be one of the user who runs the node",
    )
    .into_response()
}

enum Shown {
    Token,
    Wrong,
    Nothing,
}

/// Looks at the key of a request. Clients cannot do without one, so a word that cannot be ours counts as none.
fn shown(headers: &HeaderMap, token: &Token) -> Shown {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Shown::Nothing };
    let key = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
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
fn check_no_page(method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if headers.contains_key(header::ORIGIN) || site.is_some_and(|site| site != b"none") {
        let words =
            "web pages cannot use this API, and programs that send `Origin` must show the token of node.json";
        return Err(Failure::new(FailureKind::Forbidden, words));
    }
    // A page cannot send JSON without being asked for permission first, which is never given.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if method == Method::POST && !kind.eq_ignore_ascii_case("application/json") {
        return Err(Failure::usage(
            "send the body as JSON, with the header `Content-Type: application/json`",
        ));
    }
    Ok(())
}

fn unauthorised(what: &str) -> Refusal {
    Failure::new(
        FailureKind::Unauthorised,
        format!(
            "{what}: send `Authorization: Bearer TOKEN` with the token of node.json in the node's data folder"
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
            assert_eq!(check(&[json, page]).expect_err("a page").kind, FailureKind::Forbidden, "{page:?}");
        }
        // What a form can send without asking.
        assert!(check(&[]).is_err());
        assert!(check(&[("content-type", "text/plain")]).is_err());
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
