//! `lab.json`: how to reach everything in a lab. Holds its passwords, so only its owner may read it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::proxy::Site;
use crate::commands::failure::Failure;

/// The file. Other programs read it: fields are only added.
#[derive(Serialize, Deserialize)]
pub(super) struct Inventory {
    /// Configuration folder for `backhaul --config`.
    pub console_config: PathBuf,
    pub proxies: Vec<Proxy>,
    pub pools: Vec<Pool>,
    pub remotes: Vec<Remote>,
    /// As they are now: the file is written again when one comes or goes.
    pub vms: Vec<Vm>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Proxy {
    pub name: String,
    pub url: String,
    pub token: String,
    pub fingerprint: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Pool {
    pub name: String,
    pub url: String,
    pub username: String,
    pub password: String,
    pub fingerprint: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Remote {
    pub proxy: String,
    pub name: String,
    pub url: String,
    pub path: PathBuf,
}

#[derive(PartialEq, Serialize, Deserialize)]
pub(super) struct Vm {
    pub pool: String,
    pub uuid: String,
    pub name: String,
    pub disks: Vec<Disk>,
}

#[derive(PartialEq, Serialize, Deserialize)]
pub(super) struct Disk {
    pub vdi: String,
    /// The live disk, raw.
    pub path: PathBuf,
    /// Virtual size.
    pub bytes: u64,
}

impl Inventory {
    pub fn of(dir: &Path, lab: &lab::Lab, sites: &[Site]) -> Self {
        let proxy = |site: &Site| {
            let entry = site.entry();
            Proxy {
                name: entry.name,
                url: entry.url.as_str().trim_end_matches('/').to_owned(),
                token: entry.token.secret().to_owned(),
                fingerprint: entry.fingerprint.to_string(),
            }
        };
        let pool = |pool: &lab::PoolHandle| Pool {
            name: pool.name().to_owned(),
            url: pool.url(),
            username: pool.username().to_owned(),
            password: pool.password().to_owned(),
            fingerprint: pool.fingerprint().to_string(),
        };
        Self {
            console_config: dir.join("config"),
            proxies: sites.iter().map(proxy).collect(),
            pools: lab.pools().iter().map(pool).collect(),
            remotes: sites.iter().map(Site::remote).collect(),
            vms: vms(lab),
        }
    }

    pub fn load(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join("lab.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Failure::failed("LAB_AWAY", format!("no lab runs in {}", dir.display()))
                    .next(format!("backhaul lab --serve --dir {}", dir.display())));
            }
            Err(error) => return Err(Failure::file("read", &path, &error)),
        };
        serde_json::from_slice(&text).map_err(|error| Failure::failed("LAB", format!("cannot read {}: {error}", path.display())))
    }
}

/// The VMs of all pools.
pub(super) fn vms(lab: &lab::Lab) -> Vec<Vm> {
    let of_pool = |pool: &lab::PoolHandle| {
        let pool_name = pool.name().to_owned();
        pool.vms().into_iter().map(move |vm| Vm {
            pool: pool_name.clone(),
            uuid: vm.uuid,
            name: vm.name,
            disks: vm.disks.into_iter().map(|disk| Disk { vdi: disk.vdi, path: disk.path, bytes: disk.bytes }).collect(),
        })
    };
    lab.pools().iter().flat_map(of_pool).collect()
}
