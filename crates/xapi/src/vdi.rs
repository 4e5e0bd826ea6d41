//! Disks: changed blocks, NBD addresses, creation and destruction (xapi-streams.md §3).

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Client, Error, Ref, Result};

/// Bytes of disk that one bit of a changed-block bitmap stands for.
pub const CBT_BLOCK: u64 = 64 << 10;

/// Which parts of a disk differ from an older snapshot of it: one bit per 64 KiB, highest bit of a byte first
/// (xapi-streams.md §3.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedBlocks {
    bitmap: Vec<u8>,
}

impl ChangedBlocks {
    /// Of a bitmap. Blocks behind its end read as unchanged: see [`ChangedBlocks::covers`].
    pub fn new(bitmap: Vec<u8>) -> Self {
        Self { bitmap }
    }

    /// Whether it has a bit for every part of a disk of `virtual_size` bytes. One that is cut says nothing of the rest.
    pub fn covers(&self, virtual_size: u64) -> bool {
        self.bitmap.len() as u64 >= virtual_size.div_ceil(CBT_BLOCK).div_ceil(8)
    }

    /// Whether the 64 KiB at `index` changed.
    pub fn is_set(&self, index: u64) -> bool {
        usize::try_from(index / 8)
            .ok()
            .and_then(|byte| self.bitmap.get(byte))
            .is_some_and(|byte| byte >> (7 - index % 8) & 1 == 1)
    }

    /// Whether anything in a range of bytes changed.
    pub fn touches(&self, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length).div_ceil(CBT_BLOCK).min(self.bitmap.len() as u64 * 8);
        (offset / CBT_BLOCK..end).any(|index| self.is_set(index))
    }

    /// Indexes of the blocks of `block_size` bytes (a multiple of 64 KiB) in a disk of `virtual_size` bytes that
    /// changed, in order.
    pub fn blocks(&self, virtual_size: u64, block_size: u64) -> impl Iterator<Item = u64> + '_ {
        (0..virtual_size.div_ceil(block_size)).filter(move |index| self.touches(index * block_size, block_size))
    }

    /// Bytes marked as changed.
    pub fn changed_bytes(&self) -> u64 {
        self.bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>() * CBT_BLOCK
    }
}

/// Where a disk can be read over NBD (xapi-streams.md §3.1).
#[derive(Clone, Deserialize)]
pub struct NbdInfo {
    /// Name of the export: a credential, since the session is in it.
    #[serde(rename = "exportname")]
    pub export_name: String,
    /// Address of a host.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// PEM certificate of that host; when it is there, TLS is wanted.
    #[serde(default)]
    pub cert: String,
    /// A name from the certificate.
    #[serde(default)]
    pub subject: String,
}

impl fmt::Debug for NbdInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdInfo").field("address", &self.address).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a disk from a record.
    pub async fn create_vdi(&self, record: Value) -> Result<Ref> {
        self.call("VDI.create", json!([record])).await
    }

    /// Destroys a disk; one that is gone is no error. Control domains that still hold it are made to let go
    /// (xapi-streams.md §1.6, `VDI_IN_USE`).
    pub async fn destroy_vdi(&self, vdi: &Ref) -> Result<()> {
        crate::devices::gone_is_fine(self.when_released("VDI.destroy", json!([vdi]), &[vdi]).await)
    }

    /// Destroys the data of a snapshot with CBT: it stays as a base for changed blocks only (xapi-streams.md §3.3).
    pub async fn data_destroy(&self, vdi: &Ref) -> Result<()> {
        self.when_released("VDI.data_destroy", json!([vdi]), &[vdi]).await
    }

    /// Turns changed block tracking on.
    ///
    /// # Errors
    /// `OPERATION_NOT_ALLOWED` on a snapshot, `SR_OPERATION_NOT_SUPPORTED` and others where CBT is not to be had:
    /// there a backup reads more than it must, and that is all.
    pub async fn enable_cbt(&self, vdi: &Ref) -> Result<()> {
        self.async_call("VDI.enable_cbt", json!([vdi])).await.map(drop)
    }

    /// What changed on a disk between two of its snapshots, the older one first.
    ///
    /// # Errors
    /// `VDI_NO_CBT_METADATA`, `SR_BACKEND_FAILURE_460` and others: the stream has to do.
    pub async fn list_changed_blocks(&self, from: &Ref, to: &Ref) -> Result<ChangedBlocks> {
        let method = "VDI.list_changed_blocks";
        let malformed = |reason: String| Error::Malformed { what: method.into(), reason };
        match self.async_call(method, json!([from, to])).await? {
            Value::String(text) => {
                let text: String = text.split_ascii_whitespace().collect();
                STANDARD.decode(text).map(ChangedBlocks::new).map_err(|error| malformed(format!("no base64: {error}")))
            }
            Value::Null => Ok(ChangedBlocks::new(Vec::new())),
            _ => Err(malformed("no text".into())),
        }
    }

    /// Where a disk can be read over NBD; nowhere when the list is empty. The names hold the present session: they
    /// end with [`Client::close`].
    pub async fn nbd_info(&self, vdi: &Ref) -> Result<Vec<NbdInfo>> {
        self.call("VDI.get_nbd_info", json!([vdi])).await
    }

    /// Makes a disk that no running VM has larger: `bytes` as the guest will see it.
    pub async fn resize_vdi(&self, vdi: &Ref, bytes: u64) -> Result<()> {
        self.when_released("VDI.resize", json!([vdi, bytes]), &[vdi]).await
    }

    /// Calls `method` as a task, again while its object or one of `disks` is in use, after control domains were made to
    /// let go of the disks.
    pub(crate) async fn when_released(&self, method: &str, params: Value, disks: &[&Ref]) -> Result<()> {
        let timing = self.timing();
        let mut delay = (timing.busy_delay / 10).max(Duration::from_millis(1));
        let mut attempt = 1;
        loop {
            let error = match self.async_call(method, &params).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let in_use = error.is("VDI_IN_USE") || error.is("OTHER_OPERATION_IN_PROGRESS");
            if !in_use || attempt >= timing.busy_attempts {
                return Err(error);
            }
            attempt += 1;
            for disk in disks {
                self.release_disk(disk).await?;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(timing.busy_delay);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 2 << 20;

    #[test]
    fn the_highest_bit_comes_first() {
        let changed = ChangedBlocks::new(vec![0b1000_0001, 0, 0, 0, 0, 0b0100_0000]);
        assert!(changed.is_set(0) && changed.is_set(7) && changed.is_set(41));
        assert!(!changed.is_set(1) && !changed.is_set(40) && !changed.is_set(u64::MAX));
        assert_eq!(changed.blocks(3 * BLOCK, BLOCK).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(changed.changed_bytes(), 3 * CBT_BLOCK);
    }

    #[test]
    fn a_bitmap_that_ends_in_the_middle_of_a_block_is_read_to_its_end() {
        // XO reads whole words and fails here (xapi-streams.md §3.3).
        let changed = ChangedBlocks::new(vec![0, 0, 0, 0, 0, 1]);
        assert_eq!(changed.blocks(2 * BLOCK, BLOCK).collect::<Vec<_>>(), [1]);
        assert!(!changed.touches(u64::MAX - 5, 5));
    }

    #[test]
    fn a_bitmap_that_is_cut_does_not_cover_its_disk() {
        for (bytes, size, covers) in
            [(0, 0, true), (0, 1, false), (1, 8 * CBT_BLOCK, true), (1, 8 * CBT_BLOCK + 1, false), (2, 9 * CBT_BLOCK, true)]
        {
            assert_eq!(ChangedBlocks::new(vec![0; bytes]).covers(size), covers, "{bytes} bytes for {size}");
        }
    }

    #[test]
    fn an_export_name_is_not_in_the_debug_output() {
        let info: NbdInfo =
            serde_json::from_value(json!({"exportname": "/u?session_id=OpaqueRef:secret", "address": "10.0.0.1", "port": 10809}))
                .unwrap();
        assert!(!format!("{info:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn a_block_is_read_exactly_when_one_of_its_bits_is_set(bitmap in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..40)) {
            let size = bitmap.len() as u64 * 8 * CBT_BLOCK;
            let expected: Vec<u64> = bitmap.chunks(4).zip(0..).filter(|(word, _)| word.iter().any(|byte| *byte != 0)).map(|(_, i)| i).collect();
            prop_assert_eq!(ChangedBlocks::new(bitmap).blocks(size, BLOCK).collect::<Vec<_>>(), expected);
        }
    }
}
