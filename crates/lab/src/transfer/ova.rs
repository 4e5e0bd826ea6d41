//! `ova.xml`: the records of a machine inside its archive (xapi-streams.md §4.3).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::record::{self, NULL};
use crate::store::Store;
use crate::xmlrpc;

/// A machine's records as they stand in an archive, and which disk lies under which name.
pub(crate) struct Manifest {
    /// The text of `ova.xml`.
    pub xml: String,
    /// Directory in the archive and reference of each disk, in the order in which they must come.
    pub disks: Vec<(String, String)>,
}

/// An object of an archive.
#[derive(Debug)]
pub(crate) struct Object {
    pub class: String,
    pub id: String,
    pub record: Map<String, Value>,
}

/// Writes the records of a machine and of everything that hangs on it.
pub(crate) fn write(store: &Store, vm: &str, host: &str) -> Result<Manifest, Failure> {
    let mut objects: Vec<(&'static str, String)> = vec![("VM", vm.to_owned())];
    let add = |objects: &mut Vec<(&'static str, String)>, class: &'static str, reference: &str| {
        if reference != NULL && store.has(class, reference) && !objects.iter().any(|(_, known)| known == reference) {
            objects.push((class, reference.to_owned()));
        }
    };
    let mut disks = Vec::new();
    for vbd in store.refs("VM", vm, "VBDs")? {
        let vdi = store.text("VBD", &vbd, "VDI")?;
        // Optical drives and what is in them stay behind.
        if store.text("VBD", &vbd, "type")? == "Disk" && store.has("VDI", &vdi) {
            add(&mut objects, "VBD", &vbd);
            add(&mut objects, "VDI", &vdi);
            add(&mut objects, "SR", &store.text("VDI", &vdi, "SR")?);
            if !disks.contains(&vdi) {
                disks.push(vdi);
            }
        }
    }
    for vif in store.refs("VM", vm, "VIFs")? {
        add(&mut objects, "VIF", &vif);
        add(&mut objects, "network", &store.text("VIF", &vif, "network")?);
    }
    add(&mut objects, "VM_metrics", &store.text("VM", vm, "metrics")?);
    add(&mut objects, "VM_guest_metrics", &store.text("VM", vm, "guest_metrics")?);
    let ids: HashMap<&str, String> =
        objects.iter().enumerate().map(|(number, (_, reference))| (reference.as_str(), format!("Ref:{number}"))).collect();
    let mut written = Vec::new();
    for (class, reference) in &objects {
        let mut snapshot = store.get(class, reference)?.clone();
        strip(class, &mut snapshot);
        let mut snapshot = Value::Object(snapshot);
        rename(&mut snapshot, &ids);
        written.push(json!({ "class": class, "id": ids[reference.as_str()], "snapshot": snapshot }));
    }
    let all = json!({
        "version": {
            "hostname": host, "date": record::now(), "product_version": "8.3.0", "product_brand": "XCP-ng", "build_number": "lab",
            "xapi_major": 1, "xapi_minor": 3, "export_vsn": 2
        },
        "objects": written
    });
    let mut xml = String::from("<?xml version=\"1.0\"?>");
    xmlrpc::write_value(&mut xml, "", &all);
    let mut disks: Vec<_> = disks.into_iter().map(|vdi| (ids[vdi.as_str()].clone(), vdi)).collect();
    disks.sort();
    Ok(Manifest { xml, disks })
}

/// An archive holds a machine as it would be if it had never been a snapshot nor run.
fn strip(class: &str, record: &mut Map<String, Value>) {
    let neutral = record::template(class);
    let fields: &[&str] = match class {
        "VM" => &[
            "is_a_snapshot",
            "snapshot_of",
            "snapshots",
            "snapshot_time",
            "snapshot_info",
            "parent",
            "children",
            "power_state",
            "resident_on",
            "domid",
            "current_operations",
            "allowed_operations",
            "suspend_VDI",
            "consoles",
            "crash_dumps",
            "blocked_operations",
        ],
        "VDI" => &["is_a_snapshot", "snapshot_of", "snapshots", "snapshot_time", "current_operations", "allowed_operations"],
        _ => &["current_operations", "allowed_operations"],
    };
    for field in fields {
        if let Some(value) = neutral.get(*field) {
            record.insert((*field).to_owned(), value.clone());
        }
    }
}

/// Replaces references by names inside the archive; those to outside lead nowhere.
fn rename(value: &mut Value, ids: &HashMap<&str, String>) {
    match value {
        Value::String(text) if text.starts_with("OpaqueRef:") => {
            *text = ids.get(text.as_str()).cloned().unwrap_or_else(|| NULL.to_owned());
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|item| rename(item, ids));
            items.retain(|item| item != NULL);
        }
        Value::Object(members) => members.values_mut().for_each(|member| rename(member, ids)),
        _ => {}
    }
}

/// Reads the records of an archive.
pub(crate) fn read(xml: &[u8]) -> Result<Vec<Object>, Failure> {
    let wrong = |message: String| Failure::new("IMPORT_ERROR", [message]);
    let text = std::str::from_utf8(xml).map_err(|_| wrong("ova.xml is not UTF-8".into()))?;
    let all = xmlrpc::parse_value(text).map_err(|error| wrong(format!("ova.xml: {error}")))?;
    let version = all["version"]["export_vsn"].as_str().and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    if version > 2 {
        return Err(Failure::new("IMPORT_INCOMPATIBLE_VERSION", [""; 0]));
    }
    let objects = all["objects"].as_array().ok_or_else(|| wrong("ova.xml holds no objects".into()))?;
    objects
        .iter()
        .map(|object| {
            Some(Object {
                class: object["class"].as_str()?.to_owned(),
                id: object["id"].as_str()?.to_owned(),
                record: object["snapshot"].as_object()?.clone(),
            })
        })
        .collect::<Option<_>>()
        .ok_or_else(|| wrong("an object of ova.xml lacks class, id or snapshot".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_with_names_instead_of_references() {
        let mut store = Store::new();
        let sr = store.create("SR", json!({ "name_label": "s" }));
        let vm = store.create("VM", json!({ "name_label": "a <b>", "is_a_snapshot": true, "memory_static_max": 5 }));
        let vdi = store.create("VDI", json!({ "SR": sr, "virtual_size": 7 }));
        store.create("VBD", json!({ "VM": vm, "VDI": vdi }));
        store.create("VBD", json!({ "VM": vm, "type": "CD", "empty": true }));
        let manifest = write(&store, &vm, "host").unwrap();
        let objects = read(manifest.xml.as_bytes()).unwrap();
        let classes: Vec<_> = objects.iter().map(|object| object.class.as_str()).collect();
        assert_eq!(classes, ["VM", "VBD", "VDI", "SR"]);
        assert_eq!(objects[0].record["name_label"], "a <b>");
        assert_eq!(objects[0].record["is_a_snapshot"], false);
        assert_eq!(objects[1].record["VDI"], "Ref:2");
        assert_eq!(manifest.disks, [("Ref:2".to_owned(), vdi)]);
        assert!(!manifest.xml.contains("OpaqueRef:0") && !manifest.xml.contains(&sr));
    }

    #[test]
    fn nonsense_is_an_import_error() {
        for text in ["", "<value/>", "<value><struct></struct></value>"] {
            assert_eq!(read(text.as_bytes()).unwrap_err().code, "IMPORT_ERROR");
        }
        assert_eq!(read(b"\xff").unwrap_err().code, "IMPORT_ERROR");
    }
}
