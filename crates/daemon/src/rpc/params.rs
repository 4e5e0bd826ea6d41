//! Parameters: by name only, unknown ones refused, and the checks that several methods share.

use api::Method;
use serde_json::{Map, Value};

use crate::fault::{Fault, Invalid};

/// Reads the parameters of a method.
pub fn read<M: Method>(given: Value) -> Result<M::Params, Fault> {
    let Value::Object(mut given) = given else {
        return Err(Fault::invalid("", "parameters are given by name, as an object"));
    };
    // Absent and null mean the same.
    given.retain(|_, value| !value.is_null());
    let params: M::Params = serde_json::from_value(Value::Object(given.clone()))
        .map_err(|error| Fault::InvalidParameters(vec![explain::<M>(&given, &error)]))?;
    // What was understood is what is written back.
    let understood = serde_json::to_value(&params).unwrap_or_default();
    let unknown: Vec<Invalid> = given
        .keys()
        .filter(|key| understood.get(key).is_none())
        .map(|key| Invalid {
            name: key.clone(),
            keyword: "additionalProperties",
            message: format!("{} has no parameter {key:?}", M::NAME),
        })
        .collect();
    if unknown.is_empty() { Ok(params) } else { Err(Fault::InvalidParameters(unknown)) }
}

/// Finds the parameter that an error is about: the one without which the error is another.
fn explain<M: Method>(given: &Map<String, Value>, error: &serde_json::Error) -> Invalid {
    let text = error.to_string();
    if let Some(name) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        return Invalid { name: name.into(), keyword: "required", message: format!("the parameter {name:?} is missing") };
    }
    let culprit = given.keys().find(|key| {
        let mut without = given.clone();
        without.remove(*key);
        serde_json::from_value::<M::Params>(Value::Object(without)).map_or_else(|other| other.to_string() != text, |_| true)
    });
    let name = culprit.cloned().unwrap_or_default();
    let message = if name.is_empty() { text } else { format!("{name}: {text}") };
    Invalid { name, keyword: "type", message }
}

/// A name for a pool, remote or job: 1 to 200 characters, none of them a control character.
pub fn name(text: &str) -> Result<String, Fault> {
    let trimmed = text.trim();
    match check_name(trimmed) {
        Ok(()) => Ok(trimmed.to_owned()),
        Err(message) => Err(Fault::invalid("name", format!("name: {message}"))),
    }
}

/// Why a text is no name.
pub fn check_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        Err("it is empty".into())
    } else if text.chars().count() > 200 {
        Err(format!("it has {} characters; at most 200", text.chars().count()))
    } else if text.chars().any(char::is_control) {
        Err("it holds a control character".into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use api::{JobCreate, PoolFilter, RunWatch, VmList};
    use serde_json::json;

    use super::*;

    fn refused<M: Method>(given: Value) -> (String, &'static str) {
        match read::<M>(given).err() {
            Some(Fault::InvalidParameters(found)) => (found[0].name.clone(), found[0].keyword),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_parameter_at_fault_is_named() {
        assert_eq!(refused::<RunWatch>(json!({})), ("run".into(), "required"));
        assert_eq!(refused::<RunWatch>(json!({ "run": "r", "cursor": "x" })), ("cursor".into(), "type"));
        assert_eq!(refused::<RunWatch>(json!({ "run": "r", "from": 1 })), ("from".into(), "additionalProperties"));
        let job = json!({ "name": "n", "mode": "delta", "vms": [], "remotes": [], "retention": -1 });
        assert_eq!(refused::<JobCreate>(job).1, "type");
        assert_eq!(refused::<VmList>(json!(["pool"])), (String::new(), "format"));
    }

    #[test]
    fn null_is_absent() {
        assert_eq!(read::<VmList>(json!({ "pool": null })).unwrap(), PoolFilter { pool: None });
    }

    #[test]
    fn odd_names_are_names_and_broken_ones_are_not() {
        for good in ["a", "näme \"with\" 'quotes'", "../x", "🦀", "\u{202e}rtl"] {
            assert_eq!(name(good).unwrap(), good);
        }
        for bad in ["", "  ", "a\nb", "a\0b", &"x".repeat(201)] {
            name(bad).unwrap_err();
        }
    }
}
