//! Program files and packages: for which machine they are, and which C library they need, read without running them.
//!
//! Whoever copies a program to another machine asks first, so that a refusal comes before anything is touched and not from
//! the dynamic linker; whoever makes a package writes the same answer into it.

mod archive;
mod elf;
mod rpm;

use std::cmp::Ordering;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A version of the GNU C library, e.g. 2.34.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glibc {
    /// Before the point.
    pub major: u32,
    /// Behind the point.
    pub minor: u32,
}

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Glibc {
    type Err = ();

    /// Reads `2.34` and `2.34.9000`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.').map(|part| part.parse().map_err(|_| ()));
        match (parts.next(), parts.next()) {
            (Some(major), Some(minor)) => Ok(Self { major: major?, minor: minor? }),
            _ => Err(()),
        }
    }
}

/// What a program needs of the machine it is to run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The processor, as `uname -m` says it, e.g. `x86_64`.
    pub machine: String,
    /// The oldest C library that will do; none: it brings its own.
    pub glibc: Option<Glibc>,
}

impl Needs {
    /// Why a machine will not do; `glibc`: its C library, none when it has another one.
    #[must_use]
    pub fn unmet(&self, machine: &str, glibc: Option<&str>) -> Option<String> {
        if self.machine != machine {
            return Some(format!("it is for {}, and the processor there is {machine}", self.machine));
        }
        let needed = self.glibc?;
        let Some(found) = glibc else {
            return Some(format!("it needs the GNU C library {needed} or newer, and there is none there"));
        };
        match found.parse::<Glibc>().map(|found| found.cmp(&needed)) {
            Ok(Ordering::Less) => Some(format!("it needs the GNU C library {needed} or newer, and there it is {found}")),
            Ok(_) => None,
            Err(()) => Some(format!("it needs the GNU C library {needed} or newer, and {found:?} there is no version of it")),
        }
    }
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A program.
    Program,
    /// An archive (`.tar.gz`) with the program in it, which is here.
    Archive {
        /// The program.
        program: Vec<u8>,
    },
    /// A package of Debian's kind.
    Deb {
        /// Version of the package.
        version: String,
    },
    /// A package of Red Hat's kind.
    Rpm {
        /// Version and release of the package.
        version: String,
    },
}

/// A file that has been looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// What it is.
    pub kind: Kind,
    /// What it needs.
    pub needs: Needs,
}

/// A file that is nothing of the kind.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// It can, but makes no sense.
    #[error("{} is no program and no package of Backhaul: {reason}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Why a content makes no sense: in words, or because it ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Read(#[from] std::io::Error),
    #[error("{0}")]
    Words(String),
}

impl Fault {
    pub(crate) fn words(text: impl Into<String>) -> Self {
        Self::Words(text.into())
    }
}

/// Looks into a program, an archive or a package with `backhauld` in it.
///
/// # Errors
/// [`InspectError`].
pub fn inspect(path: &Path) -> Result<Inspected, InspectError> {
    let reading = |source| InspectError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(reading)?;
    let mut magic = [0; 8];
    let length = file.read(&mut magic).map_err(reading)?;
    file.seek(SeekFrom::Start(0)).map_err(reading)?;
    let found = match &magic[..length] {
        [0x7F, b'E', b'L', b'F', ..] => elf::needs(&mut file).map(|needs| Inspected { kind: Kind::Program, needs }),
        [0x1F, 0x8B, ..] => archive::tarball(&mut file),
        b"!<arch>\n" => archive::deb(&mut file),
        [0xED, 0xAB, 0xEE, 0xDB, ..] => rpm::package(&mut file),
        _ => Err(Fault::words("it begins like none of them")),
    };
    found.map_err(|fault| match fault {
        Fault::Read(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            InspectError::Unfit { path: path.to_owned(), reason: "it ends too early".into() }
        }
        Fault::Read(source) => InspectError::Read { path: path.to_owned(), source },
        Fault::Words(reason) => InspectError::Unfit { path: path.to_owned(), reason },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs() -> Needs {
        Needs { machine: "x86_64".into(), glibc: Some(Glibc { major: 2, minor: 34 }) }
    }

    #[test]
    fn a_machine_does_or_does_not() {
        assert_eq!(needs().unmet("x86_64", Some("2.34")), None);
        assert_eq!(needs().unmet("x86_64", Some("2.100")), None);
        assert!(needs().unmet("aarch64", Some("2.36")).unwrap().contains("aarch64"));
        assert!(needs().unmet("x86_64", Some("2.9")).unwrap().contains("there it is 2.9"));
        assert!(needs().unmet("x86_64", None).unwrap().contains("there is none"));
        assert_eq!(Needs { glibc: None, ..needs() }.unmet("x86_64", None), None);
    }

    #[test]
    fn this_very_program_is_for_this_machine() {
        let found = inspect(&std::env::current_exe().unwrap()).unwrap();
        assert_eq!((found.kind, found.needs.machine.as_str()), (Kind::Program, std::env::consts::ARCH));
        // Tests are linked to the C library of the machine; with Rust's own least, nothing older than 2.17 comes out.
        assert!(found.needs.glibc.unwrap() >= Glibc { major: 2, minor: 17 }, "{:?}", found.needs);
    }

    #[test]
    fn what_is_no_program_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for content in ["", "#!/bin/sh\n", "\x7fELF", "!<arch>\nnonsense", "\u{1f}"] {
            std::fs::write(&path, content).unwrap();
            let said = inspect(&path).unwrap_err().to_string();
            assert!(said.contains("is no program and no package"), "{content:?}: {said}");
        }
        assert!(matches!(inspect(dir.path()), Err(InspectError::Read { .. })));
    }
}
