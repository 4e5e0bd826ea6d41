//! A serial console: what comes is kept and logged, what is waited for has a limit.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::Child;
use tokio::sync::Notify;
use tokio::time::timeout;

/// The console.
pub struct Console {
    out: OwnedWriteHalf,
    screen: Arc<Screen>,
    /// How much of it has been dealt with, bytes.
    position: usize,
}

#[derive(Default)]
struct Screen {
    text: Mutex<Vec<u8>>,
    more: Notify,
}

/// How an attempt to log in ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Attempt {
    /// There is a shell.
    In,
    /// `Login incorrect`.
    Refused,
}

impl Console {
    /// Connects to the socket that a starting QEMU makes.
    pub async fn connect(socket: &Path, qemu: &mut Child, log: &Path, limit: Duration) -> Result<Self> {
        let mut log = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let connect = async {
            loop {
                if let Ok(stream) = UnixStream::connect(socket).await {
                    return Ok(stream);
                }
                if let Some(status) = qemu.try_wait()? {
                    bail!("it ended with {status}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (mut input, out) = timeout(limit, connect).await.context("it opens no console")??.into_split();
        let screen = Arc::new(Screen::default());
        let shared = Arc::clone(&screen);
        tokio::spawn(async move {
            let mut piece = [0; 4096];
            while let Ok(read) = input.read(&mut piece).await
                && read > 0
            {
                let _ = log.write_all(&piece[..read]);
                shared.text.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..read]);
                shared.more.notify_one();
            }
        });
        Ok(Self { out, screen, position: 0 })
    }

    /// Types a line.
    pub async fn line(&mut self, text: &str) -> Result<()> {
        self.out.write_all(format!("{text}\r").as_bytes()).await.context("the console is closed")
    }

    /// Waits until one of the texts comes, and tells which: the first that is there counts.
    pub async fn expect(&mut self, texts: &[&str], limit: Duration) -> Result<usize> {
        let found = timeout(limit, async {
            loop {
                let more = self.screen.more.notified();
                if let Some((which, end)) = self.find(texts) {
                    return (which, end);
                }
                more.await;
            }
        });
        let shown = texts.join("\" or \"");
        let (which, end) = found.await.with_context(|| format!("no \"{shown}\" on the console within {} s", limit.as_secs()))?;
        self.position = end;
        Ok(which)
    }

    fn find(&self, texts: &[&str]) -> Option<(usize, usize)> {
        let screen = self.screen.text.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = screen.get(self.position..)?;
        let place = |text: &str| rest.windows(text.len()).position(|window| window == text.as_bytes());
        let found = texts.iter().enumerate().filter_map(|(which, text)| Some((place(text)? + text.len(), which)));
        found.min().map(|(end, which)| (which, self.position + end))
    }

    /// Tries to log in at the next prompt.
    pub async fn log_in(&mut self, account: &str, password: &str, limit: Duration) -> Result<Attempt> {
        let shell = format!("{account}@");
        for _ in 0..5 {
            self.expect(&["login: "], limit).await?;
            self.line(account).await?;
            // A prompt that was printed anew meanwhile has not heard it.
            if self.expect(&["Password: "], limit / 4).await.is_err() {
                self.line("").await?;
                continue;
            }
            self.line(password).await?;
            // A prompt gives up after a minute, which a slow machine may need to ask for the password.
            match self.expect(&[&shell, "Login incorrect", "timed out"], limit).await? {
                0 => return Ok(Attempt::In),
                1 => return Ok(Attempt::Refused),
                _ => {}
            }
        }
        bail!("the console lets nobody try to log in")
    }
}
