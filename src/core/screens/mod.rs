//! What each screen shows: rows, details, what it needs to know. How it is drawn is the terminal side's matter.

pub mod backups;
pub mod doctor;
pub mod jobs;
pub mod licenses;
pub mod messages;
pub mod proxies;
pub mod remotes;
pub mod run;
pub mod runs;
pub mod transfers;

pub use backups::VmGroup;

use api::{ErrorReport, Outcome};

use super::action::Context;
use super::message::Connection;
use super::rich::{Glyph, Line, Role, pair};
use super::state::State;
use super::store::{ListKind, ListState, Proxy};
use super::table::Rows;

/// A screen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Screen {
    /// All daemons.
    #[default]
    Proxies,
    /// Backup repositories.
    Remotes,
    /// Jobs.
    Jobs,
    /// What moves now.
    Transfers,
    /// VMs with restore points.
    Backups,
    /// History.
    Runs,
    /// What the console told.
    Messages,
    /// The licences that the proxies hold.
    Licenses,
    /// An examination of one proxy.
    Doctor {
        /// Which.
        proxy: String,
    },
    /// Restore points of one VM.
    Points {
        /// Proxy.
        proxy: String,
        /// uuid.
        vm: String,
        /// Its name.
        name: String,
    },
    /// One run.
    Run {
        /// Proxy.
        proxy: String,
        /// Its id.
        run: String,
    },
    /// The details of what is selected on the screen below, on the whole screen.
    Detail(Box<Screen>),
}

/// The tabs, in order; their keys are 1 to 6.
pub const TABS: [(Screen, &str); 6] = [
    (Screen::Proxies, "Proxies"),
    (Screen::Remotes, "Remotes"),
    (Screen::Jobs, "Jobs"),
    (Screen::Transfers, "Transfers"),
    (Screen::Backups, "Backups"),
    (Screen::Runs, "Runs"),
];

/// The screens that lie over a tab, with their keys.
pub const OVER: [(&str, &str); 2] = [("7", "Messages"), ("8", "Licences")];

impl Screen {
    /// The context of its keys.
    pub fn context(&self) -> Context {
        match self {
            Self::Proxies => Context::Proxies,
            Self::Remotes => Context::Remotes,
            Self::Jobs => Context::Jobs,
            Self::Transfers => Context::Transfers,
            Self::Backups => Context::Backups,
            Self::Runs => Context::Runs,
            Self::Messages => Context::Messages,
            Self::Licenses => Context::Licenses,
            Self::Doctor { .. } => Context::Doctor,
            Self::Points { .. } => Context::Points,
            Self::Run { .. } => Context::Run,
            Self::Detail(below) => below.context(),
        }
    }

    /// Its breadcrumb.
    pub fn crumb(&self, state: &State) -> String {
        match self {
            Self::Messages => "Messages".into(),
            Self::Licenses => "Licences".into(),
            Self::Doctor { proxy } => format!("Doctor of {proxy}"),
            Self::Points { name, .. } => name.clone(),
            Self::Run { proxy, run } => {
                let live = state.proxy(proxy).and_then(|proxy| proxy.live.get(run));
                live.filter(|live| !live.label.is_empty()).map_or_else(|| run.clone(), |live| runs::name(live.kind, &live.label))
            }
            // Of other lists the details begin with the name.
            Self::Detail(below) if **below == Self::Proxies => {
                let table = state.table(Context::Proxies);
                let found = table.current().and_then(|row| proxies::at(state, row));
                found.map_or_else(|| "Details".into(), |found| format!("Details of {}", found.name()))
            }
            Self::Detail(_) => "Details".into(),
            tab => TABS.iter().find(|(screen, _)| screen == tab).map_or_else(String::new, |(_, name)| (*name).to_owned()),
        }
    }

    /// Lists it is made of.
    pub fn needs(&self) -> &'static [ListKind] {
        match self {
            Self::Proxies => &[ListKind::Pools, ListKind::Deployed],
            Self::Remotes => &[ListKind::Remotes],
            Self::Jobs => &[ListKind::Jobs, ListKind::Vms, ListKind::Remotes],
            Self::Transfers | Self::Run { .. } | Self::Messages | Self::Doctor { .. } => &[],
            Self::Licenses => &[ListKind::Licenses],
            Self::Backups | Self::Points { .. } => &[ListKind::Points, ListKind::Remotes],
            Self::Runs => &[ListKind::Runs],
            Self::Detail(below) => below.needs(),
        }
    }

    /// The list whose freshness is the screen's.
    pub fn main_list(&self) -> Option<ListKind> {
        match self {
            Self::Remotes => Some(ListKind::Remotes),
            Self::Jobs => Some(ListKind::Jobs),
            Self::Backups | Self::Points { .. } => Some(ListKind::Points),
            Self::Runs => Some(ListKind::Runs),
            Self::Licenses => Some(ListKind::Licenses),
            Self::Detail(below) => below.main_list(),
            _ => None,
        }
    }
}

/// The rows of a screen; none for a page of text.
pub fn rows<'a>(state: &'a State, screen: &'a Screen) -> Option<Box<dyn Rows + 'a>> {
    Some(match screen {
        Screen::Proxies => Box::new(proxies::ProxyRows::new(state)),
        Screen::Remotes => Box::new(remotes::RemoteRows(state)),
        Screen::Jobs => Box::new(jobs::JobRows(state)),
        Screen::Transfers => Box::new(transfers::TransferRows::new(state)),
        Screen::Backups => Box::new(backups::GroupRows(state)),
        Screen::Points { proxy, vm, .. } => Box::new(backups::PointRows::new(state, proxy, vm)),
        Screen::Runs => Box::new(runs::RunRows(state)),
        Screen::Run { proxy, run } => Box::new(run::TaskRows::new(state, proxy, run)),
        Screen::Messages => Box::new(messages::MessageRows(state)),
        Screen::Licenses => Box::new(licenses::LicenseRows::new(state)),
        Screen::Doctor { proxy } => Box::new(doctor::CheckRows::new(state, proxy)),
        Screen::Detail(_) => return None,
    })
}

/// Version of the data a screen's rows come from.
pub fn version(state: &State, screen: &Screen) -> u64 {
    let sum = |of: &dyn Fn(&Proxy) -> u64| state.proxies.iter().map(of).sum::<u64>();
    match screen {
        Screen::Proxies => sum(&|proxy| proxy.version + proxy.pools.version + proxy.deployed.version),
        Screen::Remotes => sum(&|proxy| proxy.remotes.version),
        Screen::Jobs => sum(&|proxy| proxy.jobs.version + proxy.vms.version + proxy.remotes.version),
        Screen::Backups | Screen::Points { .. } => sum(&|proxy| proxy.points.version),
        Screen::Runs => sum(&|proxy| proxy.runs.version),
        Screen::Transfers => sum(&|proxy| proxy.version + proxy.live.values().map(|live| live.cursor).sum::<u64>()),
        Screen::Run { proxy, run } => state.proxy(proxy).and_then(|proxy| proxy.live.get(run)).map_or(0, |live| live.cursor + 1),
        Screen::Messages => state.notices.count,
        // Of several holders one that answers comes first.
        Screen::Licenses => sum(&|proxy| proxy.version + proxy.licenses.version),
        Screen::Doctor { proxy } => state.proxy(proxy).map_or(0, |proxy| proxy.version),
        Screen::Detail(below) => version(state, below),
    }
}

/// The details of what is selected on a screen.
pub fn details(state: &State, screen: &Screen) -> Vec<Line> {
    let row = state.table(screen.context()).current();
    match screen {
        Screen::Detail(below) if state.table(below.context()).lost() => return gone(below),
        Screen::Detail(below) => return details(state, below),
        // As a whole they have something to say before their first row, and without any.
        Screen::Run { proxy, run } => return run::details(state, proxy, run, row),
        Screen::Doctor { proxy } => return doctor::details(state, proxy, row),
        _ => {}
    }
    let Some(row) = row else { return Vec::new() };
    match screen {
        Screen::Proxies => proxies::details(state, row),
        Screen::Remotes => remotes::details(state, row),
        Screen::Jobs => jobs::details(state, row),
        Screen::Transfers => transfers::details(state, row),
        Screen::Backups => backups::group_details(state, row),
        Screen::Points { proxy, vm, .. } => backups::point_details(state, proxy, vm, row),
        Screen::Runs => runs::details(state, row),
        Screen::Messages => messages::details(state, row),
        Screen::Licenses => licenses::details(state, row),
        Screen::Run { .. } | Screen::Doctor { .. } | Screen::Detail(_) => Vec::new(),
    }
}

/// What to say where the object of a page of details is gone.
fn gone(screen: &Screen) -> Vec<Line> {
    let what = match screen {
        Screen::Proxies => "proxy",
        Screen::Remotes => "remote",
        Screen::Jobs => "job",
        Screen::Transfers | Screen::Runs => "run",
        Screen::Backups => "VM",
        Screen::Points { .. } => "restore point",
        Screen::Run { .. } => "task",
        Screen::Messages => "message",
        Screen::Licenses => "licence",
        Screen::Doctor { .. } => "check",
        Screen::Detail(below) => return gone(below),
    };
    vec![
        Line::state(Glyph::Warn, Role::Warn, format!("The {what} that was shown here is gone.")),
        Line::of(Role::Hint, "Esc goes back to the list."),
    ]
}

/// The proxy that what a page of details shows was heard from.
fn source<'a>(state: &'a State, screen: &Screen) -> Option<&'a Proxy> {
    let row = state.table(screen.context()).current();
    match screen {
        Screen::Points { proxy, .. } | Screen::Run { proxy, .. } | Screen::Doctor { proxy } => state.proxy(proxy),
        Screen::Remotes => remotes::at(state, row?).map(|found| found.0),
        Screen::Jobs => jobs::at(state, row?).map(|found| found.0),
        Screen::Licenses => licenses::at(state, row?).map(|found| found.0),
        Screen::Proxies => match proxies::at(state, row?)? {
            proxies::Found::Stranger(deployer, _) => Some(deployer),
            // Its page says it itself.
            proxies::Found::Known(_) => None,
        },
        _ => None,
    }
}

/// That what is shown was heard from a proxy that is away now, and when; none while it is live.
fn aged(state: &State, proxy: &Proxy) -> Option<Line> {
    let absent = absence(state, proxy)?;
    let words = match proxy.seen {
        Some(seen) => {
            let seen = super::format::clock(seen, state.now, &state.settings.zone);
            format!("{absent}; what is shown is as of {seen}")
        }
        None => absent,
    };
    Some(Line::state(Glyph::Warn, Role::Warn, words))
}

/// A line above the table that says the most important thing in words.
pub fn summary(state: &State, screen: &Screen) -> Option<Line> {
    match screen {
        Screen::Transfers => Some(transfers::summary(state)),
        Screen::Run { proxy, run } => run::summary(state, proxy, run),
        Screen::Doctor { proxy } => doctor::summary(state, proxy),
        Screen::Detail(below) => source(state, below).and_then(|proxy| aged(state, proxy)),
        Screen::Licenses => match (licenses::summary(state), freshness(state, screen)) {
            (Some(mut line), Some(old)) => {
                line = line.and(Role::Muted, "; ");
                line.0.extend(old.0);
                Some(line)
            }
            (line, old) => line.or(old),
        },
        _ => freshness(state, screen),
    }
}

/// Which proxies' part of a list is missing or old.
fn freshness(state: &State, screen: &Screen) -> Option<Line> {
    let kind = screen.main_list()?;
    let mut line = Line::new();
    for proxy in &state.proxies {
        let list = proxy.list_state(kind);
        let text = match (&proxy.connection, list) {
            (Connection::Live, ListState::Failed(error)) => format!("{}: {}", proxy.name(), error.message),
            (Connection::Live | Connection::Connecting, _) => continue,
            (Connection::Refused { .. }, _) => format!("{}: refused, its part is missing", proxy.name()),
            (Connection::Retrying { .. }, _) => match proxy.seen {
                Some(seen) => {
                    format!(
                        "{}: away, its part is as of {}",
                        proxy.name(),
                        super::format::clock(seen, state.now, &state.settings.zone)
                    )
                }
                None => format!("{}: away, its part is missing", proxy.name()),
            },
        };
        if !line.0.is_empty() {
            line = line.and(Role::Muted, "; ");
        } else {
            line = line.with(super::rich::Span::Glyph(Glyph::Warn, Role::Warn)).and(Role::Warn, " ");
        }
        line = line.and(Role::Warn, text);
    }
    (!line.0.is_empty()).then_some(line)
}

/// Why nothing is known of a proxy now; none while it is live.
pub fn absence(state: &State, proxy: &Proxy) -> Option<String> {
    let name = proxy.name();
    match (&proxy.connection, proxy.seen) {
        (Connection::Live, _) => None,
        (Connection::Connecting, _) => Some(format!("{name} connecting")),
        (Connection::Retrying { .. }, Some(seen)) => {
            Some(format!("{name} away since {}", super::format::moment(seen, state.now, &state.settings.zone)))
        }
        (Connection::Retrying { .. }, None) => Some(format!("{name} away")),
        (Connection::Refused { .. }, _) => Some(format!("{name} refuses this console")),
    }
}

/// What to say where a table has no rows.
pub fn empty(state: &State, screen: &Screen) -> Vec<Line> {
    if state.proxies.is_empty() {
        return vec![
            Line::text("No proxy is configured."),
            Line::of(Role::Hint, "Add one: backhaul proxy add NAME URL --token-file FILE"),
            Line::of(Role::Hint, "None yet: backhaul proxy deploy --ssh USER@HOST makes one"),
            Line::of(Role::Hint, "Or try the lab: backhaul lab"),
        ];
    }
    let table = state.table(screen.context());
    if table.total > 0 {
        return vec![Line::text("Nothing matches the filter."), Line::of(Role::Hint, "Esc clears it.")];
    }
    match screen {
        Screen::Run { proxy, run } => return run::empty(state, proxy, run),
        Screen::Doctor { proxy } => return doctor::empty(state, proxy),
        _ => {}
    }
    let connecting = state.proxies.iter().any(|proxy| proxy.connection == Connection::Connecting);
    let loading = screen.main_list().is_some_and(|kind| {
        state.proxies.iter().any(|proxy| proxy.live() && matches!(proxy.list_state(kind), ListState::Loading | ListState::Stale))
    });
    if connecting || loading {
        return vec![Line::of(Role::Muted, if loading { "Loading" } else { "Connecting" })];
    }
    if !state.proxies.iter().any(Proxy::live) {
        return vec![Line::text("No proxy answers."), Line::of(Role::Hint, "1 shows why.")];
    }
    match screen {
        Screen::Remotes => vec![Line::text("No remote yet."), Line::of(Role::Hint, "n adds one.")],
        Screen::Jobs => vec![Line::text("No job yet."), Line::of(Role::Hint, "n creates one.")],
        Screen::Transfers => {
            let all = state.proxies.iter().all(Proxy::live);
            let told = if all { "Nothing is moving." } else { "Nothing is moving at the proxies that answer." };
            vec![Line::text(told), Line::of(Role::Hint, "3 shows the jobs; r there starts one.")]
        }
        Screen::Backups | Screen::Points { .. } => {
            vec![Line::text("No restore point yet."), Line::of(Role::Hint, "3 shows the jobs; r there starts one.")]
        }
        Screen::Runs => vec![Line::text("Nothing has run yet.")],
        Screen::Messages => vec![Line::text("Nothing was told yet.")],
        Screen::Licenses => licenses::empty(state),
        Screen::Proxies | Screen::Run { .. } | Screen::Doctor { .. } | Screen::Detail(_) => Vec::new(),
    }
}

/// The item of a list that goes over all proxies at a row, with its proxy.
fn locate<'a, T>(state: &'a State, row: usize, list: impl Fn(&'a Proxy) -> &'a [T]) -> Option<(&'a Proxy, &'a T)> {
    let mut row = row;
    for proxy in &state.proxies {
        let items = list(proxy);
        match items.get(row) {
            Some(item) => return Some((proxy, item)),
            None => row -= items.len(),
        }
    }
    None
}

/// An id that is unique over the fleet.
pub fn fleet_id(proxy: &str, id: &str) -> String {
    format!("{proxy}\u{1f}{id}")
}

/// A connection as symbol and word.
pub fn connection(proxy: &Proxy) -> Line {
    match &proxy.connection {
        Connection::Connecting => Line::state(Glyph::Waiting, Role::Muted, "connecting"),
        Connection::Live if proxy.running().is_empty() => Line::state(Glyph::Ok, Role::Ok, "idle"),
        Connection::Live => Line::state(Glyph::Running, Role::Running, "running"),
        Connection::Retrying { .. } => Line::state(Glyph::Warn, Role::Warn, "away"),
        Connection::Refused { .. } => Line::state(Glyph::Error, Role::Error, "refused"),
    }
}

/// An outcome as symbol and word; none: still running.
pub fn outcome(outcome: Option<Outcome>) -> Line {
    match outcome {
        None => Line::state(Glyph::Running, Role::Running, "running"),
        Some(Outcome::Success) => Line::state(Glyph::Ok, Role::Ok, "done"),
        Some(Outcome::Failure) => Line::state(Glyph::Error, Role::Error, "failed"),
        Some(Outcome::Cancelled) => Line::state(Glyph::Off, Role::Warn, "cancelled"),
        Some(Outcome::Skipped) => Line::state(Glyph::Off, Role::Muted, "skipped"),
        Some(Outcome::Interrupted) => Line::state(Glyph::Warn, Role::Warn, "interrupted"),
    }
}

/// An error in full: sentence, what to do next, causes.
pub fn error_lines(error: &ErrorReport) -> Vec<Line> {
    let mut lines = vec![Line::state(Glyph::Error, Role::Error, &error.message)];
    if let Some(next) = &error.next {
        lines.push(Line::of(Role::Hint, format!("What to do: {next}")));
    }
    lines.extend(causes(error).map(|cause| Line::of(Role::Muted, format!("because {cause}"))));
    lines.push(pair("Code", &error.code));
    lines
}

/// The causes of an error that say more than its sentence, and than the causes before: both often repeat them.
pub fn causes(error: &ErrorReport) -> impl Iterator<Item = &str> {
    let mut said = error.message.clone();
    error.causes.iter().map(String::as_str).filter(move |cause| {
        let new = !said.contains(cause);
        if new {
            said = format!("{said}\n{cause}");
        }
        new
    })
}
