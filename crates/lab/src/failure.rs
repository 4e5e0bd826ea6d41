//! What a pool answers when it refuses: an error code of XAPI and its parameters.

use serde_json::Value;

/// An API failure as it goes over the wire, for example `HANDLE_INVALID ["VM", "OpaqueRef:…"]`
/// (codes and parameters: xapi-streams.md §1.6).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} {params:?}")]
pub struct Failure {
    /// The code, upper case.
    pub code: String,
    /// Its parameters.
    pub params: Vec<String>,
}

/// What an API call gives.
pub type Answer = Result<Value, Failure>;

impl Failure {
    /// A failure of that code.
    pub fn new<P: Into<String>>(code: &str, params: impl IntoIterator<Item = P>) -> Self {
        Self { code: code.to_owned(), params: params.into_iter().map(Into::into).collect() }
    }

    /// An object that is not there (any more).
    pub fn handle_invalid(class: &str, reference: &str) -> Self {
        Self::new("HANDLE_INVALID", [class, reference])
    }

    /// A session that is unknown or has ended.
    pub fn session_invalid(session: &str) -> Self {
        Self::new("SESSION_INVALID", [session])
    }

    /// Anything that has no code of its own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("INTERNAL_ERROR", [message.into()])
    }

    /// A method that this pool does not know.
    pub fn unknown_method(method: &str) -> Self {
        Self::new("MESSAGE_METHOD_UNKNOWN", [method])
    }

    /// A parameter whose type is wrong.
    pub fn field_type(field: &str) -> Self {
        Self::new("FIELD_TYPE_ERROR", [field])
    }

    /// An operation that the object's state forbids.
    pub fn not_allowed(reason: &str) -> Self {
        Self::new("OPERATION_NOT_ALLOWED", [reason])
    }

    /// As the array of strings that tasks and XML-RPC carry.
    pub fn description(&self) -> Value {
        std::iter::once(&self.code).chain(&self.params).map(|text| Value::from(text.as_str())).collect()
    }
}

impl From<disks::DiskError> for Failure {
    fn from(error: disks::DiskError) -> Self {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            message.push_str(&format!(": {source}"));
            cause = source.source();
        }
        // 46 is "The VDI is not available" in the storage manager's list.
        Self::new("SR_BACKEND_FAILURE_46", ["", &message, ""])
    }
}
