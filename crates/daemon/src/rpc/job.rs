//! `job.*`: what to back up, checked before it is stored: the form never accepts what the run would refuse.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{IdParams, Job, JobSetEnabledParams, JobSpec, JobUpdateParams, NoParams, Run, Topic};

use super::params;
use crate::daemon::Daemon;
use crate::fault::{Fault, Invalid};
use crate::runs::Request;
use crate::schedule::{self, ScheduleError};

/// Next starts that a job shows.
const SHOWN: usize = 3;

pub async fn list(daemon: Arc<Daemon>, _: NoParams) -> Result<Vec<Job>, Fault> {
    let jobs = daemon.store.jobs().await?;
    dress(&daemon, jobs).await
}

pub async fn get(daemon: Arc<Daemon>, given: IdParams) -> Result<Job, Fault> {
    let job = find(&daemon, &given.id).await?;
    dress_one(&daemon, job).await
}

pub async fn create(daemon: Arc<Daemon>, spec: JobSpec) -> Result<Job, Fault> {
    let spec = check(&daemon, spec, None).await?;
    let id = || uuid::Uuid::new_v4().to_string();
    let job = Job { id: id(), schedule_id: id(), spec, last_run: None, next_runs: Vec::new() };
    daemon.store.add_job(&job, daemon.now()).await?;
    changed(&daemon);
    dress_one(&daemon, job).await
}

pub async fn update(daemon: Arc<Daemon>, given: JobUpdateParams) -> Result<Job, Fault> {
    let mut job = find(&daemon, &given.id).await?;
    job.spec = check(&daemon, given.spec, Some(&job)).await?;
    daemon.store.update_job(&job).await?;
    changed(&daemon);
    dress_one(&daemon, job).await
}

pub async fn set_enabled(daemon: Arc<Daemon>, given: JobSetEnabledParams) -> Result<Job, Fault> {
    let mut job = find(&daemon, &given.id).await?;
    job.spec.enabled = given.enabled;
    daemon.store.update_job(&job).await?;
    changed(&daemon);
    dress_one(&daemon, job).await
}

pub async fn remove(daemon: Arc<Daemon>, given: IdParams) -> Result<bool, Fault> {
    let job = find(&daemon, &given.id).await?;
    if let Some(run) = daemon.runs.running(&job.id) {
        let reason = format!("the job {} is running (run {}); cancel it first", job.spec.name, run.id);
        return Err(Fault::forbidden("job.remove", reason));
    }
    daemon.store.remove_job(&job.id).await?;
    changed(&daemon);
    Ok(true)
}

pub async fn run(daemon: Arc<Daemon>, given: IdParams) -> Result<Run, Fault> {
    let job = find(&daemon, &given.id).await?;
    daemon.runs.start(Request::Backup(Box::new(job))).await
}

/// The job with an id, or a name.
pub(super) async fn find(daemon: &Daemon, id: &str) -> Result<Job, Fault> {
    let jobs = daemon.store.jobs().await?;
    let found = jobs.iter().find(|job| job.id == id).or_else(|| jobs.iter().find(|job| job.spec.name == id));
    found.cloned().ok_or_else(|| Fault::missing("job", id))
}

fn changed(daemon: &Daemon) {
    daemon.schedules_changed.notify_one();
    daemon.news.changed(Topic::Jobs);
}

async fn dress(daemon: &Daemon, mut jobs: Vec<Job>) -> Result<Vec<Job>, Fault> {
    let mut last = daemon.store.last_runs().await?;
    let now = daemon.clock.now();
    for job in &mut jobs {
        let index = last.iter().position(|run| run.job.as_deref() == Some(&*job.id));
        job.last_run = index.map(|index| last.swap_remove(index));
        job.next_runs = schedule::next_runs(job, now, SHOWN);
    }
    Ok(jobs)
}

async fn dress_one(daemon: &Daemon, job: Job) -> Result<Job, Fault> {
    let id = job.id.clone();
    dress(daemon, vec![job]).await?.pop().ok_or_else(|| Fault::missing("job", id))
}

/// Checks all a person sets, and names everything that is wrong at once.
async fn check(daemon: &Daemon, mut spec: JobSpec, old: Option<&Job>) -> Result<JobSpec, Fault> {
    let mut wrong: Vec<Invalid> = Vec::new();
    let mut refuse = |name: &str, message: String| {
        wrong.push(Invalid { name: name.into(), keyword: "format", message: format!("{name}: {message}") });
    };

    spec.name = spec.name.trim().to_owned();
    if let Err(message) = params::check_name(&spec.name) {
        refuse("name", message);
    }
    let namesake = daemon.store.jobs().await?.into_iter().find(|job| job.spec.name == spec.name);
    if namesake.is_some_and(|job| old.is_none_or(|old| old.id != job.id)) {
        refuse("name", format!("another job is called {:?}", spec.name));
    }
    for (name, value, least, most) in [
        ("retention", spec.retention, 1, 10_000),
        ("concurrency", spec.concurrency, 1, 64),
        ("fullInterval", spec.full_interval, 0, 10_000),
    ] {
        if !(least..=most).contains(&value) {
            refuse(name, format!("{value} is not between {least} and {most}"));
        }
    }
    if let Some(schedule) = &spec.schedule
        && let Err(error) = schedule::preview(schedule, daemon.clock.now(), 1)
    {
        let name = if matches!(error, ScheduleError::TimeZone(_)) { "timezone" } else { "cron" };
        refuse(name, error.to_string());
    }

    if spec.remotes.is_empty() {
        refuse("remotes", "at least one is needed".into());
    }
    let mut remotes = Vec::new();
    for id in &spec.remotes {
        match daemon.remotes.find(id).await {
            Ok(remote) if !remotes.contains(&remote.id) => remotes.push(remote.id),
            Ok(_) => {}
            Err(Fault::NoSuchObject { .. }) => refuse("remotes", format!("there is no remote {id:?}")),
            Err(other) => return Err(other),
        }
    }
    spec.remotes = remotes;

    if spec.vms.is_empty() {
        refuse("vms", "at least one is needed".into());
    }
    let mut seen = BTreeSet::new();
    spec.vms = std::mem::take(&mut spec.vms).into_iter().map(|vm| vm.trim().to_lowercase()).collect();
    spec.vms.retain(|vm| seen.insert(vm.clone()));
    let no_uuids: Vec<&String> = spec.vms.iter().filter(|vm| uuid::Uuid::try_parse(vm).is_err()).collect();
    for vm in &no_uuids {
        refuse("vms", format!("{vm:?} is no uuid of a VM"));
    }
    // Pools are asked only when everything else is right, and only for VMs that are new to the job.
    if no_uuids.is_empty() {
        let fresh = |vm: &&String| old.is_none_or(|old| !old.spec.vms.contains(*vm));
        let new: Vec<String> = spec.vms.iter().filter(fresh).cloned().collect();
        if !new.is_empty() && wrong.is_empty() {
            for vm in daemon.pools.unknown_vms(&new).await? {
                let message = format!("vms: no pool has a VM {vm}");
                wrong.push(Invalid { name: "vms".into(), keyword: "format", message });
            }
        }
    }
    if wrong.is_empty() { Ok(spec) } else { Err(Fault::InvalidParameters(wrong)) }
}
