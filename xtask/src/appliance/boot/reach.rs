//! What can be reached of a machine from outside: its daemon, its SSH server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use api::{NoParams, SystemGetServerVersion};
use client::{CallError, Client, Token};
use tls::Fingerprint;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use url::Url;

use super::Bench;
use super::machine::Machine;

/// Calls the daemon, with its certificate pinned; and with another token, which it must refuse.
pub async fn daemon(bench: &Bench, machine: &Machine, token: &str, fingerprint: &str) -> Result<()> {
    let pinned: Fingerprint = fingerprint.parse().context("what it told as its certificate")?;
    let url = Url::parse(&format!("https://127.0.0.1:{}", machine.https))?;
    let client =
        |token: &str| -> Result<Client> { Ok(Client::new(&url, &Token::new(token).map_err(anyhow::Error::msg)?, pinned)?) };
    let good = client(token)?;
    let version = good.call::<SystemGetServerVersion>(&NoParams {}).await.context("the daemon")?;
    bench.seen(&format!("the daemon {version} answers behind its pinned certificate"));
    match client("this-is-not-the-token")?.call::<SystemGetServerVersion>(&NoParams {}).await {
        Err(CallError::Authentication { .. }) => Ok(()),
        Err(error) => Err(error).context("a wrong token was expected to be refused"),
        Ok(_) => bail!("the daemon accepts a wrong token"),
    }
}

/// Waits for an SSH server: it makes its keys first.
pub async fn ssh_comes(machine: &Machine, limit: Duration) -> Result<()> {
    let poll = async {
        while !ssh_answers(machine, limit).await? {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    };
    let come = tokio::time::timeout(limit, poll).await;
    come.with_context(|| format!("there is no SSH server within {} s although the technician may log in", limit.as_secs()))?
}

/// Whether an SSH server answers now.
pub async fn ssh_answers(machine: &Machine, limit: Duration) -> Result<bool> {
    let greeting = async {
        let mut stream = TcpStream::connect(("127.0.0.1", machine.ssh)).await?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).await.map(|_| greeting)
    };
    match tokio::time::timeout(limit, greeting).await {
        Err(_) => bail!("port 22 neither answers nor refuses within {} s", limit.as_secs()),
        Ok(Ok(greeting)) => {
            ensure!(&greeting == b"SSH-", "what answers on port 22 is no SSH server");
            Ok(true)
        }
        // The network's door opens for anybody; nobody stands behind it.
        Ok(Err(_)) => Ok(false),
    }
}

/// A technician's key.
pub struct Key {
    private: PathBuf,
    /// The line for `authorized_keys`.
    pub public: String,
}

impl Key {
    /// A new one.
    pub fn new(bench: &Bench, name: &str) -> Result<Self> {
        let private = bench.dir.join(name);
        let make = bench.tools.program("bin/ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]);
        make.arg(&private).run()?;
        let public = std::fs::read_to_string(private.with_added_extension("pub"))?;
        Ok(Self { private, public: public.trim().to_owned() })
    }
}

/// How to run something over SSH.
pub struct Shell<'a> {
    /// With which key.
    pub key: &'a Key,
    /// As whom.
    pub account: &'a str,
}

impl Shell<'_> {
    /// Runs it; what it printed.
    pub async fn run(&self, bench: &Bench, machine: &Machine, order: &str) -> Result<String> {
        let mut command = self.command(bench, machine, order);
        let output = tokio::time::timeout(bench.limit(180), command.output()).await;
        let output = output.with_context(|| format!("{order:?} over SSH does not end"))??;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(
            output.status.success(),
            "{order:?} over SSH ended with {}: {} {}",
            output.status,
            said(&output.stdout),
            said(&output.stderr)
        );
        Ok(said(&output.stdout))
    }

    /// That the server is there, and does not let this one in.
    pub async fn is_refused(&self, bench: &Bench, machine: &Machine) -> Result<()> {
        let mut command = self.command(bench, machine, "true");
        let output = tokio::time::timeout(bench.limit(180), command.output()).await.context("SSH does not end")??;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{} can log in by {}", self.account, self.key.private.display());
        ensure!(said.contains("Permission denied"), "SSH failed in another way than by a refusal: {said}");
        Ok(())
    }

    fn command(&self, bench: &Bench, machine: &Machine, order: &str) -> Command {
        let program = bench
            .tools
            .program("bin/ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "ConnectTimeout=60", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "LogLevel=ERROR"])
            .arg("-i")
            .arg(&self.key.private)
            .args(["-p", &machine.ssh.to_string(), &format!("{}@127.0.0.1", self.account), order]);
        let mut command = Command::from(program.into_command());
        command.kill_on_drop(true);
        command
    }
}
