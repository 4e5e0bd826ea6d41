//! What a VM is made of and what it is told: processors, memory, XenStore data.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{Client, Record, Ref, Result, Sr, Vm};

impl Sr {
    /// Whether a disk takes only what is written to it. Storage on LVM reserves all of it, unless it says otherwise.
    pub fn is_thin(&self) -> bool {
        let lvm = self.r#type.starts_with("lvm");
        !lvm || self.sm_config.get("allocation").is_some_and(|allocation| allocation == "thin")
    }

    /// Bytes without a use.
    pub fn free(&self) -> u64 {
        self.physical_size.saturating_sub(self.physical_utilisation)
    }
}

impl Client {
    /// Gives a VM that does not run so many processors.
    pub async fn set_vcpus(&self, vm: &Record<Vm>, count: u64) -> Result<()> {
        // At no moment may it start with more than it can have.
        let order =
            if count < vm.vcpus_at_startup { ["VCPUs_at_startup", "VCPUs_max"] } else { ["VCPUs_max", "VCPUs_at_startup"] };
        for field in order {
            self.set_field("VM", &vm.reference, field, count).await?;
        }
        Ok(())
    }

    /// Gives a VM that does not run so much memory, bytes: all of it always.
    pub async fn set_memory(&self, vm: &Record<Vm>, bytes: u64) -> Result<()> {
        let least = vm.memory_static_min.min(bytes);
        self.run("VM.set_memory_limits", json!([vm.reference, least, bytes, bytes, bytes])).await
    }

    /// What host and guest of a VM tell each other now, keys such as `vm-data/…`. May hold secrets.
    pub async fn xenstore_data(&self, vm: &Ref) -> Result<BTreeMap<String, String>> {
        self.field("VM", vm, "xenstore_data").await
    }

    /// Replaces all that a VM is told; it takes effect when it starts.
    pub async fn set_xenstore_data(&self, vm: &Ref, data: &BTreeMap<String, String>) -> Result<()> {
        self.set_field("VM", vm, "xenstore_data", data).await
    }

    /// Sets one key of what a VM is told.
    pub async fn set_xenstore_key(&self, vm: &Ref, key: &str, value: &str) -> Result<()> {
        self.set_map_entry("VM", vm, "xenstore_data", key, value).await
    }

    /// Removes one key of what a VM is told; an absent one does not matter.
    pub async fn clear_xenstore_key(&self, vm: &Ref, key: &str) -> Result<()> {
        self.run("VM.remove_from_xenstore_data", json!([vm, key])).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_on_lvm_is_thick_unless_it_says_otherwise() {
        let sr = |kind: &str, allocation: &str| Sr {
            r#type: kind.into(),
            sm_config: [("allocation".to_owned(), allocation.to_owned())].into(),
            ..Sr::default()
        };
        for (kind, allocation, thin) in
            [("ext", "", true), ("nfs", "", true), ("lvmoiscsi", "thick", false), ("lvm", "thin", true)]
        {
            assert_eq!(sr(kind, allocation).is_thin(), thin, "{kind} {allocation}");
        }
    }

    #[test]
    fn an_overcommitted_storage_has_nothing_free() {
        assert_eq!(Sr { physical_size: 5, physical_utilisation: 9, ..Sr::default() }.free(), 0);
    }
}
