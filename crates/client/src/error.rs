//! Why a call to a proxy failed, in words a person can act on.

use std::error::Error as StdError;

use api::{ErrorCode, ErrorReport, RpcError};
use tls::Fingerprint;

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// It does not answer.
    #[error("cannot reach the proxy at {host}: {reason}")]
    Unreachable {
        /// `host:port`.
        host: String,
        /// Why, e.g. connection refused.
        reason: String,
    },
    /// The line broke, or went silent, after it had answered.
    #[error("the connection to the proxy at {host} broke: {reason}")]
    Cut {
        /// `host:port`.
        host: String,
        /// Why.
        reason: String,
    },
    /// Its certificate is not the pinned one.
    #[error("the proxy at {host} shows another certificate than the one pinned ({expected})")]
    Certificate {
        /// `host:port`.
        host: String,
        /// Pinned.
        expected: Fingerprint,
        /// Shown, when it could be seen.
        seen: Option<Fingerprint>,
    },
    /// It does not accept the token.
    #[error("the proxy at {host} does not accept the token")]
    Authentication {
        /// `host:port`.
        host: String,
    },
    /// Something answers that is no proxy, or one of another version.
    #[error("what answers at {host} is not understood: {what}")]
    Foreign {
        /// `host:port`.
        host: String,
        /// What was seen.
        what: String,
    },
    /// It answers that the call failed or is refused.
    #[error("{}", report.message)]
    Answered {
        /// Which family of errors.
        code: ErrorCode,
        /// In words.
        report: ErrorReport,
    },
}

impl CallError {
    /// The error as everything else tells errors.
    pub fn report(&self) -> ErrorReport {
        let report = |code: &str| ErrorReport::new(code, self.to_string());
        match self {
            Self::Unreachable { .. } => report("PROXY_UNREACHABLE")
                .with_next("check that backhauld runs there, the address, and the network between; runs on it go on without us"),
            Self::Cut { .. } => report("CONNECTION_CUT").with_next("nothing on the proxy depends on this connection; try again"),
            Self::Certificate { seen, .. } => {
                let seen = seen.map_or("another one".to_owned(), |seen| seen.to_string());
                report("PROXY_CERTIFICATE_CHANGED").with_next(format!(
                    "it shows {seen}; if it was renewed on purpose, `backhaul proxy trust` pins the new one, else somebody stands between"
                ))
            }
            Self::Authentication { .. } => {
                report("PROXY_TOKEN_REFUSED").with_next("`proxy remove` and `proxy add` with the token of its configuration")
            }
            Self::Foreign { .. } => report("PROXY_FOREIGN").with_next("check the address, and the versions of console and proxy"),
            Self::Answered { report, .. } => report.clone(),
        }
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Cut { .. } | Self::Foreign { .. })
    }

    pub(crate) fn from_rpc(error: RpcError) -> Self {
        let code = ErrorCode::from_number(error.code);
        let name = match code {
            ErrorCode::InvalidJson | ErrorCode::InvalidRequest => "INVALID_REQUEST",
            ErrorCode::MethodNotFound => "METHOD_NOT_FOUND",
            ErrorCode::InvalidParameters => "INVALID_PARAMETERS",
            ErrorCode::NoSuchObject => "NO_SUCH_OBJECT",
            ErrorCode::Unauthorized => "UNAUTHORIZED",
            ErrorCode::ForbiddenOperation => "FORBIDDEN",
            ErrorCode::Failed => "FAILED",
        };
        let mut report = ErrorReport::new(name, error.message);
        if let Ok(detailed) = serde_json::from_value::<ErrorReport>(error.data.clone()) {
            report = detailed;
        } else if let Some(errors) = error.data.get("errors").and_then(|errors| errors.as_array()) {
            // A fault of a parameter says all of it in its message; what else it holds is for programs.
            let text = |error: &serde_json::Value| {
                let words = error.as_str().or_else(|| error.get("message")?.as_str());
                words.map_or_else(|| error.to_string(), str::to_owned)
            };
            let words: Vec<String> = errors.iter().map(text).collect();
            if code == ErrorCode::InvalidParameters && !words.is_empty() {
                report.message = words.join("; ");
            } else {
                report.causes = words;
            }
        } else if let Some(reason) = error.data.get("reason").and_then(|reason| reason.as_str()) {
            report.causes.push(reason.to_owned());
        }
        if code == ErrorCode::MethodNotFound {
            report = report.with_next("the proxy is of another version than this console; update the older one");
        }
        Self::Answered { code, report }
    }

    /// Sorts out what the HTTP client says. `answered`: whether a response had begun.
    pub(crate) fn from_http(host: &str, pinned: Fingerprint, error: &reqwest::Error, answered: bool) -> Self {
        let host = host.to_owned();
        if certificate_refused(error) {
            return Self::Certificate { host, expected: pinned, seen: None };
        }
        let reason = reason(error);
        if answered || !(error.is_connect() || error.is_timeout()) {
            Self::Cut { host, reason }
        } else {
            Self::Unreachable { host, reason }
        }
    }
}

/// Whether our own verifier refused a certificate, somewhere down the chain.
fn certificate_refused(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let inside = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let rustls = error.downcast_ref::<rustls::Error>();
        if matches!(rustls, Some(rustls::Error::InvalidCertificate(_))) || inside.is_some_and(|inner| certificate_refused(inner))
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// The innermost cause: the outer ones only say that there was an error.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut innermost: &dyn StdError = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fault_of_a_parameter_is_told_in_its_own_words_and_once() {
        let error = |message: &str| json!({ "instancePath": "/text", "keyword": "format", "message": message, "name": "text" });
        let data = json!({ "errors": [error("the licence is signed by another key"), error("name: too long")] });
        let error = RpcError { code: ErrorCode::InvalidParameters.number(), message: "invalid parameters: …".into(), data };
        let report = CallError::from_rpc(error).report();
        assert_eq!(report.message, "the licence is signed by another key; name: too long");
        assert_eq!((report.code.as_str(), report.causes), ("INVALID_PARAMETERS", Vec::new()));
    }
}
