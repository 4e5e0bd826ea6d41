//! What a user is told when something fails: what was tried, on what, why it failed, what to do next.

use serde::{Deserialize, Serialize};

/// A failure in words, the same in a run's journal, an API answer, the console and a one-shot command.
///
/// Never holds a secret: whoever builds one redacts URLs and passwords first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorReport {
    /// Stable code for programs, e.g. `REMOTE_FULL`, `VM_NOT_FOUND`, or a XAPI code such as `VDI_IN_USE`.
    pub code: String,
    /// One sentence: what was tried, on what, and why it failed.
    pub message: String,
    /// What to do next, when there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The chain of causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

impl ErrorReport {
    /// A report with a code and a sentence.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), next: None, causes: Vec::new() }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Adds the texts of `error` and all its sources as causes.
    #[must_use]
    pub fn with_source(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            let text = cause.to_string();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = cause.source();
        }
        self
    }
}

/// JSON-RPC error codes of our own methods, in the numbering of XO's errors where it has one
/// (xo-proxy-api.md §1.7), so that its clients read them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// −32700: the body is not JSON.
    InvalidJson,
    /// −32600: the body is not a JSON-RPC request.
    InvalidRequest,
    /// −32601.
    MethodNotFound,
    /// 10: parameters that do not fit; `data.errors` names each.
    InvalidParameters,
    /// 1: an object that does not exist; `data` is `{id, type}`.
    NoSuchObject,
    /// 2: the token's role does not allow this.
    Unauthorized,
    /// 5: refused in the present state; `data` is `{operation, reason}`.
    ForbiddenOperation,
    /// −32000: everything else; `data` is an [`ErrorReport`].
    Failed,
}

impl ErrorCode {
    /// The number on the wire.
    pub const fn number(self) -> i64 {
        match self {
            Self::InvalidJson => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParameters => 10,
            Self::NoSuchObject => 1,
            Self::Unauthorized => 2,
            Self::ForbiddenOperation => 5,
            Self::Failed => -32000,
        }
    }

    /// The code a number stands for; unknown numbers are [`ErrorCode::Failed`].
    pub const fn from_number(number: i64) -> Self {
        match number {
            -32700 => Self::InvalidJson,
            -32600 => Self::InvalidRequest,
            -32601 => Self::MethodNotFound,
            10 => Self::InvalidParameters,
            1 => Self::NoSuchObject,
            2 => Self::Unauthorized,
            5 => Self::ForbiddenOperation,
            _ => Self::Failed,
        }
    }
}
