//! All records of a pool as they are, to be compared with those of another time: whoever worked on it and failed must have
//! left it as it was.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::record::DATES;
use crate::store::{Store, is_mirrored};

/// The records of a pool by class and reference, without what changes by itself: dates, numbers of domains, and the sets
/// that only mirror what stands elsewhere. What a guest reports stands with its machine, for its record is a new one after
/// each start. A disk that is still attached for a transfer is left to its disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dump(BTreeMap<String, BTreeMap<String, Value>>);

impl Dump {
    /// Of a database.
    pub(crate) fn of(store: &Store) -> Self {
        let mut classes: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
        for class in store.classes().filter(|class| *class != "VM_guest_metrics") {
            for (reference, record) in store.all(class) {
                if class == "VBD" && record["other_config"]["owner"] == "backhaul-lab" {
                    continue;
                }
                let mut record: Map<String, Value> = record.iter().map(|(field, value)| (field.clone(), value.clone())).collect();
                record.retain(|field, _| !DATES.contains(&field.as_str()) && field != "domid" && !is_mirrored(class, field));
                if class == "VM" {
                    let guest = record["guest_metrics"].as_str().and_then(|guest| store.get("VM_guest_metrics", guest).ok());
                    let reported = guest.map_or(Value::Null, |guest| json!({ "networks": guest["networks"] }));
                    record.insert("guest_metrics".into(), reported);
                }
                classes.entry(class.to_owned()).or_default().insert(reference.to_owned(), Value::Object(record));
            }
        }
        Self(classes)
    }

    /// What is different in `now`, a line each; nothing when nothing is.
    pub fn difference(&self, now: &Self) -> Vec<String> {
        let none = BTreeMap::new();
        let mut lines = Vec::new();
        for class in self.0.keys().chain(now.0.keys()).collect::<BTreeSet<_>>() {
            let (before, after) = (self.0.get(class).unwrap_or(&none), now.0.get(class).unwrap_or(&none));
            for reference in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
                match (before.get(reference), after.get(reference)) {
                    (Some(before), Some(after)) => lines.extend(changes(class, reference, before, after)),
                    (Some(gone), None) => lines.push(format!("{class} {reference} {} is gone", gone["name_label"])),
                    (None, Some(new)) => lines.push(format!("{class} {reference} is new: {new}")),
                    (None, None) => {}
                }
            }
        }
        lines
    }
}

fn changes(class: &str, reference: &str, before: &Value, after: &Value) -> Vec<String> {
    let fields = before.as_object().into_iter().flatten().filter(|(field, value)| after[field.as_str()] != **value);
    fields.map(|(field, value)| format!("{class} {reference} {field}: {value} became {}", after[field.as_str()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_went_or_changed_is_told_and_what_changes_by_itself_is_not() {
        let mut store = Store::new();
        let vm = store.create("VM", json!({ "name_label": "a" }));
        let vbd = store.create("VBD", json!({ "VM": vm }));
        let before = Dump::of(&store);
        assert_eq!(before.difference(&before), [] as [String; 0]);
        store.set("VM", &vm, "domid", 7).unwrap();
        store.create("VBD", json!({ "VM": vm, "other_config": { "owner": "backhaul-lab" } }));
        assert_eq!(before.difference(&Dump::of(&store)), [] as [String; 0]);
        let guest = store.create("VM_guest_metrics", json!({ "networks": { "0/ip": "10.0.0.1" } }));
        store.set("VM", &vm, "guest_metrics", guest).unwrap();
        store.remove("VBD", &vbd);
        store.create("task", json!({ "name_label": "import" }));
        let lines = before.difference(&Dump::of(&store));
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].contains("is gone") && lines[1].contains("10.0.0.1") && lines[2].contains("import"), "{lines:?}");
    }
}
