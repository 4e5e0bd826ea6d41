//! Virtual machines: making them, destroying them, what may be done with them.

use serde_json::{Map, Value, json};

use super::{Args, Context, guest};
use crate::failure::{Answer, Failure};
use crate::record::{self, NULL};
use crate::store::{Record, Store};

/// Fields that `VM.create` does not do without (the constructor's non-optional arguments in the XenAPI reference).
const REQUIRED: &[&str] = &[
    "user_version",
    "is_a_template",
    "affinity",
    "memory_static_max",
    "memory_dynamic_max",
    "memory_dynamic_min",
    "memory_static_min",
    "VCPUs_params",
    "VCPUs_max",
    "VCPUs_at_startup",
    "actions_after_shutdown",
    "actions_after_reboot",
    "actions_after_crash",
    "PV_bootloader",
    "PV_kernel",
    "PV_ramdisk",
    "PV_args",
    "PV_bootloader_args",
    "PV_legacy_args",
    "HVM_boot_policy",
    "HVM_boot_params",
    "platform",
    "PCI_bus",
    "other_config",
    "recommendations",
];

/// Fields of the caller's record that `VM.create` does not take over: the pool's own business.
const OWN: &[&str] = &[
    "uuid",
    "allowed_operations",
    "current_operations",
    "power_state",
    "resident_on",
    "domid",
    "VIFs",
    "VBDs",
    "VUSBs",
    "VTPMs",
    "VGPUs",
    "consoles",
    "metrics",
    "guest_metrics",
    "is_a_snapshot",
    "snapshot_of",
    "snapshots",
    "snapshot_time",
    "snapshot_info",
    "parent",
    "children",
    "is_control_domain",
    "is_default_template",
    "crash_dumps",
    "attached_PCIs",
    "bios_strings",
    "current_operations",
];

/// Methods that concern the machine as a whole.
pub(super) fn call(context: &Context<'_>, method: &str, args: &Args<'_>) -> Option<Answer> {
    let db = &context.pool.db;
    Some(match method {
        "create" => args.exactly(1).and_then(|()| create(context, args.map(0)?)),
        "destroy" => args.exactly(1).and_then(|()| destroy(context, args.text(0)?)),
        "update_allowed_operations" => args.exactly(1).and_then(|()| {
            db.with(|store| update_allowed_operations(store, args.text(0)?))?;
            Ok("".into())
        }),
        "get_allowed_VBD_devices" => args.exactly(1).and_then(|()| db.with(|store| free_devices(store, args.text(0)?, "VBD"))),
        "get_allowed_VIF_devices" => args.exactly(1).and_then(|()| db.with(|store| free_devices(store, args.text(0)?, "VIF"))),
        "set_memory_limits" => args.exactly(5).and_then(|()| {
            let bytes = [args.integer(1)?, args.integer(2)?, args.integer(3)?, args.integer(4)?];
            db.with(|store| set_memory(store, args.text(0)?, bytes))
        }),
        "set_VCPUs_max" | "set_VCPUs_at_startup" => args.exactly(2).and_then(|()| {
            let field = if method == "set_VCPUs_max" { "VCPUs_max" } else { "VCPUs_at_startup" };
            db.with(|store| set_processors(store, args.text(0)?, field, args.integer(1)?))
        }),
        "set_bios_strings" => args.exactly(2).and_then(|()| set_bios_strings(context, args)),
        "assert_operation_valid" => args.exactly(2).and_then(|()| {
            db.with(|store| check_not_blocked(store, args.text(0)?, args.text(1)?))?;
            Ok("".into())
        }),
        _ => return None,
    })
}

fn create(context: &Context<'_>, given: &Map<String, Value>) -> Answer {
    require(given, REQUIRED)?;
    let mut fields = take_over(record::template("VM"), given, OWN)?;
    if let Some(Value::Object(other)) = fields.get_mut("other_config")
        && !other.contains_key("mac_seed")
    {
        other.insert("mac_seed".into(), uuid::Uuid::new_v4().to_string().into());
    }
    if fields.get("generation_id").and_then(Value::as_str) == Some("") {
        fields.insert("generation_id".into(), generation_id().into());
    }
    Ok(context.pool.db.with(|store| {
        let metrics = new_metrics(store, &fields);
        fields.insert("metrics".into(), metrics.into());
        let vm = store.create("VM", Value::Object(fields));
        let _new = update_allowed_operations(store, &vm);
        vm.into()
    }))
}

/// A record of `VM_metrics` for a machine.
pub(crate) fn new_metrics(store: &mut Store, vm: &Record) -> String {
    let (memory, cpus) = (vm.get("memory_static_max").cloned(), vm.get("VCPUs_at_startup").cloned());
    store.create("VM_metrics", json!({ "memory_actual": memory, "VCPUs_number": cpus, "last_updated": record::now() }))
}

/// A new identity for a generation, as Windows guests want it.
pub(crate) fn generation_id() -> String {
    let bytes = uuid::Uuid::new_v4().as_u64_pair();
    format!("{}:{}", bytes.0 as i64, bytes.1 as i64)
}

/// Refuses a constructor's record in which a field is missing that has no default.
pub(super) fn require(given: &Map<String, Value>, fields: &[&str]) -> Result<(), Failure> {
    match fields.iter().find(|field| !given.contains_key(**field)) {
        Some(missing) => Err(Failure::internal(format!("Server_helpers.Dispatcher_FieldNotFound(\"{missing}\")"))),
        None => Ok(()),
    }
}

/// The fields of a client's record that a class has, brought to their kinds; those in `own` and unknown ones are left.
pub(super) fn take_over(template: &Record, given: &Map<String, Value>, own: &[&str]) -> Result<Record, Failure> {
    let mut fields = Record::new();
    for (field, kind) in template {
        let Some(value) = given.get(field).filter(|_| !own.contains(&field.as_str())) else { continue };
        let value = record::coerce(kind, value.clone()).ok_or_else(|| Failure::field_type(field))?;
        fields.insert(field.clone(), value);
    }
    Ok(fields)
}

fn destroy(context: &Context<'_>, vm: &str) -> Answer {
    let pool = context.pool;
    let tell = guest::before_destroying(pool, vm);
    let vtpms = pool.db.with(|store| {
        check_not_blocked(store, vm, "destroy")?;
        check_power(store, vm, &["Halted"])?;
        if store.flag("VM", vm, "is_control_domain")? {
            return Err(Failure::not_allowed("a control domain cannot be destroyed"));
        }
        let parent = store.text("VM", vm, "parent")?;
        for child in store.refs("VM", vm, "children")? {
            let _gone = store.set("VM", &child, "parent", parent.as_str());
        }
        for class in ["VBD", "VIF", "VUSB"] {
            let members = store.refs("VM", vm, &format!("{class}s"))?;
            let class = ["VBD", "VIF", "VUSB"].into_iter().find(|known| *known == class).unwrap_or("VBD");
            for member in members {
                store.remove(class, &member);
            }
        }
        let vtpms = store.refs("VM", vm, "VTPMs")?;
        for vtpm in &vtpms {
            store.remove("VTPM", vtpm);
        }
        store.remove("VM_metrics", &store.text("VM", vm, "metrics")?);
        store.remove("VM_guest_metrics", &store.text("VM", vm, "guest_metrics")?);
        store.remove("VM", vm);
        Ok(vtpms)
    })?;
    let mut contents = pool.vtpms.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for vtpm in vtpms {
        contents.remove(&vtpm);
    }
    drop(contents);
    tell(pool);
    Ok("".into())
}

/// Sets the limits of a machine that is off, bytes: static minimum and maximum, dynamic minimum and maximum.
fn set_memory(store: &mut Store, vm: &str, bytes: [i64; 4]) -> Answer {
    check_power(store, vm, &["Halted"])?;
    let [static_min, static_max, dynamic_min, dynamic_max] = bytes;
    if !(0 <= static_min && static_min <= dynamic_min && dynamic_min <= dynamic_max && dynamic_max <= static_max) {
        return Err(Failure::new("MEMORY_CONSTRAINT_VIOLATION_ORDER", [""; 0]));
    }
    for (field, bytes) in ["memory_static_min", "memory_static_max", "memory_dynamic_min", "memory_dynamic_max"].iter().zip(bytes)
    {
        store.set("VM", vm, field, bytes)?;
    }
    Ok("".into())
}

/// Sets one of the numbers of processors of a machine that is off: it never starts with more than it can have.
fn set_processors(store: &mut Store, vm: &str, field: &str, count: i64) -> Answer {
    check_power(store, vm, &["Halted"])?;
    let other = |field: &str| store.get("VM", vm).map(|record| record[field].as_i64().unwrap_or(1));
    let fits = if field == "VCPUs_max" { other("VCPUs_at_startup")? <= count } else { count <= other("VCPUs_max")? };
    if count < 1 || !fits {
        let rule = "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max".to_owned();
        return Err(Failure::new("INVALID_VALUE", [rule, count.to_string()]));
    }
    store.set("VM", vm, field, count)?;
    Ok("".into())
}

fn set_bios_strings(context: &Context<'_>, args: &Args<'_>) -> Answer {
    let (vm, strings) = (args.text(0)?, Value::Object(args.map(1)?.clone()));
    context.pool.db.with(|store| {
        check_power(store, vm, &["Halted"])?;
        if store.get("VM", vm)?["bios_strings"].as_object().is_some_and(|known| !known.is_empty()) {
            return Err(Failure::new("VM_BIOS_STRINGS_ALREADY_SET", [""; 0]));
        }
        store.set("VM", vm, "bios_strings", strings)?;
        Ok("".into())
    })
}

fn free_devices(store: &Store, vm: &str, class: &str) -> Answer {
    let (field, device, most) = if class == "VBD" { ("VBDs", "userdevice", 16) } else { ("VIFs", "device", 7) };
    let mut used = Vec::new();
    for member in store.refs("VM", vm, field)? {
        used.push(store.text(class, &member, device)?);
    }
    Ok((0..most).map(|number| number.to_string()).filter(|number| !used.contains(number)).map(Value::from).collect())
}

/// Refuses an operation that somebody has blocked on that machine.
pub(crate) fn check_not_blocked(store: &Store, vm: &str, operation: &str) -> Result<(), Failure> {
    match store.get("VM", vm)?["blocked_operations"].get(operation).and_then(Value::as_str) {
        Some(reason) => Err(Failure::new("OPERATION_BLOCKED", [vm, reason])),
        None => Ok(()),
    }
}

/// Refuses when the machine is in none of these power states; gives the one it is in.
pub(crate) fn check_power(store: &Store, vm: &str, allowed: &[&str]) -> Result<String, Failure> {
    let state = store.text("VM", vm, "power_state")?;
    if allowed.contains(&state.as_str()) {
        return Ok(state);
    }
    let expected = allowed.join(", ").to_lowercase();
    Err(Failure::new("VM_BAD_POWER_STATE", [vm, &expected, &state.to_lowercase()]))
}

/// Brings `allowed_operations` up to date with the machine's state.
pub(crate) fn update_allowed_operations(store: &mut Store, vm: &str) -> Result<(), Failure> {
    let record = store.get("VM", vm)?;
    let always = ["changing_dynamic_range", "migrate_send", "snapshot"];
    let by_state: &[&str] = match record["power_state"].as_str() {
        _ if record["is_a_snapshot"] == true => &["provision", "clone", "copy", "export", "destroy", "revert"],
        _ if record["is_a_template"] == true => &["provision", "clone", "copy", "export", "destroy"],
        Some("Running") => {
            &["checkpoint", "clean_shutdown", "clean_reboot", "hard_shutdown", "hard_reboot", "pause", "suspend", "pool_migrate"]
        }
        Some("Suspended") => &["resume", "hard_shutdown", "clone", "copy", "export", "checkpoint"],
        _ => &["start", "start_on", "clone", "copy", "export", "destroy", "make_into_template", "metadata_export"],
    };
    let blocked = &record["blocked_operations"];
    let common = always.iter().filter(|_| record["is_a_template"] != true);
    let operations: Vec<Value> =
        by_state.iter().chain(common).filter(|name| blocked.get(**name).is_none()).map(|name| Value::from(*name)).collect();
    store.set("VM", vm, "allowed_operations", operations)
}

/// The disks of a machine, CDs left out: (VBD, VDI) by position.
pub(crate) fn disks(store: &Store, vm: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut disks = Vec::new();
    for vbd in store.refs("VM", vm, "VBDs")? {
        let record = store.get("VBD", &vbd)?;
        let vdi = record["VDI"].as_str().unwrap_or(NULL);
        if record["type"] == "Disk" && vdi != NULL && store.has("VDI", vdi) {
            let position = record["userdevice"].as_str().and_then(|device| device.parse::<u32>().ok()).unwrap_or(u32::MAX);
            disks.push((position, vbd, vdi.to_owned()));
        }
    }
    disks.sort();
    Ok(disks.into_iter().map(|(_, vbd, vdi)| (vbd, vdi)).collect())
}
