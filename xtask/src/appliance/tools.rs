//! Programs that make and boot images. They are taken from the image's own Debian and kept in a folder, so that what they
//! make does not depend on the machine they run on; the machine's own are neither used nor replaced.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::Sources;
use crate::run::Program;

/// Debian's packages, with their dependencies.
const PACKAGES: [&str; 10] = [
    // the root file system from an archive
    "e2fsprogs",
    "libarchive13t64",
    // the volume labelled BACKHAUL
    "dosfstools",
    "mtools",
    "genisoimage",
    // what boots the disk
    "grub-pc-bin",
    "grub-common",
    // what boots it in tests
    "qemu-system-x86",
    "seabios",
    "openssh-client",
];

/// The folder.
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// The tools below `out`, fetched unless they are there.
    pub fn prepare(sources: &Sources, out: &Path) -> Result<Self> {
        let root = out.join("tools");
        let stamp = root.join("packages");
        let wanted = format!("{} {}\n", sources.suite, PACKAGES.join(" "));
        if std::fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
            return Ok(Self { root });
        }
        if root.exists() {
            std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
        }
        std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let archive = out.join("tools.tar");
        let packages = PACKAGES.map(str::to_owned);
        sources.mmdebstrap(&packages, &archive, |program| program.arg("--variant=extract"))?;
        let unpack = Program::new("tar").arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(&root);
        unpack.args(["--no-same-owner", "--exclude=./dev", "./etc", "./usr"]).run()?;
        std::fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
        std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(Self { root })
    }

    /// A file of theirs, by its path without `/`.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A program of theirs, by its path below `/usr`: their own loader and libraries run it.
    pub fn program(&self, path: &str) -> Program {
        let libraries = self.libraries();
        let program = Program::new(self.file("usr/lib64/ld-linux-x86-64.so.2")).arg("--library-path").arg(&libraries);
        let program = program.arg(self.root.join("usr").join(path));
        program.env("MKE2FS_CONFIG", self.file("etc/mke2fs.conf")).env("QEMU_MODULE_DIR", libraries.join("qemu"))
    }

    fn libraries(&self) -> PathBuf {
        self.file("usr/lib/x86_64-linux-gnu")
    }
}
