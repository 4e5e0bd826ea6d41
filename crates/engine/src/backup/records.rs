//! The records of a restore point: complete, as the pool sent them, with the hints a restore elsewhere needs
//! (backup-repository.md §2.3).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use xapi::{Network, Pif, Record, Ref, Sr, Vbd, Vdi, Vif, Vm};

use super::keys;
use super::snapshot::MIGRATION_REASON;
use crate::error::Error;
use crate::pool::Pool;

type Raw = Map<String, Value>;

/// A disk of a snapshot.
#[derive(Clone)]
pub(crate) struct SnapshotVdi {
    pub(crate) record: Record<Vdi>,
    /// uuid of the live disk; that of the VDI itself where there is none.
    pub(crate) live: String,
    /// Where it is attached, e.g. `xvda`.
    pub(crate) device: String,
}

impl SnapshotVdi {
    /// The disk for a person.
    pub(crate) fn label(&self) -> String {
        match (self.record.name_label.as_str(), self.device.as_str()) {
            ("", "") => self.live.clone(),
            (name, "") => name.to_owned(),
            ("", device) => device.to_owned(),
            (name, device) => format!("{device} ({name})"),
        }
    }
}

/// What a restore point says of its VM beside the VM itself.
#[derive(Default)]
pub(crate) struct Records {
    pub(crate) disks: Vec<SnapshotVdi>,
    pub(crate) vbds: BTreeMap<String, Raw>,
    pub(crate) vifs: BTreeMap<String, Raw>,
    pub(crate) vtpms: Vec<Value>,
}

/// Reads the records around a snapshot.
pub(crate) async fn read(pool: &Pool, snapshot: &Record<Vm>) -> Result<Records, Error> {
    let mut records = Records::default();
    for vbd in &snapshot.vbds {
        let vbd = pool.get::<Vbd>(vbd).await?;
        if vbd.r#type != "Disk" || vbd.vdi.is_null() {
            continue;
        }
        let disk = read_disk(pool, &vbd).await?;
        records.vbds.insert(vbd.reference.to_string(), vbd.raw.clone());
        records.disks.push(disk);
    }
    // In the order of their devices, as a person knows them.
    records.disks.sort_by(|a, b| (a.device.len(), &a.device).cmp(&(b.device.len(), &b.device)));
    let mut networks = BTreeMap::new();
    for vif in &snapshot.vifs {
        let vif = pool.get::<Vif>(vif).await?;
        let mut raw = vif.raw.clone();
        if let Some(hints) = network_hints(pool, &vif.network, &mut networks).await? {
            raw.extend(hints);
        }
        records.vifs.insert(vif.reference.to_string(), raw);
    }
    records.vtpms = read_vtpms(pool, snapshot).await;
    Ok(records)
}

async fn read_disk(pool: &Pool, vbd: &Record<Vbd>) -> Result<SnapshotVdi, Error> {
    let mut record = pool.get::<Vdi>(&vbd.vdi).await?;
    let live = match record.snapshot_of.is_null() {
        true => None,
        false => match pool.client.field::<String>("VDI", &record.snapshot_of, "uuid").await {
            Ok(uuid) => Some(uuid),
            Err(error) if error.is_gone() => None,
            Err(error) => return Err(pool.failed("find the disk a snapshot is of")(error)),
        },
    };
    let sr = pool.get::<Sr>(&record.sr).await?;
    if let Some(live) = &live {
        record.raw.insert("$snapshot_of$uuid".into(), json!(live));
    }
    record.raw.insert("$SR$uuid".into(), json!(sr.uuid));
    let device = if vbd.device.is_empty() { userdevice_name(&vbd.userdevice) } else { vbd.device.clone() };
    Ok(SnapshotVdi { live: live.unwrap_or_else(|| record.uuid.clone()), device, record })
}

/// `0` → `xvda`: what the device of a VM that does not run is called once it does.
fn userdevice_name(position: &str) -> String {
    match position.parse::<u8>() {
        Ok(position @ 0..26) => format!("xvd{}", char::from(b'a' + position)),
        _ => position.to_owned(),
    }
}

impl SnapshotVdi {
    /// Its record as a restore point stores it, with the uuid of the base it is a delta of.
    pub(crate) fn stored(&self, base: Option<&str>) -> Raw {
        let mut raw = self.record.raw.clone();
        if let (Some(base), Some(config)) = (base, raw.get_mut("other_config").and_then(Value::as_object_mut)) {
            config.insert(keys::BASE.into(), json!(base));
        }
        raw
    }
}

/// Takes the operations that a backup blocks out of a VM's record: an interrupted run may have left them blocked, and a
/// VM restored from the record would stay so.
pub(crate) fn free_of_ours(vm: &mut Raw) {
    if let Some(blocked) = vm.get_mut("blocked_operations").and_then(Value::as_object_mut) {
        blocked.retain(|_, reason| reason != MIGRATION_REASON);
    }
}

/// What helps to find a network on another pool. None when the network is gone.
async fn network_hints(pool: &Pool, network: &Ref, known: &mut BTreeMap<Ref, Option<Raw>>) -> Result<Option<Raw>, Error> {
    if let Some(hints) = known.get(network) {
        return Ok(hints.clone());
    }
    let hints = match pool.client.get::<Network>(network).await {
        Ok(record) => {
            let mut hints = Raw::new();
            hints.insert("$network$uuid".into(), json!(record.uuid));
            hints.insert("$network$name_label".into(), json!(record.name_label));
            if let Some(pif) = record.pifs.first() {
                hints.insert("$network$VLAN".into(), pool.get::<Pif>(pif).await?.vlan.clone());
            }
            Some(hints)
        }
        Err(error) if error.is_gone() => None,
        Err(error) => return Err(pool.failed("read a network")(error)),
    };
    known.insert(network.clone(), hints.clone());
    Ok(hints)
}

/// The contents of the VTPMs. One that cannot be read is an empty entry, as XO writes it: the VM restores without.
async fn read_vtpms(pool: &Pool, snapshot: &Record<Vm>) -> Vec<Value> {
    let mut contents = Vec::new();
    for vtpm in &snapshot.vtpms {
        let content = pool.client.vtpm_contents(vtpm).await;
        if let Err(error) = &content {
            tracing::warn!(%error, "the contents of a VTPM cannot be read");
        }
        contents.push(content.map_or(Value::Null, Value::String));
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_backup_blocked_is_freed() {
        let record = json!({"uuid": "u", "blocked_operations": {"pool_migrate": MIGRATION_REASON, "destroy": "no"}});
        let mut record = record.as_object().unwrap().clone();
        free_of_ours(&mut record);
        assert_eq!(record["blocked_operations"], json!({"destroy": "no"}));
        free_of_ours(&mut Raw::new());
    }

    #[test]
    fn positions_become_device_names() {
        assert_eq!(userdevice_name("0"), "xvda");
        assert_eq!(userdevice_name("3"), "xvdd");
        assert_eq!(userdevice_name("26"), "26");
        assert_eq!(userdevice_name("autodetect"), "autodetect");
    }
}
