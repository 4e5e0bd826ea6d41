//! What a program said last, fit to stand in a history: without the secrets that are known, and without what looks like one.

use url::Url;

use super::settings::Settings;
use crate::upgrade::Expected;

/// Longest text kept of a line, characters.
const LONGEST: usize = 300;
/// A run of letters, digits and `+=_` of this length is taken for a token or a key.
const SUSPECT: usize = 32;

/// Takes secrets out of texts.
pub(super) struct Redactor {
    known: Vec<String>,
}

impl Redactor {
    pub(super) fn new(settings: &Settings, expected: Option<&Expected>) -> Self {
        let mut known = settings.secrets.clone();
        // A password stands in a log without the URL that it is part of, too.
        known.extend(settings.secrets.iter().filter_map(|secret| Some(Url::parse(secret).ok()?.password()?.to_owned())));
        known.extend(expected.map(|expected| expected.token.expose().to_owned()));
        known.retain(|secret| !secret.is_empty());
        // The longest first: a shorter one may be a part of it.
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { known }
    }

    pub(super) fn clean(&self, text: &str) -> String {
        let mut text: String = text.chars().filter(|c| !c.is_control()).collect();
        for secret in &self.known {
            text = text.replace(secret.as_str(), "…");
        }
        let text = without_suspects(&without_credentials(&text));
        match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// `scheme://user:password@host` without what stands before the `@`.
fn without_credentials(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?' | '#')).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                clean.push('…');
                &after[at..]
            }
            None => after,
        };
    }
    clean + rest
}

fn without_suspects(text: &str) -> String {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '=' | '_');
    let (mut clean, mut word) = (String::with_capacity(text.len()), String::new());
    let flush = |word: &mut String, clean: &mut String| {
        clean.push_str(if word.len() >= SUSPECT { "…" } else { word.as_str() });
        word.clear();
    };
    for c in text.chars() {
        if part(c) {
            word.push(c);
        } else {
            flush(&mut word, &mut clean);
            clean.push(c);
        }
    }
    flush(&mut word, &mut clean);
    clean
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_secret_and_nothing_that_looks_like_one_comes_through() {
        let secrets = vec!["tok en-of/16chars".to_owned(), "http://u:hunter2@proxy:3128".to_owned()];
        let redactor = Redactor::new(&Settings { state_dir: "s".into(), probation: Duration::ZERO, secrets }, None);
        let said =
            redactor.clean("a tok en-of/16chars b hunter2 c smb://me:p@ss@nas/x d 0123456789abcdef0123456789abcdef0 e\u{1b}[2J");
        assert_eq!(said, "a … b … c smb://…@nas/x d … e[2J");
        assert_eq!(
            redactor.clean("cannot open /var/lib/backhaul/state.db: disk I/O error"),
            "cannot open /var/lib/backhaul/state.db: disk I/O error"
        );
        assert_eq!(redactor.clean(&"é ".repeat(400)).chars().count(), LONGEST + 1);
        assert_eq!(redactor.clean("see https://example.org/a@b"), "see https://example.org/a@b");
    }
}
