//! Another address or other resources for a deployed proxy, whose VM is restarted for it; and destroying one.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{AddressSpec, Intent, TaskKind, TaskResult};
use xapi::{Record, Vm};

use super::machine::{self, OBSOLETE};
use super::proxy::Proxy;
use super::settle::{self, Before};
use super::steps::{self, ADDRESS, CHECK, CONFIGURE, DAEMON, DESTROY, DRAIN, REGISTER, START, SWITCH_OFF, with_undone};
use super::{check, guest};
use crate::context::Context;
use crate::error::Error;
use crate::plan::{DestroyPlan, ProxyAccess, ReconfigurePlan};
use crate::pool::Pool;

/// Changes address or resources of a proxy. When it does not come up with them, it gets back what it had.
pub(crate) async fn reconfigure(context: &Arc<Context>, plan: &ReconfigurePlan) -> Result<(), Error> {
    let times = &plan.times;
    let (pool, vm) = CHECK.run(context, times, async |_| checked(context, plan).await).await?;
    let wanted = plan.address.as_ref().map(guest::address_keys).unwrap_or_default();
    // Without the key a guest keeps what it has: the way back to DHCP must say so.
    let before = |key: &String| {
        let dhcp = (*key == guest::ADDRESS[0]).then(|| "dhcp".to_owned());
        vm.xenstore_data.get(key).cloned().or(dhcp)
    };
    let keys: BTreeMap<String, Option<String>> = wanted.keys().map(|key| (key.clone(), before(key))).collect();
    let (vcpus, memory) = (u32::try_from(vm.vcpus_at_startup).unwrap_or(u32::MAX), vm.memory_static_max);
    let what = Intent::ReconfiguredVm { pool: pool.id.clone(), uuid: vm.uuid.clone(), keys: keys.clone(), vcpus, memory };
    let intent = context.recorder.intend(what).await?;
    let changed = match change(context, plan, &pool, &vm, &wanted).await {
        Ok(()) => context.recorder.commit(intent).await.map_err(Error::from),
        Err(error) => Err(error),
    };
    let Err(error) = changed else { return Ok(()) };
    let access = ProxyAccess {
        vm: vm.uuid.clone(),
        name: plan.name.clone(),
        url: plan.url.clone(),
        token: plan.token.clone(),
        fingerprint: plan.fingerprint.clone(),
    };
    let task = context.recorder.task(None, TaskKind::Step, "undo", Some(vm.uuid.clone()));
    let before = Before { uuid: &vm.uuid, keys: &keys, vcpus, memory };
    let undone = settle::in_time(times, before.put_back(&pool, Some(&access), times, &task)).await;
    task.settle(&undone);
    Err(match undone {
        Ok(()) => {
            context.recorder.settle(intent);
            with_undone(error, " and the former settings are back")
        }
        Err(_) => with_undone(error, " and the former settings are not back yet: the next clean-up tries again"),
    })
}

async fn checked(context: &Arc<Context>, plan: &ReconfigurePlan) -> Result<(Arc<Pool>, Record<Vm>), Error> {
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
    proxy.answers(vm.power_state == "Running" && plan.address.is_none()).await?;
    Ok((pool, vm))
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
                if proxy.answers(plan.address.is_none()).await? {
                    return proxy.drained(task, times.drain).await;
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

/// Destroys a proxy with its VM. Begun, it is finished: a cancel comes too late then.
pub(crate) async fn destroy(context: &Arc<Context>, plan: &DestroyPlan) -> Result<(), Error> {
    let times = &plan.times;
    let found = CHECK
        .run(context, times, async |_| {
            let pool = context.pool(&plan.pool).await?;
            let vm = machine::of_proxy(&pool, &plan.vm, &plan.proxy).await?;
            Ok((pool, vm))
        })
        .await?;
    let (pool, Some(vm)) = found else {
        context.recorder.log(api::LogLevel::Info, format!("the VM {} of proxy {} is gone already", plan.vm, plan.name));
        return Ok(());
    };
    context.check()?;
    retire(context, &DESTROY, times, &pool, &vm).await
}

/// Marks a VM as one that is to go, announces it, and destroys it: one step, so that whatever fails has a name.
async fn retire(
    context: &Arc<Context>,
    step: &steps::Step,
    times: &crate::plan::DeployTimes,
    pool: &Pool,
    vm: &Record<Vm>,
) -> Result<(), Error> {
    let intent = step
        .run_to_end(context, times, async |task| {
            // The mark first: whoever finishes this after a crash asks for it.
            let announced = async {
                machine::set_mark(pool, vm, OBSOLETE, Some(&context.run)).await?;
                let what = Intent::ObsoleteVm { pool: pool.id.clone(), uuid: vm.uuid.clone() };
                Ok::<_, Error>(context.recorder.intend(what).await?)
            };
            let intent = match announced.await {
                Ok(intent) => intent,
                Err(error) => {
                    // Also when setting it has failed: only the answer may have been lost.
                    let _ = machine::set_mark(pool, vm, OBSOLETE, None).await;
                    return Err(error);
                }
            };
            settle::obsolete(pool, &context.run, &vm.uuid, task).await?;
            Ok(intent)
        })
        .await?;
    context.recorder.settle(intent);
    Ok(())
}
