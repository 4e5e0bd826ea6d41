//! From the records of a restore point to those of a new VM (backup-repository.md §6.2). Records in, records out.

use serde_json::{Map, Value, json};

use crate::backup::keys;
use crate::backup::records::free_of_ours;

type Raw = Map<String, Value>;

/// Operations blocked while the disks are being written.
pub(super) const BLOCKED: [&str; 2] = ["start", "start_on"];
/// The reason a person sees who tries one.
pub(super) const REASON: &str = "Importing…";

/// Fields of a stored VM that make a new one (backup-repository.md §2.3).
const VM_FIELDS: [&str; 55] = [
    "actions_after_crash",
    "actions_after_reboot",
    "actions_after_shutdown",
    "appliance",
    "blocked_operations",
    "domain_type",
    "generation_id",
    "ha_restart_priority",
    "hardware_platform_version",
    "has_vendor_device",
    "HVM_boot_params",
    "HVM_boot_policy",
    "HVM_shadow_multiplier",
    "is_vmss_snapshot",
    "last_boot_CPU_flags",
    "last_booted_record",
    "memory_dynamic_max",
    "memory_dynamic_min",
    "memory_static_max",
    "memory_static_min",
    "name_description",
    "name_label",
    "NVRAM",
    "order",
    "other_config",
    "PCI_bus",
    "platform",
    "PV_args",
    "PV_bootloader",
    "PV_bootloader_args",
    "PV_kernel",
    "PV_legacy_args",
    "PV_ramdisk",
    "recommendations",
    "reference_label",
    "shutdown_delay",
    "snapshot_schedule",
    "start_delay",
    "suspend_SR",
    "tags",
    "user_version",
    "VCPUs_at_startup",
    "VCPUs_max",
    "VCPUs_params",
    "version",
    "xenstore_data",
    // Beyond the list of fields that are used, XAPI wants these to be there.
    "is_default_template",
    "groups",
    "memory_target",
    "memory_overhead",
    "start_time",
    "install_time",
    "protection_policy",
    "snapshot_info",
    "auto_power_on",
];

/// References of a pool: of another pool, or of objects that are gone, they mean nothing.
const VM_REFERENCES: [&str; 4] = ["appliance", "suspend_SR", "snapshot_schedule", "protection_policy"];

/// The record for `VM.create`, named as being imported and blocked against starting.
pub(super) fn vm(stored: &Raw, run: &str) -> Value {
    let mut record = pick(stored, &VM_FIELDS);
    for field in VM_REFERENCES {
        record.insert(field.into(), json!("OpaqueRef:NULL"));
    }
    record.insert("affinity".into(), json!("OpaqueRef:NULL"));
    record.insert("ha_always_run".into(), json!(false));
    record.insert("is_a_template".into(), json!(false));
    record.insert("name_label".into(), json!(format!("[Importing…] {}", text(stored, "name_label"))));
    // Integral floats are mishandled by old encoders (xapi-streams.md §6 T14), and 1 is the default.
    if record.get("HVM_shadow_multiplier").and_then(Value::as_f64) == Some(1.0) {
        record.remove("HVM_shadow_multiplier");
    }
    free_of_ours(&mut record);
    let blocked = map_of(&mut record, "blocked_operations");
    for operation in BLOCKED {
        blocked.insert(operation.into(), json!(REASON));
    }
    mark(&mut record, run);
    Value::Object(record)
}

/// The record for `VDI.create`. `sm_config` is deliberately not copied (xapi-streams.md §6 T15).
pub(super) fn vdi(stored: &Raw, sr: &str, virtual_size: u64, run: &str) -> Value {
    let mut record = pick(
        stored,
        &["name_label", "name_description", "other_config", "read_only", "sharable", "tags", "type", "xenstore_data"],
    );
    record.insert("SR".into(), json!(sr));
    record.insert("virtual_size".into(), json!(virtual_size));
    record.entry("type").or_insert_with(|| json!("user"));
    record.entry("sharable").or_insert_with(|| json!(false));
    record.entry("read_only").or_insert_with(|| json!(false));
    record.insert("sm_config".into(), json!({}));
    mark(&mut record, run);
    Value::Object(record)
}

/// The record for `VBD.create`.
pub(super) fn vbd(stored: &Raw, vm: &str, vdi: &str) -> Value {
    let mut record = pick(
        stored,
        &["bootable", "mode", "other_config", "qos_algorithm_type", "qos_algorithm_params", "type", "unpluggable", "userdevice"],
    );
    for (field, default) in [
        ("other_config", json!({})),
        ("qos_algorithm_type", json!("")),
        ("qos_algorithm_params", json!({})),
        ("mode", json!("RW")),
    ] {
        record.entry(field).or_insert(default);
    }
    record.insert("empty".into(), json!(false));
    record.insert("VM".into(), json!(vm));
    record.insert("VDI".into(), json!(vdi));
    Value::Object(record)
}

/// The record for `VIF.create`; the address is kept.
pub(super) fn vif(stored: &Raw, vm: &str, network: &str) -> Value {
    let mut record = pick(
        stored,
        &[
            "device",
            "ipv4_allowed",
            "ipv6_allowed",
            "locking_mode",
            "MAC",
            "MTU",
            "other_config",
            "qos_algorithm_type",
            "qos_algorithm_params",
        ],
    );
    for (field, default) in [
        ("other_config", json!({})),
        ("qos_algorithm_type", json!("")),
        ("qos_algorithm_params", json!({})),
        ("MTU", json!(1500)),
        ("MAC", json!("")),
    ] {
        record.entry(field).or_insert(default);
    }
    record.insert("VM".into(), json!(vm));
    record.insert("network".into(), json!(network));
    Value::Object(record)
}

/// What is known of a network where a VIF may go.
#[derive(Debug, Clone, Default)]
pub(super) struct NetworkChoice {
    pub(super) reference: String,
    pub(super) uuid: String,
    pub(super) name: String,
    /// VLAN of its first PIF; -1 without VLAN.
    pub(super) vlan: i64,
}

/// The network a VIF belongs to on this pool: the same one; else one of the same VLAN and name; else one of the same
/// VLAN; else any. None only where there is none at all.
pub(super) fn choose_network<'a>(stored: &Raw, networks: &'a [NetworkChoice]) -> Option<&'a NetworkChoice> {
    let uuid = text(stored, "$network$uuid");
    let name = text(stored, "$network$name_label");
    let vlan = stored.get("$network$VLAN").and_then(number).unwrap_or(-1);
    let find = |fits: &dyn Fn(&NetworkChoice) -> bool| networks.iter().find(|network| fits(network));
    find(&|network| network.uuid == uuid)
        .or_else(|| find(&|network| network.vlan == vlan && network.name == name))
        .or_else(|| find(&|network| network.vlan == vlan))
        .or_else(|| networks.last())
}

/// An integer, however it was encoded.
pub(super) fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// A text of a record; empty when it is none.
pub(super) fn text<'a>(record: &'a Raw, field: &str) -> &'a str {
    record.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The operations that were blocked when the VM was backed up.
pub(super) fn blocked_before(stored: &Raw, operation: &str) -> Option<String> {
    stored.get("blocked_operations")?.get(operation)?.as_str().map(Into::into)
}

/// Takes off the keys of the backup and puts on the mark by which a restart finds an unfinished restore.
fn mark(record: &mut Raw, run: &str) {
    let config = map_of(record, "other_config");
    for key in keys::WIPED.into_iter().chain([keys::BASE]) {
        config.shift_remove(key);
    }
    config.insert(keys::RESTORE_RUN.into(), json!(run));
}

fn map_of<'a>(record: &'a mut Raw, field: &str) -> &'a mut Raw {
    let value = record.entry(field).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made an object above")
}

fn pick(stored: &Raw, fields: &[&str]) -> Raw {
    fields.iter().filter_map(|field| Some(((*field).to_owned(), stored.get(*field)?.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(value: Value) -> Raw {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_new_vm_cannot_start_and_carries_the_mark_of_its_run() {
        let stored = raw(json!({
            "uuid": "old", "name_label": "web \"1\"", "power_state": "Running", "resident_on": "OpaqueRef:host",
            "HVM_shadow_multiplier": 1.0, "blocked_operations": {"destroy": "no"}, "appliance": "OpaqueRef:gone",
            "other_config": {"mac_seed": "m", "xo:backup:job": "j"},
        }));
        let vm = vm(&stored, "run-7");
        assert_eq!(vm["name_label"], "[Importing…] web \"1\"");
        assert_eq!(vm["blocked_operations"], json!({"destroy": "no", "start": REASON, "start_on": REASON}));
        assert_eq!(vm["other_config"], json!({"mac_seed": "m", "backhaul:restore": "run-7"}));
        assert_eq!(vm["appliance"], "OpaqueRef:NULL");
        for absent in ["uuid", "power_state", "resident_on", "HVM_shadow_multiplier"] {
            assert!(vm.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_new_disk_has_its_own_storage_and_none_of_the_old_driver() {
        let stored = raw(json!({"uuid": "old", "name_label": "d", "sm_config": {"vhd-parent": "x"}, "SR": "OpaqueRef:old"}));
        let vdi = vdi(&stored, "OpaqueRef:sr", 4096, "run-7");
        assert_eq!((&vdi["SR"], &vdi["virtual_size"], &vdi["sm_config"]), (&json!("OpaqueRef:sr"), &json!(4096), &json!({})));
        assert!(vdi.get("uuid").is_none());
    }

    #[test]
    fn a_network_is_found_by_identity_then_vlan_and_name_then_vlan() {
        let network =
            |uuid: &str, name: &str, vlan| NetworkChoice { reference: uuid.into(), uuid: uuid.into(), name: name.into(), vlan };
        let networks = [network("a", "lan", -1), network("b", "dmz", 7), network("c", "guests", 7), network("d", "last", 9)];
        let cases = [
            (json!({"$network$uuid": "d", "$network$VLAN": 7}), "d"),
            (json!({"$network$uuid": "x", "$network$name_label": "guests", "$network$VLAN": "7"}), "c"),
            (json!({"$network$uuid": "x", "$network$name_label": "?", "$network$VLAN": 7}), "b"),
            (json!({"$network$uuid": "x"}), "a"),
            (json!({"$network$uuid": "x", "$network$VLAN": 4}), "d"),
        ];
        for (stored, expected) in cases {
            assert_eq!(choose_network(&raw(stored.clone()), &networks).unwrap().uuid, expected, "{stored}");
        }
        assert!(choose_network(&raw(json!({})), &[]).is_none());
    }

    #[test]
    fn records_of_the_wrong_shape_do_no_harm() {
        let stored = raw(json!({"other_config": [1], "blocked_operations": "x", "name_label": 3}));
        assert_eq!(vm(&stored, "r")["other_config"], json!({"backhaul:restore": "r"}));
        assert_eq!(number(&json!("12")), Some(12));
        assert_eq!(number(&json!("x")), None);
    }
}
