//! Text from elsewhere, made safe for a grid of cells: VM names may hold control characters, direction marks, emoji.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Whether a character has no business in a cell: it would move the cursor, change the direction of what follows, or
/// join its neighbours into something terminals disagree about the width of.
fn unwelcome(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00AD}' | '\u{061C}' | '\u{115F}' | '\u{1160}' | '\u{180E}'
            | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
            | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
            | '\u{1F3FB}'..='\u{1F3FF}' | '\u{E0000}'..='\u{E0FFF}')
}

/// The text without characters that could break a line: line breaks and tabs become spaces, other control characters
/// a replacement mark, invisible ones (direction, joiners, variation) go.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(unwelcome) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if c.is_control() => out.push('\u{FFFD}'),
            c if unwelcome(c) => {}
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Columns a cleaned text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The longest beginning of `text` that fits into `columns`, with `mark` (one column) at its end when something was cut.
pub fn fit(text: &str, columns: usize, mark: char) -> Cow<'_, str> {
    if columns == 0 {
        return Cow::Borrowed("");
    }
    // One byte takes at most one column, so short texts need no measuring.
    if text.len() <= columns || width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if used + w > columns - 1 {
            break;
        }
        used += w;
        out.push(c);
    }
    out.push(mark);
    Cow::Owned(out)
}

/// Breaks a text into lines of at most `columns`, at spaces where there are some.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let mut word = word;
        let mut w = width(word);
        if used > 0 && used + 1 + w > columns {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        while w > columns - used {
            let mut taken = 0;
            let cut = word
                .char_indices()
                .find(|(_, c)| {
                    let cw = c.width().unwrap_or(0);
                    taken += cw;
                    taken > columns - used
                })
                .map_or(word.len(), |(at, _)| at);
            // A wide character on a one-column line: give up rather than loop.
            let cut = if cut == 0 { word.chars().next().map_or(0, char::len_utf8) } else { cut };
            line.push_str(&word[..cut]);
            word = &word[cut..];
            lines.push(std::mem::take(&mut line));
            used = 0;
            w = width(word);
            if word.is_empty() {
                break;
            }
        }
        line.push_str(word);
        used += w;
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// Quotes an argument for a POSIX shell, only where it needs it.
pub fn shell(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_names_become_harmless() {
        assert_eq!(clean("web-1"), "web-1");
        assert_eq!(clean("a\x1b[31mb"), "a\u{FFFD}[31mb");
        assert_eq!(clean("a\nb\tc"), "a b c");
        assert_eq!(clean("\u{202E}evil\u{2066}"), "evil");
        assert_eq!(clean("👨\u{200D}👩"), "👨👩");
    }

    #[test]
    fn shell_words_survive_quotes() {
        assert_eq!(shell("web-1"), "web-1");
        assert_eq!(shell("it's"), r"'it'\''s'");
        assert_eq!(shell(""), "''");
    }

    proptest! {
        #[test]
        fn cut_text_never_exceeds_its_columns(text in "\\PC*", columns in 0usize..40) {
            let text = clean(&text).into_owned();
            prop_assert!(width(&fit(&text, columns, '~')) <= columns);
        }

        #[test]
        fn wrapping_keeps_every_word(text in "[a-z ]{0,80}", columns in 1usize..20) {
            let lines = wrap(&text, columns);
            prop_assert!(lines.iter().all(|line| width(line) <= columns));
            let before: String = text.split_whitespace().collect();
            let after: String = lines.concat().split_whitespace().collect();
            prop_assert_eq!(before, after);
        }
    }
}
