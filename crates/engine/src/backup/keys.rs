//! The keys in `other_config` by which backups find their snapshots again (backup-repository.md §4.1).

use jiff::Timestamp;

/// Owner: the job.
pub(crate) const JOB: &str = "xo:backup:job";
/// Owner: the schedule.
pub(crate) const SCHEDULE: &str = "xo:backup:schedule";
/// Owner: uuid of the live VM.
pub(crate) const VM: &str = "xo:backup:vm";
/// When the snapshot was taken; groups the disks of one snapshot.
pub(crate) const DATETIME: &str = "xo:backup:datetime";
/// The data was read by a program without the fault of old full exports of qcow2 disks.
pub(crate) const QCOW2_FIX: &str = "xo:backup:includeNonNbdQcow2Fix";
/// uuid of the snapshot disk itself.
pub(crate) const CONTENT: &str = "xo:backup:contentKey";
/// Deltas since the last full.
pub(crate) const CHAIN_LENGTH: &str = "xo:backup:deltaChainLength";
/// The export completed: only then may the snapshot be a base.
pub(crate) const EXPORTED: &str = "xo:backup:exported";
/// On replicas: uuid of the source object.
pub(crate) const COPY_OF: &str = "xo:copy_of";
/// In the records of a delta: uuid of the base snapshot disk.
pub(crate) const BASE: &str = "xo:base_delta_vdi";
/// Ours, on what a restore makes until it is finished: the run.
pub(crate) const RESTORE_RUN: &str = "backhaul:restore";

/// The keys taken off a live VM, so that snapshots a person makes do not inherit them, and off a restored VM.
pub(crate) const WIPED: [&str; 9] = [JOB, SCHEDULE, VM, DATETIME, QCOW2_FIX, CONTENT, CHAIN_LENGTH, EXPORTED, COPY_OF];

/// What a snapshot is called until it is tagged; one that still is in a later run is a leftover.
pub(crate) const TEMPORARY_NAME: &str = "xo-backup-temp-snapshot-name";

/// What a snapshot is called once it is tagged.
pub(crate) fn snapshot_name(job: &str, vm: &str) -> String {
    format!("[XO Backup {job}] {vm}")
}

/// A time as [`DATETIME`] holds it: `YYYYMMDDTHH:MM:SSZ`, with colons, unlike file names.
pub(crate) fn datetime(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H:%M:%SZ").to_string()
}

/// The [`DATETIME`] of a new snapshot: now, but always after `newest`, that of the VM's newest snapshot. Two runs within
/// a second, or a clock that was set back, must neither mix the disks of two snapshots nor make the new one look old.
pub(crate) fn datetime_after(now: Timestamp, newest: Option<&str>) -> String {
    let parsed = newest.and_then(|text| jiff::civil::DateTime::strptime("%Y%m%dT%H:%M:%SZ", text).ok());
    let newest = parsed.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok()).map(|time| time.timestamp());
    let next = newest.and_then(|newest| newest.checked_add(jiff::SignedDuration::from_secs(1)).ok());
    datetime(next.map_or(now, |next| next.max(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_snapshot_is_always_the_newest() {
        let now: Timestamp = "2025-01-31T23:14:59.9Z".parse().unwrap();
        let cases = [
            (None, "20250131T23:14:59Z"),
            (Some("20250131T23:14:58Z"), "20250131T23:14:59Z"),
            (Some("20250131T23:14:59Z"), "20250131T23:15:00Z"),
            (Some("20250201T00:00:00Z"), "20250201T00:00:01Z"),
            (Some("nonsense"), "20250131T23:14:59Z"),
        ];
        for (newest, expected) in cases {
            assert_eq!(datetime_after(now, newest), expected, "{newest:?}");
        }
    }

    #[test]
    fn a_datetime_has_colons_and_sorts_as_text() {
        let at: Timestamp = "2025-01-31T23:14:59.9Z".parse().unwrap();
        assert_eq!(datetime(at), "20250131T23:14:59Z");
    }
}
