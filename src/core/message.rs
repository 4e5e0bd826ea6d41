//! What can happen to the console. One queue carries all of it.

use api::{ErrorReport, Event, ProxyNews};

use super::effect::{Answer, RequestId};
use super::errand::Bringing;
use super::key::Key;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a message is moved twice and dropped; a box would cost more")]
pub enum Message {
    /// A key.
    Key(Key),
    /// Text pasted as one piece; newlines in it never submit anything.
    Paste(String),
    /// The terminal has this many columns and rows.
    Resize(u16, u16),
    /// The time asked for by `State::next_wake` has come.
    Tick,
    /// From a proxy.
    Fleet(FleetEvent),
    /// Something worth telling, from the runtime: copied, cannot suspend, a faulty configuration.
    Notice(api::LogLevel, String),
}

/// Something that happened at one proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetEvent {
    /// Name in the console's configuration.
    pub proxy: String,
    /// What.
    pub kind: FleetEventKind,
}

/// What happened at a proxy.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetEventKind {
    /// The connection changed its state.
    Connection(Connection),
    /// A line of `proxy.watch`, which the fleet keeps open by itself.
    News(Box<ProxyNews>),
    /// The reply to [`super::FleetCommand::Call`].
    Reply {
        /// Id of the call.
        id: RequestId,
        /// How it went.
        result: Result<Answer, ErrorReport>,
    },
    /// A thing was checked, of the examination that has this id.
    Check {
        /// Id of the errand.
        id: RequestId,
        /// The thing and how it came out.
        check: Box<api::DoctorCheck>,
    },
    /// How far the bundle of an upgrade is, of the errand that has this id.
    Bundle {
        /// Id of the errand.
        id: RequestId,
        /// How far.
        bringing: Bringing,
    },
    /// An event of a run that is watched.
    Run {
        /// Run id.
        run: String,
        /// The event.
        event: Event,
    },
    /// A watch that is over for good: the run has ended, or the proxy refuses (not: the line was cut).
    RunWatchEnded {
        /// Run id.
        run: String,
        /// Why, when it was not the end of the run.
        error: Option<ErrorReport>,
    },
}

/// How the connection to a proxy stands. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Connection {
    /// First attempt under way, nothing known yet.
    #[default]
    Connecting,
    /// `proxy.watch` is open.
    Live,
    /// It does not answer; tried again by itself.
    Retrying {
        /// Why the last attempt failed.
        error: ErrorReport,
        /// When the next attempt comes.
        next: i64,
    },
    /// It answers, but refuses us: trying again by itself is useless.
    Refused {
        /// What does not fit.
        reason: Refusal,
        /// In words.
        error: ErrorReport,
    },
}

/// Why a proxy refuses, or is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The token is not accepted.
    Authentication,
    /// The certificate is not the pinned one.
    Certificate,
}

/// A proxy of the configuration, known before any request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyEntry {
    /// Name in the configuration.
    pub name: String,
    /// Address, without secrets.
    pub url: String,
}
