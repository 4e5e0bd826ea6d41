//! Names inside a repository: a path that cannot leave it.

use std::fmt;

/// A path from the root of a repository: components without `.`, `..`, NUL or emptiness, joined by `/`.
///
/// Everything else is a legal name: spaces, quotes, any script, emoji. Ordered as text, which for timestamps is time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RepoPath(String);

/// Why a text is not a path of a repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It would lead out of the repository.
    #[error("the path {0:?} leads out of the repository")]
    Escapes(String),
    /// A component is empty, `.`, `..`, has a `/` or NUL in it, or is longer than a file name may be.
    #[error("{0:?} is not a usable file name")]
    Component(String),
}

/// Longest file name the file systems in question take, bytes.
const NAME_MAX: usize = 255;

fn check(component: &str) -> Result<(), PathError> {
    let bad = component.is_empty()
        || component == "."
        || component == ".."
        || component.len() > NAME_MAX
        || component.bytes().any(|byte| byte == 0 || byte == b'/');
    if bad { Err(PathError::Component(component.chars().take(NAME_MAX).collect())) } else { Ok(()) }
}

impl RepoPath {
    /// The root of the repository.
    pub const fn root() -> Self {
        Self(String::new())
    }

    /// Reads a path from the root, with or without leading slash; `.` and empty components are dropped, `..` must stay
    /// inside (backup-repository.md §5.2).
    ///
    /// # Errors
    /// [`PathError`] when it leads out or has an unusable component.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        Self::root().resolve(text)
    }

    /// Adds one component.
    ///
    /// # Errors
    /// [`PathError::Component`] when `name` is not one usable file name.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        check(name)?;
        Ok(if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}/{name}", self.0)) })
    }

    /// Reads a path relative to this directory, as aliases, parent names and `vhds` of metadata hold them. A leading
    /// slash means this directory too: an absolute path of somebody's machine has no meaning here.
    ///
    /// # Errors
    /// [`PathError`] when it leads out of the repository or has an unusable component.
    pub fn resolve(&self, relative: &str) -> Result<Self, PathError> {
        let mut path = self.clone();
        for component in relative.split('/') {
            match component {
                "" | "." => {}
                ".." => path = path.parent().ok_or_else(|| PathError::Escapes(relative.chars().take(NAME_MAX).collect()))?,
                name => path = path.join(name)?,
            }
        }
        Ok(path)
    }

    /// The directory it stands in; none for the root.
    pub fn parent(&self) -> Option<Self> {
        match self.0.rsplit_once('/') {
            Some((parent, _)) => Some(Self(parent.to_owned())),
            None if self.0.is_empty() => None,
            None => Some(Self::root()),
        }
    }

    /// Its last component; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }

    /// This path as seen from directory `from`: `../x/y`.
    pub fn relative_to(&self, from: &Self) -> String {
        let (own, base): (Vec<_>, Vec<_>) = (self.components().collect(), from.components().collect());
        let common = own.iter().zip(&base).take_while(|(a, b)| a == b).count();
        let up = std::iter::repeat_n("..", base.len() - common);
        up.chain(own[common..].iter().copied()).collect::<Vec<_>>().join("/")
    }

    /// Its components.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|component| !component.is_empty())
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Without leading slash; empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// With leading slash, the form XO uses as identifier.
    pub fn absolute(&self) -> String {
        format!("/{}", self.0)
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.absolute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_stays_inside() {
        assert_eq!(RepoPath::parse("/a//./b/").unwrap().as_str(), "a/b");
        assert_eq!(RepoPath::parse("a/../b").unwrap().as_str(), "b");
        assert_eq!(RepoPath::parse("").unwrap(), RepoPath::root());
        assert!(matches!(RepoPath::parse("../etc/passwd"), Err(PathError::Escapes(_))));
        assert!(matches!(RepoPath::parse("a/../../etc"), Err(PathError::Escapes(_))));
        assert!(matches!(RepoPath::parse("a\0b"), Err(PathError::Component(_))));
        assert!(RepoPath::root().join("a/b").is_err());
        assert!(RepoPath::root().join(&"x".repeat(256)).is_err());
    }

    #[test]
    fn relative_paths_lead_back() {
        let dir = RepoPath::parse("vm/vdis/job/vdi").unwrap();
        let data = RepoPath::parse("vm/vdis/job/vdi/data/x.vhd").unwrap();
        assert_eq!(data.relative_to(&dir), "data/x.vhd");
        assert_eq!(dir.resolve(&data.relative_to(&dir)).unwrap(), data);
        let other = RepoPath::parse("vm/y").unwrap();
        assert_eq!(other.relative_to(&dir), "../../../y");
        assert_eq!(dir.resolve("../../../y").unwrap(), other);
    }

    #[test]
    fn odd_names_survive() {
        for name in ["a b", "\"quoted\"", "שלום", "日本", "🙂", "a\\b", "a\nb", "...", "-rf"] {
            assert_eq!(RepoPath::root().join(name).unwrap().name(), name);
        }
    }

    proptest! {
        #[test]
        fn nothing_parses_into_an_escape(text in "[a./\\\\\0 ]{0,24}") {
            if let Ok(path) = RepoPath::parse(&text) {
                prop_assert!(path.components().all(|c| c != ".." && c != "." && !c.contains('\0')));
                prop_assert_eq!(RepoPath::parse(&path.absolute()).unwrap(), path);
            }
        }
    }
}
