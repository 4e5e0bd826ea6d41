//! What changes the disks: machines that keep writing, and a share of a disk's blocks changed at once.
//!
//! Both write below the file system, as a test tool does: what they change stays a disk with a partition table, but
//! `mutate` does not care what a block belonged to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use disks::Image;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::pool::Pool;
use crate::rng::Rng;
use crate::rpc;

/// What `mutate` changes at once: the grain of a VHD, so that a share of the blocks is the same share of a delta.
const BLOCK: u64 = 2 << 20;

/// What a running machine writes at once.
const PIECE: u64 = 64 << 10;

/// How often running machines write.
const TICK: Duration = Duration::from_millis(250);

/// How much of a disk was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutation {
    /// UUID of the VDI.
    pub vdi: String,
    /// Bytes that are different now.
    pub bytes: u64,
}

/// Changes `percent` of the 2 MiB blocks of each disk of a machine, at least one block. The first and the last block
/// hold the partition tables and stay. Blocks.
pub(crate) fn mutate(pool: &Arc<Pool>, vm: &str, percent: f64) -> Result<Vec<Mutation>, Failure> {
    if !(percent > 0.0 && percent <= 100.0) {
        return Err(Failure::new("INVALID_VALUE", ["percent", "a number above 0 and up to 100"]));
    }
    let time = pool.mutations.fetch_add(1, Ordering::Relaxed);
    let disks = pool.db.with(|store| {
        rpc::disks(store, vm)?
            .into_iter()
            .map(|(_, vdi)| Ok((store.text("VDI", &vdi, "uuid")?, vdi)))
            .collect::<Result<Vec<_>, Failure>>()
    })?;
    let mut changed = Vec::new();
    for (uuid, vdi) in disks {
        let (image, place) = pool.shelf.find(&vdi)?;
        if place.snapshot.is_some() {
            return Err(Failure::not_allowed("VDI is a snapshot"));
        }
        let mut rng = Rng::new(pool.settings.seed).fork(&format!("{uuid} {time}"));
        let bytes = mutate_image(&image, percent, &mut rng)?;
        changed.push(Mutation { vdi: uuid, bytes });
    }
    Ok(changed)
}

fn mutate_image(image: &Image, percent: f64, rng: &mut Rng) -> Result<u64, Failure> {
    let blocks = image.size() / BLOCK;
    let inner = blocks.saturating_sub(2);
    let wanted = ((blocks as f64 * percent / 100.0).round() as u64).clamp(1, inner.max(1));
    let (mut data, mut mask) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
    let mut bytes = 0;
    for block in rng.choose(wanted, inner) {
        let offset = (block + 1) * BLOCK;
        image.read_at(offset, &mut data)?;
        rng.fill(&mut mask);
        for (byte, mask) in data.iter_mut().zip(&mask) {
            // Never zero, so no byte stays what it was.
            *byte ^= mask | 1;
        }
        image.write_at(offset, &data)?;
        bytes += BLOCK;
    }
    Ok(bytes)
}

/// Lets running machines write into the free end of their first disk, until the pool stops.
pub(crate) async fn keep_writing(pool: Arc<Pool>) {
    let mut rate = pool.write_rate.subscribe();
    let mut rng = Rng::new(pool.settings.seed).fork("writer");
    let mut owed: HashMap<String, u64> = HashMap::new();
    loop {
        let present = *rate.borrow_and_update();
        let wait = async { if present == 0 { std::future::pending().await } else { tokio::time::sleep(TICK).await } };
        tokio::select! {
            () = pool.stop.cancelled() => return,
            _ = rate.changed() => continue,
            () = wait => {}
        }
        let running = pool.db.with(|store| {
            let running = store.all("VM").filter(|(_, vm)| vm["power_state"] == "Running" && vm["is_control_domain"] == false);
            let names: Vec<_> = running.map(|(vm, _)| vm.to_owned()).collect();
            names.iter().filter_map(|vm| rpc::disks(store, vm).ok()?.into_iter().next()).map(|(_, vdi)| vdi).collect::<Vec<_>>()
        });
        owed.retain(|vdi, _| running.contains(vdi));
        let mut work = Vec::new();
        for vdi in running {
            let Ok((image, place)) = pool.shelf.find(&vdi) else { continue };
            let owed = owed.entry(vdi).or_default();
            *owed += present * TICK.as_millis() as u64 / 1000;
            let pieces = *owed / PIECE;
            *owed %= PIECE;
            if pieces > 0 && place.snapshot.is_none() {
                work.push((image, pieces, rng.next_u64()));
            }
        }
        let written = tokio::task::spawn_blocking(move || {
            work.into_iter().try_for_each(|(image, pieces, seed)| write_some(&image, pieces, &mut Rng::new(seed)))
        });
        match written.await {
            Ok(Ok(())) => {}
            // A disk destroyed in this moment is nothing to complain about.
            Ok(Err(error)) => tracing::debug!(%error, "a running machine could not write"),
            Err(error) => tracing::error!(%error, "the writer failed"),
        }
    }
}

fn write_some(image: &Image, pieces: u64, rng: &mut Rng) -> Result<(), disks::DiskError> {
    // The last tenth of the disk, less what the second partition table takes: free space of the file system.
    let end = image.size().saturating_sub(BLOCK) / PIECE;
    let start = end - end / 10;
    let mut data = vec![0; PIECE as usize];
    for _ in 0..pieces {
        rng.fill(&mut data);
        let piece = start + rng.below((end - start).max(1));
        if piece < end {
            image.write_at(piece * PIECE, &data)?;
        }
    }
    Ok(())
}
