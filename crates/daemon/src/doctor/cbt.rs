//! Whether the pool tracks which blocks of the disks in jobs change: without it every delta reads the whole disk.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::{Job, JobMode};
use futures::FutureExt;
use futures::future::join_all;
use xapi::{Record, Ref, Sm, Sr, Vbd, Vdi, Vm};

use super::pool::Visit;
use super::{About, Finding, Kind, Lines};
use crate::fault;

/// What a driver of storage says when it can track changes.
const FEATURE: &str = "VDI_CONFIG_CBT";
/// Disks that a line names; the rest is counted.
const NAMED: usize = 5;
/// A disk with this in its name is left out of backups.
const NO_BACKUP: &str = "[NOBAK]";

/// Checks the disks of every job that backs up VMs of this pool incrementally.
pub async fn check(lines: &Lines, visit: &Visit) {
    // Read once, whichever job asks first.
    let state = read(visit).map(|read| read.map(Arc::new).map_err(|error| fault::chain(&error))).shared();
    let wanted = visit.jobs.iter().filter(|job| job.spec.mode == JobMode::Delta && job.spec.prefer_nbd);
    join_all(wanted.map(|job| {
        let state = state.clone();
        let about = About::new(
            Kind::Cbt,
            format!("job {} on {}", job.spec.name, visit.name),
            "reading its disks",
            "check the load of the pool's master (xe task-list); the toolstack is slow or busy",
        );
        let work = async move {
            let finding = match state.await {
                Ok(state) => judge(job, &state),
                Err(error) => {
                    let words = format!("its disks cannot be read: {error}");
                    Some(Finding::fail(words, "check that the user of the pool may read everything (role pool-admin)"))
                }
            };
            (finding, Some(()))
        };
        lines.check(about, work)
    }))
    .await;
}

/// What is attached to what.
struct State {
    vms: Vec<Record<Vm>>,
    vbds: HashMap<Ref, Record<Vbd>>,
    vdis: HashMap<Ref, Record<Vdi>>,
    srs: HashMap<Ref, Record<Sr>>,
    /// Types of storage that can track changes.
    able: BTreeSet<String>,
}

async fn read(visit: &Visit) -> xapi::Result<State> {
    let client = &visit.client;
    let (vms, vbds, vdis, srs, drivers) =
        tokio::try_join!(client.all::<Vm>(), client.all::<Vbd>(), client.all::<Vdi>(), client.all::<Sr>(), client.all::<Sm>())?;
    fn by_reference<T>(records: Vec<Record<T>>) -> HashMap<Ref, Record<T>> {
        records.into_iter().map(|record| (record.reference.clone(), record)).collect()
    }
    let can = |driver: &&Record<Sm>| {
        driver.features.contains_key(FEATURE) || driver.capabilities.iter().any(|capability| capability == FEATURE)
    };
    let able = drivers.iter().filter(can).map(|driver| driver.r#type.clone()).collect();
    Ok(State { vms, vbds: by_reference(vbds), vdis: by_reference(vdis), srs: by_reference(srs), able })
}

/// What the disks of a job come to; nothing when none of its VMs is on this pool.
fn judge(job: &Job, state: &State) -> Option<Finding> {
    let vms: Vec<&Record<Vm>> = state.vms.iter().filter(|vm| job.spec.vms.contains(&vm.uuid)).collect();
    if vms.is_empty() {
        return None;
    }
    let (mut all, mut off, mut unable) = (0, Vec::new(), Vec::new());
    let mut storages = BTreeSet::new();
    for vm in &vms {
        let attached = vm.vbds.iter().filter_map(|vbd| state.vbds.get(vbd)).filter(|vbd| vbd.r#type == "Disk");
        for vdi in attached.filter_map(|vbd| state.vdis.get(&vbd.vdi)).filter(|vdi| !vdi.name_label.contains(NO_BACKUP)) {
            all += 1;
            if vdi.cbt_enabled {
                continue;
            }
            let named = format!("{:?} of {} ({})", vdi.name_label, vm.name_label, vdi.uuid);
            match state.srs.get(&vdi.sr) {
                Some(sr) if !state.able.contains(&sr.r#type) => {
                    storages.insert(format!("{} (type {})", sr.name_label, sr.r#type));
                    unable.push(named);
                }
                _ => off.push((named, vdi.uuid.as_str())),
            }
        }
    }
    let vms = if vms.len() == 1 { "1 VM".to_owned() } else { format!("{} VMs", vms.len()) };
    let tracked = format!("changes are tracked on {} of the {all} disks of {vms}", all - off.len() - unable.len());
    let (mut measured, mut fixes) = (tracked, Vec::new());
    if !off.is_empty() {
        let named: Vec<&str> = off.iter().map(|(named, _)| named.as_str()).collect();
        measured.push_str(&format!("; not on {}", few(&named)));
        let (_, uuid) = off[0];
        fixes.push(format!("the next run of the job turns it on, or at once for each disk: xe vdi-enable-cbt uuid={uuid}"));
    }
    if !unable.is_empty() {
        let named: Vec<&str> = unable.iter().map(String::as_str).collect();
        let storages = storages.into_iter().collect::<Vec<_>>().join(", ");
        measured.push_str(&format!("; {storages} cannot track them: {}", few(&named)));
        fixes.push("move these disks to a storage that can (ext, lvm, nfs), or let each delta read them whole".to_owned());
    }
    Some(if fixes.is_empty() { Finding::pass(measured) } else { Finding::warning(measured, fixes.join("; ")) })
}

fn few(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use api::Verdict;
    use serde_json::json;

    use super::*;

    fn job(vms: &[&str]) -> Job {
        let spec = json!({ "name": "nightly", "mode": "delta", "vms": vms, "remotes": ["r"] });
        Job {
            id: "j".into(),
            schedule_id: "s".into(),
            spec: serde_json::from_value(spec).unwrap(),
            last_run: None,
            next_runs: Vec::new(),
        }
    }

    /// One VM with a disk on each storage: the first tracked, the others not.
    fn state(kinds: &[&str]) -> State {
        fn read<T: xapi::Kind>(records: impl Iterator<Item = (String, serde_json::Value)>) -> HashMap<Ref, Record<T>> {
            let read = |(id, raw): (String, _)| (Ref::from(id.clone()), Record::read(Ref::from(id), raw).unwrap());
            records.map(read).collect()
        }
        let indexes = 0..kinds.len();
        let vbds: Vec<String> = indexes.clone().map(|index| format!("b{index}")).collect();
        State {
            vms: vec![Record::read("v".into(), json!({ "uuid": "vm-1", "name_label": "web", "VBDs": vbds })).unwrap()],
            vbds: read(indexes.clone().map(|i| (format!("b{i}"), json!({ "type": "Disk", "VDI": format!("d{i}") })))),
            vdis: read(indexes.clone().map(|i| {
                let raw = json!({ "uuid": format!("u{i}"), "name_label": format!("disk {i}"), "cbt_enabled": i == 0, "SR": format!("s{i}") });
                (format!("d{i}"), raw)
            })),
            srs: read(indexes.map(|i| (format!("s{i}"), json!({ "name_label": format!("SR {i}"), "type": kinds[i] })))),
            able: ["ext".to_owned()].into(),
        }
    }

    #[test]
    fn a_disk_without_tracking_is_named_and_so_is_storage_that_cannot() {
        let job = job(&["vm-1"]);
        assert_eq!(judge(&job, &state(&["ext"])), Some(Finding::pass("changes are tracked on 1 of the 1 disks of 1 VM")));
        let off = judge(&job, &state(&["ext", "ext"])).unwrap();
        assert_eq!(off.verdict, Verdict::Warning);
        assert!(off.measured.ends_with("1 of the 2 disks of 1 VM; not on \"disk 1\" of web (u1)"), "{}", off.measured);
        assert!(off.fix.unwrap().ends_with("xe vdi-enable-cbt uuid=u1"));
        let unable = judge(&job, &state(&["ext", "zfs"])).unwrap();
        assert!(unable.measured.contains("SR 1 (type zfs) cannot track them: \"disk 1\" of web"), "{}", unable.measured);
        let many = judge(&job, &state(&["ext"; 9])).unwrap();
        assert!(many.measured.ends_with(" and 3 more"), "{}", many.measured);
        assert_eq!(judge(&self::job(&["vm-2"]), &state(&["ext"])), None);
    }
}
