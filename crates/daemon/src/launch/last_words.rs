//! What a program said last, fit to stand in a history: without secrets, without anything as long and as dense as one, and
//! short.

use super::settings::Settings;
use crate::redact::Redactor;
use crate::upgrade::Expected;

/// Longest text kept of a line, characters.
const LONGEST: usize = 300;
/// A run of letters, digits and `+=_` of this length is taken for a token or a key: the launcher knows few secrets by value.
const SUSPECT: usize = 32;

/// Cleans lines.
pub(super) struct LastWords(Redactor);

impl LastWords {
    pub(super) fn new(settings: &Settings, expected: Option<&Expected>) -> Self {
        let mut redactor = Redactor::default();
        for secret in &settings.secrets {
            redactor.know_url(secret, "account");
            redactor.know(secret, "secret");
        }
        if let Some(expected) = expected {
            redactor.know(expected.token.expose(), "token");
        }
        Self(redactor)
    }

    pub(super) fn clean(&self, text: &str) -> String {
        self.clean_lines(&[text]).join(" ")
    }

    /// Cleans all of them as one text: a private key goes over several.
    pub(super) fn clean_lines(&self, lines: &[impl AsRef<str>]) -> Vec<String> {
        let plain = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
        let text = lines.iter().map(|line| plain(line.as_ref())).collect::<Vec<_>>().join("\n");
        self.0.redact(&text).lines().map(|line| shortened(without_suspects(line))).collect()
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
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
        let words = LastWords::new(&Settings { state_dir: "s".into(), probation: Duration::ZERO, secrets }, None);
        let said =
            words.clean("a tok en-of/16chars b hunter2 c smb://me:p@ss@nas/x d 0123456789abcdef0123456789abcdef0 e\u{1b}[2J");
        assert_eq!(said, "a [redacted: secret] b [redacted: account] c smb://[redacted: account]@nas/x d … e[2J");
        assert_eq!(
            words.clean("cannot open /var/lib/backhaul/state.db: disk I/O error"),
            "cannot open /var/lib/backhaul/state.db: disk I/O error"
        );
        assert_eq!(words.clean(&"é ".repeat(400)).chars().count(), LONGEST + 1);
        let key = ["loading", "-----BEGIN PRIVATE KEY-----", "MIGHAgEAMBMG", "AQQgxyz=", "-----END PRIVATE KEY-----", "failed"];
        assert_eq!(words.clean_lines(&key), ["loading", "[redacted: private key]", "failed"]);
        assert_eq!(words.clean_lines(&[] as &[&str]), [""; 0]);
        assert_eq!(words.clean("see https://example.org/a@b"), "see https://example.org/a@b");
    }
}
