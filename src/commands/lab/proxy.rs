//! One site of a lab: its `backhauld` under its launcher, with the pool and the remote it is told about.

use std::fs;
use std::io::{self, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use api::{IdParams, NoParams, Pool, PoolAdd, PoolList, PoolRemove, RemoteAdd, RemoteAddParams, RemoteList};
use lab::PoolHandle;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use signed::PublicKey;
use tls::Fingerprint;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::{inventory, pool_params, private_dir};
use crate::commands::failure::Failure;
use crate::commands::output;
use crate::config::{Proxy, Token, check_url, write_private};

/// For a daemon to say that it is ready: it opens a small database, and makes a certificate the first time.
const READY: Duration = Duration::from_secs(60);
/// For a daemon to end by itself: it gives its workers 30 s, and then buries them.
const END: Duration = Duration::from_secs(40);
/// Before a daemon that died is started again.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// A site.
pub(super) struct Site {
    setup: Setup,
    dir: PathBuf,
    proxy: Proxy,
    remote: inventory::Remote,
    child: Child,
}

/// What the proxies of a lab have in common.
#[derive(Clone)]
pub(super) struct Setup {
    /// The daemon's program.
    pub program: PathBuf,
    /// The appliance that proxies are deployed from.
    pub image: PathBuf,
    /// Whose bundles and images they take.
    pub release: PublicKey,
    /// Whose licences they ask for, if for any.
    pub issuer: Option<PublicKey>,
}

/// What a daemon says on standard output once it answers.
#[derive(Deserialize)]
pub(super) struct Ready {
    address: SocketAddr,
    #[serde(deserialize_with = "fingerprint")]
    fingerprint: Fingerprint,
}

fn fingerprint<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Fingerprint, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// The daemon's program: beside this one, else in `PATH`.
pub(super) fn find_program() -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.canonicalize().ok()?.parent()?.join("backhauld")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join("backhauld"));
    beside.into_iter().chain(in_path).find(|program| program.is_file()).ok_or_else(|| {
        Failure::failed("NO_DAEMON", "the lab needs the program backhauld, and it is neither beside backhaul nor in PATH")
            .next("cargo build --package daemon, or install the package that holds it")
    })
}

impl Site {
    /// Starts the daemon of a pool's site, and tells it its pool and its remote if it does not know them.
    /// The first pool is its own; the others are those of sites without a proxy.
    pub async fn start(lab: &Path, setup: &Setup, pools: &[&PoolHandle]) -> Result<Self, Failure> {
        let Some(own) = pools.first() else { return Err(Failure::failed("LAB", "a site needs a pool")) };
        let name = own.name().to_owned();
        let folder: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let dir = lab.join("sites").join(&folder);
        private_dir(&dir)?;
        let token = token(&dir.join("token"))?;
        let (child, ready) = match launch(setup, &dir, &name, kept_port(&dir)).await {
            // The port of last time is taken: any other will do, its client has not been told yet.
            Err(_) if kept_port(&dir) != 0 => launch(setup, &dir, &name, 0).await?,
            launched => launched?,
        };
        let url = check_url(&format!("https://{}", ready.address)).map_err(|error| Failure::failed("LAB", error))?;
        let proxy = Proxy { name: name.clone(), url, token, fingerprint: ready.fingerprint };
        let port = dir.join("port");
        fs::write(&port, ready.address.port().to_string()).map_err(|error| Failure::file("write", &port, &error))?;

        let path = lab.join("remotes").join(&folder);
        private_dir(&path)?;
        let url = format!("file://{}", path.display());
        let remote = inventory::Remote { proxy: name.clone(), name: format!("{name}-backups"), url, path };
        let site = Self { setup: setup.clone(), dir, proxy, remote, child };
        for pool in pools {
            site.introduce(pool).await?;
        }
        site.introduce_remote().await?;
        Ok(site)
    }

    /// Tells the daemon of a pool, through the door that everybody uses.
    async fn introduce(&self, pool: &PoolHandle) -> Result<(), Failure> {
        let client = self.proxy.client()?;
        let wanted = pool_params(pool);
        let known = client.call::<PoolList>(&NoParams {}).await?;
        let same = |known: &Pool| Some(&known.name) == wanted.name.as_ref();
        match known.iter().find(|known| same(known)) {
            Some(known) if known.url == wanted.url => {}
            other => {
                if let Some(moved) = other {
                    client.call::<PoolRemove>(&IdParams { id: moved.id.clone() }).await?;
                }
                client.call::<PoolAdd>(&wanted).await?;
            }
        }
        Ok(())
    }

    /// Tells the daemon of its remote.
    async fn introduce_remote(&self) -> Result<(), Failure> {
        let client = self.proxy.client()?;
        let known = client.call::<RemoteList>(&NoParams {}).await?;
        if !known.iter().any(|known| known.name == self.remote.name) {
            let params = RemoteAddParams { name: self.remote.name.clone(), url: self.remote.url.clone() };
            client.call::<RemoteAdd>(&params).await?;
        }
        Ok(())
    }

    /// The proxy as a console's configuration knows it.
    pub fn entry(&self) -> Proxy {
        self.proxy.clone()
    }

    /// Where it writes.
    pub fn remote(&self) -> inventory::Remote {
        let inventory::Remote { proxy, name, url, path } = &self.remote;
        inventory::Remote { proxy: proxy.clone(), name: name.clone(), url: url.clone(), path: path.clone() }
    }

    /// Starts the daemon again whenever it has ended, on its port and state.
    pub async fn keep_running(&mut self) {
        loop {
            let _ = self.child.wait().await;
            tracing::warn!(proxy = self.proxy.name, "the daemon ended; starting it again");
            tokio::time::sleep(PAUSE).await;
            match launch(&self.setup, &self.dir, &self.proxy.name, kept_port(&self.dir)).await {
                Ok((child, _)) => self.child = child,
                Err(failure) => tracing::warn!(proxy = self.proxy.name, ?failure, "the daemon does not start"),
            }
        }
    }

    /// Asks the daemon to end, and makes it.
    pub async fn stop(mut self) {
        end(&format!("proxy {}", self.proxy.name), &mut self.child).await;
    }
}

/// Asks a daemon to end, and makes it.
pub(super) async fn end(name: &str, child: &mut Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(END, child.wait()).await.is_err() {
        output::aside(&format!("{name} does not end by itself; killing it"));
        let _ = child.kill().await;
    }
}

fn kept_port(dir: &Path) -> u16 {
    fs::read_to_string(dir.join("port")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The token of before, or a new one.
fn token(path: &Path) -> Result<Token, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = random_token().map_err(|error| Failure::failed("LAB", format!("no random numbers: {error}")))?;
            write_private(path, &token).map_err(|error| Failure::file("write", path, &error))?;
            token
        }
        Err(error) => return Err(Failure::file("read", path, &error)),
    };
    Token::new(&text).map_err(|error| Failure::failed("LAB", format!("{}: {error}", path.display())))
}

fn random_token() -> io::Result<String> {
    let mut bytes = [0; 24];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes the daemon's configuration, starts it, and waits until it answers.
async fn launch(setup: &Setup, dir: &Path, name: &str, port: u16) -> Result<(Child, Ready), Failure> {
    let file = dir.join("backhauld.toml");
    let write = |port| {
        write_private(&file, &config(setup, name, port).to_string()).map_err(|error| Failure::file("write", &file, &error))
    };
    write(port)?;
    let mut started = spawn(&setup.program, &file, dir)?;
    let ready = started.ready(name).await?;
    // The program that it is upgraded to is to be found where this one is.
    write(ready.address.port())?;
    Ok((started.child, ready))
}

fn config(setup: &Setup, name: &str, port: u16) -> toml::Table {
    let table = |key: &str, value: toml::Value| toml::Value::from(toml::Table::from_iter([(key.to_owned(), value)]));
    let keys = |keys: &[&PublicKey]| toml::Value::from(keys.iter().map(ToString::to_string).collect::<Vec<_>>());
    let mut config = toml::Table::from_iter([
        ("name".to_owned(), name.into()),
        ("site".to_owned(), name.into()),
        ("listen".to_owned(), format!("127.0.0.1:{port}").into()),
        ("state_dir".to_owned(), "state".into()),
        ("token_file".to_owned(), "token".into()),
        ("deploy".to_owned(), table("image", setup.image.display().to_string().into())),
        ("upgrade".to_owned(), table("keys", keys(&[&setup.release]))),
    ]);
    if let Some(issuer) = &setup.issuer {
        config.insert("license".to_owned(), table("issuer_keys", keys(&[issuer])));
    }
    config
}

/// A daemon that has been started.
pub(super) struct Started {
    pub(super) child: Child,
    log: PathBuf,
    /// Where in the log it begins.
    begin: u64,
}

/// Starts the daemon on a configuration, its log in `dir`.
pub(super) fn spawn(program: &Path, file: &Path, dir: &Path) -> Result<Started, Failure> {
    let log_path = dir.join("backhauld.log");
    let log = fs::File::options().create(true).append(true).mode(0o600).open(&log_path);
    let mut log = log.map_err(|error| Failure::file("open", &log_path, &error))?;
    let begin = log.seek(io::SeekFrom::End(0)).map_err(|error| Failure::file("read", &log_path, &error))?;
    let me = std::env::current_exe().map_err(|error| Failure::failed("LAB", format!("cannot find this program: {error}")))?;

    let spawned = Command::new(me)
        .args(["lab", "guard", &std::process::id().to_string()])
        .arg(program)
        .args(["launch", "--config"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log))
        // A ctrl-C on the terminal is for the lab, which then stops its daemons in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let child = spawned.map_err(|error| Failure::file("run", program, &error))?;
    Ok(Started { child, log: log_path, begin })
}

impl Started {
    /// Waits until it answers; one that does not is ended. `name` is for messages.
    pub(super) async fn ready(&mut self, name: &str) -> Result<Ready, Failure> {
        let Some(stdout) = self.child.stdout.take() else {
            return Err(Failure::failed("LAB", "the daemon has no standard output"));
        };
        match tokio::time::timeout(READY, ready(stdout)).await {
            Ok(Some(ready)) => Ok(ready),
            outcome => {
                let _ = self.child.kill().await;
                let how = if outcome.is_err() { "says nothing" } else { "ended at once" };
                let text = fs::read(&self.log).unwrap_or_default();
                let tail = String::from_utf8_lossy(text.get(self.begin as usize..).unwrap_or_default()).trim().to_owned();
                let mut report = api::ErrorReport::new("NO_DAEMON", format!("the daemon of {name} {how}"));
                report.causes.extend((!tail.is_empty()).then_some(tail));
                let report = report.with_next(format!("see {}", self.log.display()));
                Err(Failure { exit: crate::commands::Exit::Failed, report: Some(report) })
            }
        }
    }
}

/// Waits for the line that says where the daemon answers, then keeps its output flowing into nothing.
async fn ready(stdout: ChildStdout) -> Option<Ready> {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(ready) = serde_json::from_str::<Ready>(&line) {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Some(ready);
        }
    }
    None
}

/// `backhaul lab guard PARENT PROGRAM…`: becomes the program, which then ends when its parent does, even by `kill -9`.
///
/// The wish to be told of a parent's death is the child's to utter, and survives `exec`; between `fork` and `exec` it could
/// only be uttered by unsafe code, so a process of our own stands between.
pub fn guard(parent: i32, program: &[std::ffi::OsString]) -> ExitCode {
    let Some((program, arguments)) = program.split_first() else { return ExitCode::from(2) };
    #[cfg(target_os = "linux")]
    {
        // Not TERM: whoever dies without stopping its daemons has taken their pools with it, and a daemon that wants to
        // clean up there would wait for them, holding its state against the next lab.
        let asked = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // The parent may have died before we asked.
        if asked.is_err() || rustix::process::getppid().map(Pid::as_raw_pid) != Some(parent) {
            return ExitCode::FAILURE;
        }
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    let _ = writeln!(io::stderr(), "cannot run {}: {error}", Path::new(program).display());
    ExitCode::FAILURE
}
