//! The console's actions without the screen: one-shot commands with `--json` and stable exit codes.

pub mod cli;
mod context;
mod failure;
mod job;
mod objects;
mod output;
mod proxy;
mod run;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Colors, Command, Common, Screen};
use context::Context;
pub use failure::Exit;
use failure::Failure;

use crate::config::Config;
use crate::core::ProxyEntry;
use crate::fleet::Fleet;

/// The program: parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.common.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("backhaul: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let done = runtime.block_on(perform(cli));
    // A thread stuck in a system call must not keep a finished command.
    runtime.shutdown_background();
    match done {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if let Some(report) = &failure.report {
                output::error(report, json);
            }
            failure.exit.into()
        }
    }
}

async fn perform(Cli { common, screen, command }: Cli) -> Result<(), Failure> {
    let Some(command) = command else { return console(&common, &screen).await };
    match command {
        Command::Proxy(command) => proxy::run(&common, command).await,
        Command::Pool(command) => objects::pool(&Context::new(&common)?, command).await,
        Command::Vm(command) => objects::vm(&Context::new(&common)?, command).await,
        Command::Sr(command) => objects::sr(&Context::new(&common)?, command).await,
        Command::Remote(command) => objects::remote(&Context::new(&common)?, command).await,
        Command::Job(command) => job::run(&Context::new(&common)?, command).await,
        Command::Run(command) => run::run(&Context::new(&common)?, command).await,
        Command::Backup(command) => run::backup(&Context::new(&common)?, command).await,
    }
}

/// The screen over the proxies of the configuration.
async fn console(common: &Common, screen: &Screen) -> Result<(), Failure> {
    let config = Config::load(&context::config_dir(common)?);
    let problems = config.console_problem.iter().chain(config.proxies.as_ref().err());
    let notices: Vec<String> = problems.map(ToString::to_string).collect();
    let mut proxies = config.proxies.unwrap_or_default();
    if let Some(only) = &common.proxy {
        proxies.retain(|proxy| proxy.name == *only);
        if proxies.is_empty() {
            return Err(Failure::usage(format!("there is no proxy {only:?} in the configuration")));
        }
    }
    let entry = |proxy: &crate::config::Proxy| ProxyEntry {
        name: proxy.name.clone(),
        url: proxy.url.as_str().trim_end_matches('/').to_owned(),
    };
    let options = crate::tui::Options {
        proxies: proxies.iter().map(entry).collect(),
        read_only: common.read_only || config.console.read_only,
        colors: screen.colors.map(|colors| {
            match colors {
                Colors::None => "none",
                Colors::Sixteen => "16",
                Colors::Palette => "256",
                Colors::True => "true",
            }
            .to_owned()
        }),
        ascii: screen.ascii.then_some(true).or(config.console.ascii),
        theme: screen.theme.clone().or(config.console.theme),
        keymap: config.console.keymap,
    };
    for notice in notices {
        output::aside(&notice);
    }
    let (fleet, events) = Fleet::start(&proxies);
    crate::tui::run(options, events, fleet).await.map_err(|error| match error {
        crate::tui::TuiError::NoTerminal => Failure::usage(error.to_string()),
        error => Failure::failed("TERMINAL", error.to_string()),
    })
}
