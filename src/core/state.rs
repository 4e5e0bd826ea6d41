//! Everything the console knows and shows, as plain data.

use std::collections::BTreeMap;

use api::{DeploySpec, ErrorReport, LogLevel};
use jiff::tz::TimeZone;

use super::action::{Action, Context};
use super::effect::{Effect, FleetCommand, Request, RequestId};
use super::errand::{Ask, Bringing, Errand};
use super::forms::Form;
use super::input::Field;
use super::key::Key;
use super::keymap::Keymap;
use super::message::ProxyEntry;
use super::notice::Notices;
use super::screens::{Screen, VmGroup};
use super::store::{ListKind, Proxy};
use super::table::Table;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What does not change while the console runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Refuse every request that writes.
    pub read_only: bool,
    /// Zone in which times are shown.
    pub zone: TimeZone,
    /// Its IANA name, default for new schedules.
    pub zone_name: String,
    /// Version of this console, to compare the proxies' with.
    pub version: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { read_only: false, zone: TimeZone::UTC, zone_name: "UTC".into(), version: VERSION.into() }
    }
}

/// How urgently the screen is out of date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Dirty {
    /// It is up to date.
    #[default]
    No,
    /// Only numbers of running transfers moved.
    Progress,
    /// Something a person did or must see.
    Yes,
}

/// Why a request was sent: what its reply is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Purpose {
    /// A list of the screen.
    List(ListKind),
    /// The explanation of a schedule in a form.
    Preview,
    /// The form that is open, and whether to start what it makes.
    Save {
        /// Start the job once it is saved.
        then_run: bool,
    },
    /// A run is started; the screen goes there.
    Start,
    /// The tasks of a run.
    RunDetail(String),
    /// A test of a remote.
    Test(String),
    /// What this deployment would do, for the form that is open.
    Review(Box<DeploySpec>),
    /// A deployed proxy is destroyed: the run is shown, and its entry in the configuration goes with it.
    Destroy(Expected),
    /// A deployed proxy is forgotten; with its name in the configuration.
    Forget(Option<String>),
    /// An errand whose end is told; with what to call it.
    Errand(String),
    /// An examination.
    Examination,
    /// Anything else: tell this when it went well, and ask for this list again.
    Tell(String, Option<ListKind>),
}

/// A run on a deployed proxy whose end changes what this console must know: how to reach the proxy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expected {
    /// The proxy that deploys.
    pub deployer: String,
    /// Name of the deployed one.
    pub name: String,
    /// The run.
    pub run: String,
    /// What it is called in the configuration, if it is there.
    pub known: Option<String>,
    /// Whether it is to be gone afterwards.
    pub gone: bool,
    /// The form it was asked for with, which comes back as a draft if the run fails.
    pub form: Option<Box<Form>>,
}

/// A request under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    /// Where it went.
    pub proxy: String,
    /// What for.
    pub purpose: Purpose,
    /// The errand it is, for a person; none for a single call, which goes on at the proxy whoever leaves.
    pub errand: Option<&'static str>,
    /// The screen on which it was asked for.
    pub from: Screen,
    /// Of an upgrade: how far its bundle is.
    pub bringing: Option<Bringing>,
}

/// A question before something happens.
#[derive(Debug, Clone, PartialEq)]
pub struct Confirm {
    /// The question.
    pub question: String,
    /// What a yes means.
    pub detail: Vec<String>,
    /// Word of the button that does it.
    pub verb: String,
    /// Text to be typed; none: yes or no.
    pub expected: Option<String>,
    /// What is typed.
    pub typed: Field,
    /// Whether the button that does it is selected; it never is at first.
    pub yes: bool,
    /// What a yes does.
    pub then: Then,
}

/// What a yes does.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Then {
    /// Send this.
    Send(String, Ask, Purpose),
    /// Leave the console.
    Quit,
    /// Empty the open form.
    StartOver,
}

/// A list of actions to pick from: help, or the palette.
#[derive(Debug, Clone, PartialEq)]
pub struct Chooser {
    /// Whether it shows all actions with their words, rather than those of this screen.
    pub palette: bool,
    /// What is typed.
    pub input: Field,
    /// Position among the matches.
    pub cursor: usize,
}

/// The state.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// See [`Settings`].
    pub settings: Settings,
    /// Time of the last message, milliseconds since the Unix epoch.
    pub now: i64,
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// The fleet, in the order of the configuration.
    pub proxies: Vec<Proxy>,
    /// The screen of the current tab.
    pub root: Screen,
    /// Screens opened from it, innermost last.
    pub stack: Vec<Screen>,
    /// Tables of the screens; they keep filter, sort and selection when left.
    pub tables: BTreeMap<Context, Table>,
    /// First line shown of a page of text.
    pub scroll: usize,
    /// Restore points by VM, rebuilt when restore points change.
    pub groups: Vec<VmGroup>,
    /// Version of the data `groups` was made of.
    pub groups_version: Option<u64>,
    /// The open form.
    pub form: Option<Form>,
    /// Forms closed before they were saved.
    pub drafts: Vec<Form>,
    /// The open list of actions.
    pub chooser: Option<Chooser>,
    /// The open question.
    pub confirm: Option<Confirm>,
    /// Messages.
    pub notices: Notices,
    /// Keys.
    pub keymap: Keymap,
    /// Requests under way.
    pub pending: BTreeMap<RequestId, Pending>,
    /// Whether the screen is out of date.
    pub dirty: Dirty,
    /// Runs followed: proxy and run, with where that stands.
    pub follows: BTreeMap<(String, String), Follow>,
    /// Runs on deployed proxies whose end is waited for.
    pub expected: Vec<Expected>,
    /// When this console started, for telling old errors from new.
    pub started_at: i64,
    next_request: u64,
    pub(super) outbox: Vec<Effect>,
}

/// Where following a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Follow {
    /// Its tasks are asked for.
    Asked,
    /// Its events come.
    Watching,
    /// All is known, or not wanted any more for now.
    Known,
    /// The proxy does not tell, and why.
    Failed(Box<ErrorReport>),
}

impl State {
    /// A console over these proxies, before anything is known.
    pub fn new(settings: Settings, keymap: Keymap, proxies: Vec<ProxyEntry>, now: i64, size: (u16, u16)) -> Self {
        Self {
            settings,
            now,
            started_at: now,
            size,
            proxies: proxies.into_iter().map(Proxy::new).collect(),
            keymap,
            dirty: Dirty::Yes,
            ..Self::default()
        }
    }

    /// A proxy by name.
    pub fn proxy(&self, name: &str) -> Option<&Proxy> {
        self.proxies.iter().find(|proxy| proxy.name() == name)
    }

    /// A proxy by name.
    pub fn proxy_mut(&mut self, name: &str) -> Option<&mut Proxy> {
        self.proxies.iter_mut().find(|proxy| proxy.name() == name)
    }

    /// How far a bundle is on its way to a proxy, if one is.
    pub fn bringing(&self, proxy: &str) -> Option<Bringing> {
        self.pending.values().filter(|pending| pending.proxy == proxy).find_map(|pending| pending.bringing)
    }

    /// The innermost screen.
    pub fn screen(&self) -> &Screen {
        self.stack.last().unwrap_or(&self.root)
    }

    /// The table of a screen.
    pub fn table(&self, context: Context) -> &Table {
        static EMPTY: std::sync::LazyLock<Table> = std::sync::LazyLock::new(Table::default);
        self.tables.get(&context).unwrap_or(&EMPTY)
    }

    /// The table of a screen.
    pub fn table_mut(&mut self, context: Context) -> &mut Table {
        self.tables.entry(context).or_default()
    }

    /// Contexts whose keys count now, the most particular first; none while text is typed or a question is open.
    pub fn contexts(&self) -> Vec<Context> {
        if let Some(form) = &self.form {
            return vec![if form.review.is_some() { Context::Review } else { Context::Form }];
        }
        let own = self.screen().context();
        vec![own, Context::List, Context::Global]
    }

    /// Whether a filter is being typed.
    pub fn typing_filter(&self) -> bool {
        !matches!(self.screen(), Screen::Detail(_)) && self.table(self.screen().context()).filtering
    }

    /// Whether the keys go to something that is open or being typed, rather than to the screen.
    pub fn occupied(&self) -> bool {
        self.confirm.is_some() || self.chooser.is_some() || self.form.is_some() || self.typing_filter()
    }

    /// The key that does an action now; none where no key does.
    pub fn key_of(&self, action: Action) -> Option<Key> {
        if self.confirm.is_some() || self.chooser.is_some() || (self.form.is_none() && self.typing_filter()) {
            return None;
        }
        self.keymap.key(&self.contexts(), action)
    }

    /// Asks for the screen to be drawn again.
    pub fn touch(&mut self) {
        self.dirty = Dirty::Yes;
    }

    /// Tells the person something.
    pub fn tell(&mut self, level: LogLevel, text: impl AsRef<str>) {
        self.notices.tell(self.now, level, text, Vec::new());
        self.touch();
    }

    /// Sends what needs no question.
    pub(super) fn post(&mut self, proxy: &str, ask: impl Into<Ask>, purpose: Purpose) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let ask = ask.into();
        let errand = match &ask {
            Ask::Errand(errand) => Some(errand.name()),
            // Its licence is looked for first.
            Ask::Call(Request::DeployStart(_)) => Some("deploy a proxy"),
            Ask::Call(_) => None,
        };
        let brings = matches!(ask, Ask::Errand(Errand::Upgrade { .. }));
        let bringing = brings.then_some(Bringing::Fetching { done: 0, of: None });
        let from = self.screen().clone();
        self.pending.insert(id, Pending { proxy: proxy.to_owned(), purpose, errand, from, bringing });
        let proxy = proxy.to_owned();
        self.outbox.push(Effect::Fleet(match ask {
            Ask::Call(request) => FleetCommand::Call { proxy, id, request },
            Ask::Errand(errand) => FleetCommand::Errand { proxy, id, errand },
        }));
        id
    }

    /// When the console wants to be woken without anything happening: a toast goes, a running clock moves on.
    pub fn next_wake(&self) -> Option<i64> {
        let toast = self.notices.toast(self.now).and(self.notices.expires());
        let clock = self.moving().then_some(self.now + 1_000);
        match (toast, clock) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Whether times on the screen run: a run is going on and its screen is shown.
    fn moving(&self) -> bool {
        match self.screen() {
            Screen::Transfers => self.proxies.iter().any(|proxy| !proxy.running().is_empty()),
            Screen::Doctor { proxy } => {
                self.proxy(proxy).and_then(|proxy| proxy.examination.as_ref()).is_some_and(|found| found.ended.is_none())
            }
            Screen::Run { proxy, run } => self
                .proxy(proxy)
                .and_then(|proxy| proxy.live.get(run))
                .is_some_and(|live| live.ended_at.is_none() && live.cursor > 0),
            _ => false,
        }
    }

    /// Actions of the table that match what is typed in the open chooser, best first. Where nothing is typed yet, the
    /// palette, which has those of all screens, begins with what can be done now.
    pub fn choices(&self) -> Vec<Action> {
        let Some(chooser) = &self.chooser else { return Vec::new() };
        let mut query = super::fuzzy::Query::new(chooser.input.text());
        let contexts = self.contexts();
        let typing = self.form.is_some();
        let browsing = chooser.palette && chooser.input.text().is_empty();
        let mut found: Vec<(u32, bool, usize, Action)> = super::action::ACTIONS
            .iter()
            .enumerate()
            .filter(|(_, info)| typing || !info.contexts.iter().all(|context| matches!(context, Context::Form | Context::Review)))
            .filter(|(_, info)| chooser.palette || info.contexts.iter().any(|context| contexts.contains(context)))
            .filter_map(|(at, info)| {
                let score = query.score(&format!("{} {} {}", info.id, info.title, info.doc))?;
                let later = browsing && super::act::availability(self, info.action).is_err();
                Some((score, later, at, info.action))
            })
            .collect();
        found.sort_by_key(|(score, later, at, _)| (std::cmp::Reverse(*score), *later, *at));
        found.into_iter().map(|(.., action)| action).collect()
    }
}
