//! Connections to the daemons: typed calls, streams that come back by themselves, errors in plain words.
//!
//! [`Client`] serves the one-shot commands. [`Fleet`] serves the console: one task per proxy keeps `proxy.watch` open and
//! sends what it hears to the console's one queue; it never touches the console's state. What takes several calls, or
//! changes the configuration, is an errand: a task of its own, so that the console never holds a token.

mod backoff;
pub(crate) mod bundle;
mod connection;
mod errand;
pub(crate) mod files;
mod follow;
pub(crate) mod keep;
pub(crate) mod licenses;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

pub use client::{CallError, Client, Lines, pinned_http};
pub use follow::Follower;

use crate::config::{ConfigError, Proxy};
use crate::core::{Connection, FleetCommand, FleetEvent, FleetEventKind, Request};
use connection::Order;

/// All proxies of a configuration, each with a task of its own. Dropping it ends them.
pub struct Fleet {
    shared: Arc<Shared>,
}

/// What the errands share with the fleet.
struct Shared {
    members: Mutex<Members>,
    events: UnboundedSender<FleetEvent>,
    /// The folder of the configuration; none: nothing is kept.
    dir: Option<PathBuf>,
    /// Held while a token or certificate changes, from the question to the connection that uses the answer.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Members {
    proxies: BTreeMap<String, Member>,
    tasks: JoinSet<()>,
}

struct Member {
    proxy: Proxy,
    /// None: it cannot be connected to at all.
    orders: Option<UnboundedSender<Order>>,
}

impl Fleet {
    /// Begins to connect. What happens comes out of the receiver. What errands learn is kept in the configuration in
    /// `dir`; without one they are refused.
    pub fn start(proxies: &[Proxy], dir: Option<&Path>) -> (Self, UnboundedReceiver<FleetEvent>) {
        let (events, received) = unbounded_channel();
        let shared = Arc::new(Shared {
            members: Mutex::default(),
            events,
            dir: dir.map(Path::to_owned),
            changing: tokio::sync::Mutex::default(),
        });
        for proxy in proxies {
            shared.connect(proxy.clone());
        }
        (Self { shared }, received)
    }

    /// Begins to perform a command; answers come as events.
    pub fn send(&self, command: FleetCommand) {
        let (FleetCommand::Call { proxy, .. }
        | FleetCommand::WatchRun { proxy, .. }
        | FleetCommand::UnwatchRun { proxy, .. }
        | FleetCommand::Errand { proxy, .. }
        | FleetCommand::Reconnect { proxy }) = &command;
        let proxy = proxy.clone();
        let mut members = self.shared.members();
        // Ended tasks are let go of.
        while members.tasks.try_join_next().is_some() {}
        let command = match command {
            FleetCommand::Errand { id, errand, .. } => {
                members.tasks.spawn(errand::perform(Arc::clone(&self.shared), proxy, id, errand));
                return;
            }
            // The only call that all of the fleet has a say in.
            FleetCommand::Call { id, request: Request::DeployStart(spec), .. } => {
                members.tasks.spawn(errand::deploy(Arc::clone(&self.shared), proxy, id, spec));
                return;
            }
            command => command,
        };
        let unsent = match members.proxies.get(&proxy).and_then(|member| member.orders.as_ref()) {
            Some(orders) => orders.send(Order::Do(command)).err().map(|unsent| unsent.0),
            None => Some(Order::Do(command)),
        };
        let error = || ConfigError::NoSuchProxy { name: proxy.clone() }.report();
        let kind = match unsent {
            Some(Order::Do(FleetCommand::Call { id, .. })) => FleetEventKind::Reply { id, result: Err(error()) },
            Some(Order::Do(FleetCommand::WatchRun { run, .. })) => FleetEventKind::RunWatchEnded { run, error: Some(error()) },
            _ => return,
        };
        self.shared.tell(&proxy, kind);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Errands hold what the tasks are kept in, so it does not go by itself.
        self.shared.members().tasks.abort_all();
    }
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        // Nothing in there can be half done: a panic elsewhere is no reason to stop.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, proxy: &str, kind: FleetEventKind) {
        // The console is gone: nobody is left to tell.
        let _ = self.events.send(FleetEvent { proxy: proxy.to_owned(), kind });
    }

    /// Connects to a proxy, or goes on with another address, token or certificate.
    fn connect(&self, proxy: Proxy) {
        let name = proxy.name.clone();
        let mut members = self.members();
        let made = proxy.client();
        let present = members.proxies.get(&name).and_then(|member| member.orders.clone());
        let orders = match (made, present) {
            (Ok(client), Some(orders)) => orders.send(Order::Use(client)).is_ok().then_some(orders),
            (Ok(client), None) => {
                let (orders, received) = unbounded_channel();
                members.tasks.spawn(connection::Task::new(&name, client, received, self.events.clone()).run());
                Some(orders)
            }
            (Err(error), present) => {
                let connection = Connection::Retrying { error: error.report(), next: i64::MAX };
                self.tell(&name, FleetEventKind::Connection(connection));
                present
            }
        };
        members.proxies.insert(name, Member { proxy, orders });
    }

    /// Leaves a proxy alone.
    fn leave(&self, name: &str) {
        // Its task ends with its queue of orders.
        self.members().proxies.remove(name);
    }

    /// A proxy as it is reached now.
    fn proxy(&self, name: &str) -> Option<Proxy> {
        self.members().proxies.get(name).map(|member| member.proxy.clone())
    }

    /// All proxies as they are reached now.
    fn proxies(&self) -> Vec<Proxy> {
        self.members().proxies.values().map(|member| member.proxy.clone()).collect()
    }

    fn dir(&self) -> Result<&Path, api::ErrorReport> {
        let error = || api::ErrorReport::new("NO_CONFIGURATION", "this console has no configuration to keep that in");
        self.dir.as_deref().ok_or_else(error)
    }
}

impl crate::tui::Performer for Fleet {
    fn perform(&mut self, command: FleetCommand) {
        self.send(command);
    }
}
