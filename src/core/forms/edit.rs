//! The keys of a form: one editor for all kinds of fields.

use super::{Choice, Form, Value};
use crate::core::key::{Code, Key};

/// Longest text that is pasted into a form, bytes.
const LONGEST: usize = 64 << 10;

/// What a key did to a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyed {
    /// Nothing.
    Ignored,
    /// Something is different.
    Changed,
    /// Only the cursor.
    Moved,
    /// It was Enter on the last field.
    Submit,
}

impl Form {
    /// Notes that a person changed the focused field: what was said of it, and of the whole, counts no more.
    fn changed_here(&mut self) {
        if let Some(field) = self.fields.get_mut(self.focus) {
            field.touched = true;
            field.error = None;
        }
        self.changed = true;
        self.error = None;
        self.refusals.clear();
    }

    /// Moves the keys to the next or previous field that makes sense; answers whether there was one.
    pub fn step(&mut self, forward: bool) -> bool {
        let mut at = self.focus;
        loop {
            let next = if forward { at + 1 } else { at.wrapping_sub(1) };
            match self.fields.get(next) {
                None => return false,
                Some(field) if field.hidden => at = next,
                Some(_) => {
                    self.focus = next;
                    return true;
                }
            }
        }
    }

    /// Takes a key that is no action of the form.
    pub fn key(&mut self, key: Key) -> Keyed {
        if key.code == Code::Enter && !key.ctrl && !key.alt {
            return self.enter();
        }
        let Some(field) = self.fields.get_mut(self.focus) else { return Keyed::Ignored };
        let keyed = match &mut field.value {
            Value::Text { text, .. } => {
                let before = text.text().to_owned();
                match text.key(key) {
                    true if before != text.text() => Keyed::Changed,
                    true => Keyed::Moved,
                    false => Keyed::Ignored,
                }
            }
            Value::Choice { options, chosen } => choose(options, chosen, key),
            Value::Many { .. } => Self::key_many(&mut field.value, key),
            // It is taken whole and taken back whole.
            Value::Pasted(text) => match key.code {
                Code::Backspace | Code::Delete if !text.is_empty() => {
                    text.clear();
                    Keyed::Changed
                }
                _ => Keyed::Ignored,
            },
        };
        if keyed == Keyed::Changed {
            self.changed_here();
        }
        keyed
    }

    fn key_many(value: &mut Value, key: Key) -> Keyed {
        let hits = value.hits();
        let Value::Many { options, chosen, filter, cursor } = value else { return Keyed::Ignored };
        // In the middle of a search it is part of a name: "db 1".
        if key.typed() == Some(' ') && filter.is_empty() {
            let Some(option) = hits.get(*cursor).and_then(|at| options.get(*at)) else { return Keyed::Ignored };
            toggle(chosen, &option.id);
            return Keyed::Changed;
        }
        if filter.key(key) {
            *cursor = 0;
            return Keyed::Moved;
        }
        Keyed::Ignored
    }

    /// Moves inside the options of the focused field; answers false at their end, where the keys go on to the next field.
    pub fn move_option(&mut self, down: bool) -> bool {
        let Some(field) = self.fields.get_mut(self.focus) else { return false };
        let hits = field.value.hits().len();
        let Value::Many { cursor, .. } = &mut field.value else { return false };
        if down && *cursor + 1 < hits {
            *cursor += 1;
            true
        } else if !down && *cursor > 0 {
            *cursor -= 1;
            true
        } else {
            false
        }
    }

    fn enter(&mut self) -> Keyed {
        let Some(field) = self.fields.get_mut(self.focus) else { return Keyed::Ignored };
        let hits = field.value.hits();
        if let Value::Many { options, chosen, filter, cursor } = &mut field.value {
            let pick = !filter.is_empty() || chosen.is_empty();
            if pick && let Some(option) = hits.get(*cursor).and_then(|at| options.get(*at)) {
                let searched = !filter.is_empty();
                if !chosen.contains(&option.id) {
                    chosen.push(option.id.clone());
                }
                if searched {
                    // The cursor stays on what was just chosen when the filter goes.
                    *cursor = hits[*cursor];
                    filter.clear();
                }
                self.changed_here();
                if !searched {
                    self.step(true);
                }
                return Keyed::Changed;
            }
        }
        if self.step(true) { Keyed::Moved } else { Keyed::Submit }
    }

    /// Takes pasted text.
    pub fn paste(&mut self, pasted: &str) {
        // A signed text goes where none is shown, whichever field has the keys: a line would show it, and send it as a path.
        if signed(pasted)
            && let Some(at) = self.fields.iter().position(|field| !field.hidden && matches!(field.value, Value::Pasted(_)))
        {
            self.focus = at;
        }
        let Some(field) = self.fields.get_mut(self.focus) else { return };
        match &mut field.value {
            Value::Text { text, .. } => text.paste(pasted),
            Value::Pasted(text) => {
                // Terminals send a carriage return for a line end.
                let lines = pasted.replace("\r\n", "\n").replace('\r', "\n");
                if lines.len() > LONGEST {
                    field.error = Some("That is more than a licence can be; nothing was taken".into());
                    return;
                }
                // A second one takes the place of the first: whoever pastes again means the last.
                *text = lines;
            }
            Value::Many { filter, cursor, .. } => {
                filter.paste(pasted);
                *cursor = 0;
                return;
            }
            Value::Choice { .. } => return,
        }
        self.changed_here();
    }
}

/// Whether this is a signed text, or the beginning of one, rather than a name of something.
pub(super) fn signed(text: &str) -> bool {
    text.contains("-----BEGIN")
}

fn toggle(chosen: &mut Vec<String>, id: &str) {
    match chosen.iter().position(|other| other == id) {
        Some(at) => {
            chosen.remove(at);
        }
        None => chosen.push(id.to_owned()),
    }
}

/// Moves the choice; what cannot be chosen is passed over.
fn choose(options: &[Choice], chosen: &mut Option<String>, key: Key) -> Keyed {
    let able: Vec<&Choice> = options.iter().filter(|option| option.why_not.is_none()).collect();
    let count = able.len();
    if count == 0 {
        return Keyed::Ignored;
    }
    let now = able.iter().position(|option| Some(&option.id) == chosen.as_ref());
    let next = match (key.code, key.typed()) {
        (Code::Right, _) | (_, Some(' ')) => now.map_or(0, |at| (at + 1) % count),
        (Code::Left, _) => now.map_or(count - 1, |at| (at + count - 1) % count),
        (Code::Home, _) => 0,
        (Code::End, _) => count - 1,
        (_, Some(c)) => {
            // A letter goes to the next option that begins with it.
            let from = now.map_or(0, |at| at + 1);
            let begins = |at: &usize| able[*at].label.to_lowercase().starts_with(c.to_ascii_lowercase());
            match (from..count).chain(0..from.min(count)).find(begins) {
                Some(at) => at,
                None => return Keyed::Ignored,
            }
        }
        _ => return Keyed::Ignored,
    };
    *chosen = Some(able[next].id.clone());
    Keyed::Changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_chosen_is_passed_over() {
        let option = |id: &str, why: Option<&str>| Choice::new(id, id, "").unless(why.map(str::to_owned));
        let options = [option("a", None), option("b", Some("full")), option("c", None)];
        let mut chosen = Some("a".to_owned());
        for (key, expected) in [("right", "c"), ("right", "a"), ("left", "c"), ("home", "a"), ("end", "c")] {
            assert_eq!(choose(&options, &mut chosen, key.parse().unwrap()), Keyed::Changed);
            assert_eq!(chosen.as_deref(), Some(expected), "{key}");
        }
        assert_eq!(choose(&options, &mut chosen, Key::char('b')), Keyed::Ignored);
        // One that was chosen and cannot be any more is left behind.
        let mut chosen = Some("b".to_owned());
        choose(&options, &mut chosen, "right".parse().unwrap());
        assert_eq!(chosen.as_deref(), Some("a"));
        assert_eq!(choose(&options[1..2], &mut chosen, "right".parse().unwrap()), Keyed::Ignored);
    }
}
