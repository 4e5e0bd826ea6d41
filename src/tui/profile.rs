//! What the terminal can show, decided once at the start: flag before configuration before environment.

use super::theme::Depth;

/// Colours and characters of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// How many colours.
    pub depth: Depth,
    /// Whether only seven-bit characters are safe.
    pub ascii: bool,
}

impl Profile {
    /// Decides from what was asked for (`none`, `16`, `256`, `true`) and the environment.
    pub fn decide(colors: Option<&str>, ascii: Option<bool>, environment: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let term = set("TERM").unwrap_or_default();
        let depth = colors.and_then(Depth::named).unwrap_or_else(|| {
            let colorterm = set("COLORTERM").unwrap_or_default();
            // https://no-color.org: present and not empty.
            if set("NO_COLOR").is_some() || term == "dumb" || term.starts_with("vt") {
                Depth::None
            } else if colorterm == "truecolor" || colorterm == "24bit" || term.ends_with("-direct") {
                Depth::True
            } else if term.contains("256color") {
                Depth::Indexed
            } else {
                Depth::Sixteen
            }
        });
        let ascii = ascii.unwrap_or_else(|| {
            let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| set(name)).unwrap_or_default();
            let utf8 = locale.to_ascii_lowercase().replace('-', "").contains("utf8");
            !utf8 || term == "dumb"
        });
        Self { depth, ascii }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(colors: Option<&str>, pairs: &[(&str, &str)]) -> Profile {
        Profile::decide(colors, None, |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn environment_decides_and_a_flag_overrides() {
        let utf8 = ("LANG", "en_GB.UTF-8");
        assert_eq!(decide(None, &[("TERM", "xterm-256color"), utf8]), Profile { depth: Depth::Indexed, ascii: false });
        assert_eq!(decide(None, &[("TERM", "xterm-256color"), ("NO_COLOR", "1"), utf8]).depth, Depth::None);
        assert_eq!(decide(None, &[("TERM", "xterm"), ("NO_COLOR", "")]).depth, Depth::Sixteen);
        assert_eq!(decide(Some("true"), &[("NO_COLOR", "1")]).depth, Depth::True);
        assert!(decide(None, &[("LANG", "de_DE.ISO-8859-15")]).ascii);
        assert!(decide(None, &[("LC_ALL", "C"), utf8]).ascii);
        assert!(!decide(None, &[("LC_CTYPE", "C.utf8"), ("LANG", "C")]).ascii);
    }
}
