//! The console's actions without the screen: one-shot commands with `--json` and stable exit codes.

mod bundle;
pub mod cli;
mod context;
mod deploy;
mod doctor;
mod failure;
mod job;
mod lab;
mod license;
mod maintain;
mod objects;
mod output;
mod proxy;
mod run;
mod ssh;
mod upgrade;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Colors, Command, Common, Lab, LabCommand, Screen};
use context::Context;
pub use failure::Exit;
use failure::Failure;

use crate::config::{Config, ConfigError, Console, Proxy};
use crate::core::ProxyEntry;
use crate::fleet::Fleet;
use crate::tui::TuiError;

/// The program: parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Lab(Lab { command: Some(LabCommand::Guard { parent, program }), .. })) = &cli.command {
        return lab::guard(*parent, program);
    }
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
        Command::Doctor(arguments) => doctor::doctor(&common, arguments).await,
        Command::Support(arguments) => doctor::support(&common, arguments).await,
        Command::Lab(arguments) => lab::run(&common, &screen, arguments).await,
        Command::Proxy(command) => proxy::run(&common, command).await,
        Command::Bundle(command) => bundle::run(&common, command),
        Command::License(command) => license::run(&common, command).await,
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
    let dir = context::config_dir(common)?;
    let config = Config::load(&dir);
    let problems = config.console_problem.iter().chain(config.proxies.as_ref().err());
    let notices: Vec<String> = problems.map(ToString::to_string).collect();
    let mut proxies = config.proxies.unwrap_or_default();
    if let Some(only) = &common.proxy {
        proxies.retain(|proxy| proxy.name == *only);
        if proxies.is_empty() {
            return Err(ConfigError::NoSuchProxy { name: only.clone() }.into());
        }
    }
    let (fleet, events) = Fleet::start(&proxies, Some(&dir));
    let options = crate::tui::Options { notices, ..options(common, screen, config.console, &proxies) };
    crate::tui::run(options, events, fleet).await.map_err(terminal_failure)
}

/// What the screen is told: flags before configuration.
fn options(common: &Common, screen: &Screen, console: Console, proxies: &[Proxy]) -> crate::tui::Options {
    let entry = |proxy: &Proxy| ProxyEntry { name: proxy.name.clone(), url: proxy.address() };
    let colors = |colors| match colors {
        Colors::None => "none",
        Colors::Sixteen => "16",
        Colors::Palette => "256",
        Colors::True => "true",
    };
    crate::tui::Options {
        proxies: proxies.iter().map(entry).collect(),
        read_only: common.read_only || console.read_only,
        colors: screen.colors.map(|chosen| colors(chosen).to_owned()),
        ascii: screen.ascii.then_some(true).or(console.ascii),
        theme: screen.theme.clone().or(console.theme),
        keymap: console.keymap,
        notices: Vec::new(),
    }
}

fn terminal_failure(error: TuiError) -> Failure {
    match error {
        TuiError::NoTerminal => Failure::usage(error.to_string()),
        TuiError::Terminal(_) | TuiError::Panicked => Failure::failed("TERMINAL", error.to_string()),
    }
}
