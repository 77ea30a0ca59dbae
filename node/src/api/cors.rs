//! Which web pages may use the API: none, unless the owner names their origins.
//!
//! A browser asks first what a page of another site may send (CORS). Pages of named origins may send what programs may, to
//! the endpoints for programs alone, and need a key for it as another user's programs do.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, AllowPrivateNetwork, CorsLayer};

use crate::exit::Failure;

/// Bounds the origins: configured by hand, and each request of a page is compared with all.
const ORIGINS_MAX: usize = 64;

/// Bounds an origin: a name has at most 253 bytes.
const ORIGIN_BYTES_MAX: usize = 300;

/// For how long a browser need not ask again.
const AGE_MAX: Duration = Duration::from_secs(600);

/// Headers of answers that a page may read.
const READABLE: [HeaderName; 11] = [
    header::RETRY_AFTER,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-sharemesh-ignored"),
    HeaderName::from_static("x-sharemesh-job"),
    HeaderName::from_static("x-sharemesh-price"),
    HeaderName::from_static("x-sharemesh-provider"),
    HeaderName::from_static("x-sharemesh-receipt"),
    HeaderName::from_static("x-sharemesh-replayed"),
];

/// Origins of web pages that may use the endpoints for programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Arc<[HeaderValue]>);

impl Origins {
    /// Reads origins as a person writes them.
    ///
    /// # Errors
    /// When one is none, or stands for many.
    pub fn parse(given: &[String]) -> Result<Self, Failure> {
        if given.len() > ORIGINS_MAX {
            return Err(Failure::usage(format!("at most {ORIGINS_MAX} origins of web pages can be allowed")));
        }
        given.iter().map(|text| parse(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Says whether a request is a named page's to an endpoint for programs.
    pub(super) fn allow(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let origin = headers.get(header::ORIGIN);
        is_for_programs(uri) && origin.is_some_and(|origin| self.0.contains(origin))
    }

    /// Returns what tells browsers so; nothing if no page is named.
    pub(super) fn layer(&self) -> Option<CorsLayer> {
        if self.0.is_empty() {
            return None;
        }
        let origins = self.clone();
        let allowed = AllowOrigin::predicate(move |_, request| origins.allow(&request.headers, &request.uri));
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST])
            // Official clients send a dozen names of their own, which change with them.
            .allow_headers(AllowHeaders::mirror_request())
            // A page from the internet that asks this machine is asked about it apart.
            .allow_private_network(AllowPrivateNetwork::yes())
            .expose_headers(READABLE)
            .max_age(AGE_MAX);
        Some(layer)
    }
}

fn is_for_programs(uri: &Uri) -> bool {
    uri.path().starts_with("/v1/") || uri.path().starts_with("/api/")
}

/// Reads one origin, and writes it as browsers do: in small letters, an address in its short form, and without the port that
/// its scheme has anyway.
fn parse(text: &str) -> Result<HeaderValue, Failure> {
    if text.contains('*') {
        return Err(Failure::usage(format!(
            "`{text}` would let the pages of many sites in, and any of them could spend what a key of yours allows: name each \
             origin, as in --cors-origin https://app.example"
        )));
    }
    let wrong = || {
        Failure::usage(format!(
            "`{text}` is no origin of web pages: write scheme, name and port if there is one, without a path, as in \
             --cors-origin https://app.example or --cors-origin http://localhost:5173"
        ))
    };
    let lower = text.to_ascii_lowercase();
    let (scheme, host) = lower.split_once("://").ok_or_else(wrong)?;
    let host = match scheme {
        "https" => host.strip_suffix(":443").unwrap_or(host),
        "http" => host.strip_suffix(":80").unwrap_or(host),
        _ => host,
    };
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let is_sound = lower.len() <= ORIGIN_BYTES_MAX
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(is_scheme);
    let host = host_of(host).filter(|_| is_sound).ok_or_else(wrong)?;
    HeaderValue::try_from(format!("{scheme}://{host}")).map_err(|_| wrong())
}

/// Reads a name or an address, with a port or without; none if it is neither.
fn host_of(text: &str) -> Option<String> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        Some(_) | None => (text, None),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let name = match address {
        Some(address) => format!("[{}]", ipv6_of(address)?),
        None => Some(name).filter(|name| !name.is_empty() && name.bytes().all(is_name))?.to_owned(),
    };
    match port {
        Some(port) => is_port(port).then(|| format!("{name}:{port}")),
        None => Some(name),
    }
}

/// Writes an address in its short form, which in browsers has no part with dots.
fn ipv6_of(text: &str) -> Option<String> {
    let address: Ipv6Addr = text.parse().ok()?;
    let written = match address.to_ipv4_mapped() {
        Some(_) => {
            let [.., high, low] = address.segments();
            format!("::ffff:{high:x}:{low:x}")
        }
        None => address.to_string(),
    };
    Some(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::{Served, served_for};

    fn origins(given: &[&str]) -> Result<Origins, Failure> {
        Origins::parse(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for (text, expected) in [
            ("https://app.example", "https://app.example"),
            ("HTTPS://App.Example:443", "https://app.example"),
            ("http://localhost:5173", "http://localhost:5173"),
            ("http://[::1]:80", "http://[::1]"),
            ("http://[::1]", "http://[::1]"),
            ("http://[0:0:0:0:0:0:0:1]:5173", "http://[::1]:5173"),
            ("http://[FE80:0::01]", "http://[fe80::1]"),
            ("http://[::ffff:127.0.0.1]", "http://[::ffff:7f00:1]"),
            ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
        ] {
            assert_eq!(*origins(&[text]).expect(text).0, [HeaderValue::from_static(expected)]);
        }
        for wrong in [
            "",
            "null",
            "app.example",
            "https://",
            "https://app.example/",
            "https://app.example/page",
            "https://me@app.example",
            "https://app.example:port",
            "https://app.example:99999",
            "https://two words",
            "https://[1]",
            "1://app.example",
        ] {
            assert!(origins(&[wrong]).expect_err(wrong).message.contains("no origin"), "{wrong}");
        }
        for many in ["*", "https://*.example", "https://app.example:*"] {
            assert!(origins(&[many]).expect_err(many).message.contains("name each"), "{many}");
        }
        assert!(origins(&["https://a.example"; ORIGINS_MAX + 1]).is_err());
    }

    async fn ask(served: &Served, method: &str, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let http = reqwest::Client::builder().no_proxy().build().expect("plain");
        let method = method.parse().expect("a method");
        let mut request = http.request(method, format!("http://{}{path}", served.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.expect("answered")
    }

    fn said(response: &reqwest::Response, name: &str) -> String {
        let value = response.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        value.unwrap_or_default()
    }

    const PREFLIGHT: [(&str, &str); 3] = [
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type,idempotency-key,x-stainless-lang"),
        ("access-control-request-private-network", "true"),
    ];

    const CHAT: &str = "/v1/chat/completions";

    #[tokio::test]
    async fn a_page_that_is_named_may_ask_and_read_with_a_key_and_no_other_may() {
        let served = served_for(origins(&["https://app.example"]).expect("sound")).await;
        let (ours, other) = (("origin", "https://app.example"), ("origin", "https://evil.example"));

        let asked = ask(&served, "OPTIONS", CHAT, &[&PREFLIGHT[..], &[ours]].concat()).await;
        assert_eq!(asked.status(), 200);
        assert_eq!(said(&asked, "access-control-allow-origin"), "https://app.example");
        assert_eq!(said(&asked, "access-control-allow-headers"), PREFLIGHT[1].1);
        assert!(said(&asked, "access-control-allow-methods").contains("POST"));
        assert_eq!(said(&asked, "access-control-allow-private-network"), "true");
        assert_eq!(said(&asked, "access-control-max-age"), "600");
        let refused = ask(&served, "OPTIONS", CHAT, &[&PREFLIGHT[..], &[other]].concat()).await;
        assert_eq!(said(&refused, "access-control-allow-origin"), "");
        let owners = ask(&served, "OPTIONS", "/sharemesh/v1/jobs", &[&PREFLIGHT[..], &[ours]].concat()).await;
        assert_eq!(said(&owners, "access-control-allow-origin"), "");

        let models = "/v1/models";
        let token = served.token.header();
        let key = ("authorization", token.as_str());
        let answer = ask(&served, "GET", models, &[ours, key]).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(said(&answer, "access-control-allow-origin"), "https://app.example");
        for name in ["x-request-id", "retry-after", "x-sharemesh-job", "x-sharemesh-price"] {
            assert!(said(&answer, "access-control-expose-headers").contains(name), "{name}");
        }
        // It is told from the user's own programs, which need no key; the error can be read.
        let bare = ask(&served, "GET", models, &[ours]).await;
        assert_eq!(bare.status(), 403);
        assert_eq!(said(&bare, "access-control-allow-origin"), "https://app.example");
        assert_eq!(ask(&served, "GET", models, &[other, key]).await.status(), 403);
        // A page that points its own name here stays out, and what is the owner's stays the owner's.
        assert_eq!(ask(&served, "GET", models, &[("host", "evil.example"), ours, key]).await.status(), 403);
        assert_eq!(ask(&served, "GET", "/sharemesh/v1/status", &[ours, key]).await.status(), 403);
        assert_eq!(ask(&served, "GET", "/metrics", &[ours, key]).await.status(), 403);
    }

    #[tokio::test]
    async fn no_page_is_let_in_unless_one_is_named() {
        let served = served_for(Origins::default()).await;

        let page = ("origin", "https://app.example");
        let asked = ask(&served, "OPTIONS", CHAT, &[&PREFLIGHT[..], &[page]].concat()).await;

        assert_eq!(asked.status(), 403);
        assert_eq!(said(&asked, "access-control-allow-origin"), "");
    }
}
