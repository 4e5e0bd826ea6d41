//! Copies of a whole machine: snapshot, checkpoint, clone, copy.

use std::collections::HashMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::vm::{check_not_blocked, check_power, disks, generation_id, new_metrics, update_allowed_operations};
use super::{Args, Context, vdi};
use crate::failure::{Answer, Failure};
use crate::fault::Fault;
use crate::record::{self, NULL};
use crate::store::Store;

/// Bytes of the memory image of a checkpoint, however much memory the machine has: nobody reads what is in it.
const MEMORY_IMAGE: u64 = 16 << 20;

/// How a copy of a machine is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Snapshot,
    Checkpoint,
    Clone,
}

/// Methods that copy a machine.
pub(super) fn call(context: &Context<'_>, method: &str, args: &Args<'_>) -> Option<Answer> {
    Some(match method {
        "snapshot" => snapshot(context, args),
        "checkpoint" => args.exactly(2).and_then(|()| {
            context.pool.db.with(|store| check_power(store, args.text(0)?, &["Running", "Suspended"]))?;
            duplicate(context, args.text(0)?, args.text(1)?, Kind::Checkpoint, &[])
        }),
        "clone" => args.exactly(2).and_then(|()| duplicate(context, args.text(0)?, args.text(1)?, Kind::Clone, &[])),
        "copy" => args.exactly(3).and_then(|()| duplicate(context, args.text(0)?, args.text(1)?, Kind::Clone, &[])),
        _ => return None,
    })
}

fn snapshot(context: &Context<'_>, args: &Args<'_>) -> Answer {
    let most = if context.pool.faults.is_on(|fault| *fault == Fault::OldSnapshot) { 2 } else { 3 };
    args.between(2, most)?;
    if context.pool.faults.hits(&Fault::SnapshotFails) {
        return Err(Failure::new("VM_SNAPSHOT_FAILED", [args.text(0)?]));
    }
    let ignored = if args.len() == 3 { args.texts(2)? } else { Vec::new() };
    duplicate(context, args.text(0)?, args.text(1)?, Kind::Snapshot, &ignored)
}

/// Makes the copy: disks first, records after, so that nobody sees a machine without its disks.
fn duplicate(context: &Context<'_>, vm: &str, name: &str, kind: Kind, ignored: &[String]) -> Answer {
    let pool = context.pool;
    let operation = match kind {
        Kind::Snapshot => "snapshot",
        Kind::Checkpoint => "checkpoint",
        Kind::Clone => "clone",
    };
    let sources = pool.db.with(|store| {
        check_not_blocked(store, vm, operation)?;
        if kind == Kind::Clone {
            check_power(store, vm, &["Halted", "Suspended"])?;
        }
        Ok::<_, Failure>(
            disks(store, vm)?.into_iter().map(|(_, vdi)| vdi).filter(|vdi| !ignored.contains(vdi)).collect::<Vec<_>>(),
        )
    })?;
    let mut made = HashMap::new();
    let outcome = sources.into_iter().try_for_each(|source| {
        let copy = if kind == Kind::Clone { vdi::duplicate(context, &source)? } else { vdi::take_snapshot(context, &source)? };
        made.insert(source, copy);
        Ok::<_, Failure>(())
    });
    let result = outcome.and_then(|()| {
        let memory = if kind == Kind::Checkpoint { memory_image(context, vm)? } else { NULL.to_owned() };
        pool.db.with(|store| records(store, vm, name, kind, &made, &memory))
    });
    if result.is_err() {
        for copy in made.values() {
            pool.db.with(|store| store.remove("VDI", copy));
            pool.shelf.remove(copy)?;
        }
    }
    result.map(Value::from)
}

/// A disk with what would be the machine's memory.
fn memory_image(context: &Context<'_>, vm: &str) -> Result<String, Failure> {
    let sr = context.pool.db.with(|store| {
        let pool = store.all("pool").next().map(|(_, pool)| pool["default_SR"].clone());
        store.text("VM", vm, "name_label").map(|_| pool)
    })?;
    let vdi = vdi::create_disk(
        context.pool,
        json!({ "SR": sr, "name_label": "Suspend image", "type": "suspend", "virtual_size": MEMORY_IMAGE }),
    )?;
    let (image, _) = context.pool.shelf.find(&vdi)?;
    image.write_at(0, b"This is where a real pool keeps the memory of the machine.\n")?;
    Ok(vdi)
}

/// The records of the copy.
fn records(
    store: &mut Store,
    vm: &str,
    name: &str,
    kind: Kind,
    made: &HashMap<String, String>,
    memory: &str,
) -> Result<String, Failure> {
    let source = store.get("VM", vm)?.clone();
    let mut copy = source.clone();
    for field in ["VBDs", "VIFs", "VTPMs", "VUSBs", "VGPUs", "snapshots", "children", "consoles", "crash_dumps", "attached_PCIs"]
    {
        copy.insert(field.into(), json!([]));
    }
    let guest = source["guest_metrics"].as_str().and_then(|guest| store.get("VM_guest_metrics", guest).ok()).cloned();
    let fixed = json!({
        "uuid": Uuid::new_v4().to_string(), "name_label": name, "power_state": "Halted", "resident_on": NULL, "domid": -1,
        "current_operations": {}, "blocked_operations": {}, "is_default_template": false, "parent": source["parent"], "suspend_VDI": memory,
        "metrics": new_metrics(store, &source), "guest_metrics": NULL
    });
    copy.extend(fixed.as_object().cloned().unwrap_or_default());
    if kind == Kind::Clone {
        copy.insert("is_a_snapshot".into(), false.into());
        copy.insert("snapshot_of".into(), NULL.into());
        copy.insert("snapshot_time".into(), record::EPOCH.into());
        copy.insert("snapshot_info".into(), json!({}));
        copy.insert("generation_id".into(), generation_id().into());
        copy["other_config"]["mac_seed"] = Uuid::new_v4().to_string().into();
    } else {
        let state = source["power_state"].clone();
        copy.insert("is_a_snapshot".into(), true.into());
        // A snapshot is a template until somebody says otherwise (xapi-streams.md T7).
        copy.insert("is_a_template".into(), true.into());
        copy.insert("snapshot_of".into(), vm.into());
        copy.insert("snapshot_time".into(), record::now().into());
        copy.insert(
            "snapshot_info".into(),
            json!({ "power-state-at-snapshot": state, "disk-snapshot-type": "crash_consistent" }),
        );
        if kind == Kind::Checkpoint {
            copy.insert("power_state".into(), "Suspended".into());
        }
    }
    if let Some(mut guest) = guest {
        guest.insert("uuid".into(), Uuid::new_v4().to_string().into());
        let guest = store.create("VM_guest_metrics", Value::Object(guest));
        copy.insert("guest_metrics".into(), guest.into());
    }
    let reference = store.create("VM", Value::Object(copy));
    devices(store, vm, &reference, kind, made)?;
    if kind != Kind::Clone {
        // The live machine descends from its newest snapshot.
        store.set("VM", vm, "parent", reference.as_str())?;
    }
    update_allowed_operations(store, &reference)?;
    Ok(reference)
}

fn devices(store: &mut Store, vm: &str, copy: &str, kind: Kind, made: &HashMap<String, String>) -> Result<(), Failure> {
    let fresh = json!({ "uuid": Uuid::nil().to_string(), "VM": copy, "currently_attached": false, "current_operations": {}, "metrics": NULL });
    for vbd in store.refs("VM", vm, "VBDs")? {
        let mut record = store.get("VBD", &vbd)?.clone();
        record.extend(fresh.as_object().cloned().unwrap_or_default());
        let vdi = record["VDI"].as_str().unwrap_or(NULL);
        if record["type"] == "Disk" {
            let Some(copy) = made.get(vdi) else { continue };
            record.insert("VDI".into(), copy.as_str().into());
        }
        record.insert("uuid".into(), Uuid::new_v4().to_string().into());
        store.create("VBD", Value::Object(record));
    }
    for vif in store.refs("VM", vm, "VIFs")? {
        let mut record = store.get("VIF", &vif)?.clone();
        record.extend(fresh.as_object().cloned().unwrap_or_default());
        record.insert("uuid".into(), Uuid::new_v4().to_string().into());
        if kind == Kind::Clone {
            record.insert("MAC".into(), super::device::new_mac().into());
            record.insert("MAC_autogenerated".into(), true.into());
        }
        store.create("VIF", Value::Object(record));
    }
    Ok(())
}
