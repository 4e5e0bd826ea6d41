//! VMs: snapshots, blocked operations, creation and destruction (xapi-streams.md §1.5).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::devices::gone_is_fine;
use crate::{Client, Record, Ref, Result, Vbd, Vdi, Vm};

/// How a VM is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Destroy {
    /// Also its disks, except those that another VM uses.
    pub disks: bool,
    /// Even when the operation is blocked: only for VMs and snapshots of our own.
    pub bypass_blocked: bool,
}

impl Client {
    /// The VMs a person knows: no templates, no snapshots, no control domains.
    pub async fn vms(&self) -> Result<Vec<Record<Vm>>> {
        let mut vms = self.all::<Vm>().await?;
        vms.retain(|vm| !vm.is_a_template && !vm.is_a_snapshot && !vm.is_control_domain);
        Ok(vms)
    }

    /// The disks of a VM with their attachments, in order of their position; drives and empty attachments left out.
    pub async fn disks(&self, vm: &Ref) -> Result<Vec<(Record<Vbd>, Record<Vdi>)>> {
        let mut disks = Vec::new();
        for vbd in self.vbds(vm).await? {
            if vbd.r#type == "Disk" && !vbd.vdi.is_null() {
                let vdi = self.get::<Vdi>(&vbd.vdi).await?;
                disks.push((vbd, vdi));
            }
        }
        disks.sort_by_key(|(vbd, _)| vbd.userdevice.parse::<u32>().unwrap_or(u32::MAX));
        Ok(disks)
    }

    /// Takes a snapshot without the disks `ignored`. Hosts that cannot ignore disks take it with them (T19). The
    /// snapshot is un-flagged as a template at once, or its XVA would be one (T7).
    pub async fn snapshot_vm(&self, vm: &Ref, name: &str, ignored: &[Ref]) -> Result<Ref> {
        let mut result = Value::Null;
        let mut plain = ignored.is_empty();
        if !plain {
            match self.async_call("VM.snapshot", json!([vm, name, ignored])).await {
                Err(error) if error.is("MESSAGE_PARAMETER_COUNT_MISMATCH") => plain = true,
                answer => result = answer?,
            }
        }
        if plain {
            result = self.async_call("VM.snapshot", json!([vm, name])).await?;
        }
        let snapshot = match result {
            Value::String(reference) => Ref::from(reference),
            _ => return Err(crate::Error::Malformed { what: "VM.snapshot".into(), reason: "its task names no snapshot".into() }),
        };
        self.untemplate(&snapshot).await?;
        Ok(snapshot)
    }

    /// Makes a template an ordinary VM. A licence that forbids it is ignored, as the flag then has no effect (T5).
    pub async fn untemplate(&self, vm: &Ref) -> Result<()> {
        match self.set_field("VM", vm, "is_a_template", false).await {
            Err(error) if error.is("LICENCE_RESTRICTION") => Ok(()),
            result => result,
        }
    }

    /// The reasons for which `operations` are blocked on a VM now, to be restored later by
    /// [`Client::restore_blocked`]. A reason equal to `ours` was left by an interrupted run and counts as none
    /// (backup-repository.md §4.2 step 3).
    pub async fn blocked(&self, vm: &Ref, operations: &[&str], ours: &str) -> Result<BTreeMap<String, Option<String>>> {
        let blocked: BTreeMap<String, String> = self.field("VM", vm, "blocked_operations").await?;
        let reason = |operation: &str| blocked.get(operation).filter(|reason| *reason != ours).cloned();
        Ok(operations.iter().map(|operation| ((*operation).to_owned(), reason(operation))).collect())
    }

    /// Blocks `operations` on a VM with a reason.
    pub async fn block(&self, vm: &Ref, operations: &[&str], reason: &str) -> Result<()> {
        for operation in operations {
            self.set_map_entry("VM", vm, "blocked_operations", operation, reason).await?;
        }
        Ok(())
    }

    /// Gives operations the reasons they had, or frees them.
    pub async fn restore_blocked(&self, vm: &Ref, previous: &BTreeMap<String, Option<String>>) -> Result<()> {
        for (operation, reason) in previous {
            match reason {
                Some(reason) => self.set_map_entry("VM", vm, "blocked_operations", operation, reason).await?,
                None => self.run("VM.remove_from_blocked_operations", json!([vm, operation])).await?,
            }
        }
        self.run("VM.update_allowed_operations", json!([vm])).await
    }

    /// Makes a VM from a record.
    pub async fn create_vm(&self, record: Value) -> Result<Ref> {
        self.call("VM.create", json!([record])).await
    }

    /// Sets the BIOS strings of a new VM; hosts that do not know the call do without.
    pub async fn set_bios_strings(&self, vm: &Ref, strings: &BTreeMap<String, String>) -> Result<()> {
        match self.run("VM.set_bios_strings", json!([vm, strings])).await {
            Err(error) if error.is("MESSAGE_METHOD_UNKNOWN") => Ok(()),
            result => result,
        }
    }

    /// Adds a tag.
    pub async fn add_tag(&self, vm: &Ref, tag: &str) -> Result<()> {
        self.run("VM.add_tags", json!([vm, tag])).await
    }

    /// Starts a VM.
    pub async fn start_vm(&self, vm: &Ref) -> Result<()> {
        self.async_call("VM.start", json!([vm, false, false])).await.map(drop)
    }

    /// Shuts a VM down, by its guest or (`hard`) by pulling the plug.
    pub async fn shut_down_vm(&self, vm: &Ref, hard: bool) -> Result<()> {
        let method = if hard { "VM.hard_shutdown" } else { "VM.clean_shutdown" };
        self.async_call(method, json!([vm])).await.map(drop)
    }

    /// Destroys a VM or snapshot, with its own snapshots; one that is gone is no error (xapi-streams.md §1.5).
    pub async fn destroy_vm(&self, vm: &Ref, how: Destroy) -> Result<()> {
        let record = match self.get::<Vm>(vm).await {
            Err(error) if error.is_gone() => return Ok(()),
            record => record?,
        };
        if record.is_a_template {
            self.untemplate(vm).await?;
        }
        let halted = record.power_state == "Halted";
        if how.bypass_blocked {
            for operation in ["destroy", "hard_shutdown"] {
                if record.blocked_operations.contains_key(operation) {
                    self.run("VM.remove_from_blocked_operations", json!([vm, operation])).await?;
                }
            }
        }
        // A suspended snapshot has no domain to stop.
        if !halted && !record.is_a_snapshot {
            self.shut_down_vm(vm, true).await?;
        }
        let disks = if how.disks { self.disks_to_destroy(vm).await? } else { Vec::new() };
        gone_is_fine(self.when_released("VM.destroy", json!([vm]), &disks.iter().collect::<Vec<_>>()).await)?;
        for snapshot in &record.snapshots {
            // Snapshots have none of their own, so this ends.
            Box::pin(self.destroy_vm(snapshot, how)).await?;
        }
        for disk in &disks {
            self.destroy_vdi(disk).await?;
        }
        Ok(())
    }

    /// The disks of a VM that go with it when it is destroyed: those that no other VM uses, except control domains.
    ///
    /// # Errors
    /// The pool does not answer, or the VM is gone.
    pub async fn disks_to_destroy(&self, vm: &Ref) -> Result<Vec<Ref>> {
        let mut disks = Vec::new();
        for vbd in self.vbds(vm).await? {
            if vbd.r#type != "Disk" || vbd.vdi.is_null() || disks.contains(&vbd.vdi) {
                continue;
            }
            let users: Vec<Ref> = match self.field("VDI", &vbd.vdi, "VBDs").await {
                Err(error) if error.is_gone() => continue,
                users => users?,
            };
            let mut shared = false;
            for user in users {
                let owner = self.field::<Ref>("VBD", &user, "VM").await;
                let ours = owner.as_ref().is_ok_and(|owner| owner == vm);
                // On doubt a disk counts as shared and stays.
                let gone = owner.as_ref().is_err_and(crate::Error::is_gone);
                shared |= !ours && !gone && !self.is_of_control_domain(&user).await?;
            }
            if !shared {
                disks.push(vbd.vdi.clone());
            }
        }
        Ok(disks)
    }
}
