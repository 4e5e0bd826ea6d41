//! Undoing: what a deployment made goes, what it switched off or changed is as before. Used by the run itself when a step
//! failed, and by a recover run when the run died; doing it twice does no harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::Intent;
use xapi::{Record, TaskRecord, Vm};

use super::guest;
use super::machine::{self, DEPLOY, OBSOLETE};
use super::proxy::Proxy;
use super::steps::{Look, until};
use crate::backup::snapshot;
use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::plan::{DeployTimes, ProxyAccess, RecoverPlan};
use crate::pool::Pool;

/// Cleans what an interrupted run announced.
pub(crate) async fn settle(context: &Arc<Context>, plan: &RecoverPlan, what: &Intent, task: &Task) -> Result<(), Error> {
    let times = &plan.times;
    let access = |vm: &str| plan.proxies.iter().find(|proxy| proxy.vm == vm);
    match what {
        Intent::DeployedVm { pool, uuid, replaces, answered } => {
            let pool = context.pool(pool).await?;
            let old = replaces.as_deref().map(|uuid| Waking { uuid, access: access(uuid), answered: *answered, times });
            let undo = Undo { run: &plan.run, uuid: uuid.as_deref(), old };
            undo.deployed(&pool, task).await
        }
        Intent::ObsoleteVm { pool, uuid, jobs } => {
            let pool = context.pool(pool).await?;
            // The one that has taken its place, which may have had no time yet to hear that it is the one.
            let released = match plan.proxies.iter().find(|proxy| proxy.vm != *uuid) {
                Some(access) => async { Proxy::of(access, times.call)?.release(task, times.daemon).await }.await,
                None => Ok(()),
            };
            obsolete(&pool, &plan.run, uuid, jobs, task).await?;
            released
        }
        Intent::DrainedProxy { pool, uuid } => {
            let pool = context.pool(pool).await?;
            let Some(vm) = machine::find(&pool, uuid).await? else { return Ok(()) };
            give_back(&pool, &vm, &plan.run, access(uuid), times, task).await
        }
        Intent::ReconfiguredVm { pool, uuid, keys, vcpus, memory, answered } => {
            let pool = context.pool(pool).await?;
            let waking = Waking { uuid, access: access(uuid), answered: *answered, times };
            let before = Before { waking, keys, vcpus: *vcpus, memory: *memory };
            before.put_back(&pool, task).await
        }
        _ => Ok(()),
    }
}

/// Undoes something, in the time that its parts may take: whoever waits for the end of the run must not wait for ever. These
/// are a VM that comes to rest, is asked to shut down, and starts again (`start` each), its proxy that comes up (`daemon`), and
/// what is read and written around that on the pool and the proxy, with some that hang (`call` each).
pub(crate) async fn in_time(times: &DeployTimes, undo: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let limit = Duration::from_secs(3 * times.start + times.daemon + 10 * times.call);
    let undone = tokio::time::timeout(limit, undo).await;
    undone.unwrap_or_else(|_| Err(Error::Late { what: "it was not undone".into(), seconds: limit.as_secs() }))
}

/// What of a deployment is to be undone.
pub(crate) struct Undo<'a> {
    pub(crate) run: &'a str,
    /// The new VM, if it was known.
    pub(crate) uuid: Option<&'a str>,
    /// The VM that ran and was to be replaced.
    pub(crate) old: Option<Waking<'a>>,
}

impl Undo<'_> {
    /// Destroys the new VM, and switches the one it was to replace on again.
    ///
    /// The VM is found by its mark, which it has had since before the pool had it ([`xva::mark()`]): what has no mark of this run
    /// was not made by it, or is complete, and is left alone.
    pub(crate) async fn deployed(&self, pool: &Pool, task: &Task) -> Result<(), Error> {
        self.end_import(pool).await?;
        let vms = pool.client.all::<Vm>().await.map_err(pool.failed("list its VMs"))?;
        let is_ours = |vm: &&Record<Vm>| vm.other_config.get(DEPLOY).is_some_and(|run| run == self.run);
        let mut found = false;
        for vm in vms.iter().filter(is_ours).filter(|vm| self.old.as_ref().is_none_or(|old| old.uuid != vm.uuid)) {
            found = true;
            task.info(format!("destroys the unfinished VM {} ({})", vm.name_label, vm.uuid));
            machine::destroy(pool, vm, self.run, task).await?;
        }
        if !found {
            machine::sweep(pool, self.run, task).await?;
        }
        if let Some(uuid) = self.uuid.filter(|_| !found)
            && vms.iter().any(|vm| vm.uuid == uuid)
        {
            task.warn(format!("VM {uuid} does not carry the mark of the run: it is left alone"));
        }
        // One that was off has nothing to be woken for, but it may have been marked.
        let is_obsolete = |vm: &&Record<Vm>| vm.other_config.get(OBSOLETE).is_some_and(|run| run == self.run);
        for vm in vms.iter().filter(is_obsolete) {
            machine::set_mark(pool, vm, OBSOLETE, None).await?;
        }
        let Some(old) = &self.old else { return Ok(()) };
        match machine::at_rest(pool, old.uuid, old.times.start, task).await? {
            Some(vm) => old.wake(pool, &vm, task).await,
            None => {
                task.warn(format!("the former VM {} is gone: it cannot be switched on again", old.uuid));
                Ok(())
            }
        }
    }

    /// Ends an import of the run that still goes on: its pool then removes what it made.
    async fn end_import(&self, pool: &Pool) -> Result<(), Error> {
        let tasks = pool.client.all::<TaskRecord>().await.map_err(pool.failed("list its tasks"))?;
        for left in tasks.iter().filter(|left| left.name_label.contains(&import_label(self.run))) {
            let discarded = pool.client.discard_task(&left.reference).await;
            discarded.map_err(pool.failed("cancel the import of the image"))?;
        }
        Ok(())
    }
}

/// A proxy's VM that ran, and has to again.
pub(crate) struct Waking<'a> {
    pub(crate) uuid: &'a str,
    /// How its proxy is reached, if that is known.
    pub(crate) access: Option<&'a ProxyAccess>,
    /// Whether its proxy answered before.
    pub(crate) answered: bool,
    pub(crate) times: &'a DeployTimes,
}

impl Waking<'_> {
    /// Sees to it that the VM runs, and that its proxy answers and takes runs again.
    ///
    /// A VM that runs may be about to go down, with nothing on the pool that says so: it is switched on whenever it is seen off,
    /// until the proxy shows that it is there.
    ///
    /// # Errors
    /// The proxy answered before, and does not come up. One that did not is told of and no more: perhaps that is why it was to
    /// be replaced.
    async fn wake(&self, pool: &Pool, vm: &Record<Vm>, task: &Task) -> Result<(), Error> {
        let proxy = self.access.map(|access| Proxy::of(access, self.times.call)).transpose();
        let proxy = match proxy {
            Err(error) if !self.answered => {
                task.warn(error.sentence());
                None
            }
            proxy => proxy?,
        };
        let who = format!("the proxy on VM {}", vm.name_label);
        let seconds = self.times.start + self.times.daemon;
        let status = until(task, seconds, (&who, "come up again"), async || {
            let Some(now) = machine::now(pool, vm).await? else { return Ok(Look::There(None)) };
            if let Some(operation) = machine::restless(&now) {
                return Ok(Look::NotYet(operation.to_owned()));
            }
            if now.power_state == "Halted" {
                task.info(format!("switches VM {} on again", vm.name_label));
                machine::start(pool, &now).await?;
                return Ok(Look::NotYet("it was switched on".into()));
            }
            let Some(proxy) = &proxy else { return Ok(Look::There(None)) };
            match proxy.look().await {
                Ok(Ok(status)) => Ok(Look::There(Some(status))),
                Ok(Err(reason)) if self.answered => Ok(Look::NotYet(reason)),
                Err(error) if self.answered => Err(error),
                Ok(Err(reason)) => {
                    task.warn(format!("its proxy did not answer before, and does not now: {reason}"));
                    Ok(Look::There(None))
                }
                Err(error) => {
                    task.warn(error.sentence());
                    Ok(Look::There(None))
                }
            }
        })
        .await?;
        match (status, proxy) {
            (Some(status), Some(proxy)) if status.draining => proxy.drain(false).await.map(drop),
            (_, None) => {
                task.warn("how to reach the proxy is not known here: if it still holds its runs back, let it drain no longer");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// How the task of the import of a run's image is called.
pub(crate) fn import_label(run: &str) -> String {
    format!("appliance of run {run}")
}

/// Leaves a VM that was to be destroyed to its proxy again: without the mark of the run, and taking runs.
pub(crate) async fn give_back(
    pool: &Pool,
    vm: &Record<Vm>,
    run: &str,
    access: Option<&ProxyAccess>,
    times: &DeployTimes,
    task: &Task,
) -> Result<(), Error> {
    let Some(now) = unmark(pool, vm, run).await? else { return Ok(()) };
    match access {
        // It holds nothing back once it is switched on again.
        _ if now.power_state != "Running" => Ok(()),
        Some(access) => Proxy::of(access, times.call)?.release(task, times.daemon).await,
        None => {
            task.warn("how to reach the proxy is not known here: if it still holds its runs back, let it drain no longer");
            Ok(())
        }
    }
}

/// Takes the mark off by which a VM was to go with this run, and gives the VM as it is; none when it is gone.
pub(crate) async fn unmark(pool: &Pool, vm: &Record<Vm>, run: &str) -> Result<Option<Record<Vm>>, Error> {
    let now = machine::now(pool, vm).await?;
    if let Some(now) = now.as_ref().filter(|now| now.other_config.get(OBSOLETE).is_some_and(|mark| mark == run)) {
        machine::set_mark(pool, now, OBSOLETE, None).await?;
    }
    Ok(now)
}

/// Destroys a VM that is to go. It was marked before that was announced: somebody who has taken the mark off since then wants
/// to keep it, and will not want otherwise at the next attempt. With it go the snapshots of `jobs`.
pub(crate) async fn obsolete(pool: &Pool, run: &str, uuid: &str, jobs: &[String], task: &Task) -> Result<(), Error> {
    let Some(vm) = machine::find(pool, uuid).await? else {
        machine::sweep(pool, run, task).await?;
        return snapshot::destroy_of_jobs(pool, jobs, task).await;
    };
    if vm.other_config.get(OBSOLETE).is_none_or(|mark| mark != run) {
        task.warn(format!(
            "VM {} ({uuid}) no longer carries the mark by which it was to go: it stays, and is nobody's proxy any more; destroy it \
             on the pool if it is to go",
            vm.name_label
        ));
        return Ok(());
    }
    task.info(format!("destroys VM {} ({uuid})", vm.name_label));
    machine::destroy(pool, &vm, run, task).await?;
    snapshot::destroy_of_jobs(pool, jobs, task).await
}

/// A proxy's VM as it was before its address or resources were changed.
pub(crate) struct Before<'a> {
    pub(crate) waking: Waking<'a>,
    pub(crate) keys: &'a BTreeMap<String, Option<String>>,
    pub(crate) vcpus: u32,
    pub(crate) memory: u64,
}

impl Before<'_> {
    fn is(&self, vm: &Record<Vm>) -> bool {
        let same_keys = self.keys.iter().all(|(key, value)| vm.xenstore_data.get(key) == value.as_ref());
        let same_resources = vm.vcpus_at_startup == u64::from(self.vcpus) && vm.memory_static_max == self.memory;
        vm.power_state == "Running" && same_keys && same_resources && vm.xenstore_data.contains_key(guest::READY)
    }

    /// Gives the VM back what it had, restarts it, and lets its proxy take runs again.
    pub(crate) async fn put_back(&self, pool: &Pool, task: &Task) -> Result<(), Error> {
        let times = self.waking.times;
        let Some(vm) = machine::at_rest(pool, self.waking.uuid, times.start, task).await? else {
            task.warn(format!("VM {} is gone: nothing is left to put back", self.waking.uuid));
            return Ok(());
        };
        if !self.is(&vm) {
            if vm.power_state != "Halted" {
                machine::switch_off(pool, &vm, times.start, task).await?;
            }
            task.info(format!("gives VM {} back what it had", vm.name_label));
            write_keys(pool, &vm, self.keys).await?;
            machine::resources(pool, &vm, u64::from(self.vcpus), self.memory).await?;
        }
        self.waking.wake(pool, &vm, task).await
    }
}

/// Writes what the guest is told of its address, and takes away what it told when it came up last.
pub(crate) async fn write_keys(pool: &Pool, vm: &Record<Vm>, keys: &BTreeMap<String, Option<String>>) -> Result<(), Error> {
    let written = async {
        pool.client.clear_xenstore_key(&vm.reference, guest::READY).await?;
        for (key, value) in keys {
            match value {
                Some(value) => pool.client.set_xenstore_key(&vm.reference, key, value).await?,
                None => pool.client.clear_xenstore_key(&vm.reference, key).await?,
            }
        }
        Ok(())
    };
    written.await.map_err(pool.failed(format!("write the address of {} into the XenStore data of its VM", vm.name_label)))
}
