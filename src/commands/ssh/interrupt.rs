//! ctrl-C, and what else asks a program to end (SIGTERM, and SIGHUP of a terminal that closes), heard from the first moment to
//! the last: a signal that comes between two waits is not lost, and none ends this process before what was done on the host is
//! undone.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::session::SshError;

/// Whether ctrl-C was pressed since this began to listen.
#[derive(Clone)]
pub struct Interrupt(CancellationToken);

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`SshError::Local`] when the system does not let it.
    pub fn listen() -> Result<Self, SshError> {
        let listen = |kind| signal(kind).map_err(|source| SshError::Local { what: "listen for ctrl-C", source });
        let mut interrupts = listen(SignalKind::interrupt())?;
        let mut ends = listen(SignalKind::terminate())?;
        let mut hangups = listen(SignalKind::hangup())?;
        let pressed = CancellationToken::new();
        let press = pressed.clone();
        tokio::spawn(async move {
            let heard = tokio::select! {
                heard = interrupts.recv() => heard,
                heard = ends.recv() => heard,
                heard = hangups.recv() => heard,
            };
            if heard.is_some() {
                press.cancel();
            }
        });
        Ok(Self(pressed))
    }

    /// Resolves once ctrl-C was pressed, at once if it was before.
    pub async fn pressed(&self) {
        self.0.cancelled().await;
    }

    /// Does a work, which ctrl-C ends.
    ///
    /// # Errors
    /// [`SshError::Interrupted`].
    pub async fn ends<T>(&self, work: impl Future<Output = T>) -> Result<T, SshError> {
        tokio::select! {
            done = work => Ok(done),
            () = self.pressed() => Err(SshError::Interrupted),
        }
    }
}
