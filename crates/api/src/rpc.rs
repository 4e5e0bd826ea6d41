//! The JSON-RPC envelope (xo-proxy-api.md §1.3-1.4): one request object a body, answered by one document, or by a
//! header line and one JSON object a line.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A request. Parameters are by name only; absent means none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RpcRequest {
    /// Always `"2.0"`.
    pub jsonrpc: String,
    /// Echoed in the answer.
    #[serde(default)]
    pub id: Value,
    /// `namespace.method`.
    pub method: String,
    /// An object, or nothing.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
}

/// An answer: exactly one of `result` and `error`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RpcResponse {
    /// Always `"2.0"`.
    pub jsonrpc: String,
    /// That of the request.
    #[serde(default)]
    pub id: Value,
    /// The result of a call that succeeded; never `null` (XO's client crashes on it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why the call failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RpcError>,
}

/// The `error` member.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// See [`crate::ErrorCode`].
    pub code: i64,
    /// One sentence.
    pub message: String,
    /// An [`crate::ErrorReport`], or what XO's error of that code carries.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl RpcRequest {
    /// A request with id 0, as XO's clients send.
    pub fn new(method: impl Into<String>, params: Value) -> Self {
        Self { jsonrpc: "2.0".into(), id: json!(0), method: method.into(), params }
    }
}

/// The `result` that announces NDJSON lines.
pub fn ndjson_header() -> Value {
    json!({ "$responseType": "ndjson" })
}
