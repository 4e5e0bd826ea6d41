//! A proxy deployed and destroyed with the keyboard alone: the real console on a real terminal, over the lab.

#[path = "pty/terminal.rs"]
#[allow(dead_code, reason = "a part of it is enough here")]
mod terminal;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backhaul::config::Config;
use rustix::process::{Pid, Signal, kill_process};
use terminal::{Setup, Terminal};

/// Patience for the lab to start and to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// A lab that ends with the test.
struct Lab(Child);

impl Lab {
    fn start(dir: &Path) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_backhaul"));
        let daemon = program.with_file_name("backhauld");
        assert!(daemon.is_file(), "{} is missing: cargo build --package daemon", daemon.display());
        let mut lab = Command::new(program);
        lab.args(["lab", "--serve", "--small", "--dir"]).arg(dir).stdin(Stdio::null()).stderr(Stdio::null());
        let mut lab = Self(lab.spawn().unwrap());
        lab.until("the lab is ready", || dir.join("lab.json").exists());
        lab
    }

    fn until(&mut self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "not so: {what}");
            assert_eq!(self.0.try_wait().unwrap(), None, "the lab ended");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.0.wait();
    }
}

fn row(terminal: &Terminal, name: &str, state: &str) {
    terminal.until(&format!("{name} {state}"), |seen| seen.row_with(name).is_some_and(|(row, _)| seen.line(row).contains(state)));
}

#[test]
fn a_proxy_is_deployed_and_destroyed_with_the_keyboard_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("lab");
    let mut lab = Lab::start(&home);
    let config = home.join("config");
    let known = || Config::load(&config).proxies.unwrap().iter().map(|proxy| proxy.name.clone()).collect::<Vec<_>>();
    assert_eq!(known(), ["paris", "lyon"]);

    let mut terminal = Setup::new(&config).open();
    row(&terminal, "paris", "idle");
    row(&terminal, "lyon", "idle");
    terminal.types("n");
    terminal.shows("annecy NAS");
    terminal.types("annecy");
    // One processor is too few, and the form says so at once, before anything is asked of anybody.
    terminal.types("\t".repeat(8));
    terminal.types("1");
    terminal.shows("at least 2");
    terminal.types("\x7f2");
    terminal.until("the fault gone", |seen| !seen.shows("at least 2:"));
    // To the port: the lab gives ports above 1024 only.
    terminal.types("\x1b[Z\x1b[Z");
    terminal.types("8443\x13");
    terminal.shows("nothing has been touched yet");
    terminal.shows("upload");
    terminal.types("y");
    terminal.stands_on("Transfers");
    // Wherever one is meanwhile.
    terminal.types("3");
    lab.until("the new proxy is in the configuration", || known().contains(&"annecy".to_owned()));
    terminal.types("1");
    row(&terminal, "annecy", "idle");

    // What it says of itself, and who deployed it.
    terminal.types("\r");
    terminal.shows("Deployed by");
    terminal.shows("not needed");
    terminal.types("\x1b");
    row(&terminal, "annecy", "idle");
    terminal.types("D");
    terminal.shows("Destroy the proxy annecy");
    terminal.types("annecy\r");
    lab.until("the proxy is out of the configuration", || known() == ["paris", "lyon"]);
    terminal.types("1");
    terminal.until("it is gone from the list", |seen| seen.row_with("annecy").is_none() && seen.row_with("paris").is_some());
    terminal.types("q");
    assert_eq!(terminal.ends().exit_code(), 0);
}
