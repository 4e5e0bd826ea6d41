//! Connections to the daemons: typed calls, streams that come back by themselves, errors in plain words.
//!
//! [`Client`] serves the one-shot commands. [`Fleet`] serves the console: one task per proxy keeps `proxy.watch` open and
//! sends what it hears to the console's one queue; it never touches the console's state.

mod backoff;
mod connection;
mod follow;

use std::collections::HashMap;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

pub use client::{CallError, Client, Lines, pinned_http};
pub use follow::Follower;

use crate::config::Proxy;
use crate::core::{Connection, FleetCommand, FleetEvent, FleetEventKind};

/// All proxies of a configuration, each with a task of its own. Dropping it ends them.
pub struct Fleet {
    commands: HashMap<String, UnboundedSender<FleetCommand>>,
    events: UnboundedSender<FleetEvent>,
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Begins to connect. What happens comes out of the receiver.
    pub fn start(proxies: &[Proxy]) -> (Self, UnboundedReceiver<FleetEvent>) {
        let (events, received) = unbounded_channel();
        let (mut commands, mut tasks) = (HashMap::new(), JoinSet::new());
        for proxy in proxies {
            let (sender, receiver) = unbounded_channel();
            match connection::Task::new(proxy, receiver, events.clone()) {
                Ok(task) => {
                    tasks.spawn(task.run());
                    commands.insert(proxy.name.clone(), sender);
                }
                Err(error) => {
                    let connection = Connection::Retrying { error: error.report(), next: i64::MAX };
                    let kind = FleetEventKind::Connection(connection);
                    let _ = events.send(FleetEvent { proxy: proxy.name.clone(), kind });
                }
            }
        }
        (Self { commands, events, _tasks: tasks }, received)
    }

    /// Begins to perform a command; answers come as events.
    pub fn send(&self, command: FleetCommand) {
        let (FleetCommand::Call { proxy, .. }
        | FleetCommand::WatchRun { proxy, .. }
        | FleetCommand::UnwatchRun { proxy, .. }
        | FleetCommand::Reconnect { proxy }) = &command;
        let proxy = proxy.clone();
        let unsent = match self.commands.get(&proxy) {
            Some(commands) => commands.send(command).err().map(|unsent| unsent.0),
            None => Some(command),
        };
        let error = || api::ErrorReport::new("NO_SUCH_PROXY", format!("there is no proxy {proxy:?} in the configuration"));
        let kind = match unsent {
            Some(FleetCommand::Call { id, .. }) => FleetEventKind::Reply { id, result: Err(error()) },
            Some(FleetCommand::WatchRun { run, .. }) => FleetEventKind::RunWatchEnded { run, error: Some(error()) },
            _ => return,
        };
        let _ = self.events.send(FleetEvent { proxy, kind });
    }
}

impl crate::tui::Performer for Fleet {
    fn perform(&mut self, command: FleetCommand) {
        self.send(command);
    }
}
