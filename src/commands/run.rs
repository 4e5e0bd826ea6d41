//! `backhaul run` and `backhaul backup`.

use api::{
    IdParams, NoParams, PoolFilter, RemoteList, RestoreParams, RestorePoint, RestorePointList, RestorePointListParams,
    RestorePointRemove, RestorePointRestore, RestorePointVerify, Run, RunCancel, RunList, RunListParams, SrList, format_bytes,
};

use super::cli::{BackupCommand, RunCommand};
use super::context::{Context, Kind, Site, find, pick};
use super::failure::Failure;
use super::objects::{print_list, print_one};
use super::{output, watch};

/// `run`.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, command: RunCommand) -> Result<(), Failure> {
    match command {
        RunCommand::List { job, limit } => {
            let job = match job {
                Some(name) => {
                    let names = |job: &api::Job| [job.id.clone(), job.spec.name.clone()];
                    Some(find::<api::JobList, _>(context.sites()?, Kind::JOB, &name, &NoParams {}, names).await?.1.id)
                }
                None => None,
            };
            let mut found = context.gather::<RunList>(&RunListParams { job, limit: Some(limit), before: None }).await?;
            // Each proxy gives its newest first; together they should be so too.
            found.0.sort_by_key(|run| std::cmp::Reverse(run.item.get("queuedAt").and_then(serde_json::Value::as_i64)));
            print_list(
                context,
                found,
                &["ID", "PROXY", "KIND", "NAME", "QUEUED", "STATE", "MOVED", "ERROR"],
                |proxy, run: Run| {
                    let moved = run.summary.as_ref().map(|summary| format_bytes(summary.bytes)).unwrap_or_default();
                    let error = run.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
                    let (kind, queued, state) = (output::word(&run.kind), output::time(run.queued_at), watch::state(&run));
                    vec![run.id, proxy.to_owned(), kind, run.label, queued, state, moved, error]
                },
            )
        }
        RunCommand::Show { run } => {
            let (site, detail) = context.find_run(&run).await?;
            let kind = output::word(&detail.run.kind);
            let (id, label, state) = (&detail.run.id, &detail.run.label, watch::state(&detail.run));
            let mut text = format!("run {id} on {}: {kind} {label}, {state}", site.name);
            if context.json {
                return print_one(context, &site.name, &detail, text);
            }
            if let Some(error) = &detail.run.error {
                text.push_str(&format!(": {}", error.message));
            }
            output::line(&output::printable(&text))?;
            for task in &detail.tasks {
                let depth = depth(&detail.tasks, task.id);
                let outcome = task.outcome.map_or_else(|| output::word(&task.meter.phase), |outcome| output::word(&outcome));
                let error = task.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
                let bytes = format_bytes(task.meter.bytes_done);
                let text = format!("{} {}: {outcome}, {bytes}{error}", output::word(&task.kind), task.label);
                output::line(&format!("{}{}", "  ".repeat(depth + 1), output::printable(&text)))?;
            }
            for entry in &detail.log {
                let text = format!("{} {}: {}", output::time(entry.at), output::word(&entry.level), entry.message);
                output::line(&output::printable(&text))?;
            }
            Ok(())
        }
        RunCommand::Watch { run, from } => {
            let (site, detail) = context.find_run(&run).await?;
            let ended = detail.run.outcome.filter(|_| from >= detail.run.cursor);
            match ended {
                // Nothing is left to be told but the outcome, which the exit code owes all the same.
                Some(api::Outcome::Success) => Ok(()),
                Some(_) => Err(Failure { exit: super::Exit::Failed, report: detail.run.error }),
                None => watch::follow(context, &site, &detail.run.id, from).await,
            }
        }
        RunCommand::Cancel { run } => {
            let (site, detail) = context.find_run(&run).await?;
            let run = site.call::<RunCancel>(&IdParams { id: detail.run.id }).await?;
            let text = format!("asked run {} on proxy {} to stop", run.id, site.name);
            print_one(context, &site.name, &run, text)
        }
    }
}

fn depth(tasks: &[api::Task], id: u32) -> usize {
    let parent = |id: u32| tasks.iter().find(|task| task.id == id).and_then(|task| task.parent);
    // Bounded: what comes from outside may go in circles.
    std::iter::successors(parent(id), |id| parent(*id)).take(16).count()
}

/// `backup`.
///
/// # Errors
/// [`Failure`].
pub async fn backup(context: &Context, command: BackupCommand) -> Result<(), Failure> {
    match command {
        BackupCommand::List { vm, remote } => {
            let params = RestorePointListParams { vm, remote: remote.clone() };
            let mut found = context.gather::<RestorePointList>(&params).await?;
            if found.1.is_none() {
                found.1 = left_out(context, remote.as_deref()).await?;
            }
            found.0.sort_by_key(|point| std::cmp::Reverse(point.item.get("timestamp").and_then(serde_json::Value::as_i64)));
            print_list(
                context,
                found,
                &["VM", "PROXY", "TIME", "MODE", "SIZE", "VERIFIED", "ID"],
                |proxy, point: RestorePoint| {
                    let verified = point.verified.map(|verified| output::word(&verified.outcome)).unwrap_or_default();
                    let (mode, size) = (output::word(&point.mode), format_bytes(point.size));
                    vec![point.vm_name, proxy.to_owned(), output::time(point.timestamp), mode, size, verified, point.id]
                },
            )
        }
        BackupCommand::Restore { backup, sr, name, watch } => {
            let site = holder(context, &backup).await?;
            let srs = site.call::<SrList>(&PoolFilter::default()).await?;
            let sr = pick("SR", &sr, &srs, |sr| [&sr.uuid, &sr.name])
                .map_err(|reason| Failure::failed("NO_SUCH_OBJECT", reason).next("backhaul sr list"))?;
            let run = site.call::<RestorePointRestore>(&RestoreParams { id: backup, sr: sr.uuid.clone(), name }).await?;
            watch::started(context, &site, &run, watch).await
        }
        BackupCommand::Verify { backup, watch } => {
            let site = holder(context, &backup).await?;
            let run = site.call::<RestorePointVerify>(&IdParams { id: backup }).await?;
            watch::started(context, &site, &run, watch).await
        }
        BackupCommand::Remove { backup, watch } => {
            let site = holder(context, &backup).await?;
            let run = site.call::<RestorePointRemove>(&IdParams { id: backup }).await?;
            watch::started(context, &site, &run, watch).await
        }
    }
}

/// Tells of the remotes that do not answer, whose restore points a list leaves out, and how it must end for it.
async fn left_out(context: &Context, only: Option<&str>) -> Result<Option<Failure>, Failure> {
    let (remotes, _) = context.gather::<RemoteList>(&NoParams {}).await?;
    let mut away = None;
    for found in remotes {
        let Ok(remote) = serde_json::from_value::<api::Remote>(found.item) else { continue };
        let meant = only.is_none_or(|only| remote.id == only || remote.name == only);
        if let Some(report) = remote.error.filter(|_| meant) {
            output::error(&report, context.json);
            away = Some(Failure::silent(super::Exit::Failed));
        }
    }
    Ok(away)
}

/// The proxy that has the remote a restore point lies on: its id begins with the remote's.
async fn holder(context: &Context, point: &str) -> Result<Site, Failure> {
    let Some((remote, _)) = point.split_once('/') else {
        return Err(Failure::usage(format!("{point:?} is no id of a restore point")).next("backhaul backup list"));
    };
    let names = |remote: &api::Remote| [remote.id.clone(), remote.id.clone()];
    Ok(find::<RemoteList, _>(context.sites()?, Kind::REMOTE, remote, &NoParams {}, names).await?.0)
}
