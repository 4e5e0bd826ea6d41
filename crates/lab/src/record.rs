//! The classes of XAPI that the pool has, each with the one set of fields that all its records carry.
//!
//! Clients build their accessors from the first record they see, so a record never lacks a field and never has one
//! more (xapi-streams.md §5.1, §5.6). The fields, in `records.json`, are those of the public XenAPI reference.

use std::collections::HashMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value};

/// The reference to nothing.
pub(crate) const NULL: &str = "OpaqueRef:NULL";

/// The date of what never happened.
pub(crate) const EPOCH: &str = "19700101T00:00:00Z";

/// All classes, spelt as XAPI spells them.
pub(crate) const CLASSES: &[&str] = &[
    "pool",
    "host",
    "host_metrics",
    "network",
    "PIF",
    "SR",
    "PBD",
    "SM",
    "VM",
    "VM_metrics",
    "VM_guest_metrics",
    "VDI",
    "VBD",
    "VIF",
    "VTPM",
    "VUSB",
    "VGPU",
    "GPU_group",
    "VM_appliance",
    "message",
    "task",
];

/// Fields whose value is a date; XML-RPC gives those a type of their own.
pub(crate) const DATES: &[&str] =
    &["snapshot_time", "created", "finished", "timestamp", "last_updated", "install_time", "start_time"];

/// Now, as XAPI writes dates.
pub(crate) fn now() -> String {
    date(Timestamp::now())
}

/// A time as XAPI writes dates.
pub(crate) fn date(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H:%M:%SZ").to_string()
}

/// The fields of all classes, by class, with neutral values.
static TEMPLATES: LazyLock<HashMap<String, Map<String, Value>>> =
    LazyLock::new(|| serde_json::from_str(include_str!("records.json")).expect("the tests read every class of this file"));

/// A record of the class with neutral values. Its `uuid` is empty.
pub(crate) fn template(class: &str) -> &'static Map<String, Value> {
    &TEMPLATES[class]
}

/// Brings a value that a client sent to the kind the field has: XML-RPC clients send integers as text
/// (xapi-streams.md §1.1). `None` when it does not fit.
pub(crate) fn coerce(field: &Value, given: Value) -> Option<Value> {
    match (field, given) {
        (Value::Number(kind), Value::String(text)) if kind.is_f64() => text.trim().parse::<f64>().ok().map(Value::from),
        (Value::Number(kind), Value::Number(number)) if kind.is_f64() => number.as_f64().map(Value::from),
        (Value::Number(_), Value::String(text)) => text.trim().parse::<i64>().ok().map(Value::from),
        (Value::Number(_), Value::Number(number)) => {
            number.as_i64().or_else(|| number.as_f64().filter(|n| n.fract() == 0.0).map(|n| n as i64)).map(Value::from)
        }
        (Value::Object(_), Value::Object(map)) => {
            let texts = map.into_iter().map(|(key, value)| Some((key, as_text(value)?)));
            texts.collect::<Option<Map<_, _>>>().map(Value::Object)
        }
        (Value::Bool(_), given @ Value::Bool(_))
        | (Value::String(_), given @ Value::String(_))
        | (Value::Array(_), given @ Value::Array(_)) => Some(given),
        _ => None,
    }
}

/// Maps of XAPI hold texts only.
fn as_text(value: Value) -> Option<Value> {
    match value {
        Value::String(_) | Value::Object(_) => Some(value),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_class_has_an_identity() {
        for class in CLASSES {
            let fields = template(class);
            assert_eq!(fields.get("uuid"), Some(&Value::from("")), "{class}");
            assert!(fields.len() > 3, "{class}");
        }
    }

    #[test]
    fn integers_may_come_as_text() {
        assert_eq!(coerce(&json!(0), json!("42")), Some(json!(42)));
        assert_eq!(coerce(&json!(0.0), json!("1.5")), Some(json!(1.5)));
        assert_eq!(coerce(&json!(0), json!("many")), None);
        assert_eq!(coerce(&json!({}), json!({ "a": 1 })), Some(json!({ "a": "1" })));
        assert_eq!(coerce(&json!(""), json!(7)), None);
    }

    #[test]
    fn dates_look_like_dates() {
        assert_eq!((now().len(), EPOCH.len()), (18, 18));
    }
}
