//! `PUT /import` and `PUT /import_raw_vdi`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use disks::Image;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use xva::{Event, Importer};

use super::ova::{self, Object};
use super::{Transfer, refuse};
use crate::failure::Failure;
use crate::fault::Fault;
use crate::http::{Body, Connection, HttpError};
use crate::pool::{Plug, Pool};
use crate::record::{self, NULL};
use crate::rpc::{self, Task};
use crate::store::{Record, Store};
use crate::{tally, xmlrpc};

/// How long an import waits for its disk to be detached.
const DETACH: Duration = Duration::from_secs(4);

/// How an upload ends.
struct Ended {
    result: Result<String, Failure>,
    /// The connection is reset instead of closed.
    cut: bool,
}

/// A whole machine from an archive.
pub(super) async fn machine(
    transfer: &Transfer<'_>,
    mut connection: Connection,
    length: u64,
) -> Result<Option<Connection>, HttpError> {
    let task = match transfer.task("Import of a VM") {
        Ok(task) => task,
        Err(failure) => return refuse(transfer, connection, 500, &failure.to_string()).await,
    };
    let sr = match target_sr(transfer) {
        Ok(sr) => sr,
        Err(failure) => return transfer.fail(connection, task, failure).await,
    };
    // The answer goes before the body: this is how a client learns that it is not redirected.
    begin(&mut connection, &task).await?;
    let keep = transfer.request.parameter("restore").as_deref() == Some("true");
    let (pool, task_name) = (Arc::clone(transfer.pool), task.reference().to_owned());
    let mut import = MachineImport { pool, sr, keep, task: task_name, room: 0, made: Made::default() };
    let cut_at = cut_point(transfer.pool);
    let mut body = connection.body(length).cut_at(cut_at).reporting_to(&task);
    let outcome = tokio::select! {
        outcome = import.run(&mut body) => outcome,
        () = task.cancelled().cancelled() => Err(Failure::new("TASK_CANCELLED", [task.reference()])),
    };
    if outcome.is_ok() {
        drain(&mut body).await;
    }
    let cut = cut_at.is_some_and(|at| body.received() >= at) && outcome.is_err();
    if outcome.is_err() {
        let undo = tokio::task::spawn_blocking(move || import.made.undo(&import.pool)).await;
        if undo.is_err() {
            tracing::error!("what a failed import had made could not be removed");
        }
    }
    let result = outcome.map(|vm| xmlrpc::fragment(&json!([vm])));
    end(connection, task, Ended { result, cut }).await;
    Ok(None)
}

/// The content of a disk that exists, or with `sr_id` of a new one.
pub(super) async fn disk(
    transfer: &Transfer<'_>,
    mut connection: Connection,
    length: u64,
) -> Result<Option<Connection>, HttpError> {
    let task = match transfer.task("Importing raw disk image") {
        Ok(task) => task,
        Err(failure) => return refuse(transfer, connection, 500, &failure.to_string()).await,
    };
    let format = transfer.request.parameter("format").unwrap_or_else(|| "raw".to_owned());
    if format != "raw" && format != "vhd" {
        task.settle(Err(Failure::internal(format!("unknown format {format}"))));
        return refuse(transfer, connection, 404, "unknown format").await;
    }
    // A VHD holds hardly more than what it writes.
    let room = if format == "vhd" { length } else { 0 };
    let (vdi, image, plug) = match open_disk(transfer, length, room).await {
        Ok(opened) => opened,
        Err(failure) => return transfer.fail(connection, task, failure).await,
    };
    begin(&mut connection, &task).await?;
    let cut_at = cut_point(transfer.pool);
    let mut body = connection.body(length).cut_at(cut_at).reporting_to(&task);
    let import = async {
        if format == "vhd" {
            disks::import_vhd(&image, &mut body).await.map(drop)
        } else {
            disks::import_raw(&image, &mut body, length).await
        }
    };
    let outcome = tokio::select! {
        outcome = import => outcome.map_err(|error| {
            tracing::debug!(%error, "import of a disk failed");
            Failure::new("VDI_IO_ERROR", ["Device I/O errors".to_owned(), error.to_string()])
        }),
        () = task.cancelled().cancelled() => Err(Failure::new("TASK_CANCELLED", [task.reference()])),
    };
    if outcome.is_ok() {
        drain(&mut body).await;
    }
    let cut = cut_at.is_some_and(|at| body.received() >= at) && outcome.is_err();
    let used = rpc::used_bytes(transfer.pool, &vdi);
    let _gone = transfer.pool.db.with(|store| store.set("VDI", &vdi, "physical_utilisation", used));
    drop(plug);
    end(connection, task, Ended { result: outcome.map(|()| String::new()), cut }).await;
    Ok(None)
}

async fn open_disk(transfer: &Transfer<'_>, length: u64, room: u64) -> Result<(String, Arc<Image>, Plug), Failure> {
    let pool = transfer.pool;
    let vdi = match (transfer.object("VDI", "vdi")?, transfer.object("SR", "sr_id")?) {
        (Some(vdi), _) => vdi,
        (None, Some(sr)) => {
            let size = length.next_multiple_of(2 << 20);
            rpc::create_disk(pool, json!({ "SR": sr, "name_label": "Imported disk", "virtual_size": size }))?
        }
        (None, None) => return Err(Failure::handle_invalid("VDI", "")),
    };
    pool.db.with(|store| {
        if store.flag("VDI", &vdi, "is_a_snapshot")? || store.flag("VDI", &vdi, "read_only")? {
            return Err(Failure::new("VDI_READONLY", [vdi.as_str()]));
        }
        let sr = store.text("VDI", &vdi, "SR")?;
        let thick = tally::is_thick(store.get("SR", &sr)?);
        if !thick && tally::free(store, &sr)? < room { Err(tally::no_room()) } else { Ok(()) }
    })?;
    detached(pool, &vdi).await?;
    let (image, _) = pool.shelf.find(&vdi)?;
    let plug = pool.plug(&vdi, false)?;
    Ok((vdi, image, plug))
}

/// Waits for a disk that is still attached from the transfer before, as attaching it in the control domain does.
async fn detached(pool: &Pool, vdi: &str) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + DETACH;
    let mut changes = pool.db.watch();
    loop {
        changes.borrow_and_update();
        let Err(in_use) = pool.db.with(|store| rpc::check_not_attached(store, vdi, "import", None)) else { return Ok(()) };
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(deadline) => return Err(in_use),
        }
    }
}

async fn begin(connection: &mut Connection, task: &Task) -> Result<(), HttpError> {
    Ok(connection.begin("HTTP/1.1", &[("task-id", task.reference())]).await?)
}

fn cut_point(pool: &Pool) -> Option<u64> {
    pool.faults.strike(|fault| match fault {
        Fault::CutImport { after_bytes } => Some(*after_bytes),
        _ => None,
    })
}

/// Reads what a client sends after the end of what was wanted.
async fn drain(body: &mut Body<'_>) {
    // Nothing depends on it: the import is complete.
    let _ = tokio::io::copy(body, &mut tokio::io::sink()).await;
}

async fn end(connection: Connection, task: Task, ended: Ended) {
    task.settle(ended.result);
    if ended.cut { connection.reset() } else { connection.close().await }
}

fn target_sr(transfer: &Transfer<'_>) -> Result<String, Failure> {
    if let Some(sr) = transfer.object("SR", "sr_id")? {
        return Ok(sr);
    }
    if let Some(sr) = transfer.object("SR", "sr_uuid")? {
        return Ok(sr);
    }
    let default = transfer
        .pool
        .db
        .with(|store| store.all("pool").next().and_then(|(_, pool)| pool["default_SR"].as_str().map(str::to_owned)));
    default.filter(|sr| sr != NULL).ok_or_else(|| Failure::new("DEFAULT_SR_NOT_FOUND", [""; 0]))
}

/// What an import has made so far.
#[derive(Default)]
struct Made {
    vm: Option<String>,
    objects: Vec<(&'static str, String)>,
    disks: Vec<String>,
}

impl Made {
    /// Takes everything back. Blocks.
    fn undo(&self, pool: &Pool) {
        pool.db.with(|store| {
            for (class, reference) in self.objects.iter().rev() {
                store.remove(class, reference);
            }
            for disk in &self.disks {
                store.remove("VDI", disk);
            }
        });
        for disk in &self.disks {
            if let Err(failure) = pool.shelf.remove(disk) {
                tracing::warn!(%failure, "a disk of a failed import stays behind");
            }
        }
    }
}

struct MachineImport {
    pool: Arc<Pool>,
    sr: String,
    /// Whether UUIDs and hardware addresses are kept.
    keep: bool,
    task: String,
    /// Bytes that the storage still takes, if it is thin.
    room: u64,
    made: Made,
}

impl MachineImport {
    /// Reads the archive, makes the machine, fills its disks; gives the machine's reference.
    async fn run(&mut self, body: &mut Body<'_>) -> Result<String, Failure> {
        let mut importer = Importer::new(body);
        let mut images: HashMap<String, (Arc<Image>, Plug)> = HashMap::new();
        while let Some(event) = importer.next().await.map_err(|error| import_error(&error))? {
            match event {
                Event::OvaXml(xml) => images = self.make(&xml)?,
                Event::Chunk(chunk) => {
                    let Some((image, _)) = images.get(&*chunk.disk) else {
                        return Err(Failure::new("IMPORT_ERROR_UNEXPECTED_FILE", ["", &chunk.disk]));
                    };
                    let image = Arc::clone(image);
                    self.room = self.room.checked_sub(chunk.data.len() as u64).ok_or_else(tally::no_room)?;
                    tokio::task::spawn_blocking(move || image.write_at(chunk.offset, &chunk.data))
                        .await
                        .map_err(|error| Failure::internal(error.to_string()))??;
                }
            }
        }
        let vm = self.made.vm.clone().ok_or_else(|| Failure::new("IMPORT_ERROR", ["the archive holds no VM"]))?;
        let pool = &self.pool;
        pool.db.with(|store| {
            store.edit("VM", &vm, "current_operations", |operations| *operations = json!({}))?;
            rpc::update_allowed_operations(store, &vm)
        })?;
        for disk in &self.made.disks {
            let used = rpc::used_bytes(pool, disk);
            pool.db.with(|store| store.set("VDI", disk, "physical_utilisation", used))?;
        }
        Ok(vm)
    }

    fn make(&mut self, xml: &[u8]) -> Result<HashMap<String, (Arc<Image>, Plug)>, Failure> {
        let objects = ova::read(xml)?;
        let mut disks = HashMap::new();
        let mut references: HashMap<String, String> = HashMap::new();
        for object in objects.iter().filter(|object| object.class == "VDI") {
            let mut fields = self.fields("VDI", object)?;
            let size = fields.get("virtual_size").and_then(Value::as_u64).unwrap_or(0).next_multiple_of(2 << 20);
            if size == 0 || size > 2040 << 30 {
                return Err(Failure::new("IMPORT_ERROR", [format!("the size of disk {} is not possible", object.id)]));
            }
            fields.insert("virtual_size".into(), size.into());
            fields.insert("SR".into(), self.sr.as_str().into());
            for own in ["uuid", "location", "cbt_enabled", "managed", "missing", "parent", "sm_config", "VBDs", "snapshots"] {
                fields.shift_remove(own);
            }
            let vdi = rpc::create_disk(&self.pool, Value::Object(fields))?;
            self.made.disks.push(vdi.clone());
            disks.insert(object.id.clone(), (self.pool.shelf.find(&vdi)?.0, self.pool.plug(&vdi, false)?));
            references.insert(object.id.clone(), vdi);
        }
        let pool = Arc::clone(&self.pool);
        pool.db.with(|store| {
            let thick = tally::is_thick(store.get("SR", &self.sr)?);
            self.room = if thick { u64::MAX } else { tally::free(store, &self.sr)? };
            self.make_records(store, &objects, &mut references)
        })?;
        Ok(disks)
    }

    fn make_records(
        &mut self,
        store: &mut Store,
        objects: &[Object],
        references: &mut HashMap<String, String>,
    ) -> Result<(), Failure> {
        let machine = objects
            .iter()
            .find(|object| object.class == "VM")
            .ok_or_else(|| Failure::new("IMPORT_ERROR", ["the archive holds no VM"]))?;
        let mut fields = self.fields("VM", machine)?;
        for own in [
            "VBDs",
            "VIFs",
            "VTPMs",
            "VUSBs",
            "VGPUs",
            "snapshots",
            "children",
            "metrics",
            "guest_metrics",
            "appliance",
            "affinity",
            "suspend_SR",
        ] {
            fields.shift_remove(own);
        }
        if !self.keep {
            fields.shift_remove("uuid");
            fields.insert("generation_id".into(), rpc::generation_id().into());
            if let Some(Value::Object(other)) = fields.get_mut("other_config") {
                other.insert("mac_seed".into(), Uuid::new_v4().to_string().into());
            }
        } else if let Some(uuid) = fields.get("uuid").and_then(Value::as_str)
            && store.by_uuid("VM", uuid).is_ok()
        {
            return Err(Failure::new("DUPLICATE_VM", [uuid]));
        }
        fields.insert("power_state".into(), "Halted".into());
        fields.insert("current_operations".into(), json!({ self.task.as_str(): "import" }));
        let metrics = rpc::new_metrics(store, &fields);
        self.made.objects.push(("VM_metrics", metrics.clone()));
        fields.insert("metrics".into(), metrics.into());
        let vm = store.create("VM", Value::Object(fields));
        self.made.objects.push(("VM", vm.clone()));
        self.made.vm = Some(vm.clone());
        references.insert(machine.id.clone(), vm);
        for network in objects.iter().filter(|object| object.class == "network") {
            let found = find_network(store, &network.record);
            references.insert(network.id.clone(), found);
        }
        for object in objects {
            let class = match object.class.as_str() {
                "VBD" => "VBD",
                "VIF" => "VIF",
                _ => continue,
            };
            let mut fields = self.fields(class, object)?;
            for field in ["VM", "VDI", "network"] {
                if let Some(value) = fields.get_mut(field) {
                    let target = value.as_str().and_then(|id| references.get(id)).map_or(NULL, String::as_str);
                    *value = target.into();
                }
            }
            fields.shift_remove("uuid");
            fields.insert("currently_attached".into(), false.into());
            fields.shift_remove("metrics");
            if class == "VIF" && !self.keep {
                fields.insert("MAC".into(), rpc::new_mac().into());
                fields.insert("MAC_autogenerated".into(), true.into());
            }
            let made = store.create(class, Value::Object(fields));
            self.made.objects.push((class, made));
        }
        Ok(())
    }

    /// The fields of an archive's record that this pool knows; everything in it is text, and is brought to its kind.
    fn fields(&self, class: &str, object: &Object) -> Result<Map<String, Value>, Failure> {
        let mut fields = Map::new();
        for (field, kind) in record::template(class) {
            let Some(value) = object.record.get(field) else { continue };
            let wrong =
                || Failure::new("IMPORT_ERROR", [format!("field {field} of {} in ova.xml has the wrong type", object.id)]);
            let value = record::coerce(kind, value.clone()).ok_or_else(wrong)?;
            fields.insert(field.clone(), value);
        }
        Ok(fields)
    }
}

/// The network of an archive in this pool: the same, one of that name, the one that management runs over, or any; always the
/// same one of several.
fn find_network(store: &Store, wanted: &Map<String, Value>) -> String {
    let management = |network: &str| store.all("PIF").any(|(_, pif)| pif["management"] == true && pif["network"] == network);
    let rank = |(reference, network): &(&str, &Record)| {
        let same = |field: &str| network.get(field) == wanted.get(field);
        let name = network["name_label"].as_str().unwrap_or_default().to_owned();
        (!same("uuid"), !same("name_label"), !management(reference), name, (*reference).to_owned())
    };
    store.all("network").min_by_key(rank).map_or_else(|| NULL.to_owned(), |(found, _)| found.to_owned())
}

fn import_error(error: &xva::XvaError) -> Failure {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        message.push_str(&format!(": {source}"));
        cause = source.source();
    }
    let code = match error {
        xva::XvaError::Checksum { .. } => "IMPORT_ERROR_SOME_CHECKSUMS_FAILED",
        xva::XvaError::Truncated { .. } => "IMPORT_ERROR_PREMATURE_EOF",
        _ => "IMPORT_ERROR",
    };
    if code == "IMPORT_ERROR" { Failure::new(code, [message]) } else { Failure::new(code, [""; 0]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_networks_it_is_always_the_same_that_an_archive_joins() {
        let mut store = Store::new();
        let mut networks: Vec<String> =
            (0..8).map(|n| store.create("network", json!({ "name_label": format!("n{n}") }))).collect();
        let twin = store.create("network", json!({ "name_label": "n5" }));
        store.create("PIF", json!({ "network": networks[3], "management": true }));
        let wanted = |fields: Value| fields.as_object().cloned().unwrap();
        let uuid = store.text("network", &networks[7], "uuid").unwrap();
        let find = |fields: Value| find_network(&store, &wanted(fields));
        assert_eq!(find(json!({ "uuid": uuid, "name_label": "n5" })), networks[7]);
        assert_eq!(find(json!({ "uuid": "x", "name_label": "elsewhere" })), networks[3]);
        let named = find(json!({ "uuid": "x", "name_label": "n5" }));
        assert_eq!(named, networks.remove(5).min(twin));
    }
}
