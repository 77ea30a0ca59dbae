//! The description of the whole API, at `/openapi.json`, made from the endpoints themselves.

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::schema::AnyOfBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, Content, Info, OpenApi, Ref, RefOr, Response};
use utoipa::{PartialSchema, ToSchema};

use super::openai::{DryRun, ErrorBody as OpenAiError, OllamaError};
use super::views::ErrorView;

/// What endpoints may answer instead of their own answers; which of them which may, [`errors_of`] says.
const ERRORS: [(u16, &str); 16] = [
    (400, "The request makes no sense: the message says what to change."),
    (401, "The key or token is missing or wrong."),
    (402, "The account or the key cannot pay."),
    (403, "It is not allowed: not this machine, not this web page, not this network."),
    (404, "It is not there."),
    (408, "The body did not arrive in time."),
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

/// Says whose answers need credits, what they name, or other machines, though neither path nor parameters show it.
const MORE: [(&str, &[u16]); 7] = [
    ("post_sharemesh_v1_account_payments", &[402]),
    ("post_sharemesh_v1_account_withdrawals", &[402]),
    ("post_sharemesh_v1_network_tickets", &[402]),
    ("post_sharemesh_v1_network_grants", &[402]),
    ("post_sharemesh_v1_account_devices", &[404]),
    ("post_sharemesh_v1_models", &[404, 502]),
    ("post_api_show", &[404]),
];

/// Endpoints that answer by themselves, whatever the rest of the node does.
const ALONE: [&str; 3] = ["get", "get_livez", "get_api_version"];

/// Returns how an endpoint may answer instead of its own answer.
fn errors_of(name: &str, callers: Callers, operation: &Operation) -> BTreeSet<u16> {
    let parameters: Vec<&Parameter> = operation.parameters.iter().flatten().filter_map(itself).collect();
    let has = |place: &ParameterIn| parameters.iter().any(|parameter| parameter.parameter_in == *place);
    let has_body = operation.request_body.is_some();
    let is_for_programs = matches!(callers, Callers::Programs | Callers::OllamaPrograms);
    let places_jobs = is_priced(operation) || name == "post_sharemesh_v1_jobs";
    let when = |holds: bool, errors: &'static [u16]| if holds { errors } else { &[] };
    let more = MORE.iter().find(|(other, _)| *other == name).map_or(&[][..], |(_, errors)| errors);
    // Whatever it is: the page, the limits, the length of the head, a fault.
    [
        &[403, 429, 431, 500],
        when(!ALONE.contains(&name), &[503]),
        when(!matches!(callers, Callers::Everybody), &[401]),
        when(has_body || !parameters.is_empty(), &[400]),
        when(has_body, &[408, 413]),
        when(has_body && is_for_programs, &[415]),
        when(has(&ParameterIn::Path), &[404]),
        when(places_jobs, &[402, 404, 409, 502, 504]),
        when(has(&ParameterIn::Header), &[409, 422]),
        more,
    ]
    .concat()
    .into_iter()
    .collect()
}

fn itself(parameter: &RefOr<Parameter>) -> Option<&Parameter> {
    match parameter {
        RefOr::T(parameter) => Some(parameter),
        RefOr::Ref(_) => None,
    }
}

/// Says whether an endpoint can be asked what its answer would cost.
fn is_priced(operation: &Operation) -> bool {
    let is_named = |parameter: &Parameter| parameter.name == "dry_run";
    operation.parameters.iter().flatten().filter_map(itself).any(is_named)
}

/// Says of an answer in JSON that with `dry_run` it is another one.
fn or_dry_run(operation: &mut Operation) {
    let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") else { return };
    if let Some(RefOr::T(content)) = answer.content.get_mut("application/json")
        && let Some(own) = content.schema.take()
    {
        let dry = Ref::from_schema_name("DryRun");
        content.schema = Some(AnyOfBuilder::new().item(own).item(dry).into());
    }
}

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

/// Adds to an endpoint what every one has: a name of its own, how it fails, who may ask, and what it says if it is asked for the price alone.
fn complete(operation: &mut Operation, method: &str, path: &str, callers: Callers) {
    let words = path.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    operation.operation_id = Some([method].into_iter().chain(words).collect::<Vec<_>>().join("_"));
    if is_priced(operation) {
        or_dry_run(operation);
    }
    let may = errors_of(operation.operation_id.as_deref().unwrap_or_default(), callers, operation);
    for (status, words) in ERRORS.into_iter().filter(|(status, _)| may.contains(status)) {
        let mut response = Response::new(words);
        // What no endpoint has seen is said without words.
        if status != 431 {
            let content = Content::new(Some(Ref::from_schema_name(callers.error())));
            response.content.insert("application/json".to_owned(), content.into());
        }
        operation.responses.responses.entry(status.to_string()).or_insert_with(|| response.into());
    }
    operation.security = Some(callers.security());
}

/// Returns the schemas of errors and dry runs, and of what they are made of.
fn errors() -> Vec<(String, RefOr<utoipa::openapi::Schema>)> {
    let mut schemas = vec![
        ("OpenAiError".to_owned(), OpenAiError::schema()),
        ("OllamaError".to_owned(), OllamaError::schema()),
        ("ErrorView".to_owned(), ErrorView::schema()),
        ("DryRun".to_owned(), DryRun::schema()),
    ];
    OpenAiError::schemas(&mut schemas);
    ErrorView::schemas(&mut schemas);
    DryRun::schemas(&mut schemas);
    schemas
}
