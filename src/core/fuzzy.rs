//! Fuzzy matching, the same for every list: words in any order, `!word` excludes, `'word` is literal.

use nucleo_matcher::pattern::{CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};

/// A query ready to be held against many texts.
pub struct Query {
    pattern: Pattern,
    matcher: Matcher,
    buffer: Vec<char>,
}

impl Query {
    /// Reads a query as typed.
    pub fn new(text: &str) -> Self {
        Self {
            pattern: Pattern::parse(text.trim(), CaseMatching::Smart, Normalization::Smart),
            matcher: Matcher::new(Config::DEFAULT),
            buffer: Vec::new(),
        }
    }

    /// Whether there is nothing to look for: everything matches.
    pub fn is_empty(&self) -> bool {
        self.pattern.atoms.is_empty()
    }

    /// How well `text` matches, higher is better; none: it does not.
    pub fn score(&mut self, text: &str) -> Option<u32> {
        self.pattern.score(Utf32Str::new(text, &mut self.buffer), &mut self.matcher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_match_in_any_order_and_can_be_excluded() {
        assert!(Query::new("web prd").score("prd-frontend-web01").is_some());
        assert!(Query::new("!web").score("prd-web01").is_none());
        assert!(Query::new("wb1").score("web01").is_some());
        assert!(Query::new("").is_empty());
        assert!(Query::new("xyz").score("web01").is_none());
    }
}
