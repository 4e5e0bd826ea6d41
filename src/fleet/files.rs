//! Texts that come from a proxy and become files of this machine.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use api::ErrorReport;

/// A name for a file that stays in its folder and is not hidden, whatever a proxy calls it.
pub(crate) fn file_name(told: &str) -> String {
    let plain: String = told.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')).take(120).collect();
    let plain = plain.trim_start_matches(['.', '-']);
    if plain.is_empty() { "backhaul-support.txt".to_owned() } else { plain.to_owned() }
}

/// Writes a text into a new file that only its owner can read. Half a file is none: it is removed again.
///
/// # Errors
/// Whatever the file system says; also when there is such a file.
pub(crate) fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| _ = std::fs::remove_file(path))
}

/// Writes a text into a new file where this console was started, or else where temporary files go.
pub(super) fn save(told: &str, text: &str) -> Result<PathBuf, ErrorReport> {
    let name = file_name(told);
    let places = [std::env::current_dir().ok(), Some(std::env::temp_dir())];
    let mut last = None;
    for place in places.into_iter().flatten() {
        match create(&place, &name, text) {
            Ok(path) => return Ok(path),
            Err(error) => last = Some((place, error)),
        }
    }
    let why = last.map_or_else(String::new, |(place, error)| format!(" in {}: {error}", place.display()));
    Err(ErrorReport::new("FILE", format!("cannot write {name}{why}"))
        .with_next("start the console in a folder that can be written to"))
}

fn create(place: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, "txt"));
    for n in 1..1000 {
        let path = place.join(if n == 1 { format!("{stem}.{ending}") } else { format!("{stem}-{n}.{ending}") });
        match write_new(&path, text) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_cannot_choose_the_place_of_a_file() {
        for (told, expected) in [
            ("backhaul-support-p1-20270115T080000Z.txt", "backhaul-support-p1-20270115T080000Z.txt"),
            ("../../.ssh/authorized_keys", "sshauthorized_keys"),
            ("/etc/passwd", "etcpasswd"),
            ("..", "backhaul-support.txt"),
            ("-rf / \u{1b}[2J.txt", "rf2J.txt"),
            ("ä b\u{1b}[31m.txt", "b31m.txt"),
        ] {
            assert_eq!(file_name(told), expected, "{told}");
        }
    }

    #[test]
    fn no_file_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let first = create(dir.path(), "a.txt", "one").unwrap();
        let second = create(dir.path(), "a.txt", "two").unwrap();
        assert_ne!(first, second);
        assert_eq!(std::fs::read_to_string(first).unwrap(), "one");
    }
}
