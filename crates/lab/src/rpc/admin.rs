//! The lab's own methods, `lab.*`, on the same port as the API but apart from it: their first parameter is the pool's
//! password, not a session, so they work whatever fault is on.
//!
//! | method | parameters after the password | answer |
//! | --- | --- | --- |
//! | `lab.set_fault` | a fault, for example `{"kind": "cut_export", "after_bytes": 1048576, "count": 1}` | nothing |
//! | `lab.clear_faults` | | nothing |
//! | `lab.list_faults` | | the faults that are on |
//! | `lab.mutate` | name or UUID of a VM, percent of the blocks of each disk | bytes changed, by disk |
//! | `lab.write_rate` | bytes a second that each running VM writes | nothing |
//! | `lab.vms` | | `[{"uuid", "name", "power_state", "disks": [{"vdi", "name", "path", "bytes"}]}]` |
//! | `lab.dump` | | all records, to be compared with those of another time: a [`crate::Dump`] |
//! | `lab.drop_sessions` | | nothing: all sessions end |

use std::sync::Arc;

use serde_json::{Value, json};

use super::Args;
use crate::dump::Dump;
use crate::failure::{Answer, Failure};
use crate::fault::FaultSpec;
use crate::inventory;
use crate::pool::Pool;
use crate::rpc::session::password_is_right;
use crate::writer;

/// Answers one of them.
pub(super) async fn call(pool: &Arc<Pool>, method: &str, mut params: Vec<Value>) -> Answer {
    let full = format!("lab.{method}");
    let allowed =
        params.first().and_then(Value::as_str).is_some_and(|password| password_is_right(pool, &pool.identity.username, password));
    if !allowed {
        return Err(Failure::new(
            "SESSION_AUTHENTICATION_FAILED",
            ["lab", "the first parameter of lab.* is the pool's password"],
        ));
    }
    params.remove(0);
    let args = Args::new(&full, params);
    match method {
        "set_fault" => {
            args.exactly(1)?;
            let spec: FaultSpec = serde_json::from_value(args.value(0)?.clone())
                .map_err(|error| Failure::new("INVALID_VALUE", ["fault", &error.to_string()]))?;
            pool.faults.set(spec);
            pool.faults_changed();
            Ok("".into())
        }
        "clear_faults" => {
            args.exactly(0)?;
            pool.faults.clear();
            pool.faults_changed();
            Ok("".into())
        }
        "list_faults" => {
            args.exactly(0)?;
            serde_json::to_value(pool.faults.list()).map_err(|error| Failure::internal(error.to_string()))
        }
        "mutate" => {
            args.exactly(2)?;
            let (pool, name, percent) = (Arc::clone(pool), args.text(0)?.to_owned(), args.float(1)?);
            let change = move || {
                let vm = inventory::find_vm(&pool, &name).ok_or_else(|| Failure::new("UUID_INVALID", ["VM", &name]))?;
                writer::mutate(&pool, &vm, percent)
            };
            let changed = tokio::task::spawn_blocking(change).await.map_err(|error| Failure::internal(error.to_string()))??;
            Ok(changed.into_iter().map(|disk| json!({ "vdi": disk.vdi, "bytes": disk.bytes })).collect())
        }
        "write_rate" => {
            args.exactly(1)?;
            pool.write_rate.send_replace(u64::try_from(args.integer(0)?).unwrap_or(0));
            Ok("".into())
        }
        "vms" => {
            args.exactly(0)?;
            serde_json::to_value(inventory::vms(pool)).map_err(|error| Failure::internal(error.to_string()))
        }
        "dump" => {
            args.exactly(0)?;
            let dump = pool.db.with(|store| Dump::of(store));
            serde_json::to_value(dump).map_err(|error| Failure::internal(error.to_string()))
        }
        "drop_sessions" => {
            args.exactly(0)?;
            pool.sessions.close_all();
            Ok("".into())
        }
        _ => Err(Failure::unknown_method(&full)),
    }
}
