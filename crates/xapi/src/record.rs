//! Records: the fields we read, typed, beside the whole record as it came.
//!
//! Restore points store complete records (backup-repository.md §2.3), so nothing a pool sent may be lost: a
//! [`Record`] keeps the raw object and reads the known fields out of it. Absent fields have their empty value, since
//! older and newer hosts differ.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// A reference of XAPI: `OpaqueRef:…`, meaningful to its pool only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ref(String);

impl Ref {
    /// What stands where there is no object.
    pub const NULL: &'static str = "OpaqueRef:NULL";

    /// The null reference.
    pub fn null() -> Self {
        Self(Self::NULL.to_owned())
    }

    /// Whether it refers to nothing.
    pub fn is_null(&self) -> bool {
        self.0.is_empty() || self.0 == Self::NULL
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Ref {
    fn default() -> Self {
        Self::null()
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Ref {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Ref {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A class of XAPI whose records we read.
pub trait Kind: DeserializeOwned + Send + 'static {
    /// Its name in calls: `VM`, `task`.
    const CLASS: &'static str;
}

/// A record: its reference, the fields we know (by dereferencing), and all of it.
#[derive(Debug, Clone)]
pub struct Record<T> {
    /// Reference of the object.
    pub reference: Ref,
    /// Every field as the pool sent it.
    pub raw: Map<String, Value>,
    fields: T,
}

impl<T: Kind> Record<T> {
    /// Reads a record.
    ///
    /// # Errors
    /// When it is no object or a known field has another type.
    pub fn read(reference: Ref, value: Value) -> Result<Self, serde_json::Error> {
        let fields = T::deserialize(&value)?;
        let raw = serde_json::from_value(value)?;
        Ok(Self { reference, raw, fields })
    }
}

impl<T> Deref for Record<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.fields
    }
}

/// Integers are numbers over JSON-RPC and text in older encodings (xapi-streams.md §1.1).
fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Float(f64),
        Text(String),
    }
    let number = match Either::deserialize(deserializer)? {
        Either::Number(number) => number,
        Either::Float(number) => number as i64,
        Either::Text(text) => text.trim().parse().map_err(serde::de::Error::custom)?,
    };
    // XAPI says -1 where it does not know.
    Ok(u64::try_from(number).unwrap_or(0))
}

/// A map of texts, as `other_config`.
pub type Texts = BTreeMap<String, String>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $class:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty $(= $rename:literal)? $(, $with:literal)?;)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[$field_doc])* $(#[serde(rename = $rename)])? $(#[serde(deserialize_with = $with)])? pub $field: $type,)*
        }

        impl Kind for $name {
            const CLASS: &'static str = $class;
        }
    )*};
}

kinds! {
    /// A pool; each has exactly one record.
    Pool = "pool" {
        /// UUID.
        uuid: String;
        /// Name; empty for a host without a pool.
        name_label: String;
        /// The master.
        master: Ref;
        /// Default storage.
        default_sr: Ref = "default_SR";
        /// Free-form settings.
        other_config: Texts;
        /// What the licence allows.
        restrictions: Texts;
    }

    /// A host.
    Host = "host" {
        /// UUID.
        uuid: String;
        /// Name.
        name_label: String;
        /// Management address.
        address: String;
        /// Interfaces.
        pifs: Vec<Ref> = "PIFs";
        /// Whether it takes VMs.
        enabled: bool;
        /// Its memory, measured.
        metrics: Ref;
        /// What its processors are: `cpu_count` among others.
        cpu_info: Texts;
        /// What runs on it: `product_brand`, `product_version`, `xapi` among others.
        software_version: Texts;
    }

    /// What is measured of a host.
    HostMetrics = "host_metrics" {
        /// UUID.
        uuid: String;
        /// Memory, bytes.
        memory_total: u64, "integer";
        /// Memory that no VM has, bytes.
        memory_free: u64, "integer";
        /// Whether it answers the master.
        live: bool;
    }

    /// A VM, snapshot or template.
    Vm = "VM" {
        /// UUID.
        uuid: String;
        /// Name.
        name_label: String;
        /// Description.
        name_description: String;
        /// `Running`, `Halted`, `Suspended`, `Paused`.
        power_state: String;
        /// Attached block devices.
        vbds: Vec<Ref> = "VBDs";
        /// Network interfaces.
        vifs: Vec<Ref> = "VIFs";
        /// Virtual TPMs.
        vtpms: Vec<Ref> = "VTPMs";
        /// Snapshots of it.
        snapshots: Vec<Ref>;
        /// The VM it is a snapshot of.
        snapshot_of: Ref;
        /// Whether it is a snapshot.
        is_a_snapshot: bool;
        /// Whether it is a template; snapshots are until un-flagged (T7).
        is_a_template: bool;
        /// Whether it is a control domain (dom0).
        is_control_domain: bool;
        /// Operations under way: reference of the task → name.
        current_operations: Texts;
        /// Operations refused: name → reason.
        blocked_operations: Texts;
        /// Free-form settings.
        other_config: Texts;
        /// Tags.
        tags: Vec<String>;
        /// Memory image of a suspended VM.
        suspend_vdi: Ref = "suspend_VDI";
        /// What its guest reports.
        guest_metrics: Ref;
        /// The host it runs on.
        resident_on: Ref;
        /// Most processors it can have.
        vcpus_max: u64 = "VCPUs_max", "integer";
        /// Processors it starts with.
        vcpus_at_startup: u64 = "VCPUs_at_startup", "integer";
        /// Least memory it can be set to, bytes.
        memory_static_min: u64, "integer";
        /// Memory it starts with, bytes.
        memory_static_max: u64, "integer";
        /// What host and guest tell each other.
        xenstore_data: Texts;
    }

    /// A virtual disk.
    Vdi = "VDI" {
        /// UUID.
        uuid: String;
        /// Name.
        name_label: String;
        /// Description.
        name_description: String;
        /// Size as the guest sees it, bytes.
        virtual_size: u64, "integer";
        /// Bytes it takes on its storage.
        physical_utilisation: u64, "integer";
        /// `user`, `system`, `cbt_metadata`…
        r#type: String;
        /// Its storage.
        sr: Ref = "SR";
        /// Attachments.
        vbds: Vec<Ref> = "VBDs";
        /// Snapshots of it.
        snapshots: Vec<Ref>;
        /// The disk it is a snapshot of.
        snapshot_of: Ref;
        /// Whether it is a snapshot.
        is_a_snapshot: bool;
        /// Whether XAPI manages it; hidden parents are not.
        managed: bool;
        /// Whether its data is not found on the storage.
        missing: bool;
        /// Whether changed blocks are tracked.
        cbt_enabled: bool;
        /// Free-form settings.
        other_config: Texts;
        /// The storage driver's.
        sm_config: Texts;
    }

    /// An attachment of a disk to a VM.
    Vbd = "VBD" {
        /// UUID.
        uuid: String;
        /// The VM.
        vm: Ref = "VM";
        /// The disk; null for an empty drive.
        vdi: Ref = "VDI";
        /// `Disk`, `CD`, `Floppy`.
        r#type: String;
        /// `RO` or `RW`.
        mode: String;
        /// Name in the guest while attached, e.g. `xvda`.
        device: String;
        /// Position: `0`, `1`…
        userdevice: String;
        /// Whether the VM boots from it.
        bootable: bool;
        /// Whether the drive is empty.
        empty: bool;
        /// Whether it is plugged now.
        currently_attached: bool;
    }

    /// A network interface of a VM.
    Vif = "VIF" {
        /// UUID.
        uuid: String;
        /// The VM.
        vm: Ref = "VM";
        /// The network.
        network: Ref;
        /// Position: `0`, `1`…
        device: String;
        /// Address.
        mac: String = "MAC";
    }

    /// A storage repository.
    Sr = "SR" {
        /// UUID.
        uuid: String;
        /// Name.
        name_label: String;
        /// Driver, e.g. `ext`, `lvm`, `iso`.
        r#type: String;
        /// `user`, `iso`, `disk`…
        content_type: String;
        /// Its disks.
        vdis: Vec<Ref> = "VDIs";
        /// Connections to hosts.
        pbds: Vec<Ref> = "PBDs";
        /// Total size, bytes.
        physical_size: u64, "integer";
        /// Used, bytes.
        physical_utilisation: u64, "integer";
        /// The driver's settings.
        sm_config: Texts;
    }

    /// The connection of a storage to a host.
    Pbd = "PBD" {
        /// UUID.
        uuid: String;
        /// The storage.
        sr: Ref = "SR";
        /// The host.
        host: Ref;
        /// Whether it is plugged.
        currently_attached: bool;
        /// The driver's settings; may hold secrets of the storage.
        device_config: Texts;
    }

    /// A driver of storage.
    Sm = "SM" {
        /// UUID.
        uuid: String;
        /// The type of the storage it drives.
        r#type: String;
        /// What it can do: `VDI_CONFIG_CBT` among others.
        capabilities: Vec<String>;
        /// The same, with versions.
        features: BTreeMap<String, Value>;
    }

    /// A network.
    Network = "network" {
        /// UUID.
        uuid: String;
        /// Name.
        name_label: String;
        /// Interfaces of hosts on it.
        pifs: Vec<Ref> = "PIFs";
        /// `nbd`, `insecure_nbd`…
        purpose: Vec<String>;
        /// Largest packet, bytes.
        mtu: u64 = "MTU", "integer";
        /// Free-form settings.
        other_config: Texts;
    }

    /// A network interface of a host.
    Pif = "PIF" {
        /// UUID.
        uuid: String;
        /// The network.
        network: Ref;
        /// The host.
        host: Ref;
        /// VLAN, as written: `-1` for none.
        vlan: Value = "VLAN";
        /// IPv4 address.
        ip: String = "IP";
        /// IPv6 addresses, with or without their prefix.
        ipv6: Vec<String> = "IPv6";
        /// Whether the host's management runs over it.
        management: bool;
        /// Whether it is plugged.
        currently_attached: bool;
    }

    /// A task.
    TaskRecord = "task" {
        /// UUID.
        uuid: String;
        /// Name.
        name_label: String;
        /// `pending`, `success`, `failure`, `cancelling`, `cancelled`.
        status: String;
        /// From 0 to 1.
        progress: f64;
        /// XML of the result, or nothing.
        result: String;
        /// Code and parameters of the failure.
        error_info: Vec<String>;
    }

    /// What the guest of a VM reports.
    VmGuestMetrics = "VM_guest_metrics" {
        /// UUID.
        uuid: String;
        /// Whether the guest's drivers run.
        pv_drivers_detected: bool = "PV_drivers_detected";
        /// Addresses by interface.
        networks: Texts;
    }

    /// A virtual TPM.
    Vtpm = "VTPM" {
        /// UUID.
        uuid: String;
        /// The VM.
        vm: Ref = "VM";
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_keeps_what_it_does_not_know() {
        let raw = json!({"uuid": "u", "virtual_size": "4096", "SR": "OpaqueRef:sr", "from_the_future": [1, 2]});
        let vdi = Record::<Vdi>::read("OpaqueRef:1".into(), raw.clone()).unwrap();
        assert_eq!((vdi.uuid.as_str(), vdi.virtual_size, vdi.sr.as_str()), ("u", 4096, "OpaqueRef:sr"));
        assert!(vdi.snapshot_of.is_null());
        assert_eq!(Value::Object(vdi.raw), raw);
    }

    #[test]
    fn sizes_are_numbers_or_texts_and_unknown_ones_zero() {
        let size = |value: Value| Record::<Sr>::read(Ref::null(), json!({ "physical_size": value })).map(|sr| sr.physical_size);
        assert_eq!(size(json!(5)).unwrap(), 5);
        assert_eq!(size(json!("5")).unwrap(), 5);
        assert_eq!(size(json!(-1)).unwrap(), 0);
        size(json!("many")).unwrap_err();
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for value in [json!(null), json!("x"), json!([1]), json!({"uuid": 3})] {
            Record::<Vm>::read(Ref::null(), value).unwrap_err();
        }
    }
}
