//! The HTTP API: what the command line and other programs speak with, on this machine or with a key.
//!
//! In reading order: [`views`] is what is said, [`auth`] who may say it, `node`, `keys` and `jobs` answer, `sse` streams,
//! `coalesced` writes at once what is ready of a stream, and `fallback` has somebody else go on with an answer that broke off.
//! `openai` is the same for programs made for OpenAI's API; `caller` says which of them may spend, `spending` how much, `cors`
//! which web pages, and `doors` has the ports.

mod account;
pub mod auth;
mod caller;
mod coalesced;
pub mod cors;
mod doors;
#[cfg(test)]
pub(crate) mod fake;
mod fallback;
mod jobs;
pub(crate) mod keys;
mod node;
mod openai;
mod openapi;
mod spending;
mod sse;
mod transfers;
pub mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, MatchedPath, State};
use axum::http::{Method, Request, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api_keys::ApiKeys;
use crate::clock::Clock;
use crate::command::Commands;
use crate::exit::{Failure, FailureKind};
use crate::metrics::{self, Metrics};
use crate::models::Models;
use auth::Token;
use cors::Origins;
pub use doors::{Listening, listen, local_part};
use openapi::Callers;
use views::{ErrorBody, ErrorView};

/// The port of the API unless another is chosen.
pub const PORT: u16 = 7433;

/// Bounds a request: a prompt of a million tokens fits.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bounds the requests that are answered at once; more are refused at once.
const REQUESTS_MAX: usize = 256;

/// Bounds those of other machines and of keys: the owner has the rest.
const GUESTS_MAX: usize = 192;

/// How long a client may take for the body of a request, so that its place is soon free again.
const BODY_MAX: Duration = Duration::from_secs(60);

/// Bounds the jobs that stream at once, below the requests, so that a busy node still answers questions.
const JOBS_MAX: usize = 192;

/// Bounds those of keys: the owner has the rest.
const GUEST_JOBS_MAX: usize = 144;

/// What every handler may use.
#[derive(Clone)]
struct Api {
    commands: Commands,
    models: Models,
    token: Arc<Token>,
    requests: Arc<Semaphore>,
    guests: Arc<Semaphore>,
    jobs: Arc<Semaphore>,
    guest_jobs: Arc<Semaphore>,
    stop: CancellationToken,
    load: Loading,
    clock: Clock,
    answers: openai::Answers,
    metrics: Metrics,
    keys: ApiKeys,
    relays: fallback::Relays,
    origins: Origins,
}

/// How models are loaded that are asked for while the node runs.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    /// What is asked for them; the catalogue's price if nothing.
    pub price: Option<crate::models::Price>,
    /// Jobs at once.
    pub slots: u32,
    /// Threads that compute.
    pub threads: Option<usize>,
}

/// Who may use the API.
#[derive(Debug)]
pub struct Admitted {
    /// The owner, by this.
    pub token: Token,
    /// Others, by these.
    pub keys: ApiKeys,
    /// Pages in browsers, with either.
    pub origins: Origins,
}

/// Serves until `stop`; streams that run end with their jobs, or with the driver.
pub async fn serve(
    listening: Listening,
    commands: Commands,
    models: Models,
    load: Loading,
    admitted: Admitted,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Admitted { token, keys, origins } = admitted;
    let api = Api {
        commands,
        models,
        token: Arc::new(token),
        requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        guests: Arc::new(Semaphore::new(GUESTS_MAX)),
        jobs: Arc::new(Semaphore::new(JOBS_MAX)),
        guest_jobs: Arc::new(Semaphore::new(GUEST_JOBS_MAX)),
        stop: stop.clone(),
        load,
        clock: Clock::start(0),
        answers: openai::Answers::default(),
        metrics: Metrics::default(),
        keys: keys.clone(),
        relays: fallback::Relays::default(),
        origins,
    };
    tokio::spawn(keep_up(api.metrics.clone(), stop.clone()));
    let router = router(api);
    let serving = listening.doors.into_iter().map(|doors| doors.serve(router.clone(), stop.clone()));
    futures::future::join_all(serving).await;
    // Jobs have ended, and what they cost is known.
    keys.close().await?;
    Ok(())
}

/// Keeps measurements from piling up.
async fn keep_up(metrics: Metrics, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(metrics::UPKEEP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.keep_up();
    }
}

/// Returns the endpoints of the node itself, for whoever holds its token.
fn own() -> (Router<Api>, OpenApi) {
    OpenApiRouter::default()
        .routes(routes!(node::status))
        .routes(routes!(node::peers))
        .routes(routes!(node::providers))
        .routes(routes!(node::models, node::load))
        .routes(routes!(node::unload))
        .routes(routes!(node::balance))
        .routes(routes!(node::receipts))
        .routes(routes!(node::receipt))
        .routes(routes!(node::verify))
        .routes(routes!(node::audit))
        .routes(routes!(node::settle))
        .routes(routes!(node::prune))
        .routes(routes!(transfers::channels))
        .routes(routes!(transfers::statement))
        .routes(routes!(transfers::entry))
        .routes(routes!(transfers::fees))
        .routes(routes!(transfers::pay))
        .routes(routes!(transfers::withdrawals, transfers::withdraw))
        .routes(routes!(transfers::deposit))
        .routes(routes!(transfers::mark_paid))
        .routes(routes!(node::ticket))
        .routes(routes!(node::grant))
        .routes(routes!(account::show))
        .routes(routes!(account::rotate))
        .routes(routes!(account::authorise))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::show, keys::revoke))
        .routes(routes!(jobs::submit))
        .routes(routes!(jobs::show, jobs::cancel))
        .routes(routes!(node::shutdown))
        .split_for_parts()
}

/// Returns what answers everybody.
fn open() -> (Router<Api>, OpenApi) {
    OpenApiRouter::default()
        .routes(routes!(node::live))
        .routes(routes!(node::ready))
        .routes(routes!(openai::ollama::greet))
        .split_for_parts()
}

fn router(api: Api) -> Router {
    let (own, own_paths) = own();
    let own = own.route_layer(middleware::from_fn_with_state(api.clone(), auth::require_token));
    let (measured, measured_paths) =
        OpenApiRouter::default().routes(routes!(node::metrics)).split_for_parts();
    let measured = measured
        .route_layer(middleware::from_fn(caller::require_owner))
        .route_layer(middleware::from_fn_with_state(api.clone(), caller::require_caller));
    let (ollama, ollama_paths) = openai::ollama::router();
    let ollama = ollama
        .layer(middleware::from_fn_with_state(api.clone(), caller::require_caller))
        .layer(middleware::map_response(openai::ollama::in_its_words));
    let (openai, openai_paths) = openai::router();
    let openai = openai.layer(middleware::from_fn_with_state(api.clone(), caller::require_caller));
    let (open, open_paths) = open();
    let part = |path, callers, document| openapi::Part { path, callers, document };
    let document = openapi::document([
        part("/v1", Callers::Programs, openai_paths),
        part("/api", Callers::OllamaPrograms, ollama_paths),
        part("/sharemesh/v1", Callers::Owner, own_paths),
        part("", Callers::Everybody, open_paths),
        part("", Callers::Programs, measured_paths),
    ]);
    let cors = api.origins.layer();
    let router = open
        .nest("/sharemesh/v1", own)
        .nest("/v1", openai)
        .nest("/api", ollama)
        .merge(measured)
        .route("/openapi.json", get(move || std::future::ready(openapi::serve(document.clone()))))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(api.clone(), bound))
        .layer(middleware::from_fn_with_state(api.clone(), measure))
        .layer(middleware::from_fn_with_state(api.clone(), auth::require_local_host));
    // Browsers ask without a key, and read refusals too.
    let router = if let Some(cors) = cors { router.layer(cors) } else { router };
    router
        .layer(middleware::from_fn(openai::name_request))
        .layer(middleware::map_response(coalesced::coalesce))
        .with_state(api)
}

/// Refuses what is more than this node answers at once, and bodies that do not come.
async fn bound(State(api): State<Api>, request: Request<axum::body::Body>, next: Next) -> Response {
    let guest = caller::is_guest(&request).then(|| api.guests.try_acquire()).transpose();
    let (Ok(_permit), Ok(_guest)) = (api.requests.try_acquire(), guest) else {
        return refuse(request.uri(), busy("the API has too many requests open"));
    };
    next.run(request.map(|body| in_time(body, BODY_MAX))).await
}

/// Ends a body with an error if it is not there in time.
fn in_time(body: axum::body::Body, most: Duration) -> axum::body::Body {
    use futures::StreamExt as _;

    let until = tokio::time::Instant::now() + most;
    let parts = futures::stream::unfold(Some(body.into_data_stream()), move |left| async move {
        let mut left = left?;
        match tokio::time::timeout_at(until, left.next()).await {
            Ok(part) => Some((part?.map_err(std::io::Error::other), Some(left))),
            Err(_) => Some((Err(std::io::ErrorKind::TimedOut.into()), None)),
        }
    });
    axum::body::Body::from_stream(parts)
}

/// Measures how long answers take, up to their head.
async fn measure(State(api): State<Api>, request: Request<axum::body::Body>, next: Next) -> Response {
    let begun = tokio::time::Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let response = next.run(request).await;
    // Names that clients made up are one name, so that they cannot make many.
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    let method = if KNOWN_METHODS.contains(&method) { method.as_str() } else { metrics::OTHER };
    api.metrics.answered(route, method, response.status().as_u16(), begun.elapsed());
    response
}

/// Methods that are told apart in what is measured.
const KNOWN_METHODS: [Method; 6] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS];

fn busy(what: &str) -> Failure {
    Failure::new(FailureKind::Busy, format!("{what}: try again in a moment")).retry_after(500)
}

async fn not_found(request: Request<axum::body::Body>) -> Failure {
    let path: String = request.uri().path().chars().take(200).collect();
    Failure::new(
        FailureKind::NotFound,
        format!("nothing at `{path}`: see docs/operations.md for the API's paths"),
    )
}

async fn wrong_method(request: Request<axum::body::Body>) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let failure = Failure::usage(format!("`{path}` takes another method than {}", request.method()));
    with_status(StatusCode::METHOD_NOT_ALLOWED, failure)
}

/// Answers with a failure whose kind has another status.
fn with_status(status: StatusCode, failure: Failure) -> Response {
    let mut response = failure.into_response();
    *response.status_mut() = status;
    response
}

/// Refuses a request before any endpoint has seen it, in the words of those whose path it names.
fn refuse(uri: &Uri, failure: Failure) -> Response {
    if uri.path() == "/v1" || uri.path().starts_with("/v1/") {
        return openai::Refusal::from(failure).into_response();
    }
    if uri.path().starts_with("/api/") {
        return openai::ollama::refuse(failure);
    }
    failure.into_response()
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after_ms.map(|ms| ms.div_ceil(1000).to_string());
        let mut response = (status, axum::Json(ErrorView::from(self))).into_response();
        if let Some(Ok(seconds)) = retry_after.map(|seconds| seconds.parse()) {
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<Failure> for ErrorView {
    fn from(failure: Failure) -> Self {
        let class = match failure.kind.http_status() {
            401 => "authentication_error",
            402 => "insufficient_credits",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "unavailable_error",
            _ => "server_error",
        };
        Self {
            error: ErrorBody {
                message: failure.message,
                class: class.to_owned(),
                param: failure.param,
                code: failure.kind,
                reason: failure.reason,
                retry_after_ms: failure.retry_after_ms,
            },
        }
    }
}

impl From<ErrorView> for Failure {
    fn from(view: ErrorView) -> Self {
        let ErrorBody { message, class: _, param, code, reason, retry_after_ms } = view.error;
        Self { kind: code, message, reason, retry_after_ms, param }
    }
}

/// A body of JSON whose refusal is an error as all others here.
struct Json<T>(T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Response> {
        let refused = |status: StatusCode, why: &dyn std::fmt::Display| {
            with_status(status, Failure::usage(format!("the request cannot be read: {why}")))
        };
        let bytes = axum::body::Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|error| refused(error.status(), &error))?;
        // The content type is not asked for: the token already shows that no web page sent this.
        serde_json::from_slice(&bytes).map(Self).map_err(|error| refused(StatusCode::BAD_REQUEST, &error))
    }
}

/// The query of an address whose refusal is an error as all others here.
struct Query<T>(T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Failure> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|query| Self(query.0)).map_err(|error| Failure::usage(format!("wrong query: {error}")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::command;
    use crate::models::fetch::Fetcher;
    use fake::Told;

    /// The API in front of a fake driver.
    pub(crate) struct Served {
        pub(crate) address: SocketAddr,
        pub(crate) token: Token,
        pub(crate) told: Told,
        pub(crate) keys: ApiKeys,
        stop: CancellationToken,
        _data: tempfile::TempDir,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    pub(crate) async fn served() -> Served {
        served_at("127.0.0.1:0").await
    }

    pub(crate) async fn served_at(address: &str) -> Served {
        serving(address, Origins::default()).await
    }

    /// The same, for pages of some origins too.
    pub(crate) async fn served_for(origins: Origins) -> Served {
        serving("127.0.0.1:0", origins).await
    }

    async fn serving(address: &str, origins: Origins) -> Served {
        let listening = listen(address.parse().expect("address")).await.expect("a free port");
        let address = listening.local;
        let data = tempfile::tempdir().expect("temporary folder");
        let keys = ApiKeys::open(data.path()).expect("new");
        let (commands, receiver) = command::queue();
        let (told, token, stop) = (fake::spawn(receiver), Token::draw(), CancellationToken::new());
        let models = Models::at("/nowhere/cache".into(), Fetcher::new("python3"));
        let load = Loading { price: None, slots: 1, threads: None };
        let admitted = Admitted { token: token.clone(), keys: keys.clone(), origins };
        tokio::spawn(serve(listening, commands, models, load, admitted, stop.clone()));
        Served { address, token, told, keys, stop, _data: data }
    }

    impl Served {
        pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
            let http = reqwest::Client::builder().no_proxy().build().expect("plain");
            http.request(method, format!("http://{}{path}", self.address))
                .header("authorization", self.token.header())
        }

        async fn post(&self, path: &str, body: &str) -> (u16, String) {
            answer(self.request(reqwest::Method::POST, path).body(body.to_owned())).await
        }

        async fn get(&self, path: &str) -> (u16, String) {
            answer(self.request(reqwest::Method::GET, path)).await
        }
    }

    async fn answer(request: reqwest::RequestBuilder) -> (u16, String) {
        let response = request.send().await.expect("answered");
        (response.status().as_u16(), response.text().await.expect("text"))
    }

    #[tokio::test]
    async fn health_is_for_everybody_and_the_rest_for_holders_of_the_token() {
        let served = served().await;
        let http = reqwest::Client::builder().no_proxy().build().expect("plain");
        let bare = |path: &str| http.get(format!("http://{}{path}", served.address));

        assert_eq!(answer(bare("/livez")).await.0, 200);
        assert_eq!(answer(bare("/readyz")).await.0, 200);
        let (status, text) = answer(bare("/sharemesh/v1/status")).await;
        assert_eq!(status, 401);
        assert!(text.contains("node.json") && text.contains("\"code\":\"unauthorised\""), "{text}");
        assert_eq!(answer(bare("/sharemesh/v1/status").header("authorization", "Bearer wrong")).await.0, 401);
        assert_eq!(served.get("/sharemesh/v1/status").await.0, 200);
    }

    /// Returns what the API says to some bytes before it hangs up.
    async fn said_to(served: &Served, bytes: &[u8]) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let mut stream = tokio::net::TcpStream::connect(served.address).await.expect("listening");
        stream.write_all(bytes).await.expect("open");
        let mut said = Vec::new();
        // A connection that is reset has said enough.
        let _ = stream.read_to_end(&mut said).await;
        String::from_utf8_lossy(&said).into_owned()
    }

    #[tokio::test]
    async fn a_connection_has_one_request_at_a_time() {
        let served = served().await;

        let said = said_to(&served, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;

        assert!(!said.contains('\u{4}') && !said.contains(" 200 "), "{said:?}");
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let silent = axum::body::Body::from_stream(futures::stream::pending::<std::io::Result<Vec<u8>>>());
        let whole = axum::body::Body::from("whole");

        let request = Request::new(in_time(silent, Duration::ZERO));
        let late = <bytes::Bytes as axum::extract::FromRequest<_>>::from_request(request, &()).await;
        assert_eq!(openai::Refusal::from(late.expect_err("it is late")).status(), 408);
        assert_eq!(axum::body::to_bytes(in_time(whole, BODY_MAX), 9).await.expect("there"), "whole");
    }

    #[test]
    fn guests_leave_places_to_the_owner() {
        const { assert!(GUESTS_MAX < REQUESTS_MAX && GUEST_JOBS_MAX < JOBS_MAX) };
        let request = |key: &str| {
            let ends = ("127.0.0.1:1".parse().expect("address"), "127.0.0.1:2".parse().expect("address"));
            let mut request = Request::new(axum::body::Body::empty());
            let connection = caller::Connection::between(Some(ends));
            request.extensions_mut().insert(axum::extract::ConnectInfo(connection));
            request.headers_mut().insert("authorization", key.parse().expect("a header"));
            caller::is_guest(&request)
        };

        assert!(request("bearer smk-1") && request("Bearer smk-1"));
        assert!(!request("Bearer unused") && !request("smk-1"));
    }

    #[tokio::test]
    async fn a_web_page_that_points_its_name_here_is_refused() {
        let served = served().await;
        let get = || served.request(reqwest::Method::GET, "/sharemesh/v1/status");

        assert_eq!(answer(get().header("host", "evil.example")).await.0, 403);
        assert_eq!(answer(get().header("origin", "https://evil.example")).await.0, 403);
        assert_eq!(answer(get().header("host", "localhost:7433")).await.0, 200);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_of_the_same_form() {
        let served = served().await;
        let is_error = |(status, text): (u16, String), expected: u16| {
            assert_eq!(status, expected, "{text}");
            assert!(text.starts_with(r#"{"error":{"message":""#), "{text}");
        };

        is_error(served.post("/sharemesh/v1/jobs", "{").await, 400);
        is_error(served.post("/sharemesh/v1/jobs", r#"{"model":"echo","promt":"x"}"#).await, 400);
        is_error(
            served.post("/sharemesh/v1/jobs", r#"{"model":"echo","prompt":"x","max_tokens":0}"#).await,
            400,
        );
        is_error(served.get("/sharemesh/v1/nonsense").await, 404);
        is_error(served.get("/sharemesh/v1/ledger/receipts?limit=0").await, 400);
        is_error(served.get("/sharemesh/v1/ledger/receipts?limit=x").await, 400);
        is_error(served.get("/sharemesh/v1/ledger/receipts/zz").await, 400);
        is_error(served.get("/sharemesh/v1/ledger/receipts/ab").await, 404);
        is_error(served.get("/sharemesh/v1/jobs/1").await, 400);
        is_error(served.get("/sharemesh/v1/jobs").await, 405);
        is_error(served.post("/sharemesh/v1/models", r#"{"model":"nonsense"}"#).await, 404);
        is_error(served.post("/sharemesh/v1/jobs", &"x".repeat(BODY_BYTES_MAX + 1)).await, 413);
    }

    #[tokio::test]
    async fn a_job_streams_its_events_in_order() {
        let served = served().await;

        let (status, text) =
            served.post("/sharemesh/v1/jobs", r#"{"model":"echo","prompt":"hé\nllo"}"#).await;

        assert_eq!(status, 200, "{text}");
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!(names, ["chosen", "accepted", "text", "done"]);
        assert!(text.contains(r#""text":"hé\nllo""#), "{text}");
    }

    #[tokio::test]
    async fn a_job_that_fails_at_once_has_an_honest_status() {
        let served = served().await;

        assert_eq!(served.post("/sharemesh/v1/jobs", r#"{"model":"poor","prompt":"x"}"#).await.0, 402);
        assert_eq!(served.post("/sharemesh/v1/jobs", r#"{"model":"none","prompt":"x"}"#).await.0, 503);
    }

    #[tokio::test]
    async fn closing_the_connection_cancels_the_job() {
        let served = served().await;
        let job = command::new_job();
        let body = format!(r#"{{"model":"slow","prompt":"x","job":"{}"}}"#, command::format_job(&job));
        let response = served.request(reqwest::Method::POST, "/sharemesh/v1/jobs").body(body).send().await;
        let response = response.expect("answered");
        assert_eq!(response.headers()["sharemesh-job"], command::format_job(&job).as_str());

        drop(response);

        let cancelled = async {
            while served.told.cancelled() != [job] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), cancelled).await.expect("cancelled in time");
    }

    #[tokio::test]
    async fn a_taken_port_is_said_and_the_owner_finds_the_api_on_this_machine() {
        assert_eq!(
            listen("0.0.0.0:0".parse().expect("address")).await.expect("free").local.ip().to_string(),
            "127.0.0.1"
        );

        let first = listen("127.0.0.1:0".parse().expect("address")).await.expect("free");
        let taken = listen(first.local).await.expect_err("taken");

        assert_eq!(taken.kind.exit_code(), 1);
        assert!(taken.message.contains("is taken") && taken.message.contains("--api"), "{taken}");
    }
}
