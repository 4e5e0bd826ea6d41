//! What connects VMs with disks and networks: VBDs, VIFs, virtual TPMs.

use serde_json::{Value, json};

use crate::{Client, Ref, Result, Vbd, Vtpm};

impl Client {
    /// Makes a VBD from a record.
    pub async fn create_vbd(&self, record: Value) -> Result<Ref> {
        self.call("VBD.create", json!([record])).await
    }

    /// Destroys a VBD; one that is gone is no error.
    pub async fn destroy_vbd(&self, vbd: &Ref) -> Result<()> {
        gone_is_fine(self.run("VBD.destroy", json!([vbd])).await)
    }

    /// Makes a VIF from a record; an empty `MAC` has one generated.
    pub async fn create_vif(&self, record: Value) -> Result<Ref> {
        self.call("VIF.create", json!([record])).await
    }

    /// Destroys the network interface of a VM that does not run; one that is gone is no error.
    pub async fn destroy_vif(&self, vif: &Ref) -> Result<()> {
        gone_is_fine(self.run("VIF.destroy", json!([vif])).await)
    }

    /// Positions free for a further disk, lowest first.
    pub async fn free_vbd_devices(&self, vm: &Ref) -> Result<Vec<String>> {
        self.call("VM.get_allowed_VBD_devices", json!([vm])).await
    }

    /// Positions free for a further network interface, lowest first.
    pub async fn free_vif_devices(&self, vm: &Ref) -> Result<Vec<String>> {
        self.call("VM.get_allowed_VIF_devices", json!([vm])).await
    }

    /// The content of a virtual TPM. A secret of the VM.
    pub async fn vtpm_contents(&self, vtpm: &Ref) -> Result<String> {
        self.call("VTPM.get_contents", json!([vtpm])).await
    }

    /// Gives a VM the one virtual TPM with `contents`, instead of those it has (backup-repository.md §6.2 step 8).
    pub async fn replace_vtpm(&self, vm: &Ref, contents: &str) -> Result<Ref> {
        for vtpm in self.field::<Vec<Ref>>("VM", vm, "VTPMs").await? {
            gone_is_fine(self.run(&format!("{}.destroy", <Vtpm as crate::Kind>::CLASS), json!([vtpm])).await)?;
        }
        let vtpm: Ref = self.call("VTPM.create", json!([vm, false])).await?;
        self.run("VTPM.set_contents", json!([vtpm, contents])).await?;
        Ok(vtpm)
    }

    /// Unplugs and destroys the VBDs by which control domains still hold a disk after an export, an NBD session or
    /// CBT work (xapi-streams.md §2.7, T8). Says whether there was one.
    pub async fn release_disk(&self, vdi: &Ref) -> Result<bool> {
        let vbds: Vec<Ref> = match self.field("VDI", vdi, "VBDs").await {
            Err(error) if error.is_gone() => return Ok(false),
            vbds => vbds?,
        };
        let mut released = false;
        for vbd in vbds {
            if self.is_of_control_domain(&vbd).await? {
                self.unplug(&vbd).await;
                self.destroy_vbd(&vbd).await?;
                released = true;
            }
        }
        Ok(released)
    }

    /// Whether a VBD belongs to a control domain; one that is gone does not.
    pub(crate) async fn is_of_control_domain(&self, vbd: &Ref) -> Result<bool> {
        let answer = async {
            let vm: Ref = self.field("VBD", vbd, "VM").await?;
            self.field::<bool>("VM", &vm, "is_control_domain").await
        };
        match answer.await {
            Err(error) if error.is_gone() => Ok(false),
            answer => answer,
        }
    }

    /// Unplugs as well as it can be done; the destruction that follows tells whether it was enough.
    async fn unplug(&self, vbd: &Ref) {
        match self.run("VBD.unplug_force", json!([vbd])).await {
            Err(error) if error.is("VBD_NOT_UNPLUGGABLE") => {
                let _ = self.set_field("VBD", vbd, "unpluggable", true).await;
                let _ = self.run("VBD.unplug_force", json!([vbd])).await;
            }
            Err(error) => tracing::debug!(%error, "a disk stays plugged in a control domain"),
            Ok(()) => {}
        }
    }

    /// The records of the VBDs of a VM; those that go meanwhile are left out.
    pub async fn vbds(&self, vm: &Ref) -> Result<Vec<crate::Record<Vbd>>> {
        let mut records = Vec::new();
        for vbd in self.field::<Vec<Ref>>("VM", vm, "VBDs").await? {
            match self.get::<Vbd>(&vbd).await {
                Ok(record) => records.push(record),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }
}

/// Destroying what is gone has succeeded.
pub(crate) fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        result => result,
    }
}
