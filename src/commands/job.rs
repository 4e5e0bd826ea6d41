//! `backhaul job`.

use api::{
    Compression, IdParams, Job, JobCreate, JobGet, JobList, JobMode, JobRemove, JobRun, JobSetEnabled, JobSetEnabledParams,
    JobSpec, NoParams, PoolFilter, RemoteList, Schedule, VmList,
};
use futures::future::join_all;
use jiff::tz::TimeZone;
use serde_json::json;

use super::cli::{Compress, JobAdd, JobCommand, Mode};
use super::context::{self, Context, Kind, Site, pick};
use super::failure::Failure;
use super::objects::{print_list, print_one};
use super::{output, watch};

/// `job`.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, command: JobCommand) -> Result<(), Failure> {
    match command {
        JobCommand::List => {
            let found = context.gather::<JobList>(&NoParams {}).await?;
            let headings = ["NAME", "PROXY", "MODE", "VMS", "SCHEDULE", "KEEP", "ENABLED", "LAST RUN", "NEXT RUN", "ID"];
            print_list(context, found, &headings, |proxy, job: Job| {
                let spec = job.spec;
                let next = job.next_runs.first().map(|at| output::time(*at)).unwrap_or_default();
                vec![
                    spec.name,
                    proxy.to_owned(),
                    output::word(&spec.mode),
                    spec.vms.len().to_string(),
                    spec.schedule.map(|schedule| schedule.cron).unwrap_or_default(),
                    spec.retention.to_string(),
                    if spec.enabled { "yes" } else { "no" }.to_owned(),
                    job.last_run.as_ref().map(watch::state).unwrap_or_default(),
                    next,
                    job.id,
                ]
            })
        }
        JobCommand::Show { job } => {
            let (site, job) = find(context, &job).await?;
            let job = site.call::<JobGet>(&IdParams { id: job.id }).await?;
            print_one(context, &site.name, &job, describe(&site, &job))
        }
        JobCommand::Add(add) => create(context, add).await,
        JobCommand::Enable { job } => set_enabled(context, &job, true).await,
        JobCommand::Disable { job } => set_enabled(context, &job, false).await,
        JobCommand::Remove { job } => {
            let (site, job) = find(context, &job).await?;
            site.call::<JobRemove>(&IdParams { id: job.id.clone() }).await?;
            let text = format!("removed job {} from proxy {}; its restore points stay", job.spec.name, site.name);
            print_one(context, &site.name, &json!({ "removed": job.id }), text)
        }
        JobCommand::Run { job, watch } => {
            let (site, job) = find(context, &job).await?;
            let run = site.call::<JobRun>(&IdParams { id: job.id }).await?;
            watch::started(context, &site, &run, watch).await
        }
    }
}

async fn find(context: &Context, job: &str) -> Result<(Site, Job), Failure> {
    let names = |job: &Job| [job.id.clone(), job.spec.name.clone()];
    context::find::<JobList, Job>(context.sites()?, Kind::JOB, job, &NoParams {}, names).await
}

async fn set_enabled(context: &Context, job: &str, enabled: bool) -> Result<(), Failure> {
    let (site, job) = find(context, job).await?;
    let job = site.call::<JobSetEnabled>(&JobSetEnabledParams { id: job.id, enabled }).await?;
    let word = if enabled { "is now followed" } else { "is no longer followed" };
    let text = format!("the schedule of job {} {word}", job.spec.name);
    print_one(context, &site.name, &job, text)
}

fn describe(site: &Site, job: &Job) -> String {
    let spec = &job.spec;
    let schedule = spec.schedule.as_ref().map_or("by hand only".to_owned(), |schedule| {
        let off = if spec.enabled { "" } else { ", disabled" };
        format!("{} ({}{off})", schedule.cron, schedule.timezone)
    });
    let vms = if spec.vms.len() == 1 { "1 VM".to_owned() } else { format!("{} VMs", spec.vms.len()) };
    let last = job.last_run.as_ref().map_or("never".to_owned(), watch::state);
    format!(
        "{} on {}: {} of {vms}, {schedule}, keeps {}, last run: {last}, id {}",
        spec.name,
        site.name,
        output::word(&spec.mode),
        spec.retention,
        job.id
    )
}

async fn create(context: &Context, add: JobAdd) -> Result<(), Failure> {
    let (site, vms, remotes) = place(context, &add).await?;
    let schedule = add.schedule.map(|cron| Schedule { cron, timezone: add.timezone.unwrap_or_else(local_time_zone) });
    let spec = JobSpec {
        name: add.name,
        mode: match add.mode {
            Mode::Delta => JobMode::Delta,
            Mode::Full => JobMode::Full,
        },
        vms,
        remotes,
        enabled: !add.disabled,
        schedule,
        retention: add.retention,
        compression: match add.compression {
            Compress::None => Compression::None,
            Compress::Gzip => Compression::Gzip,
            Compress::Zstd => Compression::Zstd,
        },
        prefer_nbd: !add.no_nbd,
        concurrency: add.concurrency,
        full_interval: add.full_interval,
        max_bytes_per_second: add.max_rate,
    };
    let job = site.call::<JobCreate>(&spec).await?;
    let text = format!("created job {} ({}) on proxy {}", job.spec.name, job.id, site.name);
    print_one(context, &site.name, &job, text)
}

fn local_time_zone() -> String {
    TimeZone::system().iana_name().unwrap_or("UTC").to_owned()
}

/// The one proxy that knows all VMs and all remotes of a new job, with their ids.
async fn place(context: &Context, add: &JobAdd) -> Result<(Site, Vec<String>, Vec<String>), Failure> {
    let sites = context.sites()?;
    let tried = join_all(sites.iter().map(|site| resolve(site, add))).await;
    let (mut fitting, mut unfit, mut missing) = (Vec::new(), Vec::new(), None);
    for (site, tried) in sites.iter().zip(tried) {
        match tried {
            Ok(Ok((vms, remotes))) => fitting.push((site.clone(), vms, remotes)),
            Ok(Err(reason)) => unfit.push(format!("{}: {reason}", site.name)),
            Err(failure) => missing = Some(failure),
        }
    }
    match (fitting.len(), missing) {
        (1, _) => Ok(fitting.swap_remove(0)),
        (0, Some(missing)) => Err(missing),
        (0, None) => Err(Failure::failed("NO_SUCH_OBJECT", unfit.join("; ")).next("backhaul vm list, backhaul remote list")),
        _ => {
            let names = fitting.iter().map(|(site, ..)| site.name.as_str()).collect::<Vec<_>>().join(", ");
            Err(Failure::usage(format!("several proxies have these VMs and remotes: {names}")).next("choose with --proxy NAME"))
        }
    }
}

/// Ids of the VMs and remotes of a new job as one proxy knows them, or why it does not.
async fn resolve(site: &Site, add: &JobAdd) -> Result<Result<(Vec<String>, Vec<String>), String>, Failure> {
    let all_vms = site.call::<VmList>(&PoolFilter::default()).await?;
    let all_remotes = site.call::<RemoteList>(&NoParams {}).await?;
    let vm = |name: &String| pick("VM", name, &all_vms, |vm| [&vm.uuid, &vm.name]).map(|vm| vm.uuid.clone());
    let remote =
        |name: &String| pick("remote", name, &all_remotes, |remote| [&remote.id, &remote.name]).map(|remote| remote.id.clone());
    let vms: Result<Vec<_>, _> = add.vms.iter().map(vm).collect();
    let remotes: Result<Vec<_>, _> = add.remotes.iter().map(remote).collect();
    Ok(vms.and_then(|vms| remotes.map(|remotes| (vms, remotes))))
}
