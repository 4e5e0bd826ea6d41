//! Whether a pool is there, is still the same, and lets this proxy in; then what only shows from inside.

use std::sync::Arc;
use std::time::Instant;

use api::Job;
use engine::plan::PoolAccess;
use tls::{Fingerprint, Trust};
use xapi::{Client, Connect, Host, HostMetrics, Record};

use super::{About, Finding, Kind, Lines, cbt, clock, dns, nbd, route, version};
use crate::daemon::Daemon;
use crate::fault;
use crate::pools::explain;

/// What to look after where a pool should listen.
const SERVICE: &str = "that the toolstack runs on that host (systemctl status xapi; xe-toolstack-restart)";

/// A pool that has let us in.
pub(crate) struct Visit {
    pub daemon: Arc<Daemon>,
    /// Its name here.
    pub name: String,
    /// Port of its master.
    pub port: u16,
    /// A session of the doctor's own: a kept one would hide that the password has changed since.
    pub client: Client,
    /// Those that answer their master.
    pub hosts: Vec<Record<Host>>,
    pub jobs: Arc<Vec<Job>>,
}

impl Visit {
    /// How a line names the pool.
    pub fn object(&self) -> String {
        object(&self.name)
    }

    /// How a line names a host of it.
    pub fn host_object(&self, host: &Host) -> String {
        format!("host {} of {}", host.name_label, self.name)
    }
}

fn object(name: &str) -> String {
    format!("pool {name}")
}

/// Checks one pool from its name to the disks in jobs.
pub async fn check(lines: Lines, daemon: Arc<Daemon>, id: String, jobs: Arc<Vec<Job>>) {
    // Forgotten meanwhile: nothing to check.
    let Ok(access) = daemon.pools.access(&id) else { return };
    let Some(visit) = enter(&lines, daemon, access, jobs).await else { return };
    tokio::join!(
        clock::check_hosts(&lines, &visit),
        version::check_pool(&lines, &visit),
        check_members(&lines, &visit),
        nbd::check(&lines, &visit),
        cbt::check(&lines, &visit),
    );
    // The client logs out behind us when it is dropped.
}

async fn enter(lines: &Lines, daemon: Arc<Daemon>, access: PoolAccess, jobs: Arc<Vec<Job>>) -> Option<Visit> {
    let object = object(&access.name);
    let (host, port) = match xapi::host_and_port(&access.url) {
        Ok(found) => found,
        Err(error) => {
            let about = About::new(Kind::Pool, object, "reading its address", "");
            let finding = Finding::fail(fault::chain(&error), "add the pool again with its address: backhaul pool add");
            return lines.check(about, async { (finding, None) }).await;
        }
    };
    let addresses = dns::check(lines, &object, "pool", &host).await?;
    route::check(lines, &object, &addresses, port, SERVICE).await?;
    let about = About::new(
        Kind::Pool,
        &object,
        format!("logging in at {host}:{port}"),
        format!("something takes connections there and does not answer: look after it; it may not be a pool, or {SERVICE}"),
    );
    let (client, hosts, metrics) = lines.check(about, log_in(&access)).await?;
    let down = |host: &Record<Host>| metrics.iter().any(|metrics| metrics.reference == host.metrics && !metrics.live);
    let (down, hosts): (Vec<_>, Vec<_>) = hosts.into_iter().partition(down);
    let visit = Visit { daemon, name: access.name, port, client, hosts, jobs };
    for host in down {
        // One line for it, and none for all that cannot work while it is down.
        let about = About::new(Kind::Pool, visit.host_object(&host), "looking whether it is up", "");
        let words = "it does not answer its pool's master: disks on its own storage cannot be read";
        let finding = Finding::fail(
            words,
            "switch it on, or look at its network and toolstack (xe host-list params=name-label,host-metrics-live)",
        );
        lines.check(about, async { (finding, Some(())) }).await;
    }
    Some(visit)
}

type Entered = (Client, Vec<Record<Host>>, Vec<Record<HostMetrics>>);

async fn log_in(access: &PoolAccess) -> (Finding, Option<Entered>) {
    let begun = Instant::now();
    let entered = async {
        let fingerprint: Fingerprint = access.fingerprint.parse().map_err(|error| {
            (
                fault::report("POOL_FINGERPRINT", "the stored fingerprint is damaged", &error),
                "add the pool again: backhaul pool add",
            )
        })?;
        let mut connect = Connect::new(&access.url, &access.username, access.password.expose(), Trust::Pinned(fingerprint));
        // The limit of the line comes first, and says more.
        connect.timing.connect = Kind::Pool.limit() * 2;
        (connect.timing.busy_attempts, connect.timing.read_attempts) = (1, 1);
        let what = format!("cannot log in as {}", access.username);
        let explained =
            |error: xapi::Error| (explain(&error, &what), "look into the log of the pool's master: /var/log/xensource.log");
        let client = Client::connect(connect).await.map_err(explained)?;
        let (hosts, metrics) = tokio::try_join!(client.all::<Host>(), client.all::<HostMetrics>()).map_err(explained)?;
        Ok::<_, (api::ErrorReport, &str)>((client, hosts, metrics))
    };
    match entered.await {
        Ok((client, hosts, metrics)) => {
            let words = format!(
                "logged in as {} after {} ms; {} host{}; the certificate is the pinned one",
                access.username,
                begun.elapsed().as_millis(),
                hosts.len(),
                if hosts.len() == 1 { "" } else { "s" },
            );
            (Finding::pass(words), Some((client, hosts, metrics)))
        }
        Err((report, otherwise)) => {
            let fix = report.next.unwrap_or_else(|| otherwise.to_owned());
            (Finding::fail(report.message, fix), None)
        }
    }
}

/// The way to the other hosts: transfers of disks on their storage go there.
async fn check_members(lines: &Lines, visit: &Visit) {
    let master = visit.client.master().await;
    let master = master.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    futures::future::join_all(visit.hosts.iter().filter(|host| host.address != master).map(|host| async move {
        // XAPI keeps addresses, never names.
        if let Ok(address) = host.address.parse() {
            route::check(lines, &visit.host_object(host), &[address], visit.port, SERVICE).await;
        }
    }))
    .await;
}
