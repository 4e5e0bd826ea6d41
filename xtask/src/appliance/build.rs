//! All of it in order: daemon, root file system, disk, XVA, checksums, what is in it.

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use signed::{ImageFormat, ImageManifest, ImageNeeds, SecretKey};

use crate::debian::Lock;
use crate::disk::MIB;
use crate::run::{Program, workspace};
use crate::tools::Tools;
use crate::{Build, disk, root};

/// Virtual processors of the VM in the archive.
const VCPUS: u32 = 2;
/// Its memory, bytes.
const MEMORY: u64 = 2048 * MIB;

/// Builds image, archive and lists.
pub fn build(order: &Build) -> Result<()> {
    let out = folder(&order.out)?;
    let backhauld = match &order.backhauld {
        Some(path) => std::path::absolute(path)?,
        None => release()?,
    };
    ensure!(backhauld.is_file(), "{} is no program", backhauld.display());
    let key = order.sign.as_deref().map(secret_key).transpose()?;
    let lock = if order.update_lock { None } else { Some(Lock::load()?) };
    let epoch = epoch(lock.as_ref())?;
    let tools = Tools::prepare(&order.sources, &out)?;
    let root = root::make(&order.sources, &backhauld, epoch, &out)?;
    match &lock {
        None => Lock { epoch, packages: root.packages.clone() }.save()?,
        Some(lock) => compare(lock, &root.packages, order.locked)?,
    }
    let raw = disk::make(&tools, &root.archive, order.disk * MIB, epoch, &out)?;
    let xva = archive(&raw, order.disk * MIB, &out)?;
    // One of an image that was here before would be wrong.
    let _ = std::fs::remove_file(xva.with_added_extension("manifest"));
    let mut said = String::new();
    for path in [&raw, &xva] {
        let hash = checksum(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let sum = path.with_added_extension("sha256");
        std::fs::write(&sum, format!("{hash}  {name}\n")).with_context(|| format!("cannot write {}", sum.display()))?;
        let metadata = std::fs::metadata(path)?;
        if let Some(key) = key.as_ref().filter(|_| *path == xva) {
            let manifest = manifest(hash.clone(), metadata.len(), order.disk * MIB).sign(key);
            let manifest = manifest.with_context(|| format!("cannot sign {}", path.display()))?;
            let beside = path.with_added_extension("manifest");
            std::fs::write(&beside, manifest).with_context(|| format!("cannot write {}", beside.display()))?;
        }
        let _ = writeln!(
            said,
            "{name}: {} MiB, {} MiB of them used, SHA-256 {hash}",
            metadata.len() / MIB,
            metadata.blocks() * 512 / MIB
        );
    }
    let _ = writeln!(said, "{} packages: backhaul-appliance.packages", root.packages.len());
    print!("\nin {}:\n{said}", out.display());
    Ok(())
}

/// The folder for what is made; relative to where the person is.
pub fn folder(out: &Path) -> Result<PathBuf> {
    let out = std::path::absolute(out)?;
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    Ok(out)
}

/// What the archive's signature vouches for.
fn manifest(sha256: String, size: u64, disk: u64) -> ImageManifest {
    let needs = ImageNeeds { memory: MEMORY, vcpus: VCPUS, disk };
    ImageManifest { version: env!("CARGO_PKG_VERSION").into(), format: ImageFormat::Xva, size, sha256, needs }
}

fn secret_key(path: &Path) -> Result<SecretKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("the key in {}", path.display()))
}

fn release() -> Result<PathBuf> {
    Program::cargo().args(["build", "--release", "--package", "daemon", "--bin", "backhauld"]).run()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(target.join("release/backhauld"))
}

/// The youngest time in the image: as told, or as the last time, or today's midnight.
fn epoch(lock: Option<&Lock>) -> Result<u64> {
    if let Ok(told) = std::env::var("SOURCE_DATE_EPOCH") {
        return told.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {told:?}, which is no number of seconds"));
    }
    let day = 24 * 60 * 60;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?.as_secs();
    Ok(lock.map_or(now / day * day, |lock| lock.epoch))
}

fn compare(lock: &Lock, now: &crate::debian::Packages, locked: bool) -> Result<()> {
    let differences = lock.differences(now);
    if differences.is_empty() {
        return Ok(());
    }
    let text = format!("the packages are others than in {}:\n  {}", Lock::path().display(), differences.join("\n  "));
    if locked {
        bail!("{text}\nbuild with --snapshot and the time of the lock, or say --update-lock");
    }
    eprintln!("{text}");
    Ok(())
}

/// The archive that a pool imports.
fn archive(raw: &Path, size: u64, out: &Path) -> Result<PathBuf> {
    let path = out.join("backhaul-appliance.xva");
    let meta = xva::Appliance {
        name: "Backhaul appliance".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        vcpus: VCPUS,
        memory: MEMORY,
        disk: size,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let written = runtime.block_on(async {
        let disk = tokio::io::BufReader::with_capacity(MIB as usize, tokio::fs::File::open(raw).await?);
        let file = tokio::io::BufWriter::with_capacity(MIB as usize, tokio::fs::File::create(&path).await?);
        xva::write_appliance(file, disk, &meta).await.map_err(anyhow::Error::from)
    });
    written.with_context(|| format!("cannot make {} of {}", path.display(), raw.display()))?;
    Ok(path)
}

fn checksum(path: &Path) -> Result<String> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = std::fs::File::open(path).with_context(failed)?;
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; MIB as usize]);
    loop {
        match file.read(&mut buffer).with_context(failed)? {
            0 => break,
            read => sum.update(&buffer[..read]),
        }
    }
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_archive_is_known_by_the_other_half_of_the_key() {
        let key = SecretKey::generate().unwrap();
        let manifest = manifest("ab".repeat(32), 17, 2048 * MIB);
        let text = manifest.sign(&key).unwrap();
        assert_eq!(ImageManifest::read(&text, &[key.public()]).unwrap(), manifest);
        assert!(ImageManifest::read(&text, &[SecretKey::generate().unwrap().public()]).is_err());
    }
}
