//! Tasks: what runs, how far it is, and how it ended (xapi-streams.md §1.4).

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Args, Context};
use crate::failure::{Answer, Failure};
use crate::pool::Pool;
use crate::record;

/// A task of the pool's own, pending until it is settled.
pub(crate) struct Task {
    pool: Arc<Pool>,
    reference: String,
    cancel: CancellationToken,
}

impl Task {
    /// A new task.
    pub fn create(pool: &Arc<Pool>, label: &str, description: &str) -> Self {
        let reference = create(pool, label, description);
        Self::adopt(pool, &reference)
    }

    /// A task that a client created for what now runs.
    pub fn adopt(pool: &Arc<Pool>, reference: &str) -> Self {
        Self { pool: Arc::clone(pool), reference: reference.to_owned(), cancel: pool.cancellable(reference) }
    }

    /// Its reference.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Triggered when somebody cancels it.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// How far it is, 0 to 1. Small steps are not announced.
    pub fn progress(&self, share: f64) {
        let share = share.clamp(0.0, 1.0);
        let _gone = self.pool.db.with(|store| {
            let before = store.get("task", &self.reference)?.get("progress").and_then(Value::as_f64).unwrap_or(0.0);
            if share - before >= 0.01 { store.set("task", &self.reference, "progress", share) } else { Ok(()) }
        });
    }

    /// Ends it: with a result in XML, or a failure.
    pub fn settle(self, end: Result<String, Failure>) {
        self.pool.forget_cancellable(&self.reference);
        let end = if self.cancel.is_cancelled() && end.is_err() {
            Err(Failure::new("TASK_CANCELLED", [self.reference.as_str()]))
        } else {
            end
        };
        finish(&self.pool, &self.reference, end);
    }

    /// Leaves it pending for ever.
    pub fn abandon(self) {
        self.pool.forget_cancellable(&self.reference);
    }

    /// Makes it vanish.
    pub fn vanish(self) {
        self.pool.forget_cancellable(&self.reference);
        self.pool.db.with(|store| store.remove("task", &self.reference));
    }
}

/// Ends a task that is still pending. One whose destruction was asked for meanwhile goes now.
pub(crate) fn finish(pool: &Pool, reference: &str, end: Result<String, Failure>) {
    let _gone = pool.db.with(|store| {
        let pending = store.text("task", reference, "status")?;
        if pending != "pending" && pending != "cancelling" {
            return Ok::<_, Failure>(());
        }
        store.set("task", reference, "finished", record::now())?;
        let status = match end {
            Ok(result) => {
                store.set("task", reference, "result", result)?;
                store.set("task", reference, "progress", 1.0)?;
                "success"
            }
            Err(failure) => {
                store.set("task", reference, "error_info", failure.description())?;
                if failure.code == "TASK_CANCELLED" { "cancelled" } else { "failure" }
            }
        };
        store.set("task", reference, "status", status)?;
        if store.get("task", reference)?["other_config"].get(DOOMED).is_some() {
            store.remove("task", reference);
        }
        Ok(())
    });
}

/// Marks a pending task that its client no longer wants.
const DOOMED: &str = "lab:destroy";

fn create(pool: &Pool, label: &str, description: &str) -> String {
    let host = pool.master().to_owned();
    pool.db.with(|store| {
        // XAPI keeps about 200 finished tasks; without a bound a long demonstration would grow for ever.
        if store.count("task") > 250 {
            let mut done: Vec<_> = store
                .all("task")
                .filter(|(_, task)| task["status"] != "pending" && task["status"] != "cancelling")
                .map(|(reference, task)| (task["finished"].to_string(), reference.to_owned()))
                .collect();
            done.sort();
            for (_, old) in done.into_iter().take(store.count("task").saturating_sub(200)) {
                store.remove("task", &old);
            }
        }
        store.create(
            "task",
            json!({ "name_label": label, "name_description": description, "created": record::now(), "resident_on": host }),
        )
    })
}

/// Methods of tasks.
pub(super) fn call(context: &Context<'_>, method: &str, args: &Args<'_>) -> Option<Answer> {
    let pool = context.pool;
    Some(match method {
        "create" => args.between(2, 2).and_then(|()| Ok(create(pool, args.text(0)?, args.text(1)?).into())),
        "destroy" => args.exactly(1).and_then(|()| destroy(pool, args.text(0)?)),
        "cancel" => args.exactly(1).and_then(|()| cancel(pool, args.text(0)?)),
        "set_status" => args.exactly(2).and_then(|()| set_status(pool, args.text(0)?, args.text(1)?)),
        _ => return None,
    })
}

fn destroy(pool: &Pool, task: &str) -> Answer {
    pool.db.with(|store| {
        let status = store.text("task", task, "status")?;
        let runs = pool.cancels.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains_key(task);
        if (status == "pending" || status == "cancelling") && runs {
            store.edit("task", task, "other_config", |map| map[DOOMED] = "true".into())
        } else {
            store.remove("task", task);
            Ok(())
        }
    })?;
    Ok("".into())
}

fn cancel(pool: &Pool, task: &str) -> Answer {
    let status = pool.db.with(|store| store.text("task", task, "status"))?;
    if status != "pending" {
        return Ok("".into());
    }
    if pool.cancel_task(task) {
        pool.db.with(|store| store.set("task", task, "status", "cancelling"))?;
    } else {
        finish(pool, task, Err(Failure::new("TASK_CANCELLED", [task])));
    }
    Ok("".into())
}

fn set_status(pool: &Pool, task: &str, status: &str) -> Answer {
    if !["pending", "success", "failure", "cancelling", "cancelled"].contains(&status) {
        return Err(Failure::field_type("status"));
    }
    pool.db.with(|store| {
        store.set("task", task, "status", status)?;
        if status == "success" {
            store.set("task", task, "progress", 1.0)?;
        }
        if status != "pending" && status != "cancelling" {
            store.set("task", task, "finished", record::now())?;
        }
        Ok::<_, Failure>(())
    })?;
    Ok("".into())
}
