//! Figures of the machine: what somebody far away asks for first. Linux only; what cannot be read is left out.

use std::path::Path;

use api::format_bytes;

use crate::doctor;
use crate::mounts::{self, Mount};

/// The figures, one a line. Blocks for a moment.
pub(crate) fn figures(state_dir: &Path) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let uname = rustix::system::uname();
    let mut out = String::new();
    let mut tell = |what: &str, value: String| {
        if !value.trim().is_empty() {
            out.push_str(&format!("{what:<16} {}\n", value.trim()));
        }
    };
    let of = |text: &str, key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        found.trim().trim_matches('"').to_owned()
    };
    tell("system", of(&read("/etc/os-release"), "PRETTY_NAME="));
    tell(
        "kernel",
        format!(
            "{} {} {}",
            uname.sysname().to_string_lossy(),
            uname.release().to_string_lossy(),
            uname.machine().to_string_lossy()
        ),
    );
    tell("host", uname.nodename().to_string_lossy().into_owned());
    tell("processors", std::thread::available_parallelism().map(|count| count.to_string()).unwrap_or_default());
    // Asked of the system: its service sees no more of /proc than processes.
    let machine = rustix::system::sysinfo();
    let load = machine.loads.map(|load| format!("{:.2}", load as f64 / 65536.0));
    tell("load", format!("{} (1, 5, 15 min)", load.join(" ")));
    let seconds = machine.uptime;
    tell("up for", format!("{} h {} min", seconds / 3600, seconds / 60 % 60));
    let unit = u64::from(machine.mem_unit);
    let memory = [("memory", machine.totalram), ("memory free", machine.freeram), ("swap free", machine.freeswap)];
    for (what, units) in memory {
        tell(what, format_bytes(units.saturating_mul(unit)));
    }
    let own = read("/proc/self/status");
    for (what, key) in [("own memory", "VmRSS:"), ("own peak", "VmHWM:"), ("own threads", "Threads:")] {
        tell(what, of(&own, key));
    }
    tell("own files", std::fs::read_dir("/proc/self/fd").map(|open| open.count().to_string()).unwrap_or_default());
    tell(
        "files allowed",
        read("/proc/self/limits").lines().find(|line| line.starts_with("Max open files")).unwrap_or_default().into(),
    );
    tell("DNS servers", doctor::name_servers(&read("/etc/resolv.conf")).join(", "));
    if let Ok(found) = rustix::fs::statvfs(state_dir) {
        let (free, size) = (found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize));
        tell("state folder", format!("{}: {} of {} free", state_dir.display(), format_bytes(free), format_bytes(size)));
    }
    for Mount { point, kind } in mounts::all() {
        let holds_files = matches!(&*kind, "nfs" | "nfs4" | "cifs" | "smb3" | "ext4" | "xfs" | "btrfs" | "zfs");
        if holds_files || kind.starts_with("fuse") {
            tell("mount", format!("{} ({kind})", point.display()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let text = figures(Path::new("/"));
        for what in ["kernel", "processors", "load", "up for", "memory", "own memory", "state folder"] {
            assert!(text.lines().any(|line| line.starts_with(what)), "{what}: {text}");
        }
        let of = |what: &str| text.lines().find_map(|line| line.strip_prefix(what)).unwrap().trim().to_owned();
        assert!(of("memory ").ends_with("iB") && of("memory ") != "0 B", "{text}");
    }
}
