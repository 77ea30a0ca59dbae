//! What can go wrong for a user, and the exit code and HTTP status that each kind has.

use std::fmt;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// Ended by the user with Ctrl-C, as shells report it.
pub const INTERRUPTED: u8 = 130;

/// Why something failed, from a closed list that scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// What was asked makes no sense, and asking again does not help.
    Usage,
    /// The token is missing or wrong.
    Unauthorised,
    /// The thing asked for is not there.
    NotFound,
    /// No node answers.
    NotRunning,
    /// The account cannot pay.
    NoCredits,
    /// Nobody serves the model, or nobody who does would take the job.
    NoProvider,
    /// Nobody has heard of the model.
    UnknownModel,
    /// The prompt does not fit the model's context.
    PromptTooLong,
    /// The provider vanished while it worked.
    ProviderLost,
    /// It took longer than it may.
    TimedOut,
    /// The provider said no.
    Refused,
    /// A limit is reached: this node's own, or that of its account's steps.
    Busy,
    /// The worker process of a model crashed, hung or could not load.
    WorkerLost,
    /// Somebody cancelled it.
    Cancelled,
    /// The node is starting or going down.
    Unavailable,
    /// The network does not allow it: another network's ticket, a used ticket, not the issuer.
    Forbidden,
    /// A download did not arrive, or not whole.
    Download,
    /// Anything else; the message says what.
    Internal,
}

impl FailureKind {
    /// Returns the exit code: 1 failed, 2 change what you ask, 3 node not running, 5 not enough credits,
    /// 6 no provider, 130 interrupted.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage | Self::UnknownModel | Self::PromptTooLong => 2,
            Self::NotRunning => 3,
            Self::NoCredits => 5,
            Self::NoProvider => 6,
            Self::Cancelled => INTERRUPTED,
            Self::Unauthorised
            | Self::NotFound
            | Self::ProviderLost
            | Self::TimedOut
            | Self::Refused
            | Self::Busy
            | Self::WorkerLost
            | Self::Unavailable
            | Self::Forbidden
            | Self::Download
            | Self::Internal => 1,
        }
    }

    /// Returns the status of an HTTP answer that fails so.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Usage | Self::PromptTooLong => 400,
            Self::Unauthorised => 401,
            Self::NoCredits => 402,
            Self::Forbidden => 403,
            Self::NotFound | Self::UnknownModel => 404,
            Self::Cancelled => 409,
            Self::Refused | Self::Busy => 429,
            Self::Internal => 500,
            Self::ProviderLost | Self::WorkerLost | Self::Download => 502,
            Self::NoProvider | Self::NotRunning | Self::Unavailable => 503,
            Self::TimedOut => 504,
        }
    }

    /// Returns the name that JSON has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Unauthorised => "unauthorised",
            Self::NotFound => "not_found",
            Self::NotRunning => "not_running",
            Self::NoCredits => "no_credits",
            Self::NoProvider => "no_provider",
            Self::UnknownModel => "unknown_model",
            Self::PromptTooLong => "prompt_too_long",
            Self::ProviderLost => "provider_lost",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::WorkerLost => "worker_lost",
            Self::Cancelled => "cancelled",
            Self::Unavailable => "unavailable",
            Self::Forbidden => "forbidden",
            Self::Download => "download",
            Self::Internal => "internal",
        }
    }
}

/// A failure as the user is told it: a kind for scripts and a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// What happened and what to do.
    pub message: String,
    /// The other side's own name for its reason, such as the one of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When asking again may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Which part of a request is meant, as in `messages[1].content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
}

impl Failure {
    /// Makes a failure with a message that says what to do.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), reason: None, retry_after_ms: None, param: None }
    }

    /// Makes one of [`FailureKind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Usage, message)
    }

    /// Makes one of [`FailureKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Internal, message)
    }

    /// Adds the other side's name for its reason.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Says which part of a request is meant.
    #[must_use]
    pub fn in_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Says when asking again may help.
    #[must_use]
    pub fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Finds the failure inside an error, or calls the error internal.
#[must_use]
pub fn failure_of(error: &anyhow::Error) -> Failure {
    match error.downcast_ref::<Failure>() {
        // Context that was put around a failure belongs in front of its message.
        Some(failure) => Failure { message: format!("{error:#}"), ..failure.clone() },
        None => Failure::internal(format!("{error:#}")),
    }
}

/// Returns the exit code that tells a script how it ended.
#[must_use]
pub fn exit_code(result: &anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure_of(error).kind.exit_code().into(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_documented_exit_codes_hold() {
        let code = |kind: FailureKind| kind.exit_code();

        assert_eq!(code(FailureKind::Internal), 1);
        assert_eq!(code(FailureKind::Usage), 2);
        assert_eq!(code(FailureKind::NotRunning), 3);
        assert_eq!(code(FailureKind::NoCredits), 5);
        assert_eq!(code(FailureKind::NoProvider), 6);
        assert_eq!(code(FailureKind::Cancelled), 130);
    }

    #[test]
    fn a_kind_has_the_same_name_in_json_and_in_words() {
        for kind in [FailureKind::NoCredits, FailureKind::UnknownModel, FailureKind::PromptTooLong] {
            assert_eq!(serde_json::to_value(kind).expect("plain"), kind.name());
        }
    }

    #[test]
    fn context_keeps_the_kind_of_a_failure() {
        let error = Err::<(), _>(Failure::new(FailureKind::NoCredits, "too little"))
            .context("running the job")
            .expect_err("failed");

        let failure = failure_of(&error);

        assert_eq!(failure.kind, FailureKind::NoCredits);
        assert_eq!(failure.message, "running the job: too little");
    }
}
