//! One line of typed text.

use tui_input::{Input, InputRequest};

use super::key::{Code, Key};

/// A line being edited.
#[derive(Debug, Clone, Default)]
pub struct Field {
    input: Input,
}

impl PartialEq for Field {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text() && self.cursor() == other.cursor()
    }
}

impl Field {
    /// With a text to begin with, cursor at its end.
    pub fn with(text: impl Into<String>) -> Self {
        Self { input: Input::new(text.into()) }
    }

    /// The text.
    pub fn text(&self) -> &str {
        self.input.value()
    }

    /// Whether nothing is typed.
    pub fn is_empty(&self) -> bool {
        self.text().is_empty()
    }

    /// Characters before the cursor.
    pub fn cursor(&self) -> usize {
        self.input.cursor()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.input.reset();
    }

    /// Takes a key; answers whether it was one for a line of text.
    pub fn key(&mut self, key: Key) -> bool {
        use InputRequest as R;
        let request = match (key.code, key.ctrl, key.alt) {
            (Code::Char('a'), true, _) | (Code::Home, ..) => R::GoToStart,
            (Code::Char('e'), true, _) | (Code::End, ..) => R::GoToEnd,
            (Code::Char('u'), true, _) => R::DeleteLine,
            (Code::Char('k'), true, _) => R::DeleteTillEnd,
            (Code::Char('w'), true, _) => R::DeletePrevWord,
            (Code::Char('b'), _, true) | (Code::Left, true, _) => R::GoToPrevWord,
            (Code::Char('f'), _, true) | (Code::Right, true, _) => R::GoToNextWord,
            (Code::Left, ..) => R::GoToPrevChar,
            (Code::Right, ..) => R::GoToNextChar,
            (Code::Backspace, ..) => R::DeletePrevChar,
            (Code::Delete, ..) => R::DeleteNextChar,
            _ => match key.typed() {
                Some(c) => R::InsertChar(c),
                None => return false,
            },
        };
        self.input.handle(request);
        true
    }

    /// Takes pasted text as one line.
    pub fn paste(&mut self, text: &str) {
        for c in text.trim_end_matches(['\n', '\r']).chars() {
            let c = if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c };
            if !c.is_control() {
                self.input.handle(InputRequest::InsertChar(c));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasted_newline_is_only_a_space() {
        let mut field = Field::with("a");
        field.paste("b\nc\x1b\n");
        assert_eq!(field.text(), "ab c");
        field.key(Key::ctrl('u'));
        assert!(field.is_empty());
        assert!(!field.key(Key::plain(Code::Enter)));
    }
}
