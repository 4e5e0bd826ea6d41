//! The new VM on the pool while a delta is restored into it: everything that was made is known, so that it can be
//! undone (backup-repository.md §6.2).

use std::collections::BTreeMap;

use repository::BackupMetadata;
use serde_json::{Map, Value};
use xapi::{Destroy, Network, Pif, Ref, Sr, Vdi, Vm};

use super::records::{self, NetworkChoice};
use crate::backup::keys;
use crate::error::Error;
use crate::journal::Task;
use crate::pool::Pool;

/// BIOS strings a pool lets itself be told.
const BIOS_STRINGS: [&str; 6] =
    ["bios-vendor", "bios-version", "system-manufacturer", "system-product-name", "system-version", "system-serial-number"];

/// A VM in the making.
pub(super) struct NewVm<'a> {
    pool: &'a Pool,
    stored: &'a BackupMetadata,
    pub(super) vm: Ref,
    pub(super) uuid: String,
    vdis: Vec<Ref>,
}

impl<'a> NewVm<'a> {
    /// Creates the VM record, without disks, marked with the run and blocked against starting.
    pub(super) async fn create(pool: &'a Pool, stored: &'a BackupMetadata, run: &str) -> Result<Self, Error> {
        let doing = || pool.failed(format!("create a VM for {}", stored.vm_name()));
        let vm = pool.client.create_vm(records::vm(&stored.vm, run)).await.map_err(doing())?;
        let record = match pool.client.get::<Vm>(&vm).await {
            Ok(record) => record,
            Err(error) => {
                let _ = pool.client.destroy_vm(&vm, Destroy { disks: true, bypass_blocked: true }).await;
                return Err(doing()(error));
            }
        };
        let new = Self { pool, stored, uuid: record.uuid.clone(), vm, vdis: Vec::new() };
        // Templates may have given it attachments of their own.
        for vbd in &record.vbds {
            if let Err(error) = pool.client.destroy_vbd(vbd).await {
                tracing::warn!(%error, "an attachment made with the VM stays");
            }
        }
        new.set_bios_strings().await;
        Ok(new)
    }

    async fn set_bios_strings(&self) {
        let Some(stored) = self.stored.vm.get("bios_strings").and_then(Value::as_object) else { return };
        let known: BTreeMap<String, String> = BIOS_STRINGS
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), stored.get(*key)?.as_str()?.to_owned())))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        if known.is_empty() {
            return;
        }
        if let Err(error) = self.pool.client.set_bios_strings(&self.vm, &known).await {
            tracing::warn!(%error, "the BIOS strings of the VM are the host's");
        }
    }

    /// Creates a disk of `virtual_size` bytes and attaches it where it was. `key` is its key in the metadata.
    pub(super) async fn add_disk(
        &mut self,
        key: &str,
        vdi: &Map<String, Value>,
        sr: &Ref,
        virtual_size: u64,
        run: &str,
    ) -> Result<Ref, Error> {
        let name = records::text(vdi, "name_label");
        let record = records::vdi(vdi, sr.as_str(), virtual_size, run);
        let new = self.pool.client.create_vdi(record).await.map_err(self.pool.failed(format!("create disk {name}")))?;
        self.vdis.push(new.clone());
        for vbd in self.stored.vbds.iter().flat_map(BTreeMap::values).filter(|vbd| records::text(vbd, "VDI") == key) {
            self.pool
                .client
                .create_vbd(records::vbd(vbd, self.vm.as_str(), new.as_str()))
                .await
                .map_err(self.pool.failed(format!("attach disk {name}")))?;
        }
        Ok(new)
    }

    /// Creates the network interfaces, each on the network that fits best.
    pub(super) async fn add_interfaces(&self, task: &Task) -> Result<(), Error> {
        let stored: Vec<_> = self.stored.vifs.iter().flat_map(BTreeMap::values).collect();
        if stored.is_empty() {
            return Ok(());
        }
        let networks = networks(self.pool).await?;
        for vif in stored {
            let device = records::text(vif, "device");
            let Some(network) = records::choose_network(vif, &networks) else {
                task.warn(format!("network interface {device} is left out: the pool has no network"));
                continue;
            };
            if network.uuid != records::text(vif, "$network$uuid") {
                task.warn(format!(
                    "network interface {device} goes to network {}: {} is not on this pool",
                    network.name,
                    records::text(vif, "$network$name_label")
                ));
            }
            self.pool
                .client
                .create_vif(records::vif(vif, self.vm.as_str(), &network.reference))
                .await
                .map_err(self.pool.failed(format!("create network interface {device}")))?;
        }
        Ok(())
    }

    /// Gives the VM the TPM it had. Without the right licence it starts without, and the journal says so.
    pub(super) async fn add_tpms(&self, task: &Task) {
        for contents in self.stored.vtpms.iter().flatten().filter_map(Value::as_str) {
            if let Err(error) = self.pool.client.replace_vtpm(&self.vm, contents).await {
                task.warn(format!("the virtual TPM is not restored: {}", crate::error::sentence(&error)));
            }
        }
    }

    /// Makes it a VM like any other: named, startable, without mark.
    pub(super) async fn finish(&self, name: &str, description: &str) -> Result<(), Error> {
        let finish = async {
            if self.stored.vm.get("ha_always_run").and_then(Value::as_bool) == Some(true) {
                self.pool.client.set_field("VM", &self.vm, "ha_always_run", true).await?;
            }
            publish(self.pool, &self.vm, name, description).await?;
            for vdi in &self.vdis {
                self.pool.client.clear_other_config("VDI", vdi, &[keys::RESTORE_RUN]).await?;
            }
            // Without the mark the restore is finished. Only then may anybody start the VM: a marked one can be destroyed.
            self.pool.client.clear_other_config("VM", &self.vm, &[keys::RESTORE_RUN]).await?;
            let previous =
                records::BLOCKED.map(|operation| (operation.to_owned(), records::blocked_before(&self.stored.vm, operation)));
            self.pool.client.restore_blocked(&self.vm, &previous.into_iter().collect()).await
        };
        finish.await.map_err(self.pool.failed(format!("finish VM {name}")))
    }

    /// Destroys everything that was made.
    pub(super) async fn undo(&self) -> Result<(), Error> {
        let doing = || self.pool.failed(format!("destroy the half-restored VM {}", self.uuid));
        let how = Destroy { disks: true, bypass_blocked: true };
        self.pool.client.destroy_vm(&self.vm, how).await.map_err(doing())?;
        for vdi in &self.vdis {
            self.pool.client.destroy_vdi(vdi).await.map_err(doing())?;
        }
        Ok(())
    }
}

/// Name, description and tag of a restored VM, of either kind.
pub(super) async fn publish(pool: &Pool, vm: &Ref, name: &str, description: &str) -> xapi::Result<()> {
    pool.client.add_tag(vm, "restored from backup").await?;
    pool.client.set_field("VM", vm, "name_description", description).await?;
    pool.client.set_field("VM", vm, "name_label", name).await
}

/// Takes the keys of the backup off a VM imported from an XVA, and off its disks.
pub(super) async fn clear_keys(pool: &Pool, vm: &Ref) -> xapi::Result<()> {
    pool.client.clear_other_config("VM", vm, &keys::WIPED).await?;
    for (_, vdi) in pool.client.disks(vm).await? {
        pool.client.clear_other_config("VDI", &vdi.reference, &keys::WIPED).await?;
    }
    Ok(())
}

/// The storage repository that takes the disks.
pub(super) async fn storage(pool: &Pool, uuid: &str) -> Result<Ref, Error> {
    match pool.client.by_uuid::<Sr>(uuid).await {
        Ok(sr) => Ok(sr.reference.clone()),
        Err(error) if error.is_gone() => {
            Err(Error::refused("SR_NOT_FOUND", format!("pool {} has no storage repository {uuid}", pool.name)))
        }
        Err(error) => Err(pool.failed(format!("find storage repository {uuid}"))(error)),
    }
}

/// The size a new disk really has: some storages round up.
pub(super) async fn size_of(pool: &Pool, vdi: &Ref) -> Result<u64, Error> {
    Ok(pool.get::<Vdi>(vdi).await?.virtual_size)
}

async fn networks(pool: &Pool) -> Result<Vec<NetworkChoice>, Error> {
    let (networks, pifs) =
        tokio::try_join!(pool.client.all::<Network>(), pool.client.all::<Pif>()).map_err(pool.failed("list its networks"))?;
    let vlans: BTreeMap<&Ref, i64> = pifs.iter().filter_map(|pif| Some((&pif.reference, records::number(&pif.vlan)?))).collect();
    let choice = |network: &xapi::Record<Network>| NetworkChoice {
        reference: network.reference.to_string(),
        uuid: network.uuid.clone(),
        name: network.name_label.clone(),
        vlan: network.pifs.first().and_then(|pif| vlans.get(pif).copied()).unwrap_or(-1),
    };
    Ok(networks.iter().map(choice).collect())
}

/// What the description of a restored VM says of its origin.
pub(super) fn description(stored: &BackupMetadata, remote: &str) -> String {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    let origin = format!("Restored on {now} from {remote}");
    match records::text(&stored.vm, "name_description") {
        "" => origin,
        original => format!("{origin} - {original}"),
    }
}

/// What a restored VM is called: as asked, or by its old name and the time of the backup.
pub(super) fn name(stored: &BackupMetadata, stem: &str, asked: Option<&str>) -> String {
    asked.filter(|name| !name.is_empty()).map_or_else(|| format!("{} ({stem})", stored.vm_name()), Into::into)
}
