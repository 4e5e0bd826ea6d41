//! The root file system, as an archive that is the same each time for the same packages, sources and daemon.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::{Packages, Sources, names, packages};
use crate::run::workspace;

/// Not in the image: what nobody reads there. Copyrights stay.
const LEFT_OUT: [&str; 5] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];
/// Where the image itself keeps the list of its packages.
const LIST: &str = "/usr/share/backhaul/packages";

/// A root file system.
pub struct Root {
    /// The archive.
    pub archive: PathBuf,
    /// What is installed in it.
    pub packages: Packages,
}

/// Makes it, with this daemon, nothing in it younger than `epoch`.
pub fn make(sources: &Sources, backhauld: &Path, epoch: u64, out: &Path) -> Result<Root> {
    let shared = workspace().join("packaging");
    let list = shared.join("appliance/packages");
    let list = std::fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let (archive, installed) = (out.join("root.tar"), out.join("backhaul-appliance.packages"));
    sources.mmdebstrap(&names(&list), &archive, |program| {
        program
            .arg("--variant=minbase")
            .args(LEFT_OUT.map(|option| format!("--dpkgopt={option}")))
            .arg(format!("--customize-hook={}", shared.join("appliance/customize.sh").display()))
            .arg(format!("--customize-hook=download {LIST} {}", installed.display()))
            .env("BACKHAULD", backhauld)
            .env("SHARED", &shared)
            .env("VERSION", env!("CARGO_PKG_VERSION"))
            .env("SOURCE_DATE_EPOCH", epoch.to_string())
    })?;
    let installed = std::fs::read_to_string(&installed).with_context(|| format!("cannot read {}", installed.display()))?;
    Ok(Root { archive, packages: packages(installed.lines())? })
}
