//! `backhauld`: the proxy daemon; `backhauld worker` is the process of one run.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Proxy daemon: backs up the virtual machines of XCP-ng pools and owns its jobs, schedules and history.
#[derive(Parser)]
#[command(name = "backhauld", version)]
struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", default_value = "/etc/backhaul/backhauld.toml")]
    config: PathBuf,
    /// Check the configuration, say whether it is good, and exit
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Execute the plan that the daemon sends over file descriptor 0
    #[command(hide = true)]
    Worker,
    /// Print the fingerprint of the certificate, to compare it with what a console shows
    Fingerprint {
        /// Configuration file (TOML)
        #[arg(long, value_name = "FILE", default_value = "/etc/backhaul/backhauld.toml")]
        config: PathBuf,
    },
    /// Start the daemon, and swap its program when it is upgraded: what a service runs
    Launch {
        /// Configuration file (TOML)
        #[arg(long, value_name = "FILE", default_value = "/etc/backhaul/backhauld.toml")]
        config: PathBuf,
    },
    /// Become a program that ends when its launcher does
    #[command(hide = true)]
    Launched {
        /// Process id of the launcher
        parent: i32,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// In an appliance, before the daemon: take the configuration that the VM was given through XenStore
    FirstBoot(Machine),
    /// In an appliance, after the daemon's start: tell port and certificate through XenStore
    Report(Machine),
}

#[derive(Args)]
struct Machine {
    /// Root of the file system to configure
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Folder in the place of XenStore's vm-data, with a file for each key
    #[arg(long, value_name = "DIR")]
    xenstore_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    daemon::log_to_stderr();
    match arguments.command {
        Some(Command::Worker) => {
            tls::install_provider();
            engine::worker::main()
        }
        Some(Command::Launch { config }) => daemon::launch::main(&config),
        Some(Command::Launched { parent, program }) => daemon::launch::become_program(parent, &program),
        Some(Command::FirstBoot(machine)) => {
            daemon::boot_step(daemon::first_boot::first_boot, &machine.root, machine.xenstore_dir.as_deref())
        }
        Some(Command::Report(machine)) => {
            daemon::boot_step(daemon::first_boot::report, &machine.root, machine.xenstore_dir.as_deref())
        }
        Some(Command::Fingerprint { config }) => daemon::fingerprint(&config),
        None => daemon::main(&arguments.config, arguments.check_config),
    }
}
