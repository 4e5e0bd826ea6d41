//! The disk: a partition table with GRUB before the first partition, a small FAT volume labelled `BACKHAUL`, and the root
//! file system, last so that it can grow. Everything is written into a file; nothing is mounted.
//!
//! | from | to | what |
//! | --- | --- | --- |
//! | 0 | 512 B | GRUB's first sector, and the partition table |
//! | 512 B | 1 MiB | the rest of GRUB |
//! | 1 MiB | 17 MiB | FAT16, `BACKHAUL`: a configuration can be put there |
//! | 17 MiB | end | ext4, `backhaul-root` |

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::run::workspace;
use crate::tools::Tools;

/// Bytes.
const SECTOR: u64 = 512;
/// Bytes.
pub const MIB: u64 = 1 << 20;
/// Where the volume labelled BACKHAUL begins, bytes.
pub const VOLUME_START: u64 = MIB;
/// How long it is, bytes.
pub const VOLUME_SIZE: u64 = 16 * MIB;
/// Where the root file system begins, bytes.
const ROOT_START: u64 = VOLUME_START + VOLUME_SIZE;
/// Fixed, so that the same content gives the same disk.
const SIGNATURE: u32 = 0xBAC8_AC11;
const FILE_SYSTEM: &str = "bac8ac11-0000-4000-8000-000000000001";
const HASHES: &str = "bac8ac11-0000-4000-8000-000000000002";
/// What GRUB needs to read the root file system and start what its configuration there says.
const MODULES: [&str; 9] = ["biosdisk", "part_msdos", "ext2", "normal", "linux", "configfile", "echo", "reboot", "minicmd"];

/// Makes the disk of `size` bytes from the archive of a root file system.
pub fn make(tools: &Tools, root: &Path, size: u64, epoch: u64, out: &Path) -> Result<PathBuf> {
    ensure!(size.is_multiple_of(MIB) && size >= 1024 * MIB, "the appliance's disk has 1024 MiB or more");
    let path = out.join("backhaul-appliance.raw");
    let failed = || format!("cannot write {}", path.display());
    let disk = File::create(&path).with_context(failed)?;
    disk.set_len(size).with_context(failed)?;

    let modules = tools.file("usr/lib/grub/i386-pc");
    let core = out.join("grub-core.img");
    tools
        .program("bin/grub-mkimage")
        .arg("--directory")
        .arg(&modules)
        .arg("--output")
        .arg(&core)
        .args(["--format=i386-pc", "--prefix=(,msdos2)/boot/grub"])
        .args(MODULES)
        .run()?;
    let boot = read(&modules.join("boot.img"))?;
    let core = read(&core)?;
    ensure!(SECTOR + core.len() as u64 <= VOLUME_START, "GRUB does not fit before the first partition");
    disk.write_all_at(&first_sector(&boot, size)?, 0).with_context(failed)?;
    disk.write_all_at(&core, SECTOR).with_context(failed)?;

    let volume = volume(tools, &out.join("volume.img"), epoch)?;
    disk.write_all_at(&read(&volume)?, VOLUME_START).with_context(failed)?;

    tools
        .program("sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-L", "backhaul-root", "-U", FILE_SYSTEM])
        // These two are younger than some who will have to read it.
        .args(["-O", "^metadata_csum_seed,^orphan_file", "-E"])
        .arg(format!("offset={ROOT_START},hash_seed={HASHES},lazy_itable_init=1,assume_storage_prezeroed=1"))
        .arg("-d")
        .arg(root)
        .arg(&path)
        .arg(format!("{}k", (size - ROOT_START) / 1024))
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .run()?;
    disk.sync_all().with_context(failed)?;
    Ok(path)
}

/// An empty volume labelled BACKHAUL, as a file, that says what can be put on it.
pub fn volume(tools: &Tools, path: &Path, epoch: u64) -> Result<PathBuf> {
    let made = File::create(path).and_then(|file| file.set_len(VOLUME_SIZE));
    made.with_context(|| format!("cannot make {}", path.display()))?;
    let epoch = epoch.to_string();
    let label = ["-n", "BACKHAUL", "-i", "BAC8AC11", "--invariant"];
    tools.program("sbin/mkfs.fat").args(label).arg(path).env("SOURCE_DATE_EPOCH", &epoch).run()?;
    let readme = workspace().join("packaging/appliance/README.txt");
    let copy = tools.program("bin/mcopy").arg("-i").arg(path).arg(readme).arg("::README.txt");
    copy.env("SOURCE_DATE_EPOCH", &epoch).env("TZ", "UTC").run()?;
    Ok(path.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// GRUB's first sector with the partition table of a disk of `size` bytes.
fn first_sector(boot: &[u8], size: u64) -> Result<[u8; 512]> {
    let mut sector = [0; 512];
    let code = boot.get(..440).context("GRUB's boot.img is too short")?;
    sector[..440].copy_from_slice(code);
    sector[440..444].copy_from_slice(&SIGNATURE.to_le_bytes());
    // Type 06: FAT16. Type 83: Linux; the firmware may insist on one that is active.
    let partitions = [(0x00, 0x06, VOLUME_START, VOLUME_SIZE), (0x80, 0x83, ROOT_START, size - ROOT_START)];
    for (entry, (active, kind, start, length)) in sector[446..510].chunks_exact_mut(16).zip(partitions) {
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).context("the disk is too large for its partition table");
        // Cylinders, heads and sectors say: see the numbers behind.
        entry.copy_from_slice(&[[active, 0xFE, 0xFF, 0xFF], [kind, 0xFE, 0xFF, 0xFF], [0; 4], [0; 4]].concat());
        entry[8..12].copy_from_slice(&sectors(start)?.to_le_bytes());
        entry[12..].copy_from_slice(&sectors(length)?.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_table_covers_the_disk() {
        let sector = first_sector(&[0xEB; 512], 2048 * MIB).unwrap();
        assert!(sector[..440].iter().all(|byte| *byte == 0xEB));
        let number = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().unwrap());
        assert_eq!((number(454), number(458)), (2048, 32_768));
        assert_eq!((sector[462], sector[466]), (0x80, 0x83));
        assert_eq!(number(470), 34_816);
        assert_eq!(u64::from(number(470) + number(474)) * SECTOR, 2048 * MIB);
        assert!(first_sector(&[0; 439], 2048 * MIB).is_err());
        assert!(first_sector(&[0; 512], 4 << 40).is_err());
    }
}
