//! What can go wrong with a pool, and what to do about it (xapi-streams.md §1.6).

use std::io;
use std::time::Duration;

use tls::Fingerprint;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A boxed cause.
pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error a pool answered with: a code and its parameters, without any session reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}", parameters(.params))]
pub struct XapiError {
    /// E.g. `VDI_IN_USE`.
    pub code: String,
    /// Its parameters, as many as the code has.
    pub params: Vec<String>,
}

fn parameters(params: &[String]) -> String {
    if params.is_empty() { String::new() } else { format!(" ({})", params.join(", ")) }
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The same call may succeed later.
    Retryable,
    /// It will fail again until somebody changes something.
    Permanent,
}

impl XapiError {
    /// An error of its code and parameters.
    pub fn new(code: impl Into<String>, params: Vec<String>) -> Self {
        Self { code: code.into(), params }
    }

    /// Whether the same call may succeed later (xapi-streams.md §1.6).
    pub fn class(&self) -> Class {
        match self.code.as_str() {
            "TOO_MANY_PENDING_TASKS"
            | "VDI_IN_USE"
            | "OTHER_OPERATION_IN_PROGRESS"
            | "CANNOT_CONTACT_HOST"
            | "HOST_OFFLINE"
            | "NOT_SUPPORTED_DURING_UPGRADE"
            | "TOO_MANY_STORAGE_MIGRATES"
            | "EVENTS_LOST"
            | "EVENT_FROM_TOKEN_PARSE_FAILURE"
            | "MAP_DUPLICATE_KEY"
            | "SESSION_INVALID"
            | "HOST_IS_SLAVE"
            | "INTERNAL_ERROR" => Class::Retryable,
            _ => Class::Permanent,
        }
    }
}

/// A call or transfer that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of the pool is not usable.
    #[error("{url:?} is no address of a pool: {reason}")]
    Url {
        /// As given, without credentials.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The connection cannot be made.
    #[error("cannot connect to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// Cause.
        source: Source,
    },
    /// The peer is not who it was.
    #[error("{address} shows the certificate {seen}, but {expected} is the one trusted")]
    Certificate {
        /// Host and port.
        address: String,
        /// What it shows now.
        seen: Fingerprint,
        /// What was pinned.
        expected: Fingerprint,
    },
    /// The pool refused or failed a call.
    #[error("{method} failed: {failure}")]
    Api {
        /// The call, or the transfer whose task failed.
        method: String,
        /// What the pool said.
        #[source]
        failure: XapiError,
    },
    /// The connection broke during a call or transfer.
    #[error("the connection to {address} broke during {what}")]
    Transport {
        /// The call or transfer.
        what: String,
        /// Host and port.
        address: String,
        /// Cause.
        source: Source,
    },
    /// Nothing came or went for too long.
    #[error("{what} made no progress for {} s", after.as_secs_f32())]
    TimedOut {
        /// The call or transfer, and what it waited for.
        what: String,
        /// How long nothing happened.
        after: Duration,
    },
    /// An answer that is not what XAPI answers.
    #[error("{what} got an answer that cannot be understood: {reason}")]
    Malformed {
        /// The call or transfer.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// An HTTP status other than success.
    #[error("{address} answered {what} with HTTP status {status}")]
    Http {
        /// The call or transfer.
        what: String,
        /// Host and port.
        address: String,
        /// Status code.
        status: u16,
    },
    /// A task disappeared before its end was known: the toolstack restarted, or somebody destroyed it.
    #[error("the task of {what} disappeared before it completed")]
    TaskVanished {
        /// The call or transfer.
        what: String,
    },
    /// The body of an export ended while its task still runs.
    #[error("{what}: the connection ended after {bytes} bytes although the task is still {status}")]
    Cut {
        /// The transfer.
        what: String,
        /// Bytes received or sent.
        bytes: u64,
        /// Status of the task: `pending`, `success`…
        status: String,
    },
    /// The body of an export is a second HTTP response (xapi-streams.md §2.1).
    #[error("{what}: instead of data came {line:?}")]
    Broken {
        /// The transfer.
        what: String,
        /// Its first line.
        line: String,
    },
    /// What was to be uploaded cannot be read.
    #[error("{what}: the data to send failed")]
    Body {
        /// The transfer.
        what: String,
        /// Cause.
        source: io::Error,
    },
    /// What was to be uploaded is shorter or longer than announced.
    #[error("{what}: {announced} bytes were announced, but the data has {}{got}", if *.more { "at least " } else { "" })]
    Length {
        /// The transfer.
        what: String,
        /// Bytes announced.
        announced: u64,
        /// Bytes there are.
        got: u64,
        /// Whether there are more than `got`.
        more: bool,
    },
}

impl Error {
    /// The pool's failure, when it is one.
    pub fn failure(&self) -> Option<&XapiError> {
        match self {
            Self::Api { failure, .. } => Some(failure),
            _ => None,
        }
    }

    /// Whether it is the pool's error `code`.
    pub fn is(&self, code: &str) -> bool {
        self.failure().is_some_and(|failure| failure.code == code)
    }

    /// Whether the object does not exist any more.
    pub fn is_gone(&self) -> bool {
        self.is("HANDLE_INVALID") || self.is("UUID_INVALID")
    }

    /// A stable code for programs: the pool's own, or one of `POOL_*`.
    pub fn code(&self) -> &str {
        match self {
            Self::Api { failure, .. } => &failure.code,
            Self::Url { .. } => "POOL_URL",
            Self::Connect { .. } => "POOL_UNREACHABLE",
            Self::Certificate { .. } => "POOL_CERTIFICATE",
            Self::Transport { .. } => "POOL_CONNECTION_LOST",
            Self::TimedOut { .. } => "POOL_TIMEOUT",
            Self::Malformed { .. } => "POOL_ANSWER",
            Self::Http { .. } => "POOL_HTTP_STATUS",
            Self::TaskVanished { .. } => "POOL_TASK_VANISHED",
            Self::Cut { .. } | Self::Broken { .. } => "POOL_STREAM_CUT",
            Self::Body { .. } | Self::Length { .. } => "UPLOAD_SOURCE",
        }
    }

    /// Whether trying again can help.
    pub fn class(&self) -> Class {
        match self {
            Self::Api { failure, .. } => failure.class(),
            Self::Connect { .. }
            | Self::Transport { .. }
            | Self::TimedOut { .. }
            | Self::TaskVanished { .. }
            | Self::Cut { .. }
            | Self::Broken { .. } => Class::Retryable,
            Self::Http { status, .. } if *status == 503 => Class::Retryable,
            _ => Class::Permanent,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_pool_is_worth_another_try_and_a_wrong_password_is_not() {
        let class = |code: &str| XapiError::new(code, vec![]).class();
        assert_eq!(class("TOO_MANY_PENDING_TASKS"), Class::Retryable);
        assert_eq!(class("SESSION_AUTHENTICATION_FAILED"), Class::Permanent);
        assert_eq!(class("SR_BACKEND_FAILURE_44"), Class::Permanent);
    }

    #[test]
    fn a_failure_reads_as_code_and_parameters() {
        let failure = XapiError::new("VDI_IN_USE", vec!["OpaqueRef:1".into(), "destroy".into()]);
        let error = Error::Api { method: "VDI.destroy".into(), failure };
        assert_eq!(error.to_string(), "VDI.destroy failed: VDI_IN_USE (OpaqueRef:1, destroy)");
        assert_eq!(error.code(), "VDI_IN_USE");
    }
}
