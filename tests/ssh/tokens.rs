//! Which token counts: after a rotation, with settings of one's own, and where the proxy is not to be asked.

use std::fs;

use serde_json::Value;

use super::host::{Host, Setup, free_port};
use super::{good, live, refused, stripped};

/// What a plan says that is going to be done.
fn planned(host: &Host, deploy: &[&str]) -> (Value, String) {
    let plan = good(host.backhaul(&[deploy, &["--plan", "--json"]].concat()));
    let plan: Value = serde_json::from_str(plan.trim()).unwrap();
    let steps = plan["steps"].to_string();
    (plan, steps)
}

#[test]
fn a_rotated_token_is_replaced_only_on_demand_and_comes_back_when_that_fails() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"];
    good(host.backhaul(&deploy));
    good(host.backhaul(&["proxy", "token", "rotate", "p"]));
    // Another console, which never heard of it.
    let other = host.dir.path().join("other-console");
    let of_other = |arguments: &[&str]| host.command_of(&other, &[&deploy[..], arguments].concat()).output().unwrap();
    refused(&of_other(&[]), 4, &["this console does not know it", "--new-token"]);
    live(&host);
    // It takes up the new token, and then its console cannot write down what came of it.
    fs::create_dir_all(other.join("proxies.lock")).unwrap();
    refused(&of_other(&["--new-token"]), 1, &["cannot write it into the console's configuration", "is as it was before"]);
    live(&host);
    assert_eq!(host.run("ls /var/lib/backhaul/token* 2> /dev/null || :"), "");
    fs::remove_dir(other.join("proxies.lock")).unwrap();
    let said = good(of_other(&["--new-token"]));
    assert!(said.contains("consoles that know the former one lose their access"), "{said}");
    let listed = good(host.backhaul(&["proxy", "list", "--json"]));
    assert!(!listed.contains("\"live\""), "{listed}");
}

#[test]
fn without_tunnels_or_away_from_the_loopback_a_proxy_is_known_again_after_a_rotation() {
    let host = Host::start(&Setup { tunnels: false, ..Setup::default() });
    let (to, port) = (host.destination("root"), free_port().to_string());
    let (first, next) = (stripped(&host, "first", b""), stripped(&host, "next", b"next"));
    let deploy = ["proxy", "deploy", "--ssh", &to, "--yes", "--port", &port, "--package"];
    good(host.backhaul(&[&deploy[..], &[&first, "--name", "p"]].concat()));
    good(host.backhaul(&["proxy", "token", "rotate", "p"]));
    let upgrade = [&deploy[..], &[&next]].concat();
    let (plan, steps) = planned(&host, &upgrade);
    assert_eq!(plan["interruptedRuns"], 0, "{plan}");
    assert!(steps.contains("put the program") && !steps.contains("token"), "{steps}");
    // It does not run: this console still has its token, and nobody knows what would be interrupted.
    host.run("systemctl stop backhauld");
    let (_, steps) = planned(&host, &upgrade);
    assert!(steps.contains("start the service") && !steps.contains("token"), "{steps}");
    good(host.backhaul(&upgrade));
    live(&host);
    drop(host);

    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let deploy = ["proxy", "deploy", "--ssh", &to, "--yes", "--package", &stripped(&host, "first", b"")];
    good(host.backhaul(&[&deploy[..], &["--name", "p", "--port", &port]].concat()));
    let listens = |at: &str| format!("sed -i 's/^listen = .*/listen = \"{at}\"/' /etc/backhaul/backhauld.toml");
    host.run(&format!("{} && systemctl restart backhauld", listens(&format!("127.0.0.2:{port}"))));
    good(host.backhaul(&[&deploy[..], &["--host", "127.0.0.2"]].concat()));
    good(host.backhaul(&["proxy", "token", "rotate", "p"]));
    // From here it is not reached where this console looks for it; on its host it is.
    let path = host.config().join("proxies.toml");
    let known = fs::read_to_string(&path).unwrap();
    fs::write(&path, known.replace("https://127.0.0.2:", "https://127.0.0.3:")).unwrap();
    let (plan, steps) = planned(&host, &[&deploy[..6], &[&stripped(&host, "next", b"next")]].concat());
    assert_eq!(plan["interruptedRuns"], 0, "{plan}");
    assert!(!steps.contains("token"), "{steps}");
    // A port that is forwarded to it stays, as long as it does not move itself.
    assert_eq!(plan["url"], format!("https://127.0.0.3:{port}"));
    fs::write(&path, known.replace(&format!("https://127.0.0.2:{port}"), "https://public.example:9443")).unwrap();
    assert_eq!(planned(&host, &deploy).0["url"], "https://public.example:9443");
    let elsewhere = free_port().to_string();
    let moved = [&deploy[..], &["--port", &elsewhere]].concat();
    assert_eq!(planned(&host, &moved).0["url"], format!("https://public.example:{elsewhere}"));
    let named = [&deploy[..], &["--host", "127.0.0.2"]].concat();
    assert_eq!(planned(&host, &named).0["url"], format!("https://127.0.0.2:{port}"));
    // Nobody can ask it: that is not the same as no runs.
    host.run(&listens("127.0.0.4:1"));
    fs::write(&path, &known).unwrap();
    let (plan, _) = planned(&host, &[&deploy[..6], &[&stripped(&host, "third", b"third")]].concat());
    assert_eq!(plan["interruptedRuns"], 0, "its address is known here: {plan}");
    fs::write(&path, known.replace("https://127.0.0.2:", "https://127.0.0.3:")).unwrap();
    let (plan, _) = planned(&host, &[&deploy[..6], &[&stripped(&host, "fourth", b"fourth")]].concat());
    assert_eq!(plan["interruptedRuns"], Value::Null, "{plan}");
}

#[test]
fn a_token_in_the_settings_is_the_one_that_counts() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"];
    good(host.backhaul(&deploy));
    host.run("printf 'token = \"of-the-settings-0123\"\\n' >> /etc/backhaul/backhauld.toml && systemctl restart backhauld");
    let said = good(host.backhaul(&deploy));
    assert!(said.contains("nothing to do"), "{said}");
    live(&host);
    // One in another file is not looked for, and none is put that would not count.
    host.run(
        "sed -i 's/^token = .*/token_file = \"other\"/' /etc/backhaul/backhauld.toml && install -m 600 -o backhaul /dev/null \
         /etc/backhaul/other && echo of-the-file-0123456 > /etc/backhaul/other && systemctl restart backhauld",
    );
    let other = host.dir.path().join("other-console");
    let refusal = host.command_of(&other, &deploy).output().unwrap();
    refused(&refusal, 4, &["in the file that its settings name", "proxy add"]);
}

/// Only the account of the daemon may write there, and root reads it.
#[test]
fn what_only_root_may_read_is_not_taken_for_a_token() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"];
    good(host.backhaul(&deploy));
    host.run(
        "(umask 077; echo only-for-root-0123 > /root/secret); setpriv --reuid backhaul --regid backhaul --clear-groups sh -c \
         'cd /var/lib/backhaul && rm token && ln -s /root/secret token'",
    );
    let refusal = host.backhaul(&deploy);
    refused(&refusal, 4, &["/var/lib/backhaul/token", "its owner cannot read it"]);
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p", "--purge"]));
}
