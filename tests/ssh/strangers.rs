//! Others with a say: another proxy of the same name, and an account of the host that lays something in the way.

use super::host::{Host, Setup, free_port};
use super::{good, live, proxies, refused};

#[test]
fn another_host_with_the_same_name_does_not_take_over_the_entry_of_the_first() {
    let (first, second) = (Host::start(&Setup::default()), Host::start(&Setup::default()));
    let port = free_port().to_string();
    let (one, two) = (first.destination("root"), second.destination("root"));
    let deploy = ["proxy", "deploy", "--name", "same", "--port", &port, "--yes", "--ssh"];
    good(first.backhaul(&[&deploy[..], &[&one, "--host", "localhost"]].concat()));
    let known = proxies(&first);
    assert!(known.contains(&format!("https://localhost:{port}")), "{known}");
    // Both hosts share this machine's ports: the first one is down.
    first.run("systemctl stop backhauld");
    let untouched = second.contents();
    let of_first = |arguments: &[&str]| second.command_of(&first.config(), arguments).output().unwrap();
    let taken = of_first(&[&deploy[..], &[&two]].concat());
    refused(&taken, 4, &["the console knows another proxy \"same\" already, at https://localhost", "--name"]);
    assert_eq!(proxies(&first), known, "the entry of the first host was changed");
    assert_eq!(super::difference(&untouched, &second.contents()), [""; 0], "the second host was touched");
    // By another name it comes beside the first.
    let mut other = deploy;
    other[3] = "other";
    good(of_first(&[&other[..], &[&two]].concat()));
    let both = proxies(&first);
    assert!(both.contains(known.trim()) && both.contains(&format!("https://127.0.0.1:{port}")), "{both}");
}

#[test]
fn what_the_account_of_the_daemon_lays_in_the_way_is_not_followed() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"];
    good(host.backhaul(&deploy));
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p"]));
    // The state stayed, and is its own.
    host.run(
        "setpriv --reuid backhaul --regid backhaul --clear-groups sh -c 'cd /var/lib/backhaul && rm -f token && \
         ln -s /etc/taken-over token && ln -s /etc/taken-over token.backhaul-new'; rm -rf /var/lib/backhaul/account-made; \
         ln -s /etc/taken-over /var/lib/backhaul/account-made",
    );
    good(host.backhaul(&deploy));
    live(&host);
    assert_eq!(host.run("stat -c '%F %U %a' /var/lib/backhaul/token"), "regular file backhaul 600\n");
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p"]));
    assert_eq!(host.run("ls /etc/taken-over 2> /dev/null || :"), "", "what lay in the way was followed");
}
