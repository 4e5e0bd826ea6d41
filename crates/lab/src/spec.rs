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
    /// Its storage; the first is the pool's default and takes the disks of its VMs.
    #[serde(default = "local_storage")]
    pub storage: Vec<SrSpec>,
    /// Its networks beside the one that management runs over.
    #[serde(default)]
    pub networks: Vec<NetworkSpec>,
    /// Memory of each host, bytes.
    #[serde(default = "host_memory")]
    pub host_memory: u64,
    /// Whether the network's purpose contains `nbd`, so that disks are offered over NBD with TLS.
    pub nbd: bool,
    /// How long a disk stays attached to the control domain after a transfer (xapi-streams.md T8).
    pub detach_after: Duration,
    /// How long an export stays open after its last byte (xo-engine-from-npm.md, `undici`).
    pub close_after: Duration,
    /// Bytes a second that each running VM writes into its first disk; 0 for none.
    pub writes_per_second: u64,
}

/// A storage repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SrSpec {
    /// Its name label.
    pub name: String,
    /// Its driver: on `lvm…` a disk takes all of its size (thick), on all others what is written to it (thin).
    pub kind: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// How much of it is taken by what this pool knows nothing of, bytes.
    pub taken: u64,
}

/// A network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Its name label.
    pub name: String,
    /// Whether the hosts have an interface on it; without, it joins VMs of one host only.
    pub wired: bool,
}

fn local_storage() -> Vec<SrSpec> {
    vec![SrSpec::new("Local storage", "ext", 200 << 30)]
}

fn host_memory() -> u64 {
    64 << 30
}

impl SrSpec {
    /// Storage with nothing on it.
    pub fn new(name: impl Into<String>, kind: impl Into<String>, bytes: u64) -> Self {
        Self { name: name.into(), kind: kind.into(), bytes, taken: 0 }
    }

    /// The same storage with only so much left, bytes.
    #[must_use]
    pub fn with_free(mut self, bytes: u64) -> Self {
        self.taken = self.bytes.saturating_sub(bytes);
        self
    }
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
            storage: local_storage(),
            networks: Vec::new(),
            host_memory: host_memory(),
            nbd: true,
            detach_after: Duration::from_secs(1),
            close_after: Duration::from_millis(300),
            writes_per_second: 0,
        }
    }

    /// The same pool with what real ones have beside it: thick storage, thin storage that is nearly full, a second network
    /// and one without a wire.
    #[must_use]
    pub fn varied(mut self) -> Self {
        let name = &self.name;
        self.storage.push(SrSpec::new(format!("{name} SAN"), "lvmoiscsi", 400 << 30));
        self.storage.push(SrSpec::new(format!("{name} archive"), "nfs", 100 << 30).with_free(1 << 30));
        self.networks.push(NetworkSpec { name: format!("{name} storage network"), wired: true });
        self.networks.push(NetworkSpec { name: format!("{name} internal"), wired: false });
        self
    }
}

impl LabSpec {
    /// Refuses what cannot be built.
    ///
    /// # Errors
    /// [`LabError::Spec`]: no pools, two pools of one name, one without storage, a number of hosts that is not 1 to 8.
    pub(crate) fn check(&self) -> Result<(), LabError> {
        if self.pools.is_empty() {
            return Err(LabError::Spec("it has no pools".into()));
        }
        for (index, pool) in self.pools.iter().enumerate() {
            if self.pools[..index].iter().any(|other| other.name == pool.name) {
                return Err(LabError::Spec(format!("two pools have the name {}", pool.name)));
            }
            if pool.storage.is_empty() {
                return Err(LabError::Spec(format!("pool {} has no storage", pool.name)));
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

    /// For a demonstration: three sites with a pool each.
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
        let annecy = vec![
            VmSpec::new("till-annecy", vec![DiskSpec::new("till system", 1024 * MIB, files(48))]).tagged(&["prod"]),
            VmSpec::new("cameras", vec![DiskSpec::new("cameras", 512 * MIB, files(32))]).halted(),
        ];
        let site = |name: &str, vms| {
            let mut pool = PoolSpec::new(name, vms).varied();
            pool.hosts = 2;
            pool
        };
        let mut small_site = PoolSpec::new("annecy", annecy).varied();
        small_site.storage[0] = SrSpec::new("annecy NAS", "nfs", 120 << 30);
        small_site.host_memory = 16 << 30;
        Self { pools: vec![site("paris", paris), site("lyon", lyon), small_site], seed: 20_260 }
    }
}
