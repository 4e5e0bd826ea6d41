//! The pool's database: records by class and reference, links between them, and what changed when.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::record::{self, NULL};

/// A record: all fields of its class, always.
pub(crate) type Record = Map<String, Value>;

/// A forward reference and the set that mirrors it: (class, field, target class, field of the target).
const LINKS: &[(&str, &str, &str, &str)] = &[
    ("VBD", "VM", "VM", "VBDs"),
    ("VBD", "VDI", "VDI", "VBDs"),
    ("VDI", "SR", "SR", "VDIs"),
    ("VDI", "snapshot_of", "VDI", "snapshots"),
    ("VIF", "VM", "VM", "VIFs"),
    ("VIF", "network", "network", "VIFs"),
    ("VM", "snapshot_of", "VM", "snapshots"),
    ("VM", "parent", "VM", "children"),
    ("VM", "resident_on", "host", "resident_VMs"),
    ("VTPM", "VM", "VM", "VTPMs"),
    ("VUSB", "VM", "VM", "VUSBs"),
    ("PIF", "network", "network", "PIFs"),
    ("PIF", "host", "host", "PIFs"),
    ("PBD", "SR", "SR", "PBDs"),
    ("PBD", "host", "host", "PBDs"),
    ("task", "subtask_of", "task", "subtasks"),
];

/// Whether a field is a set that only mirrors references elsewhere.
pub(crate) fn is_mirrored(class: &str, field: &str) -> bool {
    LINKS.iter().any(|link| (link.2, link.3) == (class, field))
}

/// How many deletions are remembered; a client with an older token has lost events.
const DELETIONS: usize = 20_000;

struct Entry {
    created: u64,
    modified: u64,
    record: Record,
}

/// An object that is gone.
pub(crate) struct Deletion {
    pub class: &'static str,
    pub reference: String,
    pub created: u64,
    pub deleted: u64,
}

/// An object that a subscriber has to hear of.
pub(crate) struct Touched<'a> {
    pub class: &'static str,
    pub reference: &'a str,
    pub created: u64,
    pub modified: u64,
    pub record: &'a Record,
}

/// All records of a pool.
pub(crate) struct Store {
    tables: BTreeMap<&'static str, HashMap<String, Entry>>,
    /// UUID to (class, reference): clients look things up by UUID all the time.
    uuids: HashMap<String, (&'static str, String)>,
    deletions: VecDeque<Deletion>,
    forgotten: u64,
    generation: u64,
    durable: u64,
}

impl Store {
    /// An empty database with all classes.
    pub fn new() -> Self {
        Self {
            tables: record::CLASSES.iter().map(|class| (*class, HashMap::new())).collect(),
            uuids: HashMap::new(),
            deletions: VecDeque::new(),
            forgotten: 0,
            generation: 1,
            durable: 1,
        }
    }

    /// Counts every change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The generation of the last change that outlives a restart.
    pub fn durable_generation(&self) -> u64 {
        self.durable
    }

    /// One more change.
    fn step(&mut self, class: &str) -> u64 {
        self.generation += 1;
        if class != "task" {
            self.durable = self.generation;
        }
        self.generation
    }

    fn table(&self, class: &str) -> &HashMap<String, Entry> {
        self.tables.get(class).expect("callers name classes of record::CLASSES only")
    }

    fn entry(&mut self, class: &str, reference: &str) -> Result<&mut Entry, Failure> {
        self.tables
            .get_mut(class)
            .and_then(|table| table.get_mut(reference))
            .ok_or_else(|| Failure::handle_invalid(class, reference))
    }

    /// The record, or `HANDLE_INVALID`.
    pub fn get(&self, class: &str, reference: &str) -> Result<&Record, Failure> {
        self.table(class).get(reference).map(|entry| &entry.record).ok_or_else(|| Failure::handle_invalid(class, reference))
    }

    /// Whether the object exists.
    pub fn has(&self, class: &str, reference: &str) -> bool {
        self.table(class).contains_key(reference)
    }

    /// A text field of a record; empty when the field is none.
    pub fn text(&self, class: &str, reference: &str, field: &str) -> Result<String, Failure> {
        Ok(self.get(class, reference)?.get(field).and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// A boolean field of a record.
    pub fn flag(&self, class: &str, reference: &str, field: &str) -> Result<bool, Failure> {
        Ok(self.get(class, reference)?.get(field).and_then(Value::as_bool).unwrap_or_default())
    }

    /// The references in a set field of a record.
    pub fn refs(&self, class: &str, reference: &str, field: &str) -> Result<Vec<String>, Failure> {
        Ok(strings(self.get(class, reference)?.get(field)))
    }

    /// Reference of the object with that UUID, or `UUID_INVALID`.
    pub fn by_uuid(&self, class: &str, uuid: &str) -> Result<String, Failure> {
        match self.uuids.get(&uuid.to_ascii_lowercase()) {
            Some((found, reference)) if *found == class => Ok(reference.clone()),
            _ => Err(Failure::new("UUID_INVALID", [class, uuid])),
        }
    }

    /// All references of a class with their records, in no order.
    pub fn all(&self, class: &str) -> impl Iterator<Item = (&str, &Record)> {
        self.table(class).iter().map(|(reference, entry)| (reference.as_str(), &entry.record))
    }

    /// How many objects of a class there are.
    pub fn count(&self, class: &str) -> usize {
        self.table(class).len()
    }

    /// Adds an object: the fields given, over those every record of its class has. A `uuid` is made when none is given.
    pub fn insert(&mut self, class: &'static str, reference: &str, fields: Value) {
        let mut record = record::template(class).clone();
        if let Value::Object(fields) = fields {
            for (field, value) in fields {
                debug_assert!(record.contains_key(&field), "{class} has no field {field}");
                record.insert(field, value);
            }
        }
        if record["uuid"].as_str() == Some("") {
            record.insert("uuid".into(), uuid::Uuid::new_v4().to_string().into());
        }
        let generation = self.step(class);
        if let Some(uuid) = record["uuid"].as_str() {
            self.uuids.insert(uuid.to_owned(), (class, reference.to_owned()));
        }
        let links: Vec<_> = forward(class, &record);
        let table = self.tables.get_mut(class).expect("callers name classes of record::CLASSES only");
        table.insert(reference.to_owned(), Entry { created: generation, modified: generation, record });
        for (target_class, target, field) in links {
            self.link(target_class, &target, field, reference, true);
        }
    }

    /// Adds an object under a new reference, which it gives.
    pub fn create(&mut self, class: &'static str, fields: Value) -> String {
        let reference = format!("OpaqueRef:{}", uuid::Uuid::new_v4());
        self.insert(class, &reference, fields);
        reference
    }

    /// Sets a field; nothing is announced when it already has that value.
    pub fn set(&mut self, class: &'static str, reference: &str, field: &str, value: impl Into<Value>) -> Result<(), Failure> {
        let value = value.into();
        self.edit(class, reference, field, |old| *old = value)
    }

    /// Changes a field in place, and the links that hang on it.
    pub fn edit(
        &mut self,
        class: &'static str,
        reference: &str,
        field: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), Failure> {
        let next = self.generation + 1;
        let entry = self.entry(class, reference)?;
        let slot = entry.record.get_mut(field).ok_or_else(|| Failure::field_type(field))?;
        let before = slot.clone();
        change(slot);
        if *slot == before {
            return Ok(());
        }
        let after = slot.clone();
        entry.modified = next;
        self.step(class);
        if let Some((_, _, target_class, back)) = LINKS.iter().find(|link| (link.0, link.1) == (class, field)) {
            if let Some(old) = before.as_str() {
                self.link(target_class, old, back, reference, false);
            }
            if let Some(new) = after.as_str() {
                self.link(target_class, new, back, reference, true);
            }
        }
        Ok(())
    }

    /// Announces an object again although nothing changed.
    pub fn touch(&mut self, class: &str, reference: &str) -> Result<(), Failure> {
        let next = self.generation + 1;
        self.entry(class, reference)?.modified = next;
        self.step(class);
        Ok(())
    }

    /// Removes an object and its place in the sets of others. References to it stay, as in a real pool.
    pub fn remove(&mut self, class: &'static str, reference: &str) -> Option<Record> {
        let entry = self.tables.get_mut(class)?.remove(reference)?;
        self.step(class);
        if let Some(uuid) = entry.record["uuid"].as_str() {
            self.uuids.remove(uuid);
        }
        self.deletions.push_back(Deletion {
            class,
            reference: reference.to_owned(),
            created: entry.created,
            deleted: self.generation,
        });
        if self.deletions.len() > DELETIONS
            && let Some(oldest) = self.deletions.pop_front()
        {
            self.forgotten = oldest.deleted;
        }
        for (target_class, target, field) in forward(class, &entry.record) {
            self.link(target_class, &target, field, reference, false);
        }
        Some(entry.record)
    }

    fn link(&mut self, class: &str, target: &str, field: &str, reference: &str, present: bool) {
        let next = self.generation + 1;
        let Ok(entry) = self.entry(class, target) else { return };
        let Some(Value::Array(set)) = entry.record.get_mut(field) else { return };
        let position = set.iter().position(|item| item.as_str() == Some(reference));
        match (position, present) {
            (None, true) => set.push(reference.into()),
            (Some(index), false) => drop(set.remove(index)),
            _ => return,
        }
        entry.modified = next;
        self.step(class);
    }

    /// Objects of the classes picked that were created or modified after a generation.
    pub fn touched_since(&self, generation: u64) -> impl Iterator<Item = Touched<'_>> {
        self.tables.iter().flat_map(move |(class, table)| {
            table.iter().filter(move |(_, entry)| entry.modified > generation).map(|(reference, entry)| Touched {
                class,
                reference,
                created: entry.created,
                modified: entry.modified,
                record: &entry.record,
            })
        })
    }

    /// Objects known at a generation and gone since; `None` when that is no longer known.
    pub fn deleted_since(&self, generation: u64) -> Option<impl Iterator<Item = &Deletion>> {
        (generation == 0 || generation >= self.forgotten)
            .then(|| self.deletions.iter().filter(move |gone| gone.deleted > generation && gone.created <= generation))
    }

    /// The names of the classes.
    pub fn classes(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.tables.keys().copied()
    }

    /// Everything that outlives a restart: all but tasks.
    pub fn to_json(&self) -> Value {
        let mut classes = Map::new();
        for (class, table) in self.tables.iter().filter(|(class, _)| **class != "task") {
            let mut ordered: Vec<_> = table.iter().collect();
            ordered.sort_by_key(|(_, entry)| entry.created);
            let records = ordered.into_iter().map(|(reference, entry)| (reference.clone(), Value::Object(entry.record.clone())));
            classes.insert((*class).to_owned(), Value::Object(records.collect()));
        }
        json!({ "generation": self.generation, "classes": classes })
    }

    /// Reads back what [`Store::to_json`] wrote; records get the fields that their class has won since.
    pub fn from_json(state: Value) -> Self {
        let mut store = Self::new();
        let Value::Object(mut state) = state else { return store };
        if let Some(Value::Object(mut classes)) = state.remove("classes") {
            for class in record::CLASSES {
                let Some(Value::Object(records)) = classes.remove(*class) else { continue };
                for (reference, fields) in records {
                    let known = record::template(class);
                    let fields = match fields {
                        Value::Object(fields) => fields.into_iter().filter(|(field, _)| known.contains_key(field)).collect(),
                        _ => continue,
                    };
                    store.insert(class, &reference, Value::Object(fields));
                }
            }
        }
        // Tokens of before the restart must not seem to lie in the future, nor in a past whose deletions are unknown.
        store.generation = store.generation.max(state.get("generation").and_then(Value::as_u64).unwrap_or(0)) + 1;
        store.forgotten = store.generation;
        store
    }
}

/// The texts of a JSON array.
pub(crate) fn strings(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn forward(class: &str, record: &Record) -> Vec<(&'static str, String, &'static str)> {
    LINKS
        .iter()
        .filter(|link| link.0 == class)
        .filter_map(|link| {
            let target = record.get(link.1)?.as_str()?;
            (target != NULL).then(|| (link.2, target.to_owned(), link.3))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_mirror_references() {
        let mut store = Store::new();
        let vm = store.create("VM", json!({}));
        let other = store.create("VM", json!({}));
        let vbd = store.create("VBD", json!({ "VM": vm }));
        assert_eq!(store.refs("VM", &vm, "VBDs").unwrap(), std::slice::from_ref(&vbd));
        store.set("VBD", &vbd, "VM", other.as_str()).unwrap();
        assert!(store.refs("VM", &vm, "VBDs").unwrap().is_empty());
        assert_eq!(store.refs("VM", &other, "VBDs").unwrap(), std::slice::from_ref(&vbd));
        store.remove("VBD", &vbd);
        assert!(store.refs("VM", &other, "VBDs").unwrap().is_empty());
    }

    #[test]
    fn changes_are_seen_once_and_short_lives_never() {
        let mut store = Store::new();
        let vm = store.create("VM", json!({}));
        let then = store.generation();
        store.set("VM", &vm, "name_label", "a").unwrap();
        store.set("VM", &vm, "name_label", "a").unwrap();
        assert_eq!(store.generation(), then + 1);
        let brief = store.create("task", json!({}));
        store.remove("task", &brief);
        assert_eq!(store.touched_since(then).map(|t| t.reference.to_owned()).collect::<Vec<_>>(), std::slice::from_ref(&vm));
        assert_eq!(store.deleted_since(then).unwrap().count(), 0);
        store.remove("VM", &vm);
        assert_eq!(store.deleted_since(then).unwrap().count(), 1);
    }

    #[test]
    fn what_is_saved_reads_back() {
        let mut store = Store::new();
        let vm = store.create("VM", json!({ "name_label": "é" }));
        store.create("task", json!({}));
        let again = Store::from_json(store.to_json());
        assert_eq!(again.get("VM", &vm).unwrap(), store.get("VM", &vm).unwrap());
        assert_eq!(again.count("task"), 0);
        assert!(again.generation() > store.generation());
        assert!(again.deleted_since(store.generation() - 1).is_none());
    }
}
