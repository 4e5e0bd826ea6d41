//! A pool and the session on it: logging in, following the master, logging in again, leaving.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex as Cell};
use std::time::Duration;

use serde_json::{Value, json};
use tls::{Fingerprint, Trust};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::transfer::connection;
use crate::{Error, Host, Ref, Result};

/// Name under which the pool counts our sessions; it limits them per originator.
const ORIGINATOR: &str = "backhaul";
/// Calls to one pool at the same time.
const PARALLEL_CALLS: usize = 20;

/// How to reach a pool, and as whom.
#[derive(Clone)]
pub struct Connect {
    /// `https://host[:port]`, or just the host.
    pub url: String,
    /// User.
    pub username: String,
    /// Password. A secret.
    pub password: String,
    /// Which certificate is accepted.
    pub trust: Trust,
    /// How long to wait for what.
    pub timing: Timing,
}

impl Connect {
    /// With the usual patience.
    pub fn new(url: impl Into<String>, username: impl Into<String>, password: impl Into<String>, trust: Trust) -> Self {
        Self { url: url.into(), username: username.into(), password: password.into(), trust, timing: Timing::default() }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("url", &self.url).field("username", &self.username).finish_non_exhaustive()
    }
}

/// How long to wait for what. Tests shorten it; nothing else should.
#[derive(Debug, Clone)]
pub struct Timing {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For a call as a whole.
    pub call: Duration,
    /// Without a byte, in a call or transfer.
    pub inactivity: Duration,
    /// For the first byte of an export, which a compressed one lets wait for.
    pub first_byte: Duration,
    /// For the status line of an upload before its body is sent all the same.
    pub upload_head: Duration,
    /// For the end of a task after the last byte of its transfer.
    pub settle: Duration,
    /// Attempts of a call that the pool is too busy for, and of one that finds a disk in use.
    pub busy_attempts: u32,
    /// Between these attempts; a disk in use is asked for sooner at first.
    pub busy_delay: Duration,
    /// Attempts of a reading call whose connection breaks.
    pub read_attempts: u32,
    /// Between these attempts.
    pub read_delay: Duration,
    /// Longest wait of one call for events.
    pub event_wait: Duration,
    /// Between the first two looks at a task.
    pub poll_first: Duration,
    /// Between two looks at a task that takes long.
    pub poll_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            call: Duration::from_secs(3600),
            inactivity: Duration::from_secs(300),
            first_byte: Duration::from_secs(1800),
            upload_head: Duration::from_secs(5),
            settle: Duration::from_secs(120),
            busy_attempts: 10,
            busy_delay: Duration::from_secs(5),
            read_attempts: 4,
            read_delay: Duration::from_secs(1),
            event_wait: Duration::from_secs(5),
            poll_first: Duration::from_millis(20),
            poll_most: Duration::from_secs(1),
        }
    }
}

/// A session reference: a credential, so it prints as nothing.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) base: Url,
    pub(crate) secret: Arc<str>,
    /// Which login it came from, so that several calls that find it expired log in once.
    login: u64,
}

/// A handle on one pool; clones share the session.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) http: reqwest::Client,
    pub(crate) connect: Connect,
    pub(crate) calls: Semaphore,
    state: Mutex<State>,
    /// Whether `event.from` does not help to wait for a task here; then tasks are looked at instead.
    pub(crate) events_useless: AtomicBool,
    /// What [`Client::close`] waits for.
    background: TaskTracker,
    /// Certificates of other members, learnt through the master.
    members: Cell<HashMap<String, Trust>>,
}

struct State {
    base: Url,
    session: Option<Session>,
    logins: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("url", &self.inner.connect.url).finish_non_exhaustive()
    }
}

/// Reads an address of a pool: `https://host[:port]` or the host alone.
fn parse_url(text: &str) -> Result<Url> {
    let bad = |reason: &str| {
        // Whatever stands before an @ may be a password.
        let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
        Error::Url { url: shown.to_owned(), reason: reason.to_owned() }
    };
    let text = text.trim();
    let full = if text.contains("://") {
        text.to_owned()
    } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("https://[{text}]")
    } else {
        format!("https://{text}")
    };
    let mut url = Url::parse(&full).map_err(|error| bad(&error.to_string()))?;
    if url.scheme() != "https" {
        return Err(bad("only https is spoken to pools"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("user and password are given apart from it"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("it has no host"));
    }
    url.set_path("/");
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

/// Host and port, for messages and certificates.
pub(crate) fn address(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or(""), url.port_or_known_default().unwrap_or(443))
}

/// The same URL on another host, whose port is the usual one unless the address names another.
fn with_host(url: &Url, host: &str) -> Result<Url> {
    let mut base = parse_url(host)?;
    if base.port().is_none() {
        let _ = base.set_port(url.port());
    }
    Ok(base)
}

/// Host, without the brackets of IPv6, and port of a pool's address.
///
/// # Errors
/// [`Error::Url`].
pub fn host_and_port(url: &str) -> Result<(String, u16)> {
    let url = parse_url(url)?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    Ok((host, url.port_or_known_default().unwrap_or(443)))
}

/// The certificate a pool shows, for a person to compare before it is pinned. Sends nothing but a TLS handshake.
pub async fn fingerprint(url: &str) -> Result<Fingerprint> {
    connection::fingerprint(&parse_url(url)?, Timing::default().connect).await
}

impl Client {
    /// Connects to a pool and logs in.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::Connect`], [`Error::Certificate`], or `SESSION_AUTHENTICATION_FAILED` and others from
    /// the pool.
    pub async fn connect(connect: Connect) -> Result<Self> {
        let base = parse_url(&connect.url)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(connect.trust.clone()))
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(connect.timing.connect)
            .read_timeout(connect.timing.inactivity)
            .pool_idle_timeout(Duration::from_secs(20))
            .build()
            .map_err(|error| Error::Connect { address: address(&base), source: error.without_url().into() })?;
        let client = Self {
            inner: Arc::new(Inner {
                http,
                connect,
                calls: Semaphore::new(PARALLEL_CALLS),
                state: Mutex::new(State { base, session: None, logins: 0 }),
                events_useless: AtomicBool::new(false),
                background: TaskTracker::new(),
                members: Cell::default(),
            }),
        };
        client.session().await?;
        Ok(client)
    }

    /// The address of the master, as last followed.
    pub async fn master(&self) -> Url {
        self.inner.state.lock().await.base.clone()
    }

    /// Waits for what still cleans up in the background, then logs out. Sessions are a limited good of a pool: call it
    /// at the end. A handle that is just dropped logs out in the background.
    pub async fn close(&self) {
        self.inner.background.close();
        self.inner.background.wait().await;
        self.inner.background.reopen();
        let session = self.inner.state.lock().await.session.take();
        if let Some(session) = session {
            let _ = self.post(&session.base, "session.logout", vec![json!(&*session.secret)], Duration::from_secs(10)).await;
        }
    }

    /// Runs something to its end even though whoever wanted it is gone; [`Client::close`] waits for it.
    pub(crate) fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.inner.background.spawn_on(work, &runtime);
        }
    }

    pub(crate) fn timing(&self) -> &Timing {
        &self.inner.connect.timing
    }

    /// The secret of the present session, to be taken out of texts; none before a login.
    pub(crate) async fn present_secret(&self) -> Option<Arc<str>> {
        self.inner.state.lock().await.session.as_ref().map(|session| session.secret.clone())
    }

    /// The session, after a login where there is none.
    pub(crate) async fn session(&self) -> Result<Session> {
        let mut state = self.inner.state.lock().await;
        match &state.session {
            Some(session) => Ok(session.clone()),
            None => self.log_in(&mut state).await,
        }
    }

    /// A session newer than `old`: one login serves all calls that found the same session expired.
    pub(crate) async fn renew(&self, old: &Session) -> Result<Session> {
        let mut state = self.inner.state.lock().await;
        match &state.session {
            Some(session) if session.login != old.login => Ok(session.clone()),
            _ => self.log_in(&mut state).await,
        }
    }

    /// As [`Client::renew`], on the master that `old` was told of.
    pub(crate) async fn follow(&self, old: &Session, master: &str) -> Result<Session> {
        let mut state = self.inner.state.lock().await;
        match &state.session {
            Some(session) if session.login != old.login => Ok(session.clone()),
            _ => {
                state.base = with_host(&old.base, master)?;
                self.log_in(&mut state).await
            }
        }
    }

    async fn log_in(&self, state: &mut State) -> Result<Session> {
        state.session = None;
        let connect = &self.inner.connect;
        let patience = connect.timing.inactivity.min(Duration::from_secs(60));
        let mut full = true;
        let mut moved = false;
        loop {
            let mut params = vec![json!(connect.username), json!(connect.password)];
            if full {
                params.extend([json!("1.0"), json!(ORIGINATOR)]);
            }
            let base = state.base.clone();
            match self.post(&base, "session.login_with_password", params, patience).await {
                Ok(Value::String(secret)) => {
                    state.logins += 1;
                    let session = Session { base, secret: secret.into(), login: state.logins };
                    state.session = Some(session.clone());
                    return Ok(session);
                }
                Ok(_) => {
                    let reason = "no session reference".to_owned();
                    return Err(Error::Malformed { what: "session.login_with_password".into(), reason });
                }
                Err(error) if full && error.is("MESSAGE_PARAMETER_COUNT_MISMATCH") => full = false,
                Err(error) => match error.failure() {
                    Some(failure) if failure.code == "HOST_IS_SLAVE" && !moved && !failure.params.is_empty() => {
                        moved = true;
                        state.base = with_host(&base, &failure.params[0])?;
                        tracing::info!(from = address(&base), to = address(&state.base), "following the pool's master");
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Which certificate to accept from `url`. That of another member is learnt from the master, whose own one was
    /// checked; where the pool cannot tell it, the one pinned for the pool has to fit.
    pub(crate) async fn trust_for(&self, url: &Url, session: &Session) -> Trust {
        let own = || self.inner.connect.trust.clone();
        let Some(host) = url.host_str() else { return own() };
        if session.base.host_str() == Some(host) && session.base.port_or_known_default() == url.port_or_known_default() {
            return own();
        }
        if let Some(known) = self.inner.members.lock().ok().and_then(|members| members.get(host).cloned()) {
            return known;
        }
        match self.member_certificate(host).await {
            Some(fingerprint) => {
                let trust = Trust::Pinned(fingerprint);
                if let Ok(mut members) = self.inner.members.lock() {
                    members.insert(host.to_owned(), trust.clone());
                }
                trust
            }
            None => own(),
        }
    }

    async fn member_certificate(&self, host: &str) -> Option<Fingerprint> {
        let bare = host.trim_matches(['[', ']']);
        let same = |address: &str| match (address.parse::<IpAddr>(), bare.parse::<IpAddr>()) {
            (Ok(one), Ok(other)) => one == other,
            _ => address.eq_ignore_ascii_case(bare),
        };
        let hosts = self.all::<Host>().await.ok()?;
        let member: &Ref = &hosts.iter().find(|record| same(&record.address))?.reference;
        let pem: String = self.call("host.get_server_certificate", json!([member])).await.ok()?;
        connection::fingerprint_of_pem(&pem)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let (Some(session), Ok(runtime)) = (self.state.get_mut().session.take(), tokio::runtime::Handle::try_current()) {
            let body = json!({"jsonrpc": "2.0", "method": "session.logout", "params": [&*session.secret], "id": 0});
            let request =
                self.http.post(session.base.join("jsonrpc").unwrap_or(session.base)).json(&body).timeout(Duration::from_secs(10));
            runtime.spawn(async move {
                let _ = request.send().await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_pools_are_read_generously() {
        for (text, url) in [
            ("10.0.0.1", "https://10.0.0.1/"),
            ("pool.example:8443", "https://pool.example:8443/"),
            ("https://pool.example/ignored?x#y", "https://pool.example/"),
            ("fe80::1", "https://[fe80::1]/"),
        ] {
            assert_eq!(parse_url(text).unwrap().as_str(), url);
        }
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let apart = |text: &str| host_and_port(text).unwrap();
        assert_eq!(apart("https://pool.example"), ("pool.example".into(), 443));
        assert_eq!(apart("https://[fe80::1]:8443/"), ("fe80::1".into(), 8443));
        host_and_port("ftp://x").unwrap_err();
    }

    #[test]
    fn what_is_no_address_is_refused_without_showing_a_password() {
        for text in ["", "http://pool", "https://", "https://root:hunter2@pool", "ssh://root:hunter2@pool", "a b:hunter2@c d"] {
            let error = parse_url(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_master_keeps_the_port_unless_it_names_one() {
        let url = parse_url("https://10.0.0.1:8443").unwrap();
        assert_eq!(with_host(&url, "10.0.0.2").unwrap().as_str(), "https://10.0.0.2:8443/");
        assert_eq!(with_host(&url, "10.0.0.2:9443").unwrap().as_str(), "https://10.0.0.2:9443/");
        assert_eq!(with_host(&url, "fe80::2").unwrap().as_str(), "https://[fe80::2]:8443/");
    }

    #[test]
    fn a_password_is_not_in_the_debug_output() {
        let connect = Connect::new("pool", "root", "hunter2", Trust::first_use().0);
        assert!(!format!("{connect:?}").contains("hunter2"));
    }
}
