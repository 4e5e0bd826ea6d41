//! A `.tar.gz` with the program, and a `.deb`: an `ar` archive with two of them.

use std::io::{Cursor, Read, Seek};

use flate2::read::GzDecoder;

use crate::{Fault, Inspected, Kind, Needs, elf};

/// Most bytes of an entry that are read into memory: a program with all its symbols has a few hundred MiB.
const MOST: u64 = 1 << 30;
const RECORD: usize = 512;

/// The program in a `.tar.gz`.
pub(crate) fn tarball(file: &mut impl Read) -> Result<Inspected, Fault> {
    let program = entry(file, |name| name == "backhauld" || format!("/{name}").ends_with("/bin/backhauld"))?
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

    /// A program of 64 bytes that needs nothing.
    fn program() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1]);
        (elf[16], elf[18]) = (2, 62);
        elf
    }

    /// An entry of a tar archive, filled up to its records.
    fn entry_of(prefix: &str, name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; RECORD];
        entry[..name.len()].copy_from_slice(name.as_bytes());
        entry[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        entry[156] = kind;
        entry[257..262].copy_from_slice(b"ustar");
        entry[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
        entry.extend_from_slice(content);
        entry.resize(entry.len().next_multiple_of(RECORD), 0);
        entry
    }

    fn packed(tar: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(tar).unwrap();
        gzip.finish().unwrap()
    }

    fn said(found: Result<Inspected, Fault>) -> String {
        found.unwrap_err().to_string()
    }

    #[test]
    fn the_program_is_found_behind_others_and_under_a_prefix() {
        let odd = entry_of("", "backhaul-0.1.0/README", b'0', &[b'x'; 700]);
        // A folder, and a link of the program's name: neither is it.
        let others = [odd, entry_of("", "backhaul-0.1.0/bin/", b'5', b""), entry_of("", "backhauld", b'2', b"")].concat();
        for (prefix, name) in [("", "backhaul-0.1.0/bin/backhauld"), ("backhaul-0.1.0/usr", "bin/backhauld"), ("", "backhauld")] {
            let tar = [others.clone(), entry_of(prefix, name, b'0', &program()), vec![0; 2 * RECORD]].concat();
            let found = tarball(&mut packed(&tar).as_slice()).unwrap();
            assert_eq!(found.kind, Kind::Archive { program: program() });
            assert_eq!(found.needs, Needs { machine: "x86_64".into(), glibc: None });
        }
        let without = [others.clone(), vec![0; 2 * RECORD]].concat();
        assert!(said(tarball(&mut packed(&without).as_slice())).contains("has no bin/backhauld"));
    }

    #[test]
    fn what_is_cut_off_or_contradicts_itself_is_said() {
        let whole = entry_of("", "bin/backhauld", b'0', &program());
        assert!(tarball(&mut packed(&entry_of("", "./bin/backhauld", b'0', &program())).as_slice()).is_ok());
        let cut = tarball(&mut packed(&whole[..RECORD + 10]).as_slice());
        assert!(matches!(&cut, Err(Fault::Read(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof), "{cut:?}");
        let skipped = entry_of("", "README", b'0', &[b'x'; 700]);
        assert_eq!(said(tarball(&mut packed(&skipped[..RECORD + 100]).as_slice())), "it ends too early");
        let mut no_size = whole.clone();
        no_size[124..135].copy_from_slice(b"not a size!");
        assert_eq!(said(tarball(&mut packed(&no_size).as_slice())), "it is no tar archive");
        // Two gibibytes announced: nobody makes room for them.
        let mut large = whole;
        large[124..135].copy_from_slice(format!("{:011o}", 2u64 << 30).as_bytes());
        assert!(said(tarball(&mut packed(&large).as_slice())).contains("larger than any real one"));
    }

    /// A member of an ar archive.
    fn member(name: &str, content: &[u8]) -> Vec<u8> {
        let mut member = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len()).into_bytes();
        assert_eq!(member.len(), 60);
        member.extend_from_slice(content);
        member.resize(member.len().next_multiple_of(2), b'\n');
        member
    }

    #[test]
    fn the_control_file_of_a_package_is_found_behind_a_member_of_odd_length() {
        let control = "Package: backhaul\nVersion: 0.1.0\nArchitecture: arm64\n";
        let tar = |name: &str| packed(&[entry_of("", name, b'0', control.as_bytes()), vec![0; 2 * RECORD]].concat());
        let archive = |members: &[Vec<u8>]| [b"!<arch>\n".to_vec(), members.concat()].concat();
        let odd = member("debian-binary", b"2.0");
        for name in ["control", "./control"] {
            let package = archive(&[odd.clone(), member("control.tar.gz/", &tar(name)), member("data.tar.gz", b"")]);
            let found = deb(&mut Cursor::new(package)).unwrap();
            assert_eq!(found.kind, Kind::Deb { version: "0.1.0".into() });
            assert_eq!(found.needs.machine, "aarch64");
        }
        let other = archive(&[odd.clone(), member("control.tar.zst", b"")]);
        assert!(said(deb(&mut Cursor::new(other))).contains("its control.tar.zst cannot be read"));
        let empty = archive(&[odd.clone(), member("control.tar.gz", &tar("md5sums"))]);
        assert!(said(deb(&mut Cursor::new(empty))).contains("has no control file"));
        let mut no_size = archive(std::slice::from_ref(&odd));
        no_size[8 + 48..8 + 58].copy_from_slice(b"many bytes");
        assert_eq!(said(deb(&mut Cursor::new(no_size))), "it is no ar archive");
        let without = deb(&mut Cursor::new(archive(&[odd])));
        assert!(matches!(&without, Err(Fault::Read(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof), "{without:?}");
    }
}
