//! `backhauld`: the proxy daemon; `backhauld worker` is the process of one run.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    daemon::log_to_stderr();
    match arguments.command {
        Some(Command::Worker) => {
            tls::install_provider();
            engine::worker::main()
        }
        None => daemon::main(&arguments.config, arguments.check_config),
    }
}
