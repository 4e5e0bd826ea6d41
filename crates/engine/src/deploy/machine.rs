//! The VM of a proxy: its marks, its parts, switching it on and off, destroying it.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use xapi::{Destroy, Record, Ref, Vdi, Vif, Vm};

use super::steps::{Look, until};
use crate::error::Error;
use crate::journal::Task;
use crate::pool::Pool;

/// In `other_config` of every VM made from an appliance: its version.
pub(crate) const APPLIANCE: &str = "backhaul-appliance";
/// In `other_config` of a proxy's VM: the proxy's id.
pub(crate) const PROXY: &str = "backhaul:proxy";
/// In `other_config` of a VM whose deployment is not complete: the run.
pub(crate) const DEPLOY: &str = "backhaul:deploy";
/// In `other_config` of a VM that is to go, and of the disks of a VM that is being destroyed: the run.
pub(crate) const OBSOLETE: &str = "backhaul:obsolete";

/// How long an import that lost its client may take to remove what it made, seconds.
const IMPORT_UNDONE: u64 = 120;
/// Attempts at destroying a VM that is about to change its power state.
const ATTEMPTS: u32 = 4;

/// The VM with a uuid; none when it is gone.
pub(crate) async fn find(pool: &Pool, uuid: &str) -> Result<Option<Record<Vm>>, Error> {
    match pool.client.by_uuid::<Vm>(uuid).await {
        Ok(vm) => Ok(Some(vm)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(pool.failed(format!("find the VM {uuid}"))(error)),
    }
}

/// What changes the power state of a VM.
const RESTLESS: [&str; 7] = ["start", "start_on", "shutdown", "clean_shutdown", "hard_shutdown", "clean_reboot", "hard_reboot"];

/// What is going to change the power state of a VM, if anything: what an interrupted run asked for goes on without it.
pub(crate) fn restless(vm: &Record<Vm>) -> Option<&str> {
    vm.current_operations.values().map(String::as_str).find(|operation| RESTLESS.contains(operation))
}

/// The VM as it is now; none when it is gone.
pub(crate) async fn now(pool: &Pool, vm: &Record<Vm>) -> Result<Option<Record<Vm>>, Error> {
    match pool.client.get::<Vm>(&vm.reference).await {
        Ok(vm) => Ok(Some(vm)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(pool.failed(format!("watch VM {}", vm.name_label))(error)),
    }
}

/// The VM with a uuid once nothing changes its power state any more; none when it is gone.
///
/// # Errors
/// What goes on for longer than `seconds` is not waited for: how it ends is not known, so nobody may act as if it were.
pub(crate) async fn at_rest(pool: &Pool, uuid: &str, seconds: u64, task: &Task) -> Result<Option<Record<Vm>>, Error> {
    let Some(vm) = find(pool, uuid).await? else { return Ok(None) };
    let who = format!("VM {}", vm.name_label);
    until(task, seconds, (&who, "come to rest"), async || {
        let now = now(pool, &vm).await?;
        match now.as_ref().and_then(restless) {
            Some(operation) => Ok(Look::NotYet(operation.to_owned())),
            None => Ok(Look::There(now)),
        }
    })
    .await
}

/// The VM of a proxy; none when it is gone.
///
/// # Errors
/// A VM that does not carry the mark of that proxy is not touched.
pub(crate) async fn of_proxy(pool: &Pool, uuid: &str, proxy: &str) -> Result<Option<Record<Vm>>, Error> {
    match find(pool, uuid).await? {
        Some(vm) if vm.other_config.get(PROXY).is_none_or(|mark| mark != proxy) => Err(Error::Refused {
            code: "NOT_ITS_VM",
            message: format!("VM {} ({uuid}) does not carry the mark of this proxy: it is left alone", vm.name_label),
            next: Some("if it is its VM all the same, see what became of other_config:backhaul:proxy; else forget the proxy"),
        }),
        vm => Ok(vm),
    }
}

/// Marks an object of the pool's VM class, or takes the mark off.
pub(crate) async fn set_mark(pool: &Pool, vm: &Record<Vm>, key: &str, value: Option<&str>) -> Result<(), Error> {
    let marked = match value {
        Some(value) => pool.client.set_other_config("VM", &vm.reference, key, value).await,
        None => pool.client.clear_other_config("VM", &vm.reference, &[key]).await,
    };
    marked.map_err(pool.failed(format!("mark VM {}", vm.name_label)))
}

/// What a new VM becomes.
pub(crate) struct Shape<'a> {
    pub(crate) name: &'a str,
    pub(crate) vcpus: u32,
    pub(crate) memory: u64,
    pub(crate) disk: u64,
    pub(crate) network: &'a Ref,
    /// Empty: the pool makes one.
    pub(crate) mac: &'a str,
}

/// Gives a new VM its name, resources and network.
pub(crate) async fn configure(pool: &Pool, vm: &Record<Vm>, shape: &Shape<'_>, task: &Task) -> Result<(), Error> {
    let (client, reference) = (&pool.client, &vm.reference);
    let named = async {
        if vm.is_a_template {
            client.untemplate(reference).await?;
        }
        client.set_field("VM", reference, "name_label", shape.name).await?;
        let description = "Backup proxy, deployed and kept by Backhaul";
        client.set_field("VM", reference, "name_description", description).await?;
        for tag in api::deploy::TAGS {
            client.add_tag(reference, tag).await?;
        }
        client.set_other_config("VM", reference, "auto_poweron", "true").await?;
        // Its backups are run again elsewhere; a restart priority could start it behind the back of a redeployment.
        client.set_field("VM", reference, "ha_restart_priority", "").await
    };
    named.await.map_err(pool.failed(format!("name VM {}", shape.name)))?;
    resources(pool, vm, u64::from(shape.vcpus), shape.memory).await?;
    grow(pool, vm, shape, task).await?;
    for vif in &vm.vifs {
        client.destroy_vif(vif).await.map_err(pool.failed("remove the network interface that came with the image"))?;
    }
    let vif = json!({
        "device": "0", "network": shape.network, "VM": reference, "MAC": shape.mac, "MTU": 1500, "other_config": {},
        "qos_algorithm_type": "", "qos_algorithm_params": {}
    });
    client.create_vif(vif).await.map(drop).map_err(pool.failed(format!("connect VM {} with its network", shape.name)))
}

/// Gives a VM that does not run so many processors and so much memory.
pub(crate) async fn resources(pool: &Pool, vm: &Record<Vm>, vcpus: u64, memory: u64) -> Result<(), Error> {
    let set = async {
        if vm.vcpus_at_startup != vcpus || vm.vcpus_max != vcpus {
            pool.client.set_vcpus(vm, vcpus).await?;
        }
        if vm.memory_static_max != memory {
            pool.client.set_memory(vm, memory).await?;
        }
        Ok(())
    };
    let doing = format!("give VM {} {vcpus} processors and {}", vm.name_label, api::format_bytes(memory));
    set.await.map_err(pool.failed(doing))
}

/// Makes the system disk as large as wanted.
async fn grow(pool: &Pool, vm: &Record<Vm>, shape: &Shape<'_>, task: &Task) -> Result<(), Error> {
    let disks = pool.client.disks(&vm.reference).await.map_err(pool.failed("read the disks of the new VM"))?;
    let Some((_, disk)) = disks.first() else {
        return Err(Error::refused("NOT_AN_APPLIANCE", format!("the image's VM has no disk: {} would not start", shape.name)));
    };
    let named = pool.client.set_field("VDI", &disk.reference, "name_label", format!("{} system", shape.name)).await;
    named.map_err(pool.failed("name the system disk"))?;
    if disk.virtual_size > shape.disk {
        let (has, wanted) = (api::format_bytes(disk.virtual_size), api::format_bytes(shape.disk));
        task.warn(format!("the image's disk has {has}, more than the {wanted} that were asked for: it stays so"));
    }
    if disk.virtual_size >= shape.disk {
        return Ok(());
    }
    let resized = pool.client.resize_vdi(&disk.reference, shape.disk).await;
    resized.map_err(pool.failed(format!("make the system disk {} large", api::format_bytes(shape.disk))))
}

/// The hardware address of a VM on a network; none when it is not on it.
pub(crate) async fn mac_on(pool: &Pool, vm: &Record<Vm>, network: &Ref) -> Result<Option<String>, Error> {
    for vif in &vm.vifs {
        let vif = pool.get::<Vif>(vif).await?;
        if vif.network == *network {
            return Ok(Some(vif.mac.clone()));
        }
    }
    Ok(None)
}

/// Starts a VM; one that runs already is fine.
pub(crate) async fn start(pool: &Pool, vm: &Record<Vm>) -> Result<(), Error> {
    match pool.client.start_vm(&vm.reference).await {
        Err(error) if is_in_state(&error, "running") => Ok(()),
        started => started.map_err(pool.failed(format!("start VM {}", vm.name_label))),
    }
}

/// Switches a VM off: its guest is asked, for `seconds` at most, then the plug is pulled. One that is off is fine.
pub(crate) async fn switch_off(pool: &Pool, vm: &Record<Vm>, seconds: u64, task: &Task) -> Result<(), Error> {
    let why = match timeout(Duration::from_secs(seconds), pool.client.shut_down_vm(&vm.reference, false)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) if is_in_state(&error, "halted") => return Ok(()),
        Ok(Err(error)) => crate::error::sentence(&error),
        Err(_) => format!("not within {seconds} s"),
    };
    task.warn(format!("VM {} does not shut down by itself ({why}): it is switched off hard", vm.name_label));
    match pool.client.shut_down_vm(&vm.reference, true).await {
        Err(error) if is_in_state(&error, "halted") => Ok(()),
        off => off.map_err(pool.failed(format!("switch VM {} off", vm.name_label))),
    }
}

/// Whether a call failed because the VM is in a state already.
fn is_in_state(error: &xapi::Error, state: &str) -> bool {
    let last = error.failure().and_then(|failure| failure.params.last());
    error.is("VM_BAD_POWER_STATE") && last.is_some_and(|now| now.eq_ignore_ascii_case(state))
}

/// A disk as a person finds it again.
pub(crate) fn disk_words(disk: &Record<Vdi>) -> String {
    format!("{} ({}, {})", disk.name_label, disk.uuid, api::format_bytes(disk.virtual_size))
}

/// Destroys a VM with its snapshots and their disks; one that is gone is fine. An import that is being undone, or a start that
/// still goes on, is waited for. The disks carry the mark of the run first: what is left of them when it goes no further,
/// [`sweep`] finds. The VM itself goes after its snapshots, because nothing else leads to them.
pub(crate) async fn destroy(pool: &Pool, vm: &Record<Vm>, run: &str, task: &Task) -> Result<(), Error> {
    let doing = || pool.failed(format!("destroy VM {} ({})", vm.name_label, vm.uuid));
    let who = format!("the import of VM {}", vm.uuid);
    let there = until(task, IMPORT_UNDONE, (&who, "end"), async || match now(pool, vm).await? {
        Some(now) if now.current_operations.values().any(|operation| operation == "import") => {
            Ok(Look::NotYet("it goes on".into()))
        }
        now => Ok(Look::There(now)),
    });
    let Some(now) = there.await? else { return sweep(pool, run, task).await };
    let how = Destroy { disks: true, bypass_blocked: true };
    // The disks are those that it has now: once the VM is gone, nothing leads to them any more.
    let mut disks = Vec::new();
    for owner in now.snapshots.iter().chain([&vm.reference]) {
        match pool.client.disks_to_destroy(owner).await {
            Ok(more) => disks.extend(more),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(doing()(error)),
        }
    }
    for disk in &disks {
        pool.client.set_other_config("VDI", disk, OBSOLETE, run).await.map_err(doing())?;
    }
    for snapshot in &now.snapshots {
        pool.client.destroy_vm(snapshot, how).await.map_err(doing())?;
    }
    for attempt in 1.. {
        match pool.client.destroy_vm(&vm.reference, how).await {
            Ok(()) => break,
            Err(error) if attempt < ATTEMPTS => {
                tracing::debug!(error = &error as &dyn std::error::Error, "destroying a VM is tried again");
            }
            Err(error) => return Err(doing()(error)),
        }
        tokio::time::sleep(Duration::from_millis(200 * u64::from(attempt))).await;
    }
    // Those of an attempt that got as far as the VM or snapshot.
    sweep(pool, run, task).await
}

/// Destroys the disks that are left of the VMs that a run has destroyed.
pub(crate) async fn sweep(pool: &Pool, run: &str, task: &Task) -> Result<(), Error> {
    let disks = pool.client.all::<Vdi>().await.map_err(pool.failed("list its disks"))?;
    for disk in disks.iter().filter(|disk| disk.other_config.get(OBSOLETE).is_some_and(|mark| mark == run)) {
        task.info(format!("destroys the disk {} that its VM has left", disk_words(disk)));
        destroy_unused(pool, &disk.reference).await.map_err(pool.failed(format!("destroy disk {}", disk.uuid)))?;
    }
    Ok(())
}

/// Destroys a marked disk. One that another VM has been given meanwhile stays, without the mark.
async fn destroy_unused(pool: &Pool, disk: &Ref) -> xapi::Result<()> {
    match pool.client.field::<Vec<Ref>>("VDI", disk, "VBDs").await {
        Err(error) if error.is_gone() => Ok(()),
        Err(error) => Err(error),
        Ok(users) => {
            for user in users {
                let used = async {
                    let vm: Ref = pool.client.field("VBD", &user, "VM").await?;
                    pool.client.field::<bool>("VM", &vm, "is_control_domain").await
                };
                match used.await {
                    Ok(false) => return pool.client.clear_other_config("VDI", disk, &[OBSOLETE]).await,
                    Err(error) if !error.is_gone() => return Err(error),
                    _ => {}
                }
            }
            pool.client.destroy_vdi(disk).await
        }
    }
}
