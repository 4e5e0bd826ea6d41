//! One proxy, kept in touch with: `proxy.watch` stays open, and comes back by itself.

use std::collections::HashMap;
use std::time::Duration;

use api::{NoParams, ProxyWatch};
use client::{CallError, Client};
use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::{AbortHandle, JoinSet};

use super::backoff::Backoff;
use super::follow::Follower;
use crate::core::{Connection, FleetCommand, FleetEvent, FleetEventKind, Refusal};

/// What a connection is told.
pub(super) enum Order {
    /// A command of the console.
    Do(FleetCommand),
    /// From now on by another address, token or certificate.
    Use(Client),
}

/// Why a connection was left.
enum Left {
    /// The line.
    Broken(CallError),
    /// There is another way to it.
    Anew,
    /// Nobody is left to tell.
    Gone,
}

pub(super) struct Task {
    name: String,
    client: Client,
    orders: UnboundedReceiver<Order>,
    events: UnboundedSender<FleetEvent>,
    /// Calls and watches under way; they end with this task.
    work: JoinSet<()>,
    watches: HashMap<String, AbortHandle>,
}

/// Why waiting ended.
enum Woken {
    /// Somebody wants it now, or the time has come.
    Try,
    /// Nobody is left to tell.
    Gone,
}

impl Task {
    pub fn new(name: &str, client: Client, orders: UnboundedReceiver<Order>, events: UnboundedSender<FleetEvent>) -> Self {
        Self { name: name.to_owned(), client, orders, events, work: JoinSet::new(), watches: HashMap::new() }
    }

    /// Until nobody listens any more.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new();
        self.tell(FleetEventKind::Connection(Connection::Connecting));
        loop {
            let error = match self.stay_connected(&mut backoff).await {
                Left::Broken(error) => error,
                Left::Anew => {
                    backoff.reset();
                    self.tell(FleetEventKind::Connection(Connection::Connecting));
                    continue;
                }
                Left::Gone => return,
            };
            let error = self.client.explain(error).await;
            let report = error.report();
            let wait = match refusal(&error) {
                Some(reason) => {
                    self.tell(FleetEventKind::Connection(Connection::Refused { reason, error: report }));
                    None
                }
                None => {
                    let wait = backoff.next();
                    let next = Timestamp::now().as_millisecond() + wait.as_millis() as i64;
                    self.tell(FleetEventKind::Connection(Connection::Retrying { error: report, next }));
                    Some(wait)
                }
            };
            match self.wait(wait, &mut backoff).await {
                Woken::Try => {}
                Woken::Gone => return,
            }
        }
    }

    /// Keeps `proxy.watch` open; answers why it ended.
    async fn stay_connected(&mut self, backoff: &mut Backoff) -> Left {
        let client = self.client.clone();
        let opening = async move { client.stream::<ProxyWatch>(&NoParams {}).await };
        let mut opening = std::pin::pin!(opening);
        let mut lines = loop {
            tokio::select! {
                opened = &mut opening => match opened {
                    Ok(lines) => break lines,
                    Err(error) => return Left::Broken(error),
                },
                order = self.orders.recv() => if let Some(left) = self.obey(order) {
                    return left;
                },
            }
        };
        let mut live = false;
        loop {
            tokio::select! {
                line = lines.next() => match line {
                    Ok(Some(news)) => {
                        if !std::mem::replace(&mut live, true) {
                            backoff.reset();
                            self.tell(FleetEventKind::Connection(Connection::Live));
                        }
                        self.tell(FleetEventKind::News(Box::new(news)));
                    }
                    Ok(None) => {
                        let host = self.client.host().to_owned();
                        return Left::Broken(CallError::Cut { host, reason: "the proxy closed it".into() });
                    }
                    Err(error) => return Left::Broken(error),
                },
                order = self.orders.recv() => if let Some(left) = self.obey(order) {
                    return left;
                },
                Some(_) = self.work.join_next() => {}
            }
        }
    }

    /// Waits for the time (none: for ever) or for somebody who wants it now; calls go out meanwhile.
    async fn wait(&mut self, wait: Option<Duration>, backoff: &mut Backoff) -> Woken {
        let time = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let mut time = std::pin::pin!(time);
        loop {
            tokio::select! {
                () = &mut time => return Woken::Try,
                order = self.orders.recv() => match order {
                    None => return Woken::Gone,
                    Some(Order::Do(command)) if !matches!(command, FleetCommand::Reconnect { .. }) => self.perform(command),
                    Some(order) => {
                        if let Order::Use(client) = order {
                            self.use_from_now_on(client);
                        }
                        backoff.reset();
                        self.tell(FleetEventKind::Connection(Connection::Connecting));
                        return Woken::Try;
                    }
                },
                Some(_) = self.work.join_next() => {}
            }
        }
    }

    /// Does what is ordered; answers why the connection is to be left for it.
    fn obey(&mut self, order: Option<Order>) -> Option<Left> {
        match order {
            None => Some(Left::Gone),
            Some(Order::Use(client)) => {
                self.use_from_now_on(client);
                Some(Left::Anew)
            }
            Some(Order::Do(command)) => {
                self.perform(command);
                None
            }
        }
    }

    /// Runs are not followed on the former way any more, which could end at any time: whoever is told of the new connection asks
    /// for them anew.
    fn use_from_now_on(&mut self, client: Client) {
        self.client = client;
        for (_, watch) in self.watches.drain() {
            watch.abort();
        }
    }

    fn perform(&mut self, command: FleetCommand) {
        match command {
            FleetCommand::Call { id, request, .. } => {
                let (client, events, proxy) = (self.client.clone(), self.events.clone(), self.name.clone());
                self.work.spawn(async move {
                    let result = match client.call_value(request.method(), request.params()).await {
                        Ok(result) => request.decode(result),
                        Err(error) => Err(client.explain(error).await.report()),
                    };
                    let _ = events.send(FleetEvent { proxy, kind: FleetEventKind::Reply { id, result } });
                });
            }
            FleetCommand::WatchRun { run, cursor, .. } => {
                let follower = Follower::new(self.client.clone(), run.clone(), cursor, None);
                let watch = follow(follower, run.clone(), self.name.clone(), self.events.clone());
                let handle = self.work.spawn(watch);
                if let Some(former) = self.watches.insert(run, handle) {
                    former.abort();
                }
                self.watches.retain(|_, watch| !watch.is_finished());
            }
            FleetCommand::UnwatchRun { run, .. } => {
                if let Some(watch) = self.watches.remove(&run) {
                    watch.abort();
                }
            }
            // Live, or being tried at this moment: nothing to hasten.
            FleetCommand::Reconnect { .. } => {}
            // The fleet's own matter.
            FleetCommand::Errand { .. } => {}
        }
    }

    fn tell(&self, kind: FleetEventKind) {
        // The console is gone: its queue of commands closes too, and that ends this task.
        let _ = self.events.send(FleetEvent { proxy: self.name.clone(), kind });
    }
}

async fn follow(mut follower: Follower, run: String, proxy: String, events: UnboundedSender<FleetEvent>) {
    let tell = |kind| events.send(FleetEvent { proxy: proxy.clone(), kind }).is_ok();
    loop {
        let over = match follower.next().await {
            Ok(Some(event)) => {
                if !tell(FleetEventKind::Run { run: run.clone(), event }) {
                    return;
                }
                continue;
            }
            Ok(None) => None,
            Err(error) => Some(error.report()),
        };
        tell(FleetEventKind::RunWatchEnded { run, error: over });
        return;
    }
}

/// Why trying again by itself is useless; nothing when it may help.
fn refusal(error: &CallError) -> Option<Refusal> {
    match error {
        CallError::Certificate { .. } => Some(Refusal::Certificate),
        CallError::Authentication { .. } => Some(Refusal::Authentication),
        _ => None,
    }
}
