//! The proof: the image boots under QEMU without KVM, and each case does what an appliance must do.
//!
//! Nothing of a guest is believed that can be seen from outside: the daemon is called through its pinned certificate, the
//! technician logs in over the serial console and SSH, secrets are searched for on the volume they came from.

mod cases;
mod console;
mod machine;
mod reach;
mod volume;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::BootTest;
use crate::build::folder;
use crate::tools::Tools;

/// What a case is run with.
pub struct Bench {
    tools: Tools,
    image: PathBuf,
    /// The case's own folder.
    dir: PathBuf,
    accel: String,
    patience: u32,
    begun: Instant,
}

impl Bench {
    /// How long something may take: emulation on a loaded machine is slow.
    fn limit(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * self.patience
    }

    /// Says what has been seen, and when.
    fn seen(&self, what: &str) {
        println!("  {:6.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }
}

/// Runs the cases one after the other; the first that fails ends it.
pub fn test(order: &BootTest) -> Result<()> {
    let out = folder(&order.out)?;
    let image = std::path::absolute(&order.image)?;
    ensure!(image.is_file(), "there is no image {}; `cargo xtask appliance` makes it", image.display());
    let known: Vec<&str> = cases::ALL.iter().map(|case| case.name).collect();
    if let Some(name) = order.cases.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no case {name}; there are {}", known.join(", "));
    }
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut passed = 0;
    for case in cases::ALL.iter().filter(|case| order.cases.is_empty() || order.cases.iter().any(|name| name == case.name)) {
        println!("{}: {}", case.name, case.what);
        let dir = fresh(&out.join("boot-test").join(case.name))?;
        let tools = Tools::prepare(&order.sources, &out)?;
        let (accel, patience) = (order.accel.clone(), order.patience.max(1));
        let bench = Bench { tools, image: image.clone(), dir, accel, patience, begun: Instant::now() };
        let done = runtime.block_on(cases::run(case.name, &bench));
        done.with_context(|| format!("case {}; its consoles are in {}", case.name, bench.dir.display()))?;
        bench.seen("done");
        // Only logs stay: a disk takes more than a quarter of a GiB.
        for entry in std::fs::read_dir(&bench.dir)?.flatten().filter(|entry| entry.path().extension().is_none_or(|e| e != "log"))
        {
            let _ = std::fs::remove_file(entry.path());
        }
        passed += 1;
    }
    println!("{passed} passed, 0 failed");
    Ok(())
}

fn fresh(dir: &Path) -> Result<PathBuf> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot empty {}", dir.display()))
        }
        _ => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            Ok(dir.to_owned())
        }
    }
}
