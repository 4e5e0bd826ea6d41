//! Whether the state folder has room: without it no run can write its journal.

use std::path::PathBuf;

use api::format_bytes;
use rustix::fs::{StatVfs, StatVfsMountFlags};

use super::{About, Finding, Kind, Lines};

/// The journal of a long night.
const LITTLE: u64 = 512 << 20;
/// SQLite's log alone may need as much.
const NONE: u64 = 64 << 20;

/// Looks at the file system of the state folder.
pub async fn check(lines: Lines, folder: PathBuf) {
    let shown = folder.display().to_string();
    let about = About::new(
        Kind::Disk,
        "state folder",
        format!("looking at {shown}"),
        "check the disk of this proxy (dmesg); if the folder is on a network, move it to a local disk",
    );
    let work = async {
        let looked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&folder)).await;
        let finding = match looked {
            Ok(Ok(found)) => judge(&shown, &found),
            Ok(Err(error)) => Finding::fail(format!("{shown} cannot be looked at: {error}"), "check that the folder is there"),
            Err(error) => Finding::fail(format!("{shown} cannot be looked at: {error}"), "restart backhauld"),
        };
        (finding, Some(()))
    };
    lines.check(about, work).await;
}

fn judge(shown: &str, found: &StatVfs) -> Finding {
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let size = found.f_blocks.saturating_mul(found.f_frsize);
    let words = format!("{} of {} free for the journal at {shown}", format_bytes(free), format_bytes(size));
    let fix = "free space on that file system or enlarge it; du -xh --max-depth=2 shows what takes it";
    if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let fix = "mount it writable again; a file system that turned read-only by itself has found an error: dmesg, fsck";
        return Finding::fail(format!("{shown} is on a file system that is mounted read-only"), fix);
    }
    // Some file systems make files as they need them and count none.
    if found.f_files > 0 && found.f_favail < 100 {
        return Finding::fail(format!("{words}, but room for {} more files only", found.f_favail), fix);
    }
    match free {
        free if free < NONE => Finding::fail(words, fix),
        free if free < LITTLE => Finding::warning(words, fix),
        _ => Finding::pass(words),
    }
}

#[cfg(test)]
mod tests {
    use api::Verdict;

    use super::*;

    #[test]
    fn room_is_judged() {
        let dir = tempfile::tempdir().unwrap();
        let here = rustix::fs::statvfs(dir.path()).unwrap();
        let with = |free: u64, files: u64, flag| StatVfs {
            f_bavail: free / 4096,
            f_frsize: 4096,
            f_files: 1000,
            f_favail: files,
            f_flag: flag,
            ..here
        };
        let rw = StatVfsMountFlags::empty();
        let verdict = |found: &StatVfs| judge("/x", found).verdict;
        assert_eq!(verdict(&with(1 << 30, 999, rw)), Verdict::Pass);
        assert_eq!(verdict(&with(100 << 20, 999, rw)), Verdict::Warning);
        assert_eq!(verdict(&with(10 << 20, 999, rw)), Verdict::Fail);
        assert_eq!(verdict(&with(1 << 30, 3, rw)), Verdict::Fail);
        assert_eq!(verdict(&with(1 << 30, 999, StatVfsMountFlags::RDONLY)), Verdict::Fail);
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_is_told() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        check(Lines::new(sender), "/nowhere/at/all".into()).await;
        let line = receiver.recv().await.unwrap();
        assert_eq!((line.verdict, line.object.as_str()), (Verdict::Fail, "state folder"));
        assert!(line.measured.contains("/nowhere/at/all"), "{}", line.measured);
    }
}
