//! What a laboratory consists of: pools, their VMs, their disks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// A mebibyte, bytes.
pub const MIB: u64 = 1 << 20;

/// A laboratory: pools that know nothing of each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabSpec {
    /// The pools; their names are different.
    pub pools: Vec<PoolSpec>,
    /// Everything that looks random comes from here.
    pub seed: u64,
}

/// One simulated pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Its name label, and the name of its directory.
    pub name: String,
    /// Its virtual machines.
    pub vms: Vec<VmSpec>,
    /// Hosts, 1 to 8. The first is the master on 127.0.0.1, the others answer on 127.0.0.2 and so on, on the same port.
    pub hosts: u8,
    /// Size of the storage repository, bytes.
    pub sr_bytes: u64,
    /// Whether the network's purpose contains `nbd`, so that disks are offered over NBD with TLS.
    pub nbd: bool,
    /// How long a disk stays attached to the control domain after a transfer (xapi-streams.md T8).
    pub detach_after: Duration,
    /// How long an export stays open after its last byte (xo-engine-from-npm.md, `undici`).
    pub close_after: Duration,
    /// Bytes a second that each running VM writes into its first disk; 0 for none.
    pub writes_per_second: u64,
}

/// One virtual machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmSpec {
    /// Its name label: anything, also what no sane person writes.
    pub name: String,
    /// Its disks, in order of `userdevice`.
    pub disks: Vec<DiskSpec>,
    /// Whether it runs.
    pub running: bool,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether its disks have changed block tracking from the start.
    pub cbt: bool,
}

/// One disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Its name label.
    pub name: String,
    /// Virtual size, bytes; rounded up to 2 MiB, as VHD-based storage does.
    pub bytes: u64,
    /// What is on it.
    pub content: Content,
}

/// What a disk holds at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Content {
    /// Nothing: all zero.
    Empty,
    /// A GPT with one ext4 partition holding about so many bytes of files, through `mkfs.ext4 -d`. Where that program is
    /// missing, generated content as below.
    FileSystem {
        /// Bytes of files.
        bytes: u64,
    },
    /// A GPT whose partition holds so many bytes of generated content, which says so in its first block.
    Generated {
        /// Bytes of content.
        bytes: u64,
    },
}

impl DiskSpec {
    /// A disk with a file system.
    pub fn new(name: impl Into<String>, bytes: u64, content: Content) -> Self {
        Self { name: name.into(), bytes, content }
    }
}

impl VmSpec {
    /// A running VM without tags, with change tracking.
    pub fn new(name: impl Into<String>, disks: Vec<DiskSpec>) -> Self {
        Self { name: name.into(), disks, running: true, tags: Vec::new(), cbt: true }
    }

    /// The same VM, tagged.
    #[must_use]
    pub fn tagged(mut self, tags: &[&str]) -> Self {
        self.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self
    }

    /// The same VM, switched off.
    #[must_use]
    pub fn halted(mut self) -> Self {
        self.running = false;
        self
    }

    /// The same VM without change tracking.
    #[must_use]
    pub fn without_cbt(mut self) -> Self {
        self.cbt = false;
        self
    }
}

impl PoolSpec {
    /// A pool of one host with 200 GiB of storage and NBD.
    pub fn new(name: impl Into<String>, vms: Vec<VmSpec>) -> Self {
        Self {
            name: name.into(),
            vms,
            hosts: 1,
            sr_bytes: 200 << 30,
            nbd: true,
            detach_after: Duration::from_secs(1),
            close_after: Duration::from_millis(300),
            writes_per_second: 0,
        }
    }
}

impl LabSpec {
    /// Refuses what cannot be built.
    ///
    /// # Errors
    /// [`LabError::Spec`]: no pools, two pools of one name, a number of hosts that is not 1 to 8.
    pub(crate) fn check(&self) -> Result<(), LabError> {
        if self.pools.is_empty() {
            return Err(LabError::Spec("it has no pools".into()));
        }
        for (index, pool) in self.pools.iter().enumerate() {
            if self.pools[..index].iter().any(|other| other.name == pool.name) {
                return Err(LabError::Spec(format!("two pools have the name {}", pool.name)));
            }
            if pool.hosts == 0 || pool.hosts > 8 {
                return Err(LabError::Spec(format!("pool {} has {} hosts; 1 to 8 are possible", pool.name, pool.hosts)));
            }
        }
        Ok(())
    }

    /// For tests: one pool `lab`, one running VM `alpha` with two disks of 64 MiB, 20 MiB of generated content on the
    /// first and 2 MiB on the second.
    pub fn single() -> Self {
        let disks = vec![
            DiskSpec::new("alpha system", 64 * MIB, Content::Generated { bytes: 20 * MIB }),
            DiskSpec::new("alpha data", 64 * MIB, Content::Generated { bytes: 2 * MIB }),
        ];
        let mut pool = PoolSpec::new("lab", vec![VmSpec::new("alpha", disks)]);
        pool.detach_after = Duration::from_millis(200);
        pool.close_after = Duration::from_millis(20);
        Self { pools: vec![pool], seed: 1 }
    }

    /// For a demonstration: two sites with a pool each.
    pub fn demo() -> Self {
        let files = |mib: u64| Content::FileSystem { bytes: mib * MIB };
        let paris = vec![
            VmSpec::new(
                "web-01",
                vec![DiskSpec::new("web-01 system", 2048 * MIB, files(96)), DiskSpec::new("web-01 data", 1024 * MIB, files(40))],
            )
            .tagged(&["prod", "web"]),
            VmSpec::new("database “orders”", vec![DiskSpec::new("orders system", 4096 * MIB, files(160))]).tagged(&["prod"]),
            VmSpec::new("mail 📬 relay", vec![DiskSpec::new("mail system", 1024 * MIB, files(64))]),
            VmSpec::new("old printer server", vec![DiskSpec::new("printer", 256 * MIB, files(24))]).halted().without_cbt(),
        ];
        let lyon = vec![
            VmSpec::new("files-lyon", vec![DiskSpec::new("files-lyon system", 4096 * MIB, files(180))]).tagged(&["prod"]),
            VmSpec::new("خادم الويب", vec![DiskSpec::new("خادم الويب", 1024 * MIB, files(60))]).tagged(&["test"]),
            VmSpec::new("O'Brien's \"lab\" box", vec![DiskSpec::new("lab box", 512 * MIB, files(48))]).without_cbt(),
        ];
        let site = |name: &str, vms| {
            let mut pool = PoolSpec::new(name, vms);
            pool.hosts = 2;
            pool
        };
        Self { pools: vec![site("paris", paris), site("lyon", lyon)], seed: 20_260 }
    }
}
