//! The guests of appliances: told when their machine starts and stops, and heard when they report.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::power::guest_reports;
use crate::failure::Failure;
use crate::fault::Fault;
use crate::guests::{APPLIANCE, Boot, Guests, Report};
use crate::pool::Pool;
use crate::record::NULL;
use crate::store::Store;

/// What host and guest tell each other stands below it in a machine's XenStore data.
const DATA: &str = "vm-data/";

/// A guest that was started, until its machine is switched off.
pub(crate) struct Booted {
    /// The domain that it was started in.
    domain: i64,
    /// Ends the wait for its report.
    stop: CancellationToken,
    /// Nobody waits for it any more.
    ended: CancellationToken,
}

/// Whether somebody runs the guest of that machine, and who.
fn runner(pool: &Pool, vm: &str) -> Option<(Arc<dyn Guests>, String)> {
    let guests = pool.guests.get()?;
    pool.db.with(|store| {
        let record = store.get("VM", vm).ok()?;
        let ours = record["is_a_snapshot"] == false && record["other_config"].get(APPLIANCE).is_some();
        Some((Arc::clone(guests), record["uuid"].as_str()?.to_owned())).filter(|_| ours)
    })
}

/// Starts the guest of a machine that runs now; `false` when it is not an appliance's or nobody runs guests. One that
/// was started already goes on; one whose machine was switched off meanwhile is not started.
pub(super) fn boot(pool: &Arc<Pool>, vm: &str) -> bool {
    let Some((guests, _)) = runner(pool, vm) else { return false };
    let (stop, ended) = (pool.stop.child_token(), CancellationToken::new());
    let mut booted = pool.booted.lock().unwrap_or_else(PoisonError::into_inner);
    // Looked at under the lock: whoever switches the machine off looks for its guest under the same one, afterwards.
    let Ok((machine, domain)) = pool.db.with(|store| describe(store, vm)) else { return false };
    if domain < 0 || booted.contains_key(vm) {
        return true;
    }
    booted.insert(vm.to_owned(), Booted { domain, stop: stop.clone(), ended: ended.clone() });
    drop(booted);
    let (late, vm) = (Arc::clone(pool), vm.to_owned());
    pool.runtime.spawn(pool.tracker.track_future(async move {
        let _ended = ended.drop_guard();
        let (uuid, told) = (machine.vm.clone(), machine.data.clone());
        let report = tokio::select! {
            report = guests.boot(machine) => report,
            () = stop.cancelled() => return,
        };
        match report {
            // The machine may be gone or off again by now.
            Ok(report) => {
                if let Some(report) = falsified(&late, report, told) {
                    drop(late.db.with(|store| reported(store, &vm, domain, report)));
                }
            }
            Err(error) => tracing::warn!(pool = late.identity.name, vm = uuid, error, "a guest does not come up"),
        }
    }));
    true
}

/// What the pool hears of a report, by the faults that are on.
fn falsified(pool: &Pool, mut report: Report, told: BTreeMap<String, String>) -> Option<Report> {
    if pool.faults.hits(&Fault::GuestNeverReports) {
        return None;
    }
    if pool.faults.hits(&Fault::DaemonNeverAnswers) {
        report.data = told;
    }
    let other = pool.faults.strike(|fault| match fault {
        Fault::GuestReportsOtherAddress { address } => Some(*address),
        _ => None,
    });
    report.address = other.or(report.address);
    Some(report)
}

/// Starts the guests of all machines that run without one: those that ran when the lab was closed.
pub(crate) fn boot_all(pool: &Arc<Pool>) {
    let running: Vec<String> = pool.db.with(|store| {
        let running = store.all("VM").filter(|(_, vm)| vm["power_state"] == "Running");
        running.filter(|(_, vm)| vm["other_config"].get(APPLIANCE).is_some()).map(|(vm, _)| vm.to_owned()).collect()
    });
    for vm in running {
        // What the former guest reported does not hold for this one.
        let _gone = pool.db.with(|store| forget_metrics(store, &vm));
        boot(pool, &vm);
    }
}

/// Stops the guest of a machine before the machine itself stops, and waits until it has. Blocks.
pub(super) fn halt(pool: &Pool, vm: &str, clean: bool) {
    let booted = pool.booted.lock().unwrap_or_else(PoisonError::into_inner).remove(vm);
    stop(pool, vm, booted, clean);
}

/// Stops a guest that was started while its machine was being switched off: to be asked once the machine is off. Blocks.
pub(super) fn halt_stale(pool: &Pool, vm: &str) {
    let mut booted = pool.booted.lock().unwrap_or_else(PoisonError::into_inner);
    let domain = pool.db.with(|store| store.get("VM", vm).ok().and_then(|vm| vm["domid"].as_i64())).unwrap_or(-1);
    let stale = booted.get(vm).is_some_and(|booted| booted.domain != domain).then(|| booted.remove(vm)).flatten();
    drop(booted);
    if stale.is_some() {
        stop(pool, vm, stale, false);
    }
}

fn stop(pool: &Pool, vm: &str, booted: Option<Booted>, clean: bool) {
    let Some((guests, uuid)) = runner(pool, vm) else { return };
    wait(pool, async move {
        if let Some(booted) = booted {
            booted.stop.cancel();
            booted.ended.cancelled().await;
        }
        guests.halt(&uuid, clean).await;
    });
}

/// Says whom to tell once a machine is destroyed; to be asked while its record is there.
pub(super) fn before_destroying(pool: &Pool, vm: &str) -> impl FnOnce(&Pool) + use<> {
    let known = runner(pool, vm);
    move |pool| {
        if let Some((guests, uuid)) = known {
            wait(pool, async move { guests.forget(&uuid).await });
        }
    }
}

/// Waits for something on a thread of its own, which every call has; a lab that is closed waits for nothing.
fn wait(pool: &Pool, work: impl Future<Output = ()>) {
    pool.runtime.block_on(async {
        tokio::select! {
            () = work => {}
            () = pool.stop.cancelled() => {}
        }
    });
}

/// What a guest is told, and the domain in which it runs.
fn describe(store: &Store, vm: &str) -> Result<(Boot, i64), Failure> {
    let mut vifs = Vec::new();
    for vif in store.refs("VM", vm, "VIFs")? {
        let number = store.text("VIF", &vif, "device")?.parse().unwrap_or(u32::MAX);
        vifs.push((number, store.text("VIF", &vif, "network")?, store.text("VIF", &vif, "MAC")?));
    }
    let (network, mac) = match vifs.into_iter().min() {
        Some((_, network, mac)) => (store.text("network", &network, "uuid").unwrap_or_default(), mac),
        None => Default::default(),
    };
    let record = store.get("VM", vm)?;
    let data = record["xenstore_data"].as_object().into_iter().flatten();
    let data = data.filter_map(|(key, value)| Some((key.strip_prefix(DATA)?.to_owned(), value.as_str()?.to_owned())));
    let machine = Boot { vm: store.text("VM", vm, "uuid")?, network, mac, data: data.collect() };
    Ok((machine, record["domid"].as_i64().unwrap_or(-1)))
}

/// Writes down what a guest reports, if its machine is still the one that it was started in.
fn reported(store: &mut Store, vm: &str, domain: i64, report: Report) -> Result<(), Failure> {
    let record = store.get("VM", vm)?;
    if record["domid"].as_i64() != Some(domain) || record["power_state"] == "Halted" {
        return Ok(());
    }
    store.edit("VM", vm, "xenstore_data", |data| replace_data(data, report.data))?;
    guest_reports(store, vm)?;
    let metrics = store.text("VM", vm, "guest_metrics")?;
    if metrics == NULL {
        return Ok(());
    }
    let networks = report.address.map_or_else(
        || json!({}),
        |address| {
            let family = if address.is_ipv4() { "0/ipv4/0" } else { "0/ipv6/0" };
            // The short key is the one of IPv4, as the agent of guests writes it.
            let mut networks = BTreeMap::from([(family, address.to_string())]);
            if address.is_ipv4() {
                networks.insert("0/ip", address.to_string());
            }
            json!(networks)
        },
    );
    store.set("VM_guest_metrics", &metrics, "networks", networks)
}

fn replace_data(data: &mut Value, told: BTreeMap<String, String>) {
    if let Value::Object(data) = data {
        data.retain(|key, _| !key.starts_with(DATA));
        data.extend(told.into_iter().map(|(key, value)| (format!("{DATA}{key}"), Value::from(value))));
    }
}

/// Nothing is known of the guest any more.
pub(super) fn forget_metrics(store: &mut Store, vm: &str) -> Result<(), Failure> {
    let guest = store.text("VM", vm, "guest_metrics")?;
    store.set("VM", vm, "guest_metrics", NULL)?;
    store.remove("VM_guest_metrics", &guest);
    Ok(())
}
