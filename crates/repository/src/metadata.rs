//! The metadata of a restore point (backup-repository.md §2): liberal in reading, exact in writing.

use std::collections::BTreeMap;

use api::JobMode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{BackupTime, Error, PointId, Result};

/// Largest metadata file that is read, bytes. A VM with hundreds of disks stays far below.
pub const MAX_METADATA: u64 = 16 << 20;

/// A XAPI record, as it came.
pub type Record = Map<String, Value>;

/// One `<timestamp>.json`. Fields this version does not know are kept.
///
/// JSON deeper than 128 levels is refused by the parser, files above [`MAX_METADATA`] by the reader.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupMetadata {
    /// `delta` or `full`.
    pub mode: JobMode,
    /// Version of the format.
    #[serde(default)]
    pub version: String,
    /// When, milliseconds since the Unix epoch; agrees with the file's name.
    #[serde(deserialize_with = "integer")]
    pub timestamp: i64,
    /// The job that wrote it.
    #[serde(default)]
    pub job_id: String,
    /// The schedule: retention counts per VM, mode and schedule.
    #[serde(default)]
    pub schedule_id: String,
    /// The live VM's record.
    pub vm: Record,
    /// The record of what was exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_snapshot: Option<Record>,
    /// Full: bytes of the XVA. Delta: the sum of the virtual file sizes of the disks.
    #[serde(default, deserialize_with = "integer_or_none")]
    pub size: u64,
    /// Long-term-retention marks, `daily=2025-01-31`.
    #[serde(default, deserialize_with = "list_or_none")]
    pub tags: Vec<String>,
    /// Full: `./<timestamp>.xva`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xva: Option<String>,
    /// Delta: VDI reference → path of the disk, relative to the VM directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhds: Option<BTreeMap<String, String>>,
    /// Delta: VDI reference → record of the exported VDI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdis: Option<BTreeMap<String, Record>>,
    /// Delta: VBD reference → record, disks only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vbds: Option<BTreeMap<String, Record>>,
    /// Delta: VIF reference → record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vifs: Option<BTreeMap<String, Record>>,
    /// Delta: contents of the VTPMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtpms: Option<Vec<Value>>,
    /// Delta: VDI reference → whether it was written as a delta. Readers trust the disk instead (H4).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "booleans")]
    pub is_vhd_differencing: Option<BTreeMap<String, bool>>,
    /// `true` for data freshly read from a pool; a mirror copies the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_non_nbd_qcow2_fix: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl BackupMetadata {
    /// The fields both modes share; the caller fills in those of its mode.
    pub fn new(mode: JobMode, time: BackupTime, job_id: &str, schedule_id: &str, vm: Record) -> Self {
        Self {
            mode,
            version: "2.0.0".into(),
            timestamp: time.millis(),
            job_id: job_id.to_owned(),
            schedule_id: schedule_id.to_owned(),
            vm,
            vm_snapshot: None,
            size: 0,
            tags: Vec::new(),
            xva: None,
            vhds: None,
            vdis: None,
            vbds: None,
            vifs: None,
            vtpms: None,
            is_vhd_differencing: None,
            include_non_nbd_qcow2_fix: None,
            extra: Map::new(),
        }
    }

    /// Reads a metadata file's content.
    ///
    /// # Errors
    /// A sentence saying what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > MAX_METADATA {
            return Err(format!("it is larger than {MAX_METADATA} bytes"));
        }
        if bytes.is_empty() {
            return Err("it is empty".into());
        }
        let mut metadata: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        metadata.restore_booleans();
        Ok(metadata)
    }

    /// The single line a file holds.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with text keys always serialise")
    }

    /// uuid of the source VM.
    pub fn vm_uuid(&self) -> Option<&str> {
        self.vm.get("uuid")?.as_str()
    }

    /// Name of the VM at the time; empty when unknown.
    pub fn vm_name(&self) -> &str {
        self.vm.get("name_label").and_then(Value::as_str).unwrap_or_default()
    }

    /// Paths of the disks relative to the VM directory; empty for a full backup.
    pub fn disks(&self) -> impl Iterator<Item = (&str, &str)> {
        self.vhds.iter().flatten().map(|(key, path)| (key.as_str(), path.as_str()))
    }

    /// Checks what readers need before it is written (backup-repository.md §2.1, §2.2, H20).
    ///
    /// # Errors
    /// [`Error::Incomplete`] naming the field.
    pub fn check(&self) -> Result<()> {
        let incomplete = |what: &str| Err(Error::Incomplete(what.to_owned()));
        for field in ["uuid", "name_label"] {
            if self.vm.get(field).and_then(Value::as_str).is_none() {
                return incomplete(&format!("vm.{field} is missing"));
            }
        }
        if !self.vm.contains_key("is_a_template") {
            return incomplete("vm.is_a_template is missing");
        }
        if self.job_id.is_empty() || self.schedule_id.is_empty() {
            return incomplete("jobId or scheduleId is missing");
        }
        match self.mode {
            JobMode::Full if self.xva.is_none() => incomplete("a full backup has no xva"),
            JobMode::Full => Ok(()),
            JobMode::Delta => {
                let (Some(vhds), Some(vdis), Some(vbds), Some(_), Some(_)) =
                    (&self.vhds, &self.vdis, &self.vbds, &self.vifs, &self.vm_snapshot)
                else {
                    return incomplete("a delta backup needs vhds, vdis, vbds, vifs and vmSnapshot");
                };
                if vhds.is_empty() || vhds.keys().ne(vdis.keys()) {
                    return incomplete("vhds and vdis do not have the same disks, or none");
                }
                if let Some(key) = vdis.iter().find(|(_, vdi)| !vdi.contains_key("uuid") || !vdi.contains_key("name_label")) {
                    return incomplete(&format!("the record of {} has no uuid or name_label", key.0));
                }
                let disk = |vbd: &&Record| vbd.get("VDI").and_then(Value::as_str).is_none_or(|vdi| !vdis.contains_key(vdi));
                if vbds.values().any(|vbd| disk(&vbd)) {
                    return incomplete("a VBD refers to a disk that is not in vdis");
                }
                Ok(())
            }
        }
    }

    /// The restore point as the API shows it.
    pub fn restore_point(&self, remote: &str, id: &PointId) -> api::RestorePoint {
        let disk = |(key, _): (&str, &str)| {
            let record = self.vdis.as_ref().and_then(|vdis| vdis.get(key));
            let text = |field: &str| record.and_then(|record| record.get(field)?.as_str()).unwrap_or_default().to_owned();
            api::RestorePointDisk {
                uuid: text("uuid"),
                name: text("name_label"),
                bytes: record.and_then(|record| number(record.get("virtual_size")?)).unwrap_or(0),
                delta: self.is_vhd_differencing.as_ref().and_then(|map| map.get(key).copied()).unwrap_or(false),
            }
        };
        api::RestorePoint {
            id: format!("{remote}{id}"),
            remote: remote.to_owned(),
            vm: id.vm().to_owned(),
            vm_name: self.vm_name().to_owned(),
            mode: self.mode,
            timestamp: self.timestamp,
            job: self.job_id.clone(),
            size: self.size,
            disks: self.disks().map(disk).collect(),
            verified: None,
        }
    }

    /// Pools before XenServer 7.1 stored booleans as numbers (backup-repository.md §2.2).
    fn restore_booleans(&mut self) {
        if !self.vm.get("is_a_template").is_some_and(Value::is_number) {
            return;
        }
        const VBD: [&str; 5] = ["bootable", "unpluggable", "storage_lock", "empty", "currently_attached"];
        const VDI: [&str; 8] =
            ["sharable", "read_only", "storage_lock", "managed", "missing", "is_a_snapshot", "allow_caching", "metadata_latest"];
        const VIF: [&str; 2] = ["currently_attached", "MAC_autogenerated"];
        const VM: [&str; 5] = ["is_a_template", "is_control_domain", "ha_always_run", "is_snapshot_from_vmpp", "is_a_snapshot"];
        let fix = |record: &mut Record, fields: &[&str]| {
            for field in fields {
                if let Some(value) = record.get_mut(*field)
                    && let Some(number) = value.as_f64()
                {
                    *value = Value::Bool(number != 0.0);
                }
            }
        };
        fix(&mut self.vm, &VM);
        self.vm_snapshot.iter_mut().for_each(|record| fix(record, &VM[..4]));
        self.vbds.iter_mut().flat_map(BTreeMap::values_mut).for_each(|record| fix(record, &VBD));
        self.vdis.iter_mut().flat_map(BTreeMap::values_mut).for_each(|record| fix(record, &VDI));
        self.vifs.iter_mut().flat_map(BTreeMap::values_mut).for_each(|record| fix(record, &VIF));
    }
}

/// A number, or a text that is one: both are found in old backups.
fn number<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    let wide = match value {
        Value::Number(number) => number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)).or_else(|| {
            let float = number.as_f64()?;
            (float.fract() == 0.0 && float.abs() < 1e18).then_some(float as i128)
        })?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    T::try_from(wide).ok()
}

fn integer<'de, D: Deserializer<'de>, T: TryFrom<i128>>(deserializer: D) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    number(&value).ok_or_else(|| serde::de::Error::custom("a whole number in range is expected"))
}

/// Some mixes of XO's packages write `null` where the size of a directory is not known.
fn integer_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(0),
        value => number(&value).ok_or_else(|| serde::de::Error::custom("a whole number in range is expected")),
    }
}

fn list_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn booleans<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, bool>>, D::Error> {
    let map = Option::<BTreeMap<String, Value>>::deserialize(deserializer)?;
    let truth = |value: Value| value.as_bool().unwrap_or_else(|| value.as_f64().is_some_and(|number| number != 0.0));
    Ok(map.map(|map| map.into_iter().map(|(key, value)| (key, truth(value))).collect()))
}
