//! Fields that follow from other records, as a pool reckons them: what is taken of its storage, what is free of its hosts'
//! memory.

use std::collections::HashMap;

use serde_json::Value;

use crate::failure::Failure;
use crate::store::{Record, Store};

/// In `other_config` of a storage repository: bytes that are taken by what the pool knows nothing of.
pub(crate) const TAKEN: &str = "lab:taken";

/// Whether disks on that storage take all of their size at once.
pub(crate) fn is_thick(sr: &Record) -> bool {
    sr["type"].as_str().is_some_and(|kind| kind.starts_with("lvm"))
}

fn number(record: &Record, field: &str) -> u64 {
    record[field].as_u64().unwrap_or(0)
}

/// Brings them up to date.
pub(crate) fn reckon(store: &mut Store) {
    let mut news: Vec<(&'static str, String, &'static str, u64)> = Vec::new();
    let mut on: HashMap<&str, Vec<&Record>> = HashMap::new();
    for (_, vdi) in store.all("VDI") {
        on.entry(vdi["SR"].as_str().unwrap_or_default()).or_default().push(vdi);
    }
    for (reference, sr) in store.all("SR").filter(|(_, sr)| sr["content_type"] != "iso") {
        let vdis = on.get(reference).map(Vec::as_slice).unwrap_or_default();
        let thick = is_thick(sr);
        let taken = |vdi: &&Record| match thick && vdi["is_a_snapshot"] == false {
            true => number(vdi, "virtual_size"),
            false => number(vdi, "physical_utilisation"),
        };
        let others = sr["other_config"].get(TAKEN).and_then(Value::as_str).and_then(|text| text.parse().ok()).unwrap_or(0);
        news.push(("SR", reference.to_owned(), "physical_utilisation", vdis.iter().map(taken).sum::<u64>() + others));
        let allocated = vdis.iter().map(|vdi| number(vdi, "virtual_size")).sum();
        news.push(("SR", reference.to_owned(), "virtual_allocation", allocated));
    }
    for (reference, host) in store.all("host") {
        let Some(metrics) = host["metrics"].as_str() else { continue };
        let Ok(record) = store.get("host_metrics", metrics) else { continue };
        let running = store.all("VM").filter(|(_, vm)| vm["resident_on"].as_str() == Some(reference));
        let used: u64 = running.map(|(_, vm)| number(vm, "memory_static_max")).sum();
        news.push(("host_metrics", metrics.to_owned(), "memory_free", number(record, "memory_total").saturating_sub(used)));
    }
    for (class, reference, field, value) in news {
        let known = store.set(class, &reference, field, value);
        debug_assert!(known.is_ok());
    }
}

/// Bytes that are free on a storage repository; all there are for one without a size.
pub(crate) fn free(store: &Store, sr: &str) -> Result<u64, Failure> {
    let sr = store.get("SR", sr)?;
    match number(sr, "physical_size") {
        0 => Ok(u64::MAX),
        size => Ok(size.saturating_sub(number(sr, "physical_utilisation"))),
    }
}

/// What a storage repository says that has no room.
pub(crate) fn no_room() -> Failure {
    Failure::new("SR_BACKEND_FAILURE_44", ["", "There is insufficient space", ""])
}

/// Refuses what does not fit: all of it on thick storage, a first block on thin.
pub(crate) fn check_room(store: &Store, sr: &str, bytes: u64) -> Result<(), Failure> {
    let needed = if is_thick(store.get("SR", sr)?) { bytes } else { bytes.min(2 << 20) };
    if free(store, sr)? < needed { Err(no_room()) } else { Ok(()) }
}

/// The first of those hosts with so much memory free.
///
/// # Errors
/// `HOST_NOT_ENOUGH_FREE_MEMORY` with what is needed and the most there is, bytes.
pub(crate) fn host_with_room(store: &Store, hosts: &[String], bytes: u64) -> Result<String, Failure> {
    let mut most = 0;
    for host in hosts {
        let record = store.get("host", host)?;
        let metrics = store.get("host_metrics", record["metrics"].as_str().unwrap_or_default())?;
        let free = number(metrics, "memory_free");
        if record["enabled"] == true && free >= bytes {
            return Ok(host.clone());
        }
        most = most.max(free);
    }
    Err(Failure::new("HOST_NOT_ENOUGH_FREE_MEMORY", [bytes.to_string(), most.to_string()]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn thick_storage_counts_sizes_and_thin_storage_what_is_written() {
        let mut store = Store::new();
        let sr = |store: &mut Store, kind: &str| {
            let fields = json!({ "type": kind, "physical_size": 100, "other_config": { TAKEN: "10" } });
            let sr = store.create("SR", fields);
            store.create("VDI", json!({ "SR": sr, "virtual_size": 40, "physical_utilisation": 5 }));
            sr
        };
        let (thick, thin) = (sr(&mut store, "lvmoiscsi"), sr(&mut store, "nfs"));
        reckon(&mut store);
        assert_eq!((free(&store, &thick).unwrap(), free(&store, &thin).unwrap()), (50, 85));
        assert_eq!(check_room(&store, &thick, 51).unwrap_err().code, "SR_BACKEND_FAILURE_44");
        check_room(&store, &thick, 50).unwrap();
        check_room(&store, &thin, 85).unwrap();
    }

    #[test]
    fn memory_is_free_that_no_running_machine_has() {
        let mut store = Store::new();
        let metrics = store.create("host_metrics", json!({ "memory_total": 100 }));
        let host = store.create("host", json!({ "metrics": metrics, "enabled": true }));
        store.create("VM", json!({ "resident_on": host, "memory_static_max": 30 }));
        store.create("VM", json!({ "memory_static_max": 30 }));
        reckon(&mut store);
        assert_eq!(host_with_room(&store, std::slice::from_ref(&host), 70).unwrap(), host);
        let refused = host_with_room(&store, &[host], 71).unwrap_err();
        assert_eq!((refused.code.as_str(), refused.params), ("HOST_NOT_ENOUGH_FREE_MEMORY", vec!["71".into(), "70".into()]));
    }
}
