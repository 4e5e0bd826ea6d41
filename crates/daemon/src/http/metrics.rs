//! `GET /metrics` in the OpenMetrics text format, version 1.0.0.

use std::fmt::Write;

use api::PoolState;

use crate::daemon::Daemon;

/// What the format calls itself.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A text under construction.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, unit: Option<&str>, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if let Some(unit) = unit {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{escaped}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn end(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// Everything that is measured. What cannot be read is left out and logged: half a page is better than none.
pub async fn exposition(daemon: &Daemon) -> String {
    let mut out = Exposition::default();
    out.family("backhaul_build", "info", None, "The program.");
    out.sample("backhaul_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    out.family("backhaul_start_time_seconds", "gauge", Some("seconds"), "When the daemon started.");
    out.sample("backhaul_start_time_seconds", &[], seconds(daemon.started_at));

    let live = daemon.journal.look_at_all(|run| (run.run().kind, run.running_transfers(), run.bytes_per_second()));
    out.family("backhaul_runs_running", "gauge", None, "Runs that have not ended.");
    out.sample("backhaul_runs_running", &[], live.len());
    out.family("backhaul_transfers_running", "gauge", None, "Disks and archives being moved.");
    out.sample("backhaul_transfers_running", &[], live.iter().map(|(_, transfers, _)| transfers).sum::<usize>());
    out.family("backhaul_transfer_speed_bytes", "gauge", Some("bytes"), "Disk content moved per second, now.");
    out.sample("backhaul_transfer_speed_bytes", &[], live.iter().map(|(_, _, speed)| speed).sum::<u64>());

    match daemon.store.run_counts().await {
        Ok(counts) => {
            out.family("backhaul_runs", "counter", None, "Runs that have ended.");
            for (kind, outcome, count) in counts {
                out.sample("backhaul_runs_total", &[("kind", &kind), ("outcome", &outcome)], count);
            }
        }
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "metrics are incomplete"),
    }
    match daemon.store.totals().await {
        Ok(totals) => {
            out.family("backhaul_moved_bytes", "counter", Some("bytes"), "Disk content moved by runs that have ended.");
            out.sample("backhaul_moved_bytes_total", &[], totals.moved);
            out.family("backhaul_written_bytes", "counter", Some("bytes"), "Written to repositories by runs that have ended.");
            out.sample("backhaul_written_bytes_total", &[], totals.written);
            out.family("backhaul_journal_events", "counter", None, "Events in the journals of all runs.");
            out.sample("backhaul_journal_events_total", &[], totals.events);
            out.family("backhaul_runs_with_leftovers", "gauge", None, "Ended runs whose leftovers are still to be cleaned.");
            out.sample("backhaul_runs_with_leftovers", &[], totals.with_leftovers);
        }
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "metrics are incomplete"),
    }
    match daemon.store.last_successes().await {
        Ok(jobs) => {
            let help = "When a job last succeeded.";
            out.family("backhaul_job_last_success_timestamp_seconds", "gauge", Some("seconds"), help);
            for (job, at) in jobs {
                out.sample("backhaul_job_last_success_timestamp_seconds", &[("job", &job)], seconds(at));
            }
        }
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "metrics are incomplete"),
    }

    out.family("backhaul_pool_up", "gauge", None, "Whether a pool answered last time.");
    for pool in daemon.pools.known().iter().filter(|pool| pool.state != PoolState::Unknown) {
        out.sample("backhaul_pool_up", &[("pool", &pool.name)], u8::from(pool.state == PoolState::Connected));
    }
    match daemon.remotes.list().await {
        Ok(remotes) => {
            out.family("backhaul_remote_up", "gauge", None, "Whether a remote answers.");
            for remote in &remotes {
                out.sample("backhaul_remote_up", &[("remote", &remote.name)], u8::from(remote.error.is_none()));
            }
            for (name, help) in [("free", "Free space of a remote."), ("size", "Size of a remote.")] {
                let family = format!("backhaul_remote_{name}_bytes");
                out.family(&family, "gauge", Some("bytes"), help);
                for (remote, space) in remotes.iter().filter_map(|remote| Some((remote, remote.space?))) {
                    let value = if name == "free" { space.available } else { space.size };
                    out.sample(&family, &[("remote", &remote.name)], value);
                }
            }
        }
        Err(fault) => tracing::warn!(error = %fault.report(), "metrics are incomplete"),
    }
    out.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_survive_any_name() {
        let mut out = Exposition::default();
        out.sample("x", &[("job", "a \"b\" \\ \n c"), ("k", "v")], 1);
        assert_eq!(out.end(), "x{job=\"a \\\"b\\\" \\\\ \\n c\",k=\"v\"} 1\n# EOF\n");
    }
}
