//! The description of the whole API, at `/openapi.json`, made from the endpoints themselves.

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, Content, Info, OpenApi, Ref, Response};
use utoipa::{PartialSchema, ToSchema};

use super::openai::{ErrorBody as OpenAiError, OllamaError};
use super::views::ErrorView;

/// What any endpoint may answer instead of its own answer: its input is wrong, nobody may ask, or nobody can answer now.
const ERRORS: [(u16, &str); 16] = [
    (400, "The request makes no sense: the message says what to change."),
    (401, "The key or token is missing or wrong."),
    (402, "The account or the key cannot pay."),
    (403, "It is not allowed: not this machine, not this web page, not this network."),
    (404, "It is not there."),
    (405, "The path takes another method."),
    (409, "It was cancelled, or the same request is being answered."),
    (413, "The body is too large."),
    (415, "The body is not declared as JSON."),
    (422, "The `Idempotency-Key` was used for another request."),
    (429, "A limit is reached: `retry-after` says when to ask again."),
    (431, "The header is too large."),
    (500, "A fault of this program."),
    (502, "Whoever worked on it broke off."),
    (503, "Nobody can do it now: `retry-after` says when to ask again."),
    (504, "It took too long."),
];

/// Endpoints with the same callers and the same form of errors.
pub(super) struct Part {
    /// Where they are.
    pub(super) path: &'static str,
    /// Who may ask.
    pub(super) callers: Callers,
    /// What they are.
    pub(super) document: OpenApi,
}

/// Who may ask, and so in whose words errors are.
#[derive(Clone, Copy)]
pub(super) enum Callers {
    /// Everybody on this machine.
    Everybody,
    /// Whoever holds the node's token.
    Owner,
    /// Programs of the owner on this machine, and holders of a key or of the token.
    Programs,
    /// The same, made for Ollama.
    OllamaPrograms,
}

impl Callers {
    /// Returns the name of the schema of errors.
    const fn error(self) -> &'static str {
        match self {
            Self::Everybody | Self::Owner => "ErrorView",
            Self::Programs => "OpenAiError",
            Self::OllamaPrograms => "OllamaError",
        }
    }

    /// Returns what a request must show; empty if nothing.
    fn security(self) -> Vec<SecurityRequirement> {
        let one = |name: &str| SecurityRequirement::new(name, Vec::<String>::new());
        match self {
            Self::Everybody => Vec::new(),
            Self::Owner => vec![one("token")],
            Self::Programs | Self::OllamaPrograms => {
                vec![SecurityRequirement::default(), one("key"), one("token")]
            }
        }
    }
}

/// Puts the parts of the API together, each under its path.
pub(super) fn document<const N: usize>(parts: [Part; N]) -> Bytes {
    let mut whole = OpenApi::new(info(), utoipa::openapi::Paths::new());
    for Part { path, callers, document } in parts {
        let mut part = if path.is_empty() { document } else { OpenApi::default().nest(path, document) };
        part.paths.paths = part.paths.paths.into_iter().map(|(path, item)| (plain(&path), item)).collect();
        for (path, item) in &mut part.paths.paths {
            let operations = [("get", &mut item.get), ("post", &mut item.post), ("delete", &mut item.delete)];
            for (method, operation) in operations {
                operation.iter_mut().for_each(|operation| complete(operation, method, path, callers));
            }
        }
        whole.merge(part);
    }
    let components = whole.components.get_or_insert_with(Components::new);
    for (name, schema) in errors() {
        components.schemas.insert(name, schema);
    }
    for name in ["token", "key"] {
        components.add_security_scheme(name, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
    whole.to_json().expect("plain data").into()
}

/// Answers with the description.
pub(super) fn serve(document: Bytes) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document)
}

fn info() -> Info {
    let mut info = Info::new("Sharemesh", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "What a node answers: `/v1` in the words of OpenAI's API, `/api` in those of Ollama's, and `/sharemesh/v1` for the \
         node's owner. `token` is the one in the node's data folder, `key` one that the owner has made; programs of the \
         owner on the node's machine need neither for `/v1` and `/api`. Web pages need one of them, and an origin that the \
         owner has named (`--cors-origin`)."
            .to_owned(),
    );
    info
}

/// Writes a path as this description has it: a parameter that may hold `/` looks like any other.
fn plain(path: &str) -> String {
    path.replace("{*", "{")
}

/// Adds to an endpoint what every one has: a name of its own, how it fails, who may ask.
fn complete(operation: &mut Operation, method: &str, path: &str, callers: Callers) {
    let words = path.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    operation.operation_id = Some([method].into_iter().chain(words).collect::<Vec<_>>().join("_"));
    for (status, words) in ERRORS {
        let mut response = Response::new(words);
        let content = Content::new(Some(Ref::from_schema_name(callers.error())));
        response.content.insert("application/json".to_owned(), content.into());
        operation.responses.responses.entry(status.to_string()).or_insert_with(|| response.into());
    }
    operation.security = Some(callers.security());
}

/// Returns the schemas of errors, and of what they are made of.
fn errors() -> Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)> {
    let mut schemas = vec![
        ("OpenAiError".to_owned(), OpenAiError::schema()),
        ("OllamaError".to_owned(), OllamaError::schema()),
        ("ErrorView".to_owned(), ErrorView::schema()),
    ];
    OpenAiError::schemas(&mut schemas);
    ErrorView::schemas(&mut schemas);
    schemas
}
