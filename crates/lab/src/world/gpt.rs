//! The partition tables of a disk: one partition from 1 MiB to 1 MiB before the end (UEFI specification, chapter 5).

use flate2::Crc;
use uuid::{Uuid, uuid};

/// Bytes before the partition, and behind it.
pub(super) const MARGIN: u64 = 1 << 20;

const SECTOR: u64 = 512;
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
/// "Linux filesystem data" in the discoverable partitions' list.
const LINUX: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");

/// What goes to the beginning and to the end of a disk of `bytes`, a multiple of 1 MiB and at least 4 MiB.
pub(super) fn tables(bytes: u64, disk: Uuid, partition: Uuid) -> (Vec<u8>, Vec<u8>) {
    let last = bytes / SECTOR - 1;
    let mut entries = vec![0; ENTRIES * ENTRY];
    entries[..16].copy_from_slice(&LINUX.to_bytes_le());
    entries[16..32].copy_from_slice(&partition.to_bytes_le());
    entries[32..40].copy_from_slice(&(MARGIN / SECTOR).to_le_bytes());
    entries[40..48].copy_from_slice(&((bytes - MARGIN) / SECTOR - 1).to_le_bytes());
    for (unit, slot) in "root".encode_utf16().zip(entries[56..128].chunks_mut(2)) {
        slot.copy_from_slice(&unit.to_le_bytes());
    }
    let sectors = (entries.len() as u64).div_ceil(SECTOR);
    let mut front = protective(last);
    front.extend(header(1, last, 2, last, sectors, disk, &entries));
    front.extend(&entries);
    let mut back = entries.clone();
    back.extend(header(last, 1, last - sectors, last, sectors, disk, &entries));
    (front, back)
}

/// The old partition table that keeps old programs away.
fn protective(last: u64) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    sector[446..454].copy_from_slice(&[0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF]);
    sector[454..458].copy_from_slice(&1u32.to_le_bytes());
    sector[458..462].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    sector
}

fn header(here: u64, other: u64, entries_at: u64, last: u64, sectors: u64, disk: Uuid, entries: &[u8]) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    sector[..8].copy_from_slice(b"EFI PART");
    sector[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
    sector[12..16].copy_from_slice(&92u32.to_le_bytes());
    sector[24..32].copy_from_slice(&here.to_le_bytes());
    sector[32..40].copy_from_slice(&other.to_le_bytes());
    sector[40..48].copy_from_slice(&(2 + sectors).to_le_bytes());
    sector[48..56].copy_from_slice(&(last - sectors - 1).to_le_bytes());
    sector[56..72].copy_from_slice(&disk.to_bytes_le());
    sector[72..80].copy_from_slice(&entries_at.to_le_bytes());
    sector[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
    sector[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
    sector[88..92].copy_from_slice(&crc(entries).to_le_bytes());
    let sum = crc(&sector[..92]);
    sector[16..20].copy_from_slice(&sum.to_le_bytes());
    sector
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_fit_and_point_at_each_other() {
        let bytes = 64 << 20;
        let (front, back) = tables(bytes, Uuid::nil(), Uuid::max());
        assert_eq!((front.len(), back.len()), (34 * 512, 33 * 512));
        assert_eq!((&front[512..520], &back[32 * 512..32 * 512 + 8]), (&b"EFI PART"[..], &b"EFI PART"[..]));
        let last = bytes / 512 - 1;
        assert_eq!(front[512 + 32..512 + 40], last.to_le_bytes());
        assert_eq!(back[32 * 512 + 72..32 * 512 + 80], (last - 32).to_le_bytes());
        assert_eq!(front[1024..], back[..32 * 512]);
    }
}
