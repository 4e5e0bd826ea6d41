//! What a pool holds, for whoever set it up: its machines and where their disks lie.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::pool::Pool;
use crate::rpc;

/// A virtual machine of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its UUID.
    pub uuid: String,
    /// Its reference.
    pub reference: String,
    /// Its name label.
    pub name: String,
    /// `Running`, `Halted`…
    pub power_state: String,
    /// Its disks, in order of `userdevice`.
    pub disks: Vec<DiskInfo>,
}

/// A disk of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// UUID of the VDI.
    pub vdi: String,
    /// Its reference.
    pub reference: String,
    /// Its name label.
    pub name: String,
    /// The live disk, a raw file.
    pub path: PathBuf,
    /// Its virtual size, bytes.
    pub bytes: u64,
}

/// All machines but templates, snapshots and control domains, by name.
pub(crate) fn vms(pool: &Arc<Pool>) -> Vec<VmInfo> {
    let mut found = pool.db.with(|store| {
        let real: Vec<_> = store
            .all("VM")
            .filter(|(_, vm)| vm["is_a_template"] == false && vm["is_a_snapshot"] == false && vm["is_control_domain"] == false)
            .map(|(reference, vm)| {
                let text = |field: &str| vm[field].as_str().unwrap_or_default().to_owned();
                (reference.to_owned(), text("uuid"), text("name_label"), text("power_state"))
            })
            .collect();
        real.into_iter()
            .map(|(reference, uuid, name, power_state)| {
                let vdis = rpc::disks(store, &reference).unwrap_or_default();
                let disks = vdis.into_iter().filter_map(|(_, vdi)| {
                    let record = store.get("VDI", &vdi).ok()?;
                    Some(DiskInfo {
                        vdi: record["uuid"].as_str()?.to_owned(),
                        name: record["name_label"].as_str()?.to_owned(),
                        path: pool.shelf.path(&vdi)?,
                        bytes: record["virtual_size"].as_u64()?,
                        reference: vdi,
                    })
                });
                VmInfo { uuid, name, power_state, disks: disks.collect(), reference }
            })
            .collect::<Vec<_>>()
    });
    found.sort_by(|one, other| (&one.name, &one.uuid).cmp(&(&other.name, &other.uuid)));
    found
}

/// Reference of the machine with that UUID or, failing that, that name.
pub(crate) fn find_vm(pool: &Arc<Pool>, name: &str) -> Option<String> {
    let all = vms(pool);
    all.iter().find(|vm| vm.uuid == name).or_else(|| all.iter().find(|vm| vm.name == name)).map(|vm| vm.reference.clone())
}
