//! What the console knows of the fleet. Data stays when a proxy goes away; it only gets an age.

use std::collections::BTreeMap;

use api::{
    DeployOptions, Deployed, DoctorCheck, ErrorReport, Job, License, Pool, ProxyStatus, Remote, RemoteTest, RestorePoint, Run,
    Sr, Topic, Vm,
};

use super::effect::RequestId;
use super::live::LiveRun;
use super::message::{Connection, ProxyEntry};

/// A list that is fetched as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct List<T> {
    /// Its items.
    pub items: Vec<T>,
    /// How fresh they are.
    pub state: ListState,
    /// Grows with each change.
    pub version: u64,
}

/// How fresh a list is.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum ListState {
    /// Never asked for, or known to have changed since.
    #[default]
    Stale,
    /// Asked for.
    Loading,
    /// As of then.
    Fresh(i64),
    /// Could not be had.
    Failed(ErrorReport),
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { items: Vec::new(), state: ListState::Stale, version: 0 }
    }
}

impl<T> List<T> {
    /// Takes the items of an answer.
    pub fn set(&mut self, items: Vec<T>, now: i64) {
        self.items = items;
        self.version += 1;
        // A change announced while the answer was on its way has set `Stale`: then ask again.
        if self.state == ListState::Loading {
            self.state = ListState::Fresh(now);
        }
    }

    /// Takes one item of an answer, in the place of the one that is the same; the list itself comes a moment later.
    pub fn put(&mut self, item: T, same: impl Fn(&T) -> bool) {
        match self.items.iter_mut().find(|other| same(other)) {
            Some(other) => *other = item,
            None => self.items.push(item),
        }
        self.version += 1;
    }
}

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListKind {
    /// Pools.
    Pools,
    /// VMs.
    Vms,
    /// Storage repositories.
    Srs,
    /// Remotes.
    Remotes,
    /// Jobs.
    Jobs,
    /// Runs.
    Runs,
    /// Restore points.
    Points,
    /// Deployed proxies.
    Deployed,
    /// What the pools offer to a new proxy; of one proxy at a time, for it asks all of its pools.
    Options,
    /// Licences.
    Licenses,
}

/// Every list.
pub const LISTS: [ListKind; 10] = [
    ListKind::Pools,
    ListKind::Vms,
    ListKind::Srs,
    ListKind::Remotes,
    ListKind::Jobs,
    ListKind::Runs,
    ListKind::Points,
    ListKind::Deployed,
    ListKind::Options,
    ListKind::Licenses,
];

impl ListKind {
    /// The lists a topic of `proxy.watch` speaks of.
    pub fn of(topic: Topic) -> &'static [Self] {
        match topic {
            Topic::Pools => &[Self::Pools, Self::Srs, Self::Options],
            Topic::Vms => &[Self::Vms],
            Topic::Remotes => &[Self::Remotes],
            Topic::Jobs => &[Self::Jobs],
            // A job tells its last run.
            Topic::Runs => &[Self::Runs, Self::Jobs],
            Topic::RestorePoints => &[Self::Points],
            Topic::Deployed => &[Self::Deployed, Self::Options],
            Topic::Licenses => &[Self::Licenses, Self::Options],
            Topic::Unknown => &[],
        }
    }
}

/// One proxy.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    /// From the configuration.
    pub entry: ProxyEntry,
    /// How we stand with it.
    pub connection: Connection,
    /// When news last came.
    pub seen: Option<i64>,
    /// Its last status.
    pub status: Option<ProxyStatus>,
    /// Grows with each change of connection or status.
    pub version: u64,
    /// Pools.
    pub pools: List<Pool>,
    /// VMs.
    pub vms: List<Vm>,
    /// Storage repositories.
    pub srs: List<Sr>,
    /// Remotes.
    pub remotes: List<Remote>,
    /// Jobs.
    pub jobs: List<Job>,
    /// Runs, newest first.
    pub runs: List<Run>,
    /// Restore points, newest first.
    pub points: List<RestorePoint>,
    /// Proxies it has deployed.
    pub deployed: List<Deployed>,
    /// What its pools offer to a new proxy: one item, or none yet.
    pub options: List<DeployOptions>,
    /// Licences it holds.
    pub licenses: List<License>,
    /// Its last examination.
    pub examination: Option<Examination>,
    /// Results of tests, by remote id.
    pub tests: BTreeMap<String, Tested>,
    /// Runs followed, by id.
    pub live: BTreeMap<String, LiveRun>,
}

/// An examination of a proxy: what the doctor found, as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Examination {
    /// Id of the errand; another one's lines are late.
    pub id: RequestId,
    /// When it was asked for.
    pub started_at: i64,
    /// The things checked, in the order they came out.
    pub checks: Vec<DoctorCheck>,
    /// When it was through, and why it broke off if it did.
    pub ended: Option<(i64, Option<ErrorReport>)>,
}

/// Where a test of a remote stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Tested {
    /// Under way.
    Running,
    /// Done.
    Done {
        /// When it ended, milliseconds since the Unix epoch.
        at: i64,
        /// How it came out.
        test: RemoteTest,
    },
    /// Could not be done.
    Failed {
        /// When that was known, milliseconds since the Unix epoch.
        at: i64,
        /// Why.
        error: ErrorReport,
    },
}

impl Tested {
    /// Whether it still says something of a remote that was `before` and is `now`: not of one at another place, nor against
    /// what the proxy has found out since.
    fn holds(&self, before: &Remote, now: &Remote) -> bool {
        let good = match self {
            Self::Running => return true,
            Self::Done { test, .. } => test.success,
            Self::Failed { .. } => false,
        };
        let moved = (&before.url, before.vhd_directory) != (&now.url, now.vhd_directory);
        match (moved, before.error.is_some(), now.error.is_some()) {
            (true, ..) => false,
            (_, false, true) => !good,
            (_, true, false) => good,
            _ => true,
        }
    }
}

impl Proxy {
    /// A proxy nothing is known of yet.
    pub fn new(entry: ProxyEntry) -> Self {
        Self { entry, ..Self::default() }
    }

    /// Name in the configuration.
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Whether it can be asked now.
    pub fn live(&self) -> bool {
        self.connection == Connection::Live
    }

    /// The freshness of a list.
    pub fn list_state(&self, kind: ListKind) -> &ListState {
        match kind {
            ListKind::Pools => &self.pools.state,
            ListKind::Vms => &self.vms.state,
            ListKind::Srs => &self.srs.state,
            ListKind::Remotes => &self.remotes.state,
            ListKind::Jobs => &self.jobs.state,
            ListKind::Runs => &self.runs.state,
            ListKind::Points => &self.points.state,
            ListKind::Deployed => &self.deployed.state,
            ListKind::Options => &self.options.state,
            ListKind::Licenses => &self.licenses.state,
        }
    }

    /// Changes the freshness of a list.
    pub fn set_list_state(&mut self, kind: ListKind, state: ListState) {
        *match kind {
            ListKind::Pools => &mut self.pools.state,
            ListKind::Vms => &mut self.vms.state,
            ListKind::Srs => &mut self.srs.state,
            ListKind::Remotes => &mut self.remotes.state,
            ListKind::Jobs => &mut self.jobs.state,
            ListKind::Runs => &mut self.runs.state,
            ListKind::Points => &mut self.points.state,
            ListKind::Deployed => &mut self.deployed.state,
            ListKind::Options => &mut self.options.state,
            ListKind::Licenses => &mut self.licenses.state,
        } = state;
    }

    /// Version and length of a list.
    pub fn list_version(&self, kind: ListKind) -> u64 {
        match kind {
            ListKind::Pools => self.pools.version,
            ListKind::Vms => self.vms.version,
            ListKind::Srs => self.srs.version,
            ListKind::Remotes => self.remotes.version,
            ListKind::Jobs => self.jobs.version,
            ListKind::Runs => self.runs.version,
            ListKind::Points => self.points.version,
            ListKind::Deployed => self.deployed.version,
            ListKind::Options => self.options.version,
            ListKind::Licenses => self.licenses.version,
        }
    }

    /// Runs that have not ended, as the status tells.
    pub fn running(&self) -> &[Run] {
        self.status.as_ref().map_or(&[], |status| &status.running)
    }

    /// The time its data is of: now, or when news last came, milliseconds since the Unix epoch.
    pub fn as_of(&self, now: i64) -> i64 {
        if self.live() { now } else { self.seen.unwrap_or(now) }
    }

    /// Forgets the runs that ended before the latest `keep`, except these; answers which.
    pub fn prune(&mut self, keep: usize, except: &[String]) -> Vec<String> {
        let mut ended: Vec<(i64, String)> =
            self.live.iter().filter_map(|(id, live)| Some((live.ended_at?, id.clone()))).collect();
        ended.sort_by(|a, b| b.cmp(a));
        let old: Vec<String> = ended.into_iter().skip(keep).map(|(_, id)| id).filter(|id| !except.contains(id)).collect();
        for id in &old {
            // Versions only grow: what goes from the sum of the cursors is added here.
            self.version += self.live.remove(id).map_or(0, |live| live.cursor) + 1;
        }
        old
    }

    /// Takes the list of remotes; what tests said before counts only as long as nothing speaks against it.
    pub fn take_remotes(&mut self, items: Vec<Remote>, now: i64) {
        self.tests.retain(|id, tested| {
            let of = |list: &[Remote]| list.iter().position(|remote| remote.id == *id);
            match (of(&self.remotes.items), of(&items)) {
                (Some(before), Some(after)) => tested.holds(&self.remotes.items[before], &items[after]),
                (_, after) => after.is_some(),
            }
        });
        self.remotes.set(items, now);
    }

    /// Notes where the test of a remote stands.
    pub fn note_test(&mut self, remote: String, tested: Tested) {
        self.tests.insert(remote, tested);
        self.remotes.version += 1;
    }

    /// Name of a remote.
    pub fn remote_name<'a>(&'a self, id: &'a str) -> &'a str {
        self.remotes.items.iter().find(|remote| remote.id == id).map_or(id, |remote| &remote.name)
    }

    /// Name of a VM.
    pub fn vm_name<'a>(&'a self, uuid: &'a str) -> &'a str {
        self.vms.items.iter().find(|vm| vm.uuid == uuid).map_or(uuid, |vm| &vm.name)
    }

    /// Name of a pool.
    pub fn pool_name<'a>(&'a self, id: &'a str) -> &'a str {
        self.pools.items.iter().find(|pool| pool.id == id).map_or(id, |pool| &pool.name)
    }
}
