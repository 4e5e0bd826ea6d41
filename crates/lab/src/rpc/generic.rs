//! What every class has: its records, the accessors of its fields, lookups by UUID and name.

use serde_json::{Map, Value};

use super::{Args, Context};
use crate::failure::{Answer, Failure};
use crate::record::{self, CLASSES};

/// Fields that clients may not set directly; they change through methods.
const READ_ONLY: &[&str] = &[
    "uuid",
    "allowed_operations",
    "current_operations",
    "power_state",
    "VBDs",
    "VIFs",
    "VDIs",
    "snapshots",
    "snapshot_of",
    "snapshot_time",
    "is_a_snapshot",
    "is_control_domain",
    "currently_attached",
    "resident_on",
    "children",
    "VTPMs",
    "cbt_enabled",
    "metrics",
    "guest_metrics",
    "created",
    "finished",
    "type",
    "location",
    "PBDs",
    "PIFs",
];

/// Answers a generic method; `None` when it is none.
pub(crate) fn call(context: &Context<'_>, class: &'static str, method: &str, args: &Args<'_>) -> Option<Answer> {
    if !CLASSES.contains(&class) {
        return None;
    }
    Some(match method {
        "get_all" => all(context, class, args),
        "get_all_records" => all_records(context, class, args),
        "get_all_records_where" => all_records(context, class, args),
        "get_record" => record(context, class, args),
        "get_by_uuid" => {
            args.exactly(1).and_then(|()| context.pool.db.with(|store| store.by_uuid(class, args.text(0)?)).map(Value::from))
        }
        "get_by_name_label" => by_name(context, class, args),
        _ => return accessor(context, class, method, args),
    })
}

fn all(context: &Context<'_>, class: &str, args: &Args<'_>) -> Answer {
    args.exactly(0)?;
    Ok(context.pool.db.with(|store| store.all(class).map(|(reference, _)| Value::from(reference)).collect()))
}

fn all_records(context: &Context<'_>, class: &str, args: &Args<'_>) -> Answer {
    // The condition of `…_where` is answered by everything, which is what "true" asks for; others are for xe alone.
    args.between(0, 1)?;
    let records: Map<_, _> = context.pool.db.with(|store| {
        store.all(class).map(|(reference, record)| (reference.to_owned(), Value::Object(record.clone()))).collect()
    });
    Ok(Value::Object(records))
}

fn record(context: &Context<'_>, class: &str, args: &Args<'_>) -> Answer {
    args.exactly(1)?;
    context.pool.db.with(|store| store.get(class, args.text(0)?).map(|record| Value::Object(record.clone())))
}

fn by_name(context: &Context<'_>, class: &str, args: &Args<'_>) -> Answer {
    args.exactly(1)?;
    let name = args.text(0)?;
    let named = |record: &Map<String, Value>| record.get("name_label").and_then(Value::as_str) == Some(name);
    Ok(context.pool.db.with(|store| {
        store.all(class).filter(|(_, record)| named(record)).map(|(reference, _)| Value::from(reference)).collect()
    }))
}

fn accessor(context: &Context<'_>, class: &'static str, method: &str, args: &Args<'_>) -> Option<Answer> {
    let template = record::template(class);
    let is = |field: &str, kind: fn(&Value) -> bool| template.get(field).is_some_and(kind);
    if let Some(field) = method.strip_prefix("get_").filter(|field| template.contains_key(*field)) {
        return Some(get(context, class, field, args));
    }
    if let Some(field) = method.strip_prefix("set_").filter(|field| is(field, |_| true) && !READ_ONLY.contains(field)) {
        return Some(set(context, class, field, &template[field], args));
    }
    if let Some(field) = method.strip_prefix("add_to_").filter(|field| is(field, Value::is_object)) {
        return Some(add_to(context, class, field, args));
    }
    if let Some(field) = method.strip_prefix("remove_from_").filter(|field| is(field, Value::is_object)) {
        return Some(remove_from(context, class, field, args));
    }
    if let Some(field) = method.strip_prefix("add_").filter(|field| is(field, Value::is_array)) {
        return Some(add(context, class, field, args));
    }
    if let Some(field) = method.strip_prefix("remove_").filter(|field| is(field, Value::is_array)) {
        return Some(remove(context, class, field, args));
    }
    None
}

fn get(context: &Context<'_>, class: &str, field: &str, args: &Args<'_>) -> Answer {
    args.exactly(1)?;
    context.pool.db.with(|store| Ok(store.get(class, args.text(0)?)?[field].clone()))
}

fn set(context: &Context<'_>, class: &'static str, field: &str, kind: &Value, args: &Args<'_>) -> Answer {
    args.exactly(2)?;
    let value = record::coerce(kind, args.value(1)?.clone()).ok_or_else(|| Failure::field_type(field))?;
    context.pool.db.with(|store| store.set(class, args.text(0)?, field, value))?;
    Ok("".into())
}

fn add_to(context: &Context<'_>, class: &'static str, field: &str, args: &Args<'_>) -> Answer {
    args.exactly(3)?;
    let (reference, key, value) = (args.text(0)?, args.text(1)?, args.value(2)?.clone());
    let value = match value {
        Value::String(_) => value,
        Value::Number(_) | Value::Bool(_) => value.to_string().into(),
        _ => return Err(Failure::field_type(field)),
    };
    context.pool.db.with(|store| {
        if store.get(class, reference)?.get(field).and_then(|map| map.get(key)).is_some() {
            return Err(Failure::new("MAP_DUPLICATE_KEY", [class, field, reference, key]));
        }
        store.edit(class, reference, field, |map| {
            if let Value::Object(map) = map {
                map.insert(key.to_owned(), value);
            }
        })
    })?;
    Ok("".into())
}

fn remove_from(context: &Context<'_>, class: &'static str, field: &str, args: &Args<'_>) -> Answer {
    args.exactly(2)?;
    let key = args.text(1)?;
    context.pool.db.with(|store| {
        store.edit(class, args.text(0)?, field, |map| {
            if let Value::Object(map) = map {
                map.shift_remove(key);
            }
        })
    })?;
    Ok("".into())
}

fn add(context: &Context<'_>, class: &'static str, field: &str, args: &Args<'_>) -> Answer {
    args.exactly(2)?;
    let value = args.value(1)?;
    context.pool.db.with(|store| {
        store.edit(class, args.text(0)?, field, |set| {
            if let Value::Array(set) = set
                && !set.contains(value)
            {
                set.push(value.clone());
            }
        })
    })?;
    Ok("".into())
}

fn remove(context: &Context<'_>, class: &'static str, field: &str, args: &Args<'_>) -> Answer {
    args.exactly(2)?;
    let value = args.value(1)?;
    context.pool.db.with(|store| {
        store.edit(class, args.text(0)?, field, |set| {
            if let Value::Array(set) = set {
                set.retain(|item| item != value);
            }
        })
    })?;
    Ok("".into())
}
