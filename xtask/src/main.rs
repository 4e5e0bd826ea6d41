//! The daily commands, run as `cargo xtask COMMAND`: the one entry point for people and for CI.

mod package;
mod setup;

use std::process::ExitCode;

use anyhow::{Result, bail};

use xtask::run;

use crate::run::{Program, workspace};

const USAGE: &str = "usage: cargo xtask COMMAND

  lab [ARGS]      build both programs and open the console on the embedded lab
  test [ARGS]     install what the tests need, then run them all
  setup           only install what the tests need
  ci              fmt, clippy, deny, test, packages: what .ci/run runs
  bench           the benchmarks, printed as a table
  appliance [ARGS]
                  build the appliance, a bootable image of a proxy; `appliance help` says more
  pictures        draw screenshots/ anew from the console's own screens
  package [ARGS]  .tar.gz, .deb and .rpm of both programs: docs/installing.md
  docs            write docs/api.md anew from the table of methods";

/// The maker of the appliance is left out of the daily commands, and is checked and tested with the rest.
const APPLIANCE: [&str; 2] = ["--features", "xtask/appliance"];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    match dispatch(&command, &args.collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &str, args: &[String]) -> Result<()> {
    match command {
        "lab" => {
            build(&["--release"])?;
            Program::new(workspace().join("target/release/backhaul")).arg("lab").args(args).exec()
        }
        "setup" => setup::all(),
        "test" => {
            setup::all()?;
            test(args)
        }
        "ci" => ci(),
        "bench" => Program::cargo().args(["bench", "--package", "engine", "--bench", "transfer", "--"]).args(args).run(),
        "pictures" => {
            setup::fonts()?;
            build(&["--release"])?;
            Program::cargo().args(["run", "--release", "--package", "xtask", "--features", "pictures", "--bin", "pictures"]).run()
        }
        "package" => package::run(args),
        "appliance" => Program::cargo()
            .args(["run", "--quiet", "--package", "xtask", "--features", "appliance", "--bin", "appliance", "--"])
            .args(args)
            .run(),
        "docs" => Program::cargo().args(["run", "--package", "api", "--example", "api_md"]).run(),
        "" | "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("no such command: {other}\n\n{USAGE}"),
    }
}

/// Both programs, so that `backhaul` finds `backhauld` beside itself.
fn build(profile: &[&str]) -> Result<()> {
    Program::cargo().args(["build", "--package", "backhaul", "--package", "daemon", "--bins"]).args(profile).run()
}

fn test(args: &[String]) -> Result<()> {
    // Whole-system tests start the real programs. A test of the whole workspace builds them; of a part, only the part's.
    if !args.is_empty() {
        build(&[])?;
    }
    Program::cargo().args(["test", "--workspace", "--no-fail-fast"]).args(APPLIANCE).args(args).run()
}

/// Makes the packages of what the tests ran with, and looks at them; quick, because symbols and optimisation are left out.
fn packages() -> Result<()> {
    let out = workspace().join("target/package-check");
    let small = out.join("programs");
    std::fs::create_dir_all(&small)?;
    for program in package::PROGRAMS {
        let built = workspace().join("target/debug").join(program);
        Program::new("strip").arg("-o").arg(small.join(program)).arg(built).run()?;
    }
    let folder = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    package::run(&["--check".into(), "--binaries".into(), folder(small), "--out".into(), folder(out)])
}

fn ci() -> Result<()> {
    Program::cargo().args(["fmt", "--all", "--check"]).run()?;
    setup::all()?;
    setup::cargo_deny()?;
    // Advisories need a database from the network: part of the release checklist, not of each push.
    Program::cargo().args(["deny", "check", "bans", "licenses", "sources"]).run()?;
    Program::cargo().args(["clippy", "--workspace", "--all-targets"]).args(APPLIANCE).args(["--", "-D", "warnings"]).run()?;
    test(&[])?;
    packages()
}
