//! A proxy deployed and destroyed with the keyboard alone: the real console on a real terminal, over the lab.

mod support;
#[path = "pty/terminal.rs"]
#[allow(dead_code, reason = "a part of it is enough here")]
mod terminal;

use std::time::{Duration, Instant};

use backhaul::config::Config;
use support::lab::{Lab, PATIENCE};
use terminal::{Setup, Terminal};

/// Waits for something that the lab does, as long as that runs.
fn until(lab: &mut Lab, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not so: {what}");
        assert_eq!(lab.child.try_wait().unwrap(), None, "the lab ended");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn row(terminal: &Terminal, name: &str, state: &str) {
    terminal.until(&format!("{name} {state}"), |seen| seen.row_with(name).is_some_and(|(row, _)| seen.line(row).contains(state)));
}

#[tokio::test]
async fn a_proxy_is_deployed_and_destroyed_with_the_keyboard_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("lab");
    let mut lab = Lab::start(&home).await;
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
    until(&mut lab, "the new proxy is in the configuration", || known().contains(&"annecy".to_owned()));
    terminal.types("1");
    row(&terminal, "annecy", "idle");

    // What it says of itself, and who deployed it. It is the last one: what was selected stays so when another comes.
    terminal.types("G\r");
    terminal.shows("Deployed by");
    terminal.shows("not needed");
    terminal.types("\x1b");
    row(&terminal, "annecy", "idle");
    terminal.types("D");
    terminal.shows("Destroy the proxy annecy");
    terminal.types("annecy\r");
    until(&mut lab, "the proxy is out of the configuration", || known() == ["paris", "lyon"]);
    terminal.types("1");
    terminal.until("it is gone from the list", |seen| seen.row_with("annecy").is_none() && seen.row_with("paris").is_some());
    terminal.types("q");
    assert_eq!(terminal.ends().exit_code(), 0);
    lab.stop().await;
}
