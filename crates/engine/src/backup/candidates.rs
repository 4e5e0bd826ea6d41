//! Which snapshots on a pool belong to a job, which of them can be a base, and which must go
//! (backup-repository.md §4.3, §4.4). Nothing here talks to a pool: records in, plans out.

use std::collections::{BTreeMap, BTreeSet};

use xapi::{Record, Ref, Vbd, Vdi, Vm};

use super::keys;

/// The records of a pool that say what is attached to what.
pub(crate) struct Inventory {
    pub(crate) vms: BTreeMap<Ref, Record<Vm>>,
    pub(crate) vdis: BTreeMap<Ref, Record<Vdi>>,
    pub(crate) vbds: BTreeMap<Ref, Record<Vbd>>,
}

/// A snapshot disk of this job and VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotDisk {
    pub(crate) vdi: Ref,
    pub(crate) uuid: String,
    /// uuid of the live disk it is a snapshot of.
    pub(crate) live: String,
    /// Its data is destroyed: it can only say which blocks changed since.
    pub(crate) metadata_only: bool,
}

/// A snapshot of this job and VM: the VM record if it still has one, and its disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Snapshot {
    pub(crate) datetime: String,
    pub(crate) schedule: String,
    pub(crate) vm: Option<Ref>,
    pub(crate) disks: Vec<SnapshotDisk>,
    /// Whether everything of it was exported.
    pub(crate) exported: bool,
    /// Deltas since the last full.
    pub(crate) chain_length: u32,
}

impl Inventory {
    /// The disks of a VM, in the order of its attachments.
    pub(crate) fn disks(&self, vm: &Record<Vm>) -> Vec<&Record<Vdi>> {
        vm.vbds
            .iter()
            .filter_map(|vbd| self.vbds.get(vbd))
            .filter(|vbd| vbd.r#type == "Disk" && !vbd.vdi.is_null())
            .filter_map(|vbd| self.vdis.get(&vbd.vdi))
            .collect()
    }

    /// The snapshots of `vm` that `job` made, oldest first.
    pub(crate) fn snapshots(&self, vm: &Record<Vm>, job: &str) -> Vec<Snapshot> {
        let live: BTreeMap<&Ref, &str> = self.disks(vm).iter().map(|vdi| (&vdi.reference, vdi.uuid.as_str())).collect();
        let owned: BTreeSet<&Ref> = self
            .vdis
            .values()
            .filter(|vdi| live.contains_key(&vdi.snapshot_of) && is_owned(&vdi.other_config, job, &vm.uuid))
            .map(|vdi| &vdi.reference)
            .collect();
        // The key of a group is its datetime and schedule; a disk without datetime is a group of its own.
        let mut groups: BTreeMap<(String, String, String), Snapshot> = BTreeMap::new();
        for vdi in owned.iter().filter_map(|vdi| self.vdis.get(vdi)) {
            let Some(snapshot_vm) = self.place(vdi, &owned) else { continue };
            let group = group(&mut groups, &vdi.other_config, &vdi.uuid);
            group.vm = group.vm.take().or(snapshot_vm);
            group.exported &= vdi.other_config.contains_key(keys::EXPORTED);
            group.disks.push(SnapshotDisk {
                vdi: vdi.reference.clone(),
                uuid: vdi.uuid.clone(),
                live: live.get(&vdi.snapshot_of).copied().unwrap_or_default().to_owned(),
                metadata_only: is_metadata(vdi),
            });
        }
        // A VM without disks is tracked through its snapshot VMs.
        for snapshot in self.vms.values().filter(|snapshot| snapshot.is_a_snapshot && snapshot.snapshot_of == vm.reference) {
            if is_owned(&snapshot.other_config, job, &vm.uuid) && self.disks(snapshot).is_empty() {
                let group = group(&mut groups, &snapshot.other_config, &snapshot.uuid);
                group.vm.get_or_insert_with(|| snapshot.reference.clone());
                group.exported &= snapshot.other_config.contains_key(keys::EXPORTED);
            }
        }
        groups.into_values().collect()
    }

    /// Whether an owned snapshot disk may be touched, and the snapshot VM it hangs on, if any.
    fn place(&self, vdi: &Record<Vdi>, owned: &BTreeSet<&Ref>) -> Option<Option<Ref>> {
        if is_metadata(vdi) {
            return Some(None);
        }
        let users: BTreeSet<&Ref> = vdi.vbds.iter().filter_map(|vbd| self.vbds.get(vbd)).map(|vbd| &vbd.vm).collect();
        let mut users = users.into_iter().filter(|vm| !self.vms.get(vm).is_some_and(|vm| vm.is_control_domain));
        let Some(user) = users.next() else { return Some(None) };
        // A VM whose record is missing is unknown, and what is unknown is left alone.
        let user = self.vms.get(user).filter(|_| users.next().is_none())?;
        let same_owner =
            [keys::DATETIME, keys::JOB, keys::VM].iter().all(|key| user.other_config.get(*key) == vdi.other_config.get(*key));
        let all_owned = self.disks(user).iter().all(|disk| !disk.is_a_snapshot || owned.contains(&disk.reference));
        (user.is_a_snapshot && same_owner && all_owned).then(|| Some(user.reference.clone()))
    }

    /// Snapshots of `vm` that an interrupted run did not come to tag.
    pub(crate) fn leftovers(&self, vm: &Record<Vm>) -> Vec<&Record<Vm>> {
        self.vms
            .values()
            .filter(|snapshot| snapshot.is_a_snapshot && snapshot.snapshot_of == vm.reference)
            .filter(|snapshot| snapshot.name_label == keys::TEMPORARY_NAME)
            .collect()
    }
}

fn is_metadata(vdi: &Vdi) -> bool {
    vdi.r#type == "cbt_metadata"
}

fn is_owned(config: &BTreeMap<String, String>, job: &str, vm: &str) -> bool {
    let is = |key: &str, value: &str| config.get(key).is_some_and(|text| text == value);
    is(keys::JOB, job) && is(keys::VM, vm) && !config.contains_key(keys::COPY_OF)
}

fn group<'a>(
    groups: &'a mut BTreeMap<(String, String, String), Snapshot>,
    config: &BTreeMap<String, String>,
    uuid: &str,
) -> &'a mut Snapshot {
    let text = |key: &str| config.get(key).cloned().unwrap_or_default();
    let (datetime, schedule) = (text(keys::DATETIME), text(keys::SCHEDULE));
    let alone = if datetime.is_empty() { uuid.to_owned() } else { String::new() };
    let chain_length = text(keys::CHAIN_LENGTH).parse().unwrap_or(0);
    groups.entry((datetime.clone(), schedule.clone(), alone)).or_insert_with(|| Snapshot {
        datetime,
        schedule,
        exported: true,
        chain_length,
        ..Snapshot::default()
    })
}

/// The snapshot the next delta can be computed from: the newest one that was exported and says when it was taken.
pub(crate) fn newest_base(snapshots: &[Snapshot]) -> Option<&Snapshot> {
    snapshots
        .iter()
        .filter(|snapshot| snapshot.exported && !snapshot.datetime.is_empty())
        .max_by_key(|snapshot| &snapshot.datetime)
}

/// The snapshots that nobody needs any more. With `keep_base`, the one a delta needs stays, and a newer one too, if
/// there is one: it belongs to a run that is not over, or its owner will find it.
pub(crate) fn surplus(snapshots: &[Snapshot], keep_base: bool) -> Vec<&Snapshot> {
    let base = newest_base(snapshots).filter(|_| keep_base).map(|base| base.datetime.clone());
    let newest = snapshots.iter().map(|snapshot| &snapshot.datetime).max().filter(|_| keep_base);
    snapshots.iter().filter(|snapshot| Some(&snapshot.datetime) != base.as_ref() && Some(&snapshot.datetime) != newest).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const JOB: &str = "job-1";

    /// A pool with one VM `vm` that has the disks `a` and `b`, described as lists of (reference, record).
    fn inventory(vms: &[(&str, Value)], vdis: &[(&str, Value)], vbds: &[(&str, Value)]) -> Inventory {
        fn read<T: xapi::Kind>(records: &[(&str, Value)]) -> BTreeMap<Ref, Record<T>> {
            records.iter().map(|(id, value)| (Ref::from(*id), Record::read(Ref::from(*id), value.clone()).unwrap())).collect()
        }
        let live = [("vm", json!({"uuid": "vm-uuid", "VBDs": ["vbd-a", "vbd-b"]}))];
        let disks = [("a", json!({"uuid": "a-uuid"})), ("b", json!({"uuid": "b-uuid"}))];
        let links = [vbd("vbd-a", "vm", "a"), vbd("vbd-b", "vm", "b")];
        Inventory {
            vms: read(&[&live, vms].concat()),
            vdis: read(&[&disks, vdis].concat()),
            vbds: read(&[&links, vbds].concat()),
        }
    }

    fn vbd<'a>(id: &'a str, vm: &str, vdi: &str) -> (&'a str, Value) {
        (id, json!({"VM": vm, "VDI": vdi, "type": "Disk"}))
    }

    fn config(datetime: &str) -> Value {
        json!({keys::JOB: JOB, keys::VM: "vm-uuid", keys::DATETIME: datetime, keys::SCHEDULE: "s", keys::EXPORTED: "true",
            keys::CHAIN_LENGTH: "3"})
    }

    fn snapshot_vdi(of: &str, datetime: &str, vbds: &[&str]) -> Value {
        json!({"uuid": format!("{of}-{datetime}"), "snapshot_of": of, "is_a_snapshot": true, "other_config": config(datetime),
            "VBDs": vbds})
    }

    fn snapshot_vm(datetime: &str, vbds: &[&str]) -> Value {
        json!({"uuid": format!("vm-{datetime}"), "is_a_snapshot": true, "snapshot_of": "vm", "other_config": config(datetime),
            "VBDs": vbds})
    }

    fn found(inventory: &Inventory) -> Vec<Snapshot> {
        inventory.snapshots(&inventory.vms[&Ref::from("vm")], JOB)
    }

    #[test]
    fn the_disks_of_a_snapshot_stand_together_with_its_vm() {
        let pool = inventory(
            &[("s1", snapshot_vm("20250101T00:00:00Z", &["v1", "v2"]))],
            &[
                ("s1a", snapshot_vdi("a", "20250101T00:00:00Z", &["v1"])),
                ("s1b", snapshot_vdi("b", "20250101T00:00:00Z", &["v2"])),
                ("s2a", snapshot_vdi("a", "20250102T00:00:00Z", &[])),
            ],
            &[vbd("v1", "s1", "s1a"), vbd("v2", "s1", "s1b")],
        );
        let snapshots = found(&pool);
        assert_eq!(snapshots.len(), 2);
        assert_eq!(snapshots[0].vm, Some(Ref::from("s1")));
        assert_eq!(snapshots[0].disks.iter().map(|disk| disk.live.as_str()).collect::<Vec<_>>(), ["a-uuid", "b-uuid"]);
        assert_eq!((snapshots[0].exported, snapshots[0].chain_length), (true, 3));
        assert_eq!(snapshots[1].vm, None);
    }

    #[test]
    fn what_somebody_else_uses_or_owns_is_left_alone() {
        let mine = "20250101T00:00:00Z";
        let mut replica = snapshot_vdi("a", mine, &[]);
        replica["other_config"][keys::COPY_OF] = json!("x");
        let mut foreign = snapshot_vdi("a", mine, &[]);
        foreign["other_config"][keys::JOB] = json!("other");
        let cases = [
            ("a replica", inventory(&[], &[("s", replica)], &[])),
            ("another job's", inventory(&[], &[("s", foreign)], &[])),
            ("of a detached disk", inventory(&[], &[("s", snapshot_vdi("gone", mine, &[]))], &[])),
            (
                "attached to a user's VM",
                inventory(
                    &[("u", json!({"uuid": "u", "VBDs": ["v"]}))],
                    &[("s", snapshot_vdi("a", mine, &["v"]))],
                    &[vbd("v", "u", "s")],
                ),
            ),
            ("attached to a VM nobody knows", inventory(&[], &[("s", snapshot_vdi("a", mine, &["v"]))], &[vbd("v", "u", "s")])),
            (
                "of a snapshot with other keys",
                inventory(
                    &[("u", snapshot_vm("20250102T00:00:00Z", &["v"]))],
                    &[("s", snapshot_vdi("a", mine, &["v"]))],
                    &[vbd("v", "u", "s")],
                ),
            ),
            (
                "of a snapshot with a disk that is not ours",
                inventory(
                    &[("u", snapshot_vm(mine, &["v", "w"]))],
                    &[("s", snapshot_vdi("a", mine, &["v"])), ("t", snapshot_vdi("gone", mine, &["w"]))],
                    &[vbd("v", "u", "s"), vbd("w", "u", "t")],
                ),
            ),
            (
                "attached to two VMs",
                inventory(
                    &[("u", snapshot_vm(mine, &["v"])), ("w", snapshot_vm(mine, &["x"]))],
                    &[("s", snapshot_vdi("a", mine, &["v", "x"]))],
                    &[vbd("v", "u", "s"), vbd("x", "w", "s")],
                ),
            ),
        ];
        for (case, pool) in cases {
            assert_eq!(found(&pool), [], "{case}");
        }
    }

    #[test]
    fn a_control_domain_does_not_count_as_a_user() {
        let pool = inventory(
            &[("dom0", json!({"uuid": "dom0", "is_control_domain": true, "VBDs": ["v"]}))],
            &[("s", snapshot_vdi("a", "20250101T00:00:00Z", &["v"]))],
            &[vbd("v", "dom0", "s")],
        );
        assert_eq!(found(&pool).len(), 1);
    }

    #[test]
    fn metadata_of_changed_blocks_counts_wherever_it_hangs() {
        let mut purged = snapshot_vdi("a", "20250101T00:00:00Z", &["v"]);
        purged["type"] = json!("cbt_metadata");
        let pool = inventory(&[("u", json!({"uuid": "u"}))], &[("s", purged)], &[vbd("v", "u", "s")]);
        assert!(found(&pool)[0].disks[0].metadata_only);
    }

    #[test]
    fn a_vm_without_disks_is_found_by_its_snapshot() {
        let pool = inventory(&[("s", snapshot_vm("20250101T00:00:00Z", &[]))], &[], &[]);
        assert_eq!(found(&pool)[0].vm, Some(Ref::from("s")));
    }

    #[test]
    fn a_half_exported_snapshot_is_no_base() {
        let mut half = snapshot_vdi("b", "20250102T00:00:00Z", &[]);
        half["other_config"].as_object_mut().unwrap().remove(keys::EXPORTED);
        let pool = inventory(
            &[],
            &[
                ("1a", snapshot_vdi("a", "20250101T00:00:00Z", &[])),
                ("2a", snapshot_vdi("a", "20250102T00:00:00Z", &[])),
                ("2b", half),
            ],
            &[],
        );
        let snapshots = found(&pool);
        assert_eq!(newest_base(&snapshots).unwrap().datetime, "20250101T00:00:00Z");
        assert_eq!(surplus(&snapshots, true), [] as [&Snapshot; 0]);
        assert_eq!(surplus(&snapshots, false).len(), 2);
    }

    #[test]
    fn only_the_newest_stays_as_base() {
        let days: Vec<_> = (1..=4).map(|day| format!("2025010{day}T00:00:00Z")).collect();
        let vdis: Vec<_> = days.iter().map(|day| (day.as_str(), snapshot_vdi("a", day, &[]))).collect();
        let snapshots = found(&inventory(&[], &vdis, &[]));
        let gone: Vec<_> = surplus(&snapshots, true).into_iter().map(|snapshot| snapshot.datetime.clone()).collect();
        assert_eq!(gone, days[..3]);
    }
}
