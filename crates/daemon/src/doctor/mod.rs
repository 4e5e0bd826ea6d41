//! What is wrong with this proxy and with what it depends on, and what to do about it.
//!
//! Everything is checked side by side, each with a limit of its own, so that a dead mount or an address where nobody answers
//! costs its own line and delays no other. What depends on something broken is not tried: a wrong password is one line,
//! not six. `docs/doctor.md` has the table of checks.
//!
//! ```text
//! certificate  disk  license  version  clock of the console        one each
//! state ┬ remote name ─ dns                                        each remote on a host
//!       └ remote ─ mount, written, read back, free space           each remote
//! pool name ─ dns ─ route ─ login ┬ clock, route of each host      each pool
//!                                 ├ versions
//!                                 ├ networks with purpose nbd ─ host ─ route ─ TLS
//!                                 └ change tracking of the disks in jobs
//! ```

mod cbt;
mod certificate;
mod clock;
mod disk;
mod dns;
mod license;
mod lines;
mod nbd;
mod pool;
mod remote;
mod route;
mod version;

use std::sync::Arc;
use std::time::Duration;

use api::{DoctorCheck, DoctorParams, Verdict};
use futures::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::fault;
pub(crate) use dns::name_servers;
use lines::{About, Lines};

/// When whatever is still under way is given up, whatever its own limit: the last line is out before 15 s.
const OVERALL: Duration = Duration::from_secs(14);

/// What is checked; also the word on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Dns,
    Route,
    Clock,
    Pool,
    Nbd,
    Cbt,
    Remote,
    Certificate,
    Disk,
    Version,
    License,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Route => "route",
            Self::Clock => "clock",
            Self::Pool => "pool",
            Self::Nbd => "nbd",
            Self::Cbt => "cbt",
            Self::Remote => "remote",
            Self::Certificate => "certificate",
            Self::Disk => "disk",
            Self::Version => "version",
            Self::License => "license",
        }
    }

    /// How long one such check may take. A chain of them that each take nearly all of it is cut by [`OVERALL`].
    const fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Dns | Self::Route | Self::Nbd | Self::Clock => 3,
            Self::Pool | Self::Cbt => 5,
            Self::Certificate | Self::Disk | Self::Version | Self::License => 3,
            // Ten mebibytes there and back, on whatever is mounted.
            Self::Remote => 9,
        })
    }
}

/// How a check came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    verdict: Verdict,
    measured: String,
    fix: Option<String>,
}

impl Finding {
    fn pass(measured: impl Into<String>) -> Self {
        Self { verdict: Verdict::Pass, measured: measured.into(), fix: None }
    }

    fn warning(measured: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, measured: measured.into(), fix: Some(fix.into()) }
    }

    fn fail(measured: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, measured: measured.into(), fix: Some(fix.into()) }
    }
}

/// Examines everything. The lines come as they come out; whoever stops listening stops the checks.
pub fn examine(daemon: Arc<Daemon>, asked: DoctorParams) -> impl Stream<Item = DoctorCheck> + Send + 'static {
    let asked_at = daemon.now();
    let (sender, receiver) = mpsc::channel(64);
    let lines = Lines::new(sender);
    let mut tasks = JoinSet::new();

    tasks.spawn(certificate::check(lines.clone(), Arc::clone(&daemon)));
    tasks.spawn(disk::check(lines.clone(), daemon.config.state_dir.clone()));
    tasks.spawn(license::check(lines.clone(), Arc::clone(&daemon)));
    tasks.spawn(version::check_console(lines.clone(), asked.version));
    tasks.spawn(clock::check_console(lines.clone(), asked.now, asked_at));
    if let Some(url) = daemon.settings.get().http_proxy {
        tasks.spawn(route::check_http_proxy(lines.clone(), url));
    }
    tasks.spawn(check_stored(lines.clone(), daemon));
    stream(receiver, lines, tasks, OVERALL)
}

/// Checks what the state knows of. What cannot be read there is a line, and holds up nothing that can.
async fn check_stored(lines: Lines, daemon: Arc<Daemon>) {
    let about = About::new(
        Kind::Disk,
        "state",
        "reading remotes and jobs",
        "check the disk of the state folder (dmesg); the state does not answer",
    );
    let reading = async {
        let (remotes, jobs) = tokio::join!(daemon.store.remotes(), daemon.store.jobs());
        let failures = [remotes.as_ref().err(), jobs.as_ref().err()];
        let words: Vec<String> = failures.into_iter().flatten().map(|error| fault::chain(error)).collect();
        let finding = (!words.is_empty()).then(|| {
            let fix = "check the disk of the state folder; if a file in it was replaced, put it back as it was";
            Finding::fail(format!("{}: they are not checked", words.join("; ")), fix)
        });
        (finding, Some((remotes.unwrap_or_default(), jobs.unwrap_or_default())))
    };
    let (remotes, jobs) = lines.check(about, reading).await.unwrap_or_default();
    let jobs = Arc::new(jobs);
    let mut tasks = JoinSet::new();
    for remote in remotes {
        if let Some(host) = remote::host(&remote) {
            let (lines, object) = (lines.clone(), format!("remote {}", remote.name));
            tasks.spawn(async move { drop(dns::check(&lines, &object, "remote", &host).await) });
        }
        tasks.spawn(remote::check(lines.clone(), Arc::clone(&daemon), remote));
    }
    for id in daemon.pools.ids() {
        tasks.spawn(pool::check(lines.clone(), Arc::clone(&daemon), id, Arc::clone(&jobs)));
    }
    while tasks.join_next().await.is_some() {}
}

/// The lines until the last check has spoken or the time is over, and then one for each that has not.
fn stream(
    receiver: mpsc::Receiver<DoctorCheck>,
    lines: Lines,
    tasks: JoinSet<()>,
    overall: Duration,
) -> impl Stream<Item = DoctorCheck> + Send + 'static {
    struct Examination {
        receiver: mpsc::Receiver<DoctorCheck>,
        pending: lines::Pending,
        until: Instant,
        /// Aborted when this goes: when all is said, and when nobody listens any more.
        tasks: JoinSet<()>,
        late: Vec<DoctorCheck>,
    }
    let pending = lines.pending();
    // The checks hold the channel open, not we.
    drop(lines);
    let state = Examination { receiver, pending, until: Instant::now() + overall, tasks, late: Vec::new() };
    futures::stream::unfold(state, move |mut state| async move {
        if let Some(line) = state.late.pop() {
            return Some((line, state));
        }
        match tokio::time::timeout_at(state.until, state.receiver.recv()).await {
            Ok(line) => line.map(|line| (line, state)),
            Err(_) => {
                state.tasks.abort_all();
                state.receiver.close();
                state.late = state.pending.give_up(overall);
                // What came out at the last moment is still in the channel.
                while let Ok(line) = state.receiver.try_recv() {
                    state.late.push(line);
                }
                state.late.pop().map(|line| (line, state))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    fn about(object: &str) -> About {
        About::new(Kind::Route, object, "connection to it", "look at the cable")
    }

    #[tokio::test]
    async fn what_hangs_is_named_with_its_limit_and_stops_nobody() {
        let (sender, receiver) = mpsc::channel(8);
        let lines = Lines::limited(sender, |_| Duration::from_millis(50));
        let mut tasks = JoinSet::new();
        for object in ["dead", "well"] {
            let lines = lines.clone();
            tasks.spawn(async move {
                let work = async {
                    if object == "dead" {
                        std::future::pending::<()>().await;
                    }
                    (Finding::pass("fine"), Some(()))
                };
                let _ = lines.check(about(object), work).await;
            });
        }
        let mut found: Vec<DoctorCheck> = stream(receiver, lines, tasks, OVERALL).collect().await;
        found.sort_by(|one, other| one.object.cmp(&other.object));
        let [dead, well] = &found[..] else { panic!("{found:?}") };
        assert_eq!((well.object.as_str(), well.verdict), ("well", Verdict::Pass));
        assert_eq!((dead.object.as_str(), dead.verdict), ("dead", Verdict::Fail));
        assert_eq!(dead.measured, "connection to it: no answer within the limit of 50ms");
        assert_eq!(dead.fix.as_deref(), Some("look at the cable"));
    }

    #[tokio::test]
    async fn a_chain_that_takes_too_long_is_cut_and_named() {
        let (sender, receiver) = mpsc::channel(8);
        let lines = Lines::new(sender);
        let mut tasks = JoinSet::new();
        let own = lines.clone();
        tasks.spawn(async move {
            own.check(about("first"), async { (Finding::pass("fine"), Some(())) }).await;
            own.check::<(), Finding>(about("snail"), std::future::pending()).await;
            own.check(about("never"), async { (Finding::pass("fine"), Some(())) }).await;
        });
        let overall = Duration::from_millis(500);
        let found: Vec<DoctorCheck> = stream(receiver, lines, tasks, overall).collect().await;
        let said: Vec<(&str, Verdict)> = found.iter().map(|line| (line.object.as_str(), line.verdict)).collect();
        assert_eq!(said, [("first", Verdict::Pass), ("snail", Verdict::Fail)]);
        assert_eq!(found[1].measured, "connection to it: given up after 500ms for all checks");
    }

    #[test]
    fn no_limit_is_longer_than_all_and_a_space_of_keep_alive_is_never_the_last_word() {
        let kinds = [
            Kind::Dns,
            Kind::Route,
            Kind::Clock,
            Kind::Pool,
            Kind::Nbd,
            Kind::Cbt,
            Kind::Remote,
            Kind::Certificate,
            Kind::Disk,
            Kind::Version,
            Kind::License,
        ];
        assert!(kinds.iter().all(|kind| kind.limit() < OVERALL.min(crate::http::KEEP_ALIVE)));
        assert!(OVERALL < Duration::from_secs(15));
    }

    #[tokio::test]
    async fn a_check_that_breaks_down_is_a_line_too() {
        let (sender, mut receiver) = mpsc::channel(8);
        let lines = Lines::new(sender);
        let work = async {
            assert!(std::hint::black_box(false), "this check is broken");
            (Finding::pass("never"), Some(()))
        };
        assert!(lines.check(about("it"), work).await.is_none());
        let line = receiver.recv().await.unwrap();
        assert!(line.verdict == Verdict::Fail && line.measured.contains("broke down"), "{line:?}");
    }
}
