//! JSON-RPC 2.0 calls: one request, with what is tried again and what is not (xapi-streams.md §1.1, §1.6).

use std::time::Duration;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use url::Url;

use crate::error::Source;
use crate::session::{Session, address};
use crate::transfer::connection;
use crate::{Client, Error, Kind, Record, Ref, Result, XapiError};

/// Largest answer read: all records of a big class of a big pool are a tenth of it.
const MAX_ANSWER: usize = 512 << 20;
/// What stands in place of a session reference.
const HIDDEN: &str = "<session>";

impl Client {
    /// Calls `class.method`. `params` is a list without the session: `json!([vm])`, a tuple, a `Vec<Value>`.
    ///
    /// Logs in again once when the session expired, follows a new master once, waits out `TOO_MANY_PENDING_TASKS` and
    /// 503, and repeats reading calls whose connection broke.
    pub async fn call<T: DeserializeOwned>(&self, method: &str, params: impl Serialize) -> Result<T> {
        self.call_within(method, params, self.timing().call).await
    }

    /// As [`Client::call`], for calls without a result.
    pub async fn run(&self, method: &str, params: impl Serialize) -> Result<()> {
        self.call::<IgnoredAny>(method, params).await.map(drop)
    }

    /// As [`Client::call`], within a time of its own.
    pub async fn call_within<T: DeserializeOwned>(&self, method: &str, params: impl Serialize, limit: Duration) -> Result<T> {
        let malformed = |reason: String| Error::Malformed { what: method.to_owned(), reason };
        let params = match serde_json::to_value(params) {
            Ok(Value::Array(params)) => params,
            Ok(Value::Null) => Vec::new(),
            Ok(one) => vec![one],
            Err(error) => return Err(malformed(format!("the parameters cannot be written: {error}"))),
        };
        let value = self.call_values(method, params, limit).await?;
        serde_json::from_value(value).map_err(|error| malformed(error.to_string()))
    }

    async fn call_values(&self, method: &str, params: Vec<Value>, limit: Duration) -> Result<Value> {
        // Waiting for events takes no place among the calls, or twenty waits would stop everything.
        let _place = if method == "event.from" { None } else { self.inner.calls.acquire().await.ok() };
        let timing = self.timing();
        let mut session = self.session().await?;
        let (mut renewed, mut moved, mut busy, mut broken) = (false, false, 1, 1);
        loop {
            let mut all = vec![json!(&*session.secret)];
            all.extend(params.iter().cloned());
            let error = match self.post(&session.base, method, all, limit).await {
                Ok(value) => return Ok(value),
                Err(error) => self.hide(error, &session),
            };
            match &error {
                Error::Api { failure, .. } if failure.code == "SESSION_INVALID" && !renewed => {
                    renewed = true;
                    session = self.renew(&session).await?;
                }
                Error::Api { failure, .. } if failure.code == "HOST_IS_SLAVE" && !moved && !failure.params.is_empty() => {
                    moved = true;
                    session = self.follow(&session, &failure.params[0]).await?;
                }
                Error::Api { .. } | Error::Http { .. } if is_busy(&error) && busy < timing.busy_attempts => {
                    busy += 1;
                    tokio::time::sleep(timing.busy_delay).await;
                }
                // Not sent, or without effect when sent twice.
                Error::Connect { .. } | Error::Transport { .. } if reads_only(method) && broken < timing.read_attempts => {
                    broken += 1;
                    tracing::debug!(method, %error, "trying again");
                    tokio::time::sleep(timing.read_delay).await;
                }
                _ => return Err(error),
            }
        }
    }

    /// One request, as it is.
    pub(crate) async fn post(&self, base: &Url, method: &str, params: Vec<Value>, limit: Duration) -> Result<Value> {
        let request = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 0});
        let url = base.join("jsonrpc").map_err(|error| Error::Url { url: base.to_string(), reason: error.to_string() })?;
        let answer = async {
            let mut response = self.inner.http.post(url).header("accept", "application/json").json(&request).send().await?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MAX_ANSWER {
                    return Ok(Err(Error::Malformed { what: method.into(), reason: format!("more than {MAX_ANSWER} bytes") }));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Ok((response.status(), body)))
        };
        let (status, body) = match tokio::time::timeout(limit, answer).await {
            Err(_) => return Err(Error::TimedOut { what: method.into(), after: limit }),
            Ok(Err(error)) => return Err(self.transport(base, method, error).await),
            Ok(Ok(result)) => result?,
        };
        if !status.is_success() {
            return Err(Error::Http { what: method.into(), address: address(base), status: status.as_u16() });
        }
        read_answer(method, &body)
    }

    async fn transport(&self, base: &Url, method: &str, error: reqwest::Error) -> Error {
        // The URL of a call holds no secret, that of others may: one habit for all.
        let error = error.without_url();
        if error.is_timeout() && !error.is_connect() {
            return Error::TimedOut { what: method.into(), after: self.timing().inactivity };
        }
        let connecting = error.is_connect();
        let source: Source = error.into();
        if connecting {
            connection::refused(base, &self.inner.connect.trust, self.timing().connect, source).await
        } else {
            Error::Transport { what: method.into(), address: address(base), source }
        }
    }

    /// An error the pool told, with the session taken out of it.
    pub(crate) fn api_error(&self, what: &str, mut failure: XapiError) -> Error {
        if failure.code == "SESSION_INVALID" {
            failure.params = vec![HIDDEN.into()];
        }
        for param in &mut failure.params {
            *param = hide_parameter(param);
        }
        Error::Api { method: what.to_owned(), failure }
    }

    fn hide(&self, error: Error, session: &Session) -> Error {
        match error {
            Error::Api { method, mut failure } => {
                for param in &mut failure.params {
                    *param = hide(param, &session.secret);
                }
                self.api_error(&method, failure)
            }
            other => other,
        }
    }

    /// The record of one object.
    pub async fn get<T: Kind>(&self, object: &Ref) -> Result<Record<T>> {
        let method = format!("{}.get_record", T::CLASS);
        let value = self.call(&method, json!([object])).await?;
        read_record(&method, object.clone(), value)
    }

    /// The object with a UUID.
    ///
    /// # Errors
    /// `UUID_INVALID` when there is none.
    pub async fn by_uuid<T: Kind>(&self, uuid: &str) -> Result<Record<T>> {
        let object: Ref = self.call(&format!("{}.get_by_uuid", T::CLASS), json!([uuid])).await?;
        self.get(&object).await
    }

    /// All objects of a class.
    pub async fn all<T: Kind>(&self) -> Result<Vec<Record<T>>> {
        let method = format!("{}.get_all_records", T::CLASS);
        let values: serde_json::Map<String, Value> = self.call(&method, json!([])).await?;
        values.into_iter().map(|(reference, value)| read_record(&method, reference.into(), value)).collect()
    }

    /// One field of an object.
    pub async fn field<T: DeserializeOwned>(&self, class: &str, object: &Ref, field: &str) -> Result<T> {
        self.call(&format!("{class}.get_{field}"), json!([object])).await
    }

    /// Sets one field of an object.
    pub async fn set_field(&self, class: &str, object: &Ref, field: &str, value: impl Serialize + Send) -> Result<()> {
        self.run(&format!("{class}.set_{field}"), (object, value)).await
    }
}

fn read_record<T: Kind>(method: &str, reference: Ref, value: Value) -> Result<Record<T>> {
    Record::read(reference, value).map_err(|error| Error::Malformed { what: method.to_owned(), reason: error.to_string() })
}

fn is_busy(error: &Error) -> bool {
    error.is("TOO_MANY_PENDING_TASKS") || matches!(error, Error::Http { status: 503, .. })
}

/// Calls without effect, which may be sent twice.
fn reads_only(method: &str) -> bool {
    method.split_once('.').is_some_and(|(_, name)| name.starts_with("get_")) && !method.starts_with("Async.")
}

/// The result or error in the body of an answer.
fn read_answer(method: &str, body: &[u8]) -> Result<Value> {
    let malformed = |reason: String| Error::Malformed { what: method.to_owned(), reason };
    let mut answer: Value = serde_json::from_slice(body).map_err(|error| malformed(format!("no JSON: {error}")))?;
    match answer.get_mut("error").map(Value::take) {
        None | Some(Value::Null) => {}
        Some(error) => {
            let code = match &error["message"] {
                Value::String(code) => code.clone(),
                _ => return Err(malformed("an error without a code".into())),
            };
            let params = match &error["data"] {
                Value::Array(params) => params.iter().map(text_of).collect(),
                Value::Null => Vec::new(),
                one => vec![text_of(one)],
            };
            return Err(Error::Api { method: method.to_owned(), failure: XapiError::new(code, params) });
        }
    }
    match answer.get_mut("result") {
        Some(result) => Ok(result.take()),
        None => Err(malformed("neither result nor error".into())),
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Takes a secret out of a text.
pub(crate) fn hide(text: &str, secret: &str) -> String {
    text.replace(secret, HIDDEN)
}

/// Takes what follows `session_id=` out of a text, up to what can end a parameter of a URL: errors quote the URLs of
/// transfers.
fn hide_parameter(text: &str) -> String {
    const PARAMETER: &str = "session_id=";
    let (mut hidden, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(PARAMETER) {
        let (before, after) = rest.split_at(at + PARAMETER.len());
        hidden.push_str(before);
        hidden.push_str(HIDDEN);
        let end = after.find(|c: char| c.is_whitespace() || "&\"';,)#".contains(c)).unwrap_or(after.len());
        rest = &after[end..];
    }
    hidden + rest
}

/// The rustls error in a chain of causes.
pub(crate) fn tls_cause<'a>(source: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(source);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An io::Error shows the source of what it wraps, not what it wraps.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failure(body: &str) -> XapiError {
        read_answer("VM.start", body.as_bytes()).unwrap_err().failure().expect("an error of XAPI").clone()
    }

    #[test]
    fn an_answer_is_a_result_or_an_error() {
        assert_eq!(read_answer("m", br#"{"jsonrpc":"2.0","result":[1],"id":0}"#).unwrap(), json!([1]));
        assert_eq!(read_answer("m", br#"{"result":"","error":null}"#).unwrap(), json!(""));
        let busy = failure(r#"{"error":{"code":1,"message":"VDI_IN_USE","data":["OpaqueRef:1",2]}}"#);
        assert_eq!(busy, XapiError::new("VDI_IN_USE", vec!["OpaqueRef:1".into(), "2".into()]));
        assert_eq!(failure(r#"{"error":{"message":"X"}}"#), XapiError::new("X", vec![]));
    }

    #[test]
    fn what_is_no_answer_is_named_so() {
        for body in ["", "<html>", "{}", "[]", r#"{"error":{}}"#, r#"{"error":"x"}"#] {
            assert!(matches!(read_answer("m", body.as_bytes()), Err(Error::Malformed { .. })), "{body}");
        }
    }

    #[test]
    fn no_session_stays_in_a_quoted_address() {
        for (text, hidden) in [
            ("plain", "plain"),
            ("GET /export/?session_id=OpaqueRef:a1&ref=x (500)", "GET /export/?session_id=<session>&ref=x (500)"),
            ("a session_id=s1 b session_id=s2", "a session_id=<session> b session_id=<session>"),
            ("\"/?session_id=s\"", "\"/?session_id=<session>\""),
        ] {
            assert_eq!(hide_parameter(text), hidden);
            assert_eq!(hide_parameter(hidden), hidden);
        }
    }

    #[test]
    fn only_reading_calls_are_sent_twice() {
        for method in ["VM.get_record", "task.get_all_records", "VM_guest_metrics.get_record"] {
            assert!(reads_only(method), "{method}");
        }
        for method in ["VM.start", "Async.VM.snapshot", "VDI.create", "VM.set_name_label", "VM.forget_get_x", "get"] {
            assert!(!reads_only(method), "{method}");
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..64), text in r#"[{}\[\]":,a-e0-3 ]{0,40}"#) {
            let _ = read_answer("m", &body);
            let _ = read_answer("m", text.as_bytes());
        }
    }
}
