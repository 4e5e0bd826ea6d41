//! What proves to a proxy who calls.

use std::fmt;

/// A token; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as it stands in a file or on standard input: white space around it is no part of it.
    ///
    /// # Errors
    /// What is wrong with it, in words: it travels as the value of a cookie, and not everything can.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | ',' | ';' | '\\');
        if text.is_empty() || !text.chars().all(fits) {
            return Err("a token is printable ASCII without spaces, quotes, commas, semicolons or backslashes".into());
        }
        Ok(Self(text.to_owned()))
    }

    /// The text, to be sent and to be stored.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
