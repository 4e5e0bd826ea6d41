//! What goes wrong while a call is answered, and how the wire says it (xo-proxy-api.md §1.7).

use api::{ErrorCode, ErrorReport, RpcError};
use serde_json::{Value, json};

use crate::journal::JournalError;
use crate::store::StoreError;

/// Why a call is not answered with a result.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The method does not exist.
    MethodNotFound(String),
    /// The body is no request.
    InvalidRequest(String),
    /// The body is no JSON.
    InvalidJson,
    /// Parameters that do not fit; nothing was done.
    InvalidParameters(Vec<Invalid>),
    /// An object that does not exist.
    NoSuchObject {
        /// `pool`, `remote`, `job`, `run`, `restorePoint`, `sr`, `vm`.
        kind: &'static str,
        /// As it was given.
        id: String,
    },
    /// Refused in the present state.
    Forbidden {
        /// The method.
        operation: &'static str,
        /// Why.
        reason: String,
        /// More about it, for programs.
        details: Value,
    },
    /// Everything else.
    Failed(ErrorReport),
}

/// A parameter that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The parameter; empty for the parameters as a whole.
    pub name: String,
    /// Word of JSON Schema that it offends: `required`, `type`, `additionalProperties`, or `format` for the rest.
    pub keyword: &'static str,
    /// In words.
    pub message: String,
}

impl Fault {
    /// One parameter that does not fit.
    pub fn invalid(name: &str, message: impl Into<String>) -> Self {
        Self::InvalidParameters(vec![Invalid { name: name.into(), keyword: "format", message: message.into() }])
    }

    /// An object that does not exist.
    pub fn missing(kind: &'static str, id: impl Into<String>) -> Self {
        Self::NoSuchObject { kind, id: id.into() }
    }

    /// A refusal.
    pub fn forbidden(operation: &'static str, reason: impl Into<String>) -> Self {
        Self::Forbidden { operation, reason: reason.into(), details: Value::Null }
    }

    /// In words and with a stable code, for the journal of a run.
    pub fn report(self) -> ErrorReport {
        match self {
            Self::Failed(report) => report,
            other => {
                let code = match &other {
                    Self::NoSuchObject { .. } => "NO_SUCH_OBJECT",
                    Self::Forbidden { .. } => "REFUSED",
                    _ => "INVALID_PARAMETERS",
                };
                ErrorReport::new(code, RpcError::from(other).message)
            }
        }
    }
}

impl From<Fault> for RpcError {
    fn from(fault: Fault) -> Self {
        let error = |code: ErrorCode, message: String, data: Value| Self { code: code.number(), message, data };
        match fault {
            Fault::MethodNotFound(method) => {
                error(ErrorCode::MethodNotFound, format!("method not found: {method}"), Value::String(method))
            }
            Fault::InvalidRequest(message) => error(ErrorCode::InvalidRequest, message, Value::Null),
            Fault::InvalidJson => error(ErrorCode::InvalidJson, "invalid JSON".into(), Value::Null),
            Fault::InvalidParameters(found) => {
                let words: Vec<&str> = found.iter().map(|invalid| invalid.message.as_str()).collect();
                let message = format!("invalid parameters: {}", words.join("; "));
                let errors: Vec<Value> = found
                    .iter()
                    .map(|invalid| {
                        // `required` and `additionalProperties` concern the object that holds the parameter.
                        let inside = matches!(invalid.keyword, "type" | "format") && !invalid.name.is_empty();
                        let path = if inside { format!("/{}", invalid.name) } else { String::new() };
                        json!({ "instancePath": path, "keyword": invalid.keyword, "message": invalid.message, "name": invalid.name })
                    })
                    .collect();
                error(ErrorCode::InvalidParameters, message, json!({ "errors": errors }))
            }
            Fault::NoSuchObject { kind, id } => {
                error(ErrorCode::NoSuchObject, format!("no such {kind}: {id:?}"), json!({ "id": id, "type": kind }))
            }
            Fault::Forbidden { operation, reason, details } => {
                let mut data = json!({ "operation": operation, "reason": reason });
                if let (Some(data), Value::Object(details)) = (data.as_object_mut(), details) {
                    data.extend(details);
                }
                error(ErrorCode::ForbiddenOperation, reason, data)
            }
            Fault::Failed(report) => {
                let data = serde_json::to_value(&report).unwrap_or_default();
                error(ErrorCode::Failed, report.message, data)
            }
        }
    }
}

/// The last cause of an error, for a sentence that ends in it.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// A report whose sentence holds all causes.
pub(crate) fn report(code: &str, what: &str, error: &(dyn std::error::Error + 'static)) -> ErrorReport {
    ErrorReport::new(code, format!("{what}: {}", chain(error))).with_source(error)
}

impl From<ErrorReport> for Fault {
    fn from(report: ErrorReport) -> Self {
        Self::Failed(report)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NameTaken { what, name } => Self::invalid("name", format!("another {what} is called {name:?}")),
            error => Self::Failed(ErrorReport::new("STATE", chain(&error)).with_source(&error)),
        }
    }
}

impl From<JournalError> for Fault {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Store(error) => error.into(),
            JournalError::NotOpen { .. } => Self::forbidden("run", error.to_string()),
            JournalError::Closed => Self::Failed(ErrorReport::new("STOPPING", "the daemon is stopping")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_the_number_and_data_of_the_table() {
        let cases = [
            (Fault::MethodNotFound("a.b".into()), -32601, json!("a.b")),
            (Fault::InvalidJson, -32700, Value::Null),
            (Fault::InvalidRequest("invalid version: 1".into()), -32600, Value::Null),
            (Fault::missing("job", "x"), 1, json!({ "id": "x", "type": "job" })),
            (Fault::forbidden("job.run", "no"), 5, json!({ "operation": "job.run", "reason": "no" })),
            (
                Fault::invalid("name", "bad"),
                10,
                json!({ "errors": [{ "instancePath": "/name", "keyword": "format", "message": "bad", "name": "name" }] }),
            ),
            (ErrorReport::new("X", "y").into(), -32000, json!({ "code": "X", "message": "y" })),
        ];
        for (fault, code, data) in cases {
            let error = RpcError::from(fault);
            assert_eq!((error.code, &error.data), (code, &data), "{}", error.message);
        }
    }
}
