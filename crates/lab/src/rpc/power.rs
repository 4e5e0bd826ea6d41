//! Switching machines on and off.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::vm::{check_not_blocked, check_power, disks, update_allowed_operations};
use super::{Args, Context, guest, vdi};
use crate::failure::{Answer, Failure};
use crate::pool::Pool;
use crate::record::{self, NULL};
use crate::store::Store;
use crate::tally;

/// How long a guest takes until its agent reports.
const BOOT: Duration = Duration::from_millis(300);

/// Methods that change the power state.
pub(super) fn call(context: &Context<'_>, method: &str, args: &Args<'_>) -> Option<Answer> {
    Some(match method {
        "start" => args.exactly(3).and_then(|()| start(context, args.text(0)?, args.flag(1)?, None)),
        "start_on" => args.exactly(4).and_then(|()| start(context, args.text(0)?, args.flag(2)?, Some(args.text(1)?))),
        "resume" => args.exactly(3).and_then(|()| resume(context, args.text(0)?, args.flag(1)?)),
        "clean_shutdown" | "shutdown" => {
            args.exactly(1).and_then(|()| stop(context, args.text(0)?, "clean_shutdown", &["Running"]))
        }
        "hard_shutdown" => {
            args.exactly(1).and_then(|()| stop(context, args.text(0)?, method, &["Running", "Paused", "Suspended"]))
        }
        "clean_reboot" => args.exactly(1).and_then(|()| reboot(context, args.text(0)?, method, &["Running"])),
        "hard_reboot" => args.exactly(1).and_then(|()| reboot(context, args.text(0)?, method, &["Running", "Paused"])),
        "suspend" => args.exactly(1).and_then(|()| suspend(context, args.text(0)?)),
        "pause" => args.exactly(1).and_then(|()| switch(context, args.text(0)?, "pause", "Running", "Paused")),
        "unpause" => args.exactly(1).and_then(|()| {
            let answer = switch(context, args.text(0)?, "unpause", "Paused", "Running")?;
            guest::boot(context.pool, args.text(0)?);
            Ok(answer)
        }),
        _ => return None,
    })
}

fn start(context: &Context<'_>, vm: &str, paused: bool, on: Option<&str>) -> Answer {
    let pool = context.pool;
    pool.db.with(|store| {
        check_not_blocked(store, vm, "start")?;
        check_power(store, vm, &["Halted"])?;
        if store.flag("VM", vm, "is_a_template")? {
            return Err(Failure::new("VM_IS_TEMPLATE", [vm]));
        }
        for (_, vdi) in disks(store, vm)? {
            vdi::check_not_attached(store, &vdi, "attach", None)?;
        }
        let host = host_for(store, pool, vm, on)?;
        switch_on(store, &host, vm, paused)
    })?;
    if !paused {
        come_up(pool, vm);
    }
    Ok("".into())
}

/// The host wanted, or the first of all, if the machine's memory is free there.
fn host_for(store: &Store, pool: &Pool, vm: &str, on: Option<&str>) -> Result<String, Failure> {
    let memory = store.get("VM", vm)?["memory_static_max"].as_u64().unwrap_or(0);
    match on {
        Some(host) => tally::host_with_room(store, &[host.to_owned()], memory),
        None => tally::host_with_room(store, &pool.identity.hosts, memory),
    }
}

/// What runs inside a machine that was switched on comes up: an appliance's guest by whoever runs it, else an agent.
fn come_up(pool: &Arc<Pool>, vm: &str) {
    if guest::boot(pool, vm) {
        return;
    }
    let boots = pool.db.with(|store| disks(store, vm)).ok().and_then(|disks| disks.into_iter().next());
    if boots.is_some_and(|(_, vdi)| has_partitions(pool, &vdi)) {
        let (late, vm) = (Arc::clone(pool), vm.to_owned());
        pool.runtime.spawn(pool.tracker.track_future(async move {
            tokio::select! {
                () = tokio::time::sleep(BOOT) => {}
                () = late.stop.cancelled() => return,
            }
            // The machine may be gone or off again by now.
            let _gone = late.db.with(|store| guest_reports(store, &vm));
        }));
    }
}

/// Whether the disk begins with a partition table: a restored disk of garbage does not boot, and its agent never reports.
fn has_partitions(pool: &Pool, vdi: &str) -> bool {
    let mut sectors = [0; 1024];
    let read = pool.shelf.view(vdi).is_ok_and(|view| disks::BlockRead::read_at(&view, 0, &mut sectors).is_ok());
    read && (&sectors[512..520] == b"EFI PART" || sectors[510..512] == [0x55, 0xAA])
}

/// Sets everything that is set while a machine runs.
pub(crate) fn switch_on(store: &mut Store, host: &str, vm: &str, paused: bool) -> Result<(), Failure> {
    store.set("VM", vm, "power_state", if paused { "Paused" } else { "Running" })?;
    store.set("VM", vm, "resident_on", host)?;
    let domain = free_domain(store);
    store.set("VM", vm, "domid", domain)?;
    attach_devices(store, vm, true)?;
    let metrics = store.text("VM", vm, "metrics")?;
    if store.has("VM_metrics", &metrics) {
        store.set("VM_metrics", &metrics, "start_time", record::now())?;
    }
    update_allowed_operations(store, vm)
}

/// A number that no domain has.
fn free_domain(store: &Store) -> i64 {
    store.all("VM").filter_map(|(_, record)| record["domid"].as_i64()).max().unwrap_or(0) + 1
}

/// The guest's agent has come up.
pub(crate) fn guest_reports(store: &mut Store, vm: &str) -> Result<(), Failure> {
    if store.text("VM", vm, "power_state")? != "Running" || store.text("VM", vm, "guest_metrics")? != NULL {
        return Ok(());
    }
    let guest = store.create(
        "VM_guest_metrics",
        json!({
            "PV_drivers_detected": true, "PV_drivers_version": { "major": "7", "minor": "30", "micro": "0" },
            "os_version": { "name": "Debian GNU/Linux 12 (bookworm)", "distro": "debian", "major": "12", "minor": "0", "uname": "6.1.0" },
            "networks": { "0/ip": "192.0.2.10", "0/ipv4/0": "192.0.2.10" }, "last_updated": record::now()
        }),
    );
    store.set("VM", vm, "guest_metrics", guest)
}

fn attach_devices(store: &mut Store, vm: &str, attached: bool) -> Result<(), Failure> {
    for vbd in store.refs("VM", vm, "VBDs")? {
        store.set("VBD", &vbd, "currently_attached", attached)?;
        let letter = store.text("VBD", &vbd, "userdevice")?.parse::<u8>().ok().filter(|number| *number < 26);
        let device = letter.filter(|_| attached).map(|number| format!("xvd{}", char::from(b'a' + number)));
        store.set("VBD", &vbd, "device", device.unwrap_or_default())?;
    }
    for vif in store.refs("VM", vm, "VIFs")? {
        store.set("VIF", &vif, "currently_attached", attached)?;
    }
    Ok(())
}

fn switch_off(store: &mut Store, vm: &str, state: &str) -> Result<(), Failure> {
    store.set("VM", vm, "power_state", state)?;
    store.set("VM", vm, "resident_on", NULL)?;
    store.set("VM", vm, "domid", -1)?;
    attach_devices(store, vm, false)?;
    guest::forget_metrics(store, vm)?;
    update_allowed_operations(store, vm)
}

/// An operation that takes its time, as `current_operations` of its machine shows it.
struct Operation<'a> {
    pool: &'a Pool,
    vm: &'a str,
    id: String,
}

impl<'a> Operation<'a> {
    fn begin(pool: &'a Pool, vm: &'a str, operation: &str) -> Self {
        let id = format!("OpaqueRef:{}", uuid::Uuid::new_v4());
        let shown = |operations: &mut Value| operations[id.as_str()] = operation.into();
        let _gone = pool.db.with(|store| store.edit("VM", vm, "current_operations", shown));
        Self { pool, vm, id }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let over = |operations: &mut Value| {
            if let Value::Object(operations) = operations {
                operations.shift_remove(&self.id);
            }
        };
        // The machine may be gone by now.
        let _gone = self.pool.db.with(|store| store.edit("VM", self.vm, "current_operations", over));
    }
}

fn stop(context: &Context<'_>, vm: &str, operation: &str, states: &[&str]) -> Answer {
    let pool = context.pool;
    let check = |store: &Store| {
        check_not_blocked(store, vm, operation)?;
        check_power(store, vm, states)?;
        if store.flag("VM", vm, "is_control_domain")? {
            return Err(Failure::not_allowed("a control domain is not switched off"));
        }
        Ok(())
    };
    pool.db.with(|store| check(store))?;
    let going_on = Operation::begin(pool, vm, operation);
    guest::halt(pool, vm, operation == "clean_shutdown");
    drop(going_on);
    let memory = pool.db.with(|store| {
        // Somebody else may have switched it off while its guest was stopping.
        check(store)?;
        let memory = store.text("VM", vm, "suspend_VDI")?;
        store.set("VM", vm, "suspend_VDI", NULL)?;
        switch_off(store, vm, "Halted")?;
        store.remove("VDI", &memory);
        Ok::<_, Failure>(memory)
    })?;
    guest::halt_stale(pool, vm);
    pool.shelf.remove(&memory)?;
    Ok("".into())
}

/// Off and on again, on the same host: another domain, and a guest that has to report anew.
fn reboot(context: &Context<'_>, vm: &str, operation: &str, states: &[&str]) -> Answer {
    let pool = context.pool;
    let check = |store: &Store| {
        check_not_blocked(store, vm, operation)?;
        check_power(store, vm, states)?;
        if store.flag("VM", vm, "is_control_domain")? {
            return Err(Failure::not_allowed("a control domain is not switched off"));
        }
        Ok(())
    };
    pool.db.with(|store| check(store))?;
    let going_on = Operation::begin(pool, vm, operation);
    guest::halt(pool, vm, operation == "clean_reboot");
    drop(going_on);
    pool.db.with(|store| {
        check(store)?;
        let (host, domain) = (store.text("VM", vm, "resident_on")?, free_domain(store));
        switch_off(store, vm, "Halted")?;
        switch_on(store, &host, vm, false)?;
        // Whoever watches the machine sees by the number that it is another domain.
        store.set("VM", vm, "domid", domain)
    })?;
    guest::halt_stale(pool, vm);
    come_up(pool, vm);
    Ok("".into())
}

fn suspend(context: &Context<'_>, vm: &str) -> Answer {
    let pool = context.pool;
    let sr = pool.db.with(|store| {
        check_not_blocked(store, vm, "suspend")?;
        check_power(store, vm, &["Running"])?;
        Ok::<_, Failure>(store.all("pool").next().map_or(Value::from(NULL), |(_, pool)| pool["default_SR"].clone()))
    })?;
    let memory =
        vdi::create_disk(pool, json!({ "SR": sr, "name_label": "Suspend image", "type": "suspend", "virtual_size": 16 << 20 }))?;
    guest::halt(pool, vm, false);
    pool.db.with(|store| {
        switch_off(store, vm, "Suspended")?;
        store.set("VM", vm, "suspend_VDI", memory)
    })?;
    guest::halt_stale(pool, vm);
    Ok("".into())
}

fn resume(context: &Context<'_>, vm: &str, paused: bool) -> Answer {
    let pool = context.pool;
    let memory = pool.db.with(|store| {
        check_not_blocked(store, vm, "resume")?;
        check_power(store, vm, &["Suspended"])?;
        let memory = store.text("VM", vm, "suspend_VDI")?;
        let host = host_for(store, pool, vm, None)?;
        store.set("VM", vm, "suspend_VDI", NULL)?;
        switch_on(store, &host, vm, paused)?;
        store.remove("VDI", &memory);
        Ok::<_, Failure>(memory)
    })?;
    if !paused && !guest::boot(pool, vm) {
        // The agent of a guest that was asleep is there at once.
        pool.db.with(|store| guest_reports(store, vm))?;
    }
    pool.shelf.remove(&memory)?;
    Ok("".into())
}

fn switch(context: &Context<'_>, vm: &str, operation: &str, from: &str, to: &str) -> Answer {
    context.pool.db.with(|store| {
        check_not_blocked(store, vm, operation)?;
        check_power(store, vm, &[from])?;
        store.set("VM", vm, "power_state", to)?;
        update_allowed_operations(store, vm)?;
        Ok("".into())
    })
}
