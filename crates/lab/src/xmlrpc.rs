//! XML-RPC as XAPI speaks it: values, calls, answers, and the fragments in task results and `ova.xml`.
//!
//! XAPI's dialect (xapi-streams.md §1.1, §4.3): integers and texts are untyped `<value>`s, so an integer comes back as
//! text; floats, booleans and dates have their types; the counts of `event.from` alone are `<i4>`.

use quick_xml::Reader;
use quick_xml::escape::escape;
use quick_xml::events::Event;
use serde_json::{Map, Value};

use crate::record::DATES;

/// Nesting beyond this is nobody's call.
const DEPTH: usize = 64;

/// A text that is no XML-RPC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Not well-formed XML.
    #[error("the XML is not well-formed: {0}")]
    Syntax(String),
    /// Well-formed, but not what XML-RPC wants.
    #[error("the XML is no XML-RPC: expected {expected}, found {found}")]
    Unexpected {
        /// What should stand there.
        expected: &'static str,
        /// What does.
        found: String,
    },
}

/// Writes a value; `field` is the name under which it stands, for dates are known by their field.
pub fn write_value(out: &mut String, field: &str, value: &Value) {
    out.push_str("<value>");
    match value {
        Value::Null => {}
        Value::Bool(flag) => out.push_str(if *flag { "<boolean>1</boolean>" } else { "<boolean>0</boolean>" }),
        Value::Number(number) if number.is_f64() => {
            out.push_str(&format!("<double>{:?}</double>", number.as_f64().unwrap_or_default()));
        }
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) if DATES.contains(&field) && is_date(text) => {
            out.push_str(&format!("<dateTime.iso8601>{text}</dateTime.iso8601>"));
        }
        Value::String(text) => write_text(out, text),
        Value::Array(items) => {
            out.push_str("<array><data>");
            for item in items {
                write_value(out, "", item);
            }
            out.push_str("</data></array>");
        }
        Value::Object(members) => {
            out.push_str("<struct>");
            for (name, member) in members {
                out.push_str("<member><name>");
                write_text(out, name);
                out.push_str("</name>");
                match member {
                    Value::Object(counts) if name == "valid_ref_counts" => write_counts(out, counts),
                    _ => write_value(out, name, member),
                }
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
}

/// A value as a text of its own: what a task's `result` holds.
pub fn fragment(value: &Value) -> String {
    match value {
        // A call without result leaves an empty text, not an empty value.
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => String::new(),
        _ => {
            let mut out = String::new();
            write_value(&mut out, "", value);
            out
        }
    }
}

fn write_counts(out: &mut String, counts: &Map<String, Value>) {
    out.push_str("<value><struct>");
    for (name, count) in counts {
        out.push_str(&format!("<member><name>{}</name><value><i4>{count}</i4></value></member>", escape(name)));
    }
    out.push_str("</struct></value>");
}

fn write_text(out: &mut String, text: &str) {
    // XML has no way to write most control characters.
    let writable = |c: char| matches!(c, '\t' | '\n' | '\r') || c >= ' ' && c != '\u{FFFE}' && c != '\u{FFFF}';
    if text.chars().all(writable) {
        out.push_str(&escape(text));
    } else {
        let text: String = text.chars().map(|c| if writable(c) { c } else { '\u{FFFD}' }).collect();
        out.push_str(&escape(&text));
    }
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 17 && bytes[8] == b'T' && bytes[..8].iter().all(u8::is_ascii_digit)
}

/// The answer to a call: `Ok` for success, `Err` with code and parameters for failure.
pub fn response(field: &str, answer: Result<&Value, &Value>) -> String {
    let mut out = String::from("<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>");
    let (status, name, value) = match answer {
        Ok(value) => ("Success", "Value", value),
        Err(description) => ("Failure", "ErrorDescription", description),
    };
    out.push_str(&format!("<member><name>Status</name><value>{status}</value></member><member><name>{name}</name>"));
    match value {
        Value::Null => out.push_str("<value></value>"),
        value => write_value(&mut out, field, value),
    }
    out.push_str("</member></struct></value></param></params></methodResponse>");
    out
}

/// A `methodCall`: the method and its parameters.
///
/// # Errors
/// When the text is no such call.
pub fn parse_call(text: &str) -> Result<(String, Vec<Value>), XmlError> {
    let mut parser = Parser::new(text);
    parser.open("methodCall")?;
    parser.open("methodName")?;
    let method = parser.text_until("methodName")?;
    let mut params = Vec::new();
    if parser.opens("params")? {
        while parser.opens("param")? {
            parser.open("value")?;
            params.push(parser.value(0)?);
            parser.close("param")?;
        }
        parser.close("params")?;
    }
    parser.close("methodCall")?;
    Ok((method.trim().to_owned(), params))
}

/// A single `<value>`, as in `ova.xml`; a declaration may stand before it.
///
/// # Errors
/// When the text is no such value.
pub fn parse_value(text: &str) -> Result<Value, XmlError> {
    let mut parser = Parser::new(text);
    parser.open("value")?;
    parser.value(0)
}

enum Token {
    Open(String),
    Close(String),
    Text(String),
    End,
}

struct Parser<'a> {
    reader: Reader<&'a [u8]>,
    ahead: Option<Token>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        Self { reader, ahead: None }
    }

    fn next(&mut self) -> Result<Token, XmlError> {
        if let Some(token) = self.ahead.take() {
            return Ok(token);
        }
        let syntax = |error: &dyn std::fmt::Display| XmlError::Syntax(error.to_string());
        loop {
            return Ok(match self.reader.read_event().map_err(|e| syntax(&e))? {
                Event::Start(tag) => Token::Open(tag.name().as_ref().to_owned()),
                Event::End(tag) => Token::Close(tag.name().as_ref().to_owned()),
                Event::Text(text) => Token::Text(text.xml10_content().into_owned()),
                Event::CData(text) => Token::Text(text.xml10_content().into_owned()),
                Event::GeneralRef(name) => Token::Text(match name.resolve_char_ref().map_err(|e| syntax(&e))? {
                    Some(character) => character.to_string(),
                    None => match &*name.xml10_content() {
                        "lt" => "<".into(),
                        "gt" => ">".into(),
                        "amp" => "&".into(),
                        "quot" => "\"".into(),
                        "apos" => "'".into(),
                        other => return Err(XmlError::Syntax(format!("unknown entity {other}"))),
                    },
                }),
                Event::Eof => Token::End,
                _ => continue,
            });
        }
    }

    /// The next token that is not white space between elements.
    fn next_tag(&mut self) -> Result<Token, XmlError> {
        loop {
            match self.next()? {
                Token::Text(text) if text.trim().is_empty() => {}
                token => return Ok(token),
            }
        }
    }

    fn open(&mut self, name: &'static str) -> Result<(), XmlError> {
        match self.next_tag()? {
            Token::Open(found) if found == name => Ok(()),
            other => Err(unexpected(name, other)),
        }
    }

    /// Whether that element opens here; something else stays for the next question.
    fn opens(&mut self, name: &'static str) -> Result<bool, XmlError> {
        match self.next_tag()? {
            Token::Open(found) if found == name => Ok(true),
            token => {
                self.ahead = Some(token);
                Ok(false)
            }
        }
    }

    fn close(&mut self, name: &'static str) -> Result<(), XmlError> {
        match self.next_tag()? {
            Token::Close(found) if found == name => Ok(()),
            other => Err(unexpected(name, other)),
        }
    }

    fn text_until(&mut self, name: &'static str) -> Result<String, XmlError> {
        let mut all = String::new();
        loop {
            match self.next()? {
                Token::Text(text) => all.push_str(&text),
                Token::Close(found) if found == name => return Ok(all),
                other => return Err(unexpected("text", other)),
            }
        }
    }

    /// What follows `<value>`, to its end.
    fn value(&mut self, depth: usize) -> Result<Value, XmlError> {
        if depth > DEPTH {
            return Err(XmlError::Unexpected { expected: "shallow nesting", found: "more than 64 levels".into() });
        }
        let mut text = String::new();
        loop {
            match self.next()? {
                Token::Text(more) => text.push_str(&more),
                Token::Close(name) if name == "value" => return Ok(text.into()),
                Token::Open(kind) => {
                    let value = self.typed(&kind, depth)?;
                    self.close("value")?;
                    return Ok(value);
                }
                other => return Err(unexpected("a value", other)),
            }
        }
    }

    fn typed(&mut self, kind: &str, depth: usize) -> Result<Value, XmlError> {
        let wrong = |expected, found: String| XmlError::Unexpected { expected, found };
        match kind {
            "struct" => {
                let mut members = Map::new();
                while self.opens("member")? {
                    self.open("name")?;
                    let name = self.text_until("name")?;
                    self.open("value")?;
                    members.insert(name, self.value(depth + 1)?);
                    self.close("member")?;
                }
                self.close("struct")?;
                Ok(Value::Object(members))
            }
            "array" => {
                let mut items = Vec::new();
                self.open("data")?;
                while self.opens("value")? {
                    items.push(self.value(depth + 1)?);
                }
                self.close("data")?;
                self.close("array")?;
                Ok(Value::Array(items))
            }
            "string" => Ok(self.text_until("string")?.into()),
            "base64" => Ok(self.text_until("base64")?.into()),
            "dateTime.iso8601" => Ok(self.text_until("dateTime.iso8601")?.into()),
            "boolean" => match self.text_until("boolean")?.trim() {
                "1" | "true" => Ok(true.into()),
                "0" | "false" => Ok(false.into()),
                other => Err(wrong("a boolean", other.to_owned())),
            },
            "double" => {
                let text = self.text_until("double")?;
                text.trim().parse::<f64>().map(Value::from).map_err(|_| wrong("a double", text))
            }
            "int" | "i4" | "i8" => {
                let name = if kind == "int" {
                    "int"
                } else if kind == "i4" {
                    "i4"
                } else {
                    "i8"
                };
                let text = self.text_until(name)?;
                text.trim().parse::<i64>().map(Value::from).map_err(|_| wrong("an integer", text))
            }
            "nil" => self.close("nil").map(|()| Value::Null),
            other => Err(wrong("a type of XML-RPC", other.to_owned())),
        }
    }
}

fn unexpected(expected: &'static str, token: Token) -> XmlError {
    let found = match token {
        Token::Open(name) => format!("<{name}>"),
        Token::Close(name) => format!("</{name}>"),
        Token::Text(_) => "text".to_owned(),
        Token::End => "the end".to_owned(),
    };
    XmlError::Unexpected { expected, found }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_call_is_read() {
        let text = "<?xml version='1.0'?>\n<methodCall>\n<methodName>VM.get &amp; set</methodName>\n<params>\n<param>\n\
            <value><string>a &lt;b&gt;&#233;</string></value>\n</param>\n<param><value>plain</value></param><param><value><int>7</int></value>\
            </param><param><value><struct><member><name>k</name><value><array><data><value><boolean>1</boolean></value><value/></data></array>\
            </value></member></struct></value></param></params></methodCall>";
        let (method, params) = parse_call(text).unwrap();
        assert_eq!(method, "VM.get & set");
        assert_eq!(params, [json!("a <b>é"), json!("plain"), json!(7), json!({ "k": [true, ""] })]);
    }

    #[test]
    fn garbage_is_refused() {
        let deep = format!("{}{}", "<value><array><data>".repeat(2000), "</data></array></value>".repeat(2000));
        for text in ["", "<methodCall/>", "<methodCall><methodName>x", "<value>&nope;</value>", deep.as_str()] {
            parse_call(text).unwrap_err();
            if text.starts_with("<value") {
                parse_value(text).unwrap_err();
            }
        }
    }

    #[test]
    fn numbers_dates_and_counts_have_xapis_types() {
        let event = json!({ "snapshot_time": "20250131T23:15:00Z", "name_label": "20250131T23:15:00Z", "n": 5, "f": 1.0,
            "valid_ref_counts": { "task": 2 } });
        let mut out = String::new();
        write_value(&mut out, "", &event);
        assert!(out.contains("<name>snapshot_time</name><value><dateTime.iso8601>20250131T23:15:00Z</dateTime.iso8601></value>"));
        assert!(out.contains("<name>name_label</name><value>20250131T23:15:00Z</value>"));
        assert!(out.contains("<value>5</value>") && out.contains("<double>1.0</double>"));
        assert!(out.contains("<name>task</name><value><i4>2</i4></value>"));
    }

    #[test]
    fn results_of_tasks_are_fragments() {
        assert_eq!(fragment(&Value::Null), "");
        assert_eq!(fragment(&json!("OpaqueRef:1")), "<value>OpaqueRef:1</value>");
        assert_eq!(fragment(&json!(["a"])), "<value><array><data><value>a</value></data></array></value>");
    }

    proptest! {
        #[test]
        fn texts_survive(text in "[^\\p{C}]{0,40}", flag: bool) {
            let value = json!({ "a": [text, flag], "": {} });
            let mut out = String::new();
            write_value(&mut out, "", &value);
            prop_assert_eq!(parse_value(&out).unwrap(), value);
        }
    }
}
