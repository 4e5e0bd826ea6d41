//! Another address or other resources for a deployed proxy, whose VM is restarted for it; and destroying one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{AddressSpec, Intent, JobList, NoParams, TaskKind, TaskResult};
use xapi::{Record, Vm};

use super::machine::{self, OBSOLETE};
use super::proxy::{Ending, Proxy};
use super::settle::{self, Before, Waking};
use super::steps::{ADDRESS, CHECK, CONFIGURE, DAEMON, DESTROY, DRAIN, REGISTER, START, SWITCH_OFF, with_undone};
use super::{check, guest};
use crate::backup::snapshot;
use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::plan::{DestroyPlan, ProxyAccess, ReconfigurePlan};
use crate::pool::Pool;

/// Changes address or resources of a proxy. When it does not come up with them, it gets back what it had.
pub(crate) async fn reconfigure(context: &Arc<Context>, plan: &ReconfigurePlan) -> Result<(), Error> {
    let times = &plan.times;
    let (pool, vm, answered) = CHECK.run(context, times, async |_| checked(context, plan).await).await?;
    let wanted = plan.address.as_ref().map(guest::address_keys).unwrap_or_default();
    // Without the key a guest keeps what it has: the way back to DHCP must say so.
    let before = |key: &String| {
        let dhcp = (*key == guest::ADDRESS[0]).then(|| "dhcp".to_owned());
        vm.xenstore_data.get(key).cloned().or(dhcp)
    };
    let keys: BTreeMap<String, Option<String>> = wanted.keys().map(|key| (key.clone(), before(key))).collect();
    let (vcpus, memory) = (u32::try_from(vm.vcpus_at_startup).unwrap_or(u32::MAX), vm.memory_static_max);
    let (at, uuid) = (pool.id.clone(), vm.uuid.clone());
    let what = Intent::ReconfiguredVm { pool: at, uuid, keys: keys.clone(), vcpus, memory, answered };
    let intent = context.recorder.intend(what).await?;
    let Err(error) = change(context, plan, &pool, &vm, &wanted).await else {
        // A commit whose acknowledgement is missing may stand in the journal all the same: nothing is undone here, and the
        // clean-up, which reads the journal, knows.
        return Ok(context.recorder.commit(intent).await?);
    };
    let access = ProxyAccess {
        vm: vm.uuid.clone(),
        name: plan.name.clone(),
        url: plan.url.clone(),
        token: plan.token.clone(),
        fingerprint: plan.fingerprint.clone(),
    };
    let task = context.recorder.task(None, TaskKind::Step, "undo", Some(vm.uuid.clone()));
    let waking = Waking { uuid: &vm.uuid, access: Some(&access), answered, times };
    let before = Before { waking, keys: &keys, vcpus, memory };
    let undone = settle::in_time(times, before.put_back(&pool, &task)).await;
    task.settle(&undone);
    Err(match undone {
        Ok(()) => {
            context.recorder.settle(intent);
            with_undone(error, " and the former settings are back")
        }
        Err(_) => with_undone(error, " and the former settings are not back yet: the next clean-up tries again"),
    })
}

/// Its pool, its VM, and whether the proxy answers.
async fn checked(context: &Arc<Context>, plan: &ReconfigurePlan) -> Result<(Arc<Pool>, Record<Vm>, bool), Error> {
    let pool = context.pool(&plan.pool).await?;
    let Some(vm) = machine::of_proxy(&pool, &plan.vm, &plan.proxy).await? else {
        let message = format!("the VM {} of proxy {} is gone", plan.vm, plan.name);
        return Err(Error::Refused { code: "VM_NOT_FOUND", message, next: Some("redeploy the proxy") });
    };
    if let Some(memory) = plan.memory {
        check::more_memory(&pool, memory, &vm).await?;
    }
    if let Some(address) = &plan.address {
        check::address(&pool, address, plan.port, Some(&vm), Some(&plan.url)).await?;
    }
    // Before anything is restarted: what it does not let in now, it will not let in then.
    let proxy = Proxy::new(&plan.name, &plan.url, &plan.token, &plan.fingerprint, plan.times.call)?;
    // That somebody else has its address is a reason to change it.
    let is_there = plan.address.is_none() && guest::is_at(&pool, &vm, &plan.url).await?;
    let answers = proxy.answers(is_there).await?;
    Ok((pool, vm, answers))
}

async fn change(
    context: &Arc<Context>,
    plan: &ReconfigurePlan,
    pool: &Pool,
    vm: &Record<Vm>,
    wanted: &BTreeMap<String, Option<String>>,
) -> Result<(), Error> {
    let times = &plan.times;
    if vm.power_state != "Halted" {
        DRAIN
            .run(context, times, async |task| {
                let proxy = Proxy::new(&plan.name, &plan.url, &plan.token, &plan.fingerprint, times.call)?;
                if proxy.answers(plan.address.is_none() && guest::is_at(pool, vm, &plan.url).await?).await? {
                    return proxy.drained(Ending::Working, task, times.drain).await;
                }
                // A wrong address is a reason to change it.
                task.warn(format!("proxy {} does not answer at {}: it is restarted all the same", plan.name, plan.url));
                Ok(())
            })
            .await?;
        SWITCH_OFF.run(context, times, async |task| machine::switch_off(pool, vm, times.start, task).await).await?;
    }
    CONFIGURE
        .run(context, times, async |_| {
            settle::write_keys(pool, vm, wanted).await?;
            let vcpus = plan.vcpus.map_or(vm.vcpus_at_startup, u64::from);
            machine::resources(pool, vm, vcpus, plan.memory.unwrap_or(vm.memory_static_max)).await
        })
        .await?;
    START.run(context, times, async |_| machine::start(pool, vm).await).await?;
    let stays = present(vm);
    let address = plan.address.as_ref().unwrap_or(&stays);
    let address = ADDRESS.run(context, times, async |task| guest::address(pool, vm, address, task, times.address).await).await?;
    let url = guest::url(address, plan.port);
    DAEMON
        .run(context, times, async |task| {
            guest::fingerprint(pool, vm, task, times.daemon).await?;
            // The pinned certificate, whatever the guest reports: the proxy must still be the same one.
            let proxy = Proxy::new(&plan.name, &url, &plan.token, &plan.fingerprint, times.call)?;
            let status = proxy.wait_for(task, times.daemon).await?;
            super::check_id(&status, &plan.proxy, &plan.name)?;
            if status.draining {
                proxy.drain(false).await?;
            }
            Ok(())
        })
        .await?;
    let result = TaskResult {
        vm: Some(vm.uuid.clone()),
        url: Some(url),
        fingerprint: Some(plan.fingerprint.clone()),
        ..TaskResult::default()
    };
    REGISTER.run_into(context, times, async |_| Ok(()), |()| result).await
}

/// The address a VM has been told before.
fn present(vm: &Record<Vm>) -> AddressSpec {
    let network = vm.xenstore_data.get(guest::ADDRESS[0]).and_then(|address| address.parse().ok());
    match network {
        Some(network) => AddressSpec::Static { network, gateway: None, dns: Vec::new() },
        None => AddressSpec::Dhcp,
    }
}

/// Destroys a proxy with its VM, after what it is at work on has come to an end. Once announced, it is finished: a cancel comes
/// too late then.
pub(crate) async fn destroy(context: &Arc<Context>, plan: &DestroyPlan) -> Result<(), Error> {
    let times = &plan.times;
    let found = CHECK
        .run(context, times, async |task| {
            let pool = context.pool(&plan.pool).await?;
            let vm = machine::of_proxy(&pool, &plan.vm, &plan.proxy).await?;
            if let Some(vm) = &vm {
                name_disks(&pool, vm, task).await?;
            }
            Ok((pool, vm))
        })
        .await?;
    let (pool, Some(vm)) = found else {
        context.recorder.log(api::LogLevel::Info, format!("the VM {} of proxy {} is gone already", plan.vm, plan.name));
        return Ok(());
    };
    let jobs = plan.jobs.clone();
    let mut destruction = Destruction { context, plan, pool: &pool, vm: &vm, intent: None, announced: false, jobs };
    let Err(error) = destruction.go().await else { return Ok(()) };
    Err(destruction.give_back(error).await)
}

/// Says which disks go with a VM.
async fn name_disks(pool: &Pool, vm: &Record<Vm>, task: &Task) -> Result<(), Error> {
    let disks = pool.client.disks(&vm.reference).await.map_err(pool.failed(format!("read the disks of VM {}", vm.name_label)))?;
    let words: Vec<_> = disks.iter().map(|(_, disk)| machine::disk_words(disk)).collect();
    let words = format!("with VM {} go its disks, unless another VM uses them: {}", vm.name_label, words.join(", "));
    if disks.len() > 1 {
        task.warn(words)
    } else {
        task.info(words)
    }
    Ok(())
}

/// A proxy that is being destroyed.
struct Destruction<'a> {
    context: &'a Arc<Context>,
    plan: &'a DestroyPlan,
    pool: &'a Pool,
    vm: &'a Record<Vm>,
    /// Of a proxy that was told to hold its runs back, and later of a VM that goes.
    intent: Option<u32>,
    /// Whether it stands in the journal that the VM goes.
    announced: bool,
    /// Its jobs, as it says itself if it can be asked.
    jobs: Vec<String>,
}

impl Destruction<'_> {
    async fn go(&mut self) -> Result<(), Error> {
        let (context, times) = (self.context, &self.plan.times);
        DRAIN.run(context, times, async |task| self.stop_work(task).await).await?;
        context.check()?;
        DESTROY.run_to_end(context, times, async |task| self.retire(task).await).await?;
        if let Some(intent) = self.intent {
            context.recorder.settle(intent);
        }
        Ok(())
    }

    /// Ends what the proxy is at work on: what its runs left would be known to its own journal alone, which goes with it.
    async fn stop_work(&mut self, task: &Task) -> Result<(), Error> {
        let Self { plan, vm, .. } = *self;
        if vm.power_state != "Running" {
            return Ok(());
        }
        let cut_off = |why: &str| {
            task.warn(format!("{why}: what proxy {} may be at work on is cut off, and what that leaves stays", plan.name));
        };
        let Some(access) = &plan.access else {
            cut_off("how to reach it is not known");
            return Ok(());
        };
        let proxy = Proxy::of(access, plan.times.call);
        let proxy = match proxy {
            Ok(proxy) => proxy,
            Err(error) => {
                cut_off(&error.sentence());
                return Ok(());
            }
        };
        match proxy.answers(guest::is_at(self.pool, vm, &access.url).await?).await {
            Ok(true) => {}
            Ok(false) => {
                cut_off(&format!("it does not answer at {}", access.url));
                return Ok(());
            }
            Err(error) => {
                cut_off(&error.sentence());
                return Ok(());
            }
        }
        let what = Intent::DrainedProxy { pool: self.pool.id.clone(), uuid: vm.uuid.clone() };
        self.intent = Some(self.context.recorder.intend(what).await?);
        proxy.drained(Ending::Cancelled, task, plan.times.drain).await?;
        let jobs = proxy.call::<JobList>("list its jobs", &NoParams {}).await?;
        self.jobs = jobs.into_iter().map(|job| job.id).collect();
        Ok(())
    }

    /// Marks the VM as one that is to go, announces it, and destroys it: one step, so that whatever fails has a name.
    async fn retire(&mut self, task: &Task) -> Result<(), Error> {
        let (pool, vm, run, recorder) = (self.pool, self.vm, &self.context.run, &self.context.recorder);
        // The mark first: whoever finishes this after a crash asks for it.
        machine::set_mark(pool, vm, OBSOLETE, Some(run)).await?;
        let what = Intent::ObsoleteVm { pool: pool.id.clone(), uuid: vm.uuid.clone(), jobs: self.jobs.clone() };
        match self.intent {
            Some(intent) => recorder.refine(intent, what).await?,
            None => self.intent = Some(recorder.intend(what).await?),
        }
        self.announced = true;
        settle::obsolete(pool, run, &vm.uuid, &self.jobs, task).await?;
        self.clear_other_pools(task).await;
        Ok(())
    }

    /// Its jobs may have kept snapshots on other pools too. Such a pool may be away for long: the proxy goes all the same.
    async fn clear_other_pools(&self, task: &Task) {
        for id in self.context.pool_ids().filter(|id| *id != self.pool.id && !self.jobs.is_empty()) {
            let limit = Duration::from_secs(3 * self.plan.times.call);
            let late = || Error::Late { what: format!("pool {id} did not answer"), seconds: limit.as_secs() };
            let clear = async { snapshot::destroy_of_jobs(&*self.context.pool(id).await?, &self.jobs, task).await };
            if let Err(error) = tokio::time::timeout(limit, clear).await.unwrap_or_else(|_| Err(late())) {
                task.warn(format!("snapshots of its jobs may be left: {}", error.sentence()));
            }
        }
    }

    /// After a failure: a proxy that does not go yet has to work again. Gives the error with what has become of it.
    async fn give_back(&self, error: Error) -> Error {
        if self.announced {
            return error;
        }
        let (context, plan, times) = (self.context, self.plan, &self.plan.times);
        // Also when the mark could not be set: only the answer may have been lost.
        let task = context.recorder.task(None, TaskKind::Step, "undo", Some(self.vm.uuid.clone()));
        let access = plan.access.as_ref().filter(|_| self.intent.is_some());
        let undone = async {
            match access {
                None => settle::unmark(self.pool, self.vm, &context.run).await.map(drop),
                Some(access) => settle::give_back(self.pool, self.vm, &context.run, Some(access), times, &task).await,
            }
        };
        let undone = settle::in_time(times, undone).await;
        task.settle(&undone);
        match (undone, self.intent) {
            (Ok(()), Some(intent)) => {
                context.recorder.settle(intent);
                with_undone(error, " and the proxy takes runs again")
            }
            (Err(_), Some(_)) => with_undone(error, " and the proxy may still hold its runs back: the next clean-up tries again"),
            (_, None) => error,
        }
    }
}
