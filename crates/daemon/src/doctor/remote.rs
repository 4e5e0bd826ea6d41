//! Whether a remote is there, can be written and read back, and has room.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::{format_bytes, format_rate};
use storage::{Location, RemoteUrl, Space};

use super::{About, Finding, Kind, Lines};
use crate::daemon::Daemon;
use crate::mounts;
use crate::remotes::BUSY;
use crate::store::RemoteRecord;

/// For another question to the remote to end. What is left of the limit of the line is for the test itself.
const PATIENCE: Duration = Duration::from_secs(3);
/// Less than this is hardly a restore point.
const LITTLE: u64 = 1 << 30;
/// So much of the whole is little, too.
const PART: u64 = 50;

/// The host a remote is on; none for one of this machine, or whose URL cannot be read.
pub fn host(remote: &RemoteRecord) -> Option<String> {
    let host = match RemoteUrl::parse(&remote.url).ok()?.location() {
        Location::Local { .. } => return None,
        Location::Nfs { host, .. } => host.clone(),
        Location::Smb { host, .. } => host.split('\\').next().unwrap_or_default().to_owned(),
        Location::S3 { host, .. } | Location::Azure { host, .. } => match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name.to_owned(),
            _ => host.clone(),
        },
    };
    Some(host.trim_matches(['[', ']']).to_owned())
}

/// Looks what it lies on, writes, reads back, compares and looks at the room.
pub async fn check(lines: Lines, daemon: Arc<Daemon>, remote: RemoteRecord) {
    let path = match RemoteUrl::parse(&remote.url).ok().as_ref().map(RemoteUrl::location) {
        Some(Location::Local { path }) => Some(path.clone()),
        _ => None,
    };
    let place = match &path {
        Some(path) => format!(" at {}", path.display()),
        None => String::new(),
    };
    let about = About::new(
        Kind::Remote,
        format!("remote {}", remote.name),
        format!("writing 10 MiB{place} and reading them back"),
        "check its mount on this proxy: a server that is away makes it hang (umount -f -l and mount again frees it); a slower \
         one than 2 MiB/s is too slow for backups",
    );
    lines.check(about, async { (tried(&daemon, &remote, path).await, Some(())) }).await;
}

async fn tried(daemon: &Daemon, remote: &RemoteRecord, path: Option<PathBuf>) -> Finding {
    let test = match daemon.remotes.probe(&remote.id, PATIENCE).await {
        Ok(test) => test,
        Err(fault) => return Finding::fail(fault.report().message, "backhaul remote list"),
    };
    if let Some(error) = test.error.filter(|_| !test.success) {
        let fix = error.next.unwrap_or_else(|| "check its mount, its rights and its server; then: backhaul remote test".into());
        let measured = match &test.step {
            Some(step) if step != "open" => format!("step {step}: {}", error.message),
            _ => error.message,
        };
        return if error.code == BUSY { Finding::warning(measured, fix) } else { Finding::fail(measured, fix) };
    }
    let rate = |rate: Option<f64>| rate.map_or_else(|| "?".to_owned(), |rate| format_rate(rate as u64));
    let mut words = format!("10 MiB written at {} and read back at {}", rate(test.write_rate), rate(test.read_rate));
    if let Some(mount) = path.as_deref().and_then(mounts::of) {
        words.push_str(&format!("; on the {mount}"));
    }
    match daemon.remotes.space(remote).await {
        Ok(Some(space)) => judge(space, words),
        Ok(None) => Finding::pass(format!("{words}; it does not tell its free space")),
        Err(error) => Finding::warning(format!("{words}; but then: {}", error.message), "look again: backhaul remote list"),
    }
}

fn judge(space: Space, words: String) -> Finding {
    let words = format!("{words}; {} of {} free", format_bytes(space.available), format_bytes(space.size));
    if space.available < LITTLE || space.available < space.size / PART {
        return Finding::warning(words, "remove restore points, lower the retention of jobs, or enlarge it");
    }
    Finding::pass(words)
}

#[cfg(test)]
mod tests {
    use api::Verdict;

    use super::*;

    fn on(url: &str) -> Option<String> {
        host(&RemoteRecord { id: "r".into(), name: "nas".into(), url: url.into() })
    }

    #[test]
    fn the_host_is_found_in_every_form() {
        assert_eq!(on("file:///srv"), None);
        assert_eq!(on("nfs://nas.example:/export").as_deref(), Some("nas.example"));
        assert_eq!(on("smb://u:p@D\\\\srv\\share\0x").as_deref(), Some("srv"));
        assert_eq!(on("s3+http://k:s@127.0.0.1:9000/b").as_deref(), Some("127.0.0.1"));
        assert_eq!(on("s3://k:s@s3.example/b").as_deref(), Some("s3.example"));
        assert_eq!(on("nonsense"), None);
    }

    #[test]
    fn little_room_is_a_warning() {
        let verdict = |available, size| judge(Space { size, used: size - available, available }, String::new()).verdict;
        assert_eq!(verdict(2 << 30, 10 << 30), Verdict::Pass);
        assert_eq!(verdict((1 << 30) - 1, 10 << 30), Verdict::Warning);
        assert_eq!(verdict(10 << 30, 1 << 40), Verdict::Warning);
    }
}
