//! Which deployed proxy is which proxy of this console.

use api::{Deployed, DeployedState, RunKind};

use super::message::Connection;
use super::state::State;
use super::store::Proxy;

/// Whether a proxy of the fleet is this deployed one. Its own id counts; before that is known, its address, then its name.
fn same(proxy: &Proxy, deployed: &Deployed) -> bool {
    let id = proxy.status.as_ref().map(|status| status.id.as_str()).filter(|id| !id.is_empty());
    match (id, &deployed.url) {
        (Some(id), _) => id == deployed.id,
        (None, Some(url)) => proxy.entry.url.trim_end_matches('/') == url.trim_end_matches('/'),
        (None, None) => proxy.name() == deployed.name,
    }
}

/// The proxy of the fleet that a deployed one is.
pub fn known<'a>(state: &'a State, deployed: &Deployed) -> Option<&'a Proxy> {
    state.proxies.iter().find(|proxy| same(proxy, deployed))
}

/// Whether a proxy that does not answer is somewhere else by now, as its deployer says.
pub fn moved(proxy: &Proxy, deployed: &Deployed) -> bool {
    let elsewhere = |url: &String| proxy.entry.url.trim_end_matches('/') != url.trim_end_matches('/');
    matches!(proxy.connection, Connection::Retrying { .. })
        && deployed.state == DeployedState::Ready
        && deployed.url.as_ref().is_some_and(elsewhere)
}

/// Who deployed a proxy of the fleet, and what is noted of it there.
pub fn of<'a>(state: &'a State, proxy: &Proxy) -> Option<(&'a Proxy, &'a Deployed)> {
    all(state).find(|(_, deployed)| same(proxy, deployed))
}

/// Deployed proxies that this console does not know how to reach.
pub fn strangers(state: &State) -> Vec<(&Proxy, &Deployed)> {
    all(state).filter(|(_, deployed)| known(state, deployed).is_none()).collect()
}

/// What is being done to a proxy that takes it away for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// Name of the proxy that does it.
    pub by: &'a str,
    /// Whether it does not come back.
    pub gone: bool,
}

impl Change<'_> {
    /// What is said of a proxy of this name.
    pub fn words(&self, name: &str) -> String {
        if self.gone {
            format!("{name} is being destroyed by {}", self.by)
        } else {
            format!("{name} restarts: {} changes it", self.by)
        }
    }
}

/// The change that a proxy is in the middle of, as its deployer says while it answers, or as this console has asked for:
/// then it is no alarm that it does not answer.
pub fn change<'a>(state: &'a State, proxy: &'a Proxy) -> Option<Change<'a>> {
    let asked = state.expected.iter().find(|expected| expected.known.as_deref() == Some(proxy.name()));
    if let Some(asked) = asked {
        return Some(Change { by: &asked.deployer, gone: asked.gone });
    }
    let (deployer, deployed) = of(state, proxy).filter(|(deployer, _)| deployer.live())?;
    let works = |run: &&api::Run| {
        let changes = matches!(run.kind, RunKind::Redeploy | RunKind::Reconfigure | RunKind::Destroy);
        changes && run.label == deployed.name
    };
    // The run is told at once, the list a moment later.
    let run = deployer.running().iter().find(works);
    let changing = run.is_some() || deployed.state != DeployedState::Ready;
    changing.then(|| Change { by: deployer.name(), gone: run.is_some_and(|run| run.kind == RunKind::Destroy) })
}

fn all(state: &State) -> impl Iterator<Item = (&Proxy, &Deployed)> {
    state.proxies.iter().flat_map(|proxy| proxy.deployed.items.iter().map(move |deployed| (proxy, deployed)))
}

/// How far it is, in a word.
pub fn word(state: DeployedState) -> &'static str {
    match state {
        DeployedState::Deploying => "deploying",
        DeployedState::Ready => "ready",
        DeployedState::Changing => "changing",
    }
}
