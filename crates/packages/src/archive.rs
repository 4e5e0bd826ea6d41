//! A `.tar.gz` with the program, and a `.deb`: an `ar` archive with two of them.

use std::io::{Cursor, Read, Seek};

use flate2::read::GzDecoder;

use crate::{Fault, Inspected, Kind, Needs, elf};

/// Most bytes of an entry that are read into memory: a program with all its symbols has a few hundred MiB.
const MOST: u64 = 1 << 30;
const RECORD: usize = 512;

/// The program in a `.tar.gz`.
pub(crate) fn tarball(file: &mut impl Read) -> Result<Inspected, Fault> {
    let program = entry(file, |name| name == "backhauld" || name.ends_with("/bin/backhauld"))?
        .ok_or_else(|| Fault::words("the archive has no bin/backhauld"))?;
    let needs = elf::needs(&mut Cursor::new(&program))?;
    Ok(Inspected { kind: Kind::Archive { program }, needs })
}

/// A package of Debian's kind (deb(5)).
pub(crate) fn deb(file: &mut (impl Read + Seek)) -> Result<Inspected, Fault> {
    file.seek(std::io::SeekFrom::Start(8))?;
    loop {
        let mut header = [0; 60];
        file.read_exact(&mut header)?;
        let field = |from: usize, to: usize| std::str::from_utf8(&header[from..to]).map(str::trim).unwrap_or_default();
        let size: u64 = field(48, 58).parse().map_err(|_| Fault::words("it is no ar archive"))?;
        let name = field(0, 16).trim_end_matches('/');
        if name == "control.tar.gz" {
            let control = entry(&mut file.take(size), |name| name.trim_start_matches("./") == "control")?;
            return of_control(&String::from_utf8_lossy(&control.ok_or_else(|| Fault::words("it has no control file"))?));
        }
        if name.starts_with("control.tar") {
            return Err(Fault::words(format!("its {name} cannot be read; `cargo xtask package` makes control.tar.gz")));
        }
        file.seek_relative(i64::try_from(size + size % 2).map_err(|_| Fault::words("it is no ar archive"))?)?;
    }
}

fn of_control(control: &str) -> Result<Inspected, Fault> {
    let field = |name: &str| {
        control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim).unwrap_or_default()
    };
    if field("Package") != "backhaul" {
        return Err(Fault::words(format!("it is the package {:?}", field("Package"))));
    }
    let machine = match field("Architecture") {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "ppc64el" => "ppc64le",
        other => other,
    };
    let glibc = field("Depends").split(',').find_map(|needed| needed.trim().strip_prefix("libc6 (>= ")?.strip_suffix(')'));
    let glibc =
        glibc.map(|version| version.parse().map_err(|()| Fault::words(format!("it needs libc6 {version:?}")))).transpose()?;
    Ok(Inspected {
        kind: Kind::Deb { version: field("Version").to_owned() },
        needs: Needs { machine: machine.to_owned(), glibc },
    })
}

/// The first entry of a `.tar.gz` with such a name (POSIX ustar).
fn entry(file: &mut impl Read, wanted: impl Fn(&str) -> bool) -> Result<Option<Vec<u8>>, Fault> {
    let mut tar = GzDecoder::new(file);
    loop {
        let mut header = [0; RECORD];
        match tar.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
        let name = if &header[257..262] == b"ustar" && !prefix.is_empty() { format!("{prefix}/{name}") } else { name };
        let size = u64::from_str_radix(text(&header[124..136]).trim(), 8).map_err(|_| Fault::words("it is no tar archive"))?;
        if wanted(&name) && matches!(header[156], b'0' | 0) {
            if size > MOST {
                return Err(Fault::words(format!("its {name} is larger than any real one")));
            }
            let mut content = vec![0; size as usize];
            tar.read_exact(&mut content)?;
            return Ok(Some(content));
        }
        let skipped = std::io::copy(&mut (&mut tar).take(size.next_multiple_of(RECORD as u64)), &mut std::io::sink())?;
        if skipped < size {
            return Err(Fault::words("it ends too early"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Glibc;

    #[test]
    fn a_control_file_says_machine_and_library() {
        let control = "Package: backhaul\nVersion: 0.1.0\nArchitecture: amd64\nDepends: libc6 (>= 2.34), systemd\n";
        let found = of_control(control).unwrap();
        assert_eq!(found.kind, Kind::Deb { version: "0.1.0".into() });
        assert_eq!(found.needs, Needs { machine: "x86_64".into(), glibc: Some(Glibc { major: 2, minor: 34 }) });
        assert_eq!(of_control(&control.replace("libc6 (>= 2.34), ", "")).unwrap().needs.glibc, None);
        of_control(&control.replace("backhaul", "nginx")).unwrap_err();
        of_control(&control.replace("2.34", "x")).unwrap_err();
    }
}
