//! Failures as these clients know them: `{"error": {"message", "type", "param", "code"}}` with the right status.

use std::error::Error;
use std::io;
use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::run::name;
use crate::exit::{Failure, FailureKind};

/// When to come again where nothing says when it is worth it, in milliseconds.
const RETRY_MS: u64 = 5_000;

/// The most that a client is told to wait, in seconds.
const RETRY_S_MAX: u64 = 60;

/// A request that is answered with an error.
#[derive(Debug)]
pub(in crate::api) struct Refusal {
    failure: Failure,
    status: StatusCode,
    /// Whether asking again may pay twice.
    paid: bool,
    /// Whether the same request is being answered, so that asking again is all there is to do.
    in_flight: bool,
    /// The jobs that were placed for it, by which it can be asked why.
    jobs: Option<Arc<[String]>>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = StatusCode::from_u16(failure.kind.http_status());
        Self {
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            failure,
            paid: false,
            in_flight: false,
            jobs: None,
        }
    }
}

impl From<BytesRejection> for Refusal {
    fn from(rejection: BytesRejection) -> Self {
        let status = rejection.status();
        let (status, words) = if status == StatusCode::PAYLOAD_TOO_LARGE {
            (status, format!("the body is larger than {} bytes: send less", crate::api::BODY_BYTES_MAX))
        } else if is_late(&rejection) {
            (StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time: send it again".to_owned())
        } else {
            (status, "the body did not arrive whole: send it again".to_owned())
        };
        Self { status, ..Self::from(Failure::usage(words)) }
    }
}

/// Says whether a body was not there when it had to be.
fn is_late(rejection: &BytesRejection) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(rejection);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Refusal {
    pub(super) fn wrong_method(method: &Method, path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        let failure = Failure::usage(format!("`/v1{path}` takes another method than {method}"));
        Self { status: StatusCode::METHOD_NOT_ALLOWED, ..Self::from(failure) }
    }

    /// Says that a body is not declared as JSON.
    pub(in crate::api) fn unsupported_media() -> Self {
        let words = "send the body as JSON, with the header `Content-Type: application/json`";
        Self { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, ..Self::from(Failure::usage(words)) }
    }

    #[cfg(test)]
    pub(in crate::api) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn unprocessable(failure: Failure) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, ..Self::from(failure) }
    }

    /// Says that the same request is being answered.
    pub(super) fn in_flight(failure: Failure) -> Self {
        Self { in_flight: true, status: StatusCode::CONFLICT, ..Self::from(failure) }
    }

    pub(super) fn was_paid(&self) -> bool {
        self.paid
    }

    /// Says whether something may have been paid for before it failed, so that clients do not ask again by themselves.
    pub(super) fn not_to_be_repeated(mut self, paid: bool) -> Self {
        self.paid = paid;
        self
    }

    /// Names the jobs that were placed for it.
    pub(super) fn of_jobs(mut self, jobs: Arc<[String]>) -> Self {
        self.jobs = Some(jobs);
        self
    }

    /// Returns the code of what went wrong, if it has one.
    pub(super) fn code(&self) -> Option<&'static str> {
        code(self.failure.kind)
    }

    /// Returns what went wrong, in words.
    pub(super) fn words(&self) -> &str {
        &self.failure.message
    }

    /// Returns the body, also as it stands within a stream.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        let Failure { message, param, kind, .. } = &self.failure;
        let error =
            ErrorObject { message, class: class(self.status), param: param.as_deref(), code: code(*kind) };
        ErrorBody { error }
    }

    /// Says whether the same request may succeed a moment later, and whether it is safe to send it again.
    fn should_retry(&self) -> bool {
        let transient = matches!(
            self.failure.kind,
            FailureKind::Busy
                | FailureKind::Refused
                | FailureKind::ProviderLost
                | FailureKind::WorkerLost
                | FailureKind::TimedOut
                | FailureKind::NoProvider
                | FailureKind::Unavailable
        );
        self.in_flight || self.status == StatusCode::REQUEST_TIMEOUT || transient && !self.paid
    }

    /// Returns after how many seconds the request may succeed; clients that find more than a minute there give up, or come
    /// when they like.
    fn retry_after_s(&self) -> Option<u64> {
        let is_told = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let ms = self.failure.retry_after_ms.or(is_told.then_some(RETRY_MS))?;
        self.should_retry().then(|| ms.div_ceil(1_000).clamp(1, RETRY_S_MAX))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        let retry = if self.should_retry() { "true" } else { "false" };
        headers.insert("x-should-retry", HeaderValue::from_static(retry));
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        name(headers, "x-sharemesh-job", self.jobs.as_deref().unwrap_or_default());
        response
    }
}

/// An error as it is written.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiError)]
pub(in crate::api) struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ErrorObject<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    class: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "insufficient_quota",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

/// Returns the code that these clients know for a kind of failure, or our own name for it.
fn code(kind: FailureKind) -> Option<&'static str> {
    match kind {
        FailureKind::Usage => None,
        FailureKind::Unauthorised => Some("invalid_api_key"),
        FailureKind::NoCredits => Some("insufficient_quota"),
        FailureKind::UnknownModel => Some("model_not_found"),
        FailureKind::PromptTooLong => Some("context_length_exceeded"),
        FailureKind::Busy | FailureKind::Refused => Some("rate_limit_exceeded"),
        FailureKind::NotFound
        | FailureKind::NotRunning
        | FailureKind::NoProvider
        | FailureKind::ProviderLost
        | FailureKind::WorkerLost
        | FailureKind::TimedOut
        | FailureKind::Cancelled
        | FailureKind::Unavailable
        | FailureKind::Forbidden
        | FailureKind::Download
        | FailureKind::Internal => Some(kind.name()),
    }
}
