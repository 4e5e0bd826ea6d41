//! Disks: making, copying, tracking, destroying them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use disks::BlockRead as _;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::vm::{require, take_over};
use super::{Args, Context};
use crate::failure::{Answer, Failure};
use crate::fault::Fault;
use crate::pool::Pool;
use crate::record::{self, NULL};
use crate::store::Store;
use crate::tally;

/// VHD-based storage keeps whole blocks of 2 MiB.
const GRAIN: u64 = 2 << 20;

/// The largest disk that VHD-based storage makes, bytes (xapi-streams.md §1.6, `VDI_TOO_LARGE`).
const LARGEST: u64 = 2040 << 30;

/// How long `VDI.data_destroy` waits for a disk to be detached (xapi-streams.md §3.3).
const DETACH: Duration = Duration::from_secs(4);

const REQUIRED: &[&str] = &["SR", "virtual_size", "type", "sharable", "read_only", "other_config"];

const OWN: &[&str] = &[
    "uuid",
    "allowed_operations",
    "current_operations",
    "VBDs",
    "crash_dumps",
    "physical_utilisation",
    "storage_lock",
    "location",
    "managed",
    "missing",
    "parent",
    "is_a_snapshot",
    "snapshot_of",
    "snapshots",
    "snapshot_time",
    "cbt_enabled",
    "metadata_of_pool",
    "metadata_latest",
    "is_tools_iso",
];

/// Methods of disks.
pub(super) fn call(context: &Context<'_>, method: &str, args: &Args<'_>) -> Option<Answer> {
    Some(match method {
        "create" => args.exactly(1).and_then(|()| create(context, args.map(0)?)),
        "destroy" => args.exactly(1).and_then(|()| destroy(context, args.text(0)?)),
        "snapshot" => args.between(1, 2).and_then(|()| {
            check_not_attached_to_domain(context, args.text(0)?, "snapshot")?;
            take_snapshot(context, args.text(0)?).map(Value::from)
        }),
        "clone" => args.between(1, 2).and_then(|()| {
            check_not_attached_to_domain(context, args.text(0)?, "clone")?;
            duplicate(context, args.text(0)?).map(Value::from)
        }),
        "copy" => args.between(2, 4).and_then(|()| copy(context, args)),
        "resize" | "resize_online" => args.exactly(2).and_then(|()| resize(context, args.text(0)?, args.integer(1)?)),
        "enable_cbt" => args.exactly(1).and_then(|()| track(context, args.text(0)?, true)),
        "disable_cbt" => args.exactly(1).and_then(|()| track(context, args.text(0)?, false)),
        "data_destroy" => args.exactly(1).and_then(|()| data_destroy(context, args.text(0)?)),
        "list_changed_blocks" => args.exactly(2).and_then(|()| list_changed_blocks(context, args.text(0)?, args.text(1)?)),
        "get_nbd_info" => args.exactly(1).and_then(|()| nbd_info(context, args.text(0)?)),
        "update" | "update_allowed_operations" => {
            args.exactly(1).and_then(|()| context.pool.db.with(|store| store.get("VDI", args.text(0)?).map(|_| Value::from(""))))
        }
        _ => return None,
    })
}

/// A size as VHD-based storage makes it, or the refusal.
fn round_up(bytes: i64) -> Result<u64, Failure> {
    let bytes = u64::try_from(bytes).unwrap_or(0);
    if bytes == 0 {
        return Err(Failure::new("SR_BACKEND_FAILURE_79", ["", "VDI Invalid size", ""]));
    }
    if bytes > LARGEST {
        return Err(Failure::new("VDI_TOO_LARGE", [bytes.to_string(), LARGEST.to_string()]));
    }
    Ok(bytes.next_multiple_of(GRAIN))
}

fn create(context: &Context<'_>, given: &Map<String, Value>) -> Answer {
    require(given, REQUIRED)?;
    let mut fields = take_over(record::template("VDI"), given, OWN)?;
    let bytes = round_up(fields["virtual_size"].as_i64().unwrap_or(0))?;
    fields.insert("virtual_size".into(), bytes.into());
    let sr = fields["SR"].as_str().unwrap_or(NULL).to_owned();
    if context.pool.db.with(|store| store.text("SR", &sr, "content_type"))? == "iso" {
        return Err(Failure::new("SR_OPERATION_NOT_SUPPORTED", [sr]));
    }
    create_disk(context.pool, Value::Object(fields)).map(Value::from)
}

/// A disk of zeros and its record; `fields` hold at least `SR` and `virtual_size`.
pub(crate) fn create_disk(pool: &Pool, mut fields: Value) -> Result<String, Failure> {
    let id = Uuid::new_v4();
    let reference = format!("OpaqueRef:{}", Uuid::new_v4());
    let bytes = fields["virtual_size"].as_u64().unwrap_or(0);
    let sr = fields["SR"].as_str().unwrap_or(NULL).to_owned();
    pool.db.with(|store| tally::check_room(store, &sr, bytes))?;
    let image = pool.shelf.create(id, bytes)?;
    pool.shelf.put(&reference, id, image);
    fields["uuid"] = id.to_string().into();
    fields["location"] = id.to_string().into();
    fields["allowed_operations"] = operations(false);
    let inserted = pool.db.with(|store| {
        // Somebody else may have been faster.
        tally::check_room(store, &sr, bytes)?;
        store.insert("VDI", &reference, fields);
        Ok(())
    });
    match inserted {
        Ok(()) => Ok(reference),
        Err(failure) => {
            pool.shelf.remove(&reference)?;
            Err(failure)
        }
    }
}

fn operations(snapshot: bool) -> Value {
    if snapshot {
        json!(["clone", "copy", "destroy", "data_destroy", "list_changed_blocks"])
    } else {
        json!(["clone", "copy", "destroy", "enable_cbt", "disable_cbt", "resize", "snapshot", "list_changed_blocks"])
    }
}

/// A snapshot of a disk, without the VM's; gives its reference.
pub(super) fn take_snapshot(context: &Context<'_>, source: &str) -> Result<String, Failure> {
    let pool = context.pool;
    check_has_data(context, source)?;
    let (image, place) = pool.shelf.find(source)?;
    let id = Uuid::new_v4();
    let reference = format!("OpaqueRef:{}", Uuid::new_v4());
    if place.snapshot.is_some() {
        // Snapshots do not change, so a snapshot of one is a copy of it.
        let copy = image.copy_to(place.layer(), &pool.shelf.image_dir(id))?;
        pool.shelf.put(&reference, id, copy);
    } else {
        image.snapshot(id)?;
        pool.shelf.put_snapshot(&reference, place.image, id);
    }
    let used = used_bytes(pool, &reference);
    pool.db.with(|store| {
        let mut record = store.get("VDI", source)?.clone();
        let fixed = json!({
            "uuid": id.to_string(), "location": id.to_string(), "is_a_snapshot": true, "snapshot_of": source,
            "snapshot_time": record::now(), "snapshots": [], "VBDs": [], "current_operations": {}, "physical_utilisation": used,
            "allowed_operations": operations(true)
        });
        record.extend(fixed.as_object().cloned().unwrap_or_default());
        store.insert("VDI", &reference, Value::Object(record));
        Ok(reference)
    })
}

/// A disk of its own with the content of another.
pub(super) fn duplicate(context: &Context<'_>, source: &str) -> Result<String, Failure> {
    let pool = context.pool;
    check_has_data(context, source)?;
    let (image, place) = pool.shelf.find(source)?;
    let id = Uuid::new_v4();
    let reference = format!("OpaqueRef:{}", Uuid::new_v4());
    let copy = image.copy_to(place.layer(), &pool.shelf.image_dir(id))?;
    pool.shelf.put(&reference, id, copy);
    let used = used_bytes(pool, &reference);
    pool.db.with(|store| {
        let mut record = store.get("VDI", source)?.clone();
        let fixed = json!({
            "uuid": id.to_string(), "location": id.to_string(), "is_a_snapshot": false, "snapshot_of": NULL, "snapshots": [], "VBDs": [],
            "snapshot_time": record::EPOCH, "current_operations": {}, "cbt_enabled": false, "physical_utilisation": used,
            "allowed_operations": operations(false), "sm_config": {}
        });
        record.extend(fixed.as_object().cloned().unwrap_or_default());
        store.insert("VDI", &reference, Value::Object(record));
        Ok(reference)
    })
}

fn copy(context: &Context<'_>, args: &Args<'_>) -> Answer {
    let sr = args.text(1)?;
    context.pool.db.with(|store| store.get("SR", sr).map(drop))?;
    let copy = duplicate(context, args.text(0)?)?;
    context.pool.db.with(|store| store.set("VDI", &copy, "SR", sr))?;
    Ok(copy.into())
}

/// Bytes of a disk that are not known to be zero.
pub(crate) fn used_bytes(pool: &Pool, vdi: &str) -> u64 {
    let ranges = pool.shelf.view(vdi).ok().and_then(|view| view.allocated().ok()).unwrap_or_default();
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn resize(context: &Context<'_>, vdi: &str, bytes: i64) -> Answer {
    let bytes = round_up(bytes)?;
    let pool = context.pool;
    check_live(context, vdi)?;
    pool.db.with(|store| check_not_attached(store, vdi, "resize", None))?;
    let (image, _) = pool.shelf.find(vdi)?;
    if bytes < image.size() {
        return Err(Failure::new("SR_BACKEND_FAILURE_79", ["", "VDI Invalid size [opterr=shrinking not allowed]", ""]));
    }
    pool.db.with(|store| {
        let sr = store.text("VDI", vdi, "SR")?;
        // Thin storage promises more than it has.
        if tally::is_thick(store.get("SR", &sr)?) { tally::check_room(store, &sr, bytes - image.size()) } else { Ok(()) }
    })?;
    image.resize(bytes)?;
    pool.db.with(|store| store.set("VDI", vdi, "virtual_size", bytes))?;
    Ok("".into())
}

fn destroy(context: &Context<'_>, vdi: &str) -> Answer {
    let pool = context.pool;
    if pool.faults.hits(&Fault::VdiInUse) {
        return Err(Failure::new("VDI_IN_USE", [vdi, "destroy"]));
    }
    pool.db.with(|store| {
        check_not_attached(store, vdi, "destroy", None)?;
        for vbd in store.refs("VDI", vdi, "VBDs")? {
            store.remove("VBD", &vbd);
        }
        store.remove("VDI", vdi);
        Ok::<_, Failure>(())
    })?;
    pool.shelf.remove(vdi)?;
    Ok("".into())
}

fn track(context: &Context<'_>, vdi: &str, on: bool) -> Answer {
    check_live(context, vdi)?;
    let (image, _) = context.pool.shelf.find(vdi)?;
    if on {
        image.enable_cbt()?
    } else {
        image.disable_cbt()?
    }
    context.pool.db.with(|store| store.set("VDI", vdi, "cbt_enabled", on))?;
    Ok("".into())
}

fn data_destroy(context: &Context<'_>, vdi: &str) -> Answer {
    let pool = context.pool;
    let (snapshot, kind, tracked) = pool.db.with(|store| {
        Ok::<_, Failure>((
            store.flag("VDI", vdi, "is_a_snapshot")?,
            store.text("VDI", vdi, "type")?,
            store.flag("VDI", vdi, "cbt_enabled")?,
        ))
    })?;
    if kind == "cbt_metadata" {
        return Ok("".into());
    }
    if !snapshot {
        return Err(Failure::not_allowed("VDI is not a snapshot"));
    }
    if !tracked {
        return Err(Failure::new("VDI_NO_CBT_METADATA", [vdi]));
    }
    if pool.faults.hits(&Fault::VdiInUse) {
        return Err(Failure::new("VDI_IN_USE", [vdi, "data_destroy"]));
    }
    // Only the VBDs of machines matter: those of halted snapshots do not go by waiting, they go with their machine.
    let free = |store: &Store| match check_not_attached(store, vdi, "data_destroy", None) {
        Ok(()) => Some(Ok(())),
        Err(failure) if failure.code == "VDI_IN_USE" => None,
        Err(failure) => Some(Err(failure)),
    };
    pool.db.wait_for(DETACH, free).unwrap_or_else(|| Err(Failure::new("VDI_IN_USE", [vdi, "data_destroy"])))?;
    let (image, place) = pool.shelf.find(vdi)?;
    match place.snapshot {
        Some(snapshot) => image.destroy_data(snapshot)?,
        None => return Err(Failure::new("VDI_NO_CBT_METADATA", [vdi])),
    }
    pool.db.with(|store| {
        for vbd in store.refs("VDI", vdi, "VBDs")? {
            store.remove("VBD", &vbd);
        }
        store.set("VDI", vdi, "type", "cbt_metadata")?;
        store.set("VDI", vdi, "physical_utilisation", 0)?;
        store.set("VDI", vdi, "allowed_operations", json!(["destroy", "list_changed_blocks"]))?;
        Ok("".into())
    })
}

fn list_changed_blocks(context: &Context<'_>, from: &str, to: &str) -> Answer {
    let pool = context.pool;
    if pool.faults.hits(&Fault::NoChangedBlocks) {
        return Err(Failure::new("SR_BACKEND_FAILURE_460", ["", "Failed to calculate changed blocks for given VDIs.", ""]));
    }
    pool.db.with(|store| {
        for vdi in [from, to] {
            if !store.flag("VDI", vdi, "cbt_enabled")? {
                return Err(Failure::new("VDI_NO_CBT_METADATA", [vdi]));
            }
        }
        if store.text("VDI", to, "type")? == "cbt_metadata" {
            Ok(())
        } else {
            check_not_attached(store, to, "list_changed_blocks", None)
        }
    })?;
    let (image, older) = pool.shelf.find(from)?;
    let (_, newer) = pool.shelf.find(to)?;
    let unrelated = || Failure::new("SR_BACKEND_FAILURE_460", ["", "Failed to calculate changed blocks for given VDIs.", ""]);
    let snapshot = older.snapshot.filter(|_| older.image == newer.image).ok_or_else(unrelated)?;
    let bitmap = image.changed_blocks(snapshot, newer.layer()).map_err(|_| unrelated())?;
    Ok(BASE64.encode(bitmap.as_bytes()).into())
}

fn nbd_info(context: &Context<'_>, vdi: &str) -> Answer {
    let pool = context.pool;
    let uuid = pool.db.with(|store| {
        if store.text("VDI", vdi, "type")? == "cbt_metadata" {
            return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi, "cbt_metadata"]));
        }
        let offered = store.all("network").any(|(_, network)| {
            network["purpose"].as_array().is_some_and(|purposes| purposes.iter().any(|purpose| purpose == "nbd"))
        });
        Ok(offered.then_some(store.text("VDI", vdi, "uuid")?))
    })?;
    let (Some(uuid), Some((_, nbd)), false) = (uuid, pool.listening.get(), pool.faults.hits(&Fault::NoNbd)) else {
        return Ok(json!([]));
    };
    let hosts = (0..pool.identity.hosts.len()).map(|host| {
        json!({
            "exportname": format!("/{uuid}?session_id={}", context.session), "address": Pool::host_address(host), "port": nbd.port(),
            "cert": pool.identity.certificate_pem, "subject": "localhost"
        })
    });
    Ok(hosts.collect())
}

fn check_live(context: &Context<'_>, vdi: &str) -> Result<(), Failure> {
    context.pool.db.with(|store| {
        if store.flag("VDI", vdi, "is_a_snapshot")? {
            return Err(Failure::not_allowed("VDI is a snapshot"));
        }
        if store.text("VDI", vdi, "type")? == "cbt_metadata" {
            return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi, "cbt_metadata"]));
        }
        Ok(())
    })
}

fn check_has_data(context: &Context<'_>, vdi: &str) -> Result<(), Failure> {
    context.pool.db.with(|store| {
        if store.text("VDI", vdi, "type")? == "cbt_metadata" {
            return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi, "cbt_metadata"]));
        }
        Ok(())
    })
}

fn check_not_attached_to_domain(context: &Context<'_>, vdi: &str, operation: &str) -> Result<(), Failure> {
    let pool = Arc::clone(context.pool);
    pool.db.with(|store| check_attachment(store, vdi, operation, |vm| pool.is_control_domain(vm)))
}

/// Refuses while a disk is attached to any machine but the one excepted.
pub(crate) fn check_not_attached(store: &Store, vdi: &str, operation: &str, except: Option<&str>) -> Result<(), Failure> {
    check_attachment(store, vdi, operation, |vm| Some(vm) != except)
}

fn check_attachment(store: &Store, vdi: &str, operation: &str, counts: impl Fn(&str) -> bool) -> Result<(), Failure> {
    for vbd in store.refs("VDI", vdi, "VBDs")? {
        let record = store.get("VBD", &vbd)?;
        if record["currently_attached"] == true && counts(record["VM"].as_str().unwrap_or(NULL)) {
            return Err(Failure::new("VDI_IN_USE", [vdi, operation]));
        }
    }
    Ok(())
}
