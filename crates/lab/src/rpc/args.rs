//! The parameters of a call, with the failures XAPI has for wrong ones.

use serde_json::{Map, Value};

use crate::failure::Failure;

/// Parameters after the session.
pub(crate) struct Args<'a> {
    method: &'a str,
    values: Vec<Value>,
}

impl<'a> Args<'a> {
    /// Of a call to `method`.
    pub fn new(method: &'a str, values: Vec<Value>) -> Self {
        Self { method, values }
    }

    /// Refuses any other number of parameters.
    pub fn exactly(&self, count: usize) -> Result<(), Failure> {
        self.between(count, count)
    }

    /// Refuses fewer or more.
    pub fn between(&self, least: usize, most: usize) -> Result<(), Failure> {
        let found = self.values.len();
        if (least..=most).contains(&found) {
            return Ok(());
        }
        let expected = if found < least { least } else { most };
        Err(Failure::new("MESSAGE_PARAMETER_COUNT_MISMATCH", [self.method.to_owned(), expected.to_string(), found.to_string()]))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// One of them.
    pub fn value(&self, index: usize) -> Result<&Value, Failure> {
        self.values.get(index).ok_or_else(|| {
            Failure::new(
                "MESSAGE_PARAMETER_COUNT_MISMATCH",
                [self.method.to_owned(), (index + 1).to_string(), self.values.len().to_string()],
            )
        })
    }

    /// A text; references are texts too.
    pub fn text(&self, index: usize) -> Result<&str, Failure> {
        self.value(index)?.as_str().ok_or_else(|| self.wrong(index))
    }

    /// A boolean.
    pub fn flag(&self, index: usize) -> Result<bool, Failure> {
        self.value(index)?.as_bool().ok_or_else(|| self.wrong(index))
    }

    /// An integer, also as text.
    pub fn integer(&self, index: usize) -> Result<i64, Failure> {
        match self.value(index)? {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        }
        .ok_or_else(|| self.wrong(index))
    }

    /// A float, also as text.
    pub fn float(&self, index: usize) -> Result<f64, Failure> {
        match self.value(index)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        }
        .filter(|number| number.is_finite())
        .ok_or_else(|| self.wrong(index))
    }

    /// A set of texts.
    pub fn texts(&self, index: usize) -> Result<Vec<String>, Failure> {
        let items = self.value(index)?.as_array().ok_or_else(|| self.wrong(index))?;
        items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(|| self.wrong(index))).collect()
    }

    /// A map or record.
    pub fn map(&self, index: usize) -> Result<&Map<String, Value>, Failure> {
        self.value(index)?.as_object().ok_or_else(|| self.wrong(index))
    }

    fn wrong(&self, index: usize) -> Failure {
        Failure::field_type(&format!("parameter {} of {}", index + 1, self.method))
    }
}
