//! The cases.

use anyhow::{Context, Result, bail, ensure};
use sha_crypt::{PasswordHasher, ShaCrypt};

use super::Bench;
use super::console::Attempt;
use super::machine::{Machine, Running};
use super::reach::{Key, Shell, daemon, ssh_answers, ssh_comes};
use super::volume::Volume;
use crate::disk::MIB;

/// A case.
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
}

/// All of them.
pub const ALL: [Case; 3] = [
    Case { name: "dhcp", what: "told by its own volume, an address by DHCP, nobody can log in" },
    Case { name: "static", what: "told by another disk, a static address, a technician with a password, who is then shut out" },
    Case { name: "key", what: "told by a CD in XO's words, a static address, a technician with a key, a larger disk, a reboot" },
];

const TOKEN: &str = "boot-test-token-0123456789abcdefghijklmnop";
const PASSWORD: &str = "Boot-test-password-1";
/// systemd's own measure of how exposed the service is, at most: the unit's own bound, which nothing in an appliance widens.
const EXPOSURE: f32 = 2.0;

/// Runs one.
pub async fn run(name: &str, bench: &Bench) -> Result<()> {
    match name {
        "dhcp" => dhcp(bench).await,
        "static" => fixed(bench).await,
        "key" => key(bench).await,
        other => bail!("there is no case {other}"),
    }
}

async fn dhcp(bench: &Bench) -> Result<()> {
    // The first address that QEMU's network gives away.
    let mut machine = Machine::new(bench, 2048 * MIB, "10.0.2.15")?;
    let volume = machine.own_volume();
    volume.put(bench, &[("backhaul/name", "by DHCP"), ("backhaul/token", TOKEN), ("backhaul/address", "dhcp")])?;
    ensure!(volume.holds(TOKEN)?, "the token is not on the volume");
    let mut running = machine.start(bench).await?;
    answers(bench, &machine).await?;
    consumed(bench, &volume, "backhaul/token", TOKEN)?;
    ensure!(volume.get(bench, "backhaul/name")?.as_deref() == Some("by DHCP"), "the name is gone from the volume");
    nobody(bench, &machine, &mut running).await?;
    running.power_off(bench).await
}

async fn fixed(bench: &Bench) -> Result<()> {
    let mut machine = Machine::new(bench, 2048 * MIB, "10.0.2.77")?;
    // As the deployer hashes it: crypt(3) reads a salt of sixteen characters, which these twelve bytes become.
    let hash = ShaCrypt::SHA512.hash_password_with_salt(PASSWORD.as_bytes(), b"boot-test-12");
    let hash = hash.map_err(|error| anyhow::anyhow!("the password cannot be hashed: {error}"))?.to_string();
    let told = [
        ("backhaul/name", "static"),
        ("backhaul/token", TOKEN),
        ("backhaul/address", "10.0.2.77/24"),
        ("backhaul/gateway", "10.0.2.2"),
        ("backhaul/dns", "10.0.2.3"),
        ("backhaul/login-password", &hash),
    ];
    Volume::fat(bench)?.put(bench, &told)?;
    let volume = || Volume::part(&bench.dir.join("volume.img"), 0);
    machine.attach(volume());
    let mut running = machine.start(bench).await?;
    let fingerprint = answers(bench, &machine).await?;
    consumed(bench, &volume(), "backhaul/token", TOKEN)?;
    consumed(bench, &volume(), "backhaul/login-password", &hash)?;
    ssh_comes(&machine, bench.limit(180)).await?;
    let console = &mut running.console;
    ensure!(console.log_in("root", PASSWORD, bench.limit(120)).await? == Attempt::Refused, "root can log in");
    let wrong = console.log_in("technician", "not the password", bench.limit(120)).await?;
    ensure!(wrong == Attempt::Refused, "the technician can log in with a wrong password");
    let right = console.log_in("technician", PASSWORD, bench.limit(120)).await?;
    ensure!(right == Attempt::In, "the technician cannot log in with the right password");
    bench.seen("the technician logs in on the console with the password, and with no other");
    console.line("sudo -n id -un; ip -color=never -o -4 address show eth0").await?;
    console.expect(&["root"], bench.limit(60)).await?;
    console.expect(&["inet 10.0.2.77/24"], bench.limit(60)).await?;
    bench.seen("the address on the interface is the one that was told, and sudo works");
    running.power_off(bench).await?;

    // Told anew: only what is on the volume now changes.
    volume().put(bench, &[("backhaul/login-password", "off")])?;
    let mut running = restart(bench, &mut machine).await?;
    ensure!(answers(bench, &machine).await? == fingerprint, "after another start it shows another certificate");
    nobody(bench, &machine, &mut running).await?;
    let stale = running.console.log_in("technician", PASSWORD, bench.limit(120)).await?;
    ensure!(stale == Attempt::Refused, "the technician can log in although that is off");
    running.power_off(bench).await
}

async fn key(bench: &Bench) -> Result<()> {
    const SIZE: u64 = 6 * 1024 * MIB;
    let mut machine = Machine::new(bench, SIZE, "10.0.2.88")?;
    let (right, wrong) = (Key::new(bench, "right")?, Key::new(bench, "wrong")?);
    let told = [
        ("xo-proxy-authenticationToken", format!("\"{TOKEN}\"")),
        ("xoa-updater-channel", "\"stable\"".to_owned()),
        ("ip", "10.0.2.88".to_owned()),
        ("netmask", "255.255.255.0".to_owned()),
        ("gateway", "10.0.2.2".to_owned()),
        ("dns", "10.0.2.3".to_owned()),
        ("backhaul/name", "by key".to_owned()),
        ("backhaul/login-key", right.public.clone()),
    ];
    let told: Vec<_> = told.iter().map(|(key, value)| (*key, value.as_str())).collect();
    machine.attach(Volume::iso(bench, &told)?);
    let running = machine.start(bench).await?;
    let fingerprint = answers(bench, &machine).await?;
    let technician = Shell { key: &right, account: "technician" };
    let shell = async |order: &str| technician.run(bench, &machine, order).await;
    ssh_comes(&machine, bench.limit(180)).await?;
    ensure!(shell("id -un").await? == "technician", "somebody else than the technician is logged in");
    for (key, account) in [(&wrong, "technician"), (&right, "root"), (&right, "nobody")] {
        Shell { key, account }.is_refused(bench, &machine).await?;
    }
    bench.seen("the technician logs in by the key; no other key and no other account does");
    let state = shell("systemctl is-system-running --wait || systemctl --failed --no-legend --plain").await?;
    ensure!(state == "running", "not everything runs: {state}");
    for unit in ["backhauld", "systemd-timesyncd", "systemd-networkd", "systemd-resolved"] {
        let state = shell(&format!("systemctl is-active {unit} || true")).await?;
        ensure!(state == "active", "{unit} is {state}");
    }
    bench.seen("everything runs, time synchronisation too");
    // As the process has it, not as a unit says it.
    let user = shell("ps -o user= -p $(systemctl show -P MainPID backhauld)").await?;
    ensure!(user == "backhaul", "backhauld runs as {user}");
    let measured = shell("systemd-analyze security --no-pager backhauld.service | tail -1").await?;
    let exposure = exposure(&measured)?;
    ensure!(exposure <= EXPOSURE, "backhauld's exposure is {exposure}, and should be {EXPOSURE} at most");
    bench.seen(&format!("backhauld runs as {user}; its exposure is {exposure}"));
    shell("sudo -n test -x /usr/sbin/mount.nfs -a -x /usr/sbin/mount.cifs").await.context("a mount helper is missing")?;
    let size = shell("df --block-size=1M --output=size / | tail -1").await?;
    let size: u64 = size.trim().parse().with_context(|| format!("the size of / is {size:?}"))?;
    ensure!(size * MIB > SIZE * 9 / 10, "the root file system has {size} MiB on a disk of {} MiB", SIZE / MIB);
    bench.seen(&format!("the root file system has grown to {size} MiB"));
    ensure!(shell("resolvectl dns eth0").await?.ends_with("10.0.2.3"), "the DNS server is not the one that was told");
    let open = shell("sudo -n ss --no-header --listening --tcp --udp --numeric --oneline | awk '{print $1, $5}' | sort").await?;
    let outside: Vec<_> = open.lines().filter(|line| !line.contains(" 127.") && !line.contains(" [::1]")).collect();
    ensure!(outside == ["tcp *:443", "tcp 0.0.0.0:22", "tcp [::]:22"], "it listens where it should not: {}", outside.join(", "));
    // In two pieces: what is run as root stands in the log.
    let (first, last) = TOKEN.split_at(TOKEN.len() / 2);
    let places = "/run /tmp /var/log /var/tmp /etc /home /root";
    let search = "sudo -n grep --recursive --devices=skip --files-with-matches --file=-";
    let found = shell(&format!("printf %s%s {first} {last} | {search} {places} || test $? = 1")).await?;
    ensure!(found.is_empty(), "the token lies about: {found}");
    bench.seen("it listens on 443 and 22 only, and its token lies nowhere about");
    running.power_off(bench).await?;

    // The CD is still there, and says the same: nothing changes.
    let running = restart(bench, &mut machine).await?;
    ensure!(answers(bench, &machine).await? == fingerprint, "after another start it shows another certificate");
    ensure!(technician.run(bench, &machine, "id -un").await? == "technician", "the technician's key is gone");
    running.power_off(bench).await
}

/// Starts a machine again that has told about itself before.
async fn restart(bench: &Bench, machine: &mut Machine) -> Result<Running> {
    machine.own_volume().remove(bench, "backhaul/ready")?;
    machine.start(bench).await
}

/// Waits until it tells that it is ready, and calls it; the certificate it told.
async fn answers(bench: &Bench, machine: &Machine) -> Result<String> {
    let volume = machine.own_volume();
    let port = volume.wait(bench, "backhaul/ready", bench.limit(600)).await?;
    ensure!(port == "443", "it tells port {port}");
    let fingerprint = volume.wait(bench, "backhaul/fingerprint", bench.limit(60)).await?;
    bench.seen("booted, and told its certificate");
    daemon(bench, machine, TOKEN, &fingerprint).await?;
    Ok(fingerprint)
}

/// A secret is gone from the volume it came with, and not only its name.
fn consumed(bench: &Bench, volume: &Volume, key: &str, secret: &str) -> Result<()> {
    ensure!(volume.get(bench, key)?.is_none(), "{key} is still on the volume");
    ensure!(!volume.holds(secret)?, "the text of {key} still stands on the volume");
    bench.seen(&format!("{key} is gone from the volume"));
    Ok(())
}

/// Nobody can log in: no SSH server, and the console refuses.
async fn nobody(bench: &Bench, machine: &Machine, running: &mut Running) -> Result<()> {
    for account in ["technician", "root"] {
        let attempt = running.console.log_in(account, "backhaul", bench.limit(180)).await?;
        ensure!(attempt == Attempt::Refused, "{account} can log in on the console");
    }
    // Whoever can try to log in comes after all that starts the server.
    ensure!(!ssh_answers(machine, bench.limit(60)).await?, "there is an SSH server although nobody may log in");
    bench.seen("nobody can log in: the console refuses, and there is no SSH server");
    Ok(())
}

/// The number in the last line of `systemd-analyze security`, e.g. `→ Overall exposure level for backhauld.service: 1.6 OK 🙂`.
fn exposure(line: &str) -> Result<f32> {
    let number = line.rsplit_once(": ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("systemd-analyze tells no exposure: {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposure_is_the_number_at_the_end() {
        let line = "→ Overall exposure level for backhauld.service: 1.6 OK 🙂";
        assert!((exposure(line).unwrap() - 1.6).abs() < f32::EPSILON);
        assert!(exposure("Failed to connect to bus: No such file").is_err());
    }
}
