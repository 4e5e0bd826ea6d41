//! Tasks: what a pool does in the background, followed to its end and then destroyed (xapi-streams.md §1.4).

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{Client, Error, Ref, Result, TaskRecord, XapiError, parse_value};

/// A task of ours on a pool. Dropping it before its end cancels and destroys it, in the background.
#[derive(Debug)]
pub struct Task {
    client: Client,
    reference: Ref,
    what: String,
    /// Whether the pool still has it.
    there: bool,
}

/// Why a wait for a task ended without its end.
enum Missed {
    Failed(Error),
    Late(String),
}

impl Client {
    /// Starts `class.method` in the background (`Async.class.method`).
    pub async fn start(&self, method: &str, params: impl Serialize) -> Result<Task> {
        let reference: Ref = self.call(&format!("Async.{method}"), params).await?;
        Ok(Task { client: self.clone(), reference, what: method.to_owned(), there: true })
    }

    /// Calls `class.method` as a task and waits for its end: the right way for everything that takes long. The
    /// result is parsed (xapi-streams.md §1.4): `Null`, a text, an array…
    pub async fn async_call(&self, method: &str, params: impl Serialize) -> Result<Value> {
        self.start(method, params).await?.finish().await
    }

    /// Makes a task of our own, to be named to a data handler. `what` is for people: `export of web-1`.
    pub async fn create_task(&self, what: &str) -> Result<Task> {
        let reference: Ref = self.call("task.create", json!([format!("[Backhaul] {what}"), ""])).await?;
        Ok(Task { client: self.clone(), reference, what: what.to_owned(), there: true })
    }

    /// Cancels and destroys a task left over by an interrupted run; one that is gone is no error.
    pub async fn discard_task(&self, task: &Ref) -> Result<()> {
        // A task that is over, or that cannot be cancelled, is destroyed all the same.
        let _ = self.run("task.cancel", json!([task])).await;
        match self.run("task.destroy", json!([task])).await {
            Err(error) if error.is_gone() => Ok(()),
            result => result,
        }
    }
}

impl Task {
    /// Its reference, for the journal of a run.
    pub fn reference(&self) -> &Ref {
        &self.reference
    }

    /// Waits for its end, destroys it, and gives its result.
    pub async fn finish(mut self) -> Result<Value> {
        let outcome = self.wait(None).await;
        self.destroy().await;
        outcome
    }

    /// As [`Task::finish`], but a task that has no end within `limit` after `bytes` of a transfer was cut.
    pub(crate) async fn finish_within(mut self, limit: Duration, bytes: u64) -> Result<Value> {
        let outcome = self.wait(Some((limit, bytes))).await;
        if matches!(outcome, Err(Error::Cut { .. })) {
            return outcome; // dropping cancels it
        }
        self.destroy().await;
        outcome
    }

    /// The failure of the task if it fails within `limit`; to explain a broken transfer.
    pub(crate) async fn failure_within(&self, limit: Duration) -> Option<Error> {
        match self.settled(Some(limit)).await {
            Ok(record) => self.outcome(record).await.err(),
            Err(_) => None,
        }
    }

    /// Cancels and destroys it now.
    pub async fn discard(mut self) {
        self.there = false;
        if let Err(error) = self.client.discard_task(&self.reference).await {
            tracing::warn!(what = self.what, %error, "a task stays on the pool");
        }
    }

    async fn wait(&mut self, limit: Option<(Duration, u64)>) -> Result<Value> {
        match self.settled(limit.map(|(limit, _)| limit)).await {
            Ok(record) => self.outcome(record).await,
            Err(Missed::Late(status)) => {
                Err(Error::Cut { what: self.what.clone(), bytes: limit.map_or(0, |(_, bytes)| bytes), status })
            }
            Err(Missed::Failed(error)) if error.is_gone() => {
                self.there = false;
                Err(Error::TaskVanished { what: self.what.clone() })
            }
            Err(Missed::Failed(error)) => Err(error),
        }
    }

    async fn destroy(&mut self) {
        if self.there {
            self.there = false;
            let mut destroyed = self.client.run("task.destroy", json!([self.reference])).await;
            if destroyed.as_ref().is_err_and(|error| !error.is_gone()) {
                destroyed = self.client.run("task.destroy", json!([self.reference])).await;
            }
            match destroyed {
                Ok(()) => {}
                Err(error) if error.is_gone() => {}
                // The pool collects finished tasks itself after about an hour.
                Err(error) => tracing::warn!(what = self.what, %error, "a finished task stays on the pool"),
            }
        }
    }

    /// The record of the task once it has ended. The record is the truth; events only shorten the wait for it, so a
    /// server without events, or one that loses them, costs time and nothing else.
    async fn settled(&self, limit: Option<Duration>) -> Result<TaskRecord, Missed> {
        let timing = self.client.timing();
        let begin = Instant::now();
        let useless = &self.client.inner.events_useless;
        let (mut token, mut silent, mut pause) = (String::new(), false, timing.poll_first);
        let class = format!("task/{}", self.reference);
        loop {
            let record = self.client.get::<TaskRecord>(&self.reference).await.map_err(Missed::Failed)?;
            if !matches!(record.status.as_str(), "pending" | "cancelling") {
                if silent {
                    // The end came without an event: this server tells nothing about single tasks.
                    useless.store(true, Ordering::Relaxed);
                }
                return Ok((*record).clone());
            }
            let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
            if left == Some(Duration::ZERO) {
                return Err(Missed::Late(record.status.clone()));
            }
            let round = Instant::now();
            if !useless.load(Ordering::Relaxed) {
                let wait = timing.event_wait.min(left.unwrap_or(timing.event_wait));
                match self.client.event_from(&[&class], &token, wait).await {
                    Ok(batch) => {
                        silent = batch.events.is_empty() && round.elapsed() >= wait;
                        token = batch.token;
                    }
                    Err(error) if error.is("EVENTS_LOST") || error.is("EVENT_FROM_TOKEN_PARSE_FAILURE") => token.clear(),
                    Err(error) if error.failure().is_some() => useless.store(true, Ordering::Relaxed),
                    Err(error) => tracing::debug!(%error, "waiting for a task without events"),
                }
            }
            let rest = pause.saturating_sub(round.elapsed());
            tokio::time::sleep(rest.min(left.unwrap_or(rest))).await;
            pause = (pause * 3 / 2).min(timing.poll_most);
        }
    }

    async fn outcome(&self, record: TaskRecord) -> Result<Value> {
        match record.status.as_str() {
            "success" => parse_value(&record.result).map_err(|error| Error::Malformed {
                what: self.what.clone(),
                reason: format!("the result of its task is no XML-RPC value ({error})"),
            }),
            status => {
                let mut info = record.error_info.into_iter();
                let mut failure = match (info.next(), status) {
                    (Some(code), _) => XapiError::new(code, info.collect()),
                    (None, "cancelled") => XapiError::new("TASK_CANCELLED", vec![self.reference.to_string()]),
                    (None, _) => XapiError::new("INTERNAL_ERROR", vec![format!("its task ended as {status} without a reason")]),
                };
                if let Some(secret) = self.client.present_secret().await {
                    failure.params.iter_mut().for_each(|param| *param = crate::rpc::hide(param, &secret));
                }
                Err(self.client.api_error(&self.what, failure))
            }
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.there {
            let (client, reference, what) = (self.client.clone(), self.reference.clone(), std::mem::take(&mut self.what));
            self.client.in_background(async move {
                if let Err(error) = client.discard_task(&reference).await {
                    tracing::warn!(what, %error, "a task stays on the pool");
                }
            });
        }
    }
}
