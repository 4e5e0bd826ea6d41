//! `cargo xtask appliance`: the bootable image of a proxy, made of Debian's packages, and the proof that it boots.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`debian`] | where packages come from, and which they were the last time |
//! | [`tools`] | programs that make and boot images, of the image's own Debian and not of this machine's |
//! | [`root`] | the root file system, as an archive |
//! | [`disk`] | the disk: partitions, boot loader, file systems |
//! | [`build`] | all of it in order, and the XVA |
//! | [`boot`] | machines under QEMU that boot it, and what they must do |
//!
//! Nothing is mounted, and nothing but `mmdebstrap` is installed on this machine.

mod boot;
mod build;
mod debian;
mod disk;
mod root;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use xtask::run;

/// Builds the appliance, a bootable image of a proxy, and tests that it boots.
#[derive(Parser)]
#[command(name = "cargo xtask appliance")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    build: Build,
}

#[derive(Subcommand)]
enum Command {
    /// Boot the image under QEMU, without KVM, and see that it does what an appliance must; takes some minutes a case
    BootTest(BootTest),
}

/// What is built, and of what.
#[derive(Args)]
pub struct Build {
    /// The daemon to put into it, instead of a release build
    #[arg(long, value_name = "FILE")]
    backhauld: Option<PathBuf>,
    /// Folder for what is made
    #[arg(long, value_name = "DIR", default_value = "target/appliance")]
    out: PathBuf,
    /// Size of the disk, MiB; the root file system grows to the real disk's at each boot
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    disk: u64,
    /// Sign the XVA with the secret key in this file, made by `backhaul bundle keygen`: proxies that trust its other half
    /// deploy no other image
    #[arg(long, value_name = "FILE")]
    sign: Option<PathBuf>,
    #[command(flatten)]
    sources: debian::Sources,
    /// Fail if a package is another than in packaging/appliance/packages.lock
    #[arg(long)]
    locked: bool,
    /// Write packaging/appliance/packages.lock anew
    #[arg(long, conflicts_with = "locked")]
    update_lock: bool,
}

/// Which image is booted, and how.
#[derive(Args)]
pub struct BootTest {
    /// The raw image
    #[arg(long, value_name = "FILE", default_value = "target/appliance/backhaul-appliance.raw")]
    image: PathBuf,
    /// Only these cases
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// QEMU's accelerator
    #[arg(long, default_value = "tcg,thread=multi")]
    accel: String,
    /// Multiplies every time limit, for slow machines
    #[arg(long, value_name = "FACTOR", default_value_t = 1)]
    patience: u32,
    /// Folder with the tools, made if it is not there
    #[arg(long, value_name = "DIR", default_value = "target/appliance")]
    out: PathBuf,
    #[command(flatten)]
    sources: debian::Sources,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        None => build::build(&arguments.build),
        Some(Command::BootTest(test)) => boot::test(test),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask appliance: {error:#}");
            ExitCode::FAILURE
        }
    }
}
