//! XML-RPC values, in which results of tasks are written even over JSON-RPC (xapi-streams.md §1.4, T4).

use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use quick_xml::reader::Reader;
use serde_json::{Map, Value};

/// Deepest nesting followed; results of XAPI have at most a handful of levels.
const MAX_DEPTH: usize = 64;

/// A text that is no XML-RPC value.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    /// Not XML.
    #[error("not well-formed XML")]
    Xml(#[from] quick_xml::Error),
    /// XML, but not an XML-RPC value.
    #[error("no XML-RPC value: {0}")]
    Shape(String),
}

fn shape<T>(reason: impl Into<String>) -> Result<T, XmlError> {
    Err(XmlError::Shape(reason.into()))
}

/// Parses one `<value>…</value>`. An empty (or blank) text is `null`, an untyped value a string, `<int>`, `<i4>` and
/// `<double>` are numbers, `<nil/>` is `null`.
pub fn parse_value(text: &str) -> Result<Value, XmlError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Value::Null);
    }
    let mut parser = Parser { reader: Reader::from_str(text) };
    loop {
        match parser.next()? {
            Token::Open(name) if name == "value" => break,
            Token::Text(text) if text.trim().is_empty() => {}
            _ => return shape("it does not begin with <value>"),
        }
    }
    let value = parser.value(0)?;
    loop {
        match parser.next()? {
            Token::End => return Ok(value),
            Token::Text(text) if text.trim().is_empty() => {}
            _ => return shape("something follows the value"),
        }
    }
}

enum Token {
    Open(String),
    Close(String),
    Text(String),
    End,
}

struct Parser<'a> {
    reader: Reader<&'a [u8]>,
}

impl Parser<'_> {
    fn next(&mut self) -> Result<Token, XmlError> {
        self.reader.config_mut().expand_empty_elements = true;
        loop {
            return Ok(match self.reader.read_event()? {
                Event::Start(tag) => Token::Open(tag.name().0.to_owned()),
                Event::End(tag) => Token::Close(tag.name().0.to_owned()),
                Event::Text(text) => Token::Text(text.xml10_content().into_owned()),
                Event::CData(text) => Token::Text(text.xml10_content().into_owned()),
                Event::GeneralRef(entity) => match entity.resolve_char_ref()? {
                    Some(character) => Token::Text(character.into()),
                    None => match resolve_predefined_entity(&entity) {
                        Some(text) => Token::Text(text.into()),
                        None => return shape(format!("unknown entity &{};", &*entity)),
                    },
                },
                Event::Eof => Token::End,
                _ => continue,
            });
        }
    }

    /// The rest of a value whose opening tag was read, with its closing tag.
    fn value(&mut self, depth: usize) -> Result<Value, XmlError> {
        if depth > MAX_DEPTH {
            return shape(format!("more than {MAX_DEPTH} levels"));
        }
        let mut text = String::new();
        loop {
            match self.next()? {
                Token::Text(part) => text.push_str(&part),
                Token::Close(name) if name == "value" => return Ok(Value::String(text)),
                Token::Open(kind) => {
                    let value = self.typed(&kind, depth)?;
                    self.close("value")?;
                    return Ok(value);
                }
                Token::Close(_) | Token::End => return shape("a value does not end"),
            }
        }
    }

    fn typed(&mut self, kind: &str, depth: usize) -> Result<Value, XmlError> {
        match kind {
            "array" => self.array(depth),
            "struct" => self.structure(depth),
            "nil" => {
                self.text("nil")?;
                Ok(Value::Null)
            }
            "string" | "dateTime.iso8601" | "base64" => Ok(Value::String(self.text(kind)?)),
            "int" | "i4" | "i8" => {
                let text = self.text(kind)?;
                text.trim().parse::<i64>().map(Value::from).or_else(|_| shape(format!("{text:?} is no integer")))
            }
            "double" => {
                let text = self.text(kind)?;
                text.trim().parse::<f64>().map(Value::from).or_else(|_| shape(format!("{text:?} is no number")))
            }
            "boolean" => match self.text(kind)?.trim() {
                "1" | "true" => Ok(Value::Bool(true)),
                "0" | "false" => Ok(Value::Bool(false)),
                other => shape(format!("{other:?} is no boolean")),
            },
            other => shape(format!("unknown type <{other}>")),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, XmlError> {
        self.open("data")?;
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Token::Open(name) if name == "value" => items.push(self.value(depth + 1)?),
                Token::Close(name) if name == "data" => break,
                Token::Text(text) if text.trim().is_empty() => {}
                _ => return shape("an array holds something else than values"),
            }
        }
        self.close("array")?;
        Ok(Value::Array(items))
    }

    fn structure(&mut self, depth: usize) -> Result<Value, XmlError> {
        let mut members = Map::new();
        loop {
            match self.next()? {
                Token::Open(name) if name == "member" => {
                    self.open("name")?;
                    let name = self.text("name")?;
                    self.open("value")?;
                    let value = self.value(depth + 1)?;
                    self.close("member")?;
                    members.insert(name, value);
                }
                Token::Close(name) if name == "struct" => return Ok(Value::Object(members)),
                Token::Text(text) if text.trim().is_empty() => {}
                _ => return shape("a struct holds something else than members"),
            }
        }
    }

    fn text(&mut self, closing: &str) -> Result<String, XmlError> {
        let mut text = String::new();
        loop {
            match self.next()? {
                Token::Text(part) => text.push_str(&part),
                Token::Close(name) if name == closing => return Ok(text),
                _ => return shape(format!("<{closing}> holds something else than text")),
            }
        }
    }

    fn open(&mut self, tag: &str) -> Result<(), XmlError> {
        loop {
            match self.next()? {
                Token::Open(name) if name == tag => return Ok(()),
                Token::Text(text) if text.trim().is_empty() => {}
                _ => return shape(format!("<{tag}> is missing")),
            }
        }
    }

    fn close(&mut self, tag: &str) -> Result<(), XmlError> {
        loop {
            match self.next()? {
                Token::Close(name) if name == tag => return Ok(()),
                Token::Text(text) if text.trim().is_empty() => {}
                _ => return shape(format!("</{tag}> is missing")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn results_of_tasks_are_read() {
        let cases = [
            ("", Value::Null),
            (" <value>OpaqueRef:1</value>\n", json!("OpaqueRef:1")),
            ("<value/>", json!("")),
            (
                "<value><array><data><value>OpaqueRef:1</value> <value><string>b</string></value></data></array></value>",
                json!(["OpaqueRef:1", "b"]),
            ),
            ("<value><array><data/></array></value>", json!([])),
            (
                "<?xml version=\"1.0\"?><value><struct><member><name>n</name><value><i4>-3</i4></value></member></struct></value>",
                json!({"n": -3}),
            ),
            ("<value>a &lt;b&gt; &amp; &#x63;<![CDATA[<d>]]></value>", json!("a <b> & c<d>")),
            ("<value><boolean>1</boolean></value>", json!(true)),
            ("<value><nil/></value>", Value::Null),
        ];
        for (text, value) in cases {
            assert_eq!(parse_value(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in [
            "OpaqueRef:1",
            "<value>",
            "<value></array>",
            "<value>a</value>b",
            "<value>&nbsp;</value>",
            "<value><int>x</int></value>",
            "<value><array><value>1</value></array></value>",
            "<value><unknown>1</unknown></value>",
            &"<value><array><data>".repeat(100_000),
        ] {
            parse_value(text).unwrap_err();
        }
    }

    fn write(value: &Value) -> String {
        let inner = match value {
            Value::String(text) => quick_xml::escape::escape(text.as_str()).into_owned(),
            Value::Number(number) => format!("<int>{number}</int>"),
            Value::Bool(flag) => format!("<boolean>{}</boolean>", u8::from(*flag)),
            Value::Array(items) => format!("<array><data>{}</data></array>", items.iter().map(write).collect::<String>()),
            Value::Object(members) => {
                let members = members.iter().map(|(name, value)| {
                    format!("<member><name>{}</name>{}</member>", quick_xml::escape::escape(name.as_str()), write(value))
                });
                format!("<struct>{}</struct>", members.collect::<String>())
            }
            Value::Null => "<nil/>".into(),
        };
        format!("<value>{inner}</value>")
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            // XML cannot carry control characters, and turns \r into \n.
            "[^\u{0}-\u{1f}\u{7f}-\u{9f}\u{fffe}\u{ffff}]{0,20}".prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::btree_map("[a-z]{1,5}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(value in values()) {
            prop_assert_eq!(parse_value(&write(&value)).unwrap(), value);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}", tail in "(<value>|</value>|<array>|<data>|x|&lt;|&){0,12}") {
            let _ = parse_value(&text);
            let _ = parse_value(&tail);
        }
    }
}
